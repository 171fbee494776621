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


ADVICE = "Pass the model's own processor: AutoProcessor.from_pretrained(...)"

# ---- what is refused before anything runs ------------------------------------------


def require_model(model: Any) -> None:
    """Raises ``RapModelError`` unless this is a loaded model of transformers."""
    import torch

    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        inside = isinstance(getattr(model, "model", None), torch.nn.Module)
        raise RapModelError(
            f"model = {_short(model)}: expected a loaded Hugging Face model, as "
            "AutoModelForImageTextToText.from_pretrained(...) gives it"
            + "; of a pipeline pass its .model and its .processor"
            * inside
        )


def require_processor(processor: Any) -> None:
    """Raises ``RapModelError`` unless this has a tokenizer and an image processor.

    A tokenizer alone would do everything that a processor does, but for the images.
    """
    given = _short(processor)
    for kind, why in _NO_PROCESSORS.items():
        if any(c.__name__ == kind for c in type(processor).__mro__):
            raise RapModelError(f"processor = {given}: {why}. {ADVICE}")
    if not callable(getattr(processor, "apply_chat_template", None)):
        raise RapModelError(
            f"processor = {given}: expected the model's processor, as "
            "AutoProcessor.from_pretrained(...) gives it"
        )
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise RapModelError(f"processor = {given}: it has no {part}. {ADVICE}")


_NO_PROCESSORS = {
    "PreTrainedTokenizerBase": "a tokenizer prepares no images, so every sample would be "
    "scored without its images",
    "ImageProcessingMixin": "an image processor makes no prompts",
    "BaseVideoProcessor": "a video processor makes no prompts",
    "FeatureExtractionMixin": "a feature extractor makes no prompts",
}
"""Classes of transformers by name, and why they do not do."""


def require_pair(model: Any, processor: Any, image_token_id: int) -> None:
    """Raises ``RapModelError`` if the processor cannot be this model's: its tokens are
    more than the model knows, it has no image token of the model, or no chat template."""
    name, tokenizer = type(processor).__name__, processor.tokenizer
    pair = f"{name} and {type(model).__name__} do not belong together"
    embedding = model.get_input_embeddings()
    rows = int(getattr(embedding, "num_embeddings", 0) or embedding.weight.shape[0])
    special = {int(i) for i in tokenizer.all_special_ids} | {image_token_id}
    highest = max(set(tokenizer.get_vocab().values()) - special, default=0)
    if highest >= rows:
        raise RapModelError(
            f"{pair}: the tokenizer has tokens up to {highest}, the model knows {rows}. "
            f"{ADVICE}"
        )
    if tokenizer.convert_ids_to_tokens(image_token_id) is None:
        raise RapModelError(
            f"{pair}: the model's image token is {image_token_id}, the tokenizer's "
            f"vocabulary has {len(tokenizer)} tokens. {ADVICE}"
        )
    if not getattr(processor, "chat_template", None):
        theirs = getattr(tokenizer, "chat_template", None)
        raise RapModelError(
            f"{name} has no chat template, so no prompt can be made. "
            + (
                "Its tokenizer has one: processor.chat_template = "
                "processor.tokenizer.chat_template"
                if theirs
                else "Set processor.chat_template, or load an instruct model: base models "
                "have none"
            )
        )


def other_family(model: Any, processor: Any) -> str:
    """A remark if transformers has another processor class for this model, else ""."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    kind = getattr(model.config, "model_type", "")
    usual = PROCESSOR_MAPPING_NAMES.get(kind)
    names = {c.__name__ for c in type(processor).__mro__}
    if not isinstance(usual, str) or usual in names:
        return ""
    return (
        f"the processor of {kind} models is {usual}, and this is a "
        f"{type(processor).__name__}: pass the model's own"
    )


def _short(value: object) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)[:80]
    if isinstance(value, type):
        return f"the class {value.__name__}, not an object of it"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"


# ---- tokens ------------------------------------------------------------------------


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


def chat_tokens(processor: Any) -> tuple[str, ...]:
    """Texts that would end or begin a turn: special tokens that the chat template writes,
    and those of the beginning and end of a text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = _template(processor)
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    special = {str(token) for token in tokenizer.all_special_tokens}
    special |= {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(
        sorted(t for t in special if t.strip() and (t in ends or t.strip() in template))
    )


def _template(processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    found = getattr(processor, "chat_template", None) or getattr(
        tokenizer, "chat_template", None
    )
    return found if isinstance(found, str) else json.dumps(found or "")


def special_ids(processor: Any, image_token_id: int) -> set[int]:
    """Special tokens, and added tokens that the chat template writes (<think>).

    Not every added token: Gemma adds runs of white space and HTML tags, which are text.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    template = _template(processor)
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
