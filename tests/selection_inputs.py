"""Rows of score tables for the tests of ``choose``, and what it said of each."""

from __future__ import annotations

from rap.scores.scores import Scores
from rap.scores.table import table_from_rows
from rap.selection.selection import Selection

NAN, INF = float("nan"), float("inf")


def row(c1: int, m1: int, c0: int, m0: int, **more: object) -> dict:
    counts = {"c1": c1, "m1": m1, "c0": c0, "m0": m0}
    return {"status": "scored", "evidence": "rollouts"} | counts | more


def answer(p1: float | None, p0: float | None, **more: object) -> dict:
    return {
        "status": "scored",
        "evidence": "answer",
        "p_answer1": p1,
        "p_answer0": p0,
    } | more


BAD = {"status": "quarantined", "stage": "image", "code": "image_missing"}


def scores_of(rows: list[dict], **meta: object) -> Scores:
    numbered = [{"id": f"s{i}", "index": i} | r for i, r in enumerate(rows)]
    return Scores(table_from_rows(numbered), meta)


def reasons(selection: Selection) -> list[str]:
    return selection.table["reason"].to_pylist()
