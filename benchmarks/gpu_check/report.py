"""What was found: a JSON line each, and one table of them at the end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

START = time.monotonic()
_lines: list[dict[str, Any]] = []
_file = None


def seconds() -> float:
    """Since the program began."""
    return time.monotonic() - START


def say(section: str, name: str, **facts: Any) -> None:
    """Keep and write one line; what is printed while running stays short."""
    global _file
    if _file is None:
        folder = Path(os.environ.get("OUT", "."))
        folder.mkdir(parents=True, exist_ok=True)
        _file = (folder / "gpu_check.jsonl").open("a")
    line = {"section": section, "name": name, "at": round(seconds(), 1), **facts}
    _lines.append(line)
    _file.write(json.dumps(line, default=str) + "\n")
    _file.flush()


def lines(section: str | None = None) -> list[dict[str, Any]]:
    return [x for x in _lines if section in (None, x["section"])]


def _number(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def _facts(line: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    hidden = ("section", "name", "at", *without)
    return ", ".join(f"{k} {_number(v)}" for k, v in line.items() if k not in hidden)


TIMES = ("ms", "wall_ms", "of_floor", "launches")


def _times() -> list[str]:
    found = [f"{'':44}{'ms':>9}{'wall ms':>9}{'of floor':>9}{'launches':>9}  rival / ours"]
    for line in lines("times"):
        cells = "".join(f"{_number(line.get(key) or '-'):>9}" for key in TIMES)
        found.append(f"{line['name']:44}{cells}  {_facts(line, TIMES)}")
    return found


def failed() -> list[dict[str, Any]]:
    return [x for x in _lines if x.get("ok") is False or "broke" in x]


def table() -> str:
    """Sections, ceilings, times, the model, and every check that failed."""
    checks = [x for x in _lines if "ok" in x]
    found = [f"gpu_check: {len(checks)} checks, {len(failed())} failed, {seconds():.0f} s"]
    for section in ("environment", "sections", "model", "sanitizer"):
        found += [f"{x['name']:44}{_facts(x)[:150]}" for x in lines(section)]
    found += _times()
    found += [f"FAILED {x['section']}: {x['name']}: {_facts(x)[:400]}" for x in failed()]
    skipped = [x for x in _lines if "skipped" in x and x["section"] != "sanitizer"]
    found += [f"skipped {x['name']}: {x['skipped']}" for x in skipped]
    return "\n".join(found)
