"""``--config FILE``: options of a command from a YAML or TOML file.

A name in the file is an option of the command or its argument (``data``), with dashes or
underscores; ``ace.heads`` and a table ``ace`` with ``heads`` in it mean the same. What is
given on the command line wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..config import ScoreConfig
from ..errors import RapConfigError, first_line, install
from ..settings import REMOVED, field_types, is_settings, near
from .fields import Option, option

SETTINGS = "settings"
"""The parameter of ``--set``, where it is about ``ScoreConfig``."""
FILE = "rap.config"
"""Key of a context's ``meta``: what ``--config`` holds that is no option of the command."""


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file: TOML or YAML by its ending, JSON is YAML too.

    Raises ``RapConfigError`` if it cannot be read or is no table of settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RapConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RapConfigError(f"{path}: cannot be read: {first_line(error)}") from error
    found = _toml(text, path) if path.suffix == ".toml" else _yaml(text, path)
    if not isinstance(found, dict):
        raise RapConfigError(f"{path}: expected settings, NAME: VALUE")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def _toml(text: str, path: Path) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise RapConfigError(f"{path}: is not TOML: {first_line(error)}") from error


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise RapConfigError(
            f"{path}: reading YAML needs PyYAML: {install('hf')}; or write it as TOML"
        ) from error
    try:
        _refuse_twice(yaml.compose(text, yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except RapConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" in line {mark.line + 1}"
        said = f"is not YAML{where}: {error.problem or first_line(error)}"
        raise RapConfigError(f"{path}: {said}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RapConfigError(f"{path}: is not YAML: {first_line(error)}") from error


def _refuse_twice(node: Any, path: Path) -> None:
    """Refuse a name that stands twice in one mapping: YAML would take the last."""
    inner = getattr(node, "value", None)
    if not isinstance(inner, list):
        return
    seen: dict[str, int] = {}
    for one in inner:
        key, value = one if isinstance(one, tuple) else (None, one)
        _refuse_twice(value, path)
        if key is None or not isinstance(key.value, str):
            continue
        line = key.start_mark.line + 1
        name = key.value.replace("-", "_")
        if name in seen:
            raise RapConfigError(
                f"{path}: {key.value} stands twice, in lines {seen[name]} and {line}"
            )
        seen[name] = line


def config_option(more: str = "", *, takes_rest: bool = False) -> Any:
    """The option ``--config``. takes_rest: names that are no option of the command are
    left in ``ctx.meta[FILE]`` for it instead of being refused; more: what they are."""

    def read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        rest = _fill(ctx, path)
        if takes_rest:
            ctx.meta[FILE] = rest
        for name in () if takes_rest else rest:
            raise RapConfigError(_unknown(ctx, path, name))

    return option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read,
        help=f"YAML or TOML: options of this command{more}, by their names here; those on "
        "the command line win. Paths are relative to the working folder.",
    )


def _fill(ctx: click.Context, path: Path) -> dict[str, Any]:
    """What the file names becomes the defaults of the command; returns the rest."""
    params = {name: p for p in ctx.command.params for name in _names(p)}
    scores = any(p.name == SETTINGS for p in ctx.command.params)
    defaults: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    parts: list[str] = []
    for name, value in _flat(read_config(path)):
        param = params.get(name.removeprefix("sampling."))
        if param is not None:
            defaults[param.name or ""] = _value(path, name, param, value)
        elif scores and _is_part(name):
            parts.append(f"{name}={json.dumps(value)}")
        else:
            rest[name] = value
    if parts:
        defaults[SETTINGS] = [*defaults.get(SETTINGS, ()), *parts]
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return rest


def with_file(ctx: click.Context, param: click.Parameter, given: Any) -> Any:
    """Callback of an option that takes pairs: those of the file, then those given."""
    if ctx.get_parameter_source(param.name or "") is not ParameterSource.COMMANDLINE:
        return given
    return (*(ctx.default_map or {}).get(param.name, ()), *given)


def _names(param: click.Parameter) -> list[str]:
    """How a parameter may be called in a file."""
    if isinstance(param, click.Argument):
        return [param.name or ""]
    if not isinstance(param, Option) or param.name in ("config", "help"):
        return []
    return [opt[2:].replace("-", "_") for opt in param.opts if opt.startswith("--")]


def _flat(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tables of ``ScoreConfig``'s parts as dotted names."""
    for name, value in found.items():
        if isinstance(value, Mapping) and is_settings(field_types(ScoreConfig).get(name)):
            for inner, one in value.items():
                yield f"{name}.{str(inner).replace('-', '_')}", one
        else:
            yield name, value


def _is_part(name: str) -> bool:
    part, dot, _ = name.partition(".")
    return bool(dot) and is_settings(field_types(ScoreConfig).get(part))


def _value(path: Path, name: str, param: click.Parameter, value: Any) -> Any:
    """A value of the file as the command line would give it."""
    if getattr(param, "multiple", False):
        if isinstance(value, Mapping):
            pairs = [(key, v) for key, one in value.items() for v in _list(one)]
            return [f"{key}={_text(one)}" for key, one in pairs]
        return [_text(one) for one in _list(value)]
    if isinstance(value, (Mapping, list)):
        raise RapConfigError(f"{path}: {name} = {value!r}: expected one value")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


FOREIGN = {
    "model_name_or_path": "model",
    "model_name": "model",
    "pretrained": "model",
    "dataset_name": "data",
    "dataset": "data",
    "model_revision": "revision",
    "torch_dtype": "dtype",
    "output_dir": "out",
    "system_instruction": "system_prompt",
}
"""Names that TRL and lm-eval have for options of ours."""


def _unknown(ctx: click.Context, path: Path, name: str) -> str:
    if name in REMOVED:
        return f"{path}: {name}: {REMOVED[name]}"
    known = [n for p in ctx.command.params for n in _names(p)]
    text = f"{path}: {name}: no option of rap {ctx.info_name}"
    if (ours := FOREIGN.get(name, name.lower())) in known:
        return f"{text}; here it is {ours}"
    if alike := near(name, known):
        return text + alike
    group = ctx.parent.command if ctx.parent is not None else None
    commands = group.commands if isinstance(group, click.Group) else {}
    others = [c for c, command in commands.items() if _has(command, name)]
    return f"{text}, but of rap {' and '.join(others)}" if others else text


def _has(command: click.Command, name: str) -> bool:
    return any(name in _names(param) for param in command.params)
