"""What can be asked for, as data: each option stands once, at its field, with its type, its default and what it means.

The command line is made of these fields (`cli.commands`), and the library takes them by keyword (`asking.taking`). A part that several
commands have is a dataclass that theirs hold: `Recipe` is what convert, validate, repair and evaluate have in common. None means "as the
base has it", or the method's own default. Pure, and imported without anything heavy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from .asking import After, Group, Help, Only
from .errors import UsageError

# -- how a text is read -----------------------------------------------------------------------------------------------


def tokens(text: str) -> int:
    """A number of tokens as people write it: 32768, 32k (of 1,024 each) or 1m. ValueError for anything else."""
    units = {"k": 1 << 10, "m": 1 << 20}
    try:
        return int(float(text[:-1]) * units[text[-1].lower()]) if text[-1:].lower() in units else int(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no number of tokens, as 32768 or 32k") from None


def token_list(text: str) -> tuple[int, ...]:
    """Numbers of tokens with commas between. UsageError for anything else."""
    try:
        found = tuple(tokens(part.strip()) for part in text.split(","))
    except ValueError as e:
        raise UsageError(str(e), "2048,4096,8k") from None
    if min(found) < 2:
        raise UsageError(f"{min(found)} is no length of a text in tokens", "2048,4096,8k")
    return found


def number_list(text: str) -> tuple[float, ...]:
    """Numbers with commas between. UsageError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", "1,1.1,1.2") from None


def seconds(text: str) -> float:
    """ "90s", "5m", "1h" or a plain number as seconds. UsageError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"--budget must be a time, not {text!r}", "--budget 90s, or 5m")
    return value


def methods(wishes: Sequence[str]) -> tuple[str, ...]:
    """Those of each wish, with commas between. UsageError where there is none."""
    found = tuple(m for wish in wishes for m in wish.split(",") if m.strip())
    if not found:
        raise UsageError("--method names no method", "--method none,yarn")
    return found


def part_list(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(","))


NAMED = "*"  # the last part of an output's path that is to have its default name there


def place(text: str) -> Path:
    """An output's path; of a folder to put it in, with a slash at its end, NAMED in it."""
    return Path(text, NAMED) if text.endswith(("/", os.sep)) else Path(text)


TOKENS = "<tokens>"
Ramp = Literal["index", "paper"]

# -- the recipe -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A method and its parameters, as a user asks for them: what `extend` makes a RoPE of, given a base. Fields without a Help are lists of
    D/2 numbers, one a pair, that divide the base's frequencies; they come from a file, `factors` for explicit, the others for longrope."""

    scale: Annotated[float | None, Help("s = L'/L, on the original pretraining context.")] = None
    context: Annotated[
        int | None, Help("L', the extended context in tokens, as 32768 or 32k, instead of --scale.", read=tokens, metavar=TOKENS)
    ] = None
    method: Annotated[str, Help("One of 'yarn-convert methods'.", read=str.lower, metavar="<str>")] = "yarn"
    short: Annotated[
        Literal["base"] | None, Help("base: texts within the base's own length keep its table. [default: one table for all lengths]")
    ] = None
    original_context: Annotated[int | None, Help("L, where the model does not say it.", read=tokens, metavar=TOKENS), Group("Recipe")] = (
        None
    )
    beta_fast: Annotated[float | None, Help("Turns over L above which a pair is kept. [default: 32]")] = None
    beta_slow: Annotated[float | None, Help("Turns below which it is interpolated. [default: 1]")] = None
    attention_factor: Annotated[float | None, Help("Multiplier of cos and sin. [default: 0.1·ln s + 1]")] = None
    ramp: Annotated[Literal["index", "paper"], Help("index, as every runtime computes it, or paper (Eq. 18; carried as tensors).")] = (
        "index"
    )
    truncate: Annotated[bool, Help("Round the ramp's ends to whole pairs.", names=("--truncate/--no-truncate",))] = True
    theta: Annotated[float | None, Help("The rope_theta of abf, and of cope where it is raised too.")] = None
    clip_pairs: Annotated[
        int | None, Help("Pairs, the slowest, that cope clips. [default: 20 of every 29 that turn less than once over L]", least=2)
    ] = None
    position_temperature: Annotated[
        float | None, Help("β of 1 + β·ln(1 + ⌊position/L⌋) on the logits, of models that have it (Ministral 3). [default: the base's]")
    ] = None
    factors: tuple[float, ...] | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None


