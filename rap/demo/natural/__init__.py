"""``rap demo --world natural``: pictures, questions and a model whose language is real.

`pictures` draws, `world` asks, `parts` finds the published weights, `model` puts them
together. Nothing is planted: the table at the end lists the reasons by family of question
(`world`), because what a sample is for the model is measured, not known.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...config import EvidenceName, Sampling
from ...scores.files import make_folder
from ..run_world import ending, found, listing

BUDGET = 0.1
COMPLETIONS = 5
SHARD = 32
NOTE = (
    "Emoji in natural and unnatural colours, read by SmolLM2-135M-Instruct through an "
    "ImageNet encoder. What a question needs is measured, not planted."
)


def run(
    out: Path,
    *,
    n: int = 120,
    seed: int = 0,
    evidence: EvidenceName = "rollouts",
    progress: bool | str = True,
    echo: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Draw ``n`` samples, score, choose a tenth, report.

    Leaves ``out/natural-N-SEED`` (JSONL, images, scores), ``out/selection`` and
    ``out/report.html``. Returns ``selection``, ``scores``, ``families`` (in data-set
    order), ``kept`` (families of the kept samples), ``report`` and ``seconds``.

    Raises ``RapModelError`` naming the command if the weights are not installed,
    ``RapInputError`` if the emoji font is not.
    """
    from ...scoring.run import score
    from ...selection.choosing import choose
    from . import world
    from .model import load_natural_model
    from .parts import require_parts
    from .pictures import require_font

    begin = time.perf_counter()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    require_parts()
    require_font()  # before a model is put together, which takes a minute the first time
    model, processor = load_natural_model()  # before anything is written: it may be missing
    samples = world.draw(n, seed=seed)
    families = [sample.family for sample in samples]
    work = out / f"natural-{n}-{seed}"
    make_folder(work)
    source = world.write(samples, work)
    echo(f"{n} pictures with questions; the model is SmolLM2-135M-Instruct with eyes.\n")
    scores = score(
        model,
        processor,
        source,
        store=work / f"scores-{evidence}",
        evidence=evidence,
        m1=COMPLETIONS,
        m0=COMPLETIONS,
        sampling=Sampling(max_new_tokens=8),
        shard_size=SHARD,
        progress=progress,
    )
    selection = choose(scores, budget=BUDGET)
    selection.save(out / "selection")
    report = selection.report(
        out / "report.html", title=f"Natural world: {n} samples", note=NOTE
    )
    kept = Counter(families[i] for i in selection.indices)
    seconds = time.perf_counter() - begin
    reasons = selection.table["reason"].to_pylist()
    echo(found(families, reasons, order=tuple(world.FAMILIES), what="family"))
    echo(
        f"\nkept {kept.total()} of {n}: {listing(kept)}{ending(selection, seconds, report)}"
    )
    return {
        "selection": selection,
        "scores": scores,
        "families": families,
        "kept": dict(kept),
        "report": report,
        "seconds": seconds,
    }
