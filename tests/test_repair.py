"""Repair: someone else's checkpoint is rewritten so that all readers that can agree do, and no weight moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from test_validate import extended, opened, rewritten

from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import Inexpressible, InputError, OutputError, YarnConvertError
from yarn_convert.formats.gguf_file import Value
from yarn_convert.options import Recipe, RepairOptions
from yarn_convert.readers.judge import judge_configs
from yarn_convert.rope import table

MODEL_CARD = {"type": "yarn", "factor": 4, "original_max_position_embeddings": CONTEXT}  # as model cards say it: no rope_type, an integer


def card_model(make_model: MakeModel, **scaling: Any) -> Path:
    return make_model(name="card", config={"rope_scaling": {**MODEL_CARD, **scaling}})  # the context is left as it was


def test_a_model_cards_config_becomes_one_that_all_main_readers_follow(make_model: MakeModel) -> None:
    model = card_model(make_model, attention_factor=1.5)
    weights = (model / "model.safetensors").stat()
    old = (model / "config.json").read_bytes()
    plan = plan_repair(str(model), RepairOptions())
    assert all(r.before for r in plan.readers.values()), "without a repair none of them serves the whole context"
    assert not any(r.after for r in plan.readers.values())
    assert (model / "config.json").read_bytes() == old, "planning writes nothing"
    plan.run()
    c = opened(model)
    assert (c.context, table(c.rope).multiplier) == (4 * CONTEXT, 1.5)
    assert all(v.exact for v in judge_configs(c.config, c.rope, 4 * CONTEXT).values())
    assert (model / "config.json.before-repair").read_bytes() == old
    after = (model / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    assert plan_repair(str(model), RepairOptions()).changes == ()


def test_what_is_kept_of_a_private_model_is_private(make_model: MakeModel) -> None:
    model = card_model(make_model)
    for path in model.iterdir():
        path.chmod(0o600)
    plan_repair(str(model), RepairOptions()).run()
    assert list(model.glob("*.before-repair"))
    assert {p.stat().st_mode & 0o777 for p in model.iterdir()} == {0o600}


def test_a_second_repair_keeps_the_first_backup(make_model: MakeModel) -> None:
    model = card_model(make_model)
    old = (model / "config.json").read_bytes()
    plan_repair(str(model), RepairOptions()).run()
    plan_repair(str(model), RepairOptions(recipe=Recipe(scale=8.0))).run()
    assert opened(model).context == 8 * CONTEXT
    assert (model / "config.json.before-repair").read_bytes() == old


def test_keys_that_llama_cpp_ignores_are_carried_as_frequencies(make_model: MakeModel, tmp_path: Path) -> None:
    """What convert_hf_to_gguf.py writes for betas and attention_factor."""
    keys = {"llama.rope.scaling.yarn_beta_slow": Value("f32", 4.0), "llama.rope.scaling.yarn_attn_factor": Value("f32", 1.5)}
    out = rewritten(extended(make_model(), tmp_path / "out.gguf"), {**keys, "yarn_convert.recipe": None})
    (tmp_path / "out.yarn_convert.json").unlink()
    before = {name: t.read().tobytes() for name, t in opened(out).tensors.items()}
    plan = plan_repair(str(out), RepairOptions(output=tmp_path / "copy.gguf"))
    assert plan.readers["llama.cpp"].before and not plan.readers["llama.cpp"].after
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
    plan_repair(str(out), RepairOptions(like=str(meant))).run()
    np.testing.assert_array_equal(table(opened(out).rope).inv_freq, table(opened(meant).rope).inv_freq)


def test_a_failed_write_loses_nothing(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = card_model(make_model)
    old = (model / "config.json").read_bytes()

    def full(self: Path, target: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="could not repair"):
        plan_repair(str(model), RepairOptions()).run()
    assert (model / "config.json").read_bytes() == old


def test_the_hubs_cache_is_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    card_model(make_model).rename(snapshot)
    with pytest.raises(OutputError, match="Hub's cache"):
        plan_repair(str(snapshot), RepairOptions())
    plan_repair(str(snapshot), RepairOptions(output=tmp_path / "copy")).run()
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
        plan_repair(str(model), RepairOptions())


def test_our_own_output_keeps_a_true_manifest(make_model: MakeModel, tmp_path: Path) -> None:
    """What it is meant to be changes with the repair, and what lay beside a carrier of frequencies goes with it."""
    out = extended(make_model(), tmp_path / "out", carry="tensors")
    assert (out / "rope.safetensors").exists()
    path = out / "yarn_convert.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": {"of": "what it was"}}))
    plan_repair(str(out), RepairOptions(recipe=Recipe(scale=8.0))).run()
    manifest = json.loads(path.read_text())
    assert (manifest["context"], manifest["carrier"], manifest["validation"]) == (8 * CONTEXT, "metadata", None)
    assert "evaluation" not in manifest
    assert not (out / "rope.safetensors").exists()
    assert (out / "rope.safetensors.before-repair").exists()
    assert plan_repair(str(out), RepairOptions()).changes == (), "and is what is meant from now on"


def test_weights_of_a_pickled_folder_are_not_written(make_model: MakeModel) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = card_model(make_model)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    plan_repair(str(model), RepairOptions()).run()
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
        plan_repair(str(out), RepairOptions(recipe=Recipe(scale=8.0))).run()
    monkeypatch.setattr(in_place, "_write", write)
    plan = plan_repair(str(out), RepairOptions())
    assert (opened(out).context, plan.meant.context, plan.changes) == (8 * CONTEXT, 8 * CONTEXT, ())


def test_an_output_is_named_as_its_format(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(YarnConvertError, match="named like a GGUF"):
        plan_repair(str(card_model(make_model)), RepairOptions(output=tmp_path / "x.gguf"))


# -- nothing is guessed, and nothing taken away -----------------------------------------------------------------------


def contexts(model: Path) -> dict[str, int | None]:
    from yarn_convert.readers import HF_READERS, read_config

    config = json.loads((model / "config.json").read_text())
    return {name: read_config(name, config).context for name in HF_READERS}


def test_a_sound_model_stays_as_it_is(make_model: MakeModel) -> None:
    """All compute it: a spelling that is not there is no fault, nor is one that only an unknown reader would miss."""
    plain = make_model(name="plain")
    yarn = {"rope_type": "yarn", "type": "yarn", "factor": 2.0, "original_max_position_embeddings": CONTEXT}
    scaled = make_model(name="scaled", config={"rope_scaling": yarn, "max_position_embeddings": 2 * CONTEXT})
    for model in (plain, scaled):
        tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2 * CONTEXT}
        (model / "tokenizer_config.json").write_text(json.dumps(tokens))
        before = {p.name: p.read_bytes() for p in model.iterdir()}
        plan = plan_repair(str(model), RepairOptions())
        assert plan.changes == ()
        assert not any(r.before for r in plan.readers.values())
        plan.run()
        assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_lengths_that_can_be_read_in_two_ways_are_asked_for(make_model: MakeModel) -> None:
    for i, (method, factor) in enumerate([("linear", 8.0), ("yarn", 4.0), ("llama3", 8.0)]):
        params = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if method == "llama3" else {}
        model = make_model(name=f"m{i}", config={"rope_scaling": {"rope_type": method, "factor": factor, **params}})
        old = (model / "config.json").read_bytes()
        with pytest.raises(InputError, match=f"{method}.* with factor {factor:g}") as e:
            plan_repair(str(model), RepairOptions())
        assert f"--original-context {CONTEXT}, or --original-context {CONTEXT // int(factor)}" in e.value.hint
        assert (model / "config.json").read_bytes() == old


@pytest.mark.parametrize(("original", "context"), [(CONTEXT, 8 * CONTEXT), (CONTEXT // 8, CONTEXT)])
def test_linear_stays_linear_once_its_length_is_said(make_model: MakeModel, original: int, context: int) -> None:
    model = make_model(config={"rope_scaling": {"type": "linear", "factor": 8.0}})
    before = contexts(model)
    plan = plan_repair(str(model), RepairOptions(recipe=Recipe(original_context=original)))
    plan.run()
    config = json.loads((model / "config.json").read_text())
    assert (config["rope_scaling"]["rope_type"], config["max_position_embeddings"]) == ("linear", context)
    assert opened(model).rope.original_context == original, "and the file says it from now on"
    assert opened(model).doubt is None
    after = contexts(model)
    assert all(n in (None, context) for n in after.values())
    gained = {name for name, r in plan.readers.items() if "serves" in r.gain}
    assert gained == {name for name, n in before.items() if n is not None and (after[name] or 0) > n}


def test_dynamic_stays_dynamic(make_model: MakeModel, tmp_path: Path) -> None:
    """A config.json as transformers 5 writes it has a word for it, which earlier readers find under another name. A GGUF has none."""
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = make_model(config={"rope_scaling": None, "rope_parameters": scaling})
    was = opened(model).rope
    plan = plan_repair(str(model), RepairOptions())
    assert plan.readers["transformers-4"].gain == "computes what is meant"
    plan.run()
    assert opened(model).rope == was
    assert json.loads((model / "config.json").read_text())["rope_scaling"]["type"] == "dynamic"
    assert plan_repair(str(model), RepairOptions()).changes == ()
    with pytest.raises(Inexpressible, match="a GGUF of this architecture cannot carry dynamic-ntk: its frequencies change"):
        convert(str(model), Recipe(method="none"), out="gguf", output=tmp_path / "out.gguf")


def test_yarn_is_repaired_from_the_length_that_is_said(make_model: MakeModel) -> None:
    model = make_model(config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 4 * CONTEXT})
    plan_repair(str(model), RepairOptions(recipe=Recipe(original_context=CONTEXT))).run()
    config = json.loads((model / "config.json").read_text())
    assert config["max_position_embeddings"] == 4 * CONTEXT
    assert config["rope_scaling"]["original_max_position_embeddings"] == CONTEXT
    assert all(v.exact for v in judge_configs(config, opened(model).rope, 4 * CONTEXT).values())


def test_a_repair_that_would_cut_what_a_reader_serves_is_refused(make_model: MakeModel) -> None:
    """YaRN to four windows in a file that says eight."""
    model = card_model(make_model)
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 8 * CONTEXT}))
    old = path.read_bytes()
    with pytest.raises(InputError, match=f"vllm serves {4 * CONTEXT} tokens instead of {8 * CONTEXT}"):
        plan_repair(str(model), RepairOptions())
    assert path.read_bytes() == old
    plan_repair(str(model), RepairOptions(recipe=Recipe(context=8 * CONTEXT))).run()
    assert opened(model).rope.params["factor"] == 8.0


def test_of_two_things_the_user_says_which(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    """An object added by a model card to a config.json of transformers 5."""
    parameters = {"rope_type": "default", "rope_theta": 50000.0}
    config = {"rope_scaling": {**MODEL_CARD, "factor": 4.0}, "rope_parameters": parameters, "rope_theta": 50000.0}
    model = make_model(config=config)
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", str(model)])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "transformers-4, transformers-5, vllm, sglang, mlx-lm, exllamav3 follow rope_scaling" in shown
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", "--runtimes", str(model)])
    assert stop.value.code == 0
    assert "follows rope_scaling, ignores rope_parameters" in capsys.readouterr().out
    with pytest.raises(YarnConvertError, match="disagree") as e:
        plan_repair(str(model), RepairOptions())
    assert "--keep rope_scaling, or --keep rope_parameters" in e.value.hint
    plan_repair(str(model), RepairOptions(keep=["rope_scaling"])).run()
    c = opened(model)
    assert (c.rope.method, c.rope.theta, c.context) == ("yarn", 50000.0, 4 * CONTEXT)


@pytest.mark.parametrize(
    ("scaling", "top", "keep", "expected"),
    [
        ({"rope_type": "linear", "type": "yarn", "factor": 2.0}, {}, "type", ("yarn", 10000.0)),
        ({"rope_type": "yarn", "type": "linear", "factor": 2.0}, {}, "rope_type", ("yarn", 10000.0)),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5}, {}, "object", ("yarn", 5e5)),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5}, {"rope_theta": 1e6}, "top", ("yarn", 1e6)),
    ],
)
def test_any_two_things_that_disagree_are_shown_and_one_is_kept(
    make_model: MakeModel, scaling: dict[str, Any], top: dict[str, Any], keep: str, expected: tuple[str, float]
) -> None:
    from yarn_convert.checkpoint import open_checkpoint
    from yarn_convert.checkpoint.source import resolve
    from yarn_convert.conversion.describe import describe

    model = make_model(config={"rope_scaling": {**scaling, "original_max_position_embeddings": CONTEXT}, **top})
    assert "disagree" in describe(open_checkpoint(resolve(str(model)), doubtful=True)).inconsistencies[0]
    plan_repair(str(model), RepairOptions(keep=[keep])).run()
    c = opened(model)
    assert (c.rope.method, c.rope.theta) == expected


def test_keep_is_for_what_there_is(make_model: MakeModel, tmp_path: Path) -> None:
    for keep in ("rope_parameters", "nonsense"):
        with pytest.raises(YarnConvertError, match=keep):
            plan_repair(str(card_model(make_model)) if keep == "nonsense" else str(make_model()), RepairOptions(keep=[keep]))
    with pytest.raises(YarnConvertError, match="--keep is for a"):
        plan_repair(str(extended(make_model(name="b"), tmp_path / "x.gguf")), RepairOptions(keep=["type"]))
