"""A small server that speaks OpenAI's chat API on loopback, with the quirks of real ones.

What it does by default was recorded from vLLM 0.32; `QUIRKS` are the others. Its "model"
says a few words that depend on prompt and seed only, and its tokenizer is a list of words:
`local_prompts` is what a client with the same tokenizer knows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rap.engines.contract import LocalPrompts

WORDS = (
    "red green blue grey white black left right above below one two three four five six "
    "seven eight nine ten square circle line dot the a is are of so"
).split()
END, IMAGE, FIRST = 1, 2, 10
IMAGE_TOKENS = 4


def decode(ids: Any) -> str:
    """Words of token ids; the end token is special and left out."""
    return " ".join(WORDS[i - FIRST] for i in ids if i >= FIRST)


def prompt_tokens(content: Any) -> list[int]:
    """A user's turn as tokens: 3 for the template, 4 an image, one a word."""
    ids = [5, 6]
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, dict) and part["type"] == "image_url":
            ids += [IMAGE] * IMAGE_TOKENS
        else:
            text = part if isinstance(part, str) else part["text"]
            ids += [_word_id(word) for word in text.split()]
    return [*ids, 7]


def _word_id(word: str) -> int:
    return 1000 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big")


def local_prompts() -> LocalPrompts:
    """What the client knows of this tokenizer."""
    return LocalPrompts(decode=decode, end_ids=(END,), image_ids=(IMAGE,))


@dataclass
class Quirks:
    """How a server differs from what a client would like."""

    owned_by: str = "vllm"
    version: str | None = "0.32.0"
    model: str = "demo"
    others: tuple[str, ...] = ()
    root: str | None = "org/demo"
    context: int | None = 1024
    n: bool = True
    seed: str = "each"
    """``each``, ``shared`` (all choices of a request are one) or ``ignored``."""
    greedy: bool = False
    """The model's own generation_config decides: top_k = 1."""
    refused: tuple[str, ...] = ()
    """Fields that answer 422, as transformers serve words it."""
    token_ids: str = "token_ids"
    """``token_ids``, ``logprobs`` (an id beside each, llama.cpp) or ``none``."""
    logprobs: bool = True
    prompt_logprobs: bool = True
    prompt_ids: str = "answer"
    """``answer`` (vLLM), ``choice`` (SGLang) or ``none``."""
    health: bool = True
    key: str | None = None
    reasoning: bool = False
    extra_prompt_tokens: int = 0
    """A chat template of its own."""
    image_tokens: int = IMAGE_TOKENS
    refuses_images: bool = False


QUIRKS = {
    "vllm": Quirks(),
    "sglang": Quirks(
        owned_by="sglang", version="0.5.23", seed="shared", prompt_ids="choice"
    ),
    "sglang without determinism": Quirks(
        owned_by="sglang", version="0.5.23", seed="ignored", prompt_ids="choice"
    ),
    "transformers serve": Quirks(
        owned_by="hub",
        version=None,
        root=None,
        context=None,
        n=False,
        refused=(
            "top_k min_p repetition_penalty stop_token_ids return_token_ids "
            "return_prompt_token_ids separate_reasoning skip_special_tokens prompt_logprobs"
        ).split(),
        token_ids="none",
        logprobs=False,
        prompt_logprobs=False,
        prompt_ids="none",
    ),
    "llama.cpp": Quirks(
        owned_by="llamacpp",
        version="b7000",
        root=None,
        n=False,
        token_ids="logprobs",
        prompt_logprobs=False,
        prompt_ids="none",
    ),
}

Special = Callable[["FakeServer", int, dict[str, Any]], Any]
"""(server, number of the chat request, body) -> None for the usual answer, or (status,
headers, text), ``"drop"`` (the connection is closed), ``"half"`` (half an answer), or a
function that changes the usual answer."""


