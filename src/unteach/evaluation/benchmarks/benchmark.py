"""What benchmarks share: the protocol as data, the evaluated model, reading of sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unteach.data.chat import chat_settings
from unteach.data.rows import Row, evenly_spaced
from unteach.data.sources import records
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.generation import Generator, Progress, continuation_text, fitting_prompts
from unteach.evaluation.metrics import METRICS, MetricFacts, PromptSet, Role
from unteach.evaluation.results import MetricResult, summarise
from unteach.evaluation.text_metrics import rouge_l

Results = dict[str, dict[str, MetricResult]]
Column = Sequence[float | None]


class Output(str):
    """An output, and whether it met the token limit (`cut`)."""

    cut: bool = False

    @classmethod
    def of(cls, text: str, cut: bool) -> Output:
        """The text without surrounding space."""
        made = cls(text.strip())
        made.cut = cut
        return made


@dataclass(frozen=True)
class EvaluatedModel:
    """A model under evaluation.

    Args:
        model, tokenizer: a causal language model and its tokenizer.
        generator: generates its outputs.
        before: the model before unlearning, with the same tokenizer: reference of one attack, and
            language model of fluency; `None` if it is this model.
        progress: called with (done, of) prompts.
        batch_size: prompts per batch; default: by the size of their cache.
    """

    model: Any
    tokenizer: Any
    generator: Generator
    before: Any = None
    progress: Progress | None = None
    batch_size: int | None = None

    def outputs(
        self, rows: Sequence[Row], max_new_tokens: int, *, one_line: bool = False
    ) -> list[Output]:
        """Greedy outputs, without surrounding space; a prompt that leaves no room for its output
        loses its beginning. The limit is the protocol's, unless the chat settings have one.

        Args:
            one_line: an output goes up to its first line break: after few-shot examples a base
                model continues with a question of its own.
        """
        limit = chat_settings(self.tokenizer).max_new_tokens or max_new_tokens
        prompts = fitting_prompts(self.model, self.tokenizer, rows, limit)
        ids = self.generator(prompts, max_new_tokens=limit, progress=self.progress)
        outputs = []
        for prompt, made in zip(prompts, ids, strict=True):
            text, cut = continuation_text(self.tokenizer, prompt, made), len(made) >= limit
            if one_line:
                text, line_break, _ = text.strip().partition("\n")
                cut = cut and not line_break
            outputs.append(Output.of(text, cut))
        return outputs

    def encoded(
        self, rows: Sequence[Row], *, ended: bool = True
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Token ids of the prompts and of the completions, with the token that ends a turn; without
        it (`ended=False`) for outputs, which may have been cut at the token limit.
        """
        end_id = end_of_turn_id(self.tokenizer) if ended else None
        items = [encode_row(row, self.tokenizer, end_id) for row in rows]
        return [item.prompt_ids for item in items], [item.completion_ids for item in items]


@dataclass(frozen=True)
class SetValues:
    """The values of one prompt set, row by row.

    Args:
        keys: each row's.
        columns: metric to a value each row; their means become results. A column that is no
            registered metric stays with the rows.
        texts: prompts, expected texts, outputs; written on request only.
    """

    keys: Sequence[str]
    columns: Mapping[str, Column]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of_rows(
        cls, rows: Sequence[Row], columns: Mapping[str, Column], outputs: Sequence[str] = ()
    ) -> SetValues:
        """Values with the keys and texts of rows, and which of the outputs met the token limit."""
        known = [output.cut for output in outputs if isinstance(output, Output)]
        if known and len(known) == len(rows):
            columns = {**columns, "cut_off": list(map(float, known))}
        texts = {"prompt": [row.prompt_text for row in rows]}
        if any(row.completion for row in rows):
            texts["expected"] = [row.completion for row in rows]
        if outputs:
            texts["output"] = list(outputs)
        return cls([row.key for row in rows], columns, texts)


