"""Opens any input as a `Checkpoint`, and refuses what contradicts itself."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import dialects, families, readers
from ..dialects import rivals
from ..errors import FormatError, InputError, UnknownModel, Unsupported, UsageError, YarnConvertError, many
from ..families import Family, normalized
from ..families.derived import absent, of_one_layer
from ..families.layers import MOST, slides
from ..families.model_types import SHAPE
from ..families.schema import numbered
from ..formats import layout
from ..formats.dtypes import to_f32
from ..formats.gguf_file import Gguf
from ..formats.inputs import notice
from ..formats.layout import Part
from ..formats.split import read_model
from ..formats.tensors import Tensor, load_json, read_folder
from ..rope import Array, Rope, effect, same_at_all_lengths, same_effect
from .config import around, config_of_folder, language_model, nest_of
from .lengths import Lengths, of_config, of_gguf, unsaid
from .manifest import MANIFEST, recipe_in
from .model import RECIPE, Checkpoint
from .source import Source

MISMATCH = "config and weights do not belong together"
NEWER = "a newer yarn-convert may know it; llama.cpp's --rope-scaling yarn --rope-scale S --yarn-orig-ctx L may extend it, unproven"


def open_checkpoint(source: Source, keep: Sequence[str] = (), doubtful: bool = False) -> Checkpoint:
    """Read a model's description, never its weights' data. `keep`: of two things that disagree, see `rivals.KEEP`. `doubtful`: let
    them disagree, for `inspect` to show; the checkpoint's `doubt` is then to be raised by who does anything else with it.

    Raises Disagreement for a config.json that says two things; Unsupported for a model without RoPE, of an unknown family, or with
    tensors or RoPE keys that no table knows; InputError or FormatError for files that are missing, cut short or contradict each other.
    """
    if source.is_gguf and keep:
        raise UsageError("--keep is for a config.json, which can say one thing twice", "leave it out")
    notice(source.path)
    return _open_gguf(source) if source.is_gguf else _open_folder(source, keep, doubtful)


def _open_folder(source: Source, keep: Sequence[str], doubtful: bool) -> Checkpoint:
    whole = config_of_folder(source.path)
    nest, beside, written = nest_of(whole), around(whole), language_model(whole)
    family = families.for_nested(written) if beside else families.for_config(written)
    _check_known(family, "model_type", str(written["model_type"]), families.MODEL_TYPES, UnknownModel)
    config = normalized(family, {**dict(zip(SHAPE, family.hf.shape, strict=False)), **written} if beside else written)
    own, rope, rival = rivals.read_rivals(of_one_layer(family, config), family.hf.latent, keep)
    context = dialects.hf_context(config)
    if rival and not doubtful:
        raise rival
    rope, left, ours, long = _left_recipe(_manifest_recipe(source.path), rope, context)
    found = Lengths(rope.original_context, context) if left else of_config(own, source, rope)
    rope = replace(rope, original_context=found.original)
    if source.headers is not None:
        tensors, files = dict(source.headers), list[Path]()
    else:
        tensors, files = read_folder(source.path)
    said = family.hparams.keys() - family.in_tensors.keys()
    hparams = {k: config.get(k) if family.listed else _first(k, config.get(k)) for k in family.hparams if k in said} | {
        "head_dim": dialects.hf_head_dim(config),
        "num_key_value_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
        "tie_word_embeddings": _tied(beside, written, config),
    }
    checkpoint = Checkpoint(
        source, family, rope, found.context, hparams, config, tensors, tuple(files), None, (), ours, written=written, nest=nest,
        around=beside, note=found.note, doubt=rival or found.doubt, long=long,
    )  # fmt: skip
    checkpoint = replace(checkpoint, hparams={**hparams, **_in_tensors(checkpoint)})
    _check(checkpoint)
    return checkpoint


def _in_tensors(c: Checkpoint) -> dict[str, list[float]]:
    """The lists that a folder has as tensors of one number in each layer; not those of which one is missing, or its headers alone are here.
    FormatError for a tensor that is no number."""
    found: dict[str, dict[int, float]] = {}
    for name, known in c.names.items():
        n, t = numbered(known), c.tensors[name]
        if n.template not in c.family.in_keys or c.source.headers_only:
            continue
        if t.elements != 1:
            raise FormatError(f"{name} has the shape {list(t.shape)}, and is one number in each layer", MISMATCH)
        found.setdefault(c.family.in_keys[n.template].key, {})[n.layer] = float(to_f32(t.read(), t.dtype)[0])
    whole = {key: numbers for key, numbers in found.items() if len(numbers) == c.layers == max(numbers) + 1}
    return {key: [numbers[i] for i in range(c.layers)] for key, numbers in whole.items()}


def _tied(*configs: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding: the model around says it, where it says anything (transformers, tie_weights), then its language
    model, then the family."""
    return bool(next((x for c in configs if (x := c.get("tie_word_embeddings")) is not None), False))


