"""A method is one row of `rope.METHODS`: what the other modules ask of it they ask there, and none of them keeps a list of names."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from yarn_convert.conversion.extension import EXTENDING
from yarn_convert.dialects import GGUF_WRITERS, HF_METHODS, HF_WRITERS
from yarn_convert.options import Recipe
from yarn_convert.readers import rows
from yarn_convert.rope import METHODS, methods

PACKAGE = Path(__file__).parents[1] / "yarn_convert"
FUNCTIONS = [
    f for _, f in inspect.getmembers(methods, inspect.isfunction) if list(inspect.signature(f).parameters) == ["omega", "rope", "length"]
]
ALLOWED = {
    "dialects.config_json.HF_WRITERS",  # functions of the dialects, by the method in whose words they write; the row says which that is
    "dialects.gguf.GGUF_WRITERS",
    "families.neox.PHI3_TYPES",  # transformers' words, as its Phi-3 takes them
}
OTHERS = "readers."  # what other programs make of transformers' words, by their sources; a plan compares it with the methods' own tables


def test_every_function_of_a_method_has_one_row() -> None:
    assert len(FUNCTIONS) == len(METHODS)
    assert {row.function for row in METHODS.values()} == set(FUNCTIONS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_whole(name: str) -> None:
    row = METHODS[name]
    assert row.summary, "the command 'methods' has nothing to say of it"
    assert row.when.endswith("."), "nor when one would choose it"
    assert set(row.takes) <= {f.name for f in fields(Recipe)}
    assert not (row.spans and row.baked_as), "a dynamic one takes its factor from the length of the text"
    assert not (row.spelled_as and (row.hf or row.gguf)), "it has words of its own"
    if row.baked_as:
        static = METHODS[row.baked_as]
        assert static.static
        assert static.takes == row.takes
    if row.spelled_as:
        assert METHODS[row.spelled_as].hf
        assert METHODS[row.spelled_as].gguf
    assert (name in EXTENDING) == (row.extends or bool(row.needs) or name == "none")
    assert set(row.needs) <= set(row.takes)
    assert set(row.lists) <= set(row.takes)
    assert not (row.reaches and row.spans), "either its table has L'/L in it or not"


def test_every_word_of_a_file_is_read_and_written() -> None:
    """longrope is written as its two lists."""
    words = [word for row in METHODS.values() for word in row.hf]
    assert len(words) == len(set(words)) == len(HF_METHODS)
    assert {row.hf[0] for row in METHODS.values() if row.hf} == set(rows.METHODS), "transformers knows another"
    assert HF_WRITERS.keys() | {"longrope"} == {name for name, row in METHODS.items() if row.hf}
    assert GGUF_WRITERS.keys() == {name for name, row in METHODS.items() if row.gguf}


# -- no other list ------------------------------------------------------------------------------------------------------


def named(node: ast.AST | None) -> set[str]:
    """The methods that a literal names, however deep its parts are literals too; or what is compared with `==` in an `or`."""
    if isinstance(node, ast.Constant):
        return {node.value} & METHODS.keys() if isinstance(node.value, str) else set()
    if isinstance(node, ast.Compare):
        return set().union(*map(named, (node.left, *node.comparators))) if isinstance(node.ops[0], ast.Eq) else set()
    parts: list[ast.expr | None] = []
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        parts = [*node.elts]
    elif isinstance(node, ast.Dict):
        parts = [*node.keys, *node.values]
    elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        parts = [*node.values]
    return set().union(*map(named, parts))


def lists(module: str, tree: ast.Module) -> Iterator[str]:
    """Where a module has more than one method in a literal: its name and that of the function or constant."""
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", statement)
        name = getattr(target, "name", getattr(target, "id", ""))
        if any(len(named(node)) > 1 for node in ast.walk(statement)):
            yield f"{module}.{name}"


@pytest.mark.parametrize(
    "text",
    [
        'A = ("yarn", "linear")', 'A = {"yarn": 1, "linear": 2}', 'A = (("yarn", 1), ("linear", 2))', 'A: set = {"yarn", *B, "linear"}',
        'def A(x):\n    return x.method in ("yarn", "linear")', 'def A(x):\n    return x.method == "yarn" or x.method == "linear"',
        'A = {"takes": ["yarn"], "other": ["linear"]}',
    ],
)  # fmt: skip
def test_a_list_of_methods_is_seen(text: str) -> None:
    assert list(lists("m", ast.parse(text))) == ["m.A"]


@pytest.mark.parametrize("text", ['A = ("yarn", "yes")', 'A = b if c == "yarn" else "linear"', 'A = "yarn, linear"', "A = METHODS"])
def test_one_method_is_no_list(text: str) -> None:
    assert not list(lists("m", ast.parse(text)))


def test_no_other_module_has_a_list_of_methods() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if not module.startswith("rope") and not module.startswith(OTHERS):
            found |= set(lists(module, ast.parse(path.read_text("utf-8"))))
    assert found == ALLOWED
