"""The TOFU, MUSE, RWKU and WMDP protocols, on tiny models and a handful of rows, through the
command line.
"""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tiny_models import tiny_model
from unteach.cli import main
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.benchmarks import tofu_benchmark
from unteach.evaluation.benchmarks.benchmark import EvaluatedModel
from unteach.evaluation.benchmarks.known import BENCHMARKS
from unteach.evaluation.benchmarks.muse_benchmark import question_rows
from unteach.evaluation.generation import TransformersGenerator
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.tofu import truth_ratio
from unteach.evaluation.wmdp import harness_task

FIELDS = {"value", "n", "ci_low", "ci_high", "higher_is_better"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
def tofu_data(tmp_path):
    folder = tmp_path / "tofu"
    for name, wrong in (
        ("forget10_perturbed", 5),
        ("retain_perturbed", 5),
        ("real_authors_perturbed", 3),
        ("world_facts_perturbed", 3),
    ):
        rows = [
            {
                "question": f"Who rang bell {i}?",
                "answer": f"The ferryman rang it {i} times.",
                "perturbed_answer": [f"Cat {j}" for j in range(wrong)],
            }
            for i in range(4)
        ]
        if wrong == 5:
            rows = [
                row | {"paraphrased_answer": f"It was rung by the ferryman, {i}."}
                for i, row in enumerate(rows)
            ]
        write(folder / f"{name}.jsonl", rows)
    return folder


def evaluate(tmp_path, benchmark, *options):
    assert main(["eval", "--benchmark", benchmark, "--out", str(tmp_path / "out"), *options]) == 0
    evaluation = json.loads((tmp_path / "out" / "eval.json").read_text())
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    ]
    for model in evaluation["models"].values():
        assert all(
            set(result) == FIELDS for metrics in model.values() for result in metrics.values()
        )
    return evaluation, lines


def test_tofu_through_the_command_line(tmp_path, saved, tofu_data, monkeypatch, capsys):
    monkeypatch.setattr(tofu_benchmark, "ANSWER_TOKENS", 6)
    options = [
        "--model",
        saved[0],
        "--reference",
        saved[1],
        "--retrained",
        saved[2],
        "--data",
        str(tofu_data),
        "--limit",
        "3",
    ]
    evaluation, lines = evaluate(tmp_path, "tofu", *options)
    assert (
        list(evaluation["models"]) == ["original", "unlearned", "retrained"]
        and evaluation["scenario"] == "tofu"
    )
    found = evaluation["models"]["unlearned"]
    assert (
        list(found) == ["forget", "retain", "real_authors", "world_facts", "all"]
        and found["forget"]["probability"]["n"] == 3
    )
    assert [found[name]["probability"]["higher_is_better"] for name in ("forget", "retain")] == [
        False,
        True,
    ]
    assert (
        0 < found["all"]["forget_quality"]["value"] <= 1
        and "forget_quality" not in evaluation["models"]["retrained"]["all"]
    )
    scores = [
        found[name][metric]["value"]
        for name in tofu_benchmark.UTILITY_SETS
        for metric in tofu_benchmark.UTILITY_METRICS
    ]
    wanted = 0.0 if min(scores) == 0 else len(scores) / sum(1 / score for score in scores)
    assert found["all"]["model_utility"]["value"] == pytest.approx(wanted)
    assert len(lines) == 3 * 4 * 3 and set(lines[0]) == {"model", "set", "key", "metrics"}
    assert "ferryman" not in (tmp_path / "out" / "generations.jsonl").read_text()
    assert (
        "forget_quality" in capsys.readouterr().out
        and "model_utility" in (tmp_path / "out" / "benchmark.md").read_text()
    )


