"""What the kernels say of a wrong call: one table of calls and sentences.

Of every call: the sentence begins with the argument at fault, says what was expected and
what came, and names no argument that the caller did not give.
"""

from __future__ import annotations

import array
import functools
import inspect
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import rap
from rap import reference

X, Y = np.random.default_rng(0).normal(size=(2, 6, 10)).astype(np.float32)
BATCH = X.reshape(2, 3, 10)
W = np.zeros((12, 10), np.float32)
Q = np.random.default_rng(1).normal(size=(4, 20, 8)).astype(np.float32)
K, S = Q[:2], np.linspace(0.1, 0.9, 30)
MASKED = functools.partial(np.ma.masked_array, mask=True)
HUGE = np.array([2**64 - 100], np.uint64)
FLOATS = "expected float32, float64, float16 or bfloat16"
LISTS = "lists of unequal lengths, or of something else than numbers"


class Wrong(NamedTuple):
    """A call, and what is said of it. ``also``: names in the sentence that the caller did
    not give, since they are what is missing."""

    call: str
    given: dict[str, Any]
    error: type[Exception]
    says: str
    also: tuple[str, ...] = ()


def _exports_8_bits() -> bool:
    """torch 2.6 does not, and says so itself."""
    try:
        torch.zeros(1).to(torch.float8_e5m2).__dlpack__()
    except RuntimeError:
        return False
    return True


EXPORTS_8_BITS = _exports_8_bits()


def cde(error: type[Exception], says: str, *also: str, **given: Any) -> Wrong:
    return Wrong("cde", {"logits1": X, "logits0": Y, **given}, error, says, also)


def linear(error: type[Exception], says: str, *also: str, **given: Any) -> Wrong:
    arrays = {"hidden1": X, "hidden0": Y, "weight": W, **given}
    return Wrong("linear_cde", arrays, error, says, also)


def ace(error: type[Exception], says: str, *also: str, **given: Any) -> Wrong:
    return Wrong("ace", {"q": Q, "k": K, "response_start": 5, **given}, error, says, also)


def drm(error: type[Exception], says: str, *also: str, **given: Any) -> Wrong:
    return Wrong("drm", {"difficulty": S, "k": 3, **given}, error, says, also)


