"""The verdict on a run, from its `eval.json` alone: has the model forgotten, and at what harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

Verdict = Literal["forgotten", "forgotten with damage", "not forgotten", "collapsed"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FORGOTTEN_AT = 0.05
"""Highest headline rate after training, as a share of the initial rate, at which a set counts as
forgotten: one answer of twenty, for sampling and errors of a judge.
"""
HELD_AT = 0.95
"""Smallest share of the facts or words of a retain set that counts as kept: these rows are trained
on and the easiest to keep.
"""
SIMILAR_AT = 0.85
"""Smallest mean similarity of answers to the original's: runs without damage reach 0.90; 0.05 is
for greedy answers of small models, whose wording changes by rounding.
"""
READABLE_WITHIN = 0.02
"""Largest share of a set's answers that may become degenerate."""
OWN_ANSWERS = 0.999
"""Recall of the original's answers from which on a set's completions are these answers."""
ROWS_OF_CHANCE = 1.5
"""A difference of fewer rows (one row) is no evidence: of few rows it is a large share."""
COLLAPSED_READABLE, COLLAPSED_ROWS = 0.25, 4
"""Share of the answers to other prompts that became degenerate, and their least number, from which
the model counts as collapsed.
"""
COLLAPSED_SIMILAR = 0.5
"""Mean similarity of everyday answers to the original's under which the model counts as collapsed:
unrelated sentences have 0.1 to 0.3, one template for all answers 0.31.
"""
COLLAPSED_NATS = 2.0
"""Increase of the answers' NLL under the fluency model, in nats per token (a perplexity 7.4 times
as high), from which they count as broken language without repetition.
"""
SAID_INSTEAD_AT, SPREAD_WITHIN = 0.9, 0.02
"""Least share of forget answers with the sentence that a run was asked for at which it counts as
said; most of the answers to other prompts, as a share, that may have begun to say it.
"""
BASELINES = ("retrained", "never_knew")
"""Models that were not trained on the forget set: their rates are chance."""
Kind = Literal["collapsed", "shown", "damage", "missing", "gone", "held"]
ORDER: tuple[Kind, ...] = get_args(Kind)


class Finding(NamedTuple):
    """The kind of a result, and the result in a sentence."""

    kind: Kind
    reason: str


class Change(NamedTuple):
    """A metric on a prompt set before and after, and its rows."""

    before: float
    after: float
    n: int


