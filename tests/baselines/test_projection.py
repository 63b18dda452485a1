"""The projection to larger models, by hand."""

from __future__ import annotations

import pytest

from unteach.baselines.projection import MODELS, floating_point_operations, projected_seconds

COST = {"seconds": 10.0, "training_tokens": 100, "generated_tokens": 30, "forward_tokens": 20}


def test_a_trained_token_is_six_operations_a_parameter_and_a_read_or_written_one_two():
    """7 parameters: 7 (6 * 100 + 2 * (30 + 20)) = 7 * 700."""
    assert floating_point_operations(COST, 7) == 4900
    assert floating_point_operations({"training_tokens": 1, "generated_tokens": 0}, 7) == 42


def test_seconds_grow_with_the_parameters():
    assert projected_seconds(COST, 70, 7) == pytest.approx(100.0)
    with pytest.raises(ValueError, match="without tokens"):
        projected_seconds(dict.fromkeys(COST, 0), 70, 7)


def test_the_models_are_in_the_order_of_their_size():
    assert list(MODELS.values()) == sorted(MODELS.values()) and 6.7e9 < MODELS["Llama 2 7B"] < 6.8e9
