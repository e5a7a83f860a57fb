"""Plans a GGUF file, from a GGUF or from an HF folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import tokenizers
from ..checkpoint import RECIPE, Checkpoint
from ..dialects import ROPE_FREQS
from ..errors import Inexpressible, Unsupported, UsageError
from ..gguf_file import DEFAULT_ALIGNMENT, Field, Value, encode_header, nbytes_of
from ..layout import Part
from ..rope import Array
from ..tensors import Tensor, in_memory
from .moving import Piece, WriteTensors, unchanged
from .plan import Plan, Request, carry_gguf, check_outtype, target_dtype

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32, "MXFP4": 38}  # llama.h, enum llama_ftype
SAME = "extend it in the format that it has, with --outtype auto"
FP8_HINT = "start from a copy in BF16, as DeepSeek's fp8_cast_bf16.py makes one; --out safetensors keeps FP8 as it is"
QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION


def plan_gguf(c: Checkpoint, r: Request) -> Plan:
    """The plan of one GGUF file.

    Raises Inexpressible when llama.cpp could not compute the RoPE, or not this model, from it.
    """
    check_outtype(r.outtype, "gguf")
    if not c.family.listed and (c.gguf is None or r.outtype != "auto"):
        raise Unsupported(
            f"the tensors of {c.family.model_type or c.family.gguf_arch!r} have no names here, so they can only be copied", SAME
        )
    if r.cos_sin:
        raise UsageError("--cos-sin belongs to safetensors with --carry tensors", "no GGUF reader takes such caches")
    _check_computable(c, r)
    carrier, keys, freqs = carry_gguf(c, r.rope, r.context, r.carry)
    tensors = [_piece(c, name, part, r.outtype) for name, part in c.parts(gguf=True).items()]
    fields = _from_gguf(c, tensors, r) if c.gguf else _from_hf(c, tensors, r)
    fields = with_rope(fields, keys, r.recipe)
    alignment = c.gguf.alignment if c.gguf else DEFAULT_ALIGNMENT
    job = gguf_job(r.out.name, fields, with_freqs(tensors, freqs, c), alignment)
    identical = all(p.dtype == p.target.dtype for p in tensors)
    return Plan(r.out, "gguf", r.rope, r.context, carrier, {"llama.cpp": ""}, (job,), r.outtype, identical, tuple(_notes(c, tensors)))


def gguf_job(name: str, fields: Mapping[str, Field | Value], pieces: list[Piece], alignment: int) -> WriteTensors:
    header, offsets = encode_header(fields, [p.target for p in pieces], alignment)
    last = pieces[-1].target
    end = offsets[last.name] + last.nbytes
    return WriteTensors(name, header, tuple((p, offsets[p.target.name]) for p in pieces), end + -end % alignment, fields)


def with_rope(fields: Mapping[str, Field | Value], keys: Mapping[str, Value | None], recipe: Mapping[str, Any]) -> dict[str, Field | Value]:
    """`fields` with the RoPE keys set or removed: a key that is there keeps its place, new ones follow the model's own."""
    result = {k: keys.get(k, v) for k, v in fields.items()}
    new = {k: v for k, v in keys.items() if k not in fields} | {RECIPE: Value("str", json.dumps(recipe, separators=(",", ":")))}
    result.pop(RECIPE, None)
    vocabulary = {k: result.pop(k) for k in list(result) if k.startswith("tokenizer.")}
    return {k: v for k, v in {**result, **new, **vocabulary}.items() if v is not None}


def with_freqs(pieces: list[Piece], freqs: Array | None, c: Checkpoint) -> list[Piece]:
    """The pieces with `rope_freqs.weight` where an existing file has it, else at the end; without it when freqs is None."""
    if freqs is None:
        return pieces
    piece = unchanged(in_memory(ROPE_FREQS, freqs.astype("<f4"), "F32"))
    names = list(c.gguf.tensors) if c.gguf else []
    at = names.index(ROPE_FREQS) if ROPE_FREQS in names else len(pieces)
    return [*pieces[:at], piece, *pieces[at:]]


def _piece(c: Checkpoint, name: str, part: Part, outtype: str) -> Piece:
    if c.gguf is not None and outtype == "auto":
        return unchanged(part.sources[0])
    dtype = target_dtype(part, name, outtype)
    if dtype not in FILE_TYPES:
        raise Unsupported(f"tensor {part.sources[0].name!r} is {part.dtype}, which GGUF does not keep as it is", "--outtype f16 or bf16")
    return Piece(Tensor(name, dtype, part.shape, nbytes_of(dtype, part.shape)), part.sources, part.order)


