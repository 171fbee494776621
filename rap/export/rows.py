"""Exports the chosen rows unchanged: a filter over the data set, nothing rewritten.

What is Arrow (Parquet, ``datasets``) becomes ``train.parquet`` with the same columns, types
and metadata; the lines of a JSON Lines file become ``train.jsonl``, byte for byte; rows in
memory, and Arrow's where JSON Lines are asked for, are written as JSON. Images that a row
names by a relative path are copied beside it, under that path.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RapInputError, first_line
from ..samples.cells import image_cell
from ..samples.images import encode_image, read_bytes, sniff
from ..samples.sample import BadSample, Sample
from ..samples.sampleset import SampleSet
from .target import MANIFEST, Writing, parts

PARQUET, JSONL = "parquet", "jsonl"


@dataclass(frozen=True, slots=True)
class Chosen:
    """One kept sample: its row of the data set, its id, and what is put beside its columns
    or in their place (the same names for all)."""

    sample: Sample
    id: str
    put: Mapping[str, Any] = field(default_factory=dict)


def container_of(samples: SampleSet, to: str) -> str:
    """``parquet`` or ``jsonl``: what the rows are, or what the target ``to`` reads."""
    if to in (PARQUET, JSONL):
        return to
    return PARQUET if to == "verl" or samples.arrow([]) is not None else JSONL


def write_rows(
    chosen: Iterable[Chosen], samples: SampleSet, writing: Writing, container: str
) -> None:
    """Write ``train.parquet`` or ``train.jsonl`` and the images that go with it.

    Raises ``RapInputError`` if a column cannot be written so, ``BadSample`` if an image
    cannot be read."""
    if container == JSONL:
        _write_lines(chosen, samples, writing)
    elif samples.arrow([]) is None:
        _write_made(list(chosen), samples, writing)
    else:
        _write_arrow(chosen, samples, writing)


# ---------------------------------------------------------------- Parquet


def _write_arrow(chosen: Iterable[Chosen], samples: SampleSet, writing: Writing) -> None:
    """Rows of Arrow with their schema and its metadata, a few at a time."""
    writer: pq.ParquetWriter | None = None
    schema: pa.Schema | None = None
    try:
        for part in parts(chosen):
            table = samples.arrow([one.sample.index for one in part])
            assert table is not None
            table = _with(table.combine_chunks(), [one.put for one in part], schema)
            if writer is None:
                schema = table.schema
                writer = pq.ParquetWriter(writing.folder / "train.parquet", schema)
            writer.write_table(table)
            _note(part, samples, writing)
    finally:
        if writer is not None:
            writer.close()


def _with(
    table: pa.Table, puts: Sequence[Mapping[str, Any]], schema: pa.Schema | None
) -> pa.Table:
    """The table with the columns ``puts`` in their place, or after the others."""
    for name in puts[0]:
        at = table.schema.get_field_index(name)
        values = [put[name] for put in puts]
        if at < 0:
            wanted = None if schema is None else schema.field(name).type
            table = table.append_column(name, pa.array(values, wanted or _type(values)))
        else:
            field_ = table.schema.field(at)
            table = table.set_column(at, field_, pa.array(values, field_.type))
    return table


def _type(values: Sequence[Any]) -> pa.DataType | None:
    """Of a column that later rows must fit, too: text or a double."""
    if any(isinstance(value, str) for value in values):
        return pa.string()
    found = pa.array(values).type
    if pa.types.is_null(found):
        return pa.string()
    return pa.float64() if pa.types.is_floating(found) else found


def _write_made(chosen: Sequence[Chosen], samples: SampleSet, writing: Writing) -> None:
    """Rows of Python values as Parquet: every column, as far as Arrow has a type for it."""
    rows = [_simple(dict(samples.row(one.sample.index))) | one.put for one in chosen]
    names = list(dict.fromkeys([*samples.column_names, *(n for row in rows for n in row)]))
    columns: dict[str, pa.Array] = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RapInputError(
                f"column {name!r} has no one Arrow type: {first_line(error)}; --to jsonl "
                "keeps the rows as they are"
            ) from error
    pq.write_table(pa.table(columns), writing.folder / "train.parquet")
    _note(chosen, samples, writing)


def _simple(value: Any) -> Any:
    """A value without what Arrow does not know: decoded images, paths, tuples."""
    if isinstance(value, Mapping):
        return {str(name): _simple(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_simple(inner) for inner in value]
    if type(value).__module__.partition(".")[0] == "PIL":
        return {"bytes": encode_image(value), "path": None}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


# ---------------------------------------------------------------- JSON Lines


def _write_lines(chosen: Iterable[Chosen], samples: SampleSet, writing: Writing) -> None:
    """The lines as they stand in their file, or rows as JSON."""
    with open(writing.folder / "train.jsonl", "wb") as file:
        for part in parts(chosen):
            for one in part:
                line = None if one.put else samples.line(one.sample.index)
                if line is None:
                    row = _json(_whole_row(samples, one.sample.index), _saver(writing))
                    line = json.dumps(row | one.put, ensure_ascii=False).encode()
                file.write(line + b"\n")
            _note(part, samples, writing)


def _whole_row(samples: SampleSet, index: int) -> dict[str, Any]:
    table = samples.arrow([index])
    return dict(samples.row(index)) if table is None else table.to_pylist()[0]


def _saver(writing: Writing) -> Callable[[bytes], str | None]:
    """Bytes of an image -> the path of a file that holds them; None for other bytes."""

    def save(data: bytes) -> str | None:
        from hashlib import sha256

        try:
            kind = sniff(data).lower()
        except BadSample:
            return None
        name = f"images/{sha256(data).hexdigest()}.{'jpg' if kind == 'jpeg' else kind}"
        path = writing.folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return name

    return save


def _json(value: Any, save: Callable[[bytes], str | None]) -> Any:
    """A value as JSON has it: an image is a path, other bytes base64, a time ISO 8601."""
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else _json(value["bytes"], save)
        return {str(name): _json(inner, save) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner, save) for inner in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return save(bytes(value)) or base64.b64encode(bytes(value)).decode()
    if type(value).__module__.partition(".")[0] == "PIL":
        return save(encode_image(value))
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    plain = value is None or isinstance(value, (str, bool, int, float))
    return value if plain else str(value)


# ---------------------------------------------------------------- images beside the rows


def _note(part: Sequence[Chosen], samples: SampleSet, writing: Writing) -> None:
    for one in part:
        for name, path in _relative(one.sample, samples):
            _copy(Path(path), name, writing)
    writing.samples += [one.id for one in part]


def _relative(sample: Sample, samples: SampleSet) -> list[tuple[str, str]]:
    """(relative path that the row says, file) of its images that are files of the root."""
    files = [ref.path for ref in sample.images if ref.path is not None]
    if samples.root is None or not files:
        return []
    value = image_cell(samples.row(sample.index), samples.columns["images"])
    said = [_said(item) for item in (value if isinstance(value, list) else [value])]
    names = [name for name in said if name is not None]
    if len(names) != len(files):  # written elsewhere in the row
        names = [os.path.relpath(path, samples.root) for path in files]
    pairs = zip(names, files, strict=True)
    return [(os.path.normpath(n), path) for n, path in pairs if not os.path.isabs(n)]


def _said(item: Any) -> str | None:
    if isinstance(item, Mapping):
        item = None if item.get("bytes") is not None else item.get("path")
    text = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
    return None if text is None or text[:5].lower() == "data:" else text


def _copy(file: Path, name: str, writing: Writing) -> None:
    taken = name in (MANIFEST, "train.jsonl", "train.parquet", "dataset_info.json")
    if taken or name.split(os.sep)[0] == os.pardir:
        raise RapInputError(
            f"image {name[:200]!r} would lie in the place of the export's own"
        )
    path = writing.folder / name
    if not path.exists():
        from ..samples.sample import ImageRef

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read_bytes(ImageRef(None, str(file))))
