"""Batches: sequences are padded and stacked for a forward pass, and split after it.

Pure functions on the host; only `cut` takes tensors of the model's device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .capture import Capture, key_window
from .kept import Features, Prefilled
from .staging import Sent

FORWARD = 128
"""A forward costs about as much as so many tokens more in one: below that a device is not
kept busy, so fewer and longer batches are better."""

_SEQUENCE_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(slots=True, eq=False)
class Shared:
    """What all sequences of one sample with the same images have in common: computed once,
    kept as long as one of them is."""

    text: str = ""
    """The prompt as the processor was given it."""
    n_images: int = 0
    serves: bool = False
    """Whether several prompts go on from this one."""
    features: Features | None = None
    """What the vision tower made of the images; None: not encoded yet."""
    sent: Sent | None = None
    """Pixels that were sent to the device ahead of the forward; None: they were not."""
    prompt: tuple[Prefilled, int] | None = None
    """Keys and values of a prompt, and its row there; None: no prompt was read yet."""
    state: np.ndarray | None = None
    """float32 [WIDTH]: the hidden state of the prompt, projected (``states``)."""

    def let_go(self) -> None:
        """Of what lies on the device: nothing more is asked about these images."""
        self.features = self.sent = self.prompt = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """One sequence, prompt and perhaps response, unpadded and on the host."""

    inputs: Mapping[str, torch.Tensor]
    """What the processor gave for the prompt, batch dimension 1 and all."""
    n_prompt: int
    """P: prompt tokens, image tokens and prefix included."""
    response_ids: torch.Tensor
    """int64 [R]; R = 0 if there is no response (yet)."""
    image_mask: torch.Tensor
    """bool [P + R]: image placeholder tokens."""
    special_mask: torch.Tensor
    """bool [P + R]: special and template tokens, image placeholders among them."""
    shared: Shared = field(default_factory=Shared, repr=False, compare=False)

    def __len__(self) -> int:
        return self.n_prompt + len(self.response_ids)

    @property
    def ids(self) -> torch.Tensor:
        """int64 [P + R]: prompt and response."""
        return torch.cat([self.inputs["input_ids"][0], self.response_ids])


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample's forward, padding cut away. L = P + R tokens.

    ``hidden``, ``q``, ``k`` are on the model's device in its dtype, and views of the
    batch's tensors: drop them to free these. Where the head has another dtype (a float32
    head), ``hidden`` is in the head's, as the head casts it. Masks and ids are on the host.
    """

    n_prompt: int
    response_ids: torch.Tensor
    """int64 [R]"""
    hidden: torch.Tensor
    """[R, E]: states that predict the response tokens (positions P - 1 .. P + R - 2),
    after the final norm, before the head."""
    q: torch.Tensor | None
    """[Hq, L, D] of the last decoder layer, after rotary embedding; None if not asked."""
    k: torch.Tensor | None
    """[Hkv, L, D]; query head h reads key head h // (Hq / Hkv)."""
    scaling: float
    """Scale of q . k before the softmax."""
    image_mask: torch.Tensor
    """bool [L]"""
    special_mask: torch.Tensor
    """bool [L]"""
    key_window: int | None = None
    """Tokens a response row sees in the last layer; None: all up to itself."""

    def finite(self) -> torch.Tensor:
        """bool [], on the model's device: all of ``hidden``, ``q``, ``k``. Does not
        synchronise."""
        given = [x for x in (self.hidden, self.q, self.k) if x is not None]
        return torch.stack([torch.isfinite(x).all() for x in given]).all()

    def nonfinite(self) -> str | None:
        """The first of ``hidden``, ``q``, ``k`` that holds NaN or infinity, and where."""
        rows = torch.isfinite(self.hidden).all(dim=-1)
        if not bool(rows.all()):
            return f"hidden state of response token {int((~rows).int().argmax())}"
        for name, x in (("query", self.q), ("key", self.k)):
            if x is None:
                continue
            columns = torch.isfinite(x).all(dim=-1).all(dim=0)
            if not bool(columns.all()):
                return f"{name} of token {int((~columns).int().argmax())}, last layer"
        return None


def by_length(lengths: Sequence[int], most: int | None) -> list[list[int]]:
    """Which sequences share a forward: indices into ``lengths``, longest sequences first.

    Sorted by length and cut where that costs least: n sequences padded to the longest are
    n times its tokens, and `FORWARD` more. No part is larger than ``most`` tokens,
    padding included, unless it is one sequence. None: all in one, in the order given.
    """
    if most is None or len(lengths) < 2:
        return [list(range(len(lengths)))] if lengths else []
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best = [0] * (len(order) + 1)  # the least cost of the first n of them
    start = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        choices = []
        for begin in range(end - 1, -1, -1):
            cells = (end - begin) * lengths[order[begin]]
            if cells > most and end - begin > 1:
                break
            choices.append((best[begin] + cells + FORWARD, begin))
        best[end], start[end] = min(choices)
    parts, end = [], len(order)
    while end:
        parts.append(order[start[end] : end])
        end = start[end]
    return parts[::-1]


