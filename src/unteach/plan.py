"""How much memory and arithmetic a run takes, from the model's configuration and the run's options.

No weights are needed: the model is laid out on torch's meta device. The terms are those of a
decoder of the Llama kind (root-mean-square norms, gated feed-forward layers, attention that does
not keep its weights); for other kinds they are close. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from unteach.config.run import option
from unteach.config.values import check_ranges, check_types
from unteach.errors import UserError

if TYPE_CHECKING:
    from unteach.config.unlearning import UnlearningConfig

PROCESS_BYTES = 600 * 2**20
"""A process before any model: Python and its libraries resident, or a CUDA context with its
libraries' workspaces."""
CHECKED_ITEMS = 2
FOUR_BITS = 0.5 + 4 / 64 / 4 + 1 / 256
"""Bytes of a 4-bit weight with its scales: one of 8 bits for 64 weights, and one float32 for 256 of
those (double quantisation)."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class PlanOptions:
    """Where a run is planned, and for which rows; numbers of tokens are means.

    Raises:
        UserError: for an unknown device or sharding, and numbers under 1.
    """

    device: Literal["cpu", "gpu"] = option("cpu", "device that the run uses")
    processes: int = option(1, "devices that the run is spread over", minimum=1)
    sharding: Literal["none", "fsdp2"] = option(
        "none", "fsdp2: processes share weights, gradients and optimiser"
    )
    forget_rows: int = option(64, "forget rows, which an epoch counts", minimum=1)
    retain_rows: int = option(64, "retain rows, whose reference states are stored", minimum=1)
    prompt_tokens: int = option(20, "tokens of a forget row's prompt", minimum=1)
    completion_tokens: int = option(40, "tokens of a forget row's completion", minimum=1)
    retain_prompt_tokens: int = option(20, "tokens of a retain row's prompt", minimum=1)
    retain_completion_tokens: int = option(
        13, "tokens of a retain row's completion, and of a mismatch completion", minimum=1
    )
    tflops: float | None = option(
        None, "10^12 operations a second; default: 0.1 (two CPU cores) and 100 (a GPU)"
    )

    def __post_init__(self) -> None:
        check_types(asdict(self), type(self))
        check_ranges(asdict(self), type(self))
        if self.tflops is not None and not self.tflops > 0:
            raise UserError(f"option 'tflops' is {self.tflops}, it must be positive")


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on.

    Args:
        parameters (`int`): all parameters, tied ones once.
        trained (`int`): those with a gradient.
        linear (`int`): those in the decoder's linear layers.
        embedding (`int`): vocabulary x hidden size.
        tied (`bool`): whether input and output embeddings are tied.
        adapter (`bool`): whether an adapter is trained.
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
class Plan:
    """What a run takes on each device.

    Args:
        parts (`dict[str, int]`): bytes by what they hold; not all of them exist at once.
        peak (`int`): most bytes at once; the backward pass frees activations while it makes
            gradients.
        tokens (`int`): input tokens of a batch, padding included.
        step_flops (`float`): floating-point operations of a step.
        disk (`int`): bytes of the stored reference states, which are in a file.
    """

    parts: dict[str, int]
    peak: int
    tokens: int
    step_flops: float
    steps: int
    disk: int = 0

    def seconds(self, flops_per_second: float) -> float:
        """Time of all steps, without probes, evaluation and the exchange of gradients."""
        return self.steps * self.step_flops / flops_per_second


def model_shape(config: Any, *, lora_rank: int = 0) -> ModelShape:
    """The shape of a model of that `PretrainedConfig`, with an adapter of that rank on all linear
    layers if it is over 0.
    """
    import torch

    from unteach import models
    from unteach.models.loading import auto_class
    from unteach.models.parts import layer_list

    with torch.device("meta"):
        model: Any = auto_class(config).from_config(config)
    model.tie_weights()
    head, body = models.output_layer(model).weight, model.get_input_embeddings().weight
    layers = layer_list(model)
    if layers is None:
        raise UserError(
            f"{type(model).__name__} has no list of layers that is known; unteach plan cannot lay"
            " it out"
        )
    modules = [module for layer in layers for module in layer.modules()]
    sizes = [
        (module.in_features, module.out_features)
        for module in modules
        if isinstance(module, torch.nn.Linear)
    ]
    text = config.get_text_config()
    hidden = int(text.hidden_size)
    widest = max(map(max, sizes), default=4 * hidden)
    total = sum(parameter.numel() for parameter in model.parameters())
    adapter = lora_rank * sum(map(sum, sizes))
    return ModelShape(
        parameters=total + adapter,
        trained=adapter or total,
        linear=sum(inputs * outputs for inputs, outputs in sizes),
        embedding=head.numel(),
        tied=head is body,
        hidden=hidden,
        intermediate=int(getattr(text, "intermediate_size", widest) or widest),
        layers=len(layers),
        heads=int(text.num_attention_heads),
        vocabulary=head.shape[0],
        adapter=lora_rank > 0,
    )


def completion_tokens(config: UnlearningConfig, rows: PlanOptions) -> tuple[float, float, float]:
    """(input tokens, predicted tokens, predicted with a reference) of one item."""
    method, count = config.objective, config.mismatch_completions
    completion, retained = rows.completion_tokens, rows.retain_completion_tokens
    retain = config.retain_per_forget if method.forget else 1.0
    inputs = predicted = referenced = 0.0
    if method.forget:
        inputs, predicted = rows.prompt_tokens + completion - 1.0, float(completion)
    if "preferred" in method.roles:
        inputs, predicted = inputs + completion - 1, predicted + completion
    if method.mismatch:
        inputs, predicted = inputs + count * (retained - 1), predicted + count * retained
    if method.retain:
        inputs += retain * (rows.retain_prompt_tokens + retained - 1)
        predicted += retain * retained
        referenced = retain * retained if method.retain == "kl" else 0.0
    return inputs, predicted, referenced


def padded_tokens(config: UnlearningConfig, rows: PlanOptions) -> int:
    """Tokens of a batch with its padding: packed rows times their width, at the mean lengths."""
    from unteach.data.packing import assign_rows

    count, method = config.per_device_train_batch_size, config.objective
    retain = rows.retain_prompt_tokens + rows.retain_completion_tokens - 1
    share = config.retain_per_forget if method.forget else 1.0
    inputs, _, _ = completion_tokens(config, rows)
    forget = round(inputs - (share * retain if method.retain else 0))
    lengths = [forget] * (count if method.forget else 0)
    lengths += [retain] * (round(count * share) if method.retain else 0)
    packed = assign_rows(lengths or [1], config.row_tokens)
    return len(packed) * max(sum(lengths[index] for index in row) for row in packed)


def layer_activation_bytes(shape: ModelShape, *, autocast: bool, device: str = "cpu") -> int:
    """Bytes that one layer keeps of a token for its backward pass.

    Of hidden size: the input of either norm, its normalised value (for the gradient of the norm's
    weight), its output; query, key and value after rotation and repetition; the attention's output,
    twice as its heads are concatenated. Of intermediate size: gate, its activation, the other half,
    their product. With an adapter the norms have no gradient. Under autocast the products are
    halved. An adapter's result is added to a projection's; on a CPU the memory of one of them is
    not reused within the pass (measured, see docs/how-to/scaling.md).
    """
    norms = 2 * 2 if shape.adapter else 2 * 3
    products = 5
    low = 2 if autocast else 4
    extra = 2 * 2 * shape.hidden if autocast else 0  # a norm's output, and its cast
    if shape.adapter and device == "cpu":
        extra += low * (6 * shape.hidden + 2 * shape.intermediate)
    of_hidden = (4 * norms + low * products) * shape.hidden
    return of_hidden + low * 4 * shape.intermediate + extra + 4 * shape.heads


def plan_memory(
    shape: ModelShape,
    config: UnlearningConfig,
    options: PlanOptions,
    *,
    quantize: str | None = None,
    dtype: str = "float32",
) -> Plan:
    """What a run takes on each device.

    Args:
        config (`UnlearningConfig`): method, rows a step, precision, checkpointing, logits budget.
        quantize, dtype: of `RunConfig`.

    Raises:
        UserError: for 4 bits or a frozen precision without an adapter.
    """
    from unteach.models.precision import check_dtype

    if quantize and not shape.adapter:
        raise UserError("4-bit weights cannot be trained themselves: plan them with --lora")
    check_dtype(dtype, lora=shape.adapter, quantize=quantize)
    processes, objective = options.processes, config.objective
    autocast, checkpointed = bool(config.bf16 or config.fp16), checkpoints_activations(config)
    batch = config.per_device_train_batch_size
    _, predicted, referenced = (batch * part for part in completion_tokens(config, options))
    inputs = padded_tokens(config, options)
    shares = 1 if options.sharding == "none" else processes
    held = BYTES[dtype]
    embedding, layer = held * shape.embedding, held * shape.linear // shape.layers
    frozen = shape.linear if quantize else 0
    adapter = shape.trained if shape.adapter else 0
    weights = held * (shape.parameters - adapter - frozen) + 4 * adapter + round(FOUR_BITS * frozen)
    tail = embedding if shape.tied else 2 * embedding
    gathered = 0 if shares == 1 else tail + 2 * layer
    per_token = layer_activation_bytes(shape, autocast=autocast, device=options.device)
    activations = inputs * shape.layers * per_token + inputs * 4 * 4 * shape.hidden
    if checkpointed:
        activations = inputs * (shape.layers * 4 * shape.hidden + per_token)
    if autocast and not quantize and held == 4:
        # weights cast to 16 bits: of all layers, or of one where each is cast again
        one = shares > 1 or (checkpointed and shape.adapter)
        activations += 2 * shape.linear // (shape.layers if one else 1)
    budget = config.logits_budget_mb * 2**20
    logits = min((predicted + referenced) * shape.vocabulary * 4, budget)
    states, disk = 0, 0
    if config.reference == "stored" and objective.retain == "kl":
        stored = options.retain_rows * options.retain_completion_tokens * shape.hidden
        disk = round(stored * BYTES[config.reference_dtype])
        # a step reads its rows from the file; only the reference's own head is in memory
        states = 0 if shape.adapter else embedding
    if config.reference == "live":
        states = 4 * shape.parameters
    buckets = 4 * shape.trained if processes > 1 and shares == 1 else 0
    parts = {
        "process": PROCESS_BYTES,
        "parameters": weights // shares + gathered,
        "gradients": 4 * shape.trained // shares + buckets,
        "optimiser": 8 * shape.trained // shares,
        "activations": round(activations),
        "logits": round(logits),
        "reference states": states,
    }
    always = PROCESS_BYTES + parts["parameters"] + states
    head_gradient = 0 if shape.adapter else embedding
    forward = parts["activations"] + parts["logits"] + buckets
    moments = parts["optimiser"] + head_gradient
    check = PROCESS_BYTES + weights + check_bytes(shape, config, options)
    peak = max(always + moments + max(forward, parts["gradients"]), check)
    rows = options.forget_rows if objective.forget else options.retain_rows
    flops = step_flops(shape, inputs, predicted, referenced, checkpointed=checkpointed)
    steps = config.planned_steps(rows, processes)
    return Plan(parts, peak, inputs, config.gradient_accumulation_steps * flops, steps, disk)


def checkpoints_activations(config: UnlearningConfig) -> bool:
    """Whether activations are computed again in the backward pass instead of being kept."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(getattr(config, name, False) for name in names)


