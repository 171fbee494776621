"""Settings, as frozen dataclasses. Each validates itself and names the bad field
(``RapConfigError``). NumPy's scalars are taken for Python's.

``ScoreConfig`` is what the heavy half (`rap.score`) needs and goes into the store's
fingerprint; ``ChooseConfig`` is what the light half (`rap.choose`) needs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import RapConfigError

EVIDENCE = ("rollouts", "answer", "logits")

COUNTERFACTUALS = ("drop", "blank", "noise", "shuffle")
COLUMNS = ("response", "prompt", "all")
RULES = ("budget", "paper")
ORDERS = ("gain", "learnable")
LIKELIHOODS = ("product", "mean")
DIVERGENCES = ("js", "kl", "rkl", "jeffreys", "tv", "hellinger2")

TRAIN_GROUP = 8
"""Completions a sample and epoch that training on everything would draw, for comparing
costs: GRPOTrainer's default."""


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RapConfigError(f"{name} = {value!r}: expected {expected}")


def plain(value: object) -> object:
    """NumPy's scalars as Python's; a float as the shortest decimal that means it, so
    that ``np.float32(0.29)`` is 0.29 and not 0.28999999165534973."""
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def _make_plain(settings: Any) -> None:
    """Every field of a frozen dataclass through ``plain``: fingerprints are JSON."""
    for f in dataclasses.fields(settings):
        object.__setattr__(settings, f.name, plain(getattr(settings, f.name)))


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float; True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    known = isinstance(value, str) and value in allowed
    _require(known, name, value, f"one of {tuple(allowed)}")


