"""compute-sanitizer over small calls of every room, in processes of their own.

Without torch's caching allocator: in its segments memcheck sees one large allocation, and
nothing that goes over the end of an array in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from .build import ROOT
from .device import GPU
from .report import say

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
REFUSED = re.compile(r"(not supported|unsupported|Unable to|insufficient perm).*", re.I)
SMALL = """
import torch, rap
def normal(*shape):
    return torch.randn(*shape, device="cuda").bfloat16()
l1, l0 = normal(3, 5001), normal(3, 5001)
rap.cde(l1, l0, targets=torch.arange(3, device="cuda"))
rap.cde(l1[:, 1:], l0[:, 1:])
rap.cde(l1[:, 1:-1], l0[:, 2:])
h1, h0, w = normal(70, 64), normal(70, 64), normal(501, 64)
rap.linear_cde(h1, h0, w, softcap=9.0, memory=8 * 64 * 512)
rap.linear_cde(h1, h0, w.float(), want="logp1", targets=torch.arange(70, device="cuda"))
q, k = normal(4, 130, 64), normal(2, 130, 64)
for heads in ("mean", "max", "each"):
    rap.ace(q, k, response_start=40, heads=heads)
d = torch.randint(0, 9, (5000,), device="cuda") / 8
rap.drm(d, 2500, gain=torch.rand(5000, device="cuda"))
torch.cuda.synchronize()
print("done")
"""


def tool(name: str, limit: float) -> None:
    # initcheck must see what cuBLASLt writes; of the others our kernels are of interest
    only = [] if name == "initcheck" else ["--kernel-regex", "kns=rap_"]
    command = [
        "compute-sanitizer", "--tool", name, "--report-api-errors", "no",
        "--error-exitcode", "1", *only, sys.executable, "-c", SMALL,
    ]  # fmt: skip
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        say("sanitizer", name, skipped=f"not done after {limit:.0f} s")
        return
    text = done.stdout + done.stderr
    refused = REFUSED.search(text)
    if "done" not in done.stdout and refused:
        say("sanitizer", name, skipped=f"the device refuses it: {refused[0][:200]}")
        return
    ok = done.returncode == 0 and "done" in done.stdout
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    say("sanitizer", name, ok=ok, said=(summary or [text[-500:]])[-1])


def run(limit: float) -> None:
    """Each tool within its part of `limit` seconds."""
    why = None if shutil.which("compute-sanitizer") else "it is not installed"
    why = why if GPU else "DEV=cpu"
    if why is not None:
        say("sanitizer", "compute-sanitizer", skipped=why)
        return
    for name in TOOLS:
        tool(name, limit / len(TOOLS))
