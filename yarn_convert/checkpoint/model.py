"""What any input is, canonically: family, RoPE recipe, context, shape, tensors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import dialects, families, readers
from ..errors import FormatError, InputError, Unsupported
from ..families import Family
from ..families.derived import absent
from ..families.schema import ACTIVATIONS, rope_says
from ..formats import layout
from ..formats.contents import PAPERS, belonging
from ..formats.files import exists
from ..formats.gguf_file import Gguf
from ..formats.layout import Part
from ..formats.tensors import INDEXES, Tensor, in_memory, load_json
from ..readers import Beside
from ..rope import Array, Rope, Table, effect, geometric
from .lengths import DUAL_CHUNKS, checked_length, reach, stale
from .manifest import RopeRecord, recipe_in
from .packing import Packing, packing_of
from .source import Source

SIZES = {  # name in families.schema.SHAPES -> standard config key
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "ff": "intermediate_size",
    "dense_ff": "intermediate_size_mlp",
    "experts": "num_experts",
    "expert_ff": "moe_intermediate_size",
    "shared_ff": "shared_expert_intermediate_size",
    "q_lora": "q_lora_rank",
    "kv_lora": "kv_lora_rank",
    "value": "v_head_dim",
}
SAME_FORMAT = "extend it in the format that it has, with --outtype auto; --converter LLAMA_CPP makes a GGUF by llama.cpp's own converter"
PACKED_HINT = "start from the base, or a copy of it, in BF16; --out safetensors keeps packed weights as they are"
WITHIN = re.compile(r"\b(language_model|thinker)\.(?=.)")  # of a tensor's name, in a model around the language model
MORE_LAYERS, NEXT_TOKENS = "num_nextn_predict_layers", "layers that predict tokens further on"
WINDOW = "attention.sliding_window"  # below a GGUF's architecture
RECIPE = "yarn_convert.recipe"  # and in a GGUF: the canonical recipe as JSON, so that the file says what was meant


def stem(name: str) -> str:
    """The first two parts of a tensor's name, as "model.layers"."""
    return ".".join(name.split(".", 2)[:2])


