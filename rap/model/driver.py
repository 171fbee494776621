"""Drive one Hugging Face multimodal model: prompts in, hidden states, queries, keys out.

    sample + images --> prepare (host, threads) --> Prepared --> trace (one padded forward)
                                                         \\--> Trace: hidden, q, k, unpadded

Queries and keys of the last decoder layer are caught while sdpa runs everywhere, hidden
states after the final norm (see ``rap.model.capture``). ``[T, V]`` logits are never made,
attention weights are never built, and padding never leaves `trace`.

``check`` runs one small sample before the first real one and compares what was caught with
what the model did: q and k must give the layer's own attention output, the hidden state
and the head the model's own logits. What a class does differently (attention soft-capping,
sinks, a window, a scaled head) is thereby found and not guessed.

The model is the user's: every call leaves it as it was.
"""

from __future__ import annotations

import inspect
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..config import ScoreConfig
from ..errors import RapModelError, first_line
from ..samples.choices import prompt_text
from ..samples.sample import BadSample, Sample
from .capture import (
    Catch,
    Parts,
    UndrivableError,
    attend,
    driven,
    find_parts,
    key_window,
    require_attention,
    undrivable,
)
from .identity import processor_sha256, weights_sha256

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("rap")

_REFUSALS = (ValueError, IndexError, KeyError, TypeError, RuntimeError, OSError)
"""What processors raise on an input they cannot use."""

_SEQUENCE_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class Head:
    """The language-model head: ``softcap tanh(scale (hidden W^T + bias) / softcap)``."""

    weight: torch.Tensor
    """[V, E]"""
    bias: torch.Tensor | None
    """[V]"""
    softcap: float | None
    scale: float | None

    def to(self, device: torch.device | str) -> Head:
        """The same head on ``device``; itself if it is there already."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of hidden [..., E]: for checks, not for whole responses."""
        x = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale is not None:
            x = x * self.scale
        if self.softcap is not None:
            x = torch.tanh(x / self.softcap) * self.softcap
        return x


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

    def __len__(self) -> int:
        return self.n_prompt + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample's forward, padding cut away. L = P + R tokens.

    ``hidden``, ``q``, ``k`` are on the model's device in its dtype, and views of the
    batch's tensors: drop them to free these. Masks and ids are on the host.
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
        """bool [], on the model's device: all of ``hidden``, ``q``, ``k``. Waits for
        nothing."""
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


# ---- the driver --------------------------------------------------------------


