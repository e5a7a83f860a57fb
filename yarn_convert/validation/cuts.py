"""The cuts of a checkpoint and of its base: the file's own weights, the base's in the same model, and these in the file's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoint import Checkpoint
from ..checkpoint.ranges import fetched
from ..compute.reasons import reason
from ..compute.weights import same_weights
from ..errors import Unsupported
from ..formats.layout import Part, rounded_by_gguf
from ..hearing import SayStage, counted
from .cut import Cut, layer_of, needed, write_cut

IN_WORDS = 64  # tensors that are not the base's and are looked into


@dataclass(frozen=True, slots=True)
class Cuts:
    """The same `layers` of the file (`own`), and with the base's weights (`base`), also in the types of the file where those lose some of
    these (`typed`). `different`: tensors that are not the base's, and how. `why` there are none of the base; `fetched`: bytes that came
    from the Hub."""

    layers: tuple[int, ...]
    own: Checkpoint
    base: Checkpoint | None = None
    typed: Checkpoint | None = None
    different: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    fetched: int = 0


def write_cuts(c: Checkpoint, base: Checkpoint | None, layers: tuple[int, ...], folder: Path, say: SayStage) -> Cuts:
    """Write them into a folder. Raises as `write_cut` does for that of the file itself."""
    cut, end = Cut(layers), ".gguf" if c.gguf else ""
    mine, here = _here(c, layers, folder / "own-ranges", False, say)
    own = write_cut(mine, cut, folder / f"own{end}")
    if base is None:
        return Cuts(layers, own, why="no base is given", fetched=here)
    try:
        theirs, there = _here(base, layers, folder / "base-ranges", True, say)
        parts = _as_its_own(mine, theirs)
        as_it_is = write_cut(mine, cut, folder / f"base{end}", parts, own=False)
        lossy = any(t.dtype not in ("F32", parts[name].dtype) for name, t in mine.tensors.items() if name in parts)
        typed = write_cut(mine, cut, folder / f"typed{end}", parts) if lossy else None
    except Unsupported as e:
        return Cuts(layers, own, why=e.message, fetched=here)
    say("weights of the cut", 0.0)
    return Cuts(layers, own, as_it_is, typed, _different(mine, theirs, parts), fetched=here + there)


def _different(c: Checkpoint, base: Checkpoint, parts: Mapping[str, Part]) -> dict[str, str]:
    """The tensors of `c` that are not those of its base, by their names in it, and how they are not; those that only the base has."""
    found: dict[str, str] = {}
    for name, part in parts.items():
        t, between = c.tensors[name], c.gguf is None and name in c.names
        change = rounded_by_gguf(c.family, c.names[name], c.sizes) if between else ""
        if why := same_weights(t, part, change)[1]:
            found[name] = reason(name, t, parts, why) if len(found) < IN_WORDS else why
    if (c.gguf is None) == (base.gguf is None):
        head, _ = c.head_and_embedding
        found |= {name: "it is missing" for name in base.tensors if name in base.names and name not in {*c.tensors, head}}
    return found


def share_of(c: Checkpoint, layers: tuple[int, ...], alone: bool) -> list[str]:
    """The tensors that a cut of `c` needs. `alone`: without what stands around a language model."""
    return [name for name in needed(c, layers) if not alone or name in c.names]


def _here(c: Checkpoint, layers: tuple[int, ...], folder: Path, alone: bool, say: SayStage) -> tuple[Checkpoint, int]:
    """(`c` with its share of a cut, the bytes of that which were fetched)."""
    names = share_of(c, layers, alone)
    remote, total = not c.source.has_weights, sum(c.tensors[name].nbytes for name in names)
    whole = sum(t.nbytes for t in c.tensors.values())
    stage = f"fetching {total / 1e9:.2f} of {whole / 1e9:.2f} GB of {c.source.name}"
    if remote:
        folder.mkdir()
        say(stage, 0.0)
    return fetched(c, names, folder, counted(say, stage, total)), total if remote else 0


def _as_its_own(c: Checkpoint, base: Checkpoint) -> dict[str, Part]:
    """What the tensors of `c` are made of in its base, by their names in `c`. Unsupported where that is not known."""
    if not base.family.listed or base.packed or base.layers < c.layers:
        raise Unsupported("the base's tensors are not known by name", "a base in BF16")
    if c.gguf is None and base.gguf is None and c.family.folded(c.config, base.config):
        raise Unsupported("its multipliers went into its weights, by way of a GGUF", "validate the GGUF")
    base = base.written_as(c.family.gguf_arch) if c.gguf and not base.gguf else base
    parts = base.parts(bool(c.gguf))
    head, embedding = c.head_and_embedding
    if embedding in parts:
        parts.setdefault(head, parts[embedding])
    named = {name for name in c.tensors if c.gguf or (name in c.names and layer_of(c, name) != -1)}
    for name in named:
        if name not in parts or parts[name].shape != c.tensors[name].shape:
            raise Unsupported(f"the base has no {name} of its shape", "is it its base?")
    return {name: parts[name] for name in named}
