"""What the model is asked of a batch of samples, and what of its answers is kept.

    rollouts   completions with and without the image, judged, then psi of a right one
    answer     two teacher-forced forwards over the reference answer
    logits     two over one response, one over the answer for the difficulty

`Scorer.score_batch` fills in the rows of a batch of `Job` (method.md sections 1 to 3;
kernels in ``rap.ops``). A sample that fails, for lack of memory or with values that are
not finite, is quarantined, and the rest of its batch goes on.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .. import cuda
from ..config import ScoreConfig
from ..errors import RapError, RapModelError, first_line
from ..model.rollouts import BLIND_ARM, IMAGE_ARM, Completion, degenerate, row_seed
from ..rewards.checker import Checker
from ..samples.sample import BadSample
from .jobs import Job, clean

if TYPE_CHECKING:
    import torch

    from ..model.driver import Head, ModelDriver, Trace

MIN_GROUPS = 8
"""Groups of completions seen before a run is given up as degenerate."""

_LOGS = ("logp_answer1", "logp_answer0", "logp_mean1", "logp_mean0")
_DIVERGENCES = ("kl", "rkl", "jeffreys", "js", "tv", "hellinger2", "entropy1", "entropy0")
_HEAD = (*_DIVERGENCES, "logp1", "logp0")
_ATTENTION = ("log_psi", "attention_entropy", "attention_top", "image_mass")
_ROUNDED = (*_LOGS, *_DIVERGENCES, *_ATTENTION)


@dataclass(frozen=True, slots=True)
class _Failure:
    code: str
    message: str


class Scorer:
    """Asks one model, with one setting, about batches of samples.

    ``allow_degenerate``: go on although most groups of completions are identical.
    """

    def __init__(
        self,
        driver: ModelDriver,
        config: ScoreConfig,
        checker: Checker | None,
        allow_degenerate: bool,
    ) -> None:
        self.driver = driver
        self.config = config
        self.checker = checker
        self.allow_degenerate = allow_degenerate
        self.groups = 0
        self.degenerate_groups = 0
        self._heads: dict[torch.device, Head] = {}

    def _head_for(self, hidden: torch.Tensor) -> Head:
        """The head where the kernels run: on the CUDA device of the hidden states, or, for
        a device that this build has no kernels for, on the host. Copied once, if at all."""
        device = hidden.device
        if device not in self._heads:
            there = device.type == "cuda" and "cde" in cuda.rooms()
            self._heads[device] = self.driver.head.to(device if there else "cpu")
        return self._heads[device]

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
        drawn = self._generate(greedy, IMAGE_ARM, range(1), greedy=True)
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

        With ``ScoreConfig.adaptive`` an arm that is settled after so many draws no more;
        what was drawn are the first of the same m completions, by number.
        """
        look = min(m, self.config.adaptive or m)
        failures: dict[int, dict[str, str]] = {id(job): {} for job in jobs}
        for numbers in (range(look), range(look, m)):
            going = [
                j for j in jobs if j.alive and not (numbers.start and _settled(j, arm))
            ]
            drawn = self._generate(going, arm, numbers) if numbers else {}
            for job in going if numbers else ():
                if job.alive:
                    self._judge(job, arm, numbers, drawn[id(job)], failures[id(job)])
        for job in jobs:
            if job.alive:
                _sum_up(job, arm, failures[id(job)])

    def _judge(
        self,
        job: Job,
        arm: str,
        numbers: range,
        drawn: Sequence[Completion],
        failures: dict[str, str],
    ) -> None:
        """One row a completion; why some could not be judged goes to ``failures``."""
        assert self.checker is not None  # evidence rollouts has one
        for number, completion in zip(numbers, drawn, strict=True):
            if completion.text.strip():
                verdict = self.checker.check(
                    job.sample,
                    completion.text,
                    token_ids=completion.token_ids,
                    finished=completion.finish_reason != "length",
                )
                ok, code = verdict.correct, verdict.code
                if ok is None:
                    failures.setdefault(str(code), verdict.message or "")
            else:
                ok, code = False, "empty_response"
            job.rollouts.append(_rollout_row(job, arm, number, completion, ok, code))

    def _generate(
        self, jobs: list[Job], arm: str, numbers: range, *, greedy: bool = False
    ) -> dict[int, list[Completion]]:
        """The completions of these numbers of each job, by ``id(job)``; failures are
        quarantined."""
        from ..model import rollouts

        seed = self.config.seed
        rows = [
            (job, -1 if greedy else row_seed(seed, job.row["id"], arm, number))
            for job in jobs
            for number in numbers
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
        # A later look at an arm that was mixed cannot be degenerate: one group an arm.
        if not greedy and len(numbers) >= 2 and numbers.start == 0:
            for job in jobs:
                if job.alive:
                    same = degenerate(drawn[id(job)])
                    job.groups += 1
                    job.degenerate_groups += same
                    self.count_groups(1, same)
            self.check_degenerate(final=False)
        return drawn

    def count_groups(self, groups: int, degenerate: int) -> None:
        """Take note of groups of completions, also those that an earlier run drew."""
        self.groups += groups
        self.degenerate_groups += degenerate

    def check_degenerate(self, *, final: bool) -> None:
        """Raise ``RapModelError`` if half of all groups are degenerate.

        During the run after `MIN_GROUPS`. At its end whatever their number is, but one
        such group alone is no proof: it happens by chance with up to 5 % of the groups.
        """
        enough = self.degenerate_groups >= 2 if final else self.groups >= MIN_GROUPS
        if self.allow_degenerate or not enough:
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

        results = in_halves(run, live)
        finite = all_finite([r for r in results if not isinstance(r, _Failure)])
        traces: dict[int, Trace] = {}
        for job, result in zip(live, results, strict=True):
            job.row["forwards"] += 1
            if isinstance(result, _Failure):
                job.quarantine("model", result.code, f"{which} forward: {result.message}")
            elif not next(finite):
                bad = result.nonfinite()
                job.quarantine("model", "nonfinite", f"{bad} is not finite ({which} arm)")
            else:
                traces[id(job)] = result
        return traces

    def _head(
        self, jobs: list[Job], with_image: dict[int, Trace], without: dict[int, Trace]
    ) -> dict[int, dict[str, Any]]:
        """Divergences and log-probabilities through the language-model head, by id(job).

        ``"1"`` and ``"0"`` hold (mean log p, number of tokens) of the response.
        """
        live = [job for job in jobs if job.alive]

        def run(part: Sequence[Job]) -> list[list[float]]:
            return self._rows([(with_image[id(job)], without[id(job)]) for job in part])

        found: dict[int, dict[str, Any]] = {}
        for job, result in zip(live, in_halves(run, live), strict=True):
            if isinstance(result, _Failure):
                job.quarantine("model", result.code, f"head: {result.message}")
                continue
            row = dict(zip(_HEAD, result, strict=True))
            bad = [name for name, x in row.items() if not math.isfinite(x)]
            if bad:
                job.quarantine("model", "nonfinite", f"{bad[0]} is not finite (head)")
                continue
            n = len(with_image[id(job)].response_ids)
            found[id(job)] = row | {"1": (row["logp1"], n), "0": (row["logp0"], n)}
        return found

    def _rows(self, pairs: list[tuple[Trace, Trace]]) -> list[list[float]]:
        """What the head gives for each pair: the numbers of `_HEAD`."""
        import torch

        from .. import ops

        device = pairs[0][0].hidden.device
        sizes = torch.tensor([0] + [len(a.response_ids) for a, _ in pairs])
        head = self._head_for(pairs[0][0].hidden)
        with _memory_of(device):
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
        # one copy, one wait for a device
        return torch.stack([getattr(result, name).double() for name in _HEAD]).T.tolist()

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
        live = [job for job in jobs if job.alive]

        def run(part: Sequence[Job]) -> list[list[float]]:
            return self._attention([traces[id(job)] for job in part])

        for job, result in zip(live, in_halves(run, live), strict=True):
            if isinstance(result, _Failure):
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
                "psi_token": self._token(job, trace, position),
                "n_response": len(trace.response_ids),
            }

    def _attention(self, traces: list[Trace]) -> list[list[float]]:
        """For each trace the numbers of `_ATTENTION` and the position."""
        import torch

        with _memory_of(traces[0].hidden.device):
            results = [self._ace(trace) for trace in traces]
        names = (*_ATTENTION, "position")
        # one copy, one wait for a device
        values = torch.stack([getattr(r, n).double() for r in results for n in names])
        return values.reshape(len(traces), len(names)).tolist()

    def _ace(self, trace: Trace) -> Any:
        from .. import ops

        ace = self.config.ace
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

    def _token(self, job: Job, trace: Trace, position: int) -> str | None:
        if position < 0:
            return None
        if position >= trace.n_prompt:
            token = int(trace.response_ids[position - trace.n_prompt])
        else:
            assert job.image is not None  # it was just traced
            token = int(job.image.inputs["input_ids"].flatten()[position])
        tokenizer = getattr(self.driver.processor, "tokenizer", self.driver.processor)
        return clean(tokenizer.decode([token]), 100)


