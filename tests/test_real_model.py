"""The real model, past its window: llama.cpp on the GGUF against transformers on the HF folder, logit by logit.

SmolLM2-135M with its window taken as 1,024 tokens, extended four times, over the first 1,536 tokens of Hamlet: the plain
variant, and all at once that llama.cpp's own converter loses; one by one they are tried on tiny models. Unscaled RoPE is the
measure of what "wrong" is.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, VOCAB, MakeModel, split_options

from yarn_convert import runtimes
from yarn_convert.conversion import convert
from yarn_convert.options import Recipe, ValidateOptions

pytestmark = pytest.mark.usefixtures("real_workers")
WINDOW, TOKENS = 1024, 1344
VARIANTS: dict[str, dict[str, Any]] = {
    "yarn": {},
    "all of it otherwise": {"attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def base(work: Path, smollm2: Path) -> Path:
    """The model dequantized to float32, as an HF folder."""
    convert(str(smollm2), Recipe(method="none"), out="safetensors", output=work / "base")
    return work / "base"


@pytest.fixture(scope="module")
def ids(base: Path) -> np.ndarray:
    from tokenizers import Tokenizer

    text = (Path(runtimes.__file__).parents[1] / "compute" / "hamlet.txt").read_text("utf-8")
    return np.array(Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids[:TOKENS])


@pytest.fixture(scope="module")
def unscaled(base: Path, ids: np.ndarray) -> np.ndarray:
    return runtimes.run("transformers", base, ids, [(0, TOKENS)]).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_and_transformers_agree_past_the_window(
    work: Path, base: Path, ids: np.ndarray, unscaled: np.ndarray, variant: str
) -> None:
    options = {"scale": 4.0, "original_context": WINDOW, "force": True, **VARIANTS[variant]}
    convert(str(base), **split_options(out="safetensors", output=work / "hf", link=True, **options))
    convert(str(base), **split_options(out="gguf", output=work / "model.gguf", **options))
    hf = runtimes.run("transformers", work / "hf", ids, [(0, TOKENS)]).logits
    gguf = runtimes.run("llama.cpp", work / "model.gguf", ids, [(0, TOKENS)]).logits
    assert hf.shape == gguf.shape == (TOKENS, 49152)
    for window in (slice(0, WINDOW), slice(WINDOW, TOKENS)):
        difference = abs(hf[window] - gguf[window]).max()
        wrong = abs(hf[window] - unscaled[window]).max()
        assert difference * 100 < wrong, f"{difference:.3g} against {wrong:.3g} for unscaled RoPE"


TINY: dict[str, dict[str, Any]] = {
    "yarn": {},
    "attention factor": {"attention_factor": 0.8},
    "betas": {"beta_fast": 6.0, "beta_slow": 0.5},
    "no truncate": {"truncate": False},
    "paper": {"ramp": "paper"},
    "linear": {"method": "linear"},
    "ntk-aware": {"method": "ntk-aware"},
    "ntk-by-parts": {"method": "ntk-by-parts"},
    "dynamic-yarn": {"method": "dynamic-yarn"},
    "metadata as tensors": {"carry": "tensors"},
}
SCALED = {
    "plain": {},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
}
SHAPES: dict[str, dict[str, Any]] = {"grouped": {}, "biased": {"biases": True}, "tied": {"tied": True, "kv_heads": 4}}


@pytest.mark.parametrize(
    ("base", "shape", "variant"),
    [
        *(("plain", "grouped", v) for v in TINY),
        *((b, "grouped", v) for b in SCALED if b != "plain" for v in ("yarn", "paper", "ntk-aware")),
        *(("plain", s, "yarn") for s in SHAPES),
    ],
)
def test_every_method_agrees_on_tiny_models(make_model: MakeModel, tmp_path: Path, base: str, shape: str, variant: str) -> None:
    """HF -> HF in transformers, HF -> GGUF and HF -> GGUF -> HF in llama.cpp and transformers, at four times the window."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    model = make_model(config=SCALED[base], **SHAPES[shape])
    options = {"scale": 4.0, **TINY[variant], **({"original_context": CONTEXT} if base == "linear" else {})}
    convert(str(model), **split_options(out="safetensors", output=tmp_path / "hf", **options))
    convert(str(model), **split_options(out="gguf", output=tmp_path / "m.gguf", **options))
    convert(str(tmp_path / "m.gguf"), Recipe(method="none"), out="safetensors", output=tmp_path / "back")
    ids = np.random.default_rng(3).integers(3, VOCAB, 4 * CONTEXT)
    reference = logits("transformers", tmp_path / "hf", ids)
    wrong = nmse(logits("transformers", model, ids), reference)
    for runtime, path in (("llama.cpp", "m.gguf"), ("transformers", "back")):
        error = nmse(logits(runtime, tmp_path / path, ids), reference)
        assert error * 1000 < wrong, f"{runtime} {path}: NMSE {error:.2g}, unscaled {wrong:.2g}"


def logits(runtime: str, model: Path, ids: np.ndarray) -> np.ndarray:
    """As `runtimes.run`, but in this process: a tiny model takes less time than starting a runtime."""
    folder = str(Path(runtimes.__file__).parent)
    sys.path[:] = [folder, *(p for p in sys.path if p != folder)]  # where a worker finds its protocol
    worker = importlib.import_module(runtimes.runtime_of(runtime).worker.removesuffix(".py"))
    with tempfile.TemporaryDirectory() as work:
        np.save(Path(work, "ids.npy"), ids)
        Path(work, "job.json").write_text(json.dumps({"model": str(model), "spans": [[0, len(ids)]], "options": {}}))
        worker.main(worker.WorkerJob(Path(work)))
        return np.load(Path(work, "logits.npy"))


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).mean() / b.var())


def test_an_unpermuted_model_would_not_pass(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the two tests above: with Q and K rows left as HF has them the logits are far off."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    model = make_model()
    monkeypatch.setattr("yarn_convert.families.LLAMA.__class__.transform", lambda self, name: "")
    convert(str(model), Recipe(scale=4), out="gguf", output=tmp_path / "m.gguf")
    monkeypatch.undo()
    convert(str(model), Recipe(scale=4), out="safetensors", output=tmp_path / "hf")
    ids = np.random.default_rng(3).integers(3, VOCAB, 4 * CONTEXT)
    assert nmse(logits("llama.cpp", tmp_path / "m.gguf", ids), logits("transformers", tmp_path / "hf", ids)) > 0.05


def test_rows_in_the_wrong_order_are_noticed_without_a_base(work: Path, base: Path) -> None:
    """Reference and runtime agree on such a file: only the text that it predicts tells."""
    from test_validate import opened, rewritten

    from yarn_convert.validation import check

    path = work / "permuted.gguf"
    convert(str(base), Recipe(scale=4.0), out="gguf", output=path, force=True)
    c, moved = opened(path), {}
    for name, t in c.tensors.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            rows = t.read().view(np.float32).reshape(c.heads(name[-8]), -1, 2, t.shape[1])
            moved[name] = np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes()
    settings = ValidateOptions(twin=False, tokens=160)
    sound = check(str(path), settings)
    permuted = check(str(rewritten(path, {}, moved)), settings)
    path.unlink()
    assert not sound["studies"][0]["permuted"]
    assert permuted["verdict"] == "failed"
    assert "permutation" in permuted["reasons"][0]
