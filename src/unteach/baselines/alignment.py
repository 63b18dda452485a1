"""Runs an alignment pipeline stage by stage on TRL's trainers; each stage can be killed and goes on, and is priced on its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback

from unteach import models
from unteach.baselines.costs import Cost, forget_peak_memory, peak_memory_mb
from unteach.baselines.pipelines import PIPELINES
from unteach.checkpoints import latest_checkpoint, mark_complete, read_marker
from unteach.data.rows import Row
from unteach.data.tokenization import render_prompt
from unteach.errors import UserError

OnStage = Callable[[str, int, int], None]
"""Called with (stage, step, steps)."""


@dataclass(frozen=True)
class Aligned:
    """The model that a pipeline ends with, and the price of each stage."""

    model: Any
    costs: list[Cost]


def align(
    pipeline: str,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: Path,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    on_stage: OnStage | None = None,
) -> Aligned:
    """Trains `model` through the stages of a pipeline.

    A stage that is whole in `folder` is not done again; one that was interrupted goes on from its newest whole checkpoint.

    Args:
        pipeline (`str`): a name in `PIPELINES`.
        model: the causal language model to start from; the first stage changes it.
        tokenizer: its tokenizer.
        rows (`Sequence[Row]`): prompt, bad answer (`completion`) and good answer (`right`).
        folder (`Path`): one folder for each stage is made here.
        settings: for each stage, fields of TRL's config (see `stage_settings`).
        seed (`int`)
        on_stage (`Callable`, *optional*)

    Raises:
        UserError: without TRL, and for a setting that TRL's config refuses.
    """
    data_tokens = {
        stage: _count(tokenizer, rows, pairs=stage in ("dpo", "reward")) if stage != "rl" else 0 for stage in PIPELINES[pipeline].stages
    }
    costs: list[Cost] = []
    base = model
    for stage in PIPELINES[pipeline].stages:
        target = folder / stage
        done = read_marker(target)
        if done is None:
            start = base if stage == "sft" else folder / "sft"
            with _silent_datasets():
                trainer, counter = _trainer(stage, start, tokenizer, rows, folder, dict(settings[stage]), seed)
            done = asdict(_train(stage, trainer, counter, data_tokens[stage], on_stage))
            trained = trainer.accelerator.unwrap_model(trainer.model)
            trained.save_pretrained(target)
            tokenizer.save_pretrained(target)
            mark_complete(target, done)
            del trainer, trained
        costs.append(Cost(**done))
    return Aligned(models.load_model(str(folder / PIPELINES[pipeline].stages[-1])), costs)


def stage_config(stage: str, settings: Mapping[str, Any], folder: Path, seed: int) -> Any:
    """TRL's config for a stage.

    Raises:
        UserError: without TRL, and for a field that the config has not or refuses.
    """
    try:
        from trl import DPOConfig, RewardConfig, RLOOConfig, SFTConfig
    except ImportError:
        raise UserError("the baselines stand on TRL, which is not installed; install it with: pip install 'unteach[baselines]'") from None
    kind = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig, "rl": RLOOConfig}[stage]
    common = {
        "output_dir": str(folder / f"{stage}-checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_steps": 50,
        "save_total_limit": 1,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    }
    more = {"reward_weights": [1.0, 0.0]} if stage == "rl" else {}
    try:
        return kind(**common | more | dict(settings))
    except (TypeError, ValueError) as error:
        raise UserError(f"stage {stage!r}: {' '.join(str(error).split())}") from None


class _TokenCounter:
    """A reward function of weight 0 that only counts what was generated."""

    __name__ = "generated_tokens"

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        self.count += sum(map(len, completion_ids))
        return [0.0] * len(completions)


class _Keeper(TrainerCallback):
    """Marks each checkpoint as whole, with what was spent so far, and reports the steps."""

    def __init__(self, stage: str, spent: float, counter: _TokenCounter, on_stage: OnStage | None) -> None:
        self.stage, self.counter, self.on_stage = stage, counter, on_stage
        self.started = time.monotonic() - spent

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each checkpoint."""
        spent = {"step": state.global_step, "seconds": time.monotonic() - self.started, "generated": self.counter.count}
        mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", spent)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each step."""
        if self.on_stage:
            self.on_stage(self.stage, state.global_step, state.max_steps)


