"""What the runtimes beside the main ones compute. Every golden is a run of the runtime's own code, or its formula written out.

"Run" means here: the code that the evidence of the row names was executed on a CPU. CTranslate2 4.8.5 whole, and the rope
functions of onnxruntime-genai 0.18.0, TGI 3.3.7 and optimum-intel 2.2.0; these agreed with the rows on the 49 configs of
tests/data/readers.json, for Llama and for Mistral.
"""

import json
import math

import numpy as np
import pytest
from test_readers import YARN, base_rope, explicit, gguf, llama, yarn

from yarn_convert.cli.folding import fold
from yarn_convert.errors import Unsupported
from yarn_convert.readers import HF_READERS, Refuses, read_config, read_gguf
from yarn_convert.readers.others import OTHER_READERS
from yarn_convert.readers.others_gguf import GGUF_READERS
from yarn_convert.readers.survey import RUNTIMES, survey_config, survey_gguf, table_lines, verdict_json
from yarn_convert.rope import table

PAIRS = [0, 24, 30, 40, 63]
OMEGA = 10000.0 ** (-np.arange(64) / 64)
M0 = 0.1 * math.log(8) + 1
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 4096}


def typed(kind, **more):
    return llama({"rope_type": kind, "type": kind, **more})


def mistral(config):
    return config | {"model_type": "mistral"}


def by_hand(low, high, s=8.0):
    """The index ramp of D = 128, θ = 10000: kept up to `low`, divided by s from `high` on."""
    keep = 1 - np.clip((np.arange(64) - low) / (high - low), 0, 1)
    return OMEGA * (keep + (1 - keep) / s)


def meta_llama3(s=8.0, low=1.0, high=4.0, original=4096):
    """Meta's rule, as candle, mistral.rs, TGI, onnxruntime-genai and CTranslate2 spell it: by wavelength, in three cases."""
    made = []
    for w in OMEGA:
        wavelength = 2 * math.pi / w
        smooth = (original / wavelength - low) / (high - low)
        between = (1 - smooth) * w / s + smooth * w
        made.append(w if wavelength < original / high else w / s if wavelength > original / low else between)
    return np.array(made)


def test_the_main_readers_are_the_six_that_decide_what_is_written():
    assert set(HF_READERS) == {"transformers-4", "transformers-5", "vllm", "sglang", "mlx-lm", "exllamav3"}
    assert not set(HF_READERS) & set(OTHER_READERS)
    assert len(OTHER_READERS) == 9
    assert all(row.version and row.evidence for row in OTHER_READERS.values())


# -- YaRN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["TGI", "TensorRT-LLM", "OpenVINO"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_yarn_is_the_index_ramp_between_pairs_20_and_46(reader, model_type):
    """L = 4096: 128·ln(4096/(2π·32))/(2·ln 10000) = 20.9443 and, for one turn, 45.0283; outward, 20 and 46."""
    reading = read_config(reader, llama(yarn()) | {"model_type": model_type})
    np.testing.assert_allclose(reading.inv_freq, by_hand(20, 46), rtol=1e-12)
    assert reading.multiplier == pytest.approx(M0)


@pytest.mark.parametrize(
    ("more", "multiplier"),
    [
        ({}, 1.2079441541679836),
        ({"attention_factor": 0.9}, 1.2079441541679836),
        ({"mscale": 1.1}, 1.1),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, 0.9139264205839),
    ],
)
def test_onnxruntime_genai_never_rounds_the_ramp_of_a_mistral(more, multiplier):
    """Run: 0.18.0 base.py, make_rope_init and make_rotary_embedding_caches_from_scratch."""
    reading = read_config("onnxruntime-genai", mistral(llama(yarn(**more))))
    golden = [0.99999994, 0.028112084, 0.0089476686, 0.00097285764, 1.4434774e-05]
    np.testing.assert_allclose(reading.inv_freq[PAIRS], golden, rtol=1e-6)
    assert reading.multiplier == pytest.approx(multiplier, rel=1e-12)


def test_onnxruntime_genai_does_not_assume_betas_and_wants_the_whole_ramp():
    """Run: without betas it divides by zero; `assert 0 < low < high < d_half - 1` in make_inv_freq_rescaled_with_ntk."""
    without = {k: v for k, v in yarn().items() if not k.startswith("beta")}
    with pytest.raises(Refuses, match="yarn without beta_fast"):
        read_config("onnxruntime-genai", mistral(llama(without)))
    with pytest.raises(Refuses, match="does not lie within the pairs"):
        read_config("onnxruntime-genai", mistral(llama(yarn(original_max_position_embeddings=100))))


