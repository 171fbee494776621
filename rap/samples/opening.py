"""What people hand in -> rows: by its type, a file's first bytes, a folder's files.

A file that is no data set is refused with a sentence that names what it is; a folder that
holds several splits asks which one, because train and test must never be mixed.
"""

from __future__ import annotations

import gzip
import os
import stat
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapInputError
from .encoding import LOOKED_AT, refuse_utf16, require_lines_of_utf8, require_utf8
from .jsonlines import JsonlRows
from .parquet import open_parquet, open_unlinked_parquet
from .separated import SEPARATORS, read_separated, separator_of
from .sources import (
    IN_MEMORY_BYTES,
    ArrowRows,
    DatasetRows,
    ListRows,
    Rows,
    read_saved,
)
from .splits import named_splits, require_one_split
from .streams import is_stream
from .strictjson import BOM, strict_json


def open_rows(source: object, *, keep: Sequence[str] = ()) -> tuple[Rows, Path | None]:
    """Rows, and the folder that image paths are relative to if none is given. ``keep``:
    columns that are wanted of all rows right away (``JsonlRows``)."""
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), keep)
    name = type(source).__name__
    if isinstance(source, (pa.Table, pa.RecordBatch, pa.RecordBatchReader)):
        return ArrowRows(_table_of(source), f"pyarrow.{name}"), None
    if isinstance(source, Mapping) and hasattr(source, "with_format"):
        raise RapInputError(
            f"{name}: choose one split: dataset[...] with one of {', '.join(source)}"
        )
    if hasattr(source, "with_format") and hasattr(source, "features"):
        if hasattr(source, "__len__"):
            return DatasetRows(source), None
    rows = _rows_in_memory(source)
    if rows is not None:
        return rows, None
    if is_stream(source):
        raise RapInputError(
            f"{name}: rows come one after the other, and rap reads them by number. Say how "
            "many to take: rap.samples.open_samples(data, limit=1000)"
        )
    raise RapInputError(
        f"data set is {name}; expected a datasets.Dataset, a list of dicts, or the path of "
        "a JSONL file, a Parquet file or a folder saved with save_to_disk"
    )


def _table_of(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatchReader):
        return source.read_all()
    return pa.Table.from_batches([source])


def _rows_in_memory(source: Any) -> Rows | None:
    """A list of dicts, a dict of columns, a table of pandas or Polars, or whatever gives
    dicts by number; None for anything else."""
    module, name = type(source).__module__.partition(".")[0], type(source).__name__
    if name == "DataFrame" and module == "pandas":
        rows = source.astype(object).where(source.notna(), None).to_dict("records")
        return ListRows(rows, "pandas.DataFrame")
    if name == "DataFrame" and module == "polars":
        return ListRows(source.to_dicts(), "polars.DataFrame")
    if isinstance(source, Mapping):
        return _rows_of_columns(source)
    if isinstance(source, (str, bytes, bytearray, type)):
        return None
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return ListRows(source, "list of dicts" if isinstance(source, Sequence) else name)
    return None


def _rows_of_columns(source: Mapping[Any, Any]) -> Rows | None:
    """A dict of columns: lists, arrays of NumPy, tensors; None for any other dict."""
    columns = {key: _column(value) for key, value in source.items()}
    lists = [column for column in columns.values() if column is not None]
    if not lists or len(lists) < len(columns):
        return None
    if len({len(column) for column in lists}) > 1:
        raise RapInputError(
            "data set is a dict of columns of different lengths: "
            + ", ".join(f"{k} {len(x)}" for k, x in zip(columns, lists, strict=True))
        )
    parts = zip(*lists, strict=True)
    return ListRows([dict(zip(columns, part, strict=True)) for part in parts])


def _column(value: Any) -> Sequence[Any] | None:
    """A column's values in a sequence; None if it is no column. Numbers become Python's:
    what has more than one dimension is images."""
    if isinstance(value, (list, tuple)):
        return value
    if hasattr(value, "to_pylist"):
        return list(value.to_pylist())
    dimensions = getattr(value, "ndim", None)
    if not isinstance(dimensions, int) or not dimensions or not hasattr(value, "tolist"):
        return None
    return value.tolist() if dimensions == 1 else [value[i] for i in range(len(value))]


