"""What each GGUF architecture's code in llama.cpp makes of the keys and tensors: one row an architecture.

Source: src/models/*.cpp of llama.cpp 0c1e570, each architecture's load_arch_hparams, load_arch_tensors and graph. A file has the name
of its architecture with `-` for `_`, but for those that stand beside their row, gpt-oss (openai-moe.cpp) and granitemoe
(granite-moe.cpp). The rows of architectures that families are converted to stand with these; here are those that several share, and
the others. One without a row is refused by name: `families.REFUSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from .layers import (
    Layer,
    Values,
    farthest,
    gguf_baichuan,
    gguf_cohere2moe,
    gguf_granite_swa,
    gguf_smallthinker,
    whole_number,
)


@dataclass(frozen=True)
class Arch:
    """One architecture. The default is code that hands the context's parameters to ggml_rope_ext, and loads no factors."""

    name: str
    # rope_freqs.weight. "forgotten": loaded, not used, as is the pair; "required": applied, and says which pairs stand still
    freqs: Literal["applied", "forgotten", "refused", "required"] = "refused"
    pair: Literal["never", "longrope", "always"] = "never"  # when rope_factors_*.weight are loaded: "longrope": with that type
    whole_head: bool = False  # src/llama-model.cpp: load_hparams, "invalid n_rot"
    betas: tuple[float, float] | None = None  # reads yarn_beta_fast and yarn_beta_slow, and takes these where they are not there
    # The RoPE of sliding-window layers, if they have one of their own: "shared" has the same factor, and θ from rope.freq_base_swa, else
    # the same; "own" has θ from there, else 10,000, and no factor, but is multiplied by attn_factor; "apart" has θ from there, else the
    # same, and no more; "plain" is the model's θ and no more.
    other_layers: Literal["", "shared", "own", "apart", "plain"] = ""
    window: int = 0  # assumed for an absent attention.sliding_window; 0: there are no such layers then
    dims: bool = False  # these layers turn rope.dimension_count_swa dimensions, where that is there
    halved: bool = False  # only they turn rope.dimension_count dimensions, the others half; rope_freqs.weight is as long as for them
    turning: Callable[[Values, int], list[Layer]] | None = None  # where some layers have no RoPE: which have
    mla: bool = (
        False  # multi-head latent attention: yarn_log_multiplier, and kq_scale grows with the factor (src/models/deepseek2.cpp: graph)
    )
    ratio: bool = False  # yarn_log_multiplier divides cos and sin too: YaRN's temperature over the one that has it as mscale_all_dim
    floor: bool = False  # attention.temperature_scale counts from rope.scaling.original_context_length
    alpha: bool = False  # rope.scaling.alpha: θ is multiplied by alpha^(D/(D − 2)), D the head's size
    switch: str = ""  # a key that, when false, turns RoPE off
    # M-RoPE, by rope.dimension_sections: how these deal pairs out to the positions in time, height, width and a fourth. Text has one
    # position for the first three, and 0 for the fourth.
    sections: Literal["", "blocks", "interleaved"] = ""
    unmodelled: tuple[str, ...] = ()  # keys that change what is said here, unless they say what is computed without them
    head: Literal["optional", "required", "never"] = "optional"  # whether it loads a head besides the embedding
    square: bool = False  # it takes hidden_size / heads for the size of a head, whatever the file says
    ungrouped: bool = False  # it has as many keys as queries, whatever the file says

    def farthest(self, keys: Values) -> int | None:
        """How many tokens apart two may be that a layer turns (`layers.farthest`); None also where all layers turn."""
        if self.turning is None:
            return None
        meta = {k.removeprefix(f"{self.name}."): v for k, v in keys.items()}
        blocks, more = (whole_number(meta.get(key, usual), key) for key, usual in (("block_count", None), ("nextn_predict_layers", 0)))
        return farthest(self.turning(meta, max(blocks - more, 0)))


def below(arch: str, keys: Values) -> dict[str, Any]:
    """Those of a GGUF's keys that are this architecture's, without its name."""
    return {k.removeprefix(f"{arch}."): v for k, v in keys.items() if k.startswith(f"{arch}.")}


LLAMA = Arch("llama", freqs="applied", pair="longrope", whole_head=True)
# One RoPE, from the context's parameters alone: nothing of its own is read, nothing loaded.
PLAIN = (
    "arctic", "bailingmoe", "bailingmoe2", "bitnet", "chameleon", "codeshell", "dbrx", "deepseek", "dream", "grovemoe", "hrm_text",
    "llada-moe", "maincoder", "minimax-01", "openelm", "orion", "plamo", "plamo2", "plm", "qwen", "rnd1", "talkie",
    "xverse",
)  # fmt: skip
FREQS = ("exaone", "nanbeige")
FORGOTTEN = ("llada",)
FINETUNED = "rope.scaling.finetuned"
GROKS = ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor")
OTHER_ARCHS = (
    *map(Arch, PLAIN),
    *(replace(LLAMA, name=name) for name in ("llama-embed", "deci")),
    *(Arch(name, freqs="applied") for name in FREQS),
    *(Arch(name, freqs="forgotten") for name in FORGOTTEN),
    Arch("pangu-embedded", freqs="forgotten", pair="longrope"),  # pangu-embed.cpp
    Arch("phimoe", pair="always"),
    Arch("granite_swa", freqs="applied", pair="longrope", turning=gguf_granite_swa),
    Arch("graniteswitch", switch=FINETUNED),  # granite-switch.cpp: asks for rope_factors that load_arch_tensors never loads
    Arch("mistral4", mla=True, ratio=True),  # deepseek2.cpp; src/llama-context.cpp makes an exception of the ratio for DEEPSEEK2 alone
    Arch("grok", betas=(8.0, 1.0), unmodelled=GROKS),
    Arch("step35", freqs="applied", pair="longrope", other_layers="own", window=1, halved=True),  # load_arch_hparams: n_rot_full / 2
    Arch("mimo2", other_layers="own", window=1),
    Arch("plamo3", other_layers="own"),
    Arch("mellum", other_layers="plain"),
    Arch("laguna", other_layers="apart", dims=True),
    Arch("spark2_5", other_layers="shared", window=1, dims=True),  # spark2-5.cpp
    Arch("smallthinker", other_layers="shared", turning=gguf_smallthinker),
    Arch("cohere2moe", turning=gguf_cohere2moe),
    Arch("baichuan", turning=gguf_baichuan),
    Arch("bailingmoe3", sections="blocks"),  # latent attention, whose kq_scale knows no factor
    Arch("paddleocr", sections="blocks"),  # paddleocr.cpp
    Arch("hunyuan_vl", sections="blocks", alpha=True),  # hunyuan-vl.cpp, as hunyuan-dense
)
