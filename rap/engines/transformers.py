"""Engine ``transformers``: the model that scores samples its own completions.

The only engine that promises bytes: the same batch on the same machine gives the same
completions, see ``rap.model.rollouts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..config import Sampling
from ..errors import RapConfigError
from ..model import rollouts
from ..model.halving import Failure, in_halves
from ..samples.sample import BadSample
from .contract import Completion, Generated, Request
from .settings import EngineConfig

if TYPE_CHECKING:
    from ..model.driver import ModelDriver


class TransformersEngine:
    """``rollouts.generate`` behind the contract. The requests of one call are one batch."""

    exact = True
    window = 1
    token_ids = True

    def __init__(self, config: EngineConfig, driver: ModelDriver | None) -> None:
        if driver is None:
            raise RapConfigError(
                "engine = 'transformers': it samples with the model itself, so it needs one"
            )
        self._driver = driver

    def check(self, sampling: Sampling) -> str:
        """Every sampling field is honoured: nothing to find out."""
        return f"engine transformers: {type(self._driver.model).__name__}, in this process"

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generated]]:
        """The completions of all requests, sampled together, in order."""
        batch = list(requests)
        if not batch:
            return
        sampling, greedy = batch[0].sampling, batch[0].greedy
        if any((r.sampling, r.greedy) != (sampling, greedy) for r in batch):
            raise RapConfigError("the requests of one batch need one sampling")
        rows = [(request, seed) for request in batch for seed in request.seeds]

        def run(part: Sequence[tuple[Request, int]]) -> list[Completion | Failure]:
            prompts = [r.prepared for r, _ in part if r.prepared is not None]
            assert len(prompts) == len(part)  # with a model every request is prepared
            seeds = [[seed] for _, seed in part]
            groups = rollouts.generate(
                self._driver, prompts, seeds, sampling, greedy=greedy
            )
            return [completion for (completion,) in groups]

        results = iter(in_halves(run, rows))
        for request in batch:
            yield request, _collect([next(results) for _ in request.seeds])

    def provenance(self) -> dict[str, object]:
        """Nothing: the model's own identity is in the fingerprint already."""
        return {"engine": "transformers"}

    def close(self) -> None:
        """Nothing to give back: the model is the caller's."""


def _collect(results: Sequence[Completion | Failure]) -> Generated:
    failures = [r for r in results if isinstance(r, Failure)]
    bad = None
    if failures:
        bad = BadSample("model", failures[0].code, f"generate: {failures[0].message}")
    return Generated(tuple(r for r in results if not isinstance(r, Failure)), bad)
