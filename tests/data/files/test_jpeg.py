"""What the walk over a JPEG's markers lets through, DALI decodes; and it lets through what is whole."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from fastmpl.data.files.jpeg import read_header
from tests.mini_imagenet import jpeg

dali = pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to decode what was let through")

MUTANTS = 240


def encoded(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def turned(by: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = by
    return exif


IMAGE = Image.open(io.BytesIO(jpeg(0, seed=0, number=0, size=(60, 44))))
WHOLE = {
    "baseline": encoded(IMAGE),
    "progressive": encoded(IMAGE, progressive=True),
    "grey": encoded(IMAGE.convert("L")),
    "without subsampling": encoded(IMAGE, subsampling=0, optimize=True),
    "with restarts": encoded(IMAGE, restart_marker_blocks=2),
    "turned": encoded(IMAGE, exif=turned(6)),
    "upside down": encoded(IMAGE, exif=turned(3)),
    "something after it": encoded(IMAGE) + b"something",
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_jpeg_is_accepted_with_its_upright_size(kind: str) -> None:
    found = read_header(WHOLE[kind])
    assert found is not None
    assert (found.height, found.width) == ((60, 44) if kind == "turned" else (44, 60))
    assert found.channels == (1 if kind == "grey" else 3)


@pytest.mark.parametrize("by", range(1, 9))
def test_a_picture_that_lies_on_its_side_is_measured_upright(by: int) -> None:
    found = read_header(encoded(IMAGE, exif=turned(by)))
    assert found is not None
    assert (found.height, found.width) == ((60, 44) if by >= 5 else (44, 60))


def with_code_words(content: bytes) -> bytes:
    """Three words of one bit in the first Huffman table, and three less of some other length."""
    damaged, table = bytearray(content), content.index(b"\xff\xc4") + 5
    counts = damaged[table : table + 16]
    rich = max(range(1, 16), key=lambda bits: counts[bits])
    damaged[table] += 3
    damaged[table + rich] -= 3
    return bytes(damaged)


def with_scans(content: bytes, count: int) -> bytes:
    """The only scan of a grey picture so many times."""
    start = content.index(b"\xff\xda")
    return content[:start] + content[start:-2] * count + content[-2:]


def with_segment(content: bytes, marker: int, times: int) -> bytes:
    """The first segment of that marker so many times."""
    start = content.index(bytes((0xFF, marker)))
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return content[:start] + content[start:end] * times + content[end:]


def test_a_picture_of_some_scans_is_accepted_and_an_attack_on_the_decoder_s_time_is_not() -> None:
    assert read_header(with_scans(WHOLE["grey"], 100)) is not None
    assert read_header(with_scans(WHOLE["grey"], 101)) is None


BROKEN = {
    "empty": b"",
    "a start alone": b"\xff\xd8",
    "half": WHOLE["baseline"][:900],
    "without its end": WHOLE["progressive"][:-2],
    "four channels": encoded(IMAGE.convert("CMYK")),
    "a PNG": b"\x89PNG\r\n",
    "a code with too many words": with_code_words(WHOLE["baseline"]),
    "a table that is not there": with_segment(WHOLE["grey"], 0xDB, 0),
    "two frames": with_segment(WHOLE["grey"], 0xC0, 2),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_a_decoder_may_refuse_is_not_accepted(kind: str) -> None:
    assert read_header(BROKEN[kind]) is None


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Damaged copies: bytes changed in the header or anywhere, a marker set into the data, bytes lost or added."""
    rng, sources = np.random.default_rng(seed), list(WHOLE.values())
    for _ in range(count):
        content = bytearray(sources[rng.integers(len(sources))])
        data, place = content.index(b"\xff\xda"), int(rng.integers(2, len(content) - 2))
        how = rng.integers(5)
        if how < 2:
            for place in rng.integers(2, data + 20 if how else len(content), 2):
                content[place] = rng.integers(256)
        elif how == 2:
            place = int(rng.integers(data, len(content) - 2))
            content[place : place + 2] = bytes((0xFF, rng.integers(256)))
        elif how == 3:
            del content[place : place + rng.integers(1, 100)]
        else:
            content[place:place] = rng.bytes(20)
        yield bytes(content)


def decoded_sizes(images: list[bytes]) -> list[tuple[int, int]]:
    """Height and width of each, all in one batch, which one refused image would end."""

    @dali.pipeline_def(batch_size=len(images), num_threads=1, device_id=None)
    def pipeline() -> object:
        arrays = [np.frombuffer(image, np.uint8) for image in images]
        content = dali.fn.external_source(source=lambda: arrays, batch=True, dtype=dali.types.UINT8)
        return dali.fn.decoders.image(content, device="cpu", output_type=dali.types.RGB)

    made = pipeline()
    made.build()
    (output,) = made.run()
    return [output.at(number).shape[:2] for number in range(len(images))]


def test_no_damage_that_is_accepted_ends_a_batch() -> None:
    accepted = [(image, found) for image in mutants(MUTANTS, seed=0) if (found := read_header(image)) is not None]
    assert MUTANTS / 3 < len(accepted) < MUTANTS - 20
    assert decoded_sizes([image for image, _ in accepted]) == [(f.height, f.width) for _, f in accepted]


def test_no_bytes_raise() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        read_header(b"\xff\xd8\xff" + rng.bytes(int(rng.integers(60))))
        whole = WHOLE["progressive"]
        read_header(whole[: rng.integers(len(whole))])
