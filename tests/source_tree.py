"""The package's source as data: its modules and what each imports, read with `ast` alone."""

from __future__ import annotations

import ast
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SRC.rglob("*.py")
}


def imports(path: Path) -> list[str]:
    """The module of each import from the package, those for type checkers included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "unteach"]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def import_cycles() -> list[list[str]]:
    """Groups of modules that import each other in a circle."""
    edges = {
        module: {name for name in imports(path) if name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    reached = {module: _reachable(module, edges) for module in edges}
    groups = {
        tuple(sorted({other for other in reached[module] if module in reached[other]}))
        for module in edges
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += edges[module]
    return found
