"""Writes recipes/NAME.yaml and their table in docs/how-to/my-model.md: settings for the models of
the field, with the memory and the arithmetic that `unteach plan` computes for them.

`SHAPES` has the numbers of each model's configuration, so that nothing is downloaded. `--check`
only says what is out of date.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import transformers
import yaml

from unteach import models
from unteach.files.atomic import write_text_atomically
from unteach.plan import plan_run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/how-to/my-model.md"
BEGIN, END = "<!-- recipes: python docs/make_recipes.py -->", "<!-- end of recipes -->"
ROWS = {"prompt_tokens": 64, "completion_tokens": 128, "retain_rows": 112}
"""Rows that the plans assume, beside the 64 forget rows of `unteach plan`."""

SMALL = {"per_device_train_batch_size": 4}
ADAPTER = {"lora": True, "dtype": "bfloat16", "bf16": True, "per_device_train_batch_size": 4}
LARGE = {**ADAPTER, "activation_checkpointing": True}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
PAPER = {
    "method": "ga_mismatch",
    "forget_weight": 0.5,
    "mismatch_weight": 1.0,
    "retain_weight": 1.0,
    "max_retain_kl": None,
    "learning_rate": 2e-6,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "max_steps": 1000,
    "bf16": True,
}


@dataclass(frozen=True)
class Recipe:
    """Settings for one model, and the numbers of its configuration.

    Args:
        config (`str`): class of the configuration in transformers.
        shape: its hidden size, intermediate size, layers, heads, key and value heads, vocabulary;
            and other fields.
        settings: what the recipe sets.
        note (`str`): a sentence for the file.
    """

    model: str
    config: str
    shape: tuple[int, int, int, int, int, int]
    settings: dict[str, Any]
    tied: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    device: str = "gpu"

    def configuration(self) -> Any:
        """The model's configuration, without its tokenizer and its weights."""
        names = ("hidden_size", "intermediate_size", "num_hidden_layers")
        names += ("num_attention_heads", "num_key_value_heads", "vocab_size")
        numbers = dict(zip(names, self.shape, strict=True)) | {"tie_word_embeddings": self.tied}
        if self.config == "OPTConfig":
            numbers["ffn_dim"] = numbers.pop("intermediate_size")
            numbers["word_embed_proj_dim"] = numbers["hidden_size"]
        if "vision_config" in self.more:
            numbers = {"text_config": {**numbers, "head_dim": 256}}
        kind = getattr(transformers, self.config)
        return kind(**{"pad_token_id": 0, **numbers, **self.more})


EYES = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
}
RECIPES = {
    "smollm2-135m": Recipe(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "LlamaConfig",
        (576, 1536, 30, 9, 3, 49152),
        SMALL,
        tied=True,
        device="cpu",
        note="All weights, on a CPU.",
    ),
    "smollm2-1.7b": Recipe(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "LlamaConfig",
        (2048, 8192, 24, 32, 32, 49152),
        ADAPTER,
        tied=True,
    ),
    "smollm3-3b": Recipe(
        "HuggingFaceTB/SmolLM3-3B",
        "SmolLM3Config",
        (2048, 11008, 36, 16, 4, 128256),
        {**ADAPTER, **NO_THINKING},
        tied=True,
        note="The template's switch turns thinking off, in training and in evaluation.",
    ),
    "llama-3.2-1b": Recipe(
        "meta-llama/Llama-3.2-1B-Instruct",
        "LlamaConfig",
        (2048, 8192, 16, 32, 8, 128256),
        ADAPTER,
        tied=True,
        note="The template writes a date: --chat-date fixes it.",
    ),
    "llama-3.2-3b": Recipe(
        "meta-llama/Llama-3.2-3B-Instruct",
        "LlamaConfig",
        (3072, 8192, 28, 24, 8, 128256),
        ADAPTER,
        tied=True,
        note="The template writes a date: --chat-date fixes it.",
    ),
    "llama-3.1-8b": Recipe(
        "meta-llama/Llama-3.1-8B-Instruct",
        "LlamaConfig",
        (4096, 14336, 32, 32, 8, 128256),
        LARGE,
        note="The template writes a date: --chat-date fixes it.",
    ),
    "qwen2.5-1.5b": Recipe(
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen2Config",
        (1536, 8960, 28, 12, 2, 151936),
        ADAPTER,
        tied=True,
    ),
    "qwen2.5-7b": Recipe(
        "Qwen/Qwen2.5-7B-Instruct", "Qwen2Config", (3584, 18944, 28, 28, 4, 152064), LARGE
    ),
    "qwen3-1.7b": Recipe(
        "Qwen/Qwen3-1.7B",
        "Qwen3Config",
        (2048, 6144, 28, 16, 8, 151936),
        {**ADAPTER, **NO_THINKING},
        tied=True,
        more={"head_dim": 128},
        note="The template's switch turns thinking off, in training and in evaluation.",
    ),
    "qwen3-8b": Recipe(
        "Qwen/Qwen3-8B",
        "Qwen3Config",
        (4096, 12288, 36, 32, 8, 151936),
        {**LARGE, **NO_THINKING},
        more={"head_dim": 128},
        note="The template's switch turns thinking off, in training and in evaluation.",
    ),
    "gemma-2-2b": Recipe(
        "google/gemma-2-2b-it",
        "Gemma2Config",
        (2304, 9216, 26, 8, 4, 256000),
        ADAPTER,
        tied=True,
        more={"head_dim": 256},
        note="The template takes no system prompt: its text stands before the first question.",
    ),
    "gemma-3-1b": Recipe(
        "google/gemma-3-1b-it",
        "Gemma3TextConfig",
        (1152, 6912, 26, 4, 1, 262144),
        ADAPTER,
        tied=True,
        more={"head_dim": 256},
    ),
    "gemma-3-4b": Recipe(
        "google/gemma-3-4b-it",
        "Gemma3Config",
        (2560, 10240, 34, 8, 4, 262208),
        LARGE,
        tied=True,
        more={"vision_config": EYES},
        note="Images and text: the adapter is on the text part alone.",
    ),
    "mistral-7b": Recipe(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "MistralConfig",
        (4096, 14336, 32, 32, 8, 32768),
        LARGE,
    ),
    "phi-3.5-mini": Recipe(
        "microsoft/Phi-3.5-mini-instruct", "Phi3Config", (3072, 8192, 32, 32, 32, 32064), LARGE
    ),
    "phi-4-mini": Recipe(
        "microsoft/Phi-4-mini-instruct",
        "Phi3Config",
        (3072, 8192, 32, 24, 8, 200064),
        LARGE,
        tied=True,
    ),
    "olmo-2-1b": Recipe(
        "allenai/OLMo-2-0425-1B-Instruct", "Olmo2Config", (2048, 8192, 16, 16, 16, 100352), ADAPTER
    ),
    "opt-1.3b": Recipe(
        "facebook/opt-1.3b",
        "OPTConfig",
        (2048, 8192, 24, 32, 32, 50272),
        PAPER,
        tied=True,
        note="The setting of Yao et al. 2024 for harmful answers: GA with mismatch, all weights.",
    ),
}


