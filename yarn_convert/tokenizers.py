"""Tokenizer files of an HF folder ↔ the `tokenizer.*` keys of a GGUF file, for the Llama family of models.

Two kinds are known:

- `gpt2`: byte-level BPE from `tokenizer.json` (Llama 3, SmolLM, DeepSeek, Mistral Nemo, …). What a GGUF cannot carry is
  the pre-tokenizer: it has only a name, `tokenizer.ggml.pre`. PRETOKENIZERS is the dictionary between those names and
  the JSON, read in both directions; what is not in it is refused.
- `llama`: SentencePiece BPE from `tokenizer.model`, or from a `tokenizer.json` with byte fallback.

The keys are those of llama.cpp's converter (conversion/base.py, conversion/llama.py and gguf-py/gguf/vocab.py as of
llama-cpp-python 0.3.36), except where it would write a file that reads text wrongly; see `_fallback_vocabulary`.
Only the standard library is used: a SentencePiece model is a few protobuf fields, read and written here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError, Unsupported, UsageError

GgufValue = tuple[str, object]  # (type, data): "str" "u32" "bool" "str[]" "f32[]" "i32[]"
Json = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.h, enum llama_token_type
ADDED_SCORE, PAD_SCORE = -1000.0, -10000.0  # conversion/base.py, _create_vocab_sentencepiece
MAX_VOCABULARY = 1 << 21  # tokens; far above any model, so that a lying header cannot ask for all the memory
SPECIAL_KEYS = {  # HF name -> GGUF key; the misspelling is the format's
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
SPECIAL_TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ADD_KEYS = {name: f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep")}
TEMPLATE = "tokenizer.chat_template"
TOKENIZER_ORDER = (
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"),
    *("post_processor", "decoder", "model"),
)
# Ids that HF files have no place for. llama.cpp finds these tokens by their text when the keys are absent.
DROPPED = re.compile(
    r"tokenizer\.ggml\.(eot|eom|cls|fim_\w+|prefix|suffix|middle)_token_id|tokenizer\.huggingface\.json"
)


# ---------------------------------------------------------------------------------------------- pre-tokenizers, as data


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One row: a name of `tokenizer.ggml.pre` and the exact tokenizer.json form that it stands for.

    `steps` are the entries of `pre_tokenizer`, without `trim_offsets` (it moves offsets, never ids). `ignore_merges` is
    the BPE model's flag. `marks` are tokens that tell apart names which share a form and so read text alike.
    `add_bos` is what llama.cpp assumes without an add_bos_token key. The first row that fits is taken.
    """

    name: str
    steps: tuple[Json, ...]
    ignore_merges: bool = False
    normalizers: tuple[Json, ...] = ()
    marks: tuple[str, ...] = ()
    add_bos: bool = False


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def _words(digits: str) -> str:
    """The GPT-4 pattern with `digits` for numbers."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_BYTES: Json = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT2_BYTES: Json = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_LETTERS = (  # escaped, because some of these characters change under Unicode normalization
    r"\s?["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
_DEEPSEEK_V3 = (
    "[!" + '"' + r"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^" + "\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[" + "\r\n" + r"]*|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"
)

# Where each row was read: the regexes of `llm_tokenizer_bpe` and the flags set beside `tokenizer_pre ==` in
# src/llama-vocab.cpp of llama.cpp, compared with the `pre_tokenizer` of the named model's tokenizer.json. llama.cpp
# writes (?i:…) out, and applies one regex after the other to what the last one left, as a Sequence does. Not exact are
# - tekken: [\p{Lu}…\p{M}] is (?=\p{L})[^a-z], so that case counts for A–Z only and marks end a word;
# - deepseek-llm: U+3000 is read as a plain white space and so not as punctuation; \p{N}+ stands for single
#   digits, which is the same as long as no token holds two digits (none does);
# - qwen2: the NFC normalizer is not applied.
PRETOKENIZERS = (
    PreTokenizer("llama-bpe", (_split(_words(r"\p{N}{1,3}")), _BYTES), ignore_merges=True, add_bos=True),  # Llama 3
    PreTokenizer(
        "smaug-bpe", (_split(_words(r"\p{N}{1,3}")), _BYTES)
    ),  # Smaug-Llama-3-70B: Llama 3 before ignore_merges
    PreTokenizer("dbrx", (_split(_words(r"\p{N}{1,3}"), "Removed", True), _BYTES)),  # databricks/dbrx-base, granite 4
    PreTokenizer("tekken", (_split(_TEKKEN), _BYTES), ignore_merges=True, add_bos=True),  # Mistral-Nemo-Base-2407
    PreTokenizer("qwen2", (_split(_words(r"\p{N}")), _BYTES), normalizers=({"type": "NFC"},)),  # Qwen1.5 to Qwen3
    PreTokenizer(  # ByteDance-Seed/Seed-Coder-8B-Base
        "seed-coder",
        (
            _split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^" + "\r\n" + r"\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}" + "\r\n]+"
                r"|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"
            ),
            _BYTES,
        ),
    ),
    PreTokenizer(  # deepseek-llm-7b-base, deepseek-coder-7b-instruct-v1.5, DeepSeek-V2
        "deepseek-llm",
        (
            _split("[\r\n]"),
            _split(_DEEPSEEK_LETTERS),
            _split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            _split(r"\s+$"),
            _split("[一-龥ࠀ-一가-퟿]+"),
            _DIGITS,
            _BYTES,
        ),
    ),
    PreTokenizer(  # deepseek-coder-6.7b-base
        "deepseek-coder",
        (_split("[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split("[一-龥ࠀ-一가-퟿]+"), _DIGITS, _BYTES),
    ),
    PreTokenizer(  # DeepSeek-V3
        "deepseek-v3", (_split(r"\p{N}{1,3}"), _split("[一-龥぀-ゟ゠-ヿ]+"), _split(_DEEPSEEK_V3), _BYTES)
    ),
    PreTokenizer(
        "refact", (_DIGITS, _GPT2_BYTES), marks=("<fim_prefix>", "<commit_before>")
    ),  # Refact-1.6B, granite-code
    PreTokenizer(
        "starcoder", (_DIGITS, _GPT2_BYTES), marks=("<fim_prefix>", "<repo_name>", "<pr_status>")
    ),  # starcoder2
    PreTokenizer("smollm", (_DIGITS, _GPT2_BYTES)),  # SmolLM-135M and SmolLM2
    PreTokenizer("gpt-2", (_GPT2_BYTES,)),  # gpt2
)
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}  # the same branch of src/llama-vocab.cpp
KNOWN = ", ".join(row.name for row in PRETOKENIZERS)


def _steps(component: Any, many: str) -> list[Json]:
    """A `normalizer` or `pre_tokenizer` as the flat list of its steps, with defaults written out."""
    if component is None:
        return []
    if isinstance(component, dict) and component.get("type") == "Sequence":
        return [step for part in component.get(many) or [] for step in _steps(part, many)]
    if not isinstance(component, dict):
        return [{"type": repr(component)}]
    defaults = {"ByteLevel": {"use_regex": True}, "Split": {"invert": False}, "Digits": {"individual_digits": False}}
    step = {**defaults.get(str(component.get("type")), {}), **component}
    step.pop("trim_offsets", None)
    return [step]


def _recognize(tokenizer: Json, vocabulary: Iterable[str], forced: str | None) -> str:
    """The `tokenizer.ggml.pre` of a byte-level tokenizer.json; Unsupported, with what was found, if no row fits."""
    if forced is not None:
        return _row(forced).name
    steps, normalizers = (
        _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"),
        _steps(tokenizer.get("normalizer"), "normalizers"),
    )
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    tokens = set(vocabulary)
    for row in PRETOKENIZERS:
        form = list(row.steps), list(row.normalizers), row.ignore_merges
        if form == (steps, normalizers, ignore_merges) and tokens.issuperset(row.marks):
            return row.name
    found = json.dumps(
        {"normalizer": normalizers, "pre_tokenizer": steps, "ignore_merges": ignore_merges}, ensure_ascii=False
    )
    raise Unsupported(
        f"tokenizer.json has a pre-tokenizer that no llama.cpp name is known for: {found}",
        f"if one of {KNOWN} splits text the same way, name it with --pretokenizer NAME",
    )


def _row(name: object) -> PreTokenizer:
    """The row of a `tokenizer.ggml.pre`; Unsupported if there is none."""
    wanted = _ALIASES.get(str(name), name)
    for row in PRETOKENIZERS:
        if row.name == wanted:
            return row
    raise Unsupported(
        f"pre-tokenizer {name!r} is not known", f"known: {KNOWN}; start from the model's HF folder instead"
    )


# ------------------------------------------------------------------------------------------------- reading an HF folder


class Added(NamedTuple):
    """An added token, as the `tokenizers` library sees it."""

    content: str
    special: bool
    normalized: bool


class Vocabulary(NamedTuple):
    """tokens str[V], types int[V], and scores float32[V] for the `llama` kind only."""

    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None


class Files(NamedTuple):
    """The parsed tokenizer files; an empty dict where a file is missing."""

    folder: Path
    tokenizer: Json
    settings: Json  # tokenizer_config.json


def _load(path: Path) -> Json:
    """A JSON object from a file, {} if there is no file; InputError if it is not UTF-8, not JSON or not an object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read: {error}", "fetch the tokenizer files again") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path.name} holds a {type(value).__name__}, not an object", "fetch the tokenizer files again"
        )
    return value


