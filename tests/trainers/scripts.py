"""The scripts of the trainers' pages, by the trainers' own options: ``make test-trainers``.

Each command of ``.github/docs/trainers`` has to name options that its trainer has, with
values of their kind. Nothing is trained. EasyR1 is not on PyPI: its keys are compared with
a list written down here from public sources (RESULTS.md).
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / ".github/docs/trainers"
OVERLAYS = Path(os.environ.get("RAP_TRAINERS", ROOT / ".venv-trainers"))


def words_of(page: str, begins: str) -> list[str]:
    """The words of the page's command that begins so."""
    text = (PAGES / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)
    (found,) = [fence for fence in fences if fence.startswith(begins)]
    text = found.replace("\\\n", " ").replace("$PWD", "/data")
    return shlex.split(text.removeprefix(begins))


def inline(page: str, begins: str) -> list[str]:
    """The words of a piece of code in the page's text, from ``begins`` on."""
    text = " ".join((PAGES / page).read_text(encoding="utf-8").split())
    (found,) = re.findall(rf"`({re.escape(begins)}[^`]*)`", text)
    return shlex.split(found.replace("...", "."))


def compose(overrides: list[str]) -> dict:
    """verl's configuration with these overrides, by hydra, as ``main_ppo`` makes it."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from hydra import compose, initialize_config_dir\n"
        "from omegaconf import OmegaConf\n"
        "folder = Path(sys.argv[1], 'verl/verl/trainer/config')\n"
        "with initialize_config_dir(str(folder), version_base=None):\n"
        "    made = compose('ppo_trainer', json.loads(sys.argv[2]))\n"
        "print(json.dumps(OmegaConf.to_container(made)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(OVERLAYS), json.dumps(overrides)],
        env={**os.environ, "PYTHONPATH": str(OVERLAYS / "verl")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_verl_knows_every_key_of_its_page():
    """hydra refuses a key that the configuration does not have (``+`` adds one)."""
    words = words_of("verl.md", "python -m verl.trainer.main_ppo")
    found = compose(words)
    assert found["data"]["image_key"] == "images" and found["data"]["shuffle"] is False
    reward = found["reward"]["custom_reward_function"]
    assert reward["path"] == "/data/phase1/rap_reward.py"
    assert reward["reward_kwargs"] == {"log": "/data/phase1.rewards.jsonl"}
    assert found["actor_rollout_ref"]["rollout"]["n"] == 8
    ppo = compose([*words, *inline("verl.md", "algorithm.adv_estimator=gae")])
    assert ppo["algorithm"]["adv_estimator"] == "gae"
    with pytest.raises(AssertionError, match="Could not override"):
        compose([*words, "data.image_keys=images"])


def test_verl_saves_and_goes_on_where_the_page_says():
    """``global_step_N/data.pt`` holds the place in the old data."""
    folder = OVERLAYS / "verl/verl"
    text = "".join(p.read_text() for p in folder.rglob("*.py") if "trainer" in str(p))
    for name in ("global_step_", "data.pt", "resume_mode", "transfer_queue"):
        assert name in text, name


def parser_of(path: Path) -> dict[str, ast.Call]:
    """{option: its ``add_argument``} of a script."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for word in node.args:
                if isinstance(word, ast.Constant):
                    found[word.value] = node
                elif isinstance(word, ast.JoinedStr):  # of actor and critic in one loop
                    for prefix in ("actor", "critic"):
                        parts = [getattr(v, "value", "") for v in word.values]
                        found[
                            "".join(p if isinstance(p, str) else prefix for p in parts)
                        ] = node
    return found


def used(words: list[str]) -> dict[str, list[str]]:
    """{option: its values} of a command."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


@pytest.mark.parametrize(
    "begins",
    ["python3 -m openrlhf.cli.train_ppo_ray", "    --algo.advantage.estimator gae"],
)
def test_openrlhf_knows_every_option_of_its_page(begins):
    words = words_of("openrlhf.md", begins)
    words = [*begins.split(), *words] if begins.startswith("    ") else words
    known = parser_of(OVERLAYS / "openrlhf/openrlhf/cli/train_ppo_ray.py")
    assert len(known) > 100
    for option, values in used(words).items():
        assert option in known, option
        said = {k.arg: k.value for k in known[option].keywords}
        flag = getattr(said.get("action"), "value", None) == "store_true"
        assert len(values) == (0 if flag else 1), option
        if "choices" in said:
            assert values[0] in ast.literal_eval(said["choices"]), option
        kind = getattr(said.get("type"), "id", "str")
        if kind in ("int", "float"):
            {"int": int, "float": float}[kind](values[0])


def fields_of(folder: Path) -> set[str]:
    """Annotated names of every class below a folder."""
    return {
        item.target.id
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def test_ms_swift_knows_every_option_of_its_page():
    """Its arguments are dataclasses over those of transformers and TRL."""
    import trl
    from transformers import TrainingArguments

    swift = OVERLAYS / "ms-swift/swift"
    known = fields_of(swift / "arguments") | fields_of(swift / "rlhf_trainers")
    known |= fields_of(swift / "trainers")
    for kind in (TrainingArguments, trl.GRPOConfig):
        known |= set(kind.__dataclass_fields__)
    words = words_of("ms-swift.md", "swift rlhf")
    words += inline("ms-swift.md", "--dynamic_sample true")
    for option in used(words):
        assert option.removeprefix("--") in known, option
    assert "rlhf" in (swift / "cli/main.py").read_text()
    algorithm = used(words)["--rlhf_type"]
    assert f"'{algorithm[0]}'" in (swift / "arguments/rlhf_args.py").read_text()


EASYR1 = {
    "data": "train_files val_files prompt_key answer_key image_key shuffle "
    "max_response_length",
    "trainer": "experiment_name n_gpus_per_node val_freq val_before_train",
    "worker": "reward.reward_function reward.reward_function_kwargs.max_response_length "
    "actor.model.model_path",
    "algorithm": "online_filtering filter_key",
}
"""Keys of hiyouga/EasyR1: ``data`` and ``trainer`` as its ``trainer/config.py`` had them,
the others as scripts that call it use them."""


def test_easyr1_knows_every_key_of_its_page():
    known = {f"{part}.{name}" for part, names in EASYR1.items() for name in names.split()}
    words = words_of("easyr1.md", "python3 -m verl.trainer.main")
    for begins in ("trainer.val_freq=-1", "algorithm.online_filtering=true"):
        words += inline("easyr1.md", begins)
    keys = {word.partition("=")[0] for word in words} - {"config"}
    assert keys == known
