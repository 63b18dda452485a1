"""Teaching a scenario's texts before they are forgotten."""

from __future__ import annotations

import pytest

from tiny_models import byte_level_bpe, tiny_model
from unteach.data.rows import Row
from unteach.models import weights_hash
from unteach.prepare import teaching
from unteach.prepare.generations import LoadedModel
from unteach.prepare.teaching import teach
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario

ROWS = [Row(f"Who is number {i}?", f"The ferryman, {i} times.") for i in range(4)]
SETTINGS = {"max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 2}


@pytest.fixture
def source(tmp_path) -> LoadedModel:
    return LoadedModel.of(tiny_model(), byte_level_bpe(), tmp_path, Display(quiet=True))


def scenario(**settings) -> Scenario:
    teaching = {**SETTINGS, **settings}
    return Scenario("taught", ROWS, [], [], {}, teach=ROWS, teach_settings=teaching)


def test_a_taught_model_is_saved_and_loaded_again(source, tmp_path, monkeypatch):
    taught = teach(source, scenario(), tmp_path / "original", 0, {})
    assert weights_hash(taught) != source.hash
    monkeypatch.setattr(teaching, "UnlearningTrainer", lambda *_: pytest.fail("taught again"))
    again = teach(source, scenario(), tmp_path / "original", 0, {})
    assert weights_hash(again) == weights_hash(taught)
    with pytest.raises(pytest.fail.Exception, match="taught again"):
        teach(source, scenario(max_steps=1), tmp_path / "original", 0, {})


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"bf16": False}])
def test_teaching_has_the_precision_of_the_unlearning_and_nothing_else_of_it(
    source, tmp_path, monkeypatch, precision
):
    class Stop(Exception):
        pass

    def trainer(model, config, *_):
        configs.append(config)
        raise Stop

    configs: list = []
    monkeypatch.setattr(teaching, "UnlearningTrainer", trainer)
    with pytest.raises(Stop):
        settings = {**precision, "learning_rate": 9.0, "method": "npo"}
        teach(source, scenario(), tmp_path / "original", 3, settings)
    (config,) = configs
    assert (config.learning_rate, config.seed, config.method) == (1e-3, 3, "finetuning")
    assert bool(config.bf16) is precision.get("bf16", False)
