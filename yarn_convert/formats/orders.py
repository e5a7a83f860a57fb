"""The rows of a tensor in terms of others': what a target takes from its sources, and the inverse of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..families.schema import Times
from .changes import CHANGES
from .tensors import Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """The rows of a target, taken from its sources laid end to end.

    They come in blocks of `unit` rows (0: all are one block), in the order of `index` (None: as they lie). Inside a block
    rows (2, unit/2) become (unit/2, 2) where `turn` is 1, and back where it is −1. `sources_turned` and `target_turned` are
    rows of the matrices that are transposed before and after that, 0 for none. `change`: what is made of every number, a key of
    `CHANGES`; "" for none. `times`: what it is multiplied by, the rows' numbers being the target's. `shape` is the target's, where it
    does not follow from the sources' and `index`. `zeros`: so many rows of them lie behind the sources. `mxfp4`: the
    sources are two, nibbles in the order of the numbers and the scales of 32 of them, and their rows are MXFP4's.
    """

    unit: int = 0
    index: Sequence[int] | NDArray[np.int64] | None = None
    turn: int = 0
    sources_turned: tuple[int, ...] = ()
    target_turned: int = 0
    change: str = ""
    times: Times = ()
    shape: tuple[int, ...] = ()
    zeros: int = 0
    mxfp4: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the bytes stay as they are."""
        moved = self.turn or any(self.sources_turned) or self.target_turned or self.zeros or self.mxfp4
        return self.index is None and not (moved or self.change or self.times)

    def dtype(self, sources: Sequence[Tensor]) -> str:
        """The type of what the sources hold; F32 where they differ."""
        if self.mxfp4:
            return "MXFP4"
        first = sources[0].dtype
        return first if len(sources) == 1 or all(t.dtype == first for t in sources) else "F32"


AS_IT_IS = Order()


@dataclass(frozen=True, slots=True)
class Apart:
    """An HF tensor taken apart: `parts` are the orders of the GGUF tensors that it gives, one for all of them where no rows are chosen.

    `shape` is the HF tensor's, () where any will do.
    """

    parts: tuple[Order, ...]
    shape: tuple[int, ...] = ()

    def back(self) -> Order:
        """The inverse: the HF tensor from the GGUF tensors laid end to end. What was transposed first is so last, and vice versa."""
        first, turned = self.parts[0], any(p.target_turned for p in self.parts)
        if first.zeros:  # the rows that lie before them
            return Order(1, range(self.shape[0]), shape=self.shape)
        alike = all((p.unit, p.turn) == (first.unit, first.turn) for p in self.parts)
        chosen = None if first.index is None else [p.index if alike else rows_of(p) for p in self.parts]
        return Order(
            first.unit if alike else 0,
            None if chosen is None else np.argsort(np.concatenate(chosen)),  # type: ignore[arg-type]
            -first.turn if alike else 0,
            sources_turned=tuple(p.shape[-2] if p.target_turned else 0 for p in self.parts) if turned else (),
            target_turned=self.shape[-1] if first.sources_turned else 0,
            change=CHANGES[first.change].back if first.change else "",
            shape=self.shape,
        )


def rows_of(order: Order) -> NDArray[np.int64]:
    """The rows of the source that an order takes, one by one."""
    rows = np.asarray(order.index)[:, None] * order.unit + np.arange(order.unit)
    halves = (2, order.unit // 2) if order.turn > 0 else (order.unit // 2, 2)
    return (rows.reshape(-1, *halves).swapaxes(1, 2) if order.turn else rows).reshape(-1)
