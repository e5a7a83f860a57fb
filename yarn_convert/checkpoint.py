"""Opens any input and describes it canonically: family, RoPE recipe, context, shape, tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import dialects, families
from .errors import FormatError, InputError, Unsupported, YarnConvertError
from .families import Family
from .gguf_file import Gguf, read_gguf
from .rope import Rope, rope_of, table
from .source import Source
from .tensors import Tensor, inside, load_json, read_folder

MANIFEST = "yarn_convert.json"  # what yarn-convert leaves beside the weights
RECIPE = "yarn_convert.recipe"  # and in a GGUF: the canonical recipe as JSON, so that the file says what was meant


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base model. `tensors` has the format's own names; `hparams` config.json's names, whatever the format.

    `config` is the parsed config.json with the family's defaults, or the GGUF's fields as plain values but for the
    vocabulary. `context` is the length in tokens that the model says it serves. `ignored` lists RoPE keys that the
    format's main reader does not read. `ours`: the recipe is the one that yarn-convert left beside or in the file.
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

    @property
    def layers(self) -> int:
        return int(self.hparams["num_hidden_layers"])

    @property
    def head_dim(self) -> int:
        return int(self.hparams["head_dim"])

    def heads(self, of: str) -> int:
        """Number of heads of "q" or "k"."""
        return int(self.hparams["num_attention_heads" if of == "q" else "num_key_value_heads"])

    @property
    def sliding_window(self) -> int | None:
        """The attention window in tokens where one is active, as in Mistral v0.1."""
        window = self.config.get("sliding_window") if self.family.windowed and self.gguf is None else None
        return int(window) if window is not None else None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that `Family.shapes` speaks of."""
        h = self.hparams
        heads = {"q": self.heads("q") * self.head_dim, "kv": self.heads("k") * self.head_dim}
        return {"vocab": h["vocab_size"], "hidden": h["hidden_size"], "ff": h["intermediate_size"], **heads}

    def kv_bytes(self, context: int, element: int = 2) -> int:
        """Bytes of the key-value cache at `context` tokens, `element` bytes a number (2 for float16)."""
        return 2 * self.layers * self.heads("k") * self.head_dim * context * element

    def tensor_by_gguf_name(self) -> dict[str, Tensor]:
        """The tensors under their GGUF names, in file order; buffers that no runtime reads are left out."""
        if self.gguf is not None:
            return dict(self.tensors)
        tied = self.hparams["tie_word_embeddings"]
        named = {self.family.gguf_name(name): t for name, t in self.tensors.items()}
        # A tied model's head is its embedding; `targets.gguf` has made sure that a stray lm_head.weight is the same.
        return {name: t for name, t in named.items() if name and not (tied and name == "output.weight")}


def open_checkpoint(source: Source) -> Checkpoint:
    """Read a model's description, never its weights' data.

    Raises Unsupported for a model without RoPE, of an unknown family, or with tensors or RoPE keys that no table knows;
    InputError or FormatError for files that are missing, cut short or contradict each other.
    """
    return _open_gguf(source) if source.is_gguf else _open_folder(source)


