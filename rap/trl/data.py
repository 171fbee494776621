"""A selection or a data set as rows for TRL."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..config import MAX_IMAGE_PIXELS, PROMPT_TEMPLATE
from ..errors import RapConfigError, RapInputError
from ..samples.answers import answer_to_train
from ..samples.prompts import chat, stands_in_place, with_system
from ..samples.sample import Bad, BadSample, Sample, Turn
from ..samples.sampleset import SampleSet, load_images, open_samples
from ..samples.sources import datasets_library
from ..samples.stated import prompt_text
from ..scores.match import rows_of_all
from ..scores.selected import Selected

if TYPE_CHECKING:
    import datasets


def prepare(
    source: object,
    *,
    pool: bool = False,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> datasets.Dataset:
    """The data as TRL's trainers take it, one row a usable sample.

    source: a ``Selection`` (its kept samples), a ``SampleSet``, or what ``open_samples``
        takes, with its ``columns`` and ``root``.
    pool: all samples that a ``Selection`` was chosen from, for re-selection.
    prompt_template, system_prompt: as ``ScoreConfig``'s; None is the one the selection was
        scored with, else the default.

    A row has ``id``, ``prompt`` (one user message), ``images`` (list of RGB images),
    ``solution`` (the reference answer; a letter, as ``$B$``, where the prompt lists the
    choices by letter: TRL's ``accuracy_reward`` reads mathematics only), ``choices``,
    and the other columns under their own names, for reward functions. Images are read
    when a row is: through ``images``, as they were for the scores. One that has vanished
    by then stops the training with a ``RapInputError`` that names the sample.

    A selection's samples are found in its data by id and content (``scores.match``),
    wherever they stand there now; ``id`` is the selection's.

    Raises ``RapInputError`` if there is no usable sample, the selection does not know its
    data, or a sample is not there as it was scored; ``datasets`` must be installed.
    """
    names, scored = None, None
    if isinstance(source, Selected):
        samples = source.require_samples()
        rows, places = _chosen(source, samples, pool)
        known = source.table.select(["id", "image_sha256"]).take(
            pa.array(places, pa.int64())
        )
        names, scored = (known[name].to_pylist() for name in known.column_names)
        if prompt_template is None:
            prompt_template = _scored_with(source.settings, "prompt_template")
        if system_prompt is None:
            system_prompt = _scored_with(source.settings, "system_prompt")
    else:
        samples = (
            source
            if isinstance(source, SampleSet)
            else open_samples(source, columns=columns, root=root)
        )
        rows = [i for i in range(len(samples)) if isinstance(samples[i], Sample)]
    if not rows:
        raise RapInputError("nothing to train on: no sample is selected")
    hf = datasets_library()
    if hf is None:
        raise RapInputError("prepare: needs the datasets library: pip install datasets")
    if names is None:
        ids = samples.ids
        names = [ids[i] for i in rows]
    table = hf.Dataset.from_dict({"id": names, "row": rows})
    template = prompt_template or PROMPT_TEMPLATE
    known_hashes = _hashes(rows, scored)
    _require_no_system_turn(samples, rows, system_prompt)
    return table.with_transform(
        _Rows(samples, template, max_pixels, known_hashes, system_prompt)
    )


def _require_no_system_turn(
    samples: SampleSet, rows: Sequence[int], system: str | None
) -> None:
    """Raises ``RapInputError`` where a sample would have two system turns."""
    for row in rows if system is not None else ():
        sample = samples[row]
        try:
            with_system(sample.turns if isinstance(sample, Sample) else (), system)
        except BadSample as bad:
            raise RapInputError(f"sample {sample.id[:80]!r}: {bad.message}") from bad


def _chosen(
    selection: Selected, samples: SampleSet, pool: bool
) -> tuple[list[int], list[int]]:
    """(rows of ``samples``, rows of the selection's table): of the kept samples, or of all
    that are usable, each where ``samples`` has it now."""
    if not pool:
        return selection.match(samples).tolist(), np.flatnonzero(selection.kept).tolist()
    found = rows_of_all(selection.table, samples, data=selection.settings.get("data"))
    places = [
        i for i, row in enumerate(found) if row >= 0 and isinstance(samples[row], Sample)
    ]
    return [int(found[i]) for i in places], places


def _hashes(
    rows: Sequence[int], scored: Sequence[str | None] | None
) -> dict[int, str] | None:
    """{row: the hashes of its images when they were scored}, where they are known."""
    if scored is None:
        return None
    return {row: one for row, one in zip(rows, scored, strict=True) if one is not None}


def require_selected(data: Any, selection: Selected | None) -> None:
    """Refuse rows of ``prepare`` in which an id of ``selection`` stands for another sample.
    Of other data only the ids are known, which the trainer looks for itself.

    Raises ``RapInputError`` if a sample is not there as it was scored, ``RapConfigError``
    if it is there under another id (row numbers, in another order)."""
    samples = getattr(_transform_of(data), "samples", None)
    if selection is None or samples is None:
        return
    plain = data.with_format(None)
    names = dict(zip(plain["row"][:], plain["id"][:], strict=True))
    wrong = [
        (name, names[row])
        for name, row in zip(selection.ids, selection.match(samples).tolist(), strict=True)
        if names.get(row, name) != name
    ]
    if wrong:
        raise RapConfigError(
            f"{len(wrong)} of {len(selection)} selected samples have other ids in "
            f"train_dataset, {wrong[0][0][:80]!r} is {wrong[0][1][:80]!r} there: make it "
            "of the selection, prepare(selection, pool=True)"
        )


def template_of_rows(data: Any) -> str | None:
    """The prompt template of what ``prepare`` made; None for other data."""
    return getattr(_transform_of(data), "template", None)


def system_of_rows(data: Any) -> str | None:
    """The system prompt of what ``prepare`` made; None for other data."""
    return getattr(_transform_of(data), "system", None)


def _transform_of(data: Any) -> Any:
    options = (getattr(data, "format", None) or {}).get("format_kwargs") or {}
    return options.get("transform")


def _scored_with(settings: Mapping[str, Any], name: str) -> str | None:
    scores = settings.get("scores") or {}
    return (scores.get("config") or {}).get(name)


class _Rows:
    """Row numbers -> the rows a trainer sees (a transform of ``datasets``)."""

    OURS = ("id", "prompt", "images", "solution", "choices")
    TAKEN = (
        *("image", "prompts", "completion", "completions", "completion_ids"),
        *("environment", "environments", "tools"),
    )

    def __init__(
        self,
        samples: SampleSet,
        template: str,
        max_pixels: int,
        scored: Mapping[int, str] | None = None,
        system: str | None = None,
    ) -> None:
        self.samples, self.template, self.max_pixels = samples, template, max_pixels
        self.scored, self.system = scored or {}, system
        named = samples.columns["images"]
        taken = {*self.OURS, *self.TAKEN, named, *(named or "").split(",")}
        self.extra = [name for name in samples.column_names if name not in taken]

    def __deepcopy__(self, memo: object) -> _Rows:
        return self  # `datasets` copies a transform with the table; this one never changes

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        if "row" not in batch:  # one column was asked for
            return {name: list(values) for name, values in batch.items()}
        numbers = batch["row"]
        names = batch.get("id") or [self.samples[i].id for i in numbers]
        rows = [self._row(i, name) for i, name in zip(numbers, names, strict=True)]
        return {name: [row[name] for row in rows] for name in (*self.OURS, *self.extra)}

    def _row(self, index: int, name: str) -> dict[str, Any]:
        sample = self.samples[index]
        if isinstance(sample, Bad):
            raise RapInputError(_gone(name, index, sample.code, sample.message))
        try:
            turns = with_system(sample.turns, self.system)
            images, hashes = load_images(sample, max_pixels=self.max_pixels)
        except BadSample as bad:
            raise RapInputError(_gone(name, index, bad.code, bad.message)) from bad
        if self.scored.get(index, ",".join(hashes)) != ",".join(hashes):
            why = "its image is another than the one that was scored"
            raise RapInputError(_gone(name, index, "changed", why))
        text = prompt_text(self.template, sample.question, sample.choices)
        ours = {
            "id": name,
            "prompt": _prompt(turns, text, len(images)),
            "images": images,
            "solution": answer_to_train(
                sample.reference, sample.choices, "{choices}" in self.template, latex=True
            ),
            "choices": list(sample.options),
        }
        return {name: sample.extra.get(name) for name in self.extra} | ours


def _prompt(turns: Sequence[Turn], text: str, count: int) -> list[dict[str, Any]]:
    """Chat messages: one text, before which TRL puts the images; in parts where there are
    earlier turns, or images inside the text."""
    if turns or stands_in_place([text], count):
        return chat(turns, text, count)
    return [{"role": "user", "content": text}]


def _gone(name: str, index: int, code: str, message: str) -> str:
    return (
        f"sample {name[:80]!r} (row {index}) can no longer be read: {code}: {message}. "
        "Training stops here; put it back and resume from the last checkpoint"
    )
