"""What a reader makes of a model, or why it refuses it."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import Inexpressible
from ..rope import Array, Table

NOT_MODELLED = "no claim about this model can be made; validate it in the runtime itself"


class Beside(NamedTuple):
    """What a model computes with its rope dict besides the table of the layers that a Reading is of."""

    logits: float = 1.0  # multiplies the attention logits, on top of the multiplier squared: DeepSeek's mscale_all_dim
    other_layers: Table | None = None  # RoPE of the other layers, where there are such with one of their own: gemma3's sliding ones
    floor: int = 0  # tokens after which, and after as many again, logits grow by a temperature of the position alone; 0: there is none
    pairs: str = ""  # "halves" of a head or "neighbours", where the model turns the other: whatever the table, another computation


class Reading(NamedTuple):
    """What a reader makes of a model. `ignored` names what it overlooks although it would change this reading."""

    inv_freq: Array  # float64[D/2], radians per token
    multiplier: float  # of cos and sin
    context: int | None  # the longest text it takes unasked, in tokens; None: it has no limit of its own
    ignored: tuple[str, ...]
    beside: Beside = Beside()


class Refuses(Inexpressible):
    """The reader raises or aborts on this model: the message is its reason."""
