"""Plans a folder in HF layout, from such a folder or from a GGUF file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import dialects, tokenizers
from ..checkpoint import WINDOW, Checkpoint
from ..checkpoint.lengths import DUAL_CHUNKS
from ..checkpoint.manifest import MANIFEST
from ..checkpoint.source import hf_weights
from ..errors import Inexpressible, Unsupported, UsageError
from ..families import Family
from ..families.layers import FULL, SLIDES, slides
from ..families.schema import ACTIVATIONS
from ..formats import general
from ..formats.contents import CONFIG, GENERATION, ROPE_FILE, belonging, left_over
from ..formats.files import exists, read_text, regular
from ..formats.gguf_file import shortest
from ..formats.json_text import REMOVE, edit, edit_within
from ..formats.layout import Part
from ..formats.tensors import INDEXES, SAFETENSORS_BITS, SINGLES, Tensor, in_memory, load_json, safetensors_header
from ..readers.rows import OTHER_LENGTHS
from ..rope import table
from .moving import CopyFile, Job, Piece, WriteBytes, WriteTensors, unchanged
from .plan import FULL_ATTENTION, Plan, Request, carry_hf, check_outtype, edited, exact_in_llama_cpps_converter, versions_of

SHARD = 5_000_000_000  # bytes; the size at which transformers itself starts a new file
FOLLOWING = {"tokenizer_config.json": "model_max_length", GENERATION: "max_length"}  # files whose length is the context
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
EXACT = {"MXFP4": "BF16"}  # block types whose every value a plain type of fewer bytes than F32 holds
PATTERN = "attention.sliding_window_pattern"
WRITTEN = (MANIFEST, ROPE_FILE, *INDEXES)  # what every output has of its own, if at all
WITHOUT_CHUNKS = f"{DUAL_CHUNKS} is left out: SGLang and vLLM would take their positions from it and pass over this scaling"
ONLY_OURS = "llama.cpp's own converter loses this scaling: make the GGUF with yarn-convert --method none --out gguf"


def plan_safetensors(c: Checkpoint, r: Request) -> Plan:
    """The plan of a folder. Raises Inexpressible when transformers could not compute the RoPE from its config.json."""
    check_outtype(r.outtype, "safetensors")
    if r.pretokenizer:
        raise UsageError("--pretokenizer is for --out gguf", "tokenizer.json says it itself: leave it out")
    if r.imatrix is not None:
        raise UsageError("--imatrix is for a quantized --outtype of --out gguf", "leave it out")
    if c.packed and r.outtype != "auto":
        raise Unsupported(f"the weights are packed by {c.packed}: their type cannot be changed", "--outtype auto")
    own = c.family.model_type
    if c.gguf and c.family.hf.run_as:
        _check_keys(c)
        c = c.standing_alone()
    config = new_config(c, r.outtype) | _window(c, r) if c.gguf else dict(c.written)
    lengths = _other_lengths(c, r)
    carrier, changes, verdicts = carry_hf(c, config | lengths, r.rope, r.context, r.carry)
    versions, late = versions_of(edited(config | lengths, changes), verdicts)
    changes |= lengths
    if r.cos_sin and carrier != "tensors":
        raise UsageError("--cos-sin belongs to --carry tensors", "add --carry tensors")
    if r.full_attention and config.get("sliding_window"):
        off = {"sliding_window": None, "use_sliding_window": False, "layer_types": ["full_attention"] * c.layers}
        changes |= {k: v for k, v in off.items() if config.get(k)}
    if r.outtype != "auto":
        keys = [k for k in ("dtype", "torch_dtype") if k in config] or ["torch_dtype"]
        changes |= dict.fromkeys(keys, TORCH_NAMES[r.outtype.upper()])
    changes |= {k: REMOVE for k in c.packing.left_over if k in config}  # transformers and vLLM would look for scales
    chunked = c.written.get(DUAL_CHUNKS) is not None and r.rope != c.rope
    changes |= {DUAL_CHUNKS: REMOVE} if chunked else {}
    text = json.dumps(config, indent=2) + "\n" if c.gguf else read_text(c.source.path, CONFIG)
    weights, identical = _weights(c, r.outtype)
    jobs: list[Job] = [WriteBytes(CONFIG, edit_within(text, c.nest, changes).encode()), *weights]
    jobs += _from_gguf(c, r.context) if c.gguf else _kept_files(c, r.context)
    if carrier == "tensors":
        jobs.append(_rope_file(r))
    notes = [f"it is written as {c.family.model_type}, which computes what {own} does"] if c.family.model_type != own else []
    notes += c.packing.notes + ([WITHOUT_CHUNKS] if chunked else [])
    notes += [ONLY_OURS] if carrier == "tensors" or not exact_in_llama_cpps_converter(r.rope) else []
    notes += late + (general.untold(c.config) if c.gguf else [])
    taken = [*WRITTEN, *(job.name for job in jobs), *(f.name for f in c.weight_files)]
    if c.source.headers is not None and not c.gguf:  # only looked at, and here all the same
        taken += hf_weights(p.name for p in c.source.path.iterdir())
    left = () if c.gguf else left_over(c.source.path, taken)
    return Plan(r.out, "safetensors", r.rope, r.context, carrier, verdicts, tuple(jobs), r.outtype, identical, tuple(notes), left, versions)


def _other_lengths(c: Checkpoint, r: Request) -> dict[str, int]:
    """Those of `OTHER_LENGTHS` that a config.json has, and that follow the context: L' for the new one; L for linear, where SGLang, which
    takes the first of them, multiplies it by the factor."""
    length = r.rope.original_context if r.rope.method == "linear" else r.context
    return {k: length for k in OTHER_LENGTHS if c.gguf is None and r.context != c.context == c.written.get(k)}


def _weights(c: Checkpoint, outtype: str) -> tuple[list[Job], bool]:
    """(jobs, whether the weights stay as they are): whole files where nothing changes, else new shards."""
    same_files = c.gguf is None and all(f.suffix == ".safetensors" for f in c.weight_files)
    if same_files and (outtype == "auto" or all(t.dtype == outtype.upper() for t in c.tensors.values())):
        jobs: list[Job] = [CopyFile(f.name, f) for f in c.weight_files]
        if exists(c.source.path, INDEXES[0]):
            jobs.append(CopyFile(INDEXES[0], regular(c.source.path, INDEXES[0])))
        elif c.weight_files and c.weight_files[0].name != SINGLES[0]:  # none where the headers alone are here
            jobs.append(_index({name: t.path.name for name, t in c.tensors.items() if t.path}, sum(t.nbytes for t in c.tensors.values())))
        return jobs, True
    pieces = hf_pieces(c, outtype)
    return sharded(pieces), all(p.dtype == p.target.dtype for p in pieces)


def hf_pieces(c: Checkpoint, outtype: str) -> list[Piece]:
    """Every tensor of the folder; one that is in HF layout already keeps even the buffers that no runtime reads."""
    parts = c.parts(gguf=False) if c.gguf else {name: Part(t.shape, (t,)) for name, t in c.tensors.items()}
    return [hf_piece(name, part, outtype) for name, part in parts.items()]


def hf_piece(name: str, part: Part, outtype: str) -> Piece:
    """How a part becomes a tensor of a folder in HF layout."""
    own = part.dtype
    plain = EXACT.get(own, own if own in SAFETENSORS_BITS else "F32")
    dtype = plain if outtype == "auto" or len(part.shape) <= 1 else outtype.upper()
    if dtype != own and own in SAFETENSORS_BITS and own not in TORCH_NAMES:
        raise Unsupported(f"tensor {name!r} is {own}: its type cannot be changed", "--outtype auto")
    size = math.prod(part.shape) * SAFETENSORS_BITS[dtype] // 8
    return Piece(Tensor(name, dtype, part.shape, size), part.sources, part.order)


def sharded(pieces: list[Piece]) -> list[Job]:
    """The weight files of a folder, and their index where there are several."""
    shards: list[list[Piece]] = [[]]
    held = 0
    for p in pieces:
        held += p.target.nbytes
        if shards[-1] and held > SHARD:
            shards.append([])
            held = p.target.nbytes
        shards[-1].append(p)
    if len(shards) == 1:
        return [safetensors_job(SINGLES[0], shards[0])]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {p.target.name: name for name, shard in zip(names, shards, strict=True) for p in shard}
    jobs: list[Job] = [safetensors_job(name, shard) for name, shard in zip(names, shards, strict=True)]
    return [*jobs, _index(weight_map, sum(p.target.nbytes for p in pieces))]


def _index(weight_map: Mapping[str, str], total: int) -> Job:
    """The index of shards that hold `total` bytes of tensors."""
    return WriteBytes(INDEXES[0], json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode())


def safetensors_job(name: str, pieces: list[Piece], metadata: Mapping[str, str] | None = None) -> WriteTensors:
    header, offsets = safetensors_header([p.target for p in pieces], {"format": "pt", **(metadata or {})})
    size = len(header) + sum(p.target.nbytes for p in pieces)
    return WriteTensors(name, header, tuple((p, offsets[p.target.name]) for p in pieces), size)


def _kept_files(c: Checkpoint, context: int) -> list[Job]:
    """Everything small that belongs to the model, with the lengths that follow the context set to it."""
    jobs: list[Job] = []
    for name in belonging(c.source.path):
        folder, _, file = name.rpartition("/")
        path = regular(c.source.path / folder, file)
        if name in FOLLOWING:
            jobs.append(_with_length(path, FOLLOWING[name], c.context, context))
        elif name not in (CONFIG, *WRITTEN, *c.packing.left_over):
            jobs.append(CopyFile(name, path.resolve()))
    return jobs


def _with_length(path: Path, key: str, old: int, new: int) -> Job:
    value = load_json(path).get(key)
    return WriteBytes(path.name, edit(read_text(path.parent, path.name), {key: new} if value == old else {}).encode())


# -- from GGUF --------------------------------------------------------------------------------------------------------


def new_config(c: Checkpoint, outtype: str) -> dict[str, Any]:
    """A config.json for what a GGUF describes. Unsupported when a key of its architecture is not understood."""
    assert c.gguf is not None
    family, pieces = c.family, hf_pieces(c, outtype)
    _check_keys(c)
    dtypes = {p.target.dtype: p.target.elements for p in pieces if len(p.target.shape) > 1}
    said = family.hf.writes(c.hparams, c.tensors)
    ids = [c.gguf.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id", "padding_token_id")]
    config = {
        "architectures": list(family.hf.architectures[:1]),
        **dict(zip(general.IDS, ids, strict=True)),
        **_implied(family),
        **{switch: _switched(c, parts) for switch, parts in family.hf.switches.items() if switch and switch[0] != "!"},
        "model_type": family.model_type,
        **{family.hf.own(key): shortest(value) for key, value in c.hparams.items() if key not in family.hf.unsaid},
        **said,
        **_windows(c),
        "torch_dtype": TORCH_NAMES[max(dtypes, key=lambda d: dtypes[d])],
        "use_cache": True,
    }
    if beside := {k: config.pop(k) for k in dialects.BESIDE if k in config}:
        config["rope_parameters"] = {"rope_type": "default", **beside}
    if c.rope.rotary_dim != c.head_dim * (family.hf.partial or 1):
        config[family.hf.own("partial_rotary_factor")] = c.rope.rotary_dim / c.head_dim
    if family.hf.dims:
        config[family.hf.dims] = c.rope.rotary_dim
    return {k: v for k, v in config.items() if v is not None or k in said}


def _windows(c: Checkpoint) -> dict[str, Any]:
    """Which layers of a GGUF slide, where it says so itself; its architecture's own order of them is in `ModelType.writes`."""
    given = c.config.get(f"{c.family.gguf_arch}.{PATTERN}") if "usual_windows" in c.family.fixed else None
    return {} if given is None else {"layer_types": [SLIDES if x else FULL for x in slides(given, c.layers)]}


