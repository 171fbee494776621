"""Forwards in which no later token sees one chosen token, in any decoder layer.

What ACE reads is where attention goes; what the answer owes to a token is another question,
and a forward answers it: the token is cut out of the sight of all that follows, and the
answer's probability is read again. Row j itself, and the rows before it, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .batching import Prepared
from .capture import UnsupportedModelError, attention_replaced, decoder_layers
from .decode import running

if TYPE_CHECKING:
    from .driver import ModelDriver

NAME = "rap_cut"
"""Our attention function in the registries of transformers."""
NONE = -1
"""A column that stands for no cut."""


@dataclass(slots=True)
class _Cut:
    """What one forward cuts, and in how many layers it did."""

    layer_of: dict[int, int]
    """``id`` of every module inside a decoder layer -> the layer."""
    columns: torch.Tensor
    """int64 [B]"""
    done: set[int]


_current: ContextVar[_Cut | None] = ContextVar("rap_cut", default=None)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa; inside the decoder without the cut column."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    cut = _current.get()
    if cut is None or id(module) not in cut.layer_of:
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    cut.done.add(cut.layer_of[id(module)])
    causal = bool(kwargs.get("is_causal", getattr(module, "is_causal", True)))
    mask = _masked(attention_mask, query, key, cut.columns, causal)
    return sdpa(module, query, key, value, mask, **kwargs)


def _masked(
    mask: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    columns: torch.Tensor,
    causal: bool,
) -> torch.Tensor:
    """[B, 1 or heads, L, K]: the mask without the columns in the rows after them."""
    rows = torch.arange(query.shape[2], device=query.device)[:, None]
    keys = torch.arange(key.shape[2], device=query.device)[None, :]
    at = columns.to(query.device)[:, None, None, None]
    cut = (keys == at) & (rows > at) & (at >= 0)
    if mask is None:
        seen = keys <= rows if causal else torch.ones_like(keys <= rows)
        return seen & ~cut
    mask = mask[..., : key.shape[2]]
    if mask.dtype == torch.bool:
        return mask & ~cut
    return mask.masked_fill(cut, torch.finfo(mask.dtype).min)


@contextmanager
def _cutting(driver: ModelDriver, columns: torch.Tensor) -> Iterator[_Cut]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    layers = decoder_layers(driver.model, driver.parts.decoder)
    layer_of = {id(m): n for n, layer in enumerate(layers) for m in layer.modules()}
    cut = _Cut(layer_of, columns, set())
    token = _current.set(cut)
    try:
        with attention_replaced(driver.parts.configs, NAME):
            yield cut
    finally:
        _current.reset(token)
    if len(cut.done) < len(layers):
        raise UnsupportedModelError(
            f"{len(layers) - len(cut.done)} of its {len(layers)} decoder layers do not "
            "attend through transformers.AttentionInterface, so a token cannot be cut there"
        )


def cut_logits(
    driver: ModelDriver, prepared: Prepared, columns: Sequence[int], rows: Sequence[int]
) -> torch.Tensor:
    """Logits [len(columns), len(rows), V], float32 on the host: what rows predict when the
    rows after a column do not see it, each column in a forward row of its own.

    columns: token indices in prompt + response, ``NONE`` for no cut. rows: likewise; row i
    predicts token i + 1. Raises `UnsupportedModelError` if a decoder layer does not attend
    through transformers' interface. Passes ``torch.OutOfMemoryError``.
    """
    at = torch.tensor(list(columns), dtype=torch.int64)
    head = driver.head  # the model is checked here if it has not been
    with running(driver) as seen, _cutting(driver, at):
        inputs = driver.inputs([prepared] * len(columns), "right")
        driver.call(inputs, use_cache=False)
        states = seen.hidden
    where = torch.tensor(list(rows), device=states.device)
    picked = states[:, where].to(head.weight.device)
    with torch.no_grad():
        return head.logits(picked).float().cpu()
