"""Files that are not in float32: recipe and wiring strictly on an excerpt in float32, the file itself against its types' noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, split_options
from family_models import make

from yarn_convert import runtimes
from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import Reference
from yarn_convert.conversion import convert
from yarn_convert.formats import dtypes, quantizer
from yarn_convert.hearing import hearing
from yarn_convert.options import ValidateOptions
from yarn_convert.rope import table
from yarn_convert.validation import check, excerpt, lines, study
from yarn_convert.validation.excerpt import layers_of, write_excerpt
from yarn_convert.validation.judging import NOISE
from yarn_convert.validation.report import html_report
from yarn_convert.validation.result import validated
from yarn_convert.validation.rounding import rounded, rounding, rounds

torch = pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
TEXT = ValidateOptions(tokens=4 * CONTEXT, twin=False)
WIDE = {"heads": 8, "kv_heads": 4, "head_dim": 32, "ff": 256}  # rows of 256, as K-quants need them


def written(model: Path, out: Path, outtype: str, **options: Any) -> Path:
    convert(str(model), **split_options(**{"scale": 4.0, "out": "gguf", "outtype": outtype, "output": out, **options}))
    return out


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(str(path)))


def by_kind(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {s["kind"]: s for s in result["studies"]}


def test_inputs_are_rounded_as_ggml_rounds_them() -> None:
    x = np.random.default_rng(0).standard_t(3, (16, 512)).astype(np.float32)
    x[3, :32] = 0
    theirs = dtypes.to_f32(quantizer.chunk(x, "Q8_0"), "Q8_0").reshape(x.shape)
    np.testing.assert_allclose(rounded(torch.from_numpy(x), "Q8_0").numpy(), theirs, rtol=1e-6, atol=0)
    step = abs(x.reshape(-1, 256)).max(1, keepdims=True) / 127
    error = abs(rounded(torch.from_numpy(x), "Q8_K").numpy() - x).reshape(-1, 256)
    assert (error <= step / 2 * 1.001).all() and error.max() > step.max() / 3
    np.testing.assert_array_equal(rounded(torch.from_numpy(x), "F16").numpy(), x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("outtype", "kinds"),
    [("f32", set()), ("f16", {"F16"}), ("bf16", {"BF16"}), ("q5_1", {"Q8_0"}), ("q4_k_m", {"Q8_K"}), ("iq4_nl", {"Q8_0", "Q8_K"})],
)
def test_what_is_rounded_follows_from_the_types(make_model: MakeModel, tmp_path: Path, outtype: str, kinds: set[str]) -> None:
    assert set(rounds(opened(written(make_model(**WIDE), tmp_path / "out.gguf", outtype))).values()) <= kinds


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0", "q5_1", "q6_k", "q3_k_s", "q2_k", "iq4_nl"])
def test_a_sound_file_is_as_far_as_its_noise_and_its_excerpt_is_exact(make_model: MakeModel, tmp_path: Path, outtype: str) -> None:
    said: list[tuple[str, float]] = []
    out = written(make_model(**WIDE, layers=3), tmp_path / "out.gguf", outtype)
    with hearing(lambda call, what, fraction, more: said.append((what, fraction))):
        result = check(str(out), TEXT)
    for kind in ("noise of its types, real", "wrong recipes, excerpt", "llama.cpp, excerpt"):
        assert len({f for what, f in said if what == kind}) > 1, "it was foreseen"
    assert (result["verdict"], result["reasons"]) == ("passed", [])
    real, small = by_kind(result)["real"], by_kind(result)["excerpt"]
    noise = real["tolerance"]["nmse"] / NOISE
    worst = max(w["nmse"] for w in real["runtimes"][0]["windows"])
    assert noise / 5 < worst < 2.5 * noise
    assert max(w["nmse"] for w in small["runtimes"][0]["windows"]) < 1e-7
    assert (real["wrong_recipes"], all(w["told_apart"] for w in small["wrong_recipes"])) == ([], True)
    assert any("of its layers in float32" in line for line in lines(validated(result))) and "first layers in float32" in html_report(
        result, ""
    )


@pytest.mark.parametrize(
    ("key", "value", "layer"), [("attn_factor", 1.3, "multiplier"), ("factor", 8.0, "table"), ("type", "linear", "table")]
)
def test_a_wrong_recipe_in_a_coarse_file_is_told_by_its_excerpt(
    make_model: MakeModel, tmp_path: Path, key: str, value: Any, layer: str
) -> None:
    from test_validate import rewritten

    from yarn_convert.formats.gguf_file import Value

    out = written(make_model(**WIDE), tmp_path / "out.gguf", "q2_k")
    rewritten(out, {f"llama.rope.scaling.{key}": Value("str" if isinstance(value, str) else "f32", value)})
    result = check(str(out), TEXT)
    assert result["verdict"] == "failed"
    assert by_kind(result)["excerpt"]["runtimes"][0]["layer"] == layer


def test_an_excerpt_computes_what_the_file_does(make_model: MakeModel, tmp_path: Path) -> None:
    c, ids = opened(written(make_model(**WIDE), tmp_path / "out.gguf", "q4_k_s")), np.arange(7, 200, 3)
    small, own = write_excerpt(c, ids, tmp_path / "small.gguf")
    assert {t.dtype for t in small.tensors.values()} == {"F32"}
    assert own.tolist() == list(range(len(ids)))
    whole, part = (Reference(x).logits(table(c.rope), i, [(0, len(ids))]) for x, i in ((c, ids), (small, own)))
    np.testing.assert_allclose(part, whole[:, ids], atol=1e-5)


def test_an_excerpt_is_bounded(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose first layer alone is too large is judged without one, and then its coarse types have to tell the recipes apart."""
    out = written(make_model(**WIDE, layers=5), tmp_path / "out.gguf", "q8_0")
    c = opened(out)
    layer = sum(4 * t.elements for name, t in c.tensors.items() if name.startswith("blk.0."))
    assert layers_of(c) == 5
    monkeypatch.setattr(excerpt, "BYTES", 3 * layer + 1)
    assert layers_of(c) == 3
    small, _ = write_excerpt(c, np.arange(9), tmp_path / "small.gguf")
    assert (small.layers, small.hparams["vocab_size"]) == (3, 9)
    monkeypatch.setattr(excerpt, "MOST", layer - 1)
    assert layers_of(c) == 0
    (only,) = check(str(out), TEXT)["studies"]
    assert only["kind"] == "real" and only["wrong_recipes"]


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral", "phi3/longrope", "qwen3", "smollm3", "deepseek_v3", "falcon", "stablelm"])
def test_every_kind_of_family_has_an_excerpt(tmp_path: Path, name: str) -> None:
    """Windows by layer, experts, factors, biases, latent attention: its keys and tensors are those of the file."""
    out = written(make(name, tmp_path / "base"), tmp_path / "out.gguf", "f16", scale=None, method="none")
    small = by_kind(check(str(out), TEXT))["excerpt"]
    assert [r["why"] for r in small["runtimes"]] == [""]


