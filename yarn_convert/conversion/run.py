"""A conversion: planned, and carried out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from ..asking import check_choices
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.config import config_of_folder, language_model
from ..checkpoint.manifest import Manifest, WeightFile, as_json, manifest_path, with_files
from ..checkpoint.source import Say, Source, in_scratch, resolve, room_to_download
from ..checkpoint.streaming import streamed
from ..errors import Inexpressible, InputError, OutputError, UnknownModel, Unsupported, UsageError
from ..families.schema import ROPE_OBJECTS, rope_type
from ..formats.digests import Progress, sha256
from ..formats.files import FOLLOW, leads_out
from ..formats.gguf_file import f32 as float32
from ..formats.imatrix import read_imatrix
from ..formats.inputs import NOTHING, Inputs, noticing
from ..formats.json_text import pretty
from ..formats.room import Room, check_room
from ..formats.split import first_part
from ..hearing import SayMore, counted, saying
from ..options import ConvertOptions
from ..readers.switching import switches
from ..rope import recipe_of
from ..rope.comparing import same
from ..targets.gguf import check_written_in, plan_gguf
from ..targets.in_place import edited_sha256, plan_in_place, recover, refuse_shared, run_in_place
from ..targets.moving import WEIGHTS, CopyFile, Job, WriteBytes
from ..targets.output import check_output, execute, room_for, settle_output
from ..targets.parts import only_first, part_size
from ..targets.places import State
from ..targets.plan import Plan, Request
from ..targets.safetensors import plan_safetensors
from . import converter
from .extension import Extension, beside, extend
from .outputs import check_name, check_siblings, default_output, inputs_of, outputs, place, wished_format
from .recording import manifest_of, weight_jobs, window_recorded
from .tempering import tempered, tempering_note


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion has written: `output`, a folder or a .gguf file, and the manifest that lies in it or beside it. `others`: those of
    further types, where several were asked for."""

    output: Path
    manifest: Manifest
    others: tuple[Converted, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it: the manifest's members behind "output"; "others" where there are some."""
        more = {"others": [other.to_dict() for other in self.others]} if self.others else {}
        return {"output": str(self.output), **as_json(self.manifest), **more}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint, its extension and the plan to write it; `run` carries it out.

    `origin`: the folder of which llama.cpp's converter made, or is to make, `checkpoint`, and `made` what keeps that until it is
    written. `beside`: the file of what sees or hears, which the converter makes too. `amend`: what else the manifest says.
    """

    checkpoint: Checkpoint
    extension: Extension
    plan: Plan
    options: ConvertOptions
    inputs: Inputs = NOTHING
    origin: Path | None = None
    made: contextlib.ExitStack | None = None
    beside: Path | None = None
    amend: Callable[[Manifest], Manifest] = lambda manifest: manifest

    def check(self) -> dict[str, State | None]:
        """What lies where the output goes, by its name in that folder. Raise OutputError when a place is taken or unfit, InputError when a
        file of the model has changed since it was planned."""
        if self.options.in_place:
            refuse_shared(self.checkpoint.source.path)
            only_first(self.plan.jobs)
            return {}
        inputs = inputs_of(self.checkpoint) + ([self.options.imatrix] if self.options.imatrix else [])
        names = {job.name for job in self.plan.jobs}
        settle_output(self.plan.out)
        self.inputs.check()
        places = outputs(self.plan) + ([] if self.plan.is_folder else [manifest_path(self.plan.out)])
        places += [self.beside] if self.beside else []
        there = {out.name: check_output(out, inputs, self.plan.is_folder, self.options.force, names) for out in places}
        check_siblings(self.plan)
        return there

    @property
    def bytes(self) -> int:
        """What `run` takes time for: what is written, and what is hashed."""
        return (0 if self.options.in_place else self.plan.bytes) + (sum(j.size for j in weight_jobs(self.plan)) if self.options.hash else 0)

    def manifest(self, moved: Mapping[str, str], folder: Path, progress: Progress = lambda n: None) -> Manifest:
        """What is recorded of it: see `recording.manifest_of`."""
        script = converter.find(self.options.converter) if self.origin else None
        return self.amend(manifest_of(self.checkpoint, self.extension, self.plan, self.options, script, moved, folder, progress))

    def run(self, say: Say = lambda line: None) -> Converted:
        """Write the output. Raises OutputError; what a large output has got to is kept for the next run,
        and `say` hears when one goes on with it."""
        there = self.check()
        with saying() as told:
            progress = writing(told, self.plan.out.name, self.bytes)
            return _run_in_place(self, progress) if self.options.in_place else self._run(there, progress, say)

    def _run(self, there: Mapping[str, State | None], progress: Progress, say: Say) -> Converted:
        """Write a new output; `there`: what it may replace."""
        out, plan = self.plan.out, self.plan
        made: list[Manifest] = []

        def manifest(moved: Mapping[str, str], folder: Path) -> list[Job]:
            made.append(self.manifest(moved, folder, progress))
            if mmproj is not None and self.beside:
                made.append(structs.replace(made[-1], mmproj=_mmproj_recorded(mmproj, self.beside, self.options)))
            return [WriteBytes(manifest_path(out).name, pretty(as_json(made[-1])))]

        whole = self.origin or self.checkpoint.source.path
        with self.made or contextlib.nullcontext(), _mmproj_written(whole, self.beside, self.options) as mmproj:
            execute(
                list(plan.jobs), out, folder=plan.is_folder, progress=progress, link=self.options.link, last=manifest,
                inputs=self.inputs, say=say, replacing=there,
            )  # fmt: skip
        return Converted(out, made[-1])


def rooms(conversions: Sequence[Conversion]) -> list[Room]:
    """What these would write and where: of a model of which only headers are here the download, and the outputs."""
    first = conversions[0]
    if first.options.in_place:
        return []
    source, jobs = first.checkpoint.source, [job for c in conversions for job in c.plan.jobs]
    download = None if first.options.stream else room_to_download(source, first.checkpoint.tensors)
    return [one for one in (download, room_for(jobs, first.plan.out, first.options.link)) if one]


def writing(told: SayMore, name: str, total: int) -> Progress:
    """Says how many bytes of an output are there, and how many come in a second."""
    began = time.monotonic()

    def say(what: str, fraction: float) -> None:
        seconds, mebibytes = time.monotonic() - began, total / 2**20
        so_far = f"{fraction * mebibytes:,.0f} of {mebibytes:,.0f} MiB, {fraction * mebibytes / max(1.0, seconds):,.0f} MiB/s"
        told(what, fraction, so_far if seconds > 1 else "")

    return counted(say, f"writing {name}", total)


def prepare(model: str, options: ConvertOptions, weights: bool = True) -> Conversion:
    """Open `model` and plan its conversion; nothing is written, but by llama.cpp's converter beside the output.
    `weights=False` downloads no weights from the Hub, and runs no converter."""
    return prepared(model, [options], weights)[0]


def prepared(model: str, each: Sequence[ConvertOptions], weights: bool) -> list[Conversion]:
    """`prepare` for several options, which differ in how one recipe of one model is written; it is opened once."""
    for options in each:
        check_choices(options)
    with noticing() as inputs:
        found = _prepared(model, each, weights)
    if found[0].checkpoint.source.streamed:  # the headers' places are of this process alone
        inputs = replace(inputs, seen={path: s for path, s in inputs.seen.items() if not in_scratch(path)})
    return [replace(c, inputs=replace(inputs, linked=c.options.link)) for c in found]


def _prepared(model: str, each: Sequence[ConvertOptions], weights: bool) -> list[Conversion]:
    options, path = each[0], Path(model).expanduser()
    if options.in_place and path.suffix == ".gguf" and path.is_file() and recover(path):
        raise OutputError(
            f"an earlier --in-place edit of {path} had been interrupted; it is finished now",
            f"see yarn-convert inspect {path}; run this again only to change it further",
        )

    def foresee(headers: Source) -> None:
        if headers.headers is not None:
            with contextlib.suppress(InputError, Unsupported):  # the files themselves may tell more
                check_room(*rooms(_opened(model, headers, each, False)))

    source = resolve(model, options.revision, weights, weights and options.stream, foresee)
    return _opened(model, streamed(source) if weights and options.stream else source, each, weights)


def _opened(model: str, source: Source, each: Sequence[ConvertOptions], weights: bool) -> list[Conversion]:
    options = each[0]
    try:
        c = open_checkpoint(source)
    except UnknownModel as e:
        if wished_format(options) != "gguf" or not converter.find(options.converter) or options.stream:
            raise
        _check_alone(each)
        return [_by_converter(source, e, options, weights)]
    c = tempered(c, options.recipe.position_temperature)
    fmt = wished_format(options) or ("gguf" if c.source.is_gguf else "safetensors")
    _check_converter(c, options, fmt)
    _check_stream(c, options, fmt)
    if fmt == "gguf" and not c.gguf and (options.converter or (not c.family.listed and converter.find())):
        extend(c, options.recipe)
        _check_alone(each)
        return [_by_converter(source, c.counting_from(options.recipe.original_context), options, weights)]
    return [_planned(model, c, options, fmt) for options in each]


def _check_stream(c: Checkpoint, o: ConvertOptions, fmt: str) -> None:
    """Raise UsageError where weights that stay on the Hub would be wanted here."""
    if not o.stream:
        return
    if fmt != "gguf":
        raise UsageError("--stream is for a GGUF", "add --out gguf; a folder goes from the Hub to the Hub by --push")
    if not c.gguf and (o.converter or o.mmproj or (not c.family.listed and converter.find())):
        raise UsageError("llama.cpp's converter makes this GGUF, and reads the model's files", "leave out --stream")


def _check_alone(each: Sequence[ConvertOptions]) -> None:
    """Raise UsageError for several types of what llama.cpp's converter makes."""
    if len(each) > 1:
        raise UsageError("llama.cpp's converter makes this model's GGUF, one --outtype at a time", "run it once for each of them")


def _planned(model: str, c: Checkpoint, options: ConvertOptions, fmt: str) -> Conversion:
    extension = extend(c, options.recipe)
    c = c.counting_from(options.recipe.original_context)
    if options.gguf_arch is not None and fmt != "gguf":
        raise UsageError("--gguf-arch is for --out gguf", "leave it out")
    if options.split_max_size is not None and fmt != "gguf":
        raise UsageError("--split-max-size belongs to --out gguf", "safetensors are sharded by themselves: leave it out")
    c = c.written_as(options.gguf_arch or c.family.gguf_arch)
    _check_windows(c, options)
    if options.in_place:
        _check_in_place(c, options, fmt, model)
    out = c.source.path if options.in_place else place(options, default_output(c, extension, options, fmt))
    check_name(out, fmt)
    request = _request(c, extension, options, out)
    plan = plan_gguf(c, request) if fmt == "gguf" else plan_safetensors(c, request)
    if options.link and not any(isinstance(job, CopyFile) and job.name.endswith(WEIGHTS) for job in plan.jobs):
        raise UsageError(
            "there is nothing to hard-link: the weights are written anew", "--link is for safetensors to safetensors, or a split GGUF"
        )
    absent = ["there are no weights here: a run needs them"] if c.source.repo is None and c.source.headers_only else []
    more = (*absent, *_switching_notes(plan), *tempering_note(options.recipe), *plan.notes)
    plan = replace(plan, notes=(*extension.notes, *more, *window_note(c, extension, options), *_link_note(c)))
    return Conversion(c, extension, plan, options, beside=_mmproj(out, options))


def _request(c: Checkpoint, e: Extension, o: ConvertOptions, out: Path) -> Request:
    return Request(
        e.rope, e.context, out, recipe_of(e.rope) | beside(c, o.recipe, e.long) | window_recorded(c, o), carry_in_place(c, o), o.outtype,
        o.cos_sin, o.sliding_window == "off", o.pretokenizer, read_imatrix(o.imatrix) if o.imatrix else None, part_size(o.split_max_size),
    )  # fmt: skip


# -- by llama.cpp's converter -----------------------------------------------------------------------------------------


def _check_converter(c: Checkpoint, o: ConvertOptions, fmt: str) -> None:
    """Raise UsageError where there is nothing for llama.cpp's converter to make."""
    if (o.converter or o.mmproj or o.trust_remote_code) and (fmt != "gguf" or c.gguf is not None):
        which = "--converter" if o.converter else "--mmproj" if o.mmproj else "--trust-remote-code"
        raise UsageError(f"{which} is for a GGUF made of a folder", "add --out gguf, or leave it out")
    if o.mmproj and not c.around:
        raise UsageError(f"{c.source.name} is a language model alone: there is nothing around it for --mmproj", "leave it out")
    if o.mmproj and converter.find(o.converter) is None:
        raise UsageError("--mmproj needs llama.cpp's converter, and none was found", converter.WAYS)


def _by_converter(source: Source, c: Checkpoint | UnknownModel, o: ConvertOptions, weights: bool) -> Conversion:
    """The conversion of a folder by way of a GGUF that llama.cpp's converter makes of it as it is: the recipe is an extension of the
    folder's own, or, of one that is not read here, of what the converter took it for."""
    script = converter.find(o.converter)
    assert script is not None
    converter.check(source.path, o.outtype, o.trust_remote_code)
    if o.recipe.position_temperature is not None:
        raise UsageError("--position-temperature goes with our own writer, not with llama.cpp's converter", "leave it out")
    if unfit := [name for name in ("gguf_arch", "pretokenizer", "imatrix") if getattr(o, name)]:
        raise UsageError(f"--{unfit[0].replace('_', '-')} goes with our own writer, not with llama.cpp's converter", "leave it out")
    by = f"the GGUF is llama.cpp's converter's ({script.parent.name}/{script.name}), its RoPE ours"
    if not weights:
        if isinstance(c, UnknownModel):
            raise UnknownModel(c.message, "llama.cpp's converter knows more: leave out --dry-run")
        e, out = _extended(c, o)
        plan = Plan(out, "gguf", e.rope, e.context, "what llama.cpp reads of it", {}, (), o.outtype, False, (*e.notes, by))
        return Conversion(c, e, plan, o, origin=source.path, beside=_mmproj(out, o))
    where = place(o, Path(f"{source.name}.gguf")) if isinstance(c, UnknownModel) else _extended(c, o)[1]
    check_name(where, "gguf")
    for path in (where, manifest_path(where)):
        check_output(path, [source.path.resolve()], False, o.force, {where.name})
    with contextlib.ExitStack() as undo:
        path = converter.run(script, source.path, undo.enter_context(converter.place_beside(where)) / "made.gguf", o.outtype)
        theirs = open_checkpoint(replace(source, path=path, headers=None))
        if isinstance(c, UnknownModel):
            _check_unread(source.path, theirs)
            taken = [f"{c.message}: its L, theta and layers are what the converter took from it"]
        else:
            _check_made(c, theirs)
            taken = []
        e, out = _extended(theirs if isinstance(c, UnknownModel) else c, o)
        plan = plan_gguf(theirs, replace(_request(theirs, e, o, out), outtype="auto"))
        made = undo.pop_all()
    plan = replace(plan, outtype=o.outtype, identical=False, notes=(*e.notes, *_switching_notes(plan), by, *taken, *plan.notes))
    return Conversion(theirs, e, plan, o, origin=source.path, made=made, beside=_mmproj(out, o))


def _extended(c: Checkpoint, o: ConvertOptions) -> tuple[Extension, Path]:
    """(the recipe, where the GGUF goes)."""
    e = extend(c, o.recipe)
    return e, place(o, default_output(c, e, o, "gguf"))


def _check_made(c: Checkpoint, made: Checkpoint) -> None:
    """Raise Inexpressible for a GGUF in which llama.cpp turns something else than transformers does in the folder."""
    sizes = {
        "dimensions that turn": (c.rope.rotary_dim, made.rope.rotary_dim),
        "layers": (c.layers, made.layers),
        "layers that turn in windows alone": (c.farthest, made.farthest),
    }
    differ = [what for what, (ours, theirs) in sizes.items() if ours != theirs]
    if c.other_layers and not ((others := made.beside(made.rope).other_layers) and same(c.other_layers, others)):
        differ.append("the RoPE of other layers")
    check_written_in(c, made.tensors)
    if differ:
        raise Inexpressible(f"llama.cpp's converter makes another model of it: {', '.join(differ)} differ", "--out safetensors")


def _check_unread(folder: Path, made: Checkpoint) -> None:
    """Raise Unsupported for a config.json of an unknown model type that says a scaling, or a θ of some layers that is not in the GGUF:
    whether the converter took it as it is meant is not known."""
    config = language_model(config_of_folder(folder))
    objects = [x for k in ROPE_OBJECTS if isinstance(x := config.get(k), dict)]
    there = config.get("layer_types")
    objects += [x for given in objects for kind, x in given.items() if isinstance(x, dict) and (not there or kind in there)]
    kinds = {rope_type(x) for x in objects} - {None, "default", "mrope"}
    thetas = {float32(x["rope_theta"]) for x in (config, *objects) if x.get("rope_theta") is not None}
    by_layer = config.get("layer_rope_theta")  # of Granite with windows: 0 where a layer has no RoPE
    thetas |= {float32(x) for x in by_layer} if isinstance(by_layer, list) else set()
    arch = made.family.gguf  # the base of its windows, where its code reads one
    swa = made.config.get(f"{arch.name}.rope.freq_base_swa") if arch.other_layers not in ("", "plain") else None
    if kinds or (others := thetas - {float32(made.rope.theta), float32(swa or made.rope.theta)}):
        what = f"its {kinds.pop()} scaling" if kinds else f"its rope_theta of {others.pop():g}"
        raise Unsupported(f"whether llama.cpp's converter takes {what} as it is meant is not known", "start from a model without it")


def _mmproj(out: Path, o: ConvertOptions) -> Path | None:
    return out.with_name(f"mmproj-{out.name}") if o.mmproj else None


@contextlib.contextmanager
def _mmproj_written(model: Path, out: Path | None, o: ConvertOptions) -> Iterator[Path | None]:
    """The file of what sees or hears, in half precision unless another type is asked for that it has: made first, for it may fail, and put
    into place with the rest."""
    if out is None:
        yield None
        return
    script = converter.find(o.converter)
    assert script is not None
    converter.check(model, "auto", o.trust_remote_code)
    with converter.place_beside(out) as folder:
        outtype = o.outtype if o.outtype in ("f32", "bf16", "q8_0") else "f16"
        made = converter.run(script, model, folder / "made.gguf", outtype, mmproj=True)
        yield made
        made.replace(out)


def _mmproj_recorded(made: Path, out: Path, o: ConvertOptions) -> WeightFile:
    script = converter.find(o.converter)
    assert script is not None
    return WeightFile(out.name, made.stat().st_size, converter.version(script), sha256(made))


def _check_windows(c: Checkpoint, o: ConvertOptions) -> None:
    """Raise UsageError where windows are to be turned off that only some layers have: transformers would not run it."""
    some = c.window or (c.written.get("sliding_window") if c.written.get("use_sliding_window") is None else None)
    if o.sliding_window == "off" and some and not c.sliding_window:
        raise UsageError(f"only some layers of {c.family.name} see a window, as it was trained", "leave out --sliding-window")


def window_note(c: Checkpoint, e: Extension, o: ConvertOptions) -> list[str]:
    """What becomes of a sliding window."""
    if o.sliding_window == "off" and c.own_window:
        return [f"the sliding window of {c.own_window:,} tokens is turned off: every token sees all before it"]
    if o.sliding_window == "keep" and c.own_window and c.own_window < e.context:
        return [
            f"attention keeps its sliding window of {c.own_window:,} tokens: "
            "no tokens farther apart than that see each other (--sliding-window off)"
        ]
    return []


def _switching_notes(plan: Plan) -> list[str]:
    """By what each reader that computes two lists takes one of them."""
    by = {name: switches(name, not plan.is_folder, plan.rope, plan.context) for name, v in plan.verdicts.items() if v.exact}
    return [f"{name} switches by {how}" for name, how in by.items() if how]


def _link_note(c: Checkpoint) -> list[str]:
    """Which files of the model were read elsewhere; not where, for a manifest is published."""
    asked, folder = FOLLOW.get() and not c.gguf, c.source.path
    linked = sorted(p.name for p in (folder.iterdir() if asked else c.weight_files[bool(c.gguf) :]) if leads_out(p))
    return [f"links out of the model's folder were followed: {', '.join(linked)}"] if linked else []


# -- in place ---------------------------------------------------------------------------------------------------------


def carry_in_place(c: Checkpoint, o: ConvertOptions) -> str:
    """Frequencies that lie in the file as a tensor can be replaced in place, but not taken out."""
    return "tensors" if o.in_place and o.carry == "auto" and c.factors and c.family.gguf.freqs != "required" else o.carry


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
    manifest = replace(conversion, options=replace(conversion.options, hash=False)).manifest(moved, path.parent)
    if conversion.options.hash:

        def hashed(file: WeightFile) -> WeightFile:
            own = file.file == job.name
            return structs.replace(file, sha256=edited_sha256(path, edit, progress) if own else sha256(path.with_name(file.file), progress))

        manifest = with_files(manifest, [hashed(file) for file in manifest.weights.files])
    run_in_place(path, replace(edit, manifest=pretty(as_json(manifest))))
    return Converted(path, manifest)
