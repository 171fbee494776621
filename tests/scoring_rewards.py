"""Reward functions for tests/test_scoring.py, in a module that imports nothing heavy:
the checker's worker process imports it."""

from __future__ import annotations

import time


def by_length(completions, **columns):
    """A checker that random completions pass about half of the time."""
    return [float(len(c[0]["content"]) % 2) for c in completions]


def sometimes(completions, id, **columns):
    """Judges s0 always, s1 never (raises), s2 never (None), s3 every second text."""
    text = completions[0][0]["content"]
    if id[0] == "s1":
        raise ValueError("this checker is broken")
    if id[0] == "s2" or (id[0] == "s3" and len(text) % 2):
        return [None]
    return [1.0]


def hangs(completions, **columns):
    time.sleep(3600)
