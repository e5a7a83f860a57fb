"""What a config.json means, in every spelling that published checkpoints have: against transformers' config classes and models."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import CONTEXT
from test_readers import rotary_of

from yarn_convert import families
from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.config import language_model
from yarn_convert.checkpoint.source import Source
from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.describe import other_layers
from yarn_convert.errors import FormatError, Inexpressible, Unsupported, YarnConvertError
from yarn_convert.families import MODEL_TYPES, ModelType
from yarn_convert.families.model_types import SHAPE
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.readers import Refuses, read_config
from yarn_convert.rope import Table, effect

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from family_models import TINY, described, make  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

TYPES = list(dict.fromkeys(f.model_type for f in families.FAMILIES if f.model_type in transformers.CONFIG_MAPPING))
ALONE = [t for t in TYPES if t in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]  # and not only within another model


def config_of(model_type: str) -> dict[str, Any]:
    if model_type in TINY:
        return described(model_type)
    architecture = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[model_type]
    return described("mixtral") | {"model_type": model_type, "architectures": [architecture]}


def opened(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of which there is only config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(Source(folder, "model", headers={}))


def computed(config: Mapping[str, Any]) -> Table:
    """The table that transformers' model of this config.json turns by; of several that of the layers with full attention."""
    read = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    with torch.device("meta"):
        names = [n for n, _ in transformers.AutoModelForCausalLM.from_config(read).named_modules()]
    model = transformers.AutoModelForCausalLM.from_config(read)
    rotary = dict(model.named_modules())[next(n for n in names if n.endswith(("rotary_emb", "pos_emb")))]
    prefix = "full_attention_" if hasattr(rotary, "full_attention_inv_freq") else ""
    return Table(getattr(rotary, prefix + "inv_freq").double().numpy(), float(getattr(rotary, prefix + "attention_scaling")))


def same(ours: Any, theirs: Table) -> bool:
    return ours.inv_freq.shape == theirs.inv_freq.shape and bool(
        np.allclose(ours.inv_freq, theirs.inv_freq, rtol=1e-6, atol=0) and abs(ours.multiplier / theirs.multiplier - 1) < 1e-6
    )


BY_LAYER = ("gemma3_text", "olmo3", "gemma4_text", "gemma3n_text")  # an object for each type of layers


