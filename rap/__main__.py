"""``python -m rap`` is ``rap``."""

from .cli.commands import main

main(prog_name="rap")
