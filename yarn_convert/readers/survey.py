"""One verdict per runtime: what it will compute from this file, and how far that is from the intention.

`survey_config` is for a folder in HF layout, `survey_gguf` for a GGUF file. Sixteen runtimes each time, in one order; one
that cannot read the format says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from ..errors import Unsupported
from ..families.architectures import below
from ..families.schema import ROPE_OBJECTS
from ..rope import RTOL, Array, Table
from .config import oldest, read_config
from .gguf import gguf_betas
from .judge import Verdict, judge
from .methods import reader_betas, rounds_ends, yarn_factor
from .others_gguf import GGUF_READERS, PAIR, GgufReader, Pair
from .reading import Beside, Reading
from .rows import HF_READERS, Reader
from .seen import READERS, Seen, row_of, seen

WIDTH = 80
RUNTIMES = (*HF_READERS, "llama.cpp", *(name for name in READERS if name not in HF_READERS))


class Summary(NamedTuple):
    """In words what a reading is: its method as the runtime has it, s, and where the frequencies come from."""

    method: str = ""
    factor: float | None = None
    ramp: str = ""  # "none", "index FAST/SLOW", that and "unrounded", "wavelength" or "explicit"


@dataclass(frozen=True, slots=True, eq=False)
class Surveyed:
    """What one runtime computes, against the intention, and what else there is to say of it."""

    runtime: str
    version: str
    evidence: tuple[str, ...]
    verdict: Verdict
    summary: Summary = field(default_factory=Summary)
    note: str = ""
    switches: str = ""  # by what it takes one of two lists, where the recipe has two
    follows: str = ""  # the RoPE object of config.json, "" for none or a GGUF

    @property
    def exact(self) -> bool:
        return self.verdict.exact

    @property
    def reading(self) -> Reading | None:
        return self.verdict.reading

    @property
    def refuses(self) -> str:
        """Why there is no reading; "" if there is one."""
        v = self.verdict
        return {"refuses": v.text.removeprefix(f"{self.runtime} {self.version}: "), "unknown": f"not surveyed: {v.text}"}.get(v.kind, "")

    @property
    def differs(self) -> str:
        return self.verdict.text if self.verdict.kind == "differs" else ""


def survey_config(config: Mapping[str, Any], intended: Table, context: int, beside: Beside | None = None) -> list[Surveyed]:
    """What each of RUNTIMES computes from `config`, config.json as a dict, and `judge`'s verdict on it."""
    found = []
    for name in RUNTIMES:
        if name not in READERS:
            why = "reads GGUF alone: convert with --out gguf"
            found.append(Surveyed(name, GGUF_READERS[name].version, (), Verdict("refuses", text=why)))
            continue
        row, summary = known_row(name, config), [Summary()]

        def read(name: str = name, summary: list[Summary] = summary) -> Reading:
            reading = read_config(name, config)
            summary[0] = summary_of(seen(name, config))
            return reading

        verdict = judge(read, intended, context, beside)
        follows = seen(name, config).followed if verdict.reading else ""
        shown = Surveyed(name, row.version, row.evidence, verdict, summary[0], follows=follows)
        found.append(replace(shown, note=note_of(shown, "config.json") or (since(name, config) if shown.exact else "")))
    return found


def known_row(reader: str, config: Mapping[str, Any]) -> Reader:
    """`row_of`, and the reader's row where there is none for such a model."""
    try:
        return row_of(reader, config)
    except Unsupported:
        return READERS[reader]


def survey_gguf(
    keys: Mapping[str, Any],
    rope_freqs: ArrayLike | None,
    intended: Table,
    context: int,
    rtol: float | Array = RTOL,
    beside: Beside | None = None,
    rope_factors: Pair = None,
) -> list[Surveyed]:
    """The same of GGUF keys, as plain values with `general.architecture`, rope_freqs.weight and the pair of rope_factors."""
    found = []
    for name in RUNTIMES:
        if name not in GGUF_READERS:
            why = "its reading of GGUF is not surveyed: convert with --out safetensors"
            found.append(Surveyed(name, READERS[name].version, (), Verdict("refuses", text=why)))
            continue
        row, summary = GGUF_READERS[name], [Summary()]

        def read(row: GgufReader = row, summary: list[Summary] = summary) -> Reading:
            reading = row.read(keys, rope_freqs, rope_factors)
            summary[0] = gguf_summary(keys, rope_freqs is not None or rope_factors is not None, reading)
            return reading

        shown = Surveyed(name, row.version, row.evidence, judge(read, intended, context, beside, rtol), summary[0])
        found.append(replace(shown, note=note_of(shown, "GGUF")))
    return found


def note_of(v: Surveyed, file: str) -> str:
    """What a user of that runtime should know besides, or ""."""
    if v.runtime == "Ollama" and file == "config.json" and v.reading and not v.exact:
        return "it converts the folder this way; convert with --out gguf, and it computes what llama.cpp does"
    if v.runtime == "Ollama" and v.reading:
        return "serves 4,096, 32,768 or 262,144 tokens by its VRAM, at most the context, unless num_ctx says how many"
    if v.runtime == "TensorRT-LLM" and ("'default'" in v.refuses or (v.reading and "rope_parameters" in v.reading.ignored)):
        return "release candidates of 1.3 also read rope_parameters, and take type default"
    return ""


