"""What a GGUF of another tool means: keys that are absent or unusual, against llama.cpp and transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import CONTEXT, write_tensors_of

from yarn_convert import runtimes
from yarn_convert.convert import Options, convert, prepare
from yarn_convert.errors import Unsupported

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")
from family_models import make  # noqa: E402

IDS = np.random.default_rng(0).integers(3, 263, CONTEXT - 8)
Changed = Callable[[str, Mapping[str, Any]], Path]


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """A tiny model's GGUF with keys of its architecture set, or removed where None."""

    def change(name: str, changes: Mapping[str, Any]) -> Path:
        convert(str(make(name, tmp_path / "base")), Options(method="none", out="gguf", output=tmp_path / "whole.gguf"))
        reader = gguf.GGUFReader(tmp_path / "whole.gguf")
        arch = reader.fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(tmp_path / "changed.gguf", arch)
        fields = {k: f for k, f in reader.fields.items() if not k.startswith(("GGUF.", "yarn_convert.")) and k != "general.architecture"}
        for key, field in fields.items():
            if key.removeprefix(f"{arch}.") not in changes:
                writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for key, value in changes.items():
            if value is not None:
                kind = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}[type(value)]
                writer.add_key_value(f"{arch}.{key}", value, kind)
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
        prepare(str(off), Options(**options))


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
    convert(str(path), Options(method="none", out="safetensors", output=path.with_name("hf")))
    assert nmse(in_transformers(path.with_name("hf")), in_llama_cpp(path)) < 1e-5
