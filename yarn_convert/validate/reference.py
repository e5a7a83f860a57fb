"""The reference: logits of a checkpoint under a given frequency table, in torch.

transformers runs the base architecture and nothing else is its own: the weights come through this project's readers
(dequantized and put into HF order where they are a GGUF's), config.json's scaling is left out, and every rotary module is
replaced by one that serves cos and sin of a float64 table. So the reference depends on no runtime's RoPE code and on no
spelling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..errors import InputError, UsageError
from ..layout import Part
from ..rope import Table
from ..targets.moving import Piece, converted
from ..targets.safetensors import new_config
from ..tensors import Tensor

Spans = Sequence[tuple[int, int]]
Progress = Callable[[float], None]
SHARE = 0.8  # of the free memory that the weights may take; beyond it layers are loaded as they are needed
BLOCK = 256  # rows of attention that are computed at a time
INSTALL = "pip install 'yarn-convert[validate]'"


class Reference:
    """A checkpoint in torch, ready to run under any table. `swap_qk` undoes or repeats the order of Q and K rows: a fault
    that converters make, to recognize it."""

    def __init__(self, c: Checkpoint, device: str = "auto", dtype: str = "float32", swap_qk: bool = False) -> None:
        """Raises UsageError when torch, transformers or accelerate is missing or the device is not there."""
        torch = _torch()
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

        self.device, self.dtype, self.dtype_name = pick_device(device), getattr(torch, dtype), dtype
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            config = AutoConfig.for_model(c.family.model_type, **_needed(c))
            with init_empty_weights():  # buffers keep their values, parameters have none yet
                net = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        except Exception as e:  # transformers checks values in its own ways
            why = (str(e) or type(e).__name__).splitlines()[0]
            raise InputError(f"transformers cannot build this architecture from config.json: {why}", "fix its values") from None
        self.net: Any = net.to(self.dtype).eval()
        self.windowed = bool(c.sliding_window)
        weights = Weights(c, self.dtype, swap_qk)
        self.offloaded = weights.nbytes > SHARE * free_memory(self.device)
        self._load(weights)
        self.rotary = _replace_rotary(self.net)
        self.layers = max((m for m in self.net.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        self.seconds = 0.0

    def _load(self, weights: Weights) -> None:
        if self.offloaded:
            from accelerate import cpu_offload

            self.net.tie_weights()
            cpu_offload(self.net, self.device, state_dict=weights)  # asks `weights` for each layer when its turn comes
            return
        _, unexpected = self.net.load_state_dict({k: v.to(self.device) for k, v in weights.items()}, strict=False, assign=True)
        self.net.tie_weights()
        empty = [name for name, p in self.net.named_parameters() if p.is_meta]
        if empty or unexpected:
            raise UsageError(
                f"transformers has another idea of this model's tensors: {[*empty, *unexpected][:3]}", "pip install -U transformers"
            )
        self.net.to(self.device)

    def logits(
        self, table: Table, ids: NDArray[np.int64], spans: Spans, rows_only: bool = False, progress: Progress = lambda f: None
    ) -> NDArray[np.float32]:
        """float32[rows, vocabulary]: one row for each position of `spans`, after one pass over `ids`, int64[n].

        `rows_only` computes attention for those rows alone, which is right for a model of one layer and many times
        cheaper. `progress` gets the fraction done, by layers.
        """
        import torch

        begin = time.perf_counter()
        self.rotary.serve(table, len(ids), self.device, self.dtype)
        rows = spans if rows_only else ((0, len(ids)),)  # sdpa would hold a window's mask, tokens × tokens, whole
        self.net.set_attn_implementation(_rows_attention(rows) if rows_only or self.windowed else "sdpa")
        kept = torch.from_numpy(np.concatenate([np.arange(a, b) for a, b in spans])).to(self.device)
        hooks = [layer.register_forward_hook(lambda *_, i=i: progress((i + 1) / len(self.layers))) for i, layer in enumerate(self.layers)]
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(self.device)
                out = self.net(batch, use_cache=False, logits_to_keep=kept).logits[0].float().cpu().numpy()
        finally:
            for hook in hooks:
                hook.remove()
        self.seconds = time.perf_counter() - begin
        return np.asarray(out)

    @property
    def peak_bytes(self) -> int | None:
        """Most device memory in use so far, None where the device is the CPU."""
        import torch

        return int(torch.cuda.max_memory_allocated(self.device)) if self.device == "cuda" else None

    def describe(self) -> dict[str, Any]:
        import torch
        import transformers

        name = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return {
            "device": name,
            "dtype": self.dtype_name,
            "offloaded": self.offloaded,
            "peak_device_bytes": self.peak_bytes,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def pick_device(wish: str) -> str:
    """cuda, mps or cpu. UsageError for a wish that this machine does not grant."""
    torch = _torch()
    there = [d for d, yes in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if yes] + ["cpu"]
    if wish not in ("auto", *there):
        raise UsageError(f"no device {wish!r} here", f"--device auto, or one of {', '.join(there)}")
    return there[0] if wish == "auto" else wish


def free_memory(device: str) -> int:
    """Bytes that are free on the device."""
    import psutil
    import torch

    return int(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available)


def _torch() -> Any:
    try:
        import accelerate  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as e:
        raise UsageError(f"validation needs {e.name}", INSTALL) from None
    return torch


def _needed(c: Checkpoint) -> dict[str, Any]:
    """The values of config.json that the forward pass depends on; its RoPE is none of them."""
    source = {**c.config, **c.hparams} if c.gguf is None else new_config(c, "f32")
    keys = {*c.hparams, *c.family.biases, *c.family.defaults, *(k for k in c.family.fixed if k != "partial_rotary_factor")}
    return {"pad_token_id": None, "rope_theta": c.rope.theta} | {k: source[k] for k in keys if k in source}


class Weights(Mapping[str, Any]):
    """The weights by their HF names, as torch tensors made when asked for: dequantized, rows in HF order."""

    def __init__(self, c: Checkpoint, dtype: Any, swap_qk: bool) -> None:
        self.dtype = dtype
        self.parts = {name: (part.turned(1) or part) if swap_qk else part for name, part in c.parts(gguf=False).items()}
        self.head, self.embedding = (c.family.to_hf(name)[0] for name in ("output.weight", "token_embd.weight"))
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


def _replace_rotary(net: Any) -> Any:
    """Put one module that serves our table in the place of every rotary module of `net`; it is returned."""
    import torch

    class TableRotary(torch.nn.Module):  # type: ignore[misc]
        """cos and sin [1, n, D], as transformers' rotary modules return them, from a float64 table."""

        def serve(self, table: Table, n: int, device: str, dtype: Any) -> None:
            angles = np.arange(n, dtype=np.float64)[:, None] * table.inv_freq
            self.cos, self.sin = (
                torch.from_numpy((np.concatenate([f(angles)] * 2, axis=1) * table.multiplier).astype(np.float32)).to(device, dtype)
                for f in (np.cos, np.sin)
            )

        def forward(self, x: Any, position_ids: Any, *rest: Any, **more: Any) -> tuple[Any, Any]:
            return self.cos[position_ids], self.sin[position_ids]

    rotary = TableRotary()
    names = [name for name, m in net.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if not names:
        raise UsageError(f"{type(net).__name__} keeps its rotary embedding where it is not found", "validate it with --runtime only")
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, rotary)
    return rotary


def _rows_attention(rows: Spans) -> str:
    """The name of an attention function for transformers that computes these rows and leaves the others zero: causal, and
    within the sliding window that a layer hands to it."""
    import torch
    from transformers import AttentionInterface

    blocks = [(i, min(i + BLOCK, b)) for a, b in rows for i in range(a, b, BLOCK)]

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **rest: Any) -> tuple[Any, None]:
        window = rest.get("sliding_window") or query.shape[2]
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        out = torch.zeros_like(query)
        for a, b in blocks:
            first = max(0, a - window + 1)
            scores = query[:, :, a:b] @ key[:, :, first:b].transpose(2, 3)
            scores *= query.shape[-1] ** -0.5 if scaling is None else scaling
            distance = torch.arange(a, b, device=query.device)[:, None] - torch.arange(first, b, device=query.device)
            hidden = (distance < 0) | (distance >= window)
            out[:, :, a:b] = scores.masked_fill_(hidden, float("-inf")).softmax(-1) @ value[:, :, first:b]
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("yarn_convert_rows", attend)
    return "yarn_convert_rows"
