"""Lessons as tensors, and the loss of the taught tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.demo_model.lessons import Lesson
from rap.demo import world

if TYPE_CHECKING:
    import torch

IGNORE = -100


class Batcher:
    """Lessons -> the tensors of one step."""

    def __init__(self, processor: Any) -> None:
        tokenizer = processor.tokenizer
        self.encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.head = {
            blind: self.encode("<|im_start|>user\n" + picture)
            for blind, picture in (
                (True, ""),
                (False, "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>"),
            )
        }
        self.mean = np.array(processor.image_processor.image_mean, np.float32)
        self.std = np.array(processor.image_processor.image_std, np.float32)

    def ids(self, item: Lesson) -> tuple[list[int], int]:
        """Tokens of a lesson and how many of them, from the left, are not taught."""
        prompt = f"{item.question}<|im_end|>\n<|im_start|>assistant\n{item.given}"
        given = self.head[item.scene is None] + self.encode(prompt)
        return given + self.encode(item.taught) + [self.end], len(given)

    def __call__(
        self, rows: Sequence[tuple[list[int], int, Lesson]]
    ) -> dict[str, torch.Tensor]:
        """rows: lessons with what `ids` says of them."""
        import torch

        length = max(len(ids) for ids, _, _ in rows)
        ids = np.full((len(rows), length), self.pad)
        labels = np.full((len(rows), length), IGNORE)
        positions = np.zeros((3, len(rows), length), np.int64)
        for r, (tokens, given, item) in enumerate(rows):
            ids[r, : len(tokens)] = tokens
            labels[r, given : len(tokens)] = tokens[given:]
            positions[:, r] = self.positions(item.scene is None, length)
        seen = [item.scene for _, _, item in rows if item.scene is not None]
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy((ids != self.pad).astype(np.int64)),
            "position_ids": torch.from_numpy(positions),
            "pixel_values": torch.from_numpy(self.pixels(seen)),
            "image_grid_thw": torch.tensor([[1, 6, 6]] * len(seen)),
        }

    def positions(self, blind: bool, length: int) -> np.ndarray:
        """[3, length]: time, height and width of each token, as Qwen counts them."""
        if blind:
            return np.tile(np.arange(length), (3, 1))
        start = len(self.head[False]) - 10
        cells = np.arange(9)
        image = np.stack([np.zeros(9, np.int64), cells // 3, cells % 3]) + start
        after = np.tile(np.arange(length - start - 9) + start + 3, (3, 1))
        before = np.tile(np.arange(start), (3, 1))
        return np.concatenate([before, image, after], axis=1)

    def pixels(self, scenes: Sequence[world.Scene]) -> np.ndarray:
        """[36 * n, 1176], the image processor's patches."""
        images = np.stack([np.asarray(world.render(s)) for s in scenes])
        values = (images.astype(np.float32) / 255 - self.mean) / self.std
        n = len(scenes)
        # picture, block row, row in block, y, block column, column in block, x, channel
        values = values.reshape(n, 3, 2, 14, 3, 2, 14, 3)
        values = values.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(n * 36, 3, 1, 196)
        return np.repeat(values, 2, axis=2).reshape(n * 36, 1176)


def one_length_attention(
    module: Any, hidden: Any, *, cu_seqlens: Any, **options: Any
) -> Any:
    """The vision tower's attention for pictures of one size: one call instead of one a
    picture (a test holds it against Qwen's own)."""
    import torch
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    n = len(cu_seqlens) - 1
    q, k, v = module.qkv(hidden).reshape(len(hidden), 3, module.num_heads, -1).unbind(1)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *options["position_embeddings"])
    q, k, v = (x.reshape(n, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return module.proj(out.transpose(1, 2).reshape(len(hidden), -1))


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross entropies of the taught tokens."""
    import torch

    labels = batch["labels"][:, 1:]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    taught = labels != IGNORE
    logits = model.lm_head(hidden[taught])
    return torch.nn.functional.cross_entropy(logits, labels[taught], reduction="sum")
