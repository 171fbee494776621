"""The engine of a run: which one may be, its probe, and what it is asked for a sample."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..config import ExecutorConfig, ScoreConfig, means
from ..engines import Engine, EngineConfig, Said, conversation, image_part, make_engine
from ..engines.settings import LOCAL
from ..errors import RapConfigError
from ..misnamed import require_options
from ..samples.images import read_bytes
from ..samples.sample import BadSample, Sample
from ..settings import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.driver import ModelDriver

PLACEHOLDERS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image|>",
    "<image_soft_token>",
    "<start_of_image>",
    "<IMG_CONTEXT>",
    "[IMG]",
)
"""What common processors write for an image. A server takes such a text without a word and
answers nonsense; a local processor knows its own (``ModelDriver.prepare``)."""


CHAT_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<end_of_utterance>",
)
"""What common chat templates begin or end a turn with; as above."""


def resolve_all(
    config: ScoreConfig | None, given: Mapping[str, Any], owner: str
) -> tuple[ScoreConfig, EngineConfig, ExecutorConfig]:
    """``config`` with single fields replaced, and the settings of engine and executor.

    Raises ``RapConfigError`` as ``settings.resolve`` does.
    """
    kinds = (ScoreConfig, EngineConfig, ExecutorConfig)
    names = [means(kind, given.get("executor")) for kind in kinds]
    require_options(given, sum(names, []), owner)
    scoring, engine, executor = (
        {name: v for name, v in given.items() if name in own} for own in names
    )
    made = resolve(ScoreConfig, "config", config, scoring, owner)
    return made, EngineConfig(**engine), ExecutorConfig(**executor)


@contextmanager
def running(
    settings: EngineConfig, driver: ModelDriver | None, config: ScoreConfig
) -> Iterator[Engine]:
    """The engine, probed; what was found is one line on stderr. Closed at the end. A local
    model is checked first.

    Raises ``RapConfigError``, ``RapModelError`` for an engine that cannot be used.
    """
    if driver is not None:
        driver.check()
    engine = make_engine(settings, driver)
    try:
        line = engine.check(config.sampling)
        if settings.engine != LOCAL:
            print(line + _about_psi(engine, driver), file=sys.stderr, flush=True)
        if config.evidence != "rollouts" and not engine.token_ids:
            raise RapConfigError(
                f"evidence = {config.evidence!r}: it reads the completions' tokens, and "
                "the server returns no token ids; take vLLM or SGLang, or evidence "
                "'rollouts', which then skips ACE"
            )
        yield engine
    finally:
        engine.close()


def _about_psi(engine: Engine, driver: ModelDriver | None) -> str:
    why = psi_missing(engine, driver)
    return f"; ACE is skipped: {why}" if why else ""


def psi_missing(engine: Engine, driver: ModelDriver | None) -> str | None:
    """Why psi cannot be read of this engine's completions; None if it can."""
    if driver is None:
        return "there is no local model to read attention with"
    return None if engine.token_ids else "the server returns no token ids"


def provenance(
    settings: EngineConfig, engine: Engine, driver: ModelDriver | None
) -> dict[str, object] | None:
    """The engine in the fingerprint; None for the local one, whose identity is the
    model's."""
    if settings.engine == LOCAL:
        return None
    return engine.provenance() | {"ace_skipped": psi_missing(engine, driver)}


# ---------------------------------------------------------------- prompts


def with_bytes(sample: Sample) -> Sample:
    """The sample with its images' encoded bytes in memory: those that are decoded are
    those that are sent. Raises ``BadSample``."""
    refs = tuple(dataclasses.replace(r, data=read_bytes(r)) for r in sample.images)
    return dataclasses.replace(sample, images=refs)


def prompts(
    sample: Sample,
    images: Sequence[Image],
    other: Sequence[Image] | None,
    config: ScoreConfig,
) -> dict[str, tuple[Said, ...]]:
    """The prompt with the image (``image``) and without it (``blind``), for an engine.

    sample: as from `with_bytes`. other: the images of the input without the image.
    Raises ``BadSample``.
    """
    sent = [image_part(i, r.data) for i, r in zip(images, sample.images, strict=True)]
    blind = [image_part(image) for image in other or ()]
    template, system = config.prompt_template, config.system_prompt
    return {
        "image": conversation(sample, template, sent, system),
        "blind": conversation(sample, template, blind, system),
    }


def refuse_placeholders(said: Sequence[Said]) -> None:
    """Raises ``BadSample`` for a text that holds a common placeholder of an image, or what
    begins or ends a turn."""
    texts = [part for _, parts in said for part in parts if isinstance(part, str)]
    for token in PLACEHOLDERS:
        if any(token in text for text in texts):
            raise BadSample(
                "prompt", "image_count", f"the text holds the placeholder {token!r}"
            )
    for token in CHAT_TOKENS:
        if any(token in text for text in texts):
            raise BadSample(
                "prompt",
                "bad_text",
                f"the text holds {token!r}, which begins or ends a turn",
            )
