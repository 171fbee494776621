"""Claims: which worker does what in a store that many processes fill.

A folder ``claims`` in the store, one file a claim: the number of a shard, ``plan`` or
``seal``. Nothing is locked, so that it works on any file system that workers share:

- A claim is taken by creating its file, which fails where there is one (O_EXCL).
- Its owner rewrites a counter in it every ``lease / 4`` seconds.
- A claim is stale when its owner is a dead process of this machine, or when whoever looks
  has seen no change of it for ``lease`` seconds of its own monotonic clock. Clocks of two
  machines are never compared, nor is a time stamp of a file.
- A stale claim is renamed away, which one of several takers can do, and then taken as a
  free one.

A claim spares work, it guards nothing: a worker that was only slow may go on beside its
successor. Both write the same bytes, each file whole or not at all, and the slow one writes
no shard that it finds is not its own any more (``Claims.holds``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RapStoreError
from .files import make_folder, read_regular, refuse_links, store_error
from .owner import Owner, lives, me

log = logging.getLogger("rap")

FOLDER = "claims"
PLAN, SEAL, PROFILE = "plan", "seal", "profile"
"""What is claimed besides shards."""
LEASE = 120.0
"""Seconds without a sign of life after which a claim is stale, unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim's file says. ``token``: of the `Claims` that took it, at random.
    ``rank``: of its worker, None if it has none."""

    owner: Owner
    token: str
    rank: int | None
    lease: float
    beat: int = 0

    def __str__(self) -> str:
        rank = "" if self.rank is None else f"rank {self.rank}, "
        return f"{rank}{self.owner}"

    def text(self) -> bytes:
        """Of one length whatever ``beat`` is: it is rewritten in place."""
        found = dataclasses.asdict(self) | {"beat": f"{self.beat:020d}"}
        return json.dumps(found).encode()

    @classmethod
    def of(cls, text: bytes) -> Claim | None:
        """What ``text`` gave; None for anything else, as of an owner that died early."""
        try:
            found: Mapping[str, Any] = json.loads(text)
            owner, token = Owner(**found["owner"]), str(found["token"])
            lease, beat = float(found["lease"]), int(found["beat"])
            return cls(owner, token, found["rank"], lease, beat)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


class Claims:
    """The claims of this process on the store at ``store``.

    ``lease``: see ``LEASE``. ``clock``: seconds that never jump. Claims are kept alive by a
    thread; ``close`` releases them all. Safe for several threads.
    """

    def __init__(
        self,
        store: Path,
        *,
        rank: int | None = None,
        lease: float = LEASE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = store / FOLDER
        self.lease, self.clock = lease, clock
        self.dead: set[Owner] = set()
        """Processes of other machines that are known to be dead."""
        self._mine = Claim(me(), secrets.token_hex(8), rank, lease)
        self._held: dict[str, int] = {}  # name: open file
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        refuse_links(store)
        make_folder(self.folder)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, name: str) -> bool:
        """Whether the claim was free and is ours now. Raises ``RapStoreError``."""
        path = self.folder / name
        try:
            handle = self._create(path)
        except FileExistsError:
            return False
        except OSError as error:
            raise store_error(f"{path}: cannot be made", error) from error
        try:
            os.pwrite(handle, self._mine.text(), 0)
        except OSError as error:
            os.close(handle)
            with contextlib.suppress(OSError):
                path.unlink()
            raise store_error(f"{path}: cannot be written", error) from error
        with self._lock:
            self._held[name] = handle
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, daemon=True)
                self._thread.start()
        return True

    def take_over(self, name: str) -> bool:
        """As ``take``, also where the claim is stale."""
        if self.take(name):
            return True
        if not self.is_stale(name):
            return False
        judged = Claim.of(self._seen.pop(name)[0])
        grave = self.folder / f".{name}.{self._mine.token}"
        try:
            os.rename(self.folder / name, grave)
        except FileNotFoundError:
            return False  # somebody else took it over
        except OSError as error:
            raise store_error(f"{self.folder / name}: cannot be renamed", error) from error
        there = Claim.of(grave.read_bytes())
        if (there and there.token) != (judged and judged.token):
            with contextlib.suppress(OSError):  # somebody else did, just now: put it back
                os.link(grave, self.folder / name)
            grave.unlink()
            return False
        grave.unlink()
        return self.take(name)

    def is_stale(self, name: str) -> bool:
        """Whether the owner of a claim is dead, or has given no sign of life for its lease
        since this was first asked."""
        text = self._read(name)
        if text is None:
            self._seen.pop(name, None)
            return False
        now = self.clock()
        if name not in self._seen or self._seen[name][0] != text:
            self._seen[name] = text, now
        claim = Claim.of(text)
        if claim is not None and (claim.owner in self.dead or lives(claim.owner) is False):
            return True
        lease = self.lease if claim is None else claim.lease
        return now - self._seen[name][1] >= lease

    def holds(self, name: str) -> bool:
        """Whether the claim is ours, and was not taken over."""
        if name not in self._held or self._mine.owner.pid != os.getpid():
            return False
        claim = Claim.of(self._read(name) or b"")
        return claim is not None and claim.token == self._mine.token

    def release(self, name: str) -> None:
        """Give a claim back. Harmless for one that is not ours."""
        held = self.holds(name)
        with self._lock:
            handle = self._held.pop(name, None)
            if handle is not None:
                os.close(handle)
        if held:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()

    @contextmanager
    def holding(self, name: str, wait: float = 0.2) -> Iterator[None]:
        """The claim inside, waited for."""
        while not self.take_over(name):
            time.sleep(wait)
        try:
            yield
        finally:
            self.release(name)

    def others(self) -> dict[str, Claim | None]:
        """{claim: what it says} of all that are not ours."""
        found = {}
        for name in names(self.folder):
            text = None if name in self._held else self._read(name)
            if text is not None:
                found[name] = Claim.of(text)
        return found

    def clear_dead(self) -> None:
        """Remove the claims of processes that are dead: what they were at is done."""
        for name in self.others():
            if self.is_stale(name) and self.take_over(name):
                self.release(name)

    def close(self) -> None:
        """Release what is held. Harmless when called twice."""
        self._ended.set()
        for name in list(self._held):
            self.release(name)
        if self._thread is not None and self._mine.owner.pid == os.getpid():
            self._thread.join()
            self._thread = None

    def _create(self, path: Path) -> int:
        # O_SYNC: a network file system's client would keep signs of life to itself
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_SYNC
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:  # a run that had the store for itself has cleared up
            make_folder(self.folder)
            return os.open(path, flags, 0o666)

    def _read(self, name: str) -> bytes | None:
        """What a claim says now; None if there is none. Opened anew each time: a network
        file system then asks its server."""
        try:
            return read_regular(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(f"{self.folder / name}: cannot be read", error) from error

    def _live(self) -> None:
        """The thread that gives signs of life."""
        beat = 0
        while not self._ended.wait(self.lease / 4):
            beat += 1
            text = dataclasses.replace(self._mine, beat=beat).text()
            with self._lock:
                for handle in self._held.values():
                    # one that was taken over is another file by now, or none
                    with contextlib.suppress(OSError):
                        os.pwrite(handle, text, 0)


def names(folder: Path) -> list[str]:
    """The claims in a folder; none if there is no folder."""
    try:
        return sorted(n for n in os.listdir(folder) if not n.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise store_error(f"{folder}: cannot be read", error) from error


def require_idle(store: Path, claims: Claims, *, wait: float = 0.5) -> None:
    """Raises ``RapStoreError`` if a worker has a claim on the store; ``claims`` are ours.
    Where only time can tell whether it lives, it is watched for its lease."""
    told = False
    while others := claims.others():
        stale = {name for name in others if claims.is_stale(name)}
        for name in stale:
            if claims.take_over(name):
                claims.release(name)
        left = {name: claim for name, claim in others.items() if name not in stale}
        for name, claim in left.items():
            if claim is not None and lives(claim.owner):
                what = f"shard {name}" if name.isdigit() else f"its {name}"
                raise RapStoreError(
                    f"{store}: workers are scoring into this store ({what}: {claim}); wait "
                    "for them, or use another folder"
                )
        if left and not told:
            told = True
            log.warning(
                "%s: %d claims of other machines: waiting for a sign of life, %g s at most",
                *(store, len(left), max(claims.lease, *(_lease(c) for c in left.values()))),
            )
        if left and not _changes(claims, left, wait):
            continue
        if left:
            name, claim = next(iter(left.items()))
            raise RapStoreError(
                f"{store}: workers of other machines are scoring into this store ({name}: "
                f"{claim}); wait for them, or use another folder"
            )


def _lease(claim: Claim | None) -> float:
    return 0.0 if claim is None else claim.lease


def _changes(claims: Claims, left: Mapping[str, Claim | None], wait: float) -> bool:
    """Whether one of these claims gives a sign of life within ``wait`` seconds."""
    time.sleep(wait)
    now = claims.others()
    return any(name in now and now[name] != claim for name, claim in left.items())
