"""Samples to sequences, on the host: chat template, processor, response.

What the images of a sample were made into is kept in its `Prepared`, and serves every
prompt about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from ..config import ScoreConfig
from ..errors import first_line
from ..samples.prompts import chat, with_system
from ..samples.sample import BadSample, Sample
from ..samples.stated import prompt_text
from .batching import Prepared, Shared, extend
from .prompt import (
    REFUSALS,
    chat_tokens,
    image_token_id,
    placeholder_texts,
    require_processor,
    special_ids,
)

if TYPE_CHECKING:
    from PIL.Image import Image


_OF_ITS_OWN = (
    "processor",
    "config",
    "tokenizer",
    "image_token_id",
    "_special_ids",
    "_placeholders",
    "_chat_tokens",
)
"""What a `Preparer` works with; a ``ModelDriver`` has more."""


class Preparer:
    """A processor with one setting. ``prepare`` and ``encode_response`` may be called
    from several threads.

    Raises ``RapModelError`` if ``processor`` is no processor, or neither it nor ``model``
    says which token stands for an image.
    """

    def __init__(self, model: Any, processor: Any, config: ScoreConfig) -> None:
        require_processor(processor)
        self.model = model
        self.processor = processor
        self.config = config
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_token_id = image_token_id(model, processor)
        self._special_ids = torch.tensor(
            sorted(special_ids(processor, self.image_token_id)), dtype=torch.int64
        )
        self._placeholders = placeholder_texts(processor, self.image_token_id)
        self._chat_tokens = chat_tokens(processor)

    def alone(self) -> Preparer:
        """The same without the model: what another process can be given."""
        twin = object.__new__(Preparer)
        for name in _OF_ITS_OWN:
            setattr(twin, name, getattr(self, name))
        twin.model = None
        return twin

    def prepare(
        self,
        sample: Sample,
        images: Sequence[Image] | None,
        response_ids: Sequence[int] | None = None,
        *,
        prefix: str = "",
        like: Prepared | None = None,
    ) -> Prepared:
        """Chat template and processor: one sample to one sequence. Thread-safe.

        images: RGB; None or [] is the prompt without images. response_ids: tokens that
        follow the prompt. prefix: text that opens the assistant's turn, part of the prompt.
        like: the same sample with the same images, prepared with another prefix: what its
        images were made into is taken from there, and both share what the model makes of
        them.

        Raises ``BadSample``, stage ``prompt``: ``image_count`` (placeholders and images do
        not match, or a text holds a placeholder token), ``bad_text`` (a text holds a token
        of the chat template, which would begin or end a turn), ``prompt_too_long``; stage
        ``image``: ``image_unreadable`` (the processor refuses the image).
        """
        text = prompt_text(self.config.prompt_template, sample.question, sample.choices)
        turns = with_system(sample.turns, self.config.system_prompt)
        messages = chat(turns, text, len(images or ()))
        parts = [part for message in messages for part in message["content"]]
        for said in (*(part.get("text", "") for part in parts), prefix):
            self._refuse_placeholders(said)
        prompt = self._render(messages) + prefix
        inputs = None if like is None else self._extended(like, prompt)
        shared = like.shared if like is not None and inputs is not None else None
        if shared is None or inputs is None:
            inputs = self._process(prompt, images)
            shared = Shared(prompt, len(images or ()))
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
        response = response_ids if response_ids is not None else ()
        return self._prepared(inputs, response, shared)

    def with_response(self, prepared: Prepared, response_ids: Sequence[int]) -> Prepared:
        """The same prompt with another response; nothing is processed again."""
        return self._prepared(prepared.inputs, response_ids, prepared.shared)

    def encode_response(self, text: str) -> list[int]:
        """Tokens of ``text`` as they stand, no special tokens added. Thread-safe."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> int | None:
        """Tokens that images of these sizes (width, height) become, as the processor says
        it for servers that plan ahead: None if it never does, 0 where it refuses them."""
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is None or not sizes:
            return None if count is None else 0
        try:
            found = count(image_sizes=[(height, width) for width, height in sizes])
            return int(sum(found["num_image_tokens"]))
        except (*REFUSALS, AttributeError):
            return 0

    def _prepared(
        self,
        inputs: Mapping[str, torch.Tensor],
        response_ids: Sequence[int],
        shared: Shared,
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
            shared=shared,
        )

    def _extended(self, like: Prepared, prompt: str) -> dict[str, torch.Tensor] | None:
        """Inputs of ``prompt``, which differs from the prompt of ``like`` only after its
        last special token; None if that cannot be told from the tokens."""
        old, new = self._tokens(like.shared.text), self._tokens(prompt)
        special = set(self._special_ids.tolist())
        last = max((i for i, token in enumerate(old) if token in special), default=-1)
        ids = like.inputs["input_ids"][0]
        tail = len(old) - last
        if last < 0 or new[: last + 1] != old[: last + 1]:
            return None
        if ids[len(ids) - tail :].tolist() != old[last:]:
            return None
        more = torch.tensor(new[last + 1 :], dtype=ids.dtype)
        like.shared.serves = True
        return extend(like.inputs, len(ids) - tail + 1, more)

    def _tokens(self, text: str) -> list[int]:
        starts = self._written_bos(text)
        options = {"add_special_tokens": False} if starts else {}
        return list(self.tokenizer(text, **options)["input_ids"])

    def _written_bos(self, prompt: str) -> bool:
        # What apply_chat_template(tokenize=True) does: most templates write the beginning
        # token themselves.
        bos = self.tokenizer.bos_token
        return bos is not None and prompt.startswith(bos)

    def _refuse_placeholders(self, text: str) -> None:
        for token in self._placeholders:
            if token in text:
                raise BadSample(
                    "prompt", "image_count", f"the text holds the placeholder {token!r}"
                )
        for token in self._chat_tokens:
            if token in text:
                raise BadSample(
                    "prompt",
                    "bad_text",
                    f"the text holds {token!r}, a token of the chat template that would "
                    "begin or end a turn: take it out, or give the turns as messages",
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
        starts = self._written_bos(prompt)
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
