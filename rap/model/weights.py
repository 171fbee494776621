"""Weights in all forms: wrapped, sharded, quantised, offloaded, with adapters.

Nothing here imports accelerate, peft or torch.distributed: a model that needs one of them
has imported it, and is known by its attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..errors import RapModelError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Dtypes that a model computes in; 8-bit floats are storage."""


# ---- wrappers around a model ---------------------------------------------------


def underlying(model: Any) -> Any:
    """The model of transformers inside PEFT, torch.compile, DataParallel or DDP.

    PEFT's adapters stay: they live in the layers of the model inside. Raises
    ``RapModelError`` for a wrapper whose model does not work without it.
    """
    while isinstance(model, torch.nn.Module):
        name = type(model).__name__
        if name == "FullyShardedDataParallel":
            raise RapModelError(
                "model = a FullyShardedDataParallel: FSDP1 keeps its weights flattened, so "
                "the model inside cannot be run alone. Shard with FSDP2 (torch.distributed."
                "fsdp.fully_shard; accelerate: fsdp_version 2), or load the saved model"
            )
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            _require_layer_adapter(model)
            wrapper: Any = model
            model = wrapper.get_base_model()
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif not hasattr(model, "config") and isinstance(
            getattr(model, "module", None), torch.nn.Module
        ):
            model = model.module
        else:
            break
    return model


def _require_layer_adapter(model: Any) -> None:
    """An adapter of PEFT that is more than its layers is refused."""
    for name in getattr(model, "active_adapters", ()) or ():
        config = model.peft_config.get(name)
        kind = getattr(getattr(config, "peft_type", None), "value", "") or ""
        if (
            getattr(config, "is_prompt_learning", False)
            or getattr(config, "alora_invocation_tokens", None)
            or kind in ("XLORA", "POLY")
        ):
            raise RapModelError(
                f"model = a {type(model).__name__} with the adapter {name!r} "
                f"({type(config).__name__}): it changes the prompt or the forward and not "
                "only layers, which is not supported. Use an adapter whose weights can be "
                "merged (LoRA, DoRA, IA3), or disable it"
            )


def is_fsdp2(model: torch.nn.Module) -> bool:
    """Whether FSDP2 gathers and frees parameters of this model."""
    kinds = {c.__name__ for m in model.modules() for c in type(m).__mro__}
    return "FSDPModule" in kinds


def class_name(model: Any) -> str:
    """The class of the model; FSDP2 gives a sharded one a class of its own."""
    kinds = [c.__name__ for c in type(model).__mro__]
    return kinds[kinds.index("FSDPModule") + 1] if "FSDPModule" in kinds else kinds[0]


# ---- where inputs go -----------------------------------------------------------


def input_device(model: Any) -> torch.device:
    """Where the model takes its inputs; with offloading, where it computes."""
    first = next(model.parameters()).device
    if first.type != "meta":
        return first
    for module in (model.get_input_embeddings(), model, *model.modules()):
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                place = hook.execution_device
                if isinstance(place, int):
                    return torch.device("cuda", place)
                return torch.device(place)
    return next((p.device for p in model.parameters() if p.device != first), first)


def input_dtype(model: Any) -> torch.dtype:
    """The dtype of the model's floating-point inputs (pixels).

    Of the first floating-point weight, embedding and head left out: these may be kept in
    another one.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    others = {id(p) for end in ends if end is not None for p in end.parameters()}
    found = [p for p in model.parameters() if p.dtype in FLOATS]
    inner = [p for p in found if id(p) not in others]
    return next((p.dtype for p in (*inner, *found)), torch.get_default_dtype())


# ---- values --------------------------------------------------------------------


def plain(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same values as an ordinary tensor with memory of its own; None if the tensor is
    neither ordinary nor sharded. A DTensor is gathered: all processes must call."""
    if is_lazy(tensor):
        return None
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if not _is_ordinary(tensor) or tensor.device.type == "meta":
        return None
    return tensor if _in_memory(tensor) else None


def _is_ordinary(tensor: torch.Tensor) -> bool:
    kinds = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return type(tensor) in kinds and strided and not tensor.is_quantized


def _in_memory(tensor: torch.Tensor) -> bool:
    """Whether an ordinary tensor's storage holds all of it: one that was freed or cut, or
    that stands for another tensor, would be read outside of any memory."""
    if not tensor.numel():
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    end = tensor.storage_offset() + 1 + sum((n - 1) * step for n, step in steps)
    try:
        room = tensor.untyped_storage().nbytes()
        return room >= end * tensor.element_size() and tensor.data_ptr() != 0
    except (RuntimeError, NotImplementedError):
        return False


def is_lazy(tensor: Any) -> bool:
    """A parameter of torch's lazy modules, which has no shape yet."""
    return torch.nn.parameter.is_lazy(tensor)


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    mesh = getattr(tensor, "device_mesh", None)
    placements = getattr(tensor, "placements", ())
    return mesh is not None and mesh.size() > 1 and any(p.is_shard() for p in placements)


def bytes_on(model: torch.nn.Module, device: torch.device) -> int:
    """Bytes of the parameters on a device; of a sharded one, those of this process."""
    held = (p.detach() for p in model.parameters() if not is_lazy(p))
    local = (p.to_local() if hasattr(p, "to_local") else p for p in held)
    return sum(p.nbytes for p in local if p.device == device)


