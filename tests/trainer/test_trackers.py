"""Trackers of `report_to` get every number of a training, and a missing one is one sentence."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tiny_trainers import CountingProbe, make_trainer, metrics
from unteach.baselines.stages import stage_config
from unteach.config import UnlearningConfig
from unteach.errors import UserError
from unteach.trainer import UnlearningTrainer
from unteach.trainer.callback import StepCallback

ABSENT = "dvclive"


class Probe(CountingProbe):
    """With the rate of neighbours, as a run's probe has it where there are some."""

    def __call__(self, model: Any) -> dict[str, float]:
        return {**super().__call__(model), "neighbours": 0.75}


def tracked(folder: Path, probe: Any) -> list[dict[str, float]]:
    """What a trainer with two steps and a probe after each hands to its trackers."""
    trainer = make_trainer(folder, probe=probe, probe_steps=1, target_rate=0.0)
    seen: list[dict[str, float]] = []
    trainer.steps.log = seen.append
    trainer.train()
    return seen


def test_trackers_get_each_step_and_each_probe_from_the_start_on(tmp_path):
    seen = tracked(tmp_path, Probe([(1.0, 1.0), (0.5, 0.75)]))
    written = [
        {"step": line["step"], **{f"probe_{name}": rate for name, rate in line["probe"].items()}}
        if "probe" in line
        else line
        for line in metrics(tmp_path)
    ]
    assert len(seen) == 5 and [record["step"] for record in seen] == [0, 1, 1, 2, 2]
    assert seen == written
    assert {"probe_forget_rate", "probe_utility", "probe_neighbours"} <= set(seen[0])
    terms = {"loss", "forget_loss", "mismatch_nll", "retain_kl", "retain_weight", "learning_rate"}
    assert terms <= set(seen[1])


def test_tensorboard_s_event_files_hold_every_curve(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="the extra [test] has it")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(
        tmp_path,
        probe=Probe([(1.0, 1.0), (0.5, 0.75)]),
        probe_steps=1,
        report_to="tensorboard",
    )
    trainer.train()
    curves = scalars(tmp_path / "events")
    assert curves["train/probe_forget_rate"] == {0: 1.0, 1: 0.5, 2: 0.5}
    assert curves["train/probe_neighbours"] == {0: 0.75, 1: 0.75, 2: 0.75}
    steps = [line for line in metrics(tmp_path) if "probe" not in line]
    for name in ("loss", "forget_loss", "mismatch_nll", "retain_kl", "retain_weight"):
        wanted = {line["step"]: pytest.approx(line[name], rel=1e-5) for line in steps}
        assert curves[f"train/{name}"] == wanted


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Curve to step to value of the event files in a folder. A record is its length (8 bytes), a
    checksum (4), the event, and a checksum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in folder.glob("events.out.tfevents.*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag][event.step] = value.simple_value
            at += 16 + size
    return found


@pytest.mark.parametrize(
    ("tracker", "sentence"),
    [(ABSENT, "requires dvclive to be installed"), ("tensorbord", "is not supported")],
)
def test_a_tracker_that_cannot_be_had_is_one_sentence_before_the_model(
    tmp_path, monkeypatch, tracker, sentence
):
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("unteach.models.load_tokenizer", load)
    config = UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, report_to=tracker)
    with pytest.raises(UserError, match=f"option 'report_to' is .*{tracker}.*{sentence}"):
        UnlearningTrainer("nobody/nothing", config, [])
    with pytest.raises(UserError, match=f"option 'report_to' is .*{sentence}"):
        stage_config("sft", {"report_to": tracker, "use_cpu": True}, tmp_path, 0)


def test_without_a_tracker_nothing_is_logged(tmp_path):
    trainer = make_trainer(tmp_path)
    assert isinstance(trainer.steps, StepCallback)
    trainer.train()
    assert [entry for entry in trainer.state.log_history if "retain_kl" in entry] == []
