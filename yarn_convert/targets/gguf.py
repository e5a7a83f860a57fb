"""Plans a GGUF file, from a GGUF or from an HF folder."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from .. import tokenizers
from ..checkpoint import RECIPE, SAME_FORMAT, Checkpoint
from ..checkpoint.lengths import DUAL_CHUNKS
from ..dialects.config_json import BETA
from ..errors import FormatError, Inexpressible, InputError, Unsupported, UsageError, many
from ..families.derived import MULTIPLIERS, ODD
from ..formats import general
from ..formats.contents import GENERATION
from ..formats.dtypes import F32, OUTTYPES, PLAIN
from ..formats.gguf_file import DEFAULT_ALIGNMENT, Field, Value, nbytes_of, type_numbers
from ..formats.imatrix import OTHER_MODEL
from ..formats.layout import Part
from ..formats.quantizer import MIXES, QUANTIZATION_VERSION, check_installed, quantized_fields, types_of
from ..formats.tensors import Tensor, in_memory, same_bytes
from ..readers.gguf import LLAMA_CPP, READ_AT
from ..readers.judge import Verdict
from ..rope import Array
from ..tokenizers import Files
from .moving import Piece, unchanged
from .parts import gguf_jobs
from .plan import FULL_ATTENTION, Plan, Request, carry_gguf, check_outtype, target_dtype

READ_IN = {LLAMA_CPP: READ_AT}
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "MXFP4": 38}  # llama.h, enum llama_ftype
NO_CHUNKS = "llama.cpp has no dual chunk attention, which the whole context needs: without it the training's length is as far as it goes"
SUPER_BLOCK = 256  # numbers in a block of the K- and IQ-types (ggml-common.h, QK_K)


def plan_gguf(c: Checkpoint, r: Request) -> Plan:
    """The plan of a GGUF: one file, or parts.

    Raises Inexpressible when llama.cpp could not compute the RoPE, or not this model, from it.
    """
    check_outtype(r.outtype, "gguf")
    if not c.family.listed and r.outtype != "auto":
        raise Unsupported(f"the tensors of {c.family.name!r} have no names here, so their type cannot be changed", SAME_FORMAT)
    if r.cos_sin:
        raise UsageError("--cos-sin belongs to safetensors with --carry tensors", "no GGUF reader takes such caches")
    if r.imatrix is not None and r.outtype not in MIXES:
        raise UsageError("--imatrix is for a quantized --outtype", "as --outtype q4_k_m")
    if not c.tensors:
        raise InputError(f"{c.source.name} is a config.json without weights: there is nothing to write", "give the whole model's folder")
    parts = c.parts(gguf=True)
    if r.imatrix is not None and not any(name in r.imatrix.weights for name in parts):
        raise UsageError(f"{r.imatrix.file} has nothing for any tensor of this model", OTHER_MODEL)
    if c.family.listed:
        check_written_in(c, parts)
        _check_computable(c, r)
    carrier, keys, factors = carry_gguf(c, r.rope, r.context, r.carry)
    files = None if c.gguf else tokenizers.files_of(c.source.path)
    about, lost = _general(c, parts, r, files) if files else ({}, [])
    fields = _from_hf(c, about, r, files) if files else _from_gguf(c, r)
    tensors = _quantized(fields, parts, r) if r.outtype in MIXES and r.outtype not in OUTTYPES else _pieces(c, parts, r)
    fields = with_rope(fields | _types(c, tensors, r), keys, r.recipe)
    alignment = c.gguf.alignment if c.gguf else DEFAULT_ALIGNMENT
    jobs = gguf_jobs(r.out, fields, with_factors(tensors, factors, c), alignment, c.gguf, r.part_size)
    out = r.out.with_name(jobs[0].name)
    identical = all(p.dtype == p.target.dtype for p in tensors)
    caveats = tokenizers.caveats(files, about["general.name"].data) if files else ()
    unscaled = [NO_CHUNKS] if c.written.get(DUAL_CHUNKS) is not None and r.rope == c.rope else []
    notes = (*c.packing.notes, *unscaled, *_notes(c, tensors, r.outtype), *lost, *caveats)
    return Plan(out, "gguf", r.rope, r.context, carrier, {LLAMA_CPP: Verdict("exact")}, jobs, r.outtype, identical, notes, versions=READ_IN)


def with_rope(fields: Mapping[str, Field | Value], keys: Mapping[str, Value | None], recipe: Mapping[str, Any]) -> dict[str, Field | Value]:
    """`fields` with the RoPE keys set or removed: a key that is there keeps its place, new ones follow the model's own."""
    result = {k: keys.get(k, v) for k, v in fields.items()}
    new = {k: v for k, v in keys.items() if k not in fields} | {RECIPE: Value("str", json.dumps(recipe, separators=(",", ":")))}
    result.pop(RECIPE, None)
    vocabulary = {k: result.pop(k) for k in list(result) if k.startswith("tokenizer.")}
    return {k: v for k, v in {**result, **new, **vocabulary}.items() if v is not None}


