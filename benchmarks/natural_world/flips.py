"""Longer answers of the natural world's model, their attention, and what would change them.

    python -m benchmarks.natural_world.flips --work DIR     # resumes; then flip_table

The shipped model answers in one to three tokens, too few for psi. Here it is asked about a
colour after a sentence that may say another one (`SAYS`), and its own turn is begun for it
(`PREFIX`), so that it first says what it sees: up to `MOST` greedy tokens, then the words
`CLOSE` are put behind and the answer is its own again. For every sample one file holds

- whether the answer changes when the sentence is taken out of the question (both answers
  are greedy, each after its own description), and the probability of the right colour's
  first token as the answer in both;
- attention of all layers and heads, the rows of the response;
- whether the answer changes when one word of the prompt is cut: no token behind it sees
  its column, in any layer, and the response is written anew. The most attended word (last
  layer, mean of heads and of the response's rows), and one by lot.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rap.demo.natural import pictures, world
from rap.demo.natural.model import IMAGE_TOKEN, load_natural_model

LOUD = (
    "My friend says that the {thing} is {colour}.",
    "Yesterday I saw a {colour} {thing}.",
    "In another picture the {thing} was {colour}.",
    "The colour of my car is {colour}.",
)
QUIET = ("My friend drew this picture yesterday.", "I would like to have a {thing}.")
SAYS = LOUD + QUIET
"""Sentences before the question. The loud ones say a colour that the picture has not."""
ASKS = "What colour is the {thing} in the picture? Say what you see, then answer."
PREFIX = "Let us look at the picture. There is"
CLOSE = " So the answer is"
LEAST, MOST, ANSWER = 8, 24, 4
"""Tokens of a description before a full stop ends it, at most, and of an answer."""
N, SEED, BATCH = 168, 31, 24


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture and a question after a sentence. ``said``: its colour, or None."""

    number: int
    form: int
    sentence: str
    question: str
    colour: str
    said: str | None
    picture: Any


def drawn(number: int) -> Asked:
    """Sample ``number``: a pure function of `SEED` and it."""
    rng = random.Random(f"rap natural flips {SEED} {number}")
    draw = world.Draw(rng, "selection")
    thing, colour = draw.pair()
    said = draw.colour_but(colour)
    form = number % len(SAYS)
    return Asked(
        number,
        form,
        SAYS[form].format(thing=thing.name, colour=said),
        ASKS.format(thing=thing.name),
        colour,
        said if form < len(LOUD) else None,
        pictures.one(thing.name, colour),
    )


def colour_of(text: str) -> str | None:
    """The first colour that a text names."""
    words = text.lower().replace("grey", "gray").replace(".", " ").split()
    return next((word for word in words if word in pictures.COLOURS), None)


@dataclass(frozen=True, slots=True)
class Said:
    """A greedy response: token ids; how many are of the description; the logits that its
    answer's first token was chosen by, float32 [V]; log p of each own token."""

    ids: list[int]
    described: int
    logits: np.ndarray
    logp: list[float]


