"""A folder of pictures as people have them: every common format, mode and size, names of all kinds, and bad files."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "blau grün": (40, 60, 200), "<script>alert(1)": (60, 180, 60)}


def pixels(rng: np.random.Generator, colour: tuple[int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Noise around a colour, so that classes can be told apart."""
    noise = rng.normal(0, 25, (size[1], size[0], 3))
    return np.clip(noise + colour, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def kinds(rng: np.random.Generator, colour: tuple[int, int, int]) -> list[tuple[str, bytes]]:
    """One file of each kind: its extension and its bytes."""

    def drawn() -> Image.Image:
        return Image.fromarray(pixels(rng, colour, (int(rng.integers(10, 60)), int(rng.integers(10, 60)))))

    turned = Image.Exif()
    turned[0x0112] = 6
    deep = (np.asarray(drawn().convert("L")).astype(np.uint16)) * 257
    return [
        (".jpg", encoded(drawn(), "JPEG")),
        (".JPEG", encoded(drawn(), "JPEG", exif=turned)),
        (".jpg", encoded(drawn().convert("CMYK"), "JPEG")),
        (".jpeg", encoded(drawn().convert("L"), "JPEG")),
        (".png", encoded(drawn(), "PNG")),
        (".png", encoded(drawn().convert("RGBA"), "PNG")),
        (".png", encoded(drawn().convert("P"), "PNG", transparency=0)),
        (".png", encoded(drawn().convert("1"), "PNG")),
        (".png", encoded(Image.fromarray(deep), "PNG")),
        (".webp", encoded(drawn(), "WEBP")),
        (".bmp", encoded(drawn(), "BMP")),
        (".gif", encoded(drawn(), "GIF", save_all=True, append_images=[drawn().resize((10, 10))])),
    ]


def fill(folder: Path, rng: np.random.Generator, colour: tuple[int, int, int], count: int) -> None:
    """`count` pictures of a colour, of all kinds in turn, some of them in a folder below."""
    (folder / "more of them").mkdir(parents=True)
    made: list[tuple[str, bytes]] = []
    while len(made) < count:
        made += kinds(rng, colour)
    for number, (suffix, content) in enumerate(made[:count]):
        below = "more of them" if number % 5 == 4 else "."
        (folder / below / f"image {number:03d}é{suffix}").write_bytes(content)


def promised(png: bytes, side: int) -> bytes:
    """The PNG with a header that promises a picture of `side` pixels square."""
    header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


BAD = {
    "empty.jpg": "the file is empty",
    "garbage.png": "not an image of a known format",
    "text.jpg": "not an image of a known format",
    "truncated.jpg": "damaged: ",
    "truncated.png": "damaged: ",
    "bomb.png": "12000 x 12000 pixels, more than 100 million",
    "bigger bomb.png": "more than 100 million pixels",
    "gone.jpg": "the file is gone",
    "notes.txt": ".txt is no image format that is read",
    "noextension": "its name has no extension",
}


DECODED_BAD = [name for name in BAD if name.endswith((".jpg", ".png"))]  # found by a decoder


def spoil(folder: Path, rng: np.random.Generator) -> None:
    """Adds a file of each kind in BAD."""
    whole = Image.fromarray(pixels(rng, (100, 100, 100), (64, 64)))
    jpeg, png = encoded(whole, "JPEG"), encoded(whole, "PNG")
    (folder / "empty.jpg").touch()
    (folder / "garbage.png").write_bytes(rng.bytes(500))
    (folder / "text.jpg").write_text("not a picture")
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "bomb.png").write_bytes(promised(png, 12_000))
    (folder / "bigger bomb.png").write_bytes(promised(png, 2_000_000))
    os.symlink(folder / "nothing", folder / "gone.jpg")
    (folder / "notes.txt").write_text("notes")
    (folder / "noextension").write_bytes(jpeg)


def make(root: Path, labelled: int = 12, unlabelled: int = 24, test: int = 12, trusted: int = 0, seed: int = 0) -> Path:
    """A folder of pictures; counts are of each class."""
    rng = np.random.default_rng(seed)
    for part, count in (("labelled", labelled), ("test", test), ("trusted", trusted)):
        for name, colour in COLOURS.items() if count else ():
            fill(root / part / name, rng, colour, count)
    for number, colour in enumerate(COLOURS.values()):
        fill(root / "unlabelled" / f"part {number}", rng, colour, unlabelled)
    return root
