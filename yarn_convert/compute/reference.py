"""The reference: logits of a checkpoint under a given frequency table, in torch.

transformers runs the base architecture and nothing else is its own: the weights come through this project's readers
(dequantized and put into HF order where they are a GGUF's), config.json's scaling is left out, and every rotary module is
replaced by one that serves cos and sin of a float64 table. So the reference depends on no runtime's RoPE code and on no
spelling.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import dialects
from ..checkpoint import Checkpoint
from ..checkpoint.config import AROUND, NESTS, put
from ..errors import InputError, Unsupported, UsageError, YarnConvertError, did_you_mean, need
from ..families.schema import ROPE_OBJECTS
from ..formats import layout
from ..formats.layout import Part
from ..formats.tensors import Tensor
from ..hearing import tell
from ..rope import Effect, Table
from ..targets.moving import Piece, converted
from ..targets.safetensors import new_config
from .rotary import Spans, replace_rotary, rows_attention

FractionDone = Callable[[float], None]
SHARE = 0.8  # of the free memory that the weights may take; beyond it they go to several GPUs, or are loaded as they are needed


class Reference:
    """A checkpoint in torch, ready to run under any table. `swap_qk` undoes or repeats the order of Q and K rows: a fault
    that converters make, to recognize it."""

    def __init__(self, c: Checkpoint, device: str = "auto", dtype: str = "float32", swap_qk: bool = False) -> None:
        """Raises UsageError when torch, transformers or accelerate is missing or the device is not there."""
        torch, c = with_torch(), as_run(c)
        self.device, self.dtype, self.dtype_name = pick_device(device), getattr(torch, dtype), dtype
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.by_rows = bool(c.window) or c.family.slides
        weights, config = TorchWeights(c, self.dtype, swap_qk), config_of(c)
        self.kind = class_of(c, config)
        there = {device: int(SHARE * free_memory(device)) for device in devices(self.device)}
        fits = weights.nbytes <= next(iter(there.values()))
        self.placed = {} if fits or len(there) == 1 else device_map(skeleton(self.kind, config, self.dtype), there)
        self.offloaded = not fits and not self.placed
        self.net: Any = (self._offloaded if self.offloaded else self._loaded)(config, weights).eval()
        decoder = self.net.get_decoder() if c.around else self.net  # whose RoPE it is; what sees or hears has one of its own
        self.rotary = replace_rotary(decoder, c.family.layer_type, c.farthest == 0)
        self.scaled = [(m, m.scaling) for m in self.net.modules() if hasattr(m, "scaling")] if c.family.hf.latent else []
        self.layers = max((m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        self.seconds = 0.0
        self.cache: Any = None  # the type that keys and values are rounded to

    def _loaded(self, config: Any, weights: TorchWeights) -> Any:
        """The model in memory, on its device or devices."""
        more = {"device_map": self.placed} if self.placed else {}
        net = loaded(self.kind, config, weights, **more)
        return net if self.placed else net.to(self.device)

    def _offloaded(self, config: Any, weights: TorchWeights) -> Any:
        """The model with its layers loaded when their turn comes."""
        from accelerate import cpu_offload

        net = skeleton(self.kind, config, self.dtype)
        if wrong := unlike(net, weights):
            raise UsageError(
                f"this model is too large for the memory, and its layers cannot be loaded one by one: {wrong[:3]}",
                "--twin runs the twin alone",
            )
        cpu_offload(net, self.device, state_dict=weights)
        return net

    def logits(
        self, table: Effect | Table, ids: NDArray[np.int64], spans: Spans, rows_only: bool = False, progress: FractionDone = lambda f: None
    ) -> NDArray[np.float32]:
        """float32[rows, vocabulary]: one row for each position of `spans`, after one pass over `ids`, int64[n].

        `rows_only` computes the last layer's attention for those rows alone, which changes nothing in them and is many times
        cheaper. `progress` gets the fraction done, by layers.
        """
        import torch

        begin = time.perf_counter()
        self.ready(table, len(ids), spans if rows_only else None)
        kept = torch.from_numpy(np.concatenate([np.arange(a, b) for a, b in spans]))  # on the CPU: any device takes indices from there
        hooks = [layer.register_forward_hook(lambda *_, i=i: progress((i + 1) / len(self.layers))) for i, layer in enumerate(self.layers)]
        try:
            with torch.inference_mode(), enough_memory(len(ids)):
                batch = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(self.device)
                out = self.net(batch, use_cache=False, logits_to_keep=kept).logits[0].float().cpu().numpy()
        finally:
            for hook in hooks:
                hook.remove()
        self.seconds = time.perf_counter() - begin
        return np.asarray(out)

    def ready(self, table: Effect | Table, n: int, rows: Spans | None = None) -> None:
        """Set the network up for a pass of `n` tokens under `table`; the last layer attends for `rows` alone where they are given."""
        self.rotary.serve(table, n, self.device, self.dtype)
        for module, scaling in self.scaled:
            module.scaling = scaling * getattr(table, "logits", 1.0)
        by_rows = rows is not None or self.by_rows or self.cache  # sdpa would hold a window's mask, tokens × tokens, whole
        last = ((0, n),) if rows is None else rows
        self.net.set_attn_implementation(rows_attention(last, len(self.layers), n, self.cache) if by_rows else "sdpa")

    @contextlib.contextmanager
    def cached_in(self, dtype: str) -> Iterator[None]:
        """Passes whose keys and values are rounded to `dtype`, as a cache of that type does; "float32" rounds nothing."""
        self.cache = None if dtype == "float32" else getattr(with_torch(), dtype)
        try:
            yield
        finally:
            self.cache = None

    @property
    def peak_bytes(self) -> int | None:
        """Most memory in use so far, of all devices that it is on; None where the device is the CPU."""
        import torch

        if self.device != "cuda":
            return None
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in {*self.placed.values()} or {self.device})

    def describe(self) -> dict[str, Any]:
        import torch
        import transformers

        used = {*self.placed.values()} or {self.device}
        names = Counter(torch.cuda.get_device_name(device) if self.device == "cuda" else device for device in used)
        return {
            "device": ", ".join(f"{n} × {name}" if n > 1 else name for name, n in names.items()),
            "dtype": self.dtype_name,
            "offloaded": self.offloaded,
            "peak_device_bytes": self.peak_bytes,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def fits(c: Checkpoint, device: str, dtype: str) -> bool:
    """Whether the weights of a model have room in the memory of the device, or of all of its kind."""
    needed = TorchWeights(as_run(c), getattr(with_torch(), dtype), False).nbytes
    return bool(needed <= sum(int(SHARE * free_memory(one)) for one in devices(pick_device(device))))


ANY = "eager"  # the attention that every architecture has; a pass sets its own


def loaded(kind: Any, config: Any, weights: TorchWeights, **settings: Any) -> Any:
    """A model in memory, by transformers' own loading: it knows which tensors of a file make one of its own. UsageError where it takes
    others."""
    with building():
        net, info = kind.from_pretrained(
            None, config=config, dtype=weights.dtype, attn_implementation=ANY, output_loading_info=True, state_dict=dict(weights.items()),
            **settings,
        )  # fmt: skip
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *(k for k, *_ in info["mismatched_keys"])]
    if wrong:
        raise UsageError(f"transformers has another idea of this model's tensors: {wrong[:3]}", "pip install -U transformers")
    return net


def skeleton(kind: Any, config: Any, dtype: Any) -> Any:
    """A model without weights; buffers have their values."""
    from accelerate import init_empty_weights

    with building(), init_empty_weights():
        net = kind._from_config(config, attn_implementation=ANY)
    net = net.to(dtype)
    net.tie_weights()
    return net


def unlike(net: Any, weights: TorchWeights) -> list[str]:
    """The names of parameters that are not in a model's files as they are in it: of experts it makes tensors of its own."""
    mine = {name: tuple(p.shape) for name, p in net.named_parameters()}
    theirs = {name: part.shape for name, part in weights.parts.items()}
    return sorted({name for name, _ in mine.items() ^ theirs.items()} - {weights.head})  # tied or not, it is there


