"""One row of a data set -> one ``Sample``: columns, texts, choices, image references.

No row is trusted: an image path must stay inside ``root``, an URL is never fetched, text
that a Parquet file cannot hold is refused, JSON is parsed strictly. What cannot be used
raises ``BadSample``, which ``rap.samples`` turns into a ``Bad``.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import RapInputError
from .choices import letter, resolve_choice
from .sample import BadSample, ImageRef, Sample
from .sources import strict_json

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


def cell(row: Mapping[str, Any], name: str | None) -> Any:
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
    question, placeholders = _question(cell(row, columns["question"]))
    choices = _choices(cell(row, columns["choices"]))
    answer = _answer(cell(row, columns["answer"]))
    if choices and resolve_choice(answer, choices) is None:
        raise BadSample(
            "data", "bad_answer", f"answer {answer[:80]!r} is not among the choices"
        )
    source = cell(row, columns["source"])
    images = _images(cell(row, columns["images"]), root)
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


def scalar_text(value: Any) -> str | None:
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
    text = scalar_text(value)
    if text is None:
        raise BadSample("data", "bad_answer", f"answer is {kind_of(value)}, not text")
    if not _clean(text, "answer").strip():
        raise BadSample("data", "bad_answer", "answer is empty")
    return text.strip()


def kind_of(value: Any) -> str:
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
        raise BadSample("data", "bad_answer", f"choices are {kind_of(value)}, not a list")
    out = []
    for k, item in enumerate(value):
        text = scalar_text(item)
        if text is None:
            raise BadSample(
                "data", "bad_answer", f"choice {k} is {kind_of(item)}, not text"
            )
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
        "image", "image_unreadable", f"image is {kind_of(item)}: no bytes or path"
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
