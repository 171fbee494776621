"""What a trainer writes: errors of ours, no leftovers, the tokenizer as it was read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import RapError, RapStoreError, first_line
from ..scores.files import store_error


def as_loaded(tokenizer: Any) -> None:
    """Without the padding of the last batch, which tokenizer.json would keep."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()


@contextmanager
def saving(folder: str, *, clears: bool = False) -> Iterator[None]:
    """Errors of writing are ``RapStoreError``. Of a disk that refuses, safetensors and
    torch's zip writer say it in errors of their own, the latter without the reason.

    clears: first remove the weights that a killed process left half written: safetensors
    gives them such a name, and the whole size of a model."""
    try:
        if clears:
            for path in Path(folder).glob(".tmp*"):
                path.unlink(missing_ok=True)
        yield
    except (RapError, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise store_error(f"{folder}: cannot be written", error) from error
    except (RuntimeError, SafetensorError) as error:
        raise RapStoreError(f"{folder}: cannot be written: {first_line(error)}") from error
