"""What the natural world's samples are for its model, and what a selection finds of it.

    python -m benchmarks.natural_world.measure --work DIR            # resumes
    python -m benchmarks.natural_world.measure --work DIR --replay   # asks no model
    python -m benchmarks.natural_world.measure --work DIR --n 100    # fewer, prints

Truth: 64 completions a sample with the image and 64 without it (rap's own rollouts), and
64 with the image after the distracting sentence was taken out. Then every evidence scores
the same pool with its defaults and chooses 9.3 % and 20 %. Writes
``results/natural.md``, ``natural.csv`` and ``natural_calibration.png``. ``--replay`` reads
the stores of an earlier run, and makes the cascade of those of ``answer`` and ``rollouts``
(`benchmarks.replayed`).

Measured kinds (posterior means, one completion added to either side of 64):

teachable        mixed (0.1 < p1 < 0.9) and the image helps (p1 - p0 > 0.1)
misled           mixed, and the answer is more often right without the image
mixed, no image  mixed, and the image changes little
trivial          p1 >= 0.9
unsolved         p1 <= 0.1
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import rap
from benchmarks import replayed
from benchmarks.cascade import INFORMED, informed
from benchmarks.metrics import rated, reliability, teaches
from rap.config import RuleName, Sampling
from rap.demo.natural import world
from rap.demo.natural.model import load_natural_model

RESULTS = Path(__file__).parents[1] / "results"
N, SEED, M = 400, 0, 64
SAMPLING = Sampling(max_new_tokens=8)
SCORING: dict[str, Any] = {
    "sampling": SAMPLING,
    "shard_size": 25,
    "progress": False,
    "max_bad_fraction": 0.2,
    "allow_degenerate": True,
}
KINDS = ("teachable", "misled", "mixed, no image", "trivial", "unsolved")
EVIDENCE = ("answer", "logits", "rollouts", "cascade")
RULES: tuple[RuleName, ...] = ("budget", "learn")
BUDGETS = (0.093, 0.2)


def kind(p1: float, p0: float) -> str:
    """The measured kind of a sample with these pass rates."""
    if p1 >= 0.9:
        return "trivial"
    if p1 <= 0.1:
        return "unsolved"
    if p1 - p0 > 0.1:
        return "teachable"
    return "misled" if p0 - p1 > 0.1 else "mixed, no image"


def rate(scores: rap.Scores, right: str, asked: str) -> np.ndarray:
    """float64 [n]: posterior mean of a pass rate, one pass and one failure added."""
    c, m = (np.asarray(scores.column(name).to_pylist(), float) for name in (right, asked))
    return (c + 1) / (m + 2)


def without_distractor(sample: world.NaturalSample) -> dict[str, Any]:
    """The sample's row, its distracting sentence taken out of the question."""
    (row,) = world.rows([sample])
    said = sample.distractor or ""
    return row | {"question": row["question"].replace(said, "").strip()}


def drawn(count: int) -> list[world.NaturalSample]:
    """The pool."""
    return world.draw(count, seed=SEED)


def score(
    model: Any, processor: Any, rows: list[Any], store: Path, **how: Any
) -> rap.Scores:
    """Scores of the rows, kept in ``store``; goes on where a killed run stopped."""
    return rap.score(model, processor, rows, store=store, **(SCORING | how))


Measured = tuple[rap.Scores, rap.Scores, dict[str, rap.Scores]]
"""The truth, that of the samples whose distractor is taken out, scores by evidence."""


def measure(work: Path, rows: list[Any], without: list[Any]) -> Measured:
    """Asks the model for what is missing. ``without``: the rows without a distractor."""
    pair = load_natural_model()
    truth = score(*pair, rows, work / "truth", evidence="rollouts", m1=M, m0=M)
    cut = score(*pair, without, work / "cut", evidence="rollouts", m1=M, m0=2)
    return truth, cut, {e: score(*pair, rows, work / e, evidence=e) for e in EVIDENCE}


