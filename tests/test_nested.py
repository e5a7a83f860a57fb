"""Language models within others, as of those that see: found, extended and validated where config.json has them; all around them stays."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, VOCAB, tokenizer_files
from safetensors.numpy import load_file, save_file
from test_families import ONLY_OURS, fields_of, of_converter, tensors_of

from yarn_convert import Recipe, YarnConvertError, convert, finetune, validate
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.config import nest_of
from yarn_convert.checkpoint.manifest import read_manifest
from yarn_convert.checkpoint.source import Source, resolve
from yarn_convert.compute.reference import Reference
from yarn_convert.compute.values import changed_since, other_model
from yarn_convert.conversion.describe import findings
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.families.schema import ROPE_OBJECTS
from yarn_convert.formats.json_text import edit_within
from yarn_convert.options import RepairOptions, Texts
from yarn_convert.readers import Refuses, read_config
from yarn_convert.readers.judge import judge_configs
from yarn_convert.rope import effect, geometric

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
from family_models import make  # noqa: E402

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SEES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
QWEN_SEES = {"hidden_size": 32, "intermediate_size": 32, "depth": 2, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GEMMA_LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


MINISTRAL = rope(1e6, type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                 llama_4_scaling_beta=0.1)  # fmt: skip
MINISTRAL["rope_parameters"]["rope_type"] = "yarn"

MISTRAL = {"rope_parameters": {**MINISTRAL["rope_parameters"], "rope_theta": 1e4, "partial_rotary_factor": 0.25}}
MISTRAL4 = {
    "model_type": "mistral4", "num_key_value_heads": 4, "head_dim": 64, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 48,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
}  # fmt: skip
# model_type -> (what its text_config has besides TEXT, its vision_config)
MODELS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "aria": ({}, SEES),
    "gemma3": ({"num_hidden_layers": 6, "layer_types": GEMMA_LAYERS, "sliding_window": 16, "query_pre_attn_scalar": 16}, SEES),
    "gemma4": (
        {
            "num_hidden_layers": 2,
            "layer_types": GEMMA_LAYERS[-2:],
            "sliding_window": 16,
            "global_head_dim": 32,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCAB,
            "initializer_range": 0.08,
        },
        {**SEES, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64},
    ),
    "llava": ({"model_type": "llama"}, {**SEES, "model_type": "clip_vision_model"}),
    "mistral3-ministral3": ({"model_type": "ministral3", **MINISTRAL}, SEES),
    "mistral3-mistral4": ({**MISTRAL4, **MISTRAL}, SEES),
    "mllama": (
        {"cross_attention_layers": [1], "num_hidden_layers": 3},
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2, "image_size": 16}
        | {"patch_size": 4, "vision_output_dim": 64, "intermediate_layers_indices": [0]},
    ),
    "mistral3": ({"model_type": "mistral", "sliding_window": None}, SEES),
    "paddleocr_vl": (rope(5e5, mrope_section=[2, 3, 3]), SEES),
    "qwen2_5_vl": (rope(1e6, mrope_section=[2, 3, 3]), {**QWEN_SEES, "fullatt_block_indexes": [1]}),
    "qwen2_vl": (rope(1e6, mrope_section=[2, 3, 3]), {"embed_dim": 32, "hidden_size": 64, "depth": 2, "num_heads": 2, "patch_size": 4}),
    "qwen3_5": (
        rope(1e7, partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True)
        | LINEAR
        | {"layer_types": ["linear_attention", "full_attention"]},
        QWEN_SEES,
    ),
    "qwen3_vl": (rope(5e5, mrope_section=[3, 3, 2], mrope_interleaved=True), {**QWEN_SEES, "deepstack_visual_indexes": [0]}),
    "qwen3_vl_moe": (rope(5e5, mrope_section=[3, 3, 2], mrope_interleaved=True) | MOE, {**QWEN_SEES, "deepstack_visual_indexes": [0]}),
}
S = 4
NAMED = [name for name in MODELS if name not in ("aria", "paddleocr_vl", "gemma3n", "mistral3-mistral4", "mllama")]  # with a row


def spread(folder: Path) -> None:
    """As Qwen2.5-VL is published: the language model's values at the top of config.json, and its tensors without a name of its own."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    theta = text.pop("rope_parameters")["rope_theta"]
    flat = {
        "rope_theta": theta,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        **{k: v for k, v in text.items() if k != "layer_types"},
    }
    (folder / "config.json").write_text(json.dumps(flat | config, indent=2))
    tensors = load_file(folder / "model.safetensors")
    plain = {re.sub(r"^model\.(visual)|^(model)\.language_model", r"\1\2", name): t for name, t in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def columns(folder: Path) -> None:
    """As Qwen3-VL's experts are published: gate beside up, and all the other way round than transformers saves them."""
    tensors = load_file(folder / "model.safetensors")
    turned = {name: np.ascontiguousarray(t.swapaxes(1, 2)) if ".experts." in name else t for name, t in tensors.items()}
    save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})


