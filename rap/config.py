"""Settings, as frozen dataclasses. Each validates itself and names the bad field.

``ScoreConfig`` is what the heavy half (`rap.score`) needs and goes into the store's
fingerprint; ``ChooseConfig`` is what the light half (`rap.choose`) needs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from .errors import RapConfigError
from .table import EVIDENCE

COUNTERFACTUALS = ("drop", "blank", "noise", "shuffle")
COLUMNS = ("response", "prompt", "all")
RULES = ("budget", "paper")
DIVERGENCES = ("js", "kl", "rkl", "jeffreys", "tv", "hellinger2")

TRAIN_GROUP = 8
"""Completions a sample and epoch that training on everything would draw, for comparing
costs: GRPOTrainer's default."""


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RapConfigError(f"{name} = {value!r}: expected {expected}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. Every field reaches the sampler explicitly, so that
    a model's own ``generation_config.json`` can never make rollouts greedy."""

    temperature: float = 1.0
    """Softmax temperature, > 0."""
    top_p: float = 1.0
    """Nucleus mass kept, in (0, 1]."""
    top_k: int = 0
    """Number of tokens kept; 0 keeps all."""
    min_p: float = 0.0
    """Least probability kept, relative to the most probable token, in [0, 1)."""
    repetition_penalty: float = 1.0
    """1.0 is none."""
    max_new_tokens: int = 256
    """A completion is cut here and marked ``finish_reason="length"``."""

    def __post_init__(self) -> None:
        _require(
            _is_finite(self.temperature) and self.temperature > 0,
            "temperature",
            self.temperature,
            "a number > 0",
        )
        _require(
            _is_finite(self.top_p) and 0 < self.top_p <= 1,
            "top_p",
            self.top_p,
            "a number in (0, 1]",
        )
        _require(
            _is_int(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "an integer >= 0"
        )
        _require(
            _is_finite(self.min_p) and 0 <= self.min_p < 1,
            "min_p",
            self.min_p,
            "a number in [0, 1)",
        )
        _require(
            _is_finite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            self.repetition_penalty,
            "a number > 0",
        )
        _require(
            _is_int(self.max_new_tokens) and self.max_new_tokens >= 1,
            "max_new_tokens",
            self.max_new_tokens,
            "an integer >= 1",
        )


@dataclass(frozen=True, slots=True)
class AceConfig:
    """How psi is read off the attention; see ``rap.ace`` and method.md section 2."""

    sigma: float = 2.0
    """Scale of the attention weight inside the logarithm."""
    heads: str = "mean"
    """``"mean"`` or ``"max"`` over heads (the score table holds one psi a sample)."""
    renormalise: bool = False
    """Rows rescaled to sum 1 after the head reduction (OPERA's form)."""
    normalise: bool = True
    """Geometric mean over a column's rows instead of the published product."""
    min_rows: int = 8
    """Columns seen by fewer response rows are no candidates."""
    window: int | None = None
    """Use at most this many rows of a column; None is all."""
    columns: str = "response"
    """Which columns are candidates: ``"response"``, ``"prompt"`` or ``"all"``."""

    def __post_init__(self) -> None:
        _require(
            _is_finite(self.sigma) and self.sigma > 0, "sigma", self.sigma, "a number > 0"
        )
        _require(self.heads in ("mean", "max"), "heads", self.heads, "'mean' or 'max'")
        _require(
            _is_int(self.min_rows) and self.min_rows >= 1,
            "min_rows",
            self.min_rows,
            "an integer >= 1",
        )
        _require(
            self.window is None or (_is_int(self.window) and self.window >= 1),
            "window",
            self.window,
            "None or an integer >= 1",
        )
        _require(self.columns in COLUMNS, "columns", self.columns, f"one of {COLUMNS}")


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """Everything that decides what a sample's scores are, and how fast."""

    evidence: str = "answer"
    """``"rollouts"`` (the paper's), ``"answer"`` or ``"logits"``; design.md section 6."""
    counterfactual: str = "drop"
    """The input without the image: ``"drop"``, ``"blank"``, ``"noise"``, ``"shuffle"``."""
    m1: int = 5
    """Rollouts with the image (evidence ``rollouts``)."""
    m0: int = 5
    """Rollouts without the image."""
    sampling: Sampling = field(default_factory=Sampling)
    """How rollouts are drawn."""
    ace: AceConfig = field(default_factory=AceConfig)
    """How psi is computed."""
    prompt_template: str = "{question}{choices}"
    """The user's turn. ``{question}`` and ``{choices}`` are filled in; choices become
    lines "(A) text"."""
    answer_prefix: str = "The answer is "
    """Written before the reference answer in the teacher-forced evidence ``answer``."""
    seed: int = 0
    """Seeds rollouts, noise images and the shuffle of images."""
    screen_lambda_c: float | None = None
    """If set, a sample whose text arm already rules out D > screen_lambda_c is not
    rolled out with the image (text-arm-first saving); it then has m1 = 0."""
    batch_size: int = 8
    """Samples a forward. Does not change any decision."""
    workers: int = 2
    """Threads that decode and preprocess images ahead of the model."""
    prefetch: int = 4
    """Batches prepared ahead of the model, at most: bounds host memory."""
    shard_size: int = 256
    """Samples a shard of the store."""
    max_prompt_tokens: int = 8192
    """A longer prompt is quarantined (image tokens are never truncated)."""
    max_image_pixels: int = 50_000_000
    """A larger image is quarantined before it is decoded."""
    checker_timeout: float = 5.0
    """Seconds one answer check may take."""
    max_bad_fraction: float = 0.05
    """The run fails as a whole when more than this share of samples is bad."""
    linear_memory: int = 64 << 20
    """Bytes of scratch for the fused head product (`rap.linear_cde`)."""

    def __post_init__(self) -> None:
        _require(self.evidence in EVIDENCE, "evidence", self.evidence, f"one of {EVIDENCE}")
        _require(
            self.counterfactual in COUNTERFACTUALS,
            "counterfactual",
            self.counterfactual,
            f"one of {COUNTERFACTUALS}",
        )
        for name in (
            "m1",
            "m0",
            "batch_size",
            "prefetch",
            "shard_size",
            "max_prompt_tokens",
        ):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, name, value, "an integer >= 1")
        for name in ("m1", "m0"):
            value = getattr(self, name)
            _require(value <= 32767, name, value, "an integer <= 32767")
        for name in ("workers", "seed"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 0, name, value, "an integer >= 0")
        for name in ("max_image_pixels", "linear_memory"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, name, value, "an integer >= 1")
        _require(
            "{question}" in self.prompt_template,
            "prompt_template",
            self.prompt_template,
            "a text that holds {question}",
        )
        _require(
            self.screen_lambda_c is None
            or (_is_finite(self.screen_lambda_c) and -1 <= self.screen_lambda_c <= 1),
            "screen_lambda_c",
            self.screen_lambda_c,
            "None or a number in [-1, 1]",
        )
        _require(
            _is_finite(self.checker_timeout) and self.checker_timeout > 0,
            "checker_timeout",
            self.checker_timeout,
            "seconds > 0",
        )
        _require(
            _is_finite(self.max_bad_fraction) and 0 <= self.max_bad_fraction <= 1,
            "max_bad_fraction",
            self.max_bad_fraction,
            "a number in [0, 1]",
        )

    def fingerprint(self) -> dict[str, object]:
        """The fields that change a score; those that only change speed are left out."""
        speed = {"batch_size", "workers", "prefetch", "linear_memory", "max_bad_fraction"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in speed}


@dataclass(frozen=True, slots=True)
class ChooseConfig:
    """How scores become a selection; method.md sections 3 and 4."""

    rule: str = "budget"
    """``"budget"``: keep exactly floor(budget * n), thresholds are found.
    ``"paper"``: the published thresholds."""
    budget: float | None = None
    """Share of the samples to keep, in (0, 1]; rule ``budget`` only. None is 0.09."""
    lambda_c: float | None = None
    """Keep only if D > lambda_c. Rule ``paper``: None is 0.5."""
    lambda_a: float | None = None
    """Drop as attention-biased unless psi <= lambda_a. Rule ``paper``: None is 0.1."""
    replace: bool = True
    """Replace trivial samples by the hardest that can still be solved (DRM)."""
    by: str | None = None
    """Column whose values get their own budget, e.g. ``"source"``."""
    trivial: float = 0.0
    """A survivor whose difficulty is at most this is trivial. The paper's 0 means
    "always solved"; probabilities (evidence ``answer``) hardly ever reach it."""
    divergence: str = "js"
    """Which divergence is D when the evidence is ``logits``."""

    def __post_init__(self) -> None:
        _require(self.rule in RULES, "rule", self.rule, f"one of {RULES}")
        _require(
            self.budget is None or (_is_finite(self.budget) and 0 < self.budget <= 1),
            "budget",
            self.budget,
            "None or a number in (0, 1]",
        )
        _require(
            self.rule == "budget" or self.budget is None,
            "budget",
            self.budget,
            "None with rule='paper', which keeps what passes its thresholds",
        )
        _require(
            self.lambda_c is None
            or (_is_finite(self.lambda_c) and -1 <= self.lambda_c <= 1),
            "lambda_c",
            self.lambda_c,
            "None or a number in [-1, 1]",
        )
        _require(
            self.lambda_a is None or (_is_finite(self.lambda_a) and self.lambda_a > 0),
            "lambda_a",
            self.lambda_a,
            "None or a number > 0",
        )
        _require(
            self.rule == "budget" or self.by is None,
            "by",
            self.by,
            "None with rule='paper', which has no budget to divide",
        )
        _require(
            _is_finite(self.trivial) and 0 <= self.trivial < 1,
            "trivial",
            self.trivial,
            "a number in [0, 1)",
        )
        _require(
            self.divergence in DIVERGENCES,
            "divergence",
            self.divergence,
            f"one of {DIVERGENCES}",
        )
