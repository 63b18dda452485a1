"""The trainer's loss and gradients against the naive twin, and the promises of a run."""

from __future__ import annotations

import copy
import json
import os
import shutil
from typing import Any

import pytest
import torch

from tiny_models import FAMILIES, byte_level_bpe, tiny_model
from tiny_trainers import (
    FORGET,
    CountingProbe,
    compare,
    make_trainer,
    metrics,
    weights_after,
)
from unteach.config import UnlearningConfig
from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError
from unteach.methods import METHODS
from unteach.trainer import UnlearningTrainer
from unteach.trainer.step import role_tokens


def first_batch_loss(trainer: UnlearningTrainer) -> torch.Tensor:
    """Loss of the first batch, the way `train` computes it."""
    trainer.prepare_references()
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer.collator(items))
    return loss


WITH_A_TWIN = [name for name, method in METHODS.items() if not method.counterfactual]
"""Methods whose loss follows from token ids; test_counterfactual.py has the twin of the other."""


@pytest.mark.parametrize("method", WITH_A_TWIN)
def test_every_method_equals_its_twin_in_float64(method, tmp_path):
    compare(
        make_trainer(
            tmp_path, tiny_model(dtype=torch.float64), method=method, mismatch_completions=2
        ),
        1e-9,
    )


