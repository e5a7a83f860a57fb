"""The first module that differs, in latent attention: what turns, before and after it, the latent vector, and what was attended to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from family_models import make
from test_cut import Arrays, checked, opened, spoilt, written
from test_validate import rewritten

from yarn_convert import runtimes
from yarn_convert.compute.reference import Reference
from yarn_convert.compute.states import ATTENDED, TURNED, states_of
from yarn_convert.conversion.intention import Intention
from yarn_convert.formats.gguf_file import Value
from yarn_convert.rope import effect
from yarn_convert.validation.counterparts import LATENT, named_there
from yarn_convert.validation.study import Question
from yarn_convert.validation.trace import in_llama_cpp

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
FAMILIES = ("deepseek_v2", "deepseek_v3", "minicpm3")
IDS = np.arange(5, 101, 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Bases, and what was made of them as GGUFs."""
    folder, found = tmp_path_factory.mktemp("latent"), {}
    for name in FAMILIES:
        base = make(name, folder / name)
        found[name] = base, written(base, folder / f"{name}.gguf")
    return found


def rows(w: Arrays) -> None:
    """Of the latent projection's rows those that turn, with their pairs taken apart."""
    all_of_it = w["blk.0.attn_kv_a_mqa.weight"]
    turning = all_of_it[w["blk.0.attn_kv_a_norm.weight"].shape[0] :]
    turning[:] = turning.reshape(-1, 2, turning.shape[1]).swapaxes(0, 1).reshape(turning.shape)


def queries(w: Arrays) -> None:
    w["blk.0.attn_q_b.weight"][-2:] = w["blk.0.attn_q_b.weight"][-1:-3:-1]  # of the last head, the last pair that turns


def norm(w: Arrays) -> None:
    w["blk.0.attn_kv_a_norm.weight"][1] *= 1.5


def values(w: Arrays) -> None:
    part = next(n for n in ("blk.0.attn_v_b.weight", "blk.0.attn_kv_b.weight") if n in w)
    w[part][..., -1, :] *= 1.5


def keys(w: Arrays) -> None:
    part = next(n for n in ("blk.0.attn_k_b.weight", "blk.0.attn_kv_b.weight") if n in w)
    w[part].reshape(-1, w[part].shape[-1])[0] *= 3


FAULTS: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "rows": (rows, "self_attn.kv_a_proj_with_mqa"),
    "queries": (queries, "self_attn.q_b_proj"),
    "norm": (norm, "self_attn.kv_a_layernorm"),
    "values": (values, ATTENDED),
    "keys": (keys, ATTENDED),
}  # of the weights of a file, and what the reference calls the first module that has it


@pytest.mark.parametrize("name", FAMILIES)
def test_each_part_of_latent_attention_is_compared_with_llama_cpps(models: dict[str, tuple[Path, Path]], name: str, tmp_path: Path) -> None:
    """Files with a fault in llama.cpp, against the sound one in the reference: each is named, and nothing of the sound one is."""
    out = models[name][1]
    c = opened(out)
    right, question = effect(c.rope, len(IDS)), Question(Intention(c.rope, c.context, ""))
    own, parts = states_of(Reference(c), right, IDS), LATENT[c.family.gguf_arch]

    def first_there(file: Path) -> str:
        return str(in_llama_cpp(opened(file), own, question, right, IDS)["first"])

    names = {*named_there(c, own).values()}
    assert {n.rpartition("-")[0] for n in names} >= {*parts.values()}
    assert runtimes.states(out, IDS, [*names], {}).keys() == names
    bad = shutil.copyfile(out, tmp_path / "table.gguf")
    rewritten(bad, {f"{c.family.gguf_arch}.rope.scaling.factor": Value("f32", 8.0)})
    wanted, found = {"": "", "table": f"q {TURNED}"}, {"": first_there(out), "table": first_there(bad)}
    if name != "deepseek_v2":  # which differs from deepseek_v3 in how the reference pairs what turns
        found |= {fault: first_there(spoilt(out, plant, tmp_path / f"{fault}.gguf")) for fault, (plant, _) in FAULTS.items()}
        wanted |= {fault: module for fault, (_, module) in FAULTS.items()}
        wanted |= {"values": "self_attn.kv_b_proj", "keys": "self_attn.kv_b_proj"} if "self_attn.kv_b_proj" in parts else {}
    assert found == {fault: m and f"layers.0.{m} ({parts[m]}-0)" for fault, m in wanted.items()}


def test_rows_of_what_turns_are_named(models: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """And where it begins, by their base's weights."""
    base, out = models["deepseek_v3"]
    bad = spoilt(out, FAULTS["rows"][0], tmp_path / "bad.gguf")
    result, study = checked(bad, base, trace=True)
    assert result["verdict"] == "failed"
    assert study["trace"]["tensors"] == {"blk.0.attn_kv_a_mqa.weight": "its rows 32 to 47 are taken apart once too often"}
    assert [m["first"] for m in study["trace"]["modules"]] == ["layers.0.self_attn.kv_a_proj_with_mqa", ""]
