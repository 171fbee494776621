"""What the compiled kernels cost, by architecture, without running them.

    python -m cuda_emulator.gates          (in tests/) prints the table
    python -m cuda_emulator.gates --write  renews gates.json

Registers, spills and shared memory are ptxas's own words; parameters and instructions are
read with cuobjdump; occupancy comes from NVIDIA's cuda_occupancy.h, compiled on the host.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from . import build

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
TABLE = build.HERE / "gates.json"
THREADS = 256
TENSOR_THREADS = 128
TENSOR = tuple(
    f"rap_fused_{part}_{kind}" for part in ("lse", "fold") for kind in ("bf16", "f16")
)
"""Kernels on tensor cores: TENSOR_THREADS a block."""
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", f"-I{build.CSRC}"]
# threads and blocks an SM, registers an SM, KiB of shared memory an SM and a block, SMs:
# NVIDIA CUDA programming guide, table of technical specifications
SM = {
    75: (1024, 64, 64, 40),
    80: (2048, 164, 163, 108),
    86: (1536, 100, 99, 84),
    89: (1536, 100, 99, 128),
    90: (2048, 228, 227, 132),
    100: (2048, 228, 227, 148),
    120: (1536, 100, 99, 170),
}


@dataclass(frozen=True)
class Gate:
    """One kernel on one architecture."""

    registers: int
    spills: int
    """Bytes of registers kept in local memory: stack frame, stores and loads."""
    shared: int
    """Bytes of static shared memory a block."""
    params: int
    loads128: int
    """128-bit loads from global memory in the code."""
    doubles_in_loops: int
    """float64 instructions in innermost loops that read global memory."""
    per_pair: float
    """Instructions a pair of logits in the costliest loop that takes them 16 bytes at a
    time; 0 of a kernel without one."""
    products: int
    """Instructions of the tensor cores in the code."""
    warps: int
    """Warps an SM holds at the block size in use, by cuda_occupancy.h."""


def nvcc() -> str | None:
    found = shutil.which("nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc")
    return found or (str(usual) if usual.exists() else None)


def cuobjdump() -> str | None:
    """On PATH, or from the wheel nvidia-cuda-cuobjdump."""
    wheel = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(wheel) if wheel.exists() else None)


def occupancy_header() -> Path | None:
    places = [Path("/usr/local/cuda/include")]
    if nvcc():
        places.append(Path(str(nvcc())).resolve().parent.parent / "include")
    places += sorted(Path("/usr/local").glob("cuda-*/include"))
    wheels = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    places += [wheels / "cu13" / "include", wheels / "cuda_runtime" / "include"]
    return next((p for p in places if (p / "cuda_occupancy.h").exists()), None)


@cache
def nvcc_version() -> str:
    text = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text).group(1)


def known(arch: int) -> bool:
    text = subprocess.run(
        [str(nvcc()), "--list-gpu-arch"], capture_output=True, text=True
    ).stdout
    return f"compute_{arch}\n" in text


# --- what ptxas says ------------------------------------------------------------------


def _resources(log: str) -> dict[str, tuple[int, int, int]]:
    """{kernel: (registers, bytes spilled, bytes shared)}."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        spills = sum(map(int, re.findall(r"(\d+) bytes (?:stack|spill)", part)))
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        shared = re.search(r"(\d+) bytes smem", part)
        found[part.split("'")[0]] = (
            registers,
            spills,
            int(shared.group(1)) if shared else 0,
        )
    return found


# --- what the machine code holds ------------------------------------------------------

_DOUBLE = re.compile(
    r"\bD(ADD|MUL|FMA|SETP|MNMX)\b|\bF2F\.\S*F64|\bI2F\S*\.F64|\bMUFU\.\S*64"
)


