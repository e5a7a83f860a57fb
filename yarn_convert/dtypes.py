"""Element types: bytes of one type to float32 and float32 to bytes of another, in NumPy.

Each function works on a flat piece of a tensor that is a whole number of blocks, and is exact or rounds as ggml's
reference code does, so that the result equals llama.cpp's byte for byte.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Unsupported
from .tensors import Bytes

F32 = NDArray[np.float32]
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
PLAIN = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}  # bytes an element


class Scratch:
    """Buffers that are used again for each piece: a fresh MiB from the system costs more than the arithmetic in it.

    One thread at a time; what a function puts there holds until the next call with the same scratch.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint32]] = {}

    def take(self, name: str, n: int) -> NDArray[np.uint32]:
        """uint32[n], of undefined content."""
        if name not in self.buffers or len(self.buffers[name]) < n:
            self.buffers[name] = np.empty(n, np.uint32)
        return self.buffers[name][:n]


def to_f32(data: Bytes, dtype: str, scratch: Scratch | None = None) -> F32:
    """float32[n] from the bytes of `dtype`; exact for every type but F64. Unsupported for a type that has no reader."""
    if dtype == "F32":
        return data.view(np.float32)
    if dtype == "F16":
        return data.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        wide = (scratch or Scratch()).take("wide", data.nbytes // 2)
        np.copyto(wide, data.view(np.uint16))
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F64":
        return data.view(np.float64).astype(np.float32)
    return _dequantize(data, dtype)


def from_f32(x: F32, dtype: str, scratch: Scratch | None = None) -> Bytes:
    """Bytes of `dtype` from float32[n]; to nearest-even, or ggml's reference quantization for Q8_0."""
    if dtype == "F32":
        return x.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint8)
    if dtype == "BF16":
        return _bf16(x)
    if dtype == "Q8_0":
        return q8_0(x, scratch or Scratch())
    raise Unsupported(f"cannot write the type {dtype}", f"one of {', '.join(OUTTYPES)}")


def _bf16(x: F32) -> Bytes:
    """Round to nearest even; a NaN stays a (quiet) NaN (ggml-impl.h, `ggml_compute_fp32_to_bf16`)."""
    bits = x.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16).astype(np.uint16) | np.uint16(64)
    return rounded.view(np.uint8)


def q8_0(x: F32, scratch: Scratch) -> Bytes:
    """Blocks of 32: a float16 scale d = max|x|/127, then 32 int8 = round(x/d), halves away from zero.

    Source: ggml-quants.c, `quantize_row_q8_0_ref`. Adding ±(½ − 2^−25) and truncating is exactly that rounding in
    float32; a cast to int8 truncates. uint8[n/32·34].
    """
    n = len(x)
    # |x|: without its sign a float orders as its bits do.
    largest = np.bitwise_and(x.view(np.uint32), np.uint32(0x7FFFFFFF), out=scratch.take("a", n))
    for step in "bcdef":  # the maximum of neighbours, five times: ten times as fast as a maximum along an axis of 32
        largest = np.maximum(largest[0::2], largest[1::2], out=scratch.take(step, len(largest) // 2))
    scale = largest.view(np.float32) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = np.multiply(x.reshape(-1, 32), inverse[:, None], out=scratch.take("scaled", n).view(np.float32).reshape(-1, 32))
    half = np.bitwise_and(scaled.view(np.uint32), np.uint32(0x80000000), out=scratch.take("a", n).reshape(-1, 32))
    half |= HALF_BITS
    scaled += half.view(np.float32)
    out = np.empty((len(scale), 34), np.uint8)
    out[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    np.copyto(out[:, 2:].view(np.int8), scaled, casting="unsafe")
    return out.reshape(-1)


HALF_BITS = np.float32(0.49999997).view(np.uint32)


@cache
def _quant_types() -> dict[str, Any]:
    from gguf.constants import GGMLQuantizationType

    return {t.name: t for t in GGMLQuantizationType}


def _dequantize(data: Bytes, dtype: str) -> F32:
    """Any ggml block type, through the gguf package's own reader."""
    from gguf import quants

    kind = _quant_types().get(dtype)
    try:
        if kind is None:
            raise NotImplementedError
        return np.ascontiguousarray(quants.dequantize(data.reshape(1, -1), kind).reshape(-1), dtype=np.float32)
    except NotImplementedError:
        raise Unsupported(f"cannot read weights of type {dtype}", "start from the unquantized model") from None
