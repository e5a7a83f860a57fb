"""Cross-entropy without all logits at once: 64k tokens of a vocabulary of 150k would be 39 GB in float32.

The gradient is made with the loss, some rows at a time, while their logits are there: the head runs once and nothing of it is kept, as
Liger's fused loss does it (github.com/linkedin/Liger-Kernel, fused_linear_cross_entropy.py), but by the model's own forward, which may
scale or cap its logits.
"""

from __future__ import annotations

from typing import Any

from ..compute.scorer import LOGITS, decoder_replaced

IGNORED = -100  # the target of a token that is not to be predicted, as torch's cross_entropy has it


def logits_at_once(device: str) -> int:
    """How many logits are made at a time: each part costs a pass over the head and its gradient."""
    return LOGITS * (8 if device == "cuda" else 2)


def chunked_loss(net: Any, prefix: str, out: Any, targets: Any, chunk: int) -> Any:
    """Σ −ln p(target) in nats, a scalar that can be differentiated, of the decoder's hidden states `out.last_hidden_state`,
    [rows, n, hidden], and `targets`, int64[rows, n]; `chunk` tokens at a time."""
    import torch

    params = [p for p in head_parameters(net, prefix) if p.requires_grad]

    class Chunked(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, rows: Any, *params: Any) -> Any:
            total, by_rows, sums = _summed(net, prefix, out, rows, targets, params, chunk)
            ctx.save_for_backward(by_rows, *sums)
            return total

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return tuple(saved.mul_(grad) for saved in ctx.saved_tensors)  # in place: nobody asks for them twice

    return Chunked.apply(out.last_hidden_state, *params)


def _summed(net: Any, prefix: str, out: Any, rows: Any, targets: Any, params: Any, chunk: int) -> tuple[Any, Any, list[Any]]:
    """(the loss, its gradients by `rows`, by `params`)."""
    import torch

    total = torch.zeros((), dtype=torch.float32, device=rows.device)
    by_rows, sums = torch.zeros_like(rows), dict[int, Any]()
    with torch.enable_grad(), decoder_replaced(net, prefix, out):
        for row in range(rows.shape[0]):
            for i in range(0, rows.shape[1], chunk):
                part, wanted = rows[row : row + 1, i : i + chunk].detach().requires_grad_(), targets[row, i : i + chunk]
                out.last_hidden_state = part
                logits = net(wanted[None].clamp(min=0), use_cache=False).logits.float().flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORED)
                own, *grads = torch.autograd.grad(loss, [part, *params], allow_unused=True)
                by_rows[row, i : i + chunk] = own[0]
                for k, grad in enumerate(grads):
                    if grad is not None:
                        sums[k] = sums[k].add_(grad) if k in sums else grad.float()
                total += loss.detach()
    return total, by_rows, [sums[k].to(p.dtype) if k in sums else torch.zeros_like(p) for k, p in enumerate(params)]


def head_parameters(net: Any, prefix: str) -> list[Any]:
    """The parameters that make logits of hidden states: those outside the decoder, and the head's where it is the embedding."""
    found = {id(p): p for name, p in net.named_parameters() if not name.startswith(f"{prefix}.")}
    head = net.get_output_embeddings()
    return list((found | {id(p): p for p in (head.parameters() if head is not None else ())}).values())