class ModelDriver:
    """One model and its processor, as scoring needs them.

    ``prepare`` and ``encode_response`` may be called from several threads; ``check``,
    ``trace`` and ``head`` run the model and take turns.

    Raises ``RapModelError`` if ``model`` is no loaded model, ``processor`` no processor,
    or neither says which token stands for an image.
    """

    def __init__(self, model: Any, processor: Any, config: ScoreConfig | None = None):
        _require_loaded(model, processor)
        self.model = model
        self.processor = processor
        self.config = config or ScoreConfig()
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_token_id = _image_token_id(model, processor)
        self._special_ids = torch.tensor(
            sorted(_special_ids(processor, self.image_token_id)), dtype=torch.int64
        )
        self._placeholders = placeholder_texts(processor, self.image_token_id)
        self._lock = threading.RLock()
        self._parts: Parts | None = None
        self._head: Head | None = None

    # -- on the host

    def prepare(
        self,
        sample: Sample,
        images: Sequence[Image] | None,
        response_ids: Sequence[int] | None = None,
        *,
        prefix: str = "",
    ) -> Prepared:
        """Chat template and processor: one sample to one sequence. Thread-safe.

        images: RGB; None or [] is the prompt without images. response_ids: tokens that
        follow the prompt. prefix: text that opens the assistant's turn, part of the prompt.

        Raises ``BadSample``, stage ``prompt``: ``image_count`` (placeholders and images do
        not match, or a text holds a placeholder token), ``prompt_too_long``; stage
        ``image``: ``image_unreadable`` (the processor refuses the image).
        """
        text = prompt_text(self.config.prompt_template, sample.question, sample.choices)
        for part in (text, prefix):
            self._refuse_placeholders(part)
        prompt = self._render(text, len(images or ())) + prefix
        inputs = self._process(prompt, images)
        ids = inputs["input_ids"][0]
        if len(ids) > self.config.max_prompt_tokens:
            raise BadSample(
                "prompt",
                "prompt_too_long",
                f"{len(ids)} tokens, max_prompt_tokens is {self.config.max_prompt_tokens}; "
                "nothing is cut, because image tokens would be",
            )
        n_image = int((ids == self.image_token_id).sum())
        if bool(n_image) != bool(images):
            raise BadSample(
                "prompt",
                "image_count",
                f"{len(images or ())} images became {n_image} image tokens",
            )
        return self._prepared(inputs, response_ids if response_ids is not None else ())

    def with_response(self, prepared: Prepared, response_ids: Sequence[int]) -> Prepared:
        """The same prompt with another response; nothing is processed again."""
        return self._prepared(prepared.inputs, response_ids)

    def encode_response(self, text: str) -> list[int]:
        """Tokens of ``text`` as they stand, no special tokens added. Thread-safe."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prepared(
        self, inputs: Mapping[str, torch.Tensor], response_ids: Sequence[int]
    ) -> Prepared:
        response = torch.as_tensor(response_ids, dtype=torch.int64).reshape(-1)
        if bool((response == self.image_token_id).any()):
            raise BadSample(
                "prompt", "image_count", "the response holds an image placeholder token"
            )
        ids = torch.cat([inputs["input_ids"][0], response])
        return Prepared(
            inputs=inputs,
            n_prompt=len(ids) - len(response),
            response_ids=response,
            image_mask=ids == self.image_token_id,
            special_mask=torch.isin(ids, self._special_ids),
        )

    def _refuse_placeholders(self, text: str) -> None:
        for token in self._placeholders:
            if token in text:
                raise BadSample(
                    "prompt", "image_count", f"the text holds the placeholder {token!r}"
                )

    def _render(self, text: str, n_images: int) -> str:
        content = [{"type": "image"} for _ in range(n_images)]
        content.append({"type": "text", "text": text})
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
        )

    def _process(
        self, prompt: str, images: Sequence[Image] | None
    ) -> dict[str, torch.Tensor]:
        # What apply_chat_template(tokenize=True) does: most templates write the beginning
        # token themselves.
        bos = self.tokenizer.bos_token
        starts = bos is not None and prompt.startswith(bos)
        try:
            # No padding and no truncation, ever: besides cutting image tokens, another
            # setting would be written into the tokenizer that all threads share.
            encoded = self.processor(
                text=[prompt],
                images=[list(images)] if images else None,
                return_tensors="pt",
                padding=False,
                truncation=False,
                **({"add_special_tokens": False} if starts else {}),
            )
        except _REFUSALS as error:
            raise BadSample(
                "image" if images else "prompt",
                "image_unreadable" if images else "bad_text",
                f"the processor refuses it: {first_line(error)}",
            ) from error
        return {k: v for k, v in encoded.items() if isinstance(v, torch.Tensor)}

    # -- batches

    def collate(
        self, batch: Sequence[Prepared], *, padding_side: str = "right"
    ) -> dict[str, torch.Tensor]:
        """Model inputs of a batch: prompt and response, padded, on the model's device.

        Tokens are padded to the longest sequence on ``padding_side`` (``attention_mask``
        is 0 there). All other tensors are joined along their first dimension, as the
        processors themselves do; where sizes differ (tiles an image, pixels a tile) they
        are filled up with zeros at the end. Floating-point inputs take the model's dtype.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side = {padding_side!r}: expected 'left' or 'right'")
        longest = max(len(prepared) for prepared in batch)
        pad_id = _pad_token_id(self.tokenizer, self.image_token_id)
        names = {name: None for prepared in batch for name in prepared.inputs}
        out: dict[str, torch.Tensor] = {}
        for name in names:
            if _is_sequence(name, batch):
                rows = [_sequence_row(name, p) for p in batch]
                fill = pad_id if name == "input_ids" else 0
                out[name] = torch.stack(
                    [_pad(r, longest, fill, padding_side) for r in rows]
                )
            else:
                out[name] = _join([p.inputs[name] for p in batch if name in p.inputs])
        dtype = self.model.dtype
        return {
            name: x.to(self.model.device, dtype if x.is_floating_point() else None)
            for name, x in out.items()
        }

    # -- the model

    def trace(
        self,
        batch: Sequence[Prepared],
        *,
        attention: bool = True,
        padding_side: str = "right",
    ) -> list[Trace]:
        """One padded forward without gradients; what it caught, sample by sample.

        attention: keep q and k of the last decoder layer. padding_side: on the right no
        token's position changes, so nothing has to be told to the model; the left is for
        comparisons.

        Raises ``RapModelError`` if the model cannot be driven (``check`` runs first if it
        has not), ``ValueError`` if a sample's response sees neither all tokens before it in
        the last layer nor the latest ones of a sliding window: q and k alone do not define
        psi there. Passes ``torch.OutOfMemoryError``.
        """
        if not batch:
            return []
        if self._head is None:
            self.check()
        catch = self._forward(batch, padding_side, keep_values=False)
        longest = catch.hidden.shape[1]
        return [
            _cut(
                catch, row, longest - len(p) if padding_side == "left" else 0, p, attention
            )
            for row, p in enumerate(batch)
        ]

    @property
    def head(self) -> Head:
        """The language-model head as it stands (``check`` runs first if it has not)."""
        return self._head or self._checked()

    def check(self) -> None:
        """Run one small sample and compare what was caught with what the model did.

        Raises ``RapModelError``, naming the reason and what to do, if the processor cannot
        make a prompt with an image, if q and k of the last decoder layer do not give its
        attention output, or if the hidden states and the head do not give the logits
        (fault 20: before the first sample). Passes ``torch.OutOfMemoryError``.
        """
        self._checked()

    def _checked(self) -> Head:
        parts = self._model_parts()
        theirs = getattr(self.model.config, "_attn_implementation", None)
        if theirs not in ("sdpa", "eager", None):
            log.warning(
                "the model was loaded with attn_implementation=%r; its text decoder runs "
                "with sdpa while rap scores",
                theirs,
            )
        probe = self._probe()
        try:
            catch = self._forward([probe], "right", keep_values=True)
            _check_attention(catch, probe)
            self._head = _check_head(self.model, catch, parts)
            return self._head
        except torch.OutOfMemoryError:
            raise
        except UndrivableError as error:
            raise undrivable(self.model, error) from error
        except (*_REFUSALS, AttributeError, AssertionError) as error:
            reason = f"its forward failed ({type(error).__name__}: {first_line(error)})"
            raise undrivable(self.model, reason) from error

    def _model_parts(self) -> Parts:
        if self._parts is None:
            self._parts = find_parts(self.model)
        return self._parts

    def _forward(
        self, batch: Sequence[Prepared], padding_side: str, *, keep_values: bool
    ) -> Catch:
        parts = self._model_parts()
        catch = Catch(parts.watched, keep_values)
        inputs = self.collate(batch, padding_side=padding_side)
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = 1
        if padding_side == "left" and not hasattr(self.model.base_model, "get_rope_index"):
            # Qwen-VL's classes count positions from the attention mask, the others do not.
            positions = inputs["attention_mask"].cumsum(-1) - 1
            options["position_ids"] = positions.clamp_(min=0)
        with self._lock, driven(self.model, parts, catch):
            output = self.model(**inputs, **options)
        if not hasattr(catch, "hidden"):
            raise UndrivableError("its text decoder gave no hidden states")
        require_attention(catch)
        if keep_values:
            catch.logits = output.logits
        return catch

    # -- the probe

    def _probe(self) -> Prepared:
        """A grey image, a short question and a short answer, through the processor."""
        from PIL import Image

        sample = Sample(
            index=0,
            id="probe",
            question="What is in the picture?",
            answer="grey",
            choices=(),
            images=(),
            source=None,
            extra={},
        )
        image = Image.new("RGB", (56, 56), (120, 130, 140))
        pair = f"{type(self.processor).__name__} and {type(self.model).__name__}"
        try:
            response = self.encode_response("The answer is grey.")
            return self.prepare(sample, [image], response)
        except BadSample as bad:
            raise RapModelError(f"{pair}: no prompt can be made: {bad.message}") from bad
        except (*_REFUSALS, AttributeError) as error:
            raise RapModelError(
                f"{pair}: no prompt can be made: {first_line(error)}. The model's own "
                "AutoProcessor with a chat template is needed (processor.chat_template)"
            ) from error

    # -- who it is

    def identity(self) -> dict[str, object]:
        """Model and processor for the fingerprint: JSON values, equal in every process.

        ``weights_sha256`` covers name, shape and dtype of every parameter and persistent
        buffer and all its bytes: as they are up to 64 KiB; of larger ones 64 KiB (the
        first and last 16 KiB and 32 KiB of elements evenly spread between them) and two
        exact checksums of each 32 MiB, computed where the tensor lies. One changed
        weight always changes it; it is no protection against forgery. Weights that are
        not in memory (device "meta") count with name, shape and dtype.
        ``processor_sha256`` covers the settings of every part, the chat template and the
        tokenizer (vocabulary, merges, added tokens).
        """
        config = self.model.config
        return {
            "class": type(self.model).__name__,
            "name_or_path": str(getattr(config, "_name_or_path", "") or ""),
            "revision": getattr(config, "_commit_hash", None),
            "weights_sha256": weights_sha256(self.model),
            "processor": type(self.processor).__name__,
            "processor_sha256": processor_sha256(self.processor),
        }


