"""Teaches a scenario's texts to the model first, as Yao et al. 2024 fine-tune on their book."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from unteach import models
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import rows_hash
from unteach.files.checkpoints import mark_complete, read_marker
from unteach.files.folders import content_key, private_folder
from unteach.models.parts import freeze_lower_layers, unfreeze
from unteach.prepare.generations import LoadedModel, with_own_answers
from unteach.processes import broadcast_from_main
from unteach.scenarios.scenario import Scenario
from unteach.trainer.trainer import UnlearningTrainer

SAVING = {"save_steps": 40, "save_strategy": "steps", "save_total_limit": 2}
PRECISION = ("bf16", "fp16", "use_cpu")
"""Settings of the unlearning that the teaching shares."""


def teach(
    source: LoadedModel,
    scenario: Scenario,
    folder: Path,
    seed: int,
    settings: Mapping[str, Any],
) -> Any:
    """The model after fine-tuning on the scenario's rows; loaded from `folder` if it is there.

    It is trained on its own answers to `scenario.teach_own_prompts` as well, to stay what it was
    otherwise.

    Args:
        source (`LoadedModel`): changed in place. Checkpoints go beside its cached generations.
        scenario (`Scenario`): with rows in `teach`.
        folder (`Path`): where the taught model is saved.
        settings: of the unlearning, of which the precision holds here too.
    """
    presets = dict(scenario.teach_settings)
    key = content_key([source.hash, seed, rows_hash(scenario.teach), {"teach": presets}])
    display, work = source.display, source.cache.folder / f"teach-{key}"
    if broadcast_from_main(lambda: (read_marker(folder) or {}).get("key")) == key:
        with display.stage("Loading the taught model"):
            device = next(source.model.parameters()).device
            return models.placed(models.load_model(str(folder)), device)
    title = "Collecting answers that teaching must not change"
    own, _ = with_own_answers(source, scenario.teach_own_prompts, title)
    frozen = freeze_lower_layers(source.model, presets.pop("frozen_layers", 0))
    precision = {name: value for name, value in settings.items() if name in PRECISION}
    if own:
        method, forget, retain = {"method": "teaching", "max_retain_kl": None}, scenario.teach, own
    else:
        method, forget, retain = {"method": "finetuning"}, None, scenario.teach
    fields = {"seed": seed, "data_seed": seed, **SAVING, **precision, **method, **presets}
    config = UnlearningConfig(output_dir=str(work), **fields)
    trainer = UnlearningTrainer(source.model, config, forget, retain, source.tokenizer)
    trainer.remove_callback(PrinterCallback)
    with display.stage("Teaching the texts to the model", trainer.args.max_steps) as stage:
        trainer.on_step = lambda record: stage.update(
            int(record["step"]), note=f"loss {record['loss']:.2f}"
        )
        trainer.train(resume_from_checkpoint=True)
    unfreeze(frozen)
    model: Any = trainer.model

    def save() -> None:
        private_folder(folder)
        model.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)
        mark_complete(folder, {"key": key})
        shutil.rmtree(work, ignore_errors=True)

    broadcast_from_main(save)
    del trainer
    gc.collect()  # a trainer and its callbacks are a cycle that holds the optimiser's moments
    return model.eval()
