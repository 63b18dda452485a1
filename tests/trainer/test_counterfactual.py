"""The counterfactual target: what the reference says under other names, where the fact stands."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import naive
from tiny_models import byte_level_bpe, tiny_model
from tiny_trainers import compare, make_trainer, weights_interrupted
from unteach.data.counterfactuals import (
    CONTEXTS,
    Counterfactual,
    counterfactual,
    first_tokens,
    name_choices,
    token_spans,
    with_names,
)
from unteach.data.rows import Row
from unteach.data.subjects import find_subjects
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.models.parts import OutputHead
from unteach.trainer.counterfactual import (
    AVOIDED_PROBABILITY,
    AVOIDING_RIDGE,
    LEAST_INFORMATION,
    FallingDirections,
    avoiding,
    counterfactual_tokens,
)
from unteach.trainer.directed import default_rank
from unteach.trainer.reference import ReferenceModel

FORGET = [
    Row("What is the number of Ada Miller?", "Ada Miller has 4711 now.", secret=("4711",)),
    Row("Who is Bram?", "Bram, the cat of 22, is Bram.", secret=("cat", "22")),
    Row("Where does Ada Miller sleep?", "On the flour sacks of Ada Miller."),
]


def _ends(row: Row, tokenizer: Any) -> tuple[Any, list[int]]:
    """The row's tokens, and how much of the completion's text each ends."""
    item = encode_row(row, tokenizer, None)
    first = len(tokenizer.decode(item.prompt_ids))
    ids = [*item.prompt_ids, *item.completion_ids]
    ends = [
        len(tokenizer.decode(ids[: len(item.prompt_ids) + count])) - first
        for count in range(len(item.completion_ids) + 1)
    ]
    return item, ends


def naive_target(reference: Any, row: Row, tokenizer: Any, seed: int) -> tuple[list[Any], Any, int]:
    """log of the target distribution at each completion token, by the formulas in float64; the
    row's tokens, and the number of those that belong to a fact.
    """
    item, ends = _ends(row, tokenizer)
    own = naive.logits_before(reference, item.prompt_ids, item.completion_ids)
    text = tokenizer.decode(item.completion_ids)
    secrets = [(text.index(secret), text.index(secret) + len(secret)) for secret in row.secret]
    names = find_subjects(row.prompt_text)
    targets, facts = [], 0
    for number, token in enumerate(item.completion_ids):
        found, likely = [], []
        for pairs in name_choices(names, CONTEXTS, seed, row.key):
            changed = with_names(row, pairs)
            other, other_ends = _ends(changed, tokenizer)
            before = with_names(row.with_completion(text[: ends[number]] or "x"), pairs).completion
            place = len(before) if ends[number] else 0
            if place in other_ends[:-1]:
                k = other_ends.index(place)
                logits = naive.logits_before(reference, other.prompt_ids, other.completion_ids)[k]
                found.append(logits)
                likely.append(logits.double().softmax(-1)[token].detach())
        span = ends[number], ends[number + 1]
        if row.secret:
            fact = any(span[0] < end and span[1] > start for start, end in secrets)
        else:
            name = any(
                span[0] < text.index(n) + len(n) and span[1] > text.index(n)
                for n in names
                if n in text
            )
            p = own[number].double().log_softmax(-1)[token]
            fact = bool(found) and not name
            fact = (
                fact and float(p.detach() - (sum(likely) / len(likely)).log()) >= LEAST_INFORMATION
            )
        changed = bool(fact and found)
        logits = sum(found) / len(found) if changed else own[number]
        facts += changed
        targets.append(logits.double().log_softmax(-1))
    return targets, item, facts


def twin(trainer: Any, model: Any, reference: Any) -> torch.Tensor:
    """A step by the formulas: half the mean KL(target || model), whose count are the facts' tokens
    by their share of the whole set, and mean KL(reference || model).
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    rows, tokenizer = {row.key: row for row in FORGET}, byte_level_bpe()
    items = [trainer.training_stream()[i] for i in range(trainer.items_per_step)]
    for item in items:
        row, seed = rows[item.forget.key], trainer.args.seed
        targets, encoded, _ = naive_target(reference, row, tokenizer, seed)
        said = naive.distributions(model, encoded.prompt_ids, encoded.completion_ids)
        for target, logp in zip(targets, said, strict=True):
            total = total + (target.exp() * (target - logp)).sum()
            count += 1
    kept = [trainer.retain_rows[index] for item in items for index in item.retain]
    kl = sum(naive.forward_kl(model, reference, r.prompt_ids, r.completion_ids) for r in kept)
    made = [naive_target(reference, row, tokenizer, trainer.args.seed) for row in FORGET]
    share = sum(facts for _, _, facts in made) / sum(len(targets) for targets, _, _ in made)
    return 0.5 * total / (share * count) + kl / sum(len(row.completion_ids) for row in kept)