def check_bytes(shape: ModelShape, config: UnlearningConfig, rows: PlanOptions) -> int:
    """Bytes of the check on the first rows, before there is a gradient: the logits of every
    position of plain rows, and two more of those that predict.
    """
    _, predicted, _ = completion_tokens(config, rows)
    completion = max(rows.completion_tokens, rows.retain_completion_tokens)
    retain = rows.retain_prompt_tokens + rows.retain_completion_tokens
    longest = 1.2 * max(rows.prompt_tokens + completion, retain)
    mismatch = config.mismatch_completions if config.objective.mismatch else 0
    branches = 1 + mismatch + config.retain_per_forget
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
        inputs, predicted, referenced (`float`): tokens that enter, that are predicted, and that are
            compared with the reference.
        checkpointed (`bool`): whether the forward pass is computed twice.
    """
    once = 4 if shape.adapter else 6
    layers = (once + (2 if checkpointed else 0)) * shape.linear * inputs
    adapter = 6 * shape.trained * inputs if shape.adapter else 0
    head = once * shape.embedding * predicted + 2 * shape.embedding * referenced
    return float(layers + adapter + head)


def plan_run(model: str, settings: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The plan of a run as plain data: bytes by part, peak, operations, and seconds at some rates.

    Args:
        model (`str`): folder, hub id or packaged name, of which the configuration alone is read.
        settings: options of the run, flat, as `resolve()` takes them.
        options: fields of `PlanOptions`.

    Raises:
        UserError: if the model has no configuration that can be read, or for options that do not go
            together.
    """
    from unteach import models
    from unteach.config.resolve import resolve

    where = PlanOptions(**options)
    resolved = resolve({"use_cpu": True, "model": model, **settings})
    run = resolved.run
    resolved.unlearning_config("unteach-output")  # raises for settings that exclude each other
    pretrained = models.load_config(model, trust_remote_code=run.trust_remote_code)
    shape = model_shape(pretrained, lora_rank=run.lora_rank if run.lora else 0)
    config = resolved.with_width(shape.hidden).unlearning_config("unteach-output")
    plan = plan_memory(shape, config, where, quantize=run.quantize, dtype=run.dtype)
    rates = [where.tflops] if where.tflops else [0.1, 100.0]
    return {
        "model": model,
        "processes": where.processes,
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
