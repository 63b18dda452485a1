"""The MUSE protocol: verbatim and knowledge memorisation, membership of forget against holdout
texts, privacy leakage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unteach import models
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    Results,
    answers,
    encoded,
    row_lines,
    summary,
)
from unteach.evaluation.benchmarks.sources import Record, SetFile, load_sets, text_of
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.membership import ATTACKS, auc, auc_interval, collect_evidence
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.muse import (
    KNOWMEM_TOKENS,
    VERBMEM_TOKENS,
    first_line,
    knowmem,
    privleak,
    verbmem,
)
from unteach.evaluation.results import MetricResult

QUESTION = ("question", "answer")
SETS = (
    SetFile("verbmem", ("verbmem/forget", "verbmem*"), "verbmem", "forget", ("prompt", "gt")),
    SetFile(
        "knowmem_forget_examples",
        ("knowmem/forget_qa_icl", "forget_qa_icl"),
        "knowmem",
        "forget_qa_icl",
        QUESTION,
    ),
    SetFile(
        "knowmem_retain_examples",
        ("knowmem/retain*_qa_icl", "retain*_qa_icl"),
        "knowmem",
        "retain_qa_icl",
        QUESTION,
    ),
    SetFile("knowmem_forget", ("knowmem/forget_qa", "forget_qa"), "knowmem", "forget_qa", QUESTION),
    SetFile(
        "knowmem_retain", ("knowmem/retain*_qa", "retain*_qa"), "knowmem", "retain_qa", QUESTION
    ),
    SetFile(
        "membership_forget", ("privleak/forget", "privleak_forget"), "privleak", "forget", ("text",)
    ),
    SetFile(
        "membership_holdout",
        ("privleak/holdout", "privleak_holdout"),
        "privleak",
        "holdout",
        ("text",),
    ),
)
MEMBERSHIP = ("membership_forget", "membership_holdout")
Sets = Mapping[str, Sequence[Record]]


def load(source: str | None, limit: int | None = None) -> Sets:
    """The sets that are there; of forget and holdout texts both or none.

    Raises:
        UserError: naming what is missing or no text.
    """
    sets = load_sets(source, "muse-bench/MUSE-News", SETS, limit)
    if len(set(MEMBERSHIP) & set(sets)) == 1:
        raise UserError(
            "option --data: membership needs both privleak/forget and privleak/holdout, one of them"
            " is not there"
        )
    columns = {part.name: part.columns for part in SETS}
    for name, rows in sets.items():
        for fields, where in rows:
            for column in columns[name]:
                text_of(fields, column, where)
    return sets


def measure(subject: EvaluatedModel, sets: Sets) -> Measured:
    """Each set's numbers, of those that are there."""
    results: Results = {}
    lines: dict[str, Any] = {}
    if "verbmem" in sets:
        rows = [
            Row(fields["prompt"], fields["gt"], "text", where) for fields, where in sets["verbmem"]
        ]
        said = answers(subject, rows, VERBMEM_TOKENS)
        _overlap(
            "verbmem",
            rows,
            said,
            verbmem(said, [_as_long(subject, row.completion) for row in rows]),
            results,
            lines,
        )
    for name in ("knowmem_forget", "knowmem_retain"):
        if name in sets:
            rows = question_rows(sets[name], sets.get(f"{name}_examples", ()))
            said = [first_line(text) for text in answers(subject, rows, KNOWMEM_TOKENS)]
            _overlap(
                name, rows, said, knowmem(said, [row.completion for row in rows]), results, lines
            )
    if "membership_forget" in sets:
        _membership(subject, sets, results, lines)
    return Measured(results, lines)


def question_rows(records: Sequence[Record], examples: Sequence[Record]) -> list[Row]:
    """Questions behind MUSE's example questions, as running text; without examples as a chat."""
    if not examples:
        return [
            Row(fields["question"], fields["answer"], "chat", where) for fields, where in records
        ]
    shown = "".join(
        f"Question: {fields['question']}\nAnswer: {fields['answer']}\n\n" for fields, _ in examples
    )
    return [
        Row(f"{shown}Question: {fields['question']}\nAnswer:", fields["answer"], "text", where)
        for fields, where in records
    ]


