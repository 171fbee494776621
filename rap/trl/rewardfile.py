"""Rewards that a trainer logged -> visits, for ``rap.selection.reselection``.

Taken are this project's own log (``trl.rewardlog``), and any JSONL or Parquet file with one
row a completion: an id and a reward (``rap_reward.py`` of ``rap export --to verl``, a table
of completions with its own column names).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapConfigError, RapInputError
from ..scores.records import read_rollouts
from .rewardlog import grouped, is_line, read_rewards

IDS = ("id", "rap_id", "index")
REWARDS = ("reward", "correct", "score", "acc", "accuracy")
STEPS = ("step", "global_step")
ROLES = {"id": IDS, "reward": REWARDS, "step": STEPS}

Visit = tuple[str, float, float]
"""(id, passed, judged)"""


def read_visits(
    paths: Iterable[str | os.PathLike[str]], columns: Mapping[str, str] | None = None
) -> list[Visit]:
    """Visits of all logs, the oldest first: the files as given, in each by its steps. A
    file without steps is one visit a sample.

    columns: {"id" | "reward" | "step": column} where it is none of ``IDS``, ``REWARDS``,
    ``STEPS``. A reward is a number, a pass from 0.5 up, or true or false; None and NaN are
    neither. Raises ``RapInputError`` if a file is missing or has no such columns, or if
    not one reward is a number; ``RapConfigError`` for an unknown role.
    """
    for role in columns or ():
        if role not in ROLES:
            raise RapConfigError(f"no role {role!r}; roles are {', '.join(ROLES)}")
    visits: list[Visit] = []
    files = list(map(Path, paths))
    for path in files:
        if not path.is_file():
            raise RapInputError(f"rewards {path}: no such file")
        visits += _own(path) if _is_own(path) else _any(path, columns or {})
    if not any(judged for _, _, judged in visits):
        names = ", ".join(map(str, files))
        raise RapInputError(f"rewards {names}: not one reward is a number")
    return visits


def _is_own(path: Path) -> bool:
    """Whether one of the first lines is of ``rap.trl.rewardlog``: the first may be torn."""
    with path.open("rb") as file:
        lines = [file.readline(1 << 20) for _ in range(3)]
    for line in lines:
        try:
            if is_line(json.loads(line)):
                return True
        except ValueError:
            continue
    return False


def _own(path: Path) -> Iterator[Visit]:
    table = read_rewards(path).sort_by("step")  # stable: the file's order in a step
    for row in table.select(["id", "passed", "judged"]).to_pylist():
        yield row["id"], row["passed"], row["judged"]


def _any(path: Path, columns: Mapping[str, str]) -> Iterator[Visit]:
    table = read_rollouts(path)
    ids = _column(table, path, "id", columns)
    rewards = _column(table, path, "reward", columns)
    steps = _column(table, path, "step", columns, optional=True)
    if ids is None or rewards is None:  # an optional one only
        raise AssertionError
    by_step: dict[object, tuple[list[str], list[float | None]]] = {}
    at = [0] * len(ids) if steps is None else steps
    for row, (name, reward, step) in enumerate(zip(ids, rewards, at, strict=True)):
        if name is None:
            raise RapInputError(f"rewards {path}: row {row} has no id")
        if not isinstance(reward, (bool, int, float, type(None))):
            raise RapInputError(
                f"rewards {path}: sample {str(name)[:80]!r} has the reward "
                f"{str(reward)[:40]!r}, which is no number"
            )
        if not isinstance(step, int):
            raise RapInputError(f"rewards {path}: row {row} has the step {step!r}")
        names, values = by_step.setdefault(step, ([], []))
        names.append(str(name))
        values.append(None if reward is None else float(reward))
    for step in sorted(by_step):  # type: ignore[type-var]
        for name, outcome in grouped(*by_step[step]).items():
            yield name, outcome.passed, outcome.judged


def _column(
    table: pa.Table,
    path: Path,
    role: str,
    columns: Mapping[str, str],
    optional: bool = False,
) -> list[Any] | None:
    names = (columns[role],) if role in columns else ROLES[role]
    for name in names:
        if table.column_names.count(name) == 1:
            return table[name].to_pylist()
    if optional and role not in columns:
        return None
    raise RapInputError(
        f"rewards {path}: no column for {role} (looked for {', '.join(names)}); there are: "
        f"{', '.join(table.column_names)}"
    )
