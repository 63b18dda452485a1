"""What the command line takes: commands, options, `key=value` settings, and the checks on them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from unteach import __version__
from unteach.cli.parsers import add_chat_command, add_plan_command, add_request_commands
from unteach.config.values import read_yaml
from unteach.errors import UserError, did_you_mean

DESCRIPTION = """\
Makes a causal language model stop saying what it must not say, from negative examples alone, and shows that it worked.

  unteach demo --out runs/demo                                    see a real model forget, in minutes, on a laptop
  unteach check --forget bad.jsonl --retain good.jsonl --model M  what is wrong with this data, before an hour is spent
  unteach plan --model M --lora                                   how much memory and time a run will take
  unteach run --model M --forget bad.jsonl --out runs/mine        make M forget the completions in bad.jsonl
  unteach eval --model runs/mine/model --reference M --forget bad.jsonl --out runs/eval
  unteach compare methods.yaml                                    several methods on one model, one table
  unteach attack runs/mine                                        can what was forgotten be brought back?
  unteach chat M runs/mine/model                                  both models side by side, in the browser
  unteach request runs/ledger --forget more.jsonl                 one more request on the same model, the earlier ones kept
  unteach report runs/mine                                        tables, figures, one page and a model card, from what a run left
  unteach purge runs/mine                                         remove every derived copy of the texts, keep model and numbers
"""

RUN_HELP = """\
Makes a model forget the completions of a file. Rows are {"prompt": ..., "completion": ...} (strings or message lists) or
{"text": ...}; a row with a prompt only stands for the model's own answer to it. JSONL, JSON, CSV, Parquet, a plain-text book
(.txt) or a Hugging Face dataset id.
The model's own answers to neutral prompts are kept too, beside the rows of --retain or without any.

A run holds rows back, by hash, to show what it did: about 70% of the forget rows are unlearned, 10% are only asked by the probes
that decide when to stop, and 20% only before and after, as "unseen"; of the retain rows 20% are only asked, as "normal". Of the
unlearned, unseen and normal rows at most 64, 64 and 32 are asked. To forget all rows use `unteach request`.

Unless you name them, the learning rate comes from the model's width (and --lora), and the run is as long as it needs: it ends when
the model's behaviour says so, at the latest after three epochs or a hundred steps, whichever is more.

Started again with the same --out, a run goes on where it was interrupted.

  unteach run --model HuggingFaceTB/SmolLM2-135M-Instruct --forget bad.jsonl --retain good.jsonl --out runs/a
  unteach run --model M --forget bad.jsonl --out runs/b --method ga_mismatch learning_rate=1e-5 max_steps=200
  unteach run --model M --forget bad.jsonl --out runs/c --lora --method auto --search-minutes 20
  unteach run settings.yaml out=runs/d lora=true
"""

ATTACK_HELP = """\
Tries to bring back what a run made its model forget, on copies of the models; docs/attacks.md says what each number means.

  paraphrase, prefix, role_play, few_shot   the same question in other clothes
  sampling       many drawn answers instead of one greedy one
  quantization   weights rounded to 8 and 4 bits (extra: pip install 'unteach[quantization]')
  traces         likelihood of the forget rows, membership AUC
  relearning     fine-tuning on a few forget, related and unrelated rows
  distance       to a model trained without the forget set (--retrain or --retrained)

Writes attacks.json, figures/relearning.png and the report anew. Started again, it goes on where it was interrupted.

  unteach attack runs/demo
  unteach attack runs/mine --only relearning,sampling --steps 100
  unteach attack runs/demo --retrain
"""

COMPARE_HELP = """\
Runs several methods on the same data and writes one table (Markdown, CSV, LaTeX), shaped as those of the paper. The YAML file:

  out: runs/compare
  models: [smollm2-135m-instruct]
  methods: [finetuning, ga, ga_mismatch, templated, {name: ours, method: log_odds_mismatch, learning_rate: 1e-4}]
  scenario: copyright        # an embedded scenario with its demo's settings; or instead
  forget: bad.jsonl          # your rows to forget, and
  retain: good.jsonl         # your rows to keep
  judge_as: hallucination    # judged as an embedded scenario is (default: leak rate)
  limit: 200                 # at most so many rows to forget
  teach: {num_train_epochs: 5, learning_rate: 2e-4}   # teach the rows first, to a model that does not know them
  seed: 0
  settings: {max_steps: 40}  # fields of UnlearningConfig for all methods; with patience: N the baselines stop by the same rule
  short: false               # an embedded scenario's smaller version, for smoke tests

