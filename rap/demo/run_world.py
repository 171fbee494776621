"""The demo on synthetic data: score, choose, compare with the ground-truth labels.

``run`` needs no network and takes under three minutes on two cores for 240 samples.
"""

from __future__ import annotations

import logging
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EvidenceName, Sampling
from ..scores.files import make_folder
from . import world

if TYPE_CHECKING:
    from ..selection.selection import Selection

BUDGET = 0.1
COMPLETIONS = 5
SHARD = 48
"""Small, so that a demo that was killed goes on."""
NOTE = (
    "Synthetic images and questions with ground-truth labels, scored by the small model "
    "that comes with the package. Other models and data can give other results."
)


def found(
    labels: Sequence[str],
    reasons: Sequence[str],
    *,
    order: Sequence[str] = world.CAUSES,
    what: str = "label",
) -> str:
    """The reasons given to the samples of each label, at most 80 columns."""
    width = max(map(len, order)) + 7
    lines = [what.ljust(width) + "reason given"]
    for label in order:
        theirs = Counter(r for p, r in zip(labels, reasons, strict=True) if p == label)
        head = f"{label} {theirs.total()}".ljust(width)
        listed = listing(theirs).replace(", ", ",\n").replace(" ", "\0")
        text = head + listed.replace("\n", " ")
        filled = textwrap.fill(text, 80, subsequent_indent=" " * width)
        lines.append(filled.replace("\0", " "))  # a count and its reason stay together
    return "\n".join(lines)


def run(
    out: Path,
    *,
    n: int = 240,
    seed: int = 0,
    evidence: EvidenceName = "rollouts",
    progress: bool | str = True,
    echo: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Generate ``n`` samples, score, choose a tenth, report.

    Leaves ``out/world-N-SEED`` (JSONL, images, scores), ``out/selection`` and
    ``out/report.html``. Returns ``selection``, ``scores``, ``causes`` (the labels, in
    data-set order), ``kept`` (labels of the kept samples), ``pool_share`` and
    ``kept_share`` of cognitive samples, ``report`` and ``seconds``.

    Raises ``RapConfigError`` for an n out of range, ``RapModelError`` if the shipped
    model is missing or damaged.
    """
    from ..scoring.run import score
    from ..selection.choosing import choose
    from .model import load_demo_model

    begin = time.perf_counter()
    samples = world.draw(n, seed=seed)
    causes = [sample.cause for sample in samples]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, processor = load_demo_model()  # before anything is written: it may be damaged
    work = out / f"world-{n}-{seed}"  # other data never meet these scores
    make_folder(work)
    source = world.write(samples, work)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    echo(
        f"{n} synthetic images with questions and ground-truth labels.\n"
        f"The model is a Qwen2.5-VL of {count:.1f} M parameters, trained for such images.\n"
    )
    scores = score(
        model,
        processor,
        source,
        store=work / f"scores-{evidence}",
        evidence=evidence,
        m1=COMPLETIONS,
        m0=COMPLETIONS,
        sampling=Sampling(max_new_tokens=48),
        batch_size=16,
        shard_size=SHARD,
        progress=progress,
    )
    selection = choose(scores, budget=BUDGET)
    selection.save(out / "selection")
    report = selection.report(
        out / "report.html", title=f"Demo: {n} synthetic samples", note=NOTE
    )
    kept = Counter(causes[i] for i in selection.indices)
    shares = {
        "pool_share": causes.count("cognitive") / n,
        "kept_share": kept["cognitive"] / max(1, kept.total()),
    }
    seconds = time.perf_counter() - begin
    echo(found(causes, selection.table["reason"].to_pylist()))
    echo(
        f"\nkept {kept.total()} of {n}: {listing(kept)}"
        f"\ncognitive: {shares['pool_share']:.0%} of the pool, "
        f"{shares['kept_share']:.0%} of what was kept" + ending(selection, seconds, report)
    )
    return {
        "selection": selection,
        "scores": scores,
        "causes": causes,
        "kept": dict(kept),
        "report": report,
        "seconds": seconds,
        **shares,
    }


def ending(selection: Selection, seconds: float, report: Path) -> str:
    """The last lines of a demo: seconds, warnings, where everything lies, what is next."""
    return (
        f"\n{seconds:.0f} s\n"
        + "".join(f"\nwarning: {text}\n" for text in selection.warnings)
        + f"\n   selection  {report.parent / 'selection'}"
        + f"\n   report     {report}   <- open this\n"
        "\nWith your own model and data:\n"
        "   rap select data.jsonl --model ./your-model --budget 0.09 --out selection/"
    )


def listing(kept: Counter[str]) -> str:
    """Counts and names, the most common first."""
    return ", ".join(f"{count} {cause}" for cause, count in kept.most_common()) or "none"
