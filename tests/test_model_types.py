"""Model types without a row: a tiny model of each, extended in its folder, and run past its window in transformers' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import Reference
from yarn_convert.conversion import convert, extend
from yarn_convert.errors import Unsupported, UsageError
from yarn_convert.options import Recipe
from yarn_convert.rope import Table, effect

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.23")

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 263,
    "max_position_embeddings": CONTEXT, "initializer_range": 0.3, "rope_theta": 1e4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 4, "moe_intermediate_size": 32,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {  # what each says besides SMALL
    "axk1": LATENT | {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_expand": 2},
    "jetmoe": {"kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "longcat_flash": LATENT
    | {"num_layers": 1, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "moe_topk": 2, "zero_expert_num": 1, "head_dim": 16},
}
ON_LOGITS = ("axk1", "longcat_flash")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("types")
    for name, more in MODELS.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(name, **SMALL | more)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
    return {name: root / name for name in MODELS}


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum())


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_computes_from_an_extension_is_the_recipe(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Its own scaling, of config.json, against the table that is put into the base; and the base's own is told apart."""
    convert(str(models[name]), Recipe(scale=4), output=tmp_path / "out")
    ids = np.random.default_rng(0).integers(3, 263, 4 * CONTEXT)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = net(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    base = open_checkpoint(resolve(str(models[name])))
    meant = effect(extend(base, Recipe(scale=4)).rope)
    reference = Reference(base)
    found = {what: nmse(reference.logits(t, ids, [(0, len(ids))]), theirs) for what, t in wrong(base, meant).items()}
    assert found.pop("meant") < 1e-9
    assert min(found.values()) > 1e-7, found


def wrong(base: Any, meant: Any) -> dict[str, Any]:
    """The effect that is meant, the base's, and those without a temperature."""
    plain = effect(base.rope)
    without = meant._replace(logits=1.0) if meant.logits != 1 else Table(meant.inv_freq, 1.0)
    return {"meant": meant, "no scaling": plain, "no temperature": without}


@pytest.mark.parametrize("name", ON_LOGITS)
def test_latent_attention_has_its_temperature_on_the_logits(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(resolve(str(models[name])))
    found = effect(extend(base, Recipe(scale=4)).rope)
    assert found.multiplier == 1 and found.logits > 1.2
    with pytest.raises(UsageError, match="mscale_all_dim"):
        extend(base, Recipe(scale=4, attention_factor=1.1))
    convert(str(models[name]), Recipe(scale=4), output=tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    assert (said["mscale"], said["mscale_all_dim"]) == (1.0, 1.0)
    assert effect(open_checkpoint(resolve(str(tmp_path / "out"))).rope).logits == pytest.approx(found.logits)
    assert base.kv_bytes(10) == 2 * (32 + 16) * 10 * 2


def test_none_of_them_becomes_a_gguf_here(models: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in models.items():
        with pytest.raises(Unsupported, match="no names"):
            convert(str(folder), Recipe(scale=4), out="gguf", output=tmp_path / f"{name}.gguf")
