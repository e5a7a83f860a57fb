"""The model that is trained: transformers' code, this project's table, sharded over the ranks by PyTorch's FSDP2.

It computes what `compute.reference` does: weights through our readers, config.json's scaling left out, every rotary module served from the
recipe's float64 table. It stays in evaluation mode, so no dropout or router noise comes between. Each decoder layer is a unit of FSDP and,
unless it is turned off, of activation checkpointing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import Checkpoint
from ..compute.reference import ANY, TorchWeights, as_run, building, class_of, config_of, loaded, skeleton, unlike, with_torch
from ..compute.rotary import replace_rotary
from ..compute.scorer import Predictions, decoder_name
from ..errors import Unsupported, UsageError, need
from ..hearing import tell
from ..rope import Effect
from . import attention
from .losses import chunked_loss, logits_at_once
from .ranks import Ranks
from .settings import Settings

TRIED = 16  # tokens of each rank by which the attention is tried
BASE_LAYER = ".base_layer"  # what PEFT puts into the names of parameters that it leaves as they are
ADAPTER = ".lora_"


class Part(NamedTuple):
    """What one rank is given of a batch: `ids` and `positions`, int64[rows, n]; `targets` alike, `losses.IGNORED` where nothing is to be
    predicted; of each row its documents, None where a row is one."""

    ids: Any
    positions: Any
    targets: Any
    documents: list[list[attention.Span]] | None = None


class Trainee:
    """A model on its rank. `module(part.ids, part.positions, part.targets)` gives the sum of the losses. Its parameters are DTensors,
    unless one process trains in float32."""

    def __init__(self, c: Checkpoint, s: Settings, ranks: Ranks) -> None:
        """Raises UsageError for heads that the ranks do not divide, Unsupported for an attention that cannot be spread over them."""
        torch, c = with_torch(), as_run(c)
        self.c, self.settings, self.ranks, self.dtype = c, s, ranks, getattr(torch, s.dtype)
        if ranks.parallel > 1:
            _check_parallel(c, ranks.parallel)
        self.running = attention.Pass(ranks.group, windows=s.sliding_window != "off")
        net, self.unloaded = _made(c, self.dtype if s.lora else torch.float32, s.lora)
        self.net: Any = net.eval()
        self.net.set_attn_implementation(attention.register(self.running))
        self.decoder = self.net.get_decoder() if c.around else self.net
        self.rotary = replace_rotary(self.decoder, c.family.layer_type)
        self.scaled = [(m, m.scaling) for m in self.net.modules() if hasattr(m, "scaling")] if c.family.hf.latent else []
        self.layers = max((m for m in self.decoder.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        self.prefix = decoder_name(self.net)
        self.chunk = max(1, logits_at_once(ranks.device) // self.net.config.get_text_config().vocab_size)
        if s.checkpointing:
            for layer in self.layers:
                _checkpointed(layer)
        self.module = self._sharded()

    def _sharded(self) -> Any:
        """The module that FSDP calls: decoder and loss in one, for what lies outside the layers is gathered while it runs."""
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        trainee = self

        class Losses(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = trainee.net

            def forward(self, ids: Any, positions: Any, targets: Any, each: bool = False) -> Any:
                out = getattr(self.net, trainee.prefix)(ids, position_ids=positions, use_cache=False)
                if each:
                    rows = out.last_hidden_state
                    return [Predictions(self.net, trainee.prefix, out, rows[i : i + 1], targets[i]).losses() for i in range(len(rows))]
                return chunked_loss(self.net, trainee.prefix, out, targets, trainee.chunk)

        module, policy = Losses(), MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        if self.settings.sharded(self.ranks.world):
            for layer in self.layers:
                fully_shard(layer, mesh=self.ranks.mesh, mp_policy=policy)
            fully_shard(module, mesh=self.ranks.mesh, mp_policy=policy)
        self._load(module)
        return module

    def _load(self, module: Any) -> None:
        """Fill what has no values yet, tensor by tensor: each rank reads all and keeps its shards. An adapter begins as PEFT's does, A by
        Kaiming's rule and B with zeros, alike on all ranks."""
        import torch
        from torch.distributed.tensor import DTensor, distribute_tensor

        device = torch.device(self.ranks.device if self.ranks.device != "cuda" else torch.cuda.current_device())
        state, made = {}, dict[int, Any]()
        named = list(module.named_parameters(remove_duplicate=False))
        for i, (name, p) in enumerate(named):
            tell(f"loading {self.c.source.name}", i / len(named))
            whole = self._adapter(name, p) if ADAPTER in name else self._weight(name, p)
            if whole is not None:
                if id(p) not in made:  # a tied head stays the embedding
                    sharded = isinstance(p, DTensor)
                    mine = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None) if sharded else whole
                    made[id(p)] = torch.nn.Parameter(mine)
                state[name] = made[id(p)]
        module.load_state_dict(state, strict=False, assign=True)
        module.to(device)
        trained = self._trained()
        for name, p in module.named_parameters():
            p.requires_grad_(ADAPTER in name if self.settings.lora else id(p) in trained)

    def _trained(self) -> set[int]:
        """What a text goes through: of a model that sees, its language model and head."""
        head = self.net.get_output_embeddings()
        parts = [self.decoder, *([head] if head is not None else [])]
        return {id(p) for part in parts for p in part.parameters()}

    def _weight(self, name: str, p: Any) -> Any:
        found = None if self.unloaded is None else self.unloaded[file_name(name)]
        return None if found is None else found.to(p.dtype)

    def _adapter(self, name: str, p: Any) -> Any:
        import torch

        made = torch.zeros(p.shape, dtype=p.dtype)
        if "lora_A" in name:
            seed = zlib.crc32(f"{self.settings.seed} {name}".encode())
            torch.nn.init.kaiming_uniform_(made, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        return made

    # -- running ------------------------------------------------------------------------------------------------------

    def serve(self, effect: Effect, n: int) -> None:
        """Set it up for texts of `n` tokens under a recipe's effect."""
        self.rotary.serve(effect, n, self.ranks.device, self.dtype)
        for module, scaling in self.scaled:
            module.scaling = scaling * effect.logits

    def check_table(self, effect: Effect, n: int) -> None:
        """UsageError where what the rotary module gives is not the recipe's: cos and sin at the first, the last and some positions between,
        against float64 within the rounding of the type."""
        import torch

        at = np.unique(np.linspace(0, n - 1, 33).astype(np.int64))
        found = self.rotary(torch.zeros(1), torch.from_numpy(at)[None].to(self.ranks.device))
        found = (found.real, found.imag) if torch.is_tensor(found) else found
        angles = at[:, None] * effect.inv_freq
        for given, function in zip(found, (np.cos, np.sin), strict=True):
            values = given.reshape(len(at), -1).double().cpu().numpy()
            meant, times = function(angles) * effect.multiplier, values.shape[1] // angles.shape[1]
            error = min(np.abs(values - spread).max() for spread in (np.tile(meant, times), np.repeat(meant, times, axis=1)))
            if not error <= abs(effect.multiplier) * (2.0**-23 if self.settings.dtype == "float32" else 2.0**-8):
                raise UsageError(
                    f"the table that the model turns by is not the recipe's: off by {error:.2g}", "transformers of constraints.txt"
                )

    def check_attention(self) -> None:
        """That no token sees what comes later, by changing the last one. An architecture with an attention of its own gets transformers'
        masks for it; Unsupported where it would have to obey ours. Call it when a table of `TRIED` tokens a rank is served."""
        linear = sum(self.c.family.linear(self.c.hparams)) if self.c.family.linear else 0
        self.running.calls = 0
        causal = self._causal()
        if self.running.calls < 2 * (len(self.layers) - linear):
            if self.settings.pack or self.ranks.parallel > 1 or not self.running.windows:
                hint = "neither --pack nor --sequence-parallel nor --sliding-window off"
                raise Unsupported(f"{self.c.family.name} has layers that are no attention, or one of its own", hint)
            self.net.set_attn_implementation(ANY)
            causal = self._causal()
        if not causal:
            raise Unsupported(
                f"in {self.c.family.name} tokens see what comes later, so nothing is learnt from predicting it", "another family"
            )

    def _causal(self) -> bool:
        """Whether a changed last token leaves the losses of those before it."""
        import torch

        n, ranks = TRIED * self.ranks.parallel, self.ranks
        ids = torch.arange(n) * 7 % self.net.config.get_text_config().vocab_size
        changed = torch.cat([ids[:-1], ids[-1:] + 1])
        mine = slice(ranks.part * TRIED, (ranks.part + 1) * TRIED)
        parts = [[x[None, mine].to(ranks.device) for x in (given, torch.arange(n), ids)] for given in (ids, changed)]
        before, after = (self.losses(Part(*tensors))[0] for tensors in parts)
        last = ranks.part == ranks.parallel - 1
        return bool(np.abs(before - after)[: -1 if last else None].max() < 1e-3)

    def loss(self, part: Part) -> Any:
        """The sum of a part's losses, to be differentiated."""
        self.running.documents = part.documents
        return self.module(part.ids, part.positions, part.targets)

    def losses(self, part: Part) -> list[Any]:
        """Of each row the losses of its targets, float64[n], without gradients; every target has to be a token."""
        import torch

        self.running.documents = part.documents
        with torch.no_grad():
            found: list[Any] = self.module(part.ids, part.positions, part.targets, each=True)
        return found

    # -- what comes out -----------------------------------------------------------------------------------------------

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """(name in transformers, the whole tensor on the CPU) of every parameter, adapters merged into what they adapt: W + B·A·α/r, in
        float32. All ranks have to go through it."""
        named = dict(self.module.named_parameters())
        for name, p in named.items():
            if ADAPTER in name:
                continue
            whole = _whole(p)
            stem = name.removesuffix(f"{BASE_LAYER}.weight")
            if stem != name:
                a, b = (_whole(named[f"{stem}{ADAPTER}{which}.default.weight"]) for which in "AB")
                whole = whole + b @ a * SCALING
            yield file_name(name), whole


def _whole(p: Any) -> Any:
    """A parameter, float32, on the CPU; one that is sharded is gathered, by all ranks."""
    found = p.detach()
    return (found.full_tensor() if hasattr(found, "full_tensor") else found).float().cpu()


def _made(c: Checkpoint, dtype: Any, lora: int | None) -> tuple[Any, Mapping[str, Any] | None]:
    """(the model on the CPU, its weights where it has none yet): a shell, where transformers calls its parameters as files do."""
    with building():
        config = config_of(c)
    weights, kind = TorchWeights(c, dtype, False), class_of(c, config)
    net = skeleton(kind, config, dtype)
    named = None if unlike(net, weights) else weights
    if named is None:
        net = loaded(kind, config, weights)
    if lora:
        _adapted(net, lora)
    return net, named


SCALING = 2.0  # α/r, as most recipes have it


def _adapted(net: Any, rank: int) -> None:
    """Put PEFT's adapters beside every linear map of the layers."""
    need("finetune", "--lora", "peft")
    from accelerate import init_empty_weights
    from peft import LoraConfig, inject_adapter_in_model

    linear = sorted({name.rpartition(".")[2] for name, m in net.named_modules() if type(m).__name__ == "Linear"} - {"lm_head"})
    with init_empty_weights():
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=int(SCALING * rank), target_modules=linear), net)
    for name, p in net.named_parameters():
        if ADAPTER in name:  # what is trained is kept in float32
            p.data = p.data.float()


def file_name(name: str) -> str:
    """A parameter of the trained module as transformers calls it."""
    return name.removeprefix("net.").replace(BASE_LAYER, "")


def _checkpointed(layer: Any) -> None:
    """Let a layer compute its activations again in the backward pass instead of keeping them."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _check_parallel(c: Checkpoint, ranks: int) -> None:
    attention.check_heads(c.heads("q"), ranks)
    if c.family.linear and any(c.family.linear(c.hparams)):
        raise Unsupported(f"{c.family.name} has layers of linear attention, which go through a text in order", "--sequence-parallel 1")
