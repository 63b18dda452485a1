"""Attacks that read token probabilities: membership inference on the forget rows, exposure of their
secrets, and the distance to a model that was trained without them. They bring no content back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unteach import models
from unteach.attacks.attack import Attack, Outcome, Trial
from unteach.attacks.target import RETRAINED, Target
from unteach.data.rows import Row, evenly_spaced, rows_hash
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.evaluation.exposure import OTHERS, exposures
from unteach.evaluation.likelihood import completion_states
from unteach.evaluation.membership import auc, auc_interval, min_k
from unteach.evaluation.results import MetricResult, summarise
from unteach.models.token_statistics import token_statistics

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
    prompts, completions = _encoded(rows, tokenizer)
    head = models.output_head(model)
    found: list[npt.NDArray[np.float64]] = [np.zeros(0)] * len(rows)
    for part, hidden, targets in completion_states(model, prompts, completions, tokens_per_batch):
        logp = token_statistics(hidden, targets, head).logp.double().cpu()
        for index, row in zip(part, logp.split([len(completions[i]) for i in part]), strict=True):
            found[index] = row.numpy()
    return found


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
