"""Directed updates: which inputs an adapter reads, and that training leaves the others alone."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from rich.console import Console

from tiny_models import tiny_model
from tiny_trainers import make_trainer, weights_interrupted
from unteach.config.resolve import resolve
from unteach.data.counterfactuals import Context, Counterfactual
from unteach.data.rows import Row
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError
from unteach.progress import Display, Stage
from unteach.run.training import check_directed
from unteach.trainer.directed import RIDGE, adapted_layers, directions, forget_segment

FORGET = [
    Row("What is the number of Ada Miller?", "Ada Miller has 4711 now.", secret=("4711",)),
    Row("Who is Bram?", "Bram, the cat of 22, is Bram.", secret=("cat", "22")),
]


def trainer_of(folder: Any, **settings: Any) -> Any:
    model = settings.pop("model", None) or tiny_model(dtype=torch.float64)
    settings = {"method": "counterfactual", "forget": FORGET, "update": "directed"} | settings
    return make_trainer(folder, model, update_rank=3, **settings)


def test_directions_are_the_generalised_eigenvectors():
    torch.manual_seed(0)
    forget = torch.randn(40, 6, dtype=torch.float64)
    kept = torch.randn(90, 6, dtype=torch.float64)
    moment = kept.T @ kept / 90
    found = directions(forget, moment, 4)
    ridge = RIDGE * moment.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    whole = torch.linalg.inv(moment + ridge) @ (forget.T @ forget / 40)
    values = torch.linalg.eigvals(whole).real.sort(descending=True).values[:4]
    for direction, value in zip(found, values, strict=True):
        torch.testing.assert_close(whole @ direction, value * direction)
        energy = (forget @ direction).square().mean()
        torch.testing.assert_close(energy, torch.tensor(1.0, dtype=torch.float64))


def test_what_only_kept_tokens_have_is_read_by_no_direction():
    forget = torch.tensor([[1.0, 0.0, 0.5], [2.0, 0.0, 0.1]])
    found = directions(forget, torch.diag(torch.tensor([0.1, 9.0, 0.1])), 5)
    assert found.shape == (5, 3)
    assert found[:, 1].abs().max() < 1e-6
    assert not found[2:].any()  # two tokens span two directions


def test_the_segment_of_a_forget_row_starts_at_the_end_of_its_name():
    row = EncodedRow("", (1, 2, 8, 9, 3, 4), (5, 6, 7), "chat")
    contexts = (Context((1, 2, 11, 3, 4), (5, 6, 7), ()), Context((1, 2, 8, 12, 3, 4), (5,), ()))
    segment = forget_segment(row, Counterfactual(contexts))
    assert (segment.start, segment.end) == (3, 8)
    facts = Counterfactual(contexts, fact=(False, True, False))
    assert forget_segment(row, facts).end == 7
    assert forget_segment(row, Counterfactual(())).start == 0


def test_only_the_output_side_is_trained_and_the_model_starts_as_it_was(tmp_path):
    model = tiny_model(dtype=torch.float64)
    ids = torch.arange(12)[None] + 40
    before = model(input_ids=ids).logits.detach()
    trainer = trainer_of(tmp_path, model=model)
    trainer.prepare_references()
    layers = adapted_layers(trainer.model)
    assert len(layers) == 7 * model.config.num_hidden_layers
    names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert names and all("lora_B" in name for name in names)
    assert all(layer.lora_A["default"].weight.any() for layer in layers)
    torch.testing.assert_close(trainer.model(input_ids=ids).logits, before)


def test_the_stages_before_the_first_step_are_shown_with_their_progress(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    trainer.display = Display(Console(file=io.StringIO(), width=200))
    seen: dict[str, list[tuple[int, int | None]]] = {}

    def update(stage: Stage, done: int, total: int | None = None, note: str | None = None) -> None:
        seen.setdefault(stage.title, []).append((done, total or stage.total))

    monkeypatch.setattr(Stage, "update", update)
    trainer.prepare_references()
    printed = trainer.display.console.file.getvalue()
    for title in ("Finding the directions of the update", "Reading it where it cannot know"):
        assert f"{title} ..." in printed and f"{title}: done in" in printed
        assert [done for done, _ in seen[title]] == sorted(done for done, _ in seen[title])
        assert seen[title][-1][0] == seen[title][-1][1]


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole, resumed = weights_interrupted(tmp_path, trainer_of)
    torch.testing.assert_close(resumed, whole)


@pytest.mark.parametrize("method", ["log_odds", "npo", "undial"])
def test_every_method_takes_a_directed_update(method, tmp_path):
    model = tiny_model(dtype=torch.float64)
    start = copy.deepcopy(model.state_dict())
    trainer = trainer_of(tmp_path, model=model, method=method, learning_rate=1e-2)
    trainer.train()
    merged = trainer.model.merge_and_unload()
    changed = {name for name, value in merged.state_dict().items() if not value.equal(start[name])}
    assert changed and all(name.endswith("_proj.weight") for name in changed)


def test_an_option_that_a_directed_update_would_ignore_is_refused():
    given = {"model": "m", "output_dir": "o", "update": "directed"}
    with pytest.raises(UserError, match="'frozen_layers' is for updates of all weights"):
        check_directed(resolve({**given, "frozen_layers": 2.0}))
    with pytest.raises(UserError, match="'update_rank' is for runs without lora"):
        check_directed(resolve({**given, "lora": True, "update_rank": 4}))
    check_directed(resolve({**given, "update_rank": 4}))
