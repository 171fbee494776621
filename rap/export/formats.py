"""What each trainer's loader reads: one writer a target.

Each was loaded by the trainer's own loader (tests/trainers; versions in .ci/trainers), and
each form has its reason:

- Parquet is written by pyarrow with image metadata in the spelling that `datasets` of every
  version knows: what `datasets` 4 and later write themselves, older ones cannot read.
- Images in Parquet are ``{bytes, path}`` with bytes: verl and EasyR1 open the bytes and
  never look at the path.
- OpenRLHF leaves images that are dicts out with a warning and trains on text alone: it gets
  paths. Paths are absolute, because OpenRLHF and ms-swift open them from where they run.
- Where the prompt lists the choices by letter, the answer is the letter: it is what the
  trainer's checker meets. TRL and ms-swift compare with math-verify, which reads B only
  as ``$B$``.
- TRL puts the images before the text itself: no ``<image>`` there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..rewards.exported import TRUTH, packed
from ..samples.prompts import stands_in_place
from ..samples.sample import Turn

MANIFEST = "rap_export.json"
VERL_SOURCE = "hiyouga/geometry3k"
"""verl refuses a ``data_source`` it has no reward for. Under this name it looks for the
answer in ``\\boxed{}`` with mathruler (verl/utils/reward_score/geo3k.py)."""

ROWS_AT_A_TIME = 64
IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = pa.list_(IMAGE_STRUCT)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
# Features of columns that are not named here are found by their Arrow type.
AS_IMAGES = json.dumps(
    {"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "Sequence"}}}}
)


@dataclass(frozen=True, slots=True)
class Picture:
    """Encoded bytes, their sha256, and the format's name, lower case."""

    data: bytes
    sha256: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.sha256}.{'jpg' if self.kind == 'jpeg' else self.kind}"


