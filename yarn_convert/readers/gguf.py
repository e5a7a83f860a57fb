"""Reads GGUF keys as llama.cpp does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from ..errors import FormatError, Unsupported
from ..families import ARCHS, REFUSED, Arch, sections
from ..families.architectures import below
from ..rope import RTOL, STILL, Array, Table, geometric, temperature
from .reading import NOT_MODELLED, Beside, Reading, Refuses

LLAMA_CPP, READ_AT = "llama.cpp", "0c1e570"  # and the commit at which its source was read
ALLOCATED = 256  # tokens, of which a context has a multiple (src/llama-context.cpp: n_ctx, n_ctx_seq)
GGUF_TYPES = ("none", "linear", "yarn", "longrope")
float32 = np.float32


class Flags(NamedTuple):
    """What llama.cpp's command line says of a context's RoPE, which goes before the file's keys (common/arg.cpp, llama_context_params);
    None: as the file has it. `--yarn-attn-factor` is none of them: where YaRN is on, llama-context.cpp writes over it."""

    tokens: int | None = None  # -c: n_ctx
    kind: str | None = None  # --rope-scaling
    factor: float | None = None  # --rope-scale, whose inverse is rope_freq_scale
    original: int | None = None  # --yarn-orig-ctx
    theta: float | None = None  # --rope-freq-base
    fast: float | None = None  # --yarn-beta-fast
    slow: float | None = None  # --yarn-beta-slow


UNTOLD = Flags()


def read_gguf(
    keys: Mapping[str, Any],
    rope_freqs: ArrayLike | None = None,
    rope_factors: tuple[ArrayLike, ArrayLike] | None = None,
    flags: Flags = UNTOLD,
) -> Reading:
    """What llama.cpp computes at its full context, or at that of `flags`, what it is told besides. `rope_freqs` is rope_freqs.weight,
    `rope_factors` the pair rope_factors_short.weight, rope_factors_long.weight.

    Source: src/llama-model.cpp load_hparams, src/llama-context.cpp llama_context::llama_context, ggml/src/ggml.c
    ggml_rope_yarn_corr_dims, ggml/src/ggml-cpu/ops.cpp rope_yarn. The numbers of the file and the ramp's ends are float32, as
    there; what is made of them is float64: what ggml's float32 steps add is the same for every file that says the same.
    """
    try:
        with np.errstate(all="ignore"):
            return _read(keys, rope_freqs, rope_factors, flags)
    except (ArithmeticError, ValueError, TypeError) as e:  # a number in the file that has no logarithm, or is none
        gguf_refuses(f"cannot compute from this: {e}")


def _read(keys: Mapping[str, Any], rope_freqs: ArrayLike | None, rope_factors: tuple[ArrayLike, ArrayLike] | None, flags: Flags) -> Reading:
    arch = keys["general.architecture"]
    if arch not in ARCHS:
        why = f"{arch} {REFUSED[arch]}" if arch in REFUSED else f"what llama.cpp makes of the architecture {arch!r} is not known here"
        raise Unsupported(why, NOT_MODELLED)
    meta = check_keys(arch, keys)
    loaded = meta.get("rope.scaling.type", "linear")
    kind = flags.kind or loaded
    for name in {loaded, kind} - {*GGUF_TYPES}:
        gguf_refuses(f"aborts on rope.scaling.type {name!r}")
    context = int(meta["context_length"])
    original = int(meta.get("rope.scaling.original_context_length") or context)
    dim = gguf_dim(arch, meta)
    divided = divisors(arch, loaded, dim, (flags.tokens or context) > original, rope_freqs, rope_factors)
    written = float32(meta.get("rope.scaling.factor", meta.get("rope.scale_linear", 0.0)))
    layers = Layers(arch, meta, kind, flags.original or original, 1.0 if written == 0 else 1 / float(written), flags)
    theta = gguf_theta(arch, meta) if flags.theta is None else float(float32(flags.theta))
    read = layers.table(dim, theta, layers.scale, divided)
    beside = Beside(layers.logits(layers.scale), layers.other_layers(read, dim, theta, divided), gguf_floor(arch, keys))
    return Reading(*read, layers.served(context), gguf_ignored(arch, meta, kind, read.multiplier), beside)


BETAS = ("yarn_beta_fast", "yarn_beta_slow")
UNREAD = {  # what llama.cpp's converter and Ollama's write and most loaders do not read -> what is computed all the same
    "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_log_multiplier": 0.0,
    "extrapolation_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
BY_LAYER = (  # numbers that may be one for each layer (llama_model_loader::get_key_or_arr)
    "feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_feed_forward_length", "expert_used_count",
)  # fmt: skip
OLLAMAS = {  # names of its own converter, over which llama.cpp passes -> what it reads, and takes where that is not there
    "rope.local.freq_base": ("rope.freq_base_swa", 10000.0),
    "rope.global.freq_base": ("rope.freq_base", 10000.0),
}


def of_layers(arch: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """`keys` with one number in the place of an array that has it for every layer. FormatError for an array of another length, which
    llama.cpp refuses."""
    found, layers = dict(keys), keys.get(f"{arch}.block_count")
    for name in (f"{arch}.{key}" for key in BY_LAYER):
        value = found.get(name)
        if not isinstance(value, list):
            continue
        if len(value) != layers:
            raise FormatError(f"{name} has {len(value):,} numbers, not one for each of {layers!r} layers", "write the GGUF again")
        found[name] = value[0] if len(set(value)) == 1 else value
    return found


def check_keys(arch: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of this architecture, without its name. Unsupported for ones that make of it another than `ARCHS` describes."""
    facts, meta = ARCHS[arch], below(arch, keys)
    if facts.switch and not meta.get(facts.switch, True):
        raise Unsupported(f"{arch} with {facts.switch} false has no RoPE", "there is nothing to extend")
    heads = meta.get("attention.head_count")
    if isinstance(heads, list) and heads[:1] == [0]:  # load_hparams: n_rot_full is 0 where n_head() is
        raise Unsupported(f"llama.cpp turns nothing in {arch} whose first layer has no heads", "there is nothing to extend")
    sections(arch, keys)
    for key in facts.unmodelled:
        usual = UNREAD[key.removeprefix("rope.scaling.")]
        if key in meta and (meta[key] != usual or meta.get("rope.scaling.type") != "yarn"):
            raise Unsupported(f"{key} of {arch} is not modelled", NOT_MODELLED)
    dim = meta.get("rope.dimension_count")
    if not facts.dims and meta.get("rope.dimension_count_swa", dim) != dim:
        raise Unsupported(f"rope.dimension_count_swa of {arch} is not modelled", NOT_MODELLED)
    for key, (read, usual) in OLLAMAS.items():
        if key in meta and float32(meta[key]) != float32(taken := meta.get(read, usual)):
            raise Unsupported(
                f"{arch}.{key} is {meta[key]!r}, and llama.cpp, which passes over it, takes {taken!r}",
                f"gguf_set_metadata or gguf_new_metadata writes {arch}.{read}, which llama.cpp reads",
            )
    return meta


