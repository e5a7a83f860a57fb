"""Tokenizers of the model families beyond Llama: real vocabularies against what HF said of them, released forms against
llama.cpp's reading, and keys against its converter's, with every difference named.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("gguf")
pytest.importorskip("sentencepiece")
from test_tokenizers import (  # noqa: E402
    DIFFERS,
    LLAMA3,
    Keys,
    byte_level,
    comparable,
    config_of,
    corpus,
    differences,
    entry,
    keys_of,
    llama_cpp_source,
    plain_keys,
    read_keys,
    run_converter,
    spm,
    texts,
    unassigned,
    unpack,
    write,
)

from yarn_convert.errors import Unsupported  # noqa: E402
from yarn_convert.tokenizers import PRETOKENIZERS, GgufValue, caveats, files_of, fitting_name, to_gguf, to_hf  # noqa: E402
from yarn_convert.tokenizers.caveats import BY_TEXT  # noqa: E402
from yarn_convert.tokenizers.pretokenizers import recognize  # noqa: E402
from yarn_convert.tokenizers.sentencepiece_model import field  # noqa: E402

__all__ = ["corpus", "llama_cpp_source"]  # fixtures

SPECIAL = ("<s>", "</s>", "<|end|>", "<|user|>", "<|endoftext|>", "<|im_end|>", "<BOS_TOKEN>", ">>TITLE<<", "[gMASK]", "<sop>")
SPECIAL += ("<table>", "<start_of_turn>", "\n\n", "    ", " " * 40, "<fim_prefix>", "<|start|>", "[INST]", "[UNUSED_TOKEN_3]")


# After Phi-3's special tokens llama.cpp drops white space as isspace() of C sees it, the tokenizer as Unicode does.
STRIPPED = re.compile(r">\s*[^\x00-\x7f\S]")


def strings_for(pre: object, count: int, seed: int) -> list[str]:
    """`count` texts with special tokens inside, less those that are known to differ for this pre-tokenizer."""
    known = DIFFERS.get(str(pre), lambda text: False)
    kept = [text for text in texts(count, seed, SPECIAL) if not known(text) and not unassigned(text)]
    assert len(kept) > count / 4
    return kept


# ------------------------------------------------------------------------------------------------- real vocabularies

REAL = {"falcon": "falcon", "command-r": "command-r", "gpt-neox": "olmo", "mpt": "olmo", "gpt-2": "gpt-2", "refact": "refact"}
REAL |= {name: name for name in ("starcoder", "qwen2", "llama-bpe", "deepseek-coder", "deepseek-llm")}


def real(name: str, source: Path) -> dict[str, GgufValue]:
    path = source / "models" / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("this source distribution has no test vocabularies")
    keys = read_keys(path)
    return keys | ({"tokenizer.ggml.pre": ("str", "olmo")} if name == "gpt-neox" else {})  # it is older than the key


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_have_the_hash_that_the_converter_knows(name: str, llama_cpp_source: Path) -> None:
    """Behind a row's form, a real vocabulary reads the converter's check text to the ids that the released one gave."""
    source = (llama_cpp_source / "conversion" / "base.py").read_text(encoding="utf-8")
    check = re.search(r"chktxt = ('.*')\n", source)
    assert check
    text = check[1][1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
    known = dict(re.findall(r'chkhsh == "(\w{64})":\n *# ref: \S+\n *res = "([^"]+)"', source))
    tokenizer = tokenizers.Tokenizer.from_str(to_hf(plain_keys(real(name, llama_cpp_source)))["tokenizer.json"].decode())
    assert known.get(sha256(str(tokenizer.encode(text).ids).encode()).hexdigest()) == REAL[name]


@pytest.mark.parametrize("name", ["falcon", "command-r", "mpt"])
def test_real_vocabularies_give_the_ids_that_hf_gave(name: str, llama_cpp_source: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(to_hf(plain_keys(real(name, llama_cpp_source)))["tokenizer.json"].decode())
    path = llama_cpp_source / "models" / f"ggml-vocab-{name}.gguf"
    strings = Path(f"{path}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(strings) > 40
    for text, ids in zip(strings, expected, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text


@pytest.mark.parametrize("name", ["falcon", "command-r", "gpt-neox", "refact", "qwen2", "phi-3"])
def test_real_vocabularies_read_text_alike(name: str, llama_cpp_source: Path, tmp_path: Path) -> None:
    keys = {"general.name": ("str", name), **real(name, llama_cpp_source)}
    hf = tokenizers.Tokenizer.from_str(to_hf(plain_keys(keys))["tokenizer.json"].decode())
    strings = strings_for(keys["tokenizer.ggml.pre"][1], 3000, 7)
    if name == "phi-3":
        strings = [text for text in strings if not STRIPPED.search(text)]
    if name in ("phi-3", "qwen2"):  # special by its text for llama.cpp; a plain added token and a plain token here
        strings = [text for text in strings if "</s>" not in text]
    parses = (True,) if name == "falcon" else (True, False)  # llama.cpp's regex for falcon is slow
    assert differences(keys, hf, strings, tmp_path / "vocab.gguf", parses) == []


@pytest.mark.parametrize("text", ["cafe\u0301", "\u212a", "\u1100\u1161"])
def test_normalization_is_really_missing(text: str, llama_cpp_source: Path, tmp_path: Path) -> None:
    """What DIFFERS leaves out does differ, with GPT-NeoX's real vocabulary."""
    keys = real("gpt-neox", llama_cpp_source)
    hf = tokenizers.Tokenizer.from_str(to_hf(plain_keys(keys))["tokenizer.json"].decode())
    assert DIFFERS["olmo"](text)
    assert len(differences(keys, hf, [text], tmp_path / "vocab.gguf", (True,))) == 1


