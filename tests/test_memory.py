"""Memory does not grow with a tensor: stacked experts, transposed or not, in whole processes; and units cut anywhere give the same bytes.

The inputs are files of holes, a header and nothing else, so that gigabytes cost no disk; what is written is real.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CONTEXT, VOCAB, tokenizer_files

from yarn_convert.conversion import prepare
from yarn_convert.formats import quantizer
from yarn_convert.formats.gguf_file import nbytes_of
from yarn_convert.formats.orders import AS_IT_IS, Order
from yarn_convert.formats.tensors import Tensor, in_memory, safetensors_header
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.targets import moving, rows
from yarn_convert.targets.moving import Piece, WriteTensors, converted, units

LIMIT = 400_000_000  # bytes; each stacked tensor here is larger
THREADS = 4  # what a conversion holds grows with its threads
PEAK = """
import os, re, sys
os.cpu_count = lambda: {threads}
try:
    {code}
finally:
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024, file=sys.stderr)
"""
CLI = "sys.argv = ['yarn-convert', *sys.argv[1:]]; from yarn_convert.cli import main; main()"

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process held")


def peak(code: str, *arguments: str) -> int:
    """Bytes that a Python process of this code held at most; its error fails the test."""
    script = PEAK.format(threads=THREADS, code=code.replace("\n", "\n    "))
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


@pytest.fixture
def room(tmp_path: Path) -> Path:
    if shutil.disk_usage(tmp_path).free < 4 << 30:
        pytest.skip("less than 4 GiB of disk are free")
    return tmp_path


def sparse_mixtral(folder: Path, hidden: int, ff: int, experts: int) -> None:
    """One layer of a Mixtral whose weights are holes."""
    block, heads = "model.layers.0.", hidden // 128
    shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": (VOCAB, hidden) for n in ("model.embed_tokens", "lm_head")}
    shapes |= {f"{n}.weight": (hidden,) for n in ("model.norm", f"{block}input_layernorm", f"{block}post_attention_layernorm")}
    shapes |= {f"{block}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qo"} | {
        f"{block}self_attn.{n}_proj.weight": (256, hidden) for n in "kv"
    }
    shapes[f"{block}block_sparse_moe.gate.weight"] = (experts, hidden)
    for e in range(experts):
        shapes |= {
            f"{block}block_sparse_moe.experts.{e}.{n}.weight": (hidden, ff) if n == "w2" else (ff, hidden) for n in ("w1", "w2", "w3")
        }
    tensors = [Tensor(name, "BF16", shape, math.prod(shape) * 2) for name, shape in shapes.items()]
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as f:
        f.write(header := safetensors_header(tensors, {"format": "pt"})[0])
        f.truncate(len(header) + sum(t.nbytes for t in tensors))
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": ff,
        "max_position_embeddings": CONTEXT, "num_attention_heads": heads, "num_hidden_layers": 1, "num_key_value_heads": 2, "num_local_experts": experts,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)


@needs_proc
def test_experts_of_a_gigabyte_are_stacked_and_quantized_in_little_memory(room: Path) -> None:
    pytest.importorskip("llama_cpp")
    sparse_mixtral(room / "hf", 4096, 14336, 8)
    assert peak(CLI, str(room / "hf"), "--scale", "4", "--out", "gguf", "--outtype", "q4_k_m", "-o", str(room / "out.gguf"), "-q") < LIMIT
    assert (room / "out.gguf").stat().st_size > 800_000_000


@needs_proc
def test_a_stacked_tensor_of_a_gguf_becomes_experts_in_little_memory(room: Path) -> None:
    sparse_mixtral(room / "hf", 1024, 14336, 8)
    options = ConvertOptions(Recipe(method="none"), out="gguf", output=room / "in.gguf", outtype="f32")
    job = prepare(str(room / "hf"), options).plan.jobs[0]
    assert isinstance(job, WriteTensors) and max(p.target.nbytes for p, _ in job.pieces) > LIMIT
    with open(room / "in.gguf", "wb") as f:
        f.write(job.header)
        f.truncate(job.size)
    out = room / "out"
    assert peak(CLI, str(room / "in.gguf"), "--scale", "4", "--out", "safetensors", "--outtype", "bf16", "-o", str(out), "-q") < LIMIT
    assert (out / "model.safetensors").stat().st_size > 700_000_000


TURN = """
from pathlib import Path
from yarn_convert.formats.gguf_file import nbytes_of
from yarn_convert.formats.orders import Order
from yarn_convert.targets.moving import Mover, Piece, WriteTensors
from yarn_convert.formats.tensors import Tensor
folder, which = Path(sys.argv[1]), sys.argv[2]
source = Tensor("x", "BF16", (4, 5120, 16384), 4 * 5120 * 16384 * 2, folder / "holes")
shape = (4, 16384, 5120)
target = Tensor("x", "Q4_0", shape, nbytes_of("Q4_0", shape))
piece = Piece(target, (source,), Order(**{which: (5120,) if which == "sources_turned" else 5120}))
Mover(folder, lambda n: None, False).run([WriteTensors("out", b"12345678", ((piece, 32),), 32 + target.nbytes)])
"""


@needs_proc
@pytest.mark.parametrize("which", ["sources_turned", "target_turned"])
def test_experts_are_transposed_in_little_memory(room: Path, which: str) -> None:
    """Of the shape of Llama 4's, whose matrices of 168 MB lie in one tensor, columns first."""
    with open(room / "holes", "wb") as f:
        f.truncate(4 * 5120 * 16384 * 2)
    assert peak(TURN, str(room), which) < LIMIT


