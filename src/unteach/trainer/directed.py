"""Directed updates: an adapter that reads only what sets the forget rows apart.

An update of all weights that changes what a model says about one name changes what it says about
every other one: rows that are trained on are held by the retain term, all else moves along. Here
each linear layer W becomes W + B A, where A is fixed before the first step and only B is trained.
The rows of A are the directions of the layer's input in which forget tokens have most energy for a
given energy of what must be kept (retain rows, and the forget prompts under other names): the
generalised eigenvectors of the two second-moment matrices,

    a_i = argmax (a^T F^T F a) / (a^T (K^T K + ridge I) a),   F, K: inputs (tokens, width)

as linear discriminant analysis has them, scaled to unit energy over the forget tokens. Input
covariances decide where an adapter acts in CorDA, too (Yang et al. 2024, arXiv 2406.05223), and
what an edit must leave alone in ROME (Meng et al. 2022, arXiv 2202.05262).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn

from unteach.config.unlearning import UnlearningConfig
from unteach.data.counterfactuals import Counterfactual
from unteach.data.packing import PADDING, Branch, Tree
from unteach.data.rows import evenly_spaced
from unteach.data.stream import Collator
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError
from unteach.models.adapters import adapter_config
from unteach.trainer.step import Batch, StepSpec, final_states

RIDGE = 0.05
"""Share of the mean energy of an input dimension that is added to every one of them."""
FORGET_TOKENS, KEPT_TOKENS, KEPT_PER_DIMENSION = 1024, 8192, 2
"""Most tokens of each kind that the directions are found from; of what must be kept more where two
for each dimension of the widest input are more.
"""
LEAST_RANK, MOST_RANK = 16, 64
"""Bounds of the default rank."""
TOKENS_PER_BATCH = 2048
MOMENT_BYTES = 2**31
"""Most memory of the second moments of some layers, which are found together."""


@dataclass(frozen=True)
class Segment:
    """A row of tokens, of which those from `start` to `end` count."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def forget_segment(row: EncodedRow, part: Counterfactual) -> Segment:
    """The tokens of a forget row in which its name or its own prompt is at work: from the last
    token in which its prompt differs from its contexts' on, up to the last token that is predicted.
    """
    whole = len(row.prompt_ids) + len(row.completion_ids) - 1
    starts = [
        len(row.prompt_ids) - 1 - _common_end(row.prompt_ids, context.prompt_ids)
        for context in part.contexts
    ]
    end = whole
    if part.fact is not None and any(part.fact):
        last = max(number for number, fact in enumerate(part.fact) if fact)
        end = min(whole, len(row.prompt_ids) + last)
    return Segment(row.prompt_ids, row.completion_ids, max(0, min(starts, default=0)), end)


