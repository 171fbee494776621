"""Rows and scripted completions that the tests of the cascade share."""

from __future__ import annotations

import numpy as np
from model_inputs import png
from scoring_inputs import question_row

from rap.config import ScoreConfig
from rap.model.rollouts import Completion
from rap.rewards.checker import Verdict
from rap.scores.prior import N_FEATURES
from rap.scoring.asking import Asking, Floor
from rap.scoring.jobs import Job
from rap.stopwatch import IDLE


def make_rows(n: int) -> list[dict]:
    return [question_row(i, png(i)) for i in range(n)]


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
