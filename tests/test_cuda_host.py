"""The host side of CUDA on a fake driver: csrc/driver.c, the launchers and the routing.

Every test runs in a process of its own, in which RAP_LIBCUDA names the fake. What it can
and cannot show is said in tests/cuda_emulator/fake/fake_cuda.c.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import checks_host, gates
from cuda_emulator.build import CSRC, compiler
from cuda_emulator.fake import build

from rap import _C

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no gcc to build the emulator with"),
    pytest.mark.skipif(
        not _C.CUDA_KERNELS or gates.cuobjdump() is None,
        reason="no CUDA kernels in this build, or no cuobjdump to read them with",
    ),
]

START = """
import gc, os
import numpy as np
import rap
from rap import _C
from cuda_emulator.fake import device
from cuda_emulator.fake.device import FakeArray, InterfaceArray, count, fail, problem
rng = np.random.default_rng(1)
x, y = (rng.normal(size=(3, 700)).astype(np.float32) for _ in range(2))
truth = rap.cde(x, y)

def nothing_left():
    rap.cuda.release()
    gc.collect()
    device.FAKE.rap_fake_read(None, 0, 0)
    left = {n: count(n) for n in ("allocations", "retained", "queued", "bound")}
    assert not any(left.values()), left
    assert problem() == "", problem()

def works():
    got = rap.cde(FakeArray(x), FakeArray(y))
    np.testing.assert_allclose(got.kl.numpy(), truth.kl, rtol=1e-5)
"""


def passes(code: str, **options) -> str:
    done = build.python(START + code, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SLOW = (checks_host.routes, checks_host.shapes_of_products)
"""Checks that are proofs: many launches on the emulated device each."""


@pytest.mark.parametrize(
    "check",
    [pytest.param(c, marks=[pytest.mark.proof] * (c in SLOW)) for c in checks_host.CHECKS],
    ids=lambda check: check.__name__,
)
def test_holds(check):
    check()


def entry_points() -> list[tuple[str, str]]:
    """(name, versioned name) of each symbol that driver.c asks for."""
    table = (CSRC / "driver.c").read_text().split("symbols[] = {")[1].split("};")[0]
    return re.findall(r'\{"(cu\w+)",\s+"(cu\w+)",', table)


def test_the_fake_exports_what_the_driver_asks_for_and_nothing_else():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on this machine")
    fake = build.shared_library("fake_cuda.c")
    done = subprocess.run(
        [nm, "-D", "--defined-only", fake], capture_output=True, text=True
    )
    found = {s for s in re.findall(r" T (\w+)", done.stdout) if s.startswith("cu")}
    assert found == {versioned for _, versioned in entry_points()} | {"cuGetProcAddress_v2"}


def test_a_call_waits_for_nothing_and_leaves_nothing():
    passes("""
assert "fake device 0 (sm_86)" in rap.info()["gpu"]
a, b = FakeArray(x), FakeArray(y)
waits = count("waits")
got = rap.cde(a, b, targets=[5, 6, 7])
linear = rap.linear_cde(a, b, FakeArray(y))
assert count("waits") == waits and count("queued") > 0 and a.asked[0] == 1
np.testing.assert_allclose(got.kl.numpy(), truth.kl, rtol=1e-5)
np.testing.assert_allclose(np.asarray(linear.kl), rap.linear_cde(x, y, y).kl, rtol=1e-3)
modules = count("modules")
works()
assert count("modules") == modules
del a, b, got, linear
nothing_left()
""")


def test_means_of_packed_samples_wait_for_nothing():
    """Offsets and weights on the host or on the device."""
    passes("""
a, b = FakeArray(x), FakeArray(y)
cu, w = np.array([0, 1, 1, 3]), np.array([0.5, 2.0, 0.0])
want = rap.cde(x, y, cu_seqlens=cu, weights=w, targets=[1, 2, 3])
waits = count("waits")
for offsets in (cu, FakeArray(cu)):
    for weights in (w, FakeArray(w), FakeArray(w.astype(np.float32))):
        got = rap.cde(a, b, cu_seqlens=offsets, weights=weights, targets=[1, 2, 3])
        linear = rap.linear_cde(a, b, b, cu_seqlens=offsets, weights=weights)
        assert count("waits") == waits
        for name, value in zip(got._fields, want):
            np.testing.assert_allclose(getattr(got, name).numpy(), value, rtol=1e-5)
        waits = count("waits")
