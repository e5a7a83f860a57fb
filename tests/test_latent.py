"""MiniCPM and DeepSeek's kin: where YaRN's temperature goes, and what of their files no row's own tests say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import CONTEXT
from family_models import make
from test_hybrids import with_keys
from test_mla import edited, opened, put

from yarn_convert.conversion import extend
from yarn_convert.errors import Inexpressible, Unsupported
from yarn_convert.options import Recipe
from yarn_convert.rope import effect

M = 0.1 * math.log(4) + 1
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}


@pytest.mark.parametrize(("name", "on_logits"), [("minicpm3", False)])
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


def test_keys_and_values_are_counted_as_each_keeps_them(tmp_path: Path) -> None:
    """transformers a vector of 32 numbers and 16 that turn in each of two layers, llama.cpp four heads of 32 and 16."""
    model = make("minicpm3", tmp_path / "m")
    assert opened(model).kv_bytes(100) == 2 * (32 + 16) * 100 * 2
    assert opened(put(model, tmp_path / "a.gguf")).kv_bytes(100) == 2 * 4 * (32 + 16) * 100 * 2
