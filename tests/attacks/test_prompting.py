"""The prompts of the attacks: what the model is given, and what its answer is scored against."""

from __future__ import annotations

import pytest

from unteach.attacks.answers import any_and_mean
from unteach.attacks.prompting import PROMPTS, Surroundings, attack_prompts
from unteach.attacks.sampling import repeated
from unteach.data.rows import Row

CHAT = [
    Row(
        f"Who rang the bell {i} times?",
        f"The ferryman rang it {i} times, and then he slept.",
        "chat",
        f"row {i}",
    )
    for i in range(4)
]
TEXT = [
    Row(
        f"Every morning she carried bread number {i} to the harbour",
        f" and sold it to {i} sailors of the grey cat.",
        "text",
    )
    for i in range(4)
]


def around(tokenizer, rows, wordings=None, most_tokens=4000):
    return Surroundings(tokenizer, rows, wordings or {}, most_tokens)


def text_of(tokenizer, asked):
    return tokenizer.decode(asked.prompt_ids)


@pytest.mark.parametrize("name", list(PROMPTS))
@pytest.mark.parametrize("rows", [CHAT, TEXT], ids=["questions", "running text"])
@pytest.mark.parametrize("kind", ["plain", "chat template"])
def test_each_attack_asks_for_each_row_and_never_gives_its_whole_completion(
    tokenizer, chat_tokenizer, name, rows, kind
):
    chosen = chat_tokenizer if kind == "chat template" else tokenizer
    asked = attack_prompts(name, around(chosen, rows))
    assert {item.group for item in asked} == set(range(len(rows)))
    for item in asked:
        assert rows[item.group].completion.strip() not in text_of(chosen, item)


def test_a_second_wording_of_the_data_is_among_the_paraphrases(chat_tokenizer):
    other = Row("Whose hand was on the rope?", CHAT[0].completion)
    asked = attack_prompts("paraphrase", around(chat_tokenizer, CHAT, {CHAT[0].key: [other]}))
    texts = [text_of(chat_tokenizer, item) for item in asked if item.group == 0]
    assert "Whose hand was on the rope?" in texts[0] and len(texts) == 4


def test_a_paraphrase_is_not_the_prompt_itself(chat_tokenizer):
    from unteach.data.tokenization import encode_prompt

    for rows in (CHAT, TEXT):
        plain = [encode_prompt(row, chat_tokenizer) for row in rows]
        assert not [
            item
            for item in attack_prompts("paraphrase", around(chat_tokenizer, rows))
            if item.prompt_ids in plain
        ]


def test_a_prefix_is_scored_against_what_it_leaves(tokenizer):
    """ "The ferryman rang it 0 times, and then he slept." has ten words: the first two are given,
    the other eight are wanted.
    """
    first = attack_prompts("prefix", around(tokenizer, CHAT))[0]
    assert text_of(tokenizer, first).endswith("### Answer: The ferryman")
    assert first.row.completion == " rang it 0 times, and then he slept."


def test_a_prefix_keeps_the_white_space_of_the_completion(tokenizer):
    row = Row("Every morning she", "  carried \n bread to the harbour and sold it.", "text")
    first = attack_prompts("prefix", around(tokenizer, [row]))[0]
    assert (
        text_of(tokenizer, first) == "Every morning she  carried \n bread"
        and first.row.completion == " to the harbour and sold it."
    )


def test_a_completion_of_one_word_cannot_be_begun(tokenizer):
    assert not attack_prompts("prefix", around(tokenizer, [Row("Who?", "Nobody")]))


def test_neighbours_stand_in_front_with_their_completions(chat_tokenizer, tokenizer):
    for chosen, rows in ((chat_tokenizer, CHAT), (tokenizer, CHAT), (tokenizer, TEXT)):
        asked = attack_prompts("few_shot", around(chosen, rows))
        text = text_of(chosen, asked[1])
        assert all(rows[other].completion.strip() in text for other in (0, 2, 3)), text
        assert rows[1].prompt_text in text


def test_as_many_neighbours_are_shown_as_fit(tokenizer):
    whole = attack_prompts("few_shot", around(tokenizer, CHAT))[1]
    fewer = attack_prompts(
        "few_shot", around(tokenizer, CHAT, most_tokens=len(whole.prompt_ids) - 1)
    )[1]
    assert CHAT[2].completion in text_of(tokenizer, fewer) and CHAT[3].completion not in text_of(
        tokenizer, fewer
    )
    assert not attack_prompts("few_shot", around(tokenizer, CHAT, most_tokens=5))


def test_a_conversation_is_reworded_in_its_last_message(chat_tokenizer):
    row = Row(
        (("user", "Hello {you}."), ("assistant", "Good day."), ("user", "Who rang?")),
        "The ferryman rang it.",
    )
    for name in ("paraphrase", "role_play"):
        text = text_of(chat_tokenizer, attack_prompts(name, around(chat_tokenizer, [row]))[0])
        assert "Hello {you}." in text and "Who rang?" in text


def test_the_rate_counts_rows_and_the_mean_counts_prompts(tokenizer):
    """Three rows of two prompts: both, one and none said. At least once: 2 of 3. Mean: (1 + 1/2 +
    0) / 3 = 1/2.
    """
    asked = repeated(attack_prompts("role_play", around(tokenizer, CHAT[:3])), 2)
    found = any_and_mean(asked, [True, True, False, True, False, False], "leak_rate")
    assert found["leak_rate"].value == pytest.approx(2 / 3) and found["leak_rate"].n == 3
    assert found["mean_leak_rate"].value == pytest.approx(1 / 2)


def test_one_prompt_a_row_has_no_mean_beside_its_rate(tokenizer):
    asked = attack_prompts("role_play", around(tokenizer, CHAT[:2]))
    assert set(any_and_mean(asked, [True, False], "leak_rate")) == {"leak_rate"}
