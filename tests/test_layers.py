"""The order of the rooms: a module imports only from the rows above it, and the heavy packages only inside functions."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "yarn_convert"
ORDER = [
    "errors", "rope", "families", "tensors", "gguf_file", "json_text", "dtypes", "readers", "dialects", "source", "tokenizers", "checkpoint",
    "targets.moving", "targets.plan", "targets.gguf", "targets.safetensors", "targets.in_place", "convert", "describe", "runtimes", "cli",
]  # fmt: skip
LAZY = {"torch", "transformers", "llama_cpp", "gguf", "huggingface_hub", "tokenizers", "sentencepiece", "rich"}
WORKERS = {"runtimes.transformers_worker", "runtimes.llama_cpp_worker"}


def modules() -> dict[str, Path]:
    names = {p: ".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name not in ("__init__", "__main__", "targets.__init__")}


def imported(name: str, node: ast.ImportFrom) -> list[str]:
    """The modules of this package that a relative import names."""
    package = [] if "." not in name else name.split(".")[:-1]
    base = package[: len(package) - (node.level - 1)] if node.level > 1 else package
    module = [*base, *(node.module.split(".") if node.module else [])]
    return [".".join(module)] if node.module else [".".join([*module, alias.name]) for alias in node.names]


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_the_rows_above_it(name: str) -> None:
    if name in WORKERS:
        return
    assert name in ORDER, "a new module has no place in the order yet"
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            for other in imported(name, node):
                assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_heavy_packages_are_imported_inside_functions(name: str) -> None:
    for node in ast.parse(modules()[name].read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not LAZY & {n.split(".")[0] for n in names}