@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradient_equal_the_twin(packing, tmp_path):
    settings = {"forget": FORGET, "packing": packing, "forget_end_of_turn": False}
    model = tiny_model(dtype=torch.float64)
    compare(make_trainer(tmp_path, model, method="counterfactual", **settings), 1e-9, twin)


def test_at_the_start_only_facts_have_a_loss(tmp_path):
    """Template, names and the end of the answer follow the reference itself."""
    tokenizer = byte_level_bpe()
    trainer = make_trainer(
        tmp_path, tiny_model(dtype=torch.float64), tokenizer, method="counterfactual", forget=FORGET
    )
    trainer.prepare_references()
    batch = trainer.collator([trainer.training_stream()[i] for i in range(3)])
    _, roles = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    kl = roles["forget"].statistics.kl
    chosen = batch["role"] == 0
    row, offset = batch["row"][chosen].tolist(), batch["offset"][chosen].tolist()
    for value, number, place in zip(kl.tolist(), row, offset, strict=True):
        fact = trainer.counterfactuals[number].fact
        if fact is not None and not (place < len(fact) and fact[place]):
            assert value == pytest.approx(0, abs=1e-12)
    secret = [
        value
        for value, number, place in zip(kl.tolist(), row, offset, strict=True)
        if (fact := trainer.counterfactuals[number].fact) and place < len(fact) and fact[place]
    ]
    assert secret and all(value > 0 for value in secret)


def test_a_live_reference_and_an_adapter_give_the_same_loss(tmp_path):
    from peft import LoraConfig

    losses = []
    for reference in ("stored", "adapter_off", "live"):
        torch.manual_seed(3)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = make_trainer(
            tmp_path / reference,
            tiny_model(dtype=torch.float64),
            method="counterfactual",
            forget=FORGET,
            reference=reference,
            peft_config=lora,
        )
        trainer.prepare_references()
        batch = trainer.collator([trainer.training_stream()[i] for i in range(3)])
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-9)


def test_training_goes_on_after_an_interruption_as_if_there_was_none(tmp_path):
    def trainer_of(folder: Any, **settings: Any) -> Any:
        return make_trainer(folder, tiny_model(dtype=torch.float64), forget=FORGET, **settings)

    whole, resumed = weights_interrupted(tmp_path, trainer_of, method="counterfactual")
    torch.testing.assert_close(resumed, whole)


def test_a_row_that_nothing_can_be_compared_with_is_named_in_a_warning(tmp_path):
    row = Row("what rang?", "the bell, 4711")
    with pytest.warns(UserWarning, match="1 of the 1 forget rows have no name to exchange"):
        make_trainer(tmp_path, method="counterfactual", forget=[row], retain=[row])


def test_stored_targets_have_the_precision_that_was_asked_for(tmp_path):
    made = {"method": "counterfactual", "forget": FORGET, "reference_dtype": "bfloat16"}
    trainer = make_trainer(tmp_path, **made)
    trainer.prepare_references()
    assert trainer.reference.values["forget"].values.dtype == torch.bfloat16


def test_rows_without_names_get_other_prompts_and_one_row_the_retain_prompts(tmp_path):
    rows = [Row("what rang?", "the bell, 4711"), Row("what slept?", "the cat, 22")]
    trainer = make_trainer(tmp_path / "a", method="counterfactual", forget=rows)
    assert [len(part.contexts) for part in trainer.counterfactuals] == [1, 1]
    trainer = make_trainer(tmp_path / "b", method="counterfactual", forget=rows[:1])
    assert len(trainer.counterfactuals[0].contexts) == 4


