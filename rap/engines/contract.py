"""The interface between scoring and an engine that samples completions.

    Request --> Engine.generate --> (Request, Generated)

A `Request` is one prompt with the seeds of its completions. An engine takes any number of
them, keeps a bounded number in flight and returns each as soon as it is complete, in any
order. A request that was returned is never asked again, so a caller that stores what it
gets can stop and go on at any time.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..config import Sampling
from ..model.rollouts import ARM_TEXT, Completion
from ..samples.images import encode_image
from ..samples.prompts import chat, with_system
from ..samples.sample import BadSample, Sample
from ..samples.stated import prompt_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.driver import ModelDriver, Prepared

__all__ = [
    "Completion",
    "Engine",
    "Generated",
    "ImagePart",
    "LocalPrompts",
    "Request",
    "Said",
    "conversation",
    "image_part",
]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image of a prompt: the encoded bytes, exactly as they are scored."""

    data: bytes
    media_type: str

    def uri(self) -> str:
        """The bytes as a data URI."""
        text = base64.b64encode(self.data).decode("ascii")
        return f"data:{self.media_type};base64,{text}"


def image_part(image: Image, encoded: bytes | None = None) -> ImagePart:
    """An image as every reader decodes it to the same pixels.

    image: RGB, as scored. encoded: the file it was decoded from, if any. A plain 8-bit RGB
    PNG or JPEG is sent as it is; where our decoding changed something (EXIF rotation,
    transparency, a palette, 16 bits, an animation) the pixels are sent as a lossless PNG.

    Raises ``BadSample`` if the image cannot be encoded.
    """
    kind = None if encoded is None else _plain_format(encoded)
    if kind is None or encoded is None:
        return ImagePart(encode_image(image), "image/png")
    return ImagePart(encoded, kind)


def _plain_format(data: bytes) -> str | None:
    """The media type of a file that needs no conversion; None for all others."""
    import io

    from PIL import JpegImagePlugin, PngImagePlugin

    plain_png = data.startswith(b"\x89PNG") and data[24:26] == b"\x08\x02"  # 8 bits, RGB
    if not plain_png and not data.startswith(b"\xff\xd8\xff"):
        return None
    plugin = PngImagePlugin.PngImageFile if plain_png else JpegImagePlugin.JpegImageFile
    with plugin(io.BytesIO(data)) as image:
        upright = image.getexif().get(0x0112, 1) == 1
        still = getattr(image, "n_frames", 1) == 1
        if image.mode != "RGB" or image.has_transparency_data or not (upright and still):
            return None
    return "image/png" if plain_png else "image/jpeg"


Said = tuple[str, tuple["ImagePart | str", ...]]
"""(role, images and text in their order) of one turn."""


def conversation(
    sample: Sample,
    template: str,
    images: Sequence[ImagePart],
    system: str | None = None,
) -> tuple[Said, ...]:
    """A sample's prompt turn by turn, images where they are scored.

    template, system: ``ScoreConfig.prompt_template``, ``system_prompt``. images: in order,
    of the arm that is asked. Raises ``BadSample`` for two system turns.
    """
    text = prompt_text(template, sample.question, sample.choices)
    rest = iter(images)
    return tuple(
        (
            message["role"],
            tuple(
                next(rest) if part["type"] == "image" else part["text"]
                for part in message["content"]
            ),
        )
        for message in chat(with_system(sample.turns, system), text, len(images))
    )


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how many completions of it are wanted."""

    sample_id: str
    arm: str
    """``rollouts.IMAGE_ARM`` or ``rollouts.BLIND_ARM``."""
    content: tuple[ImagePart | str, ...]
    """The user's turn, images and text in the order in which the template writes them."""
    seeds: tuple[int, ...]
    """One a completion, see ``rollouts.row_seed``; their number is how many are wanted."""
    sampling: Sampling
    greedy: bool = False
    """The most probable token instead of a sampled one; seeds play no role."""
    earlier: tuple[Said, ...] = ()
    """The turns before the user's last one."""
    prompt_ids: tuple[int, ...] | None = None
    """The prompt as the local processor tokenises it, image tokens included; None if there
    is no local processor."""
    prepared: Prepared | None = field(default=None, repr=False, compare=False)
    """The prompt as the local model takes it: engine ``transformers`` only."""

    @property
    def name(self) -> str:
        """The request in a message: ``'q17' (with the image)``."""
        return f"{self.sample_id!r} ({ARM_TEXT[self.arm]})"


@dataclass(frozen=True, slots=True)
class Generated:
    """What became of a request."""

    completions: tuple[Completion, ...]
    """In the order of ``Request.seeds``; with ``bad`` perhaps only some of them."""
    bad: BadSample | None = None
    """Why the sample cannot be used."""


class Engine(Protocol):
    """What every engine can do. One is used by one thread at a time."""

    exact: bool
    """Whether the same requests give the same bytes again; no server promises that."""
    window: int
    """Requests that keep it busy: a caller hands over so many at once, if it can."""

    @property
    def token_ids(self) -> bool:
        """Whether completions come with token ids; known after ``check``."""
        ...

    def check(self, sampling: Sampling) -> str:
        """Find out what the engine does, before the first sample.

        Returns one line for the user. Raises ``RapConfigError`` for a setting that the
        engine cannot honour, ``RapModelError`` for an engine that cannot be used.
        """
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generated]]:
        """Every request with its completions, in any order.

        Raises ``RapError`` when the engine as a whole is lost or was set up wrongly; what
        is complete by then is returned first.
        """
        ...

    def provenance(self) -> dict[str, object]:
        """For the fingerprint of a store: JSON values, equal for equal completions."""
        ...

    def close(self) -> None:
        """Give back what the engine holds: connections, threads, memory."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPrompts:
    """What the local processor knows about prompts and tokens: what a server's answers are
    compared with."""

    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens left out."""
    end_ids: tuple[int, ...]
    """Tokens that end a turn."""
    image_ids: tuple[int, ...]
    """Placeholders of images and videos: never sampled."""

    @classmethod
    def of(cls, driver: ModelDriver) -> LocalPrompts:
        """Of the model and the processor that score."""
        from ..model.rollouts import end_token_ids, placeholder_ids

        tokenizer = driver.tokenizer
        return cls(
            decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
            end_ids=tuple(end_token_ids(driver.model, driver.processor)),
            image_ids=tuple(placeholder_ids(driver.model)),
        )