# -- the commands' own ------------------------------------------------------------------------------------------------

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


# -- the measures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Where documents come from. `files`: text files in UTF-8, *.jsonl with a document a line, or folders of both; empty and no
    `dataset`: the text in the package. `cut`: a rest is left out."""

    files: Annotated[tuple[Path, ...], Help("A text in UTF-8, JSON lines, or a folder of both; repeatable.", names=("--text",))] = ()
    dataset: Annotated[str | None, Help("NAME[:CONFIG[:SPLIT[:COLUMN]]] for the package datasets, instead of --text.")] = None
    cut: Annotated[int | None, Help("Make documents of so many tokens of each text.", read=tokens, metavar=TOKENS)] = None
    most: Annotated[int | None, Help("Use so many documents at most.", names=("--documents",), least=1)] = None

    def __post_init__(self) -> None:
        """UsageError for two places at once."""
        if self.files and self.dataset:
            raise UsageError("--dataset and --text both say which texts to read", "give one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What the measures have in common. `methods`: NAME or NAME:FACTOR, over each model, and `recipes`, files of such; neither: each model
    as it is. `recipe`: what the methods take, and the lengths of what says none itself."""

    methods: Annotated[
        tuple[str, ...],
        Help(
            "Recipes to measure on the base, as none,linear,yarn,dynamic-yarn, yarn:4,yarn:8 or yarn+base (--short base); repeatable. "
            "[default: the model as it is]",
            names=("--method", "--methods"),
            made=methods,
        ),
    ] = ()
    recipes: Annotated[tuple[Path, ...], Help("A recipe's file to measure, beside --method; repeatable.", names=("--recipe",))] = ()
    recipe: Annotated[Recipe, Only("scale", "context", "original_context", "theta", "clip_pairs")] = field(default_factory=Recipe)
    texts: Texts = field(default_factory=Texts)
    runtime: Annotated[str, Help("transformers, any recipe; or one that runs a file as it is, as llama.cpp.")] = "transformers"
    llama_lib: LlamaLib = None
    device: Device = "auto"
    dtype: Annotated[Dtype, Help("Of the computation: f32 or bf16.")] = "f32"


@dataclass(frozen=True, slots=True)
class PerplexityOptions:
    """`windows` W in tokens, BOS included; `tokens` of each document and `stride` S for sliding windows."""

    settings: EvaluateOptions = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    windows: Annotated[
        tuple[int, ...], Help("Context windows W in tokens.", read=token_list, metavar="<tokens,…>"), After("original_context")
    ] = (2048, 4096, 8192)
    tokens: Annotated[
        int | None,
        Help("Slide the windows over so many tokens of each document. [default: truncate it at each window]", read=tokens, metavar=TOKENS),
        After("windows"),
    ] = None
    stride: Annotated[
        int | None,
        Help("S, by which a sliding window moves. [default: 256]", read=tokens, metavar=TOKENS),
        After("tokens"),
    ] = None


Lengths = Annotated[tuple[int, ...], Help("Lengths of the prompts.", read=token_list, metavar="<tokens,…>"), After("original_context")]


@dataclass(frozen=True, slots=True)
class PasskeyOptions:
    """`depths`: bins of the heat map."""

    settings: Annotated[
        EvaluateOptions,
        Only("methods", "recipes", "scale", "context", "original_context", "theta", "clip_pairs", "device", "dtype"),
    ] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    lengths: Lengths = (8192, 16384, 32768)
    trials: Annotated[int, Help("Prompts of each length.", least=1), After("lengths")] = 10
    depths: Annotated[int, Help("Rows of the heat map.", least=1), After("trials")] = 10
    seed: Annotated[int, Help("Of keys and depths.", least=0), After("depths")] = 0


