"""What identifies a model in a fingerprint: hashes of its weights and its processor."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    pass

_HASHED_BYTES = 1 << 16


_CHUNK_BYTES = 1 << 25


def weights_sha256(model: torch.nn.Module) -> str:
    """See `ModelDriver.identity`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor!r}\n".encode())
            continue
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.device.type != "meta":
            flat = tensor.detach().reshape(-1)
            digest.update(_some_bytes(flat))
            if flat.nbytes > _HASHED_BYTES:
                digest.update(_checksums(flat).cpu().numpy().tobytes())
    return digest.hexdigest()


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
    return flat.contiguous().view(torch.uint8).cpu().numpy().tobytes()


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
