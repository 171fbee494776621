"""How a fuzz test is run: some fixed examples in CI, ever new ones for a time in a night.

    make fuzz                           # ten minutes, shared by the tests
    RAP_FUZZ_SECONDS=60 pytest tests/test_fuzz_kernels.py tests/test_fuzz_inputs.py
    RAP_FUZZ_SECONDS=60 RAP_FUZZ_SEED=7 pytest ...      # as .ci/run: those of 7, 8, ...

Without ``RAP_FUZZ_SECONDS`` the examples are the same in every run (`EXAMPLES` a test, or
as many as it asks for). A check of bytes leaves those that fail in ``build/fuzz``: put into
``tests/data/fuzz`` they are tried in every run (``test_fuzz_inputs.py``).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 25
FOUND = Path(__file__).resolve().parent.parent / "build" / "fuzz"
KEPT = Path(__file__).resolve().parent / "data" / "fuzz"
_SLOW = list(HealthCheck)

settings.register_profile(
    "ci",
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=_SLOW,
)
settings.register_profile(
    "night",
    max_examples=200,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=_SLOW,
)


def seconds(tests: int) -> float:
    """A test's share of the time; 0: the fixed examples."""
    return float(os.environ.get("RAP_FUZZ_SECONDS", "0")) / tests


def fuzz(
    check: Callable[..., None],
    *,
    share: float,
    examples: int = EXAMPLES,
    **drawn: st.SearchStrategy,
) -> None:
    """Call ``check`` with values of ``drawn``: ``examples`` times, or for ``share``
    seconds with a new seed for every 200 of them, which is printed. The first one is
    ``RAP_FUZZ_SEED`` if that is set: the same examples then, as far as the time goes."""
    if not share:
        profile = settings(settings.get_profile("ci"), max_examples=examples)
        profile(given(**drawn)(check))()
        return
    end = time.monotonic() + share
    first = int(os.environ.get("RAP_FUZZ_SEED") or random.randrange(2**32))
    for seed in itertools.count(first):
        print("seed", seed, flush=True)
        profile = settings.get_profile("night")
        hypothesis.seed(seed)(profile(given(**drawn)(check)))()
        if time.monotonic() > end:
            return


def kept(name: str, check: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """``check``, which leaves the bytes that fail in `FOUND`."""

    def checked(data: bytes) -> None:
        try:
            check(data)
        except BaseException:
            FOUND.mkdir(parents=True, exist_ok=True)
            there = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
            there.write_bytes(data)
            raise

    return checked


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of ``whole`` with bits flipped, bytes replaced, cut out, repeated or put in."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "set", "cut", "end", "repeat", "insert"]))
        size = draw(st.integers(1, 64))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and data:
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x0A]))
        elif how == "cut":
            del data[at : at + size]
        elif how == "end":
            del data[at:]
        elif how == "repeat":
            data[at:at] = data[at : at + size]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)
