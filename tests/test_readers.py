import ctypes
import importlib
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yarn_convert.checkpoint.config import language_model
from yarn_convert.dialects import hf_read
from yarn_convert.errors import FormatError, Unsupported
from yarn_convert.families import ARCHS, MODEL_TYPES, Arch
from yarn_convert.readers import HF_READERS, Beside, Refuses, read_config, read_gguf
from yarn_convert.readers.gguf import gguf_corrections
from yarn_convert.readers.nested import GEMMA3, WITHIN
from yarn_convert.readers.others_gguf import GGUF_READERS
from yarn_convert.readers.rows import LLAMAS
from yarn_convert.readers.survey import survey_config, survey_gguf
from yarn_convert.rope import Rope, Table, table

DATA = json.loads((Path(__file__).parent / "data" / "readers.json").read_text())
GOLDENS = [(reader, name) for reader, made in DATA["readers"].items() for name in made["readings"]]
FLOAT32 = 1e-6  # what float32 arithmetic leaves between a runtime's table and ours


def llama(scaling=None, **top):
    """A config.json as yarn-convert writes it: 128 dimensions a head, 4096 tokens extended to 32768."""
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 2, "head_dim": 128}
    config |= {"max_position_embeddings": 32768, "rope_theta": 10000.0} | top
    scaling = {"rope_theta": config["rope_theta"], **(scaling or {"rope_type": "default"})}
    return config | {"rope_scaling": scaling, "rope_parameters": dict(scaling)}