def since(reader: str, config: Mapping[str, Any]) -> str:
    """That earlier versions of a reader refuse such a config.json, or were not run on one; or ""."""
    first, row = oldest(reader, config), READERS[reader]
    if first == row.yarn_by_layer:
        return f"from {first} on; earlier versions refuse it"
    return f"run in no version before {first}" if row.oldest not in ("", first) else ""


def summary_of(rope: Seen) -> Summary:
    if rope.method == "yarn":
        fast, slow = reader_betas(rope)
        rounded = "" if rounds_ends(rope) else " unrounded"
        return Summary("yarn", float(yarn_factor(rope)), f"index {fast:g}/{slow:g}{rounded}")
    if rope.method == "longrope":
        return Summary("longrope", None, "explicit")
    factor = None if rope.method == "default" else float(rope.number("factor"))
    return Summary(rope.method, factor, "wavelength" if rope.method == "llama3" else "none")


def gguf_summary(keys: Mapping[str, Any], baked: bool, reading: Reading) -> Summary:
    """Of a reading that passes over the type, or the tensor, the summary leaves those out."""
    arch = keys["general.architecture"]
    meta = below(arch, keys)
    kind = "none" if f"{arch}.rope.scaling.type" in reading.ignored else meta.get("rope.scaling.type", "linear")
    explicit = baked and not {"rope_freqs.weight", PAIR} & set(reading.ignored)
    factor = float(meta.get("rope.scaling.factor", 1.0)) if kind != "none" else 1.0
    ramp = "explicit" if explicit else "none"
    if kind == "yarn":
        fast, slow = gguf_betas(arch, meta)
        ramp = f"{'explicit, ' if explicit else ''}index {fast:g}/{slow:g}"
    method = "default" if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)) else kind
    return Summary(method, None if method == "default" else factor, ramp)


# -- as text and as JSON ----------------------------------------------------------------------------------------------

WORDS, NUMBERS = "{:<18}{:<6}{:<30}", "{:>8} {:>11} {:>5}"


def table_lines(verdicts: list[Surveyed], columns: int | None = None) -> list[str]:
    """A table for a terminal of 80 columns, or of fewer: a row a runtime that reads the file, and below it what it ignores and what else
    there is to say; then those that do not, by the reason."""
    width = min(WIDTH, columns or WIDTH)

    def wrapped(start: str, text: str, hang: int = 4) -> list[str]:
        return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * hang, break_on_hyphens=False)

    lines, refusing = _row(width, "runtime", "exact", "computes", "cos, sin", "context", "error"), dict[str, list[str]]()
    for v in verdicts:
        if v.reading is None:
            why = v.refuses.replace(f"what {v.runtime} makes", "what each makes")  # said once of all of whom it holds
            refusing.setdefault(why, []).append(f"{v.runtime} {v.version}")
            continue
        r = v.reading
        cells = (
            _computes(v.summary),
            f"{r.multiplier:.6g}",
            "any" if r.context is None else f"{r.context:,}",
            "shape" if v.verdict.error is None else f"{v.verdict.error:.1g}",
        )
        lines += _row(width, v.runtime, "yes" if v.exact else "NO", *cells)
        rival = v.follows and not set(r.ignored).isdisjoint(ROPE_OBJECTS)
        lines += wrapped("    ", f"{f'follows {v.follows}, ' if rival else ''}ignores {', '.join(r.ignored)}") if r.ignored else []
        lines += wrapped("    ", v.differs) if v.differs and (v.verdict.layer != "table" or v.verdict.error is None) else []
        lines += wrapped("    ", f"switches by {v.switches}") if v.switches else []
        lines += wrapped("    ", v.note) if v.note else []
    lines += wrapped("", "(cos, sin: their multiplier; error: the largest relative one of a frequency)")
    lines += [line for why, names in refusing.items() for line in wrapped("", f"not read by {', '.join(names)}: {why}")]
    read = ", ".join(f"{v.runtime} {v.version}" for v in verdicts if v.reading is not None)
    return lines + wrapped("", f"as read in {read}")


def _row(width: int, *cells: str) -> list[str]:
    """A line; where it has no room, its numbers stand below."""
    words, numbers = WORDS.format(*cells[:3]), NUMBERS.format(*cells[3:])
    return [words + numbers] if width >= WIDTH else [words.rstrip(), f"{'':<24}{numbers}"]


def _computes(s: Summary) -> str:
    """Method, factor and ramp in a few words; the ramp is in the pair index in every runtime."""
    factor = "" if s.factor is None else f" {s.factor:g}"
    ramp = "" if s.ramp in ("", "none") else ", explicit" if s.ramp == "explicit" else f", ramp {s.ramp.removeprefix('index ')}"
    return f"{s.method}{factor}{ramp}"


def verdict_json(v: Surveyed) -> dict[str, Any]:
    """A verdict as JSON, without the frequencies."""
    facts: dict[str, Any] = {"runtime": v.runtime, "version": v.version, "evidence": list(v.evidence), "exact": v.exact}
    facts |= {
        "refuses": v.refuses,
        "differs": v.differs,
        "note": v.note,
        "switches": v.switches,
        "follows": v.follows or None,
        **v.summary._asdict(),
    }
    facts |= {"frequency_error": v.verdict.error, "multiplier_error": v.verdict.multiplier_error}
    if v.reading is not None:
        facts |= {"multiplier": v.reading.multiplier, "context": v.reading.context, "ignores": list(v.reading.ignored)}
    return {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in facts.items()}