# ----------------------------------------------------------------------------------------------------- released forms


def decoder_entry(content: str, special: bool = True, **flags: bool) -> Keys:
    return {**entry(content, special), **flags}


def _whole(step: Keys) -> Keys:
    return {**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step


def bpe(corpus: list[str], form: str, added: list[Keys], size: int = 700, lead: tuple[str, ...] = (), **model: Any) -> Keys:
    """tokenizer.json in the form of a row of PRETOKENIZERS, and tokenizer_config.json, with `added` after the vocabulary."""
    row = next(row for row in PRETOKENIZERS if row.name == form)
    shell = {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None}
    shell |= {"truncation": None, "padding": None, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    shell["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_whole(step) for step in row.steps]}
    data = byte_level(corpus, tokenizers.Tokenizer.from_str(json.dumps(shell)).pre_tokenizer, size)
    data["normalizer"] = row.normalizers[0] if row.normalizers else None
    data["model"] |= {"ignore_merges": row.ignore_merges, **model}
    base = len(data["model"]["vocab"])
    added = [{key: flag for key, flag in token.items() if key != "__type"} for token in added]
    data["added_tokens"] = [{"id": base + i, **token} for i, token in enumerate(added)]
    ids = {token["content"]: base + i for i, token in enumerate(added)}
    special = [{"SpecialToken": {"id": text, "type_id": 0}} for text in lead]
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template: Keys = {"type": "TemplateProcessing", "single": [*special, first], "pair": [*special, first, second]}
    template["special_tokens"] = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in lead}
    plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    data["post_processor"] = template if lead else plain
    decoder = {str(base + i): token for i, token in enumerate(added)}
    config: Keys = {"added_tokens_decoder": decoder, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": data, "tokenizer_config.json": config, "vocab_size": base + len(added) + 5, "pre": form}


def named(case: Keys, architecture: str, model_type: str, **tokens: Any) -> Keys:
    """A case with its architecture and the named special tokens of tokenizer_config.json."""
    case["tokenizer_config.json"] |= {f"{name}_token": text for name, text in tokens.items()}
    return {**case, "architectures": [architecture], "model_type": model_type, **SHAPE}


SHAPE: Keys = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
END: Keys = {"__type": "AddedToken", **entry("<|endoftext|>")}
FIM = [entry(f"<{name}>") for name in ("fim_prefix", "fim_middle", "repo_name", "pr_status")]


def byte_level_cases(corpus: list[str]) -> dict[str, Keys]:
    spaces = [entry(" " * count, False, True) for count in (24, 8, 4, 3, 2)]
    turns = [entry(text) for text in ("<|start|>", "<|end|>", "<|message|>", "<|return|>", "<|call|>")]
    glm = [entry(text) for text in ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|observation|>")]
    bos = entry("<BOS_TOKEN>")
    stable = bpe(corpus, "stablelm2", [END])
    stable["tokenizer.json"]["normalizer"] = None
    olmo2 = bpe(corpus, "dbrx", [END, entry("|||PHONE|||", False)])
    smollm3 = bpe(corpus, "llama-bpe", [END, entry("<|im_end|>")])
    smollm3["tokenizer.json"]["post_processor"] = None
    cases = {
        "gpt_neox": named(bpe(corpus, "olmo", [END, entry("<|padding|>"), *spaces]), "GPTNeoXForCausalLM", "gpt_neox", bos=END, eos=END),
        "falcon": named(bpe(corpus, "falcon", [entry(">>TITLE<<"), END]), "FalconForCausalLM", "falcon", eos="<|endoftext|>"),
        "cohere": named(
            bpe(corpus, "command-r", [bos, END], lead=("<BOS_TOKEN>",)), "CohereForCausalLM", "cohere", bos="<BOS_TOKEN>", eos=END
        ),
        "cohere2": named(bpe(corpus, "command-r", [bos, END], lead=("<BOS_TOKEN>",)), "Cohere2ForCausalLM", "cohere2", bos="<BOS_TOKEN>"),
        "qwen3": named(bpe(corpus, "qwen2", [END, entry("<tool_call>", False)]), "Qwen3ForCausalLM", "qwen3", eos=END, pad=END),
        "stablelm": named(stable, "StableLmForCausalLM", "stablelm", bos=END, eos=END),
        "olmo2": named(olmo2, "Olmo2ForCausalLM", "olmo2", eos=END),
        "starcoder2": named(bpe(corpus, "starcoder", [END, *FIM]), "Starcoder2ForCausalLM", "starcoder2", bos=END, eos=END)
        | {"vocab_size": 49152},
        "granite": named(bpe(corpus, "smollm", [END]), "GraniteForCausalLM", "granite", eos=END)
        | {"vocab_size": 49152, "attention_multiplier": 1.0},
        "glm": named(bpe(corpus, "glm4", glm, lead=("[gMASK]", "<sop>")), "GlmForCausalLM", "glm", pad=END),
        "glm4": named(bpe(corpus, "glm4", glm, lead=("[gMASK]", "<sop>")), "Glm4ForCausalLM", "glm4", eos=END, pad=END),
        "glm4_moe": named(bpe(corpus, "glm4", glm, lead=("[gMASK]", "<sop>")), "Glm4MoeForCausalLM", "glm4_moe", eos=END),
        "gpt_oss": named(bpe(corpus, "gpt-4o", [END, *turns], ignore_merges=True), "GptOssForCausalLM", "gpt_oss", eos="<|return|>"),
        "smollm3": named(smollm3, "SmolLM3ForCausalLM", "smollm3", eos="<|im_end|>"),
    }
    cases["smollm3"]["pre"] = "smaug-bpe"  # its real vocabulary has the hash of that name
    cases["gpt_oss"] |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    return cases


def sentencepiece_cases(corpus: list[str], root: Path) -> dict[str, Keys]:
    plain = spm(corpus, root, "plain")
    base: Keys = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    three = [decoder_entry("<unk>"), decoder_entry("<s>"), decoder_entry("</s>", False, rstrip=True)]
    phi = dict(enumerate(three)) | {900: decoder_entry("<|endoftext|>"), 901: decoder_entry("<|user|>", rstrip=True)}
    phi |= {902: decoder_entry("<|end|>", rstrip=True), 903: decoder_entry("<|x|>", False, rstrip=True)}
    settings = {
        **base,
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {str(i): token for i, token in phi.items()},
    }
    file = {"added_tokens": [{"id": index, **token} for index, token in phi.items()]}
    case: Keys = {"tokenizer.model": plain, "tokenizer.json": file, "tokenizer_config.json": settings, "vocab_size": 910}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "original_max_position_embeddings": 64}}
    cases = {"phi3": named(case, "Phi3ForCausalLM", "phi3") | rope}
    unused = [f"[UNUSED_TOKEN_{i}]" for i in range(5)]
    intern = spm(corpus, root, "intern", user_defined_symbols=unused) + field(1, field(1, b"\0") + field(2, -900.0))
    extra = {"0": entry("<unk>"), "1": entry("<s>"), "2": entry("</s>"), "3": entry("<|im_start|>"), "4": entry("<|im_end|>")}
    case = {"tokenizer.model": intern, "tokenizer_config.json": {**base, "added_tokens_decoder": extra}, "vocab_size": 901}
    cases["internlm2"] = named(case, "InternLM2ForCausalLM", "internlm2") | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    case = {"tokenizer.model": plain, "tokenizer.json": {"added_tokens": file["added_tokens"][:2]}, "vocab_size": 900}
    moe = {"num_local_experts": 4, "num_experts_per_tok": 2}
    cases["mixtral"] = named({**case, "tokenizer_config.json": dict(base)}, "MixtralForCausalLM", "mixtral") | moe
    gemma = gemma_case(corpus, root)
    cases["gemma2"] = named(json_copy(gemma), "Gemma2ForCausalLM", "gemma2")
    cases["gemma3"] = named(json_copy(gemma), "Gemma3ForCausalLM", "gemma3_text") | {"attn_logit_softcapping": None}
    cases["gemma3n"] = named(json_copy(gemma), "Gemma3nForCausalLM", "gemma3n_text") | GEMMA3N
    cases["gemma4"] = named(gemma4_case(gemma, root), "Gemma4ForCausalLM", "gemma4_text") | GEMMA4
    return cases


GEMMA_USER = ["<mask>", "[@BOS@]", "<unused0>", "\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>"]


def gemma_case(corpus: list[str], root: Path) -> Keys:
    """Gemma's form: no space before the text, runs of spaces and of line feeds as symbols of the user, markup tokens."""
    options = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    model = spm(corpus, root, "gemma", add_dummy_prefix=False, user_defined_symbols=GEMMA_USER, control_symbols=turns, **options)
    sp = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=model)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *turns]
    tokens = {sp.piece_to_id(text): entry(text, text in special) for text in [*special, *GEMMA_USER]}
    settings: Keys = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
    settings["added_tokens_decoder"] = {str(index): token for index, token in sorted(tokens.items())}
    added = [{"id": index, **token} for index, token in sorted(tokens.items())]
    return {"tokenizer.model": model, "tokenizer.json": {"added_tokens": added}, "tokenizer_config.json": settings, "vocab_size": 912}


