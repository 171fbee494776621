"""Completions sampled from the model itself, with and without the image.

Decisions, and their reasons:

* **Every sampling field is ours.** ``generate`` fills each field that is ``None`` from
  the model's ``generation_config.json``; several vision models ship ``top_k=1`` or
  ``temperature=0.1`` there, which makes all M rollouts equal (difficulty is then 0 or 1
  for every sample). While we generate, the model's generation config is replaced by an
  empty one: only its end, pad and begin tokens are carried over.
* **Own randomness, own coupling.** ``do_sample=False``, and the last logits processor
  turns the warped scores into a one-hot row, so that the argmax *is* the sample. The
  token is the winner of an exponential race: argmin over tokens t of E_t / p_t, with
  E_t = -log(1 - v_t) and v_t a SplitMix64 hash of (row seed, step, t). That samples
  exactly from the softmax (the Gumbel-max trick), needs no generator state, and is
  independent of the other rows of the batch. It is chosen over the inverse of the
  cumulative distribution because of rounding: another batch shape moves each logit by
  about 1e-6, and the shifts of all the interval borders add up (measured: 1,600 times the
  total variation distance at 20,000 tokens), while two races over nearly equal p differ
  with probability at most twice that distance.
* **Seeds by name.** The seed of a row is a hash of (seed, sample id, arm, number): it
  does not depend on the order, batch or process in which a sample is met.

Guaranteed: the same batch on the same machine gives the same bytes. For another batch
size or padding the tokens are equal unless two tokens tie within the model's own rounding
noise: about 1e-6 a token in float32, but about 1e-3 in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import Sampling

if TYPE_CHECKING:
    import torch

    from .driver import ModelDriver, Prepared

IMAGE_ARM = "image"
BLIND_ARM = "counterfactual"
ARM_TEXT = {IMAGE_ARM: "with the image", BLIND_ARM: "without the image"}
"""The arms in messages."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of one prompt."""

    token_ids: tuple[int, ...] | None
    """Sampled tokens, the end-of-turn token left out; () is an empty completion. None if
    the engine does not return them."""
    text: str
    """``token_ids`` decoded, special tokens left out."""
    finish_reason: str
    """``"stop"`` (an end token was sampled) or ``"length"``."""
    seed: int
    """Seed of this row, see `row_seed`; -1 if greedy, or if the engine takes no seeds."""
    n_sampled: int
    """Sampled tokens, the end token included."""
    logp: float
    """Sum over the sampled tokens of log p under the model's own distribution (before
    temperature and the other warpers), nats; NaN if the engine returns none."""
    failed_step: int | None = None
    """First step at which the logits were not finite; None if they always were."""


def row_seed(seed: int, sample_id: str, arm: str, number: int) -> int:
    """Seed of one rollout: 63 bits of a hash of its name, the same on every machine."""
    name = json.dumps([seed, sample_id, arm, number]).encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def degenerate(completions: Sequence[Completion]) -> bool:
    """True if all completions are equal although the model's own probabilities make that
    unlikely.

    A model that is sure of its answer repeats it: M samples of a text of probability p
    are all equal to the first with probability p^(M-1). Only when that
    is below 5 % under the model's own, unwarped distribution (so that ``top_k=1`` or a tiny
    temperature is seen) does the group count as degenerate. Needs two completions;
    empty ones have a code of their own and do not count.
    """
    if len(completions) < 2:
        return False
    first = completions[0]
    said = [c.text if c.token_ids is None else c.token_ids for c in completions]
    if not said[0] or any(other != said[0] for other in said[1:]):
        return False
    return first.logp * (len(completions) - 1) < math.log(0.05)


