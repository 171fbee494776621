"""Tables of what was measured, each a list of dicts: one row a setting and world.

Every function takes one `read.World` and returns rows without the world's name; pure.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import rap
from rap.config import COUNTERFACTUALS, DIVERGENCES
from rap.selection.attention import fence as psi_fence

from .. import families as by_family
from ..metrics import (
    auroc,
    interval,
    jaccard,
    keep_probability,
    precision_recall,
    rated,
    spearman,
    top,
)
from .collect import Fresh
from .read import Array, World, rollout_scores, with_psi

Row = dict[str, Any]
BUDGET = 0.10
NEAR = 16
"""Completions an arm of near-truth."""
PAPER = 5
LOOK = 5
"""First look of adaptive sampling in these tables."""


def causes_of(w: World) -> Iterator[tuple[str, Array]]:
    yield "planted", w.planted
    yield "actual", w.actual


# ---- estimators ---------------------------------------------------------------


def cde_scores(w: World) -> dict[str, tuple[Array, Array]]:
    """{evidence: (D, p without the image or what stands for it)}."""
    answer1, answer0 = (w.column("answer-drop", f"p_answer{a}") for a in "10")
    mean1, mean0 = (np.exp(w.column("answer-drop", f"logp_mean{a}")) for a in "10")
    js = w.column("logits-drop", "js")
    return {
        f"rollouts M={PAPER}": (w.rate("1", PAPER) - w.rate("0", PAPER), w.rate("0", 5)),
        f"rollouts M={NEAR}": (w.rate("1", NEAR) - w.rate("0", NEAR), w.rate("0", NEAR)),
        "answer": (answer1 - answer0, answer0),
        "answer, a token": (mean1 - mean0, mean0),
        "logits (JS)": (js, -js),
    }


def estimators(w: World) -> list[Row]:
    """AUROC of every estimator, precision and recall (as many flagged as there are);
    ``auroc_solved`` is among samples that M=16 completions with the image solved at least
    once: the others are barred before D is looked at."""
    rows = []
    psi, rate = w.psi, w.rate("1", NEAR)
    solved = rate > 0
    for against, causes in causes_of(w):
        finders: list[tuple[str, str, Array]] = []
        for evidence, (d, blind) in cde_scores(w).items():
            finders.append((f"CDE -|D|, {evidence}", "language_prior", -np.abs(d)))
            if "logits" not in evidence:
                finders.append((f"p without image, {evidence}", "language_prior", blind))
                finders.append((f"CDE -D, {evidence}", "image_misleads", -d))
        finders += [
            ("ACE log psi", "attention_biased", psi),
            (f"pass rate M={NEAR}", "trivial", rate),
            (f"1 - pass rate M={NEAR}", "unsolvable", -rate),
            ("p(answer)", "trivial", w.column("answer-drop", "p_answer1")),
            ("1 - p(answer)", "unsolvable", -w.column("answer-drop", "p_answer1")),
        ]
        for name, cause, score in finders:
            positive = causes == cause
            flagged = top(np.nan_to_num(score, nan=-1e9), int(positive.sum()))
            among = solved & ~np.isnan(score)
            precision, recall = precision_recall(flagged, positive)
            rows.append(
                {
                    "estimator": name,
                    "finds": cause,
                    "against": against,
                    **rated(score, positive),
                    "auroc_solved": auroc(score[among], positive[among]),
                    "precision": precision,
                    "recall": recall,
                }
            )
    return rows


# ---- selections ---------------------------------------------------------------


def adaptive_counts(w: World, m: int, look: int) -> tuple[Array, Array, Array, Array]:
    """c1, m1, c0, m0 where sampling stops after ``look`` completions that agree (an option
    of ``rap.score`` up to 0.1), from the first m of all."""
    c0, m0 = _adaptive(w.right["0"][:, :m], look, np.zeros(len(w.planted), bool))
    c1, m1 = _adaptive(w.right["1"][:, :m], look, c0 == m0)
    return c1, m1, c0, m0


def _adaptive(right: Array, look: int, settled: Array) -> tuple[Array, Array]:
    first = right[:, :look].sum(axis=1)
    stop = (first == 0) | (first == look) | settled
    return (
        np.where(stop, first, right.sum(axis=1)),
        np.where(stop, look, right.shape[1]),
    )


def choose_all(w: World) -> dict[str, Any]:
    """{name: Selection} of what this project can do, at the same budget."""
    psi = w.psi
    five, near = (rollout_scores(w, w.counts(m), psi) for m in (PAPER, NEAR))
    adaptive = rollout_scores(w, adaptive_counts(w, NEAR, LOOK), psi)
    plain, logits = (w.measured.scores[f"{kind}-drop"] for kind in ("answer", "logits"))
    answer = with_psi(plain, psi)  # one completion and one forward more
    alone = w.measured.scores["m5"]
    high = {"lambda_a": 1e30}  # no sample is dropped for its attention
    made = {
        "rap, rollouts M=5, as scored": (alone, {}),
        "rap, rollouts M=5, as scored, learnable": (alone, {"order": "learnable"}),
        f"rap, rollouts M={PAPER}": (five, {}),
        f"rap, rollouts M={PAPER}, learnable": (five, {"order": "learnable"}),
        f"rap, rollouts M={PAPER}, hurt may replace": (five, {"readmit_hurt": True}),
        f"rap, rollouts M={PAPER}, no replacement": (five, {"replace": False}),
        f"rap, rollouts M={PAPER}, no ACE": (five, high),
        f"rap, rollouts M={NEAR}": (near, {}),
        f"rap, rollouts M={NEAR}, learnable": (near, {"order": "learnable"}),
        f"rap, rollouts M={NEAR}, hurt may replace": (near, {"readmit_hurt": True}),
        f"rap, rollouts M={NEAR}, adaptive {LOOK}": (adaptive, {}),
        f"rap, rollouts M={NEAR}, adaptive {LOOK}, learnable": (
            adaptive,
            {"order": "learnable"},
        ),
        "rap, answer": (plain, {}),
        "rap, answer, by gain": (plain, {"order": "gain"}),
        "rap, answer, by gain, trivial 0.1": (plain, {"order": "gain", "trivial": 0.1}),
        "rap, answer + psi of one completion": (answer, {}),
        "rap, logits": (logits, {}),
        "rap, logits, by gain": (logits, {"order": "gain"}),
    }
    chosen = {n: rap.choose(s, budget=BUDGET, **o) for n, (s, o) in made.items()}
    for m, scores in ((PAPER, five), (NEAR, near)):
        chosen[f"rule paper, rollouts M={m}"] = rap.choose(scores, rule="paper")
    return chosen


def _rng(w: World) -> np.random.Generator:
    """By model and world: no two share their ties."""
    return np.random.default_rng([zlib.crc32(w.measured.model.encode()), w.measured.seed])


def at_random(w: World, draws: int = 200) -> Array:
    """bool [draws, n]: ``BUDGET`` of the samples, drawn without a rule."""
    n = len(w.planted)
    mixed = _rng(w).random((draws, n)).argsort(axis=1)
    return mixed < int(BUDGET * n)


def baselines(w: World, size: int) -> dict[str, Array]:
    """{name: bool [n]} of other rules, ``size`` samples each where they can be had; see
    `at_random` for the one without a rule."""
    rng = _rng(w)
    c1, _, c0, _ = w.counts(PAPER)
    p1, p0, psi = w.rate("1", PAPER), w.rate("0", PAPER), w.psi
    jitter = rng.random(len(p1))  # ties at random, not by index
    band = (p1 > 0) & (p1 < 1)
    answer1, answer0 = (w.column("answer-drop", f"logp_answer{a}") for a in "10")

    def best(score: Array) -> Array:
        return top(score + 1e-6 * jitter, size)

    return {
        "difficulty band 0 < p < 1": top(np.where(band, jitter, jitter - 1), size),
        "hardest that is solved": best(np.where(band, -p1, -9)),
        "reward variance p(1-p)": best(p1 * (1 - p1)),
        "CDE only (D)": best(p1 - p0),
        "ACE only (lowest psi)": best(-psi),
        "CVS: log p(y|image) - log p(y|no image)": best(answer1 - answer0),
        "lowest likelihood without the image": best(-answer0),
        "taken for theirs before: 5/5 dropped, 1 in 10 of 1/5": authors_rule(
            c1, c0, PAPER, jitter, size
        ),
        "authors' public script: gap > 0.2, similarity >= 0.6": authors_script(
            c1, c0, PAPER, jitter, size
        ),
    }


def authors_rule(c1: Array, c0: Array, m: int, jitter: Array, size: int) -> Array:
    """What was taken for the authors' public script: largest accuracy gap first, always
    solved samples dropped, of those solved once a random tenth."""
    gap = (c1 - c0) / m
    allowed = (c1 < m) & ~((c1 == 1) & (jitter > 0.1)) & (gap > 0)
    return top(np.where(allowed, gap + 1e-6 * jitter, -9), min(size, int(allowed.sum())))


def authors_script(c1: Array, c0: Array, m: int, jitter: Array, size: int) -> Array:
    """The authors' public script, both stored versions (METHOD.md section 5): gap > 0.2 and
    similarity >= 0.6, not always solved; by lot where there are more than ``size``."""
    fits = (5 * (c1 - c0) > m) & (5 * c1 >= 3 * m) & (c1 < m)
    return top(np.where(fits, jitter, jitter - 2), min(size, int(fits.sum())))


def masks(w: World) -> dict[str, Array]:
    """{name: bool [n]} of every selection and baseline."""
    made = {}
    for name, chosen in choose_all(w).items():
        mask = np.zeros(len(w.planted), bool)
        mask[chosen.indices] = True
        made[name] = mask
    return made | baselines(w, int(BUDGET * len(w.planted)))


def selections(w: World) -> list[Row]:
    """Share of cognitive samples in each selection, against the pool's; random: the mean
    of 200 draws."""
    rows = []
    drawn = at_random(w)
    for against, causes in causes_of(w):
        cognitive = causes == "cognitive"
        pool = float(cognitive.mean())
        share = float((drawn & cognitive).sum() / drawn.sum())
        rows.append(
            {
                "selection": "random",
                "against": against,
                "kept": int(drawn[0].sum()),
                "pool": pool,
                "share": share,
                "times": share / pool if pool else float("nan"),
                "held": "",
            }
        )
    for name, mask in masks(w).items():
        for against, causes in causes_of(w):
            pool = float((causes == "cognitive").mean())
            share = float((causes[mask] == "cognitive").mean()) if mask.any() else 0.0
            kept = Counter(causes[mask].tolist())
            rows.append(
                {
                    "selection": name,
                    "against": against,
                    "kept": int(mask.sum()),
                    "pool": pool,
                    "share": share,
                    "times": share / pool if pool else float("nan"),
                    "held": ", ".join(f"{c} {k}" for c, k in kept.most_common()),
                }
            )
    return rows


# ---- evidence, counterfactuals, divergences, psi --------------------------------


def cost_of(w: World, evidence: str) -> Row:
    """Generated tokens, forwards and seconds of all samples. Seconds of M=16 are those of
    the truth by its share of tokens."""
    scores = w.measured.scores
    if evidence.startswith("rollouts M="):
        m = int(evidence.split("=")[1])
        tokens = int(sum(w.tokens[arm][:, :m].sum() for arm in "10"))
        truth = scores["truth"].meta["cost"]
        share = tokens / max(1, truth["generated_tokens"])
        seconds = truth["seconds"] * share
        if m == PAPER:
            seconds = scores["m5"].meta["cost"]["seconds"]
        forwards = scores["m5"].meta["cost"]["forwards"]
        return {"tokens": tokens, "forwards": forwards, "seconds": seconds}
    cost = scores["logits-drop" if "logits" in evidence else "answer-drop"].meta["cost"]
    return {
        "tokens": cost["generated_tokens"],
        "forwards": cost["forwards"],
        "seconds": cost["seconds"],
    }


def evidences(w: World) -> list[Row]:
    """What each evidence costs, and its rank correlation with the truth."""
    truth_d, truth_p1 = w.rate("1") - w.rate("0"), w.rate("1")
    difficulty = {
        "answer": w.column("answer-drop", "p_answer1"),
        "answer, a token": np.exp(w.column("answer-drop", "logp_mean1")),
        "logits (JS)": w.column("logits-drop", "p_answer1"),
        f"rollouts M={PAPER}": w.rate("1", PAPER),
        f"rollouts M={NEAR}": w.rate("1", NEAR),
    }
    actual = w.actual == "language_prior"
    rows = []
    for name, (d, _) in cde_scores(w).items():
        goal = np.abs(truth_d) if "logits" in name else truth_d
        cost = cost_of(w, name)
        found = spearman(d, goal)
        rows.append(
            {
                "evidence": name,
                "spearman_d": found,
                "spearman_p1": spearman(difficulty[name], truth_p1),
                "auroc_prior": rated(-np.abs(d), w.planted == "language_prior")["auroc"],
                "unknown": int(np.isnan(d).sum()),
                **cost,
                "auroc_prior_actual": rated(-np.abs(d), actual)["auroc"],
                "spearman_d_per_second": found / max(cost["seconds"], 1e-9),
            }
        )
    return rows


def counterfactuals(w: World) -> list[Row]:
    """AUROC for language_prior of every kind of input without the image; for rollouts as
    many completions under each kind."""
    rows = []
    p1 = w.rate("1")
    m = int(w.measured.scores["rollouts-blank"].table["m0"].to_numpy().max())
    for kind in COUNTERFACTUALS:
        if kind == "drop":
            p0 = w.rate("0", m)
        else:
            table = w.measured.scores[f"rollouts-{kind}"].table
            p0 = table["c0"].to_numpy() / table["m0"].to_numpy()
        answer = w.column(f"answer-{kind}", "p_answer1") - w.column(
            f"answer-{kind}", "p_answer0"
        )
        scored = {
            f"rollouts M0={m}": p1 - p0,
            "answer": answer,
            "logits (JS)": w.column(f"logits-{kind}", "js"),
        }
        for evidence, d in scored.items():
            for against, causes in causes_of(w):
                rows.append(
                    {
                        "counterfactual": kind,
                        "evidence": evidence,
                        "against": against,
                        **rated(-np.abs(d), causes == "language_prior"),
                    }
                )
    return rows


def divergences(w: World) -> list[Row]:
    """AUROC for language_prior of each divergence, over the answer and over a response."""
    return [
        {
            "divergence": name,
            "over": evidence,
            "counterfactual": kind,
            "against": against,
            **rated(-w.column(f"{evidence}-{kind}", name), causes == "language_prior"),
        }
        for name in DIVERGENCES
        for evidence in ("logits", "answer")
        for kind in ("drop", "blank")
        for against, causes in causes_of(w)
    ]


def psi_table(w: World) -> list[Row]:
    """AUROC for attention_biased of each form of psi, and what lambda_a does with it."""
    rows = []
    for name, psi in w.forms.items():
        finite = psi[np.isfinite(psi)]
        fence_at = psi_fence(finite) if len(finite) else np.nan
        for against, causes in causes_of(w):
            biased = causes == "attention_biased"
            fence = precision_recall(psi > fence_at, biased)
            paper = precision_recall(psi > np.log(0.1), biased)
            rows.append(
                {
                    "psi": name,
                    "against": against,
                    **rated(psi, biased),
                    "fence_precision": fence[0],
                    "fence_recall": fence[1],
                    "flagged_at_0.1": float((psi > np.log(0.1)).mean()),
                    "precision_at_0.1": paper[0],
                }
            )
    return rows


def families(w: World) -> list[Row]:
    """By family: pass rates, their spread, the share that is half-solved (0.2 to 0.8), of
    those the share that the image does not help, and the share that selections of a tenth
    keep."""
    named = [s.family for s in w.measured.samples]
    five = rollout_scores(w, w.counts(PAPER), w.psi)
    kept = {}
    for name, options in (("budget", {}), ("learn", {"rule": "learn"})):
        kept[f"kept_{name}"] = np.isin(
            np.arange(len(named)), rap.choose(five, budget=BUDGET, **options).indices
        )
    size = int(BUDGET * len(named))
    kept["kept_variance"] = baselines(w, size)["reward variance p(1-p)"]
    rows = by_family.rates(named, w.rate("1"), w.rate("0"))
    for row in rows:
        mine = np.array([row["family"] in (f, by_family.ALL) for f in named])
        row |= {name: float(mask[mine].mean()) for name, mask in kept.items()}
    return rows


def flags(w: World) -> list[Row]:
    """What ACE's calibrated limit flags, by family, and how much of it wrongly: psi of
    completion 0 in the default form, against the actual causes."""
    named = [s.family for s in w.measured.samples]
    return by_family.flags(named, w.actual == "attention_biased", w.psi)


# ---- stability, confidence, adaptive -------------------------------------------


def stability(w: World) -> list[Row]:
    """Overlap (Jaccard) of selections from other completions of the same model. The counts
    of "two sampling seeds" share no completion, but psi is that of completion 0 in both:
    two whole runs agree less."""
    psi, most = w.psi, w.right["1"].shape[1]
    rows = []
    for order in ("gain", "learnable"):

        def chosen(counts: tuple[Array, ...], order: str = order) -> Array:
            made = rap.choose(rollout_scores(w, counts, psi), budget=BUDGET, order=order)
            mask = np.zeros(len(w.planted), bool)
            mask[made.indices] = True
            return mask

        for m in (PAPER, 8, NEAR):
            if 2 * m > most:
                continue
            one = chosen(w.counts(m))
            c1, c0 = (w.right[a][:, m : 2 * m].sum(axis=1) for a in "10")
            full = np.full(len(c1), m)
            two, all_of = chosen((c1, full, c0, full)), chosen(w.counts(most))
            rows.append(
                {"order": order, "compared": f"M={m}, two sampling seeds"}
                | {"jaccard": jaccard(one, two)}
            )
            rows.append(
                {"order": order, "compared": f"M={m} against M={most}"}
                | {"jaccard": jaccard(one, all_of)}
            )
    table = w.measured.scores["m5"].table
    alone = [table[n].to_numpy() for n in ("c1", "m1", "c0", "m0")]
    equal = [a == b for a, b in zip(alone, w.counts(PAPER), strict=True)]
    rows.append(
        {"order": "counts", "compared": "M=5 drawn alone, in smaller batches: equal share"}
        | {"jaccard": float(np.all(equal, axis=0).mean())}
    )
    return rows


def confidence(w: World) -> list[Row]:
    """How often Newcombe's 90 % interval from the first m completions holds the D of the
    later ones, its width, and how well the probability to pass D > 0.5 says who does. The
    later ones (``later`` an arm) are a noisy truth: a miss is not always the interval's."""
    rows = []
    most = w.right["1"].shape[1]
    for m in (PAPER, 8):
        if m >= most:
            continue
        rest = most - m
        later = (w.right["1"][:, m:].sum(axis=1) - w.right["0"][:, m:].sum(axis=1)) / rest
        a1, n1, a0, n0 = w.counts(m)
        bounds = [interval(*map(int, x)) for x in zip(a1, n1, a0, n0, strict=True)]
        low, high = np.array(bounds).T
        p = keep_probability(a1, n1, a0, n0, 0.5, 4000, w.measured.seed)
        passes = later > 0.5
        rows.append(
            {
                "m": m,
                "later": rest,
                "covered": float(((low <= later) & (later <= high)).mean()),
                "width": float((high - low).mean()),
                "brier": float(((p - passes) ** 2).mean()),
                "brier_hard": float((((a1 - a0) / m > 0.5) != passes).mean()),
            }
        )
    return rows


