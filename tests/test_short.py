"""--short base: up to its own length the base's table, beyond it the extended one, in two lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel, split_options
from family_models import make

from yarn_convert import runtimes
from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.manifest import read_manifest
from yarn_convert.checkpoint.source import Source, resolve
from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.describe import short_texts
from yarn_convert.conversion.extension import extend
from yarn_convert.conversion.intention import intention_of, survey
from yarn_convert.dialects import ROPE_FREQS, gguf_read
from yarn_convert.errors import Unsupported, UsageError, YarnConvertError
from yarn_convert.families.schema import ROPE_OBJECTS
from yarn_convert.options import ConvertOptions, EvaluateOptions, FinetuneOptions, Recipe, ValidateOptions
from yarn_convert.publishing.model_card import card
from yarn_convert.readers import read_config
from yarn_convert.readers.judge import judge_configs
from yarn_convert.readers.survey import Surveyed
from yarn_convert.readers.switching import whole_context
from yarn_convert.rope import effect, same_at_all_lengths, table
from yarn_convert.targets.plan import carry_gguf, carry_hf, edited
from yarn_convert.validation import check

L = 256  # llama.cpp has no shorter context
BASE = {"max_position_embeddings": L}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
NTK = Recipe(scale=4, method="ntk-by-parts", short="base")
HERE = {"none": None, "linear": {"type": "linear", "factor": 2.0}, "llama3": LLAMA3}


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(str(path)))


def described_alone(folder: Path, config: dict[str, Any]) -> Checkpoint:
    """A folder with a config.json and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(Source(folder, folder.name, headers={}))


