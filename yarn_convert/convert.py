"""`extend`, which is pure, and `convert`, which writes; and the manifest that says what was done."""

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

from msgspec import UNSET

from .checkpoint import RECIPE, Checkpoint, open_checkpoint
from .digests import sha256
from .errors import FormatError, InputError, OutputError, Unsupported, UsageError
from .families.schema import ROPE_OBJECTS
from .files import FOLLOW, hub_hash, leads_out
from .inputs import NOTHING, Inputs, noticing
from .json_text import pretty
from .lengths import LINEAR
from .manifest import Asked, Base, Manifest, WeightFile, Weights, as_json, manifest_path, read_manifest, recipe_in, recorded
from .quantizer import read_imatrix
from .rope import BAKED, MAX_CONTEXT, METHODS, MSCALES, Rope, bake, recipe_of, table
from .source import resolve
from .split import first_part, stem_of
from .targets.gguf import plan_gguf
from .targets.in_place import edited_sha256, plan_in_place, recover, refuse_shared, run_in_place
from .targets.moving import WEIGHTS, CopyFile, Job, Progress, WriteBytes, WriteTensors
from .targets.output import check_output, execute, settle_output
from .targets.parts import only_first, part_size
from .targets.places import State
from .targets.plan import CARRIERS, Plan, Request
from .targets.resume import Say
from .targets.safetensors import plan_safetensors

EXTENDING = tuple(m for m in METHODS if m not in ("llama3", "longrope", "explicit"))
FORMATS = ("safetensors", "gguf")
REPLACED = ("none", "yarn", "ntk-by-parts", *BAKED)  # a base with one of these is extended from its own original context
WINDOWS = ("keep", "off")


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can ask for. None means "as the base has it" or the method's own default."""

    scale: float | None = None
    context: int | None = None
    method: str = "yarn"
    out: str | None = None
    output: Path | None = None
    original_context: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    ramp: str = "index"
    truncate: bool = True
    carry: str = "auto"
    outtype: str = "auto"
    sliding_window: str = "keep"
    imatrix: Path | None = None
    pretokenizer: str | None = None
    gguf_arch: str | None = None
    cos_sin: bool = False
    link: bool = False
    in_place: bool = False
    hash: bool = False
    force: bool = False
    split_max_size: str | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    """A recipe and the length it serves, with what a user should know about how they came to be."""

    rope: Rope
    context: int
    scale: float
    notes: tuple[str, ...] = ()


def extend(c: Checkpoint, options: Options) -> Extension:
    """The extended recipe of a base. Pure. Raises UsageError for options out of range or that the method does not take.

    s = L'/L counts from the original pretraining context. A base that carries YaRN is re-scaled from its own; over any
    other scaling the method is composed: it is applied to the base's effective frequencies over the length they serve.
    Raises InputError for a base whose L nobody says.
    """
    _check_options(options)
    if options.method == "none":
        if options.original_context is not None and not c.doubt:
            raise UsageError("--method none keeps the base's RoPE as it is", "leave out --original-context")
        if c.ignored:
            raise UsageError(
                f"this GGUF has RoPE keys that llama.cpp ignores: {', '.join(c.ignored)}",
                "say what is meant with --method yarn and its options",
            )
        c = c.counting_from(options.original_context)
        c = c if c.rope.method == "linear" else c.certain()  # as it is, linear is the same whatever it counts from
        return Extension(c.rope, c.context, c.context / c.rope.original_context)
    c = c.counting_from(options.original_context).certain()
    composed, original = composes(c), counted_from(c, options.original_context)
    context, s, notes = _lengths(original, options)
    _check_family(c, options, context)
    notes += [c.note] if c.note else []
    if composed and context <= c.context:
        raise UsageError(
            f"{context:,} tokens is no extension: the base already serves {c.context:,} by its own {c.rope.method} scaling", "choose more"
        )
    if composed and (rope := _both_linear(c.rope, options.method, context, s)):
        return Extension(
            rope, context, s, (*notes, f"linear over the base's own linear scaling: linear with s = {rope.number('factor'):g}")
        )
    params: dict[str, Any] = {} if options.method in BAKED else {"factor": s}
    for name in ("beta_fast", "beta_slow", "attention_factor"):
        if getattr(options, name) is not None:
            params[name] = float(getattr(options, name))
    if c.family.latent and options.method in TAKES["attention_factor"]:
        params |= {name: c.rope.params.get(name, 1.0) for name in MSCALES}
    params |= {"ramp": options.ramp} if options.ramp != "index" else {}
    params |= {} if options.truncate else {"truncate": False}
    rope = Rope(options.method, c.rope.theta, c.rope.rotary_dim, original, params, c.rope if composed else c.rope.inner)
    if options.method in BAKED:
        rope = bake(rope, context)
        notes.append(
            f"{options.method} is baked: it computes {rope.method} at s = {rope.number('factor'):g} for every length, short texts too"
        )
    if composed and c.rope.method == "longrope":
        notes.append("the base's longrope switches lists with the length of the text: its long list is used for every length now")
    if composed:
        notes.append(
            f"the base's own {c.rope.method} scaling stays: {rope.method} is applied to its effective frequencies over {original:,} tokens"
        )
    elif c.rope.method != "none":
        notes.append(f"the base's own {c.rope.method} is replaced: s counts from its original context of {original:,} tokens")
    table(rope)  # raises for parameters out of range
    return Extension(rope, context, s, tuple(notes))


