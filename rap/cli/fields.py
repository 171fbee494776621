"""Options of the command line, made from the fields of settings classes.

Name, type, default and help of such an option are the field's; there is no list of them
here. ``given`` turns what the user gave back into the class's arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from ..errors import RapConfigError
from ..settings import check_field, default_text, field_types, is_settings

Decorator = Callable[..., Any]


class Option(click.Option):
    """An option that knows under which heading of a long --help it stands."""

    def __init__(self, *args: Any, section: str = "Other", **more: Any) -> None:
        super().__init__(*args, **more)
        self.section = section


class Command(click.Command):
    """A command whose --help groups its options, in the order they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                name = getattr(param, "section", "Other")
                sections.setdefault(name, []).append(record)
        last = {"Other": sections.pop("Other", [])}
        for name, records in (sections | last).items():
            with formatter.section(name):
                formatter.write_dl(records)


def option(*names: str, **attributes: Any) -> Callable[..., Decorator]:
    """One option of a ``group``."""
    return functools.partial(click.option, *names, cls=Option, **attributes)


def group(section: str, *options: Callable[..., Decorator]) -> Decorator:
    """A decorator that gives a command all of these options, under one heading."""

    def apply(function: Decorator) -> Decorator:
        for made in reversed(options):
            function = made(section=section)(function)
        return function

    return apply


# ---------------------------------------------------------------- from fields


class FieldType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """The type of a settings field: what its class refuses is refused here, by name."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.field, self.name = kind, name, name
        self.plain = _plain_type(field_types(kind)[name])

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.plain) if get_origin(self.plain) is Literal else ()

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        if self.choices:
            return f"[{'|'.join(self.choices)}]"
        return {int: "INTEGER", float: "NUMBER"}.get(self.plain, "TEXT")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if isinstance(value, str) and self.plain in (int, float):
            value = _number(value, self.plain)
        try:
            return check_field(self.kind, self.field, value)
        except RapConfigError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(c) for c in self.choices if c.startswith(incomplete)]


def _plain_type(hint: Any) -> Any:
    """int of ``Annotated[int, Ge(1)] | None``."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Annotated or (type(None) in get_args(hint) and len(kinds) == 1):
        return _plain_type(kinds[0])
    return hint


def _number(text: str, kind: type) -> Any:
    """``text`` as an int or float, 9/1000 too; itself where it is none."""
    try:
        return float(Fraction(text)) if kind is float and "/" in text else kind(text)
    except (ValueError, ZeroDivisionError):
        return text


def field_options(
    kind: type,
    *,
    only: Collection[str] | None = None,
    speed: bool | None = None,
    names: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[Callable[..., Decorator]]:
    """An option for each field of a settings class that is no settings class itself.

    only: of these fields. speed: of those with this ``speed``. names: {field: its option},
    where that has another name. texts: {field: what its help says besides}. An option that
    is not given is None.
    """
    made = []
    for field in dataclasses.fields(kind):
        if field.name not in (field.name if only is None else only):
            continue
        if speed not in (None, field.metadata["speed"]):
            continue
        hint = _plain_type(field_types(kind)[field.name])
        if not is_settings(hint):
            name = (names or {}).get(field.name)
            more = (texts or {}).get(field.name)
            made.append(_field_option(kind, field, hint, name, more))
    return made


def _field_option(
    kind: type,
    field: dataclasses.Field[Any],
    hint: Any,
    name: str | None,
    more: str | None = None,
) -> Callable[..., Decorator]:
    spelled = (name or field.name).replace("_", "-")
    default = default_text(field)
    kind_of_value: Any
    several = get_origin(hint) is tuple
    if several:  # each is checked with the others, where the settings are made
        flags, kind_of_value = f"--{spelled}", click.STRING
    elif hint is bool:
        default = {"True": spelled, "False": f"no-{spelled}"}.get(default, default)
        flags, kind_of_value = f"--{spelled}/--no-{spelled}", click.BOOL
    else:
        flags, kind_of_value = f"--{spelled}", FieldType(kind, field.name)
    text = " ".join(filter(None, (field.metadata["help"], more)))
    text += " Repeatable." if several else f"  [default: {default}]" * bool(default)
    more_of = {"multiple": True} if several else {"default": None}
    return option(flags, field.name, type=kind_of_value, help=text, **more_of)


def given(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that are fields of ``kind`` and were given."""
    names = [f.name for f in dataclasses.fields(kind)]
    return {name: options[name] for name in names if options.get(name) not in (None, ())}
