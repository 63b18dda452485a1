"""`unteach doctor` names what is missing and what fits; `unteach completion` completes."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from unteach.cli import COMMANDS, main
from unteach.cli import installation as doctor


def test_what_is_missing_is_named_with_the_command_that_adds_it(monkeypatch, capsys):
    real = metadata.version
    known = {"rouge-score": "0.0.1"}

    def version(name):
        if name == "lm-eval":
            raise metadata.PackageNotFoundError(name)
        return known.get(name) or real(name)

    monkeypatch.setattr("unteach.cli.installation.metadata.version", version)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().out
    assert "missing: rouge-score>=0.1.2 (found: 0.0.1); pip install 'rouge-score>=0.1.2'" in said
    assert "missing lm-eval; pip install 'unteach[harness]'" in said
    assert "Which models fit is not known" in said


def test_it_says_what_the_machine_has_and_what_fits(monkeypatch, capsys):
    ready = {"": [{"name": "torch", "wanted": ">=2.8", "found": "9", "right": True}]}
    monkeypatch.setattr("unteach.cli.installation.packages", lambda: ready)
    monkeypatch.setattr("unteach.cli.installation.memory_bytes", lambda: 8 * doctor.GIB)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["memory_bytes"] == 8 * doctor.GIB
    assert set(found["largest"]) == set(doctor.WAYS)


def test_more_memory_fits_larger_models_and_an_adapter_more_than_all_weights():
    order = [None, *doctor.SHAPES]
    small, large = doctor.sizes(6 * doctor.GIB, gpu=False), doctor.sizes(24 * doctor.GIB, gpu=True)
    whole, *adapters = doctor.WAYS
    assert small[whole] == "0.1B" and large["--lora"] in ("3B", "1B")
    for fits in (small, large):
        places = [order.index(fits[way]) for way in doctor.WAYS]
        assert places == sorted(places)
    assert all(order.index(large[way]) >= order.index(small[way]) for way in adapters)


def test_nothing_fits_into_nothing():
    assert set(doctor.sizes(0, gpu=False).values()) == {None}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in [*COMMANDS, "neighbours", "hold-out", "show-text"]:
        assert word in script
