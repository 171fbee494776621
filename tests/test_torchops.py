"""The kernels as operators of torch, and what they take and give besides plain arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import rap
import rap.torchops  # registers torch.ops.rap
from rap import kernels, reference
from rap.cuda import Place

T, V, E, L = 6, 40, 12, 30


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


L1, L0 = made(T, V), made(T, V, seed=1)
TARGETS = torch.tensor([3, -100, 5, 0, 39, -100])
CU, WEIGHTS = torch.tensor([0, 2, 6]), torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0, 3.0])
H1, H0, HEAD, BIAS = made(T, E), made(T, E, seed=2), made(V, E, seed=3), made(V, seed=4)
Q, K = made(4, L, 8), made(2, L, 8, seed=5)
SCORES = torch.tensor([0.5, 0.25, 1.0, 0.75, 0.0, 0.5])


def all_cde(a, b):
    return rap.cde(a, b, targets=TARGETS)


def means_cde(a, b):
    return rap.cde(a, b, targets=TARGETS, weights=WEIGHTS, cu_seqlens=CU, want=("kl", "tv"))


def some_linear(a, b):
    return rap.linear_cde(a, b, HEAD, bias=BIAS, softcap=3.0, targets=TARGETS)


def mean_ace(a, b):
    return rap.ace(a, b, response_start=12, columns="all", image_mask=torch.arange(L) < 4)


def each_ace(a, b):
    cu = torch.tensor([0, 14, L])
    return rap.ace(a, b, response_start=[3, 5], cu_seqlens=cu, heads="each", min_rows=2)


CALLS = {
    "cde": (all_cde, L1, L0),
    "means": (means_cde, L1, L0),
    "batch": (
        lambda a, b: rap.cde(a, b, targets=TARGETS.view(2, 3)),
        *(x.view(2, 3, V) for x in (L1, L0)),
    ),
    "linear_cde": (some_linear, H1, H0),
    "ace": (mean_ace, Q, K),
    "ace each": (each_ace, Q, K),
}


def same(a, b) -> None:
    for name, x in a._asdict().items():
        y = getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype and torch.equal(x.nan_to_num(77), y.nan_to_num(77))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_call_breaks_no_graph_and_gives_the_same_bytes(name, backend):
    call, *arrays = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    same(compiled(*arrays), call(*arrays))


def test_lengths_may_change_in_a_compiled_call():
    compiled = torch.compile(rap.cde, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (6, 4, 5):
        same(compiled(L1[:n], L0[:n]), rap.cde(L1[:n], L0[:n]))


def test_a_start_that_depends_on_a_shape_is_compiled():
    def call(q, k, prompt):
        return rap.ace(q, k, response_start=prompt.shape[0])

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (3, 9):
        same(compiled(Q, K, torch.zeros(n)), rap.ace(Q, K, response_start=n))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_drm_is_compiled_where_lengths_may_depend_on_data():
    compiled = torch.compile(lambda d: rap.drm(d, 3) + 1, fullgraph=True, backend="eager")
    assert compiled(SCORES).tolist() == [4, 1, 6]


def test_export_keeps_the_operator():
    class Module(torch.nn.Module):
        def forward(self, a, b):
            return rap.cde(a, b, want="kl").kl

    program = torch.export.export(Module(), (L1, L0))
    assert "rap.cde" in str(program.graph)
    assert torch.equal(program.module()(L1, L0), rap.cde(L1, L0).kl)


def operators() -> dict[str, tuple]:
    ops, every = torch.ops.rap, (1 << 10) - 1
    numbers, flags = [0.5, 2.0], [8, 0, 0, 0, 1, 8, 0, 1, 1]
    each = [2, 0, 0, kernels.HEADS["each"], 1, 8, 0, 1, 1]
    start = torch.tensor([12])
    mask = torch.arange(L) < 4
    ids = TARGETS.clamp(0)  # without NaN, which opcheck takes for a difference
    return {
        "cde": (ops.cde.default, (L1, L0, ids, None, None, -100, every, None)),
        "means": (ops.cde.default, (L1, L0, TARGETS, WEIGHTS, CU, -100, 9, 1)),
        "linear": (
            ops.linear_cde.default,
            (H1, H0, HEAD, BIAS, 0.5, 3.0, None, TARGETS, None, CU, -100, every, None),
        ),
        "ace": (
            ops.ace.default,
            (Q, K, start, None, mask, mask, None, numbers, flags, None),
        ),
        "each": (ops.ace.default, (Q, K, start, None, None, mask, None, numbers, each, 1)),
        "drm": (ops.drm.default, (SCORES, 3, SCORES > 0.3, SCORES, None)),
    }


@pytest.mark.parametrize("name", operators())
def test_torch_accepts_the_operators(name):
    """Schema, shape function, autograd registration, AOT dispatch."""
    op, arguments = operators()[name]
    checked = torch.library.opcheck(op, arguments)
    assert set(checked.values()) == {"SUCCESS"}


def test_meta_tensors_have_shapes():
    a, b = L1.to("meta"), L0.to("meta")
    got = torch.ops.rap.cde(a, b, None, None, None, None, 0b1001, None)
    assert got.shape == (2, T) and got.dtype == torch.float64 and got.is_meta
    q = Q.to("meta")
    flags = [8, 0, 0, 0, 1, 8, 0, 1, 1]
    start = torch.tensor([12], device="meta")
    summary, position, psi = torch.ops.rap.ace(
        q, q, start, None, None, None, None, [0.5, 2.0], flags, None
    )
    assert (summary.shape, position.shape, psi.shape) == ((4, 1), (1,), (L,))


def test_the_public_functions_of_meta_tensors_give_shapes():
    def meta(*tensors):
        return [x.to("meta") for x in tensors]

    for targets, weights, cu in ((None, None, None), (TARGETS, WEIGHTS, CU)):
        options = {"targets": targets, "weights": weights, "cu_seqlens": cu}
        for call, arrays in ((rap.cde, (L1, L0)), (rap.linear_cde, (H1, H0, HEAD))):
            want, got = call(*arrays, **options), call(*meta(*arrays), **options)
            for a, b in zip(want, got, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert b.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype)
    for options in ({}, {"heads": "each"}):
        want = rap.ace(Q, K, response_start=12, **options)
        got = rap.ace(*meta(Q, K), response_start=12, **options)
        for a, b in zip(want, got, strict=True):
            assert b.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype)
    for call in (
        lambda: rap.cde(L1.to("meta"), L0),
        lambda: rap.ace(Q, K.to("meta"), response_start=12),
        lambda: rap.drm(SCORES.to("meta"), 3),
    ):
        with pytest.raises(rap.RapInputError, match="a meta tensor has a shape"):
            call()


def test_operators_called_by_name_have_the_defaults_of_the_functions():
    ops = torch.ops.rap
    for targets in (None, TARGETS):  # with -100, which does not count
        want = [x for x in rap.cde(L1, L0, targets=targets) if x is not None]
        assert torch.equal(ops.cde(L1, L0, targets).nan_to_num(7), stacked(want))
        got = ops.linear_cde(H1, H0, HEAD, targets=targets)
        want = [x for x in rap.linear_cde(H1, H0, HEAD, targets=targets) if x is not None]
        assert torch.equal(got.nan_to_num(7), stacked(want))
        shapes = ops.cde(L1.to("meta"), L0.to("meta"), targets)
        assert len(shapes) == (10 if targets is not None else 8)
    result = rap.ace(Q, K, response_start=12)
    summary, position, psi = ops.ace(Q, K, torch.tensor([12]))
    assert torch.equal(summary.nan_to_num(7), stacked([*result[:1], *result[2:5]]))
    assert torch.equal(position, result.position)
    assert torch.equal(psi, result.log_psi_columns)
    assert ops.drm(SCORES, 3).tolist() == rap.drm(SCORES, 3).tolist()


def stacked(values) -> torch.Tensor:
    return torch.stack(list(values)).nan_to_num(7)


FLAGS = [8, 0, 0, 0, 1, 8, 0, 1, 1]


@pytest.mark.parametrize(
    "want, targets, words",
    [
        (0, None, "want = 0"),
        (-1, None, "want = -1"),
        (1 << 10, None, "want = 1024"),
        (1 << 8, None, "want = 'logp1' needs targets"),
    ],
)
def test_outputs_are_checked_where_cde_is_called_by_name(want, targets, words):
    with pytest.raises(rap.RapConfigError, match=words):
        torch.ops.rap.cde(L1, L0, targets, None, None, None, want, None)
    arrays = (H1, H0, HEAD, None, None, None, None)
    with pytest.raises(rap.RapConfigError, match=words):
        torch.ops.rap.linear_cde(*arrays, targets, None, None, None, want, None)


@pytest.mark.parametrize(
    "q, numbers, flags, words",
    [
        (Q[0], [1.0, 2.0], FLAGS, r"q: .* got \[30, 8\]"),
        (Q, [1.0], FLAGS, r"numbers \[2\] and flags \[9\], got 1 and 9"),
        (Q, [1.0, 2.0], FLAGS[:3], r"got 2 and 3"),
        (Q, [1.0, 2.0], [8, 0, 0, 9, *FLAGS[4:]], "heads"),
        (Q, [1.0, 2.0], [*FLAGS[:5], 99, *FLAGS[6:]], "top = 99"),
    ],
)
def test_options_are_checked_where_ace_is_called_by_name(q, numbers, flags, words):
    with pytest.raises((rap.RapConfigError, rap.RapInputError), match=words):
        start = torch.tensor([5])
        torch.ops.rap.ace(q, K, start, None, None, None, None, numbers, flags, None)


def test_lists_and_arrays_of_numpy_in_a_compiled_call():
    """In the precision they have outside of it."""

    def call(a, b):
        more = dict(weights=[0.1] * T, targets=[0, 1, 2, 3, 4, -100])
        return rap.cde(a, b, cu_seqlens=np.array([0, 2, 6]), **more)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    same(compiled(L1, L0), call(L1, L0))

    def packed(q, k):
        return rap.ace(q, k, response_start=np.array([3, 5]), cu_seqlens=[0, 14, L])

    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    same(compiled(Q, K), packed(Q, K))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", CALLS)
def test_case_42_a_gradient_is_refused_by_name(name):
    call, a, b = CALLS[name]
    got = call(a.clone().requires_grad_(), b)
    plain = call(a, b)
    kernel = "ace" if "ace" in name else "linear_cde" if "linear" in name else "cde"
    for field, value in got._asdict().items():
        if value is None or not value.is_floating_point():
            continue
        assert torch.equal(
            value.detach().nan_to_num(7), getattr(plain, field).nan_to_num(7)
        )
        with pytest.raises(rap.RapInputError, match=rf"rap\.{kernel} has no gradient"):
            value.nan_to_num(0).clamp(-9, 9).sum().backward()


def test_case_42_a_gradient_is_not_dropped_beside_another_loss():
    a = L1.clone().requires_grad_()
    with pytest.raises(rap.RapInputError, match="no gradient"):
        (a.square().sum() + rap.cde(a, L0).kl.sum()).backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_call_refuses_a_gradient_when_it_comes(backend):
    compiled = torch.compile(all_cde, fullgraph=True, backend=backend)
    got = compiled(L1.clone().requires_grad_(), L0)
    assert torch.equal(got.kl.detach(), all_cde(L1, L0).kl)
    with pytest.raises(rap.RapInputError, match="rap.cde has no gradient"):
        got.kl.sum().backward()


def test_without_gradients_nothing_is_attached():
    a = L1.clone().requires_grad_()
    with torch.no_grad():
        assert not rap.cde(a, L0).kl.requires_grad
    assert not rap.cde(a.detach(), L0).kl.requires_grad
    assert not rap.drm(SCORES.clone().requires_grad_(), 2).requires_grad


# ---------------------------------------------------------------- what is taken


def close(got, want, **more) -> None:
    np.testing.assert_allclose(np.asarray(got), want, **{"rtol": 1e-5, "atol": 1e-7} | more)


@pytest.mark.parametrize("framework", [np.asarray, torch.asarray], ids=["numpy", "torch"])
def test_double_precision_logits_far_from_zero(framework):
    """Rounded as they are, 1e9 + logit would lose the logits."""
    rng = np.random.default_rng(3)
    l1, l0 = rng.normal(size=(2, 100, V))
    l1[3, 5], l0[4, 7], l0[6] = -np.inf, np.inf, -np.inf
    want = reference.cde(l1, l0, targets=np.arange(100) % V)
    a, b = framework(l1 + 1e9), framework(l0 - 1e9)
    got = rap.cde(a, b, targets=np.arange(100) % V).to_dict()
    assert list(got) == list(want)
    for name, values in want.items():
        close(got[name], values, rtol=1e-4, atol=2e-6)  # 1e9 has 1e-7 left of a logit


def test_double_precision_elsewhere_is_rounded():
    h, w, q = (x.numpy().astype(np.float64) for x in (H1, HEAD, Q))
    got = rap.linear_cde(h, H0.numpy(), w, bias=BIAS.numpy().astype(np.float64))
    assert np.array_equal(got.kl, rap.linear_cde(H1, H0, HEAD, bias=BIAS).kl.numpy())
    double = rap.ace(torch.from_numpy(q), K.double(), response_start=9)
    same(double, rap.ace(Q, K, response_start=9))
    fortran = np.asfortranarray(h)
    assert np.array_equal(rap.linear_cde(fortran, h, w).kl, rap.linear_cde(h, h, w).kl)


CUTS = {"whole": slice(None), "all but the last": slice(4), "only the last": slice(4, 5)}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_are_taken_as_they_lie(cut, dtype):
    a, b = made(3, 5, V).to(dtype), made(3, 5, V, seed=9).to(dtype)
    part = {
        "whole": slice(None),
        "all but the last": slice(4),
        "only the last": slice(4, 5),
    }
    a, b = a[:, part[cut]], b[:, part[cut]]
    ids = torch.arange(3 * a.shape[1]).view(3, -1) % V
    want = reference.cde(
        *(x.double().reshape(-1, V).numpy() for x in (a, b)), targets=ids.reshape(-1)
    )
    got = rap.cde(a, b, targets=ids)
    for name, values in want.items():
        close(getattr(got, name), values.reshape(ids.shape), rtol=1e-4, atol=1e-6)
    if dtype is not torch.bfloat16:
        again = rap.cde(a.numpy(), b.numpy(), targets=ids.tolist())
        assert np.array_equal(again.js, got.js.numpy())
    hidden = made(3, a.shape[1], E)
    flat = rap.linear_cde(hidden.view(-1, E), hidden.view(-1, E) + 1, HEAD).kl
    assert torch.equal(rap.linear_cde(hidden, hidden + 1, HEAD).kl, flat.view(3, -1))
    lengths = np.arange(4) * a.shape[1]
    weights = torch.rand(3, a.shape[1])
    by_sample = rap.cde(a, b, cu_seqlens=lengths, weights=weights, want="kl").kl
    kl = want["kl"].reshape(weights.shape)
    close(by_sample, (kl * weights.numpy()).sum(1) / weights.numpy().sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"targets": torch.zeros(6, dtype=torch.long)}, r"targets: expected \[2, 3\]"),
        (
            {"targets": [[1, 2], [3, 4], [5, 6]]},
            r"targets: expected \[2, 3\], got \[3, 2\]",
        ),
        ({"weights": torch.ones(6), "cu_seqlens": [0, 6]}, r"weights: expected \[2, 3\]"),
    ],
)
def test_what_belongs_to_a_batch_has_its_shape(more, words):
    a = L1.view(2, 3, V)
    with pytest.raises(rap.RapInputError, match=words):
        rap.cde(a, a, **more)
    with pytest.raises(rap.RapInputError, match="must have the same shape"):
        rap.cde(a, L0.view(3, 2, V))


def test_empty_batches():
    assert rap.cde(torch.empty(0, 3, V), torch.empty(0, 3, V)).kl.shape == (0, 3)
    assert rap.cde(np.empty((2, 0, V)), np.empty((2, 0, V))).kl.shape == (2, 0)


@pytest.mark.parametrize("as_given", [np.asarray, lambda x: x], ids=["numpy", "torch"])
@pytest.mark.parametrize("linear", [False, True], ids=["cde", "linear_cde"])
def test_ignored_targets_do_not_count(as_given, linear):
    l1, l0 = (H1 @ HEAD.T, H0 @ HEAD.T) if linear else (L1, L0)
    keep = TARGETS != -100
    cu = [0, 0, 2, 2, 5, 6]  # the last sample is all ignored
    kept = [0, 0, 1, 1, 4, 4]
    want = reference.cde(
        *(x[keep].numpy() for x in (l1, l0)),
        targets=TARGETS[keep].numpy(),
        weights=WEIGHTS[keep].numpy(),
        cu_seqlens=kept,
    )

    def call(**more):
        if linear:
            return rap.linear_cde(*map(as_given, (H1, H0, HEAD)), **more)
        return rap.cde(as_given(L1), as_given(L0), **more)

    weights = as_given(WEIGHTS)
    got = call(targets=as_given(TARGETS), weights=weights, cu_seqlens=cu).to_dict()
    for name, values in want.items():
        close(got[name], values, rtol=1e-4)
    rows = call(targets=as_given(TARGETS))
    assert np.isnan(np.asarray(rows.logp1)).tolist() == (~keep).tolist()
    assert np.isnan(np.asarray(rows.logp0)).tolist() == (~keep).tolist()
    assert np.isfinite(np.asarray(rows.kl)).all()
    with pytest.raises(rap.RapInputError, match=r"targets\[1\] = -100 is not in"):
        call(targets=as_given(TARGETS), ignore_index=None)
    five = call(targets=as_given(TARGETS.clamp(0)), ignore_index=5)
    assert np.isnan(np.asarray(five.logp1)).nonzero()[0].tolist() == [2]


def test_ignored_targets_on_a_device():
    """The same methods of a CUDA place, on tensors that stand for a device's."""
    place = Place(0, 1, torch.empty)
    ids, ignored = place.ignoring(TARGETS, -100)
    assert ids is TARGETS and ignored.tolist() == (TARGETS == -100).tolist()
    ids, ignored = place.ignoring(TARGETS.clamp(0), 5)
    assert ids.tolist() == [3, 0, 0, 0, 39, 0] and ignored.tolist() == [0, 0, 1, 0, 0, 0]
    out = torch.zeros(10, T)
    place.blank(out, [8, 9], ignored.numpy())
    assert out.isnan().nonzero().tolist() == [[8, 2], [9, 2]]
    host = np.array([1, -100])
    ids, ignored = place.ignoring(host, -100)
    assert ids.tolist() == [1, 0] and ignored.tolist() == [False, True]
    with pytest.raises(rap.RapInputError, match="known for NumPy and torch only"):
        place.blank(np.zeros((10, 2)), [8], ignored)
    assert place.joined([out, out]).shape == (10, 2 * T)


