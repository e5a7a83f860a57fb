"""What a conversion is worth: the paper's measures, on a real model. Whether it is right is the question of `validate`."""

from .advise import AdviseWish, advise
from .documents import Texts
from .journal import Journal, journal_of
from .passkey import PasskeyWish, passkey
from .perplexity import Wish, perplexity
from .result import finished, outputs_of, put_on_record
from .subjects import Settings
from .temperature import TemperatureWish, temperature

__all__ = [
    "AdviseWish", "Journal", "PasskeyWish", "Settings", "TemperatureWish", "Texts", "Wish",
    "advise", "finished", "journal_of", "outputs_of", "passkey", "perplexity", "put_on_record", "temperature",
]  # fmt: skip
