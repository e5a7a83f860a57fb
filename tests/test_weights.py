"""Weights against their base: what llama.cpp's quantizer makes of them passes, and what no sound rounding does fails by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.weights import PERMUTED, REORDERED, ROUNDED_BY_GGUF, SOUND, TRANSPOSED, check_weights, same_weights
from yarn_convert.conversion import convert
from yarn_convert.formats import dtypes, quantizer
from yarn_convert.formats.layout import Part
from yarn_convert.formats.tensors import Tensor, in_memory
from yarn_convert.options import Recipe

pytest.importorskip("llama_cpp")
F32 = np.ndarray
QUANTIZED = sorted(SOUND.keys() - {"F32", "F64", "F16", "BF16", "Q8_1"})
TERNARY = {"TQ1_0", "TQ2_0"}  # for weights of three values
COARSE = {"IQ1_S", "IQ1_M"}


def normal(rows: int = 96, columns: int = 512, tails: float = 0.0) -> F32:
    rng = np.random.default_rng(3)
    return (rng.standard_t(tails, (rows, columns)) if tails else rng.standard_normal((rows, columns))).astype(np.float32)


def quantized(x: F32, dtype: str, uneven: float = 0.0) -> F32:
    """`x` rounded to the type; `uneven`: spread of the logarithms of an importance matrix."""
    importance = np.exp(uneven * np.random.default_rng(4).standard_normal(x.shape[1])).astype(np.float32)
    return dtypes.to_f32(quantizer.chunk(x, dtype, importance), dtype).reshape(x.shape)


def part(x: F32) -> Part:
    return Part(x.shape, (in_memory("w", x, "F32"),))


def verdict(q: F32, x: F32, dtype: str) -> str:
    """What is said of values `q` that claim to be `x` in that type. Held in F32 under the type's name: only bounds are asked."""
    from yarn_convert.compute import weights

    held, base = in_memory("w", np.ascontiguousarray(q), "F32"), part(x)
    return weights._apart(held, base).wrong(weights.sound(dtype, "F32"), dtype)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_one_that_is_added_and_taken_off_again_is_rounded_so_and_no_otherwise(dtype: str) -> None:
    """Gemma's norms, on their way through a GGUF: the model adds the one, and computes the same of what comes back."""
    kept = dtypes.from_f32(np.random.default_rng(1).standard_normal(512).astype(np.float32) * np.float32(1e-5), dtype)
    base = Tensor("w", dtype, (512,), kept.nbytes, data=kept)
    w = dtypes.to_f32(kept.view(np.uint8), dtype)
    back = (w + np.float32(1)) - np.float32(1)
    assert (back != w).any() and np.array_equal(back + np.float32(1), w + np.float32(1))
    theirs = Part(w.shape, (base,))
    assert same_weights(in_memory("w", back, "F32"), theirs, "x + 1") == (ROUNDED_BY_GGUF, "")
    assert same_weights(in_memory("w", back, "F32"), theirs)[1]
    for wrong in (np.nextafter(back, np.float32(1)), back + np.float32(1), np.roll(back, 1)):
        assert same_weights(in_memory("w", wrong, "F32"), theirs, "x + 1")[1]


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize(("tails", "uneven"), [(0, 0), (4, 0), (0, 1.0)], ids=["normal", "heavy tails", "uneven importance"])
def test_what_the_quantizer_makes_is_sound(dtype: str, tails: float, uneven: float) -> None:
    x = normal(tails=tails)
    assert verdict(quantized(x, dtype, uneven), x, dtype) == ""


@pytest.mark.parametrize("dtype", sorted(set(QUANTIZED) - TERNARY))
def test_error_bounds_are_not_idle(dtype: str) -> None:
    x = normal()
    error = float(((quantized(x, dtype) - x) ** 2).sum() / (x**2).sum())
    assert error <= SOUND[dtype].error <= 4 * error


