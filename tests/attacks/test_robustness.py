"""The robustness figure by hand."""

from __future__ import annotations

from unteach.attacks.suite import NO_ATTACKS, NO_CONTROL, NOTHING_FORGOTTEN, robustness

PLAIN = {
    "original": [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    "unlearned": [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "retrained": [0.0] * 6,
}
"""Of six rows four are forgotten, one is still shown, one was never shown."""


def found(**rows):
    families = {"none": "none", "few_shot": "prompts", "role_play": "prompts", "merging": "weights"}
    about = {name: {"family": family} for name, family in families.items()}
    return {"rows": {"none": PLAIN, **rows}, "about": about}


def attacked(unlearned, retrained):
    return {"original": [1.0] * 6, "unlearned": unlearned, "retrained": retrained}


FEW_SHOT = attacked([1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0])
ROLE_PLAY = attacked([1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1])
MERGING = attacked([1, None, None, 0, 1, 1], [0, None, None, 0, 0, 0])


def test_the_figure_is_the_largest_excess_over_the_model_that_never_knew():
    """Few-shot brings back 3 of 4 rows, and gets the same 3 from the control: excess 0. Role play
    brings back 2 of 4 and gets none: excess 1/2. Merging measured two of the four: 1/2.
    """
    got = robustness(found(few_shot=FEW_SHOT, role_play=ROLE_PLAY, merging=MERGING), "retrained")
    assert (got["value"], got["n"], got["attack"], got["reason"]) == (0.5, 4, "role_play", "")
    assert (got["forgotten_rows"], got["attacked_rows"]) == (4, 6)
    assert (got["still_shown"], got["never_shown"]) == (1, 1)
    prompts = got["families"]["prompts"]
    assert prompts["attack"] == "role_play" and prompts["tried"] == 2
    assert (prompts["brought_back"]["value"], prompts["control"]["value"]) == (0.5, 0.0)
    assert prompts["excess"]["n"] == 4 and got["families"]["weights"]["excess"]["n"] == 2


def test_without_a_control_it_is_missing_and_the_shares_are_there():
    got = robustness(found(few_shot=FEW_SHOT, role_play=ROLE_PLAY), None)
    assert got["value"] is None and got["n"] == 0 and got["reason"] == NO_CONTROL
    assert got["families"]["prompts"]["attack"] == "few_shot"
    assert got["families"]["prompts"]["brought_back"]["value"] == 0.75
    assert got["families"]["prompts"]["excess"] is None and "attack" not in got


def test_it_is_missing_where_nothing_was_forgotten_or_nothing_was_tried():
    assert robustness(found(), "retrained")["reason"] == NO_ATTACKS
    kept = found(few_shot=FEW_SHOT)
    kept["rows"]["none"] = {**PLAIN, "unlearned": PLAIN["original"]}
    got = robustness(kept, "retrained")
    assert got["value"] is None and got["reason"] == NOTHING_FORGOTTEN and not got["families"]


def test_an_attack_that_is_not_made_on_the_unlearned_model_yet_does_not_count():
    got = robustness(found(few_shot={"original": [1.0] * 6}), "retrained")
    assert got["reason"] == NO_ATTACKS