@pytest.mark.parametrize("model_type", ALONE)
def test_a_config_that_transformers_5_saved_means_what_it_computes(model_type: str, tmp_path: Path) -> None:
    """It has θ inside rope_parameters and nowhere else."""
    config = {k: v for k, v in config_of(model_type).items() if k not in ("rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct")}
    plain = {"rope_type": "default", "rope_theta": 31337.0}
    layers = {"full_attention": plain, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    config["rope_parameters"] = layers if model_type in BY_LAYER else plain
    transformers.CONFIG_MAPPING[model_type].from_dict(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_theta" not in saved
    c = opened(tmp_path, saved | {"architectures": config["architectures"]})
    assert c.rope.theta == 31337.0
    saved.pop("time_step_limit", None)  # which from_dict does not take as it is saved
    assert same(effect(c.rope), computed(saved))


@pytest.mark.parametrize("unsaid", [{}, {"rope_scaling": None}, {"rope_parameters": None}])
@pytest.mark.parametrize("model_type", ["apertus", "cwm", "gpt_oss"])
def test_a_scaling_that_transformers_assumes_is_not_lost(model_type: str, unsaid: dict[str, None], tmp_path: Path) -> None:
    """These are scaled where config.json has no RoPE object."""
    config = {k: v for k, v in config_of("qwen3").items() if k not in ("rope_scaling", "rope_theta", "sliding_window")} | unsaid
    config |= {"model_type": model_type, "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]}
    c = opened(tmp_path, config | {"num_local_experts": 4, "num_experts_per_tok": 2})
    assert c.rope.method != "none"
    assert same(effect(c.rope), computed(config))


@pytest.mark.parametrize("name", [n for n in TINY if n in TYPES and n != "gpt_oss"] + ["gpt_oss/plain"])
def test_a_model_that_transformers_5_loaded_and_saved_is_the_same_gguf(name: str, tmp_path: Path) -> None:
    base = make(name, tmp_path / "base")
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    for path in base.iterdir():
        if not (tmp_path / "saved" / path.name).exists():
            (tmp_path / "saved" / path.name).write_bytes(path.read_bytes())
    for folder in ("base", "saved"):
        convert(str(tmp_path / folder), Recipe(method="none"), out="gguf", output=tmp_path / f"{folder}.gguf")
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{folder}.gguf") for folder in ("base", "saved"))
    assert {t.name: t.data.tobytes() for t in ours.tensors} == {t.name: t.data.tobytes() for t in theirs.tensors}
    keys = [{k: f.contents() for k, f in r.fields.items() if not k.startswith(("GGUF.", "general."))} for r in (ours, theirs)]
    assert {k for k in keys[0].keys() | keys[1].keys() if keys[0].get(k) != keys[1].get(k)} <= {"yarn_convert.recipe"}


@pytest.mark.parametrize("model_type", ALONE)
def test_a_silent_config_means_what_transformers_assumes(model_type: str, tmp_path: Path) -> None:
    """θ, the part of a head that turns, and every key of a row that is neither a size nor told by the tensors."""
    asked = ("rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor")
    config = {k: v for k, v in config_of(model_type).items() if k not in asked}
    assert same(effect(opened(tmp_path, config).rope), computed(config))


SILENT = {  # keys of which the tiny models say what transformers assumes, or that no key can be without
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size",
    "max_position_embeddings", "latent_key", "latent_value", "qk_head_dim", "rope_theta", "rope_local_base_freq",
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row in MODEL_TYPES.values() if row.shape], ids=lambda row: row.name)
def test_the_shape_of_a_row_is_that_of_the_config_class(row: ModelType) -> None:
    read = transformers.CONFIG_MAPPING[row.name]()
    found = (getattr(read, key) for key in SHAPE)
    assert row.shape == tuple(max(n) if isinstance(n, list) else n for n in found)  # one for each layer


@pytest.mark.parametrize("model_type", TYPES)
def test_the_defaults_of_a_row_are_those_of_the_config_class(model_type: str) -> None:
    """Every key that a GGUF carries, that llama.cpp's graph takes for granted or that turns tensors on. Where a row has no default,
    a silent config.json must mean one of the values that are taken for granted, and off for what turns tensors on."""
    read = transformers.CONFIG_MAPPING[model_type]()
    usual = read.to_dict()
    for family in (f for f in families.FAMILIES if f.model_type == model_type):
        mine = dict(family.hf.defaults)
        asked = {*family.hparams, *family.fixed, *family.hf.switches, *family.hf.defaults, "tie_word_embeddings"} - SILENT
        for key in (k.removeprefix("!") for k in asked):
            if (own := family.hf.own(key)) not in usual:
                continue
            silent = mine.get(own, mine.get(key))
            if silent is None and (model_type, key) == ("minicpm3", "v_head_dim"):  # made of others
                silent = family.hf.reads({k: v for k, v in usual.items() if k != key})[key]
            if key in family.fixed and silent is None:
                assert usual[own] in (*family.fixed[key], None), (model_type, key)
            else:
                assert (silent or False) == (usual[own] or False), (model_type, key)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("gpt_neox", {"rope_theta": 40000.0}),
        ("gpt_neox", {"partial_rotary_factor": 0.5}),
        ("falcon", {"layer_norm_eps": 0.1}),
        ("starcoder2", {"layer_norm_eps": 0.1}),
    ],
)
def test_of_two_names_for_one_key_the_familys_own_is_read(name: str, other: dict[str, float], tmp_path: Path) -> None:
    """transformers' model does not change by the other, so the GGUF must not."""
    config = described(name) | other
    twice, once = (opened(tmp_path, c) for c in (config, described(name)))
    assert same(effect(twice.rope), computed(config))
    assert twice.hparams == once.hparams


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("model_type", [t for t in ALONE if t not in ("phi3", "gemma4_text")])  # one takes yarn for longrope, one fails
def test_a_yarn_without_its_original_context_means_what_transformers_makes_of_it(model_type: str, where: str, tmp_path: Path) -> None:
    """It counts from max_position_embeddings, even where the model was trained on another length (Command R)."""
    objects = ("rope_scaling", "rope_parameters", "original_max_position_embeddings")
    config = {k: v for k, v in config_of(model_type).items() if k not in objects}
    yarn = LINEAR | {"rope_type": "yarn"} | ({"mscale": 1.0, "mscale_all_dim": 1.0} if "deepseek" in model_type else {})
    nested = model_type in BY_LAYER and where == "rope_parameters"
    config |= {"max_position_embeddings": 16 * CONTEXT, where: {FULL: yarn} if nested else yarn}
    config |= {"head_dim": 16} if model_type in ("mistral", "mixtral") else {}  # their config class leaves it None, and yarn fails
    assert same(effect(opened(tmp_path, config).rope), computed(config))


