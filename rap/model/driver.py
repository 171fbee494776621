"""Drive one Hugging Face multimodal model: prompts in, hidden states, queries, keys out.

    sample + images --> prepare (host, threads) --> Prepared --> trace (one padded forward)
                                                         \\--> Trace: hidden, q, k, unpadded

Queries and keys of the last decoder layer are captured while sdpa runs everywhere, hidden
states after the final norm (see ``rap.model.capture``). ``[T, V]`` logits are never made,
attention weights are never built, and padding never leaves `trace`.

``check`` runs one small sample before the first real one and compares what was captured
with what the model did: q and k must give the layer's own attention output, the hidden
state and the head the model's own logits. What a class does differently (attention
soft-capping, sinks, a window, a scaled head) is found by that and not guessed.

The model is the user's: every call leaves it as it was.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from ..config import ScoreConfig
from ..errors import RapModelError, first_line
from ..samples.choices import prompt_text
from ..samples.prompts import chat, with_system
from ..samples.sample import BadSample, Sample
from .batching import Prepared, Trace, collate, cut
from .capture import (
    Capture,
    Parts,
    UnsupportedModelError,
    capturing,
    find_parts,
    require_attention,
    unsupported,
)
from .head import Head
from .identity import processor_sha256, weights_sha256
from .probe import ModelDescription, check_attention, check_head, describe
from .prompt import (
    PROBE_RESPONSE,
    PROBE_SIZE,
    REFUSALS,
    image_token_id,
    other_family,
    pad_token_id,
    placeholder_texts,
    probe_sample,
    require_model,
    require_pair,
    require_processor,
    special_ids,
)
from .weights import (
    class_name,
    input_device,
    input_dtype,
    plain,
    require_weights,
    underlying,
)

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("rap")


class ModelDriver:
    """One model and its processor, as scoring needs them.

    ``prepare`` and ``encode_response`` may be called from several threads; ``check``,
    ``trace`` and ``head`` run the model and take turns.

    Raises ``RapModelError`` if ``model`` is no loaded model, ``processor`` no processor,
    or neither says which token stands for an image.
    """

    def __init__(self, model: Any, processor: Any, config: ScoreConfig | None = None):
        model = underlying(model)
        require_model(model)
        require_processor(processor)
        self.model = model
        self.processor = processor
        self.config = config or ScoreConfig()
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_token_id = image_token_id(model, processor)
        self._special_ids = torch.tensor(
            sorted(special_ids(processor, self.image_token_id)), dtype=torch.int64
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
        turns = with_system(sample.turns, self.config.system_prompt)
        messages = chat(turns, text, len(images or ()))
        parts = [part for message in messages for part in message["content"]]
        for said in (*(part.get("text", "") for part in parts), prefix):
            self._refuse_placeholders(said)
        prompt = self._render(messages) + prefix
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

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:  # a role that the template refuses, say
            raise BadSample(
                "prompt", "bad_text", f"the chat template refuses it: {first_line(error)}"
            ) from error

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
        except REFUSALS as error:
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
        pad_id = pad_token_id(self.tokenizer, self.image_token_id)
        out = collate(batch, pad_id, padding_side)
        device, dtype = input_device(self.model), input_dtype(self.model)
        return {
            name: x.to(device, dtype if x.is_floating_point() else None)
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
        """One padded forward without gradients, sample by sample.

        attention: keep q and k of the last decoder layer. padding_side: on the right no
        token's position changes, so nothing has to be told to the model; the left is for
        comparisons.

        Raises ``RapModelError`` if the model is not supported (``check`` runs first if it
        has not), ``ValueError`` if a sample's response sees neither all tokens before it in
        the last layer nor the latest ones of a sliding window: q and k alone do not define
        psi there. ``torch.OutOfMemoryError`` is not caught.
        """
        if not batch:
            return []
        if self._head is None:
            self.check()
        capture = self._forward(batch, padding_side, keep_values=False)
        longest, dtype = capture.hidden.shape[1], self.head.weight.dtype
        starts = [longest - len(p) if padding_side == "left" else 0 for p in batch]
        return [
            cut(capture, row, start, p, attention=attention, dtype=dtype)
            for row, (start, p) in enumerate(zip(starts, batch, strict=True))
        ]

    @property
    def head(self) -> Head:
        """The language-model head as it stands (``check`` runs first if it has not)."""
        if self._head is None:
            self.describe()
        return self._head  # type: ignore[return-value]  # set by describe

    def check(self) -> None:
        """Run one small sample and compare what was captured with what the model did.

        Raises ``RapModelError``, naming the reason and what to do, if the processor cannot
        make a prompt with an image, if q and k of the last decoder layer do not give its
        attention output, or if the hidden states and the head do not give the logits
        (checked before the first sample). ``torch.OutOfMemoryError`` is not caught.
        """
        self.describe()

    def describe(self) -> ModelDescription:
        """``check``, and what it found out: classes, sizes, the form of the head, image
        tokens, and how far the rebuilt numbers are from the model's own."""
        parts = self._model_parts()
        require_weights(self.model)
        theirs = getattr(self.model.config, "_attn_implementation", None)
        if theirs not in ("sdpa", "eager", None):
            log.warning(
                "the model was loaded with attn_implementation=%r; its text decoder runs "
                "with sdpa while rap scores",
                theirs,
            )
        remark = other_family(self.model, self.processor)
        if remark:
            log.warning(remark)
        probe = self._probe(remark)
        try:
            capture = self._forward([probe], "right", keep_values=True)
            attention = check_attention(capture, probe)
            head, difference, largest = check_head(self.model, parts, capture)
        except torch.OutOfMemoryError:
            raise
        except UnsupportedModelError as error:
            raise unsupported(self.model, error) from error
        except (*REFUSALS, AttributeError, AssertionError) as error:
            said = f"its forward failed ({type(error).__name__}: {first_line(error)})"
            advised = UnsupportedModelError(f"{said}; {remark}", advised=True)
            raise unsupported(self.model, advised if remark else said) from error
        self._head = head
        return describe(
            self.model,
            self.processor,
            parts,
            capture,
            head,
            device=str(input_device(self.model)),
            image_token=self.tokenizer.convert_ids_to_tokens(self.image_token_id),
            image_token_id=self.image_token_id,
            probe_image_size=PROBE_SIZE,
            probe_image_tokens=int(probe.image_mask.sum()),
            logit_difference=difference,
            largest_logit=largest,
            attention_difference=attention[0],
            largest_attention=attention[1],
        )

    def _model_parts(self) -> Parts:
        if self._parts is None:
            self._parts = find_parts(self.model)
        return self._parts

    def _forward(
        self, batch: Sequence[Prepared], padding_side: str, *, keep_values: bool
    ) -> Capture:
        parts = self._model_parts()
        capture = Capture(parts.watched, keep_values)
        inputs = self.collate(batch, padding_side=padding_side)
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = 1
        if padding_side == "left" and not hasattr(self.model.base_model, "get_rope_index"):
            # Qwen-VL's classes count positions from the attention mask, the others do not.
            positions = inputs["attention_mask"].cumsum(-1) - 1
            options["position_ids"] = positions.clamp_(min=0)
        with self._lock, capturing(self.model, parts, capture):
            output = self.model(**inputs, **options)
        if not hasattr(capture, "hidden"):
            raise UnsupportedModelError("its text decoder gave no hidden states")
        require_attention(capture)
        capture.hidden = _gathered(capture.hidden)
        if keep_values:
            capture.logits = _gathered(output.logits)
        return capture

    # -- the probe

    def _probe(self, remark: str = "") -> Prepared:
        """A grey image, a short question and a short answer, through the processor."""
        from PIL import Image

        image = Image.new("RGB", PROBE_SIZE, (120, 130, 140))
        require_pair(self.model, self.processor, self.image_token_id)
        pair = f"{type(self.processor).__name__} and {type(self.model).__name__}"
        try:
            response = self.encode_response(PROBE_RESPONSE)
            return self.prepare(probe_sample(), [image], response)
        except BadSample as bad:
            said = f"{pair}: no prompt can be made: {bad.message}"
            raise RapModelError(f"{said}; {remark}" if remark else said) from bad
        except (*REFUSALS, AttributeError) as error:
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
        tokenizer (vocabulary, merges, added tokens). Where the model was loaded from is no
        part of it: ``./model`` and ``model`` are one.
        """
        return {
            "class": class_name(self.model),
            "weights_sha256": weights_sha256(self.model),
            "processor": type(self.processor).__name__,
            "processor_sha256": processor_sha256(self.processor),
        }


def _gathered(tensor: Any) -> Any:
    """A tensor of the forward as an ordinary one."""
    values = plain(tensor) if isinstance(tensor, torch.Tensor) else tensor
    if values is None:
        raise UnsupportedModelError(f"its forward gives a {type(tensor).__name__}")
    return values


__all__ = [
    "Head",
    "ModelDescription",
    "ModelDriver",
    "Prepared",
    "Trace",
    "placeholder_texts",
]
