"""Whether another tool packed a folder's weights, which, and whether config.json says so of weights that are plain numbers again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..families import Family
from ..formats.dtypes import PLAIN
from ..formats.files import exists
from ..formats.tensors import Tensor

KEYS = {"quantization_config": "", "compression_config": "compressed-tensors", "quantization": "mlx"}  # of config.json -> who, if unsaid
# Files that say it where config.json does not
FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
# What only numbers packed elsewhere have: GPTQ's, AWQ's and MLX's scales, FP8's of a tensor, its blocks, its input, keys and values
BESIDE = re.compile(r"[._](scales?|scale_inv|scale_2|zero_point|qzeros|absmax|amax)$")
# Methods that store what they packed: without a packed tensor there is nothing left of them. Others round as they run.
STORED = frozenset({
    "aqlm", "auto-round", "awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "mlx", "mxfp4", "quark",
})  # fmt: skip


class Packing(NamedTuple):
    """`by`: who packed the weights, "" for weights whose names are known. `left_over`: keys of config.json and files that describe what
    no tensor is any more, with the method that they name."""

    by: str = ""
    left_over: Mapping[str, str] = {}

    @property
    def notes(self) -> list[str]:
        """That what is left over is not written."""
        return [
            f"{key} says {method}, and no tensor is packed: it is left over, and the output is without it"
            for key, method in self.left_over.items()
        ]


def packing_of(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], family: Family) -> Packing:
    """What config.json, or a file beside it, says of packed weights, judged by the tensors themselves.

    Source: transformers quantizers/auto.py (quantization_config), mlx_lm/utils.py load_model (quantization), vllm
    config/model.py _parse_quant_hf_config (compression_config, hf_quant_config.json).
    """
    said = {key: _method(config[key], usual) for key, usual in KEYS.items() if config.get(key)}
    beside = {file: tool for file, tool in FILES.items() if exists(folder, file)}
    weights = {name: t for name, t in tensors.items() if not family.is_buffer(name)}
    if any(t.dtype not in PLAIN or BESIDE.search(name) for name, t in weights.items()):
        by = next(iter((said or beside).values()), "")
        return Packing("" if by == "mxfp4" and family.scales else by.replace("fp8", "FP8"))
    return Packing("", {key: method for key, method in (said | beside).items() if method in STORED} if weights else {})


def _method(said: Mapping[str, Any], usual: str) -> str:
    """As "gptq", or "mlx" for a `quantization_config` that names none, which is MLX's copy."""
    return str(said.get("quant_method") or usual or "mlx")
