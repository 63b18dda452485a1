"""Adapters as patches on one base model: their sum as an adapter, and the base with them merged in.

A patch is what one forget request adds to the base's weights: W = W0 + sum of B_k A_k. It is
trained with the earlier patches merged into frozen weights, so its own delta is a term of that sum,
and can be left out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unteach import models
from unteach.errors import UserError
from unteach.files.atomic import write_folder_atomically
from unteach.files.checkpoints import file_sha256, mark_complete, read_marker
from unteach.files.folders import private_folder

WEIGHTS = "adapter_model.safetensors"


def _stacked(base: Any, patches: Sequence[Path]) -> tuple[Any, list[str]]:
    """The base with all patches loaded and none merged, and the names that they have in it."""
    from peft import PeftModel

    names = [f"patch{number}" for number in range(len(patches))]
    model: Any = None
    for name, path in zip(names, patches, strict=True):
        if not (path / WEIGHTS).is_file():
            raise UserError(f"patch {path} has no {WEIGHTS}")
        try:
            if model is None:
                model = PeftModel.from_pretrained(base, path, adapter_name=name)
            else:
                model.load_adapter(path, adapter_name=name)
        except Exception as error:  # readers of broken files raise many types
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"patch {path} could not be loaded onto the base model ({type(error).__name__}:"
                f" {reason})"
            ) from None
    return model, names


@torch.no_grad()
def applied(base: str, patches: Sequence[Path], *, trust_remote_code: bool = False) -> Any:
    """The base model in float32 with the patches merged in, one after the other; without patches
    the base itself.

    Always made anew from the base: with a patch left out it is bit for bit the model that never had
    it.

    Raises:
        UserError: for a base that is itself an adapter, and for a patch that is missing, broken or
            another model's.
    """
    model = models.load_model(base, trust_remote_code=trust_remote_code)
    if hasattr(model, "peft_config"):
        raise UserError(f"model {base!r} is an adapter; merge it into its base model first")
    if not patches:
        return model
    stacked, names = _stacked(model, patches)
    return stacked.merge_and_unload(safe_merge=True, adapter_names=names).eval()


@torch.no_grad()
def combine(
    base: str, patches: Sequence[Path], target: Path, *, trust_remote_code: bool = False
) -> None:
    """Writes the sum of the patches as one adapter on the base (ranks add up), which PEFT loads by
    itself.

    Args:
        base (`str`): the model that all of them are for.
        patches (`Sequence[Path]`): at least one adapter folder.
        target (`Path`): the adapter's folder; replaced in one go.

    Raises:
        UserError: for a patch that is missing, broken or another model's.
    """
    stacked, names = _stacked(models.load_model(base, trust_remote_code=trust_remote_code), patches)
    stacked.add_weighted_adapter(names, [1.0] * len(names), "default", combination_type="cat")
    stacked.peft_config["default"].base_model_name_or_path = models.resolve(base)
    stacked.peft_config["default"].inference_mode = True
    write_folder_atomically(
        target, lambda folder: stacked.save_pretrained(folder, selected_adapters=["default"])
    )


def is_materialised(folder: Path) -> bool:
    """Whether the folder holds a whole model that `materialise` has written; other things of ours
    have markers too.
    """
    return set(read_marker(folder) or {}) == {"base", "patches"}


def materialise(
    base: str,
    patches: Sequence[Path],
    tokenizer: Any,
    target: Path,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Writes the base with the patches merged in as a whole model of its own, readable by its
    owner; once for the same patches.
    """
    state = {"base": base, "patches": [file_sha256(path / WEIGHTS) for path in patches]}
    if read_marker(target) == state:
        return
    model = applied(base, patches, trust_remote_code=trust_remote_code)

    def save(folder: Path) -> None:
        private_folder(folder)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        mark_complete(folder, state)

    write_folder_atomically(target, save)