def replay(work: Path, rows: list[Any], without: list[Any]) -> Measured:
    """What ``measure`` has left; a cascade of what else was said."""
    names = ("truth", "cut", *(e for e in EVIDENCE if e != "cascade"))
    truth, cut, *rest = (rap.Scores.load(work / name) for name in names)
    scored = dict(zip(names[2:], rest, strict=True))
    scored["cascade"] = replayed.cascade(scored["answer"], scored["rollouts"], rows)
    return truth, cut, {e: scored[e] for e in EVIDENCE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--replay", action="store_true", help="ask no model")
    options = parser.parse_args()
    work = options.work / f"pool-{options.n}"
    work.mkdir(parents=True, exist_ok=True)
    samples = drawn(options.n)
    rows = world.rows(samples)
    talked = [s for s in samples if s.distractor and s.family == "distractor"]
    measured = replay if options.replay else measure
    truth, cut, scored = measured(work, rows, [without_distractor(s) for s in talked])
    p1, p0 = rate(truth, "c1", "m1"), rate(truth, "c0", "m0")
    kinds = [kind(a, b) for a, b in zip(p1, p0, strict=True)]
    held = held_against(truth, scored)
    text = report(samples, p1, p0, kinds, scored, talked, rate(cut, "c1", "m1"), held)
    print(text)
    if options.n == N:
        plot(held, RESULTS / "natural_calibration.png")
        (RESULTS / "natural.md").write_text(text)
        write_csv(samples, p1, p0, kinds)


def report(
    samples: list[world.NaturalSample],
    p1: np.ndarray,
    p0: np.ndarray,
    kinds: list[str],
    scored: dict[str, rap.Scores],
    talked: list[world.NaturalSample],
    cut: np.ndarray,
    held: list[dict[str, Any]],
) -> str:
    """The Markdown page. ``held``: of ``held_against``."""
    parts = [
        "# The natural world, measured",
        "Written by `python -m benchmarks.natural_world.measure`: "
        f"{len(samples)} samples of seed {SEED}, {M} completions a sample with and without "
        "the image; every evidence with its defaults, one run, one model. Where it was run "
        "with `--replay` the cascade is made of what `answer` and `rollouts` have said: "
        "the same completions, asked for by its own rules. Kinds: see the script.",
        families(samples, p1, p0, kinds),
        selections(kinds, p1, p0, scored),
        calibration(held),
        attention(samples, p1, kinds, scored["rollouts"], talked, cut),
    ]
    return "\n\n".join(parts) + "\n"


def families(
    samples: list[world.NaturalSample], p1: np.ndarray, p0: np.ndarray, kinds: list[str]
) -> str:
    """Pass rates and measured kinds by family."""
    by: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        by[sample.family].append(i)
    lines = [
        "## Families\n",
        "| family | n | with image | without | " + " | ".join(KINDS) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(KINDS),
    ]
    for name in (*world.FAMILIES, "all"):
        at = list(range(len(samples))) if name == "all" else by[name]
        if not at:
            continue
        counts = Counter(kinds[i] for i in at)
        shares = " | ".join(str(counts[k] or ".") for k in KINDS)
        lines.append(
            f"| {name} | {len(at)} | {p1[at].mean():.2f} | {p0[at].mean():.2f} | {shares} |"
        )
    return "\n".join(lines)


def selections(
    kinds: list[str], p1: np.ndarray, p0: np.ndarray, scored: dict[str, rap.Scores]
) -> str:
    """What is kept with every evidence, and by simpler rules that know the truth."""
    worth = p1 * (1 - p1) * np.maximum(p1 - p0, 0)
    lines = [
        "## Selections\n",
        "Share of each measured kind in what is kept, and the mean of p1(1-p1)(p1-p0)+ by "
        "64 completions, divided by the best possible at that budget.\n",
        "| evidence, rule | budget | asked a sample | " + " | ".join(KINDS) + " | worth |",
        "|---|---:|---:|" + "---:|" * (len(KINDS) + 1),
    ]
    for budget in BUDGETS:
        k = round(budget * len(kinds))
        best = np.sort(worth)[::-1][:k].mean()
        for name, scores in scored.items():
            asked = sum(completions(scores, m) for m in ("m1", "m0"))
            for rule in RULES:
                chosen = rap.choose(scores, budget=budget, rule=rule)
                kept = np.asarray(chosen.indices)
                what = f"{name}, {rule}"
                lines.append(row(what, budget, asked, kept, kinds, worth, best))
        rng = np.random.default_rng(0)
        by_chance = rng.permutation(len(kinds))[:k]
        lines.append(row("random", budget, 0.0, by_chance, kinds, worth, best))
        p1_order = np.argsort(-p1 * (1 - p1), kind="stable")[:k]
        lines.append(row("p(1-p), M = 64", budget, 64.0, p1_order, kinds, worth, best))
    return "\n".join(lines)


def held_against(truth: rap.Scores, scored: dict[str, rap.Scores]) -> list[dict[str, Any]]:
    """Keep-probabilities of the evidences that sample against ``M`` completions an arm:
    one row an evidence and bin, as ``benchmarks.cascade.calibration``."""
    c1, c0 = (np.asarray(truth.column(n).to_pylist(), float) / M for n in ("c1", "c0"))
    of_event = teaches(c1, c0)
    said = {}
    for name in ("rollouts", "cascade"):
        keep = rap.choose(scored[name], budget=BUDGETS[0]).table["keep_probability"]
        said[name] = keep.to_numpy(zero_copy_only=False).astype(float)
    said[INFORMED] = informed(scored["cascade"], truth)
    rows: list[dict[str, Any]] = []
    for name, keep in said.items():
        rows += [{"evidence": name} | row for row in reliability(keep, of_event)]
    always = np.full(len(of_event), of_event.mean())
    whole = reliability(always, of_event)[0]
    return [*rows, {"evidence": "the mean of the truth, always"} | whole]


def calibration(held: list[dict[str, Any]]) -> str:
    """The tables of ``held_against``."""
    lines = [
        "## Is the keep-probability one?\n",
        f"Against the pass rates of {M} completions an arm, all samples that have one. The "
        "event: the image helps and 8 completions hold both right and wrong ones. Excess: "
        "mean squared distance of what is said to what the truth says, the part of the "
        "Brier score that a perfect forecast has not.\n",
        "| evidence | samples | said | truth | Brier | excess | miscalibration | "
        "resolution |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['evidence']} | {r['samples']} | {r['said']:.3f} | {r['truth']:.3f} | "
        f"{r['brier']:.4f} | {r['excess']:.4f} | {r['miscalibration']:.4f} | "
        f"{r['resolution']:.4f} |"
        for r in held
        if r["bin"] == "all"
    ]
    by = {r["evidence"]: r for r in held if r["bin"] == "all"}
    off = {name: r["said"] - r["truth"] for name, r in by.items()}
    ours, best = by["cascade"], by[INFORMED]
    lines.append(
        f"\nIn the mean rollouts say {off['rollouts']:+.3f} against the truth (their prior "
        "of a pass rate is uniform, so that five equal outcomes leave much open), the "
        f"cascade {off['cascade']:+.3f}. The excess is miscalibration, less resolution, "
        f"plus the variance of the truth, {ours['constant']:.4f}, up to spread in a bin "
        "(Murphy, J. Applied Meteorology 12 (1973), 595-600). Only the miscalibration, "
        f"{ours['miscalibration']:.4f} of the cascade's {ours['excess']:.4f}, could be "
        "mended by another scale (isotonic regression, Platt's); the rest is what it "
        "cannot tell apart. Fitted to the completions of the truth, not its own, the "
        f"same prior leaves {best['excess']:.4f}: p(answer), divergence and entropies say "
        "so little here of whether this model answers right, and most samples are judged "
        "by them alone."
    )
    lines += [
        "\nBy what is said (reliability; `natural_calibration.png`):\n",
        "| evidence | from | samples | said | truth |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['evidence']} | {r['bin']} | {r['samples']} | {r['said']:.2f} | "
        f"{r['truth']:.2f} |"
        for r in held
        if r["bin"] != "all" and r["evidence"] != INFORMED
    ]
    return "\n".join(lines)


def plot(held: list[dict[str, Any]], path: Path) -> None:
    """Reliability of both evidences; a point's area is its number of samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
    ax.plot((0, 1), (0, 1), color="#bbbbbb", linewidth=1)
    for name, colour in (("rollouts", "#4477aa"), ("cascade", "#cc3311")):
        rows = [r for r in held if r["evidence"] == name and r["bin"] != "all"]
        said, true, size = zip(
            *((r["said"], r["truth"], r["samples"]) for r in rows), strict=True
        )
        ax.plot(said, true, color=colour, linewidth=1, label=name)
        ax.scatter(said, true, s=size, color=colour, alpha=0.6)
    ax.set(xlabel="keep-probability", ylabel=f"truth, {M} completions an arm")
    ax.legend()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def completions(scores: rap.Scores, name: str) -> float:
    """Completions a sample; 0 for an evidence without them."""
    values = scores.column(name).to_pylist()
    return sum(v or 0 for v in values) / len(values)


def row(
    name: str,
    budget: float,
    asked: float,
    kept: np.ndarray,
    kinds: list[str],
    worth: np.ndarray,
    best: float,
) -> str:
    """A line of the table of selections."""
    counts = Counter(kinds[i] for i in kept)
    shares = " | ".join(f"{counts[k] / max(1, len(kept)):.0%}" for k in KINDS)
    value = worth[kept].mean() / best if len(kept) else 0.0
    return f"| {name} | {budget:.1%} | {asked:.1f} | {shares} | {value:.2f} |"


def attention(
    samples: list[world.NaturalSample],
    p1: np.ndarray,
    kinds: list[str],
    scores: rap.Scores,
    talked: list[world.NaturalSample],
    cut: np.ndarray,
) -> str:
    """psi against a natural class: the distractor's removal repairs the answer."""
    psi = np.asarray(
        [np.nan if v is None else v for v in scores.column("log_psi").to_pylist()], float
    )
    index = {sample.id: i for i, sample in enumerate(samples)}
    at = [index[sample.id] for sample in talked]
    gain = cut - p1[at]
    hurt = gain > 0.2
    known = int(np.isfinite(psi).sum())
    lines = [
        "## Attention\n",
        f"psi is known for {known} of {len(samples)} samples (the rest answer in too few "
        f"tokens). Distracted: {int(hurt.sum())} of {len(at)} samples with a distracting "
        "sentence gain more than 0.2 of pass rate when it is removed "
        f"(mean gain {gain.mean():+.2f}).",
    ]
    if known:
        found = rated(psi[at], hurt)
        lines.append(f"AUROC of psi for them: {found['auroc']:.2f}.")
    return "\n".join([*lines, "", *longer()])


def longer() -> list[str]:
    """What ``flip_table`` found on longer answers of the same model; nothing without it."""
    path = RESULTS / "natural_attention.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "sentence"]

    def top(*, psi: bool, chosen: bool) -> str:
        of = [
            row
            for row in rows
            if row["form"].startswith("psi") == psi
            and (not psi or chosen == bool(row["chosen"]))
        ]
        best = max(of, key=lambda row: float(row["auroc"]))
        low, high = (f"{float(best[k]):.2f}" for k in ("low", "high"))
        return f"{float(best['auroc']):.2f} [{low}, {high}] ({best['form']})"

    return [
        "Longer answers (`natural_attention.md`), class: the answer changes when the "
        "sentence before the question is taken out. AUROC on the second half: psi fixed on "
        f"the first half at best {top(psi=True, chosen=True)}, picked afterwards "
        f"{top(psi=True, chosen=False)}, masses and rivals "
        f"{top(psi=False, chosen=False)}. psi as it is by default does not find what "
        "misleads this model."
    ]


def write_csv(
    samples: list[world.NaturalSample], p1: np.ndarray, p0: np.ndarray, kinds: list[str]
) -> None:
    """One line a sample."""
    with (RESULTS / "natural.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("id", "family", "p1", "p0", "kind"))
        for sample, a, b, what in zip(samples, p1, p0, kinds, strict=True):
            out.writerow((sample.id, sample.family, f"{a:.4f}", f"{b:.4f}", what))


if __name__ == "__main__":
    main()
