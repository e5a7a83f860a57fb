"""What the command line prints: results and plans as lines for people. Results go to stdout, all else to stderr."""

from __future__ import annotations

import codecs
import io
import json
import shlex
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import many, printable
from ..formats.files import TEMPLATES
from .folding import WIDEST, Whole, command, fold, room

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..conversion import Conversion
    from ..conversion.describe import Description
    from ..conversion.overriding import Overrides
    from ..conversion.repair import Repair
    from ..formats.room import Room
    from ..publishing.hub import Upload

SHORT = 4096  # tokens of a window that is measured in minutes
NEAREST = str.maketrans(
    dict(zip("×–−·…→±√²θ", ("x", "-", "-", ".", "...", "->", "+-", "sqrt", "2", "theta"), strict=True))
    | dict(zip("▁▂▃▄▅▆▇█─│┤├└●◐○", "_.:-=+*#-||||#+o", strict=True))
)


def print_anywhere() -> None:
    """Let stdout take every text, whatever its encoding (a Windows pipe's is cp1252, LC_ALL=C's is ASCII): a sign that it lacks
    becomes the nearest that it has, and a path's undecodable bytes stay what they are."""

    def nearest(e: UnicodeError) -> tuple[str | bytes, int]:
        try:
            return codecs.lookup_error("surrogateescape")(e)
        except UnicodeEncodeError:
            assert isinstance(e, UnicodeEncodeError)
            return e.object[e.start : e.end].translate(NEAREST).encode("ascii", "replace"), e.end

    codecs.register_error("yarn_convert.nearest", nearest)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="yarn_convert.nearest")


