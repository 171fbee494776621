"""Time against T, V, L and N on logarithmic axes: one picture a size."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks.common import Row

NAMES = {
    "T": "rows T (cde, V = 151,936)",
    "V": "vocabulary V (cde, T = 8)",
    "L": "length L (ace head mean, 16 heads, D = 128)",
    "N": "samples N (drm, the hardest 9 %)",
}


def series(
    rows: list[Row], axis: str
) -> dict[str, list[tuple[float, float, float | None]]]:
    """Label -> (size, milliseconds, MiB), rising in size; ours is named rap."""
    found: dict[str, dict[float, tuple[float, float | None]]] = defaultdict(dict)
    for r in rows:
        if r.axis == axis and r.x is not None and r.ours and r.theirs:
            found["rap"][r.x] = (r.ours, r.ours_mb)
            found[r.rival][r.x] = (r.theirs, r.theirs_mb)
    return {
        label: [(x, *points[x]) for x in sorted(points)] for label, points in found.items()
    }


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Writes growth_<axis>.png for every axis that has rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    for axis, title in NAMES.items():
        lines = series(rows, axis)
        if not lines:
            continue
        figure, (time, memory) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for label, points in lines.items():
            x, ms, mb = zip(*points, strict=True)
            time.loglog(x, ms, marker="o", label=label)
            known = [(a, m) for a, m in zip(x, mb, strict=True) if m]
            if known:
                memory.loglog(*zip(*known, strict=True), marker="o", label=label)
        for panel, unit in ((time, "ms"), (memory, "peak memory beyond the inputs, MiB")):
            panel.set(xlabel=title, ylabel=unit)
            panel.grid(True, which="both", alpha=0.2)
        time.legend()
        path = folder / f"growth_{axis}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        written.append(path)
    return written
