"""Where memory ends and where 32 bits do: each allocation fails once, and arrays of more
than 2^31 elements (mapped, not filled) are indexed rightly."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import rap

# The kernels take all their memory from posix_memalign (status.c; test_csrc.py holds them
# to it). The n-th call after arm(n) fails; blocks taken since then and not freed are alive.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

static void *block[64];
static int armed, fail_at, taken;

void arm(int n) { armed = 1; fail_at = n; taken = 0; }
int disarm(void) { armed = 0; return taken; }
int alive(void)
{
    int n = 0;
    for (int i = 0; i < 64; i++) n += block[i] != NULL;
    return n;
}

int posix_memalign(void **at, size_t alignment, size_t size)
{
    if (armed && ++taken == fail_at) return ENOMEM;
    *at = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    for (int i = 0; armed && i < 64; i++)
        if (block[i] == NULL) { block[i] = *at; break; }
    return *at == NULL ? ENOMEM : 0;
}

void free(void *p)
{
    static void (*next)(void *);
    if (next == NULL) next = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    for (int i = 0; p != NULL && i < 64; i++)
        if (block[i] == p) block[i] = NULL;
    next(p);
}
"""

CALLS = """
import ctypes, sys
import numpy as np, rap
shim = ctypes.CDLL(sys.argv[1])
r = np.random.default_rng(0)
l1, l0 = (r.normal(size=(5, 3000)).astype(np.float32) for _ in range(2))
h, w = (r.normal(size=(n, 32)).astype(np.float16) for n in (9, 700))
q = r.normal(size=(2, 90, 16)).astype(np.float16)
d, g = r.integers(0, 6, 1 << 17) / 5, r.random(1 << 17)
low = r.random(1 << 17) * 0.1
tied = r.random(1 << 18)  # too many in one bucket to be stored
low[:: low.size // (low.size // 16 + 1)] = 0.9  # misleads the sample: counted twice
image = np.arange(90) < 20
lse = np.ones((2, 90))
calls = {
    "cde": lambda: rap.cde(l1, l0, threads=1),
    "linear_cde": lambda: rap.linear_cde(h, h[::-1], w, bias=w[:, 0].copy(), threads=1),
    "ace": lambda: rap.ace(q, q, response_start=30, image_mask=image, threads=1),
    "ace linear": lambda: rap.ace(
        q, q, response_start=30, heads="each", stats=False, lse=lse, threads=1),
    "drm": lambda: rap.drm(d, 30_000, gain=g, threads=1),
    "drm twice": lambda: rap.drm(low, 60_000, threads=1),
    "drm narrowed": lambda: rap.drm(np.full(tied.size, 0.5), 1000, gain=tied, threads=1),
}
def bits(answer):
    fields = answer if isinstance(answer, tuple) else (answer,)
    return [None if x is None else x.tobytes() for x in fields]
for name, call in calls.items():
    want = bits(call())
    shim.arm(0)
    call()
    sites = shim.disarm()
    assert shim.alive() == 0, (name, "leaks")
    for n in range(1, sites + 1):
        shim.arm(n)
        try:
            call()
            raise SystemExit(f"{name}: allocation {n} failed and nobody noticed")
        except MemoryError as error:
            assert "out of memory" in str(error)
        finally:
            shim.disarm()
        assert shim.alive() == 0, (name, n, "leaks")
        assert bits(call()) == want, (name, n)
    print(name, sites)
"""


def test_each_allocation_that_fails_is_a_memory_error_and_nothing_leaks(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run(
        [compiler, "-O1", "-fno-builtin", "-shared", "-fPIC", source, "-o", shim, "-ldl"],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", CALLS, shim],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sites = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    least = {
        "cde": 0, "linear_cde": 5, "ace": 6, "ace linear": 3,
        "drm": 4, "drm twice": 5, "drm narrowed": 6,
    }  # fmt: skip
    assert {name: int(n) for name, n in sites.items()} == least


def zeros(count: int, dtype: type) -> np.ndarray:
    """Zeros that take no memory until written: pages of one shared zero page."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux: maps more than there is memory")
    size = count * np.dtype(dtype).itemsize
    no_reserve = 0x4000  # Linux; mmap.MAP_NORESERVE is newer than Python 3.11
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    pages = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype)


BEYOND = (1 << 31) + 4097


def test_cde_of_a_row_of_more_than_2_to_the_31():
    l1, l0 = (zeros(BEYOND + 10, np.float16)[None] for _ in range(2))
    l1[0, BEYOND] = 20.0
    got = rap.cde(l1, l0, want=("kl", "logp1", "logp0"), targets=[BEYOND])
    n = l1.shape[1]
    ln_z1, ln_z0 = math.log(n - 1 + math.exp(20)), math.log(n)
    p = math.exp(20 - ln_z1)
    assert got.logp1[0] == pytest.approx(20 - ln_z1, abs=2e-6)
    assert got.logp0[0] == pytest.approx(-ln_z0, abs=2e-6)
    assert got.kl[0] == pytest.approx(p * 20 + ln_z0 - ln_z1, rel=1e-5)


def test_rows_and_heads_that_lie_more_than_2_to_the_31_apart(rng):
    """Every array with a row or head stride of 2^31 elements against its compact copy."""
    space = zeros(BEYOND + 100_000, np.float16)

    def apart(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        space[:100_000] = space[BEYOND : BEYOND + 100_000] = 0
        inner = [2 * math.prod(shape[i + 1 :]) for i in range(1, len(shape))]
        far = as_strided(space, shape, (2 * BEYOND, *inner))
        far[...] = rng.normal(size=shape)
        return far, far.copy()

    far, near = apart(2, 3001)
    other = rng.normal(size=far.shape).astype(np.float16)
    assert rap.cde(far, other).kl.tobytes() == rap.cde(near, other).kl.tobytes()
    h, w = (
        rng.normal(size=(5, 64)).astype(np.float16),
        rng.normal(size=(300, 64)).astype(np.float32),
    )
    far, near = apart(2, 64)
    for a, b in ((far, near), (near, far)):
        got = rap.linear_cde(a, b, w)
        assert got.kl.tobytes() == rap.linear_cde(near, near, w).kl.tobytes()
    assert rap.linear_cde(h, h[::-1], far).js.tobytes() == (
        rap.linear_cde(h, h[::-1], near).js.tobytes()
    )
    far, near = apart(2, 50, 16)
    got, truth = (rap.ace(x, x, response_start=20) for x in (far, near))
    assert got.log_psi_columns.tobytes() == truth.log_psi_columns.tobytes()
    assert got.position[0] == truth.position[0]


def test_drm_of_more_than_2_to_the_31_scores():
    d = zeros(BEYOND + 10, np.float32)
    d[[5, BEYOND - 7, BEYOND]] = 0.25, 0.5, 0.75
    assert rap.drm(d, 9).tolist() == [BEYOND, BEYOND - 7, 5]
