"""Reads the rows of a tensor's sources in the order that its target wants, some MiB at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats.dtypes import PLAIN, to_f32
from ..formats.gguf_file import block_sizes, type_numbers
from ..formats.orders import Order
from ..formats.tensors import SAFETENSORS_BITS, Bytes, Tensor

READ_PIECE = 4 << 20  # bytes read at a time
STRIP = 32 << 20  # bytes of a transposed matrix held at a time; one expert of Llama 4 has 168 MB, and is read once for each strip
WORTH_A_READ = 1 << 16  # bytes; smaller gaps are read along


def block_of(dtype: str) -> tuple[int, int]:
    """(elements, bytes) of one block."""
    if dtype in SAFETENSORS_BITS:
        return 1, SAFETENSORS_BITS[dtype] // 8
    _, elements, stored = block_sizes()[type_numbers()[dtype]]
    return elements, stored


def row_size(dtype: str, shape: Sequence[int]) -> tuple[int, int]:
    """(elements, bytes) of one row; a vector's "row" is one block, an element where the type has none."""
    elements, stored = block_of(dtype)
    columns = shape[-1] if len(shape) > 1 else elements
    return columns, columns // elements * stored


def plain_dtype(sources: Sequence[Tensor], order: Order) -> str:
    """The type of what `ordered` yields: the sources', or F32 where matrices of a block type must be transposed."""
    turned, dtype = order.target_turned or any(order.sources_turned), order.dtype(sources)
    return "F32" if turned and dtype not in PLAIN else dtype


def count(sources: Sequence[Tensor], order: Order) -> tuple[int, int]:
    """(blocks of a target, how many of them cannot be made apart: those of one transposed matrix)."""
    unit = order.unit or 1
    blocks = _rows(sources, order).rows // unit if order.index is None else len(order.index)
    return blocks, max(1, order.target_turned // unit)


def ordered(sources: Sequence[Tensor], order: Order, first: int = 0, last: int | None = None) -> Iterator[Bytes]:
    """The sources' bytes in the target's order of rows: whole rows, whole blocks of `unit` rows; blocks [first, last) of the target."""
    rows, unit = _rows(sources, order), order.unit or 1
    index = range(rows.rows // unit) if order.index is None else order.index
    last, batch = len(index) if last is None else last, max(1, READ_PIECE // (unit * rows.row))

    def read(start: int, stop: int) -> Bytes:
        data = blocks(rows, index[start:stop], unit)
        return _interleaved(data, unit, rows.row, order.turn) if order.turn else data

    if order.target_turned:
        yield from _transposed(read, first, last, batch, order.target_turned // unit, unit, rows)
        return
    for at in range(first, last, batch):
        yield read(at, min(at + batch, last))


def _rows(sources: Sequence[Tensor], order: Order) -> Rows:
    dtype = plain_dtype(sources, order)
    return Mxfp4(sources, dtype) if order.mxfp4 else Ends(sources, order.sources_turned, dtype, order.zeros)


def _interleaved(data: Bytes, unit: int, row: int, turn: int) -> Bytes:
    """In each block of `unit` rows (2, unit/2) become (unit/2, 2), or back. Whole rows move, so any type will do."""
    halves = (2, unit // 2) if turn > 0 else (unit // 2, 2)
    return np.ascontiguousarray(data.reshape(-1, *halves, row).swapaxes(1, 2)).reshape(-1)


def _transposed(read: Callable[[int, int], Bytes], first: int, last: int, batch: int, whole: int, unit: int, rows: Rows) -> Iterator[Bytes]:
    """Matrices of `whole` blocks each, transposed: rows of the result, in strips of at most `STRIP` bytes."""
    kind = _kind(rows.dtype)
    columns, height = rows.row // kind.itemsize, whole * unit
    step = max(1, STRIP // (height * kind.itemsize))
    for matrix in range(first, last, whole):
        for left in range(0, columns, step):
            strip = np.empty((min(step, columns - left), height), kind)
            for at in range(matrix, matrix + whole, batch):
                stop, row = min(at + batch, matrix + whole), (at - matrix) * unit
                strip[:, row : row + (stop - at) * unit] = read(at, stop).view(kind).reshape(-1, columns)[:, left : left + step].T
            yield strip.reshape(-1).view(np.uint8)


def _kind(dtype: str) -> np.dtype[Any]:
    """Unsigned integers of the size of `dtype`: NumPy moves them faster than as many single bytes."""
    return np.dtype(f"u{PLAIN[dtype]}")


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
        self.row = row_size(dtype, (1, 32 * self.blocks))[1]

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
    """Tensors laid end to end, and `zeros` rows behind them, as rows of `row` bytes. `turned`: rows of the matrices of each that are
    transposed first."""

    def __init__(self, sources: Sequence[Tensor], turned: Sequence[int], dtype: str, zeros: int = 0) -> None:
        self.sources, self.dtype = sources, dtype
        self.turned = tuple(turned) or (0,) * len(sources)
        self.starts: list[int] = []
        self.rows, self.row = 0, 0
        for t, n in zip(sources, self.turned, strict=True):
            columns, self.row = (n, n * PLAIN[dtype]) if n else row_size(t.dtype if dtype == t.dtype else dtype, t.shape)
            self.starts.append(self.rows)
            self.rows += t.elements // columns
        self.filled = self.rows
        self.rows += zeros
        self.kept: tuple[int, int, int, NDArray[Any]] | None = None  # the strip that was transposed last

    def read(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop), uint8."""
        pieces = []
        for k, first in enumerate(self.starts):
            end = self.starts[k + 1] if k + 1 < len(self.starts) else self.filled
            a, b = max(start, first), min(stop, end)
            if a < b:
                pieces.append(self._of(k, a - first, b - first))
        if stop > self.filled:
            pieces.append(np.zeros((stop - max(start, self.filled)) * self.row, np.uint8))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _of(self, k: int, start: int, stop: int) -> Bytes:
        t = self.sources[k]
        if not self.turned[k]:
            row = row_size(t.dtype, t.shape)[1]
            data = t.read(start * row, (stop - start) * row)
            return data if t.dtype == self.dtype else to_f32(data, t.dtype).view(np.uint8)
        matrices = t.shape[0] if len(t.shape) > 2 else 1
        high, found = t.elements // self.turned[k] // matrices, []  # rows of a matrix once it is transposed
        while start < stop:
            matrix, row = divmod(start, high)
            first, strip = self._strip(k, matrix, row, high, t.nbytes // self.turned[k] // matrices)
            n = min(stop - start, first + len(strip) - row)
            found.append(strip[row - first : row - first + n].reshape(-1).view(np.uint8))
            start += n
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _strip(self, k: int, matrix: int, row: int, high: int, stored: int) -> tuple[int, NDArray[Any]]:
        """(first row, rows) of a strip of source `k`'s transposed matrix that has `row`; as stored its rows have `stored` bytes."""
        if self.kept is None or self.kept[:2] != (k, matrix) or not 0 <= row - self.kept[2] < len(self.kept[3]):
            self.kept = None
            t, width, kind = self.sources[k], self.turned[k], _kind(self.dtype)
            last = min(row + max(1, STRIP // self.row), high)
            batch, strip = max(1, READ_PIECE // stored), np.empty((last - row, width), kind)
            for at in range(0, width, batch):
                n = min(batch, width - at)
                data = t.read((matrix * width + at) * stored, n * stored)
                plain = (data if t.dtype == self.dtype else to_f32(data, t.dtype)).view(kind)
                strip[:, at : at + n] = plain.reshape(n, -1)[:, row:last].T
            self.kept = k, matrix, row, strip
        return self.kept[2:]
