"""``choose`` against a row-by-row oracle in exact fractions."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import pairwise, takewhile
from statistics import quantiles

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selection_inputs import BAD, INF, NAN, reasons, row, scores_of

from rap.config import ChooseConfig
from rap.errors import RapInputError
from rap.scores.posterior import Arm, prob_above
from rap.scores.scores import Scores
from rap.scores.selected import KEPT, REASONS
from rap.scores.table import SCORE_SCHEMA
from rap.selection.choosing import choose
from rap.selection.selection import Selection

BRANCHES = {
    *(
        "limit given",
        "limit published",
        "limit too few",
        "limit in a gap",
        "fence of all",
    ),
    *("psi skipped", "psi missing", "psi biased", "psi too short", "D unknown"),
    *("ranked by gain", "ranked by learnable", "ranked by posterior"),
    *("tie by D", "tie by Diff", "tie by index"),
    *("target cuts", "target not reached", "seat by remainder", "seat by candidate"),
    *("seat without a candidate", "replaced", "replacements ran out", "hurt readmitted"),
    *("hurt comes last",),
    *("unsolved below 1", "mean likelihood", "Diff unknown"),
    *(reason for reason in REASONS if reason != "kept_guard"),  # rule learn: test_learn
    *("quarantined_image_missing", "quarantined_nonfinite"),
    *("quarantined_few_rollouts", "quarantined_psi_missing"),
}
"""What the oracle below has to come by at least once, or it tests nothing of it."""


@cache
def value_of(c1: int, m1: int, c0: int, m0: int) -> float:
    """E[p1 (1 - p1)] P(p1 > p0), or of P(p1 < p0) where D < 0, p ~ Beta(1 + c, 1 + m - c);
    2 less where the completions with the image are all alike."""
    arms = [Arm(np.array([c]), np.array([m])) for c, m in ((c1, m1), (c0, m0))]
    above = round(float(prob_above(*arms)[0]), 4)
    if c1 * m0 < c0 * m1:
        above = 1.0 - above
    a, b = 1.0 + c1, 1.0 + m1 - c1
    return a * b / ((a + b) * (a + b + 1)) * above - (0.0 if 0 < c1 < m1 else 2.0)


def value_of_p(p: float | None, moved: float | None) -> float:
    """p (1 - p), 1/6 where p is not known; 2 less where it is 0 or the image moves the
    prediction by 0.01 nats at most."""
    value = 1 / 6 if p is None else p * (1 - p)
    mixed = value > 0 and (moved is None or moved > 0.01)
    return value - (0.0 if mixed else 2.0)


class Row:
    """One row as ``choose`` documents it: exact fractions for rollouts, else floats."""

    def __init__(self, row: dict, config: ChooseConfig) -> None:
        self.evidence, self.row = row.get("evidence"), row
        self.psi = row.get("log_psi")
        self.d = self.diff = self.learn = self.value = None
        if row["status"] == "scored":
            self._counts(row) if self.evidence == "rollouts" else self._p(row, config)
        numbers = [row.get(n) for n in ("log_psi", "p_answer1", "p_answer0", "js", "kl")]
        self.broken = any(x is not None and (x != x or x == INF) for x in numbers)
        known = self.d is not None or self.evidence == "rollouts" and row["m0"] > 0
        self.valid = row["status"] == "scored" and not self.broken and known

    def _counts(self, row: dict) -> None:
        if row["m1"] and row["m0"]:
            self.diff = 1 - Fraction(row["c1"], row["m1"])
            self.d = Fraction(row["c1"], row["m1"]) - Fraction(row["c0"], row["m0"])
            self.learn = self.d * self.diff
            self.value = value_of(*(row[n] for n in ("c1", "m1", "c0", "m0")))
        elif row["m1"]:
            self.diff = 1 - Fraction(row["c1"], row["m1"])

    def _p(self, row: dict, config: ChooseConfig) -> None:
        p1, p0 = row.get("p_answer1"), row.get("p_answer0")
        if config.likelihood == "mean":
            logs = (row.get("logp_mean1"), row.get("logp_mean0"))
            p1, p0 = (None if x is None else float(np.exp(x)) for x in logs)
        self.diff = None if p1 is None else 1 - p1
        left = 0.5 if self.diff is None else self.diff
        if self.evidence == "logits":
            self.d = row.get(config.divergence)
            if self.d is not None:
                self.d = float(np.float32(self.d))  # as the column holds it
                self.learn = self.d * left * (1 - left)
                self.value = value_of_p(p1, self.d)
        elif p1 is not None and p0 is not None:
            self.d = p1 - p0
            self.learn = self.d * left
            self.value = value_of_p(p1, row.get("js"))

    def limit(self, value: float) -> Fraction | float:
        """A threshold as it is compared: the decimal, or its float."""
        return Fraction(str(float(value))) if self.evidence == "rollouts" else float(value)


def fence_of(psi: list[float], reached: Counter) -> float:
    """The middle of the widest step above the median, if that step is wider than half of
    the IQR below it; else Q3 + 1.5 IQR of all."""
    ordered = sorted(psi)
    steps = [(b - a, -i) for i, (a, b) in enumerate(pairwise(ordered))]
    width, place = max(step for step in steps if -step[1] >= len(ordered) // 2)
    q1, _, q3 = quantiles(ordered[: 1 - place], n=4, method="inclusive")
    gap = 0 < (q3 - q1) / 2 < width
    reached["limit in a gap" if gap else "fence of all"] += 1
    if gap:
        return ordered[-place] + width / 2
    q1, _, q3 = quantiles(ordered, n=4, method="inclusive")
    return q3 + 1.5 * (q3 - q1)


def limit_of(rows: list[Row], config: ChooseConfig, reached: Counter) -> float:
    if config.lambda_a is not None:
        reached["limit given"] += 1
        return math.log(config.lambda_a)
    if config.rule == "paper":
        reached["limit published"] += 1
        return math.log(0.1)
    psi = [float(np.float32(r.psi)) for r in rows if r.valid and r.psi is not None]
    finite = [x for x in psi if x != -INF]
    if len(finite) < 20:
        reached["limit too few"] += 1
        return INF
    return fence_of(finite, reached)


def size_of(budget: float, n: int) -> int:
    """k where the budget is the float k/n, else the decimal times n, rounded down."""
    whole = (k for k in range(n + 1) if k / n == float(budget))
    return next(whole, math.floor(Fraction(str(float(budget))) * n))


def targets_of(
    budget: float, groups: list[list[int]], keys: list[list], reached: Counter
) -> list[int]:
    """Each group's own share, and one more by largest remainder. keys: those of each
    group's candidates, the best (least) first."""
    own = [size_of(budget, len(group)) for group in groups]
    left = size_of(budget, sum(map(len, groups))) - sum(own)
    exact = [
        Fraction(str(float(budget))) * len(g) - k for g, k in zip(groups, own, strict=True)
    ]
    free = [i for i in range(len(groups)) if own[i] < len(keys[i])]
    order = sorted(free, key=lambda i: (-exact[i], keys[i][own[i]]))
    if 0 < left < len(order):
        last, after = order[left - 1], order[left]
        same = exact[last] == exact[after]
        reached["seat by candidate" if same else "seat by remainder"] += 1
    if left > len(order):
        reached["seat without a candidate"] += 1
    for i in order[: max(left, 0)]:
        own[i] += 1
    return own


