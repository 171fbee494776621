"""Do planted and actual causes agree, and what does a selection find of them?

    python -m benchmarks.world_agreement --n 400 --m 8

Measures what the demo's model answers with and without the picture, on questions of the
split ``test``. Then draws a world of the split ``selection``, scores it (evidence
``rollouts`` and ``answer``), and compares three things: the cause that was planted, the
cause that the model's own completions show (`actual`), and the reason that ``rap.choose``
gives. Writes benchmarks/results/world_agreement.md.
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rap
from benchmarks.demo_model import measure
from rap.config import Sampling
from rap.demo import world
from rap.demo.model import load_demo_model

from . import families
from .metrics import auroc

RESULT = Path(__file__).parent / "results" / "world_agreement.md"
TOKENS = 48
NEEDS_IMAGE = ("cognitive", "attention_biased", "trivial")
BUDGET = 0.10


@dataclass(frozen=True, slots=True)
class Seen:
    """What the completions of one sample show."""

    cause: str
    """Planted."""
    p1: float
    p0: float
    follows: float
    """By how much the loud number's share of the answers rises when it is the loud number,
    0 without a loud word; see `follows`."""


def crossed(title: str, down: Sequence[str], across: Sequence[str]) -> str:
    """A Markdown table of how often pairs occur, planted causes down."""
    names = sorted(set(across), key=lambda name: (name not in world.CAUSES, name))
    counts = Counter(zip(down, across, strict=True))
    head = [title, "n", *names]
    body = [
        [
            cause,
            str(list(down).count(cause)),
            *(str(counts[cause, x] or ".") for x in names),
        ]
        for cause in world.CAUSES
    ]
    width = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(width[0])]
        cells += [cell.rjust(w) for cell, w in zip(row[1:], width[1:], strict=True)]
        return "| " + " | ".join(cells) + " |"

    rule = (
        "|" + "-" * (width[0] + 2) + "|" + "|".join("-" * (w + 1) + ":" for w in width[1:])
    )
    return "\n".join([line(head), rule + "|", *map(line, body)])


def actual(seen: Seen) -> str:
    """The cause that the completions show, whatever was planted. In this order:

    the answer follows the loud word when that is changed (by 0.25); the image hurts
    (p1 < p0 - 0.25); solved without the image (p0 >= 0.25) about as often as with it
    (p1 - p0 < 0.25); never solved; always solved (p1 >= 0.95); else it needs the image and
    is not always solved: cognitive.
    """
    if seen.follows >= 0.25:
        return "attention_biased"
    if seen.p1 < seen.p0 - 0.25:
        return "image_misleads"
    if seen.p0 >= 0.25 and seen.p1 - seen.p0 < 0.25:
        return "language_prior"
    if seen.p1 == 0:
        return "unsolvable"
    return "trivial" if seen.p1 >= 0.95 else "cognitive"


def reworded(samples: Sequence[world.WorldSample]) -> list[world.WorldSample]:
    """Those with a loud word, with another one."""
    changed = [world.reworded(sample) for sample in samples]
    return [sample for sample in changed if sample is not None]


def answers(rollouts: Any) -> dict[str, list[int | None]]:
    """The numbers that the completions with the image end with, by sample."""
    found: dict[str, list[int | None]] = defaultdict(list)
    for row in rollouts.select(["id", "arm", "text"]).to_pylist():
        if row["arm"] == "image":
            found[row["id"]].append(measure.answer_in(row["text"]))
    return found


def follows(
    samples: Sequence[world.WorldSample], before: Any, after: Any
) -> dict[str, float]:
    """{id: effect of the loud number on the answers}, of the samples with a loud word.

    before, after: completions with the loud word as it is and changed. The effect is the
    mean over both numbers of (share of the answers that give a number where it is the loud
    one) - (the same share where it is not): 0 where the answers do not care, 1 where they
    always repeat it.
    """
    given, changed = answers(before), answers(after)
    found = {}
    for sample in samples:
        other = world.reworded(sample)
        if other is None:
            continue
        one, two = given[sample.id], changed[sample.id]
        effects = [
            _said(one, sample.loud) - _said(two, sample.loud),
            _said(two, other.loud) - _said(one, other.loud),
        ]
        found[sample.id] = sum(effects) / 2
    return found


def _said(answered: Sequence[int | None], number: int | None) -> float:
    return sum(a == number for a in answered) / max(1, len(answered))


def observe(samples: Sequence[world.WorldSample], scores: Any, changed: Any) -> list[Seen]:
    """Pass rates from the score table; what the loud word does from the completions, and
    those with the loud word changed (scores of `reworded`)."""
    effect = follows(samples, scores.rollouts, changed.rollouts)
    return [
        Seen(
            sample.cause,
            row["c1"] / row["m1"],
            row["c0"] / row["m0"],
            effect.get(sample.id, 0.0),
        )
        for sample, row in zip(samples, scores.table.to_pylist(), strict=True)
    ]


_STEP = re.compile(r"(\d+)([+-])(\d+)=(\d+)")


def steps_right(text: str) -> bool:
    """Whether every sum and difference written out holds."""
    return all(
        int(a) + (int(b) if sign == "+" else -int(b)) == int(c)
        for a, sign, b, c in _STEP.findall(text)
    )


def slips(samples: Sequence[world.WorldSample], rollouts: Any) -> str:
    """Of the wrong completions with the image of each family: in how many every written
    step is right, so that what was read (or believed) is wrong."""
    family = {s.id: s.family for s in samples if s.cause != "unsolvable"}
    wrong: dict[str, list[bool]] = defaultdict(list)
    for row in rollouts.select(["id", "arm", "correct", "text"]).to_pylist():
        if row["arm"] == "image" and not row["correct"] and row["id"] in family:
            wrong[family[row["id"]]].append(steps_right(row["text"]))
    lines = ["| family | wrong completions | every step right |", "|---|---:|---:|"]
    for name in sorted(wrong):
        share = float(np.mean(wrong[name]))
        lines.append(f"| {name} | {len(wrong[name])} | {share:.1%} |")
    return "\n".join(lines)


# ---- tables -----------------------------------------------------------------


def rates(seen: Sequence[Seen]) -> str:
    """Mean pass rates of each planted cause."""
    lines = ["| planted | p with image | p without | follows the loud word |"]
    lines.append("|---|---:|---:|---:|")
    for cause in world.CAUSES:
        mine = [s for s in seen if s.cause == cause]
        means = [np.mean([getattr(s, a) for s in mine]) for a in ("p1", "p0", "follows")]
        lines.append(f"| {cause} | " + " | ".join(f"{m:.2f}" for m in means) + " |")
    return "\n".join(lines)


def selections(causes: Sequence[str], scored: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a 10 % selection holds, by evidence, against the pool."""
    pool = causes.count("cognitive") / len(causes)
    lines = [
        "| selection | kept | cognitive | times the pool's share | kept by cause |",
        "|---|---:|---:|---:|---|",
    ]
    made = {}
    rules: list[tuple[str, str, dict[str, Any]]] = [
        ("rollouts, budget 10 %", "rollouts", {"budget": BUDGET}),
        (
            "rollouts, budget 10 %, no replacement",
            "rollouts",
            {"budget": BUDGET, "replace": False},
        ),
        ("rollouts, rule paper", "rollouts", {"rule": "paper"}),
        ("answer, budget 10 %", "answer", {"budget": BUDGET}),
        (
            "answer, budget 10 %, trivial <= 0.1",
            "answer",
            {"budget": BUDGET, "trivial": 0.1},
        ),
    ]
    for name, evidence, settings in rules:
        chosen = rap.choose(scored[evidence], **settings)
        made[name] = chosen
        kept = Counter(causes[i] for i in chosen.indices)
        total = sum(kept.values())
        share = kept["cognitive"] / total if total else float("nan")
        held = ", ".join(f"{cause} {count}" for cause, count in kept.most_common())
        lines.append(f"| {name} | {total} | {share:.1%} | {share / pool:.2f} | {held} |")
    return "\n".join(lines), made


