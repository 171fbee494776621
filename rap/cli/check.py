"""``rap check``: whether a model can be scored with, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import ScoreConfig
from ..errors import RapConfigError, RapModelError
from .fields import Command, field_options, given, group, option
from .options import (
    COLUMNS,
    CONFIG_OPTION,
    DATA,
    LIMIT_OPTION,
    LOADING_OPTIONS,
    PATH,
    json_option,
    refuse_given,
)
from .steps import load, open_data, print_json, quiet_transformers

if TYPE_CHECKING:
    from ..samples.sampleset import SampleSet


@click.command(cls=Command)
@click.argument("model")
@LOADING_OPTIONS
@group(
    "Does the answer depend on the token that psi flags?",
    option(
        "--cut",
        type=PATH,
        metavar="STORE",
        help="Scores of this model over --data: the flagged tokens are cut out of the "
        "sight of all later ones in every layer, and others at random.",
    ),
    option(
        "--samples",
        type=int,
        default=64,
        show_default=True,
        help="Samples to try, the largest psi first.",
    ),
    option(
        "--others",
        type=int,
        default=4,
        show_default=True,
        help="Random tokens that are cut out of each for comparison.",
    ),
    option("--seed", type=int, default=0, show_default=True, help="Seed of these tokens."),
)
@group(
    "The prompts that are scored",
    option(
        "--write-out",
        type=click.IntRange(min=1),
        metavar="N",
        help="Print the prompts of the first N samples of --data, as the chat template "
        "makes them, with the image and without.",
    ),
    *field_options(ScoreConfig, only=("prompt_template", "system_prompt")),
)
@group(
    "Data",
    option("--data", type=DATA, help="The data set, for --cut and --write-out."),
    *COLUMNS,
)
@LIMIT_OPTION
@group("Result", json_option)
@CONFIG_OPTION
def check(
    model: str,
    cut: Path | None,
    samples: int,
    others: int,
    seed: int,
    write_out: int | None,
    data: str | Path | None,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say whether MODEL can be scored with, and how it is read.

    MODEL is a folder, a hub name, or demo. One small sample goes through the model; the
    queries, keys and hidden states that rap captures have to give the model's own attention
    and logits. What was found is printed; if something does not agree, so is the reason,
    and the exit code is 1.

    \b
    Examples:
      rap check ./Qwen2.5-VL-3B-Instruct
      rap check ./my-model --device cpu --dtype float32 --json
      rap check ./my-model --cut scores/ --data data.jsonl
      rap check ./my-model --write-out 3 --data data.jsonl \\
          --system-prompt "Be brief."
    """
    if cut is None:
        refuse_given(("samples", "others", "seed"), "without --cut")
    else:
        refuse_given(("limit",), "with --cut, which goes by the samples that were scored")
    if write_out is None:
        refuse_given(("prompt_template", "system_prompt"), "without --write-out")
    if cut is None and write_out is None:
        refuse_given(("data", "columns", "root", "limit"), "without --cut or --write-out")
    elif data is None:
        raise RapConfigError(
            "--cut needs --data, the data set that was scored"
            if write_out is None
            else "--write-out needs --data, the data set to be scored"
        )
    quiet_transformers()
    loaded, processor = load(model, options)
    from ..model.driver import ModelDriver
    from ..model.probe import facts_text

    driver = ModelDriver(loaded, processor, ScoreConfig(**given(ScoreConfig, options)))
    try:
        found = driver.describe()
    except RapModelError as error:
        if as_json:
            print_json({"ok": False, "reason": str(error), **driver.facts()})
        else:
            click.echo(facts_text(driver.facts()))
        raise
    if as_json:
        result: dict[str, Any] = {"ok": True, **dataclasses.asdict(found)}
    else:
        click.echo(str(found))
    shown = open_data(data, columns, root) if data is not None else None
    if write_out is not None and shown is not None:
        prompts = written_out(driver, shown, write_out)
        if as_json:
            result["prompts"] = prompts
        for prompt in () if as_json else prompts:
            click.echo(_text(prompt))
    if cut is not None:
        from ..scores.scores import Scores
        from ..scoring.causal import cut as cut_tokens

        numbers = {"samples": samples, "others": others, "seed": seed}
        report = cut_tokens(
            loaded,
            processor,
            shown,
            Scores.load(cut),
            **numbers,
        )
        if as_json:
            result["cut"] = report.as_dict()
        else:
            click.echo(str(report))
    if as_json:
        print_json(result)


def written_out(driver: Any, samples: SampleSet, n: int) -> list[dict[str, Any]]:
    """The prompts of the first ``n`` samples: id, with_image, tokens and text as the model
    gets them; of one that cannot be asked, id and error."""
    from ..samples.sample import Bad, BadSample
    from ..samples.sampleset import load_images

    found: list[dict[str, Any]] = []
    for index in range(min(n, len(samples))):
        sample = samples[index]
        if isinstance(sample, Bad):
            found.append({"id": sample.id, "error": f"{sample.code}: {sample.message}"})
            continue
        try:
            images, _ = load_images(sample, max_pixels=driver.config.max_image_pixels)
            for given_images in (images, None):
                made = driver.prepare(sample, given_images)
                found.append(
                    {
                        "id": sample.id,
                        "with_image": given_images is not None,
                        "tokens": made.n_prompt,
                        "text": made.shared.text,
                    }
                )
        except BadSample as bad:
            found.append({"id": sample.id, "error": f"{bad.code}: {bad.message}"})
    return found


def _text(prompt: dict[str, Any]) -> str:
    if "error" in prompt:
        return f"\n--- {prompt['id']}: {prompt['error']}"
    arm = "with the image" if prompt["with_image"] else "without the image"
    return f"\n--- {prompt['id']}, {arm}, {prompt['tokens']} tokens\n{prompt['text']}"
