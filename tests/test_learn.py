"""Rule learn against the brute force of ``rap.reference``, and its edges one by one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_inputs import BAD, reasons, row, scores_of

import rap
from rap import reference
from rap.config import ChooseConfig
from rap.errors import RapConfigError
from rap.samples.sampleset import open_samples
from rap.scores.learning import FLOOR, SETTLED, UNTRIED, value_of_answers
from rap.scores.scores import Scores
from rap.scores.selected import KEPT
from rap.scores.states import BITS, COLUMN, WIDTH, packed, signs, states_of
from rap.scores.table import table_from_rows
from rap.selection.choosing import choose
from rap.selection.clusters import clusters_of, kmeans
from rap.selection.coverage import SCALE, marginal, reward, top
from rap.selection.groups import budget_size
from rap.selection.selection import Selection, load


def answer(p1: float | None, p0: float | None, js: float | None, **more: object) -> dict:
    p = {"p_answer1": p1, "p_answer0": p0, "js": js}
    return {"status": "scored", "evidence": "answer"} | p | more


def logits(p1: float | None, js: float, **more: object) -> dict:
    return answer(p1, None, js, **more) | {"evidence": "logits"}


def cascade(p1: float, p0: float, counts: tuple[int, ...] = (), **more: object) -> dict:
    found = answer(p1, p0, 0.2) | {"evidence": "cascade", "decided_by": "answer"}
    if counts:
        found |= dict(zip(("c1", "m1", "c0", "m0"), counts, strict=True))
        found |= {"decided_by": "text" if counts[3] else "image"}
    return found | more


def learned(selection: Selection) -> dict:
    return selection.settings["found"]["learned"]


def test_groups_without_a_candidate_get_what_the_rule_fills_with() -> None:
    """Each of four groups is to keep 0.75 of its three samples, all with D < 0."""
    rows = [row(2, 5, 4, 5, source="abcd"[i % 4]) for i in range(12)]
    for by in (None, "source"):
        found = choose(scores_of(rows), rule="learn", budget=0.25, by=by)
        assert found.settings["found"]["kept"] == 3
        assert found.settings["warnings"] == []
    rows[0] = row(4, 5, 1, 5, source="a")  # a candidate comes first
    found = choose(scores_of(rows), rule="learn", budget=0.1, by="source")
    assert reasons(found).index("kept_cognitive") == 0
    assert sum(r in KEPT for r in reasons(found)) == 1
    rows = [row(0, 5, 0, 5, source="a"), *[row(2, 5, 4, 5, source="b")] * 3]
    found = choose(scores_of(rows), rule="learn", budget=0.75, by="source")
    assert found.settings["found"]["kept"] == 3
    rows = [row(0, 5, 0, 5, source="a")] * 3 + [row(2, 5, 4, 5, source="b")] * 3
    (said,) = choose(scores_of(rows), rule="learn", budget=0.5, by="source").settings[
        "warnings"
    ]
    assert said.endswith("solved in the groups that have not kept all of theirs")


def test_a_cascade_without_a_right_completion_says_what_was_graded() -> None:
    """p(answer) is 0.6: that the model gives the answer no probability would be wrong."""
    rows = [cascade(0.6, 0.1, (0, 5, 0, 5), n_drawn=10, n_cut=9) for _ in range(3)]
    with pytest.raises(rap.RapInputError, match="all 3 samples .* are unsolved") as error:
        choose(scores_of(rows), budget=1.0)
    assert "30 completions were graded, 27 of them cut" in str(error.value)
    assert "almost no probability" not in str(error.value)


# ---------------------------------------------------------------- the value


@pytest.mark.parametrize(
    "counts", [(1, 5, 0, 5), (2, 5, 1, 5), (4, 5, 4, 5), (1, 5, 3, 5), (3, 8, 0, 1)]
)
def test_the_value_is_what_quadrature_gives(counts: tuple[int, ...]) -> None:
    selection = choose(scores_of([row(*counts)]), rule="learn", budget=1)
    (value,) = selection.table["rank_key"].to_pylist()
    assert value == pytest.approx(reference.beta_value(*counts), abs=5e-5)


def test_a_divergence_must_be_above_the_floor() -> None:
    rows = [logits(0.5, js) for js in (0.2, FLOOR, 0.005, 0.3)]
    selection = choose(scores_of(rows), rule="learn", budget=0.25)
    assert reasons(selection)[1:3] == ["dropped_language_prior"] * 2
    assert selection.settings["found"]["lambda_c"] == FLOOR


def test_outcomes_that_are_all_alike_come_after_all_mixed_ones() -> None:
    """5 of 5 right: Beta(6, 1), E[p (1 - p)] = 6/56; P(p1 > p0) = 1/2."""
    rows = [row(5, 5, 5, 5), row(1, 5, 3, 5)]
    values = choose(scores_of(rows), rule="learn", budget=1).table["rank_key"].to_pylist()
    assert values[0] == pytest.approx(6 / 56 / 2 - SETTLED, abs=5e-5)
    assert values[0] < 0 < values[1]


def test_the_value_of_a_uniform_prior_is_known() -> None:
    """1 of 2 right: Beta(2, 2), E[p (1 - p)] = 1/5; 0 of 1: p0 ~ Beta(1, 2),
    P(p1 > p0) = E[1 - (1 - p1)^2] = 7/10."""
    selection = choose(scores_of([row(1, 2, 0, 1)]), rule="learn", budget=1)
    (value,) = selection.table["rank_key"].to_pylist()
    assert value == pytest.approx(0.2 * 0.7, abs=2e-5)


def test_probabilities_are_worth_p_one_minus_p_where_the_image_is_read() -> None:
    rows = [answer(0.5, 0.1, 0.2), answer(0.5, 0.1, FLOOR), answer(0.5, 0.1, None)]
    values = choose(scores_of(rows), rule="learn", budget=1).table["rank_key"].to_pylist()
    assert values == [0.25, 0.25 - SETTLED, 0.25]
    rows = [logits(0.5, 0.2), logits(0.5, 0.001), logits(None, 0.2)]
    values = choose(scores_of(rows), rule="learn", budget=1).table["rank_key"].to_pylist()
    assert values == [0.25, 0.25 - SETTLED, 1 / 6]


def test_the_floor_itself_does_not_move():
    """The image must move the prediction by more than ``FLOOR``."""
    p = np.full(3, 0.5)
    moved = np.array([FLOOR, np.nextafter(FLOOR, 1), np.nextafter(FLOOR, 0)])
    found = value_of_answers(p, moved, np.ones(3, bool))
    assert found.tolist() == [0.25 - SETTLED, 0.25, 0.25 - SETTLED]


def test_a_cascade_ranks_what_it_sampled_first() -> None:
    rows = [
        cascade(0.5, 0.1),
        cascade(0.9, 0.1, (4, 5, 1, 3)),
        cascade(0.5, 0.1, (5, 5, 0, 0)),
    ]
    values = choose(scores_of(rows), rule="learn", budget=1).table["rank_key"].to_pylist()
    assert values[0] == 0.25 - UNTRIED
    assert 0 < values[1] < 0.25
    assert values[2] < 0.25 - SETTLED + 1e-9
    assert choose(scores_of(rows), rule="learn", budget=0.7).ids == ["s0", "s1"]


# ---------------------------------------------------------------- the oracle

COUNTS = [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 5), (0, 1)]
CHANCES = [None, 0.0, 0.125, 0.25, 0.5, 0.875, 1.0]


def of_kind(kind: str) -> st.SearchStrategy:
    psi = st.sampled_from([None, -3.0, -2.5, 0.5, -math.inf])
    source = st.sampled_from(["a", "b", "c", None])
    if kind == "rollouts":
        return st.builds(
            lambda one, zero, psi, source: row(*one, *zero, log_psi=psi, source=source),
            st.sampled_from(COUNTS),
            st.sampled_from(COUNTS),
            psi,
            source,
        )
    js = st.sampled_from([0.0, 0.005, 0.02, 0.3])
    if kind == "cascade":
        blind = st.sampled_from([(0, 1), (1, 1), (1, 3), (2, 2)])
        return st.builds(
            lambda p1, p0, one, zero, psi, source: cascade(
                *(p1, p0, () if one is None else (*one, *zero)), log_psi=psi, source=source
            ),
            *(st.sampled_from(CHANCES[1:]),) * 2,
            st.sampled_from([None, *COUNTS[:5]]),
            blind,
            psi,
            source,
        )
    made = answer if kind == "answer" else lambda p1, p0, js, **more: logits(p1, js, **more)
    return st.builds(
        lambda p1, p0, js, psi, source: made(p1, p0, js, log_psi=psi, source=source),
        *(st.sampled_from(CHANCES),) * 2,
        js,
        psi,
        source,
    )


def hurt_of(kind: str) -> st.SearchStrategy:
    """Rows that the image hurts, of several sizes of harm."""
    psi = {"log_psi": -3.0}
    right = st.sampled_from([1, 2, 3])
    if kind == "rollouts":
        return st.builds(lambda c: row(c, 5, 4, 4, **psi), right)
    if kind == "cascade":
        return st.builds(lambda c: cascade(0.2, 0.9, (c, 5, 4, 4), **psi), right)
    return st.builds(lambda c: answer(c / 5, 0.9, 0.3, **psi), right)


@st.composite
def tables(draw: st.DrawFn) -> list[dict]:
    name = draw(st.sampled_from(["rollouts", "answer", "logits", "cascade"]))
    parts = [of_kind(name)] * 9 + [st.just(BAD)]
    if name != "logits" and draw(st.booleans()):
        parts += [hurt_of(name)] * 6
    least = draw(st.sampled_from([1, 25]))
    rows = st.lists(st.one_of(*parts), min_size=least, max_size=40)
    return [dict(r) for r in draw(rows)]


@st.composite
def choices(draw: st.DrawFn) -> dict:
    share = st.sampled_from([None, 0, 0.1, 0.25, 0.5])
    covers = draw(st.sampled_from([None, False, True, "source"]))
    return {
        "rule": "learn",
        "budget": draw(st.sampled_from([0.1, 0.29, 0.5, 1])),
        "lambda_c": draw(st.sampled_from([None, -0.5, 0.0, 0.25])),
        "lambda_a": draw(st.sampled_from([0.1, 10])),
        "guard_attention": draw(share),
        "guard_hurt": draw(share),
        **({"coverage_by": "source"} if covers == "source" else {"coverage": covers}),
    }


REACHED = {
    *("main", "guard attention", "guard hurt", "guard without a candidate", "fill mixed"),
    *("fill others", "coverage matters", "guards covered", "cut", "short"),
    *("rollouts", "answer", "logits", "cascade"),
}


def brute(
    selection: Selection, config: ChooseConfig, states: np.ndarray, reached: Counter
) -> dict:
    """``reference.learn`` on what the selection's table says of each row. ``states``: the
    cluster of each."""
    table = selection.table
    d, difficulty, value = (
        np.array([np.nan if x is None else x for x in table[name].to_pylist()], float)
        for name in ("D", "difficulty", "rank_key")
    )
    scored = np.array([s == "scored" for s in table["status"].to_pylist()])
    psi = np.array([np.nan if x is None else x for x in table["log_psi"].to_pylist()])
    k = budget_size(config.budget, len(d))
    floor = config.lambda_c
    if floor is None:
        floor = 0.01 if selection.settings["evidence"] == "logits" else 0.0
    usable = scored & ~np.isnan(value) & ~(difficulty >= 1)
    usual = zip(config.guards, (0.1, 0.3), strict=True)
    shares = [default if given is None else given for given, default in usual]
    many = tuple(math.floor(round(100 * share) * k / 100) for share in shares)
    harm = np.nan_to_num(difficulty * (1 - difficulty) * np.maximum(-d, 0))
    covers = None
    if config.coverage_by:
        covers = np.array([x or "" for x in table["source"].to_pylist()])
    elif config.coverage is not False:
        covers = states
    given = {
        "usable": usable,
        "above": d > floor,
        "negative": d < 0,
        "biased": psi > math.log(config.lambda_a),
        "harm": harm,
        "guards": many,
        "covers_main": bool(config.coverage or config.coverage_by),
        "scale": SCALE,
    }
    found = reference.learn(value, k, group=covers, **given)
    plain = reference.learn(value, k, group=None, **given)
    psi_of = given["biased"][found["guard"]]
    reached["main"] += bool(found["main"])
    reached["guard attention"] += bool(psi_of.any())
    reached["guard hurt"] += bool((~psi_of).any())
    reached["guard without a candidate"] += len(found["guard"]) < sum(many)
    reached["fill mixed"] += bool((value[found["fill"]] > 0).any())
    reached["fill others"] += bool((value[found["fill"]] < 0).any())
    reached["coverage matters"] += set(found["main"]) != set(plain["main"])
    reached["guards covered"] += set(found["guard"]) != set(plain["guard"])
    reached["cut"] += bool(usable.sum() > k)
    reached["short"] += bool(usable.sum() < k)
    reached[selection.settings["evidence"]] += 1
    return found


def test_learn_equals_the_brute_force() -> None:
    """On tables of every evidence, and every part of the rule is reached."""
    reached: Counter = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(rows=tables(), options=choices())
    def compare(rows: list[dict], options: dict) -> None:
        states = np.repeat(np.arange(len(rows))[:, None] % 3, WIDTH, axis=1)
        scores = with_states(rows, states.astype(float))
        try:
            selection = choose(scores, **options)
        except rap.RapInputError:
            return  # no valid row, or none is solved: as for every rule
        clusters = clusters_of(scores.reader).code
        wanted = brute(selection, ChooseConfig(**options), clusters, reached)
        told = reasons(selection)
        for part, code in (
            ("main", "kept_cognitive"),
            ("fill", "kept_replacement"),
            ("guard", "kept_guard"),
        ):
            assert {i for i, r in enumerate(told) if r == code} == set(wanted[part])
        assert len(selection) == sum(selection.counts()[code] for code in KEPT)
        json.dumps(selection.settings, allow_nan=False)
        assert "guard, attention-biased" in selection.summary()

    compare()
    assert not {name for name in REACHED if not reached[name]}, "never reached"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    values=st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.16, 0.2, 0.25]), max_size=25),
    groups=st.lists(st.integers(0, 3), min_size=25, max_size=25),
    k=st.integers(0, 30),
)
def test_coverage_is_what_greedy_choice_gives(
    values: list[float], groups: list[int], k: int
) -> None:
    value, group = np.array(values), np.array(groups[: len(values)], int)
    chosen = top(marginal(value, group), k)
    assert chosen.tolist() == sorted(reference.cover(value, group, k, SCALE))


def test_the_reward_is_concave_in_a_group() -> None:
    one = reward(np.array([0.2]), np.array([3]))
    assert one == pytest.approx(math.log(2))
    assert reward(np.array([0.2, 0.2]), np.array([3, 3])) == pytest.approx(math.log(3))
    assert reward(np.array([0.2, 0.2]), np.array([3, 1])) == pytest.approx(2 * math.log(2))
    assert reward(np.array([]), np.array([], int)) == 0.0


# ---------------------------------------------------------------- guards, fill, groups


def test_guards_take_the_best_mixed_samples_of_their_kind() -> None:
    rows = [row(2, 5, 0, 5, log_psi=-3.0)] * 10
    rows += [row(c, 5, 0, 5, log_psi=0.5) for c in (4, 2)]  # 10, 11: biased
    rows += [row(c, 5, 5, 5, log_psi=-3.0) for c in (1, 2)]  # 12, 13: hurt
    rows += [row(5, 5, 5, 5, log_psi=-3.0)] * 6
    options = {"rule": "learn", "budget": 0.5, "lambda_a": 1.0, "guard_hurt": 0.1}
    selection = choose(scores_of(rows), **options)
    assert selection.indices.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 11, 13]
    assert [reasons(selection)[i] for i in (0, 10, 11, 12, 13)] == [
        *("kept_cognitive", "dropped_attention_biased", "kept_guard"),
        *("dropped_image_hurts", "kept_guard"),
    ]
    none = choose(
        scores_of(rows),
        rule="learn",
        budget=0.5,
        lambda_a=1.0,
        guard_hurt=0,
        guard_attention=0,
    )
    assert none.indices.tolist() == list(range(10))
    assert learned(none)["guard"]["hurt"] == {"target": 0, "candidates": 2, "kept": 0}


def test_the_guard_knows_harm_from_chance() -> None:
    """Half-known without the image, half-known with it: D < 0 by one completion says
    little, however surely p1 (1 - p1) is large; right without and seldom with it does."""
    rows = [row(2, 5, 0, 5)] * 10 + [row(2, 5, 3, 5)] * 5 + [row(1, 5, 5, 5)] * 5
    selection = choose(scores_of(rows), rule="learn", budget=0.5, guard_hurt=0.2)
    told = reasons(selection)
    assert {i for i, r in enumerate(told) if r == "kept_guard"} == {15, 16}


def test_the_guard_takes_samples_that_the_cascade_did_not_ask() -> None:
    """Where D < 0 is expected no completion is sampled; what is expected then decides."""
    sure = {"entropy1": 0.5, "entropy0": 0.5}
    asked = [cascade(0.5, 0.02, (2, 5, 0, 5), **sure)] * 30
    asked += [cascade(0.15, 0.97, (0, 2, 5, 5), **sure)] * 3  # of the pilot
    hurt = [cascade(0.15, 0.97, **sure)] * 5
    selection = choose(scores_of(asked + hurt), rule="learn", budget=0.4, guard_hurt=0.2)
    assert learned(selection)["guard"]["hurt"]["kept"] == 3
    told = reasons(selection)
    assert [i for i, r in enumerate(told) if r == "kept_guard"] == [33, 34, 35]


@pytest.mark.parametrize(("share", "kept"), [(1 / 3, 10), (0.33, 9), (0.29, 8), (1, 20)])
def test_a_guard_is_a_share_as_the_budget_is_one(share: float, kept: int) -> None:
    """A third of 30 is 10, though the float 1/3 is below it; decimals are rounded down."""
    rows = [row(2, 5, 0, 5)] * 20 + [row(1, 5, 4, 5)] * 20
    chosen = choose(scores_of(rows), rule="learn", budget=0.75, guard_hurt=share)
    assert learned(chosen)["guard"]["hurt"]["kept"] == kept


def test_a_guard_without_candidates_gives_its_share_away() -> None:
    rows = [row(2, 5, 0, 5)] * 30
    selection = choose(scores_of(rows), rule="learn", budget=1 / 3)
    assert selection.counts()["kept_cognitive"] == 10
    assert "guard, hurt by the image: 0 of 3 (0 candidates; its share goes" in (
        selection.summary()
    )


def test_a_pool_without_mixed_samples_fills_the_budget_and_says_so() -> None:
    rows = [row(5, 5, 1, 5), row(5, 5, 5, 5), row(0, 5, 0, 5), row(5, 5, 0, 5)]
    selection = choose(scores_of(rows), rule="learn", budget=0.5)
    assert selection.ids == ["s0", "s3"]
    assert selection.counts()["kept_replacement"] == 2
    assert any("no sample is known to have mixed" in w for w in selection.warnings)
    assert "and 2 not known to have mixed outcomes" in selection.summary()
    whole = choose(scores_of(rows), rule="learn", budget=1)
    assert whole.counts()["dropped_unsolved"] == 1  # nothing to reward, however few
    assert any("short result: 3 of 4" in w for w in whole.warnings)


def test_one_group_only_is_said() -> None:
    rows = [row(2, 5, 0, 5, source="a")] * 20
    selection = choose(scores_of(rows), rule="learn", budget=0.5, coverage_by="source")
    assert len(selection) == 10
    assert "coverage by source: 1 group, which changes nothing" in selection.summary()
    plain = choose(scores_of(rows), rule="learn", budget=0.5)
    assert "coverage: none, the scores hold no hidden states" in plain.summary()
    off = choose(scores_of(rows), rule="learn", budget=0.5, coverage=False)
    assert "coverage: off\n" in off.summary()
    one = with_states(rows, np.ones((20, WIDTH)))
    states = choose(one, rule="learn", budget=0.5, coverage=True)
    assert "coverage by 1 cluster of hidden states: 1 group, which" in states.summary()


def test_the_least_kept_group_is_told_though_it_is_not_listed() -> None:
    """60 groups with one candidate each, 45 kept: the settings list 40 groups, all kept."""
    rows = [row(2, 5, 0, 5, source=f"g{i:02}") for i in range(60)]
    chosen = choose(scores_of(rows), rule="learn", budget=0.75, coverage_by="source")
    assert "60 groups with candidates, 0 to 1 kept of each" in chosen.summary()
    assert len(learned(chosen)["coverage"]["groups"]) == 40


def test_what_was_not_asked_is_not_called_unmixed() -> None:
    """Samples of a cascade without completions fill up: nothing is known of them."""
    scores = scores_of([cascade(0.5, 0.1, (2, 5, 0, 5))] * 3 + [cascade(0.6, 0.1)] * 9)
    chosen = choose(scores, rule="learn", budget=0.5, guard_hurt=0)
    assert "and 3 not known to have mixed outcomes" in chosen.summary()
    assert (
        "3 of the kept are not known to have mixed outcomes: too few are for this budget"
        in chosen.warnings
    )


def test_what_fills_up_is_hurt_whether_it_was_asked_or_not() -> None:
    """The five are expected to be hurt and were not asked: of 0 mixed samples they are
    none."""
    sure = {"entropy1": 0.5, "entropy0": 0.5}
    asked = [cascade(0.5, 0.02, (2, 5, 0, 5), **sure)] * 30
    asked += [cascade(0.15, 0.97, (0, 2, 5, 5), **sure)] * 3  # of the pilot
    scores = scores_of(asked + [cascade(0.15, 0.97, **sure)] * 5)
    chosen = choose(scores, rule="learn", budget=1, guard_hurt=0)
    assert (
        "budget filled with 0 other mixed samples and 5 not known to have mixed outcomes; "
        "of all these 0 attention-biased, 5 hurt by the image\n"
    ) in chosen.summary()


def test_the_rule_says_of_what_its_budget_is_a_share() -> None:
    """Of all samples, not of those with mixed outcomes."""
    chosen = choose(scores_of([row(2, 5, 0, 5)] * 20), rule="learn", budget=0.1)
    assert chosen.settings["texts"]["rule"].startswith("keeps 10 % of the samples: those")


def test_coverage_spreads_the_budget_over_groups() -> None:
    rows = [row(2, 5, 0, 5, source="many")] * 30 + [row(1, 5, 0, 5, source="few")] * 10
    options = {"rule": "learn", "budget": 0.25, "guard_hurt": 0, "guard_attention": 0}
    plain = choose(scores_of(rows), coverage=False, **options)
    assert set(plain.table["source"].filter(pa.array(plain.kept)).to_pylist()) == {"many"}
    spread = choose(scores_of(rows), coverage_by="source", **options)
    kept = Counter(spread.table["source"].filter(pa.array(spread.kept)).to_pylist())
    assert kept["few"] >= 4
    assert [g["group"] for g in learned(spread)["coverage"]["groups"]] == ["many", "few"]


@pytest.mark.parametrize(
    "options",
    [
        {"guard_hurt": 0.6, "guard_attention": 0.5},
        {"biased": "report", "guard_attention": 0.1},
        {"guard_hurt": 1.5},
        {"coverage": False, "coverage_by": "source"},
        {"coverage_by": "nowhere"},
        {"trivial": 0.3},  # it kept such samples, and called others dropped for it
        {"order": "gain"},
        {"readmit_hurt": True},
        {"rule": "budget", "guard_hurt": 0.1},
        {"rule": "budget", "coverage": False},
        {"rule": "paper", "coverage_by": "source"},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(RapConfigError):
        choose(scores_of([row(2, 5, 0, 5)] * 20), **({"rule": "learn"} | options))


def test_guards_of_groups_leave_each_other_room() -> None:
    """Of two places of group a both went to the one guard, as no other group had a
    candidate, and a third to the other: five of four were kept."""
    rows = [row(2, 5, 0, 5, log_psi=3.0, source="a")] * 2
    rows += [row(1, 5, 4, 5, log_psi=-3.0, source="a")] * 2
    rows += [row(2, 5, 0, 5, log_psi=-3.0, source=s) for s in "bbcc"]
    halves = {"guard_attention": 0.5, "guard_hurt": 0.5, "lambda_a": 1.0}
    found = choose(scores_of(rows), rule="learn", budget=0.5, by="source", **halves)
    assert len(found) == 4
    assert found.counts()["kept_guard"] == 2
    assert [g["kept"] for g in found.settings["groups"]] == [2, 1, 1]


OF_GROUPS = [
    row(2, 5, 0, 5, log_psi=3.0),
    row(1, 5, 4, 5),
    row(2, 5, 0, 5),
    row(0, 5, 0, 5),
]
"""Attention-biased, hurt by the image, of the main part, unsolved."""


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.75])
def test_every_group_keeps_what_it_is_to_keep(budget: float) -> None:
    """No more, and less only where it has no other solved sample; in 300 tables."""
    rng = np.random.default_rng(16)
    guards = {"guard_attention": 0.5, "guard_hurt": 0.5, "lambda_a": 1.0}
    for _ in range(100):
        kinds = [rng.choice(4, 2, p=(0.3, 0.3, 0.3, 0.1)) for _ in range(4)]
        rows = [(int(rng.choice(kinds[g])), "abcd"[g]) for g in rng.integers(4, size=16)]
        scores = scores_of([OF_GROUPS[kind] | {"source": source} for kind, source in rows])
        found = choose(scores, rule="learn", budget=budget, by="source", **guards)
        told = found.settings["groups"]
        assert sum(g["target"] for g in told) <= budget_size(budget, len(rows))
        for group in told:
            solved = sum(s == group["group"] and kind < 3 for kind, s in rows)
            assert group["kept"] == min(group["target"], solved)


def test_the_report_says_the_same_of_one_group_and_of_several() -> None:
    """Of several it told of trivial samples, which the rule does not replace."""
    from rap.report.page import render

    rows = [row(2, 5, 0, 5, source="ab"[i % 2]) for i in range(20)]
    for by in (None, "source"):
        page = render(choose(scores_of(rows), rule="learn", budget=0.5, by=by))
        assert "<b>10 of 20</b><span>samples with mixed outcomes kept" in page
        assert "trivial samples" not in page


@pytest.mark.parametrize("option", ["by", "coverage_by"])
def test_a_column_of_two_types_is_told_by_its_option(tmp_path, option: str) -> None:
    one = {"question": "?", "answer": "1", "image": "a.png"}
    rows = [one | {"id": f"s{i}", "kind": [1] if i < 10 else "x"} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = open_samples(tmp_path / "data.jsonl")
    scores = dataclasses.replace(scores_of([row(2, 5, 0, 5)] * 20), dataset=data)
    with pytest.raises(RapConfigError, match=f"^{option} = 'kind': the column mixes types"):
        choose(scores, rule="learn", budget=0.5, **{option: "kind"})


def test_a_default_that_does_not_fit_is_called_one() -> None:
    rows = scores_of([row(2, 5, 0, 5)] * 20)
    with pytest.raises(RapConfigError) as error:
        choose(rows, rule="learn", guard_hurt=1, biased="drop")
    assert str(error.value) == (
        "guard_attention = 0.1 (the default) and guard_hurt = 1: their sum is above 1"
    )
    said = choose(rows, rule="learn", budget=0.5).summary()
    assert "column rank_key)" in said and "order=" not in said  # no option says it


def test_groups_of_a_column_have_budgets_of_their_own() -> None:
    rows = [row(2, 5, 0, 5, source="ab"[i % 2]) for i in range(20)]
    selection = choose(scores_of(rows), rule="learn", budget=0.2, by="source")
    assert [g["kept"] for g in selection.settings["groups"]] == [2, 2]
    said = selection.summary()
    assert "source = a: 2 of 10" in said
    told = [g["learned"] for g in selection.settings["groups"]]
    mixed, main = (sum(one[name] for one in told) for name in ("mixed", "main"))
    assert f"mixed outcomes: {mixed} samples; the main part keeps {main}" in said
    targets = sum(one["guard"]["hurt"]["target"] for one in told)
    assert f"guard, hurt by the image: 0 of {targets}" in said and "coverage" in said


def test_small_groups_have_the_guard_of_the_whole_by_largest_remainder() -> None:
    """Each of 40 groups keeps 3 of 30, a guard of 0.3: 36 of 120, one in most groups."""
    rows = [row(2, 5, 0, 5, source=f"s{g}") for g in range(40) for _ in range(20)]
    rows += [row(1, 5, 5, 5, source=f"s{g}") for g in range(40) for _ in range(10)]
    options = {"rule": "learn", "budget": 0.1, "guard_hurt": 0.3, "coverage": False}
    for by in (None, "source"):
        found = choose(scores_of(rows), **options, by=by)
        assert reasons(found).count("kept_guard") == 36
        assert sum(r in KEPT for r in reasons(found)) == 120
    sizes = [g["learned"]["guard"]["hurt"]["target"] for g in found.settings["groups"]]
    assert sorted(sizes) == [0] * 4 + [1] * 36  # 0.9 of each, rounded down, are none
    rows[-10:] = [row(2, 5, 0, 5, source="s39")] * 10  # none: its place is another's
    rows[-11] = row(2, 5, 5, 5, source="s38")  # worth more than (1, 5, 5, 5)
    found = choose(scores_of(rows), **options, by="source")
    told = [g["learned"]["guard"]["hurt"] for g in found.settings["groups"]]
    assert sum(one["kept"] for one in told) == 36
    assert told[39] == {"target": 0, "candidates": 0, "kept": 0}
    assert told[38]["kept"] == 1  # of equal remainders the one with most to guard


# ---------------------------------------------------------------- states and clusters


def with_states(rows: list[dict], states: np.ndarray) -> Scores:
    return scores_of([r | {COLUMN: b} for r, b in zip(rows, packed(states), strict=True)])


def blobs(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = rng.integers(0, k, n)
    centres = 5 * rng.normal(size=(k, WIDTH))
    return centres[place] + 0.1 * rng.normal(size=(n, WIDTH)), place


def test_clusters_find_groups_that_stand_apart() -> None:
    states, place = blobs(300, 5)
    scores = with_states([row(2, 5, 0, 5)] * 300, states)
    found = clusters_of(scores.reader, 5)
    assert found.known == 300
    pairs = set(zip(found.code.tolist(), place.tolist(), strict=True))
    assert len(pairs) == 5
    assert np.bincount(found.code)[:5].tolist() == sorted(np.bincount(place))[::-1]
    again = clusters_of(scores.reader, 5)
    assert np.array_equal(found.code, again.code)


def test_rows_without_a_state_are_a_group_of_their_own() -> None:
    states, _ = blobs(40, 2)
    states[3] = 1e9  # not finite as float16
    scores = with_states([row(2, 5, 0, 5)] * 40, states)
    found = clusters_of(scores.reader, 2)
    assert (found.known, found.k, int(found.code[3])) == (39, 2, 2)
    assert clusters_of(scores_of([row(2, 5, 0, 5)] * 4).reader).known == 0
    same = with_states([row(2, 5, 0, 5)] * 9, np.ones((9, WIDTH)))
    assert clusters_of(same.reader).k == 1


def test_clusters_are_fitted_to_few_and_given_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, place = blobs(1000, 4)
    scores = with_states([row(2, 5, 0, 5)] * 1000, states)
    monkeypatch.setattr("rap.selection.clusters.FIT", 100)
    found = clusters_of(scores.reader, 4)
    assert len(set(zip(found.code.tolist(), place.tolist(), strict=True))) == 4


def test_kmeans_gives_as_many_centres_as_there_are_points() -> None:
    x = np.array([[0.0, 0], [0, 0], [1, 0], [1, 0], [5, 5]])
    assert sorted(map(tuple, kmeans(x, 8))) == [(0, 0), (1, 0), (5, 5)]


def test_states_survive_the_column() -> None:
    states, _ = blobs(7, 2)
    column = pa.chunked_array([pa.array(packed(states), pa.binary(2 * WIDTH))])
    rows, back = states_of(column.slice(2, 3))
    assert rows.tolist() == [0, 1, 2]
    largest = np.abs(states[2:5]).max(axis=1, keepdims=True)
    assert (np.abs(back - states[2:5]) <= largest / 2**BITS).all()
    assert packed(states * (1 + 1e-9)) == packed(states)  # as another batch rounds
    assert signs(5).shape == (5, WIDTH)
    assert np.allclose((signs(64) ** 2).sum(axis=1), 1)


def test_coverage_goes_by_hidden_states_where_there_are_some(tmp_path) -> None:
    states, place = blobs(60, 3)
    rows = [row(2 if p else 1, 5, 0, 5) for p in place]
    scores = with_states(rows, states)
    selection = choose(scores, rule="learn", budget=0.2, coverage=True)
    told = learned(selection)["coverage"]
    assert (told["by"], told["of"]) == ("8 clusters of hidden states", "main")
    usual = choose(scores, rule="learn", budget=0.2)
    assert learned(usual)["coverage"]["of"] == "guards" and "in the guards" in (
        usual.summary()
    )
    assert 0 not in place[usual.indices]  # p (1 - p) is less there
    assert set(place[selection.indices]) == {0, 1, 2}
    selection.save(tmp_path)
    again = load(tmp_path)
    assert again.table.equals(selection.table)
    assert again.settings["choose"]["rule"] == "learn"
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    choose(scores, rule="learn", budget=0.2, coverage=True).save(tmp_path)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_rule_learn_takes_few_bytes_a_row() -> None:
    """Beyond what the table holds: no Python object for each."""
    import tracemalloc

    n = 200_000
    rng = np.random.default_rng(0)
    c = rng.integers(0, 6, (2, n)).astype(np.int16)
    base = table_from_rows([{"id": "x", "index": 0} | row(1, 5, 0, 5)]).take([0] * n)
    columns = {
        "id": pa.array(np.arange(n)).cast(pa.string()),
        "index": pa.array(np.arange(n)),
        "c1": pa.array(c[0]),
        "c0": pa.array(c[1]),
        COLUMN: pa.array(packed(rng.normal(size=(n, WIDTH))), pa.binary(2 * WIDTH)),
    }
    for name, column in columns.items():
        base = base.set_column(base.schema.get_field_index(name), name, column)
    scores = Scores(base)
    choose(scores, rule="learn", budget=0.1)
    tracemalloc.start()
    selection = choose(scores, rule="learn", budget=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(selection) == n // 10
    assert peak < 120e6


def test_the_state_of_a_prompt_is_the_mean_over_its_tokens() -> None:
    """Whatever side is padded, and though padding holds NaN."""
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from rap.model.states import keep

    class Sequence(SimpleNamespace):
        def __len__(self) -> int:
            return self.n_prompt + self.response

    def prepared(prompt: int, response: int) -> Sequence:
        shared = SimpleNamespace(n_images=1, state=None)
        return Sequence(n_prompt=prompt, response=response, shared=shared)

    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 6)
    for side in ("right", "left"):
        batch = [prepared(3, 2), prepared(2, 1)]
        first = torch.full((2, 5, 6), float("nan"))
        for k, one in enumerate(batch):
            start = 5 - len(one) if side == "left" else 0
            first[k, start : start + len(one)] = tokens[k, : len(one)]
        keep(batch, SimpleNamespace(first=first), side)
        wanted = [tokens[0, :3].mean(0), tokens[1, :2].mean(0)]
        for one, mean in zip(batch, wanted, strict=True):
            assert np.allclose(one.shared.state, mean.numpy() @ signs(6), atol=1e-5)
        kept = batch[0].shared.state
        keep(batch, SimpleNamespace(first=first + 1), side)
        assert batch[0].shared.state is kept  # read once


def test_text_without_an_image_keeps_no_state() -> None:
    pytest.importorskip("torch")
    from types import SimpleNamespace

    from rap.model.states import keep

    shared = SimpleNamespace(n_images=0, state=None)
    keep(
        [SimpleNamespace(shared=shared)], SimpleNamespace(first=np.zeros((1, 2, 3))), "left"
    )
    assert shared.state is None


def test_it_always_fills_so_no_replacement_cannot_be_asked() -> None:
    scores = scores_of([row(2, 5, 0, 5)] * 10)
    with pytest.raises(RapConfigError, match="replace = False"):
        choose(scores, rule="learn", budget=0.5, replace=False)


def test_what_is_said_of_groups_is_of_all_of_them() -> None:
    mixed, solved = row(2, 5, 0, 5), row(5, 5, 0, 5)
    table = scores_of([mixed] * 10 + [solved] * 10).table
    kind = pa.array(["a"] * 10 + ["b"] * 10)
    scores = Scores(table.append_column("kind", kind))
    chosen = choose(scores, rule="learn", budget=0.5, by="kind")
    assert any(w.startswith("5 of the kept are not known") for w in chosen.warnings)
    assert not any("no sample is known" in text for text in chosen.warnings)
