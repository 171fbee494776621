"""The check before the first sample: captured tensors must reproduce the model's output.

One small sample runs through the model. q, k and v must give the last layer's own attention
output, the hidden state and the head the model's own logits. What was found is a
`ModelDescription`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .batching import Prepared
from .capture import Capture, Parts, UnsupportedModelError, attend, key_window
from .head import Head, head_forms
from .prompt import PROBE_SIZE
from .weights import class_name, input_device, input_dtype


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What ``rap.check`` found out about a model and its processor; as text, what
    ``rap check`` prints."""

    model_class: str
    processor_class: str
    parameters: int
    dtype: str
    """Of the hidden states: ``"bfloat16"``."""
    device: str
    """Where inputs go: ``"cuda:0"``."""
    layers: int
    """Decoder layers; psi reads the last one."""
    heads: int
    """Query heads of the last layer."""
    key_heads: int
    """Key heads of the last layer."""
    head_dim: int
    hidden_size: int
    """E"""
    vocabulary: int
    """V: rows of the head."""
    window: int | None
    """Sliding window of the last layer, tokens; None: it sees all."""
    attention_scale: float
    """Scale of q . k before the softmax."""
    head_class: str
    head_dtype: str
    head_tied: bool
    """The head's weight is the input embedding."""
    head_bias: bool
    head_scale: float | None
    head_softcap: float | None
    placeholders: tuple[str, ...]
    """Texts that stand for images or videos; a question that holds one is quarantined."""
    image_token: str
    """Text of the placeholder token that stands for an image."""
    image_token_id: int
    probe_image_size: tuple[int, int]
    """Pixels of the image of the check, width and height."""
    probe_image_tokens: int
    """Placeholder tokens that the processor made of it."""
    probe_prompt_tokens: int
    """Tokens of the check's prompt, image tokens included."""
    logit_difference: float
    """Largest |difference| between the model's logits and the head's, one position."""
    largest_logit: float
    """Largest |logit| there, to compare it with."""
    attention_difference: float
    """Largest |difference| between the last layer's output and the one rebuilt from q, k
    and v, over the response rows."""
    largest_attention: float
    """Largest |value| of that output."""

    def __str__(self) -> str:
        width, height = self.probe_image_size
        lines = {
            "attention": f"last of {self.layers} decoder layers: {self.heads} query and "
            f"{self.key_heads} key heads of {self.head_dim}, scale "
            f"{self.attention_scale:.6g}, "
            + (f"window of {self.window} tokens" if self.window else "no window"),
            "head": f"{self.head_class}, {self.vocabulary:,} tokens, "
            f"{'with' if self.head_bias else 'no'} bias, scale "
            f"{_or_none(self.head_scale)}, soft cap {_or_none(self.head_softcap)}",
            "probe image": f"{width} x {height} pixels became {self.probe_image_tokens} of "
            f"{self.probe_prompt_tokens} prompt tokens",
            "agreement": "queries and keys give the layer's attention to "
            f"{self.attention_difference:.1e} of {self.largest_attention:.1e}; hidden "
            "states and head give the logits to "
            f"{self.logit_difference:.1e} of {self.largest_logit:.1e}",
            "verdict": "can be scored with",
        }
        about = facts_text(dataclasses.asdict(self))
        return "\n".join([about, *(f"{k:<12} {v}" for k, v in lines.items())])


