"""config.json as every family means it: absent keys filled in, own names beside the standard ones, sizes derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .schema import Family

Config = Mapping[str, Any]


def normalized(family: Family, config: Config) -> dict[str, Any]:
    """`config` with the family's defaults, with the standard name of each key that the family calls otherwise, and with
    what its rule derives. The keys of the file itself stay as they are."""
    full = {**family.defaults, **config}
    for standard, own in family.renamed.items():
        if full.get(standard) is None and full.get(own) is not None:
            full[standard] = full[own]
    return full | RULES[family.derived](full) if family.derived else full


RULES: Mapping[str, Callable[[Config], dict[str, Any]]] = {}