def _as_long(subject: EvaluatedModel, text: str) -> str:
    """The text's first 128 tokens: what an answer of 128 tokens can be compared with."""
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    return (
        text
        if len(ids) <= VERBMEM_TOKENS
        else str(subject.tokenizer.decode(ids[:VERBMEM_TOKENS], skip_special_tokens=True))
    )


def _overlap(
    name: str,
    rows: Sequence[Row],
    said: Sequence[str],
    values: list[float],
    results: Results,
    lines: dict[str, Any],
) -> None:
    columns: dict[str, list[float | None]] = {"rouge_l_f1": list(values)}
    results[name] = summary(columns, {"rouge_l_f1": name == "knowmem_retain"})
    texts = {
        "prompt": [row.prompt_text for row in rows],
        "expected": [row.completion for row in rows],
        "output": said,
    }
    lines[name] = row_lines([row.key for row in rows], columns, texts)


def _membership(
    subject: EvaluatedModel, sets: Sets, results: Results, lines: dict[str, Any]
) -> None:
    """Six attacks' AUC, members the forget texts. A text longer than the model's window is cut at
    its end.
    """
    scores: dict[str, dict[str, list[float | None]]] = {}
    for name in MEMBERSHIP:
        rows = [Row("", fields["text"], "text", where) for fields, where in sets[name]]
        prompts, completions = encoded(rows, subject.tokenizer)
        room = models.window(subject.model) - 1
        texts = [
            (
                row.completion
                if len(ids) <= room
                else str(subject.tokenizer.decode(ids[:room], skip_special_tokens=True))
            )
            for row, ids in zip(rows, completions, strict=True)
        ]
        completions = [ids[:room] for ids in completions]
        references = (
            mean_nll(subject.before, prompts, completions) if subject.before is not None else None
        )
        evidence = collect_evidence(
            subject.model, prompts, completions, texts, reference_losses=references
        )
        scores[name] = {
            attack: [score(row) for row in evidence] for attack, score in ATTACKS.items()
        }
        lines[name] = row_lines(
            [row.key for row in rows], scores[name], {"expected": [row.completion for row in rows]}
        )
    found = results["membership"] = {}
    for attack in ATTACKS:
        forget, holdout = (scores[name][attack] for name in MEMBERSHIP)
        if None in forget:
            continue
        low, high = auc_interval(forget, holdout)
        found[f"auc_{attack}"] = MetricResult(
            auc(forget, holdout), len(forget) + len(holdout), low, high, None
        )


def against_retrained(measured: Measured, retrained: Measured) -> Results:
    """PrivLeak, from the Min-40% attack of both models."""
    if "membership" not in measured.results:
        return {}
    values = []
    for found in (measured, retrained):
        forget, holdout = (
            [line.metrics["min_k"] for line in found.lines[name]] for name in MEMBERSHIP
        )
        values.append(auc(holdout, forget))
    if values[1] == 0:
        raise UserError(
            "option --retrained: its AUC is 0, PrivLeak cannot be had: this model knows the forget"
            " set by heart"
        )
    n = measured.results["membership"]["auc_min_k"].n
    return {"membership": {"privleak": MetricResult(privleak(*values), n, None, None, None)}}


METRICS = {
    "privleak": MetricFacts(title="PrivLeak", higher_is_better=None, format=".1f", interval=None),
} | {
    f"auc_{attack}": MetricFacts(title=f"AUC, {attack}", higher_is_better=None)
    for attack in ATTACKS
}
PROMPT_SETS = {
    "verbmem": PromptSet("VerbMem", "forget"),
    "knowmem_forget": PromptSet("KnowMem, forget", "forget"),
    "knowmem_retain": PromptSet("KnowMem, retain", "kept"),
    "membership": PromptSet("membership", "forget"),
}
BENCHMARK = Benchmark(load, measure, against_retrained, METRICS, PROMPT_SETS)
