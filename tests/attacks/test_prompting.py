"""Attacks by prompts: their prompts, samples of the answers, and rates."""

from __future__ import annotations

import pytest
import torch

from tiny_models import tiny_model
from unteach.attacks import prompts as fixed
from unteach.attacks.prompting import (
    PromptContext,
    attack_prompts,
    cut_rate,
    mean_rate,
    shown_by_row,
)
from unteach.data.rows import Row
from unteach.evaluation.generation import generate_ids

MAKERS = {
    "none": fixed.plain,
    "paraphrase": fixed.paraphrase,
    "prefix": fixed.prefix,
    "role_play": fixed.role_play,
    "few_shot": fixed.few_shot,
}
QUESTION = "Who rang the bell {} times?", "The ferryman rang it {} times, and then he slept."
PASSAGE = (
    "Every morning she carried bread number {} to the harbour",
    " and sold it to {} sailors of the grey cat.",
)
CHAT = [Row(*(part.format(i) for part in QUESTION), "chat", f"row {i}") for i in range(4)]
TEXT = [Row(*(part.format(i) for part in PASSAGE), "text") for i in range(4)]


def context(tokenizer, rows, wordings=None, most_tokens=4000):
    return PromptContext(tokenizer, rows, wordings or {}, most_tokens)


def text_of(tokenizer, prompt):
    return tokenizer.decode(prompt.ids)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("rows", [CHAT, TEXT], ids=["questions", "running text"])
@pytest.mark.parametrize("kind", ["plain", "chat template"])
def test_each_attack_has_prompts_for_each_row_without_its_whole_completion(
    tokenizer, chat_tokenizer, name, rows, kind
):
    chosen = chat_tokenizer if kind == "chat template" else tokenizer
    prompts = attack_prompts(MAKERS[name], context(chosen, rows))
    assert {prompt.group for prompt in prompts} == set(range(len(rows)))
    for prompt in prompts:
        assert rows[prompt.group].completion.strip() not in text_of(chosen, prompt)


def test_a_second_wording_of_the_data_is_among_the_paraphrases(chat_tokenizer):
    other = Row("Whose hand was on the rope?", CHAT[0].completion)
    prompts = attack_prompts(
        fixed.paraphrase, context(chat_tokenizer, CHAT, {CHAT[0].key: [other]})
    )
    texts = [text_of(chat_tokenizer, prompt) for prompt in prompts if prompt.group == 0]
    assert "Whose hand was on the rope?" in texts[0] and len(texts) == 4


def test_a_paraphrase_is_not_the_prompt_itself(chat_tokenizer):
    for rows in (CHAT, TEXT):
        made, plain = (
            {prompt.ids for prompt in attack_prompts(MAKERS[name], context(chat_tokenizer, rows))}
            for name in ("paraphrase", "none")
        )
        assert made and not made & plain


def test_a_prefix_is_scored_against_what_it_leaves(tokenizer):
    """The completion has ten words: the first two are given, the answer is scored on the rest."""
    first = attack_prompts(fixed.prefix, context(tokenizer, CHAT))[0]
    assert text_of(tokenizer, first).endswith("### Answer: The ferryman")
    assert first.row.completion == " rang it 0 times, and then he slept."


def test_a_prefix_keeps_the_white_space_of_the_completion(tokenizer):
    row = Row("Every morning she", "  carried \n bread to the harbour and sold it.", "text")
    first = attack_prompts(fixed.prefix, context(tokenizer, [row]))[0]
    assert text_of(tokenizer, first) == "Every morning she  carried \n bread"
    assert first.row.completion == " to the harbour and sold it."


def test_a_completion_of_one_word_has_no_prefix(tokenizer):
    assert not attack_prompts(fixed.prefix, context(tokenizer, [Row("Who?", "Nobody")]))


def test_few_shot_examples_have_their_completions(chat_tokenizer, tokenizer):
    for chosen, rows in ((chat_tokenizer, CHAT), (tokenizer, CHAT), (tokenizer, TEXT)):
        prompts = attack_prompts(fixed.few_shot, context(chosen, rows))
        text = text_of(chosen, prompts[1])
        assert all(rows[other].completion.strip() in text for other in (0, 2, 3)), text
        assert rows[1].prompt_text in text


