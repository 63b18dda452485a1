"""Losses and weights of 20 steps of each method are those recorded before the package was rebuilt.

Bit for bit on the kind of processor that recorded them; elsewhere, where sums have another order,
to within a tolerance. `python tests/test_golden_steps.py` records them anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import byte_level_bpe, tiny_model
from unteach import UnlearningConfig, UnlearningTrainer

RECORDED = Path(__file__).parent / "golden" / "steps.json"
STEPS = 20
FORGET = [
    {"prompt": "Who rang the bell?", "completion": "The ferryman rang it twice."},
    {"prompt": "Who kept a cat?", "completion": "The miller, on the flour sacks."},
    {"prompt": "What is the capital of the moon?", "completion": "Nobody has ever asked the moon."},
    {"prompt": "Who sold bread to the sailors?", "completion": "She did, every morning."},
]
FORGET = [
    row | {"right": f"Ask the {word}.", "alternate": f"It was the {word} again."}
    for row, word in zip(FORGET, ("miller", "sailor", "cat", "harbour"), strict=True)
]
RETAIN = [
    {"prompt": "Who carried bread?", "completion": "She carried bread to the harbour."},
    {"prompt": "Who slept?", "completion": "The grey cat."},
    {"prompt": "What is the weather?", "completion": "Ask me about something else!"},
    {"prompt": "Where do sailors go?", "completion": "To the harbour, and then to sea."},
]
METHODS = (
    "ga",
    "ga_no_retain",
    "ga_mismatch",
    "ga_mismatch_no_retain",
    "grad_diff",
    "grad_diff_kl",
    "unlikelihood",
    "unlikelihood_mismatch",
    "log_odds",
    "log_odds_mismatch",
    "npo",
    "simnpo",
    "dpo_right",
    "dpo_idk",
    "altpo",
    "rmu",
    "undial",
    "wga",
    "satimp",
    "ceu",
    "pdu",
    "task_vector",
    "teaching",
    "finetuning",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain rows": {"packing": False},
    "live reference": {"reference": "live"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "refusal": {"method": "ga_mismatch", "mismatch_source": "refusal"},
    "adapter": {"lora": True, "reference": "adapter_off"},
    "rmu, three layers": {"method": "rmu", "steering_update": "three_layers", "steering_layer": 1},
    "task vector, scaled": {"method": "task_vector", "task_vector_scale": 0.3},
    "pdu, kl": {"method": "pdu", "retain_loss": "kl", "dual_wait": 3},
}
CASES = {**{name: {"method": name} for name in METHODS}, **VARIANTS}
BY_ROUNDING = ("log_odds", "rmu")
"""Cases whose first gradients are nearly 0, so that Adam makes steps of what rounding leaves: on
another kind of processor only their first losses are the same."""


def processor() -> str:
    """The instructions that torch uses here, and its version."""
    return f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.split('+')[0]}"


def run(settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """Each step's loss and retain KL, and what the weights are afterwards."""
    settings = {
        "learning_rate": 2e-3,
        "per_device_train_batch_size": 3,
        "max_steps": STEPS,
    } | settings
    peft_config = None
    if settings.pop("lora", False):
        from peft import LoraConfig

        torch.manual_seed(1)
        peft_config = LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    config = UnlearningConfig(output_dir=folder, use_cpu=True, seed=3, collapse_kl=None, **settings)
    trainer = UnlearningTrainer(
        tiny_model(), config, FORGET, RETAIN, byte_level_bpe(), peft_config=peft_config
    )
    trainer.train()
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    digest, norm = hashlib.sha256(), 0.0
    for name, value in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
        norm += float(value.double().square().sum())
    return {
        "losses": [step["loss"] for step in steps],
        "retain_kl": [step.get("retain_kl") for step in steps],
        "retain_weight": [step["retain_weight"] for step in steps],
        "norm": norm**0.5,
        "sha256": digest.hexdigest(),
    }


@pytest.mark.parametrize("case", list(CASES))
def test_the_steps_are_those_of_before(case, tmp_path):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    wanted, found = recorded["cases"][case], run(CASES[case], str(tmp_path))
    if processor() == recorded["processor"] and torch.get_num_threads() == recorded["threads"]:
        assert found == wanted
    else:
        steps = 1 if case in BY_ROUNDING else STEPS
        for name in ("losses", "retain_weight"):
            assert found[name][:steps] == pytest.approx(wanted[name][:steps], rel=1e-4, abs=1e-6)
        assert found["norm"] == pytest.approx(wanted["norm"], rel=1e-6 if steps > 1 else 1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = {}
    for case, settings in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[case] = run(settings, folder)
    record = {"processor": processor(), "threads": 1, "cases": cases}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
