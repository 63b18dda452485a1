"""Finding, loading, saving and taking apart causal language models."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unteach.data.packing import PADDING, visibility
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError, is_panic
from unteach.models import packaged as packaged_models
from unteach.models.kernels import chosen_kernels, lookup_in_place
from unteach.models.output_head import OutputHead
from unteach.models.packaged import PACKAGED

LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Names that configurations have for a number by which logits are multiplied (Cohere, Falcon-H1,
Muse).
"""
LOGITS_TIMES_SCALING = ("hyperclovax",)
"""Model types that multiply by `logits_scaling`; the others (Granite) divide by it."""


def resolve(name: str) -> str:
    """A folder or hub id that `from_pretrained` takes: a local folder as it is, a packaged name
    from cache, hub or wheel.

    Raises:
        UserError: for a folder that is no model, or a packaged model that cannot be had.
    """
    if "\0" in name:
        raise UserError(f"model {name!r}: a name cannot hold a null character")
    if Path(name).is_dir():
        if not any((Path(name) / file).exists() for file in ("config.json", "adapter_config.json")):
            raise UserError(f"model {name!r} is a folder without config.json")
        return name
    return packaged_models.fetch(name) if name.lower() in PACKAGED else name


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, with a padding token (its end-of-sequence token if it has none of
    its own).
    """
    from transformers import AutoTokenizer

    path = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer(
            "A first text.", truncation=False
        )  # some settings that make no sense are noticed here only
    # readers of broken files raise many types, that of tokenizers even one that is no Exception
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise _unknown_model(name, error) from None
    return tokenizer


def _unknown_model(name: str, error: BaseException) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"model {name!r} brings code of its own; read it, and add --trust-remote-code if you"
            " trust it"
        )
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if Path(name).is_dir():
        return UserError(
            f"model {name!r} could not be loaded, a file of it is missing or broken"
            f" ({type(error).__name__}: {first})"
        )
    return UserError(
        f"model {name!r} could not be loaded: it is no local folder, no packaged name"
        f" ({', '.join(PACKAGED)}), and the hub said: {first}"
    )


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A causal language model in evaluation mode, weights from safetensors only (an adapter folder
    loads with its base model).

    Args:
        name (`str`): folder, hub id or packaged name.
        dtype (`torch.dtype`)
        trust_remote_code (`bool`)
        settings (`dict`, *optional*): more arguments of `from_pretrained`.

    Raises:
        UserError: if there is no such model, or only weights in a format that can carry code.
    """
    from transformers import AutoModelForCausalLM

    path = resolve(name)
    if Path(path).is_dir() and (Path(path) / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel

        try:
            how = {"dtype": dtype, "trust_remote_code": trust_remote_code, **(settings or {})}
            named, beside = (
                Path(str(PeftConfig.from_pretrained(path).base_model_name_or_path)),
                Path(path).parent / "original",
            )
            if (
                named.name == beside.name and (beside / "config.json").exists()
            ):  # what the run taught, wherever its folder is now
                base = load_model(
                    str(beside), dtype=dtype, trust_remote_code=trust_remote_code, settings=settings
                )
                return PeftModel.from_pretrained(base, path).eval()
            return AutoPeftModelForCausalLM.from_pretrained(path, **how).eval()
        except Exception as error:  # as above
            raise _unknown_model(name, error) from None
    try:
        how = {"dtype": dtype, "trust_remote_code": trust_remote_code, **(settings or {})}
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **how)
    except Exception as error:  # as above
        raise _unknown_model(name, error) from None
    return model.eval()


