"""Compares logits with the reference and judges: metrics by window, one table of tolerances, wrong recipes. Pure NumPy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.rotary import Spans
from ..errors import YarnConvertError
from ..formats.dtypes import F32
from ..rope import MSCALES, Effect, Param, Rope, effect, largest_error, table

ROWS = 1024  # rows compared at a time: float64 copies of a whole vocabulary are large


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a sound computation may differ by in any window. `measured`: where that comes from, the largest that was seen."""

    nmse: float
    kl: float
    measured: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far logits are from the reference over the positions start … end−1.

    `nmse`: Σ(a − b)² / Σ(b − mean(b))², the mean over each row's vocabulary. `kl`: KL(reference ‖ runtime) in nats, mean and
    largest. `top1`: share of positions with the same most likely token. `drift`: first position whose own NMSE or KL is
    beyond the tolerance, None if there is none. `nmse` and `max_abs` are of log-probabilities where no logits are given.
    """

    start: int
    end: int
    max_abs: float
    nmse: float
    kl: float
    kl_max: float
    top1: float
    drift: int | None

    def within(self, t: Tolerance) -> bool:
        return self.nmse <= t.nmse and self.kl <= t.kl

    def as_json(self) -> dict[str, Any]:
        """Its numbers; None for one that is not finite, for which JSON has no word."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def compare(reference: F32, logits: F32, spans: Spans, cuts: Sequence[int], tolerance: Tolerance, top_k: bool = False) -> list[Deviation]:
    """Windows of `logits` against `reference`, both float32[rows, vocabulary], rows being the positions of `spans` in order.

    Each span is one window, cut further at `cuts`. `top_k`: `logits` are log-probabilities of some tokens, −∞ or NaN for
    the rest; then both sides are compared as log-probabilities, on the tokens that are given.
    """
    windows, row = [], 0
    for a, b in spans:
        edges = [a, *sorted(c for c in set(cuts) if a < c < b), b]
        for low, high in pairwise(edges):
            part = slice(row + low - a, row + high - a)
            windows.append(_window(reference[part], logits[part], low, tolerance, top_k))
        row += b - a
    return windows


def _window(reference: F32, logits: F32, start: int, t: Tolerance, top_k: bool) -> Deviation:
    with np.errstate(invalid="ignore"):  # a NaN is a result like any other, and no window with one is within a tolerance
        parts = [_rows(reference[i : i + ROWS], logits[i : i + ROWS], top_k) for i in range(0, len(reference), ROWS)]
    square, spread, largest, kl, same = (np.concatenate(x) for x in zip(*parts, strict=True))
    beyond = (square > DRIFT * t.nmse * spread) | (kl > DRIFT * t.kl)
    beyond |= ~np.isfinite(square)
    first = start + int(beyond.argmax()) if beyond.any() else None
    nmse = float(square.sum() / max(float(spread.sum()), 1e-300))
    return Deviation(
        start, start + len(reference), float(largest.max()), nmse, float(kl.mean()), float(kl.max()), float(same.mean()), first
    )  # fmt: skip


DRIFT = 10  # one position may be so many times the window's tolerance before it counts as drifted