def adaptive(w: World) -> list[Row]:
    """Completions saved by stopping, and whether the decisions stay: ``same_reason`` and
    ``jaccard`` against plain M = m that the completions are a part of, ``other_`` against
    an independent run of m (completions m .. 2m - 1, psi still of completion 0). Look
    "plain k": k completions of every sample, no look."""
    most = w.right["1"].shape[1]
    rows = []
    for m in (8, NEAR, 32):
        if m > most:
            continue
        ways = {str(k): adaptive_counts(w, m, k) for k in (2, 3, 4, 5, 6, 8) if k < m}
        if m == NEAR:
            ways |= {f"plain {k}": w.counts(k) for k in (7, 8, NEAR)}
        for order in ("gain", "learnable"):
            full = _decided(w, w.counts(m), order)
            other = _decided(w, _later(w, m), order) if 2 * m <= most else None
            for look, counts in ways.items():
                row = {"m": m, "look": look, "order": order}
                drawn = (counts[1] + counts[3]).sum() / (2 * m * len(w.planted))
                part = _decided(w, counts, order)
                row |= {"saved": float(1 - drawn)} | _agreement(part, full, "")
                row |= _agreement(part, other, "other_")
                cognitive = w.planted == "cognitive"
                row["share_full"] = float(cognitive[full[0]].mean())
                rows.append(row | {"share": float(cognitive[part[0]].mean())})
    return rows


