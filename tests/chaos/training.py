"""Trials of ``rap train``: from the last whole checkpoint on, and to the same end."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rap.errors import RapStoreError
from rap.trl.rewardlog import read_rewards

from .harms import ENOSPC, FAIL_ON, FOLDER, OPEN, WRITE, Broken

if TYPE_CHECKING:
    from .trials import Chaos

STEPS = 5
MOST = 8
"""Harms of a trial: each comes to a run that goes on where the one before it stopped."""
CLOCKS = (*("seconds", "rescoring_seconds", "step_time", "model"),)
"""What is another in each run: times, and the folder's name."""
PLACES = ("training_args.bin", "README.md")
"""Files that hold the folder's name, or the time of day."""

State = dict[str, Any]


def words(chaos: Chaos, out: Path) -> list[str]:
    """``rap train``, with ``--resume`` where there is something to go on with."""
    assert chaos.scored is not None
    data = chaos.nursery.data
    said = ["train", str(data / "data.jsonl"), "--model", str(chaos.model_folder())]
    said += ["--selection", str(chaos.scored / "selection"), "--out", str(out)]
    said += ["--steps", str(STEPS), "--reselect", "rewards", "--every", "2"]
    said += ["--reward", "odd:odd", "--learning-rate", "0.001"]
    for name, value in {
        "save_steps": 1,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 5,
    }.items():
        said += ["--set", f"{name}={value}"]
    begun = any(out.glob("checkpoint-*")) or (out / "rewards.jsonl").exists()
    return [*said, "--resume"] if begun else said


def training(
    chaos: Chaos, folder: Path, chance: random.Random, record: dict[str, Any]
) -> None:
    wanted, calls, seconds = whole(chaos)
    out = folder / "out"
    for _ in range(chance.randint(3, MOST)):
        before, logged = checkpoints(out), _bytes(out / "rewards.jsonl")
        left = (STEPS + 1 - len(before)) / (STEPS + 1)  # and the model, at the end
        harm = chaos.harm(chance, [round(n * left) for n in calls])
        if harm[0] == "small disk":
            harm = ("disk full", [FAIL_ON, OPEN | WRITE | FOLDER, harm[1][2], ENOSPC])
        order = chaos.shell(words(chaos, out), folder)
        run = chaos.harmed([order], [harm], chance, seconds * left, record)[0]
        after = checkpoints(out)
        lost = [name for name in before if after.get(name) != before[name]]
        if lost:
            raise Broken(f"whole checkpoints that were lost or changed: {lost}")
        if not _bytes(out / "rewards.jsonl").startswith(logged):
            raise Broken("rewards that were logged are gone")
        if run.code == 0:
            break
    chaos.nursery.whole(chaos.shell(words(chaos, out), folder))
    found = state(out)
    if found != wanted:
        names = {k for k in {*found, *wanted} if found.get(k) != wanted.get(k)}
        raise Broken(f"another end than that of an undisturbed run: {sorted(names)}")


def whole(chaos: Chaos) -> tuple[State, list[int], float]:
    """(what it leaves, calls, seconds) of an undisturbed run."""
    if "train" not in chaos.wanted:
        chaos.prepare_scored()
        place = chaos.folder / "whole train"
        place.mkdir()
        out = place / "out"
        warm = chaos.shell(words(chaos, chaos.folder / "warm" / "trained"), place)
        chaos.nursery.warm([warm | {"said": str(chaos.folder / "warm.txt")}])
        begun = time.monotonic()
        done = chaos.nursery.whole(chaos.shell(words(chaos, out), place))
        chaos.wanted["train"] = (state(out), done.kinds, time.monotonic() - begun)
    return chaos.wanted["train"]


# ---------------------------------------------------------------- what is compared


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def checkpoints(out: Path) -> dict[str, str]:
    """{whole checkpoint: digest of its files}: what a run may go on from."""
    found = {}
    for folder in sorted(out.glob("checkpoint-*")):
        try:
            json.loads((folder / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            continue
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        found[folder.name] = digest.hexdigest()
    return found


def state(out: Path) -> State:
    """{file: what of it is promised to be the same}; the logs without what is void."""
    found: State = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        data = path.read_bytes()
        if path.name in PLACES:
            found[name] = "there"
        elif name == "log.jsonl":
            found[name] = log_lines(data)
        elif name == "rewards.jsonl":
            try:
                found[name] = read_rewards(path).to_pylist()
            except RapStoreError as error:
                found[name] = str(error)
        elif path.name in ("summary.json", "trainer_state.json"):
            found[name] = without_clocks(json.loads(data))
        else:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def log_lines(data: bytes) -> list[Any]:
    """Of ``log.jsonl``: the lines of each step, of the last time that it was done."""
    lines: list[Any] = []
    for text in data.splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # torn: the next one stands by itself
            continue
        if "resumed" in line:
            lines = [one for one in lines if one["step"] <= line["resumed"]]
        elif "train_runtime" not in line:  # of one call, not of the run
            lines.append(without_clocks(line))
    return lines


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    if isinstance(value, list):
        return [without_clocks(one) for one in value]
    return value
