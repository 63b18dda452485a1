"""PEFT adapters: which layers they go on, their base, merging, and several of them as one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unteach.errors import UserError
from unteach.files.atomic import write_folder_atomically
from unteach.models.parts import decoder, output_layer

CONFIG, WEIGHTS, LORA = "adapter_config.json", "adapter_model.safetensors", "lora_"
PLAIN = {"use_dora": False, "target_parameters": None, "bias": "none", "lora_bias": False}
"""Fields of `LoraConfig` with the values that a sum of adapters needs."""


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter instead of a model."""
    return (Path(folder) / CONFIG).is_file()


def is_quantized(config: Any) -> bool:
    """Whether a model's weights have fewer bits than they are computed with."""
    return getattr(config, "quantization_config", None) is not None


def read_adapter(folder: str | Path) -> Any:
    """PEFT's configuration of the adapter in a folder.

    Raises:
        UserError: if it cannot be read.
    """
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # readers of broken files raise many types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{Path(folder) / CONFIG} could not be read ({reason})") from None


def base_of(folder: str | Path) -> str:
    """The model that the adapter in a folder was trained on, by its `base_model_name_or_path`.

    A relative path counts from the working folder, else from the adapter's. A path to `original`
    that has moved is looked for beside the adapter, where a run keeps the model that it taught.

    Raises:
        UserError: if the configuration names none.
    """
    folder, name = Path(folder), str(read_adapter(folder).base_model_name_or_path or "")
    if not name:
        raise UserError(f"{folder / CONFIG} has no base_model_name_or_path: name the base model")
    beside = folder.parent / "original"
    if Path(name).name == beside.name and (beside / "config.json").exists():
        return str(beside)
    near = folder / name
    if not Path(name).exists() and near.is_dir():
        return str(near.resolve())
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise UserError(
            f"adapter {str(folder)!r} was trained on {name}, which is not there; name the base"
            f" model in base_model_name_or_path of its {CONFIG}"
        )
    return name


# --- which layers


def adapter_config(model: Any, rank: int, *, scale: float) -> Any:
    """PEFT's configuration of an adapter on the linear layers of the text model, whose product is
    multiplied by `scale`.

    Raises:
        UserError: if the model has none that PEFT can adapt.
    """
    from peft import LoraConfig
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return LoraConfig(
        r=rank,
        lora_alpha=int(scale * rank),
        lora_dropout=0.0,
        target_modules=adapter_targets(model),
        # without a task, the adapter names the class of its model, for `AutoPeftModel`
        task_type="CAUSAL_LM" if type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING else None,
    )


def adapter_targets(model: Any) -> str | list[str]:
    """`all-linear`, or the names of the layers where that would take layers outside the text model
    (a vision tower) or layers that PEFT refuses (those that kernels of state-space models bypass).

    Args:
        model: a causal language model; its weights are not looked at.

    Raises:
        UserError: if there are none.
    """
    from transformers.pytorch_utils import Conv1D

    def linear(part: nn.Module) -> set[nn.Module]:
        return {module for module in part.modules() if isinstance(module, nn.Linear | Conv1D)}

    head, inside = output_layer(model), linear(decoder(model))
    names = [name for name, module in model.named_modules() if module in inside - {head}]
    if inside | {head} >= linear(model) and names and _accepted(model, "all-linear"):
        return "all-linear"
    kinds = {name.rpartition(".")[2] for name in names}
    good = {kind for kind in kinds if _accepted(model, [kind])}
    if not good:
        raise UserError(
            f"{type(model).__name__} has no linear layer that PEFT can put an adapter on: leave out"
            " --lora"
        )
    return [name for name in names if name.rpartition(".")[2] in good]


def _accepted(model: Any, targets: str | list[str]) -> bool:
    """Whether PEFT takes these targets and adapts nothing but layers for them, tried on a twin of
    the model without weights. Experts that are one tensor it would adapt as bare parameters, and
    such adapters cannot be summed.
    """
    from peft import LoraConfig, inject_adapter_in_model

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = type(model)(copy.deepcopy(model.config))
        try:
            config = LoraConfig(r=1, target_modules=targets)
            inject_adapter_in_model(config, twin)
        except ValueError:
            return False
    return not config.target_parameters


# --- merging


@torch.no_grad()
def merged_adapter(model: Any, folder: str | Path) -> Any:
    """The model with the adapter in `folder` merged into its weights, as `AutoPeftModel` would load
    it; its embedding grows where the adapter's tokenizer has more tokens. On quantised weights the
    adapter stays apart.

    Raises:
        UserError: for an adapter that is not of this model, or is none of weights.
    """
    _grow(model, Path(folder))
    tuned = _with_adapter(model, folder, "default", f"adapter {str(folder)!r}")
    kind = tuned.peft_config["default"].peft_type
    if tuned.peft_config["default"].is_prompt_learning or not hasattr(tuned, "merge_and_unload"):
        raise UserError(
            f"adapter {str(folder)!r} is of type {getattr(kind, 'value', kind)}, which changes no"
            " weights: unteach trains adapters of weights (LoRA and its kind)"
        )
    if is_quantized(model.config):  # merged, it would be rounded with the weights
        return tuned.eval()
    _untie(tuned.get_base_model())
    merged = tuned.merge_and_unload()
    if _ends(merged)[0].weight is not _ends(merged)[1].weight:
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = False  # loaded again, they would be tied
    return merged.eval().requires_grad_(True)  # PEFT freezes the base