def _window(c: Checkpoint, r: Request) -> dict[str, Any]:
    """The sliding window of a GGUF's model, which llama.cpp does not apply; Inexpressible where transformers would apply it to the base's
    own context, or the family has none."""
    key = f"{c.family.gguf_arch}.{WINDOW}"
    window = c.own_window or (c.config.get(key) if c.family.hf.windowed else None)
    if not window or r.full_attention:
        return {}
    if not c.family.hf.windowed:
        if window >= r.context:
            return {}
        raise Inexpressible(
            f"{c.family.name} has no sliding window, and the model that this GGUF was made of has one of {window:,} tokens",
            FULL_ATTENTION,
        )
    if dialects.positive_int(window, WINDOW) < r.context and not c.own_window:
        raise Inexpressible(
            f"the GGUF names a sliding window of {window:,} tokens, which llama.cpp does not apply and transformers would",
            "--sliding-window off computes in the folder what llama.cpp computes",
        )
    return {"sliding_window": window}


def _implied(family: Family) -> dict[str, Any]:
    """What the GGUF architecture implies and config.json says: the activation, and what is not transformers' default."""
    return {k: v[0] for k, v in family.fixed.items() if k in ACTIVATIONS or (k in family.hf.defaults and family.hf.defaults[k] != v[0])}


