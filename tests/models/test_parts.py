"""The parts of a model: head, layers."""

from __future__ import annotations

import pytest
import torch

from tiny_models import FAMILIES, tiny_model
from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.errors import UserError
from unteach.models.parts import freeze_lower_layers, unfreeze


@pytest.mark.parametrize("family", FAMILIES)
def test_states_times_head_are_the_model_s_own_logits(family):
    model = tiny_model(family, dtype=torch.float64)
    batch = make_batch([Tree((5, 6, 7), (Branch("retain", (8, 9)),))], packed=False, pad_id=0)
    ours = models.output_head(model).logits(models.predicting_states(model, batch, packed=False))
    wanted = model(input_ids=batch["input_ids"]).logits[0, 2:4]
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_frozen_layers_leave_training_and_come_back():
    model = tiny_model()
    frozen = freeze_lower_layers(model, 1)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and all(name.startswith(("model.layers.1", "model.norm")) for name in names)
    unfreeze(frozen)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="frozen_layers is 2, but the model has 2 layers"):
        freeze_lower_layers(model, 2)


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
