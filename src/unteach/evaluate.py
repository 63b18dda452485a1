"""`unteach eval`: a model, and the one before it, asked and scored without any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unteach import models
from unteach.config.scorers import ScorerNames
from unteach.data.sources import load_rows
from unteach.errors import UserError
from unteach.evaluation.generation import Generator, TransformersGenerator
from unteach.evaluation.generators import CachedGenerator, VllmGenerator
from unteach.evaluation.metrics import is_forget_set
from unteach.evaluation.scorers import build_scorers, check_right_answers
from unteach.evaluation.scoring import FluencyModel, Generations, generate_sets, score_models
from unteach.files.folders import FolderLock
from unteach.models.precision import dtype_of
from unteach.progress import Display
from unteach.scenarios import build_scenario
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, prompt_rows
from unteach.scenarios.user_rows import with_unrelated

ENGINES = ("transformers", "vllm")


def evaluation_scenario(scenario: str | None, forget: Any, retain: Any) -> Scenario:
    """The prompt sets to ask: an embedded scenario's, a user's rows (all of them), or a user's rows
    judged as an embedded scenario's are.

    Args:
        scenario (`str`, *optional*): name of an embedded scenario.
        forget, retain (*optional*): rows of the sets `unlearned` and `retain`, instead of the
            scenario's.
    """
    built = build_scenario(scenario) if scenario else None
    if forget is None and retain is not None:
        raise UserError(
            "option --retain needs --forget: an embedded scenario has rows of its own to keep"
        )
    if built and forget is None:
        return built
    rows = load_rows(forget, "forget")
    sets = {"unlearned": rows}
    if retain is not None:
        sets["retain"] = load_rows(retain, "retain")
    sets["normal"] = prompt_rows("neutral_prompts")[-20:]
    return Scenario(
        name=scenario or "eval",
        forget=rows,
        validation=[],
        retain=[],
        sets=sets,
        leak_corpus=with_unrelated(rows),
        labelled=labelled_answers(),
        scorers=built.scorers if built else ScorerNames(),
    )


def evaluate_models(
    model: str,
    reference: str | None,
    *,
    scenario: str | None = None,
    forget: Any = None,
    retain: Any = None,
    output_dir: str,
    engine: str = "transformers",
    batch_size: int | None = None,
    show_text: bool = False,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    display: Display | None = None,
    **scorers: Any,
) -> dict[str, Any]:
    """Asks and scores a model (and the one before it) without training; writes `eval.json` and
    `generations.jsonl`.

    Answers are kept in `work/` of the folder: asked again, with another scorer or after an
    interruption, no prompt is answered twice by the same model.

    Args:
        model, reference (`str`): the model after and before; without a reference both columns are
            the same model.
        scenario (`str`, *optional*): an embedded scenario whose prompt sets and scorers are used.
        forget, retain (*optional*): rows of the sets `unlearned` and `retain` instead.
        output_dir (`str`)
        engine (`str`): `transformers`, or `vllm`.
        batch_size (`int`, *optional*): prompts at a time; default: by the size of their cache
        show_text (`bool`): whether forget texts are written.
        trust_remote_code (`bool`): run code that comes with a model.
        dtype (`str`): what the models are held in, `float32` or `bfloat16`.
        display (`Display`, *optional*)
        scorers: fields of `ScorerNames` that replace the scenario's.

    Raises:
        UserError: for rows to keep without rows to forget, and for a model that cannot be had.
    """
    display = display or Display(quiet=True)
    folder = Path(output_dir)
    how = {"trust_remote_code": trust_remote_code, "dtype": dtype_of(dtype)}
    with FolderLock(folder):
        return _evaluate(
            model,
            reference,
            folder,
            scenario,
            forget,
            retain,
            engine,
            batch_size,
            show_text,
            how,
            display,
            scorers,
        )


def _evaluate(
    model: str,
    reference: str | None,
    folder: Path,
    scenario: str | None,
    forget: Any,
    retain: Any,
    engine: str,
    batch_size: int | None,
    show_text: bool,
    how: Mapping[str, Any],
    display: Display,
    scorers: Mapping[str, Any],
) -> dict[str, Any]:
    """What `evaluate_models` does once the folder is its own; `how`: arguments of `load_model`."""
    from accelerate import PartialState

    built = evaluation_scenario(scenario, forget, retain)
    names = replace(built.scorers, **scorers)
    check_right_answers(
        names, [row for name, rows in built.sets.items() if is_forget_set(name) for row in rows]
    )
    with display.stage("Preparing the scorers"):
        judges = build_scorers(names, built.leak_corpus, built.labelled, display.print)
    roles = {"original": reference or model, "unlearned": model}
    said: dict[str, Generations] = {}
    tokenizer: Any = None
    loaded: Any = None
    inner: Generator | None = None
    cached: Generator | None = None
    trust_remote_code = how["trust_remote_code"]
    for role, name in roles.items():
        if role == "unlearned" and name == roles["original"]:
            said[role] = said["original"]
            continue
        with display.stage(f"Asking {name}", sum(map(len, built.sets.values()))) as stage:
            loaded = inner = cached = None  # the one before makes room
            loaded = models.placed(models.load_model(name, **how))
            tokenizer = models.load_tokenizer(name, trust_remote_code=trust_remote_code)
            inner = TransformersGenerator(loaded, tokenizer, batch_size)
            if engine == "vllm":
                inner = VllmGenerator(models.resolve(name), tokenizer)
            cached = CachedGenerator(inner, folder / "work", models.weights_hash(loaded), engine)
            said[role] = generate_sets(
                loaded, tokenizer, built.sets, generator=cached, progress=stage.update
            )
    loaded = inner = cached = None
    fluency = names.fluency or roles["original"]
    if not PartialState().is_main_process:
        return {}
    with display.stage("Scoring the answers") as stage:
        return score_models(
            built.name,
            built.sets,
            said,
            tokenizer,
            judges,
            fluency=FluencyModel(
                fluency,
                models.placed(models.load_model(fluency, **how)),
                models.load_tokenizer(fluency, trust_remote_code=trust_remote_code),
            ),
            show_text=show_text,
            folder=folder,
            progress=stage.update,
        )