def _check_keys(c: Checkpoint) -> None:
    """Raise Unsupported for a key of the architecture that config.json has no known place for."""
    if leftover := unplaced_keys(c):
        raise Unsupported(f"GGUF keys that config.json has no known place for: {', '.join(leftover)}", "--out gguf keeps them")


def unplaced_keys(c: Checkpoint) -> list[str]:
    """Keys of a GGUF's architecture that config.json has no known place for."""
    assert c.gguf is not None
    arch, family = c.family.gguf_arch, c.family
    known = {family.gguf_key(k)[0] for k in family.hparams} | {f"{arch}.{k}" for k in (*family.gguf_known, *family.constants)}
    known |= {f"{arch}.{PATTERN}"} if "usual_windows" in family.fixed else set()
    # Ollama's converter says some things twice; a router's weights are normalized by llama.cpp where they may be said to be.
    again = {"attention.head_dim": c.head_dim, "max_position_embeddings": c.context, "norm_top_k_prob": True, "attention.causal": True}
    known |= {key for k, value in again.items() if c.config.get(key := f"{arch}.{k}") == value}
    return [k for k in c.gguf.fields if k.startswith(f"{arch}.") and not k.startswith(f"{arch}.rope.") and k not in known]


def _switched(c: Checkpoint, parts: tuple[str, ...]) -> bool:
    """Whether all these tensors are in every layer; Unsupported when only some are: config.json has one switch."""
    found = sum(f"blk.{i}.{part}" in c.tensors for i in range(c.layers) for part in parts)
    if found not in (0, c.layers * len(parts)):
        raise Unsupported(f"only some of {', '.join(parts)} are there, and config.json can say all or none", "--out gguf keeps them")
    return found > 0