def estimators(causes: Sequence[str], seen: Sequence[Seen], scored: dict[str, Any]) -> str:
    """AUROCs of finding planted causes."""
    rows = {name: s.table.to_pylist() for name, s in scored.items()}
    d = {
        "rollouts": [s.p1 - s.p0 for s in seen],
        "answer": [r["p_answer1"] - r["p_answer0"] for r in rows["answer"]],
    }
    p0 = {
        "rollouts": [s.p0 for s in seen],
        "answer": [r["p_answer0"] for r in rows["answer"]],
    }
    prior = [cause == "language_prior" for cause in causes]
    lines = ["| estimator | finds | against | evidence | AUROC |", "|---|---|---|---|---:|"]

    def add(name: str, finds: str, against: str, kind: str, value: float) -> None:
        lines.append(f"| {name} | {finds} | {against} | {kind} | {value:.3f} |")

    among = [c in (*NEEDS_IMAGE, "language_prior") for c in causes]
    for kind in d:
        some = [-x for x, m in zip(d[kind], among, strict=True) if m]
        mine = [x for x, m in zip(prior, among, strict=True) if m]
        where = "causes that need the image"
        add("CDE, -D", "language_prior", where, kind, auroc(some, mine))
        add(
            "CDE, -abs(D)",
            "language_prior",
            "all",
            kind,
            auroc([-abs(x) for x in d[kind]], prior),
        )
        add("p without the image", "language_prior", "all", kind, auroc(p0[kind], prior))
        hurts = [cause == "image_misleads" for cause in causes]
        add("CDE, -D", "image_misleads", "all", kind, auroc([-x for x in d[kind]], hurts))
    psi = [
        (row["log_psi"], cause == "attention_biased")
        for row, cause in zip(rows["rollouts"], causes, strict=True)
        if row["log_psi"] is not None
    ]
    value = auroc([p for p, _ in psi], [m for _, m in psi]) if psi else float("nan")
    add("ACE, log psi", "attention_biased", f"the {len(psi)} measured", "rollouts", value)
    return "\n".join(lines)