@dataclass
class FakeServer:
    """``with FakeServer(...) as server: server.url``."""

    quirks: Quirks = field(default_factory=Quirks)
    special: Special | None = None
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Every chat request that came in whole."""
    answered: list[dict[str, Any]] = field(default_factory=list)
    """Those with a good answer."""
    gets: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    connections: int = 0
    context: Any = None
    """An ``ssl.SSLContext``: the server then speaks https."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._unseeded = random.Random(0)
        self._http: _Http | None = None

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        scheme = "http" if self.context is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """On the port it had before, if it ran before."""
        self._http = _Http(("127.0.0.1", self.port), _Handler)
        self._http.fake = self
        if self.context is not None:
            self._http.socket = self.context.wrap_socket(
                self._http.socket, server_side=True
            )
        self.port = self._http.server_address[1]
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        thread.daemon = True
        thread.start()

    def stop(self) -> None:
        """As kill -9 does: connections break, later ones are refused."""
        http, self._http = self._http, None
        if http is None:
            return
        http.shutdown()
        http.server_close()
        http.break_connections()

    # -- the model

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        quirks = self.quirks
        content = body["messages"][0]["content"]
        n = body.get("n", 1) if quirks.n else 1
        prompt = prompt_tokens(content)
        prompt[1:1] = [8] * quirks.extra_prompt_tokens
        if IMAGE in prompt:
            first = prompt.index(IMAGE)
            more = quirks.image_tokens - IMAGE_TOKENS
            prompt[first:first] = [IMAGE] * max(0, more)
        choices = [self._choice(body, content, i) for i in range(n)]
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": choices,
            "usage": {"prompt_tokens": len(prompt)},
        }
        if quirks.owned_by == "vllm":
            answer["system_fingerprint"] = f"vllm-{quirks.version}-0a1b"
        if quirks.prompt_ids == "answer":
            answer["prompt_token_ids"] = prompt
        elif quirks.prompt_ids == "choice":
            for choice in choices:
                choice["prompt_token_ids"] = prompt
        if "prompt_logprobs" in body and quirks.prompt_logprobs:
            answer["prompt_logprobs"] = [None] + [{"5": {"logprob": -1.0}}] * 3
        return answer

    def _choice(self, body: dict[str, Any], content: Any, i: int) -> dict[str, Any]:
        quirks, seed = self.quirks, body.get("seed")
        if quirks.greedy or body.get("temperature") == 0:
            name: Any = "greedy"
        elif seed is None or quirks.seed == "ignored":
            with self._lock:
                name = self._unseeded.random()
        else:
            name = seed + (i if quirks.seed == "each" else 0)
        rng = random.Random(f"{json.dumps(content)} {name}")
        ids = [FIRST + rng.randrange(len(WORDS)) for _ in range(rng.randrange(4, 12))]
        ids.append(END)
        cut = ids[: body.get("max_tokens", 16)]
        stopped = cut == ids
        text = decode(cut)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if quirks.reasoning:
            message |= {"content": text.split()[-1], "reasoning_content": "let me think"}
        choice = {
            "index": i,
            "message": message,
            "finish_reason": "stop" if stopped else "length",
        }
        if quirks.token_ids == "token_ids" and body.get("return_token_ids"):
            choice["token_ids"] = cut
        if quirks.logprobs and body.get("logprobs"):
            entries = [{"token": "?", "logprob": -1.5} for _ in cut]
            if quirks.token_ids == "logprobs":
                entries = [e | {"id": t} for e, t in zip(entries, cut, strict=True)]
            choice["logprobs"] = {"content": entries}
        return choice


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    fake: FakeServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self.fake.connections += 1
        super().process_request(request, client_address)

    def break_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def log_message(self, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        fake = self.server.fake
        quirks = fake.quirks
        fake.gets.append(self.path)
        if not self._allowed():
            return
        if self.path == "/v1/models":
            row = {"object": "model", "owned_by": quirks.owned_by}
            rows = [{"id": name} | row for name in (quirks.model, *quirks.others)]
            rows[0] |= {"root": quirks.root, "max_model_len": quirks.context}
            self._send(200, {"object": "list", "data": rows})
        elif self.path == "/health" and quirks.health:
            self._send(200, {})
        elif self.path == "/version" and quirks.owned_by in ("vllm", "sglang"):
            self._send(200, {"version": quirks.version})
        elif self.path == "/props" and quirks.owned_by == "llamacpp":
            self._send(200, {"build_info": quirks.version})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path != "/v1/chat/completions":
            self._send(404, {"detail": "Not Found"})
            return
        with fake._lock:
            fake.bodies.append(body)
            number = len(fake.bodies)
        special = fake.special(fake, number, body) if fake.special else None
        if special == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(special, tuple):
            self._send(special[0], special[2], special[1])
            return
        refusal = _refusal(fake.quirks, body)
        if refusal is not None:
            self._send(*refusal)
            return
        answer = fake.chat(body)
        if callable(special):
            answer = special(answer)
        if special == "half":
            self._send_half(json.dumps(answer))
            return
        with fake._lock:
            fake.answered.append(body)
        self._send(200, answer)

    def _allowed(self) -> bool:
        fake = self.server.fake
        given = self.headers.get("Authorization")
        fake.keys.append(given)
        if fake.quirks.key is None or given == f"Bearer {fake.quirks.key}":
            return True
        self._send(401, {"error": f"Unauthorized: {given}"})
        return False

    def _send(
        self, status: int, answer: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _send_half(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[: len(text) // 2].encode())
        self.close_connection = True


def _refusal(quirks: Quirks, body: dict[str, Any]) -> tuple[int, Any] | None:
    """What a real server answers to a body that it cannot use."""
    unknown = {name for name in quirks.refused if name in body}
    if unknown:
        return 422, {"detail": f"Unexpected fields in the request: {unknown}"}
    if body["model"] != quirks.model and quirks.owned_by in ("vllm", "sglang"):
        said = f"The model `{body['model']}` does not exist."
        return 404, {"error": {"message": said, "type": "NotFoundError"}}
    content = body["messages"][0]["content"]
    images = [] if isinstance(content, str) else [p for p in content if "image_url" in p]
    for part in images:
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        if quirks.refuses_images or not data.startswith((b"\x89PNG", b"\xff\xd8")):
            return 400, {"error": {"message": "Failed to load image: cannot identify it"}}
    count = len(prompt_tokens(content))
    if quirks.context is not None and count > quirks.context:
        said = (
            f"This model's maximum context length is {quirks.context} tokens. However, "
            f"your prompt contains at least {count} input tokens."
        )
        return 400, {"error": {"message": said}}
    return None


def unsigned(folder: Path) -> ssl.SSLContext:
    """A certificate that nobody has signed, made anew: no key lies in the repository."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