GEMMA3N = {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 900}  # fewer than vocab_size, which counts
GEMMA4 = {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 16, "global_head_dim": 16}
SHOWN = ("<|channel>", "<turn|>")


def gemma4_case(gemma: Keys, root: Path) -> Keys:
    """Gemma's vocabulary in tokenizer.json alone, with control tokens of Gemma 4, one of which is to be shown."""
    keys = plain_keys(keys_of(write(root / "gemma-as-4", json_copy(gemma) | {"model_type": "gemma3_text", "vocab_size": 900})))
    data, settings = gemma_json(keys), json_copy(gemma)["tokenizer_config.json"]
    for text, index in zip(SHOWN, range(900, 902), strict=True):
        data["added_tokens"].append({"id": index, **entry(text)})
        settings["added_tokens_decoder"][str(index)] = entry(text)
    return {"tokenizer.json": data, "tokenizer_config.json": settings, "vocab_size": 902}


def json_copy(case: Keys) -> Keys:
    return {name: data if isinstance(data, bytes) else json.loads(json.dumps(data)) for name, data in case.items()}


NAMES = (
    "gpt_neox",
    "falcon",
    "cohere",
    "cohere2",
    "qwen3",
    "stablelm",
    "olmo2",
    "starcoder2",
    "granite",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "smollm3",
)
NAMES += ("phi3", "internlm2", "mixtral", "gemma2", "gemma3", "gemma3n", "gemma4")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    cases = byte_level_cases(corpus) | sentencepiece_cases(corpus, root)
    assert tuple(cases) == NAMES
    return {name: write(root / name, case) for name, case in cases.items()}


