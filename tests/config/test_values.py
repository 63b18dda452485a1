"""What `key=value` words and YAML become."""

from __future__ import annotations

from unteach.config.values import parse_settings


def test_settings_are_read_as_yaml_scalars():
    words = [
        "a=1",
        "b=1e-5",
        "c=null",
        "d=true",
        "e=ga_mismatch",
        "f=0.5",
        "g=",
        "max-steps=-3",
        "h=a=b",
        "i=2E+3",
        "j='1e-5'",
        "k=nan",
    ]
    read = {"a": 1, "b": 1e-5, "c": None, "d": True, "e": "ga_mismatch", "f": 0.5, "g": None}
    assert parse_settings(words) == read | {
        "max_steps": -3,
        "h": "a=b",
        "i": 2000.0,
        "j": 1e-5,
        "k": "nan",
    }
    assert (
        type(parse_settings(["a=1"])["a"]) is int and type(parse_settings(["b=1e-5"])["b"]) is float
    )