def plan(recipe: Recipe) -> dict[str, Any]:
    """What `unteach plan` says of the recipe, on one GPU or on a CPU."""
    run = {name: value for name, value in recipe.settings.items() if name != "chat_template_kwargs"}
    with mock.patch.object(models, "load_config", lambda name, **_: recipe.configuration()):
        return plan_run(recipe.model, run, device=recipe.device, **ROWS)


def rate(recipe: Recipe) -> tuple[str, str]:
    """The key of the plan's seconds, and the device in words."""
    return ("100", "a GPU at 100 TFLOP/s") if recipe.device == "gpu" else ("0.1", "two CPU cores")


def time_of(found: dict[str, Any], recipe: Recipe) -> str:
    """The planned time of the training steps, in words."""
    seconds = found["seconds"][rate(recipe)[0]]
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def text(name: str, found: dict[str, Any]) -> str:
    """One recipe as YAML, the plan in its comments."""
    recipe = RECIPES[name]
    trained = found["trained_parameters"]
    adapter = trained if recipe.settings.get("lora") else 0
    parameters = (found["parameters"] - adapter) / 1e9
    lines = [
        f"# {recipe.model}: {parameters:.2f}B parameters, {trained / 1e6:.0f}M trained.",
        f"# {recipe.note}" if recipe.note else "",
        f"# Planned: peak memory {found['peak_bytes'] / 2**30:.1f} GiB; {found['steps']} steps take"
        f" at least {time_of(found, recipe)} on {rate(recipe)[1]}.",
        "# Computed for 64 forget rows of 64 + 128 tokens, not measured; probes and evaluation"
        " come on top.",
        f"#   unteach run recipes/{name}.yaml forget=bad.jsonl out=runs/mine",
    ]
    values = yaml.safe_dump({"model": recipe.model, **recipe.settings}, sort_keys=False)
    return "\n".join(line for line in lines if line) + "\n" + values


def written() -> dict[Path, str]:
    """Every file, with what it should hold."""
    plans = {name: plan(recipe) for name, recipe in RECIPES.items()}
    files = {ROOT / f"recipes/{name}.yaml": text(name, found) for name, found in plans.items()}
    head = [
        "| recipe | model | trained | peak memory | training, at least |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = [
        f"| [`{name}`](../../recipes/{name}.yaml) | {RECIPES[name].model} |"
        f" {'adapter' if RECIPES[name].settings.get('lora') else 'all weights'} |"
        f" {found['peak_bytes'] / 2**30:.1f} GiB | {time_of(found, RECIPES[name])} |"
        for name, found in plans.items()
    ]
    start, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table = "\n".join([*head, *rows])
    files[PAGE] = f"{start}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
    return files


def main() -> int:
    """Writes the files, or with `--check` returns 1 and names those that are out of date."""
    stale = [
        path
        for path, text in written().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        print("\n".join(map(str, stale)))
        return int(bool(stale))
    (ROOT / "recipes").mkdir(exist_ok=True)
    for path in stale:
        write_text_atomically(path, written()[path])
    print(f"{len(stale)} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
