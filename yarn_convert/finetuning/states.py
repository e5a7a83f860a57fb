"""The state of a training on the disk, by torch.distributed.checkpoint: sharded parameters and optimizer, whole or not at all.

A state is a folder, `step-000120`, in the training's own. It is written under another name and renamed, and only then is the one before it
deleted: whenever a process is killed, one whole state is there, and it is of the same numbers on any number of ranks.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .ranks import Ranks

STATE = re.compile(r"step-(\d{6})")


def latest(folder: Path) -> int:
    """The step after which the newest state was kept; 0 where there is none."""
    found = [int(m[1]) for p in folder.glob("step-*") if (m := STATE.fullmatch(p.name))] if folder.is_dir() else []
    return max(found, default=0)


def save(folder: Path, step: int, module: Any, optimizer: Any, ranks: Ranks) -> None:
    """Keep the state after `step` steps, and give up those before. OutputError where the disk has no room: those before stay."""
    import torch.distributed.checkpoint as dcp

    made = folder / f".step-{step:06d}"
    state = _state(module, optimizer)
    ranks.together(lambda: shutil.rmtree(made, ignore_errors=True), alone=True)

    def write() -> None:
        try:
            dcp.save(state, checkpoint_id=str(made))
        except (Exception, dcp.CheckpointException) as e:  # of any rank, in one of torch's own
            says = f"the state after step {step} could not be kept in {folder}: {_why(e)}"
            raise OutputError(says, "free some space; the same command goes on from the one before") from None

    try:
        ranks.together(write)
    except OutputError:
        ranks.together(lambda: shutil.rmtree(made, ignore_errors=True), alone=True)
        raise

    def publish() -> None:
        made.rename(folder / f"step-{step:06d}")
        for path in folder.glob("step-*"):
            if (m := STATE.fullmatch(path.name)) and int(m[1]) < step:
                shutil.rmtree(path)

    ranks.together(publish, alone=True)


def load(folder: Path, step: int, module: Any, optimizer: Any) -> None:
    """Go back to a state that was kept."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = _state(module, optimizer)
    dcp.load(state, checkpoint_id=str(folder / f"step-{step:06d}"))
    set_state_dict(module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=_options(strict=False))


def _state(module: Any, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(module, optimizer, options=_options())
    return {"model": model, "optimizer": optimizer}


def _options(strict: bool = True) -> Any:
    """What is trained alone: what an adapter leaves as it is comes from the base again."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(ignore_frozen_params=True, strict=strict)


def _why(e: BaseException) -> str:
    first = next((x.strerror for x in _causes(e) if isinstance(x, OSError) and x.strerror), None)
    return first or (str(e) or type(e).__name__).splitlines()[0]


def _causes(e: BaseException | None) -> list[BaseException]:
    """An exception, what it came from, and those that torch keeps by rank."""
    found: list[BaseException] = []
    while e is not None and e not in found:
        found.append(e)
        for inner in getattr(e, "failures", {}).values():
            found += _causes(inner[0] if isinstance(inner, tuple) else inner)
        e = e.__cause__ or e.__context__
    return found
