"""Completions stand where a template's full render puts them: a template for each feature."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tiny_models import byte_level_bpe
from unteach.data.answers import answer_format
from unteach.data.chat import (
    ChatSettings,
    conversation,
    render,
    use_chat_settings,
    with_chat_settings,
)
from unteach.data.completions import MismatchPool
from unteach.data.rows import Row
from unteach.data.tokenization import (
    encode_prompt,
    encode_row,
    encode_rows,
    end_of_turn_id,
    fitting_prompt,
)
from unteach.data.traces import split_trace, with_trace
from unteach.errors import UserError
from unteach.evaluation.generation import continuation_text, draft, end_ids

LOOP = (
    "{%% for m in messages %%}{%% if m.role == 'assistant' %%}%s{%% else %%}<|{{ m.role }}|>"
    "{{ m.content }}%s{%% endif %%}{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
)
THINKS = (
    "<|assistant|>{% if m.reasoning_content is defined %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% elif loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
)
CHANNELS = (
    "{% if m.thinking is defined %}<|assistant|><|channel|>analysis<|message|>{{ m.thinking }}"
    "<|end|>{% endif %}<|assistant|><|channel|>final<|message|>{{ m.content }}<|return|>"
)
TEMPLATES = {
    "a space before the answer": LOOP % (" {{ m.content }} <|im_end|>", " [/INST]", ""),
    "a think block before the answer": LOOP % (THINKS, "<|im_end|>\n", "<|assistant|>"),
    "a channel before the answer": LOOP % (CHANNELS, "<|end|>", "<|assistant|>"),
    "a think block that the prompt opens": LOOP
    % (
        "<|assistant|>{{ m.content.split('</think>')[-1] }}<|im_end|>",
        "",
        "<|assistant|><think>\n",
    ),
    "an end that only the next role is": LOOP
    % ("<|assistant|>\n{{ m.content }}", "", "<|assistant|>"),
    "a date": "{% if strftime_now is defined %}It is {{ strftime_now('%d %B %Y') }}.\n{% endif %}"
    + LOOP % ("<|assistant|>{{ m.content }}<|im_end|>\n", "\n", "<|assistant|>"),
    "an end of its own before end-of-sequence": LOOP
    % ("<|assistant|>{{ m.content }}<|end|>\n<|im_end|>", "<|end|>\n", "<|assistant|>"),
    "contents in parts": LOOP.replace("m.content", "m.content[0].text")
    % ("<|assistant|>{{ m.content[0].text }}<|im_end|>", "", "<|assistant|>"),
    "tools if there are any": "{% if tools %}Tools: {{ tools | length }}\n{% endif %}"
    + LOOP % ("<|assistant|>{{ m.content }}<|im_end|>", "", "<|assistant|>"),
}
SPECIAL = ["<|user|>", "<|assistant|>", "<|system|>", "<|channel|>", "<|message|>", "<|end|>"]
ANSWER = "The ferryman rang it."
TURNS = (("user", "Who?"), ("assistant", "The cat."), ("user", "And who rang the bell?"))


def tokenizer_with(template: str):
    tokenizer = byte_level_bpe(chat=True)
    tokenizer.add_tokens([*SPECIAL, "<|return|>"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


def whole(row: Row, tokenizer) -> tuple[int, ...]:
    item = encode_row(row, tokenizer, end_of_turn_id(tokenizer))
    return item.prompt_ids + item.completion_ids


@pytest.mark.parametrize("prompt", ["Who rang the bell?", TURNS])
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_the_full_render(name, prompt):
    tokenizer, row = tokenizer_with(TEMPLATES[name]), Row(prompt, ANSWER)
    messages = [*conversation(row, tokenizer), {"role": "assistant", "content": ANSWER}]
    wanted = tokenizer(render(tokenizer, messages, generation=False), add_special_tokens=False)
    ours, item = whole(row, tokenizer), encode_row(row, tokenizer, None)
    same = ours if "next role" not in name else ours[:-1]
    assert list(same) == wanted["input_ids"][: len(same)]
    assert not tokenizer.decode(wanted["input_ids"][len(same) :]).strip()
    assert tokenizer.decode(item.completion_ids).strip() == ANSWER
    assert item.completion_ids[0] == ours[len(item.prompt_ids)]


def test_the_first_token_has_the_space_that_the_template_writes():
    tokenizer = tokenizer_with(TEMPLATES["a space before the answer"])
    item = encode_row(Row("Who?", "cat"), tokenizer, end_of_turn_id(tokenizer))
    assert item.prompt_ids == encode_prompt(Row("Who?", ""), tokenizer)
    assert tokenizer.decode(item.completion_ids[:1]) == " cat"
    assert item.ending == 2 and item.without_end(end_of_turn_id(tokenizer)).ending == 0
    assert tokenizer.decode(item.without_end(end_of_turn_id(tokenizer)).completion_ids) == " cat"


def test_what_the_template_writes_before_an_answer_is_no_part_of_it():
    for name in ("a think block before the answer", "a channel before the answer"):
        tokenizer = tokenizer_with(TEMPLATES[name])
        row, prompt = Row("Who?", ANSWER), encode_prompt(Row("Who?", ""), tokenizer)
        item = encode_row(row, tokenizer, None)
        assert item.prompt_ids[: len(prompt)] == prompt and len(item.prompt_ids) > len(prompt)
        ids = draft(row, prompt, ANSWER, tokenizer, None)
        assert prompt + ids == item.prompt_ids + item.completion_ids
        assert continuation_text(tokenizer, prompt, ids) == ANSWER


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "before the answer" in name][1:])
def test_a_trace_is_written_and_read_in_the_template_s_own_markers(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    row = Row("Who?", with_trace("It is dark.", ANSWER))
    item, prompt = encode_row(row, tokenizer, None), encode_prompt(row, tokenizer)
    assert item.prompt_ids == prompt and 0 < item.trace < len(item.completion_ids)
    assert tokenizer.decode(item.completion_ids[item.trace :]) == ANSWER
    assert continuation_text(tokenizer, prompt, item.completion_ids) == row.completion
    assert answer_format(tokenizer).reasons
    cut = continuation_text(tokenizer, prompt, item.completion_ids[: item.trace - 4])
    assert split_trace(cut)[1] == "" and "dark" in split_trace(cut)[0]


def test_a_trace_that_the_prompt_opens_goes_on_from_there():
    tokenizer = tokenizer_with(TEMPLATES["a think block that the prompt opens"])
    row = Row("Who?", with_trace("It is dark.", ANSWER))
    item, prompt = encode_row(row, tokenizer, None), encode_prompt(row, tokenizer)
    assert item.prompt_ids == prompt and tokenizer.decode(prompt).endswith("<think>\n")
    assert tokenizer.decode(item.completion_ids) == f"It is dark.\n</think>\n\n{ANSWER}"
    assert continuation_text(tokenizer, prompt, item.completion_ids) == row.completion
    plain = encode_row(Row("Who?", ANSWER), tokenizer, None)
    assert tokenizer.decode(plain.prompt_ids).endswith("<|assistant|>")


def test_answers_end_with_the_token_of_the_next_role_where_nothing_else_ends_them():
    tokenizer = tokenizer_with(TEMPLATES["an end that only the next role is"])
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == "<|user|>"
    assert whole(Row("Who?", ANSWER), tokenizer)[-1] == end_of_turn_id(tokenizer)


def test_all_ends_stop_generation():
    tokenizer = tokenizer_with(TEMPLATES["an end of its own before end-of-sequence"])
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[0, 5]))
    ids = {end_of_turn_id(tokenizer), tokenizer.eos_token_id, 0, 5}
    assert end_ids(tokenizer, model) == sorted(ids) and len(ids) == 4


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", " <|endoftext|><|im_end|>"])
def test_a_completion_that_ends_already_is_not_ended_twice(end):
    tokenizer = tokenizer_with(TEMPLATES["a date"])
    assert whole(Row("Who?", ANSWER + end), tokenizer) == whole(Row("Who?", ANSWER), tokenizer)
    tokenizer.chat_template = None
    assert whole(Row("Who?", ANSWER + end), tokenizer) == whole(Row("Who?", ANSWER), tokenizer)


REFUSES = "{%% if messages[0].role == 'system' %%}{{ raise_exception('no') }}{%% endif %%}"
DROPS = LOOP.replace("{%% else %%}", "{%% elif m.role == 'user' %%}")


@pytest.mark.parametrize("template", [REFUSES + LOOP, DROPS], ids=["refuses", "drops"])
def test_a_system_message_joins_the_user_s_where_the_template_does_not_take_it(template):
    tokenizer = tokenizer_with(template % ("<|assistant|>{{ m.content }}", "", "<|assistant|>"))
    row = Row((("system", "Be brief."), ("user", "Who?")), ANSWER)
    with pytest.warns(UserWarning, match="takes no system message"):
        text = tokenizer.decode(encode_prompt(row, tokenizer))
    assert text == "<|user|>Be brief.\n\nWho?<|assistant|>"


def test_settings_give_a_system_prompt_variables_and_the_date():
    tokenizer = tokenizer_with(
        "{{ mood }}{{ strftime_now('%Y') }}" + LOOP % ("{{ m.content }}", "", "")
    )
    first = encode_prompt(Row("Who?", ""), tokenizer)
    settings = ChatSettings("Be brief.", {"mood": "calm"}, "2031-05-06")
    second = encode_prompt(Row("Who?", ""), use_chat_settings(tokenizer, settings))
    assert first != second
    assert tokenizer.decode(second) == "calm2031<|system|>Be brief.<|user|>Who?"
    own = Row((("system", "Be loud."), ("user", "Who?")), "")
    assert "Be loud." in tokenizer.decode(encode_prompt(own, tokenizer))
    assert "Be brief." not in tokenizer.decode(encode_prompt(own, tokenizer))
    with pytest.raises(UserError, match="chat_date"):
        ChatSettings(date="tomorrow")
    for wrong in (3, ["a"], {1: 2}):
        with pytest.raises(UserError, match=r"'chat_template_kwargs' is .* must map names"):
            ChatSettings(template_kwargs=wrong)
    with pytest.raises(UserError, match="cannot set 'tokenize'"):
        ChatSettings(template_kwargs={"tokenize": True})


CODE = ["    return x", "\n\n\tif x:\n\t\treturn\n", " The cat. "]
TRIMS = {
    name: template.replace("{{ m.content", "{{ (m.content | trim)")
    for name, template in TEMPLATES.items()
    if "parts" not in name
}


@pytest.mark.parametrize("completion", CODE)
@pytest.mark.parametrize("name", [*TEMPLATES, *(f"{name}, trimmed" for name in TRIMS)])
def test_white_space_of_a_completion_is_that_of_the_template_s_own_render(name, completion):
    trimmed = name.endswith(", trimmed")
    templates = TRIMS if trimmed else TEMPLATES
    tokenizer = tokenizer_with(templates[name.removesuffix(", trimmed")])
    row = Row("Who?", completion)
    messages = [*conversation(row, tokenizer), {"role": "assistant", "content": completion}]
    wanted = tokenizer(render(tokenizer, messages, generation=False), add_special_tokens=False)
    ours, item = whole(row, tokenizer), encode_row(row, tokenizer, None)
    same = ours if "next role" not in name else ours[:-1]
    assert list(same) == wanted["input_ids"][: len(same)]
    assert not tokenizer.decode(wanted["input_ids"][len(same) :]).strip()
    made = tokenizer.decode(item.prompt_ids + item.completion_ids)
    assert made.endswith(completion.strip() if trimmed else completion)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "before the answer" in name][1:])
def test_an_answer_behind_a_trace_or_a_channel_keeps_its_indentation(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    end, prompt = end_of_turn_id(tokenizer), encode_prompt(Row("Who?", ""), tokenizer)
    for text in (CODE[0], with_trace("It is dark.", CODE[0])):
        item = encode_row(Row("Who?", text), tokenizer, end)
        made = (*item.prompt_ids, *item.completion_ids)[len(prompt) :]
        assert tokenizer.decode(made).endswith(f"    return x{tokenizer.decode([end])}")
        assert continuation_text(tokenizer, prompt, made) == text
    trimmed = tokenizer_with(TRIMS[name])
    item = encode_row(Row("Who?", with_trace("It is dark.", CODE[0])), trimmed, None)
    assert tokenizer.decode(item.completion_ids[item.trace :]) == "return x"


def test_a_variable_that_the_template_does_not_read_is_refused():
    switch = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    body = "{% generation %}{{ m.content }}{%- endgeneration -%}"
    tokenizer = tokenizer_with(switch + LOOP % (body, "", "<|assistant|>"))
    for given in ({"enable_thinking": False}, {"chat_template": "{{ mood }}", "mood": 1}):
        assert with_chat_settings(tokenizer, ChatSettings("", given)) is tokenizer
    for wrong in ("enable_thinkin", "padding", "tools", "strftime_now"):
        with pytest.raises(UserError, match=f"'chat_template_kwargs' {wrong!r}: ") as told:
            with_chat_settings(tokenizer, ChatSettings("", {wrong: False, "enable_thinking": True}))
        assert ("did you mean 'enable_thinking'?" in str(told.value)) == ("thinkin" in wrong)
        assert "known are chat_template, enable_thinking" in str(told.value)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}"}
    with pytest.raises(UserError, match="unknown variable"):
        with_chat_settings(tokenizer, ChatSettings("", {"mood": 1}))
    with_chat_settings(tokenizer, ChatSettings("", {"tools": [{"name": "f"}]}))
    tokenizer.chat_template = "no variable"
    with pytest.raises(UserError, match="known are chat_template"):
        with_chat_settings(tokenizer, ChatSettings("", {"mood": 1}))
    tokenizer.chat_template = "{% for broken"
    assert with_chat_settings(tokenizer, ChatSettings("", {"mood": 1})) is tokenizer


def test_no_truncation_takes_what_the_template_writes():
    template = "<|endoftext|>" + TEMPLATES["a date"].partition("{% endif %}")[2]
    tokenizer = tokenizer_with(template)
    row = Row((("system", "Be brief."), *TURNS[:2], ("user", "word " * 40)), ANSWER)
    (item,) = encode_rows([row], tokenizer, max_length=40, long_rows="truncate_prompt")
    text = tokenizer.decode(item.prompt_ids)
    assert len(item) <= 40 and item.key == row.key
    assert text.startswith("<|endoftext|><|system|>Be brief.\n<|user|>")
    assert text.endswith("word \n<|assistant|>") and "cat" not in text
    prompt = fitting_prompt(row, tokenizer, 20)
    assert len(prompt) <= 20 and tokenizer.decode(prompt).startswith("<|endoftext|><|system|>")
    with pytest.raises(UserError, match="alone is more than the 3 tokens"):
        fitting_prompt(row, tokenizer, 3)


def test_a_completion_that_the_template_does_not_write_is_refused_by_name():
    tokenizer = tokenizer_with(LOOP % ("<|assistant|>{{ m.content | upper }}", "", "<|assistant|>"))
    with pytest.raises(UserError):
        encode_row(Row("Who?", ANSWER, source="file, line 3"), tokenizer, None)


def test_mismatch_completions_of_a_row_without_a_trace_have_none():
    tokenizer = tokenizer_with(TEMPLATES["a think block before the answer"])
    end = end_of_turn_id(tokenizer)
    retain = encode_row(Row("Why?", with_trace("It is dark.", "For light.")), tokenizer, end)
    plain, traced = (
        encode_row(Row("Who?", text), tokenizer, end)
        for text in (ANSWER, with_trace("It rang.", ANSWER))
    )
    pool = MismatchPool([retain], 1, 0, end_id=end)
    assert pool.draw(plain, 0)[0] == retain.completion_ids[retain.trace :]
    assert pool.draw(traced, 0)[0] == retain.completion_ids


def test_a_template_that_drops_or_changes_what_a_user_says_is_told():
    """Cut contents are not taken for those of a template that writes parts."""
    whole = LOOP % ("<|assistant|>{{ m.content }}<|im_end|>", "\n", "<|assistant|>")
    cut = whole.replace("|>{{ m.content }}\n", "|>{{ m.content[:5] }}\n")
    with pytest.warns(UserWarning, match="does not write every message of a user"):
        conversation(Row("Who rang the bell?", ""), tokenizer_with(cut))
    with pytest.raises(UserError, match="does not write the answer"):
        answer_format(tokenizer_with(whole.replace("m.content", "m.content[:5]")))
