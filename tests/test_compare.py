"""Methods by models from one file, on a tiny model."""

from __future__ import annotations

import json

import pytest

import tiny_models
from tiny_models import FORGET, RETAIN, byte_level_bpe, tiny_model
from unteach import compare as comparison
from unteach.cli import main
from unteach.compare import cell_config, compare, method_rows
from unteach.errors import UserError

SHORT = {name: value for name, value in tiny_models.SHORT.items() if name != "similarity_model"}


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr("unteach.evaluation.scorers.load_error", lambda encoder: "not in this test")
    tiny_model().save_pretrained(tmp_path / "m")
    byte_level_bpe(chat=True).save_pretrained(tmp_path / "m")
    for name, rows in (("f", FORGET), ("r", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "out": str(tmp_path / "out"),
        "models": [str(tmp_path / "m")],
        "methods": [
            "ga",
            "templated",
            {"name": "ours", "method": "unlikelihood", "learning_rate": 1e-3},
        ],
        "forget": str(tmp_path / "f.jsonl"),
        "retain": str(tmp_path / "r.jsonl"),
        "settings": SHORT,
        "teach": {"max_steps": 2, "per_device_train_batch_size": 4},
        "limit": 12,
    }


def test_each_method_is_a_run_of_its_own_on_the_same_taught_model(options, tmp_path):
    folder = compare(options)
    runs = {
        name: json.loads((folder / name / "run.json").read_text())
        for name in ("ga", "templated", "ours")
    }
    assert len({run["original_model_hash"] for run in runs.values()}) == 1
    assert len({run["unlearned_model_hash"] for run in runs.values()}) == 3
    assert [run["method"] for run in runs.values()] == ["ga", "ga_mismatch", "unlikelihood"]
    cells = json.loads((folder / "comparison.json").read_text())["cells"]
    assert [cell["method"] for cell in cells] == ["original", "ga", "templated", "ours"]
    assert (folder / "original").is_dir() and not (folder / "ga" / "original").exists()


def test_a_comparison_holds_out_what_the_paper_does_unless_it_says_otherwise(options, tmp_path):
    row = method_rows(["ga"])[0]
    scenario = cell_config(options, "m", row, tmp_path)[1]
    assert scenario.files["hold_out"] == 0.3 and scenario.validation
    other = cell_config(
        {**options, "hold_out": 0.0, "unseen": options["retain"]}, "m", row, tmp_path
    )
    assert not other[1].validation and len(other[1].forget) == options["limit"]


def test_started_again_it_trains_nothing_anew(options, monkeypatch):
    first = compare(options)
    table = (first / "comparison.csv").read_text()
    monkeypatch.setattr(comparison, "execute", lambda *_: pytest.fail("run again"))
    assert (compare(options) / "comparison.csv").read_text() == table


def test_rows_of_the_table_are_named():
    rows = method_rows(["templated", {"method": "ga", "hold": 3, "frozen_layers": 0.5}])
    refusal = {"mismatch_source": "refusal", "mismatch_completions": 1}
    assert rows[0].given == {"method": "ga_mismatch", **refusal}
    assert rows[1].name == "ga"
    assert rows[1].given == {"method": "ga", "hold": 3, "frozen_layers": 0.5}
    (wrapped,) = method_rows(["npo+sam+rounding"])
    assert wrapped.given == {"method": "npo", "robust": "sam+rounding"}
    (own,) = method_rows([{"name": "ga+slow", "method": "ga"}])
    assert own.given == {"method": "ga"}


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        (None, "must be a list"),
        ([], "must be a list"),
        ([3], "holds 3, which is neither"),
        ([{"hold": 3}], "neither a name nor a mapping with a name"),
        (["ga", "ga"], "names 'ga' twice"),
        ([{"name": "ga", "learning_rat": 1}], "did you mean 'learning_rate'"),
        ([{"name": "ga", "lora": "yes"}], "option 'lora' is 'yes', it must be bool"),
        *(
            ([{"name": name, "method": "ga"}], "which its folder cannot be called")
            for name in (
                "\ud83d",
                "../x",
                "a/b",
                " ",
                "",
                ".",
                "work",
                "model-0",
                "x" * 300,
                "a\0b",
            )
        ),
        ([{"name": "x", "method": "ga", "shared_dir": "y"}], "the file's field 'out' decides it"),
    ],
)
def test_wrong_methods_are_named(methods, sentence):
    with pytest.raises(UserError, match=sentence):
        method_rows(methods)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modles": []}, "did you mean 'models'"),
        ({"models": []}, "option 'models' is missing"),
        ({"scenario": "copyright"}, "give either 'scenario'"),
        ({"forget": None}, "give either 'scenario'"),
        ({"settings": {"hold": "x"}}, "option 'hold' is 'x'"),
        ({"settings": {"model": "other/one"}}, "the file's field 'models' decides it"),
        ({"teach": {"max_step": 1}}, "did you mean 'max_steps'"),
        ({"teach": {"model": "x"}}, "option 'teach' has 'model', which is no setting of a"),
        ({"hold_out": -1}, "option 'hold_out' is -1, it must be at least 0 and below 1"),
        ({"hold_out": float("nan")}, "option 'hold_out' is nan, it must be at least 0"),
        ({"seed": True}, "option 'seed' in the comparison file must be a whole number, not bool"),
        ({"judge_as": "harm"}, "did you mean 'harmfulness'"),
        ({"settings": {"hold_out": 0.1}}, "option 'hold_out' has no place here"),
        ({"methods": [{"name": "ga", "neighbours": "n"}]}, "option 'neighbours' has no place here"),
        ({"forget": None, "scenario": "copyright", "hold_out": 0.1}, "'hold_out' is for your rows"),
    ],
)
def test_a_wrong_file_is_one_sentence_before_anything_is_trained(
    options, change, sentence, capsys, tmp_path
):
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(options | change))
    assert main(["compare", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
