"""Tiny models that tests/test_hostile.py breaks: two layers, a hidden size of 64 and a context of 64 tokens.

GGUF files are packed here by hand, so that they can say what no writer would.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, CONTEXT = 2, 64, 96, 4, 2, 16, 32, 64

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

_LAYER = {  # HF name -> (GGUF name, shape)
    "input_layernorm": ("attn_norm", (HIDDEN,)),
    "self_attn.q_proj": ("attn_q", (HEADS * HEAD_DIM, HIDDEN)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "self_attn.o_proj": ("attn_output", (HIDDEN, HEADS * HEAD_DIM)),
    "post_attention_layernorm": ("ffn_norm", (HIDDEN,)),
    "mlp.gate_proj": ("ffn_gate", (INNER, HIDDEN)),
    "mlp.up_proj": ("ffn_up", (INNER, HIDDEN)),
    "mlp.down_proj": ("ffn_down", (HIDDEN, INNER)),
}
NAMES = {
    "model.embed_tokens.weight": ("token_embd.weight", (VOCAB, HIDDEN)),
    "model.norm.weight": ("output_norm.weight", (HIDDEN,)),
} | {f"model.layers.{i}.{hf}.weight": (f"blk.{i}.{gguf}.weight", shape) for i in range(LAYERS) for hf, (gguf, shape) in _LAYER.items()}

REMOVED = object()  # as a value: leave the key out


# -- HF folders -------------------------------------------------------------------------------------------------------


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float16) for name, (_, shape) in NAMES.items()}


def hf_folder(folder: Path, text: str | None = None, **changes: Any) -> Path:
    """A sound folder with `changes` made to its config.json, or `text` in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in {**CONFIG, **changes}.items() if v is not REMOVED}
    (folder / "config.json").write_text(json.dumps(config, indent=2) if text is None else text, "utf-8")
    return folder


def hf_shards(folder: Path, **weight_map: str) -> Path:
    """A sound folder of two shards and an index, with `weight_map` changed: "*" stands for every tensor."""
    hf_folder(folder)
    (folder / "model.safetensors").unlink()
    tensors = weights()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        save_file({name: t for name, t in tensors.items() if files[name] == file}, folder / file)
    if (every := weight_map.pop("*", None)) is not None:
        files = dict.fromkeys(files, every)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {**files, **weight_map}}))
    return folder


# -- GGUF files -------------------------------------------------------------------------------------------------------

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
ARCH = "llama"


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def field(kind: int, value: Any) -> bytes:
    """A typed value as it stands in a file."""
    body = string(value) if kind == STR else struct.pack("<" + _CODES[kind], value)
    return struct.pack("<I", kind) + body


def array(kind: int, *values: Any) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(field(kind, v)[4:] for v in values)


def info(name: str | bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor info; `dims` as in the file, fastest axis first. Kinds: 0 F32, 1 F16."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    fields: list[bytes], infos: list[bytes], data: bytes, *, alignment: int = 32, start: str = "<4sIQQ", magic: bytes = b"GGUF",
    version: int = 3, n_tensors: int | None = None, n_fields: int | None = None,
) -> bytes:  # fmt: skip
    counts = (len(infos) if n_tensors is None else n_tensors, len(fields) if n_fields is None else n_fields)
    header = struct.pack(start, magic, version, *counts) + b"".join(fields + infos)
    return header + b"\0" * (-len(header) % alignment) + data


GGUF_FIELDS: dict[str, bytes] = {
    "general.architecture": field(STR, ARCH),
    f"{ARCH}.block_count": field(U32, LAYERS),
    f"{ARCH}.context_length": field(U32, CONTEXT),
    f"{ARCH}.embedding_length": field(U32, HIDDEN),
    f"{ARCH}.feed_forward_length": field(U32, INNER),
    f"{ARCH}.attention.head_count": field(U32, HEADS),
    f"{ARCH}.attention.head_count_kv": field(U32, KV_HEADS),
    f"{ARCH}.attention.layer_norm_rms_epsilon": field(F32, 1e-5),
    f"{ARCH}.rope.freq_base": field(F32, 10000.0),
    f"{ARCH}.rope.dimension_count": field(U32, HEAD_DIM),
    f"{ARCH}.vocab_size": field(U32, VOCAB),
    "tokenizer.ggml.model": field(STR, "gpt2"),
    "tokenizer.ggml.tokens": array(STR, *(f"t{i}" for i in range(VOCAB))),
}


def gguf_model(path: Path, changes: dict[str, Any] | None = None, extra: dict[str, np.ndarray] | None = None) -> Path:
    """A sound file in F16 with fields set to raw values (short keys get the architecture) and F32 tensors added."""
    long = {k if k.partition(".")[0] in ("general", "tokenizer", "split", ARCH) else f"{ARCH}.{k}": v for k, v in (changes or {}).items()}
    fields = [string(k) + v for k, v in {**GGUF_FIELDS, **long}.items() if v is not REMOVED]
    tensors = {NAMES[name][0]: t.astype(np.float32) if t.ndim == 1 else t for name, t in weights().items()} | (extra or {})
    infos, data = [], b""
    for name, t in tensors.items():
        infos.append(info(name, tuple(reversed(t.shape)), 0 if t.dtype == np.float32 else 1, len(data)))
        data += t.tobytes()
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(gguf_bytes(fields, infos, data))
    return path
