"""`unteach compare`: several methods in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unteach.cli.options import Command
from unteach.config.run import required, run_option
from unteach.config.values import read_config


@dataclass(frozen=True)
class CompareCommand:
    """Options of `unteach compare`."""

    config: str = required("config", help="YAML file: what to compare", positional=True)
    output_dir: str | None = run_option("output_dir", default=None)


def compare(given: dict[str, Any]) -> int:
    """Runs several methods on the same data and writes one table (Markdown, CSV, LaTeX), shaped as
    those of the paper. The YAML file:

      out: runs/compare
      models: [smollm2-135m-instruct]
      methods:
        [finetuning, ga_mismatch, templated, {name: mine, method: npo, learning_rate: 1e-4}]
      scenario: copyright        # an embedded scenario with its demo's settings; or instead
      forget: bad.jsonl          # your rows to forget, and
      retain: good.jsonl         # your rows to keep
      judge_as: hallucination    # scored as an embedded scenario is (default: leak rate)
      unseen: more.jsonl         # only measured: rows to forget that nothing trains on, and
      neighbours: others.jsonl   # rows like those to forget about other things (half of them kept)
      hold_out: 0.3              # share of the rows to forget that is held out (default: 0.3)
      limit: 200                 # at most this many rows to forget
      teach: {num_train_epochs: 5, learning_rate: 2e-4}   # teach the rows first, to a model that
                                 # does not know them
      seed: 0
      settings: {max_steps: 40}  # for all methods; with patience: N the baselines stop by it too
      short: false               # an embedded scenario's smaller version, for smoke tests

    The same command again resumes an interrupted comparison.
    """
    from unteach.compare import compare as run_comparison
    from unteach.progress import Display

    options = read_config(given["config"])
    if "output_dir" in given:
        options["out"] = given["output_dir"]
    display = Display()
    folder = run_comparison(options, display)
    display.print(f"Tables: {folder / 'comparison.md'} (also .csv and .tex)")
    return 0


COMMANDS = {"compare": Command(compare, CompareCommand)}
