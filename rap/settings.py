"""Settings classes: frozen dataclasses with validated fields.

pydantic does the checking, from the annotated types: its dataclasses stay dataclasses
(``replace``, ``asdict`` and ``fields`` work; attrs' would not) and are checked when they
are made (msgspec's are not), for 0.1 s of import and two wheels. Its messages are replaced
by one sentence, ``name = value: expected ...``, made from the same types.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import pydantic
import pydantic.dataclasses
from annotated_types import Ge, Gt, Le, Lt, Predicate
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from .errors import RapConfigError

__all__ = ["Ge", "Gt", "Le", "Lt", "Number", "Predicate", "setting", "settings"]

T = TypeVar("T")

_STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
)


def _as_given(value: Any, check: Callable[[Any], Any]) -> Any:
    check(value)
    return value


Number = Annotated[float, pydantic.WrapValidator(_as_given)]
"""A finite float or int, kept as it was given: 1 stays 1 in stored settings."""


def to_python(value: object) -> object:
    """NumPy's scalars as Python's; a float as the shortest decimal that means it, so
    that ``np.float32(0.29)`` is 0.29 and not 0.28999999165534973."""
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


# ---------------------------------------------------------------- fields


def setting(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    none: str | None = None,
    expected: str | None = None,
    hint: Callable[[object], str] | None = None,
    speed: bool = False,
) -> Any:
    """A field of a settings class.

    help: what it is, in the words of ``help()`` and of the command line.
    none: what None stands for, where it is the default.
    expected: what a value has to be, where types and bounds do not say it.
    hint: refused value -> what the user may have meant, or "".
    speed: it changes how fast scores are computed, and no score.
    """
    about = {"help": help, "none": none, "expected": expected, "hint": hint}
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        metadata={**about, "speed": speed},
    )


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def settings(kind: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass with slots, checked by its annotations.

    Making one raises ``RapConfigError`` for an unknown field or a value that its type does
    not allow. NumPy's scalars are taken for Python's, and a mapping for a field that is
    itself a settings class. ``__post_init__`` is for what concerns several fields.
    """
    made = pydantic.dataclasses.dataclass(frozen=True, slots=True, config=_STRICT)(kind)
    validate = made.__init__

    @functools.wraps(validate)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        names = [f.name for f in dataclasses.fields(self)]
        require_known(given, names, f"{made.__name__} has no such field")
        given = dict(zip(names, args)) | given if len(args) <= len(names) else given  # noqa: B905
        hints = field_types(made)
        given = {name: _part(hints[name], name, v) for name, v in given.items()}
        try:
            validate(self, *args[len(names) :], **given)
        except ValidationError as error:
            raise _refused(made, error, given) from None

    made.__init__ = checked  # type: ignore[method-assign]
    made.__doc__ = f"{made.__doc__}\n\n{_list_fields(made)}"
    return made  # type: ignore[return-value]


def resolve(
    kind: type[T], name: str, base: object, overrides: Mapping[str, Any], owner: str
) -> T:
    """``base`` (a ``kind``, or None for the defaults) with single fields replaced.

    name: of the parameter that ``base`` came by; owner: the function it is of.
    Raises ``RapConfigError`` if ``base`` is something else, or for an override that is no
    field or has a value that its field does not allow.
    """
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    require_known(overrides, names, f"{owner} has no such option")
    if base is None:
        return kind(**overrides)
    if not isinstance(base, kind):
        meant = ""
        if isinstance(base, float) and 0 < base <= 1:
            meant = f"; a share of the samples to keep is budget={base!r}"
        if isinstance(base, Mapping) and base:
            fields = ", ".join(f"{key}={value!r}" for key, value in base.items())
            meant = f"; single fields are arguments: {owner}(..., {fields})"
        raise RapConfigError(
            f"{name} = {base!r}: expected a rap.{kind.__name__} or None{meant}"
        )
    return dataclasses.replace(base, **overrides)  # type: ignore[type-var]


