"""A user's script with a planted error on each marked line.

Type checkers must report these lines and no other; it is never run.
"""

from pathlib import Path
from typing import Any

from numpy import ndarray as Array

import rap
import rap.trl


def kernels(logits1: Array, logits0: Array, q: Array, k: Array) -> None:
    rap.cde(logits1, logits0, wants=("kl",))  # planted: no such keyword
    rap.cde(logits1)  # planted: an argument is missing
    rap.cde(logits1, logits0, threads="two")  # planted: threads is a number
    print(rap.cde(logits1, logits0).kullback)  # planted: no such divergence
    rap.linear_cde(logits1, logits0, logits0, memory="64 MiB")  # planted: bytes
    rap.ace(q, k)  # planted: response_start is required
    rap.ace(q, k, 5)  # planted: response_start goes by name
    rap.ace(q, k, response_start=5, sigma="2")  # planted: sigma is a number
    rap.drm(logits1[0], k="ten")  # planted: k is a number
    rap.kl(logits1, logits0)  # planted: no such function


def choosing(path: Path) -> None:
    scores = rap.Scores.from_rollouts(path, ident="id")  # planted: the keyword is id
    rap.choose(scores, bugdet=0.09)  # planted: a misspelt keyword
    rap.choose(scores, budget="9 %")  # planted: budget is a share
    rap.choose(scores, rule="newest")  # planted: no such rule
    selection = rap.choose(scores, budget=0.09)
    print(selection.idices)  # planted: a misspelt attribute
    selection.save()  # planted: where to?
    selection.counts().keys_sorted()  # planted: counts() is a dict
    selection.table = None  # planted: a selection does not change
    text: str = selection.indices  # planted: indices is an array
    rap.load(text).summary(wide=True)  # planted: summary takes nothing


def driving(model: Any, processor: Any, data: Any) -> None:
    rap.select(model, processor, data, budget="a tenth")  # planted: budget is a share
    rap.select(model, processor, data, bugdet=0.1)  # planted: a misspelt keyword
    rap.score(model, processor, data, config={"m1": 5})  # planted: a ScoreConfig
    rap.score(model, processor, data, store=5)  # planted: store is a path
    rap.ScoreConfig(m2=5)  # planted: no such setting
    rap.Sampling(temperature="hot")  # planted: temperature is a number
    rap.trl.Reselect(every="often")  # planted: every is a number of steps


def main() -> int:
    try:
        choosing(Path("scores"))
    except rap.RapInputErr:  # planted: no such error
        return 1
    return rap.info()  # planted: info() is a dict
