"""What a result says of how it was made, and its place in a manifest."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from ..checkpoint.manifest import changed, manifest_path
from ..options import Dtype
from ..targets.output import replace_file

SHORTEST = 16  # tokens of a text that is worth a computation
DTYPES: dict[Dtype, Literal["float32", "bfloat16"]] = {"f32": "float32", "float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16"}


class Hardware(Struct, frozen=True):
    """Where a result was computed; `memory_gib` of the machine, in GiB."""

    system: str
    processor: str
    cores: int | None
    memory_gib: float


class Library(Struct, frozen=True):
    """A llama.cpp of the user's own that was run: its name, `version` and `commit`, "" for what it does not say, and the SHA-256 of each of
    its files."""

    name: str
    version: str
    commit: str
    sha256: dict[str, str]


def made() -> dict[str, Any]:
    """When, with which versions and on what."""
    return {"created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"), "versions": versions(), "hardware": hardware()}


def record(model: Path, name: str, result: dict[str, Any]) -> str:
    """Put a result into the manifest, as it is by now, under `name`; why that was impossible, "" if it was not."""
    try:
        replace_file(manifest_path(model), changed(model, {name: result}))
    except OSError as e:
        return f"{manifest_path(model).name} cannot be written: {e.strerror}"
    return ""


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("yarn-convert", "numpy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    import psutil

    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"system": f"{platform.system()} {platform.machine()}", "processor": processor, "cores": os.cpu_count(), "memory_gib": memory}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
