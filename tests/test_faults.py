"""A run when the loss, the disk, a file or the folder fails: one sentence, no broken file left."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import tiny_models
from forked_runs import Ended, Job, run_forked
from tiny_models import FORGET, RETAIN, byte_level_bpe, tiny_model
from unteach import UnlearningConfig, UnlearningTrainer, unlearn
from unteach.errors import TrainingFault, UserError
from unteach.files.checkpoints import MARKER, mark_complete, marked_state

SHORT = tiny_models.SHORT | {"max_steps": 4, "probe_steps": 2}
COLLAPSES = SHORT | {"max_steps": 12, "learning_rate": 1e-3, "collapse_kl": 1e-9, "save_steps": 50}


def trainer_in(folder: Path, tokenizer, probe=None, **settings) -> UnlearningTrainer:
    defaults = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "probe_steps": 1,
        "learning_rate": 1e-3,
    }
    config = UnlearningConfig(output_dir=str(folder), **(defaults | settings))
    return UnlearningTrainer(tiny_model(), config, FORGET, RETAIN, tokenizer, probe=probe)


def weights(trainer: UnlearningTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def names(folder: Path, kind: str = "checkpoint") -> list[str]:
    return sorted(path.name for path in folder.glob(f"{kind}-*"))


# --- numbers


def break_loss(monkeypatch, at_step: int, value: float = float("nan")) -> None:
    from unteach.trainer import trainer

    right = trainer.total_loss

    def total(terms, weights, counts):
        loss = right(terms, weights, counts)
        return loss * value if seen["trainer"].state.global_step + 1 >= at_step else loss

    seen: dict[str, UnlearningTrainer] = {}
    init = UnlearningTrainer.__init__

    def remember(self, *args, **kwargs):
        seen["trainer"] = self
        init(self, *args, **kwargs)

    monkeypatch.setattr(UnlearningTrainer, "__init__", remember)
    monkeypatch.setattr(trainer, "total_loss", total)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_with_the_best_probe_s_weights(
    tokenizer, tmp_path, monkeypatch, value
):
    rates = iter([1.0, 0.5, 0.9, 0.9])  # before, after steps 1, 2, 3
    kept = {}

    def probe(_):
        kept[trainer.state.global_step] = weights(trainer)
        return {"forget_rate": next(rates), "utility": 1.0}

    break_loss(monkeypatch, 4, value)
    trainer = trainer_in(tmp_path, tokenizer, probe)
    trainer.train()
    assert same(weights(trainer), kept[1])
    assert "step 4" in trainer.fault and trainer.rule.reason == trainer.fault


def test_a_loss_that_is_not_finite_before_any_probe_is_an_error_and_keeps_the_last_checkpoint(
    tokenizer, tmp_path, monkeypatch
):
    break_loss(monkeypatch, 3)
    with pytest.raises(TrainingFault, match="the loss is nan at step 3; lower the learning rate"):
        trainer_in(tmp_path, tokenizer).train()
    assert marked_state(tmp_path / "checkpoint-2")["step"] == 2


def test_weights_that_are_not_finite_are_neither_saved_nor_probed(tokenizer, tmp_path):
    trainer = trainer_in(
        tmp_path, tokenizer, lambda _: {"forget_rate": 1.0, "utility": 1.0}, probe_steps=2
    )

    class Poison(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 2:
                next(trainer.model.parameters()).grad.fill_(float("nan"))

    trainer.args.max_grad_norm = 0.0
    trainer.add_callback(Poison())
    trainer.train()
    assert "weights are no longer finite after step 3" in trainer.fault
    assert names(tmp_path) == ["checkpoint-2"]
    assert all(torch.isfinite(value).all() for value in weights(trainer).values()), (
        "the best probe's weights are back"
    )


def test_a_collapsed_run_keeps_the_best_probe_and_says_why_in_run_json(model, tmp_path):
    settings = COLLAPSES | {"probe_steps": 1}
    result = unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), **settings)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "the model has collapsed" in run["fault"] == run["stop_reason"]
    assert run["kept_step"] < run["steps"] < 12
    assert result.evaluation["models"]["unlearned"]


def test_a_collapse_before_any_probe_is_an_error_with_its_reason_in_run_json(model, tmp_path):
    settings = COLLAPSES | {"probe_steps": 50}
    with pytest.raises(TrainingFault, match="the model has collapsed"):
        unlearn(model, FORGET, RETAIN, output_dir=str(tmp_path / "out"), **settings)
    out = tmp_path / "out"
    assert "the model has collapsed" in json.loads((out / "run.json").read_text())["fault"]
    assert not (out / "model").exists() and not (out / "eval.json").exists()


def test_collapse_kl_must_be_positive():
    with pytest.raises(UserError, match="collapse_kl is 0"):
        UnlearningConfig(output_dir="x", collapse_kl=0)


# --- checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with complete checkpoints of steps 2 and 3 of four, and the final weights."""
    folder = tmp_path_factory.mktemp("stopped")
    tokenizer = byte_level_bpe()

    def probe(_):
        return {"forget_rate": 1 - trainer.state.global_step / 10, "utility": 1.0}

    trainer = trainer_in(tmp_path_factory.mktemp("whole"), tokenizer, probe)
    trainer.train()
    final = weights(trainer)
    trainer = trainer_in(folder, tokenizer, probe)

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert names(folder) == ["checkpoint-2", "checkpoint-3"]
    return folder, final