# ---- offloaded weights -----------------------------------------------------------


def _hooks(module: Any) -> list[Any]:
    """The hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


@contextmanager
def present(model: torch.nn.Module, name: str) -> Iterator[torch.Tensor]:
    """A parameter or buffer by its name, in memory while the block runs.

    One that accelerate has offloaded is on device "meta" until the hook of its module, or
    of a module around it, brings it. Without a hook it stays on "meta".
    """
    path, _, leaf = name.rpartition(".")
    with ExitStack() as stack:
        owner = model.get_submodule(path)
        tensor = _held(owner, leaf)
        steps = path.split(".") if path else []
        for n in range(len(steps), -1, -1):
            if tensor is None or tensor.device.type != "meta":
                break
            module = model.get_submodule(".".join(steps[:n]))
            for hook in _hooks(module):
                if getattr(hook, "offload", False):
                    hook.pre_forward(module)
                    stack.callback(hook.post_forward, module, None)
            tensor = _held(owner, leaf)
        yield tensor


def _held(module: torch.nn.Module, leaf: str) -> Any:
    """The parameter or buffer itself: an attribute may be a property over it (PEFT)."""
    own = module._parameters.get(leaf)
    return module._buffers.get(leaf) if own is None else own


# ---- weights that cannot be right ------------------------------------------------


def require_weights(model: Any) -> None:
    """Raises ``RapModelError``, naming the parameter, if weights have no values or are not
    finite, or if the head, the input embedding or a matrix of the text decoder is all zero.

    Two numbers a parameter are read where it lies; nothing is copied. Offloaded,
    quantised and 8-bit weights are not looked at, of sharded ones the part that is here.
    """
    absent = [name for name, p in model.named_parameters() if _absent(model, name, p)]
    if absent:
        kinds = {p.device.type for name, p in model.named_parameters() if name in absent}
        why = "device meta" if kinds == {"meta"} else "freed, or never initialised"
        raise RapModelError(
            f"{type(model).__name__} has weights without values ({why}): {_some(absent)}. "
            "Load them: from_pretrained(...) without init_empty_weights"
        )
    bad, zero = [], []
    for name, p in model.named_parameters():
        low, high = _extremes(p)
        if low == high == 0 and p.dim() == 2 and not hasattr(p, "full_tensor"):
            zero.append(name)
        if low - low != 0 or high - high != 0:  # NaN or infinity
            bad.append(name)
    if bad:
        raise RapModelError(
            f"{type(model).__name__} has weights that are not finite (NaN or infinity): "
            f"{_some(bad)}{_rows(dict(model.named_parameters())[bad[0]])}. The checkpoint "
            "is damaged, or its training diverged: load another one"
        )
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = getattr(end, "weight", None)
        if not isinstance(weight, torch.Tensor) or hasattr(weight, "full_tensor"):
            continue  # of a shard, the rest may be other than zero
        if _extremes(weight) == (0.0, 0.0):
            name = next((n for n, p in model.named_parameters() if p is weight), "weight")
            raise RapModelError(
                f"{type(model).__name__}: {name} is all zero, so every token is equally "
                "likely: its weights were not loaded"
            )
    matrices = [name for name in zero if _in_decoder(model, name)]
    if matrices:
        raise RapModelError(
            f"{type(model).__name__} has matrices that are all zero: {_some(matrices)}. "
            "Its weights were not loaded, or their file was not written to the end"
        )


def _in_decoder(model: Any, name: str) -> bool:
    """A weight of a linear layer in the text decoder; an adapter's may start at zero."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if decoder is None or leaf != "weight" or "lora_" in name or ".adapter" in name:
        return False
    return isinstance(owner, torch.nn.Linear) and any(owner is m for m in decoder.modules())


def _absent(model: torch.nn.Module, name: str, parameter: torch.Tensor) -> bool:
    """Without values, and no hook of accelerate would bring them."""
    if is_lazy(parameter):
        return True
    if parameter.device.type != "meta":
        return _is_ordinary(parameter) and not _in_memory(parameter)
    steps = name.split(".")[:-1]
    modules = (model.get_submodule(".".join(steps[:n])) for n in range(len(steps) + 1))
    return not any(getattr(hook, "offload", False) for m in modules for hook in _hooks(m))


def _extremes(parameter: torch.Tensor) -> tuple[float, float]:
    """Least and largest value; (1, 1) where they cannot be read."""
    tensor = parameter.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    ordinary = plain(tensor)
    if ordinary is None or ordinary.dtype not in FLOATS or not ordinary.numel():
        return 1.0, 1.0
    low, high = torch.aminmax(ordinary)
    return float(low), float(high)


def _rows(parameter: torch.Tensor) -> str:
    """Which rows of a matrix are not finite; nothing of a shard, as that would be gathered
    by this process alone."""
    tensor = None if hasattr(parameter, "full_tensor") else plain(parameter)
    if tensor is None or tensor.dim() != 2:
        return ""
    rows = (~torch.isfinite(tensor).all(dim=1)).nonzero()[:, 0].tolist()
    return f", rows {rows[:3]}{' ...' if len(rows) > 3 else ''} of {tensor.shape[0]}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
