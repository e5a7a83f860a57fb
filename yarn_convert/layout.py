"""How a tensor of one layout is made of tensors of the other, HF's and GGUF's: rows move, and hardly anything else.

Both directions of every transform are written here as an `Order`; `targets.moving` runs it on bytes, a piece at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .errors import FormatError, Unsupported
from .families import Family
from .families.schema import NO_EXPERT
from .tensors import Tensor

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Order:
    """The rows of a target, taken from its sources laid end to end.

    They come in blocks of `unit` rows (0: all are one block), in the order of `index` (None: as they lie). Inside a block
    rows (2, unit/2) become (unit/2, 2) where `turn` is 1, and back where it is −1. `sources_turned` and `target_turned` are
    rows of the matrices that are transposed before and after that, 0 for none. `added` is added to every number. `shape` is
    the target's, where it does not follow from the sources' and `index`.
    """

    unit: int = 0
    index: Sequence[int] | None = None
    turn: int = 0
    sources_turned: tuple[int, ...] = ()
    target_turned: int = 0
    added: float = 0.0
    shape: tuple[int, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the bytes stay as they are."""
        return self.index is None and not (self.turn or any(self.sources_turned) or self.target_turned or self.added)


AS_IT_IS = Order()


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of one layout, of this shape, and the tensors of a checkpoint that it is made of."""

    shape: tuple[int, ...]
    sources: tuple[Tensor, ...]
    order: Order = AS_IT_IS

    @property
    def dtype(self) -> str:
        return self.sources[0].dtype

    def turned(self, by: int) -> Part | None:
        """The same with its rows interleaved once more (1) or once less (−1); None where rows never are."""
        wanted = self.order.turn + by
        return replace(self, order=replace(self.order, turn=wanted)) if self.order.unit and abs(wanted) <= 1 else None


class Transform(NamedTuple):
    """Both directions: `to_gguf(sizes, part)` for each GGUF tensor that an HF tensor gives, and `to_hf(sizes)`."""

    to_gguf: Callable[[Sizes, int], Order]
    to_hf: Callable[[Sizes], Order]


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


TRANSFORMS: Mapping[str, Transform] = {
    "": Transform(lambda s, p: AS_IT_IS, lambda s: AS_IT_IS),
    "interleave": Transform(lambda s, p: Order(s["head"], turn=1), lambda s: Order(s["head"], turn=-1)),
    "add_one": Transform(lambda s, p: Order(added=1.0), lambda s: Order(added=-1.0)),
    "heads_of_three": Transform(lambda s, p: Order(s["head"], _by_head(s)), lambda s: Order(s["head"], _inverse(_by_head(s)))),
    "groups_of_heads": Transform(lambda s, p: Order(s["head"], _all_heads(s)), lambda s: Order(s["head"], _inverse(_all_heads(s)))),
    "split_groups": Transform(
        lambda s, p: Order(s["head"], _heads_of(s, p), turn=int(p < 2)), lambda s: Order(s["head"], _inverse(_all_heads(s)))
    ),
}


def to_gguf(family: Family, tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Part]:
    """The parts of a GGUF, by their names, from the tensors of an HF folder; buffers that no runtime reads are left out.

    Raises Unsupported for a tensor without a name, FormatError for experts that are missing or differ.
    """
    found: dict[str, tuple[str, int, dict[int, Tensor]]] = {}
    for name, t in tensors.items():
        for gguf_name, part, expert in family.to_gguf(name):
            found.setdefault(gguf_name, (name, part, {}))[2][expert] = t
    return {name: _to_gguf(family, name, part, experts, sizes) for name, (_, part, experts) in found.items()}


def _to_gguf(family: Family, name: str, part: int, experts: dict[int, Tensor], sizes: Sizes) -> Part:
    sources = tuple(experts[e] for e in sorted(experts))
    alike(name, sources)
    stacked = NO_EXPERT not in experts
    if stacked and sorted(experts) != list(range(len(experts))):
        raise FormatError(
            f"{name}: {len(experts)} experts are there, up to number {max(experts)}", "the checkpoint is incomplete: get it again"
        )
    order = TRANSFORMS[family.transform(name)].to_gguf(sizes, part)
    return Part(_shape(sources, order, stacked), sources, order)


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


def alike(name: str, sources: Sequence[Tensor]) -> None:
    if len({(t.dtype, t.shape[1:]) for t in sources}) > 1:
        raise Unsupported(
            f"the tensors that make {name} differ in their type or width: {', '.join(t.name for t in sources[:3])}", "make them alike"
        )


def part_of(gguf_name: str) -> str:
    """A GGUF name without its layer: "attn_q.weight"."""
    parts = gguf_name.split(".")
    return ".".join(parts[2:] if parts[0] == "blk" else parts)
