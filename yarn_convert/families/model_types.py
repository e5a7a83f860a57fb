"""What each model_type is to those who read its config.json: what transformers assumes where it is silent, and how its RoPE is odd.

The values are the class defaults of transformers 5.23 (models/*/configuration_*.py). The rows of families that are converted
stand with these; here are the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Unsupported
from .layers import SLIDES, Layer, Values, farthest, hf_flint, hf_kolibri1, whole_number


def _nothing(*of: Any) -> dict[str, Any]:
    return {}


SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class ModelType:
    """One model_type. A row with a length alone is a model with one rotary class of the usual kind: whole heads, every layer, every
    method of modeling_rope_utils.py."""

    name: str
    length: int | None = None  # max_position_embeddings; None: no reader here is modelled for it
    theta: float = 10000.0
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    partial: float | None = None  # partial_rotary_factor of a model that rotates a part of each head; None: whole heads
    dims: str = ""  # its key of how many dimensions of a head turn, which counts where nothing says partial_rotary_factor
    architectures: tuple[str, ...] = ()  # of a language model, the first as it is written
    defaults: Mapping[str, Any] = field(default_factory=dict)  # further keys -> what is taken where they are absent
    shape: tuple[int, ...] = ()  # what its class takes for `SHAPE`, of which a model within another may say nothing
    renamed: Mapping[str, str] = field(default_factory=dict)  # standard key -> its own name
    unsaid: frozenset[str] = frozenset()  # keys of `Family.hparams` that config.json has no place for
    # Keys that are true or false -> the tensors of each layer that they turn on, with `!` that they turn off, by their GGUF names
    # without the layer; those under "" are ones that transformers drops.
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reads: Callable[[Values], dict[str, Any]] = _nothing  # config -> standard keys, of what it says in another form
    # (hparams, GGUF names) -> what config.json says that no single key of a GGUF does; None for null. The inverse of `reads`.
    writes: Callable[[Values, Container[str]], dict[str, Any]] = _nothing
    other_head_dim: bool = True  # False: a head_dim in config.json that differs breaks it
    lengths: tuple[str, ...] = ()  # further keys that say the context
    original: int | None = None  # original_max_position_embeddings of config.json, which hides the dict's
    rope: Mapping[str, Any] = field(default_factory=dict)  # the rope dict it has when none is given
    types: Mapping[str, str] | None = None  # spelling -> method, where it takes others than its reader
    more_types: Mapping[str, str] = field(default_factory=dict)  # and those that it takes besides its reader's
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # spelling -> keys that a dict must have
    # For rope dicts per layer type: the layers that a recipe extends come first, each with its theta's key in config.json, and the default
    layers: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    nested_alone: bool = False  # it reads these dicts alone: no θ, and no rope_scaling, at the top
    first_layers: Callable[[Values], dict[str, Any]] = _nothing  # config -> what the first kind of them has otherwise than it says
    permits: Mapping[str, str] = field(default_factory=dict)  # rope_type -> the key of config.json without which it is refused
    turning: Callable[[Values, int], list[Layer]] | None = None  # where some layers have no RoPE: which have
    alpha: bool = False  # "dynamic" with alpha is no scaling there: θ is multiplied by alpha^(D/(D − 2))
    latent: bool = False  # multi-head latent attention: mscale_all_dim of its RoPE object multiplies the logits (`yarn_apply_mscale`)
    floor: bool = False  # llama_4_scaling_beta of its RoPE object counts from original_max_position_embeddings there, whatever the type
    windowed: bool = False  # it has a sliding window in every layer, which its GGUF architecture lacks
    without: str = ""  # a key that, when true, means that there is no RoPE
    spread_in: str = ""  # the model_type of a model around it that says all this at the top of config.json, where there is no object for it
    since: str = ""  # the oldest transformers that it was run in, where that is not the oldest of all
    # (config, names in a GGUF of it) -> what llama.cpp cannot compute of those; "": nothing
    unlike: Callable[[Values, Container[str]], str] | None = None
    run_as: str = ""  # the model_type whose code in transformers computes what its GGUF does, where it has none of its own

    @property
    def theta_key(self) -> str:
        return self.own("rope_theta")

    @property
    def partial_key(self) -> str:
        return self.own("partial_rotary_factor")

    @property
    def head_key(self) -> str:
        """Where config.json has the size of a head; "": nowhere, and head_dim there is an error."""
        return "" if "head_dim" in self.unsaid else self.own("head_dim")

    def part(self, config: Values) -> float | None:
        """The part of each head that turns where no partial_rotary_factor says it; None: whole heads."""
        dims = config.get(self.dims) if self.dims else None
        return self.partial if dims is None else dims / (config.get(self.head_key) or self.head_dim)

    def own(self, key: str) -> str:
        """The model's own name of a standard key."""
        return self.renamed.get(key, key)

    def turned_on(self, config: Values) -> list[str]:
        """The tensors of each layer, by their GGUF names without it, that config.json turns on by one of its switches."""
        return [
            part
            for switch, parts in self.switches.items()
            if bool(config.get(switch.removeprefix("!"))) != switch.startswith("!")
            for part in parts
        ]

    def farthest(self, config: Values) -> int | None:
        """How many tokens apart two may be that a layer turns (`layers.farthest`); None also where all layers turn."""
        return farthest(self.turning(config, whole_number(config.get("num_hidden_layers"), "num_hidden_layers"))) if self.turning else None

    def window(self, config: Values) -> int | None:
        """The window that every layer sees and that can be turned off, as in Mistral v0.1: where it is not always so, layer_types says
        it, or Qwen's max_window_layers, the first so many of which see all. None where RoPE hangs on the window."""
        given = None if self.turning or config.get("use_sliding_window") is False else config.get("sliding_window")
        every = self.windowed or set(config.get("layer_types") or ()) == {SLIDES} or config.get("max_window_layers") == 0
        return given if given and every else None


