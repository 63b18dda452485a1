"""An evaluation of the first version for the tests of reports."""

from __future__ import annotations

import pytest


def number(value, n=20, low=None, high=None, better=False):
    return {"value": value, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


@pytest.fixture
def evaluation():
    before = {
        "unlearned": {"leak_rate": number(1.0, 17, 0.82, 1.0), "fluency": number(0.5, 17)},
        "unseen": {"leak_rate": number(0.8, 5, 0.38, 0.96), "fluency": number(0.6, 5)},
        "kept": {"leak_rate": number(1.0, 12), "rouge_l_recall": number(0.8, 12, better=True)},
        "normal": {"similarity": number(1.0, better=True), "fluency": number(1.25)},
    }
    after = {
        "unlearned": {"leak_rate": number(0.0, 17, 0.0, 0.18), "fluency": number(None, 0)},
        "unseen": {"leak_rate": number(0.2, 5, 0.04, 0.62), "fluency": number(2.0, 5)},
        "kept": {"leak_rate": number(1.0, 12), "rouge_l_recall": number(0.6, 12, better=True)},
        "normal": {"similarity": number(0.93, better=True), "fluency": number(1.5)},
    }
    models = {"original": before, "unlearned": after}
    return {"schema_version": 1, "scenario": "copyright", "models": models}
