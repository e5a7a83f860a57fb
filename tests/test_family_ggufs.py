"""What a GGUF of another tool means: keys that are absent or unusual, against llama.cpp and transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import CONTEXT, split_options, write_tensors_of

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import Source
from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import InputError, Unsupported, UsageError, YarnConvertError
from yarn_convert.options import ConvertOptions, Recipe, RepairOptions, ValidateOptions
from yarn_convert.validation import check

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")
from family_models import make  # noqa: E402

IDS = np.random.default_rng(0).integers(3, 263, CONTEXT - 8)
KINDS = {
    bool: (gguf.GGUFValueType.BOOL,), int: (gguf.GGUFValueType.UINT32,), float: (gguf.GGUFValueType.FLOAT32,),
    str: (gguf.GGUFValueType.STRING,), list: (gguf.GGUFValueType.ARRAY,),
}  # fmt: skip
YARN = {"context_length": 4 * CONTEXT} | {
    f"rope.scaling.{k}": v for k, v in {"type": "yarn", "factor": 4.0, "original_context_length": CONTEXT}.items()
}
Changed = Callable[[str, Mapping[str, Any]], Path]


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """A tiny model's GGUF with keys of its architecture set, or removed where None."""

    def change(name: str, changes: Mapping[str, Any]) -> Path:
        convert(str(make(name, tmp_path / "base")), Recipe(method="none"), out="gguf", output=tmp_path / "whole.gguf")
        reader = gguf.GGUFReader(tmp_path / "whole.gguf")
        arch = reader.fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(tmp_path / "changed.gguf", arch)
        fields = {k: f for k, f in reader.fields.items() if not k.startswith(("GGUF.", "yarn_convert.")) and k != "general.architecture"}
        for key, field in fields.items():
            if key.removeprefix(f"{arch}.") not in changes:
                writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for key, value in changes.items():
            if value is not None:
                writer.add_key_value(
                    f"{arch}.{key}", value, *KINDS[type(value)], *(KINDS[type(value[0])] if isinstance(value, list) else ())
                )
        write_tensors_of(reader, writer)
        return tmp_path / "changed.gguf"

    return change


def in_llama_cpp(path: Path) -> np.ndarray:
    return runtimes.run("llama.cpp", path, IDS, [(0, len(IDS))]).logits


def in_transformers(path: Path) -> np.ndarray:
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        return np.asarray(model(torch.from_numpy(IDS)[None]).logits[0].numpy())


