"""The cut of a checkpoint: some of its layers with their own weights, the embedding, the final norm and the head, as a small model.

It is written by the same writers, in the types that the file has, with the layers numbered anew and all other keys as they are. So the
real weights of a model that no memory here holds, its experts and its types among them, run in the reference and in every runtime.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.config import within
from ..checkpoint.model import MORE_LAYERS
from ..checkpoint.source import Source
from ..errors import Unsupported, many
from ..families.architectures import below
from ..families.layers import Layer
from ..families.schema import NUMBER, numbered
from ..formats import layout
from ..formats.dtypes import to_f32
from ..formats.files import read_text
from ..formats.gguf_file import DEFAULT_ALIGNMENT, Field, Value, block_sizes
from ..formats.json_text import REMOVE, edit_within
from ..formats.layout import Part
from ..formats.tensors import SAFETENSORS_BITS, SINGLES, Tensor, in_memory
from ..targets.moving import Job, Piece, WriteBytes, unchanged
from ..targets.output import execute
from ..targets.parts import gguf_job
from ..targets.rows import block_of
from ..targets.safetensors import safetensors_job
from .twin import BY_LAYER, fewest_layers

BEHIND = "nextn_predict_layers"  # layers behind the last, which a cut has not
SHARE, EACH = "num_kv_shared_layers", "vocab_size_per_layer_input"  # the last so many layers take keys of others; tokens of Gemma's
DENSE = "first_k_dense_replace"  # the first so many layers have no experts
TOKENS = ("vocab", "ple_rows")  # sizes of what has a row for each token
LISTS = (*BY_LAYER, "intermediate_size", "num_key_value_heads", "num_attention_heads", "mlp_layer_types")  # with an entry for each layer
NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs")  # lists of config.json of the numbers of layers
NO_CODE = {"auto_map": REMOVE}  # which lies in files that a cut has not
WHOLE = "--twin runs the twin alone, --cut 0 the whole model"


@dataclass(frozen=True, slots=True)
class Cut:
    """Which `layers` of a model are kept, in their order, and which `tokens`, int64[n], of its vocabulary; None: all. `f32`: every tensor
    is dequantized."""

    layers: tuple[int, ...]
    tokens: NDArray[np.int64] | None = None
    f32: bool = False


def kept_layers(c: Checkpoint, n: int) -> tuple[int, ...]:
    """The layers of a cut of `c`: the first `n`, or as many as show each kind of layer that it has; where the first alone have no experts,
    `n` of these and the last `n`.

    Code counts layers where it alternates kinds, and only from the first on, so nothing between is left out there.
    """
    kinds, dense, fewest = _kinds(c), c.hparams.get(DENSE) or 0, fewest_layers(c)
    if 0 < dense < c.layers and len({*kinds[:dense]}) == len({*kinds[dense:]}) == 1 and fewest == 1:
        return (*range(min(n, dense)), *range(max(dense, c.layers - n), c.layers))
    firsts = {kind: i for i, kind in reversed([*enumerate(kinds)])}
    least = min(max(n, fewest, *(i + 1 for i in firsts.values())), c.layers)
    return tuple(range(last_sees_all(c, least) or last_sees_all(c, c.layers)))


def last_sees_all(c: Checkpoint, n: int) -> int:
    """`n`, or so many of the first layers that the last of them sees all, which transformers makes of Gemma 4's; 0 where none does."""
    slides = c.hparams.get("slides_by_layer") or [False] * n
    return max((i + 1 for i in range(n) if not slides[i]), default=0 if any(slides) else n)


def _kinds(c: Checkpoint) -> list[tuple[Any, ...]]:
    """What tells layers apart: their tensors, what lists say of them, whether they turn and what they see."""
    tensors: dict[int, set[Any]] = {i: set() for i in range(c.layers)}
    for name, part in c.parts(gguf=True).items():
        if name.startswith("blk."):
            tensors[numbered(name).layer].add((layout.part_of(name), part.shape))
    said = (*(c.config.get(k) for k in LISTS), *map(c.hparams.get, c.family.hparams))
    lists = [v for v in said if isinstance(v, list) and _is_by_layer(v, c.layers)]
    turning: list[Layer | None] = [*_turning(c)] or [None] * c.layers
    return [(frozenset(tensors[i]), *(str(v[i]) for v in lists), turning[i]) for i in range(c.layers)]