@pytest.mark.parametrize("method", WITH_A_TWIN)
def test_every_method_equals_its_twin_in_float32(method, tmp_path):
    steers = method in ("rmu", "adaptive_rmu")
    near = {"retain_weight": 1.0} if steers else {}  # 1200 would multiply float32's rounding, too
    compare(
        make_trainer(tmp_path, tiny_model(), method=method, mismatch_completions=2, **near), 1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", [True, False])
def test_every_family_equals_the_twin(family, packing, tmp_path):
    compare(make_trainer(tmp_path, tiny_model(family, dtype=torch.float64), packing=packing), 1e-9)


@pytest.mark.parametrize("count", range(1, 8))
def test_any_number_of_mismatch_completions_equals_the_twin(count, tmp_path):
    compare(
        make_trainer(
            tmp_path,
            tiny_model(dtype=torch.float64),
            method="ga_mismatch",
            mismatch_completions=count,
        ),
        1e-9,
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [True, False])
def test_padding_side_and_a_pad_token_that_is_a_real_token_change_nothing(side, pad, tmp_path):
    tokenizer = byte_level_bpe(pad=pad)
    tokenizer.padding_side = side
    trainer = make_trainer(
        tmp_path, tiny_model(dtype=torch.float64), tokenizer, packing=False, forget_end_of_turn=True
    )
    assert (tokenizer.pad_token_id == tokenizer.eos_token_id) is not pad
    assert all(row.completion_ids[-1] == tokenizer.eos_token_id for row in trainer.forget_rows)
    compare(trainer, 1e-9)


def test_any_tokenizer_equals_the_twin(any_tokenizer, tmp_path):
    compare(make_trainer(tmp_path, tiny_model(dtype=torch.float64), any_tokenizer), 1e-9)


@pytest.mark.parametrize("reference", ["stored", "live"])
def test_a_stored_reference_is_as_exact_as_a_live_one(reference, tmp_path):
    compare(make_trainer(tmp_path, tiny_model(dtype=torch.float64), reference=reference), 1e-9)


def test_with_an_adapter_the_reference_is_the_model_without_it(tmp_path):
    from peft import LoraConfig

    losses = {}
    for choice in ("stored", "adapter_off", "live"):
        lora = LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        torch.manual_seed(3)
        trainer = make_trainer(
            tmp_path / choice, tiny_model(dtype=torch.float64), peft_config=lora, reference=choice
        )
        trainer.prepare_references()
        items = [trainer.training_stream()[i] for i in range(3)]
        roles = role_tokens(trainer.model, trainer.collator(items), trainer.reference, trainer.spec)
        losses[choice] = roles["retain"].statistics.kl.detach()
    torch.testing.assert_close(losses["stored"], losses["adapter_off"], rtol=1e-9, atol=1e-9)
    assert losses["stored"].min() > 0
    assert losses["live"].abs().max() < 1e-9, (
        "a live copy is made of the model as it is, adapter on"
    )


def test_before_the_first_step_the_kl_is_zero_though_the_model_has_dropout(tmp_path):
    """OPT here has dropout 0.1; the released code trains with it on against a reference without."""
    trainer = make_trainer(tmp_path, tiny_model("opt"), max_steps=1)
    trainer.train()
    lines = metrics(tmp_path)
    first = next(line for line in lines if "loss" in line)
    assert abs(first["retain_kl"]) < 1e-6
    assert trainer.model.model.decoder.layers[0].dropout == 0.1, "dropout is back after training"


@pytest.mark.parametrize("caches", [True, False])
def test_training_leaves_whether_a_model_caches_as_it_was(caches, tmp_path):
    model = tiny_model()
    model.config.use_cache = caches
    trainer = make_trainer(tmp_path, model, max_steps=1)
    trainer.train()
    assert trainer.model.config.use_cache is caches


def test_one_batch_of_four_equals_four_batches_of_one(tmp_path):
    forget = [*FORGET, Row("Who sat down?", "The sailors sat down on the sacks.")]
    one = weights_after(tmp_path / "a", forget=forget, per_device_train_batch_size=4, max_steps=3)
    four = weights_after(
        tmp_path / "b",
        forget=forget,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        max_steps=3,
    )
    torch.testing.assert_close(one, four, rtol=1e-9, atol=1e-9)


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(tmp_path):
    first, second, other = (
        weights_after(tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, family):
    settings: dict[str, Any] = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_retain_kl": 0.01,
    }
    whole = weights_after(tmp_path / "whole", family, **settings)
    cut = make_trainer(tmp_path / "cut", tiny_model(family, dtype=torch.float64), **settings)

    def interrupt(record: dict[str, float]) -> None:
        if record["step"] == 5:
            raise KeyboardInterrupt

    cut.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        cut.train(resume_from_checkpoint=True)
    again = make_trainer(tmp_path / "cut", tiny_model(family, dtype=torch.float64), **settings)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in whole.items())
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_training_resumed_with_other_processes_keeps_its_batch_and_its_rows(tmp_path):
    """As where four processes become one: what a step holds is that of the first start."""
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    settings: dict[str, Any] = {**saving, "lr_scheduler_type": "constant"}
    begun = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **settings}
    whole = weights_after(tmp_path / "whole", **begun)
    cut = make_trainer(tmp_path / "cut", tiny_model(dtype=torch.float64), **begun)
    cut.args.max_steps = 2
    cut.train(resume_from_checkpoint=True)
    for size, step in ((3, "size that divides 4"), (1, "")):
        other = {"per_device_train_batch_size": size, **settings}
        again = make_trainer(tmp_path / "cut", tiny_model(dtype=torch.float64), **other)
        if step:
            with pytest.raises(UserError, match=f"begun with 4 rows a step.*{step}"):
                again.train(resume_from_checkpoint=True)
    again.train(resume_from_checkpoint=True)
    assert again.args.gradient_accumulation_steps == again.items_per_step == 4
    found = dict(again.model.state_dict())
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)


def test_training_stops_when_behaviour_has_held_and_not_on_the_loss(tmp_path):
    probe = CountingProbe([(1, 1), (0.5, 1), (0, 1), (0, 1), (0, 1)])
    trainer = make_trainer(tmp_path, probe=probe, max_steps=50, probe_steps=2, hold=2)
    trainer.train()
    assert trainer.state.global_step == 6 and "2 probes in a row" in trainer.rule.reason