def generate(
    driver: ModelDriver,
    batch: Sequence[Prepared],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    greedy: bool = False,
) -> list[list[Completion]]:
    """Sample ``len(seeds[i])`` completions of prompt i, all in one left-padded batch.

    Each prompt is read once, whatever the number of its completions (``rap.model.decode``;
    prompts are told apart by identity). With ``greedy`` the most
    probable token is taken instead (``repetition_penalty`` still applies) and the values
    of the seeds play no role.

    Placeholder tokens of images and videos are never sampled: they are no text, and a
    response that held one could not be teacher-forced.

    Raises ``torch.OutOfMemoryError`` unchanged; logits that are not finite do not raise
    but set ``Completion.failed_step``.
    """
    from . import decode

    rows = [prepared for prepared, s in zip(batch, seeds, strict=True) for _ in s]
    row_seeds = [seed for s in seeds for seed in s]
    if not rows:
        return [[] for _ in batch]
    ends = end_token_ids(driver.model, driver.processor)
    if driver.unshared:
        tokens, logp, finite = _generated(driver, rows, row_seeds, sampling, ends, greedy)
    else:
        distinct = list({id(prepared): prepared for prepared in rows}.values())
        with decode.running(driver) as seen:
            state, places = decode.prompts(driver, distinct, seen)
            place = dict(zip(map(id, distinct), places, strict=True))
            which = [place[id(prepared)] for prepared in rows]
        with decode.running(driver, watched=False):
            sampler = _sampler(driver, state.mask[which], row_seeds, sampling, ends, greedy)
            tokens, logp, finite = decode.complete(
                driver, state, which, sampler, ends, sampling.max_new_tokens
            )
    tokenizer = getattr(driver.processor, "tokenizer", driver.processor)
    done = [
        _completion(
            ids, ends, logp[r], finite[r], -1 if greedy else row_seeds[r], tokenizer
        )
        for r, ids in enumerate(tokens)
    ]
    start = 0
    grouped = []
    for s in seeds:
        grouped.append(done[start : start + len(s)])
        start += len(s)
    return grouped


def _generated(
    driver: ModelDriver,
    rows: Sequence[Prepared],
    row_seeds: Sequence[int],
    sampling: Sampling,
    ends: list[int],
    greedy: bool,
) -> tuple[list[list[int]], list[list[float]], list[list[bool]]]:
    """Tokens, log p and finiteness from the model's own ``generate``, which reads each
    row's prompt anew: for models whose cache is not shared."""
    import torch
    from transformers.generation import GenerationConfig, LogitsProcessorList

    model = driver.model
    inputs = driver.collate(rows, padding_side="left")
    n_prompt = inputs["input_ids"].shape[1]
    sampler = _sampler(driver, inputs["attention_mask"], row_seeds, sampling, ends, greedy)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=_pad_token_id(driver.processor, ends),
        bos_token_id=model.generation_config.bos_token_id,
    )
    with torch.inference_mode(), _own_generation_config(model):
        output = model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([sampler]),
        )
    tokens = output[:, n_prompt:].tolist()
    logp, finite = sampler.results()
    driver.count_generated(rows, inputs, tokens, ends)
    return tokens, logp, finite


def _completion(
    ids: list[int],
    ends: list[int],
    logp: list[float],
    finite: list[bool],
    seed: int,
    tokenizer: Any,
) -> Completion:
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    n = len(ids) if stop is None else stop + 1
    failed = next((i for i, ok in enumerate(finite[:n]) if not ok), None)
    kept = ids if stop is None else ids[:stop]
    return Completion(
        token_ids=tuple(kept),
        text=tokenizer.decode(kept, skip_special_tokens=True),
        finish_reason="length" if stop is None else "stop",
        seed=seed,
        n_sampled=n,
        logp=math.fsum(logp[:n]) if failed is None else math.nan,
        failed_step=failed,
    )


def end_token_ids(model: Any, processor: Any) -> list[int]:
    """Tokens that end a turn: the model's own list, and the tokenizer's."""
    tokenizer = getattr(processor, "tokenizer", processor)
    found: list[int] = []
    for value in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        for token in value if isinstance(value, (list, tuple)) else [value]:
            if token is not None and int(token) not in found:
                found.append(int(token))
    return found


def _pad_token_id(processor: Any, ends: list[int]) -> int:
    """Any id will do: what follows an end token is cut away."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return ends[0] if ends else 0


@contextmanager
def _own_generation_config(model: Any) -> Iterator[None]:
    """Hide the model's generation config, from which ``generate`` fills what is None."""
    from transformers.generation import GenerationConfig

    theirs = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs


def placeholder_ids(model: Any) -> list[int]:
    """Tokens that stand for an image or a video."""
    names = [
        f"{kind}_token_{what}" for kind in ("image", "video") for what in ("id", "index")
    ]
    values = [getattr(model.config, name, None) for name in names]
    return sorted({int(v) for v in values if isinstance(v, int) and v >= 0})


