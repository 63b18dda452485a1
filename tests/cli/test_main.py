"""The command line: one sentence for each mistake, and what a run gets from words and files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unteach import __version__
from unteach.cli import COMMANDS, load_command, main
from unteach.cli.run import run_options


def fails_with(capsys: Any, arguments: list[str], sentence: str) -> None:
    code = main(arguments)
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("unteach: ") and error.count("\n") == 1, error
    assert sentence in error and "Traceback" not in error


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    rows = [{"prompt": f"Who is {i}?", "completion": f"Number {i}."} for i in range(9)]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--forget", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "out")]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `unteach run` calls `unlearn` with; the call ends as if interrupted."""
    found: dict[str, Any] = {}

    def unlearn(**options: Any) -> None:
        found.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("unteach.run.pipeline.unlearn", unlearn)
    return found


def test_help_lists_every_command_at_once_and_without_torch():
    code = "import sys; from unteach.cli import main; main(['--help']);"
    code += " sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 5
    assert re.findall(r"^    (\w+) ", ended.stdout, re.MULTILINE) == list(COMMANDS)


def test_no_command_s_options_need_torch():
    code = (
        "import sys; from unteach.cli import COMMANDS, load_command\n"
        "from unteach.cli.options import build_parser\n"
        "for name in COMMANDS: build_parser(name, load_command(name)).format_help()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_shows_its_help_within_100_columns(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith(f"usage: unteach {name} ")
    assert max(map(len, shown.splitlines())) <= 100


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == f"unteach {__version__}"


def test_without_a_command_help_is_shown(capsys):
    assert main([]) == 2 and "unteach demo" in capsys.readouterr().out


MODEL = ["run", "--model", "m"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rum"], "unknown command 'rum': did you mean 'run'?"),
        (["--bogus"], "unknown option '--bogus'"),
        (["check"], "required: --forget (see unteach check --help)"),
        (["check", "--forget", "f.jsonl", "--retian", "r.jsonl"], "did you mean '--retain'?"),
        (["check", "--forget", "f.jsonl", "max_length=3"], "'max_length=3' is not an option"),
        (["check", "--forget", "f.jsonl", "--model", "nobody/nothing"], "could not be loaded"),
        (["eval", "--model", "m"], "required: --out"),
        (["eval", "--model", "m", "--out", "o"], "give --scenario, or --forget"),
        (["eval", "--model", "m", "--out", "o", "--scenario", "copyrite"], "mean 'copyright'"),
        (["eval", "--model", "m", "--out", "o", "--forget", "none.jsonl"], "no such file"),
        (["attack", "out", "--seed", "-1"], "option --seed is -1, it must be at least 0"),
        (["plan", "--model", "m", "--lora-rank", "0"], "option 'lora_rank' is 0, it must be at"),
        (["requests", "out", "--remove", "1", "--merge", "o"], "only one of --remove and --merge"),
        (["demo", "--scenario", "copyrite"], "did you mean 'copyright'"),
        (["demo", "--sead", "1"], "did you mean '--seed'?"),
        (["demo", "seed=1", "--seed", "2"], "option 'seed' is given twice"),
        (["demo", "learning_rat=1"], "did you mean 'learning_rate'"),
        ([*MODEL, "--out", "o"], "option --forget is missing"),
        ([*MODEL, "--out", "o", "--forget", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_without_the_whole_usage(capsys, arguments, sentence):
    fails_with(capsys, arguments, sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nonsense"], "config 'nonsense' could not be read"),
        (["a=1", "nonsense"], "'nonsense' is not key=value"),
        (["--retain", "none.csv"], "none.csv: no such file"),
        (["--method", "unlikelyhood"], "did you mean 'unlikelihood'"),
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
        (["output_dir=x"], "option 'output_dir' is given twice"),
        (["long_rows=cut"], "it must be one of error, truncate_prompt, drop"),
        (["hold=0"], "hold is 0, it must be positive"),
        (["learning_rate=-1e-4"], "learning_rate is -0.0001, it must not be negative"),
        (["adam_beta1=1"], "Invalid beta parameter at index 0: 1"),
        (["report_to=tensorbord"], "tensorbord is not supported"),
        (["eval_strategy=steps", "eval_steps=2"], "but there is no evaluation set"),
        (["lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
        (["--seed", "one"], "argument --seed: invalid int value: 'one' (see unteach run --help)"),
        (["--forget"], "argument --forget: expected one argument"),
        (["--stages", "{sft: ["], "argument --stages: '{sft: [' is not YAML"),
    ],
)
def test_a_wrong_option_of_a_run_is_named_before_anything_is_loaded(capsys, data, words, sentence):
    fails_with(capsys, [*MODEL, *data, *words], sentence)


def test_a_model_that_cannot_be_had_is_named_and_nothing_is_written(capsys, data, tmp_path):
    unknown = "model 'nobody/nothing' could not be loaded"
    fails_with(capsys, ["run", *data], "option --model is missing")
    fails_with(capsys, ["run", "--model", "nobody/nothing", *data], unknown)
    fails_with(capsys, ["eval", "--model", "nobody/nothing", *data], unknown)
    fails_with(capsys, ["run", "--model", str(tmp_path), *data], "is a folder without config.json")
    kept = ["eval", "--model", "m", *data[2:], "--scenario", "copyright", "--retain", "r.jsonl"]
    fails_with(capsys, kept, "option --retain needs --forget")
    assert not (tmp_path / "out").exists()


def test_check_counts_tokens_with_the_tokenizer_of_a_saved_model(capsys, data, tmp_path, tokenizer):
    from tiny_models import tiny_model

    tiny_model().save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    check = ["check", *data[:2], "--model", str(tmp_path / "m")]
    assert main(check) == 0
    capsys.readouterr()
    assert main([*check, "--max-length", "9"]) == 2
    wanted = r"f\.jsonl, line 1: \d+ tokens \(\d+ of them completion\), more than max_length 9"
    assert re.search(wanted, capsys.readouterr().out)


def test_a_bad_config_file_is_named(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("model: [")
    fails_with(capsys, ["run", str(tmp_path / "a.yaml")], "line 1, column 9")
    fails_with(capsys, ["run", str(tmp_path / "none.yaml")], "No such file or directory")
    fails_with(capsys, ["run", str(tmp_path)], "Is a directory")
    (tmp_path / "c.yaml").write_bytes(b"model: caf\xe9")
    fails_with(capsys, ["run", str(tmp_path / "c.yaml")], "can't decode byte 0xe9")
    (tmp_path / "b.yaml").write_text("- model")
    fails_with(capsys, ["run", str(tmp_path / "b.yaml")], "must be a mapping of options")


def test_a_config_file_is_under_the_words_on_the_command_line(seen, tmp_path):
    file = tmp_path / "a.yaml"
    options = {"model": "m", "forget": "f.jsonl", "out": f"{tmp_path}/x", "method": "ga"}
    lines = [f"{name}: {value}\n" for name, value in options.items()]
    more = ["learning_rate: 1e-5\n", "lora: true\n", "max_retain_kl: 1e-2\n", "frozen-layers: 2\n"]
    file.write_text("".join([*lines, *more, "settings: {hold: 3, max_steps: 9}\n"]))
    assert main(["run", str(file), "learning_rate=2e-5", "--seed", "3", "hold=4"]) == 130
    del seen["display"], options["out"]
    typed = {"learning_rate": 2e-5, "seed": 3, "hold": 4}
    rest = {"lora": True, "max_retain_kl": 0.01, "frozen_layers": 2, "max_steps": 9}
    assert seen == options | typed | rest | {"output_dir": f"{tmp_path}/x"}


def test_settings_may_stand_anywhere_among_the_options(seen, data):
    words = ["max_steps=3", "--model", "m", "hold=4", *data, "--lora", "learning_rate=1e-5"]
    assert main(["run", *words, "packing=false", "out-of=1"]) == 130
    wanted = {"max_steps": 3, "hold": 4, "learning_rate": 1e-5, "packing": False, "lora": True}
    assert {name: seen[name] for name in wanted} == wanted and seen["out_of"] == 1


def test_only_what_was_given_reaches_a_run(data):
    from unteach.cli.options import parse

    given = parse("run", load_command("run"), ["--model", "m", *data])
    assert set(run_options(given)) == {"model", "forget", "output_dir"}


def test_a_dry_run_prints_each_value_with_its_source_and_writes_nothing(capsys, tmp_path):
    from tiny_models import tiny_model

    model = tiny_model()
    model.config.save_pretrained(tmp_path / "m")
    file = tmp_path / "a.yaml"
    file.write_text(
        f"model: {tmp_path}/m\nforget: {tmp_path}/rows.jsonl\nout: {tmp_path}/out\nhold: 3\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "Once there was a miller."}\n')
    assert main(["run", str(file), "--dry-run", "max_steps=7", "--lora"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {words[0]: tuple(words[1:]) for words in lines if len(words) >= 2}
    rate = f"{0.3 / model.config.hidden_size:.2g}"
    assert float(shown["learning_rate"][0]) == float(rate)
    wanted = {
        "max_steps": ("7", "user"),
        "hold": ("3", "user"),
        "lora": ("True", "user"),
        "retain_weight": ("5.0", "method"),
        "retain_loss": ("kl", "method"),
        "save_steps": ("10", "default"),
        "seed": ("0", "default"),
        "packing": ("True", "default"),
        "method": ("log_odds_mismatch", "rows"),
    }
    assert {name: shown[name] for name in wanted} == wanted
    assert shown["learning_rate"][1] == "model" and not (tmp_path / "out").exists()
    fails_with(capsys, ["run", str(file), "--dry-run", "hold=0"], "hold is 0, it must be positive")


@pytest.mark.parametrize("method", ["auto", "sft"])
def test_a_dry_run_shows_what_is_set_of_a_method_with_stages_or_a_search(capsys, tmp_path, method):
    from tiny_models import tiny_model

    tiny_model().config.save_pretrained(tmp_path / "m")
    words = ["--model", str(tmp_path / "m"), "--forget", "f", "--out", "o", "--method", method]
    assert main(["run", *words, "--dry-run", "patience=2"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"method +{method} +user", shown) and re.search(r"patience +2 +user", shown)
