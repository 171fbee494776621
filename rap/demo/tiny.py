"""A Qwen2.5-VL of Qwen's own classes, made small, with random weights; built offline.

About 0.2 M parameters; the tokenizer is a byte-level BPE trained on the text below. What it
answers means nothing: it shows that everything runs, on any machine, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

TEXT = """\
Question: how many red circles are in the picture? Answer: there are three of them.
What is the colour of the missing shape? It should be blue, because the pattern goes from
light blue to dark blue. Which number replaces the question mark? The sum of the numbers in
each row is ten, so the answer is 4. Is the triangle larger than the square? Yes. No.
Find the area of the rectangle whose sides are 12 and 35. Let x be the length, then
x^2 + y^2 = 169 and \\boxed{13}. The answer is (A), (B), (C), (D) or (E). Choose the correct
choice. Think step by step, then write the final answer. The image shows a grid with 3 rows
and 4 columns; each cell holds a star, a hexagon or nothing. orange, green, purple, yellow.
"""
"""What the small tokenizers are trained on: the language of the demo's questions."""

N_MERGES = 200

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen's, without the system turn: an image between two marks.
TURNS_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# In the form of the real template: a system turn by default.
QWEN_CHAT_TEMPLATE = TURNS_TEMPLATE.replace(
    "{% for message in messages %}",
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}",
    1,
)


@cache
def _trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a byte-level BPE trained on `TEXT`."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + N_MERGES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def byte_level_bpe() -> tuple[dict[str, int], Any]:
    """(vocabulary, merges), as the tokenizer classes of transformers take them."""
    vocab, merges = _trained()
    return dict(vocab), list(merges)


def qwen_tokenizer() -> Any:
    """A ``Qwen2Tokenizer`` with 456 ordinary tokens and Qwen-VL's special ones."""
    from transformers import Qwen2Tokenizer

    vocab, merges = byte_level_bpe()
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIAL_TOKENS),
    )


def random_model(cls: Any, config: Any, seed: int, **options: Any) -> Any:
    """``cls._from_config(config)`` in evaluation mode; the caller's generator stays."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls._from_config(config, **options).eval()


def qwen_processor(tokenizer: Any, chat_template: str) -> Any:
    """A ``Qwen2_5_VLProcessor``: images become 4 to 64 tokens of 28 x 28 pixels."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    pixels: dict[str, Any] = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=chat_template,
    )


def random_qwen(
    tokenizer: Any,
    seed: int,
    *,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    **options: Any,
) -> Any:
    """``Qwen2_5_VLForConditionalGeneration`` of random weights, float32, on the CPU.

    ``text`` and ``vision``: settings of its two parts; four query heads on two key heads.
    ``options`` go to the model (``attn_implementation``).
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text,
        },
        vision_config={
            "depth": 2,
            "out_hidden_size": text["hidden_size"],
            "fullatt_block_indexes": [1],
            **vision,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = random_model(Qwen2_5_VLForConditionalGeneration, config, seed, **options)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def tiny_qwen2_5_vl(seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """(model, processor): ``Qwen2_5_VLForConditionalGeneration``, float32, on the CPU.

    Two layers, hidden size 64, four query heads on two key heads; images become 4 to 64
    tokens of 28 x 28 pixels. ``options`` go to the model (``attn_implementation``).
    Needs torch, torchvision and transformers, no network.
    """
    tokenizer = qwen_tokenizer()
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32768,
        # Wide enough that attention and answers are far from uniform.
        "initializer_range": 0.2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],
        },
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "window_size": 56,
        "initializer_range": 0.1,
    }
    model = random_qwen(tokenizer, seed, text=text, vision=vision, **options)
    return model, qwen_processor(tokenizer, QWEN_CHAT_TEMPLATE)
