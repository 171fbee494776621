"""Evidence cascade: its settings, and its stages with scripted completions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cascade_inputs import Scripted, asking_of, beta, jobs_of
from click.testing import CliRunner

import rap
from rap.cli.commands import main
from rap.config import ScoreConfig
from rap.errors import RapConfigError
from rap.model.rollouts import BLIND_ARM, IMAGE_ARM
from rap.scores.fingerprint import in_words, other_run
from rap.scores.posterior import Arm, keep_probability, prob_above
from rap.scoring.asking import Asking, Floor, looks, share_of
from rap.scoring.evidence import EVIDENCE

# ---- stages --------------------------------------------------------------------------


def staged(said, outlook=None, **settings):
    """(jobs by id, the scorer) after all stages; no sample is of the pilot."""
    config = ScoreConfig(evidence="cascade", **{"cascade_pilot": 0.0} | settings)
    scorer = Scripted(config, said)
    jobs = jobs_of(said, asking_of(config, **(outlook or {})))
    EVIDENCE["cascade"].score(scorer, jobs)
    return {job.row["id"]: job for job in jobs}, scorer


def counts_of(job):
    return tuple(job.row[name] for name in ("c1", "m1", "c0", "m0"))


def test_looks_name_every_completion_once():
    for m in range(1, 8):
        for first in (1, 2, 3):
            for start in range(m + 1):
                got = [k for r in looks(m, first, start) for k in r]
                assert got == list(range(start, m))
    assert list(looks(4, 2)) == [range(0, 2), range(2, 3), range(3, 4)]
    assert list(looks(1, 2)) == [range(0, 1)]


def test_completions_stop_where_they_decide():
    said = {
        "solved": {IMAGE_ARM: "+++++", BLIND_ARM: "-----"},
        "never": {IMAGE_ARM: "-----", BLIND_ARM: "-----"},
        "at once": {IMAGE_ARM: "+-+++", BLIND_ARM: "-----"},
        "late": {IMAGE_ARM: "----+", BLIND_ARM: "+++++"},
    }
    jobs, scorer = staged(said, m1=5, m0=4, cascade_sure=0.8)
    assert counts_of(jobs["solved"]) == (5, 5, 0, 0)
    assert counts_of(jobs["never"]) == (0, 5, 0, 0)
    assert {jobs[n].row["decided_by"] for n in ("solved", "never")} == {"image"}
    assert {jobs[n].row["decided_by"] for n in ("at once", "late")} == {"text"}
    assert counts_of(jobs["at once"])[:2] == (1, 2)
    assert counts_of(jobs["late"])[:2] == (1, 5)
    assert scorer.traced == ["solved", "at once", "late"]  # those with a right one
    image = [(ids, numbers) for arm, ids, numbers in scorer.asked if arm == IMAGE_ARM]
    assert image == [
        (tuple(said), (0, 1)),
        (("solved", "never", "late"), (2,)),
        (("solved", "never", "late"), (3,)),
        (("solved", "never", "late"), (4,)),
    ]
    for name in ("at once", "late"):  # as many without the image as the rule asks for
        c1, m1, _, _ = counts_of(jobs[name])
        texts, needed = said[name][BLIND_ARM], 0
        for needed in range(1, 5):
            c0 = texts[:needed].count("+")
            arms = [Arm(np.array([c]), np.array([m])) for c, m in ((c1, m1), (c0, needed))]
            if needed == 4 or not 0.2 < prob_above(*arms)[0] < 0.8:
                break
        assert counts_of(jobs[name])[2:] == (c0, needed), name
        assert 0 < needed


def test_a_prior_alone_settles_no_sign():
    said = {"s": {IMAGE_ARM: "++-++", BLIND_ARM: "-----"}}
    sure = {"one": (20, 1), "zero": (0.1, 20)}
    jobs, scorer = staged(said, sure, cascade_sure=0.7)
    assert counts_of(jobs["s"]) == (2, 3, 0, 1)  # uniform priors ask for more
    assert jobs["s"].row["decided_by"] == "text"
    assert scorer.traced == ["s"]


def test_nothing_is_asked_below_the_floor():
    """Of a sample that is never right the keep-probability falls with every look."""
    said = {"s": {IMAGE_ARM: "-----", BLIND_ARM: "-----"}}
    keep = [float(keep_after(0, m, 0, 0)) for m in range(6)]
    assert keep == sorted(keep, reverse=True)
    for floor, m1 in ((keep[0] + 1e-6, 0), (keep[2] + 1e-6, 2), (keep[4] + 1e-6, 4)):
        jobs, scorer = staged(said, {"floor": floor}, m1=5)
        if m1 == 0:
            assert jobs["s"].row["decided_by"] == "answer" and "m1" not in jobs["s"].row
            assert not any(ids for _, ids, _ in scorer.asked)
            continue
        assert counts_of(jobs["s"]) == (0, m1, 0, 0)
        assert jobs["s"].row["decided_by"] == "image" and scorer.traced == []
    said = {"s": {IMAGE_ARM: "+-", BLIND_ARM: "+++++"}}
    floor = float(keep_after(1, 2, 2, 2)) + 1e-6  # the image is of no use
    assert keep_after(1, 2, 1, 1) > floor
    jobs, scorer = staged(said, {"floor": floor}, cascade_sure=0.999)
    assert counts_of(jobs["s"]) == (1, 2, 2, 2)


def keep_after(c1: int, m1: int, c0: int, m0: int) -> np.ndarray:
    arms = (Arm(np.array([c]), np.array([m])) for c, m in ((c1, m1), (c0, m0)))
    return keep_probability(*arms, 0.0, 8)[0]


def test_the_pilot_is_asked_whatever_p_answer_says():
    said = {
        "alike": {IMAGE_ARM: "+++++", BLIND_ARM: "+++++"},
        "mixed": {IMAGE_ARM: "+-", BLIND_ARM: "-----"},
    }
    never = {"floor": 0.99}
    jobs, scorer = staged(said, never, cascade_pilot=1.0)
    assert [counts_of(job) for job in jobs.values()] == [(2, 2, 1, 1), (1, 2, 0, 1)]
    assert {job.row["decided_by"] for job in jobs.values()} == {"pilot"}
    assert scorer.traced == ["alike", "mixed"]
    jobs, scorer = staged(said, {"floor": 0.3}, cascade_pilot=1.0, cascade_sure=0.9)
    assert counts_of(jobs["alike"])[1] > 2 and counts_of(jobs["alike"])[2:] == (1, 1)
    assert counts_of(jobs["mixed"])[:3] == (1, 2, 0) and jobs["mixed"].row["m0"] > 1
    blind = [(ids, k) for arm, ids, k in scorer.asked if arm == BLIND_ARM and ids]
    assert blind[0] == (("alike", "mixed"), (0,))
    assert {ids for ids, _ in blind[1:]} == {("mixed",)}


def test_samples_that_are_alike_are_drawn_by_lot():
    """Of those between the two floors a share, told by the id, whatever the batch."""
    config = ScoreConfig(evidence="cascade", cascade_pilot=0.0)
    said = {f"s{i}": {IMAGE_ARM: "+++++", BLIND_ARM: "-"} for i in range(60)}
    asking = Asking(config, Floor(0.1, 0.9, 0.4), beta(1, 1), beta(1, 1))
    jobs = jobs_of(said, asking)
    EVIDENCE["cascade"].score(Scripted(config, said), jobs)
    drawn = {job.row["id"] for job in jobs if job.row.get("m1")}
    assert drawn == {name for name in said if share_of(0, name, "lot") < 0.4}
    assert 10 < len(drawn) < 40


def test_quarantine_in_each_stage():
    said = {
        "image fails": {IMAGE_ARM: "+-", BLIND_ARM: "--"},
        "text fails": {IMAGE_ARM: "+-", BLIND_ARM: "--"},
        "psi fails": {IMAGE_ARM: "+-", BLIND_ARM: "--"},
        "empty": {IMAGE_ARM: "00", BLIND_ARM: "--"},
        "image ungraded": {IMAGE_ARM: "??", BLIND_ARM: "--"},
        "text ungraded": {IMAGE_ARM: "+-", BLIND_ARM: "??"},
        "good": {IMAGE_ARM: "+-", BLIND_ARM: "?-"},
    }
    settings = {"m1": 2, "m0": 2, "cascade_sure": 0.99, "cascade_pilot": 0.0}
    config = ScoreConfig(evidence="cascade", **settings)
    scorer, jobs = Scripted(config, said), jobs_of(said, asking_of(config))
    scorer.fails = {
        "image fails": IMAGE_ARM,
        "text fails": BLIND_ARM,
        "psi fails": "forward",
    }
    EVIDENCE["cascade"].score(scorer, jobs)
    codes = {j.row["id"]: (j.row.get("stage"), j.row.get("code")) for j in jobs}
    assert codes == {
        "image fails": ("model", "oom"),
        "text fails": ("model", "oom"),
        "psi fails": ("model", "nonfinite"),
        "empty": ("model", "empty_response"),
        "image ungraded": ("check", "verifier_error"),
        "text ungraded": ("check", "verifier_error"),
        "good": (None, None),
    }
    bad = [job.row for job in jobs if not job.alive]
    assert len(bad) == 6
    for row in bad:
        assert row["forwards"] == 2  # what p(answer) has cost is kept, its scores are not
        assert not {"p_answer1", "c1", "decided_by"} & set(row)
    assert counts_of(jobs[-1]) == (1, 2, 0, 1)  # the one not graded is not counted


# ---- settings ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaptive", "screen_lambda_c", "cascade_share"])
def test_removed_options_name_what_stands_in_their_place(name):
    with pytest.raises(RapConfigError, match=f"{name}: .*cascade") as python:
        ScoreConfig(**{name: 0.5})
    with pytest.raises(RapConfigError, match=f"{name}: .*cascade"):
        rap.select(None, None, [], **{name: 0.5})
    assert name not in {f.name for f in dataclasses.fields(ScoreConfig)}
    option = "--" + name.replace("_", "-")
    said = str(python.value).removeprefix(f"{name}: ")
    for command in ("score", "select"):
        found = CliRunner().invoke(main, [command, "data.jsonl", option, "0.5"])
        assert found.exit_code == 2
        assert found.output == f"rap: error: {option}: {said}\n"


def test_settings_of_the_cascade_are_in_its_fingerprint_alone():
    names = {"cascade_completions", "cascade_pilot", "cascade_sure"}
    assert names <= set(ScoreConfig(evidence="cascade").fingerprint())
    for evidence in ("rollouts", "answer", "logits"):
        assert not names & set(ScoreConfig(evidence=evidence).fingerprint())


@pytest.mark.parametrize("evidence", ["logits", "answer"])
def test_a_store_of_other_evidence_is_no_earlier_cascade(evidence):
    """What a default of before has filled: how to go on with it, and nothing else."""
    ours, theirs = (ScoreConfig(evidence=e).fingerprint() for e in ("cascade", evidence))
    for a, b in ((ours, theirs), (theirs, ours)):
        lines = other_run({"fingerprint": {"config": a}}, {"fingerprint": {"config": b}})
        said = "; ".join(map(in_words, lines))
        assert said.startswith("config.evidence: ") and len(lines) == 1
        assert "two passes" not in said and f"evidence='{b['evidence']}' goes on" in said
