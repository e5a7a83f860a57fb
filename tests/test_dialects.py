"""A dialect round-trips a recipe's table exactly, or raises Inexpressible. There is no third outcome."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_convert import dialects, readers
from yarn_convert.checkpoint.config import checked_config
from yarn_convert.errors import Disagreement, FormatError, Inexpressible, InputError, Unsupported
from yarn_convert.families import LLAMA
from yarn_convert.formats.gguf_file import Value
from yarn_convert.rope import Rope, same, table
from yarn_convert.targets.plan import edited

D, L, THETA = 64, 2048, 100000.0
INNER = Rope("llama3", THETA, D, 512, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})
BASE = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": L, "rope_theta": THETA}


def roped(method: str, inner: Rope | None = None, **params: Any) -> Rope:
    return Rope(method, THETA, D, L, params, inner)


ROPES = {
    "none": roped("none"),
    "linear": roped("linear", factor=4.0),
    "ntk-aware": roped("ntk-aware", factor=4.0),
    "abf": roped("abf", theta=1e6),
    "abf over llama3": roped("abf", INNER, theta=1e6),
    "cope": roped("cope"),
    "ntk-by-parts": roped("ntk-by-parts", factor=4.0),
    "yarn": roped("yarn", factor=4.0),
    "yarn, s = 1.5": roped("yarn", factor=1.5),
    "attention factor": roped("yarn", factor=4.0, attention_factor=1.5),
    "attention factor below 1": roped("yarn", factor=4.0, attention_factor=0.8),
    "betas": roped("yarn", factor=4.0, beta_fast=16.0, beta_slow=2.0),
    "no truncate": roped("yarn", factor=4.0, truncate=False),
    "paper": roped("yarn", factor=4.0, ramp="paper"),
    "yarn over llama3": roped("yarn", INNER, factor=4.0),
    "ntk-aware over llama3": roped("ntk-aware", INNER, factor=4.0),
    "llama3": INNER,
    "explicit": roped("explicit", factors=tuple(1.0 + i / 7 for i in range(32)), attention_factor=1.25),
}
# What has no word of its own: llama.cpp reads no betas for llama (Inexpressible), config.json no paper's ramp.
NO_METADATA = {
    "hf": {"abf over llama3", "cope", "paper", "yarn over llama3", "ntk-aware over llama3", "explicit"},
    "gguf": {"abf over llama3", "cope", "betas", "no truncate", "paper", "yarn over llama3", "ntk-aware over llama3", "llama3", "explicit"},
}


def from_hf(changes: dict[str, Any]) -> Rope:
    config = json.loads(json.dumps(edited(BASE, changes)))
    return dialects.hf_read(config)


def from_gguf(keys: dict[str, Value | None], factors: dict[str, np.ndarray]) -> Rope:
    stored = {k: float(np.float32(v.data)) if v.type == "f32" else v.data for k, v in keys.items() if v is not None}
    rope, ignored = dialects.gguf_read(stored, "llama", D, {k: v.astype(np.float32).astype(np.float64) for k, v in factors.items()})
    assert ignored == []
    return rope


@pytest.mark.parametrize("name", ROPES)
def test_config_json_metadata_round_trips_or_refuses(name: str) -> None:
    if name in NO_METADATA["hf"]:
        with pytest.raises(Inexpressible):
            dialects.hf_metadata(ROPES[name], 4 * L)
        return
    assert same(table(from_hf(dialects.hf_metadata(ROPES[name], 4 * L))), table(ROPES[name]))


@pytest.mark.parametrize("name", ROPES)
def test_config_json_lists_carry_every_table(name: str) -> None:
    read = from_hf(dialects.hf_tensors(ROPES[name], 4 * L))
    assert read.method == "explicit"
    assert same(table(read), table(ROPES[name]), rtol=1e-12)


@pytest.mark.parametrize("name", ROPES)
def test_gguf_metadata_round_trips_or_refuses(name: str) -> None:
    if name in NO_METADATA["gguf"]:
        with pytest.raises(Inexpressible):
            dialects.gguf_metadata(ROPES[name], 4 * L, LLAMA)
        return
    assert same(table(from_gguf(dialects.gguf_metadata(ROPES[name], 4 * L, LLAMA), {})), table(ROPES[name]))


@pytest.mark.parametrize("name", ROPES)
def test_gguf_factors_carry_every_table(name: str) -> None:
    keys, freqs = dialects.gguf_tensors(ROPES[name], 4 * L, LLAMA)
    assert keys["llama.rope.scaling.type"] == Value("str", "none")
    assert keys["llama.rope.scaling.factor"] is None, "a stray factor would scale twice"
    assert same(table(from_gguf(keys, freqs)), table(ROPES[name]))


@pytest.mark.parametrize("method", ["dynamic-ntk", "dynamic-linear", "dynamic-yarn"])
def test_nothing_carries_a_dynamic_method_over_a_longer_context(method: str) -> None:
    for spell in (
        lambda r: dialects.hf_metadata(r, 4 * L),
        lambda r: dialects.hf_tensors(r, L),
        lambda r: dialects.gguf_metadata(r, L, LLAMA),
        lambda r: dialects.gguf_tensors(r, L, LLAMA),
    ):
        with pytest.raises(Inexpressible):
            spell(roped(method))


@pytest.mark.parametrize("length", [L, L + 1, 4 * L])
def test_config_json_carries_a_bases_own_dynamic(length: int) -> None:
    """max_position_embeddings is L to all who read this type, whatever stands beside it."""
    rope = roped("dynamic-ntk", factor=4.0)
    spelled = dialects.hf_metadata(rope, L)
    assert (
        from_hf(spelled) == from_hf({"rope_scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 512}}) == rope
    )
    found = readers.read_config("transformers-5", edited(BASE, spelled), length)
    np.testing.assert_allclose(found.inv_freq, table(rope, length).inv_freq, rtol=1e-12)


@given(
    s=st.floats(1.01, 64),
    m=st.none() | st.floats(0.3, 3),
    betas=st.tuples(st.floats(0.2, 4), st.floats(5, 100)),
    truncate=st.booleans(),
    theta=st.floats(5e3, 5e6),
)
@settings(max_examples=200, deadline=None)
def test_any_yarn_is_carried_exactly_by_one_carrier_at_least(
    s: float, m: float | None, betas: tuple[float, float], truncate: bool, theta: float
) -> None:
    params = {"factor": s, "beta_slow": betas[0], "beta_fast": betas[1], "truncate": truncate} | ({"attention_factor": m} if m else {})
    rope = Rope("yarn", float(np.float32(theta)), D, L, params)
    assert same(table(from_hf(dialects.hf_metadata(rope, round(L * s)))), table(rope))
    assert same(table(from_gguf(*dialects.gguf_tensors(rope, round(L * s), LLAMA))), table(rope))


def test_both_spellings_are_there_agree_and_name_the_type_twice() -> None:
    changes = dialects.hf_metadata(ROPES["attention factor"], 4 * L)
    assert changes["rope_scaling"] == changes["rope_parameters"]
    assert changes["max_position_embeddings"] == 4 * L
    assert changes["rope_scaling"] == {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": THETA,
        "factor": 4.0,
        "original_max_position_embeddings": L,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.5,
        "mscale": pytest.approx((1.5 * (0.1 * math.log(4) + 1) - 1) / (0.1 * math.log(4))),
        "mscale_all_dim": 1.0,
    }


@pytest.mark.parametrize("name", ROPES)
def test_transformers_4_style_and_5_style_readers_see_one_table(name: str) -> None:
    for spell in (dialects.hf_metadata, dialects.hf_tensors):
        try:
            config = edited(BASE, spell(ROPES[name], 4 * L))
        except Inexpressible:
            continue
        for reader in ("transformers-4", "transformers-5"):
            reading = readers.read_config(reader, config)
            assert same(table(ROPES[name]), table(ROPES[name])._replace(inv_freq=reading.inv_freq, multiplier=reading.multiplier)), reader
            assert reading.context == 4 * L


@pytest.mark.parametrize("name", ["yarn", "attention factor", "ntk-by-parts", "linear", "ntk-aware"])
def test_every_main_reader_follows_the_common_methods(name: str) -> None:
    config = edited(BASE, dialects.hf_metadata(ROPES[name], 4 * L))
    for reader in readers.HF_READERS:
        reading = readers.read_config(reader, config)
        assert same(table(ROPES[name]), table(ROPES[name])._replace(inv_freq=reading.inv_freq, multiplier=reading.multiplier)), reader
        assert reading.context in (4 * L, None), reader  # None: mlx-lm has no limit of its own


# -- what is read -----------------------------------------------------------------------------------------------------


def scaling(**members: Any) -> dict[str, Any]:
    return {**BASE, "rope_scaling": members}


def test_the_authors_own_config_is_understood() -> None:
    """NousResearch/Yarn-Llama-2-7b-64k: {"factor":16,"original_max_position_embeddings":4096,"type":"yarn","finetuned":true}."""
    config = scaling(type="yarn", factor=16.0, original_max_position_embeddings=4096, finetuned=True)
    assert dialects.hf_read(config) == Rope("yarn", THETA, D, 4096, {"factor": 16.0})


def test_mscale_gives_the_multiplier_when_attention_factor_does_not() -> None:
    rope = dialects.hf_read(scaling(rope_type="yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.5))
    assert table(rope).multiplier == pytest.approx((0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (scaling(rope_type="yarn", factor=4.0, slope=2), Unsupported, "slope"),
        (scaling(rope_type="spiral", factor=4.0), Unsupported, "spiral"),
        (scaling(rope_type="yarn", factor="4"), FormatError, "factor"),
        (scaling(rope_type="linear", factor=float("nan")), FormatError, "factor"),
        ({**BASE, "rope_scaling": [4.0]}, FormatError, "rope_scaling"),
        ({**BASE, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, Unsupported, "full_attention"),
        ({**scaling(rope_type="linear", factor=4.0), "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, InputError, "disagree"),
        (scaling(rope_type="linear", factor=4.0, rope_theta=5e5), InputError, "rope_theta"),
        (
            {**scaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=512), "original_max_position_embeddings": 2048},
            InputError,
            "original_max_position_embeddings",
        ),
        ({**BASE, "max_position_embeddings": "8k"}, FormatError, "max_position_embeddings"),
        (
            scaling(rope_type="longrope", short_factor=[1.0] * 32, long_factor=[2.0] * 32, attention_factor=1.0, long_mscale=1.2),
            Disagreement,
            "long_mscale",
        ),
    ],
)
def test_a_spelling_that_is_not_understood_is_refused(config: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        dialects.hf_read(checked_config(config))


def gguf(**members: Any) -> dict[str, Any]:
    return {
        "llama.context_length": 8192,
        "llama.rope.freq_base": THETA,
        **{f"llama.rope.{k.replace('__', '.')}": v for k, v in members.items()},
    }


def test_keys_that_llama_cpp_does_not_read_are_reported() -> None:
    """llama.cpp's own converter writes these for a config with attention_factor and betas; its llama loader reads none."""
    keys = gguf(
        scaling__type="yarn",
        scaling__factor=4.0,
        scaling__original_context_length=2048,
        scaling__yarn_attn_factor=1.5,
        scaling__yarn_beta_fast=16.0,
    )
    rope, ignored = dialects.gguf_read(keys, "llama", D, {})
    assert rope == Rope("yarn", THETA, D, 2048, {"factor": 4.0})
    assert ignored == ["llama.rope.scaling.yarn_attn_factor", "llama.rope.scaling.yarn_beta_fast"]