def pick_device(wish: str) -> str:
    """cuda, mps or cpu. UsageError for a wish that this machine does not grant."""
    torch = with_torch()
    there = [d for d, yes in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if yes] + ["cpu"]
    if wish not in ("auto", *there):
        raise UsageError(f"no device {wish!r} here", f"{did_you_mean(wish, there)}--device auto, or one of {', '.join(there)}")
    return there[0] if wish == "auto" else wish


def devices(device: str) -> list[str]:
    """All devices of its kind, the one that it names first."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]


def free_memory(device: str) -> int:
    """Bytes that are free on the device."""
    import psutil
    import torch

    return int(torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available)


def device_map(net: Any, there: Mapping[str, int]) -> dict[str, str]:
    """module of `net`, a model without weights -> the device, of those in `there` (with bytes), that accelerate gives it: layers whole,
    in order. Empty where they do not hold it."""
    from accelerate import infer_auto_device_map

    split = {cls for module in net.modules() for cls in (getattr(module, "_no_split_modules", None) or ())}
    names = dict(enumerate(there))  # accelerate knows GPUs by number
    found = infer_auto_device_map(net, {i: there[name] for i, name in names.items()}, no_split_module_classes=sorted(split))
    return {module: names[place] for module, place in found.items()} if {*found.values()} <= {*names} else {}


@contextlib.contextmanager
def enough_memory(n: int) -> Iterator[None]:
    """A pass of `n` tokens for which a device has no memory is the user's to shorten: UsageError."""
    import torch

    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as e:
        if "can't allocate memory" not in str(e):  # so says torch's allocator of the CPU
            raise
    else:
        return
    hint = "fewer tokens, bf16 for --dtype, or --device cpu, where there may be more"
    raise UsageError(f"the memory of the device is too small for a pass of {n:,} tokens", hint)


