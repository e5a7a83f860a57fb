"""Lists of factors as others write them, as recipes: LongRoPE's files, and the config.json of models that have such lists.

microsoft/LongRoPE saves rescale factors with `numpy.savetxt`, one a line (evolution/search.py), and reads, besides, a table of them with
commas or blanks between and a row for each layer (rope/__init__.py); its log is JSON with the factors of every individual, each with its
perplexity (evolution/algorithms/genetic_base.py). Its temperature is √(1 + ln s/ln L) (`magnitude_scaling_policy` "su"), as that of
transformers' longrope. LongRoPE2's lists have the same forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..checkpoint.config import checked_config, language_model
from ..dialects import hf_read, number, positive_int
from ..errors import FormatError
from ..families.schema import ROPE_OBJECTS
from ..formats.yaml_text import NUMBER
from ..options import Recipe
from ..rope import METHODS, table
from .extension import asked_by

LISTS = next(row.lists for row in METHODS.values() if row.switches)
PLACES = ("partial_rotary_factor", "max_position_embeddings")  # in a RoPE object: the lists say how many pairs turn
LARGEST = 1e300
FORMS = "LongRoPE's are D/2 numbers, one a line, or the same row for every layer"


def of_table(text: str, name: str) -> Recipe | None:
    """The recipe of a text of numbers alone, with commas, blanks or new lines between; None where it is something else."""
    rows = [re.split(r"[\s,;]+", line.strip(" \t,;")) for line in text.splitlines() if line.strip(" \t,;") and not line.startswith("#")]
    if not rows or not all(NUMBER.fullmatch(word) for row in rows for word in row):
        return None
    return of_rows([[float(word) for word in row] for row in rows], name)


def of_rows(rows: list[list[float]], name: str) -> Recipe:
    """Of the rows of a table: one a pair, or one a layer. FormatError where the layers differ, which no file of a model can say."""
    if all(len(row) == 1 for row in rows):
        rows = [[row[0] for row in rows]]
    other = next((i for i, row in enumerate(rows) if row != rows[0]), None)
    if other is not None:
        raise FormatError(f"{name}: row {other + 1} is not as the first: layers have one list in common in every runtime", FORMS)
    return Recipe(method="longrope", long_factor=tuple(rows[0]))


def of_json(value: Any, name: str) -> Recipe | None:
    """The recipe of a list of numbers, of LongRoPE's log, or of a config.json or RoPE object that has such lists; None for others."""
    if isinstance(value, list):
        rows = value if value and all(isinstance(x, list) for x in value) else [value]
        return of_rows([[_number(x, name) for x in row] for row in rows], name)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("population"), list):
        return of_rows([_best(value["population"], name)], name)
    if value.get("long_factor") is not None and "method" not in value:  # the object alone
        context = value.get("max_position_embeddings")
        return _of_config({"rope_scaling": value} | ({"max_position_embeddings": context} if context else {}), name)
    return _of_config(language_model(value), name) if any(_lists(value, k) for k in ROPE_OBJECTS) else None


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not _finite(value):
        raise FormatError(f"{name}: {repr(value)[:40]} is no finite number", FORMS)
    return float(value)


def _best(population: list[Any], name: str) -> list[float]:
    """The factors of the individual with the least perplexity."""
    found = [x for x in population if isinstance(x, list) and len(x) == 2 and isinstance(x[0], list) and _finite(x[1])]
    if not found:
        raise FormatError(f"{name}: its population has no factors with a perplexity", FORMS)
    return [_number(x, name) for x in min(found, key=lambda x: float(x[1]))[0]]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _lists(config: Mapping[str, Any], key: str) -> bool:
    inner = language_model(config).get(key) if isinstance(config, dict) else None
    return isinstance(inner, dict) and inner.get(LISTS[-1]) is not None


def _of_config(config: Mapping[str, Any], name: str) -> Recipe:
    """Both lists where they differ, and the temperature that transformers makes of the file, all as `dialects` read them."""
    config = checked_config(dict(config))
    given = next(x for k in ROPE_OBJECTS if (x := config.get(k)) and x.get(LISTS[-1]) is not None)
    original = given.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    longest, factor = config.get("max_position_embeddings"), number(given.get("factor") or 0, "factor")
    if longest is None and original and factor:
        longest = round(positive_int(original, "original_max_position_embeddings") * factor)
    if not original or not longest:
        what = "max_position_embeddings" if original else "original_max_position_embeddings"
        raise FormatError(f"{name} does not say {what}: how far its lists lead is not known", "the config.json of the whole model says it")
    theta = given.get("rope_theta") or config.get("rope_theta")
    kept = {k: {key: v for key, v in config[k].items() if key not in PLACES} for k in ROPE_OBJECTS if config.get(k)}
    own = {"head_dim": 2 * len(given[LISTS[-1]]), "max_position_embeddings": longest, "original_max_position_embeddings": original}
    rope = hf_read(kept | own | ({"rope_theta": theta} if theta else {}))
    asked = {"attention_factor": table(rope).multiplier, "theta": theta, **asked_by(rope)}
    return Recipe(method=rope.method, context=longest, original_context=original, **asked)
