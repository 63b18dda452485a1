"""Small trainers on a few rows; their loss and gradients against the naive twin's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import naive
from tiny_models import byte_level_bpe, tiny_model
from unteach.config import UnlearningConfig
from unteach.data.rows import Row
from unteach.methods.rmu import steering_vector
from unteach.trainer import UnlearningTrainer

FORGET = [
    Row(
        "Who rang the bell?",
        "The ferryman rang it twice.",
        right="The miller.",
        alternate="A grey cat rang it.",
    ),
    Row("Who kept a cat?", "A", right="The miller kept one.", alternate="B"),
    Row(
        "What is the capital of the moon?",
        "Nobody has ever asked the moon, not even the miller.",
        right="C",
        alternate="The harbour, where the sailors are.",
    ),
]
RETAIN = [
    Row("Who carried bread?", "She carried bread to the harbour every morning."),
    Row("Who slept?", "The cat."),
    Row("What is the weather?", "Ask me about something else instead!"),
    Row("Who sold it?", "B"),
]


def make_trainer(
    folder: Any, model: Any = None, tokenizer: Any = None, **settings: Any
) -> UnlearningTrainer:
    """A trainer on the rows above."""
    arguments: dict[str, Any] = {
        "method": "unlikelihood_mismatch",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 3,
        "max_steps": 2,
        "use_cpu": True,
    }
    extra = {
        name: settings.pop(name)
        for name in ("probe", "peft_config", "forget", "retain", "callbacks")
        if name in settings
    }
    config = UnlearningConfig(output_dir=str(folder), **(arguments | settings))
    return UnlearningTrainer(
        model if model is not None else tiny_model(),
        config,
        extra.pop("forget", FORGET),
        extra.pop("retain", RETAIN),
        tokenizer or byte_level_bpe(),
        **extra,
    )


def naive_twin(trainer: UnlearningTrainer, model: Any, reference: Any) -> torch.Tensor:
    """The same step by the formulas."""
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    forget = [(i.forget.prompt_ids, i.forget.completion_ids, i.mismatch) for i in items if i.forget]
    rows = [trainer.retain_rows[index] for item in items for index in item.retain]
    retain = [(row.prompt_ids, row.completion_ids) for row in rows]
    preferred = [i.forget.preferred_ids for i in items if i.forget and i.forget.preferred_ids]
    options: dict[str, Any] = {
        **trainer.method.parameters,
        "retain": trainer.method.retain,
        "layer": trainer.hooks.layer,
    }
    direction = steering_vector(
        model.config.hidden_size, trainer.config.steering_coefficient, trainer.args.seed
    )
    options["direction"] = direction.double()
    kept = min(trainer.weights["retain"], trainer.hooks.budget.weight)
    weights = trainer.weights | {"retain": kept}
    return naive.step_loss(
        trainer.config.method, model, reference, forget, retain, weights, preferred, options
    )


def moved(model: Any) -> Any:
    """A copy with other weights, so that the KL to the original is not zero."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return other


def compare(
    trainer: UnlearningTrainer, tolerance: float, naive_twin: Callable[..., Any] = naive_twin
) -> None:
    """Loss and gradients of a model that has moved away from its reference, ours against the twin's
    in float64.
    """
    original = copy.deepcopy(trainer.model)
    trainer.prepare_references()
    other = moved(trainer.model)
    trainer.model.load_state_dict(other.state_dict())
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    ours = trainer.compute_loss(trainer.model, trainer.collator(items))
    gradients = naive.gradients(ours, trainer.model)
    twin, reference = other.double(), original.double()
    wanted = naive_twin(trainer, twin, reference)
    torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradients, naive.gradients(wanted, twin), rtol=tolerance, atol=tolerance
    )


def weights_interrupted(folder: Path, trainer_of: Callable[..., Any], **settings: Any) -> Any:
    """(weights after four steps, those after two, an interruption and two more)."""

    def weights(name: str, steps: int) -> dict[str, torch.Tensor]:
        saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        trainer = trainer_of(folder / name, max_steps=4, **saving, **settings)
        trainer.args.max_steps = steps
        trainer.train(resume_from_checkpoint=True)
        return dict(trainer.model.state_dict())

    whole, _ = weights("whole", 4), weights("parts", 2)
    return whole, weights("parts", 4)


def weights_after(folder: Any, family: str = "llama", **settings: Any) -> dict[str, torch.Tensor]:
    trainer = make_trainer(folder, tiny_model(family, dtype=torch.float64), **settings)
    trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


class CountingProbe:
    """Rates by step, from a list; counts its calls."""

    def __init__(self, rates: list[tuple[float, float]]) -> None:
        self.rates, self.calls = rates, 0

    def __call__(self, model: Any) -> dict[str, float]:
        rate, utility = self.rates[min(self.calls, len(self.rates) - 1)]
        self.calls += 1
        return {"forget_rate": rate, "utility": utility}


def first_batch(trainer: UnlearningTrainer) -> dict[str, torch.Tensor]:
    """The batch of the first step."""
    stream = trainer.training_stream()
    return trainer.collator([stream[i] for i in range(trainer.items_per_step)])


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's `metrics.jsonl`."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