def _sampler(
    driver: ModelDriver,
    mask: torch.Tensor,
    row_seeds: Sequence[int],
    sampling: Sampling,
    ends: list[int],
    greedy: bool,
) -> RaceSampler:
    """The one logits processor: transformers' own warpers, in their order, then a race."""
    from transformers.generation import logits_process as lp

    first = (mask != 0).int().argmax(dim=1)  # left padding of each row
    warpers: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        penalty = float(sampling.repetition_penalty)
        warpers.append(
            lp.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=first)
        )
    if not greedy:
        if sampling.temperature != 1.0:
            warpers.append(lp.TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k != 0:
            warpers.append(lp.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            warpers.append(lp.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0.0:
            warpers.append(lp.MinPLogitsWarper(sampling.min_p))
    return RaceSampler(
        warpers,
        None if greedy else row_seeds,
        forbidden=placeholder_ids(driver.model),
        fallback=ends[0] if ends else 0,
    )


_ADD = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: SplitMix64's increment
_MUL1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MUL2 = -7723592293110705685  # 0x94D049BB133111EB


def mix64(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser on int64, wrapping; the same bits on every device."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MUL1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MUL2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class RaceSampler:
    """A ``LogitsProcessor``: scores [B, V] in, 0 at the sampled token and -inf elsewhere.

    ``seeds`` None takes the most probable token. Keeps, on the device, the log-probability
    of each sampled token and whether the row's logits were finite; -inf (a masked token)
    is allowed, NaN, +inf and a row of nothing but -inf are not: such a row gives
    ``fallback``.
    """

    # Rows are sampled in blocks of this many scores, so that the int64 hashes of a large
    # batch times a large vocabulary are never held at once.
    BLOCK = 1 << 22

    def __init__(
        self,
        warpers: Sequence[Any],
        seeds: Sequence[int] | None,
        *,
        forbidden: Sequence[int] = (),
        fallback: int = 0,
    ) -> None:
        self._warpers = list(warpers)
        self._seeds = seeds
        self._forbidden = list(forbidden)
        self._fallback = fallback
        self._step = 0
        self._logp: list[torch.Tensor] = []
        self._finite: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        token, logp, finite = self.draw(input_ids, scores)
        self._logp.append(logp)
        self._finite.append(finite)
        out = torch.full_like(scores, -math.inf)
        return out.scatter(1, token[:, None], 0.0)

    @property
    def reads_ids(self) -> bool:
        """Whether a row's tokens so far matter (``repetition_penalty``)."""
        return any(hasattr(warper, "prompt_ignore_length") for warper in self._warpers)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows only."""
        if self._seeds is not None:
            self._seeds = [self._seeds[row] for row in rows]
        for warper in self._warpers:
            if hasattr(warper, "prompt_ignore_length"):
                warper.prompt_ignore_length = warper.prompt_ignore_length[list(rows)]

    def draw(
        self, input_ids: torch.Tensor | None, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The next token [B] of each row, its log p (float64) and whether the scores
        [B, V] were finite. input_ids [B, L]: only if ``reads_ids``."""
        import torch

        forbidden = [t for t in self._forbidden if t < scores.shape[1]]
        if forbidden:
            scores = scores.clone()
            scores[:, forbidden] = -math.inf
        total = torch.logsumexp(scores, dim=-1)
        finite = torch.isfinite(total)
        warped = scores
        for warper in self._warpers:
            warped = warper(input_ids, warped)
        token = self._race(warped)
        token = torch.where(finite, token, self._fallback)
        chosen = scores.gather(1, token[:, None])[:, 0]
        self._step += 1
        return token, (chosen - total).double(), finite

    def _race(self, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if self._seeds is None:
            return scores.argmax(dim=-1)
        rows, n_vocab = scores.shape
        device = scores.device
        seeds = torch.tensor(self._seeds, dtype=torch.int64, device=device)
        step = torch.full_like(seeds, self._step + 1)
        keys = mix64(mix64(seeds + _ADD) + step * _MUL2)  # products of tensors wrap
        tokens = torch.arange(1, n_vocab + 1, dtype=torch.int64, device=device) * _ADD
        block = max(1, self.BLOCK // n_vocab)
        winners = []
        for start in range(0, rows, block):
            race = race_times(keys[start : start + block, None] + tokens)
            winners.append((scores[start : start + block] - race.log()).argmax(dim=-1))
        return torch.cat(winners)

    def results(self) -> tuple[list[list[float]], list[list[bool]]]:
        """log p and finiteness of each sampled token, [B][steps]."""
        import torch

        logp = torch.stack(self._logp, dim=1).tolist()
        finite = torch.stack(self._finite, dim=1).tolist()
        return logp, finite


def race_times(counters: torch.Tensor) -> torch.Tensor:
    """Standard exponential numbers, float32, one for each int64 counter.

    -log(1 - v) with v = hash / 2^63 keeps its relative precision near 0, where races are
    won: the least time is 2^-63, so even a token of probability 1e-15 has its share.
    v is kept below 1 (P = 6e-8), where the time would be infinite.
    """
    import torch

    bits = (mix64(counters) >> 1) & ((1 << 63) - 1)
    v = bits.to(torch.float32).mul_(2.0**-63)
    return -torch.log1p(-v.clamp_(2.0**-64, 1.0 - 2.0**-24))
