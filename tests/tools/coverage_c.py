"""Lines of csrc/ that ran, out of what gcov counted: `make coverage-c`.

    python tests/tools/coverage_c.py build/coverage/tree 95

A line counts as run if it ran in one of the units that it was compiled into (the kernels
are compiled once for each instruction set). Units for other processors are left out, and
device code, which gcc does not compile. Prints a table and the lines that did not run; ends
with code 1 below the limit, in per cent.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rap import _C


def runs_here(unit: str) -> bool:
    """Whether this processor runs kernels_avx2 or what the unit is called; of other units
    all do."""
    isa = unit.removeprefix("kernels_")
    return isa == unit or isa in _C.isa_names()


def counted(tree: Path) -> Iterator[dict[str, Any]]:
    """gcov's JSON of every unit that was loaded."""
    for data in sorted(tree.rglob("*.gcda")):
        if not runs_here(data.stem):
            continue
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(data)],
            cwd=tree, capture_output=True, text=True, check=True,
        )  # fmt: skip
        yield json.loads(done.stdout)


def lines_of(tree: Path) -> dict[str, dict[int, int]]:
    """{file of csrc: {line: how often}}"""
    found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for unit in counted(tree):
        for file in unit["files"]:
            path = (tree / file["file"]).resolve()
            if not path.is_relative_to((tree / "csrc").resolve()):
                continue
            name = str(path.relative_to(tree.resolve()))
            if "third_party" in name:
                continue
            for line in file["lines"]:
                found[name][line["line_number"]] += line["count"]
    return found


def ranges(lines: list[int]) -> str:
    """3, 7-9"""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][1] + 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def main(tree: Path, least: float) -> int:
    found = lines_of(tree)
    if not found:
        print(f"{tree}: no counts; was it built with RAP_COVERAGE=1, and run?")
        return 1
    ran = whole = 0
    print("| file | lines | run | not run |\n|---|---:|---:|---|")
    for name, lines in sorted(found.items()):
        missed = sorted(n for n, count in lines.items() if not count)
        ran, whole = ran + len(lines) - len(missed), whole + len(lines)
        share = 1 - len(missed) / len(lines)
        print(f"| {name} | {len(lines)} | {share:.1%} | {ranges(missed)} |")
    print(f"\n{ran} of {whole} lines: {ran / whole:.2%} (at least {least:g} %)")
    return int(ran < least / 100 * whole)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), float(sys.argv[2])))