def with_factors(pieces: list[Piece], factors: Mapping[str, Array], c: Checkpoint) -> list[Piece]:
    """The pieces and the tensors of `factors`, each where an existing file has it, else at the end."""
    made = {p.target.name: p for p in pieces} | {n: unchanged(in_memory(n, a.astype("<f4"), "F32")) for n, a in factors.items()}
    places = {name: i for i, name in enumerate(c.gguf.tensors if c.gguf else ())}
    return sorted(made.values(), key=lambda p: places.get(p.target.name, len(places)) if c.gguf else 0)


def _pieces(c: Checkpoint, parts: Mapping[str, Part], r: Request) -> list[Piece]:
    """The tensors of the file, all of one type as far as `target_dtype` goes."""
    if c.gguf is not None and r.outtype == "auto":
        return [unchanged(part.sources[0]) for part in parts.values()]
    if r.imatrix is not None and r.outtype != "q8_0":  # whose rounding no weights change
        check_installed()
    return [
        _piece(name, part, dtype := target_dtype(part, name, r.outtype), _weights(r, name, part, dtype)) for name, part in parts.items()
    ]


def _weights(r: Request, name: str, part: Part, dtype: str) -> F32 | None:
    """The imatrix's values for a tensor that becomes a type whose rounding weighs errors; float32[experts, columns]."""
    weighed = r.imatrix is not None and dtype not in (part.dtype, "Q8_0") and dtype not in PLAIN
    return r.imatrix.of(Tensor(name, dtype, part.shape, 0)) if r.imatrix and weighed else None


def _piece(name: str, part: Part, dtype: str, importance: F32 | None = None) -> Piece:
    if dtype not in type_numbers():
        raise Unsupported(f"tensor {part.sources[0].name!r} is {part.dtype}, which GGUF does not keep as it is", "--outtype f16 or bf16")
    return Piece(Tensor(name, dtype, part.shape, nbytes_of(dtype, part.shape)), part.sources, part.order, importance)


def _quantized(fields: Mapping[str, Field | Value], parts: Mapping[str, Part], r: Request) -> list[Piece]:
    """The tensors of the file, of the types that llama-quantize would choose for a file of the base's own types."""

    def own(name: str, part: Part) -> str:
        dtype = target_dtype(part, name, "auto")
        return dtype if dtype in PLAIN else "F16"  # llama-quantize wants an unquantized file

    sources = {name: Tensor(name, own(name, part), part.shape, 0) for name, part in parts.items()}
    types = types_of(fields, sources.values(), r.outtype, r.imatrix)
    pieces = []
    for name, part in parts.items():
        weighed = r.imatrix is not None and types[name] != sources[name].dtype
        pieces.append(_piece(name, part, types[name], r.imatrix.of(sources[name]) if r.imatrix and weighed else None))
    return pieces


