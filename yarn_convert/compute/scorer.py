"""Who computes the losses: the base in torch under any recipe, or a real runtime on its own file.

In torch one loaded model serves all methods: `reference` takes cos and sin from a float64 table, so no checkpoint is
written for a method. The decoder runs once over a window and the head over some rows at a time, so logits of all positions are
never in memory at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..errors import UsageError, no_such
from ..rope import Rope, effect
from ..runtimes.kept import Kept
from ..runtimes.library import using
from ..runtimes.table import RUNTIMES
from .reference import FractionDone, Reference, enough_memory

Ids = NDArray[np.int64]
Take = Callable[[Any], None]  # is told logits, float32[rows, vocabulary], of torch or NumPy
LOGITS = 1 << 24  # that are in memory at once: 64 MiB in float32


class Scorer(Protocol):
    """`name` and `dtype` go into a result and into the journal's keys."""

    name: str
    dtype: str

    def losses(self, rope: Rope, ids: Ids, first: int, progress: FractionDone = ...) -> NDArray[np.float64]:
        """−ln p of ids[first:], each given all before it, in nats; float64[len(ids) − first], first ≥ 1."""

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None:
        """Nothing more is asked for."""


class Torch:
    """The reference of `validate`; a dynamic recipe is computed for the length of `ids`."""

    name = "transformers"

    def __init__(self, c: Checkpoint, device: str = "auto", dtype: str = "float32") -> None:
        self.reference, self.dtype = Reference(c, device, dtype), dtype
        self.prefix = decoder_name(self.reference.net)

    def losses(self, rope: Rope, ids: Ids, first: int, progress: FractionDone = lambda f: None) -> NDArray[np.float64]:
        self.reference.ready(effect(rope, len(ids)), len(ids))
        return self.run(ids, first, progress)

    def run(self, ids: Ids, first: int, progress: FractionDone = lambda f: None) -> NDArray[np.float64]:
        """The same, as the network is set up."""
        import torch

        with torch.inference_mode(), enough_memory(len(ids)):
            return self.predictions(ids, first, progress).losses()

    def predictions(self, ids: Ids, first: int, progress: FractionDone = lambda f: None) -> Predictions:
        """Of ids[first:], as the network is set up."""
        import torch

        reference, layers = self.reference, self.reference.layers
        hooks = [layer.register_forward_hook(lambda *_, i=i: progress((i + 1) / (len(layers) + 1))) for i, layer in enumerate(layers)]
        try:
            with torch.inference_mode(), enough_memory(len(ids)):
                batch = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(reference.device)
                out = getattr(reference.net, self.prefix)(batch, use_cache=False)
                rows = out.last_hidden_state[:, first - 1 : -1]
                return Predictions(reference.net, self.prefix, out, rows, batch[0, first:])
        finally:
            for hook in hooks:
                hook.remove()

    def describe(self) -> dict[str, Any]:
        return self.reference.describe()

    def close(self) -> None:
        pass


def decoder_name(net: Any) -> str:
    """What a model calls the part that gives hidden states. UsageError where it does not say."""
    found = next((name for name in (net.base_model_prefix, "model") if name and hasattr(net, name)), None)
    if found is None:
        raise UsageError(f"{type(net).__name__} does not say which part of it is the decoder", "--runtime llama.cpp")
    return str(found)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of `targets`, [n], the decoder's hidden states `rows`, [1, n, hidden], in its output `out`. Logits are made of them by the model's
    own forward, as some architectures scale or cap them there, and `step` rows at a time."""

    net: Any
    prefix: str
    out: Any
    rows: Any
    targets: Any

    @property
    def step(self) -> int:
        return max(1, LOGITS // int(self.net.config.get_text_config().vocab_size))

    def logits(self, a: int, b: int) -> Any:
        """float32[b − a, vocabulary], of the rows a … b−1."""
        self.out.last_hidden_state = self.rows[:, a:b]
        with decoder_replaced(self.net, self.prefix, self.out):
            return self.net(self.targets[None, a:b], use_cache=False).logits[0].float()

    def tell(self, take: Take) -> None:
        """All logits, some rows at a time."""
        import torch

        with torch.inference_mode(), enough_memory(len(self.targets)):
            for a in range(0, len(self.targets), self.step):
                take(self.logits(a, a + self.step))

    def losses(self) -> NDArray[np.float64]:
        """Cross-entropies of the targets."""
        import torch

        found = []
        for a in range(0, len(self.targets), self.step):
            part = self.targets[a : a + self.step]
            losses = torch.nn.functional.cross_entropy(self.logits(a, a + self.step), part, reduction="none")
            found.append(losses.double().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0)


@contextlib.contextmanager
def decoder_replaced(net: Any, prefix: str, out: Any) -> Iterator[None]:
    """The model with a decoder that gives `out`, whatever it is asked."""
    import torch

    decoder = getattr(net, prefix)

    class Given(torch.nn.Module):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return out

        def __getattr__(self, name: str) -> Any:  # some heads look up a number of their decoder
            return getattr(decoder, name)

    setattr(net, prefix, Given())
    try:
        yield
    finally:
        setattr(net, prefix, decoder)


def check_runtime(c: Checkpoint, name: str) -> None:
    """Raise UsageError for a runtime that is unknown, or does not read the model's format."""
    row = RUNTIMES.get(name)
    if row is None:
        raise no_such("runtime", name, RUNTIMES)
    if row.reads != ("gguf" if c.gguf else "safetensors"):
        raise UsageError(f"{name} reads {row.reads}, and {c.source.name} is another format", "yarn-convert MODEL --method none --out …")


class RuntimeScorer:
    """A real runtime on the file as it is: its own reading of its own keys, so it takes no other recipe. One process with the model loaded
    serves all passes, where the runtime can."""

    dtype = "its own"

    def __init__(self, c: Checkpoint, name: str, library: Path | None = None) -> None:
        """`name`: see `check_runtime`; `library`: the folder of the llama.cpp that is run, None for the one that is installed."""
        self.c, self.name, self.library, self.info = c, name, library, dict[str, Any]()
        self.kept = Kept(name, c.source.path, {"losses": True})

    def losses(self, rope: Rope, ids: Ids, first: int, progress: FractionDone = lambda f: None) -> NDArray[np.float64]:
        with using(self.library):
            run = self.kept.run(ids, [(first - 1, len(ids) - 1)], progress)
        self.info = {k: v for k, v in run.info.items() if k != "seconds"}
        return run.logits[:, 0].astype(np.float64)

    def logits(self, ids: Ids, first: int, take: Take, progress: FractionDone = lambda f: None) -> None:
        """Tell `take` the logits from which ids[first:] are predicted, in order: some rows at a time, where the runtime gives them so."""
        with using(self.library):
            run = self.kept.run(ids, [(first - 1, len(ids) - 1)], progress, take)
        self.info = {k: v for k, v in run.info.items() if k != "seconds"}

    def describe(self) -> dict[str, Any]:
        return self.info

    def close(self) -> None:
        self.kept.close()