def nmse(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(((ours - theirs) ** 2).sum() / ((theirs - theirs.mean()) ** 2).sum())


@pytest.mark.parametrize("options", [{"method": "none"}, {"scale": 4}, {"method": "none", "out": "safetensors"}])
def test_a_gguf_whose_rope_is_switched_off_is_refused(changed: Changed, options: dict[str, Any]) -> None:
    """Granite's switch, which a GGUF of Granite 4.0-H has off: without the key llama.cpp would turn it on."""
    off = changed("granite", {"rope.scaling.finetuned": False})
    assert nmse(in_llama_cpp(off), in_llama_cpp(off.with_name("whole.gguf"))) > 0.1
    with pytest.raises(Unsupported, match="no RoPE"):
        prepare(str(off), ConvertOptions(**split_options(**options)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("granite", dict.fromkeys(["attention.scale", "embedding_scale", "residual_scale"])),
        ("granite", dict.fromkeys(["attention.scale", "embedding_scale", "residual_scale"], 0.0)),
        ("granitemoe", dict.fromkeys(["attention.scale", "embedding_scale", "residual_scale"])),
        ("cohere", {"logit_scale": None}),
        ("cohere2", {"logit_scale": 0.0}),
        ("deepseek_v3", {"expert_weights_scale": 0.0}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {"rope.freq_base_swa": None}),
        ("gpt_neox", {"rope.dimension_count": None, "rope.freq_base": None}),
        ("stablelm", {"rope.dimension_count": None}),
        ("deepseek_v3", dict.fromkeys(["expert_weights_norm", "expert_group_count", "expert_group_used_count"])),
    ],
)
def test_what_llama_cpp_takes_for_an_absent_key_is_what_a_folder_of_it_says(changed: Changed, name: str, changes: dict[str, Any]) -> None:
    """transformers' defaults are others."""
    path = changed(name, changes)
    convert(str(path), Recipe(method="none"), out="safetensors", output=path.with_name("hf"))
    assert nmse(in_transformers(path.with_name("hf")), in_llama_cpp(path)) < 1e-5


M0 = float(np.float32(0.1 * math.log(4) + 1))
USUAL = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_attn_factor": M0, "yarn_ext_factor": 1.0}
WINDOWS = [True, False, True, True, False, True]
GEMMA3N = ("activation_sparsity_scale", "altup.active_idx", "attention.shared_kv_layers")  # which llama.cpp does not read


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deepseek_v3", YARN),  # YaRN's temperature on cos and sin, and on all logits
        ("deepseek_v3", {**YARN, "rope.scaling.yarn_log_multiplier": 0.0707}),
        ("deepseek_v2", {**YARN, "rope.scaling.yarn_log_multiplier": 0.05, "rope.scaling.attn_factor": 1.3}),
        ("deepseek_v2", {**YARN, "rope.scaling.attn_factor": 1.1}),
        ("qwen3", {**YARN, **{f"rope.scaling.{k}": v for k, v in USUAL.items()}}),
        ("qwen2", {**YARN, **{f"rope.scaling.{k}": v for k, v in USUAL.items()}}),
        ("qwen3_moe", {"attention.head_dim": 32, "norm_top_k_prob": True}),
        ("phi3", {"attention.sliding_window": 8 * CONTEXT}),
        ("phi3", {"attention.sliding_window": None}),
        ("gemma3_text", {"rope.freq_base_swa": None, "rope.local.freq_base": 10000.0, "rope.global.freq_base": 1e6}),
        ("gemma3_text", {"attention.sliding_window_pattern": WINDOWS}),
        ("gemma3_text", {"attention.sliding_window_pattern": 3}),
        ("gemma2", {"attention.sliding_window_pattern": WINDOWS[:2]}),
        ("gemma3n_text", dict.fromkeys(GEMMA3N) | {"attention.sliding_window_pattern": 3}),
        ("gemma3n_text", dict.fromkeys([*GEMMA3N, "attention.sliding_window_pattern"])),
        ("granite", {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2], "feed_forward_length": [96, 96]}),
    ],
)
def test_a_file_of_another_converter_is_what_llama_cpp_computes(changed: Changed, name: str, changes: dict[str, Any]) -> None:
    path = changed(name, changes)
    convert(str(path), Recipe(method="none"), out="safetensors", output=path.with_name("hf"))
    assert nmse(in_transformers(path.with_name("hf")), in_llama_cpp(path)) < 1e-5
    convert(str(path), Recipe(scale=8), output=path.with_name("long.gguf"))
    assert check(str(path.with_name("long.gguf")), ValidateOptions(twin=False, tokens=4 * CONTEXT))["verdict"] == "passed"


def test_one_number_says_of_how_many_layers_the_last_sees_all(changed: Changed) -> None:
    path = changed("gemma3n_text", {"attention.sliding_window_pattern": 3})
    assert open_checkpoint(Source(path, "m")).hparams["slides_by_layer"] == [True, True, False, True, True]


