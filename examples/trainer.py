"""The trainer by itself, in TRL's conventions: python examples/trainer.py MODEL FORGET.jsonl
RETAIN.jsonl OUT
"""

import sys

from unteach import UnlearningConfig, UnlearningTrainer

model, forget, retain, out = sys.argv[1:]
config = UnlearningConfig(output_dir=out, method="ga_mismatch", learning_rate=1e-5, max_steps=20)
trainer = UnlearningTrainer(model, config, forget_dataset=forget, retain_dataset=retain)
trainer.train()
trainer.save_model(out)
