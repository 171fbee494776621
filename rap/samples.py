"""Data set -> samples: rows, columns, ids, images by reference.

``open_samples`` takes what people have (a ``datasets.Dataset``, a list of dicts, JSONL
beside an image folder, Parquet in TRL's, verl's or EasyR1's columns, a ``save_to_disk``
folder) and answers with a ``SampleSet``: a sequence whose item ``i`` is a ``Sample``, or a
``Bad`` that says what is wrong with row ``i``. A broken row is never an exception; a data
set that cannot be used at all is a ``RapInputError`` before any work.

No row is trusted: an image path must stay inside ``root``, an URL is never fetched, text
that a Parquet file cannot hold is refused, JSON is parsed strictly. Nothing here decodes
an image (``rap.images`` does) and nothing but numpy and pyarrow is needed.

Memory: what ``rap.sources`` keeps a row, and the ids, as text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .errors import RapInputError
from .sources import (
    ArrowRows,
    BadSample,
    DatasetRows,
    Rows,
    datasets_library,
    open_rows,
    strict_json,
    union_of_keys,
)

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

__all__ = [
    "Bad",
    "BadSample",
    "ImageRef",
    "Sample",
    "SampleSet",
    "load_images",
    "open_samples",
    "sample_sha256",
]

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
    ``columns`` overrides; an empty name says that an optional role has none.
    Raises ``RapInputError`` on a role or column that does not exist, and when question,
    answer or images cannot be found; it lists what is there.
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
        if not name and role not in REQUIRED:
            found[role] = None
            continue
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
        extra={k: v for k, v in row.items() if k not in hidden},
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
    """A list written as text, in JSON or Python's spelling (``['a', "b"]``)."""
    if not text.strip():
        return None
    try:
        return strict_json(text.encode())
    except ValueError:
        return _python_list(text)


_ITEM = re.compile(
    r"""\s*(?:'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)"|([^\s,'"\[\]]+))\s*(,|$)"""
)


def _python_list(text: str) -> Any:
    """A flat Python list. Not ``ast.literal_eval``: deep nesting can crash it."""
    body = text.strip()
    if not (body.startswith("[") and body.endswith("]")):
        return text
    body, at, items = body[1:-1].strip(), 0, []
    while at < len(body):
        match = _ITEM.match(body, at)
        if match is None:
            return text
        single, double, bare, _ = match.groups()
        quoted = single if single is not None else double
        items.append(bare if quoted is None else re.sub(r"\\(.)", _unescape, quoted))
        at = match.end()
    return items


def _unescape(match: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t"}.get(
        match[1], match[1] if match[1] in "\\'\"" else match[0]
    )


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


