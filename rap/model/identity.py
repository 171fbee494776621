"""What identifies a model in a fingerprint: hashes of its weights and its processor."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ..errors import RapModelError, first_line
from .weights import present

_HASHED_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 25


def weights_sha256(model: torch.nn.Module) -> str:
    """See `ModelDriver.identity`. The same for a model and for its shards or its offloaded
    copy. Raises ``RapModelError`` for weights whose bytes cannot be read."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor) and value.device.type == "meta":
            with present(model, name) as there:
                _add(digest, name, value if there is None else there)
        else:
            _add(digest, name, value)
    for name, module in model.named_modules():
        state = _adapter_state(module)
        if state is not None:
            digest.update(f"{name} {state}\n".encode())
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    """A tensor by name, shape, dtype and bytes, the tensors inside one or a tuple by
    themselves, anything else by its text."""
    if isinstance(value, (tuple, list)):  # packed weights of torch.ao
        for i, part in enumerate(value):
            _add(digest, f"{name}.{i}", part)
        return
    if not isinstance(value, torch.Tensor):
        digest.update(f"{name} {value!r}\n".encode())
        return
    tensor = value.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
    if tensor.device.type == "meta":
        return
    if tensor.is_quantized:
        _add(digest, f"{name}.int", tensor.int_repr())
        digest.update(f"{_quantiser(tensor)}\n".encode())
        return
    if hasattr(tensor, "__tensor_flatten__"):  # a subclass over other tensors
        inner, context = tensor.__tensor_flatten__()
        digest.update(f"{type(tensor).__name__} {context!r}\n".encode())
        for part in inner:
            _add(digest, f"{name}.{part}", getattr(tensor, part))
        return
    try:
        flat = tensor.reshape(-1)
        digest.update(_some_bytes(flat))
        if flat.nbytes > _HASHED_BYTES:
            digest.update(_checksums(flat).cpu().numpy().tobytes())
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise RapModelError(
            f"{name} is a {type(tensor).__name__} whose bytes cannot be read, so the model "
            f"cannot be identified ({first_line(error)}). Pass the model with ordinary "
            "weights, or quantised by a method of transformers"
        ) from error


def _quantiser(tensor: torch.Tensor) -> list[Any]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.q_scale(), tensor.q_zero_point()]
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return [scales.tolist(), zeros.tolist(), tensor.q_per_channel_axis()]


def _adapter_state(module: Any) -> str | None:
    """What a layer of PEFT does with its weights; None for any other module."""
    scaling = getattr(module, "scaling", None)
    if not isinstance(scaling, dict) or not hasattr(module, "active_adapters"):
        return None
    if not scaling and not hasattr(module, "merged_adapters"):
        return None
    factors = {name: float(scaling[name]) for name in sorted(scaling)}
    active = list(module.active_adapters)
    merged = list(getattr(module, "merged_adapters", ()))
    return f"{factors} {active} {merged} {bool(getattr(module, 'disable_adapters', False))}"


def _checksums(flat: torch.Tensor) -> torch.Tensor:
    """int64 [chunks, 2] over all bytes of a vector, the same on every device.

    A chunk's 64-bit words are summed modulo 2^64, plainly and weighted by 1, 3, 5, ...:
    integers, so no order of summing matters. An odd weight has an inverse modulo 2^64,
    so no single word can change unseen; the weights also see words that change places.
    """
    octets = flat.contiguous().view(torch.uint8)
    most = min(_CHUNK_BYTES, len(octets) + 7) // 8
    weights = torch.arange(most, device=flat.device) * 2 + 1
    sums = []
    for start in range(0, len(octets), _CHUNK_BYTES):
        chunk = octets[start : start + _CHUNK_BYTES]
        if len(chunk) % 8:
            chunk = torch.nn.functional.pad(chunk, (0, -len(chunk) % 8))
        if chunk.storage_offset() % 8 or chunk.data_ptr() % 8:
            chunk = chunk.clone()
        words = chunk.view(torch.int64)
        sums.append(torch.stack([words.sum(), (words * weights[: len(words)]).sum()]))
    return torch.stack(sums)


def _some_bytes(flat: torch.Tensor) -> bytes:
    limit = max(4, _HASHED_BYTES // flat.element_size())
    if flat.numel() > limit:
        quarter = limit // 4
        step = max(1, (flat.numel() - 2 * quarter) // (2 * quarter))
        middle = flat[quarter : flat.numel() - quarter : step][: 2 * quarter]
        flat = torch.cat([flat[:quarter], middle, flat[-quarter:]])
    # A copy: numpy() marks the memory as not resizable, and FSDP2 resizes its parameters'.
    return flat.clone().view(torch.uint8).cpu().numpy().tobytes()


def processor_sha256(processor: Any) -> str:
    """See `ModelDriver.identity`."""
    tokenizer = getattr(processor, "tokenizer", processor)
    parts: dict[str, Any] = {"class": type(processor).__name__}
    for name in ("image_processor", "video_processor"):
        part = getattr(processor, name, None)
        if part is not None:
            parts[name] = [type(part).__name__, part.to_json_string()]
    for name, value in sorted(vars(processor).items()):
        if isinstance(value, (str, int, float, bool, type(None), dict)):
            parts[f"processor.{name}"] = value
    parts["tokenizer"] = _tokenizer_text(tokenizer)
    parts["template"] = getattr(tokenizer, "chat_template", None)
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_text(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    settings = json.loads(backend.to_str())
    # State of the last call, not of the tokenizer.
    settings.pop("padding", None)
    settings.pop("truncation", None)
    return settings
