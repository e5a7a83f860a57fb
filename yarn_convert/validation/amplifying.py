"""A model that amplifies rounding: two sound computations of it in float32 are far apart, the more so the deeper it is.

So the reference is run once more with its numbers one bit shorter than float32 has them (`rounding.SHORTER`), and is held against itself as
any noise is. What passes by that tolerance alone proves something only where no wrong recipe can hide in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.reference import FractionDone, Reference
from ..compute.rotary import Spans
from ..rope import Effect
from .judging import NOISE, Deviation, Tolerance, compare, noisy
from .rounding import SHORTER, one_bit_less, rounding

UNDECIDED = "inconclusive"  # of a runtime: it may be right, or have a wrong recipe

# A runtime with a wrong recipe may be away from it by the tolerance, too: seen from the reference the recipe has to be twice as far, which
# is four times in squares.
APART = 4


def allowed(
    reference: Reference, e: Effect, ids: NDArray[np.int64], spans: Spans, cuts: Sequence[int], expected: NDArray[np.float32],
    tolerance: Tolerance, progress: FractionDone,
) -> Tolerance:  # fmt: skip
    """The tolerance with what one bit of float32 makes of the logits, over the whole text: it grows with the position here."""
    with rounding({}, SHORTER):
        logits = reference.logits(shorter(e), ids, spans, progress=progress)
    return noisy(tolerance, compare(expected, logits, spans, cuts, tolerance), "one bit of float32")


def shorter(e: Effect) -> Effect:
    """The frequencies with one bit less than float32 has."""
    return e._replace(inv_freq=one_bit_less(e.inv_freq.astype(np.float32).view(np.int32)).view(np.float32).astype(np.float64))


def amplified(wide: Tolerance, strict: Tolerance) -> str:
    """What is said of a model whose own rounding takes up more than the strict tolerance; "" for others."""
    if wide.nmse <= 2 * strict.nmse and wide.kl <= 2 * strict.kl:
        return ""
    apart = (wide.nmse - strict.nmse) / NOISE
    return f"the model amplifies rounding: with one bit less than float32 has, the reference itself is at NMSE {apart:.1e} from itself"


def possible(windows: Sequence[Deviation], strict: Tolerance) -> bool:
    """Whether a failure in float32 may be the model's own: not at the first position, which sees no other, so that little grows there."""
    first = windows[0]
    sound = first.within(strict) or (first.start, first.end) != (0, 1)
    return sound and not all(w.within(strict) for w in windows)


def if_told(r: Mapping[str, Any], wrong: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is otherwise of a runtime that passed by what the model amplifies, where recipes that are `wrong` may hide in that."""
    nearest = APART * r["tolerance"]["nmse"]
    hidden = [w["name"] for w in wrong if all(x["nmse"] is not None and x["nmse"] <= nearest for x in w["windows"])]
    if wrong and not hidden:
        return {}
    why = f"{r['why']}, in which {' and '.join(map(repr, hidden)) or 'a wrong recipe'} may hide"
    return {"verdict": UNDECIDED, "why": f"{why}: --cut 2 or fewer --tokens amplify less", "blind_to": hidden}
