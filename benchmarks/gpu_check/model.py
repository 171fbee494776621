"""A Qwen2.5-VL of the 7B sizes with random weights, end to end: where the time of scoring a
batch goes. transformers makes and drives it, rap's kernels take what it would give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rap

from .correct import heads_of
from .device import DEV, GPU, device_ms, normal, wall_ms
from .report import say

BATCH, PROMPT, RESPONSE, DRAWN = (8, 40, 200, 64) if GPU else (2, 6, 5, 2)
PATCHES = (1, 44, 56) if GPU else (1, 4, 4)  # 600 x 800 pixels, 14 a patch


def sizes() -> tuple[dict[str, Any], dict[str, Any]]:
    """(text, vision) of the configuration."""
    if not GPU:
        return (
            dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, vocab_size=400),
            dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2,
                 out_hidden_size=32, window_size=112, fullatt_block_indexes=[1]),
        )  # fmt: skip
    return (
        dict(hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
             num_attention_heads=28, num_key_value_heads=4, vocab_size=152_064),
        dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16,
             out_hidden_size=3584, window_size=112, fullatt_block_indexes=[7, 15, 23, 31]),
    )  # fmt: skip


def make() -> Any:
    """The model on the device, bfloat16 there, in evaluation mode."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text, vision = sizes()
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    parts = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "mrope_section": parts, "rope_theta": 1e6}
    top = text["vocab_size"]
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=vision,
        image_token_id=top - 1, video_token_id=top - 2,
        vision_start_token_id=top - 3, vision_end_token_id=top - 4,
    )  # fmt: skip
    dtype = torch.bfloat16 if GPU else torch.float32
    with torch.device(DEV):
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype).eval()


def inputs(model: Any, image: bool) -> dict[str, torch.Tensor]:
    """Of one batch: random pixels and token ids, all rows of one length."""
    top = model.config.text_config.vocab_size
    ids = torch.full((BATCH, PROMPT + RESPONSE), 7, device=DEV)
    if not image:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    t, h, w = PATCHES
    inside = torch.full((BATCH, t * h * w // 4), top - 1, device=DEV)
    begin, end = (torch.full((BATCH, 1), top - n, device=DEV) for n in (3, 4))
    ids = torch.cat([ids[:, :PROMPT], begin, inside, end, ids[:, PROMPT:]], 1)
    dtype = next(model.parameters()).dtype
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": normal(BATCH * t * h * w, 1176, dtype=dtype),
        "image_grid_thw": torch.tensor([PATCHES] * BATCH, device=DEV),
    }


def timed(name: str, call: Callable[[], Any]) -> None:
    try:
        with torch.no_grad():
            call()
            say("model", name, device_ms=device_ms(call, 3), wall_ms=wall_ms(call, 1))
    except Exception as error:  # whatever this version of transformers says
        say("model", name, ok=False, error=f"{type(error).__name__}: {str(error)[:300]}")


def kernels(model: Any, length: int) -> None:
    """rap's share of a batch: the head product over the response, psi a sample."""
    text = model.config.text_config
    dtype = next(model.parameters()).dtype
    rows = BATCH * RESPONSE
    h1, h0 = (normal(rows, text.hidden_size, seed=s, dtype=dtype) for s in (0, 1))
    ids = torch.zeros(rows, dtype=torch.int64, device=DEV)
    weight = model.lm_head.weight
    timed(
        "rap.linear_cde of the batch", lambda: rap.linear_cde(h1, h0, weight, targets=ids)
    )
    dim = text.hidden_size // text.num_attention_heads
    q = heads_of(length, text.num_attention_heads, dim, 0)
    k = heads_of(length, text.num_key_value_heads, dim, 1)
    timed("rap.ace of one sample", lambda: rap.ace(q, k, response_start=length - RESPONSE))


def drawn(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    """DRAWN tokens a row after the prompt, by the model's own generate."""
    ids = {k: v[:, :-RESPONSE] if k in ("input_ids", "attention_mask") else v
           for k, v in batch.items()}  # fmt: skip
    return model.generate(
        **ids, max_new_tokens=DRAWN, min_new_tokens=DRAWN, do_sample=False, pad_token_id=0
    )


def run() -> None:
    model = make()
    seen, blind = inputs(model, True), inputs(model, False)
    pixels = {k: seen[k] for k in ("pixel_values", "image_grid_thw")}
    say(
        "model", "sizes", batch=BATCH, tokens=seen["input_ids"].shape[1],
        parameters=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    timed("vision tower", lambda: model.get_image_features(**pixels))
    timed("forward with the image", lambda: model(**seen, logits_to_keep=RESPONSE))
    timed("forward without", lambda: model(**blind, logits_to_keep=RESPONSE))
    kernels(model, seen["input_ids"].shape[1])
    timed(f"generate {DRAWN} tokens", lambda: drawn(model, seen))
