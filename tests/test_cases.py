"""The numbered cases from the wild that no other file holds (``faults.CASES``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from format_rows import FORMATS, READERS, fits, opened, read_as
from selection_inputs import row, scores_of
from test_cli import data, refused, run, store

import rap
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.samples.sample import Bad
from rap.scores.match import describe

FORM = {form.name: form for form in FORMATS}


@pytest.mark.parametrize("reader", [r for r in READERS if not fits(FORM["MMMU"], r)])
def test_case_03_options_and_answers_as_the_text_of_a_list(reader, tmp_path: Path) -> None:
    choice, several, _ = map(read_as, opened(FORM["MMMU"], reader, tmp_path))
    assert (choice.choices, choice.said) == (("9 cm", "8 cm"), "B")
    assert (several.choices, several.said) == ((), ("9.8", "9.81"))


@pytest.mark.parametrize("reader", [r for r in READERS if not fits(FORM["MathVista"], r)])
def test_case_12_an_answer_that_is_no_choice_is_a_fault_of_its_row(
    reader, tmp_path: Path
) -> None:
    *good, bad = opened(FORM["MathVista"], reader, tmp_path)
    assert [read_as(sample).said for sample in good] == ["A", ("1.2",)]
    assert isinstance(bad, Bad) and bad.code == "bad_answer"
    assert "45\u00b0" in bad.message


def test_case_22_a_folder_for_the_object_and_a_budget_by_place(tmp_path: Path) -> None:
    path = store(tmp_path / "scores")
    assert len(rap.choose(str(path), budget=0.1)) == 4
    assert len(rap.choose(path, budget=0.1)) == 4
    with pytest.raises(RapStoreError, match=r"is a score store.*rap\.choose\("):
        rap.load(path)
    with pytest.raises(RapConfigError, match="budget=0.09"):
        rap.select(None, None, [], 0.09)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (9, "give 0.09"),
        ("9%", "give 0.09"),
        (100, "for 100 of n samples give 100/n"),
        (5000, "for 5000 of n samples give 5000/n"),
    ],
)
def test_case_23_a_budget_that_is_no_fraction(budget, says) -> None:
    with pytest.raises(RapConfigError, match=says):
        rap.choose(scores_of([row(5, 5, 0, 5)]), budget=budget)


def grouped(path: Path) -> Path:
    """``data`` with a column of groups that is called otherwise."""
    file = data(path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps(r | {"family": f"f{k % 4}"}) for k, r in enumerate(rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_case_33_groups_by_a_column_that_is_called_otherwise(tmp_path: Path) -> None:
    file = grouped(tmp_path / "data")
    samples = rap.samples.open_samples(file)
    path = store(tmp_path / "scores", about=describe(samples))
    by = ("--budget", 0.1, "--json", "--by")
    mapped = ("--columns", "source=family")
    says = (
        "no effect without a data set: --columns; give --data DATA, or group by that "
        "column itself: --by family"
    )
    refused("choose", path, *mapped, *by, "source", code=2, says=says)
    given = run("choose", path, "--data", file, *mapped, *by, "source")
    alone = run("choose", path, *by, "family")
    for said in (given, alone):
        groups = json.loads(said.stdout)["groups"]
        assert {g["group"]: g["samples"] for g in groups} == {f"f{k}": 10 for k in range(4)}
        assert sum(g["kept"] for g in groups) == 4


def test_case_34_groups_smaller_than_one_over_the_budget() -> None:
    rows = [row(k % 4 + 1, 5, 0, 5, source=f"group {k // 3:03}") for k in range(600)]
    chosen = rap.choose(scores_of(rows), budget=0.1, by="source")
    assert len(chosen) == 60  # of 200 groups of three, none of which has a whole seat
    assert len(chosen.summary().splitlines()) < 40


def test_case_35_the_key_that_ranks_is_a_column_and_in_the_report(tmp_path: Path) -> None:
    rows = [row(c, 10, 0, 10) for c in (9, 5, 2)]
    chosen = rap.choose(scores_of(rows), budget=1.0, order="learnable")
    keys = chosen.table["rank_key"].to_pylist()
    # D times what is left to learn: D is the pass rate with the image here
    assert keys == pytest.approx([0.9 * 0.1, 0.5 * 0.5, 0.2 * 0.8])
    page = chosen.report(tmp_path / "page.html").read_text()
    places = [page.find(f">s{k}<") for k in (1, 2, 0)]
    assert -1 not in places and places == sorted(places)  # by the key, not by D
    assert "ranking key" in page


def test_case_41_a_selection_is_not_written_over_another(tmp_path: Path) -> None:
    path, out = store(tmp_path / "scores"), tmp_path / "chosen"
    run("choose", path, "--budget", 0.1, "--out", out)
    before = rap.load(out).ids
    run("choose", path, "--budget", 0.1, "--out", out)  # the same: nothing is lost
    other = ("choose", path, "--budget", 0.2, "--out", out)
    refused(*other, code=2, says="holds another selection, which would be lost; --force")
    assert rap.load(out).ids == before
    run(*other, "--force")
    assert len(rap.load(out)) == 8 and len(before) == 4


def test_case_27_another_data_set_of_the_same_size(tmp_path: Path) -> None:
    file = data(tmp_path / "data")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    said = [
        {"id": r["id"], "with_image": arm, "correct": arm and k < 3}
        for r in rows
        for arm in (True, False)
        for k in range(5)
    ]
    rap.choose(
        rap.Scores.from_rollouts(said, dataset=rap.samples.open_samples(file)), budget=0.1
    ).save(tmp_path / "chosen")

    def again(changed: list[dict]) -> rap.Selection:
        other = file.parent / "other.jsonl"
        other.write_text("".join(json.dumps(r) + "\n" for r in changed))
        return rap.load(tmp_path / "chosen", dataset=other)

    shuffled = again(rows[::-1])
    assert shuffled.dataset["id"] == shuffled.ids
    with pytest.raises(RapInputError, match="not as|another|no such|does not"):
        _ = again([r | {"question": f"What of {r['id']}?"} for r in rows]).dataset
