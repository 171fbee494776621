"""The numbered faults, and the table of the tests that hold them.

    python tests/faults.py junit.xml    # the table, from the results of a run
    make faults                         # runs them, and prints it

A test that proves a fault carries its number: ``test_fault_31_kill_9_...``, or several:
``test_fault_25_26_...``. A number without a test, and a test that failed, end with code 1.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

FAULTS = {
    1: "image file missing",
    2: "image empty, HTML, SVG, unknown bytes",
    3: "image truncated",
    4: "decompression bomb",
    5: "image smaller than a patch",
    6: "extension lies, alpha, palette, CMYK, 16 bits, EXIF, animation",
    7: "format outside of the allow-list",
    8: "path outside of the root, folder, FIFO, device",
    9: "URL",
    10: "image changed since it was scored",
    11: "number of images and of placeholders differ",
    12: "broken JSON line, BOM, CRLF, no final newline",
    13: "duplicate id",
    14: "ids of every kind of text",
    15: "question or answer missing, answer not among the choices",
    16: "lone surrogate, NUL",
    17: "NaN, long numbers, deep nesting in JSON",
    18: "empty data set, one row, all rows bad",
    19: "prompt too long",
    20: "attention missing",
    21: "NaN, inf in logits or attention",
    22: "masked or padded rows",
    23: "empty response, one token",
    24: "psi under- and overflow",
    25: "fewer rollouts than asked",
    26: "answer checker raises, hangs, returns nothing",
    27: "arrays of every wrong kind",
    28: "array changed or freed during the call",
    29: "precision of inputs, flush to zero",
    30: "out of device memory in a batch",
    31: "kill -9 at any point",
    32: "SIGTERM, Ctrl-C",
    33: "disk full, quota, I/O error",
    34: "half-written, empty, flipped, foreign shard",
    35: "two processes on one store",
    36: "resume with another model, setting, version",
    37: "store of another schema",
    38: "read-only folder, no permission, no lock",
    39: "clock jump, time zone, locale",
    40: "fork after threads, spawn, sub-interpreter, free-threaded build",
    41: "memory refused",
    42: "few file descriptors, little memory",
    43: "scores all equal, budgets of every kind",
    44: "no hard sample to replace with",
    45: "hostile text in the report",
    46: "a report of a million rows",
    47: "pickled weights, remote code",
    48: "spreadsheet formulas in an export",
    49: "export: missing reward, dropped column, round trip",
    # of the second list, which grows
    50: "response_start beyond the end of its own sample",
    51: "offsets changed between check and use",
    52: "tests on a busy machine",
    53: "answer checker late because the machine is busy",
    54: "memory with many and long completions",
    55: "two containers with one process number and one store",
    56: "the oracle of choosing reaches every branch",
    57: "mutations of csrc that lived",
}

NAMED = re.compile(r"test_fault_(\d\d(?:_\d\d)*)")


def numbers_of(name: str) -> list[int]:
    """The numbers of faults in a test's name."""
    found = NAMED.match(name)
    return [int(x) for x in found[1].split("_")] if found else []


def held_by(folder: Path) -> dict[int, list[str]]:
    """The tests of each number, ``file::name``."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for number in numbers_of(node.name):
                    found.setdefault(number, []).append(f"{path.name}::{node.name}")
    return found


def results_of(junit: Path) -> dict[int, Counter[str]]:
    """How often each number passed, failed or was skipped."""
    from xml.etree.ElementTree import parse

    found: dict[int, Counter[str]] = {}
    for case in parse(junit).iter("testcase"):
        ends = {child.tag for child in case} & {"failure", "error", "skipped"}
        result = "passed" if not ends else "skipped" if ends == {"skipped"} else "failed"
        for number in numbers_of(case.get("name", "")):
            found.setdefault(number, Counter())[result] += 1
    return found


def table(tests: dict[int, list[str]], results: dict[int, Counter[str]]) -> str:
    """Markdown: case, tests, result."""
    lines = ["| | fault | tests | result |", "|---:|---|---|---|"]
    for number, what in FAULTS.items():
        names = "<br>".join(sorted(set(tests.get(number, ["**none**"]))))
        counts = results.get(number, Counter())
        result = ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "not run"
        lines.append(f"| {number} | {what} | {names} | {result} |")
    return "\n".join(lines)


def main(junit: str) -> int:
    tests, results = held_by(Path(__file__).parent), results_of(Path(junit))
    print(table(tests, results))
    held = [n for n in FAULTS if results.get(n, {}).get("passed")]
    failed = [n for n in FAULTS if results.get(n, {}).get("failed")]
    print(f"\n{len(held)} of {len(FAULTS)} held; failed: {failed or 'none'}")
    return int(len(held) < len(FAULTS) or bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
