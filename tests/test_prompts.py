"""The prompt that is trained is the prompt that is scored: turns and places of images."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_models import build

from rap.config import ScoreConfig
from rap.errors import RapConfigError, RapInputError
from rap.model.driver import ModelDriver
from rap.samples.prompts import IMAGE, chat, messages_of, place_images, read_turns
from rap.samples.sample import BadSample, Sample, sample_sha256
from rap.samples.sampleset import open_samples
from rap.selection import Scores, choose
from rap.trl import prepare

SYSTEM = {"role": "system", "content": "Answer with one word."}


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 40, 90)).save(out, "PNG")
    return out.getvalue()


def row(question: object, images: int = 2, **more: object) -> dict[str, object]:
    shown = [{"bytes": png(20 * k), "path": None} for k in range(images)]
    return {"id": "a", "question": question, "answer": "left", "images": shown, **more}


def only(*rows: dict[str, object], **options: object) -> Sample:
    sample = open_samples(list(rows), **options)[0]
    assert isinstance(sample, Sample), sample
    return sample


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "images", "question"),
    [
        ("<image>Which?", 1, "Which?"),
        ("<image>\n<image> Which?", 2, "Which?"),
        ("Left: <image> Right: <image> Which?", 2, "Left: <image> Right: <image> Which?"),
        ("What is this?\n<image>", 1, "What is this?\n<image>"),
        ("<image> before <IMAGE> after", 2, "<image> before <image> after"),
        ("Compare <image 1> with <image 2>.", 2, "Compare <image> with <image>."),
        ("Compare <image 1> with <image 2>.", 1, "Compare with ."),
        ("<image 2> or <image 1>?", 2, "image 2 or image 1?"),
        ("See <image 1>: <image>", 1, "See : <image>"),
        ("no tags", 3, "no tags"),
    ],
)
def test_case_04_places_of_images(text, images, question):
    assert place_images((), text, images) == ((), question)


@pytest.mark.parametrize(("text", "images"), [("<image> a <image>", 1), ("a <image>", 2)])
def test_more_or_fewer_places_than_images_are_refused(text, images):
    with pytest.raises(BadSample, match=r"placeholders but \d images"):
        place_images((), text, images)


def test_case_16_turns_before_the_question_stay():
    chat_in = [
        SYSTEM,
        {"role": "user", "content": "<image>One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Two?"}]},
        {"role": "user", "content": "Say."},
        {"role": "assistant", "content": "the answer"},
    ]
    sample = only(row(chat_in))
    assert sample.turns == (
        ("system", "Answer with one word."),
        ("user", "<image>One?"),
        ("assistant", "Yes."),
    )
    assert sample.question == "<image>\n\nTwo?\n\nSay."


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([SYSTEM], "no turn of the user"),
        ([{"role": "tool", "content": "x"}, {"role": "user", "content": "q"}], "'tool'"),
        ([{"role": "user", "content": 7}], "no text or image"),
        ([1, 2], "not of messages"),
        (7, "missing or not text"),
    ],
)
def test_turns_that_cannot_be_asked(value, message):
    with pytest.raises(BadSample, match=message):
        read_turns(value)


def test_a_text_in_brackets_is_no_chat():
    assert messages_of("[1, 2] is which interval?") is None
    assert read_turns('["a", "b"]') == ((), '["a", "b"]')


def test_sharegpt_conversations():
    talk = [
        {"from": "human", "value": "<image>\nWhat colour is the door?"},
        {"from": "gpt", "value": "Green"},
    ]
    given = {"id": "1", "image": {"bytes": png(1), "path": None}, "conversations": talk}
    sample = only(given)
    assert (sample.question, sample.answer) == ("What colour is the door?", "Green")


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("form", ["image", "image_url", "url"])
def test_case_15_images_inside_messages(form, as_text):
    uri = "data:image/png;base64," + base64.b64encode(png(5)).decode()
    part = {
        "image": {"type": "image", "image": uri},
        "image_url": {"type": "image_url", "image_url": {"url": uri}},
        "url": {"type": "image", "url": uri},
    }[form]
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}]
    held = json.dumps(messages) if as_text else messages
    sample = only({"messages": held, "answer": "3"})
    assert sample.question == "Which?"
    assert [ref.data for ref in sample.images] == [png(5)]


# ---------------------------------------------------------------- the model's prompt


@pytest.fixture(scope="module")
def driver() -> ModelDriver:
    return ModelDriver(*build("qwen2_5_vl"))


def order(driver: ModelDriver, sample: Sample, images: list[Image.Image]) -> str:
    """The prompt as text, a run of image tokens as #."""
    ids = driver.prepare(sample, images).inputs["input_ids"][0].tolist()
    shown, last = "", None
    for token in ids:
        if token != driver.image_token_id:
            shown += driver.tokenizer.decode([token])
        elif last != token:
            shown += "#"
        last = token
    return shown


