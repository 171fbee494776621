"""Every entry point of rap._C once, small, under valgrind: `make valgrind`."""

from __future__ import annotations

import contextlib

import numpy as np

import rap
from rap import _C

rng = np.random.default_rng(0)
for name in _C.isa_names():
    _C.isa(name)
    for kind in (np.float32, np.float16):
        x, y = rng.normal(size=(2, 5, 2100)).astype(kind)
        for threads in (1, 2):
            assert np.isfinite(rap.cde(x, y, targets=[1] * 5, threads=threads).js).all()
        rap.cde(x, y.astype(np.float32), want=["kl"])
        h, w = rng.normal(size=(9, 33)).astype(kind), rng.normal(size=(70, 33)).astype(kind)
        got = rap.linear_cde(h, h[::-1], w, bias=w[:, 0].copy(), softcap=9.0, memory=1000)
        assert np.isfinite(got.js).all()
        q = rng.normal(size=(4, 70, 24)).astype(kind)
        cu, start = np.array([0, 30, 30, 70]), np.array([10, 0, 12])
        for heads in ("mean", "max", "each"):
            for columns in ("response", "all"):
                rap.ace(q, q[:2].copy(), response_start=start, cu_seqlens=cu, heads=heads,
                        columns=columns, window=7, key_window=20, renormalise=True,
                        image_mask=np.arange(70) < 9)  # fmt: skip
        rap.ace(q, q, response_start=9, heads="each", stats=False, lse=np.ones((4, 70)))
    d = rng.integers(0, 6, 9000) / 5
    assert len(rap.drm(d, 3000, gain=rng.random(9000), eligible=d > 0.1, threads=2)) == 3000
for bad in (np.zeros((2, 2), complex), np.zeros(3), None, np.zeros((2, 2), object)):
    with contextlib.suppress(TypeError, rap.RapInputError):
        rap.cde(bad, bad)
_C.cuda_info()
print("every entry point")
