"""Every architecture of llama.cpp has a row that says what its code computes, or a refusal; the rows are held against llama.cpp itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from arch_models import CONTEXT, Job, Made, Turn, file_of, keys_of, made
from conftest import LLAMA_CPP_SOURCE

from yarn_convert import Recipe, convert
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import Source
from yarn_convert.cli.show import inspect_lines
from yarn_convert.conversion.describe import describe
from yarn_convert.dialects import FACTORS as FACTOR_TENSORS
from yarn_convert.errors import Unsupported, YarnConvertError
from yarn_convert.families import ARCHS, FAMILIES, NO_ROPE, REFUSED, for_gguf
from yarn_convert.families.schema import numbered
from yarn_convert.readers import UNTOLD, Flags, read_gguf, still
from yarn_convert.readers.gguf import READ_AT, gguf_corrections, gguf_ramp
from yarn_convert.rope import Table, geometric, table

pytest.importorskip("llama_cpp")
LIST = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())
RTOL = 2e-6  # of float32 numbers


# -- all of them -------------------------------------------------------------------------------------------------------


def test_every_architecture_has_a_row_or_a_refusal() -> None:
    assert LIST["llama.cpp"] == READ_AT
    names = set(LIST["architectures"])
    assert names - ARCHS.keys() - REFUSED.keys() == set()
    assert (ARCHS.keys() | (REFUSED.keys() - NO_ROPE.keys())) - names == set(), "llama.cpp has no such architecture"
    assert ARCHS.keys() & REFUSED.keys() == set()


def test_the_list_is_that_of_llama_cpps_source() -> None:
    """LLM_ARCH_NAMES; "(unknown)" is its name for none."""
    source = Path(LLAMA_CPP_SOURCE) / "src" / "llama-arch.cpp"
    if not source.is_file():
        pytest.skip("YARN_CONVERT_LLAMA_CPP has no src/llama-arch.cpp")
    table = source.read_text().partition("LLM_ARCH_NAMES")[2].partition("};")[0]
    assert sorted(re.findall(r'\{\s*LLM_ARCH_\w+,\s*"([^"(]+)"', table)) == LIST["architectures"]


@pytest.mark.parametrize("arch", sorted(REFUSED.keys() & set(LIST["architectures"])))
def test_a_refusal_says_why(arch: str) -> None:
    with pytest.raises(Unsupported, match=rf"^{re.escape(arch)} \w+ "):
        for_gguf(arch, {}, [])
    with pytest.raises(Unsupported, match=rf"^{re.escape(arch)} \w+ "):
        read_gguf({"general.architecture": arch})


# -- what llama.cpp hands to ggml_rope_ext, in every layer of every row ------------------------------------------------

LONG = {"context_length": 4 * CONTEXT, "rope__freq_base": 50000.0, "rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 1.25}
YARN = {**LONG, "rope__scaling__type": "yarn", "rope__scaling__original_context_length": CONTEXT}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "longrope": {**LONG, "rope__scaling__type": "longrope", "rope__scaling__original_context_length": CONTEXT},
    "yarn": {
        **YARN, "rope__freq_base_swa": 20000.0, "rope__scaling__yarn_log_multiplier": 0.1, "rope__scaling__yarn_beta_fast": 12.0,
        "rope__scaling__yarn_beta_slow": 2.0, "rope__scaling__alpha": 3.0,
    },
}  # fmt: skip


def keys(arch: str, kind: str) -> dict[str, Any]:
    facts, changes = ARCHS[arch], KINDS[kind]
    if kind == "yarn" and facts.dims:
        whole = facts.freqs == "required"  # a tensor of as many factors as half a head has
        changes = changes | {"rope__dimension_count_swa": 32} | ({} if whole else {"rope__dimension_count": 48})
    return keys_of(arch, **changes)


@cache
def run(arch: str, kind: str) -> Made:
    found = made(Job(arch, keys(arch, kind), factors=FACTORS))
    assert not found.error
    return found


FACTORS = tuple(np.float32(1 + 0.03 * i) for i in range(48))


def turned(turn: Turn, factors: Sequence[float] = FACTORS) -> Table:
    """What ggml computes from the parameters of one call (ggml-cpu/ops.cpp: rope_yarn)."""
    omega = geometric(turn.theta, turn.dims) / (np.array(factors[: turn.dims // 2], float) if turn.factors else 1.0)
    if not turn.ext:
        return Table(omega * turn.scale, turn.attn)
    assert turn.ext == 1
    keep = gguf_ramp(turn.dims, *gguf_corrections(turn.dims, turn.original, turn.theta, turn.fast, turn.slow))
    return Table(omega * turn.scale * (1 - keep) + omega * keep, turn.attn * (1 + 0.1 * math.log(1 / turn.scale)))


def same(a: Table, b: Table) -> bool:
    if a.inv_freq.shape != b.inv_freq.shape:
        return False
    return np.allclose(a.inv_freq, b.inv_freq, rtol=RTOL, atol=0) and math.isclose(a.multiplier, b.multiplier, rel_tol=RTOL)


def read(arch: str, kind: str, found: Made) -> Any:
    """The row's reading of what was run."""
    full = {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in keys(arch, kind).items()}
    tensors = {name: np.array(FACTORS[: shape[0]], float) for name, shape in found.shapes.items() if name.startswith("rope_f")}
    pair = [tensors[f"rope_factors_{x}.weight"] for x in ("short", "long")] if len(tensors) == 2 else None
    return read_gguf(full, tensors.get("rope_freqs.weight"), pair and (pair[0], pair[1]))


