"""What a row of the table of families is, and its names read in both directions."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import Unsupported

LEFTOVER = "a quantized or modified checkpoint? start from the plain one; nothing is left out silently"
NO_EXPERT = -1
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")
PLAIN_READS = frozenset({"type", "factor", "attn_factor", "original_context_length", "freq_base"})  # by every architecture's loader
PARTIAL_READS = PLAIN_READS | {"dimension_count"}


@dataclass(frozen=True, slots=True)
class Family:
    """One row. Names of tensors are templates: `{i}` is the layer, `{e}` the expert, which HF's names alone have.

    Tensors. `tensors`: HF name -> GGUF name, everything that a checkpoint may hold. Tensors whose name has `{e}` are stacked
    into one of a GGUF; where several GGUF names stand, the HF tensor is split into them. `transforms`: GGUF name -> how rows
    move, a key of `layout.TRANSFORMS`. `shapes`: GGUF name without its layer -> sizes, as `Checkpoint.sizes` names them.
    `optional`: GGUF names that a checkpoint may lack. `switches`: config key that is true or false -> the tensors of each
    layer that it turns on, named as in `shapes`; those under "" are ones that transformers drops. `instead`: GGUF name ->
    (its other HF name, the GGUF name whose presence calls for that one). `dropped`: HF names of buffers that no runtime reads.

    Config. `hparams`: config.json key -> GGUF key below `{arch}.`, with its type where that is not u32 ("f32", "bool", …);
    `may_lack` are those that need not be there, `unsaid` those that config.json has no place for. `renamed`: the family's own
    name of a standard key. `defaults`: what transformers takes for an absent key. `derived`: the rule for what config.json
    says in another form, a key of `derived.RULES`. `fixed`: config keys whose other values llama.cpp's graph would not
    compute. `constants`: GGUF keys that every model of the family has, as (type, value). `gguf_known`: further keys that
    change nothing we carry. `marks`: GGUF keys or tensors that tell rows of one architecture apart, with `!` absent ones.
    `spelled_out`: config keys that a reader needs even where they only say what follows from others.

    RoPE and attention. `gguf_reads`: the RoPE fields that the llama.cpp loader honours; "dimension_count" where a part of
    each head may turn. `layer_type`: the only layers that a recipe extends, by their name in config.json's `layer_types`.
    `windowed`: it has a sliding window that its GGUF architecture lacks. `attention`: "plain", or "other" where scores are
    capped, have sinks, or slide in some layers, which torch's own attention does not compute.

    `head`: whether its GGUF architecture takes a head of its own: "optional", "required" or "never". `square`: it takes
    hidden_size / heads for the size of a head, whatever the file says. `run_as`: the model_type whose code in transformers
    computes what its GGUF does, where it has none of its own.

    `twin`: sizes of a twin besides the usual. `evidence`: where all this was read. `listed`: False for a stand-in, whose
    tensors have no names here.
    """

    model_type: str
    architectures: tuple[str, ...]
    gguf_arch: str
    tensors: Mapping[str, str | tuple[str, ...]]
    hparams: Mapping[str, str]
    shapes: Mapping[str, tuple[str, ...]]
    evidence: str
    transforms: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    dropped: tuple[str, ...] = ()
    may_lack: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    derived: str = ""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    constants: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    gguf_known: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    gguf_reads: frozenset[str] = PLAIN_READS
    spelled_out: tuple[str, ...] = ()
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    instead: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unsaid: frozenset[str] = frozenset()
    windowed: bool = False
    layer_type: str = ""
    twin: Mapping[str, Any] = field(default_factory=dict)
    attention: str = "plain"
    head: str = "optional"
    square: bool = False
    run_as: str = ""
    listed: bool = True

    def to_gguf(self, name: str) -> list[tuple[str, int, int]]:
        """(GGUF name, which part of the HF tensor, which expert) for each GGUF tensor that an HF tensor goes into.

        Empty for a buffer that is dropped. Raises Unsupported if no template fits.
        """
        n = numbered(name)
        found = self.tensors.get(n.template)
        if found is None:
            if n.template in self.dropped:
                return []
            raise Unsupported(f"tensor {name!r} is not part of the family {self.model_type!r}", LEFTOVER)
        names = (found,) if isinstance(found, str) else found
        return [(template.format(i=n.layer), part, n.expert) for part, template in enumerate(names)]

    def to_hf(self, name: str, there: Container[str] = ()) -> tuple[str, int]:
        """(HF template with only `{e}` left, which of its parts this GGUF tensor is); `there`: the GGUF's other names.

        Raises Unsupported if no template fits.
        """
        n = numbered(name)
        other, companion = self.instead.get(n.template, ("", ""))
        if companion.format(i=n.layer) in there:
            return other.format(i=n.layer), 0
        for hf, gguf in self.tensors.items():
            names = (gguf,) if isinstance(gguf, str) else gguf
            if n.template in names:
                return hf.replace("{i}", str(n.layer)), names.index(n.template)
        raise Unsupported(f"tensor {name!r} is not part of the GGUF architecture {self.gguf_arch!r}", LEFTOVER)

    def parts(self, template: str) -> tuple[str, ...]:
        """The GGUF templates that an HF template stands for."""
        found = self.tensors[template]
        return (found,) if isinstance(found, str) else found

    def transform(self, gguf_name: str) -> str:
        """The transform between the HF and the GGUF form of the tensor with this GGUF name; "" for none."""
        return self.transforms.get(numbered(gguf_name).template, "")

    @property
    def gguf_templates(self) -> list[str]:
        """All GGUF templates, each once: several HF names may stand for one."""
        return list(dict.fromkeys(t for hf in self.tensors for t in self.parts(hf)))

    def required(self, layers: int) -> list[str]:
        """The GGUF names that a checkpoint with so many layers must hold."""
        templates = [t for t in self.gguf_templates if t not in self.optional]
        return [t.format(i=i) for t in templates for i in (range(layers) if "{i}" in t else range(1))]

    @property
    def name(self) -> str:
        """What to call it: its model_type, or a stand-in's architecture."""
        return self.model_type or self.gguf_arch

    @property
    def gelu(self) -> bool:
        """Whether its feed-forward layers use GELU."""
        return any("gelu" in str(self.fixed.get(key)) for key in ACTIVATIONS)

    def own(self, key: str) -> str:
        """The family's own name of a standard config key."""
        return self.renamed.get(key, key)

    def gguf_key(self, key: str) -> tuple[str, str]:
        """(GGUF key with the architecture, its type) of a key of `hparams`."""
        name, _, kind = self.hparams[key].partition(":")
        return f"{self.gguf_arch}.{name}", kind or "u32"


class Numbered(NamedTuple):
    """A tensor's name with its first number, the layer, and its second, the expert, taken out; 0 and −1 where there is none."""

    template: str
    layer: int
    expert: int


def numbered(name: str) -> Numbered:
    found = list(re.finditer(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.)", name))[:2]
    template = name
    for match, mark in reversed(list(zip(found, ("{i}", "{e}"), strict=False))):
        template = template[: match.start()] + mark + template[match.end() :]
    layer = int(found[0][0]) if found else 0
    return Numbered(template, layer, int(found[1][0]) if len(found) > 1 else NO_EXPERT)
