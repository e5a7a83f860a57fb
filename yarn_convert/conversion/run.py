"""`convert`, which plans a conversion and carries it out; and the manifest that says what was done."""

from __future__ import annotations

import contextlib
import datetime as dt
import glob
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import UNSET, structs

from ..checkpoint import RECIPE, Checkpoint, open_checkpoint
from ..checkpoint.config import language_model
from ..checkpoint.manifest import (
    AskedRecord,
    Base,
    Manifest,
    WeightFile,
    WeightsRecord,
    as_json,
    manifest_path,
    read_manifest,
    recipe_in,
    recorded,
    with_files,
)
from ..checkpoint.source import Say, resolve
from ..errors import FormatError, InputError, OutputError, UsageError
from ..families.schema import ROPE_OBJECTS
from ..formats.digests import Progress, sha256
from ..formats.files import FOLLOW, hub_hash, leads_out
from ..formats.inputs import NOTHING, Inputs, noticing
from ..formats.json_text import pretty
from ..formats.quantizer import read_imatrix
from ..formats.split import first_part, stem_of
from ..options import ConvertOptions, check_choices, taking
from ..rope import recipe_of, table
from ..targets.gguf import plan_gguf
from ..targets.in_place import edited_sha256, plan_in_place, recover, refuse_shared, run_in_place
from ..targets.moving import WEIGHTS, CopyFile, Job, WriteBytes, WriteTensors
from ..targets.output import check_output, execute, settle_output
from ..targets.parts import only_first, part_size
from ..targets.places import State
from ..targets.plan import Plan, Request
from ..targets.safetensors import plan_safetensors
from .extension import Extension, beside, extend


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion has written: `output`, a folder or a .gguf file, and the manifest that lies in it or beside it."""

    output: Path
    manifest: Manifest

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it: the manifest's members behind "output"."""
        return {"output": str(self.output), **as_json(self.manifest)}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint, its extension and the plan to write it; `run` carries it out."""

    checkpoint: Checkpoint
    extension: Extension
    plan: Plan
    options: ConvertOptions
    inputs: Inputs = NOTHING

    def check(self) -> dict[str, State | None]:
        """What lies where the output goes, by its name in that folder. Raise OutputError when a place is taken or unfit."""
        if self.options.in_place:
            refuse_shared(self.checkpoint.source.path)
            only_first(self.plan.jobs)
            return {}
        inputs = _inputs(self.checkpoint) + ([self.options.imatrix] if self.options.imatrix else [])
        names = {job.name for job in self.plan.jobs}
        settle_output(self.plan.out)
        places = outputs(self.plan) + ([] if self.plan.is_folder else [manifest_path(self.plan.out)])
        there = {out.name: check_output(out, inputs, self.plan.is_folder, self.options.force, names) for out in places}
        _check_siblings(self.plan)
        return there

    @property
    def bytes(self) -> int:
        """What `run` reports to its progress: what is written, and what is hashed."""
        return self.plan.bytes + (sum(j.size for j in weight_jobs(self.plan)) if self.options.hash else 0)

    def run(self, progress: Progress = lambda n: None, say: Say = lambda line: None) -> Converted:
        """Write the output. Raises OutputError; what a large output has got to is kept for the next run,
        and `say` hears when one goes on with it."""
        there = self.check()
        if self.options.in_place:
            return _run_in_place(self, progress)
        out, plan = self.plan.out, self.plan
        made: list[Manifest] = []

        def manifest(moved: Mapping[str, str], folder: Path) -> list[Job]:
            made.append(manifest_of(self, moved, folder, progress))
            return [WriteBytes(manifest_path(out).name, pretty(as_json(made[-1])))]

        execute(
            list(plan.jobs), out, folder=plan.is_folder, progress=progress, link=self.options.link, last=manifest,
            inputs=self.inputs, say=say, replacing=there,
        )  # fmt: skip
        return Converted(out, made[-1])


def prepare(model: str, options: ConvertOptions, weights: bool = True) -> Conversion:
    """Open `model` and plan its conversion; nothing is written. `weights=False` downloads no weights from the Hub."""
    check_choices(options)
    with noticing() as inputs:
        conversion = _prepared(model, options, weights)
    return replace(conversion, inputs=replace(inputs, linked=options.link))


def _prepared(model: str, options: ConvertOptions, weights: bool) -> Conversion:
    path = Path(model).expanduser()
    if options.in_place and path.suffix == ".gguf" and path.is_file() and recover(path):
        raise OutputError(
            f"an earlier --in-place edit of {path} had been interrupted; it is finished now",
            f"see yarn-convert inspect {path}; run this again only to change it further",
        )
    c = open_checkpoint(resolve(model, options.revision, weights))
    extension = extend(c, options.recipe)
    c = c.counting_from(options.recipe.original_context)
    fmt = options.out or ("gguf" if c.source.is_gguf else "safetensors")
    if options.gguf_arch is not None and fmt != "gguf":
        raise UsageError("--gguf-arch is for --out gguf", "leave it out")
    if options.split_max_size is not None and fmt != "gguf":
        raise UsageError("--split-max-size belongs to --out gguf", "safetensors are sharded by themselves: leave it out")
    c = c.written_as(options.gguf_arch or c.family.gguf_arch)
    _check_windows(c, options)
    if options.in_place:
        _check_in_place(c, options, fmt, model)
    out = c.source.path if options.in_place else Path(options.output or default_output(c, extension, options, fmt)).expanduser()
    check_name(out, fmt)
    more = beside(c, options.recipe) | _window_recorded(c, options)
    request = Request(
        extension.rope, extension.context, out, recipe_of(extension.rope) | more, carry_in_place(c, options), options.outtype,
        options.cos_sin, options.sliding_window == "off", options.pretokenizer,
        read_imatrix(options.imatrix) if options.imatrix else None, part_size(options.split_max_size),
    )  # fmt: skip
    plan = plan_gguf(c, request) if fmt == "gguf" else plan_safetensors(c, request)
    if options.link and not any(isinstance(job, CopyFile) and job.name.endswith(WEIGHTS) for job in plan.jobs):
        raise UsageError(
            "there is nothing to hard-link: the weights are written anew", "--link is for safetensors to safetensors, or a split GGUF"
        )
    plan = replace(plan, notes=(*extension.notes, *plan.notes, *_window_note(c, extension, options), *_link_note(c)))
    return Conversion(c, extension, plan, options)


def outputs(plan: Plan) -> list[Path]:
    """What a plan puts into place: a folder, or each .gguf file."""
    return [plan.out] if plan.is_folder else [plan.out.with_name(job.name) for job in plan.jobs]


def _check_siblings(plan: Plan) -> None:
    """Raise OutputError where another model's manifest has the very name: NAME.gguf and each split of it share one."""
    if plan.is_folder:
        return
    names, stem = {path.name for path in outputs(plan)}, stem_of(plan.out)
    found = [plan.out.with_name(f"{stem}.gguf"), *plan.out.parent.glob(f"{glob.escape(stem)}-?????-of-?????.gguf")]
    other = next((path for path in found if path.name not in names and path.is_file() and stem_of(path) == stem), None)
    if other:
        raise OutputError(f"{other} lies there, and its manifest would have the same name", "give another name with -o, or delete it")