def _open_folder(source: Source) -> Checkpoint:
    config = load_json(inside(source.path, "config.json"))
    family = families.for_config(config)
    config = {**family.defaults, **config}
    rope, context = dialects.hf_read(config), dialects.hf_context(config)
    rope, ours = _left_recipe(_manifest_recipe(source.path), rope)
    if source.original_context and rope.method == "none":
        rope = Rope("none", rope.theta, rope.rotary_dim, source.original_context)
    if source.headers is not None:
        tensors, files = dict(source.headers), list[Path]()
    else:
        tensors, files = read_folder(source.path)
    hparams = {k: config.get(k) for k in family.hparams} | {
        "head_dim": dialects.hf_head_dim(config),
        "num_key_value_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    checkpoint = Checkpoint(source, family, rope, context, hparams, config, tensors, tuple(files), None, (), ours)
    _check(checkpoint)
    return checkpoint


def _open_gguf(source: Source) -> Checkpoint:
    gguf = read_gguf(source.path)
    if dialects.number(gguf.get("split.count", 1), "split.count") > 1:
        raise Unsupported(f"{source.path.name} is one part of a split GGUF", "merge the parts first: llama-gguf-split --merge")
    family = families.for_gguf(gguf.arch)
    arch = family.gguf_arch
    keys = {k: f.value for k, f in gguf.fields.items() if not k.startswith("tokenizer.")}
    hparams: dict[str, Any] = {hf: keys.get(f"{arch}.{key}") for hf, key in family.hparams.items()}
    hidden, heads = (dialects.positive_int(hparams[k], k) for k in ("hidden_size", "num_attention_heads"))
    for key, default in (("head_dim", hidden // heads), ("num_key_value_heads", heads)):
        hparams[key] = dialects.positive_int(default if hparams[key] is None else hparams[key], key)
    rotary_dim = dialects.positive_int(keys.get(f"{arch}.rope.dimension_count", hparams["head_dim"]), "rope.dimension_count")
    if rotary_dim > hparams["head_dim"]:
        raise FormatError(f"rope.dimension_count {rotary_dim:,} is more than the {hparams['head_dim']:,} of a head", "write the GGUF again")
    hparams["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    if hparams["vocab_size"] is None and "token_embd.weight" in gguf.tensors:
        hparams["vocab_size"] = gguf.tensors["token_embd.weight"].shape[0]
    rope_freqs = gguf.tensors.get(dialects.ROPE_FREQS)
    values = None
    if rope_freqs is not None:
        if rope_freqs.dtype != "F32" or rope_freqs.shape != (hparams["head_dim"] // 2,):
            raise FormatError(
                f"{dialects.ROPE_FREQS} is {rope_freqs.dtype}{list(rope_freqs.shape)}, not F32[head_dim/2]", "write the GGUF again"
            )
        values = rope_freqs.read().view(np.float32).astype(np.float64)
    rope, ignored = dialects.gguf_read(keys, arch, rotary_dim, values)
    rope, ours = _left_recipe(keys.get(RECIPE), rope)
    tensors = {name: t for name, t in gguf.tensors.items() if name != dialects.ROPE_FREQS}
    checkpoint = Checkpoint(
        source, family, rope, hparams["max_position_embeddings"], hparams, keys, tensors, (source.path,), gguf, tuple(ignored), ours
    )
    _check(checkpoint)
    return checkpoint


def manifest_path(out: Path) -> Path:
    """Where the manifest of an output lies: in the folder, or beside the .gguf file."""
    return out.with_name(f"{out.stem}.{MANIFEST}") if out.suffix == ".gguf" else out / MANIFEST


def _check(c: Checkpoint) -> None:
    """Raise unless the numbers are there, every tensor is known, none is missing and the rotary ones have their shape."""
    for key in c.family.hparams:
        if key == "rms_norm_eps":
            _check_eps(c.hparams[key])
        else:
            dialects.positive_int(c.hparams[key], key)
    _check_switches(c.config)
    if c.gguf is not None:
        for name in c.tensors:
            c.family.hf_name(name)
        named: Mapping[str, Tensor] = c.tensors
    else:
        named = c.tensor_by_gguf_name()
    if c.source.headers is not None and not c.tensors:
        return
    if c.layers > len(named):
        raise InputError(f"the model claims {c.layers:,} layers and holds {len(named):,} tensors", "it is incomplete: get it again")
    required = c.family.required(c.layers) + ([] if c.hparams["tie_word_embeddings"] else ["output.weight"])
    missing = [name for name in required if name not in named]
    if missing:
        raise InputError(f"{len(missing)} tensors are missing, first {missing[0]!r}", "the checkpoint is incomplete: get it again")
    for name, t in named.items():
        _check_tensor(c, name, t)


def _check_tensor(c: Checkpoint, name: str, t: Tensor) -> None:
    """Raise FormatError for a tensor that the config does not describe: a layer too many, another shape, a bias switched off."""
    parts = name.split(".")
    in_block = parts[0] == "blk"
    if in_block and int(parts[1]) >= c.layers:
        raise FormatError(f"{t.name} is in a layer beyond the {c.layers} of the config", MISMATCH)
    expected = tuple(c.sizes[size] for size in c.family.shapes[".".join(parts[2:] if in_block else parts)])
    if t.shape != expected:
        raise FormatError(f"{t.name} has the shape {list(t.shape)}, the config describes {list(expected)}", MISMATCH)
    switched_on = {part for switch, on in c.family.biases.items() if c.config.get(switch) for part in on}
    if c.gguf is None and parts[-1] == "bias" and parts[-2] not in switched_on:
        raise FormatError(f"config.json does not turn on the bias {t.name}: transformers drops it, other readers may not", MISMATCH)


MISMATCH = "config and weights do not belong together"


def _left_recipe(recipe: Any, rope: Rope) -> tuple[Rope, bool]:
    """(the recipe that yarn-convert left, True) where it gives the very table that the file carries, else (`rope`, False).

    A file cannot spell everything: the new base of ntk-aware hides the old one, explicit frequencies their method.
    """
    try:
        left = rope_of(json.loads(recipe) if isinstance(recipe, str) else recipe)
        if dialects.same(table(left), table(rope)):
            return left, True
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, YarnConvertError):
        pass  # absent, or not ours
    return rope, False


def _manifest_recipe(folder: Path) -> Any:
    try:
        return load_json(inside(folder, MANIFEST)).get("recipe")
    except (InputError, OSError):
        return None


def _check_eps(value: Any) -> None:
    if value is not None and not 0 <= dialects.number(value, "rms_norm_eps") < 1:
        raise FormatError(f"rms_norm_eps is {value!r}, not a small positive number", "fix the model's config.json or GGUF key")


def _check_switches(config: Mapping[str, Any]) -> None:
    """Raise FormatError for a config.json whose other values that we read have a type that no reader would take."""
    for key in ("tie_word_embeddings", "use_sliding_window"):
        if not isinstance(config.get(key), bool | None):
            raise FormatError(f"{key} is {config[key]!r}, not true or false", "fix config.json")
    if config.get("sliding_window") is not None:
        dialects.positive_int(config["sliding_window"], "sliding_window")
