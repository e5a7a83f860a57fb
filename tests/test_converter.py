"""Models without a row become GGUFs through llama.cpp's own converter, in which the recipe is ours; and what sees in them a file of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forks
import gguf
import numpy as np
import pytest
from conftest import CONTEXT, VOCAB, bytes_to_unicode, tokenizer_files
from family_models import make
from safetensors.numpy import load_file, save_file
from test_nested import MODELS, TEXT, logits, nmse, rope

from yarn_convert import Recipe, convert, families, runtimes, tokenizers, validate
from yarn_convert.conversion import converter as by
from yarn_convert.conversion import prepare
from yarn_convert.errors import Inexpressible, InputError, OutputError, Unsupported, UsageError
from yarn_convert.formats.digests import sha256
from yarn_convert.options import ConvertOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("llama_cpp")

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HEADS = {"head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {  # the last has no row, apertus as if it had none, the others are made by name
    "arcee": HEADS, "seed_oss": HEADS, "jais2": {}, "hy_v3": HEADS | EXPERTS, "granitemoeshared": EXPERTS, "apertus": {},
    "hrm_text": HEADS | {"prefix_lm": False, "num_key_value_heads": 4},
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
WINDOWED = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16}
UNREAD: dict[str, dict[str, Any]] = {
    "iquestcoder": HEADS, "cohere2_moe": HEADS | EXPERTS, "granite_swa": {}, "granitemoe_swa": EXPERTS,
    "mellum": HEADS | EXPERTS | WINDOWED | {"rope_parameters": dict.fromkeys(WINDOWED["layer_types"], PLAIN)}, "laguna": HEADS | EXPERTS | WINDOWED | {"shared_expert_intermediate_size": 32},
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
}  # fmt: skip
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
H, SENTENCEPIECE = r"^model\.layers", {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "c"],
    "tokenizer.ggml.scores": [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0], "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 4,
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
}  # fmt: skip


class Kin(NamedTuple):
    """A model whose code is its own: what transformers has that computes the same from the same weights, and how its folder says it."""

    kin: str
    architecture: str
    shape: dict[str, Any]  # of the kin's config.json
    says: dict[str, Any]
    names: tuple[tuple[str, str], ...] = ()
    sentencepiece: bool = False


OLD_NAMES = ((r"^model\.embed_tokens", "transformer.wte"), (H, "transformer.h"), (r"^model\.norm", "transformer.ln_f"), ("input_layernorm", "ln_1"),
             ("post_attention_layernorm", "ln_2"))  # fmt: skip
KIN = {
    "exaone": Kin(
        "llama", "ExaoneForCausalLM", HEADS, {"activation_function": "silu", "layer_norm_epsilon": 1e-6, "num_layers": 2},
        (*OLD_NAMES, (r"self_attn\.o_proj", "attn.attention.out_proj"), ("self_attn", "attn.attention"), ("gate_proj", "c_fc_0"),
         ("up_proj", "c_fc_1"), ("down_proj", "c_proj")),
    ),
    "nanbeige": Kin("llama", "NanbeigeForCausalLM", HEADS, {}),
    "orion": Kin("stablelm", "OrionForCausalLM", {"partial_rotary_factor": 1.0}, {"rms_norm_eps": 1e-5}, (), True),
    "minicpm": Kin(
        "granite", "MiniCPMForCausalLM",
        {"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 2**0.5, "logits_scaling": 2.0, "attention_multiplier": 0.25},
        {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}, (), True,
    ),
    "codeshell": Kin(
        "starcoder2", "CodeShellForCausalLM", {"intermediate_size": 256, "tie_word_embeddings": False},
        {"n_positions": CONTEXT, "n_embd": 64, "n_head": 4, "num_query_groups": 2, "n_layer": 2, "layer_norm_epsilon": 1e-5},
        (*OLD_NAMES, (r"self_attn\.qkv", "attn.c_attn"), (r"self_attn\.o_proj", "attn.c_proj")),
    ),
}  # fmt: skip
# The converter knows pre-tokenizers by a hash of the real vocabulary.
TOY = """
import runpy, sys
sys.path[:0] = [{tree!r}, {tree!r} + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
sys.argv[0] = {tree!r} + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Forked:
    """subprocess.Popen as `converter` uses it, as a fork."""

    def __init__(self, command: list[str], *, env: dict[str, str], cwd: Path, stdout: Any, **_: Any) -> None:
        with forks.Popen(command, env=env, cwd=str(cwd), stderr=subprocess.STDOUT) as process:
            stdout.write(process.stdout.read().encode())
        self.returncode = process.returncode

    def poll(self) -> int | None:
        return self.returncode

    wait = kill = poll


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports of the converter cost ten times a conversion."""
    monkeypatch.setattr(by.subprocess, "Popen", Forked)
    monkeypatch.setattr(by, "_without_network", tuple)


@pytest.fixture(scope="session")
def script(converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama.cpp") / by.SCRIPT
    path.write_text(TOY.format(tree=str(converter.parent)))
    return path


def saved(folder: Path, kind: str, **more: Any) -> Path:
    common = {k: v for k, v in TEXT.items() if k not in ("head_dim", "rms_norm_eps") and (kind != "dbrx" or k not in SHAPE)}
    config = transformers.AutoConfig.for_model(kind, **{**common, **(KINDS | UNREAD).get(kind, HEADS), **more})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file, content in tokenizer_files().items():
        (folder / file).write_bytes(content)
    return folder


def renamed(folder: Path, kind: str) -> Path:
    """A tiny model of `KIN`, and its kin beside it, of the same weights."""
    row, kin = KIN[kind], folder.with_name("kin")
    saved(kin, row.kin, **row.shape)
    shutil.copytree(kin, folder)
    config = json.loads((kin / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    said = {**config, "model_type": kind, "architectures": [row.architecture], "rope_theta": theta, **row.says}
    (folder / "config.json").write_text(json.dumps(said))
    weights, found = load_file(kin / "model.safetensors"), {}
    for name in weights:
        parts = [name.replace("q_proj", f"{x}_proj") for x in "qkv"] if any("c_attn" in new for _, new in row.names) else [name]
        new = name.replace("q_proj", "qkv") if len(parts) > 1 else name
        for old, by_now in row.names:
            new = re.sub(old, by_now, new)
        if len(parts) == 1 or not re.search(r"[kv]_proj", name):
            found[new] = np.concatenate([weights[part] for part in dict.fromkeys(parts)])
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    if row.sentencepiece:
        (folder / "tokenizer.json").unlink()
        for file, content in tokenizers.to_hf(SENTENCEPIECE).items():
            (folder / file).write_bytes(content)
    return folder


def hidden(monkeypatch: pytest.MonkeyPatch, kind: str, known: bool = True) -> None:
    """As if a model type had no row, or were not even known."""
    monkeypatch.setattr(families, "FAMILIES", tuple(f for f in families.FAMILIES if f.model_type != kind))
    if not known:
        monkeypatch.setattr(families, "MODEL_TYPES", {k: v for k, v in families.MODEL_TYPES.items() if k != kind})


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_goes_through_it_is_extended_and_computed_as_meant(
    kind: str, script: Path, tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden(monkeypatch, "apertus")
    base, out = saved(tmp_path / "base", kind), tmp_path / "out.gguf"
    manifest = convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script).manifest
    assert (manifest.context, manifest.base.format, manifest.outtype) == (4 * CONTEXT, "safetensors", "f32")
    assert str(manifest.converter).startswith("llama.cpp's convert_hf_to_gguf.py, SHA-256 ")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "out.gguf", "out.yarn_convert.json"}
    result = validate(str(out), base=str(base), runtimes=("llama.cpp",)).to_dict()
    assert result["verdict"] == "passed", result["reasons"]
    assert all(w["told_apart"] for s in result["studies"] for w in s["wrong_recipes"])


LAYERS = 22  # of Gemma 3n: those from the 20th on take keys and values of two before
GEMMA3N = {
    "num_hidden_layers": LAYERS, "num_kv_shared_layers": LAYERS - 20, "intermediate_size": [64] * LAYERS, "sliding_window": 16,
    "layer_types": ((["sliding_attention"] * 4 + ["full_attention"]) * 5)[:LAYERS], "hidden_size_per_layer_input": 256, "laurel_rank": 64,
    "vocab_size_per_layer_input": VOCAB, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (LAYERS - 10),
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "what"),
    [({}, "layer 20 without keys, which transformers 5 leaves out"), ({"altup_active_idx": 1}, "altup_active_idx = 1")],
)
@pytest.mark.parametrize("ours", [True, False], ids=["by ours", "by llama.cpp's"])
def test_a_gemma_3n_that_llama_cpp_cannot_run_is_refused(
    ours: bool, more: dict[str, Any], what: str, script: Path, tmp_path: Path, forked: None
) -> None:
    """As transformers 5 saves one; and one with other values than llama.cpp has written in."""
    base = saved(tmp_path / "base", "gemma3n_text", **GEMMA3N, **more)
    with pytest.raises(Inexpressible, match=f"cannot compute {what}"):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", converter=None if ours else script)


@pytest.mark.parametrize("kind", [*UNREAD, *KIN])
def test_a_model_type_that_is_not_read_here_is_what_the_converter_took_it_for(
    kind: str, script: Path, tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp computes from it what transformers does whose config.json, or its kin's, is given the recipe."""
    hidden(monkeypatch, kind, known=False)
    base, out = renamed(tmp_path / "base", kind) if kind in KIN else saved(tmp_path / "base", kind), tmp_path / "out.gguf"
    with pytest.raises(Unsupported, match=f"unknown model_type '{kind}'"):
        convert(str(base), Recipe(scale=4), output=tmp_path / "folder")
    done = convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script).manifest
    assert any("its L, theta and layers are what the converter took from it" in note for note in done.notes)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(out).fields.items()}
    arch = fields["general.architecture"]
    assert (fields[f"{arch}.rope.scaling.type"], fields[f"{arch}.rope.scaling.original_context_length"]) == ("yarn", CONTEXT)
    kin, ids = tmp_path / ("kin" if kind in KIN else "base"), np.random.default_rng(0).integers(3, VOCAB, 3 * CONTEXT)
    plain, meant = (computed(kin, ids, scaled) for scaled in ({}, YARN))
    found = runtimes.run("llama.cpp", out, ids, [(0, len(ids))]).logits
    within = 1e-6 if kind == "codeshell" else 1e-9  # ggml's gelu is a table of float16
    assert nmse(found, meant) < within and nmse(found, plain) > 1e-5
    if kind in KIN:
        return
    with pytest.raises(Unsupported, match="takes its yarn scaling as it is meant is not known"):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "b.gguf", outtype="f32", converter=script)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}


