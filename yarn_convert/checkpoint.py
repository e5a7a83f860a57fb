"""Opens any input and describes it canonically: family, RoPE recipe, context, shape, tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import dialects, families, layout, readers, rivals
from .config import read_config
from .contents import PAPERS, belonging
from .errors import FormatError, InputError, Unsupported, UsageError, YarnConvertError
from .families import Family, normalized
from .families.derived import absent, of_one_layer
from .families.schema import numbered
from .files import exists
from .gguf_file import Gguf
from .inputs import notice
from .layout import Part
from .lengths import DUAL_CHUNKS, Lengths, checked, of_config, of_gguf, reach, stale, unsaid
from .manifest import MANIFEST, recipe_in
from .packing import Packing, packing_of
from .readers import Beside
from .rope import Array, Rope, Table, effect, geometric, same_at_all_lengths
from .source import Source
from .split import read_model
from .tensors import INDEXES, Tensor, load_json, read_folder

SIZES = {  # name in families.schema.SHAPES -> standard config key
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "ff": "intermediate_size",
    "experts": "num_experts",
    "expert_ff": "moe_intermediate_size",
    "shared_ff": "shared_expert_intermediate_size",
    "q_lora": "q_lora_rank",
    "kv_lora": "kv_lora_rank",
    "value": "v_head_dim",
}
PACKED_HINT = "start from the base, or a copy of it, in BF16; --out safetensors keeps packed weights as they are"
MORE_LAYERS, NEXT_TOKENS = "num_nextn_predict_layers", "layers that predict tokens further on"
WINDOW = "attention.sliding_window"  # below a GGUF's architecture
RECIPE = "yarn_convert.recipe"  # and in a GGUF: the canonical recipe as JSON, so that the file says what was meant


@dataclass(frozen=True)
class Checkpoint:
    """A base model. `tensors` has the format's own names; `hparams` config.json's names, whatever the format.

    `config` is the parsed config.json with the family's defaults, or the GGUF's fields as plain values but for the
    vocabulary. `context` is the length in tokens that the model says it serves. `ignored` lists RoPE keys that the
    format's main reader does not read. `ours`: the recipe is an extension of yarn-convert's, which left it
    beside or in the file.
    `factors`: a GGUF's tensors by which llama.cpp divides the angles. `written`: config.json as it stands, which is what
    other readers than transformers know; empty for a GGUF. `note`: where L comes from, if the file does not say it; `doubt`: raised
    by all that count from L where nobody says it, and then `rope` and `context` are what readers take.
    """

    source: Source
    family: Family
    rope: Rope
    context: int
    hparams: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weight_files: tuple[Path, ...]
    gguf: Gguf | None
    ignored: tuple[str, ...] = ()
    ours: bool = False
    factors: Mapping[str, Array] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    doubt: InputError | None = None

    def counting_from(self, original: int | None) -> Checkpoint:
        """The same checkpoint with the L that a user says; None changes nothing, nor does any where L is said and makes the table.
        UsageError for what is no length."""
        makers_own = self.rope.method != "none" and not self.rope.row.extends
        if original is None or (checked(original) and makers_own and not self.doubt):
            return self
        context = reach(self.rope, original) if self.doubt else self.context
        return replace(self, rope=replace(self.rope, original_context=original), context=context, note="", doubt=None)

    def certain(self) -> Checkpoint:
        """The same checkpoint; InputError where nobody says what it counts from."""
        if self.doubt:
            raise InputError(self.doubt.message, self.doubt.hint)
        return self

    @property
    def stale(self) -> str:
        """Why the context that the file names is not what its recipe makes of the L that it names; "" if it is."""
        key = "context_length" if self.gguf else "max_position_embeddings"
        return "" if self.note or self.doubt or self.written.get(DUAL_CHUNKS) else stale(self.rope, self.context, key)

    @property
    def layers(self) -> int:
        return int(self.hparams["num_hidden_layers"] or 0)

    @property
    def head_dim(self) -> int:
        return int(self.hparams["head_dim"])

    def heads(self, of: str) -> int:
        """Number of heads of "q" or "k"."""
        return int(self.hparams["num_attention_heads" if of == "q" else "num_key_value_heads"])

    @property
    def sliding_window(self) -> int | None:
        """The attention window in tokens where one is active in every layer, as in Mistral v0.1."""
        return self.family.hf.window(self.config) if self.gguf is None else None

    @cached_property
    def own_window(self) -> int | None:
        """The window in tokens that the model itself has in every layer: `sliding_window`, or of a GGUF whose architecture has none what
        its recipe or its key says, where no text of its context reaches that far: a shorter one its runtime does not apply."""
        if self.gguf is None:
            return self.sliding_window
        said: Any = None
        with contextlib.suppress(FormatError):
            said = recipe_in(self.gguf.get(RECIPE)).sliding_window if RECIPE in self.gguf.fields else None
        if not said and self.family.hf.windowed:
            said = self.config.get(f"{self.family.gguf_arch}.{WINDOW}")
        return said if type(said) is int and said >= self.context else None

    @property
    def window(self) -> int | None:
        """The attention window in tokens, of some layers or of all."""
        found = self.sliding_window or (self.hparams.get("sliding_window") if self.family.slides else None)
        return int(found) if found else None

    @cached_property
    def farthest(self) -> int | None:
        """How many tokens apart two may be that a layer turns: the window where only layers that see one have RoPE, else None."""
        return self.family.gguf.farthest(self.config) if self.gguf else self.family.hf.farthest(self.config)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The sizes that `Family.shapes` and `layout.TRANSFORMS` speak of, as far as the model has them."""
        h = self.hparams
        sizes = {size: h[key] for size, key in SIZES.items() if isinstance(h.get(key), int)}
        sizes["heads"], sizes["kv_heads"], sizes["head"] = self.heads("q"), self.heads("k"), self.head_dim
        sizes["q"], sizes["kv"] = (sizes[n] * self.head_dim for n in ("heads", "kv_heads"))
        sizes["expert_ff"] = sizes.get("expert_ff", sizes.get("ff", 0))
        sizes |= {"qkv": sizes["q"] + 2 * sizes["kv"], "gate_up": 2 * sizes.get("ff", 0), "one": 1}
        return sizes | (self._latent_sizes(sizes) if self.family.latent else {})

    def _latent_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Those of multi-head latent attention, where a part of each head turns."""
        h, heads = self.hparams, sizes["heads"]
        return {
            "nope": h["qk_head_dim"] - self.head_dim,
            "q_mla": heads * h["qk_head_dim"],
            "o_mla": heads * h["v_head_dim"],
            "kv_a": h["kv_lora_rank"] + self.head_dim,
            "shared_ff": h["n_shared_experts"] * h["moe_intermediate_size"],
        }

    @cached_property
    def unused(self) -> dict[str, str]:
        """Tensors that no runtime here runs and that a GGUF leaves out -> what they are: layers behind the last, which predict
        tokens further on."""
        if self.gguf is not None:
            return {}
        more = self.config.get(MORE_LAYERS) or 0
        behind = tuple(f"model.layers.{i}." for i in range(self.layers, self.layers + more)) if more < 100 else ()
        return {name: NEXT_TOKENS for name in self.tensors if name.startswith(behind)} if behind else {}

    @cached_property
    def packing(self) -> Packing:
        return Packing() if self.gguf else packing_of(self.source.path, self.written, self.tensors, self.family)

    @property
    def packed(self) -> str:
        """Who packed a folder's weights, as "gptq", "awq", "FP8", "mlx": such tensors can be copied and not named. Empty for weights
        whose names are known: numbers, gpt-oss's MXFP4."""
        return self.packing.by

    @property
    def files(self) -> dict[str, Path]:
        """Every file by which the model is computed and read, by its name: weights, their index, config, tokenizer and code; not its
        papers, nor what yarn-convert leaves beside it."""
        found = {path.name: path for path in self.weight_files}
        if self.gguf is None:
            folder = self.source.path
            names = [n for n in belonging(folder) if not PAPERS.fullmatch(n)] + [n for n in INDEXES if exists(folder, n)]
            found |= {n: folder / n for n in names}
        return found

    @property
    def other_layers(self) -> Table | None:
        """The RoPE of the layers that a recipe does not extend; None where all have one."""
        if not self.family.layer_type:
            return None
        return Table(geometric(float(self.hparams["rope_local_base_freq"]), self.rope.rotary_dim), 1.0)

    def kv_bytes(self, context: int, element: int = 2) -> int:
        """Bytes of the key-value cache at `context` tokens, `element` bytes a number (2 for float16). With multi-head latent
        attention it holds one latent vector a token and layer."""
        if self.family.latent:
            return self.layers * int(self.hparams["latent_key"]) * context * element
        by_layer = self.config.get(f"{self.family.gguf_arch}.attention.head_count_kv") if self.gguf else None
        heads = sum(by_layer) if isinstance(by_layer, list) else self.layers * self.heads("k")
        return 2 * heads * self.head_dim * context * element

    def beside(self, rope: Rope) -> Beside:
        """What is computed besides the table of `rope` where it is this model's."""
        return Beside(effect(rope).logits, self.other_layers)

    def written_as(self, arch: str) -> Checkpoint:
        """The same checkpoint, to be written as another GGUF architecture. Unsupported for one that cannot, or for a GGUF."""
        if arch == self.family.gguf_arch:
            return self
        if self.gguf is not None:
            raise Unsupported("--gguf-arch is for a model in HF layout", "start from the folder that the GGUF was made of")
        return replace(self, family=families.as_architecture(self.family, arch))

    def parts(self, gguf: bool) -> dict[str, Part]:
        """The tensors as those of a GGUF or of an HF folder, by their names there, in file order; buffers that no runtime
        reads are left out, and so is a GGUF's copy of a tied head. Raises Unsupported where the names of the other are not known."""
        if self.packed and gguf:
            raise Unsupported(f"the weights are packed by {self.packed}, which GGUF has no types for", PACKED_HINT)
        if not self.family.listed or self.packed:
            if bool(self.gguf) != gguf:
                raise Unsupported(f"the tensors of {self.family.name!r} have no names here, so they can only be copied", SAME_FORMAT)
            return {name: Part(t.shape, (t,)) for name, t in self.tensors.items()}
        return dict(self._gguf_parts if gguf else self._hf_parts)

    @cached_property
    def _used(self) -> Mapping[str, Tensor]:
        return {name: t for name, t in self.tensors.items() if name not in self.unused} if self.unused else self.tensors

    @cached_property
    def _gguf_parts(self) -> dict[str, Part]:
        if self.gguf:
            parts = layout.as_they_are(self.family, self.tensors, self.sizes, True)
        else:
            parts = layout.to_gguf(self.family, self._used, self.sizes)
        if self.hparams["tie_word_embeddings"]:
            parts.pop("output.weight", None)  # `targets.gguf` has made sure that a stray lm_head.weight is the embedding
            if self.family.gguf.head == "required" and "token_embd.weight" in parts:
                parts["output.weight"] = parts["token_embd.weight"]
        return parts

    @cached_property
    def _hf_parts(self) -> dict[str, Part]:
        if self.gguf:
            return layout.to_hf(self.family, self.tensors, self.sizes)
        parts = layout.as_they_are(self.family, self._used, self.sizes, False)
        return parts | {name: Part(self.tensors[name].shape, (self.tensors[name],)) for name in self.unused}


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
    written = read_config(source.path)
    family = families.for_config(written)
    _check_known(family, "model_type", str(written["model_type"]), families.MODEL_TYPES)
    config = normalized(family, written)
    own, rope, rival = rivals.read(of_one_layer(family, config), family.latent, keep)
    context = dialects.hf_context(config)
    if rival and not doubtful:
        raise rival
    rope, left, ours = _left_recipe(_manifest_recipe(source.path), rope, context)
    found = Lengths(rope.original_context, context) if left else of_config(own, source, rope)
    rope = replace(rope, original_context=found.original)
    if source.headers is not None:
        tensors, files = dict(source.headers), list[Path]()
    else:
        tensors, files = read_folder(source.path)
    hparams = {k: config.get(k) for k in family.hparams} | {
        "head_dim": dialects.hf_head_dim(config),
        "num_key_value_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    checkpoint = Checkpoint(
        source, family, rope, found.context, hparams, config, tensors, tuple(files), None, (), ours, written=written,
        note=found.note, doubt=rival or found.doubt,
    )  # fmt: skip
    _check(checkpoint)
    return checkpoint


