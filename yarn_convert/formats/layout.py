"""How a tensor of one layout is made of tensors of the other, HF's and GGUF's: rows move, and hardly anything else.

Every transform is written here once, from HF to GGUF, as an `Order` of each GGUF tensor; its inverse is computed. `targets.moving` runs
an order on bytes, a piece at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, Unsupported
from ..families import Family
from ..families.schema import NO_EXPERT, Times, numbered
from .changes import without_ones
from .orders import AS_IT_IS, Apart, Order, rows_of
from .tensors import Tensor

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of one layout, of this shape, and the tensors of a checkpoint that it is made of."""

    shape: tuple[int, ...]
    sources: tuple[Tensor, ...]
    order: Order = AS_IT_IS

    @property
    def dtype(self) -> str:
        return self.order.dtype(self.sources)

    def turned(self, by: int) -> Part | None:
        """The same with its rows interleaved once more (1) or once less (−1); None where rows never are."""
        wanted = self.order.turn + by
        return replace(self, order=replace(self.order, turn=wanted)) if self.order.unit > 1 and abs(wanted) <= 1 else None


@dataclass(frozen=True, slots=True)
class Transform:
    """How HF tensors of one kind become GGUF's, in a model of these sizes, and back. `saved`: how those of another shape do, as which
    transformers saves what is published in the first."""

    take: Callable[[Sizes], Apart]
    saved: Callable[[Sizes], Apart] | None = None

    def of(self, shape: tuple[int, ...], sizes: Sizes) -> Transform:
        """The transform of an HF tensor of this shape: what has both is not turned (transformers, Transpose with check_dims)."""
        fits = self.saved is not None and self.saved(sizes).shape == shape
        return Transform(self.saved) if self.saved and fits else self

    def to_gguf(self, sizes: Sizes, part: int) -> Order:
        """The order of the GGUF tensor number `part` of those that an HF tensor gives."""
        parts = _taken(self.take, frozenset(sizes.items()))[0].parts
        return parts[part] if len(parts) > 1 else parts[0]

    def to_hf(self, sizes: Sizes) -> Order:
        """The order of the HF tensor from all of them."""
        return _taken(self.take, frozenset(sizes.items()))[1]

    def mxfp4(self, sizes: Sizes, part: int) -> Order:
        """As `gguf_parts`, from an HF tensor of 4-bit blocks, which lie as GGUF's rows do, and its scales."""
        order = self.to_gguf(sizes, part)
        return Order(index=order.index, shape=order.shape, mxfp4=True)


@lru_cache(maxsize=16)
def _taken(take: Callable[[Sizes], Apart], sizes: frozenset[tuple[str, int]]) -> tuple[Apart, Order]:
    """(what `take` makes, its inverse): gpt-oss has 700,000 rows in each of 72 tensors."""
    taken = take(dict(sizes))
    return taken, taken.back()


def _heads(s: Sizes) -> tuple[NDArray[np.int64], ...]:
    """The blocks of Q, K and V where each group of heads holds its queries, one key and one value."""
    blocks = np.arange(s["heads"] + 2 * s["kv_heads"]).reshape(s["kv_heads"], -1)
    return blocks[:, :-2].reshape(-1), blocks[:, -2], blocks[:, -1]


def _groups_of_heads(s: Sizes) -> Apart:
    return Apart((Order(s["head"], np.concatenate(_heads(s))),))


def _heads_of_three(s: Sizes) -> Apart:
    """Each head holds its own query, key and value."""
    return Apart((Order(s["head"], np.arange(3 * s["heads"]).reshape(-1, 3).T.reshape(-1)),))


def _split_groups(s: Sizes) -> Apart:
    """Queries and keys are interleaved, values are not."""
    parts = tuple(Order(s["head"], blocks, turn=turn) for blocks, turn in zip(_heads(s), (1, 1, 0), strict=True))
    return Apart(parts, ((s["heads"] + 2 * s["kv_heads"]) * s["head"], s["hidden"]))