GEMMA4 = {
    "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def test_what_gemma_4_fails_at_is_refused(tmp_path: Path) -> None:
    config = {k: v for k, v in described("gemma4_text").items() if k != "rope_parameters"}
    for given, why in (
        ({"rope_scaling": LINEAR}, "transformers takes it for one of all layers"),
        ({"per_layer_config": {"0": {"head_dim": 32}}}, "global_head_dim"),
    ):
        with pytest.raises(Unsupported) as refused:
            opened(tmp_path, config | given)
        assert why in f"{refused.value.message} {refused.value.hint}"
    for dicts, word in (
        (GEMMA4, "original_max_position_embeddings"),
        ({"full_attention": GEMMA4["sliding_attention"]}, "without sliding_attention"),
    ):
        with pytest.raises(Refuses, match=word):
            read_config("transformers-5", config | {"rope_parameters": dicts})
        with pytest.raises(KeyError):
            computed(config | {"rope_parameters": dicts})


@pytest.mark.parametrize(("said", "used"), [({"moe_topk": 3}, 3), ({"num_experts_per_tok": 2}, 2), ({}, 1)])
def test_hunyuans_experts_have_two_names(said: dict[str, int], used: int, tmp_path: Path) -> None:
    config = (
        {k: v for k, v in described("hunyuan_v1_moe").items() if k not in ("moe_topk", "num_experts")} | said | {"num_local_experts": 4}
    )
    c, theirs = opened(tmp_path, config), transformers.AutoConfig.for_model(**config)
    assert (c.hparams["chosen_experts"], c.hparams["num_experts"]) == (used, 4) == (theirs.moe_topk, theirs.num_experts)


@pytest.mark.parametrize("name", ["hunyuan_v1_dense/alpha", "hunyuan_v1_moe/alpha"])
def test_hunyuans_dynamic_scaling_with_alpha_is_another_theta(name: str, tmp_path: Path) -> None:
    config = described(name)
    rope, reading = opened(tmp_path, config).rope, read_config("transformers-5", config)
    assert rope.method == "none"
    assert same(effect(rope), computed(config))
    assert same(Table(reading.inv_freq, reading.multiplier), computed(config))


SLIDES, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("name", "other", "word"),
    [
        ("gemma2", {"layer_types": [FULL, SLIDES]}, "in this order of layers"),
        ("gemma3_text", {"layer_types": [*[SLIDES, FULL] * 3, SLIDES]}, "in this order of layers"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"attn_logit_softcapping": None}, "without a cap"),
        ("gemma2", {"final_logit_softcapping": None}, "without a cap"),
        ("granite", {"attention_multiplier": 0.0}, "attention_multiplier = 0"),
        ("smollm3", {"layer_types": [SLIDES] * 4, "sliding_window": 16}, "layer_types"),
        ("olmo3", {"layer_types": [FULL, SLIDES] * 2}, "in this order of layers"),
        ("granitemoehybrid/turning", {"time_step_limit": [0.0, 0.01]}, "time steps within such limits"),
        ("exaone4", {"layer_types": [SLIDES, FULL], "sliding_window": 16}, "in this order of layers"),
        ("gemma3n_text", {"activation_sparsity_pattern": [0.0] * 5}, "activation_sparsity_pattern"),
        ("gemma3n_text", {"altup_active_idx": 1}, "altup_active_idx = 1"),
        ("gemma3n_text", {"altup_correct_scale": False}, "altup_correct_scale = False"),
        ("gemma3n_text", {"final_logit_softcapping": 20.0}, "final_logit_softcapping = 20.0"),
        ("gemma3n_text/sharing", {"num_kv_shared_layers": 3}, "keys that these layers share"),
    ],
)
def test_what_changes_a_graph_is_refused_as_a_gguf(name: str, other: dict[str, Any], word: str, tmp_path: Path) -> None:
    """transformers computes something else with it, and llama.cpp has no key for it."""
    base, changed = make(name, tmp_path / "base"), make(name, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text()) | other
    (changed / "config.json").write_text(json.dumps(config))
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 263, (1, CONTEXT - 8)))
    with torch.no_grad():
        models = [transformers.AutoModelForCausalLM.from_pretrained(p, attn_implementation="eager").eval() for p in (base, changed)]
        assert not torch.allclose(*(m(ids).logits for m in models), atol=1e-4)
    prepare(str(base), ConvertOptions(Recipe(method="none"), out="gguf"))
    with pytest.raises(Inexpressible, match=word):
        prepare(str(changed), ConvertOptions(Recipe(method="none"), out="gguf"))


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"laurel_rank": 8}, "laurel_rank = 8"),
        ({"altup_num_inputs": 3}, "altup_num_inputs = 3"),
        ({"hidden_size_per_layer_input": 32}, "hidden_size_per_layer_input = 32"),
        ({"intermediate_size": [64] * 4 + [32]}, "feed-forward layers of more than one size"),
        ({"vocab_size_per_layer_input": 300}, "embeddings of each layer for another number of tokens"),
    ],
)
def test_a_gemma_3n_of_other_sizes_stays_a_folder(other: dict[str, Any], word: str, tmp_path: Path) -> None:
    base = make("gemma3n_text", tmp_path / "base", config={"intermediate_size": [64] * 5, **other})
    convert(str(base), Recipe(scale=4), output=tmp_path / "out")
    assert open_checkpoint(Source(tmp_path / "out", "out")).rope.method == "yarn"
    with pytest.raises(Inexpressible, match=word):
        prepare(str(base), ConvertOptions(Recipe(scale=4), out="gguf"))


