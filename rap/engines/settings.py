"""How an engine is reached: which one, where, how many requests at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..config import is_number, plain
from ..errors import RapConfigError

NAMES = ("transformers", "vllm", "openai")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What samples the completions of evidence ``rollouts``. Raises ``RapConfigError``."""

    engine: str = "transformers"
    """``"transformers"`` (the model that scores), ``"vllm"`` (in this process) or
    ``"openai"`` (any server that speaks OpenAI's API)."""
    base_url: tuple[str, ...] = ()
    """Where the servers are, e.g. ``http://node7:8000/v1``; one or several that serve the
    same model. Engine ``openai`` only."""
    served_model: str | None = None
    """The model's name on the server; None if it serves only one."""
    concurrency: int = 32
    """HTTP requests in flight, at most, over all servers."""
    timeout: float = 600.0
    """Seconds one request may take."""
    patience: float = 900.0
    """Seconds of waiting without an answer from any server until the run is given up (what
    was scored stays in the store)."""
    seeded: bool = True
    """Send a seed with every request, so that a run can be repeated on servers that honour
    seeds. vLLM samples faster without: it then need not sample row by row."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``vllm.LLM``, e.g. ``tensor_parallel_size``. Engine ``vllm`` only."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, plain(getattr(self, f.name)))
        _require(self.engine in NAMES, "engine", self.engine, f"one of {NAMES}")
        urls = (self.base_url,) if isinstance(self.base_url, str) else self.base_url
        known = isinstance(urls, (tuple, list)) and all(isinstance(u, str) for u in urls)
        _require(known, "base_url", urls, "a URL or several")
        object.__setattr__(self, "base_url", tuple(_normal_url(url) for url in urls))
        repeated = len(set(self.base_url)) < len(self.base_url)
        _require(not repeated, "base_url", list(self.base_url), "each server once")
        served = self.served_model
        named = served is None or (isinstance(served, str) and served)
        _require(bool(named), "served_model", served, "None or a name")
        whole = isinstance(self.concurrency, int) and not isinstance(self.concurrency, bool)
        in_range = whole and 1 <= self.concurrency <= 4096
        _require(in_range, "concurrency", self.concurrency, "an integer in [1, 4096]")
        for name in ("timeout", "patience"):
            value = getattr(self, name)
            _require(is_number(value) and value > 0, name, value, "seconds > 0")
        _require(isinstance(self.seeded, bool), "seeded", self.seeded, "True or False")
        mapping = isinstance(self.options, Mapping)
        _require(mapping, "options", self.options, "a dict of vllm.LLM's arguments")
        self._require_its_own()

    def _require_its_own(self) -> None:
        """Nothing that the chosen engine would ignore."""
        if self.engine == "openai" and not self.base_url:
            raise RapConfigError(
                "base_url: engine 'openai' needs the address of a server, e.g. "
                "http://127.0.0.1:8000/v1"
            )
        theirs = {"base_url": "openai", "served_model": "openai", "options": "vllm"}
        for name, engine in theirs.items():
            if getattr(self, name) and self.engine != engine:
                raise RapConfigError(
                    f"{name} = {getattr(self, name)!r}: engine {self.engine!r} takes none, "
                    f"it is for engine {engine!r}"
                )


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RapConfigError(f"{name} = {value!r}: expected {expected}")


def _normal_url(url: str) -> str:
    """``http://node:8000`` -> ``http://node:8000/v1``; no slash at the end."""
    parts = urlsplit(url.strip())
    try:
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        port_is_one = False
    if parts.username is not None or parts.password is not None:
        # not repeated in the message: it would be printed
        raise RapConfigError(
            "base_url: a user name or password does not belong in it; a key is taken from "
            "RAP_API_KEY or OPENAI_API_KEY"
        )
    usable = parts.scheme in ("http", "https") and parts.hostname and port_is_one
    _require(bool(usable), "base_url", url, "http://HOST:PORT/v1 or https://...")
    bare = not parts.query and not parts.fragment
    _require(bare, "base_url", url, "an address without '?' and '#'")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"