@pytest.mark.parametrize("kind", [yarn(), typed("linear", factor=8.0)["rope_scaling"], explicit(1.2, 4096)[1]["rope_scaling"]])
def test_onnxruntime_genai_knows_only_llama3_for_a_llama(kind):
    """Run: 0.18.0 llama.py, LlamaModel.make_rope_init looks at nothing but rope_type llama3."""
    reading = read_config("onnxruntime-genai", llama(kind))
    np.testing.assert_allclose(reading.inv_freq, OMEGA)
    assert reading.multiplier == 1.0
    assert reading.ignored == ("rope_scaling.rope_type", "rope_scaling.type")


def test_tgi_has_betas_of_its_own_and_no_attention_factor():
    """rotary.py: beta_fast=32, beta_slow=1; get_mscale(s, mscale 1.0) / get_mscale(s, mscale_all_dim 0.0). Run."""
    reading = read_config("TGI", llama(yarn(beta_fast=16.0, beta_slow=2.0, attention_factor=1.0, truncate=False)))
    np.testing.assert_allclose(reading.inv_freq, by_hand(20, 46), rtol=1e-12)
    assert reading.multiplier == pytest.approx(M0)
    assert reading.ignored == tuple(f"rope_scaling.{k}" for k in ("attention_factor", "beta_fast", "beta_slow", "truncate"))
    halved = read_config("TGI", llama(yarn(mscale=0.5, mscale_all_dim=1.0)))
    assert halved.multiplier == pytest.approx((0.05 * math.log(8) + 1) / M0)


def test_tensorrt_llm_takes_1024_tokens_for_an_original_context_that_is_not_said():
    """RopeParams.from_config: original_max_position_embeddings of the config, or of the dict, or 1024.

    128·ln(1024/(2π·32))/(2·ln 10000) = 11.31 and, for one turn, 35.40."""
    scaling = {k: v for k, v in yarn().items() if k != "original_max_position_embeddings"}
    np.testing.assert_allclose(read_config("TensorRT-LLM", llama(scaling)).inv_freq, by_hand(11, 36), rtol=1e-12)
    reading = read_config("TensorRT-LLM", llama(yarn(attention_factor=1.0, truncate=False)))
    np.testing.assert_allclose(reading.inv_freq, by_hand(20, 46), rtol=1e-12)
    assert (reading.multiplier, reading.ignored) == (pytest.approx(M0), ("rope_scaling.attention_factor", "rope_scaling.truncate"))


def test_mistral_rs_reads_yarn_of_a_mistral_from_rope_parameters_alone():
    """models/mistral.rs: MistralRopeParameters; layers.rs: the index ramp, floor and ceil, mscale 1 over mscale_all_dim 0."""
    config = mistral(llama(yarn(attention_factor=1.0)))
    reading = read_config("mistral.rs", config)
    np.testing.assert_allclose(reading.inv_freq, by_hand(20, 46), rtol=1e-12)
    assert (reading.multiplier, reading.ignored) == (pytest.approx(M0), ("rope_parameters.attention_factor",))
    legacy = {k: v for k, v in config.items() if k != "rope_parameters"}
    np.testing.assert_allclose(read_config("mistral.rs", legacy).inv_freq, OMEGA)
    assert read_config("mistral.rs", legacy).ignored == ("rope_scaling",)
    config["rope_parameters"].pop("beta_fast")
    with pytest.raises(Refuses, match="yarn without beta_fast"):
        read_config("mistral.rs", config)


@pytest.mark.parametrize("reader", ["CTranslate2", "candle", "mistral.rs", "MLC-LLM"])
@pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic"])
def test_who_refuses_what_it_does_not_know(reader, kind):
    """CTranslate2 (run): NotImplementedError, and for longrope "required model attributes are not set"; candle and mistral.rs:
    no such variant of an enum; MLC-LLM: an assertion that rope_type is llama3."""
    scaling = {"yarn": yarn(), "longrope": explicit(1.0, 4096)[1]["rope_scaling"], "dynamic": {"rope_type": "dynamic", "factor": 8.0}}[kind]
    with pytest.raises(Refuses, match=f"unknown rope type '{kind}'"):
        read_config(reader, llama(scaling))


@pytest.mark.parametrize("reader", ["candle", "MLC-LLM"])
def test_who_computes_an_unscaled_mistral_whatever_is_written(reader):
    """candle mistral.rs: Config, and mlc_llm mistral_model.py: MistralConfig have no rope dict."""
    reading = read_config(reader, mistral(llama(yarn())))
    np.testing.assert_allclose(reading.inv_freq, OMEGA)
    assert reading.ignored == ("rope_scaling", "rope_parameters")


