"""Sources of rows: one class per kind of source, one way to open them.

Every kind returns rows as dicts of Python values, by number, and never decodes an
image. Memory: JSONL keeps 16 bytes a row (where the line starts, its number) and reads a
line when it is asked for; Parquet larger than 256 MB goes through a memory-mapped
temporary file; a data set saved on disk is memory-mapped.

JSON is parsed strictly (``strict_json``). A row that cannot be read is a ``BadSample``; a
source that cannot be read is a ``RapInputError``.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import stat
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RapInputError
from .sample import BadSample

if TYPE_CHECKING:
    import datasets

MAX_LINE_BYTES = 256 << 20  # a JSONL line longer than this is no row
MAX_DIGITS = 4300  # CPython's own limit for int(text), whatever the process set
MAX_DEPTH = 500  # nesting; the interpreter's own limit can be lifted into a crash
IN_MEMORY_BYTES = 256 << 20  # larger Parquet is spilled to a memory-mapped file
BOM = b"\xef\xbb\xbf"


# --------------------------------------------------------------------------- rows


class Rows(Protocol):
    """Rows by number. Every method is safe to call from several threads."""

    kind: str
    columns: list[str]
    image_columns: frozenset[str]  # known by their type to hold images

    def __len__(self) -> int: ...
    def row(self, index: int) -> Mapping[str, Any]:
        """One row; raises ``BadSample``."""

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        """All rows in order, with at least these columns: the cheap way to see many."""

    def where(self, index: int) -> str:
        """How a user finds the row: "line 7", "row 6"."""

    def dataset(self) -> datasets.Dataset | None:
        """The source as a data set, if it can be had without reading every row."""


class _Plain:
    """What sources without Arrow types have in common."""

    image_columns: frozenset[str] = frozenset()

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for index in range(len(self)):  # type: ignore[arg-type]
            yield _row_or_bad(self, index)

    def dataset(self) -> datasets.Dataset | None:
        return None


def _row_or_bad(rows: Any, index: int) -> Mapping[str, Any] | BadSample:
    try:
        return rows.row(index)
    except BadSample as bad:
        return bad


class ListRows(_Plain):
    """A list of dicts, as handed in."""

    def __init__(self, rows: Sequence[Any], kind: str = "list of dicts") -> None:
        self._rows, self.kind = rows, kind
        self.columns = union_of_keys(r for r in rows if isinstance(r, Mapping))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if not isinstance(row, Mapping):
            raise BadSample("data", "bad_json", f"row is {type(row).__name__}, not a dict")
        return row

    def where(self, index: int) -> str:
        return f"row {index}"


class JsonlRows(_Plain):
    """A JSONL file, one strict JSON object a line, read when asked for."""

    def __init__(self, path: Path, kind: str | None = None) -> None:
        self.kind = kind or f"JSONL {path}"
        with path.open("rb") as file:
            self._start, self._number = _line_index(file)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        rows = (_row_or_bad(self, i) for i in range(len(self)))  # a key may come late
        self.columns = union_of_keys(r for r in rows if isinstance(r, Mapping))

    def __len__(self) -> int:
        return len(self._number)

    def row(self, index: int) -> Mapping[str, Any]:
        start, end = self._start[index], self._start[index + 1]
        try:
            if end - start > MAX_LINE_BYTES:
                raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
            row = strict_json(self._line(index))
            if not isinstance(row, dict):
                raise ValueError(f"a JSON {type(row).__name__}, not an object")
        except ValueError as error:
            message = f"line {self._number[index]}: {error}"
            raise BadSample("data", "bad_json", message) from None
        return row

    def line(self, index: int) -> bytes:
        """The line as it stands in the file, without its end. Raises ``BadSample``."""
        self.row(index)  # a line that is no row is not handed on
        return self._line(index).rstrip(b"\r\n \t")

    def _line(self, index: int) -> bytes:
        start, end = self._start[index], self._start[index + 1]
        # pread: no seek position that two threads would share
        line = os.pread(self._fd, end - start, start)
        return line.removeprefix(BOM) if start == 0 else line

    def where(self, index: int) -> str:
        return f"line {self._number[index]}"


class ArrowRows:
    """A ``pyarrow.Table``, in memory or memory-mapped."""

    def __init__(self, table: pa.Table, kind: str) -> None:
        self.kind, self._table = kind, table
        self.columns = list(table.column_names)
        if len(set(self.columns)) < len(self.columns):
            raise RapInputError(f"{kind}: a column name is there twice: {self.columns}")
        self.image_columns = _image_columns(table.schema)
        self.leave_out(())

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these: images nobody asked for stay on disk."""
        self._table_read = self._table.select([c for c in self.columns if c not in columns])
        self._batches = [b for b in self._table_read.to_batches() if b.num_rows]
        self._ends = np.cumsum([b.num_rows for b in self._batches])

    def __len__(self) -> int:
        return self._table.num_rows

    def row(self, index: int) -> Mapping[str, Any]:
        k = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[k]
        return _to_python(batch.slice(index - int(self._ends[k]) + batch.num_rows, 1))

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for batch in self._table.select(list(columns)).to_batches(max_chunksize=1024):
            yield from _all_to_python(batch)

    def arrow(self, indices: Sequence[int]) -> pa.Table:
        """These rows, as they are."""
        # slices, not take: take joins all chunks first, which overflows 32-bit offsets
        rows = [self._table.slice(index, 1) for index in indices]
        return pa.concat_tables(rows) if rows else self._table.schema.empty_table()

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        hf = datasets_library()
        if hf is None:
            return None
        return hf.Dataset(hf.table.InMemoryTable(self._table))


