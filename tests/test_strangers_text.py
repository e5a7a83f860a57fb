"""Texts of a file reach a terminal and a model card as text: no escape sequence, no line, no markup of a stranger's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel
from hostile_models import STR, field, gguf_model, hf_folder
from safetensors.numpy import load_file, save_file

from yarn_convert.checkpoint.manifest import manifest_path
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert
from yarn_convert.errors import YarnConvertError, printable
from yarn_convert.options import Recipe
from yarn_convert.publishing.model_card import markdown

ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egnp.exe\r\nerror: forged"
FORBIDDEN = set("\x1b\x07\x9b\u202e\r")


def said(args: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """All that a command prints, whether it succeeds or not."""
    try:
        cli.main([str(a) for a in args])
    except SystemExit as stop:
        assert stop.code in (0, 1, 3)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert not FORBIDDEN & set(out + err)
    assert "\nerror: forged" not in out + err
    return out + err


def test_a_control_character_is_no_text() -> None:
    assert printable("a\x1b[2Jb\u2028c\x85d") == "a?[2Jb?c?d"
    assert printable("naïve ×  ▁ 漢字") == "naïve ×  ▁ 漢字"
    error = YarnConvertError(f"x {ESCAPES}", f"y {ESCAPES}")
    assert error.message.isprintable() and error.hint.isprintable()


@pytest.mark.parametrize("key", ["quantization_config", "model_type", "architectures", "rope_scaling", "torch_dtype", "hidden_act"])
def test_what_config_json_says_is_shown_as_text(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {
        "quantization_config": {"quant_method": ESCAPES}, "architectures": [f"{ESCAPES}ForCausalLM"], "rope_scaling": {"type": ESCAPES, "factor": 2.0},
    }  # fmt: skip
    model = hf_folder(tmp_path / "m", **{key: values.get(key, ESCAPES)})
    if key == "quantization_config":
        tensors = load_file(model / "model.safetensors")
        save_file({**tensors, "model.layers.0.self_attn.q_proj.qweight": np.zeros((4, 4), np.int32)}, model / "model.safetensors")
    for command in (
        ["inspect", model],
        ["inspect", "--runtimes", model],
        [model, "--scale", 4, "--out", "gguf", "--dry-run"],
        [model, "--scale", 4, "-n"],
    ):
        said(command, capsys)


def test_what_tensors_files_and_gguf_keys_are_called_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hf_folder(tmp_path / "m")
    save_file({f"x{ESCAPES}": np.zeros(4, np.float32)}, model / "model.safetensors")
    assert "owned" in said(["inspect", model], capsys)
    gguf = gguf_model(tmp_path / "m.gguf", {"general.name": field(STR, ESCAPES), f"rope.{ESCAPES}": field(STR, ESCAPES)})
    said(["inspect", gguf], capsys)
    named = gguf_model(tmp_path / "a\x1b[31m.gguf", {"general.name": field(STR, ESCAPES)})
    said(["inspect", named], capsys)
    said(["convert", named, "--scale", "4", "-o", tmp_path / "o\x1b[31m.gguf"], capsys)
    capsys.readouterr()
    cli_json = json.loads(json.dumps({"name": ESCAPES}))
    assert cli_json["name"] == ESCAPES, "JSON escapes by itself"


EVIL = "x](javascript:a) <script>alert(1)</script> <!-- yarn-convert: end --> **b** | `c` ~~d~~ https://evil.example www.evil.example\n# H\n---\nlicense: mit"


def test_a_name_is_no_markup_in_the_card(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    convert(str(make_model()), Recipe(scale=4.0), output=out)
    path = manifest_path(out)
    kept = json.loads(path.read_text())
    ran = {"runtime": EVIL, "version": EVIL, "verdict": EVIL, "why": EVIL, "windows": [{"nmse": None, "top1": None}]}
    validation = {"created": EVIL, "verdict": EVIL, "studies": [{"kind": EVIL, "tokens": 8, "runtimes": [ran]}]}
    evaluation = {
        "runtime": EVIL, "created": EVIL, "base": {"model": EVIL, "points": [{"window": 8}]}, "points": [{"window": 8}], "documents": [{"name": EVIL}],
    }  # fmt: skip
    for base in ({"name": EVIL}, {"name": "a", "repo": EVIL, "commit": EVIL}, {"repo": "org/name", "commit": EVIL, "format": EVIL}):
        evil = {
            "base": base,
            "readers": {EVIL: EVIL},
            "validation": validation,
            "evaluation": evaluation,
            "yarn_convert": EVIL,
            "created": EVIL,
        }
        path.write_text(json.dumps({**kept, **evil}))
        text = said(["card", out], capsys)
        _, front, body = text.replace("\\]", "").split("---\n", 2)
        assert "license: mit" not in front
        assert body.count("<!--") == 2, "our own two markers"
        assert "<script" not in body and "](javascript" not in body and "https://evil" not in body and "www.evil" not in body
        assert "\n# H" not in body and "**b**" not in body
        assert all(line.count("|") - line.count("\\|") in (0, 3, 5, 7) for line in body.splitlines() if line.startswith("|"))


@pytest.mark.parametrize(
    "text", ["SmolLM2-135M", "qwen2_5-7b.v1", "8,192", "llama.cpp 0.3.36", "passed", "1.0e-07", "-1.2%", "+3.0%", "mlx-lm (0.31)"]
)
def test_a_usual_name_stays_as_it_is(text: str) -> None:
    assert markdown(text) == text
