"""What a conversion will do, decided before a byte is written: the carrier of the RoPE, the files, who will follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import dialects, readers
from ..checkpoint import Checkpoint
from ..errors import Inexpressible, no_such
from ..families.schema import ROPE_OBJECTS
from ..formats.dtypes import OUTTYPES, PLAIN
from ..formats.gguf_file import Value
from ..formats.imatrix import Imatrix
from ..formats.json_text import REMOVE
from ..formats.layout import Part
from ..formats.quantizer import MIXES
from ..readers.judge import Verdict, judge, judge_configs
from ..rope import Array, Rope, table, temperature
from .moving import Job

ALWAYS_F32 = (  # conversion/base.py, prepare_tensors
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight", "shortconv.conv.weight",
    "altup_correct_coef.weight", "altup_predict_coef.weight",
)  # fmt: skip
CARRIERS = ("auto", "metadata", "tensors")
FULL_ATTENTION = "--sliding-window off extends it with full attention, as the YaRN authors did with Mistral"
DECISIVE = "transformers-5"  # an HF folder that this reader would compute otherwise is never written


@dataclass(frozen=True, slots=True)
class Request:
    """What a target is asked to write: `rope` over `context` tokens, to `out`, and how. `recipe` is `rope` as JSON.

    `part_size` is the most bytes of tensors in one GGUF file, 0 for one file in any case, None to split as the input is.
    """

    rope: Rope
    context: int
    out: Path
    recipe: Mapping[str, Any]
    carry: str = "auto"
    outtype: str = "auto"
    cos_sin: bool = False
    full_attention: bool = False
    pretokenizer: str | None = None
    imatrix: Imatrix | None = None
    part_size: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion, ready to run. `verdicts`: reader -> whether it computes `rope` from the output.

    `out` is what a reader opens: of a split GGUF the first part. `identical` says whether every weight of the output is byte
    for byte the base's (Q and K rows interleaved or not). `left`: what lies in the base's folder and does not belong to the model.
    `versions`: of each reader that computes it, those that were looked at.
    """

    out: Path
    format: str
    rope: Rope
    context: int
    carrier: str
    verdicts: Mapping[str, Verdict]
    jobs: tuple[Job, ...]
    outtype: str
    identical: bool
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return self.format == "safetensors"

    @property
    def bytes(self) -> int:
        return sum(job.size for job in self.jobs)


def carry_hf(
    c: Checkpoint, config: Mapping[str, Any], rope: Rope, context: int, carry: str
) -> tuple[str, dict[str, Any], dict[str, Verdict]]:
    """(carrier, changes to config.json, verdict of each reader).

    "auto" takes the carrier that more of the main readers compute exactly, metadata where they are equal. Raises
    Inexpressible when the wished carrier has no spelling or transformers 5 would not follow it.
    """
    found = []
    for carrier, changes in hf_spellings(c, config, rope, context, carry):
        found.append((carrier, changes, judge_configs(edited(config, changes), rope, context, c.beside(rope))))
    if not found:
        dialects.static_table(rope, "config.json")  # says why
        raise Inexpressible(f"config.json cannot carry {rope.method}", "--out gguf")
    best = max(found, key=lambda c: sum(v.exact for v in c[2].values()))
    if why := best[2][DECISIVE].why:
        hint = "--out gguf" if carry == "auto" else "--carry auto, or --out gguf"
        raise Inexpressible(f"{DECISIVE} would not compute this from config.json: {why}", hint)
    return best


