"""The hidden state of a prompt after the first decoder layer, kept for `rap.scores.states`.

A hook on the first layer notes what it gave in a forward; `keep` takes the mean over the
tokens of each prompt and projects it, on the model's device, one copy to the host a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..scores.states import signs
from .weights import plain


def watch(layer: torch.nn.Module, seen: Any) -> Any:
    """A hook (``remove`` it) that puts what ``layer`` gives into ``seen.first``."""

    def hook(module: Any, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, torch.Tensor) and first.dim() == 3:
            seen.first = first

    return layer.register_forward_hook(hook)


def keep(batch: Sequence[Any], seen: Any, padding_side: str) -> None:
    """Put the projected state of each prompt into its ``shared.state``.

    batch: `Prepared` sequences. ``seen.first``: [B, L, E] of a forward of them, padded on
    that side; it is let go."""
    first, seen.first = getattr(seen, "first", None), None
    wanted = [p.shared.n_images > 0 and p.shared.state is None for p in batch]
    if first is None or len(first) != len(batch) or not any(wanted):
        return
    first = plain(first)
    if first is None or first.shape[1] < max(len(p) for p in batch):
        return
    longest = first.shape[1]
    weights = torch.zeros(len(batch), longest)
    for row, prepared in enumerate(batch):
        start = longest - len(prepared) if padding_side == "left" else 0
        weights[row, start : start + prepared.n_prompt] = 1.0 / prepared.n_prompt
    weights = weights.to(first.device)
    values = first.float().masked_fill(weights[:, :, None] == 0, 0.0)  # padding may be NaN
    matrix = torch.from_numpy(signs(first.shape[2])).to(first.device)
    with torch.autocast(first.device.type, enabled=False):
        mean = torch.einsum("bl,ble->be", weights, values)
        states: np.ndarray = (mean @ matrix).cpu().numpy()
    for prepared, state, new in zip(batch, states, wanted, strict=True):
        if new:
            prepared.shared.state = state
