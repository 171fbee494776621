"""Engines: they sample the completions of evidence ``rollouts``.

``contract``: requests and results. An engine is one file: ``transformers``
(the model that scores), ``vllm`` (in this process), ``openai`` (any server), the last with
``probe`` (what a server does), ``wire`` (JSON), ``http`` (one exchange) and ``servers``
(several, some of them down). Importing this package imports no torch, vllm or httpx2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .contract import (
    Engine,
    Generated,
    ImagePart,
    Request,
    Said,
    conversation,
    image_part,
)
from .openai import OpenAIEngine
from .settings import EngineConfig, EngineOptions, require_engine
from .transformers import TransformersEngine
from .vllm import VLLMEngine

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

ENGINES: dict[str, Callable[[EngineConfig, ModelDriver | None], Engine]] = {
    "transformers": TransformersEngine,
    "vllm": VLLMEngine,
    "openai": OpenAIEngine,
}
"""Name -> class. To add an engine: its file, one line here."""


def make_engine(config: EngineConfig, driver: ModelDriver | None) -> Engine:
    """The engine of these settings; ``check`` comes next.

    driver: the local model, None if there is none.
    """
    return ENGINES[config.engine](config, driver)


__all__ = [
    "ENGINES",
    "Engine",
    "EngineConfig",
    "EngineOptions",
    "Generated",
    "ImagePart",
    "Request",
    "Said",
    "conversation",
    "image_part",
    "make_engine",
    "require_engine",
]