def yarn(**more):
    base = {"rope_type": "yarn", "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
    return base | {"beta_fast": 32.0, "beta_slow": 1.0} | more


def base_rope(method, **params):
    return Rope(method, 10000.0, 128, 4096, params)


# -- each reader against the runtime's own code ------------------------------------------------------------------------


# What a runtime takes by code that is not modelled, of `tools/reader_configs.py` stray_configs: whatever it made of that, nothing is claimed
NOT_KNOWN = {
    *((reader, "stray-layers") for reader in ("transformers-5", "vllm", "sglang", "exllamav3")),
    *((reader, "stray-mrope-section") for reader in ("vllm", "sglang")),
    *(("vllm", f"stray-{x}") for x in ("rope-dim", "ntk", "deepseek-yarn", "mrope")),
    *(("sglang", f"stray-{x}") for x in ("extrapolation-factor", "deepseek-yarn", "mrope")),
    *(("exllamav3", f"stray-{x}") for x in ("temperature", "rotary-dim")),
    ("mlx-lm", "stray-mrope"),
}


@pytest.mark.parametrize(("reader", "name"), GOLDENS)
def test_a_reader_computes_what_the_runtime_computed(reader, name):
    config, golden = DATA["configs"][name], DATA["readers"][reader]["readings"][name]
    if (reader, name) in NOT_KNOWN:
        with pytest.raises(Unsupported, match=r"is not known here|is not modelled"):
            read_config(reader, config)
        return
    if "error" in golden:
        with pytest.raises(Refuses):
            read_config(reader, config)
        return
    reading = read_config(reader, config)
    assert len(reading.inv_freq) == golden["pairs"]
    index = np.unique(np.linspace(0, golden["pairs"] - 1, len(golden["inv_freq"])).round().astype(int))
    np.testing.assert_allclose(reading.inv_freq[index], golden["inv_freq"], rtol=FLOAT32)
    assert reading.multiplier == pytest.approx(golden["multiplier"], rel=FLOAT32)
    assert reading.context == golden["context"]


@pytest.mark.parametrize("reader", HF_READERS)
def test_every_reader_was_run_on_the_grid_in_the_version_its_row_names(reader):
    assert DATA["readers"][reader]["version"] == HF_READERS[reader].version
    assert len(DATA["readers"][reader]["readings"]) == len(DATA["configs"]) >= 25
    assert HF_READERS[reader].evidence


LIVE = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn-m": {"factor": 4.0, "original_max_position_embeddings": 8192, "attention_factor": 0.9, "beta_fast": 8.0},
    "yarn-truncate": {"factor": 4.0, "original_max_position_embeddings": 8192, "truncate": False},
    "yarn-equal": {"factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 1.0, "beta_slow": 1.0},
    "yarn-equal-exact": {"factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False},
    "llama3": {"factor": 4.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192},
    "longrope": {"factor": 4.0, "short_factor": "1", "long_factor": "2", "original_max_position_embeddings": 8192},
}


@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e7])
@pytest.mark.parametrize("length", [4096, 32768, 100000])
@pytest.mark.parametrize("case", LIVE)
def test_transformers_5_live(case, length, theta, dim):
    """For texts below, at and above max_position_embeddings: dynamic and longrope look at their length."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    lists = {"1": [1.0 + i / dim for i in range(dim // 2)], "2": [2.0 + i for i in range(dim // 2)]}
    scaling = {k: lists.get(v, v) if isinstance(v, str) else v for k, v in LIVE[case].items()}
    config = llama({"rope_type": case.split("-")[0], **scaling}, rope_theta=theta, head_dim=dim, hidden_size=2 * dim)
    fields = {k: v for k, v in json.loads(json.dumps(config)).items() if k != "model_type"}
    rope = LlamaRotaryEmbedding(transformers.LlamaConfig(**fields))
    rope(torch.zeros(1), torch.tensor([[0, length - 1]]))
    reading = read_config("transformers-5", config, length)
    np.testing.assert_allclose(reading.inv_freq, rope.inv_freq.numpy(), rtol=2 * FLOAT32)
    assert reading.multiplier == pytest.approx(rope.attention_scaling, rel=FLOAT32)


# -- what the writers rely on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1.0, 0.9, 1.2079441541679836, 1.3])
@pytest.mark.parametrize("reader", HF_READERS)
def test_yarn_with_attention_factor_and_a_ratio_of_mscales_is_the_same_everywhere(reader, m):
    slope = 0.1 * math.log(8)
    scaling = yarn(attention_factor=m, mscale=(m * (slope + 1) - 1) / slope, mscale_all_dim=1.0)
    reading = read_config(reader, llama(scaling))
    wanted = table(base_rope("yarn", factor=8.0, attention_factor=m))
    np.testing.assert_allclose(reading.inv_freq, wanted.inv_freq, rtol=1e-12)
    assert reading.multiplier == pytest.approx(m, rel=1e-12)
    assert reading.ignored == ()


@pytest.mark.parametrize("beta", [1.0, 7.0, 32.0])
@pytest.mark.parametrize("reader", HF_READERS)
def test_equal_betas_are_a_ramp_of_one_pair_everywhere(reader, beta):
    reading = read_config(reader, llama(yarn(beta_fast=beta, beta_slow=beta)))
    wanted = table(base_rope("yarn", factor=8.0, beta_fast=beta, beta_slow=beta))
    np.testing.assert_allclose(reading.inv_freq, wanted.inv_freq, rtol=1e-12)
    plain, ramp = table(base_rope("none")).inv_freq, math.log(4096 / (2 * math.pi * beta)) * 64 / math.log(1e4)
    kept = [i for i in range(64) if wanted.inv_freq[i] == pytest.approx(plain[i])]
    assert kept == list(range(math.floor(ramp) + 1))


@pytest.mark.parametrize("reader", HF_READERS)
def test_default_linear_and_plain_yarn_are_the_same_everywhere(reader):
    cases = {"none": {"rope_type": "default"}, "linear": {"rope_type": "linear", "factor": 8.0}, "yarn": yarn()}
    for method, scaling in cases.items():
        reading, wanted = read_config(reader, llama(scaling)), table(base_rope(method, factor=8.0))
        np.testing.assert_allclose(reading.inv_freq, wanted.inv_freq, rtol=1e-12)
        assert reading.multiplier == pytest.approx(wanted.multiplier, rel=1e-12)


def explicit(m, original):
    factors = [1.0 + 7.0 * i / 63 for i in range(64)]
    scaling = {"rope_type": "longrope", "type": "longrope", "short_factor": factors, "long_factor": factors}
    scaling |= {"attention_factor": m, "short_mscale": m, "long_mscale": m}
    return factors, llama(scaling | {"original_max_position_embeddings": original, "factor": 32768 / original})


@pytest.mark.parametrize("reader", HF_READERS)
def test_explicit_frequencies_are_carried_by_longrope_in_every_reader(reader):
    factors, config = explicit(1.2, 4096)
    reading, wanted = read_config(reader, config), table(base_rope("explicit", factors=tuple(factors)))
    np.testing.assert_allclose(reading.inv_freq, wanted.inv_freq, rtol=1e-12)


@pytest.mark.parametrize("reader", HF_READERS)
def test_the_multiplier_of_longrope_is_lost_in_mlx_lm_and_exllamav3(reader):
    reading = read_config(reader, explicit(1.2, 4096)[1])
    lost = reader in ("mlx-lm", "exllamav3")
    assert reading.multiplier == pytest.approx(math.sqrt(1 + math.log(8) / math.log(4096)) if lost else 1.2)
    assert ("rope_scaling.attention_factor" in reading.ignored) == lost


@pytest.mark.parametrize(("m", "within"), [(1.0, 1e-12), (1.1, 1e-5), (1.2, 1e-5), (1.4, 2e-4)])
@pytest.mark.parametrize("reader", HF_READERS)
def test_an_original_context_chosen_for_the_multiplier_brings_it_back(reader, m, within):
    """√(ln L'/ln L) = m for L = L'^(1/m²), to the nearest integer; m = 1 is L = L'."""
    reading = read_config(reader, explicit(m, round(32768 ** (1 / m**2)))[1])
    assert reading.multiplier == pytest.approx(m, rel=within)


@pytest.mark.parametrize("reader", ["vllm", "sglang"])
def test_a_linear_config_is_served_factor_times_too_long_unless_model_max_length_says_otherwise(reader):
    scaling = {"rope_type": "linear", "type": "linear", "factor": 8.0}
    assert read_config(reader, llama(scaling)).context == 8 * 32768
    assert read_config(reader, llama(scaling, model_max_length=4096)).context == 32768


def test_an_original_context_at_the_top_level_halts_vllm_there():
    config = explicit(1.2, 4096)[1] | {"original_max_position_embeddings": 4096}
    assert read_config("vllm", config).context == 4096


def test_sglang_reads_another_list_one_token_later():
    factors, config = explicit(1.0, 4096)
    config["rope_scaling"]["long_factor"] = [2 * f for f in factors]
    short, long = (1 / np.asarray(config["rope_scaling"][k])[0] for k in ("short_factor", "long_factor"))
    assert [read_config("sglang", config, n).inv_freq[0] for n in (4096, 4097, 4098)] == [short, short, long]
    assert [read_config("transformers-5", config, n).inv_freq[0] for n in (4096, 4097)] == [short, long]


# -- what is overlooked is named ---------------------------------------------------------------------------------------


MSCALES = ("rope_scaling.mscale", "rope_scaling.mscale_all_dim")


@pytest.mark.parametrize(
    ("reader", "config", "ignored"),
    [
        ("mlx-lm", llama(yarn(attention_factor=1.0)), ("rope_scaling.attention_factor",)),
        ("sglang", llama(yarn(attention_factor=1.0)), ("rope_scaling.attention_factor",)),
        ("vllm", llama(yarn(attention_factor=1.0)), ()),
        ("mlx-lm", llama(yarn(truncate=False)), ("rope_scaling.truncate",)),
        ("mlx-lm", llama(yarn(truncate=True)), ()),
        ("exllamav3", llama(yarn(), max_position_embeddings=4096), ("rope_scaling.factor",)),
        ("exllamav3", llama(yarn()), ()),
        ("exllamav3", llama(yarn(mscale=1.0, mscale_all_dim=1.0)), MSCALES),
        ("transformers-4", llama() | {"rope_scaling": None, "rope_parameters": yarn()}, ("rope_parameters",)),
        ("mlx-lm", llama() | {"rope_scaling": None, "rope_parameters": yarn()}, ("rope_parameters",)),
        ("transformers-5", llama(yarn()) | {"rope_parameters": yarn(factor=2.0)}, ("rope_parameters",)),
    ],
)
def test_what_a_reader_ignores_is_named(reader, config, ignored):
    assert read_config(reader, config).ignored == ignored


def test_a_refusal_says_who_and_why():
    integer = {"rope_type": "linear", "factor": 8}
    with pytest.raises(Refuses, match=r"vllm 0\.33\.0: linear needs a factor written as a float, 8\.0"):
        read_config("vllm", llama(integer))
    assert read_config("transformers-5", llama(integer)).inv_freq[0] == 1 / 8


def test_models_that_are_not_known_here_are_not_guessed():
    with pytest.raises(Unsupported, match="phi3"):
        read_config("sglang", llama() | {"model_type": "phi3"})
    with pytest.raises(Unsupported, match="mamba"):
        read_gguf({"general.architecture": "mamba"})


# -- llama.cpp ---------------------------------------------------------------------------------------------------------


def gguf(arch="llama", **scaling):
    keys = {"context_length": 32768, "embedding_length": 256, "attention.head_count": 2, "rope.dimension_count": 128}
    keys |= {"rope.freq_base": 10000.0, **{f"rope.scaling.{k}": v for k, v in scaling.items()}}
    return {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in keys.items()}


YARN = {"type": "yarn", "factor": 8.0, "original_context_length": 4096}


def test_gguf_yarn_is_the_index_ramp_with_its_own_temperature():
    reading, wanted = read_gguf(gguf(**YARN)), table(base_rope("yarn", factor=8.0))
    np.testing.assert_allclose(reading.inv_freq, wanted.inv_freq, rtol=FLOAT32)
    assert reading.multiplier == pytest.approx(1.2079441541679836, rel=FLOAT32)
    assert reading.context == 32768
    assert reading.ignored == ()


@pytest.mark.parametrize(
    ("theta", "original", "dim", "low", "high"),
    [
        (10000.0, 4096, 128, 20, 46),  # 20.9443 and 45.0283
        (500000.0, 8192, 128, 18, 35),  # 18.0846 and 34.9888
        (10000.0, 131072, 128, 45, 70),  # 45.0248 and 69.1077
        (10000.0, 64, 64, 0, 9),  # -3.9758 and 8.0656: the fast end is clamped
        (10000.0, 17206, 128, 30, 55),  # 30.917…, and 55.0 in float32 where float64 has 55.0000008 and would say 56
    ],
)
def test_gguf_correction_dimensions_are_floored_and_ceiled_in_float32(theta, original, dim, low, high):
    assert gguf_corrections(dim, original, theta, 32.0, 1.0) == (low, high)


def test_gguf_correction_dimensions_are_those_of_the_library():
    llama_cpp = pytest.importorskip("llama_cpp")
    path = Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
    if not path.exists():
        pytest.skip("no libggml-base.so in this llama_cpp")
    function = ctypes.CDLL(str(path)).ggml_rope_yarn_corr_dims
    function.restype, function.argtypes = None, [ctypes.c_int] * 2 + [ctypes.c_float] * 3 + [ctypes.c_void_p]
    rng = random.Random(0)
    cases = [(96, 164001, 1e4, 32.0), (128, 17206, 1e4, 32.0), (80, 401171, 1e4, 32.0)]
    cases += [(16 * rng.randint(4, 8), rng.randrange(32, 1 << 20), 10 ** rng.uniform(4, 7), 32.0) for _ in range(2000)]
    for dim, original, theta, fast in cases:
        ends = (ctypes.c_float * 2)()
        function(dim, original, theta, fast, 1.0, ends)
        assert gguf_corrections(dim, original, theta, fast, 1.0) == tuple(ends)


def test_gguf_attn_factor_is_a_float32_and_the_temperature_that_it_multiplies_is_not_rounded():
    """0.1·ln 8 + 1 = 1.2079441541679836: llama-context.cpp divides by it what ops.cpp multiplies by again."""
    assert read_gguf(gguf(**YARN)).multiplier == pytest.approx(1.2079441541679836, rel=1e-15)
    written = np.float32(1.5 / 1.2079441541679836)
    assert read_gguf(gguf(**YARN, attn_factor=float(written))).multiplier == pytest.approx(float(written) * 1.2079441541679836, rel=1e-15)
    assert read_gguf(gguf(type="yarn", factor=1.0, attn_factor=0.5)).multiplier == 0.5


@pytest.mark.parametrize("kind", ["none", "linear"])
def test_gguf_rope_freqs_and_attn_factor_carry_any_table(kind):
    factors = np.linspace(1, 8, 64).astype(np.float32)
    reading = read_gguf(gguf(type=kind, attn_factor=1.25), factors)
    wanted = table(base_rope("explicit", factors=tuple(factors.astype(float))))
    np.testing.assert_allclose(reading.inv_freq, wanted.inv_freq, rtol=1e-12)
    assert reading.multiplier == 1.25


def test_gguf_defaults():
    """No type is linear, no factor is 1, no original context is context_length."""
    np.testing.assert_allclose(read_gguf(gguf(factor=8.0)).inv_freq, table(base_rope("linear", factor=8.0)).inv_freq)
    np.testing.assert_allclose(read_gguf(gguf()).inv_freq, table(base_rope("none")).inv_freq)
    forgotten = read_gguf(gguf(type="yarn", factor=8.0))
    wanted = table(Rope("yarn", 10000.0, 128, 32768, {"factor": 8.0}))
    np.testing.assert_allclose(forgotten.inv_freq, wanted.inv_freq, rtol=FLOAT32)


def test_gguf_rope_freqs_come_before_the_yarn_ramp():
    factors = np.full(64, 2.0, dtype=np.float32)
    np.testing.assert_allclose(read_gguf(gguf(**YARN), factors).inv_freq, read_gguf(gguf(**YARN)).inv_freq / 2)


def test_gguf_a_stray_factor_scales_longrope_twice_and_none_not_at_all():
    pair = (np.ones(64), np.full(64, 8.0))
    once = read_gguf(gguf(type="longrope", original_context_length=4096), None, pair).inv_freq
    twice = read_gguf(gguf(type="longrope", original_context_length=4096, factor=8.0), None, pair).inv_freq
    np.testing.assert_allclose(once, twice * 8)
    none = read_gguf(gguf(type="none", factor=8.0))
    assert none.inv_freq[0] == 1.0
    assert none.ignored == ("llama.rope.scaling.factor",)


def test_gguf_betas_and_attn_factor_by_their_yarn_names_are_ignored_by_llama():
    extra = {"yarn_beta_fast": 16.0, "yarn_beta_slow": 1.0, "yarn_attn_factor": 0.9}
    reading = read_gguf(gguf(**YARN, **extra))
    assert reading.ignored == ("llama.rope.scaling.yarn_attn_factor", "llama.rope.scaling.yarn_beta_fast")
    np.testing.assert_array_equal(reading.inv_freq, read_gguf(gguf(**YARN)).inv_freq)
    assert reading.multiplier == read_gguf(gguf(**YARN)).multiplier
    mistral3 = read_gguf(gguf("mistral3", **YARN, yarn_beta_fast=16.0))
    wanted = table(base_rope("yarn", factor=8.0, beta_fast=16.0))
    np.testing.assert_allclose(mistral3.inv_freq, wanted.inv_freq, rtol=FLOAT32)


@pytest.mark.parametrize(
    ("keys", "freqs", "reason"),
    [
        (gguf(type="llama3"), None, "aborts on rope.scaling.type 'llama3'"),
        (gguf("qwen3"), np.ones(64), "qwen3 does not load rope_freqs.weight"),
        (gguf(type="longrope"), np.ones(64), "wrong number of tensors"),
        (gguf(), np.ones(63), "expected 64"),
        (gguf() | {"llama.rope.dimension_count": 64}, None, "invalid n_rot: 64, expected 128"),
    ],
)
def test_gguf_refusals(keys, freqs, reason):
    with pytest.raises(Refuses, match=reason):
        read_gguf(keys, freqs)


def test_gguf_falcon_h1_loads_rope_freqs_and_forgets_them():
    reading = read_gguf(gguf("falcon-h1"), np.full(64, 8.0))
    np.testing.assert_array_equal(reading.inv_freq, read_gguf(gguf("falcon-h1")).inv_freq)


# -- families: what sets a model type apart from Llama -------------------------------------------------------------------

FAMILIES = DATA["families"]
FAMILY_GOLDENS = [(reader, name) for reader, made in FAMILIES["readers"].items() for name in made["readings"]]


@pytest.mark.parametrize(("reader", "name"), FAMILY_GOLDENS)
def test_a_reader_computes_what_the_runtime_computed_for_every_family(reader, name):
    config, golden = FAMILIES["configs"][name], FAMILIES["readers"][reader]["readings"][name]
    if config["model_type"] not in HF_READERS[reader].models:
        with pytest.raises(Unsupported, match="is not known here"):
            read_config(reader, config)
        return
    computes(reader, config, golden)


NESTED = json.loads((Path(__file__).parent / "data" / "readers_nested.json").read_text())
NESTED_GOLDENS = [(reader, name) for reader, made in NESTED["readers"].items() for name in made["readings"]]


@pytest.mark.parametrize(("reader", "name"), NESTED_GOLDENS)
def test_a_reader_computes_what_the_runtime_computed_of_a_language_model_within_another(reader, name):
    """`config` is what is read of the whole: the part that says it, and the architecture around."""
    config, golden = language_model(NESTED["configs"][name]), NESTED["readers"][reader]["readings"][name]
    computes(reader, config, golden)


def test_what_is_claimed_within_other_models_was_run():
    """All but SGLang's Gemma 3, whose code hands theta alone to the rotary class."""
    for reader, rows in WITHIN.items():
        made = NESTED["readers"][reader]
        run = {(c["architectures"][0], c["text_config"]["model_type"]) for c in map(NESTED["configs"].get, made["readings"])}
        assert rows.keys() - run == ({GEMMA3} if reader == "sglang" else set())
        assert {row.version for row in rows.values()} == {made["version"]}


def computes(reader, config, golden):
    """A reader makes of a config what its runtime's own code made of it, or refuses it as that does."""
    if "error" in golden:
        with pytest.raises(Refuses):
            read_config(reader, config)
        return
    reading = read_config(reader, config)
    same_table((reading.inv_freq, reading.multiplier), golden)
    assert reading.context == golden["context"]
    assert reading.beside.logits == pytest.approx(golden.get("logits", 1.0), rel=2 * FLOAT32)
    assert reading.beside.pairs == golden.get("turned", "")
    assert (reading.beside.other_layers is not None) == ("others" in golden)
    if "others" in golden:
        same_table(reading.beside.other_layers, golden["others"])


def same_table(found, golden):
    inv_freq, multiplier = found
    assert len(inv_freq) == golden["pairs"]
    index = np.unique(np.linspace(0, golden["pairs"] - 1, len(golden["inv_freq"])).round().astype(int))
    np.testing.assert_allclose(inv_freq[index], golden["inv_freq"], rtol=2 * FLOAT32)
    assert multiplier == pytest.approx(golden["multiplier"], rel=FLOAT32)


def test_the_families_were_run_in_the_versions_of_the_rows():
    """All but those of which there is nothing to run: a class of the rotary code that is never given the dict."""
    read = {"sglang": {"mixtral", "gemma2", "starcoder2"}, "transformers-5": set(MODEL_TYPES)}  # run in the one that is here
    for reader, made in FAMILIES["readers"].items():
        assert made["version"] == HF_READERS[reader].version
        run = {FAMILIES["configs"][name]["model_type"] for name in made["readings"]}
        assert run >= HF_READERS[reader].models - LLAMAS - read.get(reader, set())


@pytest.mark.parametrize(
    ("reader", "model_type", "kind", "why"),
    [
        ("vllm", "glm4", "refuses", "its class turns halves of a head alone"),
        ("sglang", "cohere", "refuses", "its class turns halves of a head alone"),
        ("vllm", "ernie4_5", "differs", "turns halves of a head, where the model turns neighbours"),
        ("vllm", "llama", "exact", ""),
        ("mlx-lm", "llama", "unknown", "rope_traditional with longrope"),
    ],
)
def test_a_table_is_no_use_to_a_model_whose_other_pairs_a_class_turns(reader, model_type, kind, why):
    """The right table, of the other pairs, is the worst of readings: every number of it is what was meant."""
    lists = {f"{x}_factor": [1.0 + i / 8 for i in range(16)] for x in ("short", "long")}
    rope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4, **lists}
    rope |= dict.fromkeys(("short_mscale", "long_mscale"), 1.1)
    config = family(model_type, rope, head_dim=32, partial_rotary_factor=1.0) | {"rope_traditional": True}
    omega = table(Rope("none", 1e4, 32, 2048)).inv_freq / np.array(lists["long_factor"])
    (verdict,) = [v.verdict for v in survey_config(config, Table(omega, 1.1), 8192, Beside()) if v.runtime == reader]
    assert verdict.kind == kind and why in verdict.text


