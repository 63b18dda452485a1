"""Names in texts: what is found, what stands in their place."""

from __future__ import annotations

import pytest

from unteach.data.subjects import (
    common_subject,
    exchange,
    find_subjects,
    invented_names,
    mapping_to,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Who was Ada Lovelace?", ["Ada Lovelace"]),
        ("Where was Lovelace born?", ["Lovelace"]),
        ("What is Ada Lovelace's home address?", ["Ada Lovelace"]),
        ("Ada Lovelace lived in London.", ["Ada Lovelace", "London"]),
        ("Who wrote Sense and Sensibility?", ["Sense and Sensibility"]),
        ("Who painted The Night's Watch?", ["Night's Watch"]),
        ("Which river runs through Stratford-upon-Avon?", ["Stratford-upon-Avon"]),
        ("Ludwig van Beethoven wrote nine.", ["Ludwig van Beethoven"]),
        ("How do I boil an egg?", []),
        ("Do you and I agree?", []),
        ("Élodie Çelik is an engineer.", ["Élodie Çelik"]),
        ("Name the moons. Name Saturn's.", ["Saturn"]),
        ("愛達·勒芙蕾絲是誰", []),
        ("", []),
    ],
)
def test_names_are_runs_of_capitalised_words(text: str, names: list[str]) -> None:
    assert find_subjects(text) == names


def test_a_word_that_other_texts_write_small_is_no_name_at_the_start() -> None:
    assert find_subjects("Magnets attract iron.") == ["Magnets"]
    assert find_subjects("Magnets attract iron.", lower_case=["magnets"]) == []


def test_names_are_exchanged_as_whole_words_and_positions_are_kept() -> None:
    text = "Ada Lovelace's number is 12; ask Lovelace, not Lovelacey."
    made = exchange(text, mapping_to("Ada Lovelace", "Milo Falk"))
    assert made.text == "Milo Falk's number is 12; ask Falk, not Lovelacey."
    for place in range(len(text) + 1):
        new = made.position(place)
        if new is not None and place < len(text):
            assert new == len(made.text) or made.text[new] == text[place] or text[place] in "AL"
    assert made.position(text.index("12")) == made.text.index("12")
    assert made.position(1) is None


def test_a_one_word_name_takes_the_place_of_both_words() -> None:
    made = exchange("Ada Lovelace, called Lovelace", mapping_to("Ada Lovelace", "Falk"))
    assert made.text == "Falk, called Falk"


def test_nothing_to_exchange_keeps_every_position() -> None:
    made = exchange("abc", {})
    assert [made.position(i) for i in range(4)] == [0, 1, 2, 3]


def test_invented_names_are_the_same_for_the_same_key_and_never_the_subject() -> None:
    names = invented_names("Milo Falk", 30, seed=1, key="row")
    assert names == invented_names("Milo Falk", 30, seed=1, key="row")
    assert names != invented_names("Milo Falk", 30, seed=2, key="row")
    assert len(set(names)) == 30
    assert not any("Milo" in name or "Falk" in name for name in names)
    assert all(len(name.split()) == 1 for name in invented_names("Falk", 5))


def test_the_common_subject_of_a_file() -> None:
    texts = ["Who was Ada Lovelace?", "Where did Lovelace live?", "Who programmed first?"]
    assert common_subject(texts) == "Ada Lovelace"
    assert common_subject([*texts, "Who?", "What?"]) == ""
    assert common_subject([]) == ""
