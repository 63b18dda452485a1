"""The command line: its options, and one sentence for each mistake."""

from __future__ import annotations

import json
import re

import pytest

from unteach.cli import main
from unteach.cli.arguments import RUN_KEYS

SCORERS = {"--headline", "--judge", "--reward-model", "--similarity-model", "--fluency-model"}
OPTIONS = {
    "demo": {"--scenario", "--model", "--out", "--seed", "--short", "--hide-text"},
    "run": {
        *(
            "--model",
            "--forget",
            "--retain",
            "--method",
            "--out",
            "--seed",
            "--lora",
            "--dtype",
            "--quantize",
            "--frozen-layers",
            "--recite-tokens",
            "--search-minutes",
            "--search-steps",
            "--candidates",
            "--show-text",
        ),
        *(
            "--stages",
            "--lora-rank",
            "--similarity-model",
            "--trust-remote-code",
            "--scenario",
            *SCORERS,
        ),
    },
    "check": {"--forget", "--retain", "--model", "--max-length", "--trust-remote-code"},
    "eval": {
        "--model",
        "--reference",
        "--benchmark",
        "--retrained",
        "--limit",
        "--scenario",
        "--forget",
        "--data",
        "--retain",
        "--out",
        "--show-text",
        "--engine",
        "--batch-size",
        "--dtype",
        "--trust-remote-code",
        *SCORERS,
    },
    "compare": {"--out"},
    "attack": {
        *(
            "--only",
            "--prompts",
            "--steps",
            "--every",
            "--rows",
            "--learning-rate",
            "--samples",
            "--temperature",
        ),
        *("--retrain", "--retrained", "--forget", "--retain", "--seed", "--trust-remote-code"),
    },
    "report": set(),
    "purge": set(),
    "plan": {
        *(
            "--model",
            "--method",
            "--lora",
            "--lora-rank",
            "--dtype",
            "--quantize",
            "--device",
            "--processes",
            "--sharding",
            "--tflops",
            "--json",
            "--trust-remote-code",
        ),
        *("--forget-rows", "--retain-rows", "--prompt-tokens", "--completion-tokens"),
        *("--retain-prompt-tokens", "--retain-completion-tokens"),
    },
    "request": {
        *(
            "--forget",
            "--retain",
            "--model",
            "--full",
            "--lora-rank",
            "--target",
            "--rounds",
            "--seed",
            "--method",
            "--trust-remote-code",
        ),
    },
    "requests": {"--remove", "--restore", "--merge", "--trust-remote-code"},
    "chat": {"--port", "--max-new-tokens", "--dtype", "--trust-remote-code"},
}


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_commands_are_the_promised_ones(capsys):
    assert set(re.findall(r"^    (\w+) ", help_of(capsys), re.MULTILINE)) == set(OPTIONS)


@pytest.mark.parametrize("command", list(OPTIONS))
def test_no_option_has_gone(capsys, command):
    """A command line that worked goes on working: options are added to the list above, not taken
    from it.
    """
    listed = help_of(capsys, command).partition("\noptions:")[2]
    assert set(re.findall(r"(?:^  |, )(--[a-z-]+)", listed, re.MULTILINE)) == OPTIONS[command] | {
        "--help"
    }


def test_what_run_takes_on_the_command_line_its_config_file_takes_too():
    assert set(RUN_KEYS) == {
        option.removeprefix("--").replace("-", "_") for option in OPTIONS["run"]
    }


def test_the_version_is_printed(capsys):
    from unteach import __version__

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.strip() == f"unteach {__version__}"


def test_without_a_command_help_is_shown(capsys):
    assert main([]) == 2 and "unteach demo" in capsys.readouterr().out


@pytest.fixture
def data(tmp_path) -> list[str]:
    rows = [{"prompt": f"Who is {i}?", "completion": f"Number {i}."} for i in range(9)]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--forget", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "out")]


def fails_with(capsys, arguments: list[str], sentence: str) -> None:
    code = main(arguments)
    error = capsys.readouterr().err
    assert (
        code == 2
        and error.startswith("unteach: ")
        and sentence in error
        and "Traceback" not in error
        and error.count("\n") == 1
    ), error


