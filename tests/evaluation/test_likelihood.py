"""Batched likelihoods against one unpadded forward for each row, summed in float64."""

from __future__ import annotations

import pytest
import torch

import naive
from tiny_models import FAMILIES, tiny_model
from unteach.evaluation import likelihood
from unteach.evaluation.likelihood import greedy_matches, mean_nll

PROMPTS = [[5, 9, 31], [11], [77, 78, 79, 80, 81, 82, 83], [8, 8, 8, 8], [400]]
COMPLETIONS = [[7, 400], [2], [90, 91, 92, 93, 94], [17], [500, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens_per_batch", [1, 16, 2048])
def test_mean_nll_equals_the_naive_float64_mean_of_each_row(family, tokens_per_batch):
    model = tiny_model(family)
    with torch.no_grad():
        wanted = [
            naive.nll(model, *row).item() / len(row[1])
            for row in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
    assert mean_nll(
        model, PROMPTS, COMPLETIONS, tokens_per_batch=tokens_per_batch
    ) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_matches_are_those_of_naive_argmaxes(family):
    model = tiny_model(family)
    with torch.no_grad():
        greedy = []
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
            ids = list(prompt)
            for place in range(len(completion)):  # every second token is the model's own choice
                choice = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                ids.append(completion[place] if place % 2 else choice)
            greedy.append(ids[len(prompt) :])
        wanted = []
        for prompt, completion in zip(PROMPTS, greedy, strict=True):
            steps = naive.distributions(model, prompt, completion)
            hits = [
                int(logp.argmax()) == token for logp, token in zip(steps, completion, strict=True)
            ]
            wanted.append(hits)
    found = greedy_matches(model, PROMPTS, greedy, tokens_per_batch=20)
    assert found == wanted
    assert any(0 < sum(hits) < len(hits) for hits in found)


def test_an_empty_completion_has_no_value_and_no_rows_have_none():
    model = tiny_model()
    for measure in (mean_nll, greedy_matches):
        assert measure(model, [[1], []], [[], []]) == [None, None]
        first, empty, last = measure(model, [[5, 9], [3], [4]], [[7], [], [8]])
        assert empty is None and None not in (first, last)
        assert measure(model, [], []) == []


def test_the_prompt_s_own_tokens_do_not_count():
    """p(first token | prompt) alone: the mean over one token is that token's own negative
    log-probability.
    """
    model = tiny_model()
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([[5, 9, 31]])).logits[0, -1].double().log_softmax(-1)
    assert mean_nll(model, [[5, 9, 31]], [[7]]) == pytest.approx([-logp[7].item()], rel=1e-4)


def test_no_gradient_is_kept():
    model = tiny_model()
    model.requires_grad_(True)
    mean_nll(model, PROMPTS, COMPLETIONS)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_matches_of_ragged_rows_are_those_of_one_position_at_a_time(family):
    model = tiny_model(family).double()
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(3, 60, (length,), generator=generator).tolist() for length in (3, 9, 5, 12, 4)
    ]
    prompts, completions = [row[:2] for row in rows], [row[2:] for row in rows]
    for place in (1, 3):  # some tokens that the model does choose
        with torch.no_grad():
            completions[place][0] = int(
                model(torch.tensor([prompts[place]])).logits[0, -1].argmax()
            )
    completions[2] = []
    found = greedy_matches(model, prompts, completions, tokens_per_batch=24)
    assert found[2] is None
    for prompt, completion, correct in zip(prompts, completions, found, strict=True):
        wanted = []
        for position in range(len(completion)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion[:position]])).logits[0, -1]
            wanted.append(int(logits.argmax()) == completion[position])
        assert completion == [] or correct == wanted
    assert found[1][0] and found[3][0]


OPENING = [7, 301, 22, 9, 9, 45, 300, 6, 12]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens_per_batch", [1, 45, 2048])
@pytest.mark.parametrize("training", [False, True])
def test_an_opening_that_all_prompts_share_is_forwarded_once(
    family, tokens_per_batch, training, monkeypatch
):
    """A system prompt, for instance; also in a model that trains with dropout and activations
    computed again.
    """
    model = tiny_model(family).double()
    prompts = [[*OPENING, *prompt] for prompt in PROMPTS]
    with torch.no_grad():
        wanted = [
            naive.nll(model, *row).item() / len(row[1])
            for row in zip(prompts, COMPLETIONS, strict=True)
        ]
    widths = []
    forward = likelihood.models.predicting_states

    def seen(model, batch, **how):
        widths.append((batch["input_ids"].shape[1], how["shared_prefix"][0]))
        return forward(model, batch, **how)

    monkeypatch.setattr(likelihood.models, "predicting_states", seen)
    if training:
        model.gradient_checkpointing_enable()
        model.train()
    assert mean_nll(
        model, prompts, COMPLETIONS, tokens_per_batch=tokens_per_batch
    ) == pytest.approx(wanted, rel=1e-6)
    assert model.training == training
    longest = max(
        len(prompt) + len(completion) - 1
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    )
    if tokens_per_batch == 2048 and family != "gemma3":  # whose window's cache is not a whole one
        assert widths == [(longest, len(OPENING))]
    elif tokens_per_batch == 1 or family == "gemma3":
        assert {shared for _, shared in widths} == {0}


def test_a_recurrent_model_s_state_is_not_run_over_padding():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=512, hidden_size=16, state_size=4, num_hidden_layers=2)
    ).eval()
    prompts = [[*OPENING, *prompt] for prompt in PROMPTS]
    with torch.no_grad():
        wanted = [
            naive.nll(model, *row).item() / len(row[1])
            for row in zip(prompts, COMPLETIONS, strict=True)
        ]
    assert mean_nll(model, prompts, COMPLETIONS) == pytest.approx(wanted, rel=1e-4)


def test_a_prompt_that_leaves_no_room_in_the_window_loses_its_beginning():
    model = tiny_model("opt", max_position_embeddings=12)
    prompt, completion = list(range(10, 30)), [7, 8, 9, 4]
    fitting = prompt[-9:]  # with three of the four: the last token is no input
    assert mean_nll(model, [prompt, [5]], [completion, [6]]) == pytest.approx(
        mean_nll(model, [fitting, [5]], [completion, [6]])
    )
