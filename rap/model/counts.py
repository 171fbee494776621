"""What a driver has computed so far, in plain integers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Totals over the life of a `ModelDriver`; callers take differences."""

    images_encoded: int = 0
    """Images that went through the vision tower, again ones included."""
    prefilled_tokens: int = 0
    """Prompt and teacher-forced tokens that the text decoder read, padding left out."""
    padded_tokens: int = 0
    """Padding that these forwards held besides."""
    decoded_tokens: int = 0
    """Tokens sampled, end tokens included; finished rows that wait are not counted."""
    forwards: int = 0
    """Calls of the model: prefills, teacher-forced forwards, one for each decoding step."""
