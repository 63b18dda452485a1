from unteach.config.unlearning import UnlearningConfig
from unteach.run.pipeline import unlearn
from unteach.trainer import UnlearningTrainer

__version__: str
__all__ = ["UnlearningConfig", "UnlearningTrainer", "unlearn"]
