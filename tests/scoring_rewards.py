"""Reward functions for the tests of scoring, in a module that imports nothing heavy:
the checker's worker process imports it."""

from __future__ import annotations

import time


def by_length(completions, **columns):
    """A checker that random completions pass about half of the time."""
    return [float(len(c[0]["content"]) % 2) for c in completions]


def sometimes(completions, id, **columns):
    """Judges s0 always, s1 never (raises), s2 never (None), s3 every second text."""
    if id[0] == "s1":
        raise ValueError("this checker is broken")
    texts = [c[0]["content"] for c in completions]
    odd = [id[0] == "s3" and len(text) % 2 for text in texts]
    return [None if id[0] == "s2" or no else 1.0 for no in odd]


def zero(completions, **columns):
    """A function that finds no answer anywhere."""
    return [0.0] * len(completions)


def one_too_few(completions, **columns):
    """Right for a group of one as for none."""
    return [1.0] * (len(completions) - 1)


def by_pixels(completions, images, image, solution, **columns):
    """Reads the images as the trainer has them."""
    assert [one.mode for (one,) in images] == ["RGB"] * len(completions)
    assert all(one is same for (one,), same in zip(images, image, strict=True))
    assert len({id(one) for one in image}) == len(completions)
    pixels = [one.getpixel((0, 0))[0] for one in image]
    sizes = [len(c[0]["content"]) for c in completions]
    return [float((p + n) % 2) for p, n in zip(pixels, sizes, strict=True)]


def hangs(completions, **columns):
    time.sleep(3600)
