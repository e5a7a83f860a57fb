"""DeepSeek V2 and V3: the latent projections, YaRN's temperature on the logits, and models of every size planned at once.

Also Cohere 2, in which there is nothing to extend, and Granite's experts.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, split_options, tokenizer_files
from family_models import make
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_targets import oracle

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import Source, resolve
from yarn_convert.conversion import convert, extend
from yarn_convert.errors import FormatError, Inexpressible, InputError, Unsupported, UsageError
from yarn_convert.formats.tensors import Tensor
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.rope import effect, recipe_of, same_effect
from yarn_convert.targets.gguf import plan_gguf
from yarn_convert.targets.plan import Plan, Request
from yarn_convert.validation import check
from yarn_convert.validation.twin import write_twin

PLAIN = ("deepseek_v2", "deepseek_v2/lite", "deepseek_v3", "cohere2", "cohere2/six", "granitemoe")
MSCALES = ("mscale", "mscale_all_dim")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """model(name) -> the folder of a family or of family/variant, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("m") / name.replace("/", "-"))
        return made[name]

    return get


def tensors(path: Path) -> dict[str, tuple[Any, bytes]]:
    return {t.name: (t.tensor_type, t.data.tobytes()) for t in GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    return {k: f.contents() for k, f in GGUFReader(path).fields.items() if not k.startswith(("GGUF.", "general.", "yarn_convert."))}


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(str(path)))


def put(source: Path, out: Path, **options: Any) -> Path:
    fmt = "gguf" if out.suffix == ".gguf" else "safetensors"
    convert(str(source), **split_options(**{"method": "none", **options}, out=fmt, output=out))
    return out


def edited(source: Path, folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray] | None = None) -> Path:
    """A copy of a folder with keys of config.json set or, at None, removed."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    described = {k: v for k, v in {**json.loads((source / "config.json").read_text()), **config}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(described))
    if weights is not None:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# -- tensors and keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PLAIN, "deepseek_v2/yarn", "deepseek_v3/yarn"])
def test_there_and_back_is_the_same_model(name: str, model: Any, tmp_path: Path) -> None:
    """HF → GGUF → HF → GGUF: every weight and every key of the architecture, RoPE's too."""
    a = put(model(name), tmp_path / "a.gguf")
    back = put(a, tmp_path / "back")
    mine, theirs = load_file(model(name) / "model.safetensors"), load_file(back / "model.safetensors")
    assert {k: v.tobytes() for k, v in theirs.items()} == {k: v.tobytes() for k, v in mine.items()}
    b = put(back, tmp_path / "b.gguf")
    assert (tensors(a), fields(a)) == (tensors(b), fields(b))
    assert opened(back).rope == opened(a).rope


OURS = {"rope.scaling.type", "rope.dimension_count", "vocab_size", "expert_weights_norm", "attention.key_length", "attention.value_length"}


@pytest.mark.parametrize("name", [*PLAIN, "deepseek_v2/yarn", "deepseek_v3/yarn"])
def test_the_file_is_that_of_llama_cpps_converter(name: str, converter: Path, model: Any, tmp_path: Path) -> None:
    """Every tensor's bytes, every key: we also say what is implied, and leave out betas, which its loader passes over."""
    ours = put(model(name), tmp_path / "a.gguf")
    theirs = oracle(converter, model(name), tmp_path / "b.gguf", "f32")
    assert tensors(ours) == tensors(theirs)
    a, b = fields(ours), fields(theirs)
    assert {k for k in b.keys() - a.keys() if not k.startswith("tokenizer.")} <= {k for k in b if "yarn_beta" in k}
    assert {k: a[k] for k in a.keys() & b.keys()} == {k: b[k] for k in a.keys() & b.keys()}
    assert {k.partition(".")[2] for k in a.keys() - b.keys() if not k.startswith("tokenizer.")} <= OURS


def test_v2_and_v3_are_told_apart_by_the_gating(model: Any, tmp_path: Path) -> None:
    for name in ("deepseek_v2", "deepseek_v3"):
        assert opened(put(model(name), tmp_path / f"{name}.gguf")).family.model_type == name


