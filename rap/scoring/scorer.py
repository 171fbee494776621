"""Model and kernel calls of scoring, a batch of samples at a time.

`Scorer` offers what the scoring signals (``scoring.evidence``) are computed from:
completions, teacher-forced forward passes, the head product (``rap.linear_cde``), psi
(``rap.ace``).
A sample that fails, for lack of memory or with values that are not finite, is quarantined,
and the rest of its batch goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .. import cuda, ops
from ..config import ScoreConfig
from ..engines.contract import Engine, Request
from ..model.halving import Failure, in_halves
from ..model.rollouts import ARM_TEXT, IMAGE_ARM, Completion, degenerate, row_seed
from ..rewards.checker import Checker
from ..samples.sample import BadSample
from ..samples.text import clean
from ..scores import states
from ..scores.judge import require_varied
from ..scores.table import SCORE_SCHEMA
from ..stopwatch import IDLE, Stopwatch
from .batches import all_finite, memory_of
from .jobs import Batch, Job, cut
from .profiling import note

if TYPE_CHECKING:
    import torch

    from ..model.driver import Head, ModelDriver, Trace

MIN_GROUPS = 8
"""Groups of completions seen before a run is given up as degenerate."""

TOGETHER = {"cascade": 3}
"""Batches that are scored together, at least: the cascade samples completions of less than
half of their samples, most of them one after the other, and a step of sampling takes about
as long for few rows as for many. With the local model twice as many as its memory has room
for (``ModelDriver.room``), which are read in `Scorer.parts`: of those that are not asked
nothing is kept."""

DIVERGENCES = tuple(name for name in ops.CDE_OUTPUTS if name in SCORE_SCHEMA.names)
"""Columns that compare one response with and without the image."""
_HEAD = (*DIVERGENCES, "logp1", "logp0")
AROUND = 12
"""Tokens before and after the attended one that are kept as its text."""
_ATTENTION = ("log_psi", "attention_entropy", "attention_top", "image_mass")


class Scorer:
    """Asks one model, with one setting, about batches of samples.

    ``allow_degenerate``: go on although most groups of completions are identical.
    ``engine``: what samples completions; ``local``: in this process, by the model itself.
    ``driver`` None: there is an engine only, so that no forward can be asked for.
    ``least_groups``: groups of completions seen before a run is given up as degenerate.
    """

    def __init__(
        self,
        driver: ModelDriver | None,
        config: ScoreConfig,
        checker: Checker | None,
        allow_degenerate: bool,
        engine: Engine,
        *,
        local: bool = True,
        watch: Stopwatch = IDLE,
        least_groups: int = MIN_GROUPS,
    ) -> None:
        self.least_groups = least_groups
        self.together = TOGETHER.get(config.evidence, 1)
        self._driver = driver
        self.watch = watch
        self.engine = engine
        self.engine_is_local = local
        self.config = config
        self.checker = checker
        self.allow_degenerate = allow_degenerate
        self.groups = 0
        self.degenerate_groups = 0
        self._heads: dict[torch.device, Head] = {}

    @property
    def driver(self) -> ModelDriver:
        """The local model; `reads_psi` and evidence that needs it ask for it."""
        assert self._driver is not None  # scoring.engine.require_engine
        return self._driver

    @property
    def reads_psi(self) -> bool:
        """Whether a local model can read the attention of what the engine samples."""
        return self._driver is not None and self.engine.token_ids

    @property
    def window(self) -> int:
        """Samples that keep the engine busy, at least."""
        window = self.engine.window
        return window if window == 1 else window * self.together

    def is_full(self, batch: Batch) -> bool:
        """Whether so many jobs are to be scored together: a batch, or `together` of them
        and more, or as many as keep an engine busy. Forwards take `batches` of them."""
        full = len(batch) >= self.window and self._fills(batch, self.together)
        return full and batch.padded_tokens >= 2 * self._room

    def _fills(self, jobs: Batch, batches: int = 1) -> bool:
        """Whether jobs fill so many batches, or more."""
        return self.config.batch_is_full(len(jobs) // batches, jobs.tokens // batches)

    @cached_property
    def _room(self) -> int:
        """Prompt tokens that are kept at once, of `together` batches or more."""
        if self.together == 1 or not self.engine_is_local:
            return 0
        return self.driver.room

    def batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in the order given, as many at a time as one batch takes."""
        return cut(jobs, self._fills)

    def parts(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in the order given, as many at a time as there is room for the prompts
        of, a batch at least; all of them where no prompts are kept."""
        room = self._room or math.inf
        return cut(jobs, lambda part: self._fills(part) and part.padded_tokens >= room)

    def fit(self, jobs: Sequence[Job]) -> bool:
        """Whether there is room for the prompts of all these jobs, or they are few."""
        whole = Batch()
        for job in jobs:
            whole.add(job)
        few = not self._fills(whole, self.together)
        return few or not self._room or whole.padded_tokens <= self._room

    def hold(self, jobs: Sequence[Job], rest: Sequence[Job]) -> None:
        """Keep what was read of the prompts of ``jobs``, in one batch for each arm, and let
        go of what was read of ``rest``."""
        for which in ("image", "blind"):
            for job in rest:
                if (prepared := getattr(job, which)) is not None:
                    prepared.shared.let_go()
            if self._room:
                self.driver.keep_only([getattr(job, which) for job in jobs])

    def _head_for(self, hidden: torch.Tensor) -> Head:
        """The head where the kernels run: on the CUDA device of the hidden states, or, for
        a device that this build has no kernels for, on the host. Copied once, if at all."""
        device = hidden.device
        if device not in self._heads:
            there = device.type == "cuda" and "cde" in cuda.kernels()
            self._heads[device] = self.driver.head.to(device if there else "cpu")
        return self._heads[device]

    def compare_arms(
        self,
        jobs: list[Job],
        arms: tuple[str, str] = ("image", "blind"),
        *,
        attention: bool = True,
    ) -> dict[int, dict[str, Any]]:
        """Divergences, and psi with ``attention``, of a response that both prompts (with
        and without the image: ``arms``) already hold."""
        with_image = self.forward(jobs, arms[0], attention=attention)
        if attention:
            self.psi(jobs, with_image)
        hidden = {key: _without_attention(t) for key, t in with_image.items()}
        del with_image
        without = self.forward(jobs, arms[1], attention=False)
        result = self.head(jobs, hidden, without)
        for job in jobs:
            if job.alive:
                job.row |= {name: result[id(job)][name] for name in DIVERGENCES}
                if attention:
                    job.row.setdefault("truncated", False)
        return result

    def respond(self, job: Job, arms: Sequence[str], ids: Sequence[int]) -> None:
        """Append a response to the prompts of these arms."""
        try:
            for arm in arms:
                setattr(job, arm, self.driver.with_response(getattr(job, arm), ids))
        except BadSample as bad:
            job.quarantine("model", bad.code, bad.message)

    def read(self, jobs: Sequence[Job], which: str) -> None:
        """Read the prompts ``job.image`` or ``job.blind`` now, if what follows (answers,
        completions of the local model) can go on from them all."""
        live = [job for job in jobs if job.alive]
        if not live or not self.engine_is_local or not self.driver.goes_on:
            return
        for job in live:
            note(self.watch, job, which, getattr(job, which))
        with self.watch.span("prefill"):
            self.driver.read([getattr(job, which) for job in live])

    def generate(
        self, jobs: list[Job], arm: str, numbers: range, *, greedy: bool = False
    ) -> dict[int, list[Completion]]:
        """The completions of these numbers of each job, by ``id(job)``; failures are
        quarantined. All are asked of the engine at once."""
        drawn: dict[int, list[Completion]] = {id(job): [] for job in jobs}
        if not (jobs and numbers):
            return drawn
        which = "image" if arm == IMAGE_ARM else "blind"
        for job in jobs:
            note(self.watch, job, which, getattr(job, which))
        asked = [self._request(job, arm, numbers, greedy) for job in jobs]
        job_of = {id(r): job for r, job in zip(asked, jobs, strict=True)}
        with self.watch.span("decode"):
            answers = list(self.engine.generate(asked))
        for request, generated in answers:
            job = job_of[id(request)]
            for completion in generated.completions:
                self._take(job, arm, completion)
                drawn[id(job)].append(completion)
            _note_state(job)
            bad = generated.bad
            if bad is not None and job.alive:
                job.quarantine(bad.stage, bad.code, bad.message)
        # Further completions are sampled only where the first ones differed, so only the
        # first group can be degenerate.
        if not greedy and len(numbers) >= 2 and numbers.start == 0:
            for job in jobs:
                if job.alive:
                    same = degenerate(drawn[id(job)])
                    job.groups += 1
                    job.degenerate_groups += same
                    self.count_groups(1, same)
            self.check_degenerate(final=False)
        return drawn

    def _request(self, job: Job, arm: str, numbers: range, greedy: bool) -> Request:
        """These completions of one job, as the engine takes them."""
        which = "image" if arm == IMAGE_ARM else "blind"
        seed, name = self.config.seed, job.row["id"]
        prepared = getattr(job, which)
        *earlier, (_, content) = job.asked.get(which) or [("user", ())]
        ids = None
        if prepared is not None and not self.engine_is_local:
            ids = tuple(prepared.inputs["input_ids"].flatten().tolist())
        return Request(
            sample_id=name,
            arm=arm,
            content=content,
            seeds=tuple(-1 if greedy else row_seed(seed, name, arm, i) for i in numbers),
            sampling=self.config.sampling,
            greedy=greedy,
            earlier=tuple(earlier),
            prompt_ids=ids,
            prepared=prepared,
        )

    def _take(self, job: Job, arm: str, completion: Completion) -> None:
        """Bill a completion; one whose logits were not finite ends its job."""
        job.row["generated_tokens"] += completion.n_sampled
        job.row["n_drawn"] = job.row.get("n_drawn", 0) + 1
        cut = completion.finish_reason == "length"
        job.row["n_cut"] = job.row.get("n_cut", 0) + cut
        if completion.failed_step is not None and job.alive:
            where = f"{ARM_TEXT[arm]}, step {completion.failed_step}"
            job.quarantine("model", "nonfinite", f"logits not finite: {where}")

    def count_groups(self, groups: int, degenerate: int) -> None:
        """Take note of groups of completions, also those that an earlier run sampled."""
        self.groups += groups
        self.degenerate_groups += degenerate

    def check_degenerate(self, *, final: bool) -> None:
        """Raise ``RapModelError`` if half of all groups are degenerate.

        During the run after ``least_groups``. At its end whatever their number is, but one
        such group alone is no proof: it happens by chance with up to 5 % of the groups.
        """
        enough = self.degenerate_groups >= 2 if final else self.groups >= self.least_groups
        if self.allow_degenerate or not enough:
            return
        require_varied(self.groups, self.degenerate_groups, self.config.sampling)

    def forward(self, jobs: list[Job], which: str, *, attention: bool) -> dict[int, Trace]:
        """Teacher-forced forwards of ``job.image``, ``.blind``, ``.answer`` or
        ``.blind_answer``."""
        live = [job for job in jobs if job.alive]

        def run(part: Sequence[Job]) -> list[Trace]:
            prepared = [getattr(job, which) for job in part]
            return self.driver.trace(prepared, attention=attention)

        for job in live:
            note(self.watch, job, which, getattr(job, which))
        with self.watch.span("prefill"):
            results = in_halves(run, live)
            finite = all_finite([r for r in results if not isinstance(r, Failure)])
        traces: dict[int, Trace] = {}
        for job, result in zip(live, results, strict=True):
            job.row["forwards"] += 1
            if isinstance(result, Failure):
                job.quarantine("model", result.code, f"{which} forward: {result.message}")
            elif not next(finite):
                bad = result.nonfinite()
                where = "without" if which.startswith("blind") else "with"
                job.quarantine(
                    "model", "nonfinite", f"{bad} is not finite ({where} the image)"
                )
            else:
                traces[id(job)] = result
                _note_state(job)
        return traces

    def head(
        self,
        jobs: list[Job],
        with_image: dict[int, Trace],
        without: dict[int, Trace] | None = None,
    ) -> dict[int, dict[str, Any]]:
        """Divergences and log-probabilities through the language-model head, by id(job);
        of one branch (``without`` None) its log-probabilities, which multiply that one.

        ``"1"`` and ``"0"`` hold (mean log p, number of tokens) of the response.
        """
        live = [job for job in jobs if job.alive]
        other = with_image if without is None else without
        names = ("logp1",) if without is None else _HEAD

        def run(part: Sequence[Job]) -> list[list[float]]:
            pairs = [(with_image[id(job)], other[id(job)]) for job in part]
            return self._rows(pairs, names)

        found: dict[int, dict[str, Any]] = {}
        with self.watch.span("kernels"):
            results = in_halves(run, live)
        for job, result in zip(live, results, strict=True):
            if isinstance(result, Failure):
                job.quarantine("model", result.code, f"head: {result.message}")
                continue
            row = dict(zip(names, result, strict=True))
            bad = [name for name, x in row.items() if not math.isfinite(x)]
            if bad:
                job.quarantine("model", "nonfinite", f"{bad[0]} is not finite (head)")
                continue
            n = len(with_image[id(job)].response_ids)
            sums = {name[-1]: (row[name], n) for name in ("logp1", "logp0") if name in row}
            found[id(job)] = row | sums
        return found

    def _rows(
        self, pairs: list[tuple[Trace, Trace]], names: Sequence[str]
    ) -> list[list[float]]:
        """What the head gives for each pair: the numbers ``names``."""
        import torch

        device = pairs[0][0].hidden.device
        sizes = torch.tensor([0] + [len(a.response_ids) for a, _ in pairs])
        head = self._head_for(pairs[0][0].hidden)
        self.watch.count("kernel_launches")
        with memory_of(device):
            result = ops.linear_cde(
                torch.cat([a.hidden for a, _ in pairs]),
                torch.cat([b.hidden for _, b in pairs]),
                head.weight,
                bias=head.bias,
                scale=head.scale,
                softcap=head.softcap,
                want=names,
                targets=torch.cat([a.response_ids for a, _ in pairs]).to(device),
                cu_seqlens=sizes.cumsum(0).to(device),
                ignore_index=None,
                memory=self.config.linear_memory,
            )
        # one copy, one wait for a device
        return torch.stack([getattr(result, name).double() for name in names]).T.tolist()

    def psi(self, jobs: list[Job], traces: dict[int, Trace]) -> None:
        """Attention confidence of the with-image response; METHOD.md section 2."""
        live = [job for job in jobs if job.alive]

        def run(part: Sequence[Job]) -> list[list[float]]:
            return self._attention([traces[id(job)] for job in part])

        with self.watch.span("kernels"):
            results = in_halves(run, live)
        for job, result in zip(live, results, strict=True):
            if isinstance(result, Failure):
                job.quarantine("model", result.code, f"attention: {result.message}")
                continue
            *numbers, place = result
            row = dict(zip(_ATTENTION, numbers, strict=True))
            bad = [k for k, v in row.items() if math.isnan(v) or v == math.inf]
            if bad:
                job.quarantine("model", "nonfinite", f"{bad[0]} is not finite (attention)")
                continue
            trace, position = traces[id(job)], int(place)
            job.row |= row
            job.row |= {
                "psi_position": position,
                **self._token(job, trace, position),
                "n_response": len(trace.response_ids),
            }

    def _attention(self, traces: list[Trace]) -> list[list[float]]:
        """For each trace the numbers of `_ATTENTION` and the position."""
        import torch

        with memory_of(traces[0].hidden.device):
            results = [self._ace(trace) for trace in traces]
        names = (*_ATTENTION, "position")
        # one copy, one wait for a device
        values = torch.stack([getattr(r, n).double() for r in results for n in names])
        return values.reshape(len(traces), len(names)).tolist()

    def _ace(self, trace: Trace) -> Any:
        ace = self.config.ace
        self.watch.count("kernel_launches")
        return ops.ace(
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
            key_window=trace.key_window,
            columns=ace.columns,
            column_mask=~trace.special_mask,
            image_mask=trace.image_mask,
        )

    def _token(self, job: Job, trace: Trace, position: int) -> dict[str, str | None]:
        """The token at ``position`` and the text around it, as the table has them."""
        if position < 0:
            return dict.fromkeys(("psi_token", "psi_before", "psi_after"))
        at = position - trace.n_prompt
        if at >= 0:
            ids = trace.response_ids.tolist()
        else:
            assert job.image is not None  # it was just traced
            at, ids = position, job.image.inputs["input_ids"].flatten().tolist()
        decode = getattr(self.driver.processor, "tokenizer", self.driver.processor).decode
        before, after = ids[max(0, at - AROUND) : at], ids[at + 1 : at + 1 + AROUND]
        return {
            "psi_token": clean(decode([ids[at]]), 100),
            "psi_before": clean(decode(before, skip_special_tokens=True), 200),
            "psi_after": clean(decode(after, skip_special_tokens=True), 200),
        }


def _note_state(job: Job) -> None:
    """The hidden state of its prompt goes to its row, once the model has read it."""
    state = None if job.image is None else job.image.shared.state
    if job.alive and state is not None and states.COLUMN not in job.row:
        (job.row[states.COLUMN],) = states.packed(state[None])


def _without_attention(trace: Trace) -> Trace:
    """The trace without q and k, which are large and no longer needed."""
    return dataclasses.replace(trace, q=None, k=None)
