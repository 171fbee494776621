"""CSV and TSV files as tables of texts and whole numbers, nothing else guessed."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ..errors import RapInputError
from .encoding import require_utf8

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHERS = (";", "\t", "|", ",")
"""What else a file may be separated by: where , is the decimal point, spreadsheets write
semicolons."""
BLOCK_BYTES = 64 << 20  # a row must be smaller: images as text are long
_WHOLE = r"^(?:0|-?[1-9][0-9]{0,17})$"


def separator_of(path: Path, usual: str) -> str:
    """By what a file is separated: ``usual``, or where that leaves its first line in one
    piece, what cuts it into the most."""
    if _columns(path, usual) > 1:
        return usual
    return max((usual, *OTHERS), key=lambda other: _columns(path, other))


def _columns(path: Path, separator: str) -> int:
    """Names in the first line; 0 where it cannot be read so."""
    try:
        return len(_first_row(path, separator))
    except RapInputError:
        return 0


def _first_row(path: Path, separator: str) -> list[str]:
    # what is not UTF-8 is said when the file is read
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return next(csv.reader(file, delimiter=separator, strict=True), [])
        except csv.Error as error:
            raise RapInputError(f"data set {path}: its first line: {error}") from None


def read_separated(path: Path, separator: str, shown: Path) -> pa.Table:
    """A file whose first line names the columns; an empty cell is None.

    A column of whole numbers, written as numbers are printed, is int64: it may hold the
    places of choices. Everything else stays as it is written: 007, 1.50, 12:30, true, N/A.
    ``shown``: the file's name for people. Raises ``RapInputError``,
    ``pyarrow.ArrowException``.
    """
    try:
        return _table(path, separator, shown)
    except (pa.ArrowException, UnicodeDecodeError):
        require_utf8(path, shown)
        raise


def _table(path: Path, separator: str, shown: Path) -> pa.Table:
    names = _first_row(path, separator)
    if not all(names):
        raise RapInputError(
            f"data set {shown}: its first line must name every column: {names[:20]}"
        )
    table = arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    for at, name in enumerate(table.column_names):
        column = table.column(at)
        whole = pc.all(pc.match_substring_regex(column, _WHOLE)).as_py()
        if whole and column.null_count < len(column):
            table = table.set_column(at, name, column.cast(pa.int64()))
    return table