# -- the other types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["Ollama", "CTranslate2", "OpenVINO", "TensorRT-LLM", "mistral.rs"])
def test_who_computes_linear(reader):
    np.testing.assert_allclose(read_config(reader, typed("linear", factor=8.0)).inv_freq, OMEGA / 8, rtol=1e-12)


def test_tgi_passes_over_linear():
    """rotary.py, PositionRotaryEmbedding.static: `if rope_type == "linear": pass`. Run."""
    reading = read_config("TGI", typed("linear", factor=8.0))
    np.testing.assert_allclose(reading.inv_freq, OMEGA)
    assert reading.ignored == ("rope_scaling.rope_type", "rope_scaling.type")


@pytest.mark.parametrize("reader", ["Ollama", "onnxruntime-genai", "OpenVINO", "TensorRT-LLM", "TGI", "candle", "mistral.rs"])
def test_who_computes_llama3(reader):
    np.testing.assert_allclose(read_config(reader, typed("llama3", **LLAMA3)).inv_freq, meta_llama3(), rtol=1e-12)


def test_mlc_llm_computes_llama3_in_one_formula():
    """apache/tvm position_embedding.py, rope_freq_llama3: smooth = clip(L/2π/(high − low)·ω − low/(high − low))."""
    smooth = np.clip(4096 / (2 * math.pi) / 3 * OMEGA - 1 / 3, 0, 1)
    wanted = (1 - smooth) * OMEGA / 8 + smooth * OMEGA
    np.testing.assert_allclose(read_config("MLC-LLM", typed("llama3", **LLAMA3)).inv_freq, wanted, rtol=1e-12)


def test_ctranslate2_computes_llama3_as_no_scaling():
    """Run: the spec has no factor and no original context, and the logits of 1,500 tokens are an unscaled model's to 1.1e-5,
    where linear and llama3 by transformers are 2.2 away."""
    reading = read_config("CTranslate2", typed("llama3", **LLAMA3))
    np.testing.assert_allclose(reading.inv_freq, OMEGA)
    assert reading.ignored == ("rope_scaling.rope_type", "rope_scaling.type")
    with pytest.raises(Refuses):
        read_config("CTranslate2", mistral(typed("llama3", **LLAMA3)))


def test_ctranslate2s_own_converter():
    pytest.importorskip("ctranslate2")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    from ctranslate2.converters.transformers import LlamaLoader
    from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec

    for scaling in ({"rope_type": "linear", "factor": 8.0}, {"rope_type": "llama3", **LLAMA3}):
        config = llama(scaling, rope_theta=50000.0)
        made = transformers.LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})
        kind, factor, theta = LlamaLoader().get_rotary_params(made, 10_000)
        spec = MultiHeadAttentionSpec(rotary_dim=0, rotary_scaling_type=kind, rotary_scaling_factor=factor, rotary_base=theta)
        stored = float(getattr(spec, "rotary_scaling_factor", 1.0))
        wanted = float(spec.rotary_base) ** (-np.arange(64) / 64) / stored
        np.testing.assert_allclose(read_config("CTranslate2", config).inv_freq, wanted, rtol=1e-6)


def test_ollama_hears_a_type_in_one_key_only():
    """convert_llama.go: linear if `type` says so, rope_freqs if `rope_type` says llama3, with 8, 1, 4 and 8192 assumed."""
    for scaling in ({"rope_type": "linear", "factor": 8.0}, {"type": "llama3", **LLAMA3}, yarn()):
        np.testing.assert_allclose(read_config("Ollama", llama(scaling)).inv_freq, OMEGA)
    np.testing.assert_allclose(read_config("Ollama", llama({"type": "linear", "factor": 8.0})).inv_freq, OMEGA / 8)
    np.testing.assert_allclose(read_config("Ollama", llama({"rope_type": "llama3"})).inv_freq, meta_llama3(original=8192), rtol=1e-12)
    with pytest.raises(Refuses, match="unsupported architecture MistralForCausalLM"):
        read_config("Ollama", mistral(llama()))


@pytest.mark.parametrize("reader", ["TensorRT-LLM", "candle", "mistral.rs", "MLC-LLM"])
def test_who_refuses_a_dict_that_says_default(reader):
    """TensorRT-LLM 1.2: RotaryScalingType has no "default"; MLC-LLM: llama3 or nothing; candle and mistral.rs: a dict must
    have a factor. A null, or no dict, is taken by all."""
    with pytest.raises(Refuses, match="default"):
        read_config(reader, llama())
    np.testing.assert_allclose(read_config(reader, llama() | {"rope_scaling": None, "rope_parameters": None}).inv_freq, OMEGA)


