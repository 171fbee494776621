"""Capture queries, keys and hidden states while a model of transformers runs with sdpa.

An attention function registered with ``transformers.AttentionInterface`` calls sdpa and,
for the last decoder layer, stores its q and k; a forward hook stores the final hidden
states; the LM head is run on one position only, so [L, V] logits are never built.
`capturing` sets this up around one forward and puts the model back exactly as it was, also
when the forward ends with an exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch

from ..errors import RapModelError, first_line
from . import states
from .weights import is_shard

ATTENTION_NAME = "rap_capture"
"""Our attention function in the registries of transformers."""

UNSUPPORTED = {
    "softcap": "it caps attention logits (soft-capping)",
    "s_aux": "it has attention sinks",
    "sinks": "it has attention sinks",
    "position_bias": "it adds a bias to attention logits",
}
"""Arguments of an attention function that make softmax(scale q.k) wrong, and why."""

PARTIAL = (
    "it is split by tensor parallelism, so each process has only some of the attention "
    'heads: load it without tp_plan (device_map="auto" splits a model by layers)'
)


@dataclass(slots=True)
class Capture:
    """What one forward stores. B samples, L tokens, padding included."""

    watched: frozenset[int]
    """``id`` of every module inside the last decoder layer. By identity: the layers of a
    vision tower have the same layer_idx."""
    keep_values: bool = False
    """Keep ``v``, ``out`` and ``logits`` too, for a check."""
    calls: int = 0
    """How often the last layer attended."""
    q: torch.Tensor = field(init=False)
    """[B, Hq, L, D]"""
    k: torch.Tensor = field(init=False)
    """[B, Hkv, L, D]"""
    mask: torch.Tensor | None = None
    """[B or 1, heads or 1, L, L], or None."""
    causal: bool = True
    """What holds if there is no mask."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """The other arguments of the attention function that were not None."""
    v: torch.Tensor = field(init=False)
    out: torch.Tensor = field(init=False)
    """[B, L, Hq, D]"""
    hidden: torch.Tensor = field(init=False)
    """[B, L, E] after the final norm; not set if the decoder gave none."""
    logits: torch.Tensor = field(init=False)
    """[B, 1, V]"""
    first: torch.Tensor | None = None
    """[B, L, E] after the first layer."""

    @property
    def scaling(self) -> float:
        """Scale of q . k before the softmax; sdpa's own where the layer names none."""
        return float(self.arguments.get("scaling", self.q.shape[-1] ** -0.5))


_current: ContextVar[Capture | None] = ContextVar("rap_capture", default=None)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa; what the watched layer was called with is stored."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    capture = _current.get()
    if capture is None or id(module) not in capture.watched:
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    arguments = {name: x for name, x in kwargs.items() if x is not None}
    # sdpa refuses soft-capping itself but takes sinks without a word.
    for name, reason in UNSUPPORTED.items():
        if name in arguments:
            raise UnsupportedModelError(f"its last decoder layer: {reason}")
    if any(is_shard(p) for p in (query, *module.parameters())):
        raise UnsupportedModelError(PARTIAL, advised=True)
    out = sdpa(module, query, key, value, attention_mask, **kwargs)
    capture.calls += 1
    capture.q, capture.k, capture.mask, capture.arguments = (
        query,
        key,
        attention_mask,
        arguments,
    )
    capture.causal = arguments.get("is_causal", getattr(module, "is_causal", True))
    if capture.keep_values:
        capture.v, capture.out = value, out[0]
    return out


class UnsupportedModelError(ValueError):
    """Why a model is not supported; `unsupported` makes the user's error of it.

    advised: the reason says itself what to do.
    """

    def __init__(self, reason: str, *, advised: bool = False) -> None:
        super().__init__(reason)
        self.advised = advised


UndrivableError = UnsupportedModelError
"""The former name."""


def unsupported(model: Any, reason: object) -> RapModelError:
    """The error that says what is missing and what to do."""
    said = f"{type(model).__name__} is not supported: {reason}"
    if getattr(reason, "advised", False):
        return RapModelError(said)
    return RapModelError(
        f"{said}. Load a class that comes with "
        'transformers (no trust_remote_code) with attn_implementation="sdpa" or '
        'attn_implementation="eager", for example through AutoModelForImageTextToText; '
        "with rollouts made elsewhere (--rollouts) no model is needed"
    )


