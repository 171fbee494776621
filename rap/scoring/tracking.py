"""Where a run reports to while it goes on: TensorBoard, Weights & Biases, trackio, and what
else transformers has a callback for (``report_to``, as its ``TrainingArguments`` take it).

Scoring has no trainer, so the callbacks are called from here: once a shard, the step is the
number of samples so far. No score depends on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ExecutorConfig
from ..errors import RapConfigError, first_line, missing
from ..settings import near

Report = Callable[[pa.Table, int, int], None]
"""Of a shard's scores, the samples so far and how many of them are quarantined."""

PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet-ml",
    "swanlab": "swanlab",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "neptune": "neptune",
}
"""{name in ``report_to``: what pip installs}"""

MEANS = ("js", "kl", "entropy1", "entropy0", "p_answer1", "p_answer0", "log_psi")
"""Columns of the score table whose mean over a shard is reported, where it has values."""


def trackers(report_to: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names in ``report_to``, as transformers takes it: "none" is none, "all" is every
    one that is installed.

    Raises ``RapConfigError`` for a name that transformers does not know, and for one whose
    package is not installed, with the command that installs it.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if not names or names == ["none"]:
        return ()
    if lacking := missing("transformers", "accelerate"):
        raise RapConfigError(
            f"report_to needs {' and '.join(lacking)}: pip install {' '.join(lacking)}"
        )
    from transformers.integrations import integration_utils

    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    there = integration_utils.get_available_reporting_integrations()
    if names == ["all"]:
        return tuple(there)
    for name in names:
        if name not in known:
            raise RapConfigError(
                f"report_to = {name!r}: expected none, all or some of {', '.join(known)}"
                f"{near(str(name), known)}"
            )
        if name not in there:
            package = PACKAGES.get(name, name)
            raise RapConfigError(
                f"report_to = {name!r} needs {package}: pip install {package}"
            )
    return tuple(names)


def tracked(
    report_to: str | Sequence[str] | None,
    executor: ExecutorConfig,
    store: str | os.PathLike[str] | None,
) -> tuple[str, ...]:
    """As `trackers`, for `rap.score`: raises ``RapConfigError`` besides where one cannot be
    reported to from there."""
    names = trackers(report_to)
    if names and executor.executor != "local":
        raise RapConfigError(
            f"report_to: one process reports, and executor {executor.executor!r} has many: "
            "take executor 'local', or look at the store (rap cost)"
        )
    if "tensorboard" in names and store is None:
        raise RapConfigError(
            "report_to = 'tensorboard': its files go into the store: pass store=..."
        )
    return names


@contextmanager
def reporting(
    names: Sequence[str], folder: Path, model: Any, about: Mapping[str, Any]
) -> Iterator[Report | None]:
    """What a run calls after every shard; None where nothing is reported to.

    folder: what the run is named by, and where TensorBoard's files go (``runs/``). about:
    the settings that are shown beside the curves.

    Raises ``RapConfigError`` if a tracker cannot begin (no login, say); one that fails
    later is reported once, as a warning of Python's, and the run goes on.
    """
    if not names:
        yield None
        return
    tracker = _Tracker(names, folder, model, about)
    try:
        yield tracker.shard
    finally:
        tracker.end()


class _Tracker:
    def __init__(
        self, names: Sequence[str], folder: Path, model: Any, about: Mapping[str, Any]
    ) -> None:
        from transformers import TrainerControl, TrainerState
        from transformers.integrations import integration_utils

        self.arguments = _arguments(folder, about)
        self.state, self.control = TrainerState(), TrainerControl()
        self.model = model
        self.start = time.monotonic()
        self.first: int | None = None
        self.callbacks: dict[str, Any] = {}
        for name in names:
            kind = integration_utils.INTEGRATION_TO_CALLBACK[name]
            try:
                made = kind()
                made.on_train_begin(self.arguments, self.state, self.control, model=model)
            except Exception as error:  # a tracker raises what it likes
                self.end()
                raise RapConfigError(
                    f"report_to = {name!r}: it cannot begin: {first_line(error)}"
                ) from error
            self.callbacks[name] = made

    def shard(self, scores: pa.Table, seen: int, bad: int) -> None:
        if self.first is None:
            self.first = seen - scores.num_rows
        seconds = max(time.monotonic() - self.start, 1e-9)
        logs = {
            "samples": seen,
            "quarantined": bad,
            "samples_per_second": (seen - self.first) / seconds,
            **numbers(scores),
        }
        self.state.global_step = seen
        self._all("on_log", logs=logs)

    def end(self) -> None:
        self._all("on_train_end")

    def _all(self, event: str, **more: Any) -> None:
        for name, callback in list(self.callbacks.items()):
            call = getattr(callback, event)
            try:
                call(self.arguments, self.state, self.control, model=self.model, **more)
            except Exception as error:  # the scores matter more than their curves
                import warnings

                del self.callbacks[name]
                warnings.warn(
                    f"report_to = {name!r} failed and is left out from here on: "
                    f"{first_line(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )


def numbers(scores: pa.Table) -> dict[str, float]:
    """Means over a shard's samples of what they have been scored by."""
    found: dict[str, float] = {}
    for name in MEANS:
        values = scores.column(name).drop_null().to_numpy()
        values = values[np.isfinite(values)]
        if len(values):
            found[name] = float(values.mean())
    for label, right, of in (
        ("pass_rate_with_image", "c1", "m1"),
        ("pass_rate_without_image", "c0", "m0"),
    ):
        total = pc.sum(scores.column(of)).as_py()
        if total:
            found[label] = (pc.sum(scores.column(right)).as_py() or 0) / total
    return found


def _arguments(folder: Path, about: Mapping[str, Any]) -> Any:
    """Stands where callbacks look for a trainer's arguments; shows our settings."""
    from transformers import TrainingArguments

    class Arguments(TrainingArguments):
        def to_dict(self) -> dict[str, Any]:
            return dict(about)

    return Arguments(
        output_dir=str(folder), run_name=folder.name, report_to=[], use_cpu=True
    )
