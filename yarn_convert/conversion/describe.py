"""What `inspect` shows of a model: its shape, its RoPE pair by pair, its memory, and what in it is inconsistent."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from msgspec import Struct, convert

from ..asking import taking
from ..checkpoint import WINDOW, Checkpoint, open_checkpoint
from ..checkpoint.lengths import DUAL_CHUNKS
from ..checkpoint.manifest import RopeRecord, whole_recipe
from ..checkpoint.source import resolve
from ..dialects import ROPE_FREQS
from ..errors import Disagreement, YarnConvertError
from ..families import sections
from ..families.derived import of_one_layer
from ..formats.decoding import Result, parse
from ..formats.files import exists, read_text
from ..options import InspectOptions
from ..readers import HF_READERS, still
from ..readers.judge import judge_configs
from ..readers.seen import seen
from ..rope import RTOL, Rope, geometric, table
from ..targets.plan import carry_gguf
from .extension import extend
from .run import Conversion
from .tempering import unusual

PLOT_WIDTH, PLOT_HEIGHT = 64, 12
KEPT, RAMP, INTERPOLATED = "kept", "ramp", "interpolated"
MARKS = {KEPT: "●", RAMP: "◐", INTERPOLATED: "○"}


@dataclass(frozen=True, slots=True)
class Pair:
    """One rotary pair: wavelength in tokens, turns over the original context, and its frequency against plain RoPE's."""

    wavelength: float
    turns: float
    ratio: float
    kind: str


def pairs(rope: Rope) -> list[Pair]:
    """Every pair of a recipe that turns, fastest first. A ratio of 1 is kept, of 1/s (or below) interpolated, else on the ramp."""
    omega = table(rope).inv_freq
    omega = omega[: len(omega) - rope.resting]
    ratio = omega / geometric(rope.theta, rope.rotary_dim)[: len(omega)]
    slowest = ratio.min()
    kinds = [KEPT if r > 1 - 1e-6 else INTERPOLATED if r < slowest * (1 + 1e-6) else RAMP for r in ratio]
    return [
        Pair(2 * math.pi / w, rope.original_context * w / (2 * math.pi), r, kind)
        for w, r, kind in zip(omega.tolist(), ratio.tolist(), kinds, strict=True)
    ]


class TensorsOfType(Struct, frozen=True):
    """How many tensors have one type, and their bytes."""

    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description(Result):
    """What is known of a model without computing anything.

    `commit` on the Hub, like `repo`; `packed`: the tool that packed its weights; `parameters`: None where they are packed; `types`: the
    tensors of each type; `heads` of queries, `kv_heads` of keys and values. `rope`: the recipe, of all but `other_layers`, which says in
    words how those turn; `attention_factor` multiplies cos and sin; `original_context` is L, with a note where that is not what the file
    says, `context` L', in tokens, `scale` s = L'/L. `inv_freq` in radians a token, 0 for a pair that stands still, and `wavelengths` in
    tokens of those that turn, both by pair, fastest first; `pairs`: how many are kept, on the ramp and interpolated; `kv_cache_bytes` by
    length, in float16; `inconsistencies`: what a reader could get wrong, one line each.
    """

    name: str
    format: Literal["gguf", "safetensors"]
    architecture: str
    family: str
    repo: str | None
    commit: str | None
    packed: str | None
    parameters: int | None
    types: Mapping[str, TensorsOfType]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeRecord
    other_layers: str
    positions: str | None  # of a model that gives one token several, as pictures need: how they are dealt to the pairs
    attention_factor: float
    original_context: int
    original_context_note: str | None
    context: int
    scale: float
    inv_freq: tuple[float, ...]
    wavelengths: tuple[float, ...]
    pairs: Mapping[str, int]
    kv_cache_bytes: Mapping[int, int]
    inconsistencies: tuple[str, ...]


def opened(model: str, asked: InspectOptions) -> Checkpoint:
    """The model, without its weights where they are on the Hub, with all doubts that it leaves."""
    c = open_checkpoint(resolve(model, asked.revision, weights=False), doubtful=True)
    return c.counting_from(asked.recipe.original_context)


@taking(InspectOptions)
def inspect(model: str, options: InspectOptions) -> Description:
    """All that `yarn-convert inspect` shows of a model, with the fields of `InspectOptions` by keyword. Raises InputError for a model
    that cannot be read; what is merely odd in it is among the `inconsistencies`."""
    return describe(opened(model, options))


