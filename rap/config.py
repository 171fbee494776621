"""Settings of scoring and choosing. Each checks itself and names the bad field
(``RapConfigError``); see ``rap.settings``, which also says why pydantic. A field's type,
bounds, default and help stand here and nowhere else: docstrings and the command line take
them from here.

``ScoreConfig`` is what the slow step (`rap.score`) needs and goes into the store's
fingerprint; ``ExecutorConfig`` is which processes do it; ``ChooseConfig`` is what the fast
step (`rap.choose`) needs. ``ScoreOptions``, ``ExecutorOptions`` and ``ChooseOptions`` are
the same fields for type checkers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict, get_args

from .divergences import DIVERGENCES as DIVERGENCES
from .divergences import DivergenceName
from .errors import RapConfigError
from .executorconfig import ExecutorConfig as ExecutorConfig
from .executorconfig import ExecutorName as ExecutorName
from .executorconfig import ExecutorOptions as ExecutorOptions
from .executorconfig import require_whole as require_whole
from .presets import PRESETS as PRESETS
from .presets import Preset as Preset
from .presets import PresetName as PresetName
from .presets import preset_of as preset_of
from .settings import Ge, Gt, Le, Lt, Number, Predicate, setting, settings

PrepareName = Literal["threads", "processes"]
EvidenceName = Literal["rollouts", "answer", "logits", "cascade"]
CounterfactualName = Literal["drop", "blank", "noise", "shuffle"]
ColumnsName = Literal["response", "prompt", "all"]
RuleName = Literal["budget", "learn", "paper"]
OrderName = Literal["gain", "learnable", "posterior"]
LikelihoodName = Literal["product", "mean"]
BiasedName = Literal["report", "drop"]

EVIDENCE: tuple[str, ...] = get_args(EvidenceName)
GRADED: tuple[EvidenceName, ...] = ("rollouts", "cascade")
"""Evidence whose completions are graded, so that a reward function has something to do."""
COUNTERFACTUALS: tuple[str, ...] = get_args(CounterfactualName)
COLUMNS: tuple[str, ...] = get_args(ColumnsName)
RULES: tuple[str, ...] = get_args(RuleName)
ORDERS: tuple[str, ...] = get_args(OrderName)

DEFAULT_BUDGET = 0.09
"""Share that is kept where no budget is given (the paper keeps 9.3 % of its data)."""
DEFAULT_GUARD = 0.1
"""Share of the kept samples that rule learn gives to attention-biased ones."""
DEFAULT_GUARD_HURT = 0.3
"""The same for those that the image hurts; chosen on one pool of the demo world
(benchmarks/training_plan.md)."""
DEFAULT_BATCH = 8
"""Samples a batch where neither their number nor their tokens are limited."""
MAX_IMAGE_PIXELS = 50_000_000
"""Width times height of an image, at most: a larger one is not decoded."""
PROMPT_TEMPLATE = "{question}{choices}"
"""The user's turn: question and choices as they stand."""
TRAIN_GROUP = 8
"""Completions a sample and epoch that training on everything would sample, for comparing
costs: GRPOTrainer's default."""


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float; True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


# ---------------------------------------------------------------- scoring


@settings
class Sampling:
    """How completions are sampled. Every field reaches the sampler explicitly, so that
    a model's own ``generation_config.json`` can never make rollouts greedy."""

    temperature: Annotated[Number, Gt(0)] = setting("Softmax temperature.", default=1.0)
    top_p: Annotated[Number, Gt(0), Le(1)] = setting(
        "Nucleus sampling: the probability mass that is kept.", default=1.0
    )
    top_k: Annotated[int, Ge(0)] = setting(
        "The number of most probable tokens that are kept; 0 keeps all.", default=0
    )
    min_p: Annotated[Number, Ge(0), Lt(1)] = setting(
        "The least probability that is kept, relative to the most probable token's.",
        default=0.0,
    )
    repetition_penalty: Annotated[Number, Gt(0)] = setting(
        "Penalty on tokens that have occurred; 1 is none.", default=1.0
    )
    max_new_tokens: Annotated[int, Ge(1)] = setting(
        'Tokens of a completion, at most; a cut one is marked finish_reason "length".',
        default=256,
    )