def rotary(folder: Path, n: int) -> np.ndarray:
    """cos of all positions of a text of n tokens, as transformers' own code has it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    module = LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(folder))
    return np.asarray(module(torch.zeros(1, 1), torch.arange(n)[None])[0][0].numpy())


@pytest.mark.parametrize("method", ["ntk-by-parts", "linear", "ntk-aware"])
@pytest.mark.parametrize("own", HERE)
def test_transformers_turns_short_texts_as_the_base_and_long_ones_as_the_extension(
    make_model: MakeModel, tmp_path: Path, own: str, method: str
) -> None:
    base, at = make_model(config={**BASE, "rope_scaling": HERE[own]}), {"scale": 4.0, "method": method}
    at |= {"original_context": 128} if own == "linear" else {}
    served = L  # by the base's own scaling, too
    convert(str(base), **split_options(**at, short="base", output=tmp_path / "both"))
    convert(str(base), **split_options(**at, output=tmp_path / "one"))
    both, one = opened(tmp_path / "both"), opened(tmp_path / "one")
    assert (both.rope.original_context, both.context) == (served, one.context)
    for n, other in ((served, base), (served + 1, tmp_path / "one"), (both.context, tmp_path / "one")):
        assert np.abs(rotary(tmp_path / "both", n) - rotary(other, n)).max() < 2e-4, n  # of angles in float32
    assert np.abs(rotary(base, served) - rotary(tmp_path / "one", served)).max() > 0.1


def test_yarns_multiplier_stands_for_both_lists_and_is_said(make_model: MakeModel) -> None:
    e = extend(opened(make_model(config=BASE)), Recipe(scale=4, short="base"))
    assert table(e.rope, L).multiplier == table(e.rope, L + 1).multiplier == pytest.approx(1.138629)
    assert any("its logits are not" in note and "--attention-factor 1" in note for note in e.notes)
    alone = extend(opened(Path(str(make_model("two", config=BASE)))), Recipe(scale=4, short="base", attention_factor=1.0))
    assert table(alone.rope, L).multiplier == 1.0
    assert not any("its logits" in note for note in alone.notes)


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}
SWITCHING = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("scaling", "asked", "word"),
    [
        (None, {"method": "dynamic-yarn"}, "--short is for a static method, not dynamic-yarn"),
        (None, {"method": "none", "scale": None}, "--short is for a static method, not none"),
        (LLAMA3, {"method": "yarn"}, "the base multiplies cos and sin by 1, yarn by 1.13863"),
        (YARN, {"method": "yarn", "scale": 16}, "the base multiplies cos and sin by 1.06931, yarn by 1.27726"),
        (YARN, {"method": "yarn", "scale": 2}, "the base itself serves 256 tokens, and no text of 256 is longer"),
        (SWITCHING, {"method": "ntk-by-parts"}, "switches tables itself, by longrope"),
        ({"rope_type": "dynamic", "factor": 2.0}, {"method": "ntk-by-parts"}, "switches tables itself, by dynamic-ntk"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_what_two_lists_cannot_say_is_refused_in_one_line(
    make_model: MakeModel, scaling: dict[str, Any] | None, asked: dict[str, Any], word: str
) -> None:
    c = opened(make_model(config={**BASE, "rope_scaling": scaling}))
    with pytest.raises((UsageError, Unsupported)) as refused:
        extend(c, Recipe(**{"scale": 4.0, "short": "base", **asked}))
    assert word in refused.value.message and refused.value.hint
    kept = Recipe(scale=16, short="base", attention_factor=1.0692) if scaling is YARN else None
    if kept:  # one multiplier for both is what the base has, too
        m = table(c.rope).multiplier
        assert extend(c, Recipe(scale=16, short="base", attention_factor=m)).rope.original_context == L


def test_a_training_or_an_unknown_choice_is_refused(make_model: MakeModel) -> None:
    pytest.importorskip("torch")
    from yarn_convert.finetuning.settings import settings_of

    c = opened(make_model(config=BASE))
    with pytest.raises(UsageError, match="a training changes its weights"):
        settings_of(c, FinetuneOptions(NTK), "cpu")
    with pytest.raises(UsageError, match="--short"):
        extend(c, Recipe(scale=4, short="bse"))  # type: ignore[arg-type]


# -- every family -----------------------------------------------------------------------------------------------------


def test_every_family_has_both_tables_in_each_format_or_refuses(tmp_path: Path) -> None:
    """Read back from the keys alone, without what yarn-convert leaves beside them."""
    pytest.importorskip("torch")
    from family_models import described, names

    carried: dict[str, set[str]] = {"safetensors": set(), "gguf": set(), "": set()}
    for name in names():
        c = described_alone(tmp_path / name.replace("/", "-"), described(name))
        for asked in (NTK, Recipe(scale=16, short="base")):
            try:
                e = extend(c, asked)
            except YarnConvertError:
                carried[""].add(name)
                continue
            own, base = effect(e.rope, e.rope.original_context), effect(c.rope)
            assert np.abs(own.inv_freq - base.inv_freq).max() < 1e-12 and own.logits == base.logits == 1
            for fmt, back in (("safetensors", _by_config), ("gguf", _by_gguf)):
                try:
                    found = back(c, e.rope, e.context, tmp_path)
                except YarnConvertError:
                    continue
                assert same_at_all_lengths(found, e.rope) and found.original_context == e.rope.original_context, (name, fmt)
                carried[fmt].add(name)
    assert {"mixtral", "granite", "granitemoe", "phi3", "minicpm", "minicpm3", "apertus"} <= carried["gguf"]
    assert not {"qwen3", "gemma3_text", "deepseek_v2"} & carried["gguf"], "their loaders take no pair"
    assert {"qwen3", "gemma3_text", "gemma4_text", "phi3", "deepseek_v2"} <= carried["safetensors"]
    assert {"ministral3", "phi3/longrope", "cohere2"} <= carried[""]


def _by_config(c: Checkpoint, rope: Any, context: int, folder: Path) -> Any:
    _, changes, _ = carry_hf(c, c.written, rope, context, "auto")
    return described_alone(folder / "again", edited(c.written, changes)).rope


def _by_gguf(c: Checkpoint, rope: Any, context: int, folder: Path) -> Any:
    _, keys, factors = carry_gguf(c, rope, context, "auto")
    assert ROPE_FREQS not in factors
    return gguf_read({k: v.data for k, v in keys.items() if v is not None}, c.family.gguf_arch, rope.rotary_dim, factors)[0]


def test_a_temperature_of_the_position_counts_from_one_length(tmp_path: Path) -> None:
    from family_models import described

    c = described_alone(tmp_path / "ministral3", described("ministral3"))
    with pytest.raises(Unsupported, match="the temperature of the position counts from 64 tokens in ministral3"):
        extend(c, Recipe(scale=16, method="ntk-by-parts", short="base"))


def test_an_architecture_without_a_pair_says_which_has_one(tmp_path: Path) -> None:
    from family_models import described

    for name, way in (("qwen2", "--gguf-arch llama"), ("qwen3", "--out safetensors")):
        c = described_alone(tmp_path / name, described(name, config=BASE))
        e = extend(c, NTK)
        with pytest.raises(YarnConvertError, match=f"architecture '{name}' loads no two lists") as refused:
            carry_gguf(c, e.rope, e.context, "auto")
        assert way in refused.value.hint
    c = described_alone(tmp_path / "qwen2", described("qwen2", config=BASE)).written_as("llama")
    assert carry_gguf(c, extend(c, NTK).rope, 4 * L, "auto")[0] == "tensors"


# -- what is on record, and what is said ------------------------------------------------------------------------------


def test_what_was_asked_goes_along_with_every_format(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model(config=BASE)
    first = convert(str(base), NTK, out="gguf", output=tmp_path / "a.gguf").manifest
    assert (first.asked.recipe, first.recipe.method) == ({"method": "ntk-by-parts", "scale": 4.0, "short": "base"}, "longrope")
    (tmp_path / "a.yarn_convert.json").unlink()  # the recipe in the file says it too
    convert(str(tmp_path / "a.gguf"), Recipe(method="none"), out="safetensors", output=tmp_path / "b")
    convert(str(tmp_path / "b"), Recipe(method="none"), out="gguf", output=tmp_path / "c.gguf")
    meant = extend(opened(base), NTK)
    for path in (tmp_path / "a.gguf", tmp_path / "b", tmp_path / "c.gguf"):
        c = opened(path)
        assert c.long == meant.long and c.ours and same_at_all_lengths(c.rope, meant.rope)
        assert intention_of(c, None, None, None).long == meant.long
        result = check(str(path), ValidateOptions(base=str(base), real=False, twin=False))
        assert not result["recipe"]["why"] and not result["recipe"]["doubt"], "an extension of the base, by what is recorded"
    made = read_manifest(tmp_path / "b")
    assert made and made.recipe.long_rope == meant.long and not made.recipe.kept
    again = extend(opened(tmp_path / "b"), Recipe(scale=8, method="yarn"))
    assert same_at_all_lengths(again.rope, extend(opened(base), Recipe(scale=8, method="yarn")).rope), "replaced, as any of ours"
    with pytest.raises(Unsupported, match="switches tables itself"):
        extend(opened(tmp_path / "b"), NTK)
    said = json.loads((tmp_path / "b/yarn_convert.json").read_text())
    said["recipe"]["long"]["params"]["factor"] = 8.0  # of which the list is not
    (tmp_path / "b/yarn_convert.json").write_text(json.dumps(said))
    assert opened(tmp_path / "b").long is None


@pytest.mark.parametrize("asked", [NTK, Recipe(method="none")], ids=lambda asked: asked.method)
def test_a_record_is_of_the_recipe_that_the_manifest_has(make_model: MakeModel, tmp_path: Path, asked: Recipe) -> None:
    """Whatever stands beside it there: the recipe of the long list, or that a scaling is the base's own."""
    from yarn_convert.publishing import hub

    base = make_model(config={**BASE, "rope_scaling": LLAMA3})
    convert(str(base), asked, out="gguf", output=tmp_path / "out.gguf")
    check(str(tmp_path / "out.gguf"), ValidateOptions(base=str(base), real=False, twin=False))
    made = read_manifest(tmp_path / "out.gguf")
    assert made and made.validation and hub._changed(opened(tmp_path / "out.gguf"), made) == ""


