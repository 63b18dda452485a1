"""Loading, saving and taking apart models."""

from __future__ import annotations

import json

import pytest
import torch

from tiny_models import FAMILIES, byte_level_bpe, tiny_model
from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.errors import UserError
from unteach.models.layers import freeze_lower_layers, unfreeze


@pytest.mark.parametrize("family", FAMILIES)
def test_states_times_head_are_the_model_s_own_logits(family):
    model = tiny_model(family, dtype=torch.float64)
    batch = make_batch([Tree((5, 6, 7), (Branch("retain", (8, 9)),))], packed=False, pad_id=0)
    ours = models.output_head(model).logits(models.predicting_states(model, batch, packed=False))
    wanted = model(input_ids=batch["input_ids"]).logits[0, 2:4]
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


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
    with pytest.raises(UserError, match="could not be loaded"):
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
    with models.adapter_off(again):
        torch.testing.assert_close(again(ids).logits, base(ids).logits)


def test_dropout_is_off_inside_the_block_in_training_mode_too():
    model = tiny_model("opt").train()
    ids = torch.tensor([[1, 2, 3]])
    with models.dropout_off(model):
        torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_frozen_layers_leave_training_and_come_back():
    model = tiny_model()
    frozen = freeze_lower_layers(model, 1)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and all(name.startswith(("model.layers.1", "model.norm")) for name in names)
    unfreeze(frozen)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="frozen_layers is 2, but the model has 2 layers"):
        freeze_lower_layers(model, 2)


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


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "intermediate_size": 48,
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("hyperclovax", {"logits_scaling": 0.25}),
        ("cohere", {"logit_scale": 0.0625}),
        (
            "falcon_h1",
            {
                "lm_head_multiplier": 0.3,
                "mamba_d_ssm": 32,
                "mamba_n_heads": 4,
                "mamba_d_head": 8,
                "mamba_n_groups": 1,
            },
        ),
    ],
)
def test_the_head_scales_logits_as_each_family_does(family, settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SMALL, **settings, pad_token_id=0)
    ).eval()
    ids = torch.tensor([[5, 9, 31, 7]])
    with torch.no_grad():
        hidden = models.decoder(model)(input_ids=ids, return_dict=True).last_hidden_state
        torch.testing.assert_close(
            models.output_head(model).logits(hidden),
            model(input_ids=ids).logits,
            rtol=1e-4,
            atol=1e-5,
        )
