"""Watched stages: the same stop rule as unlearning's, the best probe's weights, probes timed apart,
kills at awkward moments.
"""

from __future__ import annotations

import time

import pytest
import torch
from tests.baselines.test_alignment import ROWS, settings

from tiny_models import tiny_model
from unteach.baselines import alignment
from unteach.baselines.alignment import Watch, align
from unteach.baselines.run import trained_reward
from unteach.baselines.stages import pair_error, read_tokens, scorer
from unteach.data.chat import ChatSettings

RULE = {"target_rate": 0.0, "hold": 99, "min_utility": 0.0, "patience": 2}


class Scripted:
    """A probe whose validation rates are given, and that remembers the weights it saw."""

    def __init__(self, *rates, utility=1.0):
        self.rates, self.seen, self.utility = list(rates), [], utility

    def __call__(self, model):
        assert not model.training
        rate = self.rates[min(len(self.seen), len(self.rates) - 1)]
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"forget_rate": rate, "validation_rate": rate, "utility": self.utility}


def run(pipeline, tokenizer, folder, probe, *, on_stage=None, every=1, stages=None, **more):
    chosen = settings(pipeline, **({"max_steps": 6, "save_steps": 2} | more))
    watch = Watch(probe, ROWS[:2], every, RULE)
    return align(
        pipeline,
        tiny_model(vocab_size=len(tokenizer)),
        tokenizer,
        ROWS,
        folder,
        chosen,
        on_stage=on_stage,
        watch=watch,
        sft_folder=stages,
    )


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_stage_ends_when_its_rate_has_stopped_falling_and_keeps_the_best_probe(
    tmp_path, chat_tokenizer
):
    probe = Scripted(1.0, 0.5, 0.75, 0.75, 0.0)
    result = run("sft", chat_tokenizer, tmp_path, probe)
    rule = result.rules["sft"]
    assert [round(line["step"]) for line in rule["history"]] == [0, 1, 2, 3] and rule[
        "best_step"
    ] == 1
    assert rule["reason"] == "validation rate not under 50% in 2 probes in a row"
    assert equal(probe.seen[1], result.model.state_dict()) and not equal(
        probe.seen[3], result.model.state_dict()
    )
    assert not (tmp_path / "sft-checkpoints").exists()


def test_the_interval_is_a_share_of_the_planned_steps(tmp_path, chat_tokenizer):
    result = run("sft", chat_tokenizer, tmp_path, Scripted(1.0, 0.8, 0.6), every=0.5)
    assert [line["step"] for line in result.rules["sft"]["history"]] == [0, 3, 6] and result.rules[
        "sft"
    ]["reason"] == ""


def test_the_time_of_probes_is_not_that_of_training(tmp_path, chat_tokenizer):
    slow = Scripted(1.0, 0.9, 0.8, 0.7)

    def probe(model):
        time.sleep(0.5)
        return slow(model)

    (cost,) = run("sft", chat_tokenizer, tmp_path, probe, max_steps=3).costs
    assert cost.probe_seconds >= 2.0 > cost.seconds


def rates_of_weights(model):
    """Depend on the weights alone, so that a resumed run sees what the whole one saw."""
    total = float(sum(value.double().sum() for value in model.state_dict().values()))
    return {"forget_rate": 0.5 + 0.01 * (total % 1), "utility": 1.0}