def _common_end(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the ends of two sequences have in common."""
    shortest = min(len(first), len(second))
    for count in range(shortest):
        if first[-1 - count] != second[-1 - count]:
            return count
    return shortest


def kept_segments(retain: Sequence[EncodedRow], parts: Sequence[Counterfactual]) -> list[Segment]:
    """What must be kept: retain rows, and the forget rows under other names; all tokens but the
    first, whose states are the same in every text.
    """
    pairs = [(row.prompt_ids, row.completion_ids) for row in retain]
    for part in parts:
        pairs += [(context.prompt_ids, context.completion_ids) for context in part.contexts]
        pairs += part.near
    return [Segment(*pair, 1, len(pair[0]) + len(pair[1]) - 1) for pair in pairs]


def directions(forget: Tensor, kept: Tensor, rank: int) -> Tensor:
    """The directions in which forget tokens stand out, shape (rank, width), the strongest first.

    Args:
        forget (`Tensor` of shape (tokens, width)): inputs of a layer on forget tokens.
        kept (`Tensor` of shape (width, width)): mean of x x^T over the inputs on kept tokens.
        rank (`int`): at most the number of forget tokens and the width count; rows beyond are 0.
    """
    width = kept.shape[0]
    wide = torch.promote_types(forget.dtype, torch.float32)
    forget, kept = forget.to(wide), kept.to(wide)
    energy = kept.diagonal().mean().clamp_min(torch.finfo(wide).tiny)
    ridge = torch.eye(width, dtype=wide, device=kept.device) * RIDGE * energy
    solved = torch.cholesky_solve(forget.T, torch.linalg.cholesky(kept + ridge))
    gram = forget @ solved / len(forget)
    count = min(rank, len(gram), width)
    values, vectors = _largest((gram + gram.T) / 2, count)
    found = (solved @ vectors).T / len(forget) ** 0.5
    # a^T K a = values and a^T F^T F a / tokens = values^2: scaled to energy 1 on forget tokens
    found = found / values.clamp_min(torch.finfo(wide).tiny)[:, None]
    found = torch.where(values[:, None] > 1e-6 * values[0], found, 0.0)
    return torch.cat([found, found.new_zeros(rank - count, width)])


def _largest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric matrix and their vectors, the largest first; LAPACK's
    subset solver takes a fraction of the time that all of them do.
    """
    last = len(matrix) - 1
    values, vectors = scipy.linalg.eigh(
        matrix.cpu().numpy(), subset_by_index=(last - count + 1, last), check_finite=False
    )
    found = torch.from_numpy(values), torch.from_numpy(vectors)
    return found[0].flip(0).to(matrix.device), found[1].flip(1).to(matrix.device)


@torch.no_grad()
def set_directions(
    model: Any,
    rows: Mapping[str, Sequence[EncodedRow]],
    parts: Sequence[Counterfactual],
    spec: StepSpec,
    collator: Collator,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Sets the matrices A of an adapter whose B is zero: the same bits in every process, each of
    which reads all rows. Layers that do not read every token (experts, some state-space layers)
    keep A = 0 and so their weights.

    Args:
        model (`PeftModel`): with LoRA adapters named `default`.
        rows: the rows of the sets `forget` and `retain`.
        parts (`Sequence[Counterfactual]`): of the forget rows.
        spec (`StepSpec`): precision of the forward pass.
        collator (`Collator`): its `pad_id` fills rows.
        progress (`Callable`): gets the rows that are read and how many there are.
    """
    plain = replace(spec, packed=False, compiled=None)
    layers, device = adapted_layers(model), next(model.parameters()).device
    own = [forget_segment(*pair) for pair in zip(rows["forget"], parts, strict=True)]
    forget = _at_most(own, FORGET_TOKENS)
    widest = max((layer.in_features for layer in layers), default=0)
    most = max(KEPT_TOKENS, KEPT_PER_DIMENSION * widest)
    kept = _at_most(kept_segments(rows["retain"], parts), most)
    grouped = list(_groups(_by_input(model, layers, forget[:1], plain, collator)))
    done, of = 0, len(grouped) * (len(forget) + len(kept))
    for group in grouped:
        found: dict[Any, list[Tensor]] = {same[0]: [] for same in group}
        moments = {
            layer: torch.zeros(layer.in_features, layer.in_features, device=device)
            for layer in found
        }
        count = 0
        with _recorded(found) as inputs:
            for batch, used in _batches(forget, collator, device):
                final_states(model, batch, plain)
                for layer in found:
                    found[layer].append(inputs[layer][used])
                progress(done := done + len(used), of)
            for batch, used in _batches(kept, collator, device):
                final_states(model, batch, plain)
                count += int(used.sum())
                for layer in found:
                    states = inputs[layer][used].float()
                    moments[layer] += states.T @ states
                progress(done := done + len(used), of)
        for same in group:
            weights = [layer.lora_A["default"].weight for layer in same]
            moment = moments[same[0]] / max(1, count)
            fixed = directions(torch.cat(found[same[0]]), moment, max(map(len, weights)))
            for weight in weights:
                weight.copy_(fixed[: len(weight)])


def adapted_layers(model: Any) -> list[Any]:
    """The linear layers that have an adapter, in the model's order."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and module.lora_A]


def adapted(
    model: Any, config: UnlearningConfig, peft_config: Any, parts: Sequence[Counterfactual]
) -> Any:
    """The model with the adapter that the user wants or a directed update needs; as it is without
    either.
    """
    if peft_config is None and config.update == "directed":
        rank = config.update_rank or default_rank(parts)
        peft_config = adapter_config(model, rank, scale=1.0)
    if peft_config is None:
        return model
    from peft import get_peft_model

    with warnings.catch_warnings():  # PEFT uses a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = get_peft_model(model, peft_config)
    if config.update == "directed":
        freeze_directions(model)
    return model


def default_rank(parts: Sequence[Counterfactual]) -> int:
    """A direction for each forget row that is forgotten as a whole, within `LEAST_RANK` and
    `MOST_RANK`: such rows stand out in different directions, rows that differ in their names alone
    in few.
    """
    return max(LEAST_RANK, min(sum(part.whole for part in parts), MOST_RANK))


def freeze_directions(model: Any) -> None:
    """Leaves only the matrices B of the adapter to train."""
    for layer in adapted_layers(model):
        layer.lora_A["default"].weight.requires_grad_(False)


def _at_most(segments: Sequence[Segment], tokens: int) -> list[Segment]:
    """Whole segments at even distances, of about so many tokens together."""
    total = sum(map(len, segments))
    return evenly_spaced(segments, max(1, int(len(segments) * tokens / max(1, total))))


def _by_input(
    model: Any,
    layers: Sequence[Any],
    segments: Sequence[Segment],
    spec: StepSpec,
    collator: Collator,
) -> list[list[Any]]:
    """The layers that read every token, those together that read the same input, as queries, keys
    and values do. The others' matrices A are set to 0.

    Raises:
        UserError: where no layer reads every token.
    """
    batch, used = next(_batches(segments, collator, next(model.parameters()).device))
    same: dict[int, list[Any]] = {}
    with _recorded(layers) as inputs:
        final_states(model, batch, spec)
        for layer in layers:
            if layer not in inputs or inputs[layer].shape[:-1] != used.shape:
                layer.lora_A["default"].weight.zero_()
                continue
            same.setdefault(inputs[layer].data_ptr(), []).append(layer)
    if not same:
        raise UserError("no linear layer of this model reads every token; set update=all")
    return list(same.values())


def _groups(layers: Sequence[list[Any]]) -> Iterator[list[list[Any]]]:
    group: list[list[Any]] = []
    size = 0
    for same in layers:
        own = 4 * same[0].in_features ** 2
        if group and size + own > MOMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(same)
        size += own
    if group:
        yield group


@contextmanager
def _recorded(layers: Iterable[Any]) -> Iterator[dict[Any, Tensor]]:
    """The input of each layer in the latest forward pass."""
    found: dict[Any, Tensor] = {}

    def record(layer: nn.Module, arguments: Any) -> None:
        found[layer] = arguments[0].detach()

    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _batches(
    segments: Sequence[Segment], collator: Collator, device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """(a batch of the segments' rows, which of its positions count, shape (rows, length))."""
    order = sorted(range(len(segments)), key=lambda i: segments[i].end)
    longest = max(len(s.prompt_ids) + len(s.completion_ids) for s in segments)
    size = max(1, TOKENS_PER_BATCH // longest)
    for first in range(0, len(order), size):
        chosen = [segments[i] for i in order[first : first + size]]
        trees = [Tree(s.prompt_ids, (Branch("retain", s.completion_ids),)) for s in chosen]
        batch = collator.batch(trees, packed=False)
        used = batch["tree"] != PADDING
        place = torch.arange(used.shape[1])
        for number, segment in enumerate(chosen):
            used[number] &= (place >= segment.start) & (place < segment.end)
        yield {name: tensor.to(device) for name, tensor in batch.items()}, used.to(device)
