"""Engine ``openai`` against a fake server on loopback: quirks, failures, restarts."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from engines.fake_server import (
    IMAGE_TOKENS,
    QUIRKS,
    FakeServer,
    Quirks,
    local_prompts,
    prompt_tokens,
    unsigned,
)

from rap.config import Sampling
from rap.engines import EngineConfig, Request, probe, wire
from rap.engines.contract import ImagePart
from rap.engines.openai import MAX_LOSSES, MAX_STRIKES, OpenAIEngine
from rap.errors import RapConfigError, RapModelError

pytest.importorskip("httpx2", reason="engine openai is an extra")

SAMPLING = Sampling(max_new_tokens=12)
PATIENT = {"concurrency": 4, "patience": 1e9}
"""For restarts: the clock of these tests runs ahead of the server's."""
PNG = ImagePart(b"\x89PNG not decoded here", "image/png")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("RAP_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Clock:
    """Stands in for ``asyncio.sleep``: notes what is asked for, and hardly waits."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.001)


@contextmanager
def engine(*servers: FakeServer, check: bool = True, local: bool = True, **settings):
    """(engine, clock) on these servers, closed at the end."""
    urls = tuple(server.url for server in servers)
    config = EngineConfig(engine="openai", **{"base_url": urls} | settings)
    clock = Clock()
    made = OpenAIEngine(config, None, sleep=clock)
    made._local = local_prompts() if local else None
    try:
        if check:
            made.check(SAMPLING)
            for server in servers:
                server.bodies.clear()
                server.answered.clear()
            clock.slept.clear()
        yield made, clock
    finally:
        made.close()


def requests(n: int, m: int = 3, image: bool = False) -> list[Request]:
    found = []
    for i in range(n):
        content = (*([PNG] if image else []), f"what is {i} ?")
        parts = [{"type": "image_url"}] if image else []
        ids = tuple(prompt_tokens([*parts, content[-1]]))
        seeds = tuple(range(100 * i, 100 * i + m))
        found.append(Request(f"s{i}", "image", content, seeds, SAMPLING, prompt_ids=ids))
    return found


def texts(results) -> dict[str, list[str]]:
    return {r.sample_id: [c.text for c in g.completions] for r, g in results}


def calm(n: int, m: int = 3) -> dict[str, list[str]]:
    """What a server that nothing happens to answers."""
    with FakeServer() as server, engine(server) as (made, _):
        return texts(made.generate(requests(n, m)))


def sample_of(body) -> int:
    """The number in the question of a request."""
    text = body["messages"][0]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    digits = [word for word in text.split() if word.isdigit()]
    return int(digits[0]) if digits else -1


# ---------------------------------------------------------------- short queues


def queue_of(length: int):
    """A server that says 503 to a request of more choices than its queue is long."""

    def special(server, number, body):
        if body.get("n", 1) > length:
            return 503, {}, '{"error": "the queue is full"}'
        return None

    return special


@pytest.mark.parametrize("length, most", [(8, None), (7, 4), (3, 2), (2, 2)])
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_short_queue_is_asked_for_fewer_choices_at_a_time(length, most, kind):
    quirks = replace(QUIRKS[kind])
    with FakeServer(quirks, queue_of(length)) as server, engine(server) as (made, _):
        abilities = made._servers.all[0].abilities
        assert (abilities.n, abilities.most) == (True, most)
        got = dict(made.generate(requests(3, 5)))
        line = probe.describe(server.url, made._servers.all[0].identity, abilities)
    assert (f"at most {most} choices" in line) == (most is not None)
    together = kind == "vllm"  # SGLang gives all choices of a request one seed
    assert max(b.get("n", 1) for b in server.answered) >= (
        min(5, most or 5) if together else 1
    )
    for request, generated in got.items():
        assert generated.bad is None and len(generated.completions) == 5
        assert [c.seed for c in generated.completions] == list(request.seeds)
    with FakeServer(quirks) as server, engine(server) as (made, _):
        assert texts(got.items()) == texts(made.generate(requests(3, 5)))


def test_a_queue_of_one_is_asked_for_one():
    with FakeServer(special=queue_of(1)) as server, engine(server) as (made, _):
        abilities = made._servers.all[0].abilities
        assert (abilities.n, abilities.seeds, abilities.distinct) == (False, "single", 8)
        got = texts(made.generate(requests(3)))
    assert got == calm(3) and {b.get("n", 1) for b in server.answered} == {1}


def test_servers_with_other_queues_share_the_work():
    with FakeServer() as long, FakeServer(special=queue_of(3)) as short:
        with engine(long, short) as (made, _):
            got = texts(made.generate(requests(12, 5)))
    assert got == calm(12, 5) and long.answered and short.answered


# ---------------------------------------------------------------- quirks


@pytest.mark.parametrize("name", QUIRKS)
def test_every_kind_of_server_gives_as_many_completions_as_asked(name):
    with FakeServer(replace(QUIRKS[name])) as server:
        with engine(server, served_model="demo") as (made, _):
            got = dict(made.generate(requests(12, 4)))
    assert len(got) == 12
    for generated in got.values():
        assert generated.bad is None and len(generated.completions) == 4
        seeds = [c.seed for c in generated.completions]
        assert seeds == [-1] * 4 or len(set(seeds)) == 4
        assert len({c.text for c in generated.completions}) > 1
    for body in server.bodies:
        refused = server.quirks.refused
        assert all(f in body for f in wire.SAMPLING_FIELDS if f not in refused)
        assert not set(refused) & body.keys()


def test_a_seed_that_is_recorded_repeats_its_completion():
    for name in ("vllm", "sglang", "llama.cpp"):
        with FakeServer(replace(QUIRKS[name])) as server, engine(server) as (made, _):
            (((request, generated),)) = made.generate(requests(1, 4))
            for completion in generated.completions:
                alone = replace(request, seeds=(completion.seed,))
                ((_, again),) = made.generate([alone])
                assert again.completions == (completion,)


def test_one_request_brings_all_completions_where_the_server_can():
    counts = {}
    for name in QUIRKS:
        with FakeServer(replace(QUIRKS[name])) as server:
            with engine(server, served_model="demo") as (made, _):
                list(made.generate(requests(5, 4)))
        counts[name] = len(server.bodies)
    one_by_one = 5 * 4
    assert counts == {
        "vllm": 5,
        "sglang": one_by_one,
        "sglang without determinism": 5,
        "transformers serve": one_by_one,
        "llama.cpp": one_by_one,
    }


def test_without_seeds_a_server_is_asked_for_none():
    with FakeServer() as server, engine(server, seeded=False) as (made, _):
        got = dict(made.generate(requests(3)))
    assert all("seed" not in body for body in server.bodies)
    assert {c.seed for g in got.values() for c in g.completions} == {-1}


def test_the_probe_says_what_it_found_in_one_line():
    with FakeServer() as server, engine(server, check=False) as (made, _):
        line = made.check(SAMPLING)
    assert "\n" not in line
    for part in ("vllm 0.32.0", server.url, "demo (org/demo)", "1024 tokens of context"):
        assert part in line
    assert "has n, token ids, logprobs, prompt logprobs; seeds each" in line
    with FakeServer(replace(QUIRKS["transformers serve"])) as server:
        with engine(server, check=False, served_model="demo") as (made, _):
            line = made.check(SAMPLING)
    assert "lacks n, token ids, logprobs, prompt logprobs" in line
    assert "takes no top_k, min_p, repetition_penalty" in line


def test_the_provenance_names_server_version_and_weights():
    found = []
    for quirks in (Quirks(), Quirks(version="0.33.0"), Quirks(root="org/other")):
        with FakeServer(quirks) as server, engine(server) as (made, _):
            found.append(made.provenance())
    assert found[0] == {
        "engine": "openai",
        "kind": "vllm",
        "version": "0.32.0",
        "model": "demo",
        "root": "org/demo",
        "parent": None,
        "weights_sha256": None,
    }
    assert found[0] != found[1] and found[0] != found[2]


def test_weights_in_a_folder_that_is_shared_are_hashed(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 70_000)
    hashes = []
    for change in (b"", b"b"):
        (tmp_path / "more.safetensors").write_bytes(b"c" + change)
        with FakeServer(Quirks(root=str(tmp_path))) as server, engine(server) as (made, _):
            hashes.append(made.provenance()["weights_sha256"])
    assert None not in hashes and hashes[0] != hashes[1]


# ---------------------------------------------------------------- refused by the probe


def refused(server: FakeServer, error: type[Exception], match: str, **settings) -> str:
    with engine(server, check=False, **settings) as (made, _):
        with pytest.raises(error, match=match) as found:
            made.check(SAMPLING)
    return str(found.value)


def test_a_server_that_samples_greedily_is_refused():
    for quirks in (Quirks(), QUIRKS["sglang"], QUIRKS["transformers serve"]):
        with FakeServer(replace(quirks, greedy=True)) as server:
            said = refused(server, RapModelError, "all equal", served_model="demo")
    assert "generation_config" in said


def test_a_model_that_is_sure_of_its_words_is_no_greedy_server():
    def sure(answer):
        for choice in answer["choices"]:
            for entry in choice["logprobs"]["content"]:
                entry["logprob"] = -1e-4
        return answer

    with FakeServer(Quirks(greedy=True), special=lambda *_: sure) as server:
        with engine(server) as (made, _):
            assert len(dict(made.generate(requests(2)))) == 2


def test_a_wrong_model_is_named_with_what_is_served():
    with FakeServer(Quirks(others=("more",))) as server:
        said = refused(server, RapConfigError, "'gpt'", served_model="gpt")
        assert "demo, more" in said
        said = refused(server, RapConfigError, "served_model")
        assert "demo, more" in said
    with FakeServer(replace(QUIRKS["transformers serve"])) as server:
        server.special = lambda *_: (400, {}, '{"detail": "Server is pinned to demo"}')
        refused(server, RapConfigError, "pinned", served_model="gpt")


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with engine(check=False, base_url=url) as (made, clock):
        with pytest.raises(RapModelError, match="no answer to GET /v1/models"):
            made.check(SAMPLING)
    assert len(clock.slept) == 5  # it may be about to start


def test_a_wrong_path_is_named():
    with FakeServer() as server:
        url = server.url.replace("/v1", "/v2")
        said = "/v2/chat/completions is not there"
        refused(server, RapConfigError, said, base_url=url, served_model="demo")


@pytest.mark.parametrize("text", ["<html><body>Welcome</body></html>", "[]", "nothing"])
def test_a_server_that_is_another_one(text):
    with FakeServer() as server:
        server.special = lambda *_: (200, {"Content-Type": "text/html"}, text)
        refused(server, RapConfigError, "OpenAI-compatible")


def test_a_web_page_for_a_model_list():
    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), _Pages)) as url:
        with engine(check=False, base_url=url) as (made, _):
            with pytest.raises(RapConfigError, match="HTML"):
                made.check(SAMPLING)


@contextmanager
def _serving(http) -> Iterator[str]:
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Pages(BaseHTTPRequestHandler):
    """Every page is the same."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!doctype html><html>Hello</html>")

    def log_message(self, *args: object) -> None:
        """Silence."""


