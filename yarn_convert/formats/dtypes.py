"""Element types: bytes of any type to float32, and float32 to bytes of a plain one; `quantizer` has those of blocks.

Each function works on a flat piece of a tensor that is a whole number of blocks, and is exact or rounds as ggml's
reference code does, so that the result equals llama.cpp's byte for byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, Unsupported
from .tensors import Bytes

F32 = NDArray[np.float32]
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # those that are written without llama.cpp
PLAIN = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}  # bytes an element


def to_f32(data: Bytes, dtype: str, into: F32 | None = None) -> F32:
    """float32[n] from the bytes of `dtype`; exact for every type but F64. Unsupported for a type that has no reader.

    `into`, of n elements at least, saves a fresh MiB from the system, which costs more than the arithmetic in it.
    """
    if dtype == "F32":
        return data.view(np.float32)
    if dtype == "F16":
        return data.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        n = data.nbytes // 2
        wide = np.empty(n, np.uint32) if into is None else into[:n].view(np.uint32)
        np.copyto(wide, data.view(np.uint16))
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F64":
        return data.view(np.float64).astype(np.float32)
    return _dequantize(data, dtype)


def from_f32(x: F32, dtype: str) -> Bytes:
    """Bytes of a plain `dtype` from float32[n], to nearest-even. Unsupported for another type."""
    if dtype == "F32":
        return x.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):  # `refuse_lost` says it
            return x.astype(np.float16).view(np.uint8)
    if dtype == "BF16":
        return _bf16(x)
    raise Unsupported(f"cannot write the type {dtype}", f"one of {', '.join(OUTTYPES)}")


INFINITE = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}  # the bits of infinity; what orders above it is a NaN


def refuse_lost(x: F32, data: Bytes, dtype: str) -> None:
    """Raise InputError where a number of `x` became an infinity in `data`, made by `from_f32` of it; what is none stays what it is.

    Also what llama-quantize refuses, by ggml-quants.c, `ggml_validate_row_data`.
    """
    if dtype in INFINITE:
        bits = data.view(np.uint16) & np.uint16(0x7FFF)
        if bits.max(initial=0) >= INFINITE[dtype] and (np.isfinite(x) & (bits >= INFINITE[dtype])).any():
            raise InputError(f"the weights are too large for {dtype}", "--outtype f32" if dtype == "BF16" else "--outtype bf16 or f32")


def _bf16(x: F32) -> Bytes:
    """Round to nearest even; a NaN stays a (quiet) NaN (ggml-impl.h, `ggml_compute_fp32_to_bf16`)."""
    bits = x.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16).astype(np.uint16) | np.uint16(64)
    return rounded.view(np.uint8)


def _dequantize(data: Bytes, dtype: str) -> F32:
    """Any ggml block type, through the gguf package's own reader."""
    from gguf import GGMLQuantizationType, quants

    try:
        return np.ascontiguousarray(quants.dequantize(data.reshape(1, -1), GGMLQuantizationType[dtype]).reshape(-1), dtype=np.float32)
    except (KeyError, NotImplementedError):
        raise Unsupported(f"cannot read weights of type {dtype}", "start from the unquantized model") from None
