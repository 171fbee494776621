"""The command line: trials until so many harms were felt, a log, a summary."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .client import ROOT
from .harms import HARMS
from .trials import COMMANDS, Chaos

LOG = ROOT / "build" / "chaos" / "log.jsonl"


HEAD = """\
# Chaos

Made by `make chaos` (tests/chaos says what is done and what must hold), seed {seed}. A harm
counts where it was felt: the process ended by it, or the call that was to fail did. A trial
that found a fault stays in the log when the fault is mended.

Found in `rap train`, when it was added, and mended; each has a test:

- Resumed from its last checkpoint, a run that ends within an epoch did one step more.
- A disk that refused a checkpoint, and memory that a CPU has not, were called faults of rap
  itself.
- A line of log.jsonl after a torn one was torn, too; a run that began again did not say so
  there.
- A kill while weights were written left a file of their size in model/ (trial 474).
- model/tokenizer.json held the padding of the last batch, if there had been one.

"""


def records(log: Path, seed: int) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    lines = map(json.loads, log.read_text().splitlines())
    return [line for line in lines if line["seed"] == seed]


def felt(found: list[dict[str, Any]]) -> int:
    return sum(bool(harm[3]) for record in found for harm in record["harms"])


def costs(found: list[dict[str, Any]], commands: list[str]) -> list[str]:
    """What a trial of each command takes, as lines of a table."""
    lines = [
        "| command | trials | harms | of these in one trial, at most | CPU s a trial |",
        "|---|---|---|---|---|",
    ]
    for command in commands:
        of = [record for record in found if record["command"] == command]
        used = [record["cpu"] for record in of if "cpu" in record]
        mean = f"{sum(used) / len(used):.1f}" if used else "not measured"
        most = max(felt([record]) for record in of)
        lines.append(f"| {command} | {len(of)} | {felt(of)} | {most} | {mean} |")
    return lines


def summary(found: list[dict[str, Any]]) -> str:
    """What was done and found, in Markdown."""
    table: Counter[tuple[str, str]] = Counter()
    for record in found:
        for kind, _, _, was_felt, *_ in record["harms"]:
            table[record["command"], kind] += bool(was_felt)
    commands = sorted({c for c, _ in table})
    kinds = sorted({k for _, k in table})
    bad = [record for record in found if not record["ok"]]
    lines = [
        f"{felt(found)} harms in {len(found)} trials; a fault was found by {len(bad)}.",
        "",
        "| harm | " + " | ".join(commands) + " |",
        "|---" * (1 + len(commands)) + "|",
    ]
    for kind in kinds:
        cells = " | ".join(str(table[c, kind]) for c in commands)
        lines.append(f"| {kind} | {cells} |")
    lines += ["", *costs(found, commands)]
    for record in bad:
        lines.append(f"\ntrial {record['trial']} ({record['command']}): {record['found']}")
    return "\n".join(lines) + "\n"


def section(seed: int, commands: Iterable[str], harms: list[str]) -> str:
    """The heading of a log that comes after the first."""
    only = f", {', '.join(harms)} only" if set(harms) != set(HARMS) else ""
    return (
        f"\n## Added: {', '.join(commands)}{only}, seed {seed}\n\n"
        "A log of its own, after the first, whose numbers above are without it.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="harms that are felt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin none after that")
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--summary", type=Path, help="write it there, too")
    parser.add_argument("--append", type=Path, help="a section of it there, at the end")
    parser.add_argument("--trials", type=int, default=10**9, help="of this call, at most")
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), help="commands tried")
    parser.add_argument("--without", nargs="*", default=[], help="commands left out")
    parser.add_argument(
        "--harms", nargs="*", default=list(HARMS), choices=list(HARMS),
        help="harms done; not of ray, whose workers and driver have their own",
    )  # fmt: skip
    asked = parser.parse_args()
    names = set(asked.only) - set(asked.without)
    commands = {name: n for name, n in COMMANDS.items() if name in names}
    asked.log.parent.mkdir(parents=True, exist_ok=True)
    found = records(asked.log, asked.seed)
    most = len(found) + asked.trials
    end = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="rap-chaos-") as folder:
        chaos = Chaos(Path(folder), commands, asked.harms)
        while felt(found) < asked.kills and len(found) < most and time.monotonic() < end:
            done = {record["trial"] for record in found}
            number = next(i for i in itertools.count() if i not in done)
            record = chaos.trial(number, asked.seed) | {"seed": asked.seed}
            with open(asked.log, "a") as file:
                file.write(json.dumps(record) + "\n")
            found.append(record)
            if not record["ok"]:
                print(json.dumps(record), flush=True)
        chaos.close()
    print(summary(found))
    if asked.summary is not None:
        asked.summary.write_text(HEAD.format(seed=asked.seed) + summary(found))
    if asked.append is not None:
        with open(asked.append, "a") as file:
            file.write(section(asked.seed, commands, asked.harms) + summary(found))


if __name__ == "__main__":
    main()
