"""config.json: a member of another type than its readers take is named, whichever it is and whatever the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile_models import hf_folder

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.config import TYPES, RopeObject, checked_config
from yarn_convert.checkpoint.source import resolve
from yarn_convert.errors import FormatError, YarnConvertError
from yarn_convert.families import FAMILIES, MODEL_TYPES

KINDS = {"u32": int, "f32": float, "bool": bool, "str": str}
WRONG: dict[Any, Any] = {int: "7", float: [1.0], bool: 1, str: 7, dict: "x", list[str]: {}, list[int]: {}, RopeObject: "yarn"}


def test_every_member_that_the_families_and_readers_name_has_its_type() -> None:
    wanted = {"head_dim": int, "rope_theta": float}
    for family in FAMILIES:
        derived = {*family.hf.unsaid, "latent_key", "latent_value"}
        wanted |= {key: KINDS[family.gguf_key(key)[1]] for key in family.hparams if key not in derived}
        wanted |= {own: TYPES[standard] for standard, own in family.hf.renamed.items() if standard in TYPES}
        wanted |= {key.removeprefix("!"): bool for key in family.hf.switches if key}
    for facts in MODEL_TYPES.values():
        wanted |= dict.fromkeys((facts.theta_key, facts.partial_key), float) | ({facts.head_key: int} if facts.head_key else {})
    wanted = {key: int if type_ == int | list[int] else type_ for key, type_ in wanted.items()}
    found = {key: TYPES.get(key) for key in wanted}
    assert {key: int if type_ == int | list[int] else type_ for key, type_ in found.items()} == wanted


@pytest.mark.parametrize("key", TYPES)
@pytest.mark.parametrize("model_type", ["llama", "falcon", "deepseek_v3", "gemma3_text"])
def test_another_type_is_one_error_that_names_the_member(key: str, model_type: str) -> None:
    with pytest.raises(FormatError, match=rf"^config.json: {key} is ") as error:
        checked_config({"model_type": model_type, key: WRONG.get(TYPES[key], 1.5)})
    assert error.value.hint == "fix the model's config.json"


@pytest.mark.parametrize("model_type", sorted({f.model_type for f in FAMILIES}))
def test_no_value_of_a_size_is_a_traceback(model_type: str, tmp_path: Path) -> None:
    family, folder = next(f for f in FAMILIES if f.model_type == model_type), hf_folder(tmp_path / "m")
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": 32}
    whole = {key for key in (*family.hparams, *family.hf.renamed.values(), *sizes, "n_head") if TYPES.get(key) is int}
    for key in whole:
        for value in ({}, None, 0, -1, 10**300):
            config = {"model_type": model_type, "architectures": [family.hf.architectures[0]], **sizes, key: value}
            (folder / "config.json").write_text(json.dumps(config))
            with pytest.raises(YarnConvertError) as error:  # not all that it needs is there
                open_checkpoint(resolve(str(folder)))
            assert error.value.hint
            assert error.value.message.isprintable()


def test_null_and_what_is_not_read_are_as_they_were() -> None:
    config = {"model_type": "llama", **dict.fromkeys(TYPES.keys() - {"model_type"}), "of_another_world": [{}]}
    assert checked_config(config) is config
    nested = {"text_config": {"rope_parameters": {"full_attention": {"factor": []}}}}
    with pytest.raises(FormatError, match=r"text_config of config.json: rope_parameters\.full_attention\.factor is a list, not a number"):
        checked_config(nested)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\ufeff{}", "byte order mark"),
        ("[" * 5000, "nested"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
    ],
)
def test_a_text_beyond_the_limits_is_no_json(text: str, says: str, tmp_path: Path) -> None:
    (hf_folder(tmp_path / "m") / "config.json").write_text(text)
    with pytest.raises(FormatError, match=says):
        open_checkpoint(resolve(str(tmp_path / "m")))
