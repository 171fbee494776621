"""The likeliest wrong calls of what needs a model: each is refused by an error of ours
whose one sentence names the mend, or is taken as it was meant."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")
import datasets
import torch
from PIL import Image

import rap
from rap.cli.commands import main
from rap.config import EVIDENCE, Sampling
from rap.demo.model import WEIGHTS
from rap.demo.tiny import tiny_qwen2_5_vl
from rap.errors import RapConfigError, RapInputError, RapModelError, RapStoreError
from rap.model.loading import load_model

QUIET = {"progress": False, "evidence": "answer", "allow_degenerate": True}
SHORT = Sampling(max_new_tokens=3)


def rows_of(**columns) -> list[dict]:
    """Six rows; ``columns`` replace theirs."""
    rng = np.random.default_rng(0)
    return [
        {
            "question": f"How many dots, {i}?",
            "answer": str(i % 5),
            "image": Image.fromarray(rng.integers(0, 256, (56, 56, 3), np.uint8)),
        }
        | columns
        for i in range(6)
    ]


@pytest.fixture(scope="module")
def m():
    """(model, processor, rows), small and with random weights."""
    return (*tiny_qwen2_5_vl(), rows_of())


def select(*given, **options):
    return rap.select(*given, **{**QUIET, **options})


def named(**options):
    """By the demo's name."""
    return select("demo", data=rows_of(), **options)


def of(m, **options):
    return select(*m, **options)


def judged(m, returned):
    """With a reward function that returns this."""
    options = {"evidence": "rollouts", "sampling": SHORT}

    def reward(completions, **columns):
        return returned * len(completions) if isinstance(returned, list) else returned

    return of(m, reward=reward, **options)


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return rows_of()[i]


def changed(model, change):
    """A copy on which ``change`` was called."""
    change(made := copy.deepcopy(model))
    return made


def order(what: str) -> tuple[type[Exception], str]:
    return (RapConfigError, rf"is a {what}; the order is rap\.select\(model, processor, ")


LOADED = r"expected a loaded Hugging Face model, as AutoModelForImageTextToText\.from_pre"
OWN = r"Pass the model's own processor: AutoProcessor\.from_pretrained"
NO_DATA = r"no data set.*rap\.select\(model, processor, dataset\), or rap\.select\(\"\./"
LIMIT = r"rap\.samples\.open_samples\(data, limit=1000\)"
RESULT = "it returned .*; expected a list with a number or None a completion"

