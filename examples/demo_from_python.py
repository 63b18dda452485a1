"""What `make demo` does, from Python: python examples/demo_from_python.py OUT [MODEL] [--short]"""

import sys

from unteach.progress import Display
from unteach.run.pipeline import demo

words = [word for word in sys.argv[1:] if word != "--short"]
short = "--short" in sys.argv
result = demo(
    "copyright",
    model=words[1] if len(words) > 1 else "smollm2-135m-instruct",
    output_dir=words[0],
    short=short,
    display=Display(),
)
print(result.evaluation["models"]["unlearned"]["unlearned"]["leak_rate"])
