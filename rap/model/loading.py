"""A path or hub name -> model and processor, for the command line.

Python users bring their own; here nothing that comes with a model runs unless its flag
is given, and what goes wrong is said in one sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RapConfigError, RapModelError, first_line, install


def load_model(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """(model, processor) from a folder or the hub, as transformers finds them.

    No code that comes with the model runs, and no pickle is read, unless asked for.
    Raises ``RapConfigError`` naming the flag where one of these would be needed or the
    device is not there, ``RapModelError`` if the model cannot be loaded.
    """
    try:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise RapConfigError(
            f"driving a model needs torch and transformers ({error}): {install('hf')}"
        ) from error
    _check_weights(Path(path), allow_pickle)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # a first allocation: CUDA that is not there is found before the weights are read
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RapConfigError(f"--device {device}: {first_line(error)}") from error
    more: dict[str, Any] = {}
    if attn_implementation is not None:
        more["attn_implementation"] = attn_implementation
    if not allow_pickle:
        more["use_safetensors"] = True
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            **more,
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise RapConfigError(
                f"model {path}: brings its own Python code, which is not run; read it and "
                "pass --trust-remote-code"
            ) from error
        raise RapModelError(
            f"model {path}: cannot be loaded: {first_line(error)}"
        ) from error
    return model.to(device), processor


def _check_weights(folder: Path, allow_pickle: bool) -> None:
    """A folder with pickled weights only is refused with the flag's name."""
    if allow_pickle or not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = [
        p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth")
    ]
    if pickles:
        raise RapConfigError(
            f"model {folder}: has {pickles[0]} and no safetensors; a pickle can run code, "
            "so it is read only with --allow-pickle"
        )