def _bad(message: str, hint: str = "the tokenizer files do not belong together; fetch them again") -> InputError:
    return InputError(message, hint)


def _object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise _bad(f"{what} is {type(value).__name__}, not an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(f"{what} is {type(value).__name__}, not a list")
    return value


def _id(value: Any, size: int, what: str) -> int:
    """`value` as a token id in 0 … size-1; InputError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(f"{what} has the id {value!r}, which is not an integer")
    if not 0 <= value < size:
        raise _bad(f"{what} has the id {value}, but the model has {size} tokens", "remove it or resize the embeddings")
    return value


def _size(config: Mapping[str, Any]) -> int | None:
    """vocab_size of config.json; None if it is absent."""
    value = config.get("vocab_size")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_VOCABULARY:
        raise _bad(f"config.json says vocab_size {value!r}", f"expected an integer between 1 and {MAX_VOCABULARY}")
    return value


def to_gguf(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> dict[str, GgufValue]:
    """tokenizer.* keys for a GGUF file, from an HF folder's tokenizer files.

    `config` is the parsed config.json (vocab_size and the special token ids are used). `pre` names the pre-tokenizer of
    a byte-level BPE (a row of PRETOKENIZERS) instead of recognizing it. Values are (type, data) pairs, in the order of
    llama.cpp's converter. Tokens that the model has and the tokenizer does not are `[PAD{id}]`, UNUSED. Errors:
    InputError for files that are missing, broken or contradict each other, also where the converter only warns and
    drops a token; Unsupported for a tokenizer or pre-tokenizer outside this module's tables; UsageError for a `pre`
    that does not apply.
    """
    folder = Path(folder)
    files = Files(folder, _load(folder / "tokenizer.json"), _load(folder / "tokenizer_config.json"))
    keys: dict[str, GgufValue] = {}
    if (prefix := files.settings.get("add_prefix_space")) is not None:
        keys["tokenizer.ggml.add_space_prefix"] = ("bool", _flag(prefix, "add_prefix_space"))
    if not (byte_level := _is_byte_level(files)) and pre not in (None, "default"):
        raise UsageError(
            f"--pretokenizer {pre} is for byte-level BPE", "leave it out: a SentencePiece tokenizer has none"
        )
    try:
        if byte_level:
            vocabulary, extra = _byte_level_vocabulary(files, _size(config)), _byte_level_keys(files, pre)
        else:
            vocabulary, extra = _sentencepiece_vocabulary(files, _size(config)), {}
            if not (folder / "tokenizer.model").is_file() and not _prepends(files.tokenizer):
                keys.setdefault("tokenizer.ggml.add_space_prefix", ("bool", False))
        keys["tokenizer.ggml.model"] = ("str", "gpt2" if byte_level else "llama")
        keys["tokenizer.ggml.pre"] = extra.pop("tokenizer.ggml.pre", ("str", "default"))
        keys["tokenizer.ggml.tokens"] = ("str[]", vocabulary.tokens)
        if vocabulary.scores is not None:
            keys["tokenizer.ggml.scores"] = ("f32[]", vocabulary.scores)
        keys["tokenizer.ggml.token_type"] = ("i32[]", vocabulary.types)
        keys.update(extra)
        keys.update(_special_keys(files, config, SPECIAL_TYPES, len(vocabulary.tokens)))
        keys.update(_chat_templates(files))
        keys.update(_exceptions(files, config))
    except (AttributeError, TypeError, LookupError, ValueError, RecursionError, OSError) as error:
        # A JSON value of another type than the format's, somewhere deep; the checks above name the common ones.
        raise _bad(f"the tokenizer files do not have the expected form: {type(error).__name__}: {error}") from None
    _check_text(vocabulary.tokens)
    return keys


def _exceptions(files: Files, config: Mapping[str, Any]) -> dict[str, GgufValue]:
    """What conversion/llama.py, set_vocab, knows of two models by their vocab_size alone."""
    if config.get("vocab_size") == 32016:  # Code Llama
        infill = _special_keys(files, config, ("prefix", "suffix", "middle", "eot"), 32016)
        return {SPECIAL_KEYS["eot"]: ("u32", 32010), **infill}
    if config.get("vocab_size") == 49152:  # granite, and SmolLM
        return {ADD_KEYS["bos"]: ("bool", False)}
    return {}


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(f"{what} is {value!r}, not true or false")
    return value


def _is_byte_level(files: Files) -> bool:
    """Which kind the folder holds, in the converter's order: tokenizer.model, byte fallback, byte level."""
    if (files.folder / "tokenizer.model").is_file():
        return False
    if not files.tokenizer:
        raise InputError(
            "the folder has neither tokenizer.model nor tokenizer.json",
            "vocab.json, merges.txt or tekken.json are not enough: save the tokenizer with transformers first",
        )
    model = _object(files.tokenizer.get("model"), "model of tokenizer.json")
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"tokenizer.json holds a {model.get('type')!r} model", "only BPE can be converted")
    for flag in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(flag):
            raise Unsupported(f"tokenizer.json has a BPE model with {flag} {model[flag]!r}", "GGUF has no place for it")
    return not model.get("byte_fallback", False)


