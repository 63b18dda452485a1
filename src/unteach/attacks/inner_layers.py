"""The logit lens: what inner layers would say, read through the final norm and the output head
(nostalgebraist 2020; as an attack: Patil, Hase, Bansal 2024, arXiv 2309.17410).

Along the true completion, a row counts if one layer has each token of its facts among its few
likeliest: an attacker who tries these candidates finds the fact although the output hides it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from unteach import models
from unteach.attacks.attack import Attack, LeftOut, Outcome, Trial
from unteach.data.counterfactuals import fact_tokens
from unteach.data.rows import Row
from unteach.data.tokenization import encode_row
from unteach.errors import UserError
from unteach.models.parts import final_norm, layer_list

CANDIDATES = 4
"""Likeliest tokens of a layer that are tried."""


@torch.no_grad()
def layers_with_facts(model: Any, tokenizer: Any, row: Row) -> list[bool] | None:
    """For each layer, whether it has every token of the row's facts (without facts: of its
    completion) among its `CANDIDATES` likeliest, given the true tokens before.

    `None` for a row whose prompt and completion merge, or whose completion holds none of its facts.
    """
    norm, head = final_norm(model), models.output_head(model)
    with contextlib.suppress(UserError):
        item = encode_row(row, tokenizer, None)
        wanted = fact_tokens(row, item, tokenizer) or (True,) * len(item.completion_ids)
        places = [place for place, fact in enumerate(wanted) if fact]
        if not places or norm is None:
            return None
        ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]], device=head.weight.device)
        out = models.decoder(model)(input_ids=ids, output_hidden_states=True, use_cache=False)
        before = [len(item.prompt_ids) + place - 1 for place in places]
        tokens = torch.tensor([item.completion_ids[place] for place in places]).to(ids.device)
        *inner, last = (hidden[0, before] for hidden in out.hidden_states[1:])
        states = torch.stack([*map(norm, inner), last])  # transformers has normed the last already
        pieces = states.flatten(0, 1).split(512)
        top = torch.cat([head.logits(piece).topk(CANDIDATES).indices for piece in pieces])
        right = (top.unflatten(0, states.shape[:2]) == tokens[:, None]).any(-1)  # (layers, tokens)
        return [bool(one) for one in right.all(-1)]
    return None


def _run(trial: Trial) -> Outcome:
    target, model = trial.target, trial.model()
    if final_norm(model) is None or layer_list(model) is None:
        raise LeftOut(f"{type(model).__name__} has no final norm or layers of a known name")
    rows: dict[int, float] = {}
    for index, row in enumerate(target.forget):
        found = layers_with_facts(model, target.tokenizer, row)
        if found is not None:
            rows[index] = float(any(found))
        trial.progress(index + 1, len(target.forget))
    if not rows:
        raise LeftOut("no forget row can be encoded with its completion")
    return trial.outcome(rows)


LOGIT_LENS = Attack(
    "inner_layers",
    "logit lens",
    "a layer has every token of the facts among its likeliest, along the true completion",
    _run,
    lambda target: {"candidates": CANDIDATES},
)
"""What any layer has among its likeliest tokens."""
