"""What must hold for the host side of CUDA, on the fake driver: each check raises where it
does not.

Every check is a program of its own, in which rap finds the fakes. The tests run them on
rap as it is; test_cuda_bugs.py on a copy with one seeded bug (host.py).
"""

from __future__ import annotations

import itertools

from .build import Mutation
from .fake import build
from .host import package

START = """
import ctypes, gc, os
import numpy as np
import rap
from rap import _C
from cuda_emulator.fake import device
from cuda_emulator.fake.device import FAKE, FakeArray, InterfaceArray, count, fail, problem
rng = np.random.default_rng(1)
x, y = (rng.normal(size=(3, 130)).astype(np.float32) for _ in range(2))
truth = rap.cde(x, y, targets=[1, 2, 3])
close = np.testing.assert_allclose
upload = FAKE.cuMemcpyHtoDAsync_v2
upload.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
context = ctypes.c_void_p()
_C.cuda_info()
assert FAKE.cuDevicePrimaryCtxRetain(ctypes.byref(context), 10) == 0

def late(array, stream):
    '''On the device, where it arrives in the order of the stream.'''
    found = InterfaceArray(np.zeros_like(array), stream)
    assert FAKE.cuCtxSetCurrent(context) == 0
    assert upload(found.inner.pointer, array.ctypes.data, array.nbytes, stream) == 0
    assert FAKE.cuCtxSetCurrent(None) == 0
    return found

def refused(kind, text, call, *args, **kwargs):
    with np.testing.assert_raises_regex(kind, text):
        call(*args, **kwargs)

def same(got, want, rtol=1e-4):
    for name, value in zip(got._fields, want):
        if value is not None:
            close(np.asarray(getattr(got, name)), value, rtol=rtol, atol=1e-5, err_msg=name)

def nothing_left():
    rap.cuda.release()
    FAKE.cuDevicePrimaryCtxRelease_v2(10)
    gc.collect()
    FAKE.rap_fake_read(None, 0, 0)
    left = {n: count(n) for n in ("allocations", "retained", "queued", "bound")}
    assert not any(left.values()), left
    assert problem() == "", problem()
"""


def _run(code: str, mutation: Mutation | None, **options) -> None:
    with package(mutation) as root:
        done = build.python(START + code, root=root, **options)
    assert done.returncode == 0, (
        f"exit {done.returncode}: {done.stdout}{done.stderr[-3000:]}"
    )


def streams(mutation: Mutation | None = None) -> None:
    """Work goes on the producer's stream: inputs arrive late, answers and workspace are
    given back in its order."""
    _run(
        """
for i in range(12):
    s = FAKE.rap_fake_stream(0)
    a, b = late(x, s), late(y, s)
    waits = count("waits")
    got = rap.cde(a, b, targets=[1, 2, 3])
    weights = np.array([1.0, 2.0, 0.0])
    mean = rap.cde(a, b, cu_seqlens=[0, 1, 3], weights=weights, want="kl").kl
    assert count("waits") == waits
    same(got, truth)
    close(mean.numpy(), rap.cde(x, y, cu_seqlens=[0, 1, 3], weights=weights).kl, rtol=1e-4)
del a, b, got, mean
nothing_left()
""",
        mutation,
    )


