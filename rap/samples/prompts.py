"""A prompt as it stands in the data: earlier turns, and images at their places in the text.

``IMAGE`` in a question or a turn is the place of the next image. It stands there only where
the place matters: images that come before all text need none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .sample import BadSample, Turn
from .strictjson import strict_json

IMAGE = "<image>"
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
"""Role of a turn, in OpenAI's spelling and in ShareGPT's -> ours."""

# `<image>` is the trainers' placeholder (one image each); `<image1>`, `<image 2>` are
# names inside a text (MATH-V, MMMU), often several for one composite image.
_TAG = re.compile(r"<image ?(\d*)>", re.IGNORECASE)
_TAGS_AT_LINE_START = re.compile(r"(?im)^[ \t]*(?:<image ?\d*>[ \t]*)+")
_TAGS_INSIDE = re.compile(r"(?i)[ \t]*(?:<image ?\d*>[ \t]*)+")
_NUMBERED = re.compile(r"<image ?\d+> ?", re.IGNORECASE)
_NAMES = re.compile(r"<image ?(\d+)>", re.IGNORECASE)
_LEADING = re.compile(r"(?:\s*<image>)*", re.IGNORECASE)


# ---------------------------------------------------------------- chat messages in a cell


def messages_of(value: Any) -> list[Mapping[str, Any]] | None:
    """The chat messages in a cell, also as JSON text; None if it holds something else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = strict_json(value.encode("utf-8", "replace"))
        except ValueError:
            return None
    if not isinstance(value, (list, tuple)) or not value:
        return None
    chat = all(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)
    return list(value) if chat else None


