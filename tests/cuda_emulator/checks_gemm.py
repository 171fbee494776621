"""What must hold for the kernels beside the products: a check raises where it does not."""

from __future__ import annotations

import numpy as np
import torch

from .build import Mutation
from .gemm import stack


def stacked(mutation: Mutation | None = None) -> None:
    """As they are, or widened if the dtypes differ; rows that begin anywhere, under
    AddressSanitizer."""
    rng = np.random.default_rng(7)
    x, y = (torch.from_numpy(rng.normal(size=(5, 40))) for _ in "ab")
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    for a, b in [(k, k) for k in kinds] + [(kinds[0], kinds[1]), (kinds[2], kinds[1])]:
        for skip, columns in ((0, 40), (0, 1), (3, 24), (8, 31), (1, 39)):
            p, q = x.to(a), y.to(b)
            got = stack(p, q, columns, skip, variant="asan", mutation=mutation)
            want = [z[:, skip : skip + columns] for z in (p, q)]
            want = want if a == b else [z.float() for z in want]
            assert torch.equal(got, torch.cat(want)), (a, b, skip, columns)