CALLS = {
    # model, processor, data: what stands where
    "no data": (lambda m: select(m[0], m[1]), (RapConfigError, NO_DATA)),
    "data as the processor": (
        lambda m: select(m[0], m[2]),
        (RapConfigError, r"second argument, here a list, is the processor.*data=\.\.\."),
    ),
    "a folder and a path": (
        lambda m: select("demo", "data.jsonl"),
        (RapConfigError, r"second argument, here a str, is the processor"),
    ),
    "data first": (lambda m: select(m[2], m[0], m[1]), order("processor")),
    "processor first": (lambda m: select(m[1], m[2], m[0]), order("model")),
    "data twice": (lambda m: of(m, data=m[2]), (RapConfigError, "twice, also as data=")),
    "model and processor turned": (
        lambda m: select(m[1], m[0], m[2]),
        (RapModelError, f"model = a Qwen2_5_VLProcessor: {LOADED}"),
    ),
    "no model": (
        lambda m: select(None, m[1], m[2]),
        (RapConfigError, "needs a loaded Hugging Face model or its path"),
    ),
    # the model
    "a class": (
        lambda m: select(type(m[0]), *m[1:]),
        (RapModelError, f"the class Qwen2_5_VLFor.*, not an object of it: {LOADED}"),
    ),
    "a state dict": (
        lambda m: select(m[0].state_dict(), *m[1:]),
        (RapModelError, f"model = an OrderedDict: {LOADED}"),
    ),
    "a layer": (
        lambda m: select(torch.nn.Linear(2, 2), *m[1:]),
        (RapModelError, f"model = a Linear: {LOADED}"),
    ),
    "a model of text": (
        lambda m: select(m[0].model.language_model, *m[1:]),
        (RapModelError, "get_decoder.*through AutoModelForImageTextToText"),
    ),
    "a model without its head": (
        lambda m: select(m[0].model, *m[1:]),
        (RapModelError, "no floating-point weight.*through AutoModelForImageTextToText"),
    ),
    "on the meta device": (
        lambda m: select(copy.deepcopy(m[0]).to("meta"), *m[1:]),
        (RapModelError, r"weights without values.*Load them: from_pretrained\(\.\.\.\)"),
    ),
    "weights that are NaN": (
        lambda m: select(
            changed(m[0], lambda x: x.lm_head.weight.data.mul_(float("nan"))), *m[1:]
        ),
        (RapModelError, "not finite.*load another one"),
    ),
    "options of loading beside it": (
        lambda m: of(m, dtype="bfloat16"),
        (RapConfigError, "dtype: for a model that is given by a folder or hub name"),
    ),
    # the processor
    "no processor": (
        lambda m: select(m[0], data=m[2]),
        (RapModelError, r"processor = None.*AutoProcessor\.from_pretrained"),
    ),
    "a tokenizer": (
        lambda m: select(m[0], m[1].tokenizer, m[2]),
        (RapModelError, f"a tokenizer prepares no images.*{OWN}"),
    ),
    "an image processor": (
        lambda m: select(m[0], m[1].image_processor, m[2]),
        (RapModelError, f"an image processor makes no prompts.*{OWN}"),
    ),
    "a processor's class": (
        lambda m: select(m[0], type(m[1]), m[2]),
        (RapModelError, f"the class Qwen2_5_VLProcessor, not an object of it.*{OWN}"),
    ),
    # a model by its name
    "no such folder": (
        lambda m: select("./nowhere", data=m[2]),
        (RapModelError, "nowhere: cannot be loaded: no such folder"),
    ),
    "its weights": (
        lambda m: select(WEIGHTS / "model.safetensors", data=m[2]),
        (RapModelError, "a file. Give the folder that it lies in"),
    ),
    "dtype of a short name": (
        lambda m: named(dtype="fp16"),
        (RapConfigError, "dtype = 'fp16': expected auto, float32, bfloat16 or float16"),
    ),
    "dtype of integers": (
        lambda m: named(dtype=torch.int8),
        (RapConfigError, "dtype = torch.int8: expected auto, float32"),
    ),
    "dtype by its old name": (
        lambda m: named(torch_dtype="bfloat16"),
        (RapConfigError, "did you mean 'dtype'"),
    ),
    "a device unknown": (
        lambda m: named(device="gpu"),
        (RapConfigError, "--device gpu: expected auto, cpu, cuda, cuda:1"),
    ),
    "a device by number": (
        lambda m: named(device="cuda:one"),
        (RapConfigError, "--device cuda:one: expected auto, cpu, cuda, cuda:1"),
    ),
    "quantised in the old way": (
        lambda m: named(load_in_4bit=True),
        (RapConfigError, 'no such option; give quantize="4bit"'),
    ),
    "quantised by a number": (
        lambda m: named(quantize=4),
        (RapConfigError, "quantize = 4: expected one of 4bit, 8bit"),
    ),
    "an attention unknown": (
        lambda m: named(attn_implementation="flash"),
        (RapModelError, "cannot be loaded: .*attn_implementation"),
    ),
    # the data
    "no rows": (lambda m: select(*m[:2], []), (RapInputError, "empty: 0 rows")),
    "texts": (
        lambda m: select(*m[:2], ["a", "b"]),
        (RapInputError, "none of 2 rows can be read.*row is str, not a dict"),
    ),
    "one row": (
        lambda m: select(*m[:2], m[2][0]),
        (RapInputError, "data set is dict; expected a datasets.Dataset, a list of dicts"),
    ),
    "all splits": (
        lambda m: select(
            *m[:2], datasets.DatasetDict(a=datasets.Dataset.from_list([{"a": 1}]))
        ),
        (RapInputError, r"choose one split: dataset\[\.\.\.\] with one of a"),
    ),
    "a generator": (lambda m: select(*m[:2], iter(m[2])), (RapInputError, LIMIT)),
    "a loader": (
        lambda m: select(*m[:2], torch.utils.data.DataLoader(Items(), collate_fn=list)),
        (RapInputError, LIMIT),
    ),
    "what the processor made": (
        lambda m: select(*m[:2], m[1](text=["a"], return_tensors="pt")),
        (RapInputError, 'no column for question.*columns={"question": "..."}'),
    ),
    "a name of the hub": (
        lambda m: select(*m[:2], "someone/something"),
        (
            RapInputError,
            r"fetches nothing unless.*open_samples\(\.\.\., allow_network=True",
        ),
    ),
    "no images": (
        lambda m: select(*m[:2], [{"question": "a", "answer": "b"}]),
        (RapInputError, 'no column for images.*columns={"images": "..."}'),
    ),
    "images that are None": (
        lambda m: select(*m[:2], rows_of(image=None)),
        (RapInputError, "0 of 6 rows can be used: 6 text_only"),
    ),
    "image files that are not there": (
        lambda m: select(*m[:2], rows_of(image="no/such.png"), root="."),
        (RapInputError, r"image_missing.*relative to the data's folder, or to root="),
    ),
    "image files without a folder": (
        lambda m: select(*m[:2], rows_of(image="a.png")),
        (RapInputError, "name the one that holds the images with root="),
    ),
    "images by URL": (
        lambda m: select(*m[:2], rows_of(image="https://example.org/a.png")),
        (RapInputError, "url_refused.*rap reads no URL"),
    ),
    "images that are normalised": (
        lambda m: select(*m[:2], rows_of(image=torch.full((3, 56, 56), -1.5))),
        (RapInputError, "expected 0 to 1, before any normalisation"),
    ),
    "no answers": (
        lambda m: select(*m[:2], rows_of(answer=None)),
        (RapInputError, "0 of 6 rows can be used: 6 bad_answer.*answer is missing"),
    ),
    "one id for all": (
        lambda m: select(*m[:2], rows_of(id="a")),
        (RapInputError, r"id 'a' is there twice.*or none with \{\"id\": \"\"\}"),
    ),
    "an image token in the text": (
        lambda m: select(*m[:2], rows_of(question="<|image_pad|> What?")),
        (RapInputError, r"the text holds the placeholder '<\|image_pad\|>'"),
    ),
    "columns turned": (
        lambda m: select(*m[:2], [{"frage": "a"}], columns={"frage": "question"}),
        (RapInputError, 'the role comes first: {"question": "frage"}'),
    ),
    "columns as a list": (
        lambda m: of(m, columns=["question", "answer"]),
        (RapInputError, 'expected a dict of role and column, as in {"question": "probl'),
    ),
    "columns as on the shell": (
        lambda m: of(m, columns="question=problem"),
        (RapInputError, "expected a dict of role and column"),
    ),
    # options
    "budget of 93": (lambda m: of(m, budget=93), (RapConfigError, "give 0.93.*93/n")),
    "budget of 9.3": (lambda m: of(m, budget=9.3), (RapConfigError, "give 0.093")),
    "budget as text": (
        lambda m: of(m, budget="0.1"),
        (RapConfigError, "give the number 0.1"),
    ),
    "how many": (lambda m: of(m, k=100), (RapConfigError, "budget=, a share of the sam")),
    "an option of sampling": (
        lambda m: of(m, max_new_tokens=7),
        (RapConfigError, r'a part of sampling: sampling=\{"max_new_tokens": 7\}'),
    ),
    "an option of ACE": (
        lambda m: of(m, heads="max"),
        (RapConfigError, r'a part of ace: ace=\{"heads": \'max\'\}'),
    ),
    "an option of choosing, scoring": (
        lambda m: rap.score(*m, budget=0.1, progress=False),
        (RapConfigError, "budget: rap.score has no such option; rap.choose and rap.sele"),
    ),
    "settings as a dict": (
        lambda m: select(*m, {"evidence": "answer"}),
        (RapConfigError, r"arguments: rap\.select\(\.\.\., evidence='answer'\)"),
    ),
    "settings of choosing": (
        lambda m: select(*m, rap.ChooseConfig(budget=0.1)),
        (RapConfigError, "this is a ChooseConfig; .*rap.select as choose="),
    ),
    "store by place": (
        lambda m: rap.score(*m, "scores/"),
        (RapConfigError, "this is a str; the folder of the scores is store='scores/'"),
    ),
    "evidence misspelt": (
        lambda m: of(m, evidence="rollout"),
        (RapConfigError, "expected one of \\('rollouts', 'answer', 'logits', 'cascade'"),
    ),
    "budget of the paper's rule": (
        lambda m: of(m, rule="paper", budget=0.1),
        (RapConfigError, "expected None with rule='paper'"),
    ),
    "a template without the question": (
        lambda m: of(m, prompt_template="{problem}"),
        (RapConfigError, r"expected a text that holds \{question\}"),
    ),
    "half a completion": (
        lambda m: of(m, evidence="rollouts", m1=2.5),
        (RapConfigError, "m1 = 2.5: expected an integer"),
    ),
    "store that is a file": (
        lambda m: of(m, store=__file__),
        (RapStoreError, "cannot be made: File exists|Not a directory"),
    ),
    "a server without its engine": (
        lambda m: of(m, base_url="http://127.0.0.1:9"),
        (RapConfigError, "it is for engine 'openai'"),
    ),
    # rewards
    "a reward by name": (
        lambda m: of(m, evidence="rollouts", reward="accuracy"),
        (RapConfigError, "expected a function as TRL's trainers take it"),
    ),
    "a reward that nobody calls": (
        lambda m: of(m, reward=lambda completions, **columns: [1.0]),
        (RapConfigError, "grades no completion.*score with evidence 'rollouts' or"),
    ),
    "a reward of two arguments": (
        lambda m: of(m, evidence="rollouts", reward=lambda prompt, completion: 1.0),
        (RapConfigError, r"must take \*\*kwargs"),
    ),
    "a list with a wrong reward": (
        lambda m: of(m, evidence="rollouts", reward=[lambda **_: [1.0], judged]),
        (RapConfigError, r"must take \*\*kwargs"),
    ),
    "more weights than functions": (
        lambda m: of(
            m, evidence="rollouts", reward=[lambda **_: [1.0]], reward_weights=[1, 2]
        ),
        (RapConfigError, "reward_weights has 2 numbers for 1 reward functions"),
    ),
    "a weight that is none": (
        lambda m: of(
            m, evidence="rollouts", reward=lambda **_: [1.0], reward_weights=["1"]
        ),
        (RapConfigError, r"reward_weights = \['1'\]: expected a list of finite numbers"),
    ),
    "weights of nothing": (
        lambda m: of(m, evidence="rollouts", reward_weights=[1.0]),
        (RapConfigError, "reward_weights has 1 numbers for 0 reward functions"),
    ),
    "a reward of one number": (lambda m: judged(m, 1.0), (RapInputError, RESULT)),
    "a reward of nothing": (lambda m: judged(m, None), (RapInputError, RESULT)),
    "a reward of words": (lambda m: judged(m, ["yes"]), (RapInputError, RESULT)),
    "a reward of dicts": (lambda m: judged(m, [{"score": 1.0}]), (RapInputError, RESULT)),
    "too few rewards": (
        lambda m: judged(m, []),
        (
            RapInputError,
            r"'.*judged.*reward': it returned 0 rewards for \d+ completions?; expect",
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_names_the_mend(m, name):
    call, (kind, said) = CALLS[name]
    with pytest.raises(kind, match=said) as caught:
        call(m)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def kept(selection) -> list[str]:
    return selection.ids


@pytest.mark.parametrize("option", ["by", "coverage_by"])
def test_a_column_that_is_not_there_is_told_before_the_model_runs(m, tmp_path, option):
    """Without a store hours of scoring were lost to a typing error."""
    options = {"rule": "learn", "budget": 0.5, "store": tmp_path / "scores"}
    with pytest.raises(RapConfigError, match=f"{option} = 'answer_': .*mean 'answer'"):
        of(m, **options, **{option: "answer_"})
    assert not (tmp_path / "scores").exists()
    for there in ("answer", "source", "c1"):
        assert len(of(m, **options, **{option: there})) == 3


def test_a_model_in_train_mode_is_scored_in_evaluation_mode_and_left_in_it(m):
    model, processor, rows = m
    for module in (training := copy.deepcopy(model)).modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    training.model.language_model.layers[0].self_attn.attention_dropout = 0.5
    training.train()
    found = select(training, processor, rows, budget=0.5)
    assert training.training and training.model.training
    wanted = select(model, processor, rows, budget=0.5)
    assert found.table["p_answer1"].equals(wanted.table["p_answer1"])


def test_the_models_own_generation_settings_do_nothing(m):
    """Beams, a low temperature, ``top_k=1``: rollouts would be greedy."""
    model, processor, rows = m
    greedy = copy.deepcopy(model)
    config = greedy.generation_config
    config.do_sample, config.temperature, config.top_k = False, 0.01, 1
    config.num_beams, config.max_length, config.max_new_tokens = 3, 3, 1
    texts = [
        rap.score(
            *(given, processor, rows),
            **QUIET | {"evidence": "rollouts", "m1": 2, "m0": 1, "sampling": SHORT},
        ).rollouts["text"]
        for given in (model, greedy)
    ]
    assert texts[0].equals(texts[1]) and len(set(texts[0].to_pylist())) > 3


@pytest.mark.parametrize(
    "how",
    ["float64", "float16", "compiled", "DataParallel", "torch data set", "float images"],
)
def test_what_was_meant_is_taken(m, how):
    model, processor, rows = m
    given = {
        "float64": lambda: copy.deepcopy(model).double(),
        "float16": lambda: copy.deepcopy(model).half(),
        "compiled": lambda: torch.compile(model),
        "DataParallel": lambda: torch.nn.DataParallel(model),
    }.get(how, lambda: model)()
    data = Items() if how == "torch data set" else rows
    if how == "float images":
        image = np.full((56, 56, 3), 0.5, np.float32)
        data = rows_of(image=image)
    assert len(select(given, processor, data, budget=0.5)) == 3


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.float32),  # as `rap demo` runs it, not the float16 of its file
    ],
    ids=str,
)
def test_the_demos_model_goes_by_its_name_and_a_dtype_by_torchs(given, dtype):
    model, _ = load_model("demo", dtype=given, device=torch.device("cpu"))
    assert model.dtype == dtype and model.config.model_type == "qwen2_5_vl"


