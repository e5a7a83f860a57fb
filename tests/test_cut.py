"""The cut: which layers it has, that it computes what they do, and that a planted fault in it fails in both runtimes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, make_model, split_options
from family_models import make
from hub_server import Hub, serving
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from test_validate import rewritten

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import Source, resolve
from yarn_convert.compute.reference import Reference, fits, shapes_of
from yarn_convert.conversion import convert
from yarn_convert.errors import UsageError
from yarn_convert.formats.gguf_file import Value, open_gguf
from yarn_convert.formats.tensors import Tensor, safetensors_header
from yarn_convert.options import ValidateOptions
from yarn_convert.rope import table
from yarn_convert.validation import check, lines
from yarn_convert.validation.cut import Cut, kept_layers, needed, write_cut
from yarn_convert.validation.report import html_report
from yarn_convert.validation.result import validated

torch = pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
LAYERS = 20
TEXT = ValidateOptions(tokens=3 * CONTEXT, twin=False, cut=2)
Arrays = dict[str, NDArray[np.float32]]  # by the names of a GGUF's tensors


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(str(path)))


def written(model: Path, out: Path, **options: Any) -> Path:
    wanted = {"scale": 4.0, "out": "gguf" if out.suffix else "safetensors", "output": out, **options}
    convert(str(model), **split_options(**wanted))
    return out


def checked(out: Path, base: Path | str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the result, the study of its cut)."""
    result = check(str(out), replace(TEXT, base=str(base), **settings))
    assert json.dumps(validated(result).to_dict()) == json.dumps(result), "every member has its place in the types"
    return result, next(s for s in result["studies"] if s["kind"] == "cut")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bases of 20 layers, one with biases and one with experts, each with its outputs in both formats."""
    folder, found = tmp_path_factory.mktemp("cut"), {}
    plain = make_model.__wrapped__ if hasattr(make_model, "__wrapped__") else make_model.__pytest_wrapped__.obj
    found["plain"] = plain(folder)(layers=LAYERS, biases=True)
    found["experts"] = make("mixtral", folder / "experts", config={"num_hidden_layers": LAYERS})
    for name in ("plain", "experts"):
        found[f"{name}.gguf"] = written(found[name], folder / f"out-{name}.gguf")
        found[f"{name}.hf"] = written(found[name], folder / f"out-{name}")
    return found


# -- which layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "kept"),
    [
        ("qwen3", 5, (0, 1)),
        ("deepseek_v3", 6, (0, 4, 5)),
        ("gemma3_text", None, (0, 1, 2, 3, 4, 5)),
        ("gemma4_text", None, (0, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("gguf", [True, False])
def test_every_kind_of_layer_is_in_a_cut_that_computes_what_both_runtimes_do(
    name: str, layers: int | None, kept: tuple[int, ...], gguf: bool, tmp_path: Path
) -> None:
    base = make(name, tmp_path / "base", config={} if layers is None else {"num_hidden_layers": layers})
    out = written(base, tmp_path / ("out.gguf" if gguf else "out"), scale=4.0)
    assert kept_layers(opened(out), 2) == kept
    result, study = checked(out, base)
    assert (study["kept"], study["why_no_base"], study["of_base"]["verdict"]) == (list(kept), "", "passed")
    assert [r["why"] for r in study["runtimes"]] == [""], result["reasons"]


def test_a_cut_of_the_first_layers_computes_what_they_compute(models: dict[str, Path], tmp_path: Path) -> None:
    """Against the whole model without its other layers, in transformers."""
    c, ids = opened(models["plain"]), np.arange(5, 200, 2)
    small = write_cut(c, Cut((0, 1)), tmp_path / "small")
    whole = Reference(c)
    whole.net.model.layers = whole.net.model.layers[:2]
    expected, found = (r.logits(table(c.rope), ids, [(0, len(ids))]) for r in (whole, Reference(small)))
    np.testing.assert_array_equal(found, expected)


def test_a_model_of_671b_is_cut_into_gigabytes(models: dict[str, Path], tmp_path: Path) -> None:
    """DeepSeek-V3's own shape, in a file of holes: what would be written is one dense layer, one with 256 experts, and what is outside."""
    shape = {
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "vocab_size": 129280,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128,
    }  # fmt: skip
    c = sparse("deepseek_v3", shape, tmp_path / "large")
    total = sum(t.nbytes for t in c.tensors.values())
    assert 1.2e12 < total < 1.5e12, "in BF16"
    kept = needed(c, kept_layers(c, 1))
    layers = sorted({int(name.split(".")[2]) for name in kept if name.startswith("model.layers.")})
    assert layers == [0, 60]
    assert sum(t.nbytes for t in kept.values()) < total / 40