# ---- helpers ----------------------------------------------------------------


@contextmanager
def _memory_of(device: torch.device) -> Iterator[None]:
    """Kernels out of memory on a device fail as the model does there: smaller batches may
    fit. On the host a MemoryError stays what it is."""
    import torch

    try:
        yield
    except MemoryError as error:
        if device.type != "cuda":
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def all_finite(traces: Sequence[Trace]) -> Iterator[bool]:
    """Whether each trace is finite; one copy, one wait for a device."""
    import torch

    return iter(torch.stack([t.finite() for t in traces]).tolist() if traces else ())


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
        failure = _Failure("oom", first_line(error))
    except torch.AcceleratorError:
        raise
    except RapError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        failure = _Failure("model_error", f"{type(error).__name__}: {first_line(error)}")
    # Outside of the handlers: the traceback no longer holds the failed batch's tensors.
    if failure.code == "oom" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [failure]
    half = (len(items) + 1) // 2
    return in_halves(run, items[:half]) + in_halves(run, items[half:])


def _counts(job: Job, arm: str) -> tuple[int, int, int]:
    """(accepted, judged, drawn) of an arm."""
    seen = [r["correct"] for r in job.rollouts if r["arm"] == arm]
    return seen.count(True), len(seen) - seen.count(None), len(seen)


