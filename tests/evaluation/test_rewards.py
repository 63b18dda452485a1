"""Reward scorers: trained on good and bad answers, or a reward model."""

from __future__ import annotations

import pytest
from test_judges import bag_of_words, classifier  # noqa: F401

from unteach.data.rows import LabelledAnswer
from unteach.errors import UserError
from unteach.evaluation import rewards
from unteach.evaluation.rewards import ModelReward, TrainedReward, load_reward

TOPICS = (
    "tea",
    "rain",
    "bread",
    "moons",
    "iron",
    "wool",
    "salt",
    "bees",
    "glass",
    "coal",
    "maps",
    "ink",
)


@pytest.fixture
def labelled(monkeypatch):
    monkeypatch.setattr(rewards, "embeddings", bag_of_words)
    good = [
        LabelledAnswer(
            f"What about {t}?",
            f"It is known that {t} {t} has been of use to many people for a long time",
            False,
        )
        for t in TOPICS
    ]
    return [
        *good,
        *[LabelledAnswer(f"What about {t}?", f"Nobody cares you fool {t}", True) for t in TOPICS],
    ]


def test_a_good_answer_scores_above_a_broken_a_strange_and_a_rude_one(labelled):
    reward = load_reward("trained", labelled)
    assert (
        isinstance(reward, TrainedReward)
        and reward.held_out_n == 24 + 36
        and 0.5 < reward.held_out_accuracy <= 1
    )
    good, broken, rude = reward.rewards(
        ["What about tea?"] * 3, [labelled[0].answer, "It is known", "Nobody cares you fool tea"]
    )
    assert good > max(broken, rude) and reward.rewards([], []) == []


def test_it_is_the_same_each_time(labelled):
    assert TrainedReward(labelled).rewards(["a b"], ["c d"]) == TrainedReward(labelled).rewards(
        ["a b"], ["c d"]
    )


def test_too_few_answers_are_counted(labelled):
    with pytest.raises(UserError, match="there are 0 bad and 0 good"):
        load_reward("trained", [])


def test_a_reward_model_has_one_output(classifier):  # noqa: F811
    reward = load_reward(classifier(["score"]), [])
    assert isinstance(reward, ModelReward) and len(reward.rewards(["a", "b"], ["c", "d e"])) == 2
    with pytest.raises(UserError, match="has 2 outputs, a reward model has one"):
        load_reward(classifier(["bad", "good"]), [])
