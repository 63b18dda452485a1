"""Batched greedy answers against a loop that asks for one token at a time."""

from __future__ import annotations

import copy
from functools import wraps
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from tiny_models import FAMILIES, tiny_model
from unteach.data.chat import ChatSettings, use_chat_settings
from unteach.data.packing import common_prefix
from unteach.data.rows import Row
from unteach.data.tokenization import (
    encode_prompt,
    encode_row,
    end_of_turn_id,
    fitting_prompt,
)
from unteach.errors import UserError
from unteach.evaluation import generation
from unteach.evaluation.generation import (
    ANSWER_TOKENS,
    MOST_TOKENS,
    TRACE_TOKENS,
    agreed_starts,
    answer_limit,
    draft,
    end_ids,
    generate_answers,
    generate_ids,
    generate_outputs,
)
from unteach.evaluation.likelihood import greedy_matches
from unteach.models import decoder

PROMPTS = [
    [5, 9, 31, 7, 400, 2, 8],
    [11],
    [77, 78],
    [3, 3, 3, 3],
    [250, 14, 90, 91, 92, 93, 94, 95, 96, 17, 18],
    [500, 1],
]


@torch.no_grad()
def naive_answer(model, prompt, new_tokens, ends=()):
    """The argmax of one full forward after another, up to an end token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_padded_batches_equal_the_naive_loop(family):
    model = tiny_model(family)
    wanted = [naive_answer(model, prompt, 8) for prompt in PROMPTS]
    for batch_size in (1, 4, 24):
        assert (
            generate_ids(
                model, PROMPTS, max_new_tokens=8, pad_id=0, end_ids=[], batch_size=batch_size
            )
            == wanted
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_stops_before_its_end_token_and_the_others_go_on(family):
    model = tiny_model(family)
    free = [naive_answer(model, prompt, 8) for prompt in PROMPTS]
    ends = {free[0][3], free[1][1]}
    wanted = [naive_answer(model, prompt, 8, ends) for prompt in PROMPTS]
    assert min(map(len, wanted)) < 4 and wanted != free
    found = generate_ids(
        model, PROMPTS, max_new_tokens=8, pad_id=0, end_ids=sorted(ends), batch_size=3
    )
    assert found == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_answers_that_end_leave_the_batch_and_the_others_stay_as_they_are(
    family, cached, stride, monkeypatch
):
    model = tiny_model(family)
    model.config.use_cache = model.generation_config.use_cache = cached
    free = [naive_answer(model, prompt, 14) for prompt in PROMPTS]
    said = sorted({token for answer in free for token in answer})
    ends = max(
        combinations(said, 2),
        key=lambda pair: len({len(generation.until_end(answer, pair)) for answer in free}),
    )
    wanted = [naive_answer(model, prompt, 14, ends) for prompt in PROMPTS]
    assert len({len(answer) for answer in wanted}) > 2
    sizes, generate = [], model.generate
    monkeypatch.setattr(
        model,
        "generate",
        lambda **inputs: sizes.append(len(inputs["input_ids"])) or generate(**inputs),
    )
    monkeypatch.setattr(generation, "STRIDE", stride)
    kept: list[dict[int, list[int]]] = []
    found = generate_ids(
        model, PROMPTS, max_new_tokens=14, pad_id=0, end_ids=sorted(ends), on_batch=kept.append
    )
    assert found == wanted
    assert (
        sizes[0] == len(PROMPTS)
        and sizes == sorted(sizes, reverse=True)
        and sizes[-1] < len(PROMPTS)
    )
    assert (
        sorted(key for part in kept for key in part) == list(range(len(PROMPTS))) and len(kept) > 1
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("opening", [[], [7, 301, 22, 9, 9, 45, 300, 6, 12]])
def test_a_prompt_that_is_repeated_is_forwarded_once(family, opening, monkeypatch):
    """As for samples; each continuation is as if its prompt stood alone."""
    model = tiny_model(family)
    prompts = [[*opening, *prompt] for prompt in PROMPTS for _ in range(3)]
    wanted = [naive_answer(model, prompt, 8) for prompt in prompts]
    body = decoder(model)
    tokens, forward = [], body.forward

    @wraps(forward)
    def counted(*ids, **inputs):
        tokens.append((ids[0] if ids else inputs["input_ids"]).numel())
        return forward(*ids, **inputs)

    monkeypatch.setattr(body, "forward", counted)
    assert generate_ids(model, prompts, max_new_tokens=8, pad_id=0, end_ids=[]) == wanted
    if family == "llama":  # a cache that keeps all keys and values
        assert sum(tokens) <= len(opening) + 6 * max(map(len, PROMPTS)) + 18 * 8


OPENING = [7, 301, 22, 9, 9, 45, 300, 6, 12]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "prompts",
    [PROMPTS, [[], *PROMPTS], [[*OPENING[:2], *prompt] for prompt in PROMPTS], [PROMPTS[0]] * 3],
)
def test_an_opening_that_all_prompts_share_is_forwarded_once(family, prompts, monkeypatch):
    """A system prompt, for instance; also where a prompt is nothing but the opening, and where all
    prompts are the same.
    """
    model = tiny_model(family)
    prompts = [[*OPENING, *prompt] for prompt in prompts]
    wanted = [naive_answer(model, prompt, 12, [13]) for prompt in prompts]
    body = decoder(model)
    lengths, forward = [], body.forward

    @wraps(forward)  # transformers reads which arguments there are
    def counted(*ids, **inputs):
        lengths.append(tuple((ids[0] if ids else inputs["input_ids"]).shape))
        return forward(*ids, **inputs)

    monkeypatch.setattr(body, "forward", counted)
    assert generate_ids(model, prompts, max_new_tokens=12, pad_id=0, end_ids=[13]) == wanted
    shared_prefix = len(common_prefix(prompts))
    assert lengths[0] == (1, shared_prefix) and shared_prefix >= 8
    if family != "gemma3":  # whose layers with a window begin anew
        assert lengths[1] == (len(prompts), max(map(len, prompts)) - shared_prefix)


def test_an_opening_is_as_long_as_all_agree_and_leaves_each_text_a_token():
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5]]) == [1, 2]
    assert common_prefix([[1, 2, 3], [1, 2]]) == [1]
    assert common_prefix([[1, 2, 3]] * 2) == [1, 2]
    assert common_prefix([[4], [1, 2]]) == common_prefix([[1], [1, 2]]) == []


def test_a_sliding_window_s_cache_is_thinned_out_too():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = MistralForCausalLM(
        MistralConfig(**sizes, num_key_value_heads=2, sliding_window=6)
    ).eval()
    model.generation_config.pad_token_id = 0
    prompts = [[*OPENING, *ids] for ids in ([5, 9, 31], [77, 78, 5], [3, 3, 3])]
    free = [naive_answer(model, prompt, 20) for prompt in prompts]
    ends = [free[1][5]]
    assert generate_ids(model, prompts, max_new_tokens=20, pad_id=0, end_ids=ends) == [
        naive_answer(model, p, 20, ends) for p in prompts
    ]


@pytest.mark.parametrize(("length", "wanted"), [(1, 192), (2**13 // 30, 30), (10**6, 24)])
def test_a_batch_is_as_large_as_its_cache_allows(length, wanted, monkeypatch):
    model = tiny_model()
    config = model.config
    token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.hidden_size // config.num_attention_heads)
        * 4
    )
    monkeypatch.setattr(generation, "CACHE_MB", token / 2**7)
    assert generation.batch_that_fits(model, length) == wanted


def test_padding_with_the_end_token_changes_nothing_even_where_prompts_contain_it():
    model = tiny_model()
    prompts = [[0, 9, 0, 7], [0], [31, 32, 33]]
    found = generate_ids(model, prompts, max_new_tokens=6, pad_id=0, end_ids=[0])
    assert found == [naive_answer(model, prompt, 6, {0}) for prompt in prompts]


def test_answers_come_in_the_order_of_the_prompts_whatever_their_lengths():
    model = tiny_model()
    forwards = generate_ids(model, PROMPTS, max_new_tokens=5, pad_id=0, end_ids=[], batch_size=2)
    backwards = generate_ids(
        model, PROMPTS[::-1], max_new_tokens=5, pad_id=0, end_ids=[], batch_size=2
    )
    assert backwards == forwards[::-1]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_put_back_and_dropout_is_off_meanwhile(training):
    model = tiny_model("gpt_neox")
    wanted = generate_ids(model, PROMPTS, max_new_tokens=6, pad_id=0, end_ids=[])
    model.train(training)
    assert generate_ids(model, PROMPTS, max_new_tokens=6, pad_id=0, end_ids=[]) == wanted
    assert model.training is training


def test_a_model_s_own_sampling_habits_do_not_reach_a_greedy_answer():
    model = tiny_model()
    wanted = [naive_answer(model, prompt, 8) for prompt in PROMPTS]
    habits = {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 3,
    }
    for name, value in habits.items():
        setattr(model.generation_config, name, value)
    assert generate_ids(model, PROMPTS, max_new_tokens=8, pad_id=0, end_ids=[]) == wanted
    ends = [wanted[0][0]]
    found = generate_ids(model, PROMPTS, max_new_tokens=8, pad_id=0, end_ids=ends)
    assert found == [naive_answer(model, prompt, 8, ends) for prompt in PROMPTS]


def test_no_prompts_give_no_answers():
    assert generate_ids(tiny_model(), [], max_new_tokens=3, pad_id=0, end_ids=[]) == []


def test_progress_counts_prompts_up_to_all():
    seen = []
    generate_ids(
        tiny_model(),
        PROMPTS,
        max_new_tokens=1,
        pad_id=0,
        end_ids=[],
        batch_size=4,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(4, 6), (6, 6)]


def test_an_answer_ends_at_end_of_sequence_and_at_the_template_s_end_of_turn(
    tokenizer, chat_tokenizer
):
    assert end_ids(tokenizer) == [tokenizer.eos_token_id]
    odd = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=["<|im_end|>"]))
    with pytest.raises(UserError, match=r"names '<.im_end.>' as eos_token_id"):
        end_ids(tokenizer, odd)
    chat_tokenizer_ends = end_ids(chat_tokenizer)
    assert chat_tokenizer.convert_tokens_to_ids("<|im_end|>") in chat_tokenizer_ends
    assert chat_tokenizer.eos_token_id in chat_tokenizer_ends


@pytest.mark.parametrize(
    "completion", [" that slept on the warm flour sacks.", " asked the sailors"]
)
def test_prompt_and_answer_join_to_running_text(any_tokenizer, monkeypatch, completion):
    """Pieces with a word boundary lose their space when an answer is decoded alone."""
    row = Row("The miller kept a grey cat", completion, "text")
    encoded = encode_row(row, any_tokenizer, end_of_turn_id(any_tokenizer))
    monkeypatch.setattr(
        generation, "generate_ids", lambda model, prompts, **_: [list(encoded.completion_ids)]
    )
    assert generate_outputs(None, any_tokenizer, [row.with_completion("")], max_new_tokens=9) == [
        completion
    ]


def test_an_answer_holds_no_special_tokens(chat_tokenizer, monkeypatch):
    ids = chat_tokenizer("The cat.<|im_start|>", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(generation, "generate_ids", lambda model, prompts, **_: [list(ids)])
    assert generate_outputs(None, chat_tokenizer, [Row("Who?", "")], max_new_tokens=9) == [
        "The cat."
    ]


def drafts_of(said, how):
    """Drafts of every kind for given answers: right and longer, right and shorter, wrong from a
    token on, wrong at once, none.
    """
    kinds = {
        "right": lambda ids: [*ids, 7, 8, 9],
        "short": lambda ids: ids[:2],
        "late": lambda ids: [*ids[:3], (ids[3] + 1) % 90 if len(ids) > 3 else 3, *ids[4:]],
        "wrong": lambda ids: [(ids[0] + 1) % 90 if ids else 4, *ids[1:]],
        "none": lambda ids: [],
    }
    order = list(kinds) if how == "mixed" else [how]
    return [kinds[order[i % len(order)]](list(ids)) for i, ids in enumerate(said)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["right", "short", "late", "wrong", "none", "mixed"])
@pytest.mark.parametrize("ends", ["no end", "an end"])
def test_an_answer_is_the_same_whatever_its_draft_was(family, how, ends):
    model = tiny_model(family)
    settings = {"max_new_tokens": 6, "pad_id": 0, "batch_size": 3}
    without = generate_ids(model, PROMPTS, end_ids=[], **settings)
    stop = [without[1][4]] if ends == "an end" else []
    without = generate_ids(model, PROMPTS, end_ids=stop, **settings)
    drafts = drafts_of(without, how)
    starts = agreed_starts(drafts, greedy_matches(model, PROMPTS, drafts))
    batches: dict[int, list[int]] = {}
    assert (
        generate_ids(
            model, PROMPTS, end_ids=stop, starts=starts, on_batch=batches.update, **settings
        )
        == without
    )
    assert [batches[i] for i in range(len(PROMPTS))] == without


def test_a_draft_that_is_right_costs_no_generation(monkeypatch):
    model = tiny_model()
    said = generate_ids(model, PROMPTS, max_new_tokens=5, pad_id=0, end_ids=[])
    starts = agreed_starts(said, greedy_matches(model, PROMPTS, said))
    assert starts == said
    monkeypatch.setattr(type(model), "generate", None)
    assert (
        generate_ids(model, PROMPTS, max_new_tokens=5, pad_id=0, end_ids=[], starts=starts) == said
    )


def test_a_draft_that_ends_ends_the_answer_there(tokenizer):
    model, end = tiny_model(), 5
    starts = [[9, 8, end, 7], [end], [9]]
    made = generate_ids(
        model, PROMPTS[:3], max_new_tokens=4, pad_id=0, end_ids=[end], starts=starts
    )
    assert made[:2] == [[9, 8], []] and made[2][0] == 9


def test_drafts_go_before_the_rows_completions(monkeypatch, tokenizer):

    def matches(model, prompts, drafts):
        return [[True] * len(draft) for draft in drafts]

    def generator(prompts, *, max_new_tokens, starts=None, progress=None):
        found = starts(range(len(prompts)))
        assert starts([2, 0]) == [found[2], found[0]]
        return found

    monkeypatch.setattr(generation, "greedy_matches", matches)
    rows = [
        Row("The miller kept", " a grey cat.", "text"),
        Row("Who slept", " on the sacks?", "text"),
        Row("And then", "", "text"),
    ]
    said = generate_outputs(
        None,
        tokenizer,
        rows,
        max_new_tokens=16,
        generator=generator,
        drafts={rows[1].key: " badly?"},
    )
    assert said[0].startswith(" a grey cat.") and said[1].startswith(" badly?") and said[2] == ""


def test_matches_that_are_known_cost_no_second_forward(monkeypatch, tokenizer):
    rows = [
        Row("The miller kept", " a grey cat.", "text"),
        Row("Who slept", " on the sacks?", "text"),
    ]
    starts_found = []

    def generator(prompts, *, max_new_tokens, starts=None, progress=None):
        starts_found.extend(starts(range(len(prompts))))
        return [[] for _ in prompts]

    length = len(
        draft(rows[0], encode_prompt(rows[0], tokenizer), rows[0].completion, tokenizer, None)
    )
    known = [[True, False] + [True] * (length - 2), None]
    monkeypatch.setattr(generation, "greedy_matches", lambda *_: pytest.fail("measured again"))
    generate_outputs(None, tokenizer, rows, max_new_tokens=4, generator=generator, matches=known)
    assert len(starts_found[0]) == 1 and starts_found[1] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_question_is_answered_the_same_with_matches_and_without(family, chat_tokenizer):
    model = tiny_model(family)
    rows = [
        Row(f"Who kept {animal}?", f"The {animal}.")
        for animal in ("cats", "owls", "a mule", "bees")
    ]
    plain = generate_outputs(model, chat_tokenizer, rows, max_new_tokens=7)
    prompts = [encode_prompt(row, chat_tokenizer) for row in rows]
    end = end_of_turn_id(chat_tokenizer)
    drafts = [
        draft(row, prompt, row.completion, chat_tokenizer, end)
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    assert (
        generate_outputs(
            model,
            chat_tokenizer,
            rows,
            max_new_tokens=7,
            matches=greedy_matches(model, prompts, drafts),
        )
        == plain
    )


def test_a_prompt_that_leaves_no_room_for_its_answer_loses_its_beginning(tokenizer):
    model = tiny_model("opt", vocab_size=len(tokenizer), max_position_embeddings=40)
    rows = [
        Row(
            "Who rang the bell of the ferry? " * 4,
            "The ferryman rang it, and rang it again and again until it broke.",
        )
    ]
    fitting = fitting_prompt(rows[0], tokenizer, 32)
    wanted = generate_ids(model, [fitting], max_new_tokens=8, pad_id=0, end_ids=end_ids(tokenizer))
    assert generate_outputs(model, tokenizer, rows, max_new_tokens=8) == [
        generation.continuation_text(tokenizer, fitting, wanted[0])
    ]


def test_the_limit_of_an_answer_has_room_for_the_rows_and_for_a_trace(chat_tokenizer):
    short, long = Row("Who?", "The cat."), Row("Who?", "word " * 90)
    assert answer_limit(chat_tokenizer, [short]) == ANSWER_TOKENS
    limit = answer_limit(chat_tokenizer, [short, long])
    assert ANSWER_TOKENS < limit <= MOST_TOKENS
    assert answer_limit(chat_tokenizer, [short, long], tiny_model()) <= 256
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}{# </think> #}"
    assert answer_limit(tokenizer, [short]) == ANSWER_TOKENS + TRACE_TOKENS
    use_chat_settings(tokenizer, ChatSettings(max_new_tokens=7))
    assert answer_limit(tokenizer, [long]) == 7


def test_answers_that_meet_the_limit_are_counted(chat_tokenizer):
    rows = [Row("Who?", ""), Row("Who rang?", "")]
    found = generate_answers(tiny_model(), chat_tokenizer, rows, max_new_tokens=3)
    assert [cut for _, cut in found] == [True, True]
