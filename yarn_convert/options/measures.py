"""The options of the measures."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

from ..asking import After, Help, Only
from ..errors import UsageError
from .commands import Device, Dtype, LlamaLib
from .reading import TOKENS, methods, number_list, part_list, seconds, token_list, tokens
from .recipe import Recipe


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


# What a measure has of `EvaluateOptions`: where its texts come from, what the methods over a model take, which models with what on them
DOCUMENTS = tuple(f.name for f in fields(Texts))
METHODS_TAKE = ("scale", "context", "original_context", "theta", "clip_pairs")
RECIPES = ("methods", "recipes", *METHODS_TAKE)
COMPUTED = ("device", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What the measures have in common. `methods`: NAME or NAME:FACTOR, over each model, and `recipes`, files of such; neither: each model
    as it is. `recipe`: what the methods take, and the lengths of what says none itself."""

    methods: Annotated[
        tuple[str, ...],
        Help(
            "Recipes to measure on the base, as none,linear,yarn,dynamic-yarn, yarn:4,yarn:8 or yarn+base (--short base); perplexity, "
            "longppl and divergence also compare rerope:512 and lm-infinite, which no file can say; repeatable. "
            "[default: the model as it is]",
            names=("--method", "--methods"),
            made=methods,
        ),
    ] = ()
    recipes: Annotated[tuple[Path, ...], Help("A recipe's file to measure, beside --method; repeatable.", names=("--recipe",))] = ()
    recipe: Annotated[Recipe, Only(*METHODS_TAKE)] = field(default_factory=Recipe)
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


PromptLengths = Annotated[
    tuple[int, ...], Help("Lengths of the prompts.", read=token_list, metavar="<tokens,…>"), After("original_context")
]


@dataclass(frozen=True, slots=True)
class PasskeyOptions:
    """`depths`: bins of the heat map."""

    settings: Annotated[EvaluateOptions, Only(*RECIPES, *COMPUTED)] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    lengths: PromptLengths = (8192, 16384, 32768)
    trials: Annotated[int, Help("Prompts of each length.", least=1), After("lengths")] = 10
    depths: Annotated[int, Help("Rows of the heat map.", least=1), After("trials")] = 10
    seed: Annotated[int, Help("Of keys and depths.", least=0), After("depths")] = 0


@dataclass(frozen=True, slots=True)
class NeedleOptions:
    """`depths`: how many, from the beginning of the haystack to its end. `needles`: one is asked for."""

    settings: Annotated[EvaluateOptions, Only(*RECIPES, "files", *COMPUTED)] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    lengths: PromptLengths = (8192, 16384, 32768)
    depths: Annotated[int, Help("Depths of the needle, evenly from the beginning to the end.", least=1), After("lengths")] = 5
    trials: Annotated[int, Help("Prompts of each length and depth.", least=1), After("depths")] = 3
    needles: Annotated[int, Help("Needles in each haystack, of which one is asked for.", least=1), After("trials")] = 1
    seed: Annotated[int, Help("Of names, numbers and the other needles' depths.", least=0), After("needles")] = 0


@dataclass(frozen=True, slots=True)
class RulerOptions:
    """`tasks` empty: those that download nothing. `threshold`: RULER's own, Llama 2 7B at 4,096 tokens."""

    settings: Annotated[EvaluateOptions, Only(*RECIPES, *COMPUTED)] = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    lengths: PromptLengths = (4096, 8192, 16384)
    tasks: Annotated[
        tuple[str, ...],
        Help("Tasks by lm-evaluation-harness's names. [default: those that download nothing]", read=part_list, metavar="<str,…>"),
        After("lengths"),
    ] = ()
    trials: Annotated[int, Help("Prompts of each task and length, 500 at most.", least=1), After("tasks")] = 10
    threshold: Annotated[float, Help("The mean score, in per cent, down to which a length is effective."), After("trials")] = 85.6
    seed: Annotated[int, Help("Of the texts; 0 makes those of lm_eval.", least=0), After("threshold")] = 0


@dataclass(frozen=True, slots=True)
class LongpplOptions:
    """`evaluator` None: the first model as it is. `short_context` K, `step` d, `alpha` and `beta` as LongPPL has them; None: its own."""

    settings: Annotated[EvaluateOptions, Only(*RECIPES, *DOCUMENTS, *COMPUTED)] = field(default_factory=EvaluateOptions)
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
class DivergenceOptions:
    """`base` None: the first model. `base_method`, as one of `methods`, or `base_recipe`, a file, is on the base; neither: it is as it is.
    `window` None: 2,048 tokens, or the base's own context where that is shorter."""

    settings: EvaluateOptions = field(default_factory=EvaluateOptions)
    _: KW_ONLY
    base: Annotated[
        str | None,
        Help("The model that the others are compared with, in torch. [default: the first model]"),
        After("original_context"),
    ] = None
    base_method: Annotated[
        str | None, Help("A recipe on the base, as yarn:4. [default: the base as it is]", metavar="<str>"), After("base")
    ] = None
    base_recipe: Annotated[Path | None, Help("A recipe's file for the base, instead of --base-method."), After("base_method")] = None
    window: Annotated[
        int | None,
        Help("Truncate documents here, within the base's context. [default: 2048, or that context]", read=tokens, metavar=TOKENS),
        After("base_recipe"),
    ] = None
    segments: Annotated[int, Help("Segments of position; L is a boundary, too.", least=1), After("window")] = 4


@dataclass(frozen=True, slots=True)
class TemperatureOptions:
    """`multipliers` empty: the recommended value and three steps on both sides. `window` None: the extended context."""

    settings: Annotated[EvaluateOptions, Only("scale", "context", "original_context", *DOCUMENTS, *COMPUTED)] = field(
        default_factory=EvaluateOptions
    )
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
    settings: Annotated[EvaluateOptions, Only("original_context", *DOCUMENTS, *COMPUTED)] = field(
        default_factory=EvaluateOptions, kw_only=False
    )
