"""Thresholds are decimals, ranks fractions: no float64 decides what is kept."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from selection_inputs import answer, reasons, row, scores_of

from rap.scores.columns import exceeds
from rap.selection.choosing import choose


@pytest.mark.parametrize("lambda_c", [0.5, 0.2, 0.25, 0.1, 0.3, 0.7, -0.3, 0.123456789])
def test_thresholds_are_decimals_and_counts_integers(lambda_c: float) -> None:
    exact = Fraction(str(lambda_c))
    rows = [
        row(c1, m, c0, m)
        for m in (3, 8, 10, 20)
        for c1 in range(m + 1)
        for c0 in range(m + 1)
    ]
    rows.append(row(32767, 32767, 16383, 32766))  # exactly 1 - 16383/32766 = 1/2
    scores = scores_of(rows)
    above = [Fraction(r["c1"], r["m1"]) - Fraction(r["c0"], r["m0"]) > exact for r in rows]
    assert scores.diagnostics(lambda_c)["above"] == sum(above)
    selection = choose(scores, rule="paper", lambda_c=lambda_c, replace=False)
    solved = [r["c1"] > 0 for r in rows]
    assert selection.kept.tolist() == [a and s for a, s in zip(above, solved, strict=True)]


def test_a_half_is_a_half() -> None:
    """faults.md fact 6: 0.7 - 0.2 and 0.95 - 0.45 are not 0.5 as floats."""
    scores = scores_of([row(7, 10, 2, 10), row(19, 20, 9, 20), row(8, 10, 2, 10)])
    selection = choose(scores, rule="paper", lambda_c=0.5)
    assert selection.ids == ["s2"]
    assert selection.table["D"].to_pylist() == [0.5, 0.5, 0.6]


@pytest.mark.parametrize("kind", ["answer", "logits"])
def test_a_number_at_its_threshold(kind: str) -> None:
    """Binary fractions, which float64 holds: Diff at most ``trivial`` is trivial, at least
    ``unsolved`` never solved; D must be above ``lambda_c``."""
    d = {"js": 0.25} if kind == "logits" else {}
    rows = [
        answer(p, 0.0 if kind == "logits" else p - 0.25, evidence=kind, **d)
        for p in (0.75, 0.5, 0.25)
    ]
    said = {"budget": 1.0, "order": "gain", "replace": True}
    found = choose(scores_of(rows), trivial=0.25, unsolved=0.75, **said)
    assert reasons(found) == ["dropped_trivial", "kept_cognitive", "dropped_unsolved"]
    found = choose(scores_of(rows), trivial=0.24, unsolved=0.76, **said)
    assert reasons(found) == ["kept_cognitive"] * 3
    at = choose(scores_of(rows), lambda_c=0.25, rule="paper", unsolved=1.0)
    assert reasons(at) == ["dropped_language_prior"] * 3
    assert len(choose(scores_of(rows), lambda_c=0.24, rule="paper")) == 3


def test_exceeds_equals_fractions_however_large() -> None:
    """Also where the products leave int64, on both sides of each border."""
    for p, q in ((1, 3), (-1, 3), (1, 10**15), (10**15 + 1, 10**15), (-7, 10**17)):
        scale = np.array([1, 3, 10**9, 2**61, 2**61 - 1, 3 * 2**58], np.int64)
        border = [p * int(s) // q for s in scale]
        for by in (-1, 0, 1):
            number = np.array([max(-(2**62), min(2**62, b + by)) for b in border], np.int64)
            wanted = [
                Fraction(int(n)) > Fraction(p, q) * int(s)
                for n, s in zip(number, scale, strict=True)
            ]
            assert exceeds(number, scale, Fraction(p, q)).tolist() == wanted, (p, q, by)


def test_long_decimals_do_not_overflow(rng: np.random.Generator) -> None:
    """The products leave int64; floor(threshold * scale) decides as exactly."""
    m = rng.integers(30_000, 32_768, (200, 2))
    c = (m * rng.uniform(0.1, 1, (200, 2))).astype(int)
    rows = [row(*map(int, (a, b, e, f))) for (a, e), (b, f) in zip(c, m, strict=True)]
    exact = [Fraction(r["c1"], r["m1"]) - Fraction(r["c0"], r["m0"]) for r in rows]
    scores = scores_of(rows)
    for d in exact[:60]:
        for lambda_c in (float(d), math.nextafter(float(d), -2), 0.12345678901234567):
            selection = choose(scores, rule="paper", lambda_c=lambda_c, replace=False)
            wanted = [e > Fraction(str(lambda_c)) for e in exact]
            assert selection.kept.tolist() == wanted


def test_ranks_stay_exact_where_float64_does_not_tell_d_apart() -> None:
    """32766/32767 - a/b closer than float64 resolves, yet the larger one is taken."""
    near = [
        (Fraction(c1, m1) - Fraction(c0, m0), (c1, m1, c0, m0))
        for m1 in range(32740, 32768)
        for m0 in range(32740, 32768)
        for c1, c0 in [(m1 - 1, 1), (m1 - 2, 2), (m1 // 2, 1)]
    ]
    near.sort()
    pairs = [
        (a[1], b[1])
        for a, b in zip(near, near[1:], strict=False)
        if a[0] < b[0] and float(a[0]) == float(b[0])
    ]
    assert pairs
    for low, high in pairs[:5]:
        selection = choose(scores_of([row(*low), row(*high)]), budget=0.5, replace=False)
        assert selection.ids == ["s1"]
    for low, high in pairs:  # were they equal, the harder one would be taken
        assert high[0] / high[1] > low[0] / low[1]
        near_ones = scores_of([row(*low), row(*high)])
        assert choose(near_ones, budget=0.5, replace=False, order="gain").ids == ["s1"]
    # equal D in other numbers are ties: difficulty, then index decides
    rows = [row(20000, 20000, 10000, 20000), row(16384, 32767, 0, 32767)]
    rows += [row(3, 3, 1, 2), row(10000, 20000, 0, 20000)]
    selection = choose(scores_of(rows), budget=0.5, replace=False)
    assert selection.ids == ["s1", "s3"]  # 16384/32767 > 1/2, then the harder of 1/2


def test_learnable_order_is_exact_for_large_counts() -> None:
    """p (1 - p) is the same for the first two: D decides, then the third is behind."""
    m = 32767
    rows = [row(16384, m, 0, m), row(16383, m, 0, m), row(16384, m, 1, m)]
    exact = [
        Fraction(r["c1"] * r["m0"] - r["c0"] * r["m1"], r["m1"] * r["m0"])
        * Fraction(r["m1"] - r["c1"], r["m1"])
        for r in rows
    ]
    best = max(range(3), key=lambda i: (exact[i], exact[i] == 0, -i))
    assert exact[0] == exact[1] != exact[2]
    chosen = choose(scores_of(rows), budget=1 / 3, order="learnable")
    assert chosen.ids == [f"s{best}"]