class DatasetRows:
    """A ``datasets.Dataset``: read as Arrow, so that its images are never decoded."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.kind = "datasets.Dataset"
        self._dataset = dataset
        self.columns = list(dataset.column_names)
        self.image_columns = _image_features(dataset.features.to_dict())
        self.leave_out(())

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these: images nobody asked for stay on disk."""
        keep = [c for c in self.columns if c not in columns]
        self._arrow = self._dataset.with_format("arrow", columns=keep)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Mapping[str, Any]:
        return _to_python(self._arrow[index])

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        arrow = self._dataset.with_format("arrow", columns=list(columns))
        for start in range(0, len(self), 1024):
            yield from _all_to_python(arrow[start : start + 1024])

    def arrow(self, indices: Sequence[int]) -> pa.Table:
        """These rows, as they are, with the features in the schema's metadata."""
        table = self._dataset.with_format("arrow").select(indices)[:]
        return table.replace_schema_metadata(self._dataset.features.arrow_schema.metadata)

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        return self._dataset


def strict_json(text: bytes) -> Any:
    """``json.loads`` without its leniency; every failure is a ``ValueError``.

    Refused: what is not UTF-8, NaN and Infinity (also as 1e999), integers of more than
    4,300 digits, nesting deeper than 500.
    """
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(decoded) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        return _DECODER.decode(decoded)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside of strings."""
    brackets = re.sub(r'"(?:[^"\\]|\\.)*+"|[^\[\]{}]', "", text)
    steps = np.frombuffer(brackets.encode("ascii", "replace"), np.uint8)
    opens = (steps == ord("[")) | (steps == ord("{"))
    return int(np.cumsum(np.where(opens, 1, -1)).max(initial=0))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_int, parse_float=_float)


def _line_index(file: Any) -> tuple[array[int], array[int]]:
    """Byte offset of every line that is not blank, and of the end; number of every such
    line. Blank lines then follow their row's JSON, where white space means nothing."""
    start, number = array("q"), array("q")
    offset = count = 0
    while line := file.readline(MAX_LINE_BYTES):
        begin, blank = offset, True
        count += 1
        while line:
            blank = blank and not line.removeprefix(BOM).strip(b" \t\r\n")
            offset += len(line)
            line = b"" if line.endswith(b"\n") else file.readline(MAX_LINE_BYTES)
        if not blank:
            start.append(begin)
            number.append(count)
    start.append(offset)
    return start, number


