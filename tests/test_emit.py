"""Configs for other trainers: they parse, name only keys that the trainer has, and their numbers are the recipe's."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeModel

from yarn_convert import finetuning
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import InputError, OutputError, Unsupported, UsageError, YarnConvertError
from yarn_convert.finetuning.emit import Emitted, emit
from yarn_convert.finetuning.run import prepare_training
from yarn_convert.options import FinetuneOptions, Recipe, RepairOptions, Texts, Trainer
from yarn_convert.rope import same_at_all_lengths

pytest.importorskip("torch")
pytest.importorskip("peft")
KEYS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "trainers.json").read_text())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one document\nof two lines\n")
    (folder / "b.jsonl").write_text('{"text": "the second"}\n{"content": "thé third"}\n')
    return folder


def emitted(model: Path, texts: Path | str, tool: Trainer, **options: Any) -> tuple[Emitted, dict[str, Any]]:
    """(what was written, the config) of four times the context; `texts`: a folder, or the name of a data set."""
    read = Texts(dataset=texts) if isinstance(texts, str) else Texts(files=(texts,))
    wish = {"recipe": Recipe(scale=4), "texts": read, "emit": tool, "output": model.with_name("out"), **options}
    made = emit(prepare_training(str(model), FinetuneOptions(**wish)))
    found = yaml.safe_load(made.path.read_text())
    assert isinstance(found, dict)
    return made, found


def batch_of(tool: str, config: dict[str, Any], processes: int) -> int:
    """Segments a step, by the trainer's own arithmetic: those that share a segment count once."""
    at_once = config["micro_batch_size" if tool == "axolotl" else "per_device_train_batch_size"]
    together = config.get("context_parallel_size", config.get("sequence_parallel_size", 1))
    return int(at_once * config["gradient_accumulation_steps"] * processes // together)


@pytest.mark.parametrize("tool", list(KEYS))
@pytest.mark.parametrize(("processes", "wish"), [
    (1, {}), (8, {"lora": 4, "pack": True, "micro_batch": 2, "sliding_window": "off"}), (8, {"sequence_parallel": 2, "clip": 0.0, "seed": 7}),
])  # fmt: skip
def test_the_config_trains_the_recipe(
    make_model: MakeModel, texts: Path, monkeypatch: pytest.MonkeyPatch, tool: Trainer, processes: int, wish: dict[str, Any]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    if tool == "llama-factory":
        wish = {k: v for k, v in wish.items() if k != "sequence_parallel"}
    model = make_model()
    made, config = emitted(model, texts, tool, **wish)
    row = KEYS[tool]
    assert set(config) <= set(row["keys"])
    assert not set(config) & set(row["rope"])
    if tool == "axolotl":
        assert all(set(part) <= set(row["datasets"]["keys"]) for part in config["datasets"])
        assert set(config.get("fsdp_config", {})) <= set(row["fsdp_config"]["keys"])
    assert batch_of(tool, config, processes) == 64
    numbers = {"max_steps": 400, "learning_rate": 2e-5, "warmup_steps": 20, "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.0}
    assert {k: config[k] for k in numbers} == numbers
    assert (config["max_grad_norm"], config["seed"], config["bf16"]) == (wish.get("clip", 1.0), wish.get("seed", 0), True)
    assert config.get("lr_scheduler", config.get("lr_scheduler_type")) == "constant_with_warmup"
    length = {"axolotl": "sequence_len", "ms-swift": "max_length", "llama-factory": "cutoff_len"}[tool]
    assert config[length] - (tool == "llama-factory") == 256
    rank = {config.get("lora_r", config.get("lora_rank")), config.get("lora_alpha", 0) // 2}
    assert rank == ({4} if wish.get("lora") else {None, 0})
    said = open_checkpoint(resolve(config.get("base_model", config.get("model", config.get("model_name_or_path")))))
    meant = prepare_training(str(model), FinetuneOptions(recipe=Recipe(scale=4), texts=Texts(files=(texts,)))).extension
    assert said.source.path == made.folder
    assert said.context == meant.context == 256
    assert same_at_all_lengths(said.rope, meant.rope)
    assert any(f"counts on {processes} process" in note for note in made.notes)
    assert made.notes[-1].startswith("then: yarn-convert validate out-tuned")


def test_parallelism_as_each_spells_it(make_model: MakeModel, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    model = make_model()
    _, axolotl = emitted(model, texts, "axolotl", sequence_parallel=2, checkpointing=False)
    assert (axolotl["context_parallel_size"], axolotl["dp_shard_size"], axolotl["fsdp_version"]) == (2, 4, 2)
    assert axolotl["attn_implementation"] == "flash_attention_2"
    assert axolotl["gradient_checkpointing"] is False
    _, swift = emitted(model, texts, "ms-swift", sequence_parallel=2)
    assert (swift["sequence_parallel_size"], swift["deepspeed"], swift["ENV"]["NPROC_PER_NODE"]) == (2, "zero3", 8)
    _, factory = emitted(model, texts, "llama-factory", dtype="f32")
    assert factory["deepspeed"]["zero_optimization"]["stage"] == 3
    assert (factory["bf16"], factory["flash_attn"]) == (False, "sdpa")


def test_documents_are_a_line_each(make_model: MakeModel, texts: Path) -> None:
    made, config = emitted(make_model(), texts, "llama-factory")
    info = json.loads((Path(config["dataset_dir"]) / "dataset_info.json").read_text())[config["dataset"]]
    assert set(info) <= set(KEYS["llama-factory"]["dataset_info"]["keys"])
    lines = Path(info["file_name"]).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": t} for t in ("one document\nof two lines\n", "the second", "thé third")]
    (texts / "b.jsonl").write_text('{"input_ids": [1, 2, 3]}\n')
    with pytest.raises(InputError, match="tokens already"):
        emitted(made.folder, texts, "axolotl", output=made.folder.with_name("other"))
    assert not list(made.folder.parent.glob("*.new")) + list(made.folder.parent.glob(".*.new"))


def test_a_data_set_of_the_hub(make_model: MakeModel) -> None:
    model, name = make_model(), "emozilla/pg19:plain:validation:body"
    _, axolotl = emitted(model, name, "axolotl")
    (told,) = axolotl["datasets"]
    assert told == {"path": "emozilla/pg19", "name": "plain", "split": "validation", "type": "completion", "field": "body"}
    with pytest.raises(Unsupported, match="split train"):
        emitted(model, name, "ms-swift")
    _, swift = emitted(model, "emozilla/pg19:json::body", "ms-swift")
    assert (swift["dataset"], swift["columns"]) == (["hf::emozilla/pg19:json"], {"body": "response"})
    _, factory = emitted(model, name, "llama-factory")
    info = json.loads((Path(factory["dataset_dir"]) / "dataset_info.json").read_text())["texts"]
    assert info == {"hf_hub_url": "emozilla/pg19", "split": "validation", "subset": "plain", "columns": {"prompt": "body"}}
    assert not list(model.parent.glob("*.jsonl"))


def test_a_folder_of_the_same_recipe_is_used(make_model: MakeModel, texts: Path) -> None:
    model = make_model()
    made, _ = emitted(model, texts, "axolotl")
    kept = (made.folder / "yarn_convert.json").stat().st_mtime_ns
    again, config = emitted(model, texts, "ms-swift")
    assert (again.folder, config["model"]) == (made.folder, str(made.folder))
    assert (made.folder / "yarn_convert.json").stat().st_mtime_ns == kept
    with pytest.raises(OutputError, match="out exists"):
        emitted(model, texts, "llama-factory", recipe=Recipe(scale=2))
    (texts / "c.txt").write_text("more")
    with pytest.raises(OutputError, match="with other texts"):
        emitted(model, texts, "llama-factory")
    with pytest.raises(OutputError, match=r"axolotl\.yaml exists"):
        emitted(model, texts, "axolotl", steps=3)
    _, config = emitted(model, texts, "axolotl", steps=3, force=True)
    assert config["max_steps"] == 3


def test_an_extended_folder_is_trained_where_it_lies(make_model: MakeModel, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = emitted(make_model(), texts, "axolotl")
    monkeypatch.chdir(made.folder.parent)
    again, config = emitted(made.folder, texts, "axolotl", recipe=Recipe(), output=None, force=True)
    assert (again.folder, config["base_model"]) == (made.folder, str(made.folder))
    with (made.folder / "config.json").open("a") as f:  # what a conversion would write is not what lies there
        f.write("\n")
    told = json.loads((made.folder / "config.json").read_text())
    del told["rope_parameters"]
    (made.folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(OutputError, match="lie inside one another"):
        emitted(made.folder, texts, "axolotl", recipe=Recipe(), output=None)


@pytest.mark.parametrize(("wish", "error", "says"), [
    ({"emit": "torchtitan"}, Unsupported, "torchtitan 0.3.0 cannot train this recipe"),
    ({"emit": "llama-factory", "sequence_parallel": 2}, Unsupported, "spreads no segment"),
    ({"emit": "ms-swift", "sequence_parallel": 2, "dtype": "f32"}, UsageError, "no float32"),
    ({"emit": "axolotl", "out": "gguf", "output": None}, UsageError, "folder in HF layout"),
])  # fmt: skip
def test_refused(
    make_model: MakeModel, texts: Path, monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any], error: type[YarnConvertError], says: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = make_model()
    monkeypatch.chdir(model.parent)
    before = sorted(model.parent.iterdir())
    with pytest.raises(error, match=re.escape(says)) as found:
        emitted(model, texts, wish["emit"], **wish)
    assert found.value.hint
    assert sorted(model.parent.iterdir()) == before


def test_what_transformers_cannot_compute_is_refused(make_model: MakeModel, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = finetuning.emit.__globals__["prepare"]

    def judged(*given: Any, **more: Any) -> Any:
        made = prepare(*given, **more)
        wrong = {k: replace(v, kind="differs", text="frequencies off") for k, v in made.plan.verdicts.items()}
        return replace(made, plan=replace(made.plan, verdicts=wrong))

    monkeypatch.setitem(finetuning.emit.__globals__, "prepare", judged)
    with pytest.raises(Unsupported, match="does not compute this recipe"):
        emitted(make_model(), texts, "axolotl")


def test_what_a_trainer_saves_is_exact_again_after_repair(make_model: MakeModel, texts: Path) -> None:
    """The last two of the notes, on what transformers' save_pretrained leaves of the folder."""
    from transformers import AutoModelForCausalLM

    from yarn_convert.validation import validate

    made, config = emitted(make_model(), texts, "axolotl")
    trained = Path(config["output_dir"])
    AutoModelForCausalLM.from_pretrained(made.folder).save_pretrained(trained)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made.folder / name, trained)
    assert "rope_scaling" not in json.loads((trained / "config.json").read_text())
    plan = plan_repair(str(trained), RepairOptions(like=str(made.folder)))
    assert {name: r.before for name, r in plan.readers.items() if r.before}
    assert not {name: r.after for name, r in plan.readers.items() if r.after}
    plan.run()
    found = validate(str(trained), like=str(made.folder), runtimes=("transformers",), twin=False, tokens=128)
    assert found.verdict == "passed"
