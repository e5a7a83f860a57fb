"""What every result ends with; what makes it JSON; what a manifest keeps of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.manifest import Manifest, read_manifest
from ..checkpoint.source import resolve
from ..compute.record import made, record
from ..compute.values import other_model
from ..compute.weights import check_weights
from ..conversion.tempering import recorded_beta, tempered
from ..errors import InputError, UsageError


def finished(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with time, versions and hardware; what is not finite, which JSON has no word for, becomes null."""
    found: dict[str, Any] = clean({**result, **made()})
    return found


def clean(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: clean(v) for k, v in value.items()}
    return [clean(v) for v in value] if isinstance(value, list | tuple) else value


def outputs_of(models: Sequence[str], methods: Sequence[object]) -> list[Path]:
    """The models after the first, in whose manifests a perplexity against the first one's can be put. UsageError where there is
    none or a recipe is not their own, InputError for one without a manifest, of another model than the first, or in the Hub's cache."""
    if len(models) < 2 or methods:
        raise UsageError("--record takes a base and its outputs as they are", "yarn-convert evaluate perplexity BASE OUT --record")
    base, *found = [open_checkpoint(resolve(model)) for model in models]
    for c in found:
        manifest = read_manifest(c.source.path)
        if manifest is None:
            raise InputError(f"{c.source.path} has no manifest to put it into", "an output of yarn-convert has one")
        if why := _stranger(c, base, manifest):
            raise InputError(f"{c.source.path} is no output of {models[0]}: {why}", "name its base first; nothing was put on record")
        if c.source.commit is not None:
            raise InputError(f"{c.source.path} is the Hub's: what is recorded there is lost", "copy it to a folder of your own")
    return [c.source.path for c in found]


def _stranger(c: Checkpoint, base: Checkpoint, manifest: Manifest) -> str:
    """Why `base` is not what an output was made of; "" if it is. Its weights are compared, not its name alone: beside an hour of
    perplexities they are read in no time."""
    known = (manifest.base.repo, base.source.repo)
    if all(known) and known[0] != known[1]:
        return f"that was made of {known[0]}"
    if why := other_model(c, tempered(base, recorded_beta(c, manifest))):
        return why
    return "" if manifest.finetuned else str(check_weights(c, base, None, lambda n: None)["why"])


def put_on_record(result: Mapping[str, Any], outputs: Sequence[Path]) -> None:
    """A finished perplexity into the manifests of the outputs, for their cards. InputError where that is impossible, or where an
    output reads other tokens than the base."""
    base, *rows = result["rows"]
    name = os.path.basename(os.path.abspath(base["model"])) if Path(base["model"]).exists() else base["model"]  # noqa: PTH100, PTH119
    for path, ran in zip(outputs, result["models"][1:], strict=True):
        if not ran["same_tokens"]:
            raise InputError(f"{path} reads the texts as other tokens than {name}: nothing is put on record", "name its base first")
    for path, row, ran in zip(outputs, rows, result["models"][1:], strict=True):
        kept = {k: result[k] for k in ("tokens", "stride", "created", "versions", "hardware")}
        kept |= {"base": {"model": name, "points": base["points"]}, "points": row["points"], "documents": ran["documents"]}
        if why := record(path, "evaluation", {**kept, "runtime": ran["runtime"]}):
            raise InputError(f"the result is not on record: {why}", "make room, and run the same command again")