def computed(folder: Path, ids: np.ndarray, scaled: dict[str, Any]) -> np.ndarray:
    """What transformers computes from a folder whose config.json is given a scaling: of several RoPE objects, that of full attention."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("text_config", config)["rope_parameters"]
    rope.get("full_attention", rope).update(scaled)
    (folder / "config.json").write_text(json.dumps(config))
    return logits(folder, ids)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mellum", {"rope_parameters": {"full_attention": PLAIN | {"rope_theta": 5e5}, "sliding_attention": PLAIN}}),
        ("granite_swa", {"layer_rope_theta": [1e4, 0]}),
        ("granitemoe_swa", {"layer_rope_theta": [1e4, 5e5]}),
    ],
)
def test_layers_that_turn_otherwise_than_the_gguf_says_are_refused(
    kind: str, more: dict[str, Any], script: Path, tmp_path: Path, forked: None
) -> None:
    """llama.cpp has one base for all layers of these, and its converter does not look for those that have none."""
    base = saved(tmp_path / "base", kind, **more)
    with pytest.raises(Unsupported, match=r"rope_theta of .* as it is meant is not known"):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", outtype="f32", converter=script)
    assert not list(tmp_path.glob("*.gguf"))


PICTURES = {
    "hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4, "image_size": 16
}  # fmt: skip
GLM = rope(1e4, partial_rotary_factor=0.5, mrope_section=[2, 1, 1]), PICTURES
SEEING = {
    "glm4v": GLM,
    "glm4v_moe": (GLM[0] | EXPERTS | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}, PICTURES),
    "paddleocr_vl": MODELS["paddleocr_vl"],
}


@pytest.mark.parametrize("name", SEEING)
def test_a_language_model_without_a_row_within_another_goes_through_it(name: str, script: Path, tmp_path: Path, forked: None) -> None:
    """Its type is known, but that of GLM-4V, which llama.cpp computes as transformers does whose config.json is given the recipe."""
    text, sees = SEEING[name]
    config = transformers.AutoConfig.for_model(name, text_config={**TEXT, **text}, vision_config=dict(sees))
    torch.manual_seed(0)
    base, out = tmp_path / "base", tmp_path / "out.gguf"
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(base)
    turns = ["<|user|>", "<|observation|>", "[gMASK]", "<sop>", "<eop>", "Ġt", *bytes_to_unicode()]
    named = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["<|endoftext|>", *turns],
        "tokenizer.ggml.token_type": [3] * 6 + [1] * 257, "tokenizer.ggml.merges": ["Ġ t"], "tokenizer.ggml.eos_token_id": 0,
    }  # fmt: skip
    for file, content in tokenizers.to_hf(SENTENCEPIECE if name == "paddleocr_vl" else named).items():
        (base / file).write_bytes(content)
    assert convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script).manifest.context == 4 * CONTEXT
    if name != "glm4v":
        result = validate(str(out), base=str(base), runtimes=("llama.cpp",)).to_dict()
        assert [r["verdict"] for s in result["studies"] for r in s["runtimes"]] == ["passed"], result["reasons"]
        assert all(w["told_apart"] for w in result["studies"][0]["wrong_recipes"])
    ids = np.random.default_rng(0).integers(8, 250, 3 * CONTEXT)
    plain, meant = (computed(base, ids, scaled) for scaled in ({}, YARN))
    found = runtimes.run("llama.cpp", out, ids, [(0, len(ids))]).logits
    assert nmse(found, meant) < 1e-9 and nmse(found, plain) > 1e-5


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], Path]:
    """A converter of one's own, a process like the real one."""

    def write(code: str) -> Path:
        path = tmp_path / "fake" / by.SCRIPT
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"import json, os, shutil, sys\nout = sys.argv[sys.argv.index('--outfile') + 1]\n{code}\n")
        return path

    return write


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make("qwen3", tmp_path / "base")


