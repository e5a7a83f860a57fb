"""What a conversion is worth: the paper's measures, on a real model. Whether it is right is the question of `validate`."""

from .documents import Texts
from .journal import Journal, journal_of
from .perplexity import Wish, perplexity
from .result import finished
from .subjects import Settings

__all__ = ["Journal", "Settings", "Texts", "Wish", "finished", "journal_of", "perplexity"]