@dataclass(frozen=True, slots=True)
class Layers:
    """A model's layers, as ggml_rope_ext is called for them."""

    arch: str
    meta: Mapping[str, Any]
    kind: str
    original: int
    trained: float  # rope_freq_scale_train, 1/s whatever the type
    flags: Flags

    @property
    def told(self) -> float:
        """rope_freq_scale, before the type is looked at."""
        return self.trained if self.flags.factor is None else 1 / float(float32(self.flags.factor))

    @property
    def scale(self) -> float:
        return 1.0 if self.kind == "none" else self.told

    @property
    def betas(self) -> tuple[float, float]:
        fast, slow = gguf_betas(self.arch, self.meta)
        return fast if self.flags.fast is None else self.flags.fast, slow if self.flags.slow is None else self.flags.slow

    def served(self, context: int) -> int:
        """How long a text the server takes: no longer than n_ctx_train, which another YaRN than the file's sets anew, to a whole number
        of tokens below a quotient in float32 (llama_init_from_model; tools/server/server-context.cpp, n_ctx_slot)."""
        if self.kind == "yarn" and float32(self.told) != float32(self.trained):
            context = int(float32(self.original) / float32(self.told))
        return context if self.flags.tokens is None else min(context, self.flags.tokens)

    @property
    def written(self) -> float:
        return float(float32(self.meta.get("rope.scaling.attn_factor", 1.0)))

    def attn_factor(self, scale: float) -> float:
        """The context's attn_factor, of which rope_yarn makes the multiplier. Of YaRN the ratio of the temperatures of mscale, 1, and
        mscale_all_dim, which DeepSeek's are taken for equal in; or 0.1·ln s + 1; over 0.1·ln s + 1, by which rope_yarn multiplies again."""
        if self.kind != "yarn":
            return self.written
        usual = temperature(1 / scale)
        if self.log_multiplier:
            usual = usual / temperature(1 / scale, self.log_multiplier) if ARCHS[self.arch].ratio else 1.0
        return usual / m0(scale) * self.written

    @property
    def log_multiplier(self) -> float:
        """mscale_all_dim, which DeepSeek's converter multiplied by 0.1; 0 where it is not read."""
        facts = ARCHS[self.arch]
        key = self.meta.get("rope.scaling.yarn_log_multiplier", 0.0) if facts.mla or facts.ratio else 0.0
        return float(float32(key)) / (0.1 if facts.mla else 1.0)

    def table(self, dim: int, theta: float, scale: float, divided: Array | float, own: float | None = None) -> Table:
        """The RoPE of layers with this θ; `scale` is the context's, `own` theirs if it is another."""
        own = scale if own is None else own
        omega, multiplier = geometric(theta, dim) / divided, self.attn_factor(scale)
        inv_freq = omega * own
        if self.kind == "yarn":
            keep = gguf_ramp(dim, *gguf_corrections(dim, self.original, theta, *self.betas))
            inv_freq = inv_freq * (1 - keep) + omega * keep
            multiplier *= m0(own)
        return Table(inv_freq, multiplier)

    def other_layers(self, first: Table, dim: int, theta: float, divided: Array | float) -> Table | None:
        """The RoPE of the sliding-window layers; None if there are none, or it is that of the others. Their factor is the file's, whatever
        the context's, and so is their θ but where they are "plain"."""
        facts = ARCHS[self.arch]
        if not has_other_layers(self.arch, self.meta):
            return None
        theta = theta if facts.other_layers == "plain" else gguf_theta(self.arch, self.meta)
        theirs, dim = gguf_other_layers(self.arch, self.meta, theta, dim)
        if facts.other_layers in ("plain", "apart"):
            return Table(geometric(theirs, dim), 1.0)
        own = 1.0 if facts.other_layers == "own" else self.trained
        found = self.table(dim, theirs, self.scale, divided if facts.other_layers == "shared" else 1.0, own)
        same = facts.other_layers == "shared" and np.array_equal(found.inv_freq, first.inv_freq) and found.multiplier == first.multiplier
        return None if same else found

    def logits(self, scale: float) -> float:
        """What multi-head latent attention multiplies its logits by (src/models/deepseek2.cpp: graph, kq_scale): also for
        linear, and with the multiplier on top. 1 elsewhere."""
        if not ARCHS[self.arch].mla:
            return 1.0
        restored = self.attn_factor(scale) * m0(scale)
        return float(restored * (1 + 0.1 * self.log_multiplier * math.log(1 / scale))) ** 2


