"""What does not go together in a run's model and its options, found before weights are loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from unteach import models
from unteach.config.run import RunConfig
from unteach.data.rows import Row
from unteach.data.tokenization import encode_prompt
from unteach.errors import UserError
from unteach.models.adapters import adapter_targets, check_summable, is_quantized
from unteach.models.loading import auto_class
from unteach.run.gguf import find_converter
from unteach.run.record import run_tokenizer


def check_model(run: RunConfig, rows: Iterable[Row] = ()) -> Any:
    """Raises `UserError` for a run's model that its options, its tokenizer, its own configuration
    or the rows do not fit; returns `run_tokenizer`.
    """
    root, adapters = models.adapter_chain(run.model)
    check_places(run.output_dir, run.model, moved=True, kind="run")
    check_product(run)
    config = models.load_config(root, trust_remote_code=run.trust_remote_code)
    tokenizer = run_tokenizer(run)
    if not adapters:  # with an adapter the embedding grows to its tokenizer's size
        check_padding(run.model, config, tokenizer)
        check_tokens(config, tokenizer, rows)
    if is_quantized(config):
        check_quantized(run, adapters)
    if run.lora:
        if run.writes_adapter:
            for folder in adapters:
                check_summable(folder)
        check_adaptable(config, trust_remote_code=run.trust_remote_code)
    return tokenizer


MARKS = (
    ("run", "config.yaml", "prompt_sets:"),
    ("run", "run.json", ""),  # its config.yaml may be damaged
    ("ledger", "requests.jsonl", ""),
    ("comparison", "comparison.json", ""),
    ("evaluation", "eval.json", '"schema_version"'),
)
"""What a folder holds, the file that tells it and a text in that file."""


def check_places(
    output_dir: str | Path, *names: str | None, moved: bool = False, kind: str = ""
) -> None:
    """Raises `UserError` where files would be written over one of these models, its base included,
    or (`moved`) would be moved with an earlier run's folder that holds it; and, with a `kind` of
    `MARKS`, over those of another kind.
    """
    out = _resolved(output_dir, "--out")
    for other, name, mark in MARKS:
        file = out / name
        if kind and file.is_file() and mark in file.read_text(encoding="utf-8", errors="replace"):
            if other == kind:
                break
            raise UserError(
                f"{output_dir} holds a finished or begun {other} ({name}), over which this would"
                " write: name another folder"
            )
    for name in filter(None, names):
        root, adapters = models.adapter_chain(name)
        for place in (_resolved(folder, "--model") for folder in (root, *adapters)):
            if place.is_dir() and (place == out or (moved and out in place.parents)):
                where = "is the folder of" if place == out else "holds"
                raise UserError(
                    f"option --out: {output_dir} {where} the model: name another folder"
                )


def _resolved(path: str | Path, option: str) -> Path:
    try:
        str(path).encode()  # tokenizers and safetensors take names in UTF-8 alone
        return Path(path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:  # half a character, a null, no home
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"option {option} is {str(path)!r}, which is no path ({reason})") from None


def check_product(run: RunConfig) -> None:
    """Raises `UserError` for options about what is written that exclude each other."""
    if run.merge and not run.lora:
        raise UserError("option 'merge' merges an adapter, and without --lora there is none")
    if run.merge and run.quantize:
        raise UserError(
            "option 'merge': an adapter that is merged into weights of 4 bits is rounded with them;"
            " leave merge or quantize out"
        )
    if run.gguf:
        if run.writes_adapter:
            raise UserError("option 'gguf' converts a whole model: with --lora add --merge")
        find_converter()


def check_padding(name: str, config: Any, tokenizer: Any) -> None:
    """Raises `UserError` for a padding token for which the model has no embedding."""
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None)
    for owner, found in (("config.json", text), ("tokenizer", tokenizer)):
        pad = getattr(found, "pad_token_id", None)
        if size is not None and pad is not None and pad >= size:
            raise UserError(
                f"model {name!r}: its {owner} pads with token {pad}, but the model has {size}"
                " embeddings; set pad_token to a token that it has, such as the end-of-sequence"
                " token"
            )


def check_tokens(config: Any, tokenizer: Any, rows: Iterable[Row]) -> None:
    """Raises `UserError` for a row with a token for which the model has no embedding."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if size is None or len(tokenizer) <= size:
        return
    for row in rows:
        ids = [
            *encode_prompt(row, tokenizer),
            *tokenizer(row.completion, add_special_tokens=False)["input_ids"],
        ]
        if max(ids) >= size:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{row.source or 'row ' + row.key}: its token {token!r} is number {max(ids)}, but"
                f" the model has {size} embeddings: the tokenizer is not the model's"
            )


def check_quantized(run: RunConfig, adapters: list[str]) -> None:
    """Raises `UserError` for what cannot be done with weights that are quantised already."""
    wrong = ""
    if not run.lora:
        wrong = "which cannot be trained themselves: add --lora"
    elif run.merge:
        wrong = "into which no adapter can be merged: leave --merge out"
    elif run.quantize:
        wrong = "so that option 'quantize' has nothing to do: leave it out"
    elif adapters:
        wrong = (
            "with an adapter on them: name an adapter on the whole weights, or the weights alone"
        )
    if wrong:
        raise UserError(f"model {run.model!r} holds quantised weights, {wrong}")


def check_adaptable(config: Any, *, trust_remote_code: bool) -> None:
    """Raises `UserError` if PEFT can adapt no layer of the model."""
    with torch.device("meta"):
        model = auto_class(config).from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code
        )
    adapter_targets(model)
