"""Samples, images and comparisons that the tests of the model driver share."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import torch
from PIL import Image
from tiny_models import build

from rap.model.driver import ModelDriver
from rap.samples.sample import Sample

# The same number computed in float32 in another order, relative to the largest of its
# kind: about 80 roundings of 2^-23. Measured on the eight classes: at most 2e-6 of it.
NOISE = 1e-5


@cache
def built(name: str):
    return build(name)


def sample(question: str = "How many red circles are in the picture?", choices=()):
    return Sample(
        index=0,
        id="s",
        question=question,
        answer="4",
        choices=tuple(choices),
        images=(),
        source=None,
        extra={},
    )


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def five(driver: ModelDriver) -> list:
    """Samples that differ in every length: images and tiles, prompt, response."""
    wide, tall, square = picture(100, 60, 1), picture(60, 95, 2), picture(120, 120, 3)
    tokens = driver.encode_response
    long = "There are three of them, because each row of the grid holds one. " * 3
    return [
        driver.prepare(sample(), [wide], tokens("The answer is 4, because x = 4.")),
        driver.prepare(sample(choices=["one", "two"]), [tall, wide], tokens("No")),
        driver.prepare(sample("Why?"), None, tokens("Because of the blue triangle.")),
        driver.prepare(sample(), [square], tokens(long), prefix=" The"),
        driver.prepare(sample("Is it larger?"), [tall], tokens("Yes, it is larger.")),
    ]


def causal_weights(q, k, scaling: float):
    """Attention [Hq, L, L] in float64, as eager computes it."""
    length = q.shape[1]
    keys = k.double().repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    scores = q.double() @ keys.transpose(1, 2) * scaling
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def far(a, b) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


def large(x) -> float:
    return float(x.abs().max())


def png(i: int) -> bytes:
    """A small picture of noise; its size depends on ``i``, too."""
    shape = (40 + 9 * (i % 5), 60 + 7 * (i % 4), 3)
    pixels = np.random.default_rng(i).integers(0, 255, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
