"""Re-selection from pass counts: rap.selection.reselection."""

from __future__ import annotations

import numpy as np
import pytest

import rap
from rap.errors import RapConfigError, RapInputError
from rap.selection.reselection import WHY, ReselectConfig, decide, pass_counts, reselect

# id: correct of 5 with the image, of 5 without it
POOL = {
    "a": (3, 0),
    "b": (4, 0),
    "c": (3, 0),
    "d": (4, 0),
    "hard": (1, 1),
    "harder": (1, 0),
    "easy": (5, 5),
    "never": (0, 0),
    "prior": (3, 3),
    "hurt": (2, 5),
}


def completions(pool: dict[str, tuple[int, int]]) -> list[dict]:
    return [
        {"id": name, "with_image": arm, "correct": k < (c1 if arm else c0)}
        for name, (c1, c0) in pool.items()
        for arm in (True, False)
        for k in range(5)
    ]


@pytest.fixture
def first() -> rap.Selection:
    """a, b, c and d are kept, b and d before a and c."""
    scores = rap.Scores.from_rollouts(completions(POOL))
    selection = rap.choose(scores, budget=0.4)
    assert selection.ids == ["a", "b", "c", "d"]
    return selection


def why(selection: rap.Selection) -> dict[str, str]:
    table = selection.table
    pairs = zip(table["id"].to_pylist(), table["why"].to_pylist(), strict=True)
    return {name: code for name, code in pairs if code is not None}


def reasons(selection: rap.Selection) -> dict[str, str]:
    table = selection.table
    return dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_an_empty_log_changes_nothing(first):
    again = reselect(first, {})
    assert again.ids == first.ids
    assert reasons(again) == reasons(first)
    assert why(again) == {"b": "stays_first", "a": "stays", "c": "stays", "d": "stays"}


def test_what_became_trivial_leaves_and_the_hardest_come_in(first):
    again = reselect(first, {"a": (8, 8), "c": (16, 16)}, ReselectConfig(keep=0.25))
    assert again.ids == ["b", "d", "hard", "harder"]
    assert why(again)["a"] == why(again)["c"] == "leaves_trivial"
    assert why(again)["hard"] == why(again)["harder"] == "comes_harder"
    assert reasons(again)["a"] == "dropped_trivial"
    assert reasons(again)["hard"] == "kept_replacement"
    assert again.settings["reselect"]["counts"]["comes_harder"] == 2


def test_only_the_hardest_come_in_the_larger_D_first(first):
    # hard and harder are equally hard; the image helps only with harder
    again = reselect(first, {"a": (8, 8)})
    assert again.ids == ["b", "c", "d", "harder"]


def test_what_is_never_solved_in_training_leaves(first):
    again = reselect(first, {"a": (0, 8)})
    assert why(again)["a"] == "leaves_unsolved"
    assert reasons(again)["a"] == "dropped_unsolved"


def test_the_limits_themselves_count(first):
    """At most ``trivial``, at least ``unsolved``; binary fractions, which are exact."""
    config = ReselectConfig(keep=0.0, trivial=0.25, unsolved=0.75)
    gone = why(reselect(first, {"a": (6, 8), "b": (2, 8)}, config))
    assert gone["a"] == "leaves_trivial" and gone["b"] == "leaves_unsolved"
    config = ReselectConfig(keep=0.0, trivial=0.24, unsolved=0.76)
    stay = why(reselect(first, {"a": (6, 8), "b": (2, 8)}, config))
    assert stay["a"] == stay["b"] == "stays"
    for enough, code in ((8, "leaves_trivial"), (8.5, "stays")):
        config = ReselectConfig(keep=0.0, enough=enough)
        assert why(reselect(first, {"a": (8, 8)}, config))["a"] == code


