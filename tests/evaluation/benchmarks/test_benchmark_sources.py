"""Finding a benchmark's sets in folders and files."""

from __future__ import annotations

import json

import pytest

from unteach.errors import UserError
from unteach.evaluation.benchmarks import sources
from unteach.evaluation.benchmarks.sources import SetFile, load_sets, text_of

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


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [{"question": f"q{place}"} for place in range(10)]


def test_a_folder_is_searched_below_and_a_missing_optional_set_is_left_out(tmp_path):
    write(tmp_path / "forget05_perturbed.jsonl", ROWS)
    assert list(load_sets(str(tmp_path), "hub", WANTED)) == ["forget"]
    write(tmp_path / "deep" / "extra.jsonl", ROWS[:1])
    found = load_sets(str(tmp_path), "hub", WANTED)
    assert [len(rows) for rows in found.values()] == [10, 1]


def test_files_may_be_named_instead_separated_by_commas(tmp_path):
    paths = [
        write(tmp_path / "a" / "forget10_perturbed.jsonl", ROWS),
        write(tmp_path / "b" / "extra.jsonl", ROWS),
    ]
    assert list(load_sets(", ".join(paths), "hub", WANTED)) == ["forget", "extra"]


def test_a_limit_takes_rows_at_even_distances_and_the_same_each_time(tmp_path):
    write(tmp_path / "forget10_perturbed.jsonl", ROWS)
    found = load_sets(str(tmp_path), "hub", WANTED, 5)["forget"]
    assert [fields["question"] for fields, _ in found] == ["q0", "q2", "q4", "q6", "q8"]
    assert len(load_sets(str(tmp_path), "hub", WANTED, 99)["forget"]) == 10


def test_without_data_the_sets_come_from_the_hub_by_configuration_and_split(monkeypatch):
    asked = []

    def records(source, split="train"):
        asked.append((source, split))
        return [(row, "hub") for row in ROWS]

    monkeypatch.setattr(sources, "records", records)
    load_sets(None, "owner/name", WANTED)
    load_sets("other/copy", "owner/name", WANTED[:1])
    assert asked == [
        ("owner/name:forget10_perturbed", "train"),
        ("owner/name:extra", "test"),
        ("other/copy:forget10_perturbed", "train"),
    ]


def test_what_is_wrong_is_named(tmp_path):
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


def test_a_column_that_is_no_text_is_named():
    with pytest.raises(UserError, match=r"row 3: column 'answer' is list"):
        text_of({"answer": ["a"]}, "answer", "row 3")
