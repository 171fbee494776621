"""Kernels on guarded memory, and arrays that change between the check and their use.

A shim takes the place of posix_memalign, from which the kernels have all their memory
(status.c): a block ends at a page that may not be touched, is full of NaN, and its pages
go when it is freed. A write or read past the end, one after the free, and a sum that begins
with what was there are then seen in any build, without a sanitizer. Inputs end at such a
page, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST 256
#define PAGE ((size_t)4096)
#define MARK 0xA5

static struct { char *base, *block; size_t size, before, mapped; } taken[MOST];
static int armed, count;
static int64_t *poke_at, poke_value;

void arm(int on) { armed = on; count = 0; }
int blocks(void) { return count; }
int alive(void)
{
    int n = 0;
    for (int i = 0; i < MOST; i++) n += taken[i].block != NULL;
    return n;
}

/* Memory that ends at a page that may not be touched; for inputs, never freed. */
void *guarded(size_t size)
{
    const size_t pages = (size + PAGE - 1) / PAGE * PAGE;
    char *base = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    mprotect(base + pages, PAGE, PROT_NONE);
    return base + pages - size;
}

/* At the next call: the kernel has checked its arrays then, and has not used them. */
void poke(int64_t *at, int64_t value) { poke_at = at; poke_value = value; }

int posix_memalign(void **at, size_t alignment, size_t size)
{
    const size_t room = (size + 63) / 64 * 64, pages = (room + PAGE - 1) / PAGE * PAGE;
    int i = 0;

    if (poke_at != NULL) { *poke_at = poke_value; poke_at = NULL; }
    while (i < MOST && taken[i].block != NULL) i++;
    if (!armed || i == MOST) {
        *at = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
        return *at == NULL ? ENOMEM : 0;
    }
    taken[i].mapped = pages + PAGE;
    taken[i].base = mmap(NULL, taken[i].mapped, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (taken[i].base == MAP_FAILED) { taken[i].base = NULL; return ENOMEM; }
    mprotect(taken[i].base + pages, PAGE, PROT_NONE);
    taken[i].before = pages - room;
    taken[i].size = size;
    taken[i].block = taken[i].base + taken[i].before;
    memset(taken[i].base, MARK, pages);
    memset(taken[i].block, 0xFF, size);
    count++;
    *at = taken[i].block;
    return 0;
}

static void check(const char *p, size_t n)
{
    static const char said[] = "guard: a kernel wrote beside its memory\n";
    for (size_t j = 0; j < n; j++) {
        if ((unsigned char)p[j] != MARK) {
            (void)!write(2, said, sizeof(said) - 1);
            abort();
        }
    }
}

void free(void *p)
{
    static void (*next)(void *);
    if (next == NULL) next = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    for (int i = 0; p != NULL && i < MOST; i++) {
        if (taken[i].block == p) {
            check(taken[i].base, taken[i].before);
            check(taken[i].block + taken[i].size,
                  taken[i].mapped - PAGE - taken[i].before - taken[i].size);
            taken[i].block = NULL;
            munmap(taken[i].base, taken[i].mapped);
            return;
        }
    }
    next(p);
}
"""

