"""Data set -> samples: rows, columns, ids, images by reference.

``open_samples`` takes what people have (a ``datasets.Dataset``, a list of dicts, JSONL
beside an image folder, Parquet in TRL's, verl's or EasyR1's columns, a ``save_to_disk``
folder) and answers with a ``SampleSet``: a sequence whose item ``i`` is a ``Sample``, or a
``Bad`` that says what is wrong with row ``i``. A broken row is never an exception; a data
set that cannot be used at all is a ``RapInputError`` before any work.

No row is trusted: an image path must stay inside ``root``, an URL is never fetched, text
that a Parquet file cannot hold is refused, JSON is parsed strictly. Nothing here decodes
an image (``rap.images`` does) and nothing but numpy and pyarrow is needed.

Memory: JSONL keeps 16 bytes a row (where the line starts, its number) and reads a line
when it is asked for; Parquet larger than 256 MB goes through a memory-mapped temporary
file; a data set saved on disk is memory-mapped. Besides that the ids are held, as text.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import threading
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import RapInputError

if TYPE_CHECKING:
    import datasets

MAX_LINE_BYTES = 256 << 20  # a JSONL line longer than this is no row
MAX_DIGITS = 4300  # CPython's own limit for int(text), whatever the process set
IN_MEMORY_BYTES = 256 << 20  # larger Parquet is spilled to a memory-mapped file
BOM = b"\xef\xbb\xbf"

# Where each role is looked for, best first; "a.b" is field b of struct column a.
# `question` comes before `prompt`: a prompt often holds a trainer's instructions too,
# and ScoreConfig.prompt_template writes ours.
CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "id": (
            "id",
            "rap_id",
            "qid",
            "question_id",
            "sample_id",
            "problem_id",
            "pid",
            "uid",
        ),
        "question": (
            "question",
            "problem",
            "prompt",
            "query",
            "messages",
            "instruction",
            "extra_info.question",
        ),
        "answer": (
            "answer",
            "final_answer",
            "reward_model.ground_truth",
            "ground_truth",
            "gold",
            "solution",
            "label",
            "target",
            "extra_info.answer",
        ),
        "choices": ("choices", "options"),
        "images": ("images", "image", "decoded_image", "image_path", "image_paths", "img"),
        "source": ("source", "data_source", "datasource", "dataset"),
    }
)
REQUIRED = ("question", "answer", "images")


class BadSample(Exception):
    """One sample cannot be used; scoring turns this into a quarantined row.

    ``stage`` is where it was found (``data``, ``image``, ``prompt``, ``model``,
    ``check``), ``code`` one of the quarantine codes, ``message`` a sentence.
    """

    def __init__(self, stage: str, code: str, message: str) -> None:
        super().__init__(f"{stage}: {code}: {message}")
        self.stage, self.code, self.message = stage, code, message

    def __reduce__(self) -> tuple[Any, ...]:
        return BadSample, (self.stage, self.code, self.message)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image, not yet read: its encoded bytes, or an absolute path inside the root."""

    data: bytes | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One usable row."""

    index: int
    """Row in the data set."""
    id: str
    """Opaque text, unique in the data set."""
    question: str
    """The user's text, image tags stripped."""
    answer: str
    """The reference answer as given: free text, a choice's letter or its text."""
    choices: tuple[str, ...]
    """Empty if the question is open."""
    images: tuple[ImageRef, ...]
    """At least one."""
    source: str | None
    """Group for budgets per source."""
    extra: Mapping[str, object]
    """The row's columns under their own names, images left out: what the user's reward
    function is called with."""


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be used, and why."""

    index: int
    id: str
    stage: str
    code: str
    message: str


# --------------------------------------------------------------------------- rows


class Rows(Protocol):
    """Where rows come from. ``row`` is thread-safe and raises ``BadSample``."""

    columns: list[str]
    image_columns: frozenset[str]  # known by type to hold images
    kind: str

    def __len__(self) -> int: ...
    def row(self, index: int) -> Mapping[str, Any]: ...
    def where(self, index: int) -> str: ...
    def dataset(self) -> datasets.Dataset | None: ...


class ListRows:
    """A list of dicts, as handed in."""

    kind = "list of dicts"
    image_columns: frozenset[str] = frozenset()

    def __init__(self, rows: Sequence[Mapping[str, Any]], kind: str = kind) -> None:
        self._rows, self.kind = rows, kind
        self.columns = _union_of_keys(r for r in rows if isinstance(r, Mapping))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if not isinstance(row, Mapping):
            raise BadSample("data", "bad_json", f"row is {type(row).__name__}, not a dict")
        return row

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        return None


class JsonlRows:
    """A JSONL file, one strict JSON object a line, read when asked for."""

    image_columns: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        self.kind = f"JSONL {path}"
        self._file = path.open("rb")
        self._start, self._number = _line_index(self._file)
        self.columns = _union_of_keys(self._sample_rows(1000))

    def _sample_rows(self, most: int) -> Iterator[Mapping[str, Any]]:
        for index in range(min(most, len(self))):
            try:
                yield self.row(index)
            except BadSample:
                continue

    def __len__(self) -> int:
        return len(self._number)

    def row(self, index: int) -> Mapping[str, Any]:
        start, end = self._start[index], self._start[index + 1]
        number = self._number[index]
        if end - start > MAX_LINE_BYTES:
            raise BadSample(
                "data", "bad_json", f"line {number}: longer than {MAX_LINE_BYTES} bytes"
            )
        # pread: no seek position that two threads would share
        line = os.pread(self._file.fileno(), end - start, start)
        try:
            row = strict_json(line.removeprefix(BOM) if index == 0 else line)
        except ValueError as error:
            raise BadSample("data", "bad_json", f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise BadSample("data", "bad_json", f"line {number}: not a JSON object")
        return row

    def where(self, index: int) -> str:
        return f"line {self._number[index]}"

    def dataset(self) -> datasets.Dataset | None:
        return None


class ArrowRows:
    """A ``pyarrow.Table``, in memory or memory-mapped."""

    def __init__(self, table: pa.Table, kind: str, dataset: Any = None) -> None:
        self.kind, self._table, self._dataset = kind, table, dataset
        self.columns = list(table.column_names)
        if len(set(self.columns)) < len(self.columns):
            raise RapInputError(f"{kind}: a column name is there twice: {self.columns}")
        self.image_columns = _image_columns(table.schema)
        self.want(self.columns)

    def want(self, columns: Sequence[str]) -> None:
        """Read only these columns: images nobody asked for stay on disk."""
        table = self._table.select([c for c in self.columns if c in set(columns)])
        self._batches = [b for b in table.to_batches() if b.num_rows]
        self._ends = np.cumsum([b.num_rows for b in self._batches])

    def __len__(self) -> int:
        return self._table.num_rows

    def row(self, index: int) -> Mapping[str, Any]:
        k = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[k]
        record = batch.slice(index - int(self._ends[k]) + batch.num_rows, 1)
        return _to_python(record)

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        if self._dataset is None:
            hf = _datasets()
            if hf is None:
                return None
            self._dataset = hf.Dataset(hf.table.InMemoryTable(self._table))
        return self._dataset


class DatasetRows:
    """A ``datasets.Dataset``: read as Arrow, so that its images are never decoded."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.kind = "datasets.Dataset"
        self._dataset = dataset
        self.columns = list(dataset.column_names)
        self.image_columns = _image_features(dataset.features.to_dict())
        self.want(self.columns)

    def want(self, columns: Sequence[str]) -> None:
        """Read only these columns: images nobody asked for stay on disk."""
        keep = [c for c in self.columns if c in set(columns)]
        self._arrow = self._dataset.with_format("arrow", columns=keep)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Mapping[str, Any]:
        return _to_python(self._arrow[index])

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        return self._dataset


