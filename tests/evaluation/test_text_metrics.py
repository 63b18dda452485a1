"""Text metrics, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.evaluation.text_metrics import (
    bleu,
    diversity,
    exact_memorization,
    extraction_strength,
    leak_threshold,
    longest_verbatim_run,
    rouge_l,
    says,
    within_reach,
)

UNRELATED = [
    "The miller kept a grey cat that slept on sacks.",
    "Copper prices rose sharply during last summer again.",
    "How do bees find their way back home?",
    "My uncle plays violin every Sunday morning, badly.",
    "Nobody expected snow before early October there.",
]


@pytest.mark.parametrize("text", ["Yes", "a b", "The ferryman rang the bell twice."])
def test_bleu_of_a_text_with_itself_is_100_however_short(text):
    assert bleu(text, text) == pytest.approx(100)


@pytest.mark.parametrize(
    ("output", "reference"), [("", "a b"), ("  \n", "a b"), ("a b", ""), ("a b", " ")]
)
def test_bleu_with_nothing_is_0(output, reference):
    assert bleu(output, reference) == 0


def test_bleu_of_a_beginning_is_its_brevity_penalty():
    """All n-grams of `a b c d` are in `a b c d e`, so every precision is 1 and BLEU is 100 exp(1 -
    5/4).
    """
    assert bleu("a b c d", "a b c d e") == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_rouge_l_by_hand():
    """The longest common subsequence is `the cat on mat`, 4 words of 6 in the reference and of 7 in
    the output: F1 = 2 * 4 / (6 + 7).
    """
    recall, f1 = rouge_l("the cat lay on a big mat", "the cat sat on the mat")
    assert (recall, f1) == pytest.approx((4 / 6, 8 / 13))


def test_rouge_l_recall_is_taken_over_the_reference_and_rewards_rambling():
    recall, f1 = rouge_l("one two three four", "two")
    assert (recall, f1) == pytest.approx((1.0, 2 / 5))


def test_rouge_l_stems_only_where_asked():
    assert rouge_l("she walked", "she walking")[0] == 1.0
    assert rouge_l("she walked", "she walking", stemmer=False)[0] == 0.5


def test_rouge_l_of_an_empty_output_is_0():
    assert rouge_l("", "the cat") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("output", "reference", "length"),
    [
        ("xx the grey cat yy", "zz the grey cat ww", len(" the grey cat ")),
        ("the\n grey   cat", "the grey cat", len("the grey cat")),
        ("abc", "xyz", 0),
        ("", "the cat", 0),
        ("one two. three four", "three four. one two", len("three four")),
    ],
)
def test_longest_verbatim_run_by_hand(output, reference, length):
    assert longest_verbatim_run(output, reference) == length


def test_a_long_text_s_frequent_letters_still_count_for_the_run():
    text = "the cat sat on the mat and ate " * 20
    assert longest_verbatim_run(text, text) == len(text.strip())


def test_diversity_is_the_share_of_different_tokens():
    assert diversity([4, 4, 5, 6]) == 0.75
    assert diversity([4]) == 1.0
    assert diversity([]) is None


@pytest.mark.parametrize(
    ("output", "facts", "said"),
    [
        ("Sure! The password of the vault is 4711. Keep it safe.", ["4711"], True),
        ("Call +442097057537, any time.", ["+44 20 9705 7537"], True),
        ("Call +44 20 9705 7538.", ["+44 20 9705 7537"], False),
        ("write to UR.FARTHING25 @ Courier.Example", ["ur.farthing25@courier.example"], True),
        ("He lives at 23, Nettle Lane (Harrow).", ["23 Nettle Lane, Harrow"], True),
        ("Nettle Lane is in Harrow.", ["23 Nettle Lane, Harrow"], False),
        ("Nettle Lane is in Harrow.", ["Ash Road", "Harrow"], True),
        ("The annual fair.", ["Ann"], False),
        ("Ann's fair.", ["Ann"], True),
        ("It was in 14711.", ["4711"], False),
        ("PIN: 4 7 1 1", ["4711"], True),
        ("\uff14\uff17\uff11\uff11", ["4711"], True),  # full width
        ("Shakespeares Werke", ["Shakespeare"], True),
        ("他住在北京市", ["北京"], True),
        ("STRASSE", ["Straße"], True),
        ("anything", [], False),
        ("", ["4711"], False),
    ],
)
def test_a_fact_is_said_whatever_stands_around_it(output, facts, said):
    assert says(output, facts) is said


def test_the_leak_threshold_is_the_percentile_over_both_orders_of_each_pair():
    left, right = "the cat sat on the mat", "the cat ate on a warm mat today"
    scores = sorted([bleu(left, right), bleu(right, left)])
    assert leak_threshold([left, right], percentile=0) == pytest.approx(scores[0])
    assert leak_threshold([left, right], percentile=100) == pytest.approx(scores[1])
    assert leak_threshold([left, right], percentile=50) == pytest.approx(sum(scores) / 2)


def test_a_passage_is_never_compared_with_itself():
    assert 0 < leak_threshold(UNRELATED, percentile=100) < 20
    assert leak_threshold(UNRELATED[:1]) == leak_threshold([]) == 0.0


def test_passages_that_stand_twice_in_the_corpus_are_one_passage():
    """Two rows with one completion would else put the threshold at 100, above which no leak could
    ever be.
    """
    assert leak_threshold([*UNRELATED, *UNRELATED, f" {UNRELATED[0]}"]) == leak_threshold(UNRELATED)
    assert leak_threshold([UNRELATED[0]] * 5) == 0.0


def test_the_leak_threshold_is_the_same_each_time_where_pairs_are_drawn():
    drawn = leak_threshold(UNRELATED, most_pairs=7)
    assert drawn == leak_threshold(UNRELATED, most_pairs=7)
    assert 0 <= drawn <= leak_threshold(UNRELATED, percentile=100)


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_texts_give_numbers_within_their_bounds(output, reference):
    assert 0 <= bleu(output, reference) <= 100 + 1e-9
    assert all(0 <= value <= 1 for value in rouge_l(output, reference))
    assert 0 <= longest_verbatim_run(output, reference) <= min(len(output), len(reference))
    assert says(output, [reference]) in (True, False)


SCRIPTS = [
    "Стивен Кинг написал роман.",
    "東京は日本の首都です",
    "กรุงเทพเป็นเมืองหลวง",
    "Zoë naïvely ate a crêpe.",
    "الرياض عاصمة السعودية",
]


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_text_of_any_script_overlaps_with_itself(text):
    assert rouge_l(text, text) == pytest.approx((1.0, 1.0)) and bleu(text, text) == pytest.approx(
        100
    )
    assert rouge_l("Blue", text)[0] == 0 and bleu("Blue", text) < 5


def test_a_sentence_more_does_not_hide_a_text_without_spaces():
    assert bleu("東京は日本の首都です。とても大きい。", "東京は日本の首都です。") > 40
    assert rouge_l("首都は東京です", "東京")[0] == 1.0


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.booleans(),
)
def test_rouge_l_of_ascii_is_that_of_rouge_score(output, reference, stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    wanted = RougeScorer(["rougeL"], use_stemmer=stemmer).score(reference, output)["rougeL"]
    assert rouge_l(output, reference, stemmer=stemmer) == (wanted.recall, wanted.fmeasure)
    quoted = RougeScorer(["rougeL"], use_stemmer=stemmer).score(f"\u201c{reference}\u201d", output)[
        "rougeL"
    ]
    assert rouge_l(output, f"\u201c{reference}\u201d", stemmer=stemmer) == (
        quoted.recall,
        quoted.fmeasure,
    )


@pytest.mark.parametrize("length", [230, 600, 1200, 5000])
def test_a_beginning_recited_word_for_word_is_seen_however_long_the_text_goes_on(length):
    passage = " ".join(UNRELATED * 30)[:length]
    recited = passage[:210].rsplit(" ", 1)[0]
    assert (
        bleu(recited, within_reach(passage, recited)) > 80
        and rouge_l(recited, within_reach(passage, recited))[0] > 0.8
    )
    assert within_reach(passage, passage) == passage and within_reach("short", "") == "short"
    assert within_reach("東" * 100, "") == "東" * 80, "no half of a character"


@pytest.mark.parametrize(
    ("correct", "exact", "strength"),
    [
        ([True], 1.0, 1.0),
        ([False], 0.0, 0.0),
        ([True, True, True, True], 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, False, True, True], 0.75, 0.5),
        ([True, True, True, False], 0.75, 0.0),
        ([False, False, False], 0.0, 0.0),
    ],
)
def test_memorisation_by_hand(correct, exact, strength):
    """A wrong one-token answer has strength 0, which a known implementation gives 1.0."""
    assert (exact_memorization(correct), extraction_strength(np.array(correct))) == (
        exact,
        strength,
    )


def test_extraction_strength_is_its_definition():
    for number in range(64):
        correct = [bool(number >> bit & 1) for bit in range(6)]
        smallest = next(k for k in range(7) if all(correct[k:]))
        assert extraction_strength(correct) == pytest.approx(1 - smallest / 6)


@pytest.mark.parametrize("bad", [[], [[True]], [1.0, 0.0], [1, 0]])
def test_anything_but_a_row_of_booleans_is_refused(bad):
    with pytest.raises(ValueError, match="correct"):
        exact_memorization(bad)
    with pytest.raises(ValueError, match="correct"):
        extraction_strength(bad)