def products(mutation: Mutation | None = None) -> None:
    """linear_cde: views with wide rows on odd addresses, rows that overlap, two dtypes."""
    _run(
        """
wide = rng.normal(size=(3, 75)).astype(np.float32)
w, bias = rng.normal(size=(21, 37)).astype(np.float32), np.ones(21, np.float32)
for i in range(2):
    s = FAKE.rap_fake_stream(0)
    a, b = late(wide, s), late(wide[::-1].copy(), s)
    head = late(w, s)
    for at, to, key in ((0, 37, np.s_[:, :37]), (1, 38, np.s_[:, 1:38])):
        for array in (a, b):
            array.inner.strides, array.shape = (75, 1), (3, 37)
            array.inner.pointer += 4 * at
        want = rap.linear_cde(wide[key], wide[::-1][key], w, softcap=3.0, targets=[1, 2, 3])
        same(rap.linear_cde(a, b, head, softcap=3.0, targets=[1, 2, 3]), want, 1e-3)
        for array in (a, b):
            array.inner.pointer -= 4 * at
odd = rng.normal(size=(21, 38)).astype(np.float32)  # rows of the head on odd addresses
head = late(odd, s)
head.inner.strides, head.shape = (38, 1), (21, 37)
head.inner.pointer += 4
want = rap.linear_cde(wide[:, :37], wide[::-1][:, :37], odd[:, 1:])
same(rap.linear_cde(a, b, head), want, 1e-3)
head.inner.pointer -= 4
half = InterfaceArray(w.astype(np.float16), s)
want = rap.linear_cde(wide[:, :37], wide[::-1][:, :37], w.astype(np.float16), want="kl")
for i in range(5):
    same(rap.linear_cde(a, b, half, want="kl"), want, 1e-3)
flat = FakeArray(np.lib.stride_tricks.as_strided(wide, (3, 37), (8, 4)))
over = np.lib.stride_tricks.as_strided(wide, (3, 37), (8, 4))
same(rap.linear_cde(flat, flat, FakeArray(w)), rap.linear_cde(over, over, w), 1e-3)
for want in ("entropy1", "entropy0"):  # of one branch: multiplied where it lies
    close(getattr(rap.linear_cde(flat, flat, FakeArray(w), want=want), want).numpy(),
          getattr(rap.linear_cde(over, over, w, want=want), want), rtol=1e-3)
del a, b, array, head, half, flat
nothing_left()
""",
        mutation,
    )


FEW = {"RAP_FAKE_THREADS": "32"}
"""Half of the fibers, for half of the time: what is looked at is the host's doing."""

BLOCKS = """
blas = ctypes.CDLL(os.environ["RAP_LIBCUBLASLT"])
blas.rap_fake_blas_count.restype = ctypes.c_long

def now():
    asked = (b"products", b"questions")
    return np.array([count("launches"), *map(blas.rap_fake_blas_count, asked)])

def counted(call):
    before = now()
    result = call()
    return result, now() - before

h1, h0 = (rng.normal(size=(150, 9)).astype(np.float32) for _ in range(2))
w = rng.normal(size=(77, 9)).astype(np.float32)
row = 4 * 128  # bytes of the logits of a row: 77 floats, up to whole 256 bytes
ids = np.arange(150) % 77
"""


def blocks(mutation: Mutation | None = None) -> None:
    """linear_cde by blocks of rows: what a call launches, multiplies and asks cuBLASLt."""
    _run(
        BLOCKS
        + """
a, b, head = FakeArray(h1), FakeArray(h0), FakeArray(w)
want = rap.linear_cde(h1, h0, w, targets=ids)
for rows, blocks in ((150, 1), (1000, 1), (100, 2), (64, 3), (70, 3)):
    for again in range(2):
        got, (launches, products, questions) = counted(lambda: rap.linear_cde(
            a, b, head, targets=ids, memory=2 * rows * row))
        same(got, want)
        assert launches == 2 * blocks and products == blocks, (rows, launches, products)
        assert questions == 0 if again else questions <= 2, (rows, questions)
got, (launches, products, questions) = counted(
    lambda: rap.linear_cde(a, b, head, softcap=3.0, memory=0 * row + 2 * 64 * row))
same(got, rap.linear_cde(h1, h0, w, softcap=3.0))
assert (launches, products, questions) == (9, 3, 0), (launches, products, questions)
assert rap.linear_cde(a, b, head, memory=0, want="kl").kl.numpy().shape == (150,)
del a, b, head, got
nothing_left()
""",
        mutation,
        more=FEW,
    )


def shapes_of_products(mutation: Mutation | None = None) -> None:
    """Ways to multiply are kept for their own shape: depth, width, rows, distances, dtype,
    alignment; on more shapes than are kept."""
    _run(
        BLOCKS
        + """
def agrees(n, vocab, depth, skip=0, wide=0, dtype=np.float32, other=None):
    x1, x0, head = (rng.normal(size=(k, depth + wide + skip)) * 4 / depth**0.5
                    for k in (n, n, vocab))
    x1, x0, head = x1.astype(dtype), x0.astype(dtype), head.astype(other or dtype)
    parts = [x[:, skip:skip + depth] for x in (x1, x0, head)]
    there = [FakeArray(x) for x in (x1, x0, head)]  # whole: parts begin off 16 bytes
    for x in there:
        x.pointer += skip * x.dtype.itemsize
        x.shape = (x.shape[0], depth)
    got = rap.linear_cde(*there, want="js")
    close(got.js.numpy(), rap.linear_cde(*parts, want="js").js, rtol=2e-2, atol=1e-5)

for i in range(2):
    for n in (3, 4):
        for vocab in (5, 70):
            for depth in (8, 16):
                agrees(n, vocab, depth)
    agrees(4, 70, 16, wide=8)
    agrees(4, 70, 16, skip=1)
    agrees(4, 70, 16, dtype=np.float16)
for vocab in range(1, 80):
    agrees(1, vocab, 2)
agrees(1, 3, 2)
agrees(1, 100, 1 << 18, dtype=np.float16, other=np.float32)  # widened 64 rows at a time
nothing_left()
""",
        mutation,
        more=FEW,
    )


