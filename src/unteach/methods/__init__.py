"""`METHODS`: the unlearning methods by name, each a forget loss with a retain term and weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from unteach.errors import did_you_mean
from unteach.losses import sequence, token, vocabulary
from unteach.methods.objective import Hooks, Method
from unteach.methods.pdu import DualWeight
from unteach.methods.rmu import (
    AdaptiveSteering,
    CircuitBreaker,
    Steering,
    adaptive_steering_distance,
    rerouting,
    steering_distance,
)
from unteach.methods.task_vector import TaskVector

__all__ = ["DEFAULT_METHOD", "METHODS", "Hooks", "Method", "get_method"]

YAO = "Yao et al. 2024 (arXiv 2310.10683)"
ALONE = f"{YAO}, without its retain term"
RETAIN_ONLY = f"{YAO}, baseline: fine-tuning on the retain set only"
LIU = "gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121)"
LIU_KL = f"{LIU}, with KL on the retain set"
WELLECK = "Welleck et al. 2020 (arXiv 1908.04319), with KL on the retain set"
MISMATCH = "with the mismatch and KL terms of Yao et al. 2024"
WELLECK_MISMATCH = f"Welleck et al. 2020 (arXiv 1908.04319), {MISMATCH}"
OURS = "ours: log-odds until forgotten, with the KL term of the paper"
OURS_MISMATCH = "ours, with the mismatch and KL terms of the paper"
COUNTERFACTUAL = "ours: KL to the reference under other names, and the KL term of the paper"
DIVERT = "ours: KL to the reference without runs of the text, and the KL term of the paper"
NPO = "NPO with a retain term: Zhang et al. 2024 (arXiv 2404.05868)"
SIMNPO = "SimNPO with a retain term: Fan et al. 2024 (arXiv 2410.07163)"
DPO = "Rafailov et al. 2023 (arXiv 2305.18290)"
RIGHT = f"DPO towards the right answer: {DPO}"
IDK = f"DPO towards not knowing: {DPO} in the form of Maini et al. 2024 and Zhang et al. 2024"
ALTPO = "AltPO: Mekala et al. 2025 (arXiv 2409.13474)"
RMU = "RMU: Li et al. 2024 (arXiv 2403.03218)"
ADAPTIVE_RMU = "adaptive RMU: Dang et al. 2024 (arXiv 2408.06223)"
CIRCUIT_BREAKER = "circuit breakers: Zou et al. 2024 (arXiv 2406.04313)"
UNDIAL = "UNDIAL: Dong et al. 2025 (arXiv 2402.10052)"
WGA = "WGA: Wang et al. 2025 (arXiv 2502.19301)"
SATIMP = "SatImp: Yang et al. 2025 (arXiv 2505.11953)"
CEU = "CE-U: Yang 2025 (arXiv 2503.01224)"
PDU = "PDU: Entesari et al. 2025 (arXiv 2506.05314)"
ILHARCO = "task arithmetic: Ilharco et al. 2023 (arXiv 2212.04089)"
INSTEAD = "ours: cross-entropy of a sentence on the forget prompts, and the KL term of the paper"
TEACHING = "the reverse: makes a model know what a demo then forgets"

ascent = partial(Method, token.gradient_ascent, rate=0.15)
unlikely = partial(Method, token.unlikelihood, complement=True, forgets_end=False)
log_odds = partial(Method, token.clamped_log_odds, complement=True, forgets_end=False)
npo = partial(Method, sequence.negative_preference, "nll", level="sequence")
simnpo = partial(Method, sequence.simple_negative_preference, "nll", level="sequence")
dpo = partial(Method, sequence.direct_preference, "nll", level="sequence", reference="logp")
undial = partial(Method, vocabulary.adjusted_self_distillation, level="vocabulary")
ceu = partial(Method, vocabulary.cross_entropy_unlearning, level="vocabulary")
pdu = partial(Method, vocabulary.logit_margin_flattening, level="vocabulary", hooks=DualWeight)
rmu = partial(Method, steering_distance, level="state", hooks=Steering)
inner = partial(Method, level="state", reference="layer")
wga = partial(Method, token.weighted_gradient_ascent)
satimp = partial(Method, token.saturation_importance, complement=True)
likelihood = partial(Method, token.negative_log_likelihood)
beta = {"beta": 0.1}
BOUNDED: Mapping[str, Any] = {
    "retain_weight": 3.0,
    "retain_per_forget": 2.0,
    "max_retain_kl": None,
    "least_steps": 40,
    "hold": 4,  # a bounded target: what is kept recovers while the rate falls,
    "min_utility": 0.5,  # and half of it lost is no reason to end before that
}
HELD = {**BOUNDED, "state_weight": 10.0, "forget_growth": 2.0}
towards_target = partial(
    Method, token.forward_kl_to_reference, "kl", (0.5, 0, 1), reference="counterfactual"
)
FOUND_WITH = {"mismatch_completions": 1, "retain_weight": 5.0}

METHODS: dict[str, Method] = {
    "ga": ascent("kl", (0.5, 0, 1), YAO),
    "ga_no_retain": ascent(None, (0.5, 0, 0), ALONE),
    "ga_mismatch": ascent("kl", (0.5, 1, 1), YAO, mismatch=True),
    "ga_mismatch_no_retain": ascent(None, (0.5, 1, 0), ALONE, mismatch=True),
    "grad_diff": ascent("nll", (1, 0, 1), LIU),
    "grad_diff_kl": ascent("kl", (1, 0, 1), LIU_KL),
    "unlikelihood": unlikely("kl", (1, 0, 1), WELLECK),
    "unlikelihood_mismatch": unlikely("kl", (1, 0.5, 1), WELLECK_MISMATCH, mismatch=True),
    "log_odds": log_odds("kl", (1, 0, 1), OURS),
    "log_odds_mismatch": log_odds(
        "kl", (1, 0.5, 1), OURS_MISMATCH, mismatch=True, settings=FOUND_WITH
    ),
    "counterfactual": towards_target(
        COUNTERFACTUAL,
        rate=0.385,
        # in 40 steps fewer of the facts to keep come back
        settings={**HELD, "update": "directed", "least_steps": 80, "hold": 8},
    ),
    "divert": towards_target(DIVERT, settings=HELD),
    "instead": likelihood(
        "kl", (1, 0, 1), INSTEAD, says_instead=True, rate=0.385, settings=BOUNDED
    ),
    "npo": npo((1, 0, 1), NPO, parameters=beta, reference="logp"),
    "simnpo": simnpo((1, 0, 1), SIMNPO, parameters={"beta": 2.5, "gamma": 0}),
    "dpo_right": dpo((1, 0, 1), RIGHT, parameters=beta, preferred="right"),
    "dpo_idk": dpo((1, 0, 1), IDK, parameters=beta, preferred="idk"),
    "altpo": dpo((1, 0, 1), ALTPO, parameters=beta, preferred="alternate"),
    "rmu": rmu("states", (1, 0, 1200), RMU),
    "adaptive_rmu": inner(
        adaptive_steering_distance,
        "states",
        (1, 0, 1200),
        ADAPTIVE_RMU,
        parameters={"beta": 5.0},
        hooks=AdaptiveSteering,
    ),
    "circuit_breaker": inner(rerouting, "states", (1, 0, 1), CIRCUIT_BREAKER, hooks=CircuitBreaker),
    "undial": undial(None, (1, 0, 0), UNDIAL, parameters={"gamma": 10}, reference="logits"),
    "wga": wga("nll", (1, 0, 1), WGA, parameters={"beta": 1}),
    "satimp": satimp("nll", (0.1, 0, 1), SATIMP, parameters={"beta": 5, "gamma": 1}),
    "ceu": ceu(None, (1, 0, 0), CEU),
    "pdu": pdu("nll", (1, 0, 100), PDU),
    "task_vector": likelihood(None, (1, 0, 0), ILHARCO, hooks=TaskVector),
    "teaching": likelihood("kl", (1, 0, 1), TEACHING),
    "finetuning": Method(None, "nll", (0, 0, 1), RETAIN_ONLY),
}
DEFAULT_METHOD = "log_odds_mismatch"


def get_method(name: str) -> Method:
    """The method of that name; an unknown name raises `UserError` with the nearest known one."""
    if name not in METHODS:
        raise did_you_mean(name, list(METHODS), "method")
    return METHODS[name]
