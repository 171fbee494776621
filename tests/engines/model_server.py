"""The fake server with a real model behind it: the demo's, with its own processor.

Prompts, token ids and log-probabilities are then what a client with the same weights has
itself, so that a run of ``rap.score`` can be held against the local engine.
"""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from engines.fake_server import FakeServer
from PIL import Image

from rap.config import Sampling, ScoreConfig
from rap.demo.model import load_demo_model
from rap.model.driver import ModelDriver
from rap.model.rollouts import generate
from rap.samples.prompts import IMAGE
from rap.samples.sample import Sample


@cache
def served() -> ModelDriver:
    """A copy of the demo's model of the server's own: a client hooks into its model."""
    return ModelDriver(*load_demo_model(), ScoreConfig())


_LOCK = threading.Lock()


@dataclass
class ModelServer(FakeServer):
    """Quirks that are about words play no role; ``extra_prompt_tokens`` does."""

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        with _LOCK, torch.inference_mode():
            return self._chat(body)

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        driver = served()
        prepared = self._prompt(driver, body["messages"])
        greedy = body.get("temperature") == 0
        sampling = Sampling(
            temperature=body.get("temperature") or 1.0,
            top_p=body.get("top_p", 1.0),
            top_k=max(0, body.get("top_k", 0)),
            min_p=body.get("min_p", 0.0),
            max_new_tokens=body.get("max_tokens", 16),
        )
        seed = body.get("seed")
        if seed is None:
            seed = self._unseeded.randrange(1 << 30)
        seeds = [seed + i for i in range(body.get("n", 1))]
        (group,) = generate(driver, [prepared], [seeds], sampling, greedy=greedy)
        ids = prepared.inputs["input_ids"][0].tolist()
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [
                self._one(driver, prepared, completion, i)
                for i, completion in enumerate(group)
            ],
            "usage": {"prompt_tokens": len(ids)},
            "system_fingerprint": "vllm-0.32.0-0a1b",
            "prompt_token_ids": ids + [ids[-1]] * self.quirks.extra_prompt_tokens,
        }

    def _prompt(self, driver: ModelDriver, messages: list[dict[str, Any]]) -> Any:
        images, turns = [], []
        for message in messages:
            parts = message["content"]
            if isinstance(parts, str):
                parts = [{"type": "text", "text": parts}]
            for part in parts:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                    images.append(Image.open(io.BytesIO(data)).convert("RGB"))
            text = "".join(IMAGE if "image_url" in p else p["text"] for p in parts)
            turns.append((message["role"], text))
        sample = Sample(
            index=0,
            id="served",
            question=turns.pop()[1],
            answer="",
            choices=(),
            images=(),
            source=None,
            extra={},
            turns=tuple(turns),
        )
        return driver.prepare(sample, images)

    def _one(self, driver: ModelDriver, prepared: Any, completion: Any, i: int) -> Any:
        ids = list(completion.token_ids)
        logps: list[float] = []
        if ids:
            asked = driver.with_response(prepared, ids)
            (trace,) = driver.trace([asked], attention=False)
            logits = torch.log_softmax(driver.head.logits(trace.hidden).double(), dim=-1)
            logps = logits.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        if completion.finish_reason == "stop":
            ids.append(driver.tokenizer.eos_token_id)
            logps.append(-0.1)
        return {
            "index": i,
            "message": {"role": "assistant", "content": completion.text},
            "finish_reason": completion.finish_reason,
            "token_ids": ids,
            "logprobs": {"content": [{"logprob": min(0.0, x)} for x in logps]},
        }