PUBLISHED = {"qwen2_5_vl": spread, "qwen3_vl_moe": columns}
GEMMA3N = {
    "model_type": "gemma3n_text", "num_hidden_layers": 4, "intermediate_size": [96, 96, 96, 96], "sliding_window": 16, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB,
    "laurel_rank": 8, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each type, as transformers saves it, and its extension beside it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as CLASSES

    root, found = tmp_path_factory.mktemp("nested"), {}
    transformers.logging.disable_progress_bar()
    for name, (text, sees) in MODELS.items():
        config = transformers.AutoConfig.for_model(name.partition("-")[0], text_config={**TEXT, **text}, vision_config=dict(sees))
        torch.manual_seed(0)
        CLASSES[type(config)]._from_config(config).save_pretrained(root / name)
        if name in PUBLISHED:
            PUBLISHED[name](root / name)
        for file, content in tokenizer_files().items():
            (root / name / file).write_bytes(content)
        found[name] = root / name
        convert(str(root / name), Recipe(context=S * CONTEXT), output=root / f"{name}-x")
    return found


def extended(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-x")


def logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """What transformers computes from a folder as it stands."""
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    with torch.no_grad():
        return kind.from_pretrained(folder).eval()(torch.from_numpy(ids)[None]).logits[0].numpy()


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum() / ((b - b.mean(-1, keepdims=True)) ** 2).sum())


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_what_is_meant_past_the_window(name: str, models: dict[str, Path]) -> None:
    """Its own reading of the folder against its own layers under the paper's table; and not what it computed before."""
    ids = np.random.default_rng(0).integers(3, VOCAB, 3 * CONTEXT)
    base, out = (open_checkpoint(resolve(str(p))) for p in (models[name], extended(models[name])))
    assert (out.rope.method, out.context, out.nest) == ("yarn", S * CONTEXT, () if name == "qwen2_5_vl" else ("text_config",))
    theirs, meant = logits(extended(models[name]), ids), Reference(base, "cpu").logits(effect(out.rope), ids, [(0, len(ids))])
    assert nmse(theirs, meant) < 1e-9
    assert nmse(logits(models[name], ids), meant) > 1e-6


def test_latent_attention_has_its_temperature_on_the_logits_within_others_too(models: dict[str, Path]) -> None:
    out = effect(open_checkpoint(resolve(str(extended(models["mistral3-mistral4"])))).rope)
    assert out.multiplier == 1 and out.logits == pytest.approx((0.1 * np.log(16) + 1) ** 2)


@pytest.mark.parametrize("beta", [0.1, 0.2])
def test_a_temperature_of_the_position_that_is_not_the_model_type_s_own_is_said(
    beta: float, models: dict[str, Path], tmp_path: Path
) -> None:
    """0.1 is the default of transformers' Mistral4Config."""
    folder = shutil.copytree(models["mistral3-mistral4"], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"]["llama_4_scaling_beta"] = beta
    (folder / "config.json").write_text(json.dumps(config))
    found = [line for line in findings(open_checkpoint(resolve(str(folder)))) if "only its base shows" in line]
    assert [line.startswith("llama_4_scaling_beta is 0.2, where mistral4 has 0.1") for line in found] == ([True] if beta == 0.2 else [])


@pytest.mark.parametrize("part", [None, 0.5])
def test_a_mistral4_that_does_not_say_which_part_of_a_head_turns_is_refused(part: Any, models: dict[str, Path], tmp_path: Path) -> None:
    """Of rope_scaling alone transformers would turn whole heads, and then fail."""
    folder = shutil.copytree(models["mistral3-mistral4"], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"]["partial_rotary_factor"] = part
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(YarnConvertError, match="partial_rotary_factor"):
        open_checkpoint(resolve(str(folder)))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen2_5_vl"])
def test_what_is_around_the_language_model_stays_byte_for_byte(name: str, models: dict[str, Path]) -> None:
    old, new = ((p / "config.json").read_text() for p in (models[name], extended(models[name])))
    inner = [json.dumps(json.loads(t)["text_config"], indent=2, ensure_ascii=False).replace("\n", "\n  ") for t in (old, new)]
    outside = [t.partition('"text_config"')[0] for t in (old, new)], [t.partition('"vision_config"')[2] for t in (old, new)]
    assert all(a == b and a for a, b in outside)
    assert inner[0] != inner[1]
    for path in models[name].iterdir():
        if path.name not in ("config.json", "tokenizer_config.json"):
            assert (extended(models[name]) / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", NAMED)
def test_it_is_validated_and_so_is_its_twin(name: str, models: dict[str, Path]) -> None:
    """Whole, with what sees beside it; the twin is of the language model, in a model around it that has one layer of zeros."""
    result = validate(str(extended(models[name])), base=str(models[name]), runtimes=("transformers",), tokens=2 * CONTEXT).to_dict()
    assert result["verdict"] == "passed", result["reasons"]
    assert [study["kind"] for study in result["studies"]] == ["real", "twin"]
    assert all(w["told_apart"] for w in result["studies"][1]["wrong_recipes"])


def test_a_config_alone_has_a_twin(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((extended(models["qwen3_vl"]) / "config.json").read_bytes())
    result = validate(str(tmp_path), real=False, runtimes=("transformers",)).to_dict()
    assert result["verdict"] == "passed", result["reasons"]


NO_CONTEXT, NO_CLAIM = "takes 8,192 tokens for the longest context", "not known"
# What the readers (vLLM, SGLang, mlx-lm, exllamav3) say of each extension, "" for exact
CLAIMS: Mapping[str, tuple[str, str, str, str]] = {
    **dict.fromkeys(("aria", "gemma4", "mistral3-mistral4", "mllama", "paddleocr_vl"), (NO_CLAIM,) * 4),
    "gemma3": ("", "frequencies off", "", "takes 131,072 tokens"),
    "llava": ("", "", "", NO_CLAIM),
    "mistral3-ministral3": ("no temperature of the position", "grow after 16,384 tokens instead of 16", "", NO_CONTEXT),
    "mistral3": ("", "", "", NO_CONTEXT),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), ("frequencies off", "", "", NO_CLAIM)),
    "qwen3_5": ("", "rotates 4 dimensions instead of 8", "", NO_CONTEXT),
    "qwen3_vl": ("", "", "without tie_word_embeddings", NO_CONTEXT),  # which published ones have, and those that transformers saves not
    "qwen3_vl_moe": ("", "", "without num_experts", NO_CONTEXT),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_other_readers_make_of_it_is_said_and_nothing_of_what_was_not_run(name: str, models: dict[str, Path]) -> None:
    out = open_checkpoint(resolve(str(extended(models[name]))))
    verdicts = judge_configs(out.written, out.rope, out.context, out.beside(out.rope))
    for reader, said in zip(("vllm", "sglang", "mlx-lm", "exllamav3"), CLAIMS[name], strict=True):
        assert verdicts[reader].exact if not said else said in verdicts[reader].why, (reader, verdicts[reader].why)
    assert verdicts["transformers-5"].exact
    assert verdicts["transformers-4"].kind == "unknown"


@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl", "qwen3_vl_moe"])
def test_theta_alone_is_read_by_all_that_are_known(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Where YaRN is lost: in SGLang, in vLLM, in mlx-lm."""
    convert(str(models[name]), Recipe(method="ntk-aware", context=S * CONTEXT), output=tmp_path / "out")
    out = open_checkpoint(resolve(str(tmp_path / "out")))
    keys = {"tie_word_embeddings": False, "norm_topk_prob": True, "num_experts": 4, "mlp_only_layers": [], "decoder_sparse_step": 1}
    verdicts = judge_configs({**keys, **out.written}, out.rope, out.context, out.beside(out.rope))
    assert all(verdicts[reader].exact for reader in ("transformers-5", "vllm", "sglang", "mlx-lm")), verdicts


def test_mlx_lm_passes_over_the_scaling_of_qwen3_vl_with_experts(models: dict[str, Path]) -> None:
    """With the keys that published ones have and transformers 5 leaves out when it saves one."""
    out = open_checkpoint(resolve(str(extended(models["qwen3_vl_moe"]))))
    keys = {"tie_word_embeddings": False, "norm_topk_prob": True, "num_experts": 4, "mlp_only_layers": [], "decoder_sparse_step": 1}
    read = read_config("mlx-lm", {**out.written, **keys})
    np.testing.assert_allclose(read.inv_freq, geometric(5e5, 16), rtol=1e-12)
    assert "rope_scaling" in read.ignored


def test_a_gguf_of_one_without_a_row_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(YarnConvertError, match="have no names here"):
        convert(str(models["aria"]), Recipe(scale=S), out="gguf", output=tmp_path / "out.gguf")


@pytest.fixture(scope="session")
def oracles(converter: Path, models: dict[str, Path]) -> dict[str, Path]:
    """llama.cpp's GGUF of each language model."""
    return dict(zip(NAMED, of_converter(converter, [models[name] for name in NAMED]), strict=True))


@pytest.mark.parametrize("name", NAMED)
def test_a_gguf_holds_the_language_model_as_llama_cpps_converter_makes_it(
    name: str, models: dict[str, Path], oracles: dict[str, Path], tmp_path: Path
) -> None:
    done = convert(str(models[name]), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    assert any("tensors are left out, of the model around" in note for note in done.manifest.notes)
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(oracles[name])
    ours, theirs = fields_of(tmp_path / "a.gguf"), fields_of(oracles[name])
    assert {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)} <= {k for k in ONLY_OURS if k not in theirs}


@pytest.mark.parametrize("name", NAMED)
def test_llama_cpp_computes_from_it_what_is_meant_past_the_window(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    convert(str(models[name]), Recipe(scale=S), out="gguf", output=tmp_path / "a.gguf")
    result = validate(str(tmp_path / "a.gguf"), base=str(models[name]), runtimes=("llama.cpp",)).to_dict()
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_a_folder_of_such_a_gguf_stands_alone(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    """As the model that computes the same from a text: transformers has no class for the language model by itself."""
    convert(str(models[name]), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    done = convert(str(tmp_path / "a.gguf"), Recipe(scale=S), out="safetensors", output=tmp_path / "out")
    kin = name.replace("_vl", "").replace("2_5", "2")
    assert any(f"it is written as {kin}, which computes what {name}_text does" in note for note in done.manifest.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kin
    result = validate(str(tmp_path / "out"), base=str(tmp_path / "a.gguf"), runtimes=("transformers",)).to_dict()
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]


def test_what_predicts_tokens_further_on_is_left_out_of_a_gguf_and_stays_in_a_folder(models: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(models["qwen3_5"], base)
    more = load_file(base / "model.safetensors") | {"mtp.fc.weight": np.ones((4, 4), np.float32)}
    save_file(more, base / "model.safetensors", metadata={"format": "pt"})
    for folder, out in ((base, "a.gguf"), (models["qwen3_5"], "b.gguf")):
        done = convert(str(folder), Recipe(scale=S), out="gguf", output=tmp_path / out).manifest
        assert any("1 tensor is left out: layers that predict tokens further on" in note for note in done.notes) == (out == "a.gguf")
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    convert(str(base), Recipe(scale=S), output=tmp_path / "out")
    assert "mtp.fc.weight" in load_file(tmp_path / "out" / "model.safetensors")
    result = validate(str(tmp_path / "out"), base=str(base), runtimes=("transformers",), tokens=2 * CONTEXT).to_dict()
    assert result["verdict"] == "passed", result["reasons"]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ({"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064}, (32064, 4096, 32)),
        ({"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}, (262208, 2560, 8)),
    ],
)  # fmt: skip
def test_what_a_language_model_within_another_leaves_out_is_its_classs(
    text: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """As LLaVA 1.5 and Gemma 3 are published."""
    outer = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    c = open_checkpoint(Source(tmp_path, "m", headers={}))
    assert tuple(c.hparams[k] for k in ("vocab_size", "hidden_size", "num_attention_heads")) == shape
    assert len(read_config("transformers-5", c.written).inv_freq) == c.rope.rotary_dim // 2


def test_experts_as_transformers_saves_them_are_the_same_gguf(models: dict[str, Path], tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(models["qwen3_vl_moe"], saved)
    columns(saved)
    for folder, out in ((models["qwen3_vl_moe"], "a.gguf"), (saved, "b.gguf")):
        convert(str(folder), Recipe(method="none"), out="gguf", output=tmp_path / out)
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")


def test_a_lost_scaling_is_repaired_where_it_stands(models: dict[str, Path], tmp_path: Path) -> None:
    plan = plan_repair(str(models["qwen3_vl"]), RepairOptions(recipe=Recipe(scale=S), output=tmp_path / "out"))
    plan.run()
    assert (tmp_path / "out" / "config.json").read_text() == (extended(models["qwen3_vl"]) / "config.json").read_text()


@pytest.mark.parametrize(
    "more",
    [
        GEMMA3N,
        {"model_type": "olmo3", "sliding_window": 16, "num_hidden_layers": 4, "head_dim": None},
        {"model_type": "ministral3", **MINISTRAL},
    ],
    ids=str,
)
def test_so_it_is_for_new_models_that_stand_alone(more: dict[str, Any], tmp_path: Path) -> None:
    """Layers with a RoPE each, of which one is extended; and a temperature of the position, which stays."""
    config = transformers.AutoConfig.for_model(**{k: v for k, v in {**TEXT, "pad_token_id": 0, **more}.items() if v is not None})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    convert(str(tmp_path / "m"), Recipe(context=4 * CONTEXT), output=tmp_path / "m-x")
    ids = np.random.default_rng(0).integers(3, VOCAB, 3 * CONTEXT)
    base, out = (open_checkpoint(resolve(str(tmp_path / name))) for name in ("m", "m-x"))
    meant = Reference(base, "cpu").logits(effect(out.rope), ids, [(0, len(ids))])
    assert nmse(logits(tmp_path / "m-x", ids), meant) < 1e-9
    assert nmse(logits(tmp_path / "m", ids), meant) > 1e-6


def test_a_gemma_3n_within_its_whole_model_is_the_same_gguf(tmp_path: Path) -> None:
    """Its vision tower is another package's, so the model around it is made by hand: an object of config.json, longer names, one tensor more."""
    alone, whole = make("gemma3n_text", tmp_path / "alone", config={"intermediate_size": [64] * 5}), tmp_path / "whole"
    shutil.copytree(alone, whole)
    text = json.loads((alone / "config.json").read_text())
    outer = {"model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"], "text_config": text, "vision_config": {}}
    (whole / "config.json").write_text(json.dumps(outer))
    tensors = {name.replace("model.", "model.language_model.", 1): w for name, w in load_file(alone / "model.safetensors").items()}
    tensors["model.vision_tower.timm_model.conv_stem.conv.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    for folder, out in ((alone, "a.gguf"), (whole, "b.gguf")):
        convert(str(folder), Recipe(scale=S), out="gguf", output=tmp_path / out)
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    assert fields_of(tmp_path / "a.gguf") == fields_of(tmp_path / "b.gguf")


def test_where_a_language_model_stands() -> None:
    inner = {"model_type": "llama"}
    assert nest_of({"model_type": "llama"}) == ()
    assert nest_of({"model_type": "x", "text_config": inner}) == ("text_config",)
    assert nest_of({"model_type": "x", "thinker_config": {"text_config": inner}}) == ("thinker_config", "text_config")
    assert nest_of({"model_type": "x", "text_config": None, "llm_config": inner}) == ("llm_config",)


def test_an_object_within_is_edited_and_nothing_else() -> None:
    text = '{"a": 1,\n "b": {"c": {\n  "d": 1.50,\n  "e": [ 1 ]\n }, "x": 2e0}}'
    assert edit_within(text, ("b", "c"), {"d": 2}) == text.replace("1.50", "2")
    assert edit_within(text, (), {"a": 3}) == text.replace("1,", "3,")
    with pytest.raises(ValueError, match="no 'c'"):
        edit_within(text, ("c",), {})


def test_another_model_around_it_is_not_the_bases(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(extended(models["llava"]), out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"vision_feature_layer": -1}))
    result = validate(str(out), base=str(models["llava"]), runtimes=("transformers",), tokens=2 * CONTEXT).to_dict()
    assert result["verdict"] == "failed"
    assert "what stands around its language model is not the base's" in " ".join(result["reasons"])


def test_another_temperature_of_the_position_is_not_the_bases(models: dict[str, Path], tmp_path: Path) -> None:
    """Of a mistral4, whose RoPE object alone says it, so that no hparam of the family does."""
    base = open_checkpoint(resolve(str(models["mistral3-mistral4"])))
    out = shutil.copytree(extended(models["mistral3-mistral4"]), tmp_path / "out")
    same, manifest = open_checkpoint(resolve(str(out))), read_manifest(out)
    assert other_model(same, base) == changed_since(same, manifest) == ""
    config = json.loads((out / "config.json").read_text())
    for rope in (config["text_config"][k] for k in ROPE_OBJECTS):
        assert rope.pop("llama_4_scaling_beta") == 0.1
    for beta in (0.4, None):
        for rope in (config["text_config"][k] for k in ROPE_OBJECTS):
            rope["llama_4_scaling_beta"] = beta
        (out / "config.json").write_text(json.dumps(config))
        c = open_checkpoint(resolve(str(out)))
        assert f"llama_4_scaling_beta is {beta}, the base's 0.1" in other_model(c, base)


def test_mrope_is_a_word_for_no_scaling_in_models_that_have_it() -> None:
    spelled = {"type": "mrope", "rope_type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    theirs = transformers.AutoConfig.for_model("qwen2_5_vl_text", rope_parameters=dict(spelled), **TEXT).rope_parameters
    assert theirs["rope_type"] == "default"
    read = read_config("transformers-5", {"model_type": "qwen2_5_vl_text", "rope_parameters": spelled, **TEXT})
    np.testing.assert_allclose(read.inv_freq, geometric(1e6, 16), rtol=1e-12)
    with pytest.raises(Refuses, match="unknown rope type 'mrope'"):
        read_config("transformers-5", {"model_type": "llama", "rope_parameters": spelled, **TEXT})


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_what_reads_is_trained_and_what_sees_stays(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is around the language model has to stay byte for byte. " * 40, "utf-8")
    texts = Texts(files=(text,))
    finetune(str(models[name]), Recipe(scale=S), texts=texts, sequence=96, steps=1, batch=1, output=tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (models[name], tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert changed == {k for k in before if "language_model" in k or k.startswith("lm_head")}
    assert validate(str(tmp_path / "out"), base=str(models[name]), runtimes=("transformers",), tokens=128, twin=False).passed
