"""How much memory and arithmetic a run takes, computed from the model's configuration and the run's
options alone.

No weights are needed: the model is laid out on torch's meta device. The terms are those of a
decoder of the Llama kind (root-mean-square norms, gated feed-forward layers, attention that does
not keep its weights); for other kinds they are near.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unteach import models
from unteach.config.resolve import resolve
from unteach.config.unlearning import UnlearningConfig
from unteach.data.packing import assign_rows
from unteach.errors import UserError
from unteach.models.layers import layer_list
from unteach.models.precision import DTYPES, check_dtype

PROCESS_BYTES = {"cpu": 600 * 2**20, "gpu": 600 * 2**20}
"""What is there before any model: Python and its libraries resident, or a CUDA context with its
libraries' workspaces.
"""
SHARDINGS = ("none", "fsdp2")
CHECKED_ITEMS = 2
FOUR_BITS = 0.5 + 4 / 64 / 4 + 1 / 256
"""Bytes of a 4-bit weight with its scale: one 8-bit scale for 64 weights, and one float32 for 256
of those (double quantisation).
"""


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on.

    Args:
        parameters (`int`): all of them, a shared one once.
        trained (`int`): those that get a gradient.
        linear (`int`): those in the decoder's linear layers.
        embedding (`int`): vocabulary x hidden size.
        tied (`bool`): whether input and output embedding are one.
        hidden, intermediate, layers, heads, vocabulary (`int`)
        adapter (`bool`): whether what is trained is an adapter.
    """

    parameters: int
    trained: int
    linear: int
    embedding: int
    tied: bool
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    adapter: bool


@dataclass(frozen=True)
class RowShape:
    """Mean lengths in tokens, and numbers, of the rows.

    Args:
        prompt, completion (`int`): of a forget row.
        retain_prompt, retain_completion (`int`): of a retain row; its completions are the mismatch
            completions too.
        retain_rows (`int`): whose reference states are stored.
    """

    prompt: int = 20
    completion: int = 40
    retain_prompt: int = 20
    retain_completion: int = 13
    retain_rows: int = 64


@dataclass(frozen=True)
class Plan:
    """What a run takes on each device.

    Args:
        parts (`dict[str, int]`): bytes by what they hold; not all of it is there at once.
        peak (`int`): most bytes at once: as the backward pass makes gradients it lets go of
            activations.
        tokens (`int`): input tokens of a batch on a device, padding included.
        step_flops (`float`): floating-point operations of a step on a device.
        steps (`int`)
        disk (`int`): bytes of the stored reference states, which lie in a file.
    """

    parts: dict[str, int]
    peak: int
    tokens: int
    step_flops: float
    steps: int
    disk: int = 0

    def seconds(self, flops_per_second: float) -> float:
        """Time of all steps at that rate; without probes, evaluation and the exchange of gradients."""
        return self.steps * self.step_flops / flops_per_second


