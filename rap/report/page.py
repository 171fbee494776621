"""Selection -> one self-contained HTML page: what was kept, why the rest was not.

The page asks for nothing: no script, no link, no font, no image from outside; a content
security policy inside it forbids them. Every text out of the data is escaped by the
template engine, cut to a length, and shown with its control and direction characters
made visible. Its size is bounded: histograms and counts grow with nothing, and at most
``per_reason`` samples are shown for each of at most ``MAX_REASONS`` reasons, so 10^6
rows give the same page as 10^3.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import DEFAULT_BUDGET, MAX_IMAGE_PIXELS, TRAIN_GROUP
from ..environment import version
from ..errors import RapConfigError, install
from ..samples.sample import Bad
from ..scores.files import write_atomic
from ..scores.table import SCORED

if TYPE_CHECKING:
    from ..scores.selected import Selected

MAX_REASONS = 40
MAX_GROUPS = 50
MAX_WARNINGS = 20
THUMBNAIL = (320, 240)  # pixels; shown at half that size, for screens of high density
QUESTION, SHORT, SETTINGS = 700, 200, 6000  # characters of a text that are shown
CAPTION = 110  # under a thumbnail
BINS = 41  # odd, over a range half a bin wider on each side: 0 and 1 are bin centres

EXPLANATION = {
    "kept_cognitive": "The image changes the outcome.",
    "kept_replacement": "Hard but solvable; takes the place of a trivial one.",
    "dropped_unsolved": "Never solved with the image: nothing to reward.",
    "dropped_attention_biased": "One token holds the response's attention: psi is above "
    "its limit.",
    "dropped_image_hurts": "Does better without the image than with it.",
    "dropped_language_prior": "The image changes too little: the text alone does nearly as "
    "well.",
    "dropped_trivial": "Always solved: nothing left to learn.",
    "dropped_over_budget": "Passes every test; others gain more from their image.",
    "quarantined_psi_missing": "Attention was measured for others, not for this one.",
    "quarantined_few_rollouts": "One arm has no judged completion.",
    "quarantined_nonfinite": "A score is not a finite number.",
    "quarantined_oom": "Did not fit in memory, even alone.",
    "quarantined_empty_response": "The response holds no token.",
    "quarantined_prompt_too_long": "The prompt is too long; image tokens are never cut.",
    "quarantined_verifier_error": "The answer checker failed.",
    "quarantined_verifier_timeout": "The answer checker took too long.",
    "quarantined_model_error": "The model failed on this sample alone.",
    "quarantined_image_missing": "The image file is not there.",
    "quarantined_image_unreadable": "The image cannot be read.",
    "quarantined_image_truncated": "The image file ends too early.",
    "quarantined_image_too_large": "The image has too many pixels.",
    "quarantined_image_too_small": "The image is smaller than anything to see.",
    "quarantined_image_format": "The image format is not accepted.",
    "quarantined_image_count": "Images and image tags do not match, or there is none.",
    "quarantined_path_outside_root": "The image path leads out of the data folder.",
    "quarantined_not_regular_file": "The image path is no ordinary file.",
    "quarantined_url_refused": "The image is an address on the network; none is fetched.",
    "quarantined_bad_json": "The row is not valid JSON.",
    "quarantined_bad_answer": "Question or answer is missing, or no choice fits.",
    "quarantined_bad_text": "A text cannot be stored.",
}


def write_report(
    selection: Selected,
    path: str | os.PathLike[str],
    *,
    dataset: Any = None,
    title: str | None = None,
    note: str | None = None,
    per_reason: int = 12,
    train_group: int = TRAIN_GROUP,
) -> Path:
    """Write ``selection`` as one HTML page to ``path``, whole or not at all.

    ``dataset``: where questions and images come from (what ``rap.samples.open_samples``
    takes); None is the selection's own. Without one the page shows scores only. A sample
    that is not there as it was scored (``scores.match``) is shown without question and
    image, and the page says why, and how many there are.
    ``title``: the heading; ``note``: a sentence under it.
    ``per_reason``: samples shown for each reason, 0 to 100; those with the largest D for
    kept ones, else evenly spread over the data set. ``train_group``: completions a
    sample in the comparison with training on everything.

    Returns ``path``. Raises ``RapConfigError`` (jinja2 is not installed, a setting makes
    no sense), ``RapInputError`` (the data set cannot be opened), ``RapStoreError``.
    """
    text = render(
        selection,
        dataset=dataset,
        title=title,
        note=note,
        per_reason=per_reason,
        train_group=train_group,
    )
    path = Path(path)
    write_atomic(path, lambda file: file.write(text.encode()))
    return path


def render(
    selection: Selected,
    *,
    dataset: Any = None,
    title: str | None = None,
    note: str | None = None,
    per_reason: int = 12,
    train_group: int = TRAIN_GROUP,
) -> str:
    """The page of ``write_report`` as text. No clock, no chance: same in, same out."""
    try:
        import PIL  # noqa: F401  (for the images, but said here, once)
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise RapConfigError(
            f"a report needs jinja2 and pillow: {install('report')}"
        ) from error
    for name, value, least, most in (
        ("per_reason", per_reason, 0, 100),
        ("train_group", train_group, 1, 10**6),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            raise RapConfigError(
                f"{name} = {value!r}: expected an integer from {least} to {most}"
            )
    environment = Environment(
        loader=PackageLoader("rap.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["default_budget"] = DEFAULT_BUDGET
    environment.filters |= {"grouped": grouped, "percent": percent, "number": number}
    source = _open(selection, dataset)
    reasons = _reasons(selection)
    samples = _samples(selection, source, reasons, per_reason)
    warnings = [*selection.warnings, *_strangers(samples)]
    style = environment.get_template("style.css").render(reasons=len(reasons))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("template.html").render(
        title=visible(title or "Selection report", SHORT),
        note=visible(note or "", QUESTION),
        style=style,
        style_hash=f"sha256-{digest}",
        version=version("rap-select") or "not installed",
        n=selection.table.num_rows,
        kept=len(selection),
        settings=selection.settings,
        reasons=reasons,
        panels=_panels(selection),
        averages=_averages(selection),
        cost=_cost(selection, train_group),
        groups=_groups(selection),
        samples=samples,
        has_data=source is not None,
        per_reason=per_reason,
        warnings=[visible(w, SHORT * 2) for w in warnings[:MAX_WARNINGS]],
        details=_details(selection.settings),
    )


def thumbnails(selection: Selected, limit: int = 6) -> str:
    """Kept samples as HTML figures, for a notebook: at most ``limit``, largest D first.

    Empty if no data set is known or none of its images can be shown.
    """
    from html import escape

    source = _open(selection, None)
    if source is None:
        return ""
    rows = _strongest(selection.table, np.flatnonzero(selection.kept))[:limit]
    figures = []
    found = _found(selection, source, rows)
    for row, (sample, _) in zip(selection.table.take(rows).to_pylist(), found, strict=True):
        if sample is None:
            continue
        uri, _ = _thumbnail(sample, row)
        if uri is None:
            continue
        question = escape(visible(sample.question[:CAPTION], CAPTION))
        question += "\u2026" if len(sample.question) > CAPTION else ""
        figures.append(
            "<figure style='width:180px;margin:0 12px 12px 0'>"
            f"<img src='{uri}' alt='' style='max-width:160px;max-height:120px;"
            "background:#fff'>"
            f"<figcaption style='font-size:12px;line-height:1.4'><bdi>{question}</bdi><br>"
            f"<b>D {number(row['D'])}</b></figcaption></figure>"
        )
    if not figures:
        return ""
    return f"<div style='display:flex;flex-wrap:wrap'>{''.join(figures)}</div>"


# ---------------------------------------------------------------- text and numbers


def visible(text: object, limit: int) -> str:
    """``text`` cut to ``limit`` characters, with nothing in it that hides.

    Direction overrides, zero-width and control characters become ``[U+202E]``, lone
    surrogates U+FFFD. Cut first: a text of 1 MB costs no more than a short one.
    """
    text = str(text)
    cut = text[:limit]
    shown = "".join(_visible(c) for c in cut)
    if len(text) > limit:
        shown += f"\u2026 ({grouped(len(text))} characters)"
    return shown


def _visible(c: str) -> str:
    if c in "\n\t" or 0x20 <= ord(c) < 0x7F:
        return c
    category = unicodedata.category(c)
    if category == "Cs":
        return "\ufffd"
    return f"[U+{ord(c):04X}]" if category in ("Cc", "Cf") else c


def grouped(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """8.6 %, with a digit more below 1 %."""
    if share and share < 0.01:
        return f"{share:.2%}".replace("%", "\u202f%")
    return f"{share:.1%}".replace("%", "\u202f%")


def number(value: float | None, digits: int = 3) -> str:
    """Short decimal text; an en dash for "not measured"."""
    if value is None:
        return "\u2013"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    return f"{value:.{digits}g}".replace("-", "\u2212")


def _details(settings: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in settings.items() if k not in ("warnings", "groups")}
    return visible(json.dumps(shown, indent=2, default=str), SETTINGS)


# ---------------------------------------------------------------- the parts of the page


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason code with what the page says of it; ``label`` is the code to be shown."""

    code: str
    label: str
    kind: str  # kept | dropped | quarantined
    count: int
    share: float
    width: float  # of the bar, in units of the chart
    text: str


