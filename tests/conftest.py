"""What tests share: no network, and the models and tokenizers of `tiny_models`."""

from __future__ import annotations

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from typing import Any

import pytest

from tiny_models import TOKENIZERS, byte_level_bpe, tiny_model


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