@pytest.mark.parametrize("arch", sorted(ARCHS))
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_turns_the_layers_as_the_row_says(arch: str, kind: str) -> None:
    """Each call of ggml_rope_ext or ggml_rope_multi has one of the tables that the row's reading has, and each of these has a call."""
    found = run(arch, kind)
    reading = read(arch, kind, found)
    main, second = Table(reading.inv_freq, reading.multiplier), reading.beside.other_layers
    tables = [turned(t) for t in found.turns]
    which = [0 if same(t, main) else 1 if second is not None and same(t, second) else None for t in tables]
    assert None not in which, [t for t, k in zip(found.turns, which, strict=True) if k is None][:2]
    only_windows = second is not None and arch == "smallthinker"
    assert set(which) == ({1} if only_windows else {0} if second is None or same(main, second) else {0, 1})


@pytest.mark.parametrize("arch", sorted(ARCHS))
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_scales_the_logits_as_the_row_says(arch: str, kind: str) -> None:
    """What ggml_soft_max_ext multiplies them by, over what it does without a scaling."""
    found, plain = run(arch, kind).scales, run(arch, "plain").scales
    assert found
    assert len(found) == len(plain)
    logits = read(arch, kind, run(arch, kind)).beside.logits
    np.testing.assert_allclose(found, [logits * scale for scale in plain], rtol=RTOL)


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_llama_cpp_loads_the_factors_and_the_head_that_the_row_says(arch: str) -> None:
    facts = ARCHS[arch]
    for kind in ("plain", "longrope"):
        pair = facts.pair == "always" or (facts.pair == "longrope" and kind == "longrope")
        wanted = {"rope_factors_long.weight", "rope_factors_short.weight"} if pair else set()
        wanted |= {"rope_freqs.weight"} if facts.freqs != "refused" and not pair else set()
        assert {name for name in run(arch, kind).shapes if name.startswith("rope_f")} == wanted


LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("afmoe", {"block_count": 8}),
    ("afmoe", {"block_count": 8, "attention__sliding_window_pattern": [False, True] * 4}),
    ("baichuan", {}),
    ("baichuan", {"block_count": 40}),
    ("baichuan", {"block_count": 2}),
    ("cohere2", {"block_count": 8}),
    ("cohere2moe", {"block_count": 8, "attention__sliding_window_pattern": None, "leading_dense_block_count": 1}),
    ("cohere2moe", {"block_count": 8, "attention__sliding_window_pattern": [True] * 8, "leading_dense_block_count": 0}),
    ("exaone-moe", {"block_count": 8}),
    ("exaone4", {"block_count": 6}),
    ("exaone4", {"block_count": 64}),
    ("granite_swa", {"block_count": 4, "attention__sliding_window_pattern": [True] * 4, "attention__rope_pattern": [1, 0, 0, 1]}),
    ("lfm2", {"block_count": 4, "attention__head_count_kv": [2, 0, 0, 2], "attention__head_count": 2}),
    *(
        (
            "granitehybrid",
            {"block_count": 4, "attention__head_count_kv": [2, 0, 0, 2], "attention__head_count": 2, "rope__scaling__finetuned": on},
        )
        for on in (True, False)
    ),
    ("llama4", {"block_count": 8}),
    ("smallthinker", {"block_count": 8, "attention__sliding_window_pattern": None}),
    ("smallthinker", {"block_count": 8, "attention__sliding_window": None}),
]


@pytest.mark.parametrize(("arch", "changes"), LAYERS)
def test_llama_cpp_turns_the_layers_that_the_row_names(arch: str, changes: Mapping[str, Any]) -> None:
    job = Job(arch, keys_of(arch, **changes))
    found = made(job)
    assert not found.error
    facts, n = ARCHS[arch], job.keys["block_count"]
    assert facts.turning is not None
    layers = facts.turning(job.keys, n)
    layers = layers * n if len(layers) == 1 else layers
    if arch == "lfm2":  # whose calls have no names
        assert len(found.turns) == 2 * sum(layer.turns for layer in layers)
        return
    assert {int(t.name.rpartition("-")[2]) for t in found.turns} == {i for i, layer in enumerate(layers) if layer.turns}


def test_every_row_that_names_layers_is_run() -> None:
    assert {arch for arch, _ in LAYERS} == {arch for arch, facts in ARCHS.items() if facts.turning}


# -- a GGUF extended as a GGUF ------------------------------------------------------------------------------------------

STILL = (1.0,) * 8 + (1e30,) * 24
UNLISTED = sorted(ARCHS.keys() - {f.gguf_arch for f in FAMILIES})
WHOLE = {
    "exaone-moe": {"block_count": 2, "attention__sliding_window": 4 * CONTEXT},
    "lfm2": {"attention__sliding_window": 0, "attention__head_count": 2, "attention__head_count_kv": [0, 2]},
}


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    """A GGUF that llama.cpp runs, with all that its architecture may have, but factors that are a recipe of their own, and what no
    model has of the families that are written as it."""

    def write(arch: str, **changes: Any) -> Path:
        facts = ARCHS[arch]
        job = Job(arch, keys_of(arch, **WHOLE.get(arch, {}), **changes), factors=STILL if facts.freqs == "required" else (1.0,))
        found = made(job)
        assert not found.error
        optional = set() if facts.freqs == "required" or facts.pair == "always" else set(FACTOR_TENSORS)
        known = {t for f in FAMILIES if f.gguf_arch == arch for hf in f.tensors for t in f.parts(hf)}
        optional |= {n for n in found.shapes if known and n not in FACTOR_TENSORS and numbered(n).template not in known}
        return file_of(tmp_path / "base.gguf", job, {n: s for n, s in found.shapes.items() if n not in optional})

    return write


def named(arch: str, found: Made) -> dict[str, list[int]]:
    """The tensors that llama.cpp loads, without those that no row of the architecture names, as scales of a quantization."""
    rows = [f for f in FAMILIES if f.gguf_arch == arch]
    names = {*FACTOR_TENSORS, *(t for f in rows for hf in f.tensors for t in f.parts(hf))}
    return {n: s for n, s in found.shapes.items() if not rows or numbered(n).template in names}


