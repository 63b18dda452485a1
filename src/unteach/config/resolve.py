"""`resolve()`: the one place where settings are merged and filled in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from unteach.config.run import RunConfig
from unteach.config.unlearning import UnlearningConfig
from unteach.config.values import check_types
from unteach.data.sources import name_of
from unteach.errors import UserError, did_you_mean
from unteach.files.folders import local_path
from unteach.methods import DEFAULT_METHOD, METHODS, get_method
from unteach.robust import in_steps, trains_again

Source = Literal["user", "scenario", "rows", "method", "model", "search", "default"]

RATE_TIMES_WIDTH = 0.075
"""Learning rate times the model's hidden size, all weights trained: 1.3e-4 at 576, where it was
found (docs/log.md), 1.8e-5 at 4,096.

Adam's best rate falls as one over the width (Yang et al. 2022, arXiv 2203.03466).
"""
ADAPTER_FACTOR, DIRECTED_FACTOR = 4.0, 10.0
"""Learning rate of an adapter and of a directed update, relative to that of all weights."""
SCHEDULE = {"lr_scheduler_type": "linear", "warmup_steps": 0.1}
"""Schedule of a method with settings of its own: with a rate that falls to 0, behaviour on the
retain set recovers before the end."""
LEAST_STEPS = 100
"""Fewest planned steps; early stopping usually ends a run before."""
SAVING = {"save_strategy": "steps", "save_steps": 10, "save_total_limit": 2}
"""Checkpoints of a run."""
AUTO = "auto"
CPU_FACTS = Path("/proc/cpuinfo")
OF_BOTH = ("method", "robust")
"""Fields of `RunConfig` that are fields of `UnlearningConfig` too."""
BY_METHOD = (
    "forget_weight",
    "mismatch_weight",
    "retain_weight",
    "retain_loss",
    "beta",
    "gamma",
    "forget_end_of_turn",
)
"""Fields of `UnlearningConfig` whose defaults are the method's."""

PLACES = ("model", "output_dir", "shared_dir", "forget", "retain", "unseen", "neighbours")
"""Fields whose values may be paths."""

RUN_FIELDS = {item.name: item for item in fields(RunConfig)}
ALIASES = {
    item.metadata["alias"]: name for name, item in RUN_FIELDS.items() if "alias" in item.metadata
}


def suitable_learning_rate(width: int, method: str, *, lora: bool, directed: bool = False) -> float:
    """The learning rate of a run whose user names none, to two digits.

    Args:
        width (`int`): the model's hidden size.
        method (`str`): its `Method.rate` multiplies the rate.
        lora (`bool`): whether an adapter is trained.
        directed (`bool`): whether the update is directed.
    """
    rate = RATE_TIMES_WIDTH / width * _rate_factor(lora, directed) * get_method(method).rate
    return float(f"{rate:.2g}")


def _rate_factor(lora: bool, directed: bool) -> float:
    if directed:
        return DIRECTED_FACTOR
    return ADAPTER_FACTOR if lora else 1.0