def test_the_best_probe_s_weights_are_what_remains(tmp_path):
    kept: dict[str, Any] = {}
    probe = CountingProbe([(1, 1), (0.2, 1), (0, 0.5), (0, 0.5)])
    trainer = make_trainer(
        tmp_path, tiny_model(), probe=probe, max_steps=9, probe_steps=2, min_utility=0.8, hold=9
    )
    trainer.on_step = lambda record: kept.update(
        {int(record["step"]): {n: p.clone() for n, p in trainer.model.state_dict().items()}}
        if "loss" in record
        else {}
    )
    trainer.train()
    assert (
        trainer.state.global_step == 6
        and "utility fell to 50%" in trainer.rule.reason
        and trainer.rule.best_step == 2
    )
    assert all(
        torch.equal(value, trainer.model.state_dict()[name]) for name, value in kept[2].items()
    )


def test_a_run_that_its_rule_has_ended_is_not_trained_on_when_started_again(tmp_path):
    settings: dict[str, Any] = {
        "max_steps": 20,
        "probe_steps": 2,
        "save_strategy": "steps",
        "save_steps": 100,
    }
    rates = [(1.0, 1.0), (0.0, 1.0), (0.0, 1.0)]
    first = make_trainer(tmp_path, probe=CountingProbe(rates), **settings)
    first.train(resume_from_checkpoint=True)
    again_probe = CountingProbe(rates)
    again = make_trainer(tmp_path, probe=again_probe, **settings)
    again.train(resume_from_checkpoint=True)
    assert again_probe.calls == 0 and again.state.global_step == first.state.global_step == 4
    assert all(
        torch.equal(value, again.model.state_dict()[name])
        for name, value in first.model.state_dict().items()
    )


TERM_OF = {"forget": "loss", "mismatch": "nll", "retain": "kl"}
"""A role and what the metrics call its term."""


def test_the_retain_budget_moves_its_weight(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, max_retain_kl=1e-4, learning_rate=1e-2)
    trainer.train()
    lines = metrics(tmp_path)
    weights = [line["retain_weight"] for line in lines]
    assert weights[1] == pytest.approx(0.95 * weights[0]) and weights[2] == pytest.approx(
        1.15 * weights[1]
    )


def test_the_forget_term_weighs_more_after_each_probe_that_finds_something(tmp_path):
    rates = [(0.9, 1.0), (0.5, 1.0), (0.5, 1.0), (0.5, 0.5), (0.5, 0.5)]
    settings = {"max_steps": 4, "probe_steps": 1, "forget_growth": 2.0, "save_steps": 2}
    settings |= {"save_strategy": "steps", "min_utility": 0.1, "max_retain_kl": None}
    trainer = make_trainer(tmp_path, probe=CountingProbe(rates), **settings)
    trainer.train()
    steps = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["forget_factor"] for line in steps] == [1, 2, 4, 2]
    weights = trainer.config.weights
    for line in steps:
        terms = {name: line[f"{name}_{kind}"] for name, kind in TERM_OF.items()}
        expected = sum(weights[name] * value for name, value in terms.items())
        expected += (line["forget_factor"] - 1) * weights["forget"] * terms["forget"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    again = make_trainer(tmp_path, probe=CountingProbe(rates[3:]), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["forget_factor"] for line in resumed] == [1, 2, 4, 2]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in steps]


def test_metrics_have_a_line_for_each_step_with_every_term(tmp_path):
    make_trainer(tmp_path).train()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    for name in (
        "loss",
        "forget_nll",
        "mismatch_nll",
        "retain_kl",
        "retain_weight",
        "learning_rate",
        "tokens",
        "seconds",
    ):
        assert all(name in line for line in lines), name


def test_a_loss_that_is_not_finite_is_one_clear_sentence(tmp_path):
    model = tiny_model()
    trainer = make_trainer(tmp_path, model)
    trainer.on_step = lambda record: model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan at step 2.*lower the learning rate"):
        trainer.train()


def test_gradient_ascent_lowers_what_it_is_to_forget_and_finetuning_does_not_look_at_it(tmp_path):
    trainer = make_trainer(tmp_path, method="ga", max_steps=8, learning_rate=3e-3)
    trainer.train()
    lines = metrics(tmp_path)
    assert lines[-1]["forget_nll"] > lines[0]["forget_nll"] + 0.1
    tuned = make_trainer(tmp_path / "b", method="finetuning", forget=None)
    assert not tuned.forget_rows
    tuned.train()


