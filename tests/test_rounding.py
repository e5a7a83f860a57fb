"""What "exactly" means: the same numbers once stored as float32, however far the file stretches, and nothing more."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel

from yarn_convert import dialects, families, readers
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.intention import check_recipe, intention_of
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import Inexpressible
from yarn_convert.options import ConvertOptions, Recipe, RepairOptions
from yarn_convert.readers.judge import judge
from yarn_convert.rope import RTOL, UNIT, Rope, geometric, rounding_of, same, same_at_all_lengths, table, temperature

THETAS, LENGTHS, DIMS, SCALES = (
    (1e4, 5e5, 1e6, 12345.678),
    (2048, 4096, 8192, 40960),
    (64, 96, 128, 256),
    (2.0, 3.2, 16.0, 32.0, 64.0, 128.0),
)
GRID = list(itertools.product(THETAS, LENGTHS, DIMS, SCALES))
QWEN2 = next(f for f in families.FAMILIES if f.gguf_arch == "qwen2")
f32 = np.float32


def keys(rope: Rope, context: int) -> dict[str, Any]:
    """A GGUF's keys, numbers as float32: what `gguf_metadata` writes and llama.cpp gets back."""
    shape = {"qwen2.embedding_length": 2 * rope.rotary_dim, "qwen2.attention.head_count": 2}
    written = {k: v.data for k, v in dialects.gguf_metadata(rope, context, QWEN2).items() if v is not None}
    stored = {k: float(f32(v)) if isinstance(v, float) else v for k, v in written.items()}
    return {"general.architecture": "qwen2", **shape, **stored}


def why(found: dict[str, Any], rope: Rope, context: int) -> str:
    return judge(lambda: readers.read_gguf(found), table(rope), context).why


def test_right_metadata_is_exact_at_every_factor() -> None:
    for theta, length, dim, s in GRID:
        context = round(length * s)
        for rope in (
            Rope("yarn", theta, dim, length, {"factor": s}),
            Rope("yarn", theta, dim, length, {"factor": s, "attention_factor": 1.3}),
            Rope("ntk-by-parts", theta, dim, length, {"factor": s}),
            Rope("linear", theta, dim, length, {"factor": s}),
            Rope("ntk-aware", theta, dim, length, {"factor": s}),
        ):
            assert why(keys(rope, context), rope, context) == "", (rope, context)


def after(x: float, steps: int) -> float:
    """The float32 so many steps above `x`."""
    for _ in range(steps):
        x = float(np.nextafter(f32(x), f32(np.inf)))
    return x


@pytest.mark.parametrize("s", SCALES)
def test_a_wrong_number_is_not_exact_at_any_factor(s: float) -> None:
    rope = Rope("yarn", 1e4, 128, 4096, {"factor": s})
    context = round(4096 * s)
    right = keys(rope, context)
    for key, value in {
        "rope.scaling.factor": after(s, 2),
        "rope.freq_base": after(1e4, 2),
        "rope.scaling.original_context_length": 4096 + 512,  # the ramp ends a pair later
        "rope.scaling.attn_factor": after(1.0, 2),
    }.items():
        found = why({**right, f"qwen2.{key}": value}, rope, context)
        assert found.startswith("multiplier" if "attn" in key else "frequencies off by"), (key, found)


@pytest.mark.parametrize("params", [{"beta_fast": 31.9}, {"beta_slow": 1.01}, {"beta_fast": 33.0, "beta_slow": 1.1}])
@pytest.mark.parametrize("s", SCALES)
def test_another_beta_is_not_exact_where_it_moves_the_ramp(s: float, params: dict[str, float]) -> None:
    exact = Rope("yarn", 5e5, 128, 8192, {"factor": s, "truncate": False})
    assert not same(table(exact), table(exact.with_params(**params)))
    factors = geometric(5e5, 128) / table(exact).inv_freq
    stored = tuple(map(float, factors.astype(np.float32)))
    carried = Rope("explicit", 5e5, 128, 8192, {"factors": stored, "attention_factor": temperature(s)})
    assert same(table(exact), table(carried))
    assert not same(table(exact.with_params(**params)), table(carried), rounding_of(exact))


