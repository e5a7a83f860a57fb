"""Weight files as `{name: Tensor}`: a tensor is a slice of a file plus a dtype and a shape, read only when asked.

Nothing here decodes a weight, and nothing trusts a header: every count, length and offset is checked against the file
before it is used, so that a cut or hostile file gives one FormatError and never a wrong tensor.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, InputError, Unsupported, many, need
from .decoding import AGAIN, parse
from .files import exists, inside, open_regular, read, regular
from .pickles import check_pickle

Bytes = NDArray[np.uint8]

SAFETENSORS_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself (safetensors/src/tensor.rs)
MAX_DIMS = 8  # of a tensor: a convolution over a film has 5, ggml knows 4


class Remote(Protocol):
    """A weight file that is not here."""

    @property
    def name(self) -> str:
        """Its path in its repository."""

    def read(self, at: int, size: int, within: tuple[int, int]) -> Bytes:
        """Bytes [at, at+size) of the file, uint8; they lie in a tensor that has the bytes `within`."""

    def stop(self) -> None:
        """Nobody wants any more of it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array on disk. `dtype` is "F32", "BF16", … or a ggml type; `shape` is row-major, slowest axis first.

    `data` is set instead of `path` when the bytes are in memory (a .bin checkpoint, or a tensor that we made), `remote` when they are
    to come from elsewhere.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path | None = None
    offset: int = 0
    data: Bytes | None = None
    remote: Remote | None = None

    def read(self, start: int = 0, size: int | None = None) -> Bytes:
        """Bytes [start, start+size) of the tensor, uint8[size]; FormatError if the file has become shorter."""
        size = self.nbytes - start if size is None else size
        if self.data is not None:
            return self.data[start : start + size]
        if self.remote is not None:
            return self.remote.read(self.offset + start, size, (self.offset, self.offset + self.nbytes))
        buffer = np.empty(size, np.uint8)
        assert self.path is not None
        with open_regular(self.path, 0) as f:
            f.seek(self.offset + start)
            read_into(f, buffer, self.path)
        return buffer

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_into(f: Any, buffer: Any, path: Path) -> None:
    """Fill `buffer` from an unbuffered file; FormatError when the file ends first."""
    view, done = memoryview(buffer), 0
    while done < len(view):
        n = f.readinto(view[done:])
        if not n:
            raise FormatError(f"{path.name}: the file became shorter while it was read", "nothing else may write to it")
        done += n


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same, read 16 MiB at a time."""
    step = 1 << 24
    parts = ((i, min(step, a.nbytes - i)) for i in range(0, a.nbytes, step))
    return (a.dtype, a.shape) == (b.dtype, b.shape) and all(np.array_equal(a.read(*part), b.read(*part)) for part in parts)


def in_memory(name: str, array: NDArray[Any], dtype: str) -> Tensor:
    """A tensor that we made ourselves, from a NumPy array whose bytes are those of `dtype`."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Tensor(name, dtype, tuple(array.shape), flat.nbytes, data=flat)


# -- safetensors ------------------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors in file order, `__metadata__`) of one .safetensors file.

    Format: 8 bytes little-endian header length N, N bytes of JSON, then the data; the tensors cover it without gap or
    overlap (safetensors README, "Format"). Raises FormatError for anything else. The safetensors library tells no offsets, by which
    bytes are copied in the kernel, and maps the file, so that one that is cut meanwhile would end the process.
    """
    with open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
        head = f.read(8)
        if len(head) < 8:
            raise _bad(path, f"it has {size} bytes, too few for a safetensors header")
        (length,) = struct.unpack("<Q", head)
        if length > min(MAX_HEADER, size - 8):
            raise _bad(path, f"its header claims {length:,} bytes, the file has {size:,}")
        text = f.read(length)
    try:
        header = parse(text)
    except ValueError as e:
        raise _bad(path, f"its header is not valid JSON ({_short(e)})") from None
    if not isinstance(header, dict):
        raise _bad(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "its __metadata__ is not an object of strings")
    tensors = [_safetensor(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    end = 8 + length
    for t in tensors:
        if t.offset != end:
            raise _bad(path, f"tensor {t.name!r} starts at byte {t.offset:,}, expected {end:,}: a gap or an overlap")
        end += t.nbytes
    if end != size:
        raise _bad(path, f"its tensors end at byte {end:,}, the file at {size:,}")
    return {t.name: t for t in tensors}, metadata


def _safetensor(path: Path, name: str, entry: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        typed = isinstance(dtype, str) and isinstance(entry["shape"], list)
        numbers = (*shape, begin, stop)
        if not typed or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in numbers):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise _bad(path, f"the entry of tensor {name!r} is malformed") from None
    if dtype not in SAFETENSORS_BITS:
        raise Unsupported(f"{path.name}: tensor {name!r} has the unknown dtype {dtype!r}", "convert it to F32 or BF16")
    if len(shape) > MAX_DIMS:
        raise _bad(path, f"tensor {name!r} has {len(shape):,} dimensions, at most {MAX_DIMS} are read")
    nbytes = math.prod(shape) * SAFETENSORS_BITS[dtype] // 8
    if stop - begin != nbytes:
        raise _bad(path, f"tensor {name!r} of shape {list(shape)} needs {nbytes:,} bytes, its offsets give {stop - begin:,}")
    return Tensor(name, dtype, shape, nbytes, path, data_start + begin)


def safetensors_header(tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """(header bytes, offset of each tensor in the file). Widest dtypes come first, so that every tensor is aligned.

    As the safetensors library writes it, which takes whole tensors and has the metadata in another order each time: no output would be
    twice the same, and no interrupted one could be gone on with.
    """
    ordered = sorted(tensors, key=lambda t: -SAFETENSORS_BITS[t.dtype])
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for t in ordered:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [position, position + t.nbytes]}
        position += t.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {t.name: start + header[t.name]["data_offsets"][0] for t in ordered}


# -- PyTorch pickles --------------------------------------------------------------------------------------------------


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model*.bin, memory-mapped, through torch with weights_only (no code is run).

    Raises InputError when torch is missing or refuses the file.
    """
    need("torch", f"{path.name}, a PyTorch pickle,")
    import torch

    check_pickle(path)
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be mapped
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises half a dozen types here; each means the same to the user
        raise InputError(f"{path.name}: torch refuses to load it safely ({type(e).__name__})", "use the model's safetensors") from None
    tensors = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(name, str) or not dense or value.dtype not in names:
            raise Unsupported(f"{path.name}: entry {name!r} is not a plain tensor of floats", "use the model's safetensors")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise FormatError(f"{path.name}: tensor {name!r} of shape {list(value.shape)} claims more than it holds", "download it again")
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        tensors[name] = Tensor(name, names[value.dtype], tuple(value.shape), flat.nbytes, data=flat)
    if not tensors:
        raise InputError(f"{path.name} holds no tensors", "use the model's safetensors")
    return tensors


