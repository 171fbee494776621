"""What a trainer's own loader gets out of an export.

``python readers.py TRAINER FOLDER`` runs where that trainer is installed and prints one
JSON list on the last line, a dict a row: ``text`` (the prompt with <image> where the
trainer has a picture), ``answer``, ``images`` ([width, height, sha256 of the RGB pixels]),
and ``id`` and ``reason`` where the trainer keeps them (else null). Nothing of rap is
imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODEL = Path(__file__).parents[2] / "rap" / "demo" / "weights"


def picture(image: Any) -> list[Any]:
    pixels = image.convert("RGB")
    return [*pixels.size, hashlib.sha256(pixels.tobytes()).hexdigest()]


def text_of(content: list[dict[str, Any]]) -> str:
    return "".join("<image>" if p["type"] == "image" else p["text"] for p in content)


def verl(folder: Path) -> list[dict[str, Any]]:
    """RLHFDataset and its collate_fn; then the reward of the export, through verl's own
    loading of reward functions, judges a right and a wrong answer a row."""
    from omegaconf import OmegaConf
    from torch.utils.data import DataLoader
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    config = OmegaConf.create(
        {
            "image_key": "images",
            "cache_dir": tempfile.mkdtemp(),
            "filter_overlong_prompts": False,
        }
    )
    data = RLHFDataset(
        str(folder / "train.parquet"),
        tokenizer=None,
        config=config,
        processor=SimpleNamespace(image_processor=None),
    )
    reward = get_custom_reward_fn(
        OmegaConf.create(
            {
                "reward": {
                    "custom_reward_function": {
                        "path": str(folder / "rap_reward.py"),
                        "name": "compute_score",
                        "reward_kwargs": {"log": str(folder / "rewards.jsonl")},
                    }
                }
            }
        )
    )
    rows = []
    for batch in DataLoader(data, batch_size=4, shuffle=False, collate_fn=collate_fn):
        for i, messages in enumerate(batch["raw_prompt"]):
            (message,) = messages
            info, truth = batch["extra_info"][i], batch["reward_model"][i]["ground_truth"]
            for answer, least, most in ((truth, 1, 1), ("no such", 0, 0)):
                said = f"<think>so</think>\\boxed{{{answer}}}"
                score = reward(
                    data_source=batch["data_source"][i],
                    solution_str=said,
                    ground_truth=truth,
                    extra_info=info,
                )
                assert least <= score <= most, (said, truth, score)
            images = [p["image"] for p in message["content"] if p["type"] == "image"]
            assert batch["index"][i] == info["index"]
            rows.append(
                {
                    "id": batch["index"][i],
                    "reason": info["rap_reason"],
                    "text": text_of(message["content"]),
                    "answer": truth,
                    "images": [picture(image) for image in images],
                }
            )
    return rows


def openrlhf(folder: Path) -> list[dict[str, Any]]:
    """blending_datasets, PromptDataset with a real chat template, load_images."""
    from openrlhf.datasets import PromptDataset
    from openrlhf.datasets.utils import blending_datasets
    from openrlhf.utils.vlm_utils import load_images
    from transformers import AutoTokenizer

    args = SimpleNamespace(
        data=SimpleNamespace(
            input_key="prompt",
            label_key="answer",
            image_key="images",
            apply_chat_template=True,
        ),
        use_ms=False,
    )
    strategy = SimpleNamespace(args=args, print=print, is_rank_0=lambda: False)
    raw = blending_datasets(str(folder / "train.jsonl"), None, strategy)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = []
    for source, prompt, answer, images in PromptDataset(raw, tokenizer, strategy):
        assert source == "two_words"
        turn = prompt.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        text = turn.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
        loaded = [picture(image) for image in load_images(images)]
        row = {"id": None, "reason": None, "text": text}
        rows.append({**row, "answer": answer, "images": loaded})
    return rows


def ms_swift(folder: Path) -> list[dict[str, Any]]:
    """load_dataset as for GRPO (all columns kept), template inputs, load_image."""
    from swift.dataset import load_dataset
    from swift.template.template_inputs import StdTemplateInputs
    from swift.template.vision_utils import load_image

    data, _ = load_dataset(
        str(folder / "train.jsonl"), remove_unused_columns=False, load_from_cache_file=False
    )
    rows = []
    for row in data:
        inputs = StdTemplateInputs.from_dict(row)
        (message,) = inputs.messages
        images = [image["bytes"] or image["path"] for image in inputs.images]
        rows.append(
            {
                "id": inputs.extra_kwargs["rap_id"],
                "reason": inputs.extra_kwargs["rap_reason"],
                "text": message["content"],
                "answer": inputs.extra_kwargs["solution"],
                "images": [picture(load_image(image)) for image in images],
            }
        )
    return rows


def llamafactory(folder: Path) -> list[dict[str, Any]]:
    """dataset_info.json, the loader with its converter, and the base multimodal plugin."""
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.mm_plugin import BasePlugin
    from llamafactory.data.parser import get_dataset_list

    cache = tempfile.mkdtemp()
    (attributes,) = get_dataset_list(["rap"], str(folder))
    data = _load_single_dataset(
        attributes,
        SimpleNamespace(cache_dir=cache, hf_hub_token=None),
        SimpleNamespace(
            dataset_dir=str(folder),
            media_dir=str(folder),
            preprocessing_num_workers=None,
            streaming=False,
            max_samples=None,
            overwrite_cache=True,
        ),
        SimpleNamespace(local_process_index=0, dataloader_num_workers=0),
    )
    plugin = BasePlugin("<image>", None, None)
    rows = []
    for row in data:
        (message,) = row["_prompt"]
        assert message["content"].count("<image>") == len(row["_images"])
        loaded = plugin._regularize_images(
            row["_images"], image_max_pixels=10**6, image_min_pixels=1
        )
        answers = [m["content"] for m in row["_response"]]
        rows.append(
            {
                "id": None,
                "reason": None,
                "text": message["content"],
                "answer": answers[0] if len(answers) == 1 else answers,
                "images": [picture(image) for image in loaded["images"]],
            }
        )
    return rows


def parquet(folder: Path) -> list[dict[str, Any]]:
    """``datasets`` itself: the pictures are decoded, whatever its version."""
    import datasets

    data = datasets.load_dataset(
        "parquet",
        data_files=str(folder / "train.parquet"),
        split="train",
        cache_dir=tempfile.mkdtemp(),
    )
    rows = []
    for row in data:
        rows.append(
            {
                "id": row.get("id") or row.get("rap_id") or row["extra_info"]["index"],
                "reason": (row.get("extra_info") or row)["rap_reason"],
                "text": row.get("problem") or row["prompt"][0]["content"],
                "answer": None,
                "images": [picture(image) for image in row["images"]],
            }
        )
    return rows


def trl(folder: Path) -> list[dict[str, Any]]:
    """GRPOTrainer: a step of a small model; what reached the processor and the reward
    function is what is told."""
    import datasets
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    processor = AutoProcessor.from_pretrained(MODEL, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(MODEL)
    file = str(folder / "train.parquet")
    data = datasets.load_dataset(
        "parquet", data_files=file, split="train", cache_dir=tempfile.mkdtemp()
    )
    seen: dict[str, dict[str, Any]] = {}

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        for i, messages in enumerate(prompts):
            (message,) = messages
            content = message["content"]
            images = [part["image"] for part in content if part["type"] == "image"]
            seen[columns["id"][i]] = {
                "id": columns["id"][i],
                "reason": columns["rap_reason"][i],
                "text": text_of(content),
                "answer": columns["solution"][i],
                "images": [picture(image) for image in images],
            }
        return [float(k % 2) for k in range(len(completions))]

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=14,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        shuffle_dataset=False,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
    )
    GRPOTrainer(
        model=model,
        processing_class=processor,
        args=config,
        reward_funcs=reward,
        train_dataset=data,
    ).train()
    return list(seen.values())


READERS = {
    "verl": verl,
    "openrlhf": openrlhf,
    "ms-swift": ms_swift,
    "llamafactory": llamafactory,
    "datasets-3.6": parquet,
    "trl": trl,
}

if __name__ == "__main__":
    found = READERS[sys.argv[1]](Path(sys.argv[2]))
    print()
    print(json.dumps(found))
