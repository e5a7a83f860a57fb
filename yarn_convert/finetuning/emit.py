"""The config with which another trainer trains a recipe: it reads the extended folder, whose config.json says the recipe.

Each trainer is a row of `TOOLS`. Its keys are those of the version that the row names, read in the files that its function names
(`tests/data/trainers.json` keeps them). No config has a key of its trainer that scales RoPE, or that changes a model's length: the
folder's config.json says both, and transformers, which all of them load it by, has to read it exactly. None of them takes a text file for
one document, as `datasets` gives its lines, so texts are written as a line of JSON each.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.manifest import read_manifest
from ..compute.documents import contents
from ..compute.record import DTYPES
from ..conversion import Conversion, prepare
from ..errors import InputError, OutputError, Unsupported, UsageError, many
from ..formats.contents import CONFIG
from ..formats.files import read_text
from ..formats.json_text import pretty
from ..options import Trainer
from ..targets.moving import WriteBytes
from ..targets.output import replace_file
from .run import Preparation
from .settings import BETAS
from .trainee import SCALING
from .writing import conversion_options

ALIKE = ("base", "recipe", "context", "config", "outtype", "carrier", "finetuned")  # of two manifests of one conversion
LARGE = 8 << 30  # bytes of logits at which a fused loss is worth a word


@dataclass(frozen=True, slots=True)
class Emitted:
    """`path`: the config; `folder`: the extended model that it names. `notes`: what it cannot say, and what comes next."""

    path: Path
    folder: Path
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"config": str(self.path), "model": str(self.folder), "notes": list(self.notes)}


class DataSet(NamedTuple):
    """Of the Hub, `name` its configuration; or `path` is a file of JSON lines."""

    path: str
    name: str
    split: str
    column: str


@dataclass(frozen=True, slots=True)
class Work:
    """What a config is made of. `folder`: the extended model; `config`: the file itself, and what lies beside it has its name;
    `data`: where the documents are."""

    p: Preparation
    folder: Path
    config: Path
    data: DataSet

    @property
    def trained(self) -> Path:
        """Where the trainer writes."""
        return self.folder.with_name(f"{self.folder.name}-tuned")

    @property
    def copies(self) -> int:
        return self.p.processes // self.p.settings.parallel

    @property
    def accumulated(self) -> int:
        """Passes of each process in one step."""
        return self.p.settings.passes(self.copies)

    @property
    def bf16(self) -> bool:
        """Of the trainer's GPUs, whatever this machine has."""
        return DTYPES[self.p.options.dtype or "bf16"] == "bfloat16"

    @property
    def local(self) -> bool:
        """Whether the documents are in a file."""
        return self.p.options.texts.dataset is None


@dataclass(frozen=True, slots=True)
class Tool:
    """A trainer. `config`: what its config says; `notes`: what that cannot say; `beside`: other files that it needs, by name. `command`
    starts it, and then the model lies at `result`; of adapters `merged` is the command that puts them into the weights, and where.
    `refused`: why it cannot train a recipe, and what can."""

    name: str
    version: str
    config: Callable[[Work], dict[str, Any]] = lambda w: {}
    notes: Callable[[Work], list[str]] = lambda w: []
    beside: Callable[[Work], dict[str, bytes]] = lambda w: {}
    command: str = ""
    merged: tuple[str, str] = ("", "")
    result: str = "{trained}"
    refused: tuple[str, str] | None = None


def emit(p: Preparation) -> Emitted:
    """Write the extended model, the texts and the config of `p.options.emit`. Raises Unsupported for what that trainer cannot do,
    OutputError for what is there and is not of this recipe."""
    if p.options.emit is None:
        raise UsageError("no trainer is named", f"--emit {' or '.join(TOOLS)}")
    tool = TOOLS[p.options.emit]
    _check(p, tool)
    folder = p.options.output or p.out.with_name(p.out.name.removesuffix("-tuned"))
    folder = folder.expanduser().absolute()
    made = prepare(p.model, replace(conversion_options(p.options, folder), out="safetensors"))
    unread = {name: v.why for name, v in made.plan.verdicts.items() if name.startswith("transformers") and v.kind != "exact"}
    if unread:
        raise Unsupported(
            f"{tool.name} loads it by transformers, which does not compute this recipe: {unread.popitem()[1]}", "train it here"
        )
    w = Work(p, folder, folder.with_name(f"{folder.name}.{tool.name}.yaml"), _data(p, folder))
    files = {w.config: _yaml(tool, w), **{folder.parent / name: data for name, data in tool.beside(w).items()}}
    _check_free(files, p.options.force)
    if not _made_already(made, folder):
        made.run()
    if w.local:
        _write_texts(p, Path(w.data.path))
    for path, data in files.items():
        _written(path, data)
    return Emitted(w.config, folder, tuple(_notes(tool, w)))