@pytest.mark.parametrize("model_type", ["mixtral", "gemma2", "starcoder2"])
def test_sglang_takes_theta_alone_for_these_and_the_reading_says_so(model_type):
    reading = read_config("sglang", family(model_type, yarn(rope_theta=5e4), head_dim=128))
    np.testing.assert_allclose(reading.inv_freq, table(Rope("none", 5e4, 128, 4096)).inv_freq, rtol=1e-12)
    assert (reading.multiplier, reading.ignored) == (1.0, ("rope_scaling.rope_type", "rope_scaling.type"))


def family(model_type, rope=None, **top):
    base = {"model_type": model_type, "hidden_size": 256, "num_attention_heads": 2, "num_hidden_layers": 8, "num_key_value_heads": 2}
    base |= {"intermediate_size": 64, "vocab_size": 64, "pad_token_id": 0} | top
    return base | ({"rope_scaling": rope, "max_position_embeddings": 8192} if rope else {})


def pairs_of(facts):
    return int((facts.head_dim or 128) * (1.0 if facts.partial is None else facts.partial)) // 2


FAMILY_LIVE = {name: scaling | {"rope_type": name.split("-")[0]} for name, scaling in LIVE.items()}


@pytest.mark.parametrize("case", FAMILY_LIVE)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_type_live_in_transformers_5(model_type, case):
    """The defaults of the config class, its head and its part of it, and every method: from the model's own rotary class."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    torch = pytest.importorskip("torch")
    facts = MODEL_TYPES[model_type]
    lists = {"1": [1.0 + i / 64 for i in range(pairs_of(facts))], "2": [2.0 + i for i in range(pairs_of(facts))]}
    rope = {k: lists.get(v, v) if isinstance(v, str) and k != "rope_type" else v for k, v in FAMILY_LIVE[case].items()}
    config = family(model_type, None if case == "default" else rope)
    config = by_layer(config, facts) if facts.nested_alone else config
    try:
        wanted = rotary_of(torch, transformers, json.loads(json.dumps(config)), facts)
    except Exception as refused:  # KeyError, TypeError, or what the config class's validator makes of them
        with pytest.raises(Refuses):
            read_config("transformers-5", config, 1000)
        assert model_type in ("phi3", "mixtral", "minimax", "ministral", "hunyuan_v1_dense", "hunyuan_v1_moe"), refused
        return
    reading = read_config("transformers-5", config, 1000)
    found = [(reading.inv_freq, reading.multiplier)] + ([reading.beside.other_layers] if reading.beside.other_layers else [])
    assert len(found) == len(wanted)
    for (mine, m), (theirs, scaling) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=3 * FLOAT32)
        assert m == pytest.approx(scaling, rel=FLOAT32)


P_ROPE = {
    "plain": {"partial_rotary_factor": 0.25},
    "of another part": {"partial_rotary_factor": 0.3},
    "linear": {"partial_rotary_factor": 0.25, "factor": 4.0},
    "whole": {},
}


@pytest.mark.parametrize("case", P_ROPE)
def test_p_rope_live_in_transformers_5(case):
    """The pairs that turn have the frequencies of the whole head's, the others none."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    torch = pytest.importorskip("torch")
    facts = MODEL_TYPES["gemma4_text"]
    config = by_layer(family("gemma4_text", {"rope_type": "proportional", **P_ROPE[case]}), facts)
    reading, (wanted, _) = read_config("transformers-5", config, 1000), rotary_of(torch, transformers, config, facts)
    np.testing.assert_allclose(reading.inv_freq, wanted[0], rtol=3 * FLOAT32)
    assert (reading.inv_freq == 0).sum() == {"of another part": 90, "whole": 0}.get(case, 96)
    c = hf_read({**config, "head_dim": facts.head_dim, "rope_parameters": config["rope_parameters"]["full_attention"]})
    np.testing.assert_allclose(table(c).inv_freq, wanted[0], rtol=3 * FLOAT32)


