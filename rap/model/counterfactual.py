"""What "without the image" means: ``MAKERS`` has one function a kind.

The paper removes the image and its placeholder tokens (``drop``). The other kinds keep the
prompt's length, so that the two prompts differ in what the image shows and in nothing else:
``blank`` (the image's own mean colour), ``noise``, ``shuffle`` (another sample's images).
Pure: the same arguments give the same pixels on every machine.

A new kind is its name in ``config.COUNTERFACTUALS`` and a function and a line here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..config import COUNTERFACTUALS
from ..errors import RapConfigError, RapInputError

if TYPE_CHECKING:
    from PIL.Image import Image


def counterfactual_images(
    images: Sequence[Image],
    kind: str,
    *,
    seed: int,
    partner: Sequence[Image] | None = None,
) -> list[Image] | None:
    """The images of the prompt without the image; None: no image at all.

    images: the sample's own, RGB. kind: one of ``config.COUNTERFACTUALS``. seed: of this
    sample, any integer; only ``noise`` reads it. partner: the other sample's images, only
    for ``shuffle``; the sample gets as many images as it had (the partner's are repeated
    or cut), so that the prompt keeps its form.

    Raises ``RapConfigError`` on an unknown kind, ``RapInputError`` if ``shuffle`` has no
    partner. Source: METHOD.md, "The counterfactual input".
    """
    if kind not in MAKERS:
        raise RapConfigError(
            f"counterfactual = {kind!r}: expected one of {COUNTERFACTUALS}"
        )
    return MAKERS[kind](images, seed, partner)


def _shuffle(
    images: Sequence[Image], seed: int, partner: Sequence[Image] | None
) -> list[Image]:
    if not partner:
        raise RapInputError("counterfactual 'shuffle' needs the partner's images")
    return [partner[i % len(partner)] for i in range(len(images))]


def _blank(image: Image) -> Image:
    """One colour: the mean of each channel, halves rounded up."""
    from PIL import Image as pil

    pixels = np.asarray(image.convert("RGB"))
    total = pixels.reshape(-1, 3).sum(axis=0, dtype=np.int64)
    count = pixels.shape[0] * pixels.shape[1]
    # Integers: a float mean could round to another grey on another machine.
    red, green, blue = (int((2 * t + count) // (2 * count)) for t in total)
    return pil.new("RGB", image.size, (red, green, blue))


def _noise(image: Image, seed: int, number: int) -> Image:
    """Independent uniform bytes; each image of a sample gets its own."""
    from PIL import Image as pil

    width, height = image.size
    # SHAKE-128 rather than a generator of NumPy: its stream is a published standard and
    # cannot change with a version.
    stream = hashlib.shake_128(f"rap noise {seed} {number}".encode())
    pixels = np.frombuffer(stream.digest(3 * width * height), np.uint8)
    return pil.fromarray(pixels.reshape(height, width, 3))


Maker = Callable[["Sequence[Image]", int, "Sequence[Image] | None"], "list[Image] | None"]
"""(images, seed, partner's images) -> the images of the prompt without the image."""

MAKERS: Mapping[str, Maker] = {
    "drop": lambda images, seed, partner: None,
    "blank": lambda images, seed, partner: [_blank(image) for image in images],
    "noise": lambda images, seed, partner: [
        _noise(image, seed, i) for i, image in enumerate(images)
    ],
    "shuffle": _shuffle,
}
"""Every kind by its name in ``config.COUNTERFACTUALS``."""

WITH_PARTNER = frozenset({"shuffle"})
"""Kinds that show another sample's images."""