class Asker:
    """The model with what is asked of it here; one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model, self.processor = load_natural_model()
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.close = self.ids(CLOSE)
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.image = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        stops = (i for i, t in enumerate(texts) if t.rstrip().endswith(".") or "\n" in t)
        self.stops = {*stops, self.end}

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, asked: Asked, *, cut: bool) -> str:
        """The prompt up to where the response begins; ``cut``: without the sentence."""
        text = asked.question if cut else f"{asked.sentence} {asked.question}"
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        made = self.processor.apply_chat_template(turn, add_generation_prompt=True)
        return str(made) + PREFIX

    def inputs(self, prompts: list[str], images: list[Any]) -> dict[str, torch.Tensor]:
        """What the model takes, padded on the left."""
        return dict(
            self.processor(text=prompts, images=images, return_tensors="pt", padding=True)
        )

    @torch.inference_mode()
    def respond(
        self, prompts: list[str], images: list[Any], cut: Sequence[int] | None = None
    ) -> list[Said]:
        """Greedy descriptions and answers, one batch. ``cut``: a token of each prompt that
        nothing behind it sees; positions stay."""
        given = self.inputs(prompts, images)
        mask = given["attention_mask"]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        if cut is not None:
            first = (mask == 0).sum(1)
            mask = given["attention_mask"] = mask.clone()
            mask[torch.arange(len(prompts)), first + torch.tensor(cut)] = 0
        out = self.model(**given, position_ids=places, use_cache=True, logits_to_keep=1)
        rows = [_Row(self) for _ in prompts]
        place = places[:, -1:]
        while True:
            logp = out.logits[:, -1].float().log_softmax(-1)
            tokens = [row.take(logp[i]) for i, row in enumerate(rows)]
            if all(row.done for row in rows):
                return [row.said() for row in rows]
            place = place + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            out = self.model(
                input_ids=torch.tensor(tokens)[:, None],
                attention_mask=mask,
                position_ids=place,
                past_key_values=out.past_key_values,
                use_cache=True,
            )

    @torch.inference_mode()
    def embedded(self, asked: Asked, said: Said) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [L] and embeddings [1, L, E] of a prompt and the response up to where
        the answer's first token is chosen."""
        given = self.inputs([self.prompt(asked, cut=False)], [asked.picture])
        known = said.described + len(self.close)
        ids = torch.cat([given["input_ids"][0], torch.tensor(said.ids[:known])])
        embeds = self.model.get_input_embeddings()(ids[None])
        model = self.model.model
        features = model.vision_tower(given["pixel_values"]).last_hidden_state
        image = model.multi_modal_projector(features.flatten(2).permute(0, 2, 1))
        at = (ids == self.image)[None, :, None]
        return ids, embeds.masked_scatter(at, image.to(embeds.dtype))

    @torch.inference_mode()
    def attention(self, embeds: torch.Tensor, rows: int) -> np.ndarray:
        """float32 [layers, heads, rows, L]: the last ``rows`` rows."""
        language = self.model.model.language_model
        before = language.config._attn_implementation
        language.set_attn_implementation("eager")
        try:
            out = language(inputs_embeds=embeds, output_attentions=True, use_cache=False)
        finally:
            language.set_attn_implementation(before)
        return np.stack([a[0, :, -rows:].float().numpy() for a in out.attentions])


