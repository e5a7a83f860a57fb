"""Reads the rows of a tensor's sources in the order that its target wants, some MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import PLAIN, to_f32
from ..gguf_file import block_sizes, type_numbers
from ..layout import Order
from ..tensors import Bytes, Tensor

READ_PIECE = 4 << 20  # bytes read at a time
WORTH_A_READ = 1 << 16  # bytes; shorter runs are taken out of one longer read


def block_of(dtype: str) -> tuple[int, int]:
    """(elements, bytes) of one block."""
    if dtype in PLAIN:
        return 1, PLAIN[dtype]
    _, elements, stored = block_sizes()[type_numbers()[dtype]]
    return elements, stored


def row_of(dtype: str, shape: Sequence[int]) -> tuple[int, int]:
    """(elements, bytes) of one row; a vector's "row" is one block, an element where the type has none."""
    elements, stored = block_of(dtype)
    columns = shape[-1] if len(shape) > 1 else elements
    return columns, columns // elements * stored


def plain_dtype(sources: Sequence[Tensor], order: Order) -> str:
    """The type of what `ordered` yields: the sources', or F32 where matrices of a block type must be transposed."""
    turned, dtype = order.target_turned or any(order.sources_turned), sources[0].dtype
    return "F32" if turned and dtype not in PLAIN else dtype


def ordered(sources: Sequence[Tensor], order: Order) -> Iterator[Bytes]:
    """The sources' bytes in the target's order of rows: whole rows, whole blocks of `unit` rows, whole matrices."""
    ends = Ends(sources, order.sources_turned, plain_dtype(sources, order))
    unit = order.unit or 1
    index: Sequence[int] = range(ends.rows // unit) if order.index is None else order.index
    batch = max(1, READ_PIECE // (unit * ends.row))
    if whole := order.target_turned // unit:
        batch = max(1, batch // whole) * whole
    for at in range(0, len(index), batch):
        data = ends.blocks(index[at : at + batch], unit)
        if order.turn:
            data = _interleaved(data, unit, ends.row, order.turn)
        yield _transposed(data, order, ends) if order.target_turned else data


def _interleaved(data: Bytes, unit: int, row: int, turn: int) -> Bytes:
    """In each block of `unit` rows (2, unit/2) become (unit/2, 2), or back. Whole rows move, so any type will do."""
    halves = (2, unit // 2) if turn > 0 else (unit // 2, 2)
    return np.ascontiguousarray(data.reshape(-1, *halves, row).swapaxes(1, 2)).reshape(-1)


def _transposed(data: Bytes, order: Order, ends: Ends) -> Bytes:
    size = PLAIN[ends.dtype]
    matrices = data.reshape(-1, order.target_turned, ends.row // size, size)
    return np.ascontiguousarray(matrices.swapaxes(1, 2)).reshape(-1)


class Ends:
    """Tensors laid end to end, as rows of `row` bytes. `turned`: rows of the matrices of each that are transposed first."""

    def __init__(self, sources: Sequence[Tensor], turned: Sequence[int], dtype: str) -> None:
        self.sources, self.dtype = sources, dtype
        self.turned = tuple(turned) or (0,) * len(sources)
        self.starts: list[int] = []
        self.rows, self.row = 0, 0
        for t, n in zip(sources, self.turned, strict=True):
            columns, self.row = (n, n * PLAIN[dtype]) if n else row_of(t.dtype if dtype == t.dtype else dtype, t.shape)
            self.starts.append(self.rows)
            self.rows += t.elements // columns
        self.kept: tuple[int, int, Bytes] | None = None  # the matrix that was transposed last

    def blocks(self, index: Sequence[int], unit: int) -> Bytes:
        """The blocks of `unit` rows with these numbers, one after another, uint8."""
        if isinstance(index, range) and index.step == 1:
            return self.read(index.start * unit, index.stop * unit)
        numbers = np.asarray(index)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        if len(numbers) * unit * self.row >= WORTH_A_READ * len(runs):
            return np.concatenate([self.read(int(r[0]) * unit, (int(r[-1]) + 1) * unit) for r in runs])
        first, last = int(numbers.min()), int(numbers.max()) + 1
        span = self.read(first * unit, last * unit).reshape(last - first, -1)
        return np.ascontiguousarray(span[numbers - first]).reshape(-1)

    def read(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop), uint8."""
        pieces = []
        for k, first in enumerate(self.starts):
            end = self.starts[k + 1] if k + 1 < len(self.starts) else self.rows
            a, b = max(start, first), min(stop, end)
            if a < b:
                pieces.append(self._of(k, a - first, b - first))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _of(self, k: int, start: int, stop: int) -> Bytes:
        t = self.sources[k]
        if not self.turned[k]:
            row = row_of(t.dtype, t.shape)[1]
            data = t.read(start * row, (stop - start) * row)
            return data if t.dtype == self.dtype else to_f32(data, t.dtype).view(np.uint8)
        high = t.elements // self.turned[k] // (t.shape[0] if len(t.shape) > 2 else 1)  # rows of a matrix once it is transposed
        found = [
            self._matrix(k, m)[max(start - m * high, 0) * self.row : (stop - m * high) * self.row]
            for m in range(start // high, -(-stop // high))
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _matrix(self, k: int, m: int) -> Bytes:
        """Matrix `m` of source `k`, transposed."""
        if self.kept is None or self.kept[:2] != (k, m):
            t, size = self.sources[k], PLAIN[self.dtype]
            n = t.nbytes // t.shape[0] if len(t.shape) > 2 else t.nbytes
            data = t.read(m * n, n)
            plain: NDArray[np.uint8] = data if t.dtype == self.dtype else to_f32(data, t.dtype).view(np.uint8)
            turned = np.ascontiguousarray(plain.reshape(self.turned[k], -1, size).swapaxes(0, 1)).reshape(-1)
            self.kept = k, m, turned
        return self.kept[2]
