"""A selection as the files that trainers read; ``formats.TARGETS`` lists the trainers.

    sel.export("verl", "out/")        # or: rap export selection/ --to verl --out out/

What each loader takes is in ``formats``, one function a target. Here: which rows, with
which images, and a folder that appears whole or not at all.

**Data in the trainer's own form** are filtered, not written anew (``filter``): every column
stays as it is, so that the trainer's reward, weights and extra fields are those it would
have had. ``filter=False`` (``--rewrite``) writes them in the form of ``formats``. To
``parquet`` and ``jsonl`` any data set is filtered. The rest of this is about rewriting.

**Rows** are the kept samples in data-set order (verl and EasyR1 with ``shuffle=False`` take
the order of the file as the curriculum). The prompt is the one that was scored. Ids and
reasons travel along; ``rap_export.json`` has them for the trainers that drop them.

**Images** are exported byte for byte. They are re-encoded, as PNG of the scored pixels,
only where the trainer would decode other pixels (transparency, 16 bits, an EXIF rotation
that it does not apply).

**verl has no hook to select again while it trains** (its sampler hook was removed), so it
trains in phases: some steps, ``rap reselect`` on the rewards, the next phase from the
checkpoint. ``rap_reward.py`` beside the data grades as rap scored and logs by sample. As
a script (``$RUN`` holds the settings of the run that stay the same)::

    RUN="data.image_key=images data.shuffle=False trainer.total_epochs=1000 \\
        trainer.default_local_dir=ckpt trainer.resume_mode=auto trainer.save_freq=50 ..."
    selection=selection/
    for phase in 1 2 3 4; do
        rap export $selection --data data.jsonl --to verl --out phase$phase/
        python -m verl.trainer.main_ppo $RUN \\
            trainer.total_training_steps=$((50 * phase)) \\
            data.train_files=$PWD/phase$phase/train.parquet \\
            reward.custom_reward_function.path=$PWD/phase$phase/rap_reward.py \\
            +reward.custom_reward_function.reward_kwargs.log=$PWD/rewards$phase.jsonl
        rap reselect $selection --rewards rewards$phase.jsonl --out selection$phase/
        selection=selection$phase/
        # the place in the old file, and prompts of it still under way
        rm -rf ckpt/global_step_$((50 * phase))/{data.pt,transfer_queue}
    done

Given all logs so far (``--rewards`` once each, the oldest first), ``rap reselect`` weighs
old rewards less instead of forgetting them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config import MAX_IMAGE_PIXELS, PROMPT_TEMPLATE
from ..errors import RapConfigError, RapInputError, RapStoreError
from ..samples.answers import answer_to_train
from ..samples.images import decode, read_bytes, sniff
from ..samples.prompts import IMAGE, with_system
from ..samples.sample import Bad, BadSample, Sample, sample_sha256
from ..samples.sampleset import SampleSet
from ..samples.stated import prompt_text
from ..samples.text import flat
from ..scores.completions import Completions, as_completions
from ..scores.files import store_error
from ..scores.match import as_samples
from .filter import (
    PLAIN,
    added_columns,
    dropped_columns,
    is_filter,
    prompt_apart,
    scored_with,
    write_filtered,
)
from .folder import clear_up, put_in_place, refuse_to_replace, scratch_beside
from .formats import TARGETS, names_of
from .target import MANIFEST, Picture, Row, Target, Writing

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..scores.selected import Selected


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote. ``pictures``: number of images, ``encoded``: how many of them
    are not the original bytes. ``left_out``: ids that the form has no row for. ``notes``:
    what to tell the trainer, and what it cannot do. ``filtered``: the rows are those of the
    data set, as they came in. ``dropped``: its columns that the files do not have."""

    target: str
    folder: Path
    files: tuple[str, ...]
    samples: int
    pictures: int
    encoded: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    filtered: bool = False
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        same = self.pictures - self.encoded
        lines = [
            f"{self.samples} samples for {self.target} in {self.folder}",
            f"  files: {', '.join(self.files)}",
        ]
        if not self.filtered:
            lines.append(
                f"  {self.pictures} images: {same} byte for byte, {self.encoded} as PNG of "
                "the pixels that were scored"
            )
        if self.dropped:
            lines.append(
                f"  columns left out: {', '.join(self.dropped)} (--to parquet or jsonl "
                "keeps all of them)"
            )
        if self.left_out:
            shown = ", ".join(self.left_out[:5]) + (", ..." if self.left_out[5:] else "")
            lines.append(
                f"  {len(self.left_out)} samples left out, without a right and a wrong "
                f"completion: {shown}"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def export(
    selection: Selected,
    to: str,
    path: str | os.PathLike[str],
    *,
    data: object = None,
    overwrite: bool = False,
    max_images: int | None = None,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    media_root: str | os.PathLike[str] | None = None,
    data_source: str | None = None,
    completions: pa.Table | Completions | None = None,
    filter: bool | None = None,
    add: Sequence[str] = (),
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Exported:
    """Write the kept samples as files that trainer ``to`` reads unmodified.

    to: a trainer, one of ``formats.TARGETS``; or parquet or jsonl: the chosen rows as they
        came in, every column.
    path: a folder; one that is not empty is refused, with ``overwrite`` one that is not an
        export.
    data: the data set that was scored, as ``open_samples`` takes it, where it is not where
        the selection knows it from. Samples are found by id and content and compared by
        hash (``scores.match``), images when they are read.
    max_images: refuse samples with more images than the trainer is set up for.
    prompt_template, system_prompt: as ``ScoreConfig``'s; None is that of the scores.
    media_root: OpenRLHF and ms-swift read images by path: the folder where the trainer
        will find ``path``, if that is another machine's.
    data_source: verl picks its reward by it (``formats.VERL_SOURCE``).
    completions: LLaMA-Factory: a store's rollouts, as a table or to be read a shard at a
        time (``ScoreStore.completions()``); with them the export is DPO: a right completion
        chosen, a wrong one rejected.
    filter: whether rows that have the trainer's form already stay as they are (only
        ``data_source`` is replaced, if one is given): None: where the first has it, unless
        an option is given that only rewriting heeds (``prompt_template``, ``media_root``,
        ``system_prompt``, ``completions``); False: never; True: refuse others. None is
        refused where rows in the trainer's form were scored with a template or a system
        prompt, which they lack.
    add: columns of the selection's table (``reason``, ``D``, ``difficulty``, ...) to put
        beside those of rows that stay as they are, as ``rap_reason``, ...
    max_pixels: images with more are refused.

    Columns of the data set that a form has no place for are named by a ``UserWarning``, and
    in ``rap_export.json``.

    Raises ``RapConfigError`` for a wrong setting, ``RapInputError`` if nothing is selected,
    the data set is missing or not the one that was scored, or a sample cannot be exported
    (named), ``RapStoreError`` if the folder is in the way or cannot be written.
    """
    _require_usable(to, max_images, completions, data_source)
    if not len(selection):
        raise RapInputError("nothing to export: the selection keeps no sample")
    samples = _samples(selection, data)
    rewriting = {
        "prompt_template": prompt_template,
        "system_prompt": system_prompt,
        "media_root": media_root,
        "completions": completions,
    }
    asked = [name for name, value in rewriting.items() if value is not None]
    filtered = is_filter(to, selection, samples, filter, asked)
    apart = prompt_apart(selection)
    added = added_columns(selection, add, filtered)
    folder = Path(os.path.realpath(path))
    clear_up(folder)
    refuse_to_replace(folder, overwrite)
    template = prompt_template or scored_with(selection, "prompt_template", PROMPT_TEMPLATE)
    system = system_prompt or scored_with(selection, "system_prompt")
    target = TARGETS.get(to)
    reader = _Reader(samples, template, system, target, max_images, max_pixels)
    dropped = () if filtered else dropped_columns(samples, to)
    writing = Writing(
        folder=scratch_beside(folder),
        seen_as=folder if media_root is None else Path(media_root),
        data_source=data_source,
        completions=None if completions is None else _pairs(completions, selection),
    )
    try:
        if filtered:
            kept = ((s, row["id"]) for s, row, _ in reader.originals(selection))
            notes = write_filtered(kept, samples, to, writing, added)
            notes += [f"scored with {said}, which these rows lack" for said in apart]
        else:
            TARGETS[to].write(_checked(reader.rows(selection), to), writing)
            notes = TARGETS[to].notes(folder, reader.most)
        if not writing.samples:
            raise RapInputError(
                f"nothing to export: none of {len(selection)} samples has a right and a "
                "wrong completion"
            )
        told = {"filtered": filtered, "dropped": list(dropped)}
        files = _write_manifest(writing, selection, to, told)
        put_in_place(writing.folder, folder)
    except OSError as error:
        if isinstance(error, RapStoreError):
            raise
        raise store_error(f"{folder}: cannot be written", error) from error
    finally:
        shutil.rmtree(writing.folder, ignore_errors=True)
    return Exported(
        target=to,
        folder=folder,
        files=tuple(files),
        samples=len(writing.samples),
        pictures=reader.pictures,
        encoded=reader.encoded,
        left_out=tuple(writing.left_out),
        notes=tuple(notes),
        filtered=filtered,
        dropped=dropped,
    )


def _require_usable(
    to: str,
    max_images: int | None,
    completions: pa.Table | Completions | None,
    data_source: str | None,
) -> None:
    """Raises ``RapConfigError`` for what this target does not take."""
    if to not in (*TARGETS, *PLAIN):
        names = ", ".join((*TARGETS, *PLAIN))
        raise RapConfigError(f"to = {to!r}: expected one of {names}")
    if max_images is not None and max_images < 1:
        raise RapConfigError(f"max_images = {max_images}: expected at least 1")
    if completions is not None and not (to in TARGETS and TARGETS[to].pairs):
        takers = names_of(pairs=True)
        raise RapConfigError(f"completions: only {takers} takes them, not {to}")
    if data_source is not None and not (to in TARGETS and TARGETS[to].data_source):
        takers = names_of(data_source=True)
        raise RapConfigError(f"data_source: only {takers} takes one, not {to}")


# ---------------------------------------------------------------- the rows


def _samples(selection: Selected, data: object) -> SampleSet:
    """The data set: the given one, or the selection's own."""
    if data is None:
        return selection.require_samples()
    return as_samples(data, selection.settings.get("data"))


class _Reader:
    """Kept samples -> rows with their images, one at a time."""

    def __init__(
        self,
        samples: SampleSet,
        template: str,
        system: str | None,
        target: Target | None,
        max_images: int | None,
        max_pixels: int,
    ) -> None:
        self.samples, self.template, self.system = samples, template, system
        self.upright = target is None or target.upright
        self.latex = target is not None and target.latex
        self.max_images, self.max_pixels = max_images, max_pixels
        self.pictures = self.encoded = self.most = 0

    def rows(self, selection: Selected) -> Iterator[Row]:
        """The kept samples in data-set order. Raises ``RapInputError``, naming the one."""
        for sample, judged, originals in self.originals(selection):
            with _named(judged["id"]):
                row = self._row(sample, judged, originals)
            yield row

    def originals(
        self, selection: Selected
    ) -> Iterator[tuple[Sample, Mapping[str, Any], list[bytes]]]:
        """(sample, its row of the selection, the bytes of its images) of the kept samples,
        checked to be those that were scored. Raises ``RapInputError``, naming one."""
        columns = ["id", "reason", "sample_sha256"]
        kept = selection.of_kept(columns)
        places = selection.match(self.samples).tolist()
        for judged, place in zip(kept.to_pylist(), places, strict=True):
            sample = self.samples[place]
            with _named(judged["id"]):
                if isinstance(sample, Bad):
                    raise BadSample(sample.stage, sample.code, sample.message)
                found = self._read(sample, judged)
            yield sample, judged, found

    def _read(self, sample: Sample, judged: Mapping[str, Any]) -> list[bytes]:
        count = len(sample.images)
        if self.max_images is not None and count > self.max_images:
            raise BadSample(
                "data",
                "image_count",
                f"{count} images, the trainer takes {self.max_images}",
            )
        originals = [read_bytes(ref) for ref in sample.images]
        hashes = [hashlib.sha256(data).hexdigest() for data in originals]
        scored = judged["sample_sha256"]
        if scored is not None and scored != sample_sha256(sample, hashes):
            raise BadSample(
                "data", "changed", "its text or images are not those that were scored"
            )
        self.most = max(self.most, count)
        return originals

    def _row(
        self, sample: Sample, judged: Mapping[str, Any], originals: Sequence[bytes]
    ) -> Row:
        return Row(
            id=judged["id"],
            index=sample.index,
            prompt=prompt_text(self.template, sample.question, sample.choices),
            question=sample.question,
            answer=answer_to_train(
                sample.reference,
                sample.choices,
                "{choices}" in self.template,
                latex=self.latex,
            ),
            choices=sample.options,
            pictures=tuple(self._picture(data) for data in originals),
            source=sample.source,
            reason=judged["reason"],
            turns=with_system(sample.turns, self.system),
        )

    def _picture(self, data: bytes) -> Picture:
        """The bytes themselves if the trainer sees in them what was scored, else a PNG."""
        scored = decode(data, max_pixels=self.max_pixels)  # refuses what is damaged
        self.pictures += 1
        seen = _as_trainers_see(data, self.upright)
        if seen is None or seen.size != scored.size or seen.tobytes() != scored.tobytes():
            self.encoded += 1
            out = io.BytesIO()
            scored.save(out, "PNG")
            data = out.getvalue()
        return Picture(data, hashlib.sha256(data).hexdigest(), sniff(data).lower())


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What cannot be used is an error that names the sample."""
    try:
        yield
    except BadSample as bad:
        raise RapInputError(
            f"sample {name[:80]!r} cannot be exported: {bad.code}: {bad.message}"
        ) from bad


def _as_trainers_see(data: bytes, upright: bool) -> Image | None:
    """What a trainer gets out of the bytes: Pillow's RGB, upright where `datasets` decodes.
    None if that fails or warns (palettes with half transparent entries)."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(data)) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except MemoryError:
        raise
    except (
        Exception
    ):  # as in rap.samples.images: plugins raise anything, EXIF may be broken
        return None


def _checked(rows: Iterator[Row], to: str) -> Iterator[Row]:
    """Refuses text that a trainer would take for the place of an image or a video."""
    target = TARGETS[to]
    for row in rows:
        if row.turns and not target.turns:
            raise RapInputError(
                f"sample {row.id[:80]!r} cannot be exported: its prompt has turns before "
                f"the question, for which {to} has no place"
            )
        if row.in_place and not target.in_place:
            raise RapInputError(
                f"sample {row.id[:80]!r} cannot be exported: {to} puts images before the "
                "text, and this prompt has them inside; rap.trl.prepare keeps their places"
            )
        texts = [text.replace(IMAGE, "") if row.in_place else text for text in row.texts]
        if target.tags_in_answer:
            texts.append(row.answer)
        for tag in target.tags:
            if any(tag in text for text in texts):
                raise RapInputError(
                    f"sample {row.id[:80]!r} cannot be exported: its text holds {tag!r}, "
                    f"which {to} takes for a placeholder"
                )
        yield row


def _pairs(
    completions: pa.Table | Completions, selection: Selected
) -> dict[str, tuple[str, str]]:
    """{id: (first correct completion, first wrong one)}, both with the image; of the
    samples that have both. A shard at a time: only these texts stay."""
    kept = flat(selection.of_kept(["id"])["id"])
    held = as_completions(completions)
    assert held is not None
    found: dict[str, dict[bool, str]] = {}
    for table in held.tables():
        wanted = pc.and_(
            pc.equal(table["arm"], "image"),
            pc.is_in(table["id"].cast(kept.type), value_set=kept),
        )
        wanted = pc.and_(wanted, table["correct"].is_valid())
        rows = table.select(["id", "text", "correct"]).filter(wanted)
        for row in rows.to_pylist():
            if (row["text"] or "").strip():
                found.setdefault(row["id"], {}).setdefault(row["correct"], row["text"])
    return {k: (v[True], v[False]) for k, v in found.items() if len(v) == 2}


# ---------------------------------------------------------------- the manifest


def _write_manifest(
    writing: Writing, selection: Selected, to: str, told: Mapping[str, Any]
) -> list[str]:
    """``rap_export.json``: where the files come from, ids, reasons; returns the files."""
    files = sorted(p.name for p in writing.folder.iterdir())
    scores = selection.settings.get("scores") or {}
    table = selection.of_kept(["id", "reason"])
    reasons = dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    manifest = {
        "target": to,
        "files": files,
        "samples": [{"id": name, "reason": reasons[name]} for name in writing.samples],
        "left_out": writing.left_out,
        **told,
        "choose": dict(selection.settings["choose"]),
        "reselect": selection.settings.get("reselect"),
        "model": scores.get("model"),
        "rap_version": scores.get("rap_version"),
    }
    with open(writing.folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
    return [*files, MANIFEST]
