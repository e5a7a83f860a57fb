"""The twin of a checkpoint: a tiny random model that keeps every RoPE-relevant key and shrinks all else.

It has one layer, one head of the same size, a vocabulary of 64 and seeded weights, and is written by the same writers. So
a runtime shows in seconds what it makes of a 70B model's scaling, over the whole extended context, without its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import layout
from ..checkpoint import Checkpoint, open_checkpoint
from ..dialects import ROPE_FREQS
from ..families.derived import RULES
from ..families.schema import numbered
from ..gguf_file import DEFAULT_ALIGNMENT, Field, Value
from ..json_text import REMOVE, edit
from ..source import Source
from ..targets.gguf import gguf_job
from ..targets.moving import Job, WriteBytes, execute, unchanged
from ..targets.safetensors import hf_piece, safetensors_job
from ..tensors import SINGLES, in_memory, inside

VOCAB, HIDDEN_MIN, FEED_FORWARD = 64, 64, 32
QK_SCALE = 1.2  # of q and k rows, over √hidden: scores spread by about 1, so that attention looks at many places at once
POSITIONS = ("attn_q.weight", "attn_k.weight", "attn_q_b.weight", "attn_kv_a_mqa.weight")  # rows that turn are in these
REFUSED_IN_A_TWIN = ("quantization_config", "auto_map")


def write_twin(c: Checkpoint, out: Path, seed: int = 0) -> Checkpoint:
    """Write the twin of `c` to `out`, a folder or a .gguf file as `c` is, and open it. `c` may lack its weights."""
    sizes = {"hidden_size": max(HIDDEN_MIN, c.head_dim), "intermediate_size": FEED_FORWARD, "num_hidden_layers": 1, "vocab_size": VOCAB}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": c.head_dim, **c.family.twin}
    if c.family.latent:
        sizes |= {k: n for k, n in RULES["mla"]({**sizes, "qk_rope_head_dim": c.head_dim}).items() if k in c.hparams}
    small = replace(c, hparams={**c.hparams, **sizes, "tie_word_embeddings": False})
    arrays = weights(small, _names(c, small.hparams), seed)
    jobs = _gguf(small, sizes, arrays, out) if c.gguf else _folder(small, sizes, arrays)
    execute(jobs, out, folder=c.gguf is None, progress=lambda n: None, link=False, last=lambda moved, folder: [])
    return open_checkpoint(Source(out, f"twin of {c.source.name}"))


def ids(n: int, seed: int = 1) -> NDArray[np.int64]:
    """Random tokens for a twin, int64[n]."""
    return np.random.default_rng(seed).integers(0, VOCAB, n)


def _names(c: Checkpoint, small: Mapping[str, Any]) -> list[str]:
    """GGUF names of the twin's tensors: those of the first layer and outside of layers, with a head of its own. `small` are the
    twin's hparams."""
    there = c.parts(gguf=True)
    first = [n for n in there if not n.startswith("blk.") or (n.startswith("blk.0.") and c.family.has(numbered(n).template, small, 0))]
    if not there:  # a config.json alone
        first = [f"blk.0.{part}" for switch, parts in c.family.switches.items() if c.config.get(switch) for part in parts]
    return list(dict.fromkeys([*first, *c.family.required(small), "output.weight"]))


def weights(small: Checkpoint, names: list[str], seed: int) -> dict[str, NDArray[np.float32]]:
    """Seeded float32 arrays by GGUF name and in its order. Norms are 1, embeddings spread by 1, the rest by 1/√columns."""
    rng, arrays = np.random.default_rng(seed), {}
    for name in names:
        part = name.removeprefix("blk.0.")
        shape = tuple(small.sizes[size] for size in small.family.shapes[part])
        w = rng.standard_normal(shape)
        scale = QK_SCALE if part in POSITIONS else 1.0
        if part.endswith("norm.weight"):
            w = np.ones(shape)
        elif part != "token_embd.weight":
            w *= scale / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        arrays[name] = w.astype(np.float32)
    return arrays


def _folder(small: Checkpoint, sizes: Mapping[str, int], arrays: Mapping[str, NDArray[np.float32]]) -> list[Job]:
    text = inside(small.source.path, "config.json").read_text("utf-8")
    config = json.loads(text)
    changes: dict[str, Any] = {
        **sizes,
        **{small.family.own(k): v for k, v in sizes.items()},
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    changes |= {k: "float32" for k in ("dtype", "torch_dtype") if k in config}
    changes |= dict.fromkeys([k for k in REFUSED_IN_A_TWIN if k in config], REMOVE)
    made = {name: in_memory(name, a, "F32") for name, a in arrays.items()}
    parts = layout.to_hf(small.family, made, small.sizes)
    pieces = [hf_piece(name, part, "auto") for name, part in parts.items()]
    return [WriteBytes("config.json", edit(text, changes).encode()), safetensors_job(SINGLES[0], pieces)]


def _gguf(small: Checkpoint, sizes: Mapping[str, int], arrays: Mapping[str, NDArray[np.float32]], out: Path) -> list[Job]:
    assert small.gguf is not None
    arch = small.family.gguf_arch
    keys = {small.family.gguf_key(k)[0]: n for k, n in sizes.items() if k in small.family.hparams}
    keys = {f"{arch}.attention.value_length": small.head_dim} | keys
    old = {k: v for k, v in small.gguf.fields.items() if k == "general.architecture" or k.startswith(f"{arch}.")}
    fields: dict[str, Field | Value] = {k: Value("u32", keys[k]) if k in keys else v for k, v in old.items()}
    fields |= {k: Value("u32", v) for k, v in keys.items() if k not in old}
    fields |= {"tokenizer.ggml.model": Value("str", "none")}
    pieces = []
    for name, a in arrays.items():
        pieces.append(unchanged(in_memory(name, a, "F32")))
    if ROPE_FREQS in small.gguf.tensors:
        pieces.append(unchanged(small.gguf.tensors[ROPE_FREQS]))
    return [gguf_job(out.name, fields, pieces, DEFAULT_ALIGNMENT)]
