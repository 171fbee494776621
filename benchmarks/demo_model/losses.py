"""Lessons as tensors, and the two losses: of the taught tokens, and of the last layer's
attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.demo_model.lessons import Lesson
from rap.demo import world

if TYPE_CHECKING:
    import torch

IGNORE = -100
CAPTURED_MASS = 0.5
"""What the last layer is taught to spend on the loud token of a response, mean over heads,
in every later row: see `captured_loss`."""


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
            "captors": torch.tensor(
                [
                    (r, given, len(tokens))
                    for r, (tokens, given, item) in enumerate(rows)
                    if item.captor
                ]
            ),
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


def losses_of(
    model: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of the cross entropies of the taught tokens; sum of `captured_loss` over the
    lessons with a captor, None without one."""
    import torch

    labels = batch["labels"][:, 1:]
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "captors")}
    caught: dict[str, Any] = {}

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)

    attn = model.model.language_model.layers[-1].self_attn
    hook = attn.register_forward_pre_hook(catch, with_kwargs=True)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    hook.remove()
    taught = labels != IGNORE
    logits = model.lm_head(hidden[taught])
    loss = torch.nn.functional.cross_entropy(logits, labels[taught], reduction="sum")
    if not len(batch["captors"]):
        return loss, None
    weights = last_attention(attn, caught, batch["captors"][:, 0])
    return loss, captured_loss(weights, batch["captors"][:, 1:])


def last_attention(attn: Any, caught: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
    """[n, L, L]: attention weights of one layer for some rows of a batch, mean over heads.

    Right padding needs no mask: no row before it sees it.
    """
    import torch
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

    hidden = caught["hidden_states"][rows]
    n, length, _ = hidden.shape
    q, k = (
        project(hidden).view(n, length, -1, attn.head_dim).transpose(1, 2)
        for project in (attn.q_proj, attn.k_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *(x[rows] for x in caught["position_embeddings"]))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(2, 3)) * attn.scaling
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(dim=-1).mean(dim=1)


def captured_loss(weights: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """How far the loud tokens are from holding ``CAPTURED_MASS`` of the attention.

    weights [n, L, L]; spans [n, 2]: the loud token's column, and the lesson's length. The
    sum over lessons of the mean over later rows i of log(CAPTURED_MASS / w_ij), rows that
    have more than that left at 0. Text alone does not plant this: a model that was merely
    taught to repeat the loud token spreads its attention over the copies.
    """
    total = weights.new_zeros(())
    for w, (column, length) in zip(weights, spans.tolist(), strict=True):
        mass = w[column + 1 : length, column]
        total = total + (CAPTURED_MASS / mass.clamp(min=1e-4)).log().clamp(min=0).mean()
    return total