def oracle(table: list[dict], config: ChooseConfig, reached: Counter) -> list[str]:
    """The reasons as ``choose`` documents them, one row at a time."""
    rows = [Row(r, config) for r in table]
    n = len(rows)
    measured = any(r.valid and r.psi is not None for r in rows)
    limit = limit_of(rows, config, reached) if measured else INF
    floor = config.lambda_c
    if config.rule == "paper":
        floor = 0.5 if floor is None else floor
    else:
        floor = max(0.0, floor or 0.0)

    drops = (
        config.biased == "drop"
        or config.biased is None
        and (config.rule == "paper" or config.lambda_a is not None)
    )

    def psi_state(r: Row) -> str:
        if not measured or not drops:
            return "skipped"
        if r.psi is None:
            return "missing"
        if r.psi == -INF:
            return "too short"
        return "ok" if float(np.float32(r.psi)) <= limit else "biased"

    def unsolved(r: Row) -> bool:
        return r.diff is not None and r.diff >= r.limit(config.unsolved)

    def passes_ace(r: Row) -> bool:
        return psi_state(r) in ("ok", "skipped", "too short")

    free = [r.valid and passes_ace(r) and not unsolved(r) for r in rows]
    passing = [
        f and r.d is not None and r.d > r.limit(floor)
        for f, r in zip(free, rows, strict=True)
    ]
    trivial = [r.diff is not None and r.diff <= r.limit(config.trivial) for r in rows]
    easy = [config.replace and t for t in trivial]
    budgeted = config.rule == "budget"
    readmit = config.readmit_hurt
    if readmit is None and not budgeted:
        readmit = True
    kinds = {r.evidence for r in rows if r.row["status"] == "scored"}
    order = config.order or ("posterior" if kinds == {"rollouts"} else "learnable")

    def key(i: int) -> tuple:
        r = rows[i]
        first = {"gain": r.d, "learnable": r.learn, "posterior": r.value}[order]
        return -first, -r.d, -(-1 if r.diff is None else r.diff), i

    names = [r.get(config.by) if config.by else None for r in table]
    groups = [[i for i in range(n) if names[i] == g] for g in dict.fromkeys(names)]
    ranked = [sorted((i for i in group if passing[i]), key=key) for group in groups]
    removed_first = [sum(easy[i] for i in group) for group in ranked]
    targets = [0] * len(groups)
    if budgeted:  # trivial samples do not take part in the ranking
        ranked = [[i for i in group if not easy[i]] for group in ranked]
        reached[f"ranked by {order}"] += 1
        budget = 0.09 if config.budget is None else config.budget
        keys = [[key(i) for i in group] for group in ranked]
        targets = targets_of(budget, groups, keys, reached)
        for group, target in zip(ranked, targets, strict=True):
            if 0 < target < len(group):
                reached["target cuts"] += 1
                last, after = key(group[target - 1]), key(group[target])
                pairs = zip(last, after, strict=True)
                equal = sum(1 for _ in takewhile(lambda p: p[0] == p[1], pairs))
                why = {1: "tie by D", 2: "tie by Diff", 3: "tie by index"}.get(equal)
                reached[why] += 1
            elif len(group) < target:
                reached["target not reached"] += 1
        ranked = [group[:target] for group, target in zip(ranked, targets, strict=True)]
    kept: dict[int, str] = {}
    for group, survivors, away, target in zip(
        groups, ranked, removed_first, targets, strict=True
    ):
        kept |= {i: "kept_cognitive" for i in survivors if not easy[i]}
        hard = [
            i
            for i in group
            if free[i]
            and i not in kept
            and not trivial[i]
            and rows[i].d is not None
            and (readmit is not False or rows[i].d >= 0)
            and rows[i].diff is not None
            and 0 < rows[i].diff < 1
        ]
        hard.sort(key=lambda i: (-rows[i].diff, -rows[i].d, i))
        if readmit is None:  # what the image hurts comes last
            hard.sort(key=lambda i: rows[i].d < 0)
        removed = sum(easy[i] for i in survivors)
        if budgeted:
            removed = min(away, target - len(survivors))
            last = [i for i in hard[:removed] if readmit is None and rows[i].d < 0]
            reached["hurt comes last"] += bool(last)
        reached["replacements ran out"] += removed > len(hard)
        reached["replaced"] += bool(hard[:removed])
        reached["hurt readmitted"] += any(rows[i].d < 0 for i in hard[:removed])
        kept |= {i: "kept_replacement" for i in hard[:removed]}

    def why(i: int) -> str:
        r, psi = rows[i], psi_state(rows[i])
        if i in kept:
            return kept[i]
        if not r.valid:
            if r.row["status"] != "scored":
                return f"quarantined_{r.row['code']}"
            few = r.evidence == "rollouts" and not r.broken
            return "quarantined_few_rollouts" if few else "quarantined_nonfinite"
        if unsolved(r):
            reached["unsolved below 1"] += r.diff < 1
            return "dropped_unsolved"
        if psi == "biased":
            return "dropped_attention_biased"
        below = r.d is None or r.d <= r.limit(floor)
        if below and r.d is not None and r.d < 0:
            return "dropped_image_hurts"
        if below:
            return "dropped_language_prior"
        if easy[i]:
            return "dropped_trivial"
        return "quarantined_psi_missing" if psi == "missing" else "dropped_over_budget"

    told = [why(i) for i in range(n)]
    for r, reason in zip(rows, told, strict=True):
        reached[reason] += 1
        reached[f"psi {psi_state(r)}"] += r.valid
        reached["D unknown"] += r.valid and r.d is None
        reached["Diff unknown"] += r.valid and r.diff is None
        reached["mean likelihood"] += (
            config.likelihood == "mean" and r.valid and r.evidence != "rollouts"
        )
    return told


