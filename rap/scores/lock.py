"""The write lock of a folder: a POSIX record lock, released when its process ends.

Not flock: a forked data-loader worker does not inherit a record lock, so it goes with the
process that took it, and a dead process's lock is simply free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from ..errors import RapStoreError
from .files import refuse_links, store_error

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

# A record lock does not keep out a second store of the same process: this does.
_open_here: set[str] = set()


_LETTING_GO = 5.0
"""Seconds for which a killed owner's lock may stand: its first thread is dead, so that its
claims are taken over, while its other threads still hold its files."""


class Lock:
    """The right to write into a folder, held until ``release`` or the process ends.
    ``required``: refuse a file system that has no locks; without, whoever asks has its
    right by other means (``claims``)."""

    def __init__(self, folder: Path, *, required: bool = True) -> None:
        self.key = os.path.realpath(folder)
        self.path = folder / "lock"
        self.pid = os.getpid()
        if self.key in _open_here:
            raise RapStoreError(f"{folder}: this process has the store open already")
        refuse_links(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.handle = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise store_error(f"{folder}: cannot be written to", error) from error
        try:
            self._lock(required)
            owner = {"pid": self.pid, "host": socket.gethostname(), "since": _now()}
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, json.dumps(owner).encode(), 0)
        except OSError as error:
            refused = self._refused(folder, error)
            os.close(self.handle)
            raise refused from error
        _open_here.add(self.key)

    def _lock(self, required: bool) -> None:
        end = time.monotonic() + (0.0 if required else _LETTING_GO)
        while True:
            try:
                fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if not required and error.errno in _NO_LOCKS:
                    return
                busy = error.errno in (errno.EACCES, errno.EAGAIN)
                if not busy or time.monotonic() >= end:
                    raise
            time.sleep(0.01)

    def _refused(self, folder: Path, error: OSError) -> RapStoreError:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = os.pread(self.handle, 1000, 0).decode(errors="replace")
            return RapStoreError(
                f"{folder}: another process is scoring into this store ({owner}); wait "
                "for it, or use another folder"
            )
        if error.errno in _NO_LOCKS:
            return RapStoreError(
                f"{folder}: this file system has no locks ({error.strerror}), so two runs "
                "could mix; put the store on a local disk"
            )
        return store_error(f"{folder}: cannot be locked", error)

    def release(self) -> None:
        if self.pid != os.getpid():  # a forked child holds nothing
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self.handle, 0)
        os.close(self.handle)  # lets the record lock go
        _open_here.discard(self.key)


def _now() -> str:
    """For the message of a refused lock only; it reaches no other file."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