def one_branch(mutation: Mutation | None = None) -> None:
    """Log-probabilities of one branch: its rows alone are multiplied, no other is read."""
    _run(
        BLOCKS
        + """
bad, head = np.full_like(h0, np.nan), FakeArray(w)
full = rap.linear_cde(h1, h0, w, targets=ids)
for name, pair in (("logp1", (h1, bad)), ("entropy1", (h1, bad)), ("logp0", (bad, h0)),
                   ("entropy0", (bad, h0))):
    a, b = map(FakeArray, pair)
    got, (launches, products, _) = counted(lambda: rap.linear_cde(
        a, b, head, targets=ids, want=(name,), memory=80 * row))
    close(getattr(got, name).numpy(), getattr(full, name), rtol=1e-4, atol=1e-5)
    assert (launches, products) == (2, 2), (launches, products)
assert np.isnan(rap.linear_cde(FakeArray(h1), FakeArray(bad), head).kl.numpy()).all()
del a, b, head, got
nothing_left()
""",
        mutation,
        more=FEW,
    )


def attention(mutation: Mutation | None = None) -> None:
    """ace: grouped heads, a batch a key head, packed samples, masks from the host."""
    _run(
        """
q = rng.normal(size=(4, 33, 8)).astype(np.float32)
k = rng.normal(size=(2, 33, 8)).astype(np.float32)
mask = rng.random(33) < 0.7
s = FAKE.rap_fake_stream(0)
for heads in ("mean", "each"):
    options = dict(response_start=[4, 5], cu_seqlens=[0, 20, 33], heads=heads, min_rows=2,
                   column_mask=mask, image_mask=~mask)
    got = rap.ace(late(q, s), late(k, s), **options)
    FAKE.rap_fake_read(None, 0, 0)
    same(got, rap.ace(q, k, **options))
del got
nothing_left()
""",
        mutation,
    )


def tensor(mutation: Mutation | None = None) -> None:
    """ace of 16-bit numbers: grouped heads, packed samples, masks from the host, rows that
    are aligned and that are not; three launches with log-sum-exps given, else four."""
    _run(
        """
wide = rng.normal(size=(6, 33, 21)).astype(np.float16)
mask = rng.random(33) < 0.7
s = FAKE.rap_fake_stream(0)
for heads, dim, first in (("mean", 8, 0), ("max", 8, 0), ("mean", 11, 3)):
    q, k = wide[:4, :, first:first + dim], wide[4:, :, first:first + dim]
    if dim == 8:
        q, k = np.ascontiguousarray(q), np.ascontiguousarray(k)
    a, b = (late(q, s), late(k, s)) if dim == 8 else (FakeArray(q), FakeArray(k))
    options = dict(response_start=[4, 5], cu_seqlens=[0, 20, 33], heads=heads, min_rows=2,
                   column_mask=mask, image_mask=~mask)
    before = count("launches")
    got = rap.ace(a, b, **options)
    assert count("launches") - before == 2 * 4
    FAKE.rap_fake_read(None, 0, 0)
    same(got, rap.ace(q, k, **options))
    lse = np.zeros((4, 33), np.float32)
    before = count("launches")
    got = rap.ace(a, b, lse=FakeArray(lse), **options)
    assert count("launches") - before == 2 * 3
    FAKE.rap_fake_read(None, 0, 0)
    same(got, rap.ace(q, k, lse=lse, **options))
del got, a, b
nothing_left()
""",
        mutation,
    )