mean = rap.cde(a, b, cu_seqlens=cu, want="kl").kl.numpy()
np.testing.assert_allclose(mean, rap.cde(x, y, cu_seqlens=cu).kl, rtol=1e-5)
def refused(kind, text, **kwargs):
    with np.testing.assert_raises_regex(kind, text):
        rap.cde(a, b, **kwargs)
refused(rap.RapInputError, "rising", cu_seqlens=[0, 2])
refused(rap.RapInputError, "rising", cu_seqlens=FakeArray(cu[:0]))
refused(rap.RapInputError, "weights", cu_seqlens=cu, weights=[1.0, -1.0, 1.0])
refused(rap.RapInputError, "weights", cu_seqlens=cu, weights=FakeArray(w[:2]))
refused(rap.RapInputError, "another device", cu_seqlens=FakeArray(cu, device=1))
refused(TypeError, "weights", cu_seqlens=cu, weights=FakeArray(cu[:3]))
refused(TypeError, "int64", cu_seqlens=FakeArray(w))
refused(rap.RapConfigError, "need cu_seqlens", weights=w)
assert rap.cde(a, b, cu_seqlens=FakeArray(np.array([0]))).kl.shape == (0,)
del a, b, got, linear, offsets, weights
nothing_left()
""")


@pytest.mark.parametrize(
    ("arch", "driver", "says"),
    [
        (70, 13000, "cannot run the kernels"),  # before the oldest
        (75, 13000, None),
        (90, 12040, r"CUDA 12\.4.* cannot run"),  # the driver is of an older major version
        (103, 13000, None),  # machine code of the same major number
        (130, 13020, None),  # PTX, by a driver that knows it
        (89, 13000, None),
    ],
)
def test_a_device_or_a_driver_that_the_kernels_are_not_for(arch, driver, says):
    more = {"RAP_FAKE_ARCH": str(arch), "RAP_FAKE_DRIVER": str(driver)}
    if says is None:
        passes("works()\nnothing_left()", more=more)
        return
    passes(
        f"""
for _ in range(2):
    with np.testing.assert_raises_regex(rap.RapConfigError, "{says}"):
        rap.cde(FakeArray(x), FakeArray(y))
nothing_left()
""",
        more=more,
    )


def test_answers_are_exported_again():
    passes("""
got = rap.cde(FakeArray(x), FakeArray(y)).kl
assert got.__dlpack_device__() == (2, 0) and got.shape == (3,)
capsule = got.__dlpack__(max_version=(1, 0))
assert "dltensor_versioned" in repr(capsule)
said = got.__cuda_array_interface__
assert said["typestr"] == "<f8" and said["version"] == 3
with np.testing.assert_raises(BufferError):
    got.__dlpack__()
np.testing.assert_array_equal(got[1].numpy(), got.numpy()[1])
np.testing.assert_array_equal(got[1:].numpy(), got.numpy()[1:])
del capsule, got
nothing_left()
""")


@pytest.mark.parametrize("seed", range(3))
def test_a_producer_that_only_knows_the_array_interface(seed):
    passes(
        """
stream = device.FAKE.rap_fake_stream(0)
a, b, c = InterfaceArray(x, stream), InterfaceArray(y), InterfaceArray(y, 1)
got = rap.cde(a, b)
np.testing.assert_allclose(got.kl.numpy(), truth.kl, rtol=1e-5)
assert got.kl.stream == stream
waits = count("waits")
again = rap.cde(a, c)  # c is made on another stream: waited for
assert count("waits") == waits + 1
# what another stream reads is its owner's to keep until then
assert again.kl.numpy().tobytes() == got.kl.numpy().tobytes()
with np.testing.assert_raises_regex(rap.RapInputError, "not memory of a CUDA device"):
    fake = InterfaceArray(x)
    fake.inner.pointer = x.ctypes.data
    rap.cde(fake, fake)
class Said(InterfaceArray):
    def __init__(self, **said):
        super().__init__(x)
        self.said = said

    @property
    def __cuda_array_interface__(self):
        return super().__cuda_array_interface__ | self.said

for said, kind, text in (
    ({"typestr": ">f4"}, TypeError, ">f4"),
    ({"typestr": "<c8"}, TypeError, "<c8"),
    ({"typestr": "<V2"}, TypeError, "<V2"),
    ({"strides": (2802, 4)}, rap.RapInputError, "no multiples of 4"),
):
    odd = Said(**said)
    with np.testing.assert_raises_regex(kind, text):
        rap.cde(odd, odd)
