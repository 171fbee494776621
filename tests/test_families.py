"""Results by family: on cases worked by hand."""

from __future__ import annotations

import math

import numpy as np

from benchmarks import families


def test_rates_by_family():
    p1 = np.array([1.0, 1.0, 0.5, 0.25, 0.0])
    p0 = np.array([0.0, 0.5, 0.5, 0.0, 0.0])
    one, two, every = families.rates(["a", "a", "b", "b", "b"], p1, p0)
    assert (one["family"], one["n"], one["p_image"], one["p_blind"]) == ("a", 2, 1, 0.25)
    assert one["half_solved"] == 0 and math.isnan(one["not_helped"]) and one["spread"] == 0
    assert two["half_solved"] == 2 / 3 and two["not_helped"] == 0.5
    assert every["family"] == "all" and every["n"] == 5 and every["half_solved"] == 0.4
    assert families.constant(p1[:2]) and not families.constant(p1[2:])


def test_flags_by_family():
    psi = np.array([0.5, -3, -3, 0.5, np.nan, -np.inf])
    biased = np.array([True, False, True, False, True, False])
    a, b, every = families.flags(["a", "a", "a", "b", "b", "b"], biased, psi, limit=0.0)
    assert a == {
        "family": "a",
        "measured": 3,
        "biased": 2,
        "flagged": 1,
        "false_positive": 0.0,
        "found": 0.5,
    }
    assert (b["measured"], b["biased"], b["flagged"]) == (2, 0, 1)
    assert b["false_positive"] == 0.5 and math.isnan(b["found"])
    assert every["false_positive"] == 1 / 3
    # without a limit: the middle of the gap
    many = np.array([*np.linspace(-3.5, -3, 10), 0.4, 0.5])
    own = families.flags(["a"] * 12, many > 0, many)[-1]
    assert (own["flagged"], own["false_positive"], own["found"]) == (2, 0.0, 1.0)
    text = families.markdown([a, b])
    assert "| b | 2 | 0 | 1 | 0.50 | n/a |" in text
    assert len(text.splitlines()) == 4
