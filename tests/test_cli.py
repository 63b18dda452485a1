"""The command line: its options, and one sentence for each mistake."""

from __future__ import annotations

import argparse
import json

import pytest

from unteach import cli
from unteach.cli import main, parse_settings

OPTIONS = {
    "demo": {"--scenario", "--model", "--out", "--seed", "--short", "--hide-text"},
    "run": {
        *("--model", "--forget", "--retain", "--method", "--out", "--seed", "--lora", "--frozen-layers", "--recite-tokens", "--show-text"),
        *("--similarity-model", "--trust-remote-code"),
    },
    "check": {"--forget", "--retain", "--model", "--max-length"},
    "eval": {"--model", "--reference", "--scenario", "--forget", "--data", "--retain", "--out", "--show-text"},
}


def test_no_option_has_gone(capsys):
    """A command line that worked goes on working: options are added here, not taken away."""
    parser = cli._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = {name: {option for action in sub._actions for option in action.option_strings} for name, sub in commands.choices.items()}
    assert {name: options - {"-h", "--help"} for name, options in found.items()} == OPTIONS
    for name in OPTIONS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert all(option in capsys.readouterr().out for option in ("--help",))


def test_without_a_command_help_is_shown(capsys):
    assert main([]) == 2 and "unteach demo" in capsys.readouterr().out


def test_settings_are_read_as_yaml_scalars():
    assert parse_settings(["a=1", "b=1e-5", "c=null", "d=true", "e=ga_mismatch", "f=0.5", "g="]) == {
        "a": 1,
        "b": 1e-5,
        "c": None,
        "d": True,
        "e": "ga_mismatch",
        "f": 0.5,
        "g": None,
    }


@pytest.fixture
def data(tmp_path) -> list[str]:
    rows = [{"prompt": f"Who is {i}?", "completion": f"Number {i}."} for i in range(9)]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--forget", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "out")]


def fails_with(capsys, arguments: list[str], sentence: str) -> None:
    code = main(arguments)
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("unteach: ") and sentence in error and "Traceback" not in error and error.count("\n") == 1, error


def test_mistakes_are_one_sentence_and_exit_code_two(capsys, data, tmp_path):
    fails_with(capsys, ["run", *data], "option --model is missing")
    fails_with(capsys, ["run", "--model", "m", "--out", "o"], "option --forget is missing")
    fails_with(capsys, ["run", "--model", "m", *data, "learning_rat=1"], "did you mean 'learning_rate'")
    fails_with(capsys, ["run", "--model", "m", *data, "nonsense"], "config 'nonsense' could not be read")
    fails_with(capsys, ["run", "--model", "m", *data, "a=1", "nonsense"], "'nonsense' is not key=value")
    fails_with(capsys, ["run", "--model", "nobody/nothing", *data], "model 'nobody/nothing' could not be loaded")
    fails_with(capsys, ["run", "--model", str(tmp_path), *data], "is a folder without config.json")
    fails_with(capsys, ["run", "--model", "m", "--forget", "none.jsonl", "--out", "o"], "none.jsonl: no such file")
    fails_with(capsys, ["run", "--model", "m", *data, "--retain", "none.csv"], "none.csv: no such file")
    fails_with(capsys, ["demo", "--scenario", "copyrite"], "did you mean 'copyright'")
    fails_with(capsys, ["demo", "learning_rat=1"], "did you mean 'learning_rate'")
    fails_with(capsys, ["eval", "--model", "m", "--out", "o"], "give --scenario, or --forget")
    fails_with(capsys, ["check", "--forget", "f.jsonl", "--model", "nobody/nothing"], "model 'nobody/nothing' could not be loaded")
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_found_before_anything_is_loaded(capsys, data):
    fails_with(capsys, ["run", "--model", "m", *data, "--method", "unlikelyhood"], "did you mean 'unlikelihood'")


def test_a_bad_config_file_is_named(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("model: [")
    fails_with(capsys, ["run", str(tmp_path / "a.yaml")], "could not be read")
    (tmp_path / "b.yaml").write_text("- model")
    fails_with(capsys, ["run", str(tmp_path / "b.yaml")], "must be a mapping of options")


def test_a_config_file_and_words_on_the_command_line_are_joined_the_latter_first(monkeypatch, tmp_path):
    (tmp_path / "a.yaml").write_text(f"model: m\nforget: f.jsonl\nout: {tmp_path}/x\nmethod: ga\nlearning_rate: 1e-5\nlora: true\n")
    seen = {}

    def unlearn(model, forget, retain, **settings):
        seen.update(settings, model=model, forget=forget)
        raise KeyboardInterrupt

    monkeypatch.setattr("unteach.pipeline.unlearn", unlearn)
    assert main(["run", str(tmp_path / "a.yaml"), "learning_rate=2e-5", "--seed", "3"]) == 130
    assert seen["learning_rate"] == 2e-5 and seen["method"] == "ga" and seen["lora"] is True and seen["seed"] == 3


def test_no_space_left_is_a_sentence(monkeypatch, capsys, data):
    def unlearn(*_, **__):
        raise OSError(28, "No space left on device", "out/model.safetensors")

    monkeypatch.setattr("unteach.pipeline.unlearn", unlearn)
    fails_with(capsys, ["run", "--model", "m", *data], "No space left on device (out/model.safetensors)")
