"""The real model in the runtimes that are too heavy for every test run: `make test-runtimes` installs and runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from yarn_convert.conversion import convert
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.runtimes.environments import python_of
from yarn_convert.validation import check

pytestmark = pytest.mark.usefixtures("real_workers")
HEAVY = ("mlx-lm", "openvino", "vllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    out = tmp_path_factory.mktemp("real") / "smollm2-135m-yarn-32k"
    convert(str(smollm2), Recipe(scale=4.0), out="safetensors", output=out)
    return out


@pytest.mark.parametrize("name", HEAVY)
def test_smollm2_extended_four_times_validates(folder: Path, smollm2: Path, name: str) -> None:
    if python_of(name) is None:
        pytest.skip(f"{name} is not installed: yarn-convert runtimes add {name}")
    result = check(str(folder), ValidateOptions(base=str(smollm2), runtimes=(name,), tokens=600, twin_tokens=16384))
    assert result["verdict"] == "passed", result["reasons"]
    for s in result["studies"]:
        (r,) = s["runtimes"]
        print(
            f"\n{name} {r['version']}, {s['kind']}: {s['tokens']} tokens in {r['seconds']:.1f} s, NMSE {max(w['nmse'] for w in r['windows']):.1e}"
        )
