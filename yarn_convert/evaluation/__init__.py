"""What a conversion is worth: the paper's measures, on a real model. Whether it is right is the question of `validation`.

Each measure takes models, what all measures have in common, and its own options by keyword: `perplexity(["smollm2-135m"],
EvaluateOptions(methods=("none", "yarn:4")), windows=(2048, 4096))`.
"""

from ..options import EvaluateOptions, Recipe, Texts
from .advice import measure_advice
from .choices import Advice, Search, Temperature
from .divergences import measure_divergence
from .found import Divergence, LongPPL, Needle, Passkey, Perplexity, Ruler
from .journal import ResultJournal, journal_of
from .key_tokens import measure_longppl
from .measures import advise, divergence, longppl, needle, passkey, perplexity, ruler, temperature
from .needles import measure_needle
from .passkeys import measure_passkey
from .perplexities import measure_perplexity
from .result import outputs_of, put_on_record
from .rulers import measure_ruler
from .search import measure_search
from .temperatures import measure_temperature

__all__ = [
    "Advice",
    "Divergence",
    "EvaluateOptions",
    "LongPPL",
    "Needle",
    "Passkey",
    "Perplexity",
    "Recipe",
    "ResultJournal",
    "Ruler",
    "Search",
    "Temperature",
    "Texts",
    "advise",
    "divergence",
    "journal_of",
    "longppl",
    "measure_advice",
    "measure_divergence",
    "measure_longppl",
    "measure_needle",
    "measure_passkey",
    "measure_perplexity",
    "measure_ruler",
    "measure_search",
    "measure_temperature",
    "needle",
    "outputs_of",
    "passkey",
    "perplexity",
    "put_on_record",
    "ruler",
    "temperature",
]  # fmt: skip