INPUT, CONFIG = rap.RapInputError, rap.RapConfigError
TABLE = [
    # --- what is no array, and dtypes
    cde(TypeError, "logits1: expected an array, got None", logits1=None),
    cde(TypeError, "logits0: expected an array .* or lists .*, got str", logits0="a"),
    cde(INPUT, f"logits1: {LISTS}", logits1=[[1.0, 2.0], [1.0]]),
    cde(TypeError, r"logits1: .* a list that NumPy reads as <U1", logits1=[["a"]]),
    cde(
        TypeError,
        r"logits0: a tuple of tensors .* pass torch.stack\(x\)",
        logits0=tuple(torch.ones(6, 10).bfloat16()),
    ),
    cde(TypeError, f"logits1: {FLOATS}, got int64", logits1=X.astype(int)),
    cde(TypeError, f"logits0: {FLOATS}, got bool", logits0=X > 0),
    cde(TypeError, f"logits1: int32 is not taken; {FLOATS}", logits1=X.astype("i4")),
    cde(TypeError, "logits1: complex64 is not taken", logits1=torch.from_numpy(X).cfloat()),
    cde(TypeError, "logits0: int8 is not taken", logits0=torch.from_numpy(X).char()),
    *[
        cde(
            TypeError,
            "logits0: a dtype of 8 bits is not taken",
            logits0=torch.from_numpy(X).to(torch.float8_e5m2),
        )
    ]
    * EXPORTS_8_BITS,
    cde(TypeError, "logits1: object is not taken", logits1=X.astype(object)),
    cde(TypeError, "logits1: byte order .* convert it", logits1=X.astype(">f4")),
    cde(
        TypeError,
        "logits1: float64 is taken of NumPy, torch, JAX and lists only; convert it",
        logits1=memoryview(array.array("d", bytes(480))).cast("B").cast("d", [6, 10]),
    ),
    linear(TypeError, f"weight: {FLOATS}, got int64", weight=W.astype(int)),
    linear(TypeError, f"bias: {FLOATS}, got bool", bias=np.zeros(12, bool)),
    linear(TypeError, "weight: .* got Linear", weight=torch.nn.Linear(1, 1)),
    ace(TypeError, f"k: {FLOATS}, got int64", k=K.astype(int)),
    ace(INPUT, r"lse: .* got float16 \[4, 20\]", lse=np.zeros((4, 20), np.float16)),
    drm(TypeError, "difficulty: expected an array, got None", difficulty=None),
    drm(INPUT, r"difficulty: .* shares \(1 - pass rate\) .* up to 90 .* by 100",
        difficulty=100 * S),
    drm(INPUT, "difficulty: .* divide percentages by 100",
        difficulty=torch.from_numpy(100 * S)),
    drm(TypeError, "difficulty: expected numbers, got complex128", difficulty=S + 1j),
    drm(TypeError, "difficulty: expected numbers, got <U1", difficulty=["a"]),
    drm(TypeError, "gain: expected plain real numbers", gain=torch.zeros(30).cfloat()),
    drm(TypeError, r"gain: expected numbers, got timedelta64", gain=np.zeros(30, "m8[s]")),
    drm(INPUT, "eligible: expected booleans, got int64", eligible=[1] * 30),
    # --- masks of NumPy, under which the values would still be read
    cde(INPUT, "logits1: 60 elements of this array are masked", logits1=MASKED(X)),
    linear(INPUT, "weight: 120 elements of .* masked; fill them", weight=MASKED(W)),
    drm(INPUT, "difficulty: 30 elements of .* masked", difficulty=MASKED(S)),
    drm(INPUT, "eligible: 30 elements of .* masked", eligible=MASKED(S > 0)),
    cde(INPUT, "targets: 6 elements of .* masked", targets=MASKED(np.zeros(6, int))),
    # --- shapes
    cde(INPUT, "logits1 and logits0: expected two dimensions, or three", logits1=X[0]),
    cde(INPUT, r"logits1 \[6, 10\] and logits0 \[2, 10\] must have the", logits0=Y[:2]),
    cde(INPUT, r"logits1 \[2, 3, 10\] and logits0 \[6, 10\] must", logits1=BATCH),
    linear(INPUT, r"weight: expected \[V, 10\], got float32 \[10, 12\]", weight=W.T),
    linear(INPUT, r"bias: expected numbers \[12\], got float32 \[3\]", bias=W[0, :3]),
    ace(INPUT, r"q: .* \[heads, L, D\], got \[1, 4, 20, 8\]; .* pass q\[0\]", q=Q[None]),
    ace(INPUT, r"k: expected an array \[heads, L, D\], got str", k="k"),
    ace(INPUT, "q: heads have no dimension", q=Q[..., :0], k=K[..., :0]),
    ace(INPUT, r"column_mask: .* bool \[20\], got bool \[3\]", column_mask=[True] * 3),
    ace(INPUT, r"image_mask: .* got bool \[1, 20\]", image_mask=np.ones((1, 20), bool)),
    ace(INPUT, r"lse: .* \[4, 20\], got float64 \[2, 20\]", lse=np.zeros((2, 20))),
    drm(INPUT, r"difficulty: expected \[N\], got 2 dimensions", difficulty=S[None]),
    drm(INPUT, r"gain: expected contiguous numbers \[30\], got float64 \[3\]", gain=S[:3]),
    drm(INPUT, r"eligible: .* bool \[30\], got bool \[3\]", eligible=[True] * 3),
    # --- integers: targets, offsets, starts
    cde(INPUT, r"targets: expected int64 \[6\], got int64 \[2\]", targets=[0, 1]),
    cde(INPUT, "targets: expected integers, got float64", targets=np.zeros(6)),
    cde(INPUT, "targets: 18446744073709551516 is no int64", targets=HUGE),
    cde(INPUT, f"targets: {LISTS}", targets=[[0], [1, 2]]),
    cde(INPUT, r"targets: expected \[2, 3\], got \[6\]", logits1=BATCH, logits0=BATCH,
        targets=[0] * 6),
    cde(CONFIG, "ignore_index = 1.5: expected an integer or None", targets=[0] * 6,
        ignore_index=1.5),
    cde(INPUT, "cu_seqlens: expected rising integers from 0 to 6", cu_seqlens=[0, 5]),
    cde(INPUT, r"weights: expected numbers \[6\], got \[1\]", cu_seqlens=[0, 6],
        weights=[1]),
    cde(INPUT, r"weights\[1\] = -2.0: expected finite numbers >= 0", cu_seqlens=[0, 6],
        weights=[1, -2, 1, 1, 1, 1]),
    cde(INPUT, "weights: expected numbers, got <U1", cu_seqlens=[0, 6], weights=["a"] * 6),
    ace(INPUT, "response_start = 21: expected 0 to L = 20", response_start=21),
    ace(INPUT, "response_start = -1: expected 0 to L = 20", response_start=[-1]),
    ace(INPUT, f"response_start = {2**63 - 1}: expected 0 to", response_start=2**70),
    ace(INPUT, f"response_start = -{2**63}: expected 0 to", response_start=-(2**70)),
    ace(INPUT, r"response_start: .* int64 \[1\], got int64 \[2\]", response_start=[1, 2]),
    ace(INPUT, "response_start: expected integers, got float64", response_start=5.0),
    ace(TypeError, "response_start: expected an array, got None", response_start=None),
    ace(INPUT, "response_start = 11 of sample 1: expected 0 to 10, its length",
        response_start=[0, 11], cu_seqlens=[0, 10, 20]),
    ace(INPUT, r"cu_seqlens\[2\] = 10 is below the one before it, 15", response_start=0,
        cu_seqlens=[0, 15, 10, 20]),
    ace(INPUT, r"cu_seqlens: expected int64 \[S \+ 1\] that rises from 0 to L = 20",
        cu_seqlens=[0, 15]),
    # --- options
    cde(CONFIG, "want = 3: expected some of", want=3),
    cde(CONFIG, "want = 'logp1' needs targets", "targets", want="logp1"),
    cde(CONFIG, "weights need cu_seqlens", "cu_seqlens", weights=[1] * 6),
    cde(CONFIG, "threads = 0: expected an integer >= 1", threads=0),
    linear(CONFIG, "softcap = 'x': expected None or a number > 0", softcap="x"),
    linear(INPUT, "softcap = inf: expected a float32 > 0", softcap=float("inf")),
    linear(CONFIG, "scale = 'x': expected None or a number", scale="x"),
    linear(INPUT, "scale = nan: expected a finite float32", scale=float("nan")),
    linear(CONFIG, "memory = -1: expected an integer >= 0", memory=-1),
    ace(CONFIG, r"heads = \[\]: expected one of", heads=[]),
    ace(CONFIG, "sigma = 'x': expected a number > 0", sigma="x"),
    ace(INPUT, "sigma = 0: expected a finite number > 0", sigma=0),
    ace(INPUT, "scale = -1: expected a finite number >= 0", scale=-1),
    ace(INPUT, "top = 65: expected 1 to 64", top=65),
    ace(CONFIG, "window = 0: expected an integer >= 1", window=0),
    drm(CONFIG, "k = 3.0: expected an integer >= 0", k=3.0),
]  # fmt: skip


