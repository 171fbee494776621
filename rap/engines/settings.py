"""How an engine is reached: which one, where, how many requests at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from ..errors import RapConfigError
from ..settings import Ge, Gt, Le, Number, Predicate, setting, settings

EngineName = Literal["transformers", "vllm", "openai"]
NAMES: tuple[str, ...] = get_args(EngineName)
LOCAL = "transformers"
"""The engine that needs no request: it takes prompts as the model does."""
SAMPLES = ("rollouts", "logits", "cascade")
"""Evidence that samples completions."""


def _urls(value: object) -> tuple[str, ...]:
    """One URL or several, each in its normal form."""
    urls = (value,) if isinstance(value, str) else value
    if not isinstance(urls, (tuple, list)) or not all(isinstance(u, str) for u in urls):
        raise RapConfigError(f"base_url = {value!r}: expected a URL or several")
    found = tuple(_normal_url(url) for url in urls)
    if len(set(found)) < len(found):
        raise RapConfigError(f"base_url = {list(found)!r}: expected each server once")
    return found


@settings
class EngineConfig:
    """What samples the completions of evidence ``rollouts``, and the greedy one of
    ``logits``."""

    engine: EngineName = setting(
        "What samples completions: the model that scores (transformers), vLLM in this "
        "process (vllm), or a server that speaks OpenAI's API (openai): vLLM, SGLang, "
        "transformers serve, llama.cpp.",
        default="transformers",
    )
    base_url: Annotated[tuple[str, ...], BeforeValidator(_urls)] = setting(
        "Engine openai: where the server is, e.g. http://node7:8000/v1; several that serve "
        "the same model share the work. A key is taken from RAP_API_KEY or OPENAI_API_KEY.",
        default=(),
        expected="a URL or several",
    )
    served_model: Annotated[str, Predicate(lambda name: name != "")] | None = setting(
        "Engine openai: the model's name on the server.",
        default=None,
        none="the only one that it serves",
        expected="None or a name",
    )
    concurrency: Annotated[int, Ge(1), Le(4096)] = setting(
        "Requests in flight, at most, over all servers.", default=32
    )
    timeout: Annotated[Number, Gt(0)] = setting(
        "Seconds that one request to a server may take.",
        default=600.0,
        expected="seconds > 0",
    )
    patience: Annotated[Number, Gt(0)] = setting(
        "Seconds without an answer from any server until the run is given up; what was "
        "scored stays in the store.",
        default=900.0,
        expected="seconds > 0",
    )
    seeded: bool = setting(
        "Send a seed with every request, so that a server that honours seeds repeats its "
        "completions; vLLM samples faster without.",
        default=True,
    )
    vllm_options: Mapping[str, Any] = setting(
        "Engine vllm: arguments of vllm.LLM, e.g. tensor_parallel_size.",
        default_factory=dict,
        expected="a dict of vllm.LLM's arguments",
    )

    def __post_init__(self) -> None:
        """Nothing that the chosen engine would ignore."""
        if self.engine == "openai" and not self.base_url:
            raise RapConfigError(
                "base_url: engine 'openai' needs the address of a server, e.g. "
                "http://127.0.0.1:8000/v1"
            )
        theirs = {"base_url": "openai", "served_model": "openai", "vllm_options": "vllm"}
        for name, engine in theirs.items():
            if getattr(self, name) and self.engine != engine:
                raise RapConfigError(
                    f"{name} = {getattr(self, name)!r}: engine {self.engine!r} takes none, "
                    f"it is for engine {engine!r}"
                )


class EngineOptions(TypedDict, total=False):
    """`EngineConfig`'s fields as keyword arguments, for type checkers (a test holds the
    two together)."""

    engine: EngineName
    base_url: str | Sequence[str]
    served_model: str | None
    concurrency: int
    timeout: float
    patience: float
    seeded: bool
    vllm_options: Mapping[str, Any]


def require_engine(engine: EngineConfig, evidence: str, has_model: bool) -> None:
    """Raises ``RapConfigError`` where the engine has nothing to do, or the evidence needs
    a local model that is not there."""
    if engine.engine != LOCAL and evidence not in SAMPLES:
        raise RapConfigError(
            f"engine = {engine.engine!r}: evidence {evidence!r} samples no completion, so "
            f"it would never be asked; evidence {', '.join(SAMPLES)} do"
        )
    if has_model:
        return
    if engine.engine != "openai":
        raise RapConfigError(
            f"model = None: engine {engine.engine!r} needs a loaded Hugging Face model or "
            "its path; without one there is engine 'openai' with evidence 'rollouts'"
        )
    if evidence != "rollouts":
        raise RapConfigError(
            f"model = None: evidence {evidence!r} needs forwards of a local model with the "
            "weights that are served; without one there is evidence 'rollouts'"
        )


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
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        raise RapConfigError(
            f"base_url = {url!r}: expected http://HOST:PORT/v1 or https://..."
        )
    if parts.query or parts.fragment:
        raise RapConfigError(f"base_url = {url!r}: expected an address without '?' and '#'")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"
