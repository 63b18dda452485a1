"""Weights of the best probe, and weights on disk under the names that they have in the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from unteach.errors import UserError
from unteach.files.atomic import write_folder_atomically
from unteach.files.checkpoints import damage, kept_states, latest_checkpoint, mark_complete


class BestWeights:
    """Folders `best-STEP` beside the checkpoints, which are in `output_dir`.

    A resumed run may have to return to the best probe that its checkpoint recorded, so a folder is
    removed only once no whole checkpoint refers to it.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)

    def folder(self, step: int) -> Path:
        """The folder of that step's weights."""
        return self.output_dir / f"best-{step}"

    def write(self, model: Any, step: int) -> None:
        """Saves the weights (of an adapter alone, if there is one) atomically, with checksums."""

        def save(folder: Path) -> None:
            save_weights(model, folder)
            mark_complete(folder, {"step": step})

        write_folder_atomically(self.folder(step), save)

    def keep_only(self, steps: Collection[int]) -> None:
        """Removes the weights of all other steps."""
        kept = {self.folder(step) for step in steps}
        for folder in self.output_dir.glob("best-*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def keep_referenced(self) -> None:
        """Removes the weights that no finished checkpoint's stop rule refers to."""
        rules = [state.get("rule") or {} for state in kept_states(self.output_dir)]
        self.keep_only({rule["best_step"] for rule in rules if "best_step" in rule})

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint whose best weights are whole too; others are set aside."""

        def wrong(state: Any) -> str:
            return self.damage(int((state.get("rule") or {}).get("best_step", -1)))

        return latest_checkpoint(self.output_dir, wrong)

    def damage(self, step: int) -> str:
        """What is wrong with that step's weights, as a clause; empty if nothing is, or for -1."""
        wrong = "" if step < 0 else damage(self.folder(step))
        name = self.folder(step).name
        return f"the best weights so far, {name}, are damaged ({wrong})" if wrong else ""

    def load(self, model: Any, step: int) -> None:
        """Loads the weights of that step into the model; a `UserError` if their files changed."""
        if wrong := self.damage(step):
            raise UserError(
                f"{wrong}; start the same command again, which resumes from an earlier checkpoint"
            )
        load_weights(model, self.folder(step))


def save_weights(model: Any, folder: Path) -> None:
    """Saves the weights under their names in the model; an adapter's as PEFT does.

    `save_pretrained` alone writes some architectures under the names of their first release
    (GPT-NeoX, mixtures of experts), which `from_pretrained` converts back and `load_state_dict`
    does not.
    """
    if hasattr(model, "disable_adapter"):
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, save_original_format=False)


def save_under_model_names(model: Any, checkpoint: Path) -> None:
    """Saves a checkpoint's weights again where `Trainer` has written names that are not the
    model's.
    """
    from safetensors import safe_open

    names: set[str] = set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names |= set(weights.keys())
    if names - set(model.state_dict()):
        save_weights(model, checkpoint)


def load_weights(model: Any, folder: Path) -> None:
    """Loads the weights that are saved in `folder` (of an adapter alone, if there is one); a
    `UserError` if they are not this model's.
    """
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    if hasattr(model, "disable_adapter"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, weights)
        return
    own = model.state_dict()
    # tied weights are saved under one of their names
    saved = {tensor.data_ptr() for name, tensor in own.items() if name in weights}
    missing = (name for name, tensor in own.items() if tensor.data_ptr() not in saved)
    other = sorted(set(weights) - set(own)) + sorted(missing)
    if other:
        raise UserError(
            f"{folder} does not hold this model's weights ({other[0]} and {len(other) - 1} more);"
            " start again with another --out"
        )
    model.load_state_dict(weights, strict=False)