def ggml(theta: float, original: int, dim: int, s: float) -> np.ndarray:
    """ggml/src/ggml-cpu/ops.cpp, rope_yarn: the angles at position 1, of exact frequencies, every other step in float32."""
    scale, exact = f32(1) / f32(s), geometric(float(f32(theta)), dim).astype(np.float32)

    def end(turns: float) -> Any:
        return f32(dim) * f32(math.log(float(f32(original) / (f32(turns) * f32(2) * f32(math.pi))))) / (f32(2) * f32(math.log(f32(theta))))

    low, high = max(f32(0), np.floor(end(32))), min(f32(dim - 1), np.ceil(end(1)))
    y = (np.arange(dim // 2, dtype=np.float32) - low) / max(f32(0.001), high - low)
    mix = f32(1) - np.minimum(f32(1), np.maximum(f32(0), y))
    return np.asarray(scale * exact * (f32(1) - mix) + exact * mix)


def test_the_reading_is_what_ggml_computes_but_for_the_rounding_of_its_steps() -> None:
    """Of the ramp's mix by a unit and a half, which counts s times where a pair is all but interpolated."""
    worst = 0.0
    for theta, length, dim, s in GRID:
        rope = Rope("yarn", theta, dim, length, {"factor": s})
        reading = readers.read_gguf(keys(rope, round(length * s)))
        omega = geometric(theta, dim)
        bound = UNIT * (5 + 1.5 * omega / reading.inv_freq)
        error = abs(ggml(theta, length, dim, s) / reading.inv_freq - 1)
        assert (error <= bound).all(), (theta, length, dim, s)
        worst = max(worst, float(error.max()))
    assert worst > RTOL  # so that it cannot be a tolerance between files


def llama_cpp_factors(factor: float, low: float, high: float, length: int, theta: float, dim: int) -> np.ndarray:
    """conversion/llama.py, generate_extra_tensors: the factors of llama3, in torch's float32."""
    torch = pytest.importorskip("torch")
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    found = []
    for freq in freqs:
        wavelength = 2 * math.pi / freq
        smooth = (length / wavelength - low) / (high - low)
        found.append(1 if wavelength < length / high else factor if wavelength > length / low else 1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found, dtype=torch.float32).double().numpy()


@pytest.mark.parametrize("low_high", [(1.0, 4.0), (1.0, 1.5), (2.0, 8.0)])
@pytest.mark.parametrize("factor", [8.0, 16.0, 32.0, 100.0])
def test_llama3s_factors_of_llama_cpps_converter_are_exact_and_no_others(factor: float, low_high: tuple[float, float]) -> None:
    low, high = low_high
    for theta, dim in itertools.product((1e4, 5e5), (64, 96, 128)):
        params = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        rope = Rope("llama3", theta, dim, 8192, params)
        made = llama_cpp_factors(factor, low, high, 8192, theta, dim)
        carried = Rope("explicit", theta, dim, 8192, {"factors": tuple(made)})
        assert same_at_all_lengths(carried, rope, rounding_of(rope)), (theta, dim)
        for wrong in (
            rope.with_params(low_freq_factor=low * 1.001),
            replace(rope, original_context=8191),
            rope.with_params(factor=after(factor, 40)),
        ):
            assert not same(table(carried), table(wrong), rounding_of(wrong)), (theta, dim, wrong)


@pytest.mark.parametrize("s", [16.0, 32.0, 64.0])
@pytest.mark.parametrize("method", ["yarn", "ntk-by-parts"])
def test_a_large_factor_takes_metadata_and_leaves_nothing_to_do(make_model: MakeModel, tmp_path: Path, s: float, method: str) -> None:
    """As Yarn-Llama-2 has it."""
    model = make_model(config={"max_position_embeddings": 4096}, heads=2, kv_heads=1, head_dim=128, layers=1)
    made = convert(str(model), Recipe(scale=s, method=method), out="gguf", output=tmp_path / "a.gguf").to_dict()
    assert made["carrier"] == "metadata"
    again = prepare(str(tmp_path / "a.gguf"), ConvertOptions(Recipe(method="none"), output=tmp_path / "b.gguf")).plan
    assert again.carrier == "metadata"
    assert plan_repair(str(tmp_path / "a.gguf"), RepairOptions()).changes == ()
    c = open_checkpoint(resolve(str(tmp_path / "a.gguf")))
    assert check_recipe(c, intention_of(c, None, None, None))["verdict"] == "passed"


def test_metadata_whose_ramp_llama_cpp_rounds_to_another_pair_is_refused() -> None:
    """In float32 the slow end of L = 17,206 is 55.0, in float64 55.0000008."""
    rope = Rope("yarn", 1e4, 128, 17206, {"factor": 32.0})
    assert "off by" in why(keys(rope, 17206 * 32), rope, 17206 * 32)
    with pytest.raises(Inexpressible):
        dialects.gguf_tensors(rope, 17206 * 32, QWEN2)