def contents(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(the keys that are not RoPE's or yarn-convert's own, the tensors' bytes) of a GGUF."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    rope = (f"{arch}.rope.scaling.", f"{arch}.rope.freq_base", f"{arch}.context_length", "yarn_convert.", "GGUF.")
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith(rope) or k == f"{arch}.rope.freq_base_swa"}
    return fields, {t.name: t.data.tobytes() for t in reader.tensors if t.name not in FACTOR_TENSORS or arch == "gemma4"}


@pytest.mark.parametrize("arch", UNLISTED)
def test_a_gguf_is_extended_as_llama_cpp_computes_it(arch: str, base: Callable[..., Path], tmp_path: Path) -> None:
    """Every layer that sees all has the table of the recipe, and keys and bytes besides are the base's."""
    path, out = base(arch), tmp_path / "out.gguf"
    manifest = convert(str(path), Recipe(scale=4), output=out).manifest
    assert manifest.context == 4 * CONTEXT
    assert contents(out) == contents(path)
    rope = open_checkpoint(Source(out, "out")).rope
    assert (rope.method, rope.original_context) == ("yarn", CONTEXT)
    meant, others = table(rope), open_checkpoint(Source(out, "out")).beside(rope).other_layers
    found = made(Job(arch, {}, file=str(out)))
    assert not found.error
    turns = found.turns
    tables = [turned(t._replace(factors=t.factors and manifest.carrier == "tensors"), factors_of(out)) for t in turns]
    assert tables
    assert all(same(t, meant) or (others is not None and same(t, others)) for t in tables)
    assert any(same(t, meant) for t in tables) or arch == "smallthinker"


def factors_of(path: Path) -> Sequence[float]:
    return next((t.data.astype(float).tolist() for t in gguf.GGUFReader(path).tensors if t.name in FACTOR_TENSORS), ())


METHODS = {"linear": {"scaling.type": "linear", "scaling.factor": 4.0}, "ntk-aware": {"scaling.type": "none"}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["qwen35", "qwen3vlmoe", "glm4moe", "gemma4", "mistral3", "grovemoe", "hunyuan-dense", "step35"])
def test_a_gguf_is_extended_by_other_methods_too(arch: str, method: str, base: Callable[..., Path], tmp_path: Path) -> None:
    path, out = base(arch), tmp_path / "out.gguf"
    convert(str(path), Recipe(method=method, scale=4), output=out)
    assert contents(out) == contents(path)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(out).fields.items()}
    assert {k: fields.get(f"{arch}.rope.{k}") for k in METHODS[method]} == METHODS[method]
    found, meant = made(Job(arch, {}, file=str(out))), table(replace(open_checkpoint(Source(out, "out")).rope, still=0))
    assert any(same(turned(t._replace(factors=False)), meant) for t in found.turns)


def test_a_gguf_is_extended_in_place(base: Callable[..., Path]) -> None:
    path = base("qwen35")
    before = contents(path)
    convert(str(path), Recipe(scale=4), in_place=True)
    assert contents(path) == before
    assert open_checkpoint(Source(path, "out")).rope.method == "yarn"
    assert before[0]["qwen35.rope.dimension_sections"] == [16, 8, 8, 0]


@pytest.mark.parametrize(
    ("arch", "changes", "why"),
    [
        ("gemma4", {"rope__freq_base_swa": 1.0}, "rope.freq_base_swa is 1, not a float32 above 1"),
        ("gemma4", {"rope__freq_base_swa": [1.0, 2.0]}, "rope.freq_base_swa is .*, not a finite number"),
        ("gemma4", {"rope__dimension_count_swa": 3}, "rope.dimension_count_swa is 3, not an even part of the 64 of a head"),
        ("gemma4", {"rope__dimension_count_swa": 128}, "not an even part"),
        ("plamo3", {"attention__sliding_window": [32, 32]}, "attention.sliding_window is .*, not a positive integer"),
        ("mimo2", {"rope__dimension_count_swa": 32}, "rope.dimension_count_swa of mimo2 is not modelled"),
        ("qwen3vl", {"rope__dimension_sections": [16, 8, 8]}, "has 3 numbers, not 4"),
        ("qwen3vl", {"rope__dimension_sections": ["a"] * 4}, "not a number"),
        ("hunyuan_vl", {"rope__scaling__alpha": "x"}, "scaling.alpha is 'x', not a finite number"),
        ("grok", {"rope__scaling__yarn_ext_factor": 1.0}, "yarn_ext_factor of grok is not modelled"),
        ("plamo2", {"attention__head_count": [0, 2]}, "turns nothing in plamo2 whose first layer has no heads"),
        ("mistral4", {**YARN, "rope__scaling__yarn_log_multiplier": 0.0707}, "scales this GGUF's logits as no config.json can say"),
        ("lfm2", {}, "only in layers that see a window of 32 tokens"),
        ("baichuan", {"block_count": 40}, "RoPE in no layer"),
        ("cogvlm", {}, "cogvlm is computed by llama.cpp with plain RoPE"),
    ],
)
def test_what_gives_no_rope_is_refused(arch: str, changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "base.gguf", Job(arch, keys_of(arch, **changes)), {"output_norm.weight": [128]})
    with pytest.raises(YarnConvertError, match=why):
        convert(str(path), Recipe(scale=4), output=tmp_path / "out.gguf")


OWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # architecture, changes of its keys, what is written for scale 4
    ("hunyuan_vl", {"rope__scaling__alpha": 3.0}, {"freq_base": 31082.234, "scaling.alpha": None}),
    ("grok", {}, {"scaling.yarn_beta_fast": 32.0, "scaling.yarn_beta_slow": 1.0}),
    ("mistral3", {}, {"scaling.yarn_beta_fast": 32.0, "scaling.yarn_log_multiplier": None, "scaling.attn_factor": None}),
    ("mistral4", {}, {"scaling.yarn_log_multiplier": 0.1, "scaling.attn_factor": None}),
    ("spark2_5", {"rope__dimension_count_swa": 32, "rope__freq_base_swa": 2e4}, {"freq_base_swa": 2e4, "dimension_count_swa": 32}),
    ("gemma4", {"rope__dimension_count_swa": 32, "rope__freq_base_swa": 2e4}, {"freq_base_swa": 2e4, "dimension_count_swa": 32}),
]


@pytest.mark.parametrize(("arch", "changes", "written"), OWN)
def test_what_an_architecture_alone_reads_is_written_for_it(
    arch: str, changes: dict[str, Any], written: dict[str, Any], base: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = base(arch, **changes), tmp_path / "out.gguf"
    convert(str(path), Recipe(scale=4), output=out)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(out).fields.items()}
    assert {k: fields.get(f"{arch}.rope.{k}") for k in written} == {k: v and pytest.approx(v, rel=1e-6) for k, v in written.items()}
    c, found = open_checkpoint(Source(out, "out")), made(Job(arch, {}, file=str(out)))
    meant, others = table(replace(c.rope, still=0)), c.beside(c.rope).other_layers
    tables = [turned(t._replace(factors=False)) for t in found.turns]
    assert any(same(t, meant) for t in tables)
    assert all(same(t, meant) or (others is not None and same(t, others)) for t in tables)


MINISTRAL = {
    "context_length": 4 * CONTEXT, "rope__scaling__type": "yarn", "rope__scaling__factor": 16.0, "rope__scaling__yarn_beta_fast": 4.0,
    "rope__scaling__original_context_length": 64, "rope__scaling__yarn_log_multiplier": 1.0, "attention__temperature_scale": 0.1,
}  # fmt: skip
EXTENDED: list[tuple[str, dict[str, Any], tuple[float, ...]]] = [
    ("mistral3", MINISTRAL, (1.0,)),
    ("mistral3", MINISTRAL | {"rope__scaling__yarn_log_multiplier": 0.5}, (1.0,)),
    ("mistral3", MINISTRAL | {"rope__scaling__yarn_log_multiplier": 2.0}, (1.0,)),
    ("mistral4", {**YARN, "rope__scaling__attn_factor": None, "rope__scaling__yarn_log_multiplier": 0.1}, (1.0,)),
    ("grok", {**YARN, "rope__scaling__yarn_ext_factor": 1.0, "rope__scaling__yarn_attn_factor": 1.0}, (1.0,)),
    ("hunyuan_vl", {"rope__scaling__alpha": 3.0, "rope__scaling__type": "none"}, (1.0,)),
    ("step35", {}, (1.0, 2.0, 4.0, 8.0)),
]


