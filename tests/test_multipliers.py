"""A longrope whose three multipliers differ: shown as each reader takes them, else refused, and repaired as transformers computes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import Disagreement, UsageError
from yarn_convert.options import Recipe, RepairOptions
from yarn_convert.readers import read_config

LISTS = {"short_factor": [1.0] * 8, "long_factor": [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]}
OWN = {
    "rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": CONTEXT,
    "attention_factor": 1.2, "short_mscale": 1.0, "long_mscale": 1.1,
}  # fmt: skip


@pytest.fixture
def model(make_model: MakeModel) -> Path:
    return make_model(
        config={"max_position_embeddings": 4 * CONTEXT, "rope_scaling": {**OWN, **LISTS}, "rope_parameters": {**OWN, **LISTS}}
    )


def test_each_reader_takes_its_own_and_a_conversion_none(model: Path) -> None:
    c = open_checkpoint(resolve(str(model)), doubtful=True)
    assert isinstance(c.doubt, Disagreement) and c.rope.number("attention_factor") == 1.2, "as transformers 5"
    within = {"length": CONTEXT, "served": CONTEXT}
    short = {name: read_config(name, c.written, **within).multiplier for name in ("transformers-5", "vllm", "sglang")}
    long = {name: read_config(name, c.written).multiplier for name in short}
    assert (short, long) == (
        {"transformers-5": 1.2, "vllm": 1.0, "sglang": 1.0},
        {"transformers-5": 1.2, "vllm": 1.1, "sglang": 1.1},
    )
    with pytest.raises(Disagreement, match="short_mscale and long_mscale of longrope differ"):
        convert(str(model), Recipe(method="none"), out="gguf", output=model.parent / "out.gguf")


def test_repair_keeps_what_transformers_computes(model: Path, make_model: MakeModel) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    out = model.parent / "out"
    plan_repair(str(model), RepairOptions(keep=("attention_factor",), output=out)).run()
    scaling = json.loads((out / "config.json").read_text())["rope_scaling"]
    assert {scaling[k] for k in ("attention_factor", "short_mscale", "long_mscale")} == {1.2}
    for n in (CONTEXT, CONTEXT + 1):
        cos = [
            LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(x))(torch.zeros(1, 1), torch.arange(n)[None])[0]
            for x in (model, out)
        ]
        assert torch.equal(*cos)
    with pytest.raises(UsageError, match="has no short_mscale"):
        plan_repair(str(make_model("plain")), RepairOptions(keep=("attention_factor",), output=model.parent / "other"))