def _require_flags(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(isinstance(value, bool), name, value, "True or False")


def _part(kind: type, name: str, value: object) -> object:
    """A ``kind``, or a mapping of its fields made one."""
    if isinstance(value, kind):
        return value
    expected = f"rap.{kind.__name__} or a dict of its fields"
    _require(isinstance(value, Mapping), name, value, expected)
    fields: dict[Any, Any] = dict(value)  # type: ignore[call-overload]
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in fields:
        if key not in known:
            raise RapConfigError(f"{name}.{key}: rap.{kind.__name__} has no such field")
    return kind(**fields)


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
        _make_plain(self)
        _require(
            is_number(self.temperature) and self.temperature > 0,
            "temperature",
            self.temperature,
            "a number > 0",
        )
        _require(
            is_number(self.top_p) and 0 < self.top_p <= 1,
            "top_p",
            self.top_p,
            "a number in (0, 1]",
        )
        _require(
            _is_int(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "an integer >= 0"
        )
        _require(
            is_number(self.min_p) and 0 <= self.min_p < 1,
            "min_p",
            self.min_p,
            "a number in [0, 1)",
        )
        _require(
            is_number(self.repetition_penalty) and self.repetition_penalty > 0,
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
        _make_plain(self)
        _require(
            is_number(self.sigma) and self.sigma > 0, "sigma", self.sigma, "a number > 0"
        )
        _require_one_of("heads", self.heads, ("mean", "max"))
        _require_flags(self, "renormalise", "normalise")
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
        _require_one_of("columns", self.columns, COLUMNS)


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """Everything that decides what a sample's scores are, and how fast."""

    evidence: str = "logits"
    """``"rollouts"`` (the paper's), ``"answer"`` or ``"logits"``. One completion a sample
    is enough to find language priors and captured samples (benchmarks/results/
    selection_quality.md); an answer alone is too short for psi."""
    counterfactual: str = "drop"
    """The input without the image: ``"drop"``, ``"blank"``, ``"noise"``, ``"shuffle"``."""
    m1: int = 5
    """Rollouts with the image (evidence ``rollouts``)."""
    m0: int = 5
    """Rollouts without the image."""
    adaptive: int | None = None
    """If set, an arm of which the first so many completions are all right or all wrong
    draws no more; nor does the image arm where the text arm is always right (then
    D <= 0). c and m count what was drawn. Stopping when all agree pushes c/m away from
    1/2 a little: at the same cost a smaller fixed M decided as well in our measurements
    (benchmarks/results/selection_quality.md). None draws m1 and m0 of every sample."""
    sampling: Sampling = field(default_factory=Sampling)
    """How rollouts are drawn; a dict of `Sampling`'s fields becomes one."""
    ace: AceConfig = field(default_factory=AceConfig)
    """How psi is computed; a dict of `AceConfig`'s fields becomes one."""
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
    """The run fails as a whole when more than this share of samples is bad; one bad sample
    never stops it, however few there are, unless there is no other."""
    linear_memory: int = 64 << 20
    """Bytes of scratch for the fused head product (`rap.linear_cde`)."""

    def __post_init__(self) -> None:
        _make_plain(self)
        for name, kind in (("sampling", Sampling), ("ace", AceConfig)):
            object.__setattr__(self, name, _part(kind, name, getattr(self, name)))
        _require_one_of("evidence", self.evidence, EVIDENCE)
        _require_one_of("counterfactual", self.counterfactual, COUNTERFACTUALS)
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
        _require(
            self.adaptive is None or (_is_int(self.adaptive) and self.adaptive >= 2),
            "adaptive",
            self.adaptive,
            "None or an integer >= 2",
        )
        for name in ("workers", "seed"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 0, name, value, "an integer >= 0")
        for name in ("max_image_pixels", "linear_memory"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, name, value, "an integer >= 1")
        _require(
            isinstance(self.prompt_template, str) and "{question}" in self.prompt_template,
            "prompt_template",
            self.prompt_template,
            "a text that holds {question}",
        )
        _require(
            isinstance(self.answer_prefix, str),
            "answer_prefix",
            self.answer_prefix,
            "a text ('' for none)",
        )
        _require(
            self.screen_lambda_c is None
            or (is_number(self.screen_lambda_c) and -1 <= self.screen_lambda_c <= 1),
            "screen_lambda_c",
            self.screen_lambda_c,
            "None or a number in [-1, 1]",
        )
        _require(
            is_number(self.checker_timeout) and self.checker_timeout > 0,
            "checker_timeout",
            self.checker_timeout,
            "seconds > 0",
        )
        _require(
            is_number(self.max_bad_fraction) and 0 <= self.max_bad_fraction <= 1,
            "max_bad_fraction",
            self.max_bad_fraction,
            "a number in [0, 1]",
        )

    def fingerprint(self) -> dict[str, object]:
        """The fields that change a score; those that only change speed are left out."""
        speed = {"batch_size", "workers", "prefetch", "linear_memory", "max_bad_fraction"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in speed}


def require_judge(evidence: str, reward: object) -> None:
    """Raises ``RapConfigError`` for a reward function that nothing would call."""
    if reward is not None and evidence != "rollouts":
        raise RapConfigError(
            f"reward: evidence {evidence!r} judges no completion, so it would never be "
            "called; leave it out, or score with evidence 'rollouts'"
        )


@dataclass(frozen=True, slots=True)
class ChooseConfig:
    """How scores become a selection; method.md sections 3 and 4."""

    rule: str = "budget"
    """``"budget"``: keep floor(budget * n), thresholds are found.
    ``"paper"``: the published thresholds. ``rap.choose`` refuses settings that the rule has
    no use for; ``rap.selection.rules`` has the rules."""
    budget: float | None = None
    """Share of the samples to keep, in (0, 1]; rule ``budget`` only. None is 0.09."""
    lambda_c: float | None = None
    """Keep only if D > lambda_c. Rule ``paper``: None is 0.5."""
    lambda_a: float | None = None
    """Drop as attention-biased unless psi <= lambda_a. Rule ``paper``: None is 0.1."""
    replace: bool = True
    """Replace trivial samples by the hardest that can still be solved (DRM)."""
    readmit_hurt: bool | None = None
    """Whether a sample that the image hurts (D < 0) may be a replacement. None: only with
    rule ``paper``, which lets whatever CDE dropped come back."""
    order: str | None = None
    """What rule ``budget`` ranks by: ``"gain"`` (D) or ``"learnable"`` (D times what is
    left to learn). None: gain for rollouts, learnable for answer and logits."""
    by: str | None = None
    """Column whose values get their own budget, e.g. ``"source"``: of the score table, the
    data set or the rollouts."""
    trivial: float = 0.0
    """A survivor whose difficulty is at most this is trivial. The paper's 0 means
    "always solved"; probabilities (evidence ``answer``) hardly ever reach it."""
    unsolved: float = 1.0
    """A sample whose difficulty is at least this is never solved: there is nothing to
    reward. 1 means no correct completion; for probabilities (evidence ``answer`` and
    ``logits``) that p(answer) is below 1.1e-16, where 1 - p is 1 in float64. 0.999 drops
    answers with a probability up to one in a thousand."""
    likelihood: str = "product"
    """Which p(answer) evidence ``answer`` and ``logits`` go by: ``"product"`` over its
    tokens, or their geometric ``"mean"``, which does not vanish for long references."""
    divergence: str = "js"
    """Which divergence is D when the evidence is ``logits``."""

    def __post_init__(self) -> None:
        _make_plain(self)
        _require_one_of("rule", self.rule, RULES)
        _require_flags(self, "replace")
        if self.readmit_hurt is not None:
            _require_flags(self, "readmit_hurt")
        _require(
            self.budget is None or (is_number(self.budget) and 0 < self.budget <= 1),
            "budget",
            self.budget,
            "None or a number in (0, 1]",
        )
        _require(
            self.lambda_c is None
            or (is_number(self.lambda_c) and -1 <= self.lambda_c <= 1),
            "lambda_c",
            self.lambda_c,
            "None or a number in [-1, 1]",
        )
        _require(
            self.lambda_a is None or (is_number(self.lambda_a) and self.lambda_a > 0),
            "lambda_a",
            self.lambda_a,
            "None or a number > 0",
        )
        _require(
            self.by is None or isinstance(self.by, str),
            "by",
            self.by,
            "None or the name of a column",
        )
        if self.order is not None:
            _require_one_of("order", self.order, ORDERS)
        _require(
            is_number(self.trivial) and 0 <= self.trivial < 1,
            "trivial",
            self.trivial,
            "a number in [0, 1)",
        )
        _require(
            is_number(self.unsolved) and self.trivial < self.unsolved <= 1,
            "unsolved",
            self.unsolved,
            f"a number above trivial = {self.trivial}, at most 1",
        )
        _require_one_of("likelihood", self.likelihood, LIKELIHOODS)
        _require_one_of("divergence", self.divergence, DIVERGENCES)
