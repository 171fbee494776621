"""tests/mutants.md and the results behind it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .mutant import Mutant
from .tree import ROOT

PAGE = ROOT / "tests" / "mutants.md"
COMMITTED = ROOT / "tests" / "mutants" / "results.jsonl"

HEAD = """\
# Mutants

Made by `make mutants` (tests/mutants): each mutation alone, in a copy of the tree, against
the tests named in its list. Killed: a test fails, the process ends by a signal, or its
tests take more than {limit} s of processor time. {counts}

| mutant | file | outcome | by | s |
|---|---|---|---|---|
"""


def write(mutants: Sequence[Mutant], known: Mapping[str, Mapping[str, Any]]) -> None:
    """The page, and the results of the mutants as they are in the lists now."""
    from .children import CPU_SECONDS

    rows, kept, counts = [], [], Counter()
    for mutant in mutants:
        result = known.get(mutant.key)
        if result is None:
            said, test, seconds = "not run", "", ""
        else:
            kept.append(json.dumps(result, sort_keys=True) + "\n")
            said, test, seconds = result["outcome"], result["test"], result["seconds"]
            if mutant.equivalent and said == "lives":
                said, test = "equivalent", mutant.equivalent
        counts[said.split(":")[0]] += 1
        by = test.removeprefix("tests/").replace("|", "\\|")
        rows.append(f"| {mutant.name} | {mutant.file} | {said} | {by} | {seconds} |\n")
    summary = ", ".join(f"{n} {said}" for said, n in sorted(counts.items()))
    text = HEAD.format(limit=CPU_SECONDS, counts=f"Of {len(mutants)}: {summary}.")
    PAGE.write_text(text + "".join(rows))
    COMMITTED.write_text("".join(kept))
