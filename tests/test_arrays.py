"""How arrays reach the kernels: every producer, every layout, every refusal."""

from __future__ import annotations

import array
import ctypes
import gc
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest
import torch

import rap
from rap import _C, reference


@pytest.fixture
def pair(rng):
    l1 = rng.normal(size=(6, 40)).astype(np.float32)
    return l1, l1 + rng.normal(size=l1.shape).astype(np.float32)


def test_frameworks_in_and_out(pair):
    l1, l0 = pair
    truth = reference.cde(l1, l0)["kl"]
    got = rap.cde(l1, l0).kl
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, truth, rtol=1e-5)
    t1, t0 = torch.from_numpy(l1).requires_grad_(), torch.from_numpy(l0)
    got = rap.cde(t1, t0).kl
    assert isinstance(got, torch.Tensor)
    np.testing.assert_allclose(got.detach().numpy(), truth, rtol=1e-5)


class Producer:
    """An array library we know nothing of, old or new DLPack."""

    def __init__(self, x: np.ndarray, versioned: bool):
        self.x, self.versioned, self.asked = x, versioned, 0

    def __dlpack__(self, **kwargs):
        self.asked += 1
        if kwargs and not self.versioned:
            raise TypeError("unexpected keyword max_version")
        return self.x.__dlpack__(**kwargs)

    @property
    def shape(self):
        return self.x.shape


@pytest.mark.parametrize("versioned", [True, False])
def test_any_dlpack_producer(pair, versioned):
    l1, l0 = pair
    want = rap.cde(l1, l0).kl
    np.testing.assert_array_equal(
        rap.cde(Producer(l1, versioned), Producer(l0, versioned)).kl, want
    )


def test_dlpack_producer_that_raises(pair):
    class Broken:
        shape = (6, 40)

        def __dlpack__(self, **kwargs):
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        rap.cde(Broken(), pair[1])

    class Liar:
        shape = (6, 40)

        def __dlpack__(self, **kwargs):
            return "no capsule"

    with pytest.raises(TypeError, match="capsule"):
        rap.cde(Liar(), pair[1])


def test_fault_32_ctrl_c_while_an_array_is_asked_what_it_is() -> None:
    """It is not taken for the answer that this is none."""

    class Asked:
        @property
        def __dlpack__(self) -> object:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _C.drm(Asked(), None, None, np.zeros(1, np.int64), 1)


def test_buffer_protocol(pair):
    l1, l0 = pair
    view = memoryview(l1.tobytes()).cast("f", (6, 40))
    np.testing.assert_array_equal(rap.cde(view, l0).kl, rap.cde(l1, l0).kl)
    d = array.array("d", [0.5, 0.1])
    assert rap.drm(np.frombuffer(d), 2).tolist() == [0, 1]


def test_lazy_minus_signs_and_ctypes(pair):
    l1, l0 = pair
    t1, t0 = torch.from_numpy(l1), torch.from_numpy(l0)
    np.testing.assert_array_equal(rap.cde(torch._neg_view(t1), t0).kl, rap.cde(-t1, t0).kl)
    weights = torch.ones(6, dtype=torch.bfloat16)
    got = rap.cde(t1, t0, cu_seqlens=[0, 6], weights=weights).kl
    assert float(got[0]) == pytest.approx(float(rap.cde(t1, t0).kl.mean()))
    matrix = ((ctypes.c_float * 40) * 6).from_buffer_copy(l1.tobytes())
    np.testing.assert_array_equal(rap.cde(memoryview(matrix), l0).kl, rap.cde(l1, l0).kl)


def test_sixteen_bit_types(pair):
    l1, l0 = pair
    for ours, theirs in ((ml_dtypes.bfloat16, torch.bfloat16), (np.float16, torch.float16)):
        a1, a0 = l1.astype(ours), l0.astype(ours)
        np.testing.assert_allclose(
            rap.cde(a1, a0).kl, reference.cde(a1, a0)["kl"], rtol=1e-5
        )
        t1, t0 = torch.from_numpy(l1).to(theirs), torch.from_numpy(l0).to(theirs)
        np.testing.assert_array_equal(rap.cde(t1, t0).kl.numpy(), rap.cde(a1, a0).kl)


