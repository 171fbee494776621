"""H200 hours for 50,000 samples of a 7B model, from counts: estimated, not measured.

    seconds a sample = images * seconds an image
                       + tokens read * (padded / real) * TOKEN
                       + completions * RESPONSE * seconds a sampled token
    seconds an image = the larger of launches * LAUNCH / images a forward and its FLOP

Every constant below is an assumption and says where it comes from; no GPU was timed. The
sizes are those of the estimate of 15 and 29 hours for commit a64b6dc, which the formula
has to give again (``TODAY``).
"""

from __future__ import annotations

from dataclasses import dataclass

from rap.scoring.scorer import TOGETHER

SAMPLES = 50_000

# One sample: an 800 x 600 image is 29 x 21 tokens of 28 x 28 pixels.
IMAGE_TOKENS = 29 * 21
TEXT = 100
RESPONSE = 256
ANSWER = 6
PROMPT = IMAGE_TOKENS + TEXT

BATCH = 8
M = 5

# Qwen2.5-VL-7B on an H200 in bfloat16.
PARAMETERS = 7.6e9
FLOPS = 790e12 * 0.4
"""790 TFLOP/s at its limit, 40 % of it reached by padded forwards."""
TOKEN = 2 * PARAMETERS / FLOPS
"""Seconds a token of a prompt or a teacher-forced response: 48 us."""
TOWER_FLOP = 3.3e12
"""Of one image: 630 M weights in 32 layers, 2 FLOP each for 2,436 patches, attention and
the merger."""
OTHER_LAUNCHES = 1_225
"""Kernels of a forward of the tower that are no attention, whatever its images: 10,889 less
9,664, counted with a stub of libcuda (shared/gpu/README.md section 3)."""
LOOPED = 10_784
"""Attention calls of 8 images piece by piece, counted (``bench_scoring.tower_calls``)."""
PACKED = 32
"""With ``rap.model.packing`` and a variable-length kernel: one a layer, counted."""
LAUNCH = 0.055 * BATCH / (LOOPED + OTHER_LAUNCHES)
"""Seconds a launch from Python, 37 us: from 55 ms an image, 15 % of 1.1 s for three."""


def image_seconds(calls: int, images: int) -> float:
    """Of one image, where a forward of the tower takes ``images`` and makes ``calls``
    attention calls."""
    launched = (calls + OTHER_LAUNCHES) * LAUNCH / images
    return max(launched, TOWER_FLOP / FLOPS)


STEP = 0.025
"""Seconds a decoding step of transformers, whatever the rows: 1,290 launches."""
LOOKS = (M - 1) + M
"""Times that a cascade asks the samples of a group of batches, one after the other, at
most: two completions with the image, then one, and one without it."""
ENGINE_STEP = 0.0085
ENGINE_ROWS = 256
"""A serving engine: 15.2 GB of weights and the KV of 256 rows at 70 % of 4.3 TB/s."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one sample costs, in counts."""

    name: str
    images: float
    tokens: float
    """Read: prompts and teacher-forced responses."""
    completions: float
    token_seconds: float
    """Of one sampled token."""
    padded: float = 1.0
    """Tokens with padding over tokens without."""
    image: float = image_seconds(PACKED, BATCH)
    """Seconds one image takes, on average over the towers that encode it."""

    @property
    def seconds(self) -> float:
        """Seconds a sample."""
        return (
            self.images * self.image
            + self.tokens * self.padded * TOKEN
            + self.completions * RESPONSE * self.token_seconds
        )

    @property
    def hours(self) -> float:
        """Of `SAMPLES`."""
        return SAMPLES * self.seconds / 3600


# Tokens read where nothing is read twice.
LOGITS = (PROMPT + RESPONSE + ANSWER) + (TEXT + RESPONSE)
ROLLOUTS = (PROMPT + RESPONSE) + TEXT
ANSWERS = (PROMPT + ANSWER) + (TEXT + ANSWER)

TODAY = (
    Work(
        "logits, commit a64b6dc",
        3,
        PROMPT + (PROMPT + RESPONSE) + (TEXT + RESPONSE) + (PROMPT + ANSWER),
        1,
        STEP / BATCH,
        1.38,  # TabMWP in data-set order
        image_seconds(LOOPED, BATCH),
    ),
    Work(
        "rollouts 5 + 5, commit a64b6dc",
        M + 1,
        M * PROMPT + M * TEXT + PROMPT + RESPONSE,
        2 * M,
        STEP / (BATCH * M),
        1.38,
        image_seconds(LOOPED, BATCH),
    ),
)


