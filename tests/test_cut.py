"""The causal check: a token that is cut is not seen, in any layer, by anything after it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from click.testing import CliRunner  # noqa: E402
from PIL import Image  # noqa: E402
from tiny_models import NAMES, build  # noqa: E402

import rap  # noqa: E402
from rap.cli.commands import main  # noqa: E402
from rap.config import Sampling, ScoreConfig  # noqa: E402
from rap.demo import world  # noqa: E402
from rap.demo.model import WEIGHTS, load_demo_model  # noqa: E402
from rap.errors import RapConfigError, RapInputError, RapModelError  # noqa: E402
from rap.model.cutting import NONE, cut_logits  # noqa: E402
from rap.model.driver import ModelDriver  # noqa: E402
from rap.samples.sample import Sample  # noqa: E402
from rap.scores.completions import HeldCompletions  # noqa: E402
from rap.scoring import causal  # noqa: E402

SAMPLE = Sample(0, "one", "Which number?", "A", (), (), None, {})


def responded(driver: ModelDriver, *texts: str):
    """The same prompt with two responses that differ in one token, and its index."""
    picture = Image.effect_mandelbrot((84, 84), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    prompt = driver.prepare(SAMPLE, [picture])
    ids = driver.encode_response("one two three four five six seven")
    other = list(ids)
    other[2] = next(i for i in driver.encode_response("nine zero") if i != ids[2])
    return [driver.with_response(prompt, x) for x in (ids, other)], prompt.n_prompt + 2


@pytest.mark.parametrize("name", NAMES)
def test_rows_after_a_cut_token_do_not_depend_on_it(name):
    """In every family: exchange the token, and with the cut nothing after it changes."""
    driver = ModelDriver(*build(name))
    (one, two), at = responded(driver)
    rows = list(range(at - 1, len(one)))
    (plain, cut), (plain2, cut2) = (
        cut_logits(driver, x, [NONE, at], rows) for x in (one, two)
    )
    trace = driver.trace([one])[0]
    theirs = driver.head.logits(trace.hidden)[at - one.n_prompt :].float()
    assert torch.allclose(plain[: len(theirs)], theirs, atol=1e-4, rtol=1e-3)
    size = float(plain.abs().max())
    after = slice(2, None)  # rows: before the token, the token itself, those after it
    assert float((cut[after] - cut2[after]).abs().max()) < 1e-5 * max(1.0, size)
    assert float((plain[after] - plain2[after]).abs().max()) > 1e-4 * size
    # what comes before, and the token's own row, are as they were
    assert torch.allclose(plain[:2], cut[:2], atol=1e-5 * max(1.0, size))
    assert float((plain[after] - cut[after]).abs().max()) > 1e-4 * size


def test_a_layer_that_cannot_be_cut_is_said(monkeypatch):
    driver = ModelDriver(*build("qwen2_5_vl"))
    (one, _), at = responded(driver)
    driver.check()
    layer = driver.parts.decoder.layers[0].self_attn
    forward = layer.forward

    def skipping(hidden_states, **options):
        return torch.zeros_like(hidden_states), None

    monkeypatch.setattr(layer, "forward", skipping)
    with pytest.raises(ValueError, match="1 of its .* layers do not attend"):
        cut_logits(driver, one, [at], [at])
    monkeypatch.setattr(layer, "forward", forward)
    assert cut_logits(driver, one, [at], [at]).shape[:2] == (1, 1)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(model, processor, rows, folder of a store with completions and psi)"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cut")
    path = world.write(world.draw(48, seed=21), folder / "data")
    model, processor = load_demo_model()
    rap.score(
        *(model, processor, path),
        evidence="rollouts",
        m1=3,
        m0=3,
        sampling=Sampling(max_new_tokens=48),
        store=folder / "scores",
        progress=False,
    )
    yield model, processor, path, folder / "scores"
    torch.set_num_threads(threads)


def test_what_cutting_the_flagged_token_does_to_the_answer(scored):
    model, processor, path, store = scored
    scores = rap.Scores.load(store)
    report = rap.cut(model, processor, path, scores, samples=6, others=3, seed=1)
    assert len(report.samples) == 6
    order = [s.log_psi for s in report.samples]
    assert order == sorted(order, reverse=True)
    rows = {row["id"]: row for row in scores.table.to_pylist()}
    samples = {s.id: s for s in world.draw(48, seed=21)}
    for s in report.samples:
        row = rows[s.id]
        assert (s.position, s.token, s.log_psi) == (
            row["psi_position"],
            row["psi_token"],
            pytest.approx(row["log_psi"]),
        )
        # the response is a right one, so its answer is the reference
        assert s.answer.strip() == samples[s.id].answer
        assert 1 <= len(s.logp_others) <= 3 and s.logp <= 0 >= s.logp_cut
        assert s.change == abs(s.logp_cut - s.logp)
    mean, low, high = report.difference
    assert mean == pytest.approx(report.change - report.change_others)
    assert low <= mean <= high
    assert report == rap.cut(model, processor, path, scores, samples=6, others=3, seed=1)
    assert report.verdict in str(report)


def test_the_last_mention_of_the_answer_is_what_is_read(scored):
    model, processor, *_ = scored
    driver = ModelDriver(model, processor)
    prompt = driver.prepare(SAMPLE, [Image.new("RGB", (84, 84))])
    ids = driver.encode_response("They are 5 and 12, 12 is larger. The answer is 12.")
    prepared = driver.with_response(prompt, ids)
    start, end = causal._answer(driver, prepared, "12")
    assert driver.tokenizer.decode(prepared.ids[start:end]).strip() == "12"
    text = driver.tokenizer.decode(prepared.ids[prompt.n_prompt : start])
    assert text.rstrip() == "They are 5 and 12, 12 is larger. The answer is"
    # an answer that is nowhere: the last token
    assert causal._answer(driver, prepared, "77") == (len(prepared) - 1, len(prepared))


@pytest.mark.parametrize(
    ("answer", "choices", "names"),
    [
        ("<think>3 * 4</think><answer>\\boxed{12}</answer>", (), ("12",)),
        ("One and two.\n#### 12", (), ("12",)),
        ('["12", "a dozen"]', (), ("12", "a dozen")),
        ("12 cm", ("10 cm", "12 cm"), ("B", "12 cm")),
        ("(B)", ("10 cm", "12 cm"), ("B", "12 cm")),
    ],
)
def test_the_answer_is_looked_for_as_it_is_read(scored, answer, choices, names):
    """Not with the markup of the data set around it."""
    model, processor, *_ = scored
    sample = dataclasses.replace(SAMPLE, answer=answer, choices=choices)
    assert causal._names(sample, ScoreConfig()) == names
    driver = ModelDriver(model, processor)
    prompt = driver.prepare(SAMPLE, [Image.new("RGB", (84, 84))])
    ids = driver.encode_response(f"We see it at once. The answer is {names[-1]}.")
    prepared = driver.with_response(prompt, ids)
    start, end = causal._answer(driver, prepared, *names)
    assert driver.tokenizer.decode(prepared.ids[start:end]).strip() == names[-1]


def test_the_answer_is_a_word_of_what_is_said(scored):
    """Not a part of another word, nor of a special token's name."""
    model, processor, *_ = scored
    driver = ModelDriver(model, processor)
    prompt = driver.prepare(SAMPLE, [Image.new("RGB", (84, 84))])
    end = driver.tokenizer.eos_token_id
    name = driver.tokenizer.convert_ids_to_tokens(end)
    inside = name.strip("<|>/")[-1]  # the last letter of <|im_end|>
    said = f"It is 5. All 15 of them are {inside}, and 15 it is"
    for reference, before in (
        ("5", "It is"),
        (inside, f"{said.partition(inside + ',')[0]}"),
    ):
        ids = [*driver.encode_response(said), end]
        prepared = driver.with_response(prompt, ids)
        start, stop = causal._answer(driver, prepared, reference)
        assert driver.tokenizer.decode(prepared.ids[start:stop]).strip() == reference
        text = driver.tokenizer.decode(prepared.ids[prompt.n_prompt : start])
        assert text.rstrip() == before.rstrip()