def check_name(out: Path, fmt: str) -> None:
    """Raise UsageError for an output that is named like the other format."""
    if fmt == "gguf" and out.suffix != ".gguf":
        raise UsageError(f"the output {out} is not named .gguf", f"-o {out}.gguf, or --out safetensors")
    if fmt == "safetensors" and out.suffix == ".gguf":
        raise UsageError(f"the output {out} is named like a GGUF file", "--out gguf, or another name for the folder")


@taking(ConvertOptions)
def convert(model: str, options: ConvertOptions) -> Converted:
    """Convert `model`: the whole of `yarn-convert MODEL …` as one call, `convert(model, Recipe(scale=4), out="gguf", …)`, with the fields
    of `ConvertOptions` by keyword. Raises a YarnConvertError whose message is one line, and leaves no half-written output."""
    return prepare(model, options).run()


def _check_windows(c: Checkpoint, o: ConvertOptions) -> None:
    """Raise UsageError where windows are to be turned off that only some layers have: transformers would not run it."""
    some = c.window or (c.written.get("sliding_window") if c.written.get("use_sliding_window") is None else None)
    if o.sliding_window == "off" and some and not c.sliding_window:
        raise UsageError(f"only some layers of {c.family.name} see a window, as it was trained", "leave out --sliding-window")


