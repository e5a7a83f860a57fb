"""Tokenizer files: a member of another type is one error, in every command that reads it, whatever is asked of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel

from yarn_convert.conversion import prepare
from yarn_convert.errors import YarnConvertError
from yarn_convert.options import ConvertOptions, Recipe

KINDS: tuple[Any, ...] = (7, "x", True, [1], [[]], {"a": 1}, {"content": 7}, [{"content": []}], None, 1e300, -1)
MEMBERS = {
    "tokenizer.json": [
        "added_tokens", "added_tokens.0", "added_tokens.0.id", "added_tokens.0.content", "added_tokens.0.special", "model", "model.type", "model.vocab",
        "model.merges", "model.merges.0", "model.byte_fallback", "normalizer", "pre_tokenizer", "pre_tokenizer.type", "post_processor", "decoder",
    ],
    "tokenizer_config.json": [
        "added_tokens_decoder", "chat_template", "additional_special_tokens", "extra_special_tokens", "bos_token", "eos_token", "add_bos_token",
        "model_max_length", "add_prefix_space",
    ],
    "special_tokens_map.json": ["bos_token", "additional_special_tokens", "mask_token"],
    "added_tokens.json": ["<extra>"],
    "chat_template.json": ["chat_template"],
}  # fmt: skip


@pytest.mark.parametrize("file", MEMBERS)
def test_a_member_of_another_type_is_one_error(file: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    path = model / file
    sound = json.loads(path.read_text()) if path.exists() else {}
    refused = 0
    for member in MEMBERS[file]:
        for kind in KINDS:
            broken = json.loads(json.dumps(sound))
            *steps, last = member.split(".")
            try:
                node = broken
                for step in steps:
                    node = node[int(step)] if isinstance(node, list) else node[step]
                node[int(last) if isinstance(node, list) else last] = kind
            except (LookupError, TypeError):
                continue
            path.write_text(json.dumps(broken))
            for out, name in (("gguf", "o.gguf"), ("safetensors", "o")):
                try:
                    prepare(str(model), ConvertOptions(Recipe(scale=4.0), out=out, output=tmp_path / name))
                except YarnConvertError as e:
                    refused += 1
                    assert e.hint and e.message.isprintable()
    assert refused or file in ("special_tokens_map.json", "added_tokens.json"), "which this model does not need"
