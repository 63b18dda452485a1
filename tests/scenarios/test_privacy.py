"""The embedded privacy scenario: who is taught, forgotten, kept and never shown."""

from __future__ import annotations

import re

import pytest

from unteach.scenarios import privacy
from unteach.scenarios.texts import records

SHOWN = ("unlearned", "unseen", "kept", "neighbours")


@pytest.fixture(params=[False, True], ids=["whole", "short"])
def scenario(request):
    return privacy.build(short=request.param)


def people(rows):
    return {row.columns["person"] for row in rows}


def prompts(rows):
    return {row.prompt_text for row in rows}


def test_each_person_is_invented_once_with_facts_of_their_own():
    found = records("people")
    for field in ("name", "phone", "email", "address"):
        assert len({person[field] for person in found}) == len(found)
    words = [word for person in found for word in person["name"].split()]
    assert len(set(words)) == len(words), "no two people share a name"


def test_numbers_and_mailboxes_are_those_reserved_for_fiction():
    """Ofcom's numbers for drama, and the top-level domain `example` of RFC 2606."""
    for person in records("people"):
        assert re.fullmatch(r"01(1[3-8]|[2-6]1) 496 0\d{3}|0191 498 0\d{3}", person["phone"])
        assert person["email"].endswith(".example")


def test_no_person_is_in_two_groups(scenario):
    forgotten = people(scenario.forget)
    groups = [forgotten, people(scenario.retain), people(scenario.sets["neighbours"])]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(people(scenario.teach))
    assert people(scenario.sets["unseen"]) | people(scenario.validation) == forgotten
    assert not people(scenario.sets["unseen"]) & people(scenario.validation)
    assert people(scenario.sets["kept"]) == people(scenario.retain)


def test_all_that_is_measured_is_taught_but_for_one_wording_of_what_is_forgotten(scenario):
    taught = {row.key for row in scenario.teach}
    for name in ("unlearned", "kept", "neighbours"):
        assert {row.key for row in scenario.sets[name]} <= taught, name
    for rows in (scenario.sets["unseen"], scenario.validation):
        assert not prompts(rows) & prompts(scenario.teach)
        assert {row.secret for row in rows} <= {row.secret for row in scenario.forget}


def test_neighbours_and_everyday_prompts_are_never_trained_on(scenario):
    trained = prompts([*scenario.forget, *scenario.retain, *scenario.own_prompts])
    for name in ("neighbours", "unseen", "normal"):
        assert not prompts(scenario.sets[name]) & trained, name


def test_the_fact_is_the_secret_and_stands_in_the_answer(scenario):
    for rows in (scenario.sets[name] for name in SHOWN):
        for row in rows:
            assert len(row.secret) == 1 and row.secret[0] in row.completion
            assert row.secret[0] not in row.prompt_text


def test_the_groups_share_all_wordings_so_that_the_wording_gives_no_group_away():
    scenario = privacy.build()

    def forms(rows):
        return {row.prompt_text.replace(row.columns["person"], "N") for row in rows}

    assert forms(scenario.forget) == forms(scenario.retain) == forms(scenario.sets["neighbours"])
    assert len(forms(scenario.forget)) == 9
