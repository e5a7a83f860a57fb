"""Which layers turn, and which of them see a window of tokens alone: what config.json says to transformers, and keys to llama.cpp.

A function for each model type and architecture in which some layers have no RoPE: (config or keys, number of layers) -> layers. Their
rows name it; in every other all layers turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import FormatError

Values = Mapping[str, Any]
MOST = 4096  # layers that are looked at: eight times what llama.cpp takes (llama-hparams.h, LLAMA_MAX_LAYERS)
SLIDES, CHUNKED, FULL, LINEAR = "sliding_attention", "chunked_attention", "full_attention", "linear_attention"


class Layer(NamedTuple):
    """One layer: whether it has RoPE, and how many tokens it sees; None: all before it."""

    turns: bool
    window: int | None = None


def farthest(layers: Iterable[Layer]) -> int | None:
    """How many tokens apart two may be that some layer turns: None where nothing bounds it, 0 where no layer turns."""
    windows = [layer.window for layer in layers if layer.turns]
    return None if None in windows else max((whole_number(w, "the window of tokens") for w in windows), default=0)


def whole_number(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise FormatError(f"{name} is {value!r}, not a number", "fix the model's config.json or GGUF key")
    return value


# -- config.json ------------------------------------------------------------------------------------------------------


def _types(c: Values, n: int, usual: Callable[[int], str]) -> list[str]:
    """The layers' types: layer_types, else what the config class makes of other keys."""
    given = c.get("layer_types") or []
    return [given[i] if i < len(given) else usual(i) for i in range(min(n, MOST))]


def _every(given: Any) -> Callable[[int], str]:
    """Full attention in every so-manieth layer."""
    every = given if isinstance(given, int) and given > 0 else 4  # EXAONE's "LLLG" stands beside layer_types
    return lambda i: SLIDES if (i + 1) % every else FULL


def _no_rope(c: Values, n: int) -> list[bool]:
    """Whether each layer turns: no_rope_layers, whose 0 is a layer without RoPE, else all but every so-manieth."""
    given, every = c.get("no_rope_layers") or [], c.get("no_rope_layer_interval") or 4
    return [bool(given[i]) if i < len(given) else (i + 1) % every != 0 for i in range(min(n, MOST))]


def hf_cohere2(c: Values, n: int) -> list[Layer]:
    """models/cohere2/modeling_cohere2.py Cohere2Attention: `if self.sliding_window is not None`."""
    window = c.get("sliding_window", 4096)
    return [Layer(kind == SLIDES and window is not None, window) for kind in _types(c, n, _every(c.get("sliding_window_pattern")))]


def hf_afmoe(c: Values, n: int) -> list[Layer]:
    """models/afmoe/modeling_afmoe.py AfmoeAttention: `if self.is_local_attention`."""
    kinds = _types(c, n, _every(c.get("global_attn_every_n_layers")))
    return [Layer(kind == SLIDES, c.get("sliding_window", 1024)) for kind in kinds]


def hf_flint(c: Values, n: int) -> list[Layer]:
    """models/flint/configuration_flint.py, modeling_flint.py: "only sliding-window layers are rotary"."""
    kinds, window = _types(c, n, lambda i: FULL if i < 2 or i % 4 == 1 or i == n - 1 else SLIDES), c.get("sliding_window", 513)
    return [Layer(kind == SLIDES and window is not None, window) for kind in kinds]


def hf_exaone4(c: Values, n: int) -> list[Layer]:
    """models/exaone4/modeling_exaone4.py Exaone4Attention: `if self.sliding_window is None or self.is_sliding`."""
    window = c.get("sliding_window", 4096)
    kinds = _types(c, n, _every(c.get("sliding_window_pattern")))
    return [Layer(window is None or kind == SLIDES, window) for kind in kinds]


def hf_kolibri1(c: Values, n: int) -> list[Layer]:
    """models/kolibri1/modeling_kolibri1.py: as EXAONE 4, of five layers the last sees all."""
    return hf_exaone4({"sliding_window": 513, "sliding_window_pattern": 5, **c}, n)


def hf_llama4(c: Values, n: int) -> list[Layer]:
    """models/llama4/configuration_llama4.py Llama4TextConfig: by default the layers that turn see a chunk, the others all."""
    turns, chunk = _no_rope(c, n), c.get("attention_chunk_size", 8192)
    types = _types(c, n, lambda i: CHUNKED if turns[i] else FULL)
    return [Layer(t, chunk if kind == CHUNKED else None) for t, kind in zip(turns, types, strict=True)]


def hf_smollm3(c: Values, n: int) -> list[Layer]:
    """models/smollm3/configuration_smollm3.py: by default only layers without RoPE slide, where use_sliding_window is true."""
    turns, window = _no_rope(c, n), c.get("sliding_window") if c.get("use_sliding_window") else None
    types = _types(c, n, lambda i: FULL if turns[i] or window is None else SLIDES)
    return [Layer(t, window if kind == SLIDES else None) for t, kind in zip(turns, types, strict=True)]


