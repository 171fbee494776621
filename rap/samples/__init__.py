"""A data set as samples: rows, columns, images by reference.

``sample``: the data types; ``sources``, ``jsonlines``, ``parquet``: rows; ``parsing``: a
row as a sample; ``sampleset``: ``open_samples``; ``content``, ``index``: what it holds, as
hashes, found once; ``remote``: data elsewhere; ``choices``: letters and texts of choices;
``images``: encoded bytes as RGB pixels. Needs NumPy and Arrow only; Pillow for pixels.
"""

from .sample import Bad, BadSample, ImageRef, Sample, sample_sha256
from .sampleset import SampleSet, load_images, open_samples

__all__ = [
    "Bad",
    "BadSample",
    "ImageRef",
    "Sample",
    "SampleSet",
    "load_images",
    "open_samples",
    "sample_sha256",
]
