"""The natural world's model: SmolLM2-135M-Instruct that sees through EfficientNet-Lite0.

transformers' `FastVlmForConditionalGeneration` of three parts: an ImageNet encoder (3 x 3
features of 1,280 at 96 x 96 pixels), a two-layer projector, a Llama-type language model.
Encoder and language model are the published ones (`parts`); projector and low-rank updates
of the language model's attention were trained by ``benchmarks/natural_world/train.py`` on
questions about pictures, and nothing else. Nothing else is taught: what the model believes
without looking is the language model's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...errors import RapModelError, first_line
from .parts import LANGUAGE, SHA256, VISION, part_path, require_parts, sha256
from .pictures import SIZE

WEIGHTS = Path(__file__).parent / "weights"
TRAINED = "trained.safetensors"
IMAGE_TOKEN = "<reponame>"  # noqa: S105  a spare token of the vocabulary, not a password
IMAGE_TOKENS = 9
ENCODER = "tf_efficientnet_lite0"
FEATURES = 1280
RANK = 8
"""Of the updates of every query and value projection."""
UPDATED = ("q_proj", "v_proj")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "\n"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML as SmolLM2 has it, without its default system turn (20 tokens)."""


def build_processor(language_folder: Path) -> Any:
    """``LlavaProcessor``: CLIP's image processor at 96 pixels, SmolLM2's tokenizer."""
    from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

    tokenizer = AutoTokenizer.from_pretrained(language_folder, gguf_file=LANGUAGE[1])
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.padding_side = "left"
    images = CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],  # as tf_efficientnet_lite0 was trained
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def build_model(processor: Any) -> Any:
    """The model with an untrained projector, float32, on the CPU (a GGUF is read)."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        TimmWrapperConfig,
    )

    language = AutoModelForCausalLM.from_pretrained(
        part_path(LANGUAGE).parent, gguf_file=LANGUAGE[1], dtype=torch.float32
    )
    vision: dict[str, Any] = {"hidden_size": FEATURES}  # what the projector reads
    config = FastVlmConfig(
        text_config=language.config.to_dict() | {"model_type": "llama"},
        vision_config=TimmWrapperConfig(
            architecture=ENCODER,
            do_pooling=False,
            **vision,
        ).to_dict(),
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = FastVlmForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    encoder = model.model.vision_tower.timm_model
    _load_by_order(encoder, torch.load(part_path(VISION), weights_only=True))
    ends = [processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.float().eval()


def _load_by_order(encoder: Any, weights: dict[str, Any]) -> None:
    """The weights file names its layers otherwise; order and shapes are the same."""
    own = encoder.state_dict()
    theirs = [value for name, value in weights.items() if "num_batches" not in name]
    names = [name for name in own if "num_batches" not in name]
    shapes = [own[name].shape for name in names]
    if [v.shape for v in theirs[: len(names)]] != shapes:
        raise RapModelError(f"{VISION[1]} does not fit timm's {ENCODER}")
    encoder.load_state_dict(
        dict(zip(names, theirs, strict=False)), strict=False
    )  # all but the counters of batches; the classifier is left out


def add_trained(model: Any, trained: dict[str, Any]) -> None:
    """Projector into its place, low-rank updates added to the language model's weights."""
    import torch

    projector = {
        name.removeprefix("projector."): value.float()
        for name, value in trained.items()
        if name.startswith("projector.")
    }
    model.model.multi_modal_projector.load_state_dict(projector)
    with torch.no_grad():
        for k, layer in enumerate(model.model.language_model.layers):
            for part in UPDATED:
                down = trained[f"{k}.{part}.down"].float()
                up = trained[f"{k}.{part}.up"].float()
                getattr(layer.self_attn, part).weight += up @ down


def cache_folder() -> Path:
    """Where the assembled model is kept: ``$RAP_CACHE``, else ``~/.cache/rap``."""
    root = os.environ.get("RAP_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "rap"


def natural_model_folder() -> Path:
    """The assembled model as a Hugging Face folder (540 MB), made at the first call.

    Raises ``RapModelError`` if a package is missing, has other bytes, or the trained part
    is damaged, or the folder is not whole.
    """
    require_parts()
    trained = WEIGHTS / TRAINED
    expected = _hash_of_trained(trained)
    key = sha256_of_texts(expected, *SHA256.values())[:12]
    folder = cache_folder() / f"natural-{key}"
    if folder.exists() and not (folder / "model.safetensors").is_file():
        raise _unreadable(folder, "it has no model.safetensors")
    if not folder.exists():
        _assemble(trained, folder)
    return folder


def _hash_of_trained(trained: Path) -> str:
    """The SHA-256 of the trained part, which is that of the manifest."""
    try:
        expected = json.loads((WEIGHTS / "manifest.json").read_text())[TRAINED]
        whole = sha256(trained) == expected
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise RapModelError(f"{trained} is missing or damaged: install rap-select again")
    return str(expected)


def _unreadable(folder: Path, why: str) -> RapModelError:
    return RapModelError(
        f"the natural world's model cannot be read, {why}: rm -r {folder}, and the next "
        "call makes it again"
    )


def sha256_of_texts(*texts: str) -> str:
    """One hash of several texts."""
    import hashlib

    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _assemble(trained: Path, folder: Path) -> None:
    """Model and processor written beside the folder, then moved into its place."""
    import shutil
    import tempfile

    from safetensors.torch import load_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    processor = build_processor(part_path(LANGUAGE).parent)
    model = build_model(processor)
    add_trained(model, load_file(trained))
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".natural-"))
    try:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        try:
            work.rename(folder)
        except OSError:  # another process was first
            if not (folder / "model.safetensors").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_natural_model() -> tuple[Any, Any]:
    """(model, processor) of the natural world, float32, on the CPU. Raises
    ``RapModelError`` as `natural_model_folder`, and if a file in it is damaged."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoProcessor, FastVlmForConditionalGeneration

    folder = natural_model_folder()
    try:
        model = FastVlmForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, first_line(error)) from error
    return model.eval(), processor
