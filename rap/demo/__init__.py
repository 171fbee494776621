"""``rap demo``: all steps on data that comes with the package, in a few minutes on a CPU.

By default a synthetic data set with ground-truth labels and a small model trained for it
(`run_world`). ``rap demo --records``, here, has two parts. Part 1 makes a selection from
published completions of 105 MATH-V questions. They come from several models, so it shows
what a selection is, not what one model needs. Part 2 scores with a real model class; its
weights are random, so its scores mean nothing, and the output says so.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DEFAULT_BUDGET
from ..scores.files import make_folder

if TYPE_CHECKING:
    from ..samples.sampleset import SampleSet
    from ..scores.scores import Scores
    from ..selection.selection import Selection

DATA = Path(__file__).parent / "data"
MATHVISION = DATA / "mathvision" / "samples.jsonl"
"""105 questions with one image each; data/mathvision/SOURCE.md."""
ROLLOUTS = DATA / "mathvision" / "rollouts.parquet"
"""Their published completions: 13 settings with the image, 1 without."""
PUZZLES = DATA / "puzzlevqa" / "samples.jsonl"
"""20 puzzles, one a category; data/puzzlevqa/SOURCE.md."""
BUDGET = DEFAULT_BUDGET
POOL = (
    "The completions come from a pool of models: ten with the image, another one without. "
    "This shows what a selection is, not what any one model needs."
)


def published() -> Selection:
    """The selection that the published completions of MATH-V make; no model runs."""
    from ..samples.sampleset import open_samples
    from ..scores.scores import Scores
    from ..selection.choosing import choose

    scores = Scores.from_rollouts(ROLLOUTS, dataset=open_samples(MATHVISION))
    return choose(scores, budget=BUDGET)


def puzzles(count: int) -> SampleSet:
    """The first ``count`` puzzles."""
    from ..samples.sampleset import open_samples

    rows = open_samples(PUZZLES)
    return open_samples([rows.row(i) for i in range(count)], root=PUZZLES.parent)


def score_puzzles(count: int, store: Path | None = None, **settings: Any) -> Scores:
    """``count`` puzzles through a small Qwen2.5-VL with random weights."""
    from ..scoring.run import score
    from .tiny import tiny_qwen2_5_vl

    model, processor = tiny_qwen2_5_vl()
    return score(model, processor, puzzles(count), store=store, **settings)


def run(out: Path, *, samples: int = 8, echo: Callable[[str], Any] = print) -> Selection:
    """Both parts; leaves ``out/selection``, ``out/report.html`` and ``out/scores``."""
    make_folder(out)
    echo("1. Published completions of 105 MATH-V questions -> a selection\n")
    selection = published()
    selection.save(out / "selection")
    report = selection.report(
        out / "report.html", title="Demo: 105 questions of MATH-V", note=POOL
    )
    echo(selection.summary())
    echo(
        f"\n   {textwrap.fill(POOL, 84, subsequent_indent='   ')}\n"
        f"\n   selection  {out / 'selection'}\n   report     {report}   <- open this\n"
    )
    if not samples:
        return selection
    echo(f"2. {samples} puzzles through a model: Qwen2.5-VL's own class, made small\n")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    scores = score_puzzles(samples, out / "scores", evidence="answer")
    _tell(scores, echo)
    echo(
        "\n   The weights are random: these scores show that every step works, and select\n"
        "   nothing meaningful. The selection above is the published completions'.\n"
        f"\n   scores     {out / 'scores'}\n\n"
        "With your own model and data:\n"
        "   rap select data.jsonl --model ./your-model --budget 0.09 --out selection/ "
        "--report report.html"
    )
    return selection


def _tell(scores: Scores, echo: Callable[[str], Any]) -> None:
    for row in scores.table.to_pylist():
        if row["status"] == "scored":
            echo(
                f"   {row['id']:<44} p(answer) {row['p_answer1']:.2e} with the image, "
                f"{row['p_answer0']:.2e} without; JS {row['js']:.1e}"
            )
        else:
            echo(f"   {row['id']:<44} {row['status']}: {row['code']}")
    cost = scores.meta["cost"]
    echo(f"   {cost['forwards']} forward passes, {cost['seconds']:.1f} s")
