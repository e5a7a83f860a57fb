"""The methods: what each makes of a base's frequencies, and all else that is true of it; what several are made of is in `parts`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import Unsupported, UsageError
from .parts import Array, Numbers, Table, dynamic_factor, factor_of, geometric, ntk_shrink, raised, ramp, temperature, turns

# -- the methods: (frequencies of the base, recipe, length) -> (frequencies, multiplier) ------------------------------


def none(omega: Array, rope: Numbers, length: int | None) -> Table:
    """No scaling: the base's own frequencies. No parameters. Does not extend anything."""
    return Table(omega, 1.0)


def linear(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Position Interpolation (Chen et al., arXiv 2306.15595; YaRN Eq. 10): ω_i/s. Parameter: `factor` s.

    Blurs the fast pairs: short texts suffer most of all methods without fine-tuning.
    """
    return Table(omega / factor_of(rope), 1.0)


def ntk_aware(omega: Array, rope: Numbers, length: int | None) -> Table:
    """NTK-aware (Eq. 15–16): b' = b·s^(D/(D−2)), so ω_i·s^(−2i/(D−2)). Parameter: `factor` s.

    The slowest pair is divided by s exactly, the fastest is untouched. D must be above 2.
    """
    return Table(omega * ntk_shrink(factor_of(rope), rope.rotary_dim), 1.0)


def abf(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Adjusted base frequency: θ itself is raised to θ', as Code Llama (arXiv 2308.12950, 2.3) and Xiong et al. (arXiv 2309.16039) do.

    Parameter: `theta` θ'. Over frequencies that are already scaled each is multiplied by what that makes of its plain one,
    (θ/θ')^(2i/D). The context that it serves is what one trains it for.
    """
    theta = raised(rope)
    plain = geometric(theta, rope.rotary_dim)
    return Table(plain if rope.inner is None else omega * plain / geometric(rope.theta, rope.rotary_dim), 1.0)


def cope(omega: Array, rope: Numbers, length: int | None) -> Table:
    """CoPE, clipped RoPE (arXiv 2602.05258, 4.2): the slowest pairs fade out by a cosine taper, and the last stands still.

    Parameters: `clip_pairs` n, and `theta` as abf has it, by which the paper's models were trained too. Of the last n pairs the k-th, from
    0, is multiplied by (1 + cos(π·k/(n−1)))/2: by pair, as the authors' code has it (github.com/hrlics/CoPE, modeling_cope.py), where
    the paper's weights are said of the frequency. They have 20 of Llama 3 8B's 64, of which 29 turn less than once over its L; the
    default is that share of those, by the base's own frequencies. Their models were trained with it.
    """
    slow = int((turns(omega, rope) < 1).sum())
    n = int(rope.number("clip_pairs", round(slow * CLIPPED)))
    if not 2 <= n <= len(omega):
        why = f"{slow} of its {len(omega)} pairs turn less than once over {rope.original_context:,} tokens"
        raise UsageError(f"cope clips 2 to {len(omega)} pairs, not {n}: {why}", "--clip-pairs says how many")
    if resting := rope.still or (rope.inner.resting if rope.inner else 0):
        raise Unsupported(f"{resting} of its pairs, the slowest, stand still already: there is nothing to clip", "--method yarn")
    taper = np.ones(len(omega))
    taper[-n:-1] = (1 + np.cos(np.pi * np.arange(n - 1) / (n - 1))) / 2  # and 0 for the last: `Method.rests`
    return Table((abf(omega, rope, length).inv_freq if "theta" in rope.params else omega) * taper, 1.0)


def ntk_by_parts(omega: Array, rope: Numbers, length: int | None) -> Table:
    """NTK-by-parts (Eq. 17–20): keep fast pairs, interpolate slow ones, ramp between: ω_i·γ + (ω_i/s)·(1−γ).

    Parameters: `factor` s; `beta_fast` 32 and `beta_slow` 1, in turns over L (the paper's β and α); `truncate` True
    rounds the ramp's ends outward to whole pairs; `ramp` "index" (linear in the pair index, as the authors' code and
    every runtime compute it) or "paper" (linear in r, as Eq. 18 says). No temperature.
    """
    s = factor_of(rope)
    keep = ramp(omega, rope)
    return Table(omega * keep + omega / s * (1 - keep), 1.0)


def yarn(omega: Array, rope: Numbers, length: int | None) -> Table:
    """YaRN (Section 3.4): NTK-by-parts, and the temperature √(1/t) on cos and sin (Eq. 21–22).

    Parameters: those of ntk-by-parts, and `attention_factor`, default 0.1·ln s + 1. Multi-head latent attention turns a part
    of each head only, so cos and sin cannot carry a temperature for whole logits: there the parameters are `mscale` and
    `mscale_all_dim`, default 1 each. Logits are multiplied by (0.1·mscale_all_dim·ln s + 1)², at 1 the paper's 1/t, and
    cos and sin by the quotient of the two temperatures, 1 where they are equal (DeepSeek-V2, arXiv 2405.04434, and its
    modeling_deepseek.py).
    """
    s = factor_of(rope)
    weights = [rope.number(name, 0.0) for name in MSCALES]
    below = temperature(s, weights[1])
    usual = temperature(s, weights[0]) / below if all(weights) and below else temperature(s)
    multiplier = rope.number("attention_factor", usual)
    if multiplier <= 0 or below <= 0:
        raise UsageError(f"attention_factor must be above 0, not {multiplier:g}", "leave it out for 0.1·ln s + 1")
    return Table(ntk_by_parts(omega, rope, length).inv_freq, multiplier)


def dynamic_linear(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Dynamic PI (Section 3.3): linear with s = max(1, l'/L) for a pass of l' = `length` tokens. No parameters."""
    return linear(omega, rope.with_params(factor=dynamic_factor(rope, length)), length)


def dynamic_ntk(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Dynamic NTK (Section 3.3): ntk-aware with s = max(1, l'/L).

    Parameter: `factor` f, default 1: then s = f·l'/L − (f − 1), as transformers' "dynamic" computes it
    (`modeling_rope_utils._compute_dynamic_ntk_parameters`); f = 1 is the paper's rule.
    """
    f, s = rope.number("factor", 1.0), dynamic_factor(rope, length)
    return ntk_aware(omega, rope.with_params(factor=f * s - (f - 1)), length)


def dynamic_yarn(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Dynamic YaRN (Section 3.3): yarn with s = max(1, l'/L), temperature included. Parameters: yarn's, but `factor`."""
    return yarn(omega, rope.with_params(factor=dynamic_factor(rope, length)), length)


def llama3(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Llama 3.1's scaling: by wavelength, linear in L/λ between two cut-offs; no temperature.

    Parameters: `factor`, `low_freq_factor`, `high_freq_factor`. Source: Meta's llama-models, `apply_scaling`, and
    transformers, `modeling_rope_utils._compute_llama3_parameters`. L is 8192 in every published checkpoint.
    """
    s = factor_of(rope)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not 0 < low < high:
        raise UsageError(f"llama3 scaling needs 0 < low_freq_factor < high_freq_factor, not {low:g} and {high:g}", "Llama 3.1 has 1 and 4")
    keep = np.clip((turns(omega, rope) - low) / (high - low), 0.0, 1.0)
    return Table(omega * keep + omega / s * (1 - keep), 1.0)


def longrope(omega: Array, rope: Numbers, length: int | None) -> Table:
    """LongRoPE (arXiv 2402.13753) as Phi-3 spells it: ω_i divided by a list, the long one beyond L tokens.

    Parameters: `short_factor` and `long_factor`, D/2 numbers each; `attention_factor`, or `factor` from which it is
    √(1 + ln s/ln L) (transformers, `modeling_rope_utils._compute_longrope_parameters`).
    """
    long = length is None or length > rope.original_context
    factors = rope.numbers("long_factor" if long else "short_factor")
    s = rope.number("factor", 1.0)
    default = math.sqrt(1 + math.log(s) / math.log(rope.original_context)) if s > 1 else 1.0
    return Table(omega / factors, rope.number("attention_factor", default))


def explicit(omega: Array, rope: Numbers, length: int | None) -> Table:
    """Any static table. Parameters: `factors`, D/2 numbers that divide ω_i, and `attention_factor`, default 1."""
    return Table(omega / rope.numbers("factors"), rope.number("attention_factor", 1.0))


# -- one row a method -------------------------------------------------------------------------------------------------

Function = Callable[[Array, Numbers, "int | None"], Table]


@dataclass(frozen=True, slots=True)
class Method:
    """What is true of a method beside its arithmetic. The words of files are data here; what they say there is for `dialects`."""

    function: Function
    when: str  # one would choose it, for who asks `methods`
    spans: bool = False  # its factor is L'/L, so that a length can be asked of it
    baked_as: str = ""  # of a dynamic one: the static method that it is at one length
    says_length: bool = False  # what has it says from which length L it counts
    reaches: bool = False  # a base is extended with it, by a table that L'/L does not enter
    takes: tuple[str, ...] = ()  # the options of a conversion that mean something to it, beside the length
    needs: tuple[str, ...] = ()  # those of them without which it says nothing
    lists: tuple[str, ...] = ()  # its parameters that are D/2 numbers; of two, the first serves texts within L
    rests: int = 0  # how many pairs, the slowest, it makes stand still
    nameless: bool = False  # files have its numbers and no word for a method: so they may be those of any
    hf: tuple[str, ...] = ()  # rope_type in config.json; the first is written
    hf_keys: tuple[str, ...] = ()  # and what that object may hold, beside `lists` and what all of them may
    proportional: bool = False  # config.json has it, under p-RoPE's word, where some pairs stand still
    gguf: str = ""  # rope.scaling.type
    spelled_as: str = ""  # without words of its own: the method in whose words files have it, by other numbers

    @property
    def extends(self) -> bool:
        """Whether a base can be extended with it by its numbers alone; the others are what models come with, or lists in a recipe's
        file."""
        return self.spans or self.reaches or bool(self.baked_as)

    @property
    def leads(self) -> bool:
        """Whether a file that has it says how far it leads: a factor, times an L that it names."""
        return self.spans and self.says_length

    @property
    def ramped(self) -> bool:
        return "ramp" in self.takes

    @property
    def switches(self) -> bool:
        """Whether it has one list for texts within L, and another for longer ones."""
        return len(self.lists) == 2

    @property
    def static(self) -> bool:
        """Whether one table serves every length."""
        return not self.baked_as and not self.switches

    @property
    def summary(self) -> str:
        """The first paragraph of what its function says of itself."""
        return (self.function.__doc__ or "").split("\n\n")[0]


CLIPPED = 20 / 29  # of the pairs that turn less than once over L, those that CoPE clips by default
MSCALES = ("mscale", "mscale_all_dim")
RAMP_OPTIONS = ("beta_fast", "beta_slow", "ramp", "truncate")
YARN_OPTIONS = (*RAMP_OPTIONS, "attention_factor")
YARN_KEYS = ("factor", "beta_fast", "beta_slow", "attention_factor", *MSCALES, "truncate", "finetuned")
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor")
LONGROPE_KEYS = ("factor", "attention_factor", "short_mscale", "long_mscale")
LONGROPE_LISTS = ("short_factor", "long_factor")
METHODS: Mapping[str, Method] = {
    "none": Method(
        none,
        "to change a model's format and leave its RoPE as it is.",
        nameless=True,
        hf=("default", "mrope"),
        proportional=True,
        gguf="none",
    ),
    "linear": Method(
        linear,
        "for a model that was, or will be, tuned with it. Untuned it blurs texts of every length.",
        spans=True,
        hf=("linear",),
        hf_keys=("factor",),
        proportional=True,
        gguf="linear",
    ),
    "ntk-aware": Method(
        ntk_aware,
        "without tuning: SmolLM2-135M is better with it past its window than with yarn. 'evaluate perplexity' tells of yours.",
        spans=True,
        spelled_as="none",
    ),
    "abf": Method(
        abf,
        "before training at the new length, which has to teach the model the rest.",
        reaches=True,
        takes=("theta",),
        needs=("theta",),
        spelled_as="none",
    ),
    "cope": Method(
        cope,
        "before training at the new length, as its authors' models were.",
        reaches=True,
        says_length=True,
        takes=("clip_pairs", "theta"),
        rests=1,
    ),
    "ntk-by-parts": Method(
        ntk_by_parts,
        "with --short base, which then leaves texts within the base's own context as they were, to the last bit.",
        spans=True,
        says_length=True,
        takes=RAMP_OPTIONS,
        spelled_as="yarn",
    ),
    "yarn": Method(
        yarn,
        "unless you know better: untuned it holds to the end of the new context, for 5 to 12 % on short texts (SmolLM2-135M).",
        spans=True,
        says_length=True,
        takes=YARN_OPTIONS,
        hf=("yarn",),
        hf_keys=YARN_KEYS,
        gguf="yarn",
    ),
    "dynamic-ntk": Method(
        dynamic_ntk,
        "to measure it with 'evaluate'. No file carries it to every runtime: a conversion bakes it as ntk-aware.",
        baked_as="ntk-aware",
        says_length=True,
        hf=("dynamic",),
        hf_keys=("factor",),
    ),
    "dynamic-linear": Method(
        dynamic_linear,
        "to measure it with 'evaluate', where it breaks untuned. A conversion bakes it as linear.",
        baked_as="linear",
        says_length=True,
    ),
    "dynamic-yarn": Method(
        dynamic_yarn,
        "to measure it with 'evaluate', where short texts cost nothing. A conversion bakes it as yarn.",
        baked_as="yarn",
        says_length=True,
        takes=YARN_OPTIONS,
    ),
    "llama3": Method(
        llama3,
        "it is what Llama 3.1 came with; a base that has it is extended by another method over it.",
        says_length=True,
        hf=("llama3",),
        hf_keys=LLAMA3_KEYS,
    ),
    "longrope": Method(
        longrope,
        "for lists of factors that were searched or trained for this very model, in a recipe's file.",
        says_length=True,
        lists=LONGROPE_LISTS,
        takes=(*LONGROPE_LISTS, "attention_factor", "theta"),
        needs=("long_factor",),
        hf=("longrope", "su"),
        hf_keys=LONGROPE_KEYS,
    ),
    "explicit": Method(
        explicit,
        "for a table of your own, as factors in a recipe's file ('evaluate advise --search' writes one).",
        nameless=True,
        lists=("factors",),
        takes=("factors", "attention_factor", "theta"),
        needs=("factors",),
    ),
}


def row_of(method: str) -> Method:
    """What is true of a method; Unsupported for one that has no row."""
    if method not in METHODS:
        raise Unsupported(f"unknown RoPE method {method!r}", f"known: {', '.join(METHODS)}")
    return METHODS[method]