FEW = {"max_steps": 4, "every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, chat_tokenizer):
    """RLHF in one go."""
    return run("rlhf", chat_tokenizer, tmp_path_factory.mktemp("whole"), rates_of_weights, **FEW)


@pytest.mark.parametrize("stage", ["sft", "reward", "rl"])
def test_rlhf_killed_in_any_stage_ends_with_the_same_weights_and_price(
    stage, whole, tmp_path, chat_tokenizer
):
    """Two steps are an epoch here, so that the kill is in the second epoch, the checkpoint at the
    end of the first.
    """

    def die(name, at, steps):
        if (name, at) == (stage, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("rlhf", chat_tokenizer, tmp_path, rates_of_weights, on_stage=die, **FEW)
    assert not (tmp_path / stage).exists()
    again = run("rlhf", chat_tokenizer, tmp_path, rates_of_weights, **FEW)
    assert equal(whole.model.state_dict(), again.model.state_dict())
    counts = [
        [
            (c.stage, c.data_tokens, c.generated_tokens, c.training_tokens, c.forward_tokens)
            for c in r.costs
        ]
        for r in (whole, again)
    ]
    assert counts[0] == counts[1]
    assert whole.rules == again.rules


@pytest.mark.parametrize("rates", [(1.0, 0.5, 0.4), (1.0, 0.5, 0.5, 0.5)])
def test_killed_after_its_last_step_a_stage_takes_no_other_one(
    rates, tmp_path, chat_tokenizer, monkeypatch
):
    """The last step is the fourth planned one, or that at which the rule says stop; step 3 is saved
    as it stops there.
    """
    saves = {"max_steps": 4, "save_steps": 1}
    whole = run("sft", chat_tokenizer, tmp_path / "a", Scripted(*rates), **saves)
    with monkeypatch.context() as patch:
        right = alignment.mark_complete
        patch.setattr(
            alignment, "mark_complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run("sft", chat_tokenizer, tmp_path / "b", Scripted(*rates), **saves)
        assert right is not alignment.mark_complete
    seen = []
    again = run(
        "sft",
        chat_tokenizer,
        tmp_path / "b",
        Scripted(0.0),
        on_stage=lambda *at: seen.append(at),
        **saves,
    )
    assert seen == [] and again.rules == whole.rules
    assert equal(whole.model.state_dict(), again.model.state_dict())
    assert again.costs[0].training_tokens == whole.costs[0].training_tokens


def test_pipelines_of_the_same_sft_settings_share_that_stage(tmp_path, chat_tokenizer):
    run("sft", chat_tokenizer, tmp_path / "a", Scripted(1.0), stages=tmp_path / "shared")
    seen = []
    result = run(
        "dpo",
        chat_tokenizer,
        tmp_path / "b",
        Scripted(1.0),
        stages=tmp_path / "shared",
        on_stage=lambda *at: seen.append(at[0]),
    )
    assert set(seen) == {"dpo"} and [cost.stage for cost in result.costs] == ["sft", "dpo"]
    assert result.costs[0].data_tokens > 0


def test_the_base_model_holds_no_memory_after_the_first_stage(tmp_path, chat_tokenizer):
    model = tiny_model(vocab_size=len(chat_tokenizer))
    result = align("sft", model, chat_tokenizer, ROWS, tmp_path, settings("sft"))
    assert (
        sum(parameter.numel() for parameter in model.parameters())
        == 0
        < sum(p.numel() for p in result.model.parameters())
    )


def test_the_reward_model_is_watched_by_its_wrong_pairs_and_says_so(tmp_path, chat_tokenizer):
    result = run("rlhf", chat_tokenizer, tmp_path, Scripted(1.0, 0.5), max_steps=2)
    history = result.rules["reward"]["history"]
    assert all(
        line["forget_rate"] in (0.0, 0.5, 1.0) and "validation_rate" not in line for line in history
    )
    reward = trained_reward(result.folders["reward"], ChatSettings())
    kept = next(line for line in history if line["step"] == result.rules["reward"]["best_step"])
    assert f"{round(2 * (1 - kept['forget_rate']))} of 2 held-out pairs" in reward.name
    assert len(reward.rewards(["Who?", "What?"], ["A miller.", "Bread."])) == 2


@pytest.mark.parametrize("kind", ["chat_tokenizer", "tokenizer"])
def test_a_wrong_pair_is_one_whose_good_answer_is_not_above_the_bad_one(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    model = scorer(tmp_path, tokenizer, seed=0).eval()
    swapped = [
        type(row)(row.prompt, row.right, row.kind, row.source, row.completion) for row in ROWS
    ]
    assert pair_error(model, tokenizer, ROWS) + pair_error(model, tokenizer, swapped) == 1.0
    with torch.no_grad():
        model.score.weight.zero_()
    assert pair_error(model, tokenizer, ROWS) == 1.0  # an even score is no better answer


def test_tokens_that_are_only_read_by_hand():
    """RL of 100 tokens, 40 of them written: 60 of prompts, and 100 by the policy, the reward model
    and the reference; twice trained on.
    """

    class Config:
        beta, num_iterations = 0.1, 2

    class NoPenalty(Config):
        beta = 0.0

    assert read_tokens("rl", Config, 100, 40) == (200, 60 + 300)
    assert read_tokens("rl", NoPenalty, 100, 40) == (200, 60 + 200)
    assert read_tokens("dpo", Config, 100, 0) == (100, 100)
    assert read_tokens("sft", Config, 100, 0) == read_tokens("reward", Config, 100, 0) == (100, 0)
