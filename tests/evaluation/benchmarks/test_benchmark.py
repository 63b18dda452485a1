"""What benchmarks share: their registry, and finding their sets in folders and files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluate import evaluate_benchmark
from unteach.evaluation.benchmarks import BENCHMARKS, benchmark, load_benchmark
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    SetFile,
    SetValues,
    load_sets,
)
from unteach.evaluation.generators import CachedGenerator
from unteach.evaluation.metrics import MetricFacts, PromptSet

WANTED = (
    SetFile(
        "forget",
        ("forget*_perturbed",),
        "forget10_perturbed",
        "train",
        ("question",),
        optional=False,
    ),
    SetFile("extra", ("deep/extra", "extra"), "extra", "test", ("question",)),
)


ROWS = [{"question": f"q{place}"} for place in range(10)]


def test_a_folder_is_searched_below_and_a_missing_optional_set_is_left_out(tmp_path, write):
    write(tmp_path / "forget05_perturbed.jsonl", ROWS)
    assert list(load_sets(str(tmp_path), "hub", WANTED)) == ["forget"]
    write(tmp_path / "deep" / "extra.jsonl", ROWS[:1])
    found = load_sets(str(tmp_path), "hub", WANTED)
    assert [len(rows) for rows in found.values()] == [10, 1]


def test_files_may_be_named_instead_separated_by_commas(tmp_path, write):
    paths = [
        write(tmp_path / "a" / "forget10_perturbed.jsonl", ROWS),
        write(tmp_path / "b" / "extra.jsonl", ROWS),
    ]
    assert list(load_sets(", ".join(paths), "hub", WANTED)) == ["forget", "extra"]


def test_a_limit_takes_rows_at_even_distances_and_the_same_each_time(tmp_path, write):
    write(tmp_path / "forget10_perturbed.jsonl", ROWS)
    found = load_sets(str(tmp_path), "hub", WANTED, 5)["forget"]
    assert [fields["question"] for fields, _ in found] == ["q0", "q2", "q4", "q6", "q8"]
    assert len(load_sets(str(tmp_path), "hub", WANTED, 99)["forget"]) == 10


def test_without_data_the_sets_come_from_the_hub_by_configuration_and_split(monkeypatch):
    asked = []

    def records(source, split="train"):
        asked.append((source, split))
        return [(row, "hub") for row in ROWS]

    monkeypatch.setattr(benchmark, "records", records)
    load_sets(None, "owner/name", WANTED)
    load_sets("other/copy", "owner/name", WANTED[:1])
    assert asked == [
        ("owner/name:forget10_perturbed", "train"),
        ("owner/name:extra", "test"),
        ("other/copy:forget10_perturbed", "train"),
    ]


def test_what_is_wrong_is_named(tmp_path, write):
    with pytest.raises(UserError, match=r"no file for the set 'forget'"):
        load_sets(str(tmp_path), "hub", WANTED)
    with pytest.raises(UserError, match="holds no set of this benchmark"):
        load_sets(str(tmp_path), "hub", WANTED[1:])
    with pytest.raises(UserError, match=r"none\.jsonl is no file"):
        load_sets("none.jsonl", "hub", WANTED)
    write(tmp_path / "forget10_perturbed.jsonl", [*ROWS, {"question": ""}])
    with pytest.raises(UserError, match=r"forget10_perturbed\.jsonl, line 11: column 'question'"):
        load_sets(str(tmp_path), "hub", WANTED)
    write(tmp_path / "forget05_perturbed.jsonl", ROWS)
    with pytest.raises(UserError, match="several files may be the set 'forget'"):
        load_sets(str(tmp_path), "hub", WANTED)


def test_a_column_that_is_no_text_is_named(tmp_path, write):
    write(tmp_path / "forget10_perturbed.jsonl", [{"question": ["a"]}])
    with pytest.raises(UserError, match=r"line 1: column 'question' is list, it must be text"):
        load_sets(str(tmp_path), "hub", WANTED)


def test_every_benchmark_has_facts_and_knows_what_is_to_be_forgotten():
    for name in BENCHMARKS:
        protocol = load_benchmark(name)
        roles = {part.role for part in protocol.prompt_sets.values()}
        assert protocol.metrics and ("forget" in roles or protocol.role == "kept")


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(UserError, match="tofu"):
        load_benchmark("tofuu")


def test_a_benchmark_is_added_from_outside_the_package(monkeypatch, tmp_path, saved, write):
    """A folder of capitals: one file, one function to load, one to measure."""

    def load(source, limit):
        wanted = SetFile("capitals", ("capitals",), "default", "test", ("country", "capital"))
        return load_sets(source, "nobody/capitals", [wanted], limit)

    def measure(subject, sets):
        rows = [
            Row(f"The capital of {fields['country']} is", fields["capital"], "text", where)
            for fields, where in sets["capitals"]
        ]
        outputs = subject.outputs(rows, max_new_tokens=4)
        hits = [float(row.completion in text) for row, text in zip(rows, outputs, strict=True)]
        return Measured({"capitals": SetValues.of_rows(rows, {"hit_rate": hits}, outputs)})

    facts = MetricFacts(title="hit rate", higher_is_better=False, format=".0%", interval="wilson")
    capitals = Benchmark(
        load,
        measure,
        metrics={"hit_rate": facts},
        prompt_sets={"capitals": PromptSet("capitals", "forget")},
    )
    monkeypatch.setitem(BENCHMARKS, "capitals", capitals)
    limits, inner = [], CachedGenerator.__call__

    def generate(self, prompts, **options):
        limits.append(options["max_new_tokens"])
        return inner(self, prompts, **options)

    monkeypatch.setattr(CachedGenerator, "__call__", generate)
    write(tmp_path / "data" / "capitals.jsonl", [{"country": "France", "capital": "Paris"}] * 2)
    out = tmp_path / "out"
    evaluation = evaluate_benchmark(
        "capitals", saved[0], data=str(tmp_path / "data"), output_dir=str(out)
    )
    result = evaluation["models"]["unlearned"]["capitals"]["hit_rate"]
    assert (result["value"], result["n"], result["higher_is_better"]) == (0.0, 2, False)
    assert evaluation["metrics"]["hit_rate"]["title"] == "hit rate"
    options = {"data": str(tmp_path / "data"), "output_dir": str(out), "max_new_tokens": 2}
    evaluation = evaluate_benchmark("capitals", saved[0], **options)
    assert limits == [4, 2] and evaluation["chat"]["max_new_tokens"] == 2
    assert evaluation["models"]["unlearned"]["capitals"]["cut_off"]["value"] == 1.0
    assert "met the token limit" in (out / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("said", "one_line", "text", "cut"),
    [
        (" A b\nc", False, "A b\nc", True),
        (" \nA b\nc", True, "A b", False),
        (" A b", True, "A b", True),
        ("", True, "", False),
    ],
)
def test_an_output_knows_whether_it_met_the_limit(said, one_line, text, cut, tokenizer):
    """Not where a line break ended it before."""
    ids = tokenizer(said)["input_ids"]
    subject = EvaluatedModel(SimpleNamespace(), tokenizer, lambda prompts, **_: [ids])
    rows = [Row("Who?", "Me.", "text")]
    outputs = subject.outputs(rows, max(1, len(ids)), one_line=one_line)
    values = SetValues.of_rows(rows, {}, outputs)
    assert outputs == [text] and values.columns["cut_off"] == [float(cut)]