def _check(p: Preparation, tool: Tool) -> None:
    if tool.refused:
        raise Unsupported(f"{tool.name} {tool.version} cannot train this recipe: {tool.refused[0]}", tool.refused[1])
    if p.options.out == "gguf":
        raise UsageError(f"{tool.name} trains a folder in HF layout", "leave out --out gguf: the trained folder is converted later")
    if tool.name == "llama-factory" and p.settings.parallel > 1:
        raise Unsupported(f"llama-factory {tool.version} spreads no segment over processes", "--emit ms-swift, or axolotl")
    if p.settings.parallel > 1 and DTYPES[p.options.dtype or "bf16"] != "bfloat16":
        raise UsageError(f"{tool.name} spreads segments over processes by FlashAttention, which has no float32", "leave out --dtype")


def _made_already(made: Conversion, folder: Path) -> bool:
    """Whether the folder is what the conversion would write: its output, or its input where nothing would change."""
    if folder.resolve() == made.checkpoint.source.path.resolve():
        config = next(job.data for job in made.plan.jobs if isinstance(job, WriteBytes) and job.name == CONFIG)
        return made.plan.identical and config.decode() == read_text(folder, CONFIG)
    found = read_manifest(folder) if folder.is_dir() else None
    mine = replace(made, options=replace(made.options, hash=False)).manifest({}, folder)
    return found is not None and all(getattr(found, k) == getattr(mine, k) for k in ALIKE)


# -- the texts --------------------------------------------------------------------------------------------------------


def _data(p: Preparation, folder: Path) -> DataSet:
    if p.options.texts.dataset is None:
        return DataSet(str(folder.with_name(f"{folder.name}.texts.jsonl")), "", "train", "text")
    name, config, split, column, *more = (*p.options.texts.dataset.split(":"), "", "", "")
    if not name or any(more):
        raise UsageError(f"--dataset {p.options.texts.dataset!r} names no data set", "--dataset NAME:CONFIG:SPLIT:COLUMN")
    if p.options.emit == "ms-swift" and split not in ("", "train"):
        raise Unsupported(f"ms-swift trains on the split train, and on {split} only of a data set that it has registered", "--emit axolotl")
    return DataSet(name, config, split or "train", column or "text")


def _write_texts(p: Preparation, path: Path) -> None:
    """One object a document. InputError for documents that are tokens already; OutputError where another file has the name."""
    made = path.with_name(f".{path.name}.new")
    try:
        with made.open("w", encoding="utf-8") as f:
            for name, content in contents(p.options.texts, "train"):
                if not isinstance(content, str):
                    raise InputError(f"{name} is tokens already, and a trainer is given texts", "train it here, or give the texts")
                f.write(json.dumps({"text": content}, ensure_ascii=False) + "\n")
        if path.exists() and not p.options.force and not filecmp.cmp(path, made, shallow=False):
            raise OutputError(f"{path} exists, with other texts", "--force replaces it, -o PATH writes elsewhere")
        made.replace(path)
    except OSError as e:
        raise OutputError(f"could not write {path}: {e.strerror}", "free some space, or -o on another disk") from None
    finally:
        made.unlink(missing_ok=True)


def _check_free(files: Mapping[Path, bytes], force: bool) -> None:
    for path, data in files.items():
        if path.exists() and not force and not (path.is_file() and path.read_bytes() == data):
            raise OutputError(f"{path} exists", "--force replaces it, -o PATH writes elsewhere")


def _written(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, data)
    except OSError as e:
        raise OutputError(f"could not write {path}: {e.strerror}", "-o in a folder that exists and is yours") from None