# ---- the parts of a model ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """What `capturing` works on."""

    decoder: torch.nn.Module
    head: torch.nn.Module
    first: torch.nn.Module
    """The decoder's first layer."""
    watched: frozenset[int]
    configs: tuple[Any, ...]
    """Those that say which attention the text decoder and the modules around it use."""


def find_parts(model: Any) -> Parts:
    """Text decoder, its last layer, the head, the configs. ``RapModelError`` if there is
    one that cannot be found, or that cannot work."""
    try:
        decoder, head = _innermost_decoder(model), model.get_output_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise unsupported(
            model, f"it does not name its parts ({first_line(error)})"
        ) from error
    if int(getattr(model, "tp_size", None) or 1) > 1:
        raise unsupported(model, UnsupportedModelError(PARTIAL, advised=True))
    paths = {id(module): name for name, module in model.named_modules()}
    if decoder is model or id(decoder) not in paths:
        raise unsupported(model, "get_decoder() does not give its text decoder")
    if getattr(model.config, "is_encoder_decoder", False):
        raise unsupported(model, "it is an encoder-decoder, made for no chat prompt")
    if head is None:
        raise unsupported(
            model, "its language-model head has no floating-point weight: there is none"
        )
    if not getattr(decoder, "_supports_sdpa", False):
        raise unsupported(model, f"{type(decoder).__name__} does not support sdpa")
    steps = paths[id(decoder)].split(".")
    above = [model.get_submodule(".".join(steps[:i])) for i in range(len(steps))]
    configs = {id(c): c for m in (*above, *decoder.modules()) for c in _config_of(m)}
    layers = decoder_layers(model, decoder)
    watched = frozenset(id(module) for module in layers[-1].modules())
    return Parts(decoder, head, layers[0], watched, tuple(configs.values()))


def _innermost_decoder(model: Any) -> Any:
    """The text decoder without a head: Llama 4's ``get_decoder`` stops one too early."""
    decoder = model.get_decoder()
    while (
        decoder is not model and hasattr(decoder, "lm_head") and hasattr(decoder, "model")
    ):
        decoder = decoder.model
    return decoder


def decoder_layers(model: Any, decoder: torch.nn.Module) -> torch.nn.ModuleList:
    """The first list of modules that is as long as the decoder has layers."""
    n = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    for module in decoder.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n:
            return module
    raise unsupported(model, f"{type(decoder).__name__} has no list of {n} layers")


def _config_of(module: torch.nn.Module) -> list[Any]:
    config = getattr(module, "config", None)
    return [config] if hasattr(config, "_attn_implementation_internal") else []


# ---- around one forward ------------------------------------------------------


