"""A path or hub name -> model and processor, for the command line and for Python.

Nothing that comes with a model runs unless its flag is given, what goes wrong is said in
one sentence, and a model whose weights are not all those of its files is refused:
transformers fills what is missing with random numbers.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from ..errors import (
    RapConfigError,
    RapModelError,
    first_line,
    install,
    missing,
    require_extra,
)
from .folders import (
    adapter_base,
    check_folder,
    check_processor,
    check_weights,
    found_model,
    has_processor,
    is_adapter,
    is_hub_name,
    is_quantised,
)

if TYPE_CHECKING:
    import torch

Quantisation = Literal["4bit", "8bit"]


class LoadingOptions(TypedDict, total=False):
    """`load_model`'s keyword arguments, for type checkers."""

    device: str | torch.device
    device_map: str | None
    dtype: str | torch.dtype
    attn_implementation: str | None
    revision: str | None
    quantize: Quantisation | None
    trust_remote_code: bool
    allow_pickle: bool


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    device_map: str | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    quantize: Quantisation | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """(model, processor) from a folder or the hub, as transformers finds them; a folder
    with an adapter of PEFT is loaded onto its base, if that is on this machine.
    ``device_map``: as in transformers ("auto"), for a model that is split by its layers
    over the devices that this process sees; ``device`` only has to be there then.
    ``path`` "demo", where no such folder is here: the small model that comes along.
    ``revision``: of a hub name, a branch, tag or commit. ``quantize``: the linear layers
    but the head in 4 bits (NF4) or 8 by bitsandbytes, while they are loaded.

    No code that comes with the model runs, and no pickle is read, unless asked for.
    Raises ``RapConfigError`` naming the flag where one of these would be needed or the
    device is not there, ``RapModelError`` if the model cannot be loaded, or if its files
    hold other weights than the model has (missing, unexpected, of another shape).
    """
    torch = _libraries()
    name = found_model(path)
    if name != os.fspath(path) and dtype == "auto":
        dtype = "float32"  # of the demo's; its file is half as large
    if revision is not None and not is_hub_name(name):
        raise RapConfigError(
            f"revision = {revision!r}: {name} is a folder, only a hub name has revisions"
        )
    if not is_hub_name(name):
        check_folder(Path(name).expanduser(), allow_pickle)
        name = str(Path(name).expanduser())
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _require_device(torch, device)
    if device_map is not None:
        require_extra(f"device_map = {device_map!r}", "ray", "accelerate")
    options: dict[str, Any] = {
        "dtype": _dtype(torch, dtype),
        "trust_remote_code": trust_remote_code,
    }
    if revision is not None:
        options["revision"] = revision
    weights = _folder_of_weights(name)
    quantised = weights is not None and is_quantised(weights)
    if quantize is not None:
        if quantised:
            raise RapConfigError(f"quantize = {quantize!r}: {weights} is quantised already")
        options["quantization_config"] = _bitsandbytes(quantize, options["dtype"])
    if quantised or quantize is not None:
        options["device_map"] = {"": device}
    if device_map is not None:
        options["device_map"] = device_map
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if not allow_pickle:
        options["use_safetensors"] = True
    if Path(name).is_dir() and is_adapter(Path(name)):
        model, processor = _with_adapter(Path(name), options, allow_pickle)
    else:
        processor = load_processor(
            name, trust_remote_code=trust_remote_code, revision=revision
        )
        model = _model(name, options)
    if "device_map" not in options:
        model = model.to(device)
    return model, processor


def _folder_of_weights(name: str) -> Path | None:
    """The folder whose weights a model has: that of an adapter's base; None where it is
    not on this machine."""
    if Path(name).is_dir() and is_adapter(Path(name)):
        name = adapter_base(Path(name))
        if is_hub_name(name):
            from huggingface_hub import try_to_load_from_cache

            config = try_to_load_from_cache(name, "config.json")
            return Path(config).parent if isinstance(config, str) else None
    return Path(name) if Path(name).is_dir() else None


def _dtype(torch: Any, given: Any) -> Any:
    if given == "auto":
        return given
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RapConfigError(
            f"dtype = {given!r}: expected auto, float32, bfloat16 or float16"
        )
    return found


def _require_device(torch: Any, device: Any) -> None:
    """A first allocation: CUDA that is not there is found before the weights are read."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = first_line(error)
        if "device type at start of device string" in reason or "device string" in reason:
            reason = "expected auto, cpu, cuda, cuda:1 or another device of torch"
        raise RapConfigError(f"--device {device}: {reason}") from error


def _bitsandbytes(bits: str, dtype: Any) -> Any:
    """The configuration of transformers for weights in 4 or 8 bits."""
    if bits not in get_args(Quantisation):
        raise RapConfigError(f"quantize = {bits!r}: expected one of 4bit, 8bit")
    if lacking := missing("bitsandbytes", "accelerate"):
        raise RapConfigError(
            f"quantize = {bits!r} needs {' and '.join(lacking)}: pip install "
            f"{' '.join(lacking)}"
        )
    import torch
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if dtype == "auto" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )


def load_processor(
    path: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Any:
    """The processor of a folder or of a model on the hub. Raises ``RapModelError`` if it
    has none."""
    _libraries()
    from transformers import AutoProcessor

    from .prompt import require_processor

    name = found_model(path)
    if not is_hub_name(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise RapModelError(f"processor {path}: cannot be loaded: no such folder")
        check_processor(folder)
        name = str(folder)
    try:
        processor = AutoProcessor.from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            **({} if revision is None else {"revision": revision}),
        )
    except _errors() as error:
        raise _failure("its processor ", name, error, trust_remote_code) from error
    try:
        require_processor(processor)
    except RapModelError as error:
        raise RapModelError(f"model {name}: {error}") from error
    return processor


def opened(model: Any, processor: Any, **loading: Any) -> tuple[Any, Any]:
    """Model and processor, each loaded if it is a path or a hub name, by ``load_model``'s
    keyword arguments; a processor of None comes from where the model does, and one of the
    model's own name is of its ``revision``. Anything else is passed on as it is."""
    named = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    if isinstance(model, (str, os.PathLike)):
        loaded, own = load_model(model, **loading)
        if processor is None:
            return loaded, own
        model = loaded
    if isinstance(processor, (str, os.PathLike)):
        asked = {"trust_remote_code": loading.get("trust_remote_code", False)}
        if named == os.fspath(processor):  # a revision is of one repository
            asked["revision"] = loading.get("revision")
        processor = load_processor(processor, **asked)
    return model, processor