def _from_gguf(c: Checkpoint, context: int) -> list[Job]:
    assert c.gguf is not None
    files = tokenizers.to_hf(c.gguf.vocabulary)
    files["tokenizer_config.json"] = edit(files["tokenizer_config.json"].decode(), {"model_max_length": context}).encode()
    bos, *ends = (c.gguf.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", *general.ENDS))
    more = c.gguf.get(general.MORE_ENDS)
    ends += [i for i in more if type(i) is int and 0 <= i < c.hparams["vocab_size"]] if isinstance(more, list) else []
    ends = list(dict.fromkeys(i for i in ends if i is not None))
    ids = {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None}
    ids = {k: v for k, v in ids.items() if v is not None}
    keys = {k: v for k, v in c.config.items() if k.startswith("general.")}
    files[GENERATION] = (json.dumps(ids | general.to_generation(keys), indent=2) + "\n").encode()
    if said := general.to_card(keys):
        files[general.README] = general.card_text(said).encode()
    return [WriteBytes(name, data) for name, data in files.items()]


def _rope_file(r: Request) -> Job:
    """`rope.safetensors`: the table in float64, the multiplier and recipe in its metadata, and the caches on request.

    The names are those that vLLM's and SGLang's loaders skip when they read every .safetensors of a folder.
    """
    inv_freq, multiplier = table(r.rope)
    arrays = {"rotary_emb.inv_freq": (inv_freq, "F64")}
    if r.cos_sin:
        angles = np.arange(r.context, dtype=np.float64)[:, None] * inv_freq
        arrays["rotary_emb.cos_cached"] = ((np.cos(angles) * multiplier).astype("<f4"), "F32")
        arrays["rotary_emb.sin_cached"] = ((np.sin(angles) * multiplier).astype("<f4"), "F32")
    pieces = [unchanged(in_memory(name, a, dtype)) for name, (a, dtype) in arrays.items()]
    metadata = {"attention_factor": repr(multiplier), "recipe": json.dumps(r.recipe)}
    return safetensors_job(ROPE_FILE, pieces, metadata)
