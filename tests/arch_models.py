"""A tiny model of any architecture of llama.cpp, made by llama.cpp itself from GGUF keys alone, and what its graph does with them.

llama_model_init_from_user asks for the data of each tensor that an architecture's loader creates; the callback of the scheduler sees
each node of the graph, with the parameters that ggml_rope_ext or ggml_rope_multi was handed. The keys are those of llama.cpp's own
tests/test-llama-archs.cpp, get_gguf_ctx. llama.cpp aborts on what it does not like: each model has a process of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

CONTEXT, VOCAB = 256, 128
EXPERTS = {  # those that are mixtures of experts, or whose loader insists on the keys of one
    "arctic", "afmoe", "bailingmoe", "bailingmoe2", "bailingmoe3", "cohere2moe", "dbrx", "deepseek", "deepseek2", "dots1", "ernie4_5-moe",
    "exaone-moe", "glm4moe", "gpt-oss", "granitemoe", "grok", "grovemoe", "hunyuan-moe", "hy_v3", "laguna", "lfm2moe", "llada-moe",
    "llama4", "mellum", "mimo2", "minimax-01", "minimax-m2", "mistral4", "olmoe", "paddleocr", "phimoe", "qwen2moe", "qwen35moe",
    "qwen3moe", "qwen3next", "qwen3vlmoe", "rnd1", "smallthinker", "step35", "ernie4_5",
}  # fmt: skip
LATENT = ("deepseek2", "bailingmoe3", "mistral4")
HYBRID = ("granitehybrid", "lfm2", "lfm2moe", "bailingmoe3", "plamo2")
SECTIONS = (
    "bailingmoe3", "glm4", "glm4moe", "hunyuan-dense", "hunyuan_vl", "paddleocr", "qwen2vl", "qwen35", "qwen35moe", "qwen3vl", "qwen3vlmoe",
)  # fmt: skip
PATTERNED = ("cohere2moe", "mimo2", "step35", "spark2_5", "granite_swa", "gemma4")
"""Architectures whose attention.sliding_window_pattern has to be an array."""


def keys_of(arch: str, **changes: Any) -> dict[str, Any]:
    """The keys of a tiny model, below `{arch}.`; `changes`: dots are written `__`, None leaves a key out."""
    size, heads, ff, layers = 128, 2, 96, 2
    layers = {"llama4": 4, "gemma3n": 22, "hrm_text": 6, "gemma4": 5, "afmoe": 4, "cohere2": 4, "baichuan": 32, "exaone4": 4}.get(
        arch, layers
    )
    if arch in LATENT:
        size, heads = 64, 1
    head = size // heads
    keys: dict[str, Any] = {
        "vocab_size": VOCAB, "context_length": CONTEXT, "embedding_length": size, "block_count": layers, "leading_dense_block_count": 1,
        "feed_forward_length": ff, "use_parallel_residual": False, "logit_scale": 1.0, "full_attention_interval": 2,
        "attention.head_count": heads, "attention.head_count_kv": heads, "attention.layer_norm_epsilon": 1e-5, "embedding_scale": 1.0,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.q_lora_rank": 32, "attention.kv_lora_rank": 64, "residual_scale": 1.0,
        "attention.sliding_window": 32, "attention.sliding_window_pattern": 2, "attention.clamp_kqv": 1.0,
        "ssm.inner_size": 256 if arch.startswith(("qwen3next", "qwen35")) else 2 * size, "ssm.conv_kernel": 4, "ssm.state_size": 128,
        "ssm.time_step_rank": heads, "ssm.group_count": 0 if arch == "plamo2" else 2, "kda.head_dim": 128, "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0, "shortconv.l_cache": 3, "hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2,
        "attention.temperature_length": 16,
        "embedding_length_per_layer_input": size // 2,
    }  # fmt: skip
    if arch in SECTIONS:
        keys["rope.dimension_sections"] = [head // 4, head // 8, head // 8, 0]
    if arch in LATENT:
        keys |= {"attention.key_length": 96, "attention.value_length": 64, "rope.dimension_count": 32, "attention.key_length_mla": 64}
        keys |= {"attention.value_length_mla": 32} | ({"rope.dimension_sections": [8, 4, 4, 0]} if arch in SECTIONS else {})
    if arch in HYBRID:
        by_layer = [heads if i != 1 else 0 for i in range(layers)]
        keys |= {"attention.head_count_kv": by_layer} | ({} if arch == "bailingmoe3" else {"attention.head_count": by_layer})
    if arch in PATTERNED:
        keys["attention.sliding_window_pattern"] = [i % 2 == 1 for i in range(layers)]
    if arch == "gemma4":
        keys |= {"attention.key_length_swa": head, "attention.value_length_swa": head, "attention.shared_kv_layers": 0}
    if arch == "graniteswitch":
        keys |= {"adapters.count": 1, "adapters.lora_rank": 4, "adapters.token_ids_activate": [100], "adapters.token_ids_substitute": [101]}
    if arch == "chameleon":
        keys["vocab_size"] = 10240
    if arch in EXPERTS:
        keys |= {
            "expert_feed_forward_length": ff, "expert_shared_feed_forward_length": ff // 2, "interleave_moe_layer_step": 2,
            "expert_count": 2, "expert_used_count": 2, "expert_shared_count": 1, "expert_gating_func": 2, "expert_group_scale": 1.0,
            "experts_per_group": 1, "expert_weights_scale": 1.0,
        }  # fmt: skip
    if arch == "plm":
        keys |= {"rope.dimension_count": head // 2}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in keys.items() if value is not None}


XIELU = {"xielu.alpha_n": 1.0, "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1e-7}


class Turn(NamedTuple):
    """One ggml_rope_ext or ggml_rope_multi of a graph."""

    name: str
    dims: int
    mode: int
    original: int
    theta: float
    scale: float
    ext: float
    attn: float
    fast: float
    slow: float
    sections: tuple[int, ...]
    factors: bool


class Made(NamedTuple):
    """What llama.cpp made of keys: its tensors' shapes, as NumPy has them, its turns, and the logits float32[tokens, vocabulary]."""

    shapes: dict[str, list[int]]
    turns: list[Turn]
    logits: np.ndarray
    scales: list[float]  # what ggml_soft_max_ext multiplies the logits of attention by
    error: str