def test_fault_27_layouts_give_the_same_numbers(pair):
    l1, l0 = pair
    want = rap.cde(l1, l0).kl
    big = np.zeros((12, 90), np.float32)
    big[::2, 5:85:2] = l1
    read_only = l1.copy()
    read_only.flags.writeable = False
    unaligned = (
        np.frombuffer(b"\0" + l1.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 40)
    )
    for layout in (
        np.asfortranarray(l1),
        big[::2, 5:85:2],
        np.ascontiguousarray(l1[::-1])[::-1],
        np.ascontiguousarray(l1[:, ::-1])[:, ::-1],
        read_only,
        unaligned,
        torch.from_numpy(l1).T.contiguous().T,
        torch.from_numpy(np.stack([l1, l1], -1))[..., 0],
    ):
        got = rap.cde(layout, l0).kl
        np.testing.assert_array_equal(np.asarray(got), want)


def test_empty_arrays_give_empty_answers():
    """NumPy says that the strides of an empty array are 0."""
    for empty in (np.empty((0, 7), np.float32), torch.empty(0, 7)):
        assert rap.cde(empty, empty).kl.shape == (0,)
    got = rap.ace(np.empty((2, 0, 4), "f4"), np.empty((1, 0, 4), "f4"), response_start=0)
    assert got.log_psi.tolist() == [-np.inf] and got.log_psi_columns.shape == (0,)
    assert rap.drm(np.empty(0), 3).shape == (0,)


def test_nothing_is_copied_when_rows_are_contiguous(pair):
    """A broadcast row of 10^9 logits would need 4 GB if it were copied."""
    row = np.zeros((1, 1000), np.float32)
    huge = np.broadcast_to(row, (1_000_000, 1000))
    assert rap.cde(huge[:3], huge[:3]).kl.tolist() == [0, 0, 0]
    assert np.shares_memory(rap.host.IN_NUMPY.array("x", huge), row)


@pytest.mark.parametrize(
    "bad, error",
    [
        (np.zeros((6, 40), ">f8"), TypeError),
        (np.zeros((6, 40), np.int32), TypeError),
        (np.zeros((6, 40), ">f4"), TypeError),
        (np.zeros((6, 40), object), TypeError),
        (np.zeros((6, 40), "U3"), TypeError),
        (np.zeros((6, 40), np.complex64), TypeError),
        ([[1.0, 2.0]], rap.RapInputError),
        ([["a", "b"]], TypeError),
        ("text", TypeError),
        (None, TypeError),
        (3.5, TypeError),
        (np.float32(3), rap.RapInputError),
        (np.zeros(40, np.float32), rap.RapInputError),
        (np.zeros((6, 41), np.float32), rap.RapInputError),
        (np.zeros((6, 0), np.float32), rap.RapInputError),
        (np.zeros((1, 1, 1, 6, 40), np.float32), rap.RapInputError),
        (torch.zeros(6, 40, dtype=torch.int8), TypeError),
        (torch.zeros(6, 40, dtype=torch.complex64), TypeError),
        pytest.param(torch.zeros(6, 40, device="meta"), Exception, id="no-memory"),
    ],
)
def test_fault_27_refusals(pair, bad, error):
    with pytest.raises(error):
        rap.cde(bad, pair[1])
    with pytest.raises(error):
        rap.cde(pair[0], bad)


def test_private_entry_points_refuse_wrong_outputs(pair):
    """_C trusts nobody: ops.py is not the only possible caller."""
    l1, l0 = pair
    read_only = np.empty((10, 6))
    read_only.flags.writeable = False
    for out in (
        np.empty((10, 5)),
        np.empty((9, 6)),
        np.empty((10, 6), np.float32),
        np.empty((10, 12))[:, ::2],
        read_only,
    ):
        with pytest.raises((TypeError, rap.RapInputError)):
            _C.cde(l1, l0, None, out, 1, 1)
    q, cu, start = np.zeros((1, 9, 8), np.float32), np.array([0, 4, 9]), np.array([1, 1])
    dense = np.empty((4, 2, 1)), np.empty((2, 1), np.int64), np.empty((1, 9))
    for wrong in range(3):  # right shapes, but a step backwards or over a row
        given = list(dense)
        given[wrong] = (
            np.empty((8, 9), given[wrong].dtype)[::2, :1][:2] if wrong else dense[0]
        )
        given[0] = dense[0][:, ::-1] if wrong == 0 else dense[0]
        options = (1.0, 2.0, 1, 0, 0, 0, 1, 8, False, True, True)
        with pytest.raises((TypeError, rap.RapInputError)):
            _C.ace(q, q, cu, start, None, None, None, *given, options, 1)
    with pytest.raises(rap.RapInputError, match="targets"):
        _C.cde(l1, l0, np.zeros(6), np.empty((10, 6)), 1, 1)
    with pytest.raises(rap.RapInputError, match="contiguous"):
        _C.cde(l1[:, ::2], l0[:, ::2], None, np.empty((10, 6)), 1, 1)


