"""The reference on devices that this machine does not have: torch's fake tensors know where they are, and refuse to mix devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute import reference as rooms
from yarn_convert.compute.reference import Reference, TorchWeights, device_map
from yarn_convert.errors import UsageError
from yarn_convert.rope import Effect, table

torch = pytest.importorskip("torch")
MakeModel = Callable[..., Path]
GPUS = ["cpu:0", "cpu:1"]  # the only kind of which a build for the CPU has a guard; to fake tensors two devices like any


@pytest.fixture
def model(make_model: MakeModel) -> Checkpoint:
    return open_checkpoint(resolve(str(make_model(layers=4))))


def halves(c: Checkpoint) -> dict[str, int]:
    """Two devices, neither of which holds the whole model."""
    size = TorchWeights(c, torch.float32, swap_qk=False).nbytes
    return dict.fromkeys(GPUS, int(0.8 * size))


def placed(reference: Reference, c: Checkpoint) -> dict[str, str]:
    return device_map(rooms.skeleton(reference.kind, rooms.config_of(c), reference.dtype), halves(c))


def place_of(name: str, places: dict[str, str]) -> str:
    return next(places[key] for key in sorted(places, key=len, reverse=True) if not key or f"{name}.".startswith(f"{key}."))


def moved(net: Any, places: dict[str, str], mode: Any) -> None:
    """Every weight and buffer of `net` becomes a fake one on the device of its module."""
    for name, owner in net.named_modules():
        for kind in (owner._parameters, owner._buffers):
            for key, value in kind.items():
                if value is not None:
                    fake = mode.from_tensor(value.detach()).to(place_of(f"{name}.{key}", places))
                    kind[key] = torch.nn.Parameter(fake, requires_grad=False) if kind is owner._parameters else fake


def on_fakes(reference: Reference, places: dict[str, str], rows: bool = False, hooks: bool = True) -> Any:
    """The logits' fake tensor of a pass, with accelerate's hooks or without; whatever mixes devices raises."""
    from accelerate import dispatch_model
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        moved(reference.net, places, mode)
        if hooks:
            dispatch_model(reference.net, places, main_device=GPUS[0], force_hooks=True)
        reference.device = GPUS[0]
        reference.ready(Effect(np.logspace(0, -2, 8), 1.1), 40, ((3, 20), (30, 40)) if rows else None)
        batch = torch.arange(40, device=GPUS[0])[None]
        return reference.net(batch, use_cache=False, logits_to_keep=torch.arange(40)).logits


@pytest.mark.parametrize("rows", [False, True])
def test_layers_on_two_devices_never_meet(model: Checkpoint, rows: bool) -> None:
    reference = Reference(model, "cpu")
    places = placed(reference, model)
    assert {place_of(f"model.layers.{i}", places) for i in range(4)} == {*GPUS}
    assert on_fakes(reference, places, rows).shape == (1, 40, 263)


def test_a_table_that_stays_on_one_device_is_found(model: Checkpoint) -> None:
    """The control: without accelerate's hooks the same pass mixes devices."""

    reference = Reference(model, "cpu")
    with pytest.raises(RuntimeError, match="device"):
        on_fakes(reference, placed(reference, model), hooks=False)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_too_large_for_one_device_is_loaded_onto_two(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    c, ids = open_checkpoint(resolve(str(make_model(layers=4, tied=tied)))), np.arange(60)
    whole = Reference(c).logits(table(c.rope), ids, [(0, 60)])
    found: dict[str, str] = {}

    def as_cpu(net: Any, there: dict[str, int]) -> dict[str, str]:
        found.update(device_map(net, there))
        return dict.fromkeys(found, "cpu")

    monkeypatch.setattr(rooms, "devices", lambda device: GPUS)
    monkeypatch.setattr(rooms, "free_memory", lambda device: int(halves(c)[device] / rooms.SHARE))
    monkeypatch.setattr(rooms, "device_map", as_cpu)
    reference = Reference(c, "cpu")
    assert {*found.values()} == {*GPUS} and not reference.offloaded
    np.testing.assert_array_equal(reference.logits(table(c.rope), ids, [(0, 60)]), whole)


def test_a_model_too_large_for_all_devices_is_loaded_by_layers(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "devices", lambda device: GPUS)
    monkeypatch.setattr(rooms, "free_memory", lambda device: 1000)
    assert Reference(model, "cpu").offloaded


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_pass_that_is_too_long_is_said_in_one_line(model: Checkpoint, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    reference = Reference(model, "cpu")

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(reference.net, "forward", full)
    with pytest.raises(UsageError, match="too small for a pass of 60 tokens"):
        reference.logits(table(model.rope), np.arange(60), [(0, 60)])


def test_other_errors_of_a_pass_stay_what_they_are(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(model, "cpu")
    monkeypatch.setattr(reference.net, "forward", lambda *a, **k: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        reference.logits(table(model.rope), np.arange(60), [(0, 60)])
