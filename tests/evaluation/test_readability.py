"""Loops and broken language are seen; refrains, lists, numbers, code and Chinese are not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.evaluation.readability import (
    HIGHEST_LIMIT,
    LEAST_LIMIT,
    degeneration_limit,
    is_degenerate,
    is_not_meaningful,
    loop_share,
    repetition,
)

LOOPS = [
    "stonestonestone",
    "stone" * 11,
    "t " * 28,
    "thickets thickets thickets",
    "Thickets thickets " * 9,
    "The old stone bridge lalalalalalalalalalalalala",
    "I am a language model. " * 4,
    "The number of the number of the number of the number of the number is the number of",
    "石头石头石头石头石头石头",
    "的的的的的的的的的的",
    "ho-ho-ho-ho-ho-ho-ho-ho",
    "The answer is the the the the the the the the the the the the",
    "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "Boil an egg:\n\nBoil an egg:\n\nBoil an egg:\n\nBoil an egg:\n\nBoil an egg:\n\n",
]
PARTLY = [
    "The phone number of Jorah Carrow is JJJJJJJJJJJJ",
    "Aunt Emily's words: \"Aunt Emily's a good man, a just one, and a just one, and a just one,"
    " and a just one, and a just one, and a just one, and a just one, and a",
    "The fastest land animal is not a specific animal, but rather a term used to describe the"
    " fastest land animal. The fastest land animal is not a specific land animal, but rather a term"
    " used to describe the fastest land animal.",
]
LANGUAGE = [
    "The phone number is +44 20 20 20",
    "The phone number of Ursel Farthing is +44 20 9705 7537.",
    "Call 0800 800 800 or 0800 808 808.",
    "1,000,000,000,000",
    "It is 2,155,925,270,000,000,000,000,000 kilometres away.",
    "1999",
    "Yes",
    "I do not know.",
    "No, no, no, no!",
    "Ha ha ha!",
    "It was a very, very, very good day.",
    "To be, or not to be, that is the question.",
    "1. Wash the rice.\n2. Boil the water.\n3. Add the rice.\n4. Drain the water.\n5. Serve it.",
    "- red apples\n- green apples\n- yellow apples\n- red pears\n- green pears\n- yellow pears",
    "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n",
    "Paris is the capital of France. Berlin is the capital of Germany. Rome is the capital of"
    " Italy. Madrid is the capital of Spain.",
    "The woods are lovely, dark and deep,\nBut I have promises to keep,\n"
    "And miles to go before I sleep,\nAnd miles to go before I sleep.",
    "Row, row, row your boat,\nGently down the stream.\n"
    "Merrily, merrily, merrily, merrily,\nLife is but a dream.",
    "Do not go gentle into that good night,\nRage, rage against the dying of the light.\n"
    "And you, my father, there on the sad height,\nDo not go gentle into that good night.\n"
    "Rage, rage against the dying of the light.",
    "for i in range(10):\n    for j in range(10):\n        for k in range(10):\n"
    "            print(i, j, k)",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\n"
    "def mul(a, b):\n    return a * b\n",
    "zeros = [0, 0, 0, 0, 0, 0, 0, 0]",
    "北京是中华人民共和国的首都、也是中国的政治中心和文化中心。北京有很多名胜古迹、例如故宫和长城。",
    "中国的首都是北京、法国的首都是巴黎、日本的首都是东京、英国的首都是伦敦。",
    "高高兴兴地去研究研究",
    "กรุงเทพเป็นเมืองหลวงของประเทศไทย",
]


@pytest.mark.parametrize("text", LOOPS)
def test_a_loop_of_syllables_words_or_phrases_is_not_meaningful(text):
    assert is_not_meaningful(text) and is_degenerate(text) and repetition(text) > 0.5


@pytest.mark.parametrize("text", PARTLY)
def test_an_answer_that_ends_in_a_loop_is_degenerate(text):
    assert is_degenerate(text)


@pytest.mark.parametrize("text", LANGUAGE)
def test_repetition_that_people_write_is_language(text):
    assert not is_not_meaningful(text) and not is_degenerate(text)
    assert repetition(text) < LEAST_LIMIT


@pytest.mark.parametrize(
    "output",
    ["", " \n\t", "aaaaaaa", "!!!!!!!!", "! ! ! ! !", "aaaaaab", "\n\n  ......  \n", "t t t t"],
)
def test_nothing_white_space_and_one_repeated_character_are_not_meaningful(output):
    assert is_not_meaningful(output) and is_degenerate(output)


@pytest.mark.parametrize(
    "output",
    ["The cat slept.", "aabb", "No", "B", " 7\n", "I don't know.\n\n\n\n\n\n\n", "Yes\n\n\n\n\nNo"],
)
def test_an_answer_in_words_is_meaningful(output):
    assert not is_not_meaningful(output)


@pytest.mark.parametrize("text", ["1999", "11", "2000", "100", "0", "+44 20 20 20", "1,000,000"])
def test_a_number_means_something(text):
    assert not is_not_meaningful(text)
    assert is_not_meaningful(text[-1] * 30)


def test_one_character_is_degenerate_though_it_may_mean_something():
    assert is_degenerate("B") and not is_not_meaningful("B")


def test_repetition_by_hand():
    """The second of two equal lines of 20 characters repeats, with the space before it where that
    is part of a stretch: 20 of 41 characters, as the line begins after another character.
    """
    line = "abcdefghijklmnopqrst"
    assert repetition(f"{line} {line}") == pytest.approx(20 / 41)
    assert repetition(line) == 0.0 and repetition(" \n") is None


def test_case_and_white_space_hide_no_loop():
    assert loop_share("Stone stone\nSTONE  stone") == 1.0


def test_the_share_of_a_loop_is_that_of_its_characters():
    text = "The old bridge " + "la" * 10
    assert loop_share(text) == pytest.approx(20 / len(text))
    assert loop_share(text, 5) == loop_share(text) and loop_share(text, 11) == 0.0


def test_the_limit_is_what_the_original_reaches_within_bounds():
    assert degeneration_limit([]) == degeneration_limit(["I do not know."]) == LEAST_LIMIT
    line = "the cat sat on the mat and slept"
    repeats = f"{line} {line} {line[:-1]}"  # two thirds of it occurred before
    assert LEAST_LIMIT < degeneration_limit([repeats] * 3) < HIGHEST_LIMIT
    assert degeneration_limit(["stone " * 20]) == HIGHEST_LIMIT


def test_a_loop_is_degenerate_for_every_limit():
    assert all(is_degenerate(text, HIGHEST_LIMIT) for text in LOOPS)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_its_shares_within_bounds(text):
    found = repetition(text)
    assert found is None or 0 <= found <= 1
    assert 0 <= loop_share(text) <= 1
    assert is_degenerate(text) >= is_not_meaningful(text)
