"""The images of the synthetic data set: what they show and how they are drawn.

Images are 84 x 84 pixels, three cells of 28 pixels a side: one cell is one image token
of the demo's model (patch 14, merge 2). No offset, paper or line colour of one split
appears in another.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RapConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 28
SIZE = 3 * CELL

COLOURS = {
    "red": (200, 30, 30),
    "green": (20, 130, 40),
    "blue": (30, 60, 200),
    "black": (20, 20, 20),
}
NAMES = tuple(COLOURS)
YELLOW = (245, 205, 40)
FADES = (1.0, 0.5, 0.3)
"""How much of a number's or a bar's ink is left on the paper: clear, faint, very faint."""

# 5 x 7 digits, a row a string of five: no font file, the same pixels on every machine.
_GLYPHS = (
    ("01110", "10001", "10011", "10101", "11001", "10001", "01110"),
    ("00100", "01100", "00100", "00100", "00100", "00100", "01110"),
    ("01110", "10001", "00001", "00110", "01000", "10000", "11111"),
    ("11110", "00001", "00001", "01110", "00001", "00001", "11110"),
    ("00010", "00110", "01010", "10010", "11111", "00010", "00010"),
    ("11111", "10000", "11110", "00001", "00001", "10001", "01110"),
    ("01110", "10000", "10000", "11110", "10001", "10001", "01110"),
    ("11111", "00001", "00010", "00100", "01000", "01000", "01000"),
    ("01110", "10001", "10001", "01110", "10001", "10001", "01110"),
    ("01110", "10001", "10001", "01111", "00001", "00001", "01110"),
)
_SCALE = 3
_UNIT = 9
"""Pixels of a bar's unit: nine units and a gap fill the image."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an image is rendered, whatever it shows."""

    paper: tuple[int, int, int]
    """Background."""
    line: tuple[int, int, int]
    """Colour of the lines between cells; equal to ``paper``: none are seen."""
    dx: int
    """Pixels from a cell's left edge to its digit; for bars, half of it."""
    dy: int
    """Pixels from a cell's top edge to its digit."""


_PAPERS = {
    "train": ((255, 255, 255), (250, 244, 232), (236, 244, 255), (243, 255, 240)),
    "selection": ((252, 252, 245), (244, 248, 250), (252, 240, 244)),
    "test": ((248, 255, 255), (246, 246, 238), (255, 250, 255)),
}
_LINES = {"train": (190, 200, 215, 255), "selection": (195, 210), "test": (185, 220)}
SPLITS = tuple(_PAPERS)
# Offsets (dx, dy) are assigned to the splits by (dx + dy) mod 3.
_OFFSETS = {
    split: tuple((x, y) for x in range(3, 11) for y in range(2, 6) if (x + y) % 3 == number)
    for number, split in enumerate(SPLITS)
}


def layouts(split: str) -> list[Layout]:
    """Every layout of a split; those of two splits have nothing in common."""
    require(split in SPLITS, "split", split, f"one of {SPLITS}")
    return [
        Layout(paper, (line, line, line), dx, dy)
        for paper in _PAPERS[split]
        for line in _LINES[split]
        for dx, dy in _OFFSETS[split]
    ]


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image shows."""

    kind: str
    """``"grid"``: nine digits; ``"bars"``: three bars; ``"sign"``: nine times one digit."""
    numbers: tuple[int, ...]
    """Nine digits row by row, three heights from the left (1 to 9), or one digit."""
    colours: tuple[int, ...]
    """Index into ``NAMES`` of each number."""
    layout: Layout
    fades: tuple[int, ...] = ()
    """Index into ``FADES`` of each number; empty: all are clear."""

    def fade(self, i: int) -> int:
        return self.fades[i] if self.fades else 0


def ink(scene: Scene, i: int) -> tuple[int, int, int]:
    """The colour that number ``i`` is drawn in: faint ones are mixed with the paper."""
    full, left = COLOURS[NAMES[scene.colours[i]]], FADES[scene.fade(i)]
    r, g, b = (
        round(p + left * (c - p)) for c, p in zip(full, scene.layout.paper, strict=True)
    )
    return r, g, b


def render(scene: Scene) -> Image:
    """The image: RGB, 84 x 84. Only rectangles are drawn."""
    from PIL import Image, ImageDraw

    layout = scene.layout
    paper = YELLOW if scene.kind == "sign" else layout.paper
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    if scene.kind == "bars":
        for i in range(3):
            _draw_bar(draw, i, scene)
        return image
    if scene.kind == "grid" and layout.line != layout.paper:
        for at in (CELL, 2 * CELL):
            draw.line((at, 0, at, SIZE - 1), fill=layout.line)
            draw.line((0, at, SIZE - 1, at), fill=layout.line)
    for cell in range(9):
        i = cell if scene.kind == "grid" else 0
        x = cell % 3 * CELL + layout.dx
        y = cell // 3 * CELL + layout.dy
        _draw_digit(draw, x, y, scene.numbers[i], ink(scene, i))
    return image


def _draw_digit(draw: Any, x: int, y: int, digit: int, fill: tuple[int, int, int]) -> None:
    for row, bits in enumerate(_GLYPHS[digit]):
        start = bits.find("1")
        while start >= 0:
            end = bits.find("0", start) if "0" in bits[start:] else len(bits)
            left, top = x + start * _SCALE, y + row * _SCALE
            right = x + end * _SCALE - 1
            draw.rectangle((left, top, right, top + _SCALE - 1), fill=fill)
            start = bits.find("1", end)


def _draw_bar(draw: Any, place: int, scene: Scene) -> None:
    """A stack of units with a line of paper between them, so that they can be counted."""
    fill = ink(scene, place)
    left = place * CELL + scene.layout.dx // 2 + 1
    for unit in range(scene.numbers[place]):
        bottom = SIZE - 1 - unit * _UNIT
        draw.rectangle((left, bottom - _UNIT + 2, left + 18, bottom), fill=fill)


def png(scene: Scene) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RapConfigError(f"{name} = {value!r}: expected {expected}")
