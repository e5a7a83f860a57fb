"""What two models say of the next token, compared position by position, as llama.cpp's tools/perplexity/perplexity.cpp does for
--kl-divergence (`log_softmax` with a `kl_divergence_result`), where P is the base's distribution and Q the other's:

    KL(P ‖ Q) = Σ P(t)·(ln P(t) − ln Q(t)) over the whole vocabulary, in nats
    Δp = Q(true token) − P(true token), and whether both have the same most likely token

There P comes from a file with 16 bits a logarithm, and tokens below e^-16 are left out. Here it is summed over all, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scorer import Predictions, Take

COLUMNS = 4  # of a position: KL(P ‖ Q), −ln P and −ln Q of the true token, and 1 where both have the same most likely one


def divergences(base: Predictions, run: Callable[[Take], None]) -> NDArray[np.float64]:
    """float64[n, COLUMNS] of the base's n predictions; `run` tells what it is given the other model's logits of the same positions. Of
    neither are more than some rows in memory at once."""
    import torch

    found, at = list[NDArray[np.float64]](), 0

    def take(logits: Any) -> None:
        nonlocal at
        for a in range(0, len(logits), base.step):
            part = torch.as_tensor(logits[a : a + base.step])
            end = at + len(part)
            with torch.inference_mode():
                found.append(_compared(base.logits(at, end), part, base.targets[at:end]))
            at = end

    run(take)
    assert at == len(base.targets)
    return np.concatenate(found)


def _compared(base: Any, other: Any, targets: Any) -> NDArray[np.float64]:
    """Of logits float32[n, vocabulary], and the true tokens."""
    import torch

    device = "cpu" if base.device.type == "mps" else base.device  # which has no float64
    p, q = (x.to(device, torch.float64).log_softmax(-1) for x in (base, other))
    weights = p.exp()
    divergence = torch.where(weights == 0, 0.0, weights * (p - q)).sum(-1).clamp(min=0)  # rounding goes below 0 where both are alike
    losses = [-x.gather(1, targets.to(device)[:, None])[:, 0] for x in (p, q)]
    same = p.argmax(-1) == q.argmax(-1)
    return np.asarray(torch.stack([divergence, *losses, same.double()], dim=1).cpu().numpy())
