"""What runtimes are told of a model that stays as it is: each command computes what its verdict says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from family_models import described, make, names

from yarn_convert import overrides, runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli.show import overrides_lines
from yarn_convert.conversion import convert
from yarn_convert.conversion.overriding import opened
from yarn_convert.conversion.ways import Override, overrides_of
from yarn_convert.errors import UsageError, YarnConvertError
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.readers import HF_READERS
from yarn_convert.readers.told import TOLD
from yarn_convert.rope import Table, effect, table
from yarn_convert.validation import check

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
LONG = 4 * CONTEXT
BETAS = {"beta_fast": 1.0, "beta_slow": 0.1}  # both move the ramps of these models
IDS = np.random.default_rng(5).integers(3, 263, LONG)


def of(model: Path, runtime: str, **recipe: Any) -> Override:
    c, e = opened(str(model), Recipe(**{"scale": 4.0, **recipe}))
    (found,) = overrides_of(c, e, (runtime,))
    return found


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum())


# -- llama.cpp --------------------------------------------------------------------------------------------------------

RECIPES: Mapping[str, dict[str, Any]] = {
    "yarn": {},
    "an odd scale": {"scale": 3.7},
    "other betas": BETAS,
    "another temperature": {"attention_factor": 1.3},
    "by parts": {"method": "ntk-by-parts"},
    "linear": {"method": "linear"},
    "ntk-aware": {"method": "ntk-aware"},
    "dynamic, baked": {"method": "dynamic-yarn", "scale": None, "context": 192},
}


@pytest.fixture
def gguf(make_model: MakeModel, tmp_path: Path) -> Path:
    """A plain tiny Llama; its name needs quotes."""
    out = tmp_path / "it's plain.gguf"
    convert(str(make_model()), Recipe(method="none"), out="gguf", output=out)
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_a_line_for_llama_cpp_computes_the_recipe_past_the_window(name: str, gguf: Path) -> None:
    """The line as it is printed, split as a shell does, in llama.cpp; against the reference."""
    pytest.importorskip("llama_cpp")
    from yarn_convert.compute.reference import Reference

    found = overrides(str(gguf), Recipe(**{"scale": 4.0, **RECIPES[name]}), runtimes=("llama.cpp",))
    (told,) = found.runtimes
    assert told.exact and told.command
    program, m, path, c, tokens, *words = shlex.split(told.command)
    assert (program, m, path, c, int(tokens)) == ("llama-server", "-m", str(gguf), "-c", found.context)
    checkpoint, ids = open_checkpoint(resolve(str(gguf))), IDS[: found.context]
    span = [(0, len(ids))]
    wanted = Reference(checkpoint).logits(effect(found.recipe.rope(), len(ids)), ids, span)
    logits = runtimes.run("llama.cpp", gguf, ids, span, {"arguments": words}).logits
    assert nmse(logits, wanted) < 1e-8
    if name == "other betas":
        lost = [w for i, w in enumerate(words) if not any("beta" in x for x in (w, words[i - 1]))]
        assert len(lost) == len(words) - 4
        assert nmse(runtimes.run("llama.cpp", gguf, ids, span, {"arguments": lost}).logits, wanted) > 1e-6


def test_layers_with_a_window_that_share_the_scaling_are_told_by_keys(tmp_path: Path) -> None:
    """No flag reaches them: by flags alone they keep the file's factor."""
    pytest.importorskip("llama_cpp")
    from yarn_convert.compute.reference import Reference

    gguf = tmp_path / "gemma2.gguf"
    convert(str(make("gemma2", tmp_path / "m")), Recipe(method="none"), out="gguf", output=gguf)
    found, (c, e) = of(gguf, "llama.cpp", **BETAS), opened(str(gguf), Recipe(scale=4.0, **BETAS))
    assert found.verdict.exact
    words = found.arguments()
    assert "gemma2.rope.scaling.type=str:yarn" in words and "--rope-scaling" not in words
    wanted = Reference(c).logits(effect(e.rope, LONG), IDS, [(0, LONG)])
    assert nmse(runtimes.run("llama.cpp", gguf, IDS, [(0, LONG)], {"arguments": words}).logits, wanted) < 2e-6  # with GELU
    flags = ["--rope-scaling", "yarn", "--rope-scale", "4", "--yarn-orig-ctx", "64", *words[:4]]
    assert words[:4:2] == ["--yarn-beta-fast", "--yarn-beta-slow"]
    assert nmse(runtimes.run("llama.cpp", gguf, IDS, [(0, LONG)], {"arguments": flags}).logits, wanted) > 1e-4