def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("RAP_API_KEY", "k-123")
    with FakeServer() as other, FakeServer() as server:
        elsewhere = f"{other.url}/chat/completions"
        server.special = lambda *_: (307, {"Location": elsewhere}, "")
        said = refused(server, RapConfigError, "redirects")
    assert elsewhere in said
    assert not other.bodies and not other.gets


def test_a_key_is_sent_and_a_missing_one_is_asked_for(monkeypatch):
    with FakeServer(Quirks(key="k-123")) as server:
        refused(server, RapConfigError, "401.*RAP_API_KEY or OPENAI_API_KEY")
        monkeypatch.setenv("RAP_API_KEY", "wrong-key")
        said = refused(server, RapConfigError, "401")
        assert "wrong-key" not in said  # this server repeats it
        monkeypatch.setenv("RAP_API_KEY", "k-123")
        with engine(server) as (made, _):
            assert len(dict(made.generate(requests(2)))) == 2
            assert "k-123" not in str(made.provenance())
    assert set(server.keys[-2:]) == {"Bearer k-123"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return unsigned(tmp_path_factory.mktemp("tls"))


def test_a_certificate_that_cannot_be_verified(certificate):
    with FakeServer(context=certificate) as server:
        said = refused(server, RapConfigError, "certificate cannot be verified")
    assert "SSL_CERT_FILE" in said and server.gets == []


def test_https_where_http_is_spoken():
    with FakeServer() as server:
        url = server.url.replace("http:", "https:")
        refused(server, RapConfigError, "no TLS connection", base_url=url)


def test_a_sampling_that_the_server_cannot_do_is_refused():
    quirks = replace(QUIRKS["transformers serve"])
    quirks.refused = [*quirks.refused, "generation_config"]
    with FakeServer(quirks) as server:
        with engine(server, check=False, served_model="demo") as (made, _):
            with pytest.raises(RapConfigError, match="does not take top_k"):
                made.check(Sampling(top_k=5))
    with FakeServer() as server, engine(server, check=False) as (made, _):
        with pytest.raises(RapConfigError, match="repetition_penalty"):
            made.check(Sampling(repetition_penalty=1.1))
        assert not server.gets


@pytest.mark.parametrize("field", ["logit_bias", "seed", "n", "max_tokens", "logprobs"])
def test_a_field_that_is_refused_without_a_name_is_found(field):
    """Some servers only say that a request is bad."""

    def strict(server, number, body):
        return (400, {}, '{"error": "bad request"}') if field in body else None

    with FakeServer(special=strict) as server, engine(server) as (made, _):
        got = dict(made.generate(requests(2)))
    assert all(len(g.completions) == 3 and g.bad is None for g in got.values())


def test_a_server_that_refuses_everything_says_why():
    with FakeServer(special=lambda *_: (400, {}, '{"error": "no luck"}')) as server:
        refused(server, RapConfigError, "no luck.*it lists demo")


def test_text_of_another_tokenizer_is_refused():
    def shout(answer):
        for choice in answer["choices"]:
            choice["message"]["content"] += " (indeed)"
        return answer

    with FakeServer(special=lambda *_: shout) as server:
        refused(server, RapModelError, "another tokenizer")


# ---------------------------------------------------------------- one bad sample


def good_and_bad(made, n=12, bad=5):
    got = dict(made.generate(requests(n)))
    lost = {r.sample_id: g.bad for r, g in got.items() if g.bad is not None}
    assert len(got) == n and list(lost) == [f"s{bad}"]
    others = [g for r, g in got.items() if r.sample_id != f"s{bad}"]
    assert all(len(g.completions) == 3 for g in others)
    return lost[f"s{bad}"]


def only(number: int, what):
    """A special answer for one sample."""
    return lambda server, _, body: what if sample_of(body) == number else None


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (400, "Failed to load image: cannot identify image file", "image_unreadable"),
        (400, "maximum context length is 1024 tokens", "prompt_too_long"),
        (413, "body too large", "engine_refused"),
        (422, "something else", "engine_refused"),
    ],
)
def test_a_sample_that_the_server_refuses_is_quarantined(status, said, code):
    special = only(5, (status, {}, f'{{"error": {{"message": "{said}"}}}}'))
    with FakeServer() as server, engine(server) as (made, clock):
        server.special = special
        bad = good_and_bad(made)
    assert bad.code == code and said in bad.message
    assert sum(sample_of(body) == 5 for body in server.bodies) == 1 and not clock.slept


