"""Rows with pictures that the tests of scoring share, and what of a table repeats."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from rap.config import Sampling
from rap.scores.table import VOLATILE_COLUMNS

FEW = Sampling(max_new_tokens=10)
STEP = 2**-11  # what `significant` may move a value by, relatively, and some noise


def png(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(
        0, 255, (40 + 9 * (i % 5), 60 + 7 * (i % 4), 3)
    )
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def question_row(i: int, picture: bytes) -> dict:
    return {
        "id": f"s{i}",
        "question": "Which number replaces the " + "very " * (i % 6) + f"mark {i}?",
        "answer": "BCA"[i % 3],
        "choices": ["4", "12", "35"],
        "image": {"bytes": picture, "path": None},
        "source": "ab"[i % 2],
    }


def make_rows(n: int) -> list[dict]:
    solution = "Let x be the length, then x^2 + y^2 = 169, so it is "
    return [
        question_row(i, png(i)) | {"solution": solution + "BCA"[i % 3]} for i in range(n)
    ]


def stable(table):
    return table.drop_columns(list(VOLATILE_COLUMNS))