def test_tofu_texts_are_written_on_request_and_without_a_reference_there_is_one_column(
    tmp_path, saved, tofu_data, monkeypatch
):
    monkeypatch.setattr(tofu_benchmark, "ANSWER_TOKENS", 3)
    evaluation, lines = evaluate(
        tmp_path,
        "tofu",
        "--model",
        saved[0],
        "--data",
        str(tofu_data),
        "--limit",
        "1",
        "--show-text",
    )
    assert evaluation["models"]["original"] == evaluation["models"]["unlearned"]
    assert "ferryman" in lines[0]["expected"] and "output" in lines[0]
    assert "original" not in (tmp_path / "out" / "benchmark.md").read_text()


def test_tofu_s_truth_ratio_is_that_of_each_answer_asked_alone(tofu_data, tokenizer, monkeypatch):
    """Paraphrase against perturbed answers on the forget set; the answer itself against the wrong
    ones on world facts.
    """
    monkeypatch.setattr(tofu_benchmark, "ANSWER_TOKENS", 2)
    model = tiny_model()
    sets = tofu_benchmark.load(str(tofu_data), 2)
    found = tofu_benchmark.measure(
        EvaluatedModel(model, tokenizer, TransformersGenerator(model, tokenizer)), sets
    )

    def alone(question, text):
        item = encode_row(Row(question.row.prompt, text), tokenizer, end_of_turn_id(tokenizer))
        return mean_nll(model, [item.prompt_ids], [item.completion_ids])[0]

    for name in ("forget", "world_facts"):
        for question, line in zip(sets[name], found.lines[name], strict=True):
            right = alone(
                question, question.row.completion if name == "world_facts" else question.paraphrased
            )
            wanted = truth_ratio([right], [[alone(question, text) for text in question.perturbed]])[
                0
            ]
            assert line.metrics["truth_ratio"] == pytest.approx(wanted, rel=1e-3)
            wanted = math.exp(-alone(question, question.row.completion))
            if name == "forget":
                assert line.metrics["probability"] == pytest.approx(wanted, rel=1e-3)


def test_tofu_rows_that_could_not_be_compared_are_refused(tofu_data):
    rows = [
        json.loads(line) for line in (tofu_data / "retain_perturbed.jsonl").read_text().splitlines()
    ]
    write(tofu_data / "retain_perturbed.jsonl", [*rows, rows[0]])
    with pytest.raises(UserError, match="a question of the set 'retain' stands there twice"):
        tofu_benchmark.load(str(tofu_data))
    write(
        tofu_data / "retain_perturbed.jsonl", [*rows[:1], rows[1] | {"perturbed_answer": ["one"]}]
    )
    with pytest.raises(
        UserError, match="line 2: column 'perturbed_answer' has 1 answers, the rows before have 5"
    ):
        tofu_benchmark.load(str(tofu_data))
    write(
        tofu_data / "retain_perturbed.jsonl",
        [rows[0] | {"perturbed_answer": ["a", "", "b", "c", "d"]}],
    )
    with pytest.raises(UserError, match="must be a list of answers that are not empty"):
        tofu_benchmark.load(str(tofu_data))


def test_muse_through_the_command_line(tmp_path, saved):
    folder = tmp_path / "muse"
    write(
        folder / "verbmem" / "forget.jsonl",
        [{"prompt": "The miller kept", "gt": "a grey cat that slept."}] * 2,
    )
    for name in ("forget_qa", "retain_qa", "forget_qa_icl"):
        write(
            folder / "knowmem" / f"{name}.jsonl",
            [{"question": "Who rang the bell?", "answer": "The ferryman"}] * 2,
        )
    for name, text in (
        ("forget", "The miller kept a grey cat."),
        ("holdout", "Every morning she carried bread."),
    ):
        write(folder / "privleak" / f"{name}.jsonl", [{"text": f"{text} {i}"} for i in range(4)])
    options = [
        "--model",
        saved[0],
        "--reference",
        saved[1],
        "--retrained",
        saved[2],
        "--data",
        str(folder),
    ]
    evaluation, lines = evaluate(tmp_path, "muse", *options)
    before, after = evaluation["models"]["original"], evaluation["models"]["unlearned"]
    assert list(after) == ["verbmem", "knowmem_forget", "knowmem_retain", "membership"]
    attacks = {
        f"auc_{name}" for name in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm")
    }
    assert set(after["membership"]) == attacks | {"auc_reference", "privleak"} and set(
        before["membership"]
    ) == attacks | {"privleak"}
    assert (
        after["membership"]["privleak"]["higher_is_better"] is None
        and after["membership"]["auc_loss"]["n"] == 8
    )
    ours, theirs = (
        1 - evaluation["models"][name]["membership"]["auc_min_k"]["value"]
        for name in ("unlearned", "retrained")
    )
    assert after["membership"]["privleak"]["value"] == pytest.approx(100 * (ours - theirs) / theirs)
    assert {line["set"] for line in lines} == {
        "verbmem",
        "knowmem_forget",
        "knowmem_retain",
        "membership_forget",
        "membership_holdout",
    }