def test_a_prompt_that_is_known_to_be_too_long_is_not_sent():
    with FakeServer(Quirks(context=40)) as server, engine(server) as (made, _):
        long = Request("long", "image", ("x",), (1,), SAMPLING, prompt_ids=(5,) * 29)
        ((_, generated),) = made.generate([long])
        assert generated.bad.code == "prompt_too_long" and not server.bodies
        fits = replace(long, prompt_ids=tuple(prompt_tokens("x")))
        ((_, generated),) = made.generate([fits])
        assert generated.bad is None


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_error_that_only_one_sample_has_quarantines_it(concurrency):
    with FakeServer() as server, engine(server, concurrency=concurrency) as (made, clock):
        server.special = only(5, (500, {}, '{"error": "CUDA error in sample"}'))
        bad = good_and_bad(made)
    assert (bad.stage, bad.code) == ("model", "engine_error")
    assert "CUDA error in sample" in bad.message
    assert sum(sample_of(body) == 5 for body in server.bodies) == MAX_STRIKES
    assert len(clock.slept) == MAX_STRIKES - 1


def test_a_canary_tells_a_bad_sample_from_a_bad_server():
    """With one request in flight no other sample can show that the server works."""
    with FakeServer() as server, engine(server, concurrency=1) as (made, _):
        server.special = only(0, (500, {}, "{}"))
        ((_, generated),) = made.generate(requests(1))
        assert generated.bad.code == "engine_error"
        assert sum(body["max_tokens"] == 1 for body in server.bodies) == MAX_STRIKES


