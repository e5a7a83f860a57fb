"""What a reader makes of a model, or why it refuses it."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import Inexpressible
from ..rope import Array

NOT_MODELLED = "no claim about this model can be made; validate it in the runtime itself"


class Reading(NamedTuple):
    """What a reader makes of a model. `ignored` names what it overlooks although it would change this reading."""

    inv_freq: Array  # float64[D/2], radians per token
    multiplier: float  # of cos and sin
    context: int | None  # the longest text it takes unasked, in tokens; None: it has no limit of its own
    ignored: tuple[str, ...]


class Refuses(Inexpressible):
    """The reader raises or aborts on this model: the message is its reason."""
