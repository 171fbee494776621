"""The folder of an export: it appears whole or not at all, and replaces nothing unasked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ..errors import RapStoreError, first_line
from ..scores.files import fsync_folder, store_error
from .target import MANIFEST


def refuse_to_replace(folder: Path, overwrite: bool) -> None:
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RapStoreError(
            f"{folder}: its {MANIFEST} cannot be read, so it is not replaced: "
            f"{first_line(error)}"
        ) from error


def clear_up(folder: Path) -> None:
    """Clears what killed exports left beside ``folder``: an unfinished one is removed, an
    older one that had been moved aside is moved back."""
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


def scratch_beside(folder: Path) -> Path:
    """An empty folder beside ``folder``, on the same file system."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise store_error(f"{folder}: cannot be made", error) from error
    return scratch


def put_in_place(scratch: Path, folder: Path) -> None:
    """Renames ``scratch`` to ``folder``; an older export is moved aside just before."""
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