@pytest.mark.parametrize(("arch", "changes", "factors"), EXTENDED)
def test_what_its_makers_wrote_is_kept_as_llama_cpp_computes_it(
    arch: str, changes: dict[str, Any], factors: tuple[float, ...], tmp_path: Path
) -> None:
    """--method none reads it as a recipe, and writes it again."""
    job = Job(arch, keys_of(arch, **changes), factors=factors)
    found = made(job)
    assert not found.error
    loaded = {n: s for n, s in named(arch, found).items() if n not in FACTOR_TENSORS or (len(factors) > 1 and n == "rope_freqs.weight")}
    path, out = file_of(tmp_path / "base.gguf", job, loaded), tmp_path / "out.gguf"
    convert(str(path), Recipe(method="none"), output=out)
    before, after = (made(Job(arch, {}, file=str(file))) for file in (path, out))
    tables = [[turned(t, factors_of(file)) for t in run.turns] for file, run in ((path, before), (out, after))]
    assert all(same(a, b) for a, b in zip(*tables, strict=True))
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-3, atol=1e-4)


def test_positions_that_scale_logits_count_from_the_same_length(base: Callable[..., Path], tmp_path: Path) -> None:
    """n_attn_temp_floor_scale of mistral3 is L, whatever the type; a method that changes L would change it."""
    path, out = base("mistral3", attention__temperature_scale=0.5), tmp_path / "out.gguf"
    for method in ("ntk-aware", "linear", "yarn"):
        assert convert(str(path), Recipe(method=method, scale=4), output=out, force=True).manifest.carrier == "metadata"
        assert gguf.GGUFReader(out).fields["mistral3.rope.scaling.original_context_length"].contents() == CONTEXT
        assert open_checkpoint(Source(out, "out")).beside(open_checkpoint(Source(out, "out")).rope).floor == CONTEXT
    with pytest.raises(YarnConvertError, match="temperature of the position grow after 64 tokens instead of 256"):
        convert(str(path), Recipe(context=512, original_context=64), output=tmp_path / "other.gguf")


# -- pairs that do not turn ---------------------------------------------------------------------------------------------

SAME_PAIRS: list[tuple[str, list[int], list[int]]] = [  # architecture, sections, which of 32 pairs text leaves still
    ("qwen3vl", [11, 11, 10, 0], []),
    ("qwen3vl", [20, 20, 20, 0], []),
    ("qwen3vl", [12, 10, 10, 0], [31]),
    ("qwen3vl", [22, 10, 10, 0], [31]),
    ("qwen3vl", [16, 8, 8, 0], [25, 26, 28, 29, 31]),
    ("qwen2vl", [16, 8, 8, 0], []),
    ("qwen2vl", [32, 0, 0, 0], []),
    ("qwen2vl", [16, 8, 4, 4], [28, 29, 30, 31]),
    ("qwen2vl", [20, 4, 4, 4], [28, 29, 30, 31]),
    ("qwen2vl", [4, 2, 1, 1], [7, 15, 23, 31]),
]


def test_the_pairs_that_text_leaves_still_are_those_of_llama_cpp() -> None:
    """Two files compute the same where the same pairs have the fourth position, which is 0, and else do not."""
    assert still("qwen3vl", [24, 20, 20, 0], 64) == [61, 62]  # as published
    logits = [made(Job(a, keys_of(a, rope__dimension_sections=s, rope__freq_base=100.0))).logits for a, s, _ in SAME_PAIRS]
    for (arch, given, pairs), ours in zip(SAME_PAIRS, logits, strict=True):
        assert still(arch, given, 32) == pairs
        for (other, _, theirs), found in zip(SAME_PAIRS, logits, strict=True):
            if arch == other:
                assert np.array_equal(ours, found) == (pairs == theirs)