@dataclass(frozen=True, slots=True)
class Row:
    """One kept sample. ``prompt``: question and choices as scored, without image tags
    unless the images stand inside the text; ``turns``: what was said before.
    ``answer``: what the trainer's reward compares with (``answers.answer_to_train``)."""

    id: str
    index: int
    prompt: str
    question: str
    answer: str
    choices: tuple[str, ...]
    pictures: tuple[Picture, ...]
    source: str | None
    reason: str
    turns: tuple[Turn, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What was said, turn by turn."""
        return (*(text for _, text in self.turns), self.prompt)

    @property
    def in_place(self) -> bool:
        """Whether ``<image>`` stands in the texts, one for each picture."""
        return stands_in_place(self.texts, len(self.pictures))

    @property
    def tagged(self) -> str:
        """The prompt with one ``<image>`` per image: at its place, or before the text."""
        return self.messages()[-1]["content"]

    def messages(self, *, tagged: bool = True) -> list[dict[str, str]]:
        """The chat; ``tagged``: with one ``<image>`` per image."""
        said = [*self.turns, ("user", self.prompt)]
        before = "" if self.in_place or not tagged else "<image>" * len(self.pictures)
        first = next(i for i, (role, _) in enumerate(said) if role == "user")
        return [
            {"role": role, "content": before + text if i == first else text}
            for i, (role, text) in enumerate(said)
        ]


@dataclass
class Writing:
    """Where a writer writes, and what it says it wrote.

    ``seen_as``: the folder as the trainer will see it. ``samples``: ids in the order of
    the file; ``left_out``: ids without a row."""

    folder: Path
    seen_as: Path
    data_source: str | None = None
    completions: Mapping[str, tuple[str, str]] | None = None
    samples: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """A trainer. ``name``: its own spelling. ``upright``: its loader applies a rotation in
    EXIF. ``latex``: its own checker reads mathematics only. ``tags``: texts that it takes
    for placeholders. ``notes``: (folder, most images a row) -> what to set.
    ``is_its_own``: a row of a data set is in the trainer's form already. ``form``: what the
    files are for. ``groups``: its rows name the sample's group. ``pairs``: with completions
    it gets pairs of a right and a wrong one. ``tags_in_answer``: it looks for placeholders
    in the answer, too. ``data_source``: it picks its reward by one.
    ``turns``: it keeps turns before the question; ``in_place``: images inside a text."""

    name: str
    write: Callable[[Iterable[Row], Writing], None]
    notes: Callable[[Path, int], list[str]]
    is_its_own: Callable[[Mapping[str, Any]], bool]
    upright: bool
    groups: bool = False
    latex: bool = False
    tags: tuple[str, ...] = ("<image>", "<video>", "<audio>")
    form: str = "prompts for GRPO"
    pairs: bool = False
    tags_in_answer: bool = False
    turns: bool = True
    in_place: bool = True
    data_source: bool = False


# ---------------------------------------------------------------- forms that come in


def _messages(value: Any, role: str = "role", content: str = "content") -> list[Any]:
    """The turns of a chat, [] for anything else."""
    turns = value if isinstance(value, (list, tuple)) else []
    ok = all(isinstance(t, Mapping) and isinstance(t.get(role), str) for t in turns)
    return list(turns) if ok and all(t.get(content) is not None for t in turns) else []


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _tagged_as(text: Any, images: Any) -> bool:
    """Text with one ``<image>`` for each image."""
    count = len(_as_list(images))
    return isinstance(text, str) and count > 0 and text.count("<image>") == count


# ---------------------------------------------------------------- Parquet


def _parquet(
    rows: Iterable[Row],
    writing: Writing,
    schema: pa.Schema,
    columns: Callable[[Row], dict[str, Any]],
) -> None:
    """``train.parquet``, a few rows at a time: images are large."""
    schema = schema.with_metadata({"huggingface": AS_IMAGES})
    with pq.ParquetWriter(writing.folder / "train.parquet", schema) as writer:
        for part in _parts(rows):
            writer.write_table(pa.Table.from_pylist([columns(r) for r in part], schema))
            writing.samples += [row.id for row in part]


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while part := list(islice(rows, ROWS_AT_A_TIME)):
        yield part


def _bytes(row: Row) -> list[dict[str, Any]]:
    return [{"bytes": picture.data, "path": picture.name} for picture in row.pictures]


TRL_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", MESSAGES),
        ("images", IMAGES),
        ("solution", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("rap_reason", pa.string()),
    ]
)


def write_trl(rows: Iterable[Row], writing: Writing) -> None:
    """GRPO and RLOO: ``load_dataset("parquet", data_files=...)``; every column reaches the
    reward functions, ``solution`` is what TRL's ``accuracy_reward`` reads."""

    def columns(row: Row) -> dict[str, Any]:
        return {
            "id": row.id,
            "prompt": row.messages(tagged=False),
            "images": _bytes(row),
            "solution": row.answer,
            "choices": list(row.choices),
            "rap_reason": row.reason,
        }

    _parquet(rows, writing, TRL_SCHEMA, columns)


def is_trl(row: Mapping[str, Any]) -> bool:
    """A chat as ``prompt``, images beside it, and none of verl's columns."""
    images = _as_list(row.get("images")) or _as_list(row.get("image"))
    return bool(_messages(row.get("prompt")) and images) and "reward_model" not in row


def _trl_notes(folder: Path, most: int) -> list[str]:
    file = folder / "train.parquet"
    return [
        f'load_dataset("parquet", data_files="{file}", split="train")',
        "reward_funcs=rap.trl.builtin_reward() grades as rap scored; TRL's accuracy_reward "
        "reads mathematics only",
    ]


VERL_SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", MESSAGES),
        ("images", IMAGES),
        ("ability", pa.string()),
        (
            "reward_model",
            pa.struct([("style", pa.string()), ("ground_truth", pa.string())]),
        ),
        (
            "extra_info",
            pa.struct(
                [
                    ("split", pa.string()),
                    ("index", pa.string()),  # verl hands it through as the row's `index`
                    ("question", pa.string()),
                    ("answer", pa.string()),
                    ("choices", pa.list_(pa.string())),
                    ("rap_reason", pa.string()),
                    ("rap_source", pa.string()),
                ]
            ),
        ),
    ]
)


