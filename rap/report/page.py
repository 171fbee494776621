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
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..config import TRAIN_GROUP
from ..environment import version
from ..errors import RapConfigError, RapInputError, install
from ..scores.bill import cost
from ..scores.completions import Completions, HeldCompletions
from ..scores.files import write_result
from ..scores.fingerprint import other_run
from ..scores.profile import Profile, read_profile
from ..scores.stages import stages_of
from .charts import averages, panels_of
from .parts import cost_of, details_of, groups_of, reasons_of, times_of
from .samples import (
    QUESTION,
    SHORT,
    found_samples,
    open_source,
    shown_samples,
    strangers,
    strongest,
    thumbnail,
)
from .text import grouped, number, percent, visible

if TYPE_CHECKING:
    from ..scores.selected import Selected

MAX_WARNINGS = 20
CAPTION = 110  # characters under a thumbnail


def write_report(
    selection: Selected,
    path: str | os.PathLike[str],
    *,
    dataset: Any = None,
    rollouts: pa.Table | str | os.PathLike[str] | None = None,
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
    ``rollouts``: the completions to show some of: a table of ``ROLLOUT_SCHEMA``, or the
    folder of the score store, which also has the times of profiled runs; None is
    ``selection.rollouts``.
    ``title``: the heading; ``note``: a sentence under it.
    ``per_reason``: samples shown for each reason, 0 to 100; those with the largest ranking
    key for kept ones, else evenly spread over the data set. ``train_group``: completions a
    sample in the comparison with training on everything.

    Returns ``path``. Raises ``RapConfigError`` (jinja2 is not installed, a setting makes
    no sense), ``RapInputError`` (the data set cannot be opened, the store is of other
    scores), ``RapStoreError``.
    """
    text = render(
        selection,
        dataset=dataset,
        rollouts=rollouts,
        title=title,
        note=note,
        per_reason=per_reason,
        train_group=train_group,
    )
    path = Path(path)
    write_result(path, lambda file: file.write(text.encode()))
    return path


def render(
    selection: Selected,
    *,
    dataset: Any = None,
    rollouts: pa.Table | str | os.PathLike[str] | None = None,
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
    environment.filters |= {"grouped": grouped, "percent": percent, "number": number}
    source = open_source(selection, dataset)
    reasons = reasons_of(selection)
    samples = shown_samples(
        selection, source, reasons, per_reason, completions_of(selection, rollouts)
    )
    warnings = [*selection.warnings, *strangers(samples)]
    style = environment.get_template("style.css").render(reasons=len(reasons))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("template.html").render(
        title=visible(title or "Selection report", SHORT),
        note=visible(note or "", QUESTION),
        style=style,
        style_hash=f"sha256-{digest}",
        version=version("rap-select") or "not installed",
        n=selection.reader.num_rows,
        kept=len(selection),
        settings=selection.settings,
        rule=_rule_text(selection.settings),
        ranking=(selection.settings.get("texts") or {}).get("ranking"),
        reasons=reasons,
        panels=panels_of(selection),
        averages=averages(selection),
        cost=cost_of(selection, train_group),
        bill=cost(selection, group=train_group) if len(selection) else None,
        times=times_of(profile_of(selection, rollouts), selection.reader.num_rows),
        groups=groups_of(selection),
        stages=stages_of(selection.reader, selection.kept),
        prior=(selection.settings.get("texts") or {}).get("prior"),
        samples=samples,
        has_data=source is not None,
        per_reason=per_reason,
        warnings=[visible(w, SHORT * 2) for w in warnings[:MAX_WARNINGS]],
        details=details_of(selection.settings),
    )


def thumbnails(selection: Selected, limit: int = 6) -> str:
    """Kept samples as HTML figures, for a notebook: at most ``limit``, the largest
    ranking key first.

    Empty if no data set is known or none of its images can be shown.
    """
    from html import escape

    source = open_source(selection, None)
    if source is None:
        return ""
    rows = strongest(selection.reader, np.flatnonzero(selection.kept))[:limit]
    figures = []
    found = found_samples(selection, source, rows)
    shown = selection.reader.take(rows).to_pylist()
    for row, (sample, _) in zip(shown, found, strict=True):
        if sample is None:
            continue
        uri, _ = thumbnail(sample, row)
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


def completions_of(
    selection: Selected, rollouts: pa.Table | str | os.PathLike[str] | None
) -> Completions | None:
    """The completions behind the scores; see ``write_report``."""
    if rollouts is None:
        return selection.completions
    if isinstance(rollouts, pa.Table):
        return HeldCompletions(rollouts)
    from ..scores.store import ScoreStore

    store, scores = ScoreStore.load(rollouts), selection.settings.get("scores")
    lines = other_run(store.fingerprint, scores) if scores else []
    if lines:
        raise RapInputError(
            f"{store.path}: not the store that this selection was made from: {lines[0]}"
        )
    return store.completions()


def profile_of(
    selection: Selected, rollouts: pa.Table | str | os.PathLike[str] | None
) -> Profile | None:
    """Where the time of the scoring went, if it was measured: the selection's own, else
    that of the score store; see ``write_report``."""
    if selection.profile is None and isinstance(rollouts, (str, os.PathLike)):
        return read_profile(Path(rollouts))
    return Profile.of(selection.profile)


def _rule_text(settings: Mapping[str, Any]) -> str:
    """Rule and what it does; selections of older versions do not say the latter."""
    text = (settings.get("texts") or {}).get("rule")
    return f"Rule \u201c{settings['choose']['rule']}\u201d" + (f" {text}" if text else ".")
