"""Image files to RGB pixels by one set of rules, for training, prediction, coordinates and servers. No torch.

    transparent     composited over white: alpha, a palette's alpha, a transparent colour
    turned          upright, as EXIF (or XMP) says; sizes and coordinates are those after turning
    16 bits         the upper 8 of each channel, in grey as in colour
    float           0 to 1 becomes 0 to 255; other ranges are refused, since what is white is not known
    CMYK, YCbCr ..  Pillow's conversion; colour profiles are not applied
    animated        the first picture

What is broken, too large, or would have to be guessed is refused by name, never shown half.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from qwenvl_agent import png
from qwenvl_agent.files import check_plain_file

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow has more, some of which run other programs (EPS) or are recognised by guessing."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of EXIF's Orientation."""
MAX_FILE_BYTES = 2**30
"""Of a picture's file. The largest that is decoded has less, uncompressed and with 16 bits of four channels."""
MAX_ASPECT_RATIO = 200
"""Of the longer side to the shorter: Qwen's image processor takes no thinner picture."""


def file_bytes(path: Path | str) -> bytes:
    """What is in a picture's file; ValueError for what is no file, or larger than any picture that is read."""
    check_plain_file(path, MAX_FILE_BYTES)
    return Path(path).read_bytes()


def read_size(path: Path | str, name: str) -> tuple[int, int]:
    """(width, height) of the upright picture from the file's head; no pixel is decoded.

    ValueError, which calls it `name`, for what is missing, no picture, too large or too thin for any model.
    """
    size = png.plain_size(path) if _is_plain_file(path) else None
    if size is None or not _is_within_limit(size):
        with picture_errors(name):
            check_plain_file(path, MAX_FILE_BYTES)
            with Image.open(path, formats=FORMATS) as image:
                size = _upright_size(image)
    check_aspect_ratio(*size, name)
    return size


def _is_plain_file(path: Path | str) -> bool:
    try:
        check_plain_file(path, MAX_FILE_BYTES)
    except UnicodeEncodeError:
        raise  # no file has such a name
    except (OSError, ValueError):
        return False
    return True


def read_rgb(source: Path | str | bytes, name: str) -> Image.Image:
    """The whole picture, upright, in RGB; ValueError, which calls it `name`, for what is broken or must be guessed."""
    with picture_errors(name):
        content = source if isinstance(source, bytes) else file_bytes(source)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.format == "PNG":
                png.check(content)
                _check_has_no_deep_key(image, content[png.DEPTH_AT])
            return to_rgb(image)


def read_format(content: bytes, name: str) -> str:
    """Which of FORMATS the bytes are, by their head; ValueError, which calls it `name`, if none."""
    with picture_errors(name), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.format


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in memory by the same rules; ValueError for values whose meaning is not known."""
    image.load()  # which turns a TIFF, and reads what a PNG says behind its pixels
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    image = _flatten(image)
    image = image if turn is None else image.transpose(turn)
    image.info = {}  # or it would be turned again
    return image


@contextmanager
def picture_errors(name: str) -> Iterator[None]:
    """Inside, a picture that is missing, broken or too large to decode raises ValueError, which calls it `name`."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns between its limit and twice its limit; here both are refused.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: there is nothing to look at; add the file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels: decoding it could fill the memory; make it smaller"
        ) from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        # Pillow names a buffer by its place in memory, which would make every such reject a reason of its own.
        what = re.sub(r"<_io\.\w+ object at \w+>", "of these bytes", str(error)) or type(error).__name__
        raise ValueError(f"{name} is not a readable picture ({what}): save it again") from None


def check_aspect_ratio(width: int, height: int, name: str) -> None:
    """ValueError for a picture that is too thin for the model."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"{name} is {width}x{height} px, an aspect ratio above {MAX_ASPECT_RATIO}: the model cannot take it; "
            "crop or split it"
        )


def _is_within_limit(size: tuple[int, int]) -> bool:
    return Image.MAX_IMAGE_PIXELS is None or size[0] * size[1] <= Image.MAX_IMAGE_PIXELS


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":  # Pillow turns it itself
        return width, height
    if image.format == "PNG" and "exif" not in image.info:
        position = image.fp.tell()
        is_behind = png.tail_has_metadata(image.fp)
        image.fp.seek(position)
        if is_behind:
            image.load()
    # Not image.getexif, which reads all of a PNG that has none.
    turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _flatten(image: Image.Image) -> Image.Image:
    """RGB without alpha; always another image than was given."""
    if image.mode.startswith("I;16"):
        return _flatten_deep_grey(image)
    if image.mode == "F":
        return Image.fromarray(_bytes_of_floats(np.asarray(image))).convert("RGB")
    if image.mode == "I":
        if image.format != "PPM":  # which Pillow brings to 16 bits
            raise ValueError("it has 32 bits of grey, and which value is white is not known: save it with 8")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getextrema()[3][0] < 255:
            rgba = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
        return rgba.convert("RGB")
    return image.convert("RGB")


def _flatten_deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _bytes_of_floats(values: np.ndarray) -> np.ndarray:
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"its floats go from {values.min()} to {values.max()}, and only of 0 to 1 it is known what is white"
        )
    return np.rint(values * 255).astype(np.uint8)


def _check_has_no_deep_key(image: Image.Image, depth: int) -> None:
    """Pillow keeps the upper 8 of 16 bits, but the whole of the colour that is transparent."""
    if depth == 16 and image.mode == "RGB" and "transparency" in image.info:
        raise ValueError("it has a transparent colour of 16 bits, which is not read: save it with an alpha channel")