def test_what_llama_cpp_cannot_be_told_is_said(gguf: Path, make_model: MakeModel) -> None:
    """No flag leaves the ramp's ends unrounded, and factors of a file go before its ramp."""
    assert "frequencies off by" in of(gguf, "llama.cpp", truncate=False).verdict.why
    llama3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = make_model("llama3", config={"rope_scaling": {**llama3, "original_max_position_embeddings": 32}})
    assert "frequencies off by" in of(scaled, "llama.cpp").verdict.why
    assert of(scaled, "llama.cpp", method="linear").verdict.exact


def test_a_server_is_let_know_the_context_that_no_flag_raises(gguf: Path) -> None:
    """llama-server caps -c at n_ctx_train, which YaRN alone raises."""
    assert "context_length" not in of(gguf, "llama.cpp").command("m")
    linear = of(gguf, "llama.cpp", method="linear").command("m")
    assert linear == f"llama-server -m m -c {LONG} --rope-scaling linear --rope-scale 4 --override-kv llama.context_length=int:{LONG}"


# -- transformers, and what loads config.json through it --------------------------------------------------------------


def computed(config: Any, layer: str | None) -> Table:
    """What transformers makes of its config object."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    dicts = config.rope_parameters[layer] if layer else config.rope_parameters
    inv_freq, m = ROPE_INIT_FUNCTIONS[dicts["rope_type"]](config, "cpu", **({"layer_type": layer} if layer else {}))
    return Table(inv_freq.numpy().astype(np.float64), float(m))


def vllms(config: Any, told: Mapping[str, Any]) -> Any:
    """ModelConfig.__post_init__: plain values first; then objects, of which those that are configs are merged."""

    def merge(target: Any, values: Mapping[str, Any]) -> None:
        for k, v in values.items():
            there = target.get(k) if isinstance(target, dict) else getattr(target, k, None)
            if isinstance(v, dict) and there is not None:
                merge(there, v)
            elif isinstance(target, dict):
                target[k] = v
            else:
                setattr(target, k, v)

    for k, v in told.items():
        if isinstance(v, dict) and isinstance(getattr(config, k, None), transformers.PreTrainedConfig):
            merge(getattr(config, k), v)
        else:
            setattr(config, k, v)
    return config


def sglangs(config: Any, told: Mapping[str, Any]) -> Any:
    """get_config: a config's own update for what is nested, a RoPE object merged at the top."""
    for k, v in told.items():
        there = getattr(config, k, None)
        if isinstance(v, dict) and isinstance(there, transformers.PreTrainedConfig):
            there.update(v)
        else:
            setattr(config, k, {**there, **v} if k == "rope_parameters" and isinstance(there, dict) else v)
    return config


LOADS = {
    "transformers-5": lambda folder, told: transformers.AutoConfig.from_pretrained(folder, **told),
    "vllm": lambda folder, told: vllms(transformers.AutoConfig.from_pretrained(folder), told),
    "sglang": lambda folder, told: sglangs(transformers.AutoConfig.from_pretrained(folder), told),
}
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 263, "max_position_embeddings": CONTEXT,
}  # fmt: skip
SEES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
MISTRAL3 = {
    "model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"], "vision_config": {"model_type": "pixtral", **SEES},
    "text_config": {"model_type": "mistral", "rope_theta": 1e6, **TEXT},
}  # fmt: skip
QWEN_YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}