def union_of_keys(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """Every text key, in order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update((key, None) for key in row if isinstance(key, str))
    return list(names)


def _all_to_python(batch: pa.RecordBatch | pa.Table) -> list[Mapping[str, Any] | BadSample]:
    try:
        return batch.to_pylist()
    except (ValueError, pa.ArrowException):  # find the rows that cannot
        return [_one_to_python(batch, i) for i in range(batch.num_rows)]


def _one_to_python(
    batch: pa.RecordBatch | pa.Table, index: int
) -> Mapping[str, Any] | BadSample:
    try:
        return _to_python(batch.slice(index, 1))
    except BadSample as bad:
        return bad


def _to_python(record: pa.RecordBatch | pa.Table) -> Mapping[str, Any]:
    try:
        return record.to_pylist()[0]
    except UnicodeDecodeError as error:  # Arrow does not check UTF-8 on reading
        raise BadSample("data", "bad_text", f"not UTF-8: {error.reason}") from None
    except (ValueError, pa.ArrowException) as error:
        raise BadSample("data", "bad_text", f"row cannot be read: {error}") from None


def _image_columns(schema: pa.Schema) -> frozenset[str]:
    """Columns that `datasets` has marked as images in the schema's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        return _image_features(strict_json(raw)["info"]["features"]) if raw else frozenset()
    except (ValueError, TypeError, KeyError):
        return frozenset()  # somebody else's metadata


def _image_features(features: Mapping[str, Any]) -> frozenset[str]:
    def holds_image(feature: Any) -> bool:
        if isinstance(feature, list):
            return any(map(holds_image, feature))
        return isinstance(feature, Mapping) and (
            feature.get("_type") == "Image" or holds_image(feature.get("feature"))
        )

    return frozenset(name for name, feature in features.items() if holds_image(feature))


def datasets_library() -> Any:
    """The `datasets` library, or None."""
    try:
        import datasets
    except ImportError:
        return None
    return datasets


# ------------------------------------------------------------------ opening a source


def open_rows(source: object) -> tuple[Rows, Path | None]:
    """Rows, and the folder that image paths are relative to if none is given."""
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source))
    if isinstance(source, pa.Table):
        return ArrowRows(source, "pyarrow.Table"), None
    name = type(source).__name__
    if isinstance(source, Mapping) and hasattr(source, "with_format"):
        raise RapInputError(
            f"{name}: choose one split: dataset[...] with one of {', '.join(source)}"
        )
    if hasattr(source, "with_format") and hasattr(source, "features"):
        if not hasattr(source, "__len__"):
            raise RapInputError(
                f"{name}: rows must be reachable by number; load it without streaming"
            )
        return DatasetRows(source), None
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return ListRows(source), None
    raise RapInputError(
        f"data set is {name}; expected a datasets.Dataset, a list of dicts, or the path of "
        "a JSONL file, a Parquet file or a folder saved with save_to_disk"
    )


def _open_path(path: Path) -> tuple[Rows, Path]:
    try:
        if "*" in path.name and not path.exists():
            return _open_pattern(path), path.parent.resolve()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_folder(path), path
        if not stat.S_ISREG(mode):
            raise RapInputError(f"data set {path}: not a regular file")
        return _open_file(path), path.resolve().parent
    except FileNotFoundError:
        raise RapInputError(f"data set {path}: no such file or folder") from None
    except (OSError, pa.ArrowException) as error:
        raise RapInputError(f"data set {path}: cannot be read: {error}") from error


