"""The benchmarks by name. No import of torch: the command line needs the names alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from unteach.errors import did_you_mean

if TYPE_CHECKING:
    from unteach.evaluation.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark | str] = {
    "tofu": "unteach.evaluation.benchmarks.tofu",
    "muse": "unteach.evaluation.benchmarks.muse",
    "wmdp": "unteach.evaluation.benchmarks.wmdp",
    "rwku": "unteach.evaluation.benchmarks.rwku",
    "harness": "unteach.evaluation.benchmarks.harness",
}
"""Name to a `Benchmark`, or to the module that defines one as `BENCHMARK`, imported when used."""


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        UserError: for an unknown name.
    """
    if name not in BENCHMARKS:
        raise did_you_mean(name, list(BENCHMARKS), "benchmark")
    found = BENCHMARKS[name]
    if not isinstance(found, str):
        return found
    benchmark: Benchmark = import_module(found).BENCHMARK
    return benchmark
