"""A selection as the files that trainers read: TRL, verl, EasyR1, OpenRLHF, ms-swift,
LLaMA-Factory.

    sel.export("verl", "out/")        # or: rap export selection/ --to verl --out out/

What each loader takes is in ``formats``, one function a target. Here: which rows, with
which pictures, and a folder that appears whole or not at all.

**Rows** are the kept samples in data-set order (verl and EasyR1 with ``shuffle=False`` take
the order of the file as the curriculum). The prompt is the one that was scored. Ids and
reasons travel along; ``rap_export.json`` has them for the trainers that drop them.

**Pictures** are passed on byte for byte wherever the trainer's decoder gets the pixels out
of them that were scored. Where it does not (transparency, 16 bits, a rotation in EXIF that
it does not apply) they are written anew as PNG of those pixels.

**verl has no hook to select again while it trains** (its sampler hook was removed), so it
trains in phases: some steps, ``rap reselect`` on the rewards, the next phase from the
checkpoint. ``rap_reward.py`` beside the data judges as rap scored and logs by sample. As
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

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapConfigError, RapInputError, RapStoreError, first_line
from ..samples.answers import answer_to_train
from ..samples.choices import prompt_text
from ..samples.images import decode, read_bytes, sniff
from ..samples.sample import Bad, BadSample, Sample, sample_sha256
from ..samples.sampleset import SampleSet, open_samples
from ..scores.files import fsync_folder, store_error
from .formats import MANIFEST, TARGETS, Picture, Row, Target, Writing

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..scores.selected import Selected

MAX_PIXELS = 50_000_000
"""As ``ScoreConfig.max_image_pixels``."""


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote. ``pictures``: how many, ``encoded``: how many of them are not
    the original bytes. ``left_out``: ids that the form has no row for. ``notes``: what to
    tell the trainer, and what it cannot do."""

    target: str
    folder: Path
    files: tuple[str, ...]
    samples: int
    pictures: int
    encoded: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        same = self.pictures - self.encoded
        lines = [
            f"{self.samples} samples for {self.target} in {self.folder}",
            f"  files: {', '.join(self.files)}",
            f"  {self.pictures} pictures: {same} byte for byte, {self.encoded} as PNG of "
            "the pixels that were scored",
        ]
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
    media_root: str | os.PathLike[str] | None = None,
    data_source: str | None = None,
    completions: pa.Table | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Exported:
    """Write the kept samples as files that trainer ``to`` reads unmodified.

    to: trl, verl, easyr1, openrlhf, ms-swift or llamafactory (SFT or DPO: it has no GRPO).
    path: a folder; one that is not empty is refused, with ``overwrite`` one that is not an
        export.
    data: the data set that was scored, as ``open_samples`` takes it, where the selection
        does not know it (a loaded one does not). Ids must stand at their rows; texts and
        pictures are compared by hash where a model scored them here.
    max_images: refuse samples with more pictures than the trainer is set up for.
    prompt_template: as ``ScoreConfig.prompt_template``; None is that of the scores.
    media_root: OpenRLHF and ms-swift read pictures by path: the folder where the trainer
        will find ``path``, if that is another machine's.
    data_source: verl picks its reward by it (``formats.VERL_SOURCE``).
    completions: LLaMA-Factory: a store's rollouts (``ScoreStore.read_rollouts``); with them
        the export is DPO: a right completion chosen, a wrong one rejected.
    max_pixels: pictures with more are refused.

    Raises ``RapConfigError`` for a wrong setting, ``RapInputError`` if nothing is selected,
    the data set is missing or not the one that was scored, or a sample cannot be exported
    (named), ``RapStoreError`` if the folder is in the way or cannot be written.
    """
    if to not in TARGETS:
        raise RapConfigError(f"to = {to!r}: expected one of {', '.join(TARGETS)}")
    if max_images is not None and max_images < 1:
        raise RapConfigError(f"max_images = {max_images}: expected at least 1")
    if completions is not None and to != "llamafactory":
        raise RapConfigError(f"completions: only LLaMA-Factory takes them, not {to}")
    if data_source is not None and to != "verl":
        raise RapConfigError(f"data_source: only verl takes one, not {to}")
    if not len(selection):
        raise RapInputError("nothing to export: the selection keeps no sample")
    samples = _samples(selection, data)
    folder = Path(os.path.realpath(path))
    _clear_up(folder)
    _refuse_to_replace(folder, overwrite)
    template = prompt_template or _template(selection.settings)
    target = TARGETS[to]
    reader = _Reader(samples, template, target, max_images, max_pixels)
    writing = Writing(
        folder=_scratch(folder),
        seen_as=folder if media_root is None else Path(media_root),
        data_source=data_source,
        completions=None if completions is None else _pairs(completions, selection.ids),
    )
    try:
        target.write(_checked(reader.rows(selection), to), writing)
        if not writing.samples:
            raise RapInputError(
                f"nothing to export: none of {len(selection)} samples has a right and a "
                "wrong completion"
            )
        files = _write_manifest(writing, selection, to)
        _put_in_place(writing.folder, folder)
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
        notes=tuple(target.notes(folder, reader.most)),
    )


