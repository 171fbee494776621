"""Samples -> score table: drives the model, survives bad samples, resumes.

    samples --> workers: decode, hash, preprocess --> batches --> evidence --> shards
                (threads, bounded, in order)          (model)    (kernels)    (store)

A sample that cannot be scored becomes a quarantined row with a stage, a code and a
message, and the run goes on; only a share above ``max_bad_fraction`` stops it.

What is guaranteed. Shards are fixed ranges of rows and batches never span them, so an
interrupted run redoes the same batches: on one machine, with one batch size, the table
comes out byte for byte (`table.VOLATILE_COLUMNS` aside) whatever the number of workers,
kills and restarts. Another batch size pads a sample differently, and a matrix product of
another shape rounds differently; scores are therefore stored with 12 significant bits
(`significant`), far coarser than that noise in float32 and far finer than the scores'
own uncertainty. What remains is a value within the noise of a rounding border (one in
some thousand: measured 1 of 12,000): it moves by one step, at most 4.9e-4 of itself, and
the selection moves only if the sample at the cut is among them. In bfloat16 and float16
the noise is as large as the rounding step: compare runs of one batch size there. A batch
halved for lack of memory counts as one of another size.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from .config import ChooseConfig, ScoreConfig
from .counterfactual import counterfactual_images
from .errors import RapConfigError, RapError, RapInputError, RapModelError
from .rewards import Checker, make_checker
from .rollouts import BLIND_ARM, IMAGE_ARM, Completion, degenerate, row_seed
from .samples import (
    Bad,
    BadSample,
    Sample,
    SampleSet,
    letter,
    load_images,
    open_samples,
    resolve_choice,
    sample_sha256,
)
from .selection import Scores, Selection, choose
from .store import ScoreStore
from .table import (
    QUARANTINED,
    ROLLOUT_SCHEMA,
    SCHEMA_VERSION,
    SCORED,
    table_from_rows,
)

if TYPE_CHECKING:
    import os

    from PIL.Image import Image

    from .model import Head, ModelDriver, Prepared, Trace

MIN_SEEN = 20
"""A run is not given up for its bad samples before this many were seen."""

MIN_GROUPS = 8
"""Groups of completions seen before a run is given up as degenerate."""

SOLUTION_COLUMNS = ("response", "solution", "rationale", "explanation")
"""Columns that may hold a worked solution, for evidence ``logits``."""

TRAIN_GROUP = 8
"""Completions a sample and epoch that training on everything would draw, for the
ledger's comparison: GRPOTrainer's default."""

_LOGS = ("logp_answer1", "logp_answer0", "logp_mean1", "logp_mean0")
_DIVERGENCES = ("kl", "rkl", "jeffreys", "js", "tv", "hellinger2", "entropy1", "entropy0")
_ATTENTION = ("log_psi", "attention_entropy", "attention_top", "image_mass")
_ROUNDED = (*_LOGS, *_DIVERGENCES, *_ATTENTION)


def score(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    store: str | os.PathLike[str] | None = None,
    config: ScoreConfig | None = None,
    reward: Callable[..., Sequence[float | None]] | None = None,
    columns: dict[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    allow_degenerate: bool = False,
    **overrides: Any,
) -> Scores:
    """Score every sample of a data set with one model: the heavy half.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor.
    dataset
        What `rap.samples.open_samples` takes (a ``datasets.Dataset``, a list of dicts, a
        path), or a ``SampleSet``; ``columns`` and ``root`` go there.
    store
        Folder of the score store. A run on a folder that holds a part of the same run
        goes on; one made with another model, setting or data set is refused. None keeps
        the shards in a temporary folder, gone when the call returns.
    config, **overrides
        A `ScoreConfig`, and single fields that replace its own.
    reward
        None checks answers with the built-in checker, else a callable with TRL's
        signature. Used by evidence ``rollouts`` only.
    progress
        True shows a bar where someone watches (a terminal, a notebook), ``"force"``
        always.
    allow_degenerate
        Go on although most groups of completions are identical.

    Returns
    -------
    Scores
        ``table`` in data-set order; ``meta["cost"]`` is the ledger (see `_ledger`).

    Raises
    ------
    RapInputError
        The data set is empty or unusable, or more than ``max_bad_fraction`` of it is bad
        (shards already written stay).
    RapModelError
        The model cannot be driven, most of the bad samples are the model's doing, or the
        completions of most samples are identical.
    RapConfigError, RapStoreError
        See `ScoreConfig` and ``rap.store``.
    """
    from .model import ModelDriver

    wall = time.perf_counter()
    config = _resolve(config, overrides)
    if isinstance(dataset, SampleSet):
        samples = dataset
    else:
        samples = open_samples(dataset, columns=columns, root=root)
    if len(samples) == 0:
        raise RapInputError("the data set is empty: there is nothing to score")
    driver = ModelDriver(model, processor, config)
    with (
        _evaluating(model),
        _checker(reward, config) as checker,
        _folder(store) as path,
    ):
        driver.check()
        fingerprint = _fingerprint(driver, config, checker, samples)
        with ScoreStore.open(path, fingerprint, len(samples), config.shard_size) as shards:
            run = _Run(samples, driver, config, checker, allow_degenerate)
            run.fill(shards, progress)
            table = shards.read()
            rollouts = shards.read_rollouts()
    meta: dict[str, Any] = {
        "fingerprint": fingerprint,
        "cost": _ledger(table, rollouts, time.perf_counter() - wall),
        "counts": _counts(table),
    }
    return Scores(table=table, meta=meta, dataset=samples, rollouts=rollouts)


def select(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    rule: str = "budget",
    budget: float | None = None,
    lambda_c: float | None = None,
    lambda_a: float | None = None,
    replace: bool = True,
    by: str | None = None,
    trivial: float = 0.0,
    divergence: str = "js",
    **score_options: Any,
) -> Selection:
    """`score`, then `choose`: from a data set to the samples worth training on.

    The options named here are those of `choose`, all others those of `score`. A setting
    of `choose` that is nonsense is refused before the model runs.
    """
    chosen: dict[str, Any] = {
        "rule": rule,
        "budget": budget,
        "lambda_c": lambda_c,
        "lambda_a": lambda_a,
        "replace": replace,
        "by": by,
        "trivial": trivial,
        "divergence": divergence,
    }
    ChooseConfig(**chosen)
    return choose(score(model, processor, dataset, **score_options), **chosen)


def _resolve(config: ScoreConfig | None, overrides: dict[str, Any]) -> ScoreConfig:
    names = [f.name for f in dataclasses.fields(ScoreConfig)]
    for name in overrides:
        if name not in names:
            raise RapConfigError(f"unknown setting {name!r}: expected one of {names}")
    return dataclasses.replace(config or ScoreConfig(), **overrides)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off while we score. Each module's mode, and what ``generate`` leaves on it
    (Qwen-VL's ``rope_deltas``), are put back."""
    saved = [(module, dict(vars(module))) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, attributes in saved:
            for name in vars(module).keys() - attributes.keys():
                delattr(module, name)
            vars(module).update(attributes)


@contextmanager
def _folder(store: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="rap-") as path:
        yield path


def _checker(
    reward: Callable[..., Any] | None, config: ScoreConfig
) -> AbstractContextManager[Checker | None]:
    """Only evidence ``rollouts`` judges answers; the others need no worker process."""
    if config.evidence != "rollouts":
        return nullcontext()
    return make_checker(reward, timeout=config.checker_timeout)


def _fingerprint(
    driver: ModelDriver, config: ScoreConfig, checker: Checker | None, samples: SampleSet
) -> dict[str, Any]:
    """All that a score depends on; a store refuses another one, naming the field."""
    return {
        "model": driver.identity(),
        "config": config.fingerprint(),
        "checker": None if checker is None else checker.name,
        "dataset": samples.content_hash(),
        "rap_version": _version(),
        "schema_version": SCHEMA_VERSION,
    }


def _version() -> str:
    try:
        return importlib.metadata.version("rap-select")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# ---- one sample -------------------------------------------------------------


@dataclass(slots=True)
class Job:
    """One sample on its way to its row of the score table."""

    row: dict[str, Any]
    sample: Sample = None  # type: ignore[assignment]  # only where the row is bad
    image: Prepared | None = None
    """Prompt (and response, where it is known beforehand) with the image."""
    blind: Prepared | None = None
    """The same without it."""
    answer: Prepared | None = None
    """Evidence ``logits``: the answer with the image, for the difficulty."""
    rollouts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.row["status"] == SCORED

    def quarantine(self, stage: str, code: str, message: str) -> None:
        """End this sample: its scores are dropped, what it cost is kept."""
        kept = ("id", "index", "source", "image_sha256", "sample_sha256", "evidence")
        cost = ("forwards", "generated_tokens", "seconds")
        self.row = {k: self.row[k] for k in (*kept, *cost) if k in self.row}
        self.row |= {
            "status": QUARANTINED,
            "stage": stage,
            "code": code,
            "message": _clean(message),
        }
        self.image = self.blind = self.answer = None


def _clean(text: str, limit: int = 500) -> str:
    """A text that any file can hold: no lone surrogates, no NUL, not too long."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def prepare_job(
    samples: SampleSet, driver: ModelDriver, config: ScoreConfig, i: int
) -> Job:
    """Decode and preprocess sample i: host only, called from worker threads."""
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
        images, hashes = load_images(sample, max_pixels=config.max_image_pixels)
        row["image_sha256"] = ",".join(hashes)
        row["sample_sha256"] = sample_sha256(sample, hashes)
        other = counterfactual_images(
            images,
            config.counterfactual,
            seed=row_seed(config.seed, sample.id, config.counterfactual, 0),
            partner=_partner_images(samples, config, i),
        )
        _prepare_arms(job, sample, images, other, driver, config)
    except BadSample as bad:
        job.quarantine(bad.stage, bad.code, bad.message)
    return job


def _partner_images(samples: SampleSet, config: ScoreConfig, i: int) -> list[Image] | None:
    """Images of another sample, for ``shuffle``: chosen by hash, the next one if bad."""
    n = len(samples)
    if config.counterfactual != "shuffle":
        return None
    if n < 2:
        raise RapInputError("counterfactual = 'shuffle' needs at least two samples")
    mine = samples[i]
    start = row_seed(config.seed, mine.id, "partner", 0) % (n - 1)
    for step in range(min(n - 1, 100)):
        other = samples[(i + 1 + (start + step) % (n - 1)) % n]
        if isinstance(other, Bad):
            continue
        try:
            return load_images(other, max_pixels=config.max_image_pixels)[0]
        except BadSample:
            continue
    raise BadSample("image", "image_unreadable", "no other sample has a usable image")


def _prepare_arms(
    job: Job,
    sample: Sample,
    images: list[Image],
    other: list[Image] | None,
    driver: ModelDriver,
    config: ScoreConfig,
) -> None:
    response: list[int] | None = None
    prefix = ""
    if config.evidence == "answer":
        prefix, response = answer_tokens(driver, sample, config)
    elif config.evidence == "logits":
        solution = reference_solution(sample)
        if solution is not None:
            response = driver.encode_response(solution)
        answer_prefix, answer = answer_tokens(driver, sample, config)
        job.answer = driver.prepare(sample, images, answer, prefix=answer_prefix)
    if response is not None and not response:
        raise BadSample("prompt", "empty_response", "the reference has no tokens")
    job.image = driver.prepare(sample, images, response, prefix=prefix)
    job.row["n_prompt"] = job.image.n_prompt
    job.blind = driver.prepare(sample, other, response, prefix=prefix)


def reference_text(sample: Sample, config: ScoreConfig) -> str:
    """The answer that is teacher-forced.

    A sample with choices, where the prompt lists them as "(A) text", is answered by the
    letter of the right choice, whether the data set gives the letter or the text: one
    short form, comparable between samples, and the one the prompt asks for. Without
    choices (or with a template that leaves them out) it is the reference as it stands.
    """
    if sample.choices and "{choices}" in config.prompt_template:
        right = resolve_choice(sample.answer, sample.choices)
        if right is not None:
            return letter(right)
    return sample.answer


def answer_tokens(
    driver: ModelDriver, sample: Sample, config: ScoreConfig
) -> tuple[str, list[int]]:
    """(prefix text, answer tokens), split where the tokenizer splits them.

    Most tokenizers put a space at the start of a word (" B" is one token, " " + "B" two
    unusual ones), so white space at the end of the prefix moves to the answer, and the
    answer's tokens are what the whole has more than the prefix.
    """
    prefix = config.answer_prefix.rstrip()
    space = config.answer_prefix[len(prefix) :]
    text = space + reference_text(sample, config)
    if not prefix:
        return "", driver.encode_response(text.lstrip())
    before = driver.encode_response(prefix)
    whole = driver.encode_response(prefix + text)
    if len(whole) > len(before) and whole[: len(before)] == before:
        return prefix, whole[len(before) :]
    return config.answer_prefix, driver.encode_response(text.lstrip())


def reference_solution(sample: Sample) -> str | None:
    """A worked solution the data set brings, if it says more than the answer."""
    for name in SOLUTION_COLUMNS:
        value = sample.extra.get(name)
        if isinstance(value, str) and len(value.strip()) > len(sample.answer.strip()):
            return value.strip()
    return None


# ---- the run ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Failure:
    code: str
    message: str


class _Run:
    """One call of `score`: what its steps share."""

    def __init__(
        self,
        samples: SampleSet,
        driver: ModelDriver,
        config: ScoreConfig,
        checker: Checker | None,
        allow_degenerate: bool,
    ) -> None:
        self.samples = samples
        self.driver = driver
        self.config = config
        self.checker = checker
        self.allow_degenerate = allow_degenerate
        self.bad: Counter[str] = Counter()  # "stage/code"
        self.example = ""
        self.seen = 0
        self.groups = 0
        self.degenerate_groups = 0

    @cached_property
    def _host_head(self) -> Head:
        """Where the kernels run: copied from the device once, not for each batch."""
        return self.driver.head.to("cpu")

    # -- shards --

    def fill(self, shards: ScoreStore, progress: bool | str) -> None:
        """Score the missing shards, in order; each is written as soon as it is whole."""
        missing = list(shards.missing())
        for k in sorted(set(range(shards.n_shards)) - set(missing)):
            self._count(shards.read_shard(k).to_pylist())
        todo = [i for k in missing for i in shards.shard_range(k)]
        jobs = ahead(
            lambda i: prepare_job(self.samples, self.driver, self.config, i),
            todo,
            workers=self.config.workers,
            depth=self.config.prefetch * self.config.batch_size,
        )
        with _Bar(len(self.samples), self.seen, progress) as bar:
            try:
                for k in missing:
                    rows, rollouts = self._shard(jobs, len(shards.shard_range(k)), bar)
                    shards.write(
                        k,
                        table_from_rows(rows),
                        table_from_rows(rollouts, ROLLOUT_SCHEMA) if rollouts else None,
                    )
            finally:
                jobs.close()
        self._stop_if_bad(final=True)

    def _shard(
        self, jobs: Iterator[Job], size: int, bar: _Bar
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        done: list[Job] = []
        batch: list[Job] = []
        counted = 0
        for n in range(size):
            job = next(jobs)
            done.append(job)
            if job.alive:
                batch.append(job)
            if len(batch) == self.config.batch_size or (batch and n == size - 1):
                self.score_batch(batch)
                batch = []
            if not batch:
                self._count([j.row for j in done[counted:]])
                bar.advance(len(done) - counted, self.bad.total())
                counted = len(done)
                self._stop_if_bad(final=False)
        return [_rounded(j.row) for j in done], [r for j in done for r in j.rollouts]

    def _count(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.seen += 1
            if row["status"] == QUARANTINED:
                self.bad[f"{row['stage']}/{row['code']}"] += 1
                self.example = self.example or f"{row['id']!r}: {row['message']}"

    def _stop_if_bad(self, *, final: bool) -> None:
        """Give up at the end, or as soon as the end can only be bad; always if all are."""
        n, bad = len(self.samples), self.bad.total()
        limit = self.config.max_bad_fraction
        if bad <= limit * n and not (final and bad == n):
            return
        if not final and self.seen < min(MIN_SEEN, n):
            return
        allowed = "none is left" if bad == n else f"more than max_bad_fraction = {limit:g}"
        counts = ", ".join(f"{code}: {c}" for code, c in self.bad.most_common())
        model = sum(c for code, c in self.bad.items() if code.startswith("model/"))
        error: type[RapError] = RapModelError if 2 * model > bad else RapInputError
        raise error(
            f"{bad} of {n} samples are bad, {allowed} ({counts}; {self.seen} seen). "
            f"First: {_clean(self.example, 300)}"
        )

    # -- batches --

    def score_batch(self, jobs: list[Job]) -> None:
        """Fill in the rows of these jobs; a job that fails is quarantined in place."""
        started = time.perf_counter()
        evidence = {
            "rollouts": self._rollouts,
            "answer": self._answer,
            "logits": self._logits,
        }
        evidence[self.config.evidence](jobs)
        share = (time.perf_counter() - started) / len(jobs)
        for job in jobs:
            job.row["seconds"] = share
            # A finished job waits for its shard: only its row may stay in memory.
            job.image = job.blind = job.answer = None
            job.sample = None  # type: ignore[assignment]

    def _answer(self, jobs: list[Job]) -> None:
        """Two forwards over the reference answer; method.md section 1."""
        logp = self._both_arms(jobs)
        for job in jobs:
            if job.alive:
                for arm in ("1", "0"):
                    self._put_answer(job, arm, logp[id(job)][arm])

    def _logits(self, jobs: list[Job]) -> None:
        """Two forwards over one response, and one over the answer for the difficulty.

        The response is the reference solution, else one greedy completion with the image.
        """
        greedy = [j for j in jobs if j.image is not None and not len(j.image.response_ids)]
        drawn = self._generate(greedy, IMAGE_ARM, 1, greedy=True)
        for job in greedy:
            if not job.alive:
                continue
            (completion,) = drawn[id(job)]
            job.row["truncated"] = completion.finish_reason == "length"
            if not completion.token_ids:
                job.quarantine("model", "empty_response", "the greedy completion is empty")
                continue
            ids = completion.token_ids
            self._respond(job, ("image", "blind"), ids)
        self._both_arms(jobs)
        traces = self._forward(jobs, "answer", attention=False)
        logp = self._head(jobs, traces, traces)
        for job in jobs:
            if job.alive:
                self._put_answer(job, "1", logp[id(job)]["1"])

    def _both_arms(self, jobs: list[Job]) -> dict[int, dict[str, Any]]:
        """Divergences and psi of a response that both arms already carry."""
        with_image = self._forward(jobs, "image", attention=True)
        self._psi(jobs, with_image)
        hidden = {key: _without_attention(t) for key, t in with_image.items()}
        del with_image
        without = self._forward(jobs, "blind", attention=False)
        result = self._head(jobs, hidden, without)
        for job in jobs:
            if job.alive:
                job.row |= {name: result[id(job)][name] for name in _DIVERGENCES}
                job.row.setdefault("truncated", False)
        return result

    def _rollouts(self, jobs: list[Job]) -> None:
        """M0 completions without the image, M1 with it, one forward for psi.

        All completions of a batch are drawn together, batch_size * M rows; psi is read off
        the first completion, by number, that the checker accepts.

        The text arm runs first: where ``screen_lambda_c`` is set, a sample that could not
        pass it even with every completion right is not rolled out with the image.
        """
        config = self.config
        self._arm(jobs, BLIND_ARM, config.m0)
        rest = []
        for job in jobs:
            if not job.alive:
                continue
            c0, m0 = job.row["c0"], job.row["m0"]
            if _may_pass(c0, m0, config.screen_lambda_c):
                rest.append(job)
            else:
                job.row |= {"c1": 0, "m1": 0}
        self._arm(rest, IMAGE_ARM, config.m1)
        traced = []
        for job in rest:
            if not job.alive:
                continue
            c1, m1, c0, m0 = (job.row[name] for name in ("c1", "m1", "c0", "m0"))
            if not can_be_kept(c1, m1, c0, m0, config.screen_lambda_c):
                continue
            chosen = next(r for r in job.rollouts if r["arm"] == IMAGE_ARM and r["correct"])
            job.row["truncated"] = chosen["finish_reason"] == "length"
            self._respond(job, ("image",), chosen["token_ids"])
            traced.append(job)
        self._psi(traced, self._forward(traced, "image", attention=True))

    def _respond(self, job: Job, arms: Sequence[str], ids: Sequence[int]) -> None:
        """Append a response to the prompts of these arms."""
        try:
            for arm in arms:
                setattr(job, arm, self.driver.with_response(getattr(job, arm), ids))
        except BadSample as bad:
            job.quarantine("model", bad.code, bad.message)

    def _arm(self, jobs: list[Job], arm: str, m: int) -> None:
        """Draw and judge m completions of each job; counts go to c1, m1 or c0, m0.

        An empty completion is wrong, as any reward would have it: left out, a sample with
        one right answer and four empty ones would pass for solved. Only if the image arm
        gives nothing else is the sample quarantined. A completion that the checker could
        not judge counts neither way.
        """
        assert self.checker is not None  # evidence rollouts has one
        drawn = self._generate(jobs, arm, m)
        for job in jobs:
            if not job.alive:
                continue
            judged = correct = empty = 0
            failures: dict[str, str] = {}
            for number, completion in enumerate(drawn[id(job)]):
                if completion.text.strip():
                    verdict = self.checker.check(
                        job.sample, completion.text, token_ids=completion.token_ids
                    )
                    ok, code = verdict.correct, verdict.code
                    if ok is None:
                        failures.setdefault(str(code), verdict.message or "")
                else:
                    ok, code = False, "empty_response"
                    empty += 1
                judged += ok is not None
                correct += ok is True
                job.rollouts.append(_rollout_row(job, arm, number, completion, ok, code))
            n = "1" if arm == IMAGE_ARM else "0"
            job.row |= {f"c{n}": correct, f"m{n}": judged}
            if empty == m and arm == IMAGE_ARM:
                job.quarantine("model", "empty_response", f"all {m} completions are empty")
            elif judged == 0:
                code = next(iter(failures)) if len(failures) == 1 else "few_rollouts"
                said = "; ".join(failures.values())
                message = f"none of {m} completions ({arm} arm) could be judged: {said}"
                job.quarantine("check", code, message)

    def _generate(
        self, jobs: list[Job], arm: str, m: int, *, greedy: bool = False
    ) -> dict[int, list[Completion]]:
        """m completions of each job, by ``id(job)``; failures are quarantined."""
        from . import rollouts

        seed = self.config.seed
        rows = [
            (job, -1 if greedy else row_seed(seed, job.row["id"], arm, number))
            for job in jobs
            for number in range(m)
        ]

        def run(part: Sequence[tuple[Job, int]]) -> list[Completion]:
            which = "image" if arm == IMAGE_ARM else "blind"
            prompts = [getattr(job, which) for job, _ in part]
            groups = rollouts.generate(
                self.driver,
                prompts,
                [[s] for _, s in part],
                self.config.sampling,
                greedy=greedy,
            )
            return [completion for (completion,) in groups]

        drawn: dict[int, list[Completion]] = {id(job): [] for job in jobs}
        for (job, _), result in zip(rows, in_halves(run, rows), strict=True):
            if isinstance(result, _Failure):
                if job.alive:
                    job.quarantine("model", result.code, f"generate: {result.message}")
                continue
            job.row["generated_tokens"] += result.n_sampled
            if result.failed_step is not None and job.alive:
                where = f"{arm} arm, step {result.failed_step}"
                job.quarantine("model", "nonfinite", f"logits not finite: {where}")
            drawn[id(job)].append(result)
        if not greedy and m >= 2:
            self._watch_degenerate([drawn[id(job)] for job in jobs if job.alive])
        return drawn

    def _watch_degenerate(self, groups: list[list[Completion]]) -> None:
        self.groups += len(groups)
        self.degenerate_groups += sum(map(degenerate, groups))
        if self.allow_degenerate or self.groups < MIN_GROUPS:
            return
        if 2 * self.degenerate_groups >= self.groups:
            sampling = self.config.sampling
            raise RapModelError(
                f"{self.degenerate_groups} of {self.groups} groups of completions are "
                "identical although the model gives other answers a fair chance: rollouts "
                f"drawn with {sampling} tell nothing about difficulty. Raise temperature, "
                "top_p or top_k, or pass allow_degenerate=True."
            )

    def _forward(self, jobs: list[Job], which: str, *, attention: bool) -> dict[int, Trace]:
        """Teacher-forced forwards of ``job.image``, ``.blind`` or ``.answer``."""
        live = [job for job in jobs if job.alive]

        def run(part: Sequence[Job]) -> list[Trace]:
            prepared = [getattr(job, which) for job in part]
            return self.driver.trace(prepared, attention=attention)

        traces: dict[int, Trace] = {}
        for job, result in zip(live, in_halves(run, live), strict=True):
            job.row["forwards"] += 1
            if isinstance(result, _Failure):
                job.quarantine("model", result.code, f"{which} forward: {result.message}")
                continue
            bad = _first_nonfinite(result, attention)
            if bad is not None:
                job.quarantine("model", "nonfinite", f"{bad} is not finite ({which} arm)")
                continue
            traces[id(job)] = result
        return traces

    def _head(
        self, jobs: list[Job], with_image: dict[int, Trace], without: dict[int, Trace]
    ) -> dict[int, dict[str, Any]]:
        """Divergences and log-probabilities through the language-model head, by id(job).

        ``"1"`` and ``"0"`` hold (mean log p, number of tokens) of the response.
        """
        import torch

        from . import ops

        live = [job for job in jobs if job.alive]
        if not live:
            return {}
        pairs = [(with_image[id(job)], without[id(job)]) for job in live]
        device = pairs[0][0].hidden.device
        sizes = torch.tensor([0] + [len(a.response_ids) for a, _ in pairs])
        head = self._host_head
        result = ops.linear_cde(
            torch.cat([a.hidden for a, _ in pairs]),
            torch.cat([b.hidden for _, b in pairs]),
            head.weight,
            bias=head.bias,
            scale=head.scale,
            softcap=head.softcap,
            targets=torch.cat([a.response_ids for a, _ in pairs]).to(device),
            cu_seqlens=sizes.cumsum(0).to(device),
            memory=self.config.linear_memory,
        )
        names = (*_DIVERGENCES, "logp1", "logp0")
        values = {name: getattr(result, name).double().tolist() for name in names}
        found: dict[int, dict[str, Any]] = {}
        for s, job in enumerate(live):
            row = {name: values[name][s] for name in names}
            bad = [name for name, x in row.items() if not math.isfinite(x)]
            if bad:
                job.quarantine("model", "nonfinite", f"{bad[0]} is not finite (head)")
                continue
            n = int(sizes[s + 1])
            row["1"], row["0"] = (row.pop("logp1"), n), (row.pop("logp0"), n)
            found[id(job)] = row
        return found

    @staticmethod
    def _put_answer(job: Job, arm: str, logp: tuple[float, int]) -> None:
        mean, n = significant(logp[0]), logp[1]
        total = significant(logp[0] * n)
        job.row |= {
            f"logp_mean{arm}": mean,
            f"logp_answer{arm}": total,
            f"p_answer{arm}": math.exp(total),
        }

    def _psi(self, jobs: list[Job], traces: dict[int, Trace]) -> None:
        """Attention confidence of the with-image response; method.md section 2."""
        from . import ops

        ace = self.config.ace
        for job in jobs:
            if not job.alive:
                continue
            trace = traces[id(job)]
            result = ops.ace(
                trace.q,
                trace.k,
                response_start=trace.n_prompt,
                scale=trace.scaling,
                sigma=ace.sigma,
                heads=ace.heads,
                renormalise=ace.renormalise,
                normalise=ace.normalise,
                min_rows=ace.min_rows,
                window=ace.window,
                columns=ace.columns,
                column_mask=~trace.special_mask,
                image_mask=trace.image_mask,
            )
            row = {name: float(getattr(result, name)) for name in _ATTENTION}
            bad = [k for k, v in row.items() if math.isnan(v) or v == math.inf]
            if bad:
                job.quarantine("model", "nonfinite", f"{bad[0]} is not finite (attention)")
                continue
            position = int(result.position)
            job.row |= row
            job.row |= {
                "psi_position": position,
                "psi_token": self._token(job, trace, position),
                "n_response": len(trace.response_ids),
            }

    def _token(self, job: Job, trace: Trace, position: int) -> str | None:
        if position < 0:
            return None
        if position >= trace.n_prompt:
            token = int(trace.response_ids[position - trace.n_prompt])
        else:
            assert job.image is not None  # it was just traced
            token = int(job.image.inputs["input_ids"].flatten()[position])
        tokenizer = getattr(self.driver.processor, "tokenizer", self.driver.processor)
        return _clean(tokenizer.decode([token]), 100)


# ---- helpers ----------------------------------------------------------------


def in_halves(
    run: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]
) -> list[Any | _Failure]:
    """``run(items)``, halved where the batch does not fit or one item spoils it.

    Out of memory, and errors that one sample can cause (image features that do not match
    its tokens, a position outside a table), end in a `_Failure` for the item that fails
    alone. A broken device and our own errors pass through.
    """
    import torch

    if not items:
        return []
    try:
        return list(run(items))
    except torch.OutOfMemoryError as error:
        failure = _Failure("oom", _first_line(error))
    except torch.AcceleratorError:
        raise
    except RapError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        failure = _Failure("model_error", f"{type(error).__name__}: {_first_line(error)}")
    # Outside of the handlers: the traceback no longer holds the failed batch's tensors.
    if failure.code == "oom" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [failure]
    half = (len(items) + 1) // 2
    return in_halves(run, items[:half]) + in_halves(run, items[half:])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def ahead(
    prepare: Callable[[int], Job], items: Sequence[int], *, workers: int, depth: int
) -> Generator[Job]:
    """``prepare`` of each item, in order, at most ``depth`` made ahead by threads.

    Closing the iterator cancels what has not begun. ``workers`` 0 works in the caller.
    """
    if workers == 0:
        yield from map(prepare, items)
        return
    waiting: deque[Future[Job]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="rap-prepare")
    try:
        rest = iter(items)
        for item in rest:
            waiting.append(pool.submit(prepare, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _may_pass(c0: int, m0: int, lambda_c: float | None) -> bool:
    """Whether D > lambda_c is possible after the text arm (all right with the image)."""
    return lambda_c is None or m0 - c0 > Fraction(str(lambda_c)) * m0


def can_be_kept(c1: int, m1: int, c0: int, m0: int, lambda_c: float | None) -> bool:
    """Whether any later choice may keep this sample, so that psi is worth a forward.

    Needs one right answer with the image, and either D > lambda_c (0 if none is given: no
    rule keeps a sample the image does not help) or a difficulty inside (0, 1).
    """
    if c1 < 1:
        return False
    gain = c1 * m0 - c0 * m1
    return gain > Fraction(str(lambda_c or 0)) * m1 * m0 or c1 < m1


def significant(x: float, bits: int = 12) -> float:
    """x rounded to ``bits`` significant bits, half to even; 0, inf and NaN unchanged."""
    if x == 0 or not math.isfinite(x):
        return x
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return row | {k: significant(row[k]) for k in _ROUNDED if row.get(k) is not None}


def _rollout_row(
    job: Job, arm: str, number: int, c: Completion, correct: bool | None, code: str | None
) -> dict[str, Any]:
    return {
        "id": job.row["id"],
        "index": job.row["index"],
        "arm": arm,
        "number": number,
        "text": _clean(c.text, sys.maxsize),
        "token_ids": list(c.token_ids),
        "finish_reason": c.finish_reason,
        "seed": c.seed,
        "correct": correct,
        "code": code,
    }


def _first_nonfinite(trace: Trace, attention: bool) -> str | None:
    import torch

    rows = torch.isfinite(trace.hidden).all(dim=-1)
    if not bool(rows.all()):
        return f"hidden state of response token {int((~rows).int().argmax())}"
    if attention:
        for name, x in (("query", trace.q), ("key", trace.k)):
            assert x is not None
            columns = torch.isfinite(x).all(dim=-1).all(dim=0)
            if not bool(columns.all()):
                return f"{name} of token {int((~columns).int().argmax())}, last layer"
    return None


def _without_attention(trace: Trace) -> Trace:
    """The trace without q and k, which are large and no longer needed."""
    return dataclasses.replace(trace, q=None, k=None)


def _counts(table: pa.Table) -> dict[str, int]:
    """Rows by status, quarantined ones by code."""
    statuses, codes = table["status"].to_pylist(), table["code"].to_pylist()
    names = (
        status if status == SCORED else f"quarantined_{code}"
        for status, code in zip(statuses, codes, strict=True)
    )
    return dict(sorted(Counter(names).items()))


def _ledger(
    table: pa.Table, rollouts: pa.Table | None, wall_seconds: float
) -> dict[str, Any]:
    """What the scores cost, and what training on everything would draw.

    ``forwards``: teacher-forced forwards, one a sample and arm; ``rollouts`` and
    ``generated_tokens``: completions and sampled tokens, end tokens counted;
    ``seconds``: the samples' shares of their batches' time, over all runs of the store;
    ``wall_seconds``: this call, without loading the model. ``train_all``: the completions
    of one epoch with groups of `TRAIN_GROUP` over every sample, and their tokens if as long
    as this run's mean completion with the image (None if it drew none).
    """
    total = {
        name: pc.sum(table[name]).as_py() or 0
        for name in ("forwards", "generated_tokens", "seconds")
    }
    n = table.num_rows
    n_rollouts, mean = 0, None
    if rollouts is not None and rollouts.num_rows:
        n_rollouts = rollouts.num_rows
        with_image = rollouts.filter(pc.equal(rollouts["arm"], IMAGE_ARM))
        mean = pc.mean(pc.list_value_length(with_image["token_ids"])).as_py()
    everything = TRAIN_GROUP * n
    return {
        "samples": n,
        "rollouts": n_rollouts,
        **total,
        "wall_seconds": wall_seconds,
        "train_all": {
            "group": TRAIN_GROUP,
            "epochs": 1,
            "rollouts": everything,
            "tokens": None if mean is None else round(everything * mean),
        },
    }


class _Bar:
    """A tqdm bar over the samples, with rate, time left and the number quarantined."""

    def __init__(self, total: int, done: int, progress: bool | str) -> None:
        from tqdm import tqdm

        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not (progress == "force" or (progress and watched)),
            desc="scoring",
            unit=" samples",
            dynamic_ncols=True,
        )

    def advance(self, n: int, bad: int) -> None:
        self._bar.update(n)
        if bad:
            self._bar.set_postfix_str(f"{bad} quarantined", refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
