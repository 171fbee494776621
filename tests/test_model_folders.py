"""Paths given as a model: loaded with all their weights, or refused in a sentence."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from model_inputs import built, five, picture
from safetensors.torch import load_file, save_file
from tiny_models import NAMES, build
from transformers import AutoModelForImageTextToText

import rap
from rap.errors import RapConfigError, RapModelError
from rap.model import loading
from rap.model.driver import ModelDriver
from rap.model.identity import weights_sha256
from rap.model.loading import load_model, load_processor

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

ROWS = [
    {"id": f"s{i}", "question": "How many?", "answer": "3", "image": picture(60, 60, i)}
    for i in range(2)
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    model, processor = built("qwen2_5_vl")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_keys(folder: Path, change) -> None:
    """Rewrite the weights with what ``change`` makes of the dictionary of tensors."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


# ---- the whole model, and no other ---------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_save_pretrained_wrote_is_loaded_whole(name, tmp_path):
    """Tied heads and buffers that are not saved are no missing keys."""
    model, processor = built(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, its = load_model(tmp_path, device="cpu")
    assert weights_sha256(loaded) == weights_sha256(model)
    assert type(its) is type(processor)


OLD_KEYS = {  # spelling of the files on the hub -> transformers' now
    "llava": (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    "qwen2_vl": (("model.", "model.language_model."), ("visual.", "model.visual.")),
}


@pytest.mark.parametrize("name", list(OLD_KEYS))
def test_keys_of_older_versions_are_mapped(name, tmp_path):
    model, processor = built(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    new = model.state_dict()
    old = {}
    for key, value in new.items():
        for before, now in OLD_KEYS[name]:
            if key.startswith(now):
                old[before + key.removeprefix(now)] = value.contiguous()
                break
        else:
            old[key] = value.contiguous()
    assert len(old) == len(new) and set(old) != set(new)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = load_model(tmp_path, device="cpu")
    assert weights_sha256(loaded) == weights_sha256(model)


def prefixed(tensors):
    return {f"module.{k}": v for k, v in tensors.items()}


def without_a_layer(tensors):
    return {k: v for k, v in tensors.items() if "model.layers.1." not in k}


def with_more(tensors):
    return tensors | {"v_head.summary.weight": torch.zeros(1, 64)}


def without_head(tensors):
    return {k: v for k, v in tensors.items() if k != "lm_head.weight"}


def shorter_head(tensors):
    return tensors | {"lm_head.weight": tensors["lm_head.weight"][:-3].clone()}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (prefixed, r"57 missing \(lm_head.weight, .*57 unexpected \(module.lm_head.weight"),
        (without_a_layer, r"12 missing \(model.language_model.layers.1.input_layernorm"),
        (without_head, r"1 missing \(lm_head.weight\)"),
        (with_more, r"1 unexpected \(v_head.summary.weight\)"),
        (shorter_head, r"1 of another shape \(lm_head.weight \[460, 64\] for \[463, 64\]"),
    ],
)
def test_weights_of_another_model_are_refused(folder, change, word):
    change_keys(folder, change)
    with pytest.raises(RapModelError, match=word):
        load_model(folder)
    with pytest.raises(RapModelError, match=word):
        rap.score(folder, None, ROWS, progress=False)


# ---- folders that hold no model -------------------------------------------------


def test_case_48_a_run_whose_models_are_in_checkpoints(saved, tmp_path):
    for step in (5, 10, 9):
        shutil.copytree(saved, tmp_path / f"checkpoint-{step}")
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(
        RapModelError, match="but in checkpoint-5, checkpoint-9, checkpoint-10"
    ) as caught:
        load_model(tmp_path)
    assert str(caught.value).endswith(f"Give that folder: {tmp_path / 'checkpoint-10'}")


def test_a_folder_of_the_hubs_cache(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "snapshots" / "0123abc")
    with pytest.raises(RapModelError, match="but in snapshots/0123abc. Give that folder"):
        load_model(tmp_path)


def pointer(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 42\n"
    )


def no_processor(folder):
    for file in folder.glob("*processor*"):
        file.unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"no such thing")


def no_numbers(folder):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}
    head = json.dumps({"a.weight": entry}).encode()
    whole = len(head).to_bytes(8, "little") + head + bytes(4)
    (folder / "model.safetensors").write_bytes(whole)


def a_shard_gone(folder):
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_shard_is_a_folder(folder):
    a_shard_gone(folder)
    (folder / "model-00002-of-00002.safetensors").mkdir()