def _open_gguf(source: Source) -> Checkpoint:
    gguf = read_model(source.path)
    keys = readers.of_layers(gguf.arch, {k: f.value for k, f in gguf.fields.items() if not k.startswith("tokenizer.")})
    family = families.for_gguf(gguf.arch, keys, gguf.tensors)
    _check_known(family, "GGUF architecture", gguf.arch, families.ARCHS)
    readers.check_keys(gguf.arch, keys)  # what a plan writes is read again without the file's other keys
    arch = family.gguf_arch
    hparams = _gguf_hparams(gguf, family, keys)
    rotary_dim = dialects.positive_int(keys.get(f"{arch}.rope.dimension_count", hparams["head_dim"]), "rope.dimension_count")
    if rotary_dim > hparams["head_dim"]:
        raise FormatError(f"rope.dimension_count {rotary_dim:,} is more than the {hparams['head_dim']:,} of a head", "write the GGUF again")
    factors = _factors(gguf, rotary_dim)
    other_layers = {family.gguf_key(hf)[0] for hf, key in family.hparams.items() if key.startswith("rope.")}
    rope_keys = {k: v for k, v in keys.items() if k not in other_layers}
    rope, ignored = dialects.gguf_read(rope_keys, arch, rotary_dim, factors, family.latent)
    context = dialects.positive_int(hparams["max_position_embeddings"], "context_length")
    rope, left, ours = _left_recipe(keys.get(RECIPE), rope, context)
    found = Lengths(rope.original_context, context) if left else of_gguf(gguf, family.model_type, source, rope, context)
    rope = replace(rope, original_context=found.original)
    tensors = {name: t for name, t in gguf.tensors.items() if name not in dialects.FACTORS}
    files = tuple(part.path for part in gguf.parts) or (source.path,)
    checkpoint = Checkpoint(
        source, family, rope, found.context, hparams, keys, tensors, files, gguf, tuple(ignored), ours, factors,
        note=found.note, doubt=found.doubt,
    )  # fmt: skip
    _check(checkpoint)
    return checkpoint


