"""The shell: exit codes, one sentence an error, JSON, and what the commands leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import rap
from rap.cli.commands import main
from rap.cli.options import score_config
from rap.demo import MATHVISION, PUZZLES, ROLLOUTS
from rap.errors import RapConfigError, RapModelError
from rap.model.loading import load_model
from rap.scores.store import ScoreStore
from rap.scores.table import table_from_rows

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "inspect",
    "check",
    "score",
    "choose",
    "select",
    "report",
    "cost",
    "export",
    "reselect",
    "plan",
    "finish",
    "merge",
    "info",
    "demo",
)


@pytest.fixture(autouse=True)
def keep_process_state(monkeypatch):
    """``main`` sets a signal handler and how warnings are shown: put both back."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(*args: object, code: int = 0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result


def refused(*args: object, code: int, says: str) -> str:
    """The command ends with ``code`` and one sentence that holds ``says``."""
    result = run(*args, code=code)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    (line,) = [
        x for x in result.stderr.splitlines() if x.startswith(("rap: error", "Error"))
    ]
    assert says in line, line
    return line


def store(path: Path, n: int = 40, about: dict | None = None) -> Path:
    """A finished store of ``n`` rollout rows, D falling from 1 to 0; ``about``: its data
    set (``match.describe``)."""
    rows = [
        {
            "id": f"s{i}",
            "index": i,
            "status": "scored",
            "evidence": "rollouts",
            "c1": 100 - i,
            "m1": 101,
            "c0": i,
            "m0": 101,
            "source": "ab"[i % 2],
        }
        for i in range(n)
    ]
    fingerprint = {"model": "none", "config": {}}
    with ScoreStore.open(path, fingerprint, n, 16, data=about) as opened:
        for k in opened.missing():
            part = opened.shard_range(k)
            opened.write(k, table_from_rows([rows[i] for i in part]), None)
    return path


def data(path: Path, n: int = 40) -> Path:
    """A data set whose ids fit ``store``."""
    from PIL import Image

    path.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path / "red.png")
    rows = [
        {"id": f"s{i}", "question": f"Colour {i}?", "answer": "red", "image": "red.png"}
        for i in range(n)
    ]
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


# ---------------------------------------------------------------- help


def test_help_teaches():
    text = run("--help").output
    for command in COMMANDS:
        assert command in text
    for phrase in (
        "rap demo",
        "rap select data.jsonl --model",
        "Exit codes: 0",
        "--columns",
    ):
        assert phrase in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_every_option_a_meaning(command):
    text = run(command, "--help").output
    assert "Usage: " in text
    if command not in ("info", "demo"):
        assert f"rap {command} " in text.split(":\n  -")[0], "no example"
    for option in main.commands[command].params:
        if isinstance(option, click.Option) and option.name != "help":
            assert option.help or option.show_default or option.name == "seed", option.name