def test_what_does_not_go_together_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="needs forget_dataset"):
        make_trainer(tmp_path, forget=None)
    with pytest.raises(UserError, match="needs retain_dataset"):
        make_trainer(tmp_path, retain=None)
    with pytest.raises(UserError, match="adapter_off"):
        make_trainer(tmp_path, reference="adapter_off")
    with pytest.raises(
        UserError, match=r"mismatch_weight is 1.0, but method 'ga' has no mismatch term"
    ):
        make_trainer(tmp_path, method="ga", mismatch_weight=1.0)


def test_no_retain_set_is_needed_by_a_method_without_one(tmp_path):
    trainer = make_trainer(tmp_path, method="ga_no_retain", retain=None)
    trainer.train()
    assert trainer.state.global_step == 2


def test_rows_that_are_encoded_already_are_taken_as_they_are(tmp_path):
    rows = [EncodedRow("k", (1, 2), (3,), "text"), EncodedRow("l", (4,), (5, 6), "text")]
    trainer = make_trainer(tmp_path, forget=rows, retain=rows[::-1], per_device_train_batch_size=2)
    trainer.train()
    assert list(trainer.forget_rows) == rows


def test_an_architecture_whose_packed_rows_differ_goes_on_with_plain_ones(tmp_path, monkeypatch):
    from unteach import models

    right = models.predicting_states

    def wrong(model: Any, batch: Any, *, packed: bool) -> torch.Tensor:
        hidden = right(model, batch, packed=packed)
        return hidden * 1.5 if packed else hidden

    monkeypatch.setattr(models, "predicting_states", wrong)
    trainer = make_trainer(tmp_path, max_steps=1)
    with pytest.warns(UserWarning, match="packed rows give other log-probabilities"):
        trainer.train()
    assert trainer.collator.packed is False


def test_bfloat16_autocast_trains_and_stays_near_float32(tmp_path):
    exact = first_batch_loss(make_trainer(tmp_path / "a"))
    rough = make_trainer(tmp_path / "b", bf16=True)
    rough.train()
    line = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(exact.item(), rel=0.03)


@pytest.mark.parametrize("lora", [False, True])
def test_after_training_in_mixed_precision_the_model_is_asked_in_its_own(lora, tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    trainer = make_trainer(tmp_path, peft_config=adapter, bf16=True, max_steps=2)
    wrapped = trainer.model
    trainer.train()
    ids = torch.arange(4, 12)[None]
    logits = wrapped(input_ids=ids).logits
    assert trainer.model is wrapped and "forward" not in vars(wrapped)
    torch.testing.assert_close(
        logits, type(wrapped).forward(wrapped, input_ids=ids).logits, rtol=0, atol=0
    )
    assert not torch.equal(logits.bfloat16().float(), logits)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
@pytest.mark.parametrize(
    "settings", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str
)
def test_the_gradient_of_a_shared_embedding_is_that_of_autograd(
    family, settings, tmp_path, monkeypatch
):
    from contextlib import nullcontext

    from unteach import models

    def gradient(name: str) -> torch.Tensor:
        trainer = make_trainer(
            tmp_path / name, tiny_model(family), method="ga_mismatch", **settings
        )
        layer = trainer.model.get_input_embeddings()
        assert layer.weight is trainer.model.get_output_embeddings().weight
        trainer.prepare_references()
        items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
        for part in (items[:1], items):  # the second is added to the first, as micro-batches are
            batch = trainer.collator(part)
            trainer.training_step(
                trainer.model,
                batch,
                trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)[1],
            )
        assert "forward" not in vars(layer)
        return layer.weight.grad

    ours = gradient("a")
    monkeypatch.setattr(models, "shared_lookup", lambda model: nullcontext())
    torch.testing.assert_close(ours, gradient("b"), rtol=1e-6, atol=1e-7)


