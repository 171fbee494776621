"""Samples and a model -> score table. ``run``: ``score`` and ``select``; ``jobs``: samples
prepared in threads; ``evidence``: what is computed of a batch; ``executors``: which
processes score, each with a ``session`` of its own, many at one store as ``worker``."""

from .run import score, select

__all__ = ["score", "select"]
