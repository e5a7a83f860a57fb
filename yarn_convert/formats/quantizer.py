"""llama.cpp's own quantizer, through the libraries that llama-cpp-python brings: which type each tensor gets, and the bytes.

`types_of` asks llama.cpp itself, without the weights; `chunk` is the function that llama-quantize calls for some rows. Rows are
quantized one by one, so that any split over pieces and threads gives the bytes of `llama_model_quantize` (src/llama-quant.cpp).
Where llama-cpp-python is missing, the gguf package writes the types of `BLOCKS_OF_32`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, OutputError, Unsupported, UsageError, install
from .dtypes import F32, OUTTYPES, PLAIN
from .gguf_file import DEFAULT_ALIGNMENT, Field, Value, encode_header, nbytes_of, type_numbers
from .imatrix import EMBEDDINGS, OTHER_MODEL, Imatrix
from .tensors import Bytes, Tensor

INSTALL = install("llama-cpp", newer=True)
QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION


class Mix(NamedTuple):
    """`ftype`: the number that general.file_type gets (llama.h, enum llama_ftype); `default`: the type of most tensors."""

    ftype: int
    default: str


MIXES = {  # tools/quantize/quantize.cpp, QUANT_OPTIONS; src/llama-quant.cpp, llama_ftype_get_default_type
    "q4_0": Mix(2, "Q4_0"), "q4_1": Mix(3, "Q4_1"), "q8_0": Mix(7, "Q8_0"), "q5_0": Mix(8, "Q5_0"), "q5_1": Mix(9, "Q5_1"),
    "q2_k": Mix(10, "Q2_K"), "q2_k_s": Mix(21, "Q2_K"),
    "q3_k_s": Mix(11, "Q3_K"), "q3_k_m": Mix(12, "Q3_K"), "q3_k_l": Mix(13, "Q3_K"), "q3_k": Mix(12, "Q3_K"),
    "q4_k_s": Mix(14, "Q4_K"), "q4_k_m": Mix(15, "Q4_K"), "q4_k": Mix(15, "Q4_K"),
    "q5_k_s": Mix(16, "Q5_K"), "q5_k_m": Mix(17, "Q5_K"), "q5_k": Mix(17, "Q5_K"), "q6_k": Mix(18, "Q6_K"),
    "iq1_s": Mix(24, "IQ1_S"), "iq1_m": Mix(31, "IQ1_M"),
    "iq2_xxs": Mix(19, "IQ2_XXS"), "iq2_xs": Mix(20, "IQ2_XS"), "iq2_s": Mix(28, "IQ2_XS"), "iq2_m": Mix(29, "IQ2_S"),
    "iq3_xxs": Mix(23, "IQ3_XXS"), "iq3_xs": Mix(22, "IQ3_S"), "iq3_s": Mix(26, "IQ3_S"), "iq3_m": Mix(27, "IQ3_S"),
    "iq4_nl": Mix(25, "IQ4_NL"), "iq4_xs": Mix(30, "IQ4_XS"),
    "tq1_0": Mix(36, "TQ1_0"), "tq2_0": Mix(37, "TQ2_0"), "q1_0": Mix(40, "Q1_0"), "mxfp4_moe": Mix(38, "MXFP4"),
}  # fmt: skip
TYPES_WITH_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}  # llama-quant.cpp, tensor_requires_imatrix
BLOCKS_OF_32 = tuple(t.upper() for t in OUTTYPES if t.upper() not in PLAIN)  # the gguf package quantizes these as ggml does


# -- the bytes --------------------------------------------------------------------------------------------------------


@cache
def _ggml() -> Any:
    """libggml-base of llama-cpp-python, without importing the package. UsageError when it is not installed, or does not load."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(f, "lib") for f in spec.submodule_search_locations or ()] if spec else []
    override = os.environ.get("LLAMA_CPP_LIB_PATH")  # llama_cpp.py: where the user wants them from
    found = [
        p for f in ([Path(override)] if override else folders) for p in f.glob("*ggml-base.*") if p.suffix in (".so", ".dylib", ".dll")
    ]
    if not found:
        raise UsageError("this --outtype needs llama.cpp's quantizer, and llama-cpp-python is not installed", INSTALL)
    kind, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    try:
        lib = ctypes.CDLL(str(found[0]))
        for name, arguments, result in (  # ggml.h
            ("ggml_quantize_chunk", [kind, pointer, pointer, size, size, size, pointer], ctypes.c_size_t),
            ("ggml_quantize_requires_imatrix", [kind], ctypes.c_bool),
            ("ggml_validate_row_data", [kind, pointer, ctypes.c_size_t], ctypes.c_bool),
            ("ggml_type_name", [kind], ctypes.c_char_p),
        ):
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError):
        raise UsageError("llama.cpp's quantizer in the installed llama-cpp-python cannot be used", INSTALL) from None
    return lib