def strict_json(text: bytes | str) -> Any:
    """``json.loads`` without its leniency; every failure is a ``ValueError``.

    Refused: invalid UTF-8, NaN and Infinity (also as 1e999), integers of more than 4,300
    digits, nesting deeper than the interpreter's stack.
    """
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_int=_int, parse_float=_float
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None


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


def _line_index(file: Any) -> tuple[array[int], array[int]]:
    """Byte offset of every line that is not blank (and of the end), and its number."""
    start, number = array("q"), array("q")
    offset = count = 0
    while line := file.readline(MAX_LINE_BYTES):
        begin, size, blank = offset, len(line), not line.removeprefix(BOM).strip()
        while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
            size += len(line)
        offset += size
        count += 1
        if blank and begin + size == offset and size < MAX_LINE_BYTES:
            # A blank line belongs to the row before it, and is blank to its parser.
            continue
        start.append(begin)
        number.append(count)
    start.append(offset)
    return start, number


def _union_of_keys(rows: Any) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        names.update((key, None) for key in row if isinstance(key, str))
    return list(names)


def _to_python(record: pa.RecordBatch | pa.Table) -> Mapping[str, Any]:
    try:
        return record.to_pylist()[0]
    except UnicodeDecodeError as error:  # Arrow does not check UTF-8 on reading
        raise BadSample(
            "data", "bad_text", f"text that is not UTF-8: {error.reason}"
        ) from None
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


