"""Rewards for TRL: the built-in checker as a reward function, and a log of any reward."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RapConfigError, RapInputError
from ..rewards.checker import make_checker
from ..samples.sample import Sample
from .rewardlog import Outcome, RewardLog, grouped

if TYPE_CHECKING:
    pass

NO_PPO = (
    "TRL 1.16 has no PPO trainer (it was taken out, also of trl.experimental); use GRPO or "
    "RLOO"
)


def builtin_reward(
    *, timeout: float = 5.0, end_tokens: Collection[int] = ()
) -> Callable[..., list[float | None]]:
    """The built-in checker (``rap.make_checker``) as a reward function of TRL: 1.0 for a
    right answer, 0.0 for a wrong one, None where it cannot grade (TRL leaves such a
    completion out of its group).

    Reads the columns ``solution`` (or ``answer``) and ``choices`` as ``prepare`` makes
    them. One checking process is started at the first call and ends with this process;
    ``timeout``: seconds a check. ``end_tokens``: the model's end-of-turn ids; a completion
    that does not end in one was cut off, and only an answer that it had marked counts, as
    when scoring. ``()``: our trainers fill in their model's (``end_tokens_of``); TRL's own
    tell a reward function neither the ids nor the limit, so there every completion is
    taken as finished.
    """
    checker = make_checker(timeout=timeout)
    ends = set(end_tokens)

    def rap_builtin(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        answers = columns.get("solution", columns.get("answer"))
        if answers is None:
            raise RapInputError(
                "the built-in reward needs a column 'solution' or 'answer'; the data set "
                f"has {', '.join(sorted(columns)) or 'none'}"
            )
        choices = columns.get("choices") or [()] * len(completions)
        rewards: list[float | None] = []
        ids = columns.get("completion_ids") or [()] * len(completions)
        for answer, options, completion, tokens in zip(
            answers, choices, completions, ids, strict=True
        ):
            sample = Sample(0, "", "", str(answer), tuple(options or ()), (), None, {})
            finished = not ends or not tokens or tokens[-1] in ends
            verdict = checker.check(sample, completion_text(completion), finished=finished)
            rewards.append(None if verdict.correct is None else float(verdict.correct))
        return rewards

    rap_builtin.rap_end_tokens = ends  # type: ignore[attr-defined]
    return rap_builtin


def end_tokens_of(model: Any, processor: Any) -> frozenset[int]:
    """Ids that end a turn: the tokenizer's, and those the model generates until."""
    tokenizer = getattr(processor, "tokenizer", processor)
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [
        getattr(tokenizer, "eos_token_id", None),
        *(named if isinstance(named, list) else [named]),
    ]
    return frozenset(i for i in ids if isinstance(i, int))


def tell_end_tokens(functions: Sequence[Any], model: Any, processor: Any) -> None:
    """Let built-in rewards that know no end tokens know this model's."""
    for function in functions:
        ends = getattr(function, "rap_end_tokens", None)
        if ends is not None and not ends:
            ends.update(end_tokens_of(model, processor))


def completion_text(completion: Any) -> str:
    """A completion's text: itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    return "".join(
        part if isinstance(part, str) else "".join(p.get("text") or "" for p in part)
        for part in contents
    )


class Recorder:
    """What ``watched`` keeps: the log, and the outcomes that nobody has taken yet."""

    def __init__(self, log: RewardLog | None, id_column: str) -> None:
        self.log, self.id_column = log, id_column
        self.counting = True
        """False while the trainer evaluates."""
        self.fresh: dict[str, Outcome] = {}

    def record(self, columns: Mapping[str, Any], rewards: Sequence[float | None]) -> None:
        """Count one generation batch. Raises ``RapInputError`` if there is no id column,
        or if not one completion was graded: the reward function does not work."""
        if not self.counting:
            return
        if self.id_column not in columns:
            raise RapInputError(
                f"the rewards log needs the column {self.id_column!r}, which names the "
                f"sample; the data set has {', '.join(sorted(columns))}"
            )
        outcomes = grouped([str(x) for x in columns[self.id_column]], rewards)
        unjudged = sum(o.unjudged for o in outcomes.values())
        if unjudged == len(rewards):
            raise RapInputError(
                f"the reward function returned None or NaN for all {unjudged} completions "
                f"of a batch (the first sample is {next(iter(outcomes), '')[:80]!r})"
            )
        state = columns.get("trainer_state")
        step = 0 if state is None else state.global_step
        if self.log is not None:
            process = int(os.environ.get("RANK", 0))
            self.log.append(step, outcomes, process)
        for name, outcome in outcomes.items():
            self.fresh[name] = self.fresh.get(name, Outcome()) + outcome
        self._tell(columns.get("log_metric"), outcomes, unjudged)

    def take(self) -> dict[str, Outcome]:
        """The outcomes since the last call."""
        fresh, self.fresh = self.fresh, {}
        return fresh

    @staticmethod
    def _tell(
        log_metric: Callable[[str, float], Any] | None,
        outcomes: Mapping[str, Outcome],
        unjudged: int,
    ) -> None:
        if log_metric is None:
            return
        log_metric("rap/unjudged", unjudged)
        log_metric("rap/no_variance", sum(not o.varies for o in outcomes.values()))


def watched(
    reward: Callable[..., Any],
    log: str | os.PathLike[str] | RewardLog | None = None,
    *,
    id_column: str = "id",
) -> Callable[..., Any]:
    """The same reward function, and pass counts per id in a log (``rap.trl.rewardlog``).

    Rewards are passed on unchanged, except that infinite ones become None, because one
    would make every advantage of its batch NaN. A function that does not return one number
    or None per completion is refused by name. Wrap the function that grades every
    completion (a reward of at least 0.5 is a pass): a batch without one graded completion
    stops the training with an error.
    ``log``: the file, by custom beside the score store (``scores.rewards.jsonl``); None
    keeps the counts in memory only, for ``Reselect``. Coroutine functions stay ones.
    """
    if not callable(reward) or hasattr(reward, "state_dict"):
        raise RapConfigError(
            f"watched: reward is {type(reward).__name__}; expected a function as TRL's "
            "trainers take it"
        )
    writer = log if isinstance(log, RewardLog) or log is None else RewardLog(log)
    recorder = Recorder(writer, id_column)

    name = getattr(reward, "__name__", type(reward).__name__)

    def counted(rewards: Any, columns: Mapping[str, Any]) -> list[float | None]:
        values = _numbers(name, rewards, len(columns["completions"]))
        recorder.record(columns, values)
        return values

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def wrapper(**columns: Any) -> list[float | None]:
            return counted(await reward(**columns), columns)

    else:

        @functools.wraps(reward)
        def wrapper(**columns: Any) -> list[float | None]:
            return counted(reward(**columns), columns)

    wrapper.__name__ = name
    wrapper.rap_recorder = recorder  # type: ignore[attr-defined]
    return wrapper


def _numbers(name: str, rewards: Any, count: int) -> list[float | None]:
    """The rewards, checked; infinite ones are None."""
    try:
        values = [None if r is None else float(r) for r in rewards]
    except (TypeError, ValueError) as error:
        raise RapInputError(
            f"the reward function {name!r} returned {repr(rewards)[:80]}; expected a list "
            f"with a number or None a completion ({error})"
        ) from error
    if len(values) != count:
        raise RapInputError(
            f"the reward function {name!r} returned {len(values)} rewards for {count} "
            "completions; expected one each"
        )
    return [None if r is not None and math.isinf(r) else r for r in values]