@dataclass(frozen=True, slots=True)
class NeedleOptions:
    """`depths`: how many, from the beginning of the haystack to its end. `needles`: one is asked for."""

    settings: Annotated[
        EvaluateOptions,
        Only("methods", "recipes", "scale", "context", "original_context", "theta", "clip_pairs", "files", "device", "dtype"),
    ] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    lengths: Lengths = (8192, 16384, 32768)
    depths: Annotated[int, Help("Depths of the needle, evenly from the beginning to the end.", least=1), After("lengths")] = 5
    trials: Annotated[int, Help("Prompts of each length and depth.", least=1), After("depths")] = 3
    needles: Annotated[int, Help("Needles in each haystack, of which one is asked for.", least=1), After("trials")] = 1
    seed: Annotated[int, Help("Of names, numbers and the other needles' depths.", least=0), After("needles")] = 0


@dataclass(frozen=True, slots=True)
class LongpplOptions:
    """`evaluator` None: the first model as it is. `short_context` K, `step` d, `alpha` and `beta` as LongPPL has them; None: its own."""

    settings: Annotated[
        EvaluateOptions,
        Only(
            "methods",
            "recipes",
            "scale",
            "context",
            "original_context",
            "theta",
            "clip_pairs",
            "files",
            "dataset",
            "cut",
            "most",
            "device",
            "dtype",
        ),
    ] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    window: Annotated[
        int | None, Help("Truncate documents here. [default: 16384]", read=tokens, metavar=TOKENS), After("original_context")
    ] = None
    evaluator: Annotated[
        str | None,
        Help("The model that chooses the key tokens, as it is: one that is good at this length. [default: the first model]"),
        After("window"),
    ] = None
    short_context: Annotated[
        int | None,
        Help("K, the short context against which the long one is held. [default: 4096]", read=tokens, metavar=TOKENS),
        After("evaluator"),
    ] = None
    step: Annotated[
        int | None, Help("Tokens that share a short context. [default: 1024]", read=tokens, metavar=TOKENS), After("short_context")
    ] = None
    alpha: Annotated[float, Help("By how many nats the long context must help."), After("step")] = 2.0
    beta: Annotated[float, Help("The least logarithm of a key token's probability."), After("alpha")] = -2.0


@dataclass(frozen=True, slots=True)
class TemperatureOptions:
    """`multipliers` empty: the recommended value and three steps on both sides. `window` None: the extended context."""

    settings: Annotated[
        EvaluateOptions,
        Only("scale", "context", "original_context", "files", "dataset", "cut", "most", "device", "dtype"),
    ] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    window: Annotated[
        int | None,
        Help("Truncate documents here. [default: the extended context]", read=tokens, metavar=TOKENS),
        After("original_context"),
    ] = None
    multipliers: Annotated[
        tuple[float, ...],
        Help("Values of √(1/t). [default: the recommended one and three on each side]", read=number_list, metavar="<x,…>"),
        After("window"),
    ] = ()
    segments: Annotated[int, Help("Segments of position.", least=1), After("multipliers")] = 4


SearchPart = Literal["temperature", "factor", "betas", "method", "ends", "pairs"]


@dataclass(frozen=True, slots=True)
class AdviseOptions:
    """`factors` empty: N/L times each of eight."""

    _: KW_ONLY
    context: Annotated[int, Help("N, the length to serve.", read=tokens, metavar=TOKENS)]
    method: Annotated[str, Help("The method whose factor is sought, or METHOD+base (--short base).")] = "yarn"
    factors: Annotated[
        tuple[float, ...],
        Help(
            "Factors to try. [default: 0.5, 0.75, 1, 1.25, 1.5, 2, 3 and 4 times N/L]",
            names=("--factor",),
            read=number_list,
            metavar="<x,…>",
        ),
    ] = ()
    tolerance: Annotated[float, Help("Share by which a segment's perplexity may exceed the base's.")] = 0.02
    segments: Annotated[int, Help("Segments of the N tokens.", least=1)] = 8
    search: Annotated[bool, Help("Search the best recipe instead: with texts that are held out.")] = False
    over: Annotated[
        tuple[SearchPart, ...],
        Help(f"Parts of the search: {', '.join(get_args(SearchPart))}. [default: all]", read=part_list, metavar="<str,…>"),
    ] = ()
    short_weight: Annotated[float, Help("Of short texts, against long ones, in the search: 0 to 1.")] = 0.5
    windows: Annotated[int, Help("Windows of N tokens to search on, at most.", least=1)] = 4
    judges: Annotated[int, Help("Windows of other texts that judge what was found, at most.", least=2)] = 4
    trials: Annotated[int | None, Help("Recipes to try. [default: 60, or any number within --budget]", least=1)] = None
    budget: Annotated[float | None, Help("Time for the search, judging included, as 20m.", read=seconds, metavar="<str>")] = None
    seed: Annotated[int, Help("Of the search, and of which texts judge.", least=0)] = 0
    settings: Annotated[EvaluateOptions, Only("original_context", "files", "dataset", "cut", "most", "device", "dtype")] = field(
        default_factory=EvaluateOptions, kw_only=False
    )


