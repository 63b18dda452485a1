"""The snippets of docs/how-to/extending.md, run as they stand but for the model: each adds one kind
of extension from outside the package.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from test_docs import FENCE
from tiny_models import write_rows
from unteach import unlearn
from unteach.attacks.battery import ATTACKS, chosen_attacks
from unteach.evaluation.benchmarks import BENCHMARKS
from unteach.evaluation.metrics import METRICS
from unteach.evaluation.scorers import SCORERS
from unteach.methods import METHODS
from unteach.scenarios import SCENARIOS

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "extending.md"
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT = {"max_steps": 2, "probe_steps": 1, "hold": 99, "similarity_model": None}


def snippets(title: str) -> list[str]:
    """The Python blocks of one section."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = [part for part in sections if part.startswith(f"{title}\n")]
    return [body for language, body in FENCE.findall(section) if language == "python"]


@pytest.fixture
def extend(tmp_path, monkeypatch, saved_model):
    """Writes a section's file into the current folder and runs its use, if there is one."""
    registries = (ATTACKS, BENCHMARKS, METHODS, METRICS, SCENARIOS, SCORERS)
    before = [dict(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("unteach.evaluation.scorers.load_error", lambda encoder: "not in this test")
    modules = set(sys.modules)
    for name in ("bad", "good"):
        write_rows(tmp_path / f"{name}.jsonl", name, 12)

    def run(title: str) -> str:
        file, *uses = snippets(title)
        name = file.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(file, encoding="utf-8")
        for use in uses or [f"import {name.removesuffix('.py')}"]:
            exec(compile(use.replace(HUB_MODEL, saved_model), name, "exec"), {})
        return saved_model

    yield run
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(entries)  # type: ignore[attr-defined]


def evaluation(folder: str) -> dict:
    return json.loads((Path(folder) / "eval.json").read_text(encoding="utf-8"))


def test_a_token_loss(extend):
    extend("A token loss")
    assert evaluation("runs/capped")["models"]["unlearned"]["unlearned"]["leak_rate"]["n"] > 0
    lines = Path("runs/capped/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("forget" in line for line in lines if '"loss"' in line)


def test_a_method_with_hooks(extend):
    model = extend("A method with hooks")
    unlearn(model, "bad.jsonl", "good.jsonl", output_dir="runs/r", method="rising_retain", **SHORT)
    lines = map(json.loads, Path("runs/r/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    weights = [line["retain_weight"] for line in lines if "retain_weight" in line]
    assert weights[-1] == pytest.approx(1.1 * weights[0])


def test_a_text_metric(extend):
    model = extend("A text metric")
    unlearn(model, "bad.jsonl", "good.jsonl", output_dir="runs/m", **SHORT)
    found = evaluation("runs/m")
    assert found["metrics"]["question_marks"]["title"] == "question marks"
    for sets in found["models"].values():
        assert all("question_marks" in metrics for metrics in sets.values())
    assert "question marks" in Path("runs/m/report.md").read_text(encoding="utf-8")


def test_a_scored_metric(extend):
    model = extend("A scored metric")
    unlearn(model, "bad.jsonl", "good.jsonl", output_dir="runs/s", **SHORT)
    found = evaluation("runs/s")
    assert found["scorers"]["known_words"]["name"].endswith("words of the forget rows")
    assert found["models"]["unlearned"]["unlearned"]["known_words"]["n"] > 0


def test_a_benchmark(extend):
    extend("A benchmark")
    found = evaluation("runs/yes_or_no")
    assert found["models"]["unlearned"]["questions"]["accuracy"]["n"] == 2
    assert "accuracy" in Path("runs/yes_or_no/benchmark.md").read_text(encoding="utf-8")


def test_a_scenario(extend):
    extend("A scenario")
    sets = evaluation("runs/capitals")["models"]["unlearned"]
    assert set(sets) == {"unlearned", "unseen", "normal"} and "leak_rate" in sets["unlearned"]


def test_an_attack(extend):
    extend("An attack")
    entry = chosen_attacks((), "quick")["shouting"]
    assert entry.family == "prompts" and chosen_attacks(("shouting",), "quick")