def is_settings(kind: object) -> bool:
    """Whether ``kind`` is a class that ``settings`` made."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__")


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """{field: its type, with bounds} of a settings class."""
    return get_type_hints(kind, include_extras=True)


@functools.cache
def _checker(kind: type, name: str) -> TypeAdapter[Any]:
    hint = field_types(kind)[name]
    try:
        return TypeAdapter(hint, config=_STRICT)
    except PydanticUserError:  # a settings class, which has its own configuration
        return TypeAdapter(hint)


def check_field(kind: type, name: str, value: object) -> Any:
    """``value`` as ``kind`` would keep it in its field ``name``.

    Raises ``RapConfigError`` as making a ``kind`` does, but for rules of several fields.
    """
    value = _part(field_types(kind)[name], name, value)
    try:
        return _checker(kind, name).validate_python(value)
    except ValidationError as error:
        ours = _ours(error)
        raise ours or RapConfigError(_sentence(kind, name, value)) from None


def _part(hint: Any, name: str, value: Any) -> Any:
    """``value`` for a field of type ``hint``, where a mapping stands for settings."""
    kinds = [k for k in (hint, *get_args(hint)) if is_settings(k)]
    if not kinds or not isinstance(value, Mapping):
        return to_python(value)
    (kind,) = kinds
    names = [f.name for f in dataclasses.fields(kind)]
    require_known(value, names, f"{kind.__name__} has no such field", f"{name}.")
    return kind(**value)


# ---------------------------------------------------------------- sentences


def near(name: object, known: Iterable[str]) -> str:
    """ "; did you mean 'budget'?", or "" where nothing is like ``name``."""
    found = difflib.get_close_matches(str(name), list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


REMOVED = {
    "adaptive": "was removed; evidence='cascade' stops each sample when it is decided",
    "screen_lambda_c": "was removed; evidence='cascade' samples only where a sample can "
    "still be kept (cascade_completions)",
    "cascade_share": "was removed; cascade_completions says what the cascade may cost",
}
"""Options of earlier versions -> what stands in their place."""


def require_known(
    given: Iterable[Any], known: Iterable[str], why: str, prefix: str = ""
) -> None:
    """Raises ``RapConfigError`` for the first name that is not known, with its like."""
    names = list(known)
    for name in given:
        if name not in names:
            removed = REMOVED.get(name) if isinstance(name, str) else None
            raise RapConfigError(f"{prefix}{name}: {removed or why + near(name, names)}")


def expected(hint: Any) -> str:
    """What a type allows, in words: "None or a number in (0, 1]"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [expected(a) for a in args if a is not type(None)]
        return " or ".join(["None"] * (type(None) in args) + kinds)
    if origin is Annotated:
        return f"{expected(args[0])}{_bounds(args[1:])}"
    if origin is Literal:
        return f"one of {args}"
    if is_settings(hint):
        return f"rap.{hint.__name__} or a dict of its fields"
    words = {
        bool: "True or False",
        int: "an integer",
        float: "a number",
        str: "a text",
        Mapping: "a dict",
    }
    kind = origin or hint
    return words.get(kind) or f"a {kind.__name__}"


def _bounds(metadata: Iterable[object]) -> str:
    """ " in [0, 1)", " > 0" or ""."""
    low = high = None
    for rule in metadata:
        if isinstance(rule, Gt | Ge):
            low = ("(", ">", rule.gt) if isinstance(rule, Gt) else ("[", ">=", rule.ge)
        if isinstance(rule, Lt | Le):
            high = (")", "<", rule.lt) if isinstance(rule, Lt) else ("]", "<=", rule.le)
    if low and high:
        return f" in {low[0]}{low[2]}, {high[2]}{high[0]}"
    one = low or high
    return f" {one[1]} {one[2]}" if one else ""


def _expected(field: dataclasses.Field[Any], hint: Any) -> str:
    return field.metadata.get("expected") or expected(hint)


def _sentence(kind: type, name: str, value: object) -> str:
    field = kind.__dataclass_fields__[name]  # type: ignore[attr-defined]
    hint = field.metadata.get("hint")
    meant = hint(value) if hint is not None else ""
    wanted = _expected(field, field_types(kind)[name])
    return f"{name} = {value!r}: expected {wanted}{meant and f'; {meant}'}"


def _refused(
    kind: type, error: ValidationError, given: Mapping[str, Any]
) -> RapConfigError | ValidationError:
    """What pydantic found first, as ours."""
    ours = _ours(error)
    if ours is not None:
        return ours
    name = str(error.errors(include_url=False)[0]["loc"][0])
    return RapConfigError(_sentence(kind, name, given[name]))


def _ours(error: ValidationError) -> RapConfigError | None:
    """The error of a ``__post_init__`` or of a validator of our own."""
    found = error.errors(include_url=False)[0].get("ctx", {}).get("error")
    return found if isinstance(found, RapConfigError) else None


def default_text(field: dataclasses.Field[Any]) -> str:
    """A field's default as it would be typed; what None stands for; "" without one."""
    if field.default is dataclasses.MISSING:
        return ""
    if field.default is None or field.default == ():
        return field.metadata.get("none") or "none"
    return str(field.default)


def _list_fields(kind: type) -> str:
    """The fields as a docstring lists them: one help text for all readers."""
    lines = ["Fields", "------"]
    for field in dataclasses.fields(kind):
        wanted = _expected(field, field_types(kind)[field.name])
        default = "None: " * (field.default is None) + default_text(field)
        lines.append(f"{field.name} : {wanted}" + (f"; default {default}" * bool(default)))
        lines.append(textwrap.indent(textwrap.fill(field.metadata["help"], 84), " " * 4))
    return "\n".join(lines)
