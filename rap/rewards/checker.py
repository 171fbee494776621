"""Answer checking with a time limit: the built-in rule or the user's reward functions.

A check runs in one worker process, started once and kept (``runners``). One that takes
longer than ``timeout`` is answered by killing the process; the next check gets a new one
(1 to 2 seconds). Time in which a check waits for a processor is not counted, so that a busy
machine changes no verdict (``patience``).

A reward function that cannot be pickled (a lambda, a closure, anything defined in
``__main__`` or in a notebook cell) runs in a thread of this process instead. A thread
cannot be killed: after ``timeout`` it is left behind, still running, and the next check
gets a new one; while it holds the interpreter lock (a regular expression does), the
time-out itself is late. Put such a function in a module to have it killed.

A reward function is called for a whole group of completions (``check_group``). Where that
call raises or takes longer than ``timeout``, it is called again for each completion alone,
so that one bad completion costs only its own grade. A checker that raises, returns None or
NaN, or hangs leaves the response without a grade:
``Verdict(None, "verifier_error" | "verifier_timeout", message)``.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import MAX_IMAGE_PIXELS, is_number
from ..errors import RapConfigError, RapInputError
from ..samples.sample import BadSample, Sample
from . import grading
from .functions import (
    Call,
    Response,
    call_for,
    callable_name,
    require_trl_signature,
)
from .runners import CheckFailed, CheckTimeout, ProcessRunner, Runner, runner_of
from .sameness import Sameness

log = logging.getLogger("rap")

CACHED_VERDICTS = 8192
MESSAGE_CHARS = 500
PASSES = 0.5
"""A completion is right from this reward up."""

Reward = Callable[..., Any] | Sequence[Callable[..., Any]]
"""One reward function, or several whose weighted sum is the reward."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Was the answer right?"""

    correct: bool | None
    """None: not graded."""
    code: str | None = None
    """None, or ``verifier_error`` / ``verifier_timeout`` when not graded."""
    message: str | None = None
    reward: float | None = field(default=None, compare=False)
    """What a reward function gave."""


