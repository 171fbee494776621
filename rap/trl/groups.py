"""Groups of a generation batch: which taught nothing, and their exchange
(``Reselect.refill``).

A generation batch is TRL's dict: tensors with a row a completion, a group's completions
one after the other, prompts padded on the left and completions on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid


def totals(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[completions, functions] -> the weighted sum of each; NaN where none graded it."""
    unjudged = rewards.isnan().all(dim=1)
    return (
        (rewards * weights.to(rewards.device))
        .nansum(dim=1)
        .masked_fill(unjudged, torch.nan)
    )


def without_variance(totals: torch.Tensor, size: int) -> list[int]:
    """Numbers of the groups of ``size`` whose finite rewards are all the same. Rewards, not
    advantages: RLOO's contain the divergence from the reference model."""
    groups = totals.view(-1, size)
    low = groups.nan_to_num(nan=torch.inf).amin(dim=1)
    high = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
    return (low >= high).nonzero()[:, 0].tolist()


def exchange(
    batch: dict[str, Any],
    more: dict[str, Any],
    pairs: Sequence[tuple[int, int]],
    size: int,
    pad: int,
) -> dict[str, Any]:
    """``batch`` with its groups pairs[.][0] replaced by the groups pairs[.][1] of ``more``.

    Both are padded to the wider prompt (on the left) and the longer completion.
    """
    prompt, length = (
        max(batch[name].shape[1], more[name].shape[1])
        for name in ("prompt_ids", "completion_ids")
    )
    old: dict[str, Any] = split_pixel_values_by_grid(_widened(batch, prompt, length, pad))
    new: dict[str, Any] = split_pixel_values_by_grid(_widened(more, prompt, length, pad))
    rows = len(old["advantages"])
    source = {}
    for there, here in pairs:
        for k in range(size):
            source[there * size + k] = here * size + k
    result: dict[str, Any] = {}
    for name, values in old.items():
        if isinstance(values, list):
            result[name] = [
                new[name][source[i]] if i in source else values[i] for i in range(rows)
            ]
        elif isinstance(values, torch.Tensor) and values.ndim:
            values = values.clone()
            values[list(source)] = new[name][list(source.values())]
            result[name] = values
        else:
            result[name] = values
    mask = result["completion_mask"]
    result["num_items_in_batch"] = (mask * result.get("tool_mask", 1)).sum()
    return unsplit_pixel_values_by_grid(result)


def _widened(
    batch: Mapping[str, Any], prompt: int, length: int, pad: int
) -> dict[str, Any]:
    """Every tensor of a generation batch for ``prompt`` + ``length`` tokens a row."""
    left = prompt - batch["prompt_ids"].shape[1]
    right = length - batch["completion_ids"].shape[1]
    out = dict(batch)
    for name, values in batch.items():
        if not isinstance(values, torch.Tensor) or values.ndim != 2:
            continue
        sides = None
        if name.startswith("prompt_"):
            sides = (left, 0)
        elif name.endswith("token_type_ids"):
            sides = (left, right)
        elif name in COMPLETION_WIDE:
            sides = (0, right)
        if sides is not None:
            fill = pad if name.endswith("_ids") and "type" not in name else 0
            out[name] = torch.nn.functional.pad(values, sides, value=fill)
    return out


COMPLETION_WIDE = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
"""Tensors of a generation batch with one value a completion token."""
