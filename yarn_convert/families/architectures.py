"""What each GGUF architecture's code in llama.cpp makes of the keys and tensors: one row an architecture.

Source: src/models/*.cpp of llama.cpp 0c1e570, each architecture's load_arch_hparams, load_arch_tensors and graph. The rows of
architectures that families are converted to stand with these; here are those that several share, and the others. One without a
row is not known here: one without RoPE, with several per head (M-RoPE), with attention that looks at the length of the text,
with layers of several RoPEs that nobody has worked out, or an encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .layers import Layer, Values, farthest, gguf_exaone4, gguf_granite_swa, gguf_llama4, gguf_within, whole_number


@dataclass(frozen=True)
class Arch:
    """One architecture. The default is code that hands the context's parameters to ggml_rope_ext, and loads no factors."""

    name: str
    freqs: Literal["applied", "forgotten", "refused"] = "refused"  # rope_freqs.weight; "forgotten": loaded, not used
    pair: Literal["never", "longrope", "always"] = "never"  # when rope_factors_*.weight are loaded: "longrope": with that type
    whole_head: bool = False  # src/llama-model.cpp: load_hparams, "invalid n_rot"
    betas: bool = False  # reads yarn_beta_fast and yarn_beta_slow
    # The RoPE of sliding-window layers, if they have one of their own: "shared" has the same factor, and θ from rope.freq_base_swa, else
    # the same; "own" has θ from there, else 10,000, and no factor, but is multiplied by attn_factor; "plain" is the model's θ and no more.
    second: Literal["", "shared", "own", "plain"] = ""
    window: int = 0  # assumed for an absent attention.sliding_window; 0: there are no such layers then
    turning: Callable[[Values, int], list[Layer]] | None = None  # where some layers have no RoPE: which have
    mla: bool = (
        False  # multi-head latent attention: yarn_log_multiplier, and kq_scale grows with the factor (src/models/deepseek2.cpp: graph)
    )
    switch: str = ""  # a key that, when false, turns RoPE off
    sections: bool = False  # M-RoPE if rope.dimension_sections are given
    unmodelled: tuple[str, ...] = ()  # keys that change what is said here
    head: Literal["optional", "required", "never"] = "optional"  # whether it loads a head besides the embedding
    square: bool = False  # it takes hidden_size / heads for the size of a head, whatever the file says

    def farthest(self, keys: Values) -> int | None:
        """How many tokens apart two may be that a layer turns (`layers.farthest`); None also where all layers turn."""
        if self.turning is None:
            return None
        meta = {k.removeprefix(f"{self.name}."): v for k, v in keys.items()}
        blocks, more = (whole_number(meta.get(key, usual), key) for key, usual in (("block_count", None), ("nextn_predict_layers", 0)))
        return farthest(self.turning(meta, max(blocks - more, 0)))


LLAMA = Arch("llama", freqs="applied", pair="longrope", whole_head=True)
# One RoPE, from the context's parameters alone: nothing of its own is read, nothing loaded. The embedding models and the
# speech models that do so too (eurobert, neo-bert, pockettts) are left out.
PLAIN = (
    "arctic", "bailingmoe", "bailingmoe2", "bitnet", "chameleon", "chatglm", "codeshell", "dbrx", "deepseek", "dots1",
    "dream", "gemma", "grovemoe", "hrm_text", "hunyuan-moe", "hy_v3", "jais2", "llada-moe", "maincoder",
    "minimax-01", "minimax-m2", "nemotron", "olmo", "olmoe", "openelm", "orion", "phi2", "plamo2", "qwen",
    "qwen3next", "rnd1", "seed_oss", "talkie", "xverse",
)  # fmt: skip
FREQS = ("arcee", "exaone", "nanbeige")
FORGOTTEN = ("falcon-h1", "llada", "pangu-embedded")
FINETUNED = "rope.scaling.finetuned"
OTHER_ARCHS = (
    *map(Arch, PLAIN),
    *(replace(LLAMA, name=name) for name in ("llama-embed", "deci")),
    *(Arch(name, freqs="applied") for name in FREQS),
    *(Arch(name, freqs="forgotten") for name in FORGOTTEN),
    *(Arch(name, pair="always") for name in ("phimoe", "minicpm3")),
    *(Arch(name, freqs="applied", pair="longrope") for name in ("minicpm", "apertus")),
    Arch("granite_swa", freqs="applied", pair="longrope", turning=gguf_granite_swa),
    Arch("granitehybrid", freqs="applied", switch=FINETUNED),
    Arch("exaone4", freqs="applied", turning=gguf_exaone4),
    Arch("exaone-moe", freqs="applied", turning=gguf_within),
    Arch("mistral3", freqs="applied", pair="longrope", betas=True, unmodelled=("rope.scaling.yarn_log_multiplier",)),
    Arch("llama4", freqs="applied", second="shared", window=8192, turning=gguf_llama4),
    Arch("step35", freqs="applied", pair="longrope", second="own", window=1, unmodelled=("rope.dimension_count_swa",)),
)
