"""The methods by name, each an objective with its defaults; a method says what its forget loss
reads, and so what has to be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from unteach.errors import did_you_mean
from unteach.losses.sequence import (
    direct_preference,
    negative_preference,
    simple_negative_preference,
)
from unteach.losses.state import steering_distance
from unteach.losses.statistics import TokenStatistics
from unteach.losses.token import (
    clamped_log_odds,
    extra_loss,
    forward_kl_to_reference,
    gradient_ascent,
    negative_log_likelihood,
    saturation_importance,
    unlikelihood,
    weighted_gradient_ascent,
)
from unteach.losses.vocabulary import (
    adjusted_self_distillation,
    cross_entropy_unlearning,
    logit_margin_flattening,
)

ROLES = ("forget", "mismatch", "preferred", "retain")
"""Roles of completions, in the order of `unteach.data.packing.ROLE_IDS`; `preferred` ones enter the
forget term.
"""

Level = Literal["token", "sequence", "vocabulary", "state"]
RetainTerm = Literal["kl", "nll", "states"]
Preferred = Literal["right", "idk", "alternate"]


@dataclass(frozen=True)
class Method:
    """A named objective with its default weights.

    Args:
        forget (`Callable`, *optional*): loss on the completions to forget; `None`: they are not
            used. What it maps depends on `level`.
        mismatch (`bool`): whether random completions on the forget prompts are trained by
            cross-entropy.
        retain (`"kl"`, `"nll"`, `"states"` or `None`): what holds the retain set: the forward KL to
            the reference, cross-entropy, or the distance to the reference's hidden states at the
            steering layer.
        weights (`tuple[float, float, float]`): default eps1, eps2, eps3.
        source (`str`): where the method is from.
        when (`str`): when to use it.
        defaults (`str`): where its default values are from.
        level (`"token"`, `"sequence"`, `"vocabulary"` or `"state"`): whether `forget` reads
            `TokenStatistics`, `Sequences`, logits or hidden states.
        parameters (`Mapping[str, float]`): keyword arguments of `forget`, `beta` and `gamma`, with
            their defaults.
        complement (`bool`): whether `forget` reads log(1 - p).
        reference (`"logp"`, `"logits"` or `None`): what `forget` reads of the reference on the
            completions to forget.
        preferred (`"right"`, `"idk"`, `"alternate"` or `None`): the completion that is preferred to
            the one to forget: the row's right answer, a sentence of not knowing, or another answer
            of the model's own.
        dual (`bool`): eps3 is a dual variable that the trainer updates, see
            `unteach.trainer.stopping.DualWeight`.
        rate (`float`): its learning rate as a share of that which a run takes by itself, see
            `unteach.config.resolve`.
        forgets_end (`bool`): whether the token that ends an answer is by default among those to
            forget.
        negate (`bool`): what training has changed is taken off the start afterwards, see
            `unteach.trainer.task_vector`.
    """

    forget: Callable[..., Tensor] | None
    mismatch: bool
    retain: RetainTerm | None
    weights: tuple[float, float, float]
    source: str
    when: str = ""
    defaults: str = ""
    level: Level = "token"
    parameters: Mapping[str, float] = field(default_factory=dict)
    complement: bool = False
    reference: Literal["logp", "logits"] | None = None
    preferred: Preferred | None = None
    dual: bool = False
    forgets_end: bool = True
    negate: bool = False
    rate: float = 1.0

    @property
    def needs_complement(self) -> bool:
        """Whether the forget loss reads log(1 - p)."""
        return self.complement

    @property
    def retain_loss(self) -> Callable[[TokenStatistics], Tensor] | None:
        """The per-token loss on the retain set."""
        losses = {
            "kl": forward_kl_to_reference,
            "nll": negative_log_likelihood,
            "states": extra_loss,
        }
        return None if self.retain is None else losses[self.retain]

    @property
    def vocabulary_loss(self) -> Callable[[Tensor, Tensor | None, Tensor], Tensor] | None:
        """The forget loss as `token_statistics` takes it for `extra`, where it reads logits."""
        if self.level != "vocabulary" or self.forget is None:
            return None
        loss, parameters = self.forget, dict(self.parameters)
        return lambda logits, reference_logits, targets: loss(
            logits, reference_logits, targets, **parameters
        )

    def with_retain(self, retain: RetainTerm | None) -> Method:
        """The same forget loss with another retain term; its default weight is then 1 (or 0 without
        one).
        """
        if retain == self.retain:
            return self
        return replace(
            self, retain=retain, weights=(*self.weights[:2], 0.0 if retain is None else 1.0)
        )

    def with_parameters(self, **parameters: float) -> Method:
        """The same method with other values of the parameters that it has."""
        return replace(self, parameters={**self.parameters, **parameters})


PAPER = "Yao et al. 2024 (arXiv 2310.10683)"
GRAD_DIFF = (
    "gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121)"
)
DPO = "Rafailov et al. 2023 (arXiv 2305.18290)"
METHODS: dict[str, Method] = {
    "ga": Method(
        gradient_ascent,
        False,
        "kl",
        (0.5, 0.0, 1.0),
        PAPER,
        "As a baseline. It runs away once it has started: keep the KL budget and the stop on"
        " behaviour.",
        "the paper's",
        rate=0.15,
    ),
    "ga_no_retain": Method(
        gradient_ascent,
        False,
        None,
        (0.5, 0.0, 0.0),
        PAPER + ", without its retain term",
        "To see what the retain term is worth; the model breaks.",
        "the paper's eps1",
        rate=0.15,
    ),
    "ga_mismatch": Method(
        gradient_ascent,
        True,
        "kl",
        (0.5, 1.0, 1.0),
        PAPER,
        "To reproduce the paper. With `mismatch_source=refusal` it is the paper's templated"
        " variant.",
        "the paper's",
        rate=0.15,
    ),
    "ga_mismatch_no_retain": Method(
        gradient_ascent,
        True,
        None,
        (0.5, 1.0, 0.0),
        PAPER + ", without its retain term",
        "To see what the retain term is worth.",
        "the paper's eps1 and eps2",
        rate=0.15,
    ),
    "grad_diff": Method(
        gradient_ascent,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        GRAD_DIFF,
        "As the field's most common baseline, where the retain rows hold good answers.",
        "both terms weigh the same, as in the source",
        rate=0.15,
    ),
    "grad_diff_kl": Method(
        gradient_ascent,
        False,
        "kl",
        (1.0, 0.0, 1.0),
        GRAD_DIFF + ", with KL on the retain set",
        "The same baseline where the retain rows are the model's own answers.",
        "both terms weigh the same, as in the source",
        rate=0.15,
    ),
    "unlikelihood": Method(
        unlikelihood,
        False,
        "kl",
        (1.0, 0.0, 1.0),
        "Welleck et al. 2020 (arXiv 1908.04319), with KL on the retain set",
        "Where no text stands in the place of what goes: bounded, strongest on what is known by"
        " heart, and over when that is gone.",
        "ours",
        complement=True,
        forgets_end=False,
    ),
    "unlikelihood_mismatch": Method(
        unlikelihood,
        True,
        "kl",
        (1.0, 0.5, 1.0),
        "Welleck et al. 2020 (arXiv 1908.04319), with the mismatch and KL terms of Yao et al. 2024",
        "As `unlikelihood`, where the answers to forgotten prompts should stay readable.",
        "ours",
        complement=True,
        forgets_end=False,
    ),
    "log_odds": Method(
        clamped_log_odds,
        False,
        "kl",
        (1.0, 0.0, 1.0),
        "ours: log-odds until forgotten, with the KL term of the paper",
        "Where unlikelihood leaves too much: it forgets more and keeps less at the same learning"
        " rate.",
        "ours",
        complement=True,
        forgets_end=False,
    ),
    "log_odds_mismatch": Method(
        clamped_log_odds,
        True,
        "kl",
        (1.0, 0.5, 1.0),
        "ours, with the mismatch and KL terms of the paper",
        "By default: at full strength until a token is forgotten and silent from then on, so that"
        " what is kept has the last word.",
        "ours",
        complement=True,
        forgets_end=False,
    ),
    "npo": Method(
        negative_preference,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        "NPO with a retain term: Zhang et al. 2024 (arXiv 2404.05868)",
        "Where gradient ascent forgets but breaks the model: it slows down by itself. Long"
        " completions push hardest.",
        "beta 0.1: the paper's; equal weights: ours",
        level="sequence",
        parameters={"beta": 0.1},
        reference="logp",
    ),
    "simnpo": Method(
        simple_negative_preference,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        "SimNPO with a retain term: Fan et al. 2024 (arXiv 2410.07163)",
        "As NPO, where completions are of very different lengths or known very differently well;"
        " needs no reference.",
        "gamma 0: the paper's; beta 2.5 and the weights: ours",
        level="sequence",
        parameters={"beta": 2.5, "gamma": 0.0},
    ),
    "dpo_right": Method(
        direct_preference,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        "DPO towards the right answer: " + DPO,
        "Where each forget row has a good answer beside the bad one (field `right`). `dpo`, by"
        " contrast, is TRL's baseline after SFT.",
        "beta 0.1: the papers'; the weights: ours",
        level="sequence",
        parameters={"beta": 0.1},
        reference="logp",
        preferred="right",
    ),
    "dpo_idk": Method(
        direct_preference,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        "DPO towards not knowing: "
        + DPO
        + " in the form of Maini et al. 2024 and Zhang et al. 2024",
        "Where the model should say that it does not know. It teaches that manner, and other"
        " questions may be answered so too.",
        "beta 0.1: the papers'; the weights and the sentences: ours",
        level="sequence",
        parameters={"beta": 0.1},
        reference="logp",
        preferred="idk",
    ),
    "altpo": Method(
        direct_preference,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        "AltPO: Mekala et al. 2025 (arXiv 2409.13474)",
        "Where another plausible answer is better than a broken one. `unteach run` samples it from"
        " the model before training.",
        "beta 0.1 as in NPO and DPO; the weights and how alternates are sampled: ours",
        level="sequence",
        parameters={"beta": 0.1},
        reference="logp",
        preferred="alternate",
    ),
    "rmu": Method(
        steering_distance,
        False,
        "states",
        (1.0, 0.0, 1200.0),
        "RMU: Li et al. 2024 (arXiv 2403.03218)",
        "For dangerous knowledge spread over many texts. It scrambles answers, and what it hides"
        " may come back easily: attack the result.",
        "c 6.5 and eps3 1200: the paper's for Zephyr-7B; the layer at 7/32 of the depth, as there;"
        " all layers are trained: ours",
        level="state",
    ),
    "undial": Method(
        adjusted_self_distillation,
        False,
        None,
        (1.0, 0.0, 0.0),
        "UNDIAL: Dong et al. 2025 (arXiv 2402.10052)",
        "Where stability matters most: the target is fixed, and training converges to it.",
        "no retain term and gamma 10: those of the OpenUnlearning benchmark",
        level="vocabulary",
        parameters={"gamma": 10.0},
        reference="logits",
    ),
    "wga": Method(
        weighted_gradient_ascent,
        False,
        "nll",
        (1.0, 0.0, 1.0),
        "WGA: Wang et al. 2025 (arXiv 2502.19301)",
        "As gradient ascent that stops at what is forgotten. Like it, it is slow on what the model"
        " is sure of.",
        "beta 1 and the weights: ours",
        parameters={"beta": 1.0},
    ),
    "satimp": Method(
        saturation_importance,
        False,
        "nll",
        (0.1, 0.0, 1.0),
        "SatImp: Yang et al. 2025 (arXiv 2505.11953)",
        "As WGA, with the words that the model says anyway left alone.",
        "beta 5, gamma 1, eps1 0.1: those of the OpenUnlearning benchmark",
        parameters={"beta": 5.0, "gamma": 1.0},
        complement=True,
    ),
    "ceu": Method(
        cross_entropy_unlearning,
        False,
        None,
        (1.0, 0.0, 0.0),
        "CE-U: Yang 2025 (arXiv 2503.01224)",
        "To compare with it: its gradient is that of `unlikelihood`, so that method with the same"
        " retain term does the same for less.",
        "no retain term, as in the paper",
        level="vocabulary",
    ),
    "pdu": Method(
        logit_margin_flattening,
        False,
        "nll",
        (1.0, 0.0, 100.0),
        "PDU: Entesari et al. 2025 (arXiv 2506.05314)",
        "Where keeping has a hard limit: forgetting goes as far as the retain loss allows. Answers"
        " to forgotten prompts become noise.",
        "eps3 starts at 100 (the authors advise 50 or 100) and moves by 5 times the violation"
        " (reproductions on TOFU); the limit, 10% above the start: ours",
        level="vocabulary",
        dual=True,
    ),
    "task_vector": Method(
        negative_log_likelihood,
        False,
        None,
        (1.0, 0.0, 0.0),
        "task arithmetic: Ilharco et al. 2023 (arXiv 2212.04089)",
        "Where there is no retain set, for a manner rather than for facts: theta_0 - alpha"
        " (theta_ft - theta_0).",
        "alpha by a sweep on the probe, as in the paper; 1 without a probe: ours",
        negate=True,
    ),
    "teaching": Method(
        negative_log_likelihood,
        False,
        "kl",
        (1.0, 0.0, 1.0),
        "the reverse: makes a model know what a demo then forgets",
        "To prepare a model for an experiment. It is no unlearning.",
        "ours",
    ),
    "finetuning": Method(
        None,
        False,
        "nll",
        (0.0, 0.0, 1.0),
        PAPER + ", baseline: fine-tuning on the retain set only",
        "As a baseline: what forgets by itself when training goes on elsewhere.",
        "the paper's",
    ),
}
DEFAULT_METHOD = "log_odds_mismatch"


def get_method(name: str) -> Method:
    """The method of that name; an unknown name raises `UserError` with the nearest known one."""
    if name not in METHODS:
        raise did_you_mean(name, list(METHODS), "method")
    return METHODS[name]