@pytest.mark.parametrize(
    ("arch", "changes", "said"),
    [
        (
            "qwen3vl",
            {},
            "M-RoPE in sections of 16, 8, 8, 0; text turns all pairs by one position, but for 5 of 32 that llama.cpp leaves still",
        ),
        ("qwen35", {"rope__dimension_sections": [11, 11, 10, 0]}, "sections of 11, 11, 10, 0; text turns all pairs by one position\n"),
        ("gemma4", {}, "those within a window of 32 tokens keep theta 10000\n"),
        ("gemma4", {}, "8 of 32 pairs turn, by rope_freqs.weight"),
    ],
)
def test_inspect_shows_what_turns_otherwise(arch: str, changes: dict[str, Any], said: str, base: Callable[..., Path]) -> None:
    c = open_checkpoint(Source(base(arch, **changes), "base"))
    assert said in "\n".join([*inspect_lines(c, describe(c)), ""])


TWO_WAYS = (
    "qwen35", "qwen35moe", "qwen3vl", "qwen3vlmoe", "qwen2vl", "mistral3", "gemma3n", "gemma4", "glm4moe", "olmo2", "hunyuan-dense",
    "hunyuan-moe", "ernie4_5", "ernie4_5-moe", "minimax-m2", "lfm2", "mimo2", "laguna", "baichuan", "bailingmoe3", "plm", "grok",
)  # fmt: skip


@pytest.mark.parametrize("arch", TWO_WAYS)
def test_keys_and_the_parameters_of_the_context_are_two_ways_of_one_model(arch: str) -> None:
    """llama.cpp with YaRN's keys, and with the same as parameters of the context (llama_context_params) of the unscaled file."""
    changes = WHOLE.get(arch, {})
    factors = STILL if arch == "gemma4" else (1.0,)
    keyed = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 32}
    params = {"rope_scaling_type": 2, "rope_freq_scale": 0.25, "yarn_orig_ctx": 32}
    plain, keys, context = (
        made(Job(arch, keys_of(arch, **changes, **more), given, factors, 64)).logits
        for more, given in (({}, {}), (keyed, {}), ({}, params))
    )
    assert np.isfinite(plain).all()
    assert nmse(keys, context) < 1e-10
    assert nmse(keys, plain) > 1e-6


TOLD = Flags(kind="yarn", factor=4.0, original=32, theta=70000.0, fast=12.0, slow=2.0)
SCALED = {"context_length": 64, "rope__freq_base": 50000.0, "rope__scaling__factor": 2.0}


@pytest.mark.parametrize("arch", sorted({f.gguf_arch for f in FAMILIES}))
def test_llama_cpp_turns_the_layers_as_it_is_told(arch: str) -> None:
    """The parameters of the context, over a file that has a scaling and a θ of its own: each call has a table of the reading's."""
    of_file = keys_of(arch, **SCALED)
    params = {
        "rope_scaling_type": 2, "rope_freq_scale": 0.25, "yarn_orig_ctx": 32, "rope_freq_base": 70000.0, "yarn_beta_fast": 12.0,
        "yarn_beta_slow": 2.0,
    }  # fmt: skip
    found = made(Job(arch, of_file, params, FACTORS))
    assert not found.error
    full = {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in of_file.items()}
    tensors = {name: np.array(FACTORS[: shape[0]], float) for name, shape in found.shapes.items() if name.startswith("rope_f")}
    pair = [tensors[f"rope_factors_{x}.weight"] for x in ("short", "long")] if len(tensors) == 2 else None
    told, untold = (read_gguf(full, tensors.get("rope_freqs.weight"), pair and (pair[0], pair[1]), f) for f in (TOLD, UNTOLD))
    tables = [turned(t) for t in found.turns]
    wanted = [Table(told.inv_freq, told.multiplier), *([told.beside.other_layers] if told.beside.other_layers else [])]
    assert all(any(same(t, w) for w in wanted) for t in tables)
    assert not any(same(t, Table(untold.inv_freq, untold.multiplier)) for t in tables)
    np.testing.assert_allclose(found.scales, [told.beside.logits * scale for scale in run(arch, "plain").scales], rtol=RTOL)


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum())
