"""A user's reward function: what it must be, its name, and how it is called.

It is called as TRL's GRPOTrainer (1.16) calls it, once for all completions of a sample
with the image and once for those without::

    reward(prompts=[...], completions=[...], completion_ids=[...],
           **{column: [...]}, images=[[image, ...], ...], trainer_state=None,
           log_extra=f, log_metric=g)

Each list has one item a completion. Every completion has its own copy of the columns and
of the images, as every row of a trainer's batch has.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import hashlib
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RapConfigError
from ..samples.images import decoded_each, read_bytes
from ..samples.sample import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Response:
    """One completion. ``finished``: False where it was cut off at its token limit, which
    only the built-in rule asks."""

    text: str
    token_ids: Sequence[int] = ()
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a reward function, as it travels to where the function is. ``images``:
    encoded, of the sample."""

    prompt: Any
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: Mapping[str, Any]
    images: tuple[bytes, ...]
    max_pixels: int

    def __len__(self) -> int:
        return len(self.completions)

    def only(self, i: int) -> Call:
        """The same for completion ``i`` alone."""
        if len(self) == 1:
            return self
        return dataclasses.replace(
            self,
            completions=[self.completions[i]],
            completion_ids=[self.completion_ids[i]],
        )

    def arguments(self) -> dict[str, Any]:
        """The function's keyword arguments. Raises ``BadSample`` for an image that cannot
        be decoded."""
        n = len(self)
        found = {name: _each(value, n) for name, value in self.columns.items()}
        images = _images(self.images, n, self.max_pixels)
        if images:
            found["images"] = images
        if len(self.images) == 1:
            found["image"] = [image for (image,) in images]
        return {
            **found,
            "prompts": _each(self.prompt, n),
            "completions": copy.deepcopy(self.completions),
            "completion_ids": [list(ids) for ids in self.completion_ids],
            "trainer_state": None,
            "log_extra": _log_nothing,
            "log_metric": _log_nothing,
        }


def call_for(sample: Sample, responses: Sequence[Response], max_pixels: int) -> Call:
    """The call for completions of one sample. Raises ``BadSample`` for an image that
    cannot be read."""
    prompt = sample.extra.get("prompt")
    texts: list[Any] = [one.text for one in responses]
    if not isinstance(prompt, str):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
        if not isinstance(prompt, (list, tuple)):
            said = (*sample.turns, ("user", sample.question))
            prompt = [{"role": role, "content": text} for role, text in said]
    taken = ("prompt", "completion", "completion_ids")
    return Call(
        prompt=prompt,
        completions=texts,
        completion_ids=[list(one.token_ids) for one in responses],
        columns={k: v for k, v in sample.extra.items() if k not in taken},
        images=tuple(read_bytes(ref) for ref in sample.images),
        max_pixels=max_pixels,
    )


def _each(value: Any, n: int) -> list[Any]:
    return [value] if n == 1 else [_copied(value) for _ in range(n)]


def _copied(value: Any) -> Any:
    with contextlib.suppress(Exception):  # a column's own type may refuse: it is shared
        return copy.deepcopy(value)
    return value


def _images(images: Sequence[bytes], n: int, max_pixels: int) -> list[list[Image]]:
    """[completions][images]; [] where the sample has none."""
    if not images:
        return []
    each = [decoded_each(data, n, max_pixels=max_pixels) for data in images]
    return [list(row) for row in zip(*each, strict=True)]


def call_reward(reward: Callable[..., Any], call: Call) -> list[float | None] | int:
    """The values of a call, one a completion; or how many it returned, where that is
    another number. Raises what the function raises, ``TypeError`` for what is no list of
    numbers."""
    returned = reward(**call.arguments())
    if inspect.isawaitable(returned):
        returned = asyncio.run(_awaited(returned))
    try:
        values = list(returned)
        if len(values) != len(call):
            return len(values)
        return [None if one is None else float(one) for one in values]
    except (TypeError, ValueError):
        raise TypeError(
            f"it returned {repr(returned)[:80]}; expected a list with a number or None a "
            "completion"
        ) from None


async def _awaited(value: Any) -> Any:
    return await value


def _log_nothing(name: str, value: object) -> None:
    """Stands for TRL's log_extra and log_metric."""


def require_trl_signature(reward: object) -> None:
    """Raises ``RapConfigError`` if ``reward`` cannot be called as TRL calls it."""
    if not callable(reward) or isinstance(reward, type):
        raise RapConfigError(
            f"reward is {type(reward).__name__}; expected a function as TRL's trainers "
            "take it: reward(prompts, completions, **columns) -> list of numbers"
        )
    if hasattr(reward, "state_dict"):
        raise RapConfigError("reward is a model; expected a function that calls it")
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return  # built in C: nothing to be seen before it is called
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise RapConfigError(
            f"reward {callable_name(reward)} must take **kwargs: it is called with every "
            "column of the data set, as TRL does"
        )
    for p in parameters:
        if p.name == "environments" and p.default is p.empty:
            raise RapConfigError(f"reward needs {p.name!r}, which is not passed to it")


def callable_name(reward: Callable[..., Any]) -> str:
    """module:qualname and a hash of the source, so that an edited function is another."""
    function = reward
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        source = inspect.getsource(named).encode()
    except (OSError, TypeError):
        code = getattr(named, "__code__", None)
        source = repr((code.co_code, code.co_consts) if code else named).encode()
    with contextlib.suppress(Exception):  # what a partial or an object holds
        source += b"" if reward is named else pickle.dumps(reward, protocol=4)
    digest = hashlib.sha256(source).hexdigest()[:12]
    return f"{named.__module__}:{named.__qualname__}@{digest}"
