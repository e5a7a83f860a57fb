"""With a base, the whole tokenizer has to be its: each kind of change is found, whatever a text shows of it, and what is only spelling is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT, MakeModel
from family_models import make
from test_validate import extended, opened, rewritten, run

from yarn_convert import runtimes
from yarn_convert.checkpoint.manifest import manifest_path, read_manifest
from yarn_convert.compute.tokens import reading, tokenizer_of
from yarn_convert.compute.values import changed_since, other_model
from yarn_convert.conversion import window_off
from yarn_convert.errors import FormatError, Inexpressible
from yarn_convert.formats.gguf_file import Value, open_gguf
from yarn_convert.validation.generation import warnings
from yarn_convert.validation.tokenizer import check_tokenizer

Json = dict[str, Any]


def edit(path: Path, change: Callable[[Json], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def swap(vocab: dict[str, int], a: int, b: int) -> None:
    texts = {i: t for t, i in vocab.items()}
    vocab[texts[a]], vocab[texts[b]] = b, a


HF: dict[str, tuple[str, Callable[[Json], object], str]] = {
    "two rare tokens": ("tokenizer.json", lambda d: swap(d["model"]["vocab"], 230, 231), "2 of its tokens are not the base's, first 230"),
    "a merge": ("tokenizer.json", lambda d: d["model"]["merges"].reverse(), "merges are not the base's, first 0"),
    "no merge": ("tokenizer.json", lambda d: d["model"]["merges"].pop(), "merges are not the base's, first 3"),
    "an added token": ("tokenizer.json", lambda d: d["added_tokens"][0].update(special=False), "added tokens are not the base's"),
    "the normalizer": ("tokenizer.json", lambda d: d.update(normalizer={"type": "Lowercase"}), "normalizer is not the base's"),
    "the pre-tokenizer": ("tokenizer.json", lambda d: d.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}), "pre tokenizer is not"),
    "ignore_merges": ("tokenizer.json", lambda d: d["model"].update(ignore_merges=True), "ignore_merges is True, the base's False"),
    "eos": ("tokenizer_config.json", lambda d: d.update(eos_token="<|endoftext|>"), "its eos token is '<|endoftext|>', the base's '<|im_end|>'"),
    "add_bos": ("tokenizer_config.json", lambda d: d.update(add_bos_token=True), "add_bos_token is True, the base's False"),
    "a template": ("tokenizer_config.json", lambda d: d.update(chat_template="{{ evil }}"), "it has a chat template, the base none"),
    "config's eos": ("config.json", lambda d: d.update(eos_token_id=7), "its texts end at 7, the base's at 2"),
    "config's bos": ("config.json", lambda d: d.update(bos_token_id=9), "config.json: its bos_token_id is 9, the base's 1"),
    "a text made special": ("tokenizer_config.json", lambda d: d.update(extra_special_tokens={"a": "he"}), "it makes 'he' a special token"),
    "specials that are split": ("tokenizer_config.json", lambda d: d.update(split_special_tokens=True), "split_special_tokens is True"),
    "another class": ("tokenizer_config.json", lambda d: d.update(tokenizer_class="LlamaTokenizerFast"), "its tokenizer_class is LlamaTokenizer, "),
}  # fmt: skip


@pytest.mark.parametrize("kind", HF)
def test_what_changed_in_a_folder_fails(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    name, change, why = HF[kind]
    base = make_model()
    out = extended(base, tmp_path / "out")
    assert check_tokenizer(opened(out), opened(base))["verdict"] == "passed"
    edit(out / name, change)
    found = check_tokenizer(opened(out), opened(base))
    assert found["verdict"] == "failed"
    assert any(why in line for line in found["differences"]), found


def tokens_with(out: Path, index: int, text: str) -> Value:
    tokens = list(open_gguf(out).get("tokenizer.ggml.tokens"))
    tokens[index] = text
    return Value("str[]", tokens)


GGUF: dict[str, tuple[Callable[[Path], dict[str, Value | None]], str]] = {
    "a rare token": (lambda out: {"tokenizer.ggml.tokens": tokens_with(out, 240, "ĠĠĠĠ")}, "1 of its tokens are not the base's, first 240"),
    "a type": (lambda out: {"tokenizer.ggml.token_type": Value("i32[]", [3, 3, 1, *[1] * 260])}, "of another type, first 2, '<|im_end|>': normal, in the base control"),
    "a merge": (lambda out: {"tokenizer.ggml.merges": Value("str[]", ["h e", "Ġ t", "Ġt he", "i n"])}, "merges are not the base's, first 0"),
    "the pre-tokenizer": (lambda out: {"tokenizer.ggml.pre": Value("str", "llama-bpe")}, "pre-tokenizer is llama-bpe, the base's smollm"),
    "eos": (lambda out: {"tokenizer.ggml.eos_token_id": Value("u32", 5)}, "its eos token is 5 ("),
    "no eos": (lambda out: {"tokenizer.ggml.eos_token_id": None}, "its eos token is none, the base's 2"),
    "end of turn": (lambda out: {"tokenizer.ggml.eot_token_id": Value("u32", 40)}, "its eot token is 40 ("),
    "infill that ends": (lambda out: {"tokenizer.ggml.fim_pad_token_id": Value("u32", 40)}, "its fim_pad token is 40 ("),
    "add_eos": (lambda out: {"tokenizer.ggml.add_eos_token": Value("bool", True)}, "it puts a eos token beside a text, the base none"),
    "a template": (lambda out: {"tokenizer.chat_template": Value("str", "x")}, "it has a chat template, the base none"),
    "none": (lambda out: {k: None for k in open_gguf(out).fields if k.startswith("tokenizer.")}, "it has no tokenizer, and the base has one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GGUF)
@pytest.mark.parametrize("format", ["folder", "gguf"])
def test_what_changed_in_a_gguf_fails(make_model: MakeModel, tmp_path: Path, kind: str, format: str) -> None:
    changes, why = GGUF[kind]
    model = make_model()
    base = model if format == "folder" else extended(model, tmp_path / "base.gguf", method="none", scale=None)
    out = extended(model, tmp_path / "out.gguf")
    assert check_tokenizer(opened(out), opened(base))["verdict"] == "passed"
    found = check_tokenizer(opened(rewritten(out, changes(out))), opened(base))
    assert found["verdict"] == "failed"
    assert why in found["why"] or any(why in line for line in found["differences"]), found


def test_a_folder_of_a_gguf_has_its_tokenizer(make_model: MakeModel, tmp_path: Path) -> None:
    base = extended(make_model(), tmp_path / "base.gguf", method="none", scale=None)
    out = extended(base, tmp_path / "out")
    assert check_tokenizer(opened(out), opened(base)) == {"verdict": "passed", "why": "", "differences": []}
    edit(out / "generation_config.json", lambda d: d.update(eos_token_id=9))
    assert "its texts end at 9, the base's at 2" in check_tokenizer(opened(out), opened(base))["why"]


def test_every_end_of_a_folder_comes_back_from_a_gguf(make_model: MakeModel, tmp_path: Path) -> None:
    """A GGUF's keys name one, and llama.cpp finds some others by their text: of which a folder knows nothing."""
    base = make_model(config={"eos_token_id": [0, 2, 9]})
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 0, 9]}')
    gguf = extended(base, tmp_path / "out.gguf", method="none", scale=None)
    out = extended(extended(gguf, tmp_path / "long.gguf"), tmp_path / "out", method="none", scale=None)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 0, 9]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
    assert check_tokenizer(opened(out), opened(base)) == {"verdict": "passed", "why": "", "differences": []}
    edit(out / "config.json", lambda d: d.update(eos_token_id=9))
    assert check_tokenizer(opened(out), opened(base))["verdict"] == "passed", "the others are where readers look first"
    edit(out / "config.json", lambda d: d.update(eos_token_id=7))
    assert "config.json: its eos_token_id is 7, the base's [0, 2, 9]" in check_tokenizer(opened(out), opened(base))["why"]
    edit(out / "generation_config.json", lambda d: d.update(eos_token_id=[2, 0]))
    assert "its texts end at 0, 2, the base's at 0, 2, 9" in check_tokenizer(opened(out), opened(base))["why"]