# ---- what was caught ---------------------------------------------------------


def _cut(catch: Catch, row: int, start: int, prepared: Prepared, attention: bool) -> Trace:
    """One sample out of a batch: it lies at ``start`` in row ``row``."""
    length, prompt = len(prepared), prepared.n_prompt
    span = slice(start, start + length)
    window = key_window(catch, row, start, prompt, length) if attention else None
    return Trace(
        n_prompt=prompt,
        response_ids=prepared.response_ids,
        hidden=catch.hidden[row, start + prompt - 1 : start + length - 1],
        q=catch.q[row, :, span] if attention else None,
        k=catch.k[row, :, span] if attention else None,
        scaling=catch.scaling,
        image_mask=prepared.image_mask,
        special_mask=prepared.special_mask,
        key_window=window,
    )


def _check_attention(catch: Catch, probe: Prepared) -> None:
    """q, k and v give the last layer's own output for the response rows."""
    window = key_window(catch, 0, 0, probe.n_prompt, len(probe))
    rows = slice(probe.n_prompt, len(probe))
    theirs = catch.out[0, rows].transpose(0, 1).double()
    rebuilt = attend(catch.q[0], catch.k[0], catch.v[0], catch.scaling, rows, window)
    if not bool(torch.isfinite(theirs).all()):
        raise UndrivableError("it gives NaN or infinity for a plain sample (its dtype?)")
    if not _close(rebuilt, theirs, catch.q):
        raise UndrivableError(
            "queries and keys of its last decoder layer do not give that layer's attention"
        )


