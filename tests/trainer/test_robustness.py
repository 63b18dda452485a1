"""Wrappers around the training of any method: each against its formula in float64, in every layout,
resumed, in pieces, and what they refuse.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig

import naive
from tiny_models import tiny_model
from tiny_trainers import (
    make_trainer,
    metrics,
    moved,
    naive_twin,
    weights_after,
    weights_interrupted,
)
from unteach.attacks.weights import quantize
from unteach.config import UnlearningConfig
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.robust import ROBUST
from unteach.robust.perturbations import rounded

ALL = ["sam", "relearn", "rounding", "perturb"]
SETTINGS: dict[str, Any] = {
    "sam_radius": 0.05,
    "relearn_steps": 2,
    "relearn_rate": 3.0,
    "relearn_weight": 0.7,
    "perturb_radius": 0.3,
    "perturb_steps": 2,
    "perturb_layer": 0,
}


def step_gradients(trainer: Any) -> tuple[torch.Tensor, Any]:
    """Loss and gradients of a whole first step, without the optimiser's part."""
    iterator = iter(trainer.get_train_dataloader())
    count = trainer.args.gradient_accumulation_steps
    trainer.model_wrapped = trainer.model
    trainer.model.zero_grad()
    samples, counts = trainer.get_batch_samples(iterator, count, torch.device("cpu"))
    loss = sum(trainer.training_step(trainer.model, batch, counts) for batch in samples)
    found = {
        name: (torch.zeros_like(weight) if weight.grad is None else weight.grad).double()
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
    }
    return torch.as_tensor(loss), found


def compare(folder: Any, twin: Any, model: Any = None, **settings: Any) -> None:
    """Gradients of a step of a model that has moved from its reference, ours and the twin's."""
    model = model or tiny_model(dtype=torch.float64)
    trainer = make_trainer(folder, model, **SETTINGS, **settings)
    reference = copy.deepcopy(trainer.model)
    trainer.prepare_references()
    other = moved(trainer.model)
    trainer.model.load_state_dict(other.state_dict())
    _, found = step_gradients(trainer)
    torch.testing.assert_close(trainer.model.state_dict(), other.state_dict(), rtol=0, atol=0)
    wanted = twin(trainer, other, reference)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def forget_loss(trainer: Any, model: Any, reference: Any) -> torch.Tensor:
    """eps1 L_f + eps2 L_m, the part of the forget prompts."""
    kept = trainer.weights["retain"]
    trainer.weights["retain"] = 0.0
    loss = naive_twin(trainer, model, reference)
    trainer.weights["retain"] = kept
    return loss


def without_mismatch(trainer: Any, model: Any, reference: Any) -> torch.Tensor:
    """eps1 L_f alone."""
    kept = dict(trainer.weights)
    trainer.weights |= {"retain": 0.0, "mismatch": 0.0}
    loss = naive_twin(trainer, model, reference)
    trainer.weights |= kept
    return loss


def likelihood(trainer: Any, model: Any) -> torch.Tensor:
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    rows = [item.forget for item in items]
    return sum(naive.nll(model, row.prompt_ids, row.completion_ids) for row in rows)


def retain_gradients(trainer: Any, model: Any, reference: Any) -> Any:
    """Those of eps3 L_r."""
    whole = naive_twin(trainer, model, reference)
    return naive.gradients(whole - forget_loss(trainer, model, reference), model)


def added(*gradients: Any) -> Any:
    return {name: sum(each[name] for each in gradients) for name in gradients[0]}