def _reasons(selection: Selected) -> list[Reason]:
    counts = selection.counts()
    text = dict(EXPLANATION)
    if selection.settings["found"]["lambda_a"] is not None:  # else nobody looked
        text["kept_cognitive"] += " No single token holds the attention."
    shown = [(c, k) for c, k in counts.items() if k or c.startswith("kept")]
    most = max((k for _, k in shown), default=1) or 1
    n = max(selection.table.num_rows, 1)
    return [
        Reason(
            code=code,
            label=visible(code, 80),
            kind=code.partition("_")[0],
            count=count,
            share=count / n,
            width=400 * count / most,
            text=text.get(code, ""),
        )
        for code, count in shown[:MAX_REASONS]
    ]


@dataclass(frozen=True, slots=True)
class Panel:
    """One histogram, all samples above the axis and kept ones below, each to its own
    scale: a selection of one per cent would vanish beside the whole."""

    name: str
    title: str
    text: str
    measured: int
    bars: list[tuple[float, float, float, float, float, str]]  # x w y_all h_all h_kept tip
    most: tuple[int, int]
    ticks: list[tuple[float, str]]
    line: float | None  # x of the threshold
    line_text: str  # what the line is, or why there is nothing to see


WIDTH, HEIGHT, KEPT_HEIGHT = 300.0, 80.0, 46.0