def composes(c: Checkpoint) -> bool:
    """Whether a method is applied over the base's own scaling and does not replace it. What yarn-convert left is replaced, but for
    what none of its extensions is: a base's own llama3 or longrope, whose format alone it changed."""
    return c.rope.method not in REPLACED and not (c.ours and c.rope.method in EXTENDING)


def counted_from(c: Checkpoint, given: int | None = None) -> int:
    """L, from which s counts: what a base serves by a scaling that is kept, else its original context. `given`: what a user says."""
    if not composes(c):
        return given or c.rope.original_context
    return c.context if given is None or c.rope.method == LINEAR else given


def _both_linear(base: Rope, method: str, context: int, s: float) -> Rope | None:
    """Position Interpolation of Position Interpolation is one with the product of both factors, which every reader has a word
    for; None where that is not what is wished, or gives no whole number of tokens to count from."""
    if method != "linear" or base.method != "linear" or base.inner is not None:
        return None
    factor = base.number("factor") * s
    original = context / factor
    return replace(base, original_context=int(original), params={"factor": factor}) if original == int(original) else None


def _check_family(c: Checkpoint, o: Options, context: int) -> None:
    """Raise Unsupported for a model in which nothing is to be extended, UsageError for what means nothing to its attention."""
    if c.farthest is not None and c.farthest < context:
        length = "context_length" if c.gguf else "max_position_embeddings"
        ways = [f"--context {c.farthest} is the most"] if c.farthest > c.rope.original_context else []
        ways += ["--method none converts the format"] if c.family.listed else []
        where = f"only in layers that see a window of {c.farthest:,} tokens" if c.farthest else "in no layer"
        raise Unsupported(
            f"{c.family.name} has RoPE {where}, and no positions in the others: there is nothing to extend",
            "; ".join([*ways, f"for longer texts {length} alone is to be raised, by hand"]),
        )
    if c.family.latent and o.attention_factor is not None:
        raise UsageError(
            f"{c.family.model_type} turns a part of each head only: its temperature is mscale_all_dim's, on the logits",
            "leave out --attention-factor",
        )


TAKES = {
    "beta_fast": ("yarn", "ntk-by-parts", "dynamic-yarn"),
    "beta_slow": ("yarn", "ntk-by-parts", "dynamic-yarn"),
    "attention_factor": ("yarn", "dynamic-yarn"),
}


def _check_options(o: Options) -> None:
    for name, value, known in (
        ("method", o.method, EXTENDING),
        ("carry", o.carry, CARRIERS),
        ("ramp", o.ramp, ("index", "paper")),
        ("sliding-window", o.sliding_window, WINDOWS),
        ("out", o.out, (None, *FORMATS)),
    ):
        if value not in known:
            raise UsageError(f"unknown --{name} {value!r}", f"one of {', '.join(k for k in known if k)}")
    for name, methods in TAKES.items():
        if getattr(o, name) is not None and o.method not in methods:
            raise UsageError(f"--{name.replace('_', '-')} means nothing to the method {o.method}", f"it belongs to {', '.join(methods)}")
    if (o.ramp != "index" or not o.truncate) and o.method not in TAKES["beta_fast"]:
        raise UsageError(f"the method {o.method} has no ramp", f"--ramp and --no-truncate belong to {', '.join(TAKES['beta_fast'])}")
    if o.ramp == "paper" and not o.truncate:
        raise UsageError("--no-truncate belongs to the ramp by pair index", "the paper's ramp has nothing to truncate")
    if o.method == "none" and (o.scale is not None or o.context is not None):
        raise UsageError("--method none does not extend", "leave out --scale and --context, or choose a method")


