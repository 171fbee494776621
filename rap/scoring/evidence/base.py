"""The contract of evidence: how a sample is prepared, how a batch is scored, which columns
that fills, and how D and the difficulty are read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...config import ScoreConfig
from ...samples.sample import BadSample, Sample
from ...scores.kinds import KINDS, Kind

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver
    from ..jobs import Job
    from ..scorer import Scorer

PSI = (
    "log_psi",
    "psi_position",
    "psi_token",
    "psi_before",
    "psi_after",
    "attention_entropy",
    "attention_top",
    "image_mass",
    "n_response",
    "truncated",
)
"""Columns of a response whose attention was read."""


class Evidence:
    """One kind of evidence."""

    name: str
    columns: tuple[str, ...]
    """Columns of the score table that it fills, besides those that every row has."""
    staged: bool = False
    """Whether a part of the samples is scored first, into a store of its own; see
    ``rap.scoring.plan``."""
    data_columns: tuple[str, ...] = ()
    """Columns of the data set that its scores depend on, besides those with a role."""

    @property
    def reading(self) -> Kind:
        """How D and difficulty are read from the table."""
        return KINDS[self.name]

    def prepare(
        self,
        job: Job,
        sample: Sample,
        images: list[Image],
        other: list[Image] | None,
        driver: ModelDriver,
        config: ScoreConfig,
    ) -> None:
        """Tokenise the prompt with the image into ``job.image`` and without it into
        ``job.blind``; host only.

        images: the sample's; other: those of the input without the image, None: none.
        Raises ``BadSample``.
        """
        raise NotImplementedError

    def score(self, scorer: Scorer, jobs: list[Job]) -> None:
        """Fill in the rows of these jobs with what the model says; a job that fails is
        quarantined in place."""
        raise NotImplementedError


def prepare_arms(
    job: Job,
    sample: Sample,
    images: list[Image],
    other: list[Image] | None,
    driver: ModelDriver,
    response: Sequence[int] | None = None,
    prefix: str = "",
) -> None:
    """The prompt with and without the image, and a response that is known beforehand."""
    if response is not None and not len(response):
        raise BadSample("prompt", "empty_response", "the reference has no tokens")
    job.image = driver.prepare(sample, images, response, prefix=prefix)
    job.row["n_prompt"] = job.image.n_prompt
    job.blind = driver.prepare(sample, other, response, prefix=prefix)
