"""Hooks of the documentation site: pages generated from the code, files of the repository that the
pages link to, the pages of the methods in the navigation, formulas as MathML, and short code that
reads well.
"""

from __future__ import annotations

import html
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from reference_pages import pages

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PRE = re.compile(r"(<pre.*?</pre>)", re.DOTALL)
CODE = re.compile(r"<code>([^<]*)</code>")
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")

NESTED = re.compile(
    r'(<nav class="md-nav" data-md-level="([1-9])" )aria-labelledby="\w+"'
    r'([^>]*>\s*<label class="md-nav__title"[^>]*>\s*(?:<span[^>]*></span>)?\s*)([\w -]+)'
)


def on_config(config: Any) -> Any:
    """Lists the pages of the methods in the navigation; the footer names the version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.copyright = f"unteach {project['version']}. {config.copyright}"
    methods = sorted(path.name for path in (ROOT / "docs/reference/methods").glob("*.md"))
    for section in config.nav:
        for entry in section.get("Reference", []):
            if isinstance(entry, dict) and "Methods" in entry:
                entry["Methods"] += [{name[:-3]: f"reference/methods/{name}"} for name in methods]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages, and each file outside docs/ that a page links to."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    linked = {
        target
        for file in files.documentation_pages()
        for _, link, _ in LINK.findall(file.content_string)
        if (target := outside(file.src_uri, link))
    }
    for target in sorted(linked):
        path = ROOT / target
        if path.is_file() and place(target) not in files.src_uris:
            text = path.read_text(encoding="utf-8")
            files.append(File.generated(config, place(target), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links that leave docs/ at the copies on the site."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        if re.match(r"\w+:", match[2]):
            return match[0]
        # A page from outside docs/, such as CHANGELOG.md, has its links relative to the root.
        origin = "../" + here.removeprefix("project/") if here.startswith("project/") else here
        target = outside(origin, match[2])
        if target is None and origin == here:
            return match[0]
        inside = target is None or target.startswith("docs/")
        name = os.path.normpath(os.path.join("docs", os.path.dirname(origin), match[2]))
        new = name.removeprefix("docs/") if inside else place(name)
        return match[1] + os.path.relpath(new, os.path.dirname(here) or ".") + match[3]

    parts = FENCE.split(markdown)
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script, and the code within lines."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2]), display=display)

    parts = PRE.split(FORMULA.sub(formula, html_text))
    return "".join(part if i % 2 else CODE.sub(short_code, part) for i, part in enumerate(parts))


def short_code(match: re.Match[str]) -> str:
    """Code within a line. An option is never broken; a docstring's type has no backticks."""
    parts = match[1].split("`")
    for i, part in enumerate(parts):
        if i % 2 or (len(parts) == 1 and part != "*optional*"):
            text = OPTION.sub(r'<span class="option">\1</span>', part).replace("|", "|<wbr>")
            parts[i] = f"<code>{text}</code>"
        else:
            parts[i] = re.sub(r"\*(\w+)\*", r"<em>\1</em>", part)
    return "".join(parts)


def on_post_page(output: str, **_: Any) -> str:
    """Names the search dialog, and each nested list of pages by its section."""
    output = re.sub(
        r'(<div class="md-search"[^>]*role="dialog")', r'\1 aria-label="Search"', output
    )
    return NESTED.sub(r'\1aria-label="Pages of \4, level \2"\3\4', output)


def outside(source: str, link: str) -> str | None:
    """The path in the repository that a link of the page leads to, if it is outside docs/."""
    if re.match(r"\w+:", link):
        return None
    target = os.path.normpath(os.path.join("docs", os.path.dirname(source), link))
    return None if target.startswith("docs/") else target


def place(target: str) -> str:
    """Where a file of the repository is on the site: a page, or a file to download."""
    return f"project/{target}" if target.endswith(".md") else f"source/{target}"