def _lengths(original: int, o: Options) -> tuple[int, float, list[str]]:
    """(L', s, notes): L' is a whole number of tokens and s exactly L'/L, as exllamav3 and older transformers compute it."""
    if o.scale is None and o.context is None:
        raise UsageError("nothing says how far to extend", "--scale 4, or --context 32768 (--method none converts the format only)")
    if o.scale is not None and not 0 < o.scale < 1e6:
        says = f"--scale must be a number above 1 and below 1,000,000, not {o.scale:g}"
        raise UsageError(says, "--scale 4 makes the context four times as long")
    context = o.context if o.context is not None else round(original * (o.scale or 1))
    if context >= MAX_CONTEXT:
        raise UsageError(f"{context:,} tokens is more than any reader counts to", f"at most {MAX_CONTEXT - 1:,}")
    s = context / original
    if o.scale is not None and o.context is not None and abs(s / o.scale - 1) > 1e-9:
        raise UsageError(
            f"--scale {o.scale:g} and --context {o.context:,} disagree for an original context of {original:,}", "give one of them"
        )
    if s <= 1:
        raise UsageError(
            f"{context:,} tokens is no extension of {original:,}",
            "choose a larger --scale or --context; --original-context sets the base's length",
        )
    rounded = o.scale is not None and s != o.scale
    return context, s, [f"the scale is {s!r}, so that the context is a whole number of tokens"] if rounded else []


# -- planning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint, its extension and the plan to write it; `run` carries it out."""

    checkpoint: Checkpoint
    extension: Extension
    plan: Plan
    options: Options
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

    def run(self, progress: Progress = lambda n: None, say: Say = lambda line: None) -> dict[str, Any]:
        """Write the output and return its manifest. Raises OutputError; what a large output has got to is kept for the next run,
        and `say` hears when one goes on with it."""
        there = self.check()
        if self.options.in_place:
            return _run_in_place(self, progress)
        out, plan = self.plan.out, self.plan
        written: dict[str, Any] = {}

        def manifest(moved: Mapping[str, str], folder: Path) -> list[Job]:
            written.update(as_json(manifest_of(self, moved, folder, progress)))
            return [WriteBytes(manifest_path(out).name, pretty(written))]

        execute(
            list(plan.jobs), out, folder=plan.is_folder, progress=progress, link=self.options.link, last=manifest,
            inputs=self.inputs, say=say, replacing=there,
        )  # fmt: skip
        return written


def prepare(model: str, options: Options, revision: str | None = None, weights: bool = True) -> Conversion:
    """Open `model` and plan its conversion; nothing is written. `weights=False` downloads no weights from the Hub."""
    with noticing() as inputs:
        conversion = _prepared(model, options, revision, weights)
    return replace(conversion, inputs=replace(inputs, linked=options.link))