@cache
def _by_ggml() -> bool:
    """Whether ggml quantizes, for it is installed."""
    try:
        _ggml()
    except (UsageError, ImportError):  # a finder may raise the second
        return False
    return True


def check_installed() -> None:
    """Raise UsageError where llama-cpp-python is not installed."""
    _ggml()


@cache
def _writable() -> set[str]:
    """The ggml types that `ggml_quantize_chunk` writes: it aborts the process for any other."""
    types = {mix.default for mix in MIXES.values()} | TYPES_WITH_IMATRIX | {"F32", "F16", "BF16"}
    numbers, name = type_numbers(), _ggml().ggml_type_name  # an older library does not know the newest types
    return {t for t in types if t in numbers and (name(numbers[t]) or b"").decode().upper() == t}


def chunk(x: F32, dtype: str, imatrix: F32 | None = None) -> Bytes:
    """The bytes of float32[rows, columns] in the ggml type `dtype`; `imatrix` is float32[columns], the weights of squared errors.

    Thread-safe, and other Python threads run meanwhile. Raises Unsupported for a type that cannot be written or a row that is not
    a whole number of blocks, UsageError when `dtype` needs an imatrix or llama-cpp-python, and InputError for values that llama.cpp
    refuses: what is not finite, or does not fit the type's float16 scales.
    """
    package = dtype in BLOCKS_OF_32 and imatrix is None and not _by_ggml()
    if not package and dtype not in _writable():
        raise Unsupported(f"llama.cpp does not quantize to {dtype}", INSTALL)
    columns, size = x.shape[1], nbytes_of(dtype, x.shape)
    if imatrix is None and not package and _ggml().ggml_quantize_requires_imatrix(type_numbers()[dtype]):
        raise UsageError(f"{dtype} needs an importance matrix", "--imatrix FILE, as llama-imatrix writes it")
    if imatrix is not None and imatrix.shape != (columns,):
        raise UsageError(f"the imatrix has {imatrix.size:,} values for a row of {columns:,}", "it was made for another model")
    x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():  # some of ggml's searches abort the process for a NaN
        raise InputError("the weights hold a NaN or an infinity, which cannot be quantized", "--outtype f32 keeps them as they are")
    out, fits = with_package(x, dtype) if package else _with_ggml(x, dtype, size, imatrix)
    if not fits:
        raise InputError(f"the weights are too large for the float16 scales of {dtype}", "--outtype bf16 or f32")
    return out


def _with_ggml(x: F32, dtype: str, size: int, imatrix: F32 | None) -> tuple[Bytes, bool]:
    """(the bytes by ggml, whether its own check takes them)."""
    lib, number, out = _ggml(), type_numbers()[dtype], np.empty(size, np.uint8)
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
    written = lib.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, None if weights is None else weights.ctypes.data)
    return out, written == size and lib.ggml_validate_row_data(number, out.ctypes.data, size)


