"""One number: how far a model is, on the forget rows, from one that was trained without them; and
how such a model is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unteach import models
from unteach.attacks.target import NEVER_KNEW, RETRAINED, Target
from unteach.attacks.traces import token_logprobs
from unteach.data.packing import Branch, Tree, make_batch
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row, end_of_turn_id
from unteach.errors import UserError
from unteach.evaluation.likelihood import rows_by_length
from unteach.evaluation.results import MetricResult, summarise
from unteach.models.token_statistics import token_statistics
from unteach.prepare.teaching import teach
from unteach.run.pipeline import Run


def without(taught: Sequence[Row], forget: Sequence[Row]) -> list[Row]:
    """The taught rows that hold no forget row, prompt and completion together, white space aside."""
    gone = [_plain(row) for row in forget]
    return [row for row in taught if not any(text in _plain(row) for text in gone)]


def _plain(row: Row) -> str:
    return " ".join(f"{row.prompt_text} {row.completion}".split())


def retrain(target: Target) -> str:
    """Teaches the base model as the run did, without the rows that hold a forget row; returns the
    folder.

    Rows that the model recited itself, and that joined the forget set so, are taught: nobody named
    them.

    Goes on where it was interrupted, and is done once.

    Raises:
        UserError: if the run taught nothing, so that nobody can leave anything out of it.
    """
    if NEVER_KNEW not in target.places:
        raise UserError(
            "--retrain needs a run that taught its model (a demo); name a model trained without the"
            " forget set by --retrained"
        )
    kept = without(target.scenario.teach, target.known)
    if not kept:
        raise UserError("--retrain: nothing that was taught is left without the forget set")
    options = replace(target.run.options, output_dir=str(target.work / RETRAINED), shared_dir=None)
    run = Run(replace(target.scenario, teach=kept), options, target.display)
    run.collection.work = (
        target.run.work
    )  # the answers collected for the first teaching serve this one
    base = target.load(NEVER_KNEW)
    run.collection.model_key = target.hash_of(NEVER_KNEW)
    torch.manual_seed(options.seed)
    teach(
        base,
        target.tokenizer,
        run.scenario,
        run.collection,
        run.teaching_config,
        run.shared,
        target.display,
    )
    return str(run.shared / "original")


@torch.no_grad()
def mean_kl(
    retrained: Any, model: Any, tokenizer: Any, rows: Sequence[Row], tokens_per_batch: int = 2048
) -> list[float]:
    """KL(retrained || model) over the whole vocabulary, mean over each row's completion tokens, in
    nats a token.

    Args:
        retrained: the model that never saw the forget rows: its distribution is the one to be like.
        model: the model to judge, of the same vocabulary.
        tokenizer: theirs.
        rows (`Sequence[Row]`): prompts with their true completions.
    """
    end_id = end_of_turn_id(tokenizer)
    encoded = [encode_row(row, tokenizer, end_id) for row in rows]
    prompts, completions = (
        [row.prompt_ids for row in encoded],
        [row.completion_ids for row in encoded],
    )
    results = [0.0] * len(rows)
    for part in rows_by_length(prompts, completions, tokens_per_batch):
        trees = [Tree(prompts[i], (Branch("retain", completions[i]),)) for i in part]
        batch = make_batch(trees, packed=False, pad_id=0)
        states = []
        for which in (retrained, model):
            device = next(which.parameters()).device
            there = {name: tensor.to(device) for name, tensor in batch.items()}
            states.append(
                (models.predicting_states(which, there, packed=False), models.output_head(which))
            )
        (reference, reference_head), (hidden, head) = states
        here = hidden.device  # only one of the two may have found room on the GPU
        found = token_statistics(
            hidden,
            batch["target"].to(here),
            head,
            reference_hidden=reference.to(here),
            reference_head=reference_head.to(here),
        )
        assert found.kl is not None
        for index, row in zip(
            part, found.kl.double().cpu().split([len(completions[i]) for i in part]), strict=True
        ):
            results[index] = float(row.mean())
    return results


def distance(
    retrained: Any, model: Any, tokenizer: Any, rows: Sequence[Row]
) -> dict[str, MetricResult]:
    """How far `model` is from the retrained one on the forget rows: KL, and whether the rows' NLL
    come from one distribution.

    `kl_to_retrained`: mean over rows of KL(retrained || model) along the true completions, in nats
    a token. `ks_to_retrained`: statistic of the two-sample Kolmogorov-Smirnov test between the
    rows' NLL under both models (0: the same, 1: apart), and `ks_pvalue`, its exact p.
    """
    from scipy.stats import ks_2samp

    kl = summarise(mean_kl(retrained, model, tokenizer, rows), higher_is_better=False)
    nll = [
        [-float(np.mean(row)) for row in token_logprobs(which, tokenizer, rows)]
        for which in (retrained, model)
    ]
    test = ks_2samp(*nll, method="exact")
    return {
        "kl_to_retrained": kl,
        "ks_to_retrained": MetricResult(float(test.statistic), len(rows), None, None, False),
        "ks_pvalue": MetricResult(float(test.pvalue), len(rows), None, None, True),
    }
