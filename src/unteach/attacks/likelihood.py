"""Attacks that read token probabilities: membership inference on the forget rows, exposure of their
secrets, and the distance to a model that was trained without them. They bring no content back.
"""

from __future__ import annotations

import contextlib
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unteach import models
from unteach.attacks.attack import Attack, Outcome, Trial
from unteach.attacks.target import RETRAINED, Target
from unteach.data.packing import common_prefix
from unteach.data.rows import Row, evenly_spaced, rows_hash
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.likelihood import completion_states, mean_nll, token_logp
from unteach.evaluation.membership import auc, auc_interval, min_k
from unteach.evaluation.results import MetricResult, summarise
from unteach.models.token_statistics import token_statistics
from unteach.seeding import row_generator

Tokens = list[tuple[int, ...]]
EXPOSED_ROWS = {"quick": 6, "full": 24}
"""Most rows whose secrets are ranked, by level: each costs a forward of `OTHERS` completions."""


def _encoded(rows: Sequence[Row], tokenizer: Any) -> tuple[Tokens, Tokens]:
    """Token ids of the rows' prompts and completions, end of turn included."""
    end_id = end_of_turn_id(tokenizer)
    encoded = [encode_row(row, tokenizer, end_id) for row in rows]
    return [row.prompt_ids for row in encoded], [row.completion_ids for row in encoded]


@torch.no_grad()
def token_logprobs(
    model: Any, tokenizer: Any, rows: Sequence[Row], tokens_per_batch: int = 2048
) -> list[npt.NDArray[np.float64]]:
    """Log-probability in nats of each token of each row's completion; shape (tokens,) per row."""
    found = token_logp(model, *_encoded(rows, tokenizer), tokens_per_batch)
    return [np.zeros(0) if row is None else row.numpy() for row in found]


@torch.no_grad()
def mean_kl(
    retrained: Any, model: Any, tokenizer: Any, rows: Sequence[Row], tokens_per_batch: int = 2048
) -> list[float]:
    """KL(retrained || model) over the whole vocabulary, mean over each row's completion tokens, in
    nats per token.

    Args:
        retrained: the model that was trained without the forget rows.
        model: the model to compare with it, of the same vocabulary.
        rows: prompts with their true completions.
    """
    prompts, completions = _encoded(rows, tokenizer)
    head, reference_head = models.output_head(model), models.output_head(retrained)
    batches = [
        completion_states(one, prompts, completions, tokens_per_batch) for one in (retrained, model)
    ]
    means = [0.0] * len(rows)
    for (same, reference, _), (part, hidden, targets) in zip(*batches, strict=True):
        assert part == same
        found = token_statistics(
            hidden,
            targets,
            head,
            # on a GPU without room for both models one is on the CPU
            reference_hidden=reference.to(hidden.device),
            reference_head=reference_head,
        )
        assert found.kl is not None
        kl = found.kl.double().cpu().split([len(completions[i]) for i in part])
        for index, row in zip(part, kl, strict=True):
            means[index] = float(row.mean())
    return means


def separation(members: Sequence[float], others: Sequence[float]) -> MetricResult:
    """AUC of the forget rows' scores against other rows' (0.5: chance), with a bootstrap
    interval over both sets of rows; without a value if one set is empty.
    """
    if not members or not others:
        return MetricResult(None, 0, None, None, None)
    count = len(members) + len(others)
    return MetricResult(auc(members, others), count, *auc_interval(members, others), None)


def traces(
    model: Any, tokenizer: Any, forget: Sequence[Row], others: Sequence[Row]
) -> dict[str, MetricResult]:
    """Mean NLL in nats per token of the forget rows and of others, and the AUC of two membership
    inference attacks between them.

    Args:
        forget: the members.
        others: rows of the same kind that are not in the forget set; may be empty.
    """
    members, rest = (token_logprobs(model, tokenizer, rows) for rows in (forget, others))
    losses, other_losses = ([-float(row.mean()) for row in rows] for rows in (members, rest))
    found = {"forget_nll": summarise(losses, higher_is_better=None)}
    if rest:
        found["other_nll"] = summarise(other_losses, higher_is_better=False)
        found["auc_loss"] = separation([-nll for nll in losses], [-nll for nll in other_losses])
        found["auc_min_k"] = separation(
            [min_k(row) for row in members], [min_k(row) for row in rest]
        )
    return found