def psi_by_cause(causes: Sequence[str], scored: dict[str, Any]) -> str:
    found = defaultdict(list)
    for row, cause in zip(scored["rollouts"].table.to_pylist(), causes, strict=True):
        if row["log_psi"] is not None:
            found[cause].append(row["log_psi"])
    lines = ["| planted | measured | log psi, median | quartiles |", "|---|---:|---:|---:|"]
    for cause in world.CAUSES:
        if found[cause]:
            low, mid, high = np.quantile(found[cause], [0.25, 0.5, 0.75])
            lines.append(
                f"| {cause} | {len(found[cause])} | {mid:.2f} | {low:.2f} .. {high:.2f} |"
            )
    return "\n".join(lines)


def by_family(
    samples: Sequence[world.WorldSample], seen: Sequence[Seen], scored: dict[str, Any]
) -> tuple[str, str]:
    """Pass rates by family, and what ACE's calibrated limit flags there."""
    named = [s.family for s in samples]
    p1, p0 = (np.array([getattr(s, name) for s in seen]) for name in ("p1", "p0"))
    column = scored["rollouts"].table["log_psi"].to_numpy(zero_copy_only=False)
    biased = np.array([actual(s) == "attention_biased" for s in seen])
    found = families.flags(named, biased, column.astype(float))
    return families.markdown(families.rates(named, p1, p0)), families.markdown(found)


def cut_by_cause(samples: Sequence[world.WorldSample], found: Any) -> str:
    """What cutting the flagged token does, by planted cause."""
    cause = {s.id: s.cause for s in samples}
    head = "planted | n | change, flagged | change, others | moved, flagged | moved, others"
    lines = [f"| {head} |", "|---|---:|---:|---:|---:|---:|"]
    for name in world.CAUSES:
        mine = [s for s in found.samples if cause[s.id] == name]
        if mine:
            numbers = ("change", "change_others", "moved", "moved_others")
            means = [np.mean([getattr(s, x) for s in mine]) for x in numbers]
            shown = " | ".join(f"{m:.3f}" for m in means)
            lines.append(f"| {name} | {len(mine)} | {shown} |")
    return "\n".join(lines)


def guessed(sees: dict[str, dict[str, float]], count: int) -> str:
    """The families that are not told from answers to another question's picture."""
    names = [
        family
        for family, row in sees.items()
        if measure.interval(row["image"], count)[0]
        <= measure.interval(row["shuffle"], count)[1]
    ]
    return ", ".join(names) or "none"


# ---- the run ----------------------------------------------------------------


def score_world(
    model: Any, processor: Any, rows: Sequence[Any], m: int, echo: Callable[[str], Any]
) -> tuple[dict[str, Any], list[str]]:
    """({evidence: scores}, lines of the table of costs)"""
    scored, cost = {}, []
    for kind, extra in (("rollouts", {"m1": m, "m0": m}), ("answer", {})):
        begin = time.perf_counter()
        scored[kind] = rap.score(
            model,
            processor,
            rows,
            evidence=kind,
            sampling=Sampling(max_new_tokens=TOKENS),
            batch_size=16,
            progress="force",
            **extra,
        )
        spent = time.perf_counter() - begin
        ledger = scored[kind].meta["cost"]
        counts = (ledger["forwards"], ledger["generated_tokens"], round(spent))
        cost.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
        echo(f"{kind}: {spent:.0f} s")
    return scored, cost


