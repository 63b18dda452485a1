"""The RWKU protocol: fill-in-the-blank, question and adversarial probes of what is forgotten, and
of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    Results,
    answers,
    encoded,
    overlap,
    row_lines,
    summary,
)
from unteach.evaluation.benchmarks.sources import Record, SetFile, load_sets, text_of
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.muse import first_line
from unteach.evaluation.rwku import PROBE_TOKENS, PROBES, ngram_entropy, probe_recall
from unteach.evaluation.text_metrics import is_not_meaningful

FLUENCY_TOKENS = 128
PROBE = ("query", "answer")
SETS = (
    SetFile("fill_in_blank", ("forget_level1",), "forget_level1", "test", PROBE),
    SetFile("question_answer", ("forget_level2",), "forget_level2", "test", PROBE),
    SetFile("adversarial", ("forget_level3",), "forget_level3", "test", PROBE),
    SetFile("neighbor_fill_in_blank", ("neighbor_level1",), "neighbor_level1", "test", PROBE),
    SetFile("neighbor_question_answer", ("neighbor_level2",), "neighbor_level2", "test", PROBE),
    SetFile("fluency", ("utility_fluency", "fluency"), "utility_fluency", "test", ("instruction",)),
)
Sets = Mapping[str, Sequence[Record]]


def load(source: str | None, limit: int | None = None) -> Sets:
    """The sets that are there.

    Raises:
        UserError: naming what is missing or no text, or if there are no probes of what is
            forgotten.
    """
    sets = load_sets(source, "jinzhuoran/RWKU", SETS, limit)
    if not set(PROBES) & set(sets):
        raise UserError(
            "option --data: RWKU needs at least one of forget_level1, forget_level2, forget_level3"
        )
    columns = {part.name: part.columns for part in SETS}
    for name, rows in sets.items():
        for fields, where in rows:
            for column in columns[name]:
                text_of(fields, column, where)
    return sets


def measure(subject: EvaluatedModel, sets: Sets) -> Measured:
    """Recall of each set of probes; entropy of longer answers, always with their NLL beside it."""
    results: Results = {}
    lines: dict[str, Any] = {}
    for name, records in sets.items():
        if name == "fluency":
            _fluency(subject, records, results, lines)
            continue
        neighbour = name.startswith("neighbor_")
        wording = PROBES[name.removeprefix("neighbor_")]
        rows = [
            Row(wording(fields["query"]), fields["answer"], "chat", where)
            for fields, where in records
        ]
        said = [first_line(text) for text in answers(subject, rows, PROBE_TOKENS)]
        rights = [row.completion for row in rows]
        columns: dict[str, list[float | None]] = {
            "rouge_l_recall": list(probe_recall(said, rights))
        }
        columns["rouge_l_f1"] = overlap(said, rights)["rouge_l_f1"]
        columns["not_meaningful_rate"] = [float(is_not_meaningful(text)) for text in said]
        better = {
            "rouge_l_recall": neighbour,
            "rouge_l_f1": neighbour,
            "not_meaningful_rate": False,
        }
        results[name] = summary(columns, better, rates=["not_meaningful_rate"])
        texts = {"prompt": [row.prompt_text for row in rows], "expected": rights, "output": said}
        lines[name] = row_lines([row.key for row in rows], columns, texts)
    return Measured(results, lines)


def _fluency(
    subject: EvaluatedModel, records: Sequence[Record], results: Results, lines: dict[str, Any]
) -> None:
    """N-gram entropy sees repetition only, so it stands beside the answers' NLL under the model
    before any change.
    """
    rows = [Row(fields["instruction"], "", "chat", where) for fields, where in records]
    said = answers(subject, rows, FLUENCY_TOKENS)
    judge = subject.model if subject.before is None else subject.before
    nlls: list[float | None] = [None] * len(rows)
    spoken = [place for place, text in enumerate(said) if not is_not_meaningful(text)]
    found = mean_nll(
        judge,
        *encoded(
            [rows[place].with_completion(said[place]) for place in spoken],
            subject.tokenizer,
            ended=False,
        ),
    )
    for place, nll in zip(spoken, found, strict=True):
        nlls[place] = nll
    columns: dict[str, list[float | None]] = {
        "ngram_entropy": [ngram_entropy(text) for text in said],
        "fluency": nlls,
        "not_meaningful_rate": [float(is_not_meaningful(text)) for text in said],
    }
    better = {"ngram_entropy": True, "fluency": False, "not_meaningful_rate": False}
    results["fluency"] = summary(columns, better, rates=["not_meaningful_rate"])
    texts = {"prompt": [row.prompt_text for row in rows], "output": said}
    lines["fluency"] = row_lines([row.key for row in rows], columns, texts)


METRICS = {
    "ngram_entropy": MetricFacts(title="n-gram entropy (bits)", higher_is_better=True),
}
PROMPT_SETS = {
    name: PromptSet(name.replace("_", " "), "forget" if name in PROBES else "kept")
    for name in (part.name for part in SETS)
} | {"fluency": PromptSet("fluency", "normal")}
BENCHMARK = Benchmark(load, measure, None, METRICS, PROMPT_SETS)