def works(images: float, again: float, padded: float, share: float) -> list[Work]:
    """With the counts of a run: images encoded a sample, tokens read against the distinct
    ones, padded against real tokens, and the share of 5 + 5 completions that a cascade
    draws. An engine encodes the image and reads both prompts once more, for itself; its
    tower has a variable-length kernel, too."""
    local, engine = STEP / BATCH, ENGINE_STEP / ENGINE_ROWS
    looped, packed = (image_seconds(calls, BATCH) for calls in (LOOPED, PACKED))
    both = PROMPT + TEXT
    drawn = 2 * M * share
    return [
        Work("logits, transformers, batch 8", images, again * LOGITS, 1, local, padded),
        Work(
            "logits, transformers, batch 64",
            images,
            again * LOGITS,
            1,
            STEP / 64,
            padded,
        ),
        Work(
            "rollouts 5 + 5, transformers, batch 8",
            images,
            again * ROLLOUTS,
            2 * M,
            local / M,
            padded,
        ),
        Work(
            "rollouts 5 + 5, serving engine",
            images + 1,
            again * ROLLOUTS + both,
            2 * M,
            engine,
            padded,
        ),
        Work(
            f"cascade ({share:.0%} of 5 + 5), transformers, batch 64",
            images,
            again * (ANSWERS + RESPONSE),
            drawn,
            STEP * LOOKS / (TOGETHER["cascade"] * 64 * drawn),
            padded,
        ),
        Work(
            f"cascade ({share:.0%} of 5 + 5), serving engine",
            images + 1,
            again * (ANSWERS + RESPONSE) + both,
            drawn,
            engine,
            padded,
        ),
        Work(
            f"cascade ({share:.0%} of 5 + 5), serving engine, tower piece by piece here",
            images + 1,
            again * (ANSWERS + RESPONSE) + both,
            drawn,
            engine,
            padded,
            (images * looped + packed) / (images + 1),
        ),
    ]


def text(found: list[Work]) -> str:
    """The table, with every assumption: Markdown."""
    lines = [
        f"## H200 hours for {SAMPLES:,} samples of a 7B model: estimated, not measured",
        "",
        "Seconds a sample = images x image + tokens read x padding x token + completions x "
        f"{RESPONSE} x sampled token. Assumed: 800 x 600 images ({IMAGE_TOKENS} tokens), "
        f"{TEXT} tokens of text, responses of {RESPONSE}, answers of {ANSWER}; a token "
        f"read {1e6 * TOKEN:.0f} us (2 x {PARAMETERS / 1e9:g}e9 FLOP at 40 % of 790 "
        f"TFLOP/s); an image the larger of {TOWER_FLOP / 1e12:g} TFLOP at that rate and of "
        f"its launches at {1e6 * LAUNCH:.0f} us: {LOOPED:,} attention calls for {BATCH} "
        f"images piece by piece, {PACKED} in one call a layer (counted; the kernel that "
        f"does so never ran here on a GPU), {OTHER_LAUNCHES:,} other launches: "
        f"{1e3 * image_seconds(LOOPED, BATCH):.0f} and "
        f"{1e3 * image_seconds(PACKED, BATCH):.0f} ms; a decoding step of transformers "
        f"{1e3 * STEP:.0f} ms whatever the rows "
        f"(launch-bound), of a serving engine {1e3 * ENGINE_STEP:.1f} ms for {ENGINE_ROWS} "
        "rows. Kernels, grading and the host are left out, as is the time to load. The "
        "first two rows are the formula's answer to 15 and 29 h, which were estimated for "
        "commit a64b6dc from its launches.",
        "",
        "| work | images | tokens read | padding | completions | s a sample | hours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for w in (*TODAY, *found):
        lines.append(
            f"| {w.name} | {w.images:.2f} | {w.tokens:,.0f} | {w.padded:.2f} | "
            f"{w.completions:.1f} | {w.seconds:.3f} | {w.hours:.1f} |"
        )
    return "\n".join(lines)
