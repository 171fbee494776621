"""Static gates on the device code, and that everybody means the same structs.

The table is tests/cuda_emulator/gates.json; ``python -m cuda_emulator.gates --write`` (in
tests/) renews it after a change that was meant.
"""

from __future__ import annotations

import ctypes
import json
import subprocess

import pytest
from cuda_emulator import build, gates
from cuda_emulator.ace import AceLinearParams, AceOptions, AceParams, first_key
from cuda_emulator.ace_tensor import AceTensorParams, chunks_of
from cuda_emulator.cde import CdeParams, MapParams, MeansParams
from cuda_emulator.drm import DrmParams, digits
from cuda_emulator.emulator import F32, F64, Pointer
from cuda_emulator.gemm import StackParams
from test_cuda_widen import WidenParams

# reduce over logits, scores or samples: their loads decide the time
STREAMING = (
    "rap_cde_rows",
    "rap_cde_map",
    "rap_ace_lse",
    "rap_ace_fold",
    "rap_ace_stats",
    "rap_ace_tiles",
    "rap_ace_linear",
    *gates.TENSOR,
    "rap_drm_digit",
    "rap_drm_gather",
    "rap_widen",
    "rap_stack",
)
# sum float64 numbers: three a row of a sample, ten a row of a sample, D + 1 a tile of 32
# rows, the log-sum-exp of each row beside its D dimensions; parts of a row and of a column
DOUBLES_ALLOWED = ("rap_ace_finish", "rap_cde_means", "rap_ace_suffix", "rap_ace_tiles",
                   "rap_fused_reference", "rap_fused_finish")  # fmt: skip
MOST_SPILLS = 0
LEAST_WARPS = 24  # of 48 or 64 an SM holds
LEAST_WARPS_75 = 16  # of 32: two blocks of the sort have the shared memory
MOST_PER_PAIR = 20.0  # beyond about 30 the issue slots decide, not memory
# two a scheduler, each with 64 weights and 64 scores a lane in registers: one multiplies
# while the other takes exponentials
LEAST_TENSOR_WARPS = 8
LEAST_PRODUCTS = 16  # 32 by 64 scores a warp: 16 instructions for sixteen dimensions
MOST_SHARED = 48 * 1024  # more must be asked for with cuFuncSetAttribute


def runs(name: str, arch: int) -> bool:
    """Before sm_80 the kernels on tensor cores are a trap that nobody launches."""
    return arch >= 80 or name not in gates.TENSOR


def least_warps(name: str, arch: int) -> int:
    if name in gates.TENSOR:
        return LEAST_TENSOR_WARPS if runs(name, arch) else 0
    return LEAST_WARPS_75 if arch == 75 else LEAST_WARPS


EACH = [
    pytest.param(arch, id=f"sm_{arch}", marks=() if arch == 90 else pytest.mark.proof)
    for arch in gates.ARCHITECTURES
]
"""An architecture takes 15 seconds to compile for: ``make test`` looks at one."""


@pytest.fixture(scope="module", params=EACH)
def measured(request):
    """(architecture, {kernel: Gate}) as compiled now."""
    if gates.nvcc() is None:
        pytest.skip("needs nvcc")
    if gates.cuobjdump() is None:
        pytest.skip("needs cuobjdump (nvidia-cuda-cuobjdump)")
    if gates.occupancy_header() is None:
        pytest.skip("needs cuda_occupancy.h (nvidia-cuda-runtime)")
    if not gates.known(request.param):
        pytest.skip(f"nvcc {gates.nvcc_version()} does not know sm_{request.param}")
    return request.param, gates.measure(request.param)


def test_gates(measured):
    arch, kernels = measured
    table = gates.read_table()
    expected = table["kernels"][f"sm_{arch}"]
    assert set(kernels) == set(expected)
    for name, gate in kernels.items():
        assert gate.spills <= MOST_SPILLS, name
        assert gate.shared <= MOST_SHARED, name
        assert gate.warps >= least_warps(name, arch), name
        if name in gates.TENSOR and runs(name, arch):
            assert gate.products >= LEAST_PRODUCTS, name
        assert (gate.per_pair > 0) == (name == gates.PAIR_KERNEL), name
        assert gate.per_pair <= MOST_PER_PAIR, name
        if name in STREAMING and runs(name, arch):
            assert gate.loads128 > 0, name
        assert name in DOUBLES_ALLOWED or gate.doubles_in_loops == 0, name
        assert gate.params == expected[name]["params"], name
        if table["nvcc"] == gates.nvcc_version():  # another compiler, other registers
            assert gate.registers <= expected[name]["registers"], name
            assert gate.doubles_in_loops <= expected[name]["doubles_in_loops"], name
            assert gate.warps >= expected[name]["warps"], name


