"""What ``rap.cde`` returns, by name: the one list of divergences on the Python side.

A new divergence is a field here and a name in ``DivergenceName``; settings, score table
and kernels take it from here. The C side's list is the enum of csrc/cde/cde.h, in the same
order (tests/test_csrc.py compares them). Nothing is imported: settings need no kernels.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args


# a tuple, not a dataclass: a call on small arrays costs as much as making a frozen one
class CdeResult(NamedTuple):
    """Per row [T], or per sample [S] with ``cu_seqlens``; float64, nats. None: not asked
    for."""

    kl: Any = None
    """KL(p1 || p0), p1 from logits1: the distribution with the image."""
    rkl: Any = None
    """KL(p0 || p1)."""
    jeffreys: Any = None
    """kl + rkl."""
    js: Any = None
    """Jensen-Shannon divergence, at most ln 2."""
    tv: Any = None
    """Total variation, at most 1."""
    hellinger2: Any = None
    """Squared Hellinger distance 1 - sum sqrt(p1 p0), at most 1."""
    entropy1: Any = None
    entropy0: Any = None
    logp1: Any = None
    """Log-probability of the target token under p1."""
    logp0: Any = None

    def to_dict(self) -> dict[str, Any]:
        """{name: values} of what was computed, in the caller's framework."""
        return {name: x for name, x in self._asdict().items() if x is not None}


CDE_OUTPUTS = CdeResult._fields
TARGETED = ("logp1", "logp0")
"""Those that need targets."""
CDE_COLUMNS = tuple(name for name in CDE_OUTPUTS if name not in TARGETED)
"""Columns of the score table: means over a response's tokens."""

DivergenceName = Literal["js", "kl", "rkl", "jeffreys", "tv", "hellinger2"]
"""What samples may be ranked by: all but the entropies."""
DIVERGENCES: tuple[str, ...] = get_args(DivergenceName)
