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
from torch.nn.functional import pad
from transformers.cache_utils import Cache, StaticLayer

Forward = Callable[[Mapping[str, Any]], Any]
"""Inputs of one token a row -> the model's output."""

BLOCK = 256
"""Lengths are multiples of this."""
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
    """A cache with a place for ``limit`` tokens more. ``cache``: of growing layers; its
    rows are n, then copies of the first up to `rows_for`."""

    def __init__(
        self, cache: Any, mask: torch.Tensor, following: torch.Tensor, n: int, limit: int
    ) -> None:
        read = mask.shape[1]
        length = -(-(read + limit) // BLOCK) * BLOCK
        self.n = n
        self.cache = Cache(layers=[_stretched(layer, length) for layer in cache.layers])
        self.mask = pad(mask, (0, length - read), value=1)  # the future is not seen anyway
        self.following = following.clone()
        self.token = mask.new_zeros(len(mask), 1)

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


def rows_for(rows: Sequence[int]) -> list[int]:
    """``rows`` and copies of the first, a power of two."""
    wanted = 1 << (len(rows) - 1).bit_length()
    return [*rows, *[rows[0]] * (wanted - len(rows))]


def _stretched(layer: Any, length: int) -> StaticLayer:
    fixed = StaticLayer(max_cache_len=length)
    read = layer.keys.shape[2]
    fixed.lazy_initialization(layer.keys, layer.values)
    fixed.keys[:, :, :read], fixed.values[:, :, :read] = layer.keys, layer.values
    fixed.cumulative_length.fill_(read)
    return fixed