del a, b, c, got, again, fake, odd
nothing_left()
""",
        seed=seed,
    )


def test_torch_out_of_memory_is_a_memory_error():
    passes(
        checks_host.ROUTES.replace("{own}", "True").replace("{kind}", "OnDevice")
        + """
def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

a = OnDevice.of(x)
torch.empty = full
with np.testing.assert_raises_regex(MemoryError, "9 GiB"):
    rap.cde(a, a)
"""
    )


def test_a_driver_from_before_get_proc_address():
    passes("works()\nnothing_left()", old_driver=True)


def test_an_entry_point_that_is_missing_is_a_sentence():
    passes(
        """
assert "too old: it has no cuMemAllocAsync" in rap.info()["gpu"]
with np.testing.assert_raises_regex(rap.RapConfigError, "cuMemAllocAsync"):
    rap.cde(FakeArray(x), FakeArray(y))
""",
        more={"RAP_FAKE_MISSING": "cuMemAllocAsync"},
    )


def test_a_driver_that_is_not_there_is_a_sentence():
    done = build.python(
        """
import rap
from rap import _C
assert "no CUDA driver" in rap.info()["gpu"], rap.info()
try:
    _C.cuda_alloc(8, 0, 0)
except rap.RapConfigError as error:
    assert "nowhere.so" in str(error)
else:
    raise AssertionError
""",
        more={"RAP_LIBCUDA": "/nowhere.so"},
    )
    assert done.returncode == 0, done.stderr


def test_every_entry_point_may_fail_at_any_call_and_the_next_call_works():
    """Silent are only those that a call does not need, or that clean up."""
    names = [name for name, _ in entry_points()]
    passes(f"""
x, y = x[:1, :64].copy(), y[:1, :64].copy()
truth = rap.cde(x, y)
works()
a, b, w = FakeArray(x), FakeArray(y), FakeArray(y)
kinds = (MemoryError, rap.RapDeviceError, rap.RapConfigError, rap.RapInputError)
refused = set()
for name in {names}:
    for nth, code in ((1, 2), (2, 709), (3, 201)):
        if name.startswith("cuModule"):
            device.FAKE.rap_fake_reset(0)
        fail(name, nth, code)
        try:
            rap.linear_cde(a, b, w, targets=[0]).kl.numpy()
        except kinds as error:
            refused.add(name)
            if code == 2 and name in ("cuMemAllocAsync", "cuLaunchKernel"):
                assert isinstance(error, MemoryError) and "OUT_OF_MEMORY" in str(error)
        fail(name, 0, 0)
        device.FAKE.cuCtxSetCurrent(None)  # what a failed restore leaves behind
        works()
silent = {{"cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString",
          "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceGetAttribute", "cuCtxGetDevice",
          "cuMemFreeAsync", "cuDevicePrimaryCtxRelease"}}
assert set({names}) - refused == silent, set({names}) - refused
""")


def test_no_device_at_first_and_one_later():
    passes("""
fail("cuInit", 1, 100)
with np.testing.assert_raises_regex(rap.RapConfigError, "no CUDA device"):
    rap.cde(FakeArray(x), FakeArray(y))
works()
nothing_left()
""")


def test_a_context_that_was_lost():
    passes("""
works()
gc.collect()
device.FAKE.rap_fake_reset(0)
works()
modules = count("modules")
works()
assert modules == 2 and count("modules") == 2
""")


def test_the_callers_context_is_put_back():
    passes("""
import ctypes
api = device.FAKE
_C.cuda_info()
other = ctypes.c_void_p()
assert api.cuDevicePrimaryCtxRetain(ctypes.byref(other), 11) == 0
assert api.cuCtxSetCurrent(other) == 0
works()
now = ctypes.c_void_p()
assert api.cuCtxGetCurrent(ctypes.byref(now)) == 0 and now.value == other.value
got = rap.cde(FakeArray(x, device=1), FakeArray(y, device=1))
np.testing.assert_allclose(got.kl.numpy(), truth.kl, rtol=1e-5)
assert got.kl.device == 1
""")


def test_a_forked_child_gets_a_sentence_and_does_not_hang():
    passes("""
