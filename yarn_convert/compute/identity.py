"""What tells one input of a long run from another, so that none goes on with what was computed of something else."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint


def identity(c: Checkpoint) -> list[Any]:
    """What tells a checkpoint from others: its weight files, all parts, by name, size and time of change; and config.json."""
    stats = [(str(f.resolve()), f.stat()) for f in sorted(c.weight_files)]
    return [c.family.model_type, dict(c.written), *((name, s.st_size, s.st_mtime_ns) for name, s in stats)]


def key_of(*parts: Any) -> str:
    """SHA-256 over the parts: JSON values, and arrays by their bytes."""
    hashed = hashlib.sha256(version("yarn-convert").encode())
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()