def test_longrope_of_heads_of_two_sizes_needs_a_key_beside_it():
    facts, ones = MODEL_TYPES["gemma4_text"], [1.0] * 128
    rope = {"rope_type": "longrope", "factor": 4.0, "short_factor": ones, "long_factor": ones, "original_max_position_embeddings": 8192}
    config = by_layer(family("gemma4_text", rope), facts)
    assert read_config("transformers-5", config).multiplier > 1
    with pytest.raises(Refuses, match="longrope without allow_global_per_layer_attribute_access"):
        read_config("transformers-5", {k: v for k, v in config.items() if k not in facts.permits.values()})


def by_layer(config, facts):
    """`config` with its scaling where a model has it that knows one dict for each type of layers alone."""
    rope = config.pop("rope_scaling", {"rope_type": "default"})
    (first, (_, theta)), (second, (_, other)) = facts.layers.items()
    dicts = {first: {"rope_theta": theta, **rope}, second: {"rope_type": "default", "rope_theta": other}}
    kinds = ["sliding_attention"] * 7 + ["full_attention"]
    return (
        config
        | {"rope_parameters": dicts, "layer_types": kinds, "global_head_dim": facts.head_dim}
        | dict.fromkeys(facts.permits.values(), True)
    )


def rotary_of(torch, transformers, config, facts):
    """[(inv_freq, attention_scaling)], one for each layer type with a RoPE of its own, for a text of 1,000 tokens."""
    known = config["model_type"] in transformers.CONFIG_MAPPING
    hf = transformers.AutoConfig.for_model(
        config["model_type"] if known else facts.run_as, **{k: v for k, v in config.items() if k != "model_type"}
    )
    code = (
        type(hf).__module__.replace("configuration_", "modeling_").replace("internlm3", "llama").replace("iquestcoder", "llama")
    )  # which have Llama's
    module = importlib.import_module(code)
    (name,) = [
        n for n, c in vars(module).items() if n.endswith("RotaryEmbedding") and c.__module__ == module.__name__ and "Vision" not in n
    ]
    rope = getattr(module, name)(hf)
    made = []
    for layer in facts.layers or ("",):
        rope(torch.zeros(1), torch.tensor([[0, 999]]), *([layer] if layer else []))
        prefix = f"{layer}_" if layer else ""
        made.append((getattr(rope, f"{prefix}inv_freq").numpy(), getattr(rope, f"{prefix}attention_scaling")))
    return made


