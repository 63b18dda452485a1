"""The weights of the best probe so far: kept on disk while training goes on, put back into the model at its end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor


class BestWeights:
    """Folders `best-STEP` beside the checkpoints.

    A resumed run may have to go back to the best probe that its checkpoint knew, so older folders are removed only when a checkpoint that
    no longer needs them is whole.

    Args:
        output_dir (`str` or path): the folder of the checkpoints.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)

    def folder(self, step: int) -> Path:
        """Where the weights of that step are kept."""
        return self.output_dir / f"best-{step}"

    def write(self, model: Any, step: int) -> None:
        """Saves the weights (of the adapter alone, if there is one) in one go."""
        folder = self.folder(step)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)

    def keep_only(self, step: int) -> None:
        """Removes the weights of all other steps."""
        for folder in self.output_dir.glob("best-*"):
            if folder != self.folder(step):
                shutil.rmtree(folder, ignore_errors=True)

    def load(self, model: Any, step: int) -> None:
        """Puts the weights of that step into the model."""
        load_weights(model, self.folder(step))


def load_weights(model: Any, folder: Path) -> None:
    """Puts the weights that `save_pretrained` wrote into `folder` (of the adapter alone, if there is one) into the model."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, weights)
    else:
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
