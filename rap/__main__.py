"""``rap`` and ``python -m rap``: the shell, where Ctrl-C is no traceback even while it is
still being imported."""

import sys

from .errors import INTERRUPTED


def main() -> None:
    """Run the shell and exit with its code; see ``rap.cli.shell`` for the codes."""
    try:
        from .cli.commands import main as shell

        shell(prog_name="rap")
    except KeyboardInterrupt:
        print("rap: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
