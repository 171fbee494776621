"""A row of the data set -> a `Job`: decoded, hashed, tokenised. Host only: ``prepare_job``
runs in the worker threads of ``jobs.ahead``, before a batch meets the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..config import ScoreConfig
from ..errors import RapInputError
from ..model.counterfactual import WITH_PARTNER, counterfactual_images
from ..model.rollouts import row_seed
from ..samples.part import in_whole
from ..samples.sample import Bad, BadSample, sample_sha256
from ..samples.sampleset import SampleSet, load_images
from ..scores.table import SCORED
from .engine import prompts, refuse_placeholders, with_bytes
from .evidence import EVIDENCE
from .jobs import Job

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.driver import ModelDriver


def prepare_job(
    samples: SampleSet,
    driver: ModelDriver | None,
    config: ScoreConfig,
    i: int,
    *,
    asked: bool = False,
) -> Job:
    """Decode and preprocess sample i: host only, called from worker threads.

    driver: None prepares for no local model. asked: the prompts are for an engine, too.
    """
    sample = samples[i]
    row: dict[str, Any] = {
        "id": sample.id,
        "index": sample.index,
        "status": SCORED,
        "evidence": config.evidence,
        "forwards": 0,
        "generated_tokens": 0,
        "seconds": 0.0,
    }
    job = Job(row)
    if isinstance(sample, Bad):
        job.quarantine(sample.stage, sample.code, sample.message)
        return job
    row["source"] = sample.source
    job.sample = sample
    try:
        shown = with_bytes(sample) if asked else sample
        images, hashes = load_images(shown, max_pixels=config.max_image_pixels)
        row["image_sha256"] = ",".join(hashes)
        row["sample_sha256"] = sample_sha256(sample, hashes)
        other = counterfactual_images(
            images,
            config.counterfactual,
            seed=row_seed(config.seed, sample.id, config.counterfactual, 0),
            partner=_partner_images(*in_whole(samples, i), config),
        )
        if asked:
            job.asked = prompts(shown, images, other, config)
        if driver is not None:
            EVIDENCE[config.evidence].prepare(job, sample, images, other, driver, config)
        for said in job.asked.values() if driver is None else ():
            refuse_placeholders(said)
    except BadSample as bad:
        job.quarantine(bad.stage, bad.code, bad.message)
    return job


def partners(samples: SampleSet, config: ScoreConfig, i: int) -> Iterator[int]:
    """The samples whose images may stand in for those of sample i, in the order tried; of
    at least two samples."""
    n = len(samples)
    start = row_seed(config.seed, samples[i].id, "partner", 0) % (n - 1)
    for step in range(min(n - 1, 100)):
        yield (i + 1 + (start + step) % (n - 1)) % n


def _partner_images(samples: SampleSet, i: int, config: ScoreConfig) -> list[Image] | None:
    """Images of another sample, for ``shuffle``: chosen by hash, the next one if bad."""
    if config.counterfactual not in WITH_PARTNER:
        return None
    if len(samples) < 2:
        raise RapInputError("counterfactual = 'shuffle' needs at least two samples")
    for k in partners(samples, config, i):
        other = samples[k]
        if isinstance(other, Bad):
            continue
        try:
            return load_images(other, max_pixels=config.max_image_pixels)[0]
        except BadSample:
            continue
    raise BadSample("image", "image_unreadable", "no other sample has a usable image")
