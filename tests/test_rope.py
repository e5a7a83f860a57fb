"""Every method against transformers' tables and against the paper's formulas, written out here in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_convert.errors import Unsupported, UsageError
from yarn_convert.rope import METHODS, Rope, bake, effect, geometric, table, temperature

GRID = [
    (theta, L, s, D) for theta in (1e4, 1e5, 5e5, 1e6) for L in (2048, 8192, 32768, 131072) for s in (1.5, 4.0, 32.0) for D in (64, 80, 128)
]


def transformers_table(
    kind: str, theta: float, context: int, dim: int, length: int | None = None, max_position: int | None = None, **keys: object
) -> tuple[np.ndarray, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    spelling = {"rope_type": kind, "rope_theta": theta, "original_max_position_embeddings": context, **keys}
    if kind in ("linear", "dynamic"):
        del spelling["original_max_position_embeddings"]
    config = LlamaConfig(
        hidden_size=dim * 4, num_attention_heads=4, head_dim=dim, rope_parameters=spelling, max_position_embeddings=max_position or context
    )
    inv_freq, multiplier = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return inv_freq.double().numpy(), float(multiplier)


def equal(rope: Rope, expected: tuple[np.ndarray, float], length: int | None = None, rtol: float = 1e-6) -> None:
    inv_freq, multiplier = table(rope, length)
    assert inv_freq.dtype == np.float64
    np.testing.assert_allclose(inv_freq, expected[0], rtol=rtol)
    assert multiplier == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize(("theta", "context", "s", "dim"), GRID)
def test_yarn_equals_transformers(theta: float, context: int, s: float, dim: int) -> None:
    pytest.importorskip("transformers")
    # At the interpolated end transformers subtracts nearly equal float32 numbers: its error there grows with s.
    rtol = 2e-7 * max(5.0, s)
    for keys in ({}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}, {"attention_factor": 1.5}):
        expected = transformers_table("yarn", theta, context, dim, factor=s, max_position=int(context * s), **keys)
        equal(Rope("yarn", theta, dim, context, {"factor": s, **keys}), expected, rtol=rtol)


@pytest.mark.parametrize(("theta", "context", "s", "dim"), GRID[::5])
def test_linear_dynamic_and_llama3_equal_transformers(theta: float, context: int, s: float, dim: int) -> None:
    pytest.importorskip("transformers")
    equal(Rope("linear", theta, dim, context, {"factor": s}), transformers_table("linear", theta, context, dim, factor=s))
    length = int(context * s)
    for f in (1.0, 2.0):
        expected = transformers_table("dynamic", theta, context, dim, length=length, factor=f)
        equal(Rope("dynamic-ntk", theta, dim, context, {"factor": f}), expected, length, rtol=2e-6)
    keys = {"factor": s, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    equal(
        Rope("llama3", theta, dim, context, keys), transformers_table("llama3", theta, context, dim, max_position=length, **keys), rtol=2e-6
    )


def test_longrope_equals_transformers() -> None:
    pytest.importorskip("transformers")
    short, long = [1.0 + i / 100 for i in range(32)], [1.0 + i for i in range(32)]
    keys = {"short_factor": short, "long_factor": long, "factor": 32.0}
    rope = Rope("longrope", 1e4, 64, 4096, {"short_factor": tuple(short), "long_factor": tuple(long), "factor": 32.0})
    for length in (4096, 4097):
        equal(rope, transformers_table("longrope", 1e4, 4096, 64, length=length, max_position=131072, **keys), length)


@pytest.mark.parametrize(("theta", "context", "s", "dim"), GRID[::7])
def test_abf_is_another_rope_theta_of_transformers(theta: float, context: int, s: float, dim: int) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raised = {"rope_type": "default", "rope_theta": 20 * theta}
    config = LlamaConfig(hidden_size=dim * 4, num_attention_heads=4, head_dim=dim, rope_parameters=raised)
    theirs = LlamaRotaryEmbedding(config).inv_freq.double().numpy()
    equal(Rope("abf", theta, dim, context, {"theta": 20 * theta}), (theirs, 1.0), rtol=1e-6)
    scaled = Rope("linear", theta, dim, context, {"factor": s})
    equal(Rope("abf", theta, dim, context, {"theta": 20 * theta}, inner=scaled), (theirs / s, 1.0), rtol=1e-6)
    for no_higher in (theta, theta / 2, 1e39):
        with pytest.raises(UsageError, match="is not above it"):
            table(Rope("abf", theta, dim, context, {"theta": no_higher}))


def test_cope_is_its_authors_taper() -> None:
    """Llama 3 8B as they trained it: 20 of 64 pairs, from the 44th on (arXiv 2602.05258, 5.1), over rope_theta 1e7; by their torch code's
    linspace from 0 to π. The paper's 29 pairs that turn less than once are by the base's own 5e5."""
    torch = pytest.importorskip("torch")
    mask = torch.ones(64)
    mask[44:] = 0.5 * (1.0 + torch.cos(torch.linspace(0.0, torch.pi, 20)))
    for theta, params in ((5e5, {}), (1e7, {"theta": 1e7})):
        theirs = (1.0 / theta ** (torch.arange(0, 128, 2) / 128) * mask).double().numpy()
        found, multiplier = table(Rope("cope", 5e5, 128, 8192, params))
        np.testing.assert_allclose(found[:-1], theirs[:-1], rtol=2e-5)  # float32 near π: 1 + cos loses
        assert (found[-1], theirs[-1], multiplier) == (0.0, 0.0, 1.0)
        assert found[44] == geometric(theta, 128)[44] > found[45]
    assert table(Rope("cope", 5e5, 128, 8192, {"clip_pairs": 29.0})).inv_freq[35] == geometric(5e5, 128)[35]
    for odd in (1.0, 65.0, 0.0):
        with pytest.raises(UsageError, match="29 of its 64 pairs turn less than once"):
            table(Rope("cope", 5e5, 128, 8192, {"clip_pairs": odd}))
    with pytest.raises(Unsupported, match="stand still already"):
        table(Rope("cope", 5e5, 128, 8192, still=3))


@pytest.mark.parametrize(("theta", "context", "s", "dim"), GRID[::3])
def test_the_paper_in_float64(theta: float, context: int, s: float, dim: int) -> None:
    """Eq. 10, 16, 17–20 and 22 transcribed pair by pair, with `math` alone."""
    for i in range(dim // 2):
        w = theta ** (-2 * i / dim)
        r = context / (2 * math.pi / w)
        gamma = 0.0 if r < 1 else 1.0 if r > 32 else (r - 1) / (32 - 1)
        expected = {
            "linear": w / s,
            "ntk-aware": (theta * s ** (dim / (dim - 2))) ** (-2 * i / dim),
            "ntk-by-parts": (1 - gamma) * w / s + gamma * w,
            "yarn": (1 - gamma) * w / s + gamma * w,
        }
        for method, value in expected.items():
            params = {"factor": s} | ({"ramp": "paper"} if "parts" in method or method == "yarn" else {})
            assert table(Rope(method, theta, dim, context, params)).inv_freq[i] == pytest.approx(value, rel=1e-12)
    assert table(Rope("yarn", theta, dim, context, {"factor": s})).multiplier == pytest.approx(0.1 * math.log(s) + 1, rel=1e-15)
    assert table(Rope("ntk-by-parts", theta, dim, context, {"factor": s})).multiplier == 1


def test_the_published_yarn_llama_ramp() -> None:
    """Yarn-Llama-2-7b-64k (θ 1e4, L 4096, D 128, s 16): the authors' ramp runs from pair 20 to pair 46."""
    ratio = table(Rope("yarn", 1e4, 128, 4096, {"factor": 16.0})).inv_freq / geometric(1e4, 128)
    assert ratio[20] == 1
    assert ratio[21] < 1
    assert ratio[45] > 1 / 16
    assert ratio[46] == pytest.approx(1 / 16, rel=1e-12)
    assert ratio[33] == pytest.approx(1 / 16 + 15 / 16 * (46 - 33) / 26, rel=1e-12)