# ---------------------------------------------------------------- the rows


def _samples(selection: Selected, data: object) -> SampleSet:
    """The data set, if it is the one that was scored: its ids stand at their rows."""
    source = selection.source if data is None else data
    if source is None:
        raise RapInputError(
            "the selection does not know its data set, which has the questions and the "
            "pictures: give it (--data FILE, or data=...)"
        )
    samples = source if isinstance(source, SampleSet) else open_samples(source)
    known = samples.ids
    for i, name in zip(selection.indices, selection.ids, strict=True):
        if not 0 <= i < len(known) or known[i] != name:
            there = "not there" if i >= len(known) else f"{known[i][:80]!r}"
            raise RapInputError(
                f"the data set is not the one that was scored: row {i} was {name[:80]!r} "
                f"and is {there}"
            )
    return samples


def _template(settings: Mapping[str, Any]) -> str:
    scores = settings.get("scores") or {}
    return (scores.get("config") or {}).get("prompt_template") or "{question}{choices}"


class _Reader:
    """Kept samples -> rows with their pictures, one at a time."""

    def __init__(
        self,
        samples: SampleSet,
        template: str,
        target: Target,
        max_images: int | None,
        max_pixels: int,
    ) -> None:
        self.samples, self.template, self.target = samples, template, target
        self.max_images, self.max_pixels = max_images, max_pixels
        self.pictures = self.encoded = self.most = 0

    def rows(self, selection: Selected) -> Iterator[Row]:
        """The kept samples in data-set order. Raises ``RapInputError``, naming the one."""
        columns = ["id", "index", "reason", "sample_sha256"]
        kept = selection.table.select(columns).filter(pa.array(selection.kept))
        for judged in kept.to_pylist():
            sample = self.samples[judged["index"]]
            try:
                if isinstance(sample, Bad):
                    raise BadSample(sample.stage, sample.code, sample.message)
                yield self._row(sample, judged)
            except BadSample as bad:
                raise RapInputError(
                    f"sample {judged['id'][:80]!r} cannot be exported: {bad.code}: "
                    f"{bad.message}"
                ) from bad

    def _row(self, sample: Sample, judged: Mapping[str, Any]) -> Row:
        count = len(sample.images)
        if self.max_images is not None and count > self.max_images:
            raise BadSample(
                "data",
                "image_count",
                f"{count} pictures, the trainer takes {self.max_images}",
            )
        originals = [read_bytes(ref) for ref in sample.images]
        hashes = [hashlib.sha256(data).hexdigest() for data in originals]
        scored = judged["sample_sha256"]
        if scored is not None and scored != sample_sha256(sample, hashes):
            raise BadSample(
                "data", "changed", "its text or pictures are not those that were scored"
            )
        self.most = max(self.most, count)
        return Row(
            id=sample.id,
            index=sample.index,
            prompt=prompt_text(self.template, sample.question, sample.choices),
            question=sample.question,
            answer=answer_to_train(
                sample.answer,
                sample.choices,
                "{choices}" in self.template,
                latex=self.target.latex,
            ),
            choices=sample.choices,
            pictures=tuple(self._picture(data) for data in originals),
            source=sample.source,
            reason=judged["reason"],
        )

    def _picture(self, data: bytes) -> Picture:
        """The bytes themselves if the trainer sees in them what was scored, else a PNG."""
        scored = decode(data, max_pixels=self.max_pixels)  # refuses what is damaged
        self.pictures += 1
        seen = _as_trainers_see(data, self.target.upright)
        if seen is None or seen.size != scored.size or seen.tobytes() != scored.tobytes():
            self.encoded += 1
            out = io.BytesIO()
            scored.save(out, "PNG")
            data = out.getvalue()
        return Picture(data, hashlib.sha256(data).hexdigest(), sniff(data).lower())


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
    """Refuses text that a trainer would take for the place of a picture or a film."""
    for row in rows:
        texts = [row.prompt]
        if to == "llamafactory":  # it counts placeholders in the answers, too
            texts.append(row.answer)
        for tag in TARGETS[to].tags:
            if any(tag in text for text in texts):
                raise RapInputError(
                    f"sample {row.id[:80]!r} cannot be exported: its text holds {tag!r}, "
                    f"which {to} takes for a placeholder"
                )
        yield row


