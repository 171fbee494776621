"""Does the demo's model see? ``python -m rap.demo.measure``: pass rates by family.

One sampled completion (temperature 1) a held-out question of each family, with its own
picture, without one (``drop``) and with another question's picture (``shuffle``); the
world is of the split ``test``, whose seeds and layouts the training never saw.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import world
from .model import load_demo_model

ARMS = ("image", "drop", "shuffle")
_FINAL = re.compile(r"The answer is (\d+)\.?$")


def answer_in(text: str) -> int | None:
    """The number a completion ends with, or None."""
    found = _FINAL.search(text)
    return int(found[1]) if found else None


def complete(
    model: Any,
    processor: Any,
    questions: Sequence[str],
    scenes: Sequence[world.Scene | None],
    *,
    seed: int = 0,
    sample: bool = True,
    tokens: int = 48,
) -> list[str]:
    """One completion each. All scenes are given, or all are None."""
    import torch

    seen = [scene for scene in scenes if scene is not None]
    picture = "<|vision_start|><|image_pad|><|vision_end|>" if seen else ""
    texts = [
        f"<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in questions
    ]
    inputs = processor(
        text=texts,
        images=[world.render(scene) for scene in seen] or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        out = model.generate(
            **inputs, do_sample=sample, top_k=0, top_p=1.0, max_new_tokens=tokens
        )
    answers = out[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(answers, skip_special_tokens=True)


def held_out(family: str, count: int, seed: int) -> list[world.Question]:
    """Questions of one family in the layouts of the split ``test``."""
    rng = random.Random(f"rap measure 1 {seed} {family}")
    drawable = world.layouts("test")
    return [world.ask(family, rng, rng.choice(drawable)) for _ in range(count)]


def pass_rates(
    model: Any, processor: Any, *, count: int = 100, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{family: {arm: share of right answers}} for every image family."""
    found = {}
    for family in world.IMAGE_FAMILIES:
        asked = held_out(family, count, seed)
        scenes = [q.scene for q in asked]
        pictures: dict[str, list[world.Scene | None]] = {
            "image": list(scenes),
            "drop": [None] * count,
            "shuffle": [*scenes[1:], scenes[0]],
        }
        found[family] = {
            arm: _share(
                asked,
                complete(model, processor, [q.text for q in asked], shown, seed=seed),
            )
            for arm, shown in pictures.items()
        }
    return found


def _share(asked: Sequence[world.Question], texts: Sequence[str]) -> float:
    right = [answer_in(t) == q.answer for q, t in zip(asked, texts, strict=True)]
    return sum(right) / len(right)


def table(rates: dict[str, dict[str, float]]) -> str:
    """The pass rates as a Markdown table, the mean over the families last."""
    mean = {arm: sum(r[arm] for r in rates.values()) / len(rates) for arm in ARMS}
    lines = ["| family | " + " | ".join(ARMS) + " |", "|---|" + "---:|" * len(ARMS)]
    for name, row in [*rates.items(), ("**mean**", mean)]:
        lines.append(f"| {name} | " + " | ".join(f"{row[a]:.1%}" for a in ARMS) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rap.demo.measure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--weights", type=Path, help="a folder other than the shipped one")
    parser.add_argument("--count", type=int, default=100, help="questions a family")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model, processor = load_demo_model(args.weights)
    print(table(pass_rates(model, processor, count=args.count, seed=args.seed)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