def _named(settings: Json) -> list[str]:
    """Texts of the named special tokens of tokenizer_config.json, which transformers makes added tokens on loading."""
    values = [value for key, value in settings.items() if key.endswith("_token") and not key.startswith("add_")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(key) or []
        values += list(extra.values()) if isinstance(extra, dict) else list(extra)
    texts = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [text for text in texts if isinstance(text, str) and text]


def _model_vocabulary(files: Files, size: int | None) -> dict[str, int]:
    """`model.vocab` of tokenizer.json with ids checked."""
    vocab = _object(files.tokenizer["model"].get("vocab"), "model.vocab of tokenizer.json")
    for token, index in vocab.items():
        _id(index, MAX_VOCABULARY if size is None else size, f"token {token!r}")
    if len(set(vocab.values())) != len(vocab):
        raise _bad("tokenizer.json gives one id to two tokens")
    return vocab


def _added_tokens(files: Files, vocab: Mapping[str, int], size: int | None) -> dict[int, Added]:
    """Added tokens by id, as transformers ends up with them.

    tokenizer.json first; then `added_tokens_decoder` of tokenizer_config.json, which wins over its flags, or the older
    added_tokens.json; then the named special tokens (transformers 5, TokenizersBackend.__init__).
    """
    known: dict[str, int] = dict(vocab)
    added: dict[int, Added] = {}
    limit = MAX_VOCABULARY if size is None else size

    def add(index: Any, content: Any, special: bool, normalized: bool) -> None:
        if not isinstance(content, str) or not content:
            raise _bad(f"an added token has the text {content!r}")
        index = _id(index, limit, f"added token {content!r}")
        if known.setdefault(content, index) != index:
            raise _bad(f"added token {content!r} has the ids {known[content]} and {index}")
        added[index] = Added(content, special, normalized)

    def add_entry(index: Any, entry: Any) -> None:
        entry = _object(entry, "an added token")
        special = bool(entry.get("special", False))
        add(index, entry.get("content"), special, bool(entry.get("normalized", not special)))

    for entry in _list(files.tokenizer.get("added_tokens") or [], "added_tokens of tokenizer.json"):
        add_entry(_object(entry, "an added token").get("id"), entry)
    named = _named(files.settings)
    if "added_tokens_decoder" in files.settings:
        for key, entry in _object(files.settings["added_tokens_decoder"], "added_tokens_decoder").items():
            add_entry(_decoder_id(key), entry)
    else:
        named += _named(_load(files.folder / "special_tokens_map.json"))
        for content, index in _load(files.folder / "added_tokens.json").items():
            if index not in added:
                add(index, content, content in named, content not in named)
    for content in named:
        if content not in known or known[content] not in added:
            index = known.get(content, max(known.values(), default=-1) + 1)
            add(index, content, True, False)
    if len(set(known.values())) != len(known):
        raise _bad("an added token has the id of another token")
    return {index: added[index] for index in sorted(added)}


def _decoder_id(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise _bad(f"added_tokens_decoder has the id {key!r}, which is not an integer") from None


def _looks_special(token: str) -> bool:
    """Tokens that models forget to mark as special; conversion/base.py, does_token_look_special."""
    pairs = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    known = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return token in known or any(token.startswith(left) and token.endswith(right) for left, right in pairs)


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte level: printable Latin-1 stands for itself, the rest begins at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


_ALPHABET = _byte_alphabet()


def _decoded(token: str) -> str:
    """What the byte-level decoder makes of a token; text outside its alphabet stays as it is."""
    if any(character not in _ALPHABET for character in token):
        return token
    return bytes(_ALPHABET[character] for character in token).decode("utf-8", errors="replace")


def _byte_level_vocabulary(files: Files, size: int | None) -> Vocabulary:
    """The vocabulary of a byte-level tokenizer.json; conversion/base.py, get_vocab_base."""
    vocab = _model_vocabulary(files, size)
    added = _added_tokens(files, vocab, size)
    texts = {index: token for token, index in vocab.items()}
    texts.update({index: token.content for index, token in added.items()})
    tokens, types = [], []
    for index in range(_count(texts, size)):
        text, kind = texts.get(index, f"[PAD{index}]"), NORMAL if index in texts else UNUSED
        if index in added:
            text = text if added[index].normalized else _decoded(text)
            kind = CONTROL if added[index].special or _looks_special(text) else USER_DEFINED
            text = text if kind == CONTROL else text.replace("▁", " ")
        tokens.append(text)
        types.append(kind)
    return Vocabulary(tokens, types)


def _count(texts: Mapping[int, str], size: int | None) -> int:
    """The number of tokens; InputError for holes where config.json does not say how many there are."""
    if size is None and max(texts, default=-1) >= len(texts):
        raise _bad(
            "tokenizer.json leaves out token ids", "say in config.json's vocab_size how many tokens the model has"
        )
    return len(texts) if size is None else size


def _merge_pairs(merges: Sequence[Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges of either spelling ("a b" or ["a", "b"]) as pairs; InputError if one names a token that is not there."""
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise _bad(f"merge {merge!r} is not a pair of tokens")
        for token in (*parts, "".join(parts)):
            if token not in vocab:
                raise _bad(f"merge {merge!r} names {token!r}, which is not in the vocabulary")
        pairs.append((parts[0], parts[1]))
    return pairs


def _byte_level_keys(files: Files, pre: str | None) -> dict[str, GgufValue]:
    """`tokenizer.ggml.pre` and `.merges` of a byte-level tokenizer.json."""
    model = files.tokenizer["model"]
    if (decoder := (files.tokenizer.get("decoder") or {}).get("type")) not in ("ByteLevel", None):
        raise Unsupported(f"tokenizer.json has the decoder {decoder!r}", "only byte-level BPE can be converted")
    vocab = _object(model.get("vocab"), "model.vocab of tokenizer.json")
    pairs = _merge_pairs(_list(model.get("merges"), "model.merges of tokenizer.json"), vocab)
    if not pairs:
        raise _bad("tokenizer.json has no merges", "llama.cpp does not load a BPE vocabulary without merges")
    texts = [token.get("content") for token in files.tokenizer.get("added_tokens") or []]
    name = _recognize(files.tokenizer, [*vocab, *texts], pre)
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
    return {"tokenizer.ggml.pre": ("str", name), "tokenizer.ggml.merges": ("str[]", merges)}


def _sentencepiece_vocabulary(files: Files, size: int | None) -> Vocabulary:
    """The vocabulary of tokenizer.model and its added tokens; conversion/base.py, _create_vocab_sentencepiece."""
    path = files.folder / "tokenizer.model"
    if not path.is_file():
        return _fallback_vocabulary(files, size)
    pieces = _read_model(path.read_bytes())
    size = size or len(pieces)
    if len(pieces) > size:
        raise _bad(f"tokenizer.model has {len(pieces)} pieces, but the model has {size} tokens")
    types = [kind if kind in (UNKNOWN, CONTROL, UNUSED, BYTE) else NORMAL for _, _, kind in pieces]
    tokens, scores = [text for text, _, _ in pieces], [score for _, score, _ in pieces]
    for index in range(len(pieces), size):
        tokens.append(f"[PAD{index}]")
        scores.append(PAD_SCORE)
        types.append(UNUSED)

    def add(index: Any, text: Any, special: bool) -> None:
        if not isinstance(text, str) or not text:
            raise _bad(f"an added token has the text {text!r}")
        index = _id(index, size, f"added token {text!r}")
        tokens[index] = text if special else text.replace("▁", " ")
        scores[index], types[index] = ADDED_SCORE, CONTROL if special else USER_DEFINED

    for text, index in _load(files.folder / "added_tokens.json").items():
        add(index, text, False)
        tokens[index] = text  # unlike the other file's, kept with its ▁
    for key, entry in _object(files.settings.get("added_tokens_decoder", {}), "added_tokens_decoder").items():
        content = _object(entry, "an added token").get("content")
        add(_decoder_id(key), content, bool(entry.get("special")) or _looks_special(str(content)))
    return Vocabulary(tokens, types, scores)


def _prepends(tokenizer: Json) -> bool:
    """Whether a byte-fallback tokenizer.json puts a space before the text; Unsupported if it is not of Llama's form."""
    normalizers, steps = (
        _steps(tokenizer.get("normalizer"), "normalizers"),
        _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"),
    )
    prepend, replace = (
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    )
    if not steps and normalizers in ([prepend, replace], [replace]):
        return prepend in normalizers
    if not normalizers and len(steps) == 1 and steps[0].get("type") == "Metaspace" and steps[0].get("split") is False:
        return bool(steps[0].get("prepend_scheme", "always") != "never")
    found = json.dumps({"normalizer": normalizers, "pre_tokenizer": steps}, ensure_ascii=False)
    raise Unsupported(
        f"tokenizer.json is not of Llama's form: {found}", "add the model's tokenizer.model to the folder"
    )


def _fallback_vocabulary(files: Files, size: int | None) -> Vocabulary:
    """The vocabulary of a tokenizer.json with byte fallback; gguf-py/gguf/vocab.py, LlamaHfVocab.

    Types are that class's. Three things it gets wrong are not repeated: it gives every token the score -1000, so that
    llama.cpp merges from left to right instead of by rank; it does not pad to vocab_size, so that llama.cpp refuses the
    file; and it leaves add_space_prefix out where the tokenizer does not prepend a space. Here a piece's score is minus
    the rank of its first merge, as SentencePiece BPE scores are.
    """
    vocab = _model_vocabulary(files, size)
    _prepends(files.tokenizer)
    added = _added_tokens(files, vocab, size)
    named = {*_named(files.settings)}
    pairs = _merge_pairs(_list(files.tokenizer["model"].get("merges"), "model.merges of tokenizer.json"), vocab)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    texts = {index: token for token, index in vocab.items()} | {index: token.content for index, token in added.items()}
    tokens, types, scores = [], [], []
    for index in range(_count(texts, size)):
        text, kind, score = texts.get(index, f"[PAD{index}]"), NORMAL, ADDED_SCORE
        if index not in texts:
            kind, score = UNUSED, PAD_SCORE
        elif re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            kind = BYTE
        elif text in named:
            kind = CONTROL
        elif text not in vocab:
            kind = USER_DEFINED
        elif not (index in added and added[index].special):
            score = float(-ranks.get(text, len(pairs)))
        tokens.append(text)
        types.append(kind)
        scores.append(score)
    return Vocabulary(tokens, types, scores)


def _check_text(tokens: Sequence[str]) -> None:
    """InputError unless the tokens are distinct, not empty and can be written as UTF-8."""
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise _bad(f"token {twice!r} is in the vocabulary twice", "llama.cpp refuses such a vocabulary")
    if "" in tokens:
        raise _bad(f"token {tokens.index('')} is empty")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise _bad(f"a token is not valid Unicode: {error.reason}") from None


# ------------------------------------------------------------------------------------ special tokens and chat templates


def _special_keys(files: Files, config: Mapping[str, Any], types: tuple[str, ...], size: int) -> dict[str, GgufValue]:
    """Ids and add_* flags as gguf-py/gguf/vocab.py, SpecialVocab, finds them: post-processor, settings, config.json."""
    settings = dict(files.settings)
    settings["bos_token"] = settings.get("bos_token") or settings.get("cls_token")
    settings["eos_token"] = settings.get("eos_token") or settings.get("sep_token")
    if not files.tokenizer:
        settings = dict(files.settings)
    adds, types = _post_processor(files, settings, types)
    ids: dict[str, int] = {}
    entries = files.tokenizer.get("added_tokens") or []
    for name in types if files.settings else ():
        flag = settings.get(f"add_{name}_token")
        if isinstance(flag, bool):
            adds.setdefault(name, flag)
        entry = settings.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and (found := [item.get("id") for item in entries if item.get("content") == text]):
            ids[name] = _id(found[0], size, f"{name}_token {text!r}")
    nested = config.get("text_config")
    for name in types:
        index = config.get(f"{name}_token_id")
        if index is None and isinstance(nested, Mapping):
            index = nested.get(f"{name}_token_id")
        if isinstance(index, int):  # a list of ids, as generation configs have, is passed over
            ids.setdefault(name, _id(index, size, f"{name}_token_id of config.json"))
    keys: dict[str, GgufValue] = {
        SPECIAL_KEYS[name]: ("u32", index) for name, index in ids.items() if name in SPECIAL_KEYS
    }
    keys.update({ADD_KEYS[name]: ("bool", flag) for name, flag in adds.items() if name in ADD_KEYS})
    return keys


def _post_processor(files: Files, settings: Json, types: tuple[str, ...]) -> tuple[dict[str, bool], tuple[str, ...]]:
    """(add flags, special types) from tokenizer.json's post_processor; may name tokens in `settings`."""
    adds: dict[str, bool] = {}
    processor = files.tokenizer.get("post_processor")
    for part in processor.get("processors", [processor]) if processor else []:
        if part.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif part.get("type") == "TemplateProcessing":
            types = _template(part, bool(files.settings), settings, adds, types)
        else:
            raise Unsupported(f"tokenizer.json has the post-processor {part.get('type')!r}", "GGUF has no place for it")
    return adds, types


def _template(
    part: Json, named: bool, settings: Json, adds: dict[str, bool], types: tuple[str, ...]
) -> tuple[str, ...]:
    """Reads one TemplateProcessing: first token BOS, last EOS, anything between A and B a separator."""
    single = [item.get("SpecialToken", {}).get("id") for item in part.get("single") or []]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    if first:
        if not named or not settings.get("bos_token"):
            settings["bos_token"] = first
        elif first != settings["bos_token"] and not settings.get("cls_token"):
            settings["cls_token"] = first
        adds["bos"] = first in (settings["bos_token"], settings.get("cls_token"))
    if last:
        if named and last != settings.get("eos_token"):  # the old one becomes end of turn
            spare = next((name for name in ("eot", "eom") if name not in types), None)
            if spare:
                types = (*types, spare)
                settings[f"{spare}_token"] = settings.get("eos_token")
        settings["eos_token"] = last
        adds["eos"] = True
    pair = [
        (item.get("SpecialToken", {}).get("id"), item.get("Sequence", {}).get("id")) for item in part.get("pair") or []
    ]
    if pair and first and pair[0][0] == first:
        pair = pair[1:]
    if pair and last and pair[-1][0] == last:
        pair = pair[:-1]
    if len(pair) > 2 and pair[0][1] == "A" and pair[-1][1] == "B":
        ends = (settings.get("sep_token"), settings.get("eos_token"))
        middle = [token in ends for token, _ in pair[1:-1]]
        adds["sep"] = (middle[0] and not last) or (len(middle) == 2 and middle[1])
        if adds["sep"] and not settings.get("sep_token"):
            settings["sep_token"] = settings.get("eos_token")
    return types


def _chat_templates(files: Files) -> dict[str, GgufValue]:
    """Chat templates: one, or a default and named ones; read only beside a tokenizer_config.json, which wins."""
    found: Any = None
    if (path := files.folder / "chat_template.jinja").is_file():
        found = _text(path)
        if more := sorted((files.folder / "additional_chat_templates").glob("*.jinja")):
            found = [{"name": "default", "template": found}]
            found += [{"name": one.stem, "template": _text(one)} for one in more]
    else:
        found = _load(files.folder / "chat_template.json").get("chat_template")
    found = files.settings.get("chat_template", found)
    if not files.settings or found is None:
        return {}
    if isinstance(found, str):
        found = [{"name": "default", "template": found}]
    templates: dict[str, str] = {}
    for entry in _list(found, "chat_template"):
        name = re.sub("[^A-Za-z0-9]", "_", str(_object(entry, "a chat template").get("name", "")))
        if not isinstance(entry.get("template"), str):
            raise _bad(f"chat template {name!r} is {type(entry.get('template')).__name__}, not text")
        templates[name] = entry["template"]
    templates.pop("", None)
    default = templates.pop("default", None)
    keys: dict[str, GgufValue] = {f"{TEMPLATE}.{name}": ("str", text) for name, text in templates.items()}
    if templates:
        keys["tokenizer.chat_templates"] = ("str[]", list(templates))
    if default is not None:
        keys[TEMPLATE] = ("str", default)
    return keys


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read: {error}", "fetch the tokenizer files again") from None


# ------------------------------------------------------------------------------------------------- writing an HF folder


def to_hf(keys: Mapping[str, Any]) -> dict[str, bytes]:
    """HF tokenizer files (file name -> content) rebuilt from a GGUF's `tokenizer.*` keys, given as plain Python values.

    tokenizer.json, tokenizer_config.json and special_tokens_map.json; for the `llama` kind also tokenizer.model, so
    that its scores survive, and added_tokens.json where a token needs it. `to_gguf` of these files gives the keys back,
    with what llama.cpp assumes for an absent key written out (BOS first for `llama` and Llama 3), and without the ids
    that HF files have no place for (DROPPED). Tokens that pad the vocabulary ([PAD{id}]) are left out; vocab_size of
    config.json restores them. model_max_length is the caller's. Errors: Unsupported for a kind, pre-tokenizer or key
    that HF files cannot carry; InputError for keys that contradict each other.
    """
    kind = keys.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise Unsupported(
            f"the GGUF holds a tokenizer of kind {kind!r}", "only gpt2 (byte-level BPE) and llama can be read"
        )
    vocabulary = _gguf_vocabulary(keys, kind)
    row = _row(keys.get("tokenizer.ggml.pre")) if kind == "gpt2" else None
    ids, adds = _gguf_specials(keys, vocabulary, row)
    settings: Json = {f"add_{name}_token": flag for name, flag in adds.items()}
    if (prefix := keys.get("tokenizer.ggml.add_space_prefix")) is not None:
        settings["add_prefix_space"] = _flag(prefix, "tokenizer.ggml.add_space_prefix")
    added = _gguf_added(vocabulary, ids, kind)
    decoder, files = added, {}
    if row is None:
        tokenizer = _sentencepiece_json(vocabulary, ids, prefix is not False)
        decoder, extra = _expressible(vocabulary, added, ids)
        files["tokenizer.model"] = _write_model(vocabulary, ids, prefix is not False)
        if extra:
            files["added_tokens.json"] = _dump(extra)
    else:
        tokenizer = _byte_level_json(vocabulary, keys, row)
    tokenizer |= {"version": "1.0", "truncation": None, "padding": None}
    tokenizer["added_tokens"] = [{"id": index, **entry} for index, entry in added.items()]
    tokenizer["post_processor"] = _template_json(vocabulary, ids, adds, byte_level=row is not None)
    specials = {f"{name}_token": vocabulary.tokens[index] for name, index in ids.items()}
    settings |= {"added_tokens_decoder": {str(index): entry for index, entry in decoder.items()}, **specials}
    if (templates := _hf_templates(keys)) is not None:
        settings["chat_template"] = templates
    # The class that takes tokenizer.json as it is, in transformers 4 and 5; LlamaTokenizer rebuilds it in version 5.
    settings |= {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    files["tokenizer.json"] = _dump({key: tokenizer[key] for key in TOKENIZER_ORDER})
    files["tokenizer_config.json"] = _dump(settings)
    files["special_tokens_map.json"] = _dump(specials)
    return files


def _gguf_specials(
    keys: Mapping[str, Any], vocabulary: Vocabulary, row: PreTokenizer | None
) -> tuple[dict[str, int], dict[str, bool]]:
    """Special token ids and add flags by name, with the defaults of llama.cpp (src/llama-vocab.cpp, load)."""
    names = [name for name in SPECIAL_TYPES if SPECIAL_KEYS.get(name) in keys]
    ids = {name: _id(keys[SPECIAL_KEYS[name]], len(vocabulary.tokens), SPECIAL_KEYS[name]) for name in names}
    adds = {name: _flag(keys[key], key) for name, key in ADD_KEYS.items() if key in keys}
    if row is None or row.add_bos:
        adds.setdefault("bos", True)
    if row is None and adds["bos"] and len(vocabulary.tokens) > 1:
        ids.setdefault("bos", 1)
    for name in ("bos", "eos"):
        if adds.get(name) and name not in ids:
            raise _bad(
                f"{ADD_KEYS[name]} is true, but there is no {name}_token_id", "the GGUF's metadata is incomplete"
            )
    return ids, adds


def _dump(value: Any) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
    except UnicodeEncodeError as error:
        raise _bad(f"the GGUF's tokenizer holds text that is not valid Unicode: {error.reason}") from None


def _gguf_vocabulary(keys: Mapping[str, Any], kind: str) -> Vocabulary:
    """tokens, types and scores of the keys, checked; Unsupported if a key is left that HF files cannot carry."""
    known = {*SPECIAL_KEYS.values(), *ADD_KEYS.values(), TEMPLATE, "tokenizer.chat_templates"}
    known |= {f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "scores", "token_type", "merges")}
    known.add("tokenizer.ggml.add_space_prefix")
    left = [key for key in keys if key.startswith("tokenizer.") and key not in known and not DROPPED.fullmatch(key)]
    if left := [key for key in left if not key.startswith(TEMPLATE + ".")]:
        raise Unsupported(
            f"HF files cannot carry {', '.join(sorted(left))}", "start from the model's HF folder instead"
        )
    tokens = _list(keys.get("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens")
    types = _list(keys.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens)), "tokenizer.ggml.token_type")
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise _bad("tokenizer.ggml.tokens is empty or holds something else than text", "the GGUF is damaged")
    kinds = range(NORMAL, BYTE + 1) if kind == "llama" else range(NORMAL, UNUSED + 1)
    if len(types) != len(tokens) or not all(isinstance(one, int) and one in kinds for one in types):
        raise _bad(
            f"tokenizer.ggml.token_type does not give each of {len(tokens)} tokens a type", "the GGUF is damaged"
        )
    _check_text(tokens)
    if kind == "gpt2":
        return Vocabulary(tokens, types)
    scores = _list(keys.get("tokenizer.ggml.scores"), "tokenizer.ggml.scores")
    if len(scores) != len(tokens) or not all(isinstance(one, int | float) and abs(one) < 3e38 for one in scores):
        raise _bad(f"tokenizer.ggml.scores does not give each of {len(tokens)} tokens a number", "the GGUF is damaged")
    return Vocabulary(tokens, types, scores)


def _is_pad(vocabulary: Vocabulary, index: int) -> bool:
    """Whether a token only fills the vocabulary up; converters have given such tokens several types."""
    return vocabulary.types[index] != NORMAL and vocabulary.tokens[index] == f"[PAD{index}]"


def _gguf_added(vocabulary: Vocabulary, ids: Mapping[str, int], kind: str) -> dict[int, Json]:
    """The `added_tokens` of tokenizer.json by id: control, unknown, user-defined and named tokens."""
    added: dict[int, Json] = {}
    for index, (text, of) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if index in ids.values() or (of in (CONTROL, UNKNOWN, USER_DEFINED) and not _is_pad(vocabulary, index)):
            # Byte level: the converter decodes an added token that is not `normalized`; keep what this would change.
            normalized = kind == "gpt2" and _decoded(text) != text
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized}
            added[index] = {"content": text, **flags, "special": of != USER_DEFINED}
    return added


def _expressible(
    vocabulary: Vocabulary, added: Mapping[int, Json], ids: Mapping[str, int]
) -> tuple[dict[int, Json], dict[str, int]]:
    """(added_tokens_decoder, added_tokens.json) that leave the other tokens of tokenizer.model with type and score."""
    decoder, extra = {}, {}
    scores = vocabulary.scores or []
    unknown = _unknown_id(vocabulary, ids)
    for index, entry in added.items():
        text, of = vocabulary.tokens[index], vocabulary.types[index]
        if of == USER_DEFINED and (_looks_special(text) or "▁" in text):
            extra[text] = index
        elif of == USER_DEFINED or (of == CONTROL and (scores[index] == ADDED_SCORE or index == unknown)):
            decoder[index] = entry
    return decoder, extra


def _byte_level_json(vocabulary: Vocabulary, keys: Mapping[str, Any], row: PreTokenizer) -> Json:
    """normalizer, pre_tokenizer, decoder and model of a byte-level tokenizer.json."""
    vocab = {text: index for index, text in enumerate(vocabulary.tokens) if not _is_pad(vocabulary, index)}
    pairs = _merge_pairs(_list(keys.get("tokenizer.ggml.merges"), "tokenizer.ggml.merges"), vocab)
    steps = [{**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step for step in row.steps]
    normalizers = list(row.normalizers)
    return {
        "normalizer": _sequence(normalizers, "normalizers"),
        "pre_tokenizer": _sequence(steps, "pretokenizers"),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model_json(vocab, pairs, ignore_merges=row.ignore_merges),
    }


def _sequence(steps: list[Json], many: str) -> Json | None:
    if len(steps) > 1:
        return {"type": "Sequence", many: steps}
    return steps[0] if steps else None


def _model_json(vocab: Mapping[str, int], pairs: Iterable[tuple[str, str]], **flags: Any) -> Json:
    fixed = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    defaults = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "type": "BPE",
        **fixed,
        **defaults,
        **flags,
        "vocab": vocab,
        "merges": [f"{left} {right}" for left, right in pairs],
    }


def _sentencepiece_json(vocabulary: Vocabulary, ids: Mapping[str, int], prefix: bool) -> Json:
    """normalizer, decoder and model of a tokenizer.json that does what llama.cpp does with the `llama` kind.

    That is the form of LlamaTokenizerFast with legacy=True: a space before the text and after every special token.
    """
    vocab = {text: index for index, text in enumerate(vocabulary.tokens) if not _is_pad(vocabulary, index)}
    normalizers: list[Json] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    decoders: list[Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unreplace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    unknown = vocabulary.tokens[_unknown_id(vocabulary, ids)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [unreplace, {"type": "ByteFallback"}, {"type": "Fuse"}, *decoders]},
        "model": _model_json(
            vocab, _merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=_has_bytes(vocabulary)
        ),
    }


def _unknown_id(vocabulary: Vocabulary, ids: Mapping[str, int]) -> int:
    """The token for what cannot be spelled: by type, else by key, else by its usual text, else 0."""
    if UNKNOWN in vocabulary.types:
        pads = (index for index, of in enumerate(vocabulary.types) if of == UNKNOWN and not _is_pad(vocabulary, index))
        if (found := next(pads, None)) is not None:
            return found
    return ids.get("unk", vocabulary.tokens.index("<unk>") if "<unk>" in vocabulary.tokens else 0)


def _has_bytes(vocabulary: Vocabulary) -> bool:
    """Whether all 256 byte tokens are there; InputError if only some are."""
    found = {text for text, of in zip(vocabulary.tokens, vocabulary.types, strict=True) if of == BYTE}
    if found and found != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise _bad(f"the vocabulary has {len(found)} byte tokens that are not <0x00> to <0xFF>", "the GGUF is damaged")
    return bool(found)


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges from scores: every way to put a piece together from two others, best piece first.

    The order is that of transformers (tokenization_utils_base.py, generate_merges with scores). Only NORMAL pieces take
    part, as in SentencePiece. Unsupported if the scores are placeholders, which carry no order.
    """
    scores = vocabulary.scores or []
    rows = enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
    normal = {text: index for index, (text, of) in rows if of == NORMAL and " " not in text}
    found: list[tuple[float, str, str]] = []
    for text, index in normal.items():
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        cuts = [cut for cut in cuts if cut[0] in normal and cut[1] in normal]
        cuts.sort(key=lambda cut: (normal[cut[0]], normal[cut[1]]))
        found += [(scores[index], *cut) for cut in cuts]
    if len(found) > 1 and len({left + right for _, left, right in found}) > 1 and len({one[0] for one in found}) == 1:
        raise Unsupported(
            "the GGUF's scores are all the same, so the order of its merges is lost",
            "start from the model's HF folder instead; the file was made without its tokenizer.model",
        )
    found.sort(key=lambda one: (one[0], len(one[1]), len(one[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _template_json(
    vocabulary: Vocabulary, ids: Mapping[str, int], adds: Mapping[str, bool], byte_level: bool
) -> Json | None:
    """The post_processor that adds BOS and EOS, in Llama 3's form for byte level, which says no if neither is."""
    bos, eos = ([vocabulary.tokens[ids[name]]] if adds.get(name) else [] for name in ("bos", "eos"))

    def special(texts: list[str], type_id: int) -> list[Json]:
        return [{"SpecialToken": {"id": text, "type_id": type_id}} for text in texts]

    parts: list[Json] = []
    if byte_level and "bos" in adds and "eos" in adds:
        parts.append({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True})
    if bos or eos:
        first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        middle = [*special(eos, 0), *special(bos, 1)] if "sep" in adds else []
        texts = {vocabulary.tokens[ids[name]]: ids[name] for name in ("bos", "eos") if adds.get(name)}
        template = {
            "type": "TemplateProcessing",
            "single": [*special(bos, 0), first, *special(eos, 0)],
            "pair": [*special(bos, 0), first, *middle, second, *special(eos, 1)],
            "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in texts.items()},
        }
        parts.append(template)
    return _sequence(parts, "processors")


def _hf_templates(keys: Mapping[str, Any]) -> Any:
    """`chat_template` of tokenizer_config.json: text, or a list of named ones; None if there is none."""
    named = [key.removeprefix(TEMPLATE + ".") for key in keys if key.startswith(TEMPLATE + ".")]
    listed = keys.get("tokenizer.chat_templates", named)
    order = [name for name in _list(listed, "tokenizer.chat_templates") if name in named]
    order += [name for name in named if name not in order]
    default = [{"name": "default", "template": keys[TEMPLATE]}] if TEMPLATE in keys else []
    templates = [*default, *({"name": name, "template": keys[f"{TEMPLATE}.{name}"]} for name in order)]
    if not all(isinstance(entry["template"], str) for entry in templates):
        raise _bad("a chat template of the GGUF is not text", "the GGUF is damaged")
    if not named:
        return keys.get(TEMPLATE)
    return templates


# ------------------------------------------------------------------------------------------------- SentencePiece models
# sentencepiece_model.proto: ModelProto { 1 pieces, 2 trainer_spec, 3 normalizer_spec } and
# SentencePiece { 1 piece, 2 score, 3 type }, with the same type numbers as GGUF's.


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int, float32 or bytes; ValueError if it is not one."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("cut short")
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(wire) if wire != 2 else varint()
        if length is None or tag >> 3 == 0 or length > len(data) - at:
            raise ValueError("not a protobuf message")
        value = data[at : at + length]
        at += length
        yield tag >> 3, struct.unpack("<f", value)[0] if wire == 5 else value


def _read_model(data: bytes) -> list[tuple[str, float, int]]:
    """(text, score, type) of every piece of a tokenizer.model; InputError if it is not a SentencePiece model."""
    pieces: list[tuple[str, float, int]] = []
    algorithm = 1  # TrainerSpec.model_type: 1 unigram (the default), 2 BPE
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), float(piece.get(2, 0.0)), int(piece.get(3, NORMAL))))
            elif number == 2:
                algorithm = dict(_fields(value)).get(3, 1)
    except (ValueError, TypeError, AttributeError, KeyError, struct.error):
        pieces = []
    if not pieces:
        raise InputError(
            "tokenizer.model is not a SentencePiece model",
            "fetch it again; where tokenizer.json describes the tokenizer, as in Llama 3, remove tokenizer.model",
        )
    if algorithm != 2:
        raise Unsupported(
            "tokenizer.model is not a BPE model", "llama.cpp reads it as BPE and would split text otherwise"
        )
    if not all(abs(score) < 3e38 for _, score, _ in pieces):
        raise _bad("tokenizer.model has a score that is not a finite number")
    return pieces


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _write_model(vocabulary: Vocabulary, ids: Mapping[str, int], prefix: bool) -> bytes:
    """tokenizer.model: the pieces up to the padding, with exactly one UNKNOWN, which SentencePiece insists on."""
    size = len(vocabulary.tokens)
    while size > 1 and _is_pad(vocabulary, size - 1):
        size -= 1
    unknown = _unknown_id(vocabulary, ids)
    out = bytearray()
    for index in range(size):
        of = vocabulary.types[index]
        if index == unknown or of == UNKNOWN:
            of = UNKNOWN if index == unknown else UNUSED if _is_pad(vocabulary, index) else CONTROL
        score = float((vocabulary.scores or [])[index])
        out += _field(1, _field(1, vocabulary.tokens[index].encode()) + _field(2, score) + _field(3, of))
    trainer = _field(3, 2) + _field(4, size) + _field(35, int(_has_bytes(vocabulary))) + _field(40, unknown)
    trainer += _field(45, vocabulary.tokens[unknown].encode())
    for name, number in (("bos", 41), ("eos", 42), ("pad", 43)):
        if name in ids:  # 46 … 48: the text, by which SentencePiece looks the id up
            trainer += _field(number, ids[name]) + _field(number + 5, vocabulary.tokens[ids[name]].encode())
    normalizer = _field(1, b"identity") + _field(3, int(prefix)) + _field(4, 0) + _field(5, 1)
    return bytes(out) + _field(2, trainer) + _field(3, normalizer)