def weights_of_two_saves(folder):
    shard = "model-00001-of-00001.safetensors"
    shutil.copy(folder / "model.safetensors", folder / shard)
    index = {"weight_map": dict.fromkeys(load_file(folder / shard), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def in_integers(folder):
    def change(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        return tensors | {name: (tensors[name] * 100).to(torch.int8)}

    change_keys(folder, change)


def in_complex_numbers(folder):
    change_keys(
        folder,
        lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] * (1 + 1j)},
    )


def only_gguf(folder):
    (folder / "config.json").unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF\3\0\0\0")


def shards_of_training(folder):
    (folder / "config.json").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()
    (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"")


def text_model(folder):
    (folder / "config.json").write_text('{"model_type": "qwen2"}')


def two_at_once(folder):
    (folder / "adapter_config.json").write_text("{}")


def broken_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (pointer, "model.safetensors is a Git LFS pointer.*git lfs pull"),
        (no_processor, "it has no processor.*save_pretrained"),
        (no_weights, "config.json but no weights"),
        (cut_short, "model.safetensors is damaged: .* bytes, its header says"),
        (no_safetensors, "model.safetensors is no safetensors file"),
        (no_numbers, "model.safetensors is no safetensors file"),
        (a_shard_gone, "not all there: no model-00002-of-00002.safetensors"),
        (a_shard_is_a_folder, "not all there: no model-00002-of-00002.safetensors"),
        (weights_of_two_saves, "holds weights twice: model.safetensors, and"),
        (
            in_integers,
            r"mlp.up_proj.weight as I8 \(1 such.*quantization_config",
        ),
        (in_complex_numbers, r"lm_head.weight as C64 .*quantization_config"),
        (only_gguf, "a GGUF file.*original weights"),
        (shards_of_training, "shards of a training run.*merge-weights"),
        (text_model, "no model of images and text"),
        (two_at_once, "a whole model and an adapter"),
        (broken_config, "cannot be loaded"),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(folder, damage, word):
    damage(folder)
    with pytest.raises(RapModelError, match=word) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and "huggingface.co" not in str(caught.value)


def test_what_is_no_folder(saved, tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF\3\0\0\0")
    for path, word in (
        (tmp_path / "nothing", "no such folder"),
        ("./nothing", "no such folder"),
        ("../a/b/c", "no such folder"),
        ("nothing-of-this-name", "no such folder here, and from the hub"),
        (gguf, "a GGUF file"),
        (saved / "config.json", "a file. Give the folder that it lies in"),
    ):
        with pytest.raises(RapModelError, match=f"^model .*cannot be loaded: {word}"):
            load_model(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RapModelError, match="the folder is empty"):
        load_model(tmp_path / "empty")


def test_a_tokenizer_where_a_processor_should_be(folder, monkeypatch):
    """AutoProcessor gives the tokenizer of a model without an image processor."""
    import transformers

    tokenizer = built("qwen2_5_vl")[1].tokenizer
    monkeypatch.setattr(
        transformers.AutoProcessor, "from_pretrained", lambda *a, **k: tokenizer
    )
    with pytest.raises(RapModelError, match=f"^model {folder}: processor = a .*Tokenizer"):
        load_processor(folder)


# ---- adapters --------------------------------------------------------------------


@cache
def adapter():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "k_proj", "lm_head"], init_lora_weights=False
    )
    return peft.get_peft_model(build("qwen2_5_vl")[0], config)


@pytest.fixture
def on_base(saved, tmp_path) -> Path:
    """A folder with an adapter alone, as a trainer saves it; its base is ``saved``."""
    path = tmp_path / "adapter"
    adapter().save_pretrained(path, save_embedding_layers=False)
    base(path, str(saved))
    return path


def base(path: Path, name: str | None) -> None:
    file = path / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": name}
    file.write_text(json.dumps(config))


def test_an_adapter_is_loaded_onto_its_base(on_base, saved):
    loaded, processor = load_model(on_base, device="cpu")
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"  # that of the base
    ours = ModelDriver(loaded, processor)
    theirs = ModelDriver(adapter(), built("qwen2_5_vl")[1])
    assert torch.equal(ours.head.weight, theirs.head.weight)
    for prepared in five(ours)[:2]:
        a, b = ours.trace([prepared])[0], theirs.trace([prepared])[0]
        assert torch.equal(a.hidden, b.hidden) and torch.equal(a.q, b.q)
    plain = ModelDriver(*load_model(saved, device="cpu"))
    assert not torch.equal(plain.trace([prepared])[0].q, b.q)


@pytest.fixture
def on_quantised(on_base, saved, tmp_path) -> Path:
    """The adapter, its base a folder whose config names a quantisation."""
    folder = tmp_path / "quantised"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    known = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(config | known))
    base(on_base, str(folder))
    return on_base


