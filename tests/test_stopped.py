"""What is extended over cope, whose slowest pair stands still: composed, by formulas of its own, in both formats and without a manifest."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.manifest import MANIFEST
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert
from yarn_convert.conversion.extension import extend
from yarn_convert.errors import Unsupported
from yarn_convert.options import Recipe
from yarn_convert.rope import table
from yarn_convert.validation.judging import wrong_tables

THETA, D, N, S = 10000.0, 16, 4, 4.0
SERVED = 2 * CONTEXT  # by cope
FADED = THETA ** (-np.arange(8) / 8) * [1, 1, 1, 1, 1, 0.75, 0.25, 0]  # (1 + cos(π·k/3))/2


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(str(path)))


def ramped(omega: np.ndarray) -> np.ndarray:
    """YaRN's ramp by index among the pairs that turn: their turns are interpolated logarithmically."""
    turning = omega[omega > 0]
    low, high = (np.interp(-math.log(2 * math.pi * b / SERVED), -np.log(turning), np.arange(len(turning))) for b in (4.0, 1.0))
    keep = 1 - np.clip((np.arange(len(omega)) - math.floor(low)) / (math.ceil(high) - math.floor(low)), 0, 1)
    return np.asarray(omega * keep + omega / S * (1 - keep))


EXPECTED = {
    "linear": FADED / S,
    "ntk-aware": FADED * S ** (-np.arange(8) * 2 / (D - 2)),
    "abf": FADED * (THETA / 1e6) ** (np.arange(8) / 8),
    "ntk-by-parts": ramped(FADED),
    "yarn": ramped(FADED),
}
OPTIONS = {"abf": {"theta": 1e6}, "ntk-by-parts": {"beta_fast": 4.0}, "yarn": {"beta_fast": 4.0}}


@pytest.fixture(params=["safetensors", "gguf"])
def clipped(request: pytest.FixtureRequest, make_model: MakeModel, tmp_path: Path) -> Path:
    out = tmp_path / ("cope.gguf" if request.param == "gguf" else "cope")
    return convert(str(make_model()), Recipe(scale=2, method="cope", clip_pairs=N), out=request.param, output=out).output


@pytest.mark.parametrize("method", EXPECTED)
def test_another_method_is_applied_to_what_cope_left(clipped: Path, method: str) -> None:
    e = extend(opened(clipped), Recipe(scale=S, method=method, **OPTIONS.get(method, {})))
    assert (e.context, e.rope.original_context, e.rope.resting) == (int(S) * SERVED, SERVED, 1)
    assert table(e.rope).inv_freq == pytest.approx(EXPECTED[method], rel=1e-6)
    assert any("cope scaling stays" in note for note in e.notes)
    assert np.flatnonzero(wrong_tables(e.rope, 4 * SERVED)["every pair turns"].inv_freq == 0).size == 0


def test_its_output_says_so_with_a_manifest_and_without(clipped: Path, tmp_path: Path) -> None:
    out = convert(str(clipped), Recipe(scale=S, beta_fast=4.0), output=tmp_path / f"out{clipped.suffix}").output
    (m,) = {table(opened(out).rope).multiplier}
    assert m == pytest.approx(0.1 * math.log(S) + 1) and table(opened(out).rope).inv_freq == pytest.approx(EXPECTED["yarn"], rel=1e-6)
    if clipped.suffix:
        return
    for folder in (clipped, out):
        (folder / MANIFEST).unlink()
    assert opened(out).rope.method == "explicit" and table(opened(out).rope).inv_freq == pytest.approx(EXPECTED["yarn"], rel=1e-6)
    e = extend(opened(clipped), Recipe(scale=S, beta_fast=4.0))
    assert table(e.rope).inv_freq == pytest.approx(EXPECTED["yarn"], rel=1e-6), "whoever wrote the file"


def test_what_cannot_be_said_is_refused(clipped: Path, make_model: MakeModel) -> None:
    with pytest.raises(Unsupported, match="stand still already"):
        extend(opened(clipped), Recipe(scale=S, method="cope"))
    with pytest.raises(Unsupported, match="the same pairs do so in both lists"):
        extend(opened(make_model("plain")), Recipe(scale=S, method="cope", short="base"))
    both = extend(opened(clipped), Recipe(scale=S, method="linear", short="base")).rope
    assert table(both, 1).inv_freq == pytest.approx(FADED, rel=1e-6) and table(both).inv_freq == pytest.approx(FADED / S, rel=1e-6)
