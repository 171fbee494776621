"""``python -m rap`` is ``rap``."""

from .cli import main

main(prog_name="rap")