def test_a_flat_rope_parameters_is_lost_on_gemma3_and_an_error_beside_rope_scaling():
    scaling = yarn(rope_theta=1e6)
    flat = family("gemma3_text", max_position_embeddings=32768) | {"rope_parameters": scaling}
    reading = read_config("transformers-5", flat)
    assert (reading.multiplier, reading.ignored) == (1.0, ("rope_parameters",))
    with pytest.raises(Refuses, match="rope_scaling beside a rope_parameters without full_attention"):
        read_config("transformers-5", flat | {"rope_scaling": scaling})
    nested = {"full_attention": scaling, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    both = flat | {"rope_parameters": nested, "rope_scaling": scaling}
    reading = read_config("transformers-5", both)
    assert reading.ignored == ()
    np.testing.assert_allclose(reading.inv_freq, table(Rope("yarn", 1e6, 256, 4096, {"factor": 8.0})).inv_freq, rtol=1e-12)
    unread = both | {"rope_scaling": yarn(truncate=False), "rope_parameters": None}
    assert read_config("transformers-5", unread).ignored == ("rope_scaling.truncate",)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gemma2", "gpt_neox", "stablelm", "starcoder2", "glm4", "cohere"])
def test_mlx_lm_scales_none_of_these_and_the_reading_says_so(model_type):
    config = family(model_type, yarn(), head_dim=128, rope_theta=10000.0, partial_rotary_factor=0.5, rotary_pct=0.5, rotary_emb_base=10000)
    reading = read_config("mlx-lm", config)
    assert (reading.multiplier, reading.inv_freq[0], reading.ignored) == (1.0, 1.0, ("rope_scaling",))
    (verdict,) = [
        v
        for v in survey_config(config, table(Rope("yarn", 1e4, 2 * len(reading.inv_freq), 4096, {"factor": 8.0})), 8192)
        if v.runtime == "mlx-lm"
    ]
    assert not verdict.exact and verdict.differs.startswith("frequencies off by")


def test_a_model_type_is_known_to_a_reader_or_is_not_guessed():
    for reader, row in HF_READERS.items():
        for model_type in (*MODEL_TYPES, "mamba", None):
            if model_type not in row.models:
                with pytest.raises(Unsupported, match="is not known here"):
                    read_config(reader, family(model_type))
    with pytest.raises(Unsupported, match="falcon with alibi has no RoPE"):
        read_config("transformers-5", family("falcon", alibi=True))


# -- GGUF architectures --------------------------------------------------------------------------------------------------


def keyed(arch, **scaling):
    """Keys of one architecture; rope.scaling.* but for those with a dot of their own."""
    extra = {f"{arch}.{k}": scaling.pop(k) for k in list(scaling) if "." in k}
    return gguf(arch, **scaling) | extra


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_gguf_yarn_by_metadata_is_that_of_llama_in_every_architecture(arch):
    own = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0} if ARCHS[arch].betas else {}
    own |= {"rope.dimension_count": 256} if ARCHS[arch].halved else {}
    ones = np.ones(64) if ARCHS[arch].freqs == "required" else None
    reading, wanted = read_gguf(keyed(arch, **YARN, **own), ones), read_gguf(gguf(**YARN))
    np.testing.assert_array_equal(reading.inv_freq, wanted.inv_freq)
    assert (reading.multiplier, reading.context) == (wanted.multiplier, wanted.context)