def _window_note(c: Checkpoint, e: Extension, o: ConvertOptions) -> list[str]:
    if o.sliding_window == "off" and c.own_window:
        return [f"the sliding window of {c.own_window:,} tokens is turned off: every token sees all before it"]
    if o.sliding_window == "keep" and c.own_window and c.own_window < e.context:
        return [
            f"attention keeps its sliding window of {c.own_window:,} tokens: "
            "no tokens farther apart than that see each other (--sliding-window off)"
        ]
    return []


def _link_note(c: Checkpoint) -> list[str]:
    """Which files of the model were read elsewhere; not where, for a manifest is published."""
    asked, folder = FOLLOW.get() and not c.gguf, c.source.path
    linked = sorted(p.name for p in (folder.iterdir() if asked else c.weight_files[bool(c.gguf) :]) if leads_out(p))
    return [f"links out of the model's folder were followed: {', '.join(linked)}"] if linked else []


def default_output(c: Checkpoint, e: Extension, options: ConvertOptions, fmt: str) -> Path:
    """`NAME-METHOD-CONTEXT`, as smollm2-135m-yarn-32k, in the current folder."""
    parts = [c.source.name] + ([options.recipe.method, short_length(e.context)] if options.recipe.method != "none" else [])
    parts += [options.outtype] if options.outtype != "auto" else []
    name = "-".join(parts) + (".gguf" if fmt == "gguf" else "")
    # A format conversion in the folder of its input would get the input's own name.
    taken = manifest_path(Path(name).resolve()) in map(manifest_path, _inputs(c))
    return Path("converted-" + name) if taken else Path(name)


def short_length(context: int) -> str:
    """32768 -> "32k", 1048576 -> "1m", 3000 -> "3000"."""
    for unit, letter in ((1 << 20, "m"), (1 << 10, "k")):
        if context % unit == 0:
            return f"{context // unit}{letter}"
    return str(context)


def _inputs(c: Checkpoint) -> list[Path]:
    return [path.resolve() for path in (c.weight_files if c.gguf else [c.source.path])]


# -- in place ---------------------------------------------------------------------------------------------------------


def carry_in_place(c: Checkpoint, o: ConvertOptions) -> str:
    """Frequencies that lie in the file as a tensor can be replaced in place, but not taken out."""
    return "tensors" if o.in_place and o.carry == "auto" and c.factors else o.carry


def _check_in_place(c: Checkpoint, o: ConvertOptions, fmt: str, model: str) -> None:
    if not c.source.is_gguf or fmt != "gguf" or not Path(model).expanduser().is_file():
        raise UsageError("--in-place changes a .gguf file given by its path", "leave it out to write a new output")
    if o.output is not None or o.outtype != "auto" or o.link or o.split_max_size is not None:
        raise UsageError("--in-place goes with neither -o, --outtype, --link nor --split-max-size", "leave it out to write a new file")


def _run_in_place(conversion: Conversion, progress: Progress) -> Converted:
    c, job = conversion.checkpoint, only_first(conversion.plan.jobs)
    assert c.gguf is not None and job.fields is not None
    path = c.source.path
    edit = plan_in_place(first_part(c.gguf), job.fields, [p for p, _ in job.pieces])
    written = replace(job, size=edit.edited_size)  # the header is padded to where the data begins
    conversion = replace(conversion, plan=replace(conversion.plan, jobs=(written, *conversion.plan.jobs[1:])))
    moved = dict.fromkeys((j.name for j in conversion.plan.jobs), "as it was") | {job.name: "in place"}
    manifest = manifest_of(replace(conversion, options=replace(conversion.options, hash=False)), moved, path.parent)
    if conversion.options.hash:

        def hashed(file: WeightFile) -> WeightFile:
            own = file.file == job.name
            return structs.replace(file, sha256=edited_sha256(path, edit, progress) if own else sha256(path.with_name(file.file), progress))

        manifest = with_files(manifest, [hashed(file) for file in manifest.weights.files])
    run_in_place(path, replace(edit, manifest=pretty(as_json(manifest))))
    return Converted(path, manifest)