def _content(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content", message.get("value"))
    return list(content) if isinstance(content, (list, tuple)) else [content]


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


NO_VIDEOS = "videos are not supported"
VIDEO_COLUMNS = ("video", "videos", "video_path")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv")


def _is_video(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("video", "video_url")


def has_videos(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a part of a chat is a video."""
    return any(_is_video(part) for message in messages for part in _content(message))


def images_in(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """What the image parts of chat messages hold, in order; parts that hold nothing (the
    images are in a column of their own) left out."""
    found = []
    for part in (part for message in messages for part in _content(message)):
        if _is_image(part):
            kinds = ("image", "image_url", "url", "path", "bytes", "data")
            item = next((part[k] for k in kinds if part.get(k) is not None), None)
            inner = item.get("url") if isinstance(item, Mapping) and "url" in item else item
            found += [] if inner is None else [inner]
    return found


def last_reply(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Text of the assistant's turn that ends a chat; None if another turn does."""
    role = messages[-1].get("role", messages[-1].get("from"))
    return _turn_text(messages[-1]) if ROLES.get(str(role)) == "assistant" else None


def more_of_a_chat(known: Any, value: Any) -> list[Mapping[str, Any]] | None:
    """Two chats as one, where the second has images or ends with an answer and the first
    does not; None else."""
    before, after = messages_of(known), messages_of(value)
    if before is None or after is None:
        return None
    if last_reply(after) and not last_reply(before):
        return [*before, *after]
    return [*after, *before] if images_in(after) and not images_in(before) else None


def _turn_text(message: Mapping[str, Any]) -> str:
    """Text of one message, parts joined by a blank line, ``IMAGE`` for each image part."""
    texts = []
    for part in _content(message):
        if isinstance(part, str):
            texts.append(part)
        elif _is_image(part):
            texts.append(IMAGE)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif _is_video(part):
            raise BadSample("data", "video", f"the chat has a video; {NO_VIDEOS}")
        elif part is not None:
            raise BadSample("data", "bad_answer", "a message part is no text or image")
    return "\n\n".join(texts)


def read_turns(value: Any) -> tuple[tuple[Turn, ...], str]:
    """(earlier turns, the user's last turn) of a question's cell: a text, or chat messages.

    Turns of one role that follow each other are one, joined by a blank line. A last
    assistant's turn is the answer, not the prompt. Raises ``BadSample``.
    """
    messages = messages_of(value)
    if messages is None:
        if isinstance(value, (list, tuple)):
            raise BadSample("data", "bad_answer", "question is a list, but not of messages")
        if not isinstance(value, str):
            raise BadSample("data", "bad_answer", "question is missing or not text")
        return (), value
    turns: list[Turn] = []
    for message in messages:
        given = message.get("role", message.get("from"))
        role = ROLES.get(str(given))
        if role is None:
            raise BadSample(
                "data", "bad_answer", f"a turn of {str(given)[:40]!r} cannot be asked"
            )
        text = _turn_text(message)
        if turns and turns[-1][0] == role:
            text = f"{turns.pop()[1]}\n\n{text}"
        turns.append((role, text))
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    if not turns or turns[-1][0] != "user":
        raise BadSample("data", "bad_answer", "question is empty: no turn of the user")
    return tuple(turns[:-1]), turns[-1][1]


# ---------------------------------------------------------------- places of images


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


def named_images(text: str) -> str:
    """``<image 2>`` as a name: image 2."""
    return _NAMES.sub(r"image \1", text)


def place_images(
    turns: Sequence[Turn], text: str, images: int
) -> tuple[tuple[Turn, ...], str]:
    """Turns and question with ``IMAGE`` where the images stand, if their places matter;
    without tags else.

    Plain tags, as many as images, are places. So are numbered ones that name each of
    several images once, in order; else numbered ones are names of images that come first.
    Raises ``BadSample`` if plain tags are more or less.
    """
    whole = [*(t for _, t in turns), text]
    numbers = [number for t in whole for number in _TAG.findall(t)]
    plain = sum(not number for number in numbers)
    if plain and plain != images:
        raise BadSample(
            "data", "image_count", f"{plain} <image> placeholders but {images} images"
        )
    each = [str(i + 1) for i in range(images)]
    matter = plain > 0 or (images > 1 and numbers == each)
    if _stand_first([*turns, ("user", text)]):
        matter = False  # where they stand without being placed

    named = not plain and images > 1 and set(numbers) <= set(each)  # "image 2", by number

    def change(t: str) -> str:
        if not matter and named:
            return named_images(t).strip()
        if not matter:
            return strip_image_tags(t)[0]
        return _marked(_NUMBERED.sub("", t) if plain else t)

    return tuple((role, change(t)) for role, t in turns), change(text)


def _stand_first(said: Sequence[Turn]) -> bool:
    """Whether all tags stand before the text of the user's first turn."""
    first = next(i for i, (role, _) in enumerate(said) if role == "user")
    rest = [
        _LEADING.sub("", _marked(text), count=1) if i == first else _marked(text)
        for i, (_, text) in enumerate(said)
    ]
    return not any(IMAGE in text for text in rest)


def _marked(text: str) -> str:
    return _TAG.sub(IMAGE, text).strip()


def stands_in_place(texts: Iterable[str], images: int) -> bool:
    """Whether the texts say where each of the images stands."""
    return images > 0 and sum(t.count(IMAGE) for t in texts) == images


def with_system(turns: Sequence[Turn], system: str | None) -> tuple[Turn, ...]:
    """The turns behind the system turn ``system``; as they are for None.

    Raises ``BadSample`` where they have a system turn already: which of the two is trained
    on is the user's to say.
    """
    if system is None:
        return tuple(turns)
    if any(role == "system" for role, _ in turns):
        raise BadSample(
            "prompt",
            "system_turn",
            "system_prompt is set, and the data has a system turn of its own: take one of "
            "them away",
        )
    return (("system", system), *turns)


def chat(turns: Sequence[Turn], text: str, images: int) -> list[dict[str, Any]]:
    """A prompt as chat messages with content in parts, for a chat template.

    Images stand at their places if the texts have as many; else before the first user's
    text, and places are left out: a counterfactual may have none, or another number.
    """
    whole: list[Turn] = [*turns, ("user", text)]
    in_place = stands_in_place((t for _, t in whole), images)
    messages: list[dict[str, Any]] = []
    for role, said in whole:
        parts = _split(said) if in_place else [_text(_without(said))]
        messages.append({"role": role, "content": parts})
    if not in_place:
        first = next(m for m in messages if m["role"] == "user")
        first["content"] = [{"type": "image"} for _ in range(images)] + first["content"]
    return messages


def _without(text: str) -> str:
    return strip_image_tags(text)[0] if IMAGE in text else text


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _split(text: str) -> list[dict[str, str]]:
    pieces = text.split(IMAGE)
    parts: list[dict[str, str]] = []
    for i, piece in enumerate(pieces):
        parts += [{"type": "image"}] if i else []
        parts += [_text(piece)] if piece else []
    return parts
