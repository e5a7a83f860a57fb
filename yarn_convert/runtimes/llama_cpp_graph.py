"""What is seen of llama.cpp's graph while ggml's scheduler computes it, for the worker. Imports NumPy alone."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

STILL = {"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"}  # operations that compute nothing
ROWS = "GET_ROWS"  # copies rows: llama.cpp keeps the embedding of tokens on the CPU (src/llama-model.cpp, load_tensors: dev_input)


class GgmlTensor(ctypes.Structure):
    """struct ggml_tensor of ggml/include/ggml.h, as far as it is read: type, size and place of what a name has."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4), ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32), ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip


def watched(llama_cpp: Any, names: list[str], n: int, found: dict[str, Any]) -> Any:
    """A callback of ggml's scheduler that keeps the tensors of these names, float32[n, numbers], as it computes them."""

    def keep(address: int, asks: bool, _: Any) -> bool:
        t = GgmlTensor.from_address(address)
        name = t.name.decode(errors="replace")
        if name not in names:
            return not asks
        if not asks and t.type == 0 and n in t.ne[1:3]:
            rows = np.lib.stride_tricks.as_strided(
                np.ctypeslib.as_array(ctypes.cast(t.data, ctypes.POINTER(ctypes.c_float)), (1,)), t.ne[::-1], t.nb[::-1]
            )
            found[name] = rows.copy().reshape(n, -1)
        return True

    return llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(keep)


def left(llama_cpp: Any, ggml: Any, device: int, found: set[str]) -> Any:
    """A callback of ggml's scheduler that keeps the names of the operations which `device` does not compute, but for those above: where it
    has no kernel for one, the scheduler gives it to the CPU, and says nothing.

    What a device computes lies in its own kind of buffer. No tensor is asked for, so that the scheduler hands over its graph whole, as it
    does without a callback (ggml/src/ggml-backend.cpp, ggml_backend_sched_compute_splits).
    """
    own = ggml.ggml_backend_dev_buffer_type(device)

    def note(address: int, _: bool, __: Any) -> bool:
        buffer = GgmlTensor.from_address(address).buffer
        if not buffer or ggml.ggml_backend_buffer_get_type(buffer) != own:
            found.update({ggml.ggml_op_desc(address).decode()} - STILL - {ROWS})
        return False

    return llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(note)