def _later(w: World, m: int) -> tuple[Array, Array, Array, Array]:
    """Counts of completions m .. 2m - 1."""
    c1, c0 = (w.right[arm][:, m : 2 * m].sum(axis=1) for arm in "10")
    full = np.full(len(c1), m)
    return c1, full, c0, full


def _decided(w: World, counts: tuple[Array, ...], order: str) -> tuple[Array, Array]:
    """(kept or not, the reason) of every sample, under the default rule."""
    made = rap.choose(rollout_scores(w, counts, w.psi), budget=BUDGET, order=order)
    kept = np.isin(np.arange(len(w.psi)), made.indices)
    return kept, np.array(made.table["reason"].to_pylist())


def _agreement(
    a: tuple[Array, Array], b: tuple[Array, Array] | None, name: str
) -> dict[str, float]:
    """How far two decisions agree; NaN where there is no second one."""
    if b is None:
        return {f"{name}same_reason": float("nan"), f"{name}jaccard": float("nan")}
    same = float((a[1] == b[1]).mean())
    return {f"{name}same_reason": same, f"{name}jaccard": jaccard(a[0], b[0])}


TABLES: dict[str, Callable[[World], list[Row]]] = {
    "estimators": estimators,
    "selections": selections,
    "evidence": evidences,
    "counterfactuals": counterfactuals,
    "divergences": divergences,
    "psi": psi_table,
    "families": families,
    "flags": flags,
    "stability": stability,
    "confidence": confidence,
    "adaptive": adaptive,
}


def transfer(a: World, b: World) -> list[Row]:
    """Overlap of what two models select from one world."""
    left, right = masks(a), masks(b)
    pairs = zip(at_random(a), at_random(b), strict=True)
    chance = float(np.mean([jaccard(x, y) for x, y in pairs]))
    return [{"selection": "random", "jaccard": chance}] + [
        {"selection": name, "jaccard": jaccard(left[name], right[name])} for name in left
    ]


def confirm(fresh: Fresh) -> list[Row]:
    """The only confirmation: worlds of split "test" that nothing was set on, scored and
    selected with the defaults as they are."""
    causes = np.array([s.cause for s in fresh.samples])
    pool = float((causes == "cognitive").mean())
    rows = []
    for evidence, scores in fresh.scores.items():
        kept = causes[np.array(rap.choose(scores, budget=BUDGET).indices, int)]
        share = float((kept == "cognitive").mean()) if len(kept) else 0.0
        counted = Counter(kept.tolist()).most_common()
        rows.append(
            {
                "evidence": evidence,
                "kept": len(kept),
                "pool": pool,
                "share": share,
                "times": share / pool if pool else float("nan"),
                "held": ", ".join(f"{c} {k}" for c, k in counted),
            }
        )
    return rows