def test_an_answer_of_many_bytes_is_read_to_its_last_token():
    driver = ModelDriver(*build("qwen2_5_vl"))
    (one, _), _ = responded(driver)
    ids = driver.encode_response("答 🚀")
    assert len(ids) > 4  # several tokens a character
    prepared = driver.with_response(one, ids)
    start, stop = causal._answer(driver, prepared, "🚀")
    assert stop == len(prepared) and "🚀" in driver.tokenizer.decode(prepared.ids[start:])
    start, stop = causal._answer(driver, prepared, "答")
    assert driver.tokenizer.decode(prepared.ids[start:stop]) == "答"


def test_verdicts_by_the_interval():
    def sample(flagged: float, other: float) -> causal.CutSample:
        others = (-1 - other,)
        return causal.CutSample("a", "x", 9, 0.0, "7", -1, -1 - flagged, others, False, 0.0)

    def verdict(*pairs: tuple[float, float]) -> str:
        return causal.CutReport(tuple(sample(*p) for p in pairs), 0).verdict

    assert "the flagged token more than on another one" in verdict(*[(1.0, 0.1)] * 6)
    assert "less than on another one" in verdict(*[(0.1, 1.0)] * 6)
    either = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
    assert "no more than on another one" in verdict(*either * 2)
    for n in (1, 5):  # their interval leaves 0 out whatever they are
        assert verdict(*[(1.0, 0.1)] * n) == f"{n} of at least 6 samples: too few to say"


