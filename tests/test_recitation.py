"""Passages that a model recites on its own, with a stand-in that knows a book by heart."""

from __future__ import annotations

import math

import pytest

from unteach import recitation
from unteach.data.rows import Row
from unteach.recitation import recited_passages
from unteach.scenarios.copyright import paragraphs, passage_rows
from unteach.scenarios.texts import embedded_text

PARAGRAPHS = paragraphs(embedded_text("book"))[:4]
PASSAGES = passage_rows("\n\n".join(PARAGRAPHS), "book")


class Reciter:
    """Goes on with `text` after whatever part of it stands at the end of the prompt; `surprise` is the NLL of a passage's opening word."""

    def __init__(self, monkeypatch, tokenizer, text):
        self.tokenizer, self.text, self.surprise = tokenizer, text, {}
        self.openings = []
        monkeypatch.setattr(recitation, "generate_ids", self.generate_ids)
        monkeypatch.setattr(recitation, "answer", self.answer)
        monkeypatch.setattr(recitation, "mean_nll", self.mean_nll)

    def following(self, known):
        place = self.text.find(known.strip())
        return "" if place < 0 else self.text[place + len(known.strip()) :]

    def generate_ids(self, model, prompts, *, max_new_tokens, pad_id, end_ids):
        texts = [self.following(self.tokenizer.decode(prompt, skip_special_tokens=True)) for prompt in prompts]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"][:max_new_tokens] for text in texts]

    def answer(self, model, tokenizer, rows, *, max_new_tokens):
        self.openings += [row.prompt for row in rows]
        return [self.following(row.prompt)[:330] for row in rows]

    def mean_nll(self, model, prompts, completions):
        words = [self.tokenizer.decode(prompt, skip_special_tokens=True).split()[0] for prompt in prompts]
        return [self.surprise.get(word, 0.01) for word in words]


@pytest.fixture
def reciter(monkeypatch, tokenizer):
    return Reciter(monkeypatch, tokenizer, "\n\n".join(PARAGRAPHS))


def recited(tokenizer, forget, retain=(), **options):
    return recited_passages(None, tokenizer, forget, list(retain), max_new_tokens=300, **options)


def openings(rows):
    return [row.prompt_text for row in rows]


def test_the_passage_behind_a_forget_row_is_found_as_it_stands_in_the_book(reciter, tokenizer):
    (found,) = recited(tokenizer, PASSAGES[:1], rounds=1)
    assert (found.prompt, found.completion, found.kind) == (PASSAGES[1].prompt, PASSAGES[1].completion, "text")
    assert found.source == "recited after book, passage 1"


def test_what_was_found_is_asked_to_go_on_in_its_turn(reciter, tokenizer):
    assert openings(recited(tokenizer, PASSAGES[:1], rounds=3)) == openings(PASSAGES[1:4])


def test_a_passage_of_the_forget_set_is_not_found_again(reciter, tokenizer):
    assert openings(recited(tokenizer, [PASSAGES[0], PASSAGES[1]], rounds=1)) == [PASSAGES[2].prompt]
    assert recited(tokenizer, PASSAGES, rounds=3) == []


def test_a_passage_inside_a_forget_row_of_running_text_is_not_found_again(monkeypatch, tokenizer):
    """The model goes round in a circle: after the text it begins the text again."""
    Reciter(monkeypatch, tokenizer, "\n\n".join([PARAGRAPHS[0], PARAGRAPHS[1], PARAGRAPHS[0]]))
    assert recited(tokenizer, [Row("", "\n\n".join(PARAGRAPHS[:2]), "text")], rounds=1) == []


def test_a_passage_that_shares_a_run_with_the_retain_set_is_left_out(reciter, tokenizer):
    kept = Row("They say", f" this: {PASSAGES[1].completion[40:140]}", "text")
    assert recited(tokenizer, PASSAGES[:1], [kept], rounds=1) == []
    assert len(recited(tokenizer, PASSAGES[:1], [kept], rounds=1, most_shared_chars=120)) == 1


def test_only_what_the_model_is_sure_of_counts_as_recited(reciter, tokenizer):
    word = PASSAGES[1].prompt.split()[0]
    reciter.surprise[word] = -math.log(0.69)
    assert recited(tokenizer, PASSAGES[:1], rounds=1) == []
    reciter.surprise[word] = -math.log(0.71)
    assert len(recited(tokenizer, PASSAGES[:1], rounds=1)) == 1
    assert recited(tokenizer, PASSAGES[:1], rounds=1, least_probability=0.8) == []


def test_a_passage_that_is_not_sure_is_not_gone_on_from(reciter, tokenizer):
    reciter.surprise[PASSAGES[1].prompt.split()[0]] = 3.0
    assert recited(tokenizer, PASSAGES[:1], rounds=3) == []


def test_questions_are_not_gone_on_from(reciter, tokenizer):
    assert recited(tokenizer, [Row("Who rang?", "The ferryman.")]) == []
    assert reciter.openings == []


def test_an_opening_is_a_passage_s_first_words_and_is_asked_once(reciter, tokenizer):
    recited(tokenizer, PASSAGES[:1] * 2, rounds=3)
    assert len(reciter.openings) == len(set(reciter.openings))
    assert " ".join(PARAGRAPHS[1].split()[: recitation.OPENING_WORDS]) in reciter.openings


def test_progress_counts_rows_gone_on_from(reciter, tokenizer):
    seen = []
    recited(tokenizer, PASSAGES[:1], rounds=2, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 3)]
