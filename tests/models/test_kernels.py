"""Kernels of a training step: the same result, and nothing left changed behind it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.backends.cuda import math_sdp_enabled
from torch.nn.attention import SDPBackend, sdpa_kernel

from tiny_models import FAMILIES, tiny_model
from unteach import UnlearningConfig
from unteach.errors import UserError
from unteach.models import kernels
from unteach.models.kernels import (
    LONGEST_WRITTEN_OUT,
    CompiledLayers,
    chosen_kernels,
    compiled_layers,
    lookup_in_place,
    written_out_attention,
)
from unteach.models.parts import layer_list

IDS = torch.arange(48).reshape(2, 24) % 300


def with_adapter(family="llama"):
    torch.manual_seed(1)
    model = get_peft_model(
        tiny_model(family), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    return model.eval()


def loss_and_gradients(model, *, kernels, autocast=True):
    precision = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    model.zero_grad()
    with (
        precision,
        chosen_kernels(model, "cpu", IDS.shape[1]) if kernels else contextlib.nullcontext(),
    ):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def apart(gradients, others):
    """Distance of all gradients together, as a share of their length."""
    names = gradients.keys() & others.keys()
    difference = sum(
        float((gradients[name] - others[name]).double().square().sum()) for name in names
    )
    return (difference / sum(float(others[name].double().square().sum()) for name in names)) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_gradients_are_as_near_to_float32_s_as_with_the_libraries_own_kernels(
    family, lora
):
    model = with_adapter(family) if lora else tiny_model(family).eval()
    exact, wanted = loss_and_gradients(model, kernels=False, autocast=False)
    loss, gradients = loss_and_gradients(model, kernels=True)
    other, others = loss_and_gradients(model, kernels=False)
    assert gradients.keys() == others.keys() == wanted.keys()
    assert abs(loss - exact) <= abs(other - exact) + 2e-3
    assert (
        apart(gradients, wanted) <= 2 * apart(others, wanted) < 0.2
    )  # which rounding flips a ReLU is chance


def test_an_adapter_s_input_is_not_cast_and_everything_is_put_back():
    model = with_adapter()
    layers = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    before = math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ZeroDivisionError), chosen_kernels(model, "cpu", 24):
            assert layers and not any(layer.cast_input_dtype_enabled for layer in layers)
            assert not torch.backends.cuda.flash_sdp_enabled()
            raise ZeroDivisionError
        with chosen_kernels(model, "cpu", LONGEST_WRITTEN_OUT + 1):
            assert torch.backends.cuda.flash_sdp_enabled()
    assert all(layer.cast_input_dtype_enabled for layer in layers)
    assert (math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def inputs_of_attention(dtype, length=9):
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(2, 3, length, 8, generator=generator).mul(1.5).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    seen = torch.rand(2, 1, length, length, generator=generator).gt(0.5) | torch.eye(
        length, dtype=torch.bool
    )
    return parts, torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def exact_attention(query, key, value, mask):
    """Softmax over the positions seen, one query at a time, in float64."""
    rows = []
    for place in range(query.shape[2]):
        scores = (query[:, :, place : place + 1].double() * key.double()).sum(-1) / query.shape[
            -1
        ] ** 0.5
        weights = scores.masked_fill(mask[:, :, place] < -1e30, float("-inf")).softmax(-1)
        rows.append((weights[..., None] * value.double()).sum(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("autocast", [False, True])
def test_written_out_attention_equals_its_float64_twin_in_value_and_gradient(
    dtype, tolerance, autocast
):
    parts, mask = inputs_of_attention(dtype)
    upstream = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(1))
    found = []
    for attention in (written_out_attention, exact_attention):
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            out = attention(*parts, mask)
        found.append([out, *torch.autograd.grad(out, parts, upstream.to(out.dtype))])
    for ours, exact in zip(*found, strict=True):
        assert (ours.double() - exact.double()).norm() <= tolerance * exact.double().norm()
    assert found[0][0].dtype == dtype


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        ({}, True),
        ({"attn_mask": None}, False),
        ({"attn_mask": None, "is_causal": True}, False),
        ({"dropout_p": 0.1}, False),
        ({"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()}, False),
        ({"enable_gqa": True, "key": 1, "value": 1}, False),
        ({"dtype": torch.float32}, False),
    ],
)
def test_attention_is_written_out_for_a_mask_that_is_added_and_left_to_torch_else(
    monkeypatch, change, ours
):
    calls = []
    monkeypatch.setattr(
        kernels,
        "written_out_attention",
        lambda *inputs: (calls.append(1), written_out_attention(*inputs))[1],
    )
    parts, mask = inputs_of_attention(change.get("dtype", torch.bfloat16))
    query, key, value = parts
    options = {"attn_mask": mask} | {
        name: given for name, given in change.items() if name not in ("key", "value", "dtype")
    }
    if "key" in change:
        key, value = key[:, :1], value[:, :1]
    with torch.autocast("cpu", torch.bfloat16, enabled="dtype" not in change):
        inside = (
            chosen_kernels(tiny_model(), "cpu", 9)
            if "dtype" not in change
            else kernels._WrittenOut()
        )
        with inside:
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    assert out.shape == query.shape and bool(calls) == ours


def test_without_autocast_nothing_changes():
    model = with_adapter()
    with chosen_kernels(model, "cpu", 24):
        assert torch.backends.cuda.flash_sdp_enabled()
        assert all(
            module.cast_input_dtype_enabled
            for module in model.modules()
            if hasattr(module, "cast_input_dtype_enabled")
        )


def test_the_user_s_own_choice_of_attention_outlives_it():
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with chosen_kernels(tiny_model(), "cpu", 24):
            pass
        assert not math_sdp_enabled()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_that_are_computed_again_find_the_same_kernels(reentrant):
    model = with_adapter()
    model.enable_input_require_grads()
    plain = loss_and_gradients(model, kernels=True)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = loss_and_gradients(model, kernels=True)
    assert again[0] == pytest.approx(plain[0], abs=2e-3)


def layers_that_count(model, monkeypatch):
    """The model's layers, as `CompiledLayers` with a compiler that only counts the calls, and the
    calls.
    """
    calls = []

    def compiler(forward, *, dynamic):
        assert dynamic
        return lambda *inputs, **options: (calls.append(1), forward(*inputs, **options))[1]

    monkeypatch.setattr(torch, "compile", compiler)
    return CompiledLayers(layer_list(model)), calls


@pytest.mark.parametrize("lora", [False, True])
def test_layers_are_compiled_for_training_alone(lora, monkeypatch):
    model = with_adapter() if lora else tiny_model()
    layers, calls = layers_that_count(model, monkeypatch)
    plain = model(input_ids=IDS).logits
    assert not calls
    with layers.used():
        torch.testing.assert_close(model(input_ids=IDS).logits, plain, rtol=0, atol=0)
    assert len(calls) == 2
    with torch.no_grad(), layers.used():
        model(input_ids=IDS)
    model(input_ids=IDS)
    assert len(calls) == 2 and not any("forward" in vars(layer) for layer, _ in layers.forwards)


def test_a_forward_of_somebody_else_s_is_put_back(monkeypatch):
    model = tiny_model()
    first = layer_list(model)[0]
    own = first.forward = first.forward
    layers, _ = layers_that_count(model, monkeypatch)
    with layers.used():
        assert first.forward is not own
    assert first.forward is own


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ((None, "cpu", 1), "no list of layers"),
        (([], "cpu", 2), "one process"),
        (([], "cpu", 1), "a C\\+\\+ compiler is needed"),
    ],
)
def test_where_layers_cannot_be_compiled_it_is_said(where, words, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=words):
        compiled_layers(*where)


def test_the_name_that_transformers_gives_it_is_understood(tmp_path):
    config = UnlearningConfig(output_dir=str(tmp_path), torch_compile=True)
    assert config.compile_layers and not config.torch_compile


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_look_up_adds_its_rows_to_the_gradient_that_the_head_gave(padding, dtype):
    torch.manual_seed(0)
    layer = torch.nn.Embedding(11, 5, padding_idx=padding, dtype=dtype)
    ids = torch.tensor([[3, 1, 1, 7], [0, 3, 1, 10]])

    def step():
        (layer(ids).tanh() @ layer.weight.T).logsumexp(-1).sum().backward()

    step()
    step()
    wanted, layer.weight.grad = layer.weight.grad, None
    with lookup_in_place(layer):
        step()
        step()
    torch.testing.assert_close(layer.weight.grad, wanted)
    assert "forward" not in vars(layer)
    layer.weight.grad = None
    step()
    torch.testing.assert_close(2 * layer.weight.grad, wanted)


def test_a_look_up_is_put_back_after_an_error():
    layer = torch.nn.Embedding(4, 2)
    with pytest.raises(RuntimeError, match="out"), lookup_in_place(layer):
        raise RuntimeError("out")
    assert "forward" not in vars(layer)
    layer(torch.tensor([1])).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad[1].tolist() == [1.0, 1.0]


def test_steady_attention_puts_cudnn_s_back_as_it_was():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for enabled in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(enabled)
            with pytest.raises(ZeroDivisionError), kernels.steady_attention():
                assert not torch.backends.cuda.cudnn_sdp_enabled()
                raise ZeroDivisionError
            assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
