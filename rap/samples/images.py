"""Encoded image bytes -> RGB pixels; unsupported or damaged images are refused by name.

The allow-list is PNG, JPEG, WEBP, GIF and BMP: the formats in which data sets for
vision-language models are published, decoded inside Pillow by libraries that are fuzzed
all the time (libpng's zlib, libjpeg, libwebp) or by little code (GIF, BMP). Others are
refused by name: EPS starts Ghostscript, TIFF and FITS have had decompression bombs
(CVE-2026-40192). The format is read from the first bytes, never from the file's name,
and the format's own plugin is called: nothing else of Pillow ever sees the bytes, its
global limits and warnings (which threads would share) are neither needed nor changed.

Conversion to RGB is defined, so that a sample scores like its converted file:
EXIF orientation applied; transparency laid on white (as qwen-vl-utils and vLLM do it);
palette, grey and CMYK through Pillow's conversion; 16 bits a channel scaled to 8, not
clipped; of an animation the first frame.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import RapInputError, install
from .remote import fetch_image
from .sample import BadSample

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from .sample import ImageRef

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_FILE_BYTES = 256 << 20
HEAD_BYTES = 1 << 18
"""Of a file, in which its size stands; an EXIF block before it has at most 2^16."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    # known, and not allowed
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"SIMPLE  =", "FITS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
)


def load_images(
    images: Sequence[ImageRef], *, max_pixels: int, min_side: int = 2
) -> tuple[list[Image], list[str]]:
    """Read and decode a sample's images.

    Returns RGB images and the sha256 of each one's encoded bytes.
    max_pixels: width x height allowed; read from the header, before anything is decoded.
    min_side: least length of the smaller side, in pixels.
    Raises ``BadSample`` with stage ``image``: image_missing, not_regular_file,
    image_unreadable, image_format, image_truncated, image_too_large, image_too_small.
    Reads no URL, opens nothing but regular files, may be called from several threads. What
    is missing beside a data set that was fetched is fetched, too (``remote``).
    """
    pixels, hashes = [], []
    for ref in images:
        data = read_bytes(ref)
        pixels.append(decode(data, max_pixels=max_pixels, min_side=min_side))
        hashes.append(hashlib.sha256(data).hexdigest())
    return pixels, hashes


def image_size(ref: ImageRef) -> tuple[int, int]:
    """(width, height) as the head of the file says, before it is turned upright. Raises
    ``BadSample`` where it does not."""
    data = read_bytes(ref, HEAD_BYTES)
    kind = sniff(data)
    if kind not in FORMATS:
        raise BadSample("image", "image_format", f"{kind}; allowed: {', '.join(FORMATS)}")
    if kind == "WEBP" and len(data) == HEAD_BYTES:  # its plugin wants all of it
        data = read_bytes(ref)
    try:
        with _open(data, kind) as image:
            return image.size
    except (MemoryError, RapInputError):
        raise
    except Exception as error:  # plugins raise OSError, SyntaxError, struct.error, ...
        message = f"damaged or cut {kind}: {error}"[:200]
        raise BadSample("image", "image_truncated", message) from None


