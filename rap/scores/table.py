"""The score table: the one contract between ``score`` and ``choose``.

One row a sample, in data-set order. ``status`` is ``"scored"`` or ``"quarantined"``;
a quarantined row carries ``code`` (why), ``stage`` (where) and ``message``, and null
scores. A score that was not needed or not measured is null, never NaN.

``ROLLOUT_SCHEMA`` keeps every completion, so that another checker or threshold needs
no model. Counts are integers: decisions compare integers, never quotients
(METHOD.md, section 1).

A new column is nullable, goes into ``SCORE_SCHEMA`` and ``SINCE``, and raises
``SCHEMA_VERSION``: files of an older version are read with nulls in it (``filled``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ..divergences import CDE_COLUMNS
from . import states

SCHEMA_VERSION = 5
"""Of what is written. Every older version is read, a newer one is refused."""

SINCE: Mapping[str, int] = {
    "n_drawn": 2,
    "n_cut": 2,
    "rank_key": 2,
    "decided_by": 3,
    "posterior1": 3,
    "posterior0": 3,
    "keep_probability": 3,
    "prompt_state": 4,
    "psi_before": 5,
    "psi_after": 5,
}
"""Column -> the schema version that brought it (1 for all others). ``rank_key``,
``posterior1``, ``posterior0`` and ``keep_probability`` are columns of a selection's
table."""

CHOSEN_COLUMNS = (
    "D",
    "difficulty",
    "rank_key",
    "posterior1",
    "posterior0",
    "keep_probability",
)
"""Columns of numbers that ``choose`` adds, before ``reason``."""

SCORED = "scored"
QUARANTINED = "quarantined"

SCORE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("index", pa.int64()),  # row in the data set
        ("source", pa.string()),  # group for budgets per source; null if unknown
        ("image_sha256", pa.string()),  # of the encoded bytes; several joined by ","
        ("sample_sha256", pa.string()),  # of question, answer, choices, image hashes
        ("status", pa.string()),
        ("stage", pa.string()),  # of a quarantine: data | image | prompt | model | check
        ("code", pa.string()),
        ("message", pa.string()),
        ("evidence", pa.string()),
        # cascade: the stage that decided it, answer | pilot | image | text
        ("decided_by", pa.string()),
        # rollouts
        ("c1", pa.int16()),  # accepted with the image
        ("m1", pa.int16()),  # graded with the image
        ("c0", pa.int16()),  # accepted without
        ("m0", pa.int16()),
        # answer: probability of the reference answer, with (1) and without (0) image
        ("p_answer1", pa.float64()),
        ("p_answer0", pa.float64()),
        ("logp_answer1", pa.float64()),  # nats, summed over the answer's tokens
        ("logp_answer0", pa.float64()),
        ("logp_mean1", pa.float64()),  # nats a token: the length-normalised form
        ("logp_mean0", pa.float64()),
        # divergences, means over the response tokens (nats; tv and hellinger2 <= 1)
        *((name, pa.float32()) for name in CDE_COLUMNS),
        # attention
        ("log_psi", pa.float32()),  # -inf: response too short to measure
        ("psi_position", pa.int32()),  # token index in prompt + response; -1 if none
        ("psi_token", pa.string()),
        ("psi_before", pa.string()),  # the text around that token, some tokens of it
        ("psi_after", pa.string()),
        ("attention_entropy", pa.float32()),
        ("attention_top", pa.float32()),
        ("image_mass", pa.float32()),
        ("n_prompt", pa.int32()),
        ("n_response", pa.int32()),
        (states.COLUMN, states.TYPE),  # hidden state of the prompt, see scores.states
        ("truncated", pa.bool_()),  # whether that response was cut at max_new_tokens
        ("n_drawn", pa.int32()),  # sampled with and without the image; null: not counted
        ("n_cut", pa.int32()),  # of them cut at max_new_tokens (finish_reason "length")
        # cost of this sample
        ("forwards", pa.int32()),
        ("generated_tokens", pa.int64()),
        ("seconds", pa.float32()),
    ]
)

ROLLOUT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("index", pa.int64()),
        ("arm", pa.string()),  # "image" | "counterfactual"
        ("number", pa.int16()),  # 0 .. M-1 of this arm
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),  # "stop" | "length"
        ("seed", pa.int64()),
        ("correct", pa.bool_()),  # null: not graded
        # null, or why it was not graded; an empty completion is graded as wrong: it has
        # correct = False and code = "empty_response"
        ("code", pa.string()),
    ]
)

# ``seconds`` is a clock reading: it differs between two runs that score the same.
VOLATILE_COLUMNS = ("seconds",)


def with_new(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with nulls in the columns of ``SINCE`` that ``schema`` has and it lacks:
    an older version wrote it. Each stands behind its neighbour in ``schema``."""
    for before, name in zip(schema.names, schema.names[1:], strict=False):
        if name in SINCE and name not in table.column_names:
            at = table.schema.get_field_index(before) + 1
            field = schema.field(name)
            table = table.add_column(at, field, pa.nulls(table.num_rows, field.type))
    return table


def filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with ``schema``'s columns first, in its order and types, others after;
    columns that are new since (``SINCE``) are filled with nulls.

    Raises ``KeyError`` (the names) if another column is missing or there twice,
    ``pa.ArrowException`` if one is of another type.
    """
    table = with_new(table, schema)
    lost = [name for name in schema.names if table.column_names.count(name) != 1]
    if lost:
        raise KeyError(", ".join(lost))
    others = [field for field in table.schema if field.name not in schema.names]
    table = table.select([*schema.names, *(field.name for field in others)])
    return table.cast(pa.schema([*schema, *others]))


def table_from_rows(
    rows: list[dict[str, Any]], schema: pa.Schema = SCORE_SCHEMA
) -> pa.Table:
    """Build a table of ``schema`` from dicts; a missing key becomes null.

    Raises ``KeyError`` on a key the schema does not have.
    """
    for row in rows:
        for key in row:
            if schema.get_field_index(key) < 0:
                raise KeyError(f"score table has no column {key!r}")
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)
