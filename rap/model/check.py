"""Whether a model can be scored with, and how rap reads it: ``rap check MODEL``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .driver import ModelDriver, placeholder_texts


@dataclass(frozen=True, slots=True)
class Check:
    """What ``check`` found out about a model and its processor."""

    model: str
    """Class of the model."""
    processor: str
    """Class of the processor."""
    dtype: str
    device: str
    parameters: int
    decoder: str
    """Class of the text decoder."""
    query_heads: int
    """Of the last decoder layer, as are the next four."""
    key_heads: int
    head_dim: int
    attention_scale: float
    """Scale of q . k before the softmax."""
    attention_window: int | None
    """Tokens that a row of the probe's response sees; None: all before it."""
    vocabulary: int
    """Rows of the language-model head."""
    head_bias: bool
    logit_scale: float | None
    """Scale of the head's output; None: none."""
    logit_softcap: float | None
    """Cap c of c tanh(logits / c); None: none."""
    placeholders: tuple[str, ...]
    """Texts that stand for images or videos; a question that holds one is quarantined."""
    image_tokens: int
    """Tokens that the probe's image of 56 x 56 pixels became."""
    prompt_tokens: int
    """Tokens of the probe's prompt, image tokens included."""

    def __str__(self) -> str:
        window = f"window of {self.attention_window} tokens"
        lines = {
            "attention": f"last layer of {self.decoder}: {self.query_heads} query and "
            f"{self.key_heads} key heads of {self.head_dim}, scale "
            f"{self.attention_scale:.6g}, "
            + (window if self.attention_window else "no window"),
            "head": f"{self.vocabulary:,} tokens, {'with' if self.head_bias else 'no'} "
            f"bias, scale {_or_none(self.logit_scale)}, soft cap "
            f"{_or_none(self.logit_softcap)}",
            "probe image": f"56 x 56 pixels became {self.image_tokens} of "
            f"{self.prompt_tokens} prompt tokens",
            "agreement": "queries and keys give the layer's attention; hidden states and "
            "head give the logits",
            "verdict": "can be scored with",
        }
        about = dataclasses.asdict(self)
        return "\n".join([describe(about), *(f"{k:<12} {v}" for k, v in lines.items())])


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def facts(driver: ModelDriver) -> dict[str, Any]:
    """What is known of a model before it runs: the first fields of `Check`."""
    model = driver.model
    return {
        "model": type(model).__name__,
        "processor": type(driver.processor).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "placeholders": placeholder_texts(driver.processor, driver.image_token_id),
    }


def describe(found: Mapping[str, Any]) -> str:
    """`facts` as two lines of text."""
    return (
        f"{'model':<12} {found['model']}, {found['parameters']:,} parameters, "
        f"{found['dtype']} on {found['device']}\n"
        f"{'processor':<12} {found['processor']}, placeholders "
        f"{' '.join(found['placeholders'])}"
    )


def check(model: Any, processor: Any) -> Check:
    """Run the driver's own check on a model and say how rap reads it.

    model, processor: a Hugging Face ``AutoModelForImageTextToText`` and its processor, as
        for `rap.score`. The model is left as it was.

    One small sample (a grey image, a short question and answer) goes through the model;
    what was captured has to give the model's own attention and logits.

    Raises ``RapModelError``, naming the reason and what to do, if the model cannot be
    scored with. Passes ``torch.OutOfMemoryError``.
    """
    return inspect(ModelDriver(model, processor))


def inspect(driver: ModelDriver) -> Check:
    """`check`, of a driver."""
    driver.check()
    head = driver.head
    probe = driver._probe()
    (trace,) = driver.trace([probe])
    assert trace.q is not None and trace.k is not None  # trace was asked for attention
    return Check(
        **facts(driver),
        decoder=type(driver.parts.decoder).__name__,
        query_heads=trace.q.shape[0],
        key_heads=trace.k.shape[0],
        head_dim=trace.q.shape[-1],
        attention_scale=trace.scaling,
        attention_window=trace.key_window,
        vocabulary=head.weight.shape[0],
        head_bias=head.bias is not None,
        logit_scale=head.scale,
        logit_softcap=head.softcap,
        image_tokens=int(trace.image_mask.sum()),
        prompt_tokens=probe.n_prompt,
    )
