"""What the documentation names exists: links, headings, files, commands, options, imports."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.name != "log.md"  # history names what was there
)
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "tests", "benchmarks", "experiments", "examples", "docs")
    for path in (ROOT / folder).rglob("*.py")
)
FENCE = re.compile(r"^```(\w*)[^\n`]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)+[\w.-]+\.(?:py|md|yaml|json|png))(?![\w/*])")
GENERATED = {ROOT / "docs" / "reference" / name for name in ("cli.md", "settings.md")}
"""Pages that `make docs` makes from the code, and whose links it checks."""
FOLDERS = ("docs", "benchmarks", "experiments", "examples", "tests", "src")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: str) -> list[list[str]]:
    """The words of each command in fenced or indented blocks, without comments."""
    text = text_of(page)
    blocks = [body for _, body in FENCE.findall(text)]
    blocks += re.findall(r"^    (?=\S)(.+)$", FENCE.sub("", text), re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        line = line.strip()
        if re.match(r"(unteach|accelerate launch|python|pip install '[^']+' && unteach) ", line):
            words = shlex.split(line, comments=True)
            place = words.index("unteach") if "unteach" in words else 0
            found.append(words[place:])
    return found


@functools.cache
def options_of(command: str) -> set[str]:
    """Every option in the help of a command."""
    import contextlib
    import io

    from unteach.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([command, "--help"])
    assert out.getvalue().startswith("usage"), f"there is no command {command!r}"
    return set(re.findall(r"--[a-z][\w-]*", out.getvalue()))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    folder = (ROOT / page).parent
    for link in LINK.findall(text_of(page)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (folder / name).resolve() if name else ROOT / page
        if target in GENERATED:
            continue
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page} links to {link}"


@pytest.mark.parametrize("page", [*PAGES, *SOURCES])
def test_named_files_are_there(page):
    for name in set(NAMED_FILE.findall(text_of(page))):
        if "NAME" in name:  # a placeholder
            continue
        top = name.split("/")[0]
        inside = (ROOT / "src/unteach" / top).is_dir() and page.endswith(".md")
        if top in FOLDERS or inside:
            places = [ROOT / name, ROOT / "src/unteach" / name, (ROOT / page).parent / name]
            assert any(place.exists() for place in places), f"{page} names {name}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    for words in commands(page):
        if words[0] == "unteach":
            given = {word.split("=")[0] for word in words if word.startswith("--")}
            assert given <= options_of(words[1]) | {"--help"}, " ".join(words)
        elif words[0] == "python" and words[1].endswith(".py"):
            known = (ROOT / words[1]).read_text(encoding="utf-8")
            shared = ROOT / Path(words[1]).parent / "record" / "__init__.py"
            known += shared.read_text(encoding="utf-8") if shared.exists() else ""
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in known, " ".join(words)


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_parse_and_import(page):
    for language, body in FENCE.findall(text_of(page)):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unteach"):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{node.module} has no {missing}"