def test_the_demos_name_is_a_folder_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("demo")
    with pytest.raises(RapModelError, match="the folder is empty"):
        named()


SHELL = {
    ("score", "{rows}"): "--store",
    ("score", "{rows}", "--store", "{new}"): "give --model",
    ("score", "--model", "demo", "--store", "{new}"): "Missing argument 'DATA'",
    ("score", "demo", "--model", "{rows}", "--store", "{new}"): "demo: no such file",
    ("score", "{rows}", "--model", "{rows}", "--store", "{new}"): "Give the folder that it",
    ("score", "{rows}", "--model", "nowhere/", "--store", "{new}"): "no such folder",
    ("score", "{store}", "--model", "demo", "--store", "{new}"): "give the data set itself",
    ("select", "{rows}"): "--model",
    ("select", "{rows}", "--model", "demo", "--budget", "93"): "93/n",
    ("select", "{rows}", "--model", "demo", "--k", "5"): "No such option",
    ("select", "{rows}", "--model", "demo"): "give --out DIR or --store DIR",
    (
        *("select", "{rows}", "--model", "demo", "--out", "{new}"),
        *("--evidence", "answer", "--by", "answer_"),
    ): "by = 'answer_': the data set has no such column; did you mean 'answer'?",
    ("score", "{rows}", "--store", "{new}", "--model", "demo", "--device", "gpu"): "cuda:1",
    (
        "score",
        "{rows}",
        "--store",
        "{new}",
        "--model",
        "demo",
        "--reward",
        "f",
    ): "MODULE:FU",
    (
        "score",
        "{rows}",
        "--store",
        "{new}",
        "--model",
        "demo",
        "--set",
        "top_k=3",
    ): "sampli",
    ("check", "{rows}"): "Give the folder that it lies in",
    ("check", "demo", "--cut", "{new}"): "--cut needs --data",
    ("train", "{rows}", "--out", "{new}"): "--model",
    ("train", "{rows}", "--model", "demo", "--out", "{new}", "--algorithm", "ppo"): "PPO",
    ("inspect", "{rows}", "--columns", "problem"): "expected NAME=VALUE",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    Image.new("RGB", (56, 56)).save(folder / "a.png")
    row = '{"question": "How many?", "answer": "3", "image": "a.png"}\n'
    (folder / "rows.jsonl").write_text(row * 6)
    select("demo", data=folder / "rows.jsonl", store=folder / "store", budget=0.5)
    return {
        "rows": folder / "rows.jsonl",
        "store": folder / "store",
        "new": folder / "new",
    }


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_a_wrong_command_names_the_mend(place, words, monkeypatch):
    monkeypatch.chdir(place["rows"].parent)
    done = CliRunner().invoke(main, [word.format(**place) for word in words])
    text = " ".join(done.output.split())
    assert done.exit_code in (1, 2), text
    assert SHELL[words] in text and "fault in rap" not in text
    assert not place["new"].exists()  # nothing was scored


def test_the_evidence_is_named_as_the_shell_names_it():
    assert set(EVIDENCE) == {"rollouts", "answer", "logits", "cascade"}
