"""Adapters in folders: their base, their layers, merging, and their sum as one adapter."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tiny_models import byte_level_bpe, tiny_model
from unteach import models
from unteach.errors import UserError
from unteach.models import adapters
from unteach.models.adapters import adapter_config, adapter_targets, check_summable, write_sum

IDS = torch.tensor([[1, 2, 3, 400, 7]])


def adapter(root, name: str, base: str = "base", **settings):
    """A folder with an adapter whose weights are random, and the model's logits with it."""
    from peft import LoraConfig, get_peft_model

    if not (root / "base").exists():
        tiny_model().save_pretrained(root / "base")
        byte_level_bpe().save_pretrained(root / "base")
    torch.manual_seed(len(name))
    options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    options |= {"target_modules": ["q_proj", "up_proj"], **settings}
    tuned = get_peft_model(models.load_model(str(root / base)), LoraConfig(**options))
    with torch.no_grad():
        for part, weight in tuned.named_parameters():
            if "modules_to_save" in part:
                weight.add_(torch.randn_like(weight) * 0.1)
    tuned.save_pretrained(root / name)
    return tuned.eval()(IDS).logits.detach()


KINDS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 3},
    "other ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}},
    "one layer by pattern": {"target_modules": r".*\.1\..*(v_proj|down_proj)"},
    "one layer by number": {"layers_to_transform": [1]},
    "whole output layer": {"modules_to_save": ["lm_head"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_and_one_on_top_of_it_are_one_adapter_that_plain_peft_loads(kind, tmp_path):
    """Merged, loaded as a model and saved again too: embeddings that were tied are so no more."""
    from peft import AutoPeftModelForCausalLM, PeftModel

    first = adapter(tmp_path, "first", **KINDS[kind])
    merged = models.load_model(str(tmp_path / "first"))
    torch.testing.assert_close(merged(IDS).logits, first, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "whole")
    again = models.load_model(str(tmp_path / "whole"))
    torch.testing.assert_close(again(IDS).logits, first, rtol=1e-4, atol=1e-4)

    wanted = adapter(tmp_path, "second", base="first", target_modules="all-linear")
    root, chain = models.adapter_chain(str(tmp_path / "first"))
    parts = [*chain, str(tmp_path / "second")]
    write_sum(models.load_model(root), root, parts, tmp_path / "sum")
    loaded = [
        AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "sum")),
        PeftModel.from_pretrained(models.load_model(str(tmp_path / "base")), tmp_path / "sum"),
        models.load_model(str(tmp_path / "sum")),
    ]
    for model in loaded:
        found = model.eval()(IDS).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_an_adapter_is_merged_after_it(tmp_path):
    adapter(tmp_path, "first")
    wanted = adapter(tmp_path, "second", base="first")
    path = tmp_path / "second" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "../first"}))
    found = models.load_model(str(tmp_path / "second"))
    torch.testing.assert_close(found(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    assert models.adapter_chain(str(tmp_path / "second"))[0] == str(tmp_path / "base")
    assert models.load_tokenizer(str(tmp_path / "second")).pad_token == "<pad>"
    assert models.load_config(str(tmp_path / "second")).model_type == "llama"


def test_what_is_wrong_with_an_adapter_is_one_sentence(tmp_path):
    adapter(tmp_path, "dora", use_dora=True)
    with pytest.raises(UserError, match=r"use_dora=True.* add --merge for a whole model"):
        check_summable(tmp_path / "dora")
    path = tmp_path / "dora" / "adapter_config.json"
    settings = json.loads(path.read_text())
    for base, sentence in (
        ("/gone/base", "was trained on /gone/base, which is not there"),
        (None, "has no base_model_name_or_path"),
        (str(tmp_path / "dora"), "is its own base model"),
    ):
        path.write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        with pytest.raises(UserError, match=sentence):
            models.load_model(str(tmp_path / "dora"))
    path.write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json could not be read"):
        models.load_model(str(tmp_path / "dora"))


def test_an_adapter_of_another_model_is_refused_and_no_part_of_it_left_out(tmp_path):
    from safetensors.torch import load_file, save_file

    adapter(tmp_path, "one")
    path = tmp_path / "one" / "adapter_model.safetensors"
    whole = load_file(path)
    first = next(iter(whole))
    renamed = {key.replace("layers.1", "layers.7"): value for key, value in whole.items()}
    less = {key: value for key, value in whole.items() if key != first}
    for tensors, sentence in (
        (renamed, "missing adapter keys"),
        (less, "missing adapter keys"),
        (
            {**whole, first.replace("layers.0", "layers.7"): whole[first] + 1},
            "9 tensors, and 8 have a",
        ),
    ):
        save_file(tensors, path)
        with pytest.raises(UserError, match=f"onto its base model .*{sentence}"):
            models.load_model(str(tmp_path / "one"))


def test_prompt_tuning_changes_no_weights_and_is_refused(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    tiny_model().save_pretrained(tmp_path / "base")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    tuned = get_peft_model(models.load_model(str(tmp_path / "base")), config)
    tuned.save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="of type PROMPT_TUNING, which changes no weights"):
        models.load_model(str(tmp_path / "prompt"))


def test_a_relative_path_of_a_base_model_is_absolute_in_what_is_written(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert models.resolve("base") == str(tmp_path / "base")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.resolve("~/base") == str(tmp_path / "base") == os.path.abspath("base")


def test_an_adapter_goes_on_all_linear_layers_of_a_language_model():
    model = tiny_model()
    assert adapter_targets(model) == "all-linear"
    assert adapter_config(model, 4, scale=2.0).lora_alpha == 8


def test_a_model_that_peft_can_adapt_nowhere_is_one_sentence(monkeypatch):
    monkeypatch.setattr(adapters, "_accepted", lambda model, targets: False)
    with pytest.raises(
        UserError, match=r"LlamaForCausalLM has no linear layer .* leave out --lora"
    ):
        adapter_targets(tiny_model())