def _panels(selection: Selected) -> list[Panel]:
    settings = selection.settings
    found, evidence = settings["found"], settings["evidence"]
    signed = evidence != "logits"
    divergence = settings["choose"]["divergence"].upper()
    lambda_c, limit = found["lambda_c"], found["log_lambda_a"]
    many = settings["groups"] and lambda_c is None
    return [
        _panel(
            selection,
            "D",
            "What the image changes: D",
            "accuracy with the image minus accuracy without"
            if evidence == "rollouts"
            else "p(answer) with the image minus p(answer) without"
            if evidence == "answer"
            else f"{divergence} divergence of the two predictions, nats",
            (-1.0, 1.0) if signed else None,
            lambda_c,
            "every group has its own threshold"
            if many
            else f"D > {number(lambda_c)}"
            if lambda_c is not None
            else "",
        ),
        _panel(
            selection,
            "difficulty",
            "How hard: difficulty",
            "share of completions with the image that fail"
            if evidence == "rollouts"
            else "1 \u2212 probability of the answer with the image",
            (0.0, 1.0),
            None,
            "1 is never solved, 0 always",
        ),
        _panel(
            selection,
            "log_psi",
            "Attention on one token: log \u03c8",
            "higher: one token draws more of the attention",
            None,
            limit,
            "no limit was set" if limit is None else f"log \u03c8 \u2264 {number(limit)}",
        ),
    ]


def _panel(
    selection: Selected,
    column: str,
    title: str,
    text: str,
    span: tuple[float, float] | None,
    threshold: float | None,
    line_text: str,
) -> Panel:
    values = selection.table[column].to_numpy().astype(np.float64)
    usable = np.isfinite(values)
    measured = int(usable.sum())
    if not measured:
        short = int(np.isneginf(values).sum())
        why = f"{grouped(short)} responses are too short to judge." if short else ""
        return Panel(column, title, text, 0, [], (0, 0), [], None, why or "Not measured.")
    low, high = float(values[usable].min()), float(values[usable].max())
    if span is not None and (column != "D" or high - low > (span[1] - span[0]) / 20):
        low, high = span  # else D lies in a small part of it: look closer
    if threshold is not None and math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    half = (high - low) / (BINS - 1) / 2
    edges = np.linspace(low - half, high + half, BINS + 1)
    every, _ = np.histogram(values[usable], edges)
    kept, _ = np.histogram(values[usable & selection.kept], edges)
    most = int(every.max()), int(kept.max())
    step = WIDTH / BINS
    bars: list[tuple[float, float, float, float, float, str]] = []
    for i in np.flatnonzero(every):
        tip = (
            f"{number(edges[i])} to {number(edges[i + 1])}: {grouped(every[i])} samples, "
            f"{grouped(kept[i])} kept"
        )
        h_all = _height(every[i], most[0], HEIGHT)
        h_kept = _height(kept[i], most[1], KEPT_HEIGHT)
        bars.append((i * step + 0.5, step - 1, HEIGHT - h_all, h_all, h_kept, tip))

    def place(x: float) -> float:
        return (x - edges[0]) / (edges[-1] - edges[0]) * WIDTH

    ticks = [(place(x), number(x, 2)) for x in np.linspace(low, high, 5)]
    line = place(threshold) if threshold is not None else None
    return Panel(column, title, text, measured, bars, most, ticks, line, line_text)