def test_private_entry_points_refuse_wrong_inputs(pair):
    """What ops.py never sends: number of dimensions, steps in a row, types of numbers."""
    q = np.zeros((1, 9, 8), np.float32)

    def refused(kind, says, call, *args):
        with pytest.raises(kind, match=says):
            call(*args)

    def ace(q, k):
        out = np.empty((4, 1, 1)), np.empty((1, 1), np.int64), np.empty((1, q.shape[1]))
        options = (1.0, 2.0, 1, 0, 0, 0, 1, 8, False, True, True)
        cu, start = np.array([0, q.shape[1]]), np.array([0])
        _C.ace(q, k, cu, start, None, None, None, *out, options, 1)

    flat, deep = q[0], np.zeros((1, 9, 8))
    wide = np.zeros(((1 << 20) + 1, 1, 1), np.float32)
    refused(rap.RapInputError, r"expected \[heads, L, D\], got 2 and 3", ace, flat, q)
    refused(TypeError, "float64 .* convert it to float32", ace, deep, deep)
    refused(rap.RapInputError, "more than 2.20 heads", ace, wide, wide[:1])
    refused(rap.RapInputError, "must be contiguous", ace, q[:, :, ::2], q[:, :, ::2])

    l1, l0 = pair

    def linear(weight, hidden=l1):
        out = np.zeros((_C.CDE_OUTPUTS, 6))
        _C.linear_cde(hidden, l0, weight, None, None, out, 1.0, 0.0, 1 << 20, 1, 1)

    refused(TypeError, "weight: float64 .* convert it", linear, l0.astype(np.float64))
    gaps = np.zeros((6, 80), np.float32)[:, ::2]
    refused(
        rap.RapInputError, "weight: the last dimension must be contiguous", linear, gaps
    )
    refused(TypeError, "hidden1: float64 .* convert it", linear, l0, l1.astype(np.float64))

    answers, out = np.zeros((_C.CDE_OUTPUTS, 6)), np.zeros((_C.CDE_OUTPUTS, 1))
    cu, weights = np.array([0, 6]), np.ones(6)
    for kind, says, given in (
        (rap.RapInputError, "answers and out", (answers[:3], weights, cu, out)),
        (rap.RapInputError, r"\[S \+ 1\]", (answers, weights, cu[:1], out)),
        (TypeError, "cu_seqlens: expected int64", (answers, weights, cu > 1, out)),
        (rap.RapInputError, r">= 0, \[6\]", (answers, weights[:5], cu, out)),
        (TypeError, "weights: expected float32", (answers, cu.repeat(3), cu, out)),
        (rap.RapInputError, "on a CUDA device only", (answers, None, cu, out)),
    ):
        refused(kind, says, _C.cde_means, *given, 1, 1)

    d = np.linspace(0, 1, 20)
    out = np.empty(20, np.int64)
    refused(TypeError, "float32 or float64", _C.drm, out, None, None, out, 1)
    for wrong, says in ((d[::2], "contiguous numbers"), (d[None], "one dimension")):
        refused(rap.RapInputError, says, _C.drm, wrong, None, None, out, 1)


def test_places_that_are_none(pair):
    """Where a call runs: a number of threads, or (stream, allocate)."""
    out = np.empty((_C.CDE_OUTPUTS, 6))
    with pytest.raises(OverflowError):
        _C.cde(*pair, None, out, 1, 1 << 80)
    with pytest.raises(TypeError):
        _C.cde(*pair, None, out, 1, "two threads")


def test_views_are_released(pair):
    l1, l0 = pair
    t1 = torch.from_numpy(l1)
    counts = [sys.getrefcount(l1), sys.getrefcount(l0), sys.getrefcount(t1)]
    for _ in range(50):
        rap.cde(l1, l0)
        rap.cde(t1, t1)
        with pytest.raises(rap.RapInputError):
            rap.cde(l1, l0[:3])
    gc.collect()
    assert counts == [sys.getrefcount(l1), sys.getrefcount(l0), sys.getrefcount(t1)]


