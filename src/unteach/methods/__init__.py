"""`METHODS`: the unlearning methods by name, each a forget loss with a retain term and weights."""

from __future__ import annotations

from dataclasses import replace

from unteach.errors import did_you_mean
from unteach.losses import sequence, token, vocabulary
from unteach.losses.statistics import ROLES
from unteach.methods.objective import (
    Hooks,
    Method,
    RetainTerm,
    RoleTokens,
    objective_terms,
    step_counts,
    total_loss,
)
from unteach.methods.pdu import DualWeight
from unteach.methods.rmu import Steering, steering_distance
from unteach.methods.task_vector import TaskVector

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "ROLES",
    "Hooks",
    "Method",
    "RetainTerm",
    "RoleTokens",
    "get_method",
    "objective_terms",
    "step_counts",
    "total_loss",
]

YAO = "Yao et al. 2024 (arXiv 2310.10683)"
YAO_ALONE = f"{YAO}, without its retain term"
LIU = "gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121)"
WELLECK = "Welleck et al. 2020 (arXiv 1908.04319), with"
DPO = "Rafailov et al. 2023 (arXiv 2305.18290)"
MAINI = "in the form of Maini et al. 2024 and Zhang et al. 2024"

ASCENT = Method(token.gradient_ascent, "kl", (0.5, 0, 1), YAO, rate=0.15)
UNLIKELIHOOD = Method(token.unlikelihood, complement=True, forgets_end=False)
LOG_ODDS = Method(token.clamped_log_odds, complement=True, forgets_end=False)
PREFERENCE = Method(
    sequence.direct_preference,
    "nll",
    level="sequence",
    parameters={"beta": 0.1},
    reference="logp",
)

METHODS: dict[str, Method] = {
    "ga": ASCENT,
    "ga_no_retain": replace(ASCENT, retain=None, weights=(0.5, 0, 0), source=YAO_ALONE),
    "ga_mismatch": replace(ASCENT, mismatch=True, weights=(0.5, 1, 1)),
    "ga_mismatch_no_retain": replace(
        ASCENT, mismatch=True, retain=None, weights=(0.5, 1, 0), source=YAO_ALONE
    ),
    "grad_diff": replace(ASCENT, retain="nll", weights=(1, 0, 1), source=LIU),
    "grad_diff_kl": replace(ASCENT, weights=(1, 0, 1), source=f"{LIU}, with KL on the retain set"),
    "unlikelihood": replace(UNLIKELIHOOD, source=f"{WELLECK} KL on the retain set"),
    "unlikelihood_mismatch": replace(
        UNLIKELIHOOD,
        mismatch=True,
        weights=(1, 0.5, 1),
        source=f"{WELLECK} the mismatch and KL terms of Yao et al. 2024",
    ),
    "log_odds": replace(
        LOG_ODDS, source="ours: log-odds until forgotten, with the KL term of the paper"
    ),
    "log_odds_mismatch": replace(
        LOG_ODDS,
        mismatch=True,
        weights=(1, 0.5, 1),
        source="ours, with the mismatch and KL terms of the paper",
    ),
    "npo": replace(
        PREFERENCE,
        forget=sequence.negative_preference,
        source="NPO with a retain term: Zhang et al. 2024 (arXiv 2404.05868)",
    ),
    "simnpo": replace(
        PREFERENCE,
        forget=sequence.simple_negative_preference,
        reference=None,
        parameters={"beta": 2.5, "gamma": 0},
        source="SimNPO with a retain term: Fan et al. 2024 (arXiv 2410.07163)",
    ),
    "dpo_right": replace(
        PREFERENCE, preferred="right", source=f"DPO towards the right answer: {DPO}"
    ),
    "dpo_idk": replace(
        PREFERENCE, preferred="idk", source=f"DPO towards not knowing: {DPO} {MAINI}"
    ),
    "altpo": replace(
        PREFERENCE, preferred="alternate", source="AltPO: Mekala et al. 2025 (arXiv 2409.13474)"
    ),
    "rmu": Method(
        steering_distance,
        "states",
        (1, 0, 1200),
        "RMU: Li et al. 2024 (arXiv 2403.03218)",
        level="state",
        hooks=Steering,
    ),
    "undial": Method(
        vocabulary.adjusted_self_distillation,
        None,
        (1, 0, 0),
        "UNDIAL: Dong et al. 2025 (arXiv 2402.10052)",
        level="vocabulary",
        parameters={"gamma": 10},
        reference="logits",
    ),
    "wga": Method(
        token.weighted_gradient_ascent,
        "nll",
        source="WGA: Wang et al. 2025 (arXiv 2502.19301)",
        parameters={"beta": 1},
    ),
    "satimp": Method(
        token.saturation_importance,
        "nll",
        (0.1, 0, 1),
        "SatImp: Yang et al. 2025 (arXiv 2505.11953)",
        parameters={"beta": 5, "gamma": 1},
        complement=True,
    ),
    "ceu": Method(
        vocabulary.cross_entropy_unlearning,
        None,
        (1, 0, 0),
        "CE-U: Yang 2025 (arXiv 2503.01224)",
        level="vocabulary",
    ),
    "pdu": Method(
        vocabulary.logit_margin_flattening,
        "nll",
        (1, 0, 100),
        "PDU: Entesari et al. 2025 (arXiv 2506.05314)",
        level="vocabulary",
        hooks=DualWeight,
    ),
    "task_vector": Method(
        token.negative_log_likelihood,
        None,
        (1, 0, 0),
        "task arithmetic: Ilharco et al. 2023 (arXiv 2212.04089)",
        hooks=TaskVector,
    ),
    "teaching": Method(
        token.negative_log_likelihood,
        source="the reverse: makes a model know what a demo then forgets",
    ),
    "finetuning": Method(
        None, "nll", (0, 0, 1), f"{YAO}, baseline: fine-tuning on the retain set only"
    ),
}
DEFAULT_METHOD = "log_odds_mismatch"


def get_method(name: str) -> Method:
    """The method of that name; an unknown name raises `UserError` with the nearest known one."""
    if name not in METHODS:
        raise did_you_mean(name, list(METHODS), "method")
    return METHODS[name]
