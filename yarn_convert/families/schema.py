"""What a row of the table of families is, and its names read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import Unsupported

LEFTOVER = "a quantized or modified checkpoint? start from the plain one; nothing is left out silently"
# A model's own table, as transformers before 4.32 saved it and some trainers still do, at the top or in each layer: computed anew by every
# reader (vllm/model_executor/models/utils.py AutoWeightsLoader; llama.cpp conversion/base.py; transformers' buffers are not persistent)
BUFFER = re.compile(r"(^|\.)(rotary_emb\w*|maybe_rotary)\.(\w*inv_freq|cos_cached|sin_cached)$")
NO_EXPERT = -1
ROPE_OBJECTS = ("rope_scaling", "rope_parameters")  # where config.json spells RoPE for transformers 4, and for 5
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")
PLAIN_READS = frozenset({"type", "factor", "attn_factor", "original_context_length", "freq_base"})  # by every architecture's loader
PARTIAL_READS = PLAIN_READS | {"dimension_count"}


ONLY_WHERE: Mapping[str, Callable[[Mapping[str, Any], int], bool]] = {  # (hparams, layer) -> whether the tensor is there
    "leading": lambda h, i: i < (h.get("first_k_dense_replace") or 0),
    "not leading": lambda h, i: i >= (h.get("first_k_dense_replace") or 0),
    "q_lora": lambda h, i: h.get("q_lora_rank") is not None,
    "not q_lora": lambda h, i: h.get("q_lora_rank") is None,
}


@dataclass(frozen=True)
class Family:
    """One row. Names of tensors are templates: `{i}` is the layer, `{e}` the expert, which HF's names alone have.

    Tensors. `tensors`: HF name -> GGUF name, everything that a checkpoint may hold. Tensors whose name has `{e}` are stacked
    into one of a GGUF; where several GGUF names stand, the HF tensor is split into them. `transforms`: GGUF name -> how rows
    move, a key of `layout.TRANSFORMS`. `shapes`: GGUF name without its layer -> sizes, as `Checkpoint.sizes` names them.
    `optional`: GGUF names that a checkpoint may lack. `only_where`: GGUF name -> the layers that have it and no others do, a key
    of `ONLY_WHERE`. `scales`: HF name of a tensor of 4-bit blocks (MXFP4) -> that of its scales. `more_layers`: config key with
    the number of layers behind the last that no runtime here runs. `switches`: config key that is true or false -> the tensors of each
    layer that it turns on, with `!` that it turns off, named as in `shapes`; those under "" are ones that transformers drops.
    `instead`: GGUF name -> (its other HF name, the GGUF name whose presence calls for that one). `dropped`: HF names of buffers
    that no runtime reads, besides those of RoPE.

    Config. `hparams`: config.json key -> GGUF key below `{arch}.`, with its type where that is not u32 ("f32", "bool", …);
    `may_lack` are those that need not be there or may be 0, `unsaid` those that config.json has no place for. `renamed`: the
    family's own name of a standard key. `defaults`: what transformers takes for an absent key. `derived`: the rule for what
    config.json says in another form, a key of `derived.RULES`. `fixed`: config keys whose other values llama.cpp's graph would
    not compute. `constants`: GGUF keys that every model of the family has, as (type, value); of those in `gguf_known` others are
    taken, too. `gguf_known`: further keys that change nothing we carry. `marks`: GGUF keys or tensors that tell rows of one
    architecture apart, with `!` absent ones. `spelled_out`: config keys that a reader needs even where they only say what follows
    from others. `lengths`: further ones that say the context.

    RoPE and attention. `gguf_reads`: the RoPE fields that the llama.cpp loader honours; "dimension_count" where a part of
    each head may turn. `layer_type`: the only layers that a recipe extends, by their name in config.json's `layer_types`.
    `windowed`: it has a sliding window that its GGUF architecture lacks. `latent`: it has multi-head latent attention, whose logits YaRN
    scales by mscale_all_dim. `attention`: "plain", or "other" where scores are capped, have sinks, or slide in some layers, which
    torch's own attention does not compute.

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
    lengths: tuple[str, ...] = ()
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    instead: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    only_where: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, str] = field(default_factory=dict)
    more_layers: str = ""
    unsaid: frozenset[str] = frozenset()
    windowed: bool = False
    latent: bool = False
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
        if n.template not in self.tensors:
            if self.is_buffer(name):
                return []
            raise Unsupported(f"tensor {name!r} is not part of the family {self.model_type!r}", LEFTOVER)
        return [(template.format(i=n.layer), part, n.expert) for part, template in enumerate(self.parts(n.template))]

    def is_buffer(self, name: str) -> bool:
        """Whether an HF tensor is one that every reader computes anew, or passes over."""
        return BUFFER.search(name) is not None or numbered(name).template in self.dropped

    def to_hf(self, name: str, there: Container[str] = ()) -> tuple[str, int]:
        """(HF template with only `{e}` left, which of its parts this GGUF tensor is); `there`: the GGUF's other names.

        Raises Unsupported if no template fits.
        """
        n = numbered(name)
        other, companion = self.instead.get(n.template, ("", ""))
        if companion.format(i=n.layer) in there:
            return other.format(i=n.layer), 0
        if n.template in self._reverse:
            hf, part = self._reverse[n.template]
            return hf.replace("{i}", str(n.layer)), part
        raise Unsupported(f"tensor {name!r} is not part of the GGUF architecture {self.gguf_arch!r}", LEFTOVER)

    @cached_property
    def _reverse(self) -> dict[str, tuple[str, int]]:
        """GGUF template -> (the first HF template that stands for it, which of its parts it is)."""
        found: dict[str, tuple[str, int]] = {}
        for hf in self.tensors:
            for part, gguf in enumerate(self.parts(hf)):
                found.setdefault(gguf, (hf, part))
        return found

    def parts(self, template: str) -> tuple[str, ...]:
        """The GGUF templates that an HF template stands for."""
        found = self.tensors[template]
        return (found,) if isinstance(found, str) else found

    def transform(self, gguf_name: str) -> str:
        """The transform between the HF and the GGUF form of the tensor with this GGUF name; "" for none."""
        return self.transforms.get(numbered(gguf_name).template, "")

    def has(self, template: str, hparams: Mapping[str, Any], layer: int) -> bool:
        """Whether the tensor of this GGUF template belongs into this layer."""
        where = self.only_where.get(template)
        return where is None or ONLY_WHERE[where](hparams, layer)

    def required(self, hparams: Mapping[str, Any]) -> list[str]:
        """The GGUF names that a checkpoint with these numbers must hold."""
        layers = range(int(hparams["num_hidden_layers"] or 0))
        templates = [t for t in self._reverse if t not in self.optional]
        return [t.format(i=i) for t in templates for i in (layers if "{i}" in t else range(1)) if self.has(t, hparams, i)]

    def turned_on(self, config: Mapping[str, Any]) -> list[str]:
        """The tensors of each layer, named as in `shapes`, that config.json turns on by one of its switches."""
        return [
            part
            for switch, parts in self.switches.items()
            if bool(config.get(switch.removeprefix("!"))) != switch.startswith("!")
            for part in parts
        ]

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


NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.)")


def numbered(name: str) -> Numbered:
    pieces = NUMBER.split(name, 2)
    if len(pieces) == 1:
        return Numbered(name, 0, NO_EXPERT)
    if len(pieces) == 3:
        return Numbered(f"{pieces[0]}{{i}}{pieces[2]}", int(pieces[1]), NO_EXPERT)
    return Numbered(f"{pieces[0]}{{i}}{pieces[2]}{{e}}{pieces[4]}", int(pieces[1]), int(pieces[3]))
