"""MODEL IDS.npy OUT.npy START: logits of an HF folder in transformers, loaded as a stranger loads it, in float32."""

import sys

import numpy as np


def main(model: str, ids_path: str, out_path: str, start: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.load(ids_path))[None]
    logits = net(ids, logits_to_keep=ids.shape[1] - start, use_cache=False).logits[0]
    np.save(out_path, logits.float().numpy())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
