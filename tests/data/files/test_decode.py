"""Every common kind of image becomes the same square of bytes, and every bad file a reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmpl.data.files.decode import decode, decode_all, decode_whole
from tests.pictures import BAD, encoded, kinds, spoil

RED = (200, 40, 40)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def square(path: Path, content: bytes, size: int = 16) -> np.ndarray:
    path.write_bytes(content)
    found = decode(path, size)
    assert found.pixels is not None, found.remark
    assert found.pixels.shape == (size, size, 3)
    assert found.pixels.dtype == np.uint8
    return found.pixels


def test_every_kind_of_image_keeps_its_brightness_and_colour_images_their_colour(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for number, (suffix, content) in enumerate(kinds(rng, RED)):
        seen = square(tmp_path / f"{number}{suffix}", content).mean((0, 1))
        with Image.open(tmp_path / f"{number}{suffix}") as image:
            coloured = image.mode not in ("L", "1", "I;16", "I")
        if coloured:
            np.testing.assert_allclose(seen, RED, atol=20, err_msg=f"{number}{suffix}")
        else:
            assert np.ptp(seen) == 0


def test_sixteen_bits_become_eight_without_clipping(tmp_path: Path) -> None:
    deep = np.repeat(np.linspace(0, 65535, 16).astype(np.uint16)[None], 16, axis=0)
    seen = square(tmp_path / "a.png", encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(seen[0, :, 0], np.arange(16) * 17)


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255  # white above black
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera's top is at the right
    lying = Image.fromarray(np.rot90(upright))
    seen = square(tmp_path / "a.png", encoded(lying, "PNG", exif=turned))
    np.testing.assert_array_equal(seen, upright)


def test_damaged_exif_data_does_not_cost_the_picture(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (16, 16), RED), "JPEG", exif=b"Exif\0\0garbage garbage")
    np.testing.assert_allclose(square(tmp_path / "a.jpg", content).mean((0, 1)), RED, atol=3)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    content = encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "PNG")
    assert square(tmp_path / "a.png", content).min() == 255


def test_the_first_frame_of_an_animation_is_the_picture(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")
    for form in ("GIF", "WEBP", "PNG"):
        content = encoded(first, form, save_all=True, append_images=[second])
        assert square(tmp_path / f"a.{form.lower()}", content).min() > 250


def test_the_middle_of_a_long_picture_is_kept_at_its_proportions(tmp_path: Path) -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 24:40] = 255
    assert square(tmp_path / "a.png", encoded(Image.fromarray(wide), "PNG")).min() == 255


def test_each_bad_file_has_its_reason(tmp_path: Path, rng: np.random.Generator) -> None:
    spoil(tmp_path, rng)
    for name, reason in BAD.items():
        if name not in ("notes.txt", "noextension"):  # by their names; the second is an image
            found = decode(tmp_path / name, 16)
            assert found.pixels is None
            assert reason in found.remark


def test_an_image_with_another_images_extension_is_read_with_a_remark(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (16, 16), RED), "PNG"))
    found = decode(path, 16)
    assert found.pixels is not None
    assert "is a PNG by its content" in found.remark


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_no_damage_of_a_file_ends_the_program(tmp_path: Path, rng: np.random.Generator, form: str) -> None:
    whole = np.frombuffer(encoded(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), form), np.uint8)
    path, refused = tmp_path / "a", 0
    for _ in range(150):
        altered = whole.copy()
        altered[rng.integers(0, min(len(whole), 200), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(altered[: rng.integers(len(whole) // 2, len(whole) + 1)].tobytes())
        found = decode(path, 8)
        assert (found.pixels is None) == bool(found.remark)
        refused += found.pixels is None
    assert refused > 0


def test_images_come_in_the_order_of_their_files_however_many_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("L", (1 + 400 * (number % 3 == 0), 9), number).save(path)
    seen = [found.pixels[0, 0, 0] for found in decode_all(paths, 4, threads=4) if found.pixels is not None]
    assert seen == list(range(40))


def test_what_is_odd_about_a_picture_that_is_used_is_said(tmp_path: Path, rng: np.random.Generator) -> None:
    said = []
    for number, (suffix, content) in enumerate(kinds(rng, RED)):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        found = decode(path, 16)
        assert decode_whole(content, suffix).remark == found.remark
        said += [found.remark] if found.remark else []
    assert said == [
        "has four channels of ink (CMYK), read as three of light",
        "has 16 bits a channel, read as 8",
        "is animated; its first picture is used",
    ]


@pytest.mark.parametrize("largest", [255, 65_535, 2**31 - 1])
def test_whole_numbers_of_32_bits_are_refused_for_their_white_is_not_known(tmp_path: Path, largest: int) -> None:
    ramp = np.linspace(0, largest, 16).astype(np.int32)
    path = tmp_path / "a.tif"
    path.write_bytes(encoded(Image.fromarray(np.repeat(ramp[None], 16, axis=0)), "TIFF"))
    found = decode(path, 16)
    assert found.pixels is None
    assert found.remark.startswith("has whole numbers of 32 bits")
    assert decode_whole(path.read_bytes()).remark == found.remark
