"""The kernels in float64 NumPy: the executable specification.

Every function here has the name, the arguments and the result of its counterpart in
``rap.ops``; it is written to be read, not to be fast, and it may hold [L, L] arrays. The
tests hold the kernels against it, the benchmarks refuse to time a kernel that disagrees
with it. Mathematics: METHOD.md beside this file, sections 1 to
3; RAP (arXiv 2506.04755) section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .divergences import CDE_OUTPUTS

Array = np.ndarray

ACE_FLOOR = 2.0**-126  # a head-mean weight below this counts as this


def _float64(x: ArrayLike) -> Array:
    return np.asarray(x).astype(np.float64)


def log_softmax(logits: ArrayLike) -> Array:
    """Natural log-probabilities over the last axis; -inf logits stay -inf."""
    x = _float64(logits)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _sum_p(p: Array, x: Array) -> Array:
    """Sum of p x over the last axis with 0 * anything = 0."""
    return np.where(p > 0, p * np.where(p > 0, x, 0), np.where(np.isnan(p), np.nan, 0)).sum(
        axis=-1
    )


def sample_means(x: Array, weights: ArrayLike | None, cu_seqlens: ArrayLike) -> Array:
    """Weighted mean of x [T] over each sample's rows [S]; NaN where weights sum to 0."""
    cu = np.asarray(cu_seqlens, dtype=np.int64)
    w = np.ones(len(x)) if weights is None else _float64(weights)
    out = np.full(len(cu) - 1, np.nan)
    for s, (a, b) in enumerate(zip(cu[:-1], cu[1:], strict=True)):
        total = w[a:b].sum()
        if total > 0:
            used = w[a:b] > 0  # a row of weight 0 says nothing, whatever it holds
            out[s] = (w[a:b][used] * x[a:b][used]).sum() / total
    return out


