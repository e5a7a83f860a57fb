"""What an installed yarn-convert must do, without torch and without a network: extend a tiny random Llama, and read it back.

python tools/smoke.py, with `yarn-convert` on the path, in any folder: it imports nothing of this repository.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HEADS, HIDDEN, WIDE, VOCAB = 4, 64, 96, 259
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": 1,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    """float32 tensors of one layer, by their names in a folder."""
    square, shapes = (HIDDEN, HIDDEN), {"model.embed_tokens": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {f"model.layers.0.self_attn.{x}_proj": square for x in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{x}_proj": (WIDE, HIDDEN) for x in ("gate", "up")} | {"model.layers.0.mlp.down_proj": (HIDDEN, WIDE)}
    shapes |= {f"model.layers.0.{x}_layernorm": (HIDDEN,) for x in ("input", "post_attention")}
    rng = np.random.default_rng(0)
    return {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file: the length of a header, the header, the numbers."""
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at := at + t.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.tobytes() for t in tensors.values()))


def run(*words: str) -> dict:
    """What `yarn-convert … --json` prints."""
    done = subprocess.run(["yarn-convert", *words, "--json"], capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"yarn-convert {' '.join(words)}: {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def hint(place: str) -> str:
    """That of an error, which names a page."""
    path = Path(place, "no-recipe.yaml")
    path.write_text("nothing", "utf-8")
    done = subprocess.run(["yarn-convert", "recipe", str(path), "--json"], capture_output=True, encoding="utf-8")
    return json.loads(done.stdout)["hint"]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        base, folder, back = (str(Path(place, name)) for name in ("base", "long", "back"))
        Path(base).mkdir()
        Path(base, "config.json").write_text(json.dumps(CONFIG), "utf-8")
        save(Path(base, "model.safetensors"), weights())
        run(base, "--scale", "4", "-o", folder)
        found = run("inspect", folder)
        assert (found["context"], found["rope"]["method"]) == (256, "yarn"), found
        run(folder, "--method", "none", "-o", back)
        assert Path(base, "model.safetensors").read_bytes() == Path(back, "model.safetensors").read_bytes()
        said = json.loads(Path(back, "config.json").read_text("utf-8"))
        assert said["rope_scaling"]["factor"] == 4.0 and said["max_position_embeddings"] == 256, said
        command = hint(place).split("'")[1].split()
        assert command == ["yarn-convert", "docs", "formats"] and "recipe" in run(*command[1:])["text"], command
    print("a tiny model was extended four times, and read back")


if __name__ == "__main__":
    main()
