"""One verdict per runtime: what it will compute from this file, and how far that is from the intention.

`survey_config` is for a folder in HF layout, `survey_gguf` for a GGUF file. Sixteen runtimes each time, in one order; one
that cannot read the format says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import Unsupported
from ..families.schema import ROPE_OBJECTS
from ..rope import RTOL, Table
from .config import READERS, Seen, betas, oldest, read_config, rounds, seen, yarn_factor
from .gguf import gguf_betas
from .others_gguf import GGUF_READERS
from .reading import Beside, Reading, Refuses
from .rows import HF_READERS

WIDTH = 120
PLAIN = Beside()
RUNTIMES = (*HF_READERS, "llama.cpp", *(name for name in READERS if name not in HF_READERS))


class Summary(NamedTuple):
    """In words what a reading is: its method as the runtime has it, s, and where the frequencies come from."""

    method: str = ""
    factor: float | None = None
    ramp: str = ""  # "none", "index FAST/SLOW", that and "unrounded", "wavelength" or "explicit"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What one runtime computes, or why it does not; against the intention where there is a reading."""

    runtime: str
    version: str
    evidence: tuple[str, ...]
    reading: Reading | None = None
    refuses: str = ""  # "" if there is a reading
    differs: str = ""  # "" if it computes the intention for texts of the intended length
    error: float | None = None  # the largest relative error of a frequency; None: other dimensions, or no reading
    multiplier_error: float | None = None  # relative
    summary: Summary = field(default_factory=Summary)
    note: str = ""
    follows: str = ""  # the RoPE object of config.json, "" for none or a GGUF

    @property
    def exact(self) -> bool:
        return self.reading is not None and not self.differs


def survey_config(
    config: Mapping[str, Any], intended: Table, context: int, tolerance: float = RTOL, beside: Beside = PLAIN
) -> list[Verdict]:
    """A verdict on `config`, config.json as a dict, for each of RUNTIMES. `context` is the intended one, in tokens.

    `beside` is what is intended for the logits and the other layers; others None: unscaled, whatever their theta.
    """

    def read(name: str) -> tuple[Reading, Summary]:
        reading = read_config(name, config)
        return reading, summary_of(seen(name, config))

    model_type = config.get("model_type", "llama")
    verdicts = []
    for name in RUNTIMES:
        if name not in READERS:
            shown = Verdict(name, GGUF_READERS[name].version, (), refuses="reads GGUF alone: convert with --out gguf")
        else:
            row = READERS[name].variants.get(model_type, READERS[name])
            shown = Verdict(name, row.version, row.evidence)
        judgement = shown if shown.refuses else judged(shown, read, intended, context, tolerance, beside)
        follows = seen(name, config).followed if judgement.reading else ""
        note = note_of(judgement, "config.json") or (since(name, config) if judgement.exact else "")
        verdicts.append(replace(judgement, note=note, follows=follows))
    return verdicts


def survey_gguf(
    keys: Mapping[str, Any],
    rope_freqs: ArrayLike | None,
    intended: Table,
    context: int,
    tolerance: float = RTOL,
    beside: Beside = PLAIN,
) -> list[Verdict]:
    """A verdict on GGUF keys, as plain values with `general.architecture`, and rope_freqs.weight, for each of RUNTIMES."""

    def read(name: str) -> tuple[Reading, Summary]:
        reading = GGUF_READERS[name].read(keys, rope_freqs)
        return reading, gguf_summary(keys, rope_freqs is not None, reading)

    verdicts = []
    for name in RUNTIMES:
        if name in GGUF_READERS:
            judgement = judged(Verdict(name, *GGUF_READERS[name][:2]), read, intended, context, tolerance, beside)
            verdicts.append(replace(judgement, note=note_of(judgement, "GGUF")))
        else:
            why = "its reading of GGUF is not surveyed: convert with --out safetensors"
            verdicts.append(Verdict(name, READERS[name].version, (), refuses=why))
    return verdicts