def has_other_layers(arch: str, meta: Mapping[str, Any]) -> bool:
    """Whether layers with a sliding window have a RoPE of their own."""
    return bool(ARCHS[arch].other_layers and meta.get("attention.sliding_window", ARCHS[arch].window))


def gguf_other_layers(arch: str, meta: Mapping[str, Any], theta: float, dim: int) -> tuple[float, int]:
    """(θ, D) of these layers; `theta` and `dim` are those of the others."""
    facts = ARCHS[arch]
    theirs = theta if facts.other_layers == "plain" else meta.get("rope.freq_base_swa", 10000.0 if facts.other_layers == "own" else theta)
    return float(float32(theirs)), int(meta.get("rope.dimension_count_swa", dim)) if facts.dims else factor_pairs(facts, dim) * 2


def gguf_theta(arch: str, meta: Mapping[str, Any]) -> float:
    """θ of the layers that see all; src/models/hunyuan-vl.cpp load_arch_hparams for `Arch.alpha`, every step in float32."""
    theta, alpha = float32(meta.get("rope.freq_base", 10000.0)), float32(meta.get("rope.scaling.alpha", 0.0))
    if not ARCHS[arch].alpha or not alpha > 0:
        return float(theta)
    head = head_size(meta)
    return float(theta * np.power(alpha, float32(head) / float32(head - 2)))


def gguf_floor(arch: str, keys: Mapping[str, Any]) -> int:
    """`Beside.floor`: n_attn_temp_floor_scale of src/models/mistral3.cpp."""
    if not ARCHS[arch].floor or not keys.get(f"{arch}.attention.temperature_scale"):
        return 0
    return int(keys.get(f"{arch}.rope.scaling.original_context_length") or keys[f"{arch}.context_length"])


def gguf_refuses(reason: str) -> NoReturn:
    raise Refuses(f"{LLAMA_CPP} {READ_AT}: {reason}")


