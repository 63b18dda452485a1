"""The shapes of the files that reports read, so that a broken file is named with its field.

What passes this check and still fails is a fault of ours, which no caller hides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unteach.errors import UserError

NUMBER = (int, float)
MAYBE = (int, float, type(None))
ANY = (object,)
RESULT = {"value": MAYBE, "n": NUMBER, "ci_low": MAYBE, "ci_high": MAYBE}
METRIC_RESULT = {**RESULT, "higher_is_better": (bool, type(None))}
METRIC = {
    "title": str,
    "short_title": str,
    "format": str,
    "in_summary": bool,
    "against_original": bool,
    "compare_on": [str],
}
COST = {
    "stage": str,
    "seconds": NUMBER,
    "training_tokens": NUMBER,
    "generated_tokens": NUMBER,
    "data_tokens": NUMBER,
}
TRIAL = {
    "settings": {"method": str, "learning_rate": NUMBER},
    "note": str,
    "score": NUMBER,
    "seconds": NUMBER,
    "step": NUMBER,
    "forget_rate": NUMBER,
    "validation_rate": NUMBER,
    "utility": NUMBER,
    "not_meaningful": NUMBER,
    "retain_kl": MAYBE,
}
FAMILY = {"attack": str, "tried": NUMBER, "brought_back": RESULT, "control": ANY, "excess": ANY}
POINT = {"step": NUMBER, "value": MAYBE, "ci_low": MAYBE, "ci_high": MAYBE}
SHAPES: dict[str, Any] = {
    "eval.json": {
        "verdict?": (str, type(None)),
        "reasons?": [str],
        "models": {"*": {"*": {"*": METRIC_RESULT}}},
        "headline?": (str, type(None)),
        "headline_reason?": (str, type(None)),
        "metrics?": {"*": METRIC},
        "prompt_sets?": {"*": {"title": str, "role": str}},
        "scorers?": {"*": {"name": ANY, "held_out_accuracy?": MAYBE, "n?": ANY}},
        "leak_threshold_bleu?": MAYBE,
    },
    "run.json": {
        "costs?": [COST],
        "seconds?": MAYBE,
        "tokens?": MAYBE,
        "tokens_per_second?": MAYBE,
        "peak_memory_bytes?": MAYBE,
        "kept_step?": MAYBE,
        "notes?": [str],
        "max_retain_kl?": MAYBE,
        "stage_seconds?": {"*": NUMBER},
        "versions?": {"*": ANY},
        "search?": {"why": str, "trials": [TRIAL], "untried?": [str]},
    },
    "finished run": {
        "model": str,
        "scenario": str,
        "seed": NUMBER,
        "original_model_hash": str,
        "forget_hash": str,
        "retain_hash?": str,
        "neighbours_hash?": str,
        "base_model_hash?": (str, type(None)),
        "shared_dir?": str,
        "dtype?": str,
        "chat?": (dict, type(None)),
        "scorers?": (dict, type(None)),
        "data_files?": {
            "*": ANY,
            "hold_out?": NUMBER,
            "split_by?": (str, type(None)),
            "secrets?": str,
            "own_rows?": NUMBER,
            "limit?": MAYBE,
        },
    },
    "config.yaml": {"data?": {"*": ANY}, "chat?": {"*": ANY}},
    "attacks.json": {
        "headline?": str,
        "attacks?": {"*": {"*": {"*": RESULT}}},
        "settings?": {"*": {"goal?": NUMBER, "rows?": NUMBER, "steps?": NUMBER}},
        "curves?": {"*": {"*": [POINT]}},
        "about?": {"*": {"title": str, "about": str, "family": str}},
        "leak_at_k?": {"*": {"*": [{"k": NUMBER, "value": MAYBE}]}},
        "robustness?": {
            **RESULT,
            "attack?": str,
            "reason": str,
            "forgotten_rows": NUMBER,
            "attacked_rows": NUMBER,
            "families": {"*": FAMILY},
        },
        "left_out?": {"*": str},
    },
    "metrics.jsonl": [
        {
            "step": NUMBER,
            "probe?": {"*": MAYBE},
            "retain_kl?": MAYBE,
            "forget_nll?": MAYBE,
            "mismatch_nll?": MAYBE,
            "retain_nll?": MAYBE,
            "forget_factor?": MAYBE,
            "retain_weight?": MAYBE,
        }
    ],
    "generations.jsonl": [
        {
            "model": str,
            "set": str,
            "key": str,
            "prompt?": str,
            "output?": str,
            "expected?": (str, type(None)),
            "metrics?": {"*": MAYBE},
        }
    ],
    "answers": {"*": str},
    "requests.jsonl": [{"run?": str}],
}
"""Fields by file, or by what a file must hold for a command: a name with `?` may be missing, `*`
stands for any name."""
WORDS = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}


def check_shape(path: Path, content: Any, name: str | None = None) -> Any:
    """The content, if it has the shape of its file.

    Args:
        path (`Path`): for the message.
        content: plain data.
        name (`str`, *optional*): which of `SHAPES`; default: the file's name.

    Raises:
        UserError: naming the file, the field, what was found and what would be right.
    """
    fault = _fault(content, SHAPES[name or path.name], "")
    if fault:
        raise UserError(f"{path} is broken: {fault}; run the command that wrote it again")
    return content


def _fault(value: Any, shape: Any, where: str) -> str:
    """What is wrong with a value; empty if nothing is."""
    place = where or "its content"
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return f"{place} is {_short(value)}, it must be a mapping"
        needed = [name for name in shape if name != "*" and not name.endswith("?")]
        missing = [name for name in needed if name not in value]
        if missing:
            return f"{place} has no field {missing[0]!r}"
        inner = {name: shape.get(name, shape.get(f"{name}?", shape.get("*"))) for name in value}
        parts = [(inner[name], value[name], f"{where}.{name}") for name in value if inner[name]]
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is {_short(value)}, it must be a list"
        parts = [(shape[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    else:
        return _leaf_fault(value, shape if isinstance(shape, tuple) else (shape,), place)
    faults = (_fault(item, wanted, name.lstrip(".")) for wanted, item, name in parts)
    return next((fault for fault in faults if fault), "")


def _leaf_fault(value: Any, types: tuple[type, ...], place: str) -> str:
    fits = isinstance(value, types) and (
        not isinstance(value, bool) or not {bool, object}.isdisjoint(types)
    )
    if fits and float in types and value is not None:
        fits = abs(value) < 1e300 or not math.isfinite(value)
    wanted = "a number" if float in types else WORDS.get(types[0], "a value")
    return "" if fits else f"{place} is {_short(value)}, it must be {wanted}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
