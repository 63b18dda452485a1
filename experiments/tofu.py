"""TOFU on a small model: forgetting of forget10's first authors, utility, and the distance to a
retrained model.

The model is fine-tuned on the first 40 rows of forget10 and the first 120 of retain90 (`full`), and
another on the 120 alone (`retrained`). Each method then unlearns the 40 with four fifths of the 120
as retain set; the others are only measured. `default` is `unteach run` with nothing set but model
and files. All others have the same batch size and maximum number of steps: ours with a run's
defaults (`+own`: the model's own answers beside the retain rows), and with the retain rows alone,
as the published ones do. Those have the weights and the retain term of their pages in docs/methods,
and no KL budget. `--times` multiplies a run's default learning rate for the method, which was found
on the copyright demo: each rate is a row of its own, none is selected. All are evaluated as by
`unteach eval --benchmark tofu`: the 40 rows, 40 of the 120, 30 of real authors and 30 of world
facts.

    python experiments/tofu.py --data data/tofu --json docs/results/tofu.json [--methods npo,ga]
    [--times 1,0.3] [--seeds 0] [--bf16]

The folder holds forget10, retain90 and the four `..._perturbed` files as JSONL. A model whose
result is in `--out` is not trained again. Beside FILE it writes the table as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
import torch

from unteach import models
from unteach.config.resolve import resolve, suitable_learning_rate
from unteach.data.rows import Row, rows_hash
from unteach.data.sources import load_rows
from unteach.errors import TrainingFault
from unteach.evaluation.benchmarks import tofu
from unteach.evaluation.benchmarks.benchmark import EvaluatedModel
from unteach.evaluation.generation import TransformersGenerator
from unteach.files.atomic import write_json
from unteach.files.folders import content_key, private_folder
from unteach.methods import DEFAULT_METHOD, get_method
from unteach.prepare.generations import LoadedModel
from unteach.prepare.teaching import teach
from unteach.progress import Display
from unteach.reports.tables import Table
from unteach.run.pipeline import execute
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import prompt_rows
from unteach.scenarios.user_rows import user_scenario

DEFAULT = "default"
"""`unteach run` with nothing set: the method by the rows, and its own budget of steps."""
OWN = "+own"
"""Behind a method's name: the full model's own answers to 48 neutral prompts are kept beside the
retain rows, as a run does by itself.
"""
OURS = (DEFAULT, f"{DEFAULT_METHOD}{OWN}", "unlikelihood_mismatch+own", "unlikelihood_mismatch")
METHODS = (*OURS, "ga", "ga_mismatch", "grad_diff", "npo")
BEFORE = ("full", "retrained")
TEACHING = {
    "learning_rate": 1.5e-4,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 0.5, "lr_end": 0.0},
    "per_device_train_batch_size": 8,
    "num_train_epochs": 7,
}
UNLEARNING = {
    "per_device_train_batch_size": 4,
    "retain_per_forget": 1.5,
    "max_steps": 60,
    "probe_steps": 10,
    "save_strategy": "no",
}
PLACES = (Path("data") / "tofu", Path("..") / "shared" / "data" / "tofu")
COLUMNS = (
    ("forget", "probability", "forget: probability"),
    ("forget", "rouge_l_recall", "ROUGE-L recall"),
    ("forget", "rouge_l_f1", "F1"),
    ("forget", "truth_ratio_score", "truth ratio"),
    ("forget", "extraction_strength", "extraction"),
    ("retain", "probability", "retain: probability"),
    ("retain", "rouge_l_recall", "ROUGE-L recall"),
    ("retain", "rouge_l_f1", "F1"),
    ("real_authors", "rouge_l_recall", "real authors: ROUGE-L recall"),
    ("world_facts", "rouge_l_recall", "world facts: ROUGE-L recall"),
    ("all", "model_utility", "model utility"),
)
LEGEND = """Made by `python experiments/tofu.py`, whose head says how; the columns are
[TOFU's](../how-to/benchmarks.md#tofu).

- **default**: `unteach run` with nothing set but the model and the files of rows.
- **kept, held out**: ROUGE-L recall, relative to the full model's, of the retain rows that no
  method trains on.
- **`+own`**: the full model's own answers to 48 neutral prompts are kept beside the retain rows,
  as `unteach run` does by itself.
- **full**: the model that was taught all rows; **retrained**: the model that was taught the retain
  rows alone, the ideal result.
- **distance**: of the forget rows' truth ratios to the retrained model's (Kolmogorov-Smirnov).
  With 40 rows two samples of the same distribution have a distance of 0.18 on average, and over
  0.32 in one case of twenty: smaller differences are not significant.
- **forget quality**: that test's p-value; over seeds the geometric mean.
- **forget rate**: leak rate of the forget rows (`default`: said facts); **normal**: similarity of
  everyday answers to the full model's.
- **fluency**: mean NLL, in nats per token, of the answers to forget rows under the model before
  teaching (NM: not meaningful).
- **seconds**: time of the unlearning steps.
- **front**: Pareto-optimal in distance to the retrained model and model utility.

The probe that decides when a run stops and which weights are kept measures the leak rate on 24 of
the forget rows and utility on 24 of the retain rows: as in TOFU, evaluation is on training rows. It
does not use truth ratios. `ga` has the KL term of Yao et al."""
TIMES = "`{}`: `{}` at {:g} times the learning rate that a run takes for it by itself."
"""Below the legend, for each row at another rate."""


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = record.run_parser(__doc__, "tofu")
    default = next((place for place in PLACES if place.exists()), PLACES[0])
    parser.add_argument(
        "--data", type=Path, default=default, help="folder of TOFU's files (default: %(default)s)"
    )
    parser.add_argument("--methods", help="names, separated by commas (default: all)")
    parser.add_argument(
        "--times",
        default="1",
        help="factors on each method's learning rate, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 autocast while training, for CPUs that multiply it fast",
    )
    return parser.parse_args()


def settings_of(method: str, short: bool, bf16: bool) -> dict[str, Any]:
    """Fields of `UnlearningConfig`."""
    steps = {"max_steps": 2, "probe_steps": 1} if short else {}
    name = method.removesuffix(OWN)
    resolved = resolve({"method": name})
    by_method = {k: v for k, v in resolved.training.items() if resolved.sources[k] == "method"}
    own = by_method if method in OURS else {"max_retain_kl": None}
    return {**UNLEARNING, **steps, "method": name, "bf16": bf16, **own}


def forget_rate(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The forget rate of a run's results; files of earlier versions call it `still_said`."""
    found: Mapping[str, Any] | None = row.get("forget_rate", row.get("still_said"))
    return found


class Protocol:
    """One seed: the rows, the two taught models, and a run for each method."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed, self.display = options, seed, Display()
        self.folder = options.out / f"seed-{seed}"
        forgotten, kept, others = (4, 6, 2) if options.short else (40, 120, 30)
        self.forget: list[Row] = load_rows(str(options.data / "forget10.jsonl"), "forget")[
            :forgotten
        ]
        self.retain: list[Row] = load_rows(str(options.data / "retain90.jsonl"), "retain")[:kept]
        sets = tofu.load(str(options.data), None)
        known = {
            "forget": {row.prompt_text for row in self.forget},
            "retain": {row.prompt_text for row in self.retain[::3]},
        }
        self.sets = {
            name: (
                [question for question in questions if question.row.prompt_text in known[name]]
                if name in known
                else [
                    questions[place * len(questions) // others]
                    for place in range(min(others, len(questions)))
                ]
            )
            for name, questions in sets.items()
        }
        for name, prompts in known.items():
            if len(self.sets[name]) != len(prompts):
                raise SystemExit(
                    f"{options.data}: {len(self.sets[name])} of the {len(prompts)} {name} rows have"
                    " a perturbed row"
                )
        teaching = {**TEACHING, **({"num_train_epochs": 1} if options.short else {})}
        users = user_scenario(self.forget, self.retain)
        normal = users.sets["normal"]
        self.scenario = replace(
            users,
            sets={**users.sets, "normal": normal[:2] if options.short else normal},
            teach=[*self.forget, *self.retain],
            teach_settings=teaching,
        )

    def run(self, name: str, scenario: Scenario, settings: Mapping[str, Any]) -> None:
        """A run of this seed, in a folder of its own; the full model is shared."""
        given = {
            "model": self.options.model,
            "output_dir": str(self.folder / name),
            "seed": self.seed,
            "shared_dir": str(self.folder / "full"),
            "show_text": True,
            **settings,
        }
        execute(resolve(given), scenario, self.display)

    def taught(self, name: str) -> Path:
        """The folder of a taught model: of all rows, or of the retain rows alone."""
        scenario = (
            self.scenario if name == "full" else replace(self.scenario, teach=list(self.retain))
        )
        model = models.load_model(self.options.model)
        tokenizer = models.load_tokenizer(self.options.model)
        torch.manual_seed(self.seed)
        folder = self.folder / name / "original"
        work = private_folder(self.folder / name / "work")
        source = LoadedModel.of(model, tokenizer, work, self.display)
        teach(source, scenario, folder, self.seed, {"bf16": self.options.bf16})
        return folder

    def measured(self, folder: Path) -> dict[str, Any]:
        """TOFU's numbers of a model, and its forget rows' truth ratios by key."""
        model, tokenizer = models.load_model(str(folder)), models.load_tokenizer(str(folder))
        with self.display.stage(f"Measuring {folder.parent.name}") as stage:
            found = tofu.measure(
                EvaluatedModel(
                    model, tokenizer, TransformersGenerator(model, tokenizer), progress=stage.update
                ),
                self.sets,
            )
        numbers = {
            name: {metric: result.as_json() for metric, result in metrics.items()}
            for name, metrics in tofu.BENCHMARK.results(found).items()
        }
        texts = {
            name: [
                dict(zip(values.texts, row, strict=True))
                for row in zip(*values.texts.values(), strict=True)
            ]
            for name, values in found.sets.items()
        }
        write_json(folder.parent / "tofu-answers.json", texts)
        forget = found.sets["forget"]
        ratios = dict(zip(forget.keys, forget.columns["truth_ratio"], strict=True))
        return {"sets": numbers, "truth_ratios": ratios}

    def rows_key(self) -> str:
        """Names everything but the method that a result depends on."""
        asked = {
            name: [question.row.key for question in questions]
            for name, questions in self.sets.items()
        }
        return content_key(
            [
                self.options.model,
                self.options.bf16,
                rows_hash(self.scenario.teach),
                rows_hash(self.scenario.retain),
                asked,
                dict(self.scenario.teach_settings),
            ]
        )

    def cell(self, name: str, times: float) -> dict[str, Any]:
        """One row of the table."""
        if name in BEFORE:
            return self.measured(self.taught(name))
        if name == DEFAULT:
            steps = {"max_steps": 2, "probe_steps": 1} if self.options.short else {}
            return self.unlearned(name, self.scenario, {"bf16": self.options.bf16, **steps})
        settings = settings_of(name, self.options.short, self.options.bf16)
        width = models.width(models.load_model(self.options.model))
        rate = suitable_learning_rate(width, name.removesuffix(OWN), lora=False) * times
        title = label(name, times)
        neutral = prompt_rows("neutral_prompts")[:48]
        scenario = replace(self.scenario, own_prompts=neutral if name.endswith(OWN) else [])
        try:
            return self.unlearned(title, scenario, {**settings, "learning_rate": rate})
        except TrainingFault as fault:
            return {"fault": str(fault), "learning_rate": rate}

    def unlearned(
        self, title: str, scenario: Scenario, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The numbers of a run."""
        self.run(title, scenario, settings)
        folder = self.folder / title
        facts, evaluation = (
            json.loads((folder / file).read_text(encoding="utf-8"))
            for file in ("run.json", "eval.json")
        )
        full, after = (evaluation["models"][name] for name in ("original", "unlearned"))
        recalls = [
            found["kept_unseen"]["rouge_l_recall"]["value"]
            for found in (full, after)
            if "kept_unseen" in found
        ]
        numbers = {
            **self.measured(folder / "model"),
            "forget_rate": after["unlearned"][evaluation["headline"]],
            "normal": after["normal"]["similarity"]["value"],
            "kept_held_out": recalls[1] / recalls[0] if recalls and recalls[0] else None,
            "fluency": after["unlearned"]["fluency"]["value"],
            "seconds": next(cost for cost in facts["costs"] if cost["stage"] == "unlearning")[
                "seconds"
            ],
            **{key: facts[key] for key in ("learning_rate", "steps", "kept_step", "stop_reason")},
        }
        for done in ("model", "checkpoints"):
            shutil.rmtree(folder / done, ignore_errors=True)
        return numbers


def label(name: str, times: float) -> str:
    """How a method at this multiple of its learning rate is called."""
    return name if times == 1 else f"{name} x{times:g}"


def against_retrained(row: Mapping[str, Any], retrained: Mapping[str, Any]) -> tuple[float, float]:
    """(distance, p-value) of a model's truth ratios to the retrained model's."""
    found = tofu.forget_quality(row["truth_ratios"], retrained["truth_ratios"])
    return float(found.statistic), float(found.pvalue)


def mean(values: Sequence[float | None]) -> float | None:
    """`None` where there is nothing, or one of them is nothing."""
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given and len(given) == len(values) else None


def table_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Model or method to its numbers, means over seeds; one that broke down in a seed has none."""
    retrained = {row["seed"]: row for row in rows if row["name"] == "retrained"}
    table: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(label(row["name"], row["times"]) for row in rows):
        every = [row for row in rows if label(row["name"], row["times"]) == name]
        own = [row for row in every if "fault" not in row]
        whole = own if len(own) == len(every) else []
        found = [
            against_retrained(row, retrained[row["seed"]])
            for row in whole
            if row["seed"] in retrained
        ]
        quality = mean([math.log10(p) for _, p in found])
        table[name] = {
            "columns": [
                mean([row["sets"][part][metric]["value"] for row in whole])
                for part, metric, _ in COLUMNS
            ],
            "distance": mean([distance for distance, _ in found]),
            "quality": None if quality is None else 10**quality,
            "utility": mean([row["sets"]["all"]["model_utility"]["value"] for row in whole]),
            "forget_rate": mean(
                [rate["value"] for row in whole if (rate := forget_rate(row)) is not None]
            ),
            **{
                key: mean([row[key] for row in whole if key in row])
                for key in ("kept_held_out", "normal", "fluency", "seconds")
            },
            "rates": sorted({row["learning_rate"] for row in every if "learning_rate" in row}),
            "fault": next((row["fault"] for row in every if "fault" in row), None),
            "seeds": len(every),
        }
    return table


def on_the_front(table: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Those that no other beats: nearer to the retrained model and of as high a utility, or as near
    and of a higher one.
    """
    points = {
        name: (round(row["distance"], 3), -round(row["utility"], 3))
        for name, row in table.items()
        if name not in BEFORE and row["distance"] is not None
    }
    return {
        name
        for name, (far, lost) in points.items()
        if not any(
            other != (far, lost) and other[0] <= far and other[1] <= lost
            for other in points.values()
        )
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page."""
    table = table_of(rows)
    front = on_the_front(table)

    def shown(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = []
    for name, row in table.items():
        fluency = (
            ""
            if name in BEFORE or row["fault"]
            else "NM"
            if row["fluency"] is None
            else shown(row["fluency"])
        )
        cells.append(
            [
                f"`{name}`",
                *map(shown, row["columns"]),
                shown(row["distance"]),
                "" if row["quality"] is None else f"{row['quality']:.2g}",
                "" if row["forget_rate"] is None else f"{row['forget_rate']:.0%}",
                shown(row["kept_held_out"]),
                shown(row["normal"]),
                fluency,
                shown(row["seconds"], 0),
                "yes" if name in front else "",
                ", ".join(f"{rate:g}" for rate in row["rates"]),
                str(row["seeds"]),
            ]
        )
    header = [
        "model",
        *(title for *_, title in COLUMNS),
        "distance",
        "forget quality",
        "forget rate",
        "kept, held out",
        "normal",
        "fluency",
        "seconds",
    ]
    others = dict.fromkeys((row["name"], row["times"]) for row in rows if row["times"] != 1)
    legend = "\n\n".join([LEGEND, *(TIMES.format(label(*other), *other) for other in others)])
    table = Table([*header, "front", "learning rate", "seeds"], cells)
    return f"# TOFU\n\n{legend}\n\n{table.markdown()}"


def main() -> None:
    """Makes and measures what is not there yet."""
    options = parse_options()
    if not (options.data / "forget10.jsonl").exists():
        print(f"{options.data} does not hold TOFU's files; nothing to measure")
        return
    methods = (
        [name.strip() for name in options.methods.split(",")]
        if options.methods
        else METHODS[: 1 if options.short else None]
    )
    for name in methods:
        if name != DEFAULT:
            get_method(name.removesuffix(OWN))
    wanted = [(name, 1.0) for name in BEFORE] + [
        (name, float(times)) for times in options.times.split(",") for name in methods
    ]
    results = options.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for seed in map(int, options.seeds.split(",")):
        protocol = Protocol(options, seed)
        for name, times in wanted:
            path = results / f"{label(name, times)}-{seed}.json"
            if not path.exists():
                found = protocol.cell(name, times)
                write_json(
                    path,
                    {
                        "name": name,
                        "times": times,
                        "seed": seed,
                        "key": protocol.rows_key(),
                        **found,
                    },
                )
    order = {name: place for place, name in enumerate([*BEFORE, *METHODS])}
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    rows.sort(key=lambda row: (order.get(row["name"], 99), row["name"], -row["times"], row["seed"]))
    if len({row["key"] for row in rows}) > 1:
        raise SystemExit(
            f"{results} holds results of other rows, another model or another precision; give"
            " another --out"
        )
    page = markdown(rows)
    record.write_page(page, rows, options.json)


if __name__ == "__main__":
    main()
