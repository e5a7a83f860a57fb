"""docs/families.md: its tables are those of the code, and each difference that the tests allow has its reason there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from make_family_docs import PAGE, page

from yarn_convert import families

TESTS = Path(__file__).with_name("test_families.py")
TEXT = PAGE.read_text("utf-8")
SECTIONS = {
    name: " ".join(body.split())
    for heads, body in re.findall(r"^### (.+)\n((?:(?!^#).*\n?)*)", TEXT, re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", heads)
}


def listed(name: str) -> Any:
    """A literal of test_families.py, which itself needs torch to be imported."""
    for node in ast.parse(TESTS.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise AssertionError(f"{TESTS.name} has no {name}")


def test_the_tables_are_those_of_the_code() -> None:
    """They are made by `python tools/make_family_docs.py`."""
    assert page(TEXT) == TEXT, "run python tools/make_family_docs.py"


@pytest.mark.parametrize("family", dict.fromkeys(f.model_type for f in families.FAMILIES))
def test_each_family_has_its_section(family: str) -> None:
    assert SECTIONS.get(family, "").strip(), f"docs/families.md has no '### `{family}`'"


@pytest.mark.parametrize(("family", "keys"), listed("DIFFERS").items())
def test_each_key_that_differs_from_llama_cpps_converter_has_its_reason(family: str, keys: set[str]) -> None:
    for key in keys:
        assert f"`{key}`" in SECTIONS[family.partition("/")[0]], key


@pytest.mark.parametrize("key", sorted(listed("ONLY_OURS")))
def test_each_key_that_is_only_ours_is_said(key: str) -> None:
    assert f"`{key}`" in TEXT.partition("## What differs from llama.cpp's converter")[2].partition("\n## ")[0]


@pytest.mark.parametrize(("variant", "word"), listed("REFUSED").items())
def test_each_refusal_is_said(variant: str, word: str) -> None:
    """By the family's section, in the word that the error has, but for the one that says what no row names."""
    section = SECTIONS[variant.partition("/")[0]]
    assert ("mlp_only_layers" if word == "not part of the family" else word) in section