def _with_adapter(model: Any, folder: str | Path, name: str, title: str) -> Any:
    """The model with the adapter in `folder` beside those that it has, not merged.

    Raises:
        UserError: where the adapter is not of this model: PEFT would leave out what does not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    file, reason = Path(folder) / WEIGHTS, ""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            if file.is_file():
                options: Any = {"adapter_name": name, "save_embedding_layers": False}
                taken = [key for key in get_peft_model_state_dict(model, **options) if LORA in key]
                with safe_open(file, "pt") as saved:
                    given = [key for key in saved.keys() if LORA in key]  # noqa: SIM118
                if len(given) != len(taken):
                    reason = f"it has {len(given)} tensors, and {len(taken)} have a place there"
        except Exception as error:  # as above
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if reason:
        raise UserError(f"{title} could not be loaded onto its base model ({reason})")
    return model


def _grow(model: Any, folder: Path) -> None:
    if not (folder / "tokenizer_config.json").exists():
        return
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(str(folder)))
    if size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size)


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), output_layer(model)


def _untie(model: Any) -> None:
    """Gives the output layer weights of its own where an adapter is on one of two tied embeddings:
    merged, it would change the other.
    """
    ends = _ends(model)
    first, last = (getattr(end, "base_layer", end) for end in ends)
    if first.weight is last.weight and (first, last) != ends:
        last.weight = nn.Parameter(last.weight.detach().clone())


# --- several as one


def check_summable(folder: str | Path) -> None:
    """Raises `UserError` for an adapter that cannot become one with a second one: a DoRA, one with
    biases, or one that is no LoRA.
    """
    config = read_adapter(folder)
    kind = getattr(config.peft_type, "value", str(config.peft_type))
    wrong = [] if kind == "LORA" else [f"peft_type {kind}"]
    if not wrong:
        wrong = [
            f"{name}={value!r}"
            for name, plain in PLAIN.items()
            if (value := getattr(config, name, plain)) not in (plain, [], None)
        ]
    if wrong:
        raise UserError(
            f"adapter {str(folder)!r} ({wrong[0]}) and a new one cannot be saved as one adapter:"
            " add --merge for a whole model, or leave out --lora"
        )


@torch.no_grad()
def write_sum(base: Any, base_name: str, folders: Sequence[str | Path], target: Path) -> None:
    """Writes the sum of LoRA adapters on one base model as one adapter; their ranks add up.

    `modules_to_save` of one of them (whole weights that it replaces) are part of the sum.

    Args:
        base: the base model; adapters are put into it.
        base_name (`str`): its hub id or absolute path, for the new adapter's configuration.
        folders: of the adapters, at least one.
        target (`Path`): folder of the sum.

    Raises:
        UserError: for an adapter that is missing, broken or of another model.
    """
    from peft.utils import ModulesToSaveWrapper

    for folder in folders:
        _grow(base, Path(folder))
    model, names = stacked(base, folders)
    configs = [model.peft_config[name] for name in names]
    _align_targets(model, names)
    first = configs[0]  # PEFT takes all but rank and targets from it
    first.use_rslora, first.init_lora_weights = False, True
    whole = sorted({part for one in configs for part in one.modules_to_save or ()})
    first.modules_to_save = whole or None
    model.add_weighted_adapter(names, [1.0] * len(names), "default", combination_type="cat")
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            kept = [name for name in names if name in module.modules_to_save]
            weights = module.modules_to_save[kept[-1]].state_dict()
            module.modules_to_save["default"].load_state_dict(weights)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base_name, True
    write_folder_atomically(
        target, lambda folder: model.save_pretrained(folder, selected_adapters=["default"])
    )


def stacked(base: Any, folders: Sequence[str | Path]) -> tuple[Any, list[str]]:
    """The base with all adapters loaded and none merged, and their names in it."""
    names = [f"patch{number}" for number in range(len(folders))]
    model = base
    for name, path in zip(names, folders, strict=True):
        if not (Path(path) / WEIGHTS).is_file():
            raise UserError(f"patch {path} has no {WEIGHTS}")
        model = _with_adapter(model, path, name, f"patch {path}")
    return model, names


def _align_targets(model: Any, names: Sequence[str]) -> None:
    """Gives all configurations the same targets where they choose them in different ways: as
    patterns, by layer, or with exceptions.
    """
    from peft.tuners.lora import LoraLayer

    configs = [model.peft_config[name] for name in names]
    plain = all(
        not isinstance(one.target_modules, str)
        and one.layers_to_transform is None
        and one.exclude_modules is None
        for one in configs
    )
    if plain:
        return
    found = {
        name
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
        and any(one in module.lora_A or one in module.lora_embedding_A for one in names)
    }
    for config in configs:
        config.target_modules, config.layers_to_transform = found, None
        config.layers_pattern = config.exclude_modules = None
