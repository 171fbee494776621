"""What the model made of a sample, kept between its forwards: images and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

GROWING = ("DynamicLayer",)
"""Cache layers that keep all tokens."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the vision tower and the projector made of the images of one sample."""

    kind: type
    """Class of what ``get_image_features`` gives."""
    parts: tuple[torch.Tensor, ...]
    """[.., E] each, in the order of the image tokens."""
    stacked: bool
    """Whether the model joins them itself (a list), or has one tensor for all."""
    deep: tuple[tuple[torch.Tensor, ...], ...] = ()
    """The same for each layer of the decoder that takes features of its own."""
    split: bool = True
    """Whether the model is given these by image, or those of a layer in one tensor."""

    @property
    def tokens(self) -> int:
        return sum(part[..., 0].numel() for part in self.parts)


@dataclass(slots=True, eq=False)
class Prefilled:
    """Prompts that the model has read. B rows of C tokens, padding included."""

    cache: Any
    mask: torch.Tensor
    """int64 [B, C]: 0 is padding."""
    input_ids: torch.Tensor
    """int64 [B, C]"""
    ids: list[torch.Tensor]
    """int64 [P] each, on the host."""
    following: torch.Tensor
    """int64 [B]: position of the token after each prompt."""
    hidden: torch.Tensor
    """[B, E]: final hidden state of each prompt's last token."""
    logits: torch.Tensor | None
    """float32 [B, V] there; None if they were not asked for."""

    @property
    def whole(self) -> bool:
        """Whether every layer keeps all tokens."""
        return all(type(layer).__name__ in GROWING for layer in self.cache.layers)
