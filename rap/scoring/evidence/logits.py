"""Evidence ``logits``: a divergence over one response, and p(answer) for the difficulty."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config import ScoreConfig
from ...model.rollouts import IMAGE_ARM
from ...samples.sample import Sample
from ..jobs import SOLUTION_COLUMNS, Job, answer_tokens, reference_solution
from ..scorer import DIVERGENCES, Scorer
from .answer import probabilities, put_answer
from .base import PSI, Evidence, prepare_arms

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver


class Logits(Evidence):
    """Two forward passes over one response, and one over the answer for the difficulty.

    The response is the reference solution, else one greedy completion with the image.
    """

    name = "logits"
    data_columns = SOLUTION_COLUMNS
    columns = (*probabilities("1"), *DIVERGENCES, *PSI, "n_drawn", "n_cut")

    def prepare(
        self,
        job: Job,
        sample: Sample,
        images: list[Image],
        other: list[Image] | None,
        driver: ModelDriver,
        config: ScoreConfig,
    ) -> None:
        solution = reference_solution(sample)
        response = None if solution is None else driver.encode_response(solution)
        prefix, answer = answer_tokens(driver, sample, config)
        prepare_arms(job, sample, images, other, driver, response)
        job.answer = driver.prepare(sample, images, answer, prefix=prefix, like=job.image)

    def score(self, scorer: Scorer, jobs: list[Job]) -> None:
        greedy = [j for j in jobs if j.image is not None and not len(j.image.response_ids)]
        drawn = scorer.generate(greedy, IMAGE_ARM, range(1), greedy=True)
        for job in greedy:
            if not job.alive:
                continue
            (completion,) = drawn[id(job)]
            job.row["truncated"] = completion.finish_reason == "length"
            if not completion.token_ids:
                job.quarantine("model", "empty_response", "the greedy completion is empty")
                continue
            scorer.respond(job, ("image", "blind"), completion.token_ids)
        for batch in scorer.batches(jobs):
            scorer.compare_arms(batch)
            traces = scorer.forward(batch, "answer", attention=False)
            logp = scorer.head(batch, traces)
            for job in batch:
                if job.alive:
                    put_answer(job, "1", logp[id(job)]["1"])


EVIDENCE = Logits()
