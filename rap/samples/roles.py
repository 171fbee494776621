"""Which column plays which role: by its name, by its type, by what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import RapInputError
from .cells import cell
from .prompts import (
    NO_VIDEOS,
    VIDEO_COLUMNS,
    has_videos,
    images_in,
    last_reply,
    messages_of,
)

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
            "questionId",
            "pid",
            "uid",
            "sample_index",
        ),
        "question": (
            "question",
            "problem",
            "prompt",
            "query",
            "messages",
            "conversations",
            "message",
            "conversation",
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
            "answers",  # of all people; the next column is only what most of them said
            "multiple_choice_answer",
            "direct_answers",
            "response",
            "output",
            "completion",
            "bbox",
        ),
        "choices": ("choices", "options"),
        "images": (
            "images",
            "image",
            "decoded_image",
            "image_path",
            "image_paths",
            "img",
            "imgname",
            "image_urls",
        ),
        "source": ("source", "data_source", "datasource", "dataset"),
    }
)

INDEX_CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "answer_index": ("correct_choice_idx", "answer_index", "answer_idx", "correct_idx"),
        "answer_number": (),
    }
)
"""Roles that take the place of ``answer``: a column that holds the right choice's place,
counted from 0 or from 1. They are among the columns only where one is played."""

PROMPT_CANDIDATES: Mapping[str, tuple[frozenset[str], str]] = MappingProxyType(
    {
        "system": (
            frozenset(
                "messages conversations message conversation instruction query".split()
            ),
            "system",
        ),
        "input": (frozenset(["instruction"]), "input"),
        "history": (frozenset(["instruction", "query"]), "history"),
    }
)
"""Roles of what stands in columns of its own in the rows of LLaMA-Factory and ms-swift:
{role: (columns of the question that it goes with, its column)}. The system prompt; what
follows the instruction; earlier turns as pairs. Among the columns only where played."""
REQUIRED = ("question", "answer", "images")

OPTION_STEM = re.compile(
    r"(?:(?:option|choice|opt|op|ending|candidate)s?[ _]?)?", re.IGNORECASE
)

IMAGE_STEM = re.compile(r"(?:decoded_)?(?:image|img)(?:_path)?[ _]?", re.IGNORECASE)
"""What the names of columns begin with that hold a choice, or an image, each."""


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
    unnamed: list[str] = []  # typed as images, under names that say nothing
    given = {**(columns or {})}
    for role, names in CANDIDATES.items():
        usable = [name for name in names if _has(available, first, name)]
        if role == "images" and image_columns:
            typed = [name for name in usable if name in image_columns]
            unnamed = [] if typed else [n for n in available if n in image_columns]
            usable = typed or unnamed or usable
        if role == "images":
            usable = _seen(usable, first)
        found[role] = usable[0] if usable else None
    if found["images"] is None or found["images"] in unnamed:
        found["images"] = _spread(available, IMAGE_STEM, "01") or found["images"]
    if found["images"] in unnamed and len(unnamed) > 1 and "images" not in given:
        raise RapInputError(
            f"several columns hold images: {', '.join(unnamed)}. Name the one to use, or "
            'several by commas, with columns={"images": "..."} (--columns images=...)'
        )
    found["choices"] = found["choices"] or _spread(available, OPTION_STEM, "aA01")
    roles = (*CANDIDATES, *INDEX_CANDIDATES, *PROMPT_CANDIDATES)
    for role, name in given.items():
        if role not in roles:
            turned = f'; the role comes first: {{"{name}": "{role}"}}' * (name in roles)
            raise RapInputError(
                f"columns: no role {role!r}; roles are {', '.join(roles)}{turned}"
            )
        if not name and role not in REQUIRED:
            if role in CANDIDATES:
                found[role] = None
            continue
        if not isinstance(name, str) or not _has(available, first, name):
            raise RapInputError(
                f"columns: no column {name!r} for {role}; there are: {there}"
            )
        found[role] = name
    _find_index(found, given, available)
    _find_in_chat(found, first)
    found["images"] = found["images"] or _inside(first, CANDIDATES["images"])
    if not given.keys() >= CANDIDATES.keys():  # else all is known, as it was when scored
        _find_beside(found, given, first)
    for role in REQUIRED:
        if found[role] is None:
            videos = _videos(found, first) if role == "images" else ""
            raise RapInputError(
                f"no column for {role} found; {videos}there are: {there}. Name it with "
                f'columns={{"{role}": "..."}} (--columns {role}=...; looked for '
                f"{', '.join(CANDIDATES[role])})"
            )
    return found


def _seen(usable: list[str], first: Mapping[str, Any]) -> list[str]:
    """Columns of images, the one first that holds an image where others hold its path."""
    whole = [name for name in usable if isinstance(cell(first, name), (bytes, Mapping))]
    whole += [
        name
        for name in usable
        if type(cell(first, name)).__module__.partition(".")[0] in ("PIL", "numpy", "torch")
    ]
    paths = usable and isinstance(cell(first, usable[0]), str)
    return [*whole, *usable] if paths and whole else usable


def _inside(first: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first field of a column that has one of these names: media.image."""
    for outer, value in first.items():
        if isinstance(value, Mapping):
            inner = next((name for name in names if value.get(name) is not None), None)
            if inner is not None:
                return f"{outer}.{inner}"
    return None


