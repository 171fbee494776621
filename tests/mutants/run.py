"""Makes the mutants one at a time, runs their tests, and keeps what came out."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import children, table, tree
from .lists import MUTANTS
from .mutant import Mutant

RESULTS = tree.WORK / "results.jsonl"


def known() -> dict[str, dict[str, Any]]:
    """{key: the latest result}, as committed, then of this machine's runs."""
    found = {}
    for path in (table.COMMITTED, RESULTS):
        if path.is_file():
            for line in path.read_text().splitlines():
                result = json.loads(line)
                found[result["key"]] = result
    return found


def keep(result: dict[str, Any]) -> None:
    with open(RESULTS, "a") as file:
        file.write(json.dumps(result) + "\n")


def outcome(ended: children.Ended) -> str:
    if ended.code is None:
        return "killed: too slow"
    if ended.code < 0:
        return f"killed: signal {-ended.code}"
    return {0: "lives", 1: "killed"}.get(ended.code, f"error {ended.code}")


def attempt(mutant: Mutant) -> dict[str, Any]:
    """The result of one mutant. One that is no program, or cannot be imported, is an error
    of the list."""
    result = {"key": mutant.key, "name": mutant.name}
    in_c = mutant.file.startswith("csrc/")
    try:
        with tree.changed(mutant.file, mutant.old, mutant.new):
            with tree.built_with(mutant.file) if in_c else contextlib.nullcontext():
                ended = children.run(mutant.tests)
    except tree.BuildError as error:
        return result | {"outcome": f"error: {error}"[:500], "test": "", "seconds": 0}
    return result | {
        "outcome": outcome(ended),
        "test": ended.test,
        "seconds": ended.seconds,
    }


class Baselines:
    """Whether the tests that failed pass on the copy as it is; else a mutant proves none.
    They are run together, once each; only then are the results kept."""

    AT_ONCE = 20

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.waiting: list[tuple[Mutant, dict[str, Any]]] = []

    def add(self, mutant: Mutant, result: dict[str, Any]) -> None:
        self.waiting.append((mutant, result))
        if len(self.waiting) >= self.AT_ONCE:
            self.check()

    def check(self) -> None:
        failed: set[str] = set()
        for mutant, result in self.waiting:
            if result["outcome"].startswith("killed"):
                failed.update([result["test"]] if result["test"] else mutant.tests)
        self.require(sorted(failed - self.passed))
        for _, result in self.waiting:
            keep(result)
        self.waiting.clear()

    def require(self, tests: Sequence[str]) -> None:
        if not tests:
            return
        ended = children.run(tuple(tests))
        if ended.code != 0:
            log = (tree.WORK / "log.txt").read_text()[-3000:]
            raise SystemExit(f"without a mutation: {ended}\n{log}")
        self.passed.update(tests)


def as_wanted(mutant: Mutant, result: Mapping[str, Any] | None) -> bool:
    """Killed, or, where that cannot be, alive. What is not is run again: its tests may be
    others by now."""
    wanted = "lives" if mutant.equivalent else "killed"
    return result is not None and result["outcome"].startswith(wanted)


def chosen(only: Sequence[str], again: Sequence[str]) -> list[Mutant]:
    done = known()
    found = [m for m in MUTANTS if m.name.startswith(tuple([*only, *again]) or "")]
    force = tuple(again) or ("\0",)
    return [
        m for m in found if m.name.startswith(force) or not as_wanted(m, done.get(m.key))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="starts of names")
    parser.add_argument("--again", nargs="*", default=[], help="also those with a result")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin none after that")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--table", action="store_true", help="write tests/mutants.md, end")
    asked = parser.parse_args()
    if asked.table:
        table.write(MUTANTS, known())
        return
    end = time.monotonic() + 60 * asked.minutes
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    tree.make_copy()
    tree.build()
    mutants = chosen(asked.only, asked.again)
    children.prepare(children.libraries(test for m in mutants for test in m.tests))
    baselines = Baselines()
    for mutant in mutants:
        if time.monotonic() > end:
            print("time is up: run it again to go on", flush=True)
            break
        result = attempt(mutant)
        if asked.no_baseline:
            keep(result)
        else:
            baselines.add(mutant, result)
        mark = "" if as_wanted(mutant, result) else "   <-- look here"
        print(f"{mutant.name}: {result['outcome']} ({result['seconds']} s, "
              f"{result['test']}){mark}", flush=True)  # fmt: skip
    baselines.check()
    table.write(MUTANTS, known())
