"""What a path lacks to be a model, in one sentence: looked at before transformers is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RapConfigError, RapModelError

DEMO = Path(__file__).parent.parent / "demo/weights"
ADAPTER = "adapter_config.json"
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LFS = b"version https://git-lfs"
_HEADER_BYTES = 100_000_000
"""Of a safetensors file, at most; the library's own limit."""


def found_model(path: str | os.PathLike[str]) -> str:
    """The name as it is; of "demo", where no such folder is here, the folder of the demo's
    model, which comes along."""
    name = os.fspath(path)
    return str(DEMO) if name == "demo" and not Path(name).exists() else name


def is_hub_name(name: str) -> bool:
    """Whether this may be ``organisation/name`` and not a path."""
    if Path(name).exists() or name.startswith((".", "/", "~")) or "\\" in name:
        return False
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name))


def check_folder(path: Path, allow_pickle: bool) -> None:
    """Raises ``RapModelError`` where no model can lie there, naming what does;
    ``RapConfigError`` where its weights are pickles, and pickles are not allowed. The
    weights themselves are looked at by `check_weights`."""
    if not path.exists():
        raise _refused(path, "no such folder")
    if path.is_file():
        raise _refused(path, _file_reason(path))
    names = {p.name for p in path.iterdir()}
    if "config.json" not in names and ADAPTER not in names:
        raise _refused(path, _no_config_reason(path))
    for file in sorted(path.iterdir()):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise _refused(path, f"{file.name} is not a regular file")
        if is_lfs_pointer(file):
            raise _refused(
                path,
                f"{file.name} is a Git LFS pointer, not the file itself: run `git lfs "
                "pull` in that folder, or `hf download`",
            )
    pickles = _pickles(path)
    if pickles and not _weights(path) and not allow_pickle:
        raise RapConfigError(
            f"model {path}: has {pickles[0]} and no safetensors; a pickle can run code, so "
            "it is read only with --allow-pickle"
        )


def check_weights(path: Path) -> None:
    """Raises ``RapModelError`` if a folder has no weights, or not all of their bytes."""
    weights = _weights(path)
    if not weights and not _pickles(path):
        raise _refused(path, "it has a config.json but no weights (*.safetensors)")
    index = _read(path / "model.safetensors.index.json").get("weight_map")
    named = index.values() if isinstance(index, dict) else ()
    away = sorted({str(n) for n in named if Path(str(n)).name != str(n)})
    if away:
        raise _refused(path, f"its index names {away[0]!r}, which is no file of the folder")
    gone = sorted({str(n) for n in named if not (path / str(n)).is_file()})
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise _refused(path, f"its weights are not all there: no {gone[0]}{more}")
    whole = path / "model.safetensors"
    if named and whole.exists() and whole.name not in named:
        raise _refused(
            path,
            f"it holds weights twice: {whole.name}, and the files that {whole.name}.index."
            "json names. One of the two is of another save: move it elsewhere",
        )
    quantised = is_quantised(path)
    for file in weights:
        entries = _check_safetensors(path, file)
        if not quantised:
            _require_plain(path, file, entries)


def is_quantised(path: Path) -> bool:
    """Whether the folder's config.json names a quantisation."""
    return bool(_read(path / "config.json").get("quantization_config"))


def check_processor(path: Path) -> None:
    """Raises ``RapModelError`` if a folder has no files of a processor."""
    if any((path / name).exists() for name in _PROCESSOR):
        return
    base = _read(path / "config.json").get("_name_or_path") or "the model it was made from"
    raise _refused(
        path,
        "it has no processor (no processor_config.json or preprocessor_config.json). Save "
        f"that of {base} there: AutoProcessor.from_pretrained(...).save_pretrained(folder)",
    )


def has_processor(path: Path) -> bool:
    return any((path / name).exists() for name in _PROCESSOR)


def is_adapter(path: Path) -> bool:
    """A folder with an adapter of PEFT. Raises ``RapModelError`` if it holds a whole
    model, too: which of the two is meant is not said."""
    if not (path / ADAPTER).exists():
        return False
    if any(not p.name.startswith("adapter_") for p in _weights(path)):
        raise _refused(
            path,
            f"it holds a whole model and an adapter ({ADAPTER}): move one elsewhere",
        )
    return True


