"""The dict `BENCHMARKS`."""

from __future__ import annotations

from unteach.evaluation.benchmarks import (
    muse_benchmark,
    rwku_benchmark,
    tofu_benchmark,
    wmdp_benchmark,
)
from unteach.evaluation.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "tofu": tofu_benchmark.BENCHMARK,
    "muse": muse_benchmark.BENCHMARK,
    "wmdp": wmdp_benchmark.BENCHMARK,
    "rwku": rwku_benchmark.BENCHMARK,
}
