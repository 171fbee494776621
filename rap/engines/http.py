"""One HTTP exchange with a server, and what its failure means.

httpx2 carries it: the official ``openai`` client is built on it, and so is huggingface_hub,
so it is there wherever transformers is. The ``openai`` client itself would hide what is
needed here: it follows redirects with the key, retries by its own rules on one address, and
sleeps where no test can reach it.

What a failure means decides what happens next (``rap.engines.openai``):

    Refused      the sample's doing: 400, 413, 422                       -> quarantine
    Busy         the server has too much to do: 408, 409, 425, 429, 502, 503, 504
    Lost         no answer: refused or broken connection, half an answer, time-out
    Broken       500, or an answer that is none                          -> ask again
    RapError     a wrong set-up: key, address, certificate, redirect     -> the run ends
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import RapConfigError, RapModelError, first_line, install
from .wire import MalformedAnswer, error_message, parse

if TYPE_CHECKING:
    import httpx2

KEY_NAMES = ("RAP_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first one wins."""

MAX_ANSWER_BYTES = 256 << 20
CONNECT_SECONDS = 10.0

_BUSY = (408, 409, 425, 429, 502, 503, 504)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Trouble(Exception):
    """An exchange failed for a reason that may pass; the text is a sentence."""


class Busy(Trouble):
    """``retry_after``: seconds the server asks for, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StillBusy(RapModelError):
    """A server was asked a few times, and was `Busy` each time."""


class Lost(Trouble):
    """No whole answer came. ``timed_out``: the server may still be at work on it."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Broken(Trouble):
    """An answer came, and it is an error of the server's own or not usable."""


class Refused(Exception):
    """The server does not take this request; the text is its reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, text and the header that says when to come back."""

    status: int
    text: str
    retry_after: float | None = None


def make_client(urls: Sequence[str], concurrency: int, timeout: float) -> Any:
    """An ``httpx2.AsyncClient`` that keeps connections open and follows no redirect.

    Raises ``RapConfigError`` if httpx2 is missing.
    """
    try:
        import httpx2
    except ImportError:
        raise RapConfigError(
            f"engine = 'openai' needs httpx2: {install('engines')}"
        ) from None
    local = all(is_loopback(url) for url in urls)
    most = concurrency + 8
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
        headers={"Accept-Encoding": "gzip, deflate"},
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        follow_redirects=False,
        trust_env=not local,  # a proxy of the environment is not asked for 127.0.0.1
    )


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def authorization(url: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The header with the key of the environment; {} if there is none.

    OPENAI_API_KEY, which many have set for another purpose, is sent over https and to this
    machine only; RAP_API_KEY to every ``base_url``.

    Raises ``RapConfigError`` for a key that cannot stand in a header, without printing it.
    """
    environment = os.environ if environment is None else environment
    safe = url.startswith("https://") or is_loopback(url)
    for name in KEY_NAMES:
        key = environment.get(name, "").strip()
        if not key or (name == "OPENAI_API_KEY" and not safe):
            continue
        if not key.isascii() or not key.isprintable():
            raise RapConfigError(f"{name}: holds characters that a header cannot carry")
        return {"Authorization": f"Bearer {key}"}
    return {}


async def exchange(
    client: httpx2.AsyncClient, method: str, url: str, json: Any = None
) -> Reply:
    """One request, the whole answer read, in the client's time for it. Raises `Lost`, or
    ``RapConfigError`` where trying again cannot help (certificate, protocol)."""
    import httpx2

    headers = authorization(url)
    try:
        async with (
            asyncio.timeout(_whole(client.timeout)),
            client.stream(method, url, json=json, headers=headers) as response,
        ):
            _require_plain(url, response.headers)
            parts, size = [], 0
            async for part in response.aiter_bytes():
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise RapModelError(f"{origin(url)}: an answer of over {size} bytes")
                parts.append(part)
            text = b"".join(parts).decode("utf-8", "replace")
            if response.is_redirect:
                text = response.headers.get("location", "")
            if not response.is_success:
                text = _without_key(text, headers)
            return Reply(response.status_code, text, _retry_after(response.headers))
    except httpx2.TimeoutException as error:
        connecting = isinstance(error, (httpx2.ConnectTimeout, httpx2.PoolTimeout))
        what = "no connection" if connecting else "no answer"
        raise Lost(f"{what} in time", timed_out=not connecting) from None
    except TimeoutError:
        raise Lost("no answer in time", timed_out=True) from None
    except httpx2.UnsupportedProtocol as error:
        raise RapConfigError(f"{origin(url)}: {first_line(error)}") from None
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        _refuse_certificate(url, error)
        raise Lost(_said(error)) from None


def _whole(timeout: httpx2.Timeout) -> float | None:
    """Seconds for all of an exchange: httpx2's begin anew with every byte that comes."""
    if timeout.read is None:
        return None
    return timeout.read + (timeout.connect or 0.0)


_UNPACKED = ("", "identity", "gzip", "deflate")
"""Encodings whose pieces unpack to 1,032 times their size at most; others have no limit,
and would fill the memory before `MAX_ANSWER_BYTES` is looked at."""


def _require_plain(url: str, headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in _UNPACKED:
        raise RapModelError(
            f"{origin(url)}: answers in encoding {encoding[:40]!r}, which was not asked for"
        )


def _without_key(text: str, headers: Mapping[str, str]) -> str:
    """An error text that does not repeat the key back at us, and so into a log."""
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(key, "***") if key else text


def _said(error: Exception) -> str:
    text = first_line(error)
    name = type(error).__name__
    return f"connection lost ({name})" if text == name else f"connection lost ({text})"


def _refuse_certificate(url: str, error: BaseException) -> None:
    cause: BaseException | None = error
    for _ in range(10):
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise RapConfigError(
                f"{origin(url)}: its certificate cannot be verified "
                f"({cause.verify_message}). Set SSL_CERT_FILE to the authority that signed "
                "it, or use http on a network that you trust"
            ) from None
        if isinstance(cause, ssl.SSLError):
            raise RapConfigError(
                f"{origin(url)}: no TLS connection ({first_line(cause)}). Does it speak "
                "http instead of https?"
            ) from None
        if cause is None:
            return
        cause = cause.__cause__ or cause.__context__


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; a date there is not used."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86_400 else None


def read(reply: Reply, url: str) -> dict[str, Any]:
    """The JSON object of a good answer. Raises what the status means, see above."""
    where = origin(url)
    status = reply.status
    if 200 <= status < 300:
        try:
            return parse(reply.text)
        except MalformedAnswer as bad:
            raise Broken(str(bad)) from None
    if 300 <= status < 400:
        raise RapConfigError(
            f"{where}: redirects to {reply.text[:200]!r}, which is not followed. If that "
            "is your server, give it as base_url"
        )
    said = error_message(reply.text)
    if status in (401, 403):
        raise RapConfigError(
            f"{where}: refuses access ({status}: {said}). The key is taken from "
            f"{' or '.join(KEY_NAMES)}; OPENAI_API_KEY is sent over https only"
        )
    if status in (404, 405):
        raise RapConfigError(f"{where}: {url} is not there ({status}: {said})")
    if status in _BUSY:
        raise Busy(f"{status}: {said}", reply.retry_after)
    if status >= 500:
        raise Broken(f"{status}: {said}")
    raise Refused(status, said)


def origin(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
