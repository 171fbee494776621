"""Proof that the emulated device can fail: every seeded bug is caught by a named check.

A green run proves nothing unless a red one is possible. The table is
tests/cuda_emulator/bugs.py; the same checks pass on the kernels as they are (the test
files of the kernels).
"""

from __future__ import annotations

import pytest
from cuda_emulator import build, checks_host, gates
from cuda_emulator.bugs import BUGS, HOST_BUGS
from cuda_emulator.emulator import EmulatorError

from rap import _C

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(build.compiler() is None, reason="needs gcc"),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: f"{b.number}-{b.caught_by.__name__}")
def test_seeded_bug_is_caught(bug):
    with pytest.raises((AssertionError, EmulatorError)) as caught:
        bug.caught_by(bug.mutation)
    if bug.caught_by.__name__ == "races":  # the report names the kernel's own lines
        assert "data race" in caught.value.text and "_cuda.cu:" in caught.value.text


@pytest.mark.skipif(
    not _C.CUDA_KERNELS or gates.cuobjdump() is None,
    reason="no CUDA kernels in this build, or no cuobjdump to read them with",
)
@pytest.mark.parametrize(
    "bug", HOST_BUGS, ids=lambda b: f"{b.number}-{b.caught_by.__name__}"
)
def test_seeded_host_bug_is_caught(bug):
    """By a program that ends badly; test_cuda_host.py runs the same one on rap as it is."""
    with pytest.raises(AssertionError, match="^exit "):
        bug.caught_by(bug.mutation)


@pytest.mark.skipif(
    not _C.CUDA_KERNELS or gates.cuobjdump() is None,
    reason="no CUDA kernels in this build, or no cuobjdump to read them with",
)
@pytest.mark.parametrize(
    ("file", "text"),
    [("csrc/driver.c", "forked(rap_error *err)\n"), ("rap/cuda.py", "def place_of(")],
)
def test_a_copy_without_a_bug_passes(file, text):
    """The copies that host bugs are seeded in are good ones."""
    same = build.Mutation(file, text, text)
    checks_host.streams(same)
    checks_host.products(same)


def test_there_are_at_least_twelve_bugs_of_each_kind_and_no_number_twice():
    device, host = ([bug.number for bug in bugs] for bugs in (BUGS, HOST_BUGS))
    assert len(set(device)) == len(device) >= 12
    assert len(set(host)) == len(host) >= 12
    assert {number // 100 for number in device} == {0, 2}
    assert {number // 100 for number in host} == {1}
