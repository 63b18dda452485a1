"""MUSE (Shi et al. 2024, arXiv 2407.06460): verbatim and knowledge memorisation, membership of
forget against holdout texts, privacy leakage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unteach import models
from unteach.data.rows import Row
from unteach.errors import UserError
from unteach.evaluation.benchmarks.benchmark import (
    Benchmark,
    EvaluatedModel,
    Measured,
    Record,
    Results,
    SetFile,
    SetValues,
    load_sets,
)
from unteach.evaluation.likelihood import mean_nll
from unteach.evaluation.membership import (
    ATTACKS,
    attack_scores,
    auc,
    auc_interval,
    collect_evidence,
)
from unteach.evaluation.metrics import MetricFacts, PromptSet
from unteach.evaluation.results import MetricResult
from unteach.evaluation.text_metrics import has_words, rouge_l

VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32
MUSE_K = 0.4
"""MUSE's share of tokens for Min-K% (section 3.2)."""
QUESTION = ("question", "answer")
SETS = tuple(
    SetFile(name, files, config, split, columns)
    for name, files, config, split, columns in (
        ("verbmem", ("verbmem/forget", "verbmem*"), "verbmem", "forget", ("prompt", "gt")),
        (
            "knowmem_forget_examples",
            ("knowmem/forget_qa_icl", "forget_qa_icl"),
            "knowmem",
            "forget_qa_icl",
            QUESTION,
        ),
        (
            "knowmem_retain_examples",
            ("knowmem/retain*_qa_icl", "retain*_qa_icl"),
            "knowmem",
            "retain_qa_icl",
            QUESTION,
        ),
        ("knowmem_forget", ("knowmem/forget_qa", "forget_qa"), "knowmem", "forget_qa", QUESTION),
        ("knowmem_retain", ("knowmem/retain*_qa", "retain*_qa"), "knowmem", "retain_qa", QUESTION),
        (
            "membership_forget",
            ("privleak/forget", "privleak_forget"),
            "privleak",
            "forget",
            ("text",),
        ),
        (
            "membership_holdout",
            ("privleak/holdout", "privleak_holdout"),
            "privleak",
            "holdout",
            ("text",),
        ),
    )
)
MEMBERSHIP = ("membership_forget", "membership_holdout")
Sets = Mapping[str, Sequence[Record]]


# --- numbers


def privleak(auc: float, auc_retrain: float) -> float:
    """PrivLeak = 100 (AUC - AUC_retrain) / AUC_retrain, of the Min-40% attack on forget against
    holdout rows.

    MUSE computes the AUC with forget = 0, holdout = 1 and the score itself (not its negative):
    `auc(holdout_scores, forget_scores)`. A model that remembers the forget set has an AUC near 0
    and a PrivLeak near -100; one that has forgotten too much, a positive one; 0 is best.

    >>> privleak(0.25, 0.5)
    -50.0

    Args:
        auc: the unlearned model's, from 0 to 1.
        auc_retrain: that of a model retrained without the forget set, above 0.

    Raises:
        ValueError: naming the argument that is out of its range.
    """
    if not 0 <= auc <= 1:
        raise ValueError(f"auc is {auc}, it must be from 0 to 1")
    if not 0 < auc_retrain <= 1:
        raise ValueError(f"auc_retrain is {auc_retrain}, it must be above 0 and at most 1")
    return 100 * (auc - auc_retrain) / auc_retrain


