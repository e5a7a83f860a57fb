"""Reads the rows of a tensor's sources in the order that its target wants, some MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..dtypes import PLAIN, to_f32
from ..gguf_file import block_sizes, type_numbers
from ..layout import Order
from ..tensors import Bytes, Tensor

READ_PIECE = 4 << 20  # bytes read at a time
WORTH_A_READ = 1 << 16  # bytes; smaller gaps are read along


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
    turned, dtype = order.target_turned or any(order.sources_turned), order.dtype(sources)
    return "F32" if turned and dtype not in PLAIN else dtype


def ordered(sources: Sequence[Tensor], order: Order) -> Iterator[Bytes]:
    """The sources' bytes in the target's order of rows: whole rows, whole blocks of `unit` rows, whole matrices."""
    dtype, unit = plain_dtype(sources, order), order.unit or 1
    ends = Mxfp4(sources, dtype) if order.mxfp4 else Ends(sources, order.sources_turned, dtype)
    index = range(ends.rows // unit) if order.index is None else order.index
    batch = max(1, READ_PIECE // (unit * ends.row))
    if whole := order.target_turned // unit:
        batch = max(1, batch // whole) * whole
    for at in range(0, len(index), batch):
        data = blocks(ends, index[at : at + batch], unit)
        if order.turn:
            data = _interleaved(data, unit, ends.row, order.turn)
        yield _transposed(data, order, ends) if order.target_turned else data


def _interleaved(data: Bytes, unit: int, row: int, turn: int) -> Bytes:
    """In each block of `unit` rows (2, unit/2) become (unit/2, 2), or back. Whole rows move, so any type will do."""
    halves = (2, unit // 2) if turn > 0 else (unit // 2, 2)
    return np.ascontiguousarray(data.reshape(-1, *halves, row).swapaxes(1, 2)).reshape(-1)


def _transposed(data: Bytes, order: Order, ends: Rows) -> Bytes:
    size = PLAIN[ends.dtype]
    matrices = data.reshape(-1, order.target_turned, ends.row // size, size)
    return np.ascontiguousarray(matrices.swapaxes(1, 2)).reshape(-1)


class Rows(Protocol):
    """Rows that can be read: so many, of so many bytes, of this type."""

    rows: int
    row: int
    dtype: str

    def read(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop), uint8."""


def blocks(rows: Rows, index: Sequence[int] | NDArray[np.int64], unit: int) -> Bytes:
    """The blocks of `unit` rows with these numbers, one after another, uint8. Those that lie near each other are read at once."""
    if isinstance(index, range) and index.step == 1:
        return rows.read(index.start * unit, index.stop * unit)
    numbers = np.asarray(index, dtype=np.int64)
    by_place = np.argsort(numbers, kind="stable")
    far = np.flatnonzero((np.diff(numbers[by_place]) - 1) * unit * rows.row >= WORTH_A_READ) + 1
    out = np.empty((len(numbers), unit * rows.row), np.uint8)
    for near in np.split(by_place, far):
        first, last = int(numbers[near[0]]), int(numbers[near[-1]]) + 1
        out[near] = rows.read(first * unit, last * unit).reshape(last - first, -1)[numbers[near] - first]
    return out.reshape(-1)


class Mxfp4:
    """Nibbles, uint8[…, columns/32, 16] in the order of the numbers, and their scales, uint8[…, columns/32], as rows of GGUF's
    MXFP4 or, dequantized, of F32.

    A block is its scale and 16 bytes, byte j with numbers j and j+16 (ggml-common.h, block_mxfp4), where the published
    files have 2j and 2j+1 (transformers, integrations/mxfp4.py).
    """

    def __init__(self, sources: Sequence[Tensor], dtype: str) -> None:
        (self.nibbles, self.scales), self.dtype = sources, dtype
        self.blocks = self.scales.shape[-1]
        self.rows = self.scales.elements // self.blocks
        self.row = row_of(dtype, (1, 32 * self.blocks))[1]

    def read(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop), uint8."""
        n = (stop - start) * self.blocks
        pairs = self.nibbles.read(start * self.blocks * 16, n * 16).reshape(n, 16)
        numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(n, 32)
        out = np.empty((n, 17), np.uint8)
        out[:, 0] = self.scales.read(start * self.blocks, n)
        out[:, 1:] = numbers[:, :16] | numbers[:, 16:] << 4
        packed = out.reshape(-1)
        return packed if self.dtype == "MXFP4" else to_f32(packed, "MXFP4").view(np.uint8)


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
