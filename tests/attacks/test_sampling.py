"""Drawn answers come from the whole distribution, and from the seed alone."""

from __future__ import annotations

import torch

from tiny_models import tiny_model
from unteach.evaluation.generation import generate_ids


def draws(model, count, temperature, seed=0):
    torch.manual_seed(seed)
    outputs = generate_ids(
        model,
        [[5, 6, 7]] * count,
        max_new_tokens=1,
        pad_id=0,
        end_ids=[],
        batch_size=count,
        temperature=temperature,
    )
    return [ids[0] for ids in outputs]


def test_draws_follow_the_softmax_of_the_whole_vocabulary_at_that_temperature():
    """Not of its 50 likeliest tokens, which is what transformers draws from where nobody says
    otherwise.
    """
    model = tiny_model()
    model.generation_config.update(top_k=3, top_p=0.5, temperature=0.01)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    for temperature in (1.0, 0.5):
        wanted = (logits / temperature).softmax(-1)
        found = (
            torch.bincount(torch.tensor(draws(model, 4000, temperature)), minlength=len(wanted))
            / 4000
        )
        assert 0.5 * float((found - wanted).abs().sum()) < 0.16
        likeliest = wanted.topk(50)
        outside = 1 - float(likeliest.values.sum())
        assert abs(1 - float(found[likeliest.indices].sum()) - outside) < 0.03 and outside > 0.05


def test_the_seed_decides_the_draws():
    model = tiny_model()
    assert (
        draws(model, 20, 1.0, seed=1)
        == draws(model, 20, 1.0, seed=1)
        != draws(model, 20, 1.0, seed=2)
    )


def test_without_a_temperature_the_answer_is_the_likeliest():
    assert len(set(draws(tiny_model(), 5, 0.0))) == 1
