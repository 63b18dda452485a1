"""The kernels of a training step, where the libraries' own choice is not the fastest; modules whose
forward is replaced for a while.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from unteach.errors import UserError

LONGEST_WRITTEN_OUT = 512
"""Longest row whose attention is written out: its scores are kept for the backward pass, heads x
length^2 of them.
"""


@contextlib.contextmanager
def with_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """`module` with that `forward` inside the block (`None`: its class's); afterwards with the one
    it had, even where another was set inside: mixed precision sets one with autocast and leaves it.
    """
    before = vars(module).get("forward")
    set_forward(module, forward)
    try:
        yield
    finally:
        set_forward(module, before)


def set_forward(module: nn.Module, forward: Any) -> None:
    """Sets that `forward` on the instance; `None` removes it, so that its class's applies."""
    if forward is None:
        vars(module).pop("forward", None)
    else:
        module.forward = forward


def _recomputes(module: nn.Module) -> bool:
    """Whether a module runs again in the backward pass; read without `getattr`, which at each miss
    searches parameters and children.
    """
    name = "gradient_checkpointing"
    return bool(vars(module).get(name, getattr(type(module), name, False)))


@contextlib.contextmanager
def steady_attention() -> Iterator[None]:
    """Attention on a GPU inside the block by torch's own kernels, not by cuDNN's.

    cuDNN, which torch prefers on some GPUs, plans each new shape: about a second for a forward pass
    and one for its backward pass on an H100 (docs/explanation/performance.md), and the shape of
    rows of text changes in nearly every batch.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextlib.contextmanager
def uncast_inputs(adapters: Sequence[Any]) -> Iterator[None]:
    """These adapter layers take their input as it is inside the block: PEFT's
    `disable_input_dtype_casting`, for layers that are found already.
    """
    before = [adapter.cast_input_dtype_enabled for adapter in adapters]
    for adapter in adapters:
        adapter.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.cast_input_dtype_enabled = enabled


def written_out_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None = None
) -> Tensor:
    """softmax(scale query key^T + mask) value: scores and softmax in float32, the last product in
    the precision of `value`.

    As near to the exact values as torch's flash kernel (relative errors of 2 in 1,000 in bfloat16,
    gradients included), and cheaper on a CPU than torch's own written-out path, which makes both
    products in float32 and looks for rows that may see nothing.

    Args:
        query, key, value (`Tensor` of shape (rows, heads, length, width)): as many heads in each.
        mask (`Tensor`, broadcast to (rows, heads, length, length)): added to the scores; every
            position may see some.
        scale (`float`, *optional*): default: 1 / sqrt(width).
    """
    with torch.autocast(query.device.type, enabled=False):
        scaled = query.float() * (scale or query.shape[-1] ** -0.5)
        scores = scaled @ key.float().transpose(-1, -2)
        return scores.add_(mask).softmax(-1).to(value.dtype) @ value


class _WrittenOut(TorchFunctionMode):
    """Inside it attention in 16 bits with an additive mask is `written_out_attention`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and not torch.compiler.is_compiling():
            found = self._attention(*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        if attn_mask is None or not attn_mask.is_floating_point() or attn_mask.requires_grad:
            return None
        same_heads = query.dim() == 4 and query.shape[1] == key.shape[1] == value.shape[1]
        in_16_bits = value.dtype in (torch.bfloat16, torch.float16)
        if not same_heads or not in_16_bits or dropout_p or is_causal:
            return None
        return written_out_attention(query, key, value, attn_mask, scale)


@contextlib.contextmanager
def chosen_kernels(model: nn.Module, device_type: str, width: int) -> Iterator[None]:
    """For a forward pass over rows of `width` tokens: faster kernels with the same result up to
    rounding.

    - On a GPU, without gradients, attention is `steady_attention`; a training step as a whole is
      inside it. The rest is for autocast:
    - An adapter's input stays as it is: autocast casts it anyhow, and casting it to the adapter's
      float32 first moves it twice.
    - On a CPU attention over short rows is written out (`written_out_attention` where there is a
      mask): the backward pass of torch's flash kernel for bfloat16 is slow there.

    Where activations are computed again in the backward pass, only the first holds.
    """
    modules = list(model.modules()) if torch.is_autocast_enabled(device_type) else []
    with contextlib.ExitStack() as stack:
        if device_type == "cuda" and not torch.is_grad_enabled():
            stack.enter_context(steady_attention())
        if modules and not any(map(_recomputes, modules)):
            adapters = [module for module in modules if "cast_input_dtype_enabled" in vars(module)]
            stack.enter_context(uncast_inputs(adapters))
            if device_type == "cpu" and width <= LONGEST_WRITTEN_OUT:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(_WrittenOut())
        yield


class _Lookup(torch.autograd.Function):
    """Rows `ids` of a matrix; the backward pass appends (ids, gradient of the rows) to `aside`
    instead of returning a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, aside: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        ctx.ids, ctx.aside = ids, aside
        return weight[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        ctx.aside.append((ctx.ids.flatten(), upstream[0].flatten(0, -2)))
        return None, None, None


@contextlib.contextmanager
def lookup_in_place(layer: nn.Embedding) -> Iterator[None]:
    """Inside the block the embedding's gradient is added to the rows of the weight's own gradient,
    once that is there.

    For tied embeddings, where the head gives the weight a dense gradient: autograd would make a
    second matrix of that size, dense or for the sum with a sparse one. A forward pass and its
    backward pass must both be inside the block.

    Args:
        layer (`nn.Embedding`): a plain one; its rows of `padding_idx` get no gradient.
    """
    aside: list[tuple[Tensor, Tensor]] = []
    weight = layer.weight

    def add(parameter: Tensor) -> None:
        for ids, rows in aside:
            if layer.padding_idx is not None:
                rows = rows.masked_fill((ids == layer.padding_idx)[:, None], 0.0)
            assert parameter.grad is not None
            parameter.grad.index_add_(0, ids, rows.to(parameter.grad.dtype))
        aside.clear()

    def forward(ids: Tensor) -> Tensor:
        found: Tensor = _Lookup.apply(weight, ids, aside)  # type: ignore[no-untyped-call]
        return found

    handle = weight.register_post_accumulate_grad_hook(add)
    try:
        with with_forward(layer, forward):
            yield
    finally:
        handle.remove()


class CompiledLayers:
    """Layers whose forward is compiled for training and left as it is elsewhere, as in generation;
    they share one compiled function, for rows of any number and length.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            (layer, torch.compile(layer.forward, dynamic=True)) for layer in layers
        ]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """A forward pass with gradients inside the block is compiled; the first one is slow."""
        with contextlib.ExitStack() as stack:
            if torch.is_grad_enabled():
                for layer, forward in self.forwards:
                    stack.enter_context(with_forward(layer, forward))
            yield


def compiled_layers(
    layers: Sequence[nn.Module] | None, device_type: str, processes: int
) -> CompiledLayers:
    """The decoder's layers, to be compiled at the first step.

    Raises:
        UserError: for unknown layers, several processes, or a CPU without a compiler.
    """
    if layers is None:
        raise UserError(
            "compile_layers: this model has no list of layers that is known; leave it out"
        )
    if processes > 1:
        raise UserError("compile_layers is for one process; leave it out")
    compilers = os.environ.get("CXX") or "g++", "clang++"
    if device_type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            "compile_layers: a C++ compiler is needed on a CPU, and neither g++ nor clang++ is"
            " there; install one or leave it out"
        )
    return CompiledLayers(layers)
