"""Evidence: the scoring signal of a sample, one module each: rollouts, answer, logits or
cascade.

``EVIDENCE`` has every name of ``config.EVIDENCE``, read from the module of that name here.
New evidence is its name there, one new module with an ``EVIDENCE`` (a ``base.Evidence``),
and how its columns are read, in ``rap.scores.kinds``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ... import config
from .base import Evidence

__all__ = ["EVIDENCE", "Evidence"]

EVIDENCE: Mapping[str, Evidence] = {
    name: import_module(f"{__name__}.{name}").EVIDENCE for name in config.EVIDENCE
}
"""Name -> evidence: ``rollouts``, ``answer``, ``logits``, ``cascade``."""