def written(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


KNOWN = [
    n
    for n in names()
    if "/" not in n and "auto_map" not in described(n) and described(n)["model_type"] in HF_READERS["transformers-5"].models
]


@pytest.mark.parametrize("name", KNOWN)
def test_transformers_told_computes_the_recipe_for_every_family(name: str, tmp_path: Path) -> None:
    """By its own functions: a part of each head that turns, or a length under another name, is told with the rest."""
    folder = written(tmp_path / "m", described(name))
    try:
        found = of(folder, "transformers-5", **BETAS)
    except YarnConvertError as e:
        assert "nothing to extend" in e.message
        return
    assert found.verdict.exact, found.verdict.why
    c, e = opened(str(folder), Recipe(scale=4.0, **BETAS))
    config = LOADS["transformers-5"](folder, found.told)
    made, wanted = computed(config, c.family.layer_type or None), table(e.rope, e.context)
    assert made.inv_freq.shape == wanted.inv_freq.shape
    assert np.allclose(made.inv_freq, wanted.inv_freq, rtol=2e-6, atol=1e-30)
    assert np.isclose(made.multiplier, wanted.multiplier, rtol=1e-6)
    assert config.max_position_embeddings == e.context


@pytest.mark.parametrize("reader", LOADS)
@pytest.mark.parametrize("kind", ["plain", "nested", "yarn before", "llama3 before", "a part of each head"])
def test_what_is_told_arrives_as_each_runtime_merges_it(kind: str, reader: str, tmp_path: Path) -> None:
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 1e4, **TEXT}
    llama3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config: dict[str, Any] = {
        "plain": llama,
        "nested": MISTRAL3,
        "yarn before": {**llama, "rope_scaling": QWEN_YARN},
        "llama3 before": {**llama, "rope_scaling": llama3},
        "a part of each head": {**described("gpt_neox"), "rotary_pct": 0.5},
    }[kind]
    folder = written(tmp_path / "m", config)
    found, (c, e) = of(folder, reader, **BETAS), opened(str(folder), Recipe(scale=4.0, **BETAS))
    if found.verdict.kind == "unknown":
        assert c.family.model_type not in HF_READERS[reader].models
        return
    assert found.verdict.exact, found.verdict.why
    assert set(found.told) == {"text_config"} if kind == "nested" else "rope_parameters" in found.told
    loaded = LOADS[reader](folder, json.loads(json.dumps(found.told))).get_text_config()
    wanted = table(e.rope, e.context)
    assert np.allclose(computed(loaded, None).inv_freq, wanted.inv_freq, rtol=2e-6, atol=1e-30)
    assert np.isclose(computed(loaded, None).multiplier, wanted.multiplier, rtol=1e-6)
    assert loaded.max_position_embeddings == e.context


def test_what_stays_of_the_files_own_object_is_read_with_what_is_told(tmp_path: Path) -> None:
    """SGLang merges the two, so that a temperature of the file stays: it is told a list, to which that says nothing."""
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 1e4, **TEXT}
    before = {**QWEN_YARN, "rope_type": "yarn", "mscale": 0.5, "mscale_all_dim": 1.0}
    folder = written(tmp_path / "m", {**llama, "rope_scaling": before})
    sglang, vllm = of(folder, "sglang"), of(folder, "vllm")
    assert sglang.verdict.exact and vllm.verdict.exact
    assert (sglang.told["rope_parameters"]["rope_type"], vllm.told["rope_parameters"]["rope_type"]) == ("longrope", "yarn")
    assert LOADS["sglang"](folder, vllm.told).rope_parameters["mscale"] == 0.5
    assert "mscale" not in LOADS["vllm"](folder, vllm.told).rope_parameters