def test_a_share_that_is_a_decimal_is_one():
    """0.29 of 100 are 29, though 0.29 * 100 is 28.999999999999996."""
    pool = {f"s{i}": (3, 0) for i in range(100)}
    scores = rap.Scores.from_rollouts(completions(pool))
    selection = rap.choose(scores, budget=1.0)
    everything = {name: (8, 8) for name in pool}
    again = reselect(selection, everything, ReselectConfig(keep=0.29))
    assert list(why(again).values()).count("stays_first") == 29
    again = reselect(selection, everything, ReselectConfig(keep=0.295))  # rounded down
    assert list(why(again).values()).count("stays_first") == 29


def test_too_few_completions_say_nothing(first):
    assert reselect(first, {"a": (3, 3), "c": (0, 3)}).ids == first.ids


def test_barred_and_quarantined_samples_never_come_in(first):
    pool = dict.fromkeys(first.ids, (8, 8))
    again = reselect(first, pool | {"never": (4, 8)}, ReselectConfig(keep=0))
    assert "never" not in again.ids
    assert again.ids == ["hard", "harder", "prior", "hurt"]  # easy is trivial by its scores


def test_training_says_how_hard_a_sample_is_that_scoring_found_easy(first):
    again = reselect(first, {"a": (8, 8), "easy": (1, 8)})
    assert again.ids == ["b", "c", "d", "easy"]


def test_a_share_of_the_first_selection_stays_whatever_happens(first):
    everything = dict.fromkeys(first.ids, (8, 8))
    again = reselect(first, everything, ReselectConfig(keep=0.5))
    assert [n for n, code in why(again).items() if code == "stays_first"] == ["b", "d"]
    # those that still teach are kept before those that do not
    again = reselect(first, {"b": (8, 8)}, ReselectConfig(keep=0.25))
    assert why(again)["d"] == "stays_first" and why(again)["b"] == "leaves_trivial"


def test_the_first_selection_is_remembered_over_phases(first):
    config = ReselectConfig(keep=0.25)
    second = reselect(first, dict.fromkeys(("a", "c", "d"), (8, 8)), config)
    third = reselect(second, {"b": (8, 8), "hard": (8, 8)}, config)
    assert third.settings["reselect"]["phase"] == 2
    # of the first selection a, c and d teach again for all this log says: d is the best
    assert why(third)["d"] == "stays_first" and reasons(third)["d"] == "kept_cognitive"
    assert why(third)["harder"] == "stays"
    assert len(third) == len(first)


def test_size_grows_and_shrinks(first):
    assert reselect(first, {}, ReselectConfig(size=2)).ids == ["b", "d"]
    larger = reselect(first, {}, ReselectConfig(size=6))
    assert larger.ids == ["a", "b", "c", "d", "hard", "harder"]
    all_of_it = reselect(first, {}, ReselectConfig(size=10))
    assert all_of_it.settings["reselect"]["counts"]["missing"] == 2  # easy and never
    assert "2 samples fewer than asked" in all_of_it.warnings[-1]


def test_new_scores_bring_the_newly_cognitive_before_the_hard(first):
    pool = POOL | {"prior": (4, 0)}  # the image has begun to matter
    now = rap.choose(rap.Scores.from_rollouts(completions(pool)), budget=0.5)
    again = reselect(first, {"a": (8, 8)}, now=now)
    assert again.ids == ["b", "c", "d", "prior"]
    assert why(again)["prior"] == "comes_cognitive"
    assert reasons(again)["prior"] == "kept_cognitive"


def test_new_scores_of_other_samples_are_refused(first):
    pool = {k: v for k, v in POOL.items() if k != "hurt"}
    now = rap.choose(rap.Scores.from_rollouts(completions(pool)), budget=0.5)
    with pytest.raises(RapInputError, match="of 9 samples, not of the 10"):
        reselect(first, {}, now=now)
    pool = POOL | {"more": (3, 0)}
    now = rap.choose(rap.Scores.from_rollouts(completions(pool)), budget=0.5)
    with pytest.raises(RapInputError, match="of 11 samples, not of the 10"):
        reselect(first, {}, now=now)