PLAIN = sorted(name for name, row in ARCHS.items() if replace(row, head="optional", square=False) == Arch(name))


@pytest.mark.parametrize("arch", PLAIN)
def test_gguf_plain_architectures_load_no_factors(arch):
    with pytest.raises(Refuses, match=r"does not load rope_freqs\.weight"):
        read_gguf(keyed(arch), np.ones(64))
    assert read_gguf(keyed(arch)).beside == Beside()


def test_gguf_a_custom_multiplier_reaches_gemma3s_sliding_layers_where_yarns_own_does_not():
    """ggml_rope_ext is given the context's attn_factor in every layer, and rope_yarn makes m0 of the layer's own factor."""
    window = {"attention.sliding_window": 512, "rope.freq_base": 1e6}
    intended = table(Rope("yarn", 1e6, 128, 4096, {"factor": 8.0}))
    for attn_factor, exact in ((1.0, True), (0.9, False)):
        keys = keyed("gemma3", **YARN, **window, attn_factor=attn_factor)
        others = read_gguf(keys).beside.other_layers
        np.testing.assert_allclose(others.inv_freq, table(Rope("none", 10000.0, 128, 4096)).inv_freq, rtol=1e-12)
        assert others.multiplier == pytest.approx(attn_factor, rel=FLOAT32)
        meant = intended._replace(multiplier=intended.multiplier * attn_factor)
        (verdict,) = [v for v in survey_gguf(keys, None, meant, 32768) if v.runtime == "llama.cpp"]
        assert verdict.exact == exact
        assert exact or verdict.differs == "multiplier 0.9 instead of 1 in the sliding-window layers"
    assert read_gguf(keyed("gemma3", **YARN)).beside.other_layers is None  # without a window there are no such layers