# -- the manifest -----------------------------------------------------------------------------------------------------


def weight_jobs(plan: Plan) -> list[WriteTensors | CopyFile]:
    return [j for j in plan.jobs if isinstance(j, WriteTensors) or (isinstance(j, CopyFile) and j.name.endswith(WEIGHTS))]


def manifest_of(conversion: Conversion, moved: Mapping[str, str], folder: Path, progress: Progress = lambda n: None) -> Manifest:
    """The manifest of a conversion: `moved` says how each weight file came to be, `folder` is where they lie; `progress` gets the
    bytes that are hashed."""
    c, e, plan, options = conversion.checkpoint, conversion.extension, conversion.plan, conversion.options
    packages = ("numpy", "gguf", "huggingface-hub")
    return Manifest(
        yarn_convert=version("yarn-convert"),
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        base=Base(c.source.name, c.source.repo, c.source.commit, "gguf" if c.gguf else "safetensors"),
        format=plan.format,
        asked=AskedRecord(options.recipe.method, options.recipe.original_context, "off" if _turned_off(c, options) else "keep"),
        recipe=recorded(plan.rope, **beside(c, options.recipe)),
        context=plan.context,
        scale=e.scale,
        attention_factor=table(plan.rope).multiplier,
        carrier=plan.carrier,
        outtype=plan.outtype,
        finetuned=False,
        hparams={key: c.hparams.get(key) for key in c.family.hparams},
        config=_written_config(plan),
        weights=WeightsRecord(
            plan.identical,
            [_recorded_file(j, moved.get(j.name, "written"), folder, options.hash, progress) for j in weight_jobs(plan)],
        ),
        readers={name: v.why or "exact" for name, v in plan.verdicts.items()},
        reader_versions=dict(plan.versions),
        notes=list(plan.notes),
        versions={"python": platform.python_version(), **{p: version(p) for p in packages}},
    )


def window_off(c: Checkpoint, manifest: Manifest | None) -> bool:
    """Whether the manifest, or the recipe in a GGUF, says that a sliding window was turned off."""
    if manifest is not None:
        return manifest.asked.sliding_window == "off"
    return c.gguf is not None and RECIPE in c.gguf.fields and recipe_in(c.gguf.get(RECIPE)).sliding_window == "off"


def _turned_off(c: Checkpoint, o: ConvertOptions) -> bool:
    """Whether the base's sliding window goes with this conversion, or has gone with an earlier one."""
    with contextlib.suppress(FormatError):
        return (o.sliding_window == "off" and bool(c.own_window)) or window_off(c, read_manifest(c.source.path))
    return False


def _window_recorded(c: Checkpoint, o: ConvertOptions) -> dict[str, Any]:
    """What a GGUF's recipe says of a window that its architecture has no key for: see `manifest.RopeRecord`."""
    return {"sliding_window": "off"} if _turned_off(c, o) else {"sliding_window": c.own_window} if c.own_window else {}


def _written_config(plan: Plan) -> dict[str, Any] | None:
    """What a folder's config.json says beside its RoPE; None for a GGUF, of whose keys `hparams` are all that count."""
    found = [json.loads(j.data) for j in plan.jobs if isinstance(j, WriteBytes) and j.name == "config.json"]
    return {k: v for k, v in language_model(found[0]).items() if k not in ROPE_OBJECTS} if found else None


def _recorded_file(job: Job, how: str, folder: Path, hashed: bool, progress: Progress) -> WeightFile:
    """InputError for a file of the Hub's cache that is not what the Hub has, where its bytes are hashed."""
    of_hub = hub_hash(job.source) if isinstance(job, CopyFile) else None
    own = sha256(folder / job.name, progress) if hashed else None
    if own and of_hub and own != of_hub:
        raise InputError(
            f"{job.name} in the Hub's cache is not what the Hub has: its SHA-256 differs", "delete it there and run this again"
        )
    return WeightFile(job.name, job.size, how, own or UNSET, of_hub or UNSET)