def test_what_new_scores_find_trivial_does_not_come_in(first):
    """Though a choice that does not replace trivial samples keeps it."""
    scores = rap.Scores.from_rollouts(completions(POOL | {"easy": (5, 0), "prior": (4, 0)}))
    now = rap.choose(scores, budget=0.4, replace=False, order="gain")
    assert {"easy", "prior"} <= set(now.ids)
    again = reselect(first, {}, ReselectConfig(size=6), now=now)
    assert why(again)["prior"] == "comes_cognitive" and "easy" not in again.ids


def test_old_visits_decay_and_unjudged_ones_are_nothing():
    visits = [("a", 0, 8), ("b", 8, 8), ("a", 0, 0), ("a", 8, 8)]
    assert pass_counts(visits) == {"a": (8.0, 12.0), "b": (8.0, 8.0)}
    assert pass_counts(visits, decay=0) == {"a": (8.0, 8.0), "b": (8.0, 8.0)}
    assert pass_counts(visits, decay=1) == {"a": (8.0, 16.0), "b": (8.0, 8.0)}
    assert pass_counts([("a", 0, 0)]) == {}


@pytest.mark.parametrize("count", [(9, 8), (-1, 8), (float("nan"), 8), (1, float("inf"))])
def test_impossible_counts_are_refused_by_name(first, count):
    with pytest.raises(RapInputError, match="'a' passed"):
        reselect(first, {"a": count})
    with pytest.raises(RapInputError, match="'a' passed"):
        pass_counts([("a", *count)])


def test_an_unknown_id_is_refused_by_name(first):
    with pytest.raises(RapInputError, match=r"1 of 2 samples are not in .* 'zzz'"):
        reselect(first, {"a": (1, 8), "zzz": (1, 8)})


def test_no_sample_left_is_refused():
    scores = rap.Scores.from_rollouts(completions({"a": (3, 0), "b": (5, 5)}))
    selection = rap.choose(scores, budget=0.5)
    with pytest.raises(RapInputError, match="no sample is left"):
        reselect(selection, {"a": (8, 8)})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"keep": 1.5}, "keep = 1.5"),
        ({"decay": float("nan")}, "decay = nan"),
        ({"trivial": 0.9, "unsolved": 0.5}, "every sample would leave"),
        ({"enough": 0}, "enough = 0"),
        ({"size": 0}, "size = 0"),
    ],
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(RapConfigError, match=message):
        ReselectConfig(**setting)


def test_it_saves_loads_and_goes_on(first, tmp_path):
    again = reselect(first, {"a": (8, 8)})
    again.save(tmp_path)
    loaded = rap.load(tmp_path)
    assert loaded.ids == again.ids and why(loaded) == why(again)
    assert reselect(loaded, {"c": (8, 8)}).ids == reselect(again, {"c": (8, 8)}).ids


def test_decisions_are_consistent_and_deterministic(rng):
    """Every row of a random pool against what the rules promise."""
    pool = {f"s{i}": tuple(rng.integers(0, 6, 2)) for i in range(400)}
    first = rap.choose(rap.Scores.from_rollouts(completions(pool)), budget=0.1)
    tried = rng.integers(0, 17, 400)
    passes = {
        f"s{i}": (int(rng.integers(0, t + 1)), int(t)) for i, t in enumerate(tried) if t
    }
    config = ReselectConfig(keep=0.3)
    found = decide(first, passes, config)
    again = decide(first, dict(reversed(passes.items())), config)
    np.testing.assert_array_equal(found.active, again.active)
    assert found.active.sum() == len(first) - found.counts["missing"]
    assert (found.why == "stays_first").sum() == int(0.3 * len(first))
    told = found.tried >= config.enough
    out = told & ((found.difficulty <= 0.05) | (found.difficulty >= 0.95))
    assert not (out & found.active & (found.why != "stays_first")).any()
    came = found.why == "comes_harder"
    never = np.array([pool[f"s{i}"][0] == 0 for i in range(400)])
    left = ~found.active & ~out & ~first.kept & ~never
    left &= told | (found.difficulty > 0)
    assert came.any() and found.difficulty[came].min() >= found.difficulty[left].max()
    assert set(found.why) <= {*WHY, ""}