def describe(c: Checkpoint) -> Description:
    """All that inspect knows."""
    types: dict[str, TensorsOfType] = {}
    for t in c.tensors.values():
        so_far = types.get(t.dtype, TensorsOfType(0, 0))
        types[t.dtype] = TensorsOfType(so_far.tensors + 1, so_far.bytes + t.nbytes)
    inv_freq, multiplier = table(c.rope)
    all_pairs = pairs(c.rope)
    return Description(
        name=c.source.name,
        format="gguf" if c.gguf else "safetensors",
        architecture=c.family.hf.architectures[0] if c.gguf is None else c.family.gguf_arch,
        family=c.family.model_type,
        repo=c.source.repo,
        commit=c.source.commit,
        packed=c.packed or None,
        parameters=None
        if c.packed and any(t.dtype[0] in "IU" for t in c.tensors.values())
        else sum(t.elements for t in c.tensors.values()),
        types=types,
        layers=c.layers,
        heads=c.heads("q"),
        kv_heads=c.heads("k"),
        head_dim=c.head_dim,
        rope=convert(whole_recipe(c.rope, c.long), RopeRecord),
        other_layers=other_layers(c),
        positions=positions(c) or None,
        attention_factor=float(multiplier),
        original_context=c.rope.original_context,
        original_context_note=c.note or None,
        context=c.context,
        scale=c.context / c.rope.original_context,
        inv_freq=tuple(inv_freq.tolist()),
        wavelengths=tuple(p.wavelength for p in all_pairs),
        pairs={kind: sum(p.kind == kind for p in all_pairs) for kind in MARKS},
        kv_cache_bytes={n: c.kv_bytes(n) for n in sorted({c.rope.original_context, c.context})},
        inconsistencies=tuple(findings(c)),
    )


def short_texts(done: Conversion) -> str:
    """What an extension costs texts that the base already served, and how it costs them nothing, where the format has a word for that; ""
    where it does not change them."""
    c, e, asked = done.checkpoint, done.extension, done.options.recipe
    if asked.method == "none" or not e.rope.static:
        return ""
    served = c.rope.original_context if c.rope.method == "none" else c.context
    says = f"texts of up to {served:,} tokens have this table, too: a few percent of perplexity without tuning"
    try:
        two = extend(c, replace(asked, short="base"))
        if not done.plan.is_folder:
            carry_gguf(c, two.rope, two.context, "auto")
    except YarnConvertError:
        return says
    as_before = math.isclose(table(two.rope).multiplier, table(c.rope).multiplier, rel_tol=RTOL)
    return f"{says}; --short base{'' if as_before else ' with --method ntk-by-parts'} leaves them as they are"


def other_layers(c: Checkpoint) -> str:
    """How the layers turn that a recipe does not extend; "" where all are alike."""
    own = c.beside(c.rope).other_layers if c.gguf and c.family.gguf.other_layers != "shared" and not c.other_layers else None
    if own is not None:
        pairs, within = len(own.inv_freq), c.config.get(f"{c.family.gguf_arch}.{WINDOW}")
        theta = f"theta {own.inv_freq[1] ** -pairs:g}, D {2 * pairs}" if pairs > 1 else f"D {2 * pairs}"
        return f"those within {f'a window of {within:,} tokens' if within else 'their window'} keep {theta}"
    window = f"a window of {c.window:,} tokens" if c.window else "their window"
    if c.other_layers is None:
        return ""
    dim = 2 * len(c.other_layers.inv_freq)
    return f"those within {window} keep theta {c.other_theta:g}" + (f", D {dim}" if dim != c.rope.rotary_dim else "")


def positions(c: Checkpoint) -> str:
    """Which pairs have positions of their own, or none; "" where all turn by a token's one."""
    arch, of = c.family.gguf_arch, c.rope.rotary_dim // 2
    if c.rope.resting:
        return f"{of - c.rope.resting} of {of} pairs turn" + (f", by {ROPE_FREQS}" if c.gguf else "")
    if c.gguf is None:
        return ""
    if given := sections(arch, c.config):
        unmoved = still(arch, given, of)
        rest = f", but for {len(unmoved)} of {of} that llama.cpp leaves still" if unmoved else ""
        return f"M-RoPE in sections of {', '.join(map(str, given))}; text turns all pairs by one position{rest}"
    return ""


def findings(c: Checkpoint) -> list[str]:
    """What a reader of this checkpoint could get wrong, one line each; empty for a sound one."""
    found = [f"{c.doubt.message} ({c.doubt.hint})"] if c.doubt else []
    found += followers(c) if isinstance(c.doubt, Disagreement) else []
    found += [f"{key} is ignored by llama.cpp for architecture {c.family.gguf_arch!r}" for key in c.ignored]
    found += [c.stale] if c.stale else []
    found += [line] if (line := unusual(c)) else []
    if c.sliding_window and c.sliding_window < c.context:
        found.append(f"the sliding window of {c.sliding_window:,} tokens is shorter than the context; llama.cpp would not apply it")
    return found + (_gguf_findings(c) if c.gguf else _hf_findings(c))


