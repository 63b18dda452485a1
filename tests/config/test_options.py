"""Every option with its type, default and source, as options.txt freezes it; and that the command
line, Python and YAML agree on each.

A command line that worked goes on working: options are added to the list, not taken from it.
`python tests/config/test_options.py` writes the list again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from unteach.attacks.options import AttackOptions
from unteach.cli import COMMANDS, load_command
from unteach.cli.chat import ChatCommand
from unteach.cli.check import CheckCommand
from unteach.cli.eval import EvalCommand
from unteach.cli.options import parse
from unteach.cli.requests import RequestCommand
from unteach.cli.run import run_options
from unteach.config import UnlearningConfig
from unteach.config.resolve import OF_BOTH, resolve
from unteach.config.run import Headline, RunConfig
from unteach.config.values import kinds
from unteach.methods import DEFAULT_METHOD

LIST = Path(__file__).with_name("options.txt")
OWN = [
    item
    for item in fields(UnlearningConfig)
    if item.name in UnlearningConfig.__annotations__ and item.name not in OF_BOTH
]
"""Fields of `UnlearningConfig` that are not transformers' own, or have another default here."""


def default(item: Field[Any]) -> Any:
    return item.default_factory() if callable(item.default_factory) else item.default


def line(where: str, name: str, hint: Any, value: Any, source: str) -> str:
    types, choices = kinds(hint)
    named = sorted(getattr(kind, "__name__", str(kind)) for kind in types - {type(None)})
    kind = "|".join(map(str, choices)) or "|".join(named)
    optional = "?" if type(None) in types else ""
    return f"{where:10} {name:26} {kind + optional:42} {value!s:20} {source}".rstrip()


def listing() -> Iterator[str]:
    """A line for each option of each command, and for each field that a `key=value` word sets."""
    for command in COMMANDS:
        options = load_command(command).options
        hints = get_type_hints(options)
        for item in fields(options):
            if "help" not in item.metadata:
                continue
            flag = "--" + item.metadata.get("alias", item.name).replace("_", "-")
            name = item.name.upper() if item.metadata.get("positional") else flag
            needed = item.metadata.get("required") or default(item) is MISSING
            value = "(required)" if needed else default(item)
            yield line(command, name, hints[item.name], value, "default")
    sources = {name: source for name, _, source in resolve({}, width=576).explained()}
    values = {name: value for name, value, _ in resolve({}, width=576).explained()}
    hints = get_type_hints(UnlearningConfig)
    for item in OWN:
        yield line("key=value", item.name, hints[item.name], values[item.name], sources[item.name])


def test_no_option_default_type_or_source_changes_unseen():
    assert list(listing()) == LIST.read_text(encoding="utf-8").splitlines()


def sample(name: str, hint: Any, value: Any) -> Any:
    """Another value of the option than its default."""
    types, choices = kinds(hint)
    if choices:
        return next(choice for choice in reversed(choices) if choice != value)
    if dict in types:
        return {"sft": {"max_steps": 3}}
    for kind, other in ((bool, not value), (int, 7), (float, 0.25)):
        if kind in types:
            return other
    return "ga" if name == "method" else "something"


SAMPLES = {
    item.name: sample(item.name, get_type_hints(options)[item.name], default(item))
    for options, items in ((RunConfig, fields(RunConfig)), (UnlearningConfig, OWN))
    for item in items
    if item.name not in ("learning_rate", "report_to")
}


def typed(*words: str) -> dict[str, Any]:
    return run_options(parse("run", load_command("run"), words))


@pytest.mark.parametrize("name", list(SAMPLES))
def test_command_line_yaml_and_python_agree(name, tmp_path):
    value = SAMPLES[name]
    text = yaml.safe_dump({name: value})
    file = tmp_path / "run.yaml"
    file.write_text(text)
    ways = [typed(f"{name}={yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}")]
    ways += [typed(str(file)), {name: value}, {"settings": {name: value}}]
    about = getattr(RunConfig.__dataclass_fields__.get(name), "metadata", None)
    if about is not None:
        flag = "--" + about.get("alias", name).replace("_", "-")
        words = [flag] if value is True else [flag, str(value)]
        ways.append(typed(*words))
        file.write_text(yaml.safe_dump({about.get("alias", name).replace("_", "-"): value}))
        ways.append(typed(str(file)))
    resolved = [resolve(way) for way in ways]
    assert {one.sources[name] for one in resolved} == {"user"}
    assert all(one.as_dict() == resolved[0].as_dict() for one in resolved)
    assert resolved[0].as_dict()[name] == value


def test_unlearn_passes_each_keyword_on(monkeypatch, tmp_path):
    import unteach
    from unteach.run import pipeline

    found: list[Mapping[str, Any]] = []

    def resolved(given: Mapping[str, Any], **_: Any) -> Any:
        found.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "resolve", resolved)
    with pytest.raises(KeyboardInterrupt):
        unteach.unlearn(**SAMPLES)
    named = inspect.signature(unteach.unlearn).parameters
    assert {name for name in SAMPLES if name not in found[0]} <= set(named)
    reached, wanted = resolve(found[0]), resolve(SAMPLES)
    assert {name: reached.as_dict()[name] for name in found[0]} == {
        name: wanted.as_dict()[name] for name in found[0]
    }
    defaults = {k: v for k, v in keywords(unteach.unlearn).items() if hasattr(RunConfig(), k)}
    assert defaults == {name: getattr(RunConfig(), name) for name in defaults}


def keywords(function: Any) -> dict[str, Any]:
    """The defaults of a function's parameters that have one."""
    parameters = inspect.signature(function).parameters.values()
    return {item.name: item.default for item in parameters if item.default is not item.empty}


def test_commands_have_the_defaults_of_the_functions_that_they_call():
    from unteach.attacks.suite import attack
    from unteach.chat.server import serve
    from unteach.data.check import check_files
    from unteach.evaluate import EvalOptions, evaluate_benchmark, evaluate_models
    from unteach.requests.forget_requests import forget_request

    for function, options in (
        (attack, AttackOptions),
        (check_files, CheckCommand),
        (evaluate_models, EvalCommand),
        (evaluate_benchmark, EvalCommand),
        (EvalOptions, EvalCommand),
        (forget_request, RequestCommand),
        (serve, ChatCommand),
    ):
        known = {item.name: default(item) for item in fields(options)}
        for name, value in keywords(function).items():
            assert known.get(name, value) == value, f"{name} of {function.__name__}"


def test_names_that_are_written_without_torch_are_those_of_the_rooms_below():
    from unteach.evaluation.benchmarks import BENCHMARKS
    from unteach.evaluation.metrics import headlines

    assert RunConfig().method == DEFAULT_METHOD
    benchmarks = get_type_hints(EvalCommand)["benchmark"]
    assert (*kinds(benchmarks)[1], "harness") == tuple(BENCHMARKS)  # which has its own option
    assert get_args(Headline) == tuple(headlines())
    assert CheckCommand(forget="f").max_length == UnlearningConfig(output_dir="o").max_length


if __name__ == "__main__":
    LIST.write_text("".join(f"{text}\n" for text in listing()), encoding="utf-8")
