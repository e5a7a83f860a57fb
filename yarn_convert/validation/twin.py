"""The twin of a checkpoint: a tiny random model that keeps every RoPE-relevant key and shrinks all else.

It has one layer or one of each kind, few heads of the same size, a vocabulary of 64 and seeded weights, and is written by the
same writers. So a runtime shows in seconds what it makes of a 70B model's scaling, over the whole extended context.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import dialects, families
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.config import NESTS, within
from ..checkpoint.source import Source, resolve
from ..compute.reference import shapes_of
from ..families.schema import numbered
from ..formats import layout
from ..formats.files import read_text
from ..formats.general import IDS
from ..formats.gguf_file import DEFAULT_ALIGNMENT, Field, Value
from ..formats.json_text import REMOVE, edit, edit_within
from ..formats.layout import Part
from ..formats.tensors import SINGLES, in_memory
from ..targets.moving import Job, WriteBytes, unchanged
from ..targets.output import execute
from ..targets.parts import gguf_job
from ..targets.safetensors import hf_piece, safetensors_job

VOCAB, HIDDEN_MIN, FEED_FORWARD = 64, 64, 32
QK_SCALE = 1.2  # of q and k rows, over √hidden: scores spread by about 1, so that attention looks at many places at once
QK = ("attn_q.weight", "attn_k.weight", "attn_qkv.weight", "attn_q_b.weight", "attn_kv_a_mqa.weight")
SMALL = {  # sizes of what only some families have
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "v_head_dim": 32,
    "q_lora_rank": 32, "kv_lora_rank": 32, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "intermediate_size_mlp": 32,
}  # fmt: skip
LISTS = {"kv_heads_by_layer": "num_key_value_heads", "ff_by_layer": "intermediate_size"}  # those of sizes
DEPTHS = ("depth", "num_hidden_layers", "num_layers", "encoder_layers")  # how many layers what sees or hears has
OTHER_TOWERS = ("model.visual.", "model.vision", "model.audio")
EXPERTS = ("num_experts", "num_local_experts")  # which transformers 5 saves both, of one number
BY_LAYER = ("layer_types", "no_rope_layers", "activation_sparsity_pattern")  # lists of config.json with an entry for each layer
REFUSED_IN_A_TWIN = ("quantization_config", "auto_map", "per_layer_config")  # the last said anew


def write_twin(c: Checkpoint, out: Path) -> Checkpoint:
    """Write the twin of `c` to `out`, a folder or a .gguf file as `c` is, and open it. `c` may lack its weights."""
    sizes, tied = _sizes(c), c.family.gguf.head == "never"
    small = replace(c, hparams={**c.hparams, **sizes, "tie_word_embeddings": tied})
    arrays = weights(small, _names(c, small.hparams, tied))
    jobs = _gguf(small, sizes, arrays, out) if c.gguf else _folder(small, sizes, arrays)
    execute(jobs, out, folder=c.gguf is None)
    return open_checkpoint(Source(out, f"twin of {c.source.name}"))


CONTROL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN_MIN, "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HIDDEN_MIN, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "torch_dtype": "float32",
}  # fmt: skip


def write_control(out: Path) -> Path:
    """Write a tiny plain Llama without any scaling to `out`, a folder or a .gguf file: a runtime that cannot run this is itself
    out of order."""
    with tempfile.TemporaryDirectory(prefix="yarn-convert-control-") as folder:
        Path(folder, "config.json").write_text(json.dumps(CONTROL), "utf-8")
        c = open_checkpoint(resolve(folder, weights=False))
        if out.suffix != ".gguf":
            return write_twin(c, out).source.path
        arrays = weights(c, [*c.family.required(c.described), "output.weight"])
        keys = {c.family.gguf_key(k): c.hparams[k] for k in c.family.hparams}
        fields: dict[str, Field | Value] = {"general.architecture": Value("str", c.family.gguf_arch)}
        fields |= {key: Value(kind, value) for (key, kind), value in keys.items() if value is not None}
        fields |= {"tokenizer.ggml.model": Value("str", "none")}
        job = gguf_job(out.name, fields, [unchanged(in_memory(name, a, "F32")) for name, a in arrays.items()], DEFAULT_ALIGNMENT)
        execute([job], out, folder=False)
        return out


def _sizes(c: Checkpoint) -> dict[str, Any]:
    """The twin's sizes by their config keys: as few heads as make 64 columns, one layer or as many as there are kinds of; and lists with
    an entry for each layer."""
    heads = -(-HIDDEN_MIN // c.head_dim)
    sizes = {
        "hidden_size": heads * c.head_dim,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if c.heads("k") == c.heads("q") else 1,
        "head_dim": c.head_dim,
        **{key: size for key, size in SMALL.items() if c.hparams.get(key) is not None},
        **c.family.twin,
    }
    if "mamba_inner" in c.family.hparams:
        sizes["mamba_inner"] = 2 * sizes["hidden_size"]
    sizes["num_hidden_layers"] = layers = min(fewest_layers(c), c.layers)
    for key in (k for k in c.family.hparams if c.family.by_layer(k) and k != families.SECTIONS):
        numbers = c.hparams[key][:layers] if key in c.hparams else [c.family.in_tensors[key].usual] * layers
        sizes[key] = [sizes[LISTS[key]] if key in LISTS and n else n for n in numbers]
    latent = c.family.hf.reads({**sizes, "qk_rope_head_dim": c.head_dim}) if c.family.hf.latent else {}
    return sizes | {k: n for k, n in latent.items() if k in c.family.hparams}


def fewest_layers(c: Checkpoint) -> int:
    """How many of the first layers show each kind that code which counts them has."""
    layers = int(c.family.twin.get("num_hidden_layers", 1))
    if c.family.linear:  # up to the first layer that attends, and one more at least
        layers = max(2, [*c.family.linear(c.hparams), False].index(False) + 1)
    if slides := c.hparams.get("slides_by_layer"):  # up to the first that sees all
        layers = [*slides, False].index(False) + 1
    return layers


def ids(n: int) -> NDArray[np.int64]:
    """Random tokens for a twin, the same ones each time, int64[n]."""
    return np.random.default_rng(1).integers(0, VOCAB, n)


def _names(c: Checkpoint, small: Mapping[str, Any], tied: bool) -> list[str]:
    """GGUF names of the twin's tensors: those of the first layers and outside of layers, with a head of its own unless tied.
    `small` are its hparams."""
    said = {**c.described, **small}
    there, layers, switches = {} if c.packed else c.parts(gguf=True), range(small["num_hidden_layers"]), c.family.hf.switches
    names = [name for name, n in ((name, numbered(name)) for name in there) if n.layer in layers]
    if not there:  # a config.json alone, or packed weights
        names = [f"blk.{i}.{part}" for part in sorted(set(c.family.hf.turned_on(c.config))) for i in layers]
    off = {part for switch, parts in switches.items() if c.family.twin.get(switch) is False for part in parts}
    off |= {"output.weight"} if tied else set()
    wanted = [name for name in dict.fromkeys([*names, *c.family.required(said), "output.weight"]) if layout.part_of(name) not in off]
    return [name for name in wanted if c.family.has(numbered(name).template, said, numbered(name).layer)]


def weights(small: Checkpoint, names: list[str]) -> dict[str, NDArray[np.float32]]:
    """Seeded float32 arrays by GGUF name and in its order. Norms are 1, embeddings spread by 1, the rest by 1/√columns."""
    rng, arrays = np.random.default_rng(0), {}
    for name in names:
        part = layout.part_of(name)
        shape = tuple(small.sizes_of(numbered(name).layer)[size] for size in small.family.shape(part))
        w = rng.standard_normal(shape)
        scale = QK_SCALE if part in QK else 1.0
        if "norm" in part and not part.endswith("bias"):
            w = np.ones(shape)
        elif part != "token_embd.weight":
            w *= scale / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        if "decay" in small.family.transform(name):  # how fast a state is forgotten, below 0
            w = -np.exp(w)
        arrays[name] = w.astype(np.float32)
    return arrays


def _folder(small: Checkpoint, sizes: Mapping[str, int], arrays: Mapping[str, NDArray[np.float32]]) -> list[Job]:
    text, family = read_text(small.source.path, "config.json"), small.family
    config = within(json.loads(text), small.nest)
    said = {k: v for k, v in family.hf.writes(small.hparams, arrays).items() if k not in dialects.BESIDE}
    unsaid = family.hf.unsaid | ({"head_dim"} if config.get("head_dim") is None else set())  # it is hidden_size / heads
    changes: dict[str, Any] = {family.hf.own(k): v for k, v in sizes.items() if k not in unsaid} | said
    changes |= {k: config[k][: sizes["num_hidden_layers"]] for k in BY_LAYER if isinstance(config.get(k), list)}
    changes |= {
        family.hf.own("tie_word_embeddings"): small.hparams["tie_word_embeddings"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0 if small.around else None,  # which some of those that see put in the place of pictures
    }
    changes |= {k: sizes["num_experts"] for k in EXPERTS if k in config and "num_experts" in sizes}
    changes |= {k: "float32" for k in ("dtype", "torch_dtype") if k in config}
    changes |= dict.fromkeys([k for k in REFUSED_IN_A_TWIN if k in config], REMOVE)
    made = {name: in_memory(name, a, "F32") for name, a in arrays.items()}
    parts = layout.hf_parts(family, made, small.sizes) | small.in_keys
    if small.around:
        text, parts = _around(small, text, changes, parts)
    else:
        text = edit(text, changes)
    return [WriteBytes("config.json", text.encode()), safetensors_job(SINGLES[0], [hf_piece(*part, "auto") for part in parts.items()])]


def _around(small: Checkpoint, text: str, changes: Mapping[str, Any], parts: Mapping[str, Part]) -> tuple[str, dict[str, Part]]:
    """(config.json, tensors) of the twin of a language model with a model around it, which has one layer of what sees or hears, all
    zeros: no text passes through that. Which tensors it has, transformers says."""
    text = edit_within(text, small.nest, changes)
    for key, other in small.around.items():
        if isinstance(other, dict) and key not in (*small.nest, *NESTS[0]):
            text = edit_within(text, (key,), {k: 1 for k in DEPTHS if k in other})
    text = edit(text, {"tie_word_embeddings": small.hparams["tie_word_embeddings"]} | {k: None for k in IDS if k in small.around})
    shapes = shapes_of(json.loads(text))
    embedding = next(name for name in shapes if name.endswith("embed_tokens.weight") and not name.startswith(OTHER_TOWERS))
    prefix = embedding.removesuffix("embed_tokens.weight")
    named = {re.sub(r"^model\.", prefix, name): part for name, part in parts.items()}
    others = {n: s for n, s in shapes.items() if n not in named and not n.startswith(prefix) and not n.startswith("lm_head.")}
    zeros = {n: in_memory(n, np.zeros(s, np.float32), "F32") for n, s in others.items()}
    return text, named | {n: Part(t.shape, (t,)) for n, t in zeros.items()}


def _gguf(small: Checkpoint, sizes: Mapping[str, int], arrays: Mapping[str, NDArray[np.float32]], out: Path) -> list[Job]:
    assert small.gguf is not None
    arch = small.family.gguf_arch
    keys = {small.family.gguf_key(k)[0]: Value(small.family.gguf_key(k)[1], n) for k, n in sizes.items() if k in small.family.hparams}
    keys = {f"{arch}.attention.value_length": Value("u32", small.head_dim)} | keys
    old = {k: v for k, v in small.gguf.fields.items() if k == "general.architecture" or k.startswith(f"{arch}.")}
    fields: dict[str, Field | Value] = {k: keys.get(k, v) for k, v in old.items()}
    fields |= {k: v for k, v in keys.items() if k not in old}
    fields |= {"tokenizer.ggml.model": Value("str", "none")}
    pieces = [unchanged(in_memory(name, a, "F32")) for name, a in arrays.items()]
    pieces += [unchanged(small.gguf.tensors[name]) for name in small.factors]
    return [gguf_job(out.name, fields, pieces, DEFAULT_ALIGNMENT)]
