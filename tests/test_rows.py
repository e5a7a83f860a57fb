"""Whoever adds a family is told here what its row still lacks, and where it goes."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator

import pytest
from family_models import TINY
from make_family_docs import PAGE

from yarn_convert import families
from yarn_convert.checkpoint.config import TYPES
from yarn_convert.dialects import BESIDE
from yarn_convert.families import ARCHS, FAMILIES, MODEL_TYPES, Family
from yarn_convert.families.schema import SHAPES
from yarn_convert.formats import layout

MADE_IN_CONFTEST = {"llama", "mistral"}  # `make_model`, of which most tests are
MADE_WITHIN_ANOTHER = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"}  # tests/test_nested.py
ROWS = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.model_type} as {f.gguf_arch}")


def lacking(family: Family) -> Iterator[str]:
    """What is still to be written for a row, a line each."""
    templates = {t for hf in family.tensors for t in family.parts(hf)}
    yield from (f"{t} has no shape: Family.shapes" for t in templates if layout.part_of(t.format(i=0)) not in SHAPES | family.shapes)
    yield from (f"{x} is no transform: layout.TRANSFORMS" for x in family.transforms.values() if x not in layout.TRANSFORMS)
    for of, names in (
        ("optional", family.optional),
        ("only_where", family.only_where),
        ("needed_where", family.needed_where),
        ("instead", family.instead),
    ):
        yield from (f"{of} names {t}, which no tensor of the row is" for t in set(names) - templates)
    switched = {part for parts in family.hf.switches.values() for part in parts}
    yield from (f"a switch turns on {part}, which no tensor of the row is" for part in switched if f"blk.{{i}}.{part}" not in templates)
    yield from (f"in_keys names {k}, which is no list of hparams, or unsaid" for k in family.in_tensors if k not in family.hf.unsaid)
    yield from (f"{key} is in no hparams" for key in (family.may_lack | family.hf.unsaid) - family.hparams.keys())
    said = {family.hf.own(key) for key in family.hparams.keys() - family.hf.unsaid} | family.hf.renamed.keys() - family.hf.unsaid
    yield from (f"{key} has no type: config.TYPES" for key in said - TYPES.keys())
    if not family.evidence:
        yield "where it was read: Family.evidence"
    if not family.hf.architectures:
        yield "the class that config.json names: ModelType.architectures"
    if not family.hf.length and family.hf.run_as not in MODEL_TYPES:
        yield "its context where config.json is silent: ModelType.length"
    if family.model_type not in MADE_IN_CONFTEST | MADE_WITHIN_ANOTHER | {tiny.model_type for tiny in TINY.values()}:
        yield "a tiny model: tests/family_models.py"
    if f"`{family.model_type}`" not in "".join(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("### ")):
        yield "a section: docs/families.md"


@ROWS
def test_a_row_lacks_nothing(family: Family) -> None:
    assert not (found := sorted(lacking(family))), "\n".join(["still to be written:", *found])


def test_every_row_of_the_kins_is_in_the_table() -> None:
    modules = [importlib.import_module(f"{families.__name__}.{m.name}") for m in pkgutil.iter_modules(families.__path__)]
    rows = {id(x): name for module in modules for name, x in vars(module).items() if isinstance(x, Family)}
    assert not [name for at, name in rows.items() if at not in map(id, FAMILIES)], "to be named in families.FAMILIES"


def test_no_name_says_two_things() -> None:
    """A name has one row: what a family's model_type or architecture is, no other row says in other words."""
    for of in (FAMILIES, MODEL_TYPES.values(), ARCHS.values()):
        assert len({id(row) for row in of}) == len(of)
    for family in FAMILIES:
        assert ARCHS[family.gguf_arch] is family.gguf
        assert family.hf.run_as or MODEL_TYPES[family.model_type] == family.hf


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.hf.run_as], ids=lambda f: f.model_type)
def test_what_a_row_writes_it_reads_back(family: Family) -> None:
    """`ModelType.writes` is the inverse of `reads`: of a config.json that it wrote, the derived keys are those of the GGUF."""
    hparams = dict.fromkeys(family.hparams, 4) | {"num_hidden_layers": 12, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    hparams |= {"num_key_value_heads": 4, "norm_topk_prob": None, "n_group": 1, "qk_head_dim": 40, "latent_key": 20, "latent_value": 4}
    hparams |= {"moe_intermediate_size": hparams.get("intermediate_size"), "linear_inner": 16, "mamba_inner": 128}
    hparams |= {k: [4] * (4 if k == families.SECTIONS else 12) for k in family.hparams if family.by_layer(k)}
    hparams |= {"first_k_dense_replace": 12} if "first_k_dense_replace" in family.hf.unsaid else {}
    hparams |= {"recurrent_layers": [True] * 12, "turns": True, "slides_by_layer": [True, False] * 6}
    hparams |= {"sparsity_by_layer": [1.6448535919189453] * 10 + [-math.inf] * 2}
    names = {t.format(i=i) for hf in family.tensors for t in family.parts(hf) for i in range(12)}
    said = {family.hf.own(k): v for k, v in hparams.items() if k not in family.hf.unsaid}
    config = {"model_type": family.model_type, **said, **family.hf.writes(hparams, names)}
    config |= {"rope_parameters": {k: config.pop(k) for k in BESIDE if k in config}}
    read = families.normalized(family, config)
    derived = family.hf.reads(config | read)
    assert {k: read[k] for k in derived if k in hparams} == {k: hparams[k] for k in derived if k in hparams}
    assert all(derived[k] for k in derived if k.startswith("usual_") and k in family.fixed)