@pytest.mark.parametrize(("mscales", "stretch"), [({"short_mscale": 1.2, "long_mscale": 1.3}, 1.3), ({}, 1.0)])
def test_tgi_multiplies_the_frequencies_of_longrope_by_the_mscales(mscales, stretch):
    """rotary.py, Phi3LongRoPEScaledRotaryEmbedding: `long_freqs * self.long_mscale` before cos and sin. Run."""
    factors, config = explicit(1.0, 4096)
    scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, **mscales}
    reading = read_config("TGI", config | {"rope_scaling": scaling, "original_max_position_embeddings": 4096})
    np.testing.assert_allclose(reading.inv_freq, OMEGA / np.array(factors) * stretch, rtol=1e-12)
    assert reading.multiplier == pytest.approx(1.0 if mscales else math.sqrt(1 + math.log(8) / math.log(4096)))


@pytest.mark.parametrize(
    ("more", "short", "long"),
    [
        ({}, 1.118034, 1.118034),  # √(1 + ln 8/ln 4096)
        ({"factor": 4.0}, 1.0801234, 1.0801234),  # √(1 + ln 4/ln 4096)
        ({"attention_factor": 1.1}, 1.1, 1.1),
        ({"short_mscale": 1.2, "long_mscale": 1.3, "attention_factor": 1.1}, 1.2, 1.3),
        ({"long_mscale": 1.3}, 1.118034, 1.118034),
    ],
)
def test_openvino_prefers_both_mscales_to_the_attention_factor(more, short, long):
    """Run: optimum-intel 2.2.0 model_patcher.py, _longrope_forward for 4,096 and 4,097 tokens."""
    scaling = {"rope_type": "longrope", "short_factor": [1.5] * 64, "long_factor": [2.0] * 64, **more}
    config = llama(scaling | {"original_max_position_embeddings": 4096})
    for length, divisor, multiplier in ((4096, 1.5, short), (4097, 2.0, long)):
        reading = read_config("OpenVINO", config, length)
        np.testing.assert_allclose(reading.inv_freq, OMEGA / divisor, rtol=1e-12)
        assert reading.multiplier == pytest.approx(multiplier, rel=1e-6)


def test_contexts():
    """TensorRT-LLM: infer_max_seq_len multiplies as vLLM does; MLC-LLM: a sliding window lifts the limit; CTranslate2 grows its table."""
    linear = typed("linear", factor=8.0)
    assert [read_config(r, linear).context for r in ("TensorRT-LLM", "CTranslate2", "mistral.rs")] == [262144, None, 32768]
    assert read_config("TensorRT-LLM", llama(yarn())).context == 32768
    window = mistral(llama()) | {"sliding_window": 4096}
    assert read_config("MLC-LLM", window).context is None
    assert read_config("MLC-LLM", mistral(llama()) | {"context_window_size": 768}).context == 768


@pytest.mark.parametrize("reader", ["Ollama", "CTranslate2", "TGI", "candle", "mistral.rs"])
def test_who_takes_the_head_size_of_a_llama_from_the_hidden_size(reader):
    config = {k: v for k, v in llama(head_dim=64).items() if not k.startswith("rope_s") and not k.startswith("rope_p")}
    with pytest.raises(Refuses, match="head_dim 64"):
        read_config(reader, config)
    assert read_config(reader, config | {"head_dim": 128}).inv_freq.shape == (64,)


@pytest.mark.parametrize(("reader", "config"), [("mistral.rs", llama()), ("candle", mistral(llama()))])
def test_a_theta_at_the_top_level_is_wanted_in_rust(reader, config):
    """candle's Mistral and mistral.rs's Llama: `rope_theta` has no default, and no dict is asked."""
    with pytest.raises(Refuses, match="without rope_theta"):
        read_config(reader, {k: v for k, v in config.items() if k != "rope_theta"})


# -- nulls, stray keys and what else stops one reader or is followed by it alone ---------------------------------------


LINEAR = {"rope_type": "linear", "type": "linear", "factor": 8.0}
PLAIN = llama() | {"rope_scaling": None, "rope_parameters": None}


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


@pytest.mark.parametrize("reader", ["CTranslate2", "onnxruntime-genai", "OpenVINO"])
def test_a_converter_has_no_weights_of_a_model_that_transformers_cannot_make(reader):
    """Run: LlamaForCausalLM of transformers 5.23 fails at a null rope_type, and at a null part, and takes a null `type`."""
    for stops in ({"rope_type": None}, {"partial_rotary_factor": None}):
        with pytest.raises(Refuses, match=f"{reader} .*a null {next(iter(stops))}"):
            read_config(reader, mistral(llama(LINEAR | stops)))
    np.testing.assert_allclose(read_config(reader, mistral(llama(LINEAR | {"type": None}))).inv_freq, OMEGA / 8, rtol=1e-12)