def overlaps(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1, without stemmer, of each output with its reference: VerbMem of the model's greedy
    continuation of 128 tokens with the true one, KnowMem of its short answer with the right one.

    Raises:
        ValueError: if the two are not equally many or a reference has no words.
    """
    if len(outputs) != len(references):
        raise ValueError(f"references has {len(references)} texts, outputs has {len(outputs)}")
    for place, reference in enumerate(references):
        if not has_words(reference):
            raise ValueError(f"references has no words at row {place}: its ROUGE-L is undefined")
    pairs = zip(outputs, references, strict=True)
    return [rouge_l(*pair, stemmer=False)[1] for pair in pairs]


# --- the protocol


def load(source: str | None, limit: int | None = None) -> Sets:
    """The given sets; of forget and holdout texts both or none.

    Raises:
        UserError: naming what is missing or no text.
    """
    sets = load_sets(source, "muse-bench/MUSE-News", SETS, limit)
    if len(set(MEMBERSHIP) & set(sets)) == 1:
        raise UserError(
            "option --data: membership needs both privleak/forget and privleak/holdout, one of them"
            " is not there"
        )
    return sets


def measure(evaluated: EvaluatedModel, sets: Sets) -> Measured:
    """The metrics of each set that is given."""
    found = {}
    if "verbmem" in sets:
        rows = [
            Row(fields["prompt"], fields["gt"], "text", where) for fields, where in sets["verbmem"]
        ]
        outputs = evaluated.outputs(rows, VERBMEM_TOKENS)
        truth = [_shortened(evaluated, row.completion) for row in rows]
        found["verbmem"] = SetValues.of_rows(
            rows, {"rouge_l_f1": overlaps(outputs, truth)}, outputs
        )
    for name in ("knowmem_forget", "knowmem_retain"):
        if name in sets:
            rows = question_rows(sets[name], sets.get(f"{name}_examples", ()))
            outputs = evaluated.outputs(rows, KNOWMEM_TOKENS, one_line=True)
            values = overlaps(outputs, [row.completion for row in rows])
            found[name] = SetValues.of_rows(rows, {"rouge_l_f1": values}, outputs)
    if "membership_forget" not in sets:
        return Measured(found)
    found |= {name: _membership(evaluated, sets[name]) for name in MEMBERSHIP}
    forget, holdout = (found[name].columns for name in MEMBERSHIP)
    aucs = {}
    for attack in ATTACKS:
        members, others = forget[attack], holdout[attack]
        if None not in members:
            low, high = auc_interval(members, others)
            n = len(members) + len(others)
            aucs[f"auc_{attack}"] = MetricResult(auc(members, others), n, low, high, None)
    return Measured(found, {"membership": aucs})


def question_rows(records: Sequence[Record], examples: Sequence[Record]) -> list[Row]:
    """Questions after MUSE's few-shot examples, as running text; without examples as a chat."""
    if not examples:
        return [
            Row(fields["question"], fields["answer"], "chat", where) for fields, where in records
        ]
    shots = "".join(
        f"Question: {fields['question']}\nAnswer: {fields['answer']}\n\n" for fields, _ in examples
    )
    return [
        Row(f"{shots}Question: {fields['question']}\nAnswer:", fields["answer"], "text", where)
        for fields, where in records
    ]


def _shortened(evaluated: EvaluatedModel, text: str) -> str:
    """The text's first 128 tokens, to compare with an output of 128 tokens."""
    ids = evaluated.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) <= VERBMEM_TOKENS:
        return text
    return str(evaluated.tokenizer.decode(ids[:VERBMEM_TOKENS], skip_special_tokens=True))


def _membership(evaluated: EvaluatedModel, records: Sequence[Record]) -> SetValues:
    """Scores of six attacks for each text; a text longer than the model's window is cut at its
    end.
    """
    rows = [Row("", fields["text"], "text", where) for fields, where in records]
    prompts, completions = evaluated.encoded(rows)
    room = models.window(evaluated.model) - 1
    texts = [
        row.completion
        if len(ids) <= room
        else str(evaluated.tokenizer.decode(ids[:room], skip_special_tokens=True))
        for row, ids in zip(rows, completions, strict=True)
    ]
    completions = [ids[:room] for ids in completions]
    references = None
    if evaluated.before is not None:
        references = mean_nll(evaluated.before, prompts, completions)
    evidence = collect_evidence(
        evaluated.model, prompts, completions, texts, reference_losses=references
    )
    columns = attack_scores(evidence, k=MUSE_K)
    return SetValues(
        [row.key for row in rows], columns, {"expected": [row.completion for row in rows]}
    )


def against_retrained(measured: Measured, retrained: Measured) -> Results:
    """PrivLeak, from the Min-40% attack of both models."""
    if "membership" not in measured.aggregates:
        return {}
    values = []
    for found in (measured, retrained):
        forget, holdout = (found.sets[name].columns["min_k"] for name in MEMBERSHIP)
        values.append(auc(holdout, forget))
    if values[1] == 0:
        raise UserError(
            "option --retrained: its AUC is 0, so PrivLeak is undefined: this model has"
            " memorised the forget set"
        )
    n = measured.aggregates["membership"]["auc_min_k"].n
    return {"membership": {"privleak": MetricResult(privleak(*values), n, None, None, None)}}


BENCHMARK = Benchmark(
    load,
    measure,
    against_retrained,
    from_retrained=("privleak",),
    metrics={
        "privleak": MetricFacts(
            title="PrivLeak", higher_is_better=None, format=".1f", interval=None
        ),
        **{
            f"auc_{attack}": MetricFacts(title=f"AUC, {attack}", higher_is_better=None)
            for attack in ATTACKS
        },
    },
    prompt_sets={
        "verbmem": PromptSet("VerbMem", "forget"),
        "knowmem_forget": PromptSet("KnowMem, forget", "forget"),
        "knowmem_retain": PromptSet("KnowMem, retain", "kept"),
        "membership": PromptSet("membership", "forget"),
    },
)