def test_images_stand_in_the_prompt_where_the_text_has_them(driver):
    sample = only(row("Left: <image> Right: <image> Which?"))
    images = [Image.new("RGB", (56, 56)), Image.new("RGB", (56, 84))]
    text = order(driver, sample, images)
    places = [text.index(part) for part in ("Left:", "#", "Right:", "Which?")]
    assert places == sorted(places) and text.count("#") == 2
    assert text.rindex("#") > text.index("Right:")
    blind = order(driver, sample, [])
    assert "#" not in blind and IMAGE not in blind and "Left: Right: Which?" in blind


def test_case_16_earlier_turns_are_in_the_prompt_of_both_arms(driver):
    talk = [SYSTEM, {"role": "user", "content": "Which?"}]
    sample = only(row(talk, images=1))
    for images in ([Image.new("RGB", (56, 56))], []):
        text = order(driver, sample, images)
        assert text.index("Answer with one word.") < text.index("Which?")


def test_plain_questions_have_the_messages_they_had():
    assert chat((), "Q", 2) == [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "image"},
                {"type": "text", "text": "Q"},
            ],
        }
    ]


def test_another_number_of_images_stands_before_the_text():
    (message,) = chat((), "a <image> b", 2)
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert message["content"][-1]["text"] == "a b"


# ---------------------------------------------------------------- what is trained on


def selection(*rows: dict[str, object]):
    samples = open_samples(list(rows))
    made = []
    for name in samples.ids:
        made += [{"id": name, "with_image": True, "correct": k < 3} for k in range(4)]
        made += [{"id": name, "with_image": False, "correct": False} for _ in range(4)]
    return choose(Scores.from_rollouts(made, dataset=samples), budget=1.0)


INSIDE = "Left: <image> Right: <image> Which?"
BEFORE = [SYSTEM, {"role": "user", "content": "<image>Which?"}]