@pytest.fixture(scope="module")
def oracle(families: dict[str, Path], llama_cpp_source: Path) -> dict[str, dict[str, GgufValue]]:
    return run_converter(families, llama_cpp_source)


PRE, BOS = "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token"
TOKENS, TYPE = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
REASONS: dict[str, dict[str, Any]] = {
    # Recognized by its hash, which Smaug's Llama 3 has too; ignore_merges tells the two apart. The name that fits adds a
    # BOS unless it is told not to.
    "smollm3": {PRE: ("str", "smaug-bpe"), BOS: None},
}


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_converters(name: str, families: dict[str, Path], oracle: dict[str, Any]) -> None:
    ours, theirs = comparable(keys_of(families[name])), comparable(oracle[name])
    for key, value in REASONS.get(name, {}).items():
        assert theirs.pop(key, None) == value
        assert ours.pop(key) != value
    if name == "internlm2":  # the piece U+0000, which the converter makes a dragon: the text "🐉" is then read as that piece
        nul = 900
        assert theirs["tokenizer.ggml.tokens"][1][nul] == "🐉"  # type: ignore[index]
        for key, value in (("tokens", f"[PAD{nul}]"), ("scores", -10000.0), ("token_type", 5)):
            theirs[f"tokenizer.ggml.{key}"][1][nul] = value  # type: ignore[index]
    if name == "gemma4":  # the converter takes added tokens for plain pieces, or plain words, if tokenizer_config.json does not name them
        kinds, theirs[TYPE] = theirs[TYPE][1], ours[TYPE]  # type: ignore[index]
        changed = {text for text, one, other in zip(ours[TOKENS][1], ours[TYPE][1], kinds, strict=True) if one != other}  # type: ignore[index]
        assert changed == {t for t in GEMMA_USER if "▁" not in t} - {"<mask>"} | {"<start_of_turn>", "<end_of_turn>", "<turn|>"}
    assert ours == theirs


def test_the_forms_are_named_by_themselves(families: dict[str, Path]) -> None:
    named = {name: plain_keys(keys_of(folder)).get(PRE, "default") for name, folder in families.items()}
    assert named == {name: (folder / "pre.txt").read_text() or "default" for name, folder in families.items()} | {"smollm3": "llama-bpe"}


