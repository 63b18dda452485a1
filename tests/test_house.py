"""The package keeps its size and shape: files, lines, columns, floors, cycles, and who knows which
method is trained. `python tests/test_house.py` prints the measurements.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from source_tree import MODULES, import_cycles, room
from test_imports import FLOORS

# The aims are 115 files, 17,000 lines and 400 lines a file.
FILES = 180
LINES = 34_260
LINES_OF_A_FILE = 451
FLOORS_AT_MOST = 9
COLUMNS = 100
WIDE = 0
ASKING = 0
ASKS_WHICH_METHOD = re.compile(
    r"""\bmethod(\.name)? (==|!=|in|not in) ["'(\[{](?!original)"""
    r"""|\.level\b (==|!=|in)|\.dual\b|\.negate\b"""
)


def code(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def long_files() -> dict[str, int]:
    """Module to its lines, where they are over the bound."""
    sizes = {module: len(code(path)) for module, path in MODULES.items()}
    return {module: size for module, size in sizes.items() if size > LINES_OF_A_FILE}


def wide_lines() -> list[str]:
    """`module:line` of every line over 100 columns."""
    return [
        f"{module}:{number}"
        for module, path in MODULES.items()
        for number, line in enumerate(code(path), 1)
        if len(line) > COLUMNS
    ]


def asks_which_method() -> list[str]:
    """`module:line` outside `methods/` whose code depends on which method is trained."""
    return [
        f"{module}:{number}"
        for module, path in MODULES.items()
        if room(module) != "methods"
        for number, line in enumerate(code(path), 1)
        if ASKS_WHICH_METHOD.search(line)
    ]


def test_the_package_is_not_larger_than_its_bounds():
    assert len(MODULES) <= FILES
    assert sum(len(code(path)) for path in MODULES.values()) <= LINES


def test_no_file_is_longer_than_the_bound():
    assert not long_files()


def test_no_line_is_wider_than_100_columns():
    assert len(wide_lines()) <= WIDE


def test_the_package_has_few_floors():
    assert len(FLOORS) <= FLOORS_AT_MOST


def test_nothing_outside_methods_asks_which_method_is_trained():
    assert len(asks_which_method()) <= ASKING


if __name__ == "__main__":
    print(f"{len(MODULES)} files, {sum(len(code(path)) for path in MODULES.values())} lines")
    by_room: dict[str, list[int]] = defaultdict(list)
    for module, path in MODULES.items():
        by_room[room(module) or "unteach"].append(len(code(path)))
    for name, sizes in sorted(by_room.items()):
        print(f"  {name:<12} {len(sizes):>3} files {sum(sizes):>6} lines, longest {max(sizes)}")
    print("long files:", long_files() or "none")
    print("wide lines:", wide_lines() or "none")
    print("cycles:", import_cycles() or "none")
    print("asks which method:", asks_which_method() or "none")
