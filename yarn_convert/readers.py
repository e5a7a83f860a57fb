"""What each runtime will compute from a config.json or from GGUF keys: its frequency table, multiplier and context.

A writer that wants every runtime to agree has to know how each of them reads. `read_config` and `read_gguf` say it,
without the runtimes: the arithmetic that they share is written once, and what sets them apart is a row of `HF_READERS`.
The rows were checked against the runtimes' own code (`tests/data/readers.json`); `docs/formats.md` is the prose.

The tables are float64. The runtimes work in float32, so theirs differ from these by a few units of 2^-24, times the
factor where a YaRN ramp ends. Not modelled: models other than Llama and Mistral, and rope dicts per layer type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import Inexpressible, Unsupported
from .rope import Array, geometric

Config = Mapping[str, Any]


class Reading(NamedTuple):
    """What a reader makes of a model. `ignored` names what it overlooks although it would change this reading."""

    inv_freq: Array  # float64[D/2], radians per token
    multiplier: float  # of cos and sin
    context: int | None  # the longest text it takes unasked, in tokens; None: it has no limit of its own
    ignored: tuple[str, ...]


class Refuses(Inexpressible):
    """The reader raises or aborts on this model: the message is its reason."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How one runtime reads config.json. A place is "dict" (the rope dict it follows), "top" (config.json itself),
    "rope_parameters", "max_position" (max_position_embeddings), or a number that it assumes."""

    name: str
    version: str
    evidence: tuple[str, ...]  # file: function, in that version
    dicts: tuple[str, ...]  # the rope dicts it knows; the first that is not empty is followed, alone
    theta: tuple[str | float, ...]  # places of rope_theta, first found wins
    types: Mapping[str, str]  # spelling -> method; any other spelling is refused
    original: Mapping[str, tuple[str | float, ...]]  # method -> places of original_max_position_embeddings
    temperature: tuple[str, ...]  # yarn: rules in order, see `yarn_multiplier`
    longrope_multiplier: str  # "attention_factor", "mscale" or "lengths", see `longrope`
    longrope_list: str  # which list serves a long text: see `longrope`
    longrope_factor: tuple[str, ...] = ("lengths",)  # s of its default multiplier: rules in order
    type_keys: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # model_type -> order of the two spellings
    types_must_agree: bool = False
    type_required: bool = False  # a rope dict without a type is an error, not "default"
    defaults: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # method -> key -> assumed when absent
    yarn_factor: str = "factor"  # "lengths": max_position/original wherever that is given; "null-lengths": for null
    null_means_default: bool = False  # beta_fast, beta_slow
    truncate: bool = True  # honours truncate: false
    dynamic: str = "length"  # or "trained", "static": see `dynamic`
    integer_linear: bool = True  # takes an integer factor for linear
    head_dim_required: frozenset[str] = frozenset()  # methods that fail for Mistral when head_dim is absent
    partial: tuple[str, tuple[str, ...]] = ("ignores", ())  # what it does with partial_rotary_factor, and its places
    context_keys: tuple[str | int, ...] = ("max_position_embeddings",)  # of config.json, or a number that it assumes
    context_rule: str = "given"  # or "vllm", "sglang", "none"
    max_position: Mapping[str, int] = field(default_factory=dict)  # model_type -> assumed when absent
    max_position_required: frozenset[str] = frozenset()  # methods that fail without it
    ignores: Mapping[str, frozenset[str]] = field(default_factory=dict)  # method -> keys of the dict


NOT_MODELLED = "no claim about this model can be made; validate it in the runtime itself"
METHODS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
SPELLED = {name: name for name in METHODS}
SCALED = ("yarn", "llama3", "longrope")
HF_LENGTHS = {"llama": 2048, "mistral": 131072}
TYPE_FIRST, TYPE_LAST = ("type", "rope_type"), ("rope_type", "type")
MSCALES = frozenset({"short_mscale", "long_mscale"})
V5 = "transformers 5.23 modeling_rope_utils.py: RotaryEmbeddingConfigMixin.convert_rope_params_to_dict"
V5_READS: dict[str, Any] = {  # vLLM and SGLang load config.json through transformers 5: the three see one dict
    "dicts": ("rope_scaling", "rope_parameters"),
    "theta": ("dict", "top", 10000.0),
    "original": dict.fromkeys(SCALED, ("top", "dict", "max_position")),
    "max_position": HF_LENGTHS,
}
SGLANG_LENGTHS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
HF_READERS: Mapping[str, Reader] = {
    row.name: row
    for row in (
        # Earlier ones differ in yarn: 4.45 to 4.50 take L from max_position_embeddings, 4.51 to 4.55 s from the lengths
        Reader(
            name="transformers-4",
            version="4.57.6",
            evidence=(
                "modeling_rope_utils.py: _compute_*_parameters, longrope_frequency_update",
                "models/llama/configuration_llama.py: LlamaConfig.__init__ (type overwrites rope_type)",
                "models/llama/modeling_llama.py: LlamaRotaryEmbedding",
            ),
            dicts=("rope_scaling",),
            theta=("top", 10000.0),
            types=SPELLED,
            type_keys={"llama": TYPE_FIRST},
            type_required=True,
            original={"yarn": ("dict", "max_position"), "llama3": ("dict",), "longrope": ("top", "max_position")},
            temperature=("attention_factor", "ratio"),
            longrope_multiplier="attention_factor",
            longrope_factor=("lengths-of-top", "factor"),
            longrope_list="length",
            null_means_default=True,
            head_dim_required=frozenset({"dynamic", "yarn", "longrope"}),
            partial=("refuses", ("top",)),
            max_position=HF_LENGTHS,
            ignores={"longrope": MSCALES | {"original_max_position_embeddings"}},
        ),
        Reader(
            **V5_READS,
            name="transformers-5",
            version="5.23.0",
            evidence=(V5, "modeling_rope_utils.py: _compute_*_parameters, longrope_frequency_update"),
            types=SPELLED,
            temperature=("attention_factor", "ratio"),
            longrope_multiplier="attention_factor",
            longrope_factor=("factor", "lengths"),
            longrope_list="length",
            yarn_factor="null-lengths",
            null_means_default=True,
            partial=("refuses-scaled", ("dict", "top")),
            ignores={"longrope": MSCALES},
        ),
        Reader(
            **V5_READS,
            name="vllm",
            version="0.33.0",
            evidence=(
                V5,
                "vllm/transformers_utils/config.py: patch_rope_parameters, patch_legacy_rope_type",
                "vllm/model_executor/layers/rotary_embedding/__init__.py: get_rope, and the classes it makes",
                "vllm/config/model.py: _get_and_verify_max_len",
            ),
            types={**SPELLED, "su": "longrope"},
            types_must_agree=True,
            temperature=("attention_factor", "ratio"),
            longrope_multiplier="mscale",
            longrope_list="context",
            dynamic="trained",
            integer_linear=False,
            partial=("rotates", ("dict", "top")),
            context_keys=("max_position_embeddings", "max_seq_len", "seq_length", "max_sequence_length"),
            context_rule="vllm",
            ignores={"longrope": frozenset({"attention_factor"}), "dynamic": frozenset({"factor"})},
        ),
        Reader(
            **V5_READS,
            name="sglang",
            version="0.5.23",
            evidence=(
                V5,
                "sglang/srt/models/llama.py: LlamaDecoderLayer, LlamaAttention",
                "sglang/srt/layers/rotary_embedding/factory.py: get_rope; yarn.py, rope_variant.py, base.py",
                "sglang/srt/utils/hf_transformers/common.py: get_context_length",
            ),
            types=SPELLED,
            temperature=("ratio-of-any", "times-attn_factor"),
            longrope_multiplier="mscale",
            longrope_list="position",
            dynamic="static",
            integer_linear=False,
            context_keys=SGLANG_LENGTHS,
            context_rule="sglang",
            ignores={"yarn": frozenset({"attention_factor"}), "longrope": frozenset({"attention_factor"})},
        ),
        Reader(
            name="mlx-lm",
            version="0.32.2",
            evidence=(
                "mlx_lm/models/llama.py: ModelArgs, Attention (mistral is remapped to llama in mlx_lm/utils.py)",
                "mlx_lm/models/rope_utils.py: initialize_rope, YarnRoPE, SuScaledRoPE, Llama3RoPE",
            ),
            dicts=("rope_scaling",),
            theta=("top", 10000.0),
            types=SPELLED,
            type_keys={"llama": TYPE_FIRST, "mistral": TYPE_FIRST},
            original={"yarn": ("dict", 4096), "llama3": ("dict", 8192), "longrope": ("dict",)},
            defaults={"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}},
            temperature=("ratio-1-0",),
            longrope_multiplier="lengths",
            longrope_list="always",
            truncate=False,
            max_position_required=frozenset({"dynamic", "longrope"}),
            context_rule="none",
            ignores={
                "yarn": frozenset({"attention_factor", "truncate"}),
                "longrope": MSCALES | {"attention_factor", "short_factor"},
            },
        ),
        Reader(
            name="exllamav3",
            version="1.4.1",
            evidence=(
                "exllamav3/model/config.py: Config.read_rope_settings_default",
                "exllamav3/util/rope.py: RoPE.__init__, _rope_params_*, yarn_inv_freq",
                "exllamav3/architecture/llama.py: LlamaConfig",
            ),
            dicts=("rope_scaling", "rope_parameters"),
            theta=("top", "rope_parameters", 10000.0),
            types={**{k: v for k, v in SPELLED.items() if k != "dynamic"}, "su": "longrope"},
            original={"yarn": ("dict", "max_position"), "llama3": ("dict", 8192), "longrope": ("dict", "top")},
            defaults={
                "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "linear": {"factor": 1.0},
            },
            temperature=("attention_factor",),
            longrope_multiplier="lengths",
            longrope_list="max_position",
            yarn_factor="lengths",
            partial=("rotates", ("top", "rope_parameters")),
            max_position_required=frozenset({"yarn", "longrope"}),
            context_keys=("max_position_embeddings", 8192),
            ignores={
                "yarn": frozenset({"factor", "mscale", "mscale_all_dim"}),
                "longrope": MSCALES | {"attention_factor"},
            },
        ),
    )
}


# -- config.json ------------------------------------------------------------------------------------------------------


def read_config(reader: str, config: Config, length: int | None = None) -> Reading:
    """What `reader`, a key of HF_READERS, computes for a text of `length` tokens; None: as long as its context.

    Without a context of its own the reader is taken at max_position_embeddings. Raises Refuses if it would fail, and
    Unsupported for what this module does not know.
    """
    row = HF_READERS[reader]
    model_type = config.get("model_type", "llama")
    if model_type not in HF_LENGTHS:
        raise Unsupported(f"what {row.name} makes of model_type {model_type!r} is not known here", NOT_MODELLED)
    rope = Seen.of(row, config, model_type)
    context = context_of(rope)
    inv_freq, multiplier = FUNCTIONS[rope.method](rope, length or context or rope.max_position or 1)
    return Reading(inv_freq, multiplier, context, ignored_by(rope, multiplier))


@dataclass(frozen=True, slots=True)
class Seen:
    """A config as one reader sees it."""

    row: Reader
    config: Config
    followed: str  # the rope dict it follows
    dict: Config
    method: str
    theta: float
    dim: int
    max_position: int  # 0 if unknown; the reader then has no use for it
    original: float  # likewise

    @staticmethod
    def of(row: Reader, config: Config, model_type: str) -> Seen:
        followed = next((name for name in row.dicts if config.get(name)), "")
        chosen = config.get(followed) or {}
        method = method_of(row, chosen, model_type, bool(followed))
        max_position = config.get("max_position_embeddings") or row.max_position.get(model_type, 0)
        if not max_position and method in row.max_position_required:
            refuse(row, f"{method} without max_position_embeddings")

        def find(key: str, places: Sequence[str | float]) -> Any:
            """The value of `key` at the first of these places that has one."""
            v5 = config.get("rope_parameters") or {}
            homes: dict[Any, Config] = {"dict": chosen, "top": config, "rope_parameters": v5}
            for place in places:
                assumed = max_position if place == "max_position" else place
                found = homes[place].get(key) if place in homes else assumed
                if found is not None:
                    return found
            return None

        theta = float(find("rope_theta", row.theta))
        original = find("original_max_position_embeddings", row.original.get(method, ()))
        if method in SCALED and original is None:
            refuse(row, f"{method} without original_max_position_embeddings")
        dim = rotary_dim(row, config, method, find("partial_rotary_factor", row.partial[1]), model_type)
        return Seen(row, config, followed, chosen, method, theta, dim, max_position, original or 0.0)

    def number(self, key: str) -> Any:
        """A number that the reader cannot do without, as it is written: an integer stays one."""
        value = self.dict.get(key, self.row.defaults.get(self.method, {}).get(key))
        if value is None or isinstance(value, str | list | dict):
            refuse(self.row, f"{self.method} needs a number for {key}, not {value!r}")
        return value


def refuse(row: Reader, reason: str) -> NoReturn:
    raise Refuses(f"{row.name} {row.version}: {reason}")


def method_of(row: Reader, rope: Config, model_type: str, given: bool) -> str:
    first, second = row.type_keys.get(model_type, TYPE_LAST)
    spelled = rope.get(first) or rope.get(second)
    if row.type_required and given and not spelled:
        refuse(row, "a rope_scaling without a type")
    if row.types_must_agree and rope.get(second) not in (None, spelled) and rope.get(second) != "su":
        refuse(row, f"rope_type {rope[first]!r} and type {rope[second]!r} conflict")
    spelled = spelled or "default"
    if spelled not in row.types:
        refuse(row, f"unknown rope type {spelled!r}")
    return row.types[spelled]


def rotary_dim(row: Reader, config: Config, method: str, partial: float | None, model_type: str) -> int:
    head_dim = config.get("head_dim")
    if head_dim is None:
        if model_type == "mistral" and method in row.head_dim_required:
            refuse(row, f"{method} for Mistral needs head_dim in config.json: the config class leaves it None")
        head_dim = config["hidden_size"] // config["num_attention_heads"]
    dim, attitude = int(head_dim * (1.0 if partial is None else partial)), row.partial[0]
    if attitude == "ignores" or (attitude == "refuses-scaled" and method == "default"):
        return int(head_dim)
    if attitude != "rotates" and dim != head_dim:
        refuse(row, f"partial_rotary_factor {partial}: the attention of this model rotates whole heads")
    return dim


def context_of(rope: Seen) -> int | None:
    """The longest text that the reader takes when the user asks for no length."""
    row, config = rope.row, rope.config
    found = (key if isinstance(key, int) else config.get(key) for key in row.context_keys)
    given = [value for value in found if value is not None] or [rope.max_position]
    factor = rope.dict.get("factor") or 1.0
    if row.context_rule == "none":
        return None
    if row.context_rule == "vllm":
        if rope.method == "longrope" and config.get("original_max_position_embeddings"):
            return int(config["original_max_position_embeddings"])
        longest = config.get("model_max_length") or min(given)
        return int(longest * (1.0 if rope.method in SCALED else factor))
    if row.context_rule == "sglang":
        scaled = rope.method in SCALED or "original_max_position_embeddings" in rope.dict
        return int(given[0] * (1.0 if scaled else factor))
    return int(given[0])


# -- the methods, as the runtimes compute them: (rope, length) -> (frequencies, multiplier) ---------------------------


def default(rope: Seen, length: int) -> tuple[Array, float]:
    return geometric(rope.theta, rope.dim), 1.0


def linear(rope: Seen, length: int) -> tuple[Array, float]:
    factor = rope.number("factor")
    if not rope.row.integer_linear and not isinstance(factor, float):
        refuse(rope.row, f"linear needs a factor written as a float, {factor}.0 and not {factor}")
    return geometric(rope.theta, rope.dim) / factor, 1.0


def dynamic(rope: Seen, length: int) -> tuple[Array, float]:
    """NTK-aware with s = f·l'/L − (f − 1), L being max_position_embeddings. l' is the text ("length"), L·f whatever
    the text ("static"), or L itself unless `max_trained_positions` says otherwise ("trained": no scaling at all)."""
    f, at = rope.number("factor"), rope.max_position
    if "alpha" in rope.dict and rope.row.dynamic != "length":
        raise Unsupported("dynamic scaling with alpha is not modelled", NOT_MODELLED)
    trained = rope.dict.get("max_trained_positions", at) if rope.row.dynamic == "trained" else at
    reached: float = {"length": max(length, at), "trained": at, "static": at * f}[rope.row.dynamic]
    s = f * reached / trained - (f - 1)
    return geometric(rope.theta * s ** (rope.dim / (rope.dim - 2)), rope.dim), 1.0


def yarn(rope: Seen, length: int) -> tuple[Array, float]:
    factor, row = yarn_factor(rope), rope.row
    beta_fast, beta_slow = (beta(rope, key, usual) for key, usual in (("beta_fast", 32), ("beta_slow", 1)))
    low, high = (correction(rope.dim, rope.original, turns, rope.theta) for turns in (beta_fast, beta_slow))
    if rope.dict.get("truncate", True) or not row.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high = high + 0.001 if low == high else high
    keep = 1 - np.clip((np.arange(rope.dim // 2) - low) / (high - low), 0.0, 1.0)
    omega = geometric(rope.theta, rope.dim)
    return omega / factor * (1 - keep) + omega * keep, yarn_multiplier(rope, factor)


def yarn_factor(rope: Seen) -> Any:
    rule, given = rope.row.yarn_factor, rope.dict.get("original_max_position_embeddings") is not None
    if (rule == "lengths" and given) or (rule == "null-lengths" and rope.dict.get("factor", 0) is None):
        return rope.max_position / rope.original
    return rope.number("factor")


def beta(rope: Seen, key: str, usual: float) -> Any:
    value = rope.dict.get(key, usual)
    if not value and not rope.row.null_means_default:
        refuse(rope.row, f"{key} {value!r}")
    return value or usual


def correction(dim: int, original: float, turns: float, theta: float) -> float:
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def mscale(scale: float, weight: Any = 1.0) -> float:
    return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0


def yarn_multiplier(rope: Seen, factor: float) -> Any:
    """The first rule that applies, else 0.1·ln s + 1: "attention_factor" if given; the "ratio" of mscale and
    mscale_all_dim if both are given and not 0, or given at all ("-of-any"), or assumed as 1 and 0 ("-1-0")."""
    given, all_dim, rules = rope.dict.get("mscale"), rope.dict.get("mscale_all_dim"), rope.row.temperature
    if "attention_factor" in rules and rope.dict.get("attention_factor") is not None:
        return float(rope.dict["attention_factor"])
    if "ratio-1-0" in rules:
        weights = rope.dict.get("mscale", 1), rope.dict.get("mscale_all_dim", 0)
        if None in weights:
            refuse(rope.row, "multiplies by a null mscale or mscale_all_dim")
        return mscale(factor, weights[0]) / mscale(factor, weights[1])
    both = given is not None and all_dim is not None
    ratio = both and ("ratio-of-any" in rules or ("ratio" in rules and given and all_dim))
    multiplier = mscale(factor, given) / mscale(factor, all_dim) if ratio else mscale(factor)
    return multiplier * (rope.dict.get("attn_factor", 1) if "times-attn_factor" in rules else 1)


def llama3(rope: Seen, length: int) -> tuple[Array, float]:
    s, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    omega = geometric(rope.theta, rope.dim)
    turns = rope.original * omega / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return omega * keep + omega / s * (1 - keep), 1.0


def longrope(rope: Seen, length: int) -> tuple[Array, float]:
    """ω_i divided by a list. The long one serves texts above the original context ("length"), or positions above it
    ("position"), or models whose context ("context") or max_position_embeddings is above it, or every text ("always").

    The multiplier is `attention_factor`; or the list's own `short_mscale` or `long_mscale`; else, and for "lengths" in
    any case, √(1 + ln s/ln L).
    """
    row, original = rope.row, rope.original
    reached = {"length": length, "position": length - 1, "max_position": rope.max_position, "always": math.inf}
    reached["context"] = context_of(rope) or math.inf
    name = "long" if reached[row.longrope_list] > original else "short"
    factors = np.asarray(rope.dict.get(f"{name}_factor") or [], dtype=np.float64)
    if factors.shape != (rope.dim // 2,):
        refuse(row, f"{name}_factor must be {rope.dim // 2} numbers")
    key = {"attention_factor": "attention_factor", "mscale": f"{name}_mscale"}.get(row.longrope_multiplier, "")
    multiplier = rope.dict.get(key)
    if multiplier is None:
        s = longrope_factor(rope)
        multiplier = math.sqrt(1 + math.log(s) / math.log(original)) if s > 1 else 1.0
    return geometric(rope.theta, rope.dim) / factors, float(multiplier)


def longrope_factor(rope: Seen) -> Any:
    """s by the first rule that applies: "factor" if given, or max_position/L, or that only if L is at the top level."""
    for rule in rope.row.longrope_factor:
        if rule == "lengths" or (rule == "lengths-of-top" and rope.config.get("original_max_position_embeddings")):
            return rope.max_position / rope.original
        if rule == "factor" and rope.dict.get("factor") is not None:
            return rope.dict["factor"]
    return rope.number("factor")


FUNCTIONS = {"default": default, "linear": linear, "dynamic": dynamic, "yarn": yarn, "llama3": llama3}
FUNCTIONS |= {"longrope": longrope}


def ignored_by(rope: Seen, multiplier: float) -> tuple[str, ...]:
    """What the reader overlooks: keys of the dict it follows, a theta that it does not take, a dict that differs."""
    values, method = rope.dict, rope.method
    same: dict[str, Any] = {
        "truncate": True,
        "short_factor": values.get("long_factor"),
        "factor": yarn_factor(rope) if method == "yarn" else None,
        "original_max_position_embeddings": rope.original,
        **dict.fromkeys(MSCALES | {"attention_factor"}, multiplier),
    }
    if method == "yarn" and values.get("mscale") and values.get("mscale_all_dim"):
        ratio = mscale(same["factor"], values["mscale"]) / mscale(same["factor"], values["mscale_all_dim"])
        same |= {key: values[key] for key in ("mscale", "mscale_all_dim") if close(ratio, multiplier)}
    if values.get("attention_factor") is not None and same["short_factor"] == values.get("short_factor"):
        same["original_max_position_embeddings"] = values.get("original_max_position_embeddings")
    keys = sorted(rope.row.ignores.get(method, frozenset()) & values.keys())
    found = [f"{rope.followed}.{k}" for k in keys if values[k] is not None and not close(values[k], same.get(k))]
    if "rope_theta" in values and not close(values["rope_theta"], rope.theta):
        found.append(f"{rope.followed}.rope_theta")
    others = [name for name in ("rope_scaling", "rope_parameters") if name != rope.followed]
    mine = {k: v for k, v in values.items() if k != "type"} | {"rope_theta": rope.theta, "rope_type": method}
    for name in others:
        other = {k: v for k, v in (rope.config.get(name) or {}).items() if k != "type"}
        if any(mine.get(k) != v for k, v in other.items()):
            found.append(name)
    return tuple(found)


def close(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b


# -- GGUF -------------------------------------------------------------------------------------------------------------

LLAMA_CPP = "llama.cpp 0c1e570"
# Architectures by what they make of rope_freqs.weight (src/models/*.cpp, load_arch_tensors and the graph)
LLAMAS = frozenset({"llama", "llama-embed", "deci"})
ROPE_FREQS_APPLIED = LLAMAS | {"llama4", "mistral3", "arcee", "apertus", "exaone", "exaone4", "exaone-moe", "granite"}
ROPE_FREQS_APPLIED |= {"granitemoe", "granitehybrid", "granite_swa", "minicpm", "nanbeige", "step35"}
ROPE_FREQS_UNUSED = frozenset({"falcon-h1", "llada", "pangu-embedded", "refact", "cogvlm"})  # loaded, then forgotten
ROPE_FREQS_REFUSED = frozenset({"qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gptneox"})
ROPE_FREQS_REFUSED |= {"stablelm", "olmo", "olmo2", "glm4", "gpt-oss", "smollm3", "starcoder2", "command-r", "falcon"}
ROPE_FREQS_REFUSED |= {"phi2", "phi3", "phimoe", "minicpm3"}
LONGROPE_PAIR = LLAMAS | {"granite", "granitemoe", "granite_swa", "minicpm", "mistral3", "apertus"}
LONGROPE_PAIR |= {"step35"}  # these load the pair of factors if the type says longrope
ALWAYS_PAIR = frozenset({"phi3", "phimoe", "minicpm3"})  # whatever the type
WHOLE_HEAD = LLAMAS | {"falcon"}  # src/llama-model.cpp: load_hparams, "invalid n_rot"
BETAS_READ = frozenset({"mistral3"})  # src/models/mistral3.cpp; grok reads more and is not modelled
GGUF_TYPES = ("none", "linear", "yarn", "longrope")
f32 = np.float32


def read_gguf(
    keys: Mapping[str, Any],
    rope_freqs: ArrayLike | None = None,
    rope_factors: tuple[ArrayLike, ArrayLike] | None = None,
) -> Reading:
    """What llama.cpp computes at its full context. `rope_freqs` is rope_freqs.weight, `rope_factors` the pair
    rope_factors_short.weight, rope_factors_long.weight.

    Source: src/llama-model.cpp load_hparams, src/llama-context.cpp llama_context::llama_context, ggml/src/ggml.c
    ggml_rope_yarn_corr_dims, ggml/src/ggml-cpu/ops.cpp rope_yarn. Correction dimensions and multiplier in float32, as
    there; frequencies in float64, where ggml's CPU loop multiplies up θ^(−2/D) in float32.
    """
    arch = keys["general.architecture"]
    if arch not in ROPE_FREQS_APPLIED | ROPE_FREQS_UNUSED | ROPE_FREQS_REFUSED:
        raise Unsupported(f"what llama.cpp makes of the architecture {arch!r} is not known here", NOT_MODELLED)
    meta = {k.removeprefix(f"{arch}."): v for k, v in keys.items() if k.startswith(f"{arch}.")}
    kind = meta.get("rope.scaling.type", "linear")
    if kind not in GGUF_TYPES:
        gguf_refuses(f"aborts on rope.scaling.type {kind!r}")
    dim = gguf_dim(arch, meta)
    context = int(meta["context_length"])
    original = int(meta.get("rope.scaling.original_context_length") or context)
    theta = f32(meta.get("rope.freq_base", 10000.0))
    factor = f32(meta.get("rope.scaling.factor", meta.get("rope.scale_linear", 0.0)))
    scale = f32(1) if factor == 0 or kind == "none" else f32(1) / factor
    omega = geometric(float(theta), dim) / divisors(arch, kind, dim, context > original, rope_freqs, rope_factors)
    multiplier = f32(meta.get("rope.scaling.attn_factor", 1.0))
    inv_freq = omega * float(scale)
    if kind == "yarn":
        if "rope.scaling.yarn_log_multiplier" in meta and arch in BETAS_READ:
            raise Unsupported(f"rope.scaling.yarn_log_multiplier of {arch} is not modelled", NOT_MODELLED)
        betas = gguf_betas(arch, meta)
        low, high = gguf_corrections(dim, original, theta, *betas)
        keep = gguf_ramp(dim, low, high).astype(np.float64)
        inv_freq = inv_freq * (1 - keep) + omega * keep
        multiplier = gguf_multiplier(scale, multiplier)
    return Reading(inv_freq, float(multiplier), context, gguf_ignored(arch, meta, kind))


def gguf_refuses(reason: str) -> NoReturn:
    raise Refuses(f"{LLAMA_CPP}: {reason}")


def gguf_dim(arch: str, meta: Mapping[str, Any]) -> int:
    head = meta.get("attention.key_length") or meta["embedding_length"] // meta["attention.head_count"]
    dim = int(meta.get("rope.dimension_count", head))
    if arch in WHOLE_HEAD and dim != head:
        gguf_refuses(f"invalid n_rot: {dim}, expected {head}")
    return dim


def divisors(
    arch: str,
    kind: str,
    dim: int,
    beyond: bool,
    rope_freqs: ArrayLike | None,
    rope_factors: tuple[ArrayLike, ArrayLike] | None,
) -> Array | float:
    """What llama.cpp divides the angles by (llama_model::get_rope_factors), 1.0 without a tensor."""
    found = rope_freqs if rope_freqs is not None else rope_factors and rope_factors[beyond]
    if found is None:
        return 1.0
    pair = arch in ALWAYS_PAIR or (kind == "longrope" and arch in LONGROPE_PAIR)
    unwanted = arch in ROPE_FREQS_REFUSED or pair if rope_freqs is not None else not pair
    if unwanted:
        name = "rope_freqs.weight" if rope_freqs is not None else "rope_factors_short/long.weight"
        gguf_refuses(f"wrong number of tensors: {arch} does not load {name} with rope.scaling.type {kind}")
    if np.shape(found) != (dim // 2,):
        gguf_refuses(f"a factor tensor of shape {np.shape(found)}, expected {dim // 2}")
    return 1.0 if arch in ROPE_FREQS_UNUSED else np.asarray(found, dtype=np.float64)


def gguf_betas(arch: str, meta: Mapping[str, Any]) -> tuple[float, float]:
    if arch not in BETAS_READ:
        return 32.0, 1.0
    return meta.get("rope.scaling.yarn_beta_fast", 32.0), meta.get("rope.scaling.yarn_beta_slow", 1.0)


def logf(x: np.float32) -> np.float32:
    """C's logf, which rounds correctly where NumPy's float32 log may be one unit off."""
    return f32(math.log(float(x)))


def gguf_corrections(dim: int, original: int, theta: Any, fast: float, slow: float) -> tuple[np.float32, np.float32]:
    """The ramp's ends, every step in float32: floor and ceil then land where ggml's do."""

    def at(turns: float) -> np.float32:
        whole = logf(f32(original) / (f32(turns) * f32(2) * f32(math.pi)))
        return f32(dim) * whole / (f32(2) * logf(f32(theta)))

    return max(f32(0), np.floor(at(fast))), min(f32(dim - 1), np.ceil(at(slow)))


def gguf_ramp(dim: int, low: np.float32, high: np.float32) -> NDArray[np.float32]:
    """1 keeps a pair, 0 interpolates it; float32[D/2]."""
    mix = (np.arange(dim // 2, dtype=f32) - low) / max(f32(0.001), high - low)
    return np.asarray(f32(1) - np.clip(mix, f32(0), f32(1)), dtype=f32)


def gguf_multiplier(scale: np.float32, attn_factor: np.float32) -> np.float32:
    """attn_factor times 0.1·ln s + 1: llama-context.cpp divides by it what ops.cpp multiplies by again."""
    factor = f32(1) / scale
    m0 = f32(0.1) * logf(factor) + f32(1)
    attn = (m0 if factor > 1 else f32(1)) * (f32(1) / m0) * attn_factor
    return attn * (f32(1) + f32(0.1) * logf(f32(1) / scale))


def gguf_ignored(arch: str, meta: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Keys that would change the reading, were they read."""
    usual = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0}
    usual |= {"yarn_log_multiplier": 0.0}
    read = {"yarn_beta_fast", "yarn_beta_slow"} if arch in BETAS_READ else set()
    names = [n for n in usual if n not in read and meta.get(f"rope.scaling.{n}", usual[n]) != usual[n]]
    names += ["factor"] if kind == "none" and meta.get("rope.scaling.factor", 1.0) not in (0.0, 1.0) else []
    return tuple(f"{arch}.rope.scaling.{name}" for name in names)
