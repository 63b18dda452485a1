"""`unteach run`, `demo`, `compare` and `plan`: training runs from data to report, several of them
in one table, and what one takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from unteach.cli.options import Command, with_words
from unteach.config.run import Precision, RunConfig, option, required, run_option
from unteach.config.values import check_types, read_config
from unteach.errors import UserError
from unteach.plan import PlanOptions
from unteach.scenarios import SCENARIOS, embedded_scenario


@dataclass(frozen=True)
class RunCommand(RunConfig):
    """Options of `unteach run`: those of `RunConfig`, and what the command line alone has."""

    config: str | None = option(
        None, "YAML file with any of these options and fields of UnlearningConfig", positional=True
    )
    dry_run: bool = option(
        False, "print each option with its value and source; load no weights, write nothing"
    )


@dataclass(frozen=True)
class DemoCommand:
    """Options of `unteach demo`; all others of a run are given as `key=value`."""

    scenario: str = run_option(
        "scenario",
        default="copyright",
        help=f"what the model is taught and made to forget: {', '.join(SCENARIOS)}",
    )
    model: str = run_option("model", default="smollm2-135m-instruct")
    output_dir: str = run_option("output_dir", default="runs/demo")
    seed: int = run_option("seed")
    short: bool = option(False, "a smoke test: fewer passages, fewer steps, weaker result")
    hide_text: bool = option(False, "leave the forgotten texts out of the files")


DEMO_FIELDS = frozenset(item.name for item in fields(DemoCommand))


def run(given: dict[str, Any]) -> int:
    """Makes a model forget the completions of a file, or of several. Rows are {"prompt": ...,
    "completion": ...} (strings or message lists), {"messages": ...}, {"text": ...}, or of another
    shape of docs/reference/data.md; a row with a prompt only stands for the model's own answer to
    it. JSONL, JSON, CSV, Parquet, plain text (.txt), a saved data set or a Hugging Face dataset id.

    The model's own answers to neutral prompts are kept too, with or without --retain.

    All rows of the file are forgotten. How far that carries is measured on rows or prompts that the
    file does not hold: --unseen FILE. --hold-out 0.3 takes them from the file itself, the protocol
    of the paper: by hash, 70% of the rows are trained on, 10% are used by the probes that decide
    when to stop, and 20% are evaluated before and after, as "unseen".

    --topic NAME takes the place of --forget: the model is asked for what it says about the name,
    and about other things of its kind, which are kept. work/topic/ in the run's folder holds its
    answers, as files that --forget, --unseen and --neighbours take.

    What must be kept: --retain FILE, of which 20% are only measured, and --neighbours FILE, rows or
    prompts like the forgotten ones about other things, of which half are only measured. A row that
    is in the forget file too is forgotten. Of each prompt set at most 64 rows are evaluated.

    Unless you set them, the learning rate comes from the model's width (and --lora), and the run
    ends when the model's behaviour meets the target, at the latest after three epochs or a hundred
    steps, whichever is more. --dry-run shows all values.

    The same command again resumes an interrupted run.

      unteach run --model HuggingFaceTB/SmolLM2-135M-Instruct --forget bad.jsonl --out runs/a
      unteach run --model M --forget bad.jsonl --out runs/b --method ga_mismatch max_steps=200
      unteach run --model M --forget bad.jsonl --out runs/c --lora --method auto
      unteach run --model M --forget me.jsonl --neighbours others.jsonl --unseen more.jsonl --out d
      unteach run --model M --topic "Ada Lovelace" --out runs/ada
      unteach run settings.yaml out=runs/d lora=true
    """
    options = run_options(given)
    for name, label in (("model", "model"), ("forget", "forget"), ("output_dir", "out")):
        if not options.get(name) and not (name == "forget" and options.get("topic")):
            raise UserError(f"option --{label} is missing (or {label}: in the config file)")
    if given.get("dry_run"):
        return dry_run(options)
    from unteach.progress import Display
    from unteach.run.pipeline import unlearn

    display = Display()
    return _finish(unlearn(**options, display=display), display)


def run_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, flat: those of the config file under those of the command line."""
    from unteach.config.resolve import flat

    words, config = list(given.get("settings", [])), given.get("config")
    if config and "=" in config:
        words, config = [config, *words], None
    own = {k: v for k, v in given.items() if k not in ("config", "dry_run")}
    typed = flat(with_words({**own, "settings": words}))
    return {**flat(read_config(config) if config else {}), **typed}


def dry_run(options: Mapping[str, Any]) -> int:
    """Prints the resolved configuration with the source of each value."""
    from rich.console import Console
    from rich.table import Table

    from unteach import models
    from unteach.config.resolve import resolve
    from unteach.data.sources import load_rows
    from unteach.prepare.topic import first_prompts
    from unteach.scenarios.method_choice import method_for

    resolved = resolve(options)
    run = resolved.run
    if run.scenario:
        embedded_scenario(run.scenario)  # raises for an unknown name
    if resolved.sources["method"] == "default":
        rows = (
            first_prompts(run.topic)
            if run.topic
            else load_rows(run.forget, "forget", prompt_only=True)
        )
        resolved = resolved.with_rows(method=method_for(rows)[0])
    config = models.load_config(run.model, trust_remote_code=run.trust_remote_code)
    resolved = resolved.with_width(int(config.get_text_config().hidden_size))
    table = Table("option", "value", "source", box=None)
    for name, value, source in resolved.explained():
        table.add_row(name, "" if value is None else str(value), source)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    return 0


