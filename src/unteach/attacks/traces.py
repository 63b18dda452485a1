"""What the logits still tell of the forget rows: their NLL, and how well it tells them from rows
that were not to be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unteach import models
from unteach.data.packing import Branch, Tree, make_batch
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.evaluation.likelihood import rows_by_length
from unteach.evaluation.membership import min_k
from unteach.evaluation.results import MetricResult, summarise
from unteach.models.token_statistics import token_statistics

Scores = npt.NDArray[np.float64]
MIN_K = 0.2
"""Share of the tokens that Min-K% looks at: those that the model finds least likely (Shi et al.
2024).
"""


@torch.no_grad()
def token_logprobs(
    model: Any, tokenizer: Any, rows: Sequence[Row], tokens_per_batch: int = 2048
) -> list[Scores]:
    """Log-probability of each token of each row's completion, end of turn included, in nats; shape
    (tokens,) for each row.
    """
    end_id = end_of_turn_id(tokenizer)
    encoded = [encode_row(row, tokenizer, end_id) for row in rows]
    prompts, completions = (
        [row.prompt_ids for row in encoded],
        [row.completion_ids for row in encoded],
    )
    device, head = next(model.parameters()).device, models.output_head(model)
    found: list[Scores] = [np.zeros(0)] * len(rows)
    for part in rows_by_length(prompts, completions, tokens_per_batch):
        trees = [Tree(prompts[i], (Branch("retain", completions[i]),)) for i in part]
        batch = {
            name: tensor.to(device)
            for name, tensor in make_batch(trees, packed=False, pad_id=0).items()
        }
        hidden = models.predicting_states(model, batch, packed=False)
        logp = token_statistics(hidden, batch["target"], head).logp.double().cpu()
        for index, row in zip(part, logp.split([len(completions[i]) for i in part]), strict=True):
            found[index] = row.numpy()
    return found


def separation(members: Sequence[float], others: Sequence[float], draws: int = 500) -> MetricResult:
    """AUC: the chance that a member's score is above another's, ties counting half; 95% bootstrap
    over both sets of rows (fixed seed).

    Args:
        members (`Sequence[float]`): scores of the forget rows; higher: more likely known.
        others (`Sequence[float]`): scores of rows to tell them from.
        draws (`int`): resamples.
    """
    from sklearn.metrics import roc_auc_score

    if not members or not others:
        return MetricResult(None, 0, None, None, None)
    left, right = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    labels = np.concatenate([np.ones(len(left)), np.zeros(len(right))])
    generator = np.random.default_rng(0)

    def auc(a: Scores, b: Scores) -> float:
        return float(roc_auc_score(labels, np.concatenate([a, b])))

    drawn = [
        auc(
            left[generator.integers(0, len(left), len(left))],
            right[generator.integers(0, len(right), len(right))],
        )
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return MetricResult(auc(left, right), len(labels), float(low), float(high), None)


def traces(
    model: Any, tokenizer: Any, forget: Sequence[Row], others: Sequence[Row]
) -> dict[str, MetricResult]:
    """NLL of the forget rows and of the others, in nats a token, and the AUC of two membership
    attacks between them.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        forget (`Sequence[Row]`): the members.
        others (`Sequence[Row]`): rows of the same kind that were not given to forget; without any,
            the NLL of the forget rows alone.
    """
    member, other = (token_logprobs(model, tokenizer, rows) for rows in (forget, others))
    results = {
        "forget_nll": summarise([-float(row.mean()) for row in member], higher_is_better=None)
    }
    if other:
        results["other_nll"] = summarise(
            [-float(row.mean()) for row in other], higher_is_better=False
        )
        results["auc_loss"] = separation(
            [float(row.mean()) for row in member], [float(row.mean()) for row in other]
        )
        results["auc_min_k"] = separation(
            [min_k(row, MIN_K) for row in member], [min_k(row, MIN_K) for row in other]
        )
    return results
