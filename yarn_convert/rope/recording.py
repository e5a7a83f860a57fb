"""A recipe as JSON."""

from __future__ import annotations

from typing import Any

from .recipe import Rope


def recipe_of(rope: Rope) -> dict[str, Any]:
    """A recipe as JSON."""
    fields: dict[str, Any] = {
        "method": rope.method,
        "rope_theta": rope.theta,
        "rotary_dim": rope.rotary_dim,
        "original_context": rope.original_context,
        "params": dict(rope.params),
    }
    fields |= {"still": rope.still} if rope.still else {}
    return fields | ({"inner": recipe_of(rope.inner)} if rope.inner else {})