def test_what_came_through_the_older_dlpack_is_released(pair):
    """A capsule without a version, as producers before DLPack 1.0 give it."""
    data = pair[0].copy()
    held = weakref.ref(data)

    class Older:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.shape = tensor, tensor.shape

        def __dlpack__(self, stream: object = None) -> object:
            return self.tensor.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    older = Older(torch.from_numpy(data))
    assert "_versioned" not in repr(older.__dlpack__())
    assert (rap.cde(older, older).kl == 0).all()
    del data, older
    gc.collect()
    assert held() is None


def test_fault_41_no_memory_is_lost(pair):
    """ultrajson's way: the number of blocks must not rise with the number of calls."""
    l1, l0 = pair
    q = np.zeros((2, 20, 8), np.float32)

    def calls() -> None:
        rap.cde(l1, l0, targets=[0] * 6)
        rap.linear_cde(l1, l0, l1)
        rap.ace(q, q, response_start=3)
        rap.drm(np.array([0.5, 0.2]), 1)
        for wrong in (
            lambda: rap.cde(l1, l0[:2]),
            lambda: rap.ace(q, q, response_start=99),
        ):
            with pytest.raises(rap.RapInputError):
                wrong()

    for _ in range(20):
        calls()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(300):
        calls()
    gc.collect()
    assert sys.getallocatedblocks() - before < 100


def test_isa_can_be_read_and_forced(monkeypatch):
    before = _C.isa()
    assert before in _C.isa_names() and _C.isa_names()[-1] == "scalar"
    assert _C.isa("scalar") == before and _C.isa() == "scalar"
    _C.isa(before)
    with pytest.raises(rap.RapInputError, match="altivec"):
        _C.isa("altivec")
    assert rap.info()["isa"]["ace"] == before


def test_isa_by_environment():
    import subprocess

    def run(isa: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", "from rap import _C; print(_C.isa())"],
            env={"RAP_ISA": isa, "PATH": ""},
            capture_output=True,
            text=True,
        )

    assert run("scalar").stdout.strip() == "scalar"
    wrong = run("mmx")
    assert wrong.returncode != 0 and "RAP_ISA=mmx" in wrong.stderr