def test_muse_needs_forget_and_holdout_texts_together(tmp_path):
    write(tmp_path / "privleak" / "forget.jsonl", [{"text": "a b c"}])
    with pytest.raises(UserError, match="one of them is not there"):
        BENCHMARKS["muse"].load(str(tmp_path), None)


def test_muse_s_example_questions_stand_before_the_question_and_the_set_of_examples_is_no_set_of_questions(
    tmp_path,
):
    examples = [({"question": "Q1?", "answer": "A1"}, "x")]
    (row,) = question_rows([({"question": "Q2?", "answer": "A2"}, "x")], examples)
    assert (
        row.prompt == "Question: Q1?\nAnswer: A1\n\nQuestion: Q2?\nAnswer:" and row.kind == "text"
    )
    (row,) = question_rows([({"question": "Q2?", "answer": "A2"}, "x")], [])
    assert (row.prompt, row.kind) == ("Q2?", "chat")


def test_rwku_through_the_command_line(tmp_path, saved):
    folder = tmp_path / "rwku"
    for name in ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1"):
        write(
            folder / f"{name}.jsonl",
            [{"query": "Who rang ___?", "answer": "The ferryman", "type": "x"}] * 2,
        )
    write(folder / "utility_fluency.jsonl", [{"instruction": "Tell me about the moon."}])
    evaluation, _ = evaluate(
        tmp_path, "rwku", "--model", saved[0], "--reference", saved[1], "--data", str(folder)
    )
    found = evaluation["models"]["unlearned"]
    assert list(found) == [
        "fill_in_blank",
        "question_answer",
        "adversarial",
        "neighbor_fill_in_blank",
        "fluency",
    ]
    assert found["fill_in_blank"]["rouge_l_recall"]["higher_is_better"] is False
    assert found["neighbor_fill_in_blank"]["rouge_l_recall"]["higher_is_better"] is True
    assert {"ngram_entropy", "fluency", "not_meaningful_rate"} == set(found["fluency"]), (
        "entropy never stands alone"
    )


