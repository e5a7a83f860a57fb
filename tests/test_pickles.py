"""PyTorch files that ask for more than they hold: refused before torch opens them, in little memory; sound ones are read as ever."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from yarn_convert.errors import FormatError, InputError
from yarn_convert.formats.pickles import MAX_PICKLE, check_pickle
from yarn_convert.formats.tensors import read_torch

torch = pytest.importorskip("torch")


def zipped(path: Path, pkl: bytes, how: int = zipfile.ZIP_STORED, name: str = "archive/data.pkl", data: bytes = bytes(64)) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(zipfile.ZipInfo(name), pkl, how)
        z.writestr("archive/data/0", data)
        z.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_read(legacy: bool, tmp_path: Path) -> None:
    weights = {
        f"layer.{i}": torch.arange(6.0).reshape(2, 3).to(dtype) for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16))
    }
    shared = torch.nn.Parameter(torch.ones(2, 2))
    state = collections.OrderedDict(weights, a=shared, b=shared.detach().T)
    state._metadata = {"": {"version": 1}}
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    check_pickle(path)
    read = read_torch(path)
    assert {n: (t.dtype, t.shape) for n, t in read.items()}["layer.1"] == ("BF16", (2, 3))
    assert read["layer.0"].read().view(np.float32).tolist() == list(range(6))
    assert read["b"].read().view(np.float32).tolist() == [1.0] * 4


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """The pickle of one tensor with so many numbers in its storage."""
    pid = b"(X\7\0\0\0storage" + f"ctorch\n{kind}\n".encode() + b"X" + struct.pack("<I", len(key)) + key.encode() + b"X\3\0\0\0cpu"
    pid += b"\x8a\x08" + struct.pack("<q", count) + b"tQ"
    return b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\0K\1\x85K\1\x85\x89ccollections\nOrderedDict\n)RtRs."


BAD = [
    ("a compressed record", lambda p: zipped(p, pickle.dumps({}) + bytes(1 << 24), zipfile.ZIP_DEFLATED), "compressed, to unpack to"),
    ("a long pickle", lambda p: zipped(p, bytes(MAX_PICKLE + 1)), "its pickle has 4,194,305 bytes"),
    ("no pickle", lambda p: zipped(p, b"", name="archive/other"), "0 files data.pkl"),
    ("a storage of 2^50 numbers", lambda p: zipped(p, storage(1 << 50)), "claim 4,503,599,627,370,496 bytes"),
    ("a storage of less than none", lambda p: zipped(p, storage(-8)), "cannot be read"),
    ("a storage of another kind", lambda p: zipped(p, storage(4, kind="save")), "more than tensors: torch.save"),
    ("a memo of 2^31", lambda p: zipped(p, b"\x80\x02}r" + struct.pack("<I", 2**31) + b"1."), "cannot be read"),
    ("a byte array of 2^40", lambda p: zipped(p, b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."), "cannot be read"),
    ("nested without end", lambda p: zipped(p, b"\x80\x02" + b"](" * 1_000_000), "cannot be read"),
    ("a cut pickle", lambda p: zipped(p, storage(4)[:-1]), "cannot be read"),
    ("code", lambda p: zipped(p, b"cos\nsystem\n(X\4\0\0\0truetR."), "more than tensors: os.system"),
    ("no zip", lambda p: p.write_bytes(b"PK\3\4" + bytes(500)), "without a directory"),
    ("no pytorch", lambda p: p.write_bytes(pickle.dumps({"a": 1})), "neither a zip nor"),
    ("empty", lambda p: p.write_bytes(b""), "cannot be read"),
    ("a large older file", lambda p: p.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\2B" + struct.pack("<I", MAX_PICKLE) + bytes(MAX_PICKLE)), "more than"),
    ("a directory of 100 MB", lambda p: p.write_bytes(b"PK\3\4" + bytes(99) + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 9, 9, 10**8, 0, 0)), "its directory"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_asks_for_more_is_refused_in_little_memory(make: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    make(path)  # type: ignore[operator]
    tracemalloc.start()
    try:
        with pytest.raises((FormatError, InputError), match=says):
            check_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 500 << 20
    finally:
        tracemalloc.stop()


def test_a_file_of_many_tensors_is_read(tmp_path: Path) -> None:
    """As many as the experts of a shard, by names as long as theirs."""
    buffer = io.BytesIO()
    torch.save({f"model.layers.{i}.block_sparse_moe.experts.{i}.w1.weight": torch.zeros(1) for i in range(2000)}, buffer)
    (tmp_path / "pytorch_model.bin").write_bytes(buffer.getvalue())
    check_pickle(tmp_path / "pytorch_model.bin")
