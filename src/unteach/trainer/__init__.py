"""`UnlearningTrainer` and its parts."""

from unteach.trainer.trainer import UnlearningTrainer

__all__ = ["UnlearningTrainer"]
