"""Owns HABITS: what llama.cpp's converter does with the tokenizer of one model type and not of others, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Habit:
    """How the converter's class of a model type reads tokenizer files.

    `llama`: LlamaModel.set_vocab, which writes add_prefix_space of tokenizer_config.json and knows two models by their
    vocab_size. For others `prefix` says when add_space_prefix is written, from tokenizer.model's normalizer: where it is
    false, which is not llama.cpp's default, or always. `guess`: added tokens that look special are CONTROL, and a ▁ in
    others is a space. `listed`: added_tokens of tokenizer.json count too, beside a tokenizer.model. `unused`: how pieces
    begin that are UNUSED. `instead` and `absent` are special tokens by text: for what the files name, and for what they
    do not. `ranked`: a byte-fallback tokenizer.json becomes the kind `gemma4`, which merges by rank and puts BOS before every text;
    `shown` are its special tokens that llama.cpp is to render.
    """

    llama: bool = False
    prefix: Literal["false", "always"] = "false"
    guess: bool = True
    listed: bool = False
    unused: str = ""
    instead: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    ranked: bool = False
    shown: frozenset[str] = frozenset()


_LLAMA = Habit(llama=True)  # llama.py, granite.py and the classes under them
_GLM = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}
_MOE = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
_GEMMA4 = frozenset({'<|"|>', "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"})
HABITS: dict[str, Habit] = {  # model_type of config.json -> conversion/*.py, the class's set_vocab
    **dict.fromkeys(("llama", "mistral", "mixtral", "granite", "granitemoe", "granitemoeshared", "smollm3", "afmoe"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"), Habit(prefix="always")),  # gemma.py
    **dict.fromkeys(("gemma4", "gemma4_text"), Habit(ranked=True, shown=_GEMMA4)),  # gemma.py, Gemma4Model
    "phi3": Habit(guess=False, listed=True),  # phi.py, Phi3MiniModel
    "internlm2": Habit(  # internlm.py, InternLM2Model
        prefix="always", guess=False, listed=True, unused="[UNUSED", instead={"eos": "<|im_end|>"}
    ),
    **dict.fromkeys(("arcee", "ministral3", "ernie4_5"), _LLAMA),  # llama.py, mistral3.py, ernie.py
    "internlm3": Habit(llama=True, instead={"eos": "<|im_end|>"}),  # internlm.py, InternLM3Model
    "glm": Habit(absent=_GLM),  # chatglm.py
    "glm4": Habit(absent={**_GLM, "bos": "<|endoftext|>"}),  # glm.py, Glm4Model
    **dict.fromkeys(("glm4_moe", "glm4_moe_lite"), Habit(absent=_MOE)),  # base.py, _set_vocab_glm
    "solar_open": Habit(  # glm.py, SolarOpenModel
        absent={"bos": "<|startoftext|>", "eos": "<|endoftext|>", "eot": "<|endoftext|>", "unk": "<unk>"}
    ),
}


def habit_of(config: Mapping[str, Any]) -> Habit:
    """The habit of config.json's model_type, Llama's without one; a type that is not listed has nothing of its own."""
    return HABITS.get(str(config.get("model_type", "llama")), Habit())