def read_bytes(ref: ImageRef, most: int = -1) -> bytes:
    """The encoded bytes of an image, of a file the first ``most``. Raises ``BadSample``."""
    if ref.data is not None:
        return ref.data
    if ref.path is None:
        raise BadSample("image", "image_missing", "neither bytes nor a path")
    name = repr(ref.path[-200:])
    try:
        if not os.path.lexists(ref.path):
            fetch_image(ref.path)
        # Looked at before it is opened: opening a FIFO waits, a device may act.
        _require_regular(os.lstat(ref.path), name)
        # The path was resolved; a link that stands there now was put there since.
        fd = os.open(ref.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            _require_regular(info, name)
            if info.st_size > MAX_FILE_BYTES:
                raise BadSample(
                    "image", "image_too_large", f"{name}: a file of {info.st_size} bytes"
                )
            return file.read(most)
    except FileNotFoundError:
        raise BadSample("image", "image_missing", f"{name}: no such file") from None
    except OSError as error:
        reason = error.strerror or error
        raise BadSample("image", "image_unreadable", f"{name}: {reason}") from None


def _require_regular(info: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise BadSample("image", "not_regular_file", f"{name} is not a regular file")


def decode(data: bytes, *, max_pixels: int, min_side: int = 2) -> Image:
    """Encoded bytes -> one RGB image, upright. Raises ``BadSample``.

    A file that starts like an allowed format and cannot be decoded is image_truncated:
    cut or damaged.
    """
    kind = sniff(data)
    if kind not in FORMATS:
        raise BadSample("image", "image_format", f"{kind}; allowed: {', '.join(FORMATS)}")
    if 0 in _header_size(data, kind):
        raise BadSample("image", "image_too_small", "a side of 0 pixels")
    if kind == "PNG" and _has_large_text(data):
        data = _without_text(data)
    try:
        with _open(data, kind) as image:
            _check_size(image.size, max_pixels, min_side)
            image.load()  # only this notices a truncated file
            return _to_rgb(image)
    except (BadSample, MemoryError, RapInputError):
        raise
    except Exception as error:  # plugins raise OSError, SyntaxError, struct.error, ...
        message = f"damaged or cut {kind}: {error}"[:200]
        raise BadSample("image", "image_truncated", message) from None


def decoded_each(data: bytes, n: int, *, max_pixels: int) -> list[Image]:
    """``n`` images with the pixels of ``decode``, each its own. Those of an upright RGB
    JPEG are decoded when they are first looked at, which may be never. Raises
    ``BadSample``."""
    lazy = [_lazy(data, max_pixels) for _ in range(n)]
    plain = [image for image in lazy if image is not None]
    if len(plain) == n:
        return plain
    first = decode(data, max_pixels=max_pixels)
    return [first, *(first.copy() for _ in range(n - 1))]


def _lazy(data: bytes, max_pixels: int) -> Image | None:
    """A JPEG whose pixels need no conversion, not yet decoded; None for any other."""
    if sniff(data) != "JPEG":
        return None
    try:
        image = _open(data, "JPEG")
        plain = image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1
    except Exception:  # ``decode`` says what is wrong
        return None
    _check_size(image.size, max_pixels, 2)
    return image if plain else None


_ORIENTATION = 0x0112


def encode_image(image: Image) -> bytes:
    """PNG bytes of an image that was handed in decoded. Raises ``BadSample``."""
    try:
        if 0 in image.size:
            raise BadSample("image", "image_too_small", "a side of 0 pixels")
        out = io.BytesIO()
        image.load()
        _to_rgb(image).save(out, "PNG", compress_level=1)
        return out.getvalue()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample("image", "image_unreadable", str(error)[:200]) from None


def sniff(data: bytes) -> str:
    """Format by the first bytes. Raises ``BadSample`` if it is none that is known."""
    for start, kind in _SIGNATURES:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "AVIF or HEIC"
    head = data[:64].lstrip().lower()
    if not data:
        what = "empty file"
    elif head.startswith((b"<!doctype html", b"<html")):
        what = "an HTML page, not an image"
    elif head.startswith((b"<svg", b"<?xml")):
        what = "SVG or XML, not a bitmap"
    else:
        what = f"no image format starts with {data[:8]!r}"
    raise BadSample("image", "image_unreadable", what)


_PNG_TEXT = (b"iCCP", b"zTXt", b"iTXt", b"tEXt")
_LARGE_TEXT = 1 << 20


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of a PNG's chunks, as far as they are whole."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield data[at + 4 : at + 8], at, end
        at = end


def _has_large_text(data: bytes) -> bool:
    """Whether a PNG's profile or texts are longer than Pillow reads: more than 1 MB,
    unpacked. They say nothing about the pixels."""
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            return False
        if kind not in _PNG_TEXT:
            continue
        body = data[start + 8 : end - 4]
        name, _, packed = body.partition(b"\0")
        packed = packed[4:] if kind == b"iTXt" else packed[1:]
        if len(body) > _LARGE_TEXT or (kind != b"tEXt" and _unpacks_large(packed)):
            return True
    return False


def _unpacks_large(packed: bytes) -> bool:
    try:
        unpacker = zlib.decompressobj()
        return len(unpacker.decompress(packed, _LARGE_TEXT + 1)) > _LARGE_TEXT
    except zlib.error:
        return False


def _without_text(data: bytes) -> bytes:
    """A PNG without its profile and texts; what is not whole stays, to be refused."""
    kept, at = [data[:8]], 8
    for kind, start, end in _png_chunks(data):
        kept += [] if kind in _PNG_TEXT else [data[start:end]]
        at = end
    return b"".join((*kept, data[at:]))


def _header_size(data: bytes, kind: str) -> tuple[int, ...]:
    """Width and height where they stand at a fixed place; Pillow does not say that an
    image is empty, only that it is not one."""
    layout = {"PNG": (">II", 16), "GIF": ("<HH", 6), "BMP": ("<ii", 18)}.get(kind)
    if layout is None or len(data) < layout[1] + struct.calcsize(layout[0]):
        return ()
    return struct.unpack_from(layout[0], data, layout[1])


def _open(data: bytes, kind: str) -> ImageFile:
    """The format's own plugin on the bytes: reads the header, decodes nothing."""
    try:
        from PIL import (
            BmpImagePlugin,
            GifImagePlugin,
            JpegImagePlugin,
            PngImagePlugin,
            WebPImagePlugin,
        )
    except ImportError:
        raise RapInputError(f"images need Pillow: {install('hf')}") from None
    plugins: dict[str, Callable[[io.BytesIO], ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
    }
    return plugins[kind](io.BytesIO(data))


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
            f"{width} x {height} = {width * height} pixels, allowed: {max_pixels}",
        )


def _to_rgb(image: Image) -> Image:
    """A loaded image of any mode -> a new RGB image, upright."""
    from PIL import Image

    image = _upright(image)
    if image.mode.startswith("I"):  # 16 bits of grey
        image = image.convert("I").point(lambda v: v * (1 / 257) + 0.5).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image
