"""Rollouts made elsewhere -> counts per sample: the reading half of
``Scores.from_rollouts``.

Input: one row a completion, with the sample's id, whether the image was there, and
whether the answer was right. Output: c1, m1, c0, m0 per sample as integers
(METHOD.md section 1), samples in the order of their first appearance. Everything is
counted with ``bincount``: 10^6 rows take well under a second once they are a table.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RapInputError
from .table import QUARANTINED, SCORE_SCHEMA, SCORED

ARMS = {"image": True, "counterfactual": False}
AS_JSON = {b"rap": b"json"}  # marks a column whose values had no common type
MAX_COUNT = 2**15 - 1  # c1, m1, c0, m0 are int16


def read_rollouts(source: object) -> pa.Table:
    """Any table as a ``pyarrow.Table``.

    ``source``: a pyarrow.Table, anything with ``__arrow_c_stream__`` (pandas, polars),
    a datasets.Dataset, a dict of columns, a list of dicts, or the path of a JSONL or
    Parquet file (told apart by their first bytes, not by their names).
    Raises ``RapInputError`` if it is none of these or cannot be read.
    """
    try:
        if isinstance(source, pa.Table):
            return source
        if isinstance(source, (str, os.PathLike)):
            return _read_path(Path(source))
        if isinstance(source, Mapping):
            return _from_columns({str(k): list(v) for k, v in source.items()})
        if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
            return _from_rows(source)
        if hasattr(source, "with_format"):  # datasets.Dataset
            return source.with_format("arrow")[:]
        if hasattr(source, "__arrow_c_stream__"):
            return pa.table(source)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        name = source if isinstance(source, (str, os.PathLike)) else type(source).__name__
        raise RapInputError(f"rollouts {name}: cannot be read: {error}") from error
    raise RapInputError(
        f"rollouts: got {type(source).__name__}; expected a table (pyarrow, pandas), a "
        "dict of columns, a list of dicts, or the path of a JSONL or Parquet file"
    )


def _read_path(path: Path) -> pa.Table:
    if not path.is_file():
        raise RapInputError(f"rollouts {path}: no such file")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        # read_table(path) would add hive columns found in the folder names
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read()
    return _from_rows(_read_jsonl(path))


def _read_jsonl(path: Path) -> list[Mapping[str, Any]]:
    """The rows that can be read; the others are named in one warning."""
    rows: list[Mapping[str, Any]] = []
    bad: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if b"\\u" in line:  # a lone surrogate can be read but never written
                    json.dumps(row, ensure_ascii=False).encode()
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                bad.append(number)
    if not rows:
        raise RapInputError(f"rollouts {path}: no line holds a JSON object")
    if bad:
        some = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        warnings.warn(
            f"rollouts {path}: {len(bad)} lines are not JSON objects and are left out "
            f"(lines {some})",
            UserWarning,
            stacklevel=2,
        )
    return rows


def _from_rows(rows: Sequence[object]) -> pa.Table:
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RapInputError(
                f"rollouts: row {number} is {type(row).__name__}, not a dict"
            )
        names.update(dict.fromkeys(row))
    return _from_columns({str(n): [row.get(n) for row in rows] for n in names})  # type: ignore[attr-defined]


def _from_columns(columns: Mapping[str, list[Any]]) -> pa.Table:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RapInputError(f"rollouts: columns differ in length: {lengths}")
    arrays = [_as_array(values) for values in columns.values()]
    fields = [
        pa.field(name, array.type, metadata=AS_JSON if as_json else None)
        for name, (array, as_json) in zip(columns, arrays, strict=True)
    ]
    return pa.table([array for array, _ in arrays], schema=pa.schema(fields))


def _as_array(values: list[Any]) -> tuple[pa.Array, bool]:
    """(array, is JSON text): a column that has no one type, or text that is no UTF-8,
    is kept as JSON text rather than lost; it can only be an extra column then."""
    try:
        return pa.array(values), False
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        texts = [None if v is None else json.dumps(v, default=str) for v in values]
        return pa.array(texts, pa.string()), True


def _column(table: pa.Table, name: str, role: str) -> pa.Array:
    if table.column_names.count(name) != 1:
        raise RapInputError(
            f"rollouts: {role} column {name!r} is not there (once); columns: "
            f"{', '.join(table.column_names)}"
        )
    if table.schema.field(name).metadata == AS_JSON:
        raise RapInputError(
            f"rollouts: {role} column {name!r} mixes types (or holds text that is not "
            "valid Unicode); its values must be of one kind"
        )
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # more than one chunk's worth of text
        column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def keep_rows(
    table: pa.Table,
    where: Mapping[str, object] | None,
    drop: Mapping[str, object] | None,
) -> pa.Table:
    """Rows for which every column of ``where`` has (one of) the given value(s) and no
    column of ``drop`` has. ``None`` stands for null."""
    for conditions, wanted in ((where, True), (drop, False)):
        for name, value in (conditions or {}).items():
            column = _column(table, name, "filter")
            mask = _is_one_of(column, value, name)
            table = table.filter(mask if wanted else pc.invert(mask))
    return table


def _is_one_of(column: pa.Array, value: object, name: str) -> pa.Array:
    values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
    try:
        wanted = pa.array([v for v in values if v is not None], column.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise RapInputError(
            f"rollouts: column {name!r} holds {column.type}, compared with {value!r}"
        ) from error
    mask = pc.fill_null(pc.is_in(column, value_set=wanted), False)
    return pc.or_(mask, pc.is_null(column)) if None in values else mask


def _ids(column: pa.Array, name: str) -> pa.Array:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise RapInputError(
            f"rollouts: column {name!r} holds {column.type}; ids are text or integers, "
            "of one kind throughout"
        )
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise RapInputError(f"rollouts: row {row} has no {name!r}")
    return column


def _flags(
    column: pa.Array, name: str, ids: pa.Array, words: Mapping[str, bool] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(value, known): a column of true/false, 1/0 or 1.0/0.0; null and NaN: unknown."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.bool_())
    if words is not None and _is_text(column):
        known_words = pa.array(list(words))
        codes = pc.index_in(column, value_set=known_words)
        table = pa.array(list(words.values()))
        bad = pc.and_(pc.is_valid(column), pc.is_null(codes))
        column = table.take(codes)
    elif pa.types.is_boolean(column.type):
        bad = None
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        zero, one = pa.scalar(0, column.type), pa.scalar(1, column.type)
        bad = pc.invert(pc.or_(pc.equal(column, zero), pc.equal(column, one)))
        column = pc.equal(column, one)
    else:
        expected = "true/false or 1/0" + (f" or one of {list(words)}" if words else "")
        raise RapInputError(
            f"rollouts: column {name!r} holds {column.type}; expected {expected}"
        )
    if bad is not None and pc.any(pc.fill_null(bad, False)).as_py():
        row = pc.index(pc.fill_null(bad, False), True).as_py()
        raise RapInputError(
            f"rollouts: column {name!r} has a value that is neither true nor false (sample "
            f"{ids[row].as_py()!r}); turn rewards into accepted or not first"
        )
    known = pc.is_valid(column).to_numpy(zero_copy_only=False)
    value = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return value, known


def _is_text(column: pa.Array) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def count_rollouts(
    table: pa.Table,
    *,
    id: str,
    with_image: str,
    correct: str,
    source: str | None,
    order: list[str] | None = None,
) -> tuple[pa.Table, dict[str, int]]:
    """(score table, counts of what was left out). See ``Scores.from_rollouts``.

    ``order``: the data set's ids, one row each; None is the order of first appearance.
    """
    if table.num_rows == 0:
        raise RapInputError("rollouts: no rows (after the filters)")
    ids = _ids(_column(table, id, "id"), id)
    image, has_arm = _flags(_column(table, with_image, "with_image"), with_image, ids, ARMS)
    right, judged = _flags(_column(table, correct, "correct"), correct, ids)
    names, codes = _codes(ids, order)
    n = len(names)

    used = has_arm & judged
    count: Callable[[np.ndarray], np.ndarray] = lambda rows: np.bincount(  # noqa: E731
        codes[rows], minlength=n
    )
    m1, m0 = count(used & image), count(used & ~image)
    c1, c0 = count(used & image & right), count(used & ~image & right)
    largest = int(max(m1.max(), m0.max()))
    if largest > MAX_COUNT:
        raise RapInputError(
            f"rollouts: a sample has {largest} completions with, or without, its image; at "
            f"most {MAX_COUNT}"
        )

    few = (m1 == 0) | (m0 == 0)
    columns: dict[str, pa.Array] = {
        "id": names,
        "index": pa.array(np.arange(n, dtype=np.int64)),
        "source": _sources(table, source, codes, n),
        "status": _choose_text(few, QUARANTINED, SCORED),
        "stage": _choose_text(few, "check", None),
        "code": _choose_text(few, "few_rollouts", None),
        "message": _few_message(few, m1, m0),
        "evidence": pa.array(["rollouts"] * n),
    }
    for name, counts in (("c1", c1), ("m1", m1), ("c0", c0), ("m0", m0)):
        columns[name] = pa.array(counts.astype(np.int16))
    cut = _cut(table)
    if cut is not None:
        columns["n_drawn"] = pa.array(count(has_arm).astype(np.int32))
        columns["n_cut"] = pa.array(count(has_arm & cut).astype(np.int32))
    full = {f.name: columns.get(f.name, pa.nulls(n, f.type)) for f in SCORE_SCHEMA}
    ignored = {
        "without_arm": int((~has_arm).sum()),
        "not_judged": int((has_arm & ~judged).sum()),
    }
    if ignored["without_arm"]:
        warnings.warn(
            f"rollouts: {ignored['without_arm']} rows without {with_image!r} are left out",
            UserWarning,
            stacklevel=3,
        )
    return pa.table(full, schema=SCORE_SCHEMA), ignored


def _cut(table: pa.Table) -> np.ndarray | None:
    """bool: rows cut at their length limit; None if no ``finish_reason`` says so."""
    if table.column_names.count("finish_reason") != 1:
        return None
    column = table["finish_reason"]
    if not _is_text(column):
        return None
    return pc.fill_null(pc.equal(column, "length"), False).to_numpy()


def _codes(ids: pa.Array, order: list[str] | None) -> tuple[pa.Array, np.ndarray]:
    """(sample ids, the sample of each row)."""
    if order is None:
        encoded = ids.dictionary_encode()  # codes in the order of first appearance
        codes, names = encoded.indices, encoded.dictionary.cast(pa.string())
    else:
        names = pa.array(order, pa.string())
        codes = pc.index_in(ids.cast(pa.string()), value_set=names)
        if codes.null_count:
            strange = ids.filter(pc.is_null(codes))
            raise RapInputError(
                f"rollouts: {len(strange)} rows are of samples that the data set does not "
                f"have, the first of {strange[0].as_py()!r}"
            )
    return names, codes.to_numpy(zero_copy_only=False)


def _choose_text(mask: np.ndarray, yes: str, no: str | None) -> pa.Array:
    return pc.if_else(pa.array(mask), pa.scalar(yes), pa.scalar(no, pa.string()))


def _few_message(few: np.ndarray, m1: np.ndarray, m0: np.ndarray) -> pa.Array:
    messages: list[str | None] = [None] * len(few)
    for i in np.flatnonzero(few):
        messages[i] = f"{m1[i]} graded rollouts with the image, {m0[i]} without"
    return pa.array(messages, pa.string())


def _sources(table: pa.Table, source: str | None, codes: np.ndarray, n: int) -> pa.Array:
    """The group of each sample: that of its first row that has one."""
    if source is None:
        return pa.nulls(n, pa.string())
    column = _column(table, source, "source")
    if not _is_text(column):
        column = column.cast(pa.string())
    rows = np.flatnonzero(pc.is_valid(column).to_numpy(zero_copy_only=False))
    samples, position = np.unique(codes[rows], return_index=True)
    first = np.full(n, -1, dtype=np.int64)
    first[samples] = rows[position]
    take = pa.array(first, mask=first < 0)
    return column.take(take).cast(pa.string())