ROPES = st.builds(
    lambda theta, dim, context: (theta, dim, context),
    st.floats(1e3, 1e7),
    st.sampled_from([32, 64, 80, 128]),
    st.integers(256, 1 << 18),
)


@given(ROPES, st.sampled_from(["linear", "ntk-aware", "ntk-by-parts", "yarn"]))
@settings(max_examples=100, deadline=None)
def test_factor_one_is_plain_rope(base: tuple[float, int, int], method: str) -> None:
    theta, dim, context = base
    inv_freq, multiplier = table(Rope(method, theta, dim, context, {"factor": 1.0}))
    np.testing.assert_allclose(inv_freq, geometric(theta, dim), rtol=1e-14)
    assert multiplier == 1


@given(ROPES, st.floats(1.0, 128.0), st.sampled_from(["ntk-aware", "ntk-by-parts", "yarn"]), st.sampled_from(["index", "paper"]))
@settings(max_examples=200, deadline=None)
def test_the_fastest_pair_is_kept_and_the_rest_lie_between(base: tuple[float, int, int], s: float, method: str, ramp: str) -> None:
    theta, dim, context = base
    params = {"factor": s} | ({"ramp": ramp} if method != "ntk-aware" else {})
    omega, inv_freq = geometric(theta, dim), table(Rope(method, theta, dim, context, params)).inv_freq
    assert inv_freq[0] == pytest.approx(1.0, rel=1e-12)
    assert (inv_freq <= omega * (1 + 1e-12)).all()
    assert (inv_freq >= omega / s * (1 - 1e-12)).all()
    assert (np.diff(inv_freq) < 0).all()