def collate(
    batch: Sequence[Prepared], pad_id: int, padding_side: str
) -> dict[str, torch.Tensor]:
    """See ``ModelDriver.collate``; on the host, in the processor's dtypes."""
    return collate_tokens(batch, pad_id, padding_side) | collate_images(batch)


def collate_tokens(
    batch: Sequence[Prepared], pad_id: int, padding_side: str
) -> dict[str, torch.Tensor]:
    """The inputs with one number a token."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side = {padding_side!r}: expected 'left' or 'right'")
    longest = max(len(prepared) for prepared in batch)
    out: dict[str, torch.Tensor] = {}
    for name in _names(batch):
        if is_sequence(name, batch):
            rows = [_sequence_row(name, p) for p in batch]
            fill = pad_id if name == "input_ids" else 0
            out[name] = torch.stack([_pad(r, longest, fill, padding_side) for r in rows])
    return out


def collate_images(
    batch: Sequence[Prepared], *, without: str | None = None
) -> dict[str, torch.Tensor]:
    """The other inputs: pixels, and what describes them; ``without`` those whose names
    begin so. On the host, or where they were sent to if all of a name were."""
    return {
        name: _join(
            _sent(name, batch) or [p.inputs[name] for p in batch if name in p.inputs]
        )
        for name in _names(batch)
        if not is_sequence(name, batch)
        and not (without is not None and name.startswith(without))
    }


def _sent(name: str, batch: Sequence[Prepared]) -> list[torch.Tensor]:
    sent = [p.shared.sent for p in batch if name in p.inputs]
    there = [s for s in sent if s is not None and name in s]
    return [s.receive(name) for s in there] if len(there) == len(sent) else []


def extend(
    inputs: Mapping[str, torch.Tensor], n: int, more: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Inputs of a prompt whose first ``n`` tokens are kept and followed by text tokens
    [m]; what says nothing of tokens is shared."""
    out = dict(inputs)
    for name, x in inputs.items():
        if name.startswith(("pixel", "image", "video")):
            continue
        if name in _SEQUENCE_KEYS or x.shape == inputs["input_ids"].shape:
            fill = 1 if name == "attention_mask" else 0
            tail = more if name == "input_ids" else x.new_full((len(more),), fill)
            out[name] = torch.cat([x[:, :n], tail[None]], dim=1)
    return out


def _names(batch: Sequence[Prepared]) -> list[str]:
    return list({name: None for prepared in batch for name in prepared.inputs})


def cut(
    capture: Capture,
    row: int,
    start: int,
    prepared: Prepared,
    *,
    attention: bool,
    dtype: torch.dtype,
) -> Trace:
    """One sample out of a batch: it lies at ``start`` in row ``row``. dtype: the head's."""
    length, prompt = len(prepared), prepared.n_prompt
    span = slice(start, start + length)
    window = key_window(capture, row, start, prompt, length) if attention else None
    return Trace(
        n_prompt=prompt,
        response_ids=prepared.response_ids,
        hidden=capture.hidden[row, start + prompt - 1 : start + length - 1].to(dtype),
        q=capture.q[row, :, span] if attention else None,
        k=capture.k[row, :, span] if attention else None,
        scaling=capture.scaling,
        image_mask=prepared.image_mask,
        special_mask=prepared.special_mask,
        key_window=window,
    )


def is_sequence(name: str, batch: Sequence[Prepared]) -> bool:
    """Whether an input has one number a token."""
    if name in _SEQUENCE_KEYS:
        return True
    if name.startswith(("pixel", "image", "video")):
        return False
    return all(
        p.inputs[name].shape == p.inputs["input_ids"].shape
        for p in batch
        if name in p.inputs
    )


def _sequence_row(name: str, prepared: Prepared) -> torch.Tensor:
    """One input [L] of prompt and response. Token types of a response are text: 0."""
    n = len(prepared.response_ids)
    if name == "attention_mask":
        return torch.ones(len(prepared), dtype=torch.int64)
    row = prepared.inputs.get(name)
    row = torch.zeros(prepared.n_prompt, dtype=torch.int64) if row is None else row[0]
    tail = prepared.response_ids if name == "input_ids" else row.new_zeros(n)
    return torch.cat([row, tail])


def _pad(row: torch.Tensor, length: int, fill: int, side: str) -> torch.Tensor:
    padding = row.new_full((length - len(row),), fill)
    return torch.cat([padding, row] if side == "left" else [row, padding])


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joined along dimension 0, the others filled up with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    if all(list(t.shape[1:]) == shape for t in tensors):
        return torch.cat(list(tensors))
    filled = []
    for t in tensors:
        full = t.new_zeros((t.shape[0], *shape))
        full[tuple(slice(0, n) for n in t.shape)] = t
        filled.append(full)
    return torch.cat(filled)
