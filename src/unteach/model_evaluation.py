"""`unteach eval`: a model, and the one before it, asked and scored without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unteach import models
from unteach.data.rows import Row
from unteach.data.sources import load_rows
from unteach.evaluation.scoring import answer_sets, score_models
from unteach.evaluation.text_metrics import leak_threshold
from unteach.progress import Display
from unteach.scenarios import copyright
from unteach.scenarios.texts import lines


def evaluate_models(
    model: str,
    reference: str | None,
    *,
    scenario: str | None = None,
    forget: Any = None,
    retain: Any = None,
    output_dir: str,
    show_text: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Asks and scores a model (and the one before it) without training; writes `eval.json` and `generations.jsonl`.

    Args:
        model, reference (`str`): the model after and before; without a reference both columns are the same model.
        scenario (`str`, *optional*): an embedded scenario whose prompt sets are used.
        forget, retain (*optional*): rows of the sets `unlearned` and `retain` instead.
        output_dir (`str`)
        show_text (`bool`): whether forget texts are written.
        display (`Display`, *optional*)
    """
    display = display or Display(quiet=True)
    folder = Path(output_dir)
    if scenario:
        built = copyright.build()
        sets, corpus = dict(built.sets), built.leak_corpus
    else:
        rows = load_rows(forget, "forget")
        sets, corpus = {"unlearned": rows}, [row.completion for row in rows][:64]
        if retain is not None:
            sets["retain"] = load_rows(retain, "retain")
        sets["normal"] = [Row(line, "", "chat", "neutral prompt") for line in lines("neutral_prompts")[-20:]]
    names = {"original": reference or model, "unlearned": model}
    outputs: dict[str, dict[str, list[str]]] = {}
    loaded: Any = None
    for role, name in names.items():
        if role == "unlearned" and name == names["original"]:
            outputs[role] = outputs["original"]
            continue
        with display.stage(f"Asking {name}", sum(map(len, sets.values()))) as stage:
            loaded, tokenizer = models.load_model(name), models.load_tokenizer(name)
            outputs[role] = answer_sets(loaded, tokenizer, sets, progress=stage.update)
    with display.stage("Scoring the answers") as stage:
        return score_models(
            scenario or "eval",
            sets,
            outputs,
            tokenizer,
            fluency_model=models.load_model(names["original"]),
            fluency_name=names["original"],
            threshold=leak_threshold(corpus),
            similarity_model="all-minilm-l6-v2",
            show_text=show_text,
            folder=folder,
            progress=stage.update,
        )