def test_the_table_is_within_the_gates():
    """Also where there is no nvcc."""
    table = gates.read_table()["kernels"]
    assert set(table) == {f"sm_{arch}" for arch in gates.ARCHITECTURES}
    for arch, kernels in table.items():
        assert len(kernels) == len(KERNEL_PARAMS)
        for name, gate in kernels.items():
            least = least_warps(name, int(arch.removeprefix("sm_")))
            assert gate["spills"] == 0 and gate["warps"] >= least
            assert gate["per_pair"] <= MOST_PER_PAIR, name
            assert gate["params"] == ctypes.sizeof(KERNEL_PARAMS[name]), name


def test_the_roofline_page_is_what_its_script_writes():
    from benchmarks import roofline, roofline_counts

    recorded = json.loads(roofline.COUNTS.read_text())
    assert roofline.PAGE.read_text() == roofline.render(recorded)
    assert "prediction" in roofline.PAGE.read_text().splitlines()[2]
    counted = {*roofline_counts.PROBES, "ace score, sixteen dimensions"}
    assert set(recorded["instructions"]) == counted


LOOPS = """
    /*0000*/ S2R R0, SR_TID.X ;
    /*0010*/ LDG.E.128 R4, desc[UR4][R2.64] ;
    /*0020*/ DADD R8, R4, R6 ;
    /*0030*/ LDG.E R4, desc[UR4][R2.64] ;
    /*0040*/ @P2 BRA 0x90 ;
    /*0050*/ FADD R8, R4, R6 ;
    /*0060*/ @P0 BRA 0x30 ;
    /*0070*/ @P1 BRA 0x10 ;
    /*0080*/ EXIT ;
    /*0090*/ IADD R1, R2, R3 ;
    /*00a0*/ BRA 0x50 ;
    /*00b0*/ BRA 0xb0 ;
"""


def test_doubles_are_found_in_inner_loops_only():
    """The outer loop's does not count; a rare path behind the end belongs to its loop."""
    code = gates._functions("Function : k\n" + LOOPS)["k"]
    assert sorted(map(sorted, gates.loops(code))) == [
        [1, 2, 3, 4, 5, 6, 7, 9, 10],
        [3, 4, 5, 6, 9, 10],
    ]
    assert gates._doubles_in_loops(code) == 0
    for single in ("FADD", "IADD"):
        text = LOOPS.replace(single, "DFMA")
        code = gates._functions("Function : k\n" + text)["k"]
        assert gates._doubles_in_loops(code) == 1


# --- the structs in Python are those of the headers --------------------------------------

HEADERS = {
    CdeParams: ("cde/cde_cuda.h", "rap_cde_cuda"),
    MapParams: ("cde/cde_cuda.h", "rap_cde_map_cuda"),
    MeansParams: ("cde/cde_cuda.h", "rap_cde_means_cuda"),
    AceParams: ("ace/ace_cuda.h", "rap_ace_cuda"),
    AceOptions: ("ace/ace_math.h", "rap_ace_options"),
    AceLinearParams: ("ace/ace_linear_cuda.h", "rap_ace_linear_cuda"),
    AceTensorParams: ("ace/ace_tensor_cuda.h", "rap_ace_tensor_cuda"),
    DrmParams: ("drm/drm_cuda.h", "rap_drm_cuda"),
    WidenParams: ("gemm/gemm_widen_cuda.h", "rap_widen_cuda"),
    StackParams: ("gemm/gemm_widen_cuda.h", "rap_stack_cuda"),
}
KERNEL_PARAMS = {
    "rap_cde_rows": CdeParams,
    "rap_cde_map": MapParams,
    "rap_cde_means": MeansParams,
    "rap_widen": WidenParams,
    "rap_stack": StackParams,
    **{f"rap_ace_{n}": AceParams for n in ("start", "lse", "fold", "stats", "columns")},
    "rap_ace_finish": AceParams,
    **{f"rap_ace_{n}": AceLinearParams for n in ("tiles", "suffix", "linear")},
    **{name: AceTensorParams for name in gates.TENSOR},
    **{f"rap_fused_{n}": AceTensorParams for n in ("reference", "finish")},
    **{f"rap_drm_{n}": DrmParams for n in ("start", "digit", "gather", "answer")},
    "rap_drm_sort_tile": DrmParams,
    "rap_drm_merge": DrmParams,
}