def test_the_slowest_pair_of_ntk_aware_is_divided_by_s() -> None:
    assert table(Rope("ntk-aware", 1e4, 128, 4096, {"factor": 8.0})).inv_freq[-1] == pytest.approx(geometric(1e4, 128)[-1] / 8, rel=1e-12)


@pytest.mark.parametrize("method", ["dynamic-ntk", "dynamic-linear", "dynamic-yarn"])
def test_dynamic_is_plain_within_the_window_and_equals_its_baked_form_beyond(method: str) -> None:
    rope = Rope(method, 1e4, 64, 2048)
    np.testing.assert_array_equal(table(rope, 1500).inv_freq, geometric(1e4, 64))
    assert table(rope, 2048).multiplier == 1
    baked = bake(rope, 8192)
    assert baked.number("factor") == 4
    np.testing.assert_array_equal(table(rope, 8192).inv_freq, table(baked).inv_freq)
    assert table(rope, 8192).multiplier == table(baked).multiplier == (temperature(4) if method == "dynamic-yarn" else 1)


LLAMA3 = Rope("llama3", 5e5, 128, 8192, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})


def test_yarn_over_llama3_scales_the_effective_frequencies() -> None:
    omega = table(LLAMA3).inv_freq
    composed = Rope("yarn", 5e5, 128, 131072, {"factor": 4.0}, LLAMA3)
    ratio = table(composed).inv_freq / omega
    turns = 131072 * omega / (2 * math.pi)
    assert (ratio[turns > 40] == 1).all()
    np.testing.assert_allclose(ratio[turns < 0.9], 0.25, rtol=1e-12)
    assert table(composed).multiplier == temperature(4)
    paper = Rope("yarn", 5e5, 128, 131072, {"factor": 4.0, "ramp": "paper"}, LLAMA3)
    gamma = np.clip((turns - 1) / 31, 0, 1)
    np.testing.assert_allclose(table(paper).inv_freq, omega * gamma + omega / 4 * (1 - gamma), rtol=1e-12)