def _settled(job: Job, arm: str) -> bool:
    """Whether more completions of this arm would hardly change what becomes of a sample.

    All right or all wrong so far: as sure as a first look can be that p is near 1 or 0.
    The image arm of a sample that is always right without the image, too: its D <= 0.
    """
    correct, judged, drawn = _counts(job, arm)
    if judged < drawn:
        return False
    always_blind = arm == IMAGE_ARM and job.row["c0"] == job.row["m0"]
    return correct in (0, judged) or always_blind


def _sum_up(job: Job, arm: str, failures: dict[str, str]) -> None:
    """c and m of an arm, or the quarantine of a job that has none to count.

    An empty completion is wrong, as any reward would have it: left out, a sample with
    one right answer and four empty ones would pass for solved. Only if the image arm
    gives nothing else is the sample quarantined. A completion that the checker could
    not judge counts neither way.
    """
    correct, judged, drawn = _counts(job, arm)
    n = "1" if arm == IMAGE_ARM else "0"
    job.row |= {f"c{n}": correct, f"m{n}": judged}
    codes = [r["code"] for r in job.rollouts if r["arm"] == arm]
    if codes.count("empty_response") == drawn and arm == IMAGE_ARM:
        job.quarantine("model", "empty_response", f"all {drawn} completions are empty")
    elif judged == 0:
        code = next(iter(failures)) if len(failures) == 1 else "few_rollouts"
        said = "; ".join(failures.values())
        message = f"none of {drawn} completions ({arm} arm) could be judged: {said}"
        job.quarantine("check", code, message)


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


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return row | {k: significant(row[k]) for k in _ROUNDED if row.get(k) is not None}


def _rollout_row(
    job: Job, arm: str, number: int, c: Completion, correct: bool | None, code: str | None
) -> dict[str, Any]:
    return {
        "id": job.row["id"],
        "index": job.row["index"],
        "arm": arm,
        "number": number,
        "text": clean(c.text, sys.maxsize),
        "token_ids": list(c.token_ids),
        "finish_reason": c.finish_reason,
        "seed": c.seed,
        "correct": correct,
        "code": code,
    }


def _without_attention(trace: Trace) -> Trace:
    """The trace without q and k, which are large and no longer needed."""
    return dataclasses.replace(trace, q=None, k=None)