def _functions(sass: str) -> dict[str, list[tuple[int, str]]]:
    """{kernel: [(address, instruction)]}."""
    found: dict[str, list[tuple[int, str]]] = {}
    for part in sass.split("Function : ")[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", part)
        found[part.split()[0]] = [(int(at, 16), text.strip()) for at, text in lines]
    return found


def _successors(code: list[tuple[int, str]]) -> list[list[int]]:
    """By the number of an instruction, those that may come next."""
    number = {at: i for i, (at, _) in enumerate(code)}
    found = []
    for i, (_, text) in enumerate(code):
        op = text.split()[1 if text.startswith("@") else 0]
        target = re.search(r"\b(?:BRA|CALL|JMP)\S*\s.*?0x([0-9a-f]+)", text)
        after = [number[int(target[1], 16)]] if target else []
        ends = re.match(r"(BRA|JMP|EXIT|RET)\b", op)
        # a branch may be conditional in other ways than its predicate: BRA.DIV, BRA P0, ...
        always = ends and op == text.split()[0] and not re.search(r"\.DIV|\s!?U?P\d", text)
        if i + 1 < len(code) and not always:
            after.append(i + 1)
        found.append(after)
    return found


def _dominators(after: list[list[int]]) -> list[int]:
    """For each instruction a bit set of those that every way to it passes."""
    before: list[list[int]] = [[] for _ in after]
    for i, targets in enumerate(after):
        for t in targets:
            before[t].append(i)
    everything = (1 << len(after)) - 1
    found = [1] + [everything] * (len(after) - 1)
    changed = True
    while changed:
        changed = False
        for i in range(1, len(after)):
            common = everything
            for b in before[i]:
                common &= found[b]
            common |= 1 << i
            changed |= common != found[i]
            found[i] = common
    return found


def _reached(after: list[list[int]]) -> set[int]:
    """Without the filling behind the end."""
    found, todo = set(), [0]
    while todo:
        x = todo.pop()
        if x not in found:
            found.add(x)
            todo += after[x]
    return found


def loops(code: list[tuple[int, str]]) -> list[set[int]]:
    """Natural loops, as numbers of instructions: the compiler moves rare paths behind the
    kernel's end, so not every jump back closes one."""
    after = _successors(code)
    dominators = _dominators(after)
    before: list[list[int]] = [[] for _ in after]
    for i, targets in enumerate(after):
        for t in targets:
            before[t].append(i)
    bodies: dict[int, set[int]] = {}
    for i in _reached(after):
        for head in after[i]:
            if dominators[i] >> head & 1:
                body, todo = bodies.setdefault(head, {head}), [i]
                while todo:
                    x = todo.pop()
                    if x not in body:
                        body.add(x)
                        todo += before[x]
    return list(bodies.values())


def innermost_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """Instructions of each loop that holds no other."""
    found = loops(code)
    return [
        [code[i][1] for i in sorted(body)]
        for body in found
        if not any(other < body for other in found)
    ]


def _doubles_in_loops(code: list[tuple[int, str]]) -> int:
    reading = [x for x in innermost_loops(code) if any("LDG" in text for text in x)]
    return sum(bool(_DOUBLE.search(text)) for loop in reading for text in loop)


PAIR_KERNEL = "rap_cde_rows"


def pair_loops(code: list[tuple[int, str]]) -> list[float]:
    """Instructions a pair of each loop over pairs of logits, overhead included. A pair
    takes two powers of 2, three with hellinger2; a turn takes eight pairs or sixteen."""
    found = []
    for loop in innermost_loops(code):
        wide = any("LDG" in text and ".128" in text for text in loop)
        powers = sum("MUFU.EX2" in text for text in loop)
        pairs = [n for n in (8, 16) if powers in (2 * n, 3 * n)]
        if wide and pairs:
            found.append(len(loop) / pairs[0])
    return found


def _param_sizes(elf: str) -> dict[str, int]:
    """One struct by value: EIATTR_KPARAM_INFO."""
    found = {}
    for part in elf.split("\n.nv.info.")[1:]:
        size = re.search(r"EIATTR_KPARAM_INFO.*?Size\s*:\s*0x([0-9a-f]+)", part, re.S)
        found[part.split()[0]] = int(size.group(1), 16)
    return found


# --- occupancy ------------------------------------------------------------------------

OCCUPANCY = r"""
#include <stdio.h>
#include "cuda_occupancy.h"

int
main(void)
{
    int arch, most, sm_kib, block_kib, sms, threads, registers, shared;

    while (scanf("%d %d %d %d %d %d %d %d", &arch, &most, &sm_kib, &block_kib, &sms,
                 &threads, &registers, &shared) == 8) {
        cudaOccDeviceProp device = {
            .computeMajor = arch / 10, .computeMinor = arch % 10,
            .maxThreadsPerBlock = 1024, .maxThreadsPerMultiprocessor = most,
            .regsPerBlock = 65536, .regsPerMultiprocessor = 65536, .warpSize = 32,
            .sharedMemPerBlock = 49152,
            .sharedMemPerMultiprocessor = (size_t)sm_kib * 1024, .numSms = sms,
            .sharedMemPerBlockOptin = (size_t)block_kib * 1024,
            .reservedSharedMemPerBlock = 1024};
        cudaOccFuncAttributes kernel = {
            .maxThreadsPerBlock = threads, .numRegs = registers,
            .sharedSizeBytes = (size_t)shared, .maxDynamicSharedSizeBytes = 49152,
            .numBlockBarriers = 1};
        cudaOccDeviceState state = {.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED};
        cudaOccResult result;

        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state,
                                                    threads, 0) != CUDA_OCC_SUCCESS) {
            printf("-1\n");
            continue;
        }
        printf("%d\n", result.activeBlocksPerMultiprocessor * threads / 32);
    }
    return 0;
}
"""


def warps(rows: list[tuple[int, int, int, int]]) -> list[int]:
    """Warps an SM for each (architecture, threads a block, registers, shared bytes)."""
    lines = [" ".join(map(str, (a, *SM[a], *rest))) for a, *rest in rows]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "occupancy.c", Path(folder) / "occupancy"
        source.write_text(OCCUPANCY)
        subprocess.run(
            [str(build.compiler()), "-std=gnu11", "-w", f"-I{occupancy_header()}",
             str(source), "-o", str(program)],
            check=True,
        )  # fmt: skip
        out = subprocess.run(
            [program], input="\n".join(lines), capture_output=True, text=True
        )
    return [int(x) for x in out.stdout.split()]


def measure(arch: int) -> dict[str, Gate]:
    """Every kernel on one architecture."""
    found: dict[str, tuple] = {}
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        for source in build.sources():
            done = subprocess.run(
                [str(nvcc()), *NVCC_FLAGS, "-Xptxas", "-v", f"-arch=sm_{arch}", "-cubin",
                 str(source), "-o", str(cubin)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            read = [
                subprocess.run([str(cuobjdump()), flag, str(cubin)], capture_output=True,
                               text=True, check=True).stdout
                for flag in ("-sass", "-elf")
            ]  # fmt: skip
            functions, params = _functions(read[0]), _param_sizes(read[1])
            for name, resources in _resources(done.stderr).items():
                code = functions[name]
                loads = sum("LDG" in text and ".128" in text for _, text in code)
                pairs = pair_loops(code) if name == PAIR_KERNEL else []
                found[name] = (
                    *resources, params[name], loads, _doubles_in_loops(code),
                    round(max(pairs, default=0), 2),
                    sum("HMMA" in text for _, text in code),
                )  # fmt: skip
    held = warps(
        [
            (arch, TENSOR_THREADS if name in TENSOR else THREADS, x[0], x[2])
            for name, x in found.items()
        ]
    )
    return {
        name: Gate(*x, warps=w) for (name, x), w in zip(found.items(), held, strict=True)
    }


def read_table() -> dict:
    return json.loads(TABLE.read_text())


def write_table() -> None:
    kernels = {
        f"sm_{arch}": {name: asdict(gate) for name, gate in sorted(measure(arch).items())}
        for arch in ARCHITECTURES
        if known(arch)
    }
    text = json.dumps({"nvcc": nvcc_version(), "kernels": kernels}, indent=1)
    # one line a kernel
    text = re.sub(
        r"\{\s+(\"reg[^}]*?)\s+\}", lambda m: f"{{{' '.join(m[1].split())}}}", text
    )
    TABLE.write_text(text + "\n")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write_table()
    print(TABLE.read_text())