def with_package(x: F32, dtype: str) -> tuple[Bytes, bool]:
    """(the bytes of one of `BLOCKS_OF_32` by the gguf package, whether every float16 scale and minimum is a number).

    By itself the package differs from ggml in the sign of a zero, where that is a block's largest magnitude or its minimum: ggml takes
    +0 for the one and the first of the block's zeros for the other. So all zeros of a block are given that sign, which changes no quant.
    """
    from gguf import GGMLQuantizationType, quants

    blocks = x.reshape(-1, 32)
    if dtype.endswith("_1"):
        zeros = blocks == 0
        blocks = np.where(zeros, np.take_along_axis(blocks, zeros.argmax(axis=1, keepdims=True), axis=1), blocks)
    else:
        blocks = blocks + np.float32(0)
    with np.errstate(all="ignore"):
        out: Bytes = quants.quantize(blocks.reshape(x.shape), GGMLQuantizationType[dtype]).reshape(-1)
    scales = out.reshape(len(blocks), -1)[:, : 4 if dtype.endswith("_1") else 2]
    return out, bool(np.isfinite(scales.view(np.float16)).all())


def rows(x: F32, dtype: str, imatrix: F32 | None, first: int, per_expert: int) -> Bytes:
    """`chunk` for rows [first, first + len(x)) of a tensor of experts with `per_expert` rows each.

    `imatrix` is float32[experts, columns]; a tensor without experts has one, and as many rows as it has.
    """
    if imatrix is None:
        return chunk(x, dtype)
    parts, at = [], 0
    while at < len(x):
        expert, row = divmod(first + at, per_expert)
        n = min(len(x) - at, per_expert - row)
        parts.append(chunk(x[at : at + n], dtype, imatrix[expert]))
        at += n
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


# -- the plan ---------------------------------------------------------------------------------------------------------


def types_of(fields: Mapping[str, Field | Value], tensors: Iterable[Tensor], mix: str, imatrix: Imatrix | None = None) -> dict[str, str]:
    """The ggml type that llama-quantize would give each tensor of a GGUF with these fields; `tensors` have their source types.

    llama.cpp makes a dry run over a header whose tensors have two rows each, in a temporary folder: of a shape it looks at the columns,
    and whether there is more than one row or expert. It runs in a process of its own, which its assertions may end.
    Raises UsageError without llama-cpp-python, for an unknown mix and for an imatrix that is needed and missing, Unsupported
    when llama.cpp refuses the header, OutputError where the temporary folder takes no files.
    """
    if mix not in MIXES:
        raise UsageError(f"unknown quantization {mix!r}", f"one of {', '.join(MIXES)}")
    _ggml()
    tensors = list(tensors)
    small = [_small(t) for t in tensors]
    kept = {k: v for k, v in fields.items() if not k.startswith("split.") and k != "general.alignment"}
    header, offsets = encode_header(kept, small, DEFAULT_ALIGNMENT)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, "model.gguf")
            with open(path, "wb") as f:
                f.write(header)
                f.truncate(max((offsets[t.name] + t.nbytes for t in small), default=0) + DEFAULT_ALIGNMENT)
            types = _parse(_run(path, mix, imatrix is not None))
    except OSError as e:
        raise OutputError(f"cannot write the temporary file of the dry run: {e.strerror}", "TMPDIR names a folder with space") from None
    if types.keys() != {t.name for t in tensors}:
        raise Unsupported("llama.cpp's dry run did not name the type of each tensor", INSTALL)
    if unknown := set(types.values()) - type_numbers().keys():
        raise Unsupported(f"the gguf package does not know the type {min(unknown)}", "pip install -U gguf")
    _check_imatrix(tensors, types, mix, imatrix)
    return types


def _small(t: Tensor) -> Tensor:
    shape = (*(min(d, 2) for d in t.shape[:-1]), *t.shape[-1:])
    return Tensor(t.name, t.dtype, shape, nbytes_of(t.dtype, shape))


LINE = re.compile(r"^\[ *\d+/ *\d+\] (.*?) +- \[[ \d,]*\], type = *(\w+), size = [^()\n]*(?:\((\w+)\))?$", re.MULTILINE)


def _parse(log: str) -> dict[str, str]:
    """Types by tensor from the lines of a dry run: "[ 1/ 20] NAME - [shape], type = f16, size = 1 MiB -> 1 MiB (q4_K)"."""
    return {name: (new or old).upper() for name, old, new in LINE.findall(log)}