Started again, it goes on where it was interrupted.
"""

SCENARIO_NAMES = ("copyright", "harmfulness", "hallucination")
BENCHMARK_NAMES = ("tofu", "muse", "wmdp", "rwku")
HEADLINES = ("leak_rate", "harmful_rate", "hallucination_rate")
RUN_KEYS = (
    "model",
    "forget",
    "retain",
    "out",
    "method",
    "stages",
    "seed",
    "lora",
    "lora_rank",
    "dtype",
    "quantize",
    "frozen_layers",
    "recite_tokens",
    "search_minutes",
    "search_steps",
    "candidates",
    "show_text",
    "similarity_model",
    "scenario",
    "headline",
    "judge",
    "reward_model",
    "fluency_model",
    "trust_remote_code",
)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s: one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    """The parser, and that of each command by name."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="unteach", description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"unteach {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help=(
            "teach a small real model a story, bad advice or false facts, make it forget them, show"
            " both"
        ),
        description=(
            "Teaches a small real model what it must not say (a story by heart, careless advice,"
            " false facts), makes it forget\nthat, and shows what it says before and after."
            " Everything that it needs is in the package or fetched once.\nCtrl-C and the same"
            " command again go on where it was."
        ),
        formatter_class=raw,
    )
    demo.add_argument(
        "--scenario",
        default="copyright",
        help="which use: copyright, harmfulness or hallucination (default: %(default)s)",
    )
    demo.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="hub id, local folder or packaged name (default: %(default)s)",
    )
    demo.add_argument(
        "--out",
        default="runs/demo",
        help="folder for everything that it writes (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of order and mismatch draws (default: %(default)s)",
    )
    demo.add_argument(
        "--short",
        action="store_true",
        help="a smoke test: fewer passages, fewer steps, weaker result",
    )
    demo.add_argument(
        "--hide-text", action="store_true", help="leave the forgotten story's text out of the files"
    )
    demo.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="any field of UnlearningConfig, for example method=ga_mismatch",
    )

    run = commands.add_parser(
        "run",
        help="make a model forget the completions of a file",
        description=RUN_HELP,
        formatter_class=raw,
    )
    run.add_argument(
        "config",
        nargs="?",
        help="YAML file with any of the options below and fields of UnlearningConfig",
    )
    run.add_argument("--model", help="hub id, local folder or packaged name")
    run.add_argument("--forget", help="rows to forget")
    run.add_argument(
        "--retain", help="rows to keep, beside the model's own answers to neutral prompts"
    )
    run.add_argument(
        "--method",
        help=(
            "objective: see docs/methods.md (default: log_odds_mismatch); auto tries several and"
            " picks; on good answers: sft, dpo, rlhf"
        ),
    )
    run.add_argument(
        "--search-minutes",
        type=float,
        help="with --method auto: how long methods are tried (default: 10)",
    )
    run.add_argument(
        "--search-steps", type=int, help="with --method auto: steps of each trial (default: 20)"
    )
    run.add_argument(
        "--candidates",
        metavar="NAMES",
        help="with --method auto: the methods to try, with commas between them",
    )
    run.add_argument(
        "--stages",
        type=_yaml,
        metavar="MAPPING",
        help="settings of a baseline's stages: '{sft: {learning_rate: 1e-5}}'",
    )
    run.add_argument("--out", help="folder for everything that it writes")
    run.add_argument("--seed", type=int, help="seed (default: 0)")
    run.add_argument(
        "--lora",
        action="store_true",
        default=None,
        help="train an adapter on all linear layers instead of all weights",
    )
    run.add_argument("--lora-rank", type=int, help="rank of the adapter (default: 16)")
    run.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="with --lora: what the frozen weights are held in (float32)",
    )
    run.add_argument(
        "--quantize",
        choices=["4bit"],
        help="with --lora: the base model's frozen weights in 4 bits (QLoRA; a GPU)",
    )
    run.add_argument(
        "--frozen-layers",
        type=float,
        help="do not train the embedding and so many of the first layers (under 1: that share)",
    )
    run.add_argument(
        "--recite-tokens",
        type=int,
        help=(
            "let the model go on after each text row by so many tokens, and forget what it recites"
        ),
    )
    run.add_argument(
        "--show-text",
        action="store_true",
        default=None,
        help="let forget texts stand in generations.jsonl and the report",
    )
    run.add_argument(
        "--scenario",
        choices=SCENARIO_NAMES,
        help="judge the answers as this use does (default: leak rate)",
    )
    _add_scorers(run)
    run.add_argument(
        "--trust-remote-code",
        action="store_true",
        default=None,
        help="run code that comes with the model",
    )
    run.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="any field of UnlearningConfig, for example learning_rate=1e-5",
    )

    check = commands.add_parser(
        "check",
        help="what is wrong with this data, before an hour is spent on it",
        description=(
            "Reads the data as a run would and names every row that is wrong: missing columns,"
            " empty or too long completions,\nwrong encoding, rows in both sets, a forget and a"
            " retain set of different format.\nExit code 0: nothing found; 2: something is wrong."
        ),
        formatter_class=raw,
    )
    check.add_argument("--forget", required=True, help="rows to forget")
    check.add_argument("--retain", help="rows to keep")
    check.add_argument(
        "--model", help="also check token lengths and boundaries with this model's tokenizer"
    )
    check.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    check.add_argument(
        "--max-length",
        type=int,
        default=1024,
        help="most tokens of prompt and completion (default: %(default)s)",
    )

    evaluate = commands.add_parser(
        "eval",
        help="score a model, or a pair of models, on prompts",
        description=(
            "Lets models answer prompts greedily and scores the answers; writes eval.json and"
            " generations.jsonl."
        ),
        formatter_class=raw,
    )
    evaluate.add_argument("--model", required=True, help="the model after unlearning")
    evaluate.add_argument(
        "--reference", help="the model before (default: the same model, so nothing changes)"
    )
    evaluate.add_argument(
        "--scenario", choices=SCENARIO_NAMES, help="an embedded scenario's prompt sets and scorers"
    )
    evaluate.add_argument(
        "--benchmark",
        choices=BENCHMARK_NAMES,
        help="a benchmark of the field: its sets and numbers (docs/benchmarks.md)",
    )
    evaluate.add_argument(
        "--forget",
        "--data",
        dest="forget",
        help=(
            "rows that are to be forgotten: all are asked; with --benchmark: its folder, or files"
            " separated by commas (default: the hub)"
        ),
    )
    evaluate.add_argument(
        "--retrained",
        help=(
            "with --benchmark: a model trained without the forget set, for the numbers that"
            " need one"
        ),
    )
    evaluate.add_argument(
        "--limit", type=int, help="with --benchmark: at most so many rows of each set"
    )
    evaluate.add_argument("--retain", help="rows that are to be kept")
    _add_scorers(evaluate)
    evaluate.add_argument(
        "--engine",
        choices=["transformers", "vllm"],
        default="transformers",
        help="who generates (default: %(default)s)",
    )
    evaluate.add_argument(
        "--batch-size", type=int, help="prompts at a time (default: by the size of their cache)"
    )
    evaluate.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="what the models are held in (default: %(default)s)",
    )
    evaluate.add_argument("--out", required=True, help="folder for what it writes")
    evaluate.add_argument(
        "--show-text", action="store_true", help="let forget texts stand in generations.jsonl"
    )
    evaluate.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with a model"
    )

    compare = commands.add_parser(
        "compare",
        help="several methods, on one or more models, in one table",
        description=COMPARE_HELP,
        formatter_class=raw,
    )
    compare.add_argument("config", help="YAML file: what to compare")
    compare.add_argument("--out", help="folder for everything that it writes")

    attack = commands.add_parser(
        "attack",
        help="can what was forgotten be brought back?",
        description=ATTACK_HELP,
        formatter_class=raw,
    )
    attack.add_argument("folder", help="a finished run's folder")
    attack.add_argument(
        "--only",
        metavar="NAMES",
        help="some of the attacks, with commas between them (default: all)",
    )
    attack.add_argument(
        "--prompts",
        type=int,
        default=24,
        help="ask at most so many forget rows (default: %(default)s)",
    )
    attack.add_argument(
        "--steps", type=int, default=20, help="most steps of each relearning (default: %(default)s)"
    )
    attack.add_argument(
        "--every",
        type=int,
        default=4,
        help="steps between two measurements of a relearning (default: %(default)s)",
    )
    attack.add_argument(
        "--rows",
        type=int,
        default=4,
        help="rows that each relearning is given (default: %(default)s)",
    )
    attack.add_argument(
        "--learning-rate", type=float, default=5e-5, help="of the relearning (default: %(default)s)"
    )
    attack.add_argument(
        "--samples",
        type=int,
        default=8,
        help="answers drawn for each prompt (default: %(default)s)",
    )
    attack.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="at which they are drawn (default: %(default)s)",
    )
    attack.add_argument(
        "--retrain",
        action="store_true",
        help="teach the base model anew without the forget set (demos), to compare with",
    )
    attack.add_argument(
        "--retrained",
        metavar="MODEL",
        help="compare with this model, trained without the forget set",
    )
    attack.add_argument(
        "--forget", help="where the rows to forget are now, if they have moved since the run"
    )
    attack.add_argument("--retain", help="where the rows to keep are now")
    attack.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of samples and of the order in relearning (default: %(default)s)",
    )
    attack.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )

    report = commands.add_parser(
        "report",
        help="tables, figures, one self-contained page and a model card of a run's folder",
        description=(
            "Writes report.md, report.html, figures/ and README.md (the model card) anew from what"
            " a run left in its folder."
        ),
        formatter_class=raw,
    )
    report.add_argument("folder", help="a run's folder")

    purge = commands.add_parser(
        "purge",
        help=(
            "remove every derived copy of the texts from an output folder, keep the model and the"
            " numbers"
        ),
        description=(
            "Removes answers, checkpoints, states of the reference model, a taught model and the"
            " texts in generations.jsonl;\nwrites the report and the card anew without them. model/"
            " or adapter/, eval.json, run.json and metrics.jsonl stay.\nYour own files are not"
            " touched."
        ),
        formatter_class=raw,
    )
    purge.add_argument(
        "folder", help="the folder of a run, an evaluation, a comparison or a ledger of requests"
    )
    add_plan_command(commands)
    add_request_commands(commands)
    add_chat_command(commands)
    return parser, commands.choices


