"""Logits of a GGUF file in llama.cpp: on the CPU, or on the GPU where it was built for one. The cache is float32 unless a mode says
float16, and cuBLAS and Vulkan keep to float32, where they may round to TF32 and to float16. The context, which chooses one of two lists,
is as long as the text.

LLAMA_CPP_LIB_PATH names the folder of another library than llama-cpp-python's own. The option `backend` is one of its devices by name, and
`probe` only asks which there are."""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llama_cpp_graph import left, watched
from llama_cpp_library import ACCEL, CPU, Unfit, about, devices, ggml_of, idle, load
from protocol import UNFIT, WorkerJob

BATCH = 512
ALONE = 16  # tokens at a time, which are too few for BLAS (ggml-blas.cpp, min_batch), so that the CPU does them
ALL = -1  # layers
CACHES = {"float32": 0, "float16": 1}  # as ggml numbers its types
# llama-cpp-python has numbers of its own where llama.cpp has "as the file says" (common/common.h: common_params)
AS_THE_FILE = {f"yarn_{name}": -1.0 for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")}
# Without them products of float32 are made in TF32 by cuBLAS, and in float16 by Vulkan (ggml-vulkan.cpp: fp16, coopmat_support)
IN_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0", "GGML_VK_DISABLE_F16": "1", "GGML_VK_DISABLE_COOPMAT": "1", "GGML_VK_DISABLE_COOPMAT2": "1"}
VALUES = {"bool": lambda text: text == "true", "int": int, "float": float, "str": str}


def told(arguments: list[str]) -> dict[str, Any]:
    """The arguments of `Llama` that say what these words say on llama.cpp's command line (common/arg.cpp)."""
    import llama_cpp

    found: dict[str, Any] = {**AS_THE_FILE}
    keys: dict[str, Any] = {}
    for option, text in zip(arguments[::2], arguments[1::2], strict=True):
        if option == "--override-kv":
            key, _, value = text.partition("=")
            kind, _, value = value.partition(":")
            keys[key] = VALUES[kind](value)
        elif option == "--rope-scaling":
            found["rope_scaling_type"] = int(getattr(llama_cpp, f"LLAMA_ROPE_SCALING_TYPE_{text.upper()}"))
        elif option == "--rope-scale":
            found["rope_freq_scale"] = float(np.float32(1) / np.float32(text))
        elif option == "--yarn-orig-ctx":
            found["yarn_orig_ctx"] = int(text)
        elif option in ("--rope-freq-base", "--yarn-beta-fast", "--yarn-beta-slow"):
            found[option[2:].replace("-", "_")] = float(text)
        else:
            raise SystemExit(f"no option of RoPE: {option}")
    return {**found, "kv_overrides": keys or None}


def library_of(job: WorkerJob) -> tuple[Any, dict[str, Any]]:
    """(llama-cpp-python, what is said of a run in it): its version, or that of the user's own library and which one that is."""
    if folder := os.environ.get("LLAMA_CPP_LIB_PATH"):
        try:
            llama_cpp = load(Path(folder))
        except Unfit as e:
            job.stop(UNFIT, str(e))
        found = about(llama_cpp.llama_cpp._lib, Path(folder))
        return llama_cpp, {"version": found["version"] or version("llama-cpp-python"), "library": found}
    import llama_cpp

    return llama_cpp, {"version": version("llama-cpp-python")}


def begin_with(llama_cpp: Any, of: str, **values: Any) -> None:
    """Let llama-cpp-python begin with these values where llama.cpp has other defaults, of a "model" or a "context"."""
    name = f"llama_{of}_default_params"
    usual = getattr(llama_cpp.llama_cpp, name)

    def params() -> Any:
        found = usual()
        for member, value in values.items():
            setattr(found, member, value)
        return found

    setattr(llama_cpp.llama_cpp, name, params)


class Place(NamedTuple):
    """Where a job runs: the `backend` that it names, None for llama.cpp's own choice, and whether layers go `on_gpu`."""

    backend: dict[str, Any] | None
    on_gpu: bool

    @property
    def gpus(self) -> list[Any]:
        """The handle of the GPU that is named; empty for the CPU, and where none is."""
        return [self.backend["handle"]] if self.backend and self.on_gpu else []


def place_of(job: WorkerJob, llama_cpp: Any, there: list[dict[str, Any]]) -> Place:
    wish = job.options.get("backend")
    backend = next((d for d in there if d["name"] == wish), None)
    if wish and backend is None:
        raise SystemExit(f"llama.cpp lists no device {wish} now")
    if backend:
        return Place(backend, backend["kind"] not in (CPU, ACCEL))
    return Place(None, job.device != "cpu" and llama_cpp.llama_supports_gpu_offload())


def begin_models(llama_cpp: Any, place: Place) -> None:
    """Let models go to their place alone."""
    listed = (ctypes.c_void_p * (len(place.gpus) + 1))(*place.gpus, None)
    # on the CPU none: it would begin on each GPU all the same, and take its buffers
    chosen = {"devices": ctypes.cast(listed, ctypes.c_void_p)} if place.backend or not place.on_gpu else {}
    # ggml's repacked weights and AMX kernels crash on some virtual machines, and what they round is not RoPE
    begin_with(llama_cpp, "model", use_extra_bufts=False, **chosen)


def at_once(job: WorkerJob, place: Place, there: list[dict[str, Any]]) -> int:
    """How many tokens are computed at a time."""
    alone = place.backend is not None and place.backend["kind"] == CPU and any(d["kind"] == ACCEL for d in there)
    flash = job.options.get("flash_attention", False)
    return ALONE if alone and not flash else BATCH  # flash attention of so few sums up in float16 (ggml-cpu/ops.cpp, use_tiled)


def loaded(llama_cpp: Any, job: WorkerJob, place: Place, tokens: int) -> tuple[Any, str]:
    """(the model in a context for the job, `tokens` at a time; the device that it is on): the CPU where a GPU that nobody named fails."""
    threads, n = os.cpu_count(), len(job.ids)
    kind, flash = CACHES[job.options.get("cache", "float32")], job.options.get("flash_attention", False)

    def load_with(layers: int) -> Any:
        return llama_cpp.Llama(
            job.model, n_ctx=n, n_batch=BATCH, n_ubatch=tokens, type_k=kind, type_v=kind, flash_attn=flash, n_threads=threads,
            n_threads_batch=threads, n_gpu_layers=layers, offload_kqv=bool(layers), op_offload=bool(layers),
            verbose=False, logits_all=False, **told(job.options.get("arguments", [])),
        )  # fmt: skip

    if place.backend or not place.on_gpu:
        return load_with(ALL if place.on_gpu else 0), place.backend["name"] if place.backend else "cpu"
    try:
        return load_with(ALL), job.device
    except Exception:  # the GPU's memory may be too small
        return load_with(0), "cpu"


def main(job: WorkerJob) -> None:
    os.environ.update(IN_FLOAT32)
    llama_cpp, said = library_of(job)
    ggml = ggml_of(llama_cpp.llama_cpp._lib, Path(llama_cpp.llama_cpp._base_path))
    there = devices(ggml)
    if job.options.get("probe"):
        return job.finish(**said | {"devices": [{k: v for k, v in d.items() if k != "handle"} for d in there], "idle": idle(ggml)})
    place = place_of(job, llama_cpp, there)
    begin_models(llama_cpp, place)
    if job.options.get("tokenize"):
        llm = llama_cpp.Llama(job.model, vocab_only=True, verbose=False)
        np.save(job.folder / "tokens.npy", np.array(llm.tokenize(job.ids.tobytes(), add_bos=False, special=True), np.int64))
        return job.finish(device="cpu", **said)
    states: dict[str, Any] = {}
    elsewhere = set[str]()
    if names := job.options.get("states"):
        begin_with(llama_cpp, "context", cb_eval=watched(llama_cpp, names, len(job.ids), states))
    elif place.gpus:
        begin_with(llama_cpp, "context", cb_eval=left(llama_cpp, ggml, place.gpus[0], elsewhere))
    tokens = at_once(job, place, there)
    llm, said["device"] = loaded(llama_cpp, job, place, tokens)
    more: WorkerJob | None = job
    while more is not None:
        in_context_of(llama_cpp, llm, len(more.ids), tokens)
        one_pass(llama_cpp, more, llm._ctx.ctx, llm.n_vocab())
        if states:
            np.savez(job.folder / "states.npz", **states)
        more.finish(**said, **({"elsewhere": sorted(elsewhere)} if place.gpus else {}))
        more = more.next()
    return None


def in_context_of(llama_cpp: Any, llm: Any, n: int, tokens: int) -> None:
    """Give a model an empty context of `n` tokens, that go `tokens` at a time."""
    if llm.context_params.n_ctx != n:  # another length, another context of the same model
        llm.context_params.n_ctx = n
        llm.context_params.n_batch, llm.context_params.n_ubatch = BATCH, tokens  # which `Llama` made no longer than its first context
        llm._ctx.close()
        llm._ctx = llama_cpp.llama.internals.LlamaContext(model=llm._model, params=llm.context_params, verbose=False)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm._ctx.ctx), True)


def one_pass(llama_cpp: Any, job: WorkerJob, context: Any, vocab: int) -> None:
    """All tokens of a job through an empty context."""
    n, batch = len(job.ids), llama_cpp.llama_batch_init(BATCH, 0, 1)
    job.start()
    for at in range(0, n, BATCH):
        part = job.ids[at : at + BATCH]
        wanted = job.wanted(at, len(part))
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), at + i, 1, 0
            batch.logits[i] = wanted
        if code := llama_cpp.llama_decode(context, batch):
            raise SystemExit(f"llama_decode returned {code} at position {at}")
        if wanted:
            job.put(at, np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(part), vocab)))
        job.progress(at + len(part))
    llama_cpp.llama_batch_free(batch)


if __name__ == "__main__":
    main(WorkerJob.read())
