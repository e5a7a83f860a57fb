"""The config with which another trainer trains a recipe: it reads the extended folder, whose config.json says the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Unsupported
from .run import Preparation


@dataclass(frozen=True, slots=True)
class Emitted:
    """`path`: the config; `folder`: the extended model that it names. `notes`: what it cannot say, and what comes next."""

    path: Path
    folder: Path
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"config": str(self.path), "model": str(self.folder), "notes": list(self.notes)}


def emit(p: Preparation) -> Emitted:
    raise Unsupported("not yet", "")
