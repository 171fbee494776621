"""One attention call a layer for all windows and images that a vision tower is given.

Towers of Qwen-VL's kind join the patches of all images in one sequence and mark where a
window or an image ends (``cu_seqlens``). Without a variable-length kernel transformers cuts
the sequence there and attends to one piece after the other: 1,204 calls in 32 layers for
one image of 800 x 600. The function registered here takes the sequence whole:

    CUDA, 16-bit    torch.nn.attention.varlen.varlen_attn: one call
    elsewhere       pieces of one length in one batched sdpa call: as many calls as there
                    are lengths, and the same numbers as one by one

Who loaded the tower with ``flash_attention_2`` has such a kernel; it is left alone.
`why_not` compares both ways on one image before the first is used. The CUDA form never ran
on a GPU: tests hold its arguments against a stand-in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .capture import UNSUPPORTED, UnsupportedModelError, attention_replaced
from .probe import close

if TYPE_CHECKING:
    from PIL.Image import Image

PACKED_NAME = "rap_flash_packed"
"""Our function in the registry of transformers. Its towers hand ``cu_seqlens`` to a
function whose name holds "flash"."""

PROBE_SIZE = (252, 196)
"""Pixels of the image that is encoded both ways: several windows of different sizes, and
above the 128 patches from which cuDNN takes over on Hopper."""

_HALF = (torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 256
"""Of the Flash kernels behind ``varlen_attn``."""


def towers(model: torch.nn.Module, others: Sequence[Any]) -> tuple[Any, ...]:
    """Configs of the attention modules that take ``cu_seqlens`` and run sdpa. ``others``:
    those of the text decoder and of what is around it, which are left alone."""
    known = {id(config) for config in others}
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation_internal", None) != "sdpa":
            continue
        takes = inspect.signature(type(module).forward).parameters
        if "cu_seqlens" in takes and id(config) not in known:
            found[id(config)] = config
    return tuple(found.values())


@contextmanager
def packed(configs: Sequence[Any]) -> Iterator[None]:
    """Inside, these towers attend to all pieces at once."""
    if not configs:
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_NAME, attention)
    with attention_replaced(configs, PACKED_NAME):
        yield


def probe_image() -> Image:
    """An image whose patches differ: of equal ones any attention gives the same."""
    from PIL import Image

    return Image.effect_mandelbrot(PROBE_SIZE, (-2, -1.5, 1, 1.5), 50).convert("RGB")


def why_not(encode: Callable[[], Sequence[torch.Tensor]], configs: Sequence[Any]) -> str:
    """Why these towers are not packed; "" if they give what they give by themselves.

    encode: the features of an image of `PROBE_SIZE`, computed anew at each call.
    ``torch.OutOfMemoryError`` is not caught.
    """
    theirs = encode()
    try:
        with packed(configs):
            ours = encode()
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    except (RuntimeError, AttributeError, AssertionError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    same = len(ours) == len(theirs) and all(
        a.shape == b.shape and close(a, b, b) for a, b in zip(ours, theirs, strict=True)
    )
    return "" if same else "it gives other features than piece by piece"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: q [1, Hq, T, D], k and v [1, Hkv, T, D] ->
    [1, T, Hq, D]. Without ``cu_seq_lens_q`` it is sdpa.

    Raises `UnsupportedModelError` for what neither form can do.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    kwargs["scaling"] = scaling
    if cu_seq_lens_q is None:
        kwargs["is_causal"] = is_causal
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    _require_plain(query, attention_mask, kwargs | {"is_causal": is_causal})
    kernel = varlen_kernel(query)
    if kernel is not None and max_length_q is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        ends = cu_seq_lens_q.to(torch.int32)
        grouped = q.shape[1] != k.shape[1]
        most = max_length_q
        out = kernel(q, k, v, ends, ends, most, most, scale=scaling, enable_gqa=grouped)
        return out[None], None

    def attend(*pieces: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = sdpa(module, *pieces, None, is_causal=False, **kwargs)[0]
        return out

    sizes = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    return by_size(attend, query, key, value, sizes), None


def _require_plain(
    query: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any]
) -> None:
    """One sequence that attends to all of its piece, and nothing besides."""
    given = {name for name, x in kwargs.items() if x is not None}
    said = next((UNSUPPORTED[name] for name in UNSUPPORTED if name in given), "")
    if not said and (mask is not None or query.shape[0] != 1):
        said = "it is given a mask or a batch"
    elif not said and (kwargs.get("sliding_window") or kwargs.get("is_causal")):
        said = "its attention is causal or has a window of its own"
    elif not said and kwargs.get("dropout"):
        said = "it drops attention weights"
    if said:
        raise UnsupportedModelError(f"its vision tower: {said}")


def varlen_kernel(query: torch.Tensor) -> Callable[..., Any] | None:
    """torch's variable-length attention where it can run: CUDA from sm_80 on, 16 bits."""
    if query.device.type != "cuda" or query.dtype not in _HALF:
        return None
    if query.shape[-1] % 8 or query.shape[-1] > _MAX_HEAD_DIM:
        return None
    if torch.version.hip is not None or torch.cuda.get_device_capability(query.device) < (
        8,
        0,
    ):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn


def by_size(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sizes: Sequence[int],
) -> torch.Tensor:
    """Attention inside of consecutive pieces, those of one size at once: [1, T, Hq, D].

    attend: q, k, v [n, H, L, D] -> [n, L, Hq, D].
    """
    starts: dict[int, list[int]] = {}
    start = 0
    for size in sizes:
        if size:
            starts.setdefault(size, []).append(start)
        start += size
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for size, places in starts.items():
        n = len(places)
        steps = torch.arange(size, device=query.device)
        index = (torch.tensor(places, device=query.device)[:, None] + steps).reshape(-1)
        whole = len(starts) == 1
        pieces = [
            (x[0] if whole else x[0].index_select(1, index))
            .unflatten(1, (n, size))
            .transpose(0, 1)
            for x in (query, key, value)
        ]
        done = attend(*pieces).flatten(0, 1)
        if whole:
            return done[None]
        out[index] = done
    return out[None]