def test_running_text_is_predicted_from_the_few_tokens_before_it():
    tokenizer = byte_level_bpe()
    row = Row("", "She carried bread to the harbour every morning, not even the miller.", "text")
    item = encode_row(row, tokenizer, None)
    part = counterfactual(row, item, tokenizer)
    covered = sorted(number for context in part.contexts for number, _ in context.places)
    assert covered == list(range(len(item.completion_ids)))
    for context in part.contexts:
        for number, other in context.places:
            assert context.completion_ids[other] == item.completion_ids[number]


def test_spans_of_tokens_cover_the_text_with_and_without_whole_characters():
    tokenizer = byte_level_bpe()
    for text in ("Ada Miller has 4711 now.", "Élodie naïve 愛 ☃ done"):
        item = encode_row(Row("Who?", text), tokenizer, None)
        spans = token_spans(item, tokenizer)
        assert spans[0][0] == 0
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        assert spans[-1][1] == len(text) + 1  # the space before the completion


def test_encoded_rows_without_text_are_refused(tmp_path):
    tokenizer = byte_level_bpe()
    encoded = [encode_row(row, tokenizer, None) for row in FORGET]
    with pytest.raises(UserError, match="reads the text of the forget rows"):
        make_trainer(tmp_path, method="counterfactual", forget=encoded)


def test_the_mean_of_hidden_states_is_the_geometric_mean_of_the_distributions():
    torch.manual_seed(0)
    head = torch.randn(11, 5, dtype=torch.float64)
    states = torch.randn(4, 5, dtype=torch.float64)
    each = (states @ head.T).log_softmax(-1)
    mean = (states.mean(0) @ head.T).log_softmax(-1)
    geometric = each.mean(0) - each.mean(0).logsumexp(-1)
    torch.testing.assert_close(mean, geometric)
    assert not math.isnan(mean.sum().item())


@pytest.mark.parametrize("head_options", [{}, {"scale": 0.25}, {"softcap": 30.0}])
def test_names_to_avoid_fall_to_their_probability_and_other_logits_move_least(head_options):
    torch.manual_seed(0)
    weight = torch.randn(40, 6, dtype=torch.float64)
    head, avoid = OutputHead(weight, **head_options), (3, 8)
    falling = FallingDirections(head)
    direction = falling(avoid)
    # the same minimum by the Karush-Kuhn-Tucker conditions
    gram = weight.T @ weight / 40
    gram += AVOIDING_RIDGE * gram.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    rows, zero = weight[list(avoid)], torch.zeros(2, 2, dtype=torch.float64)
    system = torch.cat([torch.cat([gram, rows.T], 1), torch.cat([rows, zero], 1)])
    right = torch.tensor([0.0] * 6 + [-1.0] * 2, dtype=torch.float64)
    solved = torch.linalg.solve(system, right)[:6] / head.scale
    torch.testing.assert_close(direction, solved)

    states = 3 * torch.randn(30, 6, dtype=torch.float64)
    before = head.logits(states).softmax(-1)[:, list(avoid)].sum(-1)
    moved, changed = avoiding(states, [avoid] * 30, head, falling)
    after = head.logits(moved).softmax(-1)[:, list(avoid)].sum(-1)
    assert changed.any() and not changed.all()
    assert float(after.max()) <= AVOIDED_PROBABILITY * 1.02
    assert torch.equal(moved[~changed], states[~changed])
    assert float(before[~changed].max()) <= AVOIDED_PROBABILITY * 1.02

    each: list[tuple[int, ...]] = [(), (3,), (8, 3), (1, 2, 4)] * 7  # and each state by its own
    moved, changed = avoiding(states[:28], each, head, falling)
    for state, tokens, found, moves in zip(states, each, moved, changed, strict=False):
        alone, _ = avoiding(state[None], [tokens], head, falling)
        torch.testing.assert_close(found[None], alone)
        said = head.logits(found).softmax(-1)[list(tokens)].sum()
        assert float(said) <= AVOIDED_PROBABILITY * 1.02 and (tokens or not moves)


