"""Does the answer depend on the token that ACE points at? ``rap check MODEL --cut STORE``.

psi says that later tokens look at one token, not that they use it. Here the token is cut
out of the sight of all that follows, in every layer, and so are other tokens of the same
response, drawn at random: if cutting the flagged one moves the answer's log-probability no
more than cutting any other, the flag says nothing about the answer.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ScoreConfig
from ..errors import RapConfigError, RapInputError
from ..model.rollouts import IMAGE_ARM
from ..samples.answers import read_answer
from ..samples.sampleset import SampleSet, open_samples
from ..scores.fingerprint import in_words, other_run
from ..scores.scores import Scores
from .jobs import reference_text
from .prepare import prepare_job

if TYPE_CHECKING:
    from ..model.batching import Prepared
    from ..model.driver import ModelDriver
    from ..samples.sample import Sample

DRAWS = 2000
"""Resamplings of an interval."""
FEW = 6
"""Samples below which there is no verdict: of five all differences have one sign, and so
their interval leaves out 0, one time in sixteen by chance."""


@dataclass(frozen=True, slots=True)
class CutSample:
    """One sample: what its answer owes to the flagged token, and to others."""

    id: str
    token: str
    """The flagged one."""
    position: int
    """Its index in prompt + response."""
    log_psi: float
    answer: str
    """The tokens whose log-probability is read."""
    logp: float
    """Their log-probability, nats, nothing cut."""
    logp_cut: float
    """The same without the flagged token."""
    logp_others: tuple[float, ...]
    """The same without each of the other tokens."""
    moved: bool
    """Without the flagged token another token is the most probable somewhere in the
    answer."""
    moved_others: float
    """Share of the other tokens of which that is true."""

    @property
    def change(self) -> float:
        """|change| of the answer's log-probability without the flagged token, nats."""
        return abs(self.logp_cut - self.logp)

    @property
    def change_others(self) -> float:
        """The mean of the same over the other tokens."""
        return float(np.mean([abs(x - self.logp) for x in self.logp_others]))


