"""Decodes a file of any common image format to one square uint8 RGB image, or says why it cannot.

One rule holds for training, evaluation and prediction: the first frame, turned as its EXIF data says, 16 bits to 8,
transparency over white, three channels, the shorter side resized to the asked size, the middle kept. The format is that
of the content; an extension of another format only adds a remark.
"""

import io
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmpl.data.errors import DataError
from fastmpl.distributed.threads import cores

SUFFIXES: Final = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
FORMATS: Final = tuple(dict.fromkeys(SUFFIXES.values()))
LARGEST: Final = 100_000_000  # pixels; a decoded image of this size takes 300 MB, of each thread
AHEAD: Final = 256  # images that are decoded before the caller takes the first of them
FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_DEEP: Final = 257  # 65535 / 255

# PIL warns of large images, where our limit decides, and of odd metadata, which changes no pixel. Filters belong to the
# process and not to a thread, so they cannot be set around the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Decoded(NamedTuple):
    """`pixels` uint8 [size, size, 3], or None with the reason in `remark`; with pixels, a remark says what is odd."""

    pixels: NDArray[np.uint8] | None
    remark: str = ""


class Whole(NamedTuple):
    """The image of a file, or None with the reason in `remark`; with an image, a remark says what is odd."""

    image: Image.Image | None
    remark: str = ""


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # damaged EXIF data beside whole pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which PIL's own conversion would clip
        values = np.asarray(image).astype(np.float64) / _DEEP
        return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _refusal(image: Image.Image) -> str:
    """Why an opened image must not be decoded; empty where it may be."""
    if image.width * image.height > LARGEST:
        return f"{image.width} x {image.height} pixels, more than {LARGEST // 10**6} million"
    if image.mode == "F":
        return "has floating-point pixels, whose white is not known: save it with 8 or 16 bits"
    if image.mode == "I" and not _has_16_bits(image):
        return "has whole numbers of 32 bits for pixels, whose white is not known: save it with 8 or 16 bits"
    return ""


def _has_16_bits(image: Image.Image) -> bool:
    return any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _list_oddities(image: Image.Image, suffix: str) -> str:
    """What is odd about an opened image that can be decoded, from its header alone."""
    named, found = SUFFIXES.get(suffix.lower()), "JPEG" if image.format == "MPO" else image.format
    said = [] if named in (found, None) else [f"is a {found} by its content, and used"]
    if image.mode == "CMYK":
        said.append("has four channels of ink (CMYK), read as three of light")
    if _has_16_bits(image):
        said.append("has 16 bits a channel, read as 8")
    if found != "JPEG" and getattr(image, "is_animated", False):
        said.append("is animated; its first picture is used")
    return "; ".join(said)


def _read(path: Path, size: int, filter: Image.Resampling) -> Decoded:
    with Image.open(path, formats=FORMATS) as image:
        if reason := _refusal(image):
            return Decoded(None, reason)
        remarks = _list_oddities(image, path.suffix)
        image.draft(None, (2 * size, 2 * size))  # lets a JPEG decoder skip detail that resizing would drop
        square = ImageOps.fit(_to_rgb(_turn_upright(image)), (size, size), filter)
        return Decoded(np.asarray(square), remarks)


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels uint8 [H, W, 3] of an opened image, upright and in RGB. Raises DataError where a file's are refused."""
    if reason := _refusal(image):
        raise DataError(f"an image {reason}.")
    return np.asarray(_to_rgb(_turn_upright(image)))


def fit(pixels: NDArray[np.uint8], size: int, interpolation: str = "bilinear") -> Decoded:
    """The square of `size` pixels of an RGB image uint8 [H, W, 3], as `decode` makes it of a file of these pixels."""
    return Decoded(np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), FILTERS[interpolation])))


def reason_of(error: Exception) -> str:
    """Why a file could not be decoded, in words. On damaged bytes a decoder may raise any exception."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {LARGEST // 10**6} million pixels"
    if isinstance(error, FileNotFoundError):
        return "the file is gone, or a link to nothing"
    if isinstance(error, OSError) and error.errno:  # the system's, not a decoder's
        return f"cannot be read: {error.strerror}"
    return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"


def decode(path: Path, size: int, interpolation: str = "bilinear") -> Decoded:
    """Decodes a file to a square of `size` pixels. No content of the file raises an error.

    interpolation: "bilinear" or "bicubic".
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
            return Decoded(None, "it is no regular file (a pipe, a socket or a device)")
        if not facts.st_size:
            return Decoded(None, "the file is empty")
        return _read(path, size, FILTERS[interpolation])
    except Exception as error:
        return Decoded(None, reason_of(error))


def decode_whole(content: bytes, suffix: str = "") -> Whole:
    """Decodes bytes at their own size, upright and RGB; `suffix` of the file's name is for a remark."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if reason := _refusal(image):
                return Whole(None, reason)
            remarks = _list_oddities(image, suffix)
            return Whole(_to_rgb(_turn_upright(image)), remarks)
    except Exception as error:
        return Whole(None, reason_of(error))


def decode_all(
    paths: Iterable[Path], size: int, interpolation: str = "bilinear", threads: int = 0
) -> Iterator[Decoded]:
    """Decodes `paths` in their order, by several threads (0: one a core) that work a little ahead."""
    remaining = iter(paths)
    with ThreadPoolExecutor(threads or cores()) as pool:
        while chunk := list(islice(remaining, AHEAD)):
            yield from pool.map(decode, chunk, repeat(size), repeat(interpolation))
