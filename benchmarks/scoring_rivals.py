"""What scoring is measured against.

``as_before`` is this project's own driver as it was at commit a64b6dc: ``model.generate``
on prompts that are repeated for each of their M completions, and separate forwards that
encode the image and read the prompt again. It is the way that the driver still takes with
models that cannot share them; all else (grading, kernels, sampling) is the same.

The others are plain scripts with transformers, a batch at a time: ``separate_forwards`` and
``expanded_prompts`` the same work written plainly, ``returned_sequences`` what a user would
write, ``generate`` with ``num_return_sequences``. None of these grades, computes a
divergence, reads attention or makes its sampling independent of the batch: they draw and
read, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from rap.config import ScoreConfig
from rap.model.driver import ModelDriver
from rap.samples.prompts import chat
from rap.samples.sample import Sample
from rap.samples.sampleset import load_images
from rap.samples.stated import prompt_text


@dataclass(frozen=True, slots=True)
class Plain:
    """A model, its processor, and how it is asked."""

    model: Any
    processor: Any
    config: ScoreConfig
    batch: int
    """Samples a batch."""

    def prompt(self, sample: Sample, images: int, prefix: str = "") -> str:
        text = prompt_text(self.config.prompt_template, sample.question, sample.choices)
        messages = chat(sample.turns, text, images)
        rendered = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return rendered + prefix

    def inputs(
        self, texts: Sequence[str], images: Sequence[list[Image.Image]] | None, side: str
    ) -> Any:
        """Padded on ``side``."""
        return self.processor(
            text=list(texts),
            images=None if images is None else list(images),
            padding=True,
            padding_side=side,
            return_tensors="pt",
        )

    def generate(self, inputs: Any, greedy: bool, n: int = 1) -> list[str]:
        sampling = self.config.sampling
        output = self.model.generate(
            **inputs,
            do_sample=not greedy,
            **({} if greedy else {"temperature": 1.0, "top_p": 1.0, "top_k": 0}),
            num_return_sequences=n,
            max_new_tokens=sampling.max_new_tokens,
        )
        tokens = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(tokens, skip_special_tokens=True)

    def forward(self, inputs: Any, logits: int = 1) -> torch.Tensor:
        return self.model(**inputs, use_cache=False, logits_to_keep=logits).logits


def batches(plain: Plain, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    return [samples[i : i + plain.batch] for i in range(0, len(samples), plain.batch)]


def as_before(driver: ModelDriver) -> ModelDriver:
    """The driver, told that its model can share neither images nor prompts."""
    driver._pixels = driver._unshared = "as at commit a64b6dc"
    return driver


def images_of(sample: Sample, config: ScoreConfig) -> list[Image.Image]:
    """Decoded, RGB."""
    return load_images(sample, max_pixels=config.max_image_pixels)[0]


def separate_forwards(plain: Plain, samples: Sequence[Sample]) -> int:
    """A greedy completion, and three forwards; the number of completions."""
    done = 0
    for batch in batches(plain, samples):
        images = [images_of(s, plain.config) for s in batch]
        with_image = [plain.prompt(s, 1) for s in batch]
        said = plain.generate(plain.inputs(with_image, images, "left"), greedy=True)
        image = [p + c for p, c in zip(with_image, said, strict=True)]
        blind = [plain.prompt(s, 0) + c for s, c in zip(batch, said, strict=True)]
        prefix = plain.config.answer_prefix
        answer = [plain.prompt(s, 1, prefix) + s.answer for s in batch]
        plain.forward(plain.inputs(image, images, "right"))
        plain.forward(plain.inputs(blind, None, "right"))
        plain.forward(plain.inputs(answer, images, "right"))
        done += len(said)
    return done


def expanded_prompts(plain: Plain, samples: Sequence[Sample]) -> int:
    """M1 + M0 completions, a row of the batch each; the number of completions."""
    m1, m0, done = plain.config.m1, plain.config.m0, 0
    for batch in batches(plain, samples):
        images = [images for s in batch for images in [images_of(s, plain.config)] * m1]
        with_image = [p for s in batch for p in [plain.prompt(s, 1)] * m1]
        blind = [p for s in batch for p in [plain.prompt(s, 0)] * m0]
        done += len(plain.generate(plain.inputs(with_image, images, "left"), greedy=False))
        done += len(plain.generate(plain.inputs(blind, None, "left"), greedy=False))
    return done


def returned_sequences(plain: Plain, samples: Sequence[Sample]) -> int:
    """The same number of completions, with ``num_return_sequences``."""
    m1, m0, done = plain.config.m1, plain.config.m0, 0
    for batch in batches(plain, samples):
        images = [images_of(s, plain.config) for s in batch]
        with_image = plain.inputs([plain.prompt(s, 1) for s in batch], images, "left")
        blind = plain.inputs([plain.prompt(s, 0) for s in batch], None, "left")
        done += len(plain.generate(with_image, greedy=False, n=m1))
        done += len(plain.generate(blind, greedy=False, n=m0))
    return done
