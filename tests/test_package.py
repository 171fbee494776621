"""The package as a user meets it: public names, and life without torch."""

from __future__ import annotations

import subprocess
import sys

import rap

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
import numpy as np, rap
from rap import *
x = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
assert np.isfinite(rap.cde(x, x[::-1]).kl).all()
assert rap.drm(np.array([0.2, 0.5]), 1).tolist() == [1]
assert rap.info()["isa"]
for call in (rap.score, rap.select):
    try:
        call(None, None, [])
    except rap.RapConfigError as error:
        assert "torch" in str(error) and "rap-select[hf]" in str(error)
    else:
        raise AssertionError("not refused")
"""


def test_public_names_exist_and_say_what_they_are():
    for name in rap.__all__:
        assert getattr(rap, name).__doc__, name


def test_kernels_and_names_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    assert not hasattr(rap, "scores_of")