def adapter_base(path: Path) -> str:
    """What an adapter's config names as its base: a folder, or a name on the hub. Raises
    ``RapModelError`` if it names nothing."""
    base = _read(path / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise _refused(path, f"its {ADAPTER} names no base_model_name_or_path")
    near = path / base
    return str(near) if not Path(base).is_dir() and near.is_dir() else base


def is_lfs_pointer(file: Path) -> bool:
    """A text of three lines that stands for the file in Git."""
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    with file.open("rb") as stream:
        return stream.read(len(_LFS)) == _LFS


def _refused(path: Path, reason: str) -> RapModelError:
    return RapModelError(f"model {path}: cannot be loaded: {reason}")


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _file_reason(path: Path) -> str:
    if is_lfs_pointer(path):
        return "a Git LFS pointer, and a file: run `git lfs pull`, then give the folder"
    if path.suffix == ".gguf" or _starts(path, b"GGUF"):
        return (
            "a GGUF file, which holds a model for llama.cpp. Give the folder with the "
            "original weights (config.json, *.safetensors)"
        )
    return "a file. Give the folder that it lies in, the one with config.json"


def _no_config_reason(path: Path) -> str:
    """Why a folder without config.json is no model, and where one is."""
    below = [p for n in ("*", "*/*") for p in path.glob(f"{n}/config.json")]
    below += [p for n in ("*", "*/*") for p in path.glob(f"{n}/{ADAPTER}")]
    if below:
        folders = sorted({p.parent for p in below}, key=_by_number)
        names = [str(p.relative_to(path)) for p in folders]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"no config.json there, but in {shown}. Give that folder: {path / names[-1]}"
    if next(path.glob("*.gguf"), None) is not None:
        return _file_reason(next(path.glob("*.gguf")))
    if next(path.glob("**/*.distcp"), None) or next(path.glob("global_step*"), None):
        return (
            "it holds the shards of a training run. Join them first: `accelerate "
            "merge-weights` (FSDP) or zero_to_fp32.py (DeepSpeed)"
        )
    return "no config.json there, so it holds no model" + (
        "" if any(path.iterdir()) else ": the folder is empty"
    )


def _by_number(path: Path) -> tuple[str, int, str]:
    """checkpoint-9 before checkpoint-10."""
    stem, _, number = path.name.rpartition("-")
    return (stem, int(number), "") if number.isdigit() else (path.name, -1, str(path))


def _pickles(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)


def _require_plain(path: Path, file: Path, entries: Mapping[str, Any]) -> None:
    """Weights in integers or complex numbers mean nothing without the quantisation that
    the config would name: transformers would read the numbers as they are."""
    kinds = {
        name: str(entry.get("dtype"))
        for name, entry in entries.items()
        if name.endswith("weight")
    }
    odd = [name for name, kind in kinds.items() if kind[:1] in ("I", "U", "C")]
    if odd:
        raise _refused(
            path,
            f"{file.name} holds {odd[0]} as {kinds[odd[0]]} ({len(odd)} such weights), and "
            "its config.json names no quantization_config: their scale is not known",
        )


def _check_safetensors(path: Path, file: Path) -> Mapping[str, Any]:
    """The entries of the header. The file is as long as they say: a download that broke
    off is shorter."""
    if not file.is_file():
        raise _refused(path, f"{file.name} is no file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = int.from_bytes(stream.read(8), "little")
        text = stream.read(head) if 0 < head <= min(size - 8, _HEADER_BYTES) else b""
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        whole = 8 + head + end
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise _refused(path, f"{file.name} is no safetensors file") from None
    if whole != size:
        raise _refused(
            path,
            f"{file.name} is damaged: {size} bytes, its header says {whole}. Download it "
            "again",
        )
    return entries


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _read(path: Path) -> dict[str, object]:
    """A JSON object; {} if it is not there or is no such thing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
