"""Which tensors of llama.cpp's graphs mean what modules of the reference give, by name, and the reference's numbers in their order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..compute.states import ATTENDED, TURNED, States

Q, K, Q_TURNED, K_TURNED = "attn_q", "attn_k", f"q {TURNED}", f"k {TURNED}"
HEADS = {Q_TURNED: "Qcur", K_TURNED: "Kcur", "v": "Vcur"}
KV = "self_attn.kv_a_proj_with_mqa"  # the latent vector, and the part of the key that turns, before either is changed
QUERIES = ("self_attn.q_b_proj", "self_attn.q_proj")  # before RoPE; one of them, by whether the queries are latent too
# Latent attention, by architecture (src/models/deepseek2.cpp, minicpm3.cpp). Of several tensors of one name the last is seen: "q" is that
# of all heads before RoPE, "k_pe" and "q_pe" are after it, "kv_cmpr" and "kv_compressed" after their norm. deepseek2 absorbs attn_k_b
# into the queries and attn_v_b into what was attended to, so no tensor is there of whole keys and values.
LATENT: Mapping[str, Mapping[str, str]] = {
    "deepseek2": {
        **dict.fromkeys(QUERIES, "q"), KV: "kv_cmpr_pe", "self_attn.kv_a_layernorm": "kv_cmpr", Q_TURNED: "q_pe", K_TURNED: "k_pe",
        ATTENDED: "kqv_out",
    },
    "minicpm3": {
        **dict.fromkeys(QUERIES, "q"), KV: "kv_pe_compresseed", "self_attn.kv_a_layernorm": "kv_compressed", "self_attn.kv_b_proj": "kv",
        Q_TURNED: "q_states", K_TURNED: "k_states", "v": "v_states", ATTENDED: "kqv_out",
    },
}  # fmt: skip
APART = {"q_pe", "k_pe"}  # the turning part of each head alone


def named_there(small: Checkpoint, own: States) -> dict[str, str]:
    """The modules that llama.cpp has tensors of (llm_graph_context::cb), by the reference's names, in its order."""
    usual = not any("pre_feedforward" in name for name in own) and any("post_attention_layernorm" in name for name in own)
    alike = {"input_layernorm": "attn_norm", "": "l_out"}
    alike |= {"post_attention_layernorm": "ffn_norm"} if usual else {}
    alike |= _of_attention(small)
    found = {}
    for name in own:
        stem, layer, part = _parts(name)
        if stem == "layers" and layer.isdecimal() and part in alike:
            found[name] = f"{alike[part]}-{layer}"
    return found | {name: there for name, there in (("norm", "result_norm"), ("lm_head", "result_output")) if name in own}


def _of_attention(small: Checkpoint) -> Mapping[str, str]:
    """What goes into attention, by the parts of a layer's modules."""
    if small.family.hf.latent or small.family.latent:
        return LATENT.get(small.family.gguf_arch, {})
    return HEADS if small.family.transforms.get("blk.{i}.attn_qkv.weight") is None else {}


def _parts(name: str) -> tuple[str, str, str]:
    """Of layers.3.self_attn.q_proj: layers, 3, self_attn.q_proj."""
    stem, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    return stem, layer, part


def as_there(small: Checkpoint, states: States) -> States:
    """What the modules give, float32[tokens, numbers], with queries and keys as llama.cpp's tensors have them: in the order of rows that a
    GGUF has, or of latent attention the part that turns alone, pairs side by side."""
    latent = small.family.gguf_arch if _of_attention(small).get(Q_TURNED) in APART else ""
    found = States()
    for name, state in states.items():
        _, layer, part = _parts(name)
        if part not in (Q_TURNED, K_TURNED):
            found[name] = state
        elif latent:
            found[name] = _turning(small, states, f"layers.{layer}.", part, state)
        else:
            found[name] = _interleaved(small, Q if part == Q_TURNED else K, state)
    return found


def _interleaved(small: Checkpoint, part: str, state: NDArray[np.float32]) -> NDArray[np.float32]:
    if small.family.transforms.get(f"blk.{{i}}.{part}.weight") != "interleave":
        return state
    return _side_by_side(state.reshape(len(state), -1, small.head_dim)).reshape(len(state), -1)


def _side_by_side(heads: NDArray[np.float32]) -> NDArray[np.float32]:
    """[tokens, heads, D] whose pairs are i and i + D/2, with them as neighbours."""
    return heads.reshape(*heads.shape[:2], 2, -1).swapaxes(2, 3).reshape(heads.shape)


def _turning(small: Checkpoint, states: States, layer: str, part: str, state: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part of each head that turns, of the keys that of one, which all have; pairs side by side, as they are before RoPE. Some of
    transformers' models leave them apart (deepseek_v3), some do not (deepseek_v2): position 0, where nothing turns, tells which."""
    n, turning, head = len(state), small.head_dim, int(small.hparams["qk_head_dim"])
    after = state.reshape(n, -1, head)[..., head - turning :]
    if part == K_TURNED:
        after, before = after[:, :1], states[f"{layer}{KV}"][0, -turning:]
    else:
        queries = next(states[f"{layer}{name}"] for name in QUERIES if f"{layer}{name}" in states)
        before = queries[0].reshape(-1, head)[:, head - turning :]
    together = _side_by_side(after)
    likeness = [float((x[0].astype(np.float64).ravel() * before.ravel()).sum()) for x in (after, together)]
    return (together if likeness[1] > likeness[0] else after).reshape(n, -1)
