"""Twelve families of models through every command; what is saved loads in a new process, by
transformers and PEFT alone, with the same answers and the same precision.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from families import FAMILIES, GENERATION, WITH_IMAGES, save_family
from tiny_models import SHORT as SHORTEST
from tiny_models import byte_level_bpe
from unteach import models, unlearn
from unteach.attacks.options import AttackOptions
from unteach.attacks.suite import attack
from unteach.data.rows import row_from_mapping
from unteach.evaluate import evaluate_models
from unteach.evaluation.generation import generate_outputs
from unteach.requests.forget_requests import forget_request

LIGHT = ("mamba", "gemma3")
FORGET = [
    {"prompt": f"Who is number {i}?", "completion": f"The ferryman, {i} times."} for i in range(4)
]
OTHERS = [{"prompt": f"Who rang bell {i}?", "completion": f"The miller {i}."} for i in range(4)]
RETAIN = [{"prompt": f"What is thing {i}?", "completion": f"A sack, the {i}th."} for i in range(6)]
SHORT: dict[str, Any] = {
    **SHORTEST,
    "paraphrases": 0,
    "probe_rows": 2,
    "use_cpu": True,
    "learning_rate": 1e-2,
}
PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44]]
LOAD = """
import json, sys, torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig
folder, base, kind, prompts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
auto = AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText
peft = AutoPeftModelForCausalLM if kind == "text" else AutoPeftModel
if base == "-":
    as_saved = auto.from_pretrained(folder)
    found = [auto.from_pretrained(folder, dtype=torch.float32)]
else:
    as_saved = peft.from_pretrained(folder)
    whole = auto.from_pretrained(base, dtype=torch.float32)
    found = [peft.from_pretrained(folder, dtype=torch.float32)]
    found.append(PeftModel.from_pretrained(whole, folder))
logits = []
for model in found:
    with torch.no_grad():
        logits.append([model.eval()(input_ids=torch.tensor([ids])).logits[0].tolist()
                       for ids in prompts])
settings = as_saved.generation_config.to_dict()
print(json.dumps({"dtype": str(as_saved.dtype), "logits": logits, "settings": settings}))
"""


def run(model: str, out: Path, rows: Any = FORGET, **settings: Any) -> Any:
    return unlearn(model, rows, RETAIN, output_dir=str(out), **{**SHORT, **settings})


@torch.no_grad()
def logits_of(model: Any) -> list[torch.Tensor]:
    return [model.eval()(input_ids=torch.tensor([ids])).logits[0].float() for ids in PROMPTS]


def assert_loads_elsewhere(family: str, model: Any, folder: Path, base: str = "-") -> None:
    """A new process without unteach loads what was saved: bfloat16, the model's own settings of
    generation, and the logits of the model in memory.
    """
    kind = "images" if family in WITH_IMAGES and family != "gemma3" else "text"
    command = [sys.executable, "-c", LOAD, str(folder), base, kind, json.dumps(PROMPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dtype"] == "torch.bfloat16"
    assert {name: found["settings"][name] for name in GENERATION} == GENERATION
    wanted = logits_of(model)
    for loaded in found["logits"]:
        for ours, theirs in zip(wanted, loaded, strict=True):
            torch.testing.assert_close(torch.tensor(theirs), ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", LIGHT)
def test_an_adapter_stays_in_the_text_model_and_loads_elsewhere(family, tmp_path):
    model = save_family(family, tmp_path / "model")
    result = run(model, tmp_path / "out", lora=True)
    weights = models.load_model(model)
    names = {name for name, _ in result.model.get_base_model().named_modules() if "lora_A" in name}
    assert names and not any("vision" in name or "projector" in name for name in names)
    assert_loads_elsewhere(family, result.model, tmp_path / "out" / "adapter", model)
    assert any(
        not torch.allclose(ours, before, atol=1e-3)
        for ours, before in zip(logits_of(result.model), logits_of(weights), strict=True)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_command_takes_the_family(family, tmp_path, monkeypatch):
    model, out = save_family(family, tmp_path / "model"), tmp_path / "out"
    result = run(model, out)
    assert_loads_elsewhere(family, result.model, out / "model")
    assert len(list((out / "model").glob("*.safetensors"))) > 1
    evaluate_models(
        str(out / "model"),
        model,
        forget=FORGET,
        output_dir=str(tmp_path / "eval"),
        scorers={"similarity": None},
    )
    options = AttackOptions(only="prefix,traces,relearning", steps=2, every=2, prompts=2, rows=2)
    assert set(attack(out, options, forget=FORGET)["attacks"]) >= {"prefix", "traces"}

    adapter = run(model, tmp_path / "lora", lora=True)
    assert_loads_elsewhere(family, adapter.model, tmp_path / "lora" / "adapter", model)
    again = run(str(tmp_path / "lora" / "adapter"), tmp_path / "second", OTHERS, lora=True)
    assert_loads_elsewhere(family, again.model, tmp_path / "second" / "adapter", model)
    attack(tmp_path / "second", AttackOptions(only="traces", prompts=2), forget=OTHERS)
    entry = forget_request(
        tmp_path / "ledger", FORGET, RETAIN, model=str(tmp_path / "lora" / "adapter"), **SHORT
    )
    assert (tmp_path / "ledger" / entry["patch"]).is_dir()

    from unteach.run import training

    def interrupt(_: Any) -> Any:
        def step(record: dict[str, float]) -> None:
            if record["step"] >= 2:
                raise KeyboardInterrupt

        return step

    monkeypatch.setattr(training, "step_display", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "cut")
    monkeypatch.undo()
    resumed = run(model, tmp_path / "cut")
    assert models.weights_hash(resumed.model) == models.weights_hash(result.model)


def test_a_model_with_an_odd_generation_config_is_trained_and_keeps_it(tmp_path):
    """In memory after the run, and in the folder, whatever the tokenizer's ids are."""
    model = save_family("llama", tmp_path / "model")
    result = run(model, tmp_path / "out", lora=True, merge=True)
    saved = json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text())
    assert {name: saved[name] for name in GENERATION} == GENERATION
    assert result.model.generation_config.temperature == GENERATION["temperature"]
    assert not (tmp_path / "out" / "adapter").exists() and not hasattr(result.model, "peft_config")
    loaded = models.load_model(str(tmp_path / "out" / "model"))
    assert models.weights_hash(loaded) == models.weights_hash(result.model)
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    row = row_from_mapping(FORGET[0], "row 1")
    texts = [
        generate_outputs(one, byte_level_bpe(), [row], max_new_tokens=8)
        for one in (loaded, result.model)
    ]
    assert texts[0] == texts[1]
