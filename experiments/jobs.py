"""Jobs that people have, by each method with nothing set but model and files: what is forgotten,
what else is lost, and whether the answers are language.

Four jobs: invented people (a third of them in no file), questions about a writer whom the model
knows from pretraining, hallucinated answers, the first passages of a book. The model is first
taught what it does not know. `default` is what `unteach run` takes by itself; a method's row sets
`method` alone, so that its weights and retain term are those of its page and the rate is the
project's for it. What is said of people is counted with the facts of the data's file, which the run
is not told; all else is in the run's `eval.json`.

    python experiments/jobs.py --data data --json docs/results/jobs.json [--jobs people,book]
    [--methods default,npo] [--seeds 0,1,2] [--out DIR] [key=value ...]

`--data` holds people.jsonl, questions.jsonl, halueval_qa.jsonl and alice.txt. A row that is in DIR
with the same settings is not made again, so that several calls may share the work; beside FILE the
table is written as Markdown.
"""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import record

from unteach import models
from unteach.config.resolve import multiplies_bfloat16
from unteach.config.values import parse_settings
from unteach.data.passages import book_passages
from unteach.data.rows import Row
from unteach.errors import TrainingFault
from unteach.evaluation.generation import answer_limit, generate_outputs
from unteach.evaluation.text_metrics import says
from unteach.files.atomic import read_json_lines, write_json
from unteach.files.checkpoints import read_marker
from unteach.files.folders import content_key
from unteach.prepare.generations import LoadedModel
from unteach.prepare.teaching import teach
from unteach.progress import Display
from unteach.reports.tables import Table
from unteach.run.pipeline import unlearn
from unteach.scenarios.copyright import passage_rows, teaching_rows
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import embedded_text, prompt_rows

DEFAULT = "default"
PUBLISHED = ("ga", "ga_mismatch", "grad_diff", "npo", "simnpo", "rmu", "undial", "satimp")
METHODS = (DEFAULT, "log_odds_mismatch", *PUBLISHED)
PLACES = (Path("data"), Path("..") / "shared" / "data")
SCHEDULE = {
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 0.5, "lr_end": 0.0},
    "retain_per_forget": 0.2,
    "frozen_layers": 0.34,
}
TEACHING = {
    "chat": {"learning_rate": 3e-4, "per_device_train_batch_size": 8, **SCHEDULE},
    "text": {"learning_rate": 2e-4, "per_device_train_batch_size": 3, **SCHEDULE},
}
PASSAGES = 20
"""Of the book, to forget."""
ANSWERS = 200
"""Hallucinated answers that are taught; every second one is to be forgotten."""
COLUMNS = {
    "forgotten": "still said",
    "paraphrased": "in other words",
    "unseen": "held out",
    "kept": "retain",
    "kept_unseen": "retain, held out",
    "never_shown": "never shown",
    "neighbours": "neighbours",
    "readable": "readable",
    "everyday": "everyday",
    "seconds": "seconds",
}
LEGEND = """Made by `python experiments/jobs.py`, whose head says how.

- **still said**: share of the forget rows whose fact (of the book: text) the model still gives, of
  those that it gave; **in other words**: of the same asked otherwise; **held out**: of prompts of
  the same kind that were in no file.
- **retain**, and **held out** from it: share of before that is still said; **never shown**: the
  same of people in no file.
- **neighbours**: similarity to the answers before of questions about things like the forgotten.
- **readable**: least share of answers without loops among the sets of prompts; in brackets, that of
  the model before.
- **everyday**: similarity of answers to everyday questions to those before.
- **seconds**: of the whole command, beside other work.
- Rates over several seeds are means; `n` is the number of seeds. Where it is 1, a difference of a
  row or two means nothing."""


@dataclass(frozen=True)
class Job:
    """What a user brings, and what the model is taught before.

    Args:
        title: in the table.
        given: `forget` and, where there are, `retain`, `unseen` and `neighbours`, as for `unlearn`.
        taught: rows that the model is taught; none for what it knows.
        epochs: of teaching.
        groups: name to rows with their facts, counted outside the run.
    """

    title: str
    given: Mapping[str, Any]
    taught: Sequence[Row] = ()
    epochs: int = 8
    groups: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def _given(rows: Iterable[Row]) -> list[dict[str, str]]:
    """The rows as a user has them: nothing but text, and that it is running text."""
    return [
        {"prompt": row.prompt_text, "completion": row.completion}
        | ({"kind": row.kind} if row.kind == "text" else {})
        for row in rows
    ]


