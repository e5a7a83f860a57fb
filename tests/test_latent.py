"""MiniCPM and DeepSeek's kin: where YaRN's temperature goes, and what of their files no row's own tests say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT
from family_models import make
from safetensors.numpy import load_file
from test_hybrids import with_keys
from test_mla import edited, opened, put

from yarn_convert.conversion import extend
from yarn_convert.errors import Inexpressible, Unsupported
from yarn_convert.options import Recipe
from yarn_convert.rope import effect

M = 0.1 * math.log(4) + 1
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}


@pytest.mark.parametrize(("name", "on_logits"), [("minicpm3", False), ("glm4_moe_lite", True), ("youtu", True)])
def test_where_yarns_temperature_goes(name: str, on_logits: bool, tmp_path: Path) -> None:
    """To the logits where every reader of the family multiplies them."""
    model = make(name, tmp_path / "model")
    for out in ("a.gguf", "a"):
        found = effect(opened(put(model, tmp_path / out, method="yarn", scale=4)).rope)
        assert (found.multiplier, found.logits) == pytest.approx((1.0, M**2) if on_logits else (M, 1.0), rel=1e-6)


def test_minicpm3_with_a_temperature_of_the_logits_is_one_in_a_folder_alone(tmp_path: Path) -> None:
    """transformers multiplies them by mscale_all_dim, llama.cpp has no word for it; an extension puts it on cos and sin."""
    scaling = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
    model = edited(make("minicpm3", tmp_path / "base"), tmp_path / "m", {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": scaling})
    assert effect(opened(put(model, tmp_path / "a")).rope).logits == pytest.approx(M**2)
    with pytest.raises(Inexpressible, match="logits"):
        put(model, tmp_path / "a.gguf")
    assert effect(extend(opened(model), Recipe(scale=8)).rope).logits == 1.0


def test_a_gguf_of_minicpm_that_does_not_say_its_scales_is_extended_as_it_is(tmp_path: Path) -> None:
    """As older converters wrote it: llama.cpp then takes others, and so it becomes no folder."""
    model = put(make("minicpm", tmp_path / "m"), tmp_path / "a.gguf")
    old = with_keys(model, tmp_path / "old.gguf", drop="residual_scale")
    assert not opened(old).family.listed
    put(old, tmp_path / "b.gguf", method="yarn", scale=4)
    with pytest.raises(Unsupported, match="no names"):
        put(old, tmp_path / "out")


def test_glms_gguf_of_llama_cpps_converter_becomes_its_folder(tmp_path: Path) -> None:
    """Which does not say how experts are chosen: it is read by their bias, and not as DeepSeek V2. One that says it is a DeepSeek V3."""
    model = make("glm4_moe_lite", tmp_path / "m")
    ours = put(model, tmp_path / "a.gguf")
    theirs = with_keys(ours, tmp_path / "b.gguf", drop="expert_gating_func")
    for path, name in ((ours, "deepseek_v3"), (theirs, "glm4_moe_lite")):
        assert opened(path).family.model_type == name
        assert opened(put(path, tmp_path / name)).family.model_type == name
    assert load_file(tmp_path / "glm4_moe_lite" / "model.safetensors").keys() == load_file(model / "model.safetensors").keys()


def test_glms_gguf_with_a_layer_of_further_tokens_is_extended_as_it_is(tmp_path: Path) -> None:
    """As llama.cpp's converter writes it by default: no row has names for what is in that layer."""
    path = with_keys(put(make("glm4_moe_lite", tmp_path / "m"), tmp_path / "a.gguf"), tmp_path / "b.gguf", nextn_predict_layers=1)
    assert not opened(path).family.listed
    found = effect(opened(put(path, tmp_path / "c.gguf", method="yarn", scale=4)).rope)
    assert (found.multiplier, found.logits) == pytest.approx((1.0, M**2), rel=1e-6)


@pytest.mark.parametrize(("said", "dense"), [({}, 1), ({"first_k_dense_replace": 2}, 1), ({"mlp_layer_types": ["dense", "dense"]}, 2)])
def test_which_of_glms_layers_are_dense_is_what_transformers_takes(said: dict[str, Any], dense: int, tmp_path: Path) -> None:
    config = {"first_k_dense_replace": 1, "mlp_layer_types": None} | said
    assert opened(make("glm4_moe_lite", tmp_path / "m", config=config)).hparams["first_k_dense_replace"] == dense


def test_keys_and_values_are_counted_as_each_keeps_them(tmp_path: Path) -> None:
    """transformers a vector of 32 numbers and 16 that turn in each of two layers, llama.cpp four heads of 32 and 24."""
    model = make("minicpm3", tmp_path / "m")
    assert opened(model).kv_bytes(100) == 2 * (32 + 16) * 100 * 2
    assert opened(put(model, tmp_path / "a.gguf")).kv_bytes(100) == 2 * 4 * (32 + 24) * 100 * 2