def _height(count: int, most: int, full: float) -> float:
    """Bar height; a count of one among a million still leaves a line to see."""
    return max(1.0, full * count / most) if count else 0.0


def _averages(selection: Selected) -> list[tuple[str, float | None, float | None]]:
    """(what, mean over all samples judged, mean over the kept ones)."""
    table, kept = selection.table, selection.kept
    evidence = selection.settings["evidence"]
    rows = []
    if evidence == "rollouts":
        for label, c, m in (
            ("Right with the image", "c1", "m1"),
            ("Right without the image", "c0", "m0"),
        ):
            right = table[c].to_numpy().astype(np.float64)
            judged = table[m].to_numpy().astype(np.float64)
            share = np.divide(
                right, judged, out=np.full(len(right), np.nan), where=judged > 0
            )
            rows.append((label, *_means(share, kept)))
    else:
        for label, name in (
            ("Probability of the answer with the image", "p_answer1"),
            ("Probability of the answer without it", "p_answer0"),
        ):
            rows.append((label, *_means(table[name].to_numpy().astype(np.float64), kept)))
    for label, name in (("D", "D"), ("Difficulty", "difficulty")):
        rows.append((label, *_means(table[name].to_numpy().astype(np.float64), kept)))
    return rows


def _means(values: np.ndarray, kept: np.ndarray) -> tuple[float | None, float | None]:
    finite = np.isfinite(values)

    def mean(mask: np.ndarray) -> float | None:
        return float(values[mask].mean()) if mask.any() else None

    return mean(finite), mean(finite & kept)


@dataclass(frozen=True, slots=True)
class Cost:
    """The ledger; None: not recorded. Completions are the unit both sides share."""

    group: int
    completions: int
    tokens: int | None
    forwards: int | None
    seconds: float | None
    kept_completions: int
    all_completions: int

    @property
    def epochs(self) -> float | None:
        """Epochs after which not training on the rest has paid for the completions."""
        saved = self.all_completions - self.kept_completions
        return self.completions / saved if saved > 0 and self.completions else None


def _cost(selection: Selected, group: int) -> Cost:
    table = selection.table

    def total(name: str) -> Any:
        return pc.sum(table[name]).as_py()  # None where every row is null

    return Cost(
        group=group,
        completions=(total("m1") or 0) + (total("m0") or 0),
        tokens=total("generated_tokens"),
        forwards=total("forwards"),
        seconds=total("seconds"),
        kept_completions=group * len(selection),
        all_completions=group * table.num_rows,
    )


def _groups(selection: Selected) -> dict[str, Any] | None:
    groups = selection.settings["groups"]
    if not groups:
        return None
    rows = [
        (visible(g["group"], 80), g["samples"], g["kept"], g["lambda_c"])
        for g in groups[:MAX_GROUPS]
    ]
    by = visible(selection.settings["choose"]["by"], 80)
    return {"by": by, "rows": rows, "more": len(groups) - len(rows)}


