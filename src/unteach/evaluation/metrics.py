"""The registries of metrics and of prompt sets. No import of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from unteach.evaluation import readability, text_metrics
from unteach.evaluation.results import Interval
from unteach.evaluation.verdict import FORGOTTEN_AT, HELD_AT, SIMILAR_AT

if TYPE_CHECKING:
    from unteach.data.rows import Row

Role = Literal["forget", "kept", "normal"]
ROLES: tuple[Role, ...] = ("forget", "kept", "normal")


@dataclass(frozen=True)
class PromptSet:
    """A named set of prompts in the evaluation.

    Args:
        title: in tables and pages.
        role: `forget`: its facts must be forgotten; `kept`: must be kept; `normal`: everyday
            prompts.
        description: one phrase, for the report.
        forgotten_at: of role `forget`: highest headline rate, as a share of the initial rate, at
            which the verdict counts it as forgotten; 1 for a set that does not decide.
        held_at: of role `kept`: smallest share of its facts or words at which it counts as kept.
        neighbours: of role `kept`: like the forget set, about other things, not trained on.
        similar_at: of role `normal`: smallest similarity to the original's answers at which they
            count as kept; 0 for a set that does not decide.
    """

    title: str
    role: Role
    description: str = ""
    forgotten_at: float = FORGOTTEN_AT
    held_at: float = HELD_AT
    neighbours: bool = False
    similar_at: float = SIMILAR_AT

    def as_json(self) -> dict[str, Any]:
        """The set's entry of `prompt_sets` in `eval.json`, without its key metric."""
        found = {"title": self.title, "role": self.role, "description": self.description}
        if self.role == "forget":
            return {**found, "forgotten_at": self.forgotten_at}
        if self.role == "normal":
            return {**found, "similar_at": self.similar_at}
        return {**found, "held_at": self.held_at, "neighbours": self.neighbours}


PROMPT_SETS: dict[str, PromptSet] = {
    "unlearned": PromptSet("forget", "forget", "forget rows that the model was trained on"),
    "unseen": PromptSet(
        "forget (held out)", "forget", "of the same kind, never trained on", forgotten_at=0.2
    ),
    "paraphrased": PromptSet(
        "forget (paraphrased)",
        "forget",
        "forget prompts in other words, which the original model answers with the fact",
        forgotten_at=0.1,
    ),
    "other_facts": PromptSet(
        *("other facts", "forget"),
        "single facts of the same kind, not in the forget set and not implied by it",
        forgotten_at=1.0,
    ),
    "neighbours": PromptSet(
        *("neighbours", "kept", "of the same kind about other things, never trained on"),
        held_at=0.9,
        neighbours=True,
    ),
    "kept": PromptSet("retain", "kept", "retain rows that the model was trained on"),
    "kept_unseen": PromptSet(
        "retain (held out)", "kept", "to be kept, never trained on", neighbours=True
    ),
    "retain": PromptSet("retain", "kept", "to be kept"),
    "normal": PromptSet("normal", "normal", "neutral prompts of everyday use"),
    "prose": PromptSet(
        *("first lines", "normal", "first lines of texts to continue: other words are no damage"),
        similar_at=0.0,
    ),
}


def prompt_set(name: str) -> PromptSet:
    """The registered prompt set; one that is not registered has the role `kept`."""
    return PROMPT_SETS.get(name) or PromptSet(name.replace("_", " "), "kept")


def is_forget_set(name: str) -> bool:
    """Whether the prompt set has the role `forget`: its texts are hidden by default."""
    return prompt_set(name).role == "forget"


@dataclass(frozen=True)
class Answer:
    """A generated output with everything that a metric may use.

    Args:
        row: prompt and expected completion (may be empty).
        output: the model's output.
        original_output: the original model's output for the same prompt.
        tokens: token ids of the output.
        correct: for each token of the expected completion, whether it is the model's greedy choice.
        cut: whether the output met the token limit, where that is known.
    """

    row: Row
    output: str
    original_output: str = ""
    tokens: tuple[int, ...] = ()
    correct: Sequence[bool] | None = None
    cut: bool | None = None