def cde(
    logits1: ArrayLike,
    logits0: ArrayLike,
    *,
    targets: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> dict[str, Array]:
    """Divergences between softmax(logits1) and softmax(logits0), rows of [T, V].

    Returns float64 [T] each (or [S] means with ``cu_seqlens``): see ``rap.cde``.
    """
    with np.errstate(all="ignore"):
        a1, a0 = log_softmax(logits1), log_softmax(logits0)
        p1, p0 = np.exp(a1), np.exp(a0)
        mix = np.logaddexp(a1, a0) - np.log(2)
        out = {
            "kl": _sum_p(p1, a1 - a0),
            "rkl": _sum_p(p0, a0 - a1),
            "js": 0.5 * (_sum_p(p1, a1 - mix) + _sum_p(p0, a0 - mix)),
            "tv": 0.5 * np.abs(p1 - p0).sum(axis=-1),
            "hellinger2": 1 - np.sqrt(p1 * p0).sum(axis=-1),
            "entropy1": -_sum_p(p1, a1),
            "entropy0": -_sum_p(p0, a0),
        }
        out["jeffreys"] = out["kl"] + out["rkl"]
    if targets is not None:
        rows = np.arange(len(a1))
        out["logp1"] = a1[rows, np.asarray(targets)]
        out["logp0"] = a0[rows, np.asarray(targets)]
    out = {name: out[name] for name in CDE_OUTPUTS if name in out}
    if cu_seqlens is not None:
        out = {name: sample_means(x, weights, cu_seqlens) for name, x in out.items()}
    return out


def linear_cde(
    hidden1: ArrayLike,
    hidden0: ArrayLike,
    weight: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    targets: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> dict[str, Array]:
    """``cde`` of logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)."""

    def logits(hidden: ArrayLike) -> Array:
        x = _float64(hidden) @ _float64(weight).T
        x = x if bias is None else x + _float64(bias)
        x = x if scale is None else x * scale
        return x if not softcap else softcap * np.tanh(x / softcap)

    return cde(
        logits(hidden1),
        logits(hidden0),
        targets=targets,
        weights=weights,
        cu_seqlens=cu_seqlens,
    )


def log_attention(
    q: ArrayLike, k: ArrayLike, scale: float | None = None, key_window: int | None = None
) -> Array:
    """ln A [Hq, L, L] of causal self-attention, q [Hq, L, D], k [Hkv, L, D].

    key_window: row i sees keys j > i - key_window only."""
    q, k = _float64(q), _float64(k)
    k = np.repeat(k, q.shape[0] // k.shape[0], axis=0)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (q @ k.transpose(0, 2, 1))
    seen = _seen(scores.shape[-1], key_window)
    with np.errstate(all="ignore"):
        return log_softmax(np.where(seen, scores, -np.inf))


def attention(
    q: ArrayLike, k: ArrayLike, scale: float | None = None, key_window: int | None = None
) -> Array:
    """A [Hq, L, L]; rows sum to 1; see ``log_attention``."""
    return np.exp(log_attention(q, k, scale, key_window))


def _seen(length: int, key_window: int | None) -> Array:
    """bool [L, L]: row i sees key j."""
    seen = np.tri(length, dtype=bool)
    return seen if key_window is None else seen & ~np.tri(length, k=-key_window, dtype=bool)


def _log_weights(ln_a: Array, heads: str, renormalise: bool, seen: Array) -> Array:
    """ln w [F, L, L], -inf where a row does not see a column."""
    if heads == "mean":
        w = np.where(seen, np.maximum(np.exp(ln_a).mean(0), ACE_FLOOR), 0.0)[None]
        with np.errstate(divide="ignore"):
            ln_w = np.log(w)
    else:
        ln_w = ln_a.max(0)[None] if heads == "max" else ln_a
    if renormalise:
        ln_w = ln_w - np.log(np.exp(ln_w).sum(-1, keepdims=True))
    return ln_w


def _column_rows(
    j: int, start: int, length: int, window: int | None, key_window: int | None
) -> slice:
    """I(j): response rows i >= j, the first `window` of them, that see column j."""
    first = max(j, start)
    last = length if window is None else min(length, first + window)
    if key_window is not None:
        last = min(last, first + key_window, j + key_window)
    return slice(first, max(first, last))


def ace_sample(
    q: ArrayLike,
    k: ArrayLike,
    *,
    response_start: int,
    scale: float | None = None,
    sigma: float = 2.0,
    heads: str = "mean",
    renormalise: bool = False,
    normalise: bool = True,
    min_rows: int = 8,
    window: int | None = None,
    key_window: int | None = None,
    columns: str = "response",
    column_mask: ArrayLike | None = None,
    image_mask: ArrayLike | None = None,
    top: int = 8,
) -> dict[str, Array]:
    """ACE of one sample; fields lead: log_psi [F], log_psi_columns [F, L]; see ``ace``."""
    n_heads, length = np.shape(q)[:2]
    ln_a = log_attention(q, k, scale, key_window) if length else np.zeros((n_heads, 0, 0))
    ln_w = _log_weights(ln_a, heads, renormalise, _seen(length, key_window))
    psi = np.full((len(ln_w), length), -np.inf)
    for j in range(length):
        rows = _column_rows(j, response_start, length, window, key_window)
        count = rows.stop - rows.start
        kind = "response" if j >= response_start else "prompt"
        allowed = column_mask is None or bool(np.asarray(column_mask)[j])
        if columns in (kind, "all") and allowed and count >= min_rows:
            total = (ln_w[:, rows, j] + np.log(sigma)).sum(-1)
            psi[:, j] = total / count if normalise else total
    best = psi.max(-1) if length else np.full(len(ln_w), -np.inf)
    found = np.isfinite(best) | (best == np.inf)
    w = np.exp(ln_w)[:, response_start:]
    with np.errstate(all="ignore"):
        w = w / w.sum(-1, keepdims=True)
        entropy = -_sum_p(w, np.log(w))
    largest = np.sort(w, -1)[..., ::-1][..., :top].sum(-1)

    def mean(x: Array) -> Array:
        return x.mean(-1) if length > response_start else np.full(len(ln_w), np.nan)

    nothing = np.full(len(ln_w), np.nan)
    image = None if image_mask is None else w[..., np.asarray(image_mask, bool)].sum(-1)
    return {
        "log_psi": best,
        "position": np.where(found, psi.argmax(-1) if length else -1, -1),
        "log_psi_columns": psi,
        "attention_entropy": mean(entropy),
        "attention_top": mean(largest),
        "image_mass": nothing if image is None else mean(image),
    }


def ace(
    q: ArrayLike,
    k: ArrayLike,
    *,
    response_start: int | ArrayLike,
    cu_seqlens: ArrayLike | None = None,
    column_mask: ArrayLike | None = None,
    image_mask: ArrayLike | None = None,
    heads: str = "mean",
    **options: Any,
) -> dict[str, Array]:
    """ACE of samples packed along L; shapes and options as ``rap.ace``."""
    q, k = np.asarray(q), np.asarray(k)
    cu = np.asarray([0, q.shape[1]] if cu_seqlens is None else cu_seqlens)
    starts = np.broadcast_to(np.asarray(response_start), (len(cu) - 1,))
    parts = [
        ace_sample(
            q[:, a:b],
            k[:, a:b],
            response_start=int(start),
            column_mask=None if column_mask is None else np.asarray(column_mask)[a:b],
            image_mask=None if image_mask is None else np.asarray(image_mask)[a:b],
            heads=heads,
            **options,
        )
        for a, b, start in zip(cu[:-1], cu[1:], starts, strict=True)
    ]
    out = {
        name: np.stack([p[name] for p in parts])
        for name in parts[0]
        if "columns" not in name
    }
    out["log_psi_columns"] = np.concatenate([p["log_psi_columns"] for p in parts], axis=-1)
    if heads != "each":
        out = {n: x[0] if n == "log_psi_columns" else x[:, 0] for n, x in out.items()}
    return out


def drm(
    difficulty: ArrayLike,
    k: int,
    *,
    eligible: ArrayLike | None = None,
    gain: ArrayLike | None = None,
) -> Array:
    """Indices of the k hardest with 0 < difficulty < 1: difficulty down, gain down, index
    up; a NaN in either, or not eligible, is no candidate. int64 [<= k]."""
    d = _float64(difficulty)
    g = np.zeros(len(d)) if gain is None else _float64(gain)
    with np.errstate(invalid="ignore"):
        candidate = (d > 0) & (d < 1) & ~np.isnan(g)
    if eligible is not None:
        candidate &= np.asarray(eligible, bool)
    index = np.flatnonzero(candidate)
    order = np.lexsort((index, -g[index], -d[index]))
    return index[order][:k].astype(np.int64)


# ---- rule learn: METHOD.md section 7 ------------------------------------------------


def beta_value(c1: int, m1: int, c0: int, m0: int, points: int = 20001) -> float:
    """E[p1 (1 - p1)] P(sign of D), p ~ Beta(1 + c, 1 + m - c), by quadrature over p; see
    ``rap.scores.learning``. m1, m0 >= 1."""
    p = np.linspace(0.0, 1.0, points)
    one, zero = (p**c * (1 - p) ** (m - c) for c, m in ((c1, m1), (c0, m0)))
    one, zero = one / one.sum(), zero / zero.sum()
    below = np.cumsum(zero) - zero / 2  # P(p0 < p)
    above = float((one * below).sum())
    sign = 1 - above if c1 * m0 < c0 * m1 else above
    return float((one * p * (1 - p)).sum()) * sign


def cover(value: ArrayLike, group: ArrayLike, k: int, scale: float) -> list[int]:
    """Greedy choice of k for sum over groups of log(1 + sum of value / scale): one at a
    time, every candidate tried, ties to the smaller index. In the order of choice."""
    s, g = _float64(value), np.asarray(group)
    chosen: list[int] = []
    total: dict[Any, float] = {}
    for _ in range(min(k, len(s))):
        left = [i for i in range(len(s)) if i not in chosen]
        gain = [s[i] / (scale + total.get(g[i], 0.0)) for i in left]  # log(1 + this)
        best = left[int(np.argmax(gain))]
        total[g[best]] = total.get(g[best], 0.0) + s[best]
        chosen.append(best)
    return chosen


def learn(
    value: ArrayLike,
    k: int,
    *,
    usable: ArrayLike,
    above: ArrayLike,
    negative: ArrayLike,
    biased: ArrayLike,
    harm: ArrayLike,
    guards: tuple[int, int],
    group: ArrayLike | None,
    covers_main: bool,
    scale: float,
) -> dict[str, list[int]]:
    """Rule ``learn`` on n rows: {"guard", "main", "fill"}: indices.

    value: float64 [n], above 0 where outcomes are mixed. usable: valid and not unsolved;
    above: D above the threshold; negative: D < 0; biased: psi above its limit; bool [n].
    harm: float64 [n], p1 (1 - p1) (p0 - p1), at least 0. guards: how many of the k are for
    attention-biased and for hurt samples at most. group: what is covered, in the guards
    and with ``covers_main`` in the main part, None: no coverage.
    """
    s, lost = _float64(value), _float64(harm)
    use, up, down, captured = (
        np.asarray(x, bool) for x in (usable, above, negative, biased)
    )

    def best(rows: list[int], many: int, by: Any, covers: bool = False) -> list[int]:
        if group is None or not covers:
            return sorted(rows, key=lambda i: (-by[i], i))[: max(many, 0)]
        found = cover(by[rows], np.asarray(group)[rows], max(many, 0), scale)
        return [rows[i] for i in found]

    mixed = [i for i in range(len(s)) if use[i] and s[i] > 0]
    guard = best([i for i in mixed if captured[i]], guards[0], s, True)
    hurt = [
        i
        for i in range(len(s))
        if use[i] and lost[i] > 0 and not captured[i] and not up[i] and down[i]
    ]
    guard += best(hurt, guards[1], lost, True)
    rows = [i for i in mixed if not captured[i] and up[i]]
    main = best(rows, k - len(guard), s, covers_main)
    taken = {*guard, *main}
    rest = [i for i in range(len(s)) if use[i] and not np.isnan(s[i]) and i not in taken]
    return {"guard": guard, "main": main, "fill": best(rest, k - len(taken), s)}
