"""How the code is divided: files, imports between packages, circles, long functions.

    python -m benchmarks.house                    # this checkout
    git archive a64b6dc | tar -x -C /tmp/before
    python -m benchmarks.house /tmp/before .      # before and after, side by side

A package is what stands directly in rap/: a folder, or a module that has none. An import is
counted once for a pair of packages, wherever it stands (in a function, for types). A circle
is a largest set of modules that all import each other, directly or not; in C a module is a
translation unit with its header, and imports the headers that it includes. Python's modules
and imports are read by grimp (the extra ``lint``).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import grimp
import networkx as nx

LONG = 80
"""Lines of a function that is too long."""
C_ENDINGS = (".c", ".h", ".cu")
_INCLUDE = re.compile(r'^#include "(?:.*/)?([a-z0-9_]+)\.h"', re.MULTILINE)
_BODY = re.compile(r"^\{\n.*?^\}", re.MULTILINE | re.DOTALL)


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def c_files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.suffix in C_ENDINGS)
    return sorted(p for p in found if "third_party" not in p.parts)


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def python_functions(path: Path) -> Iterator[int]:
    """Lines of each function, from its ``def`` on, without its docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            said = 0 if text is None else text.count("\n") + 1
            yield (node.end_lineno or node.lineno) - node.lineno + 1 - said


def c_functions(path: Path) -> Iterator[int]:
    """Lines of each function body: as PEP 7 writes it, between braces in column one."""
    for body in _BODY.findall(path.read_text(encoding="utf-8")):
        yield body.count("\n") + 1


def python_imports(tree: Path, package: str) -> nx.DiGraph:
    """The modules of a package and their imports, without the package's own module, which
    holds names only."""
    running = sys.modules.pop(package, None)  # else it, and not the tree's, would be found
    sys.path.insert(0, str(tree))
    try:
        found = grimp.build_graph(package, cache_dir=None)
    finally:
        sys.path.remove(str(tree))
        if running is not None:
            sys.modules[package] = running
    graph = nx.DiGraph()
    graph.add_nodes_from(found.modules - {package})
    for module in found.modules - {package}:
        imported = found.find_modules_directly_imported_by(module) - {package}
        graph.add_edges_from((module, other) for other in imported)
    return graph


def c_imports(folder: Path) -> nx.DiGraph:
    """Translation units by name, and whose headers each includes, directly or through a
    header that belongs to no unit."""
    graph = nx.DiGraph()
    units = set()
    for path in c_files(folder):
        included = _INCLUDE.findall(path.read_text(encoding="utf-8"))
        graph.add_edges_from((path.stem, other) for other in included)
        if path.suffix != ".h":
            units.add(path.stem)
    for header in set(graph) - units:
        ends = product(graph.predecessors(header), graph.successors(header))
        graph.add_edges_from(list(ends))
        graph.remove_node(header)
    return graph


def circles(graph: nx.DiGraph) -> list[list[str]]:
    return sorted(sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1)


def between_packages(graph: nx.DiGraph) -> set[tuple[str, str]]:
    pairs = {(a.split(".")[1], b.split(".")[1]) for a, b in graph.edges}
    return {(a, b) for a, b in pairs if a != b}


def count(files: Sequence[Path], functions: Iterable[int]) -> dict[str, str]:
    sizes = {path: lines_of(path) for path in files}
    longest = max(sizes, key=lambda path: sizes[path])
    return {
        "files": str(len(files)),
        "lines": f"{sum(sizes.values()):,}",
        "median file": f"{median(sizes.values()):g}",
        "longest file": f"{sizes[longest]} ({longest.name})",
        "files above 500 lines": str(sum(n > 500 for n in sizes.values())),
        f"functions above {LONG} lines": str(sum(n > LONG for n in functions)),
    }


def measure(tree: Path) -> dict[str, str]:
    """{what: its value}, for rap/, benchmarks/ and csrc/ of a tree."""
    rows: dict[str, str] = {}
    for name in ("rap", "benchmarks"):
        files = python_files(tree / name)
        found = count(files, (n for path in files for n in python_functions(path)))
        graph = python_imports(tree, name)
        if name == "rap":
            found["packages"] = str(len({m.split(".")[1] for m in graph}))
            found["imports between packages"] = str(len(between_packages(graph)))
        found["circles"] = listed(circles(graph))
        rows |= {f"{name}: {what}": value for what, value in found.items()}
    files = c_files(tree / "csrc")
    found = count(files, (n for path in files for n in c_functions(path)))
    found["circles"] = listed(circles(c_imports(tree / "csrc")))
    return rows | {f"csrc: {what}": value for what, value in found.items()}


def listed(found: Sequence[Sequence[str]]) -> str:
    names = ["/".join(m.rpartition(".")[2] for m in circle) for circle in found]
    return f"{len(found)} ({', '.join(names)})" if names else "0"


def table(trees: Sequence[Path]) -> str:
    measured = [measure(tree) for tree in trees]
    lines = ["| | " + " | ".join(str(tree) for tree in trees) + " |"]
    lines.append("|---|" + "---:|" * len(trees))
    for what in measured[0]:
        lines.append(f"| {what} | " + " | ".join(m[what] for m in measured) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("trees", nargs="*", type=Path, default=[Path()])
    print(table([tree.resolve() for tree in parser.parse_args(argv).trees]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
