"""The self-check finds packed rows that do not hold, on the rows where that shows."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from tiny_models import WINDOWS, byte_level_bpe, tiny_model
from unteach import UnlearningConfig, UnlearningTrainer, models
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.models import inputs

SHORT = [Row(f"Who is number {i}?", "He.") for i in range(6)]
LONG = [
    Row(f"Who was number {i} of those sailors at the harbour?", "Nobody has asked. " * 3 + str(i))
    for i in range(4)
]
KEPT = [Row(row.prompt.replace("Who", "Where"), row.completion + " Or she.") for row in LONG]
WINDOW = 24
"""Longer than the first rows, shorter than the last."""


def make_trainer(folder: Any, model: Any = None, **settings: Any) -> UnlearningTrainer:
    settings = {"method": "unlikelihood_mismatch", "max_steps": 4, "learning_rate": 0.0} | settings
    config = UnlearningConfig(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=3, **settings
    )
    return UnlearningTrainer(model or tiny_model(), config, [*SHORT, *LONG], KEPT, byte_level_bpe())


@pytest.mark.filterwarnings("error:packed rows")
@pytest.mark.parametrize("family", WINDOWS)
def test_packed_rows_longer_than_a_sliding_window_train_as_plain_ones(family, tmp_path):
    def model() -> Any:
        return tiny_model(family, sliding_window=WINDOW, **WINDOWS[family])

    for name in ("packed", "plain"):
        make_trainer(tmp_path / name, model(), packing=name == "packed").train()
    packed, plain = (
        map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        for name in ("packed", "plain")
    )
    for ours, wanted in zip(packed, plain, strict=True):
        for name in ("forget_nll", "retain_nll", "mismatch_nll", "retain_kl"):
            if name in wanted:
                assert ours[name] == pytest.approx(wanted[name], abs=2e-4), name


def test_a_packing_that_fails_on_long_rows_alone_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_attention_limits", lambda *_: {"full_attention": {}})
    model = tiny_model("mistral", sliding_window=WINDOW)
    with pytest.warns(UserWarning, match="packed rows give other log-probabilities"):
        make_trainer(tmp_path, model).train()


def test_an_out_of_memory_error_is_not_taken_for_rows_that_differ(tmp_path, monkeypatch):
    right = models.predicting_states

    def full(model: Any, batch: Any, *, packed: bool) -> torch.Tensor:
        if packed:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(model, batch, packed=packed)

    monkeypatch.setattr(models, "predicting_states", full)
    trainer = make_trainer(tmp_path)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.collator.packed is True


def test_weights_that_are_no_numbers_are_named_as_such(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"its weights are broken \(NaN or infinite\)"):
        make_trainer(tmp_path, model).train()


@pytest.mark.parametrize("settings", [{}, {"reference_dtype": "bfloat16"}, {"bf16": True}], ids=str)
def test_a_stored_reference_that_is_not_the_model_s_is_refused(settings, tmp_path):
    trainer = make_trainer(tmp_path, **settings)
    trainer.prepare()
    (file,) = (tmp_path / "reference").glob("*.bin")
    content = bytearray(file.read_bytes())
    content[4096:] = content[8192:] + content[4096:8192]
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape("the stored reference gives other")):
        trainer.prepare()
