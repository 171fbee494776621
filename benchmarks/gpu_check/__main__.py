"""The sections, in the order of what they tell; see the package."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from . import build, report
from .device import DEV, GPU, measure_ceilings

WHOLE = 560
"""Seconds of everything; then the table is printed, whatever still runs."""


class Late(BaseException):
    """A section's limit has passed; no check inside takes it for its own failure."""


def environment() -> None:
    build.ensure()
    import torch

    import rap

    report.say(
        "environment",
        "versions",
        python=platform.python_version(),
        torch=torch.__version__,
        kernel=platform.release(),
        gpu=rap.info()["gpu"],
    )
    measure_ceilings()


def correct() -> None:
    from . import correct as section

    section.run()


def times() -> None:
    from . import times as section

    section.run()


def model() -> None:
    from . import model as section

    section.run()


def callers() -> None:
    from . import callers as section

    section.run()


def options() -> None:
    from . import options as section

    section.run(36.0)


def sanitizer() -> None:
    from . import sanitizer as section

    section.run(min(96.0, WHOLE - report.seconds() - 15))


# limits add up to less than the whole
SECTIONS: dict[str, tuple[Callable[[], None], int]] = {
    "environment": (environment, 100),
    "correct": (correct, 70),
    "times": (times, 110),
    "model": (model, 90),
    "callers": (callers, 40),
    "options": (options, 40),
    "sanitizer": (sanitizer, 100),
}


def _late(number: int, frame: FrameType | None) -> NoReturn:
    raise Late


def attempt(name: str) -> None:
    """One section within its limit and what is left of the whole."""
    call, limit = SECTIONS[name]
    limit *= 1 if GPU else 3  # a dry run shares its processors
    left = WHOLE - 10 - report.seconds()
    begin = report.seconds()
    if left < 10:
        report.say("sections", name, skipped="no time left for it")
        return
    signal.alarm(int(min(limit, left)))
    try:
        call()
        report.say("sections", name, seconds=round(report.seconds() - begin, 1))
    except Late:
        report.say("sections", name, broke=f"not done after {int(min(limit, left))} s")
    except Exception:
        report.say("sections", name, broke=traceback.format_exc()[-900:])
    finally:
        signal.alarm(0)


def finish() -> NoReturn:
    print(report.table(), flush=True)
    os._exit(1 if report.failed() else 0)


def give_up() -> None:
    """By a thread of its own: what hangs on the device hears no signal."""
    report.say("sections", "everything", broke=f"still running after {WHOLE} s")
    finish()


def main(names: list[str]) -> NoReturn:
    unknown = set(names) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"no section {unknown}: expected some of {tuple(SECTIONS)}")
    watch = threading.Timer(WHOLE, give_up)
    watch.daemon = True
    watch.start()
    signal.signal(signal.SIGALRM, _late)
    report.say("environment", "run", DEV=DEV, dry=not GPU)
    for name in names or SECTIONS:
        attempt(name)
    finish()


if __name__ == "__main__":
    main(sys.argv[1:])
