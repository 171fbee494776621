"""Cut rap/demo/data out of ../shared/data: which rows the demo ships, and by what rule.

Run once by a developer (``python .ci/make_demo_data.py ../shared/data``); the result is
committed. Only MIT-licensed sets are taken. See rap/demo/data/*/SOURCE.md.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "rap" / "demo" / "data"
MAX_IMAGE_BYTES = 15_000
NEVER_SOLVED, SELDOM_SOLVED = 20, 24  # the two commonest outcomes, thinned


def digest(text: str) -> str:
    return hashlib.sha256(f"rap-demo {text}".encode()).hexdigest()


def rollouts(path: Path) -> pa.Table:
    table = pq.read_table(path)
    keep = pc.and_(
        pc.equal(table["augment"], "none"), pc.not_equal(table["model"], "random")
    )
    return table.filter(keep)


def counts(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Right answers with and without the image, per id."""
    out: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in table.select(["id", "with_image", "correct"]).to_pylist():
        out[row["id"]][0 if row["with_image"] else 1] += row["correct"]
    return {k: (a, b) for k, (a, b) in out.items()}


def outcome(c1: int, c0: int) -> str:
    if c0:
        return "solved without the image"
    return "never" if c1 == 0 else "seldom" if c1 <= 2 else "often"


def write(name: str, rows: list[dict], source: Path) -> None:
    target = OUT / name
    shutil.rmtree(target / "images", ignore_errors=True)
    (target / "images").mkdir(parents=True)
    for row in rows:
        shutil.copyfile(source / row["image"], target / row["image"])
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (target / "samples.jsonl").write_text(text, encoding="utf-8")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(data: Path) -> None:
    table = rollouts(data / "mathvision_records" / "records.parquet")
    count = counts(table)
    taken: dict[str, int] = defaultdict(int)
    limit = {"never": NEVER_SOLVED, "seldom": SELDOM_SOLVED}
    source = data / "mathvision"
    chosen = set()
    for row in sorted(read(source / "samples.jsonl"), key=lambda r: digest(r["id"])):
        group = outcome(*count[row["id"]])
        small = (source / row["image"]).stat().st_size <= MAX_IMAGE_BYTES
        single = row["question"].count("<image") == 1
        if small and single and taken[group] < limit.get(group, 10**9):
            taken[group] += 1
            chosen.add(row["id"])
    rows = [r for r in read(source / "samples.jsonl") if r["id"] in chosen]
    write("mathvision", rows, source)
    part = table.filter(pc.is_in(table["id"], pa.array(sorted(chosen))))
    pq.write_table(
        part,
        OUT / "mathvision" / "rollouts.parquet",
        compression="zstd",
        compression_level=19,
        write_page_checksum=True,
    )
    print("mathvision", len(rows), dict(taken), len(part), "rollouts")

    source = data / "puzzlevqa"
    first: dict[str, dict] = {}
    for row in sorted(read(source / "samples.jsonl"), key=lambda r: r["id"]):
        size = (source / row["image"]).stat().st_size
        best = first.get(row["category"])
        if best is None or size < (source / best["image"]).stat().st_size:
            first[row["category"]] = row
    rows = sorted(first.values(), key=lambda r: r["id"])
    write("puzzlevqa", rows, source)
    print("puzzlevqa", len(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
