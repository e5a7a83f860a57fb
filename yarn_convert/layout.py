"""How a tensor of one layout is made of tensors of the other, HF's and GGUF's: rows move, and hardly anything else.

Both directions of every transform are written here as an `Order`; `targets.moving` runs it on bytes, a piece at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, Unsupported
from .families import Family
from .families.schema import NO_EXPERT, numbered
from .tensors import Tensor

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Order:
    """The rows of a target, taken from its sources laid end to end.

    They come in blocks of `unit` rows (0: all are one block), in the order of `index` (None: as they lie). Inside a block
    rows (2, unit/2) become (unit/2, 2) where `turn` is 1, and back where it is −1. `sources_turned` and `target_turned` are
    rows of the matrices that are transposed before and after that, 0 for none. `added` is added to every number. `shape` is
    the target's, where it does not follow from the sources' and `index`. `mxfp4`: the sources are two, nibbles in the order
    of the numbers and the scales of 32 of them, and their rows are MXFP4's.
    """

    unit: int = 0
    index: Sequence[int] | NDArray[np.int64] | None = None
    turn: int = 0
    sources_turned: tuple[int, ...] = ()
    target_turned: int = 0
    added: float = 0.0
    shape: tuple[int, ...] = ()
    mxfp4: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the bytes stay as they are."""
        moved = self.turn or any(self.sources_turned) or self.target_turned or self.mxfp4
        return self.index is None and not (moved or self.added)

    def dtype(self, sources: Sequence[Tensor]) -> str:
        """The type of what the sources hold; F32 where they differ."""
        if self.mxfp4:
            return "MXFP4"
        first = sources[0].dtype
        return first if len(sources) == 1 or all(t.dtype == first for t in sources) else "F32"


AS_IT_IS = Order()


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
        return replace(self, order=replace(self.order, turn=wanted)) if self.order.unit and abs(wanted) <= 1 else None


class Transform(NamedTuple):
    """Both directions: `to_gguf(sizes, part)` for each GGUF tensor that an HF tensor gives, and `to_hf(sizes)`; `mxfp4`, as
    `to_gguf`, from an HF tensor of 4-bit blocks and its scales."""

    to_gguf: Callable[[Sizes, int], Order]
    to_hf: Callable[[Sizes], Order]
    mxfp4: Callable[[Sizes, int], Order] | None = None


def _inverse(index: Sequence[int]) -> list[int]:
    return [int(i) for i in np.argsort(np.asarray(index), kind="stable")]


def _heads_of(sizes: Sizes, part: int) -> list[int]:
    """The blocks of Q, K or V (`part` 0, 1, 2) where each group of heads holds its queries, one key and one value."""
    groups, each = sizes["kv_heads"], sizes["heads"] // sizes["kv_heads"]
    wanted = (range(each), range(each, each + 1), range(each + 1, each + 2))[part]
    return [g * (each + 2) + i for g in range(groups) for i in wanted]


def _all_heads(sizes: Sizes) -> list[int]:
    return [i for part in range(3) for i in _heads_of(sizes, part)]


def _by_head(sizes: Sizes) -> list[int]:
    """The blocks of all queries, keys and values where each head holds its own three."""
    return [h * 3 + part for part in range(3) for h in range(sizes["heads"])]