def test_mistakes_are_one_sentence_and_exit_code_two(capsys, data, tmp_path):
    fails_with(capsys, ["run", *data], "option --model is missing")
    fails_with(capsys, ["run", "--model", "m", "--out", "o"], "option --forget is missing")
    fails_with(
        capsys, ["run", "--model", "m", *data, "learning_rat=1"], "did you mean 'learning_rate'"
    )
    fails_with(
        capsys, ["run", "--model", "m", *data, "nonsense"], "config 'nonsense' could not be read"
    )
    fails_with(
        capsys, ["run", "--model", "m", *data, "a=1", "nonsense"], "'nonsense' is not key=value"
    )
    fails_with(
        capsys,
        ["run", "--model", "nobody/nothing", *data],
        "model 'nobody/nothing' could not be loaded",
    )
    fails_with(capsys, ["run", "--model", str(tmp_path), *data], "is a folder without config.json")
    fails_with(
        capsys,
        ["run", "--model", "m", "--forget", "none.jsonl", "--out", "o"],
        "none.jsonl: no such file",
    )
    fails_with(
        capsys, ["run", "--model", "m", *data, "--retain", "none.csv"], "none.csv: no such file"
    )
    fails_with(capsys, ["demo", "--scenario", "copyrite"], "did you mean 'copyright'")
    fails_with(capsys, ["demo", "learning_rat=1"], "did you mean 'learning_rate'")
    fails_with(capsys, ["eval", "--model", "m", "--out", "o"], "give --scenario, or --forget")
    kept = [
        "eval",
        "--model",
        "m",
        "--out",
        str(tmp_path / "out"),
        "--scenario",
        "copyright",
        "--retain",
        "r.jsonl",
    ]
    fails_with(capsys, kept, "option --retain needs --forget")
    fails_with(
        capsys,
        ["plan", "--model", "m", "--lora", "--lora-rank", "0"],
        "option --lora-rank is 0, it must be positive",
    )
    fails_with(
        capsys, ["attack", "out", "--seed", "-1"], "option --seed is -1, it must be at least 0"
    )
    fails_with(
        capsys,
        ["check", "--forget", "f.jsonl", "--model", "nobody/nothing"],
        "model 'nobody/nothing' could not be loaded",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--modell", "m"], "unknown option '--modell': did you mean '--model'?"),
        (["--learning_rate", "1e-5"], "did you mean learning_rate=VALUE, without dashes?"),
        (["--learning-rat=1e-5"], "did you mean learning_rate=VALUE, without dashes?"),
        (["modle=m"], "unknown option 'modle': did you mean 'model'?"),
        (["max_steps=[1"], "'max_steps=[1': the value is not YAML"),
        (["=3"], "'=3' is not key=value"),
        (["learning_rate=fast"], "option 'learning_rate' is 'fast', it must be float"),
        (["max_steps=1.5"], "option 'max_steps' is 1.5, it must be int"),
        (["max_retain_kl=true"], "option 'max_retain_kl' is True, it must be float or null"),
        (["hold=null"], "option 'hold' is None, it must be int"),
        (["packing=maybe"], "option 'packing' is 'maybe', it must be bool"),
        (["method=3"], "option 'method' is 3, it must be str"),
        (["seed=one"], "option 'seed' is 'one', it must be int"),
        (["retain=3"], "the data is a int, it must be a file, a dataset or a list of rows"),
        (["out=3"], "option 'output_dir' is 3, it must be str"),
        (["output_dir=x"], "option 'output_dir' is given as --out"),
        (["long_rows=cut"], "it must be one of error, truncate_prompt, drop"),
        (["hold=0"], "hold is 0, it must be positive"),
        (["learning_rate=-1e-4"], "learning_rate is -0.0001, it must not be negative"),
        (["adam_beta1=1"], "Invalid beta parameter at index 0: 1"),
        (["report_to=tensorbord"], "tensorbord is not supported"),
        (
            ["eval_strategy=steps", "eval_steps=2"],
            "eval_strategy is 'steps', but there is no evaluation set",
        ),
        (["lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
        (["--seed", "one"], "argument --seed: invalid int value: 'one' (see unteach run --help)"),
        (["--forget"], "argument --forget: expected one argument"),
    ],
)
def test_a_wrong_option_of_a_run_is_named_before_anything_is_loaded(capsys, data, words, sentence):
    fails_with(capsys, ["run", "--model", "m", *data, *words], sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rum"], "invalid choice: 'rum'"),
        (["--bogus"], "unknown option '--bogus'"),
        (["check"], "required: --forget (see unteach check --help)"),
        (["check", "--forget", "f.jsonl", "--retian", "r.jsonl"], "did you mean '--retain'?"),
        (["check", "--forget", "f.jsonl", "max_length=3"], "'max_length=3' is not an option"),
        (["eval", "--model", "m"], "required: --out"),
        (
            ["eval", "--model", "m", "--out", "o", "--scenario", "copyrite"],
            "invalid choice: 'copyrite'",
        ),
        (["demo", "--sead", "1"], "did you mean '--seed'?"),
        (["demo", "seed=1"], "option 'seed' is given as --seed"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_without_the_whole_usage(capsys, arguments, sentence):
    fails_with(capsys, arguments, sentence)


def test_eval_names_a_missing_file_and_an_unknown_model(capsys, data, tmp_path):
    fails_with(
        capsys,
        ["eval", "--model", "m", "--forget", "none.jsonl", "--out", "o"],
        "none.jsonl: no such file",
    )
    fails_with(
        capsys,
        ["eval", "--model", "nobody/nothing", *data],
        "model 'nobody/nothing' could not be loaded",
    )
    assert not (tmp_path / "out").exists()


def test_check_counts_tokens_with_the_tokenizer_of_a_saved_model(capsys, data, tmp_path, tokenizer):
    from tiny_models import tiny_model

    tiny_model().save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert main(["check", data[0], data[1], "--model", str(tmp_path / "m")]) == 0
    capsys.readouterr()
    assert (
        main(["check", data[0], data[1], "--model", str(tmp_path / "m"), "--max-length", "9"]) == 2
    )
    assert re.search(
        r"f\.jsonl, line 1: \d+ tokens \(\d+ of them completion\), more than max_length 9",
        capsys.readouterr().out,
    )


def test_an_unknown_method_is_found_before_anything_is_loaded(capsys, data):
    fails_with(
        capsys,
        ["run", "--model", "m", *data, "--method", "unlikelyhood"],
        "did you mean 'unlikelihood'",
    )


def test_a_bad_config_file_is_named(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("model: [")
    fails_with(capsys, ["run", str(tmp_path / "a.yaml")], "line 1, column 9")
    fails_with(capsys, ["run", str(tmp_path / "none.yaml")], "No such file or directory")
    fails_with(capsys, ["run", str(tmp_path)], "Is a directory")
    (tmp_path / "c.yaml").write_bytes(b"model: caf\xe9")
    fails_with(capsys, ["run", str(tmp_path / "c.yaml")], "can't decode byte 0xe9")
    (tmp_path / "b.yaml").write_text("- model")
    fails_with(capsys, ["run", str(tmp_path / "b.yaml")], "must be a mapping of options")


def test_a_config_file_and_words_on_the_command_line_are_joined_the_latter_first(
    monkeypatch, tmp_path
):
    lines = [
        "model: m",
        "forget: f.jsonl",
        f"out: {tmp_path}/x",
        "method: ga",
        "learning_rate: 1e-5",
        "lora: true",
        "max_retain_kl: 1e-2",
    ]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, "frozen-layers: 2"]))
    seen = {}

    def unlearn(model, forget, retain, **settings):
        seen.update(settings, model=model, forget=forget)
        raise KeyboardInterrupt

    monkeypatch.setattr("unteach.run.pipeline.unlearn", unlearn)
    assert main(["run", str(tmp_path / "a.yaml"), "learning_rate=2e-5", "--seed", "3"]) == 130
    assert seen["max_retain_kl"] == 0.01 and seen["frozen_layers"] == 2, (
        "a number is a number, an option may be written as in --help"
    )
    assert (
        seen["learning_rate"] == 2e-5
        and seen["method"] == "ga"
        and seen["lora"] is True
        and seen["seed"] == 3
    )


def test_settings_may_stand_anywhere_among_the_options(monkeypatch, data):
    seen = {}

    def unlearn(*_, **settings):
        seen.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("unteach.run.pipeline.unlearn", unlearn)
    assert (
        main(
            [
                "run",
                "max_steps=3",
                "--model",
                "m",
                "hold=4",
                *data,
                "--lora",
                "learning_rate=1e-5",
                "packing=false",
            ]
        )
        == 130
    )
    assert {
        name: seen[name] for name in ("max_steps", "hold", "learning_rate", "packing", "lora")
    } == {
        "max_steps": 3,
        "hold": 4,
        "learning_rate": 1e-5,
        "packing": False,
        "lora": True,
    }
