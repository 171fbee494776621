"""Executors: which processes score the shards of a run.

``contract``: what one is; ``local`` (this process), ``env`` (every process that a launcher
has started), ``ray`` (workers on a Ray cluster). Their settings are
`rap.config.ExecutorConfig`.
"""

from __future__ import annotations

from collections.abc import Callable

from ...config import ExecutorConfig
from .contract import Executor, Scored
from .env import EnvExecutor
from .local import LocalExecutor
from .ray import RayExecutor

EXECUTORS: dict[str, Callable[[ExecutorConfig], Executor]] = {
    "local": LocalExecutor,
    "env": EnvExecutor,
    "ray": RayExecutor,
}
"""Name -> class. To add an executor: its file, one line here, its name in
``config.ExecutorName``."""


def make_executor(config: ExecutorConfig) -> Executor:
    """The executor of these settings. Raises ``RapConfigError`` where it cannot be used."""
    return EXECUTORS[config.executor](config)


__all__ = ["EXECUTORS", "Executor", "Scored", "make_executor"]