def model_shape(config: Any, *, lora_rank: int = 0) -> ModelShape:
    """The shape of a model of that configuration, with an adapter of that rank on all linear layers
    if it is over 0.

    Args:
        config (`PretrainedConfig`)
        lora_rank (`int`)
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    head, body = models.output_layer(model).weight, model.get_input_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = layer_list(model)
    if layers is None:
        raise UserError(
            f"{type(model).__name__} has no list of layers that is known; unteach plan cannot lay"
            " it out"
        )
    inner = [
        module
        for layer in layers
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    text = config.get_text_config()
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    wide = max(
        (max(module.in_features, module.out_features) for module in inner), default=4 * hidden
    )
    trained = total
    if lora_rank:
        trained = sum(lora_rank * (module.in_features + module.out_features) for module in inner)
        total += trained
    return ModelShape(
        total,
        trained,
        sum(module.weight.numel() for module in inner),
        head.numel(),
        head is body,
        hidden,
        int(getattr(text, "intermediate_size", wide) or wide),
        len(layers),
        heads,
        head.shape[0],
        lora_rank > 0,
    )


def completion_tokens(config: UnlearningConfig, rows: RowShape) -> tuple[float, float, float]:
    """(input tokens, predicted tokens, those of them with a reference) of one item of the stream."""
    method, count = config.objective, config.mismatch_completions
    retain = config.retain_per_forget if method.forget else 1.0
    inputs = predicted = referenced = 0.0
    if method.forget:
        inputs, predicted = rows.prompt + rows.completion - 1.0, float(rows.completion)
    if "preferred" in method.roles:
        inputs, predicted = inputs + rows.completion - 1, predicted + rows.completion
    if method.mismatch:
        inputs, predicted = (
            inputs + count * (rows.retain_completion - 1),
            predicted + count * rows.retain_completion,
        )
    if method.retain:
        inputs += retain * (rows.retain_prompt + rows.retain_completion - 1)
        predicted += retain * rows.retain_completion
        referenced = retain * rows.retain_completion if method.retain == "kl" else 0.0
    return inputs, predicted, referenced


def padded_tokens(config: UnlearningConfig, rows: RowShape) -> int:
    """Tokens of a batch with its padding: the rows of the packed batch times their width, at the
    mean lengths.
    """
    count, method = config.per_device_train_batch_size, config.objective
    retained = method.retain is not None
    retain = rows.retain_prompt + rows.retain_completion - 1
    inputs, _, _ = completion_tokens(config, rows)
    share = config.retain_per_forget if method.forget else 1.0
    forget = round(inputs - (share * retain if retained else 0))
    lengths = [forget] * (count if method.forget else 0) + [retain] * (
        round(count * share) if retained else 0
    )
    made = assign_rows(lengths or [1], config.row_tokens)
    return len(made) * max(sum(lengths[index] for index in row) for row in made)


def layer_activation_bytes(shape: ModelShape, *, autocast: bool, device: str = "cpu") -> int:
    """Bytes that one layer keeps of a token for its backward pass.

    Of hidden size: the input of either norm, its normalised value (for the gradient of the norm's
    weight), its output; query, key and value after rotation and repetition; the attention's output,
    twice as its heads are put side by side. Of intermediate size: gate, its activation, the other
    half, their product. With an adapter the norms have no gradient. Under autocast the products are
    halved. An adapter's result is added to a projection's; on a CPU the place of one of them is not
    used again within the pass (measured, see docs/scaling.md).
    """
    norms = 2 * 2 if shape.adapter else 2 * 3
    products = 5
    low = 2 if autocast else 4
    extra = 2 * 2 * shape.hidden if autocast else 0  # a norm's output, and its cast
    if shape.adapter and device == "cpu":
        extra += low * (6 * shape.hidden + 2 * shape.intermediate)
    return (
        (4 * norms + low * products) * shape.hidden
        + low * 4 * shape.intermediate
        + extra
        + 4 * shape.heads
    )


def plan_memory(
    shape: ModelShape,
    config: UnlearningConfig,
    rows: RowShape,
    *,
    device: str = "cpu",
    processes: int = 1,
    sharding: str = "none",
    quantized: bool = False,
    dtype: str = "float32",
    forget_rows: int = 64,
) -> Plan:
    """What a run takes on each device.

    Args:
        shape (`ModelShape`)
        config (`UnlearningConfig`): method, rows a step, precision, checkpointing, budget of the
            logits.
        rows (`RowShape`)
        device (`"cpu"` or `"gpu"`)
        processes (`int`): devices that the run is spread over.
        sharding (`"none"` or `"fsdp2"`): whether they share weights, gradients and optimiser.
        quantized (`bool`): the linear layers' frozen weights in 4 bits.
        dtype (`"float32"` or `"bfloat16"`): what all other frozen weights are held in.
        forget_rows (`int`): rows that an epoch counts, where `max_steps` is not given.

    Raises:
        UserError: for an unknown sharding or device, numbers under 1, and 4 bits without an
            adapter.
    """
    if sharding not in SHARDINGS or device not in PROCESS_BYTES:
        raise UserError(
            f"sharding is {sharding!r} on {device!r}; it must be one of {', '.join(SHARDINGS)} on"
            " cpu or gpu"
        )
    if quantized and not shape.adapter:
        raise UserError("4-bit weights cannot be trained themselves: plan them with --lora")
    check_dtype(dtype, lora=shape.adapter, quantize="4bit" if quantized else None)
    if min(processes, forget_rows, *vars(rows).values()) < 1:
        raise UserError("numbers of rows, tokens and processes must be at least 1")
    autocast, checkpointed = bool(config.bf16 or config.fp16), checkpoints_activations(config)
    _, predicted, referenced = (
        config.per_device_train_batch_size * part for part in completion_tokens(config, rows)
    )
    inputs = padded_tokens(config, rows)
    shares = 1 if sharding == "none" else processes
    held = DTYPES[dtype].itemsize
    embedding = held * shape.embedding
    layer = held * shape.linear // shape.layers
    frozen = shape.linear if quantized else 0
    trained = shape.trained if shape.adapter else 0
    weights = held * (shape.parameters - trained - frozen) + 4 * trained + round(FOUR_BITS * frozen)
    tail = embedding if shape.tied else 2 * embedding
    gathered = 0 if shares == 1 else tail + 2 * layer
    per_token = layer_activation_bytes(shape, autocast=autocast, device=device)
    activations = inputs * shape.layers * per_token + inputs * 4 * 4 * shape.hidden
    if checkpointed:
        activations = inputs * (shape.layers * 4 * shape.hidden + per_token)
    if (
        autocast and not quantized and held == 4
    ):  # weights cast to 16 bits: of all layers, or of one where each is cast anew
        one = shares > 1 or (checkpointed and shape.adapter)
        activations += 2 * shape.linear // (shape.layers if one else 1)
    logits = min((predicted + referenced) * shape.vocabulary * 4, config.logits_budget_mb * 2**20)
    states, disk = 0.0, 0
    if config.reference == "stored" and config.objective.retain == "kl":
        stored = rows.retain_rows * rows.retain_completion * shape.hidden
        disk = round(stored * (2 if config.reference_dtype == "bfloat16" else 4))
        states = (
            0 if shape.adapter else embedding
        )  # a step reads its rows from the file; the reference's own head is kept
    if config.reference == "live":
        states = 4.0 * shape.parameters
    buckets = 4 * shape.trained if processes > 1 and shares == 1 else 0
    parts = {
        "process": PROCESS_BYTES[device],
        "parameters": weights // shares + gathered,
        "gradients": 4 * shape.trained // shares + buckets,
        "optimiser": 8 * shape.trained // shares,
        "activations": round(activations),
        "logits": round(logits),
        "reference states": round(states),
    }
    always = parts["process"] + parts["parameters"] + parts["reference states"]
    head_gradient = 0 if shape.adapter else embedding
    forward = parts["optimiser"] + parts["activations"] + parts["logits"] + head_gradient + buckets
    backward = parts["optimiser"] + parts["gradients"] + (0 if shape.adapter else embedding)
    peak = max(
        always + max(forward, backward),
        PROCESS_BYTES[device] + weights + check_bytes(shape, config, rows),
    )
    steps = config.planned_steps(
        forget_rows if config.objective.forget else rows.retain_rows, processes
    )
    flops = config.gradient_accumulation_steps * step_flops(
        shape, inputs, predicted, referenced, checkpointed=checkpointed
    )
    return Plan(parts, peak, inputs, flops, steps, disk)


def checkpoints_activations(config: UnlearningConfig) -> bool:
    """Whether activations are computed again in the backward pass instead of being kept."""
    return bool(
        getattr(config, "activation_checkpointing", False)
        or getattr(config, "gradient_checkpointing", False)
    )


def check_bytes(shape: ModelShape, config: UnlearningConfig, rows: RowShape) -> int:
    """Bytes of the check on the first rows, before there is a gradient: the logits of every
    position of plain rows, and two more of those that predict.
    """
    _, predicted, _ = completion_tokens(config, rows)
    longest = 1.2 * max(
        rows.prompt + max(rows.completion, rows.retain_completion),
        rows.retain_prompt + rows.retain_completion,
    )
    branches = (
        1
        + (config.mismatch_completions if config.objective.mismatch else 0)
        + config.retain_per_forget
    )
    return round(CHECKED_ITEMS * shape.vocabulary * 4 * (branches * longest + 2 * predicted))


def step_flops(
    shape: ModelShape,
    inputs: float,
    predicted: float,
    referenced: float,
    *,
    checkpointed: bool = False,
) -> float:
    """Floating-point operations of one forward and backward pass.

    A weight costs two for a token forward, two for the gradient of its input, and two for its own
    where it is trained; attention is small beside them at the lengths of rows here and left out.
    The reference's head costs two more for its tokens.

    Args:
        shape (`ModelShape`)
        inputs, predicted, referenced (`float`): tokens that enter, that are predicted, and that are
            compared with the reference.
        checkpointed (`bool`): the forward pass is done twice.
    """
    passes = (4 if shape.adapter else 6) + (2 if checkpointed else 0)
    adapter = 6 * shape.trained * inputs if shape.adapter else 0
    head = (
        4 if shape.adapter else 6
    ) * shape.embedding * predicted + 2 * shape.embedding * referenced
    return float(passes * shape.linear * inputs + adapter + head)


def plan_run(
    model: str,
    settings: Mapping[str, Any],
    *,
    lora_rank: int = 0,
    forget_rows: int = 64,
    retain_rows: int = 64,
    prompt_tokens: int = 20,
    completion_tokens: int = 40,
    retain_prompt_tokens: int = 20,
    retain_completion_tokens: int = 13,
    rates: Sequence[float] = (0.1, 100.0),
    trust_remote_code: bool = False,
    **where: Any,
) -> dict[str, Any]:
    """The plan of a run of `model` as plain data: bytes by part, peak, operations, and seconds at
    some rates.

    Args:
        model (`str`): folder, hub id or packaged name, of which the configuration alone is read.
        settings: fields of `UnlearningConfig`.
        lora_rank (`int`): rank of the adapter; 0: all weights are trained.
        forget_rows, retain_rows, prompt_tokens, completion_tokens, retain_prompt_tokens,
            retain_completion_tokens (`int`): see `RowShape`.
        rates: 10^12 floating-point operations a second.
        trust_remote_code (`bool`): run code that comes with the model.
        where: `device`, `processes`, `sharding`, `quantized` and `dtype` of `plan_memory`.

    Raises:
        UserError: if the model has no configuration that can be read, or for options that do not go
            together.
    """
    if lora_rank < 0 or min(rates) <= 0:
        raise UserError(
            f"lora_rank is {lora_rank} and the rates are {list(rates)}; they must be positive"
        )
    resolved = resolve({"use_cpu": True, **settings, "lora": lora_rank > 0})
    resolved.unlearning_config("unteach-output")  # raises for settings that exclude each other
    shape = model_shape(
        models.load_config(model, trust_remote_code=trust_remote_code), lora_rank=lora_rank
    )
    config = resolved.with_width(shape.hidden).unlearning_config("unteach-output")
    rows = RowShape(
        prompt_tokens,
        completion_tokens,
        retain_prompt_tokens,
        retain_completion_tokens,
        retain_rows,
    )
    plan = plan_memory(shape, config, rows, forget_rows=forget_rows, **where)
    return {
        "model": model,
        "processes": where.get("processes", 1),
        "parameters": shape.parameters,
        "trained_parameters": shape.trained,
        "bytes": plan.parts,
        "peak_bytes": plan.peak,
        "disk_bytes": plan.disk,
        "tokens": plan.tokens,
        "step_flops": plan.step_flops,
        "steps": plan.steps,
        "seconds": {f"{rate:g}": plan.seconds(rate * 1e12) for rate in rates},
    }