def require_named(model: Any, loading: Collection[str]) -> None:
    """Raises ``RapConfigError`` for `load_model`'s arguments beside a model that is loaded,
    or beside none."""
    if loading and not isinstance(model, (str, os.PathLike)):
        raise RapConfigError(
            f"{', '.join(loading)}: for a model that is given by a folder or hub name, not "
            f"for {'None' if model is None else f'a loaded {type(model).__name__}'}"
        )


def require_keys(
    where: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[Any] = (),
) -> None:
    """Raises ``RapModelError`` unless all three are empty, counting them and naming the
    first. What may be absent (tied weights, ``_keys_to_ignore_on_load_*``) is left out by
    transformers itself."""
    shapes = [f"{key} {list(a)} for {list(b)}" for key, a, b in mismatched]
    parts = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', ...' * (len(keys) > 3)})"
        for keys, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (shapes, "of another shape"),
        )
        if keys
    ]
    if parts:
        raise RapModelError(
            f"{where}: its files hold other weights than this model has: "
            f"{', '.join(parts)}. Missing weights would be random. Save the "
            "model with save_pretrained(folder), without wrappers around it"
        )


def _libraries() -> Any:
    """torch; ``RapConfigError`` if it or transformers is not installed."""
    try:
        import torch
        import transformers  # noqa: F401  # looked for now
    except ImportError as error:
        raise RapConfigError(
            f"driving a model needs torch and transformers ({error}): {install('hf')}"
        ) from error
    return torch


def _model(name: str, options: dict[str, Any]) -> Any:
    """A whole model, with all its weights and no others."""
    from transformers import AutoModelForImageTextToText

    if not is_hub_name(name):
        check_weights(Path(name))
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except _errors() as error:
        raise _failure("", name, error, options["trust_remote_code"]) from error
    model, info = loaded
    require_keys(
        f"model {name}",
        info["missing_keys"],
        info["unexpected_keys"],
        info["mismatched_keys"],
    )
    return model


def _with_adapter(
    path: Path, options: dict[str, Any], allow_pickle: bool
) -> tuple[Any, Any]:
    """An adapter of PEFT on its base: (model, processor)."""
    base = adapter_base(path)
    where = f"model {path}: an adapter of {base}"
    if is_hub_name(base):
        if not _in_cache(base):
            raise RapModelError(
                f"{where}, which is not on this machine. Download it (hf download {base}), "
                "or merge the adapter into it (merge_and_unload) and save the whole model"
            )
    else:
        check_folder(Path(base), allow_pickle)
    try:
        from peft import PeftConfig, get_peft_model
    except ImportError as error:
        raise RapConfigError(f"{where}: needs peft ({error}): pip install peft") from error
    trust = options["trust_remote_code"]
    source = str(path) if has_processor(path) else base
    processor = load_processor(source, trust_remote_code=trust)
    model = _model(base, options)
    _check_adapter_file(path, allow_pickle)
    try:
        model = get_peft_model(model, PeftConfig.from_pretrained(str(path)))
        found = model.load_adapter(str(path), "default", is_trainable=False)
    except _errors() as error:
        raise RapModelError(f"{where}: cannot be loaded: {first_line(error)}") from error
    require_keys(where, found.missing_keys, found.unexpected_keys)
    return model, processor


def _check_adapter_file(path: Path, allow_pickle: bool) -> None:
    if (path / "adapter_model.safetensors").exists():
        return
    if not (path / "adapter_model.bin").exists():
        raise RapModelError(f"model {path}: has no adapter_model.safetensors")
    if not allow_pickle:
        raise RapConfigError(
            f"model {path}: has adapter_model.bin and no safetensors; a pickle can run "
            "code, so it is read only with --allow-pickle"
        )


def _in_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _errors() -> tuple[type[Exception], ...]:
    """What transformers, peft and safetensors raise on files that they cannot use."""
    from safetensors import SafetensorError

    known = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError)
    return (*known, AttributeError, SafetensorError)


def _failure(what: str, name: str, error: Exception, trusted: bool) -> Exception:
    """The user's error for one of `_errors`."""
    if not trusted and "trust_remote_code" in str(error):
        return RapConfigError(
            f"model {name}: brings its own Python code, which is not run; read it and pass "
            "--trust-remote-code"
        )
    if "Unrecognized configuration class" in str(error):
        return RapModelError(
            f"model {name}: cannot be loaded: it is no model of images and text, as "
            "AutoModelForImageTextToText has them"
        )
    reason = first_line(error)
    if is_hub_name(name):
        reason = f"no such folder here, and from the hub: {reason}"
    return RapModelError(f"model {name}: {what}cannot be loaded: {reason}")