def test_gguf_gemma2_and_gpt_oss_scale_every_layer_alike_unless_the_window_has_a_base_of_its_own():
    for arch in ("gemma2", "gpt-oss"):
        assert read_gguf(keyed(arch, **YARN)).beside.other_layers is None
        others = read_gguf(keyed(arch, **YARN, **{"rope.freq_base_swa": 20000.0})).beside.other_layers
        np.testing.assert_allclose(others.inv_freq, table(Rope("yarn", 20000.0, 128, 4096, {"factor": 8.0})).inv_freq, rtol=FLOAT32)
    stray = read_gguf(keyed("gemma2", type="none", factor=8.0))  # a factor that only the window's layers follow
    assert (stray.inv_freq[0], stray.beside.other_layers.inv_freq[0]) == (1.0, 0.125)


def test_gguf_olmo2_keeps_the_window_plain_whatever_is_written():
    others = read_gguf(keyed("olmo2", **YARN, attn_factor=0.9, **{"attention.sliding_window": 512})).beside.other_layers
    assert others.multiplier == 1.0
    np.testing.assert_allclose(others.inv_freq, table(base_rope("none")).inv_freq, rtol=1e-12)


@pytest.mark.parametrize("x", [1.0, 0.707])
def test_gguf_deepseek2_follows_equal_mscales_as_transformers_5_does(x):
    """yarn_log_multiplier is 0.1·mscale_all_dim: cos and sin times 1, the logits times (0.1·x·ln s + 1)²."""
    reading = read_gguf(keyed("deepseek2", **YARN, yarn_log_multiplier=0.1 * x))
    hf = family("deepseek_v3", yarn(mscale=x, mscale_all_dim=x), qk_rope_head_dim=128)
    wanted = read_config("transformers-5", hf)
    assert reading.multiplier == pytest.approx(wanted.multiplier, rel=FLOAT32)
    assert reading.beside.logits == pytest.approx(wanted.beside.logits, rel=FLOAT32)
    assert wanted.beside.logits == pytest.approx((0.1 * x * math.log(8) + 1) ** 2, rel=1e-12)