def _check_known(family: Family, what: str, name: str, known: Container[str]) -> None:
    """Raise Unsupported for a family without a row whose RoPE is not known either."""
    if not family.listed and name not in known:
        raise Unsupported(f"unknown {what} {name!r}", families.known())


def _gguf_hparams(gguf: Gguf, family: Family, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The hparams of a GGUF under their standard names, with what llama.cpp takes for absent ones."""
    hparams: dict[str, Any] = {hf: _first(name := family.gguf_key(hf)[0], keys.get(name)) for hf in family.hparams}
    hidden, heads = (dialects.positive_int(hparams[k], k) for k in ("hidden_size", "num_attention_heads"))
    for key, default in (("head_dim", hidden // heads), ("num_key_value_heads", heads)):
        hparams[key] = dialects.positive_int(default if hparams.get(key) is None else hparams[key], key)
    _check_by_layer(gguf, keys, hparams["head_dim"])
    hparams |= absent(family, hparams)
    hparams["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    if hparams.get("vocab_size") is None and "token_embd.weight" in gguf.tensors:
        hparams["vocab_size"] = gguf.tensors["token_embd.weight"].shape[0]
    return hparams


def _first(name: str, value: Any) -> Any:
    """The first layer's number of an array with others: of a stand-in, whose tensors are only copied, llama.cpp takes the head's size
    from it (llama_hparams::n_head). FormatError for a list in a key that has one number for all layers."""
    if isinstance(value, list) and name.partition(".")[2] not in readers.BY_LAYER:
        raise FormatError(f"{name} is a list, not a number", "write the GGUF again")
    return value[0] if isinstance(value, list) and value else value


def _check_by_layer(gguf: Gguf, keys: Mapping[str, Any], head_dim: int) -> None:
    """Raise FormatError for an array of numbers that the tensors of its layers do not have."""
    for key, tensor, rows in (
        ("attention.head_count", "attn_q", head_dim),
        ("attention.head_count_kv", "attn_k", head_dim),
        ("feed_forward_length", "ffn_up", 1),
    ):
        value = keys.get(f"{gguf.arch}.{key}")
        for i, n in enumerate(value if isinstance(value, list) else ()):
            found = gguf.tensors.get(f"blk.{i}.{tensor}.weight")
            if type(n) is not int or (found is not None and found.shape[0] != n * rows):
                raise FormatError(f"{gguf.arch}.{key} is {n!r} in layer {i}, which its tensors are not of", "write the GGUF again")


def _factors(gguf: Gguf, rotary_dim: int) -> dict[str, Array]:
    """Those of the tensors `dialects.FACTORS` that a GGUF has, float64[D/2]."""
    found = {name: gguf.tensors[name] for name in dialects.FACTORS if name in gguf.tensors}
    for name, t in found.items():
        if t.dtype != "F32" or t.shape != (rotary_dim // 2,):
            raise FormatError(f"{name} is {t.dtype}{list(t.shape)}, not F32[{rotary_dim // 2}]", "write the GGUF again")
    return {name: t.read().view(np.float32).astype(np.float64) for name, t in found.items()}


def _check(c: Checkpoint) -> None:
    """Raise unless the numbers are there, every tensor is known, none is missing and all have their shape."""
    for key in c.family.hparams:
        _check_number(c, key)
    _check_window(c.config)
    if not c.family.listed or c.packed or (c.source.headers is not None and not c.tensors):
        return
    named = c.parts(gguf=True)
    if c.gguf is not None:
        for name in c.tensors:
            c.family.to_hf(name)
    if c.layers > len(named):
        raise InputError(f"the model claims {c.layers:,} layers and holds {len(named):,} tensors", "it is incomplete: get it again")
    required = [*c.family.required(c.hparams), *_turned_on(c), *([] if c.hparams["tie_word_embeddings"] else ["output.weight"])]
    missing = [name for name in dict.fromkeys(required) if name not in named]
    if missing:
        raise _incomplete(c, missing)
    for name, part in named.items():
        _check_part(c, name, part)


def _incomplete(c: Checkpoint, missing: list[str]) -> InputError:
    """What to say of tensors that are not there, given by their GGUF names."""
    first = missing[0] if c.gguf is not None else c.family.to_hf(missing[0])[0].replace("{e}", "0")
    if missing == ["output.weight"]:
        why = f"the head {first!r} is missing, and config.json does not say tie_word_embeddings: true"
        return InputError(why, "set it where the head is the embedding, as the base's config.json says; else get the checkpoint again")
    return InputError(f"{len(missing)} tensors are missing, first {first!r}", "the checkpoint is incomplete: get it again")


def _check_number(c: Checkpoint, key: str) -> None:
    """Raise FormatError for a value that its GGUF key could not hold."""
    value, kind = c.hparams[key], c.family.gguf_key(key)[1]
    if value is None and (key in c.family.may_lack or kind != "u32"):
        return
    if kind == "u32" and not (value == 0 and key in c.family.may_lack):
        dialects.positive_int(value, key)
    elif key.endswith("eps"):
        if not 0 <= dialects.number(value, key) < 1:
            raise FormatError(f"{key} is {value!r}, not a small positive number", "fix the model's config.json or GGUF key")
    elif kind == "f32" and dialects.number(value, key) <= 1 and key == "rope_local_base_freq":
        raise FormatError(f"{key} is {value!r}, not above 1", "fix the model's config.json or GGUF key")


def _check_part(c: Checkpoint, name: str, part: Part) -> None:
    """Raise FormatError for a tensor that the config does not describe: a layer too many, another shape, a bias switched off."""
    n, what = numbered(name), part.sources[0].name
    if name.startswith("blk.") and n.layer >= c.layers:
        raise FormatError(f"{what} is in a layer beyond the {c.layers} of the config", MISMATCH)
    if not c.family.has(n.template, c.hparams, n.layer):
        raise FormatError(f"{what} is in a layer that has none by the config", MISMATCH)
    part_name = layout.part_of(name)
    expected = tuple(c.sizes[size] for size in c.family.shape(part_name))
    if part.shape != expected:
        raise FormatError(f"{what} has the shape {list(part.shape)}, the config describes {list(expected)}", MISMATCH)
    switched = any(part_name in parts for parts in c.family.hf.switches.values())
    if c.gguf is None and switched and part_name not in c.family.hf.turned_on(c.config):
        raise FormatError(f"config.json does not turn on {what}: transformers drops it, other readers may not", MISMATCH)


def _turned_on(c: Checkpoint) -> list[str]:
    """The weights, by their GGUF names, that config.json turns on in every layer; a bias that is not there is none to any reader."""
    on = [part for part in c.family.hf.turned_on(c.config) if part.endswith(".weight")]
    return [f"blk.{i}.{part}" for i in range(c.layers) for part in on] if c.gguf is None else []


SAME_FORMAT = "extend it in the format that it has, with --outtype auto"
MISMATCH = "config and weights do not belong together"


def _left_recipe(recipe: Any, rope: Rope, context: int) -> tuple[Rope, bool, bool]:
    """(the recipe that yarn-convert left, True, whether it is an extension of ours) where it gives the very tables that the file
    carries and says L, else (`rope`, False, False).

    A file cannot spell everything: the new base of ntk-aware hides the old one, explicit frequencies their method.
    """
    try:
        found = recipe_in(recipe)
        left = found.rope()
        other_length = left.method == rope.method == "yarn" and left.original_context != rope.original_context  # which a file spells
        if same_at_all_lengths(left, rope) and not unsaid(left, context) and not other_length:
            return left, True, found.kept is not True
    except YarnConvertError:
        pass  # absent, or not ours
    return rope, False, False


def _manifest_recipe(folder: Path) -> Any:
    try:
        return load_json(folder / MANIFEST).get("recipe")
    except (InputError, OSError):
        return None


def _check_window(config: Mapping[str, Any]) -> None:
    """Raise FormatError for a sliding window of no tokens."""
    if config.get("sliding_window") is not None and config.get("use_sliding_window") is not False:  # transformers 5 saves a 0 then
        dialects.positive_int(config["sliding_window"], "sliding_window")
