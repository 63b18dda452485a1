"""Known faults of the released code and of similar projects, tested on ours; the right numbers are
computed here.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import naive
from tiny_models import byte_level_bpe, tiny_model
from tiny_trainers import FORGET, RETAIN, make_trainer
from unteach import models
from unteach.data.completions import MismatchPool
from unteach.data.packing import PADDING, ROLE_IDS, Branch, Tree, common_prefix, make_batch
from unteach.data.rows import Row
from unteach.data.sources import load_rows
from unteach.data.tokenization import encode_row, encode_rows, end_of_turn_id
from unteach.errors import UserError
from unteach.files.state_file import StateFile
from unteach.models.parts import OutputHead
from unteach.models.token_statistics import forward_kl, token_statistics
from unteach.trainer.step import role_tokens


def row_nll(model: Any, trees: list[Tree], *, packed: bool, pad_id: int = 0) -> torch.Tensor:
    """Mean NLL over the completion tokens of a batch."""
    batch = make_batch(trees, packed=packed, pad_id=pad_id)
    hidden = models.predicting_states(model, batch, packed=packed)
    return -token_statistics(hidden, batch["target"], models.output_head(model)).logp.mean()


def test_a_prompt_that_ends_in_a_space_loses_no_token_of_a_one_token_answer(tokenizer):
    model = tiny_model(dtype=torch.float64)
    clean, spaced = (
        encode_row(Row(prompt, " cat", "text"), tokenizer, None)
        for prompt in ("The miller kept a grey", "The miller kept a grey ")
    )
    assert clean.prompt_ids == spaced.prompt_ids and clean.completion_ids == spaced.completion_ids
    assert tokenizer.decode(spaced.completion_ids) == " cat"
    loss = row_nll(
        model, [Tree(spaced.prompt_ids, (Branch("forget", spaced.completion_ids),))], packed=True
    )
    assert loss.item() == pytest.approx(
        naive.nll(model, spaced.prompt_ids, spaced.completion_ids).item()
        / len(spaced.completion_ids)
    )
    assert loss > 1


def test_a_tokenizer_with_a_maximum_length_cuts_nothing():
    tokenizer = byte_level_bpe()
    tokenizer.model_max_length = 4
    row = Row("A prompt that is much longer than four tokens", "and its answer")
    item = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
    assert len(item) > 8 and tokenizer.decode(item.completion_ids[:-1]).strip() == "and its answer"


def test_the_mismatch_loss_falls_on_the_completion_alone(tmp_path):
    """Its share of prompt tokens is 0: the targets are the drawn completions and nothing else."""
    trainer = make_trainer(tmp_path, mismatch_completions=3)
    items = [trainer.training_stream()[i] for i in range(3)]
    batch = trainer.collator(items)
    targets = sorted(batch["target"][batch["role"] == 1].tolist())
    assert targets == sorted(token for item in items for ids in item.mismatch for token in ids)


def test_every_position_of_a_two_token_answer_counts_the_same():
    model = tiny_model(dtype=torch.float64)
    first, second = (
        -logp[token]
        for logp, token in zip(naive.distributions(model, (5, 6), (7, 8)), (7, 8), strict=True)
    )
    loss = row_nll(model, [Tree((5, 6), (Branch("forget", (7, 8)),))], packed=True)
    assert loss.item() == pytest.approx(((first + second) / 2).item(), rel=1e-9)


@pytest.mark.parametrize("packed", [True, False])
def test_padding_dilutes_nothing_whatever_the_pad_id(packed):
    """The same short row alone and beside a long one, padded with a token that also occurs in the
    rows.
    """
    model = tiny_model(dtype=torch.float64)
    short = Tree((5,), (Branch("forget", (7, 1)),))
    long = Tree(tuple(range(20, 60)), (Branch("retain", tuple(range(60, 90)), 1.0, 0),))
    alone = naive.nll(model, (5,), (7, 1))
    for pad_id in (0, 1, 7):
        batch = make_batch([short, long], packed=packed, pad_id=pad_id)
        hidden = models.predicting_states(model, batch, packed=packed)
        logp = token_statistics(hidden, batch["target"], models.output_head(model)).logp
        assert -logp[batch["role"] == 0].sum().item() == pytest.approx(alone.item(), rel=1e-9)


def test_an_end_of_turn_that_is_also_the_pad_token_is_trained_like_any_other(chat_tokenizer):
    assert chat_tokenizer.pad_token_id == chat_tokenizer.eos_token_id
    item = encode_row(Row("Who slept?", "The cat."), chat_tokenizer, end_of_turn_id(chat_tokenizer))
    assert item.completion_ids[-1] == chat_tokenizer.pad_token_id
    batch = make_batch(
        [Tree(item.prompt_ids, (Branch("forget", item.completion_ids),))],
        packed=True,
        pad_id=chat_tokenizer.pad_token_id,
    )
    assert batch["target"].tolist() == list(item.completion_ids)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kl_of_a_model_with_itself_is_zero_in_every_precision(dtype):
    head = OutputHead(torch.randn(300, 16).mul(8).to(dtype))
    hidden = torch.randn(6, 16).to(dtype)
    targets = torch.zeros(6, dtype=torch.long)
    kl = token_statistics(hidden, targets, head, reference_hidden=hidden, reference_head=head).kl
    assert kl is not None and kl.abs().max() < 1e-5


def test_the_gradient_of_the_kl_does_not_vanish_far_away():
    """q gives the reference's token exp(-60): d KL / d z = q - p = -1 there."""
    logits = torch.tensor([[0.0, 60.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(forward_kl(torch.tensor([[40.0, 0.0]]), logits).sum(), logits)
    assert gradient.tolist() == [pytest.approx([-1.0, 1.0])]


def test_the_kl_term_looks_at_completions_only_and_is_a_mean_over_their_tokens(tmp_path):
    trainer = make_trainer(tmp_path, tiny_model(dtype=torch.float64))
    trainer.prepare_references()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.05)
    wide = trainer.collator([trainer.training_stream()[i] for i in range(3)])
    roles = role_tokens(trainer.model, wide, trainer.reference, trainer.spec)
    assert len(roles["retain"].statistics.kl) == int((wide["role"] == ROLE_IDS["retain"]).sum())
    trainer.collator.packed = False
    batch = trainer.collator([trainer.training_stream()[i] for i in range(3)])
    plain = role_tokens(trainer.model, batch, trainer.reference, trainer.spec)
    torch.testing.assert_close(
        plain["retain"].statistics.kl.mean(),
        roles["retain"].statistics.kl.mean(),
        rtol=1e-9,
        atol=1e-9,
    )


def test_more_forget_rows_than_retain_rows_are_all_used_in_a_pass(tmp_path):
    """A zip with the retain loader would end after two rows."""
    forget = [Row(f"Question {i}?", f"Answer {i}.") for i in range(9)]
    trainer = make_trainer(
        tmp_path, forget=forget, retain=RETAIN[:2], max_steps=3, mismatch_completions=1
    )
    stream = trainer.training_stream()
    assert {item.forget.key for item in (stream[i] for i in range(9)) if item.forget} == {
        row.key for row in trainer.forget_rows
    }


def test_mismatch_completions_are_good_answers_that_are_not_empty_and_from_training_rows_only(
    tmp_path, tokenizer
):
    path = tmp_path / "TruthfulQA.csv"
    header = "Question,Best Answer,Incorrect Answers\n"
    path.write_text(
        header + 'Who rang?,The ferryman,"The cat; The moon"\nWho slept?,The cat slept,Nobody\n',
        encoding="utf-8",
    )
    rows = load_rows(path, "retain")
    assert [row.completion for row in rows] == ["The ferryman", "The cat slept"]
    with pytest.raises(UserError, match=r"line 3.*'completion' is empty"):
        path.write_text(header + "A?,b,c\nB?,,c\n", encoding="utf-8")
        load_rows(path, "retain")
    encoded = encode_rows([Row("Who?", text) for text in ("one", "two", "three")], tokenizer)
    pool = MismatchPool(encoded, 3, seed=0)
    drawn = pool.draw(encode_rows([FORGET[0]], tokenizer)[0], epoch=0)
    assert set(drawn) == {row.completion_ids for row in encoded}


def test_rows_of_one_batch_get_different_mismatch_completions(tmp_path):
    retain = [Row(f"Question {i}?", f"A different answer, number {i}.") for i in range(30)]
    trainer = make_trainer(tmp_path, retain=retain, mismatch_completions=5)
    drawn = [trainer.training_stream()[i].mismatch for i in range(3)]
    assert len(set(drawn)) == 3


def test_a_prompt_is_forwarded_once_and_not_once_for_each_of_its_completions(tmp_path):
    trainer = make_trainer(tmp_path, mismatch_completions=4)
    items = [trainer.training_stream()[i] for i in range(3)]
    batch = trainer.collator(items)
    completions = [(i.forget.completion_ids, *i.mismatch) for i in items if i.forget]
    once = sum(len(i.forget.prompt_ids) for i in items if i.forget) + sum(
        len(ids) - 1 for group in completions for ids in group
    )
    retain = sum(len(trainer.retain_rows[index]) - 1 for item in items for index in item.retain)
    rows = [
        *(i.forget for i in items if i.forget),
        *(trainer.retain_rows[index] for i in items for index in i.retain),
    ]
    prompts = [row.prompt_ids for row in rows]
    shared_prefix = len(common_prefix(prompts)) * (len(prompts) - len(batch["input_ids"]))
    assert int((batch["tree"] != PADDING).sum()) == once + retain - shared_prefix


def test_nothing_is_tokenised_and_no_second_model_is_held_while_it_trains(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    monkeypatch.setattr(
        type(trainer.processing_class),
        "__call__",
        lambda *_, **__: pytest.fail("tokenised in the loop"),
    )
    trainer.train()
    assert isinstance(trainer.reference.values["retain"].values, StateFile)  # on the disk
    assert trainer.reference.head.weight.numel() < size / 2


def test_logits_are_made_where_a_completion_token_is_predicted_and_nowhere_else(
    tmp_path, monkeypatch
):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.prepare_references()
    batch = trainer.collator([trainer.training_stream()[i] for i in range(3)])
    seen: list[int] = []
    right = OutputHead.logits

    def counted(self: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return right(self, hidden)

    monkeypatch.setattr(OutputHead, "logits", counted)
    role_tokens(trainer.model, batch, trainer.reference, trainer.spec)
    completion, retain = len(batch["target"]), int((batch["role"] == ROLE_IDS["retain"]).sum())
    assert sum(seen) == completion + retain < batch["input_ids"].numel()


def test_the_end_of_sequence_is_trained_and_a_long_prompt_eats_no_answer(tokenizer):
    long = Row("word " * 50, "The answer.", source="file, line 7")
    assert encode_rows([long], tokenizer)[0].completion_ids[-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match=r"file, line 7.*truncation would cut the completion"):
        encode_rows([long], tokenizer, max_length=20)
    cut = encode_rows([long], tokenizer, max_length=20, long_rows="truncate_prompt")[0]
    whole = encode_rows([long], tokenizer)[0]
    assert (
        cut.completion_ids == whole.completion_ids
        and cut.prompt_ids[:2] == whole.prompt_ids[:2]  # the header of the turn stays
        and cut.prompt_ids[-2:] == whole.prompt_ids[-2:]
        and len(cut) <= 20
    )


def test_a_collapsed_model_s_likelihood_stays_in_log_space():
    """At a loss of 25 nats, adding 1e-10 to a probability would be off by a factor of eight."""
    from unteach.evaluation.likelihood import mean_nll

    model = tiny_model(dtype=torch.float64)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        ids = (7, 8)
        hidden = models.predicting_states(
            model,
            make_batch([Tree((5,), (Branch("forget", ids),))], packed=False, pad_id=0),
            packed=False,
        )
        model.lm_head.weight[7] -= 25 * hidden[0] / hidden[0].square().sum()
        model.lm_head.weight[8] -= 25 * hidden[1] / hidden[1].square().sum()
    (found,) = mean_nll(model, [(5,)], [ids])
    assert found == pytest.approx(naive.nll(model, (5,), ids).item() / 2, rel=1e-9) and found > 20
    assert math.isfinite(found)