@dataclass(frozen=True)
class Measured:
    """What a benchmark found for one model.

    Args:
        sets: prompt set to its values.
        aggregates: numbers that are no mean over the rows of one set, by prompt set and metric.
    """

    sets: Mapping[str, SetValues]
    aggregates: Results = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A protocol.

    Args:
        load: from (`--data` or `None`, limit) to its data; whatever it is, `measure` takes it.
        measure: evaluates one model on the data.
        against_retrained: from the values of a model, and of one retrained without the forget set,
            to further aggregates.
        from_retrained: names of these.
        metrics: facts about its own metrics, beside those of `METRICS`.
        prompt_sets: its prompt sets; their roles decide which direction is better.
        role: of the sets that it does not name.
    """

    load: Callable[[str | None, int | None], Any]
    measure: Callable[[EvaluatedModel, Any], Measured]
    against_retrained: Callable[[Measured, Measured], Results] | None = None
    from_retrained: tuple[str, ...] = ()
    metrics: Mapping[str, MetricFacts] = field(default_factory=dict)
    prompt_sets: Mapping[str, PromptSet] = field(default_factory=dict)
    role: Role = "forget"

    def without_retrained(self) -> str:
        """A sentence that says which numbers a retrained model would give; empty for none."""
        titles = " and ".join(self.facts()[name].title for name in self.from_retrained)
        return titles and (
            f"Missing: {titles}, which compare with a model trained without the forget set; name"
            " one with --retrained."
        )

    def facts(self) -> dict[str, MetricFacts]:
        """All metrics that the benchmark may use."""
        return {**METRICS, **self.metrics}

    def prompt_set(self, name: str) -> PromptSet:
        """A prompt set; one that the benchmark does not name has its role."""
        return self.prompt_sets.get(name) or PromptSet(name.replace("_", " "), self.role)

    def results(self, measured: Measured) -> Results:
        """Means with their intervals of every registered metric, and the aggregates."""
        results: Results = {}
        for name, values in measured.sets.items():
            role, found = self.prompt_set(name).role, {}
            for metric, column in values.columns.items():
                if facts := self.facts().get(metric):
                    better = facts.better_on(role)
                    found[metric] = summarise(
                        column, higher_is_better=better, interval=facts.interval
                    )
            if found:
                results[name] = found
        for name, aggregates in measured.aggregates.items():
            results.setdefault(name, {}).update(aggregates)
        return results


def overlap(outputs: Sequence[str], expected: Sequence[str]) -> dict[str, Column]:
    """ROUGE-L recall with stemmer, which favours long outputs, and F1, which does not."""
    pairs = [rouge_l(*pair) for pair in zip(outputs, expected, strict=True)]
    return {
        "rouge_l_recall": [recall for recall, _ in pairs],
        "rouge_l_f1": [f1 for _, f1 in pairs],
    }


# --- a benchmark's sets: in a folder, in named files, or on the hub

Record = tuple[Mapping[str, Any], str]
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class SetFile:
    """One set of a benchmark.

    Args:
        name: in the results.
        files: patterns of its path below the folder, without suffix; the first that fits counts.
        config, split: the same on the hub.
        columns: columns that each row must have as text.
        lists: columns that each row must have as texts or lists of texts.
        optional: whether the benchmark runs without it.
    """

    name: str
    files: tuple[str, ...]
    config: str
    split: str
    columns: tuple[str, ...]
    lists: tuple[str, ...] = ()
    optional: bool = True


def local_files(source: str) -> dict[str, Path] | None:
    """Path below the folder, without suffix, to file; or paths of several files, separated by
    commas. `None` for a dataset on the hub.

    Raises:
        UserError: for a file that does not exist.
    """
    folder = Path(source)
    if folder.is_dir():
        found = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
        return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    paths = [Path(part.strip()) for part in source.split(",") if part.strip()]
    if not any(path.suffix in SUFFIXES for path in paths):
        return None
    for path in paths:
        if not path.is_file():
            raise UserError(f"option --data: {path} is no file")
    return {path.with_suffix("").as_posix(): path for path in paths}


def _matching(files: Mapping[str, Path], wanted: SetFile) -> Path | None:
    """The file of a set, by the first pattern that fits any."""
    for pattern in wanted.files:
        patterns = (pattern, f"*/{pattern}")
        found = [
            path for name, path in files.items() if any(fnmatch(name, glob) for glob in patterns)
        ]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"option --data: several files may be the set {wanted.name!r} ({names}); name the"
                " files, separated by commas"
            )
        if found:
            return found[0]
    return None


def load_sets(
    source: str | None, hub_id: str, wanted: Sequence[SetFile], limit: int | None = None
) -> dict[str, list[Record]]:
    """The rows of each set, with their places.

    Args:
        source: a folder, files separated by commas, or a dataset id; default: the benchmark's own.
        hub_id: the benchmark's dataset.
        wanted: its sets.
        limit: most rows of each set, at even distances.

    Raises:
        UserError: naming the set that is missing, or the row and the column.
    """
    files = local_files(source) if source else None
    sets: dict[str, list[Record]] = {}
    for part in wanted:
        if files is None:
            rows = list(records(f"{source or hub_id}:{part.config}", part.split))
        elif path := _matching(files, part):
            rows = list(records(path))
        elif part.optional:
            continue
        else:
            raise UserError(
                f"option --data: no file for the set {part.name!r}; it is called"
                f" {part.files[0]}.jsonl (.json, .parquet)"
            )
        if not rows:
            raise UserError(f"option --data: the set {part.name!r} has no rows")
        for fields, where in rows:
            _check(fields, where, part)
        sets[part.name] = evenly_spaced(rows, limit or len(rows))
    if not sets:
        known = ", ".join(part.files[0] for part in wanted)
        raise UserError(
            f"option --data: {source} holds no set of this benchmark; known are {known}"
        )
    return sets


def _check(fields: Mapping[str, Any], where: str, part: SetFile) -> None:
    for column in (*part.columns, *part.lists):
        value = fields.get(column)
        if not value:
            raise UserError(
                f"{where}: column {column!r} of the set {part.name!r} is missing or empty"
            )
        if column in part.columns and not (isinstance(value, str) and value.strip()):
            found = type(value).__name__
            raise UserError(
                f"{where}: column {column!r} is {found}, it must be text that is not empty"
            )
