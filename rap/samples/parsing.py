"""One row of a data set -> one ``Sample``: columns, texts, choices, image references.

No row is trusted: an image path must stay inside ``root``, an URL is never fetched, text
that a Parquet file cannot hold is refused, JSON is parsed strictly. What cannot be used
raises ``BadSample``, which ``rap.samples`` turns into a ``Bad``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import listed, quoted_list, read_answer
from .cells import cell, image_cell, kind_of, scalar_text
from .choicecells import by_own_label, is_lettered, place_of, read_choices
from .column import Column
from .forms import is_box
from .imagecells import count_images, read_image_cell
from .prompts import (
    NO_VIDEOS,
    VIDEO_COLUMNS,
    last_reply,
    messages_of,
    place_images,
    read_turns,
    strip_image_tags,
)
from .roles import PROMPT_CANDIDATES
from .sample import TEXT_ONLY, BadSample, Sample, Turn, clean
from .stated import is_one_of, options_in

ANNOTATORS = 10  # answers to one question, from which on single opinions do not count


def parse_row(
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
    *,
    index: int,
    id: str,
    root: str | None,
    image_columns: frozenset[str] = frozenset(),
    counted: int | None = None,
    stated: bool = False,
    column: Column | None = None,
) -> Sample:
    """One row -> ``Sample``. ``columns`` as from ``detect_columns``; ``root`` is a real
    path (links resolved) or None, where no path is allowed; ``counted``: the column of the
    answer holds the right choice's place, counted from this number; ``stated``: the
    questions state their options; ``column``: how the column reads an answer. Raises
    ``BadSample``."""
    _refuse_videos(row)
    turns, question = _turns(cell(row, columns["question"]))
    if not columns.keys().isdisjoint(PROMPT_CANDIDATES):
        turns, question = _with_beside(turns, question, row, columns)
    choices, labels = _choices(row, columns)
    answer = _resolved(_answer(cell(row, columns["answer"])), choices, labels, counted)
    try:
        read_answer(answer, choices)
    except ValueError as error:
        raise BadSample("data", "bad_answer", str(error)) from None
    options = options_in(question) if stated and not choices else ()
    stated_here = options if is_one_of(answer, options) else ()
    reference = answer
    if column is not None and not choices and not stated_here:
        reference = column.settled(answer)
    source = cell(row, columns["source"])
    images = read_image_cell(image_cell(row, columns["images"]), root)
    turns, question = place_images(turns, question, len(images))
    if not images:
        raise BadSample("data", TEXT_ONLY, "the row has no image")
    return Sample(
        index=index,
        id=id,
        question=question,
        answer=answer,
        choices=choices,
        images=images,
        source=None if source is None else clean(str(source), "source"),
        extra=_extra(row, columns["images"] or "", image_columns),
        turns=turns,
        stated=stated_here,
        settled=None if reference == answer else reference,
    )


def _extra(
    row: Mapping[str, Any], images: str, image_columns: frozenset[str]
) -> dict[str, object]:
    """The row without its images, which are in the column or columns ``images``."""
    hidden = {*image_columns, *images.split(","), images}
    found = {k: v for k, v in row.items() if k not in hidden}
    outer, _, inner = images.partition(".")
    if images not in row and isinstance(found.get(outer), Mapping):
        found[outer] = {k: v for k, v in row[outer].items() if k != inner}
    return found


def answer_of_row(
    row: Mapping[str, Any], columns: Mapping[str, str | None], counted: int | None
) -> tuple[str, tuple[str, ...]]:
    """(answer, choices) of a row; nothing else of it need be there. Raises
    ``BadSample``."""
    choices, labels = read_choices(cell(row, columns["choices"]))
    answer = _answer(cell(row, columns["answer"]))
    return _resolved(answer, choices, labels, counted), choices


def question_of_row(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> str:
    """The question of a row. Raises ``BadSample``."""
    return _turns(cell(row, columns["question"]))[1]


def _resolved(
    answer: str, choices: Sequence[str], labels: Sequence[str], counted: int | None
) -> str:
    """A place among the choices, or a label of their own, as the choice's text."""
    if choices and counted is not None:
        return choices[place_of(answer, choices, labels, counted)]
    if labels and not is_lettered(labels):
        return by_own_label(answer, choices, labels)
    return answer


def _refuse_videos(row: Mapping[str, Any]) -> None:
    for name in VIDEO_COLUMNS:
        if name in row and _is_there(row[name]):
            raise BadSample("data", "video", f"{name}: the row has a video; {NO_VIDEOS}")