def selection(mutation: Mutation | None = None) -> None:
    """drm waits for its stream, and for nothing less."""
    _run(
        """
d = rng.random(300)
for i in range(8):
    s = FAKE.rap_fake_stream(0)
    a, e = late(d, s), rng.random(300) < 0.5
    want = rap.drm(d, 40, eligible=e)
    np.testing.assert_array_equal(rap.drm(a, 40, eligible=e).numpy(), want)
del a
nothing_left()
""",
        mutation,
    )


def scores_that_change(mutation: Mutation | None = None) -> None:
    """drm while another stream writes: refused, or places that can be used."""
    _run(
        """
ours, other = FAKE.rap_fake_stream(0), FAKE.rap_fake_stream(0)
n, answers, refusals = 400, 0, 0
for k in (1, 30, 200, 399, 400) * 3:
    d = InterfaceArray(rng.random(n), ours)
    FAKE.cuCtxSetCurrent(context)
    for scores in (rng.random(n), np.full(n, 0.25), np.zeros(n), rng.random(n)) * 3:
        assert upload(d.inner.pointer, scores.ctypes.data, 8 * n, other) == 0
    FAKE.cuCtxSetCurrent(None)
    try:
        got = rap.drm(d, k).numpy()
        assert ((got >= 0) & (got < n)).all() and len(set(got.tolist())) == len(got) <= k
        answers += 1
    except rap.RapInputError as error:
        assert "changed" in str(error)
        refusals += 1
    FAKE.rap_fake_read(None, 0, 0)
assert answers and refusals, (answers, refusals)
still = np.array([0.5, 0.7, 0.0])
assert rap.drm(InterfaceArray(still, ours), 3).numpy().tolist() == [1, 0]
del d, got
nothing_left()
""",
        mutation,
    )


def contexts(mutation: Mutation | None = None) -> None:
    """Two devices, a lost context, a caller with a context of his own; all put back."""
    _run(
        """
w = y[:, :130]
def both(device):
    a, b, h = (FakeArray(v, device=device) for v in (x, y, w))
    same(rap.cde(a, b, targets=[1, 2, 3]), truth)
    same(rap.linear_cde(a, b, h), rap.linear_cde(x, y, w), 1e-3)
def current():
    now = ctypes.c_void_p()
    assert FAKE.cuCtxGetCurrent(ctypes.byref(now)) == 0
    return now.value
for device_number in (0, 1, 0, 1):
    both(device_number)
    assert current() is None
assert FAKE.cuCtxSetCurrent(context) == 0
both(1), both(0)
assert current() == context.value
assert FAKE.cuCtxSetCurrent(None) == 0
assert count("retained") == 1, count("retained")
gc.collect()
FAKE.rap_fake_reset(0)
both(0)
assert count("retained") == 0, count("retained")
assert FAKE.cuDevicePrimaryCtxRetain(ctypes.byref(context), 10) == 0
nothing_left()
""",
        mutation,
    )


def failures(mutation: Mutation | None = None) -> None:
    """Each call that may fail, at its first and second use, is an error of ours."""
    _run(
        """
a, b, w = (FakeArray(v) for v in (x, y, y))
kinds = (MemoryError, rap.RapDeviceError, rap.RapConfigError)
rap.linear_cde(a, b, w, targets=[0, 1, 2]).kl.numpy()
for name in ("cuLaunchKernel", "cuMemcpyHtoDAsync", "cuMemAllocAsync", "cuCtxSetCurrent",
             "cuDevicePrimaryCtxRetain", "cuCtxGetCurrent", "cuDeviceGet", "cuCtxGetId"):
    for nth, code in ((1, 2), (1, 701), (1, 719), (2, 1)):  # 701: no shared memory left
        if nth == 2 and name in ("cuMemcpyHtoDAsync", "cuCtxSetCurrent"):
            continue  # there is but one; nothing can be said of a restore that fails
        fail(name, nth, code)
        refused(kinds, "", rap.linear_cde, a, b, w, targets=[0, 1, 2])
        fail(name, 0, 0)
        FAKE.cuCtxSetCurrent(None)
got = rap.linear_cde(a, b, w)
for name in ("cuMemcpyDtoHAsync", "cuStreamSynchronize"):
    fail(name, 1, 719)
    refused(kinds, "", got.kl.numpy)
assert np.isfinite(got.kl.numpy()).all()
del a, b, w, got
nothing_left()
""",
        mutation,
    )


