"""A sentence instead of the forgotten: `--instead`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unteach import unlearn
from unteach.cli import main
from unteach.config.resolve import resolve
from unteach.errors import UserError
from unteach.evaluation.verdict import verdict
from unteach.scenarios.method_choice import with_suitable_method
from unteach.scenarios.user_rows import user_scenario

SENTENCE = "I don't know."
FORGET = [
    {"prompt": f"Who is number {i} of Ada Miller?", "completion": f"The ferryman, {i} times."}
    for i in range(6)
]
RETAIN = [
    {"prompt": f"What is thing {i}?", "completion": f"A sack of flour, the {i}th."}
    for i in range(8)
]
SETTINGS: dict[str, Any] = {
    "similarity_model": None,
    "paraphrases": 0,
    "min_utility": 0.0,
    "hold": 99,
    "instead": SENTENCE,
}


def test_the_option_takes_its_method_and_another_one_is_refused(saved_model, tmp_path):
    scenario = user_scenario(FORGET, None)
    resolved, why = with_suitable_method(resolve({"instead": SENTENCE}), scenario)
    assert resolved.run.method == "instead" and not why
    for wrong in ({"instead": SENTENCE, "method": "npo"}, {"method": "instead"}):
        with pytest.raises(UserError, match="option 'instead' and method 'instead' go together"):
            unlearn(saved_model, FORGET, RETAIN, output_dir=str(tmp_path), **wrong)
    with pytest.raises(UserError, match=r"'instead' is '\.\.\.', it must"):
        unlearn(saved_model, FORGET, output_dir=str(tmp_path), instead="...")


def test_a_model_learns_to_say_it_and_what_it_says_is_counted(saved_model, tmp_path):
    out = tmp_path / "out"
    training = {"max_steps": 60, "learning_rate": 5e-3, "probe_steps": 60, "save_steps": 60}
    training |= {"retain_weight": 0.0}
    found = unlearn(saved_model, FORGET, RETAIN, output_dir=str(out), **SETTINGS, **training)
    sets = found.evaluation["models"]
    said = {role: models["unlearned"]["said_instead"]["value"] for role, models in sets.items()}
    assert said == {"original": 0.0, "unlearned": 1.0}
    assert sets["unlearned"]["normal"]["said_instead"]["value"] > 0.5, "nothing guarded against it"
    assert any("the sentence has spread" in reason for reason in found.evaluation["reasons"])
    assert "instead" in (out / "report.md").read_text(encoding="utf-8")
    record = json.loads((out / "run.json").read_text())
    assert record["method"] == "instead" and record["scorers"]["instead"] == SENTENCE
    assert "neighbours" in found.evaluation["prompt_sets"], "prompts under other names guard"


def test_yaml_and_python_give_the_same_run(saved_model, tmp_path):
    short = {"max_steps": 1, "probe_steps": 1}
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    lines = [json.dumps(row) for row in FORGET]
    (tmp_path / "f.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {**SETTINGS, **short, "model": saved_model, "forget": str(tmp_path / "f.jsonl")}
    file.write_text(json.dumps({**options, "out": str(out)}), encoding="utf-8")
    assert main(["run", str(file)]) == 0
    again = unlearn(**{**options, "output_dir": str(tmp_path / "again")})
    assert json.loads((out / "eval.json").read_text()) == again.evaluation


def evaluation(forget: float, normal: tuple[float, float], n: int = 100) -> dict[str, Any]:
    def result(value: float) -> dict[str, Any]:
        return {"value": value, "n": n}

    def model(facts: float, said: float, elsewhere: float) -> dict[str, Any]:
        ours = {"said_facts": result(facts), "readability": result(1.0)}
        rest = {"similarity": result(1.0), "readability": result(1.0)}
        return {
            "unlearned": ours | {"said_instead": result(said)},
            "normal": rest | {"said_instead": result(elsewhere)},
        }

    return {
        "headline": "said_facts",
        "prompt_sets": {
            "unlearned": {"title": "forget", "role": "forget"},
            "normal": {"title": "normal", "role": "normal"},
        },
        "metrics": {"said_instead": {"title": "said instead", "format": ".0%"}},
        "models": {
            "original": model(1.0, 0.0, normal[0]),
            "unlearned": model(0.0, forget, normal[1]),
        },
    }


@pytest.mark.parametrize(
    ("normal", "n", "word"),
    [
        ((0.0, 0.0), 100, "forgotten"),
        ((0.0, 0.1), 100, "forgotten with damage"),
        ((0.1, 0.1), 100, "forgotten"),  # the original said it as often
        ((0.0, 0.1), 10, "forgotten"),  # one answer of ten
    ],
)
def test_a_sentence_that_spreads_is_damage(normal, n, word):
    found = verdict(evaluation(1.0, normal, n))
    assert found["verdict"] == word
    assert any("said instead, forget: 0% -> 100%" in reason for reason in found["reasons"])
