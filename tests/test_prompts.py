"""The prompt that is trained is the prompt that is scored: turns and places of images."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_models import build

from rap.errors import RapInputError
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
def test_places_of_images(text, images, question):
    assert place_images((), text, images) == ((), question)


@pytest.mark.parametrize(("text", "images"), [("<image> a <image>", 1), ("a <image>", 2)])
def test_more_or_fewer_places_than_images_are_refused(text, images):
    with pytest.raises(BadSample, match=r"placeholders but \d images"):
        place_images((), text, images)


def test_turns_before_the_question_stay():
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
def test_images_inside_messages(form, as_text):
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


def test_earlier_turns_are_in_the_prompt_of_both_arms(driver):
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