@contextlib.contextmanager
def _silent_datasets() -> Iterator[None]:
    """Without the bars that the preparation of the data draws."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def stage_records(stage: str, rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """The rows in TRL's format for a stage: messages where the tokenizer has a chat template, else the paper's template as text.

    `sft`: prompt, completion; `dpo` and `reward`: prompt, chosen, rejected; `rl`: prompt.
    """
    records: list[dict[str, Any]] = []
    for row in rows:
        if row.kind == "chat" and getattr(tokenizer, "chat_template", None):
            turns = [("user", row.prompt)] if isinstance(row.prompt, str) else row.prompt
            record: dict[str, Any] = {"prompt": [{"role": role, "content": text} for role, text in turns]}
            good, bad = _turn("assistant", row.right.strip()), _turn("assistant", row.completion.strip())
        else:
            record = {"prompt": render_prompt(row, tokenizer).rstrip()}
            good, bad = f" {row.right.strip()}", f" {row.completion.strip()}"  # type: ignore[assignment]
        if stage == "sft":
            record["completion"] = good
        elif stage in ("dpo", "reward"):
            record |= {"chosen": good, "rejected": bad}
        records.append(record)
    return records


def _trainer(
    stage: str, start: Any, tokenizer: Any, rows: Sequence[Row], folder: Path, settings: dict[str, Any], seed: int
) -> tuple[Any, _TokenCounter]:
    config = stage_config(stage, settings, folder, seed)
    from datasets import Dataset
    from trl import DPOTrainer, RewardTrainer, RLOOTrainer, SFTTrainer

    data, counter = Dataset.from_list(stage_records(stage, rows, tokenizer)), _TokenCounter()
    common = {"args": config, "train_dataset": data, "processing_class": tokenizer}
    if stage == "sft":
        return SFTTrainer(model=start, **common), counter
    if stage == "dpo":
        return DPOTrainer(model=models.load_model(str(start)), ref_model=models.load_model(str(start)), **common), counter
    if stage == "reward":
        return RewardTrainer(model=_scorer(start, tokenizer, seed), **common), counter
    reward = _scorer(folder / "reward", tokenizer, seed)
    policy = models.load_model(str(start))
    return RLOOTrainer(model=policy, reward_funcs=[reward, counter], reward_processing_classes=[tokenizer, None], **common), counter


def _scorer(folder: Path, tokenizer: Any, seed: int) -> Any:
    """A reward model: the weights in `folder` with one output; a new head is drawn from `seed`."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32, use_safetensors=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _train(stage: str, trainer: Any, counter: _TokenCounter, data_tokens: int, on_stage: OnStage | None) -> Cost:
    output = Path(trainer.args.output_dir)
    found = latest_checkpoint(output)
    before = (read_marker(found) or {}) if found else {}
    counter.count = int(before.get("generated", 0))
    keeper = _Keeper(stage, float(before.get("seconds", 0.0)), counter, on_stage)
    trainer.add_callback(keeper)
    trainer.remove_callback(PrinterCallback)
    forget_peak_memory()
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    seconds = time.monotonic() - keeper.started
    return Cost(stage, round(seconds, 1), data_tokens, counter.count, tokens_seen(trainer.state.log_history), round(peak_memory_mb(), 1))


def tokens_seen(history: Sequence[Mapping[str, Any]]) -> int:
    """Training tokens from a trainer's log, whose running count begins anew where a run was resumed."""
    total, last = 0.0, 0.0
    for record in history:
        if "num_tokens" in record:
            now = float(record["num_tokens"])
            total += now if now < last else now - last
            last = now
    return int(total)


def _count(tokenizer: Any, rows: Sequence[Row], *, pairs: bool) -> int:
    texts = [row.right for row in rows] + ([row.completion for row in rows] if pairs else [])
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