def _split_groups_back(s: Sizes) -> Order:
    """Row by row: those of queries and keys are interleaved, those of values are not."""
    each = s["heads"] // s["kv_heads"] + 2
    rows = np.arange(s["kv_heads"] * each * s["head"]).reshape(s["kv_heads"], each, s["head"])
    turned = rows[:, :-1].reshape(-1, 2, s["head"] // 2).swapaxes(1, 2).reshape(s["kv_heads"], each - 1, s["head"])
    parts = (turned[:, :-1], turned[:, -1:], rows[:, -1:])
    return Order(index=np.argsort(np.concatenate([part.reshape(-1) for part in parts])), shape=(rows.size, s["hidden"]))


# gpt-oss keeps gate and up of an expert in turn, as columns of a matrix that GGUF has the other way round


def _columns(s: Sizes, part: int) -> Order:
    """Even or odd columns of each expert's matrix, (hidden, 2·ff), as rows."""
    shape = (s["experts"], s["expert_ff"], s["hidden"])
    return Order(index=range(part, 2 * shape[0] * shape[1], 2), sources_turned=(s["hidden"],), shape=shape)


def _columns_back(s: Sizes) -> Order:
    e, ff = s["experts"], s["expert_ff"]
    return Order(index=_in_turn(e * ff), target_turned=2 * ff, shape=(e, s["hidden"], 2 * ff))


def _biases(s: Sizes, part: int) -> Order:
    """Even or odd columns of one matrix, (experts, 2·ff)."""
    e, ff = s["experts"], s["expert_ff"]
    return Order(index=range(part, 2 * ff, 2), sources_turned=(e,), target_turned=ff, shape=(e, ff))


def _biases_back(s: Sizes) -> Order:
    e, ff = s["experts"], s["expert_ff"]
    return Order(index=_in_turn(ff), sources_turned=(e, e), target_turned=2 * ff, shape=(e, 2 * ff))


def _packed(s: Sizes, part: int) -> Order:
    """Even or odd rows of 4-bit blocks."""
    e, ff = s["experts"], s["expert_ff"]
    return Order(index=range(part, 2 * e * ff, 2), shape=(e, ff, s["hidden"]), mxfp4=True)


@cache
def _in_turn(n: int) -> NDArray[np.int64]:
    """0, n, 1, n + 1, …: n rows and n rows that follow them, in turn."""
    return np.arange(2 * n).reshape(2, n).T.reshape(-1)


def _latent_unit(s: Sizes) -> int:
    return gcd(s["nope"], s["value"])


@cache
def _latent_rows(heads: int, nope: int, value: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of every head's keys; of its values; and, from all keys and then all values, each head's keys and values."""
    rows = np.arange(heads * (nope + value)).reshape(heads, nope + value)
    keys, values = rows[:, :nope].reshape(-1), rows[:, nope:].reshape(-1)
    return keys, values, np.argsort(np.concatenate([keys, values]))


def _latent(s: Sizes, part: int) -> Order:
    """DeepSeek's kv_b_proj: each head's keys, transposed, or its values."""
    unit, heads, latent = _latent_unit(s), s["heads"], s["kv_lora"]
    index = _latent_rows(heads, s["nope"] // unit, s["value"] // unit)[part]
    if part == 0:
        return Order(unit, index, target_turned=s["nope"], shape=(heads, latent, s["nope"]))
    return Order(unit, index, shape=(heads, s["value"], latent))


def _latent_back(s: Sizes) -> Order:
    unit, latent = _latent_unit(s), s["kv_lora"]
    index = _latent_rows(s["heads"], s["nope"] // unit, s["value"] // unit)[2]
    return Order(unit, index, sources_turned=(latent, 0), shape=(s["heads"] * (s["nope"] + s["value"]), latent))


def _transposed(s: Sizes, part: int) -> Order:
    return Order(sources_turned=(s["expert_ff"],), shape=(s["experts"], s["hidden"], s["expert_ff"]))


def _transposed_back(s: Sizes) -> Order:
    return Order(sources_turned=(s["hidden"],), shape=(s["experts"], s["expert_ff"], s["hidden"]))


def _half(s: Sizes, part: int) -> Order:
    """Granite's experts: gate above up in one matrix; a block is half of it."""
    return Order(s["expert_ff"], range(part, 2 * s["experts"], 2), shape=(s["experts"], s["expert_ff"], s["hidden"]))


def _halves_back(s: Sizes) -> Order:
    return Order(s["expert_ff"], _in_turn(s["experts"]), shape=(s["experts"], 2 * s["expert_ff"], s["hidden"]))


TRANSFORMS: Mapping[str, Transform] = {
    "": Transform(lambda s, p: AS_IT_IS, lambda s: AS_IT_IS),
    "interleave": Transform(lambda s, p: Order(s["head"], turn=1), lambda s: Order(s["head"], turn=-1)),
    "add_one": Transform(lambda s, p: Order(added=1.0), lambda s: Order(added=-1.0)),
    "heads_of_three": Transform(lambda s, p: Order(s["head"], _by_head(s)), lambda s: Order(s["head"], _inverse(_by_head(s)))),
    "groups_of_heads": Transform(lambda s, p: Order(s["head"], _all_heads(s)), lambda s: Order(s["head"], _inverse(_all_heads(s)))),
    "split_groups": Transform(lambda s, p: Order(s["head"], _heads_of(s, p), turn=int(p < 2)), _split_groups_back),
    "columns_in_turn": Transform(_columns, _columns_back, _packed),
    "in_turn": Transform(_biases, _biases_back),
    "transposed": Transform(_transposed, _transposed_back, lambda s, p: Order(shape=_transposed(s, p).shape, mxfp4=True)),
    "latent": Transform(_latent, _latent_back),
    "halves": Transform(_half, _halves_back),
}


def to_gguf(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Part]:
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
    return {gguf: _to_gguf(family, gguf, part, experts, sizes, scales.get(hf)) for gguf, (hf, part, experts) in found.items()}


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
    transform = TRANSFORMS[family.transform(name)]
    if scales is not None:
        assert transform.mxfp4 is not None
        order = transform.mxfp4(sizes, part)
        _check_shape(sources[0], transform.to_hf(sizes).shape, True)
        return Part(order.shape, (*sources, scales), order)
    alike(name, sources)
    stacked = NO_EXPERT not in experts
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


def to_hf(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Part]:
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
    return Part(t.shape[1:], (Tensor(f"{t.name}[{e}]", t.dtype, t.shape[1:], nbytes, t.path, t.offset + e * nbytes, data),))


def as_they_are(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes, gguf: bool) -> dict[str, Part]:
    """The parts of a layout from a checkpoint that has it already. Where the other one interleaves rows, the order says whose."""

    def order(name: str) -> Order:
        names = [name] if gguf else [n for n, _, _ in family.to_gguf(name)]
        return Order(sizes["head"]) if any(family.transform(n) == "interleave" for n in names) else AS_IT_IS

    return {name: Part(t.shape, (t,), order(name)) for name, t in tensors.items() if gguf or family.to_gguf(name)}


def rounded_by_gguf(family: Family, name: str, sizes: Sizes) -> float:
    """What is added to a tensor of an HF folder on its way to a GGUF and taken off again on the way back, which float32 rounds; 0 for
    one whose rows alone move."""
    return next((TRANSFORMS[family.transform(n)].to_gguf(sizes, part).added for n, part, _ in family.to_gguf(name)), 0.0)


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