# -- a checkpoint folder ----------------------------------------------------------------------------------------------

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
SHARDS = re.compile(r"(?:model-(\d{5})-of-(\d{5})\.safetensors|pytorch_model-(\d{5})-of-(\d{5})\.bin)")
DISAGREE = "the index and the shards do not belong together: download them again"


def read_folder(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """(tensors, weight files) of a folder in HF layout: one file or shards, safetensors before pickles. Shards are read without an
    index, too, when all of them are there, as llama.cpp's converter reads them.

    Raises InputError for a missing shard or no weights, FormatError when the index and the shards disagree or a shard's
    name leaves the folder.
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if exists(folder, index) and exists(folder, single):
            raise InputError(f"{folder} holds both {single} and {index}: readers take one or the other", "delete what does not belong")
        if exists(folder, index):
            return _read_shards(folder, index)
        if exists(folder, single):
            return _read_weights(regular(folder, single, weights=True)), [folder / single]
    return _read_unindexed(folder)


def _read_unindexed(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    weights = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    matches = [m for m in map(SHARDS.fullmatch, weights) if m]
    if not matches:
        there = f": {', '.join(weights[:3])} is named otherwise" if weights else f": none of {', '.join(INDEXES + SINGLES)}"
        hint = (
            f"rename it to {SINGLES[0]} if it is the whole model"
            if weights
            else "point at a folder as transformers saves it, or at a .gguf"
        )
        raise InputError(f"no weights in {folder}{there}", hint)
    first, count = matches[0][0], int(matches[0][2] or matches[0][4])
    matches = [m for m in matches if m[0].endswith(Path(first).suffix)]
    files = [re.sub(r"-\d{5}-of", f"-{i + 1:05d}-of", first) for i in range(count)]
    if count == 0 or len(matches) != count or files != [m[0] for m in matches]:
        raise InputError(
            f"{folder} has shards without an index, and they are not one whole model: {', '.join(m[0] for m in matches[:3])}",
            f"download all {count} of them, and {INDEXES[0]}",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        held = _read_weights(regular(folder, file, weights=True))
        if twice := tensors.keys() & held.keys():
            raise FormatError(f"{file} holds {min(twice)!r}, as another shard does", DISAGREE)
        tensors |= held
    return tensors, [folder / f for f in files]


def weight_map_of(folder: Path, index: str) -> dict[str, str]:
    """tensor -> file, as an index says. FormatError where it says something else."""
    weight_map = load_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise FormatError(f"{index}: weight_map is not an object of file names", "download the index again")
    return weight_map


def _read_shards(folder: Path, index: str) -> tuple[dict[str, Tensor], list[Path]]:
    weight_map = weight_map_of(folder, index)
    files = sorted(set(weight_map.values()))
    missing = [f for f in files if inside(folder, f, weights=True) and not exists(folder, f)]
    if missing:
        raise InputError(
            f"{len(missing)} of {many(len(files), 'shard')} {'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing[:3])}",
            "download them again",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_weights(regular(folder, file, weights=True)).items():
            if weight_map.get(name) != file:
                raise FormatError(f"{file} holds tensor {name!r}, which {index} places in {weight_map.get(name)!r}", DISAGREE)
            tensors[name] = tensor
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise FormatError(f"{index} names {many(len(absent), 'tensor')} that no shard holds, first {absent[0]!r}", DISAGREE)
    return {name: tensors[name] for name in weight_map}, [folder / f for f in files]


def _read_weights(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; FormatError for anything else, duplicate keys included."""
    try:
        value = parse(read(path.parent, path.name))
    except ValueError as e:
        raise FormatError(f"{path.name} is not valid JSON: {_short(e)}", AGAIN) from None
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} is not a JSON object", AGAIN)
    return value


def _bad(path: Path, what: str) -> FormatError:
    return FormatError(f"{path.name} is not a sound safetensors file: {what}", "download or write it again")


def _short(e: BaseException) -> str:
    lines = str(e).splitlines() or [type(e).__name__]
    return lines[0][:160]
