"""Is it better tuned: a short training at the extended context (YaRN, arXiv 2309.00071, Section 4.1), whose result is written,
validated and published as any other model."""

from .emit import emit
from .run import Finetuned, Preparation, finetune, prepare_training, run_training

__all__ = ["Finetuned", "Preparation", "emit", "finetune", "prepare_training", "run_training"]
