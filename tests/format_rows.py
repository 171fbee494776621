"""Rows as published sets and trainers have them, in our own words, and how they are read.

``FORMATS``: each a format with its rows and what comes out of them. ``READERS``: the ways
to hand rows in. ``test_formats`` crosses them; ``python tests/format_rows.py`` writes the
result, ``.github/docs/formats.md``.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rap.errors import RapInputError
from rap.samples.answers import read_answer
from rap.samples.sample import Bad, Sample
from rap.samples.sampleset import SampleSet, open_samples

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Img:
    """An image of a row: bytes or a path, as the reader has images."""

    n: int = 0


@dataclass(frozen=True, slots=True)
class File:
    """The file: URL of an image."""

    n: int = 0


def chat(*said: tuple[str, Any]) -> list[Row]:
    return [{"role": role, "content": content} for role, content in said]


def sharegpt(*said: tuple[str, str]) -> list[Row]:
    return [{"from": role, "value": text} for role, text in said]


@dataclass(frozen=True, slots=True)
class Read:
    """What one row is read as. ``said``: the letter of the right choice, else the accepted
    answers; ``turns``: roles and texts before the question; ``stated``: options that stand
    in it."""

    question: str
    said: str | tuple[str, ...]
    choices: tuple[str, ...] = ()
    images: int = 1
    turns: tuple[tuple[str, str], ...] = ()
    stated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """``want``: a row's ``Read``, or the code by which it is set aside. ``refused``: the
    data set as a whole is refused with this in its sentence."""

    name: str
    rows: Sequence[Row]
    want: Sequence[Read | str] = ()
    form: str = ""
    refused: str = ""


LETTERED = "As the figure shows, how large is the angle?\nChoices:\nA:145°\nB:35°"
EUREKA = [
    {"type": "image", "image": File()},
    {"type": "text", "text": "Solve the problem."},
]

FORMATS = (
    Format(
        "ScienceQA",
        [
            {
                "image": Img(),
                "question": "Which is a liquid?",
                "choices": ["ice", "milk", "sand"],
                "answer": answer,
                "hint": "",
                "grade": "grade2",
                "subject": "natural science",
                "lecture": "Liquids flow.",
                "solution": "Milk flows.",
            }
            for answer in (0, 1, 2)
        ]
        + [{"image": None, "question": "No image?", "choices": ["a", "b"], "answer": 0}],
        [
            Read("Which is a liquid?", "A", ("ice", "milk", "sand")),
            Read("Which is a liquid?", "B", ("ice", "milk", "sand")),
            Read("Which is a liquid?", "C", ("ice", "milk", "sand")),
            "text_only",
        ],
        "place of a choice, counted from 0",
    ),
    Format(
        "A-OKVQA",
        [
            {
                "image": Img(),
                "question_id": "q1",
                "question": "What pulls the cart?",
                "choices": ["cat", "dog", "ox", "pig"],
                "correct_choice_idx": 2,
                "direct_answers": "['ox', 'ox', 'bull']",
                "difficult_direct_answer": False,
                "rationales": ["It has horns."],
            }
        ],
        [Read("What pulls the cart?", "C", ("cat", "dog", "ox", "pig"))],
        "place of a choice, counted from 0",
    ),
    Format(
        "MMMU",
        [
            {
                "id": "v1",
                "question": "Compare <image 1> with <image 2>.",
                "options": "['9 cm', '8 cm']",
                "image_1": Img(),
                "image_2": Img(1),
                "image_3": None,
                "answer": "B",
                "question_type": "multiple-choice",
            },
            {
                "id": "v2",
                "question": "Read the scale. <image 1>",
                "options": "[]",
                "image_1": Img(),
                "image_2": None,
                "image_3": None,
                "answer": "['9.8', '9.81']",
                "question_type": "open",
            },
            {
                "id": "v3",
                "question": "Which figure goes on from <image 1>?",
                "options": "['<image 2>', '<image 3>']",
                "image_1": Img(),
                "image_2": Img(1),
                "image_3": Img(2),
                "answer": "A",
                "question_type": "multiple-choice",
            },
        ],
        [
            Read("Compare <image> with <image>.", "B", ("9 cm", "8 cm"), 2),
            Read("Read the scale.", ("9.8", "9.81")),
            Read("Which figure goes on from image 1?", "A", ("image 2", "image 3"), 3),
        ],
        "letter of a choice",
    ),
    Format(
        "MathVerse",
        [
            {
                "sample_index": "1",
                "problem_index": "1",
                "problem_version": "Text Dominant",
                "question": LETTERED,
                "image": Img(),
                "answer": "B",
                "question_type": "multi-choice",
                "query_cot": "Please reason.",
            }
        ],
        [Read(LETTERED, "B", stated=("145°", "35°"))],
        "letter",
    ),
    Format(
        "MathVista",
        [
            {
                "pid": "1",
                "question": "How large is the angle?",
                "image": "images/1.jpg",
                "decoded_image": Img(),
                "choices": ["45°", "30°"],
                "unit": None,
                "precision": None,
                "answer": "45°",
            },
            {
                "pid": "2",
                "question": "How long is the nail?",
                "image": "images/2.jpg",
                "decoded_image": Img(),
                "choices": None,
                "unit": "cm",
                "precision": 1.0,
                "answer": "1.2",
            },
            {
                "pid": "3",
                "question": "How large is it?",
                "image": "images/3.jpg",
                "decoded_image": Img(),
                "choices": ["40°", "30°"],
                "unit": None,
                "precision": None,
                "answer": "45°",
            },
        ],
        [
            Read("How large is the angle?", "A", ("45°", "30°")),
            Read("How long is the nail?", ("1.2",)),
            "bad_answer",
        ],
        "text of a choice",
    ),
    Format(
        "ChartQA",
        [
            {"imgname": Img(), "query": "How high is the left bar?", "label": label}
            for label in (["0.72"], ["13"])
        ],
        [Read("How high is the left bar?", (x,)) for x in ("0.72", "13")],
        "number",
    ),
    Format(
        "TextVQA",
        [
            {
                "question_id": 34602,
                "image_id": "x",
                "question": "what brand is the phone?",
                "image": Img(),
                "answers": ["norda"] * 8 + ["noka", "tosha"],
                "ocr_tokens": ["N"],
            }
        ],
        [Read("what brand is the phone?", ("norda",))],
        "text",
    ),
    Format(
        "VQAv2",
        [
            {
                "question_id": 1001,
                "image_id": 1,
                "question": "What is over the goal?",
                "image": Img(),
                "multiple_choice_answer": "net",
                "answers": [
                    {"answer": word, "answer_confidence": "yes", "answer_id": k}
                    for k, word in enumerate(["net"] * 6 + ["mesh"] * 4, 1)
                ],
            }
        ],
        [Read("What is over the goal?", ("net", "mesh"))],
        "list of accepted answers",
    ),
    Format(
        "DocVQA",
        [
            {
                "questionId": "337",
                "question": "What is the date?",
                "image": Img(),
                "docId": 279,
                "answers": ["1/8/93", "8 January 1993"],
                "data_split": "val",
            }
        ],
        [Read("What is the date?", ("1/8/93", "8 January 1993"))],
        "list of accepted answers",
    ),
    Format(
        "geometry3k, verl",
        [
            {
                "data_source": "geometry3k",
                "prompt": chat(("user", "<image>Find x.")),
                "images": [Img()],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "3"},
                "extra_info": {"split": "train", "index": 0, "answer": "3"},
            }
        ],
        [Read("Find x.", ("3",))],
        "number",
    ),
    Format(
        "geometry3k, EasyR1",
        [{"images": [Img()], "problem": "<image>Find x.", "answer": "2 \\sqrt { 221 }"}],
        [Read("Find x.", ("2 \\sqrt { 221 }",))],
        "LaTeX",
    ),
    Format(
        "MM-Eureka",
        [{"id": "0", "conversations": chat(("user", EUREKA)), "answer": "$3$"}],
        [Read("Solve the problem.", ("3",))],
        "number",
    ),
    Format(
        "MM-Eureka, images beside",
        [
            {
                "id": "0",
                "conversations": chat(
                    ("system", "Be brief."), ("user", "<image>Solve it.")
                ),
                "answer": "$3$",
                "image_urls": [File()],
            }
        ],
        [Read("Solve it.", ("3",), turns=(("system", "Be brief."),))],
        "number",
    ),
    Format(
        "MM-Eureka, chat as text",
        [
            {
                "id": "0",
                "message": json.dumps(chat(("user", "<image>Solve it."))),
                "images": [Img()],
                "answer": "$3$",
            }
        ],
        [Read("Solve it.", ("3",))],
        "number",
    ),
    Format(
        "MMK12",
        [
            {
                "id": "0",
                "question": "<image>Which?\nA. 1\nB. 2",
                "answer": "B",
                "subject": "math",
                "image": Img(),
            }
        ],
        [Read("Which?\nA. 1\nB. 2", "B", stated=("1", "2"))],
        "letter",
    ),
    Format(
        "ViRL39K",
        [
            {
                "qid": "q1",
                "question": "<image>Find the area.",
                "answer": "\\boxed{12}",
                "PassRate_32BTrained": 0.5,
                "category": "STEM",
                "source": "s",
                "image": [Img()],
            }
        ],
        [Read("Find the area.", ("12",))],
        "number",
    ),
    Format(
        "R1-V",
        [
            {
                "image": Img(),
                "problem": "How many cubes?",
                "solution": "<answer> 3 </answer>",
            }
        ],
        [Read("How many cubes?", ("3",))],
        "number",
    ),
    Format(
        "open-r1 (multimodal)",
        [
            {
                "image": Img(),
                "problem": "How many cubes?",
                "solution": "<think>Two and one.</think>\n\n<answer>3</answer>",
                "original_answer": "The answer is 3",
            }
        ],
        [Read("How many cubes?", ("3",))],
        "number",
    ),
    Format(
        "LLaVA",
        [
            {
                "id": "1",
                "image": Img(),
                "conversations": sharegpt(
                    ("human", "<image>\nWhat colour is the door?"),
                    ("gpt", "Green"),
                    ("human", "And the roof?"),
                    ("gpt", "Red"),
                ),
            }
        ],
        [
            Read(
                "And the roof?",
                ("Red",),
                turns=(("user", "What colour is the door?"), ("assistant", "Green")),
            )
        ],
        "text",
    ),
    Format(
        "ShareGPT with a system turn",
        [
            {
                "conversations": sharegpt(
                    ("system", "Be brief."), ("human", "<image>Colour?"), ("gpt", "Green")
                ),
                "images": [Img()],
            }
        ],
        [Read("Colour?", ("Green",), turns=(("system", "Be brief."),))],
        "text",
    ),
    Format(
        "ms-swift, messages",
        [
            {
                "messages": chat(("system", "Be brief."), ("user", "<image>How many?")),
                "images": [Img()],
                "solution": "3",
            }
        ],
        [Read("How many?", ("3",), turns=(("system", "Be brief."),))],
        "number",
    ),
    Format(
        "ms-swift, query and response",
        [
            {
                "query": "And now?",
                "response": "5",
                "images": [Img()],
                "history": [["<image>How many?", "4"]],
                "system": "Be brief.",
            }
        ],
        [
            Read(
                "And now?",
                ("5",),
                turns=(
                    ("system", "Be brief."),
                    ("user", "How many?"),
                    ("assistant", "4"),
                ),
            )
        ],
        "number",
    ),
    Format(
        "LLaMA-Factory, sharegpt",
        [
            {
                "conversations": sharegpt(("human", "<image>Colour?"), ("gpt", "Green")),
                "images": [Img()],
                "system": "Be brief.",
                "tools": "",
            }
        ],
        [Read("Colour?", ("Green",), turns=(("system", "Be brief."),))],
        "text",
    ),
    Format(
        "LLaMA-Factory, alpaca",
        [
            {
                "instruction": "<image>Count the dots.",
                "input": "Only the red ones.",
                "output": "7",
                "images": [Img()],
                "system": "",
            }
        ],
        [Read("Count the dots.\nOnly the red ones.", ("7",))],
        "number",
    ),
    Format(
        "OpenRLHF",
        [{"prompt": "<image>How many?", "images": [Img()], "label": "3"}],
        [Read("How many?", ("3",))],
        "number",
    ),
    Format(
        "TRL, messages with parts",
        [
            {
                "prompt": chat(
                    ("user", [{"type": "image"}, {"type": "text", "text": "How many?"}])
                ),
                "image": Img(),
                "solution": "3",
            }
        ],
        [Read("How many?", ("3",))],
        "number",
    ),
    Format(
        "VLMEvalKit",
        [
            {
                "index": 0,
                "question": "Which one?",
                "hint": None,
                "A": "a cat",
                "B": "a dog",
                "C": None,
                "answer": "B",
                "image": Img(),
            }
        ],
        [Read("Which one?", "B", ("a cat", "a dog"))],
        "letter of a choice",
    ),
    Format(
        "VLM-R1",
        [
            {
                "id": k,
                "image": Img(),
                "conversations": sharegpt(
                    ("human", "<image>Give the bounding box of the cup."),
                    ("gpt", f"[12, 30, 50, {60 + k}]"),
                ),
            }
            for k in range(3)
        ],
        [
            Read("Give the bounding box of the cup.", (f"[12, 30, 50, {60 + k}]",))
            for k in range(3)
        ],
        "box",
    ),
    Format(
        "rows with videos",
        [{"question": "What happens?", "answer": "a fall", "video": "clip.mp4"}],
        refused="videos are not supported",
    ),
)


# ------------------------------------------------------------------------- readers


def png(n: int = 0) -> bytes:
    pixels = np.random.default_rng(n).integers(0, 255, (20, 30, 3), dtype="uint8")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def made(value: Any, folder: Path, image: Callable[[int], Any]) -> Any:
    """A value with its images as a reader has them."""
    if isinstance(value, Img):
        return image(value.n)
    if isinstance(value, File):
        return (folder / f"{value.n}.png").as_uri()
    if isinstance(value, list):
        return [made(item, folder, image) for item in value]
    if isinstance(value, dict):
        return {key: made(item, folder, image) for key, item in value.items()}
    return value


def as_bytes(n: int) -> Row:
    return {"bytes": png(n), "path": None}


def as_path(n: int) -> str:
    return f"{n}.png"


def table_of(rows: Sequence[Row], folder: Path) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    filled = made([{n: row.get(n) for n in names} for row in rows], folder, as_bytes)
    return pa.Table.from_pylist(filled)


def objects(rows: Sequence[Row], folder: Path) -> Any:
    return made(list(rows), folder, as_bytes)


def jsonl(rows: Sequence[Row], folder: Path) -> Path:
    path = folder / "d.jsonl"
    lines = (json.dumps(row) + "\n" for row in made(list(rows), folder, as_path))
    path.write_text("".join(lines))
    return path


def json_array(rows: Sequence[Row], folder: Path) -> Path:
    path = folder / "d.json"
    path.write_text(json.dumps(made(list(rows), folder, as_path), indent=1))
    return path


def parquet(rows: Sequence[Row], folder: Path) -> Path:
    pq.write_table(table_of(rows, folder), folder / "d.parquet")
    return folder / "d.parquet"


def separated(rows: Sequence[Row], folder: Path) -> Path:
    """As pandas writes it: a list is Python's text of it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in made(list(rows), folder, as_path):
            cells = [row.get(name) for name in names]
            writer.writerow(["" if c is None else c for c in cells])
    return folder / "d.csv"