def _pairs(completions: pa.Table, ids: list[str]) -> dict[str, tuple[str, str]]:
    """{id: (its first right completion, its first wrong one)} with the picture; of the
    samples that have both."""
    wanted = pc.and_(
        pc.equal(completions["arm"], "image"),
        pc.is_in(completions["id"], value_set=pa.array(ids, pa.string())),
    )
    rows = completions.select(["id", "text", "correct"]).filter(wanted)
    found: dict[str, dict[bool, str]] = {}
    for row in rows.to_pylist():
        if row["correct"] is not None and (row["text"] or "").strip():
            found.setdefault(row["id"], {}).setdefault(row["correct"], row["text"])
    return {k: (v[True], v[False]) for k, v in found.items() if len(v) == 2}


# ---------------------------------------------------------------- the folder


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """A folder with something in it stays, unless it is an export and may go."""
    try:
        there = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise store_error(f"{folder}: cannot be used", error) from error
    if there and not overwrite:
        raise RapStoreError(f"{folder}: is not empty; --force (overwrite=True) replaces it")
    if there and MANIFEST not in there:
        raise RapStoreError(
            f"{folder}: holds {there[0]!r} and no {MANIFEST}: it is no export, and is not "
            "replaced"
        )
    foreign = sorted(set(there) - _files_of(folder)) if there else []
    if foreign:
        raise RapStoreError(
            f"{folder}: holds {foreign[0]!r}, which is not of the export: it is not "
            "replaced"
        )


def _files_of(folder: Path) -> set[str]:
    """What the export in ``folder`` wrote there."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {MANIFEST, *map(str, files)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RapStoreError(
            f"{folder}: its {MANIFEST} cannot be read, so it is not replaced: "
            f"{first_line(error)}"
        ) from error


def _clear_up(folder: Path) -> None:
    """What exports that were killed left beside ``folder``: an unfinished one goes, an
    older one that had made room comes back."""
    if not folder.parent.is_dir():
        return
    head = f".{folder.name}."
    for left in sorted(folder.parent.iterdir()):
        pid, _, kind = left.name.removeprefix(head).partition(".")
        ours = left.name.startswith(head) and pid.isdigit() and kind in ("tmp", "old")
        if not ours or _runs(int(pid)):
            continue
        if kind == "old" and not folder.exists():
            os.replace(left, folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _scratch(folder: Path) -> Path:
    """An empty folder beside ``folder``, on the same file system."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise store_error(f"{scratch}: cannot be made", error) from error
    return scratch


def _write_manifest(writing: Writing, selection: Selected, to: str) -> list[str]:
    """``rap_export.json``: where the files come from, ids, reasons; returns the files."""
    files = sorted(p.name for p in writing.folder.iterdir())
    scores = selection.settings.get("scores") or {}
    table = selection.table.filter(pa.array(selection.kept))
    reasons = dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    manifest = {
        "target": to,
        "files": files,
        "samples": [{"id": name, "reason": reasons[name]} for name in writing.samples],
        "left_out": writing.left_out,
        "choose": dict(selection.settings["choose"]),
        "reselect": selection.settings.get("reselect"),
        "model": scores.get("model"),
        "rap_version": scores.get("rap_version"),
    }
    with open(writing.folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
    return [*files, MANIFEST]


def _put_in_place(scratch: Path, folder: Path) -> None:
    """``scratch`` becomes ``folder``; an older export makes room last."""
    for parent, _, names in os.walk(scratch):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(parent))
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(scratch, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
