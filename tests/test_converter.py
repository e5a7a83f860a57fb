"""Models without a row become GGUFs through llama.cpp's own converter, in which the recipe is ours; and what sees in them a file of its own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import gguf
import numpy as np
import pytest
from conftest import CONTEXT, VOCAB, tokenizer_files
from family_models import make
from safetensors.numpy import load_file, save_file
from test_nested import QWEN_SEES, TEXT, rope

from yarn_convert import Recipe, convert, runtimes, validate
from yarn_convert.conversion import converter as by
from yarn_convert.conversion import prepare
from yarn_convert.errors import Inexpressible, InputError, OutputError, Unsupported, UsageError
from yarn_convert.families import MODEL_TYPES
from yarn_convert.options import ConvertOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("llama_cpp")

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HEADS = {"head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {  # the last has no row, the others are made by name
    "arcee": HEADS, "seed_oss": HEADS, "jais2": {}, "hy_v3": HEADS | EXPERTS, "granitemoeshared": EXPERTS, "apertus": {},
}  # fmt: skip
UNREAD: dict[str, dict[str, Any]] = {"iquestcoder": HEADS, "cohere2_moe": HEADS | EXPERTS, "granite_swa": {}}
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
    common = {k: v for k, v in TEXT.items() if k not in ("head_dim", "rms_norm_eps")}
    config = transformers.AutoConfig.for_model(kind, **{**common, **(KINDS | UNREAD).get(kind, HEADS), **more})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file, content in tokenizer_files().items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_goes_through_it_is_extended_and_computed_as_meant(kind: str, script: Path, tmp_path: Path, forked: None) -> None:
    base, out = saved(tmp_path / "base", kind), tmp_path / "out.gguf"
    manifest = convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script).manifest
    assert (manifest.context, manifest.base.format, manifest.outtype) == (4 * CONTEXT, "safetensors", "f32")
    assert str(manifest.converter).startswith("llama.cpp's convert_hf_to_gguf.py, SHA-256 ")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "out.gguf", "out.yarn_convert.json"}
    result = validate(str(out), base=str(base), runtimes=("llama.cpp",)).to_dict()
    assert result["verdict"] == "passed", result["reasons"]
    assert all(w["told_apart"] for s in result["studies"] for w in s["wrong_recipes"])


LAYERS = 22  # of Gemma 3n: llama.cpp takes keys and values of layer 20 and later from those before, and wants them to have some
GEMMA3N = {
    "num_hidden_layers": LAYERS, "num_kv_shared_layers": LAYERS - 20, "intermediate_size": [2048] * LAYERS, "sliding_window": 16,
    "layer_types": ((["sliding_attention"] * 4 + ["full_attention"]) * 5)[:LAYERS], "hidden_size_per_layer_input": 256, "laurel_rank": 64,
    "vocab_size_per_layer_input": VOCAB, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (LAYERS - 10), "initializer_range": 0.05,
}  # fmt: skip


def test_gemma_3n_goes_through_it(script: Path, tmp_path: Path, forked: None) -> None:
    """With all that llama.cpp's graph of it has written in, and as it is published: the last layers have keys that nobody reads."""
    base, out = saved(tmp_path / "base", "gemma3n_text", **GEMMA3N), tmp_path / "out.gguf"
    with pytest.raises(Inexpressible, match="cannot compute layer 20 without keys"):
        convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script)
    tensors = load_file(base / "model.safetensors")
    for i in range(20, LAYERS):
        tensors |= {n.replace(".0.", f".{i}.", 1): w for n, w in tensors.items() if re.search(r"layers\.0\.self_attn\.[kv]_", n)}
    tensors = {n: w / 4 if n.endswith("q_norm.weight") else w for n, w in tensors.items()}  # scores of a size that blows no rounding up
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script)
    result = validate(str(out), base=str(base), runtimes=("llama.cpp",)).to_dict()
    assert result["verdict"] == "passed", result["reasons"]
    assert all(w["told_apart"] for s in result["studies"] for w in s["wrong_recipes"])


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (GEMMA3N, ""),
        ({"num_hidden_layers": 35}, ""),  # its config class's own values
        (GEMMA3N | {"laurel_rank": 8}, "laurel_rank"),
        ({"num_hidden_layers": 30}, "num_kv_shared_layers"),
        (GEMMA3N | {"activation_sparsity_pattern": [0.0] * LAYERS}, "activation_sparsity_pattern"),
        ({"num_hidden_layers": 8, "num_kv_shared_layers": 0}, "activation_sparsity_pattern"),
    ],
)
def test_what_llama_cpp_has_written_in_of_gemma_3n_is_told(config: dict[str, Any], what: str) -> None:
    unlike = MODEL_TYPES["gemma3n_text"].unlike
    assert unlike and unlike(config, {f"blk.{i}.attn_k.weight" for i in range(40)}) == (what and f"this {what}")


