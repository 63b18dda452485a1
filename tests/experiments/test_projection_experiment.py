"""The projection to larger models, by hand."""

from __future__ import annotations

import pytest

SCRIPT = "projection.py"
COST = {"seconds": 10.0, "training_tokens": 100, "generated_tokens": 30, "forward_tokens": 20}


def test_a_trained_token_is_six_operations_a_parameter_and_a_read_or_written_one_two(experiment):
    """7 parameters: 7 (6 * 100 + 2 * (30 + 20)) = 7 * 700."""
    operations = experiment.floating_point_operations
    assert operations(COST, 7) == 4900
    assert operations({"training_tokens": 1, "generated_tokens": 0}, 7) == 42


def test_seconds_grow_with_the_parameters(experiment):
    assert experiment.projected_seconds(COST, 70, 7) == pytest.approx(100.0)
    with pytest.raises(ValueError, match="without tokens"):
        experiment.projected_seconds(dict.fromkeys(COST, 0), 70, 7)


def test_the_models_are_in_the_order_of_their_size(experiment):
    sizes = list(experiment.MODELS.values())
    assert sizes == sorted(sizes) and 6.7e9 < experiment.MODELS["Llama 2 7B"] < 6.8e9
