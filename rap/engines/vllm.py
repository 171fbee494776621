"""Engine ``vllm``: vLLM in this process, without a server.

The same requests as engine ``openai`` sends, through ``vllm.LLM.chat``. vLLM pins its own
torch and transformers, so it often lives in an environment of its own and is reached as a
server; this is for those who have both in one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..config import Sampling
from ..errors import RapConfigError, RapError, RapModelError, first_line
from ..model.rollouts import Completion
from ..samples.sample import BadSample
from . import wire
from .contract import Generated, LocalPrompts, Request
from .settings import EngineConfig

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

_REFUSALS = (ValueError, TypeError, KeyError, IndexError, OSError)
"""What vLLM raises for a prompt that it cannot use."""


class VLLMEngine:
    """``vllm.LLM`` behind the contract; ``concurrency`` requests at a time.

    The model is the folder or name of the local one. ``EngineConfig.vllm_options`` go to
    ``vllm.LLM``; what would change the completions' distribution stays here.
    """

    exact = False
    token_ids = True

    def __init__(self, config: EngineConfig, driver: ModelDriver | None) -> None:
        if driver is None:
            raise RapConfigError(
                "engine = 'vllm': it takes the name of the local model, so it needs one; a "
                "server alone is engine 'openai'"
            )
        self._config = config
        self.window = config.concurrency
        self._local = LocalPrompts.of(driver)
        self._model = str(getattr(driver.model.config, "_name_or_path", "") or "")
        self._llm: Any = None

    def check(self, sampling: Sampling) -> str:
        """Load the model; one line. Raises ``RapConfigError``, ``RapModelError``."""
        if sampling.repetition_penalty != 1:
            raise RapConfigError(
                f"sampling.repetition_penalty = {sampling.repetition_penalty}: vLLM counts "
                "the prompt's tokens as repeated, engine 'transformers' does not; leave it "
                "at 1 with engine 'vllm'"
            )
        vllm = _import()
        if not self._model:
            raise RapConfigError(
                "engine = 'vllm': the model has no name or folder that vLLM could load"
            )
        # generation_config: vLLM's own neutral values where a field is not given
        options = {"generation_config": "vllm", **self._config.vllm_options}
        try:
            self._llm = vllm.LLM(model=self._model, **options)
        except Exception as error:  # whatever a start of vLLM can run into
            raise RapModelError(
                f"vLLM cannot load {self._model}: {first_line(error)}"
            ) from error
        context = self._llm.llm_engine.model_config.max_model_len
        return (
            f"engine vllm: {vllm.__version__} in this process, model {self._model}, "
            f"{context} tokens of context"
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generated]]:
        """``concurrency`` requests at a time, in order."""
        rest = iter(requests)
        while batch := list(islice(rest, self._config.concurrency)):
            yield from zip(batch, self._batch(batch), strict=True)

    def _batch(self, batch: list[Request]) -> list[Generated]:
        """Together; one by one where a prompt among them cannot be used."""
        try:
            return self._chat(batch)
        except RapError:
            raise
        except _REFUSALS as error:
            if len(batch) > 1:
                return [g for request in batch for g in self._batch([request])]
            bad = BadSample(
                "prompt", "engine_refused", f"vLLM refuses it: {first_line(error)}"
            )
            return [Generated((), bad)]

    def _chat(self, batch: list[Request]) -> list[Generated]:
        params = [self._params(request) for request in batch]
        outputs = self._llm.chat(
            [wire.messages(request) for request in batch], params, use_tqdm=False
        )
        for request, output in zip(batch, outputs, strict=True):
            self._require_same_prompt(request, output)
        return [
            Generated(self._completions(request, output))
            for request, output in zip(batch, outputs, strict=True)
        ]

    def _params(self, request: Request) -> Any:
        fields = wire.sampling_fields(request.sampling, request.greedy)
        seeded = self._config.seeded and not request.greedy
        return _import().SamplingParams(
            n=len(request.seeds),
            seed=wire.wire_seed(request.seeds[0]) if seeded else None,
            max_tokens=request.sampling.max_new_tokens,
            logprobs=0,
            stop_token_ids=list(self._local.end_ids),
            logit_bias={i: -100.0 for i in self._local.image_ids},
            **fields,
        )

    def _require_same_prompt(self, request: Request, output: Any) -> None:
        if request.prompt_ids is None:
            return
        answer = {"prompt_token_ids": list(output.prompt_token_ids)}
        difference = wire.prompt_difference(answer, request.prompt_ids, self._local)
        if difference is not None:
            raise RapModelError(
                f"vLLM's prompt of {request.name} is not the local processor's: "
                f"{difference}"
            )

    def _completions(self, request: Request, output: Any) -> tuple[Completion, ...]:
        base = wire.wire_seed(request.seeds[0])
        seeded = self._config.seeded and not request.greedy
        return tuple(
            self._completion(choice, base + choice.index if seeded else -1)
            for choice in sorted(output.outputs, key=lambda choice: choice.index)
        )

    def _completion(self, choice: Any, seed: int) -> Completion:
        ids = tuple(int(i) for i in choice.token_ids)
        kept, n_sampled = wire.without_end(ids, choice.finish_reason, self._local)
        logps = [
            float(step[token].logprob)
            for step, token in zip(choice.logprobs or (), ids, strict=False)
        ]
        failed = next((i for i, x in enumerate(logps) if not math.isfinite(x)), None)
        known = len(logps) == len(ids) and failed is None
        return Completion(
            token_ids=kept,
            text=self._local.decode(kept),
            finish_reason=str(choice.finish_reason),
            seed=seed,
            n_sampled=n_sampled,
            logp=math.fsum(logps) if known else math.nan,
            failed_step=failed,
        )

    def provenance(self) -> dict[str, object]:
        """Engine, version, model and options."""
        return {
            "engine": "vllm",
            "version": str(_import().__version__),
            "model": self._model,
            "options": dict(self._config.vllm_options),
        }

    def close(self) -> None:
        """Let vLLM's processes and memory go."""
        self._llm = None


def _import() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise RapConfigError(
            f"engine = 'vllm' needs vllm in this environment ({first_line(error)}): pip "
            "install vllm, or start it as a server and take engine 'openai'"
        ) from None
    return vllm