@dataclass(frozen=True, slots=True)
class CutReport:
    """What ``rap.cut`` found."""

    samples: tuple[CutSample, ...]
    """Those measured, the largest psi first."""
    skipped: int
    """Samples with a psi whose flagged token is not before the answer, or that have no
    other token before it."""
    seed: int = 0

    @property
    def change(self) -> float:
        """Mean |change| of the answer's log-probability without the flagged token."""
        return float(np.mean([s.change for s in self.samples]))

    @property
    def change_others(self) -> float:
        """Mean |change| without another token."""
        return float(np.mean([s.change_others for s in self.samples]))

    @property
    def difference(self) -> tuple[float, float, float]:
        """``change - change_others`` and its 95 % interval (bootstrap over samples)."""
        each = np.array([s.change - s.change_others for s in self.samples])
        drawn = np.random.default_rng(self.seed).integers(
            len(each), size=(DRAWS, len(each))
        )
        low, high = np.quantile(each[drawn].mean(axis=1), [0.025, 0.975])
        return float(each.mean()), float(low), float(high)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if len(self.samples) < FEW:
            return f"{len(self.samples)} of at least {FEW} samples: too few to say"
        _, low, high = self.difference
        if low > 0:
            return "the answer depends on the flagged token more than on another one"
        if high < 0:
            return (
                "the answer depends on the flagged token less than on another one: psi "
                "says nothing against these samples"
            )
        return "the answer depends on the flagged token no more than on another one"

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the means, the interval, the verdict, every sample."""
        mean, low, high = self.difference
        return {
            "change": self.change,
            "change_others": self.change_others,
            "difference": mean,
            "interval": [low, high],
            "verdict": self.verdict,
            "skipped": self.skipped,
            "samples": [dataclasses.asdict(s) for s in self.samples],
        }

    def __str__(self) -> str:
        mean, low, high = self.difference
        moved = np.mean([s.moved for s in self.samples])
        others = np.mean([s.moved_others for s in self.samples])
        lines = {
            "cut": f"{len(self.samples)} samples with the largest psi"
            + (f" ({self.skipped} more have no token to cut)" if self.skipped else ""),
            "flagged": f"without it the answer's log-probability changes by "
            f"{self.change:.3g} nats; the most probable answer changes in {moved:.0%}",
            "others": f"{self.change_others:.3g} nats, {others:.0%}",
            "difference": f"{mean:+.3g} nats, 95 % interval {low:+.3g} .. {high:+.3g}",
            "verdict": self.verdict,
        }
        return "\n".join(f"{name:<12} {text}" for name, text in lines.items())


def cut(
    model: Any,
    processor: Any,
    data: object,
    scores: Scores,
    *,
    samples: int = 64,
    others: int = 4,
    seed: int = 0,
) -> CutReport:
    """Cut the token that decided psi, and ``others`` tokens drawn at random, out of the
    sight of all later tokens in all layers, and read the answer's log-probability.

    model, processor: as for ``rap.score``; ``data``: the data set that was scored;
    ``scores``: of evidence ``rollouts`` or ``cascade``, with their completions. The
    ``samples`` with the largest finite psi are taken: those that a limit on psi would drop
    first. The response is the one that psi was read from (the first right completion); the
    answer is where it last names the reference answer (without its markup: as a letter
    where the prompt lists choices, else by its text), or its last token if it does not.
    Other tokens are of the same part (prompt or response), before the answer, not special.

    Prompts are made as they were for scoring (``prompt_template``, ``system_prompt``).

    Raises ``RapConfigError`` for samples or others < 1; ``RapInputError`` if the scores
    have no psi or no completions, were made with another model or processor, or a sample is
    not in ``data``; ``RapModelError`` if the model is not supported.
    Passes ``torch.OutOfMemoryError``.
    """
    least = {"samples": (samples, 1), "others": (others, 1), "seed": (seed, 0)}
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise RapConfigError(f"{name} = {value!r}: expected an integer >= {low}")
    rows = _rows(scores)
    _require_completions(scores)
    from ..model.capture import UnsupportedModelError, unsupported
    from ..model.driver import ModelDriver

    config = _config(scores)
    driver = ModelDriver(model, processor, config)
    _require_its_model(driver, scores)
    opened = data if isinstance(data, SampleSet) else open_samples(data)
    found: list[CutSample] = []
    skipped = 0
    for row, response in _with_responses(scores, rows, 4 * samples):
        if len(found) == samples:
            break
        job = prepare_job(opened, driver, config, _index(opened, row))
        if job.image is None or response is None:
            skipped += 1
            continue
        if row["n_prompt"] not in (None, job.image.n_prompt):
            raise RapInputError(
                f"sample {row['id']!r}: its prompt has {job.image.n_prompt} tokens here, "
                f"{row['n_prompt']} where it was scored: it is not the prompt that was "
                "scored"
            )
        prepared = driver.with_response(job.image, response)
        assert job.sample is not None  # it has an image prompt
        rng = random.Random(f"rap cut {seed} {row['id']}")
        try:
            named = _names(job.sample, config)
            one = _measure(driver, prepared, row, named, others, rng)
        except UnsupportedModelError as error:
            raise unsupported(model, error) from error
        if one is None:
            skipped += 1
        else:
            found.append(one)
    if not found:
        raise RapInputError(
            f"of {len(rows)} samples with a psi none has its flagged token before its "
            "answer"
        )
    return CutReport(tuple(found), skipped, seed)


PROMPT = (
    *("prompt_template", "system_prompt", "counterfactual"),
    *("max_prompt_tokens", "max_image_pixels"),
)
"""Settings of a store that its prompts depend on."""


def _config(scores: Scores) -> ScoreConfig:
    """With the prompts of the store."""
    stored = scores.meta.get("fingerprint", {}).get("config", {})
    return ScoreConfig(
        evidence="rollouts", **{name: stored[name] for name in PROMPT if name in stored}
    )


def _require_its_model(driver: ModelDriver, scores: Scores) -> None:
    """psi of one model says nothing of another. Scores from elsewhere name none."""
    stored = scores.meta.get("fingerprint", {}).get("model")
    if stored is None:
        return
    lines = other_run({"model": driver.identity()}, {"model": stored})
    if lines:
        raise RapInputError(
            f"these scores are not of this model: {'; '.join(map(in_words, lines))}"
        )


def _rows(scores: Scores) -> pa.Table:
    """The samples with a finite psi, the largest first."""
    names = ["id", "index", "log_psi", "psi_position", "psi_token", "n_prompt"]
    parts = (t.filter(pc.is_finite(t["log_psi"])) for t in scores.reader.batches(names))
    rows = pa.concat_tables(parts).combine_chunks()
    if not rows.num_rows:
        raise RapInputError("these scores have no psi: there is no token to cut")
    return rows.sort_by([("log_psi", "descending"), ("index", "ascending")])


def _require_completions(scores: Scores) -> None:
    there = scores.completions
    if there is None or "token_ids" not in there.column_names:
        raise RapInputError(
            "these scores hold no completions, so the response that psi was read from is "
            "not known; evidence rollouts and cascade keep them"
        )


def _with_responses(
    scores: Scores, rows: pa.Table, many: int
) -> Iterator[tuple[dict[str, Any], list[int] | None]]:
    """(row, tokens of its response; None: no completion is right), read for so ``many``
    rows at a time: of a large store few are wanted."""
    for start in range(0, rows.num_rows, many):
        block = rows.slice(start, many)
        said = _responses(scores, block["id"])
        for row in block.to_pylist():
            yield row, said.get(row["id"])


def _responses(scores: Scores, wanted: pa.ChunkedArray) -> dict[str, list[int]]:
    """Tokens of the first right completion with the image, by sample."""
    first: dict[str, tuple[int, list[int]]] = {}
    assert scores.completions is not None
    for table in scores.completions.tables():
        asked = pc.and_kleene(pc.equal(table["arm"], IMAGE_ARM), table["correct"])
        asked = pc.and_kleene(asked, pc.is_in(table["id"], value_set=wanted))
        for r in table.filter(asked).select(["id", "number", "token_ids"]).to_pylist():
            if r["token_ids"] is None:
                continue
            if r["id"] not in first or r["number"] < first[r["id"]][0]:
                first[r["id"]] = (r["number"], r["token_ids"])
    return {id: ids for id, (_, ids) in first.items()}


def _index(opened: Any, row: Mapping[str, Any]) -> int:
    """Where the sample of a row is in the data set."""
    i = int(row["index"])
    if not 0 <= i < len(opened) or opened[i].id != row["id"]:
        raise RapInputError(
            f"sample {row['id']!r} is not at its place in this data set: it is not the one "
            "that was scored"
        )
    return i


def _measure(
    driver: ModelDriver,
    prepared: Prepared,
    row: Mapping[str, Any],
    named: Sequence[str],
    others: int,
    rng: random.Random,
) -> CutSample | None:
    """One forward with a row a cut; None if there is nothing to cut before the answer."""
    from ..model.cutting import NONE, cut_logits

    start, end = _answer(driver, prepared, *named)
    flagged = int(row["psi_position"])
    candidates = _candidates(prepared, flagged, start)
    if not 0 <= flagged < start - 1 or not candidates:
        return None
    chosen = rng.sample(candidates, min(others, len(candidates)))
    columns = [NONE, flagged, *chosen]
    logits = cut_logits(driver, prepared, columns, range(start - 1, end - 1))
    target = prepared.ids[start:end]
    logp = logits.double().log_softmax(-1)
    at = logp.gather(-1, target[None, :, None].expand(len(columns), -1, 1))[..., 0].sum(1)
    best = logits.argmax(-1)
    moved = (best[1:] != best[:1]).any(dim=1)
    return CutSample(
        id=row["id"],
        token=row["psi_token"] or "",
        position=flagged,
        log_psi=row["log_psi"],
        answer=driver.tokenizer.decode(target.tolist()),
        logp=float(at[0]),
        logp_cut=float(at[1]),
        logp_others=tuple(map(float, at[2:])),
        moved=bool(moved[0]),
        moved_others=float(moved[1:].float().mean()),
    )


def _names(sample: Sample, config: ScoreConfig) -> tuple[str, ...]:
    """How a response may name the reference answer, without its markup: as it would be
    teacher-forced, by the right choice's text, by any other answer that is accepted."""
    reference = read_answer(sample.reference, sample.options)
    accepted = (accepted.text for accepted in reference.accepted)
    names = (reference_text(sample, config), reference.text, *accepted)
    return tuple(dict.fromkeys(names))


