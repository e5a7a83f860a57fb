"""Rewrites the RoPE spelling of someone else's checkpoint, so that all readers that can agree do. No weight moves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.config import language_model
from ..checkpoint.manifest import MANIFEST, as_json, changed, manifest_path, whole_recipe
from ..checkpoint.source import resolve
from ..errors import Inexpressible, InputError, OutputError, Unsupported
from ..formats.contents import CONFIG, ROPE_FILE
from ..formats.files import exists, read
from ..formats.gguf_file import Field
from ..formats.inputs import noticing
from ..formats.json_text import REMOVE
from ..formats.tensors import load_json
from ..options import ConvertOptions, Recipe, RepairOptions
from ..readers import HF_READERS, Refuses, read_config
from ..readers.gguf import LLAMA_CPP
from ..readers.judge import unknown
from ..rope import MAX_CONTEXT, recipe_of, table
from ..targets.gguf import plan_gguf
from ..targets.in_place import recover
from ..targets.moving import WriteBytes, WriteTensors, bytes_of
from ..targets.output import replace_file
from ..targets.plan import Plan, Request
from ..targets.safetensors import plan_safetensors
from .extension import Extension, beside
from .intention import Intention, intention_of, llama_cpps, rope_file_error, verdicts_of
from .outputs import check_name
from .run import Conversion, carry_in_place

BACKUP = ".before-repair"
# Members of a manifest
REPAIRED = ("recipe", "context", "scale", "attention_factor", "carrier", "readers", "reader_versions", "notes", "validation")


@dataclass(frozen=True, slots=True)
class ReaderGain:
    """One known reader. `before`, `after`: why it does not compute what is meant, "" if it does. `served`: its context in tokens
    before and after, None without a limit. `gain`, `loss`: what it has of the repair, "" for nothing."""

    before: str
    after: str
    served: tuple[int | None, int | None]

    @property
    def gain(self) -> str:
        first = "computes what is meant" if self.before and not self.after else ""
        return ", ".join(filter(None, (first, self._longer() if _less(*self.served) else "")))

    def loss(self, enough: int | None) -> str:
        """What it loses; more than `enough` tokens are no loss, None: any are."""
        shorter = _less(*reversed(self.served)) and (enough is None or _less(self.served[1], enough))
        wrong = _right(self.before) and not _right(self.after)
        return "would not compute what is meant" if wrong else self._longer() if shorter else ""

    def _longer(self) -> str:
        old, new = ("any length" if n is None else f"{n:,} tokens" if n else "nothing" for n in self.served)
        return f"serves {new} instead of {old}"


def _right(why: str) -> bool:
    """Whether a verdict says nothing against the frequencies."""
    return not why or why.startswith("takes ")


def _less(a: int | None, b: int | None) -> bool:
    return (MAX_CONTEXT if a is None else a) < (MAX_CONTEXT if b is None else b)


@dataclass(frozen=True, slots=True)
class Repair:
    """A planned repair. `readers`: what each known one computes before and after; `files`: what is rewritten in a folder;
    `changes`: one line each, none when the checkpoint is sound."""

    conversion: Conversion
    meant: Intention
    readers: Mapping[str, ReaderGain]
    files: tuple[WriteBytes, ...]
    changes: tuple[str, ...]

    def run(self) -> Path:
        """Write and return the output. A folder's changed
        files are replaced one by one, config.json last, each kept beside as `NAME.before-repair`. Raises OutputError; then the old files
        are still there. A sound checkpoint stays as it is."""
        c, plan = self.conversion.checkpoint, self.conversion.plan
        if self.conversion.options.in_place and self.changes and plan.is_folder:
            _rewrite(c.source.path, [*self._manifest(), *self.files])
        elif not self.conversion.options.in_place or self.changes:
            self.conversion.run()
        return plan.out

    def _manifest(self) -> list[WriteBytes]:
        """An output of yarn-convert says in its manifest what it is: that changes with it, and is neither validated nor evaluated."""
        c = self.conversion.checkpoint
        if not manifest_path(c.source.path).is_file():
            return []
        new = as_json(self.conversion.manifest({}, c.source.path))
        return [WriteBytes(MANIFEST, changed(c.source.path, {"evaluation": REMOVE, **{key: new[key] for key in REPAIRED}}))]

    def as_json(self) -> dict[str, Any]:
        return {
            "output": str(self.conversion.plan.out),
            "intention": {
                "recipe": whole_recipe(self.meant.rope, self.meant.long),
                "context": self.meant.context,
                "origin": self.meant.origin,
            },
            "changes": list(self.changes),
            "readers": {
                name: {"before": r.before or "exact", "after": r.after or "exact", "gain": r.gain} for name, r in self.readers.items()
            },
        }


def plan_repair(model: str, asked: RepairOptions) -> Repair:
    """Plan to rewrite `model`, in place unless an output is given. What is meant is said by `like`, by `recipe`, by a manifest,
    or by the file itself, ignored keys taken at their word; `keep` says which of two things in it, see `rivals.KEEP`.

    Raises Inexpressible where the format cannot carry it; InputError where nobody says what is meant, or a reader would have less
    of it than before; OutputError for a file that others share.
    """
    with noticing() as inputs:
        repair = _planned(model, asked)
    return replace(repair, conversion=replace(repair.conversion, inputs=inputs))


def _planned(model: str, asked: RepairOptions) -> Repair:
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        recover(path)  # an edit in place that was interrupted is finished first
    c = open_checkpoint(resolve(model), asked.keep)
    output = asked.output and asked.output.expanduser()
    if output is not None or c.gguf:  # a blob of Ollama's is named after what it holds, and stays as it is
        check_name(output or c.source.path, "gguf" if c.gguf else "safetensors")
    meant = whole(intention_of(c, asked.recipe, None, asked.like))
    if c.source.commit and output is None:
        raise OutputError(f"{model} is in the Hub's cache, which others share", "-o PATH writes a repaired copy")
    wish = ConvertOptions(Recipe(method="none"), output=output, in_place=output is None, force=asked.force)
    recorded = recipe_of(meant.rope) | beside(c, wish.recipe, meant.long)
    request = Request(meant.rope, meant.context, output or c.source.path, recorded, carry_in_place(c, wish))
    before = _served(c)
    plans = [(plan, _readers(c, meant, before, plan)) for plan in _plans(c, request)]
    enough = meant.context if asked.recipe or asked.like or asked.keep else None  # the user has said what is meant
    plan, found = next(((p, r) for p, r in plans if not any(x.loss(enough) for x in r.values())), plans[0])
    if losses := [f"{name} {why}" for name, r in found.items() if (why := r.loss(enough))]:
        raise InputError(f"this repair would take something away: {'; '.join(losses)}", SAY)
    sound = not any(r.gain for r in found.values()) and not rope_file_error(c, table(meant.rope, meant.context))
    files = () if c.gguf else tuple(job for job in _changed_files(c, plan) if not sound or job.name in TOKENIZER)
    changes = ([] if sound else _gguf_changes(c, plan)) if c.gguf else _folder_changes(c, files)
    plan = replace(plan, notes=(*plan.notes, *(f"repaired: {line}" for line in changes)))
    extension = Extension(meant.rope, meant.context, meant.context / meant.rope.original_context, long=meant.long)
    return Repair(Conversion(c, extension, plan, wish), meant, found, files, tuple(changes))


SAY = "--original-context L, --context L' or --scale S say how far it is meant to go"
TOKENIZER = ("tokenizer_config.json",)  # cuts texts where the context ends


def _plans(c: Checkpoint, request: Request) -> Iterator[Plan]:
    """The plans that there are: with the recipe's own keys first."""
    if c.gguf:
        yield plan_gguf(c, request)
        return
    try:
        yield plan_safetensors(c, replace(request, carry="metadata"))
    except Inexpressible:
        yield plan_safetensors(c, request)
        return
    with contextlib.suppress(Inexpressible):
        yield plan_safetensors(c, replace(request, carry="tensors"))


