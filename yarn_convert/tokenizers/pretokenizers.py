"""Owns PRETOKENIZERS, the dictionary between the names of `tokenizer.ggml.pre` and the pre-tokenizers of tokenizer.json,
and the look-up in it, by form and by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import Unsupported
from .vocabulary import Json


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
    PreTokenizer("smaug-bpe", (_split(_words(r"\p{N}{1,3}")), _BYTES)),  # Smaug-Llama-3-70B: Llama 3 before ignore_merges
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
    PreTokenizer("refact", (_DIGITS, _GPT2_BYTES), marks=("<fim_prefix>", "<commit_before>")),  # Refact-1.6B, granite-code
    PreTokenizer("starcoder", (_DIGITS, _GPT2_BYTES), marks=("<fim_prefix>", "<repo_name>", "<pr_status>")),  # starcoder2
    PreTokenizer("smollm", (_DIGITS, _GPT2_BYTES)),  # SmolLM-135M and SmolLM2
    PreTokenizer("gpt-2", (_GPT2_BYTES,)),  # gpt2
)
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}  # the same branch of src/llama-vocab.cpp
KNOWN = ", ".join(row.name for row in PRETOKENIZERS)


def steps_of(component: Any, many: str) -> list[Json]:
    """A `normalizer` or `pre_tokenizer` as the flat list of its steps, with defaults written out."""
    if component is None:
        return []
    if isinstance(component, dict) and component.get("type") == "Sequence":
        return [step for part in component.get(many) or [] for step in steps_of(part, many)]
    if not isinstance(component, dict):
        return [{"type": repr(component)}]
    defaults = {"ByteLevel": {"use_regex": True}, "Split": {"invert": False}, "Digits": {"individual_digits": False}}
    step = {**defaults.get(str(component.get("type")), {}), **component}
    step.pop("trim_offsets", None)
    return [step]


def recognize(tokenizer: Json, vocabulary: Iterable[str]) -> str:
    """The `tokenizer.ggml.pre` of a byte-level tokenizer.json; Unsupported, with what was found, if no row fits."""
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normalizers = steps_of(tokenizer.get("normalizer"), "normalizers")
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    tokens = set(vocabulary)
    for row in PRETOKENIZERS:
        form = list(row.steps), list(row.normalizers), row.ignore_merges
        if form == (steps, normalizers, ignore_merges) and tokens.issuperset(row.marks):
            return row.name
    found = json.dumps({"normalizer": normalizers, "pre_tokenizer": steps, "ignore_merges": ignore_merges}, ensure_ascii=False)
    raise Unsupported(
        f"tokenizer.json has a pre-tokenizer that no llama.cpp name is known for: {found}",
        f"if one of {KNOWN} splits text the same way, name it with --pretokenizer NAME",
    )


def row_of(name: object) -> PreTokenizer:
    """The row of a `tokenizer.ggml.pre`; Unsupported if there is none."""
    wanted = _ALIASES.get(str(name), name)
    for row in PRETOKENIZERS:
        if row.name == wanted:
            return row
    raise Unsupported(f"pre-tokenizer {name!r} is not known", f"known: {KNOWN}; start from the model's HF folder instead")