DAMAGE: dict[str, tuple[Callable[[F32], F32], str]] = {
    "a third of the size": (lambda q: q * 0.33, "times the base's"),
    "nine tenths": (lambda q: q * 0.9, "times the base's"),
    "a tenth more": (lambda q: q * 1.13, "times the base's"),
    "the other sign": (lambda q: -q, "-"),
    "nothing": (lambda q: q * 0, "of its square"),
    "shifted": (lambda q: q + 0.06, "its mean is off"),
    "rows reversed": (lambda q: q[::-1], ""),
    "one row less than half": (lambda q: _row(q, 0.45), ""),
    "one row turned": (lambda q: _row(q, -1.0), ""),
    "a NaN": (lambda q: _row(q, np.nan), "NaN"),
}


def _row(q: F32, by: float) -> F32:
    q = q.copy()
    q[41] *= np.float32(by)
    return q


@pytest.mark.parametrize("dtype", ["F16", "BF16", *sorted(set(QUANTIZED) - TERNARY)])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_no_sound_rounding_does_fails(dtype: str, damage: str) -> None:
    if dtype in COARSE and damage in ("nine tenths", "a tenth more", "one row less than half", "shifted"):
        pytest.skip("one bit a weight errs by more than that")
    x = normal()
    q = quantized(x, dtype) if dtype in QUANTIZED else dtypes.to_f32(dtypes.from_f32(x.reshape(-1), dtype), dtype).reshape(x.shape)
    spoil, says = DAMAGE[damage]
    why = verdict(spoil(q), x, dtype)
    assert why and says in why


def stored(x: F32, dtype: str, name: str = "w") -> Tensor:
    """`x` in memory in a quantized type."""
    data = quantizer.chunk(x, dtype, np.ones(x.shape[1], np.float32))
    return replace(in_memory(name, data, dtype), shape=x.shape)


@pytest.mark.parametrize(("move", "says"), [(lambda x: x[::-1], REORDERED), (lambda x: x.T, TRANSPOSED), (lambda x: x[5:] + 1, "")])
def test_rows_that_lie_elsewhere_are_told(move: Callable[[F32], F32], says: str) -> None:
    x = normal(256, 256)
    moved = np.resize(np.ascontiguousarray(move(x)), x.shape)
    how, why = same_weights(stored(moved, "Q4_K"), part(x))
    assert how == "" and why and (why == says if says else why not in (REORDERED, TRANSPOSED, PERMUTED))


def test_a_row_too_small_for_the_type_is_no_fault() -> None:
    """Rows of an embedding that was never trained underflow in the float16 of a scale."""
    x = normal()
    x[3] *= np.float32(1e-8)
    q = quantized(x, "Q4_0")
    assert not q[3].any()
    assert verdict(q, x, "Q4_0") == ""


@pytest.mark.parametrize(("outtype", "factor"), [("q2_k", 0.15), ("q4_k_s", -1.0), ("q8_0", 0.97), ("q5_1", 1.1)])
def test_a_file_with_one_tensor_of_another_size_fails(make_model: MakeModel, tmp_path: Path, outtype: str, factor: float) -> None:
    """Its blocks' float16 scales are multiplied, as a converter that scales twice would."""
    import gguf

    model = make_model(heads=8, kv_heads=4, head_dim=32, ff=256)
    out = tmp_path / "out.gguf"
    convert(str(model), Recipe(scale=4.0), out="gguf", outtype=outtype, output=out)
    base = open_checkpoint(resolve(str(model)))
    assert check_weights(open_checkpoint(resolve(str(out))), base, None, lambda n: None)["verdict"] == "passed"
    reader = gguf.GGUFReader(out, "r+")
    (t,) = (t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    blocks = t.data.reshape(-1, gguf.GGML_QUANT_SIZES[t.tensor_type][1])
    at = {"Q2_K": (80, 84), "Q4_K": (0, 4), "Q8_0": (0, 2), "Q5_1": (0, 4)}[t.tensor_type.name]  # d, and m or dmin after it
    scales = np.ascontiguousarray(blocks[:, slice(*at)]).view(np.float16)
    blocks[:, slice(*at)] = (scales.astype(np.float32) * factor).astype(np.float16).view(np.uint8)
    reader.data.flush()
    result = check_weights(open_checkpoint(resolve(str(out))), base, None, lambda n: None)
    assert (result["verdict"], result["different"]) == ("failed", ["blk.1.ffn_up.weight"])
    assert "times the base's" in result["why"]