def placed(model: Any, device: torch.device | None = None) -> Any:
    """The model on the GPU of this process, if all its weights fit there with a fifth to spare;
    else where it lies.

    A model that will be sharded over several may be too large for one; it stays on the CPU until
    then.

    Args:
        model: a causal language model.
        device (`torch.device`, *optional*): default: this process's own, as Accelerate knows it.
    """
    if not torch.cuda.is_available():
        return model
    from accelerate import PartialState

    where = device if device is not None else PartialState().device
    if next(model.parameters()).device.type != "cpu" or where.type != "cuda":
        return model
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    gc.collect()
    torch.cuda.empty_cache()  # what torch keeps for later use is free, too
    free, _ = torch.cuda.mem_get_info(where)
    if size < 0.8 * free:
        return model.to(where)
    warnings.warn(
        f"a model of {size / 2**30:.1f} GiB stays on the CPU: {free / 2**30:.1f} GiB of the GPU are"
        " free",
        stacklevel=2,
    )
    return model


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model, without its weights where the hub is in reach.

    Args:
        name (`str`): folder, hub id or packaged name.
        trust_remote_code (`bool`)

    Raises:
        UserError: if there is none.
    """
    from transformers import AutoConfig

    packaged = PACKAGED.get(name.lower())
    for path in ([packaged.hub_id] if packaged and not packaged_models.cached(name) else []) + [""]:
        try:
            return AutoConfig.from_pretrained(
                path or resolve(name), trust_remote_code=trust_remote_code
            )
        except UserError:
            raise
        except Exception as error:  # as above
            if not path:
                raise _unknown_model(name, error) from None
    raise AssertionError("the last name is tried or refused")


def check_vocabulary(model: Any, rows: Sequence[EncodedRow]) -> None:
    """Raises `UserError` if a row holds a token for which the model has no embedding."""
    size = int(model.get_input_embeddings().weight.shape[0])
    highest = max((max(row.prompt_ids + row.completion_ids) for row in rows), default=-1)
    if highest >= size:
        raise UserError(
            f"the tokenizer gives token {highest}, but the model has {size} embeddings: they do not"
            " belong together"
        )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and SHA-256 of the bytes of all parameters, in the order of
    their names.

    The digests of the parameters are made side by side: of a model of 7 billion they take seconds
    each time, one after the other.
    """

    def own(parameter: Tensor) -> bytes:
        return hashlib.sha256(
            parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        ).digest()

    named = sorted(model.named_parameters())
    digest = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for (name, parameter), found in zip(
            named, pool.map(own, [parameter for _, parameter in named]), strict=True
        ):
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + found)
    return digest.hexdigest()


def without_adapter(model: Any) -> Any:
    """The causal language model inside a PEFT model (adapters stay injected), or the model itself."""
    return (
        model.get_base_model()
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        else model
    )


