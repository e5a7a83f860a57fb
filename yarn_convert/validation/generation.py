"""What a model says of generation: where it ends, how long it may get, how it is drawn; and what of that would break it.

generation_config.json has no schema: it is advice that no RoPE, weight or token depends on, and transformers loads nearly anything
in it. So a member of another type is said, here and by `general.to_gguf`, and stands in no conversion's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from ..checkpoint import Checkpoint
from ..compute.tokens import as_keys, ends, json_of, tokenizer_of
from ..errors import YarnConvertError
from ..formats.contents import CONFIG, GENERATION
from ..formats.general import ENDS, IDS

TOKENIZER = "tokenizer_config.json"


def named_otherwise(c: Checkpoint, base: Checkpoint) -> Iterator[str]:
    """Tokens that a folder names in config.json or generation_config.json and its base does not. A GGUF's are its tokenizer's, and so
    are those that a folder does not name."""
    if c.gguf:
        return
    mine, theirs = ends(c), ends(base)
    # A folder has room for more of them than a GGUF.
    other = theirs - mine if base.gguf else mine != theirs and (theirs or mine - _unsaid(base, *ENDS))
    if other:
        yield f"its texts end at {_listed(mine)}, the base's at {_listed(theirs)}"
        return
    for name, a, b in ((CONFIG, c.config, base.config), (GENERATION, json_of(c, GENERATION), json_of(base, GENERATION))):
        for key in IDS if base.gguf is None and a and b else ():
            found, wanted = ids_of(a.get(key)), ids_of(b.get(key))
            if key == "eos_token_id" and found and found < wanted and a is c.config and ends(c) == ids_of(json_of(c, GENERATION).get(key)):
                continue  # a GGUF names one of a list, and generation_config.json has them all
            if found != wanted and (wanted or found - _unsaid(base, key.removesuffix("_token_id"))):
                yield f"{name}: its {key} is {a.get(key)}, the base's {b.get(key)}"


def _unsaid(base: Checkpoint, *names: str) -> set[int]:
    """The tokens that a folder's tokenizer has by these names, whether config.json has them or not."""
    keys = as_keys(base)
    return {keys.specials[name] for name in names if name in keys.specials} if keys else set()


def ids_of(value: Any) -> set[int]:
    """One id or a list of them."""
    return {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}


def _listed(ids: set[int]) -> str:
    return ", ".join(map(str, sorted(ids))) or "no token"


def warnings(c: Checkpoint) -> list[str]:
    """What breaks or cuts generation, a line each; no failure of the conversion."""
    return [*(_of_gguf(c) if c.gguf else _of_folder(c))]


def _of_gguf(c: Checkpoint) -> Iterator[str]:
    assert c.gguf is not None
    if "tokenizer.ggml.tokens" not in c.gguf.fields:
        return
    keys = {f"tokenizer.ggml.{name}": c.gguf.get(f"tokenizer.ggml.{name}") for name in (*IDS, "eot_token_id", "padding_token_id")}
    yield from _strangers(c, keys)
    if keys["tokenizer.ggml.eos_token_id"] is None and keys["tokenizer.ggml.eot_token_id"] is None:
        yield "no key says at which token generation ends: llama.cpp takes one by its own default"


def _strangers(c: Checkpoint, values: Mapping[str, Any]) -> Iterator[str]:
    """Ids that are no tokens of the model."""
    size = c.hparams.get("vocab_size") or 0
    for key, value in values.items():
        odd = [i for i in (value if isinstance(value, list) else [value]) if i is not None and type(i) is not int]
        if odd:
            yield f"{key} is {value!r}, not a token's id"
        if wrong := sorted(i for i in ids_of(value) if not 0 <= i < size and not (i == -1 and key.startswith("pad"))):
            yield f"{key} names the token {wrong[0]}, of {size:,}"


def _of_folder(c: Checkpoint) -> Iterator[str]:
    try:
        c.json_of(GENERATION)
    except YarnConvertError as e:
        yield f"{e.message}: transformers goes on without it"
    said, written = json_of(c, GENERATION), dict(c.written)
    yield from (
        f"{name}: {line}" for name, x in ((GENERATION, said), (CONFIG, written)) for line in _strangers(c, {k: x.get(k) for k in IDS})
    )
    found = ends(c)
    if said and not found:
        yield f"neither {GENERATION} nor {CONFIG} says at which token generation ends"
    if found and (own := _own_end(c)) is not None and own not in found:
        yield f"generation ends at {_listed(found)}, the tokenizer's eos is {own}"
    for key, least in (("max_length", c.context), ("max_new_tokens", 1)):
        n = said.get(key)
        if n is not None and not _is_number(n):
            yield f"{GENERATION}: {key} is {n!r}, not a number"
        elif n is not None and n < least:
            yield f"{GENERATION}: {key} {n:,} ends texts before the {c.context:,} tokens of the context"
    if _is_number(limit := json_of(c, TOKENIZER).get("model_max_length")) and limit < c.context:
        yield f"{TOKENIZER}: model_max_length {limit:,} cuts texts before the {c.context:,} tokens of the context"
    yield from (f"{GENERATION}: {line}" for line in _drawing(said))


# key -> (what a value must fulfil, in words); transformers, generation/logits_process.py
RANGES: Mapping[str, tuple[Callable[[float, bool], bool], str]] = {
    "temperature": (lambda x, drawn: x > 0 or (x == 0 and not drawn), "above 0 where do_sample is true"),
    "top_p": (lambda x, drawn: 0 < x <= 1, "above 0 and at most 1"),
    "top_k": (lambda x, drawn: x >= 0, "not below 0"),
    "min_p": (lambda x, drawn: 0 <= x <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda x, drawn: x > 0, "above 0"),
}


def _drawing(said: Mapping[str, Any]) -> Iterator[str]:
    """How the next token is drawn, where it cannot be."""
    for key, (sound, words) in RANGES.items():
        value = said.get(key)
        if value is not None and not (_is_number(value) and sound(value, bool(said.get("do_sample")))):
            yield f"{key} is {value!r}, and has to be {words}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _own_end(c: Checkpoint) -> int | None:
    """The id of the tokenizer's eos token, as far as it can be read."""
    said = json_of(c, TOKENIZER).get("eos_token")
    text = said.get("content") if isinstance(said, dict) else said
    try:
        return tokenizer_of(c).token_to_id(text) if isinstance(text, str) else None
    except YarnConvertError:
        return None
