"""`finetune`: a plan, the training, and the model that comes out of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, structs

from ..asking import check_choices, taking
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.manifest import Base, Finetuning, HeldOut, Manifest, as_json, read_manifest, recorded
from ..checkpoint.source import resolve
from ..compute.identity import identity, key_of
from ..compute.reference import with_torch
from ..conversion import Extension, prepare
from ..conversion.outputs import check_name, default_output
from ..conversion.run import window_note
from ..errors import InputError, OutputError, UsageError, many, need
from ..formats.json_text import pretty
from ..formats.room import check_room, room
from ..hearing import counted, hearing, saying, tell, unheard
from ..options import FinetuneOptions, Texts
from ..targets.resume import UNSUPPORTED, lock, open_file
from .corpus import Segments, check_texts, corpus_of, order_of
from .ranks import Ranks, check_parallel, others_ended, ranks_of, training_device, world_size
from .requirements import Requirement, requirement
from .settings import Settings, deviations, settings_of
from .speed import Speed
from .states import latest
from .trainee import Trainee
from .training import History, Training, TrainingTexts
from .writing import base_folder, check_writable, conversion_options, write_output, write_weights

WHOLE = 1 << 26  # tokens of files that are read though the steps need fewer: a minute, and segments come from all of them


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a training will be. `out`: where its model goes, `folder` where it keeps its state until then. `needs`: memory of a process;
    `seconds` that it takes, about."""

    model: str
    options: FinetuneOptions
    checkpoint: Checkpoint
    settings: Settings
    extension: Extension
    out: Path
    device: str
    processes: int
    needs: Requirement
    seconds: float
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.out.with_name(f".{self.out.name}.training")

    @property
    def log(self) -> Path:
        return (self.options.log or self.out.with_name(f"{self.out.name}.jsonl")).expanduser()

    def to_dict(self) -> dict[str, Any]:
        """As --dry-run prints it with --json."""
        return {
            "output": str(self.out), "format": self.options.out, **self.settings.to_dict(), "context": self.extension.context,
            "tokens": self.settings.tokens, "device": self.device, "processes": self.processes, "memory": self.needs.to_dict(),
            "seconds": self.seconds,
            "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a training has written, and how it went: `history` as the log has it."""

    output: Path
    manifest: Manifest
    history: History

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it."""
        return {"output": str(self.output), **as_json(self.manifest), "held_out": self.history.held_out, "steps": self.history.steps}


def prepare_training(model: str, options: FinetuneOptions) -> Preparation:
    """What is asked for, checked as far as it can be without the texts. Raises UsageError, InputError and Unsupported."""
    check_choices(options)
    need("finetune", "a training", "torch", "transformers", "accelerate", "tokenizers", "psutil")
    with_torch()
    check_texts(options.texts)
    check_parallel(world_size(), options.sequence_parallel)
    device = training_device(options.device)
    c = open_checkpoint(resolve(model, options.revision))
    settings, e = settings_of(c, options, device)
    settings.passes(world_size() // settings.parallel)
    out = Path(options.output or _name(c, e, options)).expanduser()
    check_name(out, options.out)
    needs = requirement(c, settings, device, world_size())
    notes = (*e.notes, *deviations(settings, e), *window_note(c, e, conversion_options(options, out)), *needs.notes)
    seconds = Speed(c, settings, device, world_size()).expected
    return Preparation(model, options, c, settings, e, out, device, world_size(), needs, seconds, notes)


def _name(c: Checkpoint, e: Extension, o: FinetuneOptions) -> str:
    """NAME-METHOD-CONTEXT-tuned; a model that is extended already has the first three in its name."""
    plain = default_output(c, e, conversion_options(o, None), "safetensors").name.removeprefix("converted-")
    return f"{plain}-tuned" + (".gguf" if o.out == "gguf" else "")


@taking(FinetuneOptions)
def finetune(model: str, options: FinetuneOptions) -> Finetuned:
    """Train `model` at an extended context: the whole of `yarn-convert finetune MODEL …` as one call, `finetune(model, recipe=Recipe(
    scale=16), texts=Texts(files=(path,)), …)`, with the fields of `FinetuneOptions` by keyword. Raises a YarnConvertError whose message is
    one line; what an interrupted training has got to is kept, and the same call goes on."""
    return run_training(prepare_training(model, options))


def run_training(p: Preparation) -> Finetuned:
    """Train and write. Under torchrun every process calls it, and the first one writes; all get what was found."""
    with others_ended(), ranks_of(p.device, p.settings.parallel) as ranks, _workplace(p, ranks), _first_heard(ranks):
        ranks.together(lambda: _check_output(p), alone=True)
        texts, data = _texts(p, ranks)
        trainee = Trainee(p.checkpoint, p.settings, ranks)
        check_writable(p.checkpoint, trainee)
        with saying() as say:
            history = Training(trainee, p.settings, texts, p.folder, p.log, say).run()
        tell("putting the trained weights into files")
        made = p.folder / "model"
        ranks.together(lambda: _clean_base(p, made), alone=True)
        write_weights(p.checkpoint, trainee, made, ranks)
        record = _record(p, ranks, history, data)
        done = ranks.together(lambda: write_output(made, p.options, p.out, lambda m: _amended(m, p, record)), alone=True)
        ranks.together(lambda: shutil.rmtree(p.folder, ignore_errors=True), alone=True)
        manifest = done.manifest if done is not None else read_manifest(p.out)
        assert manifest is not None
        return Finetuned(p.out, manifest, history)


def _check_output(p: Preparation) -> None:
    """Raise OutputError where the output has no place, or the disk no room: for two states, of which one replaces the other, or for one
    and what is written at the end."""
    planned = prepare(p.model, conversion_options(p.options, p.out))
    planned.check()
    state = p.needs.optimizer // 2 * 3 * p.processes  # beside AdamW's two moments the parameters
    linked = p.options.out == "safetensors" and p.options.outtype == "auto"
    model = sum(t.nbytes for t in p.checkpoint.tensors.values()) + (0 if linked else planned.plan.bytes)
    there = sum(path.stat().st_size for path in p.folder.rglob("*") if path.is_file())
    check_room(room(f"the training of {p.out}", state + max(state, model) - there, p.folder, "free some space, or -o on another disk"))


def _first_heard(ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """Of several processes only the first says how far all of them are."""
    return contextlib.nullcontext() if ranks.first else hearing(unheard)


def _clean_base(p: Preparation, made: Path) -> None:
    shutil.rmtree(made, ignore_errors=True)
    base_folder(p.model, p.options.revision, made)


# -- the folder of a training -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workplace(p: Preparation, ranks: Ranks) -> Iterator[None]:
    """The folder in which a training keeps what it goes on from; one at a time. OutputError where it is of another training."""

    def enter() -> int:
        plan = _plan(p)
        try:
            p.folder.mkdir(exist_ok=True)
            fd = _locked(p)
            (p.folder / "plan.json").write_bytes(plan)
            return fd
        except OSError as e:
            raise OutputError(f"{p.folder} cannot be made: {e.strerror}", "-o in a folder that exists and is yours") from None

    fd = ranks.together(enter, alone=True)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)
            if p.folder.is_dir() and not any(p.folder.glob("step-*")) and not (p.folder / "tokens.json").exists():
                shutil.rmtree(p.folder, ignore_errors=True)


def _locked(p: Preparation) -> int:
    """A descriptor that no other process holds, as long as this one lives."""
    fd = open_file(p.folder / "lock")
    try:
        lock(fd)
    except OSError as e:
        os.close(fd)
        if e.errno in UNSUPPORTED:
            return open_file(p.folder / "lock")
        raise OutputError(f"another process trains {p.out}", "wait for it, or give another name with -o") from None
    return fd


def _plan(p: Preparation) -> bytes:
    """What a training is, as its folder has it. UsageError where the folder is that of another one, unless this is to replace it."""
    plan, begun = p.folder / "plan.json", latest(p.folder)
    mine = pretty({**p.settings.outcome, "model": key_of(identity(p.checkpoint)), "texts": _texts_key(p)})
    if p.options.resume and not begun:
        raise UsageError(f"there is no training of {p.out} to go on with", "leave out --resume")
    if p.log.exists() and not plan.exists() and not p.options.force:
        raise OutputError(f"{p.log} exists", "--force replaces it, or --log names another file")
    if begun and plan.read_bytes() != mine:
        old, new = json.loads(plan.read_bytes()), json.loads(mine)
        if not p.options.force:
            other = ", ".join(k for k in new if old.get(k) != new[k])
            raise UsageError(
                f"a training of {p.out} was interrupted after step {begun}, with another {other}",
                "the same command goes on with it; --force gives it up",
            )
        shutil.rmtree(p.folder)
    return mine


# -- the texts --------------------------------------------------------------------------------------------------------


def _texts_key(p: Preparation) -> list[Any]:
    t = p.options.texts
    files = [f for path in (*t.files, *p.options.held_out) for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    try:
        return [t.dataset, *([str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files)]
    except OSError as e:
        raise InputError(f"cannot read the text {e.filename}: {e.strerror}", "--text FILE, in UTF-8") from None


def _texts(p: Preparation, ranks: Ranks) -> tuple[TrainingTexts, list[str]]:
    """(what is trained on and held out, the names of the texts)."""
    s, t = p.settings, p.options.texts
    key = key_of(identity(p.checkpoint), _texts_key(p), s.pack, s.seed, s.tokens)
    needed = int(s.tokens * 1.05) + 9 * s.sequence
    wanted = needed if t.dataset else max(needed, WHOLE)
    count = counted(tell, "tokenizing", needed)

    def corpus(texts: Texts, seed: int | None, name: str) -> Segments:
        make = lambda: corpus_of(texts, p.checkpoint, wanted, seed, p.folder / name, key, count)  # noqa: E731
        ranks.together(make, alone=True)
        found = ranks.together(make)
        assert found is not None
        return Segments(found, s.sequence, s.pack)

    segments = corpus(t, s.seed, "tokens")
    held = corpus(Texts(files=p.options.held_out), None, "held-out") if p.options.held_out else segments
    order = order_of(len(segments), s.seed, not p.options.held_out)
    names = [path.name for path in t.files if path.is_dir() or path.name in segments.corpus.names]
    names += [Path(t.dataset).name if Path(t.dataset.partition(":")[0]).exists() else t.dataset] if t.dataset else []
    epochs = s.steps * s.batch / order.trained
    tell(f"{many(order.trained, 'segment')}, {many(segments.left_out, 'token')} in none; {epochs:.2g} epochs")
    return TrainingTexts(segments, order, held), names


# -- the record -------------------------------------------------------------------------------------------------------


def _record(p: Preparation, ranks: Ranks, history: History, data: list[str]) -> Finetuning:
    s = p.settings
    return Finetuning(
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"), recipe=recorded(s.rope), steps=s.steps, tokens=s.tokens,
        sequence=s.sequence, batch=s.batch, lr=s.lr, warmup=s.warmup, seed=s.seed, pack=s.pack, lora=s.lora, dtype=s.dtype,
        processes=ranks.world, data=data, loss=[history.steps[0]["loss"], history.steps[-1]["loss"]] if history.steps else [],
        held_out=compared(history), deviations=deviations(s, p.extension),
    )  # fmt: skip


def compared(history: History) -> list[HeldOut]:
    """Perplexities of held-out texts before the first step and after the last, by window."""
    if len(history.held_out) < 2:
        return []
    first, last = history.held_out[0]["windows"], history.held_out[-1]["windows"]
    return [HeldOut(int(w), first[w]["perplexity"], last[w]["perplexity"]) for w in first if w in last]


def _amended(m: Manifest, p: Preparation, record: Finetuning) -> Manifest:
    """The manifest of the conversion, of what was trained: its base is the model before, and its weights are its own."""
    source, earlier = p.checkpoint.source, read_manifest(p.checkpoint.source.path)
    before = earlier.finetuning if earlier and earlier.finetuning is not UNSET else []
    base = Base(source.name, source.repo, source.commit, "gguf" if p.checkpoint.gguf else "safetensors")
    weights = structs.replace(m.weights, identical_to_base=False)
    return structs.replace(m, base=base, finetuned=True, finetuning=[*before, record], weights=weights)
