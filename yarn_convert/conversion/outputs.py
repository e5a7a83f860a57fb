"""Where an output goes and how it is called: the format, its default name, the folder; and what must not lie there already."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import MANIFEST, manifest_path
from ..checkpoint.naming import plain_name, quantization_of
from ..errors import OutputError, UsageError
from ..formats.quantizer import MIXES
from ..formats.split import stem_of
from ..options import NAMED, ConvertOptions
from ..targets.plan import Plan
from .extension import Extension


def wished_format(o: ConvertOptions) -> str | None:
    """What is asked for, by --out or by the output's name; None for what came in."""
    return o.out or ("gguf" if o.output is not None and o.output.suffix == ".gguf" else None)


def each_type(o: ConvertOptions) -> list[ConvertOptions]:
    """The options of each output: one for each of the types of --outtype. UsageError where the format has one file of weights alone."""
    types = list(dict.fromkeys(part.strip() for part in o.outtype.split(",")))
    if len(types) == 1:
        return [replace(o, outtype=types[0])]
    if wished_format(o) == "safetensors":
        raise UsageError(f"--outtype {o.outtype}: several types are for --out gguf", "give one of them")
    named = o.output if o.output is not None and o.output.suffix == ".gguf" else None
    return [
        replace(
            o, outtype=t, imatrix=o.imatrix if t in MIXES else None,
            output=o.output if named is None or t == "auto" else named.with_name(f"{plain_name(named.stem)}.{t.upper()}.gguf"),
        )
        for t in types
    ]  # fmt: skip


def place(o: ConvertOptions, default: Path) -> Path:
    """Where the output goes: as it is called, or under its default name into the folder that is given. With --force a folder that is there
    is what is to be replaced, unless a slash says otherwise."""
    if o.output is None:
        return default
    out = o.output.expanduser()
    if out.name == NAMED:
        return out.with_name(default.name)
    return out / default.name if not o.force and _is_plain_folder(out) else out


def _is_plain_folder(path: Path) -> bool:
    """Whether there is a folder that is no model."""
    try:
        if not path.is_dir() or path.suffix == ".gguf":
            return False
        return not any(p.name in ("config.json", MANIFEST) or p.suffix == ".safetensors" for p in path.iterdir())
    except (OSError, ValueError):  # `check_output` says what is wrong with it
        return False


def default_output(c: Checkpoint, e: Extension, options: ConvertOptions, fmt: str) -> Path:
    """`NAME-METHOD-CONTEXT`, as smollm2-135m-yarn-32k, or -yarn-base-32k where short texts keep the base's table, in the current folder. A
    GGUF's type stands behind a dot, as the Hub and Ollama find it: NAME-yarn-32k.Q4_K_M.gguf."""
    how = [options.recipe.method, *([options.recipe.short] if options.recipe.short else [])]
    parts = [c.source.name] + ([*how, short_length(e.context)] if options.recipe.method != "none" else [])
    if fmt == "gguf":
        own = quantization_of(c.source.path.name) if c.gguf else ""
        of = own if options.outtype == "auto" else options.outtype.upper()
        name = ".".join(["-".join(parts), *([of] if of else []), "gguf"])
    else:
        name = "-".join(parts + ([options.outtype] if options.outtype != "auto" else []))
    # A format conversion in the folder of its input would get the input's own name.
    taken = manifest_path(Path(name).resolve()) in map(manifest_path, inputs_of(c))
    return Path("converted-" + name) if taken else Path(name)


def short_length(context: int) -> str:
    """32768 -> "32k", 1048576 -> "1m", 3000 -> "3000"."""
    for unit, letter in ((1 << 20, "m"), (1 << 10, "k")):
        if context % unit == 0:
            return f"{context // unit}{letter}"
    return str(context)


def inputs_of(c: Checkpoint) -> list[Path]:
    """The files of a GGUF, or the folder."""
    return [path.resolve() for path in (c.weight_files if c.gguf else [c.source.path])]


def check_name(out: Path, fmt: str) -> None:
    """Raise UsageError for an output that is named like the other format."""
    if fmt == "gguf" and out.suffix != ".gguf":
        raise UsageError(f"the output {out} is not named .gguf", f"-o {out}.gguf, or --out safetensors")
    if fmt == "safetensors" and out.suffix.lower() == ".gguf":
        hint = f"-o {out.with_suffix('.gguf')} --out gguf, or another name for the folder"
        raise UsageError(f"the output {out} is named like a GGUF file", hint)
    if fmt == "safetensors" and (out.suffix == ".safetensors" or out.name == "-"):
        like = "stands for stdout" if out.name == "-" else "is named like a file"
        raise UsageError(f"the output {out} {like}, and is a folder", "-o with a folder's name, or x.gguf")


def outputs(plan: Plan) -> list[Path]:
    """What a plan puts into place: a folder, or each .gguf file."""
    return [plan.out] if plan.is_folder else [plan.out.with_name(job.name) for job in plan.jobs]


def check_siblings(plan: Plan) -> None:
    """Raise OutputError where another model's manifest has the very name: NAME.gguf and each split of it share one."""
    if plan.is_folder:
        return
    names, stem = {path.name for path in outputs(plan)}, stem_of(plan.out)
    found = [plan.out.with_name(f"{stem}.gguf"), *plan.out.parent.glob(f"{glob.escape(stem)}-?????-of-?????.gguf")]
    other = next((path for path in found if path.name not in names and path.is_file() and stem_of(path) == stem), None)
    if other:
        raise OutputError(f"{other} lies there, and its manifest would have the same name", "give another name with -o, or delete it")
