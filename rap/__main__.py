"""``rap`` and ``python -m rap``: the shell, where Ctrl-C is no traceback even while it is
still being imported."""

import os
import signal
from typing import Any

from .errors import INTERRUPTED


def main() -> None:
    """Run the shell and exit with its code; see ``rap.cli.shell`` for the codes."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:  # not where it is ignored, as behind nohup
        signal.signal(signal.SIGINT, _leave)
    from .cli.commands import main as shell

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    shell(prog_name="rap")


def _leave(*_: Any) -> None:
    """End at once: there is nothing to clean up, and an exception could be taken for an
    error by what is being imported (pydantic does)."""
    os.write(2, b"rap: stopped\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