@pytest.mark.parametrize(
    "wrong",
    [
        {"choices": []},
        {"nothing": 1},
        {"choices": [{"index": 0, "finish_reason": "abort", "message": {}}]},
    ],
)
def test_answers_that_are_none_quarantine_only_their_sample(wrong):
    with FakeServer() as server, engine(server) as (made, _):
        server.special = only(5, lambda answer: wrong)
        bad = good_and_bad(made)
    assert bad.code == "engine_error"


def test_a_text_that_is_not_its_tokens_quarantines_the_sample():
    def other(answer):
        answer["choices"][0]["message"]["content"] = "something else"
        return answer

    with FakeServer() as server, engine(server) as (made, _):
        server.special = only(5, other)
        bad = good_and_bad(made)
    assert "something else" in bad.message


def test_nan_log_probabilities_reach_the_caller():
    def broken(answer):
        answer["choices"][1]["logprobs"]["content"][2]["logprob"] = float("nan")
        return answer

    with FakeServer() as server, engine(server) as (made, _):
        server.special = only(5, broken)
        got = {r.sample_id: g for r, g in made.generate(requests(8))}
    failed = [[c.failed_step for c in g.completions] for g in got.values() if g.completions]
    assert got["s5"].completions[1].failed_step == 2
    assert sum(step is not None for steps in failed for step in steps) == 1