def program(tmp_path, text: str) -> str:
    """Output of a C program that sees the headers."""
    if build.compiler() is None:
        pytest.skip("needs gcc")
    includes = {header for header, _ in HEADERS.values()}
    head = "#include <stdio.h>\n" + "".join(f'#include "{h}"\n' for h in sorted(includes))
    (tmp_path / "p.c").write_text(f"{head}int\nmain(void)\n{{\n{text}\nreturn 0;\n}}\n")
    subprocess.run(
        [build.compiler(), "-std=gnu11", "-Wall", "-Werror", f"-I{build.CSRC}",
         tmp_path / "p.c", "-o", tmp_path / "p", "-lm"],
        check=True,
    )  # fmt: skip
    return subprocess.run(
        [tmp_path / "p"], capture_output=True, text=True, check=True
    ).stdout


def test_structs_have_the_offsets_of_the_headers(tmp_path):
    lines, want = [], []
    for cls, (_, name) in HEADERS.items():
        for field, *_ in cls._fields_:
            at = getattr(cls, field)
            lines.append(
                f'printf("%zu %zu\\n", offsetof({name}, {field}), '
                f"sizeof((({name} *)0)->{field}));"
            )
            want.append(f"{at.offset} {at.size}")
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        want.append(str(ctypes.sizeof(cls)))
    assert program(tmp_path, "\n".join(lines)).splitlines() == want


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("gain", [None, F32, F64])
@pytest.mark.parametrize("n", [1, 2047, 2048, 5000, 1 << 30, 1 << 40])
def test_digits_are_those_of_the_header(tmp_path, n, gain, dtype):
    p = DrmParams(n=n, difficulty_dtype=dtype, gain_dtype=gain or 0)
    p.gain = Pointer(0 if gain is None else 1)
    out = program(
        tmp_path,
        f"""rap_drm_cuda p = {{.n = {n}L, .difficulty_dtype = {dtype},
            .gain_dtype = {gain or 0}, .gain = (void *){0 if gain is None else 1}L}};
        for (int i = 0; rap_drm_cuda_digit(&p, i); i++)
            printf("%d %d %d\\n", p.field, p.shift, p.bits);""",
    )
    assert out.splitlines() == [" ".join(map(str, d)) for d in digits(p)]


def test_first_keys_are_those_of_the_header(tmp_path):
    lines, want = [], []
    for key_window, window, columns, lse in (
        (0, 0, 3, 0), (5, 0, 1, 0), (0, 7, 1, 1), (9, 7, 1, 1), (9, 0, 2, 1), (0, 50, 1, 1),
    ):  # fmt: skip
        p = AceParams(
            key_window=key_window, window=window, columns=columns, length=100, start=31
        )
        p.lse = Pointer(lse)
        lines.append(
            f"{{rap_ace_options o = {{.key_window = {key_window}, .window = {window}, "
            f".columns = {columns}}}; for (int r = 31; r < 100; r += 23) "
            f'printf("%d\\n", (int)rap_ace_first_key(&o, {lse}, 100, 31, r) / 4 * 4);}}'
        )
        want += [str(first_key(p, row)) for row in range(31, 100, 23)]
    assert program(tmp_path, "\n".join(lines)).splitlines() == want


def test_shares_of_columns_are_those_of_the_header(tmp_path):
    sizes = [(1, 1), (64, 100), (1024, 4096), (28_672, 32_768), (200_000, 200_000)]
    out = program(
        tmp_path,
        "\n".join(
            f'printf("%d\\n", (int)rap_ace_tensor_chunks({rows}, {length}));'
            for rows, length in sizes
        ),
    )
    assert out.splitlines() == [str(chunks_of(*size)) for size in sizes]
    assert chunks_of(1024, 4096) == 32 and chunks_of(28_672, 32_768) == 4
