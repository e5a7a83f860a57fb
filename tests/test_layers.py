"""The order of the rooms: a module imports only from the rows above it, and the heavy packages only inside functions."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "yarn_convert"
ORDER = [
    "errors", "hearing", "asking", "options.reading", "options.recipe", "options.commands", "options.measures", "options.training", "options", "formats.inputs", "formats.files", "formats.room", "formats.digests", "formats.yaml_text", "formats.decoding", "formats.pickles",
    "formats.contents", "rope.parts", "rope.methods", "rope.recipe", "rope.comparing", "rope.factors", "rope.distances", "rope.recording", "rope", "families.layers", "families.model_types", "families.architectures",
    "families.schema", "families.aliases", "families.derived", "families.llama", "families.qwen", "families.qwen_vl", "families.qwen_linear",
    "families.lfm2", "families.falcon_h1", "families.granite", "families.neox", "families.dense", "families.gemma", "families.gemma4", "families.gemma3n",
    "families.others", "families.mla", "families.minicpm", "families.gpt_oss", "families.experts", "families.mixtures", "families.llama4",
    "families", "formats.tensors", "formats.changes", "formats.orders", "formats.layout", "formats.gguf_file",
    "formats.general", "formats.split", "formats.json_text", "checkpoint.manifest", "checkpoint.config", "formats.dtypes", "formats.imatrix",
    "formats.quantizer", "formats", "readers.reading", "readers.rows", "readers.nested", "readers.others", "readers.seen", "readers.methods",
    "readers.config", "readers.judge", "readers.gguf", "readers.others_gguf", "readers.switching", "readers.survey", "readers.told", "readers", "dialects.shared",
    "dialects.config_json", "dialects.gguf", "dialects", "dialects.rivals", "checkpoint.naming", "checkpoint.hub_client", "checkpoint.source", "checkpoint.lengths",
    "tokenizers.schema", "tokenizers.vocabulary", "tokenizers.pretokenizers", "tokenizers.sentencepiece_model", "tokenizers.specials",
    "tokenizers.habits", "tokenizers.caveats", "tokenizers.reading", "tokenizers.writing", "tokenizers.comparing",
    "tokenizers.spelling", "tokenizers", "checkpoint.packing", "checkpoint.model", "checkpoint.opening", "checkpoint.ranges", "checkpoint.streaming", "checkpoint", "targets.rows",
    "targets.places", "targets.resume", "targets.moving", "targets.output", "targets.plan", "targets.parts", "targets.gguf",
    "targets.safetensors", "targets.in_place", "conversion.tempering", "conversion.extension", "conversion.ways", "conversion.overriding", "conversion.intention", "conversion.lists", "conversion.recipes", "conversion.converter", "conversion.recording", "conversion.outputs", "conversion.run", "conversion.several", "conversion.describe",
    "conversion.repair", "conversion", "compute.pages", "runtimes.protocol", "runtimes.table", "runtimes.library", "runtimes.environments", "runtimes", "runtimes.kept",
    "compute.tables", "compute.record", "compute.identity", "compute.tokens", "compute.weights", "compute.rotary", "compute.reference", "compute.reasons", "compute.states", "compute.values", "compute.scorer", "compute.distributions", "compute.growing", "compute.distances", "compute.anew", "compute.documents",
    "compute", "validation.extension", "validation.twin", "validation.cut", "validation.cuts", "validation.excerpt", "validation.judging", "validation.rounding",
    "validation.amplifying", "validation.study", "validation.predicting", "validation.counterparts", "validation.trace", "validation.course", "validation.real", "validation.opening", "validation.verdict", "validation.foreseen", "validation.generation", "validation.tokenizer", "validation.result", "validation.run",
    "validation.matrix", "validation.text", "validation.report", "validation", "evaluation.windows", "evaluation.journal",
    "evaluation.subjects", "evaluation.perplexities", "evaluation.divergences", "evaluation.retrieval", "evaluation.passkeys", "evaluation.needles", "evaluation.rulers", "evaluation.key_tokens", "evaluation.temperatures", "evaluation.advice",
    "evaluation.held_out", "evaluation.space", "evaluation.optimizer", "evaluation.search",
    "evaluation.result", "evaluation.measured", "evaluation.choices", "evaluation.found", "evaluation.measures", "evaluation.text", "evaluation.paper", "evaluation.report", "evaluation", "finetuning.settings",
    "finetuning.losses", "finetuning.requirements", "finetuning.speed", "finetuning.ranks", "finetuning.attention", "finetuning.corpus", "finetuning.trainee",
    "finetuning.states", "finetuning.training", "finetuning.writing", "finetuning.run", "finetuning.emit", "finetuning.text", "finetuning.report", "finetuning", "publishing.shelf", "publishing.model_card",
    "publishing.hub", "publishing.pushing", "publishing.ollama", "publishing", "cli.folding", "cli.show", "cli.progress", "cli.help", "cli.commands", "cli.evaluate", "cli.finetune", "cli.proving", "cli.manual", "cli.convert", "cli.app", "cli.entry", "cli",
]  # fmt: skip
LAZY = {
    "matplotlib",
    "jinja2",
    "markupsafe",
    "accelerate",
    "psutil",
    "torch",
    "transformers",
    "llama_cpp",
    "gguf",
    "huggingface_hub",
    "tokenizers",
    "sentencepiece",
    "rich",
    "datasets",
    "yaml",
    "peft",
    "cmaes",
    "lm_eval",
    "nltk",
}
WORKERS = {f"runtimes.{name}_worker" for name in ("transformers", "llama_cpp", "mlx", "vllm", "openvino")} | {
    f"runtimes.llama_cpp_{part}" for part in ("library", "graph")
}


def modules() -> dict[str, Path]:
    """Path by dotted name; a package goes by its own name, except `targets`, which holds no code."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): names[name] for name in names.keys() - {"__init__", "__main__", "targets.__init__"}}


