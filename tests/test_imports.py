"""Imports point one way, and nobody reaches into another library's private parts."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from source_tree import MODULES, import_cycles, imports, room

FLOORS = [
    {"errors", "losses", "seeding"},
    {"data", "files", "methods", "processes", "robust"},
    {"config", "models", "progress"},
    {"evaluation", "scenarios", "trainer"},
    {"baselines", "prepare", "reports"},
    {"run"},
    {"attacks", "chat", "compare", "evaluate", "plan", "preview", "requests"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} - {""} == set(FLOOR_OF)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room(module)))
def test_no_import_climbs(module):
    for imported in imports(MODULES[module]):
        if not room(imported) or room(imported) == room(module):
            continue
        assert FLOOR_OF[room(imported)] <= FLOOR_OF[room(module)], f"{module} imports {imported}"


def test_the_trainer_knows_nothing_of_evaluation_scenarios_and_reports():
    reached, waiting = set(), ["unteach.trainer"]
    while waiting:
        module = waiting.pop()
        for imported in imports(MODULES[module]):
            if imported not in reached and imported in MODULES:
                reached.add(imported)
                waiting.append(imported)
    assert not {room(module) for module in reached} & {
        "evaluation",
        "scenarios",
        "reports",
        "preparation",
        "pipeline",
        "commands",
        "cli",
    }


ALLOWED = {
    "errors": set(),
    "processes": {"errors"},
    "files": {"errors"},
    "models": {"errors", "files", "data", "losses"},
    "data": {"errors", "losses", "seeding"},
    "evaluation": {"errors", "files", "data", "config", "losses", "processes", "models", "seeding"},
    "scenarios": {"errors", "data", "config"},
    "reports": {"errors", "files", "evaluation"},
    "requests.ledger": {"errors"},
    "requests.patches": {"errors", "files", "models"},
}
"""Rooms, or single files of them, that lean on little."""


@pytest.mark.parametrize("name", list(ALLOWED))
def test_a_room_stands_on_nothing_but_what_it_may(name):
    own = f"unteach.{name}"
    modules = [module for module in MODULES if module == own or module.startswith(f"{own}.")]
    used = {room(imported) for module in modules for imported in imports(MODULES[module])}
    assert modules and used - {name.split(".")[0]} <= ALLOWED[name]


def test_nobody_imports_the_command_line():
    assert not [
        module
        for module in MODULES
        if module not in ("unteach.cli", "unteach.__main__")
        and "unteach.cli" in imports(MODULES[module])
    ]


@pytest.mark.parametrize(
    "module", [module for module in sorted(MODULES) if room(module) == "reports"]
)
def test_reports_name_no_torch_and_no_transformers(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    named = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in named} & {
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "sentence_transformers",
    }


def test_no_two_rooms_import_each_other():
    edges = {(room(module), room(name)) for module in MODULES for name in imports(MODULES[module])}
    assert not [(a, b) for a, b in edges if a and b and a != b and (b, a) in edges]


def test_no_files_import_each_other_in_a_circle():
    assert not import_cycles()


@pytest.mark.parametrize(
    "module",
    [
        "unteach",
        "unteach.cli",
        "unteach.reports.report",
        "unteach.reports.tables",
        "unteach.data.check",
        "unteach.preview",
    ],
)
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_check_of_data_alone_imports_no_torch(tmp_path):
    rows = '{"prompt": "Who is it?", "completion": "The ferryman."}\n'
    (tmp_path / "f.jsonl").write_text(rows * 2, encoding="utf-8")
    words = ["check", "--forget", str(tmp_path / "f.jsonl")]
    code = f"import sys; from unteach.cli import main; main({words!r}); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "method: counterfactual" in done.stdout


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_private_names_of_other_libraries(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    outside = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and not node.module.startswith("unteach")
        ):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private and not any(
                part.startswith("_") and part != "__future__" for part in node.module.split(".")
            )
            outside |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            outside |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if not alias.name.startswith("unteach")
            }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in outside
        ):
            assert not (node.attr.startswith("_") and not node.attr.startswith("__")), ast.unparse(
                node
            )


def test_the_public_names_are_the_promised_ones():
    import unteach

    assert set(unteach.__all__) == {"UnlearningConfig", "UnlearningTrainer", "unlearn"}
    assert all(getattr(unteach, name) for name in unteach.__all__)
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        _ = unteach.forget
