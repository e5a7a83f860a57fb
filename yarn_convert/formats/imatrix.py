"""Importance matrices as llama-imatrix writes them: the weights of squared errors of what is quantized."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, InputError, UsageError
from .dtypes import F32
from .files import open_regular
from .gguf_file import Gguf, open_gguf
from .tensors import Tensor

EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}
OTHER_MODEL = "it was made for another model: make one with llama-imatrix"


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix: by tensor the mean square of each input, float32[experts, columns] (a .dat has all in one row).

    `dataset` is the text's name, `chunks` the number of pieces of text; 0 where the file does not say.
    """

    file: str
    weights: Mapping[str, F32]
    dataset: str | None = None
    chunks: int = 0

    def of(self, tensor: Tensor) -> F32 | None:
        """float32[experts, columns] for this tensor, None where there is none; UsageError when it is of another size.

        As llama_model_quantize, which passes over a wrong size for the embedding only.
        """
        found = self.weights.get(tensor.name)
        if found is None:
            return None
        columns, experts = tensor.shape[-1], tensor.shape[0] if len(tensor.shape) == 3 else 1
        if found.size == experts * columns:
            return found.reshape(experts, columns)
        if tensor.name in EMBEDDINGS:
            return None
        raise UsageError(f"{self.file} has {found.size:,} values for {tensor.name}, which needs {experts * columns:,}", OTHER_MODEL)


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix as llama-imatrix writes it, GGUF or the older .dat. InputError or FormatError when it is none.

    Source: common/imatrix-loader.cpp; tools/quantize/quantize.cpp, `load_imatrix`.
    """
    try:
        with open_regular(path) as f:
            magic = f.read(4)
            if magic == b"GGUF":
                return _of_gguf(open_gguf(path))
            return _of_dat(path.name, magic + f.read())
    except OSError as e:
        raise InputError(f"cannot read the imatrix {path}: {e.strerror}", "give a file that llama-imatrix wrote") from None


def _of_gguf(file: Gguf) -> Imatrix:
    """Sums of squares `NAME.in_sum2` over `NAME.counts`; an expert that was never used counts as ones."""
    datasets, chunks, size = (file.get(f"imatrix.{key}") for key in ("datasets", "chunk_count", "chunk_size"))
    if not isinstance(datasets, list) or not isinstance(chunks, int) or not isinstance(size, int):
        raise _unsound(file.path.name, "imatrix.datasets, chunk_count or chunk_size is missing")
    parts: dict[str, dict[str, Tensor]] = {}
    for full, tensor in file.tensors.items():
        name, _, kind = full.rpartition(".")
        if kind in ("in_sum2", "counts"):
            parts.setdefault(name, {})[kind] = tensor
    weights = {}
    for name, pair in parts.items():
        if len(pair) != 2 or any(t.dtype != "F32" for t in pair.values()):
            raise _unsound(file.path.name, f"{name!r} has not both sums and counts in F32")
        sums, counts = (pair[kind].read().view(np.float32) for kind in ("in_sum2", "counts"))
        if len(sums) % len(counts):
            raise _unsound(file.path.name, f"{name!r} has {len(sums):,} sums and {len(counts):,} counts")
        n = np.floor(counts + np.float32(0.5))[:, None]
        with np.errstate(all="ignore"):
            mean = np.where(n > 0, sums.reshape(len(counts), -1) / n, np.float32(1))
        weights[name] = _sound(file.path.name, name, mean)
    if not weights:
        raise _unsound(file.path.name, "it has no sums")
    return Imatrix(file.path.name, weights, str(datasets[0]) if datasets else None, chunks)


def _of_dat(name: str, data: bytes) -> Imatrix:
    """int32 count; for each: length, name, calls, number of values, float32 values·calls; then chunks and the dataset."""
    weights, at = {}, 0

    def take(fmt: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + fmt, data, at)
        at += struct.calcsize("<" + fmt)
        return value

    def text() -> str:
        length = take("i")
        if not 0 <= length <= len(data):
            raise struct.error
        return bytes(take(f"{length}s")).split(b"\0")[0].decode("utf-8", "surrogateescape")

    try:
        n = take("i")
        for _ in range(n):
            tensor, calls, values = text(), take("i"), take("i")
            if values < 1 or values > len(data) // 4:
                raise struct.error
            sums = np.frombuffer(take(f"{4 * values}s"), "<f4")
            mean = (sums / np.float32(max(calls, 1))).astype(np.float32, copy=False)
            weights[tensor] = _sound(name, tensor, mean.reshape(1, -1))
    except struct.error:
        raise _unsound(name, f"it ends or lies at byte {at:,}") from None
    if not weights:
        raise _unsound(name, "it has no entries")
    chunks, dataset = 0, ""
    with contextlib.suppress(struct.error):  # files of early versions end here
        chunks = take("i")
        dataset = text()
    return Imatrix(name, weights, dataset or None, max(chunks, 0))


def _sound(file: str, name: str, values: F32) -> F32:
    """`values`; FormatError for what is no mean square. By negative ones some of ggml's searches never end."""
    if not np.isfinite(values).all():
        raise _unsound(file, f"{name!r} holds a NaN or an infinity")
    if (values < 0).any():
        raise _unsound(file, f"{name!r} holds a negative number")
    return values


def _unsound(file: str, why: str) -> FormatError:
    return FormatError(f"{file} is not a sound importance matrix: {why}", "make one with llama-imatrix")