def test_ctranslate2_follows_type_where_transformers_follows_rope_type():
    """get_rotary_params: `rope_scaling.get("type") or rope_scaling.get("rope_type")`; the model is made of rope_type's keys."""
    both = {"rope_type": "default", "type": "linear", "factor": 8.0}
    np.testing.assert_allclose(read_config("CTranslate2", llama(both)).inv_freq, OMEGA / 8)
    with pytest.raises(Refuses, match="llama3 needs a number for factor"):
        read_config("CTranslate2", llama({"rope_type": "llama3", "type": "default"}))


@pytest.mark.parametrize("more", [{"mscale": None}, {"mscale": 1.0, "mscale_all_dim": None}])
def test_onnxruntime_genai_compares_the_mscales_with_0(more):
    """make_mscale: `config_mscale > 0 and config_mscale_all_dim > 0`, of which a null is a TypeError once it is looked at."""
    with pytest.raises(Refuses, match="compares a null mscale"):
        read_config("onnxruntime-genai", mistral(llama(yarn(**more))))
    assert read_config("onnxruntime-genai", mistral(llama(yarn(mscale_all_dim=None)))).multiplier == pytest.approx(M0)


def test_onnxruntime_genai_needs_no_factor_for_a_llama_of_which_it_takes_no_yarn():
    """Run: LlamaModel.make_rope_init asks for type llama3 alone; transformers 5 makes a yarn of factor null by the lengths."""
    np.testing.assert_allclose(read_config("onnxruntime-genai", llama(yarn(factor=None))).inv_freq, OMEGA)


@pytest.mark.parametrize(
    ("reader", "config"),
    [
        ("onnxruntime-genai", mistral(llama(yarn())) | {"rope_position_scale": 0.5}),  # base.py: position_scale
        ("onnxruntime-genai", mistral(llama({"rope_type": "default", "mrope_section": [16, 24, 24]}))),  # op_type MRotaryEmbedding
        ("TensorRT-LLM", llama(yarn()) | {"rotary_pct": 0.5}),  # RopeParams.from_config, before partial_rotary_factor
        ("TensorRT-LLM", llama(yarn()) | {"qk_rope_head_dim": 64}),
        ("MLC-LLM", typed("llama3", **LLAMA3) | {"position_embedding_base": 500000}),  # LlamaConfig, before rope_theta
        ("mistral.rs", mistral(llama(yarn(llama_4_scaling_beta=0.1)))),  # Config::attention_temperature
        ("Ollama", llama({"rope_type": "default", "type": "linear", "factor": 8.0})),  # llamaModel: each type from its own key
        ("Ollama", llama({"rope_type": "llama3", "type": "linear", **LLAMA3})),  # both at once
        ("OpenVINO", mistral(llama(yarn())) | {"architectures": ["Mistral3ForConditionalGeneration"]}),  # exported by other classes
    ],
)
def test_of_a_key_that_one_reader_alone_follows_nothing_is_claimed(reader, config):
    with pytest.raises(Unsupported, match=f"what {reader} makes of .* not known here"):
        read_config(reader, config)


@pytest.mark.parametrize("reader", ["TGI", "TensorRT-LLM", "candle", "mistral.rs"])
def test_an_empty_object_is_one_without_a_type(reader):
    """TGI: `rope_scaling is not None`; TensorRT-LLM 1.2: RotaryScalingType[None]; serde: `{}` has no field rope_type."""
    with pytest.raises(Refuses, match="a rope_scaling without a type"):
        read_config(reader, PLAIN | {"rope_scaling": {}})
    for taken in ("MLC-LLM", "Ollama"):
        np.testing.assert_allclose(read_config(taken, PLAIN | {"rope_scaling": {}}).inv_freq, OMEGA)


@pytest.mark.parametrize("reader", ["TGI", "TensorRT-LLM", "candle", "mistral.rs", "MLC-LLM"])
@pytest.mark.parametrize("make", [dict, mistral])
def test_a_null_theta_is_no_absent_one(reader, make):
    """serde: a null is no f32, whatever the default; Python: the attribute is there, and None. Go leaves 0, and writes no key."""
    with pytest.raises(Refuses, match="a null rope_theta"):
        read_config(reader, make(PLAIN | {"rope_theta": None}))
    np.testing.assert_allclose(read_config("Ollama", PLAIN | {"rope_theta": None}).inv_freq, OMEGA)


