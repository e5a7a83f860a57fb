"""Every row of the table of families, on tiny models: against llama.cpp's converter, there and back, and in both runtimes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import gguf
import numpy as np
import pytest
from conftest import CONTEXT, split_options, write_tensors_of
from safetensors.numpy import load_file, save_file

from yarn_convert import families, runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.manifest import read_manifest
from yarn_convert.checkpoint.source import Source
from yarn_convert.compute.reference import Reference
from yarn_convert.compute.values import changed_since
from yarn_convert.conversion import convert, prepare
from yarn_convert.errors import Inexpressible, Unsupported, YarnConvertError
from yarn_convert.families.schema import numbered
from yarn_convert.formats.changes import multiplied
from yarn_convert.formats.layout import rounded_by_gguf
from yarn_convert.options import ConvertOptions, Recipe, ValidateOptions
from yarn_convert.rope import effect, table
from yarn_convert.validation.run import check

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")
from family_models import TINY, make, names  # noqa: E402

ROWS = {f.model_type for f in families.FAMILIES}
REFUSED = {  # variants that llama.cpp's graph would not compute, and the word that says so
    "qwen2_moe/normed": "norm_topk_prob",
    "qwen3_moe/dense first": "not part of the family",
    "phi3/window": "sliding window",
    "gemma3_text/linear": "yarn over linear",
    "deepseek_v2/grouped": "n_group",
    "cohere2": "nothing to extend",
    "cohere2/six": "nothing to extend",
    "seed_oss/out biased": "attention_out_bias",
    "exaone4/32b": "nothing to extend",
    "ernie4_5/biased": "use_bias",
    "olmoe/clipped": "clip_qkv",
    "olmoe/grouped": "a key for each query",
    "dots1/window": "layer_types",
    "exaone_moe": "nothing to extend",
    "llama4_text/unnormed": "norms of Q and K",
    "llama4_text/chunks": "nothing to extend",
    "afmoe": "nothing to extend",
    "qwen3_5_text/narrow": "heads of keys and of values",
    "lfm2_moe/unbiased": "use_expert_bias",
    "falcon_h1/gated after": "norms where",
    "falcon_h1/tied": "tied head",
    "minicpm/sparse": "sparse_config",
    "minicpm3/scaled": "scale_emb = 10",
    "granitemoehybrid/released": "nothing to extend",
    "hunyuan_v1_moe/uneven": "differ in number or size",
}
ALL = [n for n in names() if TINY[n.partition("/")[0]].model_type in ROWS]
ONLY_CONVERTED = {
    "cohere2",
    "cohere2/six",
    "gemma3_text/linear",
    "exaone_moe",
    "afmoe",
    "exaone4/32b",
    "granitemoehybrid/released",
}  # the refusal is of the extension
NOT_AS_IT_IS = {"gpt_oss", "kimi_k2/released"}  # the refusal is of the base's own RoPE: tests/test_gpt_oss.py, test_mla.py
CARRIED = [n for n in ALL if n not in {*REFUSED, *NOT_AS_IT_IS} or n in ONLY_CONVERTED]
BASES = [n for n in CARRIED if "/" not in n and n not in REFUSED] + ["gpt_oss/plain", "granitemoehybrid/turning"]
HF_LESS = {
    "internlm2",
    "kimi_k2",
    "kimi_k2/released",
    "minicpm",
    "minicpm/longrope",
    "minicpm/sparse",
}  # remote code only: transformers could not follow a scaling in config.json


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each tiny model's folder, by its name."""
    root = tmp_path_factory.mktemp("families")
    # llama.cpp takes a general.name with "phi3" in it for Phi-3's vocabulary.
    return {name: make(name, root / name.replace("/", "-").replace(" ", "_").replace("phi3", "ph3")) for name in ALL}


# -- against llama.cpp's converter ------------------------------------------------------------------------------------

