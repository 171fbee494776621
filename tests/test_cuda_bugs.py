"""Proof that the emulated device can fail: every seeded bug is caught by a named check.

A green run proves nothing unless a red one is possible. The table is
tests/cuda_emulator/bugs.py; the same checks pass on the kernels as they are (the test
files of the rooms).
"""

from __future__ import annotations

import pytest
from cuda_emulator import build
from cuda_emulator.bugs import BUGS
from cuda_emulator.emulator import EmulatorError

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: f"{b.number}-{b.caught_by.__name__}")
def test_seeded_bug_is_caught(bug):
    with pytest.raises((AssertionError, EmulatorError)) as caught:
        bug.caught_by(bug.mutation)
    if bug.caught_by.__name__ == "races":  # the report names the kernel's own lines
        assert "data race" in caught.value.text and "_cuda.cu:" in caught.value.text


def test_there_are_at_least_twelve_bugs_and_no_number_twice():
    numbers = [bug.number for bug in BUGS]
    assert len(set(numbers)) == len(numbers) >= 12
