"""Several outputs of one model, a GGUF for each type: planned from headers that are read once, and written in one run.

They are the jobs of one output in `targets`, so that all appear or none, and an interrupted run goes on. What is made of one tensor is made
at about one time (`moving.Mover`): its bytes are read from the disk once, and come to the others from the system's memory of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..asking import taking
from ..checkpoint.manifest import Manifest, as_json, manifest_path
from ..checkpoint.source import Say
from ..errors import UsageError
from ..formats.json_text import pretty
from ..hearing import saying
from ..options import ConvertOptions
from ..targets.moving import Job, WriteBytes
from ..targets.output import execute
from ..targets.places import State
from .outputs import each_type
from .run import Conversion, Converted, prepare, prepared, writing


def prepare_each(model: str, options: ConvertOptions, weights: bool = True) -> list[Conversion]:
    """`run.prepare` for each type of --outtype. UsageError for what makes one type at a time, or two outputs of one name."""
    each = each_type(options)
    if len(each) == 1:
        return [prepare(model, each[0], weights)]
    unfit = [name for name in ("converter", "mmproj", "in_place", "link") if getattr(options, name)]
    if unfit:
        raise UsageError(f"--{unfit[0].replace('_', '-')} goes with one --outtype, not with {len(each)}", "run it once for each of them")
    found = prepared(model, each, weights)
    if any(c.plan.is_folder for c in found):
        raise UsageError(f"--outtype {options.outtype}: several types are for --out gguf", "add --out gguf, or give one of them")
    if len({c.plan.out for c in found}) < len(found):
        raise UsageError(f"--outtype {options.outtype} would write {found[0].plan.out} twice", "name each type as llama.cpp does")
    return found


def run_each(conversions: Sequence[Conversion], say: Say = lambda line: None) -> Converted:
    """`Conversion.run` for all at once: the first one's output, and the others in `Converted.others`. All are put into place, or none."""
    first, *others = conversions
    if not others:
        return first.run(say)
    there: dict[str, State | None] = {}
    for c in conversions:
        there |= c.check()
    made: list[Manifest] = []
    jobs = [job for c in conversions for job in c.plan.jobs]
    with saying() as told:
        progress = writing(told, f"{first.plan.out.name} and {len(others)} more", sum(c.bytes for c in conversions))

        def manifests(moved: Mapping[str, str], folder: Path) -> list[Job]:
            made.extend(c.manifest(moved, folder, progress) for c in conversions)
            return [WriteBytes(manifest_path(c.plan.out).name, pretty(as_json(m))) for c, m in zip(conversions, made, strict=True)]

        execute(jobs, first.plan.out, folder=False, progress=progress, last=manifests, inputs=first.inputs, say=say, replacing=there)
    done = [Converted(c.plan.out, m) for c, m in zip(conversions, made, strict=True)]
    return replace(done[0], others=tuple(done[1:]))


@taking(ConvertOptions)
def convert(model: str, options: ConvertOptions) -> Converted:
    """Convert `model`: the whole of `yarn-convert MODEL …` as one call, `convert(model, Recipe(scale=4), out="gguf", …)`, with the fields
    of `ConvertOptions` by keyword. Raises a YarnConvertError whose message is one line, and leaves no half-written output."""
    return run_each(prepare_each(model, options))
