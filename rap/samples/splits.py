"""Which split a file belongs to, by its name: training and test rows are never mixed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from os.path import commonprefix
from pathlib import Path

from ..errors import RapInputError

_SPLITS = frozenset(
    "train training trainval minitrain validation valid val minival development dev test "
    "testing testmini minitest evaluation eval holdout".split()
)
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+")
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")


def split_of(name: str) -> str | None:
    """The split that a file's name speaks of: "train" of train-00000-of-00002.parquet,
    "test" of my_test_v2.jsonl, "val" of val2014.json; None if it names none."""
    words = (word.lower() for word in _BETWEEN_WORDS.split(name))
    return next((word for word in words if word in _SPLITS), None)


def require_one_split(path: Path, files: Sequence[Path], *, by_stem: bool = True) -> None:
    """Raises ``RapInputError`` if files of several splits would be read together.

    by_stem: names of shards (stem-00000-of-00002) without a known split are splits, too,
    as `datasets` writes them.
    """
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        found = split_of(file.name)
        if found is None and by_stem and _SHARD.search(file.name):
            found = _SHARD.sub("", file.name).lower()
        splits.setdefault(found, []).append(file)
    if len(splits) > 1:
        told = ", ".join(
            f"{name or 'others'} ({len(of)} file{'s' if len(of) > 1 else ''})"
            for name, of in splits.items()
        )
        names = ", ".join(_named(of, files) for of in splits.values())
        raise RapInputError(
            f"data set {path}: holds several splits: {told}. They are not mixed; name one: "
            f"{names}"
        )


def _named(part: Sequence[Path], files: Sequence[Path]) -> str:
    """What opens these files and no others: the file, or a pattern."""
    pattern = part[0]
    if len(part) > 1:
        stem = commonprefix([file.name for file in part]).rstrip("0123456789")
        pattern = part[0].with_name(f"{stem}*{part[0].suffix}")
        matched = [file for file in files if fnmatchcase(file.name, pattern.name)]
        if len(matched) != len(part):
            return " or ".join(map(str, part))
    return f"'{pattern}'" if len(part) > 1 else str(pattern)


def named_splits(names: Sequence[str]) -> list[str]:
    """Those of the names that are a split's."""
    return [name for name in names if split_of(name) is not None]