def _answer(driver: ModelDriver, prepared: Prepared, *names: str) -> tuple[int, int]:
    """Tokens [start, end) of prompt + response that last name the reference answer: by the
    first of ``names`` that stands there; the last token that is not special where none
    does."""
    ids = prepared.response_ids.tolist()
    special = prepared.special_mask[prepared.n_prompt :].tolist()
    # without special tokens: "end" is no word of the answer in <|im_end|>
    shown = [
        driver.tokenizer.decode(
            [i for i, own in zip(ids[:n], special, strict=False) if not own]
        )
        for n in range(len(ids) + 1)
    ]
    mentions = ((_last_mention(shown[-1], name), name) for name in names)
    at, reference = next((found for found in mentions if found[0] >= 0), (-1, ""))
    if at < 0:
        plain = [n for n, own in enumerate(special) if not own]
        last = plain[-1] if plain else len(ids) - 1
        return prepared.n_prompt + last, prepared.n_prompt + last + 1
    start = max(n for n in range(len(ids)) if len(shown[n]) <= at)
    whole = shown[-1][: at + len(reference)]  # half a character is decoded, but not as it
    end = min(n for n in range(start + 1, len(ids) + 1) if shown[n].startswith(whole))
    return prepared.n_prompt + start, prepared.n_prompt + end


def _last_mention(text: str, reference: str) -> int:
    """Where ``reference`` stands last, as a word of its own if it does anywhere; -1."""
    if not reference:
        return -1
    words = list(re.finditer(rf"(?<!\w){re.escape(reference)}(?!\w)", text))
    return words[-1].start() if words else text.rfind(reference)


def _candidates(prepared: Prepared, flagged: int, start: int) -> Sequence[int]:
    """Tokens of the flagged one's part, before the row that predicts the answer."""
    first = prepared.n_prompt if flagged >= prepared.n_prompt else 0
    last = min(start - 1, prepared.n_prompt if first == 0 else start - 1)
    return [
        i for i in range(first, last) if i != flagged and not bool(prepared.special_mask[i])
    ]