def _datasets() -> Any:
    """The `datasets` library, or None."""
    try:
        import datasets
    except ImportError:
        return None
    return datasets


# ------------------------------------------------------------------ opening a source


def _open_rows(source: object) -> tuple[Rows, Path | None]:
    """Rows, and the folder that image paths are relative to if none is given."""
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source))
    if isinstance(source, pa.Table):
        return ArrowRows(source, "pyarrow.Table"), None
    name = type(source).__name__
    if hasattr(source, "with_format") and hasattr(source, "features"):
        if isinstance(source, Mapping):
            raise RapInputError(
                f"{name}: choose one split: dataset[...] with one of {', '.join(source)}"
            )
        if not hasattr(source, "__getitem__"):
            raise RapInputError(
                f"{name}: rows must be reachable by number; load it without streaming"
            )
        return DatasetRows(source), None  # type: ignore[arg-type]
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return ListRows(source), None
    raise RapInputError(
        f"data set is {name}; expected a datasets.Dataset, a list of dicts, or the path of "
        "a JSONL file, a Parquet file or a folder saved with save_to_disk"
    )


def _open_path(path: Path) -> tuple[Rows, Path]:
    try:
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
    if head.removeprefix(BOM).lstrip()[:1] == b"[":
        rows = strict_json_file(path)
        return ListRows(rows, f"JSON {path}")
    if b"\0" in head[:4] or head[:6] in (b"ARROW1", b"\xff\xff\xff\xff"):
        raise RapInputError(f"data set {path}: neither JSONL nor Parquet")
    return JsonlRows(path)


def strict_json_file(path: Path) -> list[Any]:
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
    if len(jsonl) == 1 and not parquet:
        return JsonlRows(jsonl[0])
    if parquet and not jsonl:
        return ArrowRows(_read_parquet(parquet), f"Parquet files in {path}")
    raise RapInputError(
        f"data set {path}: expected a folder saved with save_to_disk, one .jsonl file or "
        f".parquet files in it; found {len(jsonl)} .jsonl and {len(parquet)} .parquet"
    )


def _read_saved(path: Path) -> pa.Table:
    """A `save_to_disk` folder: Arrow streams, memory-mapped, in the order of state.json."""
    try:
        files = strict_json((path / "state.json").read_bytes())["_data_files"]
        names = [str(file["filename"]) for file in files]
    except (ValueError, KeyError, TypeError) as error:
        raise RapInputError(f"data set {path}: state.json is broken: {error}") from None
    if not names or any(Path(name).name != name for name in names):
        raise RapInputError(f"data set {path}: state.json names no file of this folder")
    tables = [
        pa.ipc.open_stream(pa.memory_map(str(path / name))).read_all() for name in names
    ]
    return pa.concat_tables(tables)


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
            return pa.concat_tables([f.read() for f in files])
        return _spill(files)
    finally:
        for file in files:
            file.close()


def _spill(files: Sequence[pq.ParquetFile]) -> pa.Table:
    schema = files[0].schema_arrow
    with tempfile.NamedTemporaryFile(prefix="rap-", suffix=".arrow") as spill:
        with pa.ipc.new_file(spill, schema) as writer:
            for file in files:
                for batch in file.iter_batches(batch_size=256):
                    writer.write_batch(batch)
        spill.flush()
        # The mapping outlives the name: nothing is left behind, even after kill -9.
        return pa.ipc.open_file(pa.memory_map(spill.name)).read_all()