MODULES = modules()


@cache
def body_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def imported(name: str, node: ast.ImportFrom) -> list[str]:
    """The modules of this package that a relative import names. One dot in a package's __init__.py is that package."""
    parts = [*name.split("."), "__init__"] if MODULES[name].name == "__init__.py" else name.split(".")
    module = [*parts[: -node.level], *(node.module.split(".") if node.module else [])]
    return [".".join(module)] if node.module else [".".join([*module, alias.name]) for alias in node.names]


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("cli.app", "from .show import write", ["cli.show"]),
        ("cli.app", "from .. import conversion, readers", ["conversion", "readers"]),
        ("targets.gguf", "from ..errors import InputError", ["errors"]),
        ("targets.gguf", "from . import moving", ["targets.moving"]),
        ("tokenizers", "from .reading import to_gguf", ["tokenizers.reading"]),
        ("tokenizers", "from . import reading", ["tokenizers.reading"]),
        ("tokenizers", "from ..errors import InputError", ["errors"]),
        ("tokenizers.reading", "from .vocabulary import bad", ["tokenizers.vocabulary"]),
    ],
)
def test_a_relative_import_is_resolved_as_python_does(name: str, line: str, expected: list[str]) -> None:
    (node,) = ast.parse(line).body
    assert isinstance(node, ast.ImportFrom)
    assert imported(name, node) == expected


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_from_the_rows_above_it(name: str) -> None:
    if name in WORKERS:
        return
    assert name in ORDER, "a new module has no place in the order yet"
    for node in ast.walk(body_of(name)):
        if isinstance(node, ast.ImportFrom) and node.level:
            for other in imported(name, node):
                assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_heavy_packages_are_imported_inside_functions(name: str) -> None:
    """At module level; a relative import of this package's own `tokenizers` is another thing."""
    for node in body_of(name).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not LAZY & {name.split(".")[0] for name in names}


APART = ("validation", "evaluation", "finetuning")


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.partition(".")[0] in APART))
def test_measures_and_training_do_not_know_each_other(name: str) -> None:
    """What they need in common is in `compute`."""
    room = name.partition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert not [other for other in imported(name, node) if other.partition(".")[0] in APART and other.partition(".")[0] != room]
