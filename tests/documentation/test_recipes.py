"""The recipes are what the generator makes of their shapes, and train a tiny model of their
class.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import FORGET, RETAIN, byte_level_bpe
from unteach import UnlearningTrainer
from unteach.config.resolve import flat, resolve
from unteach.config.values import read_config
from unteach.models.adapters import adapter_config
from unteach.models.loading import auto_class

ROOT = Path(__file__).parents[2]
RECIPES = runpy.run_path(str(ROOT / "docs/make_recipes.py"))
TINY = (32, 64, 2, 4, 2, 512)
OF_CLASS = {recipe.config: name for name, recipe in RECIPES["RECIPES"].items()}
"""One recipe of each class of configuration."""


def test_the_committed_recipes_are_up_to_date():
    stale = [
        path.name for path, text in RECIPES["written"]().items() if path.read_text("utf-8") != text
    ]
    assert not stale, "run python docs/make_recipes.py"


def test_no_recipe_is_without_its_shape():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == set(RECIPES["RECIPES"])


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3.1-8b", 8.03), ("qwen2.5-7b", 7.62), ("gemma-2-2b", 2.61), ("mistral-7b", 7.25),
     ("smollm3-3b", 3.08), ("phi-4-mini", 3.84), ("opt-1.3b", 1.32)],
)  # fmt: skip
def test_a_shape_has_the_parameters_that_its_model_card_says(name, billions):
    head = (ROOT / f"recipes/{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert float(head.split(": ")[1].split("B ")[0]) == pytest.approx(billions, rel=0.01)


def tiny(name: str) -> Any:
    """A tiny model of the recipe's class."""
    recipe = RECIPES["RECIPES"][name]
    more: dict[str, Any] = {"head_dim": 8} if "head_dim" in recipe.more else {}
    if "vision_config" in recipe.more:
        eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 4, "image_size": 28, "patch_size": 14}  # fmt: skip
        more = {"vision_config": eyes, "mm_tokens_per_image": 4}
    config = RECIPES["Recipe"](
        recipe.model, recipe.config, TINY, {}, tied=recipe.tied, more=more
    ).configuration()
    torch.manual_seed(0)
    return auto_class(config).from_config(config)


@pytest.mark.parametrize("name", OF_CLASS.values())
def test_a_recipe_trains_a_tiny_model_of_its_class(name, tmp_path):
    given = flat(read_config(str(ROOT / f"recipes/{name}.yaml")))
    resolved = resolve({**given, "max_steps": 1, "bf16": False, "use_cpu": True})
    config = resolved.with_width(32).unlearning_config(str(tmp_path))
    model = tiny(name)
    trainer = UnlearningTrainer(
        model,
        config,
        forget_dataset=FORGET[:4],
        retain_dataset=RETAIN[:4],
        processing_class=byte_level_bpe(chat=True),
        peft_config=adapter_config(model, resolved.run.lora_rank, scale=1.0)
        if resolved.run.lora
        else None,
    )
    trainer.train()
    assert trainer.state.global_step == 1
