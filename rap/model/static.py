"""Decoding with tensors of fixed shape, so that its forward can be compiled once.

A cache that grows (`Grown`) makes each step another shape: a compiler or a CUDA graph can
do nothing with it. A cache of fixed size (`Fixed`) holds a row for each completion and a
place for each token to come, both rounded up so that few shapes are met; rows that have
ended stay. ``transformers.StaticLayer``, which ``generate(cache_implementation="static")``
uses, too.

`steps` is how one forward is made: plain, or compiled (``ScoreConfig.compile_decode``). It
never ran on a GPU here; on a CPU the tokens are those of `Grown` (tests/test_static.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, StaticLayer

Forward = Callable[[Mapping[str, Any]], Any]
"""Inputs of one token a row -> the model's output."""

BLOCK = 256
"""Lengths are multiples of this."""
SHAPES = 3
"""Shapes whose tensors are kept, at most."""
COMPILER: Callable[..., Any] = partial(torch.compile, mode="reduce-overhead", dynamic=False)
"""Kernels are fused, and a step is one CUDA graph."""


class Tokens(Protocol):
    """Completions that grow a token a step."""

    def advance(self, forward: Forward, token: torch.Tensor) -> torch.Tensor:
        """Read a token [n] of each row: float32 [n, V], the logits of the next."""

    def keep(self, going: Sequence[int]) -> bool:
        """Go on with these rows only; False: all stay."""


class Grown:
    """A cache that grows by a token a step. Rows that have ended can be let go of."""

    def __init__(self, cache: Any, mask: torch.Tensor, following: torch.Tensor) -> None:
        self.cache, self.mask, self.following = cache, mask, following

    def advance(self, forward: Forward, token: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        inputs = {
            "input_ids": token[:, None],
            "attention_mask": self.mask,
            "position_ids": self.following[:, None],
            "past_key_values": self.cache,
        }
        self.following = self.following + 1
        found: torch.Tensor = forward(inputs).logits[:, -1].float()
        return found

    def keep(self, going: Sequence[int]) -> bool:
        self.cache.batch_select_indices(torch.tensor(going))  # on several devices, perhaps
        rows = torch.tensor(going, device=self.mask.device)
        self.mask, self.following = self.mask[rows], self.following[rows]
        return True


class Fixed:
    """Tensors of one shape: a cache of ``rows`` rows with a place for ``length`` tokens.
    They serve one batch after the other: a compiled forward knows them by their place in
    memory. ``like``: the layers of a growing cache."""

    def __init__(self, like: Sequence[Any], rows: int, length: int, mask: torch.Tensor):
        self.layers: list[Any] = [StaticLayer(max_cache_len=length) for _ in like]
        for layer, grown in zip(self.layers, like, strict=True):
            layer.lazy_initialization(grown.keys, grown.values)
        self.n = rows
        self.cache = Cache(layers=self.layers)
        self.mask = mask.new_ones(rows, length)
        self.following = mask.new_zeros(rows)
        self.token = mask.new_zeros(rows, 1)

    def begin(
        self, cache: Any, mask: torch.Tensor, following: torch.Tensor, n: int
    ) -> Fixed:
        """Take prompts that were read; the first ``n`` rows count."""
        self.n, read = n, mask.shape[1]
        for fixed, layer in zip(self.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                tensor = getattr(fixed, name)
                tensor.zero_()  # what a batch before has left may not be finite
                tensor[:, :, :read] = getattr(layer, name)
            fixed.cumulative_length.fill_(read)
        self.mask[:, :read] = mask
        self.mask[:, read:] = 1  # the future is not seen anyway
        self.following.copy_(following)
        return self

    def advance(self, forward: Forward, token: torch.Tensor) -> torch.Tensor:
        self.token[: self.n, 0] = token
        inputs = {
            "input_ids": self.token,
            "attention_mask": self.mask,
            "position_ids": self.following[:, None],
            "past_key_values": self.cache,
        }
        torch.compiler.cudagraph_mark_step_begin()
        # a copy: the next step writes into the same memory
        found: torch.Tensor = forward(inputs).logits[: self.n, -1].float().clone()
        self.following.add_(1)
        return found

    def keep(self, going: Sequence[int]) -> bool:
        return False


class Pool:
    """Tensors of the shapes that were met last, `SHAPES` of them."""

    def __init__(self) -> None:
        self.fixed: dict[tuple[int, int], Fixed] = {}

    def begin(
        self, cache: Any, mask: torch.Tensor, following: torch.Tensor, n: int, limit: int
    ) -> Fixed:
        """For ``limit`` tokens more. ``cache``: of growing layers; its rows are n, then
        copies of the first up to `rows_for`."""
        rows, read = mask.shape
        shape = rows, -(-(read + limit) // BLOCK) * BLOCK
        found = self.fixed.pop(shape, None)
        while found is None and len(self.fixed) >= SHAPES:
            del self.fixed[next(iter(self.fixed))]
        self.fixed[shape] = found or Fixed(cache.layers, *shape, mask)
        return self.fixed[shape].begin(cache, mask, following, n)


def rows_for(rows: Sequence[int]) -> list[int]:
    """``rows`` and copies of the first, a power of two."""
    wanted = 1 << (len(rows) - 1).bit_length()
    return [*rows, *[rows[0]] * (wanted - len(rows))]