def adapter_off(model: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which a PEFT model computes what its base model does; nothing for a model
    without adapter.
    """
    return model.disable_adapter() if hasattr(model, "peft_config") else contextlib.nullcontext()


def decoder(model: Any) -> nn.Module:
    """The part of the model that ends in final hidden states, before the output head."""
    base = without_adapter(model)
    inner: nn.Module = base.get_decoder() if hasattr(base, "get_decoder") else base.base_model
    whole: nn.Module = base.base_model
    return whole if inner is base else inner


def output_layer(model: Any) -> Any:
    """The module that holds the output embedding.

    Raises:
        UserError: if the model has none (it is not a causal language model).
    """
    base = without_adapter(model)
    layer = base.get_output_embeddings()
    if layer is None:
        raise UserError(
            f"{type(base).__name__} has no output embedding: it is not a causal language model"
        )
    return layer


def width(model: Any) -> int:
    """The hidden size of a model: that of its configuration, or of its embedding where the
    configuration has another word for it.
    """
    size = getattr(model.config.get_text_config(), "hidden_size", None)
    return int(size or model.get_input_embeddings().weight.shape[1])


def window(model: Any) -> int:
    """The most tokens that a model was made for; 2**30 where no configuration says it."""
    config = getattr(model, "config", None)
    config = config.get_text_config() if config is not None else None
    return int(
        getattr(config, "max_position_embeddings", None)
        or getattr(config, "n_positions", None)
        or 2**30
    )


def output_head(model: Any) -> OutputHead:
    """The model's map from final hidden states to logits, with the logit scale and soft cap that
    some families have.

    Raises:
        UserError: if the model has no output embedding (it is not a causal language model).
    """
    layer = output_layer(model)
    config = without_adapter(model).config.get_text_config()
    scale = 1.0
    for name in LOGIT_FACTORS:
        scale *= float(getattr(config, name, None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    scale = scale * divisor if config.model_type in LOGITS_TIMES_SCALING else scale / divisor
    return OutputHead(
        layer.weight,
        getattr(layer, "bias", None),
        scale,
        getattr(config, "final_logit_softcapping", None),
    )


def model_inputs(model: Any, batch: dict[str, Tensor], *, packed: bool) -> dict[str, Any]:
    """What the decoder is called with: ids, restarting positions, and an attention mask.

    The mask of packed rows is 4-D and additive; where the layers differ in a window that these rows
    exceed, it is a dict by layer type, as transformers takes it. That of plain rows is 2-D, and the
    model makes its own of it.
    """
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if not packed:
        return inputs | {"attention_mask": (batch["tree"] != PADDING).long()}
    device_type = batch["input_ids"].device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else _dtype(model)

    def additive(limits: dict[str, int]) -> Tensor:
        seen = visibility(batch, **limits)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)

    masks = {kind: additive(limits) for kind, limits in _attention_limits(model, batch).items()}
    return inputs | {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}


def _dtype(model: Any) -> torch.dtype:
    return next(decoder(model).parameters()).dtype


def _attention_limits(model: Any, batch: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """For each layer type the limits of its attention (arguments of `visibility`); one entry without
    any where rows are too short to exceed them, or where a layer is of another type: whether the
    model is right without limits is what the self-check finds out.
    """
    config = without_adapter(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    limits: dict[str, dict[str, int]] = {"full_attention": {}}
    if isinstance(window, int):
        limits["sliding_attention"] = {"window": window}
    if isinstance(chunk, int):
        limits["chunked_attention"] = {"chunk": chunk}
    # a configuration without layer types has one kind of layer
    kinds = set(getattr(config, "layer_types", None) or [list(limits)[-1]])
    sizes = [size for kind in kinds for size in limits.get(kind, {}).values()]
    if not sizes or batch["input_ids"].shape[1] <= min(sizes) or not kinds <= set(limits):
        return {"full_attention": {}}
    return {kind: limits[kind] for kind in sorted(kinds)}


def predicting_states(
    model: Any,
    batch: dict[str, Tensor],
    *,
    packed: bool,
    shared_prefix: tuple[int, Any] = (0, None),
) -> Tensor:
    """Final hidden states at the positions that predict a completion token, shape (tokens, hidden),
    in the batch's order.

    Args:
        model: a causal language model.
        batch: of `make_batch`.
        packed (`bool`): its layout.
        opening: tokens that come before each row of an unpacked batch, and their cache with a row
            for each (`opened_cache`).
    """
    body = decoder(model)
    inputs = model_inputs(model, batch, packed=packed)
    before, cache = shared_prefix
    if before:
        inputs["position_ids"] = inputs["position_ids"] + before
        inputs["attention_mask"] = functional.pad(inputs["attention_mask"], (before, 0), value=1)
        inputs["past_key_values"] = cache
    with chosen_kernels(
        body, inputs["input_ids"].device.type, inputs["input_ids"].shape[1] + before
    ):
        hidden: Tensor = body(**inputs, use_cache=bool(before), return_dict=True).last_hidden_state
    return hidden.flatten(0, 1)[batch["predictor"]]


@contextlib.contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Dropout probabilities 0 inside the block, in training mode too; the reference has none, so
    the trained model must not either.
    """
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d) else []
        names += [name for name in vars(module) if "dropout" in name or name == "layerdrop"]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


@contextlib.contextmanager
def shared_lookup(model: Any) -> Iterator[None]:
    """For training steps inside the block, on a CPU: `lookup_in_place`, if the matrix that input
    tokens are looked up in is the head's too.

    Only for a loss that goes through the head, in one process.
    """
    layer = without_adapter(model).get_input_embeddings()
    plain = (
        type(layer) is nn.Embedding
        and type(layer.weight) is nn.Parameter
        and layer.max_norm is None
        and not layer.scale_grad_by_freq
    )
    shared = plain and layer.weight is output_layer(model).weight
    with (
        lookup_in_place(layer)
        if shared and layer.weight.requires_grad and layer.weight.device.type == "cpu"
        else contextlib.nullcontext()
    ):
        yield
