"""What the CUDA kernels should cost, on paper: writes benchmarks/ROOFLINE.md.

    python -m benchmarks.roofline            from the recorded instruction counts
    python -m benchmarks.roofline --count    count them again first (nvcc, cuobjdump)

Nothing here was run on a GPU. Instructions for one element are counted in machine code
(`benchmarks.roofline_counts`); bytes follow from the shapes; the time is the larger of what
memory and what the issue slots allow, and LAUNCH for each launch. Rivals get the least
traffic their published form needs, no launches and no idle warps, which flatters them.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass

from benchmarks.roofline_counts import GPUS, ROOT, Gpu, count
from benchmarks.shapes import MODELS, QWEN, Shape

PAGE = ROOT / "benchmarks" / "ROOFLINE.md"
COUNTS = ROOT / "benchmarks" / "results" / "cuda_instructions.json"

# --- times ----------------------------------------------------------------------------

LAUNCH = 2e-6
"""Seconds a launch costs the device, from published measurements, as remembered."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes moved to or from memory, instructions over all lanes, FLOP of products, bytes
    that only L2 sees; kernels launched; the share of the device's warps that have work;
    exponentials of the special function units; ``fused``: one kernel multiplies and
    reduces, warps beside each other."""

    bytes: float
    instructions: float = 0
    product: float = 0
    cache: float = 0
    launches: int = 0
    busy: float = 1.0
    after: Cost | None = None
    """What runs before it: the two do not overlap."""
    special: float = 0
    fused: bool = False

    def seconds(self, gpu: Gpu) -> float:
        """Products before reductions unless fused, memory and cache under both."""
        parts = self.instructions / gpu.issue, self.product / gpu.tensor
        compute = max(*parts, self.special / gpu.special) if self.fused else sum(parts)
        least = max(self.bytes / gpu.memory, self.cache / gpu.cache, compute)
        before = self.after.seconds(gpu) if self.after else 0.0
        return before + least / self.busy + self.launches * LAUNCH

    def chain(self) -> list[Cost]:
        return [*(self.after.chain() if self.after else []), self]


def busy(rows: float, vocab: int, gpu: Gpu) -> float:
    """Of the row kernel: a block a row over the SMs, eight warps a block over tiles."""
    sms = gpu.lanes // (64 if gpu.arch == 80 else 128)
    tiles = vocab / TILE
    return rows / (sms * math.ceil(rows / sms)) * tiles / (8 * math.ceil(tiles / 8))


Counts = dict[str, dict[str, float]]
ROWS = 512  # response tokens of a batch
TILE = 2048  # pairs a warp takes at a time
SCRATCH = 320 << 20  # bytes of float32 logits at a time
LENGTH, RESPONSE = 4096, 1024  # of one long sample
LONG, LONG_RESPONSE = 32_768, 28_672
ACE_BLOCK = 24  # MiB of scores that stay in L2
ACE_ROWS, ACE_COLUMNS = 64, 128  # of a tile of the fused form


def cde(m: Shape, size: int, counts: Counts, gpu: Gpu, *, mix: bool) -> Cost:
    """Each logit read once (twice with js or tv), nothing else worth counting."""
    pairs, key = ROWS * m.vocab, f"sm_{gpu.arch}"
    work = pairs * _pair(counts, key, mix)
    passes = 2 if mix else 1
    share = busy(ROWS, m.vocab, gpu)
    return Cost(2 * pairs * size * passes, work, launches=1, busy=share)


def _pair(counts: Counts, key: str, mix: bool) -> float:
    """Instructions a pair; js and tv with everything else."""
    if not mix:
        return counts["cde pair, kl"][key]
    first = counts["cde pair, entropies and hellinger2 too"][key]
    return first + counts["cde pair, js and tv"][key]


def block_rows(m: Shape) -> int:
    """rap_cde_cuda_rows: what SCRATCH holds, in blocks of one size."""
    fit = SCRATCH // (8 * 64 * math.ceil(m.vocab / 64))
    even = math.ceil(ROWS / math.ceil(ROWS / fit))
    return min(fit, 64 * math.ceil(even / 64))


def eager(m: Shape, size: int) -> Cost:
    """log_softmax twice (read, write); two kl_div with log_target: exp (2), subtract (3),
    multiply (3), sum (1): 22 passes over an array of logits."""
    return Cost(22 * ROWS * m.vocab * size)


def linear(m: Shape, counts: Counts, gpu: Gpu, *, mix: bool) -> Cost:
    """For each block of rows: both branches stacked, one product with the head, float32
    logits written to memory and read once (twice with js or tv) by the row kernel."""
    pairs, key = ROWS * m.vocab, f"sm_{gpu.arch}"
    blocks = math.ceil(ROWS / block_rows(m))
    head, logits = m.vocab * m.hidden * 2, 2 * pairs * 4
    product = Cost(
        blocks * head + logits, product=2 * 2 * pairs * m.hidden, launches=2 * blocks
    )
    work = pairs * _pair(counts, key, mix)
    share = busy(ROWS / blocks, m.vocab, gpu)
    return Cost(logits * (2 if mix else 1), work, launches=blocks, busy=share,
                after=product)  # fmt: skip


def liger_jsd(m: Shape) -> Cost:
    """fused_linear_jsd, forward only: logits of both arms in bfloat16 (write), to float32
    (read, write), log_softmax (read, write), jsd (two reads, loss and gradient written)."""
    pairs = ROWS * m.vocab
    traffic = 2 * (2 + 2 + 4 + 4 + 4) + 2 * 4 + 2 * 4
    weight = m.vocab * m.hidden * 2
    return Cost(pairs * traffic + weight, 0, 2 * 2 * pairs * m.hidden)


def cce(m: Shape) -> Cost:
    """cut cross-entropy, forward, both arms: lse and the target's logit, no divergence."""
    return Cost(2 * m.vocab * m.hidden * 2, 0, 2 * 2 * ROWS * m.vocab * m.hidden)