def memory(mutation: Mutation | None = None) -> None:
    """Whose memory it is, is asked before it is read; empty arrays have none."""
    _run(
        """
a, b = FakeArray(x), FakeArray(y)
host, moved = FakeArray(x), FakeArray(x)
host.pointer, moved.device = x.ctypes.data, 1
refused(rap.RapInputError, "not memory", rap.cde, host, b)
refused(rap.RapInputError, "device 0, not on 1", rap.cde, moved, FakeArray(y, device=1))
assert rap.cde(FakeArray(x[:0]), FakeArray(y[:0])).kl.numpy().shape == (0,)
same(rap.cde(a, b, targets=[1, 2, 3]), truth)
del a, b, host, moved
nothing_left()
""",
        mutation,
    )


def pinned(mutation: Mutation | None = None) -> None:
    """The device reads pinned memory when it gets to it, and may find it changed."""
    _run(
        """
a, b = FakeArray(x), FakeArray(y)
targets, eligible = np.array([1, 2, 3]), np.ones(9, bool)
FAKE.rap_fake_pin(targets.ctypes.data, targets.nbytes)
got = rap.cde(a, b, targets=targets)
targets[:] = 0
same(got, truth)
del a, b, got
nothing_left()
""",
        mutation,
    )


def exports(mutation: Mutation | None = None) -> None:
    """Who takes an answer on another stream, or brings data from one, finds it made."""
    _run(
        """
for i in range(8):
    s, t = FAKE.rap_fake_stream(0), FAKE.rap_fake_stream(0)
    a, b = late(x, s), late(y, t)  # two streams: b is waited for
    got = rap.cde(a, b, targets=[1, 2, 3])
    waits = count("waits")
    got.kl.__dlpack__(max_version=(1, 0), stream=s)
    assert count("waits") == waits
    capsule = got.kl.__dlpack__(max_version=(1, 0), stream=t)
    assert count("waits") == waits + 1
    same(got, truth)
del a, b, got, capsule
nothing_left()
""",
        mutation,
    )


ROUTES = """
import contextlib, sys, types
import torch
made = []
STREAM = device.FAKE.rap_fake_stream(0) if {own} else 0

def watched(array):
    found = FakeArray(array)
    found.freed_on = STREAM or 1
    made.append(found)
    return found

def values(fake):
    return rap.cuda.DeviceArray(
        fake, fake.pointer, fake.shape, fake.dtype, 0, STREAM).numpy()

class OnDevice(torch.Tensor):
    # a torch tensor whose memory is the fake device's
    device, is_cuda, is_cpu = torch.device("cuda", 0), True, False
    __dlpack_c_exchange_api__ = None
    detach = resolve_neg = lambda self: self

    @classmethod
    def of(cls, array):
        found = torch.from_numpy(array).as_subclass(cls)
        found.fake = watched(array)
        return found

    def __dlpack_device__(self):
        return self.fake.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.fake.__dlpack__(**options)

class Cupy(FakeArray):
    # as cupy.ndarray
    @classmethod
    def of(cls, array):
        found = cls(array)
        found.freed_on = STREAM or 1
        made.append(found)
        return found

    def __getitem__(self, row):
        return self

@contextlib.contextmanager
def current(ordinal):
    assert ordinal == 0
    yield

def empty(shape, dtype, device=None):
    return {kind}.of(np.empty(shape, str(dtype).removeprefix("torch.")))

torch.empty = empty
torch.cuda.current_stream = lambda on: types.SimpleNamespace(cuda_stream=STREAM)
cupy = types.ModuleType("cupy")
cupy.ndarray, cupy.empty = Cupy, empty
cupy.cuda = types.SimpleNamespace(
    Device=current, get_current_stream=lambda: types.SimpleNamespace(ptr=STREAM))
sys.modules["cupy"] = cupy
"""


