"""What the site takes from elsewhere in the repository, and from the package itself.

Files that lie where GitHub shows them become pages; links between them are followed to
where they went, and what has no page (source files) loses its link, so that
``mkdocs build --strict`` checks every link there is. Settings and the shell's help are read
from the package, which must be importable.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

TAKEN = {
    "README.md": "index.md",
    "rap/METHOD.md": "method.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    ".github/CHANGELOG.md": "changelog.md",
    "tests/trainers/RESULTS.md": "results/trainers.md",
    "tests/engines/RESULTS.md": "results/engines.md",
}
"""{file of the repository: page}, besides benchmarks/results/*.md and the notebooks."""


def taken() -> dict[str, str]:
    found = {name: page for name, page in TAKEN.items() if (ROOT / name).exists()}
    for path in sorted((ROOT / "benchmarks/results").glob("*.md")):
        found[f"benchmarks/results/{path.name}"] = f"results/{path.name}"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[f"notebooks/{path.name}"] = f"notebooks/{path.stem}.md"
    return found


def on_config(config: Any) -> Any:
    """Results have no place in the menu: other pages link to them."""
    results = [page for page in taken().values() if page.startswith("results/")]
    config.nav.append({"Results": sorted(results)})
    return config


def on_files(files: Files, config: Any) -> Files:
    pages = taken()
    for name, page in pages.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".ipynb"):
            text = of_notebook(json.loads(text))
        files.append(File.generated(config, page, content=linked(text, name, pages)))
        for image in re.findall(r"\]\(([^)\s]+\.png)\)", text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), image))
            if (ROOT / path).exists():
                at = posixpath.join(posixpath.dirname(page), posixpath.basename(path))
                if files.get_file_from_path(at) is None:
                    data = (ROOT / path).read_bytes()
                    files.append(File.generated(config, at, content=data))
    generated = {"settings.md": settings_page(), "cli.md": shell_page()}
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))
    return files


SHIM = re.compile(r'<script src="https://unpkg\.com/[^"]*"></script>')
"""Of the theme, for the search of pages that are opened from a folder by old browsers."""


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Nothing is fetched from elsewhere."""
    return SHIM.sub("", output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Nor by the page of what was not found."""
    return SHIM.sub("", output)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of docs/, which GitHub follows, to where they went."""
    if page.file.generated_by is not None:  # done already
        return markdown
    name = f".github/docs/{page.file.src_uri}"
    return linked(markdown, name, {**taken(), name: page.file.src_uri})


def of_notebook(notebook: dict[str, Any]) -> str:
    """The cells as Markdown: they lie in git without outputs."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        parts.append(f"```python\n{text}\n```" if code else text)
    return "\n\n".join(parts) + "\n"


def linked(text: str, name: str, pages: dict[str, str]) -> str:
    """``text`` of the file ``name`` with links as its page needs them."""
    here = posixpath.dirname(pages[name])

    def replaced(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if mark and path.endswith(".png"):
            return f"![{label}]({posixpath.basename(path)})"
        if there.startswith(".github/docs/"):
            page = there.removeprefix(".github/docs/")
        elif there in pages:
            page = pages[there]
        elif (ROOT / there).exists():
            return f"`{there}`" if label == there else f"{label} (`{there}`)"
        else:
            return found[0]  # dead: the strict build says so
        way = posixpath.relpath(page, here or ".")
        return f"{mark}[{label}]({way}{'#' + anchor if anchor else ''})"

    return re.sub(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)", replaced, text)


def settings_page() -> str:
    """Every field of every settings class, from where the code has them."""
    import rap.config as config
    from rap.engines import EngineConfig
    from rap.settings import default_text, expected, field_types

    kinds = [config.ScoreConfig, config.Sampling, config.AceConfig, config.ChooseConfig]
    kinds += [EngineConfig, config.ExecutorConfig]
    parts = [
        "# Settings\n\nThe fields of each class, as keyword arguments of `rap.score`, "
        "`rap.choose` and `rap.select`, and (with `-` for `_`) as options of the shell. "
        "`help(rap.ScoreConfig)` says the same.\n"
    ]
    for kind in kinds:
        types = field_types(kind)
        rows = [
            f"## {kind.__name__}",
            "",
            "| field | what it takes | default | |",
            "|---|---|---|---|",
        ]
        for field in dataclasses.fields(kind):
            wanted = field.metadata.get("expected") or expected(types[field.name])
            default = default_text(field)
            cells = (f"`{field.name}`", wanted, default, field.metadata["help"])
            rows.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


COMPLETION = """# Shell

Exit codes: 0 done, 1 data, model or store unusable, 2 a wrong command line or setting,
130 Ctrl-C, 143 SIGTERM. An error is one sentence; `--debug` shows the traceback. What a
script would read goes to stdout, as JSON with `--json`. `--config FILE` takes the same
options from YAML or TOML.

## Completion

Once, for your shell; options, commands and files are then completed by Tab:

=== "bash"

    ```sh
    echo 'eval "$(_RAP_COMPLETE=bash_source rap)"' >> ~/.bashrc
    ```

=== "zsh"

    ```sh
    echo 'eval "$(_RAP_COMPLETE=zsh_source rap)"' >> ~/.zshrc
    ```

=== "fish"

    ```sh
    _RAP_COMPLETE=fish_source rap > ~/.config/fish/completions/rap.fish
    ```

"""


def shell_page() -> str:
    """The help of every command."""
    import click

    from rap.cli.commands import main

    parts = [COMPLETION]
    names = [None, *main.commands]
    for name in names:
        command = main if name is None else main.commands[name]
        title = "rap" if name is None else f"rap {name}"
        context = click.Context(command, info_name=title, max_content_width=96)
        context.terminal_width = 96
        parts.append(f"## {title}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def mathml(source: str, *_: Any, **__: Any) -> str:
    """A ``math`` fence as MathML, which browsers show without a script; a blank line
    separates two formulas."""
    from latex2mathml.converter import convert

    formulas = [part for part in re.split(r"\n\s*\n", source) if part.strip()]
    made = (convert(" ".join(part.split()), display="block") for part in formulas)
    return "".join(f'<div class="math">{one}</div>' for one in made)