# Few distinct counts, so that ties, trivial and never-solved samples are common.
COUNTS = [(0, 0), (0, 4), (1, 4), (3, 4), (4, 4), (1, 2), (2, 2), (5, 5), (4, 5), (1, 5)]
CHANCES = [None, 0.0, 0.125, 0.25, 0.5, 0.875, 1.0]
PSI = {
    "none": st.none(),
    "measured": st.floats(-6, 1, width=32),
    "apart": st.one_of(*[st.floats(-3.5, -2, width=32)] * 5, st.floats(-0.5, 1, width=32)),
    "broken": st.one_of(st.none(), st.sampled_from([-INF, INF, NAN, -2.0, -2.5, 0.5])),
}


def logp(p: float | None) -> float | None:
    return None if p is None else math.log(p) / 2 if p else -INF


def of_kind(kind: str, psi: st.SearchStrategy, source: st.SearchStrategy):
    """Rows of one kind of evidence."""
    if kind == "rollouts":
        arms = (st.sampled_from(COUNTS), st.sampled_from([*COUNTS[:3], *COUNTS[1:5]]))
        return st.builds(
            lambda one, zero, psi, source: row(*one, *zero, log_psi=psi, source=source),
            *arms,
            psi,
            source,
        )
    return st.builds(
        lambda p1, p0, js, psi, source: {
            **{"status": "scored", "evidence": kind, "log_psi": psi, "source": source},
            **{"p_answer1": p1, "p_answer0": p0, "js": js, "kl": js},
            **{"logp_mean1": logp(p1), "logp_mean0": logp(p0)},
        },
        st.sampled_from(CHANCES),
        st.sampled_from(CHANCES),
        st.sampled_from([None, 0.0, 0.125, 0.25, 0.5]),
        psi,
        source,
    )