@pytest.mark.parametrize("kind", UNREAD)
def test_a_model_type_that_is_not_read_here_is_what_the_converter_took_it_for(
    kind: str, script: Path, tmp_path: Path, forked: None
) -> None:
    """llama.cpp computes from it what transformers does whose config.json is given the recipe."""
    base, out = saved(tmp_path / "base", kind), tmp_path / "out.gguf"
    with pytest.raises(Unsupported, match=f"unknown model_type '{kind}'"):
        convert(str(base), Recipe(scale=4), output=tmp_path / "folder")
    done = convert(str(base), Recipe(scale=4), out="gguf", output=out, outtype="f32", converter=script).manifest
    assert any("its L, theta and layers are what the converter took from it" in note for note in done.notes)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(out).fields.items()}
    arch = fields["general.architecture"]
    assert (fields[f"{arch}.rope.scaling.type"], fields[f"{arch}.rope.scaling.original_context_length"]) == ("yarn", CONTEXT)
    config, ids = json.loads((base / "config.json").read_text()), np.random.default_rng(0).integers(3, VOCAB, 3 * CONTEXT)
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": config["rope_parameters"] | scaled}))
    with torch.no_grad():
        meant = transformers.AutoModelForCausalLM.from_pretrained(base).eval()(torch.from_numpy(ids)[None]).logits[0].numpy()
    found = runtimes.run("llama.cpp", out, ids, [(0, len(ids))]).logits
    assert ((found - meant) ** 2).sum() / ((meant - meant.mean()) ** 2).sum() < 1e-9
    with pytest.raises(Unsupported, match="takes its yarn scaling as it is meant is not known"):
        convert(str(base), Recipe(scale=4), out="gguf", output=tmp_path / "b.gguf", outtype="f32", converter=script)


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
        ({"converter": Path("nowhere"), "out": None}, "--converter is for a GGUF made of a folder"),
        ({"mmproj": True}, "is a language model alone"),
        ({"outtype": "q4_k_m", "converter": Path(__file__)}, "does not write q4_k_m"),
        ({"gguf_arch": "llama", "converter": Path(__file__)}, "--gguf-arch goes with our own writer"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_said(options: dict[str, Any], why: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        convert(str(base), Recipe(scale=4), output=tmp_path / "out.gguf", **{"out": "gguf", **options})


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


def test_what_sees_is_a_file_of_its_own(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None) -> None:
    config = transformers.AutoConfig.for_model(
        "qwen3_vl", text_config={**TEXT, **rope(5e5, mrope_section=[3, 3, 2], mrope_interleaved=True)},
        vision_config={**QWEN_SEES, "deepstack_visual_indexes": [0]},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3VLForConditionalGeneration._from_config(config).save_pretrained(tmp_path / "base")
    for file, content in tokenizer_files().items():
        (tmp_path / "base" / file).write_bytes(content)
    sizes = {"shortest_edge": 64, "longest_edge": 1024}
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": sizes}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(processor))
    monkeypatch.setenv(by.PLACE, str(script))
    convert(str(tmp_path / "base"), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf", mmproj=True)
    reader = gguf.GGUFReader(tmp_path / "mmproj-out.gguf")
    assert reader.fields["general.architecture"].contents() == "clip"
    assert not any(name.startswith("blk.") for name in (t.name for t in reader.tensors))
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.architecture"].contents() == "qwen3vl"
