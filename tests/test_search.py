"""The search for a recipe: its space, its optimizer, who judges, and a recipe that is no better is not advised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.evaluation.space import PARTS, PLAIN, Candidate, Start, extended
from yarn_convert.options import Recipe
from yarn_convert.rope import Rope, geometric, table
from yarn_convert.rope.methods import correction_range

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("cmaes")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models lose more by threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start_of(folder: Path, recipe: Recipe, reach: float) -> tuple[Any, Start]:
    c = open_checkpoint(resolve(str(folder)))
    candidate = Candidate(recipe)
    return c, Start(candidate, extended(c, candidate), reach)


SMOLLM = {"rope_theta": 100000.0, "max_position_embeddings": 8192}  # D = 64, as the real one


@pytest.fixture
def real_like(make_model: MakeModel) -> Path:
    return make_model(config={**SMOLLM, "head_dim": 64, "hidden_size": 64}, heads=1, kv_heads=1, head_dim=64)


# -- the space --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [name for name in PARTS if PARTS[name].begins != "plain"])
def test_a_space_begins_where_it_was_told_to(real_like: Path, part: str) -> None:
    """At 0 every space has the table of its start, whatever it spells it as; a multiplier has four digits, a factor six."""
    c, at = start_of(real_like, Recipe(context=20000, beta_fast=20.0, attention_factor=1.02), 16384 / 8192)
    found, wanted = table(extended(c, PARTS[part].space(at).start).rope), table(at.rope)
    np.testing.assert_allclose(found.inv_freq, wanted.inv_freq, rtol=1e-5)
    assert found.multiplier == pytest.approx(wanted.multiplier, abs=1e-4)


def test_steps_of_a_method_are_its_own_numbers(real_like: Path) -> None:
    c, at = start_of(real_like, Recipe(context=16384), 2.0)
    make = PARTS["factor"].space(at).make
    e = extended(c, make(np.array([-1.0, 2.0])))
    assert e.rope.number("attention_factor") == pytest.approx(0.1 * math.log(2) + 1 - 0.03, abs=1e-4)
    assert e.context == round(8192 * 2 * math.exp(0.3)) == 8192 * e.rope.number("factor")
    assert extended(c, make(np.array([0.0, -3.0]))).context == 16384, "a file says the context, which is to be reached"
    for method in PLAIN:
        c, at = start_of(real_like, Recipe(method=method, context=16384), 2.0)
        assert extended(c, PARTS["method"].space(at).make(np.array([1.0]))).rope.number("factor") == pytest.approx(
            2 * math.exp(0.15), rel=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(begin=st.floats(-6, 8), end=st.floats(-9, 7))
def test_betas_say_the_very_pairs_that_were_meant(begin: float, end: float) -> None:
    rope = Rope("yarn", 100000.0, 64, 8192, {"factor": 2.0})
    omega = geometric(100000.0, 64)
    extension: Any = type("E", (), {"rope": rope})()
    at = Start(Candidate(Recipe(context=16384)), extension, 2.0)
    low, high = correction_range(omega, rope)
    recipe = PARTS["betas"].space(at).make(np.array([0.0, 0.0, begin, end])).recipe
    asked = (max(0, round(low + 2 * begin)), max(round(high + 2 * end), round(low + 2 * begin) + 1, 1))
    params = {"factor": 2.0} | ({} if recipe.beta_fast is None else {"beta_fast": recipe.beta_fast, "beta_slow": recipe.beta_slow})
    assert correction_range(omega, replace(rope, params=params)) == asked