def _served(c: Checkpoint) -> dict[str, int | None]:
    """The context that each known reader takes from a file as it is; 0 from one that it refuses."""
    if c.gguf is None:
        return _contexts(c.written)
    try:
        return {LLAMA_CPP: llama_cpps(c).context}
    except Refuses:
        return {LLAMA_CPP: 0}


def _contexts(config: Mapping[str, Any]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name in HF_READERS:
        try:
            found[name] = read_config(name, config).context
        except (Refuses, Unsupported):
            found[name] = 0
    return found


def _readers(c: Checkpoint, meant: Intention, before: Mapping[str, int | None], plan: Plan) -> dict[str, ReaderGain]:
    verdicts = verdicts_of(c, meant)
    configs = [language_model(json.loads(job.data)) for job in plan.jobs if isinstance(job, WriteBytes) and job.name == "config.json"]
    after = _contexts(configs[0]) if configs else {LLAMA_CPP: meant.context}
    silent = unknown(verdicts)
    return {
        name: ReaderGain(v.why, plan.verdicts[name].why if name in plan.verdicts else "", (before[name], after[name]))
        for name, v in verdicts.items()
        if name not in silent
    }


def whole(meant: Intention) -> Intention:
    """With the context that the recipe's factor gives: model cards say "set factor 4" and leave the old context there."""
    factor = meant.rope.params.get("factor")
    if not meant.rope.row.leads or not isinstance(factor, float):
        return meant
    return replace(meant, context=round(meant.rope.original_context * factor))


def _changed_files(c: Checkpoint, plan: Plan) -> list[WriteBytes]:
    """The small files of the plan that differ from the folder's, config.json last: until then the old recipe is whole."""
    jobs = [job for job in plan.jobs if isinstance(job, WriteBytes)]
    jobs += [WriteBytes(job.name, bytes_of(job)) for job in plan.jobs if isinstance(job, WriteTensors) and job.name == ROPE_FILE]
    changed = [job for job in jobs if not _is_file_with(c.source.path / job.name, job.data)]
    return sorted(changed, key=lambda job: job.name == CONFIG)


def _is_file_with(path: Path, data: bytes) -> bool:
    return exists(path.parent, path.name) and read(path.parent, path.name) == data


def _rewrite(folder: Path, files: list[WriteBytes]) -> None:
    """Replace the files one by one, the old ones kept beside. A rope.safetensors that is not among them is put aside too."""
    stale = [] if any(job.name == ROPE_FILE for job in files) else [folder / ROPE_FILE]
    try:
        for path in [*stale, *(folder / job.name for job in files)]:
            backup = path.with_name(path.name + BACKUP)
            if exists(folder, path.name) and path.name != MANIFEST and not backup.exists():
                replace_file(backup, read(folder, path.name), like=path)
        for job in files:
            replace_file(folder / job.name, job.data, like=folder / CONFIG)
        for path in stale:
            path.unlink(missing_ok=True)
    except OSError as e:
        raise OutputError(f"could not repair {folder}: {e.strerror}", "check its owner and mode, or -o PATH writes a copy") from None


def _folder_changes(c: Checkpoint, files: Sequence[WriteBytes]) -> list[str]:
    lines = []
    for job in files:
        if not job.name.endswith(".json"):
            lines.append(f"{job.name}: written")
            continue
        old, new = load_json(c.source.path / job.name) if exists(c.source.path, job.name) else {}, json.loads(job.data)
        lines += [f"{job.name}: {k}: {_shown(old.get(k))} -> {_shown(new.get(k))}" for k in {**old, **new} if old.get(k) != new.get(k)]
    return lines


def _gguf_changes(c: Checkpoint, plan: Plan) -> list[str]:
    assert c.gguf is not None
    job = plan.jobs[0]
    assert isinstance(job, WriteTensors)
    assert job.fields is not None
    old = {k: f.value for k, f in c.gguf.fields.items() if ".rope." in k or k.endswith(".context_length")}
    new = {k: f.value if isinstance(f, Field) else f.data for k, f in job.fields.items() if ".rope." in k or k.endswith(".context_length")}
    lines = [f"{k}: {_shown(old.get(k))} -> {_shown(new.get(k))}" for k in {**old, **new} if not _equal(old.get(k), new.get(k))]
    there = {piece.target.name for j in plan.jobs if isinstance(j, WriteTensors) for piece, _ in j.pieces}
    return lines + [f"{name}: written" for name in there - set(c.gguf.tensors)]


def _equal(a: Any, b: Any) -> bool:
    """Equal, numbers to the float32 that a GGUF holds."""
    return a == b or (isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-6 * abs(a))


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