def test_the_response_is_the_first_right_completion_with_the_image(monkeypatch):
    """Read for as many samples as are looked at: of the others nothing is kept."""
    said = [
        ("a", "image", 2, True, [2]),
        ("a", "image", 1, True, [1]),
        ("a", "image", 0, False, [0]),
        ("b", "text", 0, True, [3]),
        ("b", "image", 0, None, [4]),
        ("c", "image", 0, True, None),
        ("d", "image", 5, True, [5]),
    ]
    names = ("id", "arm", "number", "correct", "token_ids")
    table = pa.Table.from_pylist([dict(zip(names, one, strict=True)) for one in said])
    scores = SimpleNamespace(completions=HeldCompletions(table))
    asked, read = [], causal._responses
    monkeypatch.setattr(
        causal,
        "_responses",
        lambda scores, wanted: asked.append(wanted.to_pylist()) or read(scores, wanted),
    )
    found = causal._with_responses(scores, pa.table({"id": list("adbc")}), 2)
    assert [next(found)[1], next(found)[1]] == [[1], [5]] and asked == [["a", "d"]]
    assert [response for _, response in found] == [None, None]
    assert asked == [["a", "d"], ["b", "c"]]


def test_scores_that_have_nothing_to_cut(scored, tmp_path):
    model, processor, path, store = scored
    scores = rap.Scores.load(store)
    with pytest.raises(RapConfigError, match="samples = 0"):
        rap.cut(model, processor, path, scores, samples=0)
    with pytest.raises(RapConfigError, match="samples = 2.5: expected an integer >= 1"):
        rap.cut(model, processor, path, scores, samples=2.5)  # it took all of them
    alone = rap.Scores(scores.table)
    with pytest.raises(RapInputError, match="hold no completions"):
        rap.cut(model, processor, path, alone)
    answers = rap.score(
        *(model, processor, path),
        evidence="answer",
        store=tmp_path / "answers",
        progress=False,
    )
    with pytest.raises(RapInputError, match="no psi"):
        rap.cut(model, processor, path, answers)
    other = world.write(world.draw(48, seed=22), tmp_path / "other")
    with pytest.raises(RapInputError, match="not the one that was scored"):
        rap.cut(model, processor, other, scores)


def test_a_prompt_that_was_scored_otherwise_is_refused(scored, monkeypatch):
    model, processor, path, store = scored
    scores = rap.Scores.load(store)
    rows = causal._rows(scores)
    at, more = rows.column_names.index("n_prompt"), pc.add(rows["n_prompt"], 1)
    longer = rows.set_column(at, "n_prompt", more)
    with pytest.raises(RapConfigError, match="seed = -1"):
        rap.cut(model, processor, path, scores, seed=-1)
    monkeypatch.setattr(causal, "_rows", lambda _: longer)
    with pytest.raises(RapInputError, match="tokens here, .* not the prompt that was"):
        rap.cut(model, processor, path, scores)


def test_the_prompts_are_those_of_the_store(scored, tmp_path):
    """Another template and a system prompt, which the store names, are used again."""
    model, processor, _, _ = scored
    path = world.write(world.draw(16, seed=21), tmp_path / "data")
    asked = {"prompt_template": "Look. {question}{choices}", "system_prompt": "Be short."}
    scores = rap.score(
        *(model, processor, path),
        evidence="rollouts",
        m1=3,
        m0=1,
        sampling=Sampling(max_new_tokens=48),
        store=tmp_path / "scores",
        progress=False,
        **asked,
    )
    report = rap.cut(model, processor, path, scores, samples=2)
    assert report.samples
    default = dataclasses.replace(scores, meta={})  # says nothing of its prompts
    with pytest.raises(RapInputError, match="not the prompt that was"):
        rap.cut(model, processor, path, default, samples=2)


def test_another_model_than_the_stores_is_refused(scored):
    model, processor, path, store = scored
    other, _ = load_demo_model()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1.0
    with pytest.raises(RapInputError, match="not of this model: .*weights are others"):
        rap.cut(other, processor, path, rap.Scores.load(store))


def test_a_model_that_cannot_be_driven_is_refused(scored):
    _, processor, path, store = scored
    with pytest.raises(RapModelError):
        rap.cut(torch.nn.Linear(2, 2), processor, path, rap.Scores.load(store))


def test_rap_check_cut(scored):
    _, _, path, store = scored
    numbers = ["--samples", "6", "--others", "2", "--device", "cpu", "--dtype", "float32"]
    command = ["check", str(WEIGHTS), "--cut", str(store), "--data", str(path), *numbers]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "6 samples with the largest psi" in shown.stdout
    assert "the answer depends on the flagged token" in shown.stdout
    found = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert found["ok"] and len(found["cut"]["samples"]) == 6
    assert found["cut"]["verdict"] in shown.stdout
    alone = CliRunner().invoke(main, ["check", str(WEIGHTS), "--cut", str(store)])
    assert alone.exit_code != 0 and "--cut needs --data" in alone.stderr
    useless = CliRunner().invoke(main, ["check", str(WEIGHTS), "--samples", "3"])
    assert useless.exit_code == 2 and "no effect without --cut: --samples" in useless.stderr
