"""The recipe that is asked for, which convert, validate, repair, evaluate and finetune have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..asking import Group, Help
from .reading import TOKENS, tokens

Ramp = Literal["index", "paper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A method and its parameters, as a user asks for them: what `extend` makes a RoPE of, given a base. Fields without a Help are lists of
    D/2 numbers, one a pair, that divide the base's frequencies; they come from a file, `factors` for explicit, the others for longrope."""

    scale: Annotated[float | None, Help("s = L'/L, on the original pretraining context.")] = None
    context: Annotated[
        int | None, Help("L', the extended context in tokens, as 32768 or 32k, instead of --scale.", read=tokens, metavar=TOKENS)
    ] = None
    method: Annotated[str, Help("One of 'yarn-convert methods'.", read=str.lower, metavar="<str>")] = "yarn"
    short: Annotated[
        Literal["base"] | None, Help("base: texts within the base's own length keep its table. [default: one table for all lengths]")
    ] = None
    original_context: Annotated[int | None, Help("L, where the model does not say it.", read=tokens, metavar=TOKENS), Group("Recipe")] = (
        None
    )
    beta_fast: Annotated[float | None, Help("Turns over L above which a pair is kept. [default: 32]")] = None
    beta_slow: Annotated[float | None, Help("Turns below which it is interpolated. [default: 1]")] = None
    attention_factor: Annotated[float | None, Help("Multiplier of cos and sin. [default: 0.1·ln s + 1]")] = None
    ramp: Annotated[Literal["index", "paper"], Help("index, as every runtime computes it, or paper (Eq. 18; carried as tensors).")] = (
        "index"
    )
    truncate: Annotated[bool, Help("Round the ramp's ends to whole pairs.", names=("--truncate/--no-truncate",))] = True
    theta: Annotated[float | None, Help("The rope_theta of abf, and of cope where it is raised too.")] = None
    clip_pairs: Annotated[
        int | None, Help("Pairs, the slowest, that cope clips. [default: 20 of every 29 that turn less than once over L]", least=2)
    ] = None
    position_temperature: Annotated[
        float | None, Help("β of 1 + β·ln(1 + ⌊position/L⌋) on the logits, of models that have it (Ministral 3). [default: the base's]")
    ] = None
    factors: tuple[float, ...] | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