@dataclass(frozen=True)
class Checkpoint:
    """A base model. `tensors` has the format's own names; `hparams` config.json's names, whatever the format.

    `config` is the parsed config.json with the family's defaults, or the GGUF's fields as plain values but for the
    vocabulary. `context` is the length in tokens that the model says it serves. `ignored` lists RoPE keys that the
    format's main reader does not read. `ours`: the recipe is an extension of yarn-convert's, which left it
    beside or in the file.
    `factors`: a GGUF's tensors by which llama.cpp divides the angles. `written`: config.json as it stands, which is what
    other readers than transformers know; empty for a GGUF. `nest`: the keys that lead there, of a language model within another,
    and `around` what else stands there. `note`: where L comes from, if the file does not say it; `doubt`: raised
    by all that count from L where nobody says it, and then `rope` and `context` are what readers take. `long`: of two lists of
    yarn-convert's, the first of which is its base's table, the recipe that gave the second.
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
    nest: tuple[str, ...] = ()
    around: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    doubt: InputError | None = None
    long: Rope | None = None

    def counting_from(self, original: int | None) -> Checkpoint:
        """The same checkpoint with the L that a user says; None changes nothing, nor does any where L is said and makes the table.
        UsageError for what is no length."""
        makers_own = self.rope.method != "none" and not self.rope.row.extends
        if original is None or (checked_length(original) and makers_own and not self.doubt):
            return self
        context = reach(self.rope, original) if self.doubt else self.context
        return replace(self, rope=replace(self.rope, original_context=original), context=context, note="", doubt=None)

    def certain(self) -> Checkpoint:
        """The same checkpoint; InputError where nobody says what it counts from."""
        if self.doubt:
            raise InputError(self.doubt.message, self.doubt.hint)
        return self

    @property
    def recorded(self) -> RopeRecord | None:
        """The recipe that yarn-convert left in a GGUF; None where there is none, and of a folder. FormatError for what is no recipe."""
        return recipe_in(self.gguf.get(RECIPE)) if self.gguf and RECIPE in self.gguf.fields else None

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
            said = self.recorded.sliding_window if self.recorded else None
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
        sizes.setdefault("shared_ff", (self.hparams.get("n_shared_experts") or 0) * sizes["expert_ff"])
        sizes |= {"qkv": sizes["q"] + 2 * sizes["kv"], "gate_up": 2 * sizes.get("ff", 0), "one": 1}
        return sizes | self.family.sizes(self.described)

    def sizes_of(self, layer: int) -> Mapping[str, int]:
        """`sizes`, as they are in one layer."""
        return {**self.sizes, **self.family.layer_sizes(self.hparams, layer)} if self.family.layer_sizes else self.sizes

    @property
    def gelu(self) -> bool:
        """Whether its feed-forward layers use GELU: by its row, or where it has none by its config.json."""
        return self.family.gelu or any("gelu" in str(self.config.get(key)) for key in ACTIVATIONS)

    @property
    def described(self) -> Mapping[str, Any]:
        """All that says which tensors there are: the hparams, and config.json where there is one."""
        return self.hparams if self.gguf else {**self.config, **self.hparams}

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Every tensor of the language model -> its name where that stands alone, which the family knows; those of a model around it have
        none. Of a name within another model one part goes (llama.cpp: conversion/base.py, filter_tensors)."""
        if not self.around or not self.family.listed:
            return {name: name for name in self.tensors}
        own, more = {stem(name) for name in self.family.tensors}, self.family.next_tokens
        plain = {name: WITHIN.sub("", name) for name in self.tensors}
        return {name: known for name, known in plain.items() if known != name or stem(known) in own or known.startswith(more)}

    def hf_name(self, gguf_name: str) -> str:
        """What a folder calls the tensor that has this name in a GGUF."""
        known = self.family.to_hf(gguf_name)[0]
        return next((name for name, n in self.names.items() if n == known), known) if self.around else known

    @property
    def head_and_embedding(self) -> tuple[str, str]:
        """What these two are called in the file; a tied model may be written with its head or without."""
        head, embedding = "output.weight", "token_embd.weight"
        return (head, embedding) if self.gguf else (self.hf_name(head), self.hf_name(embedding))

    @cached_property
    def unused(self) -> dict[str, str]:
        """Tensors that no runtime here runs and that a GGUF leaves out -> what they are: layers behind the last, which predict
        tokens further on."""
        if self.gguf is not None:
            return {}
        more = self.config.get(MORE_LAYERS) or 0
        behind = tuple(f"model.layers.{i}." for i in range(self.layers, self.layers + more)) if more < 100 else ()
        behind += self.family.next_tokens
        return {name: NEXT_TOKENS for name, known in self.names.items() if known.startswith(behind)} if behind else {}

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
        found = {path.name: path for path in self.weight_files if self.source.has_weights}  # else there are none here
        if self.gguf is None:
            folder = self.source.path
            names = [n for n in belonging(folder) if not PAPERS.fullmatch(n)] + [n for n in INDEXES if exists(folder, n)]
            found |= {n: folder / n for n in names}
        return found

    def json_of(self, name: str) -> Mapping[str, Any]:
        """What a JSON file of its folder says; {} of a GGUF, and where there is none. FormatError for one that is no JSON object."""
        return load_json(self.source.path / name) if self.gguf is None and exists(self.source.path, name) else {}

    @property
    def cancels(self) -> bool:
        """Whether a multiplier of cos and sin changes nothing: norms of Q and K that come after it undo it."""
        return self.family.cancels({**self.hparams, **self.config})

    @property
    def other_layers(self) -> Table | None:
        """The RoPE of the layers that a recipe does not extend; None where all have one."""
        if not self.family.layer_type:
            return None
        return Table(geometric(self.other_theta, self.hparams.get("rotary_dim_swa") or self.rope.rotary_dim), 1.0)

    @property
    def other_theta(self) -> float:
        """The θ of the layers that a recipe does not extend, where there are such."""
        if self.gguf and self.family.gguf.other_layers == "plain":
            return float(self.config.get(f"{self.family.gguf_arch}.rope.freq_base", 10000.0))
        _, (key, usual) = self.family.hf.layers.values()
        return float(next(x for x in (self.hparams.get(key), self.config.get(key), usual) if x is not None))

    def kv_bytes(self, context: int) -> int:
        """Bytes of the key-value cache in float16 at `context` tokens. With multi-head latent attention it holds one latent vector a
        token and layer, but where llama.cpp makes whole heads of it."""
        h, element = self.hparams, 2
        if self.family.latent or (self.family.hf.latent and self.gguf is None):
            latent = h.get("latent_key") or (self.config.get("kv_lora_rank") or 0) + self.head_dim
            return self.layers * int(latent) * context * element
        if self.family.layer_sizes:  # where some share the keys of others, those have none
            own = range(self.layers - (h.get("num_kv_shared_layers") or 0))
            return 2 * sum(self.sizes_of(i)["kv"] for i in own) * context * element
        by_layer = self.config.get(f"{self.family.gguf_arch}.attention.head_count_kv") if self.gguf else None
        layers = self.layers - (sum(self.family.linear(self.hparams)) if self.family.linear else 0)
        heads = sum(by_layer) if isinstance(by_layer, list) else layers * self.heads("k")
        both = h.get("qk_head_dim", self.head_dim) + h.get("v_head_dim", self.head_dim)
        return int(heads * both) * context * element

    def beside(self, rope: Rope) -> Beside:
        """What is computed besides the table of `rope` where it is this model's."""
        logits, arch = effect(rope).logits, self.family.gguf_arch
        if self.gguf is None or self.family.layer_type:
            floor = rope.original_context if self.family.hf.floor and any(rope_says(self.config, "llama_4_scaling_beta")) else 0
            return Beside(logits, self.other_layers, floor)
        return Beside(logits, dialects.gguf_window_layers(self.config, arch, rope), readers.gguf_floor(arch, self.config))

    def written_as(self, arch: str) -> Checkpoint:
        """The same checkpoint, to be written as another GGUF architecture. Unsupported for one that cannot, or for a GGUF."""
        if arch == self.family.gguf_arch:
            return self
        if self.gguf is not None:
            raise Unsupported("--gguf-arch is for a model in HF layout", "start from the folder that the GGUF was made of")
        return replace(self, family=families.as_architecture(self.family, arch))

    def standing_alone(self) -> Checkpoint:
        """What is a part of others, or remote code, to transformers, as one of the family there that computes the same: a GGUF, or a folder
        whose tensors have the same names."""
        if self.around or not self.family.hf.run_as:
            return self
        family = families.for_config({"model_type": self.family.hf.run_as})
        if self.gguf is None and family.tensors != self.family.tensors:
            return self
        hparams = {k: v for k, v in self.hparams.items() if k in family.hparams or k not in self.family.hparams}
        hparams |= absent(family, dict.fromkeys(family.hparams) | hparams)
        return replace(self, family=family, hparams=hparams)

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

    @property
    def in_keys(self) -> dict[str, Part]:
        """The tensors of a folder that a GGUF has in keys instead, in the float32 of these."""
        made = {
            template.replace("{i}", str(i)): np.full(told.shape, value, np.float32)
            for template, told in self.family.in_keys.items()
            for i, value in enumerate(self.hparams[told.key])
        }
        return {name: Part(array.shape, (in_memory(name, array, "F32"),)) for name, array in made.items()}

    @cached_property
    def _used(self) -> Mapping[str, Tensor]:
        """What the family knows, by its names."""
        return {known: self.tensors[name] for name, known in self.names.items() if name not in self.unused}

    @cached_property
    def _gguf_parts(self) -> dict[str, Part]:
        if self.gguf:
            parts = layout.as_they_are(self.family, self.tensors, self.sizes, True)
        else:
            parts = layout.gguf_parts(self.family, self._used, self.sizes, self.family.times(self.config))
        if self.hparams["tie_word_embeddings"]:
            parts.pop("output.weight", None)  # `targets.gguf` has made sure that a stray lm_head.weight is the embedding
            if self.family.gguf.head == "required" and "token_embd.weight" in parts:
                parts["output.weight"] = parts["token_embd.weight"]
        return parts

    @cached_property
    def _hf_parts(self) -> dict[str, Part]:
        if self.gguf:
            return layout.hf_parts(self.family, self.tensors, self.sizes) | self.in_keys
        known = layout.as_they_are(self.family, self._used, self.sizes, False)
        there = {name: known[self.names[name]] for name in self.names if self.names[name] in known and name not in self.unused}
        others = (name for name in self.tensors if name in self.unused or name not in self.names)
        return there | {name: Part(self.tensors[name].shape, (self.tensors[name],)) for name in others}