class Checker:
    """Grades responses by the built-in rule; made by ``make_checker``. Safe to call from
    several threads (checks then wait for each other). Close it, or use it as a context
    manager."""

    def __init__(self, name: str, runner: Runner, timeout: float) -> None:
        self.name = name
        """The grader and its version: part of a score store's fingerprint."""
        self._runner, self._timeout = runner, timeout
        self._cache: OrderedDict[object, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def check(
        self,
        sample: Sample,
        text: str,
        *,
        token_ids: Sequence[int] = (),
        finished: bool = True,
    ) -> Verdict:
        """Grade one response. Takes at most ``timeout`` seconds and the restart of
        the worker. ``token_ids`` reach a reward function as ``completion_ids``.
        ``finished``: False for a response that was cut off at its token limit; the
        built-in rule then takes only an answer that was marked and completed.

        Raises ``RapConfigError`` if the worker cannot be started; nothing else.
        """
        key = (sample.reference, sample.options, text, finished)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            verdict = self._judge(key)
            self._cache[key] = verdict
            if len(self._cache) > CACHED_VERDICTS:
                self._cache.popitem(last=False)
            return verdict

    def check_group(
        self, sample: Sample, responses: Sequence[Response], *, arm: str = ""
    ) -> list[Verdict]:
        """Grade responses to one prompt, all that were sampled for it at once: a reward
        function is called for them together. ``arm``: which prompt of the sample it was.

        Raises ``RapInputError`` for a reward function that returns another number of
        values than it was given completions, unless it has been right before;
        ``RapConfigError`` as ``check``.
        """
        return [
            self.check(sample, one.text, token_ids=one.token_ids, finished=one.finished)
            for one in responses
        ]

    def _judge(self, request: object) -> Verdict:
        try:
            return Verdict(bool(self._runner.run(request, self._timeout)))
        except (CheckTimeout, CheckFailed) as error:
            return _ungraded(error, self._timeout)

    def close(self) -> None:
        """End the worker process."""
        self._runner.close()

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RewardChecker(Checker):
    """Grades by reward functions: right is a weighted sum of at least ``PASSES``."""

    def __init__(
        self,
        functions: Sequence[_Function],
        weights: Sequence[float],
        timeout: float,
        max_pixels: int,
    ) -> None:
        plain = len(functions) == 1 and weights[0] == 1.0
        pairs = list(zip(functions, weights, strict=True))
        name = (
            functions[0].name if plain else " + ".join(f"{w!r}*{f.name}" for f, w in pairs)
        )
        super().__init__(name, functions[0].runner, timeout)
        self._functions, self._weights = functions, weights
        self._max_pixels = max_pixels
        self._same = Sameness(shown_name(name))

    def check(
        self,
        sample: Sample,
        text: str,
        *,
        token_ids: Sequence[int] = (),
        finished: bool = True,
    ) -> Verdict:
        """As ``Checker.check``: a group of this one response."""
        with self._lock:
            return self._grade(sample, [Response(text, token_ids)], strict=False)[0]

    def check_group(
        self, sample: Sample, responses: Sequence[Response], *, arm: str = ""
    ) -> list[Verdict]:
        """As ``Checker.check_group``."""
        if not responses:
            return []
        with self._lock:
            verdicts = self._grade(sample, responses, strict=True)
            self._same.add(sample.id, arm, [v.reward for v in verdicts])
        return verdicts

    def _grade(
        self, sample: Sample, responses: Sequence[Response], *, strict: bool
    ) -> list[Verdict]:
        try:
            call = call_for(sample, responses, self._max_pixels)
        except BadSample as bad:
            failed = _ungraded(CheckFailed(f"{bad.code}: {bad.message}"), self._timeout)
            return [failed] * len(responses)
        given = [function.values(call, strict=strict) for function in self._functions]
        return [self._total(values) for values in zip(*given, strict=True)]

    def _total(self, values: Sequence[float | None | Verdict]) -> Verdict:
        """The verdict of one completion from what each function gave it: None is left out,
        as TRL does."""
        names = (
            [f" {function.said!r}" for function in self._functions]
            if len(values) > 1
            else [""]
        )
        terms = []
        for value, weight, name in zip(values, self._weights, names, strict=True):
            if isinstance(value, Verdict):
                return value
            if value is None:
                continue
            if not math.isfinite(value):
                return Verdict(
                    None, "verifier_error", f"the reward function{name} returned {value}"
                )
            terms.append(value * weight)
        if not terms:
            who = "the reward function" if len(values) == 1 else "every reward function"
            return Verdict(None, "verifier_error", f"{who} returned None")
        total = math.fsum(terms)
        return Verdict(total >= PASSES, reward=total)

    def close(self) -> None:
        """End the worker processes, and say what all verdicts had in common."""
        for function in self._functions:
            function.runner.close()
        self._same.finish()


class _Function:
    """A reward function where it runs."""

    def __init__(self, reward: Callable[..., Any], timeout: float) -> None:
        self.name = callable_name(reward)
        self.said = shown_name(self.name)
        self.runner = runner_of(reward, timeout)
        self.timeout = timeout
        self._sound: set[bool] = set()
        """Whether groups of several (True), of one (False), had as many values."""
        self._told: set[type[Exception]] = set()

    def values(self, call: Call, *, strict: bool) -> list[float | None | Verdict]:
        """The value of each completion, a verdict where there is none. ``strict``: raise
        ``RapInputError`` for a wrong number of them, unless it was right before."""
        n = len(call)
        try:
            found = self.runner.run(call, self.timeout)
        except (CheckTimeout, CheckFailed) as error:
            if n == 1:
                return [_ungraded(error, self.timeout)]
            self._tell(error, n)
        else:
            if isinstance(found, list):
                self._sound.add(n > 1)
                return found
            wrong = f"it returned {found} rewards for {n} completion{'s' * (n > 1)}"
            if strict and not (self._sound if n == 1 else True in self._sound):
                raise RapInputError(
                    f"reward {self.said!r}: {wrong}; expected one each: it is called for "
                    "all completions of a sample at once, as TRL's trainers call it"
                )
            if n == 1:
                return [_ungraded(CheckFailed(f"ValueError: {wrong}"), self.timeout)]
            self._tell(CheckFailed(wrong), n)
        return [self.values(call.only(i), strict=False)[0] for i in range(n)]

    def _tell(self, error: Exception, n: int) -> None:
        """Once a kind of error: of a function that compares completions with each other,
        the grades are others then."""
        if type(error) in self._told:
            return
        self._told.add(type(error))
        late = f"took more than checker_timeout = {self.timeout:g} s"
        why = late if isinstance(error, CheckTimeout) else f"failed ({str(error)[:200]})"
        log.warning(
            "reward %r: a call for %d completions %s; they are graded one at a time, and so "
            "is every group for which that happens",
            *(self.said, n, why),
        )


def _ungraded(error: Exception, timeout: float) -> Verdict:
    if isinstance(error, CheckTimeout):
        return Verdict(None, "verifier_timeout", f"no verdict within {timeout:g} s")
    # the store is UTF-8, an exception's text may be anything
    message = str(error)[:MESSAGE_CHARS].encode("utf-8", "replace").decode()
    return Verdict(None, "verifier_error", message)


def make_checker(
    reward: Reward | None = None,
    *,
    weights: Sequence[float] | None = None,
    timeout: float = 5.0,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Checker:
    """Make the checker.

    reward: None is the built-in rule (``grading``: choice letters and texts, numbers,
        math-verify if it is installed). Else a reward function as TRL's trainers take it,
        or a list of them. One is called as GRPOTrainer (1.16) calls it, for all completions
        of a sample at once (``check_group``)::

            reward(prompts=[...], completions=[...], completion_ids=[...],
                   **{column: [...]}, images=[[image, ...], ...], trainer_state=None,
                   log_extra=f, log_metric=g)

        Every column of the data set is passed except prompt, completion, completion_ids;
        the images as RGB images under the name ``images``, where a sample has one also as
        ``image``. Where the data set has a text column ``prompt``, prompt and completion
        are texts; else they are conversational: a list of messages each, the completion
        ``[{"role": "assistant", "content": text}]``. A coroutine function is awaited. A
        completion is right from 0.5 up.
    weights: of several functions, whose weighted sum is the reward; None: 1 each. A
        function that returns None for a completion is left out of its sum.
    timeout: seconds one call may take, without those it waits for a processor.
    max_pixels: of an image, width x height.

    Raises ``RapConfigError`` if ``reward`` cannot be called like that, or cannot be
    imported where it runs.
    """
    if not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise RapConfigError(f"timeout = {timeout!r}: expected seconds > 0")
    functions, factors = reward_functions(reward, weights)
    if not functions:
        return Checker(grading.name(), ProcessRunner(None, timeout), timeout)
    made = [_Function(function, timeout) for function in functions]
    try:
        for one in made:
            one.runner.start()
    except BaseException:
        for one in made:
            one.runner.close()
        raise
    return RewardChecker(made, factors, timeout, max_pixels)


def reward_functions(
    reward: Reward | None, weights: Sequence[float] | None
) -> tuple[tuple[Callable[..., Any], ...], tuple[float, ...]]:
    """The functions and their weights; ((), ()) for the built-in rule. Raises
    ``RapConfigError`` for what cannot be called, and for other weights than one finite
    number a function."""
    if reward is None:
        functions: tuple[Any, ...] = ()
    elif isinstance(reward, (list, tuple)):
        functions = tuple(reward)
        if not functions:
            raise RapConfigError("reward is an empty list; leave it out for the built-in")
    else:
        functions = (reward,)
    for function in functions:
        require_trl_signature(function)
    if weights is None:
        return functions, (1.0,) * len(functions)
    if not isinstance(weights, (list, tuple)) or not all(map(is_number, weights)):
        raise RapConfigError(
            f"reward_weights = {weights!r}: expected a list of finite numbers"
        )
    if len(weights) != len(functions):
        raise RapConfigError(
            f"reward_weights has {len(weights)} numbers for {len(functions)} reward "
            "functions"
        )
    return functions, tuple(float(weight) for weight in weights)


def shown_name(name: str) -> str:
    """A checker's name without the hashes of the sources."""
    return " + ".join(part.partition("@")[0] for part in name.split(" + "))
