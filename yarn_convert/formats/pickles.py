"""What a PyTorch pickle would ask for, before torch opens it: a file of 2 MB can unpack to gigabytes.

A checkpoint is a zip (torch/serialization.py, `_save`) with one pickle, `data.pkl`, that names storages, and each storage as a record
of its own, nothing compressed; or, before torch 1.6 (`_legacy_save`), a row of pickles and then the storages. The pickles are read here
with stand-ins for the few names that a checkpoint needs, so that nothing of torch runs and nothing is as large as it says.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FormatError, InputError
from .files import open_regular

MAX_PICKLE = 1 << 22  # bytes, each of which may make an object of 200; one tensor takes 200 bytes, so that is 20,000 of them in a file
MAX_DIRECTORY = 1 << 23  # bytes of the zip's directory: 80 a storage
LEGACY = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
WIDTHS = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1}
STORAGES = {f"{name}Storage": width for name, width in WIDTHS.items()}
HINT = "use the model's safetensors"


def check_pickle(path: Path) -> None:
    """Raise FormatError for a PyTorch file whose pickles or storages do not fit what the file holds; InputError where a pickle needs
    more than tensors do."""
    with open_regular(path) as f:
        size = f.seek(0, 2)
        f.seek(0)
        found: dict[str, int] = {}
        try:
            pickles = [_data_pkl(path, f, size)] if f.read(4) == b"PK\3\4" else None
            if pickles is None:
                f.seek(0)
                pickles = [_Part(path, f, MAX_PICKLE)]
                if _Stub(pickles[0], found).load() != LEGACY:
                    raise _bad(path, "it is neither a zip nor in torch's older format")
                for _ in range(2):  # the protocol, and what machine it was
                    _Stub(pickles[0], found).load()
            _Stub(pickles[0], found).load()
        except (FormatError, InputError):
            raise
        except Exception as e:  # a pickle can fail in any way
            raise _bad(path, f"its pickle cannot be read ({type(e).__name__})") from None
    if (claimed := sum(found.values())) > size:
        raise _bad(path, f"its {len(found):,} storages claim {claimed:,} bytes, the file has {size:,}")


def _data_pkl(path: Path, f: BinaryIO, size: int) -> _Part:
    """The pickle of a zip, whose directory is looked at before it is read."""
    f.seek(max(0, size - (1 << 16) - 22))
    tail = f.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise _bad(path, "it is a zip without a directory")
    length = struct.unpack_from("<I", tail, at + 12)[0]
    if length == 0xFFFFFFFF or tail[at - 20 : at - 16] == b"PK\6\7":  # a larger one says it elsewhere
        f.seek(struct.unpack_from("<Q", tail, at - 12)[0])
        length = struct.unpack_from("<Q", f.read(56), 40)[0]
    if length > MAX_DIRECTORY:
        raise _bad(path, f"its directory has {length:,} bytes, at most {MAX_DIRECTORY:,} are read")
    with zipfile.ZipFile(f) as z:
        records = z.infolist()
        if packed := next((r for r in records if r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size), None):
            raise _bad(path, f"its record {packed.filename!r} is compressed, to unpack to {packed.file_size:,} bytes")
        found = [r for r in records if r.filename.endswith("/data.pkl")]
        if len(found) != 1:
            raise _bad(path, f"it holds {len(found)} files data.pkl")
        if found[0].file_size > MAX_PICKLE:
            raise _bad(path, f"its pickle has {found[0].file_size:,} bytes, at most {MAX_PICKLE:,} are read")
        with z.open(found[0]) as pkl:
            return _Part(path, io.BytesIO(pkl.read()), MAX_PICKLE)


class _Part:
    """A file of which an unpickler reads at most so many bytes, and no further than it needs."""

    def __init__(self, path: Path, f: BinaryIO, most: int) -> None:
        self.path, self.f, self.left = path, f, most

    def read(self, n: int = -1) -> bytes:
        return self._taken(self.f.read(min(self.left + 1, n) if n >= 0 else self.left + 1))

    def readline(self) -> bytes:
        return self._taken(self.f.readline(self.left + 1))

    def _taken(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise _bad(self.path, f"its pickle has more than {MAX_PICKLE:,} bytes")
        return data


class _Stub(pickle._Unpickler):  # the one in Python: that in C makes room for a memo of any size
    """Reads the pickle of a checkpoint without any of torch: only the storages that it names are kept, by their key."""

    def __init__(self, part: _Part, found: dict[str, int]) -> None:
        super().__init__(part)
        self.path, self.found = part.path, found

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _nothing
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        raise InputError(f"{self.path.name} holds more than tensors: {module}.{name}", HINT)

    def persistent_load(self, pid: Any) -> None:
        kind, width, key, _, count, *_ = pid
        if kind != "storage" or not (isinstance(width, int) and isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise ValueError
        self.found[key] = max(self.found.get(key, 0), count * width)


def _nothing(*arguments: Any) -> None:
    """In a tensor's place."""


def _bad(path: Path, what: str) -> FormatError:
    return FormatError(f"{path.name} is not a sound PyTorch file: {what}", HINT)
