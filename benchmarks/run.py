"""Prints the kernels' speed as ratios against rivals: python -m benchmarks.run [--quick]

One thread throughout. Exit code 1 if a floor is missed, 2 if a result is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import rap
from benchmarks import bench_ace, bench_cde, bench_drm
from benchmarks.common import WrongResult, save

KERNELS = {"cde": bench_cde, "ace": bench_ace, "drm": bench_drm}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="smaller shapes, under 3 minutes"
    )
    parser.add_argument("--only", choices=KERNELS, help="one kernel")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    info = rap.info()
    print(
        f"{info['machine']}, kernels {info['isa']['cde']}, torch {torch.__version__}, "
        "1 thread"
    )
    rows = []
    try:
        for name, module in KERNELS.items():
            if args.only in (None, name):
                rows += module.run(args.quick)
    except WrongResult as error:
        print(f"wrong result, not timed: {error}", file=sys.stderr)
        return 2
    save(rows, args.out)
    missed = [row for row in rows if row.floor is not None and row.ratio < row.floor]
    print(f"{len(rows)} measurements in {args.out}; {len(missed)} floors missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
