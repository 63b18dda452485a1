"""Tiny models on disk, and the command that evaluates them on a benchmark."""

from __future__ import annotations

import json

import pytest

from tiny_models import tiny_model
from unteach.cli import main

FIELDS = {"value", "n", "ci_low", "ci_high", "higher_is_better"}


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Folders of three tiny models."""
    folders = []
    for seed in range(3):
        folders.append(str(tmp_path / f"m{seed}"))
        tiny_model(seed=seed).save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def write():
    """Writes rows to a JSON Lines file."""

    def make(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


@pytest.fixture
def evaluate(tmp_path):
    """`unteach eval --benchmark`: the content of `eval.json` and `generations.jsonl`."""

    def run(benchmark, *options):
        out = tmp_path / "out"
        assert main(["eval", "--benchmark", benchmark, "--out", str(out), *options]) == 0
        evaluation = json.loads((out / "eval.json").read_text())
        generations = (out / "generations.jsonl").read_text().splitlines()
        for sets in evaluation["models"].values():
            assert set(sets) == set(evaluation["prompt_sets"])
            for metrics in sets.values():
                assert all(set(result) == FIELDS for result in metrics.values())
                assert set(metrics) <= set(evaluation["metrics"])
        return evaluation, [json.loads(line) for line in generations]

    return run
