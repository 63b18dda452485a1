"""Every command and every Python block of README and docs runs as it stands, in the order of the
pages, on a tiny model and with few steps. What cannot run here names the test that runs it.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_models import byte_level_bpe, tiny_model, write_rows
from unteach.cli import main
from unteach.evaluation import similarity
from unteach.run import pipeline  # noqa: F401  so that conftest makes its figures small

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
ELSEWHERE = {
    r"^accelerate launch": "tests/trainer/test_parallel.py",
    r"^LLAMA_CPP=": "tests/run/test_model_check.py",
    r"^unteach demo": "tests/test_examples.py",
    r"--level full": "tests/attacks/test_suite.py",
    r"--retrain$": "tests/attacks/test_suite.py",
    r"^unteach ui": "tests/chat/test_workbench.py",
    r"report_to=": "tests/trainer/test_trackers.py",
    r"--push-to-hub": "tests/run/test_folder.py",
    r"--harness": "tests/evaluation/benchmarks/test_wmdp.py",
    r"--benchmark": "tests/evaluation/benchmarks/test_benchmark.py",
    r"--method (rlhf|sft)": "tests/baselines/test_runs.py",
    r"run recipes/.*mine$": "tests/documentation/test_recipes.py",
    r"--method auto": "tests/prepare/test_search.py",
    r"--topic": "tests/prepare/test_topic.py",
    r"run .*--quantize": "tests/test_gpu.py",
    r"--judge PKU": "tests/evaluation/test_judges.py",
}
"""Commands that need several processes, a GPU, other programs, public data or a model that knows
something, to the test that holds them."""
MODELS = ["smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "M"]
SHORT = (
    "max_steps=1 probe_rows=2 hold=99 min_utility=0 similarity_model=null paraphrases=0"
    " max_new_tokens=4"
)
FEW = {"run": SHORT, "request": SHORT, "attack": "--prompts=2 --samples=2 --steps=1"}
"""What is added to a command so that it takes seconds."""
FIRST = ["README.md", "docs/index.md", *(f"docs/tutorials/{name}.md" for name in (
    "five-minutes", "forget-a-person", "forget-a-book", "less-harmful", "remove-a-topic",
    "compare-methods", "prove-it",
))]  # fmt: skip
PAGES = [
    *FIRST,
    *sorted(
        page
        for path in (ROOT / "docs").rglob("*.md")
        if (page := path.relative_to(ROOT).as_posix()) not in FIRST
        and path.name not in ("log.md", "extending.md")  # tests/test_extending.py
    ),
]


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, title, body) of each fenced block of a page."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(body: str) -> list[str]:
    """The command lines of a block of shell, without comments."""
    lines = [re.split(r"\s+#", line)[0].strip() for line in body.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


class Encoder:
    """Stands for a sentence encoder: counts of letters."""

    def encode(self, texts: list[str], **_: Any) -> Any:
        counts = np.array(
            [[text.lower().count(chr(97 + i)) + 0.1 for i in range(26)] for text in texts]
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the tiny model and the data files that pages name without showing them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(similarity, "_encoder", lambda name: Encoder())
    tiny_model(max_position_embeddings=1024).save_pretrained("tiny")
    byte_level_bpe(chat=True).save_pretrained("tiny")
    (tmp_path / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        text = re.sub("^model: .*", "model: tiny", recipe.read_text(encoding="utf-8"), flags=re.M)
        (tmp_path / "recipes" / recipe.name).write_text(text, encoding="utf-8")
    for name in ["good", "request", "monday", "tuesday", "edited", "neighbours", "unseen"]:
        write_rows(tmp_path / f"{name}.jsonl", name, 8)
    return tmp_path


def substituted(text: str) -> str:
    """The text with the tiny model for a real one, and a finished run for a demo's."""
    for model in MODELS:
        text = re.sub(rf"(?<![\w/-]){re.escape(model)}(?![\w/-])", "tiny", text)
    return re.sub(r"runs/demo\b", "runs/mine", text)


def run(line: str) -> None:
    """One command, with few steps; it ends well, or as `check` does where it found something."""
    name, *words = shlex.split(line)[1:]
    words = ["tiny" if word == "meta-llama/Llama-2-7b-hf" else word for word in words]
    given = {word.partition("=")[0] for word in words}
    more = [word for word in FEW.get(name, "").split() if word.partition("=")[0] not in given]
    words = [
        "1" if word == "100" else re.sub("max_steps=.*", "max_steps=1", word) for word in words
    ]
    status = main([name, *words, *more])
    assert status in ((0, 2) if name == "check" else (0,)), line


def undocumented(place: Path) -> dict[str, set[str]]:
    """File to its fields that docs/reference/files.md does not name in the file's section."""
    page = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        name = section.splitlines()[0]
        if not name.endswith((".json", ".jsonl")) or name == "eval.json":
            continue
        files = list(place.glob(f"runs/*/{name}"))
        assert files, name
        for file in files:
            text = file.read_text(encoding="utf-8")
            lines = text.splitlines() if name.endswith("l") else [text]
            fields = {field for line in lines for field in json.loads(line)}
            if missing := fields - set(re.findall(r"`(\w+)`", section)):
                found.setdefault(name, set()).update(missing)
    return found


@pytest.mark.timeout(900)
def test_commands_and_python_blocks_run(place):
    seen: set[str] = set()
    for page in PAGES:
        for language, title, body in blocks(page):
            if title:
                text = re.sub(r"max_steps: \d+", "max_steps: 1", substituted(body))
                (place / title).write_text(text, encoding="utf-8")
            elif language == "python":
                exec(compile(substituted(body), page, "exec"), {})
            elif language == "sh":
                for line in commands(substituted(body)):
                    program = line.split()[0]
                    if line in seen or program in ("pip", "python"):
                        continue
                    seen.add(line)
                    if not any(re.search(pattern, line) for pattern in ELSEWHERE):
                        run(line)
    assert len(seen) > 30
    assert undocumented(place) == {}


def test_what_runs_elsewhere_has_a_test_there():
    lines = "\n".join(
        line for page in PAGES for language, _, body in blocks(page) if language == "sh"
        for line in commands(body)
    )  # fmt: skip
    for pattern, test in ELSEWHERE.items():
        assert re.search(pattern, lines, re.MULTILINE), f"no page has {pattern}"
        assert (ROOT / test).exists(), test


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_of_shell(page):
    for language, _, body in blocks(page):
        if re.search(r"^(unteach|accelerate launch) ", body, re.MULTILINE):
            assert language == "sh", f"{page}: a command in a block of {language or 'no language'}"
