"""Methods that read the reference on forget rows or at inner layers: every family, layout and
source of the reference gives the same.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tiny_models import FAMILIES, byte_level_bpe, tiny_model
from tiny_trainers import compare, make_trainer, moved, naive_twin, weights_after
from unteach.data.rows import Row
from unteach.errors import UserError

OF_EACH_KIND = ("npo", "dpo_idk", "undial", "rmu", "pdu")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
@pytest.mark.parametrize("method", OF_EACH_KIND)
def test_every_family_equals_the_twin(method, family, tmp_path):
    compare(
        make_trainer(tmp_path, tiny_model(family, dtype=torch.float64), method=method),
        1e-8 if method == "rmu" else 1e-9,
    )


@pytest.mark.parametrize("method", [*OF_EACH_KIND, "simnpo", "satimp", "ceu"])
def test_plain_rows_equal_the_twin_too(method, tmp_path):
    compare(
        make_trainer(tmp_path, tiny_model(dtype=torch.float64), method=method, packing=False),
        1e-8 if method == "rmu" else 1e-9,
    )


@pytest.mark.parametrize("retain", ["kl", "nll", "none"])
@pytest.mark.parametrize("method", ["npo", "undial", "rmu", "unlikelihood_mismatch"])
def test_every_retain_term_goes_with_every_kind_of_method(method, retain, tmp_path):
    trainer = make_trainer(
        tmp_path, tiny_model(dtype=torch.float64), method=method, retain_loss=retain
    )
    assert trainer.weights["retain"] == (0 if retain == "none" else 1)
    compare(trainer, 1e-9)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_distance_of_states_equals_the_twin(family, packing, tmp_path):
    """Beside the retain KL of each token ||h - h_ref||^2 / ||h_ref||^2 of the last layer."""
    settings = {"method": "unlikelihood_mismatch", "packing": packing}
    model = tiny_model(family, dtype=torch.float64)
    trainer = make_trainer(tmp_path, model, state_weight=3.0, **settings)

    def twin(trainer, model, reference):
        plain = naive_twin(trainer, model, reference)
        items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
        rows = [trainer.retain_rows[index] for item in items for index in item.retain]
        distances = []
        for row in rows:
            ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
            places = range(len(row.prompt_ids) - 1, ids.shape[1] - 1)
            last, known = (
                each(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
                for each in (model, reference)
            )
            for place in places:
                difference = last[place] - known[place].detach()
                distances.append(difference.square().sum() / known[place].detach().square().sum())
        return plain + 3.0 * trainer.weights["retain"] * sum(distances) / len(distances)

    compare(trainer, 1e-9, twin)


def test_the_distance_of_states_is_the_same_in_eight_batches_of_one(tmp_path):
    settings = {"method": "unlikelihood_mismatch", "state_weight": 3.0, "max_steps": 2}
    one = weights_after(tmp_path / "a", per_device_train_batch_size=8, **settings)
    eight = weights_after(
        tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings
    )
    torch.testing.assert_close(one, eight, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("retain", ["nll", "none"])
def test_the_distance_of_states_needs_the_retain_kl(retain, tmp_path):
    with pytest.raises(UserError, match=r"state_weight is 3.0, .* retain_loss=kl only"):
        make_trainer(tmp_path, method="npo", retain_loss=retain, state_weight=3.0)


@pytest.mark.parametrize("method", ["dpo_idk", "undial", "rmu"])
def test_a_live_reference_equals_the_twin(method, tmp_path):
    compare(
        make_trainer(tmp_path, tiny_model(dtype=torch.float64), method=method, reference="live"),
        1e-8 if method == "rmu" else 1e-9,
    )


@pytest.mark.parametrize("method", ["altpo", "undial", "rmu"])
def test_with_an_adapter_the_stored_reference_is_the_model_without_it(method, tmp_path):
    from peft import LoraConfig

    losses = {}
    for choice in ("stored", "adapter_off"):
        lora = LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        torch.manual_seed(3)
        model = tiny_model(dtype=torch.float64)
        trainer = make_trainer(
            tmp_path / choice, model, method=method, peft_config=lora, reference=choice
        )
        trainer.prepare_references()
        loss = trainer.compute_loss(
            trainer.model, trainer.collator([trainer.training_stream()[i] for i in range(3)])
        )
        losses[choice] = loss.detach()
    torch.testing.assert_close(losses["stored"], losses["adapter_off"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["npo", "dpo_right", "pdu", "rmu"])
def test_one_batch_of_eight_equals_eight_of_one(method, tmp_path):
    """More items than forget rows: a row comes twice in a step, its two sequences stay apart."""
    settings: dict[str, Any] = {"method": method, "max_steps": 2, "dual_step_size": 1.0}
    one = weights_after(tmp_path / "a", per_device_train_batch_size=8, **settings)
    eight = weights_after(
        tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings
    )
    torch.testing.assert_close(one, eight, rtol=1e-7, atol=1e-7)


def test_a_pad_token_that_is_the_end_of_every_answer_changes_no_sequence_loss(tmp_path):
    """A mask rebuilt from ids != pad would leave the end token out of log p(y | x), in one layout
    or the other.
    """
    losses = []
    for packing in (True, False):
        tokenizer = byte_level_bpe(pad=False)
        trainer = make_trainer(
            tmp_path / str(packing),
            tiny_model(dtype=torch.float64),
            tokenizer,
            method="npo",
            packing=packing,
        )
        trainer.prepare_references()
        trainer.model.load_state_dict(moved(trainer.model).state_dict())
        batch = trainer.collator([trainer.training_stream()[i] for i in range(3)])
        assert int((batch["role"] == 0).sum()) == sum(
            len(row.completion_ids) for row in trainer.forget_rows
        )
        losses.append(trainer.compute_loss(trainer.model, batch).detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)


def test_at_the_start_npo_and_dpo_are_what_equal_likelihoods_give(tmp_path):
    """log ratio 0: NPO is 2/beta log 2, DPO 1/beta log 2, whatever the rows' lengths; padding
    dilutes nothing.
    """
    for method, wanted in (("npo", 2 / 0.1), ("dpo_right", 1 / 0.1)):
        trainer = make_trainer(
            tmp_path / method, tiny_model(dtype=torch.float64), method=method, retain_loss="none"
        )
        trainer.prepare_references()
        loss = trainer.compute_loss(
            trainer.model, trainer.collator([trainer.training_stream()[i] for i in range(3)])
        )
        assert loss.item() == pytest.approx(wanted * 0.6931471805599453, rel=1e-9)


def test_a_missing_preferred_completion_is_named(tmp_path):
    plain = [Row("Who rang?", "The cat.", source="bad.jsonl, line 1")]
    with pytest.raises(
        UserError,
        match=r"bad.jsonl, line 1: method 'dpo_right' prefers the right answer.*field 'right'",
    ):
        make_trainer(tmp_path, forget=plain, method="dpo_right")
    with pytest.raises(
        UserError, match=r"line 1: method 'altpo' prefers another answer.*field 'alternate'"
    ):
        make_trainer(tmp_path, forget=plain, method="altpo")
    same = [Row("Who rang?", "The cat.", source="x", right="The cat.")]
    with pytest.raises(UserError, match="the two are the same"):
        make_trainer(tmp_path, forget=same, method="dpo_right")


def test_running_text_can_prefer_not_knowing(tmp_path):
    rows = [
        Row("The miller kept a", " grey cat that slept.", "text"),
        Row("Every morning she", " carried bread.", "text"),
    ]
    kept = [Row(f"{row.prompt} again", row.completion, "text") for row in rows]
    trainer = make_trainer(
        tmp_path,
        tiny_model(dtype=torch.float64),
        forget=rows,
        retain=kept,
        method="dpo_idk",
        per_device_train_batch_size=2,
    )
    assert all(row.preferred_ids for row in trainer.forget_rows)
    compare(trainer, 1e-9)


@pytest.mark.parametrize("method", ["npo", "dpo_idk", "undial", "rmu", "pdu", "task_vector"])
def test_with_lora_only_the_adapter_changes(method, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, method=method, peft_config=lora, max_steps=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {
        name
        for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed and all("lora" in name for name in changed)


def test_bfloat16_autocast_gives_finite_losses(tmp_path):
    for method in ("dpo_right", "undial", "rmu", "pdu"):
        trainer = make_trainer(tmp_path / method, method=method, bf16=True)
        trainer.train()
        lines = [
            json.loads(line)
            for line in (tmp_path / method / "metrics.jsonl").read_text().splitlines()
        ]
        assert all(line["loss"] == line["loss"] for line in lines)
