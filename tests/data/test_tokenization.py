"""The boundary between prompt and completion, on tokenizers of three kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import byte_level_bpe
from unteach.data.rows import Row
from unteach.data.tokenization import (
    encode_prompt,
    encode_row,
    encode_rows,
    end_of_turn_id,
    render_prompt,
)
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
    assert (
        any_tokenizer.decode(item.prompt_ids + item.completion_ids, skip_special_tokens=True)
        == prompt + completion
    )
    assert any_tokenizer.eos_token_id not in item.completion_ids


@pytest.mark.parametrize(("prompt", "completion"), TEXTS)
def test_an_answer_to_the_paper_s_prompt_ends_with_end_of_sequence(
    any_tokenizer, prompt, completion
):
    row = Row(prompt, completion)
    assert render_prompt(row, any_tokenizer) == f"### Question: {prompt}\n### Answer:"
    item = encode_row(row, any_tokenizer, end_of_turn_id(any_tokenizer))
    assert item.completion_ids[-1] == any_tokenizer.eos_token_id
    assert (
        any_tokenizer.decode(item.completion_ids[:-1], skip_special_tokens=True).strip()
        == completion.strip()
    )
    assert len(item.completion_ids) >= 2


def test_prompt_ids_carry_the_beginning_of_sequence_where_the_tokenizer_has_one(any_tokenizer):
    item = encode_row(Row("Who rang?", " The cat.", "text"), any_tokenizer, None)
    if any_tokenizer.bos_token_id is not None:
        assert (
            item.prompt_ids[0] == any_tokenizer.bos_token_id
            and any_tokenizer.bos_token_id not in item.prompt_ids[1:]
        )
    assert any_tokenizer.eos_token_id not in item.prompt_ids


def test_a_chat_template_is_applied_and_its_end_of_turn_is_trained(chat_tokenizer):
    item = encode_row(Row("Who?", "The cat."), chat_tokenizer, end_of_turn_id(chat_tokenizer))
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert chat_tokenizer.decode(item.prompt_ids) == text
    assert chat_tokenizer.decode(item.completion_ids) == "The cat.<|im_end|>"
    whole = chat_tokenizer(text + "The cat.", add_special_tokens=False)["input_ids"]
    assert list(item.prompt_ids + item.completion_ids[:-1]) == whole


def test_message_lists_go_through_the_template_and_are_refused_without_one(
    chat_tokenizer, tokenizer
):
    row = Row((("system", "Be brief."), ("user", "Who?")), "Me.", source="file, line 3")
    assert "system\nBe brief." in render_prompt(row, chat_tokenizer)
    with pytest.raises(UserError, match=r"file, line 3.*no chat template"):
        encode_row(row, tokenizer, None)


def test_a_completion_that_merges_with_its_prompt_is_refused_by_name(tokenizer):
    with pytest.raises(UserError, match=r"file, line 9.*become one token"):
        encode_row(Row("The mill", "er kept a cat.", "text", "file, line 9"), tokenizer, None)


def test_a_row_without_a_prompt_starts_from_the_first_token_of_the_model(any_tokenizer):
    item = encode_row(Row("", "The miller kept a cat.", "text"), any_tokenizer, None)
    first = (
        any_tokenizer.bos_token_id
        if any_tokenizer.bos_token_id is not None
        else any_tokenizer.eos_token_id
    )
    assert item.prompt_ids == (first,)
    assert (
        any_tokenizer.decode(item.completion_ids, skip_special_tokens=True).strip()
        == "The miller kept a cat."
    )


words = st.lists(
    st.sampled_from(
        ["the", "miller", "kept", "a", "grey", "cat", "that", "slept", "on", "warm", "sacks"]
    ),
    min_size=1,
    max_size=12,
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
    assert (
        len(cut[0]) <= 24
        and cut[0].completion_ids == whole[0].completion_ids
        and cut[1] == whole[1]
    )
    text = tokenizer.decode(cut[0].prompt_ids)
    assert text.startswith("### Question: word word") and text.endswith("word\n### Answer:")
    assert encode_rows(rows, tokenizer, max_length=24, long_rows="drop") == [whole[1]]
    with pytest.raises(UserError, match="no row of the forget set is left"):
        encode_rows(rows[:1], tokenizer, max_length=24, long_rows="drop")


def test_a_completion_longer_than_the_maximum_is_refused_even_where_prompts_may_be_cut(tokenizer):
    with pytest.raises(UserError, match="raise max_length"):
        encode_rows(
            [Row("Who?", "word " * 40)], tokenizer, max_length=20, long_rows="truncate_prompt"
        )


@pytest.mark.parametrize("space", ["", " ", "\n", "  \n"])
def test_generation_never_starts_from_a_trailing_space(any_tokenizer, space):
    """The released code's prompt ends in a space, which merges into the answer's first token: that
    token is never trained.
    """
    ids = encode_prompt(Row("The miller kept a grey cat" + space, "", "text"), any_tokenizer)
    assert not any_tokenizer.decode(ids, skip_special_tokens=True)[-1].isspace()
    assert not render_prompt(Row("Who rang?" + space, "x"), any_tokenizer)[-1].isspace()


def test_an_answer_of_one_token_is_that_token_and_the_end(tokenizer):
    item = encode_row(Row("Who slept?", "cat"), tokenizer, end_of_turn_id(tokenizer))
    assert [tokenizer.decode([token]) for token in item.completion_ids] == [" cat", "<|endoftext|>"]


def test_one_space_before_an_answer_without_a_template_changes_nothing(any_tokenizer):
    first, second = (
        encode_row(Row("Who?", answer), any_tokenizer, end_of_turn_id(any_tokenizer))
        for answer in ("The cat.", " The cat.")
    )
    assert (first.prompt_ids, first.completion_ids) == (second.prompt_ids, second.completion_ids)


@pytest.mark.parametrize("answer", ["    return x", "  The cat.\n", "\tif x:\n\t\treturn\n\n"])
def test_an_answer_keeps_its_indentation_and_its_last_line_break(answer, tokenizer, chat_tokenizer):
    ids = encode_row(Row("Who?", answer), tokenizer, None)
    assert tokenizer.decode(ids.prompt_ids + ids.completion_ids).endswith(f"### Answer:{answer}")
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]
    wanted = chat_tokenizer.apply_chat_template(turns, return_dict=False)
    item = encode_row(Row("Who?", answer), chat_tokenizer, end_of_turn_id(chat_tokenizer))
    assert list(item.prompt_ids + item.completion_ids) == wanted[: len(item)]
    assert chat_tokenizer.decode(wanted[len(item) :]) == "\n"


def test_running_text_on_a_chat_model_goes_through_no_template(chat_tokenizer):
    item = encode_row(
        Row("The miller kept", " a grey cat", "text"),
        chat_tokenizer,
        end_of_turn_id(chat_tokenizer),
    )
    assert (
        chat_tokenizer.decode(item.prompt_ids + item.completion_ids) == "The miller kept a grey cat"
    )


def chat_tokenizer_with(template: str):
    from tiny_models import byte_level_bpe

    tokenizer = byte_level_bpe(chat=True)
    tokenizer.chat_template = template
    return tokenizer


def test_the_end_of_turn_is_read_off_the_template_and_not_off_the_tokenizer():
    """Where a template closes a turn with another token than end-of-sequence, generation must learn
    to stop at the template's.
    """
    tokenizer = chat_tokenizer_with(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|endoftext|>{% endfor %}"
    )
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == "<|endoftext|>" != tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("<|endoftext|>", "!")
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == tokenizer.eos_token, (
        "plain text ends no turn"
    )


def test_a_prompt_that_the_template_refuses_is_named():
    template = (
        "{% if messages[0]['role'] == 'critic' %}{{ raise_exception('no such role') }}{% endif"
        " %}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    row = Row((("critic", "Be brief."), ("user", "Who?")), "Me.", source="file, line 5")
    with pytest.raises(
        UserError, match=r"file, line 5: .*chat template refuses this prompt \(no such role\)"
    ):
        encode_row(row, chat_tokenizer_with(template), None)


class NoSpecialTokens:
    """A tokenizer of bytes with no special token at all."""

    bos_token_id = eos_token_id = chat_template = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def test_a_row_without_a_prompt_is_refused_where_no_token_can_come_first():
    with pytest.raises(UserError, match=r"file, line 1.*beginning- or end-of-sequence"):
        encode_prompt(Row("", "x", "text", "file, line 1"), NoSpecialTokens())
    assert end_of_turn_id(NoSpecialTokens()) is None
    assert encode_row(Row("a", "b"), NoSpecialTokens(), None).completion_ids == tuple(b" b")


@settings(max_examples=40, deadline=None)
@given(words, words, st.integers(4, 60))
def test_no_maximum_length_ever_cuts_a_completion(tokenizer, prompt, completion, max_length):
    row = Row(prompt, completion, source="file, line 1")
    (whole,) = encode_rows([row], tokenizer)
    for choice in ("error", "truncate_prompt", "drop"):
        try:
            (item,) = encode_rows([row], tokenizer, max_length=max_length, long_rows=choice)
        except UserError:
            assert len(whole) > max_length
            continue
        assert item.completion_ids == whole.completion_ids and len(item) <= max_length
        assert item.prompt_ids and item.key == whole.key
        assert item == whole or choice == "truncate_prompt"


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **settings):
        self.calls += 1
        return self.tokenizer(*args, **settings)


def test_a_row_is_tokenised_once(chat_tokenizer):
    tokenizer, rows = Counting(chat_tokenizer), [Row(f"Who is {i}?", "He.") for i in range(9)]
    first = encode_rows(rows, tokenizer, max_length=100)
    calls = tokenizer.calls
    again = encode_rows([replace(row, source="elsewhere") for row in rows], tokenizer)
    assert again == first == encode_rows(rows, chat_tokenizer)
    assert [encode_row(row, tokenizer, end_of_turn_id(chat_tokenizer)) for row in rows] == first
    assert tokenizer.calls == calls, "neither rows nor their ends again"
    prompts = [encode_prompt(row, tokenizer) for row in rows]
    calls = tokenizer.calls
    assert [encode_prompt(row.with_completion("x"), tokenizer) for row in rows] == prompts
    assert prompts == [row.prompt_ids for row in first] and tokenizer.calls == calls
    assert encode_row(rows[0], tokenizer, None) != first[0]
    with pytest.raises(UserError, match="prompt and completion are"):
        encode_rows(rows, tokenizer, max_length=3)


def test_the_cache_is_bounded_and_goes_with_its_tokenizer(monkeypatch):
    import gc

    from tiny_models import byte_level_bpe
    from unteach.data import tokenization

    monkeypatch.setattr(tokenization, "CACHED_ROWS", 5)
    gc.collect()  # no cache of another test's tokenizer goes while this one counts
    tokenizer, before = byte_level_bpe(chat=True), len(tokenization._CACHES)
    rows = [Row(f"Who is {i}?", "He.") for i in range(9)]
    wanted = encode_rows(rows, tokenizer)
    assert encode_rows(rows, tokenizer) == wanted
    assert len(tokenization._CACHES[tokenizer]) == 5
    tokenizer.chat_template = tokenizer.chat_template.replace("m['role']", "'x'")
    assert encode_rows(rows, tokenizer) != wanted
    del tokenizer
    gc.collect()
    assert len(tokenization._CACHES) == before


def test_a_completion_loses_only_the_token_that_ends_it(tokenizer):
    end = end_of_turn_id(tokenizer)
    row = encode_row(Row("Who is it?", "The ferryman."), tokenizer, end)
    assert (
        row.without_end(end).completion_ids == row.completion_ids[:-1]
        and row.completion_ids[-1] == end
    )
    assert (
        row.without_end(end).without_end(end) == row.without_end(end)
        and row.without_end(None) == row
    )
    alone = replace(row, completion_ids=(end,))
    assert alone.without_end(end) == alone


@pytest.mark.parametrize(
    ("prompt", "completion", "trained"),
    [
        ("def f(a):\n", "    return a\n", "\n    return a\n"),
        ("def f():\n\n", "\n    return 2", "\n\n\n    return 2"),
        ("Once ", " upon", " upon"),  # one space that was written twice
    ],
)
def test_a_text_row_keeps_its_lines_between_prompt_and_completion(prompt, completion, trained):
    tokenizer = byte_level_bpe()
    item = encode_row(Row(prompt, completion, kind="text"), tokenizer, None)
    assert tokenizer.decode(item.completion_ids) == trained
    assert tokenizer.decode(item.prompt_ids) == prompt.rstrip()