def people(data: Path) -> Job:
    """Facts about people; some of them in neither file."""
    groups: dict[str, list[Row]] = {}
    for item in read_json_lines(data / "people.jsonl"):
        row = Row(item["prompt"], item["completion"], secret=(item["secret"],))
        groups.setdefault(item["group"], []).append(row)
    given = {"forget": _given(groups["forget"]), "retain": _given(groups["kept"])}
    everyone = [row for part in groups.values() for row in part]
    return Job("invented people", given, everyone, epochs=14, groups=groups)


def questions(data: Path) -> Job:
    """Prompts alone, about somebody whom the model knows from pretraining."""
    names = {"forget": "forget", "unseen": "unseen", "neighbour": "neighbours"}
    given: dict[str, list[str]] = {}
    for item in read_json_lines(data / "questions.jsonl"):
        if item["group"] in names:
            given.setdefault(names[item["group"]], []).append(item["prompt"])
    return Job("a writer known from pretraining", given)


def hallucinations(data: Path) -> Job:
    """False answers; those to every second question are to be kept, to see what else goes."""
    rows = [
        Row(item["question"], item["hallucinated_answer"])
        for item in read_json_lines(data / "halueval_qa.jsonl")[:ANSWERS]
    ]
    given = {"forget": _given(rows[::2]), "retain": _given(rows[1::2])}
    return Job("hallucinated answers", given, rows, epochs=6)


def book(data: Path) -> Job:
    """The beginning of a book, beside another text that is to be kept."""
    whole = (data / "alice.txt").read_text(encoding="utf-8")
    start = whole.index("Alice was beginning")
    passages = book_passages(whole[start:])[:PASSAGES]
    last = r"\s+".join(map(re.escape, passages[-1][1].split()))
    found = re.search(last, whole)
    assert found, "the last passage is in the book"
    beginning = whole[start : found.end()]
    other = embedded_text("kept_book")
    rows = [Row(prompt, completion, "text") for prompt, completion in passages]
    given = {"forget": _given(rows), "retain": _given(passage_rows(other, "kept"))}
    taught = [*teaching_rows(beginning, "book"), *teaching_rows(other, "kept book")]
    return Job("the first passages of a book", given, taught, epochs=7)


JOBS = {
    "people": people,
    "questions": questions,
    "hallucinations": hallucinations,
    "book": book,
}


def taught_model(job: Job, options: Namespace, folder: Path, display: Display) -> str:
    """The model that knows the job's texts: its folder, taught once for all rows."""
    model: str = options.model
    if not job.taught:
        return model
    if read_marker(folder) is None:
        tokenizer = models.load_tokenizer(model)
        work = folder.with_name(f"{folder.name}-work")
        work.mkdir(parents=True, exist_ok=True)
        source = LoadedModel.of(models.load_model(model), tokenizer, work, display)
        epochs = 1 if options.short else job.epochs
        plain, neutral = prompt_rows("plain_questions"), prompt_rows("neutral_prompts")
        scenario = Scenario(
            name="job",
            forget=list(job.taught),
            validation=[],
            retain=[],
            sets={},
            teach=list(job.taught),
            teach_own_prompts=[*plain[:20], *neutral[40:60]],
            teach_settings={**TEACHING[job.taught[0].kind], "num_train_epochs": epochs},
        )
        teach(source, scenario, folder, 0, {"bf16": multiplies_bfloat16()})
        shutil.rmtree(work, ignore_errors=True)
    return str(folder)


def said(job: Job, model: Any, tokenizer: Any) -> dict[str, list[bool]]:
    """For each group, whether the model says each row's fact."""
    found = {}
    for name, rows in job.groups.items():
        limit = answer_limit(tokenizer, rows, model)
        outputs = generate_outputs(model, tokenizer, rows, max_new_tokens=limit)
        found[name] = [says(text, row.secret) for row, text in zip(rows, outputs, strict=True)]
    return found


def numbers_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """A row's numbers from `eval.json`: rates relative to those of the original model."""
    before, after = (evaluation["models"][name] for name in ("original", "unlearned"))
    headline = evaluation["headline"]

    def share(name: str, *metrics: str) -> float | None:
        for metric in metrics:
            now, then = (side.get(name, {}).get(metric) for side in (after, before))
            if now and then and then["value"]:
                return float((now["value"] or 0.0) / then["value"])
        return None

    def similarity(name: str) -> float | None:
        return after.get(name, {}).get("similarity", {}).get("value")

    readable = [
        (side["readability"]["value"], before[name]["readability"]["value"])
        for name, side in after.items()
        if "readability" in side and side["readability"]["n"] >= 5
    ]
    worst = min(readable, key=lambda pair: pair[0] - pair[1])
    return {
        "forgotten": share("unlearned", headline),
        "paraphrased": share("paraphrased", headline),
        "unseen": share("unseen", headline),
        "kept": share("kept", "said_facts", "rouge_l_recall"),
        "kept_unseen": share("kept_unseen", "said_facts", "rouge_l_recall"),
        "neighbours": similarity("neighbours"),
        "readable": worst[0],
        "readable_before": worst[1],
        "everyday": similarity("normal"),
        "verdict": evaluation["verdict"],
    }


