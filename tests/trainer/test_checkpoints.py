"""The weights of the best probe on disk."""

from __future__ import annotations

import pytest
import torch

from tiny_models import FAMILIES, tiny_model
from unteach.errors import UserError
from unteach.trainer.checkpoints import BestWeights, load_weights, save_under_model_names


def test_only_the_best_weights_stay(tmp_path):
    best = BestWeights(tmp_path)
    for step in (2, 4):
        best.folder(step).mkdir()
    best.keep_only({4})
    assert [path.name for path in tmp_path.iterdir()] == ["best-4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_comes_back_whatever_its_name_on_the_hub(tmp_path, family):
    torch.manual_seed(0)
    model = tiny_model(family)
    best = BestWeights(tmp_path)
    best.write(model, 2)
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    best.load(model, 2)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_under_other_names_is_written_again_under_the_model_s(tmp_path):
    torch.manual_seed(0)
    model, other = tiny_model("gpt_neox"), tiny_model("gpt_neox")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"does not hold this model's weights \(embed_out.weight"):
        load_weights(other, tmp_path)
    save_under_model_names(model, tmp_path)
    load_weights(other, tmp_path)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items()
    )
