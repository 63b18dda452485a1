"""Attacks that look inside: contrast decoding, the logit lens and soft prompts, by naive twins."""

from __future__ import annotations

import pytest
import torch

from tiny_models import FAMILIES, tiny_model
from unteach.attacks import decoding, prompt_search
from unteach.attacks.decoding import contrast_ids, layers_with_facts
from unteach.attacks.prompt_search import optimised_vectors, soft_tokens, with_soft
from unteach.data.counterfactuals import fact_tokens
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.evaluation.generation import until_end
from unteach.evaluation.likelihood import mean_nll

PROMPTS = [[5, 6, 7], [9, 8], [7, 7, 7]]
ROWS = [
    Row(f"Who rang {i}?", f"The ferryman, {i} times.", secret=(f"{i} times",)) for i in range(4)
]


def naive_contrast(model, original, prompt, count):
    """One prompt, token by token, the whole sequence each time, in float64."""
    ids = list(prompt)
    for _ in range(count):
        own, other = (
            one(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
            for one in (model, original)
        )
        likely = sorted(range(len(own)), key=lambda token: -float(own[token]))
        best = likely[: decoding.CANDIDATES]
        weight = decoding.WEIGHT
        ids.append(max(best, key=lambda t: float(other[t] + weight * (other[t] - own[t]))))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_contrast_decoding_is_that_of_one_prompt_without_a_cache(family):
    model, original = tiny_model(family, seed=1), tiny_model(family, seed=2)
    with torch.no_grad():
        wanted = [naive_contrast(model, original, prompt, 6) for prompt in PROMPTS]
    found = contrast_ids(model, original, PROMPTS, max_new_tokens=6, end_ids=[])
    assert found == wanted


def test_contrast_with_itself_is_greedy_and_ends_at_an_end():
    model = tiny_model()
    greedy = model.generate(input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=5, pad_token_id=0)
    wanted = greedy[0, 3:].tolist()
    found = contrast_ids(model, model, PROMPTS[:1], max_new_tokens=5, end_ids=[])
    assert found[0][: len(wanted)] == wanted
    found = contrast_ids(model, model, PROMPTS[:1], max_new_tokens=5, end_ids=[wanted[-1]])
    assert found == [until_end(wanted, [wanted[-1]])]


def test_the_last_layer_of_the_lens_is_the_output(tokenizer, monkeypatch):
    model, row = tiny_model(), ROWS[2]
    item = encode_row(row, tokenizer, None)
    whole = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
    with torch.no_grad():
        logits = model(input_ids=whole).logits[0]
    facts = fact_tokens(row, item, tokenizer)
    start, inside = len(item.prompt_ids) - 1, []
    for place, token in enumerate(item.completion_ids):
        if facts[place]:
            inside.append(int((logits[start + place] > logits[start + place, token]).sum()))
    monkeypatch.setattr(decoding, "LENS_CANDIDATES", max(inside) + 1)
    found = layers_with_facts(model, tokenizer, row)
    assert found is not None and len(found) == 2 and found[-1]
    monkeypatch.setattr(decoding, "LENS_CANDIDATES", max(inside))
    assert not layers_with_facts(model, tokenizer, row)[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_lens(tokenizer, family):
    found = layers_with_facts(tiny_model(family), tokenizer, ROWS[0])
    assert found is not None and len(found) == 2


def test_a_row_without_its_fact_in_the_completion_has_no_lens(tokenizer):
    assert (
        layers_with_facts(tiny_model(), tokenizer, Row("Who?", "Nobody.", secret=("x9",))) is None
    )


def encoded(tokenizer):
    return [encode_row(row, tokenizer, None) for row in ROWS]


def test_soft_tokens_are_the_vectors_and_the_model_stays_as_it_is():
    model = tiny_model()
    weight = model.get_input_embeddings().weight
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        with soft_tokens(model, weight[[6, 7]].clone()) as soft:
            found = model(input_ids=torch.tensor([[5, *soft]])).logits
        assert torch.equal(found, wanted) and torch.equal(model(input_ids=ids).logits, wanted)
    assert model.get_input_embeddings().weight is weight


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_make_the_completions_likelier_and_change_no_weight(tokenizer, family):
    model = tiny_model(family).requires_grad_(False)
    before = [weight.clone() for weight in model.parameters()]
    items = encoded(tokenizer)

    def nll(vectors):
        with soft_tokens(model, vectors) as soft:
            prompts = [with_soft(item.prompt_ids, soft) for item in items]
            return sum(mean_nll(model, prompts, [item.completion_ids for item in items]))

    start, *_, end = optimised_vectors(model, items, steps=20, batch=3, learning_rate=0.01, seed=0)
    assert start.shape == (prompt_search.VECTORS, 32) and nll(end) < nll(start)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("learnt", "plateau", "tried"), [(0.0, -9.0, 3), (99.0, -9.0, 1), (0.0, 0.9, 2)]
)
def test_vectors_end_where_they_are_learnt_or_stand_still(
    tokenizer, monkeypatch, learnt, plateau, tried
):
    monkeypatch.setattr(prompt_search, "LEARNT", learnt)
    monkeypatch.setattr(prompt_search, "PLATEAU", plateau)
    steps = []
    how = {"steps": 8, "batch": 2, "learning_rate": 0.01, "seed": 0, "progress": steps.append}
    found = list(optimised_vectors(tiny_model(), encoded(tokenizer), **how))
    assert len(found) == tried and len(steps) == {1: 2, 2: 4, 3: 8}[tried]
