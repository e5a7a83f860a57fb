"""Owns PRETOKENIZERS, the dictionary between the names of `tokenizer.ggml.pre` and the pre-tokenizers of tokenizer.json,
and the look-up in it, by form and by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import Unsupported
from .vocabulary import Json, merge_pairs


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One row: a name of `tokenizer.ggml.pre` and the exact tokenizer.json form that it stands for.

    `steps` are the entries of `pre_tokenizer`, without `trim_offsets` (it moves offsets, never ids). `ignore_merges` is
    the BPE model's flag. `marks` are tokens that tell apart names which share a form and so read text alike.
    `add_bos` is what llama.cpp assumes without an add_bos_token key. The first row that fits is taken; see `recognize`.
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
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}|\p{{N}}{{1,3}}|"
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

_COVERING = frozenset({_words(r"\p{N}{1,3}"), _words(r"\p{N}"), _TEKKEN, _O200K})  # every character is in some match
_NFC: Json = {"type": "NFC"}

# Where each row was read: the regexes of `llm_tokenizer_bpe` and the flags set beside `tokenizer_pre ==` in
# src/llama-vocab.cpp of llama.cpp, compared with the `pre_tokenizer` of the named model's tokenizer.json. That the form of
# falcon, command-r and olmo is the model's is known from conversion/base.py, get_vocab_base_pre: with it the model's real
# vocabulary reads the check text to the hash that stands there. stablelm2 is quoted in llama.cpp's pull request 7349,
# falcon in its issue 3502. llama.cpp writes (?i:…) out, and applies one regex after the other to what the last one left,
# as a Sequence does. Not exact are
# - qwen2, stablelm2, command-r, olmo: llama.cpp has no normalizer for byte-level BPE, so NFC is not applied: text with
#   characters that NFC changes, such as e + U+0301 or U+212A, is read otherwise;
# - tekken, gpt-4o: [\p{Lu}…\p{M}] is (?=\p{L})[^a-z], so that case counts for A–Z only and marks end a word;
# - falcon: Digits stands behind ByteLevel, so it sees the bytes' letters, of which six are numbers (² ³ ¹ ¼ ½ ¾ for B2 B3
#   B9 BC BD BE), and cuts there, and between a space and digits; llama.cpp does not, which is the same as long as no token
#   holds such a byte or a digit with others before it (none does);
# - deepseek-llm: U+3000 is read as a plain white space and so not as punctuation; \p{N}+ stands for single
#   digits, which is the same as long as no token holds two digits (none does).
# Left out is tiny_aya (CohereLabs/tiny-aya-base, a cohere2; Command R7B and Command A are command-r): llama.cpp groups the
# digits of "12345th" as 12 345 where the tokenizer has 123 45, and cuts runs of white space before digits otherwise.
PRETOKENIZERS = (
    PreTokenizer(  # GLM-4-9B-hf, GLM-4-0414, GLM-4.5: Llama 3's form, but no BOS is assumed
        "glm4", (_split(_words(r"\p{N}{1,3}")), _BYTES), ignore_merges=True, marks=("[gMASK]", "<sop>")
    ),
    # Llama 3. Its vocabulary without a BOS, as SmolLM3's, has the hash of smaug-bpe; here ignore_merges tells the two apart.
    PreTokenizer("llama-bpe", (_split(_words(r"\p{N}{1,3}")), _BYTES), ignore_merges=True, add_bos=True),
    PreTokenizer("smaug-bpe", (_split(_words(r"\p{N}{1,3}")), _BYTES)),  # Smaug-Llama-3-70B: Llama 3 before ignore_merges
    PreTokenizer("dbrx", (_split(_words(r"\p{N}{1,3}"), "Removed", True), _BYTES)),  # dbrx-base, granite 4, OLMo 2, phi-4
    PreTokenizer("tekken", (_split(_TEKKEN), _BYTES), ignore_merges=True, add_bos=True),  # Mistral-Nemo-Base-2407
    PreTokenizer("gpt-4o", (_split(_O200K), _BYTES)),  # Xenova/gpt-4o, gpt-oss, Phi-4-mini, Llama 4
    PreTokenizer("qwen2", (_split(_words(r"\p{N}")), _BYTES), normalizers=(_NFC,)),  # Qwen1.5 to Qwen3
    PreTokenizer(  # stablelm-2-1_6b: Qwen2's regex with the characters CR and LF themselves
        "stablelm2",
        (_split(_words(r"\p{N}").replace(r"\r\n", "\r\n"), "Removed", True), _BYTES),
        normalizers=(_NFC,),
    ),
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
    PreTokenizer("command-r", (_DIGITS, _GPT2_BYTES), normalizers=(_NFC,)),  # c4ai-command-r-v01, cohere2
    PreTokenizer(  # falcon-7b, falcon-40b
        "falcon",
        (
            {"type": "Punctuation", "behavior": "Contiguous"},
            _GPT2_BYTES,
            {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ),
    ),
    PreTokenizer("olmo", (_GPT2_BYTES,), normalizers=(_NFC,)),  # gpt-neox-20b, Pythia, MPT, OLMo 1, stablelm-3b
    PreTokenizer("gpt-2", (_GPT2_BYTES,)),  # gpt2
)
_ALIASES = {  # names that src/llama-vocab.cpp reads like the row's: the same regexes and the same flags for reading
    **dict.fromkeys(("llama3", "llama-v3", "falcon3"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
    **{"chatglm-bpe": "smaug-bpe", "glm5": "glm4", "llama4": "gpt-4o", "mpt": "olmo", "phi-2": "gpt-2"},
}
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


def plain(step: Json) -> Json:
    """A step in the one spelling of those that split all text alike.

    Where a regex leaves no character out, to isolate its matches is to remove what is not matched. CR and LF may stand in
    a regex as themselves.
    """
    regex = (step.get("pattern") or {}).get("Regex") if step.get("type") == "Split" else None
    if not isinstance(regex, str):
        return step
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    if regex in _COVERING and (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True)):
        return _split(regex)
    return step


def reached(tokenizer: Json) -> bool:
    """Whether the merges make every token of the vocabulary from its characters, so that ignore_merges changes nothing."""
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    pairs = {pair: rank for rank, pair in reversed(list(enumerate(merge_pairs(merges, vocab))))}
    added = {token.get("content") for token in tokenizer.get("added_tokens") or []}
    for token in vocab.keys() - added:
        parts = list(token)
        while len(parts) > 1:
            rank, at = min((pairs.get(pair, len(pairs)), at) for at, pair in enumerate(pairwise(parts)))
            if rank == len(pairs):
                return False
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return True


def recognize(tokenizer: Json, vocabulary: Iterable[str]) -> str:
    """The `tokenizer.ggml.pre` of a byte-level tokenizer.json; Unsupported, with what was found, if no row fits.

    First the rows of exactly this form; then those that llama.cpp reads alike: another spelling of the same split, no
    normalizer where the row has one (llama.cpp applies none), and last another ignore_merges where that changes nothing.
    """
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normalizers = steps_of(tokenizer.get("normalizer"), "normalizers")
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    tokens = set(vocabulary)
    rows = [row for row in PRETOKENIZERS if tokens.issuperset(row.marks)]
    for row in rows:
        if (list(row.steps), list(row.normalizers), row.ignore_merges) == (steps, normalizers, ignore_merges):
            return row.name
    wanted = [plain(step) for step in steps]
    alike = [row for row in rows if [plain(step) for step in row.steps] == wanted and normalizers in ([], list(row.normalizers))]
    alike.sort(key=lambda row: list(row.steps) != steps)
    for row in alike:
        if row.ignore_merges == ignore_merges:
            return row.name
    if alike and reached(tokenizer):
        return alike[0].name
    found = json.dumps({"normalizer": normalizers, "pre_tokenizer": steps, "ignore_merges": ignore_merges}, ensure_ascii=False)
    raise Unsupported(
        f"tokenizer.json has a pre-tokenizer that no llama.cpp name is known for: {found}",
        f"if one of {KNOWN} splits text the same way, name it with --pretokenizer NAME",
    )


def pretokenizer_of(name: object) -> PreTokenizer:
    """The row of a `tokenizer.ggml.pre`; Unsupported if there is none."""
    wanted = _ALIASES.get(str(name), name)
    for row in PRETOKENIZERS:
        if row.name == wanted:
            return row
    raise Unsupported(f"pre-tokenizer {name!r} is not known", f"known: {KNOWN}; start from the model's HF folder instead")