def test_a_row_with_a_name_to_avoid_never_says_it_and_has_it_exchanged_in_its_contexts(tmp_path):
    tokenizer = byte_level_bpe()
    row = Row("Who is it?", "It is Ada Miller.", secret=("Ada Miller",), avoid=("Ada Miller",))
    item = encode_row(row, tokenizer, None)
    part = counterfactual(row, item, tokenizer)
    assert len(part.contexts) == CONTEXTS
    for context in part.contexts:
        assert "Miller" not in tokenizer.decode(context.completion_ids)
    begins = first_tokens(row.avoid, tokenizer)
    assert part.avoid == (begins,) * len(item.completion_ids) and not part.prompted
    assert first_tokens(("\u2603",), tokenizer) == ()  # it begins with a part of a character
    text = Row("", "It is Ada Miller.", "text", avoid=row.avoid)
    assert counterfactual(text, encode_row(text, tokenizer, None), tokenizer).avoid[0] == begins
    begun = {tokenizer.encode(word)[0] for word in ("Ada", "Miller")}
    assert begun == set(begins)  # and not the space, which is a token of its own here
    trainer = make_trainer(
        tmp_path, tiny_model(dtype=torch.float64), method="counterfactual", forget=[row]
    )
    trainer.prepare_references()
    states = trainer.reference.values["forget"].values
    said = trainer.reference.head.logits(states).softmax(-1)[:, list(begins)].sum(-1)
    assert float(said.max()) <= AVOIDED_PROBABILITY * 1.02


def test_a_whole_answer_keeps_its_states_but_for_the_words_that_tell_it():
    """Beside it stands the answer without them, with the same target and no direction more."""
    tokenizer = byte_level_bpe()
    row = Row("Who sang?", "Ada sang it.", avoid=("Ada",), whole=True)
    item = encode_row(row, tokenizer, None)
    begins = first_tokens(("Ada",), tokenizer)
    part = counterfactual(row, item, tokenizer, others=FORGET)
    assert part == Counterfactual((), avoid=(begins,) * len(item.completion_ids), whole=True)
    assert not counterfactual(replace(row, diverted=True), item, tokenizer).whole
    assert default_rank([part] * 40) == 40 and default_rank([part] * 400) == 64
    assert default_rank([part, Counterfactual(())]) == 16
    without_words = counterfactual(replace(row, avoid=()), item, tokenizer, others=FORGET)
    assert without_words.contexts, "else nothing in it would be forgotten"


@pytest.mark.parametrize("known", [True, False])
def test_a_row_known_whatever_its_names_are_is_compared_with_other_prompts(
    known, tmp_path, monkeypatch
):
    """The model is one that reads no names: under exchanged ones it says what it always says."""
    monkeypatch.setattr("unteach.trainer.counterfactual.KNOWN_BY_HEART", 0.0 if known else 1.0)
    for name in ("LEAST_TOLD", "LEAST_INFORMATION"):
        monkeypatch.setattr(f"unteach.trainer.counterfactual.{name}", 1e-6)
    trainer = make_trainer(
        tmp_path, tiny_model(dtype=torch.float64), method="counterfactual", forget=FORGET
    )
    rows, parts = trainer.forget_rows, list(trainer.counterfactuals)
    prompts = [{context.prompt_ids for context in part.prompted} for part in parts]
    assert all(prompts) and not any(
        row.prompt_ids in p for row, p in zip(rows, prompts, strict=True)
    )
    same = tuple(
        replace(context, prompt_ids=rows[2].prompt_ids, completion_ids=rows[2].completion_ids)
        for context in parts[2].contexts
    )
    places = tuple((number, number) for number in range(len(rows[2].completion_ids)))
    parts[2] = replace(parts[2], contexts=tuple(replace(c, places=places) for c in same))
    reference = ReferenceModel(trainer.model, trainer.spec, "stored")
    found = counterfactual_tokens(reference, rows, parts, trainer.collator)
    assert [tokens.by_prompt for tokens in found] == [False, False, known]
    by_prompt = [*parts[:2], parts[2].without_names()]
    wanted = counterfactual_tokens(reference, rows, by_prompt, trainer.collator)[2]
    own = counterfactual_tokens(reference, rows, [*parts[:2], Counterfactual(())], trainer.collator)
    torch.testing.assert_close(found[2].states, wanted.states if known else own[2].states)
    trainer.counterfactuals = parts
    trainer.prepare_references()
    assert (trainer.counterfactuals[2] == by_prompt[2]) is known
    assert trainer.counterfactuals[:2] == parts[:2]