def test_what_holds_for_llama_alone_is_not_done_for_others(families: dict[str, Path]) -> None:
    """StarCoder2 has the vocab_size that the converter takes for a granite; so has Code Llama's a Phi-3."""
    assert keys_of(families["granite"])[BOS] == ("bool", False)
    config = config_of(families["starcoder2"])
    edited = {**json.loads((families["starcoder2"] / "tokenizer.json").read_bytes()), "post_processor": None}
    (families["starcoder2"] / "tokenizer.json").write_text(json.dumps(edited))
    assert BOS not in to_gguf(families["starcoder2"], config)
    assert BOS in to_gguf(families["starcoder2"], {**config, "model_type": "llama"})
    keys = to_gguf(families["phi3"], {**config_of(families["phi3"]), "vocab_size": 32016})
    assert "tokenizer.ggml.eot_token_id" not in keys


# Tokens that llama.cpp splits off, or does not, whatever it is told of special tokens and whatever their type in the file:
# it makes those of gpt-oss USER_DEFINED, and </s>, which Phi-3 has as a plain added token, CONTROL (llama-vocab.cpp, load).
STUBBORN = {"gpt_oss": ("<|start|>", "<|message|>", "<|end|>"), "phi3": ("</s>",)}


@pytest.mark.parametrize("name", NAMES)
def test_same_ids_as_hf(name: str, families: dict[str, Path], tmp_path: Path) -> None:
    """llama.cpp with our keys, against the folder's own tokenizer.json, or to_hf's where the folder has a tokenizer.model."""
    keys = keys_of(families[name])
    source = families[name] / "tokenizer.json"
    if (families[name] / "tokenizer.model").is_file():
        if name == "phi3":
            keys["general.name"] = ("str", "Phi-3-tiny")
        source = unpack(to_hf(plain_keys(keys)), tmp_path) / "tokenizer.json"
    hf = tokenizers.Tokenizer.from_file(str(source))
    strings = strings_for(keys.get(PRE, ("str", "default"))[1], 1000 if name == "gpt_oss" else 2000, 11)
    if name == "phi3":
        strings = [text for text in strings if not STRIPPED.search(text)]
    assert differences(keys, hf, strings, tmp_path / "vocab.gguf", (True,)) == []
    strings = [text for text in strings if not any(token in text for token in STUBBORN.get(name, ()))]
    assert differences(keys, hf, strings, tmp_path / "vocab.gguf", (False,)) == []