def distance(
    retrained: Any, model: Any, tokenizer: Any, rows: Sequence[Row]
) -> dict[str, MetricResult]:
    """Distance of a model to the retrained one on the forget rows.

    `kl_to_retrained`: mean over rows of `mean_kl`. `ks_to_retrained` and `ks_pvalue`: two-sample
    Kolmogorov-Smirnov test, exact, between the rows' NLL under both models (statistic 0: the same
    distribution, 1: no overlap).
    """
    from scipy.stats import ks_2samp

    losses = [
        [-float(row.mean()) for row in token_logprobs(one, tokenizer, rows)]
        for one in (retrained, model)
    ]
    test = ks_2samp(*losses, method="exact")
    return {
        "kl_to_retrained": summarise(
            mean_kl(retrained, model, tokenizer, rows), higher_is_better=False
        ),
        "ks_to_retrained": MetricResult(float(test.statistic), len(rows), None, None, False),
        "ks_pvalue": MetricResult(float(test.pvalue), len(rows), None, None, True),
    }


# --- exposure: the rank of a row's secret by likelihood among random secrets of the same format
#
# Carlini, Liu, Erlingsson, Kos, Song: The Secret Sharer (2019, arXiv 1802.08232), section 4.


OTHERS = 99
"""Number of random secrets; the exposure of the most likely secret is log2 100 = 6.6 bits."""
ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
FIRST_TOKENS = 2
"""Tokens of a random secret by which most are ranked after a known one."""
TOKENS_PER_BATCH = 8192
"""Most tokens of a batch of one row's sequences, which share most of their tokens."""