# ------------------------------------------------------------------------- columns


def detect_columns(
    available: Sequence[str],
    first: Mapping[str, Any],
    image_columns: frozenset[str] = frozenset(),
    columns: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """Which column plays which role: ``{"question": "problem", "choices": None, ...}``.

    ``first`` is a row, to see which struct columns have the fields looked for. A column
    that `datasets` has typed as image wins over a better name without that type (in
    MathVista and MathVision ``image`` is only a path, ``decoded_image`` the image).
    ``columns`` overrides. Raises ``RapInputError`` on a role or column that does not
    exist, and when question, answer or images cannot be found; it lists what is there.
    """
    there = ", ".join(available) or "none"
    found: dict[str, str | None] = {}
    for role, names in CANDIDATES.items():
        usable = [name for name in names if _has(available, first, name)]
        if role == "images" and image_columns:
            typed = [name for name in usable if name in image_columns]
            usable = typed or sorted(image_columns & set(available)) or usable
        found[role] = usable[0] if usable else None
    for role, name in (columns or {}).items():
        if role not in CANDIDATES:
            raise RapInputError(
                f"columns: no role {role!r}; roles are {', '.join(CANDIDATES)}"
            )
        if not isinstance(name, str) or not _has(available, first, name):
            raise RapInputError(
                f"columns: no column {name!r} for {role}; there are: {there}"
            )
        found[role] = name
    for role in REQUIRED:
        if found[role] is None:
            raise RapInputError(
                f"no column for {role} found; there are: {there}. Name it with "
                f'columns={{"{role}": "..."}} (looked for {", ".join(CANDIDATES[role])})'
            )
    return found


def _has(available: Sequence[str], first: Mapping[str, Any], name: str) -> bool:
    if name in available:
        return True
    outer, dot, inner = name.partition(".")
    value = first.get(outer)
    return (
        bool(dot) and outer in available and isinstance(value, Mapping) and inner in value
    )


def _get(row: Mapping[str, Any], name: str | None) -> Any:
    if name is None:
        return None
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value.get(inner) if isinstance(value, Mapping) else None


# --------------------------------------------------------------- one row -> one sample

# `<image>` is the trainers' placeholder (one image each); `<image1>`, `<image 2>` are
# names inside a text (MATH-V, MMMU), often several for one composite picture.
_TAG = re.compile(r"<image ?(\d*)>", re.IGNORECASE)
_TAGS_AT_LINE_START = re.compile(r"(?im)^[ \t]*(?:<image ?\d*>[ \t]*)+")
_TAGS_INSIDE = re.compile(r"(?i)[ \t]*(?:<image ?\d*>[ \t]*)+")
_URL = re.compile(r"[a-z][a-z0-9+.\-]*://|file:", re.IGNORECASE)


def strip_image_tags(text: str) -> tuple[str, int]:
    """The text without ``<image>``, ``<image1>``, ``<image 2>`` tags, and how many plain
    ``<image>`` placeholders it had."""
    tags = _TAG.findall(text)
    if not tags:
        return text.strip(), 0
    text = _TAGS_INSIDE.sub(" ", _TAGS_AT_LINE_START.sub("", text))
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip(), sum(not number for number in tags)


def parse_row(
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
    *,
    index: int,
    id: str,
    root: str | None,
    image_columns: frozenset[str] = frozenset(),
) -> Sample:
    """One row -> ``Sample``. ``columns`` as from ``detect_columns``; ``root`` is a real
    path (links resolved) or None, where no path is allowed. Raises ``BadSample``."""
    question, placeholders = _question(_get(row, columns["question"]))
    choices = _choices(_get(row, columns["choices"]))
    answer = _answer(_get(row, columns["answer"]))
    if choices and resolve_choice(answer, choices) is None:
        raise BadSample(
            "data", "bad_answer", f"answer {answer[:80]!r} is not among the choices"
        )
    source = _get(row, columns["source"])
    images = _images(_get(row, columns["images"]), root)
    if not images:
        raise BadSample("data", "image_count", "the row has no image")
    if placeholders and placeholders != len(images):
        raise BadSample(
            "data",
            "image_count",
            f"{placeholders} <image> placeholders but {len(images)} images",
        )
    hidden = image_columns | {columns["images"]}
    return Sample(
        index=index,
        id=id,
        question=question,
        answer=answer,
        choices=choices,
        images=images,
        source=None if source is None else _clean(str(source), "source"),
        extra=MappingProxyType({k: v for k, v in row.items() if k not in hidden}),
    )


def _clean(text: str, name: str) -> str:
    """The text, if a Parquet file and a tokenizer can hold it."""
    if "\0" in text:
        raise BadSample("data", "bad_text", f"{name} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSample("data", "bad_text", f"{name} holds a lone surrogate") from None
    return text


def _question(value: Any) -> tuple[str, int]:
    """Question text without tags, and the number of image placeholders in it."""
    text, parts = _message_text(value) if isinstance(value, (list, tuple)) else (value, 0)
    if not isinstance(text, str):
        raise BadSample("data", "bad_answer", "question is missing or not text")
    text, placeholders = strip_image_tags(_clean(text, "question"))
    if not text:
        raise BadSample("data", "bad_answer", "question is empty")
    return text, placeholders + parts


def _message_text(messages: Sequence[Any]) -> tuple[str, int]:
    """What the user says in a list of chat messages, turns joined by a blank line, and the
    number of image parts. System and assistant turns are left out."""
    texts, parts = [], 0
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadSample("data", "bad_answer", "question is a list, but not of messages")
        if message.get("role") != "user":
            continue
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else [content]:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
                parts += 1
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif part is not None:
                raise BadSample("data", "bad_answer", "a message part is no text or image")
    return "\n\n".join(texts), parts


def _scalar_text(value: Any) -> str | None:
    """Text of a string, number or yes/no; None for anything else. Numbers in full."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (bool, int, float)):
        try:
            return str(value)
        except ValueError:  # more digits than int -> text allows
            return None
    return None


def _answer(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    text = _scalar_text(value)
    if text is None:
        raise BadSample("data", "bad_answer", f"answer is {_kind(value)}, not text")
    if not _clean(text, "answer").strip():
        raise BadSample("data", "bad_answer", "answer is empty")
    return text.strip()


def _kind(value: Any) -> str:
    return "missing" if value is None else type(value).__name__


def _choices(value: Any) -> tuple[str, ...]:
    """Choices as texts. A mapping letter -> text and a list written as text (as in MMMU)
    are understood; a choice that is only an image tag becomes its letter."""
    if isinstance(value, str):
        value = _list_in_text(value)
    if isinstance(value, Mapping):  # Arrow structs bring the keys other rows have as None
        value = [value[k] for k in sorted(value, key=str) if value[k] is not None]
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadSample("data", "bad_answer", f"choices are {_kind(value)}, not a list")
    out = []
    for k, item in enumerate(value):
        text = _scalar_text(item)
        if text is None:
            raise BadSample("data", "bad_answer", f"choice {k} is {_kind(item)}, not text")
        text, _ = strip_image_tags(_clean(text, f"choice {k}"))
        out.append(text or letter(k))
    return tuple(out)


def _list_in_text(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return strict_json(text)
    except ValueError:
        pass
    try:  # Python's own spelling: "['a', 'b']"; literals only, nothing is run
        return ast.literal_eval(text.strip()) if len(text) < 100_000 else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def letter(index: int) -> str:
    """0 -> "A", 1 -> "B", ...; beyond 26 the number itself, from 1."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


_LETTER = re.compile(r"[(\[{]?\s*([A-Za-z])\s*[)\]}.:]{0,2}")


def letter_index(text: str, n: int) -> int | None:
    """0-based choice that ``text`` names as a bare letter ("B", "(b)", "B."), of ``n``."""
    match = _LETTER.fullmatch(text.strip())
    if match is None:
        return None
    index = ord(match[1].upper()) - ord("A")
    return index if index < n else None


def plain(text: str) -> str:
    """Text for comparing choices: case, spaces, dollar signs and a final dot ignored."""
    return " ".join(text.replace("$", " ").split()).casefold().rstrip(". ")


def resolve_choice(answer: str, choices: Sequence[str]) -> int | None:
    """0-based choice that the reference answer means; None if it means none.

    A choice's own text comes first, its letter second: with choices ("B", "A") the answer
    "A" is the second. An answer like "(B) 12 cm" or "\\boxed{B}" is understood too.
    """
    if answer in choices:
        return list(choices).index(answer)
    for text in (answer, unwrap(answer)):
        texts = [plain(choice) for choice in choices]
        if plain(text) and texts.count(plain(text)) == 1:
            return texts.index(plain(text))
        by_letter = letter_index(text, len(choices))
        if by_letter is not None:
            return by_letter
        labelled = re.match(r"\s*[(\[]?([A-Za-z])[)\].:]+\s+(?=\S)", text)
        if labelled is not None:
            named = letter_index(labelled[1], len(choices))
            if named is not None and plain(text[labelled.end() :]) == texts[named]:
                return named
    return None


def unwrap(text: str) -> str:
    """The inside of ``<answer>...</answer>`` or ``\\boxed{...}`` around a whole answer."""
    text = text.strip()
    if text.startswith("<answer>") and text.endswith("</answer>"):
        text = text[len("<answer>") : -len("</answer>")].strip()
    inner = text.strip("$ ")
    if inner.startswith("\\boxed{") and inner.endswith("}"):
        text = inner[len("\\boxed{") : -1].strip()
    return text


def _images(value: Any, root: str | None) -> tuple[ImageRef, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_image(item, root) for item in items if item is not None)


def _image(item: Any, root: str | None) -> ImageRef:
    if isinstance(item, Mapping):
        data, path = item.get("bytes"), item.get("path")
        item = data if data is not None else path
    if isinstance(item, (bytes, bytearray, memoryview)):
        return ImageRef(bytes(item), None)
    if isinstance(item, str):
        if item[:5].lower() == "data:":
            return ImageRef(_data_uri(item), None)
        return ImageRef(None, _path_inside(item, root))
    if isinstance(item, os.PathLike):
        return ImageRef(None, _path_inside(os.fspath(item), root))
    if type(item).__module__.partition(".")[0] == "PIL":
        from .images import encode_image

        return ImageRef(encode_image(item), None)
    raise BadSample(
        "image", "image_unreadable", f"image is {_kind(item)}: no bytes or path"
    )


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadSample("image", "image_unreadable", "data: URI that is not base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample("image", "image_unreadable", f"data: URI: {error}") from None


def _path_inside(path: str, root: str | None) -> str:
    """Absolute path with every link resolved, if that is inside ``root``; nothing is
    opened. ``root`` itself must be resolved already."""
    shown = path[:200]
    if _URL.match(path):
        raise BadSample("image", "url_refused", f"{shown!r}: rap reads no URL")
    _clean(path, "image path")
    if not path:
        raise BadSample("image", "image_missing", "image path is empty")
    if root is None:
        raise BadSample(
            "image", "path_outside_root", f"{shown!r}: no folder is allowed; pass root="
        )
    try:
        real = os.path.realpath(os.path.join(root, path))
    except (OSError, ValueError) as error:
        raise BadSample("image", "image_missing", f"{shown!r}: {error}") from None
    if os.path.commonpath((root, real)) != root:
        raise BadSample(
            "image", "path_outside_root", f"{shown!r} leads out of the data folder"
        )
    return real


# --------------------------------------------------------------------- the sample set


class SampleSet(Sequence["Sample | Bad"]):
    """The rows of a data set, each a ``Sample`` or a ``Bad``, in data-set order.

    Reading an item parses one row; images are not touched. Safe to read from several
    threads at once.
    """

    def __init__(
        self, rows: Rows, columns: Mapping[str, str | None], root: str | None
    ) -> None:
        self._rows = rows
        self.columns: Mapping[str, str | None] = MappingProxyType(dict(columns))
        """Role -> column that plays it, None if none does."""
        self.root = root
        """Folder that image paths must stay in, links resolved; None: no paths."""
        self._ids, self._bad_ids = self._read_ids()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample | Bad:  # type: ignore[override]
        if not isinstance(index, (int, np.integer)):
            raise TypeError(f"index is {type(index).__name__}, expected int")
        i = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= i < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            row = self._rows.row(i)
            if i in self._bad_ids:
                raise BadSample("data", "bad_text", self._bad_ids[i])
            return parse_row(
                row,
                self.columns,
                index=i,
                id=self._ids[i],
                root=self.root,
                image_columns=self._rows.image_columns,
            )
        except BadSample as bad:
            return Bad(i, self._ids[i], bad.stage, bad.code, bad.message)

    @property
    def ids(self) -> list[str]:
        """Every row's id, in data-set order; a row without one has its place instead."""
        return list(self._ids)

    @property
    def column_names(self) -> list[str]:
        """All columns of the data set."""
        return list(self._rows.columns)

    def row(self, index: int) -> Mapping[str, Any]:
        """The original columns of one row; empty if the row cannot be read."""
        try:
            return self._rows.row(index)
        except BadSample:
            return {}

    def describe(self) -> str:
        """What was opened and which column plays which role, one line each."""
        lines = [f"{self._rows.kind}: {len(self):,} rows"]
        for role, name in self.columns.items():
            missing = "row numbers are used" if role == "id" else "none"
            lines.append(f"  {role:<8} <- {missing if name is None else name}")
        lines.append(f"  images inside {self.root or '(no folder: bytes only)'}")
        return "\n".join(lines)

    def _read_ids(self) -> tuple[list[str], dict[int, str]]:
        """One pass over the rows. Raises ``RapInputError`` on a duplicate id, naming both
        rows, and when no row at all can be used, with the counts."""
        ids: list[str | None] = []
        bad: dict[int, str] = {}
        seen: dict[str, int] = {}
        reasons: dict[str, list[str]] = {}
        usable = False
        for i in range(len(self._rows)):
            name: str | None = None
            try:
                row = self._rows.row(i)
                try:
                    name = self._id_of(row, i)
                except BadSample as error:
                    bad[i] = error.message
                    raise
                if not usable:
                    parse_row(row, self.columns, index=i, id="", root=self.root)
                    usable = True
            except BadSample as error:
                if not usable:
                    reasons.setdefault(error.code, []).append(error.message)
            if name is not None and (first := seen.setdefault(name, i)) != i:
                raise RapInputError(
                    f"id {name[:80]!r} is there twice: {self._rows.where(first)} and "
                    f"{self._rows.where(i)}"
                )
            ids.append(name)
        if not usable:
            raise RapInputError(self._nothing_usable(reasons))
        for i, name in enumerate(ids):
            if name is None:
                stand_in = self._rows.where(i).replace(" ", ":")
                while stand_in in seen:
                    stand_in += "'"
                seen[stand_in] = i
                ids[i] = stand_in
        return ids, bad  # type: ignore[return-value]

    def _id_of(self, row: Mapping[str, Any], index: int) -> str | None:
        column = self.columns["id"]
        if column is None:
            return str(index)
        value = _get(row, column)
        if value is None:
            return None
        text = _scalar_text(value)
        if text is None:
            raise BadSample("data", "bad_text", f"id is {_kind(value)}, not text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadSample("data", "bad_text", "id holds a lone surrogate") from None
        return text

    def _nothing_usable(self, reasons: Mapping[str, Sequence[str]]) -> str:
        if not len(self._rows):
            return f"{self._rows.kind}: the data set is empty"
        counts = "; ".join(
            f"{len(all_)} {code} (first: {all_[0]})" for code, all_ in reasons.items()
        )
        return f"{self._rows.kind}: 0 of {len(self._rows)} rows can be used: {counts}"

    def content_hash(self) -> str:
        """sha256 over ids, questions, answers, choices, sources and image paths, in order.

        One pass over the rows, kept. The images' own bytes are not in it: they are hashed
        one by one when they are read (``sample_sha256``), so that an image that changed
        shows in its row and does not make the whole data set another one.
        """
        with self._lock:
            return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update(json.dumps(self._text_of(self[i])).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def _text_of(self, item: Sample | Bad) -> list[object]:
        if isinstance(item, Bad):
            return [item.id, item.code]
        paths = [ref.path and os.path.relpath(ref.path, self.root) for ref in item.images]
        return [item.id, item.question, item.answer, item.choices, item.source, paths]

    @cached_property
    def dataset(self) -> datasets.Dataset | None:
        """The rows as a ``datasets.Dataset``, original columns untouched; built on first
        use for JSONL and lists. None if the `datasets` library is not installed."""
        given = self._rows.dataset()
        if given is not None or _datasets() is None:
            return given
        return _build_dataset([self.row(i) for i in range(len(self))], self._rows.columns)

    def take(self, indices: Sequence[int] | np.ndarray) -> datasets.Dataset:
        """The rows ``indices`` (any order) as a ``datasets.Dataset``, original columns
        untouched. Raises ``RapInputError`` if `datasets` is not installed."""
        wanted = [int(i) for i in indices]
        for i in wanted:
            if not 0 <= i < len(self):
                raise IndexError(f"sample {i} of {len(self)}")
        given = self._rows.dataset()
        if given is not None:
            return given.select(wanted)
        if _datasets() is None:
            raise RapInputError("take: needs the datasets library: pip install datasets")
        return _build_dataset([self.row(i) for i in wanted], self._rows.columns)


def _build_dataset(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> datasets.Dataset:
    """Rows of Python values as a data set. A column whose values have no one Arrow type is
    written as JSON text, with a warning, because Arrow cannot hold it as it is."""
    hf = _datasets()
    names = list(dict.fromkeys([*columns, *_union_of_keys(rows)]))
    out: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            hf.Dataset.from_dict({name: values})
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):
            warnings.warn(
                f"column {name!r} mixes types and becomes JSON text",
                UserWarning,
                stacklevel=3,
            )
            values = [None if v is None else json.dumps(v, default=repr) for v in values]
        out[name] = values
    return hf.Dataset.from_dict(out)


def open_samples(
    source: object,
    *,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> SampleSet:
    """Open a data set.

    source: ``datasets.Dataset`` (one split), ``pyarrow.Table``, list of dicts, or a path:
        JSONL (image paths relative to its folder), a JSON array, Parquet in TRL's, verl's
        or EasyR1's columns, a ``save_to_disk`` folder, a folder with one JSONL file or with
        Parquet files.
    columns: role -> column where detection is wrong, e.g. ``{"question": "q"}``; roles are
        id, question, answer, choices, images, source; ``"a.b"`` is field b of column a.
    root: folder that image paths are relative to and must stay in. Default: the data
        file's folder; for objects in memory none, and then images must be bytes.

    Ids become text; without an id column they are the row numbers. Every row is read once
    here, to find duplicate ids.

    Raises ``RapInputError``: not such a source, unreadable, no column for question, answer
    or images, a wrong name in ``columns``, a duplicate id, no usable row at all.
    """
    rows, default_root = _open_rows(source)
    if not len(rows):
        raise RapInputError(f"{rows.kind}: the data set is empty: 0 rows")
    folder = default_root if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise RapInputError(f"root {folder}: not a folder")
    if not rows.columns:
        raise RapInputError(f"{rows.kind}: none of {len(rows)} rows can be read")
    found = detect_columns(rows.columns, _first_row(rows), rows.image_columns, columns)
    if isinstance(rows, (ArrowRows, DatasetRows)):
        unused = rows.image_columns - {found["images"]}
        rows.want([name for name in rows.columns if name not in unused])
    return SampleSet(rows, found, None if folder is None else os.path.realpath(folder))


def _first_row(rows: Rows) -> Mapping[str, Any]:
    """Keys of the first rows, nested ones too, as one row."""
    merged: dict[str, Any] = {}
    for i in range(min(len(rows), 100)):
        try:
            row = rows.row(i)
        except BadSample:
            continue
        for key, value in row.items():
            if isinstance(value, Mapping):
                inner = merged.get(key)
                merged[key] = {**(inner if isinstance(inner, dict) else {}), **value}
            else:
                merged.setdefault(key, value)
    return merged


def load_images(
    sample: Sample, *, max_pixels: int, min_side: int = 2
) -> tuple[list[Any], list[str]]:
    """``rap.images.load_images``: RGB images and the sha256 of their encoded bytes."""
    from .images import load_images as load

    return load(sample.images, max_pixels=max_pixels, min_side=min_side)


def sample_sha256(sample: Sample, image_hashes: Sequence[str]) -> str:
    """sha256 of what a sample's score depends on: question, answer, choices, images."""
    fields = [sample.question, sample.answer, list(sample.choices), list(image_hashes)]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()