def test_fewer_choices_than_asked_are_topped_up():
    def fewer(server, number, body):
        return (lambda a: a | {"choices": a["choices"][:2]}) if body["n"] > 1 else None

    with FakeServer() as server, engine(server) as (made, _):
        server.special = fewer
        got = texts(made.generate(requests(6, 5)))
    assert got == calm(6, 5)  # the others come with the seeds they would have had
    assert len(server.bodies) == 6 * (1 + 3)


def test_a_prompt_that_the_server_sees_differently_ends_the_run():
    with FakeServer() as server, engine(server) as (made, _):
        server.quirks = replace(server.quirks, extra_prompt_tokens=2)
        with pytest.raises(RapModelError, match="tokens there.*template or tokenizer"):
            list(made.generate(requests(2)))
        server.quirks = Quirks(image_tokens=IMAGE_TOKENS + 3)
        with pytest.raises(RapModelError, match="image tokens.*pixel limits"):
            list(made.generate(requests(2, image=True)))


# ---------------------------------------------------------------- a server in trouble


@pytest.mark.parametrize("status", [408, 409, 425, 429, 502, 503, 504])
def test_a_busy_server_is_asked_again_and_nothing_is_quarantined(status):
    tries: dict[int, int] = {}

    def busy(server, number, body):
        seen = tries[sample_of(body)] = tries.get(sample_of(body), 0) + 1
        if seen > 6:  # more often than any sample may fail
            return None
        return status, {"Retry-After": "7"}, "busy"

    with FakeServer() as server, engine(server) as (made, clock):
        server.special = busy
        assert texts(made.generate(requests(8))) == calm(8)
    assert len(clock.slept) == 6 * 8 and min(clock.slept) >= 7
    assert len(server.answered) == 8


