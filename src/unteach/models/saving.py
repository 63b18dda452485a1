"""A changed model on disk in the form of its source: precision, shards, settings of generation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unteach.models.loading import HUB_FILES, adapter_chain, load_config
from unteach.models.parts import without_adapter

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Names of precisions in safetensors files."""


def set_aside_generation(model: Any) -> Callable[[Any], None]:
    """Replaces the model's `generation_config` by one with its token ids alone, so that the model
    can be saved and decodes greedily whatever that holds.

    Returns:
        A function that gives it back to a model, with the token ids of the configuration, which
        transformers' `Trainer` sets to the tokenizer's.
    """
    from transformers import GenerationConfig

    base = without_adapter(model)
    own, config = getattr(base, "generation_config", None), base.config.get_text_config()
    ids = {name: getattr(config, name) for name in TOKEN_IDS if hasattr(config, name)}
    if own is not None:
        kept = {name: getattr(own, name, None) for name in (*TOKEN_IDS, "use_cache")}
        base.generation_config = GenerationConfig(**kept)

    def give_back(changed: Any) -> None:
        changed = without_adapter(changed)
        if own is not None:
            changed.generation_config = own
        for name, value in ids.items():
            setattr(changed.config.get_text_config(), name, value)

    return give_back


@contextlib.contextmanager
def neutral_generation(model: Any) -> Iterator[None]:
    """Inside the block the model has no settings of generation but its token ids."""
    give_back = set_aside_generation(model)
    try:
        yield
    finally:
        give_back(model)


@dataclass(frozen=True)
class SavedForm:
    """How a model's folder holds its weights.

    Args:
        dtype (`torch.dtype`): the precision that `from_pretrained` loads them in.
        by_name (mapping): that of each weight in the files, by its name there.
        shard_bytes (`int`, *optional*): size of the largest of several files.
    """

    dtype: torch.dtype = torch.float32
    by_name: Mapping[str, torch.dtype] = field(default_factory=dict)
    shard_bytes: int | None = None

    @classmethod
    def of(cls, name: str, *, trust_remote_code: bool = False) -> SavedForm:
        """The form of a model, of an adapter's base.

        Args:
            name (`str`): folder, hub id (in the cache) or packaged name.
            trust_remote_code (`bool`)
        """
        from safetensors import safe_open

        root, _ = adapter_chain(name)
        files = sorted(_local(root).glob("*.safetensors"))
        found: dict[str, torch.dtype] = {}
        for file in files:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118, a reader is no dict
                    kind = weights.get_slice(key).get_dtype()
                    found |= {key: FLOATS[kind]} if kind in FLOATS else {}
        named = load_config(root, trust_remote_code=trust_remote_code).dtype
        kinds = list(found.values())
        if named not in FLOATS.values():
            named = max(FLOATS.values(), key=kinds.count)  # the first where there are none
        size = max(file.stat().st_size for file in files) if len(files) > 1 else None
        return cls(named, found, size)

    def precision_of(self, name: str) -> torch.dtype:
        """That of the weight of that name."""
        return self.by_name.get(name, self.dtype)

    @torch.no_grad()
    def rounded(self, model: Any) -> SavedForm:
        """Rounds the weights to what the files will hold, so that the model in memory is the saved
        one; returns the form, in float32 where a weight is too large for its precision.
        """
        weights = [
            (weight, self.precision_of(name))
            for name, weight in model.named_parameters()
            if weight.is_floating_point()
        ]
        if any(_too_large(weight, dtype) for weight, dtype in weights):
            return replace(self, dtype=torch.float32, by_name={})
        for weight, dtype in weights:
            if weight.dtype != dtype:
                weight.copy_(weight.to(dtype))
        return self

    def save(self, model: Any, folder: Path) -> None:
        """Saves a whole model in this form, with its own settings of generation."""
        weights = {p: p.data for p in model.parameters() if p.is_floating_point()}
        try:
            for name, weight in model.named_parameters():
                if weight.is_floating_point():
                    weight.data = weight.data.to(self.precision_of(name))
            with neutral_generation(model):
                more = {"max_shard_size": self.shard_bytes} if self.shard_bytes else {}
                model.save_pretrained(folder, **more)
        finally:
            for weight, data in weights.items():
                weight.data = data
        written = type(model.config).from_pretrained(folder)
        if written.dtype != self.dtype:  # of the first weight, which may be another
            written.dtype = self.dtype
            written.save_pretrained(folder)
        if (settings := getattr(model, "generation_config", None)) is not None:
            settings.to_json_file(folder / "generation_config.json")


def _too_large(weight: Tensor, dtype: torch.dtype) -> bool:
    return dtype == torch.float16 and float(weight.abs().max()) > torch.finfo(dtype).max


def _local(root: str) -> Path:
    """The folder of a model; of a hub id that in the cache."""
    if not Path(root).is_dir():
        from huggingface_hub import snapshot_download

        with contextlib.suppress(Exception):
            return Path(snapshot_download(root, local_files_only=True, allow_patterns=HUB_FILES))
    return Path(root)
