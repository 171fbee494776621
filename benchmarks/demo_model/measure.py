"""Does the demo's model see? Pass rates by family of question.

    python -m benchmarks.demo_model.measure

One sampled completion (temperature 1) a held-out question of each family, with its own
picture, without one (``drop``), with another question's picture (``shuffle``) and with a
picture of its mean colour (``blank``); the questions are of the split ``test``, whose seeds
and layouts the training never saw. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rap.demo import world
from rap.demo.model import load_demo_model
from rap.model.counterfactual import counterfactual_images

if TYPE_CHECKING:
    from PIL.Image import Image

ARMS = ("image", "drop", "shuffle", "blank")
_FINAL = re.compile(r"The answer is (\d+)\.?$")


def answer_in(text: str) -> int | None:
    """The number a completion ends with, or None."""
    found = _FINAL.search(text)
    return int(found[1]) if found else None


def complete(
    model: Any,
    processor: Any,
    questions: Sequence[str],
    scenes: Sequence[world.Scene | Image | None],
    *,
    seed: int = 0,
    sample: bool = True,
    tokens: int = 48,
) -> list[str]:
    """One completion each. All scenes (or pictures) are given, or all are None."""
    import torch

    seen = [scene for scene in scenes if scene is not None]
    picture = "<|vision_start|><|image_pad|><|vision_end|>" if seen else ""
    texts = [
        f"<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in questions
    ]
    inputs = processor(
        text=texts,
        images=[_picture(shown) for shown in seen] or None,
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


def _picture(shown: world.Scene | Image) -> Image:
    return world.render(shown) if isinstance(shown, world.Scene) else shown


def _blanks(scenes: Sequence[world.Scene]) -> list[Image]:
    drawn = [world.render(scene) for scene in scenes]
    return counterfactual_images(drawn, "blank", seed=0) or []


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
        pictures: dict[str, list[world.Scene | Image | None]] = {
            "image": list(scenes),
            "drop": [None] * count,
            "shuffle": [*scenes[1:], scenes[0]],
            "blank": list(_blanks(scenes)),
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


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` independent trials; z = 1.96: 95 %."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = share * (1 - share) / count + z * z / (4 * count * count)
    half = z * spread**0.5 / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def table(rates: dict[str, dict[str, float]], count: int) -> str:
    """The pass rates of ``count`` questions a family with their intervals as a Markdown
    table, all families together last."""
    together = {arm: sum(r[arm] for r in rates.values()) / len(rates) for arm in ARMS}
    lines = ["| family | " + " | ".join(ARMS) + " |", "|---|" + "---:|" * len(ARMS)]
    for name, row in rates.items():
        lines.append(f"| {name} | {_cells(row, count)} |")
    lines.append(f"| **all** | {_cells(together, count * len(rates))} |")
    return "\n".join(lines)


def _cells(row: dict[str, float], count: int) -> str:
    shown = []
    for arm in ARMS:
        low, high = interval(row[arm], count)
        shown.append(f"{row[arm]:.1%} ({low:.1%} .. {high:.1%})")
    return " | ".join(shown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_model.measure", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--weights", type=Path, help="a folder other than the shipped one")
    parser.add_argument("--count", type=int, default=100, help="questions a family")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model, processor = load_demo_model(args.weights)
    rates = pass_rates(model, processor, count=args.count, seed=args.seed)
    print(table(rates, args.count))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
