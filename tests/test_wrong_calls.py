"""The likeliest wrong calls: each is refused by an error of ours whose sentence names the
mend, or is taken as it was meant."""

from __future__ import annotations

import pyarrow as pa
import pytest
from click.testing import CliRunner
from test_report import rollout_row

import rap
from rap.cli.commands import main
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.scores.scores import Scores
from rap.scores.table import table_from_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with scores, a selection, and a store by name alone."""
    folder = tmp_path_factory.mktemp("wrong")
    scores = Scores(table_from_rows([rollout_row(i, i % 6, 0) for i in range(40)]), {})
    scores.save(folder / "scores.parquet")
    chosen = rap.choose(scores, budget=0.2)
    chosen.save(folder / "selection")
    (folder / "store").mkdir()
    (folder / "store/store.json").write_text("{}")
    (folder / "rows.jsonl").write_text('{"a": 1}\n')
    return {"folder": folder, "scores": scores, "chosen": chosen}


def kept(place, **options) -> int:
    return len(rap.choose(place["scores"], **options))


REFUSED = {
    "choose a selection": (
        lambda p: rap.choose(p["chosen"]),
        (RapInputError, "expected rap.Scores.*this is a selection, chosen already"),
    ),
    "choose a selection's folder": (
        lambda p: rap.choose(p["folder"] / "selection"),
        (RapStoreError, r"is a selection, chosen already.*rap\.load\("),
    ),
    "choose nothing that is there": (
        lambda p: rap.choose(p["folder"] / "no"),
        (RapStoreError, "no.*No such file"),
    ),
    "choose rows": (
        lambda p: rap.choose([{"id": 1}]),
        (RapInputError, "scores = list: expected rap.Scores, or the folder of a score"),
    ),
    "budget by place": (
        lambda p: rap.choose(p["scores"], 0.09),
        (RapConfigError, "a share of the samples to keep is budget=0.09"),
    ),
    "settings as a dict": (
        lambda p: rap.choose(p["scores"], {"budget": 0.1}),
        (RapConfigError, r"expected a rap\.ChooseConfig or None"),
    ),
    "budget in per cent": (lambda p: kept(p, budget=9), (RapConfigError, "give 0.09")),
    "budget as text": (lambda p: kept(p, budget="9%"), (RapConfigError, "give 0.09")),
    "budget as a count": (
        lambda p: kept(p, budget=5000),
        (RapConfigError, "for 5000 of n samples give 5000/n"),
    ),
    "budget of nothing": (
        lambda p: kept(p, budget=0),
        (RapConfigError, r"expected None or a number in \(0, 1\]"),
    ),
    "option misspelt": (
        lambda p: kept(p, bugdet=0.1),
        (RapConfigError, "did you mean 'budget'"),
    ),
    "rule unknown": (
        lambda p: kept(p, rule="top"),
        (RapConfigError, "'budget', 'learn', 'paper'"),
    ),
    "order unknown": (
        lambda p: kept(p, order="D"),
        (RapConfigError, "'gain', 'learnable', 'posterior'"),
    ),
    "threshold beyond D": (
        lambda p: kept(p, lambda_c=5),
        (RapConfigError, r"a number in \[-1, 1\]"),
    ),
    "a column that is not there": (
        lambda p: kept(p, by="topic"),
        (RapConfigError, "no such column.*There are: id"),
    ),
    "an option of before": (
        lambda p: rap.ScoreConfig(adaptive=True),
        (RapConfigError, "was removed; evidence='cascade' stops"),
    ),
    "load a store": (
        lambda p: rap.load(p["folder"] / "store"),
        (RapStoreError, r"is a score store, from which nothing was chosen.*rap\.choose\("),
    ),
    "load scores": (
        lambda p: rap.load(p["folder"] / "scores.parquet"),
        (RapStoreError, "holds 'scores', not selection"),
    ),
    "load nothing": (
        lambda p: rap.load(p["folder"] / "no"),
        (RapStoreError, "no/selection.parquet: cannot be read: No such file"),
    ),
    "scores of a selection": (
        lambda p: rap.Scores.load(p["folder"] / "selection"),
        (RapStoreError, r"rap\.load\("),
    ),
    "scores of a selection's file": (
        lambda p: rap.Scores.load(p["folder"] / "selection/selection.parquet"),
        (RapStoreError, "holds 'selection', not scores"),
    ),
    "scores of a table of mine": (
        lambda p: rap.Scores(pa.table({"a": [1]})),
        (RapInputError, "columns missing or twice: id, index"),
    ),
    "rollouts with other names": (
        lambda p: rap.Scores.from_rollouts({"qid": [1], "image": [1], "acc": [1]}),
        (RapInputError, "id column 'id' is not there.*columns: qid, image, acc"),
    ),
    "rollouts that are not there": (
        lambda p: rap.Scores.from_rollouts("no.parquet"),
        (RapInputError, "no.parquet: no such file"),
    ),
    "rollouts of a kind unknown": (
        lambda p: rap.Scores.from_rollouts(3),
        (RapInputError, "expected a table.*or the path of a JSONL or Parquet file"),
    ),
    "export to a trainer misspelt": (
        lambda p: p["chosen"].export("velr", p["folder"] / "out"),
        (RapConfigError, "expected one of trl, verl"),
    ),
    "export without the data": (
        lambda p: p["chosen"].export("trl", p["folder"] / "out"),
        (RapInputError, r"does not know its data set.*rap\.load\(folder, dataset="),
    ),
    "report into a folder": (
        lambda p: p["chosen"].report(p["folder"]),
        (RapConfigError, "is a folder: give a file in it"),
    ),
    "report as PDF": (
        lambda p: p["chosen"].report(p["folder"] / "x.pdf"),
        (RapConfigError, "the page is HTML.*report.html"),
    ),
    "report of too many": (
        lambda p: p["chosen"].report(p["folder"] / "x.html", per_reason=1000),
        (RapConfigError, "per_reason = 1000: expected an integer from 0 to 100"),
    ),
    "compare with scores": (
        lambda p: p["chosen"].compare(p["scores"]),
        (RapInputError, "got Scores; expected a selection or its folder"),
    ),
    "cost of scores": (
        lambda p: rap.cost(p["scores"]),
        (RapConfigError, "give training_share, or a selection"),
    ),
    "cost of a folder": (
        lambda p: rap.cost(str(p["folder"] / "selection")),
        (RapConfigError, r"got str; expected a selection or scores: rap\.load\(folder\)"),
    ),
    "merge of one": (
        lambda p: rap.merge(p["folder"] / "store", p["folder"] / "new"),
        (RapInputError, "is one path; expected a list of stores"),
    ),
    "a name misspelt": (
        lambda p: rap.selct,
        (AttributeError, "no attribute 'selct'; did you mean 'select'"),
    ),
    "data that is none": (
        lambda p: rap.samples.open_samples(p["folder"] / "rows.jsonl"),
        (RapInputError, "columns|question"),
    ),
    "data that is not there": (
        lambda p: rap.samples.open_samples("no.jsonl"),
        (RapInputError, "no.jsonl"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_call_names_the_mend(place, name):
    call, (kind, said) = REFUSED[name]
    with pytest.raises(kind, match=said):
        call(place)


def test_what_was_meant_is_taken(place):
    folder, scores = place["folder"], place["scores"]
    asked = rap.choose(scores, budget=0.2).ids
    assert rap.choose(str(folder / "scores.parquet"), budget=0.2).ids == asked
    assert rap.choose(scores.table, budget=0.2).ids == asked
    assert rap.load(folder / "selection/selection.parquet").ids == asked
    assert place["chosen"].compare(folder / "selection").jaccard == 1.0


SHELL = {
    ("choose", "{selection}"): "is a selection, chosen already",
    ("report", "{store}"): "is a score store, from which nothing was chosen",
    ("export", "{store}", "--to", "trl", "--out", "x"): "is a score store",
    ("choose", "{scores}", "--budget", "9%"): "give 0.09",
    ("choose", "{scores}", "--bugdet", "0.1"): "--budget",
    ("chose", "{scores}"): "choose",
    ("select", "--rollouts", "{rows}", "--rule", "top"): "budget",
    ("report", "{selection}", "--out", "{folder}"): "folder",
}


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_a_wrong_command_names_the_mend(place, words):
    folder = place["folder"]
    named = {
        "selection": folder / "selection",
        "store": folder / "store",
        "scores": folder / "scores.parquet",
        "rows": folder / "rows.jsonl",
        "folder": folder,
    }
    done = CliRunner().invoke(main, [word.format(**named) for word in words])
    assert done.exit_code in (1, 2)
    text = " ".join(done.output.split())
    assert SHELL[words] in text and "fault in rap" not in text