def write_verl(rows: Iterable[Row], writing: Writing) -> None:
    """``RLHFDataset``; ``extra_info.index`` is the id."""

    def columns(row: Row) -> dict[str, Any]:
        return {
            "data_source": writing.data_source or VERL_SOURCE,
            "prompt": row.messages(),
            "images": _bytes(row),
            "ability": "multimodal",
            "reward_model": {"style": "rule", "ground_truth": row.answer},
            "extra_info": {
                "split": "train",
                "index": row.id,
                "question": row.question,
                "answer": row.answer,
                "choices": list(row.choices),
                "rap_reason": row.reason,
                "rap_source": row.source,
            },
        }

    _parquet(rows, writing, VERL_SCHEMA, columns)
    copy_reward(writing.folder)


def copy_reward(folder: Path, trainer: str = "verl") -> None:
    """``rap_reward.py``: the reward by which ``trainer`` counts what rap counted."""
    reward = Path(__file__).with_name(f"{trainer}_reward.py").read_bytes()
    (folder / "rap_reward.py").write_bytes(reward)


def is_verl(row: Mapping[str, Any]) -> bool:
    """``data_source``, a chat as ``prompt`` and the truth in ``reward_model``."""
    model = row.get("reward_model")
    truth = isinstance(model, Mapping) and model.get("ground_truth") is not None
    return bool(truth and _messages(row.get("prompt")) and row.get("data_source"))


def _verl_notes(folder: Path, most: int) -> list[str]:
    return [
        f"data.train_files={folder / 'train.parquet'} data.image_key=images "
        "data.shuffle=False",
        f"reward.custom_reward_function.path={folder / 'rap_reward.py'}",
        f"+reward.custom_reward_function.reward_kwargs.log={folder}.rewards.jsonl",
        f"between phases: rap reselect SELECTION --rewards {folder}.rewards.jsonl "
        "--out NEXT",
        "rap_reward.py grades as rap scored (rap-select must be installed where verl runs)",
        "+reward.custom_reward_function.reward_kwargs.judge=verl is verl's own reward, "
        "which looks for \\boxed{}: --prompt-template must ask for it",
    ]


EASYR1_SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("images", IMAGES),
        (TRUTH, pa.string()),
        ("rap_id", pa.string()),
        ("rap_reason", pa.string()),
    ]
)


def write_easyr1(rows: Iterable[Row], writing: Writing) -> None:
    """EasyR1's example configuration: ``problem`` is text, ``images`` in every row."""

    def columns(row: Row) -> dict[str, Any]:
        return {
            "problem": row.tagged,
            "answer": row.answer,
            "images": _bytes(row),
            TRUTH: packed(row.answer, row.choices),
            "rap_id": row.id,
            "rap_reason": row.reason,
        }

    _parquet(rows, writing, EASYR1_SCHEMA, columns)
    copy_reward(writing.folder, "easyr1")


def is_easyr1(row: Mapping[str, Any]) -> bool:
    """The keys of its example configuration, and the tags that it replaces by images."""
    images = row.get("images")
    return _tagged_as(row.get("problem"), images) and row.get("answer") is not None


def _easyr1_notes(folder: Path, most: int) -> list[str]:
    return [
        f"data.train_files={folder / 'train.parquet'} data.prompt_key=problem "
        "data.answer_key=rap_truth data.image_key=images data.shuffle=false",
        f"worker.reward.reward_function={folder / 'rap_reward.py'}:compute_score grades as "
        "rap scored (rap-select must be installed where EasyR1 runs); for a reward of your "
        "own data.answer_key=answer",
    ]


# ---------------------------------------------------------------- JSON Lines