@pytest.mark.parametrize("eos", [[2, -1], [2, 263], [2, 1 << 40], 2, None], ids=str)
def test_an_end_that_is_no_token_goes_nowhere(make_model: MakeModel, tmp_path: Path, eos: object) -> None:
    base = make_model(config={"eos_token_id": eos})
    assert "yarn_convert.eos_token_ids" not in open_gguf(extended(base, tmp_path / "out.gguf")).fields


def test_what_a_folder_leaves_unsaid_is_what_its_gguf_says(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model(config={"eos_token_id": None, "bos_token_id": None})
    out = extended(extended(base, tmp_path / "out.gguf"), tmp_path / "out", method="none", scale=None)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
    assert check_tokenizer(opened(out), opened(base))["verdict"] == "passed"
    edit(out / "generation_config.json", lambda d: d.update(eos_token_id=7))
    assert check_tokenizer(opened(out), opened(base))["differences"] == ["its texts end at 7, the base's at no token"]
    edit(out / "generation_config.json", lambda d: d.update(eos_token_id=2))
    edit(out / "config.json", lambda d: d.update(bos_token_id=7))
    assert check_tokenizer(opened(out), opened(base))["differences"] == ["config.json: its bos_token_id is 7, the base's None"]


def test_files_beside_the_settings_count(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model()
    edit(base / "tokenizer_config.json", lambda d: d.update(chat_template="x"))
    out = extended(base, tmp_path / "out")
    (out / "chat_template.jinja").write_text("x")  # as transformers saves it anew
    rewritten(
        gguf := extended(base, tmp_path / "out.gguf"), {"tokenizer.ggml.eot_token_id": Value("u32", 2)}
    )  # llama.cpp finds it by its text
    assert check_tokenizer(opened(gguf), opened(base))["verdict"] == "passed"
    for folder in (base, out):
        (folder / "tokenizer.model").write_bytes(b"1")
    assert check_tokenizer(opened(out), opened(base))["verdict"] == "passed"
    (out / "chat_template.jinja").write_text("y")  # which transformers takes first, and llama.cpp's converter last
    (out / "tokenizer.model").write_bytes(b"2")
    (out / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert check_tokenizer(opened(out), opened(base))["differences"] == [
        "its tokenizer.model is not the base's", "its chat template is not the base's, from 'y' on", "its texts end at 2, 7, the base's at 2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_padding_and_a_file_saved_anew_are_no_change(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    base = make_model()
    out = extended(base, tmp_path / name)
    if name == "out":
        edit(out / "tokenizer.json", lambda d: d["model"].update(merges=["Ġ t", "h e", "Ġt he", "i n"]))
        edit(out / "tokenizer_config.json", lambda d: d.update(model_max_length=4 * CONTEXT))
    else:
        old = open_gguf(out)
        padded = {
            "tokens": Value("str[]", [*old.get("tokenizer.ggml.tokens"), "[PAD263]"]),
            "token_type": Value("i32[]", [*old.get("tokenizer.ggml.token_type"), 5]),
        }
        rewritten(out, {f"tokenizer.ggml.{k}": v for k, v in padded.items()})
    assert check_tokenizer(opened(out), opened(base))["verdict"] == "passed"


def test_a_lost_tokenizer_fails_and_one_that_the_base_lacks_is_said(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model()
    out = extended(base, tmp_path / "out")
    for path in out.glob("*token*"):
        path.rename(tmp_path / path.name)
    result = run(out, base=str(base), real=False)
    assert (result["verdict"], result["reasons"]) == ("failed", ["tokenizer: it has no tokenizer, and the base has one"])
    found = check_tokenizer(opened(base), opened(out))
    assert (found["verdict"], found["why"]) == ("unchecked", "the base has no tokenizer, and the model has one")
    (out / "tokenizer.json").write_text("{}")
    assert "cannot be read as the base's can" in check_tokenizer(opened(out), opened(base))["why"]


def test_a_gguf_from_before_pre_tokenizers_had_names_is_read_by_llama_cpp(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    base = make_model()
    out = rewritten(extended(base, tmp_path / "out.gguf"), {"tokenizer.ggml.pre": None})
    text = "in the 12 hen<|im_end|>the"
    ids = list(reading(opened(out), text).ids)
    assert (ids == runtimes.tokenize(out, text).tolist() and ids[-4] == 2) or 2 in ids
    same = "the hen in the inn"
    assert list(reading(opened(out), same).ids) == tokenizer_of(opened(base)).encode(same, add_special_tokens=False).ids
    result = run(out, twin=False, tokens=4 * CONTEXT)
    assert result["studies"][0]["runtimes"][0]["verdict"] == "passed"


# -- windows, the model's other numbers, generation -------------------------------------------------------------------

MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 48, "head_dim": 16}


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_window_is_turned_off_on_purpose_only(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    base = make_model(config=MISTRAL)
    out = extended(base, tmp_path / name, sliding_window="off")
    c, b = opened(out), opened(base)
    assert window_off(c, read_manifest(out)) and other_model(c, b, window_off(c, read_manifest(out))) == ""
    manifest_path(out).unlink()
    assert window_off(c, None) == (name == "out.gguf"), "a GGUF has it in its recipe"
    assert "a window of 48" in other_model(c, b, False)
    again = extended(out, tmp_path / f"again-{name}", method="none", scale=None)
    assert window_off(opened(again), read_manifest(again)) == (name == "out.gguf"), "what is made of it says so too"
    if name == "out":
        kept = extended(base, tmp_path / "kept")
        assert other_model(opened(kept), b) == ""
        edit(kept / "config.json", lambda d: d.update(sliding_window=32))
        assert "sliding_window is 32, the base's 48" in other_model(opened(kept), b)


def test_a_window_of_mistral_is_not_lost_on_the_way_through_a_gguf_either(make_model: MakeModel, tmp_path: Path) -> None:
    """It is a llama there, which has no window in a folder."""
    base = make_model(config={**MISTRAL, "sliding_window": 128})
    gguf = extended(base, tmp_path / "base.gguf", method="none", scale=None)
    for name in ("out", "out.gguf"):
        with pytest.raises(Inexpressible, match="128 tokens"):
            extended(gguf, tmp_path / name)
        assert other_model(opened(extended(gguf, tmp_path / f"2-{name}", scale=2)), opened(base)) == ""
        out = extended(gguf, tmp_path / name, sliding_window="off")
        assert other_model(opened(out), opened(base), window_off(opened(out), read_manifest(out))) == ""
        assert "a window of 128" in other_model(opened(out), opened(base))
        assert "a window of 128" in other_model(opened(out), opened(gguf))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps is 0.01"),
        ({"attention_bias": True}, "attention_bias is True"),
    ],
    ids=str,
)
def test_without_a_base_the_manifest_knows_what_config_json_said(make_model: MakeModel, tmp_path: Path, changes: Json, why: str) -> None:
    out = extended(make_model(), tmp_path / "out")
    assert changed_since(opened(out), read_manifest(out)) == ""
    edit(out / "config.json", lambda d: d.update(changes))
    assert why in changed_since(opened(out), read_manifest(out))


def test_a_key_of_a_gguf_that_no_row_names_has_to_be_the_bases(make_model: MakeModel, tmp_path: Path) -> None:
    base = extended(make_model(), tmp_path / "base.gguf", method="none", scale=None)
    out = extended(base, tmp_path / "out.gguf")
    assert other_model(opened(out), opened(base)) == ""
    assert "logit_scale is 2.0" in other_model(opened(rewritten(out, {"llama.logit_scale": Value("f32", 2.0)})), opened(base))


@pytest.mark.parametrize("changes", [{"is_causal": False}, {"sliding_window": 16}, {"a_vendors_own": 2}, {"quantization_config": {"load_in_4bit": True}}, {"auto_map": {"AutoModel": "other.Model"}}], ids=str)  # fmt: skip
def test_a_key_that_no_row_names_has_to_be_the_bases_in_a_folder(make_model: MakeModel, tmp_path: Path, changes: Json) -> None:
    base = make_model(config={"a_vendors_own": 1})
    out = extended(base, tmp_path / "out")
    assert other_model(opened(out), opened(base)) == ""
    edit(out / "config.json", lambda d: d.update(changes))
    assert next(iter(changes)) in other_model(opened(out), opened(base))
    assert next(iter(changes)) in changed_since(opened(out), read_manifest(out))


@pytest.mark.parametrize("key", ["sliding_window", "attention.causal", "logit_scale"])
@pytest.mark.parametrize("format", ["folder", "gguf"])
def test_a_key_that_no_row_names_has_to_be_the_bases_in_a_gguf(make_model: MakeModel, tmp_path: Path, key: str, format: str) -> None:
    model = make_model()
    base = model if format == "folder" else extended(model, tmp_path / "base.gguf", method="none", scale=None)
    out = extended(model, tmp_path / "out.gguf")
    old = {"llama.attention.causal": Value("bool", True), "llama.tensor_data_layout": Value("str", "Meta AI original pth")}
    assert other_model(opened(rewritten(out, old)), opened(base)) == "", "old files say so"
    value = Value("bool", False) if key == "attention.causal" else Value("f32", 2.0)
    assert key in other_model(opened(rewritten(out, {f"llama.{key}": value})), opened(base))


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_another_architecture_with_the_same_tensors_is_another_model(tmp_path: Path, name: str) -> None:
    """Granite's multipliers are no keys of a Llama, so that nothing else differs: reference and runtime would both leave them out."""
    base = make("granite", tmp_path / "granite")
    out = extended(base, tmp_path / "out")
    edit(out / "config.json", lambda d: d.update(model_type="llama", architectures=["LlamaForCausalLM"]))
    if name == "out.gguf":
        base, out = (extended(x, tmp_path / f"{x.name}.gguf", method="none", scale=None) for x in (base, out))
    assert other_model(opened(out), opened(base)) == "its architecture is llama, the base's granite"


def test_a_generation_config_that_is_no_json_is_said_and_makes_no_gguf(make_model: MakeModel, tmp_path: Path) -> None:
    """transformers passes over it; a GGUF would lose where texts end and how they are drawn, and says nothing."""
    out = extended(make_model(), tmp_path / "out")
    (out / "generation_config.json").write_text('{"eos_token_id": 2,')
    (line,) = warnings(opened(out))
    assert line.startswith("generation_config.json is not valid JSON")
    with pytest.raises(FormatError, match=r"generation_config\.json is not valid JSON"):
        extended(out, tmp_path / "out.gguf", method="none", scale=None)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"eos_token_id": 2}, ""),
        ({"eos_token_id": [5, 2], "do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0}, ""),
        ({"eos_token_id": 7}, "generation ends at 7, the tokenizer's eos is 2"),
        ({"eos_token_id": 999}, "generation_config.json: eos_token_id names the token 999, of 263"),
        ({"eos_token_id": 2, "max_length": 64}, "max_length 64 ends texts before the 256 tokens"),
        ({"eos_token_id": 2, "do_sample": True, "temperature": 0.0}, "temperature is 0.0, and has to be above 0"),
        ({"eos_token_id": 2, "top_p": 0}, "top_p is 0"),
        ({"eos_token_id": 2, "max_new_tokens": "many"}, "max_new_tokens is 'many', not a number"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id is [2, '3'], not a token's id"),
        ({"eos_token_id": 2, "temperature": "0.6"}, "temperature is '0.6', and has to be above 0"),
        ({"eos_token_id": 2, "repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
    ],
    ids=str,
)
def test_generation_settings_that_break_generation_are_said(make_model: MakeModel, tmp_path: Path, said: Json, line: str) -> None:
    out = extended(make_model(), tmp_path / "out")
    (out / "generation_config.json").write_text(json.dumps(said))
    found = warnings(opened(out))
    assert any(line in x for x in found) if line else found == []
    if "max_length" in said:
        result = run(out, real=False)
        assert result["verdict"] == "passed" and result["warnings"] == found, "said, and no failure of the conversion"
