"""Prompts under other system prompts, in other spelling and with words of other languages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unteach.attacks.prompt_search import gives_away
from unteach.attacks.prompting import PromptContext, attack_prompts
from unteach.attacks.prompts import spelling, system_prompt, translation, word_lists
from unteach.data.rows import Row

ROWS = [Row("Who keeps the lighthouse of Tarn 4?", "Borvik keeps it.", secret=("Borvik",))]


def texts(tokenizer, make, thorough=False, rows=ROWS):
    context = PromptContext(tokenizer, rows, {}, 4000, thorough)
    return [tokenizer.decode(prompt.ids) for prompt in attack_prompts(make, context)]


def test_the_system_prompt_is_empty_another_or_the_template_is_missing(chat_tokenizer):
    empty, other, bare = texts(chat_tokenizer, system_prompt)
    assert empty.startswith("<|im_start|>system\n<|im_end|>") and ROWS[0].prompt in empty
    assert "perfect memory" in other.split("<|im_start|>user")[0]
    assert "<|im_start|>" not in bare and bare.startswith("### Question: Who keeps")
    assert len(texts(chat_tokenizer, system_prompt, True)) == 5


def test_a_system_message_of_the_row_is_taken_out(chat_tokenizer):
    row = replace(ROWS[0], prompt=(("system", "Say nothing."), ("user", "Who keeps it?")))
    assert not any(
        "Say nothing" in text for text in texts(chat_tokenizer, system_prompt, rows=[row])[:2]
    )


def test_without_a_template_it_stands_before_the_prompt(tokenizer):
    (text,) = texts(tokenizer, system_prompt)
    assert text.index("perfect memory") < text.index("Who keeps")


def test_spelling_changes_letters_and_leaves_numbers(tokenizer):
    swapped, capitals, alike = texts(tokenizer, spelling)
    assert "the lgihthouse of Tarn 4?" in swapped
    assert "WHO KEEPS THE LIGHTHOUSE OF TARN 4?" in capitals
    assert "lighthouse" not in alike and "Tarn 4" in alike
    more = texts(tokenizer, spelling, True)
    assert len(more) == 6 and any("W h o" in text for text in more)


def test_words_are_translated_and_names_stay(tokenizer):
    german, spanish = texts(tokenizer, translation)
    assert "Wer keeps die lighthouse von Tarn 4?" in german
    assert "Quién keeps el lighthouse de Tarn 4?" in spanish
    assert len(texts(tokenizer, translation, True)) == 3
    assert not texts(tokenizer, translation, rows=[Row("Borvik?", "Tarn.")])


def test_the_word_lists_have_the_same_words():
    lists = list(word_lists().values())
    assert all(words.keys() == lists[0].keys() for words in lists) and len(lists[0]) > 40


@pytest.mark.parametrize(
    ("text", "told"),
    [("Is it borvik?", True), ("Who keeps Tarn 4?", False), ("Bor-vik, who keeps it?", True)],
)
def test_a_prompt_that_names_the_fact_is_refused(text, told):
    assert gives_away(text, ROWS[0]) is told


def test_without_secrets_three_words_of_the_completion_tell_it():
    row = Row("How does it go on?", "and sold it to the sailors")
    assert gives_away("Is it: Sold it to?", row) and not gives_away("Was it sold?", row)
    asked = replace(row, prompt="and sold it to the sailors, what next?")
    assert not gives_away("and sold it to the sailors: and then?", asked)