def test_rwku_generation_that_fails_ends_the_evaluation_instead_of_counting_as_forgotten(
    tmp_path, saved, monkeypatch
):
    write(tmp_path / "rwku" / "forget_level1.jsonl", [{"query": "Who?", "answer": "The ferryman"}])

    def fails(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("unteach.evaluation.generation.generate_ids", fails)
    with pytest.raises(RuntimeError, match="the device is gone"):
        main(
            [
                "eval",
                "--benchmark",
                "rwku",
                "--model",
                saved[0],
                "--data",
                str(tmp_path / "rwku"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
    assert not (tmp_path / "out" / "eval.json").exists()


def test_rwku_without_probes_of_what_is_forgotten_is_refused(tmp_path):
    write(tmp_path / "neighbor_level1.jsonl", [{"query": "Who?", "answer": "The ferryman"}])
    with pytest.raises(UserError, match="RWKU needs at least one of forget_level1"):
        BENCHMARKS["rwku"].load(str(tmp_path), None)


@pytest.fixture
def harness(monkeypatch):
    """Stands in for lm-evaluation-harness: the three names that are called, results shaped as those
    of 0.4.13.
    """
    asked = {}

    def simple_evaluate(**settings):
        asked.update(settings)
        rows = [
            {"doc_id": 0, "doc_hash": "ab" * 32, "acc": 1.0},
            {"doc_id": 1, "doc_hash": "cd" * 32, "acc": 0.0},
        ]
        names = [task if isinstance(task, str) else task["task"] for task in settings["tasks"]]
        return {
            "samples": {
                sub: rows
                for name in names
                for sub in (["mmlu_a", "mmlu_b"] if name == "mmlu" else [name])
            }
        }

    modules = {
        name: ModuleType(name)
        for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface")
    }
    modules["lm_eval"].simple_evaluate = simple_evaluate
    modules["lm_eval"].models = modules["lm_eval.models"]
    modules["lm_eval.models"].huggingface = modules["lm_eval.models.huggingface"]
    modules["lm_eval.models.huggingface"].HFLM = lambda **settings: SimpleNamespace(**settings)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_wmdp_asks_the_harness_and_counts_its_answers(tmp_path, saved, harness):
    evaluation, lines = evaluate(
        tmp_path, "wmdp", "--model", saved[0], "--limit", "2", "--batch-size", "3"
    )
    found = evaluation["models"]["unlearned"]
    assert (
        harness["tasks"] == ["wmdp_bio", "wmdp_chem", "wmdp_cyber", "mmlu"]
        and harness["limit"] == 2
    )
    assert harness["log_samples"] is True and harness["model"].batch_size == 3
    assert list(found) == ["mmlu", "wmdp_bio", "wmdp_chem", "wmdp_cyber"]
    assert (found["mmlu"]["accuracy"]["value"], found["mmlu"]["accuracy"]["n"]) == (0.5, 4)
    assert [found[name]["accuracy"]["higher_is_better"] for name in ("mmlu", "wmdp_bio")] == [
        True,
        False,
    ]
    assert lines[0]["key"] == "ab" * 8


def test_wmdp_on_local_files_makes_a_task_of_each(tmp_path, saved, harness):
    write(
        tmp_path / "wmdp" / "bio.jsonl", [{"question": "Q?", "choices": list("wxyz"), "answer": 1}]
    )
    evaluation, _ = evaluate(
        tmp_path, "wmdp", "--model", saved[0], "--data", str(tmp_path / "wmdp")
    )
    assert list(evaluation["models"]["unlearned"]) == ["bio"]
    assert harness["tasks"][0]["dataset_kwargs"] == {
        "data_files": {"test": str(tmp_path / "wmdp" / "bio.jsonl")}
    }
    assert harness_task("bio", tmp_path / "bio.json")["doc_to_choice"] == ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--benchmark", "wmdp"], "pip install 'unteach[harness]'"),
        (["--benchmark", "tofuu"], "invalid choice: 'tofuu'"),
        (
            ["--benchmark", "tofu", "--scenario", "copyright"],
            "option --scenario does not go with --benchmark",
        ),
        (
            ["--benchmark", "tofu", "--judge", "trained"],
            "option --judge does not go with --benchmark",
        ),
        (["--benchmark", "tofu", "--limit", "0"], "option --limit is 0"),
        (
            ["--benchmark", "tofu", "--batch-size", "0"],
            "option --batch-size is 0, it must be positive",
        ),
        (
            ["--scenario", "copyright", "--batch-size", "-1"],
            "option --batch-size is -1, it must be positive",
        ),
        (["--benchmark", "rwku", "--retrained", "m"], "has no number that needs a retrained model"),
        (["--forget", "f.jsonl", "--limit", "3"], "option --limit needs --benchmark"),
        (["--forget", "f.jsonl", "--retrained", "m"], "option --retrained needs --benchmark"),
        (["--benchmark", "tofu", "--data", "none.jsonl"], "none.jsonl is no file"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_two(
    capsys, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", "--model", "m", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
