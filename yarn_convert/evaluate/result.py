"""What every result ends with, and makes it JSON."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

from ..validate.run import hardware, versions


def finished(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with time, versions and hardware; what is not finite, which JSON has no word for, becomes null."""
    made = {"created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"), "versions": versions(), "hardware": hardware()}
    found: dict[str, Any] = clean({**result, **made})
    return found


def clean(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: clean(v) for k, v in value.items()}
    return [clean(v) for v in value] if isinstance(value, list | tuple) else value