def test_it_gets_neither_token_nor_network(
    base: Path, fake: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(str(base), Recipe(method="none"), out="gguf", output=tmp_path / "ready.gguf")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen = tmp_path / "seen.json"
    script = fake(
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), timeout=1)\nexcept OSError as e:\n    why = e.errno\n"
        f"json.dump([dict(os.environ), why], open({str(seen)!r}, 'w'))\nshutil.copy({str(tmp_path / 'ready.gguf')!r}, out)"
    )
    convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", converter=script)
    environment, why = json.loads(seen.read_text())
    assert "hf_secret" not in environment.values() and environment["HF_HUB_OFFLINE"] == "1"
    assert Path(environment["HF_HOME"]).parent.parent == tmp_path
    if by._without_network():
        assert why == 101  # the network is unreachable, and not the port closed


def test_it_may_be_asked_for_where_one_stands(
    base: Path, fake: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(str(base), Recipe(method="none"), out="gguf", output=tmp_path / "ready.gguf")
    script = fake(f"shutil.copy({str(tmp_path / 'ready.gguf')!r}, out)")
    monkeypatch.chdir(tmp_path)
    convert("base", Recipe(scale=4), out="gguf", output=Path("out.gguf"), converter=script.relative_to(tmp_path).parent)
    assert (tmp_path / "out.gguf").is_file() and not list(tmp_path.glob(".*"))


def test_an_unknown_model_type_is_given_to_it_whatever_its_class_is_called(base: Path, fake: Callable[[str], Path], tmp_path: Path) -> None:
    script = fake("raise NotImplementedError('asked')")
    config = json.loads((base / "config.json").read_text())
    for name in ("NobodysForCausalLM", "NobodysLMHeadModel"):
        (base / "config.json").write_text(json.dumps(config | {"model_type": "nobodys", "architectures": [name]}))
        with pytest.raises(InputError, match="converter failed: NotImplementedError: asked"):
            convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", converter=script)


def test_a_failure_is_told_and_leaves_nothing(base: Path, fake: Callable[[str], Path], tmp_path: Path) -> None:
    script = fake("open(out, 'w').write('half')\nraise NotImplementedError('Architecture not supported!')")
    with pytest.raises(InputError, match="converter failed: NotImplementedError: Architecture not supported!"):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", converter=script)
    assert {p.name for p in tmp_path.iterdir()} == {"base", "fake"}


def test_another_model_than_the_folders_is_refused(base: Path, fake: Callable[[str], Path], tmp_path: Path) -> None:
    other = make("qwen3", tmp_path / "other", config={"num_hidden_layers": 3})
    convert(str(other), Recipe(method="none"), out="gguf", output=tmp_path / "other.gguf")
    script = fake(f"shutil.copy({str(tmp_path / 'other.gguf')!r}, out)")
    with pytest.raises(Inexpressible, match="another model of it: layers differ"):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", converter=script)
    assert not (tmp_path / "out.gguf").exists()


def test_it_is_not_begun_where_the_output_has_no_place(base: Path, fake: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"someone else's")
    script = fake(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(OutputError):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", converter=script)
    assert not (tmp_path / "ran").exists()


def test_a_dry_run_says_that_it_would_run(base: Path, fake: Callable[[str], Path], tmp_path: Path) -> None:
    script = fake(f"open({str(tmp_path / 'ran')!r}, 'w')")
    plan = prepare(str(base), ConvertOptions(Recipe(scale=4), out="gguf", converter=script), weights=False).plan
    assert any("the GGUF is llama.cpp's converter's (fake/convert_hf_to_gguf.py)" in note for note in plan.notes)
    assert not (tmp_path / "ran").exists()


def test_a_models_own_python_is_run_only_where_it_is_trusted(base: Path, fake: Callable[[str], Path], tmp_path: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(str(base), Recipe(method="none"), out="gguf", output=tmp_path / "ready.gguf")
    script, out = fake(f"shutil.copy({str(tmp_path / 'ready.gguf')!r}, out)"), tmp_path / "out.gguf"
    with pytest.raises(Unsupported, match=r"may run this model's own Python: tokenization_own\.py") as refused:
        convert(str(base), Recipe(scale=4), out="gguf", output=out, converter=script)
    assert "--trust-remote-code" in refused.value.hint
    convert(str(base), Recipe(scale=4), out="gguf", output=out, converter=script, trust_remote_code=True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"converter": Path("nowhere")}, "there is no convert_hf_to_gguf.py at nowhere, which --converter names"),
        ({"converter": Path("nowhere"), "out": None, "output": None}, "--converter is for a GGUF made of a folder"),
        ({"mmproj": True}, "is a language model alone"),
        ({"outtype": "q4_k_m", "converter": Path(__file__)}, "does not write q4_k_m"),
        ({"gguf_arch": "llama", "converter": Path(__file__)}, "--gguf-arch goes with our own writer"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_said(options: dict[str, Any], why: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        convert(str(base), Recipe(scale=4), **{"out": "gguf", "output": tmp_path / "out.gguf", **options})


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(by.PLACE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert by.find() is None
    for place in ("llama.cpp", "told"):
        (tmp_path / place).mkdir()
        (tmp_path / place / by.SCRIPT).write_text("")
    assert by.find() == tmp_path / "llama.cpp" / by.SCRIPT
    monkeypatch.setenv(by.PLACE, str(tmp_path / "told"))
    assert by.find() == tmp_path / "told" / by.SCRIPT
    assert by.find(tmp_path / "llama.cpp") == tmp_path / "llama.cpp" / by.SCRIPT


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "qwen3_vl"])
def test_what_sees_is_a_file_of_its_own(name: str, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None) -> None:
    base = seeing(tmp_path / "base", name)
    monkeypatch.setenv(by.PLACE, str(script))
    done = convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", mmproj=True)
    assert done.manifest.context == 4 * CONTEXT
    made, file = done.manifest.mmproj, tmp_path / "mmproj-out.gguf"
    assert (made.file, made.bytes, made.sha256) == (file.name, file.stat().st_size, sha256(file))
    assert made.how.startswith("llama.cpp's convert_hf_to_gguf.py, SHA-256 ")
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == "clip"
    assert not any(name.startswith("blk.") for name in (t.name for t in reader.tensors))
    arch = {"gemma3": "gemma3", "qwen2_5_vl": "qwen2vl", "qwen3_vl": "qwen3vl"}[name]
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.architecture"].contents() == arch


def seeing(folder: Path, name: str) -> Path:
    """A tiny model of pictures under its published names, of which the converter asks for more blocks than two."""
    text, sees = MODELS[name]
    vision = {**sees, **({} if name == "gemma3" else {"depth": 4})}
    config = transformers.AutoConfig.for_model(name, text_config={**TEXT, **text}, vision_config=vision)
    torch.manual_seed(0)
    getattr(transformers, f"{config.__class__.__name__.removesuffix('Config')}ForConditionalGeneration")._from_config(
        config
    ).save_pretrained(folder)
    if name == "gemma3":  # transformers 5 saves it without this part, which llama.cpp's converter does not know
        tensors = load_file(folder / "model.safetensors")
        as_published = {re.sub(r"^vision_tower\.", "vision_tower.vision_model.", k): t for k, t in tensors.items()}
        save_file(as_published, folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in tokenizer_files().items():
        (folder / file).write_bytes(content)
    sizes = {"shortest_edge": 64, "longest_edge": 1024}
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