def test_version_and_module_run():
    done = subprocess.run(
        [sys.executable, "-m", "rap", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and done.stdout.startswith("Usage: rap ")


@pytest.mark.parametrize(
    ("name", "says"),
    [("rap-select", "9.8.7"), ("another", "0+unknown"), (None, "0+unknown")],
)
def test_a_clone_that_is_not_installed_knows_its_version(tmp_path, name, says):
    """From its pyproject.toml, the one place where it stands."""
    (tmp_path / "rap").symlink_to(ROOT / "rap")
    if name is not None:
        text = f'[project]\nname = "{name}"\nversion = "9.8.7"\n'
        (tmp_path / "pyproject.toml").write_text(text)
    code = """
import importlib.metadata as m, runpy, sys
real = m.distribution
def hidden(name):
    if name == "rap-select":
        raise m.PackageNotFoundError(name)
    return real(name)
m.distribution = hidden
sys.argv = ["rap", "--version"]
import rap
print(rap.__version__)
runpy.run_module("rap", run_name="__main__")
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.stdout.split() == [says, "rap,", "version", says], done.stderr


# ---------------------------------------------------------------- rollouts


def test_select_from_rollouts_prints_the_published_figures(shared):
    """36 pass lambda_c = 0.5; 117 with D < 0, 594 never, 1 always solved (issue 3)."""
    records = shared / "data" / "mathvision_records" / "records.parquet"
    found = json.loads(
        run(
            "select",
            *("--rollouts", records, "--where", "augment=none", "--drop", "model=random"),
            *("--rule", "paper", "--no-replace", "--json"),
        ).output
    )
    assert found["samples"] == 1533 and found["kept"] == 36
    diagnostics = found["diagnostics"]
    names = ("above", "image_hurts", "never_solved", "always_solved")
    assert [diagnostics[n] for n in names] == [36, 117, 594, 1]


def test_rollouts_with_their_data_set_leave_selection_and_report(tmp_path):
    result = run(
        "select", MATHVISION, "--rollouts", ROLLOUTS, "--budget", 0.1,
        *("--out", tmp_path / "sel", "--report", tmp_path / "r.html"),
    )  # fmt: skip
    assert "10 of 105 samples kept" in result.output
    selection = rap.load(tmp_path / "sel")
    ids = [json.loads(line)["id"] for line in MATHVISION.read_text().splitlines()]
    assert selection.ids == [ids[i] for i in selection.indices]
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/webp;base64,") > 40


def test_filters_know_the_type_of_their_column(tmp_path):
    table = pa.table(
        {
            "id": ["a", "a", "b", "b", "b"],
            "with_image": [True, False, True, False, True],
            "correct": [True, False, False, False, True],
            "round": [1, 1, 1, 1, 2],
            "note": [None, None, None, None, "x"],
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")

    def judged(*options):
        out = tmp_path / "sel"
        rollouts = ("--rollouts", tmp_path / "r.parquet")
        run("select", *rollouts, "--budget", 1, "--out", out, "--force", *options)
        return rap.load(out).table["m1"].to_pylist()

    assert judged() == [1, 2]
    assert judged("--where", "round=1") == [1, 1]
    assert judged("--where", "round=1", "--where", "round=2") == [1, 2]
    assert judged("--drop", "note=x") == [1, 1]
    assert judged("--where", "note=null") == [1, 1]


def test_case_43_rollout_columns_by_name(tmp_path):
    rows = [
        {"qid": q, "arm": arm, "acc": acc}
        for q in "ab"
        for arm, acc in (("image", 1), ("counterfactual", 0))
    ]
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    columns = "id=qid,with_image=arm,correct=acc"
    given = ("--rollouts", file, "--rollout-columns", columns)
    out = run("select", *given, "--budget", 1, "--no-replace")
    assert "2 of 2 samples kept" in out.output
    refused("select", "--rollouts", file, "--rollout-columns", "x=y", code=2, says="x=")


# ---------------------------------------------------------------- choose, report, info


def test_choose_from_a_store_as_text_and_json(tmp_path):
    path = store(tmp_path / "scores")
    assert "4 of 40 samples kept" in run("choose", path, "--budget", 0.1).output
    found = json.loads(run("choose", path, "--budget", 0.1, "--json").output)
    assert found["kept"] == 4 and sum(found["counts"].values()) == 40
    assert found["found"]["target"] == 4 and found["choose"]["budget"] == 0.1
    by = json.loads(run("choose", path, "--budget", 0.1, "--by", "source", "--json").output)
    assert [g["kept"] for g in by["groups"]] == [2, 2]


def test_choose_compares_with_an_earlier_selection(tmp_path):
    path = store(tmp_path / "scores")
    by_d = ("choose", path, "--order", "gain", "--budget")
    run(*by_d, 0.1, "--out", tmp_path / "one")
    command = (*by_d, 0.2, "--compare", tmp_path / "one")
    assert "Jaccard 0.500" in run(*command).output
    found = json.loads(run(*command, "--json").output)["compare"]
    assert found["overlap"] == 4 and found["gained"] == ["s4", "s5", "s6", "s7"]


def test_choose_and_report_with_the_data_set(tmp_path):
    path, file = store(tmp_path / "scores"), data(tmp_path / "data")
    out, page = tmp_path / "sel", tmp_path / "page.html"
    run("choose", path, "--data", file, "--out", out, "--report", page)
    assert "data:image/webp" in page.read_text()
    run("report", out, "--out", tmp_path / "again.html")  # the data is where it was
    assert "data:image/webp" in (tmp_path / "again.html").read_text()
    file = file.parent.rename(tmp_path / "moved") / file.name
    run("report", out, "--out", tmp_path / "bare.html", "--title", "My <title>")
    bare = (tmp_path / "bare.html").read_text()
    assert "data:image/webp" not in bare and "My &lt;title&gt;" in bare
    found = json.loads(
        run("report", out, "--data", file, "--out", tmp_path / "p.html", "--json").output
    )
    assert found["bytes"] == (tmp_path / "p.html").stat().st_size
    assert "data:image/webp" in (tmp_path / "p.html").read_text()


def test_another_data_set_than_the_scored_one_is_refused(tmp_path):
    path, file = store(tmp_path / "scores"), data(tmp_path / "data", 10)
    refused("choose", path, "--data", file, code=1, says="row 10 was 's10'")
    file.write_text(file.read_text().replace('"s3"', '"other"'))
    refused("choose", path, "--data", file, code=1, says="row 3 was 's3'")
    out = tmp_path / "selection"
    run("choose", path, "--out", out)
    page = tmp_path / "page.html"
    more = ("--data", file, "--out", page)
    refused("report", out, *more, code=1, says="row 3 was 's3'")
    assert not page.exists()


def test_info_as_text_and_json():
    assert "isa" in run("info").output
    found = json.loads(run("info", "--json").output)
    assert found["python"] == sys.version.split()[0]


# ---------------------------------------------------------------- wrong command lines


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nonsense",), "nonsense"),
        (("choose",), "SCORES"),
        (("choose", "x", "--rule", "best"), "--rule"),
        (("choose", "x", "--budget", "many"), "--budget"),
        (("select",), "DATA and --model"),
        (
            ("select", "--rollouts", "x", "--model", "y", "--batch-size", "8"),
            "no effect with --rollouts, which stands in for a model: --model, --batch-size",
        ),
        (
            ("select", "--rollouts", "x", "--evidence", "answer", "--reward", "a:b"),
            "--evidence, --reward",
        ),
        (("select", "--rollouts", "x", "--set", "m1=3", "--no-progress"), "--set, --"),
        (("select", "--rollouts", "x", "--store", "y"), "stands in for a model: --store"),
        (
            ("select", str(MATHVISION), "--model", "m", "--where", "a=b", "--drop", "c=d"),
            "no effect without --rollouts: --where, --drop",
        ),
        (("choose", "x", "--root", "."), "data set: --root; give --data DATA"),
        (("report", "x", "--columns", "id=a"), "data set: --columns; give --data DATA"),
        (("select", "--rollouts", "x", "--columns", "id=a"), "--columns; give DATA"),
        (
            (
                *("score", str(MATHVISION), "--model", "m", "--store", "y"),
                *("--reward", "a:b", "--evidence", "logits"),
            ),
            "reward: evidence 'logits' grades no completion",
        ),
        (
            (
                *("score", str(MATHVISION), "--model", "m", "--store", "y"),
                *("--evidence", "rollouts", "--reward", "json:dumps"),
                *("--reward-weights", "1", "--reward-weights", "2"),
            ),
            "reward_weights has 2 numbers for 1 reward functions",
        ),
        (("score", "x", "--store", "y"), "--model"),
        (("select", str(MATHVISION), "--model", "m"), "--out DIR or --store DIR"),
        (("choose", "x", "--data", str(MATHVISION), "--columns", "id"), "NAME=VALUE"),
        (("demo", "--count", "5"), "--count"),
        (("demo", "--records", "--seed", "3"), "--seed"),
    ],
)
def test_usage_errors_exit_2(args, says, tmp_path):
    scores = store(tmp_path / "scores", 8)
    refused(*(scores if a == "x" and args[0] == "choose" else a for a in args),
            code=2, says=says)  # fmt: skip


@pytest.mark.parametrize("budget", ["0", "-0.1", "1.5", "nan", "inf"])
def test_fault_43_nonsense_budgets_exit_2(budget, tmp_path):
    refused("choose", store(tmp_path / "s", 8), "--budget", budget, code=2, says="budget")


@pytest.mark.parametrize("name", ["--lambda-c", "--lambda-a"])
def test_fault_43_nan_threshold_exits_2(name, tmp_path):
    refused("choose", store(tmp_path / "s", 8), name, "nan", code=2, says="lambda_")


def test_fault_43_short_result_says_so(tmp_path):
    found = json.loads(
        run(
            "choose", store(tmp_path / "s"), "--lambda-c", 0.9, "--budget", 1, "--json"
        ).output
    )
    assert found["kept"] < 40 and any("short result" in w for w in found["warnings"])


def test_missing_files_exit_1(tmp_path):
    refused("choose", tmp_path / "none", code=1, says="none")
    refused("select", "--rollouts", tmp_path / "none.jsonl", code=1, says="none.jsonl")
    refused("report", tmp_path / "none", code=1, says="none")
    score = ("score", tmp_path / "none", "--model", "m", "--store", tmp_path / "s")
    refused(*score, code=1, says="no such file or folder")


CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 106954752 bytes."
)


class OutOfMemoryError(RuntimeError):
    """As torch has one for a GPU."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(CPU_SAYS),
    ],
)
def test_fault_42_what_the_system_refuses_is_no_fault_of_rap(error, capsys):
    """Under RLIMIT_AS a thread is refused as often as memory is."""
    from rap.cli.shell import FAILED, _explain

    assert _explain(error) == FAILED
    said = capsys.readouterr().err
    assert "out of memory" in said and "fault in rap" not in said