def _check_computable(c: Checkpoint, r: Request) -> None:
    """Raise Inexpressible for what llama.cpp's graph of this architecture does not compute."""
    for key in MULTIPLIERS:
        if c.gguf is None and key in c.hparams and c.hparams[key] == 0:
            raise Inexpressible(f"llama.cpp takes {key} = 0 for one that is not there", "--out safetensors")
    layer_types = (c.config.get("layer_types") or []) if c.gguf is None and "usual_windows" not in c.family.fixed else []
    if layer_types and layer_types != ["full_attention"] * len(layer_types):
        raise Inexpressible(
            f"llama.cpp's architecture {c.family.gguf_arch!r} has full attention in every layer, layer_types not", "--out safetensors"
        )
    if c.rope.rotary_dim != c.head_dim and c.family.hf.partial is None:
        raise Inexpressible(f"llama.cpp's architecture {c.family.gguf_arch!r} rotates whole heads only", "--out safetensors")
    hidden, heads = c.hparams["hidden_size"], c.heads("q")
    if c.family.gguf.square and hidden != heads * c.head_dim:
        what = f"takes hidden_size / heads = {hidden / heads:g} for the size of a head, and here it is {c.head_dim}"
        raise Inexpressible(f"llama.cpp's architecture {c.family.gguf_arch!r} {what}", "--out safetensors")
    if c.family.gguf.ungrouped and c.heads("k") != heads:
        raise Inexpressible(
            f"llama.cpp's architecture {c.family.gguf_arch!r} has a key for each query, this model {c.heads('k')} for {heads}",
            "--out safetensors",
        )
    if c.family.gguf.head == "never" and not c.hparams["tie_word_embeddings"]:
        raise Inexpressible(f"llama.cpp's architecture {c.family.gguf_arch!r} takes no head of its own, this model's", "--out safetensors")
    _check_head(c)
    if c.own_window and c.own_window < r.context and not r.full_attention:
        raise Inexpressible(
            f"llama.cpp's architecture {c.family.gguf_arch!r} has no sliding window, and this model's is {c.own_window:,} tokens",
            FULL_ATTENTION,
        )


def check_written_in(c: Checkpoint, names: Container[str]) -> None:
    """Raise Inexpressible for a folder with other values than llama.cpp has written in, or without what it asks for; `names` are those of
    the tensors in a GGUF of it."""
    odd = (ODD.get(key, f"{key} = {v!r}") for key, values in c.family.fixed.items() if (v := c.config.get(key)) not in (None, *values))
    unlike = c.family.hf.unlike(c.config, names) if c.family.hf.unlike else ""
    if c.gguf is None and (what := next(odd, unlike)):
        raise Inexpressible(f"llama.cpp's architecture {c.family.gguf_arch!r} cannot compute {what}", "--out safetensors")


def _check_head(c: Checkpoint) -> None:
    """Raise Unsupported when a tied model holds a head that is not its embedding: readers differ in which they take."""
    head, embedding = map(c.tensors.get, c.head_and_embedding)
    if c.gguf or not c.hparams["tie_word_embeddings"] or head is None or embedding is None or c.source.headers_only:
        return
    if not same_bytes(head, embedding):
        raise Unsupported(
            "tie_word_embeddings is true, but lm_head.weight is not the embedding: readers differ in which they take",
            "set tie_word_embeddings to false in config.json if the head is meant",
        )


def _from_gguf(c: Checkpoint, r: Request) -> dict[str, Field | Value]:
    assert c.gguf is not None
    if r.pretokenizer:
        raise UsageError("--pretokenizer names the pre-tokenizer of tokenizer.json", "a GGUF has its own: leave it out")
    key, kind = c.family.gguf_key(BETA) if BETA in c.family.hparams else ("", "")
    own = c.gguf.fields.get(key)
    asked = key in c.config and (own is None or own.value != c.config[key])  # `conversion.tempering`
    return dict(c.gguf.fields) | ({key: Value(kind, c.config[key])} if asked else {})


def _types(c: Checkpoint, pieces: list[Piece], r: Request) -> dict[str, Field | Value]:
    """What the header says of the tensors' types."""
    if c.gguf is not None and r.outtype == "auto":
        return {}
    number = MIXES[r.outtype].ftype if r.outtype in MIXES else _file_type(pieces)
    fields: dict[str, Field | Value] = {
        "general.file_type": Value("u32", number),
        "general.quantization_version": Value("u32", QUANTIZATION_VERSION),
    }
    return quantized_fields(fields, r.outtype, r.imatrix) if r.imatrix else fields