def test_a_part_of_a_head_that_is_not_told_is_lost(tmp_path: Path) -> None:
    """Why it is told: the reading of what is not there is another, as it is in transformers."""
    folder = written(tmp_path / "m", {**described("gpt_neox"), "rotary_pct": 0.5})
    found, (c, e) = of(folder, "transformers-5"), opened(str(folder), Recipe(scale=4.0))
    rope = {k: v for k, v in found.told["rope_parameters"].items() if k != "partial_rotary_factor"}
    assert rope != found.told["rope_parameters"]
    told = {**found.told, "rope_parameters": rope}
    wrong = TOLD["transformers-5"].read(c.written, told, e.context).inv_freq
    assert len(wrong) == len(computed(LOADS["transformers-5"](folder, told), None).inv_freq) == 2 * len(table(e.rope).inv_freq)


# -- what is printed --------------------------------------------------------------------------------------------------


def test_two_tables_are_for_a_file(make_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="is for a file"):
        overrides(str(make_model()), Recipe(scale=4, short="base"))


def test_commands_are_quoted_and_each_has_a_line_of_its_own(make_model: MakeModel) -> None:
    model = str(make_model("it's tiny"))
    found = overrides(model, Recipe(scale=4.0, beta_fast=24.0))
    by_name = {r.runtime: r for r in found.runtimes}
    assert by_name.keys() == TOLD.keys()
    for name, option in (("vllm", "--hf-overrides"), ("sglang", "--json-model-override-args")):
        words = shlex.split(by_name[name].command or "")
        assert model in words and str(found.context) in words
        assert json.loads(words[words.index(option) + 1]) == by_name[name].told
    assert by_name["Ollama"].command is None
    assert shlex.split(by_name["Ollama"].instead) == ["yarn-convert", model, "--scale", "4", "--beta-fast", "24", "--out", "gguf"]
    assert {r.command or r.instead for r in found.runtimes} <= {*overrides_lines(found)}
    assert json.loads(json.dumps(found.to_dict()))["runtimes"][0]["command"].startswith("llama-server -m ")


def test_a_runtime_that_is_none_or_reads_another_format_is_refused(gguf: Path) -> None:
    with pytest.raises(UsageError, match="unknown --runtime 'vlm'"):
        overrides(str(gguf), Recipe(scale=4.0), runtimes=("vlm",))
    with pytest.raises(UsageError, match="vllm reads safetensors"):
        overrides(str(gguf), Recipe(scale=4.0), runtimes=("vllm",))
    with pytest.raises(UsageError, match="nothing to tell"):
        overrides(str(gguf), Recipe(method="none"))


# -- validate --overrides ---------------------------------------------------------------------------------------------


def checked(model: Path, **more: Any) -> dict[str, Any]:
    recipe = Recipe(**{"scale": 4.0, **more})
    return check(str(model), ValidateOptions(overrides=True, recipe=recipe, tokens=LONG, twin_tokens=LONG))


def test_validate_runs_what_is_told(make_model: MakeModel, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the window, in both runtimes, beside wrong recipes; and a runtime that is told nothing fails."""
    pytest.importorskip("llama_cpp")
    for model, runtime in ((gguf, "llama.cpp"), (make_model("folder"), "transformers")):
        result = checked(model)
        assert result["verdict"] == "passed", result["reasons"]
        assert {r["runtime"] for s in result["studies"] for r in s["runtimes"]} == {runtime}
        assert max(w["end"] for s in result["studies"] for r in s["runtimes"] for w in r["windows"]) == LONG
        assert all(w["told_apart"] for s in result["studies"][:1] for w in s["wrong_recipes"])
    lost = checked(gguf, truncate=False)
    assert lost["verdict"] == "failed" and "frequencies off" in lost["reasons"][0]
    monkeypatch.setattr(Override, "options", property(lambda self: {}))
    assert checked(gguf)["verdict"] == "failed"


def test_validate_says_what_overrides_need(gguf: Path) -> None:
    with pytest.raises(UsageError, match="the recipe of the options"):
        check(str(gguf), ValidateOptions(overrides=True))
    with pytest.raises(UsageError, match="the recipe of the options"):
        check(str(gguf), ValidateOptions(overrides=True, recipe=Recipe(scale=4.0), like=str(gguf)))