def test_mlc_llm_counts_a_null_for_a_head_size_and_for_a_type():
    """LlamaConfig.__post_init__: `head_dim == 0` alone is derived; `assert rope_scaling["rope_type"] == "llama3"`."""
    with pytest.raises(Refuses, match="a null head_dim"):
        read_config("MLC-LLM", PLAIN | {"head_dim": None})
    with pytest.raises(Refuses, match="a null rope_type"):
        read_config("MLC-LLM", llama({"rope_type": None}))


@pytest.mark.parametrize("reader", ["TGI", "TensorRT-LLM"])
def test_transformers_4_writes_a_null_type_of_a_llama_over_its_rope_type(reader):
    """Of a Mistral it does not: both then find rope_type."""
    scaling = yarn(type=None)
    with pytest.raises(Refuses, match="a null type"):
        read_config(reader, llama(scaling))
    np.testing.assert_allclose(read_config(reader, mistral(llama(scaling))).inv_freq, by_hand(20, 46), rtol=1e-12)


def test_tgi_looks_for_the_rope_type_of_a_mistral_when_it_captures_graphs():
    """flash_causal_lm.py, cuda_graph_warmup: `rope_scaling["rope_type"] == "mrope"`; LlamaConfig makes that key of `type`."""
    legacy = without(yarn(), "rope_type")
    with pytest.raises(Refuses, match="yarn without rope_type"):
        read_config("TGI", mistral(llama(legacy)))
    np.testing.assert_allclose(read_config("TGI", llama(legacy)).inv_freq, by_hand(20, 46), rtol=1e-12)


def test_tgi_multiplies_by_null_mscales():
    """rotary.py: `"short_mscale" in rope_scaling`, not whether it says something."""
    scaling = explicit(1.0, 4096)[1]["rope_scaling"] | {"short_mscale": None, "long_mscale": None}
    with pytest.raises(Refuses, match="long_mscale"):
        read_config("TGI", llama(scaling) | {"original_max_position_embeddings": 4096})