def far_apart(model: Any) -> Any:
    """The model with logits so far apart that bfloat16's rounding moves single log-probabilities by
    more than 0.2.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(3)
        model.model.norm.weight.mul_(60)
    return model


@pytest.mark.filterwarnings("error:packed rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_of_bfloat16_is_not_taken_for_a_wrong_packing(dtype, tmp_path):
    trainer = make_trainer(tmp_path, far_apart(tiny_model()).to(dtype), bf16=True, max_steps=1)
    trainer.train()
    assert trainer.collator.packed is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_packing_is_seen_in_bfloat16_too(dtype, tmp_path, monkeypatch):
    from unteach import models

    right = models.predicting_states

    def wrong(model: Any, batch: Any, *, packed: bool) -> torch.Tensor:
        return right(
            model,
            batch | {"branch": torch.zeros_like(batch["branch"])} if packed else batch,
            packed=packed,
        )

    monkeypatch.setattr(models, "predicting_states", wrong)
    trainer = make_trainer(tmp_path, far_apart(tiny_model()).to(dtype), bf16=True, max_steps=1)
    with pytest.warns(UserWarning, match="packed rows give other log-probabilities"):
        trainer.train()
    assert trainer.collator.packed is False


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", ["log_odds", "unlikelihood", "ga"])
def test_losses_on_what_the_model_is_sure_of_equal_the_twin(method, dtype, tolerance, tmp_path):
    """The completions are the model's own greedy ones, so that p is large and every branch of the
    loss is used.
    """
    from unteach.evaluation.generation import generate_ids

    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    prompts = [(5, 6, 7), (8,), (9, 10)]
    said = generate_ids(model, prompts, max_new_tokens=6, pad_id=0, end_ids=[])
    forget = [
        EncodedRow(str(i), prompt, tuple(ids), "chat")
        for i, (prompt, ids) in enumerate(zip(prompts, said, strict=True))
    ]
    trainer = make_trainer(tmp_path, model, forget=forget, method=method)
    batch = trainer.collator([trainer.training_stream()[i] for i in range(3)])
    roles = role_tokens(model, batch, trainer.reference, trainer.spec)
    assert roles["forget"].statistics.logp.exp().max() > 0.1
    compare(trainer, tolerance)


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX") or "g++"), reason="there is no C++ compiler"
)
def test_compiled_layers_train_to_the_same_weights(tmp_path):
    """With packed rows, whose number and length change from step to step."""
    settings = {
        "method": "ga_mismatch",
        "max_steps": 3,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "retain_per_forget": 0.5,
    }
    plain = make_trainer(tmp_path / "plain", **settings)
    compiled = make_trainer(tmp_path / "compiled", compile_layers=True, **settings)
    for trainer in (plain, compiled):
        trainer.train()
    for (name, wanted), found in zip(
        plain.model.named_parameters(), compiled.model.parameters(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_whose_rows_are_not_said_at_the_start_says_so(tmp_path):
    rates = [(0, 1)]
    with pytest.warns(UserWarning, match="the forget rate of the probe is at or under target_rate"):
        make_trainer(tmp_path, probe=CountingProbe(rates), max_steps=4, probe_steps=2).train()


def test_the_caller_s_args_stay_as_they_are_and_serve_a_second_trainer(tmp_path):
    """Three forget rows and nine, an epoch each, in batches of three: one step and three."""
    config = UnlearningConfig(
        output_dir=str(tmp_path),
        method="ga_no_retain",
        per_device_train_batch_size=3,
        num_train_epochs=1,
        use_cpu=True,
    )
    before = copy.deepcopy(config.to_dict())
    steps = []
    for copies in (1, 3):
        rows = [Row(f"{row.prompt} {i}", row.completion) for row in FORGET for i in range(copies)]
        trainer = UnlearningTrainer(tiny_model(), config, rows, None, byte_level_bpe())
        trainer.train()
        steps.append(trainer.state.global_step)
        assert config.to_dict() == before
    assert steps == [1, 3]