a, b = FakeArray(x), FakeArray(y)
works()
child = os.fork()
if child == 0:
    try:
        rap.cde(a, b)
    except rap.RapConfigError as error:
        os._exit(7 if "forked" in str(error) and "spawn" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
works()
""")


def test_threads_that_call_at_once():
    """Each on a stream of its own, modules opened by whoever comes first."""
    passes("""
import threading
d = rng.random(50)
order = rap.drm(d, 9)
q = rng.normal(size=(2, 20, 8)).astype(np.float32)
psi = rap.ace(q, q, response_start=8).log_psi
errors = []

def work(number):
    try:
        stream = device.FAKE.rap_fake_stream(0)
        a, b, c = (InterfaceArray(z, stream) for z in (x[:, :90], y[:, :90], q))
        for _ in range(4):
            got = rap.cde(a, b).kl.numpy()
            np.testing.assert_allclose(got, want, rtol=1e-5)
            np.testing.assert_array_equal(rap.drm(FakeArray(d), 9).numpy(), order)
            got = rap.ace(c, c, response_start=8).log_psi.numpy()
            np.testing.assert_allclose(got, psi, rtol=1e-4)
    except BaseException as error:
        errors.append(error)

want = rap.cde(x[:, :90], y[:, :90]).kl
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
assert count("modules") == 3
nothing_left()
""")


def test_a_fork_while_another_thread_opens_the_driver_does_not_hang(tmp_path):
    """The child finds out by whom CUDA is being opened, not a mutex that stays locked."""
    source = tmp_path / "slow.c"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        "__attribute__((constructor)) static void slow(void)\n"
        f'{{ close(open("{tmp_path}/begun", O_CREAT | O_WRONLY, 0600)); sleep(3); }}\n'
    )
    library = tmp_path / "slow.so"
    subprocess.run([compiler(), "-shared", "-fPIC", source, "-o", library], check=True)
    done = build.python(
        """
import os, signal, threading, time
import rap
from rap import _C

def wait():
    try:
        _C.cuda_wait(0, 0)
    except rap.RapConfigError:
        pass

thread = threading.Thread(target=wait)
thread.start()
while not os.path.exists(os.environ["BEGUN"]):
    time.sleep(0.01)  # then it sleeps in dlopen, without the GIL, with the mutex
child = os.fork()
if child == 0:
    signal.alarm(600)
    try:
        _C.cuda_wait(0, 0)
    except rap.RapConfigError as error:
        os._exit(7 if "forked" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
thread.join()
try:
    _C.cuda_wait(0, 0)  # no driver, and nothing of the first try is left in the way
except rap.RapConfigError as error:
    assert "too old" in str(error), error
child = os.fork()
if child == 0:
    try:
        _C.cuda_wait(0, 0)
    except rap.RapConfigError as error:
        os._exit(7 if "too old" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""",
        more={"RAP_LIBCUDA": str(library), "BEGUN": str(tmp_path / "begun")},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["", "raise SystemExit(0)", "os._exit(0)"])
def test_a_program_may_end_with_work_queued(how):
    """Answers still alive are given back while the interpreter goes down."""
    passes(f"""
a, b = FakeArray(x), FakeArray(y)
kept = [rap.cde(a, b), rap.linear_cde(a, b, b), rap.drm(FakeArray(x[0]), 3)]
assert count("queued") > 0
{how}
""")


def test_bad_input_has_the_errors_of_the_cpu():
    passes("""
a, b = FakeArray(x), FakeArray(y)
def refused(kind, text, call, *args, **kwargs):
    with np.testing.assert_raises_regex(kind, text):
        call(*args, **kwargs)
refused(rap.RapInputError, "logits0 on the CPU|one device", rap.cde, a, y)
refused(rap.RapInputError, "CUDA device 1", rap.cde, a, FakeArray(y, device=1))
refused(rap.RapInputError, "same shape", rap.cde, a, FakeArray(y[:2]))
refused(rap.RapInputError, "two dimensions", rap.cde, FakeArray(x[0]), FakeArray(y[0]))
half = FakeArray(x[:, ::2])
refused(rap.RapInputError, "contiguous", rap.cde, half, half)
refused(TypeError, "float32", rap.cde, FakeArray(x.astype(np.float64)), b)
refused(rap.RapInputError, r"targets\\[1\\] = 700", rap.cde, a, b, targets=[0, 700, 1])
q = FakeArray(x[None])
refused(rap.RapInputError, "cu_seqlens is on a CUDA device", rap.ace, q, q,
        cu_seqlens=FakeArray(np.array([0, 3])), response_start=1)
host = FakeArray(x)
host.pointer = x.ctypes.data
refused(rap.RapInputError, "logits1: its pointer is not memory", rap.cde, host, b)
moved = FakeArray(x)
moved.device = 1
refused(rap.RapInputError, "logits1", rap.cde, moved, FakeArray(y, device=1))
for null in (FakeArray(x), InterfaceArray(x)):
    (null if isinstance(null, FakeArray) else null.inner).pointer = 0
    refused(rap.RapInputError, "logits1: 2100 elements and no memory", rap.cde, null, b)
    refused(rap.RapInputError, "logits0: 2100 elements and no memory", rap.cde, b, null)
    refused(rap.RapInputError, "gain: 2100 elements and no memory", rap.drm,
            FakeArray(x[0]), 3, gain=null)
odd = FakeArray(x)
odd.pointer += 2
refused(rap.RapInputError, "not aligned", rap.cde, odd, b)
large = FakeArray(x)
large.shape = (4, 2**61)
refused(rap.RapInputError, "too large", rap.cde, large, large)
large.shape = (2**40, 2)
refused(MemoryError, "OUT_OF_MEMORY", rap.cde, large, large)
large.shape, large.strides = (1, 2**33, 2), (2**34, 2, 1)
refused(MemoryError, "OUT_OF_MEMORY", rap.ace, large, large, response_start=5)
large.shape, large.strides = (2**57, 2), (0, 1)
refused(MemoryError, "bytes on CUDA device 0", rap.cde, large, large)
for shape in ((2**59, 1, 1), (1, 1, 2**30)):
    large.shape, large.strides = shape, (0, 0, 1)
    refused(rap.RapInputError, "more than 2", rap.ace, large, large, response_start=0)
for shape in ((1, 2**58, 1), (2**10, 2**33, 1)):
    large.shape, large.strides = shape, (0, 0, 1)
    refused(MemoryError, "", rap.ace, large, large, response_start=0)
empty = rap.cde(FakeArray(x[:0]), FakeArray(y[:0]))
assert empty.kl.shape == (0,) and empty.kl.numpy().size == 0
assert rap.linear_cde(FakeArray(x[:0]), FakeArray(y[:0]), b).kl.shape == (0,)
far = FakeArray(np.array([0, 700, -1]))
got = rap.cde(a, b, targets=far).logp1.numpy()
assert np.isfinite(got[0]) and np.isnan(got[1:]).all()
del a, b, q, half, host, moved, null, odd, large, empty, far, got
works()
nothing_left()
""")


def test_rows_that_are_views_of_something_larger():
    passes("""
wide = np.zeros((3, 901), np.float16)
for offset in (0, 1, 3):
    v1, v0 = wide.copy(), wide.copy()
    v1[:, offset:offset + 700], v0[:, offset:offset + 700] = x, y
    v1, v0 = v1[:, offset:offset + 700], v0[:, offset:offset + 700]
    got = rap.cde(FakeArray(v1), FakeArray(v0)).kl.numpy()
    np.testing.assert_allclose(got, rap.cde(v1, v0).kl, rtol=1e-4)
    got = rap.linear_cde(FakeArray(v1), FakeArray(v0), FakeArray(v0)).kl.numpy()
    np.testing.assert_allclose(got, rap.linear_cde(v1, v0, v0).kl, rtol=1e-3)
nothing_left()
""")


@pytest.mark.parametrize(("dtype", "refuse"), [("float16", "0"), ("float32", "2")])
def test_products_that_cublaslt_does_not_do(dtype, refuse):
    """Two dtypes, or every second question refused: through float32 copies."""
    passes(
        f"""
w = rng.normal(size=(40, 700)).astype(np.{dtype})
got = rap.linear_cde(FakeArray(x), FakeArray(y), FakeArray(w)).kl.numpy()
np.testing.assert_allclose(got, rap.linear_cde(x, y, w).kl, rtol=1e-3)
del got
nothing_left()
""",
        more={"RAP_FAKE_BLAS_REFUSE": refuse},
    )


def test_device_memory_read_by_the_host_is_a_crash():
    """The harness can fail: what the fake keeps closed is really closed."""
    done = build.python(START + "import ctypes; ctypes.string_at(FakeArray(x).pointer, 4)")
    assert done.returncode == -signal.SIGSEGV


def test_drm_on_the_device():
    passes("""
from rap import reference
for n, k in ((0, 3), (1, 1), (37, 9), (1500, 1100)):
    for dtype in (np.float32, np.float64):
        d = rng.integers(0, 7, n).astype(dtype) / 6
        g, e = rng.integers(-2, 3, n) / 2, rng.random(n) < 0.8
        for gain in (None, g):
            for eligible in (None, e):
                want = reference.drm(d, k, gain=gain, eligible=eligible)
                got = rap.drm(
                    FakeArray(d), k, gain=None if gain is None else FakeArray(gain),
                    eligible=eligible if n == 37 or eligible is None else FakeArray(e))
                np.testing.assert_array_equal(got.numpy(), want)
        if n > 100:
            break
with np.testing.assert_raises_regex(rap.RapInputError, "one device"):
    rap.drm(FakeArray(d), 3, gain=d)
with np.testing.assert_raises_regex(rap.RapInputError, "dimensions"):
    rap.drm(FakeArray(x), 3)
del got
nothing_left()
""")


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_ace_on_the_device(heads):
    passes(f"""
q = rng.normal(size=(4, 70, 16)).astype(np.float16)
k = rng.normal(size=(2, 70, 16)).astype(np.float16)
cu, start, mask = np.array([0, 45, 45, 70]), np.array([20, 0, 9]), rng.random(70) < 0.7
scores = np.einsum("hld,hmd->hlm", q.astype(float), np.repeat(k.astype(float), 2, 0)) / 4
below = np.tril(np.ones((70, 70), bool))
lse = np.log((np.exp(scores) * below).sum(-1)).astype(np.float32)
one = dict(response_start=30)
packed = dict(response_start=start, cu_seqlens=cu, image_mask=mask, column_mask=~mask)
for options in (one, packed, dict(one, window=9, key_window=25, columns="all", min_rows=1),
                dict(packed, renormalise=True, normalise=False), dict(one, stats=False),
                dict(one, stats=False, lse=lse), dict(packed, columns="prompt")):
    device_options = dict(options)
    if "lse" in options:
        device_options["lse"] = FakeArray(lse)
    want = rap.ace(q, k, heads="{heads}", **options)
    waits = count("waits")
    got = rap.ace(FakeArray(q), FakeArray(k), heads="{heads}", **device_options)
    assert count("waits") == waits
    for name, a, b in zip(got._fields, got, want):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5, err_msg=name)
del got, a
nothing_left()
""")


@pytest.mark.parametrize(("length", "response"), [(4096, 1024), (32_768, 28_672)])
def test_launches_of_ace_of_a_7b_model(length, response):
    """Queued and never run: 28 query heads, 4 key heads of 16-bit numbers take a launch a
    pass, where float32 goes block after block of scores (178 and 28,674 launches)."""
    passes(f"""
from cuda_emulator.fake.device import FAKE

def arrays(dtype):
    row = np.zeros(128, dtype)
    shapes = ((28, {length}, 128), (4, {length}, 128))
    return [InterfaceArray(np.broadcast_to(row, shape), stream) for shape in shapes]

def launches(arrays, **options):
    before = count("launches")
    rap.ace(*arrays, response_start={length - response}, **options)
    return count("launches") - before

# arrays first, and on one stream: nothing here waits for what was queued
stream = FAKE.rap_fake_stream(0)
halves = arrays(np.float16)
lse = InterfaceArray(np.broadcast_to(np.zeros(1, np.float32), (28, {length})), stream)
assert launches(halves) == launches(halves, heads="max", renormalise=True) == 4
assert launches(halves, lse=lse) == 3
os._exit(0)
""")


@pytest.mark.parametrize("name", ["cde", "linear_cde", "ace", "drm"])
@pytest.mark.proof
def test_every_option_has_the_answer_or_the_error_of_the_cpu(name):
    """One table for all options and dtypes: tests/cuda_emulator/options.py."""
    done = subprocess.run(
        [sys.executable, "-m", "cuda_emulator.options", name],
        env=build.environment(seed=3) | {"RAP_FAKE_THREADS": "32"},
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


# What is quick with fibers; drm but for what plugin.py names. The rest of cde and ace takes
# minutes: `pytest -p cuda_emulator.fake.plugin tests/test_ace.py` with build.environment().
SUITES = {
    "tests/test_cde.py": "masked or wanted or packed or targets or equal_rows or rejects "
    "or any_finite_size",
    "tests/test_ace.py": "wrong or opera or fault_23 or given_log",
    "tests/test_drm.py": "test",
}


@pytest.mark.parametrize("path", SUITES)
@pytest.mark.proof
def test_the_public_tests_on_the_device(path):
    """The tests of the CPU, unchanged, every array on the fake device."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
         "-p", "cuda_emulator.fake.plugin", path, "-k", SUITES[path]],
        env=build.environment(seed=7), capture_output=True, text=True,
        cwd=Path(__file__).resolve().parent.parent, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
