"""Alternates are other answers, drawn by seed and row alone."""

from __future__ import annotations

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.evaluation.generation import continuation_text, generate_outputs
from unteach.prepare import generations
from unteach.prepare.generations import LoadedModel, with_alternates, with_diverted_answers
from unteach.progress import Display

ROWS = [
    Row("Who rang the bell?", "The ferryman."),
    Row("Who slept?", "The cat.", alternate="The miller."),
]


@pytest.fixture
def source(tmp_path) -> LoadedModel:
    return LoadedModel.of(tiny_model(), byte_level_bpe(), tmp_path, Display(quiet=True))


def test_samples_depend_on_seed_and_row_alone_and_a_given_alternate_is_kept(source):
    first = with_alternates(source, ROWS, 1)
    reversed_order = with_alternates(source, ROWS[::-1], 1)
    other = with_alternates(source, ROWS, 2)
    assert first == reversed_order[::-1] and first[0].alternate.strip() and first[1] == ROWS[1]
    assert first[0].alternate != other[0].alternate and first[0].key == ROWS[0].key


def test_the_sample_least_like_the_completion_is_taken(source, monkeypatch):
    samples = ["The ferryman.", " The ferryman rang.", "Nobody", " "]
    monkeypatch.setattr(generations, "sampled_answers", lambda *_: samples)
    assert with_alternates(source, ROWS[:1], 0)[0].alternate == "Nobody"


def test_a_row_whose_every_sample_is_the_completion_is_named(source, monkeypatch):
    monkeypatch.setattr(generations, "sampled_answers", lambda *_: [" The  ferryman.", ""])
    message = r"forget row .*: all 2 sampled answers are empty or equal .*give field 'alternate'"
    with pytest.raises(UserError, match=message):
        with_alternates(source, ROWS[:1], 0)


def test_prompts_with_a_name_to_avoid_are_answered_without_it_once(source):
    plain = with_diverted_answers(source, ROWS)
    assert plain == ROWS
    first = with_diverted_answers(source, [Row("Who rang the bell?", "x", avoid=("zz",)), ROWS[1]])
    begun = first[-1].completion.split()[0]
    avoiding = [Row("Who rang the bell?", text, avoid=(begun,)) for text in ("x", "y")]
    made = with_diverted_answers(source, avoiding)
    assert made[:2] == avoiding and len(made) == 3
    assert made[2].prompt == "Who rang the bell?" and made[2].avoid == (begun,)
    assert begun not in made[2].completion


def test_a_passage_is_continued_without_three_of_its_tokens_in_a_row(source, monkeypatch):
    plain = generate_outputs(
        source.model, source.tokenizer, [Row("Once", "", "text")], max_new_tokens=48
    )[0]
    rows = [Row("Once", plain * 9, "text"), ROWS[1]]  # what the model says by itself
    said: list[list[int]] = []

    def text(tokenizer, prompt, ids):
        said.append([*prompt, *ids])
        return continuation_text(tokenizer, prompt, ids)

    monkeypatch.setattr(generations, "continuation_text", text)
    made = with_diverted_answers(source, rows)
    assert made[:2] == rows and len(made) == 3 and made[2].diverted and made[2].prompt == "Once"
    item = encode_row(rows[0], source.tokenizer, None)
    own, diverted = (
        {tuple(ids[i - 2 : i + 1]) for i in range(len(item.prompt_ids), len(ids))}
        for ids in ([*item.prompt_ids, *item.completion_ids], said[0])
    )
    assert diverted and not own & diverted and plain not in made[2].completion
    assert with_diverted_answers(source, made[2:]) == made[2:]  # it is no passage itself
