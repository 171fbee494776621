"""Data sets that are not on this machine: object stores through fsspec, the hub through
`datasets`. Nothing is fetched unless the caller allows it, and then a line says what from
where.

    s3://bucket/train.jsonl, gs://..., hf://datasets/ORG/NAME/data/train-*.parquet
                      files, copied once into a cache and opened there
    ORG/NAME, ORG/NAME:SPLIT
                      a data set of the hub, where no such folder is on this machine

``file://`` and ``memory://`` are on this machine. A copy is kept under what fsspec says of
the file (its ETag, size or time): one that changed is fetched again. An image that a row
names by a relative path is fetched when it is read, from beside the file that names it and
from nowhere else (``fetch_image``): never by an URL, and not where a ``root`` is given.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RapInputError, first_line, install, missing

log = logging.getLogger("rap")

HERE = ("file", "local", "memory")
"""Protocols that need no network."""
CACHE = "RAP_CACHE"
"""Environment variable: folder of the copies. Default: ``rap`` in the user's cache."""

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.\-]+)://.", re.IGNORECASE)
_NAME = r"[A-Za-z0-9][\w.\-]*"
_HUB = re.compile(rf"(?P<name>{_NAME}/{_NAME})(?::(?P<split>[\w.\-]+))?")
_ENDINGS = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".tsv")


_FOLDERS: dict[str, str] = {}
"""{folder of copies: URL of the folder that they are of}, of data sets that were opened
with ``allow_network`` in this process."""
_told: set[str] = set()


def folders() -> dict[str, str]:
    """The folders from which images may be fetched, for ``allow`` in another process."""
    return dict(_FOLDERS)


def allow(found: Mapping[str, str]) -> None:
    """Images in these folders may be fetched in this process, too."""
    _FOLDERS.update(found)


def fetch_image(path: str) -> bool:
    """Fetch an image of a data set that was fetched, by the path where its copy is missing;
    False for any other path, or where there is no such file.

    Raises ``OSError`` where it cannot be had."""
    folder = next((f for f in _FOLDERS if path.startswith(f + os.sep)), None)
    if folder is None:
        return False
    import fsspec  # type: ignore[import-untyped]

    base = name = _FOLDERS[folder]
    try:
        system, at = fsspec.core.url_to_fs(base)
        name = "/".join((at.rstrip("/"), *Path(path).relative_to(folder).parts))
        if not system.isfile(name):
            return False
        if base not in _told and not set(_protocols(system)) & set(HERE):
            _told.add(base)
            log.warning("network: images are fetched from %s when they are read", base)
        _copy(system, name, Path(path))
    except Exception as error:  # whatever a file system raises
        raise OSError(f"{name}: {first_line(error)}") from error
    return True


def is_url(source: object) -> bool:
    """Whether ``source`` is text like s3://bucket/file."""
    return isinstance(source, str) and _URL.match(source) is not None


def is_hub_name(source: object) -> bool:
    """Whether ``source`` is ORG/NAME or ORG/NAME:SPLIT and no path on this machine, nor one
    with the ending of a file."""
    if not isinstance(source, (str, os.PathLike)) or is_url(source):
        return False
    text = os.fspath(source)
    return (
        isinstance(text, str)
        and _HUB.fullmatch(text) is not None
        and not text.lower().endswith(_ENDINGS)
        and not os.path.exists(text)
        and not os.path.isdir(text.partition("/")[0])
    )


def fetched(source: str, *, allow_network: bool) -> Any:
    """What ``open_rows`` opens in place of an URL or a name of the hub: a path, or a
    ``datasets.Dataset``. Raises ``RapInputError``."""
    url = _URL.match(source)
    _require_no_secret(source)
    if url is None or url["protocol"].lower() not in HERE:
        if not allow_network:
            raise RapInputError(
                f"data set {source}: no such file or folder on this machine, and rap "
                "fetches nothing unless it is allowed to: --allow-network, or "
                "rap.samples.open_samples(..., allow_network=True)"
            )
    return _from_hub(source) if url is None else _from_url(source)


def _require_no_secret(source: str) -> None:
    """Stores, selections and lines on the terminal name a data set as it was given."""
    for part in source.split("::"):  # fsspec's chains: zip://x.jsonl::ftp://host/a.zip
        host = part.partition("://")[2].partition("/")[0]
        name, at, _ = host.rpartition("@")
        if at and ":" in name:
            raise RapInputError(
                "data set: its address holds a password, which would stay in the store; "
                "leave it to what fsspec reads: environment variables, ~/.config/fsspec, "
                "~/.netrc"
            )


def _from_hub(source: str) -> Any:
    if lacking := missing("datasets"):
        raise RapInputError(f"data set {source}: needs {lacking[0]}: {install('hf')}")
    import datasets

    found = _HUB.fullmatch(source)
    assert found is not None
    log.warning("network: %s is fetched from the hub with datasets", source)
    try:
        loaded = datasets.load_dataset(found["name"], split=found["split"])
    except Exception as error:  # of datasets, of the hub, of the connection
        raise RapInputError(f"data set {source}: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        return loaded
    if len(loaded) > 1:
        raise RapInputError(
            f"data set {source}: holds several splits; name one: "
            + ", ".join(f"{source}:{split}" for split in loaded)
        )
    return next(iter(loaded.values()))


def _from_url(source: str) -> Path:
    if lacking := missing("fsspec"):
        raise RapInputError(f"data set {source}: needs {lacking[0]}: {install('hf')}")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
        if "file" in _protocols(system):
            return Path(path)
        names = _files(system, path)
        folder = _cached(system, source, names)
        beside = names[0].rpartition("/")[0]
        allow({os.path.realpath(folder): system.unstrip_protocol(beside)})
    except RapInputError:
        raise
    except Exception as error:  # whatever a file system raises, a missing package included
        raise RapInputError(f"data set {source}: {first_line(error)}") from error
    return folder / Path(names[0]).name if len(names) == 1 else folder


def _protocols(system: Any) -> tuple[str, ...]:
    found = system.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _files(system: Any, path: str) -> list[str]:
    """The files that an URL names: one, those of a pattern, or the data of a folder."""
    if any(sign in path for sign in "*?["):
        names = sorted(system.glob(path))
    elif system.isdir(path):
        names = sorted(n for n in system.ls(path, detail=False) if n.endswith(_ENDINGS))
    else:
        names = [path] if system.exists(path) else []
    if not names:
        raise RapInputError(f"data set {path}: there is no such file")
    if len({Path(name).parent for name in names}) > 1:
        raise RapInputError(f"data set {path}: files of several folders; name one")
    return names


def _cached(system: Any, source: str, names: Sequence[str]) -> Path:
    """The folder with copies of these files as they are now; what it lacks is fetched."""
    key = hashlib.sha256(source.encode())
    for name in names:
        key.update(f"\0{name}\0{system.ukey(name)}".encode())
    folder = cache_folder() / "data" / key.hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [name for name in names if not (folder / Path(name).name).exists()]
    if lacking and not set(_protocols(system)) & set(HERE):
        size = sum(int(system.size(name) or 0) for name in lacking)
        log.warning(
            "network: %s: %d file%s of %.1f MB in all copied to %s",
            *(source, len(lacking), "s" * (len(lacking) > 1), size / 1e6, folder),
        )
    for name in lacking:
        _copy(system, name, folder / Path(name).name)
    return folder


def _copy(system: Any, name: str, to: Path) -> None:
    """Fetch a file, whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.{secrets.token_hex(4)}.tmp")
    try:
        system.get_file(name, str(partial))
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where copies are kept."""
    given = os.environ.get(CACHE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rap"
