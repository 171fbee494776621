"""What stands for images in a cell -> image references; no image is opened.

Bytes, a path or a file: URL inside ``root``, ``{bytes, path}`` of `datasets`, ``{image:
...}`` of verl, a data: URI, base64 text, a PIL image, an array, a tensor, an open file in
memory, lists of these (also written as text), chat messages that hold them. An URL of the
network is never fetched, a video never read.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from .arrays import image_of_array
from .images import encode_image, sniff
from .listtext import list_in_text
from .prompts import NO_VIDEOS, VIDEO_ENDINGS, images_in, messages_of
from .sample import BadSample, ImageRef, clean

_URL = re.compile(r"[a-z][a-z0-9+.\-]*://|file:", re.IGNORECASE)
_FIELDS = ("bytes", "path", "image", "image_url", "url", "data", "base64")
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk)[A-Za-z0-9+/\s]{60,}+={0,2}\s*")
"""Encoded images begin so. No path is so long without a dot."""


def read_image_cell(value: Any, root: str | None) -> tuple[ImageRef, ...]:
    """The images of a cell in order; what is None is left out. Raises ``BadSample``."""
    return tuple(_image(item, root) for item in _items(value))


def count_images(value: Any) -> int:
    """How many images a cell holds, as far as that is seen without reading them."""
    return sum(1 for _ in _items(value))


def _items(value: Any) -> Iterator[Any]:
    messages = messages_of(value)
    if messages is not None:
        value = images_in(messages)
    elif isinstance(value, str) and value.lstrip()[:1] == "[":
        listed = list_in_text(value)
        value = listed if isinstance(listed, list) else value
    return _flat(value)


def _flat(value: Any) -> Iterator[Any]:
    """The items of a list, of a list of lists, of a batch of arrays."""
    for item in value if isinstance(value, (list, tuple)) or _ndim(value) == 4 else [value]:
        inner = item if isinstance(item, (list, tuple)) or _ndim(item) == 4 else [item]
        yield from (part for part in inner if part is not None)


def _ndim(value: Any) -> int:
    """Dimensions of an array or a tensor; 0 for anything else."""
    found = getattr(value, "ndim", 0)
    return found if isinstance(found, int) and hasattr(value, "dtype") else 0


def _image(item: Any, root: str | None) -> ImageRef:
    for _ in range(2):  # {"image_url": {"url": ...}}
        if isinstance(item, Mapping):
            item = next((item[n] for n in _FIELDS if item.get(n) is not None), None)
            if item is None:
                raise BadSample("image", "image_missing", "neither bytes nor a path")
    if hasattr(item, "getvalue"):  # io.BytesIO
        item = item.getvalue()
    if isinstance(item, (bytes, bytearray, memoryview)):
        return ImageRef(bytes(item), None)
    if isinstance(item, str):
        if item[:5].lower() == "data:":
            return ImageRef(_data_uri(item), None)
        data = _base64_image(item)
        return ImageRef(None, _path_inside(item, root)) if data is None else data
    if isinstance(item, os.PathLike):
        return ImageRef(None, _path_inside(os.fspath(item), root))
    if _ndim(item) in (2, 3):
        item = image_of_array(item)
    if type(item).__module__.partition(".")[0] == "PIL":
        return ImageRef(encode_image(item), None)
    kind = "missing" if item is None else type(item).__name__
    raise BadSample("image", "image_unreadable", f"image is {kind}: no bytes or path")


def _base64_image(text: str) -> ImageRef | None:
    """The image that a text is in base64 (VLMEvalKit's TSV files); None for a path."""
    if len(text) < 64 or not _BASE64.fullmatch(text):
        return None
    try:
        data = base64.b64decode(text)
        sniff(data)
    except (binascii.Error, ValueError, BadSample):
        return None
    return ImageRef(data, None)


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadSample("image", "image_unreadable", "data: URI that is not base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample("image", "image_unreadable", f"data: URI: {error}") from None


def _file_of(url: str) -> str:
    """The path in file:///folder/a.png; the text itself where it names another machine."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.netloc in ("", "localhost") else url


def _path_inside(path: str, root: str | None) -> str:
    """Absolute path with every link resolved, if that is inside ``root``; nothing is
    opened. ``root`` itself must be resolved already."""
    shown = path[:200]
    if path[:5].lower() == "file:":
        path = _file_of(path)
    if path.lower().endswith(VIDEO_ENDINGS):
        raise BadSample("image", "video", f"{shown!r} is a video; {NO_VIDEOS}")
    if _URL.match(path):
        raise BadSample("image", "url_refused", f"{shown!r}: rap reads no URL")
    clean(path, "image path")
    if not path:
        raise BadSample("image", "image_missing", "image path is empty")
    if root is None:
        raise BadSample(
            "image",
            "path_outside_root",
            f"{shown!r}: rap opens image files of one folder only, and none was named: "
            f"{_name_it(path)}",
        )
    try:
        real = os.path.realpath(os.path.join(root, path))
    except (OSError, ValueError) as error:
        raise BadSample("image", "image_missing", f"{shown!r}: {error}") from None
    if os.path.commonpath((root, real)) != root:
        raise BadSample(
            "image",
            "path_outside_root",
            f"{shown!r} leads out of the data folder {root!r}, and rap opens no file "
            f"outside of one folder: {_name_it(path)}",
        )
    return real


def _name_it(path: str) -> str:
    """How the folder that holds an image is named."""
    if not os.path.isabs(path):
        return "name the one that holds the images with root=... (--root ...)"
    folder = os.path.dirname(path)[:200]
    return (
        f"if the images lie in {folder!r}, name it, or one above it, with "
        f"root={folder!r} (--root {folder})"
    )