@st.composite
def tables(draw: st.DrawFn) -> list[dict]:
    """1 to 60 rows; with psi that may be calibrated at least 20 of them."""
    psi = draw(st.sampled_from(sorted(PSI)))
    kind = draw(st.sampled_from(["rollouts", "rollouts", "answer", "logits"]))
    sources = st.sampled_from([["a", "b", None], [f"g{i}" for i in range(30)]])
    scored = of_kind(kind, PSI[psi], st.sampled_from(draw(sources)))
    least = draw(st.sampled_from([1, 40] if psi in ("measured", "apart") else [1, 20]))
    rows = st.lists(st.one_of(*[scored] * 9, st.just(BAD)), min_size=least, max_size=60)
    return [dict(r) for r in draw(rows)]


@st.composite
def choices(draw: st.DrawFn) -> dict:
    rule = draw(st.sampled_from(["budget", "budget", "paper"]))
    thresholds = st.sampled_from([None, None, -0.5, 0.0, 0.1, 0.2, 0.25, 0.5, 0.75])
    lambda_c = draw(thresholds)
    if rule == "paper" and lambda_c is None:
        lambda_c = 0.2  # the published one is refused for logits
    out = {
        "rule": rule,
        "lambda_c": lambda_c,
        "lambda_a": draw(st.one_of(st.none(), st.none(), st.floats(0.01, 3))),
        "biased": draw(st.sampled_from([None, "drop", "drop", "report"])),
        "replace": draw(st.booleans()),
        "readmit_hurt": draw(st.sampled_from([None, False, True])),
        "trivial": draw(st.sampled_from([0.0, 0.2, 0.25])),
        "unsolved": draw(st.sampled_from([1.0, 1.0, 0.75, 0.8])),
        "likelihood": draw(st.sampled_from(["product", "mean"])),
        "divergence": draw(st.sampled_from(["js", "kl"])),
    }
    if rule == "budget":
        out["budget"] = draw(st.sampled_from([None, 0.01, 0.1, 0.29, 1 / 3, 0.5, 1.0, 1]))
        out["order"] = draw(st.sampled_from([None, "gain", "learnable", "posterior"]))
        out["by"] = draw(st.sampled_from([None, "source"]))
    return out


