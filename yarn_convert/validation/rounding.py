"""The noise of a quantized file: what ggml rounds the other side of every product with a matrix to, done to the reference.

ggml multiplies a quantized row with an input that is rounded as well, by the type of the row (ggml-cpu/ggml-cpu.c,
`type_traits_cpu`, vec_dot_type): in blocks of 32 to 8 bits (Q8_0, Q8_1), of 256 for types with blocks of 256 (Q8_K), to 16 bits for
16-bit rows. The reference with its inputs rounded alike is as far from itself as llama.cpp is from it, at every position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..formats.gguf_file import block_sizes

ROUNDS = ("F32", "F16", "BF16", "Q8_0", "Q8_K")  # the finest first
SUPERBLOCK = 256
SHORTER = "F32, one bit less"


def rounds(c: Checkpoint) -> dict[int, str]:
    """Columns of matrices -> what their inputs are rounded to, one of ROUNDS but F32; the coarsest, where types differ."""
    if c.gguf is None:
        return {}
    sizes = {name: size for name, size, _ in block_sizes().values()}
    found: dict[int, str] = {}
    for t in c.tensors.values():
        if len(t.shape) > 1:
            kind = t.dtype if t.dtype in ROUNDS[:3] else "Q8_K" if sizes[t.dtype] == SUPERBLOCK else "Q8_0"
            found[t.shape[-1]] = max(kind, found.get(t.shape[-1], "F32"), key=ROUNDS.index)
    return {columns: kind for columns, kind in found.items() if kind != "F32"}


@contextlib.contextmanager
def rounding(kinds: Mapping[int, str], others: str = "") -> Iterator[None]:
    """Within it torch rounds the inputs of every product with weights, by their number of columns; `others`: all that have none."""
    import torch
    from torch.overrides import TorchFunctionMode

    products = {torch.nn.functional.linear, getattr(torch.nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None)}

    class Rounding(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in products and (kind := kinds.get(args[0].shape[-1], others)):
                args = (rounded(args[0], kind), *args[1:])
            return function(*args, **(kwargs or {}))

    with Rounding():
        yield


def rounded(x: Any, kind: str) -> Any:
    """A torch tensor as float32 after ggml's rounding (ggml-quants.c, `quantize_row_q8_0_ref`, `quantize_row_q8_K_ref`)."""
    import torch

    if kind == SHORTER:
        return one_bit_less(x.contiguous().view(torch.int32)).view(x.dtype) if x.dtype == torch.float32 else x
    if kind in ("F16", "BF16"):
        return x.to(torch.float16 if kind == "F16" else torch.bfloat16).to(x.dtype)
    blocks = x.float().reshape(-1, 32 if kind == "Q8_0" else SUPERBLOCK)
    step = blocks.abs().amax(1, keepdim=True) / 127
    quants = torch.round(blocks / step.clamp_min(torch.finfo(torch.float32).tiny))
    step = step.half().float() if kind == "Q8_0" else step
    return (quants * step).reshape(x.shape).to(x.dtype)


def one_bit_less(bits: Any) -> Any:
    """The bits of float32, as int32 in torch or NumPy, of the nearest numbers with 22 bits of fraction; ties to even."""
    return (bits + ((bits >> 1) & 1)) & ~1
