"""An experiment's script as a module: the one that the test module names as `SCRIPT`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def experiment(monkeypatch, request):
    monkeypatch.syspath_prepend(str(FOLDER))
    path = FOLDER / request.module.SCRIPT
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("record", None)
