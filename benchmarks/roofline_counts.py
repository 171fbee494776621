"""Instructions of the CUDA kernels for one element, counted in machine code.

What is counted, and on which devices: the difference between two straight pieces of code
that differ by one element. `benchmarks.roofline` makes times of them. Needs nvcc and
cuobjdump; no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Gpu:
    """Datasheet numbers: bytes/s of memory, FLOP/s of a dense bfloat16 product with float32
    sums; bytes/s of L2 from published microbenchmarks, as remembered."""

    name: str
    arch: int
    memory: float
    cache: float
    lanes: int
    clock: float
    tensor: float

    @property
    def issue(self) -> float:
        """One instruction a lane and cycle: the float32 units (A100: and the integer ones
        beside them, which then count for nothing)."""
        return self.lanes * self.clock

    @property
    def special(self) -> float:
        """Exponentials of the special function units: 16 an SM and cycle; an SM has 64
        float32 lanes (A100) or 128."""
        return self.issue * 16 / (64 if self.arch == 80 else 128)


GPUS = (
    Gpu("A100 80 GB SXM", 80, 2.039e12, 5.0e12, 108 * 64, 1.41e9, 312e12),
    Gpu("H200 SXM", 90, 4.8e12, 5.5e12, 132 * 128, 1.98e9, 989e12),
    Gpu("RTX 4090", 89, 1.008e12, 5.0e12, 128 * 128, 2.52e9, 165e12),
)

# name: (source, elements of one piece, code of one piece, what it leaves in `sum`)
_PAIRS = """float a[8], b[8];
    wide(in + 2 * N, a);
    wide(in + 2 * N + 1, b);
    for (int i = 0; i < 8; i++) """
_SWEEP = "cde_add(&s, RAP_FMA(a[i], RAP_LOG2E, -m1), RAP_FMA(b[i], RAP_LOG2E, -m0), {});"
_FOUR = "rap_u128 a = rap_load128(in + N); float x[4]; " + "".join(
    f"x[{i}] = rap_exp2f(RAP_FMA(m1, rap_from_bits(a.{lane}), -m0), least); "
    for i, lane in enumerate("xyzw")
)
# scores are in registers already: the loads of the pieces are taken off below
_FUSED = "rap_u128 a = rap_load128(in + N); float x[4]; " + "".join(
    f"x[{i}] = rap_from_bits(a.{lane}); " for i, lane in enumerate("xyzw")
)
_FUSED_LSE = "for (int i = 0; i < 4; i++) { s.top = fmaxf(s.top, x[i]); " + (
    "s.z1 += rap_ex2(RAP_FMA(m1, x[i], -m0)); }"
)
_FUSED_WEIGHT = "for (int i = 0; i < 4; i++) " + (
    "s.z1 = RAP_FMA(s0, rap_ex2(RAP_FMA(m1, x[i], -m0)), s.z1);"
)
_WIDE = "float x[8]; wide(in + N, x); for (int i = 0; i < 8; i++) "
_QUERY = _WIDE + "ace_pair_add(&v[i], x[i]);"
_KEY = _WIDE + "ace_pair_product(&dot, &v[i], x[i]);"
PROBES = {
    "cde pair, kl": ("cde", 8, _PAIRS + _SWEEP.format("false")),
    "cde pair, entropies and hellinger2 too": ("cde", 8, _PAIRS + _SWEEP.format("true")),
    "cde pair, js and tv": (
        "cde",
        8,
        _PAIRS + "cde_mix_add(&mix, &k, &k, a[i], b[i]);",
    ),
    "ace term, log-sum-exp": (
        "ace",
        4,
        _FOUR + "for (int i = 0; i < 4; i++) s.z1 += x[i];",
    ),
    "ace term, folded": (
        "ace",
        4,
        _FOUR + "s.z1 = RAP_FMA(s0, x[0], s.z1); s.z0 = RAP_FMA(s0, x[1], s.z0); "
        "s.s1 = RAP_FMA(s0, x[2], s.s1); s.s0 = RAP_FMA(s0, x[3], s.s0);",
    ),
    "ace weight, column": (
        "ace",
        1,
        "rap_add_exact(&s.z1, &s.z0, rap_logf(((const float *)in)[32 * N]));",
    ),
    "ace term, fused log-sum-exp": ("ace_tensor", 4, _FUSED + _FUSED_LSE),
    "ace term, fused weight": ("ace_tensor", 4, _FUSED + _FUSED_WEIGHT),
    "ace dimension of a query, added": ("ace_linear", 8, _QUERY),
    "ace dimension of a key, multiplied": ("ace_linear", 8, _KEY),
}

PROBE = """
#include "{source}"
typedef struct {{ float z1, z0, s1, s0, u1, u0, b, top; }} probe_sums;
RAP_HD void
wide(const uint4 *at, float *x)
{{
    rap_u128 a = rap_load128(at);
    rap_widen2(a.x, RAP_BF16, x); rap_widen2(a.y, RAP_BF16, x + 2);
    rap_widen2(a.z, RAP_BF16, x + 4); rap_widen2(a.w, RAP_BF16, x + 6);
}}
extern "C" __global__ void
probe(const uint4 *in, float *out, float m1, float m0, float s0)
{{
    const float least = rap_exp2f_least();
    {sums} s = {{m1, m0, s0, m1, m0, s0, m1, m0}};
    {extra}
    in += threadIdx.x * 64;
    {pieces}
    out[threadIdx.x] = s.z1 + s.z0 + s.s1 + s.s0 + s.u1 + s.u0 + s.b + s.top{use};
}}
"""

# what a probe includes, keeps its sums in, declares besides and uses of that
MODULES = {
    "cde": (
        "cde/cde_cuda.cu",
        "cde_sums",
        "cde_norm k = {m1, m0, s0, s0}; cde_mixed mix = {m1, m0};",
        " + mix.js + mix.tv",
    ),
    "ace": ("ace/ace_cuda.cu", "probe_sums", "", ""),
    "ace_tensor": ("ace/ace_tensor_cuda.cu", "probe_sums", "", ""),
    "ace_linear": (
        "ace/ace_linear_cuda.cu",
        "probe_sums",
        "ace_pair dot = {m1, m0}, v[8] = {{m1, m0}, {s0, m0}, {m0, m1}, {m1, s0}, "
        "{m0, s0}, {s0, m1}, {m1, m1}, {s0, s0}};",
        " + dot.hi + dot.lo" + "".join(f" + v[{i}].hi * s0 + v[{i}].lo" for i in range(8)),
    ),
}


def _piece(code: str, number: int) -> str:
    return re.sub(r"\bN\b", str(number), code)


def _machine_code(source: Path, arch: int) -> dict[str, list[tuple[int, str]]]:
    """{kernel: its instructions} of a source, compiled for one architecture."""
    from tests.cuda_emulator import gates

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        subprocess.run(
            [str(gates.nvcc()), *gates.NVCC_FLAGS, "-w", f"-arch=sm_{arch}", "-cubin",
             str(source), "-o", str(cubin)],
            check=True,
        )  # fmt: skip
        sass = subprocess.run(
            [str(gates.cuobjdump()), "-sass", str(cubin)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return gates._functions(sass)


def _length(module: str, code: str, pieces: int, arch: int) -> int:
    """Instructions of a kernel of so many pieces, one after the other."""

    source, sums, extra, use = MODULES[module]
    text = PROBE.format(
        source=source,
        sums=sums,
        extra=extra,
        use=use,
        pieces="\n".join("{" + _piece(code, i) + "}" for i in range(pieces)),
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text(text)
        code = _machine_code(source, arch)["probe"]
    end = next(i for i, (_, instruction) in enumerate(code) if "EXIT" in instruction)
    return end + 1


def _slice(arch: int) -> float:
    """Instructions a score for sixteen of its dimensions: the loop with the products in the
    kernel itself, 32 by 64 scores a warp."""
    from tests.cuda_emulator import gates

    source = ROOT / "csrc" / "ace" / "ace_tensor_cuda.cu"
    code = _machine_code(source, arch)["rap_fused_fold_bf16"]
    (loop,) = (x for x in gates.innermost_loops(code) if any("HMMA" in i for i in x))
    return len(loop) / 64


def count() -> dict[str, dict[str, float]]:
    """{probe: {sm: instructions an element}}; -fmad=false as built."""
    counted = _count_probes()
    counted["ace score, sixteen dimensions"] = {
        f"sm_{gpu.arch}": _slice(gpu.arch) for gpu in GPUS
    }
    return counted


def _count_probes() -> dict[str, dict[str, float]]:
    return {
        name: {
            f"sm_{gpu.arch}": (
                _length(module, code, 6, gpu.arch) - _length(module, code, 2, gpu.arch)
            )
            / (4 * elements)
            for gpu in GPUS
        }
        for name, (module, elements, code) in PROBES.items()
    }