def test_fault_18_empty_and_all_bad_data_sets_exit_1_with_the_counts(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    rows = [{"id": i, "question": "q", "answer": "", "image": "x.png"} for i in range(3)]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    more = ("--model", tmp_path / "no-model", "--store", tmp_path / "s")
    refused("score", tmp_path / "empty.jsonl", *more, code=1, says="empty")
    line = refused("score", tmp_path / "bad.jsonl", *more, code=1, says="0 of 3 rows")
    assert "3 bad_answer" in line
    assert not (tmp_path / "s").exists()


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for words in (
        ("--debug", "choose", tmp_path / "n"),
        ("choose", tmp_path / "n", "--debug"),
    ):
        result = run(*words, code=1)
        assert "Traceback" in result.stderr and "rap: error: " in result.stderr


def test_a_fault_of_our_own_is_called_one(monkeypatch):
    monkeypatch.setattr("rap.environment.info", lambda: 1 / 0)
    line = refused("info", code=1, says="ZeroDivisionError")
    assert "fault in rap" in line and "--debug" in line


# ---------------------------------------------------------------- settings, models


def options(**given):
    names = ("evidence", "counterfactual", "m1", "m0", "seed", "batch_size")
    empty = dict.fromkeys((*names, "max_new_tokens", "temperature"))
    return empty | {"settings": ()} | given


def test_options_become_a_score_config():
    assert score_config(options()) == rap.ScoreConfig()
    config = score_config(
        options(
            evidence="rollouts",
            m1=8,
            temperature=0.7,
            settings=(
                "workers=4",
                "ace.heads=max",
                "ace.window=null",
                "answer_prefix=\\boxed{",
            ),
        )
    )
    assert config == rap.ScoreConfig(
        evidence="rollouts",
        m1=8,
        workers=4,
        answer_prefix="\\boxed{",
        sampling=rap.Sampling(temperature=0.7),
        ace=rap.AceConfig(heads="max"),
    )


@pytest.mark.parametrize(
    "setting", ["nope=1", "ace.nope=1", "sampling=1", "nope.heads=1", "m1=many", "m1=0"]
)
def test_wrong_settings_are_refused(setting):
    with pytest.raises(RapConfigError, match=setting.partition("=")[0].replace(".", r"\.")):
        score_config(options(settings=(setting,)))


@pytest.mark.parametrize("setting", ["prompt_template=5", "answer_prefix=null"])
def test_settings_of_a_wrong_type_exit_2(setting, tmp_path):
    more = ("--model", tmp_path, "--store", tmp_path / "store", "--set", setting)
    refused("score", MATHVISION, *more, code=2, says=setting.partition("=")[0] + " = ")


def test_fault_47_pickled_weights_need_a_flag(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    more = ("--model", tmp_path, "--store", tmp_path / "store")
    line = refused("score", MATHVISION, *more, code=2, says="--allow-pickle")
    assert "pytorch_model.bin" in line


def test_fault_47_code_of_a_model_is_not_run(tmp_path):
    """A folder whose config asks for its own Python file: refused, and the file unread."""
    for name in ("configuration_evil", "processing_evil"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: ...\n"
        )
    auto_map = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForImageTextToText": "configuration_evil.Evil",
        "AutoProcessor": "processing_evil.Evil",
    }
    config = {"model_type": "evil", "architectures": ["Evil"], "auto_map": auto_map}
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(config))
    more = ("--model", tmp_path, "--store", tmp_path / "store")
    refused("score", MATHVISION, *more, code=2, says="--trust-remote-code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["score", "select", "train"])
def test_case_37_the_columns_are_told_before_the_model_is_loaded(command, tmp_path):
    rows = [
        {"uid": f"u{k}", "query": f"How many, {k}?", "label": "3", "img": "a.png"}
        for k in range(3)
    ]
    rows[0]["query"] = "How\x1b[31m many?"
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    to = "--store" if command == "score" else "--out"
    result = run(
        *(command, file, "--model", tmp_path / "none", to, tmp_path / "out"), code=1
    )
    told = result.stderr[: result.stderr.index("rap: error")]
    assert f"JSONL {file}: 3 rows" in told
    for role, column in (("id", "uid"), ("question", "query"), ("answer", "label")):
        assert f"  {role:<8} <- {column}\n" in told
    assert "  images   <- img\n" in told
    assert "line 1: How [31m many?\n    answer 3, images 1" in told
    assert "line 2: How many, 1?" in told
    assert "line 3" not in told
    assert result.stdout == ""


def test_a_model_that_is_not_there_exits_1(tmp_path):
    with pytest.raises(RapModelError, match="cannot be loaded"):
        load_model(str(tmp_path / "nothing"))


def test_a_device_that_is_not_there_is_a_config_error():
    with pytest.raises(RapConfigError, match="--device cuda:77"):
        load_model("unread", device="cuda:77")


def test_several_rewards_and_their_weights_reach_the_run(monkeypatch):
    seen = {}

    def recipe(*given, **options):
        seen.update(options)
        raise RapConfigError("it was seen")

    monkeypatch.setattr("rap.scoring.session.Recipe", recipe)
    monkeypatch.setattr("rap.cli.steps.load", lambda *given: (None, None))
    command = ("score", str(MATHVISION), "--model", "m", "--store", "y", "--evidence")
    rewards = ("--reward", "json:dumps", "--reward", "json:dump")
    weights = ("--reward-weights", "1", "--reward-weights", "0.5")
    refused(*command, "rollouts", *rewards, *weights, code=2, says="it was seen")
    assert seen["reward"] == [json.dumps, json.dump]
    assert seen["reward_weights"] == (1.0, 0.5)
    refused(*command, "cascade", code=2, says="it was seen")
    assert seen["reward"] is None and seen["reward_weights"] is None


def test_reward_is_found_or_refused(tmp_path, monkeypatch):
    from rap.cli.steps import load_reward

    (tmp_path / "my_reward.py").write_text("def good(**k): return [1.0]\nbad = 3\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("my_reward:good")() == [1.0]
    assert load_reward(None) is None
    for name in ("my_reward:bad", "my_reward:none", "no_such_module_here:f", "my_reward"):
        with pytest.raises(RapConfigError, match="--reward"):
            load_reward(name)
    assert str(tmp_path) not in sys.path


# ---------------------------------------------------------------- a real model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A small Qwen2.5-VL with random weights, saved as models are."""
    from rap.demo.tiny import tiny_qwen2_5_vl

    path = tmp_path_factory.mktemp("model")
    model, processor = tiny_qwen2_5_vl()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_select_with_a_model_leaves_scores_selection_and_report(tiny, tmp_path):
    out, page = tmp_path / "sel", tmp_path / "r.html"
    command = (
        *("select", PUZZLES, "--model", tiny, "--budget", 0.2, "--out", out),
        *("--report", page, "--device", "cpu", "--set", "shard_size=8", "--json"),
    )
    found = json.loads(run(*command).stdout)
    assert found["samples"] == 20 and sum(found["counts"].values()) == 20
    assert found["evidence"] == "cascade"
    assert len(rap.load(out)) == found["kept"]
    assert "data:image/webp" in page.read_text()
    again = json.loads(run("choose", out / "scores", "--budget", 0.2, "--json").stdout)
    assert again["counts"] == found["counts"]
    # another setting on the same store is refused, naming it
    line = refused(*command, "--counterfactual", "blank", code=2, says="counterfactual")
    assert "blank" in line
    # nor does a store that another default filled go on with this one
    line = refused(*command, "--evidence", "answer", code=2, says="config.evidence")
    assert "(evidence='cascade' goes on with it)" in line


def test_fault_38_where_nothing_can_be_written_is_found_before_the_model_is_loaded(
    tmp_path,
):
    file = data(tmp_path / "d", 4)
    taken = tmp_path / "taken"
    taken.write_text("")
    model = tmp_path / "no-model"  # met first, it would be the error
    words = ("select", file, "--model", model)
    line = refused(*words, "--out", taken, code=1, says="taken: cannot be made: ")
    assert "Errno" not in line
    words += ("--out", tmp_path / "sel", "--report")
    refused(*words, tmp_path, code=1, says="a folder; name a file in it")
    refused(*words, tmp_path / "none" / "r.html", code=1, says="there is no folder")
    refused(*words, tmp_path / "sel" / "r.html", code=1, says="no-model")


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--out", "{}"),
        ("demo", "--records", "--out", "{}"),
        ("choose", "{}/scores", "--out", "{}"),
        ("export", "{}", "--to", "trl", "--out", "{}/x"),
        ("choose", "scores", "--config", "{}/c.toml"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_sentence_without_errno(words, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    result = CliRunner().invoke(main, [word.format(taken) for word in words])
    assert result.exit_code in (1, 2), result.output
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("rap: error")]
    assert str(taken) in line and "Errno" not in line


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model_name_or_path", "model"),
        ("dataset_name", "data"),
        ("system_instruction", "system_prompt"),
        ("DATA", "data"),
        ("Store", "store"),
    ],
)
def test_a_file_with_another_librarys_names_is_told_ours(theirs, ours, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"{theirs}: x\n")
    result = CliRunner().invoke(main, ["score", "--config", str(file)])
    assert result.exit_code == 2
    assert f"{theirs}: no option of rap score; here it is {ours}\n" in result.stderr


def test_check_prints_how_a_model_is_read_or_why_it_is_refused(tiny, tmp_path):
    words = ("check", tiny, "--device", "cpu")
    text = run(*words).stdout
    assert text.startswith("model        Qwen2_5_VLForConditionalGeneration, ")
    assert text.endswith("verdict      can be scored with\n")
    found = json.loads(run(*words, "--json").stdout)
    assert found["ok"] and found["dtype"] == "float32"
    assert found["parameters"] > found["vocabulary"] * found["hidden_size"]

    broken = tmp_path / "m"
    shutil.copytree(tiny, broken)
    for name in ("chat_template.jinja", "chat_template.json"):
        (broken / name).unlink(missing_ok=True)
    words = ("check", broken, "--device", "cpu")
    result = run(*words, code=1)
    assert "chat template" in result.stderr and "verdict" not in result.stdout
    assert result.stdout == "".join(text.splitlines(keepends=True)[:2])
    refused = json.loads(run(*words, "--json", code=1).stdout)
    assert not refused["ok"] and "chat template" in refused["reason"]
    assert all(found[k] == v for k, v in refused.items() if k not in ("ok", "reason"))


def test_a_limit_is_for_a_try_and_nothing_is_scored_twice(tiny, tmp_path, caplog):
    file = data(tmp_path / "d", 5)
    words = ("score", file, "--model", tiny, "--device", "cpu", "--evidence", "answer")
    words += ("--store", tmp_path / "scores", "--json")
    tried = json.loads(run(*words, "--limit", 2).stdout)
    assert tried["samples"] == 2
    again = run(*words)
    assert json.loads(again.stdout)["samples"] == 5
    assert "2 of 5 samples are as they were" in caplog.text + again.stderr
    assert [r["id"] for r in ScoreStore.load(tmp_path / "scores").read().to_pylist()] == [
        f"s{i}" for i in range(5)
    ]
    told = json.loads(run("inspect", file, "--limit", 3, "--json").stdout)
    assert told["rows"] == 3
    more = ("--limit", 2, "--executor", "env", "--shard", "0/1")
    assert "no effect with --executor env: --limit" in run(*words, *more, code=2).stderr


def test_check_writes_out_the_prompts_that_are_scored(tiny, tmp_path):
    file = data(tmp_path / "d", 4)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["question"] = "What?<|im_end|>"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("check", tiny, "--device", "cpu", "--data", file, "--write-out", 2)
    text = run(*words, "--system-prompt", "Be brief.").stdout
    assert "--- s0, with the image, " in text and "--- s0, without the image, " in text
    assert text.count("Be brief.") == 2 and text.count("Colour 0?") == 2
    assert "Colour 2?" not in text  # two samples were asked for
    first, second = text.split("--- s0, ")[1:]
    assert first.count("<|image_pad|>") == 1 and "<|image_pad|>" not in second
    assert "--- s1: bad_text: the text holds '<|im_end|>'" in text
    found = json.loads(run(*words, "--json").stdout)["prompts"]
    assert [(p["id"], p.get("with_image")) for p in found] == [
        ("s0", True),
        ("s0", False),
        ("s1", None),
    ]
    assert found[0]["tokens"] > found[1]["tokens"] > 0
    found = json.loads(run(*words, "--limit", 1, "--json").stdout)["prompts"]
    assert [p["id"] for p in found] == ["s0", "s0"]
    wrong = ("check", tiny, "--device", "cpu", "--limit", 1)
    assert "without --cut or --write-out: --limit" in run(*wrong, code=2).stderr
    wrong = ("check", tiny, "--device", "cpu", "--write-out", 2)
    assert "--write-out needs --data" in run(*wrong, code=2).stderr
    wrong = ("check", tiny, "--device", "cpu", "--system-prompt", "x")
    assert "without --write-out" in run(*wrong, code=2).stderr


def test_retry_scores_quarantined_samples_again_and_changed_images_are_found(
    tiny, tmp_path
):
    """An image that was broken and is mended; then one that is another than it was."""
    from PIL import Image

    file = data(tmp_path / "d", 4)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["image"] = f"{i}.png"
        Image.new("RGB", (32, 32), (60 * i, 30, 30)).save(file.parent / row["image"])
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    broken = file.parent / "2.png"
    broken.write_bytes(b"no image")
    command = (
        *("score", file, "--model", tiny, "--device", "cpu", "--store", tmp_path / "s"),
        *("--set", "shard_size=1", "--set", "max_bad_fraction=1"),
    )

    def scored() -> list[tuple[str, str | None]]:
        run(*command)
        table = rap.Scores.load(tmp_path / "s").table
        return list(
            zip(*(table[c].to_pylist() for c in ("code", "image_sha256")), strict=True)
        )

    bad = scored()
    assert bad[2][0] is not None and bad[1][0] is None
    Image.new("RGB", (32, 32), (0, 200, 30)).save(broken)
    assert scored() == bad, "without --retry a quarantined sample stays"
    command += ("--retry",)
    mended = scored()
    assert [code for code, _ in mended] == [None] * 4
    command = command[:-1]

    Image.new("RGB", (32, 32), (0, 30, 200)).save(file.parent / "1.png")
    command += ("--trust-images",)
    assert scored() == mended, "told not to look"
    command = command[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the shell's way: printed, not raised
        again = scored()
    assert [a == b for a, b in zip(again, mended, strict=True)] == [1, 0, 1, 1]


def test_score_with_rollouts_prints_counts_and_cost(tiny, tmp_path):
    command = (
        *("score", PUZZLES, "--model", tiny, "--store", tmp_path / "s", "--device", "cpu"),
        *("--evidence", "rollouts", "--m1", 2, "--m0", 3, "--max-new-tokens", 4),
    )
    found = json.loads(run(*command, "--json").stdout)
    assert found["samples"] == 20
    assert found["cost"]["rollouts"] == 20 * 5
    assert "next: rap choose" in run(*command).stdout  # resumed: all is there


def test_profile_is_printed_beside_the_result_and_is_in_the_report(tiny, tmp_path):
    common = ("--device", "cpu", "--evidence", "answer")
    command = ("select", PUZZLES, "--model", tiny, "--out", tmp_path / "s", *common)
    plain = run(*command, "--report", tmp_path / "plain.html")
    assert "where the time went" not in plain.output
    assert not (tmp_path / "s" / "scores" / "profile.json").exists()
    command = ("score", PUZZLES, "--model", tiny, "--store", tmp_path / "p", *common)
    result = run(*command, "--profile")
    assert "where the time went: " in result.stderr and "prefilled_tokens" in result.stderr
    assert "where the time went" not in result.stdout
    found = json.loads(run(*command, "--json").stdout)  # resumed: nothing is measured
    assert found["profile"]["runs"] == 1 and found["profile"]["samples"] == 20
    assert found["profile"]["counts"]["images_encoded"] == 20
    run("choose", tmp_path / "p", "--report", tmp_path / "seen.html")
    assert "Where the time went" in (tmp_path / "seen.html").read_text()
    assert "Where the time went" not in (tmp_path / "plain.html").read_text()
    says = "no effect with --rollouts"
    assert "--profile" in refused(
        "select", "--rollouts", "x.jsonl", "--profile", code=2, says=says
    )


def start(*args: object, **env: str) -> subprocess.Popen:
    # a job started with & ignores SIGINT, and so would all its children
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from rap.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shards(folder: Path) -> int:
    return len(list(folder.glob("scores-*.parquet")))


def stop(process: subprocess.Popen, folder: Path, number: int) -> tuple[int, str]:
    """Signal ``number`` once one more shard lies in ``folder``: (exit code, stderr).

    Whole shards are counted: a partial one of the run before goes away at the start.
    """
    limit = time.monotonic() + 900
    before = shards(folder)
    while shards(folder) <= before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no shard within 15 minutes"
        time.sleep(0.005)
    process.send_signal(number)
    _, text = process.communicate(timeout=600)
    return process.returncode, text


@pytest.mark.proof
def test_fault_32_ctrl_c_and_sigterm_stop_cleanly_and_the_run_goes_on(tiny, tmp_path):
    lines = MATHVISION.read_text().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_text("".join(lines[:24]))
    command = (
        *("score", tmp_path / "data.jsonl", "--root", MATHVISION.parent),
        *("--model", tiny, "--device", "cpu", "--batch-size", 1),
        *("--set", "shard_size=1", "--store", tmp_path / "s"),
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        found, text = stop(start(*command), tmp_path / "s", number)
        assert found == code, text
        assert "Traceback" not in text and "the same command goes on" in text
        assert text.rstrip().endswith("rap: stopped")
    assert 1 < shards(tmp_path / "s") < 24
    run(*command)
    whole = tmp_path / "whole"
    run(*command[:-1], whole)
    for path in (tmp_path / "s", whole):
        run("choose", path, "--budget", 0.1, "--out", tmp_path / f"sel-{path.name}")
    for file in (tmp_path / "sel-s").iterdir():
        assert file.read_bytes() == (tmp_path / "sel-whole" / file.name).read_bytes()


@pytest.mark.parametrize("module", ["numpy", "pyarrow", "rap.cli.steps"])
def test_fault_32_ctrl_c_while_the_shell_is_imported_is_no_traceback(module, tmp_path):
    """SIGINT while ``module`` is being imported, whatever the import makes of it."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ValueError("as pydantic does") from error
sys.meta_path.insert(0, Interrupt())
from rap.__main__ import main
sys.argv = ["rap", "info"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "rap: stopped\n")


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    process = start("select", "--rollouts", ROLLOUTS, "--json")
    process.stdout.close()
    process.wait(600)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