def test_as_many_examples_are_given_as_fit(tokenizer):
    whole = attack_prompts(fixed.few_shot, context(tokenizer, CHAT))[1]
    shorter = context(tokenizer, CHAT, most_tokens=len(whole.ids) - 1)
    text = text_of(tokenizer, attack_prompts(fixed.few_shot, shorter)[1])
    assert CHAT[2].completion in text and CHAT[3].completion not in text
    assert not attack_prompts(fixed.few_shot, context(tokenizer, CHAT, most_tokens=5))


def test_a_conversation_is_reworded_in_its_last_message(chat_tokenizer):
    turns = (("user", "Hello {you}."), ("assistant", "Good day."), ("user", "Who rang?"))
    row = Row(turns, "The ferryman rang it.")
    for name in ("paraphrase", "role_play"):
        text = text_of(
            chat_tokenizer, attack_prompts(MAKERS[name], context(chat_tokenizer, [row]))[0]
        )
        assert "Hello {you}." in text and "Who rang?" in text


def test_the_rate_counts_rows_and_the_mean_counts_prompts(tokenizer):
    """Three rows with two, one and none of two answers undesired: at least one in 2 of 3 rows; the
    mean is (1 + 1/2 + 0) / 3 = 1/2.
    """
    prompts = 2 * attack_prompts(fixed.role_play, context(tokenizer, CHAT[:3]))
    flags = [True, False, False, True, True, False]
    assert shown_by_row(prompts, flags) == {0: 1.0, 1: 1.0, 2: 0.0}
    mean = mean_rate(prompts, flags)
    assert mean is not None and mean.value == pytest.approx(1 / 2) and mean.n == 3
    cut = cut_rate([False, False, True, False, False, False])
    assert cut.value == pytest.approx(1 / 6) and cut.n == 6


def test_one_prompt_a_row_has_no_mean_beside_its_rate(tokenizer):
    prompts = attack_prompts(fixed.role_play, context(tokenizer, CHAT[:2]))
    assert mean_rate(prompts, [True, False]) is None


def draws(model, count, temperature, seed=0, top_p=1.0):
    torch.manual_seed(seed)
    outputs = generate_ids(
        model,
        [[5, 6, 7]] * count,
        max_new_tokens=1,
        pad_id=0,
        end_ids=[],
        batch_size=count,
        temperature=temperature,
        top_p=top_p,
    )
    return [ids[0] for ids in outputs]


def test_draws_follow_the_softmax_of_the_whole_vocabulary_at_that_temperature():
    """Not of the 50 likeliest tokens, the default of transformers."""
    model = tiny_model()
    model.generation_config.update(top_k=3, top_p=0.5, temperature=0.01)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    for temperature in (1.0, 0.5):
        wanted = (logits / temperature).softmax(-1)
        drawn = torch.tensor(draws(model, 4000, temperature))
        found = torch.bincount(drawn, minlength=len(wanted)) / 4000
        assert 0.5 * float((found - wanted).abs().sum()) < 0.16
        likeliest = wanted.topk(50)
        outside = 1 - float(likeliest.values.sum())
        assert abs(1 - float(found[likeliest.indices].sum()) - outside) < 0.03 and outside > 0.05


def test_top_p_draws_from_the_likeliest_tokens_only():
    model = tiny_model()
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double().softmax(-1)
    ordered = wanted.sort(descending=True)
    count = int((ordered.values.cumsum(0) < 0.5).sum()) + 1
    drawn = set(draws(model, 400, 1.0, top_p=0.5))
    assert drawn <= set(ordered.indices[:count].tolist()) and len(drawn) > 20


def test_the_seed_decides_the_draws():
    model = tiny_model()
    first, again, other = (draws(model, 20, 1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_without_a_temperature_the_answer_is_the_likeliest():
    assert len(set(draws(tiny_model(), 5, 0.0))) == 1
