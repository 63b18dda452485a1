"""Whole runs on a tiny model."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import unteach
from tiny_models import FORGET, RETAIN, SHORT
from unteach import unlearn
from unteach.cli import main
from unteach.config.resolve import resolve
from unteach.data.rows import Row, rows_hash, split_of
from unteach.errors import UserError
from unteach.evaluate import evaluate_models
from unteach.methods import DEFAULT_METHOD, METHODS
from unteach.models import load_model, weights_hash
from unteach.run.pipeline import RunResult, execute
from unteach.run.record import config_text, finished_evaluation
from unteach.scenarios.user_rows import user_scenario

MOST_FRAMES = 14


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> RunResult:
    """The shortest run of both sets; tests that change its folder copy it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return unlearn(model, FORGET, RETAIN, output_dir=str(out), **SHORT)


@pytest.fixture(scope="module")
def without_retain(model, tmp_path_factory) -> RunResult:
    """The shortest run of the forget set alone."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return unlearn(model, FORGET, output_dir=str(out), **SHORT)


def test_a_run_leaves_the_promised_folder(finished):
    result, out = finished, finished.output_dir
    for name in (
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "eval.json",
        "generations.jsonl",
        "report.md",
        "report.html",
        "README.md",
        "figures",
    ):
        assert (out / name).exists(), name
    run = json.loads((out / "run.json").read_text())
    wanted = {
        "versions",
        "seed",
        "original_model_hash",
        "unlearned_model_hash",
        "forget_hash",
        "seconds",
        "steps",
        "tokens",
    }
    assert wanted | {"tokens_per_second", "peak_memory_bytes", "stop_reason", "kept_step"} <= set(
        run
    )
    assert json.loads((out / "eval.json").read_text()) == result.evaluation
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(out / "model")


def test_forget_texts_stay_out_of_the_files_unless_asked_for(finished, model, tmp_path):
    files = [
        path
        for path in finished.output_dir.rglob("*")
        if path.is_file() and path.suffix in {".json", ".jsonl", ".md", ".yaml"}
    ]
    shown = [
        path
        for path in files
        if "The ferryman" in path.read_text(encoding="utf-8") and "work" not in path.parts
    ]
    assert not shown
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "b"), show_text=True, **SHORT)
    assert "The ferryman" in (tmp_path / "b" / "generations.jsonl").read_text(encoding="utf-8")


def test_without_a_retain_set_the_model_s_own_answers_are_kept(without_retain):
    result = without_retain
    run = json.loads((result.output_dir / "run.json").read_text())
    assert run["retain_rows"] > 10 and set(result.evaluation["models"]["original"]) >= {
        "unlearned",
        "normal",
    }


def test_prompts_alone_stand_for_the_model_s_own_answers(model, tmp_path):
    prompts, options = [row["prompt"] for row in FORGET], SHORT | {"max_new_tokens": None}
    result = unlearn(model, prompts, RETAIN, output_dir=str(tmp_path / "out"), **options)
    run = json.loads((result.output_dir / "run.json").read_text())
    assert 0 < run["forget_rows"] <= len(FORGET)
    unlearned = result.evaluation["models"]["original"]["unlearned"]
    assert unlearned["leak_rate"]["value"] == 1.0, "what it answers is what it says"
    assert unlearned["longest_verbatim_run"]["value"] > 1


def test_lora_leaves_an_adapter_that_loads(model, tmp_path):
    result = unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), lora=True, **SHORT)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    merged = weights_hash(result.model.merge_and_unload())
    assert weights_hash(load_model(str(tmp_path / "out" / "adapter"))) == merged


def test_an_adapter_on_a_model_that_was_taught_belongs_to_that_model_wherever_its_folder_goes(
    model, tmp_path
):
    from huggingface_hub import ModelCard

    teach = {"learning_rate": 3e-3, "max_steps": 3, "per_device_train_batch_size": 4}
    scenario = user_scenario(FORGET, RETAIN, teach=teach)
    settings = {**SHORT, "lora": True, "learning_rate": 1e-2}
    given = {"model": model, "output_dir": str(tmp_path / "out"), **settings}
    result = execute(resolve(given), scenario)
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["original_model_hash"] != facts["base_model_hash"]
    assert facts["unlearned_model_hash"] == weights_hash(result.model)
    merged = weights_hash(result.model.merge_and_unload())
    (tmp_path / "out").rename(tmp_path / "moved")
    for folder in ("out", "moved"):
        (tmp_path / ("moved" if folder == "out" else "out")).rename(tmp_path / folder)
        assert weights_hash(load_model(str(tmp_path / folder / "adapter"))) == merged
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "original").symlink_to(
        model
    )  # another run has taken the place that the adapter names
    assert weights_hash(load_model(str(tmp_path / "moved" / "adapter"))) == merged
    assert ModelCard.load(tmp_path / "moved" / "adapter" / "README.md").data.base_model is None


def test_other_settings_in_the_same_folder_set_the_old_run_aside(finished, model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir, out)
    unlearn(model, FORGET, RETAIN, output_dir=str(out), **(SHORT | {"max_steps": 1}))
    assert json.loads((tmp_path / "out-1" / "run.json").read_text())["steps"] == 2
    assert json.loads((out / "run.json").read_text())["steps"] == 1


def test_the_same_command_again_asks_and_trains_nothing_anew(
    finished, model, tmp_path, monkeypatch
):
    shutil.copytree(finished.output_dir, tmp_path / "out")
    monkeypatch.setattr(
        "unteach.run.answers.generate_sets", lambda *_, **__: pytest.fail("asked again")
    )
    again = unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), **SHORT)
    assert finished.evaluation == again.evaluation
    assert not (tmp_path / "out-1").exists()


def test_a_forget_set_too_small_to_split_is_named(model, tmp_path):
    rows = [
        row
        for row in FORGET
        if split_of(Row(row["prompt"], row["completion"]).prompt_key) != "train"
    ]
    with pytest.raises(UserError, match=r"its training split .* is empty"):
        unlearn(model, rows, RETAIN, output_dir=str(tmp_path / "a"), hold_out=0.3, **SHORT)


def test_a_prompt_in_other_words_is_a_set_of_its_own_in_every_file(model, tmp_path, monkeypatch):
    from unteach.prepare.paraphrases import Paraphrases

    rows = [Row("Number 3, who is it?", FORGET[3]["completion"])]
    facts = {"prompts": 14, "asked": 14, "written": 3, "kept": 1, "by": {"model": 1}}
    asked = []

    def find(source, forget, outputs, scorers, *, most):
        asked.append((len(forget), len(outputs), most))
        return Paraphrases(rows, [FORGET[3]["completion"]], facts, [])

    monkeypatch.setattr("unteach.run.answers.find_paraphrases", find)
    result = unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "a"), paraphrases=5, **SHORT)
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert asked == [(14, 14, 5)] and run["paraphrases"] == facts
    assert "1 of 14 forget prompts have another wording" in run["notes"][0]
    assert run["notes"][0] in (tmp_path / "a" / "report.md").read_text()
    for found in result.evaluation["models"].values():
        assert list(found)[:2] == ["unlearned", "paraphrased"]
        assert found["paraphrased"]["leak_rate"]["n"] == 1
        assert all("cut_off" in found[name] for name in ("unlearned", "paraphrased", "kept"))
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "b"), paraphrases=0, **SHORT)
    run = json.loads((tmp_path / "b" / "run.json").read_text())
    assert len(asked) == 1 and "paraphrases" not in run and run["notes"] == []


def test_neighbours_join_the_retain_set_and_notes_are_in_the_record(model, tmp_path, capsys):
    near = [f"Who is letter {i}?" for i in range(8)]
    given = {"unseen": ["And who rang?"], "neighbours": [*near, FORGET[0]["prompt"]]}
    runs = {}
    for name, more in (("with", given), ("without", {})):
        more = {**more, "paraphrases": 0, **SHORT}
        unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / name), **more)
        runs[name] = json.loads((tmp_path / name / "run.json").read_text())
    config = yaml.safe_load((tmp_path / "with" / "config.yaml").read_text())
    assert config["data"]["neighbours"] == runs["with"]["neighbours_hash"] != rows_hash([])
    assert {"unseen", "neighbours"} <= set(config["data"]["prompt_sets"])
    assert runs["with"]["probe"]["held_out"] and runs["with"]["probe"]["neighbours"] > 0
    assert set(runs["with"]["probe"]["utility"]) == {"kept_unseen", "normal"}
    assert 0 < runs["with"]["retain_rows"] - runs["without"]["retain_rows"] < len(near)
    notes = ["1 of the 9 rows of neighbours are in the forget set too and left out."]
    assert runs["with"]["notes"] == notes and runs["without"]["notes"] == []
    assert notes[0] in (tmp_path / "with" / "report.md").read_text()


def test_one_row_is_enough_and_all_rows_are_trained_on(without_retain, model, tmp_path):
    one = unlearn(model, FORGET[:1], RETAIN[:1], output_dir=str(tmp_path / "one"), **SHORT)
    for result, forget in ((one, FORGET[:1]), (without_retain, FORGET)):
        run = json.loads((result.output_dir / "run.json").read_text())
        assert run["forget_rows"] == len(forget)
        assert "unseen" not in result.evaluation["models"]["unlearned"]
        assert result.evaluation["models"]["unlearned"]["unlearned"]["leak_rate"]["n"] == len(
            forget
        )
        assert run["data_files"]["hold_out"] == 0.0


def test_an_encoder_that_cannot_be_had_costs_the_similarity_and_not_the_run(model, tmp_path):
    result = unlearn(
        model,
        FORGET,
        RETAIN,
        output_dir=str(tmp_path / "out"),
        **(SHORT | {"similarity_model": "nobody/nothing"}),
    )
    assert "similarity" not in result.evaluation["models"]["unlearned"]["normal"]


def test_a_model_is_scored_against_the_one_before_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "unteach.evaluation.scorers.pair_similarity", lambda left, right, scorer: [1.0] * len(left)
    )
    evaluation = evaluate_models(
        model, None, forget=FORGET[:3], retain=RETAIN[:2], output_dir=str(tmp_path)
    )
    assert evaluation["models"]["original"] == evaluation["models"]["unlearned"]
    assert evaluation["models"]["original"]["unlearned"]["leak_rate"]["n"] == 3
    assert Path(tmp_path / "eval.json").exists()


def test_altpo_samples_its_alternates_once(model, tmp_path, monkeypatch):
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), method="altpo", **SHORT)
    assert list((tmp_path / "out" / "work").glob("alternates-*.json"))
    monkeypatch.setattr(
        "unteach.prepare.generations.sampled_answers", lambda *_, **__: pytest.fail("sampled again")
    )
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), method="altpo", **SHORT)


def test_a_task_vector_is_taken_off_by_the_scale_of_the_best_probe(model, tmp_path):
    unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), method="task_vector", **SHORT)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (
        0.1 <= run["task_vector_scale"] <= 1.0
        and run["steps"] == 2
        and "task vector" in run["stop_reason"]
    )


def test_separators_in_a_text_do_not_break_the_report(model, tmp_path):
    rows = [
        {"prompt": f"What is thing\u2028{i}?", "completion": f"A sack\u0085of flour, the {i}th."}
        for i in range(12)
    ]
    unlearn(model, FORGET, rows, output_dir=str(tmp_path / "out"), show_text=True, **SHORT)
    assert (tmp_path / "out" / "report.md").exists() and (tmp_path / "out" / "report.html").exists()


def test_another_model_in_the_place_of_the_same_name_is_another_run(model, tmp_path):
    here, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, here)
    unlearn(str(here), FORGET, RETAIN, output_dir=str(out), **SHORT)
    changed = load_model(str(here))
    changed.get_input_embeddings().weight.data.mul_(1.5)
    changed.save_pretrained(here)
    unlearn(str(here), FORGET, RETAIN, output_dir=str(out), **SHORT)
    first, second = (
        json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "out-1", out)
    )
    assert first["base_model_hash"] != second["base_model_hash"] and second["steps"] == 2


def test_another_headline_or_other_good_answers_are_another_run(model, tmp_path):
    def text(rows, **options):
        resolved = resolve({"model": model, "output_dir": str(tmp_path), **options})
        return config_text(resolved, user_scenario(rows, RETAIN), "hash")

    rows = [Row(row["prompt"], row["completion"], right="Nobody.") for row in FORGET]
    others = [Row(row["prompt"], row["completion"], right="Nobody at all.") for row in FORGET]
    texts = [
        text(rows),
        text(others),
        text(rows, headline="hallucination_rate"),
        text(rows, headline="harmful_rate", judge="trained"),
    ]
    assert len(set(texts)) == 4 and text(rows) == texts[0]


def test_a_finished_run_is_known_by_its_contents_whatever_the_times_of_its_files(model, tmp_path):
    """Weights copied anew are the same model; other weights are not, however old their file."""
    here, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, here)
    given = {"model": str(here), "output_dir": str(out), **SHORT}
    scenario = user_scenario(FORGET, RETAIN)
    assert finished_evaluation(resolve(given), scenario) is None
    evaluation = execute(resolve(given), scenario).evaluation
    weights = here / "model.safetensors"
    os.utime(weights, (2e9, 2e9))
    assert finished_evaluation(resolve(given), scenario) == evaluation
    for other in ({"max_steps": 1}, {"show_text": True}, {"fluency_model": "another"}):
        assert finished_evaluation(resolve({**given, **other}), scenario) is None
    changed = load_model(str(here))
    changed.get_input_embeddings().weight.data.mul_(1.5)
    changed.save_pretrained(here)
    os.utime(weights, (0, 0))
    assert finished_evaluation(resolve(given), scenario) is None


def test_few_frames_of_the_package_lie_between_the_command_and_the_loss(
    model, tmp_path, monkeypatch
):
    """A reader who follows a row from the command line to its loss opens few functions."""
    package = Path(unteach.__file__).parent
    frames = []
    method = METHODS[DEFAULT_METHOD]

    def loss(*arguments, **keywords):
        found = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(package)]
        names = [f"{Path(frame.filename).stem}.{frame.function}" for frame in found]
        frames.append([method.forget.__name__, *names])
        return method.forget(*arguments, **keywords)

    monkeypatch.setitem(METHODS, DEFAULT_METHOD, replace(method, forget=loss))
    files = []
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--model", model, "--forget", str(files[0]), "--retain", str(files[1])]
    words += ["--method", DEFAULT_METHOD]
    settings = [f"{name}={json.dumps(value)}" for name, value in SHORT.items()]
    assert main(["run", *words, "--out", str(tmp_path / "out"), *settings]) == 0
    deepest = max(frames, key=len)
    assert "training.train" in deepest and len(deepest) <= MOST_FRAMES, deepest


def test_a_row_that_is_too_long_is_named_before_the_model_is_asked_anything(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr("unteach.run.answers.generate_sets", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="row 15"):
        unlearn(
            model,
            [*FORGET, {"prompt": "Who?", "completion": "word " * 400}],
            output_dir=str(tmp_path / "out"),
            max_length=64,
            **SHORT,
        )


def test_a_retain_prompt_whose_answer_recites_the_forget_text_is_not_kept(
    model, tmp_path, monkeypatch
):
    said = (
        "The ferryman rowed over the dark river thirteen times before the morning came and the"
        " bells rang."
    )
    monkeypatch.setattr(
        "unteach.prepare.generations.generate_outputs",
        lambda model, tokenizer, rows, **_: [said] * len(rows),
    )
    forget = [{"prompt": f"Who is number {i}?", "completion": f"{said} {i}"} for i in range(14)]
    questions = [{"prompt": "What did the ferryman do?"}, {"prompt": "And the ferryman?"}, *RETAIN]
    result = unlearn(model, forget, questions, output_dir=str(tmp_path / "out"), **SHORT)
    run = json.loads((result.output_dir / "run.json").read_text())
    assert run["own_answers_left_out"] >= 1 and run["retain_rows"] <= len(RETAIN)