def _check_head(model: Any, catch: Catch, parts: Parts) -> Head:
    """The head that gives the model's own logits from the hidden state before them."""
    logits = catch.logits
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != (1, 1):
        raise UndrivableError("it makes more logits than were asked for")
    weight = parts.head.get_parameter("weight").detach()
    bias: torch.Tensor | None = getattr(parts.head, "bias", None)
    last = catch.hidden[0, -1].to(weight.device)
    theirs = logits[0, -1].double()
    # Some classes have a cap or a scale in their config and do not use it.
    heads = [
        Head(weight, None if bias is None else bias.detach(), softcap, scale)
        for softcap, scale in _head_options(model)
    ]
    with torch.no_grad():
        ours = [head.logits(last).double() for head in heads]
    errors = [float((x - theirs).abs().max()) for x in ours]
    best = min(range(len(heads)), key=errors.__getitem__)
    if not _close(ours[best], theirs, logits):
        raise UndrivableError("its hidden states and its head do not give its logits")
    return heads[best]


def _close(a: torch.Tensor, b: torch.Tensor, like: torch.Tensor) -> bool:
    """Equal up to the rounding of one layer in the dtype of ``like``, relative to the
    largest value: 2^-12 for float32 (2^-8 on CUDA, where it may be TF32), 2^-7 for
    float16, 2^-5 for bfloat16. What is looked for is larger. NaN is never close."""
    share = {torch.float16: 2.0**-7, torch.bfloat16: 2.0**-5}.get(
        like.dtype, 2.0**-8 if like.is_cuda else 2.0**-12
    )
    return bool((a - b).abs().max() <= max(share * float(b.abs().max()), 1e-30))