def _jsonl(
    rows: Iterable[Row], writing: Writing, columns: Callable[[Row], dict[str, Any] | None]
) -> None:
    """``train.jsonl``; a row that ``columns`` has none for is left out."""
    with open(writing.folder / "train.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            found = columns(row)
            if found is None:
                writing.left_out.append(row.id)
                continue
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
            writing.samples.append(row.id)


def _files(row: Row, writing: Writing) -> list[str]:
    """The images as files, each once; their paths from the export's folder."""
    folder = writing.folder / "images"
    folder.mkdir(exist_ok=True)
    for picture in row.pictures:
        path = folder / picture.name
        if not path.exists():
            path.write_bytes(picture.data)
    return [f"images/{picture.name}" for picture in row.pictures]


def _paths(row: Row, writing: Writing) -> list[str]:
    return [str(writing.seen_as / name) for name in _files(row, writing)]


def write_openrlhf(rows: Iterable[Row], writing: Writing) -> None:
    """``PromptDataset``. It keeps ``datasource`` (one word) and drops the ids."""

    def columns(row: Row) -> dict[str, Any]:
        return {
            "prompt": row.tagged,
            "answer": row.answer,
            "images": _paths(row, writing),
            TRUTH: packed(row.answer, row.choices),
            "datasource": "_".join((row.source or "rap").split()),
            "rap_id": row.id,
            "rap_reason": row.reason,
        }

    _jsonl(rows, writing, columns)
    copy_reward(writing.folder, "openrlhf")


def is_openrlhf(row: Mapping[str, Any]) -> bool:
    """Text with tags, images by path, and a label; a chat is TRL's or verl's."""
    images = _as_list(row.get("images"))
    label = any(row.get(name) is not None for name in ("answer", "label"))
    paths = all(isinstance(image, str) for image in images)
    return label and paths and _tagged_as(row.get("prompt"), images)


def _openrlhf_notes(folder: Path, most: int) -> list[str]:
    return [
        f"--data.prompt_dataset {folder / 'train.jsonl'} --data.input_key prompt "
        "--data.label_key rap_truth --data.image_key images --data.apply_chat_template "
        f"--data.max_images_per_prompt {most}",
        f"--reward.remote_url {folder / 'rap_reward.py'} grades as rap scored (rap-select "
        "must be installed where OpenRLHF runs); for a reward of your own "
        "--data.label_key answer",
        "OpenRLHF drops the ids; the order of the rows is that of rap_export.json",
    ]


def write_swift(rows: Iterable[Row], writing: Writing) -> None:
    """``messages`` without an assistant turn, ``solution`` for the accuracy reward."""

    def columns(row: Row) -> dict[str, Any]:
        return {
            "messages": row.messages(),
            "images": _paths(row, writing),
            "solution": row.answer,
            "choices": list(row.choices),
            "rap_id": row.id,
            "rap_reason": row.reason,
        }

    _jsonl(rows, writing, columns)
    copy_reward(writing.folder, "swift")


def is_swift(row: Mapping[str, Any]) -> bool:
    """``messages`` of texts, with one tag for each of ``images``."""
    turns = _messages(row.get("messages"))
    texts = [turn["content"] for turn in turns]
    whole = all(isinstance(text, str) for text in texts)
    return bool(turns) and whole and _tagged_as("".join(texts), row.get("images"))


def _swift_notes(folder: Path, most: int) -> list[str]:
    return [
        f"swift rlhf --rlhf_type grpo --dataset {folder / 'train.jsonl'} "
        f"--external_plugins {folder / 'rap_reward.py'} --reward_funcs rap",
        "rap_reward.py grades as rap scored (rap-select must be installed where ms-swift "
        "runs); ms-swift's own accuracy reads mathematics only",
    ]


def _sharegpt(row: Mapping[str, Any]) -> dict[str, str] | None:
    """The names of a chat's parts in ``row`` as LLaMA-Factory's ``tags`` have them; None if
    it is no chat that ends with an answer."""
    if turns := _messages(row.get("messages")):
        if turns[-1]["role"] == "assistant":
            return {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            }
    elif turns := _messages(row.get("conversations"), "from", "value"):
        if turns[-1]["from"] == "gpt":
            return {
                "role_tag": "from",
                "content_tag": "value",
                "user_tag": "human",
                "assistant_tag": "gpt",
            }
    return None


def is_llamafactory(row: Mapping[str, Any]) -> bool:
    """A chat that ends with the answer to learn, with images."""
    return _sharegpt(row) is not None and bool(_as_list(row.get("images")))


def describe_llamafactory(row: Mapping[str, Any], file: str) -> str:
    """``dataset_info.json`` for rows that came in in its form."""
    chat = "messages" if _messages(row.get("messages")) else "conversations"
    info = {
        "file_name": file,
        "formatting": "sharegpt",
        "columns": {"messages": chat, "images": "images"},
        "tags": _sharegpt(row),
    }
    return json.dumps({"rap": info}, indent=1) + "\n"


def write_llamafactory(rows: Iterable[Row], writing: Writing) -> None:
    """sharegpt form. SFT on the reference answers or, with completions, DPO on pairs."""
    pairs = writing.completions

    def assistant(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    def columns(row: Row) -> dict[str, Any] | None:
        form: dict[str, Any] = {"messages": row.messages()}
        if pairs is None:
            form["messages"].append(assistant(row.answer))
        elif row.id not in pairs:
            return None
        else:
            right, wrong = map(assistant, pairs[row.id])
            form |= {"chosen": right, "rejected": wrong}
        ids = {"rap_id": row.id, "rap_reason": row.reason}
        return {**form, "images": _files(row, writing), **ids}

    _jsonl(rows, writing, columns)
    names = ["messages", "images", *(("chosen", "rejected") if pairs is not None else ())]
    info: dict[str, Any] = {
        "file_name": "train.jsonl",
        "formatting": "sharegpt",
        "ranking": pairs is not None,
        "columns": {name: name for name in names},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    }
    text = json.dumps({"rap": info}, indent=1)
    (writing.folder / "dataset_info.json").write_text(text + "\n")


def _llamafactory_notes(folder: Path, most: int) -> list[str]:
    return [
        f"dataset_dir: {folder}   dataset: rap",
        "LLaMA-Factory has no GRPO: this is SFT on the reference answers, or DPO where "
        "completions were given (--store)",
    ]


TARGETS: Mapping[str, Target] = {
    "trl": Target(
        "TRL",
        write_trl,
        _trl_notes,
        is_trl,
        upright=True,
        latex=True,
        tags=(),
        in_place=False,
    ),
    "verl": Target(
        "verl",
        write_verl,
        _verl_notes,
        is_verl,
        upright=True,
        groups=True,
        data_source=True,
    ),
    "easyr1": Target(
        "EasyR1",
        write_easyr1,
        _easyr1_notes,
        is_easyr1,
        upright=True,
        turns=False,
        tags=("<image>", "<video>"),
    ),
    "openrlhf": Target(
        "OpenRLHF",
        write_openrlhf,
        _openrlhf_notes,
        is_openrlhf,
        upright=False,
        turns=False,
        groups=True,
        tags=("<image>",),
    ),
    "ms-swift": Target(
        "ms-swift", write_swift, _swift_notes, is_swift, upright=False, latex=True
    ),
    "llamafactory": Target(
        "LLaMA-Factory",
        write_llamafactory,
        _llamafactory_notes,
        is_llamafactory,
        upright=False,
        form="SFT on the reference answers or, with completions, DPO (it has no GRPO)",
        pairs=True,
        tags_in_answer=True,
    ),
}
"""Every trainer by the name that ``--to`` takes: a new one is a writer and a line here."""


def describe() -> str:
    """Which trainer gets what, for a help text: "trl, verl: ...; llamafactory: ..."."""
    forms: dict[str, list[str]] = {}
    for name, target in TARGETS.items():
        forms.setdefault(target.form, []).append(name)
    return "; ".join(f"{', '.join(names)}: {form}" for form, names in forms.items())


def names_of(**having: object) -> str:
    """The trainers whose ``Target`` has these values, in their own spelling."""
    chosen = [
        target.name
        for target in TARGETS.values()
        if all(getattr(target, field) == value for field, value in having.items())
    ]
    return ", ".join(chosen)