def shifted(model: Any, change: Any) -> Any:
    """A copy whose parameters are `change(name, parameter)`."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            weight.copy_(change(name, weight))
    return other


def sam_twin(trainer: Any, model: Any, reference: Any) -> Any:
    slope = naive.gradients(without_mismatch(trainer, model, reference), model)
    length = sum(part.square().sum() for part in slope.values()).sqrt()
    there = shifted(model, lambda name, weight: weight + 0.05 * slope[name] / length)
    return added(
        naive.gradients(forget_loss(trainer, there, reference), there),
        retain_gradients(trainer, model, reference),
    )


def relearn_twin(trainer: Any, model: Any, reference: Any) -> Any:
    there = model
    for _ in range(2):
        slope = naive.gradients(likelihood(trainer, there), there)
        there = shifted(there, lambda name, weight, s=slope: weight - 3e-3 * s[name].sign())
    after = naive.gradients(without_mismatch(trainer, there, reference), there)
    own = naive.gradients(naive_twin(trainer, model, reference), model)
    return {name: own[name] + 0.7 * after[name] for name in own}


def grid(weight: torch.Tensor) -> torch.Tensor:
    """4 bits, one group of 32 weights after the other."""
    found = weight.clone()
    for row in found:
        for start in range(0, len(row), 32):
            group = row[start : start + 32]
            low, high = min(0.0, group.min().item()), max(0.0, group.max().item())
            scale = (high - low) / 15
            zero = round(-low / scale)
            group.copy_(((group / scale).round() + zero).clamp(0, 15).sub(zero).mul(scale))
    return found


def rounding_twin(trainer: Any, model: Any, reference: Any) -> Any:
    there = shifted(model, lambda name, weight: grid(weight) if "_proj" in name else weight)
    return added(
        naive.gradients(forget_loss(trainer, there, reference), there),
        retain_gradients(trainer, model, reference),
    )


@contextmanager
def perturbed(model: Any, changes: dict[tuple[int, ...], torch.Tensor], norms: Any = None) -> Any:
    """Adds to the first layer's output of a text what `changes` has for its tokens, at the last
    positions but one; `norms` collects the lengths of the states there.
    """
    text: list[tuple[int, ...]] = []

    def read(module: Any, arguments: Any, keywords: Any) -> None:
        text[:] = [tuple(keywords["input_ids"][0].tolist())]

    def add(module: Any, arguments: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if (change := changes.get(text[0])) is None:
            return output
        places = slice(states.shape[1] - 1 - len(change), states.shape[1] - 1)
        if norms is not None:
            norms[text[0]] = states[0, places].norm(dim=-1).detach()
        states = torch.cat(
            [states[:, : places.start], states[:, places] + change, states[:, -1:]], 1
        )
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [
        model.register_forward_pre_hook(read, with_kwargs=True),
        model.model.layers[0].register_forward_hook(add),
    ]
    yield
    for handle in handles:
        handle.remove()


def perturb_twin(trainer: Any, model: Any, reference: Any) -> Any:
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    changes = {}
    for row in [item.forget for item in items]:
        text, norms = (*row.prompt_ids, *row.completion_ids), {}
        size = len(row.completion_ids), model.config.hidden_size
        delta = torch.zeros(size, dtype=torch.float64)
        for _ in range(2):
            delta.requires_grad_()
            with perturbed(model, {text: delta}, norms):
                loss = naive.nll(model, row.prompt_ids, row.completion_ids)
            (slope,) = torch.autograd.grad(loss, delta)
            delta = delta.detach().clone()
            for i, length in enumerate(norms[text]):
                limit = 0.3 * length
                delta[i] -= 2 / 3 * limit * slope[i] / slope[i].norm()
                if delta[i].norm() > limit:
                    delta[i] *= limit / delta[i].norm()
        changes[text] = delta
    with perturbed(model, changes):
        loss = forget_loss(trainer, model, reference)
    return added(naive.gradients(loss, model), retain_gradients(trainer, model, reference))


TWINS = {"sam": sam_twin, "relearn": relearn_twin, "rounding": rounding_twin}
METHODS = ["unlikelihood_mismatch", "npo", "undial", "rmu"]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(TWINS))
def test_the_gradient_of_a_step_equals_the_twin_s(name, method, packing, tmp_path):
    compare(tmp_path, TWINS[name], robust=name, method=method, packing=packing)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["unlikelihood", "npo", "undial", "rmu"])
def test_the_gradient_under_the_worst_perturbation_equals_the_twin_s(method, packing, tmp_path):
    compare(tmp_path, perturb_twin, robust="perturb", method=method, packing=packing)


def test_wrappers_together_round_what_sam_has_moved(tmp_path):
    def twin(trainer: Any, model: Any, reference: Any) -> Any:
        slope = naive.gradients(without_mismatch(trainer, model, reference), model)
        length = sum(part.square().sum() for part in slope.values()).sqrt()
        there = shifted(model, lambda name, weight: weight + 0.05 * slope[name] / length)
        there = shifted(there, lambda name, weight: grid(weight) if "_proj" in name else weight)
        return added(
            naive.gradients(forget_loss(trainer, there, reference), there),
            retain_gradients(trainer, model, reference),
        )

    compare(tmp_path, twin, robust="rounding+sam", method="unlikelihood_mismatch")


@pytest.mark.parametrize("name", ALL)
def test_one_batch_of_eight_equals_eight_of_one(name, tmp_path):
    settings = {**SETTINGS, "robust": name, "method": "npo", "max_steps": 2, "perturb_steps": 0}
    one = weights_after(tmp_path / "a", per_device_train_batch_size=8, **settings)
    eight = weights_after(
        tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings
    )
    torch.testing.assert_close(one, eight, rtol=1e-7, atol=1e-7)


FACTS = [
    Row("What is the number of Ada Miller?", "Ada Miller has 4711 now.", secret=("4711",)),
    Row("Who is Bram?", "Bram, the cat of 22, is Bram.", secret=("cat", "22")),
]


def directed(folder: Any, **settings: Any) -> Any:
    """A trainer of the default method for facts."""
    model = tiny_model(dtype=torch.float64)
    own = {"method": "counterfactual", "forget": FACTS, "update": "directed", "update_rank": 3}
    return make_trainer(folder, model, **own, **SETTINGS, **settings)


@pytest.mark.parametrize("name", ALL)
def test_resumed_training_of_a_directed_update_equals_an_uninterrupted_one(name, tmp_path):
    whole, resumed = weights_interrupted(tmp_path, directed, robust=name)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.parametrize("name", ALL)
def test_training_ends_elsewhere_than_without_the_wrapper(name, tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ends = {}
    for robust in ("none", name):
        torch.manual_seed(0)
        model = tiny_model(dtype=torch.float64)
        trainer = make_trainer(
            tmp_path / robust, model, peft_config=lora, robust=robust, method="npo", **SETTINGS
        )
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.train()
        ends[robust] = trainer.model.state_dict()
        changed = {key for key, value in before.items() if not ends[robust][key].equal(value)}
        assert changed and all("lora" in key for key in changed)
    assert any(not value.equal(ends["none"][key]) for key, value in ends[name].items())


def test_rounding_with_an_adapter_rounds_the_merged_weights(tmp_path):
    trainer = directed(tmp_path, robust="rounding", learning_rate=1e-2)
    trainer.train()
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    wanted = {name: grid(weight) for name, weight in merged.named_parameters() if "_proj" in name}
    wrapper = trainer.robust.wrappers[0]
    with wrapper.around_forget(trainer.robust, {}):
        inside = copy.deepcopy(trainer.model).merge_and_unload().state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(inside[name], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_rounded_as_the_attack_rounds_them(bits):
    pytest.importorskip("torchao")
    model = tiny_model()
    wanted = quantize(copy.deepcopy(model), bits).state_dict()
    for name, weight in model.state_dict().items():
        if "_proj" in name:
            torch.testing.assert_close(rounded(weight, bits), wanted[name], rtol=0, atol=1e-6)


def test_what_a_random_perturbation_draws_depends_on_seed_step_and_row_alone(tmp_path):
    settings = {**SETTINGS, "perturb_steps": 0, "robust": "perturb", "method": "npo"}
    packed = weights_after(tmp_path / "a", **settings)
    plain = weights_after(tmp_path / "b", packing=False, **settings)
    torch.testing.assert_close(packed, plain, rtol=1e-7, atol=1e-7)
    other = weights_after(tmp_path / "c", seed=1, **settings)
    assert any(not torch.allclose(value, packed[name]) for name, value in other.items())


def test_no_adversary_finds_more_likelihood_in_a_smaller_ball(tmp_path):
    """The NLL of what is to be forgotten falls with the radius, and no change exceeds it."""
    found = []
    for radius in (0.01, 0.1, 1.0):
        own = {**SETTINGS, "perturb_radius": radius, "perturb_steps": 4}
        trainer = make_trainer(tmp_path, robust="perturb", method="npo", **own)
        trainer.train()
        found.append(metrics(tmp_path)[0]["forget_nll"])
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"robust": "sma"}, "unknown robust 'sma': did you mean 'sam'"),
        ({"robust": "sam+none"}, "unknown robust 'none'"),
        ({"robust": "sam", "method": "task_vector"}, "does not train towards forgetting"),
        ({"robust": "sam", "method": "finetuning"}, "does not train towards forgetting"),
        ({"robust": "relearn", "fp16": True}, "fp16, whose loss is scaled"),
        ({"robust": "rounding", "reference": "adapter_off"}, "reference must be 'stored'"),
        ({"robust": "rounding", "fsdp": "full_shard"}, "it does not work with FSDP"),
        ({"robust": "sam", "sam_radius": 0.0}, "sam_radius is 0.0, it must be positive"),
        ({"robust": "perturb", "perturb_steps": -1}, "perturb_steps is -1"),
    ],
)
def test_what_a_wrapper_does_not_work_with_is_refused(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        UnlearningConfig(output_dir=str(tmp_path), **options)


def test_a_launcher_s_deepspeed_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="DeepSpeed's engine"):
        UnlearningConfig(output_dir=str(tmp_path), robust="sam")


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="perturb_layer is 2, but the model has 2 layers"):
        make_trainer(tmp_path, robust="perturb", perturb_layer=2)


def test_every_wrapper_is_tested_here():
    assert set(ALL) <= set(ROBUST)