@settings
class AceConfig:
    """How psi is computed from the attention weights; see ``rap.ace`` and METHOD.md
    section 2."""

    sigma: Annotated[Number, Gt(0)] = setting(
        "Scale of the attention weight inside the logarithm.", default=2.0
    )
    heads: Literal["mean", "max"] = setting(
        "How the heads are reduced (the score table holds one psi a sample).",
        default="mean",
    )
    renormalise: bool = setting(
        "Rescale each row to sum 1 after the heads are reduced (OPERA's form).",
        default=False,
    )
    normalise: bool = setting(
        "The geometric mean over a column's rows instead of the published product.",
        default=True,
    )
    min_rows: Annotated[int, Ge(1)] = setting(
        "A column seen by fewer response rows is no candidate.", default=8
    )
    window: Annotated[int, Ge(1)] | None = setting(
        "Use at most this many rows of a column.", default=None, none="all"
    )
    columns: ColumnsName = setting(
        "Which tokens are candidates: those of the response, of the prompt, or all.",
        default="response",
    )


@settings
class ScoreConfig:
    """Everything that decides what a sample's scores are, and how fast they come."""

    evidence: EvidenceName = setting(
        "What a sample is scored by; rap.scores.kinds has what each kind says.",
        default="cascade",
    )
    counterfactual: CounterfactualName = setting(
        "What stands for the image in the input without it: nothing, a blank image, noise, "
        "or another sample's image.",
        default="drop",
    )
    m1: Annotated[int, Ge(1), Le(32767)] = setting(
        "Completions with the image (evidence rollouts; cascade: at most).", default=5
    )
    m0: Annotated[int, Ge(1), Le(32767)] = setting(
        "Completions without the image (evidence rollouts; cascade: at most).", default=5
    )
    sampling: Sampling = setting("How rollouts are sampled.", default_factory=Sampling)
    ace: AceConfig = setting("How psi is computed.", default_factory=AceConfig)
    prompt_template: Annotated[str, Predicate(lambda text: "{question}" in text)] = setting(
        "The user's turn. {question} and {choices} are filled in; choices become lines "
        '"(A) text".',
        default=PROMPT_TEMPLATE,
        expected="a text that holds {question}",
    )
    system_prompt: Annotated[str, Predicate(lambda text: text.strip())] | None = setting(
        "The system turn before each prompt, in scoring, prepare and exports. A sample "
        "with a system turn of its own is quarantined.",
        default=None,
        none="the data's own, if any",
        expected="None or a text that is not empty",
    )
    answer_prefix: str = setting(
        "Text before the reference answer in evidence answer.",
        default="The answer is ",
        expected="a text ('' for none)",
    )
    seed: Annotated[int, Ge(0)] = setting(
        "Seed of rollouts, noise images and the shuffle of images.", default=0
    )
    cascade_completions: Annotated[Number, Gt(0), Le(1)] = setting(
        "Evidence cascade: the bill, as a share of the m1 + m0 completions a sample of "
        "evidence rollouts; kept on average.",
        default=0.19,
    )
    cascade_pilot: Annotated[Number, Ge(0), Le(1)] = setting(
        "Evidence cascade: share of the samples that are scored first and get completions "
        "whatever their p(answer), from which is learned what it says.",
        default=0.08,
    )
    cascade_sure: Annotated[Number, Gt(0.5), Lt(1)] = setting(
        "Evidence cascade: completions without the image stop when the sign of D is this "
        "probable.",
        default=0.8,
    )
    batch_size: Annotated[int, Ge(1)] | None = setting(
        "Samples a batch, at most. Changes no decision.",
        default=None,
        speed=True,
        none="as many as batch_tokens allows",
    )
    batch_tokens: Annotated[int, Ge(1)] | None = setting(
        "Tokens a forward pass, padding included, and prompt tokens a batch of samples. "
        "Samples of like length share a forward. Changes no decision.",
        default=8192,
        speed=True,
        none="batch_size decides alone, 8 if it is not given",
    )
    compile_decode: bool = setting(
        "Whether completions of the local model are sampled with a cache of fixed size and "
        "a compiled forward. The same tokens on a CPU; it never ran on a GPU, so it is off "
        "unless asked for. Minutes pass until it is compiled.",
        default=False,
        speed=True,
    )
    workers: Annotated[int, Ge(0)] = setting(
        "Threads or processes that decode and preprocess images ahead of the model.",
        default=2,
        speed=True,
    )
    prepare: PrepareName | None = setting(
        "Whether these are threads, or processes, which do not hold up the thread that "
        "runs the model. The same bytes.",
        default=None,
        speed=True,
        none="processes beside a model on a GPU, if the processor can be pickled",
    )
    prefetch: Annotated[int, Ge(1)] = setting(
        "Batches prepared ahead of the model, at most: bounds host memory.",
        default=4,
        speed=True,
    )
    shard_size: Annotated[int, Ge(1)] | None = setting(
        "Samples a shard of the store.",
        default=None,
        none="the store's; of a new one 256, above a million samples 4,096 or more",
    )
    max_prompt_tokens: Annotated[int, Ge(1)] = setting(
        "A longer prompt is quarantined (image tokens are never truncated).", default=8192
    )
    max_image_pixels: Annotated[int, Ge(1)] = setting(
        "A larger image is quarantined before it is decoded (width times height).",
        default=MAX_IMAGE_PIXELS,
    )
    checker_timeout: Annotated[Number, Gt(0)] = setting(
        "Seconds one answer check may take.", default=5.0, expected="seconds > 0"
    )
    max_bad_fraction: Annotated[Number, Ge(0), Le(1)] = setting(
        "The run fails when more than this share of the samples is bad; a single bad "
        "sample never stops it, unless there is no other.",
        default=0.05,
        speed=True,
    )
    linear_memory: Annotated[int | None, Ge(1)] = setting(
        "Bytes of scratch memory for the fused head product (rap.linear_cde).",
        default=None,
        none="64 MiB on the host, 320 MiB on a GPU",
        speed=True,
    )

    def batch_is_full(self, samples: int, tokens: int) -> bool:
        """Whether a batch of so many samples and prompt tokens is to be scored."""
        most = self.batch_size
        if most is None and self.batch_tokens is None:
            most = DEFAULT_BATCH
        full = self.batch_tokens is not None and tokens >= self.batch_tokens
        return full or (most is not None and samples >= most)

    def fingerprint(self) -> dict[str, object]:
        """The fields that change a score; those that only change speed are left out, and
        those of the cascade where it is not used. Stores of its earlier form, which decided
        in two passes over the pool, are others."""
        out = {f.name for f in dataclasses.fields(self) if f.metadata["speed"]}
        if self.system_prompt is None:  # stores from before there was one go on
            out.add("system_prompt")
        if self.evidence != "cascade":
            out |= {"cascade_completions", "cascade_pilot", "cascade_sure"}
        more = {"cascade": "rounds"} if self.evidence == "cascade" else {}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in out} | more

    @classmethod
    def of_fingerprint(cls, told: Mapping[str, Any]) -> ScoreConfig:
        """The settings whose `fingerprint` this is; those it leaves out are the defaults.
        What is no field (the form of the cascade, settings of earlier versions) is passed
        over. Raises ``RapConfigError``."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in told.items() if name in names})


class ScoreOptions(TypedDict, total=False):
    """`ScoreConfig`'s fields as keyword arguments, for type checkers (a test holds the
    two together)."""

    evidence: EvidenceName
    counterfactual: CounterfactualName
    m1: int
    m0: int
    sampling: Sampling | Mapping[str, Any]
    ace: AceConfig | Mapping[str, Any]
    prompt_template: str
    system_prompt: str | None
    answer_prefix: str
    seed: int
    cascade_completions: float
    cascade_pilot: float
    cascade_sure: float
    batch_size: int | None
    batch_tokens: int | None
    compile_decode: bool
    workers: int
    prepare: PrepareName | None
    prefetch: int
    shard_size: int | None
    max_prompt_tokens: int
    max_image_pixels: int
    checker_timeout: float
    max_bad_fraction: float
    linear_memory: int | None


# ---------------------------------------------------------------- who scores


def means(kind: type, executor: object) -> list[str]:
    """The fields of a settings class as options of a scoring command. ``workers`` are the
    processes of executor ray, and threads (of `ScoreConfig`) otherwise."""
    names = [f.name for f in dataclasses.fields(kind)]
    other = ScoreConfig if executor == "ray" else ExecutorConfig
    return [name for name in names if kind is not other or name != "workers"]


def require_judge(evidence: str, reward: object) -> None:
    """Raises ``RapConfigError`` for a reward function that nothing would call."""
    if reward is not None and evidence not in GRADED:
        raise RapConfigError(
            f"reward: evidence {evidence!r} grades no completion, so it would never be "
            "called; leave it out, or score with evidence 'rollouts' or 'cascade'"
        )


# ---------------------------------------------------------------- choosing


def _share_meant(value: object) -> str:
    """What a budget of "9%", 9 or 100 may have meant."""
    text = str(value).strip()
    percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return ""
    meant = []
    if percent and 0 < number <= 100 or 1 < number <= 100:
        meant.append(f"for {number:g} % of the samples give {number / 100:.10g}")
    if isinstance(value, str) and not percent and 0 < number <= 1:
        meant.append(f"give the number {number:g}")
    if not percent and 1 < number < math.inf and number == int(number):
        meant.append(f"for {number:g} of n samples give {number:g}/n")
    return ", ".join(meant)


@settings
class ChooseConfig:
    """How scores become a selection; METHOD.md sections 3 and 4."""

    rule: RuleName = setting(
        "Which rule keeps samples; rap.selection.rules has them.",
        default="budget",
    )
    budget: Annotated[Number, Gt(0), Le(1)] | None = setting(
        "Share of the samples to keep (rules budget and learn).",
        default=None,
        none=str(DEFAULT_BUDGET),
        hint=_share_meant,
    )
    lambda_c: Annotated[Number, Ge(-1), Le(1)] | None = setting(
        "Keep a sample only if D is above this.",
        default=None,
        none="rule paper: 0.5; rule budget: what the budget gives; rule learn: 0, or "
        "0.01 nats for a divergence",
    )
    lambda_a: Annotated[Number, Gt(0)] | None = setting(
        "A sample is attention-biased if psi is above this.",
        default=None,
        none="rule paper: 0.1; rules budget and learn: calibrated on the scores",
    )
    biased: BiasedName | None = setting(
        "What becomes of a sample whose psi is above lambda_a: report counts it and keeps "
        "it like any other, drop bars it (rule learn: from all but its guard).",
        default=None,
        none="drop with rule paper, or where lambda_a or guard_attention is given, else "
        "report",
    )
    replace: bool = setting(
        "Replace trivial samples by the hardest ones that can be solved (DRM).",
        default=True,
    )
    readmit_hurt: bool | None = setting(
        "Whether a sample that the image hurts (D < 0) may be a replacement.",
        default=None,
        none="rule paper: yes, as published; rule budget: after all others",
    )
    order: OrderName | None = setting(
        "What a budget ranks by: gain is D, learnable is D times what is left to learn "
        "(cascade: the keep-probability), posterior what rule learn ranks by.",
        default=None,
        none="posterior for evidence rollouts, learnable for the others",
    )
    by: str | None = setting(
        "A column whose values get a budget each, e.g. source: of the score table, the "
        "data set or the rollouts.",
        default=None,
        none="one budget for all",
        expected="None or the name of a column",
    )
    trivial: Annotated[Number, Ge(0), Lt(1)] = setting(
        "A sample whose difficulty is at most this is trivial; 0, the paper's, means "
        "always solved, which the probabilities of evidence answer hardly ever reach.",
        default=0.0,
    )
    unsolved: Annotated[Number, Gt(0), Le(1)] = setting(
        "A sample whose difficulty is at least this is never solved: there is nothing to "
        "reward. 1 means no correct completion; for the probabilities of evidence answer "
        "and logits, a p(answer) below 1.1e-16 (1 - p is then 1 in float64). 0.999 drops "
        "answers with a probability of one in a thousand or less.",
        default=1.0,
    )
    likelihood: LikelihoodName = setting(
        "Which p(answer) evidence answer and logits go by: the product over its tokens, or "
        "their geometric mean, which does not vanish for long references.",
        default="product",
    )
    divergence: DivergenceName = setting(
        "The divergence that is D for evidence logits.", default="js"
    )
    guard_attention: Annotated[Number, Ge(0), Le(1)] | None = setting(
        "Rule learn: share of the kept samples for attention-biased ones with mixed "
        "outcomes; what fills an unfilled budget may hold more.",
        default=None,
        none=f"{DEFAULT_GUARD} if biased is drop, else 0",
    )
    guard_hurt: Annotated[Number, Ge(0), Le(1)] | None = setting(
        "Rule learn: share of the kept samples for those that the image hurts, the most "
        "harmed first; what fills an unfilled budget may hold more.",
        default=None,
        none=str(DEFAULT_GUARD_HURT),
    )
    coverage: bool | None = setting(
        "Rule learn: whether a sample counts less the more of its group is kept.",
        default=None,
        none="in the guards; with coverage_by everywhere",
    )
    coverage_by: str | None = setting(
        "Rule learn: the column whose values are those groups, e.g. source.",
        default=None,
        none="clusters of the model's hidden states of the prompts",
        expected="None or the name of a column",
    )

    def __post_init__(self) -> None:
        if self.trivial >= self.unsolved:
            raise RapConfigError(
                f"trivial = {self.trivial} is not below unsolved = {self.unsolved}: every "
                "sample would be one or the other"
            )
        if self.coverage is False and self.coverage_by is not None:
            raise RapConfigError(
                f"coverage_by = {self.coverage_by!r}: expected None with coverage=False"
            )
        if self.biased == "report" and self.guard_attention:
            raise RapConfigError(
                f"guard_attention = {self.guard_attention}: its samples are told by psi, "
                "which decides nothing with biased='report'"
            )
        guards = self.shares
        if sum(guards) > 1:
            names = ("guard_attention", "guard_hurt")
            a, b = (
                f"{name} = {share}{' (the default)' if given is None else ''}"
                for name, share, given in zip(names, guards, self.guards, strict=True)
            )
            raise RapConfigError(f"{a} and {b}: their sum is above 1")

    @property
    def covers_main(self) -> bool:
        """Whether ``coverage`` is over the main part, too."""
        return self.coverage or (self.coverage is None and self.coverage_by is not None)

    @property
    def guards(self) -> tuple[float | None, float | None]:
        """``guard_attention``, ``guard_hurt``."""
        return self.guard_attention, self.guard_hurt

    @property
    def shares(self) -> tuple[float, float]:
        """``guards``, the defaults put in."""
        attention, hurt = self.guards
        usual = DEFAULT_GUARD if self.drops_biased else 0.0
        return (
            usual if attention is None else attention,
            DEFAULT_GUARD_HURT if hurt is None else hurt,
        )

    @property
    def drops_biased(self) -> bool:
        """What ``biased`` amounts to. psi was not shown to find misled answers of a real
        language model (benchmarks/results/natural_attention.md): nothing is dropped
        unasked."""
        if self.biased is not None:
            return self.biased == "drop"
        asked = self.lambda_a is not None or bool(self.guard_attention)
        return asked or self.rule == "paper"

    def as_json(self) -> dict[str, Any]:
        """All fields, but for those that only another rule has a use for."""
        found = dataclasses.asdict(self)
        if self.rule != "learn":
            found = {k: v for k, v in found.items() if k not in LEARN_ONLY}
        return found


LEARN_ONLY = ("guard_attention", "guard_hurt", "coverage", "coverage_by")
"""Fields of ``ChooseConfig`` that rule learn alone has a use for."""


class ChooseOptions(TypedDict, total=False):
    """`ChooseConfig`'s fields as keyword arguments, for type checkers (a test holds the
    two together)."""

    rule: RuleName
    budget: float | None
    lambda_c: float | None
    lambda_a: float | None
    biased: BiasedName | None
    replace: bool
    readmit_hurt: bool | None
    order: OrderName | None
    by: str | None
    trivial: float
    unsolved: float
    likelihood: LikelihoodName
    divergence: DivergenceName
    guard_attention: float | None
    guard_hurt: float | None
    coverage: bool | None
    coverage_by: str | None