def _open_gguf(source: Source) -> Checkpoint:
    gguf = read_model(source.path)
    keys = readers.of_layers(gguf.arch, {k: f.value for k, f in gguf.fields.items() if not k.startswith("tokenizer.")})
    family = families.for_gguf(gguf.arch, keys, gguf.tensors)
    _check_known(family, "GGUF architecture", gguf.arch, families.ARCHS, hint=NEWER)
    readers.check_keys(gguf.arch, keys)
    arch = family.gguf_arch
    hparams = _gguf_hparams(gguf, family, keys)
    rotary_dim = dialects.positive_int(keys.get(f"{arch}.rope.dimension_count", hparams["head_dim"]), "rope.dimension_count")
    if rotary_dim > hparams["head_dim"]:
        raise FormatError(f"rope.dimension_count {rotary_dim:,} is more than the {hparams['head_dim']:,} of a head", "write the GGUF again")
    rotary_dim //= 2 if family.gguf.halved else 1
    factors = _factors(gguf, family, rotary_dim)
    rope, ignored = dialects.gguf_read(keys, arch, rotary_dim, factors)
    context = dialects.positive_int(hparams["max_position_embeddings"], "context_length")
    rope, left, ours, long = _left_recipe(keys.get(RECIPE), rope, context)
    found = Lengths(rope.original_context, context) if left else of_gguf(gguf, family.model_type, source, rope, context)
    rope = replace(rope, original_context=found.original)
    streamed = source.headers or {}
    tensors = _with_one_row(family, {name: streamed.get(name, t) for name, t in gguf.tensors.items() if name not in factors})
    files = tuple(part.path for part in gguf.parts) or (source.path,)
    checkpoint = Checkpoint(
        source, family, rope, found.context, hparams, keys, tensors, files, gguf, tuple(ignored), ours, factors,
        note=found.note, doubt=found.doubt, long=long,
    )  # fmt: skip
    _check(checkpoint)
    return checkpoint