def note_of(v: Verdict, file: str) -> str:
    """What a user of that runtime should know besides, or ""."""
    if v.runtime == "Ollama" and file == "config.json" and v.reading and not v.exact:
        return "it converts the folder this way; convert with --out gguf, and it computes what llama.cpp does"
    if v.runtime == "Ollama" and v.reading:
        return "serves 4,096, 32,768 or 262,144 tokens by its VRAM, at most the context, unless num_ctx says how many"
    if v.runtime == "TensorRT-LLM" and ("'default'" in v.refuses or (v.reading and "rope_parameters" in v.reading.ignored)):
        return "release candidates of 1.3 also read rope_parameters, and take type default"
    if v.runtime == "TGI" and v.summary.method == "longrope":
        return "positions below the original context keep the short list"
    return ""


def since(reader: str, config: Mapping[str, Any]) -> str:
    """That earlier versions of a reader refuse such a config.json, or ""."""
    first = oldest(reader, config)
    return f"from {first} on; earlier versions refuse it" if READERS[reader].oldest not in ("", first) else ""


def judged(
    shown: Verdict,
    read: Callable[[str], tuple[Reading, Summary]],
    intended: Table,
    context: int,
    tolerance: float,
    beside: Beside = PLAIN,
) -> Verdict:
    """`shown` with what `read` gives for it, compared with the intention."""
    try:
        reading, summary = read(shown.runtime)
    except Refuses as e:
        return replace(shown, refuses=str(e).removeprefix(f"{shown.runtime} {shown.version}: "))
    except Unsupported as e:
        return replace(shown, refuses=f"not surveyed: {e}")
    except (ArithmeticError, ValueError, TypeError) as e:  # a number in the file that has no logarithm, or is none
        return replace(shown, refuses=f"cannot compute from this: {e}")
    multiplier_error = abs(reading.multiplier / intended.multiplier - 1)
    found = replace(shown, reading=reading, summary=summary, multiplier_error=multiplier_error)
    if reading.inv_freq.shape != intended.inv_freq.shape:
        differs = f"rotates {2 * len(reading.inv_freq)} dimensions instead of {2 * len(intended.inv_freq)}"
        return replace(found, differs=differs)
    error = float(np.abs(reading.inv_freq / intended.inv_freq - 1).max())
    differs = ""
    if not error <= tolerance:
        differs = f"frequencies off by up to {error:.2g}"
    elif not multiplier_error <= tolerance:
        differs = f"multiplier {reading.multiplier:.6g} instead of {intended.multiplier:.6g}"
    elif told := differs_beside(reading.beside, beside, tolerance):
        differs = told
    elif reading.context is not None and reading.context != context:
        differs = f"takes {reading.context:,} tokens for the longest context"
    return replace(found, differs=differs, error=error)


def differs_beside(found: Beside, intended: Beside, tolerance: float) -> str:
    """What a reader computes otherwise than intended outside the table that a Reading is of, or ""."""
    if not abs(found.logits / intended.logits - 1) <= 2 * tolerance:  # a square
        return f"attention logits times {found.logits:.6g} instead of {intended.logits:.6g}"
    if found.others is None:
        return ""
    wanted = intended.others or unscaled(found.others)
    if found.others.inv_freq.shape != wanted.inv_freq.shape:
        return f"rotates {2 * len(found.others.inv_freq)} dimensions of the sliding-window layers instead of {2 * len(wanted.inv_freq)}"
    error = float(np.abs(found.others.inv_freq / wanted.inv_freq - 1).max())
    if not error <= tolerance:
        return f"frequencies of the sliding-window layers off by up to {error:.2g}"
    if not abs(found.others.multiplier / wanted.multiplier - 1) <= tolerance:
        return f"multiplier {found.others.multiplier:.6g} instead of {wanted.multiplier:.6g} in the sliding-window layers"
    return ""