def hf_spellings(
    c: Checkpoint, config: Mapping[str, Any], rope: Rope, context: int, carry: str = "auto"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(carrier, changes to config.json) of each carrier that has a spelling; Inexpressible when the wished one has none."""
    for carrier, spell in (("metadata", dialects.hf_metadata), ("tensors", dialects.hf_tensors)):
        if carry not in (carrier, "auto"):
            continue
        try:
            changes = _as_family_spells(c, config, spell(rope, context))
        except Inexpressible:
            if carry == carrier:
                raise
            continue
        if c.family.model_type in readers.HEAD_DIM_UNFILLED and config.get("head_dim") is None:
            changes["head_dim"] = c.head_dim
        yield carrier, changes


def _as_family_spells(c: Checkpoint, config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` with the family's own names of standard keys, with what the old RoPE objects say of the rotary dimension and
    of pictures, and with rope_parameters for each type of layers where there are several."""
    layer_type, own = c.family.layer_type, {c.family.hf.renamed[k]: v for k, v in changes.items() if k in c.family.hf.renamed}
    old = [v for k in ROPE_OBJECTS if (v := config.get(k))]
    inner = {k: v[k] for k in ("partial_rotary_factor", *dialects.BESIDE) for v in reversed(old) if v.get(k) is not None}
    inner |= {"original_max_position_embeddings": c.rope.original_context} if c.family.hf.floor else {}
    spelled = {k: {**v, **inner} if k in ROPE_OBJECTS and v else v for k, v in changes.items()} | own
    spelled |= dict.fromkeys(c.family.hf.lengths, spelled["max_position_embeddings"])
    if c.family.hf.original and spelled["rope_parameters"].get("original_max_position_embeddings"):
        # Its config class has one of its own, which hides the one in the RoPE object.
        spelled["original_max_position_embeddings"] = spelled["rope_parameters"]["original_max_position_embeddings"]
    if layer_type:
        others = {"rope_type": "default", "rope_theta": c.other_theta}
        said = spelled["rope_parameters"]
        spelled["rope_parameters"] = {"sliding_attention": others, layer_type: said}
        if c.family.hf.nested_alone:
            spelled |= {"rope_scaling": REMOVE, "rope_theta": REMOVE}
            spelled |= {key: True for key in c.family.hf.permits.values() if key == c.family.hf.permits.get(said["rope_type"])}
    return spelled


def edited(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in {**config, **changes}.items() if v is not REMOVE}


def versions_of(config: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> tuple[dict[str, str], list[str]]:
    """(of each reader that computes a config.json exactly the versions that were run, notes on those of which earlier ones do not)."""
    found, notes = {}, []
    for name in (name for name, v in verdicts.items() if v.exact):
        row, first = readers.HF_READERS[name], readers.oldest(name, config)
        found[name] = row.version if first == row.version else f"{first} to {row.version}"
        if first == row.yarn_by_layer:
            notes.append(f"{name} takes this from {first} on: earlier versions refuse such a config.json; --carry tensors suits all")
        elif row.oldest and first != row.oldest:
            notes.append(f"{name} was run on such a config.json in no version before {first}")
    return found, notes


def carry_gguf(c: Checkpoint, rope: Rope, context: int, carry: str) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """(carrier, changed GGUF keys, the tensors `dialects.FACTORS` that it needs).

    Metadata where llama.cpp computes it exactly, else tensors. Raises Inexpressible when neither does.
    """
    refused: Inexpressible | None = None
    for carrier in CARRIERS[1:] if carry == "auto" else (carry,):
        try:
            keys, factors = (
                (dialects.gguf_metadata(rope, context, c.family), dialects.gguf_still(rope, c.family))
                if carrier == "metadata"
                else dialects.gguf_tensors(rope, context, c.family)
            )
        except Inexpressible as e:
            refused = refused or e
            continue
        read = partial(readers.read_gguf, keys_with(c, keys), factors.get(dialects.ROPE_FREQS), dialects.pair_of(factors))
        v = judge(read, table(rope), context, c.beside(rope))
        if v.exact and rope.row.switches:  # its other list, too
            within = rope.original_context
            v = judge(partial(read, flags=readers.Flags(tokens=within)), table(rope, within), within, c.beside(rope))
        if v.exact:
            return carrier, keys, factors
        refused = Inexpressible(
            f"llama.cpp would not compute this from {carrier}: {v.why}", "--out safetensors" if carry == "auto" else "--carry auto"
        )
    assert refused is not None
    raise refused


def keys_with(c: Checkpoint, changes: Mapping[str, Value | None]) -> dict[str, Any]:
    """The keys of its GGUF, or of one that is made of it, with those of RoPE set, or removed for None."""
    own = dict(c.config)
    if c.gguf is None:
        own = {c.family.gguf_key(hf)[0]: value for hf, value in c.hparams.items() if hf in c.family.hparams}
        own |= {"general.architecture": c.family.gguf_arch, f"{c.family.gguf_arch}.rope.dimension_count": c.rope.rotary_dim}
    return {k: v for k, v in (own | {k: v and v.data for k, v in changes.items()}).items() if v is not None}


def exact_in_llama_cpps_converter(rope: Rope) -> bool:
    """Whether convert_hf_to_gguf.py carries a YaRN config: it writes betas and attention_factor to keys that go unread."""
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
    if dialects.spelled_as(rope) != "yarn" or rope.inner:
        return True
    return table(rope).multiplier == temperature(rope.number("factor")) and all(rope.params.get(k, v) == v for k, v in usual.items())


def target_dtype(t: Part, gguf_name: str, outtype: str) -> str:
    """The ggml type that a tensor gets: vectors, norms and routers are F32, as llama.cpp's converter has it; the rest `outtype`.

    A row that is not a whole number of blocks of 32 falls back to F16.
    """
    if len(t.shape) <= 1 or gguf_name.endswith(ALWAYS_F32) or not gguf_name.endswith(".weight"):
        return "F32"
    if outtype == "auto":
        return t.dtype
    dtype = outtype.upper()
    return "F16" if dtype not in PLAIN and t.shape[-1] % 32 else dtype


def check_outtype(outtype: str, fmt: str) -> None:
    if outtype not in ("auto", *OUTTYPES, *MIXES):
        raise no_such("--outtype", outtype, ("auto", *OUTTYPES, *MIXES))
    if fmt == "safetensors" and outtype.upper() not in ("AUTO", *PLAIN):
        raise Inexpressible(f"safetensors for transformers has no {outtype}", f"--out gguf --outtype {outtype}, or --outtype bf16")