def _is_by_layer(value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers > 1


def _turning(c: Checkpoint) -> list[Layer]:
    """Which layers turn, where the family has some that do not; one that is said of all stands for each."""
    if c.gguf:
        turning, said = c.family.gguf.turning, below(c.family.gguf_arch, c.config)
    else:
        turning, said = c.family.hf.turning, dict(c.config)
    found = turning(said, c.layers) if turning else []
    return found * c.layers if len(found) == 1 else found


def layer_of(c: Checkpoint, name: str) -> int | None:
    """The layer that a tensor of `c` is in; None for one outside of layers, −1 for one that a cut leaves out: what no runtime reads."""
    if c.gguf:
        return numbered(name).layer if name.startswith("blk.") else None
    known = c.names.get(name)
    if known is None:
        return None
    if name in c.unused or c.family.is_buffer(known):
        return -1
    if numbered(known).template in c.family.in_keys:
        return numbered(known).layer
    first = c.family.to_gguf(known)[0][0]
    return numbered(first).layer if first.startswith("blk.") else None


def needed(c: Checkpoint, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """Those tensors of `c` that a cut of these layers is made of."""
    return {name: t for name, t in c.tensors.items() if (i := layer_of(c, name)) is None or i in layers}


def write_cut(c: Checkpoint, cut: Cut, out: Path, instead: Mapping[str, Part] | None = None, own: bool = True) -> Checkpoint:
    """Write a cut of `c` to `out`, a folder or a .gguf file as `c` is, and open it.

    `instead`: what its tensors are made of, by their names in `c`, in place of its own: another's, in the types of `c` where `own`, else
    in theirs. Raises Unsupported for a type that is not written, and for a model whose code computes otherwise with fewer layers.
    """
    n = len(cut.layers)
    smaller = c.family.sizes({**c.described, "num_hidden_layers": n})
    sizes = {size: many for size, many in smaller.items() if many != c.sizes.get(size)}
    pieces = []
    for name, t in needed(c, cut.layers).items():
        part = (instead or {}).get(name) or Part(t.shape, (t,))
        dtype = "F32" if cut.f32 else t.dtype if own or instead is None else _type(c, part.dtype)
        pieces.append(_piece(c, name, _renamed(c, name, cut.layers), part, dtype, sizes, cut.tokens))
    if c.gguf:
        pieces += [unchanged(c.gguf.tensors[name]) for name in c.factors]
        jobs: list[Job] = [gguf_job(out.name, _fields(c, cut), pieces, DEFAULT_ALIGNMENT)]
    else:
        jobs = [WriteBytes("config.json", _config(c, cut).encode()), safetensors_job(SINGLES[0], pieces)]
    execute(jobs, out, folder=c.gguf is None)
    small = open_checkpoint(Source(out, f"{'excerpt' if cut.f32 else 'cut'} of {c.source.name}"))
    whole = _turning(c)
    if whole and _turning(small) != [whole[i] for i in cut.layers]:
        raise Unsupported(f"with {many(n, 'layer')} {c.family.name} turns others of them than with {c.layers}, so it cannot be cut", WHOLE)
    return small


def _type(c: Checkpoint, dtype: str) -> str:
    """A type of the base that the format of `c` has, or F32."""
    known = {name for name, _, _ in block_sizes().values()} if c.gguf else SAFETENSORS_BITS
    return dtype if dtype in known else "F32"


def _renamed(c: Checkpoint, name: str, layers: tuple[int, ...]) -> str:
    layer = layer_of(c, name)
    return name if layer is None else NUMBER.sub(str(layers.index(layer)), name, count=1)


def _piece(c: Checkpoint, name: str, new: str, part: Part, dtype: str, sizes: Mapping[str, int], tokens: NDArray[np.int64] | None) -> Piece:
    """One tensor, as `new`; of one that has a row or an entry for each token, those of `tokens`, and of one that has some for each layer,
    those of the first, so many as `sizes` has: these in float32."""
    in_gguf = name if c.gguf else next((n for n, _, _ in c.family.to_gguf(c.names[name])), "") if name in c.names else ""
    names = c.family.shape(layout.part_of(in_gguf)) if in_gguf and (sizes or tokens is not None) else ()
    names = names if len(names) == len(part.shape) else ()
    first = tuple(min(n, sizes.get(size, n)) for size, n in zip(names, part.shape, strict=True)) if names else part.shape
    of_tokens = tokens is not None and bool(names) and names[0] in TOKENS
    if first == part.shape and not of_tokens:
        elements, stored = block_of(dtype)
        return Piece(Tensor(new, dtype, part.shape, math.prod(part.shape) // elements * stored), part.sources, part.order)
    if not part.order.is_plain or len(part.sources) > 1:
        raise Unsupported(f"{name} has numbers of every layer that lie otherwise in the base", WHOLE)
    t = part.sources[0]
    row = t.nbytes // t.shape[0]
    rows = [to_f32(t.read(int(i) * row, row), t.dtype) for i in (tokens if of_tokens and tokens is not None else range(first[0]))]
    kept = (slice(None), *map(slice, first[1:]))
    return unchanged(in_memory(new, np.ascontiguousarray(np.stack(rows).reshape(len(rows), *t.shape[1:])[kept]), "F32"))


def _fields(c: Checkpoint, cut: Cut) -> dict[str, Field | Value]:
    """The architecture's keys, with the cut's sizes; of an array that has an entry for each layer, those of its own."""
    assert c.gguf is not None
    arch, layers = c.gguf.arch, len(cut.layers)
    tokens = c.tensors["token_embd.weight"].shape[0] if cut.tokens is None else len(cut.tokens)
    named = {"general.architecture", *(c.family.gguf_key(k)[0] for k in c.family.hparams)}
    fields: dict[str, Field | Value] = {k: v for k, v in c.gguf.fields.items() if k in named or k.startswith(f"{arch}.")}
    for key, field in fields.items():
        value: Any = c.gguf.get(key)
        if _is_by_layer(value, c.layers):
            assert isinstance(field, Field)
            fields[key] = Value(field.type, [value[i] for i in cut.layers])
    fields |= {f"{arch}.block_count": Value("u32", layers), f"{arch}.vocab_size": Value("u32", tokens)}
    fields |= {f"{arch}.{BEHIND}": Value("u32", 0)} if f"{arch}.{BEHIND}" in fields else {}
    sizes = _counted(c, cut) | ({} if cut.tokens is None else {EACH: tokens})
    fields |= {c.family.gguf_key(key)[0]: Value("u32", n) for key, n in sizes.items() if key in c.family.hparams}
    return fields | {"tokenizer.ggml.model": Value("str", "none")}


def _counted(c: Checkpoint, cut: Cut) -> dict[str, int]:
    """How many layers of a kind the cut has, of those that a model counts."""
    found = {SHARE: max((c.hparams.get(SHARE) or 0) - (c.layers - len(cut.layers)), 0)}
    return found | {DENSE: sum(i < c.hparams[DENSE] for i in cut.layers)} if c.hparams.get(DENSE) else found


def _config(c: Checkpoint, cut: Cut) -> str:
    """config.json with the cut's layers."""
    text = read_text(c.source.path, "config.json")
    config = within(json.loads(text), c.nest)
    changes: dict[str, Any] = {c.family.hf.own("num_hidden_layers"): len(cut.layers)}
    changes |= {k: [config[k][i] for i in cut.layers] for k in LISTS if _is_by_layer(config.get(k), c.layers)}
    for key in (k for k in NUMBERS if isinstance(config.get(k), list)):
        changes[key] = [new for new, old in enumerate(cut.layers) if old in config[key]]
    changes |= {own: n for key, n in _counted(c, cut).items() if (own := c.family.hf.own(key)) in config}
    changes |= {MORE_LAYERS: 0} if config.get(MORE_LAYERS) else {}
    return edit_within(text, c.nest, changes | {k: v for k, v in NO_CODE.items() if k in config})
