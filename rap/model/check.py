"""Whether a model can be scored with, and how rap reads it: ``rap check MODEL``."""

from __future__ import annotations

from typing import Any, Unpack

from .driver import ModelDriver
from .loading import LoadingOptions, opened, require_named
from .probe import ModelDescription


def check(
    model: Any, processor: Any = None, **loading: Unpack[LoadingOptions]
) -> ModelDescription:
    """Run the driver's own check on a model and say how rap reads it.

    model, processor: a Hugging Face ``AutoModelForImageTextToText`` and its processor, as
        for `rap.score`, or a folder or hub name alone, with ``loading`` as there. The model
        is left as it was.

    One small sample (a grey image, a short question and answer) goes through the model;
    what was captured has to give the model's own attention and logits.

    Raises ``RapModelError``, naming the reason and what to do, if the model cannot be
    scored with. Passes ``torch.OutOfMemoryError``.
    """
    require_named(model, loading)
    return ModelDriver(*opened(model, processor, **loading)).describe()
