"""A cascade of what is measured already, without its model.

p(answer) and the like stand in a store of evidence ``answer``, completions in one of
``rollouts``: under the same seeds they are those that the cascade would have sampled. Plan,
rounds, floors and rules are rap's own, so its counts are those of the run with the model
(test_cascade_rounds.py); only psi is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rap.config import ScoreConfig
from rap.engines.contract import Completion
from rap.rewards.checker import Verdict
from rap.samples.part import Part
from rap.samples.sampleset import open_samples
from rap.scores.scores import Scores
from rap.scores.states import COLUMN
from rap.scores.table import ROLLOUT_SCHEMA, table_from_rows
from rap.scoring.evidence import EVIDENCE
from rap.scoring.jobs import Job
from rap.scoring.plan import Round, make_plan, rounds_of
from rap.scoring.scorer import DIVERGENCES
from rap.stopwatch import IDLE

DEFAULT = ScoreConfig(evidence="cascade")
BASE = ("id", "index", "status", "stage", "code", "message", COLUMN)


class LookedUp:
    """What `Scorer` is to an evidence, from tables. ``answers``: {id: row of the score
    table}; ``said``: {(id, arm): rows of its completions, by number}."""

    reads_psi = False
    watch = IDLE

    def __init__(self, config: ScoreConfig, answers: dict[str, Any], said: dict[Any, Any]):
        self.config, self.answers, self.said, self.checker = config, answers, said, self

    def read(self, jobs: Sequence[Job], which: str) -> None:
        """The prompts: there is nothing to read."""

    def batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        yield list(jobs)

    parts = batches

    def fit(self, jobs: Sequence[Job]) -> bool:
        return True

    def hold(self, jobs: Sequence[Job], rest: Sequence[Job]) -> None:
        pass

    def compare_arms(self, jobs: Sequence[Job], arms: Any, *, attention: bool) -> Any:
        """p(answer), as (mean logarithm, tokens) of an arm; divergences go to the row."""
        found = {}
        for job in jobs:
            row = self.answers[job.row["id"]]
            job.row |= {name: row[name] for name in DIVERGENCES} | {"forwards": 2}
            n = max(1, round(row["logp_answer1"] / (row["logp_mean1"] or -1.0)))
            found[id(job)] = {arm: (row[f"logp_answer{arm}"] / n, n) for arm in "10"}
        return found

    def generate(self, jobs: Sequence[Job], arm: str, numbers: range) -> Any:
        """The completions of these numbers."""
        drawn = {}
        for job in jobs:
            rows = [self.said[job.row["id"], arm][k] for k in numbers]
            drawn[id(job)] = [
                Completion((), f"{k} {row['correct']}", "stop", row["seed"], 1, math.nan)
                for k, row in zip(numbers, rows, strict=True)
            ]
        return drawn

    def check_group(self, sample: Any, responses: Any, *, arm: str) -> list[Verdict]:
        """As they were graded."""
        known = {"True": True, "False": False}
        return [Verdict(known.get(one.text.split()[1])) for one in responses]


def cascade(
    answer: Scores, rollouts: Scores, rows: Sequence[Any], config: ScoreConfig = DEFAULT
) -> Scores:
    """The scores of evidence ``cascade`` of a pool that both were made from (``rows``: the
    data set)."""
    answers = {row["id"]: row for row in answer.table.to_pylist()}
    said: dict[tuple[str, str], list[Any]] = {}
    for row in rollouts.rollouts.sort_by(
        [("index", "ascending"), ("number", "ascending")]
    ).to_pylist():
        said.setdefault((row["id"], row["arm"]), []).append(row)
    samples = open_samples(list(rows))
    scorer = LookedUp(config, answers, said)
    done: list[Round] = []
    for part in rounds_of(samples, config):
        done.append(scored(scorer, part, make_plan(done, len(samples), config)))
    plan = make_plan(done, len(samples), config)
    before = plan.begun(range(len(samples)))
    rest = Part(samples, np.array([i for i in range(len(samples)) if i not in before]))
    last = scored(scorer, rest, plan)
    found = before | {
        int(i): row | {"index": int(i)}
        for i, row in zip(rest.places, last.rows.to_pylist(), strict=True)
    }
    table = table_from_rows([found[i] for i in range(len(samples))])
    return Scores(table, {"fingerprint": {"config": config.fingerprint()}})


def scored(scorer: LookedUp, part: Part, plan: Any) -> Round:
    """One round."""
    jobs = []
    for k, name in enumerate(part.ids):
        row = {n: scorer.answers[name][n] for n in BASE} | {
            "index": k,
            "evidence": "cascade",
        }
        row |= {"forwards": 0, "generated_tokens": 0, "seconds": 0.0}
        jobs.append(Job(row, asking=plan.asking))
    alive = [job for job in jobs if job.alive]
    EVIDENCE["cascade"].score(scorer, alive)  # type: ignore[arg-type]
    for job in alive:
        job.row["n_drawn"] = len(job.rollouts) or None
    completions = [row for job in jobs for row in job.rollouts]
    tables = (
        table_from_rows([job.row for job in jobs]),
        table_from_rows(completions, ROLLOUT_SCHEMA),
    )
    return Round(part.places, *tables)
