"""What cannot pass is said before anything runs, and it is what the verdict says then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.conversion import convert
from yarn_convert.hearing import hearing
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.validation import check

SHORT = {"twin_tokens": CONTEXT, "tokens": CONTEXT}


@pytest.fixture
def out(make_model: MakeModel, tmp_path: Path) -> Path:
    convert(str(make_model()), Recipe(scale=4), output=tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"real": False}, ""),
        ({"real": False, "twin_tokens": CONTEXT}, "computed nothing beyond the original 64 tokens: --twin-tokens 128"),
        ({"twin": False, "tokens": CONTEXT}, "--tokens 128, or the twin"),
        (SHORT, "--tokens 128, or --twin-tokens 128"),
        (SHORT | {"tokens": 4 * CONTEXT}, ""),
    ],
    ids=["long", "short twin", "short text", "both short", "one long"],
)
def test_what_is_told_is_what_the_verdict_says(out: Path, asked: dict[str, Any], says: str) -> None:
    pytest.importorskip("accelerate")
    said: list[Any] = []
    with hearing(lambda call, what, fraction, more: said.append((what, fraction))):
        result = check(str(out), ValidateOptions(runtimes=("transformers",), **asked), said.append)
    told = [line for line in said if isinstance(line, str)]
    assert [line.removeprefix("foreseen  this cannot pass: ") for line in told] == (result["reasons"] if says else [])
    assert result["verdict"] == ("inconclusive" if says else "passed"), result["reasons"]
    assert says in " ".join(told)
    began = next(i for i, what in enumerate(said) if isinstance(what, tuple) and ("twin" in what[0] or "real" in what[0]))
    assert all(said.index(line) < began for line in told), "before anything is run"


def test_a_recipe_that_fails_is_said_before_it_is_run(out: Path) -> None:
    pytest.importorskip("accelerate")
    config = json.loads((out / "config.json").read_text())
    for key in ("rope_scaling", "rope_parameters"):
        config[key]["factor"] = 2.0
    (out / "config.json").write_text(json.dumps(config))
    told: list[str] = []
    result = check(str(out), ValidateOptions(runtimes=("transformers",), real=False), tell=told.append)
    assert result["verdict"] == "failed"
    assert told and {line.removeprefix("foreseen  this cannot pass: ") for line in told} <= set(result["reasons"])
