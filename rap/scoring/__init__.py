"""Samples and a model -> score table. ``run``: ``score`` and ``select``; ``jobs``: samples
prepared in threads; ``evidence``: what is computed of a batch."""

from .run import score, select

__all__ = ["score", "select"]