# -- fine-tuning ------------------------------------------------------------------------------------------------------


Preset = Literal["paper", "mistral"]
Trainer = Literal["axolotl", "ms-swift", "llama-factory", "torchtitan"]


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """A training at the extended context, and how its output is written. Without a factor or context in `recipe`, a model that is
    extended already is trained as it is. None of a number: as `preset` has it."""

    recipe: Recipe = field(default_factory=Recipe)
    _: KW_ONLY
    texts: Annotated[Texts, Only("files", "dataset")] = field(default_factory=Texts)
    preset: Annotated[Preset, Help("paper: YaRN 4.1; mistral: its B.4, 16k segments and a constant rate.")] = "paper"
    sequence: Annotated[int | None, Help("Tokens of a segment. [default: the context, at most 64k]", read=tokens, metavar=TOKENS)] = None
    steps: Annotated[int | None, Help("Steps of the optimizer. [default: 400]", least=1)] = None
    batch: Annotated[int | None, Help("Segments a step, over all processes. [default: 64]", least=1)] = None
    micro_batch: Annotated[int, Help("Segments that go through the model at once, in each process.", least=1), Group("Training")] = 1
    lr: Annotated[float | None, Help("Learning rate. [default: 2e-5]")] = None
    warmup: Annotated[int | None, Help("Steps over which it rises from 0. [default: 20]", least=0)] = None
    clip: Annotated[float, Help("Largest norm of the gradient; 0: any.")] = 1.0
    pack: Annotated[bool, Help("Fill segments with whole documents, which do not see each other.")] = False
    seed: Annotated[int, Help("Of the order of the segments, and of adapters.", least=0)] = 0
    lora: Annotated[int | None, Help("Train adapters of this rank, and merge them at the end.", least=1)] = None
    sequence_parallel: Annotated[int, Help("Processes that hold one segment together.", least=1)] = 1
    checkpointing: Annotated[
        bool,
        Help("Compute activations again instead of keeping them.", names=("--activation-checkpointing/--no-activation-checkpointing",)),
    ] = True
    held_out: Annotated[
        tuple[Path, ...], Help("Texts to measure perplexity on. [default: a few segments are kept back]"), Group("Held-out texts")
    ] = ()
    evaluate_every: Annotated[int | None, Help("Measure it every so many steps, too. [default: before and after]", least=1)] = None
    windows: Annotated[
        tuple[int, ...], Help("Context windows of that. [default: L and its doublings]", read=token_list, metavar="<tokens,…>")
    ] = ()
    checkpoint_every: Annotated[
        int | None, Help("Keep the state every so many steps. [default: about ten times]", least=1), Group("Training")
    ] = None
    out: Annotated[Literal["safetensors", "gguf"], Help("safetensors or gguf."), Group("")] = "safetensors"
    outtype: Annotated[str, Help("auto (as the base), or a type or mix, as at a conversion.", read=str.lower, metavar="<str>")] = "auto"
    output: Annotated[Path | None, Help("Where to write; default NAME-METHOD-CONTEXT-tuned.", names=("-o", "--output"))] = None
    sliding_window: Annotated[Literal["keep", "off"] | None, Help("keep, or off: full attention. [default: keep]")] = None
    log: Annotated[Path | None, Help("A line of JSON for each step. [default: OUTPUT.jsonl]"), Group("Training")] = None
    device: Annotated[Device, Group("")] = "auto"
    dtype: Annotated[Dtype | None, Help("Of the computation: f32 or bf16. [default: bf16 on a GPU]")] = None
    resume: Annotated[bool, Help("Only go on with what was interrupted.")] = False
    emit: Annotated[Trainer | None, Help("Train nothing: write what another trainer needs to train this recipe.")] = None
    revision: Annotated[Revision, Group("Files")] = None
    force: Annotated[Force, Group("")] = False
