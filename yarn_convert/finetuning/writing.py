"""What was trained, as a model: the base with other weights, and the conversion that extends it.

`save_pretrained` would lose half of what a config.json says of its RoPE. So the trained weights go into a folder that is the base in every
other file, by our own writers, each in the type that it has in the base; and that folder is converted as the base would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import Manifest
from ..conversion import Converted, prepare
from ..conversion.recording import weight_jobs
from ..errors import OutputError, Unsupported
from ..formats.dtypes import from_f32, refuse_lost
from ..formats.tensors import SAFETENSORS_BITS
from ..options import ConvertOptions, FinetuneOptions, Recipe
from ..targets.moving import WriteBytes, WriteTensors, converted, create
from ..targets.safetensors import hf_pieces, sharded
from .ranks import Ranks
from .settings import PRESETS, recipe_asked
from .trainee import ADAPTER, Trainee, file_name


def conversion_options(o: FinetuneOptions, out: Path | None) -> ConvertOptions:
    """The conversion behind a training: of the trained model, and as far as it can be planned before, of the base."""
    window = o.sliding_window or PRESETS[o.preset]["sliding_window"]
    return ConvertOptions(
        recipe_asked(o), out=o.out, output=out, outtype=o.outtype, sliding_window=window, hash=True, revision=o.revision, force=o.force
    )


def base_folder(model: str, revision: str | None, folder: Path) -> None:
    """A folder in HF layout that has all of a model but its weights."""
    plan = prepare(model, ConvertOptions(Recipe(method="none"), out="safetensors", output=folder, revision=revision, force=True))
    files = [job for job in plan.plan.jobs if job not in weight_jobs(plan.plan)]
    replace(plan, plan=replace(plan.plan, jobs=tuple(files))).run()


def check_writable(c: Checkpoint, trainee: Trainee) -> None:
    """Unsupported, before any training, for parameters that do not become tensors of the base again."""
    import torch

    c = c.standing_alone() if c.gguf else c
    shells = {file_name(n): torch.empty(p.shape, device="meta") for n, p in trainee.module.named_parameters() if ADAPTER not in n}
    found = {name: tuple(t.shape) for name, t in _as_in_files(trainee, shells).items()}
    base = {p.target.name: p.target.shape for p in hf_pieces(c, "auto")}
    wrong = sorted(name for name, shape in found.items() if base.get(name) != shape and not (name == _head(c) and name not in base))
    if wrong:
        raise Unsupported(f"the model's tensors do not come back as they are in its files: {', '.join(wrong[:3])}", "another family")


def write_weights(c: Checkpoint, trainee: Trainee, folder: Path, ranks: Ranks) -> None:
    """Put the trained weights into a folder of `base_folder`; what was not trained is copied. All ranks have to call it."""
    c = c.standing_alone() if c.gguf else c
    writer = ranks.together(lambda: Weights(c, folder), alone=True)
    for name, tensor in _named_as_in_files(trainee, ranks):
        if writer is not None:
            writer.put(name, tensor)
    ranks.together(lambda: writer.rest() if writer else None, alone=True)


class Weights:
    """The weight files of a folder, filled tensor by tensor."""

    def __init__(self, c: Checkpoint, folder: Path) -> None:
        quantized = any(t.dtype not in SAFETENSORS_BITS for t in c.tensors.values())
        jobs = sharded(hf_pieces(c, "bf16" if quantized else "auto"))
        self.folder = folder
        self.left = {p.target.name: (folder / job.name, p, at) for job in jobs if isinstance(job, WriteTensors) for p, at in job.pieces}
        self.head = _head(c)
        for job in jobs:
            if isinstance(job, WriteTensors):
                create(folder / job.name, job.size)
                with open(folder / job.name, "r+b") as f:
                    f.write(job.header)
            elif isinstance(job, WriteBytes):
                (folder / job.name).write_bytes(job.data)

    def put(self, name: str, tensor: Any) -> None:
        """A trained tensor, float32 on the CPU. Unsupported for a name or shape that the base does not have."""
        path, piece, at = self.left.pop(name, (None, None, 0))
        if piece is None or path is None:
            if name == self.head:  # tied: it is the embedding
                return
            raise Unsupported(f"the trained tensor {name!r} is none of the base's", "another version of transformers")
        if tuple(tensor.shape) != piece.target.shape:
            raise Unsupported(f"the trained tensor {name!r} is {tuple(tensor.shape)}, in the base {piece.target.shape}", "")
        values = tensor.contiguous().numpy().reshape(-1)
        data = from_f32(values, piece.target.dtype)
        refuse_lost(values, data, piece.target.dtype)
        self._write(path, at, data)

    def rest(self) -> None:
        """What was not trained, as it is in the base."""
        for path, piece, at in self.left.values():
            for data in converted(piece):
                self._write(path, at, data)
                at += data.nbytes

    def _write(self, path: Path, at: int, data: Any) -> None:
        try:
            with open(path, "r+b") as f:
                f.seek(at)
                f.write(memoryview(data))
        except OSError as e:
            raise OutputError(f"could not write {path}: {e.strerror}", "free some space; the same command goes on") from None


def _head(c: Checkpoint) -> str:
    return c.hf_name("output.weight") if c.family.listed else "lm_head.weight"


def _as_in_files(trainee: Trainee, tensors: dict[str, Any]) -> dict[str, Any]:
    """Where transformers makes one tensor of several, as of experts, what takes them apart again."""
    if trainee.unloaded is not None:
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Any] = revert_weight_conversion(trainee.net, tensors)
    return found


def _named_as_in_files(trainee: Trainee, ranks: Ranks) -> Iterator[tuple[str, Any]]:
    """Every trained tensor by the name that it has in files; all at once where they have to be taken apart."""
    if trainee.unloaded is not None:
        yield from trainee.tensors()
        return
    whole = dict(trainee.tensors())
    if ranks.first:
        yield from _as_in_files(trainee, whole).items()


def write_output(folder: Path, o: FinetuneOptions, out: Path, amend: Callable[[Manifest], Manifest]) -> Converted:
    """Extend the folder of the trained model. Weights that stay as they are become hard links."""
    options = replace(conversion_options(o, out), link=o.out == "safetensors" and o.outtype == "auto", revision=None)
    return replace(prepare(str(folder), options), amend=amend).run()
