"""Generators with a cache on disk, and by vLLM."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unteach.errors import UserError
from unteach.evaluation.generation import (
    Generator,
    Progress,
    Starts,
    TransformersGenerator,
    end_ids,
    starts_of,
    until_end,
)
from unteach.files.folders import content_key, private_folder
from unteach.processes import all_gather, barrier, process_count, process_shard


class CachedGenerator:
    """Stores every continuation in a file: another metric or a resumed evaluation reuses it.

    The file's name holds a hash of model, engine and settings; a line holds a prompt's hash and its
    continuation. Each batch is appended as it finishes. Each process of a run generates a share of
    what is missing.

    Args:
        generator: generates what is missing.
        folder: of the file; readable by its owner only.
        model_hash: identifies the model and all that decides its outputs.
        engine: name of the engine: the outputs of two engines may differ in rare near-ties.
    """

    def __init__(
        self, generator: Generator, folder: Path, model_hash: str, engine: str = "transformers"
    ) -> None:
        self.generator, self.folder = generator, folder
        self.model_hash, self.engine = model_hash, engine

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        starts: Starts | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """See `Generator`."""
        name = content_key([self.model_hash, self.engine, max_new_tokens, "greedy"])
        rank = f"-{os.environ['RANK']}" if process_count() > 1 else ""
        path = private_folder(self.folder) / f"continuations-{name}{rank}.jsonl"
        keys = [prompt_key(prompt) for prompt in prompts]
        known: dict[str, list[int]] = {}
        for file in sorted(self.folder.glob(f"continuations-{name}*.jsonl")):
            known |= read_continuations(file)
        barrier()
        missing = [i for i, key in enumerate(keys) if key not in known and keys.index(key) == i]
        share = list(process_shard(missing))
        made: dict[str, list[int]] = {}

        def keep(batch: dict[int, list[int]]) -> None:
            lines = {keys[share[place]]: ids for place, ids in batch.items()}
            made.update(lines)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps([key, ids]) + "\n" for key, ids in lines.items())

        if share:
            generator, todo = self.generator, [prompts[i] for i in share]
            if isinstance(generator, TransformersGenerator):
                generator = replace(generator, on_batch=keep)
            outputs = generator(
                todo,
                max_new_tokens=max_new_tokens,
                starts=starts_of(share, starts),
                progress=progress,
            )
            if not made:
                keep(dict(enumerate(outputs)))
        for lines in all_gather(made):
            known |= lines
        return [known[key] for key in keys]


def prompt_key(prompt: Sequence[int]) -> str:
    """Hash of a prompt's tokens, 16 hexadecimal digits."""
    return hashlib.sha256(",".join(map(str, prompt)).encode()).hexdigest()[:16]


def read_continuations(path: Path) -> dict[str, list[int]]:
    """The complete lines of a cache file; an incomplete last line, left by an interruption, is
    removed from the file, and damaged ones are not read.
    """
    found: dict[str, list[int]] = {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            key, ids = json.loads(line)
            found[key] = ids
    return found


def free_share() -> float:
    """The share of GPU memory for an engine: 90% of what is free, as the model for likelihoods is
    on the same GPU.
    """
    if not torch.cuda.is_available():
        return 0.9
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return 0.9 * free / total


class VllmGenerator:
    """Generation by vLLM (extra `vllm`).

    Args:
        model: folder or hub id.
        tokenizer: the model's tokenizer, for the tokens that end an answer.
        make_engine: makes the engine from the model's name; default: `vllm.LLM`.
        ends: more tokens that end an answer.

    Raises:
        UserError: if vLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        make_engine: Callable[[str], Any] | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError:
            raise UserError(
                "engine 'vllm' is not installed here; install the extra with: pip install"
                " 'unteach[vllm]'"
            ) from None
        self._engine = (
            make_engine(model)
            if make_engine
            else LLM(model, skip_tokenizer_init=True, gpu_memory_utilization=free_share())
        )
        self._params = SamplingParams
        self._ends = sorted({*end_ids(tokenizer), *ends})

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        starts: Starts | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """See `Generator`; `starts` is not used."""
        settings = self._params(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=self._ends, detokenize=False
        )
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._engine.generate(requests, settings, use_tqdm=False)
        if progress:
            progress(len(prompts), len(prompts))
        return [until_end(made.outputs[0].token_ids, self._ends) for made in outputs]
