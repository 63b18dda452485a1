"""The options of the commands `plan`, `request`, `requests` and `chat`."""

from __future__ import annotations

import argparse
from typing import Any

REQUEST_HELP = """\
One forget request after another on the same model. A request goes on from the model that the last one left, is measured, and the requests
before it are asked again: what came back is forgotten once more, together with the new rows. A line of DIR/requests.jsonl records it.

Each request trains an adapter, a patch that can be taken out later (--full: all weights, which cannot). The first request names the model.
Started again with the same rows, a request goes on where it was interrupted.

  unteach request runs/ledger --model HuggingFaceTB/SmolLM2-135M-Instruct --forget monday.jsonl
  unteach request runs/ledger --forget tuesday.jsonl learning_rate=2e-4 max_steps=40
  unteach requests runs/ledger
"""
REQUESTS_HELP = """\
Lists the forget requests of a folder; takes a patch out or puts it back; writes the model with the patches that hold.

  unteach requests runs/ledger                    the ledger as a table
  unteach requests runs/ledger --remove 2         the model as if request 2 had never been trained
  unteach requests runs/ledger --restore 2
  unteach requests runs/ledger --merge runs/model a whole model; without it DIR/adapter is the sum of the patches
"""


def add_request_commands(commands: Any) -> None:
    """Adds both commands to the parser's `commands`."""
    raw = argparse.RawDescriptionHelpFormatter
    one = commands.add_parser(
        "request",
        help="one more forget request on the same model, the earlier ones kept",
        description=REQUEST_HELP,
        formatter_class=raw,
    )
    one.add_argument("folder", help="folder of the ledger and of all that the requests leave")
    one.add_argument(
        "--forget",
        required=True,
        help="rows to forget: all of them are trained on, none is held out",
    )
    one.add_argument(
        "--retain", help="rows to keep, beside the model's own answers to neutral prompts"
    )
    one.add_argument(
        "--model", help="hub id, local folder or packaged name; needed for the first request"
    )
    one.add_argument(
        "--full",
        action="store_true",
        help="train all weights instead of an adapter (for all requests of a folder)",
    )
    one.add_argument(
        "--lora-rank", type=int, default=16, help="rank of the adapter (default: %(default)s)"
    )
    one.add_argument(
        "--target",
        type=float,
        default=0.03,
        help="rate above which an earlier request has come back (default: %(default)s)",
    )
    one.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="trainings that a request may take (default: %(default)s)",
    )
    one.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    one.add_argument("--method", help="objective: see docs/methods.md (default: unlikelihood)")
    one.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    one.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="any field of UnlearningConfig, for example learning_rate=1e-4",
    )

    several = commands.add_parser(
        "requests",
        help="list the forget requests of a folder, take a patch out or put it back",
        description=REQUESTS_HELP,
        formatter_class=raw,
    )
    several.add_argument("folder", help="folder of the ledger")
    which = several.add_mutually_exclusive_group()
    which.add_argument("--remove", type=int, metavar="ID", help="take this request's patch out")
    which.add_argument("--restore", type=int, metavar="ID", help="put it back")
    which.add_argument(
        "--merge", metavar="OUT", help="write the whole model with all patches that hold"
    )
    several.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )


def add_chat_command(commands: Any) -> None:
    """Adds `chat` to the parser's `commands`."""
    chat = commands.add_parser(
        "chat",
        help="two models side by side, in the browser",
        description=(
            "Loads both models and serves one page on 127.0.0.1, which asks both the same question."
            " Nothing leaves this machine,\nnothing that is asked is stored.\n\n  unteach chat"
            " runs/demo/original runs/demo/model"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.add_argument("before", help="the model before: hub id, local folder or packaged name")
    chat.add_argument("after", help="the model after")
    chat.add_argument(
        "--port", type=int, default=8377, help="0 takes a free one (default: %(default)s)"
    )
    chat.add_argument(
        "--max-new-tokens",
        type=int,
        default=120,
        help="most tokens of an answer (default: %(default)s)",
    )
    chat.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="what the models are held in (default: %(default)s)",
    )
    chat.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with a model"
    )


def add_plan_command(commands: Any) -> None:
    """Adds `plan` to the parser's `commands`."""
    plan = commands.add_parser(
        "plan",
        help="how much memory and time a run will take, from the model's configuration alone",
        description=(
            "Computes memory on each device and floating-point operations; loads and downloads no"
            " weights.\ndocs/scaling.md says how.\n\n  unteach plan --model"
            " meta-llama/Llama-2-7b-hf --lora --quantize 4bit --device gpu bf16=true"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("--model", required=True, help="hub id, local folder or packaged name")
    plan.add_argument("--method", help="objective (default: log_odds_mismatch)")
    plan.add_argument(
        "--lora", action="store_true", help="an adapter on all linear layers instead of all weights"
    )
    plan.add_argument(
        "--lora-rank", type=int, default=16, help="rank of the adapter (default: %(default)s)"
    )
    plan.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="what frozen weights are held in (with --lora)",
    )
    plan.add_argument(
        "--quantize",
        choices=["4bit"],
        help="the frozen weights of linear layers in 4 bits (with --lora)",
    )
    plan.add_argument(
        "--device",
        choices=["cpu", "gpu"],
        default="cpu",
        help="where it runs (default: %(default)s)",
    )
    plan.add_argument(
        "--processes",
        type=int,
        default=1,
        help="devices that it is spread over (default: %(default)s)",
    )
    plan.add_argument(
        "--sharding",
        choices=["none", "fsdp2"],
        default="none",
        help="what they share (default: %(default)s)",
    )
    for name, default, text in (
        ("forget-rows", 64, "rows to forget"),
        ("retain-rows", 64, "rows to keep"),
        ("prompt-tokens", 20, "mean tokens of a forget row's prompt"),
        ("completion-tokens", 40, "of its completion"),
        ("retain-prompt-tokens", 20, "of a retain row's prompt"),
        ("retain-completion-tokens", 13, "of its completion"),
    ):
        plan.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)"
        )
    plan.add_argument(
        "--tflops",
        type=float,
        help="10^12 operations a second of a device (default: 0.1, two CPU cores, and 100, a GPU)",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    plan.add_argument(
        "settings", nargs="*", metavar="key=value", help="any field of UnlearningConfig"
    )
