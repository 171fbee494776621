"""The kernels' instruction counts against those kept in benchmarks/results."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks import instructions

PROFILE = """\
# callgrind format
events: Ir

ob=/usr/lib/libc.so.6
fl=string.c
fn=memcpy
10 5000

ob=/work/rap/_C.abi3.so
fl=csrc/cde/cde_cpu.c
fn=rap_cde_row
40 7
fi=csrc/hd.h
41 100
cob=/usr/lib/libm.so.6
cfn=log2
calls=2 12
42 9000
43 1
"""


@cache
def counted(isa: str) -> instructions.Counts:
    return instructions.count(isa)


@pytest.fixture
def kept():
    reason = instructions.obstacle()
    if reason:
        pytest.skip(reason)
    kept = instructions.load()
    if kept["compiler"] != instructions.compiler():
        pytest.skip(f"counts are of {kept['compiler']}, not {instructions.compiler()}")
    return kept["counts"]


@pytest.mark.proof
@pytest.mark.parametrize("isa", instructions.ISAS)
def test_no_kernel_needs_more_instructions_than_kept(isa, kept):
    from rap import _C

    if isa not in _C.isa_names():
        pytest.skip(f"this processor has no {isa}")
    changes = instructions.differences(counted(isa), kept[isa])
    assert not changes, "python -m benchmarks.instructions --update, if meant"


@pytest.mark.proof
def test_the_gate_refuses_kernels_that_are_slower(kept):
    """Plain kernels passed off as AVX2's: a real regression of every vector loop."""
    changes = instructions.differences(counted("scalar"), kept["avx2"])
    named = {change.split(":")[0] for change in changes}
    assert {"cde kl float32", "cde all", "linear_cde bfloat16", "ace mean"} <= named


def test_a_doubled_count_is_refused_and_noise_is_not():
    kept = instructions.load()["counts"]["avx2"]
    assert instructions.differences(kept, kept) == []
    for name, n in kept.items():
        assert instructions.differences(kept | {name: 2 * n}, kept) == [
            f"{name}: {n:,} -> {2 * n:,} (+100.0%)"
        ]
        assert instructions.differences(kept | {name: round(1.01 * n)}, kept) == []
        assert len(instructions.differences(kept | {name: n // 2}, kept)) == 1


def test_a_case_that_is_gone_or_new_is_refused():
    assert instructions.differences({"b": 1}, {"a": 1}) == ["a: gone", "b: not kept yet"]


def test_every_case_is_kept():
    kept = instructions.load()["counts"]
    assert list(kept) == list(instructions.ISAS)
    for counts in kept.values():
        assert list(counts) == instructions.case_names()


def test_only_the_instructions_of_the_object_itself_are_counted():
    assert instructions.self_cost(PROFILE, "_C.abi3.so") == 7 + 100 + 1
    assert instructions.self_cost(PROFILE, "libc.so.6") == 5000