@dataclass(frozen=True)
class Scorer:
    """Scores outputs in batches, with a model or with statistics of the data.

    Args:
        name: in the report.
        scores: a value for each answer, or `None`.
        settings: numbers that the scores depend on, such as a threshold; part of cache keys.
        held_out_accuracy: of a scorer that was trained for this run.
        held_out_n: the number of held-out rows behind it.
    """

    name: str
    scores: Callable[[Sequence[Answer]], Sequence[float | None]]
    settings: Mapping[str, float] = field(default_factory=dict)
    held_out_accuracy: float | None = None
    held_out_n: int = 0

    def as_json(self) -> dict[str, Any]:
        """Its entry of `scorers` in `eval.json`."""
        held_out = {"held_out_accuracy": self.held_out_accuracy, "n": self.held_out_n}
        return {"name": self.name} | (held_out if self.held_out_n else {})


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """A metric's properties for tables and pages.

    Args:
        title: name in running text.
        higher_is_better: on forget sets; `None` where neither direction is better.
        opposite_elsewhere: on other sets the opposite direction is better.
        short_title: for narrow tables; default: `title`.
        description: one phrase, for the report.
        format: Python format specification of a value.
        interval: `wilson` for rates, `bootstrap` for means, `None` for no interval.
        in_summary: whether the before/after table has a column for it.
        compare_on: roles of prompt sets with a column for it in tables of several runs.
        key_for: roles of prompt sets of which it is the key metric (of forget sets the headline
            rate is).
        against_original: the value compares an output with the original model's, so a change of it
            between models has no meaning.
    """

    title: str
    higher_is_better: bool | None
    opposite_elsewhere: bool = False
    short_title: str = ""
    description: str = ""
    format: str = ".2f"
    interval: Interval | None = "bootstrap"
    in_summary: bool = False
    compare_on: tuple[Role, ...] = ()
    key_for: tuple[Role, ...] = ()
    against_original: bool = False

    def better_on(self, role: Role) -> bool | None:
        """Whether a higher value is better on prompt sets of a role."""
        opposite = self.opposite_elsewhere and role != "forget"
        return self.higher_is_better != opposite if self.higher_is_better is not None else None

    def as_json(self) -> dict[str, Any]:
        """The metric's entry of `metrics` in `eval.json`."""
        names = ("title", "short_title", "description", "format", "higher_is_better", "interval")
        found = {name: getattr(self, name) for name in (*names, "in_summary")}
        found |= {"short_title": self.short_title or self.title}
        found |= {"compare_on": list(self.compare_on)}
        return found | {"against_original": self.against_original}


@dataclass(frozen=True, kw_only=True)
class Metric(MetricFacts):
    """A metric of outputs: a value for each row, and their mean.

    Args:
        row_value: value of one output, or `None`; without this function the metric is scored by
            its entry in `scorers.SCORERS`.
        roles: roles of the prompt sets that it applies to.
        needs_completion: it compares with the expected completion and applies only to sets that
            have completions.
        headline: whether it can be the headline: a rate that decides whether a run has forgotten.
        min_share: share of rows that must have a value; below it the mean is not meaningful.
    """

    row_value: Callable[[Answer], float | None] | None = None
    roles: tuple[Role, ...] = ROLES
    needs_completion: bool = False
    headline: bool = False
    min_share: float = 0.0


def _expected(answer: Answer) -> str:
    return text_metrics.within_reach(answer.row.completion, answer.output)


def _of_correct(measure: Callable[[Sequence[bool]], float]) -> Callable[[Answer], float | None]:
    return lambda answer: None if answer.correct is None else measure(answer.correct)


