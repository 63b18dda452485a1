"""The weights of the best probe so far: kept on disk while training goes on, put back into the
model at its end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from unteach.errors import UserError
from unteach.files.atomic import write_folder_atomically
from unteach.files.checkpoints import damage, mark_complete


class BestWeights:
    """Folders `best-STEP` beside the checkpoints.

    A resumed run may have to go back to the best probe that its checkpoint knew, so older folders
    are removed only when a checkpoint that no longer needs them is whole.

    Args:
        output_dir (`str` or path): the folder of the checkpoints.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)

    def folder(self, step: int) -> Path:
        """Where the weights of that step are kept."""
        return self.output_dir / f"best-{step}"

    def write(self, model: Any, step: int) -> None:
        """Saves the weights (of the adapter alone, if there is one) in one go, with their
        checksums.
        """

        def save(folder: Path) -> None:
            save_as_held(model, folder)
            mark_complete(folder, {"step": step})

        write_folder_atomically(self.folder(step), save)

    def keep_only(self, steps: Collection[int]) -> None:
        """Removes the weights of all other steps."""
        kept = {self.folder(step) for step in steps}
        for folder in self.output_dir.glob("best-*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def damage(self, step: int) -> str:
        """What is wrong with the weights of that step, as a clause; empty if they are whole, or if
        there is no such step (-1).
        """
        wrong = "" if step < 0 else damage(self.folder(step))
        return (
            f"the best weights so far, {self.folder(step).name}, are damaged ({wrong})"
            if wrong
            else ""
        )

    def load(self, model: Any, step: int) -> None:
        """Puts the weights of that step into the model.

        Raises:
            UserError: if they are not as they were written.
        """
        wrong = self.damage(step)
        if wrong:
            raise UserError(
                f"{wrong}; start the same command again, which goes back to an earlier checkpoint"
            )
        load_weights(model, self.folder(step))


def save_as_held(model: Any, folder: Path) -> None:
    """Saves the weights under the names that they have in the model; of an adapter as PEFT does.

    `save_pretrained` alone writes some architectures under the names of their first release
    (GPT-NeoX, mixtures of experts), which `from_pretrained` turns back and `load_state_dict` does
    not.
    """
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, save_original_format=False)


def hold_names(model: Any, checkpoint: Path) -> None:
    """Writes a checkpoint's weights once more where `Trainer` has given them names that are not the
    model's.
    """
    from safetensors import safe_open

    named: set[str] = set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            named |= set(weights.keys())
    if named - set(model.state_dict()):
        save_as_held(model, checkpoint)


def load_weights(model: Any, folder: Path) -> None:
    """Puts the weights that are saved in `folder` (of the adapter alone, if there is one) into the
    model.

    Raises:
        UserError: if they are not the model's.
    """
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, weights)
        return
    held = model.state_dict()
    known = {
        tensor.data_ptr() for name, tensor in held.items() if name in weights
    }  # a tied weight is saved under one of its names
    other = sorted(set(weights) - set(held)) + sorted(
        name
        for name, tensor in held.items()
        if name not in weights and tensor.data_ptr() not in known
    )
    if other:
        raise UserError(
            f"{folder} does not hold this model's weights ({other[0]} and {len(other) - 1} more);"
            " start again with another --out"
        )
    model.load_state_dict(weights, strict=False)
