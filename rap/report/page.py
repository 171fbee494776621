"""Selection -> one self-contained HTML page: what was kept, why the rest was not.

The page asks for nothing: no script, link, font or image from outside; a content security
policy inside it forbids them, and any script but its own (``page.js``, named by its hash).
Every text out of the data is escaped by the template engine, or set by the script as text
and never as HTML, cut to a length, and shown with its control and direction characters
made visible. Its size is bounded: histograms and counts grow with nothing, at most
``per_reason`` samples are shown for each of at most ``MAX_REASONS`` reasons, and at most
``browse`` can be browsed (``rap.report.browse`` says what they take), so 10^6 rows give a
page of the size of 50,000. Without a script, and on paper, all but browsing is there.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..config import TRAIN_GROUP
from ..errors import RapConfigError, RapInputError, install
from ..installed import version
from ..scores.bill import cost
from ..scores.completions import Completions, HeldCompletions
from ..scores.files import write_result
from ..scores.fingerprint import other_run
from ..scores.profile import Profile, read_profile
from ..scores.stages import stages_of
from .browse import ROWS, browsed
from .charts import averages, panels_of
from .parts import compared, cost_of, details_of, groups_of, reasons_of, times_of
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
    compare: Selected | None = None,
    browse: int = ROWS,
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
    ``compare``: another selection of the same data, to be told what moved.
    ``browse``: samples that the reader can filter, sort and search, 0 to 200,000: all that
    are kept come first. More make the page larger: see ``rap.report.browse``.

    Returns ``path``. Raises ``RapConfigError`` (jinja2 is not installed, a setting makes
    no sense), ``RapInputError`` (the data set cannot be opened, the store is of other
    scores), ``RapStoreError``.
    """
    path = Path(path)
    if path.suffix.lower() in (".pdf", ".png", ".md", ".ipynb", ".json"):
        raise RapConfigError(
            f"report {path}: the page is HTML: give a name like report.html (a browser "
            "prints it as PDF)"
        )
    if path.is_dir():
        raise RapConfigError(f"report {path}: is a folder: give a file in it")
    text = render(
        selection,
        dataset=dataset,
        rollouts=rollouts,
        title=title,
        note=note,
        per_reason=per_reason,
        train_group=train_group,
        compare=compare,
        browse=browse,
    )
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
    compare: Selected | None = None,
    browse: int = ROWS,
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
        ("browse", browse, 0, 200_000),
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
    completions = completions_of(selection, rollouts)
    samples = shown_samples(selection, source, reasons, per_reason, completions)
    shown = [one.row for one in samples if one.image]
    listed = browsed(selection, source, reasons, completions, compare, shown, browse)
    warnings = [*selection.warnings, *strangers(samples)]
    style = environment.get_template("style.css").render(reasons=len(reasons))
    script = resources.files("rap.report").joinpath("page.js").read_text("utf-8")
    return environment.get_template("template.html").render(
        title=visible(title or "Selection report", SHORT),
        note=visible(note or "", QUESTION),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        version=version("rap-select") or "not installed",
        n=selection.reader.num_rows,
        kept=len(selection),
        settings=selection.settings,
        rule=_rule_text(selection.settings),
        learned=_learned(selection.settings),
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
        browse=listed,
        comparison=None if compare is None else compared(selection, compare),
        has_data=source is not None,
        per_reason=per_reason,
        warnings=[visible(w, SHORT * 2) for w in warnings[:MAX_WARNINGS]],
        details=details_of(selection.settings),
    )


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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


def _learned(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of rule learn: (kept in the main part, samples with mixed outcomes), of all groups
    together; None: of another rule."""
    told = [
        one["learned"]
        for one in settings.get("groups") or [settings["found"]]
        if "learned" in one
    ]
    main, mixed = (sum(one[name] for one in told) for name in ("main", "mixed"))
    return (main, mixed) if told else None