def facts(model: Any, processor: Any, placeholders: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a `ModelDescription` that are known before the model runs."""
    return {
        "model_class": class_name(model),
        "processor_class": type(processor).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": _name(input_dtype(model)),
        "device": str(input_device(model)),
        "placeholders": placeholders,
    }


def facts_text(found: Mapping[str, Any]) -> str:
    """`facts` as two lines of text."""
    return (
        f"{'model':<12} {found['model_class']}, {found['parameters']:,} parameters, "
        f"{found['dtype']} on {found['device']}\n"
        f"{'processor':<12} {found['processor_class']}, placeholders "
        f"{' '.join(found['placeholders'])}"
    )


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def check_attention(capture: Capture, probe: Prepared) -> tuple[float, float]:
    """q, k and v give the last layer's own output for the response rows: largest
    difference and largest value. Raises `UnsupportedModelError` if not."""
    window = key_window(capture, 0, 0, probe.n_prompt, len(probe))
    rows = slice(probe.n_prompt, len(probe))
    theirs = capture.out[0, rows].transpose(0, 1).double()
    rebuilt = attend(
        capture.q[0], capture.k[0], capture.v[0], capture.scaling, rows, window
    )
    if not bool(torch.isfinite(theirs).all()):
        raise UnsupportedModelError(
            "it gives NaN or infinity for a plain sample (its dtype?)"
        )
    if not close(rebuilt, theirs, capture.q, capture.out):
        raise UnsupportedModelError(
            "queries and keys of its last decoder layer do not give that layer's attention"
        )
    return _largest(rebuilt - theirs), _largest(theirs)


def check_head(model: Any, parts: Parts, capture: Capture) -> tuple[Head, float, float]:
    """The form that gives the model's own logits from the hidden state before them, the
    largest difference and the largest logit. Raises `UnsupportedModelError` if none."""
    logits = capture.logits
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != (1, 1):
        raise UnsupportedModelError("it makes more logits than were asked for")
    for forms in head_forms(model, parts.head, capture.hidden):
        last = capture.hidden[0, -1].to(forms[0].weight.device)
        theirs = logits[0, -1].to(last.device).double()
        with torch.no_grad():
            ours = [head.logits(last).double() for head in forms]
        errors = [_largest(x - theirs) for x in ours]
        best = min(range(len(forms)), key=errors.__getitem__)
        if close(ours[best], theirs, logits):
            return forms[best], errors[best], _largest(theirs)
    raise _mismatch(model, parts.head)


def _mismatch(model: Any, head: torch.nn.Module) -> UnsupportedModelError:
    reason = "its hidden states and its head do not give its logits"
    if hasattr(model, "_original_forward"):  # accelerate
        return UnsupportedModelError(
            f"{reason}: accelerate runs it in mixed precision. Pass it as it was, "
            "accelerator.unwrap_model(model, keep_fp32_wrapper=False)",
            advised=True,
        )
    if type(head).forward is not torch.nn.Linear.forward:
        name = f"{type(head).__module__}.{type(head).__name__}"
        return UnsupportedModelError(
            f"{reason}: its head, a {name}, is no linear map (one that quantises its "
            "inputs is none). Quantise the model without its head (lm_head), as the "
            "quantisers of transformers do unless told otherwise",
            advised=True,
        )
    return UnsupportedModelError(reason)


def close(a: torch.Tensor, b: torch.Tensor, *like: torch.Tensor) -> bool:
    """Equal up to the rounding of one layer in the coarsest dtype of ``like`` (under
    autocast they differ), relative to the largest value: 2^-12 for float32 (2^-8 on CUDA,
    where it may be TF32), 2^-7 for float16, 2^-5 for bfloat16. What is looked for is
    larger. NaN is never close."""
    shares = {torch.float16: 2.0**-7, torch.bfloat16: 2.0**-5}
    share = max(shares.get(x.dtype, 2.0**-8 if x.is_cuda else 2.0**-12) for x in like)
    return _largest(a - b) <= max(share * _largest(b), 1e-30)


def _largest(x: torch.Tensor) -> float:
    return float(x.abs().max())


def describe(
    model: Any,
    parts: Parts,
    capture: Capture,
    probe: Prepared,
    head: Head,
    **found: Any,
) -> ModelDescription:
    """What the probe's forward showed; ``found`` are the fields known to the caller, among
    them `facts`."""
    config = getattr(parts.decoder, "config", None)
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    found["dtype"] = _name(capture.hidden.dtype)
    return ModelDescription(
        layers=int(getattr(config, "num_hidden_layers", 0)),
        heads=capture.q.shape[1],
        key_heads=capture.k.shape[1],
        head_dim=capture.q.shape[3],
        hidden_size=capture.hidden.shape[2],
        vocabulary=head.weight.shape[0],
        window=capture.arguments.get("sliding_window"),
        attention_scale=capture.scaling,
        head_class=type(parts.head).__name__,
        head_dtype=_name(head.weight.dtype),
        head_tied=embedding is not None and embedding is getattr(parts.head, "weight", 0),
        head_bias=head.bias is not None,
        head_scale=head.scale,
        head_softcap=head.softcap,
        probe_image_size=PROBE_SIZE,
        probe_image_tokens=int(probe.image_mask.sum()),
        probe_prompt_tokens=probe.n_prompt,
        **found,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