def hf_granite_hybrid(c: Values, n: int) -> list[Layer]:
    """models/granitemoehybrid/modeling_granitemoehybrid.py: no rotary module unless position_embedding_type is "rope"; Mamba has none."""
    turns = c.get("position_embedding_type") == "rope"
    return [Layer(turns and kind in (FULL, "attention")) for kind in (c.get("layer_types") or [])[: min(n, MOST)]]


def alternating(n: int, every: int) -> list[str]:
    """The types of `n` layers, at most `MOST`, of which every so-manieth sees all, and the others a window."""
    return [SLIDES if (i + 1) % every else FULL for i in range(min(n, MOST))]


# -- GGUF: load_arch_hparams and graph of src/models/*.cpp of llama.cpp 0c1e570 ------------------------------------------


def slides(given: Any, n: int, dense_first: bool = False) -> list[bool]:
    """load_swa_pattern: attention.sliding_window_pattern says it by layer, or of how many the last sees all, or the first."""
    if isinstance(given, list):
        return [bool(given[i]) if i < len(given) else False for i in range(min(n, MOST))]
    every = whole_number(given, "attention.sliding_window_pattern")
    full = 0 if dense_first else every - 1
    return [every == 0 or i % every != full for i in range(min(n, MOST))]


def _slides(m: Values, n: int, dense_first: bool = False) -> list[bool]:
    return slides(m.get("attention.sliding_window_pattern", 4), n, dense_first)


def _window(m: Values, usual: int = 0) -> int:
    return whole_number(m.get("attention.sliding_window", usual), "attention.sliding_window")


def gguf_within(m: Values, n: int, usual: int = 0) -> list[Layer]:
    """cohere2.cpp, exaone-moe.cpp: `if (is_swa)`."""
    return [Layer(slides, _window(m, usual)) for slides in _slides(m, n)]


def gguf_exaone4(m: Values, n: int) -> list[Layer]:
    """exaone4.cpp: `is_swa(il) || swa_type == NONE`, and the type is another only in a model of 64 layers."""
    return gguf_within(m, n, 4096) if n == 64 else [Layer(True)]


def gguf_llama4(m: Values, n: int) -> list[Layer]:
    """llama4.cpp: chunks of 8,192 whatever is written, but for a 0, with which all layers see all."""
    if m.get("attention.sliding_window") == 0:
        return [Layer((i + 1) % n != 0) for i in range(min(n, MOST))]
    return [Layer((i + 1) % 4 != 0, 8192 if chunked else None) for i, chunked in enumerate(_slides(m, n))]


def gguf_granite_swa(m: Values, n: int) -> list[Layer]:
    """granite-swa.cpp: has_rope(il), which attention.rope_pattern says; without it every layer turns."""
    turns, window = m.get("attention.rope_pattern"), whole_number(m.get("attention.sliding_window"), "attention.sliding_window")
    there = turns if isinstance(turns, list) else []
    return [Layer(bool(there[i]) if i < len(there) else True, window if slides else None) for i, slides in enumerate(_slides(m, n))]


def gguf_afmoe(m: Values, n: int) -> list[Layer]:
    """afmoe.cpp: n_no_rope_layer_step is 4, whichever layers slide."""
    window = _window(m)
    return [Layer((i + 1) % 4 != 0, window if window and slides else None) for i, slides in enumerate(_slides(m, n))]


def gguf_smallthinker(m: Values, n: int) -> list[Layer]:
    """smallthinker.cpp: windows of 4,096 tokens whatever is written, and layers without RoPE only beside them."""
    if not _window(m):
        return [Layer(True)]
    return [Layer(i % 4 != 0, 4096 if slides else None) for i, slides in enumerate(_slides(m, n, dense_first=True))]


def gguf_cohere2moe(m: Values, n: int) -> list[Layer]:
    """cohere2moe.cpp: `is_swa || force_rope`: the first layers, which are dense, turn too."""
    dense, window = whole_number(m.get("leading_dense_block_count", 0), "leading_dense_block_count"), _window(m)
    return [Layer(slides or i < dense, window if slides else None) for i, slides in enumerate(_slides(m, n, dense_first=True))]


def gguf_baichuan(m: Values, n: int) -> list[Layer]:
    """baichuan.cpp: LLM_TYPE_7B is a model of 32 layers; one of 40 has ALiBi, any other no positions at all."""
    return [Layer(n == 32)]


def gguf_granite_hybrid(m: Values, n: int) -> list[Layer]:
    """granite-hybrid.cpp: has_rope(il), which is rope.scaling.finetuned in every layer; one without K/V heads is Mamba's."""
    turns = bool(m.get("rope.scaling.finetuned", True))
    return [Layer(turns and layer.turns) for layer in gguf_lfm2(m, n)]


def gguf_lfm2(m: Values, n: int) -> list[Layer]:
    """lfm2.cpp: is_recr, a convolution, where head_count_kv is 0; with a window all other layers see that alone."""
    heads = m.get("attention.head_count_kv")
    there = heads if isinstance(heads, list) else [heads] * min(n, MOST)
    return [Layer(heads != 0, _window(m) or None) for heads in there[: min(n, MOST)]]