class _Row:
    """One response as it grows."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker
        self.ids: list[int] = []
        self.logp: list[float] = []
        self.described: int | None = None
        self.logits = np.zeros(0, np.float32)
        self.done = False

    def take(self, logp: torch.Tensor) -> int:
        """The next token, from log p [V] of all; the end token once it is done."""
        best, asker = int(logp.argmax()), self.asker
        if self.done:
            return int(asker.end)
        if self.described is None:
            over = len(self.ids) >= MOST or best == asker.end
            if not over:
                self._own(best, logp)
                if best in asker.stops and len(self.ids) >= LEAST:
                    self.described = len(self.ids)
                return best
            self.described = len(self.ids)
        behind = len(self.ids) - self.described
        if behind < len(asker.close):
            self.ids.append(asker.close[behind])
            return self.ids[-1]
        if behind == len(asker.close):
            self.logits = logp.numpy().copy()
        if best in asker.stops:
            self.done = True
            return int(asker.end)
        self._own(best, logp)
        self.done = behind + 1 >= len(asker.close) + ANSWER
        return best

    def _own(self, token: int, logp: torch.Tensor) -> None:
        self.ids.append(token)
        self.logp.append(float(logp[token]))

    def said(self) -> Said:
        assert self.described is not None
        return Said(self.ids, self.described, self.logits, self.logp)


def spans(asker: Asker, ids: list[int], asked: Asked) -> dict[str, np.ndarray]:
    """bool [L] each, tokens of the prompt: ``image``, ``sentence``, ``question``. All else
    is template, or the response."""
    text = "\n" + f"{asked.sentence} {asked.question}"
    found = {"image": np.array([i == asker.image for i in ids])}
    offsets = asker.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    at = _find(ids, list(offsets["input_ids"]))
    cuts = {
        "sentence": (1, 1 + len(asked.sentence)),
        "question": (2 + len(asked.sentence), len(text)),
    }
    for name, (a, b) in cuts.items():
        mask = np.zeros(len(ids), bool)
        for k, (x, y) in enumerate(offsets["offset_mapping"]):
            mask[at + k] = max(a, x) < min(b, y)
        found[name] = mask
    return found


def _find(ids: list[int], part: list[int]) -> int:
    """Where ``part`` begins. Raises ValueError if it is not there."""
    for at in range(len(ids) - len(part) + 1):
        if ids[at : at + len(part)] == part:
            return at
    raise ValueError("the question's tokens are not in the prompt")


def words(asker: Asker, ids: list[int]) -> np.ndarray:
    """bool [L]: tokens that hold a letter or a digit and are no special token."""
    special = set(asker.tokenizer.all_special_ids) | {asker.image}
    texts = asker.tokenizer.batch_decode([[i] for i in ids])
    return np.array(
        [
            any(c.isalnum() for c in t) and i not in special
            for i, t in zip(ids, texts, strict=True)
        ]
    )


def looked(asker: Asker, asked: Asked, said: Said) -> dict[str, Any]:
    """Attention behind a response, and the two words to cut."""
    ids, embeds = asker.embedded(asked, said)
    rows = said.described + len(asker.close)
    listed = ids.tolist()
    span, word = spans(asker, listed, asked), words(asker, listed)
    a = asker.attention(embeds, rows)
    columns = np.flatnonzero(word & (span["sentence"] | span["question"]))
    most = int(columns[a[-1].mean((0, 1))[columns].argmax()])
    lot = random.Random(f"lot {asked.number}").choice(columns.tolist())
    return {
        "rows": rows,
        "a": a.astype(np.float32),
        "word": word,
        "tokens": np.array(listed),
        "columns": np.array([most, lot]),
        **{f"span_{name}": mask for name, mask in span.items()},
    }


def told(asker: Asker, asked: Asked, arms: dict[str, Said]) -> dict[str, Any]:
    """What the responses of a sample say. ``arms``: with the sentence, "", and others."""
    right = asker.ids(" " + asked.colour)[0]
    found: dict[str, Any] = {
        "form": asked.form,
        "colour": asked.colour,
        "said": asked.said or "",
        "logp": float(np.mean(arms[""].logp)),
        "described": arms[""].described,
    }
    logits = arms[""].logits.astype(np.float64)
    found["entropy"] = float(-(np.exp(logits) * logits).sum())
    for name, said in arms.items():
        answer = asker.tokenizer.decode(said.ids[said.described + len(asker.close) :])
        found[f"text{name}"] = asker.tokenizer.decode(said.ids)
        found[f"answer{name}"] = colour_of(answer) or answer.strip()
        found[f"p{name}"] = float(np.exp(said.logits[right]))
    return found


def collect(asker: Asker, batch: Sequence[Asked], folder: Path) -> None:
    """A file a sample."""
    prompts = [asker.prompt(a, cut=cut) for cut in (False, True) for a in batch]
    images = [a.picture for a in batch]
    said = asker.respond(prompts, images * 2)
    n = len(batch)
    seen = [looked(asker, a, s) for a, s in zip(batch, said[:n], strict=True)]
    cuts = [int(one["columns"][k]) for k in range(2) for one in seen]
    again = asker.respond(prompts[:n] * 2, images * 2, cuts)
    for k, asked in enumerate(batch):
        arms = {"": said[k], "_cut": said[n + k], "_most": again[k], "_lot": again[n + k]}
        path = folder / f"{asked.number:04d}.npz"
        whole = path.with_suffix(".tmp.npz")
        np.savez(whole, **seen[k], **told(asker, asked, arms))
        whole.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=N)
    options = parser.parse_args()
    folder = options.work / "flips"
    folder.mkdir(parents=True, exist_ok=True)
    asker = Asker()
    for start in range(0, options.n, BATCH):
        batch = [drawn(i) for i in range(start, min(options.n, start + BATCH))]
        if not all((folder / f"{a.number:04d}.npz").is_file() for a in batch):
            collect(asker, batch, folder)
        print(start + len(batch), flush=True)


if __name__ == "__main__":
    main()