def test_threads_setting(monkeypatch, pair):
    monkeypatch.setenv("RAP_NUM_THREADS", "3")
    assert rap.info()["threads"] == 3
    monkeypatch.setenv("RAP_NUM_THREADS", "many")
    with pytest.raises(rap.RapConfigError, match="RAP_NUM_THREADS"):
        rap.info()
    large = np.zeros((1, _C.GIL_BYTES // 4), np.float32)
    with pytest.raises(rap.RapConfigError, match="RAP_NUM_THREADS"):
        rap.cde(large, large)
    rap.cde(*pair)  # smaller arrays stay on the caller's thread: nobody asks
    with pytest.raises(rap.RapConfigError, match="threads = 0"):
        rap.cde(*pair, threads=0)


# --- tensors without memory of their own ----------------------------------------------


class Wrapped(torch.Tensor):
    """As DTensor and quantised weights are: a torch tensor that holds another one."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def open_(x):
            return x.inner if isinstance(x, Wrapped) else x

        tree_map = torch.utils._pytree.tree_map
        return function(*tree_map(open_, args), **tree_map(open_, kwargs or {}))


class Counted(torch.Tensor):
    """A subclass with memory of its own that dispatches: what it reads is its business."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


L1, L0, W = torch.randn(6, 40), torch.randn(6, 40), torch.randn(50, 40)
Q, SCORES = torch.randn(2, 20, 8), torch.rand(30)
CALLS = {  # argument -> (what lies there, the call with something else in its place)
    "logits1": (L1, lambda x: rap.cde(x, L0)),
    "logits0": (L0, lambda x: rap.cde(L1, x)),
    "targets": (torch.zeros(6, dtype=torch.int64), lambda x: rap.cde(L1, L0, targets=x)),
    "cu_seqlens": (torch.tensor([0, 6]), lambda x: rap.cde(L1, L0, cu_seqlens=x)),
    "weights": (torch.ones(6), lambda x: rap.cde(L1, L0, cu_seqlens=[0, 6], weights=x)),
    "hidden1": (L1, lambda x: rap.linear_cde(x, L0, W)),
    "hidden0": (L0, lambda x: rap.linear_cde(L1, x, W)),
    "weight": (W, lambda x: rap.linear_cde(L1, L0, x)),
    "bias": (torch.ones(50), lambda x: rap.linear_cde(L1, L0, W, bias=x)),
    "q": (Q, lambda x: rap.ace(x, Q, response_start=5)),
    "k": (Q, lambda x: rap.ace(Q, x, response_start=5)),
    "response_start": (torch.tensor([5]), lambda x: rap.ace(Q, Q, response_start=x)),
    "column_mask": (
        torch.ones(20, dtype=torch.bool),
        lambda x: rap.ace(Q, Q, response_start=5, column_mask=x),
    ),
    "image_mask": (
        torch.ones(20, dtype=torch.bool),
        lambda x: rap.ace(Q, Q, response_start=5, image_mask=x),
    ),
    "lse": (torch.ones(2, 20), lambda x: rap.ace(Q, Q, response_start=5, lse=x)),
    "difficulty": (SCORES, lambda x: rap.drm(x, 3)),
    "gain": (SCORES, lambda x: rap.drm(SCORES, 3, gain=x)),
    "eligible": (SCORES > 0, lambda x: rap.drm(SCORES, 3, eligible=x)),
}


def freed(x: torch.Tensor) -> torch.Tensor:
    """As FSDP leaves a parameter between uses: a shape without storage."""
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_without_memory_is_refused_by_name(name):
    given, call = CALLS[name]
    call(given)
    kinds = [Wrapped, freed, lambda x: x.to("meta")]
    kinds += [lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype)]
    for make in kinds:
        with pytest.raises(rap.RapInputError, match=rf"{name}.*memory"):
            call(make(given))
    with pytest.raises(rap.RapInputError, match=rf"{name}.*Wrapped.*full_tensor"):
        call(Wrapped(given))


def test_a_subclass_that_dispatches_is_refused_whatever_its_pointer_says():
    there = L1.as_subclass(Counted)
    with pytest.raises(rap.RapInputError, match=r"logits1.*Counted.*dequantize\(\)"):
        rap.cde(there, L0)
    plain = torch.nn.Parameter(L1)  # a subclass, too, and an ordinary tensor
    assert torch.equal(rap.cde(plain, L0).kl, rap.cde(L1, L0).kl)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to_mkldnn(),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    ],
    ids=["sparse", "csr", "mkldnn", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")  # torch warns that some of these are prototypes
def test_torch_layouts_that_have_no_plain_memory(make):
    with pytest.raises(rap.RapInputError, match="logits1.*no memory of its own"):
        rap.cde(make(L1), L0)


def test_tensors_that_vmap_and_grad_pass_in():
    for transform in (
        lambda: torch.func.vmap(lambda x: rap.cde(x, x).kl)(torch.randn(2, 6, 40)),
        lambda: torch.func.grad(lambda x: rap.cde(x, L0).kl.sum())(L1),
    ):
        with pytest.raises(rap.RapInputError, match="no memory of its own"):
            transform()


def test_a_storage_that_ends_before_its_tensor_is_refused():
    for there in (L1.clone(), L1.clone()[:, :20]):
        there.untyped_storage().resize_(64)
        with pytest.raises(rap.RapInputError, match="logits1.*no memory of its own"):
            rap.cde(there, there)
    tail = torch.cat([L1, L0])[len(L1) :]  # the end of a storage is no fault
    assert torch.equal(rap.cde(tail, L1).kl, rap.cde(L0, L1).kl)
    with pytest.raises(rap.RapInputError, match="no memory of its own"):
        rap.drm(torch.nn.UninitializedParameter(), 2)


def test_imaginary_parts_are_not_dropped():
    odd = torch.tensor([0.5 + 1j, 0.25])
    with pytest.raises(TypeError, match="plain real numbers, got torch.complex64"):
        rap.drm(odd, 1)
    with pytest.raises(TypeError, match="weights: expected plain real numbers"):
        rap.cde(L1[:2], L0[:2], weights=odd, cu_seqlens=[0, 2])


class _Tensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int),
        ("device_id", ctypes.c_int), ("ndim", ctypes.c_int), ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


class NoMemory:
    """A DLPack producer whose data pointer is NULL."""

    def __init__(self, *shape: int, byte_offset: int = 0):
        self.shape = shape
        self.sizes = (ctypes.c_int64 * len(shape))(*shape)
        self.tensor = _Tensor(
            device_type=1, ndim=len(shape), code=2, bits=32, lanes=1,
            shape=ctypes.addressof(self.sizes), byte_offset=byte_offset,
        )  # fmt: skip

    def __dlpack__(self, **kwargs):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.mark.parametrize("byte_offset", [0, 64])
