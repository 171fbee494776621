"""The shell: ``rap COMMAND``. ``commands``: the commands; ``options``: what several share;
``steps``: what they do; ``shell``: errors, signals, exit codes."""

from .commands import main

__all__ = ["main"]