def test_results_as_dictionaries():
    got = rap.cde(L1, L0, want=("kl", "tv")).to_dict()
    assert list(got) == ["kl", "tv"] and torch.equal(got["kl"], rap.cde(L1, L0).kl)
    ace = rap.ace(Q, K, response_start=9).to_dict()
    assert list(ace) == list(rap.AceResult._fields)


# ---------------------------------------------------------------- JAX


def test_jax_in_jax_out():
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    a, b = (jax.numpy.asarray(x.numpy()) for x in (L1, L0))
    for cast in (lambda x: x, lambda x: x.astype(jax.numpy.bfloat16)):
        got = rap.cde(cast(a), cast(b), targets=TARGETS.numpy())
        assert isinstance(got.kl, jax.Array) and got.kl.dtype == np.float32
        want = reference.cde(
            *(np.asarray(cast(x), np.float64) for x in (a, b)),
            targets=TARGETS.clamp(0).numpy(),
        )
        close(got.kl, want["kl"], rtol=1e-4)
    batch = rap.cde(a.reshape(2, 3, V), b.reshape(2, 3, V), want="js").js
    close(batch, rap.cde(L1, L0).js.view(2, 3))
    q, k = (jax.numpy.asarray(x.numpy()) for x in (Q, K))
    start = jax.numpy.asarray([9])
    found = rap.ace(q, k, response_start=start)
    assert isinstance(found.position, jax.Array)
    close(found.log_psi, rap.ace(Q, K, response_start=9).log_psi)
    assert rap.drm(jax.numpy.asarray(SCORES.numpy()), 3).tolist() == [3, 0, 5]
    with pytest.raises(rap.RapInputError, match="JAX is tracing"):
        jax.jit(lambda x: rap.cde(x, x).kl)(a)
    gone = a + 0
    gone.delete()
    with pytest.raises(rap.RapInputError, match="array of JAX that was deleted"):
        rap.cde(gone, b)
    with jax.enable_x64(True):
        assert rap.cde(a.astype("float64"), b).kl.dtype == np.float64


# ---------------------------------------------------------------- torch stays optional

WITHOUT_TORCH = """
import sys
import numpy as np, rap
x = np.random.default_rng(0).normal(size=(2, 3, 100))
assert rap.cde(x, x[::-1], targets=[[1, -100, 2]] * 2).kl.shape == (2, 3)
assert rap.drm(np.array([0.2, 0.5]), 1).tolist() == [1]
assert not {"torch", "jax", "rap.torchops"} & set(sys.modules), "imported"
"""


def test_nothing_of_torch_is_imported_for_numpy():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