# gpt-oss keeps gate and up of an expert in turn, as columns of a matrix that GGUF has the other way round


def _columns(s: Sizes) -> Apart:
    """Even and odd columns of each expert's matrix, (hidden, 2·ff), as rows."""
    e, ff, hidden = s["experts"], s["expert_ff"], s["hidden"]
    rows = [np.arange(part, 2 * e * ff, 2) for part in (0, 1)]
    return Apart(tuple(Order(index=i, sources_turned=(hidden,), shape=(e, ff, hidden)) for i in rows), (e, hidden, 2 * ff))


def _column_halves(s: Sizes) -> Apart:
    """As `_columns`, for Llama 4, where gate's columns come before up's."""
    e, ff, hidden = s["experts"], s["expert_ff"], s["hidden"]
    parts = tuple(Order(ff, np.arange(part, 2 * e, 2), sources_turned=(hidden,), shape=(e, ff, hidden)) for part in (0, 1))
    return Apart(parts, (e, hidden, 2 * ff))


def _biases(s: Sizes) -> Apart:
    """Even and odd columns of one matrix, (experts, 2·ff)."""
    e, ff = s["experts"], s["expert_ff"]
    rows = [np.arange(part, 2 * ff, 2) for part in (0, 1)]
    return Apart(tuple(Order(index=i, sources_turned=(e,), target_turned=ff, shape=(e, ff)) for i in rows), (e, 2 * ff))


