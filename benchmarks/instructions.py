"""Instruction counts of every kernel: a gate against regressions that noise cannot trip.

    python -m benchmarks.instructions            compare with results/instructions.json
    python -m benchmarks.instructions --update   write it anew: after a change that is meant

One process a kernel table runs benchmarks/instruction_cases.py under callgrind. Each call
into rap._C leaves one profile; of it only the instructions of rap._C itself are counted, so
neither Python nor libc enters. Counts hold for one compiler (its name is kept beside them)
and for x86-64; valgrind 3.19 knows no AVX-512, so that table is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results" / "instructions.json"
ISAS = ("avx2", "scalar")
TOLERANCE = 0.02
ENTRIES = ("rap_py_cde", "rap_py_linear_cde", "rap_py_ace", "rap_py_drm")

Counts = dict[str, int]


def extension() -> Path:
    """The file of rap._C."""
    from rap import _C

    return Path(str(_C.__file__))


def compiler() -> str:
    """What built rap._C, as its .comment section has it."""
    found = re.search(rb"(GCC: \([^\0]*|[^\0]*clang version [^\0]*)\0", read_extension())
    return found[1].decode() if found else "unknown"


def read_extension() -> bytes:
    return extension().read_bytes()


def obstacle() -> str | None:
    """Why the counts cannot be taken here and compared with those kept; None if they
    can."""
    if platform.machine() != "x86_64":
        return f"counts are kept for x86_64, this is {platform.machine()}"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if b"__asan_init" in read_extension():
        return "rap._C is built with a sanitizer"
    return None


def self_cost(profile: str, object_name: str) -> int:
    """Instructions of one object file in a callgrind profile with uncompressed names: its
    own, without those of the functions it calls elsewhere."""
    total, inside, of_callee = 0, False, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            inside = line.endswith(object_name)
        elif line.startswith("calls="):
            of_callee = True  # the next line is the callee's cost
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if inside and not of_callee:
                total += int(line.split()[1])
            of_callee = False
    return total


def case_names() -> list[str]:
    """In the order in which the script makes its calls."""
    from benchmarks.instruction_cases import cases
    from rap import ops

    return list(cases(ops))


def count(isa: str) -> Counts:
    """Case -> instructions in rap._C, with the kernels of `isa`."""
    names = case_names()
    with tempfile.TemporaryDirectory(prefix="rap-callgrind-") as folder:
        command = ["valgrind", "--tool=callgrind", "--compress-strings=no"]
        command += ["--compress-pos=no", f"--callgrind-out-file={folder}/profile"]
        command += ["--toggle-collect=rap_py_*"]  # given twice, it collects nothing
        command += [f"--dump-after={name}" for name in ENTRIES]
        command += [sys.executable, str(HERE / "instruction_cases.py")]
        env = os.environ | {"RAP_ISA": isa, "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        profiles = [
            (Path(folder) / f"profile.{i}").read_text() for i in range(1, len(names) + 1)
        ]
        if (Path(folder) / f"profile.{len(names) + 1}").exists():
            raise RuntimeError("a case called rap._C more than once")
    counts = {
        name: self_cost(profile, extension().name)
        for name, profile in zip(names, profiles, strict=True)
    }
    if not all(counts.values()):
        raise RuntimeError(f"callgrind counted nothing: {counts}")
    return counts


def differences(
    got: Mapping[str, int], kept: Mapping[str, int], tolerance: float = TOLERANCE
) -> list[str]:
    """One sentence for every case that is off by more than `tolerance`, new or gone.
    Fewer instructions are named too: what is kept must be what is true."""
    out = []
    for name in {**kept, **got}:
        if name not in got or name not in kept:
            out.append(f"{name}: {'gone' if name in kept else 'not kept yet'}")
        elif abs(got[name] - kept[name]) > tolerance * kept[name]:
            change = got[name] / kept[name] - 1 if kept[name] else float("inf")
            out.append(f"{name}: {kept[name]:,} -> {got[name]:,} ({change:+.1%})")
    return out


def load() -> dict:
    return json.loads(KEPT.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the counts anew")
    args = parser.parse_args()
    reason = obstacle()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    got = {isa: count(isa) for isa in ISAS}
    for isa, counts in got.items():
        for name, n in counts.items():
            print(f"{isa:7} {name:22} {n:>12,}")
    if args.update:
        KEPT.parent.mkdir(exist_ok=True)
        text = json.dumps({"compiler": compiler(), "counts": got}, indent=1)
        KEPT.write_text(text + "\n")
        return 0
    kept = load()
    if kept["compiler"] != compiler():
        print(f"kept: {kept['compiler']}; here: {compiler()}", file=sys.stderr)
        return 2
    changes = [
        f"{isa} {x}" for isa in ISAS for x in differences(got[isa], kept["counts"][isa])
    ]
    print("\n".join(changes) or f"all within {TOLERANCE:.0%} of {KEPT}")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
