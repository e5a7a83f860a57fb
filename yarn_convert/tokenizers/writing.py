"""Owns `to_hf`: the tokenizer keys of a GGUF become the tokenizer files of an HF folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import Unsupported
from .caveats import UNSTRIPPED, strips
from .pretokenizers import PreTokenizer, pretokenizer_of
from .sentencepiece_model import has_bytes, unknown_id, write_model
from .vocabulary import (
    ADD_KEYS,
    ADDED_SCORE,
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL_KEYS,
    SPECIAL_TYPES,
    TEMPLATE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Json,
    Vocabulary,
    as_flag,
    as_id,
    as_list,
    bad,
    byte_decoded,
    check_text,
    looks_special,
    merge_pairs,
)

KINDS = ("gpt2", "llama", "gemma4")
TOKENIZER_ORDER = ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
KNOWN = {*SPECIAL_KEYS.values(), *ADD_KEYS.values(), TEMPLATE, "tokenizer.chat_templates"}
KNOWN |= {f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "scores", "token_type", "merges", "add_space_prefix")}
# Ids that HF files have no place for. llama.cpp finds these tokens by their text when the keys are absent.
DROPPED = re.compile(r"tokenizer\.ggml\.(eot|eom|cls|fim_\w+|prefix|suffix|middle)_token_id|tokenizer\.huggingface\.json")


def to_hf(keys: Mapping[str, Any]) -> dict[str, bytes]:
    """HF tokenizer files (file name -> content) rebuilt from a GGUF's `tokenizer.*` keys, given as plain Python values.

    tokenizer.json, tokenizer_config.json and special_tokens_map.json; for the `llama` kind also tokenizer.model, so
    that its scores survive, and added_tokens.json where a token needs it. `to_gguf` of these files gives the keys back,
    with what llama.cpp assumes for an absent key written out (BOS first for `llama` and Llama 3), and without the ids
    that HF files have no place for (DROPPED). Tokens that pad the vocabulary ([PAD{id}]) are left out; vocab_size of
    config.json restores them. general.name counts too, if it is among the keys: see `caveats.strips`. model_max_length
    is the caller's. Errors: Unsupported for a kind, pre-tokenizer or key that HF files cannot carry; InputError for keys
    that contradict each other.
    """
    kind, vocabulary = vocabulary_of(keys)
    row = pretokenizer_of(keys.get("tokenizer.ggml.pre")) if kind == "gpt2" else None
    ids, adds = specials_of(keys, vocabulary, row, kind)
    settings: Json = {f"add_{name}_token": flag for name, flag in adds.items()}
    if (prefix := keys.get("tokenizer.ggml.add_space_prefix")) is not None:
        settings["add_prefix_space"] = as_flag(prefix, "tokenizer.ggml.add_space_prefix")
    added = _gguf_added(vocabulary, ids, kind, strips(str(keys.get("general.name", ""))))
    decoder, files = added, {}
    if kind == "gemma4":
        pairs = merge_pairs(as_list(keys.get("tokenizer.ggml.merges"), "tokenizer.ggml.merges"), _without_padding(vocabulary))
        tokenizer = _sentencepiece_json(vocabulary, ids, False, pairs)
    elif row is None:
        tokenizer = _sentencepiece_json(vocabulary, ids, prefix is not False, _merges(vocabulary))
        decoder, extra = _expressible(vocabulary, added, ids)
        files["tokenizer.model"] = write_model(vocabulary, ids, prefix is not False)
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


def vocabulary_of(keys: Mapping[str, Any]) -> tuple[str, Vocabulary]:
    """(kind; tokens, types and scores) of the keys, checked; Unsupported for another kind, or a key that HF files cannot carry."""
    kind = keys.get("tokenizer.ggml.model")
    if kind not in KINDS:
        raise Unsupported(f"the GGUF holds a tokenizer of kind {kind!r}", f"only {', '.join(KINDS)} can be read")
    left = [key for key in keys if key.startswith("tokenizer.") and key not in KNOWN and not DROPPED.fullmatch(key)]
    if left := [key for key in left if not key.startswith(TEMPLATE + ".")]:
        raise Unsupported(f"HF files cannot carry {', '.join(sorted(left))}", "start from the model's HF folder instead")
    tokens = as_list(keys.get("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens")
    types = as_list(keys.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens)), "tokenizer.ggml.token_type")
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise bad("tokenizer.ggml.tokens is empty or holds something else than text", "the GGUF is damaged")
    kinds = range(NORMAL, (UNUSED if kind == "gpt2" else BYTE) + 1)
    if len(types) != len(tokens) or not all(isinstance(one, int) and one in kinds for one in types):
        raise bad(f"tokenizer.ggml.token_type does not give each of {len(tokens)} tokens a type", "the GGUF is damaged")
    check_text(tokens)
    if kind != "llama":
        return kind, Vocabulary(tokens, types)
    scores = as_list(keys.get("tokenizer.ggml.scores"), "tokenizer.ggml.scores")
    if len(scores) != len(tokens) or not all(isinstance(one, int | float) and abs(one) < 3e38 for one in scores):
        raise bad(f"tokenizer.ggml.scores does not give each of {len(tokens)} tokens a number", "the GGUF is damaged")
    return kind, Vocabulary(tokens, types, scores)


def specials_of(
    keys: Mapping[str, Any], vocabulary: Vocabulary, row: PreTokenizer | None, kind: str
) -> tuple[dict[str, int], dict[str, bool]]:
    """Special token ids and add flags by name, with the defaults of llama.cpp (src/llama-vocab.cpp, load)."""
    names = [name for name in SPECIAL_TYPES if SPECIAL_KEYS.get(name) in keys]
    ids = {name: as_id(keys[SPECIAL_KEYS[name]], len(vocabulary.tokens), SPECIAL_KEYS[name]) for name in names}
    adds = {name: as_flag(keys[key], key) for name, key in ADD_KEYS.items() if key in keys}
    if kind == "gemma4":  # whatever is written
        adds["bos"] = True
    if kind == "llama" or (row and row.add_bos):
        adds.setdefault("bos", True)
    if kind == "llama" and adds["bos"] and len(vocabulary.tokens) > 1:
        ids.setdefault("bos", 1)
    for name in ("bos", "eos"):
        if adds.get(name) and name not in ids:
            raise bad(f"{ADD_KEYS[name]} is true, but there is no {name}_token_id", "the GGUF's metadata is incomplete")
    return ids, adds


def _gguf_added(vocabulary: Vocabulary, ids: Mapping[str, int], kind: str, stripping: bool) -> dict[int, Json]:
    """The `added_tokens` of tokenizer.json by id: control, unknown, user-defined and named tokens."""
    added: dict[int, Json] = {}
    for index, (text, of) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if index in ids.values() or (of in (CONTROL, UNKNOWN, USER_DEFINED) and not vocabulary.is_pad(index)):
            # Byte level: the converter decodes an added token that is not `normalized`; keep what this would change.
            normalized = kind == "gpt2" and byte_decoded(text) != text
            rstrip = stripping and text not in UNSTRIPPED and of in (CONTROL, UNKNOWN, USER_DEFINED)
            flags = {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": normalized}
            added[index] = {"content": text, **flags, "special": of != USER_DEFINED}
    return added


def _expressible(vocabulary: Vocabulary, added: Mapping[int, Json], ids: Mapping[str, int]) -> tuple[dict[int, Json], dict[str, int]]:
    """(added_tokens_decoder, added_tokens.json) that leave the other tokens of tokenizer.model with type and score."""
    decoder, extra = {}, {}
    unknown = unknown_id(vocabulary, ids)
    for index, entry in added.items():
        text, of = vocabulary.tokens[index], vocabulary.types[index]
        if of == USER_DEFINED and (looks_special(text) or "▁" in text):
            extra[text] = index
        elif of == USER_DEFINED or (of == CONTROL and (vocabulary.scores[index] == ADDED_SCORE or index == unknown)):
            decoder[index] = entry
    return decoder, extra


def _byte_level_json(vocabulary: Vocabulary, keys: Mapping[str, Any], row: PreTokenizer) -> Json:
    """normalizer, pre_tokenizer, decoder and model of a byte-level tokenizer.json."""
    vocab = _without_padding(vocabulary)
    pairs = merge_pairs(as_list(keys.get("tokenizer.ggml.merges"), "tokenizer.ggml.merges"), vocab)
    steps = [{**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step for step in row.steps]
    return {
        "normalizer": _sequence(list(row.normalizers), "normalizers"),
        "pre_tokenizer": _sequence(steps, "pretokenizers"),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model_json(vocab, pairs, ignore_merges=row.ignore_merges),
    }


def _sentencepiece_json(vocabulary: Vocabulary, ids: Mapping[str, int], prefix: bool, merges: Iterable[tuple[str, str]]) -> Json:
    """normalizer, decoder and model of a tokenizer.json that does what llama.cpp does with the kinds `llama` and `gemma4`.

    That is the form of LlamaTokenizerFast with legacy=True: a space before the text and after every special token.
    """
    vocab = _without_padding(vocabulary)
    normalizers: list[Json] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    decoders: list[Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unreplace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    unknown = vocabulary.tokens[unknown_id(vocabulary, ids)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [unreplace, {"type": "ByteFallback"}, {"type": "Fuse"}, *decoders]},
        "model": _model_json(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes(vocabulary)),
    }


def _without_padding(vocabulary: Vocabulary) -> dict[str, int]:
    return {text: index for index, text in enumerate(vocabulary.tokens) if not vocabulary.is_pad(index)}


def _model_json(vocab: Mapping[str, int], pairs: Iterable[tuple[str, str]], **flags: Any) -> Json:
    defaults: Json = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    defaults |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **defaults, **flags, "vocab": vocab, "merges": [f"{left} {right}" for left, right in pairs]}


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges from scores: every way to put a piece together from two others, best piece first.

    The order is that of transformers (tokenization_utils_base.py, generate_merges with scores). Only NORMAL pieces take
    part, as in SentencePiece. Unsupported if the scores are placeholders, which carry no order.
    """
    rows = enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
    normal = {text: index for index, (text, of) in rows if of == NORMAL and " " not in text}
    found: list[tuple[float, str, str]] = []
    for text, index in normal.items():
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        cuts = [cut for cut in cuts if cut[0] in normal and cut[1] in normal]
        cuts.sort(key=lambda cut: (normal[cut[0]], normal[cut[1]]))
        found += [(vocabulary.scores[index], *cut) for cut in cuts]
    if len({left + right for _, left, right in found}) > 1 and len({one[0] for one in found}) == 1:
        raise Unsupported(
            "the GGUF's scores are all the same, so the order of its merges is lost",
            "start from the model's HF folder instead; the file was made without its tokenizer.model",
        )
    found.sort(key=lambda one: (one[0], len(one[1]), len(one[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _template_json(vocabulary: Vocabulary, ids: Mapping[str, int], adds: Mapping[str, bool], byte_level: bool) -> Json | None:
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
        template: Json = {
            "type": "TemplateProcessing",
            "single": [*special(bos, 0), first, *special(eos, 0)],
            "pair": [*special(bos, 0), first, *middle, second, *special(eos, 1)],
            "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in texts.items()},
        }
        parts.append(template)
    return _sequence(parts, "processors")


def _sequence(steps: list[Json], many: str) -> Json | None:
    if len(steps) > 1:
        return {"type": "Sequence", many: steps}
    return steps[0] if steps else None


def _hf_templates(keys: Mapping[str, Any]) -> Any:
    """`chat_template` of tokenizer_config.json: text, or a list of named ones; None if there is none."""
    named = [key.removeprefix(TEMPLATE + ".") for key in keys if key.startswith(TEMPLATE + ".")]
    listed = keys.get("tokenizer.chat_templates", named)
    order = [name for name in as_list(listed, "tokenizer.chat_templates") if name in named]
    order += [name for name in named if name not in order]
    default = [{"name": "default", "template": keys[TEMPLATE]}] if TEMPLATE in keys else []
    templates = [*default, *({"name": name, "template": keys[f"{TEMPLATE}.{name}"]} for name in order)]
    if not all(isinstance(entry["template"], str) for entry in templates):
        raise bad("a chat template of the GGUF is not text", "the GGUF is damaged")
    return templates if named else keys.get(TEMPLATE)


def _dump(value: Any) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
    except UnicodeEncodeError as error:
        raise bad(f"the GGUF's tokenizer holds text that is not valid Unicode: {error.reason}") from None
