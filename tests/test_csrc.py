"""The C source, linted from pytest: the rules of the house that no compiler checks."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import rap
from rap import _C, divergences, ops, reference

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
OWN = sorted(
    p
    for pattern in ("*.[ch]", "*.cu")
    for p in CSRC.rglob(pattern)
    if "third_party" not in p.parts
)
KERNELS = ("cde", "ace", "drm")
KERNEL_FILES = (
    "{}.h",  # contract
    "{}_check.c",  # arguments
    "{}_math.h",  # formulas that CPU and CUDA share
    "{}_kernel.h",  # CPU loops, once per instruction set
    "{}_cpu.c",
    "{}_cuda.h",  # what launcher and device code share
    "{}_cuda.c",
    "{}_cuda.cu",
    "{}_py.c",  # binding
)
PYTHON_FILES = {
    f"{stem}.{kind}"
    for stem in ("array", "binding", "call", "cuda_call", "cuda_py", "module")
    for kind in "ch"
}
PYTHON_FILES |= {f"{kernel}_py.c" for kernel in KERNELS}


def code_of(path: Path) -> str:
    """The file without comments and string literals."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


def functions(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of each function body at column 0."""
    found, start, name = [], None, ""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"^[a-zA-Z_]\w*\(", line):
            name = line.split("(")[0]
        if line == "{":
            start = number
        if line == "}" and start is not None:
            found.append((name, number - start))
            start = None
    return found


def test_there_is_source_and_no_cplusplus():
    assert len(OWN) > 20
    assert not [p for p in CSRC.rglob("*") if p.suffix in (".cc", ".cpp", ".cxx", ".hpp")]


@pytest.mark.parametrize("path", OWN, ids=lambda p: str(p.relative_to(CSRC)))
def test_rules(path):
    code = code_of(path)
    assert path.read_text().startswith("/* SPDX-License-Identifier: Apache-2.0")
    assert not re.search(r"\b(printf|fprintf|exit|abort|system|sprintf|strcpy)\s*\(", code)
    if path.name not in ("status.c", "parallel.c"):  # rap_alloc, and the pool itself
        assert not re.search(r"\b(malloc|calloc|realloc|free)\s*\(", code)
    if path.name not in PYTHON_FILES:
        assert not re.search(r"#include\s*<Python.h>|\bPy[A-Z_]", path.read_text())
    assert not re.search(r"\b(cuda[A-Z]|cu[A-Z]\w+\()", code)  # no runtime, no driver calls
    for line in path.read_text().splitlines():
        assert len(line) <= 100 and "\t" not in line


def test_functions_are_short():
    lengths = sorted(n for p in OWN for _, n in functions(p))
    assert lengths[len(lengths) // 2] <= 20, "median"
    longest = max((n, name, p.name) for p in OWN for name, n in functions(p))
    assert longest[0] <= 80, longest


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_the_same_files_and_its_name_runs_through(kernel):
    files = {p.name for p in (CSRC / kernel).iterdir()}
    assert {name.format(kernel) for name in KERNEL_FILES} <= files
    assert all(name.startswith(kernel) for name in files), "a part of it: KERNEL_PART"
    assert "CONTRACT" in (CSRC / kernel / f"{kernel}.h").read_text()
    for module in (rap, ops, reference, _C):
        assert callable(getattr(module, kernel))
    assert f"def {kernel}(" in (ROOT / "rap" / "_C.pyi").read_text()
    assert (ROOT / "tests" / f"test_{kernel}.py").exists()
    assert (ROOT / "benchmarks" / f"bench_{kernel}.py").exists()


def test_the_product_has_the_files_of_a_kernel_without_a_binding():
    files = {p.name for p in (CSRC / "gemm").iterdir()}
    without = ("{}_check.c", "{}_math.h", "{}_py.c")  # no arguments of Python's
    assert {n.format("gemm") for n in KERNEL_FILES if n not in without} <= files
    assert all(name.startswith("gemm") for name in files)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_cpu_and_cuda_share_their_formulas(kernel):
    for name in ("{}_kernel.h", "{}_cuda.cu"):
        text = (CSRC / kernel / name.format(kernel)).read_text()
        assert f'#include "{kernel}_math.h"' in text, name


def defined_symbols(path: Path) -> set[str]:
    """Names with external linkage that a .c file defines: rap_* and PyInit_*, the return
    type on a line of its own (PEP 7), and constants."""
    code = code_of(path)
    found = set(re.findall(r"^(?!static)[^\n#]*\n((?:rap_|PyInit_)\w+)\(", code, re.M))
    return found | set(re.findall(r"^#define RAP_ISA_\w*TABLE (rap_\w+)", code, re.M))


def includes(path: Path) -> set[Path]:
    """The files of csrc/ that become part of this unit, itself among them."""
    found, queue = {path}, [path]
    while queue:
        at = queue.pop()
        for name in re.findall(r'^\s*#\s*include "([^"]+)"', at.read_text(), re.M):
            to = (at.parent / name).resolve()
            if to.is_file() and to not in found:
                found.add(to)
                queue.append(to)
    return found


def unit_graph() -> dict[str, set[str]]:
    """Of each translation unit those whose symbols its text, or a header's inline
    functions, may use. A prototype in a header is no use."""
    units = [p for p in OWN if p.suffix == ".c"]
    home = {symbol: p for p in units for symbol in defined_symbols(p)}
    graph: dict[str, set[str]] = {}
    for path in units:
        text = code_of(path)
        for header in includes(path) - {path}:
            # bodies of functions only: prototypes and types stand at column 0
            text += "\n".join(
                line for line in code_of(header).splitlines() if line.startswith(" ")
            )
        used = {home[w] for w in set(re.findall(r"\brap_\w+", text)) if w in home}
        graph[path.name] = {p.name for p in used - {path}}
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """One cycle, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return []
        for after in sorted(graph.get(node, ())):
            if found := visit(after, [*path, node]):
                return found
        done.add(node)
        return []

    return next((c for node in sorted(graph) if (c := visit(node, []))), [])


def test_no_cycle_between_translation_units():
    graph = unit_graph()
    assert {"binding.c", "cuda_call.c", "ace_cpu.c"} <= graph["ace_py.c"] | {"ace_py.c"}
    assert "status.c" in graph["parallel.c"] and "array.c" in graph["cuda_call.c"]
    assert cycle_of(graph) == []


def test_a_cycle_is_found():
    assert cycle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_of({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    graph = unit_graph()
    graph["binding.c"] |= {"module.c"}  # what was once true
    assert cycle_of(graph)


def test_the_enum_of_divergences_is_the_list_of_names():
    text = (CSRC / "cde" / "cde.h").read_text()
    body = re.search(r"enum \{([^}]*RAP_CDE_OUTPUTS)\s*\}", text)[1]
    names = [n.strip().removeprefix("RAP_CDE_").lower() for n in body.split(",")]
    assert tuple(names) == (*divergences.CDE_OUTPUTS, "outputs")
    assert _C.CDE_OUTPUTS == len(divergences.CDE_OUTPUTS)
    answers = re.findall(
        r"value\[RAP_CDE_(\w+)\] =", (CSRC / "cde" / "cde_math.h").read_text()
    )
    assert sorted(map(str.lower, answers)) == sorted(divergences.CDE_OUTPUTS)
    ranked = {n for n in divergences.CDE_COLUMNS if not n.startswith("entropy")}
    assert set(divergences.DIVERGENCES) == ranked
    doubles = re.search(r"typedef struct rap_cde_state \{(.*?)\}", code_of(
        CSRC / "cde" / "cde.h"), re.S)[1]  # fmt: skip
    fields = len(re.findall(r"\w+\s*(?=[,;])", doubles))
    assert f"sizeof(rap_cde_state) == {fields} * sizeof(double)" in text


def test_headers_compile_alone(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    headers = [p for p in OWN if p.suffix == ".h" and p.name not in PYTHON_FILES]
    for header in headers:
        if header.name.endswith(("_kernel.h", "device.h")) or header.name == "table.h":
            continue  # bodies: once per instruction set; what .cu files are written in
        unit = tmp_path / "alone.c"
        unit.write_text(f'#include "{header}"\n')
        done = subprocess.run(
            [compiler, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Werror",
             "-Wno-unused-function", "-fsyntax-only", str(unit)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (header.name, done.stderr)


def needed_of_glibc(library: Path, tools: str = "") -> dict[str, tuple[int, ...]]:
    """{function: version of glibc} of what a shared library asks for."""
    objdump = shutil.which(f"{tools}objdump")
    if objdump is None:
        pytest.skip("no objdump on this machine")
    done = subprocess.run([objdump, "-T", library], capture_output=True, text=True)
    found = re.findall(r"\*UND\*.*GLIBC_([\d.]+)\)? +(\w+)", done.stdout)
    return {name: tuple(map(int, version.split("."))) for version, name in found}


OLDEST_GLIBC = (2, 17)
PINNED = re.compile(r'RAP_OLDER\((\w+), "([\d.]+)"\)')


def test_what_newer_versions_of_glibc_have_is_asked_for_in_an_old_one():
    """csrc/glibc.h names every function of the extension that glibc gave a new version."""
    pinned = dict(PINNED.findall((CSRC / "glibc.h").read_text()))
    ours = needed_of_glibc(Path(_C.__file__))
    new = {name for name, version in ours.items() if version > OLDEST_GLIBC}
    assert len(ours) > 20 and new <= set(pinned)
    assert all(tuple(map(int, v.split("."))) <= OLDEST_GLIBC for v in pinned.values())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_gcc_binds_the_old_versions_of_glibc(machine, tmp_path):
    """For each machine that a wheel is made for, by its compiler or a cross compiler."""
    tools = "" if machine == platform.machine() else f"{machine}-linux-gnu-"
    if shutil.which(f"{tools}gcc") is None:
        pytest.skip(f"no {tools}gcc on this machine")
    pinned = dict(PINNED.findall((CSRC / "glibc.h").read_text()))
    if machine == "aarch64":
        pinned = dict.fromkeys(pinned, "2.17")
    unit, made = tmp_path / "all.c", tmp_path / "all.so"
    names = sorted(pinned)
    unit.write_text(
        "#include <dlfcn.h>\n#include <math.h>\n#include <pthread.h>\n#include <signal.h>\n"
        f"void *all[] = {{{', '.join(f'(void *){name}' for name in names)}}};\n"
    )
    subprocess.run(
        [f"{tools}gcc", "-std=c11", "-D_GNU_SOURCE", "-fPIC", "-shared", "-include",
         CSRC / "glibc.h", unit, "-o", made, "-lm", "-lpthread", "-ldl"],
        check=True,
    )  # fmt: skip
    got = needed_of_glibc(made, tools)
    want = {name: tuple(map(int, pinned[name].split("."))) for name in names}
    assert {name: got[name] for name in names} == want


def test_only_the_init_function_is_exported():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on this machine")
    done = subprocess.run(
        [nm, "-D", "--defined-only", _C.__file__], capture_output=True, text=True
    )
    symbols = [line.split()[-1] for line in done.stdout.splitlines()]
    assert symbols == ["PyInit__C"]


def test_scalar_maths_is_within_one_ulp(tmp_path):
    """exp2 and log over float32, every 11th value of the range in use, against double."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    (tmp_path / "ulp.c").write_text(ULP_PROGRAM)
    kinds = {"-DRAP_NO_FMA": 1.25}  # every product rounds once more
    if "avx2" in _C.isa_names():
        kinds["-mfma"] = 1.0
    for flag, bound in kinds.items():
        subprocess.run(
            [compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-ffp-contract=off", flag,
             f"-I{CSRC}", str(tmp_path / "ulp.c"), "-o", str(tmp_path / "ulp"), "-lm"],
            check=True,
        )  # fmt: skip
        done = subprocess.run(
            [tmp_path / "ulp", "11"], capture_output=True, text=True, check=True
        )
        worst = dict(line.split() for line in done.stdout.splitlines())
        assert float(worst["exp2"]) <= bound and float(worst["log"]) <= bound, (flag, worst)
        assert worst["f16"] == worst["nan"] == worst["tail"] == "0"


ULP_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "hd.h"

static double
ulps(float y, double truth)
{
    int e;

    frexpf((float)truth, &e);
    return fabs(y - truth) / ldexp(1.0, e - 24);
}

int
main(int argc, char **argv)
{
    const uint32_t step = (uint32_t)atoi(argv[argc - 1]);
    const float least = rap_exp2f_least();
    double exp2_worst = 0, log_worst = 0;
    int wrong = 0, lost = 0, tail = 0;

    for (uint32_t u = 0x80000000u; u <= rap_bits(-126.0f); u += step) {
        float x = rap_from_bits(u);
        double d = ulps(rap_exp2f(x, least), exp2(x));
        exp2_worst = d > exp2_worst ? d : exp2_worst;
    }
    for (uint32_t u = 0x00800000u; u < 0x7f800000u; u += step) {
        float x = rap_from_bits(u);
        double d = x == 1 ? fabs(rap_logf(x)) : ulps(rap_logf(x), log(x));
        log_worst = d > log_worst ? d : log_worst;
    }
    for (uint32_t h = 0; h < 65536; h++) {
        int e = (h >> 10) & 31, m = h & 1023;
        double x = e == 31 ? (m ? NAN : INFINITY)
                           : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        float got = rap_f16_to_f32((uint16_t)h);
        x = h & 0x8000 ? -x : x;
        wrong += !(got == x || (got != got && x != x));
    }
    for (uint32_t u = 0x7f800001u; u < 0x7fffffffu; u += 9973) {
        float x = rap_exp2f(rap_from_bits(u), least);
        lost += x == x;
    }
    for (uint32_t u = rap_bits(-126.5f) + 1; u <= 0xff800000u; u += step) {
        tail += rap_exp2f(rap_from_bits(u), least) != 0;
    }
    tail += rap_exp2f(-INFINITY, least) != 0;
    printf("exp2 %g\nlog %g\nf16 %d\nnan %d\ntail %d\n", exp2_worst, log_worst, wrong,
           lost, tail);
    return 0;
}
"""


def test_a_divergence_is_clamped_within_its_error_bound_only(tmp_path):
    """-1e-6 is rounding and becomes 0; -1e-3 is a defect and must stay to be seen."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    (tmp_path / "clamp.c").write_text(CLAMP_PROGRAM)
    sources = [CSRC / name for name in ("cde/cde_cpu.c", "parallel.c", "status.c")]
    subprocess.run(
        [compiler, "-std=c11", "-D_GNU_SOURCE", f"-I{CSRC}", str(tmp_path / "clamp.c"),
         *map(str, sources), "-o", str(tmp_path / "clamp"), "-lm", "-lpthread"],
        check=True,
    )  # fmt: skip
    done = subprocess.run([tmp_path / "clamp"], capture_output=True, text=True, check=True)
    small, large, over, far = (float(x) for x in done.stdout.split())
    assert small == 0 and large == pytest.approx(-1e-3, rel=1e-6)
    assert over == 1 and far == pytest.approx(1.001)


CLAMP_PROGRAM = r"""
#include <stdio.h>
#include "cde/cde_math.h"

static double
finish(double kl, double tv, int output)
{
    double out[RAP_CDE_OUTPUTS] = {0};
    rap_cde_state state = {.z1 = 1, .z0 = 1, .b = 1, .tv = tv};

    state.s1 = kl * RAP_LOG2E;
    rap_cde_answer(&state, ~0u, out, 1);
    return out[output];
}

int
main(void)
{
    printf("%.17g %.17g %.17g %.17g", finish(-1e-6, 0, RAP_CDE_KL),
           finish(-1e-3, 0, RAP_CDE_KL), finish(0, 1 + 1e-7, RAP_CDE_TV),
           finish(0, 1.001, RAP_CDE_TV));
    return 0;
}
"""