def test_an_adapter_on_a_quantised_base_is_placed_while_it_is_loaded(
    on_quantised, saved, monkeypatch
):
    """Quantised weights cannot be moved afterwards: bitsandbytes refuses ``model.to``."""
    asked = {}

    def loaded(name: str, options: dict) -> torch.nn.Module:
        asked.update(options, name=name)
        model = AutoModelForImageTextToText.from_pretrained(saved, dtype="auto")
        model.name_or_path = name
        monkeypatch.setattr(
            type(model), "to", lambda *_: pytest.fail("quantised weights were moved")
        )
        return model

    monkeypatch.setattr(loading, "_model", loaded)
    model, _ = load_model(on_quantised, device="cpu")
    assert asked["device_map"] == {"": "cpu"} and asked["name"].endswith("quantised")
    assert type(model).__name__ == "PeftModel"


def test_an_adapter_on_a_quantised_base_is_not_quantised_twice(on_quantised):
    with pytest.raises(RapConfigError, match=r"'4bit': .*/quantised is quantised already"):
        load_model(on_quantised, quantize="4bit", device="cpu")


def test_an_adapter_without_its_base(on_base):
    base(on_base, "some/base-model-that-is-not-here")
    with pytest.raises(RapModelError, match="an adapter of some/base.*hf download some/"):
        load_model(on_base)
    base(on_base, "/no/such/folder")
    with pytest.raises(RapModelError, match="/no/such/folder: .*no such folder"):
        load_model(on_base)
    base(on_base, None)
    with pytest.raises(RapModelError, match="names no base_model_name_or_path"):
        load_model(on_base)


def test_an_adapter_of_another_model_is_refused(on_base):
    file = on_base / "adapter_model.safetensors"
    tensors = {k.replace("layers.1", "layers.7"): v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RapModelError, match=r"4 missing \(.*layers.1.*4 unexpected"):
        load_model(on_base)


def test_an_adapter_that_is_a_pickle_is_not_read(on_base):
    file = on_base / "adapter_model.safetensors"
    torch.save(load_file(file), on_base / "adapter_model.bin")
    file.unlink()
    with pytest.raises(RapConfigError, match=r"adapter_model.bin.*--allow-pickle"):
        load_model(on_base)


def test_an_adapter_needs_peft(on_base, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RapConfigError, match="pip install peft"):
        load_model(on_base)


# ---- paths in Python ---------------------------------------------------------------


def test_case_26_a_path_is_a_model(saved, monkeypatch):
    """The same rows, and the same fingerprint however the path is written."""
    options = {"evidence": "answer", "progress": False}
    monkeypatch.chdir(saved.parent)
    given = [("./model", None), ("model", None), (saved, None), ("model", "./model")]
    given += [("model", load_processor(saved)), load_model(saved)]
    found = [rap.score(m, p, ROWS, **options) for m, p in given]
    models = [scores.meta["fingerprint"]["model"] for scores in found]
    assert all(model == models[0] for model in models)
    assert set(models[0]) == {"class", "weights_sha256", "processor", "processor_sha256"}
    for scores in found[1:]:
        columns = ["logp_answer1", "kl", "log_psi"]
        assert scores.table.select(columns).equals(found[0].table.select(columns))
    chosen = rap.select("model", None, ROWS, budget=0.5, **options)
    assert chosen.table.num_rows == 2


def test_a_device_map_is_transformers_own(saved, monkeypatch) -> None:
    """Without a GPU all layers are on the CPU; the scores are those of any load."""
    pytest.importorskip("accelerate")
    loaded = [load_model(saved, device="cpu"), load_model(saved, device_map="auto")]
    assert {str(p.device) for p in loaded[1][0].parameters()} == {"cpu"}
    found = [
        rap.score(*pair, ROWS, evidence="answer", progress=False).table.drop_columns(
            ["seconds"]
        )
        for pair in loaded
    ]
    assert found[0].equals(found[1])
    monkeypatch.setattr("rap.errors._installed", lambda name: name != "accelerate")
    with pytest.raises(RapConfigError, match="device_map = 'auto' needs accelerate"):
        load_model(saved, device_map="auto")


OPTIONS = {"evidence": "answer", "progress": False}


def scores_of(scores) -> list:
    return scores.table.select(["logp_answer1", "kl", "status"]).to_pylist()