def _head_options(model: Any) -> list[tuple[float | None, float | None]]:
    """(softcap, scale) that the configs speak of, in every combination, all first."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(text, "final_logit_softcapping", None)
    scale = getattr(text, "logit_scale", None)  # Cohere
    if getattr(text, "logits_scaling", None):  # Granite
        scale = 1.0 / text.logits_scaling
    softcaps = [float(softcap), None] if softcap else [None]
    scales = [float(scale), None] if isinstance(scale, (int, float)) and scale else [None]
    return [(a, b) for a in softcaps for b in scales]


def _require_loaded(model: Any, processor: Any) -> None:
    """A path, None or the two in the wrong order, said before anything is touched."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise RapModelError(
            f"model = {_short(model)}: expected a loaded Hugging Face model, as "
            "AutoModelForImageTextToText.from_pretrained(...) gives it"
        )
    if not callable(getattr(processor, "apply_chat_template", None)):
        raise RapModelError(
            f"processor = {_short(processor)}: expected the model's processor, as "
            "AutoProcessor.from_pretrained(...) gives it"
        )


def _short(value: object) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)[:80]
    return f"a {type(value).__name__}"


def _image_token_id(model: Any, processor: Any) -> int:
    for owner in (model.config, processor):
        for name in ("image_token_id", "image_token_index"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    raise RapModelError(
        f"{type(model).__name__} with {type(processor).__name__}: no image_token_id, so "
        "image tokens cannot be told from text. Pass the model's own AutoProcessor"
    )


def placeholder_texts(processor: Any, image_token_id: int) -> tuple[str, ...]:
    """Texts that the processor would take for an image or a video."""
    tokenizer = getattr(processor, "tokenizer", processor)
    names = ("image_token", "video_token", "boi_token")
    found = [getattr(processor, name, None) for name in names]
    found.append(tokenizer.convert_ids_to_tokens(image_token_id))
    return tuple(dict.fromkeys(t for t in found if isinstance(t, str) and t))


def _special_ids(processor: Any, image_token_id: int) -> set[int]:
    """Special tokens, and added tokens that the chat template writes (<think>).

    Not every added token: Gemma adds runs of white space and HTML tags, which are text.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(
        tokenizer, "chat_template", None
    )
    template = template if isinstance(template, str) else json.dumps(template or "")
    ids = {int(i) for i in tokenizer.all_special_ids} | {image_token_id}
    for i, token in tokenizer.added_tokens_decoder.items():
        content = token.content.strip()
        if token.special or (content and content in template):
            ids.add(int(i))
    return ids


def _pad_token_id(tokenizer: Any, image_token_id: int) -> int:
    """Any id but a placeholder's: padded positions are masked and cut away."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None and int(value) != image_token_id:
            return int(value)
    return 0 if image_token_id != 0 else 1


def _is_sequence(name: str, batch: Sequence[Prepared]) -> bool:
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


__all__ = ["Head", "ModelDriver", "Prepared", "Trace"]
