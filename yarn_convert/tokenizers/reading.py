"""Owns `to_gguf`: what the tokenizer files of an HF folder say, as llama.cpp's converter reads them, becomes GGUF keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Unsupported, UsageError
from ..formats.files import exists, read
from .habits import Habit, habit_of
from .pretokenizers import pretokenizer_of, recognize, steps_of
from .sentencepiece_model import read_sentencepiece
from .specials import chat_templates, special_keys
from .vocabulary import (
    ADD_KEYS,
    ADDED_SCORE,
    BYTE,
    CONTROL,
    NORMAL,
    PAD_SCORE,
    SPECIAL_KEYS,
    SPECIAL_TYPES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Files,
    GgufValue,
    Json,
    Vocabulary,
    as_flag,
    as_id,
    as_list,
    as_object,
    bad,
    byte_decoded,
    check_text,
    files_of,
    load,
    looks_special,
    merge_pairs,
)

PREFIX_KEY = "tokenizer.ggml.add_space_prefix"
MAX_VOCABULARY = 1 << 21  # tokens; far above any model, so that a lying header cannot ask for all the memory


def to_gguf(folder: Path, config: Mapping[str, Any], *, pre: str | None = None, files: Files | None = None) -> dict[str, GgufValue]:
    """tokenizer.* keys for a GGUF file, from an HF folder's tokenizer files, which `files` are if they have been read already.

    `config` is the parsed config.json (vocab_size, model_type and the special token ids are used). `pre` names the
    pre-tokenizer of a byte-level BPE (a row of PRETOKENIZERS) instead of recognizing it. Values are (type, data) pairs, in
    the order of llama.cpp's converter. Tokens that the model has and the tokenizer does not are `[PAD{id}]`, UNUSED.
    `caveats` says what the keys cannot carry. Errors: InputError for files that are missing, broken or contradict each
    other, also where the converter only warns and drops a token; Unsupported for a tokenizer or pre-tokenizer outside this
    package's tables; UsageError for a `pre` that does not apply.
    """
    folder = Path(folder)
    files = files or files_of(folder)
    if not (byte_level := _is_byte_level(files)) and pre not in (None, "default"):
        raise UsageError(f"--pretokenizer {pre} is for byte-level BPE", "leave it out: a SentencePiece tokenizer has none")
    try:
        return _keys(folder, config, files, byte_level, pre)
    except (AttributeError, TypeError, LookupError, ValueError, RecursionError, OSError) as error:
        # A JSON value of another type than the format's, somewhere deep; the checks above name the common ones.
        raise bad(f"the tokenizer files do not have the expected form: {type(error).__name__}: {error}") from None


def _keys(folder: Path, config: Mapping[str, Any], files: Files, byte_level: bool, pre: str | None) -> dict[str, GgufValue]:
    """The keys, in the order of llama.cpp's converter; for a value of another type than the format's whatever Python raises."""
    keys: dict[str, GgufValue] = {}
    habit = habit_of(config)
    if habit.llama and (prefix := files.settings.get("add_prefix_space")) is not None:
        keys[PREFIX_KEY] = ("bool", as_flag(prefix, "add_prefix_space"))
    name, merges, size = "default", list[str](), _size(config)
    if byte_level:
        vocabulary = _byte_level_vocabulary(files, size)
        name, merges = _byte_level_merges(files, pre)
    elif habit.ranked:
        vocabulary, merges = _ranked_vocabulary(files, size, habit)
        keys[PREFIX_KEY] = ("bool", False)
    elif exists(folder, "tokenizer.model"):
        vocabulary, prepends = _sentencepiece_vocabulary(files, read(folder, "tokenizer.model"), size, habit)
        if not habit.llama and (habit.prefix == "always" or not prepends):
            keys[PREFIX_KEY] = ("bool", prepends)
    else:
        vocabulary, prepends = _fallback_vocabulary(files, size)
        if not prepends:
            keys.setdefault(PREFIX_KEY, ("bool", False))
    keys["tokenizer.ggml.model"] = ("str", "gpt2" if byte_level else "gemma4" if habit.ranked else "llama")
    if byte_level or not habit.ranked:
        keys["tokenizer.ggml.pre"] = ("str", name)
    keys["tokenizer.ggml.tokens"] = ("str[]", vocabulary.tokens)
    if not byte_level:
        keys["tokenizer.ggml.scores"] = ("f32[]", vocabulary.scores)
    keys["tokenizer.ggml.token_type"] = ("i32[]", vocabulary.types)
    if byte_level or habit.ranked:
        keys["tokenizer.ggml.merges"] = ("str[]", merges)
    keys.update(special_keys(files, config, SPECIAL_TYPES, len(vocabulary.tokens)))
    keys.update(chat_templates(files))
    keys.update(_exceptions(files, config, habit, vocabulary.tokens))
    if habit.ranked and not byte_level:
        keys[ADD_KEYS["bos"]] = ("bool", True)
    if byte_level and pretokenizer_of(name).add_bos:  # which llama.cpp would do; the converter leaves the key out
        keys.setdefault(ADD_KEYS["bos"], ("bool", False))
    check_text(vocabulary.tokens)
    return keys


def _exceptions(files: Files, config: Mapping[str, Any], habit: Habit, tokens: list[str]) -> dict[str, GgufValue]:
    """What a class of the converter knows of its models: special tokens by text, and two models by vocab_size alone."""
    keys: dict[str, GgufValue] = {}
    if habit.absent or habit.instead:
        added = {text: index for index, text in enumerate(tokens)}
        found = special_keys(files, config, SPECIAL_TYPES, len(tokens))
        texts = {name: text for name, text in habit.absent.items() if SPECIAL_KEYS[name] not in found} | dict(habit.instead)
        keys |= {SPECIAL_KEYS[name]: ("u32", added[text]) for name, text in texts.items() if text in added}
    if habit.llama and config.get("vocab_size") == 32016:  # Code Llama; conversion/llama.py, set_vocab
        infill = special_keys(files, config, ("prefix", "suffix", "middle", "eot"), 32016)
        keys |= {SPECIAL_KEYS["eot"]: ("u32", 32010), **infill}
    if habit.llama and config.get("vocab_size") == 49152:  # granite, and SmolLM
        keys[ADD_KEYS["bos"]] = ("bool", False)
    return keys


def _size(config: Mapping[str, Any]) -> int | None:
    """vocab_size of config.json, or of its text_config; None if it is absent."""
    nested = config.get("text_config")
    value = config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, Mapping) else None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_VOCABULARY:
        raise bad(f"config.json says vocab_size {value!r}", f"expected an integer between 1 and {MAX_VOCABULARY}")
    return value


def _is_byte_level(files: Files) -> bool:
    """Which kind the folder holds, in the converter's order: tokenizer.model, byte fallback, byte level."""
    if exists(files.folder, "tokenizer.model"):
        return False
    if not files.tokenizer:
        raise bad(
            "the folder has neither tokenizer.model nor tokenizer.json",
            "vocab.json, merges.txt or tekken.json are not enough: save the tokenizer with transformers first",
        )
    model = as_object(files.tokenizer.get("model"), "model of tokenizer.json")
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"tokenizer.json holds a {model.get('type')!r} model", "only BPE can be converted")
    for flag in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(flag):
            raise Unsupported(f"tokenizer.json has a BPE model with {flag} {model[flag]!r}", "GGUF has no place for it")
    return not model.get("byte_fallback", False)


