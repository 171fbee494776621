"""A selection or a data set as rows for TRL."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RapInputError
from ..samples.answers import answer_to_train
from ..samples.choices import prompt_text
from ..samples.sample import Bad, BadSample, Sample
from ..samples.sampleset import SampleSet, load_images, open_samples
from ..samples.sources import datasets_library

if TYPE_CHECKING:
    import datasets


MAX_PIXELS = 50_000_000
"""As ``ScoreConfig.max_image_pixels``."""


def prepare(
    source: object,
    *,
    pool: bool = False,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    prompt_template: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> datasets.Dataset:
    """The data as TRL's trainers take it, one row a usable sample.

    source: a ``Selection`` (its kept samples), a ``SampleSet``, or what ``open_samples``
        takes, with its ``columns`` and ``root``.
    pool: all samples that a ``Selection`` was chosen from, for re-selection.
    prompt_template: as ``ScoreConfig.prompt_template``; None is the one the selection was
        scored with, else the default.

    A row has ``id``, ``prompt`` (one user message), ``images`` (list of RGB pictures),
    ``solution`` (the reference answer; a letter, as ``$B$``, where the prompt lists the
    choices by letter: TRL's ``accuracy_reward`` reads mathematics only), ``choices``,
    and the other columns under their own names, for reward functions. Pictures are read
    when a row is: through ``images``, as they were for the scores. One that has vanished
    by then stops the training with a ``RapInputError`` that names the sample.

    Raises ``RapInputError`` if there is no usable sample, or the selection does not know
    its data; ``datasets`` must be installed.
    """
    ids: set[str] | None = None
    if hasattr(source, "settings") and hasattr(source, "indices"):
        ids = None if pool else set(source.ids)
        if prompt_template is None:
            prompt_template = _template_of(source.settings)
        if source.source is None:
            raise RapInputError(
                "the selection does not know its data set: rap.load(folder, dataset=...)"
            )
        source = source.source
    samples = (
        source
        if isinstance(source, SampleSet)
        else open_samples(source, columns=columns, root=root)
    )
    rows = [i for i in range(len(samples)) if isinstance(samples[i], Sample)]
    if ids is not None:
        rows = [i for i in rows if samples[i].id in ids]
        if len(rows) < len(ids):
            raise RapInputError(
                f"{len(ids) - len(rows)} of {len(ids)} selected samples are not in the "
                "data set, or not usable any more: it is not the one that was scored"
            )
    if not rows:
        raise RapInputError("nothing to train on: no sample is selected")
    hf = datasets_library()
    if hf is None:
        raise RapInputError("prepare: needs the datasets library: pip install datasets")
    names = samples.ids
    table = hf.Dataset.from_dict({"id": [names[i] for i in rows], "row": rows})
    template = prompt_template or "{question}{choices}"
    return table.with_transform(_Rows(samples, template, max_pixels))


def template_of_rows(data: Any) -> str | None:
    """The prompt template of what ``prepare`` made; None for other data."""
    options = (getattr(data, "format", None) or {}).get("format_kwargs") or {}
    return getattr(options.get("transform"), "template", None)


def _template_of(settings: Mapping[str, Any]) -> str | None:
    scores = settings.get("scores") or {}
    return (scores.get("config") or {}).get("prompt_template")


class _Rows:
    """Row numbers -> the rows a trainer sees (a transform of ``datasets``)."""

    OURS = ("id", "prompt", "images", "solution", "choices")
    TAKEN = ("image", "prompts", "completion", "completions", "completion_ids")
    TAKEN += ("environment", "environments", "tools")

    def __init__(self, samples: SampleSet, template: str, max_pixels: int) -> None:
        self.samples, self.template, self.max_pixels = samples, template, max_pixels
        named = samples.columns["images"]
        taken = {*self.OURS, *self.TAKEN, named}
        self.extra = [name for name in samples.column_names if name not in taken]

    def __deepcopy__(self, memo: object) -> _Rows:
        return self  # `datasets` copies a transform with the table; this one never changes

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        if "row" not in batch:  # one column was asked for
            return {name: list(values) for name, values in batch.items()}
        rows = [self._row(i) for i in batch["row"]]
        return {name: [row[name] for row in rows] for name in (*self.OURS, *self.extra)}

    def _row(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        if isinstance(sample, Bad):
            raise RapInputError(_gone(sample.id, index, sample.code, sample.message))
        try:
            images, _ = load_images(sample, max_pixels=self.max_pixels)
        except BadSample as bad:
            raise RapInputError(_gone(sample.id, index, bad.code, bad.message)) from bad
        text = prompt_text(self.template, sample.question, sample.choices)
        ours = {
            "id": sample.id,
            "prompt": [{"role": "user", "content": text}],
            "images": images,
            "solution": answer_to_train(
                sample.answer, sample.choices, "{choices}" in self.template, latex=True
            ),
            "choices": list(sample.choices),
        }
        return {name: sample.extra.get(name) for name in self.extra} | ours


def _gone(name: str, index: int, code: str, message: str) -> str:
    return (
        f"sample {name[:80]!r} (row {index}) can no longer be read: {code}: {message}. "
        "Training stops here; put it back and resume from the last checkpoint"
    )
