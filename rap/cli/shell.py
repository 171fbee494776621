"""A click group whose errors become exit codes and one sentence each on stderr.

0 done; 1 the data, the model or the store cannot be used; 2 a wrong command line or
setting; 130 Ctrl-C; 143 SIGTERM. ``--debug``, anywhere on the line, shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NoReturn

import click

from ..errors import INTERRUPTED, RapConfigError, RapError, install, is_out_of_memory
from ..settings import REMOVED

OK, FAILED, USAGE, TERMINATED = 0, 1, 2, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM. A KeyboardInterrupt, so that all that stops cleanly on Ctrl-C does so."""


def on_sigterm(signum: int, frame: object) -> NoReturn:
    raise Terminated


class Shell(click.Group):
    """A group whose errors become exit codes and one sentence each."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        # click's own handling knows neither our errors nor 130
        words = list(kwargs.pop("args", None) or (args[0] if args else sys.argv[1:]))
        if debug := "--debug" in words:  # anywhere on the line, not only up front
            words = ["--debug", *(word for word in words if word != "--debug")]
        kwargs["standalone_mode"] = False
        try:
            result = super().main(words, *args[1:], **kwargs)
            sys.stdout.flush()
            sys.exit(result if isinstance(result, int) else OK)
        except Exception as error:
            if debug and not isinstance(error, (click.ClickException, click.Abort)):
                traceback.print_exc()
            sys.exit(_explain(error))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


def _explain(error: Exception) -> int:
    """Say what happened, in one sentence; returns the exit code."""
    if isinstance(error, click.Abort):
        return _stopped(error.__cause__ or error.__context__)
    if isinstance(error, click.NoSuchOption):
        name = error.option_name.lstrip("-").replace("-", "_")
        if name in REMOVED:
            return fail(f"{error.option_name}: {REMOVED[name]}", USAGE)
    if isinstance(error, click.ClickException):
        error.show()
        return USAGE if isinstance(error, click.UsageError) else FAILED
    if isinstance(error, RapConfigError):
        return fail(str(error), USAGE)
    if isinstance(error, RapError):
        return fail(str(error), FAILED)
    if isinstance(error, BrokenPipeError):
        # the reader went away (rap ... | head): not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error)):
        return fail(f"this needs {error.name}: {install(extra)}", USAGE)
    if is_out_of_memory(error):
        return fail("out of memory", FAILED)
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return fail("no new thread: out of memory, or of processes (ulimit -u)", FAILED)
    if isinstance(error, OSError):
        named = error.filename is not None and error.strerror is not None
        return fail(f"{error.filename}: {error.strerror}" if named else str(error), FAILED)
    name = type(error).__name__
    return fail(
        f"{name}: {error}. This is a fault in rap: please report it with the output of "
        "the same command and --debug",
        FAILED,
    )


_EXTRAS = {
    "hf": (
        "torch",
        "torchvision",
        "transformers",
        "datasets",
        "tqdm",
        "math_verify",
        "pandas",
        "huggingface_hub",
    ),
    "trl": ("trl",),
    "lora": ("peft",),
    "report": ("jinja2", "matplotlib", "PIL"),
}


def _extra_of(error: ModuleNotFoundError) -> str | None:
    """The extra that brings the module that is not installed, if one does."""
    module = (error.name or "").partition(".")[0]
    return next((e for e, modules in _EXTRAS.items() if module in modules), None)


def _stopped(cause: BaseException | None) -> int:
    click.echo("rap: stopped", err=True)
    return TERMINATED if isinstance(cause, Terminated) else INTERRUPTED


def fail(text: str, code: int) -> int:
    click.echo(f"rap: error: {' '.join(text.split())}", err=True)
    return code


def show_warning(message: Any, *_: object, **__: object) -> None:
    click.echo(f"rap: warning: {message}", err=True)
