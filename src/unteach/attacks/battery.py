"""The table of attacks: an attack is a file of its family, and a line here."""

from __future__ import annotations

from unteach.attacks import prompts
from unteach.attacks.attack import Attack, prompt_attack
from unteach.attacks.decoding import CONTRAST, LOGIT_LENS, sampling
from unteach.attacks.likelihood import DISTANCE, EXPOSURE, TRACES
from unteach.attacks.prompt_search import PROMPT_SEARCH, SOFT_PROMPT
from unteach.attacks.prompts import HOPS, PUSH_BACK, talk
from unteach.attacks.relearning import relearning
from unteach.attacks.weights import merging, pruning, quantization
from unteach.errors import did_you_mean

PLAIN = prompt_attack(
    "no attack", "the forget prompts themselves, greedy answers", prompts.plain, family="none"
)
"""Greedy answers to the forget prompts, which all attacks are compared with."""
ATTACKS: dict[str, Attack] = {
    "paraphrase": prompt_attack("paraphrase", "rewordings of the prompt", prompts.paraphrase),
    "prefix": prompt_attack(
        "prefix",
        "a quarter of the expected completion is given, the continuation is scored",
        prompts.prefix,
    ),
    "role_play": prompt_attack(
        "role play", "the model is told to play a role that gives the answer", prompts.role_play
    ),
    "few_shot": prompt_attack(
        "few-shot",
        "other forget rows with their completions precede the prompt",
        prompts.few_shot,
    ),
    "system_prompt": prompt_attack(
        "system prompt",
        "no system prompt, others, and no chat template",
        prompts.system_prompt,
    ),
    "spelling": prompt_attack(
        "spelling", "swapped letters, capitals, look-alike letters", prompts.spelling
    ),
    "translation": prompt_attack(
        "translation", "words of the prompt from lists of other languages", prompts.translation
    ),
    "multi_turn": talk(
        "multi-turn", "asked, told that the answer is wrong, and asked again", PUSH_BACK
    ),
    "step_by_step": talk("step by step", "asked in three hops that build on the answers", HOPS),
    "prompt_search": PROMPT_SEARCH,
    "sampling": sampling(nucleus=False),
    "sampling_top_p": sampling(nucleus=True, level="full"),
    "contrast": CONTRAST,
    "logit_lens": LOGIT_LENS,
    "soft_prompt": SOFT_PROMPT,
    "traces": TRACES,
    "exposure": EXPOSURE,
    "distance": DISTANCE,
    "quantization_8bit": quantization(8),
    "quantization_4bit": quantization(4),
    "pruning_10": pruning(0.1),
    "pruning_30": pruning(0.3),
    "merging_25": merging(0.25),
    "merging_50": merging(0.5, level="full"),
    "relearning_forget": relearning("forget"),
    "relearning_related": relearning("related"),
    "relearning_unrelated": relearning("unrelated"),
    "relearning_public": relearning("public", level="full"),
    "relearning_forget_slow": relearning("forget", rate=0.2, level="full"),
    "relearning_related_slow": relearning("related", rate=0.2, level="full"),
    "relearning_forget_fast": relearning("forget", rate=4.0, level="full"),
    "relearning_related_fast": relearning("related", rate=4.0, level="full"),
    "relearning_forget_adapter": relearning("forget", adapter=True, level="full"),
    "relearning_related_adapter": relearning("related", adapter=True, level="full"),
    "relearning_unrelated_adapter": relearning("unrelated", adapter=True, level="full"),
    "relearning_public_adapter": relearning("public", adapter=True, level="full"),
}
"""All attacks by name, in the order in which they run: those that change the weights last, so that
models for reading are read once."""


def chosen_attacks(only: tuple[str, ...], level: str) -> dict[str, Attack]:
    """The attacks of a level, or those named: by name, of any level, or by family, of this one.

    Raises:
        UserError: for a name that is neither.
    """
    families = {entry.family for entry in ATTACKS.values()}
    for name in only:
        if name not in ATTACKS and name not in families:
            raise did_you_mean(name, [*ATTACKS, *sorted(families - set(ATTACKS))], "attack")
    of_level = {n: entry for n, entry in ATTACKS.items() if level in ("full", entry.level)}
    if not only:
        return of_level
    return {
        name: entry
        for name, entry in ATTACKS.items()
        if name in only or (name in of_level and entry.family in only)
    }
