"""The demo's model: a Qwen2.5-VL of 1.3 M parameters, trained on the synthetic data.

Qwen's own classes, its own tokenizer and processor, trained from random weights by
benchmarks/demo_model/train.py and shipped in ``rap/demo/weights/`` (float16). An 84 x 84
image is nine image tokens, one per cell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RapModelError
from .tiny import QWEN_SPECIAL_TOKENS, TURNS_TEMPLATE, qwen_processor

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"

# How Qwen2Tokenizer splits a text before it merges: a digit is always alone.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_processor(corpus: Iterable[str]) -> Any:
    """A ``Qwen2_5_VLProcessor`` whose byte-level BPE is trained on ``corpus``."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        min_frequency=5,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in trained["merges"]]  # annotated as texts there
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIAL_TOKENS),
    )
    return qwen_processor(tokenizer, TURNS_TEMPLATE)


def build_model(processor: Any, seed: int, *, width: int = 128, layers: int = 4) -> Any:
    """``Qwen2_5_VLForConditionalGeneration`` with random weights, float32, on the CPU."""
    from .tiny import random_qwen

    text = {
        "hidden_size": width,
        "intermediate_size": 5 * width // 2,
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "initializer_range": 0.04,
        "rope_parameters": {
            "rope_type": "default",
            # Small: a step across or down the image must turn the angles enough
            # to be seen (the width has the lowest frequencies).
            "rope_theta": 10.0,
            "mrope_section": _sections(width // 8),
        },
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 4,
        "window_size": 112,
        "initializer_range": 0.04,
    }
    return random_qwen(processor.tokenizer, seed, text=text, vision=vision)


def _sections(half: int) -> list[int]:
    """Rotary frequencies shared out to time, height and width, as Qwen does: 2 : 3 : 3."""
    time = half // 4
    height = (half - time) // 2
    return [time, height, half - time - height]


def save(model: Any, processor: Any, folder: Path) -> None:
    """Weights in float16, everything else as text, and the manifest with the hashes."""
    import copy

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """``manifest.json``: the SHA-256 of every file beside it."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST)
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n")


def check_files(folder: Path) -> None:
    """Every file of the manifest is there and whole, else ``RapModelError``."""
    path = folder / MANIFEST
    advice = (
        "Install rap-select again, or train it anew in a checkout of the repository: "
        "python -m benchmarks.demo_model.train"
    )
    try:
        hashes = json.loads(path.read_text())
        expected = {str(name): str(digest) for name, digest in hashes.items()}
    except FileNotFoundError as error:
        raise RapModelError(f"the demo's model is missing: no {path}. {advice}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise RapModelError(
            f"the demo's model is damaged: {path}: {error}. {advice}"
        ) from error
    for name, digest in expected.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except FileNotFoundError as error:
            raise RapModelError(
                f"the demo's model is missing a file: {folder / name}. {advice}"
            ) from error
        except OSError as error:
            raise RapModelError(
                f"the demo's model cannot be read: {folder / name}: {error}"
            ) from error
        if found != digest:
            raise RapModelError(
                f"the demo's model is damaged: {folder / name} has SHA-256 "
                f"{found[:12]}..., expected {digest[:12]}.... {advice}"
            )


def load_demo_model(
    folder: Path | None = None, *, dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """(model, processor) of the demo, on the CPU, in evaluation mode.

    ``dtype`` None is float32. Needs torch, torchvision and transformers, no network.
    Raises ``RapModelError`` if a file is missing or is not the one that was shipped.
    """
    folder = WEIGHTS if folder is None else Path(folder)
    check_files(folder)
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype or torch.float32, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return model.eval(), processor
