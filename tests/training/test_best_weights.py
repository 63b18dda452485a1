"""The weights of the best probe on disk."""

from __future__ import annotations

from unteach.training.best_weights import BestWeights


def test_only_the_best_weights_stay(tmp_path):
    best = BestWeights(tmp_path)
    for step in (2, 4):
        best.folder(step).mkdir()
    best.keep_only({4})
    assert [path.name for path in tmp_path.iterdir()] == ["best-4"]