def with_torch() -> Any:
    """torch, where all of a computation is there, and transformers quiet; UsageError where it is not."""
    need("validate", "a computation in torch")
    if "torch" not in sys.modules:
        tell("starting PyTorch")
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # what it says of a model without a tokenizer's limits is not about this one
    return torch


def as_run(c: Checkpoint) -> Checkpoint:
    """`c` as a model of the family whose code computes it; UsageError for one that transformers has no code for."""
    alone = c.standing_alone()
    if alone.family.hf.run_as and not c.around:
        raise UsageError(f"transformers has no code for {c.family.model_type}", "--out gguf, and validate that")
    return alone


@contextlib.contextmanager
def building() -> Iterator[None]:
    """transformers checks values in its own ways; each of its exceptions is the model's fault."""
    try:
        yield
    except YarnConvertError:
        raise
    except Exception as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"transformers cannot build this architecture from config.json: {why}", "fix its values") from None


def class_of(c: Checkpoint, config: Any) -> Any:
    """transformers' class of a model; InputError for one that it does not have."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if not c.around:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    found = getattr(transformers, c.family.hf.architectures[0], None)
    if found is None:
        raise InputError(f"transformers has no {c.family.hf.architectures[0]}", "pip install -U transformers")
    return found


LEFT_OUT = {  # of config.json: its scaling, and what no forward pass depends on
    "rope_scaling", "rope_parameters", "auto_map", "quantization_config", "model_type", "transformers_version", "torch_dtype", "dtype",
    "architectures", "initializer_range", "id2label", "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path",
    "eod_token_id", "sep_token_id", "tokenizer_class", "use_cache", "pretraining_tp", "cache_implementation", "attention_dropout",
    "hidden_dropout",
}  # fmt: skip


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors of the model that a config.json describes, as transformers has it in memory."""
    torch = with_torch()
    import transformers

    kind = getattr(transformers, config["architectures"][0])
    with building(), torch.device("meta"):
        net = kind._from_config(transformers.AutoConfig.for_model(**config))
    return {name: tuple(t.shape) for name, t in net.state_dict().items()}