def _is_there(value: Any, depth: int = 4) -> bool:
    """Whether a cell, which Arrow may have filled up with None, holds anything."""
    inner = value.values() if isinstance(value, Mapping) else value
    if depth and isinstance(value, (Mapping, list, tuple)):
        return any(_is_there(item, depth - 1) for item in inner)
    return bool(value) if isinstance(value, (str, bool)) else value is not None


def _choices(
    row: Mapping[str, Any], columns: Mapping[str, str | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(choices, their labels). Images that they name are counted first."""
    value = cell(row, columns["choices"])
    several = _names_images(value) and (
        count_images(image_cell(row, columns["images"])) > 1
    )
    return read_choices(value, several_images=several)


def _names_images(choices: Any) -> bool:
    """Whether a text in a cell of choices has an image tag."""
    items = [*choices.values()] if isinstance(choices, Mapping) else choices
    items = items if isinstance(items, (list, tuple)) else [items]
    texts = (
        t
        for item in items
        for t in (item.values() if isinstance(item, Mapping) else [item])
    )
    return any(isinstance(text, str) and "<image" in text.lower() for text in texts)


def _with_beside(
    turns: tuple[Turn, ...],
    question: str,
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
) -> tuple[tuple[Turn, ...], str]:
    """The prompt with what stands beside it in columns of its own: the rest of an
    instruction, earlier turns, the system prompt."""
    rest = _text_beside(row, columns, "input")
    question = f"{question}\n{rest}" if rest else question
    pairs = cell(row, columns.get("history")) or ()
    if not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise BadSample("data", "bad_answer", "history is no list of pairs of texts")
    earlier: list[Turn] = []
    for asked, said in pairs:
        earlier += [("user", clean(str(asked), "history"))]
        earlier += [("assistant", clean(str(said), "history"))]
    turns = (*earlier, *turns)
    system = _text_beside(row, columns, "system")
    if not system:
        return turns, question
    if any(role == "system" for role, _ in turns):
        raise BadSample(
            "data", "system_turn", "a system turn in the chat and another in its column"
        )
    return (("system", system), *turns), question


def _text_beside(
    row: Mapping[str, Any], columns: Mapping[str, str | None], role: str
) -> str:
    value = cell(row, columns.get(role))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadSample("data", "bad_answer", f"{role} is {kind_of(value)}, not text")
    return clean(value, role).strip()


def _turns(value: Any) -> tuple[tuple[Turn, ...], str]:
    """Earlier turns and the user's last one, as they stand."""
    turns, text = read_turns(value)
    for said in (*(said for _, said in turns), text):
        clean(said, "question")
    if not strip_image_tags(text)[0]:
        raise BadSample("data", "bad_answer", "question is empty")
    return turns, text


def _answer(value: Any) -> str:
    """The reference as one text; of several accepted answers a list in it; of a chat the
    assistant's turn that ends it."""
    messages = messages_of(value)
    if messages is not None:
        value = last_reply(messages)
    if isinstance(value, (list, tuple)):
        value = _listed(value) if value else None
    elif isinstance(value, str) and len(items := quoted_list(value) or ()) >= ANNOTATORS:
        value = _listed(items)
    elif isinstance(value, Mapping):
        value = _named_box(value)
    text = scalar_text(value)
    if text is None:
        raise BadSample("data", "bad_answer", f"answer is {kind_of(value)}, not text")
    if not clean(text, "answer").strip():
        raise BadSample("data", "bad_answer", "answer is empty")
    return text.strip()


def _named_box(value: Mapping[str, Any]) -> Any:
    """An object that names a box, as text; anything else as it is."""
    for name in ("bbox_2d", "bbox"):
        box = value.get(name)
        if isinstance(box, list) and all(isinstance(x, (int, float)) for x in box):
            return json.dumps({name: box})
    return value


def _listed(values: Sequence[Any]) -> str:
    """A list as text: of accepted answers, or a box of four numbers."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if numbers and is_box(json.dumps(list(values))):
        return json.dumps(list(values))
    return listed(_accepted(values))


def _accepted(values: Sequence[Any]) -> list[str]:
    """The answers in a list, the commonest first. Of the ten that annotators gave (VQA)
    those that at least three of them gave."""
    texts = []
    for value in values:
        item = (
            value.get("answer", value.get("text")) if isinstance(value, Mapping) else value
        )
        text = scalar_text(item)
        if text is None or not text.strip():
            raise BadSample(
                "data",
                "bad_answer",
                f"an answer of {len(values)} is {kind_of(item)}, not text",
            )
        texts.append(text.strip())
    counts = Counter(texts)
    if len(texts) >= ANNOTATORS:
        counts = Counter({t: n for t, n in counts.items() if n >= 3}) or counts
    return [text for text, _ in counts.most_common()]
