"""The command line: every call so often, a line each, the table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import host
from .measure import Held, Result, measured, quiet

TESTS = Path(__file__).resolve().parent.parent

HEAD = """\
# Leaks

Made by `make leaks` (tests/leaks says what is called and what is looked at): so many calls
of each kind, a tenth as many of a call that takes more than 0.2 ms of CPU time, and of
those on the fake CUDA device. How much more there is after them than before: blocks of
Python's allocator, bytes given out by malloc, references to what the calls were given and
to what C returns or raises, resident memory. Files, threads and what the device holds
(blocks, contexts, work) were the same before and after each kind. A leak of one thing a
call would show as at least as many blocks, references or bytes as there are calls.

"""


def on_host(count: int, names: list[str]) -> Iterator[Result]:
    calls = host.calls()
    quiet()
    for name, call in calls.items():
        if not names or name.startswith(tuple(names)):
            yield measured(name, call, count)


def on_device(count: int, names: list[str]) -> Iterator[Result]:
    """In a process of its own; none where the fakes cannot be built."""
    sys.path.insert(0, str(TESTS))
    from cuda_emulator import build, gates
    from cuda_emulator.fake.build import environment

    from rap import _C

    if build.compiler() is None or not _C.CUDA_KERNELS or gates.cuobjdump() is None:
        print("no fake CUDA device: needs gcc, device code in rap._C and cuobjdump")
        return
    command = [sys.executable, "-m", "leaks.device", str(count), *names]
    env = environment() | {"RAP_FAKE_THREADS": "32"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            said = json.loads(line)
            yield Result(**said | {"grown": Held(**said["grown"])})
    if run.returncode != 0:
        raise SystemExit(f"tests.leaks.device ended with {run.returncode}")


def line_of(result: Result, where: str) -> str:
    g = result.grown
    return (
        f"| {where} | {result.name} | {result.count:,} | {result.microseconds:,.0f} "
        f"| {g.blocks:+} | {g.bytes:+} | {g.references:+} | {g.resident:+} |"
    )


def table(lines: list[str]) -> str:
    return "\n".join(
        [
            "| | call | calls | CPU µs each | blocks | bytes | references | KiB resident |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
            *lines,
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.leaks", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--only", nargs="*", default=[], help="by the start of a name")
    parser.add_argument("--summary", type=Path, help="write the table there")
    asked = parser.parse_args()
    lines, leaks = [], []
    for where, found in (
        ("host", on_host(asked.count, asked.only)),
        ("device", on_device(max(1, asked.count // 10), asked.only)),
    ):
        for result in found:
            lines.append(line_of(result, where))
            print(lines[-1], *result.leaks, flush=True)
            leaks += [f"{where}: {result.name}: {what}" for what in result.leaks]
    if asked.summary is not None and not leaks:
        asked.summary.write_text(HEAD + table(lines) + "\n")
    print(f"{len(lines)} kinds of calls; leaks: {leaks or 'none'}")
    return int(bool(leaks))


if __name__ == "__main__":
    sys.exit(main())
