"""Several servers of one model: load balancing, health checks, giving up.

A server that lost a connection is down until its ``/health`` answers again and it still
serves the same model; meanwhile the others take its share. One watcher per server polls
``/health``, instead of each of the waiting requests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RapConfigError, RapError, RapModelError
from . import probe
from .http import Broken, Busy, Lost, Refused, StillBusy, Trouble, exchange, origin, read
from .probe import Abilities, Identity

Sleep = Callable[[float], Awaitable[None]]

LONGEST_WAIT = 30.0
PROBE_TRIES = 6
SEVERAL_TRIES = 2
"""For several choices in one request: a queue that is shorter never takes them."""


@dataclass(slots=True)
class Server:
    """One base URL and how it is doing."""

    url: str
    identity: Identity | None = None
    abilities: Abilities | None = None
    in_flight: int = 0
    answered: int = 0
    down: bool = False
    fingerprints: set[str] = field(default_factory=set)
    """``system_fingerprint`` of its answers: another one may be another server."""

    @property
    def root(self) -> str:
        return origin(self.url)


class Servers:
    """All of them behind one client. Used from one event loop only."""

    def __init__(
        self, client: Any, urls: Sequence[str], patience: float, sleep: Sleep
    ) -> None:
        self.client = client
        self.all = [Server(url) for url in urls]
        self.patience = patience
        self.sleep = sleep
        self.answers = 0
        """Good answers so far, of all servers."""
        self._jitter = random.Random(0)
        self._changed = asyncio.Event()
        self._fatal: RapError | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    # -- one exchange

    async def post(self, server: Server, body: dict[str, Any]) -> dict[str, Any]:
        """A chat request; see ``rap.engines.http`` for what it raises."""
        url = f"{server.url}/chat/completions"
        server.in_flight += 1
        try:
            reply = await exchange(self.client, "POST", url, json=body)
        finally:
            server.in_flight -= 1
        return read(reply, url)

    async def get(self, server: Server, path: str) -> dict[str, Any] | None:
        """A JSON object below the server's root; None where there is none."""
        url = server.root + path
        try:
            reply = await exchange(self.client, "GET", url)
            # transformers serve answers 500 to /v1/models where there is no hub cache
            if reply.status in (404, 405, 500, 501):
                return None
            return read(reply, url)
        except Broken:
            if path.endswith("/models"):  # what every server has: the wrong address
                raise
            return None
        except Refused:
            return None

    def took(self, server: Server) -> None:
        """Take note of a good answer."""
        server.answered += 1
        self.answers += 1

    # -- waiting

    def delay(self, tries: int) -> float:
        """Seconds before the next try: doubling, with jitter, so that a hundred requests
        that failed together do not come back together."""
        longest = min(LONGEST_WAIT, 0.5 * 2.0 ** min(tries, 10))
        return longest * (0.5 + 0.5 * self._jitter.random())

    async def patiently(
        self,
        server: Server,
        ask: Callable[[], Awaitable[Any]],
        what: str,
        most: int = PROBE_TRIES,
    ) -> Any:
        """``ask()``, up to ``most`` times: for the probe, where nobody wants to wait for
        long.

        Raises ``RapModelError`` if the server never answers (`StillBusy` if it said it had
        too much to do), ``RapConfigError`` if what it answers is not this API.
        """
        last: Trouble | None = None
        for tries in range(most):
            try:
                return await ask()
            except Trouble as trouble:
                last = trouble
            asked = last.retry_after if isinstance(last, Busy) else None
            if tries + 1 < most:
                await self.sleep(max(self.delay(tries), asked or 0.0))
        if isinstance(last, Broken):
            raise RapConfigError(
                f"{server.url}: no usable answer to {what}: {last}. Is it the address of "
                "an OpenAI-compatible server (http://HOST:PORT/v1)?"
            )
        kind = StillBusy if isinstance(last, Busy) else RapModelError
        raise kind(f"{server.url}: no answer to {what}: {last}")

    # -- who is up

    async def pick(self) -> Server:
        """The server with the fewest requests in flight; waits while all are down.

        Raises ``RapError`` once that has lasted longer than patience allows.
        """
        while True:
            if self._fatal is not None:
                raise self._fatal
            up = [server for server in self.all if not server.down]
            if up:
                return min(up, key=lambda server: server.in_flight)
            self._changed.clear()
            await self._changed.wait()

    def mark_down(self, server: Server, why: Trouble) -> None:
        """Ask nothing of a server until it is back."""
        if server.down:
            return
        server.down = True
        watcher = asyncio.ensure_future(self._watch(server, why))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def healthy(self, server: Server) -> bool:
        """Whether ``/health`` answers well, or the model list where there is no health."""
        try:
            reply = await exchange(self.client, "GET", f"{server.root}/health")
            if reply.status in (404, 405, 501):
                reply = await exchange(self.client, "GET", f"{server.url}/models")
        except Trouble:
            return False
        return 200 <= reply.status < 300

    async def _watch(self, server: Server, why: Trouble) -> None:
        waited = 0.0
        try:
            for tries in range(1 << 30):
                seen = self.answers
                delay = self.delay(tries)
                await self.sleep(delay)
                if await self.healthy(server):
                    await self._require_same(server)
                    server.down = False
                    break
                # counts only while nobody answers
                waited = waited + delay if self.answers == seen else 0.0
                if waited > self.patience and all(s.down for s in self.all):
                    raise RapModelError(given_up(self.patience, f"{server.url}: {why}"))
        except RapError as error:
            self._fatal = error
        self._changed.set()

    async def notice_restart(self, server: Server, answer: dict[str, Any]) -> None:
        """Look again at who answers, where an answer's fingerprint is a new one.

        A server may be restarted between two requests without one of them noticing.
        """
        found = answer.get("system_fingerprint")
        if not isinstance(found, str) or found in server.fingerprints:
            return
        first = not server.fingerprints
        server.fingerprints.add(found)
        if not first:
            await self._require_same(server)

    async def _require_same(self, server: Server) -> None:
        """A server that was restarted may serve something else."""
        assert server.identity is not None
        try:
            found, _, _ = await probe.identify(
                lambda path: self.get(server, path), server.url, server.identity.model
            )
        except (Lost, Busy):
            return  # not up yet after all: the next request will tell
        if found != server.identity:
            raise RapModelError(
                f"{server.url} came back as another server: {found} instead of "
                f"{server.identity}"
            )


def given_up(patience: float, why: str) -> str:
    """The sentence that ends a run for want of a server."""
    return (
        f"no server has answered for {patience:g} s ({why}). What was scored is kept: the "
        "same command goes on once a server is back"
    )