def _run(path: Path, mix: str, has_imatrix: bool) -> str:
    """llama.cpp's log of a dry run over `path`."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _dry_run; _dry_run()"
    command = [sys.executable, "-c", code, str(path.resolve()), str(MIXES[mix].ftype), "imatrix" if has_imatrix else ""]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}  # else a failed assertion looks for a debugger
    done = subprocess.run(command, cwd=path.parent, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    log = done.stdout.decode("utf-8", "surrogateescape")
    if done.returncode == TOO_OLD:
        raise UsageError("this llama-cpp-python is too old to plan a quantization", INSTALL)
    if done.returncode:
        lines = [line for line in (log + done.stderr.decode("utf-8", "replace")).splitlines() if line.strip()]
        reason = next(
            (line for line in lines if "failed to quantize" in line or "GGML_ASSERT" in line), lines[-1] if lines else "no reason"
        )
        raise Unsupported(f"llama.cpp cannot quantize this model to {mix}: {reason.strip()}", "--outtype q8_0, or f16")
    return log


TOO_OLD = 3  # exit code


def _dry_run() -> None:
    """The child: sys.argv is path, ftype and "imatrix" or ""; llama.cpp's log goes to standard output."""
    import llama_cpp

    path, ftype, has_imatrix = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    if not hasattr(params, "dry_run"):
        raise SystemExit(TOO_OLD)
    log: list[bytes] = []
    callback = llama_cpp.llama_log_callback(lambda level, text, data: log.append(text))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    params.dry_run, params.ftype, params.nthread = True, int(ftype), 1
    if has_imatrix:  # only that there is one matters to the types
        one = (ctypes.c_float * 1)(1)
        entries = (llama_cpp.llama_model_imatrix_data * 2)()
        entries[0].name, entries[0].data, entries[0].size = b"-", ctypes.cast(one, type(entries[0].data)), 1
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    failed = llama_cpp.llama_model_quantize(os.fsencode(path), b"", ctypes.byref(params))
    sys.stdout.buffer.write(b"".join(log))
    sys.stdout.flush()
    raise SystemExit(1 if failed else 0)


def _check_imatrix(tensors: list[Tensor], types: Mapping[str, str], mix: str, imatrix: Imatrix | None) -> None:
    """UsageError for a tensor that cannot do without an imatrix and has none, or has one of another size."""
    for t in tensors:
        dtype = types[t.name]
        low = dtype in TYPES_WITH_IMATRIX or (dtype == "Q2_K" and mix == "q2_k_s")
        found = imatrix.of(t) if imatrix and dtype != t.dtype else None
        if not low or dtype == t.dtype or found is not None or t.name in EMBEDDINGS:
            continue
        if imatrix is None:
            raise UsageError(f"{mix} needs an importance matrix", "--imatrix FILE, as llama-imatrix writes it; or q3_k_m, iq4_xs")
        raise UsageError(f"{imatrix.file} has nothing for {t.name}, which {mix} makes {dtype}", OTHER_MODEL)


# -- the header -------------------------------------------------------------------------------------------------------


def quantized_fields(fields: Mapping[str, Field | Value], mix: str, imatrix: Imatrix | None = None) -> dict[str, Field | Value]:
    """The fields of llama-quantize's file: what it sets is moved to the end, and a split's fields go.

    Sources: llama-quant.cpp, `llama_model_quantize_impl`; quantize.cpp, `main`; gguf.cpp, `gguf_set_val_u32`.
    """
    new: dict[str, Field | Value] = {
        "general.quantization_version": Value("u32", QUANTIZATION_VERSION),
        "general.file_type": Value("u32", MIXES[mix].ftype),
    }
    if imatrix:
        new["quantize.imatrix.file"] = _short(imatrix.file)
        if imatrix.dataset is not None:
            new["quantize.imatrix.dataset"] = _short(imatrix.dataset)
        new["quantize.imatrix.entries_count"] = Value("u32", len(imatrix.weights))
        if imatrix.chunks:
            new["quantize.imatrix.chunks_count"] = Value("u32", imatrix.chunks)
    return {k: v for k, v in fields.items() if k not in new and not k.startswith("split.")} | new


def _short(text: str) -> Value:
    """A string as llama-quantize keeps it: the first 127 bytes (llama.h, llama_model_kv_override)."""
    return Value("str", text.encode("utf-8", "surrogateescape")[:127])