def sparse(name: str, shape: dict[str, Any], folder: Path) -> Checkpoint:
    """A folder in BF16 of that shape, whose weights are one file of nothing."""
    make(name, folder, config={"num_hidden_layers": 2})
    config = json.loads((folder / "config.json").read_text()) | shape
    (folder / "config.json").write_text(json.dumps(config))
    found: dict[str, tuple[int, ...]] = {}
    for known, size in shapes_of(config).items():  # published with every expert apart
        if known.endswith("experts.gate_up_proj"):
            stem = known.removesuffix("gate_up_proj")
            halves = (size[1] // 2, size[2])
            found |= {f"{stem}{e}.{part}_proj.weight": halves for e in range(size[0]) for part in ("gate", "up")}
        elif known.endswith("experts.down_proj"):
            found |= {f"{known.removesuffix('down_proj')}{e}.down_proj.weight": size[1:] for e in range(size[0])}
        else:
            found[known] = size
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    tensors = [Tensor(n, "BF16", s, 2 * int(np.prod(s))) for n, s in found.items()]
    header, _ = safetensors_header(tensors, {"format": "pt"})
    path = folder / "model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(t.nbytes for t in tensors))
    return open_checkpoint(Source(folder, "large"))


# -- planted faults ---------------------------------------------------------------------------------------------------

HF = {
    "token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight", "output_norm.weight": "model.norm.weight",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def hf_name(name: str) -> str:
    """What a Llama's folder calls the tensor of this GGUF name."""
    if name in HF:
        return HF[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{HF[part]}.{kind}"


def permuted_k(w: Arrays) -> None:
    k = w["blk.1.attn_k.weight"]
    w["blk.1.attn_k.weight"] = k.reshape(2, 8, 2, -1).swapaxes(1, 2).reshape(k.shape)


def another_norm(w: Arrays) -> None:
    w["blk.0.ffn_norm.weight"] = w["blk.1.ffn_norm.weight"]


def moved_head(w: Arrays) -> None:
    w["output.weight"] = np.roll(w["output.weight"], 1, 0)


def embedding_row(w: Arrays) -> None:
    w["token_embd.weight"][[100, 104]] = w["token_embd.weight"][[104, 100]]  # of "a" and "e"


def v_for_k(w: Arrays) -> None:
    w["blk.0.attn_k.weight"], w["blk.0.attn_v.weight"] = w["blk.0.attn_v.weight"], w["blk.0.attn_k.weight"]


def layers_out_of_order(w: Arrays) -> None:
    for name in [n for n in w if n.startswith("blk.0.")]:
        other = name.replace("blk.0.", "blk.1.")
        w[name], w[other] = w[other], w[name]


def lost_biases(w: Arrays) -> None:
    w["blk.0.attn_q.bias"] = np.zeros_like(w["blk.0.attn_q.bias"])


def scaled_gate(w: Arrays) -> None:
    w["blk.1.ffn_gate.weight"] = w["blk.1.ffn_gate.weight"] * np.float32(1.05)


def final_norm(w: Arrays) -> None:
    w["output_norm.weight"] = w["output_norm.weight"] + 1


NOT_INTERLEAVED, APART = "its rows are not interleaved", "its rows are taken apart once too often"
# name -> (fault, the first module that differs, the tensor that is to blame, what is said of it, with the other's name)
FAULTS: dict[str, tuple[Callable[[Arrays], None], str, str, str]] = {
    f.__name__: (f, *rest)
    for f, *rest in (
        (permuted_k, "layers.1.self_attn.k_proj", "blk.1.attn_k.weight", ""),
        (another_norm, "layers.0.post_attention_layernorm", "blk.0.ffn_norm.weight", "it is the base's blk.1.ffn_norm.weight"),
        (moved_head, "lm_head", "output.weight", "its rows are moved by 1"),
        (embedding_row, "embed_tokens", "token_embd.weight", "rows 100 and 104 are swapped"),
        (v_for_k, "layers.0.self_attn.k_proj", "blk.0.attn_k.weight", "it is the base's blk.0.attn_v.weight"),
        (layers_out_of_order, "layers.0.input_layernorm", "blk.0.attn_norm.weight", "it is the base's blk.1.attn_norm.weight"),
        (lost_biases, "layers.0.self_attn.q_proj", "blk.0.attn_q.bias", "all of it is zero"),
        (scaled_gate, "layers.1.mlp.gate_proj", "blk.1.ffn_gate.weight", "it is 1.05 times the base's"),
        (final_norm, "norm", "output_norm.weight", "it is the base's and 1 more"),
    )
}


def spoilt(out: Path, fault: Callable[[Arrays], None], to: Path) -> Path:
    """A copy of an output with a fault in its weights."""
    if out.suffix:
        shutil.copyfile(out, to)
        arrays = {n: t.read().view(np.float32).reshape(t.shape).copy() for n, t in open_gguf(out).tensors.items()}
        fault(arrays)
        return rewritten(to, {}, {n: a.astype(np.float32).tobytes() for n, a in arrays.items()})
    shutil.copytree(out, to)
    saved = load_file(to / "model.safetensors")
    names = {n: h for n in open_gguf(out.with_suffix(".gguf")).tensors if (h := hf_name(n)) in saved}
    arrays = {n: saved[h].copy() for n, h in names.items()}
    fault(arrays)
    save_file(saved | {names[n]: np.ascontiguousarray(a) for n, a in arrays.items()}, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_a_planted_fault_fails_in_the_runtime_and_is_named(models: dict[str, Path], tmp_path: Path, fault: str, kind: str) -> None:
    planted, module, name, says = FAULTS[fault]
    out = spoilt(models[f"plain.{kind}"], planted, tmp_path / ("out.gguf" if kind == "gguf" else "out"))
    result, study = checked(out, models["plain"], trace=True)
    (r,) = study["runtimes"]
    assert (result["verdict"], study["of_base"]["verdict"], r["verdict"], r["layer"]) == ("failed", "failed", "failed", "weights")
    trace, says = study["trace"], says or (NOT_INTERLEAVED if kind == "gguf" else APART)
    first, *theirs = trace["modules"]
    assert (first["of"], first["first"]) == ("the file's weights", module)
    assert [m["first"] for m in theirs] == ([""] if kind == "gguf" else []), "llama.cpp computes what the file's weights say"
    named = (lambda n: n) if kind == "gguf" else hf_name
    other = says.rpartition(" ")[2]
    assert trace["tensors"][named(name)] == (says.replace(other, named(other)) if other.startswith("blk.") else says)
    assert any(f"the first module that differs is {module}" in line for line in lines(validated(result)))


def test_an_expert_in_the_place_of_another_fails(models: dict[str, Path], tmp_path: Path) -> None:
    def swapped(w: Arrays) -> None:
        up = w["blk.1.ffn_up_exps.weight"]
        up[[0, 2]] = up[[2, 0]]

    _, study = checked(spoilt(models["experts.gguf"], swapped, tmp_path / "out.gguf"), models["experts"], trace=True)
    assert [study["of_base"]["verdict"], *(r["layer"] for r in study["runtimes"])] == ["failed", "weights"]
    assert study["trace"]["tensors"] == {"blk.1.ffn_up_exps.weight": "experts 0 and 2 are swapped"}
    assert study["trace"]["modules"][0]["first"].startswith("layers.1.") and "experts" in study["trace"]["modules"][0]["first"]


def test_a_wrong_recipe_fails_by_its_name(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(models["plain.gguf"].read_bytes())
    rewritten(out, {"llama.rope.scaling.factor": Value("f32", 8.0)})
    _, study = checked(out, models["plain"], like=str(models["plain.gguf"]), trace=True)
    assert [study["of_base"]["verdict"], *(r["layer"] for r in study["runtimes"])] == ["passed", "table"]
    assert [m["first"] for m in study["trace"]["modules"]] == ["", "layers.0.q after RoPE (Qcur-0)"]
    config = tmp_path / "folder" / "config.json"
    shutil.copytree(models["plain.hf"], config.parent)
    config.write_text(config.read_text().replace('"factor": 4.0', '"factor": 8.0'))
    _, study = checked(config.parent, models["plain"], like=str(models["plain.hf"]), trace=True)
    assert [m["first"] for m in study["trace"]["modules"]] == ["", "rotary_emb"]


def test_the_trace_of_a_whole_model_finds_a_layer_that_no_cut_has(models: dict[str, Path], tmp_path: Path) -> None:
    """The logits of the whole agree with its runtime, as both have the fault, so what fails is a recipe; the trace says both."""

    def third(w: Arrays) -> None:
        w["blk.12.ffn_up.weight"][3] *= 2

    out = spoilt(models["plain.gguf"], third, tmp_path / "out.gguf")
    rewritten(out, {"llama.rope.scaling.factor": Value("f32", 8.0)})
    result = check(str(out), replace(TEXT, base=str(models["plain"]), like=str(models["plain.gguf"]), cut=0, trace=True))
    trace = result["studies"][0]["trace"]
    assert trace["tensors"] == {"blk.12.ffn_up.weight": "1 of its 96 rows are not the base's, first row 3"}
    assert [m["first"] for m in trace["modules"]] == ["layers.12.mlp.up_proj", "layers.0.q after RoPE (Qcur-0)"]


def test_modules_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    base = make("deepseek_v3", tmp_path / "base", config={"num_hidden_layers": 6})
    out = written(base, tmp_path / "out.gguf")

    def last(w: Arrays) -> None:
        w["blk.5.attn_norm.weight"] = w["blk.5.attn_norm.weight"] * np.float32(2)

    _, study = checked(spoilt(out, last, tmp_path / "bad.gguf"), base, trace=True, cut=1)
    assert study["trace"]["tensors"] == {"blk.5.attn_norm.weight": "it is 2 times the base's"}
    assert [m["first"] for m in study["trace"]["modules"]] == ["layers.5.input_layernorm", ""]


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_a_sound_output_passes_and_says_what_was_run(models: dict[str, Path], kind: str) -> None:
    result, study = checked(models[f"plain.{kind}"], models["plain"])
    assert (result["verdict"], study["of_base"]["verdict"], study["kept"]) == ("passed", "passed", [0, 1])
    assert all(w["told_apart"] for w in study["wrong_recipes"])
    assert any("its own weights of layers 0–1" in line for line in lines(validated(result)))
    assert "its cut" in html_report(result, "")


def test_a_quantized_cut_may_be_away_by_the_noise_of_its_types_and_no_more(models: dict[str, Path], tmp_path: Path) -> None:
    out = written(models["plain"], tmp_path / "out.gguf", outtype="q8_0")
    result, study = checked(out, models["plain"])
    assert (result["verdict"], study["of_base"]["verdict"]) == ("passed", "passed")
    worst = max(w["nmse"] for w in study["of_base"]["windows"])
    assert study["tolerance"]["nmse"] < study["of_base"]["tolerance"]["nmse"] or worst > 1e-4
    old = open_gguf(out).tensors["blk.0.attn_v.weight"]
    rewritten(out, {}, {"blk.0.attn_v.weight": old.read().reshape(old.shape[0], -1)[::-1].tobytes()})
    result, study = checked(out, models["plain"], trace=True)
    assert study["of_base"]["verdict"] == "failed"
    assert "row 0 is the base's" in study["trace"]["tensors"]["blk.0.attn_v.weight"]
    assert [m["first"] for m in study["trace"]["modules"]] == ["layers.0.self_attn.v_proj"], "the noise before it is allowed"


# -- whom it is for ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_the_memory_is_cut(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, study = checked(models["plain.hf"], models["plain"], cut=2)
    monkeypatch.setattr("yarn_convert.validation.real.fits", lambda *_: False)
    assert checked(models["plain.hf"], models["plain"], cut=None)[1]["kept"] == study["kept"]
    monkeypatch.setattr("yarn_convert.compute.reference.free_memory", lambda device: 1 << 20)
    assert not fits(opened(models["plain.hf"]), "cpu", "float32")


def test_of_a_hub_id_the_cut_alone_is_fetched(models: dict[str, Path], tmp_path: Path) -> None:
    """With the unmodified client, in a process of its own, whose command says what came."""
    hub, names = Hub({"some-org/base": models["plain"]}), ("--cut", "2", "--tokens", "192", "--real", "--json")
    with serving(hub) as endpoint:
        env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "yarn_convert", "validate", str(models["plain.gguf"]), "--base", "some-org/base", *names]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (study,) = result["studies"]
    assert (study["of_base"]["verdict"], result["weights"]["verdict"]) == ("passed", "unchecked")
    c = opened(models["plain"])
    assert study["fetched"] == sum(t.nbytes for t in needed(c, (0, 1)).values())
    assert hub.sent["some-org/base"] < (models["plain"] / "model.safetensors").stat().st_size / 3
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_cut_that_cannot_be_made_is_one_line(models: dict[str, Path]) -> None:
    for settings, says in (({"cut": -1}, "a number of layers"), ({"real": False}, "--twin alone none")):
        with pytest.raises(UsageError, match=says):
            checked(models["plain.gguf"], models["plain"], **settings)