@pytest.mark.parametrize("name", NAMES)
def test_to_hf_and_back_gives_the_same_keys(name: str, families: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(families[name])
    keys = plain_keys(keys_of(families[name]))
    size = {"vocab_size": len(keys["tokenizer.ggml.tokens"]), "model_type": config["model_type"]}
    again = plain_keys(to_gguf(unpack(to_hf(keys), tmp_path), size))
    assert again == keys


# --------------------------------------------------------------------------- a folder by way of a GGUF, against the first

LOST = {  # what no GGUF can say, or its converter says otherwise
    "stablelm": ["its normalizer is not the base's"],  # llama.cpp applies none, and the row has the released one's
    "glm": ["its post processor is not the base's"],  # which puts two tokens before a text
    "glm4": ["its post processor is not the base's"],
    "glm4_moe": ["its post processor is not the base's"],
    "internlm2": ["its eos token is '<|im_end|>', the base's '</s>'", "its texts end at 4, the base's at 2"],
}
SPELLINGS = ("phi3", "mixtral", "gemma2")


def base_of(families: dict[str, Path], name: str, folder: Path) -> Path:
    """A case with a whole tokenizer.json, in another spelling than `to_hf`'s."""
    shutil.copytree(families[name], folder)
    if (folder / "tokenizer.model").exists():
        data = (
            gemma_json(plain_keys(keys_of(folder))) if "gemma" in name else json.loads(to_hf(plain_keys(keys_of(folder)))["tokenizer.json"])
        )
        if name == "mixtral":
            metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
            data |= {"normalizer": None, "pre_tokenizer": metaspace}
        (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def back(base: Path, folder: Path) -> Path:
    """What a GGUF of the base becomes: its tokenizer, and the ids in config.json."""
    keys = plain_keys(keys_of(base))
    ids = {
        f"{hf}_token_id": keys.get(f"tokenizer.ggml.{gguf}_token_id") for hf, gguf in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(base) | ids))
    return unpack(to_hf(keys), folder)


def unlike_base(out: Path, base: Path) -> list[str]:
    from yarn_convert.checkpoint import open_checkpoint
    from yarn_convert.checkpoint.source import resolve
    from yarn_convert.validation.tokenizer import check_tokenizer

    found = check_tokenizer(*(open_checkpoint(resolve(str(path), weights=False)) for path in (out, base)))
    assert found["verdict"] == ("failed" if found["differences"] else "passed"), found
    return list(found["differences"])


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_by_way_of_a_gguf_has_the_tokenizer_of_the_first(name: str, families: dict[str, Path], tmp_path: Path) -> None:
    base = base_of(families, name, tmp_path / "base")
    assert unlike_base(back(base, tmp_path / "out"), base) == LOST.get(name, [])


def changed_json(out: Path, change: Callable[[Keys], object]) -> None:
    data = json.loads((out / "tokenizer.json").read_text())
    change(data)
    (out / "tokenizer.json").write_text(json.dumps(data))


def swap_tokens(data: Keys) -> None:
    texts = {index: text for text, index in data["model"]["vocab"].items()}
    data["model"]["vocab"] |= {texts[600]: 601, texts[601]: 600}


PLANTED: dict[str, tuple[Callable[[Keys], object], str]] = {
    "two tokens": (swap_tokens, "of its tokens are not the base's"),
    "an added token": (lambda d: d["added_tokens"].pop(), "its added tokens are not"),
    "what an added token strips": (lambda d: d["added_tokens"][0].update(lstrip=True), "its added tokens are not"),
    "a merge": (lambda d: d["model"]["merges"].pop(), "its merges are not"),
    "the decoder": (lambda d: d.update(decoder={"type": "Fuse"}), "its decoder is not"),
    "the splits": (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "its pre tokenizer is not"),
    "the normalizer": (lambda d: d.update(normalizer={"type": "Lowercase"}), "its normalizer is not"),
    "what goes before a text": (lambda d: d.update(post_processor=None), "its post processor is not"),
    "what is unknown": (lambda d: d["model"].update(byte_fallback=not d["model"]["byte_fallback"]), "its byte_fallback is"),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("name", ["cohere", "gpt_oss", *SPELLINGS])
def test_what_changes_behind_a_gguf_is_found(name: str, kind: str, families: dict[str, Path], tmp_path: Path) -> None:
    base = base_of(families, name, tmp_path / "base")
    out, (change, why) = back(base, tmp_path / "out"), PLANTED[kind]
    changed_json(out, change)
    found = unlike_base(out, base)
    nothing = name == "gpt_oss" and kind == "what goes before a text"  # there goes nothing
    assert found == [] if nothing else any(why in line for line in found), found


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_changed_sentencepiece_model_is_found(name: str, families: dict[str, Path], tmp_path: Path) -> None:
    base = base_of(families, name, tmp_path / "base")
    out = back(base, tmp_path / "out")
    path = out / "tokenizer.model"
    path.write_bytes(path.read_bytes() + field(3, field(1, b"nmt_nfkc") + field(3, int(name != "gemma2"))))
    assert "its tokenizer.model is not the base's" in unlike_base(out, base)


# ------------------------------------------------------------------------------------------------ Gemma without a model


def gemma_json(keys: Keys) -> Keys:
    """tokenizer.json in Gemma's own form: every added token is in the vocabulary, and merges make the runs of spaces."""
    data = json.loads(to_hf(keys)["tokenizer.json"])
    tokens = keys["tokenizer.ggml.tokens"][:900]
    data["model"]["vocab"] = {text.replace("  ", "▁▁").replace(" ", "▁"): index for index, text in enumerate(tokens)}
    data["model"]["merges"] = ["▁ ▁", "▁▁ ▁", "▁ ▁▁", "▁▁ ▁▁", "▁▁▁ ▁", "▁ ▁▁▁", *data["model"]["merges"]]
    for token in data["added_tokens"]:
        token["content"] = token["content"].replace(" ", "▁")
        token["special"] = token["special"] and token["content"] not in ("<mask>", "[@BOS@]", "<unused0>")
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    data["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return data  # type: ignore[no-any-return]


def test_gemma_from_tokenizer_json_alone(families: dict[str, Path], tmp_path: Path) -> None:
    """llama.cpp's converter has no way from there: it wants the tokenizer.model (Gemma 2) or a known hash (Gemma 3)."""
    ours = plain_keys(keys_of(families["gemma3"]))
    data = gemma_json(ours)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer_config.json").write_bytes((families["gemma3"] / "tokenizer_config.json").read_bytes())
    keys = to_gguf(tmp_path, config_of(families["gemma3"]))
    plain = plain_keys(keys)
    assert plain["tokenizer.ggml.add_space_prefix"] is False
    assert plain["tokenizer.ggml.add_bos_token"] is True
    types = dict(zip(plain["tokenizer.ggml.tokens"], plain["tokenizer.ggml.token_type"], strict=True))
    assert [types[text] for text in ("<start_of_turn>", "<mask>", "<table>", "\n\n", "▁▁▁", "[PAD905]")] == [3, 3, 4, 4, 1, 5]
    hf = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert differences(keys, hf, strings_for("default", 2500, 3), tmp_path / "vocab.gguf", (True,)) == []


# ------------------------------------------------------------------------------------------- what no key can carry


def test_phi_3_is_stripped_by_its_name_only(families: dict[str, Path], tmp_path: Path) -> None:
    """RSTRIP is not in the file: llama.cpp goes by general.name, and so do fitting_name, caveats and to_hf."""
    folder = families["phi3"]
    assert fitting_name(files_of(folder), "mini") == "phi-3 mini"
    assert fitting_name(files_of(folder), "Phi3-mini") == "Phi3-mini"
    assert caveats(files_of(folder), "Phi-3-mini-128k-instruct") == ()
    assert "white space after 4 special tokens" in caveats(files_of(folder), "mine")[0]
    keys = keys_of(folder)
    added = [*json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]]
    flags = {token["content"]: token["rstrip"] for token in added}
    for name, expected in (("phi3-x", flags), ("mine", dict.fromkeys(flags, False))):
        named = keys | {"general.name": ("str", name)}
        data = json.loads(to_hf(plain_keys(named))["tokenizer.json"])
        assert {token["content"]: token["rstrip"] for token in data["added_tokens"]} == expected
        hf = tokenizers.Tokenizer.from_str(json.dumps(data))
        assert differences(named, hf, ["<|user|>\n  hi<|end|> \n<|endoftext|> x"], tmp_path / f"{name}.gguf", (True,)) == []


def test_caveats_name_what_llama_cpp_does_otherwise(families: dict[str, Path], tmp_path: Path) -> None:
    said = {name: " ".join(caveats(files_of(folder))) for name, folder in families.items() if name != "phi3"}
    assert {name for name, text in said.items() if "normalization" in text} == {"gpt_neox", "cohere", "cohere2", "qwen3"}
    assert {name for name, text in said.items() if "[gMASK]<sop>" in text} == {"glm", "glm4", "glm4_moe"}
    assert {name for name, text in said.items() if not text} == set(said) - {
        "gpt_neox",
        "cohere",
        "cohere2",
        "qwen3",
        "glm",
        "glm4",
        "glm4_moe",
    }
    assert all(fitting_name(files_of(families[name]), "Phi-3x phi3") == "Phi_3x phi_3" for name in said)
    data = {"added_tokens": [{"id": 0, **decoder_entry("<mask>", lstrip=True, single_word=True)}]}
    data["pre_tokenizer"] = {"type": "Metaspace", "prepend_scheme": "first", "split": False}  # type: ignore[assignment]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert [re.findall("before|words|after", text)[0] for text in caveats(files_of(tmp_path))] == ["before", "words", "after"]


@pytest.mark.parametrize(
    ("there", "own", "left"),
    [
        (("rag",), "", "additional_chat_templates/rag.jinja stays"),
        (("rag", "tool"), "", "additional_chat_templates/rag.jinja, additional_chat_templates/tool.jinja stay"),
        (("", "rag"), "", ""),
        (("", "rag"), "{{ own }}", "chat_template.jinja, additional_chat_templates/rag.jinja stay"),
        (("",), "{{  }}", ""),
    ],
)
def test_a_chat_template_that_stays_behind_is_named(make_model: Callable[[], Path], there: tuple[str, ...], own: str, left: str) -> None:
    """transformers takes every file; gguf-py's SpecialVocab, and so llama.cpp's converter, only some."""
    folder = make_model()
    (folder / "additional_chat_templates").mkdir()
    for name in there:
        path = folder / (f"additional_chat_templates/{name}.jinja" if name else "chat_template.jinja")
        path.write_text(f"{{{{ {name} }}}}\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | ({"chat_template": own} if own else {})))
    assert [text.partition(" behind")[0] for text in caveats(files_of(folder))] == ([left] if left else [])
    assert ("tokenizer.chat_template.rag" in to_gguf(folder, {"vocab_size": 263})) == ("rag" in there and not left)


def test_plain_tokens_that_llama_cpp_makes_special_are_named(llama_cpp_source: Path, tmp_path: Path) -> None:
    """Qwen2's vocabulary has </s>, which only llama.cpp splits off, with the real vocabulary."""
    keys = real("qwen2", llama_cpp_source)
    folder = unpack(to_hf(plain_keys(keys)), tmp_path)
    assert any("takes </s> in a text" in text for text in caveats(files_of(folder)))
    hf = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(differences(keys, hf, ["<s>x</s>"], tmp_path / "vocab.gguf", (True,))) == 1
    path = llama_cpp_source / "src" / "llama-vocab.cpp"
    if path.is_file():
        assert set(re.findall(r't\.first == "([^"]+)"', path.read_text(encoding="utf-8"))) == BY_TEXT


# ----------------------------------------------------------------------------------------------- forms that read alike


def test_forms_that_llama_cpp_reads_alike_are_recognized(corpus: list[str], tmp_path: Path) -> None:
    def name_of(form: str, edit: Callable[[Keys], Any]) -> str:
        case = bpe(corpus, form, [END], 600)
        edit(case["tokenizer.json"])
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return str(plain_keys(keys_of(write(folder, case)))[PRE])

    def split(data: Keys) -> Keys:
        step: Keys = data["pre_tokenizer"]["pretokenizers"][0]
        return step

    removed = {"behavior": "Removed", "invert": True}
    assert name_of("llama-bpe", lambda data: split(data).update(removed)) == "llama-bpe"
    assert name_of("gpt-4o", lambda data: split(data).update(removed)) == "gpt-4o"
    assert name_of("qwen2", lambda data: data.update(normalizer=None)) == "qwen2"
    assert name_of("stablelm2", lambda data: data.update(normalizer=None)) == "stablelm2"
    assert name_of("olmo", lambda data: data.update(normalizer=None)) == "gpt-2"
    assert name_of("gpt-4o", lambda data: data["model"].update(ignore_merges=True)) == "gpt-4o"
    with pytest.raises(Unsupported):  # a form whose regex leaves characters out is another one when it removes them
        name_of("falcon", lambda data: data["pre_tokenizer"]["pretokenizers"][3].update(removed))
    with pytest.raises(Unsupported):  # a normalizer that the row does not have
        name_of("llama-bpe", lambda data: data.update(normalizer={"type": "NFC"}))
    with pytest.raises(Unsupported):  # a word that merges do not make: ignore_merges decides how it is read
        name_of("gpt-4o", lambda data: data["model"].update(ignore_merges=True) or data["model"]["vocab"].update(Ġunreachable=601))


@pytest.mark.parametrize(("alias", "name"), [("falcon3", "llama-bpe"), ("llama4", "gpt-4o"), ("mpt", "olmo"), ("chatglm-bpe", "smaug-bpe")])
def test_other_names_of_a_branch_are_read(alias: str, name: str, families: dict[str, Path], llama_cpp_source: Path) -> None:
    folder = families["qwen3"]
    assert to_gguf(folder, config_of(folder), pre=alias)[PRE] == ("str", name)
    path = llama_cpp_source / "src" / "llama-vocab.cpp"
    if path.is_file():
        assert f'tokenizer_pre == "{alias}"' in path.read_text(encoding="utf-8")


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
RELEASED: dict[str, Keys] = {  # as quoted from the models' tokenizer.json in llama.cpp's issue 3502 and pull requests 7349 and 14626
    "falcon": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {**BYTES, "use_regex": True},
            {"type": "Digits", "individual_digits": False},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
        ],
    },
    "stablelm2": {
        "type": "Sequence",
        "pretokenizers": [
            {
                **{"type": "Split", "behavior": "Removed", "invert": True},
                "pattern": {"Regex": LLAMA3.replace(r"\r\n", "\r\n").replace("{1,3}", "")},
            },
            {**BYTES, "use_regex": False},
        ],
    },
    "dbrx": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "behavior": "Removed", "invert": True, "pattern": {"Regex": LLAMA3}},
            {**BYTES, "use_regex": False},
        ],
    },
}


