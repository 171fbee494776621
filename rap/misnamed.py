"""Options by the names that other libraries, or other functions of ours, have for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from .config import AceConfig, ChooseConfig, Sampling, ScoreConfig
from .errors import RapConfigError
from .settings import require_known

CALLED_OTHERWISE = {
    **dict.fromkeys(
        ("k", "n", "top", "num_samples", "n_samples", "fraction", "ratio", "share"),
        "how many are kept is budget=, a share of the samples: budget=0.09",
    ),
    "max_tokens": 'tokens of a completion are sampling={"max_new_tokens": 256}',
    "max_completion_length": 'tokens of a completion are sampling={"max_new_tokens": 256}',
    **dict.fromkeys(
        ("num_generations", "num_return_sequences"),
        "completions a sample are m1= (with the image) and m0= (without)",
    ),
    **dict.fromkeys(("load_in_4bit", "bnb_config"), 'give quantize="4bit"'),
    "load_in_8bit": 'give quantize="8bit"',
    "quantization_config": 'give quantize="4bit" or "8bit", or a loaded model',
    **dict.fromkeys(
        ("tokenizer", "processing_class"), "the processor is the second argument"
    ),
    **dict.fromkeys(
        ("train_dataset", "data_path", "dataset_name"), "the data set is data="
    ),
    "split": 'give one split as the data: load_dataset(..., split="train")',
    "limit": "give fewer rows: rap.samples.open_samples(data, limit=100)",
    **dict.fromkeys(
        ("out", "output_dir", "save_dir", "cache_dir"),
        "scores are kept in store=, a selection is saved by .save(folder)",
    ),
    **dict.fromkeys(
        ("resume", "resume_from_checkpoint"), "the same call on the same store goes on"
    ),
    **dict.fromkeys(("verbose", "quiet"), "progress=False shows no progress"),
    "reward_funcs": "reward functions are reward=, one or a list",
}
"""Names that other libraries or our own shell have for what is asked for otherwise here."""


def require_options(given: Mapping[str, Any], known: Collection[str], owner: str) -> None:
    """Raises ``RapConfigError`` for the first option that is none, saying what it is of."""
    for name, value in given.items():
        if name not in known and (meant := _meant(name, value)):
            raise RapConfigError(f"{name}: {owner} has no such option; {meant}")
    require_known(given, known, f"{owner} has no such option")


def _meant(name: str, value: object) -> str | None:
    """Where an option of another place belongs; None: nothing is known of it."""
    for part, kind in (("sampling", Sampling), ("ace", AceConfig)):
        if name in {field.name for field in dataclasses.fields(kind)}:
            return f'it is a part of {part}: {part}={{"{name}": {value!r}}}'
    if name in {field.name for field in dataclasses.fields(ChooseConfig)}:
        return "rap.choose and rap.select have it"
    if name in {field.name for field in dataclasses.fields(ScoreConfig)}:
        return "rap.score and rap.select have it"
    return CALLED_OTHERWISE.get(name)