ORACLE = """
import json, os, runpy, sys
from pathlib import Path
tree, *folders = sys.argv[1:]
sys.path[:0] = [tree, tree + "/gguf-py"]
import conversion.chatglm, conversion.ernie, conversion.gemma, conversion.glm, conversion.hunyuan, conversion.internlm, conversion.minicpm, conversion.nemotron, conversion.phi, conversion.qwen, conversion.stablelm
from conversion import base
import transformers
transformers.AutoConfig.register("minicpm", type("MiniCPMConfig", (transformers.GraniteConfig,), {"model_type": "minicpm"}))  # to read its tokenizer
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"  # it knows pre-tokenizers by a hash of the real vocabulary
byte_level = base.TextModel._set_vocab_gpt2
for model in (conversion.gemma.Gemma2Model, conversion.gemma.Gemma3Model, conversion.phi.Phi3MiniModel, conversion.internlm.InternLM2Model,
              conversion.glm.Glm4Model, conversion.chatglm.ChatGLMModel, conversion.ernie.Ernie4_5Model, conversion.glm.Glm4MoeModel,
              conversion.glm.SolarOpenModel, conversion.gemma.GemmaModel, conversion.nemotron.NemotronModel,
              conversion.internlm.InternLM3Model, conversion.minicpm.MiniCPMModel, conversion.minicpm.MiniCPM3Model,
              conversion.glm.Glm4MoeLiteModel, conversion.hunyuan.HunYuanMoEModel, conversion.gemma.Gemma4Model, conversion.gemma.Gemma3NModel):
    model.set_vocab = lambda self: byte_level(self)  # the toy tokenizer is none of SentencePiece
# Three faults of the converter: a generator that is never consumed, keys that transformers 5 renames under it, a word that it does not know.
stablelm = conversion.stablelm.StableLMModel
modify = stablelm.modify_tensors
def consumed(self, data, name, layer):
    rest = yield from modify(self, data, name, layer)
    yield from rest or ()
stablelm.modify_tensors = consumed
load = base.ModelBase.load_hparams
def raw(folder, is_mistral_format=False):
    config = json.loads((Path(folder) / "config.json").read_text())
    if config["model_type"] in ("gpt_neox", "falcon", "minicpm"):
        return config
    loaded = load(folder, is_mistral_format)
    return loaded | {"scoring_func": "sigmoid"} if loaded.get("scoring_func") == "noaux_tc" else loaded  # dots1's word for it
base.ModelBase.load_hparams = staticmethod(raw)
for folder in folders:
    child = os.fork()
    if child == 0:
        sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", folder + ".gguf", "--outtype", "f32"]
        if base.ModelBase.load_hparams(Path(folder), False)["model_type"].startswith(("qwen3_5", "qwen3_next")):
            sys.argv.append("--no-mtp")
        try:
            runpy.run_path(tree + "/convert_hf_to_gguf.py", run_name="__main__")
        except SystemExit as e:
            os._exit(e.code or 0)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="session")
def oracles(converter: Path, models: dict[str, Path]) -> dict[str, Path]:
    """llama.cpp's GGUF of each model. All come from one process, which forks: its imports cost ten times a conversion."""
    return dict(zip(CARRIED, of_converter(converter, [models[n] for n in CARRIED]), strict=True))