def warnings_as_lines() -> None:
    """Let a warning of another package be a line on stderr, without the place in its source."""

    def line(message: Warning | str, *where: Any, **more: Any) -> None:
        write(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = line


def write(*lines: object, file: TextIO | None = None) -> None:
    """Print lines for people, texts as wide as their terminal is; the only way from a model's texts to a terminal. JSON needs none, for it
    escapes by itself."""
    said = (Whole(printable(str(line))) if isinstance(line, Whole | Path) else printable(str(line)) for line in lines)
    print("\n".join(fold(said, room(file or sys.stdout))), file=file, flush=file is not None)


def answer(value: object, as_json: bool, *lines: object) -> None:
    """The result of a command on stdout: as JSON, or as lines for people."""
    if as_json:
        print(json.dumps(value, indent=2))
    else:
        write(*lines)


def listing_lines(texts: Mapping[str, str]) -> list[str]:
    """Names and what is said of each, in paragraphs beside them, as wide as the terminal is; 80 columns where there is none."""
    width, name_width = min(WIDEST, room(sys.stdout) or 80), max(map(len, texts))
    lines: list[str] = []
    for name, text in texts.items():
        start = f"  {name:<{name_width}}  "
        wrapped = [
            line
            for paragraph in text.split("\n\n")
            for line in textwrap.wrap(" ".join(paragraph.split()), width - len(start), break_on_hyphens=False, break_long_words=False)
            or [""]
        ]
        lines += [start + wrapped[0], *(" " * len(start) + line for line in wrapped[1:])]
    return lines


def plan_json(conversion: Conversion, *others: Conversion) -> dict[str, Any]:
    """The plan; `others`: those of further types, in "others"."""
    from ..rope import recipe_of, table

    plan = conversion.plan
    return {
        "output": str(plan.out),
        "format": plan.format,
        "bytes": plan.bytes,
        "recipe": recipe_of(plan.rope),
        "attention_factor": table(plan.rope).multiplier,
        "context": plan.context,
        "scale": conversion.extension.scale,
        "carrier": plan.carrier,
        "identical_to_base": plan.identical,
        "readers": {name: v.why or "exact" for name, v in plan.verdicts.items()},
        "reader_versions": dict(plan.versions),
        "notes": list(plan.notes),
        "left": list(plan.left),
        "files": [{"file": job.name, "bytes": job.size} for job in plan.jobs],
        **({"others": [plan_json(other) for other in others]} if others else {}),
    }


def plan_lines(conversion: Conversion, *others: Conversion) -> list[str]:
    """The plan, for people; `others`: those of further types, which differ in what they write."""
    from ..conversion.describe import other_layers, pairs, short_texts
    from ..readers.judge import unknown
    from ..rope import table

    c, e, plan = conversion.checkpoint, conversion.extension, conversion.plan
    kinds = [p.kind for p in pairs(plan.rope)]
    over = f" over {plan.rope.inner.method}" if plan.rope.inner else ""
    beyond = f" ({e.long.method} beyond {plan.rope.original_context:,} tokens)" if e.long else ""
    parts = f" in {len(plan.jobs)} parts" if len(plan.jobs) > 1 and not plan.is_folder else ""
    lines = [
        f"base      {c.source.name} ({c.family.name}, {'GGUF' if c.gguf else 'HF'}, {many(len(c.tensors), 'tensor')})",
        f"method    {plan.rope.method}{over}{beyond}, s = {e.scale:g}: {plan.rope.original_context:,} -> {plan.context:,} tokens",
        f"rope      theta {plan.rope.theta:g}, D {plan.rope.rotary_dim}; pairs: "
        + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        + (f", {plan.rope.resting} still" if plan.rope.resting else "")
        + f"; cos and sin × {table(plan.rope).multiplier:.6g}",
        *([f"layers    {beside}"] if (beside := other_layers(c)) else []),
        f"carrier   {plan.carrier} in {plan.format}; weights {'byte-identical' if plan.identical else 'converted'}",
        "KV cache  "
        + ", ".join(f"{human(c.kv_bytes(n))} at {n:,}" for n in sorted({plan.rope.original_context, plan.context}))
        + " tokens (f16)",
        f"output    {plan.out}" + (f" ({human(plan.bytes)}{parts})" if plan.jobs else ""),
        *([f"          {conversion.beside}"] if conversion.beside else []),
        *(f"          {other.plan.out} ({human(other.plan.bytes)})" for other in others),
    ]
    exact = [name + (f" ({plan.versions[name]})" if name in plan.versions else "") for name, v in plan.verdicts.items() if v.exact]
    lines += [f"exact in  {', '.join(exact)}"] if exact else []
    silent = unknown(plan.verdicts)
    lines += [f"not in    {name}: {v.why}" for name, v in plan.verdicts.items() if not v.exact and name not in silent]
    lines += [f"unknown   {', '.join(silent)}: how they read {c.family.model_type} was not studied"] if silent else []
    lines += [f"short     {cost}"] if (cost := short_texts(conversion)) else []
    notes = dict.fromkeys(note for one in (conversion, *others) for note in one.plan.notes)
    lines += [f"note      {note}" for note in notes]
    return lines + ([f"left      {listed(plan.left)}: not what the model needs to load"] if plan.left else [])


def room_lines(rooms: Sequence[Room]) -> list[str]:
    """What is needed on which disk, and whether it fits."""
    from ..formats.room import short

    lines = [f"disk      {human(r.needed)} for {r.what}, and {human(r.free)} free in {r.folder.absolute()}" for r in rooms]
    return lines + [f"warning   {why}; {one.hint}" for one, why in short(rooms)]


def listed(names: Sequence[str]) -> str:
    """Names, with commas between; of many the first dozen."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def next_steps(out: Path, context: int, named: bool, *, base: str = "", window: int = 0, done: Sequence[str] = ()) -> list[str]:
    """Commands that run, check, measure and publish an output, from templates/. `named`: its tensors have names here, so it can become a
    GGUF. `base`: what it was made of, if that is at hand, where texts of `window` tokens may have become worse, 0 where not. `done`: with
    what words lines begin that are not needed any more."""
    from ..formats.split import stem_of
    from ..publishing.ollama import model_name, modelfile_path

    fits = {"--out gguf": named, "evaluate": base and window, "printf": stem_of(out) == out.stem}  # each part has a FROM: see --ollama
    without = [word for word, good in fits.items() if not good]
    name = "run_gguf.txt" if out.suffix == ".gguf" else "run_safetensors.txt"
    paths = {"path": out, "file": out.name, "modelfile": modelfile_path(out), "base": base}
    lines = (TEMPLATES / name).read_text("utf-8").format(
        **{key: shlex.quote(str(path)) for key, path in paths.items()}, context=context, window=min(window, SHORT),
        against=f" --base {shlex.quote(base)}" if base else "", ollama=model_name(out),
    ).splitlines()  # fmt: skip
    return [line for line in lines if not line.startswith(tuple(done)) and not any(word in line for word in without)]


def inspect_lines(c: Checkpoint, facts: Description) -> list[str]:
    from ..conversion.describe import plot

    types = ", ".join(f"{t} × {n.tensors} ({human(n.bytes)})" for t, n in facts.types.items())
    params = {k: v for k, v in c.rope.params.items() if not isinstance(v, tuple)}
    recipe = ", ".join([c.rope.method, *(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in params.items())])
    recipe += f" ({c.long.method} beyond {facts.original_context:,} tokens, the base's own table within)" if c.long else ""
    weights = f"weights packed by {facts.packed}" if facts.packed else f"{(facts.parameters or 0) / 1e6:,.0f} M parameters"
    lines = [
        f"name        {facts.name}" + (f" ({facts.repo} at {facts.commit})" if facts.repo else ""),
        f"model       {facts.architecture}, {weights}, {many(facts.layers, 'layer')}, "
        f"{many(facts.heads, 'head')} of {facts.head_dim}, {many(facts.kv_heads, 'KV head')}",
        f"tensors     {types}",
        f"RoPE        {recipe}; theta {c.rope.theta:g}, D {c.rope.rotary_dim}; cos and sin × {facts.attention_factor:.6g}",
        *([f"layers      {facts.other_layers}"] if facts.other_layers else []),
        *([f"positions   {facts.positions}"] if facts.positions else []),
        f"context     {facts.context:,} tokens, originally {facts.original_context:,} (s = {facts.scale:g})",
        *([f"            {c.note}"] if c.note else []),
        "KV cache    " + ", ".join(f"{human(b)} at {n:,}" for n, b in facts.kv_cache_bytes.items()) + " tokens (f16)",
        *plot(c.rope, c.context),
    ]
    return lines + [f"inconsistent: {line}" for line in facts.inconsistencies]


def overrides_lines(found: Overrides, columns: int | None = None) -> list[str]:
    """A verdict for each runtime, and below it the command on lines of its own; those that cannot be told come last."""
    over = f" over {found.recipe.inner.method}" if found.recipe.inner else ""
    lines = [
        f"recipe    {found.recipe.method}{over}, s = {found.scale:g}: {found.recipe.original_context:,} -> {found.context:,} tokens; "
        f"cos and sin × {found.attention_factor:.6g}",
        *(f"note      {note}" for note in found.notes),
    ]
    for r in sorted(found.runtimes, key=lambda r: r.command is None):
        verdict = "exact" if r.exact else r.why if r.command else f"cannot be told: {r.why}"
        lines += ["", f"{r.runtime} ({r.version}): {verdict}"]
        lines += command(r.command, columns, r.language) if r.command else command(r.instead, columns, "shell")
    return lines


def runtime_lines(row: Mapping[str, Any]) -> list[str]:
    """A row of `runtimes.environments.listing`."""
    there = f"{row['version'] or '?'} in {row['where']}" if row["where"] else f"not here; to add it: {row['add']}"
    lines = [f"{row['name']:<13} reads {row['reads']:<12} {there}", *([f"{'':<14}{row['note']}"] if row["note"] else [])]
    return lines + [f"{'':<14}{row['name']}:{mode}: {says}" for mode, says in row["modes"].items()]


def upload_lines(plan: Upload) -> list[str]:
    """Every file and its way, and what a publisher should know."""
    lines = [f"{i.way:<10} {human(i.size):>10}  {i.name}" + (f"  ({i.why})" if i.why else "") for i in plan.items]
    ways = ("upload", "copy", "unchanged")
    total = ", ".join(f"{human(plan.bytes(way))} {way}" for way in ways if any(i.way == way for i in plan.items))
    left = [f"left       {listed(plan.left)}: not of the model, and not published"] if plan.left else []
    return [f"to         {plan.repo}", *lines, f"in all     {total}", *left, *(f"warning    {w}" for w in plan.warnings)]


def repair_lines(plan: Repair) -> list[str]:
    """What a repair changes, and who follows before and after."""
    meant = plan.meant
    lines = [f"intended  {meant.rope.method}: {meant.rope.original_context:,} -> {meant.context:,} tokens, {meant.origin}"]
    lines += [f"change    {line}" for line in plan.changes] or ["change    none: the file already says it in the way that most follow"]
    for name, r in plan.readers.items():
        lines.append(f"{name:<15} {r.before or 'exact'}" + (f"  ->  {r.after or 'exact'}" if r.before != r.after else ""))
    return lines + [f"gain      {name} {r.gain}" for name, r in plan.readers.items() if r.gain]


def human(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


class Talk:
    """Lines for people, on stderr, unless quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def lines(self, lines: list[str]) -> None:
        if not self.quiet:
            write(*lines, file=sys.stderr)

    def line(self, line: str) -> None:
        self.lines([line])


class HubTalk(Talk):
    """The same while huggingface_hub works: its own progress bars are as quiet, and in a pipe, where they are no bars."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet)
        if quiet or sys.stderr is None or not sys.stderr.isatty():
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