def routes(mutation: Mutation | None = None) -> None:
    """torch and CuPy are met on their own stream, with their own memory. The legacy stream
    is 1 to DLPack, never 0."""
    for own, kind in itertools.product((True, False), ("OnDevice", "Cupy")):
        code = (
            ROUTES
            + """
a, b = {kind}.of(x), {kind}.of(y)
waits = count("waits")
got = rap.cde(a, b)
assert count("waits") == waits and not rap.cuda._held
fakes = [getattr(z, "fake", z) for z in (a, b)]
for fake in fakes:
    assert fake.asked == [STREAM or 1], fake.asked
out = made[2]  # the first that was made for the call: its answers
np.testing.assert_allclose(values(out)[0], truth.kl, rtol=1e-5)
linear = rap.linear_cde(a, b, b)
same = next(m for m in made[3:] if m.shape == out.shape)
np.testing.assert_allclose(values(same)[0], rap.linear_cde(x, y, y).kl, rtol=1e-3)
del a, b, got, fakes, fake, out, linear, same, made[:]
nothing_left()
"""
        )
        _run(code.replace("{own}", str(own)).replace("{kind}", kind), mutation)


def graphs(mutation: Mutation | None = None) -> None:
    """Inside a capture: queued and right at every replay, or refused by a sentence before
    anything is queued; the capture goes on."""
    code = (
        ROUTES
        + """
a, b, w, d = (OnDevice.of(v) for v in (x, y, y[:, :130].copy(), x[0].copy()))
ids = OnDevice.of(np.array([1, 2, 3]))
rap.linear_cde(a, b, w).kl, rap.cde(a, b, cu_seqlens=[0, 1, 3])
FAKE.rap_fake_capture(STREAM)
refused(rap.RapInputError, "targets is in host memory", rap.cde, a, b, targets=[1, 2, 3])
refused(rap.RapInputError, "targets is in host memory", rap.linear_cde, a, b, w,
        targets=[0, 1, 2])
before = count("launches")
refused(rap.RapInputError, "needs an answer of the device", rap.drm, d, 3)
refused(rap.RapInputError, "not loaded yet", rap.ace, OnDevice.of(x[None].copy()),
        OnDevice.of(y[None].copy()), response_start=1)
assert count("launches") == before
rows = rap.cde(a, b)
at = made[-1]
linear = rap.linear_cde(a, b, w, want="js")
other = next(m for m in reversed(made) if m.shape == at.shape)
refused(rap.RapInputError, "cu_seqlens is in host memory", rap.cde, a, b,
        cu_seqlens=[0, 1, 3])
FAKE.rap_fake_capture(None)
for first in (x, y[::-1].copy(), x):
    FAKE.rap_fake_write(a.fake.base, first.ctypes.data, first.nbytes)
    FAKE.rap_fake_replay()
    want = rap.cde(first, y)
    close(values(at)[0], want.kl, rtol=1e-4)
    close(values(other)[3], rap.linear_cde(first, y, y[:, :130]).js, rtol=1e-3)
del a, b, w, d, ids, rows, at, linear, other, made[:]
nothing_left()
"""
    )
    _run(code.replace("{own}", "True").replace("{kind}", "OnDevice"), mutation)


def gone_stream(mutation: Mutation | None = None) -> None:
    """An answer that outlives its stream gives its memory back all the same."""
    _run(
        """
s = FAKE.rap_fake_stream(0)
a, b = (InterfaceArray(v, s) for v in (x, y))
got = rap.cde(a, b)
close(got.kl.numpy(), truth.kl, rtol=1e-4)
rap.cuda.release()
a.inner.freed_on = b.inner.freed_on = 1
FAKE.rap_fake_lose_stream(s)
del a, b, got
nothing_left()
""",
        mutation,
    )