def test_case_26_a_name_and_the_data_are_enough(saved):
    whole = rap.score(*load_model(saved, device="cpu"), ROWS, **OPTIONS)
    assert scores_of(rap.score(saved, data=ROWS, **OPTIONS)) == scores_of(whole)
    named = rap.score(str(saved), data=ROWS, dtype="float32", device="cpu", **OPTIONS)
    assert scores_of(named) == scores_of(whole)
    loading = {"dtype": "bfloat16"}
    half = rap.score(str(saved), data=ROWS, loading=loading, dtype="float32", **OPTIONS)
    assert scores_of(half) == scores_of(whole)  # what is given by itself wins
    chosen = rap.select(str(saved), data=ROWS, budget=0.5, device="cpu", **OPTIONS)
    assert chosen.table.num_rows == 2
    assert "can be scored with" in str(rap.check(saved, device="cpu"))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: rap.score(m), r"rap.score: no data set: .*data=\.\.\."),
        (lambda m: rap.select(m, budget=0.1), "rap.select: no data set"),
        (lambda m: rap.plan(m, store="x"), "rap.plan: no data set"),
        (lambda m: rap.score(m, None, ROWS, data=ROWS), "given twice"),
        (lambda m: rap.score(m, data=ROWS, dtype="int8"), "dtype = 'int8': expected auto"),
        (lambda m: rap.score(m, data=ROWS, loading={"typ": 1}), "typ: loading has no such"),
        (
            lambda m: rap.score(m, data=ROWS, quantize="2bit"),
            "quantize = '2bit'.*4bit, 8bit",
        ),
        (lambda m: rap.check(m, revision="v1"), "revision = 'v1': .* is a folder"),
        (lambda m: rap.score(None, data=ROWS, dtype="auto"), "dtype: for a model .* None"),
    ],
)
def test_what_a_name_and_the_data_lack_is_said(saved, call, words):
    with pytest.raises(RapConfigError, match=words):
        call(str(saved))


def test_how_to_load_is_refused_beside_a_loaded_model():
    model, processor = built("qwen2_5_vl")
    for call in (
        lambda: rap.select(model, processor, ROWS, quantize="4bit", device_map="auto"),
        lambda: rap.score(model, processor, ROWS, loading={"device": "cpu"}),
        lambda: rap.check(model, processor, dtype="float32"),
    ):
        with pytest.raises(RapConfigError, match="not for a loaded Qwen2_5_VL"):
            call()


def test_a_revision_goes_to_the_hub(monkeypatch):
    """Which is not asked here: model and processor are asked for with it."""
    import transformers

    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options.get("revision")))
        raise OSError("offline")

    for kind in (transformers.AutoProcessor, transformers.AutoModelForImageTextToText):
        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    for call in (
        load_processor,
        lambda name, revision: load_model(name, revision=revision),
    ):
        with pytest.raises(RapModelError, match="offline"):
            call("org/name", revision="v1")
    assert asked == [("org/name", "v1")] * 2


def test_a_processor_is_loaded_as_its_model_is(monkeypatch):
    """The revision of the model's repository, and its flag for code of its own."""
    asked = []
    monkeypatch.setattr(loading, "load_model", lambda name, **options: ("model", "own"))
    monkeypatch.setattr(
        *(loading, "load_processor"), lambda name, **options: asked.append((name, options))
    )
    loading.opened("org/a", "org/a", revision="v1", trust_remote_code=True)
    loading.opened("org/a", "org/b", revision="v1")
    assert asked == [
        ("org/a", {"trust_remote_code": True, "revision": "v1"}),
        ("org/b", {"trust_remote_code": False}),
    ]
    assert loading.opened("org/a", None, revision="v1") == ("model", "own")


def test_quantising_needs_bitsandbytes(saved, monkeypatch):
    monkeypatch.setattr("rap.errors._installed", lambda name: name != "bitsandbytes")
    with pytest.raises(RapConfigError, match="'4bit' needs bitsandbytes: pip install bits"):
        load_model(saved, quantize="4bit")
    config = json.loads((saved / "config.json").read_text())
    assert "quantization_config" not in config


def test_what_is_quantised_is_not_quantised_again(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RapConfigError, match="is quantised already"):
        load_model(folder, quantize="8bit")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of casts on a CPU
def test_quantised_while_it_is_loaded(saved, bits):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install it")
    model, processor = load_model(saved, device="cpu", quantize=bits)
    layers = {type(m).__name__ for m in model.model.language_model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in layers
    assert type(model.lm_head) is torch.nn.Linear
    found = scores_of(rap.score(model, processor, ROWS, **OPTIONS))
    whole = scores_of(rap.score(saved, data=ROWS, device="cpu", **OPTIONS))
    for a, b in zip(found, whole, strict=True):
        assert a["status"] == "scored" and a != b
        assert abs(a["logp_answer1"] - b["logp_answer1"]) < 0.15 * abs(b["logp_answer1"])