# -- what is cut is the same ------------------------------------------------------------------------------------------

E, H, W = 3, 64, 96  # experts, rows and columns of each
X = np.random.default_rng(0).standard_normal((E, H, W)).astype(np.float32)
SPLIT = [*range(0, W, 2), *range(1, W, 2)]  # gate and up, whose rows alternate
ORDERS: dict[str, tuple[Order, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "as they lie": (AS_IT_IS, (E, H, W), lambda x: x),
    "interleaved": (Order(16, turn=1), (E, H, W), lambda x: x.reshape(-1, 2, 8, W).swapaxes(1, 2)),
    "in another order": (Order(1, [2 * H, *range(2 * H)], shape=(2 * H + 1, W)), (2 * H + 1, W), lambda x: x.reshape(-1, W)[[2 * H, *range(2 * H)]]),
    "transposed first": (Order(sources_turned=(H,)), (E, W, H), lambda x: x.swapaxes(1, 2)),
    "transposed last": (Order(target_turned=H), (E, W, H), lambda x: x.swapaxes(1, 2)),
    "transposed first, then every second row": (
        Order(1, [m * W + i for m in range(E) for i in SPLIT], sources_turned=(H,)), (E, W, H), lambda x: x.swapaxes(1, 2)[:, SPLIT],
    ),
    "interleaved, then transposed": (
        Order(16, turn=-1, target_turned=32), (2 * E, W, 32), lambda x: x.reshape(-1, 8, 2, W).swapaxes(1, 2).reshape(-1, 32, W).swapaxes(1, 2),
    ),
    "with one added": (Order(change="x + 1"), (E, H, W), lambda x: x + 1),
}  # fmt: skip


@pytest.mark.parametrize("source", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("stacked", [True, False], ids=["one stacked tensor", "a tensor an expert"])
@pytest.mark.parametrize("kind", ORDERS)
def test_units_laid_end_to_end_are_the_tensor(kind: str, stacked: bool, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order, shape, expected = ORDERS[kind]
    if not stacked and order.sources_turned:
        order = Order(order.unit, order.index, sources_turned=order.sources_turned * E)
    x = X.reshape(1, E, H, W) if stacked else X
    sources = tuple(in_memory(str(i), one, "F32") for i, one in enumerate(x))
    if source != "F32":
        kept = [
            quantizer.chunk(f32.reshape(-1, W), source) if source == "Q8_0" else moving.from_f32(f32, source)
            for f32 in (t.read().view(np.float32) for t in sources)
        ]
        sources = tuple(Tensor(t.name, source, t.shape, len(d), data=d) for t, d in zip(sources, kept, strict=True))
    values = np.stack([moving.to_f32(t.read(), source).reshape(t.shape) for t in sources]).reshape(E, H, W)
    piece = Piece(Tensor("y", "F32", shape, math.prod(shape) * 4), sources, order)
    wanted = np.ascontiguousarray(expected(values), np.float32).tobytes()
    for unit, read, strip in ((1 << 24, 4 << 20, 32 << 20), (3000, 1000, 2000), (1, 1, 1)):
        monkeypatch.setattr(moving, "UNIT", unit)
        monkeypatch.setattr(rows, "READ_PIECE", read)
        monkeypatch.setattr(rows, "STRIP", strip)
        assert b"".join(d.tobytes() for d in converted(piece)) == wanted
        end = 0
        for at, size, unit_piece in units(piece):
            assert at == end
            assert b"".join(d.tobytes() for d in converted(unit_piece)) == wanted[at : at + size]
            end = at + size
        assert end == len(wanted)
        assert len(list(units(piece))) > (unit < X.size) or piece.is_copy


def test_each_unit_is_weighed_by_its_own_experts_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    importance = np.random.default_rng(1).random((E, W), np.float32) ** 8
    shape = (E, H, W)
    piece = Piece(Tensor("y", "Q4_0", shape, nbytes_of("Q4_0", shape)), (in_memory("x", X, "F32"),), AS_IT_IS, importance)
    whole = b"".join(d.tobytes() for d in converted(piece))
    by_expert = [
        Piece(Tensor("y", "Q4_0", (H, W), nbytes_of("Q4_0", (H, W))), (in_memory("x", X[e], "F32"),), AS_IT_IS, importance[e : e + 1])
        for e in range(E)
    ]
    assert whole == b"".join(d.tobytes() for one in by_expert for d in converted(one))
    monkeypatch.setattr(moving, "UNIT", 3000)
    assert len(list(units(piece))) > E
    assert b"".join(d.tobytes() for _, _, one in units(piece) for d in converted(one)) == whole
