"""The list of mutants stays true: each text is in its file once, each test exists."""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from mutants import table
from mutants.lists import MUTANTS
from mutants.run import as_wanted

ROOT = Path(__file__).resolve().parent.parent


@cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def test_there_are_so_many_over_all_parts():
    assert len(MUTANTS) >= 120
    files = Counter(mutant.file.split("/")[0] for mutant in MUTANTS)
    assert files["csrc"] >= 60 and files["rap"] >= 60
    names = Counter(mutant.name for mutant in MUTANTS)
    assert max(names.values()) == 1, names.most_common(3)


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_its_text_is_in_the_file_once(file):
    text = (ROOT / file).read_text()
    for mutant in MUTANTS:
        if mutant.file == file:
            assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)}"
            assert mutant.new != mutant.old
            if file.endswith(".py"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SyntaxWarning)
                    ast.parse(text.replace(mutant.old, mutant.new))


def test_its_tests_exist():
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert (ROOT / file).is_file(), (mutant.name, test)
            assert not name or name.split("[")[0] in functions_of(file), (mutant.name, test)


def test_no_mutant_lives_that_is_not_equivalent():
    """Of those that were run as they stand in the lists now; what came out is committed."""
    by_key = {mutant.key: mutant for mutant in MUTANTS}
    results = [json.loads(line) for line in table.COMMITTED.read_text().splitlines()]
    for result in results:
        mutant = by_key.get(result["key"])
        if mutant is not None:
            assert as_wanted(mutant, result), result
