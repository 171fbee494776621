"""``rap info`` and ``rap demo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from ..config import EVIDENCE, EvidenceName
from ..errors import require_extra
from .fields import Command, group
from .options import PATH, json_option, refuse_given
from .steps import print_json, quiet_transformers


@click.command(cls=Command)
@group("Result", json_option)
def info(as_json: bool) -> None:
    """Say what rap computes with on this machine, and why."""
    from ..environment import info as collect

    found = collect()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        click.echo(f"{name:<{width}}  {value}")


@click.command(cls=Command)
@click.option(
    "--out",
    type=PATH,
    default=Path("demo-out"),
    show_default=True,
    metavar="DIR",
    help="Output folder.",
)
@click.option(
    "--count",
    type=click.IntRange(10, 20_000),
    default=None,
    metavar="INTEGER",
    help="Samples of the data set, 10 to 20,000.  [default: 240; 120 of the natural world]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="INTEGER",
    help="Seed of the synthetic data set.",
)
@click.option(
    "--evidence",
    type=click.Choice(EVIDENCE),
    default="rollouts",
    show_default=True,
    help="The scoring signal.",
)
@click.option(
    "--world",
    type=click.Choice(("synthetic", "natural")),
    default="synthetic",
    show_default=True,
    help="natural: emoji pictures and a real language model (downloads of 110 MB).",
)
@click.option(
    "--records",
    is_flag=True,
    help="Published completions of MATH-V instead of the synthetic data set.",
)
def demo(
    out: Path,
    count: int | None,
    seed: int,
    evidence: EvidenceName,
    world: str,
    records: bool,
) -> None:
    """Score, choose and report on data that comes with the package.

    A synthetic data set with ground-truth labels is scored by a small Qwen2.5-VL that was
    trained for it, and the selection is compared with the labels. With --records, published
    completions of 105 MATH-V questions become a selection instead.
    """
    require_extra("rap demo", "demo", "torch", "transformers", "PIL", "jinja2")
    if records:
        from ..demo import run

        refuse_given(("count", "seed", "evidence", "world"), "with --records")
        run(out, echo=click.echo)
        return
    quiet_transformers()
    if world == "natural":
        from ..demo.natural import run as run_natural

        run_natural(out, n=count or 120, seed=seed, evidence=evidence, echo=click.echo)
        return
    from ..demo.run_world import run as run_world

    run_world(out, n=count or 240, seed=seed, evidence=evidence, echo=click.echo)