@pytest.mark.parametrize(("name", "key"), [("deepseek_v2/grouped", "n_group"), ("deepseek_v2", "norm_topk_prob")])
def test_routing_that_llama_cpp_computes_otherwise_is_refused(name: str, key: str, model: Any, tmp_path: Path) -> None:
    """transformers scores a group of V2's experts by its best, llama.cpp by its best two; it never normalizes their weights."""
    source = model(name) if key == "n_group" else edited(model(name), tmp_path / "m", {key: True})
    with pytest.raises(Inexpressible, match=key):
        put(source, tmp_path / "a.gguf")
    assert put(source, tmp_path / "b", method="yarn", scale=2).is_dir()


@pytest.mark.parametrize(
    ("config", "drop", "error"),
    [
        ({"first_k_dense_replace": 0}, "", "missing, first 'model.layers.0.mlp.gate."),
        ({"first_k_dense_replace": 2}, "", "missing, first 'model.layers.1.mlp.gate_proj"),
        ({"qk_nope_head_dim": 8}, "", "the config describes"),
        ({"v_head_dim": 8}, "", "the config describes"),
        ({}, "model.layers.1.mlp.shared_experts.up_proj.weight", "missing"),
        ({}, "model.layers.0.self_attn.q_b_proj.weight", "missing"),
        ({}, "model.layers.1.mlp.experts.3.up_proj.weight", "experts are there"),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_is_refused(
    config: dict[str, Any], drop: str, error: str, model: Any, tmp_path: Path
) -> None:
    weights = load_file(model("deepseek_v3") / "model.safetensors")
    weights.pop(drop, None)
    with pytest.raises((FormatError, InputError), match=error):
        opened(edited(model("deepseek_v3"), tmp_path / "m", config, weights))


# -- what published V3 files have besides -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "hy_v3"])
def test_layers_of_further_tokens_stay_in_a_folder_and_are_named_when_a_gguf_leaves_them_out(name: str, model: Any, tmp_path: Path) -> None:
    weights = load_file(model(name) / "model.safetensors")
    more = {n.replace(".1.", ".2.", 1): w for n, w in weights.items() if n.startswith("model.layers.1.")}
    more |= {f"model.layers.2.{n}.weight": np.ones(64, np.float32) for n in ("enorm", "hnorm", "shared_head.norm")}
    source = edited(model(name), tmp_path / "m", {"num_nextn_predict_layers": 1}, weights | more)
    convert(str(source), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    put(model(name), tmp_path / "b.gguf")
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
    notes = json.loads((tmp_path / "a.yarn_convert.json").read_text())["notes"]
    assert any(n.startswith(f"{len(more)} tensors are left out: layers that predict tokens further on") for n in notes)
    out = put(source, tmp_path / "out", outtype="bf16")
    with safe_open(out / "model.safetensors", "np") as f:
        assert set(f.keys()) == set(weights | more)
    pytest.importorskip("torch")
    import torch

    from yarn_convert.compute.reference import TorchWeights

    assert set(TorchWeights(opened(source), torch.float32, False)) == set(weights), "the reference runs what transformers runs"
    with pytest.raises(Unsupported, match="not part of the family"):
        opened(edited(source, tmp_path / "n", {"num_nextn_predict_layers": 0}))


def test_ernies_further_tokens_are_named_too(model: Any, tmp_path: Path) -> None:
    weights = load_file(model("ernie4_5_moe") / "model.safetensors")
    more = {f"model.{n}.weight": np.ones(64, np.float32) for n in ("mtp_block.0.input_layernorm", "mtp_emb_norm.0", "mtp_hidden_norm.0")}
    source = edited(model("ernie4_5_moe"), tmp_path / "m", {}, weights | more)
    put(source, tmp_path / "a.gguf")
    put(model("ernie4_5_moe"), tmp_path / "b.gguf")
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
    assert any(n.startswith("3 tensors are left out") for n in json.loads((tmp_path / "a.yarn_convert.json").read_text())["notes"])
    with pytest.raises(Unsupported, match="moe_layer_end_index = 0"):
        opened(edited(source, tmp_path / "n", {"moe_layer_end_index": 0}))


def test_glms_gguf_with_a_layer_of_further_tokens_is_extended_as_it_is(model: Any, tmp_path: Path) -> None:
    """As llama.cpp's converter writes it by default: none of its tensors is lost, and it becomes no folder."""
    path = put(model("glm4_moe"), tmp_path / "a.gguf")
    assert "glm4moe.nextn_predict_layers" in GGUFReader(path).fields
    data = path.read_bytes()
    key, one = b"glm4moe.nextn_predict_layers", (1).to_bytes(4, "little")
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + one + data[at + 4 :])
    c = opened(path)
    assert not c.family.listed
    put(path, tmp_path / "b.gguf", method="yarn", scale=4)
    assert tensors(tmp_path / "b.gguf") == tensors(path)
    with pytest.raises(Unsupported, match="no names"):
        put(path, tmp_path / "out")


KIMI = "kimi_k2/released"


def test_kimi_k2_is_a_deepseek_v3_by_another_name(model: Any, tmp_path: Path) -> None:
    """Its folder stays one; a folder made of its GGUF is DeepSeek's."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    out = put(model("kimi_k2"), tmp_path / "out", method="yarn", scale=4)
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["rope_scaling"]["type"]) == ("kimi_k2", "yarn")
    result = check(str(out), ValidateOptions(base=str(model("kimi_k2")), real=False, twin=False))
    assert all(result[k]["verdict"] == "passed" for k in ("recipe", "weights", "tokenizer"))
    back = put(put(model("kimi_k2"), tmp_path / "a.gguf"), tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["model_type"] == "deepseek_v3"
    as_v3 = edited(model("kimi_k2"), tmp_path / "v3", {"model_type": "deepseek_v3", "auto_map": None})
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 263, (1, CONTEXT)))
    with torch.no_grad():
        logits = [transformers.AutoModelForCausalLM.from_pretrained(p).eval()(ids).logits.numpy() for p in (as_v3, back)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_kimi_k2s_own_step_instead_of_a_ramp_is_no_gguf(model: Any, tmp_path: Path) -> None:
    assert put(model(KIMI), tmp_path / "out").is_dir()
    with pytest.raises(Inexpressible, match="beta_fast"):
        put(model(KIMI), tmp_path / "a.gguf")
    result = check(
        str(put(model(KIMI), tmp_path / "b.gguf", method="yarn", scale=8)), ValidateOptions(base=str(model(KIMI)), runtimes=("llama.cpp",))
    )
    assert result["verdict"] == "passed", result["reasons"]


def test_a_tensor_in_a_layer_of_the_other_kind_is_refused(model: Any, tmp_path: Path) -> None:
    """llama.cpp would not load a dense layer's matrices beside experts, and transformers would drop them."""
    weights = load_file(model("deepseek_v3") / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(FormatError, match="has none by the config"):
        opened(edited(model("deepseek_v3"), tmp_path / "m", {}, weights))


def test_fp8_is_copied_in_a_folder_and_refused_for_a_gguf(model: Any, tmp_path: Path) -> None:
    """Without their scales FP8 weights are another model: they must not be converted as numbers, nor run in the reference."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    weights = load_torch(model("deepseek_v3") / "model.safetensors")
    small = [n for n in weights if n.endswith("_proj.weight")]
    scales = {n.replace("weight", "weight_scale_inv"): torch.ones(1, 1) for n in small}
    source = edited(model("deepseek_v3"), tmp_path / "m", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    save_torch(weights | {n: weights[n].to(torch.float8_e4m3fn) for n in small} | scales, source / "model.safetensors")
    out = put(source, tmp_path / "out", method="yarn", scale=4)
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    for outtype in ("auto", "bf16"):
        with pytest.raises(Unsupported, match="FP8") as refused:
            put(source, tmp_path / "a.gguf", outtype=outtype)
        assert "BF16" in refused.value.hint
    with pytest.raises(Unsupported, match="FP8"):
        check(str(out), ValidateOptions(twin=False))
    twin, c = write_twin(opened(out), tmp_path / "twin"), opened(out)
    assert same_effect(effect(twin.rope), effect(c.rope)) and not twin.packed


# -- YaRN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v2/yarn", "deepseek_v3/yarn"])
def test_a_recipe_is_what_transformers_computes(name: str, model: Any) -> None:
    """Frequencies, multiplier and the factor on the softmax scale, from transformers' own modules."""
    pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model(name))
    net = AutoModelForCausalLM.from_config(config)
    rotary, found = net.model.rotary_emb, effect(opened(model(name)).rope)
    assert np.allclose(rotary.inv_freq.numpy(), found.inv_freq, rtol=3e-7)
    assert math.isclose(rotary.attention_scaling, found.multiplier, rel_tol=1e-9)
    attention = net.model.layers[0].self_attn
    assert math.isclose(attention.scaling * attention.qk_head_dim**0.5, found.logits, rel_tol=1e-9)
    assert found.logits > 1.1


@pytest.mark.parametrize(
    ("name", "mscale"), [("deepseek_v2", 1.0), ("deepseek_v3", 1.0), ("deepseek_v2/yarn", 0.707), ("deepseek_v3/yarn", 1.0)]
)
def test_extending_follows_deepseeks_own_code(name: str, mscale: float, model: Any, tmp_path: Path) -> None:
    """The base's two mscales stay, 1 and 1 where it has none; their temperature follows the new factor."""
    c = opened(model(name))
    rope = extend(c, Recipe(context=8 * CONTEXT)).rope
    assert (rope.inner, rope.original_context) == (None, CONTEXT)
    assert [rope.params[k] for k in MSCALES] == [mscale, mscale]
    found = effect(rope)
    assert (found.multiplier, found.logits) == (1.0, (0.1 * mscale * math.log(8) + 1) ** 2)
    for out in ("a.gguf", "a"):
        again = opened(put(model(name), tmp_path / out, method="yarn", context=8 * CONTEXT))
        assert effect(again.rope).logits == pytest.approx(found.logits, rel=1e-9)
        assert again.rope.params == {k: v for k, v in again.rope.params.items() if k.startswith("beta")} | dict(rope.params)


@pytest.mark.parametrize(
    ("name", "out"),
    [*((f"deepseek_{x}", "out.gguf") for x in ("v2", "v3", "v2/yarn", "v3/yarn")), ("deepseek_v2/yarn", "out"), ("deepseek_v3", "out")],
)
def test_an_extended_model_validates_past_its_window(name: str, out: str, model: Any, tmp_path: Path) -> None:
    """In llama.cpp and transformers, on the weights and on the twin, with every wrong recipe told apart."""
    pytest.importorskip("llama_cpp")
    context = 8 * CONTEXT if name.endswith("yarn") else 4 * CONTEXT
    put(model(name), tmp_path / out, method="yarn", context=context)
    result = check(str(tmp_path / out), ValidateOptions(base=str(model(name))))
    assert (result["verdict"], result["reasons"]) == ("passed", [])
    for s in result["studies"]:
        assert max(w["end"] for w in s["runtimes"][0]["windows"]) == context
        assert {w["name"] for w in s["wrong_recipes"] if w["told_apart"]} == {"no scaling", "multiplier 1", "factor × 2", "the other ramp"}


@pytest.mark.parametrize("name", ["deepseek_v2/yarn", "deepseek_v3/yarn"])
def test_llama_cpp_computes_a_converted_yarn_past_the_window(name: str, model: Any, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    result = check(str(put(model(name), tmp_path / "a.gguf")), ValidateOptions(base=str(model(name)), twin=False))
    assert (result["verdict"], result["recipe"]["verdict"]) == ("passed", "passed")
    assert result["studies"][0]["tokens"] == 4 * CONTEXT


def test_a_lost_temperature_is_found(model: Any, tmp_path: Path) -> None:
    """config.json without the two mscales: cos and sin get YaRN's temperature, the logits do not."""
    out = put(model("deepseek_v3"), tmp_path / "out", method="yarn", scale=4)
    text = (out / "config.json").read_text()
    config = json.loads(text)
    for scaling in (config["rope_scaling"], config["rope_parameters"]):
        for key in MSCALES:
            del scaling[key]
    (out / "config.json").write_text(json.dumps(config))
    result = check(str(out), ValidateOptions(twin=False, tokens=2 * CONTEXT))
    assert (result["verdict"], result["recipe"]["verdict"]) == ("failed", "failed")
    assert "temperature" in result["studies"][0]["runtimes"][0]["why"]


def test_ntk_by_parts_leaves_the_logits_alone(model: Any, tmp_path: Path) -> None:
    """Its multiplier is 1, and llama.cpp is told to undo what it would do by itself."""
    pytest.importorskip("llama_cpp")
    out = put(model("deepseek_v3"), tmp_path / "a.gguf", method="ntk-by-parts", scale=4)
    assert effect(opened(out).rope)[1:] == (1.0, 1.0)
    assert check(str(out), ValidateOptions(twin=False))["verdict"] == "passed"


SCALING = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}


@pytest.mark.parametrize(
    ("scaling", "out", "why"),
    [
        ({"mscale": 1.0}, "a", "mscale alone"),
        ({"mscale_all_dim": 1.0}, "a", "mscale_all_dim alone"),
        ({"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.2}, "a", "attention_factor beside"),
        ({"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16}, "a.gguf", "beta_fast"),
        ({"type": "linear"}, "a.gguf", "multiplies the attention's logits"),
    ],
)
def test_what_readers_compute_differently_is_refused_by_name(
    scaling: dict[str, Any], out: str, why: str, model: Any, tmp_path: Path
) -> None:
    source = edited(model("deepseek_v3"), tmp_path / "m", {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": {**SCALING, **scaling}})
    with pytest.raises((Unsupported, Inexpressible), match=why):
        put(source, tmp_path / out)


def test_different_mscales_are_kept_in_a_folder(model: Any, tmp_path: Path) -> None:
    scaling = {**SCALING, "mscale": 0.5, "mscale_all_dim": 0.8}
    source = edited(model("deepseek_v3"), tmp_path / "m", {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": scaling})
    a, b = opened(source), opened(put(source, tmp_path / "out"))
    assert effect(a.rope).multiplier == (0.05 * math.log(4) + 1) / (0.08 * math.log(4) + 1)
    assert effect(b.rope)[1:] == effect(a.rope)[1:] and all(b.rope.params[k] == scaling[k] for k in MSCALES)


def test_options_that_mean_nothing_to_it_are_refused(model: Any) -> None:
    c = opened(model("deepseek_v2"))
    with pytest.raises(UsageError, match="mscale_all_dim"):
        extend(c, Recipe(scale=4, attention_factor=1.2))


@pytest.mark.parametrize(
    "scaling", [{}, {"mscale": 1.0, "mscale_all_dim": 0.5}, {"mscale": 0.5, "mscale_all_dim": 1.0}, {"attention_factor": 1.2}]
)
def test_llama_cpp_computes_any_two_temperatures(scaling: dict[str, float], model: Any, tmp_path: Path) -> None:
    """Those of cos and sin by attn_factor, those of the logits by what yarn_log_multiplier adds to them."""
    pytest.importorskip("llama_cpp")
    source = edited(model("deepseek_v3"), tmp_path / "m", {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": {**SCALING, **scaling}})
    out = put(source, tmp_path / "a.gguf")
    assert same_effect(effect(opened(out).rope), effect(opened(source).rope))
    assert check(str(out), ValidateOptions(twin=False))["verdict"] == "passed"


# -- Cohere 2 and Granite ---------------------------------------------------------------------------------------------


def test_cohere2_has_nothing_to_extend(model: Any, tmp_path: Path) -> None:
    for source in (model("cohere2"), put(model("cohere2"), tmp_path / "a.gguf")):
        with pytest.raises(Unsupported, match="nothing to extend") as refused:
            extend(opened(source), Recipe(scale=4))
        assert "--method none" in refused.value.hint


@pytest.mark.parametrize("name", ["cohere2/six", "granitemoe"])
def test_the_reference_is_transformers_own(name: str, model: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from yarn_convert.compute.reference import Reference

    ids = np.random.default_rng(0).integers(3, 263, CONTEXT)
    net = AutoModelForCausalLM.from_pretrained(model(name), dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)[None]).logits[0].numpy()
    for source in (model(name), put(model(name), tmp_path / "a.gguf")):
        c = opened(source)
        ours = Reference(c).logits(effect(c.rope), ids, [(0, CONTEXT)])
        assert ((ours - theirs) ** 2).sum() / ((theirs - theirs.mean(1, keepdims=True)) ** 2).sum() < 1e-9


def test_granites_experts_extend(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    out = put(model("granitemoe"), tmp_path / "a.gguf", method="yarn", scale=4)
    assert check(str(out), ValidateOptions(base=str(model("granitemoe"))))["verdict"] == "passed"


# -- size -------------------------------------------------------------------------------------------------------------


def header(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Source:
    """A model of which only names, types and shapes are there."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)
    return Source(folder, folder.name, headers={n: Tensor(n, "BF16", s, 2 * math.prod(s), folder, 0) for n, s in shapes.items()})


def attention(i: int, **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"model.layers.{i}.self_attn.{n}.weight": s for n, s in shapes.items()}


def mlp(stem: str, hidden: int, ff: int) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.gate_proj.weight": (ff, hidden), f"{stem}.up_proj.weight": (ff, hidden), f"{stem}.down_proj.weight": (hidden, ff)}


def around(layers: int, hidden: int, vocab: int) -> dict[str, tuple[int, ...]]:
    norms = {f"model.layers.{i}.{n}_layernorm.weight": (hidden,) for i in range(layers) for n in ("input", "post_attention")}
    return norms | {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def llama2_70b(folder: Path) -> Source:
    shapes = around(80, 8192, 32000)
    for i in range(80):
        shapes |= attention(i, q_proj=(8192, 8192), k_proj=(1024, 8192), v_proj=(1024, 8192), o_proj=(8192, 8192))
        shapes |= mlp(f"model.layers.{i}.mlp", 8192, 28672)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096, "vocab_size": 32000, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    return header(folder, config, shapes)


def deepseek_v3(folder: Path) -> Source:
    """61 layers with 256 experts in 58 of them, as published but for FP8: 671B parameters in 45,395 tensors."""
    shapes = around(61, 7168, 129280)
    for i in range(61):
        shapes |= attention(
            i, q_a_proj=(1536, 7168), q_a_layernorm=(1536,), q_b_proj=(24576, 1536), kv_a_proj_with_mqa=(576, 7168), kv_a_layernorm=(512,),
            kv_b_proj=(32768, 512), o_proj=(7168, 16384),
        )  # fmt: skip
        stem = f"model.layers.{i}.mlp"
        if i < 3:
            shapes |= mlp(stem, 7168, 18432)
            continue
        shapes |= {f"{stem}.gate.weight": (256, 7168), f"{stem}.gate.e_score_correction_bias": (256,)}
        shapes |= mlp(f"{stem}.shared_experts", 7168, 2048)
        for e in range(256):
            shapes |= mlp(f"{stem}.experts.{e}", 7168, 2048)
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
        "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
        "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "max_position_embeddings": 163840, "vocab_size": 129280,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "hidden_act": "silu", "num_nextn_predict_layers": 1, "tie_word_embeddings": False,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
                         "mscale": 1.0, "mscale_all_dim": 1.0},
    }  # fmt: skip
    return header(folder, config, shapes)


def planned(source: Source, asked: Recipe) -> Plan:
    c = open_checkpoint(source)
    e = extend(c, asked)
    return plan_gguf(c, Request(e.rope, e.context, Path("out.gguf"), recipe_of(e.rope)))


@pytest.mark.parametrize(
    ("make_source", "count", "parameters", "asked"),
    [
        (llama2_70b, 723, 68_976_648_192, Recipe(scale=4)),
        (deepseek_v3, 45_395, 671_026_419_200, Recipe(method="none")),
        (deepseek_v3, 45_395, 671_026_419_200, Recipe(context=655_360)),
    ],
    ids=["Llama 2 70B", "DeepSeek V3", "DeepSeek V3, extended"],
)
def test_the_largest_models_are_planned_in_a_moment(make_source: Any, count: int, parameters: int, asked: Recipe, tmp_path: Path) -> None:
    """Every byte of the output is accounted for, with work that grows as the tensors do: the square of them would take minutes."""
    source = make_source(tmp_path / "m")
    assert source.headers is not None and len(source.headers) == count
    begin = time.process_time()
    (job,) = planned(source, asked).jobs
    seconds = time.process_time() - begin
    assert sum(math.prod(p.target.shape) for p, _ in job.pieces) == parameters
    assert seconds < 15