def _rows(a: F32, b: F32, top_k: bool) -> tuple[NDArray[np.float64], ...]:
    """Per row: Σ(a−b)², Σ(a−mean)², max|a−b|, KL(a‖b), same top token."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    logp = x - _logsumexp(x)
    if top_k:
        given = ~np.isneginf(y)  # a NaN is given, and fails
        x, y, logq = np.where(given, logp, 0), np.where(given, y, 0), np.where(given, y, logp)
        top = np.where(given, y, -np.inf).argmax(1)
    else:
        logq, top = y - _logsumexp(y), y.argmax(1)
    difference = x - y
    kl = np.maximum((np.exp(logp) * (logp - logq)).sum(1), 0)
    kl = np.where(given.any(1), kl, np.inf) if top_k else kl
    centred = x - x.mean(1, keepdims=True)
    return (difference**2).sum(1), (centred**2).sum(1), abs(difference).max(1), kl, (a.argmax(1) == top).astype(np.float64)


def _logsumexp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    m = x.max(1, keepdims=True)
    return np.asarray(m + np.log(np.exp(x - m).sum(1, keepdims=True)))


# -- wrong recipes ----------------------------------------------------------------------------------------------------


def wrong_tables(rope: Rope, length: int) -> dict[str, Effect]:
    """Recipes that a check must tell from `rope` for a text of `length` tokens: name -> effect. Those that equal it are left out. Of two
    lists the other is among them."""
    right = effect(rope, length)
    plain = table(replace(rope, method="none", params={}, inner=None)).inv_freq
    candidates: dict[str, Rope | Effect] = {
        "no scaling": Effect(plain, 1.0),
        "multiplier 1": right._replace(multiplier=1.0, logits=1.0),
        "factor × 2": _doubled(rope, right, plain),
    }
    if rope.row.switches:
        within = length <= rope.original_context
        other = effect(rope, rope.original_context + within)
        candidates["the long list" if within else "the short list"] = other
    if rope.still:
        candidates["every pair turns"] = replace(rope, still=0)
    elif rope.resting:  # by a method
        candidates["every pair turns"] = right._replace(inv_freq=np.where(right.inv_freq == 0, plain, right.inv_freq))
    if rope.row.ramped and "factor" in rope.params:
        candidates["the other ramp"] = rope.with_params(ramp="index" if rope.params.get("ramp") == "paper" else "paper")
    return _tables(candidates, right)


def suspects(rope: Rope, length: int) -> dict[str, Effect]:
    """Faults that runtimes and converters are known for, to name what a runtime computes instead of `rope`."""
    right = effect(rope, length)
    found: dict[str, Rope | Effect] = dict(wrong_tables(rope, length))
    found["the multiplier twice"] = right._replace(multiplier=right.multiplier**2)
    found["a doubled multiplier"] = right._replace(multiplier=right.multiplier * 2)
    if rope.row.ramped and "factor" in rope.params:
        usual: dict[str, Param] = {"beta_fast": 32.0, "beta_slow": 1.0}
        cold = {k: v for k, v in rope.params.items() if k not in ("attention_factor", *MSCALES)}
        extended = round(rope.original_context * rope.number("factor"))
        found |= {
            "the usual betas 32 and 1": rope.with_params(**usual),
            "the ramp's ends rounded (truncate)": rope.with_params(truncate=True),
            "the ramp's ends not rounded (no truncate)": rope.with_params(truncate=False),
            "betas 32 and 1, ends rounded": rope.with_params(**usual, truncate=True),
            "the temperature 0.1·ln s + 1": replace(rope, params=cold),
            "plain YaRN, its options lost": replace(rope, params={"factor": rope.number("factor")}),
            "the extended context taken for the original one": replace(rope, original_context=extended),
        }
    return _tables(found, right)


def _tables(candidates: Mapping[str, Rope | Effect], right: Effect) -> dict[str, Effect]:
    """The effects of those that have one, and another one than `right`."""
    found = {}
    for name, candidate in candidates.items():
        with contextlib.suppress(YarnConvertError):  # parameters out of range: no runtime computes that
            t = effect(candidate) if isinstance(candidate, Rope) else candidate
            if differ(t, right):
                found[name] = t
    return found


def differ(a: Effect, b: Effect) -> bool:
    """Whether two recipes are apart by more than float32 rounds."""
    return a.inv_freq.shape != b.inv_freq.shape or bool(
        abs(a.multiplier / b.multiplier - 1) > 1e-6 or abs(a.logits / b.logits - 1) > 1e-6 or largest_error(a.inv_freq, b.inv_freq) > 1e-6
    )


def _doubled(rope: Rope, right: Effect, plain: NDArray[np.float64]) -> Effect:
    """Scaled twice as far with the same multiplier, so that only the frequencies differ: the fault that hides best."""
    if rope.method == "none":
        return right._replace(inv_freq=plain / 2)
    if rope.row.lists:
        return right._replace(inv_freq=np.where(right.inv_freq < 0.999 * plain, right.inv_freq / 2, right.inv_freq))
    doubled = effect(rope.with_params(factor=2 * rope.number("factor", 1.0)))
    return doubled._replace(multiplier=right.multiplier, logits=right.logits)


# -- tolerances -------------------------------------------------------------------------------------------------------

# Of a computation in float32, measured on SmolLM2-135M over 8,320 tokens and on its twin over 131,072.
FLOAT32 = Tolerance(2e-6, 2e-6, "NMSE 2.4e-8, KL 1.3e-8, in llama.cpp at 8,320 tokens")

# The reference itself, where it computes in bfloat16 to fit a device.
IN_BF16 = Tolerance(2e-2, 2e-2, "NMSE 3.5e-3, KL 3.3e-3: the reference in bfloat16 against transformers in float32")

# ggml looks up GELU in a table of float16 (ggml-cpu/vec.h, ggml_vec_gelu_f32); random weights, which spread far, cost most.
GELU = Tolerance(5e-5, 5e-5, "NMSE 2.9e-6, KL 2.5e-6: llama.cpp takes GELU from a table of float16")

# How many times the noise of the file's types, as the reference has it with its inputs rounded, a runtime may be away. On
# SmolLM2-135M llama.cpp is at 0.5 to 1.4 times in windows of 64 positions, in every type (docs/validation.md).
NOISE = 4


def tolerance_for(reference: str = "float32", gelu: bool = False) -> Tolerance:
    """The tolerance of a file in float32 against a reference in that arithmetic: the coarsest of all."""
    found = [FLOAT32, *([IN_BF16] if reference != "float32" else []), *([GELU] if gelu else [])]
    return max(found, key=lambda t: t.nmse)


def noisy(tolerance: Tolerance, noise: Sequence[Deviation], what: str) -> Tolerance:
    """The tolerance where `what` is done, which makes this `noise` in the reference: the window that is worst counts."""
    nmse, kl = (max((getattr(w, m) for w in noise), default=0.0) for m in ("nmse", "kl"))
    measured = f"{tolerance.measured}; and {NOISE} times the noise of {what}, here NMSE {nmse:.1e}, KL {kl:.1e}"
    return Tolerance(tolerance.nmse + NOISE * nmse, tolerance.kl + NOISE * kl, measured)


def within(window: Mapping[str, Any], tolerance: Mapping[str, Any]) -> bool:
    """Whether a window's NMSE and KL, both as JSON, are what the tolerance allows; what is no number is not."""
    return all(isinstance(window[m], float | int) and window[m] <= tolerance[m] for m in ("nmse", "kl"))