@pytest.mark.parametrize(("name", "sharing"), [("gemma4_text", 1), ("gemma3n_text", 0)])
def test_an_excerpt_has_the_embeddings_of_its_layers_and_shares_keys_as_the_whole_does(
    name: str, sharing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four layers of that Gemma 4 the last two have no keys of their own."""
    monkeypatch.setattr(excerpt, "LAYERS", 3)
    kinds = ["sliding_attention", *["full_attention"] * (4 - sharing)]
    out = written(make(name, tmp_path / "base", config={"layer_types": kinds}), tmp_path / "out.gguf", "f16", scale=None, method="none")
    assert [r["why"] for r in by_kind(check(str(out), TEXT))["excerpt"]["runtimes"]] == [""]
    small, _ = write_excerpt(opened(out), np.arange(9), tmp_path / "small.gguf")
    assert (small.layers, small.hparams["num_kv_shared_layers"]) == (3, sharing)


def test_the_noise_counts_the_inputs_of_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = opened(written(make("mixtral", tmp_path / "base"), tmp_path / "out.gguf", "f16"))
    seen: list[int] = []
    ids = np.arange(20)

    def watched(x: Any, kind: str) -> Any:
        seen.append(x.shape[-1])
        return rounded(x, kind)

    monkeypatch.setattr("yarn_convert.validation.rounding.rounded", watched)
    with rounding(rounds(c)):
        Reference(c).logits(table(c.rope), ids, [(0, 20)])
    inner = c.tensors["blk.0.ffn_down_exps.weight"].shape[-1]
    assert inner in seen, "the second product of the experts is one of them"


def test_logits_beyond_the_noise_fail(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a runtime's wrong kernel for one type would give them: the excerpt in float32 is right, the file is not."""
    out, really = written(make_model(**WIDE), tmp_path / "out.gguf", "q8_0"), runtimes.run

    def spoilt(name: str, model: Path, ids: Any, spans: Any, *rest: Any) -> runtimes.Run:
        done = really(name, model, ids, spans, *rest)
        noise = np.random.default_rng(0).standard_normal(done.logits.shape).astype(np.float32) * by * done.logits.std()
        return done._replace(logits=done.logits + noise * (model == out))

    monkeypatch.setattr(study.runtimes, "run", spoilt)
    by = 0.5
    result = check(str(out), TEXT)
    assert (result["verdict"], by_kind(result)["excerpt"]["runtimes"][0]["verdict"]) == ("failed", "passed")
    assert "than the rounding of its types explains" in result["reasons"][0]
    by = 1e-4
    assert check(str(out), TEXT)["verdict"] == "passed"