def config_of(c: Checkpoint) -> Any:
    """The model's configuration without its scaling, as transformers holds it."""
    from transformers import AutoConfig

    source = c.config if c.gguf is None else new_config(c, "f32")
    values = {k: v for k, v in source.items() if k not in LEFT_OUT} | {"rope_theta": c.rope.theta, "pad_token_id": 0 if c.around else None}
    values |= _beside(c, source)
    model_type = c.family.model_type
    if c.around:
        values = put(c.around, c.nest or NESTS[0], {k: v for k, v in values.items() if k not in AROUND} | {"model_type": model_type})
        model_type = str(c.around["model_type"])
        values = {k: v for k, v in values.items() if k not in LEFT_OUT}
    with building():
        return AutoConfig.for_model(model_type, **values)


def _beside(c: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a RoPE object says beside the recipe: the part of a head that turns; and what the attention asks there for, with the L that
    one of it counts from."""
    part = {} if (hf := c.family.hf).partial is None else {"partial_rotary_factor": c.rope.rotary_dim / c.head_dim}
    kept = {k: x[k] for name in ROPE_OBJECTS if (x := config.get(name)) for k in dialects.BESIDE if k in x}
    kept |= {"original_max_position_embeddings": c.rope.original_context} if "llama_4_scaling_beta" in kept else {}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": c.rope.theta, **kept, **part}} if kept else {}
    if hf.nested_alone:
        others = {"rope_type": "default", "rope_theta": c.other_theta}
        rope = {"rope_parameters": {"sliding_attention": others, c.family.layer_type: {"rope_type": "default", "rope_theta": c.rope.theta}}}
        rope |= {k: v for k, v in hf.writes(c.hparams, c.parts(gguf=True)).items() if k.endswith("head_dim")}  # of both kinds of layers
    return {hf.own(k): v for k, v in part.items()} | rope


class TorchWeights(Mapping[str, Any]):
    """The weights by their HF names, as torch tensors made when asked for: dequantized, rows in HF order."""

    def __init__(self, c: Checkpoint, dtype: Any, swap_qk: bool) -> None:
        self.dtype = dtype
        if c.packed:
            raise Unsupported(f"the weights are packed by {c.packed}", "--twin validates the scaling without them")
        parts = {name: part for name, part in c.parts(gguf=False).items() if name not in c.unused}
        parts = layout.unpacked(c.family, parts, c.tensors) if c.gguf is None else parts
        self.parts = {name: (part.turned(1) or part) if swap_qk else part for name, part in parts.items()}
        self.head, self.embedding = "lm_head.weight", "model.embed_tokens.weight"
        if c.family.listed:
            self.head, self.embedding = (c.hf_name(name) for name in ("output.weight", "token_embd.weight"))
        self.nbytes = sum(math.prod(part.shape) for part in self.parts.values()) * dtype.itemsize

    def __getitem__(self, name: str) -> Any:
        import torch

        tied = name == self.head and name not in self.parts
        return torch.from_numpy(as_f32(self.parts[self.embedding if tied else name])).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def as_f32(part: Part) -> NDArray[np.float32]:
    """A part as float32, whole in memory."""
    n = math.prod(part.shape)
    out, at = np.empty(n, np.float32), 0
    for piece in converted(Piece(Tensor("", "F32", part.shape, 4 * n), part.sources, part.order)):
        values = piece.view(np.float32)
        out[at : at + len(values)] = values
        at += len(values)
    return out.reshape(part.shape)
