"""Element types: bytes of one type to float32 and float32 to bytes of another, in NumPy.

Each function works on a flat piece of a tensor that is a whole number of blocks, and is exact or rounds as ggml's
reference code does, so that the result equals llama.cpp's byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, Unsupported
from .tensors import Bytes

F32 = NDArray[np.float32]
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # those that are written without llama.cpp
NATIVE = frozenset(t.upper() for t in OUTTYPES)
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
    """Bytes of `dtype` from float32[n]; to nearest-even, or ggml's reference quantization for the types of `BLOCKS_OF_32`."""
    if dtype == "F32":
        return x.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint8)
    if dtype == "BF16":
        return _bf16(x)
    if dtype in BLOCKS_OF_32:
        with np.errstate(over="ignore", invalid="ignore"):  # `refuse_lost` says it
            return BLOCKS_OF_32[dtype](x, scratch or Scratch())
    raise Unsupported(f"cannot write the type {dtype}", f"one of {', '.join(OUTTYPES)}")


INFINITE = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}  # the bits of infinity; what orders above it is a NaN


def refuse_lost(x: F32, data: Bytes, dtype: str) -> None:
    """Raise InputError where `data`, made by `from_f32` of `x`, does not stand for it: a NaN or an infinity in a block, a number
    that became an infinity. A NaN or an infinity stays what it is in a plain type.

    Also what llama-quantize refuses, by ggml-quants.c, `ggml_validate_row_data`.
    """
    if dtype in INFINITE:
        bits = data.view(np.uint16) & np.uint16(0x7FFF)
        if bits.max(initial=0) >= INFINITE[dtype] and (np.isfinite(x) & (bits >= INFINITE[dtype])).any():
            raise InputError(f"the weights are too large for {dtype}", "--outtype f32" if dtype == "BF16" else "--outtype bf16 or f32")
    if dtype in BLOCKS_OF_32 and len(x):
        if not (np.isfinite(x.max()) and np.isfinite(x.min())):  # NumPy's maximum of a NaN is a NaN
            raise InputError("the weights hold a NaN or an infinity, which cannot be quantized", "--outtype f32 keeps them as they are")
        scales = 4 if dtype.endswith("_1") else 2  # bytes: a scale, or a scale and a minimum
        if not np.isfinite(data.reshape(len(x) // 32, -1)[:, :scales].view(np.float16)).all():
            raise InputError(f"the weights are too large for the float16 scales of {dtype}", "--outtype bf16 or f32")


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


def _symmetric(x: F32, bits: int, scratch: Scratch) -> tuple[F32, NDArray[np.uint8]]:
    """(scale d, uint8[n] quants) of Q4_0 and Q5_0: d = m/−2^(bits−1), where m is the block's first value of largest magnitude.

    Source: ggml-quants.c, `quantize_row_q4_0_ref`, `quantize_row_q5_0_ref`; ggml_quantize_chunk without an imatrix is these.
    """
    # As int32 the largest positive float is the maximum, as uint32 the most negative one.
    positive = _largest(x.view(np.int32), np.maximum, "most", scratch).view(np.float32)
    negative = _largest(x.view(np.uint32), np.maximum, "least", scratch).view(np.float32)
    most = np.where(np.abs(negative) > np.abs(positive), negative, positive)
    tied = np.flatnonzero((np.abs(negative) == np.abs(positive)) & (negative != positive))
    blocks = x.reshape(-1, 32)
    most[tied] = blocks[tied, np.abs(blocks[tied]).argmax(axis=1)]  # +m and −m: the first of them
    most += np.float32(0)  # a block of zeros has m = +0
    half = np.float32(1 << (bits - 1))
    scale = (most / -half).astype(np.float32, copy=False)
    return scale, _quants(blocks, None, scale, half + np.float32(0.5), bits, scratch)


def _asymmetric(x: F32, bits: int, scratch: Scratch) -> tuple[F32, F32, NDArray[np.uint8]]:
    """(scale d, minimum m, uint8[n] quants) of Q4_1 and Q5_1: d = (max − min)/(2^bits − 1).

    Source: ggml-quants.c, `quantize_row_q4_1_ref`, `quantize_row_q5_1_ref`.
    """
    most = _largest(x, np.maximum, "most", scratch)
    least = _largest(x, np.minimum, "least", scratch) + np.float32(0)
    blocks = x.reshape(-1, 32)
    zero = np.flatnonzero(least == 0)
    least[zero] = blocks[zero, (blocks[zero] == 0).argmax(axis=1)]  # +0 and −0: the first of them
    with np.errstate(over="ignore"):
        scale = (most - least + np.float32(0)) / np.float32((1 << bits) - 1)
    return scale, least, _quants(blocks, least, scale, np.float32(0.5), bits, scratch)


def _largest(x: NDArray[Any], better: np.ufunc, into: str, scratch: Scratch) -> NDArray[Any]:
    """[n/32], the `better` of each 32 neighbours, in the buffer `into`; each of the five steps halves them."""
    for step in (*"abcd", into):
        x = better(x[0::2], x[1::2], out=scratch.take(step, len(x) // 2).view(x.dtype))
    return x


def _quants(blocks: F32, least: F32 | None, scale: F32, rounding: np.float32, bits: int, scratch: Scratch) -> NDArray[np.uint8]:
    """uint8[n]: trunc((x − least)/d + rounding), at most 2^bits − 1. Where 1/d overflows C leaves it open; x86 has 0."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        lost = np.flatnonzero(~np.isfinite(inverse) | ~np.isfinite(scale))
        inverse[lost] = 0
        work = scratch.take("scaled", blocks.size).view(np.float32).reshape(-1, 32)
        if least is None:
            np.multiply(blocks, inverse[:, None], out=work)
        else:
            np.subtract(blocks, least[:, None], out=work)
            work *= inverse[:, None]
        work += rounding
        quants = scratch.take("quants", blocks.size // 4).view(np.uint8)
        np.copyto(quants.reshape(-1, 32), work, casting="unsafe")
    np.minimum(quants, np.uint8((1 << bits) - 1), out=quants)
    quants.reshape(-1, 32)[lost] = 0
    return quants


def _packed(layout: list[Any], quants: NDArray[np.uint8], **scales: F32) -> Bytes:
    """The blocks' bytes: float16 scales, the fifth bits (if `layout` has "qh"), then byte j = quant j | quant j+16 << 4."""
    out = np.empty(len(quants) // 32, np.dtype(layout))
    with np.errstate(over="ignore"):
        for name, scale in scales.items():
            out[name] = scale
    if "qh" in out.dtype.names:  # type: ignore[operator]
        out["qh"] = np.packbits(quants & np.uint8(16), bitorder="little").view(np.uint32)
        quants &= np.uint8(15)
    words = quants.view(np.uint64).reshape(-1, 4)
    for i in range(2):
        out["qs"][:, i] = words[:, i] | words[:, i + 2] << np.uint64(4)
    return out.view(np.uint8).reshape(-1)


SCALE, MINIMUM, HIGH_BITS, NIBBLES = ("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "<u8", 2)


def q4_0(x: F32, scratch: Scratch) -> Bytes:
    """Blocks of 32: a float16 scale, then 16 bytes of two quants. uint8[n/32·18]."""
    scale, quants = _symmetric(x, 4, scratch)
    return _packed([SCALE, NIBBLES], quants, d=scale)


def q4_1(x: F32, scratch: Scratch) -> Bytes:
    """Blocks of 32: a float16 scale and minimum, then 16 bytes of two quants. uint8[n/32·20]."""
    scale, least, quants = _asymmetric(x, 4, scratch)
    return _packed([SCALE, MINIMUM, NIBBLES], quants, d=scale, m=least)


def q5_0(x: F32, scratch: Scratch) -> Bytes:
    """Blocks of 32: a float16 scale, 32 fifth bits, then 16 bytes of two quants' other bits. uint8[n/32·22]."""
    scale, quants = _symmetric(x, 5, scratch)
    return _packed([SCALE, HIGH_BITS, NIBBLES], quants, d=scale)


def q5_1(x: F32, scratch: Scratch) -> Bytes:
    """Blocks of 32: a float16 scale and minimum, 32 fifth bits, then 16 bytes of two quants' other bits. uint8[n/32·24]."""
    scale, least, quants = _asymmetric(x, 5, scratch)
    return _packed([SCALE, MINIMUM, HIGH_BITS, NIBBLES], quants, d=scale, m=least)


BLOCKS_OF_32: dict[str, Callable[[F32, Scratch], Bytes]] = {"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0}


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