def test_back_off_doubles_up_to_its_limit():
    with FakeServer() as server, engine(server) as (made, _):
        delays = [made._servers.delay(tries) for tries in range(12)]
    for tries, delay in enumerate(delays):
        longest = min(30.0, 0.5 * 2**tries)
        assert longest / 2 <= delay <= longest


@pytest.mark.parametrize("trouble", ["drop", "half"])
def test_an_answer_that_was_lost_is_asked_for_again(trouble):
    first: set[int] = set()

    def once(server, number, body):
        new = sample_of(body) not in first
        first.add(sample_of(body))
        return trouble if new and sample_of(body) % 3 == 0 else None

    with FakeServer() as server, engine(server) as (made, _):
        server.special = once
        assert texts(made.generate(requests(20))) == calm(20)
    assert sorted(sample_of(b) for b in server.answered) == list(range(20))


def test_a_sample_that_always_breaks_the_connection_ends_the_run_and_is_named():
    with FakeServer() as server, engine(server) as (made, _):
        server.special = only(3, "drop")
        with pytest.raises(RapModelError, match=f"'s3'.*{MAX_LOSSES} times"):
            list(made.generate(requests(8)))


def test_a_server_that_is_too_slow_is_named_with_the_setting():
    release = threading.Event()

    def slow(server, number, body):
        release.wait(900)

    with FakeServer() as server, engine(server, timeout=0.2) as (made, _):
        server.special = slow
        try:
            with pytest.raises(RapModelError, match="raise timeout"):
                list(made.generate(requests(1)))
        finally:
            release.set()


def test_what_is_complete_comes_before_the_error():
    waiting = threading.Event()

    def special(server, number, body):
        if sample_of(body) != 7:
            return None
        waiting.wait(900)
        return 404, {}, '{"error": "gone"}'

    with FakeServer() as server, engine(server) as (made, _):
        server.special = special
        got = []
        with pytest.raises(RapConfigError, match="gone"):
            for request, _ in made.generate(requests(8)):
                got.append(request.sample_id)
                if len(got) == 7:
                    waiting.set()
    assert sorted(got) == [f"s{i}" for i in range(7)]


# ---------------------------------------------------------------- killed, restarted


def test_a_server_that_is_killed_and_restarted_loses_nothing():
    n = 60
    with FakeServer() as server, engine(server, **PATIENT) as (made, _):
        seen = []
        for request, generated in made.generate(requests(n)):
            seen.append((request, generated))
            if len(seen) in (10, 25):
                server.stop()
                threading.Timer(0.05, server.start).start()
        again = texts(seen)
    assert len(seen) == n and again == calm(n)
    assert all(g.bad is None for _, g in seen)


def test_a_dead_engine_behind_a_live_port_is_waited_for():
    """vLLM answers 500 to all that is in flight when its engine dies, /health 503."""
    dead = threading.Event()

    def special(server, number, body):
        return (500, {}, '{"error": "EngineDeadError"}') if dead.is_set() else None

    with FakeServer() as server, engine(server, **PATIENT) as (made, _):
        server.special = special
        results = made.generate(requests(20))
        got = [next(results)]
        dead.set()
        server.quirks = replace(server.quirks, health=False)
        made._servers.sleep = _revive_after(12, server, dead)
        got += results
    assert texts(got) == calm(20) and all(g.bad is None for _, g in got)


def _revive_after(sleeps: int, server: FakeServer, dead: threading.Event):
    counter = itertools.count()

    async def sleep(seconds: float) -> None:
        if next(counter) == sleeps:
            dead.clear()
            server.quirks = replace(server.quirks, health=True)
        await asyncio.sleep(0.001)

    return sleep