class AddedToken(NamedTuple):
    """An added token, as the `tokenizers` library sees it."""

    content: str
    special: bool
    normalized: bool


def _added_tokens(files: Files, vocab: Mapping[str, int], size: int | None) -> dict[int, AddedToken]:
    """AddedToken tokens by id, as transformers ends up with them.

    tokenizer.json first; then `added_tokens_decoder` of tokenizer_config.json, which wins over its flags, or the older
    added_tokens.json; then the named special tokens (transformers 5, TokenizersBackend.__init__).
    """
    known: dict[str, int] = dict(vocab)
    added: dict[int, AddedToken] = {}

    def add(index: Any, content: Any, special: bool, normalized: bool) -> None:
        if not isinstance(content, str) or not content:
            raise bad(f"an added token has the text {content!r}")
        index = as_id(index, size or MAX_VOCABULARY, f"added token {content!r}")
        if known.setdefault(content, index) != index:
            raise bad(f"added token {content!r} has the ids {known[content]} and {index}")
        added[index] = AddedToken(content, special, normalized)

    def add_entry(index: Any, entry: Any) -> None:
        entry = as_object(entry, "an added token")
        special = bool(entry.get("special", False))
        add(index, entry.get("content"), special, bool(entry.get("normalized", not special)))

    for entry in as_list(files.tokenizer.get("added_tokens") or [], "added_tokens of tokenizer.json"):
        add_entry(as_object(entry, "an added token").get("id"), entry)
    named = _named(files.settings)
    if "added_tokens_decoder" in files.settings:
        for key, entry in as_object(files.settings["added_tokens_decoder"], "added_tokens_decoder").items():
            add_entry(_decoder_id(key), entry)
    else:
        named += _named(load(files.folder / "special_tokens_map.json"))
        for content, index in load(files.folder / "added_tokens.json").items():
            if index not in added:
                add(index, content, content in named, content not in named)
    for content in named:
        if content not in known or known[content] not in added:
            index = known.get(content, max(known.values(), default=-1) + 1)
            add(index, content, True, False)
    if len(set(known.values())) != len(known):
        raise bad("an added token has the id of another token")
    return {index: added[index] for index in sorted(added)}