def verdict(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `verdict`, one of `VERDICTS`, and `reasons` of `eval.json`: sentences with
    numbers, the decisive ones first; what was not measured is among them and never counts as kept.

    Args:
        evaluation: the content of an `eval.json`, with results of the models `original` and
            `unlearned` and optionally of `BASELINES`.
    """
    found = sorted(_findings(evaluation), key=lambda finding: ORDER.index(finding.kind))
    kinds = {finding.kind for finding in found}
    word: Verdict = "forgotten"
    if "collapsed" in kinds:
        word = "collapsed"
    elif "shown" in kinds or "gone" not in kinds:
        word = "not forgotten"
    elif "damage" in kinds:
        word = "forgotten with damage"
    return {"verdict": word, "reasons": [finding.reason for finding in found]}


def _findings(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    sets: Mapping[str, Mapping[str, Any]] = evaluation["prompt_sets"]
    forget, kept, normal = (
        [name for name, facts in sets.items() if facts["role"] == role]
        for role in ("forget", "kept", "normal")
    )
    headline, forgotten = str(evaluation.get("headline", "leak_rate")), False
    for name in forget:
        for finding in _forgotten(evaluation, name, headline):
            forgotten = forgotten or finding.kind != "missing"
            yield finding
    if not forgotten:
        yield Finding("shown", f"no forget set has a {_title(evaluation, headline)}")
    for name in kept:
        yield from _held(evaluation, name)
    if not any(sets[name].get("neighbours") for name in kept):
        yield Finding(
            "missing",
            "neighbours were not measured: nothing is known of prompts of the same kind about other"
            " things",
        )
    for name in normal:
        yield from _similar(evaluation, name)
    if not normal:
        yield Finding("missing", "everyday prompts were not measured")
    yield from _all_readable(evaluation)
    for name in sets:
        yield from _likely(evaluation, name)
        yield from _said_instead(evaluation, name)


def _change(evaluation: Mapping[str, Any], name: str, metric: str) -> Change | None:
    models = evaluation["models"]
    pair = [models.get(model, {}).get(name, {}).get(metric) for model in ("original", "unlearned")]
    if any(result is None or result["value"] is None for result in pair):
        return None
    return Change(pair[0]["value"], pair[1]["value"], int(pair[1]["n"]))


def _title(evaluation: Mapping[str, Any], metric: str) -> str:
    return str(evaluation["metrics"].get(metric, {}).get("title", metric.replace("_", " ")))


def _sentence(evaluation: Mapping[str, Any], name: str, metric: str, change: Change) -> str:
    """The metric on the set before and after: "said facts, forget: 67% -> 0% of 30"."""
    form = evaluation["metrics"].get(metric, {}).get("format", ".3g")
    where = evaluation["prompt_sets"][name]["title"]
    before, after = (format(value, form) for value in (change.before, change.after))
    return f"{_title(evaluation, metric)}, {where}: {before} -> {after} of {change.n} rows"


def _forgotten(evaluation: Mapping[str, Any], name: str, headline: str) -> Iterator[Finding]:
    change = _change(evaluation, name, headline)
    limit = evaluation["prompt_sets"][name].get("forgotten_at", FORGOTTEN_AT)
    if change is None or limit >= 1:
        return
    text = _sentence(evaluation, name, headline, change)
    if not change.before:
        kind: Kind = "shown" if limit <= FORGOTTEN_AT else "missing"
        yield Finding(kind, f"{text}; nothing was known before, so nothing shows forgetting")
        return
    chance = [
        result["value"]
        for model in BASELINES
        if (result := evaluation["models"].get(model, {}).get(name, {}).get(headline))
        and result["value"] is not None
    ]
    if change.after <= max([limit * change.before, *chance]):
        yield Finding("gone", text)
        return
    level = f"{limit:.0%} of what was known"
    level += f" or {max(chance):.0%} by chance" if chance else ""
    yield Finding("shown", f"{text}, more than {level}")


def _held(evaluation: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """Whether a set is kept: by its facts, else by its words, else by the similarity of the answers
    to the original's.

    Neighbours whose completions are the original's own answers, word for word, have no facts to
    lose in another wording: they are judged by similarity.
    """
    share = evaluation["prompt_sets"][name].get("held_at", HELD_AT)
    where = evaluation["prompt_sets"][name]["title"]
    words = _change(evaluation, name, "rouge_l_recall")
    for metric in ("said_facts", "rouge_l_recall"):
        change = _change(evaluation, name, metric)
        few = change and words and 2 * change.n < words.n  # most rows name no facts
        own = metric == "rouge_l_recall" and evaluation["prompt_sets"][name].get("neighbours")
        if change is None or not change.before or few:
            continue
        if own and change.before >= OWN_ANSWERS and _change(evaluation, name, "similarity"):
            continue
        rate = evaluation["metrics"].get(metric, {}).get("interval") == "wilson"
        lost = (change.before - change.after) * change.n
        text = _sentence(evaluation, name, metric, change)
        text += f", {change.after / change.before:.0%} of before"
        if change.after >= share * change.before:
            yield Finding("held", text)
        elif rate and lost <= ROWS_OF_CHANCE:
            yield Finding("missing", f"{text}: one row, too few to tell")
        else:
            yield Finding("damage", f"{text}, under {share:.0%}")
        return
    change = _change(evaluation, name, "similarity")
    if change is None:
        yield Finding("missing", f"what the model keeps of {where} was not measured")
        return
    text = f"{_title(evaluation, 'similarity')}, {where}: {change.after:.2f} of {change.n} rows"
    less = change.after < SIMILAR_AT
    yield Finding("damage", f"{text}, under {SIMILAR_AT}") if less else Finding("held", text)


def _similar(evaluation: Mapping[str, Any], name: str) -> Iterator[Finding]:
    change = _change(evaluation, name, "similarity")
    where = evaluation["prompt_sets"][name]["title"]
    if change is None:
        yield Finding("missing", f"similarity to the original's answers, {where}: not measured")
        return
    text = f"{_title(evaluation, 'similarity')}, {where}: {change.after:.2f} of {change.n} rows"
    limit = evaluation["prompt_sets"][name].get("similar_at", SIMILAR_AT)
    if change.after < min(limit, COLLAPSED_SIMILAR):
        yield Finding("collapsed", f"{text}, under {COLLAPSED_SIMILAR}")
    elif change.after < limit:
        yield Finding("damage", f"{text}, under {limit}")
    elif not limit:
        yield Finding("missing", f"{text}; other words are no damage there")
    else:
        yield Finding("held", text)


def _all_readable(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    """A finding for each set with fewer readable answers or no measurement, one for the others."""
    found = {name: _readable(evaluation, name) for name in evaluation["prompt_sets"]}
    held = [name for name, finding in found.items() if finding.kind == "held"]
    yield from (found[name] for name in found if name not in held)
    if held:
        rates = [evaluation["models"]["unlearned"][name]["readability"]["value"] for name in held]
        titles = ", ".join(evaluation["prompt_sets"][name]["title"] for name in held)
        within = f"within {100 * READABLE_WITHIN:.0f} points of before"
        yield Finding("held", f"{min(rates):.0%} or more readable, {within}: {titles}")


def _readable(evaluation: Mapping[str, Any], name: str) -> Finding:
    change = _change(evaluation, name, "readability")
    facts = evaluation["prompt_sets"][name]
    if change is None:
        return Finding("missing", f"readability of the answers, {facts['title']}: not measured")
    text, lost = _sentence(evaluation, name, "readability", change), change.before - change.after
    if lost <= READABLE_WITHIN:
        return Finding("held", text)
    if lost * change.n <= ROWS_OF_CHANCE:
        return Finding("missing", f"{text}: one row, too few to tell")
    enough = lost >= COLLAPSED_READABLE and round(lost * change.n) >= COLLAPSED_ROWS
    if facts["role"] != "forget" and enough:
        return Finding("collapsed", text)
    return Finding("damage", f"{text}, {100 * lost:.0f} points fewer")


def _likely(evaluation: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """Answers that became far less likely."""
    sets = evaluation["prompt_sets"]
    change = _change(evaluation, name, "fluency")
    if change is None:
        return
    others = [_change(evaluation, other, "fluency") for other in sets]
    everyday = [
        other.before
        for other, place in zip(others, sets, strict=True)
        if other and sets[place]["role"] == "normal"
    ]
    if change.after - max([change.before, *everyday]) > COLLAPSED_NATS:
        forget = sets[name]["role"] == "forget"
        text = _sentence(evaluation, name, "fluency", change)
        yield Finding(
            "damage" if forget else "collapsed",
            f"{text}, more than {COLLAPSED_NATS:g} nats a token less likely",
        )


def _said_instead(evaluation: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """How often forget prompts are answered with the sentence that was asked for; whether it has
    spread to other prompts.
    """
    change = _change(evaluation, name, "said_instead")
    if change is None:
        return
    text, more = _sentence(evaluation, name, "said_instead", change), change.after - change.before
    if evaluation["prompt_sets"][name]["role"] == "forget":
        yield Finding("held" if change.after >= SAID_INSTEAD_AT else "missing", text)
    elif more * change.n > ROWS_OF_CHANCE and more > SPREAD_WITHIN:
        yield Finding("damage", f"{text}: the sentence has spread")
    elif more > 0:
        yield Finding("missing", f"{text}: too little to call it spread")
    else:
        yield Finding("held", text)