def test_a_gguf_without_a_suffix_is_known_by_its_first_bytes(changed: Changed, tmp_path: Path) -> None:
    """As Ollama keeps its blobs, each named after its own digest: so none of them is changed where it lies."""
    blob = changed("granite", {}).rename(tmp_path / ("sha256-" + "0" * 64))
    made = convert(str(blob), Recipe(scale=4), output=tmp_path / "long.gguf").to_dict()
    assert (made["carrier"], made["base"]["format"]) == ("metadata", "gguf")
    assert prepare(str(blob), ConvertOptions(Recipe(scale=4))).plan.out.suffix == ".gguf"
    assert check(str(blob), ValidateOptions(twin=False))["verdict"] == "passed"
    with pytest.raises(UsageError, match=r"not named \.gguf"):
        prepare(str(blob), ConvertOptions(Recipe(scale=4), in_place=True))
    with pytest.raises(UsageError, match=r"not named \.gguf"):
        plan_repair(str(blob), RepairOptions())
    (tmp_path / "text").write_bytes(b"GGU")
    with pytest.raises(InputError, match="neither a folder nor a GGUF file"):
        prepare(str(tmp_path / "text"), ConvertOptions(Recipe(scale=4)))


def uneven(path: Path, **keys: Any) -> Path:
    """A tiny DeciLM whose two layers have other numbers of heads and other sizes."""
    writer, rng = gguf.GGUFWriter(path, "deci"), np.random.default_rng(0)
    numbers = {"block_count": 2, "context_length": CONTEXT, "embedding_length": 64, "feed_forward_length": [96, 128]}
    numbers |= {"attention.head_count": [4, 2], "attention.head_count_kv": [2, 1], "attention.key_length": 16, "attention.value_length": 16}
    for key, value in {**numbers, "rope.dimension_count": 16, "attention.layer_norm_rms_epsilon": 1e-5, **keys}.items():
        writer.add_key_value(f"deci.{key}", value, *KINDS[type(value)], *(KINDS[type(value[0])] if isinstance(value, list) else ()))
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(64)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (64, 64), "output_norm": (64,), "output": (64, 64)}
    for i, (heads, kv, ff) in enumerate(((4, 2, 96), (2, 1, 128))):
        block = {"attn_norm": (64,), "ffn_norm": (64,), "attn_q": (16 * heads, 64), "attn_k": (16 * kv, 64), "attn_v": (16 * kv, 64)}
        block |= {"attn_output": (64, 16 * heads), "ffn_gate": (ff, 64), "ffn_up": (ff, 64), "ffn_down": (64, ff)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        w = np.ones(shape) if "norm" in name else rng.standard_normal(shape) * (4 if name.endswith(("_q", "_k")) else 1) / 8
        writer.add_tensor(f"{name}.weight", w.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_layers_with_other_numbers_of_heads_are_extended_in_the_gguf_alone(tmp_path: Path) -> None:
    base = uneven(tmp_path / "a.gguf")
    convert(str(base), Recipe(scale=4), output=tmp_path / "long.gguf")
    ids, spelled = IDS % 64, {k.removeprefix("rope."): v for k, v in YARN.items() if k != "context_length"}
    by_hand = uneven(tmp_path / "b.gguf", **{f"rope.{k}": v for k, v in spelled.items()}, context_length=4 * CONTEXT)
    ours, theirs, plain = (runtimes.run("llama.cpp", path, ids, [(0, len(ids))]).logits for path in (tmp_path / "long.gguf", by_hand, base))
    assert np.array_equal(ours, theirs)
    assert nmse(plain, ours) > 1e-3
    with pytest.raises(Unsupported, match="can only be copied"):
        prepare(str(base), ConvertOptions(Recipe(method="none"), out="safetensors"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rope.local.freq_base": 20000.0, "rope.freq_base_swa": None}, "llama.cpp, which passes over it, takes 10000.0"),
        ({"rope.global.freq_base": 1e6, "rope.freq_base": None}, "llama.cpp, which passes over it, takes 10000.0"),
        ({"attention.head_count_kv": [2] * 5}, "5 numbers, not one for each of 7 layers"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changed: Changed, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(YarnConvertError, match=why):
        prepare(str(changed("gemma3_text", changes)), ConvertOptions(Recipe(scale=4)))