def _check_computable(c: Checkpoint, r: Request) -> None:
    """Raise Inexpressible for what llama.cpp's graph of this architecture does not compute, Unsupported for FP8 weights."""
    if c.is_fp8:
        raise Unsupported("the weights are FP8 with scales for blocks of them, which GGUF has no type for", FP8_HINT)
    for key, values in c.family.fixed.items():
        value = c.config.get(key)
        if c.gguf is None and value is not None and value not in values:
            raise Inexpressible(f"llama.cpp's architecture {c.family.gguf_arch!r} cannot compute {key} = {value!r}", "--out safetensors")
    if c.rope.rotary_dim != c.head_dim and "dimension_count" not in c.family.gguf_reads:
        raise Inexpressible(f"llama.cpp's architecture {c.family.gguf_arch!r} rotates whole heads only", "--out safetensors")
    _check_head(c)
    if c.sliding_window and c.sliding_window < r.context and not r.full_attention:
        raise Inexpressible(
            f"llama.cpp's architecture {c.family.gguf_arch!r} has no sliding window, and this model's is {c.sliding_window:,} tokens",
            "--sliding-window off extends it with full attention, as the YaRN authors did with Mistral",
        )


def _check_head(c: Checkpoint) -> None:
    """Raise Unsupported when a tied model holds a head that is not its embedding: readers differ in which they take."""
    head, embedding = (c.tensors.get(c.family.to_hf(name)[0]) for name in ("output.weight", "token_embd.weight"))
    if c.gguf or not c.hparams["tie_word_embeddings"] or head is None or embedding is None or c.source.headers is not None:
        return
    step = 1 << 24
    equal = head.dtype == embedding.dtype and head.shape == embedding.shape
    if not equal or any(
        not np.array_equal(head.read(i, min(step, head.nbytes - i)), embedding.read(i, min(step, head.nbytes - i)))
        for i in range(0, head.nbytes, step)
    ):
        raise Unsupported(
            "tie_word_embeddings is true, but lm_head.weight is not the embedding: readers differ in which they take",
            "set tie_word_embeddings to false in config.json if the head is meant",
        )


def _from_gguf(c: Checkpoint, pieces: list[Piece], r: Request) -> dict[str, Field | Value]:
    assert c.gguf is not None
    if r.pretokenizer:
        raise UsageError("--pretokenizer names the pre-tokenizer of tokenizer.json", "a GGUF has its own: leave it out")
    fields: dict[str, Field | Value] = dict(c.gguf.fields)
    if r.outtype != "auto":
        fields["general.file_type"] = Value("u32", _file_type(pieces))
    return fields


def _from_hf(c: Checkpoint, pieces: list[Piece], r: Request) -> dict[str, Field | Value]:
    arch = c.family.gguf_arch
    fields: dict[str, Field | Value] = {
        "general.architecture": Value("str", arch),
        "general.type": Value("str", "model"),
        **_general(c, pieces),
    }
    for hf in c.family.hparams:
        key, kind = c.family.gguf_key(hf)
        if c.hparams[hf] is not None:
            fields[key] = Value(kind, c.hparams[hf])
    fields |= {f"{arch}.{key}": Value(*value) for key, value in c.family.constants.items()}
    fields.setdefault(f"{arch}.attention.value_length", Value("u32", c.head_dim))
    fields[f"{arch}.rope.dimension_count"] = Value("u32", c.rope.rotary_dim)
    fields["general.file_type"] = Value("u32", _file_type(pieces))
    fields["general.quantization_version"] = Value("u32", QUANTIZATION_VERSION)
    vocabulary = tokenizers.to_gguf(c.source.path, c.config, pre=r.pretokenizer)
    return fields | {k: Value(kind, data) for k, (kind, data) in vocabulary.items()}


def _general(c: Checkpoint, pieces: list[Piece]) -> dict[str, Value]:
    """Name, size and origin, under the keys of ggml's docs/gguf.md."""
    from gguf.utility import size_label

    total = sum(p.target.elements for p in pieces)
    general = {"general.name": c.source.name, "general.size_label": size_label(total, 0, 0, 0)}
    if c.source.repo:
        organization, _, name = c.source.repo.partition("/")
        base = {"name": name, "organization": organization, "repo_url": f"https://huggingface.co/{c.source.repo}"}
        general |= {f"general.base_model.0.{k}": v for k, v in base.items()}
    fields = {k: Value("str", v) for k, v in general.items()}
    return fields | ({"general.base_model.count": Value("u32", 1)} if c.source.repo else {})


def _file_type(pieces: list[Piece]) -> int:
    sizes: dict[str, int] = {}
    for p in pieces:
        sizes[p.target.dtype] = sizes.get(p.target.dtype, 0) + p.target.elements
    return FILE_TYPES[max(sizes, key=lambda dtype: sizes[dtype])]


def _notes(c: Checkpoint, pieces: list[Piece]) -> list[str]:
    left_out = [f"{len(c.unused)} tensors are left out: {next(iter(c.unused.values()))}, which llama.cpp does not run"] if c.unused else []
    requantized = any(p.dtype not in ("F32", "F16", "BF16", p.target.dtype) for p in pieces)
    fallback = [p for p in pieces if p.target.dtype == "F16" and p.dtype != "F16" and p.target.shape[-1] % 32]
    notes = ["the base is quantized already: changing its type cannot bring back what it lost"] if requantized else []
    return left_out + notes + ([f"{len(fallback)} tensors have rows that are no multiple of 32 and stay f16"] if fallback else [])