def _open_file(path: Path) -> Rows:
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"PAR1":
        return ArrowRows(_read_parquet([path]), f"Parquet {path}")
    if head.startswith(b"version https://git-lfs"):
        raise RapInputError(
            f"data set {path}: a Git LFS pointer, not the file itself: git lfs pull"
        )
    if head[:2] == b"\x1f\x8b":
        return _open_gzip(path)
    for start, what in _OTHER_FILES:
        if head.startswith(start):
            raise RapInputError(f"data set {path}: {what}; unpack or convert it first")
    if path.suffix.lower() in _SEPARATORS:
        return ArrowRows(_read_separated(path), f"{path.suffix[1:].upper()} {path}")
    start = head.removeprefix(BOM).lstrip()
    if start[:1] == b"[":
        rows = _read_array(path)
        return ListRows(rows, f"JSON {path}")
    if b"\0" in head[:4]:
        raise RapInputError(f"data set {path}: neither JSONL nor Parquet")
    found = _rows_of_object(path, start)
    return JsonlRows(path) if found is None else ListRows(found, f"JSON {path}")


_OTHER_FILES = (
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"SQLite format 3", "an SQLite data base"),
)
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def _open_gzip(path: Path) -> Rows:
    """JSON Lines compressed with gzip, unpacked into a temporary file."""
    try:
        with (
            gzip.open(path) as packed,
            tempfile.NamedTemporaryFile(prefix="rap-", suffix=".jsonl") as file,
        ):
            shutil.copyfileobj(packed, file)
            file.flush()
            rows = JsonlRows(Path(file.name), f"JSONL {path} (gzip)")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RapInputError(f"data set {path}: the gzip file is damaged: {error}") from None
    if not rows.columns:
        raise RapInputError(f"data set {path}: what the gz file holds is not JSON Lines")
    return rows


def _read_separated(path: Path) -> pa.Table:
    """CSV or TSV with a line of names."""
    from pyarrow import csv

    options = csv.ParseOptions(
        delimiter=_SEPARATORS[path.suffix.lower()], newlines_in_values=True
    )
    convert = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    return csv.read_csv(path, parse_options=options, convert_options=convert)


def _rows_of_object(path: Path, start: bytes) -> list[Any] | None:
    """Rows of a file that is one JSON object: of rows by id, or around one list of rows.
    None if it is JSON Lines."""
    line = start.split(b"\n", 1)[0]
    if start[:1] != b"{" or (b"\n" in start and _is_object(line)):
        return None
    if path.stat().st_size > IN_MEMORY_BYTES:
        return None
    try:
        whole = strict_json(path.read_bytes().removeprefix(BOM))
    except ValueError:
        return None  # read as lines, which says what is wrong
    for name in _AROUND:
        rows = whole.get(name)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows
    if whole and all(isinstance(row, dict) for row in whole.values()):
        named = not any("id" in row for row in whole.values())
        return [({"id": key} if named else {}) | row for key, row in whole.items()]
    return None


_AROUND = ("data", "rows", "samples", "examples", "questions", "annotations")
"""Names of the list of rows in a file that is one object."""


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(strict_json(line), dict)
    except ValueError:
        return False


def _read_array(path: Path) -> list[Any]:
    """A JSON file that is one array of objects, as EasyR1 and LLaMA-Factory have it."""
    try:
        return list(strict_json(path.read_bytes().removeprefix(BOM)))
    except ValueError as error:
        raise RapInputError(f"data set {path}: {error}") from None


def _open_folder(path: Path) -> Rows:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if (p / "state.json").is_file())
        raise RapInputError(
            f"data set {path}: holds several splits; name one: "
            + ", ".join(str(path / name) for name in splits)
        )
    if (path / "state.json").is_file():
        return ArrowRows(_read_saved(path), f"data set saved at {path}")
    parquet, jsonl = sorted(path.glob("*.parquet")), sorted(path.glob("*.jsonl"))
    _refuse_splits(path, [*parquet, *jsonl])
    if len(jsonl) == 1 and not parquet:
        return JsonlRows(jsonl[0])
    if parquet and not jsonl:
        return ArrowRows(_read_parquet(parquet), f"Parquet files in {path}")
    raise RapInputError(
        f"data set {path}: expected a folder saved with save_to_disk, one .jsonl file or "
        f".parquet files in it; found {len(jsonl)} .jsonl and {len(parquet)} .parquet"
    )