def _yaml(tool: Tool, w: Work) -> bytes:
    import yaml

    told: str = yaml.safe_dump(tool.config(w), sort_keys=False, allow_unicode=True, width=1000)
    return f"# {tool.name} {tool.version}, by yarn-convert\n# {_filled(w, tool.command)}\n{told}".encode()


# -- what each of them is told ----------------------------------------------------------------------------------------


def _hf(w: Work) -> dict[str, Any]:
    """What all have of transformers' TrainingArguments (5.23, training_args.py)."""
    s = w.p.settings
    return {
        "output_dir": str(w.trained), "max_steps": s.steps, "gradient_accumulation_steps": w.accumulated, "learning_rate": s.lr,
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": s.warmup, "optim": "adamw_torch", "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1], "weight_decay": 0.0, "max_grad_norm": float(s.clip), "bf16": w.bf16, "seed": s.seed, "logging_steps": 1,
        "save_steps": w.p.settings.checkpoint_every, "save_total_limit": 2,
    }  # fmt: skip


def _axolotl(w: Work) -> dict[str, Any]:
    """0.19.0: utils/schemas/{config,model,training,peft,datasets,fsdp}.py for the keys; utils/config/__init__.py (`normalize_config`) for
    the batch, prompt_strategies/completion.py for the segments, utils/data/utils.py for what `min_sample_len` drops, utils/trainer.py
    for the environment. loaders/model.py (`_adjust_model_config`) raises max_position_embeddings where segments are longer, which ours
    never are; only `overrides_of_model_config` could change RoPE (loaders/utils.py)."""
    s, renamed = w.p.settings, {"lr_scheduler_type": "lr_scheduler", "optim": "optimizer"}
    found: dict[str, Any] = {
        "base_model": str(w.folder),
        "sequence_len": s.sequence,
        "sample_packing": s.pack,
        "pad_to_sequence_len": s.pack,
    }
    found |= {} if s.pack else {"min_sample_len": s.sequence}
    source = {"ds_type": "json"} if w.local else {"split": w.data.split} | ({"name": w.data.name} if w.data.name else {})
    found["datasets"] = [{"path": w.data.path, **source, "type": "completion", "field": w.data.column}]
    found |= {"micro_batch_size": s.micro_batch, **{renamed.get(k, k): v for k, v in _hf(w).items()}}
    found |= {"attn_implementation": "flash_attention_2"} if w.bf16 else {"attn_implementation": "sdpa", "tf32": False}
    found |= {"gradient_checkpointing": s.checkpointing}
    found |= {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if s.checkpointing else {}
    if w.p.processes > 1:  # every process loads by itself: under meta-device init the table is made anew from an empty buffer
        wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT", "reshard_after_forward": True}
        found |= {"fsdp_version": 2, "fsdp_config": {**wrap, "cpu_ram_efficient_loading": False, "offload_params": False}}
    if s.parallel > 1:
        found |= {"context_parallel_size": s.parallel} | ({"dp_shard_size": w.copies} if w.copies > 1 else {})
    if s.lora:
        found |= {"adapter": "lora", "lora_r": s.lora, "lora_alpha": int(SCALING * s.lora), "lora_dropout": 0.0, "lora_target_linear": True}
    return found


def _axolotl_notes(w: Work) -> list[str]:
    s = w.p.settings
    rest = "documents are packed whole, each with positions of its own" if s.pack else "a document's rest is dropped, as here"
    notes = [f"BOS and EOS stand around documents, not around segments; {rest}; of a document only the first 64 segments are read"]
    notes += ["axolotl makes a warm-up of 1 step one of 2"] if s.warmup == 1 else []
    alone = w.p.processes == 1 and w.bf16 and not s.lora
    notes += ["context parallelism needs the package ring-flash-attn"] if s.parallel > 1 else []
    return notes + (["on one process the weights are trained in bfloat16 themselves, in which small steps are lost"] if alone else [])


SWIFT_TYPES = ("llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3")  # its name among several that have one architecture


def _swift(w: Work) -> dict[str, Any]:
    """4.6.0: arguments/sft_args.py, arguments/tuner_args.py, arguments/base_args/{base,data,model,template}_args.py,
    trainers/arguments.py for the keys; cli/main.py for a YAML file and its ENV, template/base.py for what `split` does. `rope_scaling`
    would replace config.json's, and `max_model_len` makes its factor anew (model_args.py, `_init_rope_scaling`): neither is given."""
    s, c = w.p.settings, w.p.checkpoint
    env = {"NPROC_PER_NODE": w.p.processes} | ({"CELOSS_PARALLEL_SIZE": 2048} if s.parallel > 1 else {})
    found: dict[str, Any] = {"ENV": env}
    found |= {"model": str(w.folder)} | ({"model_type": c.family.model_type} if c.family.model_type in SWIFT_TYPES else {})
    at = w.data.path if w.local else f"hf::{w.data.path}" + (f":{w.data.name}" if w.data.name else "")
    found |= {"dataset": [at], "columns": {w.data.column: "response"}, "max_length": s.sequence, "truncation_strategy": "split"}
    found |= {"packing": s.pack, "padding_free": s.pack or s.parallel > 1, "add_version": False}
    sharded = w.p.processes > 1  # DeepSpeed keeps float32 of its own
    found |= {"torch_dtype": "bfloat16" if w.bf16 and (sharded or s.lora) else "float32", "fp16": False}
    found |= {"attn_impl": "flash_attention_2" if w.bf16 else "sdpa", "gradient_checkpointing": s.checkpointing}
    found |= {"per_device_train_batch_size": s.micro_batch, **_hf(w), "data_seed": s.seed}
    found |= {"deepspeed": "zero3"} if sharded else {}
    found |= {"sequence_parallel_size": s.parallel} if s.parallel > 1 else {}
    if not s.lora:
        return found | {"tuner_type": "full"}
    found |= {"tuner_type": "lora", "lora_rank": s.lora, "lora_alpha": int(SCALING * s.lora), "lora_dropout": 0.0}
    return found | {"target_modules": ["all-linear"]}


def _swift_notes(w: Work) -> list[str]:
    s, known = w.p.settings, w.p.checkpoint.family.model_type in SWIFT_TYPES
    notes = ["BOS and EOS stand around documents, not around segments; a segment's first token is not predicted"]
    notes += ["packed pieces have positions of their own, each from 0"] if s.pack else ["a document's rest is trained on too, shorter"]
    notes += [] if known else ["where ms-swift finds several model types for the architecture, add the one that it names: model_type: …"]
    return notes


def _llama_factory(w: Work) -> dict[str, Any]:
    """0.9.5: hparams/{model,data,finetuning,training}_args.py for the keys, hparams/parser.py, data/parser.py for dataset_info.json,
    data/processor/pretrain.py for the segments. A `rope_scaling` would replace config.json's, its factor made of cutoff_len, and
    max_position_embeddings with it (model/model_utils/rope.py); without one all stays."""
    s = w.p.settings
    found: dict[str, Any] = {"model_name_or_path": str(w.folder), "stage": "pt", "do_train": True, "dataset": "texts"}
    found |= {"dataset_dir": str(_info(w).parent), "packing": True, "cutoff_len": s.sequence + 1}  # of which packing takes one away
    found |= {"flash_attn": "fa2" if w.bf16 else "sdpa", "disable_gradient_checkpointing": not s.checkpointing, "report_to": "none"}
    found |= {"per_device_train_batch_size": s.micro_batch, **_hf(w), "data_seed": s.seed}
    if w.p.processes > 1:
        zero = {"stage": 3, "overlap_comm": False, "contiguous_gradients": True, "stage3_gather_16bit_weights_on_model_save": True}
        batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        found["deepspeed"] = {**dict.fromkeys(batch, "auto"), "bf16": {"enabled": "auto"}, "zero_optimization": zero}
    if not s.lora:
        return found | {"finetuning_type": "full"}
    found |= {"finetuning_type": "lora", "lora_rank": s.lora, "lora_alpha": int(SCALING * s.lora), "lora_dropout": 0.0}
    return found | {"lora_target": "all"}


def _info(w: Work) -> Path:
    return w.config.with_suffix("") / "dataset_info.json"


def _llama_factory_beside(w: Work) -> dict[str, bytes]:
    at: dict[str, Any] = {"file_name": w.data.path} if w.local else {"hf_hub_url": w.data.path, "split": w.data.split}
    at |= {"subset": w.data.name} if not w.local and w.data.name else {}
    return {f"{_info(w).parent.name}/{_info(w).name}": pretty({"texts": {**at, "columns": {"prompt": w.data.column}}})}


def _llama_factory_notes(w: Work) -> list[str]:
    join = "documents are joined by EOS and cut every so many tokens, so that a segment holds several, which see each other"
    return [f"{join}; positions run through, and only tokenizers with add_bos_token put BOS in front, in place of a token"]


NO_RECIPE = (
    "its models are Python of fixed sizes, which read no config.json and no TOML, and its YaRN leaves the attention factor to each model, "
    "of which llama3 and qwen3 apply none; its experiment with transformers' code drops biases and sets max_position_embeddings"
)  # models/common/rope.py (`_yarn_inv_freq`), config/manager.py, experiments/transformers_modeling_backend/model.py (`update_from_config`)

TOOLS: Mapping[Trainer, Tool] = {
    "axolotl": Tool(
        "axolotl", "0.19.0", _axolotl, _axolotl_notes,
        command="axolotl train {config} --launcher torchrun -- --nproc_per_node={processes}",
        merged=("axolotl merge-lora {config}", "{trained}/merged"),
    ),
    "ms-swift": Tool(
        "ms-swift", "4.6.0", _swift, _swift_notes, command="swift pt {config}", result="{trained}/checkpoint-{steps}",
        merged=("swift export --adapters {trained}/checkpoint-{steps} --merge_lora true", "{trained}/checkpoint-{steps}-merged"),
    ),
    "llama-factory": Tool(
        "llama-factory", "0.9.5", _llama_factory, _llama_factory_notes, _llama_factory_beside,
        "FORCE_TORCHRUN=1 NPROC_PER_NODE={processes} llamafactory-cli train {config}",
        ("llamafactory-cli export --model_name_or_path {folder} --adapter_name_or_path {trained} --template empty "
         "--export_dir {trained}/merged", "{trained}/merged"),
    ),
    "torchtitan": Tool("torchtitan", "0.3.0", refused=(NO_RECIPE, "--emit axolotl, which has FSDP2 and context parallelism too")),
}  # fmt: skip


def _filled(w: Work, text: str) -> str:
    named = {"config": w.config.name, "folder": w.folder.name, "trained": w.trained.name}
    return text.format(**named, steps=w.p.settings.steps, processes=w.p.processes)


def _notes(tool: Tool, w: Work) -> list[str]:
    """What the trainer will do otherwise than `finetune` here, and what comes next."""
    p, s = w.p, w.p.settings
    shared = f"{many(w.copies, 'copy', 'copies')}" + (f" on {s.parallel} processes each" if s.parallel > 1 else "")
    counted = f"{many(s.batch, 'segment')} a step = {s.micro_batch} at once × {many(w.accumulated, 'pass', 'passes')} × {shared}"
    found = [f"{counted}: it counts on {many(p.processes, 'process', 'processes')} (WORLD_SIZE=8 before this command: on 8)"]
    found += [f"the first step has a rate of 0, and step {s.warmup + 1} is the first at {s.lr:g}, one later than here"] if s.warmup else []
    baked = f"the folder says {p.extension.rope.method} at s = {p.extension.scale:g} for every length: {s.rope.method} is not trained there"
    found += [baked] if s.rope.method != p.extension.rope.method else []
    logits = 4 * s.micro_batch * s.sequence * p.checkpoint.hparams["vocab_size"] // s.parallel
    found += [f"logits in float32 take {logits / 2**30:.0f} GiB: use its fused loss (Liger)"] if logits > LARGE else []
    found += tool.notes(w)
    found += ["perplexities of held-out texts are not measured: yarn-convert evaluate perplexity does, before and after"]
    result = _filled(w, tool.merged[1] if s.lora else tool.result)
    then = [f"then: {_filled(w, tool.command)}"] + ([f"then: {_filled(w, tool.merged[0])}"] if s.lora else [])
    lost = "save_pretrained leaves one spelling of the RoPE in config.json"
    return [*found, *then, f"then: yarn-convert repair {result} --like {w.folder.name} ({lost})",
            f"then: yarn-convert validate {result} --like {w.folder.name}"]  # fmt: skip
