"""One trial: a command that is harmed, then goes on; and what must hold of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

NOTHING, KILL_BEFORE, KILL_AFTER, SIGNAL, FAIL, FAIL_ON, NO_MEMORY = range(7)
OPEN, WRITE, SYNC, RENAME, REMOVE, FOLDER = (1 << i for i in range(6))
EIO, ENOSPC, EDQUOT = 5, 28, 122
ALL = 63

HARMS: dict[str, tuple[int, int, int]] = {
    "kill before": (KILL_BEFORE, ALL, 0),
    "kill after": (KILL_AFTER, ALL, 0),
    "kill at a rename": (KILL_BEFORE, RENAME, 0),
    "kill after a rename": (KILL_AFTER, RENAME, 0),
    "kill by the clock": (NOTHING, ALL, 0),
    "SIGTERM": (SIGNAL, ALL, signal.SIGTERM),
    "Ctrl-C": (SIGNAL, ALL, signal.SIGINT),
    "disk full": (FAIL_ON, OPEN | WRITE | FOLDER, ENOSPC),
    "quota, once": (FAIL, OPEN | WRITE | FOLDER, EDQUOT),
    "I/O error of a write": (FAIL, WRITE, EIO),
    "I/O error of fsync": (FAIL, SYNC, EIO),
    "I/O error of a rename": (FAIL, RENAME, EIO),
    "no memory": (NO_MEMORY, ALL, 1 << 20),
    "small disk": (NOTHING, ALL, 0),
}
"""{what is done: (how, to which calls, with what)}"""

WEIGHTS = {"kill before": 4, "kill after": 4, "kill by the clock": 3, "small disk": 0.5}
COMMANDS = {
    "score answer": 5, "score rollouts": 4, "env": 4, "choose": 2, "export": 3,
    "report": 1, "reselect": 2, "real": 0.15,
}  # fmt: skip

MEMORY = ("MemoryError", "ArrowMemoryError", "OutOfMemoryError")


Harm = tuple[str, list[int]]
"""(one of ``HARMS``, what the shim is told)"""


Whole = tuple[dict[str, str], list[int], float]
"""Files, calls of each kind and seconds of an undisturbed run."""


class Broken(AssertionError):
    """What a trial found."""


@dataclass(slots=True)
class Run:
    """How a process ended."""

    code: int
    count: int
    kinds: list[int]
    error: str
    said: str


class Nursery:
    """The forking process, from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        shim = folder / "shim.so"
        command = ["cc", "-O1", "-shared", "-fPIC", HERE / "shim.c", "-o", shim, "-ldl"]
        subprocess.run(command, check=True)
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, HERE / "nursery.py", self.data],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"LD_PRELOAD": str(shim), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            text=True,
        )
        assert self._line() == "ready", "the nursery did not start"
        self.number = 0

    def start(self, order: dict[str, Any]) -> tuple[int, Path]:
        self.number += 1
        said = self.folder / f"said{self.number}"
        self._say({**order, "said": str(said)})
        return int(self._line()), said

    def end(self, started: tuple[int, Path]) -> Run:
        pid, said = started
        self._say({"wait": pid})
        code = int(self._line())
        end = Path(f"{said}.end")
        told = {"count": 0, "kinds": [], "error": ""}
        if end.exists():
            told |= json.loads(end.read_text())
        text = said.read_text(errors="replace") if said.exists() else ""
        for path in (said, end):
            path.unlink(missing_ok=True)
        return Run(code, told["count"], told["kinds"], told["error"], text)

    def run(self, order: dict[str, Any]) -> Run:
        return self.end(self.start(order))

    def warm(self, orders: Sequence[dict[str, Any]]) -> None:
        self._say({"warm": orders})
        assert self._line() == "warm"

    def whole(self, order: dict[str, Any]) -> Run:
        """A run that nothing harms. Raises ``Broken`` where it does not succeed."""
        done = self.run(order)
        if done.code != 0:
            raise Broken(f"an undisturbed run: {done}")
        return done

    def _say(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


# ---------------------------------------------------------------- what is compared


def digests(
    folder: Path, skip: Sequence[str] = ("lock",), *, clocks: bool = False
) -> dict[str, str]:
    """{file: digest}; with ``clocks`` of tables without their clock readings."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name in skip or name.startswith("index/"):
            continue
        data = path.read_bytes()
        with contextlib.suppress(pa.ArrowException):  # half written: its bytes
            if clocks and path.suffix == ".parquet":
                table = pq.read_table(pa.BufferReader(data))
                timed = {"seconds"} & set(table.column_names)
                data = repr(table.drop_columns([*timed]).to_pydict()).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def finished(store: Path, *, clocks: bool = False) -> dict[str, str]:
    """Of the shards that are there: what was acknowledged."""
    if not store.is_dir():
        return {}
    return {
        name: digest
        for name, digest in digests(store, clocks=clocks).items()
        if name.split("/")[-1].startswith(("scores-", "rollouts-"))
        and f"scores-{name[-13:]}" in os.listdir(store)
        and "/" not in name
    }


def leftovers(folder: Path) -> list[str]:
    """What no undisturbed run leaves."""
    found = []
    for pattern in ("*.corrupt", ".*.tmp", ".*.old", "partial*", "*.old", "claims/*"):
        found += [str(p.relative_to(folder)) for p in folder.rglob(pattern)]
    return sorted(found)


def judge(run: Run, kind: str, nth: int) -> bool:
    """Whether the harm was felt. Raises ``Broken`` for an end that it must not have."""
    how = HARMS[kind][0]
    if "fault in rap" in run.said:
        raise Broken(f"{kind}: called a fault in rap: {run.said[-600:]}")
    if run.code == 0:  # it came before the harm, or could do without what failed
        return how != NOTHING and run.count >= nth
    wanted = {KILL_BEFORE: {-9}, KILL_AFTER: {-9}, SIGNAL: {130, 143}, NOTHING: {-9, 1}}
    if run.code not in wanted.get(how, {1}):
        raise Broken(f"{kind}: ended with {run.code}: {run.error} {run.said[-600:]}")
    if run.code != 1 or not run.error:
        return True
    name = run.error.split(":")[0]
    if how == NO_MEMORY:
        thread = "can't start new thread" in run.error  # Python's word for it
        good = name in (*MEMORY, "RapStoreError") or thread
    else:
        good = name == "RapStoreError"
    if not good:
        raise Broken(f"{kind}: ended with {run.error}")
    return True


# ---------------------------------------------------------------- the trials


class Chaos:
    """Trials, each in a folder of its own below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nursery = Nursery(folder)
        self.wanted: dict[str, Whole] = {}
        self.mounts = _can_mount(folder)
        self.scored: Path | None = None
        self._warm()

    def _warm(self) -> None:
        """One run of each command, so that the later ones import nothing."""
        place = self.folder / "warm"
        kinds = ("score answer", "score rollouts")
        orders = [self._order(place / kind, kind) for kind in kinds]
        orders.append(self._order(place / "env", "env", 0))
        self.scored = place
        orders[0]["store"] = str(place / "store")
        for command in ("choose", "choose", "export", "report", "reselect"):
            out = place / "selection" if len(orders) == 3 else _out(place, command)
            orders.append(self._shell(self._words(command, out), place))
        self.scored = None
        said = {"said": str(self.folder / "warm.txt")}
        self.nursery.warm([order | said for order in orders])

    def trial(self, number: int, seed: int) -> dict[str, Any]:
        """The record of one trial."""
        chance = random.Random(f"{seed} {number}")
        command = chance.choices(list(COMMANDS), list(COMMANDS.values()))[0]
        record: dict[str, Any] = {"trial": number, "command": command, "harms": []}
        folder = self.folder / f"trial{number}"
        folder.mkdir()
        begun = time.monotonic()
        try:
            if command.startswith("score") or command in ("env", "real"):
                self._scoring(folder, command, chance, record)
            else:
                self._writing(folder, command, chance, record)
            record["ok"] = True
            shutil.rmtree(folder)
        except Broken as found:
            record |= {"ok": False, "found": str(found), "folder": str(folder)}
        record["seconds"] = round(time.monotonic() - begun, 2)
        return record

    # --- scoring

    def _order(self, store: Path, command: str, rank: int | None = None) -> dict[str, Any]:
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
            done = self.nursery.whole(self._order(store, command))
            self.wanted[command] = (
                digests(store, clocks=command == "real"),
                done.kinds,
                time.monotonic() - begun,
            )
        return self.wanted[command]

    def _harm(self, chance: random.Random, calls: Sequence[int]) -> Harm:
        weights = [WEIGHTS.get(name, 1) for name in HARMS]
        kind = chance.choices(list(HARMS), weights)[0]
        if kind == "small disk" and not self.mounts:
            kind = "disk full"
        how, what, value = HARMS[kind]
        most = sum(n for i, n in enumerate(calls) if what & 1 << i)
        return kind, [how, what, chance.randint(1, max(1, most)), int(value)]

    def _harmed(
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
                orders = [self._order(store, command, rank) for rank in range(2)]
                hit = chance.choice(([0], [1], [0, 1]))
                harms = [self._harm(chance, calls) if r in hit else None for r in range(2)]
                harms = [
                    h
                    if h is None or h[0] != "small disk"
                    else ("kill after", [2, ALL, 9, 0])
                    for h in harms
                ]
            else:
                orders, harms = [self._order(store, command)], [self._harm(chance, calls)]
            if harms[0] is not None and harms[0][0] == "small disk":
                self._on_small_disk(store, orders[0], chance, record)
            else:
                runs = self._harmed(orders, harms, chance, seconds, record)
                if any(run.code == 0 for run in runs):
                    break
            after = finished(store, clocks=command == "real")
            lost = {name for name in before if after.get(name) != before[name]}
            if lost:
                raise Broken(f"acknowledged and lost: {sorted(lost)}")
        by_env = command == "env" and chance.random() < 0.5
        self.nursery.whole(self._order(store, command, 0 if by_env else None))
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

    def _prepare_scored(self) -> None:
        if self.scored is None:
            scored = self.folder / "scored"
            self.nursery.whole(
                self._order(scored / "store", "real") | {"options": {"evidence": "answer"}}
            )
            self.scored = scored
            words = self._words("choose", scored / "selection")
            self.nursery.whole(self._shell(words, scored))

    def _shell(self, words: list[str], below: Path) -> dict[str, Any]:
        return {"command": "shell", "words": words, "below": str(below)}

    def _whole_output(self, command: str) -> Whole:
        if command not in self.wanted:
            place = self.folder / f"whole {command}"
            place.mkdir()
            begun = time.monotonic()
            done = self.nursery.whole(
                self._shell(self._words(command, _out(place, command)), place)
            )
            taken = time.monotonic() - begun
            self.wanted[command] = (digests(place, ()), done.kinds, taken)
        return self.wanted[command]

    def _writing(
        self, folder: Path, command: str, chance: random.Random, record: dict[str, Any]
    ) -> None:
        self._prepare_scored()
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
            order = self._shell(words, folder)
            harm = self._harm(chance, calls)
            if harm[0] == "small disk":
                harm = ("disk full", [FAIL_ON, OPEN | WRITE | FOLDER, harm[1][2], ENOSPC])
            run = self._harmed([order], [harm], chance, seconds, record)[0]
            self._old_or_new(folder, older, wanted, command)
            if run.code == 0:
                break
        self.nursery.whole(self._shell(words, folder))
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
        self.nursery.whole(self._shell([*words, *other], folder))
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