def of_converter(converter: Path, folders: list[Path]) -> list[Path]:
    """What llama.cpp's converter makes of each folder, beside it."""
    forks.run([sys.executable, "-c", ORACLE, str(converter.parent), *map(str, folders)])
    return [folder.with_name(folder.name + ".gguf") for folder in folders]


Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def tensors_of(path: Path) -> Tensors:
    return {t.name: (t.tensor_type.name, tuple(map(int, t.shape)), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def fields_of(path: Path) -> dict[str, Any]:
    """The model's and the tokenizer's keys, without the architecture's name."""
    fields = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith(("GGUF.", "general.", "yarn_convert."))}
    arch = gguf.GGUFReader(path).fields["general.architecture"].contents()
    return {k.removeprefix(f"{arch}."): v for k, v in fields.items()}


ONLY_OURS = {  # what the converter leaves to the loader's defaults, which are these values
    "vocab_size", "rope.dimension_count", "expert_weights_norm", "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.scaling.type",
    "attention.recurrent_layers",
}  # fmt: skip
DIFFERS = {  # docs/families.md says why
    "falcon": {"context_length", "rope.freq_base"},
    "stablelm": {"rope.freq_base"},
    "gpt_neox": {"rope.freq_base"},
    "gemma2": {"rope.freq_base"},
    "glm4": {"tokenizer.ggml.unknown_token_id"},  # of the toy tokenizer, which the oracle is made to take for another kind
    "glm4_moe": {"tokenizer.ggml.unknown_token_id"},
    "glm4_moe_lite": {"expert_gating_func", "tokenizer.ggml.unknown_token_id"},
    "glm4_moe_lite/yarn": {
        "expert_gating_func",
        "tokenizer.ggml.unknown_token_id",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    },
    "exaone_moe": {"attention.sliding_window_pattern"},
    "solar_open": {"tokenizer.ggml.eot_token_id"},
    "phi3": {"rope.scaling.original_context_length", "attention.sliding_window"},
    "glm": {"attention.layer_norm_rms_epsilon", "tokenizer.ggml.unknown_token_id"},
    "gemma": {"rope.freq_base"},
    "phi": {"rope.freq_base"},
    "nemotron": {"attention.layer_norm_rms_epsilon"},
    "olmo3": {"attention.sliding_window_pattern", "rope.freq_base_swa"},
    "hunyuan_v1_dense/alpha": {"rope.scaling.factor", "rope.scaling.original_context_length"},
    "hunyuan_v1_moe/alpha": {"rope.scaling.factor", "rope.scaling.original_context_length"},
    "exaone4/32b": {"attention.sliding_window_pattern"},
    "deepseek_v2/yarn": {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"},
    "granitemoehybrid/released": {"context_length"},
    "granitemoehybrid/turning": {"context_length", "rope.scaling.finetuned"},
    "apertus": {"rope.scaling.original_context_length"},
    "deepseek_v3/yarn": {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"},
    "minicpm/longrope": {"rope.scaling.attn_factor", "rope.scaling.original_context_length"},
    "minicpm3": {"rope.freq_base"},
    "minicpm3/longrope": {"rope.freq_base", "rope.scaling.attn_factor", "rope.scaling.original_context_length"},
}


def assert_tensors_equal(ours: Tensors, theirs: Tensors, name: str) -> None:
    """Byte for byte; but for numbers that are an exponential or a table's, the nearest here and a unit beside it, at times, in torch."""
    family = families.for_config({"model_type": TINY[name.partition("/")[0]].model_type})
    for key in [key for key in ours if "decay" in family.transform(key) or key == "rope_freqs.weight"]:
        (kind, shape, mine), (*beside, other) = ours.pop(key), theirs.pop(key)
        assert [kind, shape] == beside
        np.testing.assert_array_max_ulp(*(np.frombuffer(x, np.float32) for x in (mine, other)), maxulp=1)
    assert ours == theirs


@pytest.mark.parametrize("name", CARRIED)
def test_tensors_and_keys_equal_llama_cpps_converters(oracles: dict[str, Path], models: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = tmp_path / "ours.gguf"
    convert(str(models[name]), Recipe(method="none"), out="gguf", output=out)
    assert_tensors_equal(tensors_of(out), tensors_of(oracles[name]), name)
    ours, theirs = fields_of(out), fields_of(oracles[name])
    differing = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    explained = DIFFERS.get(name) or DIFFERS.get(name.partition("/")[0], set())
    assert differing <= explained | {k for k in ONLY_OURS if k not in theirs}


def test_each_explained_difference_is_there(oracles: dict[str, Path], models: dict[str, Path], tmp_path: Path) -> None:
    """A difference that llama.cpp has mended is to be taken out of the list."""
    for family, keys in DIFFERS.items():
        out = tmp_path / f"{family}.gguf"
        convert(str(models[family]), Recipe(method="none"), out="gguf", output=out)
        ours, theirs = fields_of(out), fields_of(oracles[family])
        assert {k for k in keys if ours.get(k) != theirs.get(k)} == keys, family


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in CARRIED if n not in HF_LESS])
def test_hf_to_gguf_to_hf_keeps_every_weight_and_what_it_computes(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Bit for bit, but for numbers that a GGUF holds changed, as norms with one added: those are as close as float32 can tell."""
    convert(str(models[name]), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    convert(str(tmp_path / "a.gguf"), Recipe(method="none"), out="safetensors", output=tmp_path / "hf")
    c = open_checkpoint(Source(models[name], name))
    there, back = load_file(models[name] / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    tied = {k for k in back if k == "lm_head.weight"} - set(there)
    assert there.keys() == back.keys() - tied
    for key, w in there.items():
        times = c.family.times(c.config)  # which a GGUF has in its weights
        if steps := next((times[t] for name, *_ in c.family.to_gguf(key) if (t := numbered(name).template) in times), ()):
            w = multiplied(w.reshape(len(w), -1), steps, 0)
        if rounded_by_gguf(c.family, key, c.sizes):
            np.testing.assert_allclose(back[key], w, atol=1.2e-7, rtol=0)
        else:
            np.testing.assert_array_equal(back[key], w)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 263, (1, CONTEXT - 8)))
    with torch.no_grad():
        logits = [transformers.AutoModelForCausalLM.from_pretrained(p).eval()(ids).logits.numpy() for p in (models[name], tmp_path / "hf")]
    np.testing.assert_allclose(*logits, atol=2e-4)
    convert(str(tmp_path / "hf"), Recipe(method="none"), out="gguf", output=tmp_path / "b.gguf")
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    assert fields_of(tmp_path / "a.gguf") == fields_of(tmp_path / "b.gguf")


WAYS = {  # the options of folder -> GGUF, and of GGUF -> folder
    "extended at last": ({"method": "none"}, {"scale": 4}),
    "extended first": ({"scale": 4}, {"method": "none"}),
}


def by_way_of_a_gguf(model: Path, folder: Path, name: str, way: str = "extended at last") -> Path:
    first, second = WAYS[way] if name not in ONLY_CONVERTED else ({"method": "none"},) * 2
    convert(str(model), **split_options(**first, out="gguf", output=folder / "a.gguf"))
    convert(str(folder / "a.gguf"), **split_options(**second, out="safetensors", output=folder / "out"))
    return folder / "out"


def found_of(out: Path, base: Path) -> dict[str, str]:
    """What `validate --base` finds wrong, by what it looked at; logits apart."""
    result = check(str(out), ValidateOptions(base=str(base), real=False, twin=False))
    assert not result["recipe"]["doubt"]
    return {k: result[k]["why"] for k in ("recipe", "weights", "tokenizer") if result[k]["verdict"] != "passed"}


@pytest.mark.parametrize("name", [n for n in CARRIED if n not in HF_LESS])
def test_a_folder_by_way_of_a_gguf_is_an_extension_of_the_first(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    for way in WAYS if name not in {*ONLY_CONVERTED, "phi3/longrope"} else ("extended at last",):
        (folder := tmp_path / way).mkdir()
        assert found_of(by_way_of_a_gguf(models[name], folder, name, way), models[name]) == {}, way


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_norm(out: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"] = change(tensors["model.norm.weight"]).astype(np.float32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


PLANTED: list[tuple[str, Callable[[Path], object], str]] = [
    ("olmo2", lambda out: edit_json(out / "tokenizer_config.json", pad_token="he"), "its pad token is 'he', the base's None"),
    ("glm4", lambda out: edit_json(out / "tokenizer_config.json", unk_token="<|im_end|>"), "its unk token is '<|im_end|>', the base's None"),
    ("cohere", lambda out: edit_json(out / "config.json", pad_token_id=7), "config.json: its pad_token_id is 7, the base's 0"),
    ("starcoder2", lambda out: edit_json(out / "config.json", sliding_window=16), "sliding_window is 16, the base's 4096"),
    ("starcoder2", lambda out: edit_json(out / "config.json", sliding_window=512), "sliding_window is 512, the base's 4096"),
    ("gemma2", lambda out: edit_norm(out, lambda w: np.nextafter(w, np.float32(9))), "model.norm.weight: its bytes differ"),
    ("gemma3_text", lambda out: edit_norm(out, lambda w: w + np.float32(1)), "model.norm.weight: its bytes differ"),
    ("qwen3", lambda out: edit_norm(out, lambda w: (w + np.float32(1)) - np.float32(1)), "model.norm.weight: its bytes differ"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "why"), PLANTED, ids=[f"{n} {why[:24]}" for n, _, why in PLANTED])
def test_what_a_gguf_does_not_do_to_a_folder_still_fails(
    models: dict[str, Path], tmp_path: Path, name: str, change: Callable[[Path], object], why: str
) -> None:
    out = by_way_of_a_gguf(models[name], tmp_path, name)
    change(out)
    assert why in "".join(found_of(out, models[name]).values())


@pytest.mark.parametrize("name", ["phi3", "starcoder2", "phi3/longrope"])
def test_a_window_that_no_text_reaches_yet_goes_along_with_a_gguf(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """No key says it, and llama.cpp computes the same: but not at a longer context than the window."""
    window = json.loads((models[name] / "config.json").read_text())["sliding_window"]
    path, further = tmp_path / "a.gguf", {"scale": 1024.0, "original_context": CONTEXT, "method": "linear"}
    convert(str(models[name]), Recipe(method="none"), out="gguf", output=path)
    with pytest.raises(Inexpressible, match=f"no sliding window, and this model's is {window:,} tokens"):
        convert(str(path), **split_options(**further, output=tmp_path / "b.gguf"))
    kept = convert(str(path), **split_options(**further, out="safetensors", output=tmp_path / "kept")).to_dict()
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["sliding_window"] == window
    assert any(f"keeps its sliding window of {window:,} tokens" in note for note in kept["notes"])
    off = convert(str(path), **split_options(**further, sliding_window="off", output=tmp_path / "b.gguf")).to_dict()
    assert off["asked"]["sliding_window"] == "off" and any("is turned off" in note for note in off["notes"])
    assert found_of(tmp_path / "b.gguf", models[name]) == {}
    (tmp_path / "b.yarn_convert.json").unlink()
    assert "weights" not in found_of(tmp_path / "b.gguf", models[name]), "its recipe says so too"


@pytest.mark.parametrize("name", [n for n in ALL if n not in HF_LESS | {"phi3/longrope", "minicpm3/longrope", "qwen3_moe/dense first"}])
def test_the_reference_computes_what_transformers_does(models: dict[str, Path], name: str) -> None:
    """With the base's own table, over its own context."""
    c = open_checkpoint(Source(models[name], name))
    ids = np.random.default_rng(0).integers(3, 263, CONTEXT - 8)
    ours = Reference(c).logits(effect(c.rope), ids, [(0, len(ids))])
    model = transformers.AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert ((ours - theirs) ** 2).sum() / ((theirs - theirs.mean()) ** 2).sum() < 2e-7  # of 27 layers in float32


# -- in both runtimes -------------------------------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers runs in this process, as its worker would: its import costs ten times a tiny model."""
    run = runtimes.run

    def here(runtime: str, model: Path, ids: np.ndarray, spans: Any, options: Any = None, progress: Any = None) -> runtimes.Run:
        if runtime != "transformers":
            return run(runtime, model, ids, spans, options)
        net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        with torch.no_grad():
            net(torch.from_numpy(ids[:16])[None])
            logits = net(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
        return runtimes.Run(np.concatenate([logits[a:b] for a, b in spans]), {"seconds": 1.0, "version": transformers.__version__})

    monkeypatch.setattr(runtimes, "run", here)


def judged(base: Path, out: Path, runtime: str) -> dict[str, Any]:
    return check(str(out), ValidateOptions(base=str(base), runtimes=(runtime,)))


@pytest.mark.parametrize("name", BASES)
def test_yarn_past_the_window_is_what_llama_cpp_computes(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Four windows long, real weights and twin, and no wrong recipe passes too: else the verdict is "inconclusive"."""
    convert(str(models[name]), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf")
    result = judged(models[name], tmp_path / "out.gguf", "llama.cpp")
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]
    assert max(w["end"] for s in result["studies"] for r in s["runtimes"] for w in r["windows"]) == 4 * CONTEXT
    assert {s["kind"] for s in result["studies"]} == {"real", "twin"}


@pytest.mark.parametrize("name", [n for n in BASES if n not in HF_LESS])
def test_yarn_past_the_window_is_what_transformers_computes(models: dict[str, Path], tmp_path: Path, name: str, in_process: None) -> None:
    convert(str(models[name]), Recipe(scale=4), out="safetensors", output=tmp_path / "out")
    result = judged(models[name], tmp_path / "out", "transformers")
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]
    assert max(w["end"] for s in result["studies"] for r in s["runtimes"] for w in r["windows"]) == 4 * CONTEXT


@pytest.mark.parametrize(("name", "kin"), [("internlm2", "llama"), ("kimi_k2", "deepseek_v3"), ("minicpm", "granite")])
def test_a_gguf_of_remote_code_becomes_a_folder_of_what_computes_the_same(
    models: dict[str, Path], tmp_path: Path, name: str, kin: str, in_process: None
) -> None:
    convert(str(models[name]), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    done = convert(str(tmp_path / "a.gguf"), Recipe(scale=4), out="safetensors", output=tmp_path / "out").manifest
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kin
    assert name == "kimi_k2" or f"it is written as {kin}, which computes what {name} does" in done.notes
    result = judged(tmp_path / "a.gguf", tmp_path / "out", "transformers")
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]


@pytest.mark.parametrize("name", ["minicpm/longrope", "minicpm3/longrope"])
def test_two_lists_are_carried_as_llama_cpp_looks_for_them(
    oracles: dict[str, Path], models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """With type longrope, or whatever the type; the long one is computed past the window."""
    assert open_checkpoint(Source(oracles[name], name)).rope.method == "longrope"
    convert(str(models[name]), Recipe(method="none"), out="gguf", output=tmp_path / "out.gguf")
    assert fields_of(tmp_path / "out.gguf")["rope.scaling.type"] == ("longrope" if name.startswith("minicpm/") else "none")
    result = judged(models[name], tmp_path / "out.gguf", "llama.cpp")
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]


@pytest.mark.parametrize("out", ["gguf", "safetensors"])
@pytest.mark.parametrize("name", CARRIED)
def test_what_the_manifest_says_beside_the_recipe_is_what_the_output_says(
    models: dict[str, Path], tmp_path: Path, name: str, out: str
) -> None:
    """Under the keys of either format and with either's defaults; another value in the manifest is noticed."""
    path = tmp_path / ("out.gguf" if out == "gguf" else "out")
    try:
        convert(str(models[name]), Recipe(method="none"), out=out, output=path)
    except YarnConvertError:
        pytest.skip("refused, for one format")
    c = open_checkpoint(Source(path, "out"))
    manifest = read_manifest(path)
    assert manifest and manifest.hparams
    assert changed_since(c, manifest) == ""
    manifest.hparams["hidden_size"] += 1
    assert "hidden_size" in changed_since(c, manifest)


# -- refusals, and the ways out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "word"), REFUSED.items())
def test_what_llama_cpp_would_not_compute_is_refused_by_name(models: dict[str, Path], tmp_path: Path, name: str, word: str) -> None:
    with pytest.raises((Inexpressible, Unsupported), match=word):
        convert(str(models[name]), Recipe(scale=4, original_context=CONTEXT), out="gguf", output=tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_qwen2_gains_any_table_as_the_architecture_llama(models: dict[str, Path], tmp_path: Path) -> None:
    """qwen2's loader takes neither betas nor factors; llama's takes factors, and its graph is the same."""
    wish = {"scale": 4, "beta_fast": 24.0, "out": "gguf", "output": tmp_path / "out.gguf"}
    with pytest.raises(Inexpressible) as refused:
        convert(str(models["qwen2"]), **split_options(**wish))
    assert "--gguf-arch llama" in refused.value.hint
    convert(str(models["qwen2"]), **split_options(**wish, gguf_arch="llama"))
    result = judged(models["qwen2"], tmp_path / "out.gguf", "llama.cpp")
    assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "passed"), result["reasons"]
    with pytest.raises(Unsupported, match="qwen3"):
        prepare(str(models["qwen3"]), ConvertOptions(**split_options(**wish, gguf_arch="llama")))


# -- families without a row -------------------------------------------------------------------------------------------


@pytest.fixture
def unlisted() -> Iterator[str]:
    """A model type whose RoPE is known and whose tensors are not."""
    name = "doge"
    assert name not in ROWS
    yield name


def test_a_family_without_a_row_is_extended_in_its_own_format(unlisted: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        unlisted, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        vocab_size=263, max_position_embeddings=CONTEXT, rope_theta=1e4,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    convert(str(tmp_path / "base"), Recipe(scale=4), output=tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    meant = table(prepare(str(tmp_path / "out"), ConvertOptions(Recipe(method="none"))).extension.rope)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), meant.inv_freq, rtol=1e-6)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(meant.multiplier)
    with pytest.raises(Unsupported, match="no names"):
        convert(str(tmp_path / "base"), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf")
    result = check(str(tmp_path / "out"), ValidateOptions(real=False))
    assert result["verdict"] == "inconclusive"
    assert result["reasons"] == ["no runtime computed anything: its tensors have no names here, so it has no twin: leave out --twin"]


def test_an_architecture_without_a_row_is_extended_as_a_gguf(models: dict[str, Path], tmp_path: Path) -> None:
    """xverse has Llama's tensors and keys, and no row: its bytes stay, and llama.cpp computes the recipe."""
    convert(str(models["qwen3"]), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "xverse")
    for key, value in fields_of(tmp_path / "a.gguf").items():
        if key.startswith("tokenizer."):
            continue
        add = writer.add_float32 if isinstance(value, float) else writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"xverse.{key}", value)
    write_tensors_of(reader, writer)
    assert data
    convert(str(tmp_path / "base.gguf"), Recipe(scale=4), output=tmp_path / "out.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(tmp_path / "base.gguf")
    fields = fields_of(tmp_path / "out.gguf")
    assert (fields["context_length"], fields["rope.scaling.type"], fields["rope.scaling.factor"]) == (4 * CONTEXT, "yarn", 4.0)
    result = check(str(tmp_path / "out.gguf"), ValidateOptions())
    assert result["reasons"] == [
        "no runtime computed anything: its tensors have no names here; --base FOLDER, of the same type or of an f32 GGUF, is a reference"
    ]
    with pytest.raises(YarnConvertError, match="no names"):
        convert(str(tmp_path / "base.gguf"), Recipe(method="none"), out="safetensors", output=tmp_path / "hf")


def test_linear_over_linear_is_one_linear(models: dict[str, Path], tmp_path: Path) -> None:
    """Gemma 3's own scaling, which llama.cpp has a key for; by the formula, frequencies are divided by both factors."""
    base = models["gemma3_text/linear"]
    manifest = convert(
        str(base), Recipe(method="linear", scale=2, original_context=CONTEXT), out="gguf", output=tmp_path / "out.gguf"
    ).to_dict()
    assert manifest["recipe"] == {
        "method": "linear", "rope_theta": 1e6, "rotary_dim": 32, "original_context": CONTEXT, "params": {"factor": 8.0},
    }  # fmt: skip
    assert manifest["context"] == 8 * CONTEXT
    fields = fields_of(tmp_path / "out.gguf")
    assert (fields["rope.scaling.type"], fields["rope.scaling.factor"], fields["rope.freq_base_swa"]) == ("linear", 8.0, 10000.0)


@pytest.mark.parametrize("method", ["linear", "yarn", "ntk-aware"])
def test_command_r_says_its_context_twice(models: dict[str, Path], tmp_path: Path, method: str) -> None:
    """model_max_length is what it was trained on, and what its readers believe: both follow the extended context."""
    convert(str(models["cohere"]), Recipe(method=method, scale=4), output=tmp_path / "out")
    assert open_checkpoint(Source(tmp_path / "out", "out")).context == 4 * CONTEXT
    convert(str(tmp_path / "out"), Recipe(method="none"), out="gguf", output=tmp_path / "out.gguf")
    assert fields_of(tmp_path / "out.gguf")["context_length"] == 4 * CONTEXT


def test_verdicts_are_of_the_file_and_not_of_what_transformers_assumes(models: dict[str, Path], tmp_path: Path) -> None:
    """mlx-lm's StableLM insists on partial_rotary_factor, which transformers takes for 0.25 where it is absent."""
    base = tmp_path / "base"
    base.mkdir()
    for path in models["stablelm"].iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    wish = {"method": "ntk-aware", "scale": 4}
    assert convert(str(base), **split_options(**wish, output=tmp_path / "a")).to_dict()["readers"]["mlx-lm"] == "exact"
    config = json.loads((base / "config.json").read_text())
    del config["partial_rotary_factor"]
    (base / "config.json").write_text(json.dumps(config))
    readers = convert(str(base), **split_options(**wish, output=tmp_path / "b")).to_dict()["readers"]
    assert readers["transformers-5"] == "exact"
    assert "partial_rotary_factor" in readers["mlx-lm"]
