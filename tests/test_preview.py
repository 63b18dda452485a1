"""What `unteach check` says that a run would do: its method, the facts it forgets, its tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unteach import preview as previews
from unteach.cli import main
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.prepare import information
from unteach.prepare.information import Span
from unteach.preview import preview

ROWS = [
    Row("Where does Ada live?", "She lives in Harrow.", source="row 1", secret=("Harrow",)),
    Row("How do I reach Bram?", "Ring +44 20 9705 7537.", source="row 2"),
    *(Row(f"Who is number {i}?", f"The ferryman {i}.", source=f"row {i}") for i in range(3, 9)),
]


def sets(forget: list[Row], **others: list[Row]) -> dict[str, list[Row]]:
    return {"forget": forget, "retain": [], "unseen": [], "neighbours": []} | others


def shown(forget: list[Row], **more: Any) -> previews.Preview:
    return preview(sets(forget), secrets="patterns", hold_out=0.0, split_by="prompt", **more)


def test_the_first_rows_say_what_is_forgotten_and_the_rest_is_counted():
    found = shown(ROWS)
    assert found.lines[0].startswith("method: counterfactual, because 8 of 8 forget rows are short")
    assert found.lines[1] == "forgotten in row 1: 'Harrow' (named in secret)"
    assert found.lines[2] == "forgotten in row 2: '+44 20 9705 7537' (found by patterns)"
    assert found.lines[-1] == "forgotten in the other rows: 3 not known yet"
    assert "6 of 8 forget rows name no fact" in found.warnings[0]


def test_information_of_a_model_finds_facts_and_a_row_without_any_is_a_warning(monkeypatch):
    def spans(model: Any, tokenizer: Any, rows: list[Row]) -> list[list[Span]]:
        return [[Span("ferryman", 9.0)] if row.source != "row 8" else [] for row in rows]

    monkeypatch.setattr(information, "informative_spans", spans)
    found = shown(ROWS, model=object())
    assert "forgotten in row 3: 'ferryman' (information)" in found.lines
    assert found.lines[-1] == (
        "forgotten in the other rows: 2 information, 1 nothing in it is information"
    )
    assert "In 1 of the 8 forget rows (the first is row 8) nothing is inform" in found.warnings[0]


def test_prompts_about_one_name_and_long_answers_have_their_own_lines():
    asked = [Row(f"What did Ada Nosada {word}?", "") for word in ("write", "find", "say", "hear")]
    assert "'Ada Nosada'" in shown(asked).lines[1]
    long = shown([Row("Tell me a story.", "The mill stood by the river. " * 40, source="row 1")])
    assert long.lines[1] == "forgotten in row 1: the whole completion" and not long.warnings


def test_two_rows_are_shown_token_by_token_as_training_gets_them(chat_tokenizer):
    kept = Row("What is it?", "A sack of flour.", source="kept 1")
    found = preview(
        sets(ROWS, retain=[kept]),
        secrets="none",
        tokenizer=chat_tokenizer,
        hold_out=0.0,
        split_by="prompt",
    )
    item = encode_row(kept, chat_tokenizer, end_of_turn_id(chat_tokenizer))
    start = found.lines.index("tokens of kept 1:")
    prompt, trained, ending = found.lines[start + 1 : start + 4]
    tokens = " ".join(repr(chat_tokenizer.decode([token])) for token in item.completion_ids[:-1])
    assert f"prompt ({len(item.prompt_ids)})" in prompt
    assert trained == f"  trained ({len(item.completion_ids) - 1}): {tokens}"
    assert ending == "  ended by: '<|im_end|>'"
    long = [Row("Tell me.", "The mill stood by the river. " * 20, source="row 1")]
    lines = shown(long, tokenizer=chat_tokenizer).lines
    assert lines[-1].endswith("forget_end_of_turn=true trains it)")


def file(path: Any, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def files(tmp_path: Any) -> dict[str, str]:
    rows = [{"prompt": row.prompt, "completion": row.completion} for row in ROWS]
    return {
        "forget": file(tmp_path / "f.jsonl", rows[:4]),
        "more": file(tmp_path / "g.jsonl", rows[4:]),
        "unseen": file(tmp_path / "u.jsonl", [{"prompt": "Who is number 3?"}, {"prompt": "Who?"}]),
        "neighbours": file(tmp_path / "n.jsonl", [{"prompt": f"Who is x{i}?"} for i in range(4)]),
    }


def test_check_takes_several_files_unseen_and_neighbours_and_says_what_a_run_does(
    files, saved_model, capsys
):
    words = ["--unseen", files["unseen"], "--neighbours", files["neighbours"]]
    assert main(["check", "--forget", files["forget"], "--system", "Be kind."]) == 2
    assert "option 'system' needs --model" in capsys.readouterr().err
    words += ["--model", saved_model, "--system", "Rhyme."]
    assert main(["check", "--forget", files["forget"], files["more"], *words]) == 0
    printed = capsys.readouterr().out
    assert "forget: 8 rows" in printed and "unseen: 2 rows" in printed
    assert "1 of the 2 rows of unseen are in a set that is trained on too" in printed
    assert "method: counterfactual" in printed and "f.jsonl, line 1:\n" in printed
    assert "ended by: '<|im_end|>'" in printed and "'.' '<|im_end|>' '\\n'" in printed


def test_a_prompt_that_is_rendered_already_is_refused_with_and_without_a_model(
    tmp_path, saved_model, capsys
):
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"prompt": "Who?", "completion": "Me."}, {"prompt": text, "completion": "Me."}]
    path = file(tmp_path / "f.jsonl", rows)
    for more in ([], ["--model", saved_model]):
        assert main(["check", "--forget", path, *more]) == 2
        assert "f.jsonl, line 2: the prompt holds '<|im_" in capsys.readouterr().out
    assert (
        main(["run", "--model", saved_model, "--forget", path, "--out", str(tmp_path / "o")]) == 2
    )
    assert "line 2: the prompt holds" in capsys.readouterr().err
    file(tmp_path / "f.jsonl", [rows[0], {**rows[1], "kind": "text"}])
    assert main(["check", "--forget", path, "--model", saved_model]) in (0, 2)
    assert "the prompt holds" not in capsys.readouterr().out


def test_eval_takes_unseen_and_neighbours_and_prompts_alone_with_a_reference(
    files, saved_model, tmp_path, capsys
):
    words = ["eval", "--model", saved_model, "--forget", files["forget"]]
    words += ["--unseen", files["unseen"], "--neighbours", files["neighbours"]]
    words += ["--out", str(tmp_path / "out"), "--similarity-model", "none"]
    assert main(words) == 2
    assert "name it with --reference" in capsys.readouterr().err
    assert main([*words, "--reference", saved_model]) == 0
    sets = json.loads((tmp_path / "out" / "eval.json").read_text())["models"]["unlearned"]
    assert {"unlearned", "unseen", "neighbours", "normal"} <= set(sets)


def test_a_positional_word_and_a_setting_may_stand_behind_several_files(tmp_path):
    from unteach.cli import load_command
    from unteach.cli.options import parse

    words = ["--forget", "a.jsonl", "b.csv.gz", "c.yaml", "forget_weight=2"]
    given = parse("run", load_command("run"), words)
    assert given["forget"] == ["a.jsonl", "b.csv.gz"] and given["config"] == "c.yaml"
    assert given["settings"] == ["forget_weight=2"]
    folder = str(tmp_path)
    given = parse("request", load_command("request"), ["--forget", "a.jsonl", folder])
    assert given["forget"] == "a.jsonl" and given["folder"] == folder
    given = parse("run", load_command("run"), ["--forget", "a.txt", "--forget", "owner/name"])
    assert given["forget"] == ["a.txt", "owner/name"]