def _open_path(path: Path, keep: Sequence[str]) -> tuple[Rows, Path]:
    try:
        if not path.exists() and any(sign in path.name for sign in "*?["):
            return _open_pattern(path, keep), path.parent.resolve()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_folder(path, keep), path
        if not stat.S_ISREG(mode):
            raise RapInputError(f"data set {path}: not a regular file")
        return _open_file(path, keep), path.resolve().parent
    except FileNotFoundError:
        raise RapInputError(f"data set {path}: no such file or folder") from None
    except (OSError, pa.ArrowException) as error:
        raise RapInputError(f"data set {path}: cannot be read: {error}") from error


def _open_file(path: Path, keep: Sequence[str], shown: Path | None = None) -> Rows:
    """shown: the compressed file that ``path`` was unpacked from."""
    shown = shown or path
    packed = "" if shown is path else " (gzip)"
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"PAR1":
        if packed:
            return open_unlinked_parquet(path, f"Parquet {shown}{packed}")
        return open_parquet([path], f"Parquet {shown}")
    if head.startswith(_ARROW):
        return _open_arrow(path, f"Arrow {shown}{packed}")
    if head.startswith(b"version https://git-lfs"):
        raise RapInputError(
            f"data set {shown}: a Git LFS pointer, not the file itself: git lfs pull"
        )
    if head[:2] == b"\x1f\x8b" and not packed:
        return _open_gzip(path, keep)
    refuse_utf16(head, shown)
    for start, what in _OTHER_FILES:
        if head.startswith(start):
            raise RapInputError(f"data set {shown}: {what}; unpack or convert it first")
    ending = Path(shown.name.removesuffix(".gz")).suffix.lower()
    if ending in SEPARATORS:
        separator = separator_of(path, SEPARATORS[ending])
        by = "" if separator == SEPARATORS[ending] else f", separated by {separator!r}"
        table = read_separated(path, separator, shown)
        return ArrowRows(table, f"{ending[1:].upper()} {shown}{packed}{by}")
    start = head.removeprefix(BOM).lstrip()
    if start[:1] == b"[":
        return ListRows(_read_array(path, shown), f"JSON {shown}{packed}")
    if b"\0" in head[:4]:
        raise RapInputError(f"data set {shown}: neither JSONL nor Parquet")
    found = _rows_of_object(path, start, shown)
    if found is None:
        with path.open("rb") as file:
            require_lines_of_utf8(file.read(LOOKED_AT), shown)
        return JsonlRows(path, f"JSONL {shown}{packed}", keep)
    return ListRows(found, f"JSON {shown}{packed}")


_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
"""How files begin that hold a table of Arrow, or a stream of batches."""


def _open_arrow(path: Path, kind: str) -> Rows:
    """An Arrow file or stream (Feather; `datasets` keeps its cache so), memory-mapped."""
    mapped = pa.memory_map(str(path))
    whole = mapped.read(6) == _ARROW[0]
    mapped.seek(0)
    try:
        opened = pa.ipc.open_file(mapped) if whole else pa.ipc.open_stream(mapped)
        return ArrowRows(opened.read_all(), kind)
    except (pa.ArrowException, OSError) as error:
        raise RapInputError(
            f"data set {path}: an Arrow file that is damaged: {error}"
        ) from None


_OTHER_FILES = (
    (b"\x1f\x8b", "compressed with gzip twice"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"SQLite format 3", "an SQLite data base"),
)


_UNPACKED_TIMES, _UNPACKED_BYTES = 200, 64 << 20
"""A gzip file that unpacks to more than 200 times its size, and to more than 64 MiB, is a
bomb: gzip gets to 1,032, texts of real data sets to a few tens."""


def _open_gzip(path: Path, keep: Sequence[str]) -> Rows:
    """A file compressed with gzip, unpacked into a temporary one. Raises
    ``RapInputError`` for one that unpacks to far more than data does."""
    most = max(_UNPACKED_BYTES, _UNPACKED_TIMES * path.stat().st_size)
    try:
        with (
            gzip.open(path) as packed,
            tempfile.NamedTemporaryFile(prefix="rap-", suffix=".data") as file,
        ):
            left = most
            while piece := packed.read(min(1 << 20, left + 1)):
                left -= len(piece)
                if left < 0:
                    raise RapInputError(
                        f"data set {path}: unpacks to over {most} bytes, over "
                        f"{_UNPACKED_TIMES} times its size; unpack it first if that is "
                        "meant"
                    )
                file.write(piece)
            file.flush()
            rows = _open_file(
                Path(file.name), keep, path
            )  # what is opened outlives the name
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RapInputError(f"data set {path}: the gzip file is damaged: {error}") from None
    return rows


