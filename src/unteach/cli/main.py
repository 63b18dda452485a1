"""The command line: `unteach demo | run | plan | check | eval | compare | attack | report | purge |
request | requests | chat`.

A user's mistake is one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from unteach.cli.arguments import RUN_KEYS, SCENARIO_NAMES, parse_arguments
from unteach.cli.exit_codes import SEVERAL, check_launch, exit_code
from unteach.config.values import check_types, checked_settings, parse_settings, read_yaml
from unteach.errors import UserError, did_you_mean
from unteach.processes import destroy_process_group


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in (
        "torchao",
        "torch.utils",
    ):  # transformers imports torchao where it is installed, which names every GPU kernel it misses
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.scenario not in SCENARIO_NAMES:
        raise did_you_mean(arguments.scenario, list(SCENARIO_NAMES), "scenario")
    _quiet_libraries()
    from unteach.config.run import RunOptions
    from unteach.progress import Display
    from unteach.run.pipeline import Run
    from unteach.scenarios.registry import build_scenario, demo_options

    display = Display()
    options = demo_options(
        arguments.scenario,
        model=arguments.model,
        output_dir=arguments.out,
        seed=arguments.seed,
        short=arguments.short,
        settings=checked_settings(parse_settings(arguments.settings)),
        show_text=not arguments.hide_text,
    )
    result = Run(
        build_scenario(arguments.scenario, short=arguments.short), RunOptions(**options), display
    ).execute()
    return _finish(result, display)


def _finish(result: Any, display: Any) -> int:
    from unteach.reports.tables import print_table

    print_table(result.evaluation, display.console)
    display.say(f"Report: {result.output_dir / 'report.html'} (also report.md, and figures/)")
    return 0


def read_config(path: str) -> dict[str, Any]:
    """The options of a YAML file, by their names with underscores."""
    try:
        with open(path, encoding="utf-8") as file:
            options = read_yaml(file.read()) or {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"config {path!r} could not be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(options, dict):
        raise UserError(f"config {path!r} must be a mapping of options")
    return {str(name).replace("-", "_"): value for name, value in options.items()}


def _run(arguments: argparse.Namespace) -> int:
    options: dict[str, Any] = {}
    words = list(arguments.settings)
    if arguments.config and "=" in arguments.config:
        words.insert(0, arguments.config)
    elif arguments.config:
        options = read_config(arguments.config)
    options |= {
        name: getattr(arguments, name)
        for name in RUN_KEYS
        if getattr(arguments, name, None) is not None
    }
    options |= parse_settings(words)
    for name in ("model", "forget", "out"):
        if not options.get(name):
            raise UserError(f"option --{name} is missing (or {name}: in the config file)")
    own = {name: options.pop(name) for name in RUN_KEYS if name in options}
    method = own.pop("method", None)
    _quiet_libraries()
    settings = checked_settings(options | ({"method": method} if method else {}), RUN_KEYS)
    from unteach.config.run import RunOptions
    from unteach.progress import Display
    from unteach.run.pipeline import unlearn

    check_types(
        {name: value for name, value in own.items() if name in RunOptions.__dataclass_fields__},
        RunOptions,
    )
    check_types({"output_dir": own["out"]}, RunOptions)
    display = Display()
    result = unlearn(
        own.pop("model"),
        own.pop("forget"),
        own.pop("retain", None),
        output_dir=own.pop("out"),
        display=display,
        **own,
        **settings,
    )
    return _finish(result, display)


def _check(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from unteach.data.check import check_files

    tokenizer = None
    if arguments.model:
        _quiet_libraries()
        from unteach.models import load_tokenizer

        tokenizer = load_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)
    report = check_files(
        arguments.forget, arguments.retain, tokenizer, max_length=arguments.max_length
    )
    console = Console(highlight=False, soft_wrap=True)
    for line in report.summary:
        console.print(escape(line))
    for problem in report.problems:
        console.print(f"[red]wrong[/red]  {escape(problem)}")
    for warning in report.warnings:
        console.print(f"[yellow]beware[/yellow] {escape(warning)}")
    console.print(
        "Nothing wrong found."
        if not report.problems
        else f"{len(report.problems)} problem(s) found."
    )
    return 2 if report.problems else 0


def _benchmark(arguments: argparse.Namespace) -> int:
    clashing = {
        "--scenario": arguments.scenario,
        "--retain": arguments.retain,
        "--headline": arguments.headline,
        "--judge": arguments.judge,
        "--reward-model": arguments.reward_model,
        "--similarity-model": arguments.similarity_model,
        "--fluency-model": arguments.fluency_model,
    }
    for option, value in clashing.items():
        if value is not None:
            raise UserError(
                f"option {option} does not go with --benchmark, which has its own sets and numbers:"
                " leave one of them out"
            )
    _quiet_libraries()
    from unteach.evaluate_benchmark import evaluate_benchmark
    from unteach.progress import Display
    from unteach.reports.tables import print_benchmark

    display = Display()
    evaluation = evaluate_benchmark(
        arguments.benchmark,
        arguments.model,
        arguments.reference,
        retrained=arguments.retrained,
        data=arguments.forget,
        limit=arguments.limit,
        output_dir=arguments.out,
        engine=arguments.engine,
        batch_size=arguments.batch_size,
        show_text=arguments.show_text,
        trust_remote_code=arguments.trust_remote_code,
        dtype=arguments.dtype,
        display=display,
    )
    if evaluation:
        print_benchmark(evaluation, display.console)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"option --batch-size is {arguments.batch_size}, it must be positive")
    if arguments.benchmark:
        return _benchmark(arguments)
    for option, value in {"--retrained": arguments.retrained, "--limit": arguments.limit}.items():
        if value is not None:
            raise UserError(f"option {option} needs --benchmark")
    if not arguments.scenario and not arguments.forget:
        raise UserError("give --scenario, or --forget with the rows to ask")
    _quiet_libraries()
    from unteach.evaluate import evaluate_models
    from unteach.progress import Display
    from unteach.reports.tables import print_table

    display = Display()
    scorers = {
        "headline": arguments.headline,
        "judge": arguments.judge,
        "reward": arguments.reward_model,
        "similarity": arguments.similarity_model,
        "fluency": arguments.fluency_model,
    }
    evaluation = evaluate_models(
        arguments.model,
        arguments.reference,
        scenario=arguments.scenario,
        forget=arguments.forget,
        retain=arguments.retain,
        output_dir=arguments.out,
        engine=arguments.engine,
        batch_size=arguments.batch_size,
        show_text=arguments.show_text,
        trust_remote_code=arguments.trust_remote_code,
        dtype=arguments.dtype,
        display=display,
        **{name: value for name, value in scorers.items() if value is not None},
    )
    if evaluation:
        print_table(evaluation, display.console)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    options = read_config(arguments.config)
    if arguments.out:
        options["out"] = arguments.out
    _quiet_libraries()
    from unteach.compare import compare
    from unteach.progress import Display

    display = Display()
    folder = compare(options, display)
    display.say(f"Tables: {folder / 'comparison.md'} (also .csv and .tex)")
    return 0


def _attack(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    _quiet_libraries()
    from unteach.attacks.options import AttackOptions
    from unteach.attacks.suite import attack
    from unteach.progress import Display
    from unteach.reports.attacks import print_attacks

    names = {name: getattr(arguments, name) for name in AttackOptions.__dataclass_fields__}
    options = AttackOptions(**{**names, "only": arguments.only or ()})
    display = Display()
    found = attack(
        arguments.folder,
        options,
        forget=arguments.forget,
        retain=arguments.retain,
        trust_remote_code=arguments.trust_remote_code,
        display=display,
    )
    print_attacks(found, display.console)
    display.say(
        f"Report: {Path(arguments.folder) / 'report.html'} (also attacks.json, and"
        " figures/relearning.png)"
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from unteach.reports.report import write_report

    try:
        page = write_report(Path(arguments.folder)).with_suffix(".html")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        kind = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{arguments.folder}: its files are broken or from another version ({kind}); run the"
            " command that wrote them"
        ) from error
    print(f"Report: {page}")
    return 0


def _purge(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from unteach.purge import purge, set_aside_copies

    removed = purge(Path(arguments.folder))
    for line in removed:
        print(f"removed  {line}")
    print("The model and the numbers stay." if removed else "Nothing to remove.")
    for other in set_aside_copies(Path(arguments.folder)):
        print(f"There is an earlier run set aside as {other}: purge it too.")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    _quiet_libraries()
    from unteach.plan import plan_run

    if arguments.tflops is not None and not arguments.tflops > 0:
        raise UserError(f"option --tflops is {arguments.tflops}, it must be positive")
    if arguments.lora and arguments.lora_rank < 1:
        raise UserError(f"option --lora-rank is {arguments.lora_rank}, it must be positive")
    settings = checked_settings(parse_settings(arguments.settings))
    if arguments.method:
        settings["method"] = arguments.method
    names = (
        "forget_rows",
        "retain_rows",
        "prompt_tokens",
        "completion_tokens",
        "retain_prompt_tokens",
        "retain_completion_tokens",
    )
    plan = plan_run(
        arguments.model,
        settings,
        lora_rank=arguments.lora_rank if arguments.lora else 0,
        quantized=bool(arguments.quantize),
        dtype=arguments.dtype,
        device=arguments.device,
        processes=arguments.processes,
        trust_remote_code=arguments.trust_remote_code,
        sharding=arguments.sharding,
        rates=[arguments.tflops] if arguments.tflops else [0.1, 100.0],
        **{name: getattr(arguments, name) for name in names},
    )
    if arguments.json:
        import json

        print(json.dumps(plan, indent=2))
        return 0
    from rich.console import Console

    from unteach.reports.tables import print_plan

    print_plan(plan, Console())
    return 0


def _request(arguments: argparse.Namespace) -> int:
    settings = checked_settings(parse_settings(arguments.settings))
    if arguments.method:
        settings["method"] = arguments.method
    _quiet_libraries()
    from unteach.progress import Display
    from unteach.requests.forget_requests import forget_request

    display = Display()
    names = ("model", "full", "target", "rounds", "seed", "lora_rank", "trust_remote_code")
    chosen = {name: getattr(arguments, name) for name in names}
    entry = forget_request(
        arguments.folder, arguments.forget, arguments.retain, display=display, **chosen, **settings
    )
    earlier = [f"{rate:.0%} of request {number}" for number, rate in entry["earlier"].items()]
    still = f"; of the earlier ones: {', '.join(earlier)}" if earlier else ""
    display.say(
        f"Request {entry['id']}: {entry['metric']} {entry['before']:.0%} ->"
        f" {entry['after']:.0%}{still}."
    )
    return 0


def _requests(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from unteach.reports.tables import print_requests
    from unteach.requests.ledger import read_ledger

    folder = Path(arguments.folder)
    if arguments.remove is not None or arguments.restore is not None:
        _quiet_libraries()
        from unteach.progress import Display
        from unteach.requests.forget_requests import change_patch

        out = arguments.remove is not None
        number = arguments.remove if out else arguments.restore
        change_patch(
            folder,
            number,
            remove=out,
            trust_remote_code=arguments.trust_remote_code,
            display=Display(),
        )
    elif arguments.merge:
        _quiet_libraries()
        from unteach.requests.forget_requests import merge_patches

        merge_patches(folder, arguments.merge, trust_remote_code=arguments.trust_remote_code)
        print(f"Model: {arguments.merge}")
    ledger = read_ledger(folder)
    if not ledger.entries:
        raise UserError(f"{folder} has no requests (requests.jsonl is missing or empty)")
    from rich.console import Console

    print_requests(ledger.entries, ledger.removed, Console())
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    _quiet_libraries()
    from unteach.chat.server import serve
    from unteach.progress import Display

    names = ("port", "max_new_tokens", "trust_remote_code", "dtype")
    serve(
        arguments.before,
        arguments.after,
        display=Display(),
        **{name: getattr(arguments, name) for name in names},
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    commands = {
        "demo": _demo,
        "run": _run,
        "check": _check,
        "eval": _eval,
        "compare": _compare,
        "attack": _attack,
        "report": _report,
        "purge": _purge,
        "plan": _plan,
        "request": _request,
        "requests": _requests,
        "chat": _chat,
    }

    def command() -> int:
        arguments = parse_arguments(argv)
        check_launch(arguments.command)
        code = commands[arguments.command](arguments) if arguments.command else 2
        if arguments.command in SEVERAL:
            destroy_process_group()
        return code

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
