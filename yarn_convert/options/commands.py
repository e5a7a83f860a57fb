"""The options of the commands that make, prove, show and publish."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..asking import After, Group, Help, Only
from .reading import TOKENS, place, seconds, tokens
from .recipe import Recipe

Like = Annotated[str | None, Help("Another checkpoint that says what is intended.")]
Force = Annotated[bool, Help("Replace an existing output.")]
Revision = Annotated[str | None, Help("Branch, tag or commit of a model on the Hub.")]
Device = Annotated[str, Help("auto, cuda, mps or cpu.")]
LlamaLib = Annotated[
    Path | None,
    Help("The llama.cpp to run: a libllama of your own, or its folder. [default: $YARN_CONVERT_LLAMA_LIB, or the one installed]"),
]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """A recipe, and how it is written."""

    recipe: Recipe = field(default_factory=Recipe)
    _: KW_ONLY
    out: Annotated[Literal["safetensors", "gguf"] | None, Help("safetensors or gguf; default: what came in."), After("method")] = None
    output: Annotated[
        Path | None,
        Help(
            "Where to write: x.gguf, which means --out gguf, a folder, or DIR/ to put it in. [default: NAME-METHOD-CONTEXT]",
            names=("-o", "--output"), read=place, metavar="<path>",
        ),
        After("out"),
    ] = None  # fmt: skip
    carry: Annotated[
        Literal["auto", "metadata", "tensors"], Help("auto, metadata (YaRN keys) or tensors (the frequencies themselves)."), Group("Recipe")
    ] = "auto"
    outtype: Annotated[
        str,
        Help(
            "auto (keep), f32, f16, bf16, q8_0, q4_0, … or a mix of llama.cpp, as q4_k_m; several for GGUF, as q4_k_m,q8_0: a file each.",
            read=str.lower,
            metavar="<str>",
        ),
        Group(""),
    ] = "auto"
    imatrix: Annotated[Path | None, Help("llama-imatrix's importance matrix, for --outtype."), Group("GGUF")] = None
    sliding_window: Annotated[Literal["keep", "off"], Help("keep, or off: extend with full attention (Mistral v0.1)."), Group("Recipe")] = (
        "keep"
    )
    pretokenizer: Annotated[str | None, Help("For GGUF: the name of a pre-tokenizer that is not recognized."), Group("GGUF")] = None
    gguf_arch: Annotated[str | None, Help("For GGUF: write it as another architecture, as qwen2 as llama.")] = None
    cos_sin: Annotated[bool, Help("With tensors: also the cos and sin caches, in rope.safetensors."), Group("Files")] = False
    link: Annotated[bool, Help("Hard-link unchanged weight files instead of copying them.")] = False
    in_place: Annotated[bool, Help("Change the .gguf file itself; its tensor data does not move.")] = False
    stream: Annotated[
        bool, Help("For GGUF: read a Hub model's weights from there while they are written, and keep no copy of them in its cache.")
    ] = False
    hash: Annotated[bool, Help("Put the SHA-256 of every weight file, as it was written, into the manifest.")] = False
    split_max_size: Annotated[
        str | None, Help("For GGUF: parts of at most 5G or 500M, or none: one file. [default: as the input is]"), Group("GGUF")
    ] = None
    converter: Annotated[
        Path | None, Help("For GGUF: llama.cpp, or its convert_hf_to_gguf.py, to make it. [default: where the model has no row]")
    ] = None
    mmproj: Annotated[bool, Help("For GGUF: also the file of what sees or hears, by llama.cpp's converter.")] = False
    trust_remote_code: Annotated[bool, Help("Let llama.cpp's converter run the model's own Python.")] = False
    revision: Annotated[Revision, Group("Files")] = None
    force: Annotated[Force, Group("")] = False


Dtype = Literal["f32", "bf16", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions:
    """What is checked, and against what. `recipe`: what is intended, where neither `like` nor the files say it. `budget` in seconds of
    real weights, or `tokens` of them, whole or a `cut`; `real` and `twin` switch the two kinds of run."""

    base: Annotated[str | None, Help("The base model: are the weights its own?")] = None
    like: Annotated[Like, Group("Recipe")] = None
    recipe: Recipe | None = None
    overrides: Annotated[
        bool,
        Help("MODEL is not extended: each runtime is told the recipe of the options, as 'yarn-convert overrides' prints it."),
        Group(""),
    ] = False
    runtimes: Annotated[
        tuple[str, ...],
        Help(
            "A runtime to run, NAME or NAME:MODE (see 'yarn-convert runtimes'); can be repeated. [default: all that are there]",
            names=("--runtime",),
        ),
    ] = ()
    budget: Annotated[
        float | None, Help("Time for the real weights, as 90s or 5m. [default: 60s on a CPU]", read=seconds, metavar="<str>")
    ] = None
    tokens: Annotated[int | None, Help("Length of the text for the real weights, instead of --budget.", read=tokens, metavar=TOKENS)] = None
    cut: Annotated[
        int | None,
        Help(
            "Layers of the cut, which is run with its own weights instead of the whole model; of a Hub id only these are fetched. "
            "0: never. [default: 2 where the whole does not fit the memory]"
        ),
    ] = None
    trace: Annotated[
        bool, Help("Where real weights fail: the first module that differs, from the base's weights and in llama.cpp, and which tensors.")
    ] = False
    twin_tokens: Annotated[
        int | None,
        Help("Length of the twin's text. [default: the context, at most 131072 on a CPU]", read=tokens, metavar=TOKENS),
    ] = None
    text: Annotated[Path | None, Help("A text in UTF-8 instead of the one in the package.")] = None
    device: Annotated[str, Help("Of the reference, and of transformers and llama.cpp: auto, cuda, mps or cpu.")] = "auto"
    dtype: Annotated[Dtype, Help("Of the reference: f32, or bf16 for size.")] = "f32"
    llama_lib: LlamaLib = None
    revision: Annotated[Revision, Group("Files")] = None
    real: bool = True
    twin: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions:
    """Which spelling is meant, and where it is written."""

    output: Annotated[Path | None, Help("Write a repaired copy; default: in place.", names=("-o", "--output"))] = None
    like: Like = None
    keep: Annotated[
        tuple[str, ...],
        Help(
            "Which of two things that disagree: rope_scaling or rope_parameters, rope_type or type in an object, object or top for "
            "what stands in an object and at the top level, attention_factor for what transformers takes of longrope's multipliers. "
            "Can be repeated."
        ),
    ] = ()
    recipe: Recipe | None = None
    force: Force = False


@dataclass(frozen=True, slots=True)
class OverridesOptions:
    """A recipe, and which runtimes are to be told it."""

    recipe: Recipe = field(default_factory=Recipe)
    _: KW_ONLY
    runtimes: Annotated[tuple[str, ...], Help("A runtime to tell; can be repeated. [default: all]", names=("--runtime",))] = ()
    revision: Revision = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """How a model is read that is only shown."""

    recipe: Annotated[Recipe, Only("original_context")] = field(default_factory=Recipe)
    revision: Revision = None


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """Where an output is published, and how."""

    repo: Annotated[str, Help("The repository on the Hub, as user/name.", argument=True)]
    _: KW_ONLY
    private: Annotated[bool, Help("Make a new repository private.")] = False
    revision: Annotated[str | None, Help("Branch to commit to. [default: main]")] = None
    create_pr: Annotated[bool, Help("Open a pull request instead of committing.")] = False
    allow_unvalidated: Annotated[bool, Help("Publish what has not passed 'yarn-convert validate'.")] = False
