"""The temperature of the position: attention logits times 1 + β·ln(1 + ⌊position/L⌋), of models that have it, with another β.

transformers' Ministral 3 multiplies the query by it (models/ministral3/modeling_ministral3.py, get_llama_4_attn_scale, by
`llama_4_scaling_beta` of the RoPE object), and llama.cpp's mistral3 (src/llama-graph.cpp, llm_graph_input_attn_temp, by
`attention.temperature_scale`), each from the same L. β is no part of a table, so an extension does not change it: a checkpoint that says
another is what is converted then.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import Manifest, RopeRecord, read_manifest
from ..dialects.config_json import BETA
from ..errors import FormatError, Unsupported, UsageError
from ..families.schema import ROPE_OBJECTS, rope_says
from ..formats.gguf_file import f32
from ..options import Recipe

LARGEST = 10.0  # at which logits are 24 times as large after 10·L
ALIKE = 1e-6  # of a float32 and a number of a config.json


def tempered(c: Checkpoint, asked: float | None) -> Checkpoint:
    """The checkpoint with the β that is asked for; itself where none is. Unsupported for a model that has no such temperature, or one that
    its readers count otherwise; UsageError out of range."""
    if asked is None:
        return c
    if not 0 <= asked <= LARGEST:
        raise UsageError(f"--position-temperature is from 0 to {LARGEST:g}, not {asked:g}", "0.1 is Ministral 3's, 0 is none")
    if BETA not in c.family.hparams:
        why = f"{c.family.name} has no temperature of the position that both formats say"
        raise Unsupported(why, "leave out --position-temperature; Llama 4 has attn_scale and floor_scale for it, of layers without RoPE")
    c = replace(c, hparams={**c.hparams, BETA: asked})
    if c.gguf:
        return replace(c, config={**c.config, c.family.gguf_key(BETA)[0]: f32(asked)})
    if not any(isinstance(c.written.get(k), dict) for k in ROPE_OBJECTS):
        raise Unsupported("config.json has no RoPE object for --position-temperature to stand in", "write rope_parameters into it")
    return replace(c, config=_said(c.config, asked), written=_said(c.written, asked))


def _said(config: Any, beta: float) -> dict[str, Any]:
    return {k: {**v, BETA: beta} if k in ROPE_OBJECTS and isinstance(v, dict) and v else v for k, v in config.items()}


def tempering_note(asked: Recipe) -> list[str]:
    """What a conversion says of it."""
    beta = asked.position_temperature
    return [] if beta is None else [f"{BETA} is {beta:g}: logits are multiplied by 1 + {beta:g}·ln(1 + ⌊position/L⌋)"]


def of_another(c: Checkpoint, asked: float | None) -> str:
    """Why a checkpoint's β is not the one that is asked for; "" if it is, or none is asked for."""
    own = c.hparams.get(BETA) or 0.0
    return "" if asked is None or math.isclose(own, asked, rel_tol=ALIKE) else f"its {BETA} is {own:g}, and {asked:g} is meant"


def unusual(c: Checkpoint) -> str:
    """That a checkpoint's β is another than its model type's own, and nothing on record says that it is meant; "" if it is not so. A file
    alone shows no more: which β a release has is on record nowhere but in its base."""
    usual = c.family.hf.rope.get(BETA)
    own = c.hparams.get(BETA) if c.gguf else next(iter(rope_says(c.config, BETA)), None)
    if usual is None or own is None or not c.family.hf.floor or math.isclose(own, usual, rel_tol=ALIKE):
        return ""
    with contextlib.suppress(FormatError):
        recorded = recorded_beta(c, read_manifest(c.source.path))
        if recorded is not None and math.isclose(own, recorded, rel_tol=ALIKE):
            return ""
    why = "only its base shows whether that is meant (validate --base)"
    return f"{BETA} is {own:g}, where {c.family.model_type} has {usual:g} of its own: {why}"


def in_record(record: RopeRecord) -> float | None:
    """The β that was asked for, where a record says one."""
    return record.position_temperature if isinstance(record.position_temperature, float) else None


def recorded_beta(c: Checkpoint, manifest: Manifest | None) -> float | None:
    """The β that was asked for when a model was made, by its manifest, or the recipe in a GGUF; None where none was."""
    record = manifest.recipe if manifest else c.recorded
    return in_record(record) if record else None


def beside_recipe(c: Checkpoint, asked: Recipe) -> dict[str, float]:
    """What a record says of β: what is asked for, or was for the base."""
    beta = asked.position_temperature
    with contextlib.suppress(FormatError):
        beta = recorded_beta(c, read_manifest(c.source.path)) if beta is None else beta
    return {} if beta is None else {"position_temperature": float(beta)}