RATE: dict[str, Any] = {"format": ".0%", "interval": "wilson", "higher_is_better": False}
OPPOSITE: dict[str, Any] = {"higher_is_better": False, "opposite_elsewhere": True}
OVERLAP: dict[str, Any] = {**OPPOSITE, "needs_completion": True}
"""Agreement with the expected completion: a leak on forget sets, wanted elsewhere."""
HEADLINE: dict[str, Any] = {"headline": True, "in_summary": True}
KEY_KEPT: dict[str, Any] = {"in_summary": True, "compare_on": ("kept",), "key_for": ("kept",)}
METRICS: dict[str, Metric] = {
    "said_facts": Metric(
        row_value=lambda a: (
            float(text_metrics.says(a.output, a.row.secret)) if a.row.secret else None
        ),
        title="said facts",
        description="share of answers that contain one of the row's facts, by letters and digits"
        " alone; rows without facts are not counted",
        headline=True,
        **KEY_KEPT,
        **{**RATE, **OPPOSITE},
    ),
    "harmful_rate": Metric(
        title="harmful rate",
        description="share of answers that the judge flags",
        **HEADLINE,
        **RATE,
    ),
    "hallucination_rate": Metric(
        title="hallucination rate",
        short_title="hallucination",
        description="share of answers nearer to the invented answer than to the right one",
        **HEADLINE,
        **RATE,
    ),
    "leak_rate": Metric(
        title="leak rate",
        description="share of answers that say a fact of their row; of rows that name none, those"
        " closer to the true text (BLEU) than unrelated passages are to each other",
        **HEADLINE,
        **{**RATE, **OVERLAP},
    ),
    "bleu": Metric(
        row_value=lambda a: text_metrics.bleu(a.output, _expected(a)),
        title="BLEU",
        description="overlap of word sequences with the expected text, 0 to 100",
        format=".1f",
        **OVERLAP,
    ),
    "rouge_l_recall": Metric(
        row_value=lambda a: text_metrics.rouge_l(a.output, _expected(a))[0],
        title="ROUGE-L recall",
        short_title="recall",
        description="share of the expected words that the answer has, in order",
        **KEY_KEPT,
        **OVERLAP,
    ),
    "rouge_l_f1": Metric(
        row_value=lambda a: text_metrics.rouge_l(a.output, _expected(a))[1],
        title="ROUGE-L F1",
        description="the same, weighed against the length of the answer",
        **OVERLAP,
    ),
    "longest_verbatim_run": Metric(
        row_value=lambda a: float(text_metrics.longest_verbatim_run(a.output, a.row.completion)),
        title="verbatim run (chars)",
        short_title="verbatim",
        description="characters of the longest passage copied word for word",
        format=".0f",
        in_summary=True,
        **OVERLAP,
    ),
    "exact_memorization": Metric(
        row_value=_of_correct(text_metrics.exact_memorization),
        title="exact memorization",
        description="share of the expected tokens that are the model's greedy choice",
        **OVERLAP,
    ),
    "extraction_strength": Metric(
        row_value=_of_correct(text_metrics.extraction_strength),
        title="extraction strength",
        description="share of the expected text that the model completes from the rest",
        **OVERLAP,
    ),
    "readability": Metric(
        title="readable",
        description="share of answers that are not degenerate",
        in_summary=True,
        compare_on=("forget", "kept", "normal"),
        **{**RATE, "higher_is_better": True},
    ),
    "fluency": Metric(
        title="fluency (NLL)",
        short_title="fluency",
        description="mean negative log-likelihood of the answer under the fluency model, in nats"
        " per token; the original's own value is best: loops are likely, and broken language is"
        " not",
        higher_is_better=None,
        min_share=0.5,
        in_summary=True,
        compare_on=("forget", "normal"),
    ),
    "cut_off": Metric(
        row_value=lambda a: None if a.cut is None else float(a.cut),
        title="met the token limit",
        short_title="cut off",
        description="share of answers that went on to the token limit: what they would have said"
        " after it is not known (raise max_new_tokens)",
        in_summary=True,
        compare_on=("forget",),
        **{**RATE, "higher_is_better": None},
    ),
    "diversity": Metric(
        row_value=lambda a: text_metrics.diversity(a.tokens) if a.output.strip() else 0.0,
        title="diversity",
        description="share of different tokens in an answer",
        higher_is_better=True,
        in_summary=True,
        compare_on=("forget", "normal"),
    ),
    "not_meaningful_rate": Metric(
        row_value=lambda a: float(readability.is_not_meaningful(a.output)),
        title="not meaningful",
        description="share of answers that are empty, or mostly one repeated character or a loop of"
        " syllables, words or phrases",
        **RATE,
    ),
    "repetition": Metric(
        row_value=lambda a: readability.repetition(a.output),
        title="repetition",
        description="share of an answer inside a stretch of 16 characters, about four tokens, that"
        " occurred before in it, or inside a loop; the original's own value is best",
        higher_is_better=None,
        format=".0%",
    ),
    "degenerate_rate": Metric(
        title="degenerate",
        description="share of answers with more repetition than the 99th percentile of the original"
        " model's answers to everyday prompts, that loop, or that are empty or one character",
        **RATE,
    ),
    "said_instead": Metric(
        title="said instead",
        short_title="instead",
        description="share of answers with the sentence that forget prompts are to be answered"
        " with; in answers to other prompts it has spread",
        opposite_elsewhere=True,
        in_summary=True,
        compare_on=("forget", "kept", "normal"),
        **{**RATE, "higher_is_better": True},
    ),
    "similarity": Metric(
        title="similarity to the original's answers",
        short_title="similarity",
        description="similarity to the answer of the original model, 1 for the same meaning",
        higher_is_better=True,
        roles=("kept", "normal"),
        in_summary=True,
        compare_on=("normal",),
        key_for=("kept", "normal"),
        against_original=True,
    ),
    "utility_reward": Metric(
        title="reward",
        description="score of the reward model",
        higher_is_better=True,
        roles=("normal",),
        in_summary=True,
        compare_on=("normal",),
        key_for=("normal",),
    ),
}


PARTS = {"_in_trace": "in the reasoning trace", "_in_answer": "in the answer behind the trace"}
"""What a rate's name and title end in where it is that of a part of outputs with a trace."""


def part_facts(name: str) -> MetricFacts | None:
    """The properties of a rate of one part of outputs (`score_set`); `None` for any other name."""
    for ending, where in PARTS.items():
        base = METRICS.get(name.removesuffix(ending))
        if base and name.endswith(ending):
            return MetricFacts(
                title=f"{base.title}, {where}",
                short_title=f"{base.short_title or base.title}, {ending.split('_')[-1]}",
                description=f"{base.description}; {where} alone, of outputs with a trace",
                higher_is_better=base.higher_is_better,
                format=base.format,
                interval=base.interval,
                in_summary=True,
            )
    return None


def headlines() -> list[str]:
    """Names of the metrics that can be the headline; the default comes first."""
    found = [name for name, metric in METRICS.items() if metric.headline]
    return sorted(found, key=lambda name: name != "leak_rate")