@dataclass(frozen=True)
class ResolvedConfig:
    """The settings of a run, merged and filled in; `resolve()` makes it.

    Args:
        training (mapping): fields of `UnlearningConfig` that anything but its own default decided.
        sources (mapping): name of each field of `run` and `training` to what decided its value.
        layers: (source, values) pairs that were merged, the strongest last.
        width (`int`, *optional*): the model's hidden size, where it is known.
    """

    run: RunConfig
    training: Mapping[str, Any]
    sources: Mapping[str, Source]
    layers: tuple[tuple[Source, Mapping[str, Any]], ...]
    width: int | None = None

    def with_training(self, source: Source, **values: Any) -> ResolvedConfig:
        """The same with these fields of `UnlearningConfig`, which override all earlier ones."""
        return _merged((*self.layers, (source, _checked(values))), self.width)

    def with_run(self, **values: Any) -> ResolvedConfig:
        """The same with other fields of `RunConfig`, which the program sets."""
        return _merged((*self.layers, ("default", _checked(flat(values)))), self.width)

    def with_rows(self, **values: Any) -> ResolvedConfig:
        """The same with what the kind of the rows decides where neither user nor scenario does; a
        method of their own leaves nothing to decide.
        """
        if "method" in {name for _, known in self.layers for name in known}:
            return self
        return _merged((("rows", _checked(values)), *self.layers), self.width)

    def with_width(self, width: int) -> ResolvedConfig:
        """The same for a model of that hidden size, on which the learning rate depends."""
        return _merged(self.layers, width)

    def unlearning_config(self, folder: str | Path, **override: Any) -> UnlearningConfig:
        """A new `UnlearningConfig` for a training that writes into `folder`."""
        seed = self.run.seed
        values = {"seed": seed, "data_seed": seed, **self.training, **override}
        return UnlearningConfig(output_dir=str(folder), **values)

    def first_training(self, folder: str | Path, **override: Any) -> UnlearningConfig:
        """The same for the training by the method itself, without what `--robust` has after it."""
        config = self.unlearning_config(folder, **override)
        if not trains_again(config.robust):
            return config
        return self.unlearning_config(folder, **{**override, "robust": in_steps(config.robust)})

    @property
    def chosen(self) -> dict[str, Any]:
        """Fields of `UnlearningConfig`, `method` among them, that the user, the scenario or the
        kind of the rows set.
        """
        chosen: dict[str, Any] = {}
        for source, values in self.layers:
            if source in ("user", "scenario", "rows"):
                chosen |= {name: value for name, value in values.items() if _trains(name)}
        return chosen

    @property
    def filled_in(self) -> dict[str, Any]:
        """What a rule set where neither user nor scenario did; the learning rate as its rule."""
        found: dict[str, Any] = {}
        if self.sources.get("learning_rate") == "model":
            directed = self.training.get("update") == "directed"
            factor = _rate_factor(self.run.lora, directed)
            found["learning_rate"] = {"times_width": RATE_TIMES_WIDTH * factor}
            if self.run.method in METHODS:
                found["learning_rate"]["share"] = get_method(self.run.method).rate
        by_rule = {name: value for name, value in self.training.items() if name not in SAVING}
        names = ("method", "default")
        return found | {k: v for k, v in by_rule.items() if self.sources[k] in names}

    def explained(self) -> list[tuple[str, Any, Source]]:
        """(option, value, source) of every option of a run and of unlearning, in their order.

        What the method decides by itself (its weights and parameters) is there too; a method that
        is not known yet, or is no unlearning method, has only what was set.
        """
        rows = [(name, getattr(self.run, name), self.sources[name]) for name in RUN_FIELDS]
        training: dict[str, Any] = {k: v for k, v in self.training.items() if k not in OF_BOTH}
        if self.training.get("method", DEFAULT_METHOD) in METHODS:
            config = self.unlearning_config("unteach-output")
            names = [name for name in UnlearningConfig.__annotations__ if name not in OF_BOTH]
            values = {name: getattr(config, name) for name in [*names, *training]}
            training = values | {"retain_loss": config.objective.retain or "none"}
            training |= config.objective.parameters
            if "learning_rate" not in self.training:
                training["learning_rate"] = None
        for name, value in training.items():
            by_method = name in BY_METHOD and value is not None
            source: Source = "method" if by_method else "default"
            value = value.value if isinstance(value, Enum) else value
            rows.append((name, value, self.sources.get(name, source)))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """All values as plain data, those of the run first; a list of rows by its length."""
        values = {name: getattr(self.run, name) for name in RUN_FIELDS} | dict(self.training)
        for name in ("forget", "retain", "unseen", "neighbours"):
            if values[name] is not None:
                values[name] = name_of(values[name])
        return values


def resolve(
    given: Mapping[str, Any], *, presets: Mapping[str, Any] | None = None, width: int | None = None
) -> ResolvedConfig:
    """Merges what the user set with the scenario's presets, and fills in the rest by rule.

    The user's values come before the scenario's. Presets of another method than the user's lose
    their method and weights. What neither sets: checkpoints every 10 steps, at least `LEAST_STEPS`
    steps, the settings of the default method, and a learning rate by the model's width.

    Args:
        given: fields of `RunConfig` and of `UnlearningConfig`, flat or the latter in `settings`.
        presets: the same of a scenario. `bf16="auto"` stands for bfloat16 where the machine has
            instructions for it and no precision was set.
        width (`int`, *optional*): the model's hidden size; without it the rate is left open.

    Raises:
        UserError: for an unknown name, or a value of another type or out of range.
    """
    user = _checked(flat(given))
    scenario = _presets(presets or {}, user)
    return _merged((("scenario", scenario), ("user", user)), width)


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options by the names of their fields, those in `settings` among them.

    Raises:
        UserError: for an option that is given twice.
    """
    inner = given.get("settings") or {}
    if not isinstance(inner, Mapping):
        raise UserError(f"option 'settings' is {inner!r}, it must be a mapping of options")
    found: dict[str, Any] = {}
    for options in ({k: v for k, v in given.items() if k != "settings"}, inner):
        for key, value in options.items():
            name = ALIASES.get(key, key)
            if name in found:
                raise UserError(f"option {key!r} is given twice; leave one of them out")
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            found[name] = _place(value) if name in PLACES else value
    return found


def _place(value: Any) -> Any:
    """The place with `~` expanded; a model's folder, or several files, by their absolute path."""
    if isinstance(value, list) and all(isinstance(one, str | os.PathLike) for one in value):
        value = [os.fspath(one) for one in value]
        return [
            local_path(one) if os.path.isfile(os.path.expanduser(one)) else one for one in value
        ]
    return local_path(value) if isinstance(value, str) else value


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, if each is an option of a run or of its training and of its type.

    Raises:
        UserError: for an unknown name, with the nearest; for a value of another type.
    """
    known = UnlearningConfig.__dataclass_fields__
    for name in values:
        if name == "data_seed":
            raise UserError("option 'data_seed' is given as seed")
        if name not in RUN_FIELDS and name not in known:
            raise did_you_mean(name, sorted({*RUN_FIELDS, *ALIASES, *known}), "option")
    check_types({k: v for k, v in values.items() if k in RUN_FIELDS}, RunConfig)
    check_types({k: v for k, v in values.items() if k not in RUN_FIELDS}, UnlearningConfig)
    return dict(values)


def _presets(presets: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's presets as far as they fit what the user set."""
    found = {name: value for name, value in presets.items() if name != "teach"}
    if "method" in user and user["method"] != found.get("method"):
        own = [name for name in found if name == "method" or name.endswith("_weight")]
        found = {name: value for name, value in found.items() if name not in own}
    if found.get("bf16") == "auto":
        del found["bf16"]
        by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
        if not by_deepspeed and not {"bf16", "fp16", "deepspeed"} & set(user):
            # DeepSpeed would hold the weights in 16 bits too
            found["bf16"] = multiplies_bfloat16(use_cpu=bool(user.get("use_cpu")))
    return _checked(found)


