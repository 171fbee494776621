"""The numbered faults and cases, and the table of the tests that hold them.

    python tests/faults.py junit.xml    # the table, from the results of a run
    make faults                         # runs them, and prints it

Two lists, each with numbers of its own: what may go wrong (``FAULTS``), and inputs from the
wild with what must come out (``CASES``). A test that proves one carries its number:
``test_fault_31_kill_9_...``, ``test_case_13_splits_...``, or several:
``test_fault_25_26_...``. A number without a test, and a test that failed, end with code 1.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TypeAlias

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

CASES = {
    1: "integers that index every row's choices",
    2: "A-OKVQA: correct_choice_idx, direct_answers",
    3: "MMMU: options and answers as the text of a list",
    4: "MMMU: image_1 to image_7, named in the question",
    5: "ChartQA: imgname, query, label as a list",
    6: "VQAv2, TextVQA: the answers of ten people",
    7: "markup around the reference: think, answer, boxed",
    8: "options that bring their letters",
    9: "options as dicts, or as a struct of lists",
    10: "options in columns of their own, or in the question",
    11: "several right letters",
    12: "MathVista: an answer that is not among the choices",
    13: "train, validation and test in one folder",
    14: "TSV and CSV with images in base64",
    15: "images in messages, structs, lists of lists",
    16: "a system turn and earlier turns",
    17: "verl: an image as a dict with a path",
    18: "rows without an image among others",
    19: "rows with videos",
    20: "pandas, Polars, columns, torch sets, arrays",
    21: "a tokenizer as the processor",
    22: "a folder for an object, arguments by place",
    23: "a budget in per cent, as text, as a count",
    24: "a reward that returns too few values, or always one",
    25: "a space or newline as the attended token",
    26: "a model by its name",
    27: "a selection with shuffled or other data",
    28: "a reference that the model would never say",
    29: "a system prompt, in scoring, training, exports",
    30: "verl's rows in and out",
    31: "the wheel of the sdist",
    32: "rows appended and corrected, the model moved",
    33: "a group column that the store does not have",
    34: "groups smaller than the budget's fraction",
    35: "the key that ranks",
    36: "reward functions called as a trainer does",
    37: "a job log without a terminal",
    38: "plots in a notebook",
    39: "names, help, version, types of the package",
    40: "the base install: what is missing, and how to get it",
    41: "a selection written over another",
    42: "tensors that require a gradient",
    43: "a wrong column of the rollouts",
    44: "answers judged too leniently",
    45: "answers judged too strictly",
    46: "published references against themselves and others",
    47: "tensors without memory of their own",
    48: "LFS pointers, gzip, CSV, JSON objects, folders of checkpoints",
}

PENDING: frozenset[int] = frozenset()
"""Cases without a test yet."""

LISTS = {"fault": FAULTS, "case": CASES}

NAMED = re.compile(r"test_(fault|case)_(\d\d(?:_\d\d)*)")
Number: TypeAlias = "tuple[str, int]"
"""Which list, and its number there."""

ALL = [(kind, number) for kind, items in LISTS.items() for number in items]
NEEDED = [one for one in ALL if one[0] == "fault" or one[1] not in PENDING]


def numbers_of(name: str) -> list[Number]:
    """The numbers in a test's name."""
    found = NAMED.match(name)
    return [(found[1], int(x)) for x in found[2].split("_")] if found else []


def held_by(folder: Path) -> dict[Number, list[str]]:
    """The tests of each number, ``file::name``."""
    found: dict[Number, list[str]] = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for number in numbers_of(node.name):
                    found.setdefault(number, []).append(f"{path.name}::{node.name}")
    return found


def results_of(junit: Path) -> dict[Number, Counter[str]]:
    """How often each number passed, failed or was skipped."""
    from xml.etree.ElementTree import parse

    found: dict[Number, Counter[str]] = {}
    for case in parse(junit).iter("testcase"):
        ends = {child.tag for child in case} & {"failure", "error", "skipped"}
        result = "passed" if not ends else "skipped" if ends == {"skipped"} else "failed"
        for number in numbers_of(case.get("name", "")):
            found.setdefault(number, Counter())[result] += 1
    return found


def table(
    kind: str, tests: dict[Number, list[str]], results: dict[Number, Counter[str]]
) -> str:
    """One of the lists in Markdown: number, what it is, tests, result."""
    lines = [f"| | {kind} | tests | result |", "|---:|---|---|---|"]
    for number, what in LISTS[kind].items():
        one = (kind, number)
        none = "**none**" if one in NEEDED else "pending"
        names = "<br>".join(sorted(set(tests.get(one, [none]))))
        counts = results.get(one, Counter())
        result = ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "not run"
        lines.append(f"| {number} | {what} | {names} | {result} |")
    return "\n".join(lines)


def main(junit: str) -> int:
    tests, results = held_by(Path(__file__).parent), results_of(Path(junit))
    for kind in LISTS:
        print(table(kind, tests, results), end="\n\n")
    held = [one for one in NEEDED if results.get(one, Counter())["passed"]]
    failed = [f"{k} {n}" for k, n in ALL if results.get((k, n), Counter())["failed"]]
    print(f"{len(held)} of {len(NEEDED)} held; failed: {', '.join(failed) or 'none'}")
    return int(len(held) < len(NEEDED) or bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