def _rows_of_object(path: Path, start: bytes, shown: Path) -> list[Any] | None:
    """Rows of a file that is one JSON object: of rows by id, or around one list of rows.
    None if it is JSON Lines. Raises ``RapInputError`` if it holds several splits."""
    line = start.split(b"\n", 1)[0]
    if start[:1] != b"{" or (b"\n" in start and _is_object(line)):
        return None
    if path.stat().st_size > IN_MEMORY_BYTES:
        return None
    try:
        whole = strict_json(path.read_bytes().removeprefix(BOM))
    except ValueError:
        return None  # read as lines, which says what is wrong
    lists = [name for name, rows in whole.items() if _are_rows(rows)]
    splits = named_splits(lists)
    around = [name for name in _AROUND if name in lists] + splits
    if len(around) > 1 and splits:
        raise RapInputError(
            f"data set {shown}: holds several splits: {', '.join(around)}. They are not "
            "mixed: write the rows of one as a JSON array"
        )
    if around:
        return whole[around[0]]
    if whole and all(isinstance(row, dict) for row in whole.values()):
        named = not any("id" in row for row in whole.values())
        return [({"id": key} if named else {}) | row for key, row in whole.items()]
    return None


_AROUND = ("data", "rows", "samples", "examples", "questions", "annotations")
"""Names of the list of rows in a file that is one object."""


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) is dict for x in value)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(strict_json(line), dict)
    except ValueError:
        return False


def _read_array(path: Path, shown: Path) -> list[Any]:
    """A JSON file that is one array of objects, as EasyR1 and LLaMA-Factory have it."""
    try:
        return list(strict_json(path.read_bytes().removeprefix(BOM)))
    except ValueError as error:
        require_utf8(path, shown)
        raise RapInputError(f"data set {shown}: {error}") from None


def _open_folder(path: Path, keep: Sequence[str]) -> Rows:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if (p / "state.json").is_file())
        raise RapInputError(
            f"data set {path}: holds several splits; name one: "
            + ", ".join(str(path / name) for name in splits)
        )
    if (path / "state.json").is_file():
        return ArrowRows(read_saved(path), f"data set saved at {path}")
    files = _data_files(path)
    if not files:
        raise RapInputError(f"data set {path}: {_no_data_reason(path)}")
    require_one_split(path, files)
    return _open_files(path, files, keep)


_DATA_FILES = (
    (".parquet", ".jsonl"),
    (".json", ".jsonl.gz", ".json.gz", ".arrow", *SEPARATORS),
)
"""Endings of the files that a folder is looked through for: the second ones, where there
are none of the first."""


def _data_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    found = ([f for f in files if f.name.endswith(ends)] for ends in _DATA_FILES)
    return next(filter(None, found), [])


def _no_data_reason(path: Path) -> str:
    below = sorted(p for n in ("*", "*/*") for p in path.glob(n) if p.is_dir())
    folders = [folder for folder in below if _data_files(folder)]
    if not folders:
        return (
            "expected a folder saved with save_to_disk, one .jsonl file or .parquet files "
            "in it; found 0 .jsonl and 0 .parquet"
        )
    names = ", ".join(map(str, folders))
    if named_splits([folder.name for folder in folders]):
        return f"holds several splits; name one: {names}"
    return f"the data lies in folders; name one: {names}"


def _open_pattern(path: Path, keep: Sequence[str]) -> Rows:
    """Files of one folder whose names match, as in data/train-*.parquet."""
    files = sorted(file for file in path.parent.glob(path.name) if file.is_file())
    if not files:
        raise RapInputError(f"data set {path}: no file has such a name")
    require_one_split(path, files, by_stem=False)
    return _open_files(path, files, keep)


def _open_files(path: Path, files: Sequence[Path], keep: Sequence[str]) -> Rows:
    """One file of any kind, or several of Parquet."""
    if len(files) == 1:
        return _open_file(files[0], keep)
    if any(file.suffix != ".parquet" for file in files):
        raise RapInputError(
            f"data set {path}: several files are read together as Parquet only; name one: "
            + ", ".join(map(str, files[:20]))
        )
    return open_parquet(files, f"Parquet files in {path}")
