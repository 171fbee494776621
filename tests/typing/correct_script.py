"""A user's script without a mistake: what the README shows, and a little more.

Type checkers must find nothing in it; it is never run.
"""

from pathlib import Path
from typing import Any

from numpy import ndarray as Array

import rap
import rap.trl


def kernels(logits1: Array, logits0: Array, q: Array, k: Array) -> float:
    found = rap.cde(logits1, logits0, want=("kl", "js"), threads=2)
    whole = rap.linear_cde(logits1, logits0, logits0, memory=64 << 20, softcap=30.0)
    attention = rap.ace(q, k, response_start=5, sigma=2.0, heads="max", window=None)
    hardest = rap.drm(1 - logits1[0], 10, gain=logits0[0])
    return float(found.kl.mean() + whole.js.sum() + attention.log_psi[0] + hardest[0])


def choosing(path: Path) -> rap.Selection:
    scores = rap.Scores.from_rollouts(path, id="id", with_image="image", correct="passed")
    selection = rap.choose(scores, budget=0.09, rule="budget", by="subject")
    share = len(selection.indices) / selection.table.num_rows
    print(selection.summary(), f"{share:.1%}", selection.counts()["kept"])
    selection.report("report.html")
    selection.save("selection/")
    return rap.load("selection/", dataset=[{"question": "1 + 1?"}])


def driving(model: Any, processor: Any, data: Any) -> rap.Selection:
    sampling = rap.Sampling(temperature=0.7, max_new_tokens=256)
    options = rap.ScoreConfig(evidence="rollouts", m1=5, sampling=sampling)
    scores = rap.score(model, processor, data, config=options, store="scores/", m0=4)
    try:
        print(rap.choose(scores, rule="paper", lambda_c=0.5, lambda_a=0.1).warnings)
    except (rap.RapConfigError, rap.RapInputError) as error:
        print(error)
    selection = rap.select(model, processor, data, budget=0.09, store=Path("scores"))
    rap.trl.Reselect(selection, mode="rewards", every=50, refill=2)
    print(rap.trl.prepare(selection, pool=True), rap.info()["threads"])
    return selection