CALLS = """
import ctypes, sys
import numpy as np, rap
from rap import _C
shim = ctypes.CDLL(sys.argv[1])
r = np.random.default_rng(0)
def some(*shape, dtype=np.float32):
    return r.normal(size=shape).astype(dtype)
def pairs(*shape):
    import ml_dtypes
    return r.normal(size=shape).astype(ml_dtypes.bfloat16)
shim.guarded.argtypes, shim.guarded.restype = [ctypes.c_size_t], ctypes.c_void_p
def at_end(x):
    if not isinstance(x, np.ndarray) or not x.nbytes:
        return x
    memory = (ctypes.c_char * x.nbytes).from_address(shim.guarded(x.nbytes))
    y = np.ndarray(x.shape, x.dtype, memory)
    y[...] = x
    return y
calls = {}
for name, (hq, hkv, length, dim, dtype) in {
    "small": (2, 1, 33, 7, np.float32), "half": (4, 2, 75, 24, np.float16),
    "deep": (1, 1, 60, 515, np.float32), "one": (1, 1, 1, 1, np.float16),
    "long": (2, 2, 1501, 5, np.float32),
}.items():
    q, k = some(hq, length, dim, dtype=dtype), some(hkv, length, dim, dtype=dtype)
    lse, image = r.normal(size=(hq, length)) + 5, r.random(length) < 0.5
    for heads in ("mean", "max", "each"):
        for given in (None, lse):
            for stats in (True, False):
                calls[name, heads, given is None, stats] = (
                    rap.ace, (q, k), dict(
                        response_start=length // 3, heads=heads, lse=given, stats=stats,
                        columns="all", image_mask=image, min_rows=1,
                        window=length // 2 or 1))
q, k = some(2, 130, 9), some(1, 130, 9)
packed = dict(cu_seqlens=[0, 0, 50, 51, 130], response_start=[0, 20, 0, 79], min_rows=1)
calls["packed"] = rap.ace, (q, k), packed
for vocab in (1, 31, 1025, 5000):
    for dtype in (np.float32, np.float16):
        l1, l0 = some(3, vocab, dtype=dtype), some(3, vocab, dtype=dtype)
        calls["cde", vocab, dtype] = rap.cde, (l1, l0), dict(targets=[0, vocab - 1, 0])
sizes = {"a": (130, 700, 33), "b": (1, 1, 1), "c": (40, 481, 300)}
for name, (tokens, vocab, dim) in sizes.items():
    for make in (some, pairs, lambda *s: some(*s, dtype=np.float16)):
        h1, h0, w = make(tokens, dim), make(tokens, dim), make(vocab, dim)
        for memory in (1, 4 * 480 * dim + 20 * 8 * 768, 1 << 24):
            calls["linear", name, make, memory] = rap.linear_cde, (h1, h0, w), dict(
                bias=w[:, 0].copy(), memory=memory, targets=[0] * tokens)
n = 1 << 17
d, g = r.integers(0, 6, n) / 5, r.random(n)
low = r.random(n) * 0.1
tied = r.random(1 << 18)
low[:: low.size // (low.size // 16 + 1)] = 0.9
calls["drm"] = rap.drm, (d, 30_000), dict(gain=g, eligible=g < 0.9)
calls["drm all"] = rap.drm, (d, n), dict(gain=g)
calls["drm f32"] = rap.drm, (g.astype(np.float32), n // 3), {}
calls["drm few"] = rap.drm, (g[:5], 3), {}
calls["drm twice"] = rap.drm, (low, 60_000), {}
calls["drm narrowed"] = rap.drm, (np.full(tied.size, 0.5), 1000), dict(gain=tied)
def bits(answer):
    fields = answer if isinstance(answer, tuple) else (answer,)
    return [None if x is None else x.tobytes() for x in fields]
for isa in _C.isa_names():
    _C.isa(isa)
    for name, (function, arrays, options) in calls.items():
        want = bits(function(*arrays, **options, threads=1))
        arrays = [at_end(x) for x in arrays]
        options = {key: at_end(x) for key, x in options.items()}
        for threads in (1, 3):
            shim.arm(1)
            got = bits(function(*arrays, **options, threads=threads))
            taken = shim.blocks()
            shim.arm(0)
            assert got == want, (isa, name, threads)
            assert shim.alive() == 0, (isa, name, threads)
            assert taken > 0 or function is rap.cde, name
print("whole")
"""

