"""Encoded image bytes -> RGB pixels, once, with every refusal named.

The allow-list is PNG, JPEG, WEBP, GIF and BMP: the formats in which data sets for
vision-language models are published, each decoded inside Pillow by a library that
is fuzzed continuously (libpng, libjpeg, libwebp) or by a few lines of Python (GIF, BMP).
Others are refused by name: EPS starts Ghostscript, FITS and TIFF have had decompression
bombs (CVE-2026-40192) and lying headers. The format is read from the bytes, never from
the file's name.

Conversion to RGB is defined, so that a sample scores like its converted file:
EXIF orientation applied; transparency laid on white; palette, grey and CMYK through
Pillow's conversion; 16 bits a channel scaled to 8 (not clipped); of an animation the
first frame.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import RapInputError
from .samples import BadSample, ImageRef

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_FILE_BYTES = 256 << 20

# First bytes of formats that are images but not allowed, to name them (the container
# formats ICO and AVIF/HEIC further in).
_REFUSED = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"SIMPLE  =", "FITS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"P1", "PNM"),
    (b"P2", "PNM"),
    (b"P3", "PNM"),
    (b"P4", "PNM"),
    (b"P5", "PNM"),
    (b"P6", "PNM"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
)


def load_images(
    images: Sequence[ImageRef], *, max_pixels: int, min_side: int = 2
) -> tuple[list[Image.Image], list[str]]:
    """Read and decode a sample's images.

    Returns RGB images (sizes as displayed) and the sha256 of each one's encoded bytes.
    max_pixels: width x height allowed; checked in the header, before anything is decoded.
    min_side: the smaller side's least length in pixels.
    Raises ``BadSample`` with stage ``image``: image_missing, not_regular_file,
    image_unreadable, image_format, image_truncated, image_too_large, image_too_small.
    Reads no URL and opens nothing but regular files.
    """
    pixels, hashes = [], []
    for ref in images:
        data = read_bytes(ref)
        pixels.append(decode(data, max_pixels=max_pixels, min_side=min_side))
        hashes.append(hashlib.sha256(data).hexdigest())
    return pixels, hashes


def read_bytes(ref: ImageRef) -> bytes:
    """The encoded bytes of an image. Raises ``BadSample``."""
    if ref.data is not None:
        return ref.data
    if ref.path is None:
        raise BadSample("image", "image_missing", "neither bytes nor a path")
    name = ref.path[-200:]
    try:
        # Looked at before it is opened: opening a FIFO waits, a device may act.
        if not stat.S_ISREG(os.lstat(ref.path).st_mode):
            raise BadSample("image", "not_regular_file", f"{name!r} is not a regular file")
        # The path was resolved; a link that stands there now was put there since.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(ref.path, flags)
    except FileNotFoundError:
        raise BadSample("image", "image_missing", f"{name!r}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadSample("image", "image_missing", f"{name!r}: {error}") from None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise BadSample("image", "not_regular_file", f"{name!r} is not a regular file")
        if info.st_size > MAX_FILE_BYTES:
            raise BadSample(
                "image", "image_too_large", f"{name!r}: a file of {info.st_size} bytes"
            )
        try:
            return file.read()
        except OSError as error:
            raise BadSample("image", "image_unreadable", f"{name!r}: {error}") from None


def decode(data: bytes, *, max_pixels: int, min_side: int = 2) -> Image.Image:
    """Encoded bytes -> one RGB image. Raises ``BadSample``."""
    pil = _pillow()
    _refuse_by_first_bytes(data)
    with warnings.catch_warnings():
        # Pillow's own bomb check is an error or a warning by size; ours comes first.
        warnings.simplefilter("ignore")
        try:
            image = pil.open(io.BytesIO(data), formats=FORMATS)
        except pil.DecompressionBombError as error:
            raise BadSample("image", "image_too_large", str(error)) from None
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # plugins raise OSError, SyntaxError, struct.error, ...
            code = "image_truncated" if _has_known_start(data) else "image_unreadable"
            raise BadSample("image", code, _reason(error, data)) from None
        with image:
            _check_size(image.size, max_pixels, min_side)
            try:
                image.load()  # only this notices a truncated file
                return _to_rgb(image)
            except (MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise BadSample("image", "image_truncated", _reason(error, data)) from None


def encode_image(image: Image.Image) -> bytes:
    """PNG bytes of an image that was handed in decoded. Raises ``BadSample``."""
    try:
        image.load()
        out = io.BytesIO()
        _to_rgb(image).save(out, "PNG", compress_level=1)
        return out.getvalue()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample("image", "image_unreadable", str(error)[:200]) from None


def _pillow() -> object:
    try:
        from PIL import Image
    except ImportError:
        raise RapInputError("images need Pillow: pip install 'rap-select[hf]'") from None
    return Image


def _refuse_by_first_bytes(data: bytes) -> None:
    if not data:
        raise BadSample("image", "image_unreadable", "empty file")
    for start, name in _REFUSED:
        if data.startswith(start):
            raise BadSample(
                "image", "image_format", f"{name}; allowed are {', '.join(FORMATS)}"
            )
    if data[4:8] == b"ftyp":
        raise BadSample(
            "image", "image_format", f"AVIF or HEIC; allowed are {', '.join(FORMATS)}"
        )


def _has_known_start(data: bytes) -> bool:
    """An allowed format's signature: what follows it is then cut or damaged."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8")) or (
        data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    )


def _check_size(size: tuple[int, int], max_pixels: int, min_side: int) -> None:
    width, height = size
    if min(width, height) < min_side:
        raise BadSample(
            "image",
            "image_too_small",
            f"{width} x {height}: a side under {min_side} pixels",
        )
    if width * height > max_pixels:
        raise BadSample(
            "image",
            "image_too_large",
            f"{width} x {height} = {width * height} pixels, allowed are {max_pixels}",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode -> a new RGB image, upright."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits (Pillow gives "I;16" or "I") scaled; convert("L") would clip at 255
        image = image.convert("I").point(lambda v: v / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _reason(error: Exception, data: bytes) -> str:
    start = data[:64].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if start.startswith((b"<svg", b"<?xml")):
        return "SVG or XML, not a bitmap"
    if "cannot identify" in str(error):
        return "no image format is recognised"
    return f"{type(error).__name__}: {error}"[:200]