_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testmini")


def split_of(name: str) -> str | None:
    """The split that a file's name begins or ends with: "train" of
    train-00000-of-00002.parquet; None if it names none."""
    words = re.split(r"[-_.]", name.lower())
    words = [w for w in words if not w.isdigit() and w not in ("of", "parquet", "jsonl")]
    found = [w for w in (words[:1] + words[-1:]) if w in _SPLITS]
    return found[0] if found else None


def _refuse_splits(path: Path, files: Sequence[Path]) -> None:
    """Training and test rows in one folder are never put together."""
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.name), []).append(file)
    if len(splits) < 2:
        inner = [d for d in sorted(path.iterdir()) if d.is_dir() and d.name in _SPLITS]
        if files or not inner:
            return
        names = ", ".join(str(d) for d in inner)
        raise RapInputError(f"data set {path}: holds several splits; name one: {names}")
    names = ", ".join(
        f"{name or 'others'} ({len(of)} file{'s' if len(of) > 1 else ''})"
        for name, of in splits.items()
    )
    raise RapInputError(
        f"data set {path}: holds several splits: {names}. They are not mixed: name a file, "
        f"or files by a pattern, as in {path}/train-*.parquet"
    )


def _open_pattern(path: Path) -> Rows:
    """Files of one folder whose names match, as in data/train-*.parquet."""
    files = sorted(path.parent.glob(path.name))
    parquet = [file for file in files if file.suffix == ".parquet"]
    if not files:
        raise RapInputError(f"data set {path}: no file has such a name")
    if len(files) == 1:
        return _open_file(files[0])
    if len(parquet) < len(files):
        raise RapInputError(
            f"data set {path}: several files are read together as Parquet only"
        )
    _refuse_splits(path.parent, files)
    return ArrowRows(_read_parquet(files), f"Parquet files {path}")


def _read_saved(path: Path) -> pa.Table:
    """A `save_to_disk` folder: Arrow streams, memory-mapped, in the order of state.json."""
    try:
        files = strict_json((path / "state.json").read_bytes())["_data_files"]
        names = [str(file["filename"]) for file in files]
    except (ValueError, KeyError, TypeError) as error:
        raise RapInputError(f"data set {path}: state.json is broken: {error}") from None
    if not names or any(Path(name).name != name for name in names):
        raise RapInputError(f"data set {path}: state.json names no file of this folder")
    maps = [pa.memory_map(str(path / name)) for name in names]
    return pa.concat_tables([pa.ipc.open_stream(m).read_all() for m in maps])


def _read_parquet(paths: Sequence[Path]) -> pa.Table:
    """The files' rows in order; large ones through a temporary memory-mapped file, because
    a row group of a Parquet file cannot be read in part."""
    files = [pq.ParquetFile(p, page_checksum_verification=True) for p in paths]
    try:
        size = sum(
            f.metadata.row_group(g).total_byte_size
            for f in files
            for g in range(f.metadata.num_row_groups)
        )
        if size <= IN_MEMORY_BYTES:
            return pa.concat_tables([f.read() for f in files], promote_options="default")
        return _spill(files)
    finally:
        for file in files:
            file.close()


def _spill(files: Sequence[pq.ParquetFile]) -> pa.Table:
    schema = pa.unify_schemas([file.schema_arrow for file in files])
    with tempfile.NamedTemporaryFile(prefix="rap-", suffix=".arrow") as spill:
        with pa.ipc.new_file(spill, schema) as writer:
            for file in files:
                for batch in file.iter_batches(batch_size=256):
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema))
        spill.flush()
        # The mapping outlives the name: nothing is left behind, even after kill -9.
        return pa.ipc.open_file(pa.memory_map(spill.name)).read_all()