def _find_beside(
    found: dict[str, str | None], given: Mapping[str, str], first: Mapping[str, Any]
) -> None:
    """The system prompt, the rest of an instruction, earlier turns: in their columns."""
    for role, (questions, name) in PROMPT_CANDIDATES.items():
        value = first.get(name)
        kind = (list, tuple) if role == "history" else str
        if role not in given and found["question"] in questions and isinstance(value, kind):
            found[role] = name


def _videos(found: Mapping[str, str | None], first: Mapping[str, Any]) -> str:
    """Where the videos are, for a data set without images; "" for none."""
    name = next((name for name in VIDEO_COLUMNS if first.get(name)), None)
    if name is None and has_videos(messages_of(cell(first, found["question"])) or ()):
        name = found["question"]
    return "" if name is None else f"column {name!r} holds videos; {NO_VIDEOS}; "


def _find_index(
    found: dict[str, str | None], given: Mapping[str, str], available: Sequence[str]
) -> None:
    """The column that holds the right choice's place, where one is named or known by its
    name: it is the answer's column, too."""
    if "answer" not in given and found["choices"] is not None:
        for role, names in INDEX_CANDIDATES.items():
            usable = [name for name in names if name in available]
            known = found["answer"] in (None, "answers", "direct_answers")
            if usable and role not in given and known:
                found.setdefault(role, usable[0])
    for role in INDEX_CANDIDATES:
        if found.get(role):
            found["answer"] = found[role]


def _find_in_chat(found: dict[str, str | None], first: Mapping[str, Any]) -> None:
    """A chat may hold its images, and end with the answer: where no column does."""
    messages = messages_of(cell(first, found["question"]))
    if messages is None:
        return
    if found["images"] is None and images_in(messages):
        found["images"] = found["question"]
    if found["answer"] is None and last_reply(messages):
        found["answer"] = found["question"]


def _spread(available: Sequence[str], stem: re.Pattern[str], starts: str) -> str | None:
    """Names of columns of one stem that go on from one of ``starts`` (option_a, option_b,
    ...; image_1, image_2, ...), joined by commas; None if there are not at least two."""
    for name in available:
        if name[-1:] not in starts or not stem.fullmatch(name[:-1]):
            continue
        if name[:-1] == "" and name.isdigit():
            continue  # a column called 0
        first = int(name[-1]) if name[-1].isdigit() else ord(name[-1])
        names = [name]
        while True:
            k = first + len(names)
            after = name[:-1] + (str(k) if name[-1].isdigit() else chr(k))
            if after not in available:
                break
            names.append(after)
        if len(names) > 1:
            return ",".join(names)
    return None


def _has(available: Sequence[str], first: Mapping[str, Any], name: str) -> bool:
    if name in available:
        return True
    if "," in name:
        return all(part in available for part in name.split(","))
    outer, dot, inner = name.partition(".")
    value = first.get(outer)
    return (
        bool(dot) and outer in available and isinstance(value, Mapping) and inner in value
    )