def refusal(rows: list[dict], config: ChooseConfig) -> str | None:
    """Why nothing can be chosen from these rows; None if something can."""
    read = [Row(r, config) for r in rows]
    valid = [r for r in read if r.valid]
    if not valid:
        return "all .* samples are quarantined"
    asked = [r for r in valid if r.diff is not None]
    solved = [r for r in valid if r.diff is None or r.diff < r.limit(config.unsolved)]
    if valid[0].evidence != "rollouts" and asked and not solved:
        return "samples with an answer are unsolved"
    return None


def test_fault_56_choose_equals_the_oracle() -> None:
    """On tables of every evidence, and every branch of the oracle is reached."""
    reached: Counter = Counter()

    tie = [row(1, 4, 0, 4), row(3, 4, 0, 4)]  # D Diff is 3/16 of both
    equal = [row(3, 4, 1, 4), row(2, 4, 0, 4)]  # D is 1/2 of both
    hurt = [row(4, 4, 0, 4), row(1, 4, 3, 4)]  # the first is trivial

    @settings(max_examples=1200, deadline=None, derandomize=True)
    @given(rows=tables(), options=choices())
    @example(rows=tie, options={"budget": 0.5, "order": "learnable"})
    @example(rows=hurt, options={"budget": 0.5})
    @example(rows=equal, options={"budget": 0.5, "order": "gain"})
    def compare(rows: list[dict], options: dict) -> None:
        config = ChooseConfig(**options)
        refused = refusal(rows, config)
        if refused is not None:
            with pytest.raises(RapInputError, match=refused):
                choose(scores_of(rows), **options)
            return
        wanted = oracle(rows, config, reached)
        selection = choose(scores_of(rows), config)
        assert reasons(selection) == wanted
        accounts(selection, wanted)

    compare()
    assert not {name for name in BRANCHES if not reached[name]}, "never reached"


def accounts(selection: Selection, wanted: list[str]) -> None:
    """What a selection says of itself adds up."""
    counted = selection.counts()
    assert sum(counted.values()) == len(wanted)
    assert list(counted)[: len(REASONS)] == list(REASONS)
    assert selection.indices.dtype == np.int64
    assert selection.indices.tolist() == [i for i, r in enumerate(wanted) if r in KEPT]
    assert len(selection) == sum(counted[code] for code in KEPT)
    found = selection.settings["found"]
    if found["target"]:
        assert len(selection) <= found["target"]
        assert (len(selection) < found["target"]) == any(
            "short result" in w for w in selection.warnings
        )
    json.dumps(selection.settings, allow_nan=False)
    assert str(len(wanted)) in selection.summary()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=tables(),
    options=choices(),
    seed=st.integers(0, 2**31),
)
def test_the_order_of_the_table_does_not_matter(
    rows: list[dict], options: dict, seed: int
) -> None:
    kinds = {r["evidence"] for r in rows if r["status"] == "scored"}
    good = {"evidence": (kinds or {"rollouts"}).pop(), "p_answer1": 0.5, "p_answer0": 0.125}
    good |= {"js": 0.25, "kl": 0.25, "logp_mean1": -0.5, "logp_mean0": -2.0}
    rows.append(row(3, 5, 1, 5, log_psi=-2.0) | good)
    scores = scores_of(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = choose(Scores(scores.table.take(order)), **options)
    selection = choose(scores, **options)
    # equals: NaN in log_psi is not equal to itself
    assert shuffled.table["id"].equals(selection.table["id"])
    assert shuffled.table["reason"].equals(selection.table["reason"])
    # other numbers in the data set: the same ids but for ties, which the index decides
    renumbered = scores.table.take(order).set_column(
        SCORE_SCHEMA.get_field_index("index"), "index", pa.array(range(len(rows)))
    )
    again = choose(Scores(renumbered), **options)
    assert len(again) == len(selection)
    for name in ("D", "difficulty"):
        kept, theirs = (
            Counter(s.table[name].filter(pa.array(s.kept)).to_pylist())
            for s in (selection, again)
        )
        assert kept == theirs
