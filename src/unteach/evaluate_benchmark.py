"""`unteach eval --benchmark`: models measured on a benchmark of the field, without any training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unteach import models
from unteach.errors import UserError, did_you_mean
from unteach.evaluation.benchmarks.benchmark import Benchmark, EvaluatedModel, Measured
from unteach.evaluation.benchmarks.known import BENCHMARKS
from unteach.evaluation.generation import Generator, TransformersGenerator
from unteach.evaluation.generators import CachedGenerator, VllmGenerator
from unteach.evaluation.metrics import METRICS, as_eval_json
from unteach.files.atomic import write_json, write_text_atomically
from unteach.files.folders import FolderLock
from unteach.models.precision import dtype_of
from unteach.progress import Display


def evaluate_benchmark(
    benchmark: str,
    model: str,
    reference: str | None = None,
    *,
    retrained: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    output_dir: str,
    engine: str = "transformers",
    batch_size: int | None = None,
    show_text: bool = False,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    display: Display | None = None,
) -> dict[str, Any]:
    """Measures the models and writes `eval.json`, `generations.jsonl` and `benchmark.md`.

    Args:
        benchmark (`str`): `tofu`, `muse`, `wmdp` or `rwku`.
        model (`str`): the model after unlearning.
        reference (`str`, *optional*): the one before; without it both columns are the same model.
        retrained (`str`, *optional*): a model trained without the forget set, for the numbers that
            need one.
        data (`str`, *optional*): a folder, files separated by commas, or a dataset id; default: the
            benchmark's own on the hub.
        limit (`int`, *optional*): at most so many rows of each set.
        output_dir (`str`)
        engine (`str`): `transformers`, or `vllm`.
        batch_size (`int`, *optional*): prompts at a time; default: by the size of their cache
        show_text (`bool`): whether prompts, right answers and answers are written.
        trust_remote_code (`bool`): run code that comes with a model.
        dtype (`str`): what the models are held in, `float32` or `bfloat16`.
        display (`Display`, *optional*)

    Raises:
        UserError: for an unknown benchmark, data that does not fit it, or a model that cannot be
            had.
    """
    from accelerate import PartialState

    if benchmark not in BENCHMARKS:
        raise did_you_mean(benchmark, list(BENCHMARKS), "benchmark")
    if limit is not None and limit < 1:
        raise UserError(f"option --limit is {limit}, it must be positive")
    protocol = BENCHMARKS[benchmark]
    if retrained and protocol.against_retrained is None:
        raise UserError(
            f"option --retrained: benchmark {benchmark!r} has no number that needs a retrained"
            " model"
        )
    display = display or Display(quiet=True)
    load_kwargs = {"trust_remote_code": trust_remote_code, "dtype": dtype_of(dtype)}
    folder = Path(output_dir)
    with display.stage(f"Reading {benchmark}"):
        sets = protocol.load(data, limit)
    roles = {"original": reference or model, "unlearned": model} | (
        {"retrained": retrained} if retrained else {}
    )
    with FolderLock(folder):
        measured = _measured(
            protocol, sets, roles, folder, engine, batch_size, load_kwargs, display
        )
        if not PartialState().is_main_process:
            return {}
        return _write(benchmark, roles, measured, folder, limit=limit, show_text=show_text)


def _measured(
    protocol: Benchmark,
    sets: Any,
    roles: Mapping[str, str],
    folder: Path,
    engine: str,
    batch_size: int | None,
    load_kwargs: Mapping[str, Any],
    display: Display,
) -> dict[str, Measured]:
    """What the protocol finds for each role's model; one model in two roles is measured once.
    `load_kwargs`: arguments of `load_model`.
    """
    measured: dict[str, Measured] = {}
    before: Any = None
    loaded: Any = None
    inner: Generator | None = None
    cached: Generator | None = None
    subject: EvaluatedModel | None = None
    for role, name in roles.items():
        same = next((earlier for earlier in measured if roles[earlier] == name), None)
        if same:
            measured[role] = measured[same]
            continue
        with display.stage(f"Measuring {name}") as stage:
            loaded = inner = cached = subject = None  # the one before makes room
            loaded = models.placed(models.load_model(name, **load_kwargs))
            tokenizer = models.load_tokenizer(
                name, trust_remote_code=load_kwargs["trust_remote_code"]
            )
            inner = TransformersGenerator(loaded, tokenizer, batch_size)
            if engine == "vllm":
                inner = VllmGenerator(models.resolve(name), tokenizer)
            cached = CachedGenerator(inner, folder / "work", models.weights_hash(loaded), engine)
            subject = EvaluatedModel(loaded, tokenizer, cached, before, stage.update, batch_size)
            measured[role] = protocol.measure(subject, sets)
            before = loaded if role == "original" else before
    if "retrained" in roles and protocol.against_retrained:
        for role in ("original", "unlearned"):
            for set_name, results in protocol.against_retrained(
                measured[role], measured["retrained"]
            ).items():
                measured[role].results.setdefault(set_name, {}).update(results)
    return measured


def _write(
    benchmark: str,
    roles: dict[str, str],
    measured: dict[str, Measured],
    folder: Path,
    *,
    limit: int | None,
    show_text: bool,
) -> dict[str, Any]:
    from unteach.reports.tables import benchmark_table

    evaluation = as_eval_json(
        benchmark,
        {role: found.results for role, found in measured.items()},
        metrics=METRICS | dict(BENCHMARKS[benchmark].metrics),
        sets=BENCHMARKS[benchmark].sets,
        names=roles,
        limit=limit,
    )
    records = [
        {
            "model": role,
            "set": name,
            "key": line.key,
            **(line.texts if show_text else {}),
            "metrics": line.metrics,
        }
        for role, found in measured.items()
        for name, lines in found.lines.items()
        for line in lines
    ]
    write_text_atomically(
        folder / "generations.jsonl",
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
    )
    write_json(folder / "eval.json", evaluation)
    write_text_atomically(folder / "benchmark.md", benchmark_table(evaluation).markdown())
    return evaluation
