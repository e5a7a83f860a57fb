"""Tokenizer files of an HF folder ↔ the `tokenizer.*` keys of a GGUF file.

Three kinds are known:

- `gpt2`: byte-level BPE from `tokenizer.json` (Llama 3, Qwen, DeepSeek, GPT-NeoX, Falcon, …). What a GGUF cannot carry is
  the pre-tokenizer: it has only a name, `tokenizer.ggml.pre`. PRETOKENIZERS is the dictionary between those names and
  the JSON, read in both directions; what is not in it is refused.
- `llama`: SentencePiece BPE from `tokenizer.model`, or from a `tokenizer.json` with byte fallback (Llama 2, Mixtral, Phi-3,
  Gemma, InternLM2, …). What the converter does for one model type only is in `habits`.
- `gemma4`: a `tokenizer.json` with byte fallback that is merged by rank, not by score (Gemma 4).

The keys are those of llama.cpp's converter (conversion/*.py and gguf-py/gguf/vocab.py as of
llama-cpp-python 0.3.36), except where it would write a file that reads text wrongly; see `reading._fallback_vocabulary`.
What no key carries, `caveats` tells.
Only the standard library is used: a SentencePiece model is a few protobuf fields, read and written here.
"""

from .caveats import caveats, fitting_name
from .comparing import Canonical, added, canonical, differences, settings, unlike_templates
from .pretokenizers import PRETOKENIZERS
from .reading import to_gguf
from .spelling import unlike_files
from .vocabulary import Files, GgufValue, files_of
from .writing import to_hf

__all__ = [
    "PRETOKENIZERS",
    "Canonical",
    "Files",
    "GgufValue",
    "added",
    "canonical",
    "caveats",
    "differences",
    "files_of",
    "fitting_name",
    "settings",
    "to_gguf",
    "to_hf",
    "unlike_files",
    "unlike_templates",
]
