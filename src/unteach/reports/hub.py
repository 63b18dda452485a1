"""A run's model on the Hugging Face Hub, with its card."""

from __future__ import annotations

from pathlib import Path

from unteach.errors import UserError, one_line


def push_model(folder: Path, name: str) -> str:
    """Uploads `model/` or `adapter/` of a run, the card beside the weights, to the repository
    `name`, which is created as a private one; returns its address.

    Raises:
        UserError: if the run has no model, or the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    found = next((path for kind in ("model", "adapter") if (path := folder / kind).is_dir()), None)
    if found is None:
        raise UserError(f"{folder} has neither model/ nor adapter/ to push")
    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=found)
    except Exception as error:  # of the hub, of the network, of the name
        reason = one_line(error, 300)
        raise UserError(
            f"option --push-to-hub: {name!r} could not be pushed; log in by `hf auth login`, and"
            f" check the name and the network ({reason})"
        ) from None
    return str(address)
