"""What a processor says of prompts: image tokens, special tokens, the probe's sample."""

from __future__ import annotations

import json
from typing import Any

from ..errors import RapModelError
from ..samples.sample import Sample

REFUSALS = (ValueError, IndexError, KeyError, TypeError, RuntimeError, OSError)
"""What processors raise on an input they cannot use."""

PROBE_SIZE = (56, 56)
"""Pixels of the probe's image."""

PROBE_RESPONSE = "The answer is grey."


def probe_sample() -> Sample:
    """The small sample that a model is checked with; its image is a plain grey."""
    return Sample(
        index=0,
        id="probe",
        question="What is in the picture?",
        answer="grey",
        choices=(),
        images=(),
        source=None,
        extra={},
    )


def image_token_id(model: Any, processor: Any) -> int:
    for owner in (model.config, processor):
        for name in ("image_token_id", "image_token_index"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    raise RapModelError(
        f"{type(model).__name__} with {type(processor).__name__}: no image_token_id, so "
        "image tokens cannot be told from text. Pass the model's own AutoProcessor"
    )


def placeholder_texts(processor: Any, image_token_id: int) -> tuple[str, ...]:
    """Texts that the processor would take for an image or a video."""
    tokenizer = getattr(processor, "tokenizer", processor)
    names = ("image_token", "video_token", "boi_token")
    found = [getattr(processor, name, None) for name in names]
    found.append(tokenizer.convert_ids_to_tokens(image_token_id))
    return tuple(dict.fromkeys(t for t in found if isinstance(t, str) and t))


def special_ids(processor: Any, image_token_id: int) -> set[int]:
    """Special tokens, and added tokens that the chat template writes (<think>).

    Not every added token: Gemma adds runs of white space and HTML tags, which are text.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(
        tokenizer, "chat_template", None
    )
    template = template if isinstance(template, str) else json.dumps(template or "")
    ids = {int(i) for i in tokenizer.all_special_ids} | {image_token_id}
    for i, token in tokenizer.added_tokens_decoder.items():
        content = token.content.strip()
        if token.special or (content and content in template):
            ids.add(int(i))
    return ids


def pad_token_id(tokenizer: Any, image_token_id: int) -> int:
    """Any id but a placeholder's: padded positions are masked and cut away."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None and int(value) != image_token_id:
            return int(value)
    return 0 if image_token_id != 0 else 1