def _with_one_row(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, and of each matrix of one row that row's dimension, which llama-quantize leaves out (ggml_n_dims)."""
    single = {t for hf in family.tensors for t in family.parts(hf) if family.shape(layout.part_of(t))[0] == "one"}
    return {n: replace(t, shape=(1, *t.shape)) if len(t.shape) == 1 and numbered(n).template in single else t for n, t in tensors.items()}


def _check_known(
    family: Family, what: str, name: str, known: Container[str], error: type[Unsupported] = Unsupported, hint: str = ""
) -> None:
    """Raise `error` for a family without a row whose RoPE is not known either."""
    if not family.listed and name not in known:
        raise error(f"unknown {what} {name!r}", hint or families.known())


def _gguf_hparams(gguf: Gguf, family: Family, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The hparams of a GGUF under their standard names, with what llama.cpp takes for absent ones."""
    said = {hf: (family.gguf_key(hf)[0], keys.get(family.gguf_key(hf)[0])) for hf in family.hparams}
    hparams: dict[str, Any] = {
        hf: _each(v, keys, family.gguf_key(hf)[1]) if family.by_layer(hf) else _first(name, v) for hf, (name, v) in said.items()
    }
    hidden, heads = (dialects.positive_int(hparams[k], k) for k in ("hidden_size", "num_attention_heads"))
    by_layer = keys.get(f"{gguf.arch}.attention.head_count_kv")
    if isinstance(by_layer, list) or "kv_heads_by_layer" in family.hparams:  # 0 in layers without attention
        hparams["num_key_value_heads"] = next((n for n in (by_layer if isinstance(by_layer, list) else [by_layer]) if n), 0)
    for key, default in (("head_dim", hidden // heads), ("num_key_value_heads", heads)):
        hparams[key] = dialects.positive_int(default if hparams.get(key) is None else hparams[key], key)
    if family.layer_sizes is None:
        _check_by_layer(gguf, keys, hparams["head_dim"])
    if hparams.get("vocab_size") is None and "token_embd.weight" in gguf.tensors:
        hparams["vocab_size"] = gguf.tensors["token_embd.weight"].shape[0]
    hparams |= absent(family, hparams)
    hparams |= {k: v for k, v in family.fills(hparams).items() if hparams[k] is None}
    hparams["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    return hparams


def _each(value: Any, keys: Mapping[str, Any], kind: str) -> Any:
    """A list with an entry for each layer, of which a file may say one for all, or of how many layers the last sees all."""
    layers = keys.get(f"{keys['general.architecture']}.block_count")
    if not isinstance(value, int | float) or type(layers) is not int or not 0 < layers <= MOST:
        return value
    return slides(value, layers) if kind == "bool[]" and type(value) is int else [value] * layers


def _first(name: str, value: Any) -> Any:
    """The first layer's number of an array with others: of a stand-in, whose tensors are only copied, llama.cpp takes the head's size
    from it (llama_hparams::n_head). FormatError for a list in a key that has one number for all layers."""
    if isinstance(value, list) and name != "intermediate_size" and name.partition(".")[2] not in readers.BY_LAYER:
        raise FormatError(f"{name} is a list, not a number", "write the GGUF again")
    return value[0] if isinstance(value, list) and value else value


def _check_by_layer(gguf: Gguf, keys: Mapping[str, Any], head_dim: int) -> None:
    """Raise FormatError for an array of numbers that the tensors of its layers do not have; 0 is a layer of another kind."""
    for key, tensor, rows in (
        ("attention.head_count", "attn_q", head_dim),
        ("attention.head_count_kv", "attn_k", head_dim),
        ("feed_forward_length", "ffn_up", 1),
    ):
        value = keys.get(f"{gguf.arch}.{key}")
        for i, n in enumerate(value if isinstance(value, list) else ()):
            found = gguf.tensors.get(f"blk.{i}.{tensor}.weight")
            if type(n) is not int or (n and found is not None and found.shape[0] != n * rows):
                raise FormatError(f"{gguf.arch}.{key} is {n!r} in layer {i}, which its tensors are not of", "write the GGUF again")


def _factors(gguf: Gguf, family: Family, rotary_dim: int) -> dict[str, Array]:
    """Those of the tensors `dialects.FACTORS` that a GGUF has and that carry a recipe, float64[D/2]."""
    found = {name: gguf.tensors[name] for name in dialects.FACTORS if name in gguf.tensors}
    pairs = readers.factor_pairs(family.gguf, rotary_dim)
    for name, t in found.items():
        if t.dtype != "F32" or t.shape != (pairs,):
            raise FormatError(f"{name} is {t.dtype}{list(t.shape)}, not F32[{pairs}]", "write the GGUF again")
    return {name: t.read().view(np.float32).astype(np.float64)[: rotary_dim // 2] for name, t in found.items()}


def _check(c: Checkpoint) -> None:
    """Raise unless the numbers are there, every tensor is known, none is missing and all have their shape."""
    for key in c.family.hparams:
        _check_number(c, key)
    _check_window(c.config)
    if not c.family.listed or c.packed or (not c.source.has_weights and not c.tensors):
        return
    named = c.parts(gguf=True)
    if c.gguf is not None:
        for name in c.tensors:
            c.family.to_hf(name)
    if c.layers > len(named):
        raise InputError(f"the model claims {c.layers:,} layers and holds {len(named):,} tensors", "it is incomplete: get it again")
    required = [*c.family.required(c.described), *_turned_on(c), *([] if c.hparams["tie_word_embeddings"] else ["output.weight"])]
    missing = [name for name in dict.fromkeys(required) if name not in named]
    if missing:
        raise _incomplete(c, missing)
    if c.gguf is None:
        _check_in_keys(c)
    for name, part in named.items():
        _check_part(c, name, part)


def _check_in_keys(c: Checkpoint) -> None:
    """Raise unless a folder has, in each of its layers and in no more, the tensors of one number that a GGUF has in keys."""
    wanted = [template.replace("{i}", str(i)) for template in c.family.in_keys for i in range(c.layers)]
    there = {known: name for name, known in c.names.items() if numbered(known).template in c.family.in_keys}
    if missing := [name for name in wanted if name not in there]:
        raise _incomplete(c, missing)
    if beyond := there.keys() - set(wanted):
        raise FormatError(f"{there[min(beyond)]} is in a layer beyond the {c.layers} of the config", MISMATCH)


def _incomplete(c: Checkpoint, missing: list[str]) -> InputError:
    """What to say of tensors that are not there, given by their GGUF names, or by the only ones that they have."""
    named = c.gguf is not None or numbered(missing[0]).template in c.family.in_keys
    first = missing[0] if named else c.hf_name(missing[0]).replace("{e}", "0")
    if missing == ["output.weight"]:
        why = f"the head {first!r} is missing, and config.json does not say tie_word_embeddings: true"
        return InputError(why, "set it where the head is the embedding, as the base's config.json says; else get the checkpoint again")
    return InputError(
        f"{many(len(missing), 'tensor is', 'tensors are')} missing, first {first!r}", "the checkpoint is incomplete: get it again"
    )


def _check_number(c: Checkpoint, key: str) -> None:
    """Raise FormatError for a value that its GGUF key could not hold."""
    if key not in c.hparams:
        return  # in tensors, which are not here or not all: `_check` looks for them
    value, kind = c.hparams[key], c.family.gguf_key(key)[1]
    if kind.endswith("[]"):
        _check_list(c, key, value)
        return
    if value is None and (key in c.family.may_lack or kind != "u32"):
        return
    if kind == "u32" and not (value == 0 and key in c.family.may_lack):
        dialects.positive_int(value, key)
    elif key.endswith("eps"):
        if not 0 <= dialects.number(value, key) < 1:
            raise FormatError(f"{key} is {value!r}, not a small positive number", "fix the model's config.json or GGUF key")
    elif kind == "f32" and dialects.number(value, key) <= 1 and key == "rope_local_base_freq":
        raise FormatError(f"{key} is {value!r}, not above 1", "fix the model's config.json or GGUF key")


def _check_list(c: Checkpoint, key: str, value: Any) -> None:
    """Raise FormatError for what is no list of numbers with one for each layer, or four of M-RoPE; whole ones where its key has such."""
    wanted, whole = 4 if key == families.SECTIONS else c.layers, c.family.gguf_key(key)[1] != "f32[]"
    if not isinstance(value, list) or len(value) != wanted or (whole and not all(isinstance(n, int) and n >= 0 for n in value)):
        raise FormatError(f"{key} is {value!r}, not {wanted:,} {'whole ' * whole}numbers", "fix the model's config.json or GGUF key")
    for n in value if key in c.family.in_tensors else ():
        dialects.number(n, key)


def _check_part(c: Checkpoint, name: str, part: Part) -> None:
    """Raise FormatError for a tensor that the config does not describe: a layer too many, another shape, a bias switched off."""
    n, what = numbered(name), part.sources[0].name
    if name.startswith("blk.") and n.layer >= c.layers:
        raise FormatError(f"{what} is in a layer beyond the {c.layers} of the config", MISMATCH)
    if not c.family.has(n.template, c.described, n.layer):
        raise FormatError(f"{what} is in a layer that has none by the config", MISMATCH)
    part_name = layout.part_of(name)
    expected = tuple(c.sizes_of(n.layer)[size] for size in c.family.shape(part_name))
    if part.shape != expected:
        raise FormatError(f"{what} has the shape {list(part.shape)}, the config describes {list(expected)}", MISMATCH)
    switched = any(part_name in parts for parts in c.family.hf.switches.values())
    if c.gguf is None and switched and part_name not in c.family.hf.turned_on(c.config):
        raise FormatError(f"config.json does not turn on {what}: transformers drops it, other readers may not", MISMATCH)


def _turned_on(c: Checkpoint) -> list[str]:
    """The weights, by their GGUF names, that config.json turns on in every layer; a bias that is not there is none to any reader."""
    on = [part for part in c.family.hf.turned_on(c.config) if part.endswith(".weight")]
    return [f"blk.{i}.{part}" for i in range(c.layers) for part in on] if c.gguf is None else []


def _left_recipe(recipe: Any, rope: Rope, context: int) -> tuple[Rope, bool, bool, Rope | None]:
    """(the recipe that yarn-convert left, True, whether it is an extension of ours, `Checkpoint.long`) where it gives the very tables
    that the file carries and says L, else (`rope`, False, False, None).

    A file cannot spell everything: the new base of ntk-aware hides the old one, explicit frequencies their method.
    """
    try:
        found = recipe_in(recipe)
        left = found.rope()
        other_length = left.method == rope.method == "yarn" and left.original_context != rope.original_context  # which a file spells
        long = found.long_rope
        as_said = long is None or (left.row.switches and same_effect(effect(long), effect(left)))
        if same_at_all_lengths(left, rope) and not unsaid(left, context) and not other_length and as_said:
            return left, True, found.kept is not True, long
    except YarnConvertError:
        pass  # absent, or not ours
    return rope, False, False, None


def _manifest_recipe(folder: Path) -> Any:
    try:
        return load_json(folder / MANIFEST).get("recipe")
    except (InputError, OSError):
        return None


def _check_window(config: Mapping[str, Any]) -> None:
    """Raise FormatError for a sliding window of no tokens."""
    if config.get("sliding_window") is not None and config.get("use_sliding_window") is not False:  # transformers 5 saves a 0 then
        dialects.positive_int(config["sliding_window"], "sliding_window")