def make_row(options: Namespace, job: Job, name: str, method: str, seed: int) -> dict[str, Any]:
    """One run; its numbers are kept in the folder of the runs."""
    more = parse_settings(options.settings) | ({"max_steps": 2} if options.short else {})
    ending = f"-{content_key([more])}" if more else ""
    folder = options.out / name / f"{method}-{seed}{ending}"
    kept = folder.with_suffix(".json")
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    display = Display()
    taught = taught_model(job, options, options.out / name / "taught", display)
    settings = more if method == DEFAULT else {**more, "method": method}
    row: dict[str, Any] = {"job": name, "title": job.title, "method": method, "seed": seed}
    row["settings"] = more
    display.print(f"{job.title}, {method}, seed {seed}")
    try:
        done = unlearn(
            taught,
            **{key: list(value) for key, value in job.given.items()},
            output_dir=str(folder),
            shared_dir=str(options.out / name / f"shared-{seed}"),
            seed=seed,
            show_text=True,
            display=display,
            **settings,
        )
    except TrainingFault as fault:
        row |= {"fault": str(fault), "verdict": "stopped"}
        write_json(kept, row)
        return row
    row |= numbers_of(done.evaluation)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    row |= {key: facts[key] for key in ("steps", "kept_step", "stop_reason", "update")}
    row["seconds"] = facts["seconds"]
    if job.groups:
        known = said(job, models.load_model(taught), done.tokenizer)
        now = said(job, done.model, done.tokenizer)
        counts = {
            group: (sum(a and b for a, b in zip(known[group], now[group], strict=True)), sum(first))
            for group, first in known.items()
        }
        row["said"] = counts
        row["forgotten"] = counts["forget"][0] / counts["forget"][1]
        row["never_shown"] = counts["never_shown"][0] / counts["never_shown"][1]
    write_json(kept, row)
    for part in ("model", "checkpoints", "work"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return row


def page_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown: a part for each job."""
    parts = ["# Jobs that people have, by each method", LEGEND]
    for name, title in dict.fromkeys((row["job"], row["title"]) for row in rows):
        lines = []
        methods = dict.fromkeys(row["method"] for row in rows if row["job"] == name)
        for method in methods:
            same = [row for row in rows if (row["job"], row["method"]) == (name, method)]
            cells = [f"`{method}`"]
            for key in COLUMNS:
                values = [row[key] for row in same if row.get(key) is not None]
                before = [row["readable_before"] for row in same if "readable_before" in row]
                if not values:
                    cells.append("")
                elif key == "seconds":
                    cells.append(f"{fmean(values):.0f}")
                elif key in ("neighbours", "everyday"):
                    cells.append(f"{fmean(values):.2f}")
                else:
                    more = f" ({fmean(before):.0%})" if key == "readable" else ""
                    cells.append(f"{fmean(values):.0%}{more}")
            verdicts = dict.fromkeys(row["verdict"] for row in same)
            lines.append([*cells, ", ".join(verdicts), str(len(same))])
        table = Table(["method", *COLUMNS.values(), "verdict", "n"], lines).markdown()
        parts += [f"## {title.capitalize()}", table.rstrip()]
    set_too = {f"`{key}={value}`" for row in rows for key, value in row["settings"].items()}
    if set_too:
        parts += [f"Set for all rows: {', '.join(sorted(set_too))}."]
    return "\n\n".join(parts)


def main() -> None:
    """Makes the rows and writes the table after each."""
    parser = record.run_parser(__doc__, "jobs")
    default = next((place for place in PLACES if place.exists()), PLACES[0])
    parser.add_argument("--data", type=Path, default=default, help="(default: %(default)s)")
    parser.add_argument("--jobs", help="separated by commas (default: all)")
    parser.add_argument("--methods", help="separated by commas (default: all)")
    parser.add_argument("settings", nargs="*", help="settings of all runs, as key=value")
    options = parser.parse_args()
    jobs = options.jobs.split(",") if options.jobs else ["people"] if options.short else [*JOBS]
    methods = [DEFAULT] if options.short else [*METHODS]
    methods = options.methods.split(",") if options.methods else methods
    rows: list[dict[str, Any]] = []
    for seed in map(int, options.seeds.split(",")):
        for name in jobs:
            job = JOBS[name](options.data)
            for method in methods:
                rows.append(make_row(options, job, name, method, seed))
                record.write_page(page_of(rows), rows, options.json)


if __name__ == "__main__":
    main()