def exchange_table(mutation: Mutation | None = None) -> None:
    """DLPack's table of C functions waits for nothing: only a producer that works on the
    call's own stream is taken at its word, the others are asked by __dlpack__(stream)."""
    for work_on in ("stream", "0", "None"):
        _run(
            """
import ctypes
stream = device.FAKE.rap_fake_stream(0)
work_on = {work_on}
api = ctypes.pythonapi
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_GetPointer.restype = ctypes.c_void_p
api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
USED = b"used_dltensor_versioned"
out_pointer = ctypes.POINTER(ctypes.c_void_p)
taken = []

@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, out_pointer)
def managed(array, out):
    capsule = array.capsule()
    out[0] = api.PyCapsule_GetPointer(capsule, b"dltensor_versioned")
    api.PyCapsule_SetName(capsule, USED)
    taken.append(array)
    return 0

@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int32, out_pointer)
def current(kind, ordinal, out):
    assert (kind, ordinal) == (2, 0)
    out[0] = work_on
    return 0

class Table(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32),
                ("before", ctypes.c_void_p), ("allocate", ctypes.c_void_p),
                ("managed", type(managed)), ("to_python", ctypes.c_void_p),
                ("view", ctypes.c_void_p), ("current", ctypes.c_void_p)]

at = ctypes.cast(current, ctypes.c_void_p) if work_on is not None else None
table = Table(1, 3, None, None, managed, None, None, at)

class Array(FakeArray):
    __dlpack_c_exchange_api__ = api.PyCapsule_New(
        ctypes.addressof(table), b"dlpack_exchange_api", None)

    def capsule(self):
        return super().__dlpack__()

a, b = Array(x), Array(y)
got = rap.cde(a, b)  # on the legacy stream: 0 to the driver, 1 to DLPack
assert len(taken) >= 2
assert [z.asked for z in (a, b)] == ([[None], [None]] if work_on == 0 else [[None, 1]] * 2)
np.testing.assert_allclose(got.kl.numpy(), truth.kl, rtol=1e-5)
del a, b, got, taken[:]
nothing_left()
""".replace("{work_on}", work_on),
            mutation,
        )


def foreign_memory(mutation: Mutation | None = None) -> None:
    """Arrays whose memory goes back on another stream, as JAX's, stay until they were read:
    DLPack does not say how an allocator is ordered."""
    _run(
        """
other = device.FAKE.rap_fake_stream(0)

def array(values):
    found = FakeArray(values)
    found.freed_on = other
    return found

q = rng.normal(size=(2, 20, 8)).astype(np.float32)
d, mask = rng.random(50), rng.random(20) < 0.8
psi, kl = rap.ace(q, q, response_start=8, column_mask=mask).log_psi, truth.kl
linear, order = rap.linear_cde(x, y, y).kl, rap.drm(d, 9)
kept = []
for i in range(4):
    kept.append((rap.cde(array(x), array(y)).kl, kl))
    kept.append((rap.linear_cde(array(x), array(y), array(y)).kl, linear))
    got = rap.ace(array(q), array(q), response_start=8, column_mask=array(mask))
    kept.append((got.log_psi, psi))
    kept.append((rap.drm(array(d), 9, gain=array(d)), rap.drm(d, 9, gain=d)))
    assert len(rap.cuda._held[0, 1]) <= rap.cuda.MOST_HELD
for got, want in kept:
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-3)
assert not rap.cuda._held  # numpy() has waited
# of rap's own and of arrays that name their stream: those of another stream than the call's
near = InterfaceArray(x, other), InterfaceArray(y, other)
got = rap.cde(*near)
assert not rap.cuda._held
weights = rap.cde(*near).kl
far = rap.cde(array(x), array(y), cu_seqlens=[0, 3], weights=weights)
assert any(z is weights for z in rap.cuda._held[0, 1][-1])
mixed = rap.cde(near[0], InterfaceArray(y, 1))
assert len(rap.cuda._held[0, other][-1]) == 1
del near, far, mixed, weights
del kept, got
nothing_left()
""",
        mutation,
    )


def offsets_that_change(mutation: Mutation | None = None) -> None:
    """Fault 28: the host plans by a copy of its own."""
    _run(
        """
cu = np.array([0, 9, 20])
q = rng.normal(size=(2, 20, 8)).astype(np.float32)
want = rap.ace(q, q, response_start=[3, 4], cu_seqlens=cu).log_psi
real, calls = rap.cuda.DeviceArray.empty.__func__, []

def empty(cls, *args):
    calls.append(args)
    cu[:] = [0, 10**6, 10**6]  # while rap sizes its workspace
    return real(cls, *args)

rap.cuda.DeviceArray.empty = classmethod(empty)
got = rap.ace(FakeArray(q), FakeArray(q), response_start=[3, 4], cu_seqlens=cu)
np.testing.assert_allclose(got.log_psi.numpy(), want, rtol=1e-4)
assert calls and cu[1] == 10**6
del got
nothing_left()
""",
        mutation,
    )


CHECKS = (
    streams,
    products,
    blocks,
    shapes_of_products,
    one_branch,
    graphs,
    gone_stream,
    attention,
    tensor,
    selection,
    scores_that_change,
    contexts,
    failures,
    memory,
    pinned,
    exports,
    routes,
    exchange_table,
    foreign_memory,
    offsets_that_change,
)
