"""Tokenizer files of an HF folder ↔ the `tokenizer.*` keys of a GGUF file, for the Llama family of models.

Two kinds are known:

- `gpt2`: byte-level BPE from `tokenizer.json` (Llama 3, SmolLM, DeepSeek, Mistral Nemo, …). What a GGUF cannot carry is
  the pre-tokenizer: it has only a name, `tokenizer.ggml.pre`. PRETOKENIZERS is the dictionary between those names and
  the JSON, read in both directions; what is not in it is refused.
- `llama`: SentencePiece BPE from `tokenizer.model`, or from a `tokenizer.json` with byte fallback.

The keys are those of llama.cpp's converter (conversion/base.py, conversion/llama.py and gguf-py/gguf/vocab.py as of
llama-cpp-python 0.3.36), except where it would write a file that reads text wrongly; see `reading._fallback_vocabulary`.
Only the standard library is used: a SentencePiece model is a few protobuf fields, read and written here.
"""

from .pretokenizers import PRETOKENIZERS
from .reading import to_gguf
from .vocabulary import GgufValue
from .writing import to_hf

__all__ = ["PRETOKENIZERS", "GgufValue", "to_gguf", "to_hf"]
