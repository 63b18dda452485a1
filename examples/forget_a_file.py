"""Make a model forget the completions of a file: python examples/forget_a_file.py MODEL
FORGET.jsonl OUT [key=value ...]
"""

import sys

from unteach import unlearn
from unteach.config.values import parse_settings

model, forget, out, *settings = sys.argv[1:]
result = unlearn(model, forget=forget, output_dir=out, **parse_settings(settings))
for name, metrics in result.evaluation["models"]["unlearned"].items():
    print(name, {metric: found["value"] for metric, found in metrics.items()})
