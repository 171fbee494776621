"""Checks every kernel, times it against its rivals, prints what is asked and reached.

    python -m benchmarks.run             all pieces, into benchmarks/results/
    python -m benchmarks.run --quick     smaller shapes, 3 minutes, into out/bench-quick/
    python -m benchmarks.run --only ace  one piece; each is under 9 minutes
    python -m benchmarks.run --missing   the pieces that have no results yet
    python -m benchmarks.run --isa avx2  ours and rivals without AVX-512, into results/avx2/
    python -m benchmarks.run --table     measures nothing: table and plots of what is there

Each piece is a process of its own (memory peaks do not mix) and leaves <piece>.csv as soon
as it is done. One thread throughout. Exit code 1 if a ratio is missed, 2 if a piece failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from benchmarks.common import Row, WrongResult, machine, read, save, table

PIECES = ("limits", "call", "cde", "linear", "ace", "drm", "scoring")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK = ROOT / "out" / "bench-quick"
# Read when NumPy, torch, oneDNN and MKL are loaded: set before a piece's process starts.
AVX2 = {
    "RAP_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",
}
SECONDS = 540  # a piece that takes longer is stopped


def measure(piece: str, quick: bool, folder: Path) -> int:
    """Runs one piece in this process."""
    import torch

    torch.set_num_threads(1)
    if os.environ.get("RAP_ISA") == "avx2":
        import torch._inductor.config as inductor

        inductor.cpp.simdlen = 256  # torch.compile does not read ATEN_CPU_CAPABILITY
    torch.set_grad_enabled(False)
    module = importlib.import_module(f"benchmarks.bench_{piece}")
    try:
        rows = module.run(quick)
    except WrongResult as error:
        print(f"{piece}: wrong result, not timed: {error}", file=sys.stderr)
        return 2
    save(rows, folder / f"{piece}.csv")
    if hasattr(module, "write"):  # what a piece says besides its rows
        module.write(rows, folder)
    return 0


def start(piece: str, quick: bool, folder: Path, limit: float) -> bool:
    """Runs one piece in a process of its own; False if it failed."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.run",
        "--here",
        piece,
        "--out",
        str(folder),
    ]
    began = time.monotonic()
    try:
        done = subprocess.run(command + ["--quick"] * quick, cwd=ROOT, timeout=limit)
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        print(f"{piece}: stopped after {limit:.0f} s", file=sys.stderr)
        failed = True
    print(f"# {piece}: {time.monotonic() - began:.0f} s", flush=True)
    return not failed


def collect(folder: Path) -> list[Row]:
    found = (folder / f"{piece}.csv" for piece in PIECES)
    return [r for path in found if path.exists() for r in read(path)]


def show(folder: Path) -> int:
    """Prints the table, writes it and the plots; the number of ratios missed."""
    rows = collect(folder)
    text = table(rows)
    print(f"\n{text}\n")
    if rows:
        first = rows[0]
        head = (
            f"{machine()}, kernels {first.isa}, torch {first.torch} ({first.rival_isa}), "
            "one thread."
        )
        (folder / "table.md").write_text(f"{head}\n\n{text}\n")
    try:
        from benchmarks.plots import draw

        for path in draw(rows, folder):
            print(path)
    except ImportError as error:
        print(f"no plots: {error}")
    missed = sum(r.met is False for r in rows)
    print(f"{len(rows)} measurements in {folder}; {missed} ratios missed")
    return missed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PIECES, action="append")
    parser.add_argument("--isa", choices=("avx2",))
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", choices=PIECES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    folder = (args.out or (QUICK if args.quick else RESULTS) / (args.isa or "")).resolve()
    if args.isa:
        os.environ.update(AVX2)
    folder.mkdir(parents=True, exist_ok=True)
    if args.here:
        return measure(args.here, args.quick, folder)
    failed = []
    for piece in () if args.table else args.only or PIECES:
        if not (args.missing and (folder / f"{piece}.csv").exists()):
            if not start(piece, args.quick, folder, SECONDS):
                failed.append(piece)
    missed = show(folder)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 2
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