def test_the_ramp_over_other_frequencies_finds_the_same_pairs_as_the_formula() -> None:
    """Composed over a base that is plain RoPE in disguise, the interpolated correction index must equal the formula's."""
    disguise = Rope("explicit", 1e4, 128, 4096, {"factors": (1.0,) * 64})
    for params in ({"factor": 8.0}, {"factor": 8.0, "truncate": False}):
        np.testing.assert_allclose(
            table(Rope("yarn", 1e4, 128, 4096, params, disguise)).inv_freq, table(Rope("yarn", 1e4, 128, 4096, params)).inv_freq, rtol=1e-9
        )


@pytest.mark.parametrize(
    ("rope", "error"),
    [
        (Rope("yarn", 1e4, 128, 4096), UsageError),
        (Rope("yarn", 1e4, 128, 4096, {"factor": math.nan}), UsageError),
        (Rope("yarn", 1e4, 128, 4096, {"factor": -4.0}), UsageError),
        (Rope("yarn", 1e4, 128, 4096, {"factor": 4.0, "beta_fast": 0.9}), UsageError),
        (Rope("yarn", 1e4, 128, 4096, {"factor": 4.0, "beta_fast": 1.0, "ramp": "paper"}), UsageError),
        (Rope("yarn", 1e4, 128, 4096, {"factor": 4.0, "ramp": "cubic"}), UsageError),
        (Rope("yarn", 1e4, 128, 4096, {"factor": 4.0, "attention_factor": 0.0}), UsageError),
        (Rope("yarn", 1e4, 128, 5, {"factor": 4.0}), UsageError),
        (Rope("linear", 1.0, 128, 4096, {"factor": 4.0}), UsageError),
        (Rope("linear", 1e4, 127, 4096, {"factor": 4.0}), UsageError),
        (Rope("ntk-aware", 1e4, 2, 4096, {"factor": 4.0}), UsageError),
        (Rope("explicit", 1e4, 128, 4096, {"factors": (1.0,) * 63}), UsageError),
        (Rope("explicit", 1e4, 128, 4096, {"factors": (0.0,) * 64}), UsageError),
        (Rope("alibi", 1e4, 128, 4096), Unsupported),
    ],
)
def test_parameters_out_of_range_are_refused(rope: Rope, error: type[Exception]) -> None:
    with pytest.raises(error):
        table(rope)


def test_every_method_documents_itself() -> None:
    assert all(m.function.__doc__ for m in METHODS.values())


@pytest.mark.parametrize("length", [1, 64, 65, 200])
def test_what_is_composed_with_longrope_has_its_long_list_at_every_length(length: int) -> None:
    """So every output is written, which has one list: inside L too."""
    lists = {"short_factor": (1.0,) * 8, "long_factor": (3.0,) * 8, "attention_factor": 1.1}
    inner = Rope("longrope", 1e4, 16, 64, lists)
    np.testing.assert_array_equal(table(Rope("linear", 1e4, 16, 256, {"factor": 2.0}, inner), length).inv_freq, geometric(1e4, 16) / 3 / 2)
    np.testing.assert_array_equal(table(inner, length).inv_freq, geometric(1e4, 16) / (3 if length > 64 else 1))


@pytest.mark.parametrize("length", [1, 64, 100, 640])
def test_a_dynamic_recipe_multiplies_logits_as_the_static_one_of_that_length(length: int) -> None:
    """Multi-head latent attention carries YaRN's temperature there (DeepSeek-V2): (0.1·ln s + 1)², s = max(1, l'/L)."""
    rope = Rope("dynamic-yarn", 1e4, 16, 64, {"mscale": 1.0, "mscale_all_dim": 1.0})
    assert effect(rope, length).logits == pytest.approx((0.1 * math.log(max(1, length / 64)) + 1) ** 2)
    assert effect(rope, length).multiplier == 1