def test_gguf_deepseek2_without_the_log_multiplier_applies_yarns_temperature_twice():
    m0 = 0.1 * math.log(8) + 1
    reading = read_gguf(keyed("deepseek2", **YARN))
    assert (reading.multiplier, reading.beside.logits) == (pytest.approx(m0, rel=FLOAT32), pytest.approx(m0**2, rel=FLOAT32))
    linear = read_gguf(keyed("deepseek2", type="linear", factor=8.0))  # and to linear, which has none
    assert (linear.multiplier, linear.beside.logits) == (1.0, pytest.approx(m0**2, rel=FLOAT32))
    (verdict,) = [
        v
        for v in survey_gguf(keyed("deepseek2", **YARN), None, Table(reading.inv_freq, reading.multiplier), 32768)
        if v.runtime == "llama.cpp"
    ]
    assert verdict.differs == "multiplies the attention's logits by 1.45913 instead of 1"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (keyed("granite", **{"rope.scaling.finetuned": False}), "granite with rope.scaling.finetuned false has no RoPE"),
        (keyed("mimo2", **{"rope.dimension_count_swa": 32}), "rope.dimension_count_swa of mimo2 is not modelled"),
        (keyed("grok", **YARN, yarn_ext_factor=0.5), "rope.scaling.yarn_ext_factor of grok is not modelled"),
        (keyed("grok", yarn_ext_factor=1.0), "rope.scaling.yarn_ext_factor of grok is not modelled"),
        (keyed("plamo2", **{"attention.head_count": [0, 2]}), "llama.cpp turns nothing in plamo2 whose first layer has no heads"),
        (keyed("gpt2"), "gpt2 has learned positions, not RoPE"),
        (keyed("cogvlm"), "cogvlm is computed by llama.cpp with plain RoPE"),
        (keyed("nobody"), "the architecture 'nobody' is not known here"),
    ],
)
def test_gguf_what_is_not_modelled_is_not_guessed(keys, reason):
    with pytest.raises(Unsupported, match=reason):
        read_gguf(keys)


@pytest.mark.parametrize("sections", [[8, 12, 12, 0], [64, 0, 0, 0], 16])
def test_gguf_sections_of_m_rope_change_no_table(sections):
    """Text has one position for them; which pairs have another is the same before and after."""
    keys = keyed("glm4", **YARN, **{"rope.dimension_sections": sections})
    np.testing.assert_array_equal(read_gguf(keys).inv_freq, read_gguf(keyed("glm4", **YARN)).inv_freq)
    with pytest.raises(FormatError, match="3 numbers, not 4"):
        read_gguf(keyed("glm4", **{"rope.dimension_sections": [8, 12, 12]}))


def test_ollama_is_not_known_where_it_mends_keys_unless_there_is_nothing_to_mend():
    read = GGUF_READERS["Ollama"].read
    bases = {"rope.freq_base": 1e6, "rope.freq_base_swa": 10000.0}
    assert read(keyed("gemma3", **YARN, **bases), None).multiplier == read_gguf(keyed("gemma3", **YARN)).multiplier
    for keys in (keyed("gemma3", **bases), keyed("llama4", **YARN)):
        with pytest.raises(Unsupported, match="it mends its keys"):
            read(keys, None)


@pytest.mark.parametrize(
    "changes", [{"rope_theta": "x"}, {"rope_theta": [1]}, {"rope_theta": 0}, {"rope_theta": True}, {"layer_types": -1}, {"rope_local_base_freq": [1]}]
)  # fmt: skip
def test_values_that_no_reader_can_compute_with_are_a_refusal(changes):
    """Some stand where transformers overlooks them: what opens a model does not see them, another reader does."""
    spelled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
    config = {
        "model_type": "gemma3_text", "head_dim": 32, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256,
        "sliding_window": 16, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": spelled,
        "rope_parameters": {"full_attention": spelled, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    }  # fmt: skip
    refused = ""
    for reader in HF_READERS:
        try:
            read_config(reader, config)
        except (Unsupported, Refuses):
            continue
        try:
            read_config(reader, config | changes)
        except Refuses as e:
            refused += e.message
    assert "cannot compute from this" in refused


def test_a_gguf_key_that_llama_cpp_cannot_compute_with_is_a_refusal():
    keys = {
        "general.architecture": "gemma3",
        "gemma3.context_length": 256,
        "gemma3.rope.scaling.type": "yarn",
        "gemma3.rope.scaling.factor": 4.0,
    }
    keys |= {"gemma3.embedding_length": 64, "gemma3.attention.head_count": 4, "gemma3.attention.sliding_window": 16}
    keys |= {"gemma3.rope.scaling.original_context_length": 64, "gemma3.rope.freq_base": 1e6}
    assert read_gguf(keys).beside.other_layers is not None
    with pytest.raises(Refuses, match="cannot compute from this"):
        read_gguf(keys | {"gemma3.rope.freq_base_swa": 0})
