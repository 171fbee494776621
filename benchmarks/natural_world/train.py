"""Trains the natural world's projector and low-rank updates (rap/demo/natural/model.py).

    python -m benchmarks.natural_world.train --out work/                # to the end
    python -m benchmarks.natural_world.train --out work/ --seconds 500  # a piece; resumes
    python -m benchmarks.natural_world.train --out work/ --measure 400  # test split

Stage A, ``WORDS`` steps: the projector alone, squared error between each image token and
the word embeddings of the colour and object that the picture shows there. Stage B: cross
entropy of the answer's tokens, through the frozen language model with low-rank updates of
its query and value projections. Step s is a pure function of (seed, s).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rap.demo.natural import model as built
from rap.demo.natural import pictures, world
from rap.demo.natural.parts import LANGUAGE, part_path, sha256

SEED = 0
WORDS = 250
WORDS_BATCH = 48
STEPS = 700
BATCH = 16
RATE = 4e-4
WORDS_RATE = 1e-3
LOG = "training.jsonl"


class Updated(nn.Module):
    """A frozen linear layer with a low-rank update."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(
            torch.randn(rank, linear.in_features) / linear.in_features**0.5
        )
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return self.linear(x) + x @ self.down.T @ self.up.T


class Trainer:
    """The run's state: model, optimisers, next step; saved and resumed as a whole."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        self.processor = built.build_processor(part_path(LANGUAGE).parent)
        self.model = built.build_model(self.processor).requires_grad_(False)
        self.projector = self.model.model.multi_modal_projector.requires_grad_(True)
        self.updates: dict[str, Updated] = {}
        for k, layer in enumerate(self.model.model.language_model.layers):
            for part in built.UPDATED:
                update = Updated(getattr(layer.self_attn, part), built.RANK)
                setattr(layer.self_attn, part, update)
                self.updates[f"{k}.{part}"] = update
        low = [p for u in self.updates.values() for p in (u.down, u.up)]
        groups = [
            {"params": list(self.projector.parameters())},
            {"params": low},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.step = 0
        self.seconds = 0.0

    def trained(self) -> dict[str, torch.Tensor]:
        """What is shipped, float16."""
        tensors = {f"projector.{k}": v for k, v in self.projector.state_dict().items()}
        for name, update in self.updates.items():
            tensors[f"{name}.down"] = update.down
            tensors[f"{name}.up"] = update.up
        return {k: v.detach().half().contiguous() for k, v in tensors.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        low = {k: (u.down.data, u.up.data) for k, u in self.updates.items()}
        return {
            "projector": self.projector.state_dict(),
            "low": low,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.projector.load_state_dict(state["projector"])
        for k, (down, up) in state["low"].items():
            self.updates[k].down.data.copy_(down)
            self.updates[k].up.data.copy_(up)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def image_tokens(self, images: list[Any]) -> torch.Tensor:
        """Pictures -> [n, 9, hidden]; the encoder is frozen."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = self.model.model.vision_tower(pixels).last_hidden_state
        return self.projector(features.flatten(2).permute(0, 2, 1))

    def take(self) -> dict[str, float]:
        """One step of its stage."""
        begin = time.process_time()
        words = self.step < WORDS
        loss = self.words_loss() if words else self.answer_loss()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(
            [p for g in self.optimiser.param_groups for p in g["params"]], 1.0
        )
        self.optimiser.step()
        self.step += 1
        self.seconds += time.process_time() - begin
        return {"step": self.step, "loss": float(loss), "seconds": round(self.seconds, 1)}

    def rate(self) -> float:
        """Up over 10 steps, down as a cosine to the end of the stage."""
        first, length, top = (
            (0, WORDS, WORDS_RATE) if self.step < WORDS else (WORDS, STEPS - WORDS, RATE)
        )
        done = (self.step - first) / length
        return (
            top
            * min(1.0, (self.step - first + 1) / 10)
            * (0.5 + 0.5 * math.cos(math.pi * done))
        )

    def words_loss(self) -> torch.Tensor:
        """Stage A: image tokens against word embeddings, squared error."""
        rng = random.Random(f"words {SEED} {self.step}")
        images, targets, masks = zip(
            *(self._cells(rng) for _ in range(WORDS_BATCH)), strict=True
        )
        got = self.image_tokens(list(images))
        target = torch.stack(targets)
        mask = torch.tensor(masks, dtype=torch.float32)[..., None]
        return (
            ((got - target).square() * mask).sum()
            / mask.sum()
            / target.square().mean()
            / got.shape[-1]
        )

    def word(self, text: str) -> torch.Tensor:
        """Mean embedding of a word's tokens, as in the middle of a sentence."""
        ids = self.processor.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        return self.model.get_input_embeddings().weight[ids].mean(0)

    def _cells(self, rng: random.Random) -> tuple[Any, torch.Tensor, list[bool]]:
        """A picture, the target of its nine cells and which of them have one."""
        draw = world.Draw(rng, "train")
        zero = torch.zeros(self.model.config.text_config.hidden_size)
        cells: list[torch.Tensor | None]
        kind = rng.random()
        if kind < 0.5:
            thing, colour = draw.pair()
            shown = thing.usual if thing.usual and rng.random() < 0.2 else colour
            image = pictures.one(thing.name, None if shown == thing.usual else shown)
            cells = [self.word(shown) + self.word(thing.name)] * 9
        elif kind < 0.75:
            (a, one), (b, two) = draw.pair(), draw.pair()
            image = pictures.pair((a.name, one), (b.name, two))
            left, right = (
                self.word(one) + self.word(a.name),
                self.word(two) + self.word(b.name),
            )
            cells = [left, None, right] * 3
        elif kind < 0.87:
            thing, colour = draw.pair()
            count = rng.randint(1, 4)
            image = pictures.several(thing.name, colour, count)
            value = self.word(colour) + self.word(thing.name)
            corner = [value if k < count else zero for k in range(4)]
            cells = [
                corner[0],
                None,
                corner[2],
                None,
                None,
                None,
                corner[3],
                None,
                corner[1],
            ]
        else:
            colours = rng.sample(list(pictures.COLOURS), 3)
            heights = rng.sample([1, 2, 3], 3)
            image = pictures.bars(colours, heights)
            cells = [
                self.word(colours[k]) if heights[k] >= 3 - row else zero
                for row in range(3)
                for k in range(3)
            ]
        return (
            image,
            torch.stack([zero if c is None else c for c in cells]),
            [c is not None for c in cells],
        )

    def answer_loss(self) -> torch.Tensor:
        """Stage B: cross entropy of the answer and the end of the turn."""
        rng = random.Random(f"answers {SEED} {self.step}")
        samples = []
        for _ in range(BATCH):
            names = list(world.TAUGHT)
            family = rng.choices(names, weights=[world.FAMILIES[n][1] for n in names])[0]
            samples.append(world.FAMILIES[family][0](world.Draw(rng, "train")))
        prompts = [self.prompt(s.text + world.END) for s in samples]
        answers = [
            self.processor.tokenizer(s.answer + "<|im_end|>", add_special_tokens=False)[
                "input_ids"
            ]
            for s in samples
        ]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.full((BATCH, length), pad)
        labels = torch.full((BATCH, length), -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        embeds = self.model.get_input_embeddings()(ids)
        mask = (ids == self.model.config.image_token_id)[..., None]
        tokens = self.image_tokens([s.picture for s in samples])
        embeds = embeds.masked_scatter(mask, tokens)
        hidden = self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=(ids != pad).long(), use_cache=False
        ).last_hidden_state
        at = labels[:, 1:] != -100
        logits = self.model.lm_head(hidden[:, :-1][at])
        return nn.functional.cross_entropy(logits, labels[:, 1:][at])

    def prompt(self, text: str) -> list[int]:
        """Token ids of the prompt with nine image tokens."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        shown = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        ).replace(built.IMAGE_TOKEN, built.IMAGE_TOKEN * built.IMAGE_TOKENS)
        return list(self.processor.tokenizer(shown, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def measure(self, n: int) -> dict[str, float]:
        """Greedy accuracy of every family on ``n`` samples of the test split."""
        right: dict[str, list[bool]] = defaultdict(list)
        samples = world.draw(n, seed=1, split="test")
        for sample in samples:
            ids = torch.tensor([self.prompt(sample.question)])
            embeds = self.model.get_input_embeddings()(ids)
            mask = (ids == self.model.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(mask, self.image_tokens([sample.picture]))
            out = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
            )
            text = self.processor.tokenizer.decode(out[0], skip_special_tokens=True)
            right[sample.family].append(text.strip(" .").lower() == sample.answer)
        return {k: round(sum(v) / len(v), 3) for k, v in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--measure", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"
    trainer = Trainer()
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
    if options.measure:
        print(trainer.step, trainer.measure(options.measure))
        return
    end = time.monotonic() + options.seconds
    while trainer.step < STEPS and time.monotonic() < end:
        line = trainer.take()
        with (options.out / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        if trainer.step % 20 == 0 or time.monotonic() > end or trainer.step == STEPS:
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(trainer.state(), temporary)
            temporary.replace(checkpoint)
    if trainer.step == STEPS:
        ship(trainer, options.out / "weights")


def ship(trainer: Trainer, folder: Path) -> None:
    """The trained part and its hash."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(trainer.trained(), folder / built.TRAINED)
    manifest = {built.TRAINED: sha256(folder / built.TRAINED)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
