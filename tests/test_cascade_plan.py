"""The plan of a cascade: its rounds, its floors, its bill; no model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from cascade_inputs import KNOWN, Scripted, make_rows

from rap.config import ScoreConfig
from rap.model.rollouts import BLIND_ARM, IMAGE_ARM
from rap.samples.sampleset import open_samples
from rap.scores.posterior import Arm, Prior
from rap.scores.prior import FEATURES, WITH_IMAGE, WITHOUT
from rap.scores.table import ROLLOUT_SCHEMA, table_from_rows
from rap.scoring.asking import START_FLOOR, Asking, Floor, Rule, floor_by_bill, in_pilot
from rap.scoring.evidence import EVIDENCE
from rap.scoring.jobs import Job
from rap.scoring.plan import Round, make_plan, rounds_of, shares


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
