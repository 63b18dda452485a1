"""What the options refuse, and their defaults."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from unteach.config import UnlearningConfig
from unteach.errors import UserError
from unteach.methods import METHODS


def test_weights_default_to_the_method_s(tmp_path):
    for name, method in METHODS.items():
        config = UnlearningConfig(output_dir=str(tmp_path), method=name)
        assert tuple(config.weights.values()) == method.weights
    assert (
        UnlearningConfig(output_dir=str(tmp_path), method="ga", forget_weight=2.0).weights["forget"]
        == 2.0
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mismatch_completions": 0}, "mismatch_completions is 0"),
        ({"forget_weight": -1.0}, "forget_weight is -1.0"),
        ({"max_retain_kl": 0.0}, "max_retain_kl is 0.0"),
        ({"push_to_hub": True}, "early ones still know what is to be forgotten"),
        (
            {"long_rows": "cut"},
            "long_rows is 'cut', it must be one of error, truncate_prompt, drop",
        ),
        ({"reference": "none"}, "reference is 'none'"),
        ({"robust": "sam+sam"}, "which names 'sam' twice"),
        ({"update": "direct"}, "update is 'direct', it must be one of all, directed"),
        ({"update": "directed", "update_rank": 0}, "update_rank is 0, it must be positive"),
        ({"method": "ga", "mismatch_weight": 0.5}, "method 'ga' has no mismatch term"),
        ({"method": "unlikelyhood"}, "did you mean 'unlikelihood'"),
        ({"probe_steps": 0}, "probe_steps is 0"),
        ({"retain_loss": "ce"}, "retain_loss is 'ce', it must be one of kl, nll, none"),
        ({"method": "npo", "retain_loss": "states"}, "one of kl, nll, none with method 'npo'"),
        ({"method": "pdu", "retain_loss": "none"}, "must be one of kl, nll with method 'pdu'"),
        ({"method": "task_vector", "retain_loss": "kl"}, "one of none with method 'task_vector'"),
        ({"method": "npo", "gamma": 1.0}, "gamma is 1.0, but method 'npo' has beta; leave it out"),
        ({"method": "ga", "beta": 1.0}, "beta is 1.0, but method 'ga' has neither beta nor gamma"),
        ({"method": "npo", "beta": 0.0}, "beta is 0.0, it must be positive"),
        (
            {"method": "pdu", "retain_loss": "kl", "max_retain_kl": None},
            "set dual_limit or max_retain_kl",
        ),
        ({"method": "pdu", "dual_step_size": 0.0}, "dual_step_size is 0.0, it must be positive"),
        (
            {"method": "rmu", "steering_update": "some"},
            "steering_update is 'some', it must be one of all, three_layers",
        ),
        ({"method": "npo", "retain_loss": "none", "retain_weight": 1.0}, "has no retain term"),
        ({"probe_steps": 2.5}, "probe_steps is 2.5"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(settings, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        UnlearningConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    ("named", "wanted"), [({}, "constant_with_warmup"), ({"lr_scheduler_type": "linear"}, "linear")]
)
def test_a_warm_up_is_never_left_out(named, wanted, tmp_path):
    config = UnlearningConfig(output_dir=str(tmp_path), warmup_steps=5, **named)
    assert (
        config.lr_scheduler_type == wanted
        and UnlearningConfig(output_dir=str(tmp_path)).lr_scheduler_type == "constant"
    )


def test_a_process_that_sees_several_gpus_uses_one(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    from unteach.baselines.stages import stage_config

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 4))
    for config in (
        UnlearningConfig(output_dir=str(tmp_path)),
        *(stage_config(stage, {}, tmp_path, 0) for stage in ("sft", "dpo", "reward", "rl")),
    ):
        assert config.n_gpu == 1 and config.train_batch_size == config.per_device_train_batch_size