def _prepared(model: str, options: Options, revision: str | None, weights: bool) -> Conversion:
    path = Path(model).expanduser()
    if options.in_place and path.suffix == ".gguf" and path.is_file() and recover(path):
        raise OutputError(
            f"an earlier --in-place edit of {path} had been interrupted; it is finished now",
            f"see yarn-convert inspect {path}; run this again only to change it further",
        )
    c = open_checkpoint(resolve(model, revision, weights))
    extension = extend(c, options)
    c = c.counting_from(options.original_context)
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
    off = {"sliding_window": "off"} if _turned_off(c, options) else {}
    request = Request(
        extension.rope, extension.context, out, recipe_of(extension.rope) | off, carry_in_place(c, options), options.outtype,
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


def convert(model: str, options: Options, revision: str | None = None, progress: Progress = lambda n: None) -> dict[str, Any]:
    """Convert `model` and return the manifest: the whole of `yarn-convert MODEL …` as one call."""
    conversion = prepare(model, options, revision)
    return conversion.run(progress)


def _check_windows(c: Checkpoint, o: Options) -> None:
    """Raise UsageError where windows are to be turned off that only some layers have: transformers would not run it."""
    some = c.window or (c.written.get("sliding_window") if c.written.get("use_sliding_window") is None else None)
    if o.sliding_window == "off" and some and not c.sliding_window:
        raise UsageError(f"only some layers of {c.family.name} see a window, as it was trained", "leave out --sliding-window")


def _window_note(c: Checkpoint, e: Extension, o: Options) -> list[str]:
    if o.sliding_window == "off" and c.sliding_window:
        return [f"the sliding window of {c.sliding_window:,} tokens is turned off: every token sees all before it"]
    if o.sliding_window == "keep" and c.sliding_window and c.sliding_window < e.context:
        return [
            f"attention keeps its sliding window of {c.sliding_window:,} tokens: "
            "no tokens farther apart than that see each other (--sliding-window off)"
        ]
    return []


def _link_note(c: Checkpoint) -> list[str]:
    """Which files of the model were read elsewhere; not where, for a manifest is published."""
    asked, folder = FOLLOW.get() and not c.gguf, c.source.path
    linked = sorted(p.name for p in (folder.iterdir() if asked else c.weight_files[bool(c.gguf) :]) if leads_out(p))
    return [f"links out of the model's folder were followed: {', '.join(linked)}"] if linked else []


def default_output(c: Checkpoint, e: Extension, options: Options, fmt: str) -> Path:
    """`NAME-METHOD-CONTEXT`, as smollm2-135m-yarn-32k, in the current folder."""
    parts = [c.source.name] + ([options.method, short_length(e.context)] if options.method != "none" else [])
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


def carry_in_place(c: Checkpoint, o: Options) -> str:
    """Frequencies that lie in the file as a tensor can be replaced in place, but not taken out."""
    return "tensors" if o.in_place and o.carry == "auto" and c.factors else o.carry


def _check_in_place(c: Checkpoint, o: Options, fmt: str, model: str) -> None:
    if not c.source.is_gguf or fmt != "gguf" or not Path(model).expanduser().is_file():
        raise UsageError("--in-place changes a .gguf file given by its path", "leave it out to write a new output")
    if o.output is not None or o.outtype != "auto" or o.link or o.split_max_size is not None:
        raise UsageError("--in-place goes with neither -o, --outtype, --link nor --split-max-size", "leave it out to write a new file")


def _run_in_place(conversion: Conversion, progress: Progress) -> dict[str, Any]:
    c, job = conversion.checkpoint, only_first(conversion.plan.jobs)
    assert c.gguf is not None and job.fields is not None
    path = c.source.path
    edit = plan_in_place(first_part(c.gguf), job.fields, [p for p, _ in job.pieces])
    written = replace(job, size=edit.edited_size)  # the header is padded to where the data begins
    conversion = replace(conversion, plan=replace(conversion.plan, jobs=(written, *conversion.plan.jobs[1:])))
    moved = dict.fromkeys((j.name for j in conversion.plan.jobs), "as it was") | {job.name: "in place"}
    manifest = as_json(manifest_of(replace(conversion, options=replace(conversion.options, hash=False)), moved, path.parent))
    if conversion.options.hash:
        for file in manifest["weights"]["files"]:
            at = path.with_name(file["file"])
            file["sha256"] = edited_sha256(path, edit, progress) if file["file"] == job.name else sha256(at, progress)
    run_in_place(path, replace(edit, manifest=pretty(manifest)))
    return manifest


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
        asked=Asked(options.method, options.original_context, "off" if _turned_off(c, options) else "keep"),
        recipe=recorded(plan.rope),
        context=plan.context,
        scale=e.scale,
        attention_factor=table(plan.rope).multiplier,
        carrier=plan.carrier,
        outtype=plan.outtype,
        finetuned=False,
        hparams={key: c.hparams.get(key) for key in c.family.hparams},
        config=_written_config(plan),
        weights=Weights(
            plan.identical,
            [_recorded_file(j, moved.get(j.name, "written"), folder, options.hash, progress) for j in weight_jobs(plan)],
        ),
        readers={name: why or "exact" for name, why in plan.verdicts.items()},
        reader_versions=dict(plan.versions),
        notes=list(plan.notes),
        versions={"python": platform.python_version(), **{p: version(p) for p in packages}},
    )


def window_off(c: Checkpoint, manifest: Manifest | None) -> bool:
    """Whether the manifest, or the recipe in a GGUF, says that a sliding window was turned off."""
    if manifest is not None:
        return manifest.asked.sliding_window == "off"
    return c.gguf is not None and RECIPE in c.gguf.fields and recipe_in(c.gguf.get(RECIPE)).sliding_window == "off"


def _turned_off(c: Checkpoint, o: Options) -> bool:
    """Whether the base's sliding window goes with this conversion, or has gone with an earlier one."""
    with contextlib.suppress(FormatError):
        return (o.sliding_window == "off" and bool(c.sliding_window)) or window_off(c, read_manifest(c.source.path))
    return False


def _written_config(plan: Plan) -> dict[str, Any] | None:
    """What a folder's config.json says beside its RoPE; None for a GGUF, of whose keys `hparams` are all that count."""
    found = [json.loads(j.data) for j in plan.jobs if isinstance(j, WriteBytes) and j.name == "config.json"]
    return {k: v for k, v in found[0].items() if k not in ROPE_OBJECTS} if found else None


def _recorded_file(job: Job, how: str, folder: Path, hashed: bool, progress: Progress) -> WeightFile:
    """InputError for a file of the Hub's cache that is not what the Hub has, where its bytes are hashed."""
    of_hub = hub_hash(job.source) if isinstance(job, CopyFile) else None
    own = sha256(folder / job.name, progress) if hashed else None
    if own and of_hub and own != of_hub:
        raise InputError(
            f"{job.name} in the Hub's cache is not what the Hub has: its SHA-256 differs", "delete it there and run this again"
        )
    return WeightFile(job.name, job.size, how, own or UNSET, of_hub or UNSET)
