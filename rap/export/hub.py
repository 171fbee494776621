"""A selection as a data set on the Hugging Face hub, with a data set card.

    sel.push_to_hub("me/geometry-few")      # private unless told otherwise

The rows are those of the data set as they came in, but for the images, which go along as
they were scored whatever they were before (paths too), in a column ``images``; what the
selection says of each row stands beside them as ``rap_reason``, ``rap_D``, ... Nothing else
leaves this machine: no path, no model, no score of a sample that was not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RapConfigError, RapError, RapInputError, first_line, require_extra
from ..samples.images import read_bytes
from ..samples.sample import Bad, BadSample
from .filter import require_columns

if TYPE_CHECKING:
    import datasets

    from ..samples.sample import Sample
    from ..scores.selected import Selected

COLUMNS = ("reason", "D", "difficulty", "rank_key", "log_psi")
"""Columns of a selection that go along, unless others are named."""
ROWS = 1000
"""Rows of a file."""
IMAGES = "images"

OFFLINE = (
    "the hub is out of reach: HF_HUB_OFFLINE is set. Unset it, or write the same rows to a "
    "folder: sel.export('parquet', folder)"
)


def push_to_hub(
    selection: Selected,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    add: Sequence[str] = COLUMNS,
    license: str | None = None,
    message: str = "Selection by rap-select",
) -> str:
    """Upload the kept samples as the data set ``repo_id`` ("owner/name"); its address.

    private: whether only its owner sees a data set that is made now. token: a token of the
    hub; None is the one of ``hf auth login``. add: columns of the selection's table to put
    beside the rows. license: as the card names it, e.g. "cc-by-4.0"; rap does not know that
    of your data. message: of the commit.

    Raises ``RapConfigError`` (no network, not logged in, a name or column that is none,
    libraries missing), ``RapInputError`` (nothing is kept, the data set is not at hand or
    not the one that was scored).
    """
    require_extra("push_to_hub", "hf", "datasets", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if repo_id.count("/") != 1:
        raise RapConfigError(f"repo_id = {repo_id!r}: expected 'owner/name'")
    if constants.HF_HUB_OFFLINE:
        raise RapConfigError(OFFLINE)
    refused: list[type[Exception]] = [HfHubHTTPError, HFValidationError]
    failures = (*refused, *_transport_errors())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_folder(selection, folder, repo_id, add=add, license=license)
        api = huggingface_hub.HfApi(token=token)
        try:
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=folder,
                commit_message=message,
                delete_patterns="data/*.parquet",  # of an earlier selection
            )
        except RapError:
            raise
        except failures as error:
            raise RapConfigError(
                f"push_to_hub {repo_id}: {first_line(error)} (hf auth login, or token=...)"
            ) from error
    return f"https://huggingface.co/datasets/{repo_id}"


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's library raises without a network: the errors of requests are
    OSErrors, those of httpx, which newer ones use under one of two names, are not."""
    found: list[type[Exception]] = [OSError, RuntimeError]
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


def write_folder(
    selection: Selected,
    folder: Path,
    repo_id: str,
    *,
    add: Sequence[str] = COLUMNS,
    license: str | None = None,
) -> None:
    """What is uploaded: ``README.md``, and ``data/train-*.parquet``."""
    if not len(selection):
        raise RapInputError("nothing to upload: the selection keeps no sample")
    require_columns(selection, add)
    rows = _rows(selection, add)
    (folder / "data").mkdir()
    count = -(-len(rows) // ROWS)
    for k in range(count):
        part = rows.select(range(k * ROWS, min((k + 1) * ROWS, len(rows))))
        part.to_parquet(folder / "data" / f"train-{k:05d}-of-{count:05d}.parquet")
    text = card(selection, repo_id, add=add, license=license)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _rows(selection: Selected, add: Sequence[str]) -> datasets.Dataset:
    """The kept rows with their images and with columns of the selection."""
    import datasets

    samples, at = selection.require_samples(), selection.rows
    given = samples.take(at)
    role = samples.columns["images"]
    gone = [n for n, f in given.features.items() if n in (role, IMAGES) or _is_image(f)]
    bare = given.remove_columns(gone)
    table = selection.of_kept(add).rename_columns([f"rap_{name}" for name in add])
    beside = datasets.Dataset(datasets.table.InMemoryTable(table))
    clash = set(beside.column_names) & set(bare.column_names)
    if clash:
        raise RapConfigError(
            f"the data set has a column {min(clash)} already: name others with add="
        )
    made = {**bare.features, IMAGES: datasets.List(datasets.Image()), **beside.features}
    judged = selection.of_kept(["id", "image_sha256"]).to_pylist()

    def rows() -> Iterator[Mapping[str, Any]]:
        for k, i in enumerate(at.tolist()):
            yield {**bare[k], IMAGES: _images(samples[i], judged[k]), **beside[k]}

    return datasets.Dataset.from_list(list(rows()), datasets.Features(made))


def _is_image(feature: Any) -> bool:
    import datasets

    inner = getattr(feature, "feature", feature)
    return isinstance(inner, datasets.Image)


def _images(sample: Sample | Bad, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Encoded bytes of each image, those that were scored, as far as that is known."""
    name = f"sample {row['id']!r}"
    if isinstance(sample, Bad):
        raise RapInputError(f"{name}: {sample.code}: {sample.message}")
    try:
        found = [read_bytes(ref) for ref in sample.images]
    except BadSample as bad:
        raise RapInputError(f"{name}: {bad.code}: {bad.message}") from bad
    hashed = ",".join(hashlib.sha256(data).hexdigest() for data in found)
    if row["image_sha256"] not in (None, hashed):
        raise RapInputError(f"{name} is not there as it was scored: its image is another")
    return [{"bytes": data, "path": None} for data in found]


# ---------------------------------------------------------------- the card

_SAID = {
    "reason": "why it was kept",
    "D": "what the image changes",
    "difficulty": "1: never solved, 0: always",
    "rank_key": "what the budget was ranked by",
    "log_psi": "attention on one token",
}


def card(
    selection: Selected,
    repo_id: str,
    *,
    add: Sequence[str] = COLUMNS,
    license: str | None = None,
) -> str:
    """The data set card: Markdown, with the metadata that the hub reads."""
    settings, n = selection.settings, selection.reader.num_rows
    head: dict[str, Any] = {
        "pretty_name": repo_id.partition("/")[2],
        "tags": ["rap-select", "data-selection", "multimodal", "reinforcement-learning"],
        "task_categories": ["image-text-to-text"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    }
    if license is not None:
        head["license"] = license
    meta = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    counts = "\n".join(f"| `{r}` | {k} |" for r, k in selection.counts().items() if k)
    columns = "\n".join(f"- `rap_{c}`: {_SAID.get(c, 'of the selection')}" for c in add)
    chosen = {k: v for k, v in settings["choose"].items() if v is not None}
    return f"""---
{meta}
---

# {head["pretty_name"]}

{len(selection)} of {n} samples ({len(selection) / n:.2%}) of a data set, chosen by
[RAP](https://arxiv.org/abs/2506.04755) ("Truth in the Few: High-Value Data Selection for
Efficient Multi-Modal Reasoning") with rap-select: samples whose outcome depends on the
image and that the scoring model solves sometimes, but not always.

| reason | samples |
|---|---:|
{counts}

Rows are as they came in; images are the encoded bytes that were scored. Added:

{columns}

Evidence: `{settings["evidence"]}`. Chosen with:

```json
{json.dumps(chosen, indent=1, default=str)}
```

What is valuable to one model need not be to another: the scores are those of the model that
scored.
"""
