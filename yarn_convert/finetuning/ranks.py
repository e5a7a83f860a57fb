"""The processes of one training: who this one is, whom it shares texts with, and what all of them agree on.

`torchrun` starts as many as there are GPUs and says each its number in the environment; without it there is one, which goes the same way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..compute.reference import pick_device
from ..errors import UsageError, YarnConvertError, many

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process is `rank` of `world`. `mesh`: all of them, among which parameters are sharded. `parallel` of them hold a text together,
    `group`; there are `copies` such groups, this is number `copy`, and `part` is this process's place in its own."""

    rank: int
    world: int
    device: str
    mesh: Any
    group: Any
    parallel: int

    @property
    def copies(self) -> int:
        return self.world // self.parallel

    @property
    def copy(self) -> int:
        return self.rank // self.parallel

    @property
    def part(self) -> int:
        return self.rank % self.parallel

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def sums(self, *numbers: float) -> list[float]:
        """Each number's sum over all ranks, in float64."""
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(found)
        return [float(x) for x in found]

    def together(self, what: Callable[[], T], alone: bool = False) -> T | None:
        """What this rank makes of `what`; with `alone`, the first does it alone and the others wait, and have None. An exception of one
        is raised on all, else the others would wait for ever."""
        import torch.distributed as dist

        found, failed = None, None
        try:
            found = what() if self.first or not alone else None
        except (YarnConvertError, OSError) as e:
            failed = e
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, None if failed is None else _said(failed, self))
        if failed:
            raise failed
        if others := [said for said in told if said]:
            raise UsageError(*others[0])
        return found


def _said(e: Exception, ranks: Ranks) -> tuple[str, str]:
    message, hint = (e.message, e.hint) if isinstance(e, YarnConvertError) else (str(e), "")
    return (message if ranks.world == 1 else f"rank {ranks.rank}: {message}"), hint


def training_device(wish: str) -> str:
    """cuda or cpu: FSDP runs on no other. UsageError for a wish that this machine does not grant."""
    found = pick_device(wish)
    if found == "mps" and wish != "auto":
        raise UsageError("PyTorch's FSDP does not run on mps", "--device cpu")
    return "cpu" if found == "mps" else found


def is_first() -> bool:
    """Whether this process speaks: known from the environment, before any group is there."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def ranks_of(device: str, parallel: int) -> Iterator[Ranks]:
    """The group of all processes on a `training_device`, until the end. UsageError where `parallel` does not divide their number."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    world = world_size()
    check_parallel(world, parallel)
    kind, backend = ("cuda", "cpu:gloo,cuda:nccl") if device == "cuda" else ("cpu", "gloo")
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    alone = {} if world > 1 else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, **alone)
    try:
        mesh = init_device_mesh(kind, (world,))
        grid = init_device_mesh(kind, (world // parallel, parallel), mesh_dim_names=("copies", "parts"))
        group = grid.get_group("parts") if parallel > 1 else None
        yield Ranks(dist.get_rank(), world, device, mesh, group, parallel)
    finally:
        dist.destroy_process_group()


BROKEN = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "Timed out", "recvValue failed", "Gloo")


@contextlib.contextmanager
def others_ended() -> Iterator[None]:
    """What PyTorch raises where another process is gone: UsageError."""
    try:
        yield
    except RuntimeError as e:
        if world_size() == 1 or not any(word in str(e) for word in BROKEN):
            raise
        hint = "its own message says why; the same command goes on from the last state that was kept"
        raise UsageError("another process of this training has ended", hint) from None


def check_parallel(world: int, parallel: int) -> None:
    if world % parallel:
        hint = f"torchrun --nproc-per-node {parallel} -m yarn_convert finetune …" if world == 1 else f"a number that divides {world}"
        raise UsageError(f"--sequence-parallel {parallel} does not divide {many(world, 'process', 'processes')}", hint)
