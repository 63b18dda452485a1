"""Models: loading them, their parts, their inputs, per-token statistics."""

from unteach.models.inputs import dropout_off, model_inputs, predicting_states, shared_lookup
from unteach.models.loading import (
    adapter_chain,
    check_vocabulary,
    load_classifier,
    load_config,
    load_model,
    load_tokenizer,
    placed,
    resolve,
    weights_hash,
)
from unteach.models.parts import (
    adapter_off,
    decoder,
    output_head,
    output_layer,
    width,
    window,
    without_adapter,
)
from unteach.models.saving import SavedForm, neutral_generation, set_aside_generation

__all__ = [
    "SavedForm",
    "adapter_chain",
    "adapter_off",
    "check_vocabulary",
    "decoder",
    "dropout_off",
    "load_classifier",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_inputs",
    "neutral_generation",
    "output_head",
    "output_layer",
    "placed",
    "predicting_states",
    "resolve",
    "set_aside_generation",
    "shared_lookup",
    "weights_hash",
    "width",
    "window",
    "without_adapter",
]
