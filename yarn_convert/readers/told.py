"""How each runtime is told another RoPE than its model's files say, without a change to them, and what it makes of that.

What a runtime is told is one of two things: members of config.json, which go over the file's own once that is read (`Told.sees`), or
parameters of llama.cpp's context and GGUF keys (`gguf.Flags`, --override-kv). The result is read as any file is. A runtime that cannot
be told has its reason in its row. docs/overrides.md is the prose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..families.schema import ROPE_OBJECTS
from .config import read_config
from .gguf import LLAMA_CPP, READ_AT
from .others import OTHER_READERS
from .reading import Reading, Refuses
from .rows import HF_READERS

Members = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """How one runtime is told. `says`: the command, of {model}, {tokens}, {kind}, and the members, {told} or {named}, or the flags."""

    name: str
    reads: Literal["safetensors", "gguf", "both"]
    version: str
    evidence: tuple[str, ...]
    reader: str = ""  # a key of `HF_READERS`, or "llama.cpp"; "" for one that cannot be told
    says: str = ""
    language: Literal["shell", "python"] = "shell"
    refuses: str = ""  # why it cannot be told
    object: str = "rope_parameters"  # of the two RoPE objects that which it is told
    # Whether config.json has gone through transformers' classes before: then what it says beside its RoPE object is in that already
    parsed: bool = True
    # What stays of the RoPE object that the file has: of a model by itself, and of a language model within another
    merges: tuple[bool, bool] = (False, False)
    depth: int = 0  # how many keys may lead to the part of config.json that is told
    capped: bool = False  # {tokens} is its context, and an error above the one that it derives

    def read(self, config: Members, members: Members, tokens: int, nest: int = 0) -> Reading:
        """What it computes of this config.json, that of the language model, told these members; `nest` keys lead there. Refuses where it
        fails, Unsupported for a model type that this reader's row does not know."""
        if nest > self.depth:
            raise Refuses(f"{self.name} {self.version}: it can be told nothing {nest} objects deep: its text_config would be gone")
        reading = read_config(self.reader, self.sees(config, members, nest > 0), tokens)
        if self.capped and reading.context is not None:
            if reading.context < tokens:
                raise Refuses(f"{self.name} {self.version}: it derives a context of {reading.context:,} tokens, and takes no longer one")
            return reading._replace(context=tokens)
        return reading

    def sees(self, config: Members, members: Members, nested: bool = False) -> dict[str, Any]:
        """config.json as it is to this runtime, as though a file said so.

        Where transformers' classes have read it, its RoPE objects are one, which has θ and the part of a head that turns; neither is looked
        for elsewhere after that (transformers 5.23 modeling_rope_utils.py, convert_rope_params_to_dict). `members` always have θ.
        """
        if self.object not in members or not self.parsed or self.object != "rope_parameters":
            return {**config, **members}
        told: Members = members["rope_parameters"]
        by_layer = any(isinstance(x, dict) for x in told.values())
        stays: Members = {} if by_layer else {"partial_rotary_factor": 1.0}
        if self.merges[nested]:
            stays = next((config[k] for k in ROPE_OBJECTS if config.get(k)), {})
        seen = {k: v for k, v in config.items() if k not in ROPE_OBJECTS}
        return {**seen, **members, "rope_parameters": {**stays, **told}}