def ace_scores(m: Shape, length: int, response: int) -> Cost:
    """The form that stood here for 16-bit numbers too, and stands for float32: a score is
    written, read for its log-sum-exp and read to be folded, all inside L2."""
    terms = m.heads * response * (length - response / 2)
    traffic = 2 * (m.heads * response + m.kv_heads * length) * m.dim
    return Cost(traffic, 0, 2 * terms * m.dim, 16 * terms)  # launches: below


def ace_score_launches(m: Shape, length: int, response: int) -> int:
    """Blocks of rows: a product a key head, four kernels; csrc/ace/ace_launch_cuda.h."""
    line = -(-length // 32) * 32
    rows = max(8, min(512, ACE_BLOCK * 2**18 // (m.heads * line) // 8 * 8))
    return 2 + math.ceil(response / rows) * (m.kv_heads + 4)


def ace_tiles(length: int, response: int) -> int:
    """Tiles of rows and columns of one pass, causal."""
    start = length - response
    ends = range(start + ACE_ROWS, length + ACE_ROWS, ACE_ROWS)
    return sum(math.ceil(min(end, length) / ACE_COLUMNS) for end in ends)


def ace(
    m: Shape, counts: Counts, gpu: Gpu, length: int, response: int, passes: int
) -> Cost:
    """Head mean without statistics, on tensor cores. Memory is read once where queries and
    keys fit L2; through L2 every tile reads the queries of its rows for all heads and, up
    to 128 dimensions, the keys of its columns once a key head, else once a query head."""
    key = f"sm_{gpu.arch}"
    tiles = ace_tiles(length, response)
    terms = tiles * ACE_ROWS * ACE_COLUMNS * m.heads
    each = counts["ace term, fused weight"][key]
    each += counts["ace term, fused log-sum-exp"][key] if passes == 2 else 0
    products = passes * m.dim / 16 * counts["ace score, sixteen dimensions"][key]
    rest = counts["ace weight, column"][key] / m.heads
    keys = m.kv_heads if m.dim <= 128 else m.heads
    through = tiles * 2 * m.dim * (ACE_ROWS * m.heads + ACE_COLUMNS * keys)
    traffic = 2 * (m.heads * response + m.kv_heads * length) * m.dim
    sms = gpu.lanes // (64 if gpu.arch == 80 else 128)
    return Cost(
        traffic, terms * (each + products + rest), passes * 2 * terms * m.dim,
        passes * through, special=passes * terms, fused=True, launches=passes + 2,
        busy=tiles / (sms * math.ceil(tiles / sms)),
    )  # fmt: skip


def ace_linear(m: Shape, counts: Counts, gpu: Gpu) -> Cost:
    """Each head alone, log-sum-exps given, columns of the response: q is read for the
    tiles and again for the walk, where each query head reads its keys."""
    key = f"sm_{gpu.arch}"
    elements = m.heads * RESPONSE * m.dim
    query = counts["ace dimension of a query, added"][key]
    product = counts["ace dimension of a key, multiplied"][key]
    traffic = 2 * (2 * m.heads + m.kv_heads) * RESPONSE * m.dim
    idle = max(1.0, 256 / m.dim)  # eight dimensions a lane of the walk's warps
    work = elements * (query + idle * (query + product))
    return Cost(traffic, work, 0, 2 * elements)


def eager_attention(m: Shape) -> Cost:
    """scores (write), scale (2), mask (2), softmax (2), mean over heads (read), all
    float32 [Hq, R, L]; what output_attentions costs, from the response's rows alone."""
    entries = m.heads * RESPONSE * LENGTH
    return Cost(8 * 4 * entries, 0, 2 * entries * m.dim)


def drm(n: float, *, ties: bool) -> Cost:
    """float32, k = 9 %: digits until one bucket is whole (three; with ties those of the
    index too), one pass to gather, then k items of 24 bytes: tiles of 1024 sorted, runs
    merged two by two, each read and written. Digits that have nothing left to decide are
    launched too."""
    passes = 3 + (3 if ties else 0) + 1
    tiles = math.ceil(0.09 * n / 1024)
    sweeps = 1 + math.ceil(math.log2(tiles))
    digits = 3 + math.ceil(math.log2(n) / 11)
    launches = 1 + digits + 1 + sweeps + 1
    return Cost(passes * n * 4 + sweeps * 2 * tiles * 1024 * 24, launches=launches)


def topk(n: float) -> Cost:
    """torch.topk, multi-block radix select: four digits of 8 bits and a gathering pass,
    then a radix sort of k pairs, four passes over 12 bytes, read and written."""
    return Cost(5 * n * 4 + 0.09 * n * 12 * 2 * 4)


def cub_sort(n: float) -> Cost:
    """cub::DeviceRadixSort::SortPairs of everything, 4 + 4 bytes: one histogram, four
    one-sweep passes, read and written."""
    return Cost(n * 4 + 4 * 2 * n * 8)


# --- the page -------------------------------------------------------------------------


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _against(ours: list[Cost], theirs: list[Cost]) -> str:
    ratios = (
        t.seconds(g) / o.seconds(g) for o, t, g in zip(ours, theirs, GPUS, strict=True)
    )
    return " / ".join(f"{r:.2g}" for r in ratios)


def _line(
    what: str, shape: str, ours: list[Cost], rivals: dict[str, list[Cost]], left_out: str
) -> str:
    """One row: our times on each GPU, what they are made of, and times better than each
    rival on each."""
    times = " | ".join(_time(o.seconds(g)) for o, g in zip(ours, GPUS, strict=True))
    better = "; ".join(f"{name} {_against(ours, cost)}" for name, cost in rivals.items())
    chain, gpu = ours[1].chain(), GPUS[1]
    memory = sum(c.bytes for c in chain) / gpu.memory / ours[1].seconds(gpu)
    launches = sum(c.launches for c in chain) or "not counted"
    return (
        f"| {what} | {shape} | {times} | {memory:.0%} | {launches} | {chain[-1].busy:.0%} "
        f"| {better} | {left_out} |"
    )


CDE_LEFT = "ends of rows, first chunk read twice, merging warps"
LINEAR_LEFT = "stacking the rows, how far the product is from its roof, ends of rows"
ACE_LEFT = "statistics; parts of rows and columns; mma.sync below the datasheet's rate"
ACE_LINEAR_LEFT = "five launches"
DRM_LEFT = "one wait; serial scans of a digit, about 5 us each"


def rows(counts: Counts) -> list[str]:
    three = len(GPUS)
    lines = []
    for size, name in ((2, "bfloat16"), (4, "float32")):
        shape = f"T={ROWS} V={QWEN.vocab} {name}"
        for mix in (False, True):
            ours = [cde(QWEN, size, counts, g, mix=mix) for g in GPUS]
            what = "cde, everything" if mix else "cde, kl both ways"
            rivals = {} if mix else {"torch eager": [eager(QWEN, size)] * three}
            lines.append(_line(what, shape, ours, rivals, CDE_LEFT))
    for m in MODELS:
        shape = f"{m.name}: T={ROWS} E={m.hidden} V={m.vocab} bfloat16"
        ours = [linear(m, counts, g, mix=False) for g in GPUS]
        rivals = {"CCE (less)": [cce(m)] * three}
        lines.append(_line("linear_cde, kl both ways", shape, ours, rivals, LINEAR_LEFT))
        ours = [linear(m, counts, g, mix=True) for g in GPUS]
        liger = {"Liger": [liger_jsd(m)] * three}
        lines.append(_line("linear_cde, everything", shape, ours, liger, LINEAR_LEFT))
    for m in MODELS:
        shape = f"{m.name}: H={m.heads} L={LENGTH} R={RESPONSE} D={m.dim} bfloat16"
        for passes, what in ((2, "no statistics"), (1, "given log-sum-exps")):
            ours = [ace(m, counts, g, LENGTH, RESPONSE, passes) for g in GPUS]
            rivals = {"torch eager": [eager_attention(m)] * three}
            lines.append(_line(f"ace, head mean, {what}", shape, ours, rivals, ACE_LEFT))
        ours = [ace_linear(m, counts, g) for g in GPUS]
        what = "ace, each head, given log-sum-exps"
        lines.append(_line(what, shape, ours, rivals, ACE_LINEAR_LEFT))
    for n in (1e6, 1e7, 1e8):
        for ties in (False, True):
            ours = [drm(n, ties=ties)] * three
            rivals = {"torch.topk": [topk(n)] * three, "CUB sort": [cub_sort(n)] * three}
            what = "drm top 9 %, many ties" if ties else "drm top 9 %, no ties"
            lines.append(_line(what, f"N={n:.0e} float32", ours, rivals, DRM_LEFT))
    return lines


def ace_lines(counts: Counts) -> list[str]:
    """Before and after of the fused form, on the H200."""
    lines, gpu = [], GPUS[1]
    for m, (length, response) in itertools.product(
        (MODELS[1], MODELS[3]), ((LENGTH, RESPONSE), (LONG, LONG_RESPONSE))
    ):
        old = ace_scores(m, length, response)
        new = [ace(m, counts, gpu, length, response, passes) for passes in (2, 1)]
        cells = [
            f"{m.name}: L={length} R={response}",
            f"{ace_score_launches(m, length, response):,}",
            "4 / 3",
            f"{2 * old.bytes / 1e6:.3g}",
            f"{old.cache / 1e6:,.0f}",
            " / ".join(f"{x.cache / 1e6:,.0f}" for x in new),
            " / ".join(f"{x.cache / (2 * old.bytes):.0f}x" for x in new),
            f"{_time(old.cache / gpu.cache)}",
            " / ".join(_time(x.cache / gpu.cache) for x in new),
            " / ".join(_time(x.product / gpu.tensor) for x in new),
            " / ".join(_time(x.instructions / gpu.issue) for x in new),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


TEXT = """# Roofline of the CUDA kernels: predictions

**Everything on this page is a prediction. No number here was measured on a GPU; the
kernels have never run on one.** Made by `python -m benchmarks.roofline` from datasheets,
shapes and instruction counts of the compiled code (nvcc {nvcc}, `-fmad=false`: float
multiply-adds only where they are written).

## What a GPU can do (datasheets)

| GPU | memory | L2 (remembered, no datasheet) | instructions | bfloat16 products |
|---|---|---|---|---|
{sheet}

## Instructions an element

| element | {head} |
|---|{dashes}
{counts}

An element is one logit of both branches (bfloat16, load and widening included), or one
score of one head. Branches around them, loop counters and tile ends are not counted: a
real loop has some per cent more.

## Roofline times, and how many times faster than the rivals

Time: the largest of bytes / memory, bytes that stay in cache / L2, and instructions /
issue + FLOP / tensor, divided by the share of warps that have work (a block a row over the
SMs, eight warps a block over tiles of 2,048 pairs), and 2 us a launch. linear_cde is its
product, which writes float32 logits, and then the row kernel. Ratios in the order of the
columns; above 1: we should be faster. Rivals are given the least traffic of their
published form at full bandwidth, no instructions and no launches: they may miss their roof
as ours may miss its own. Launches, busy (the share of warps that have work) and memory's
share are those on the H200.

| kernel | shape | {head} | memory's share | launches | busy | rivals / ours | left out |
|---|---|{dashes}---|---|---|---|---|
{rows}

## Before and after the designs at the limit

Counted by the emulator's drivers or in the machine code of sm_90, by arithmetic for bytes.

| what | before | now |
|---|---|---|
| linear_cde, everything, T=512 V=152,064 E=3,584: products | 152 | {blocks} |
| kernels beside them | 77 | {others} |
| questions to cuBLASLt | 152 | 1, of later calls 0 |
| FLOP | 2.2e12 | 1.1e12 |
| head read from memory | 2.2 GB | 2.2 GB (once a block of rows) |
| logits | 3.7 GB through L2 | 1.9 GB of memory: written once, read twice |
| the same, log-probabilities of one branch: FLOP | 1.1e12 | 0.56e12 |
| cde, kl: instructions a pair, bfloat16 | 53 and the loop's | 13.7 with the loop's |
| cde, everything | 131 and the loops' | 39.4 with the loops' |
| tiles read twice | 9-15 % | a quarter of the first; later ones when a maximum rises |
| rows off 16-byte boundaries | 2 bytes a load | 16 bytes a load after at most 7 pairs |
| warps' parts merged | one after the other, 390 float64 instructions each | side by side |
| drm, k=9e6: items cleared before | 216 MB by 8 blocks | the padding alone, by all blocks |
## ACE by head mean, before and after the fused form (H200 SXM)

Before: the form with scores in L2, which float32 still takes. After: two passes / one, with
log-sum-exps given. MB through L2, against q and k read twice; then the time of L2, of the
tensor cores at their datasheet rate, and of the issue slots alone: the largest decides.

| shape | launches before | after | q and k twice, MB | L2 before, MB | after, MB \
| of twice q and k | L2 before | after | tensor cores | issue |
|---|---|---|---|---|---|---|---|---|---|---|
{ace}

## What the page says

- cde: 2^x and log2 by the special function unit brought a pair from 53 instructions to
  14 (kl), and the sweep for js and tv from 63 to 20: memory decides on all three GPUs; on
  the A100 the issue slots come level for everything from bfloat16 logits.
- T below the number of SMs leaves the others idle: a block takes a whole row.
- linear_cde: 152 products and 77 sweeps at T = 512 with all outputs became
  {blocks} products in {launches} launches; js costs one more reading of the logits instead
  of a second product.
- drm carries difficulty, gain and index, 24 bytes an item, through a merge sort; a top-k
  of one float32 carries 12 bytes through a radix sort. Where k is a large part of a large
  N the sort decides, and we should lose to torch.topk, which answers an easier question.
  A bitonic sort stood here first; this page is why it does not now.
- The fused form of ace is measured against every byte its tiles read through L2. Its rows
  leave out: the parts of log-sum-exps, columns and rows (under 4 % of those bytes), the
  sums of a tile's rows and its largest weights (`stats`: about as many instructions as the
  columns), and that mma.sync reaches about 0.6 of an H200's wgmma rate (remembered).
  Blocks: 12 warps an SM on sm_80, sm_90 and sm_100 (168 registers a thread), 8 on the
  others (48 KiB a block).
- Reading q and k twice cannot be had through L2 by blocks that share nothing: a block that
  holds A weights in its registers reads at least 4 D sqrt(Hq Hkv / A) bytes a weight, for
  A = 32,768 (128 KiB of an SM's 256), 28 and 4 heads and D = 128 30 bytes: 110 MB a pass
  at L=4096 R=1024 against 23 MB for q and k twice; ours, A = 8,192, 72 bytes. Memory is
  read once where q and k fit L2. Clusters that share tiles (sm_90) would divide the rest by
  their size.
- The linear form of ace takes less than its five launches, a few microseconds each, which
  the page leaves out: with short responses they decide.
"""


def render(recorded: dict) -> str:
    """The page's text from the recorded counts."""
    counts: Counts = recorded["instructions"]
    chain = linear(MODELS[1], counts, GPUS[1], mix=True).chain()
    return TEXT.format(
        nvcc=recorded["nvcc"],
        blocks=chain[-1].launches,
        launches=sum(c.launches for c in chain),
        others=sum(c.launches for c in chain) - chain[-1].launches,
        head=" | ".join(g.name for g in GPUS),
        dashes="---|" * len(GPUS),
        sheet="\n".join(
            f"| {g.name} | {g.memory / 1e12:.3g} TB/s | {g.cache / 1e12:.2g} TB/s "
            f"| {g.issue / 1e12:.3g} T/s "
            f"| {g.tensor / 1e12:.0f} TFLOP/s |"
            for g in GPUS
        ),
        counts="\n".join(
            f"| {name} | " + " | ".join(f"{x[f'sm_{g.arch}']:.1f}" for g in GPUS) + " |"
            for name, x in counts.items()
        ),
        rows="\n".join(rows(counts)),
        ace="\n".join(ace_lines(counts)),
    )


def main() -> None:
    if "--count" in sys.argv:
        from tests.cuda_emulator import gates

        recorded = {"nvcc": gates.nvcc_version(), "instructions": count()}
        COUNTS.write_text(json.dumps(recorded, indent=1) + "\n")
    PAGE.write_text(render(json.loads(COUNTS.read_text())))


if __name__ == "__main__":
    main()
