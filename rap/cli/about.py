"""``rap info`` and ``rap demo``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from ..config import EVIDENCE, EvidenceName
from ..errors import require_extra
from .fields import Command
from .options import PATH, refuse_given
from .steps import print_json, quiet_transformers


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
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
    default=240,
    show_default=True,
    help="Samples of the synthetic data set.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
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
    "--records",
    is_flag=True,
    help="Published completions of MATH-V instead of the synthetic data set.",
)
def demo(out: Path, count: int, seed: int, evidence: EvidenceName, records: bool) -> None:
    """Score, choose and report on data that comes with the package.

    A synthetic data set with ground-truth labels is scored by a small Qwen2.5-VL that was
    trained for it, and the selection is compared with the labels. With --records, published
    completions of 105 MATH-V questions become a selection instead.
    """
    require_extra("rap demo", "demo", "torch", "transformers", "PIL", "jinja2")
    if records:
        from ..demo import run

        refuse_given(("count", "seed", "evidence"), "with --records")
        run(out, echo=click.echo)
        return
    from ..demo.run_world import run as run_world

    quiet_transformers()
    run_world(out, n=count, seed=seed, evidence=evidence, echo=click.echo)