def unscaled(others: Table) -> Table:
    """Plain RoPE of the θ that `others` would have if it were plain: its second frequency is θ^(−2/D)."""
    pairs = len(others.inv_freq)
    return Table(others.inv_freq[1] ** np.arange(pairs), 1.0) if pairs > 1 else Table(np.ones(pairs), 1.0)


def summary_of(rope: Seen) -> Summary:
    if rope.method == "yarn":
        fast, slow = betas(rope)
        rounded = "" if rounds(rope) else " unrounded"
        return Summary("yarn", float(yarn_factor(rope)), f"index {fast:g}/{slow:g}{rounded}")
    if rope.method == "longrope":
        return Summary("longrope", None, "explicit")
    factor = None if rope.method == "default" else float(rope.number("factor"))
    return Summary(rope.method, factor, "wavelength" if rope.method == "llama3" else "none")


def gguf_summary(keys: Mapping[str, Any], baked: bool, reading: Reading) -> Summary:
    """Of a reading that passes over the type, or the tensor, the summary leaves those out."""
    arch = keys["general.architecture"]
    meta = {k.removeprefix(f"{arch}."): v for k, v in keys.items()}
    kind = "none" if f"{arch}.rope.scaling.type" in reading.ignored else meta.get("rope.scaling.type", "linear")
    explicit = baked and "rope_freqs.weight" not in reading.ignored
    factor = float(meta.get("rope.scaling.factor", 1.0)) if kind != "none" else 1.0
    ramp = "explicit" if explicit else "none"
    if kind == "yarn":
        fast, slow = gguf_betas(arch, meta)
        ramp = f"{'explicit, ' if explicit else ''}index {fast:g}/{slow:g}"
    method = "default" if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)) else kind
    return Summary(method, None if method == "default" else factor, ramp)


# -- as text and as JSON ----------------------------------------------------------------------------------------------

COLUMNS = "{:<18} {:<21} {:<9} {:>6} {:<21} {:>10} {:>10} {:>8}  {}"


def table_lines(verdicts: list[Verdict]) -> list[str]:
    """A table for a terminal of 120 columns: a row a runtime, and below it what it ignores and what else there is to say."""
    head = COLUMNS.format("runtime", "version", "method", "factor", "ramp", "multiplier", "context", "error", "exact")
    lines = [head.rstrip()]
    for v in verdicts:
        if v.reading is None:
            lines += wrapped(f"{v.runtime:<18} {v.version:<21} ", f"— {v.refuses}")
            continue
        s, r = v.summary, v.reading
        cells = (
            "" if s.factor is None else f"{s.factor:g}",
            s.ramp,
            f"{r.multiplier:.6g}",
            "any" if r.context is None else f"{r.context:,}",
            "shape" if v.error is None else f"{v.error:.1g}",
            "yes" if v.exact else "NO",
        )
        lines.append(COLUMNS.format(v.runtime, v.version, s.method, *cells).rstrip())
        rival = v.follows and not set(r.ignored).isdisjoint(ROPE_OBJECTS)
        lines += wrapped("    ", f"{f'follows {v.follows}, ' if rival else ''}ignores {', '.join(r.ignored)}") if r.ignored else []
        lines += wrapped("    ", v.differs) if v.differs and not v.differs.startswith("frequencies") else []
        lines += wrapped("    ", v.note) if v.note else []
    return [*lines, "(error is the largest relative error of a frequency; factor, ramp and multiplier are what the runtime uses)"]


def wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


def verdict_json(v: Verdict) -> dict[str, Any]:
    """A verdict as JSON, without the frequencies."""
    facts: dict[str, Any] = {"runtime": v.runtime, "version": v.version, "evidence": list(v.evidence), "exact": v.exact}
    facts |= {"refuses": v.refuses, "differs": v.differs, "note": v.note, "follows": v.follows or None, **v.summary._asdict()}
    facts |= {"frequency_error": v.error, "multiplier_error": v.multiplier_error}
    if v.reading is not None:
        facts |= {"multiplier": v.reading.multiplier, "context": v.reading.context, "ignores": list(v.reading.ignored)}
    return {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in facts.items()}