CHANGES = """
import ctypes, itertools, sys
import numpy as np, rap
from rap import _C
shim = ctypes.CDLL(sys.argv[1])
shim.poke.argtypes = [ctypes.c_void_p, ctypes.c_int64]
r = np.random.default_rng(0)
q = r.normal(size=(2, 90, 8)).astype(np.float32)
lse = np.full((2, 90), 5.0)

def ace(cu, start, given):
    out = np.empty((4, 2, 2)), np.empty((2, 2), np.int64), np.empty((2, 90))
    options = (0.3, 2.0, 1, 0, 0, 2, 3, 8, False, True, given is None)
    _C.ace(q, q, cu, start, None, None, given, *out, options, 2)
    return [x.tobytes() for x in out]

cu, start = np.array([0, 40, 90]), np.array([10, 20])
far = 1 << 40
ends = ((0, -5), (0, 41), (1, far), (1, -far), (2, 91), (2, far))
changes = [(cu, i, value) for i, value in ends]
changes += [(start, i, x) for i, x in itertools.product((0, 1), (51, far, -1, -far))]
for array, i, value in changes:
    for given in (None, lse):
        want, was = ace(cu, start, given), int(array[i])
        shim.poke(array.ctypes.data + 8 * i, value)
        try:
            ace(cu, start, given)
            raise SystemExit(f"{i} became {value}, and nobody noticed")
        except rap.RapInputError as error:
            assert "offsets changed during the call" in str(error), error
        array[i] = was
        assert ace(cu, start, given) == want

# a target that is outside by then is nobody's: NaN, as on a device
h = r.normal(size=(3, 8)).astype(np.float32)
w = r.normal(size=(50, 8)).astype(np.float32)
names = rap.CdeResult._fields
every = (1 << len(names)) - 1
for value in (50, far, -1, -far):
    targets, out = np.array([3, 4, 5]), np.zeros((_C.CDE_OUTPUTS, 3))
    shim.poke(targets.ctypes.data + 8, value)
    _C.linear_cde(h, h, w, None, targets, out, 1.0, 0.0, 1 << 20, every, 1)
    logp = out[names.index("logp1")]
    assert targets[1] == value and np.isnan(logp[1]) and np.isfinite(logp[[0, 2]]).all()
print("whole")
"""

# cde allocates nothing: its target is changed by a signal handler, which a long call lets
# in between two rows; the row of the changed one comes last.
LATE = """
import signal
import numpy as np, rap
from rap import _C
rows, vocab = 3_000_000, 64
l1 = np.broadcast_to(np.arange(vocab, dtype=np.float32), (rows, vocab))
targets = np.zeros(rows, np.int64)
out = np.zeros((_C.CDE_OUTPUTS, rows))
names = rap.CdeResult._fields
want = 1 << names.index("logp1") | 1 << names.index("js")
def change(number, frame):
    targets[-1] = FAR
signal.signal(signal.SIGVTALRM, change)
for FAR in (1 << 40, -(1 << 40), vocab, -1):
    targets[:], out[:] = 0, 0
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
    _C.cde(l1, l1, targets, out, want, 1)
    logp = out[names.index("logp1")]
    assert targets[-1] == FAR, "the call was too short to be changed"
    assert np.isnan(logp[-1]) and np.isfinite(logp[:-1]).all(), logp[-3:]
print("whole")
"""


LATE_LINEAR = """
import signal
import numpy as np, rap
from rap import _C
rows, vocab = 200_000, 2_000
h = np.broadcast_to(np.ones((1, 16), np.float32), (rows, 16))
w = np.ones((vocab, 16), np.float32)
targets = np.zeros(rows, np.int64)
out = np.zeros((_C.CDE_OUTPUTS, rows))
at = rap.CdeResult._fields.index("logp1")
def change(number, frame):
    targets[-1] = FAR
signal.signal(signal.SIGVTALRM, change)
for FAR in (1 << 40, -(1 << 40), vocab, -1):
    targets[:] = 0
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
    _C.linear_cde(h, h, w, None, targets, out, 1.0, 0.0, 64 << 20, 1 << at, 1)
    logp = out[at]
    assert targets[-1] == FAR, "the call was too short to be changed"
    assert np.isnan(logp[-1]) and np.isfinite(logp[:-1]).all(), logp[-3:]
print("whole")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    folder = tmp_path_factory.mktemp("guard")
    source, made = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    flags = ["-O1", "-fno-builtin", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, source, "-o", made, "-ldl"], check=True)
    return made


def whole(code: str, *arguments: object, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **variables},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout == "whole\n"


def test_kernels_stay_inside_their_memory_and_read_what_they_wrote(shim):
    whole(CALLS, shim, LD_PRELOAD=str(shim))


def test_fault_28_offsets_that_change_between_check_and_use(shim):
    whole(CHANGES, shim, LD_PRELOAD=str(shim))


def test_fault_28_a_target_of_cde_that_changes_during_the_call():
    whole(LATE)


def test_fault_28_a_target_of_linear_cde_that_changes_during_the_call():
    whole(LATE_LINEAR)
