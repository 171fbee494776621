"""One trial: a command that is harmed, then goes on; and what must hold of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import cluster, training
from .client import Nursery
from .compare import digests, finished, leftovers
from .harms import (
    ALL,
    ENOSPC,
    FAIL_ON,
    FOLDER,
    HARMS,
    OPEN,
    WEIGHTS,
    WRITE,
    Broken,
    Harm,
    Run,
    judge,
)

COMMANDS = {
    "score answer": 5, "score rollouts": 4, "env": 4, "choose": 2, "export": 3,
    "report": 1, "reselect": 2, "real": 0.15, "train": 1.5, "ray": 0.15,
}  # fmt: skip
DEAR = ("real", "train", "ray")
"""Commands that cost seconds of CPU time a harm."""


Whole = tuple[dict[str, str], list[int], float]
"""Files, calls of each kind and seconds of an undisturbed run."""


class Chaos:
    """Trials, each in a folder of its own below ``folder``."""

    def __init__(
        self,
        folder: Path,
        commands: Mapping[str, float] = COMMANDS,
        harms: Sequence[str] = tuple(HARMS),
    ) -> None:
        self.folder, self.commands, self.harms = folder, commands, harms
        self.nursery = Nursery(folder)
        self.cluster: cluster.Cluster | None = None
        self.wanted: dict[str, Any] = {}
        self.mounts = _can_mount(folder)
        self.scored: Path | None = None
        self._warm()

    def _warm(self) -> None:
        """One run of each command, so that the later ones import nothing."""
        place = self.folder / "warm"
        kinds = ("score answer", "score rollouts")
        orders = [self.score_order(place / kind, kind) for kind in kinds]
        orders.append(self.score_order(place / "env", "env", 0))
        self.scored = place
        orders[0]["store"] = str(place / "store")
        for command in ("choose", "choose", "export", "report", "reselect"):
            out = place / "selection" if len(orders) == 3 else _out(place, command)
            orders.append(self.shell(self._words(command, out), place))
        self.scored = None
        said = {"said": str(self.folder / "warm.txt")}
        self.nursery.warm([order | said for order in orders])

    def trial(self, number: int, seed: int) -> dict[str, Any]:
        """The record of one trial."""
        chance = random.Random(f"{seed} {number}")
        command = chance.choices(list(self.commands), list(self.commands.values()))[0]
        record: dict[str, Any] = {"trial": number, "command": command, "harms": []}
        folder = self.folder / f"trial{number}"
        folder.mkdir()
        self._whole(command)
        begun, used = time.monotonic(), self.cpu_seconds()
        try:
            if command == "train":
                training.training(self, folder, chance, record)
            elif command == "ray":
                cluster.scoring(self, folder, chance, record)
            elif command.startswith("score") or command in ("env", "real"):
                self._scoring(folder, command, chance, record)
            else:
                self._writing(folder, command, chance, record)
            record["ok"] = True
            shutil.rmtree(folder)
        except Broken as found:
            record |= {"ok": False, "found": str(found), "folder": str(folder)}
        record["seconds"] = round(time.monotonic() - begun, 2)
        record["cpu"] = round(self.cpu_seconds() - used, 2)
        return record

    def _whole(self, command: str) -> None:
        """The undisturbed run of a command, once."""
        if command == "train":
            training.whole(self)
        elif command == "ray":
            cluster.whole(self)
        elif command.startswith("score") or command in ("env", "real"):
            self._whole_score("score answer" if command == "env" else command)
        else:
            self.prepare_scored()
            self._whole_output(command)

    def cpu_seconds(self) -> float:
        """CPU time so far: of the runs, of what compares them, of the cluster."""
        of_cluster = 0.0 if self.cluster is None else self.cluster.cpu_seconds()
        return self.nursery.seconds + time.process_time() + of_cluster

    def model_folder(self) -> Path:
        """The model, saved."""
        folder = self.folder / "model"
        if not folder.exists():
            self.nursery.whole({"command": "model", "below": str(folder)})
        return folder

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.close()
        self.nursery.close()

    # --- scoring

    def score_order(
        self, store: Path, command: str, rank: int | None = None
    ) -> dict[str, Any]:
        evidence = {"score rollouts": "rollouts", "real": "cascade"}.get(command, "answer")
        options: dict[str, Any] = {"evidence": evidence}
        environment = {}
        if rank is not None:
            environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            options |= {"executor": "env"}
        return {
            "command": "score", "store": str(store), "below": str(store),
            "real": command == "real", "options": options, "environment": environment,
        }  # fmt: skip

    def _whole_score(self, command: str) -> Whole:
        """(files, calls, seconds) of an undisturbed run."""
        if command not in self.wanted:
            store = self.folder / f"whole {command}"
            begun = time.monotonic()
            done = self.nursery.whole(self.score_order(store, command))
            self.wanted[command] = (
                digests(store, clocks=command == "real"),
                done.kinds,
                time.monotonic() - begun,
            )
        return self.wanted[command]

    def harm(self, chance: random.Random, calls: Sequence[int]) -> Harm:
        weights = [WEIGHTS.get(name, 1) for name in self.harms]
        kind = chance.choices(self.harms, weights)[0]
        if kind == "small disk" and not self.mounts:
            kind = "disk full"
        how, what, value = HARMS[kind]
        most = sum(n for i, n in enumerate(calls) if what & 1 << i)
        return kind, [how, what, chance.randint(1, max(1, most)), int(value)]

    def harmed(
        self,
        orders: Sequence[dict[str, Any]],
        harms: Sequence[Harm | None],
        chance: random.Random,
        seconds: float,
        record: dict[str, Any],
    ) -> list[Run]:
        """Runs, side by side, each with its harm."""
        started, clocks = [], []
        for order, harm in zip(orders, harms, strict=True):
            order = order if harm is None else {**order, "harm": harm[1]}
            started.append(self.nursery.start(order))
            if harm is not None and harm[0] == "kill by the clock":
                clocks.append((chance.uniform(0.02, 1.0) * seconds, started[-1][0]))
        begun = time.monotonic()
        for after, pid in sorted(clocks):
            time.sleep(max(0.0, after - (time.monotonic() - begun)))
            os.kill(pid, signal.SIGKILL)
        runs = [self.nursery.end(one) for one in started]
        for run, harm in zip(runs, harms, strict=True):
            if harm is not None:
                felt = judge(run, harm[0], harm[1][2])
                told = [harm[0], harm[1][2], run.code, felt]
                record["harms"].append(told)
            elif run.code != 0:
                raise Broken(f"beside a harmed process: {run}")
        return runs

    def _scoring(
        self, folder: Path, command: str, chance: random.Random, record: dict[str, Any]
    ) -> None:
        wanted, calls, seconds = self._whole_score(
            "score answer" if command == "env" else command
        )
        store = folder / "store"
        for _ in range(chance.randint(1, 3)):
            before = finished(store, clocks=command == "real")
            if command == "env":
                orders = [self.score_order(store, command, rank) for rank in range(2)]
                hit = chance.choice(([0], [1], [0, 1]))
                harms = [self.harm(chance, calls) if r in hit else None for r in range(2)]
                harms = [
                    h
                    if h is None or h[0] != "small disk"
                    else ("kill after", [2, ALL, 9, 0])
                    for h in harms
                ]
            else:
                orders, harms = (
                    [self.score_order(store, command)],
                    [self.harm(chance, calls)],
                )
            if harms[0] is not None and harms[0][0] == "small disk":
                self._on_small_disk(store, orders[0], chance, record)
            else:
                runs = self.harmed(orders, harms, chance, seconds, record)
                if any(run.code == 0 for run in runs):
                    break
            after = finished(store, clocks=command == "real")
            lost = {name for name in before if after.get(name) != before[name]}
            if lost:
                raise Broken(f"acknowledged and lost: {sorted(lost)}")
        by_env = command == "env" and chance.random() < 0.5
        self.nursery.whole(self.score_order(store, command, 0 if by_env else None))
        found = digests(store, clocks=command == "real")
        others = ("plan.json", "profile.json")
        if command == "env":
            found = {k: v for k, v in found.items() if k not in others}
        if found != wanted:
            names = {k for k in {*found, *wanted} if found.get(k) != wanted.get(k)}
            raise Broken(f"other files than an undisturbed run's: {sorted(names)}")
        left = leftovers(store)
        if not by_env:  # a run that has the store for itself reads no index
            left = [name for name in left if not name.startswith("index/")]
        if left:
            raise Broken(f"left over: {left}")

    def _on_small_disk(
        self,
        store: Path,
        order: dict[str, Any],
        chance: random.Random,
        record: dict[str, Any],
    ) -> None:
        """The store on a file system of a few pages, which is made larger afterwards."""
        size = chance.choice((4, 12, 20, 40, 60, 80))
        store.mkdir(exist_ok=True)
        kept = list(store.iterdir())
        if kept:
            return  # what is there already would be hidden
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(store)]
        subprocess.run(mount, check=True)
        try:
            run = self.nursery.run(order)
            record["harms"].append(
                ["small disk", size, run.code, judge(run, "small disk", 0)]
            )
            before = finished(store)
            again = ["mount", "-o", "remount,size=8m", str(store)]
            subprocess.run(again, check=True)
            self.nursery.whole(order)
            after = finished(store)
            if any(after.get(name) != before[name] for name in before):
                raise Broken("acknowledged on a small disk and lost")
            shutil.copytree(store, store.with_name("kept"))
        finally:
            subprocess.run(["umount", str(store)], check=True)
        shutil.rmtree(store)
        store.with_name("kept").rename(store)

    # --- what is written from scores

    def _words(self, command: str, out: Path) -> list[str]:
        assert self.scored is not None
        data = self.nursery.data
        selection, rewards = str(self.scored / "selection"), str(data / "rewards.jsonl")
        words = {
            "choose": ["choose", str(self.scored / "store"), "--budget", "0.3"],
            "export": ["export", selection, "--to", "trl"],
            "report": ["report", selection, "--data", str(data / "data.jsonl")],
            "reselect": ["reselect", selection, "--rewards", rewards],
        }[command]
        return [*words, "--out", str(out)]

    def prepare_scored(self) -> None:
        if self.scored is None:
            scored = self.folder / "scored"
            self.nursery.whole(
                self.score_order(scored / "store", "real")
                | {"options": {"evidence": "answer"}}
            )
            self.scored = scored
            words = self._words("choose", scored / "selection")
            self.nursery.whole(self.shell(words, scored))

    def shell(self, words: list[str], below: Path) -> dict[str, Any]:
        return {"command": "shell", "words": words, "below": str(below)}

    def _whole_output(self, command: str) -> Whole:
        if command not in self.wanted:
            place = self.folder / f"whole {command}"
            place.mkdir()
            begun = time.monotonic()
            done = self.nursery.whole(
                self.shell(self._words(command, _out(place, command)), place)
            )
            taken = time.monotonic() - begun
            self.wanted[command] = (digests(place, ()), done.kinds, taken)
        return self.wanted[command]

    def _writing(
        self, folder: Path, command: str, chance: random.Random, record: dict[str, Any]
    ) -> None:
        self.prepare_scored()
        wanted, calls, seconds = self._whole_output(command)
        words = self._words(command, _out(folder, command))
        older: dict[str, str] = {}
        if command == "export":  # one that came through is not replaced unasked
            words.append("--force")
        if chance.random() < 0.4:
            record["in_place"] = True
            older = self._older(folder, command)
            words += ["--force"] if command in ("choose", "reselect") else []
        for _ in range(chance.randint(1, 3)):
            order = self.shell(words, folder)
            harm = self.harm(chance, calls)
            if harm[0] == "small disk":
                harm = ("disk full", [FAIL_ON, OPEN | WRITE | FOLDER, harm[1][2], ENOSPC])
            run = self.harmed([order], [harm], chance, seconds, record)[0]
            self._old_or_new(folder, older, wanted, command)
            if run.code == 0:
                break
        self.nursery.whole(self.shell(words, folder))
        found = digests(folder, ())
        if found != wanted:
            names = {k for k in {*found, *wanted} if found.get(k) != wanted.get(k)}
            raise Broken(f"other files than an undisturbed run's: {sorted(names)}")

    def _older(self, folder: Path, command: str) -> dict[str, str]:
        """What an earlier command of other settings has left there."""
        words = self._words(command, _out(folder, command))
        other = {
            "choose": ["--budget", "0.2"], "export": ["--system-prompt", "before"],
            "report": ["--title", "before"], "reselect": ["--keep", "0.9", "--size", "3"],
        }[command]  # fmt: skip
        self.nursery.whole(self.shell([*words, *other], folder))
        return digests(folder, ())

    def _old_or_new(
        self, folder: Path, older: dict[str, str], wanted: dict[str, str], command: str
    ) -> None:
        """The result that a reader would take is the older one or the new one, whole."""
        found = {k: v for k, v in digests(folder, ()).items() if not k.startswith(".")}
        if command in ("choose", "reselect"):  # a reader takes this file alone
            name = next(k for k in wanted if k.endswith("selection.parquet"))
            good = found.get(name) in (older.get(name), wanted[name])
        else:
            good = found in (older, wanted)
            if command == "export" and older and not found:
                good = True  # moved aside for a moment; the next run moves it back
        if not good:
            names = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise Broken(f"neither the older result nor the new one: {names}")


def _out(folder: Path, command: str) -> Path:
    return folder / ("report.html" if command == "report" else "out")


def _can_mount(folder: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    place = folder / "mount"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place)]
    try:
        if subprocess.run(mount, capture_output=True).returncode != 0:
            return False
        subprocess.run(["umount", str(place)], check=True)
    except OSError:
        return False
    return True
