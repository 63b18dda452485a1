"""The scenario of a user's own rows: what to forget, perhaps what to keep, and the prompt sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unteach.config.scorers import ScorerNames
from unteach.data.rows import Row, split_rows, split_shares, without_prompts_of
from unteach.data.secrets import with_secrets
from unteach.data.sources import load_rows
from unteach.errors import UserError
from unteach.scenarios.scenario import Scenario
from unteach.scenarios.texts import labelled_answers, prompt_rows


def user_scenario(
    forget: Any,
    retain: Any,
    *,
    forget_validation: Any = None,
    chat: bool = True,
    own_rows: int = 48,
    scorers: ScorerNames | None = None,
    teach: Mapping[str, Any] | None = None,
    limit: int | None = None,
    hold_out: float = 0.0,
    split_by: str | None = "prompt",
    secrets: str = "patterns",
) -> Scenario:
    """A scenario of a user's rows: all rows of the forget set are forgotten, unless `hold_out` says
    otherwise; a fifth of the retain set is held out, by hash.

    Prompts of the forget set are in no prompt set of what is kept.

    Args:
        forget, retain: anything that `load_rows` takes; `retain` may be `None`. The model's own
            answers to neutral prompts are kept too: with rows of one kind alone, answers of other
            kinds drift towards it.
        forget_validation (*optional*): rows for early stopping instead of the split's.
        chat (`bool`): kind of the neutral prompts.
        own_rows (`int`): at most so many of them.
        scorers (`ScorerNames`, *optional*): default: said facts or leak rate, by the
            rows, and similarity.
        teach (mapping, *optional*): settings with which all forget rows are taught first, to a
            model that does not know them.
        limit (`int`, *optional*): take at most so many forget rows.
        hold_out (`float`): share of the forget rows that is not trained on, see `split_shares`.
        split_by (`str`, *optional*): rows with the same prompt, or the same value of this column,
            fall into the same split, see `split_rows`.
        secrets (`str`): what finds the secrets of rows that name none, see `with_secrets`.
    """
    given = isinstance(forget, list) and forget and isinstance(forget[0], Row)
    loaded = forget if given else load_rows(forget, "forget", prompt_only=True)
    rows = with_secrets(loaded[:limit], secrets)
    split = split_rows(rows, split_shares(hold_out), by=split_by)
    if not split["train"]:
        raise UserError(
            f"the forget set has {len(rows)} row(s), and its training split"
            f" ({1 - hold_out:.0%} by hash) is empty; give more rows, or a smaller hold_out"
        )
    validation = split["validation"]
    if forget_validation is not None:
        validation = with_secrets(load_rows(forget_validation, "forget"), secrets)
    kept = [] if retain is None else load_rows(retain, "retain", prompt_only=True)
    kept = with_secrets(kept, secrets)
    grouped = any(split_by in row.columns for row in kept)
    kept_by = split_by if grouped or split_by is None else "prompt"
    kept_split = split_rows(kept, (0.8, 0.0, 0.2), by=kept_by)
    texts = all(row.kind == "text" for row in rows)
    neutral = prompt_rows("opening_lines" if texts or not chat else "neutral_prompts")
    normal = without_prompts_of(kept_split["test"], rows) or neutral[-12:]
    sets: dict[str, list[Row]] = {"unlearned": split["train"][:64]}
    if split["test"]:
        sets["unseen"] = split["test"][:64]
    sets["normal"] = [Row(row.prompt, "", row.kind, row.source) for row in normal[:32]]
    return Scenario(
        name="run",
        forget=split["train"],
        validation=validation,
        retain=kept_split["train"],
        sets=sets,
        teach=[] if teach is None else rows,
        teach_own_prompts=[] if teach is None else prompt_rows("plain_questions")[:20],
        teach_settings=dict(teach or {}),
        own_prompts=neutral[: min(own_rows, len(neutral) - 12)],
        labelled=labelled_answers(),
        scorers=scorers or ScorerNames(),
        leak_corpus=with_unrelated(rows),
        files={
            "forget": place(forget),
            "retain": place(retain),
            "forget_validation": place(forget_validation),
            "chat": chat,
            "own_rows": own_rows,
            "teach": None if teach is None else dict(teach),
            "limit": limit,
            "hold_out": hold_out,
            "split_by": split_by,
            "secrets": secrets,
        },
    )


def with_unrelated(rows: Sequence[Row]) -> list[str]:
    """Texts for the leak threshold: the rows' completions, and unrelated answers, because a few
    rows, or rows of one form, say little about chance.
    """
    completions = [row.completion for row in rows if row.completion][:64]
    unrelated = [item.answer for item in labelled_answers()]
    return completions + unrelated[: max(16, 64 - len(completions))] if completions else []


def place(source: Any) -> str | None:
    """Where rows can be read again: the absolute path of a file, a hub id as it is; `None` for rows
    that were given in Python.
    """
    if not isinstance(source, str | Path):
        return None
    return str(Path(source).resolve()) if Path(source).exists() else str(source)