def _gguf_findings(c: Checkpoint) -> list[str]:
    assert c.gguf is not None
    key = f"{c.family.gguf_arch}.rope.scaling.original_context_length"
    if c.rope.method == "yarn" and key not in c.gguf.fields:
        return [f"{key} is missing: llama.cpp takes the extended context for the original one"]
    return []


def _hf_findings(c: Checkpoint) -> list[str]:
    found = [
        f"{key} says {method}, and no tensor is packed: delete it, transformers and vLLM would look for scales"
        for key, method in c.packing.left_over.items()
    ]
    if c.written.get(DUAL_CHUNKS) is not None and c.rope.original_context < c.context:
        trained = f"{c.context:,} tokens need dual chunk attention, as SGLang has it"
        found.append(f"{trained}: transformers, llama.cpp and others go as far as the {c.rope.original_context:,} of its training")
    config = of_one_layer(c.family, c.config)
    scaling, parameters = config.get("rope_scaling"), config.get("rope_parameters")
    if c.rope.method != "none":
        if not scaling:
            found.append("rope_scaling is missing: transformers 4, mlx-lm read it and would lose the scaling")
        for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
            if value and not {"type", "rope_type"} <= set(value):
                found.append(f"{name} lacks {' and '.join(sorted({'type', 'rope_type'} - set(value)))}: some readers know only that one")
            elif value and isinstance(value.get("factor"), int):
                found.append(f"{name}.factor is an integer: vLLM and SGLang want a float")
        verdicts = judge_configs(c.written, c.rope, c.context, c.beside(c.rope))
        found += [f"{reader} computes something else: {v.why}" for reader, v in verdicts.items() if v.kind in ("differs", "refuses")]
    name, length = "tokenizer_config.json", None
    if exists(c.source.path, name):
        with contextlib.suppress(ValueError, AttributeError):
            length = parse(read_text(c.source.path, name).encode(), strict=False).get("model_max_length")
    if isinstance(length, int) and length < c.context:
        found.append(f"tokenizer_config.json cuts texts at {length:,} tokens (model_max_length), the context is {c.context:,}")
    return found


def followers(c: Checkpoint) -> list[str]:
    """Which of the two RoPE objects of a config.json each known reader follows, one line an object."""
    groups: dict[str, list[str]] = {}
    for name in HF_READERS:
        try:
            groups.setdefault(seen(name, c.written).followed or "neither RoPE object", []).append(name)
        except YarnConvertError:  # it refuses the file, or is not known for this model
            continue
    return [f"{', '.join(names)} follow{'s' * (len(names) == 1)} {place}" for place, names in groups.items()]


def plot(rope: Rope, context: int) -> list[str]:
    """Wavelength by pair, on a log scale, as lines of text of at most 80 columns; the original and extended contexts stand at the side, in
    the place of a wavelength."""
    every = pairs(rope)
    step = max(1, math.ceil(len(every) / PLOT_WIDTH))
    shown = every[::step]
    logs = np.log10([p.wavelength for p in shown])
    low, high = 0.0, float(max(math.ceil(max(logs.max(), math.log10(context))), 1))
    rows = [[" "] * len(shown) for _ in range(PLOT_HEIGHT)]

    def row(x: float) -> int:
        return min(PLOT_HEIGHT - 1, max(0, round((high - x) / (high - low) * (PLOT_HEIGHT - 1))))

    labels = {row(math.log10(context)): f"L' {context:,}", row(math.log10(rope.original_context)): f"L {rope.original_context:,}"}
    for r in labels:
        rows[r] = ["·"] * len(shown)
    for x, (p, value) in enumerate(zip(shown, logs, strict=True)):
        rows[row(value)][x] = MARKS[p.kind]
    side = [labels.get(r, f"{10 ** (high - (high - low) * r / (PLOT_HEIGHT - 1)):,.0f}") for r in range(PLOT_HEIGHT)]
    wide = max(map(len, side))
    lines = [f"{says:>{wide}} │{''.join(cells)}".rstrip() for says, cells in zip(side, rows, strict=True)]
    legend = "  ".join(f"{mark} {kind} {sum(p.kind == kind for p in every)}" for kind, mark in MARKS.items())
    return ["wavelength in tokens, by pair", *lines, f"{'':>{wide}} └{'─' * len(shown)}", f"{'':>{wide}}  0 … {len(every) - 1}   {legend}"]