_SNIPPET = "{kind}.from_pretrained({model}, {named})"
_V5 = (
    "configuration_utils.py: PreTrainedConfig.from_dict sets attributes of the class that was made, and makes that of a nested config anew",
    "modeling_rope_utils.py: what a table is made of is config.rope_parameters alone",
)
_CONVERTS = "it reads what lies in the model's folder, and takes no other RoPE"
TOLD: Mapping[str, Told] = {
    row.name: row
    for row in (
        Told(
            LLAMA_CPP, "both", READ_AT,
            (
                "common/arg.cpp: --rope-scaling, --rope-scale, --yarn-*, --override-kv; common/common.cpp: common_context_params_to_llama",
                "src/llama-context.cpp: llama_context::llama_context; llama_init_from_model (n_ctx_train is set anew where YaRN is told)",
                "src/llama-model-loader.cpp: get_key (an overridden key counts whether it is there or not)",
                "tools/server/server-context.cpp: n_ctx_slot caps -c at n_ctx_train",
            ),
            reader=LLAMA_CPP,
            says="llama-server -m {model} -c {tokens} {told}",
        ),
        Told(
            "transformers-5", "safetensors", HF_READERS["transformers-5"].version, _V5,
            reader="transformers-5", says=_SNIPPET, language="python", depth=1,
        ),
        Told(
            "transformers-4", "safetensors", HF_READERS["transformers-4"].version,
            ("configuration_utils.py: PretrainedConfig.from_dict; modeling_rope_utils.py: config.rope_scaling and config.rope_theta",),
            reader="transformers-4", says=_SNIPPET, language="python", object="rope_scaling", depth=1,
        ),
        Told(
            "vllm", "safetensors", HF_READERS["vllm"].version,
            (
                "vllm/config/model.py: ModelConfig._apply_dict_overrides (an object is replaced), _update_nested (it is merged)",
                "vllm/transformers_utils/config.py: get_config, before; vllm/config/model.py: _get_and_verify_max_len, after",
            ),
            reader="vllm", says="vllm serve {model} --max-model-len {tokens} --hf-overrides {told}",
            merges=(False, True), depth=2, capped=True,
        ),
        Told(
            "sglang", "safetensors", HF_READERS["sglang"].version,
            (
                "sglang/srt/utils/hf_transformers/config.py: get_config (a RoPE object is merged at the top, and replaced in text_config)",
                "sglang/srt/configs/model_config.py: ModelConfig._derive_context_length",
            ),
            reader="sglang",
            says="python -m sglang.launch_server --model-path {model} --context-length {tokens} --json-model-override-args {told}",
            merges=(True, False), depth=1, capped=True,
        ),
        Told(
            "mlx-lm", "safetensors", HF_READERS["mlx-lm"].version,
            ("mlx_lm/utils.py: load_model, model_config (a dict that config.json is updated with); its commands take no such thing",),
            reader="mlx-lm", says="mlx_lm.load({model}, model_config={told})", language="python", object="rope_scaling", parsed=False,
        ),
        Told(
            "exllamav3", "safetensors", HF_READERS["exllamav3"].version,
            (
                "exllamav3/model/config.py: Config.read_rope_settings_default; override_dynamic_seq_len chooses a list alone",
                "tabbyAPI backends/exllamav3/model.py: ExllamaV3Container.create takes no rope_scale or rope_alpha, which exllamav2's has",
            ),
            refuses=f"{_CONVERTS}; TabbyAPI's rope_scale and rope_alpha are for exllamav2",
        ),
        Told(
            "openvino", "safetensors", "optimum-intel 2.2.0",
            (
                "optimum/intel/openvino/modeling_decoder.py: OVModelForCausalLM._export hands no config on",
                "optimum/exporters/openvino/__main__.py: main_export loads config.json itself",
            ),
            refuses="its export reads config.json itself, whatever config it is given",
        ),
        Told(
            "Ollama", "both", OTHER_READERS["Ollama"].version,
            ("api/types.go: Options, Runner (num_ctx, and nothing of RoPE); llm/llama_server.go: no flag of RoPE is handed on",),
            refuses="a Modelfile has num_ctx, and no parameter of RoPE",
        ),
        Told(
            "LM Studio", "both", "lmstudio-js 0012463",
            ("packages/lms-shared-types/src/llm/LLMLoadModelConfig.ts: ropeFrequencyBase, ropeFrequencyScale, contextLength",),
            refuses="its settings have a RoPE base and scale, and no YaRN; what its closed engine makes of them is not known here",
        ),
    )
}  # fmt: skip