# ---------------------------------------------------------------- samples


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the table of samples, ready to print."""

    reason: int  # place in the list of reasons
    id: str
    question: str
    choices: list[str]
    answer: str
    image: str | None  # data URI
    note: str
    scores: list[tuple[str, str]]
    token: str
    message: str


def _samples(
    selection: Selected, source: Any, reasons: Sequence[Reason], per_reason: int
) -> list[Shown]:
    encoded = selection.table["reason"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    place = {code: i for i, code in enumerate(encoded.dictionary.to_pylist())}
    chosen: list[tuple[int, int]] = []  # (reason, row of the table)
    for number_, reason in enumerate(reasons):
        if reason.code not in place:
            continue
        rows = np.flatnonzero(codes == place[reason.code])
        if reason.kind == "kept":
            rows = _strongest(selection.table, rows)[:per_reason]
        elif len(rows) > per_reason:
            rows = rows[np.linspace(0, len(rows) - 1, per_reason).astype(np.int64)]
        chosen += [(number_, int(row)) for row in rows]
    rows = np.array([row for _, row in chosen], np.int64)
    found = _found(selection, source, rows)
    taken = selection.table.take(pa.array(rows)).to_pylist()
    return [
        _shown(row, number_, sample, why)
        for row, (number_, _), (sample, why) in zip(taken, chosen, found, strict=True)
    ]


def _strongest(table: pa.Table, rows: np.ndarray) -> np.ndarray:
    """``rows`` with the largest D first; ties in data-set order."""
    d = np.nan_to_num(table["D"].to_numpy()[rows].astype(np.float64), nan=-np.inf)
    return rows[np.argsort(-d, kind="stable")]


def _shown(row: Mapping[str, Any], reason: int, sample: Any, why: str) -> Shown:
    image, note = _thumbnail(sample, row) if sample else (None, visible(why, SHORT))
    message = ": ".join(str(row[k]) for k in ("stage", "message") if row[k])
    return Shown(
        reason=reason,
        id=visible(row["id"], SHORT // 2),
        question="" if sample is None else visible(sample.question, QUESTION),
        choices=[]
        if sample is None
        else [visible(c, SHORT // 2) for c in sample.choices[:10]],
        answer="" if sample is None else visible(sample.answer, SHORT),
        image=image,
        note=note,
        scores=_score_lines(row),
        token="" if row["psi_token"] is None else visible(row["psi_token"], 40),
        message=visible(message, SHORT * 2),
    )


def _score_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if row["evidence"] == "rollouts":
        for label, c, m in (("with image", "c1", "m1"), ("without", "c0", "m0")):
            if row[m] is not None:
                lines.append((label, f"{row[c]} of {row[m]}"))
    else:
        for label, p in (("p with image", "p_answer1"), ("p without", "p_answer0")):
            if row[p] is not None:
                lines.append((label, number(row[p])))
    for label, name in (
        ("D", "D"),
        ("difficulty", "difficulty"),
        ("log \u03c8", "log_psi"),
    ):
        if row[name] is not None:
            short = name == "log_psi" and row[name] == -math.inf
            lines.append((label, "too short" if short else number(row[name])))
    return lines


def _open(selection: Selected, dataset: Any) -> Any:
    """The ``SampleSet`` that questions and images come from, or None."""
    if dataset is None:
        return selection.samples
    from ..scores.match import as_samples

    return as_samples(dataset, selection.settings.get("data"))


def _found(selection: Selected, source: Any, rows: np.ndarray) -> list[tuple[Any, str]]:
    """(sample or None, why it is not shown) of each row of the table."""
    if source is None:
        return [(None, "")] * len(rows)
    scored = pc.equal(selection.table["status"], SCORED).to_numpy()[rows]
    found = selection.find(source, rows)
    samples = [source[int(i)] if i >= 0 else None for i in found.rows]
    return [
        (None, found.why.get(at, "") if scored[at] else "")
        if sample is None or isinstance(sample, Bad)
        else (sample, "")
        for at, sample in enumerate(samples)
    ]


def _strangers(shown: Sequence[Shown]) -> list[str]:
    """A warning where samples are not in the data set as they were scored."""
    missing = [one for one in shown if one.question == "" and one.note]
    if not missing:
        return []
    return [
        f"{len(missing)} of {len(shown)} samples shown here are not in the data set, or "
        f"not as they were scored: {missing[0].note}"
    ]


def _thumbnail(sample: Any, row: Mapping[str, Any]) -> tuple[str | None, str]:
    """(data URI or None, what there is to say about the image)."""
    from ..samples.sample import BadSample
    from ..samples.sampleset import load_images

    try:
        images, hashes = load_images(sample, max_pixels=MAX_IMAGE_PIXELS)
    except BadSample as bad:
        return None, visible(f"{bad.code}: {bad.message}", SHORT)
    if not images:
        return None, "no image"
    notes = []
    if row["image_sha256"] and row["image_sha256"] != ",".join(hashes):
        notes.append("the image changed since it was scored")
    if len(images) > 1:
        notes.append(f"first of {len(images)} images")
    image = images[0].convert("RGB")
    image.thumbnail(THUMBNAIL)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=80)
    text = base64.b64encode(data.getvalue()).decode()
    return f"data:image/webp;base64,{text}", "; ".join(notes)