def test_a_base_that_differs_is_told_from_it(make_model: MakeModel, tmp_path: Path) -> None:
    """Lists whose first is not the table of the base are no extension of it."""
    base, other = make_model(config=BASE), make_model("other", config=BASE)
    convert(str(base), NTK, output=tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    for key in ROPE_OBJECTS:
        config[key]["short_factor"] = [1.0] * 7 + [1.01]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    (tmp_path / "out/yarn_convert.json").unlink()
    result = check(str(tmp_path / "out"), ValidateOptions(base=str(other), real=False, twin=False))
    assert result["recipe"]["doubt"] or result["recipe"]["why"]


def surveyed(path: Path) -> dict[str, Surveyed]:
    c = opened(path)
    return {v.runtime: v for v in survey(c, intention_of(c, None, None, None))}


def test_an_extension_says_what_it_costs_short_texts_and_how_it_would_not(make_model: MakeModel, tmp_path: Path) -> None:
    def said(out: str, **changed: Any) -> str:
        asked = ConvertOptions(Recipe(scale=4, **changed), out=out, output=tmp_path / "x.gguf" if out == "gguf" else tmp_path / "x")  # type: ignore[arg-type]
        return short_texts(prepare(str(model), asked))

    model = make_model(config=BASE)
    assert all(
        "--short base with --method ntk-by-parts" in said(out) and f"up to {L} tokens" in said(out) for out in ("gguf", "safetensors")
    )
    assert "--short base leaves them" in said("gguf", method="ntk-by-parts")
    assert said("gguf", short="base") == ""
    model = make("qwen2", tmp_path / "qwen2")
    assert "--short base" in said("safetensors") and "--short base" not in said("gguf") != ""  # whose loader takes no two lists


def test_each_reader_says_by_what_it_switches(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model(config=BASE)
    folder = convert(str(base), NTK, output=tmp_path / "out").manifest
    gguf = convert(str(base), NTK, out="gguf", output=tmp_path / "out.gguf").manifest
    said = "\n".join(folder.notes)
    assert "transformers-5 switches by the length of the text" in said and "--max-model-len 256 takes the short list" in said
    assert any("llama.cpp switches by the context that is allocated" in n and "-c 256 " in n and "-c 1024 " in n for n in gguf.notes)
    shown = surveyed(tmp_path / "out")
    assert {n for n, v in shown.items() if v.exact} == {"transformers-5", "vllm", "sglang", "OpenVINO"}
    assert "largest position" in shown["sglang"].switches and "every text" in shown["mlx-lm"].switches
    shown = surveyed(tmp_path / "out.gguf")
    assert {n for n, v in shown.items() if v.exact} == {"llama.cpp", "Ollama"}
    assert "num_ctx 256" in shown["Ollama"].switches
    assert "llama-server -m out.gguf -c 256 " in card(str(tmp_path / "out.gguf"))
    assert "--max-model-len 256 " in card(str(tmp_path / "out"))
    convert(str(base), Recipe(scale=4), output=tmp_path / "one")
    assert not any(v.switches for v in surveyed(tmp_path / "one").values())


def test_a_context_is_allocated_in_whole_pieces() -> None:
    assert [whole_context("llama.cpp", n) for n in (8192, 300, 255)] == [8192, 256, 0]
    assert whole_context("vllm", 300) == 300


def test_readers_are_judged_on_both_sides_of_the_length(make_model: MakeModel, tmp_path: Path) -> None:
    """A list that is wrong where it is used, however seldom, is not what is meant."""
    convert(str(make_model(config=BASE)), NTK, output=tmp_path / "out")
    c = opened(tmp_path / "out")
    assert {n for n, v in judge_configs(c.written, c.rope, c.context).items() if v.exact} == {"transformers-5", "vllm", "sglang"}
    lost = json.loads(json.dumps(dict(c.written)))
    for key in ROPE_OBJECTS:
        lost[key]["short_factor"] = lost[key]["long_factor"]
    assert not any(v.exact for v in judge_configs(lost, c.rope, c.context).values())
    late = json.loads(json.dumps(dict(c.written)))
    for key in ROPE_OBJECTS:
        late[key]["original_max_position_embeddings"] = 2 * L
    assert not judge_configs(late, c.rope, c.context)["transformers-5"].exact
    short = [np.array_equal(read_config("vllm", c.written, L, n).inv_freq, table(c.rope, L).inv_freq) for n in (L, None)]
    assert short == [True, False], "by the context that it serves"


# -- in the runtimes --------------------------------------------------------------------------------------------------

CASES = [
    *(("llama.cpp", name) for name in ("llama", "granite", "phi3", "minicpm", "apertus")),
    *(("transformers", name) for name in ("llama", "phi3")),
]


@pytest.mark.parametrize(("runtime", "name"), CASES)
def test_both_sides_are_proved_in_the_runtime(make_model: MakeModel, tmp_path: Path, runtime: str, name: str) -> None:
    """Twins, at every position of a text by either list; each list is a wrong recipe on the other's side."""
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")

    more = {"original_max_position_embeddings": L} if name == "phi3" else {}
    base = make_model(config=BASE) if name == "llama" else make(name, tmp_path / "base", config={**BASE, **more})
    out = tmp_path / ("out.gguf" if runtime == "llama.cpp" else "out")
    convert(str(base), NTK, out="gguf" if runtime == "llama.cpp" else "safetensors", output=out)
    real = (runtime, name) == ("llama.cpp", "llama")
    result = check(str(out), ValidateOptions(base=str(base), runtimes=(runtime,), real=real))
    assert result["verdict"] == "passed", result["reasons"]
    assert [(s["kind"], s.get("within"), s["tokens"]) for s in result["studies"] if s["kind"] == "twin"] == [
        ("twin", None, 4 * L), ("twin", L, L),
    ]  # fmt: skip
    assert {s.get("within") for s in result["studies"] if s["kind"] == "real"} == ({None, L} if real else set())
    told = {w["name"] for s in result["studies"] for w in s["wrong_recipes"] if w["told_apart"]}
    assert {"the long list", "the short list"} <= told
    if real:
        assert result["studies"][0]["within_base"]["by_recipe"] == result["studies"][0]["within_base"]["by_base"]


def test_the_gguf_gives_the_bases_logits_to_the_last_bit(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    base, ids = make_model(config=BASE), np.random.default_rng(0).integers(0, 263, 2 * L)
    for name, asked in {"base": Recipe(method="none"), "both": NTK, "one": Recipe(scale=4, method="ntk-by-parts")}.items():
        convert(str(base), asked, out="gguf", output=tmp_path / f"{name}.gguf")

    def logits(name: str, n: int) -> np.ndarray:
        return runtimes.run("llama.cpp", tmp_path / f"{name}.gguf", ids[:n], [(0, n)]).logits

    short, long = logits("both", L), logits("both", 2 * L)
    assert np.array_equal(short, logits("base", L))
    assert not np.allclose(short, logits("one", L), atol=1e-2)
    assert np.allclose(long, logits("one", 2 * L), atol=2e-3) and not np.allclose(long[:L], short, atol=1e-2)


def test_it_is_a_method_of_an_evaluation(make_model: MakeModel) -> None:
    pytest.importorskip("torch")
    from yarn_convert.compute.scorer import Torch
    from yarn_convert.evaluation.subjects import lines_of

    c = opened(make_model(config=BASE))
    s = EvaluateOptions(methods=("none", "ntk-by-parts+base:4", "ntk-by-parts:4", "yarn+base:4"), recipe=Recipe())
    none, both, one, warm = lines_of(c, s)
    assert [line.label for line in (both, warm)] == ["ntk-by-parts+base:4", "yarn+base:4"]
    assert same_at_all_lengths(both.rope, extend(c, NTK).rope) and not both.static
    scorer, ids = Torch(c, "cpu"), np.random.default_rng(0).integers(0, 263, 2 * L)
    losses = {line.label: [scorer.losses(line.rope, ids[:n], 1) for n in (L, 2 * L)] for line in (none, both, one)}
    assert np.array_equal(losses[both.label][0], losses["none"][0]) and np.array_equal(losses[both.label][1], losses[one.label][1])
    assert not np.allclose(losses["none"][0], losses[one.label][0])
    for wish in ("yarn+bse:4", "none+base", "dynamic-yarn+base"):
        with pytest.raises(UsageError):
            lines_of(c, EvaluateOptions(methods=(wish,), recipe=Recipe(scale=4)))


def test_the_recipe_of_a_name_says_so(make_model: MakeModel) -> None:
    from yarn_convert.conversion import prepare

    plan = prepare(str(make_model(config=BASE)), ConvertOptions(NTK)).plan
    assert plan.out.name == "tiny-ntk-by-parts-base-1k"