def test_prepare_keeps_places_and_turns():
    (inside,) = prepare(selection(row(INSIDE)))
    (message,) = inside["prompt"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds[:4] == ["text", "image", "text", "image"]
    (before,) = prepare(selection(row(BEFORE, images=1)))
    assert [m["role"] for m in before["prompt"]] == ["system", "user"]
    assert before["prompt"][0]["content"][0]["text"] == "Answer with one word."


def exported(selected, to: str, folder: Path) -> dict[str, object]:
    selected.export(to, folder, filter=False)
    if (folder / "train.parquet").exists():
        (found,) = pq.read_table(folder / "train.parquet").to_pylist()
    else:
        (found,) = map(json.loads, (folder / "train.jsonl").read_text().splitlines())
    return found


@pytest.mark.parametrize("to", ["verl", "easyr1", "openrlhf", "ms-swift", "llamafactory"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_exports_keep_images_in_their_places(tmp_path, to):
    found = exported(selection(row(INSIDE)), to, tmp_path / "out")
    text = found.get("problem") or found.get("prompt") or found.get("messages")
    text = text if isinstance(text, str) else text[0]["content"]
    assert text.startswith("Left: <image> Right: <image> Which?")
    assert text.count("<image>") == 2


@pytest.mark.parametrize("to", ["trl", "verl", "ms-swift", "llamafactory"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_exports_keep_earlier_turns(tmp_path, to):
    found = exported(selection(row(BEFORE, images=1)), to, tmp_path / "out")
    turns = found.get("prompt") or found.get("messages")
    assert turns[0] == {"role": "system", "content": "Answer with one word."}
    assert turns[1]["content"].startswith("Which?" if to == "trl" else "<image>Which?")


@pytest.mark.parametrize(
    ("to", "question", "images", "message"),
    [
        ("trl", INSIDE, 2, "puts images before the text"),
        ("easyr1", BEFORE, 1, "turns before the question"),
        ("openrlhf", BEFORE, 1, "turns before the question"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_what_a_form_cannot_keep_is_refused_by_name(
    tmp_path, to, question, images, message
):
    with pytest.raises(RapInputError, match=f"'a' cannot be exported: .*{message}"):
        selection(row(question, images)).export(to, tmp_path / "out", filter=False)


def test_another_system_turn_is_another_sample():
    one, other = (
        only(row([{"role": "system", "content": s}, {"role": "user", "content": "Q"}], 1))
        for s in ("a", "b")
    )
    assert sample_sha256(one, []) != sample_sha256(other, [])


# ---------------------------------------------------------------- --system-prompt

SYSTEM_TEXT = "Answer with one word."


@pytest.fixture(scope="module")
def scored_under_a_system_prompt():
    """Four samples, scored by a model with random weights and a system prompt; which are
    kept is said by rollouts."""
    import rap
    from rap.demo.tiny import tiny_qwen2_5_vl

    rows = [{**row("Which?", images=1), "id": name} for name in "abcd"]
    model, processor = tiny_qwen2_5_vl()
    scores = rap.score(
        model,
        processor,
        rows,
        evidence="answer",
        system_prompt=SYSTEM_TEXT,
        allow_degenerate=True,
        progress=False,
    )
    chosen, told = selection(*rows), rap.choose(scores).settings["scores"]
    settings = {**chosen.settings, "scores": told}
    return scores, dataclasses.replace(chosen, settings=settings)


def test_case_29_a_system_prompt_is_scored_and_trained(
    scored_under_a_system_prompt, driver
):
    sample = only(row("Which?", images=1))
    told = ModelDriver(
        driver.model, driver.processor, ScoreConfig(system_prompt=SYSTEM_TEXT)
    )
    image = [Image.new("RGB", (56, 56))]
    given = only(row([SYSTEM, {"role": "user", "content": "Which?"}], images=1))
    for images in (image, []):
        text = order(told, sample, images)
        assert SYSTEM_TEXT in text and text == order(driver, given, images)
        assert SYSTEM_TEXT not in order(driver, sample, images)
    scores, chosen = scored_under_a_system_prompt
    assert scores.table["status"].to_pylist() == ["scored"] * 4
    assert chosen.settings["scores"]["config"]["system_prompt"] == SYSTEM_TEXT
    for trained in (prepare(chosen), prepare([row("Which?")], system_prompt=SYSTEM_TEXT)):
        system, user = trained[0]["prompt"][:2]
        assert system["role"] == "system" and user["role"] == "user"
        assert system["content"] == [{"type": "text", "text": SYSTEM_TEXT}]


@pytest.mark.parametrize("to", ["trl", "verl", "ms-swift", "llamafactory"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_case_29_a_system_prompt_is_exported(scored_under_a_system_prompt, tmp_path, to):
    _, chosen = scored_under_a_system_prompt
    chosen.export(to, tmp_path / "out")
    file = next((tmp_path / "out").glob("train.*"))
    if file.suffix == ".parquet":
        first = pq.read_table(file).to_pylist()[0]
    else:
        first = json.loads(file.read_text().splitlines()[0])
    turns = first.get("prompt") or first.get("messages")
    assert turns[0] == {"role": "system", "content": SYSTEM_TEXT}
    assert [turn["role"] for turn in turns[:2]] == ["system", "user"]


@pytest.mark.parametrize("to", ["easyr1", "openrlhf"])
def test_a_form_without_turns_refuses_a_system_prompt(
    scored_under_a_system_prompt, tmp_path, to
):
    _, chosen = scored_under_a_system_prompt
    with pytest.raises(RapInputError, match="turns before the question"):
        chosen.export(to, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_two_system_turns_are_refused_by_name(driver, tmp_path):
    talk = row([SYSTEM, {"role": "user", "content": "Which?"}], images=1)
    told = ModelDriver(
        driver.model, driver.processor, ScoreConfig(system_prompt=SYSTEM_TEXT)
    )
    with pytest.raises(BadSample, match="a system turn of its own") as caught:
        told.prepare(only(talk), [])
    assert (caught.value.stage, caught.value.code) == ("prompt", "system_turn")
    with pytest.raises(RapInputError, match="sample 'a': .*a system turn of its own"):
        prepare([talk], system_prompt=SYSTEM_TEXT)
    with pytest.raises(RapInputError, match="'a' cannot be exported: system_turn"):
        selection(talk).export("verl", tmp_path / "out", system_prompt=SYSTEM_TEXT)


def in_verls_form() -> dict[str, object]:
    return {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "<image>Which?"}],
        "images": [{"bytes": png(1), "path": None}],
        "reward_model": {"style": "rule", "ground_truth": "left"},
        "extra_info": {"index": "a"},
    }


@pytest.mark.parametrize(
    "config", [{"system_prompt": SYSTEM_TEXT}, {"prompt_template": "Look. {question}"}]
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_rows_as_they_came_in_lack_what_was_said_when_scoring(tmp_path, config):
    """The prompts that were scored are not in the file: never without a word."""
    chosen = selection(in_verls_form())
    scores = {**(chosen.settings.get("scores") or {}), "config": config}
    chosen = dataclasses.replace(chosen, settings={**chosen.settings, "scores": scores})
    (name,) = config
    with pytest.raises(RapConfigError, match=f"scored with {name} .*--rewrite"):
        chosen.export("verl", tmp_path / "a")
    kept = chosen.export("verl", tmp_path / "b", filter=True)
    assert any(f"scored with {name}" in note for note in kept.notes)
    plain = chosen.export("parquet", tmp_path / "c")
    assert any(f"scored with {name}" in note for note in plain.notes)
    chosen.export("verl", tmp_path / "d", filter=False)
    (found,) = pq.read_table(tmp_path / "d" / "train.parquet").to_pylist()
    said = "\n".join(turn["content"] for turn in found["prompt"])
    assert (SYSTEM_TEXT if name == "system_prompt" else "Look. Which?") in said


def test_no_system_prompt_leaves_the_fingerprint_of_older_stores():
    assert "system_prompt" not in ScoreConfig().fingerprint()
    assert ScoreConfig(system_prompt="a").fingerprint()["system_prompt"] == "a"
    for bad in ("", "  ", 5):
        with pytest.raises(RapConfigError, match="system_prompt = .*expected"):
            ScoreConfig(system_prompt=bad)
