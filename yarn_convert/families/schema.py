"""What a row of the table of families is, and its names read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import Unsupported
from .architectures import Arch
from .model_types import ModelType

LEFTOVER = "a quantized or modified checkpoint? start from the plain one; nothing is left out silently"
# A model's own table, as transformers before 4.32 saved it and some trainers still do, at the top or in each layer: computed anew by every
# reader (vllm/model_executor/models/utils.py AutoWeightsLoader; llama.cpp conversion/base.py; transformers' buffers are not persistent)
BUFFER = re.compile(r"(^|\.)(rotary_emb\w*|maybe_rotary)\.(\w*inv_freq|cos_cached|sin_cached)$")
NO_EXPERT = -1
ROPE_OBJECTS = ("rope_scaling", "rope_parameters")  # where config.json spells RoPE for transformers 4, and for 5
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")

# config.json key -> GGUF key below `{arch}.`, or after "/" the whole of it, with its type where that is not u32 ("f32", "bool", …)
HPARAMS = {  # those of Llama
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon:f32",
    "vocab_size": "vocab_size",
    "head_dim": "attention.key_length",
}
KNOWN = frozenset({"attention.value_length", "rope.dimension_count", "tensor_data_layout"})  # GGUF keys that change nothing we carry

SHAPES = {  # GGUF name without its layer -> sizes, as `Checkpoint.sizes` names them
    "token_embd.weight": ("vocab", "hidden"),
    "output.weight": ("vocab", "hidden"),
    "attn_q.weight": ("q", "hidden"),
    "attn_k.weight": ("kv", "hidden"),
    "attn_v.weight": ("kv", "hidden"),
    "attn_qkv.weight": ("qkv", "hidden"),
    "attn_output.weight": ("hidden", "q"),
    "ffn_gate.weight": ("ff", "hidden"),
    "ffn_up.weight": ("ff", "hidden"),
    "ffn_down.weight": ("hidden", "ff"),
    "ffn_gate_inp.weight": ("experts", "hidden"),
    "ffn_gate_exps.weight": ("experts", "expert_ff", "hidden"),
    "ffn_up_exps.weight": ("experts", "expert_ff", "hidden"),
    "ffn_down_exps.weight": ("experts", "hidden", "expert_ff"),
    "ffn_gate_inp_shexp.weight": ("one", "hidden"),
    "ffn_gate_shexp.weight": ("shared_ff", "hidden"),
    "ffn_up_shexp.weight": ("shared_ff", "hidden"),
    "ffn_down_shexp.weight": ("hidden", "shared_ff"),
}
SHAPES |= {name.replace("weight", "bias"): sizes[:-1] for name, sizes in SHAPES.items() if name.startswith(("attn_", "ffn_"))}
NORMS = ("output_norm", "attn_norm", "ffn_norm", "attn_norm_2", "post_attention_norm", "post_ffw_norm")
SHAPES |= {f"{name}.{x}": ("hidden",) for name in NORMS for x in ("weight", "bias")}
SHAPES |= {f"attn_{x}_norm.weight": ("head",) for x in "qk"} | {"attn_sinks.weight": ("heads",), "exp_probs_b.bias": ("experts",)}


def _never(of: Mapping[str, Any]) -> bool:
    return False


# What numbers are multiplied by, one after another, each rounded to float32: all by one, or so many rows by each of several
Times = tuple[float | tuple[tuple[int, float], ...], ...]


def _nothing(h: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _always(c: Mapping[str, Any]) -> bool:
    return True


class InKey(NamedTuple):
    """A tensor of one number in each layer of HF, of which a GGUF has a list in a key: that of `Family.hparams`, the tensor's shape there,
    and what a twin has where no weights say it."""

    key: str
    shape: tuple[int, ...]
    usual: float


@dataclass(frozen=True)
class Family:
    """One row: what transformers makes of its config.json, what llama.cpp's code makes of its GGUF, and the tensors of both.

    Names of tensors are templates: `{i}` is the layer, `{e}` the expert, or which of several tensors, which HF's names alone have.
    """

    hf: ModelType
    gguf: Arch
    # HF name -> GGUF name, everything that a checkpoint may hold. Tensors whose name has `{e}` are stacked into one of a GGUF; where
    # several GGUF names stand, the HF tensor is split into them; where none stands, it is a buffer that no runtime reads.
    tensors: Mapping[str, str | tuple[str, ...]]
    evidence: str  # where all this was read
    where: Callable[[Mapping[str, Any]], bool] = _always  # config.json -> whether it is this row's, where several have its model type
    in_keys: Mapping[str, InKey] = field(default_factory=dict)  # HF name, besides `tensors` -> the key of a GGUF that says it
    transforms: Mapping[str, str] = field(default_factory=dict)  # GGUF name -> how rows move, a key of `layout.TRANSFORMS`
    # config.json -> GGUF name -> what its tensor is multiplied by on the way there, which config.json says, and not on the way back
    times: Callable[[Mapping[str, Any]], Mapping[str, Times]] = _nothing
    multipliers: Mapping[str, Any] = field(default_factory=dict)  # the config keys that say it -> ones
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what is not as in `SHAPES`
    hparams: Mapping[str, str] = field(default_factory=lambda: HPARAMS)
    may_lack: frozenset[str] = frozenset()  # those of `hparams` that need not be there or may be 0
    optional: frozenset[str] = frozenset()  # GGUF names that a checkpoint may lack, besides the head and what a switch turns on
    only_where: Mapping[str, Callable[[Mapping[str, Any], int], bool]] = field(
        default_factory=dict
    )  # GGUF name -> (hparams, layer) -> has it
    needed_where: Mapping[str, Callable[[Mapping[str, Any], int], bool]] = field(
        default_factory=dict
    )  # GGUF name -> (hparams, layer) -> has to have it; elsewhere it may, and nobody reads it
    instead: Mapping[str, tuple[str, str]] = field(
        default_factory=dict
    )  # GGUF name -> (its other HF name, the GGUF name that calls for it)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # config key -> values; llama.cpp's graph computes no others
    constants: Mapping[str, tuple[str, Any]] = field(default_factory=dict)  # GGUF key that every model of it has -> (type, value)
    gguf_known: frozenset[str] = KNOWN  # further GGUF keys that change nothing we carry; one of `constants`: its other values neither
    next_tokens: tuple[str, ...] = ()  # how names of HF tensors begin that predict tokens further on, besides layers behind the last
    marks: frozenset[str] = frozenset()  # GGUF keys or tensors that tell rows of one architecture apart, with `!` absent ones
    # (hparams and config) -> whether whole heads of Q and K are normed after they turned: then no multiplier of cos and sin shows
    cancels: Callable[[Mapping[str, Any]], bool] = _never
    twin: Mapping[str, Any] = field(default_factory=dict)  # sizes of a twin that are not the usual
    # hparams of a GGUF -> what llama.cpp takes for those that are not there; a list has an entry for each layer
    fills: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    sizes: Callable[[Mapping[str, Any]], dict[str, int]] = _nothing  # hparams -> sizes besides those of `Checkpoint.sizes`
    # (hparams, layer) -> those that are other than in `Checkpoint.sizes`; None: all layers are alike
    layer_sizes: Callable[[Mapping[str, Any], int], Mapping[str, int]] | None = None
    linear: Callable[[Mapping[str, Any]], list[bool]] | None = None  # hparams -> which layers are no attention

    @property
    def model_type(self) -> str:
        return self.hf.name

    @property
    def gguf_arch(self) -> str:
        return self.gguf.name

    @property
    def listed(self) -> bool:
        """False for a stand-in, whose tensors have no names here."""
        return bool(self.tensors)

    @property
    def latent(self) -> bool:
        """Whether its GGUF has multi-head latent attention in the form of one latent key, whose logits YaRN scales by mscale_all_dim."""
        return self.listed and self.gguf.mla

    @property
    def on_logits(self) -> bool:
        """Whether YaRN's temperature goes to the logits by mscale_all_dim, and not to cos and sin: where all its readers do that."""
        return self.gguf.mla or (self.hf.latent and not self.listed)

    @property
    def layer_type(self) -> str:
        """The only layers that a recipe extends, by their name in config.json's `layer_types`; "" for all."""
        return next(iter(self.hf.layers), "")

    @property
    def slides(self) -> bool:
        """Whether some layers see a window of tokens alone. torch's own attention computes none of these families: their scores are
        capped, or have sinks, or the window needs a mask."""
        return "sliding_window" in self.hparams

    @property
    def scales(self) -> dict[str, str]:
        """HF names of tensors of 4-bit blocks (MXFP4) -> those of their scales."""
        return {name: name.removesuffix("_blocks") + "_scales" for name in self.tensors if name.endswith("_blocks")}

    def shape(self, part: str) -> tuple[str, ...]:
        """The sizes of a tensor by its GGUF name without the layer, as `Checkpoint.sizes` names them."""
        return self.shapes.get(part) or SHAPES[part]

    def to_gguf(self, name: str) -> list[tuple[str, int, int]]:
        """(GGUF name, which part of the HF tensor, which expert) for each GGUF tensor that an HF tensor goes into.

        Empty for a buffer that is dropped, or a number that is said in a key. Raises Unsupported if no template fits.
        """
        n = self._numbered(name)
        if n.template in self.in_keys:
            return []
        if n.template not in self.tensors:
            if BUFFER.search(name):
                return []
            raise Unsupported(f"tensor {name!r} is not part of the family {self.model_type!r}", LEFTOVER)
        return [(template.format(i=n.layer), part, n.expert) for part, template in enumerate(self.parts(n.template))]

    def is_buffer(self, name: str) -> bool:
        """Whether an HF tensor is one that every reader computes anew, or passes over."""
        return BUFFER.search(name) is not None or self.tensors.get(self._numbered(name).template) == ()

    def _numbered(self, name: str) -> Numbered:
        """`numbered`; of an HF tensor outside of the layers of which several are stacked, the only number is which it is of them."""
        n = numbered(name)
        stacked = n.template.replace("{i}", "{e}")
        return n if n.template in self.tensors or stacked not in self.tensors else Numbered(stacked, 0, n.layer)

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
        return where is None or where(hparams, layer)

    def needs(self, template: str, hparams: Mapping[str, Any], layer: int) -> bool:
        """Whether that layer cannot be without it."""
        where = self.needed_where.get(template)
        return self.has(template, hparams, layer) and (where is None or where(hparams, layer))

    def required(self, hparams: Mapping[str, Any]) -> list[str]:
        """The GGUF names that a checkpoint with these numbers must hold."""
        layers = range(int(hparams["num_hidden_layers"] or 0))
        optional = {f"blk.{{i}}.{part}" for parts in self.hf.switches.values() for part in parts} | self.optional
        optional |= set() if self.gguf.head == "required" else {"output.weight"}
        templates = [t for t in self._reverse if t not in optional]
        return [t.format(i=i) for t in templates for i in (layers if "{i}" in t else range(1)) if self.needs(t, hparams, i)]

    @property
    def name(self) -> str:
        """What to call it: its model_type, or a stand-in's architecture."""
        return self.model_type or self.gguf_arch

    @property
    def gelu(self) -> bool:
        """Whether its feed-forward layers use GELU."""
        return any("gelu" in str(self.fixed.get(key)) for key in ACTIVATIONS)

    def gguf_key(self, key: str) -> tuple[str, str]:
        """(GGUF key, with the architecture if that is in it, its type) of a key of `hparams`."""
        name, _, kind = self.hparams[key].partition(":")
        return (name[1:] if name.startswith("/") else f"{self.gguf_arch}.{name}"), kind or "u32"

    def folded(self, config: Mapping[str, Any], base: Mapping[str, Any]) -> Mapping[str, Times]:
        """What the tensors of a folder with this config are multiplied by if it was made of a GGUF of the base, by their GGUF names:
        its own multipliers are ones. {} if not."""
        ones = all(config.get(key, one) == one for key, one in self.multipliers.items())
        return self.times(base) if ones else {}

    def by_layer(self, key: str) -> bool:
        """Whether a key of `hparams` is a list."""
        return self.hparams[key].endswith("[]")

    @property
    def in_tensors(self) -> dict[str, InKey]:
        """The keys of `hparams` that a folder has as tensors."""
        return {told.key: told for told in self.in_keys.values()}


class Numbered(NamedTuple):
    """A tensor's name with its first number, the layer, and its second, the expert, taken out; 0 and −1 where there is none."""

    template: str
    layer: int
    expert: int


def rope_type(spelling: Any) -> Any:
    """The type that a RoPE object of config.json has, in either spelling; None for none, or for what is no object."""
    return (spelling.get("rope_type") or spelling.get("type")) if isinstance(spelling, dict) else None


def rope_says(config: Mapping[str, Any], key: str) -> list[Any]:
    """What the RoPE objects of a config.json say of a key, in their order; null says nothing."""
    return [said for k in ROPE_OBJECTS if isinstance(x := config.get(k), dict) and (said := x.get(key)) is not None]


NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.)")


def numbered(name: str) -> Numbered:
    pieces = NUMBER.split(name, 2)
    if len(pieces) == 1:
        return Numbered(name, 0, NO_EXPERT)
    if len(pieces) == 3:
        return Numbered(f"{pieces[0]}{{i}}{pieces[2]}", int(pieces[1]), NO_EXPERT)
    return Numbered(f"{pieces[0]}{{i}}{pieces[2]}{{e}}{pieces[4]}", int(pieces[1]), int(pieces[3]))
