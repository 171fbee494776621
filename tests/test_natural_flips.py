"""benchmarks/natural_world: forms of psi and their table on made-up attention, and how a
response is put together; no model and no font is needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.metrics import auroc
from rap import reference

torch = pytest.importorskip("torch")

from benchmarks.natural_world import flip_table, flips  # noqa: E402


def causal(rng: np.random.Generator, heads: int, length: int) -> np.ndarray:
    logits = rng.normal(size=(heads, length, length)) * 2
    logits[:, ~np.tril(np.ones((length, length), bool))] = -np.inf
    w = np.exp(logits - logits.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


@pytest.mark.parametrize(("normalise", "min_rows"), [(True, 8), (False, 1), (True, 3)])
def test_psi_is_the_references(rng, normalise, min_rows):
    q, k = rng.normal(size=(3, 20, 4)), rng.normal(size=(3, 20, 4))
    mask = rng.random(20) < 0.7
    found = reference.ace_sample(
        q,
        k,
        response_start=7,
        normalise=normalise,
        min_rows=min_rows,
        column_mask=mask,
    )
    w = reference.attention(q, k).mean(0)[7:]
    allowed = mask & (np.arange(20) >= 7)
    psi, count = flip_table.log_psi(w, allowed, normalise=normalise, min_rows=min_rows)
    np.testing.assert_allclose(psi, found["log_psi_columns"][0], rtol=1e-9)
    assert flip_table.best(psi) == pytest.approx(found["log_psi"][0])
    assert count.tolist() == [13] * 7 + list(range(13, 0, -1))


def flip(
    rng: np.random.Generator, number: int, changed: bool, loud: float
) -> flip_table.Flip:
    """A made-up sample; ``loud``: weight of its sentence in the last layer's rows."""
    length, rows = 24, 10
    a = np.stack([causal(rng, 2, length)[:, -rows:] for _ in range(3)])
    sentence = np.arange(length) // 3 == 1
    a[-1] *= (1 - loud) / a[-1][..., ~sentence].sum(-1, keepdims=True)
    a[-1][..., sentence] = loud / 3
    masks = {"sentence": sentence, "question": np.arange(length) // 3 == 2}
    masks["image"] = np.arange(length) < 3
    word = np.arange(length) % 5 != 0
    cut = (changed, False)
    plain = np.arange(length) > 0
    said = (masks, changed, 0.5 * changed, cut, changed, -0.4, 0.3)
    return flip_table.Flip(number, number % 6, a, word, plain, *said)


def test_the_table_finds_what_decides_and_nothing_else(rng):
    made = []
    for number in range(72):
        changed = bool(rng.random() < 0.5)
        made.append(flip(rng, number, changed, rng.uniform(0.1, 0.4) + 0.3 * changed))
    assert {f.first for f in made[:6]} == {True} and {f.first for f in made[6:12]} == {
        False
    }
    rows = flip_table.table(made)
    assert {r["class"] for r in rows} == set(flip_table.CLASSES)
    by = {r["form"]: r for r in rows if r["class"] == "sentence"}
    assert flip_table.passes(by["mass on the sentence"])
    chosen = by["mass on the sentence, layer and head chosen"]
    assert chosen["chosen"].startswith("layer 2") and flip_table.passes(chosen)
    assert by["length"]["auroc"] == 0.5 and by["mean log-probability"]["auroc"] == 0.5
    # what is on the sentence is missing elsewhere: psi of the response says the opposite
    assert by["psi, ours"]["auroc"] < 0.35 and not flip_table.passes(by["psi, ours"])
    mine = [r for r in rows if r["form"] in ("psi, ours", "mass on the sentence")]
    result = flip_table.report(made, mine).split("## Result")[1]
    assert "on the second half itself: none of 3 reaches 0.65" in result
    assert "3 of 3 reach it: mass on the sentence (sentence)" in result
    assert "Too few of one kind to decide: loud." in result
    flags = flip_table.flagged(made)
    assert flags.startswith("The published limit (psi > 0.1) flags ") and "of 72" in flags


def test_usual_and_corrected(rng):
    one = flip(rng, 0, False, 0.2)
    expected = flip_table.usual([one])
    assert np.isnan(expected[: flip_table.FEW]).all() and np.isfinite(expected[3:]).all()
    every = np.ones(24, bool)
    assert flip_table.corrected(one, expected, every) == pytest.approx(0)
    assert flip_table.corrected(one, expected - 1.0, every) == pytest.approx(1)
    assert np.isnan(flip_table.corrected(one, expected, ~every))


def test_an_interval_is_that_of_drawing_again(rng):
    truth = np.array([True] * 20 + [False] * 30)
    score = np.round(truth + rng.normal(size=50), 1)  # some are equal
    found = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(20, 20), 20 + rng.choice(30, 30)])
        found.append(auroc(score[rows], truth))
    expected = np.percentile(found, [2.5, 97.5])
    np.testing.assert_allclose(flip_table.interval(score, truth), expected, atol=0.02)


def test_an_interval_holds_its_value_and_a_direction_is_found(rng):
    truth = rng.random(200) < 0.4
    score = truth + rng.normal(size=200)
    rated = flip_table.rate(score, truth)
    assert rated["low"] < rated["auroc"] < rated["high"] and rated["unknown"] == 0
    assert flip_table.rate(-score, truth, -1.0)["auroc"] == rated["auroc"]
    assert flip_table.choose({"noise": np.zeros(200), "less": -score}, truth) == (
        "less",
        -1,
    )
    score[:50] = np.nan
    assert flip_table.rate(score, truth)["unknown"] == 50
    assert np.isnan(flip_table.interval(np.ones(3), np.ones(3, bool))).all()


def row(*tokens: int, answers: tuple[int, ...] = ()) -> tuple[flips.Said, list[int]]:
    """A response of a model that would say ``tokens``, then ``answers`` behind the close
    (100, 101); 9 is a full stop, 0 the end."""
    asker = SimpleNamespace(stops={9, 0}, end=0, close=[100, 101])
    made = flips._Row(asker)
    given, own = [], list(tokens)
    while not made.done:
        if made.described is not None and len(made.ids) - made.described >= 2:
            behind = len(made.ids) - made.described - 2
            best = answers[behind] if behind < len(answers) else 0
        else:
            best = own[len(given)] if len(given) < len(own) else 0
        logp = torch.full((200,), -5.0)
        logp[best] = -0.5
        given.append(made.take(logp))
    return made.said(), given


def test_a_description_ends_at_its_full_stop_and_the_answer_is_its_own():
    said, _ = row(1, 9, 2, 3, 4, 5, 6, 7, 9, 8, answers=(50, 9))
    assert said.ids == [1, 9, 2, 3, 4, 5, 6, 7, 9, 100, 101, 50]
    assert said.described == 9 and int(said.logits.argmax()) == 50
    assert said.logp == [-0.5] * 10  # not of the words put behind


def test_a_short_description_and_an_endless_one():
    said, _ = row(1, 2, answers=(50, 51))
    assert said.ids == [1, 2, 100, 101, 50, 51] and said.described == 2
    said, _ = row(*[7] * 99, answers=tuple([60] * 99))
    assert said.described == flips.MOST
    assert said.ids[flips.MOST :] == [100, 101] + [60] * flips.ANSWER


def test_colours_of_answers():
    assert flips.colour_of(" likely Grey.") == "gray"
    assert flips.colour_of(" a red and blue cup") == "red"
    assert flips.colour_of(" reddish") is None
