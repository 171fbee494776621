"""Engine ``openai``: any server that speaks OpenAI's chat API.

vLLM, SGLang, ``transformers serve``, llama.cpp, or several of one kind. What they do
differently is found by ``rap.engines.probe`` and made up for here:

    n ignored, or fewer choices than asked   the rest with n = 1, each its own seed
    one seed for all choices                 n = 1, each its own seed
    no seeds                                 completions that cannot be repeated; seed = -1
    no token ids                             Completion.token_ids is None
    a server dies                            its requests go to another, or wait for it

A request is repeated until it has an answer, a sample is given up only where it is the
sample's doing: refused by the server (400), or failing again and again while others pass.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import Sampling
from ..errors import RapConfigError, RapError, RapModelError
from ..samples.sample import BadSample
from . import probe, wire
from .contract import Completion, Generated, LocalPrompts, Request
from .http import Broken, Busy, Lost, Refused, Trouble, make_client
from .loop import LoopThread
from .servers import PROBE_TRIES, SEVERAL_TRIES, Server, Servers, Sleep, given_up
from .settings import EngineConfig

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

MAX_STRIKES = 3
"""A sample is given up after so many errors of its own."""
MAX_LOSSES = 8
"""The run is given up when one request was lost, or timed out, so often."""


@dataclass(slots=True)
class _Tries:
    """What one request has been through."""

    count: int = 0
    strikes: int = 0
    losses: int = 0
    waited: float = 0.0
    answers: int = 0


class OpenAIEngine:
    """See above. ``sleep`` stands in for ``asyncio.sleep`` in tests."""

    exact = False

    def __init__(
        self,
        config: EngineConfig,
        driver: ModelDriver | None,
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._config = config
        self.window = 2 * config.concurrency
        self._driver = driver
        self._local = None if driver is None else LocalPrompts.of(driver)
        self._sleep = sleep
        self._thread = LoopThread()
        self._servers: Servers | None = None
        self._gate: asyncio.Semaphore | None = None

    # -- set up

    def check(self, sampling: Sampling) -> str:
        """Probe every server; one line. Raises ``RapConfigError``, ``RapModelError``."""
        if sampling.repetition_penalty != 1:
            raise RapConfigError(
                f"sampling.repetition_penalty = {sampling.repetition_penalty}: servers "
                "count the prompt's tokens as repeated, engine 'transformers' does not; "
                "leave it at 1 with engine 'openai'"
            )
        return self._thread.run(self._check(sampling))

    async def _check(self, sampling: Sampling) -> str:
        config = self._config
        client = make_client(config.base_url, config.concurrency, config.timeout)
        self._servers = Servers(client, config.base_url, config.patience, self._sleep)
        self._gate = asyncio.Semaphore(config.concurrency)
        for server in self._servers.all:
            await self._probe(server, sampling)
        first, *others = self._servers.all
        for other in others:
            _require_alike(first, other)
        assert first.identity is not None and first.abilities is not None
        line = probe.describe(first.url, first.identity, first.abilities)
        return line + (f"; and {len(others)} more like it" if others else "")

    async def _probe(self, server: Server, sampling: Sampling) -> None:
        servers, local = self._servers, self._local
        assert servers is not None

        async def get(path: str) -> Any:
            return await servers.patiently(
                server, lambda: servers.get(server, path), f"GET {path}"
            )

        async def post(body: dict[str, Any]) -> Any:
            most = PROBE_TRIES if body.get("n", 1) == 1 else SEVERAL_TRIES
            return await servers.patiently(
                server, lambda: servers.post(server, body), "a chat request", most
            )

        url, served = server.url, self._config.served_model
        try:
            identity, context, listed = await probe.identify(get, url, served)
            able = await probe.probe(post, identity, context, listed, sampling, local)
            if local is not None and self._driver is not None:
                requests = await asyncio.to_thread(
                    probe.probe_requests, self._driver, context
                )
                able = await probe.compare(
                    post, identity, able, requests, local, self._driver
                )
        except wire.MalformedAnswer as bad:
            raise RapModelError(f"{url}: {bad}") from None
        server.identity, server.abilities = identity, able

    @property
    def token_ids(self) -> bool:
        """Of the first server; the others are like it."""
        abilities = self._checked().abilities
        return abilities is not None and abilities.token_ids

    def provenance(self) -> dict[str, object]:
        """Engine, server, version, model; raises ``RapConfigError`` before ``check``."""
        identity = self._checked().identity
        assert identity is not None
        return {"engine": "openai", **identity.provenance()}

    def _checked(self) -> Server:
        if self._servers is None or self._servers.all[0].abilities is None:
            raise RapConfigError("the engine was not checked: call check() first")
        return self._servers.all[0]

    def close(self) -> None:
        """Close connections and the thread; the engine cannot be used again."""
        if self._servers is not None:
            client, self._servers = self._servers.client, None
            self._thread.run(client.aclose())
        self._thread.close()

    # -- many requests

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Generated]]:
        """As they complete, at most `window` requests at a time.

        Raises ``RapError`` where no server can go on; what is complete comes first.
        """
        self._checked()
        done: queue.SimpleQueue[Future[Generated]] = queue.SimpleQueue()
        pending: dict[Future[Generated], Request] = {}
        try:
            for request in requests:
                future = self._thread.submit(self._answer(request))
                pending[future] = request
                future.add_done_callback(done.put)
                while len(pending) >= self.window:
                    yield from _next(done, pending)
            while pending:
                yield from _next(done, pending)
        finally:
            for future in pending:
                future.cancel()

    # -- one request

    async def _answer(self, request: Request) -> Generated:
        found: dict[int, Completion] = {}
        bad = None
        try:
            self._require_room(request)
            await self._fill(request, found)
        except BadSample as error:
            bad = error
        return Generated(tuple(found[i] for i in sorted(found)), bad)

    def _require_room(self, request: Request) -> None:
        """A prompt known to be too long is not sent."""
        abilities = self._checked().abilities
        assert abilities is not None
        limit, ids = abilities.context, request.prompt_ids
        longest = request.sampling.max_new_tokens
        if limit is not None and ids is not None and len(ids) + longest > limit:
            raise BadSample(
                "prompt",
                "prompt_too_long",
                f"{len(ids)} tokens and {longest} new ones; the server's context: {limit}",
            )

    async def _fill(self, request: Request, found: dict[int, Completion]) -> None:
        """One completion a seed: all with one request where the server can, then whatever
        is missing one by one."""
        abilities = self._checked().abilities
        assert abilities is not None
        # without n, completions differ by their seeds only: there they are always sent
        wanted = self._config.seeded or not abilities.n
        seeded = wanted and not request.greedy and abilities.seeds != "ignored"
        count = len(request.seeds)
        together = count > 1 and abilities.n and (abilities.seeds == "each" or not seeded)
        seeds: list[int | None] = [None] * count
        if seeded:
            named = wire.wire_seeds(request.seeds)
            # choice i of a request with several is sampled with seed + i
            seeds = [named[0] + i for i in range(count)] if together else list(named)
        most = min((count, *self._limits())) if together else 0
        for start in range(0, count, most) if most else ():
            part = seeds[start : start + most]
            found.update(enumerate(await self._ask(request, part), start))
        missing = [i for i in range(count) if i not in found]

        async def one(i: int) -> None:
            (found[i],) = await self._ask(request, [seeds[i]])

        await _all(one(i) for i in missing)

    def _limits(self) -> Iterator[int]:
        """Choices a request that servers with short queues take."""
        assert self._servers is not None
        for server in self._servers.all:
            if server.abilities is not None and server.abilities.most is not None:
                yield server.abilities.most

    async def _ask(self, request: Request, seeds: list[int | None]) -> list[Completion]:
        """At least one completion, at most one a seed. Asks until there is an answer."""
        servers, gate = self._servers, self._gate
        assert servers is not None and gate is not None
        tries = _Tries(answers=servers.answers)
        labels = [-1 if seed is None else seed for seed in seeds]
        while True:
            async with gate:
                server = await servers.pick()
                before = server.answered
                try:
                    answer = await servers.post(server, self._body(server, request, seeds))
                    got = wire.completions(answer, labels, self._local)
                    if not got:
                        raise wire.MalformedAnswer("its answer holds no choice")
                    self._require_same_prompt(request, answer)
                    await servers.notice_restart(server, answer)
                    servers.took(server)
                    return got
                except Refused as refused:
                    raise _bad_sample(refused) from None
                except wire.MalformedAnswer as malformed:
                    trouble: Trouble = Broken(str(malformed))
                except Trouble as error:
                    trouble = error
            await self._after(trouble, server, before, tries, request)

    def _body(
        self, server: Server, request: Request, seeds: list[int | None]
    ) -> dict[str, Any]:
        assert server.identity is not None and server.abilities is not None
        return wire.body(
            request,
            server.identity.model,
            n=len(seeds),
            seed=seeds[0],
            local=self._local,
            refused=server.abilities.refused,
        )

    def _require_same_prompt(self, request: Request, answer: dict[str, Any]) -> None:
        if self._local is None or request.prompt_ids is None:
            return
        difference = wire.prompt_difference(answer, request.prompt_ids, self._local)
        if difference is not None:
            raise RapModelError(probe.prompt_error(request, difference))

    # -- when it does not work

    async def _after(
        self,
        trouble: Trouble,
        server: Server,
        before: int,
        tries: _Tries,
        request: Request,
    ) -> None:
        """Wait, mark the server down or give up the sample or the run, by what happened."""
        servers = self._servers
        assert servers is not None
        tries.count += 1
        if servers.answers != tries.answers:
            tries.answers, tries.waited = servers.answers, 0.0
        wait = servers.delay(tries.count - 1)
        if isinstance(trouble, Lost):
            self._lost(trouble, tries, request)
            if trouble.timed_out:
                tries.waited += self._config.timeout
            else:
                servers.mark_down(server, trouble)
        elif isinstance(trouble, Busy):
            wait = max(wait, trouble.retry_after or 0.0)
        elif not await servers.healthy(server):
            servers.mark_down(server, trouble)
        elif server.answered > before or await self._canary(server):
            tries.strikes += 1
            if tries.strikes >= MAX_STRIKES:
                raise BadSample(
                    "model",
                    "engine_error",
                    f"{MAX_STRIKES} times, while it answered others: {trouble}",
                )
        tries.waited += wait
        if tries.waited > self._config.patience:
            raise RapModelError(given_up(self._config.patience, f"{server.url}: {trouble}"))
        await servers.sleep(wait)

    def _lost(self, trouble: Lost, tries: _Tries, request: Request) -> None:
        tries.losses += 1
        if tries.losses < MAX_LOSSES:
            return
        hint = (
            f"; raise timeout (now {self._config.timeout:g} s) or lower concurrency"
            if trouble.timed_out
            else ": does this sample bring the server down? Its log will tell"
        )
        raise RapModelError(
            f"the request for {request.name} had no answer {tries.losses} times "
            f"({trouble}){hint}"
        )

    async def _canary(self, server: Server) -> bool:
        """Whether the server can answer a request that nothing is wrong with."""
        assert self._servers is not None and server.identity is not None
        body = {
            "model": server.identity.model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
        }
        try:
            answer = await self._servers.post(server, body)
        except (Trouble, Refused):
            return False
        return bool(answer.get("choices"))


def _next(
    done: queue.SimpleQueue[Future[Generated]], pending: dict[Future[Generated], Request]
) -> Iterator[tuple[Request, Generated]]:
    """The next request that is complete; at an error all that are, and then the error."""
    future = done.get()
    request = pending.pop(future)
    try:
        generated = future.result()
    except RapError:
        for other in [f for f in pending if f.done() and not f.cancelled()]:
            if other.exception() is None:
                yield pending.pop(other), other.result()
        raise
    yield request, generated


async def _all(tasks: Iterable[Any]) -> None:
    """Every one to its end, then the first error: what others got is kept."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _bad_sample(refused: Refused) -> BadSample:
    """The quarantine of a sample that the server does not take."""
    said = str(refused)
    low = said.lower()
    message = f"the server refuses it ({refused.status}: {said})"
    if any(word in low for word in ("context length", "max_model_len", "too long")):
        return BadSample("prompt", "prompt_too_long", message)
    if "image" in low or "multimodal" in low:
        return BadSample("image", "image_unreadable", message)
    return BadSample("prompt", "engine_refused", message)


def _require_alike(one: Server, other: Server) -> None:
    """Servers that share the work have to serve the same."""
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("model", one.identity, other.identity),
        ("abilities", one.abilities, other.abilities),
    )
    for what, a, b in pairs:
        for name in type(a).__slots__:
            mine, theirs = getattr(a, name), getattr(b, name)
            if name not in ("distinct", "distance", "most") and mine != theirs:
                raise RapConfigError(
                    f"base_url: {one.url} and {other.url} differ in {what}, {name}: "
                    f"{mine!r} and {theirs!r}"
                )