def head_size(meta: Mapping[str, Any]) -> int:
    heads = meta.get("attention.head_count")
    return int(meta.get("attention.key_length") or meta["embedding_length"] // (heads[0] if isinstance(heads, list) else heads))


def gguf_dim(arch: str, meta: Mapping[str, Any]) -> int:
    head = head_size(meta)
    dim = int(meta.get("rope.dimension_count", head))
    if ARCHS[arch].whole_head and dim != head:
        gguf_refuses(f"invalid n_rot: {dim}, expected {head}")
    return dim // 2 if ARCHS[arch].halved else dim


def factor_pairs(facts: Arch, dim: int) -> int:
    """How many factors a tensor of `dialects.FACTORS` has, where `dim` dimensions turn; the first are of these."""
    return dim if facts.halved else dim // 2


def divisors(
    arch: str,
    kind: str,
    dim: int,
    beyond: bool,
    rope_freqs: ArrayLike | None,
    rope_factors: tuple[ArrayLike, ArrayLike] | None,
) -> Array | float:
    """What llama.cpp divides the angles by (llama_model::get_rope_factors), 1.0 without a tensor."""
    found, facts = rope_freqs if rope_freqs is not None else rope_factors and rope_factors[beyond], ARCHS[arch]
    if found is None:
        if facts.freqs == "required":
            gguf_refuses(f"missing tensor: {arch} does not load without rope_freqs.weight")
        return 1.0
    pair = facts.pair == "always" or (kind == "longrope" and facts.pair == "longrope")
    unwanted = facts.freqs == "refused" or pair if rope_freqs is not None else not pair
    if unwanted:
        name = "rope_freqs.weight" if rope_freqs is not None else "rope_factors_short/long.weight"
        gguf_refuses(f"wrong number of tensors: {arch} does not load {name} with rope.scaling.type {kind}")
    if np.shape(found) != (factor_pairs(facts, dim),):
        gguf_refuses(f"a factor tensor of shape {np.shape(found)}, expected {factor_pairs(facts, dim)}")
    if facts.freqs == "forgotten":
        return 1.0
    factors = np.asarray(found, dtype=np.float64)[: dim // 2]
    return np.where(factors >= STILL, np.inf, factors)


def still(arch: str, sections: Sequence[int], pairs: int) -> list[int]:
    """The pairs that M-RoPE gives the fourth position, which of text is 0 (ggml/src/ggml-cpu/ops.cpp, ggml_mrope_cache_init;
    src/llama-graph.cpp, llm_graph_input_pos::set_input)."""
    turn = sum(sections[:3])
    if ARCHS[arch].sections == "blocks":
        return [i for i in range(pairs) if i % sum(sections) >= turn]
    return [i for i in range(pairs) if (at := i % sum(sections)) >= 3 * sections[at % 3]]  # time, height and width by turns


def gguf_betas(arch: str, meta: Mapping[str, Any]) -> tuple[float, float]:
    usual = ARCHS[arch].betas
    if usual is None:
        return 32.0, 1.0
    return meta.get("rope.scaling.yarn_beta_fast", usual[0]), meta.get("rope.scaling.yarn_beta_slow", usual[1])


def logf(x: np.float32) -> np.float32:
    """C's logf, which rounds correctly where NumPy's float32 log may be one unit off."""
    return float32(math.log(float(x)))


def gguf_corrections(dim: int, original: int, theta: Any, fast: float, slow: float) -> tuple[np.float32, np.float32]:
    """The ramp's ends, every step in float32: floor and ceil then land where ggml's do."""

    def at(turns: float) -> np.float32:
        whole = logf(float32(original) / (float32(turns) * float32(2) * float32(math.pi)))
        return float32(dim) * whole / (float32(2) * logf(float32(theta)))

    return max(float32(0), np.floor(at(fast))), min(float32(dim - 1), np.ceil(at(slow)))


def gguf_ramp(dim: int, low: np.float32, high: np.float32) -> Array:
    """1 keeps a pair, 0 interpolates it; float64[D/2]."""
    mix = (np.arange(dim // 2) - float(low)) / max(0.001, float(high) - float(low))
    return np.asarray(1 - np.clip(mix, 0.0, 1.0), dtype=np.float64)


def m0(scale: float) -> float:
    """0.1·ln s + 1, where `temperature` is 1 for a factor below 1."""
    return 1 + 0.1 * math.log(1 / scale)


def unread(arch: str, said: Mapping[str, Any], multiplier: float) -> list[str]:
    """The names of `UNREAD` that `said` gives another value than this architecture's loader computes with."""
    facts = ARCHS[arch]
    read = {*(BETAS if facts.betas else ()), *(["yarn_log_multiplier"] if facts.mla or facts.ratio else [])}
    read |= {key.removeprefix("rope.scaling.") for key in facts.unmodelled}
    usual = UNREAD | {"yarn_attn_factor": multiplier}
    return [name for name in usual if name in said and name not in read and not math.isclose(said[name], usual[name], rel_tol=RTOL)]


def gguf_ignored(arch: str, meta: Mapping[str, Any], kind: str, multiplier: float) -> tuple[str, ...]:
    """Keys that would change the reading, were they read."""
    said = {name: meta[key] for name in UNREAD if (key := f"rope.scaling.{name}") in meta}
    names = unread(arch, said, multiplier)
    names += ["factor"] if kind == "none" and meta.get("rope.scaling.factor", 1.0) not in (0.0, 1.0) else []
    return tuple(f"{arch}.rope.scaling.{name}" for name in names)