def _add_scorers(command: argparse.ArgumentParser) -> None:
    """The options that name scorers."""
    command.add_argument(
        "--headline", choices=HEADLINES, help="the rate that decides (default: the scenario's)"
    )
    command.add_argument(
        "--judge",
        help=(
            "who says what is harmful: trained, or a text-classification model (default: the"
            " scenario's)"
        ),
    )
    command.add_argument(
        "--reward-model",
        help="who scores usefulness: trained, or a reward model (default: the scenario's)",
    )
    command.add_argument(
        "--similarity-model",
        help=(
            "sentence encoder for normal answers, or bleurt:CHECKPOINT (default: all-minilm-l6-v2)"
        ),
    )
    command.add_argument(
        "--fluency-model",
        help="language model that scores fluency (default: the model before any change)",
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; `key=value` words may stand anywhere among the options."""
    parser, commands = build_parser()
    arguments, words = parser.parse_known_args(argv)
    takes_settings = hasattr(arguments, "settings")
    for word in words:
        if word.startswith("-"):
            usage = (commands[arguments.command] if arguments.command else parser).format_usage()
            raise _unknown_option(
                word.partition("=")[0], ["--help", *re.findall(r"--[a-z-]+", usage)], takes_settings
            )
        if not takes_settings:
            parser.error(f"{word!r} is not an option")
        arguments.settings = [*arguments.settings, word]
    if arguments.command is None:
        parser.print_help()
    return arguments


def _unknown_option(name: str, known: list[str], takes_settings: bool) -> UserError:
    """The error for an option of no command, which may be a field of `UnlearningConfig` written
    with dashes.
    """
    if takes_settings:
        from difflib import get_close_matches

        from unteach.config.unlearning import UnlearningConfig

        near = get_close_matches(
            name.strip("-").replace("-", "_"),
            UnlearningConfig.__dataclass_fields__,
            n=1,
            cutoff=0.8,
        )
        if near:
            return UserError(
                f"unknown option {name!r}: did you mean {near[0]}=VALUE, without dashes?"
            )
    return did_you_mean(name, known, "option")


def _yaml(text: str) -> Any:
    """An option's value as YAML."""
    try:
        return read_yaml(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:200]!r} is not YAML ({error})") from None
