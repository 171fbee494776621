"""Pictures of the natural world: emoji objects in natural and unnatural colours.

A picture is 96 x 96 pixels on white: one object, two objects side by side, one to four
copies of an object, or a chart of three bars. The objects are bitmaps of Debian's Noto
Color Emoji; a colour is put on by hue, so that shape and shading stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RapInputError

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 96
"""Pixels a side: EfficientNet-Lite0 makes 3 x 3 features of it."""
FONTS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
)
"""The shipped projector saw the pictures of Debian 12's fonts-noto-color-emoji 2.042."""
STRIKE = 109
"""The one size of the font's bitmaps."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: its emoji, its name and the colour that it usually has, if it has one."""

    emoji: str
    name: str
    usual: str | None = None

    @property
    def plural(self) -> str:
        """The name for several."""
        irregular = {"fish": "fish", "cherry": "cherries", "butterfly": "butterflies"}
        if self.name.endswith(("s", "ch")):
            return f"{self.name}es"
        return irregular.get(self.name, f"{self.name}s")


THINGS = (
    Thing("🍎", "apple", "red"),
    Thing("🍌", "banana", "yellow"),
    Thing("🍋", "lemon", "yellow"),
    Thing("🍐", "pear", "green"),
    Thing("🍓", "strawberry", "red"),
    Thing("🍒", "cherry", "red"),
    Thing("🍅", "tomato", "red"),
    Thing("🥕", "carrot", "orange"),
    Thing("🌽", "corn", "yellow"),
    Thing("🥒", "cucumber", "green"),
    Thing("🥦", "broccoli", "green"),
    Thing("🍆", "eggplant", "purple"),
    Thing("🍄", "mushroom"),
    Thing("🐷", "pig", "pink"),
    Thing("🐘", "elephant", "gray"),
    Thing("🐸", "frog", "green"),
    Thing("🐬", "dolphin"),
    Thing("🦀", "crab", "red"),
    Thing("🐟", "fish"),
    Thing("🐢", "turtle", "green"),
    Thing("🐍", "snake", "green"),
    Thing("🦋", "butterfly"),
    Thing("🐱", "cat"),
    Thing("🐶", "dog"),
    Thing("🐴", "horse"),
    Thing("🐰", "rabbit"),
    Thing("🐻", "bear"),
    Thing("🦆", "duck"),
    Thing("🚗", "car"),
    Thing("🚌", "bus"),
    Thing("🚜", "tractor"),
    Thing("🚲", "bicycle"),
    Thing("🔑", "key"),
    Thing("☂", "umbrella"),
    Thing("🎩", "hat"),
    Thing("👟", "shoe"),
    Thing("📕", "book"),
    Thing("🔔", "bell"),
    Thing("🎈", "balloon"),
    Thing("🎸", "guitar"),
    Thing("📷", "camera"),
    Thing("☎", "phone"),
    Thing("🏠", "house"),
    Thing("🌲", "tree", "green"),
    Thing("🌹", "rose", "red"),
    Thing("⭐", "star", "yellow"),
    Thing("🔨", "hammer"),
    Thing("🪑", "chair"),
    Thing("🚪", "door"),
)
"""Objects; ``usual`` is what a reader of English expects, as the language model may."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.85, 0.9),
    "orange": (0.08, 0.95, 1.0),
    "yellow": (0.15, 0.9, 1.0),
    "green": (0.33, 0.75, 0.75),
    "blue": (0.61, 0.85, 0.95),
    "purple": (0.77, 0.75, 0.75),
    "pink": (0.91, 0.42, 1.0),
    "gray": (0.0, 0.0, 0.65),
}
"""Hue, saturation and brightness, 0 to 1."""
_BY_NAME = {thing.name: thing for thing in THINGS}


def thing(name: str) -> Thing:
    """The object of that name."""
    return _BY_NAME[name]


@cache
def font_path() -> Path:
    """Where the emoji font is.

    Raises ``RapInputError`` naming the package that brings it.
    """
    found = next((path for path in FONTS if path.is_file()), None)
    if found is None:
        raise RapInputError(
            "the natural world draws Noto Color Emoji, which is not installed: "
            "apt install fonts-noto-color-emoji"
        )
    return found


def _font(path: Path) -> Any:
    """Raises ``RapInputError`` for a file without bitmaps of this size: damaged, or a font
    of outlines."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype(str(path), STRIKE)
    except OSError as error:
        raise RapInputError(
            f"{path}: no emoji font with bitmaps of {STRIKE} pixels ({error}): apt install "
            "--reinstall fonts-noto-color-emoji"
        ) from error