NEW = "5.23.0"
GEMMA3_LAYERS = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LATENT_HEAD = {"head_dim": "qk_rope_head_dim"}
NO_LIMIT = (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}])  # of time steps; the last as transformers 5 saves it


MISTRAL4_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1, "partial_rotary_factor": 0.5,
}  # fmt: skip


def _mistral4(c: Values) -> dict[str, Any]:
    """The size of a whole head, which transformers makes of its two parts whatever is written.

    Raises Unsupported for a RoPE object that does not say which part turns: of rope_scaling transformers would turn all, and then fail.
    """
    rope, nope = (64 if (n := c.get(key)) is None else n for key in ("qk_rope_head_dim", "qk_nope_head_dim"))
    said = [x.get("partial_rotary_factor") for key in ("rope_scaling", "rope_parameters") if (x := c.get(key))]
    if min(rope, nope) < 1 or any(part is None or int(part * (rope + nope)) != rope for part in said):
        why = f"a mistral4 with partial_rotary_factor {said!r} whose heads turn {rope!r} of {rope + nope!r} dimensions"
        raise Unsupported(why, "write that part into its RoPE object")
    return {"head_dim": rope + nope}


def _bamba(c: Values) -> dict[str, Any]:
    return {"time_step_limit": [0.0, math.inf]} if c.get("time_step_limit") in NO_LIMIT else {}


def _jetmoe(c: Values) -> dict[str, Any]:
    """Each expert of the attention has as many heads as there are of keys."""
    return {"num_attention_heads": (c.get("num_key_value_heads") or 16) * (c.get("num_experts_per_tok") or 2)}


def _longcat(c: Values) -> dict[str, Any]:
    """Each layer attends twice. transformers turns as many dimensions as head_dim says, and splits off qk_rope_head_dim of them."""
    return {"num_hidden_layers": 2 * (c.get("num_layers") or 28)}


# Those whose tensors have no names here. Their rotary class, attention and config class were found to be the usual ones.
OTHER_TYPES = (
    ModelType("aria_text", 2048, since=NEW),
    ModelType("axk1", 32768, head_dim=64, renamed=LATENT_HEAD, latent=True, since=NEW),
    ModelType("bamba", 262144, partial=0.5, reads=_bamba, since=NEW),
    ModelType("bitnet", 2048, 500000.0),
    ModelType("cwm", 131072, 1e6, head_dim=128, rope=LLAMA3_ROPE | {"factor": 16.0, "rope_theta": 1e6}),
    ModelType("diffllama", 2048),
    ModelType("doge", 2048),
    ModelType("flex_olmo", 4096, 500000.0),
    ModelType("flint", 262144, head_dim=128, turning=hf_flint),
    ModelType("glm4v_moe_text", 65536, partial=0.5, since=NEW),
    ModelType("helium", 4096, 100000.0, head_dim=128),
    ModelType("hrm_text", 2048, since=NEW),
    ModelType("hyperclovax", 2048),
    ModelType("jetmoe", 4096, head_dim=128, renamed={"head_dim": "kv_channels"}, reads=_jetmoe, since=NEW),
    ModelType("kolibri1", 262144, head_dim=128, turning=hf_kolibri1),
    ModelType("longcat_flash", 131072, 1e7, head_dim=64, reads=_longcat, latent=True, since=NEW),
    ModelType("minimax", 131072, 1e6),
    ModelType("ministral", 131072),
    ModelType("mistral4", 1048576, head_dim=128, partial=1.0, rope=MISTRAL4_ROPE, reads=_mistral4, latent=True, floor=True, since=NEW),
    ModelType("mllama_text_model", 131072, 500000.0, since=NEW),
    ModelType("nanochat", 2048),
    ModelType("olmo_hybrid", 65536, since=NEW),
    ModelType("paddleocr_vl_text", 131072, 500000.0, head_dim=128, since=NEW),
    ModelType("persimmon", 16384, partial=0.5),
    ModelType("vaultgemma", 8192, head_dim=256),
)
