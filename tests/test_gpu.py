"""What runs on a GPU gives what a CPU gives: statistics, every method's loss and gradients,
training, a whole run. Skipped without one.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

import naive
from tiny_models import FAMILIES, tiny_model
from tiny_trainers import make_trainer, moved
from unteach.cli import main
from unteach.methods import METHODS
from unteach.models.token_statistics import (
    forward_kl,
    log_complement,
    log_probability,
    token_statistics,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def loss_and_gradients(
    folder: Any, model: Any, *, use_cpu: bool, **settings: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the first step of a model that has moved away from its reference, on the CPU again."""
    trainer = make_trainer(folder, copy.deepcopy(model), use_cpu=use_cpu, **settings)
    trainer.prepare_references()
    with torch.no_grad():
        for parameter, other in zip(
            trainer.model.parameters(), moved(model).parameters(), strict=True
        ):
            parameter.copy_(other)
    batch = trainer.collator([trainer.training_stream()[i] for i in range(trainer.items_per_step)])
    batch = {
        name: value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.device.type == ("cpu" if use_cpu else "cuda")
    found = naive.gradients(loss, trainer.model)
    return float(loss.detach()), {name: value.double().cpu() for name, value in found.items()}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_is_the_same_there(method, tmp_path):
    settings: dict[str, Any] = {"method": method, "mismatch_completions": 2} | (
        {"retain_weight": 1.0} if method == "rmu" else {}
    )
    wanted = loss_and_gradients(tmp_path / "a", tiny_model(), use_cpu=True, **settings)
    found = loss_and_gradients(tmp_path / "b", tiny_model(), use_cpu=False, **settings)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("reference", ["stored", "live"])
def test_every_family_is_the_same_there(family, packing, reference, tmp_path):
    settings = {"packing": packing, "reference": reference, "method": "ga_mismatch"}
    wanted = loss_and_gradients(tmp_path / "a", tiny_model(family), use_cpu=True, **settings)
    found = loss_and_gradients(tmp_path / "b", tiny_model(family), use_cpu=False, **settings)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "head", [{}, {"scale": 1.7, "softcap": 2.0}], ids=["plain", "scaled and soft-capped"]
)
@pytest.mark.parametrize("budget", [1, 3 * 10**6, 10**9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_statistics_equal_the_formulas_in_float64(head, budget, dtype):
    from unteach.models.parts import OutputHead

    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype, device="cuda")

    hidden, weight, reference, reference_weight = (
        normal(200, 64),
        normal(5000, 64) / 4,
        normal(80, 64),
        normal(5000, 64) / 4,
    )
    targets = torch.randint(5000, (200,), generator=draw, device="cuda")
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    ours = token_statistics(
        hidden,
        targets,
        OutputHead(weight, **head),
        complement=True,
        reference_hidden=reference,
        reference_head=OutputHead(reference_weight, **head),
        budget_bytes=budget,
    )
    values = ours.logp, ours.log_complement, ours.kl
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = OutputHead(wide[1], **head).logits(wide[0])
    kl = forward_kl(
        OutputHead(reference_weight.double(), **head).logits(reference.double()), logits[-80:]
    )
    wanted = log_probability(logits, targets), log_complement(logits, targets), kl
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    gradients = torch.autograd.grad(sum(value.sum() for value in values), leaves)
    wanted_gradients = torch.autograd.grad(sum(value.sum() for value in wanted), wide)
    torch.testing.assert_close(
        [v.double() for v in values], list(wanted), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(
        [g.double() for g in gradients], list(wanted_gradients), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_in_bfloat16_forgets(compiled, lora, tmp_path):
    from peft import LoraConfig

    more = (
        {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")}
        if lora
        else {}
    )
    settings = {
        "method": "ga",
        "use_cpu": False,
        "bf16": True,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "compile_layers": compiled,
    }
    trainer = make_trainer(tmp_path, tiny_model(), **settings, **more)
    losses: list[float] = []
    trainer.on_step = lambda record: losses.append(record["forget_nll"])
    trainer.train()
    assert next(trainer.model.parameters()).device.type == "cuda"
    assert losses[-1] > losses[0] + 0.1


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    settings: dict[str, Any] = {
        "use_cpu": False,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", **settings)

    def interrupt(record: dict[str, float]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    cut.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        cut.train(resume_from_checkpoint=True)
    again = make_trainer(tmp_path / "cut", **settings)
    again.train(resume_from_checkpoint=True)
    torch.testing.assert_close(
        dict(again.model.state_dict()), dict(whole.model.state_dict()), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "extra", [[], ["--lora", "--dtype", "bfloat16"], ["bf16=true"]], ids=["plain", "LoRA", "bf16"]
)
def test_run_eval_and_attack_from_the_command_line(extra, saved_model, tmp_path, capsys):
    for name in ("forget", "retain"):
        rows = [
            {
                "prompt": f"Who is number {i} of {name}?",
                "completion": f"The ferryman, {i} times {name}.",
            }
            for i in range(12)
        ]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    files = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    settings = ["max_steps=4", "probe_steps=2", "similarity_model=null", "min_utility=0", "hold=9"]
    out = str(tmp_path / "out")
    assert main(["run", "--model", saved_model, *files, "--out", out, *settings, *extra]) == 0, (
        capsys.readouterr().err
    )
    assert (
        main(["run", "--model", saved_model, *files, "--out", out, *settings, *extra]) == 0
    )  # again: nothing is left to do
    assert (
        main(["attack", out, "--steps", "2", "--every", "1", "--samples", "2", "--rows", "2"]) == 0
    ), capsys.readouterr().err
    kept = "adapter" if "--lora" in extra else "model"
    evaluated = [
        "eval",
        "--model",
        f"{out}/{kept}",
        "--reference",
        saved_model,
        *files,
        "--out",
        str(tmp_path / "eval"),
    ]
    assert main(evaluated) == 0, capsys.readouterr().err
