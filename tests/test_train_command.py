"""``rap train``: what the command leaves, goes on from and refuses."""

from __future__ import annotations

import json

import pytest
from trl_inputs import selection_of

from rap.demo import world
from rap.errors import RapConfigError, RapStoreError
from rap.samples.sampleset import open_samples
from rap.trl.rewardlog import read_rewards

# TRL 1.16 reads attributes that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")


def shell(*words, code=0):
    """Output of ``rap train``; stderr is part of it."""
    from click.testing import CliRunner

    from rap.cli.commands import main

    found = CliRunner().invoke(main, ["train", *map(str, words)])
    assert found.exit_code == code, found.output
    return found.output


FEW = ("--steps", "2", "--set", "num_generations=4", "--set", "max_completion_length=24")
FEW += (
    "--set",
    "per_device_train_batch_size=8",
    "--set",
    "save_steps=2",
    "--model",
    "demo",
)


@pytest.fixture
def data(tmp_path):
    """(JSONL file, selection folder)."""
    path = world.write(world.draw(24, seed=2), tmp_path / "data")
    selection_of(open_samples(path), [1, 5, 6, 9]).save(tmp_path / "selection")
    return path, tmp_path / "selection"


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_rap_train_leaves_model_log_and_rewards(trl, tmp_path, data, algorithm):
    path, selection = data
    out = tmp_path / "run"
    words = (path, "--selection", selection, "--out", out, "--algorithm", algorithm, *FEW)
    said = shell(*words, "--reselect", "rewards", "--every", "1")
    assert "step 1/2, reward " in said and "2 steps on 4 of 24 prompts" in said
    assert "re-selected 4" in said
    assert len(read_rewards(out / "rewards.jsonl")) == 4
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1 and "reward" in lines[0]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2 and [r["step"] for r in summary["reselections"]] == [1, 2]
    from transformers import AutoModelForImageTextToText

    AutoModelForImageTextToText.from_pretrained(out / "model")
    assert "holds a training run: --resume goes on" in shell(*words, code=2)
    more = [*words, "--reselect", "rewards", "--every", "1", "--resume", "--json"]
    more[more.index("--steps") + 1] = "3"
    assert '"steps": 3' in shell(*more)


def test_rap_train_reads_a_config_file_and_trains_lora_adapters(trl, tmp_path, data):
    pytest.importorskip("peft", reason="LoRA needs peft")
    path, selection = data
    (tmp_path / "grpo.toml").write_text(
        "lora = 2\nselection = '" + str(selection) + "'\nsteps = 9\nbeta = 0.01\n"
    )
    words = (path, "--config", tmp_path / "grpo.toml", "--out", tmp_path / "run", *FEW)
    assert "2 steps on 4 of 24 prompts" in shell(*words)
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()
    again = [*words, "--resume"]
    again[again.index("--steps") + 1] = "3"
    assert "was made with lora = 2, here 4" in shell(*again, "--lora", "4", code=2)
    assert "3 steps on 4 of 24 prompts" in shell(*again)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert {"resumed": 2} in map(json.loads, lines)
    state = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
    before = state["stateful_callbacks"]["RapReselection"]["seconds"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seconds"] >= round(before, 1) > 0


def test_rap_train_refuses_by_name(trl, tmp_path, data):
    path, selection = data
    out = ("--out", tmp_path / "run", *FEW)
    for match, words, code in [
        ("TRL 1.16 has no PPO trainer", (path, "--algorithm", "ppo"), 2),
        ("expected one of ('grpo', 'rloo')", (path, "--algorithm", "dpo"), 2),
        ("GRPOConfig has no learningrate", (path, "--set", "learningrate=1"), 2),
        ("generation_batch_size", (path, "--set", "num_generations=3"), 2),
        ("no such file or folder", (tmp_path / "none.jsonl",), 1),
        ("needs the first selection", (path, "--reselect", "rewards"), 2),
        ("holds no training run", (path, "--resume"), 2),
        ("cannot be read", (path, "--config", tmp_path / "none.yaml"), 2),
        ("lora = 0", (path, "--lora", 0), 2),
        ("only a hub name has revisions", (path, "--revision", "v1"), 2),
        ("4 prompts are selected", (path, "--selection", selection, *BATCH), 2),
    ]:
        assert match in " ".join(shell(*words[:1], *out, *words[1:], code=code).split())
    assert not (tmp_path / "run" / "model").exists()


BATCH = ("--set", "per_device_train_batch_size=32", "--set", "num_generations=4")


@pytest.mark.proof
def test_rap_train_goes_on_from_the_last_whole_checkpoint(trl, tmp_path, data):
    path, selection = data
    out = tmp_path / "run"
    words = [path, "--selection", selection, "--out", out, *FEW]
    words[words.index("save_steps=2")] = "save_steps=1"
    out.mkdir()
    (out / "rewards.jsonl").write_text('{"kind": "start", "step": 0}\n')  # killed early
    (out / "log.jsonl").write_text('{"step": 1, "loss": 0.0}\n{"step": 2, "lo')
    assert "holds a training run" in shell(*words, code=2)
    assert "going on from the beginning" in shell(*words, "--resume")
    lines = (out / "log.jsonl").read_text().splitlines()
    assert lines[1:3] == ['{"step": 2, "lo', '{"resumed": 0}']  # what came before is void
    assert json.loads(lines[3])["step"] == 1
    state = out / "checkpoint-2" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])
    said = shell(*words, "--resume")
    assert "not whole, passed over: checkpoint-2" in said
    assert "going on from checkpoint-1" in said and "step 2/2" in said