@pytest.mark.parametrize(
    ("reader", "config"),
    [
        ("mistral.rs", mistral(llama(yarn(original_max_position_embeddings=4096.0)))),  # Option<usize>
        ("Ollama", llama({"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 4096.0})),  # uint32
        ("TGI", llama(explicit(1.0, 4096)[1]["rope_scaling"]) | {"original_max_position_embeddings": 4096.0}),  # t[:4096.0]
    ],
)
def test_an_original_context_written_as_a_float_stops_who_wants_a_whole_number(reader, config):
    with pytest.raises(Refuses, match=r"4096\.0 is not written as an integer"):
        read_config(reader, config)


def test_mistral_rs_wants_a_type_of_a_mistral_or_none():
    with pytest.raises(Refuses, match="a null rope_type"):
        read_config("mistral.rs", mistral(llama(yarn(rope_type=None))))
    np.testing.assert_allclose(read_config("mistral.rs", mistral(llama(without(yarn(), "rope_type")))).inv_freq, OMEGA)


def test_ollama_loses_llama3_without_a_theta_at_the_top_level():
    """convert_llama.go, ropeFactors: nil where `p.RopeTheta == 0`; the GGUF then has neither factors nor a freq_base, so 10,000."""
    reading = read_config("Ollama", without(llama({"rope_type": "llama3", **LLAMA3}), "rope_theta"))
    np.testing.assert_allclose(reading.inv_freq, OMEGA)
    assert reading.ignored == ("rope_scaling.rope_type",)


# -- GGUF --------------------------------------------------------------------------------------------------------------


FREQS = np.linspace(1, 8, 64).astype(np.float32)


def test_ollama_computes_a_gguf_file_as_llama_cpp_does():
    for keys, freqs in ((gguf(**YARN), None), (gguf(type="none", attn_factor=1.2), FREQS)):
        mine, theirs = GGUF_READERS["Ollama"].read(keys, freqs), read_gguf(keys, freqs)
        np.testing.assert_array_equal(mine.inv_freq, theirs.inv_freq)
        assert mine[1:] == theirs[1:]


def test_candle_computes_plain_rope_for_4096_positions():
    """quantized_llama.rs: precomput_freqs_cis(rope.dimension_count, rope.freq_base), MAX_SEQ_LEN 4096."""
    reading = GGUF_READERS["candle"].read(gguf(**YARN, attn_factor=1.1), FREQS)
    np.testing.assert_allclose(reading.inv_freq, OMEGA)
    assert (reading.multiplier, reading.context) == (1.0, 4096)
    names = ("type", "factor", "attn_factor")
    assert reading.ignored == (*(f"llama.rope.scaling.{n}" for n in names), "rope_freqs.weight")
    with pytest.raises(Refuses, match=r"cannot find llama\.rope\.dimension_count"):
        GGUF_READERS["candle"].read({k: v for k, v in gguf().items() if "dimension" not in k}, None)


def test_mistral_rs_follows_rope_freqs_or_linear_of_a_llama():
    """normal_config.rs: rope_scaling_for_llama_family; layers.rs: the frequencies are divided by rope_freqs, and m is 1."""
    read = GGUF_READERS["mistral.rs"].read
    np.testing.assert_allclose(read(gguf(type="linear", factor=8.0), None).inv_freq, OMEGA / 8, rtol=1e-12)
    reading = read(gguf(type="none", attn_factor=1.2), FREQS)
    np.testing.assert_allclose(reading.inv_freq, OMEGA / FREQS, rtol=1e-12)
    assert (reading.multiplier, reading.ignored) == (1.0, ("llama.rope.scaling.attn_factor",))
    over = read(gguf(**YARN), FREQS)
    assert over.ignored == ("llama.rope.scaling.type", "llama.rope.scaling.factor")
    for kind in ("yarn", "longrope"):
        with pytest.raises(Refuses, match=f"cannot represent rope.scaling.type '{kind}'"):
            read(gguf(type=kind, factor=8.0), None)


def test_mistral_rs_takes_a_llama_with_a_window_or_such_a_name_for_a_mistral():
    """normal_registry.rs: resolve_native_adapter, llama_mistral_identity_hint."""
    read = GGUF_READERS["mistral.rs"].read
    named = {"general.name": "Mistral 7B v0.1"}
    with pytest.raises(Refuses, match=r"original config\.json"):
        read(gguf() | named, None)
    for harmless in ({"general.name": "OpenHermes 2.5 Mistral 7B"}, named | {"general.basename": "OpenHermes"}):
        read(gguf() | harmless, None)
    keys = gguf(**YARN, yarn_beta_fast=32.0, yarn_beta_slow=1.0, yarn_log_multiplier=1.0) | {"llama.attention.sliding_window": 4096}
    reading = read(keys, None)
    np.testing.assert_allclose(reading.inv_freq, by_hand(20, 46), rtol=1e-12)
    assert (reading.multiplier, reading.ignored) == (1.0, ())
    with pytest.raises(Refuses, match="yarn_beta_fast"):
        read(gguf(**YARN) | {"llama.attention.sliding_window": 4096}, None)
    assert read(keys | {"llama.attention.temperature_scale": 0.1}, None).beside.floor == 4096  # build_mistral: llama_4_scaling_beta


@pytest.mark.parametrize("window", [{}, {"llama.attention.sliding_window": 4096}])
def test_mistral_rs_takes_a_llama_with_experts_for_a_mixtral(window):
    """normal_registry.rs: expert_count is asked for before the window; build_mixtral: reject_unsupported_rope_scaling."""
    keys = gguf(**YARN, yarn_beta_fast=32.0, yarn_beta_slow=1.0, yarn_log_multiplier=1.0) | {"llama.expert_count": 8}
    with pytest.raises(Unsupported, match=r"what mistral\.rs makes of the architecture 'llama'"):
        GGUF_READERS["mistral.rs"].read(keys | window, None)


def test_ollama_mends_the_keys_of_a_laguna():
    """llama-ollama-compat.cpp, handle_laguna: θ and dimensions of the windows, from keys of its own."""
    with pytest.raises(Unsupported, match="'laguna' is not known here: it mends its keys"):
        GGUF_READERS["Ollama"].read({"general.architecture": "laguna", "laguna.rope.swa.freq_base": 10000.0}, None)


# -- the survey --------------------------------------------------------------------------------------------------------


WANTED = table(base_rope("yarn", factor=8.0))


def test_every_runtime_has_one_row_in_one_order():
    assert len(RUNTIMES) == len(set(RUNTIMES)) == 16
    for verdicts in (survey_config(llama(yarn()), WANTED, 32768), survey_gguf(gguf(**YARN), None, WANTED, 32768)):
        assert tuple(v.runtime for v in verdicts) == RUNTIMES
        assert all((v.reading is None) == bool(v.refuses) for v in verdicts)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_who_computes_what_yarn_convert_writes(model_type):
    verdicts = {v.runtime: v for v in survey_config(llama(yarn(attention_factor=M0)) | {"model_type": model_type}, WANTED, 32768)}
    exact = {*HF_READERS, "OpenVINO", "TensorRT-LLM", "TGI"} | ({"mistral.rs"} if model_type == "mistral" else set())
    assert {name for name, v in verdicts.items() if v.exact} == exact
    assert "--out gguf" in verdicts["llama.cpp"].refuses


def test_errors_are_relative_to_the_intention():
    """Unscaled instead of YaRN: 8 times too fast where it is interpolated, so an error of 7. And m = 1 instead of m0."""
    verdicts = {v.runtime: v for v in survey_config(llama(yarn(attention_factor=1.0)), WANTED, 32768)}
    onnx, vllm = verdicts["onnxruntime-genai"], verdicts["vllm"]
    assert onnx.verdict.error == pytest.approx(7.0)
    assert (onnx.differs, onnx.summary.ramp) == ("frequencies off by up to 7", "none")
    assert (vllm.verdict.error, vllm.verdict.multiplier_error) == (pytest.approx(0, abs=1e-12), pytest.approx(1 - 1 / M0))
    assert vllm.differs == "multiplier 1 instead of 1.20794"
    assert not vllm.exact
    short = {v.runtime: v.differs for v in survey_config(llama(yarn()), WANTED, 16384)}
    assert short["vllm"] == "takes 32,768 tokens for the longest context"
    assert short["mlx-lm"] == ""


def test_a_model_that_is_not_known_here_and_numbers_that_make_no_sense_are_rows_too():
    assert all(
        "kosmos" in v.refuses for v in survey_config(llama(yarn()) | {"model_type": "kosmos"}, WANTED, 32768) if v.runtime != "llama.cpp"
    )
    verdicts = survey_config(llama(yarn(original_max_position_embeddings=-1)), WANTED, 32768)
    assert len(verdicts) == 16
    assert any(v.refuses.startswith("cannot compute from this") for v in verdicts)
    shape = survey_config(llama(yarn()), WANTED._replace(inv_freq=WANTED.inv_freq[:32]), 32768)
    assert {v.differs for v in shape if v.reading} == {"rotates 128 dimensions instead of 64"}


def test_gguf_without_code_of_its_own_is_sent_to_the_other_format():
    verdicts = {v.runtime: v for v in survey_gguf(gguf(**YARN), None, WANTED, 32768)}
    assert {name for name, v in verdicts.items() if v.exact} == {"llama.cpp", "Ollama"}
    assert verdicts["llama.cpp"].summary == ("yarn", 8.0, "index 32/1")
    assert "num_ctx" in verdicts["Ollama"].note
    assert "--out safetensors" in verdicts["vllm"].refuses
    explicit_ = {v.runtime: v for v in survey_gguf(gguf(type="none", attn_factor=1.2), FREQS, WANTED, 32768)}
    assert explicit_["llama.cpp"].summary == ("default", None, "explicit")
    assert explicit_["candle"].summary == ("default", None, "none")
    assert explicit_["mistral.rs"].summary.ramp == "explicit"


@pytest.mark.parametrize("config", [llama(yarn(truncate=False)), mistral(llama(yarn(attention_factor=0.9))), explicit(1.2, 4096)[1]])
def test_the_table_fits_a_terminal_and_has_a_row_for_each(config):
    verdicts = survey_config(config, WANTED, 32768)
    lines = table_lines(verdicts)
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines if not line.startswith(" ")]
    refusing = " ".join(line.strip() for line in lines).split("not read by ")[1:]
    unread = [v.runtime for v in verdicts if v.reading is None]
    rows = [name for name in RUNTIMES if name not in unread]
    assert first == ["runtime", *rows, "(cos,", *["not"] * len(refusing), "as"]
    assert all(sum(f"{name} " in line.split(": ")[0] for line in refusing) == 1 for name in unread)
    assert json.loads(json.dumps([verdict_json(v) for v in verdicts]))[2]["runtime"] == "vllm"


@pytest.mark.parametrize("columns", [79, 60, 54])
def test_a_narrower_terminal_folds_no_line_again(columns):
    verdicts = survey_config(mistral(llama(yarn(attention_factor=0.9))), WANTED, 32768)
    lines = table_lines(verdicts, columns)
    assert list(fold(lines, columns)) == lines, "as the command line prints them"
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(table_lines(verdicts)).split())


def test_what_holds_of_many_runtimes_is_said_once():
    lines = "\n".join(table_lines(survey_config({**llama(yarn()), "model_type": "qwen3"}, WANTED, 32768)))
    assert lines.count("not surveyed") == 1 and "what each makes of model_type 'qwen3'" in " ".join(lines.split())


def test_the_table_says_which_ramp_and_what_is_ignored():
    lines = "\n".join(table_lines(survey_config(llama(yarn(truncate=False)), WANTED, 32768)))
    assert "ramp 32/1 unrounded" in lines
    assert "ignores rope_scaling.truncate" in lines
    assert "unknown rope type 'yarn'" in lines
