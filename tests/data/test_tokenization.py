"""The boundary between prompt and completion, on tokenizers of three kinds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt, encode_row, encode_rows, end_of_turn_id, render_prompt
from unteach.errors import UserError

TEXTS = [
    ("The miller kept a grey cat", " that slept on the warm flour sacks."),
    ("Every morning she carried bread.", " To the harbour!"),
    ("Who?", " A"),
]


@pytest.mark.parametrize(("prompt", "completion"), TEXTS)
def test_running_text_is_cut_where_generation_would_begin(any_tokenizer, prompt, completion):
    item = encode_row(Row(prompt, completion, "text"), any_tokenizer, None)
    assert item.prompt_ids == encode_prompt(Row(prompt, "", "text"), any_tokenizer)
    assert any_tokenizer.decode(item.prompt_ids + item.completion_ids, skip_special_tokens=True) == prompt + completion
    assert any_tokenizer.eos_token_id not in item.completion_ids


@pytest.mark.parametrize(("prompt", "completion"), TEXTS)
def test_an_answer_to_the_paper_s_prompt_ends_with_end_of_sequence(any_tokenizer, prompt, completion):
    row = Row(prompt, completion)
    assert render_prompt(row, any_tokenizer) == f"### Question: {prompt}\n### Answer:"
    item = encode_row(row, any_tokenizer, end_of_turn_id(any_tokenizer))
    assert item.completion_ids[-1] == any_tokenizer.eos_token_id
    assert any_tokenizer.decode(item.completion_ids[:-1], skip_special_tokens=True).strip() == completion.strip()
    assert len(item.completion_ids) >= 2


def test_prompt_ids_carry_the_beginning_of_sequence_where_the_tokenizer_has_one(any_tokenizer):
    item = encode_row(Row("Who rang?", " The cat.", "text"), any_tokenizer, None)
    if any_tokenizer.bos_token_id is not None:
        assert item.prompt_ids[0] == any_tokenizer.bos_token_id and any_tokenizer.bos_token_id not in item.prompt_ids[1:]
    assert any_tokenizer.eos_token_id not in item.prompt_ids


def test_a_chat_template_is_applied_and_its_end_of_turn_is_trained(chat_tokenizer):
    item = encode_row(Row("Who?", "The cat."), chat_tokenizer, end_of_turn_id(chat_tokenizer))
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert chat_tokenizer.decode(item.prompt_ids) == text
    assert chat_tokenizer.decode(item.completion_ids) == "The cat.<|im_end|>"
    whole = chat_tokenizer(text + "The cat.", add_special_tokens=False)["input_ids"]
    assert list(item.prompt_ids + item.completion_ids[:-1]) == whole


def test_message_lists_go_through_the_template_and_are_refused_without_one(chat_tokenizer, tokenizer):
    row = Row((("system", "Be brief."), ("user", "Who?")), "Me.", source="file, line 3")
    assert "system\nBe brief." in render_prompt(row, chat_tokenizer)
    with pytest.raises(UserError, match=r"file, line 3.*no chat template"):
        encode_row(row, tokenizer, None)


def test_a_completion_that_merges_with_its_prompt_is_refused_by_name(tokenizer):
    with pytest.raises(UserError, match=r"file, line 9.*become one token"):
        encode_row(Row("The mill", "er kept a cat.", "text", "file, line 9"), tokenizer, None)


def test_a_row_without_a_prompt_starts_from_the_first_token_of_the_model(any_tokenizer):
    item = encode_row(Row("", "The miller kept a cat.", "text"), any_tokenizer, None)
    first = any_tokenizer.bos_token_id if any_tokenizer.bos_token_id is not None else any_tokenizer.eos_token_id
    assert item.prompt_ids == (first,)
    assert any_tokenizer.decode(item.completion_ids, skip_special_tokens=True).strip() == "The miller kept a cat."


words = st.lists(
    st.sampled_from(["the", "miller", "kept", "a", "grey", "cat", "that", "slept", "on", "warm", "sacks"]), min_size=1, max_size=12
).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(words, words, st.integers(0, 3))
def test_white_space_at_the_end_of_a_prompt_changes_nothing(tokenizer, prompt, completion, spaces):
    clean = encode_row(Row(prompt, " " + completion, "text"), tokenizer, None)
    spaced = encode_row(Row(prompt + " " * spaces, " " + completion, "text"), tokenizer, None)
    assert clean.prompt_ids == spaced.prompt_ids
    assert spaces > 1 or clean.completion_ids == spaced.completion_ids


def test_truncation_takes_from_the_left_of_the_prompt_or_nothing(tokenizer):
    rows = [Row("word " * 40, "The answer.", source="file, line 2"), Row("Short?", "Yes.")]
    whole = encode_rows(rows, tokenizer)
    with pytest.raises(UserError, match="file, line 2"):
        encode_rows(rows, tokenizer, max_length=24)
    cut = encode_rows(rows, tokenizer, max_length=24, long_rows="truncate_prompt")
    assert len(cut[0]) == 24 and cut[0].completion_ids == whole[0].completion_ids and cut[1] == whole[1]
    assert whole[0].prompt_ids[-len(cut[0].prompt_ids) :] == cut[0].prompt_ids
    assert encode_rows(rows, tokenizer, max_length=24, long_rows="drop") == [whole[1]]
    with pytest.raises(UserError, match="no row of the forget set is left"):
        encode_rows(rows[:1], tokenizer, max_length=24, long_rows="drop")


def test_a_completion_longer_than_the_maximum_is_refused_even_where_prompts_may_be_cut(tokenizer):
    with pytest.raises(UserError, match="raise max_length"):
        encode_rows([Row("Who?", "word " * 40)], tokenizer, max_length=20, long_rows="truncate_prompt")
