"""What tests share: no network, and the models and tokenizers of `tiny_models`."""

from __future__ import annotations

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import Any

import pytest

from tiny_models import TOKENIZERS, byte_level_bpe, tiny_model

FOLDER = Path(__file__).parent
LONGEST = (
    "trainer/test_parallel.py",
    "attacks/test_hiding.py",
    "test_kill_and_resume.py",
    "documentation/test_pages_run.py",
    "run/test_pipeline.py",
    "attacks/test_suite.py",
    "requests/test_forget_requests.py",
    "prepare/test_search.py",
    "attacks/test_relearning.py",
    "test_faults.py",
    "baselines/test_runs.py",
    "documentation/test_notebooks.py",
    "test_examples.py",
    "test_model_families.py",
    "trainer/test_trainer.py",
)
"""The files that take longest, longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that none begins last while the other process has ended."""
    order = {FOLDER / name: number for number, name in enumerate(LONGEST)}
    assert all(path.exists() for path in order)
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Makes runs cheaper: figures of few dots; and no garbage collection of what the imported
    libraries hold, which takes tenths of a second each time.
    """
    if figures := sys.modules.get("unteach.reports.figures"):
        figures.STYLE["savefig.dpi"] = 50  # tests/reports/test_figures.py takes the real ones
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer of most tests: byte-level BPE without a chat template."""
    return byte_level_bpe()


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """A tokenizer with a chat template whose padding token is its end-of-turn token, as SmolLM2's
    is.
    """
    return byte_level_bpe(chat=True, pad=False)


@pytest.fixture(scope="session", params=list(TOKENIZERS))
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    """Tokenizers of three kinds."""
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="session")
def model(saved_model: str) -> str:
    """The folder of `saved_model`, for tests of whole runs."""
    return saved_model


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny model with a chat tokenizer, as `save_pretrained` leaves them; tests read
    it only.
    """
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    byte_level_bpe(chat=True).save_pretrained(folder)
    return str(folder)