def exposure(secret: float, others: Sequence[float]) -> float:
    """log2 |R| - log2 rank, in bits: R are the true secret and the others; rank 1 is the most
    likely. The mean over random ranks is 1.4 bits.

    >>> exposure(-1.0, [-2.0, -3.0, -4.0])
    2.0

    Args:
        secret: log-likelihood of the true secret, in any unit.
        others: those of the random ones.
    """
    rank = 1 + sum(other > secret for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def random_secrets(secret: str, count: int, generator: np.random.Generator) -> list[str]:
    """At most `count` different secrets of the same format: each ASCII digit and letter is drawn
    from the digits or the letters of its case; other characters stay. A short secret has fewer.
    """
    kinds = [next((a for a in ALPHABETS if letter in a), letter) for letter in secret]
    possible = math.prod(min(len(kind), count + 1) for kind in kinds)
    drawn: dict[str, None] = {}
    for _ in range(20 * count):
        if len(drawn) == min(count, possible - 1):
            break
        text = "".join(kind[int(generator.integers(len(kind)))] for kind in kinds)
        if text != secret:
            drawn[text] = None
    return list(drawn)


def exposures(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float | None]:
    """For each row the exposure of its most exposed secret in its completion; `None` where it has
    none, or none with a digit or a letter from a to z.

    The likelihood is that of the completion up to the end of the secret.

    Args:
        rows: their secrets and completions.
        seed: of the random secrets, which depend on it and on the row.
        progress: called with (done, of) rows.
    """
    found: list[float | None] = []
    for row in rows:
        values = [secret_exposure(model, tokenizer, row, secret, seed) for secret in row.secret]
        found.append(max((value for value in values if value is not None), default=None))
        if progress:
            progress(len(found), len(rows))
    return found


def secret_exposure(model: Any, tokenizer: Any, row: Row, secret: str, seed: int) -> float | None:
    place = row.completion.find(secret)
    others = random_secrets(secret, OTHERS, row_generator("exposure", seed, row.key, secret))
    if place < 0 or not others:
        return None
    sequences = []
    for text in (secret, *others):
        with contextlib.suppress(UserError):  # its first token merges with the prompt's last
            item = encode_row(row.with_completion(row.completion[:place] + text), tokenizer, None)
            sequences.append((text, (*item.prompt_ids, *item.completion_ids)))
    if len(sequences) < 2 or sequences[0][0] != secret:
        return None
    ids = [tokens for _, tokens in sequences]
    shared = len(common_prefix(ids))

    def log_likelihoods(texts: Sequence[tuple[int, ...]]) -> list[float]:
        rests = [text[shared:] for text in texts]
        prompts = [ids[0][:shared]] * len(texts)
        means = mean_nll(model, prompts, rests, tokens_per_batch=TOKENS_PER_BATCH)
        return [-float(mean or 0.0) * len(rest) for mean, rest in zip(means, rests, strict=True)]

    # one whose first tokens are less likely than the whole secret ranks after it
    starts = [text[: shared + FIRST_TOKENS] for text in ids[1:]]
    distinct = list(dict.fromkeys(starts))
    true, *found = log_likelihoods([ids[0], *distinct])
    bounds = dict(zip(distinct, found, strict=True))
    near = [text for text, start in zip(ids[1:], starts, strict=True) if bounds[start] > true]
    least = [-math.inf] * (len(starts) - len(near))
    return exposure(true, [*least, *log_likelihoods(near)])


# --- the attacks


def _traces(trial: Trial) -> Outcome:
    target = trial.target
    return Outcome(traces(trial.model(), target.tokenizer, target.forget, target.related))


TRACES = Attack(
    "likelihood",
    "traces",
    "likelihood of the forget rows, and its AUC against other rows (0.5 is chance)",
    _traces,
    lambda target: {"other_rows": len(target.related)},
    lambda target: rows_hash(target.related),
    models="all",
)
"""NLL and membership inference under every model of the run."""


def _secret_rows(target: Target) -> list[Row]:
    rows = [row for row in target.all_forget if row.secret]
    return evenly_spaced(rows, EXPOSED_ROWS[target.options.level])


def _exposure(trial: Trial) -> Outcome:
    target, seed = trial.target, trial.settings["seed"]
    rows, progress = _secret_rows(target), trial.progress
    found = exposures(trial.model(), target.tokenizer, rows, seed=seed, progress=progress)
    return Outcome({"exposure": summarise(found, higher_is_better=False)})


EXPOSURE = Attack(
    "likelihood",
    "exposure",
    "bits by which the true secret ranks before random ones of its shape, by likelihood: 6.6 for"
    " the first of 100, 1.4 by chance",
    _exposure,
    lambda target: {
        "rows": len(_secret_rows(target)),
        "random_secrets": OTHERS,
        "seed": target.options.seed,
    },
    lambda target: rows_hash(_secret_rows(target)),
    missing=lambda target: (
        None if _secret_rows(target) else "no forget row names facts in 'secret'"
    ),
    models="all",
)
"""The exposure of the rows' secrets under every model of the run."""


def _distance(trial: Trial) -> Outcome:
    target = trial.target
    pair = target.folder.model(RETRAINED), trial.model()
    return Outcome(distance(*pair, target.tokenizer, target.forget))


def _no_retrained_model(target: Target) -> str | None:
    if RETRAINED in target.folder.model_paths():
        return None
    return (
        "it needs a model trained without the forget set: --retrain trains one (demos),"
        " --retrained names one"
    )


DISTANCE = Attack(
    "likelihood",
    "distance",
    "to a model trained without the forget set, on the forget rows",
    _distance,
    lambda target: {"retrained_model_hash": target.folder.model_hash(RETRAINED)},
    missing=_no_retrained_model,
    models="pair",
)
"""KL and NLL of original and unlearned model compared with the retrained one."""