def _latent(s: Sizes) -> Apart:
    """DeepSeek's kv_b_proj: each head's keys, transposed, and its values."""
    heads, nope, value, latent = s["heads"], s["nope"], s["value"], s["kv_lora"]
    unit = gcd(nope, value)
    blocks = np.arange(heads * (nope + value) // unit).reshape(heads, -1)
    keys = Order(unit, blocks[:, : nope // unit].reshape(-1), target_turned=nope, shape=(heads, latent, nope))
    values = Order(unit, blocks[:, nope // unit :].reshape(-1), shape=(heads, value, latent))
    return Apart((keys, values), (heads * (nope + value), latent))


def _transposed(s: Sizes) -> Apart:
    e, ff, hidden = s["experts"], s["expert_ff"], s["hidden"]
    return Apart((Order(sources_turned=(ff,), shape=(e, hidden, ff)),), (e, ff, hidden))


def _experts(s: Sizes) -> Apart:
    whole = (s["experts"], s["hidden"], s["expert_ff"])
    return Apart((Order(shape=whole),), whole)


def _halves(s: Sizes) -> Apart:
    """Granite's experts: gate above up in one matrix; a block is half of it."""
    e, ff, hidden = s["experts"], s["expert_ff"], s["hidden"]
    return Apart(tuple(Order(ff, np.arange(part, 2 * e, 2), shape=(e, ff, hidden)) for part in (0, 1)), (e, 2 * ff, hidden))


def _two_halves(s: Sizes) -> Apart:
    """Of the one that every token sees."""
    ff = s["shared_ff"]
    return Apart(tuple(Order(ff, (part,), shape=(ff, s["hidden"])) for part in (0, 1)), (2 * ff, s["hidden"]))


# Linear attention: a key head has several value heads, one after another in HF; ggml repeats key heads in turn


def _padded(s: Sizes) -> Apart:
    """Embeddings of fewer tokens than the model has: a GGUF has rows of zeros for the others."""
    own, columns = s["vocab_ple"], s["ple_all"]
    if own >= s["vocab"]:
        return Apart((AS_IT_IS,))
    return Apart((Order(shape=(s["vocab"], columns), zeros=s["vocab"] - own),), (own, columns))


def _by_rows(unit: int, blocks: NDArray[np.int64], shape: tuple[int, ...] = ()) -> Order:
    """Rows one by one, in blocks of `unit`: what is no head of attention never turns."""
    return Order(1, rows_of(Order(unit, blocks)), shape=shape)


def _of_values(s: Sizes) -> NDArray[np.int64]:
    """The value heads in the order of a GGUF: the first of each key head, the second of each …"""
    return np.arange(s["v_heads"]).reshape(s["k_heads"], -1).T.reshape(-1)


def _value_columns(s: Sizes) -> Apart:
    """Of a matrix that takes what they give: blocks of its columns."""
    hidden, columns = s["hidden"], s["linear_v"]
    if s["v_heads"] == s["k_heads"]:
        return Apart((AS_IT_IS,))
    order = replace(_by_rows(s["head_v"], _of_values(s), (hidden, columns)), sources_turned=(hidden,), target_turned=columns)
    return Apart((order,), (hidden, columns))


def _after_keys(s: Sizes, shape: tuple[int, ...] = ()) -> Order:
    """Queries and keys as they lie, then the values in a GGUF's order."""
    values = rows_of(Order(s["head_v"], _of_values(s)))
    keys = s["linear_qkv"] - len(values)
    return _by_rows(1, np.concatenate([np.arange(keys), keys + values]), shape)


def _split_key_heads(s: Sizes) -> Apart:
    """Qwen3-Next: each key head holds its query, its key, its values and their gates."""
    n, key, values = s["k_heads"], s["head_k"], s["linear_v"] // s["k_heads"]
    at = np.arange(n * 2 * (key + values)).reshape(n, -1)
    *qkv, gates = np.split(at, (key, 2 * key, 2 * key + values), axis=1)
    return Apart((_by_rows(1, np.concatenate([x.reshape(-1) for x in qkv])), _by_rows(1, gates.reshape(-1))))


def _convolution(s: Sizes) -> Apart:
    """Of queries, keys and values; a GGUF leaves out the dimension of one."""
    rows, kernel = s["linear_qkv"], s["kernel"]
    return Apart((_after_keys(s, (rows, kernel)),), (rows, 1, kernel))


TRANSFORMS: Mapping[str, Transform] = {
    "": Transform(lambda s: Apart((AS_IT_IS,))),
    "interleave": Transform(lambda s: Apart((Order(s["head"], turn=1),))),
    "add_one": Transform(lambda s: Apart((Order(change="x + 1"),))),
    "heads_of_three": Transform(_heads_of_three),
    "groups_of_heads": Transform(_groups_of_heads),
    "split_groups": Transform(_split_groups),
    "columns_in_turn": Transform(_columns),
    "column_halves": Transform(_column_halves),
    "column_halves_or_saved": Transform(_column_halves, saved=_halves),
    "in_turn": Transform(_biases),
    "transposed": Transform(_transposed),
    "transposed_or_saved": Transform(_transposed, saved=_experts),
    "latent": Transform(_latent),
    "halves": Transform(_halves),
    "two_halves": Transform(_two_halves),
    "value_heads": Transform(lambda s: Apart((_by_rows(s["head_v"], _of_values(s)),))),
    "value_columns": Transform(_value_columns),
    "by_value_head": Transform(lambda s: Apart((Order(1, _of_values(s)),))),
    "decay": Transform(lambda s: Apart((Order(change="-exp(x)"),))),
    "decay_by_value_head": Transform(lambda s: Apart((Order(1, _of_values(s), change="-exp(x)"),))),
    "after_keys": Transform(lambda s: Apart((_after_keys(s),))),
    "convolution_after_keys": Transform(_convolution),
    "convolution": Transform(lambda s: Apart((Order(shape=(s["linear_qkv"], s["kernel"])),), (s["linear_qkv"], 1, s["kernel"]))),
    "short_convolution": Transform(lambda s: Apart((Order(shape=(s["hidden"], s["kernel"])),), (s["hidden"], 1, s["kernel"]))),
    "gate_above_up": Transform(lambda s: Apart(tuple(_by_rows(s["ff"], np.array([part])) for part in (0, 1)))),
    "column": Transform(lambda s: Apart((Order(shape=(s["v_heads"], 1)),), (s["v_heads"],))),
    "decay_column": Transform(lambda s: Apart((Order(change="-exp(x)", shape=(s["v_heads"], 1)),), (s["v_heads"],))),
    "by_group": Transform(lambda s: Apart((Order(shape=(s["groups"], s["group"])),), (s["inner"],))),
    "padded": Transform(_padded),
    "split_key_heads": Transform(_split_key_heads),
}


def gguf_parts(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes, times: Mapping[str, Times]) -> dict[str, Part]:
    """The parts of a GGUF, by their names, from the tensors of an HF folder; buffers that no runtime reads are left out.

    Raises Unsupported for a tensor without a name, FormatError for experts that are missing or differ.
    """
    scales = scales_of(family, tensors)
    second = {t.name for t in scales.values()}
    found: dict[str, tuple[str, int, dict[int, Tensor]]] = {}
    for name, t in tensors.items():
        if name not in second:
            for gguf_name, part, expert in family.to_gguf(name):
                found.setdefault(gguf_name, (name, part, {}))[2][expert] = t
    parts = {gguf: _to_gguf(family, gguf, part, experts, sizes, scales.get(hf)) for gguf, (hf, part, experts) in found.items()}
    return {name: times_of(part, name, times) for name, part in parts.items()}


def times_of(part: Part, gguf_name: str, times: Mapping[str, Times]) -> Part:
    """A part whose numbers are multiplied besides, by what `times` has for the tensor of this GGUF name."""
    kept = without_ones(times.get(numbered(gguf_name).template, ()))
    return replace(part, order=replace(part.order, times=kept)) if kept else part


def scales_of(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scales of each tensor of 4-bit blocks. FormatError for one of the two without the other, or of other shapes."""
    found: dict[str, Tensor] = {}
    for blocks, scales in family.scales.items():
        mine, theirs = blocks.rpartition("_")[2], scales.rpartition("_")[2]
        ends = {mine: theirs, theirs: mine}
        for name, t in tensors.items():
            stem, _, end = name.rpartition("_")
            if end not in ends or numbered(name).template not in (blocks, scales):
                continue
            other = tensors.get(f"{stem}_{ends[end]}")
            if other is None or (end == mine and (t.dtype, other.dtype, t.shape) != ("U8", "U8", (*other.shape, 16))):
                raise FormatError(f"{name} and its {ends[end]} do not belong together", "the checkpoint is incomplete: get it again")
            if end == mine:
                found[name] = other
    return found


def _to_gguf(family: Family, name: str, part: int, experts: dict[int, Tensor], sizes: Sizes, scales: Tensor | None) -> Part:
    sources = tuple(experts[e] for e in sorted(experts))
    stacked = NO_EXPERT not in experts  # experts that lie one by one: a transform is of those that lie in one tensor
    transform = TRANSFORMS["" if stacked else family.transform(name)].of(sources[0].shape, sizes)
    if scales is not None:
        order = transform.mxfp4(sizes, part)
        _check_shape(sources[0], transform.to_hf(sizes).shape, True)
        return Part(order.shape, (*sources, scales), order)
    alike(name, sources)
    if stacked and sorted(experts) != list(range(len(experts))):
        raise FormatError(
            f"{name}: {len(experts)} experts are there, up to number {max(experts)}", "the checkpoint is incomplete: get it again"
        )
    order = transform.to_gguf(sizes, part)
    if order.shape:
        _check_shape(sources[0], transform.to_hf(sizes).shape, False)
    return Part(_shape(sources, order, stacked), sources, order)


def _check_shape(t: Tensor, whole: tuple[int, ...], mxfp4: bool) -> None:
    """Raise FormatError unless an HF tensor has the shape that its order takes it apart by."""
    expected = (whole[0], whole[2], whole[1] // 32, 16) if mxfp4 else whole
    if t.shape != expected:
        raise FormatError(
            f"{t.name} has the shape {list(t.shape)}, the config describes {list(expected)}", "config and weights do not belong together"
        )


def _shape(sources: tuple[Tensor, ...], order: Order, stacked: bool) -> tuple[int, ...]:
    """The shape of what an order makes of sources that are all alike."""
    first = sources[0].shape
    if order.shape or order.index is None:
        return order.shape or ((len(sources), *first) if stacked else first)
    return (len(order.index) * order.unit, *first[1:])


def hf_parts(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Part]:
    """The parts of an HF folder, by their names, from the tensors of a GGUF. Raises Unsupported for one without a name."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, t in tensors.items():
        template, part = family.to_hf(name, tensors)
        found.setdefault(template, {})[part] = t
    result: dict[str, Part] = {}
    for template, pieces in found.items():
        sources = tuple(pieces[k] for k in sorted(pieces))
        order = TRANSFORMS[family.transform(sources[0].name)].to_hf(sizes)
        if "{e}" in template:
            result |= {template.replace("{e}", str(e)): expert(sources[0], e) for e in range(sources[0].shape[0])}
            continue
        if not order.shape:
            alike(template, sources)
        shape = order.shape or (sum(t.shape[0] for t in sources), *sources[0].shape[1:])
        result[template] = Part(shape, sources, order)
    return result


def expert(t: Tensor, e: int) -> Part:
    """One expert of a stacked tensor: a slice of its file."""
    nbytes = t.nbytes // t.shape[0]
    data = None if t.data is None else t.data[e * nbytes : (e + 1) * nbytes]
    return Part(t.shape[1:], (Tensor(f"{t.name}[{e}]", t.dtype, t.shape[1:], nbytes, t.path, t.offset + e * nbytes, data, t.remote),))


def as_they_are(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes, gguf: bool) -> dict[str, Part]:
    """The parts of a layout from a checkpoint that has it already. Where the other one interleaves rows, the order says whose."""

    def order(name: str) -> Order:
        names = [name] if gguf else [n for n, _, _ in family.to_gguf(name)]
        return Order(sizes["head"]) if any(family.transform(n) == "interleave" for n in names) else AS_IT_IS

    kept = (name for name in tensors if gguf or family.to_gguf(name) or numbered(name).template in family.in_keys)
    return {name: Part(tensors[name].shape, (tensors[name],), order(name)) for name in kept}


def rounded_by_gguf(family: Family, name: str, sizes: Sizes) -> str:
    """The change of a tensor's numbers on its way from an HF folder to a GGUF, which float32 rounds, as it does that back; "" for one
    whose rows alone move."""
    return next((TRANSFORMS[family.transform(n)].to_gguf(sizes, part).change for n, part, _ in family.to_gguf(name)), "")


def unpacked(family: Family, parts: Mapping[str, Part], tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """The parts of an HF folder with the matrices of numbers that transformers makes of 4-bit blocks and their scales."""
    scales = scales_of(family, tensors)
    seconds = {t.name for t in scales.values()}
    plain = {name: part for name, part in parts.items() if name not in scales and name not in seconds}
    return plain | {name.removesuffix("_blocks"): _numbers(parts[name], t) for name, t in scales.items()}


def _numbers(blocks: Part, scales: Tensor) -> Part:
    """The matrices (experts, columns, rows) that MXFP4 blocks (experts, rows, columns/32, 16) stand for."""
    experts, rows, columns = blocks.shape[0], blocks.shape[1], blocks.shape[2] * 32
    return Part((experts, columns, rows), (*blocks.sources, scales), Order(target_turned=rows, mxfp4=True))


def alike(name: str, sources: Sequence[Tensor]) -> None:
    if len({(t.dtype, t.shape[1:]) for t in sources}) > 1:
        raise Unsupported(
            f"the tensors that make {name} differ in their type or width: {', '.join(t.name for t in sources[:3])}", "make them alike"
        )


def part_of(gguf_name: str) -> str:
    """A GGUF name without its layer: "attn_q.weight"."""
    parts = gguf_name.split(".")
    return ".".join(parts[2:] if parts[0] == "blk" else parts)