class Tensor(ctypes.Structure):
    """ggml.h, struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4), ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32), ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip


def data_of(name: str, shape: Sequence[int], factors: Sequence[float]) -> np.ndarray:
    """The same numbers for the same name, float32."""
    if name.startswith("rope_f"):
        return np.resize(np.asarray(factors, np.float32), shape)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    w = rng.standard_normal(shape).astype(np.float32) * np.float32(0.1)
    if "ssm_a" in name:
        return -np.abs(w)
    if len(shape) == 1 and "norm" in name:
        return 1 + w
    return w * (4 if "attn_q" in name or "attn_k" in name else 1)


class Job(NamedTuple):
    """`keys` for llama.cpp, or the `file` that has them, and tensors; `params` of its context; `factors` for rope_freqs and
    rope_factors; `tokens` of text."""

    arch: str
    keys: Mapping[str, Any]
    params: Mapping[str, Any] = {}
    factors: Sequence[float] = (1.0,)
    tokens: int = 48
    file: str = ""


def write_keys(path: Path, job: Job, data: Mapping[str, np.ndarray] | None = None) -> Path:
    """A GGUF with the keys of a job, and with tensors."""
    writer = gguf.GGUFWriter(path, job.arch)
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
    }
    for key, value in {f"{job.arch}.{k}": v for k, v in job.keys.items()}.items():
        if isinstance(value, list):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, kinds[type(value[0])])
        else:
            writer.add_key_value(key, value, kinds[type(value)])
    for key, value in XIELU.items() if job.arch == "apertus" else ():
        writer.add_key_value(key, value, gguf.GGUFValueType.FLOAT32)
    writer.add_tokenizer_model("none")
    for name, array in (data or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def file_of(path: Path, job: Job, shapes: Mapping[str, Sequence[int]]) -> Path:
    """A GGUF with the keys of a job and tensors of these shapes."""
    return write_keys(path, job, {name: data_of(name, shape, job.factors) for name, shape in shapes.items()})


def decode(context: Any, tokens: int) -> int:
    """What llama_decode returns for a text of so many tokens, of all of which the logits are asked."""
    import llama_cpp

    batch = llama_cpp.llama_batch_init(64, 0, 1)
    batch.n_tokens = tokens
    for i in range(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 7 * i % VOCAB, i, 1, 0, True
    return int(llama_cpp.llama_decode(context, batch))


def make(job: Job, folder: Path) -> dict[str, Any]:
    """Loads and runs a job here; llama.cpp may end the process."""
    import llama_cpp

    base = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.ggml_op_name.restype = ctypes.c_char_p
    base.ggml_backend_tensor_set.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)

    class InitParams(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    shapes: dict[str, list[int]] = {}
    turns: dict[Turn, None] = {}
    scales: dict[float, None] = {}

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    def fill(address: int, _: Any) -> None:
        t = Tensor.from_address(address)
        name, shape = t.name.decode(), [int(n) for n in t.ne][::-1]
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        shapes[name] = shape
        array = np.ascontiguousarray(data_of(name, shape, job.factors).astype(np.float16 if t.type == 1 else np.float32))
        base.ggml_backend_tensor_set(address, array.ctypes.data, 0, array.nbytes)

    @llama_cpp.llama_cpp.ggml_backend_sched_eval_callback
    def watch(address: int, ask: bool, _: Any) -> bool:
        t = Tensor.from_address(ctypes.cast(address, ctypes.c_void_p).value or 0)
        if base.ggml_op_name(t.op) == b"ROPE" and ask:
            ints = list(t.op_params)
            floats = np.array(ints[5:11], np.int32).view(np.float32).astype(float).tolist()
            turn = Turn(t.name.decode(), ints[1], ints[2], ints[4], *floats, tuple(ints[11:15]), bool(t.src[2]))
            turns[turn] = None
        if base.ggml_op_name(t.op) == b"SOFT_MAX" and b"kq" in t.name:
            scales[float(np.int32(t.op_params[0]).view(np.float32))] = None
        return False

    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = False
    if job.file:
        model = llama_cpp.llama_model_load_from_file(job.file.encode(), model_params)
    else:
        meta = base.gguf_init_from_file(str(write_keys(folder / "keys.gguf", job)).encode(), InitParams(True, None))
        init = llama_cpp.llama_cpp.llama_model_init_from_user
        model = init(meta, ctypes.cast(fill, init.argtypes[1]), None, model_params)
    if not model:
        return {"error": "not loaded"}
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = CONTEXT, 64, 64, 1, 1
    params.cb_eval, params.type_k, params.type_v, params.flash_attn_type = watch, 0, 0, 0
    for name, value in job.params.items():
        setattr(params, name, value)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return {"error": "no context"}
    if code := decode(context, job.tokens):
        return {"error": f"llama_decode returned {code}", "shapes": shapes, "turns": list(turns)}
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    np.save(folder / "logits.npy", np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (job.tokens, vocab)))
    return {"shapes": shapes, "turns": list(turns), "scales": list(scales)}


def _child(job: Job, folder: Path) -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    faulthandler.disable()
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w")
    (folder / "made.json").write_text(json.dumps(make(job, folder)))
    os._exit(0)


def made(job: Job) -> Made:
    """What llama.cpp makes of a job, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = multiprocessing.get_context("fork").Process(target=_child, args=(job, folder))
        child.start()
        child.join(120)
        if child.is_alive():
            child.kill()
        log = (
            [line for line in (folder / "log").read_text(errors="replace").splitlines() if line.strip()]
            if (folder / "log").exists()
            else []
        )
        why = next((line for line in log if "error" in line or "ASSERT" in line or "Error" in line), log[-1] if log else "")
        if not (folder / "made.json").exists():
            return Made({}, [], np.empty(0), [], f"ended with {child.exitcode}: {why}")
        found = json.loads((folder / "made.json").read_text())
        turns = [Turn(*t[:10], tuple(t[10]), t[11]) for t in found.get("turns", [])]
        logits = np.load(folder / "logits.npy") if (folder / "logits.npy").exists() else np.empty(0)
        return Made(found.get("shapes", {}), turns, logits, found.get("scales", []), f"{found['error']}: {why}" if "error" in found else "")
