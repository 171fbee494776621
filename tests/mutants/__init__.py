"""Mutations of the code, one at a time, each of which some test must see.

    make mutants    # those without a result; what came out is tests/mutants.md
    python -m tests.mutants --minutes 9 --only ace store    # some, by the start of a name
    python -m tests.mutants --again ace-tie    # once more, whatever is known

A mutant is a line of one of the lists: a file, a text that is in it once, what takes its
place, and the tests that should fail. It is made in a copy of the tree (build/mutants),
never in the checkout. ``run`` writes a line of build/mutants/results.jsonl for each, so
that a run that is cut goes on; ``table`` makes the page of the lists and those lines.

To add a mutant: a line in the list it belongs to. tests/test_mutants.py holds the lists to
the code: a text that is no longer there fails.
"""
