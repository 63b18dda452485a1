"""Every `unteach` command line in the README, the docs and the examples still parses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unteach.cli import COMMANDS, load_command
from unteach.cli.options import parse
from unteach.cli.run import run_options
from unteach.compare import method_rows
from unteach.config.resolve import flat, resolve
from unteach.config.values import parse_settings, read_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
PAGES += [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "log.md"]
PAGES += sorted((ROOT / "examples").rglob("*.*"))
PAGES += sorted((ROOT / "src" / "unteach" / "cli").glob("*.py"))
START = re.compile(r"(?:^|\s)-m unteach(?= )|^unteach(?= )")


def command_lines(text: str) -> list[str]:
    """What follows the program's name in each command line of a fenced or indented block."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    indented = re.findall(r"^ {2,}(\S.*)$", text, re.MULTILINE)
    found = []
    for line in [*blocks.splitlines(), *indented]:
        line = re.split(r"\s+#|\s+>\s|\s{2,}[a-z]", line.strip())[0]
        if match := START.search(line):
            found.append(line[match.end() :].strip())
    return [line for line in dict.fromkeys(found) if "..." not in line and line[0] != "-"]


LINES = [
    (path.relative_to(ROOT), line)
    for path in PAGES
    for line in command_lines(path.read_text(encoding="utf-8"))
]


def test_lines_are_found():
    assert len(LINES) > 40 and {line.split()[0] for _, line in LINES} >= set(COMMANDS) - {"check"}


@pytest.mark.parametrize(("path", "line"), LINES, ids=str)
def test_a_documented_command_line_parses(path, line):
    name, *words = shlex.split(line)
    command = load_command(name)
    given = parse(name, command, words)
    if name == "run":
        config = given.pop("config", None)
        assert config or {"model", "output_dir"} <= set(given)
        assert config or {"forget", "topic"} & set(given)
        resolve(run_options(given))
        return
    settings = given.pop("settings", [])
    assert command.options(**given) and resolve(parse_settings(settings))


def test_no_page_starts_a_module_that_is_no_program():
    for path in PAGES:
        assert "-m unteach." not in path.read_text(encoding="utf-8"), path


CONFIGS = [
    path
    for folder in ("docs", "examples", "experiments")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
    if "methods" in read_config(str(path))
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_comparison_in_the_repository_names_known_options(path):
    options = read_config(str(path))
    assert method_rows(options["methods"])
    resolve(flat(options.get("settings") or {}))
