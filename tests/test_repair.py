"""Repair: someone else's checkpoint is rewritten so that all readers that can agree do, and no weight moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from test_validate import extended, opened, rewritten

from yarn_convert import cli
from yarn_convert.convert import Options
from yarn_convert.errors import OutputError, YarnConvertError
from yarn_convert.gguf_file import Value
from yarn_convert.repair import plan_repair
from yarn_convert.rope import table
from yarn_convert.targets.plan import hf_verdicts

MODEL_CARD = {"type": "yarn", "factor": 4, "original_max_position_embeddings": CONTEXT}  # as model cards say it: no rope_type, an integer


def card_model(make_model: MakeModel, **scaling: Any) -> Path:
    return make_model(name="card", config={"rope_scaling": {**MODEL_CARD, **scaling}})  # the context is left as it was


def test_a_model_cards_config_becomes_one_that_all_main_readers_follow(make_model: MakeModel) -> None:
    model = card_model(make_model, attention_factor=1.5)
    weights = (model / "model.safetensors").stat()
    old = (model / "config.json").read_bytes()
    plan = plan_repair(str(model))
    assert all(plan.before.values()), "without a repair none of them serves the whole context"
    assert not any(plan.after.values())
    assert (model / "config.json").read_bytes() == old, "planning writes nothing"
    plan.run()
    c = opened(model)
    assert (c.context, table(c.rope).multiplier) == (4 * CONTEXT, 1.5)
    assert not any(hf_verdicts(c.config, c.rope, 4 * CONTEXT).values())
    assert (model / "config.json.before-repair").read_bytes() == old
    after = (model / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    assert plan_repair(str(model)).changes == ()


def test_a_second_repair_keeps_the_first_backup(make_model: MakeModel) -> None:
    model = card_model(make_model)
    old = (model / "config.json").read_bytes()
    plan_repair(str(model)).run()
    plan_repair(str(model), Options(scale=8.0)).run()
    assert opened(model).context == 8 * CONTEXT
    assert (model / "config.json.before-repair").read_bytes() == old


def test_keys_that_llama_cpp_ignores_are_carried_as_frequencies(make_model: MakeModel, tmp_path: Path) -> None:
    """What convert_hf_to_gguf.py writes for betas and attention_factor."""
    keys = {"llama.rope.scaling.yarn_beta_slow": Value("f32", 4.0), "llama.rope.scaling.yarn_attn_factor": Value("f32", 1.5)}
    out = rewritten(extended(make_model(), tmp_path / "out.gguf"), {**keys, "yarn_convert.recipe": None})
    (tmp_path / "out.yarn_convert.json").unlink()
    before = {name: t.read().tobytes() for name, t in opened(out).tensors.items()}
    plan = plan_repair(str(out), output=tmp_path / "copy.gguf")
    assert plan.before["llama.cpp"] and not plan.after["llama.cpp"]
    plan.run()
    c = opened(tmp_path / "copy.gguf")
    assert c.ignored == ()
    expected = table(plan.meant.rope)
    assert expected.multiplier == 1.5
    np.testing.assert_allclose(table(c.rope).inv_freq, expected.inv_freq, rtol=2.5e-7)
    assert {name: t.read().tobytes() for name, t in c.tensors.items()} == before
    assert opened(out).ignored, "the original is untouched"


def test_what_another_checkpoint_says_is_brought_over(make_model: MakeModel, tmp_path: Path) -> None:
    meant = extended(make_model(), tmp_path / "meant", truncate=False, beta_fast=2.0)
    out = extended(make_model(name="b"), tmp_path / "out")
    plan_repair(str(out), like=str(meant)).run()
    np.testing.assert_array_equal(table(opened(out).rope).inv_freq, table(opened(meant).rope).inv_freq)


def test_a_failed_write_loses_nothing(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = card_model(make_model)
    old = (model / "config.json").read_bytes()

    def full(self: Path, target: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="could not repair"):
        plan_repair(str(model)).run()
    assert (model / "config.json").read_bytes() == old


def test_the_hubs_cache_is_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    card_model(make_model).rename(snapshot)
    with pytest.raises(OutputError, match="Hub's cache"):
        plan_repair(str(snapshot))
    plan_repair(str(snapshot), output=tmp_path / "copy").run()
    assert opened(tmp_path / "copy").context == 4 * CONTEXT


def test_the_command_line_shows_the_change_and_a_dry_run_makes_none(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model = card_model(make_model)
    old = (model / "config.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        cli.main(["repair", str(model), "--dry-run", "--json"])
    shown = capsys.readouterr()
    assert stop.value.code == 0
    assert json.loads(shown.out)["readers"]["exllamav3"]["after"] == "exact"
    assert (model / "config.json").read_bytes() == old
    with pytest.raises(SystemExit):
        cli.main(["repair", str(model)])
    assert "max_position_embeddings: 64 -> 256" in capsys.readouterr().err
    assert (model / "config.json").read_bytes() != old


def test_what_the_format_cannot_carry_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = card_model(make_model)
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rope_parameters": {**MODEL_CARD, "factor": 2.0, "rope_type": "yarn"}}))
    with pytest.raises(YarnConvertError, match="disagree"):
        plan_repair(str(model))


def test_our_own_output_keeps_a_true_manifest(make_model: MakeModel, tmp_path: Path) -> None:
    """What it is meant to be changes with the repair, and what lay beside a carrier of frequencies goes with it."""
    out = extended(make_model(), tmp_path / "out", carry="tensors")
    assert (out / "rope.safetensors").exists()
    path = out / "yarn_convert.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": {"of": "what it was"}}))
    plan_repair(str(out), Options(scale=8.0)).run()
    manifest = json.loads(path.read_text())
    assert (manifest["context"], manifest["carrier"], manifest["validation"]) == (8 * CONTEXT, "metadata", None)
    assert "evaluation" not in manifest
    assert not (out / "rope.safetensors").exists()
    assert (out / "rope.safetensors.before-repair").exists()
    assert plan_repair(str(out)).changes == (), "and is what is meant from now on"


def test_weights_of_a_pickled_folder_are_not_written(make_model: MakeModel) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = card_model(make_model)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    plan_repair(str(model)).run()
    assert not (model / "model.safetensors").exists()
    assert opened(model).context == 4 * CONTEXT


def test_an_interrupted_repair_of_a_gguf_is_finished_by_the_next(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yarn_convert.targets import in_place

    out = extended(make_model(), tmp_path / "out.gguf")
    write = in_place._write

    def crash(path: Path, journal: Any) -> None:
        with open(path, "r+b") as f:
            f.write(bytes(in_place.MAGIC))
        raise KeyboardInterrupt

    monkeypatch.setattr(in_place, "_write", crash)
    with pytest.raises(KeyboardInterrupt):
        plan_repair(str(out), Options(scale=8.0)).run()
    monkeypatch.setattr(in_place, "_write", write)
    plan = plan_repair(str(out))
    assert (opened(out).context, plan.meant.context, plan.changes) == (8 * CONTEXT, 8 * CONTEXT, ())


def test_an_output_is_named_as_its_format(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(YarnConvertError, match="named like a GGUF"):
        plan_repair(str(card_model(make_model)), output=tmp_path / "x.gguf")