def test_keys_that_say_what_is_computed_all_the_same_are_no_fault() -> None:
    """What the converter copies from a config.json that spells YaRN's usual values out, and Ollama's names of them."""
    s = {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 2048}
    m0 = float(np.float32(0.1 * math.log(4) + 1))
    usual = {"yarn_ext_factor": 1.0, "yarn_attn_factor": m0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
    usual |= {"extrapolation_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
    for name, value in usual.items():
        assert dialects.gguf_read(gguf(**s, **{f"scaling__{name}": value}), "llama", D, {})[1] == []
        changed = gguf(**s, **{f"scaling__{name}": value * 1.001})
        assert dialects.gguf_read(changed, "llama", D, {})[1] == [f"llama.rope.scaling.{name}"]
    custom = gguf(**s, scaling__attn_factor=1.25 / m0, scaling__yarn_attn_factor=1.25)
    assert dialects.gguf_read(custom, "llama", D, {})[1] == []
    one = gguf(**s, scaling__yarn_attn_factor=1.0)  # a config.json's attention_factor 1.0, which nobody reads
    assert dialects.gguf_read(one, "llama", D, {})[1] == ["llama.rope.scaling.yarn_attn_factor"]


def test_gguf_defaults_are_llama_cpps() -> None:
    assert dialects.gguf_read({"llama.context_length": 4096}, "llama", D, {})[0] == Rope("none", 10000.0, D, 4096)
    assert dialects.gguf_read(gguf(scaling__factor=2.0), "llama", D, {})[0].method == "linear", "a factor without a type is linear"
    assert dialects.gguf_read(gguf(scaling__type="none", scaling__factor=2.0), "llama", D, {})[0].method == "none"
    assert dialects.gguf_read(gguf(scale_linear=2.0), "llama", D, {})[0] == Rope("linear", THETA, D, 8192, {"factor": 2.0})
    both = gguf(scaling__factor=0.0, scale_linear=2.0)  # the older key is looked for where the newer is not there
    ours, theirs = (
        table(dialects.gguf_read(both, "llama", D, {})[0]),
        readers.read_gguf({"general.architecture": "llama", **both, "llama.embedding_length": D, "llama.attention.head_count": 1}),
    )
    np.testing.assert_allclose(ours.inv_freq, theirs.inv_freq, rtol=1e-6)


@pytest.mark.parametrize(
    "keys", [gguf(scaling__alpha=2.0), gguf(scaling__type="longrope"), gguf(dimension_sections=[1, 2, 3]), gguf(scaling__type="spiral")]
)
def test_gguf_keys_that_are_not_understood_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        dialects.gguf_read(keys, "llama", D, {})
