"""The shell's help on an ordinary terminal, and what ``rap inspect`` says of images."""

from __future__ import annotations

import io
import json

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from rap.cli.commands import main


def png(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


NAMES = [None, *main.commands]


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_80_columns_and_leaves_nothing_out(name):
    words = ["--help"] if name is None else [name, "--help"]
    text = CliRunner().invoke(main, words, terminal_width=80).output
    assert [line for line in text.splitlines() if len(line) > 80] == []
    if name is None:  # every command's sentence is whole
        listed = text.split("Commands:")[1].strip().splitlines()
        assert [line for line in listed if not line.endswith(".")] == []
        assert [line.split()[0] for line in listed] == list(main.commands)
        return
    params = [p for p in main.commands[name].params if isinstance(p, click.Option)]
    assert [p.name for p in params if not p.help] == []
    assert ("--config" in text) == (name not in ("info", "demo"))
    assert "RANGE" not in text and "FLOAT" not in text


def test_inspect_says_which_images_cannot_be_opened(tmp_path):
    rows = [{"question": "a", "answer": "1", "image": f"{i}.png"} for i in range(40)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"no image" if i == 2 else png((i, 9, 9)))
    for i in (4, 8, 9):  # every other row is looked at
        (tmp_path / f"{i}.png").unlink()
    shown = CliRunner().invoke(main, ["inspect", str(path)]).output
    assert "  images of 2 of 20 rows: image_missing: " in shown and "4.png" in shown
    assert "  images of 1 of 20 rows: image_unreadable: " in shown
    assert "relative to the data's folder, or to --root" in shown
    found = json.loads(CliRunner().invoke(main, ["inspect", str(path), "--json"]).stdout)
    assert found["images"]["rows"] == 20
    assert {c: n for c, (n, _) in found["images"]["unreadable"].items()} == {
        "image_missing": 2,
        "image_unreadable": 1,
    }
    for i in (2, 4, 8, 9):
        (tmp_path / f"{i}.png").write_bytes(png((i, 9, 9)))
    shown = CliRunner().invoke(main, ["inspect", str(path)]).output
    assert "  images of 20 rows, spread over all: each can be read" in shown
