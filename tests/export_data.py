"""A small data set that a careless export gets wrong, for the tests of ``rap.export``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

import rap
from rap.samples.sampleset import open_samples

IDS = ["turned", "two", "glass", "deep", "stained", "plain/ü", "palette"]
"""Kept, in data-set order; between them stand others."""
CHOICES = ["a cat", "a dog"]


def pixels(seed: int, width: int = 40, height: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pictures() -> dict[str, bytes]:
    """Encoded images by name: rotated by EXIF, half transparent, 16 bits, ..."""
    rgb = Image.fromarray(pixels(1))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    alpha = Image.fromarray(pixels(2)).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    deep = np.linspace(0, 65535, 40 * 32, dtype=np.uint16).reshape(32, 40)
    return {
        "turned.jpg": _encoded(rgb, "JPEG", exif=exif),
        "plain.png": _encoded(Image.fromarray(pixels(3))),
        "plain.webp": _encoded(Image.fromarray(pixels(4)), "WEBP", lossless=True),
        "glass.png": _encoded(alpha),
        "deep.png": _encoded(Image.fromarray(deep)),
        "stained.png": _encoded(
            Image.fromarray(pixels(6)).quantize(16), transparency=bytes(range(0, 256, 16))
        ),
        "palette.gif": _encoded(Image.fromarray(pixels(5)).quantize(16), "GIF"),
    }


def make(folder: Path) -> Path:
    """Write the data set; returns its JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures().items():
        (folder / name).write_bytes(data)
    files = {
        "turned": ["turned.jpg"],
        "two": ["plain.png", "plain.webp"],
        "glass": ["glass.png"],
        "deep": ["deep.png"],
        "stained": ["stained.png"],
        "plain/ü": ["plain.png"],
        "palette": ["palette.gif"],
    }
    rows = []
    for k, (name, images) in enumerate(files.items()):
        rows.append({"id": f"no{k}", "question": "?", "answer": "no", "images": images})
        rows.append(
            {
                "id": name,
                "question": f"<image>What is {k}?\n  It is \\frac{{1}}{{2}} “so”.",
                "answer": str(k),
                "images": images if len(images) == 1 else [*images],
                "source": "two words",
            }
        )
        rows[-1]["question"] = rows[-1]["question"].replace(
            "<image>", "<image>" * len(images)
        )
    rows[-1] |= {"choices": CHOICES, "answer": "B"}
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def select(file: Path) -> rap.Selection:
    """``IDS`` are kept."""
    samples = open_samples(file)
    rollouts = [
        {"id": name, "with_image": arm, "correct": arm and k < 3 and name in IDS}
        for name in samples.ids
        for arm in (True, False)
        for k in range(5)
    ]
    scores = rap.Scores.from_rollouts(rollouts, dataset=samples)
    selection = rap.choose(scores, budget=0.5)
    assert selection.ids == IDS
    return selection