@contextmanager
def capturing(model: Any, parts: Parts, capture: Capture) -> Iterator[None]:
    """Inside, a forward of ``model`` fills ``capture``; evaluation mode, no gradients."""
    _register()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(unchanged(model))
        stack.enter_context(attention_replaced(parts.configs, ATTENTION_NAME))
        hook = parts.decoder.register_forward_hook(keep_hidden(capture))
        stack.callback(hook.remove)
        hook = parts.head.register_forward_pre_hook(_last_position)
        stack.callback(hook.remove)
        stack.callback(states.watch(parts.first, capture).remove)
        stack.callback(_current.reset, _current.set(capture))
        model.eval()
        yield


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(ATTENTION_NAME, _attention)
    # A name without a mask function gets no masks at all, not even for padding.
    AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def keep_hidden(capture: Any) -> Any:
    """A forward hook of the decoder: its hidden states go to ``capture.hidden``."""

    def hook(module: Any, args: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None and isinstance(output, tuple) and output:
            hidden = output[0]
        if isinstance(hidden, torch.Tensor) and hidden.dim() == 3:
            capture.hidden = hidden

    return hook


def _last_position(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """One position reaches the head, whatever the class makes of logits_to_keep."""
    return (args[0][:, -1:], *args[1:]) if args and args[0].dim() == 3 else args


@contextmanager
def attention_replaced(configs: Sequence[Any], name: str) -> Iterator[None]:
    """Inside, the modules of these configs attend through the function of this name."""
    # The public setter also writes to every sub-config, the vision tower's among them,
    # which may hold other implementations; the field behind it is restored exactly.
    saved = [(c, c._attn_implementation_internal) for c in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in saved:
            config._attn_implementation_internal = implementation


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Put back what a forward leaves in the modules: mode, hooks, buffers, attributes.

    Qwen-VL keeps ``rope_deltas``, long-context rotary embeddings change their buffers,
    transformers installs its own hooks at the first call and remembers it in an attribute
    (hence hooks and attributes together or not at all). Weights and submodules are left
    alone: offloading moves them.
    """
    # Thousands of modules around every forward: about 10 ms for 2,000, because almost
    # all of their dictionaries are empty and need no copy.
    filled, empty = [], []
    for module in model.modules():
        filled.append((vars(module), dict(vars(module))))
        for name, content in vars(module).items():
            if not isinstance(content, dict) or name in ("_parameters", "_modules"):
                continue
            if content:
                filled.append((content, dict(content)))
            else:
                empty.append(content)
    try:
        yield
    finally:
        for content in filter(None, empty):
            content.clear()
        for now, before in filled:
            same = len(now) == len(before) and all(map(is_, now.values(), before.values()))
            if not same:
                now.clear()
                now.update(before)


# ---- what was captured ---------------------------------------------------------


def require_attention(capture: Capture) -> None:
    """`UnsupportedModelError` unless the last layer attended once, with heads that fit."""
    if capture.calls == 0:
        raise UnsupportedModelError(
            "its last decoder layer does not attend through "
            "transformers.AttentionInterface, so its queries and keys cannot be captured"
        )
    if capture.calls > 1:
        raise UnsupportedModelError("its last decoder layer attends more than once")
    q, k = capture.q, capture.k
    if q.shape[2:] != k.shape[2:] or q.shape[1] % k.shape[1]:
        raise UnsupportedModelError(
            f"queries {list(q.shape)} and keys {list(k.shape)} of its last decoder layer "
            "do not match"
        )


def key_window(
    capture: Capture, row: int, start: int, n_prompt: int, length: int
) -> int | None:
    """How many of the tokens up to itself a response row sees: the last so many of a
    sliding-window layer, None for all of them; padding is left out.

    The sample is row ``row`` of the batch, at ``start .. start + length``. Raises
    `UnsupportedModelError` otherwise. The rows of the prompt are not read (Gemma 3 lets
    the tokens of an image see each other): psi reads response rows only.
    """
    if n_prompt == length:
        return None
    if capture.mask is None:
        if not capture.causal or start:
            raise UnsupportedModelError("attention of its last layer is not causal")
        return None
    rows = slice(start + n_prompt, start + length)
    mask = capture.mask[row if capture.mask.shape[0] > 1 else 0, :, rows]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns = torch.arange(seen.shape[-1], device=seen.device)
    own = torch.arange(rows.start, rows.stop, device=seen.device)[:, None]
    causal = (columns >= start) & (columns <= own)
    if bool((seen == causal).all()):
        return None
    window = capture.arguments.get("sliding_window")
    if window and bool((seen == (causal & (columns > own - window))).all()):
        return int(window)
    raise UnsupportedModelError(
        f"its last decoder layer lets the response see neither all {length} tokens of the "
        "sample nor the latest ones of a sliding window"
    )


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float,
    rows: slice,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention [Hq, rows, D], float64, from q [Hq, L, D] and k, v [Hkv, L, D]; a
    row sees the last ``window`` tokens up to itself, or all."""
    length, repeat = q.shape[1], q.shape[0] // k.shape[0]
    k, v = (x.double().repeat_interleave(repeat, dim=0) for x in (k, v))
    scores = scaling * q[:, rows].double() @ k.transpose(1, 2)
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    if window is not None:
        hidden |= ~hidden.new_ones(length, length).triu(1 - window)
    return scores.masked_fill(hidden[rows], float("-inf")).softmax(-1) @ v