@pytest.mark.proof
def test_fault_31_a_run_killed_after_its_last_step_ends_as_ever(trl, tmp_path, data):
    """It ends within an epoch, where transformers 5.23 would do another step."""
    path, selection = data
    out = tmp_path / "run"
    words = [path, "--selection", selection, "--out", out, *FEW]
    words[words.index("--steps") + 1] = "3"  # an epoch has two
    words[words.index("save_steps=2")] = "save_steps=3"
    shell(*words)

    def found():
        return {p.name: p.read_bytes() for p in (out / "model").iterdir()}

    whole, rewards = found(), read_rewards(out / "rewards.jsonl")
    (out / "model" / "model.safetensors").rename(out / "model" / ".tmpFX8aYn")
    (out / "summary.json").unlink()
    said = shell(*words, "--resume")
    assert "going on from checkpoint-3" in said and "3 steps on 4 of 24 prompts" in said
    assert found() == whole and not (out / "checkpoint-4").exists()
    assert read_rewards(out / "rewards.jsonl").equals(rewards)


def test_fault_33_a_checkpoint_that_the_disk_refuses(trl, tmp_path, data, monkeypatch):
    import torch

    def refused(*args, **options):
        raise RuntimeError("basic_ios::clear: iostream error")

    path, selection = data
    monkeypatch.setattr(torch, "save", refused)
    words = (path, "--selection", selection, "--out", tmp_path / "run", *FEW)
    said = shell(*words, code=1)
    said = " ".join(said.split())
    assert f"{tmp_path / 'run' / 'checkpoint-2'}: cannot be written: basic_ios" in said
    assert "fault in rap" not in said


def test_fault_33_errors_of_writing_are_store_errors(trl):
    from safetensors import SafetensorError

    from rap.trl.saving import saving

    full = SafetensorError("I/O error: No space left on device (os error 28)")
    for error in (full, OSError(28, "No space left on device"), RuntimeError("iostream")):
        with pytest.raises(RapStoreError, match="run: cannot be written: .*(No sp|iost)"):
            with saving("run"):
                raise error
    for passed in (MemoryError(), RapConfigError("another"), KeyboardInterrupt()):
        with pytest.raises(type(passed)), saving("run"):
            raise passed


@pytest.mark.parametrize("text", ["- 1", "a: [", "\x00"])
def test_a_config_file_that_is_none_is_refused(tmp_path, text):
    from rap.cli.configfile import read_config

    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RapConfigError, match="bad.yaml: (expected settings|is not YAML)"):
        read_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("budget: 0.1\nby: a\nbudget: 0.2\n", "budget stands twice, in lines 1 and 3"),
        ("ace:\n  heads: max\n  heads: mean\n", "heads stands twice, in lines 2 and 3"),
        ("lambda_c: 1\nlambda-c: 2\n", "lambda-c stands twice, in lines 1 and 2"),
        ("budget: 0.1\nby: [a\n", "is not YAML in line 3: expected ',' or ']'"),
    ],
)
def test_a_config_file_says_in_which_line_it_is_wrong(tmp_path, text, says):
    from rap.cli.configfile import read_config

    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(RapConfigError) as caught:
        read_config(tmp_path / "c.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'c.yaml'}: {says}")


def test_rap_train_says_whose_error_it_is(trl, tmp_path, data, monkeypatch):
    path, selection = data
    (tmp_path / "my_rewards.py").write_text(
        "def broken(**columns):\n    raise KeyError('label')\n"
    )
    monkeypatch.chdir(tmp_path)
    words = (path, "--selection", selection, "--out", tmp_path / "run", *FEW)
    said = shell(*words, "--reward", "my_rewards:broken", code=1)
    assert "the reward function 'broken' raised KeyError: 'label'" in said
    assert "fault in rap" not in said
