"""One row of a data set -> one ``Sample``: columns, texts, choices, image references.

No row is trusted: an image path must stay inside ``root``, an URL is never fetched, text
that a Parquet file cannot hold is refused, JSON is parsed strictly. What cannot be used
raises ``BadSample``, which ``rap.samples`` turns into a ``Bad``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import listed, read_answer
from .cells import cell, image_cell, kind_of, scalar_text
from .choicecells import by_own_label, is_lettered, place_of, read_choices
from .imagecells import read_image_cell
from .prompts import last_reply, messages_of, place_images, read_turns, strip_image_tags
from .sample import BadSample, Sample, Turn, clean

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
) -> Sample:
    """One row -> ``Sample``. ``columns`` as from ``detect_columns``; ``root`` is a real
    path (links resolved) or None, where no path is allowed; ``counted``: the column of the
    answer holds the right choice's place, counted from this number. Raises
    ``BadSample``."""
    turns, question = _turns(cell(row, columns["question"]))
    choices, labels = read_choices(cell(row, columns["choices"]))
    answer = _answer(cell(row, columns["answer"]))
    if choices and counted is not None:
        answer = choices[place_of(answer, choices, labels, counted)]
    elif labels and not is_lettered(labels):
        answer = by_own_label(answer, choices, labels)
    try:
        read_answer(answer, choices)
    except ValueError as error:
        raise BadSample("data", "bad_answer", str(error)) from None
    source = cell(row, columns["source"])
    images = read_image_cell(image_cell(row, columns["images"]), root)
    if not images:
        raise BadSample("data", "image_count", "the row has no image")
    turns, question = place_images(turns, question, len(images))
    hidden = {*image_columns, *(columns["images"] or "").split(","), columns["images"]}
    return Sample(
        index=index,
        id=id,
        question=question,
        answer=answer,
        choices=choices,
        images=images,
        source=None if source is None else clean(str(source), "source"),
        extra={k: v for k, v in row.items() if k not in hidden},
        turns=turns,
    )


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
        value = listed(_accepted(value)) if value else None
    text = scalar_text(value)
    if text is None:
        raise BadSample("data", "bad_answer", f"answer is {kind_of(value)}, not text")
    if not clean(text, "answer").strip():
        raise BadSample("data", "bad_answer", "answer is empty")
    return text.strip()


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
