"""An array or a tensor of pixels as a PIL image; what its numbers mean is checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from .sample import BadSample

CHANNELS = (1, 3, 4)


def image_of_array(item: Any) -> Any:
    """A PIL image of an array of NumPy, torch, JAX or the like.

    [height, width], [height, width, 1, 3 or 4] or [1, 3 or 4, height, width]; where both
    ends could be channels, a tensor of torch has them first and any other last. Integers
    are 0 to 255, decimals 0 to 1, as `torchvision` makes them. Raises ``BadSample`` for
    anything else, pixels that were normalised included.
    """
    first = type(item).__module__.partition(".")[0] == "torch"
    array = _on_host(item)
    shape = list(array.shape)
    if array.ndim == 3:
        leads, ends = shape[0] in CHANNELS, shape[2] in CHANNELS
        if leads and (first or not ends):
            array = np.moveaxis(array, 0, 2)
        elif not ends:
            raise _unreadable(f"array {shape} has no side of 1, 3 or 4 channels")
        array = array[..., 0] if array.shape[2] == 1 else array
    if not array.size:
        raise _unreadable(f"array {shape} is empty")
    return _image(_bytes_of(array))


def _on_host(item: Any) -> np.ndarray:
    try:
        if hasattr(item, "detach"):  # torch; NumPy has no bfloat16
            item = item.detach().cpu()
            item = item.float() if item.is_floating_point() else item
        return np.asarray(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(f"{type(item).__name__}: {error}") from None


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The pixels as uint8."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iuf":
        raise _unreadable(f"array of {array.dtype}")
    low, high = array.min(), array.max()
    most = 1 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):  # NaN, too
        raise _unreadable(
            f"array of {array.dtype} with values from {low:g} to {high:g}: expected 0 to "
            f"{most}, before any normalisation"
        )
    scaled = array * 255.0 if most == 1 else array
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8))


def _image(array: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def _unreadable(message: str) -> BadSample:
    return BadSample("image", "image_unreadable", message)
