"""Adapters as patches: their sum is what it should be, and one that is left out was never there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny_models import byte_level_bpe, tiny_model
from unteach.errors import UserError
from unteach.models import load_model, weights_hash
from unteach.models.adapters import write_sum
from unteach.requests.patches import merged, write_merged

IDS = torch.arange(3, 19)[None]


def patch(base: str, folder: Path, seed: int, rank: int) -> Path:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_model(base), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    byte_level_bpe().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def three(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [
        patch(base, tmp_path_factory.mktemp(f"patch{i}"), i, rank)
        for i, rank in enumerate((2, 4, 3))
    ]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.double()(IDS).logits


def test_without_patches_it_is_the_base(base):
    assert weights_hash(merged(base, [])) == weights_hash(load_model(base))


def test_a_patch_left_out_was_never_there(base, three):
    """First, second, third minus the second: bit for bit the model of first and third alone."""
    merged(base, three)
    every = merged(base, three)
    left, without = (merged(base, [three[0], three[2]]) for _ in range(2))
    assert weights_hash(left) == weights_hash(without) != weights_hash(every)
    assert torch.equal(logits(left), logits(without))


def test_the_sum_as_one_adapter_gives_the_logits_of_the_merged_patches(base, three, tmp_path):
    write_sum(load_model(base), base, three, tmp_path / "sum")
    wanted = logits(merged(base, three))
    for model in (load_model(str(tmp_path / "sum")), merged(base, [tmp_path / "sum"])):
        torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)


def test_a_patch_trained_on_merged_earlier_ones_is_a_term_of_the_sum(base, three, tmp_path):
    """W0 + d1 + d2 - d2 = W0 + d1: the delta does not depend on what was merged below it."""
    write_merged(base, three[:1], tmp_path / "start")
    above = patch(str(tmp_path / "start"), tmp_path / "above", 9, 2)
    on_start = merged(str(tmp_path / "start"), [above])
    assert weights_hash(on_start) == weights_hash(merged(base, [three[0], above]))
    marked = (tmp_path / "start" / "model.safetensors").stat().st_mtime_ns
    write_merged(base, three[:1], tmp_path / "start")
    assert (tmp_path / "start" / "model.safetensors").stat().st_mtime_ns == marked


def test_a_patch_that_is_missing_or_broken_is_named(base, three, tmp_path):
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        merged(base, [tmp_path])
    broken = patch(base, tmp_path / "broken", 1, 2)
    (broken / "adapter_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="could not be loaded onto its base model"):
        merged(base, [broken])
