"""CPU seconds of scoring a pool by each evidence, stage by stage, with the counts.

    OMP_NUM_THREADS=1 python -m benchmarks.scoring_seconds [EVIDENCE ...]

600 samples of a pool of the training benchmark (`training_second`), the demo's model, one
thread, batches of 16. Process time, not time on the wall: the machine may be busy. Prints
one line of JSON an evidence; the numbers in results/cascade.md are from here.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from . import training
from .training_second import Plan

N, SEED, BATCH = 600, 211, 16
EVIDENCE = ("answer", "logits", "rollouts", "cascade")


def settings_of(evidence: str) -> dict[str, Any]:
    """Those of the training benchmark."""
    from rap.config import GRADED, Sampling

    base = Plan().base
    if evidence not in GRADED:
        return {"evidence": evidence}
    completions = {"m1": base.completions, "m0": base.completions}
    sampling = Sampling(max_new_tokens=base.tokens)
    return {"evidence": evidence, "sampling": sampling, **completions}


def measure(evidence: str, n: int = N) -> dict[str, Any]:
    """One scoring run from nothing: seconds of this process and of its checker, those of
    its own thread by stage, counts."""
    from rap import score
    from rap.demo import world
    from rap.samples.sampleset import open_samples
    from rap.scoring import profiling
    from rap.stopwatch import Stopwatch

    samples = open_samples(world.to_dataset(world.draw(n, seed=SEED)))
    model, processor = training.load("")
    own = partial(Stopwatch, clock=time.thread_time)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(profiling, "Stopwatch", own),
    ):
        begin, children = time.process_time(), _children()
        scores = score(
            *(model, processor, samples),
            batch_size=BATCH,
            store=Path(folder) / "store",
            progress=False,
            profile=True,
            **settings_of(evidence),
        )
        seconds = time.process_time() - begin
    profile = scores.meta["profile"]
    return {
        "evidence": evidence,
        "samples": n,
        "seconds": round(seconds, 1),
        "checker": round(_children() - children, 1),
        "load": round(os.getloadavg()[0], 1),
        "completions": scores.meta["cost"].get("rollouts", 0),
        "counts": profile["counts"],
        "stages": {k: round(v, 1) for k, v in profile["seconds"].items()},
        "beside": {k: round(v, 1) for k, v in profile["beside"].items()},
    }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    import torch

    torch.set_num_threads(1)
    for evidence in argv or EVIDENCE:
        print(json.dumps(measure(evidence)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