@pytest.mark.parametrize("wrong", TABLE, ids=lambda w: f"{w.call}-{w.says[:40]}")
def test_what_is_said_of_a_wrong_call(wrong: Wrong) -> None:
    call = getattr(rap, wrong.call)
    with pytest.raises(wrong.error, match=f"^{wrong.says}") as caught:
        call(**wrong.given)
    assert type(caught.value) is wrong.error
    names = set(inspect.signature(call).parameters) - wrong.given.keys() - set(wrong.also)
    said = set(re.findall(r"\w+", str(caught.value)))
    assert not said & names - {"heads"}  # a word of every sentence on q and k


# ---------------------------------------------------------------- lists


def lists(x: Any) -> Any:
    """Arrays as lists of numbers; other values as they are."""
    return x.tolist() if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("make", [lists, lambda x: tuple(map(tuple, lists(x))), list])
def test_lists_are_read_as_numpy_reads_them(make: Any) -> None:
    """Python's floats are float64; a list of float32 arrays stays float32."""
    wide = make is not list

    def read(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64) if wide else x

    want = rap.cde(read(X), read(Y)).kl
    assert rap.cde(make(X), make(Y)).kl.tobytes() == want.tobytes()
    want = rap.linear_cde(read(X), read(Y), read(W + 1)).js
    assert rap.linear_cde(make(X), make(Y), make(W + 1)).js.tobytes() == want.tobytes()