def as_number(text: str) -> float | None:
    """The number that ``text`` is, thousands commas allowed; None if it is none."""
    text = text.strip().strip("$ ")
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


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
        number = as_number(text)
        equal = [
            k
            for k, t in enumerate(choices)
            if number is not None and as_number(t) == number
        ]
        if len(equal) == 1:
            return equal[0]
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
        if item is None:
            raise BadSample("image", "image_missing", "neither bytes nor a path")
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
        self._require_a_usable_row()

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
                raise self._bad_ids[i]
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

    def _read_ids(self) -> tuple[list[str], dict[int, BadSample]]:
        """Every row's id, and the rows whose id cannot be used. Raises ``RapInputError`` on
        a duplicate, naming both rows."""
        ids: list[str | None] = []
        bad: dict[int, BadSample] = {}
        seen: dict[str, int] = {}
        for i, row in enumerate(self._rows.each(self._outer("id"))):
            name = None
            try:
                name = self._id_of(row, i)
            except BadSample as error:
                bad[i] = error
            if name is not None and (first := seen.setdefault(name, i)) != i:
                raise RapInputError(
                    f"id {name[:80]!r} is there twice: {self._rows.where(first)} and "
                    f"{self._rows.where(i)}"
                )
            ids.append(name)
        return [
            self._stand_in(i, seen) if name is None else name for i, name in enumerate(ids)
        ], bad

    def _stand_in(self, index: int, taken: dict[str, int]) -> str:
        """An id for a row that has none: where it is."""
        name = self._rows.where(index).replace(" ", ":")
        while name in taken:
            name += "'"
        taken[name] = index
        return name

    def _outer(self, *roles: str) -> list[str]:
        """The data set's columns that these roles are read from."""
        names = [self.columns[role] for role in roles]
        there = self._rows.columns
        outer = [n if n in there else n.partition(".")[0] for n in names if n is not None]
        return list(dict.fromkeys(outer))

    def _require_a_usable_row(self) -> None:
        """Raises ``RapInputError`` with the counts if there is none; stops at the first."""
        reasons: dict[str, list[Any]] = {}
        for i in range(len(self)):
            item = self[i]
            if isinstance(item, Sample):
                return
            reasons.setdefault(item.code, [0, item.message])[0] += 1
        counts = "; ".join(f"{n} {code} (first: {m})" for code, (n, m) in reasons.items())
        raise RapInputError(
            f"{self._rows.kind}: 0 of {len(self)} rows can be used: {counts}"
        )

    def _id_of(self, row: Mapping[str, Any] | BadSample, index: int) -> str | None:
        column = self.columns["id"]
        if column is None:
            return str(index)
        if isinstance(row, BadSample):
            return None
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

    def content_hash(self) -> str:
        """sha256 over ids, questions, answers, choices, sources and image paths as they
        stand in the rows, in order.

        One pass over the rows, kept. The images' own bytes are not in it: they are hashed
        one by one when they are read (``sample_sha256``), so that an image that changed
        shows in its row and does not make the whole data set another one.
        """
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        roles = ["question", "answer", "choices", "source"]
        if self.columns["images"] not in self._rows.image_columns:
            roles.append("images")
        digest = hashlib.sha256(json.dumps([self._ids, roles]).encode())
        for row in self._rows.each(self._outer(*roles)):
            if isinstance(row, BadSample):
                digest.update(row.message.encode("utf-8", "replace"))
            else:
                values = [_get(row, self.columns[role]) for role in roles]
                digest.update(_canonical(values))
            digest.update(b"\n")
        return digest.hexdigest()

    @cached_property
    def dataset(self) -> datasets.Dataset | None:
        """The rows as a ``datasets.Dataset``, original columns untouched; built on first
        use for JSONL and lists. None if the `datasets` library is not installed."""
        given = self._rows.dataset()
        if given is not None or datasets_library() is None:
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
        if datasets_library() is None:
            raise RapInputError("take: needs the datasets library: pip install datasets")
        return _build_dataset([self.row(i) for i in wanted], self._rows.columns)


def _canonical(values: object) -> bytes:
    """Values as JSON bytes; image bytes left out, anything odd by its type's name."""

    def other(value: object) -> object:
        is_image = isinstance(value, (bytes, bytearray, memoryview))
        return None if is_image else type(value).__name__

    try:
        return json.dumps(values, default=other, skipkeys=True).encode()
    except (RecursionError, ValueError):  # nested without end
        return b"?"


def _build_dataset(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> datasets.Dataset:
    """Rows of Python values as a data set. A column whose values have no one Arrow type is
    written as JSON text, with a warning, because Arrow cannot hold it as it is."""
    hf = datasets_library()
    names = list(dict.fromkeys([*columns, *union_of_keys(rows)]))
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
        id, question, answer, choices, images, source; ``"a.b"`` is field b of column a;
        ``""`` says that there is none (id, choices, source).
    root: folder that image paths are relative to and must stay in. Default: the data
        file's folder; for objects in memory none, and then images must be bytes.

    Ids become text; without an id column they are the row numbers. Every row is read once
    here, to find duplicate ids.

    Raises ``RapInputError``: not such a source, unreadable, no column for question, answer
    or images, a wrong name in ``columns``, a duplicate id, no usable row at all.
    """
    rows, default_root = open_rows(source)
    if not len(rows):
        raise RapInputError(f"{rows.kind}: the data set is empty: 0 rows")
    folder = default_root if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise RapInputError(f"root {folder}: not a folder")
    if not rows.columns:
        raise RapInputError(f"{rows.kind}: none of {len(rows)} rows can be read")
    found = detect_columns(rows.columns, _first_row(rows), rows.image_columns, columns)
    if isinstance(rows, (ArrowRows, DatasetRows)):
        rows.leave_out(rows.image_columns - {found["images"] or ""})
    return SampleSet(rows, found, None if folder is None else os.path.realpath(folder))


def _first_row(rows: Rows) -> Mapping[str, Any]:
    """Keys of the first rows, nested ones too, as one row."""
    merged: dict[str, Any] = {}
    for row in islice(rows.each(rows.columns), 100):
        if isinstance(row, BadSample):
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
) -> tuple[list[Image], list[str]]:
    """``rap.images.load_images``: RGB images and the sha256 of their encoded bytes."""
    from .images import load_images as load

    return load(sample.images, max_pixels=max_pixels, min_side=min_side)


def sample_sha256(sample: Sample, image_hashes: Sequence[str]) -> str:
    """sha256 of what a sample's score depends on: question, answer, choices, images."""
    fields = [sample.question, sample.answer, list(sample.choices), list(image_hashes)]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()
