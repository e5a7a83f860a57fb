import ctypes
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from yarn_convert.errors import Unsupported
from yarn_convert.readers import HF_READERS, Refuses, read_config, read_gguf
from yarn_convert.readers.gguf import gguf_corrections, gguf_multiplier
from yarn_convert.rope import Rope, table

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


@pytest.mark.parametrize(("reader", "name"), GOLDENS)
def test_a_reader_computes_what_the_runtime_computed(reader, name):
    config, golden = DATA["configs"][name], DATA["readers"][reader]["readings"][name]
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
    with pytest.raises(Unsupported, match="qwen3"):
        read_config("vllm", llama() | {"model_type": "qwen3"})
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


def test_gguf_attn_factor_is_multiplied_with_the_temperature_in_float32():
    """s = 8, float32 step by step: 0.1·ln 8 + 1 = 1.20794415, its inverse 0.827852845, times it again 1.0; so the
    key times 1.20794415 is what cos and sin get."""
    one = gguf_multiplier(np.float32(0.125), np.float32(1.0))
    assert one.dtype == np.float32
    assert one == pytest.approx(1.20794415, abs=2e-7)
    wanted = np.float32(1.5 / 1.20794415)
    assert gguf_multiplier(np.float32(0.125), wanted) == pytest.approx(1.5, abs=3e-7)
    assert gguf_multiplier(np.float32(1.0), np.float32(0.5)) == np.float32(0.5)


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
    assert reading.ignored == ("llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.yarn_attn_factor")
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
