"""Engines that sample in this process: ``transformers`` byte for byte, and ``vllm``."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_models import build

from rap.config import Sampling, ScoreConfig
from rap.engines import EngineConfig, Request, image_part, make_engine, probe
from rap.engines.contract import LocalPrompts
from rap.engines.probe import Abilities, Identity
from rap.errors import RapConfigError, RapModelError
from rap.model import rollouts
from rap.model.driver import ModelDriver
from rap.model.halving import Failure, in_halves
from rap.samples.sample import Sample

SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def driver():
    model, processor = build("qwen2_5_vl")
    found = ModelDriver(model, processor, ScoreConfig())
    found.check()
    return found


def sample(i: int) -> Sample:
    return Sample(
        index=i,
        id=f"s{i}",
        question=f"How many dots, {i}?",
        answer="2",
        choices=(),
        images=(),
        source=None,
        extra={},
    )


def request(driver, i: int, m: int = 3, **more) -> Request:
    image = Image.new("RGB", (56, 56), (i * 20 % 255, 40, 60))
    prepared = driver.prepare(sample(i), [image])
    seeds = tuple(rollouts.row_seed(0, f"s{i}", "image", number) for number in range(m))
    return Request(
        sample_id=f"s{i}",
        arm="image",
        content=(image_part(image), sample(i).question),
        seeds=seeds,
        sampling=more.pop("sampling", SAMPLING),
        prompt_ids=tuple(prepared.inputs["input_ids"][0].tolist()),
        prepared=prepared,
        **more,
    )


# ---------------------------------------------------------------- transformers


def test_transformers_gives_what_generate_gives(driver):
    engine = make_engine(EngineConfig(), driver)
    assert engine.check(SAMPLING).startswith("engine transformers")
    asked = [request(driver, 0), request(driver, 1, 2), request(driver, 2, 0)]
    got = list(engine.generate(asked))
    rows = [(r.prepared, seed) for r in asked for seed in r.seeds]
    direct = rollouts.generate(
        driver, [p for p, _ in rows], [[s] for _, s in rows], SAMPLING
    )
    assert [r for r, _ in got] == asked
    assert [c for _, g in got for c in g.completions] == [c for (c,) in direct]
    assert all(g.bad is None for _, g in got)
    assert engine.exact and engine.provenance() == {"engine": "transformers"}
    engine.close()


def test_transformers_greedy(driver):
    engine = make_engine(EngineConfig(), driver)
    asked = request(driver, 0, 1, greedy=True)
    ((_, generated),) = engine.generate([asked])
    ((direct,),) = rollouts.generate(driver, [asked.prepared], [[0]], SAMPLING, greedy=True)
    assert generated.completions == (direct,)
    assert list(engine.generate([])) == []


def test_one_batch_has_one_sampling(driver):
    engine = make_engine(EngineConfig(), driver)
    other = request(driver, 1, sampling=Sampling(max_new_tokens=7))
    with pytest.raises(RapConfigError, match="one sampling"):
        list(engine.generate([request(driver, 0), other]))


def test_a_sample_that_spoils_its_batch_is_bad_alone(driver, monkeypatch):
    asked = [request(driver, i, 2) for i in range(3)]
    sizes, real = [], rollouts.generate

    def generate(driver, batch, *args, **more):
        sizes.append(len(batch))
        if any(p is asked[1].prepared for p in batch):
            raise torch.OutOfMemoryError("no room")
        return real(driver, batch, *args, **more)

    monkeypatch.setattr(rollouts, "generate", generate)
    got = [g for _, g in make_engine(EngineConfig(), driver).generate(asked)]
    assert [len(g.completions) for g in got] == [2, 0, 2]
    assert got[1].bad.code == "oom" and got[0].bad is None
    assert sizes[0] == 6 and 1 in sizes


def test_halving_passes_our_own_errors():
    def run(part):
        raise RapModelError("ours")

    with pytest.raises(RapModelError, match="ours"):
        in_halves(run, [1, 2])
    assert in_halves(lambda part: [x + 1 for x in part], [1, 2]) == [2, 3]

    def odd(part):
        if 3 in part:
            raise ValueError("three")
        return list(part)

    assert in_halves(odd, [1, 2, 3]) == [1, 2, Failure("model_error", "ValueError: three")]


@pytest.mark.parametrize("named", [True, False])
def test_a_device_that_fails_is_not_the_fault_of_a_sample(named: bool) -> None:
    """Nor halved; torch has a name for it from 2.8 on."""
    kind = RuntimeError
    if named:
        kind = type("AcceleratorError", (RuntimeError,), {})
    runs = []

    def run(part):
        runs.append(part)
        raise kind("CUDA error: an illegal memory access was encountered")

    with pytest.raises(kind, match="illegal"):
        in_halves(run, [1, 2])
    assert runs == [[1, 2]]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling", "model_error"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "oom"),
        ("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", "oom"),
    ],
)
def test_a_call_that_a_device_refuses_is_halved(said: str, code: str) -> None:
    """Only a device that failed ends the run."""

    def run(part):
        if 2 in part:
            raise RuntimeError(said)
        return part

    assert in_halves(run, [1, 2, 3])[::2] == [1, 3]
    assert in_halves(run, [2])[0].code == code


def test_fault_30_memory_that_a_cpu_has_not_is_called_so() -> None:
    said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: 106954752 bytes"

    def run(part):
        if 3 in part:
            raise RuntimeError(said)
        return list(part)

    assert in_halves(run, [1, 2, 3, 4]) == [1, 2, Failure("oom", said), 4]


# ---------------------------------------------------------------- against a local model


def local_answer(driver, asked: Request, ids: list[int], shift: float = 0.0):
    """What a server with the same weights answers, its log p moved by ``shift``."""
    (trace,) = driver.trace([driver.with_response(asked.prepared, ids)], attention=False)
    logp = torch.log_softmax(driver.head.logits(trace.hidden).double(), dim=-1)
    found = logp.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    message = {"content": LocalPrompts.of(driver).decode(ids)}
    entries = [{"logprob": min(0.0, x + shift)} for x in found]
    return {
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "length",
                "token_ids": ids,
                "logprobs": {"content": entries},
            }
        ],
        "prompt_token_ids": list(asked.prompt_ids),
    }


IDENTITY = Identity("vllm", "0.32.0", "demo", None, None, None)
ABLE = Abilities(None, frozenset(), True, "each", 8, True, True, True)


def compare(driver, change=None, shift: float = 0.0):
    import asyncio

    local = LocalPrompts.of(driver)
    with torch.inference_mode():
        asked = probe.probe_requests(driver, None)
    waiting = iter(asked)

    async def post(body):
        ids = [i for i in range(20, 40) if i not in (*local.end_ids, *local.image_ids)]
        with torch.inference_mode():
            answer = local_answer(driver, next(waiting), ids[:5], shift)
        return answer if change is None else change(answer)

    return asyncio.run(probe.compare(post, IDENTITY, ABLE, asked, local, driver))


def test_the_probe_asks_with_a_small_and_a_large_image_and_without(driver):
    small, large, none = probe.probe_requests(driver, None)
    assert len(none.prompt_ids) < len(small.prompt_ids) < len(large.prompt_ids)
    room = len(small.prompt_ids) + probe.COPIES
    assert [r.arm for r in probe.probe_requests(driver, room)] == [
        "image",
        "counterfactual",
    ]


def test_the_same_weights_are_recognised(driver):
    able = compare(driver)
    assert able.prompts == "tokens as here" and able.distance < 1e-6
    assert "log p within" in probe.describe("http://node/v1", IDENTITY, able)


def test_other_weights_are_refused(driver):
    with pytest.raises(RapModelError, match="not the local one.*2 nats"):
        compare(driver, shift=-2.0)


def test_other_prompts_are_refused(driver):
    def longer(answer):
        return answer | {"prompt_token_ids": [*answer["prompt_token_ids"], 5]}

    with pytest.raises(RapModelError, match="tokens there"):
        compare(driver, longer)


def test_a_server_that_only_counts_is_compared_by_length(driver):
    def counted(answer):
        ids = answer.pop("prompt_token_ids")
        return answer | {"usage": {"prompt_tokens": len(ids)}}

    assert compare(driver, counted).prompts == "lengths as here"


# ---------------------------------------------------------------- vllm


def test_vllm_that_is_missing_is_named(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    engine = make_engine(EngineConfig(engine="vllm"), driver)
    with pytest.raises(RapConfigError, match="needs vllm"):
        engine.check(SAMPLING)
    with pytest.raises(RapConfigError, match="needs one"):
        make_engine(EngineConfig(engine="vllm"), None)


class _LLM:
    """As much of ``vllm.LLM`` 0.32 as the engine uses; records what it is asked."""

    def __init__(self, model: str, **options):
        self.options = options
        config = types.SimpleNamespace(max_model_len=1024)
        self.llm_engine = types.SimpleNamespace(model_config=config)
        self.params: list = []
        self.prompts: dict[str, list[int]] = {}

    def chat(self, conversations, params, use_tqdm):
        assert not use_tqdm
        texts = [c[0]["content"][-1]["text"] for c in conversations]
        if any("refused" in text for text in texts):
            raise ValueError("Failed to load image")
        self.params += params
        return [self._output(t, p) for t, p in zip(texts, params, strict=True)]

    def _output(self, text, params):
        def one(index):
            ids = [30, 31 + index]
            step = [{i: types.SimpleNamespace(logprob=-0.25)} for i in ids]
            return types.SimpleNamespace(
                index=index, token_ids=ids, finish_reason="length", logprobs=step
            )

        outputs = [one(i) for i in reversed(range(params["n"]))]
        return types.SimpleNamespace(outputs=outputs, prompt_token_ids=self.prompts[text])


def test_vllm_in_process(driver, monkeypatch):
    module = types.SimpleNamespace(LLM=_LLM, SamplingParams=dict, __version__="0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(driver.model.config, "_name_or_path", "/models/tiny")
    config = EngineConfig(engine="vllm", concurrency=2, vllm_options={"max_num_seqs": 4})
    engine = make_engine(config, driver)
    assert "0.32.0 in this process, model /models/tiny" in engine.check(SAMPLING)
    asked = [request(driver, i, 3) for i in range(3)]
    asked[2] = replace(asked[2], content=(*asked[2].content[:-1], "refused"))
    engine._llm.prompts = {r.content[-1]: list(r.prompt_ids) for r in asked}
    got = [g for _, g in engine.generate(asked)]
    assert [len(g.completions) for g in got] == [3, 3, 0]
    assert got[2].bad.code == "engine_refused"
    first = got[0].completions
    assert [c.token_ids for c in first] == [(30, 31), (30, 32), (30, 33)]
    assert first[0].logp == -0.5 and first[1].seed == first[0].seed + 1
    params = engine._llm.params[0]
    assert params["temperature"] == 1 and params["top_k"] == -1 and params["n"] == 3
    assert params["logit_bias"] and params["stop_token_ids"]
    assert engine._llm.options == {"generation_config": "vllm", "max_num_seqs": 4}
    assert engine.provenance()["options"] == {"max_num_seqs": 4}
    engine._llm.prompts = {r.content[-1]: [1, 2] for r in asked}
    with pytest.raises(RapModelError, match="not the local processor's"):
        list(engine.generate(asked[:1]))
    engine.close()
