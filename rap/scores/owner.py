"""Which process writes into a store, and whether it still lives.

A number of a process means something on one machine only, between two boots of it, and in
one namespace of containers: ``Owner.machine`` stands for all three. Of a process of another
machine nothing is known from here; its signs of life are in its claims (``claims``).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TMP = re.compile(r"\..+\.[\w-]*-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")
_ANY_TMP = re.compile(r"\..*\.tmp")
_SEES = os.path.exists("/proc/self/stat")
"""Whether other processes of this machine can be seen (Linux)."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. ``host``: for people. ``started``: clock ticks since the boot, 0 where
    that is not known."""

    host: str
    machine: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def me() -> Owner:
    """This process; a forked child is another one."""
    return _owner(os.getpid())


@cache
def _owner(pid: int) -> Owner:
    return Owner(socket.gethostname(), _machine(), pid, _started(pid) or 0)


@cache
def _machine() -> str:
    """8 hex digits: this boot of this machine, and this namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: nothing is known of any process, see `lives`
        boot, namespace = socket.gethostname(), secrets.token_hex(8)
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:8]


_HIDDEN = -1


def _started(pid: int) -> int | None:
    """When a process of this machine was started; None if it is not there, or dead and
    only waited for by its parent; `_HIDDEN` if it is there and another user's (hidepid)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except PermissionError:
            return _HIDDEN
        except (OSError, OverflowError):
            pass
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def lives(owner: Owner) -> bool | None:
    """Whether a process is there; None for one that cannot be seen from here."""
    if not _SEES or owner.machine != _machine():
        return None
    started = _started(owner.pid)
    return None if started == _HIDDEN else started == owner.started


def tmp_name(name: str) -> str:
    """A name for a file that is being written and will be ``name``: no other process of
    any machine has it."""
    owner = me()
    host = re.sub(r"[^\w-]", "-", owner.host, flags=re.ASCII)[:40]
    return f".{name}.{host}-{owner.machine}-{owner.pid}-{secrets.token_hex(4)}.tmp"


def tmps_of(name: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that ``tmp_name(name)`` may have given."""
    found = rf"\.{re.escape(name)}\.[\w-]*-[0-9a-f]{{8}}-\d+-[0-9a-f]{{8}}\.tmp"
    return [other for other in names if re.fullmatch(found, other)]


def stale_tmps(folder: Path, names: list[str], age: float) -> list[str]:
    """Those of ``names`` that nobody writes any more: of a dead process of this machine, of
    an older version, or unchanged for ``age`` seconds by the clock of the file system.

    May write into ``folder``, and removes that again. Raises ``OSError``."""
    found, unknown = [], []
    for name in filter(_ANY_TMP.fullmatch, names):
        match = _TMP.fullmatch(name)
        here = match is not None and _SEES and match[1] == _machine()
        if match is None or (here and _started(int(match[2])) is None):
            found.append(name)
        elif not here:
            unknown.append(name)
    if not unknown:
        return found
    probe = folder / tmp_name("clock")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    for name in unknown:
        try:
            old = now - (folder / name).stat().st_mtime >= age
        except FileNotFoundError:  # written by now
            continue
        if old:
            found.append(name)
    return found
