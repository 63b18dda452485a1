"""`unteach eval`: score models that are there already."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from unteach.cli.options import Command
from unteach.config.run import Finder, Headline, Precision, option, required, run_option
from unteach.errors import UserError
from unteach.scenarios import SCENARIOS


@dataclass(frozen=True)
class EvalCommand:
    """Options of `unteach eval`."""

    model: str = required("model", help="model after unlearning")
    output_dir: str = required("output_dir")
    reference: str | None = option(
        None, "model before; default: the same model, so nothing changes"
    )
    scenario: str | None = run_option(
        "scenario", help=f"prompt sets and scorers of a scenario: {', '.join(SCENARIOS)}"
    )
    benchmark: Literal["tofu", "muse", "wmdp", "rwku"] | None = option(
        None, "a benchmark of the field: its sets and numbers (docs/how-to/benchmarks.md)"
    )
    harness: str | None = option(
        None,
        "tasks of lm-evaluation-harness separated by commas, such as arc_easy,hellaswag: general"
        " capability, instead of prompts (extra: pip install 'unteach[harness]')",
    )
    forget: Any = run_option(
        "forget",
        help="rows to forget: all are evaluated; with --benchmark: its folder, or files separated"
        " by commas (default: the hub)",
        also=("--data",),
    )
    retain: Any = run_option("retain", help="rows to keep")
    unseen: Any = run_option("unseen", help="rows or prompts whose answers must be forgotten too")
    neighbours: Any = run_option(
        "neighbours", help="rows or prompts like the forgotten ones about other things"
    )
    secrets: Finder = run_option("secrets")
    retrained: str | None = option(
        None, "with --benchmark: model trained without the forget set, for numbers that need one"
    )
    limit: int | None = option(
        None, "with --benchmark or --harness: at most this many rows of each set"
    )
    headline: Headline | None = run_option("headline")
    judge: str | None = run_option("judge")
    reward_model: str | None = run_option("reward_model")
    similarity_model: str | None = run_option("similarity_model")
    fluency_model: str | None = run_option("fluency_model")
    engine: Literal["transformers", "vllm"] = option("transformers", "what generates the answers")
    batch_size: int | None = option(
        None, "prompts in a batch; default: by the size of their cache", minimum=1
    )
    dtype: Precision = run_option("dtype", help="precision of the models")
    system: str | None = run_option("system", help="system prompt of rows that have none")
    chat_template_kwargs: dict[str, Any] | None = run_option("chat_template_kwargs", default=None)
    chat_date: str | None = run_option(
        "chat_date", help="day, as YYYY-MM-DD, that a chat template is told; default: today"
    )
    max_new_tokens: int | None = run_option("max_new_tokens")
    show_text: bool = run_option("show_text", help="write forget texts to generations.jsonl")
    trust_remote_code: bool = run_option("trust_remote_code")


SCORERS = {
    "headline": "headline",
    "judge": "judge",
    "reward_model": "reward",
    "similarity_model": "similarity",
    "fluency_model": "fluency",
}
ROWS = ("scenario", "forget", "retain", "unseen", "neighbours", "secrets")


def evaluate(given: dict[str, Any]) -> int:
    """Generates the models' answers greedily and scores them; writes eval.json and
    generations.jsonl.
    """
    options = EvalCommand(**given)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"option --batch-size is {options.batch_size}, it must be positive")
    if options.harness is not None:
        for name in ("benchmark", "forget", "retrained"):
            if name in given:
                raise UserError(f"option --harness does not go with --{name}: leave one out")
        return _benchmark("harness", options.harness, options, given)
    if options.benchmark:
        files = options.forget
        data = ",".join(files) if isinstance(files, list) else files
        return _benchmark(options.benchmark, data, options, given)
    return _models(options, given)


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    """What was given of the options that both kinds of evaluation have."""
    from unteach.evaluate import EvalOptions

    names = [item.name for item in fields(EvalOptions)]
    return {name: given[name] for name in names if name in given}


def _models(options: EvalCommand, given: dict[str, Any]) -> int:
    for name in ("retrained", "limit"):
        if name in given:
            raise UserError(f"option --{name} needs --benchmark or --harness")
    if not options.scenario and not options.forget:
        raise UserError("give --scenario, or --forget with the rows to evaluate")
    from unteach.evaluate import evaluate_models
    from unteach.progress import Display
    from unteach.reports.tables import print_evaluation

    display = Display()
    evaluation = evaluate_models(
        options.model,
        options.reference,
        **{name: getattr(options, name) for name in ROWS},
        display=display,
        **_shared(given),
        scorers={scorer: given[name] for name, scorer in SCORERS.items() if name in given},
    )
    if evaluation:
        print_evaluation(evaluation, display.console)
    return 0


def _benchmark(name: str, data: str | None, options: EvalCommand, given: dict[str, Any]) -> int:
    for other in ("scenario", "retain", "unseen", "neighbours", "secrets", *SCORERS):
        if other in given:
            raise UserError(
                f"option --{other.replace('_', '-')} does not go with --benchmark or --harness,"
                " which have their own sets and numbers: leave one of them out"
            )
    from unteach.evaluate import evaluate_benchmark
    from unteach.progress import Display
    from unteach.reports.tables import benchmark_table

    display = Display()
    evaluation = evaluate_benchmark(
        name,
        options.model,
        options.reference,
        retrained=options.retrained,
        data=data,
        limit=options.limit,
        display=display,
        **_shared(given),
    )
    if evaluation:
        benchmark_table(evaluation).print(display.console, name.upper())
    return 0


COMMANDS = {"eval": Command(evaluate, EvalCommand)}