def test_lists_for_the_other_arguments() -> None:
    q, k, lse = Q.astype(np.float64), K.astype(np.float64), np.full((4, 20), 3.0)
    options = dict(response_start=5, heads="each", stats=False)
    got = rap.ace(q.tolist(), k.tolist(), lse=lse.tolist(), **options)
    assert got.log_psi.tobytes() == rap.ace(q, k, lse=lse, **options).log_psi.tobytes()
    bias = np.arange(12.0)
    got = rap.linear_cde(X, Y, W, bias=bias.tolist()).kl
    assert got.tobytes() == rap.linear_cde(X, Y, W, bias=bias).kl.tobytes()
    assert rap.drm(S.tolist(), 3, gain=S.tolist()).tolist() == [29, 28, 27]


def test_whole_numbers_in_lists_are_numbers() -> None:
    """An array of integers is refused, since ids are passed by mistake; a list is not: its
    dtype was nobody's choice."""
    got = rap.cde([[1, 2, 4]], [[1, 3, 2]])
    truth = reference.cde([[1.0, 2.0, 4.0]], [[1.0, 3.0, 2.0]])
    assert abs(got.kl[0] - truth["kl"][0]) < 1e-6


class Producer:
    """DLPack and nothing else, of somebody's memory."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __dlpack__(self, **kwargs: Any) -> object:
        return self.x.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def test_producers_that_do_not_say_their_shape() -> None:
    """DLPack asks for two methods, the buffer protocol for none."""
    a, b, ids = torch.from_numpy(X), torch.from_numpy(Y), torch.arange(6)
    want = rap.cde(X, Y, targets=ids.numpy())
    got = rap.cde(Producer(a), Producer(b), targets=Producer(ids))
    assert got.kl.tobytes() == want.kl.tobytes()
    assert got.logp1.tobytes() == want.logp1.tobytes()
    wide = rap.cde(Producer(a.double()), Producer(b.double())).kl
    assert wide.tobytes() == rap.cde(X.astype(float), Y.astype(float)).kl.tobytes()
    scores = array.array("d", S.tolist())
    assert rap.drm(scores, 3).tolist() == rap.drm(Producer(torch.from_numpy(S)), 3).tolist()
    bias = array.array("f", range(12))
    got = rap.linear_cde(X, Y, W, bias=bias).kl
    assert (
        got.tobytes()
        == rap.linear_cde(X, Y, W, bias=np.arange(12, dtype="f4")).kl.tobytes()
    )
    with pytest.raises(TypeError, match="logits1: uint8 is not taken"):
        rap.cde(b"abcd", Y)


def test_a_mask_that_masks_nothing_is_no_mask() -> None:
    plain = np.ma.masked_array(X)
    assert rap.cde(plain, Y).kl.tobytes() == rap.cde(X, Y).kl.tobytes()
    assert rap.drm(np.ma.masked_array(S), 3).tolist() == rap.drm(S, 3).tolist()


# ---------------------------------------------------------------- no response token


def test_an_empty_response_means_the_same_everywhere() -> None:
    """response_start = L: the maximum over no column, position -1, means over no row; the
    kernel, the reference and the torch operator agree, alone and packed."""
    for heads in ("mean", "max", "each"):
        alone = rap.ace(Q, K, response_start=20, heads=heads, image_mask=np.arange(20) < 4)
        truth = reference.ace(Q, K, response_start=20, heads=heads)
        packed = rap.ace(Q, K, response_start=[8, 0], cu_seqlens=[0, 8, 20], heads=heads)
        for got in (alone.log_psi, alone.log_psi_columns, packed.log_psi[0]):
            assert np.isneginf(got).all()
        assert (alone.position == -1).all() and (packed.position[0] == -1).all()
        assert np.isfinite(packed.log_psi[1]).all()
        for name in ("attention_entropy", "attention_top", "image_mass"):
            assert np.isnan(getattr(alone, name)).all(), name
        assert np.isneginf(truth["log_psi"]).all() and (truth["position"] == -1).all()
        assert np.isnan(truth["attention_entropy"]).all()
    compiled = torch.compile(rap.ace, backend="eager", fullgraph=True)
    again = compiled(torch.from_numpy(Q), torch.from_numpy(K), response_start=20)
    assert again.log_psi.isneginf().all() and (again.position == -1).all()
    assert again.attention_entropy.isnan().all()
    torch._dynamo.reset()
