"""`--robust distill`: the noise by its formula, the loss by a twin, and resumed wherever it was."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch

from tiny_models import SHORT, byte_level_bpe, tiny_model
from tiny_trainers import RETAIN, make_trainer, metrics, weights_interrupted
from unteach import unlearn
from unteach.config import UnlearningConfig
from unteach.errors import UserError
from unteach.robust.distillation import add_noise, settings_of
from unteach.run import training
from unteach.seeding import row_generator
from unteach.trainer.distillation import distillation_trainer

FIRST = {"method": "npo", "robust": "distill", "learning_rate": 1e-3}


def second(folder: Any, model: Any = None, **settings: Any) -> Any:
    """A trainer of the second training."""
    first = UnlearningConfig(output_dir=str(folder), **FIRST)
    own = {"per_device_train_batch_size": 3, "use_cpu": True}
    config = UnlearningConfig(
        output_dir=str(folder), **{**settings_of(first, 32), **own, **settings}
    )
    model = model or tiny_model(dtype=torch.float64)
    return distillation_trainer(model, config, RETAIN, byte_level_bpe(), 0.2, 0.5)


def test_noise_by_its_formula():
    model = tiny_model(dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    add_noise(model, 0.2, 0.5, seed=3)
    for name, weight in model.named_parameters():
        wanted = before[name]
        if weight is not frozen:
            wanted = 0.8 * wanted
            if weight.dim() == 2:
                bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
                drawn = row_generator("distill", 3, name).uniform(-bound, bound, weight.shape)
                wanted = wanted + 0.2 * 0.5 * torch.from_numpy(drawn)
        torch.testing.assert_close(weight.data, wanted, rtol=1e-12, atol=1e-12)


def test_the_first_loss_is_the_kl_from_the_teacher_to_the_noised_student(tmp_path):
    """Mean over the completions' tokens of the rows of the step."""
    model = tiny_model(dtype=torch.float64)
    teacher, student = copy.deepcopy(model), copy.deepcopy(model)
    add_noise(student, 0.2, 0.5, seed=42)
    trainer = second(tmp_path, model, max_steps=1)
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    rows = [trainer.retain_rows[index] for item in items for index in item.retain]
    values = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        start = len(row.prompt_ids) - 1
        own, wanted = (
            one(input_ids=ids).logits[0, start:-1].log_softmax(-1) for one in (student, teacher)
        )
        values += (wanted.exp() * (wanted - own)).sum(-1).tolist()
    trainer.train()
    first = metrics(tmp_path)[0]
    assert first["loss"] == pytest.approx(sum(values) / len(values), rel=1e-6) and first["loss"] > 0


def test_the_student_nears_the_teacher(tmp_path):
    second(tmp_path, max_steps=40, learning_rate=3e-3).train()
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] / 3


def test_resumed_distillation_equals_an_uninterrupted_one(tmp_path):
    whole, resumed = weights_interrupted(tmp_path, second)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def rows_in(tmp_path: Any) -> list[str]:
    files = {"forget": ("Who is {}?", "The ferryman, {}."), "retain": ("What is {}?", "Flour {}.")}
    for name, (prompt, completion) in files.items():
        rows = [{"prompt": prompt.format(i), "completion": completion.format(i)} for i in range(8)]
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [str(tmp_path / f"{name}.jsonl") for name in files]


def test_a_run_distils_what_it_has_unlearned_and_goes_on_where_it_ended(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_level_bpe(chat=True).save_pretrained(tmp_path / "model")
    files, more = rows_in(tmp_path), {"robust": "sam+distill", "distill_steps": 4, "save_steps": 2}

    def record(name: str) -> dict[str, Any]:
        options = {**SHORT, **more, "method": "npo"}
        unlearn(str(tmp_path / "model"), *files, output_dir=str(tmp_path / name), **options)
        return json.loads((tmp_path / name / "run.json").read_text())

    whole = record("whole")
    made = training.distillation_trainer

    def interrupted(*arguments: Any) -> Any:
        trainer = made(*arguments)
        step = trainer.training_step

        def after_three(*inputs: Any, **how: Any) -> Any:
            if trainer.state.global_step == 3:
                raise KeyboardInterrupt
            return step(*inputs, **how)

        monkeypatch.setattr(trainer, "training_step", after_three)
        return trainer

    monkeypatch.setattr(training, "distillation_trainer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record("parts")
    monkeypatch.setattr(training, "distillation_trainer", made)
    resumed = record("parts")
    assert resumed["unlearned_model_hash"] == whole["unlearned_model_hash"]
    assert whole["robust"] == "sam+distill" and whole["costs"][-1]["stage"] == "distillation"
    assert whole["cost"]["training_tokens"] > whole["costs"][-1]["training_tokens"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [({"lora": True}, "merge=true"), ({"frozen_layers": 1, "update": "all"}, "'frozen_layers'")],
)
def test_what_keeps_weights_from_training_is_refused(options, told, tmp_path):
    with pytest.raises(UserError, match=told):
        unlearn(
            "model", *rows_in(tmp_path), output_dir=str(tmp_path / "o"), robust="distill", **options
        )


def test_the_trainer_alone_has_no_second_training(tmp_path):
    with pytest.raises(UserError, match="a second training"):
        make_trainer(tmp_path, robust="sam+distill", method="npo")
    with pytest.raises(UserError, match="distill_noise is 1"):
        UnlearningConfig(output_dir=str(tmp_path), robust="distill", distill_noise=1.0)
    with pytest.raises(UserError, match="forgets nothing"):
        UnlearningConfig(output_dir=str(tmp_path), robust="distill", method="finetuning")