def demo(given: dict[str, Any]) -> int:
    """Teaches a small real model what it must not say (a story by heart, careless advice, false
    facts, personal data), makes it forget that, and shows its answers before and after. Everything
    it needs is in the package or downloaded once. The same command again resumes an interrupted
    demo.
    """
    from unteach.config.resolve import flat
    from unteach.progress import Display
    from unteach.run import pipeline

    settings = flat(with_words(given))
    own = {name: settings.pop(name) for name in list(settings) if name in DEMO_FIELDS}
    check_types(own, DemoCommand)
    options = DemoCommand(**own)
    display = Display()
    result = pipeline.demo(
        options.scenario,
        model=options.model,
        output_dir=options.output_dir,
        seed=options.seed,
        short=options.short,
        show_text=not options.hide_text,
        display=display,
        **settings,
    )
    return _finish(result, display)


def _finish(result: Any, display: Any) -> int:
    from unteach.reports.tables import print_evaluation

    print_evaluation(result.evaluation, display.console)
    display.print(f"Report: {result.output_dir / 'report.html'} (also report.md, and figures/)")
    return 0


# --- several methods in one table


@dataclass(frozen=True)
class CompareCommand:
    """Options of `unteach compare`."""

    config: str = required("config", help="YAML file: what to compare", positional=True)
    output_dir: str | None = run_option("output_dir", default=None)


def compare(given: dict[str, Any]) -> int:
    """Runs several methods on the same data and writes one table (Markdown, CSV, LaTeX), shaped as
    those of the paper. The YAML file:

      out: runs/compare
      models: [smollm2-135m-instruct]
      methods:
        [finetuning, ga_mismatch, templated, {name: mine, method: npo, learning_rate: 1e-4}]
      scenario: copyright        # an embedded scenario with its demo's settings; or instead
      forget: bad.jsonl          # your rows to forget, and
      retain: good.jsonl         # your rows to keep
      judge_as: hallucination    # scored as an embedded scenario is (default: leak rate)
      unseen: more.jsonl         # only measured: rows to forget that nothing trains on, and
      neighbours: others.jsonl   # rows like those to forget about other things (half of them kept)
      hold_out: 0.3              # share of the rows to forget that is held out (default: 0.3)
      limit: 200                 # at most this many rows to forget
      teach: {num_train_epochs: 5, learning_rate: 2e-4}   # teach the rows first, to a model that
                                 # does not know them
      seed: 0
      settings: {max_steps: 40}  # for all methods; with patience: N the baselines stop by it too
      short: false               # an embedded scenario's smaller version, for smoke tests

    The same command again resumes an interrupted comparison.
    """
    from unteach.compare import compare as run_comparison
    from unteach.progress import Display

    options = read_config(given["config"])
    if "output_dir" in given:
        options["out"] = given["output_dir"]
    display = Display()
    folder = run_comparison(options, display)
    display.print(f"Tables: {folder / 'comparison.md'} (also .csv and .tex)")
    return 0


# --- memory and time before a run


@dataclass(frozen=True, kw_only=True)
class PlanCommand(PlanOptions):
    """Options of `unteach plan`; others of a run are given as `key=value`."""

    model: str = required("model")
    method: str = run_option("method", help="method, see docs/reference/methods.md")
    lora: bool = run_option("lora")
    lora_rank: int = run_option("lora_rank")
    dtype: Precision = run_option("dtype")
    quantize: Literal["4bit"] | None = run_option("quantize")
    json: bool = option(False, "print JSON")
    trust_remote_code: bool = run_option("trust_remote_code")


def plan(given: dict[str, Any]) -> int:
    """Computes memory on each device and floating-point operations; loads and downloads no weights.
    docs/how-to/scaling.md says how.

      unteach plan --model meta-llama/Llama-2-7b-hf --lora --quantize 4bit --device gpu bf16=true
    """
    from unteach.config.resolve import flat
    from unteach.plan import plan_run

    options = flat(with_words(given))
    as_json = options.pop("json", False)
    where = {
        item.name: options.pop(item.name) for item in fields(PlanOptions) if item.name in options
    }
    found = plan_run(options.pop("model"), options, **where)
    if as_json:
        import json

        print(json.dumps(found, indent=2))
        return 0
    from rich.console import Console

    from unteach.reports.tables import print_plan

    print_plan(found, Console())
    return 0


COMMANDS = {
    "run": Command(run, RunCommand, settings=True),
    "demo": Command(demo, DemoCommand, settings=True),
    "compare": Command(compare, CompareCommand),
    "plan": Command(plan, PlanCommand, settings=True),
}