def multiplies_bfloat16(*, use_cpu: bool = False) -> bool:
    """Whether the accelerator, or the processor where there is none (or `use_cpu`), has
    instructions for products of bfloat16 numbers.

    Linux lists the features of processors: AVX-512's or AMX's on x86, `bf16` on Arm. Without such
    instructions bfloat16 is far slower than float32 (docs/explanation/performance.md).
    """
    if torch.cuda.is_available() and not use_cpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        facts = CPU_FACTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    feature = r"^(?:flags|Features)\b.*\b(?:avx512_bf16|amx_bf16|bf16)\b"
    return re.search(feature, facts, re.MULTILINE) is not None


def _trains(name: str) -> bool:
    return name in OF_BOTH or name not in RUN_FIELDS


def _merged(
    layers: tuple[tuple[Source, Mapping[str, Any]], ...], width: int | None
) -> ResolvedConfig:
    """The layers, the last the strongest, and below them what the rules fill in."""
    run: dict[str, Any] = {}
    training: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(RUN_FIELDS, "default")
    for source, values in layers:
        sources |= dict.fromkeys(values, source)
        training |= {name: value for name, value in values.items() if _trains(name)}
        if source != "search":  # `run.method` stays what the user named
            run |= {name: value for name, value in values.items() if name in RUN_FIELDS}
    config = RunConfig(**run)
    method = training.get("method", DEFAULT_METHOD)
    if method in METHODS or method == AUTO:
        filled = _by_rule(training, method, config.lora, config.frozen_layers > 0, width)
        sources |= {name: source for name, (source, _) in filled.items()}
        known = {k: v for k, (_, v) in filled.items() if k != "learning_rate" or v is not None}
        training = known | training
    return ResolvedConfig(
        config, MappingProxyType(training), MappingProxyType(sources), layers, width
    )


def _by_rule(
    chosen: Mapping[str, Any], method: str, lora: bool, frozen: bool, width: int | None
) -> dict[str, tuple[Source, Any]]:
    """Source and value of the fields of `UnlearningConfig` that were not set; the learning rate is
    `None` while the model's width is unknown.
    """
    found: dict[str, tuple[Source, Any]] = {k: ("default", v) for k, v in SAVING.items()}
    if method in METHODS and (settings := get_method(method).settings):
        left = {**settings, **SCHEDULE}
        if set(chosen) & set(SCHEDULE):  # half of a schedule is another one
            left = {name: value for name, value in left.items() if name not in SCHEDULE}
        if chosen.get("retain_loss") not in (None, get_method(method).retain):
            for name in ("retain_weight", "state_weight"):  # of the method's own retain term
                left.pop(name, None)
        if frozen:  # layers are frozen in updates of all weights only
            left.pop("update", None)
        if "num_train_epochs" in chosen:
            left.pop("least_steps", None)
        found |= {name: ("method", value) for name, value in left.items()}
    rate = None
    if width and method in METHODS:
        update = chosen.get("update", found.get("update", ("", "all"))[1])
        rate = suitable_learning_rate(width, method, lora=lora, directed=update == "directed")
    found["learning_rate"] = ("model", rate)
    if (
        not {"num_train_epochs", "least_steps"} & {*chosen, *found}
        and (chosen.get("max_steps") or 0) <= 0
    ):
        found["least_steps"] = ("default", LEAST_STEPS)
    return {name: item for name, item in found.items() if name not in chosen}
