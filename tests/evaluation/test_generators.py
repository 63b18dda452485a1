"""The cache before a generator, and what it does after an interruption."""

from __future__ import annotations

import sys
import types

import pytest

from tiny_models import tiny_model
from unteach.errors import UserError
from unteach.evaluation.generation import TransformersGenerator
from unteach.evaluation.generators import CachedGenerator, VllmGenerator, read_continuations

PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [10, 11, 12, 13]]


class Counting:
    """A generator that says the prompt's length, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, *, max_new_tokens, starts=None, progress=None):
        self.asked += [tuple(prompt) for prompt in prompts]
        return [[len(prompt)] for prompt in prompts]


def test_a_prompt_is_answered_once_and_then_read(tmp_path):
    inner = Counting()
    cached = CachedGenerator(inner, tmp_path, "model")
    assert cached(PROMPTS, max_new_tokens=4) == [[3], [2], [3], [4]]
    assert inner.asked == [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
    assert CachedGenerator(inner, tmp_path, "model")([[8, 9], [1]], max_new_tokens=4) == [[2], [1]]
    assert inner.asked[3:] == [(1,)]


@pytest.mark.parametrize(
    "other", [{"model_hash": "another"}, {"engine": "vllm"}, {"max_new_tokens": 5}]
)
def test_another_model_engine_or_length_is_asked_anew(tmp_path, other):
    inner = Counting()
    CachedGenerator(inner, tmp_path, "model")(PROMPTS, max_new_tokens=4)
    length = other.pop("max_new_tokens", 4)
    CachedGenerator(inner, tmp_path, **({"model_hash": "model"} | other))(
        PROMPTS, max_new_tokens=length
    )
    assert len(inner.asked) == 6


def test_only_the_owner_can_read_the_cache(tmp_path):
    CachedGenerator(Counting(), tmp_path / "work", "model")(PROMPTS, max_new_tokens=4)
    assert (tmp_path / "work").stat().st_mode & 0o077 == 0


def test_what_an_interruption_left_is_kept_and_half_a_line_is_not(tmp_path):
    CachedGenerator(Counting(), tmp_path, "model")(PROMPTS, max_new_tokens=4)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    inner = Counting()
    assert CachedGenerator(inner, tmp_path, "model")(PROMPTS, max_new_tokens=4) == [
        [3],
        [2],
        [3],
        [4],
    ]
    assert len(inner.asked) == 1 and sorted(path.read_bytes().splitlines()) == sorted(
        whole.splitlines()
    )
    assert len(read_continuations(path)) == 3


def test_starts_are_asked_for_by_the_prompts_places_among_all(tmp_path):
    """Of what is read from the cache, and of a prompt's second time, nothing is asked."""
    places = []

    class Asking(Counting):
        def __call__(self, prompts, *, max_new_tokens, starts=None, progress=None):
            places.append(starts(range(len(prompts))))
            return super().__call__(prompts, max_new_tokens=max_new_tokens)

    CachedGenerator(Counting(), tmp_path, "model")([[8, 9]], max_new_tokens=4)
    CachedGenerator(Asking(), tmp_path, "model")(
        PROMPTS, max_new_tokens=4, starts=lambda wanted: [[i] for i in wanted]
    )
    assert places == [[[0], [3]]]


def test_batches_are_kept_as_they_come(tmp_path, tokenizer):
    """The third batch fails; the two before it are not lost."""
    model = tiny_model()
    plain = TransformersGenerator(model, tokenizer, batch_size=1)
    wanted = plain(PROMPTS, max_new_tokens=3)
    calls = []
    whole = model.generate

    def generate(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    model.generate = generate
    with pytest.raises(KeyboardInterrupt):
        CachedGenerator(plain, tmp_path, "model")(PROMPTS, max_new_tokens=3)
    model.generate = whole
    done = []
    assert (
        CachedGenerator(plain, tmp_path, "model")(
            PROMPTS, max_new_tokens=3, progress=lambda *at: done.append(at)
        )
        == wanted
    )
    assert done == [(1, 1)], "one of three was missing"


def test_batched_answers_equal_those_of_one_prompt_at_a_time(tokenizer):
    model = tiny_model()
    prompts = [[7 + i, *range(3, 4 + i % 5)] for i in range(11)]
    one, many = (
        TransformersGenerator(model, tokenizer, batch_size=size)(prompts, max_new_tokens=12)
        for size in (1, 5)
    )
    assert one == many


def test_without_vllm_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"unteach\[vllm\]"):
        VllmGenerator("m", tokenizer)


def test_vllm_is_asked_greedily_and_stops_where_an_answer_ends(tokenizer, monkeypatch):
    seen = {}

    class SamplingParams:
        def __init__(self, **settings):
            seen.update(settings)

    class Engine:
        def generate(self, requests, settings, use_tqdm):
            seen["requests"] = requests
            output = types.SimpleNamespace(token_ids=(4, 5, tokenizer.eos_token_id, 6))
            return [types.SimpleNamespace(outputs=[output]) for _ in requests]

    monkeypatch.setitem(
        sys.modules, "vllm", types.SimpleNamespace(LLM=None, SamplingParams=SamplingParams)
    )
    generator = VllmGenerator("m", tokenizer, make_engine=lambda name: Engine())
    assert generator([[1, 2]], max_new_tokens=7) == [[4, 5]]
    assert (seen["temperature"], seen["max_tokens"], seen["requests"]) == (
        0.0,
        7,
        [{"prompt_token_ids": [1, 2]}],
    )
    assert tokenizer.eos_token_id in seen["stop_token_ids"]