def report(
    n: int,
    m: int,
    seed: int,
    weights: Path | None,
    questions: int,
    echo: Callable[[str], Any],
) -> str:
    import torch

    samples = world.draw(n, seed=seed, split="selection")
    causes = [sample.cause for sample in samples]
    model, processor = load_demo_model(weights)
    sees = measure.pass_rates(model, processor, count=questions, seed=seed)
    echo(f"{questions} questions a family asked")
    scored, cost = score_world(model, processor, world.rows(samples), m, echo)
    changed = rap.score(
        model,
        processor,
        world.rows(reworded(samples)),
        evidence="rollouts",
        sampling=Sampling(max_new_tokens=TOKENS),
        batch_size=16,
        progress="force",
        m1=m,
        m0=1,
        allow_degenerate=True,
    )
    seen = observe(samples, scored["rollouts"], changed)
    acts = [actual(s) for s in seen]
    agree = np.mean([a == b for a, b in zip(causes, acts, strict=True)])
    low, high = measure.interval(float(agree), n)
    chosen, made = selections(causes, scored)
    reasons = {
        kind: list(made[f"{kind}, budget 10 %"].table["reason"].to_pylist())
        for kind in scored
    }
    cuts = rap.cut(
        model, processor, world.rows(samples), scored["rollouts"], samples=n, seed=seed
    )
    family_rates, family_flags = by_family(samples, seen, scored)
    command = "python -m benchmarks.world_agreement " + shlex.join(sys.argv[1:])
    processor_name = platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return FORM.format(
        command=command.strip(),
        n=n,
        m=m,
        seed=seed,
        questions=questions,
        machine=f"torch {torch.__version__}, {threads} threads,\n{processor_name}",
        sees=measure.table(sees, questions),
        guessed=guessed(sees, questions),
        families=", ".join(world.PLANTED_FAMILIES),
        rates=rates(seen),
        rule=" ".join((actual.__doc__ or "").split()),
        by_act=crossed("planted", causes, acts),
        agree=agree,
        low=low,
        high=high,
        by_reason=crossed("planted", causes, reasons["rollouts"]),
        by_answer=crossed("planted", causes, reasons["answer"]),
        planted=causes.count("cognitive") / n,
        acting=acts.count("cognitive") / n,
        chosen=chosen,
        quality=actual_shares(acts, made),
        estimators=estimators(causes, seen, scored),
        psi=psi_by_cause(causes, scored),
        cut=str(cuts),
        cut_by_cause=cut_by_cause(samples, cuts),
        slips=slips(samples, scored["rollouts"].rollouts),
        family_rates=family_rates,
        family_flags=family_flags,
        cost="\n".join(cost),
    )


FORM = """\
# Planted and actual causes

`{command}`
{n} samples (split selection, seed {seed}), M = {m} completions an arm at temperature 1,
counterfactual drop. {machine}.

## Does the model look at the picture?

Right answers to {questions} questions a family, layouts and seeds of the split ``test``,
one completion each at temperature 1; Wilson intervals, 95 %.

{sees}

Families whose intervals with the picture and with another's overlap, so that the model may
only guess there: {guessed}. Planted are only:
{families}.

## What the model does with each planted cause

{rates}

## Planted against actual

Actual is read off the completions alone: {rule}

{by_act}

They agree on {agree:.1%} of the samples (95 %: {low:.1%} .. {high:.1%}).

What the loud word does is seen by changing it: the same questions, asked with another loud
number. No attention was taught: ACE's figure below is what the model's own attention gives.

## Wrong completions: misread, or a wrong step?

Questions with a right reference, completions with the image; the sums and differences that
a completion writes out are checked.

{slips}

## Planted against the reason of a 10 % selection

Evidence rollouts:

{by_reason}

Evidence answer:

{by_answer}

## What the selections hold

Share of planted cognitive samples in the pool: {planted:.1%}.

{chosen}

Against actual causes (share in the pool {acting:.1%}):

{quality}

## Estimators

{estimators}

psi is measured where a sample can still be kept (METHOD.md section 6):

{psi}

## Does the answer depend on the token that psi flags?

`rap check MODEL --cut STORE` over all samples with a psi: the flagged token, and four
others at random, cut out of the sight of all later tokens in every layer; changes of the
answer's log-probability in nats, and how often the most probable answer changes.

```
{cut}
```

{cut_by_cause}

## By family

half_solved: pass rate with the image from 0.2 to 0.8; not_helped: of those, D <= 0.

{family_rates}

What ACE's calibrated limit flags, against actual causes; false_positive: of the measured
that are not attention-biased.

{family_flags}

## Cost

| evidence | forwards | generated tokens | seconds |
|---|---:|---:|---:|
{cost}
"""


def actual_shares(acts: Sequence[str], made: dict[str, Any]) -> str:
    pool = acts.count("cognitive") / len(acts)
    lines = ["| selection | cognitive | times the pool's share |", "|---|---:|---:|"]
    for name, chosen in made.items():
        kept = [acts[i] == "cognitive" for i in chosen.indices]
        share = float(np.mean(kept)) if kept else float("nan")
        lines.append(f"| {name} | {share:.1%} | {share / pool if pool else 0:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--m", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=200, help="a family")
    parser.add_argument("--weights", type=Path, help="a model other than the shipped one")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    text = report(args.n, args.m, args.seed, args.weights, args.questions, print)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