def require_font() -> None:
    """The emoji can be drawn. Raises ``RapInputError``."""
    _font(font_path())


@cache
def _bitmap(emoji: str) -> Image:
    """The emoji without margins, RGBA."""
    from PIL import Image, ImageDraw

    font = _font(font_path())
    canvas = Image.new("RGBA", (150, 150), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((4, 4), emoji, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def _tinted(bitmap: Image, colour: str) -> Image:
    """The bitmap with every pixel that is neither black nor white in one colour."""
    import numpy as np
    from PIL import Image

    hue, saturation, brightness = COLOURS[colour]
    alpha = bitmap.getchannel("A")
    hsv = np.asarray(bitmap.convert("RGB").convert("HSV"), np.float32) / 255
    value = hsv[..., 2]
    shade = np.clip(0.45 + 0.55 * value / max(0.3, float(np.quantile(value, 0.9))), 0, 1)
    dark = value < 0.25  # outlines, eyes, tyres
    new = np.empty_like(hsv)
    new[..., 0] = hue
    new[..., 1] = np.where(dark, 0, saturation)
    new[..., 2] = np.where(dark, value, brightness * shade)
    tinted = Image.fromarray((new * 255).round().astype(np.uint8), "HSV").convert("RGB")
    tinted.putalpha(alpha)
    return tinted


def _fitted(name: str, colour: str | None, side: int) -> Image:
    """The object, its longer side ``side`` pixels; natural where ``colour`` is None."""
    from PIL import Image

    bitmap = _bitmap(thing(name).emoji)
    if colour is not None:
        bitmap = _tinted(bitmap, colour)
    scale = side / max(bitmap.size)
    size = (max(1, round(bitmap.width * scale)), max(1, round(bitmap.height * scale)))
    return bitmap.resize(size, Image.Resampling.LANCZOS)


def _placed(parts: Sequence[tuple[Image, float, float]]) -> Image:
    """The parts on white, each with the centre of its bitmap there."""
    from PIL import Image

    picture = Image.new("RGB", (SIZE, SIZE), "white")
    for part, x, y in parts:
        picture.paste(part, (round(x - part.width / 2), round(y - part.height / 2)), part)
    return picture


def one(name: str, colour: str | None) -> Image:
    """A single object that fills the picture."""
    return _placed([(_fitted(name, colour, 88), SIZE / 2, SIZE / 2)])


def pair(left: tuple[str, str | None], right: tuple[str, str | None]) -> Image:
    """Two objects side by side, each (name, colour)."""
    return _placed(
        [(_fitted(*left, 46), 24, SIZE / 2), (_fitted(*right, 46), 72, SIZE / 2)]
    )


def several(name: str, colour: str | None, count: int) -> Image:
    """``count`` copies, 1 to 4, in the corners of the picture."""
    corners = ((24, 24), (72, 72), (72, 24), (24, 72))
    part = _fitted(name, colour, 42)
    return _placed([(part, x, y) for x, y in corners[:count]])


def bars(colours: Sequence[str], heights: Sequence[int]) -> Image:
    """A chart of three bars, each 1 to 3 thirds of the picture high."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(picture)
    for k, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        box = (32 * k + 3, SIZE - 32 * height + 4, 32 * k + 28, SIZE - 1)
        draw.rectangle(box, fill=_rgb(colour), outline=(60, 60, 60))
    return picture


def _rgb(colour: str) -> tuple[int, int, int]:
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(*COLOURS[colour])
    return round(255 * red), round(255 * green), round(255 * blue)


def png(picture: Any) -> bytes:
    """The picture as PNG."""
    from io import BytesIO

    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
