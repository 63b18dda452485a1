"""What `make demo` does, from Python: python examples/demo_from_python.py OUT [MODEL] [--short]"""

import sys

from unteach.progress import Display
from unteach.run.pipeline import Run, RunOptions
from unteach.scenarios.registry import build_scenario, demo_options

words = [word for word in sys.argv[1:] if word != "--short"]
short = "--short" in sys.argv
options = demo_options(
    "copyright",
    model=words[1] if len(words) > 1 else "smollm2-135m-instruct",
    output_dir=words[0],
    short=short,
)
result = Run(build_scenario("copyright", short=short), RunOptions(**options), Display()).execute()
print(result.evaluation["models"]["unlearned"]["unlearned"]["leak_rate"])
