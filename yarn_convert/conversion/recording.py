"""The manifest of a conversion: what was asked for, what was written, of what and by what."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ..checkpoint import Checkpoint
from ..checkpoint.config import language_model
from ..checkpoint.manifest import AskedRecord, Base, Manifest, WeightFile, WeightsRecord, read_manifest, recorded
from ..errors import FormatError, InputError
from ..families.schema import ROPE_OBJECTS
from ..formats.digests import Progress, sha256
from ..formats.files import hub_hash
from ..options import ConvertOptions
from ..rope import table
from ..targets.moving import WEIGHTS, CopyFile, Job, WriteBytes, WriteTensors
from ..targets.plan import Plan
from . import converter
from .extension import Extension, beside
from .recipes import as_mapping


def weight_jobs(plan: Plan) -> list[WriteTensors | CopyFile]:
    return [j for j in plan.jobs if isinstance(j, WriteTensors) or (isinstance(j, CopyFile) and j.name.endswith(WEIGHTS))]


def manifest_of(
    c: Checkpoint, e: Extension, plan: Plan, options: ConvertOptions, script: Path | None, moved: Mapping[str, str], folder: Path,
    progress: Progress,
) -> Manifest:  # fmt: skip
    """The manifest of a conversion: `moved` says how each weight file came to be, `folder` is where they lie; `progress` gets the
    bytes that are hashed. `script`: of llama.cpp's converter, where that made `c` of a folder."""
    packages = ("numpy", "gguf", "huggingface-hub")
    return Manifest(
        yarn_convert=version("yarn-convert"),
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        base=Base(c.source.name, c.source.repo, c.source.commit, "gguf" if c.gguf and not script else "safetensors"),
        format=plan.format,
        asked=AskedRecord(
            options.recipe.method, options.recipe.original_context, "off" if _turned_off(c, options) else "keep", as_mapping(options.recipe)
        ),
        recipe=recorded(plan.rope, **beside(c, options.recipe, e.long)),
        context=plan.context,
        scale=e.scale,
        attention_factor=table(plan.rope).multiplier,
        carrier=plan.carrier,
        outtype=plan.outtype,
        finetuned=False,
        hparams={key: c.hparams.get(key) for key in c.family.hparams if key in c.hparams or key not in c.family.in_tensors},
        config=_written_config(plan),
        weights=WeightsRecord(
            plan.identical,
            [_recorded_file(j, moved.get(j.name, "written"), folder, options.hash, progress) for j in weight_jobs(plan)],
        ),
        readers={name: v.why or "exact" for name, v in plan.verdicts.items()},
        reader_versions=dict(plan.versions),
        notes=list(plan.notes),
        versions={"python": platform.python_version(), **{p: version(p) for p in packages}},
        converter=converter.version(script) if script else UNSET,
    )


def window_off(c: Checkpoint, manifest: Manifest | None) -> bool:
    """Whether the manifest, or the recipe in a GGUF, says that a sliding window was turned off."""
    if manifest is not None:
        return manifest.asked.sliding_window == "off"
    return (record := c.recorded) is not None and record.sliding_window == "off"


def _turned_off(c: Checkpoint, o: ConvertOptions) -> bool:
    """Whether the base's sliding window goes with this conversion, or has gone with an earlier one."""
    with contextlib.suppress(FormatError):
        return (o.sliding_window == "off" and bool(c.own_window)) or window_off(c, read_manifest(c.source.path))
    return False


def window_recorded(c: Checkpoint, o: ConvertOptions) -> dict[str, Any]:
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
