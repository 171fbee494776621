"""Sizes of models that are trained this way, from their configurations, and one awkward
set. The heads are those of the language model's last layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    vocab: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int


MODELS = (
    Shape("Qwen2.5-VL-3B", 151_936, 2048, 16, 2, 128),
    Shape("Qwen2.5-VL-7B", 152_064, 3584, 28, 4, 128),
    Shape("InternVL3-2B", 151_674, 1536, 12, 2, 128),
    Shape("LLaVA-1.5-7B", 32_064, 4096, 32, 32, 128),
    Shape("Gemma-3-4B", 262_208, 2560, 8, 4, 256),
    Shape("awkward", 32_003, 515, 6, 3, 72),
)
QWEN = MODELS[0]
