"""What a scenario's model is taught before it has anything to forget, as the paper fine-tunes on
its book first.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from unteach import models
from unteach.config.unlearning import UnlearningConfig
from unteach.data.rows import rows_hash
from unteach.files.checkpoints import mark_complete, read_marker
from unteach.files.folders import content_key, private_folder
from unteach.models.parts import freeze_lower_layers, unfreeze
from unteach.prepare.collecting import Collection
from unteach.processes import broadcast_from_main
from unteach.progress import Display
from unteach.scenarios.scenario import Scenario
from unteach.trainer.trainer import UnlearningTrainer


def teach(
    model: Any,
    tokenizer: Any,
    scenario: Scenario,
    collection: Collection,
    configured: Callable[..., UnlearningConfig],
    shared: Path,
    display: Display,
) -> Any:
    """The model that knows the scenario's rows, from `shared/original` where they have been taught
    already; kept there otherwise.

    Beside them it learns its own answers to `scenario.teach_own_prompts`, so that it stays the
    model that it was in all else.

    Args:
        model: changed in place.
        tokenizer: its tokenizer.
        scenario (`Scenario`): with rows in `teach`, and settings in `presets["teach"]`.
        collection (`Collection`): who collects the model's own answers; knows its key, the seed,
            and a folder for what is half done.
        configured: from a folder and fields to an `UnlearningConfig` with the run's seed.
        shared (`Path`): where `original/` stands.
        display (`Display`)
    """
    folder = shared / "original"
    key = content_key(
        [collection.model_key, collection.seed, rows_hash(scenario.teach), dict(scenario.presets)]
    )
    work = collection.work / f"teach-{key}"
    if broadcast_from_main(lambda: (read_marker(folder) or {}).get("key")) == key:
        with display.stage("Loading the taught model"):
            return models.placed(models.load_model(str(folder)), next(model.parameters()).device)
    title = "Collecting answers that teaching must not change"
    own = collection.with_completions(model, tokenizer, scenario.teach_own_prompts, title)
    settings = dict(scenario.presets.get("teach", {}))
    frozen = freeze_lower_layers(model, settings.pop("frozen_layers", 0))
    saving = {"save_steps": 40, "save_strategy": "steps", "save_total_limit": 2}
    if own:
        config = configured(
            work, **{"method": "teaching", "max_retain_kl": None, **saving, **settings}
        )
        trainer = UnlearningTrainer(model, config, scenario.teach, own, tokenizer)
    else:
        config = configured(work, method="finetuning", **saving, **settings)
        trainer = UnlearningTrainer(model, config, None, scenario.teach, tokenizer)
    trainer.remove_callback(PrinterCallback)
    with display.stage("Teaching the texts to the model", trainer.args.max_steps) as stage:
        trainer.on_step = lambda record: stage.update(
            int(record["step"]), note=f"loss {record['loss']:.2f}"
        )
        trainer.train(resume_from_checkpoint=True)
    unfreeze(frozen)
    model = trainer.model

    def keep() -> None:
        private_folder(folder)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        mark_complete(folder, {"key": key})
        shutil.rmtree(work, ignore_errors=True)

    broadcast_from_main(keep)
    del trainer
    # a trainer and its callbacks hold each other, and with them the optimiser's moments: twice the
    # model
    gc.collect()
    return model.eval()