def _named(settings: Json) -> list[str]:
    """Texts of the named special tokens of tokenizer_config.json, which transformers makes added tokens on loading."""
    values = [value for key, value in settings.items() if key.endswith("_token") and not key.startswith("add_")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(key) or []
        values += list(extra.values()) if isinstance(extra, dict) else list(extra)
    texts = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [text for text in texts if isinstance(text, str) and text]


def _decoder_id(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise bad(f"added_tokens_decoder has the id {key!r}, which is not an integer") from None


def _model_vocabulary(files: Files, size: int | None) -> dict[str, int]:
    """`model.vocab` of tokenizer.json with ids checked."""
    vocab = as_object(files.tokenizer["model"].get("vocab"), "model.vocab of tokenizer.json")
    for token, index in vocab.items():
        as_id(index, size or MAX_VOCABULARY, f"token {token!r}")
    if len(set(vocab.values())) != len(vocab):
        raise bad("tokenizer.json gives one id to two tokens")
    return vocab


def _byte_level_vocabulary(files: Files, size: int | None) -> Vocabulary:
    """The vocabulary of a byte-level tokenizer.json; conversion/base.py, get_vocab_base."""
    vocab = _model_vocabulary(files, size)
    added = _added_tokens(files, vocab, size)
    texts = {index: token for token, index in vocab.items()} | {index: token.content for index, token in added.items()}
    tokens, types = [], []
    for index in range(_count(texts, size)):
        text, kind = texts.get(index, f"[PAD{index}]"), NORMAL if index in texts else UNUSED
        if index in added:
            text = text if added[index].normalized else byte_decoded(text)
            kind = CONTROL if added[index].special or looks_special(text) else USER_DEFINED
            text = text if kind == CONTROL else text.replace("▁", " ")
        tokens.append(text)
        types.append(kind)
    return Vocabulary(tokens, types)


def _count(texts: Mapping[int, str], size: int | None) -> int:
    """The number of tokens; InputError for holes where config.json does not say how many there are."""
    if size is None and max(texts, default=-1) >= len(texts):
        raise bad("tokenizer.json leaves out token ids", "say in config.json's vocab_size how many tokens the model has")
    return len(texts) if size is None else size


def _byte_level_merges(files: Files, pre: str | None) -> tuple[str, list[str]]:
    """(`tokenizer.ggml.pre`, `tokenizer.ggml.merges`) of a byte-level tokenizer.json."""
    model = files.tokenizer["model"]
    if (decoder := (files.tokenizer.get("decoder") or {}).get("type")) not in ("ByteLevel", None):
        raise Unsupported(f"tokenizer.json has the decoder {decoder!r}", "only byte-level BPE can be converted")
    vocab = as_object(model.get("vocab"), "model.vocab of tokenizer.json")
    pairs = merge_pairs(as_list(model.get("merges"), "model.merges of tokenizer.json"), vocab)
    if not pairs:
        raise bad("tokenizer.json has no merges", "llama.cpp does not load a BPE vocabulary without merges")
    texts = [token.get("content") for token in files.tokenizer.get("added_tokens") or []]
    name = recognize(files.tokenizer, [*vocab, *texts]) if pre is None else pretokenizer_of(pre).name
    return name, [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]


def _sentencepiece_vocabulary(files: Files, data: bytes, size: int | None, habit: Habit) -> tuple[Vocabulary, bool]:
    """(vocabulary, whether a space goes before the text) of tokenizer.model and its added tokens.

    conversion/base.py, _create_vocab_sentencepiece, with the class's habits. One piece is not as the converter has it:
    InternLM2's U+0000, which a C string cannot hold, becomes a dragon there, and llama.cpp then reads it into real dragons.
    """
    model = read_sentencepiece(data)
    size = size or len(model.pieces)
    if len(model.pieces) > size:
        raise bad(f"tokenizer.model has {len(model.pieces)} pieces, but the model has {size} tokens")
    tokens, scores, types = [f"[PAD{index}]" for index in range(size)], [PAD_SCORE] * size, [UNUSED] * size
    for index, (text, score, kind) in enumerate(model.pieces):
        if text == "\0":
            continue
        tokens[index], scores[index] = text, score
        types[index] = kind if kind in (UNKNOWN, CONTROL, UNUSED, BYTE) else NORMAL
        if habit.unused and text.startswith(habit.unused):
            types[index] = UNUSED

    def add(index: Any, text: Any, special: bool, spaced: bool = True) -> None:
        if not isinstance(text, str) or not text:
            raise bad(f"an added token has the text {text!r}")
        index = as_id(index, size, f"added token {text!r}")
        special = special or (spaced and looks_special(text))
        tokens[index] = text.replace("▁", " ") if spaced and not special else text
        scores[index], types[index] = ADDED_SCORE, CONTROL if special else USER_DEFINED

    for text, index in load(files.folder / "added_tokens.json").items():
        add(index, text, False, spaced=False)
    for key, entry in as_object(files.settings.get("added_tokens_decoder", {}), "added_tokens_decoder").items():
        content = as_object(entry, "an added token").get("content")
        add(_decoder_id(key), content, bool(entry.get("special")), habit.guess)
    for entry in as_list(files.tokenizer.get("added_tokens") or [], "added_tokens of tokenizer.json") if habit.listed else ():
        add(as_object(entry, "an added token").get("id"), entry.get("content"), bool(entry.get("special")), habit.guess)
    return Vocabulary(tokens, types, scores), model.prefix


def _fallback_vocabulary(files: Files, size: int | None) -> tuple[Vocabulary, bool]:
    """(vocabulary, `_prepends`) of a tokenizer.json with byte fallback; gguf-py/gguf/vocab.py, LlamaHfVocab.

    Types are that class's. Four things it gets wrong are not repeated: it gives every token the score -1000, so that
    llama.cpp merges from left to right instead of by rank; it does not pad to vocab_size, so that llama.cpp refuses the
    file; it leaves add_space_prefix out where the tokenizer does not prepend a space; and it takes added tokens for plain
    pieces where the vocabulary has them too, as Gemma's has, so that llama.cpp does not split them off. Here a piece's
    score is minus the rank of its first merge, as SentencePiece BPE scores are. An added ▁▁ is left to the merges: the
    normalizer makes it of spaces after added tokens are split off.
    """
    vocab = _model_vocabulary(files, size)
    prepends = _prepends(files.tokenizer)
    added = _added_tokens(files, vocab, size)
    named = set(_named(files.settings))
    pairs = merge_pairs(as_list(files.tokenizer["model"].get("merges"), "model.merges of tokenizer.json"), vocab)
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
        elif text in named or (index in added and (added[index].special or looks_special(text))):
            kind = CONTROL
        elif text not in vocab or (index in added and "▁" not in text):
            kind = USER_DEFINED
        else:
            score = float(-ranks.get(text, len(pairs)))
        tokens.append(text)
        types.append(kind)
        scores.append(score)
    return Vocabulary(tokens, types, scores), prepends


def _ranked_vocabulary(files: Files, size: int | None, habit: Habit) -> tuple[Vocabulary, list[str]]:
    """(vocabulary, merges) of a tokenizer.json with byte fallback, which llama.cpp merges by rank; conversion/gemma.py, Gemma4Model.

    Types are `_fallback_vocabulary`'s but for those that are to be shown, and no score counts.
    """
    found, prepends = _fallback_vocabulary(files, size)
    if prepends:
        raise Unsupported("the tokenizer puts a space before a text, and llama.cpp puts none for such a model", "--converter")
    types = [USER_DEFINED if text in habit.shown else kind for text, kind in zip(found.tokens, found.types, strict=True)]
    model = files.tokenizer["model"]
    merges = merge_pairs(as_list(model.get("merges"), "model.merges of tokenizer.json"), model["vocab"])
    return Vocabulary(found.tokens, types, [ADDED_SCORE] * len(types)), [" ".join(pair) for pair in merges]


def _prepends(tokenizer: Json) -> bool:
    """Whether a byte-fallback tokenizer.json puts a space before the text; Unsupported if it is not of Llama's form."""
    normalizers = steps_of(tokenizer.get("normalizer"), "normalizers")
    steps = steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prepend, replace = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if steps == [cut] and replace in normalizers:
        steps = []  # Gemma's: there are no spaces left to split at
    if not steps and normalizers in ([prepend, replace], [replace]):
        return prepend in normalizers
    if not normalizers and len(steps) == 1 and steps[0].get("type") == "Metaspace" and steps[0].get("split") is False:
        return bool(steps[0].get("prepend_scheme", "always") != "never")
    found = json.dumps({"normalizer": normalizers, "pre_tokenizer": steps}, ensure_ascii=False)
    raise Unsupported(f"tokenizer.json is not of Llama's form: {found}", "add the model's tokenizer.model to the folder")
