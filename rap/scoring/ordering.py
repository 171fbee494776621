"""The order in which the samples of a shard are scored: longest prompts first, so that
those that share a forward are of like length.

Only rows, texts and the heads of image files are read; no pixel waits for its turn. The
order depends on the shard's samples alone: workers and restarts change no batch. A shard is
the window: its rows are stored in the order of the data set, whatever came first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..samples.images import image_size
from ..samples.sample import Bad, BadSample, Sample
from ..samples.sampleset import SampleSet
from ..samples.stated import prompt_text

if TYPE_CHECKING:
    from ..model.driver import ModelDriver


UNUSABLE = sys.maxsize
"""The length of what is no prompt."""


def longest_first(
    samples: SampleSet, driver: ModelDriver | None, wanted: Sequence[int]
) -> list[int]:
    """These samples, ordered by the tokens of their prompts with the image, about; before
    them those that cannot be used, of which too many end a run. As they stand where there
    is no local model, or its processor does not say how many tokens an image becomes."""
    if driver is None or len(wanted) < 2:
        return list(wanted)
    lengths = {}
    for i in wanted:
        item = samples[i]
        length = UNUSABLE if isinstance(item, Bad) else _length(driver, item)
        if length is None:
            return list(wanted)
        lengths[i] = length
    return sorted(wanted, key=lambda i: (-lengths[i], i))


def _length(driver: ModelDriver, sample: Sample) -> int | None:
    """None: the processor does not say."""
    try:
        sizes = [image_size(ref) for ref in sample.images]
    except BadSample:  # it will be quarantined
        return UNUSABLE
    tokens = driver.image_tokens(sizes)
    if tokens is None:
        return None
    said = prompt_text(driver.config.prompt_template, sample.question, sample.choices)
    return tokens + len(driver.encode_response(said))