def arrow(rows: Sequence[Row], folder: Path) -> pa.Table:
    return table_of(rows, folder)


def arrow_file(rows: Sequence[Row], folder: Path) -> Path:
    table = table_of(rows, folder)
    with pa.ipc.new_file(str(folder / "d.arrow"), table.schema) as writer:
        writer.write_table(table)
    return folder / "d.arrow"


def dataset(rows: Sequence[Row], folder: Path) -> Any:
    import datasets

    return datasets.Dataset(table_of(rows, folder))


def streamed(rows: Sequence[Row], folder: Path) -> Any:
    return dataset(rows, folder).to_iterable_dataset()


def saved(rows: Sequence[Row], folder: Path) -> Path:
    dataset(rows, folder).save_to_disk(folder / "saved")
    return folder / "saved"


def pandas(rows: Sequence[Row], folder: Path) -> Any:
    import pandas as pd

    return pd.DataFrame(objects(rows, folder))


def polars(rows: Sequence[Row], folder: Path) -> Any:
    import polars as pl

    return pl.from_arrow(table_of(rows, folder))


def torch_set(rows: Sequence[Row], folder: Path) -> Any:
    from torch.utils.data import Dataset

    class Items(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Row:
            return made(rows[index], folder, as_pixels)

    return Items()


def as_pixels(n: int) -> Any:
    return Image.open(io.BytesIO(png(n)))


READERS: Mapping[str, Callable[[Sequence[Row], Path], Any]] = {
    "list of dicts": objects,
    "JSONL": jsonl,
    "JSON": json_array,
    "CSV": separated,
    "Parquet": parquet,
    "Arrow table": arrow,
    "Arrow file": arrow_file,
    "datasets": dataset,
    "streamed": streamed,
    "saved": saved,
    "pandas": pandas,
    "torch": torch_set,
}
PATHS = ("JSONL", "JSON", "CSV")
"""Readers whose images are paths."""


def fits(form: Format, reader: str) -> str:
    """Why a reader has no such rows; "" where it has."""
    if reader != "CSV":
        return ""
    cells = [value for row in form.rows for value in row.values()]
    items = [item for c in cells for item in (c if isinstance(c, list) else [c])]
    nested = any(isinstance(item, (dict, list)) for item in items)
    return "nested cells" if nested else ""


def options_of(form: Format, reader: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"root": folder}
    if reader == "streamed":
        found["limit"] = 100
    if form.name == "MathVista" and reader in PATHS:
        found["columns"] = {"images": "decoded_image"}
    return found


def opened(form: Format, reader: str, folder: Path) -> SampleSet:
    for n in range(3):
        (folder / f"{n}.png").write_bytes(png(n))
    source = READERS[reader](form.rows, folder)
    return open_samples(source, **options_of(form, reader, folder))


def read_as(row: Sample | Bad) -> Read | str:
    """A row as it was read, to be compared with what is wanted."""
    if isinstance(row, Bad):
        return row.code
    reference = read_answer(row.answer, row.choices)
    texts = tuple(accepted.text for accepted in reference.accepted)
    return Read(
        row.question,
        reference.letter or texts,
        row.choices,
        len(row.images),
        tuple(row.turns),
        row.stated,
    )


# ------------------------------------------------------------------------ the page

PAGE = Path(__file__).parents[1] / ".github" / "docs" / "formats.md"
HEAD = """# Formats that go in without preparation

Written by `python tests/format_rows.py`; `tests/test_formats.py` fails where it is not what
happens. `ok`: every row is read as it should be, by all readers alike (question, choices,
answer, number of images, earlier turns). `rap inspect DATA` says the same of your own data.

"""
AFTER = """
`-`: such a reader has no nested cells. `named`: the image column has to be named
(`--columns images=decoded_image`), because another one holds paths. `refused`: with a
sentence that says why. Streams (`datasets` streaming, torch's `IterableDataset`,
generators) need `open_samples(data, limit=n)`; a `DatasetDict` asks which split. Boxes as
answers (VLM-R1) are read, and refused when they are to be scored without a reward function
of your own.

A table of Polars is read as the list of its rows. Polars is no part of the test
environment, where its test is left out; run by itself, with Polars 2.1.0, all formats are
read as above.

`in the question`: the options stand in the question's text ("Choices: (A) red (B) blue");
they are found for the column as a whole, and a letter is matched with its text.

| format | question | answer | choices | images | form of the answers |
|---|---|---|---|---|---|
"""


def result(form: Format, reader: str) -> str:
    """A cell of the matrix."""
    if fits(form, reader):
        return "-"
    with tempfile.TemporaryDirectory() as folder:
        try:
            samples = opened(form, reader, Path(folder).resolve())
        except RapInputError as error:
            return "refused" if form.refused and form.refused in str(error) else "WRONG"
        right = [read_as(row) for row in samples] == list(form.want)
    named = "columns" in options_of(form, reader, Path(folder))
    return ("named" if named else "ok") if right else "WRONG"


def page() -> str:
    """The committed page."""
    readers = list(READERS)
    lines = [f"| format | {' | '.join(readers)} |", "|---" * (len(readers) + 1) + "|"]
    for form in FORMATS:
        cells = [result(form, reader) for reader in readers]
        lines.append(f"| {form.name} | {' | '.join(cells)} |")
    text = HEAD + "\n".join(lines) + "\n" + AFTER
    for form in FORMATS:
        if form.refused:
            continue
        with tempfile.TemporaryDirectory() as folder:
            samples = opened(form, "list of dicts", Path(folder).resolve())
        said = [
            samples.columns[r] or "" for r in ("question", "answer", "choices", "images")
        ]
        cells = [f"`{name}`" if name else "" for name in said]
        cells[2] = "in the question" if samples.stated_options else cells[2]
        text += f"| {form.name} | {' | '.join(cells)} | {samples.answer_forms.form} |\n"
    return text


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
