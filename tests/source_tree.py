"""The package's source as data: its modules and what each imports, read with `ast` alone."""

from __future__ import annotations

import ast
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SRC.rglob("*.py")
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether only type checkers see it) for each import from the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "unteach"
        ):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                (name if name in MODULES else node.module, id(node) in typing_only)
                for name in names
            ]
        elif isinstance(node, ast.Import):
            found += [
                (alias.name, id(node) in typing_only)
                for alias in node.names
                if alias.name.split(".")[0] == "unteach"
            ]
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def import_cycles() -> list[list[str]]:
    """Groups of modules that import each other in a circle, imports for type checkers included.

    An import of the root package, for its version, is no edge: Python imports it first anyway.
    """
    edges = {
        module: {name for name, _ in imports(path) if name in MODULES} - {module, "unteach"}
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