def _from_hf(c: Checkpoint, about: Mapping[str, Value], r: Request, files: Files) -> dict[str, Field | Value]:
    """`about`: the keys `general.*` that say what the model is."""
    arch = c.family.gguf_arch
    fields: dict[str, Field | Value] = {
        "general.architecture": Value("str", arch),
        "general.type": Value("str", "model"),
        **about,
    }
    for hf in c.family.hparams:
        (key, kind), value = c.family.gguf_key(hf), c.hparams.get(hf)
        alike = isinstance(value, list) and key in fields and len(set(value)) == 1  # its one number says it
        if value is not None and not alike:
            fields[key] = Value(kind, value)
    fields |= {f"{arch}.{key}": Value(*value) for key, value in c.family.constants.items()}
    fields.setdefault(f"{arch}.attention.value_length", Value("u32", c.head_dim))
    fields[f"{arch}.rope.dimension_count"] = Value("u32", c.rope.rotary_dim)
    vocabulary = tokenizers.to_gguf(c.source.path, c.config, pre=r.pretokenizer, files=files)
    named = [vocabulary.get(f"tokenizer.ggml.{name}_token_id", ("", None))[1] for name in general.ENDS]
    more = [i for i in general.ends_of(c.json_of(GENERATION), c.config) if i not in named and 0 <= i < c.hparams["vocab_size"]]
    fields |= {general.MORE_ENDS: Value("i32[]", more)} if more else {}
    return fields | {k: Value(kind, data) for k, (kind, data) in vocabulary.items()}


def _general(c: Checkpoint, parts: Mapping[str, Part], r: Request, files: Files) -> tuple[dict[str, Value], list[str]]:
    """(what the file says of the model beside weights and tokenizer, under the keys of ggml's docs/gguf.md; notes)."""
    notes = []
    try:
        card, _ = general.front_matter(general.read_card(c.source.path))
    except FormatError as e:
        card, notes = {}, [f"{e.message}: what it says is not carried over"]
    if c.source.repo:
        same = (r.rope, r.context) == (c.rope, c.context)  # another format of the model itself, else a model made of it
        card = (
            {"repo_url": general.HUB + c.source.repo, "base_model": c.source.repo} | card | ({} if same else {"base_model": c.source.repo})
        )
    named = {k: v for k in ("_name_or_path",) if isinstance(v := c.config.get(k), str)}
    shapes = {name: part.shape for name, part in parts.items()}
    fields, lost = general.general_keys(card, named, c.json_of(GENERATION), c.source.name, shapes)
    fields["general.name"] = Value("str", tokenizers.fitting_name(files, fields["general.name"].data))
    return fields, notes + lost


def _file_type(pieces: list[Piece]) -> int:
    """The number of the type that most weights have (llama.h, enum llama_ftype)."""
    sizes: dict[str, int] = {}
    for p in pieces:
        sizes[p.target.dtype] = sizes.get(p.target.dtype, 0) + p.target.elements
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return FILE_TYPES[most] if most in FILE_TYPES else next(mix.ftype for mix in MIXES.values() if mix.default == most)


def _notes(c: Checkpoint, pieces: list[Piece], outtype: str) -> list[str]:
    unused = many(len(c.unused), "tensor is", "tensors are")
    notes = [f"{unused} left out: {next(iter(c.unused.values()))}, which llama.cpp does not run"] if c.unused else []
    if beside := len(c.tensors) - len(c.names):
        left = many(beside, "tensor is", "tensors are")
        notes.append(f"{left} left out, of the model around the language model, for which llama.cpp has a file of its own")
    if any(p.dtype not in (*PLAIN, p.target.dtype) for p in pieces):
        notes.append("the base is quantized already: changing its type cannot bring back what it lost")
    if fallback := [p for p in pieces if p.target.dtype == "F16" and p.dtype != "F16" and p.target.shape[-1] % 32]:
        notes.append(f"{many(len(fallback), 'tensor stays', 'tensors stay')} f16: rows that are no multiple of 32")
    if outtype in MIXES and outtype not in OUTTYPES:
        odd = sum(len(p.target.shape) > 1 and p.target.dtype != p.dtype and p.target.shape[-1] % SUPER_BLOCK > 0 for p in pieces)
        have = many(odd, "tensor has", "tensors have")
        smaller = f"{have} rows that are no multiple of {SUPER_BLOCK}: llama.cpp gives them a type of smaller blocks"
        notes += [smaller] if odd else []
    if outtype in OUTTYPES and outtype.startswith(("q4", "q5")):
        notes.append(f"every matrix is {outtype}, the head too (llama-quantize --pure); mixes as {outtype[:2]}_k_m keep some finer")
    return notes
