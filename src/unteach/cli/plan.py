"""`unteach plan`: memory and time before a run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from unteach.cli.options import Command, with_words
from unteach.config.run import Precision, option, required, run_option
from unteach.plan import PlanOptions


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


COMMANDS = {"plan": Command(plan, PlanCommand, settings=True)}