def test_a_null_pointer_from_dlpack(byte_offset):
    with pytest.raises(rap.RapInputError, match="logits1: 240 elements and no memory"):
        rap.cde(NoMemory(6, 40, byte_offset=byte_offset), L0.numpy())
    empty = NoMemory(0, 40, byte_offset=byte_offset)
    assert rap.cde(empty, np.empty((0, 40), np.float32)).kl.shape == (0,)


def test_a_null_pointer_from_the_buffer_protocol():
    matrix = ((ctypes.c_float * 40) * 6).from_address(0)
    with pytest.raises(rap.RapInputError, match="logits1: 240 elements and no memory"):
        rap.cde(memoryview(matrix), L0.numpy())


def capsule_of(tensor: _Tensor) -> object:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(tensor), b"dltensor", None)


class Plain:
    """A DLPack producer of float32 numbers that begin ``skip`` bytes behind its pointer; it
    gives the same capsule each time that it is asked."""

    def __init__(self, x: np.ndarray, skip: int = 0, lanes: int = 1, on: int = 1):
        self.shape = x.shape
        self.memory = ctypes.create_string_buffer(b"\x7f" * skip + x.tobytes())
        self.sizes = (ctypes.c_int64 * x.ndim)(*x.shape)
        self.tensor = _Tensor(
            data=ctypes.addressof(self.memory), device_type=on, ndim=x.ndim, code=2,
            bits=32, lanes=lanes, shape=ctypes.addressof(self.sizes), byte_offset=skip,
        )  # fmt: skip
        self.capsule = capsule_of(self.tensor)

    def __dlpack__(self, **kwargs):
        return self.capsule


def test_a_dlpack_producer_with_an_offset(pair):
    l1, l0 = pair
    got = rap.cde(Plain(l1, skip=64), l0)
    assert np.asarray(got.kl).tobytes() == rap.cde(l1, l0).kl.tobytes()
    with pytest.raises(TypeError, match="is not taken"):
        rap.cde(Plain(l1, lanes=2), l0)
    with pytest.raises(rap.RapInputError, match="not aligned"):
        rap.cde(Plain(l1, skip=2), l0)


def test_what_dlpack_and_buffers_may_say_and_nobody_computes_with(pair):
    """A device of another maker, more elements than addresses, other formats and steps."""
    l1, l0 = pair
    out = np.empty((_C.CDE_OUTPUTS, 6))
    elsewhere, vast = Plain(l1, on=8), Plain(l1)  # 8: Metal
    vast.sizes[:] = 1 << 40, 1 << 40
    whole = np.ones(l1.shape, np.uint32)
    table = np.zeros((6, 40), np.dtype([("a", np.float32), ("b", np.int16)], align=False))
    for bad, kind, says in (
        (elsewhere, rap.RapInputError, "device type 8: neither the CPU nor CUDA"),
        (vast, rap.RapInputError, "too large"),
        (memoryview(whole), TypeError, "buffer format 'I' is not supported"),
        (memoryview(table["a"]), rap.RapInputError, "no multiple of the item size"),
    ):
        with pytest.raises(kind, match=says):
            _C.cde(bad, l0, None, out, 1, 1)


def test_a_capsule_is_used_once(pair):
    """As DLPack asks: who has taken the memory renames the capsule."""
    once = Plain(pair[0])
    rap.cde(once, pair[1])
    with pytest.raises(TypeError, match="gave no DLPack capsule"):
        rap.cde(once, pair[1])


def test_fault_27_c_refuses_what_python_copies(pair):
    """Numbers between two addresses of their type, and steps of parts of a number."""
    l1, l0 = pair
    out = np.empty((_C.CDE_OUTPUTS, 6))
    shifted = np.frombuffer(b"\0" + l1.tobytes(), np.uint8)[1:].view(np.float32)
    table = np.zeros((6, 40), np.dtype([("a", np.float32), ("b", np.int16)], align=False))
    for bad, says in ((shifted.reshape(6, 40), "aligned"), (table["a"], "multiple")):
        with pytest.raises(rap.RapInputError, match=says):
            _C.cde(bad, l0, None, out, 1, 1)
        with pytest.raises(rap.RapInputError, match=says):
            _C.cde(l0, bad, None, out, 1, 1)