def test_a_server_that_never_comes_back_ends_the_run_after_patience():
    with FakeServer() as server, engine(server, patience=100.0) as (made, clock):
        server.stop()
        with pytest.raises(RapModelError, match="no server has answered for 100 s"):
            list(made.generate(requests(5)))
    assert 100 < sum(clock.slept) < 2000


def test_a_server_that_comes_back_with_another_model_ends_the_run():
    with FakeServer() as server, engine(server, **PATIENT) as (made, _):
        results = made.generate(requests(20))
        next(results)
        server.stop()
        server.quirks = Quirks(root="org/other")
        threading.Timer(0.1, server.start).start()
        with pytest.raises(RapModelError, match="another server.*org/other"):
            list(results)


def test_a_restart_between_two_requests_is_noticed():
    with FakeServer() as server, engine(server) as (made, _):
        list(made.generate(requests(2)))
        server.stop()
        server.start()
        assert texts(made.generate(requests(3))) == calm(3)
        server.stop()
        server.quirks = Quirks(version="0.99.0")
        server.start()
        with pytest.raises(RapModelError, match="another server.*0.99.0"):
            list(made.generate(requests(2)))


def test_two_servers_share_the_work_and_one_may_die():
    with FakeServer() as one, FakeServer() as two:
        with engine(one, two, concurrency=4) as (made, _):
            results = made.generate(requests(60))
            got = list(itertools.islice(results, 20))
            assert one.answered and two.answered
            one.stop()
            got += results
    assert texts(got) == calm(60) and len(got) == 60


def test_two_servers_have_to_be_alike():
    with FakeServer() as one, FakeServer(Quirks(version="0.33.0")) as two:
        with engine(one, two, check=False) as (made, _):
            with pytest.raises(RapConfigError, match="differ in model, version"):
                made.check(SAMPLING)
    with FakeServer() as one, FakeServer(Quirks(logprobs=False)) as two:
        with engine(one, two, check=False) as (made, _):
            with pytest.raises(RapConfigError, match="differ in abilities, logprobs"):
                made.check(SAMPLING)


# ---------------------------------------------------------------- many requests


def test_connections_are_kept_and_bounded():
    with FakeServer() as server, engine(server, concurrency=3) as (made, _):
        before = server.connections
        list(made.generate(requests(60)))
        assert server.connections - before <= 3


def test_no_more_is_prepared_than_is_in_flight():
    asked = []

    def prepare():
        for request in requests(50):
            asked.append(request)
            yield request

    with FakeServer() as server, engine(server, concurrency=2) as (made, _):
        for done, _ in enumerate(made.generate(prepare()), start=1):
            assert len(asked) <= done + 2 * 2 - 1 + 1


def test_a_run_that_was_stopped_goes_on_a_request_at_a_time():
    everything = requests(30)
    with FakeServer() as server, engine(server, concurrency=2) as (made, _):
        first = list(itertools.islice(made.generate(everything), 11))
        done = {request.sample_id for request, _ in first}
        rest = [r for r in everything if r.sample_id not in done]
        again = list(made.generate(rest))
    assert len(done) == 11
    assert texts(first) | texts(again) == calm(30)


def test_the_order_of_requests_does_not_matter():
    shuffled = requests(20)
    random.Random(1).shuffle(shuffled)
    with FakeServer() as server, engine(server) as (made, _):
        assert texts(made.generate(shuffled)) == calm(20)


def test_the_very_bytes_are_sent():
    with FakeServer() as server, engine(server) as (made, _):
        list(made.generate(requests(1, image=True)))
    (part, text) = server.bodies[0]["messages"][0]["content"]
    assert part["image_url"]["url"] == PNG.uri()
    assert text == {"type": "text", "text": "what is 0 ?"}


def test_an_engine_is_checked_first():
    with FakeServer() as server, engine(server, check=False) as (made, _):
        with pytest.raises(RapConfigError, match="check"):
            list(made.generate(requests(1)))
        with pytest.raises(RapConfigError, match="check"):
            made.provenance()