def test_a_gguf_of_gemma_3n_is_known_by_its_vocabulary() -> None:
    """As published, without the key that ours have: 256 tokens are of images and sounds, and have no embeddings for each layer."""
    fills = families.for_config({"model_type": "gemma3n_text"}).fills
    rows = [fills({"vocab_size": n, "num_hidden_layers": 30})["vocab_size_per_layer_input"] for n in (262400, 262144, 1000)]
    assert rows == [262144, 262144, 1000]


LINEAR = {"rope_type": "linear", "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("spelled", "word"),
    [
        ({"rope_parameters": LINEAR}, "passes it over"),
        ({"rope_parameters": {FULL: PLAIN, SLIDES: LINEAR | {"rope_theta": 1e4}}}, "other layers"),
    ],
)
def test_a_rope_object_that_gemma_3_has_no_place_for_is_refused(spelled: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=word):
        opened(tmp_path, described("gemma3_text") | spelled)


@pytest.mark.parametrize("spelled", [{}, {"rope_parameters": {FULL: PLAIN, SLIDES: {"rope_type": "default", "rope_theta": None}}}], ids=str)
def test_a_null_theta_of_the_sliding_layers_is_an_absent_one(spelled: dict[str, Any], tmp_path: Path) -> None:
    c = opened(tmp_path, described("gemma3_text") | {"rope_local_base_freq": None} | spelled)
    assert other_layers(c).endswith("keep theta 10000")


@pytest.mark.parametrize("theta", [0, -1.0, 1.0, float("nan")])
def test_a_theta_of_the_sliding_layers_that_gives_no_table_is_refused(theta: float, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="rope_local_base_freq is"):
        opened(tmp_path, described("gemma3_text") | {"rope_local_base_freq": theta})


@pytest.mark.parametrize(
    ("made_as", "said"),
    [
        ({}, {"use_parallel_residual": True}),
        ({"use_parallel_residual": True}, {"use_parallel_residual": False}),
        ({}, {"qk_layernorm": True}),
        ({"qk_layernorm": True}, {"qk_layernorm": False}),
    ],
)
@pytest.mark.parametrize("out", ["gguf", "safetensors"])
def test_norms_that_a_config_turns_on_are_there_and_no_others(
    made_as: dict[str, Any], said: dict[str, Any], out: str, tmp_path: Path
) -> None:
    """StableLM: transformers goes by config.json, and llama.cpp by the tensors."""
    folder = make("stablelm", tmp_path / "model", config=made_as)
    prepare(str(folder), ConvertOptions(Recipe(method="none"), out=out))
    config = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(YarnConvertError, match=r"are missing|does not turn on"):
        prepare(str(folder), ConvertOptions(Recipe(method="none"), out=out))


PUBLISHED: Mapping[str, Mapping[str, Any]] = json.loads((Path(__file__).parent / "data" / "published.json").read_text("utf-8"))


@pytest.mark.parametrize("repo", PUBLISHED)
def test_a_published_config_means_the_table_that_transformers_computes(repo: str, tmp_path: Path) -> None:
    """RoPE and shape of what people run most, as their config.json says them: read without weights, in less than a second, 671B too."""
    started = time.perf_counter()
    c = opened(tmp_path / "model", PUBLISHED[repo])
    assert time.perf_counter() - started < 5
    text = {k: v for k, v in language_model(PUBLISHED[repo]).items() if k not in ("vision_config", "architectures")}
    for theirs, ours in zip(rotary_of(torch, transformers, dict(text), c.family.hf), (effect(c.rope), c.other_layers), strict=False):
        assert ours is not None and same(ours, Table(theirs[0].astype(np.float64), theirs[1]))
