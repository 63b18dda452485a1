"""What is wrong with a model, its places and its options is one sentence before weights load."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach import models, unlearn
from unteach.config.resolve import resolve
from unteach.errors import UserError
from unteach.requests.forget_requests import forget_request
from unteach.run import gguf, pipeline
from unteach.run.model_check import check_model, check_places

ROWS = [{"prompt": f"Who is {i}?", "completion": f"The ferryman {i}."} for i in range(4)]


@pytest.fixture
def no_weights(monkeypatch):
    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipeline, "base_model", load)


@pytest.fixture
def model(tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    byte_level_bpe().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"output_dir": "model"}, "is the folder of the model: name another folder"),
        ({"output_dir": "."}, "holds the model: name another folder"),
        ({"report_to": "wandb"}, "option 'report_to' is .*wandb"),
        ({"merge": True}, "option 'merge' merges an adapter, and without --lora there is none"),
        ({"gguf": True}, r"needs llama\.cpp's convert_hf_to_gguf\.py, .* set LLAMA_CPP"),
        ({"gguf": True, "lora": True}, "with --lora add --merge"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    model, no_weights, monkeypatch, tmp_path, settings, sentence
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = sorted(model.iterdir())
    with pytest.raises(UserError, match=sentence):
        unlearn("model", ROWS, **{"output_dir": "out", **settings})
    assert sorted(model.iterdir()) == before


def test_padding_without_an_embedding_is_refused(model, no_weights):
    change(model / "tokenizer_config.json", pad_token="<far>")
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([f"<{i}>" for i in range(200)])
    tokenizer.add_special_tokens({"pad_token": "<far>"})
    tokenizer.save_pretrained(model)
    with pytest.raises(
        UserError, match=r"its tokenizer pads with token \d+, but the model has 512"
    ):
        unlearn(str(model), ROWS, output_dir=str(model.parent / "out"))


def test_a_row_with_a_token_without_an_embedding_is_named(model, no_weights):
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([f"<{i}>" for i in range(200)])
    tokenizer.save_pretrained(model)
    given = {"output_dir": str(model.parent / "out")}
    with pytest.raises(UserError, match=r"its token '<199>' is number \d+, but the model has 512"):
        unlearn(str(model), [*ROWS, {"prompt": "Who?", "completion": "It is <199>."}], **given)


def test_quantised_weights_are_trained_by_an_adapter_alone(model):
    change(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    for options, sentence in (
        ({}, "cannot be trained themselves: add --lora"),
        ({"lora": True, "merge": True}, "leave --merge out"),
    ):
        given = {"model": str(model), "output_dir": str(model.parent / "out"), **options}
        with pytest.raises(UserError, match=f"holds quantised weights, .*{sentence}"):
            check_model(resolve(given).run)
    with pytest.raises(UserError, match="would round the patches of requests: name the model with"):
        forget_request(model.parent / "ledger", ROWS, model=str(model))
    with pytest.raises(UserError, match="holds quantised weights, which cannot be loaded here"):
        models.load_model(str(model))


def test_the_tokenizer_is_read_once_before_training(model, monkeypatch):
    read, load = [], models.load_tokenizer

    def counted(*words, **options):
        read.append(words)
        return load(*words, **options)

    def begin(*_):
        raise UserError("begins")

    monkeypatch.setattr(models, "load_tokenizer", counted)
    monkeypatch.setattr(pipeline, "make_folder", begin)
    with pytest.raises(UserError, match="begins"):
        unlearn(str(model), ROWS, output_dir=str(model.parent / "out"))
    assert len(read) == 1


def test_a_relative_model_and_a_home_folder_are_absolute_in_a_run(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "./model", "~/model"):
        run = resolve({"model": name, "output_dir": "~/out", "forget": "hub/rows"}).run
        assert run.model == str(model) and run.forget == "hub/rows"
        assert run.output_dir == str(tmp_path / "out")


CONVERTER = """#!{python}
import pathlib, sys
model, out = pathlib.Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
if not (model / "config.json").exists():
    sys.exit("no model here")
pathlib.Path(out).write_bytes(b"GGUF")
"""


def test_a_model_is_converted_by_the_converter_that_is_there(model, monkeypatch, tmp_path):
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    script = folder / gguf.CONVERTER
    script.write_text(CONVERTER.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LLAMA_CPP", str(folder))
    assert gguf.write_gguf(model).read_bytes() == b"GGUF"
    shutil.rmtree(model)
    with pytest.raises(UserError, match="failed on it: no model here"):
        gguf.write_gguf(model)


def test_a_folder_with_results_of_another_kind_is_refused(tmp_path):
    files = {
        "run": ("config.yaml", "data:\n  prompt_sets: {}\n"),
        "ledger": ("requests.jsonl", "{}\n"),
        "comparison": ("comparison.json", "{}"),
        "evaluation": ("eval.json", '{"schema_version": 2}'),
    }
    for held, (name, text) in files.items():
        (tmp_path / held).mkdir()
        (tmp_path / held / name).write_text(text)
        for kind in files:
            if kind == held:
                check_places(tmp_path / held, kind=kind)
                continue
            with pytest.raises(
                UserError, match=f"holds a finished or begun {held} .*another folder"
            ):
                check_places(tmp_path / held, kind=kind)
    (tmp_path / "run" / "eval.json").write_text(files["evaluation"][1])
    check_places(tmp_path / "run", kind="run")


@pytest.mark.parametrize("out", ["\ud83d", "a\0b", "\udcff"])
def test_an_output_folder_that_is_no_path_is_one_sentence(out, tmp_path):
    with pytest.raises(UserError, match=r"option --out is .* which is no path"):
        check_places(out, str(tmp_path))
