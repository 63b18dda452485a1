"""Adapters as patches on one base model: their sum as one adapter, and the base with them merged.

The patch of request k is the term B_k A_k of W = W0 + B_1 A_1 + B_2 A_2 + ... It is trained on
frozen weights with the earlier patches merged, so it can be left out of the sum later.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unteach import models
from unteach.errors import UserError
from unteach.files.atomic import write_folder_atomically
from unteach.files.checkpoints import file_sha256, mark_complete, read_marker
from unteach.files.folders import private_folder
from unteach.models.adapters import WEIGHTS, is_adapter, stacked, write_sum
from unteach.requests.ledger import Entry, Ledger


@torch.no_grad()
def merged(base: str, patches: Sequence[Path], *, trust_remote_code: bool = False) -> Any:
    """The base model in float32 with the patches merged, in order.

    Always computed from the base: without a patch it is bit for bit the model that never had it.

    Raises:
        UserError: for a patch that is missing, broken or of another model.
    """
    model = models.load_model(base, trust_remote_code=trust_remote_code)
    if not patches:
        return model
    whole, names = stacked(model, patches)
    return whole.merge_and_unload(safe_merge=True, adapter_names=names).eval()


def write_merged(
    base: str,
    patches: Sequence[Path],
    target: Path,
    *,
    own_dtype: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Writes the base with the patches merged as a full model that only its owner can read, in
    float32 or (`own_dtype`) in the base's form; does nothing if `target` holds it already.
    """
    state = {"base": base, "patches": [file_sha256(path / WEIGHTS) for path in patches]}
    if read_marker(target) == state:
        return
    tokenizer = models.load_tokenizer(base, trust_remote_code=trust_remote_code)
    model = merged(base, patches, trust_remote_code=trust_remote_code)
    form = models.SavedForm.of(base, trust_remote_code=trust_remote_code)
    form = form.rounded(model) if own_dtype else models.SavedForm()

    def save(folder: Path) -> None:
        private_folder(folder)
        form.save(model, folder)
        tokenizer.save_pretrained(folder)
        mark_complete(folder, state)

    write_folder_atomically(target, save)


def is_merged(folder: Path) -> bool:
    """Whether `write_merged` wrote the folder; other complete folders have other markers."""
    return set(read_marker(folder) or {}) == {"base", "patches"}


def patch_paths(folder: Path, entries: Sequence[Entry]) -> list[Path]:
    """The adapter folders of these requests; `UserError` for one that is missing."""
    paths = [folder / str(entry["patch"]) for entry in entries]
    for path, entry in zip(paths, entries, strict=True):
        if not (path / WEIGHTS).is_file():
            raise UserError(
                f"the patch of request {entry['id']} is missing ({path / WEIGHTS}); put it back to"
                " go on"
            )
    return paths


def current_model(
    folder: Path, ledger: Ledger, base: str, *, whole: bool, trust_remote_code: bool = False
) -> str:
    """Folder or hub id of the model after all active requests; `base` if there are none.

    Args:
        whole (`bool`): the requests train all weights, so an adapter as the base is merged as a run
            does it, and the model keeps its precision; a patch needs a whole model below it.

    Raises:
        UserError: if the model, or one of its patches, is missing.
    """
    if ledger.kind == "full":
        newest = ledger.requests[-1]
        model = folder / str(newest["model"])
        if not model.is_dir():
            raise UserError(
                f"{model}, the model of request {newest['id']}, is missing; put it back to go on"
            )
        return str(model)
    paths = patch_paths(folder, ledger.active)
    if not paths and (whole or not is_adapter(models.resolve(base))):
        return base
    start = private_folder(folder / "work") / "start"
    write_merged(base, paths, start, trust_remote_code=trust_remote_code)
    return str(start)


def refresh_adapter(folder: Path, ledger: Ledger, *, trust_remote_code: bool = False) -> None:
    """Writes the sum of the active patches to `adapter/`, unless it is there already."""
    if ledger.kind != "adapter":
        return
    target, paths = folder / "adapter", patch_paths(folder, ledger.active)
    state = {"patches": [file_sha256(path / WEIGHTS) for path in paths]}
    if read_marker(target) == state:
        return
    if not paths:
        shutil.rmtree(target, ignore_errors=True)
        return
    root, own = models.adapter_chain(str(ledger.requests[0]["base"]))
    model = models.load_model(root, trust_remote_code=trust_remote_code)
    write_sum(model, root, [*own, *paths], target)
    mark_complete(target, state)
