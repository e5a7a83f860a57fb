"""What each GGUF architecture's code in llama.cpp makes of the RoPE keys and tensors: one row an architecture.

Source: src/models/*.cpp of llama.cpp 0c1e570, each architecture's load_arch_hparams, load_arch_tensors and graph. An
architecture without a row is not known here: one without RoPE, with several per head (M-RoPE), with attention that looks
at the length of the text, with layers of several RoPEs that nobody has worked out, or an encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture. The default is code that hands the context's parameters to ggml_rope_ext, and loads no factors.

    `second` is the RoPE of sliding-window layers, if they have one of their own: "shared" has the same factor, and θ from
    rope.freq_base_swa, else the same; "own" has θ from there, else 10,000, and no factor, but is multiplied by attn_factor;
    "plain" is the model's θ and nothing else.
    """

    freqs: str = "refused"  # rope_freqs.weight: "applied", "forgotten" (loaded, not used) or "refused"
    pair: str = "never"  # rope_factors_*.weight are loaded "never", with type "longrope", or "always"
    whole_head: bool = False  # src/llama-model.cpp: load_hparams, "invalid n_rot"
    betas: bool = False  # reads yarn_beta_fast and yarn_beta_slow
    second: str = ""
    window: int = 0  # assumed for an absent attention.sliding_window; 0: there are no such layers then
    mla: bool = False  # yarn_log_multiplier, and kq_scale grows with the factor (src/models/deepseek2.cpp: graph)
    switch: str = ""  # a key that, when false, turns RoPE off
    sections: bool = False  # M-RoPE if rope.dimension_sections are given
    unmodelled: tuple[str, ...] = ()  # keys that change what is said here


# One RoPE, from the context's parameters alone: nothing of its own is read, nothing loaded. The embedding models and the
# speech models that do so too (eurobert, neo-bert, pockettts) are left out.
PLAIN = frozenset({
    "arctic", "bailingmoe", "bailingmoe2", "bitnet", "chameleon", "chatglm", "codeshell", "command-r", "dbrx", "deepseek", "dots1",
    "dream", "gemma", "gptneox", "grovemoe", "hrm_text", "hunyuan-moe", "hy_v3", "internlm2", "jais2", "llada-moe", "maincoder",
    "minimax-01", "minimax-m2", "nemotron", "olmo", "olmoe", "openelm", "orion", "phi2", "plamo2", "qwen", "qwen2", "qwen2moe",
    "qwen3", "qwen3moe", "qwen3next", "rnd1", "seed_oss", "stablelm", "starcoder2", "talkie", "xverse",
})  # fmt: skip
FREQS = Arch(freqs="applied")
LLAMA = Arch(freqs="applied", pair="longrope", whole_head=True)
BOTH = Arch(freqs="applied", pair="longrope")
GRANITE = replace(BOTH, switch="rope.scaling.finetuned")

ARCHS: Mapping[str, Arch] = {
    **dict.fromkeys(PLAIN, Arch()),
    **dict.fromkeys(("llama", "llama-embed", "deci"), LLAMA),
    **dict.fromkeys(("granitemoe", "minicpm", "apertus", "granite_swa"), BOTH),
    **dict.fromkeys(("arcee", "exaone", "exaone4", "exaone-moe", "nanbeige"), FREQS),
    **dict.fromkeys(("falcon-h1", "llada", "pangu-embedded"), Arch(freqs="forgotten")),
    **dict.fromkeys(("phi3", "phimoe", "minicpm3"), Arch(pair="always")),
    "falcon": Arch(whole_head=True),
    "smollm3": Arch(),  # every fourth layer has no RoPE
    "granite": GRANITE,
    "granitehybrid": replace(FREQS, switch="rope.scaling.finetuned"),
    "glm4": Arch(sections=True),
    "mistral3": replace(BOTH, betas=True, unmodelled=("rope.scaling.yarn_log_multiplier",)),
    "deepseek2": Arch(mla=True),
    "gemma2": Arch(second="shared", window=4096),
    "gemma3": Arch(second="own"),
    "gpt-oss": Arch(second="shared", window=128),
    "olmo2": Arch(second="plain"),
    "llama4": replace(FREQS, second="shared", window=8192),
    "step35": replace(BOTH, second="own", window=1, unmodelled=("rope.dimension_count_swa",)),
    "cohere2": Arch(),  # and `layers` has which layers turn, here and in others of these
}