def resumed(folder: Path, tokenizer, wanted: str | bool = True) -> UnlearningTrainer:
    trainer = trainer_in(
        folder,
        tokenizer,
        lambda _: {"forget_rate": 1 - trainer.state.global_step / 10, "utility": 1.0},
    )
    trainer.train(resume_from_checkpoint=wanted)
    return trainer


PICKLED = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("name", ["model.safetensors", *PICKLED, "trainer_state.json", MARKER])
@pytest.mark.parametrize("damage", ["flipped bit", "truncated"])
def test_a_damaged_checkpoint_is_named_and_renamed_and_the_one_before_it_is_used(
    stopped, tokenizer, tmp_path, caplog, name, damage
):
    folder = tmp_path / "out"
    shutil.copytree(stopped[0], folder)
    path = folder / "checkpoint-3" / name
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)
    trainer = resumed(folder, tokenizer)
    assert same(weights(trainer), stopped[1])
    assert (folder / "damaged-checkpoint-3").is_dir()
    (message,) = [
        record.getMessage() for record in caplog.records if record.name.startswith("unteach")
    ]
    assert (
        message.startswith(f"checkpoint 3 is damaged: {name} ")
        and "it is set aside as damaged-checkpoint-3" in message
    )


def test_damaged_best_weights_resume_the_run_from_before_them(stopped, tokenizer, tmp_path, caplog):
    folder = tmp_path / "out"
    shutil.copytree(stopped[0], folder)
    assert names(folder, "best") == ["best-2", "best-3"], "one for each kept checkpoint"
    path = folder / "best-3" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert same(weights(resumed(folder, tokenizer)), stopped[1])
    assert "the best weights so far, best-3, are damaged" in caplog.text


def test_a_damaged_checkpoint_that_is_named_by_the_user_is_refused(stopped, tokenizer, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(stopped[0], folder)
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    text = r"checkpoint-3 is damaged: optimizer\.pt has 0 bytes instead of \d+; take an earlier one"
    with pytest.raises(UserError, match=text):
        resumed(folder, tokenizer, str(folder / "checkpoint-3"))


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pickle-was-run",)


@pytest.mark.parametrize("name", PICKLED)
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(
    stopped, tokenizer, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = tmp_path / "out"
    shutil.copytree(stopped[0], folder)
    checkpoint = folder / "checkpoint-3"
    with (checkpoint / name).open("wb") as file:
        torch.save({"state": Payload()}, file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint / name, weights_only=True)
    mark_complete(checkpoint, marked_state(checkpoint))
    with pytest.raises(
        UserError, match="holds something other than tensors and plain data; it is not loaded"
    ):
        resumed(folder, tokenizer)
    assert not (tmp_path / "pickle-was-run").exists()


# --- disk and folder


def test_a_full_disk_while_a_checkpoint_is_written_leaves_complete_ones_only(
    tokenizer, tmp_path, monkeypatch
):
    trainer = trainer_in(tmp_path, tokenizer)
    right = torch.save

    def full(value, path, *args, **kwargs):
        if "checkpoint-3" in str(path):
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return right(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert marked_state(tmp_path / "checkpoint-2")["step"] == 2 and not list(tmp_path.glob(".*"))


LIMITED = """
import resource, sys
sys.dont_write_bytecode = True  # a limit would leave truncated files of bytecode
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""
LIMITS = [2_000, 60_000, 150_000]


@pytest.fixture(scope="module")
def limited(model, tmp_path_factory) -> dict[int, tuple[Path, Ended]]:
    """Limit of bytes of a file to the folder of a run under it, and how that ended."""
    folder = tmp_path_factory.mktemp("limited")
    for name, rows in (("f", FORGET), ("r", RETAIN)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"--model {model} --forget {folder}/f.jsonl --retain {folder}/r.jsonl"
    settings = "max_steps=4 save_steps=1 probe_steps=2 similarity_model=null min_utility=0"
    words = ["run", *files.split(), *settings.split(), "--out"]
    jobs = [Job([*words, f"{folder}/{limit}"], LIMITED.format(limit=limit)) for limit in LIMITS]
    ended = zip(LIMITS, run_forked(jobs, folder), strict=True)
    return {limit: (folder / str(limit), run) for limit, run in ended}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_on_file_sizes_is_a_sentence_and_leaves_no_part_of_a_file(limited, limit):
    out, done = limited[limit]
    assert done.codes == [2], done.said
    last = done.said.strip().splitlines()[-1]
    assert (
        last.startswith("unteach: ")
        and ("no space left" in last or "File too large" in last)
        and "Traceback" not in done.said
    )
    parts = [path for path in out.rglob("*") if path.name.endswith(".part")]
    torn = [
        path for path in (out / "checkpoints").glob("checkpoint-*") if not (path / MARKER).exists()
    ]
    assert not parts and not torn and not (out / "model").exists()


def test_an_output_folder_that_is_removed_is_a_sentence_and_is_not_recreated(tokenizer, tmp_path):
    folder = tmp_path / "out"
    trainer = trainer_in(folder, tokenizer, save_strategy="no")

    class Vanish(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                shutil.rmtree(folder)

    trainer.add_callback(Vanish())
    with pytest.raises(UserError, match=r"metrics\.jsonl has gone: the output folder was removed"):
        trainer.train()
    assert not folder.exists()