@pytest.mark.parametrize("name", RELEASED)
def test_quoted_forms_are_recognized(name: str) -> None:
    model: Keys = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    assert recognize({"normalizer": None, "pre_tokenizer": RELEASED[name], "model": model}, model["vocab"]) == name


@pytest.mark.parametrize(("kind", "name"), [("GPTNeoX", "olmo"), ("Cohere", "command-r"), ("Qwen2", "qwen2")])
def test_the_forms_that_transformers_builds_are_recognized(kind: str, name: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    vocab = {text: index for index, text in enumerate(["<|endoftext|>", "<PAD>", "<UNK>", "a", "b", "ab"])}
    built = getattr(transformers, f"{kind}Tokenizer")(vocab=vocab, merges=[("a", "b")])
    data = json.loads(built.backend_tokenizer.to_str())
    assert recognize(data, vocab) == name


def test_the_form_that_transformers_builds_for_gemma_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    vocab = {text: index for index, text in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "a", "▁a"])}
    transformers.GemmaTokenizer(vocab=vocab, merges=[("▁", "a")]).save_pretrained(tmp_path)
    keys = plain_keys(to_gguf(tmp_path, {"model_type": "gemma2", "vocab_size": 8}))
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    assert keys["tokenizer.ggml.scores"][7] == 0.0
