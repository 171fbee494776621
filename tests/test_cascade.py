"""Evidence cascade: stages with scripted completions, its rounds with a tiny model."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from click.testing import CliRunner
from model_inputs import png
from scoring_rewards import by_length, sometimes
from tiny_models import build

import rap
from rap.cli.commands import main
from rap.config import Sampling, ScoreConfig
from rap.errors import RapConfigError
from rap.model import kept
from rap.model.rollouts import BLIND_ARM, IMAGE_ARM, Completion
from rap.rewards.checker import Verdict
from rap.samples.sampleset import open_samples
from rap.scores.evidence import read_evidence
from rap.scores.fingerprint import in_words, other_run
from rap.scores.posterior import Arm, Prior, keep_probability, prob_above
from rap.scores.prior import FEATURES, N_FEATURES, WITH_IMAGE, WITHOUT
from rap.scores.profile import Profile
from rap.scores.scores import Scores
from rap.scores.table import ROLLOUT_SCHEMA, VOLATILE_COLUMNS, table_from_rows
from rap.scoring import filling
from rap.scoring.asking import (
    START_FLOOR,
    Asking,
    Floor,
    Rule,
    floor_by_bill,
    in_pilot,
    looks,
    share_of,
)
from rap.scoring.evidence import EVIDENCE
from rap.scoring.jobs import Job
from rap.scoring.plan import Round, folder_of, make_plan, rounds_of, shares
from rap.scoring.run import score
from rap.selection.choosing import choose
from rap.stopwatch import IDLE

FEW = Sampling(max_new_tokens=8)
OPTIONS_OF_ROUNDS = {"evidence": "cascade", "cascade_pilot": 0.3}
OPTIONS = {
    "evidence": "cascade",
    "m1": 4,
    "m0": 3,
    "sampling": FEW,
    "reward": by_length,
    "allow_degenerate": True,
    "shard_size": 5,
    "batch_size": 2,
    "max_bad_fraction": 0.3,
    "progress": False,
    "cascade_completions": 0.4,
    "cascade_pilot": 0.3,
}


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return build("qwen2_5_vl")


def make_rows(n: int) -> list[dict]:
    return [
        {
            "id": f"s{i}",
            "question": "Which number replaces the " + "very " * (i % 6) + f"mark {i}?",
            "answer": "BCA"[i % 3],
            "choices": ["4", "12", "35"],
            "image": {"bytes": png(i), "path": None},
            "source": "ab"[i % 2],
        }
        for i in range(n)
    ]


def stable(table: pa.Table) -> pa.Table:
    return table.drop_columns(list(VOLATILE_COLUMNS))


# ---- completions that are given -----------------------------------------------------


class Scripted:
    """A scorer whose completions are scripted: {id: {arm: "+-0?..."}}, one character a
    completion: right, wrong, empty, not graded."""

    def __init__(self, config: ScoreConfig, said: dict[str, dict[str, str]]) -> None:
        self.config, self.said, self.checker, self.watch = config, said, self, IDLE
        self.reads_psi = True
        self.asked: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = []
        self.traced: list[str] = []
        self.fails: dict[str, str] = {}  # id -> "image" | "counterfactual" | "forward"

    def check_group(self, sample, responses, *, arm):
        error = Verdict(None, "verifier_error", "cannot be graded")
        return [error if r.text == "?" else Verdict(r.text == "+") for r in responses]

    def read(self, jobs, which):
        pass

    def compare_arms(self, jobs, arms, *, attention):
        assert arms == ("answer", "blind_answer") and not attention
        for job in jobs:
            job.row |= KNOWN | {"forwards": 2}
        half = (float(np.log(0.5)), 1)
        return {id(job): {"1": half, "0": half} for job in jobs}

    def generate(self, jobs, arm, numbers, *, greedy=False):
        self.asked.append((arm, tuple(j.row["id"] for j in jobs), tuple(numbers)))
        drawn = {}
        for job in jobs:
            name = job.row["id"]
            if self.fails.get(name) == arm:
                job.quarantine("model", "oom", "generate: out of memory")
            texts = self.said[name][arm]
            drawn[id(job)] = [
                Completion((7, 8), texts[k].replace("0", ""), "stop", k, 3, -1.0)
                for k in numbers
            ]
        return drawn

    def batches(self, jobs):
        yield list(jobs)

    parts = batches

    def fit(self, jobs):
        return True

    def hold(self, jobs, rest):
        pass

    def respond(self, job, arms, ids):
        assert arms == ("image",) and tuple(ids) == (7, 8)

    def forward(self, jobs, which, *, attention):
        assert which == "image" and attention
        for job in jobs:
            if self.fails.get(job.row["id"]) == "forward":
                job.quarantine("model", "nonfinite", "not finite")
        return {id(job): object() for job in jobs}

    def psi(self, jobs, traces):
        self.traced += [job.row["id"] for job in jobs if job.alive]


KNOWN = {"js": 0.1, "entropy1": 1.0, "entropy0": 1.0}
UNIFORM = (1.0, 1.0)


def beta(a: float, b: float) -> tuple[float, ...]:
    """Coefficients by which the prior of every sample is Beta(a, b)."""
    rest = [0.0] * (N_FEATURES - 1)
    return (float(np.log(a)), *rest, float(np.log(b)), *rest)


def asking_of(config, floor=0.0, one=UNIFORM, zero=UNIFORM):
    return Asking(config, Floor(floor, floor, 0.0), beta(*one), beta(*zero))


def jobs_of(said, asking):
    base = {"status": "scored", "forwards": 0, "generated_tokens": 0, "seconds": 0.0}
    return [
        Job(base | {"id": name, "index": i}, asking=asking) for i, name in enumerate(said)
    ]


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


# ---- the plan ---------------------------------------------------------------------


def round_of(rng, places, *, bad=()):
    """A finished round of these samples, all of the pilot, as its store has them."""
    rows, completions = [], []
    for k, i in enumerate(places):
        row = {"id": f"s{i}", "index": k, "evidence": "cascade", "status": "scored"}
        if i in bad:
            rows.append(row | {"status": "quarantined", "stage": "data", "code": "x"})
            continue
        row |= dict(zip(FEATURES, rng.random(len(FEATURES)), strict=True))
        right = rng.random(3) < row["p_answer1"]
        row |= {"c1": int(right[:2].sum()), "m1": 2, "c0": int(right[2]), "m0": 1}
        rows.append(row | {"decided_by": "pilot", "n_drawn": 3})
        for arm, number, ok in zip(
            (IMAGE_ARM, IMAGE_ARM, BLIND_ARM), (0, 1, 0), right, strict=True
        ):
            said = {"arm": arm, "number": number, "correct": bool(ok), "token_ids": [7, 8]}
            completions.append({"id": f"s{i}", "index": k, "seed": number, **said})
    tables = table_from_rows(rows), table_from_rows(completions, ROLLOUT_SCHEMA)
    return Round(np.array(places), *tables, {"groups": len(rows), "degenerate": 1})


def plan_of(rng, n=1000, bad=(), **settings):
    config = ScoreConfig(evidence="cascade", **{"cascade_pilot": 0.0} | settings)
    return make_plan([round_of(rng, range(0, n, 10), bad=bad)], n, config), config


def others(rng, n: int) -> list[dict]:
    """Rows of as many samples as p(answer) leaves them, like those of the rounds."""
    return [
        {"id": f"t{i}", "index": i, "status": "scored", "n_drawn": None}
        | dict.fromkeys(("c1", "m1", "c0", "m0"))
        | dict(zip(FEATURES, rng.random(len(FEATURES)), strict=True))
        for i in range(n)
    ]


def drawn_of(asking, rows):
    return asking.drawn([row["id"] for row in rows], *asking.priors(rows))


def test_the_first_round_begins_with_what_nobody_has_measured():
    config = ScoreConfig(evidence="cascade")
    plan = make_plan([], 1000, config)
    assert plan.asking == Asking(config) and plan.asking.rule.floor == START_FLOOR
    assert (plan.asking.one, plan.asking.zero) == (WITH_IMAGE, WITHOUT)
    assert not plan.settled(0) and plan.begun(range(4)) == {}


def test_a_plan_takes_over_the_rounds_before(rng):
    plan, config = plan_of(rng, bad=(30,))
    assert 0.0 < plan.asking.floor.least < 1.0 and plan.groups == (100, 1)
    assert [i for i in range(1000) if plan.settled(i)] == list(range(0, 1000, 10))
    rows = plan.begun(range(25, 55))
    assert sorted(rows) == [30, 40, 50]
    assert rows[30]["status"] == "quarantined" and "decided_by" not in rows[30]
    whole = plan.begun(range(1000))
    for i, row in whole.items():
        assert row["index"] == i and row["id"] == f"s{i}"
        said = list(plan.rollouts(i))
        assert [r["index"] for r in said] == [i] * (0 if i == 30 else 3)
        assert all(r["id"] == f"s{i}" for r in said)
    assert list(plan.rollouts(31)) == []
    good = [row for i, row in whole.items() if i != 30]
    wanted = ["text" if on else "pilot" for on in drawn_of(plan.asking, good)]
    assert [row["decided_by"] for row in good] == wanted and len(set(wanted)) == 2


def test_a_larger_bill_has_a_lower_floor(rng):
    found = [
        plan_of(np.random.default_rng(3), cascade_completions=x)[0] for x in (0.1, 0.2, 0.4)
    ]
    floors = [plan.asking.floor.least for plan in found]
    assert floors == sorted(floors, reverse=True) and floors[0] > floors[2]
    rows = others(rng, 200)
    drawn = [drawn_of(plan.asking, rows) for plan in found]
    assert 0.05 < drawn[0].mean() < 0.9 and np.all(drawn[0] <= drawn[2])
    assert drawn_of(plan_of(rng, cascade_completions=1.0)[0].asking, rows).all()


def simulated(rng, asking: Asking, row: dict, p1: float, p0: float) -> dict:
    """The row that completions which are right so often lead to."""
    config = asking.config
    texts = {
        arm: "".join("+" if x < p else "-" for x in rng.random(m))
        for arm, p, m in ((IMAGE_ARM, p1, config.m1), (BLIND_ARM, p0, config.m0))
    }

    class Known(Scripted):
        def compare_arms(self, jobs, arms, *, attention):
            found = super().compare_arms(jobs, arms, attention=attention)
            for job in jobs:
                job.row |= {name: row[name] for name in FEATURES if name in KNOWN}
                logs = (np.log(row["p_answer1"]), np.log(row["p_answer0"]))
                found[id(job)] = dict(zip("10", ((float(x), 1) for x in logs), strict=True))
            return found

    base = {"forwards": 0, "generated_tokens": 0, "seconds": 0.0, "status": "scored"}
    job = Job(base | {"id": row["id"], "index": row["index"]}, asking=asking)
    EVIDENCE["cascade"].score(Known(config, {row["id"]: texts}), [job])
    names = ("c1", "m1", "c0", "m0")
    got = job.row | {name: job.row.get(name) for name in names}
    return got | {"n_drawn": (got["m1"] or 0) + (got["m0"] or 0)}


@pytest.mark.parametrize("pilot", [0.0, 0.3])
def test_counts_that_a_plan_leads_to_are_told_from_others(rng, pilot):
    plan, config = plan_of(rng, cascade_pilot=pilot)
    asking, seen = plan.asking, 0
    for first in others(rng, 80):
        row = simulated(rng, asking, first, *rng.random(2))
        assert asking.leads_to(row), row
        assert plan.accepts(1 + 10 * row["index"], row)

        def altered(row=row, **counts):
            more = row | counts
            return more | {"n_drawn": (more["m1"] or 0) + (more["m0"] or 0)}

        if not row["m1"]:
            assert not asking.leads_to(altered(c1=1, m1=2, c0=0, m0=1))
            seen += 1
            continue
        assert not asking.leads_to(altered(c1=None, m1=None, c0=None, m0=None))
        step = 1 if row["m1"] < config.m1 else -1
        mixed = 0 < row["c1"] < row["m1"]
        if mixed and row["m0"] < config.m0 and row["c0"] == 0:
            assert not asking.leads_to(altered(m0=row["m0"] + 1))
            seen += 1
        if not mixed:
            m1 = row["m1"] + step
            assert not asking.leads_to(altered(m1=m1, c1=min(row["c1"], m1)))
            seen += 1
    assert seen > 30


def test_what_a_round_before_has_scored_is_accepted_as_it_was(rng):
    plan, _ = plan_of(rng)
    row = plan.done[0].rows.to_pylist()[3]
    assert plan.accepts(30, row)
    assert not plan.accepts(30, row | {"c1": (row["c1"] + 1) % 3})
    assert not plan.accepts(40, row) and not plan.accepts(30, row | {"js": 0.125})


def test_the_bill_is_the_one_that_is_foreseen(rng):
    """Completions of samples like those of the round, from their own priors."""
    plan, config = plan_of(rng, 1000, cascade_completions=0.3)
    rows = 4 * [row | {"id": f"t{row['id']}"} for row in plan.done[0].rows.to_pylist()]
    one, zero = (prior.ab for prior in plan.asking.priors(rows))
    total = 0
    for i, row in enumerate(rows):
        p1, p0 = rng.beta(one[0][i], one[1][i]), rng.beta(zero[0][i], zero[1][i])
        total += simulated(rng, plan.asking, row, p1, p0)["n_drawn"]
    bill = 300 + total / len(rows) * 900  # 100 samples of the round had 3 each
    assert bill == pytest.approx(0.3 * 10 * 1000, rel=0.1)


def test_the_pilot_is_told_by_the_id_alone():
    config = ScoreConfig(evidence="cascade", cascade_pilot=0.25)
    mine = {f"s{i}" for i in range(2000) if in_pilot(config, f"s{i}")}
    assert len(mine) / 2000 == pytest.approx(0.25, abs=0.04)
    wider = dataclasses.replace(config, cascade_pilot=0.5)
    assert mine < {f"s{i}" for i in range(2000) if in_pilot(wider, f"s{i}")}
    other = dataclasses.replace(config, seed=1)
    assert mine != {f"s{i}" for i in range(2000) if in_pilot(other, f"s{i}")}
    none, every = (dataclasses.replace(config, cascade_pilot=x) for x in (0.0, 1.0))
    assert not in_pilot(none, "a") and in_pilot(every, "a")


def test_rounds_grow_until_a_bill_can_be_foreseen():
    assert shares(1000, 0.08) == pytest.approx([0.08, 0.24, 0.72])
    assert shares(10_000, 0.08) == pytest.approx([0.08, 0.24, 0.72])
    assert shares(20_000, 0.08) == pytest.approx([0.08, 0.24])
    assert shares(50_000, 0.08) == shares(10**7, 0.08) == [0.08]
    assert shares(100, 0.0) == shares(100, 0.08) and shares(100, 1.0) == [1.0]


def test_rounds_are_told_by_ids_and_each_begins_with_the_pilot():
    config = ScoreConfig(evidence="cascade")
    samples = open_samples(make_rows(120))
    rounds = rounds_of(samples, config)
    places = [i for part in rounds for i in part.places.tolist()]
    assert len(rounds) == 3 and len(set(places)) == len(places) < 120
    pilot = [i for i in range(120) if in_pilot(config, f"s{i}")]
    assert rounds[0].places.tolist() == pilot
    for part in rounds:
        assert part.ids == [f"s{i}" for i in part.places] == [s.id for s in part]
        assert [s.index for s in part] == list(range(len(part)))
        assert part.rows_of(pa.array([*part.ids, "s999"])).tolist() == [
            *range(len(part)),
            -1,
        ]
        assert part.content_hash() == samples.content_hash()
    back = open_samples(make_rows(120)[::-1])
    assert [sorted(part.ids) for part in rounds_of(back, config)] == [
        sorted(part.ids) for part in rounds
    ]


def test_the_floor_fits_the_bill():
    rule = Rule(5, 5, 0.8, 0.0)
    same = Prior(np.zeros(40, np.int64), np.zeros(40, np.int64))
    alike = Arm(np.zeros(1, np.int64), np.zeros(1, np.int64))
    keep = float(rule.keep(alike, alike)[0])
    assert floor_by_bill(same, same, 0.0, 40, 400.0, rule) == Floor(0.0, 0.0, 0.0)
    some = floor_by_bill(same, same, 0.0, 40, 60.0, rule)
    assert some.least <= keep < some.sure < some.least + 1e-4 and 0.1 < some.lot < 0.9
    fewer = floor_by_bill(same, same, 30.0, 40, 60.0, rule)
    assert fewer.lot == pytest.approx(some.lot / 2)  # half of it is spent
    nothing = floor_by_bill(same, same, 0.0, 40, 0.0, rule)
    assert nothing.lot == 0.0 and nothing.sure > keep
    none = Prior(np.zeros(0, np.int64), np.zeros(0, np.int64))
    wanted = Floor(START_FLOOR, START_FLOOR, 0.0)
    assert floor_by_bill(none, none, 0.0, 40, 60.0, rule) == wanted


# ---- all rounds, with a model ----------------------------------------------------


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """(store, scores) of an uninterrupted run over 22 samples, two of them bad."""
    store = tmp_path_factory.mktemp("whole") / "store"
    return store, score(*tiny, pool(), store=store, **OPTIONS)


def pool(n: int = 22) -> list[dict]:
    rows = make_rows(n)
    rows[5]["answer"] = "nonsense"
    rows[11]["image"] = {"bytes": b"no image", "path": None}
    return rows


def test_every_round_has_a_bar_with_its_own_name(tiny, capfd):
    score(*tiny, pool(12), **OPTIONS | {"progress": "force"})
    bars = re.findall(r"(?m)(scoring[^:]*): 100%", capfd.readouterr().err)
    assert list(dict.fromkeys(bars)) == [
        "scoring the pilot, round 1 of 2",
        "scoring the rest, round 2 of 2",
    ]


def test_every_row_says_which_stage_decided_it(whole):
    store, scores = whole
    rows = scores.table.to_pylist()
    usable = [r for r in rows if r["status"] == "scored"]
    assert len(usable) == 20
    pilot = {r["id"] for r in usable if in_pilot(ScoreConfig(cascade_pilot=0.3), r["id"])}
    assert {r["decided_by"] for r in usable} >= {"answer", "text"} and 2 < len(pilot) < 12
    for row in rows:
        if row["status"] != "scored":
            assert row["decided_by"] is None and row["code"] in (
                "bad_answer",
                "image_unreadable",
                "image_format",
            )
            continue
        right = bool(row["c1"])
        assert (row["log_psi"] is not None) == right
        assert row["forwards"] == 2 + right
        if row["decided_by"] == "answer":
            assert (row["m1"], row["m0"]) == (None, None) and row["id"] not in pilot
            assert row["generated_tokens"] == 0
            continue
        assert row["n_drawn"] == row["m1"] + row["m0"]
        if row["id"] in pilot:
            assert row["m1"] >= 2 and row["m0"] >= 1
        if row["decided_by"] == "pilot":
            assert row["id"] in pilot
        else:
            assert row["decided_by"] == ("text" if row["m0"] else "image")
    rounds = rounds_of(open_samples(pool()), ScoreConfig(**OPTIONS_OF_ROUNDS))
    for number, part in enumerate(rounds):
        first = Scores.load(store / folder_of(number))
        same = scores.table.take(pa.array(part.places))
        for name in set(same.column_names) - {"index", "decided_by"}:
            assert same[name].equals(first.table[name]), name
        said = scores.rollouts.filter(pc.is_in(scores.rollouts["id"], same["id"]))
        names = [n for n in said.column_names if n != "index"]
        assert said.select(names).equals(first.rollouts.select(names))


def test_every_image_is_encoded_and_every_prompt_read_once(tiny, whole):
    scores = score(*tiny, pool(), **OPTIONS, profile=True)
    profile = Profile.of(scores.meta["profile"])
    assert profile.samples == 22 and profile.counts["images_encoded"] == 20
    assert profile.ratios()["images_encoded"] == 1.0
    assert profile.ratios()["prefilled_tokens"] == 1.0
    assert stable(scores.table).equals(stable(whole[1].table))


def test_completions_are_the_first_of_those_of_rollouts(tiny, whole):
    """The same seeds: what the cascade samples, evidence rollouts samples, too."""
    _, scores = whole
    options = OPTIONS | {"evidence": "rollouts"}
    full = score(*tiny, pool(), **options)

    def texts(of):
        names = ("id", "arm", "number", "text", "correct", "seed")
        return {tuple(r[n] for n in names) for r in of.rollouts.to_pylist()}

    assert texts(scores) < texts(full)


def test_a_cascade_is_replayed_without_its_model(tiny, whole):
    """What benchmarks make of stored answers and completions is what the model gave."""
    from benchmarks import replayed

    scores, given = whole[1], OPTIONS | {"evidence": "rollouts"}
    full = score(*tiny, pool(), **{k: v for k, v in given.items() if "cascade" not in k})
    names = ("evidence", "m1", "m0", "cascade_completions", "cascade_pilot")
    config = ScoreConfig(**{name: OPTIONS[name] for name in names})
    found = replayed.cascade(scores, full, pool(), config)
    names = ["id", "p_answer1", "c1", "m1", "c0", "m0", "n_drawn", "decided_by", "status"]
    assert found.table.select(names).to_pylist() == scores.table.select(names).to_pylist()


def test_the_ledger_bills_each_stage(whole):
    _, scores = whole
    cost, rollouts = scores.meta["cost"], scores.rollouts.to_pylist()
    stages = cost["stages"]
    rows = scores.table.to_pylist()
    drawn = [r for r in rows if r["m1"]]
    assert stages["answer"]["samples"] == 22
    assert stages["answer"]["forwards"] == 2 * 20
    assert stages["image"]["samples"] == len(drawn) > 0
    assert stages["image"]["rollouts"] == sum(r["m1"] for r in drawn)
    assert stages["text"]["rollouts"] == sum(r["m0"] for r in drawn)
    assert stages["psi"]["forwards"] == sum(r["log_psi"] is not None for r in rows)
    pilot = Scores.load(whole[0] / folder_of(0)).table
    assert stages["pilot"]["samples"] == len(pilot) - pilot["m1"].null_count > 0
    assert stages["pilot"]["rollouts"] == pc.sum(pilot["n_drawn"]).as_py()
    for stage in ("answer", "pilot", "image", "text"):
        assert stages[stage]["decided"] == sum(r["decided_by"] == stage for r in rows)
    tokens = sum(len(r["token_ids"]) for r in rollouts)
    assert stages["image"]["tokens"] + stages["text"]["tokens"] == tokens
    assert cost["rollouts"] == len(rollouts)


def test_batches_workers_and_shards_change_no_decision(tiny, whole):
    names = ["id", "decided_by", "c1", "m1", "c0", "m0", "code"]
    wanted = whole[1].table.select(names)
    for more in (
        {"batch_size": 1, "workers": 0},
        {"batch_size": 7, "shard_size": 22, "workers": 3},
    ):
        got = score(*tiny, pool(), **OPTIONS | more)
        assert got.table.select(names).equals(wanted)


def test_as_many_samples_are_asked_at_once_as_memory_holds(tiny, whole, monkeypatch):
    """Three batches at least; what is decided of a sample does not depend on it."""
    real, sizes = filling.score_batch, []

    def seen(scorer, jobs):
        sizes.append(len(jobs))
        real(scorer, jobs)

    monkeypatch.setattr(filling, "score_batch", seen)
    names = ["id", "decided_by", "c1", "m1", "c0", "m0", "code"]
    wanted = whole[1].table.select(names)
    options = OPTIONS | {"batch_size": 1, "shard_size": 22}
    assert score(*tiny, pool(), **options).table.select(names).equals(wanted)
    together, sizes[:] = list(sizes), []
    monkeypatch.setattr(kept, "HOST_BYTES", 1)
    assert score(*tiny, pool(), **options).table.select(names).equals(wanted)
    assert max(together) > max(sizes) == 3
    assert sum(together) == sum(sizes) and len(together) < len(sizes)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_a_run_killed_in_either_round_ends_in_the_same_bytes(
    tiny, whole, tmp_path, monkeypatch, batches
):
    """Killed after so many batches, with no word to the store."""
    real, seen = filling.score_batch, []

    def killed(scorer, jobs):
        if len(seen) == batches:
            raise Killed
        seen.append(jobs[0].asking == Asking(scorer.config))  # in the first round
        real(scorer, jobs)

    monkeypatch.setattr(filling, "score_batch", killed)
    monkeypatch.setattr(filling, "PARTIAL_SECONDS", 0.0)
    monkeypatch.setattr(filling.Run, "_keep_after", lambda *_: None)  # as kill -9
    store = tmp_path / "store"
    with pytest.raises(Killed):
        score(*tiny, pool(), store=store, **OPTIONS)
    monkeypatch.setattr(filling, "score_batch", real)
    again = score(*tiny, pool(), store=store, **OPTIONS)
    assert stable(again.table).equals(stable(whole[1].table))
    assert again.rollouts.equals(whole[1].rollouts)
    there = {p.relative_to(store) for p in store.rglob("*")}
    assert there == {p.relative_to(whole[0]) for p in whole[0].rglob("*")}
    if batches == 5:
        assert set(seen) == {True, False}


def test_a_finished_store_asks_no_model(tiny, whole, monkeypatch):
    def never(*_):
        raise AssertionError("a batch was scored again")

    monkeypatch.setattr(filling, "score_batch", never)
    again = score(*tiny, pool(), store=whole[0], **OPTIONS)
    assert stable(again.table).equals(stable(whole[1].table))


def test_a_lost_round_is_scored_again_and_changes_nothing(tiny, whole, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    shutil.rmtree(store / folder_of(0))
    before = {p.name: p.stat().st_mtime_ns for p in store.glob("*.parquet")}
    again = score(*tiny, pool(), store=store, **OPTIONS)
    assert stable(again.table).equals(stable(whole[1].table))
    after = {p.name: p.stat().st_mtime_ns for p in store.glob("*.parquet")}
    assert before == after


def test_shards_of_another_plan_are_scored_again(tiny, whole, tmp_path):
    """Images that changed move what the first round says, and with it who is drawn: no
    shard stays that the new plan would have filled otherwise."""
    from pathlib import Path

    folder = tmp_path / "images"
    folder.mkdir()

    def on_disk() -> list[dict]:
        rows = make_rows(12)
        for i, row in enumerate(rows):
            row["image"] = f"{i}.png"
        return rows

    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(i))
    options = OPTIONS | {"root": Path(folder), "shard_size": 3}
    store = tmp_path / "store"
    first = score(*tiny, on_disk(), store=store, **options)
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(i + 100))
    with warnings.catch_warnings(record=True) as said:  # one for the store of each round
        warnings.simplefilter("always")
        again = score(*tiny, on_disk(), store=store, **options)
    assert "images of 4 samples changed" in str(said[-1].message)
    fresh = score(*tiny, on_disk(), **options)
    assert stable(again.table).equals(stable(fresh.table))
    assert again.rollouts.equals(fresh.rollouts)
    assert not stable(first.table).equals(stable(fresh.table))


def test_an_edited_data_set_keeps_what_its_plan_still_asks_for(tiny, whole, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    rows = pool()
    longer = rows[:3] + make_rows(30)[24:] + rows[3:]
    again = score(*tiny, longer, store=store, **OPTIONS)
    fresh = score(*tiny, longer, **OPTIONS)
    names = ["id", "decided_by", "c1", "m1", "c0", "m0", "code"]
    assert again.table.select(names).equals(fresh.table.select(names))
    old = {r["id"]: r["seconds"] for r in whole[1].table.to_pylist()}
    kept = [
        r["id"]
        for r in again.table.to_pylist()
        if r["m1"] and old.get(r["id"]) == r["seconds"]
    ]
    assert kept, "no completion was taken over"
    # the first round, which nothing decides, has taken over all of its rows
    assert not (store / folder_of(0) / "previous").exists()


def test_a_checker_that_fails_quarantines_in_stage_2(tiny):
    options = OPTIONS | {"reward": sometimes, "cascade_completions": 1.0, "m1": 2, "m0": 2}
    options["cascade_pilot"] = 0.0
    options |= {"max_bad_fraction": 1.0}
    rows = score(*tiny, make_rows(4), **options).table.to_pylist()
    assert [r["code"] for r in rows][1:3] == ["verifier_error", "verifier_error"]
    assert rows[0]["decided_by"] == "image" and rows[0]["c1"] == 2
    assert rows[1]["forwards"] == 2


def test_bad_samples_of_a_round_are_judged_with_the_pool(tiny):
    """Most of the pilot is bad, little of the whole."""
    rows = make_rows(40)
    pilot = [r for r in rows if in_pilot(ScoreConfig(cascade_pilot=0.08), r["id"])]
    for row in pilot[:2]:
        row["answer"] = "nonsense"
    assert 2 <= len(pilot) <= 4
    options = OPTIONS | {"cascade_pilot": 0.08, "max_bad_fraction": 0.05}
    table = score(*tiny, rows, **options).table.to_pylist()
    assert sum(r["status"] != "scored" for r in table) == 2


def test_other_settings_are_refused_by_name(tiny, whole):
    for name, value in (("cascade_completions", 0.5), ("cascade_sure", 0.9), ("m1", 5)):
        with pytest.raises(RapConfigError, match=name):
            score(*tiny, pool(), store=whole[0], **OPTIONS | {name: value})


def test_a_store_of_two_passes_is_refused_in_words(tiny, whole, tmp_path):
    """Stores from before there were rounds are read, and not gone on with."""
    import shutil

    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    header = json.loads((store / "store.json").read_text())
    assert header["fingerprint"]["config"].pop("cascade") == "rounds"
    (store / "store.json").write_text(json.dumps(header))
    with pytest.raises(RapConfigError, match="cascade scores every sample in one round"):
        score(*tiny, pool(), store=store, **OPTIONS)


def test_p_answer_is_that_of_evidence_answer(tiny, whole):
    options = {k: v for k, v in OPTIONS.items() if k != "reward"}
    alone = score(*tiny, pool(), **options | {"evidence": "answer"}).table
    names = ["id", "status", "code", "p_answer1", "p_answer0", "js", "entropy1", "entropy0"]
    assert whole[1].table.select(names).equals(alone.select(names))


# ---- choosing -----------------------------------------------------------------------


def table_of(rows: list[dict]) -> Scores:
    base = {"status": "scored", "evidence": "cascade"}
    made = [base | {"id": f"s{i}", "index": i} | row for i, row in enumerate(rows)]
    return Scores(table_from_rows(made), {}, None, None)


def by_answer(p1: float, p0: float) -> dict:
    return {"p_answer1": p1, "p_answer0": p0, "decided_by": "answer"} | KNOWN


def by_text(c1: int, m1: int, c0: int, m0: int, p1: float = 0.5, p0: float = 0.1) -> dict:
    counts = {"c1": c1, "m1": m1, "c0": c0, "m0": m0, "log_psi": -3.0}
    return {"p_answer1": p1, "p_answer0": p0, "decided_by": "text"} | counts | KNOWN


def test_one_order_for_all_stages():
    rows = [
        by_answer(0.5, 0.1),
        by_text(2, 4, 0, 2),
        by_text(4, 4, 0, 0) | {"log_psi": None, "decided_by": "image"},
        by_text(1, 4, 3, 3),  # the image hurts
        by_answer(0.9, 0.1),
        by_answer(0.1, 0.9),  # hurts, by p(answer)
        by_text(1, 5, 0, 1),
        by_text(0, 4, 0, 0) | {"log_psi": None, "decided_by": "image"},
    ]
    scores = table_of(rows)
    measured = read_evidence(scores.table).measured
    assert np.array_equal(measured.learnable, measured.posterior.keep)
    order = np.argsort(-measured.learnable).tolist()
    assert order[0] == 1 and order.index(6) < order.index(7)
    assert set(order[:3]) <= {0, 1, 2, 4, 6} and set(order[-2:]) <= {3, 5, 7}
    selection = choose(scores, budget=0.5)
    reasons = dict(zip(range(8), selection.table["reason"].to_pylist(), strict=True))
    assert reasons[3] == reasons[5] == "dropped_image_hurts"
    assert reasons[7] == "dropped_unsolved"
    kept = selection.indices.tolist()
    assert 1 in kept and len(kept) == 4 and set(kept) <= {0, 1, 4, 6}
    for name in ("posterior1", "posterior0", "keep_probability"):
        values = selection.table[name].to_pylist()
        assert all(0 < v < 1 for v in values), name
    d = selection.table["D"].to_pylist()
    means = [selection.table[n].to_pylist() for n in ("posterior1", "posterior0")]
    assert d == [a - b for a, b in zip(*means, strict=True)]


def test_what_p_answer_says_is_learned_from_the_completions():
    """Two kinds that p(answer) cannot tell apart, the divergence can: one is always right
    after reasoning, with the image and without, the other sometimes, with it."""
    rows = []
    for i in range(60):
        always, asked = i % 2 == 0, i < 40
        row = by_answer(0.15, 0.15) | {"js": 0.001 if always else 0.1}
        if asked:
            counts = (2, 2, 1, 1) if always else (i // 2 % 2, 2, 0, 1)
            row |= by_text(*counts, 0.15, 0.15) | {"js": row["js"]}
        rows.append(row)
    measured = read_evidence(table_of(rows).table).measured
    keep = measured.posterior.keep[40:]
    assert keep[1::2].min() > 2 * keep[0::2].max()
    assert measured.posterior.mean1[40:][0::2].min() > 0.8


def test_the_pilot_stands_for_the_pool_where_psi_is_calibrated():
    """Most of what is read is attention-biased, most of the pool is not."""
    biased = [by_text(2, 4, 0, 2) | {"log_psi": -0.2 + 0.001 * i} for i in range(40)]
    usual = [by_text(2, 4, 0, 2) | {"log_psi": -2.0 + 0.02 * i} for i in range(20)]
    pilot = [
        by_text(2, 2, 1, 1) | {"decided_by": "pilot", "log_psi": -2.0 + 0.02 * i}
        for i in range(20)
    ]
    rest = [by_answer(0.99, 0.99)] * 200
    selection = choose(table_of(biased + usual + pilot + rest), budget=1.0, biased="drop")
    reasons = selection.table["reason"].to_pylist()
    assert reasons[:40] == ["dropped_attention_biased"] * 40
    assert "dropped_attention_biased" not in reasons[40:]
    plain = choose(table_of(biased + usual + rest), budget=1.0, biased="drop")
    plain = plain.table["reason"].to_pylist()
    assert "dropped_attention_biased" not in plain  # nothing says that they are unusual


def test_more_evidence_of_a_mix_ranks_higher():
    scores = table_of([by_text(1, 2, 0, 0), by_text(2, 4, 0, 4), by_text(2, 4, 2, 4)])
    keep = choose(scores, budget=1.0).table["keep_probability"].to_pylist()
    assert keep[1] > keep[0] > keep[2]


def test_the_threshold_is_in_the_keep_probability():
    scores = table_of([by_text(3, 4, 0, 4)])
    keep = [
        choose(scores, budget=1.0, lambda_c=x).table["keep_probability"][0].as_py()
        for x in (0.0, 0.25, 0.5)
    ]
    assert keep[0] > keep[1] > keep[2] > 0


def test_rollouts_have_a_keep_probability_too():
    rows = [{"c1": 3, "m1": 5, "c0": 0, "m0": 5, "evidence": "rollouts"}]
    table = choose(table_of(rows), budget=1.0).table
    assert table["posterior1"].to_pylist() == pytest.approx([4 / 7])
    assert table["posterior0"].to_pylist() == pytest.approx([1 / 7])
    assert 0.8 < table["keep_probability"][0].as_py() < 1


def test_samples_that_no_attention_was_read_of_are_not_missing_a_psi():
    rows = [by_text(2, 4, 0, 2)] * 3 + [by_answer(0.6, 0.1), by_text(2, 4, 0, 1)]
    rows[4] = rows[4] | {"log_psi": None}  # mixed, and yet not read
    barred = choose(table_of(rows), budget=1.0, biased="drop").table["reason"].to_pylist()
    assert barred == ["kept_cognitive"] * 4 + ["quarantined_psi_missing"]
    reported = choose(table_of(rows), budget=1.0).table["reason"].to_pylist()
    assert reported == ["kept_cognitive"] * 5  # psi decides nothing


def test_a_small_pool_is_named():
    """64 samples hold their bill as a rule, fewer do not."""
    for n, said in ((3, True), (63, True), (64, False)):
        found = choose(table_of([by_text(2, 4, 0, 2)] * n), budget=0.5)
        assert any(f"cascade of {n} samples" in text for text in found.warnings) == said
    rows = [{"c1": 3, "m1": 5, "c0": 0, "m0": 5, "evidence": "rollouts"}]
    assert not any(
        "fewer than" in text for text in choose(table_of(rows), budget=1).warnings
    )


# ---- what went ----------------------------------------------------------------------


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


def test_summary_and_report_show_the_stages(tmp_path):
    rows = [by_answer(0.5, 0.1), by_text(2, 4, 0, 2), by_text(1, 4, 0, 1)]
    rows += [by_text(0, 4, 0, 0) | {"log_psi": None, "decided_by": "image"}]
    selection = choose(table_of(rows), budget=0.5)
    text = selection.summary()
    assert "decided by answer: 1 samples, 0 kept, 0 completions" in text
    assert "decided by image: 1 samples, 0 kept, 4 completions" in text
    assert "decided by text: 2 samples, 2 kept, 11 completions" in text
    mean = np.mean(selection.table["keep_probability"].to_numpy()[1:3])
    assert f"keep-probability of the kept samples: {mean:.2f} on average" in text
    page = selection.report(tmp_path / "page.html").read_text()
    assert "What each stage decided" in page and "as fitted to 3 samples" in page
    assert "<dt>decided by</dt><dd>text</dd>" in page
    selection.save(tmp_path / "selection")
    again = rap.load(tmp_path / "selection")
    assert again.table.equals(selection.table)
    plain = {"c1": 3, "m1": 5, "c0": 0, "m0": 5, "evidence": "rollouts"}
    page = choose(table_of([plain]), budget=1.0).report(tmp_path / "page.html").read_text()
    assert "What each stage decided" not in page


@pytest.mark.parametrize("evidence", ["logits", "answer"])
def test_a_store_of_other_evidence_is_no_earlier_cascade(evidence):
    """What a default of before has filled: how to go on with it, and nothing else."""
    ours, theirs = (ScoreConfig(evidence=e).fingerprint() for e in ("cascade", evidence))
    for a, b in ((ours, theirs), (theirs, ours)):
        lines = other_run({"fingerprint": {"config": a}}, {"fingerprint": {"config": b}})
        said = "; ".join(map(in_words, lines))
        assert said.startswith("config.evidence: ") and len(lines) == 1
        assert "two passes" not in said and f"evidence='{b['evidence']}' goes on" in said
