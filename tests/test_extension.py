"""With a base, what is meant follows from it: an extension of that very model, or a failure that names what differs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT, MakeModel
from family_models import make
from test_validate import edited_manifest, extended, opened, rewritten, run

from yarn_convert.checkpoint.manifest import read_manifest
from yarn_convert.conversion.intention import check_recipe, intention_of
from yarn_convert.errors import UsageError
from yarn_convert.formats.gguf_file import Value
from yarn_convert.options import ValidateOptions
from yarn_convert.validation.extension import Lineage, check_base
from yarn_convert.validation.run import _lineage

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LONG = 4 * CONTEXT


def said(folder: Path, name: str = "x", **changes: Any) -> Path:
    """A copy of a model whose config.json says something else, as people edit it by hand."""
    out = folder.with_name(name)
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))
    return out


def without_record(out: Path) -> Path:
    """An output as another tool might have made it: neither a manifest nor a recipe in the file."""
    if out.suffix != ".gguf":
        (out / "yarn_convert.json").unlink()
        return out
    out.with_name(f"{out.stem}.yarn_convert.json").unlink()
    return rewritten(out, {"yarn_convert.recipe": None})


def of(out: Path, base: Path) -> Lineage:
    return _lineage(opened(out), opened(base), read_manifest(out), ValidateOptions())


# -- what convert makes is an extension, recorded or not --------------------------------------------------------------

BASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "yarn": {"rope_scaling": {**YARN, "factor": 2.0}, "max_position_embeddings": 2 * CONTEXT},
    "llama3": {"rope_scaling": LLAMA3},
    "linear": {"rope_scaling": LINEAR, "max_position_embeddings": 2 * CONTEXT, "original_max_position_embeddings": CONTEXT},
}
METHODS: list[dict[str, Any]] = [
    {"method": "none", "scale": None}, {}, {"method": "linear"}, {"method": "ntk-aware"}, {"method": "ntk-by-parts"},
    {"beta_fast": 16.0, "attention_factor": 1.25}, {"ramp": "paper"}, {"truncate": False}, {"method": "dynamic-ntk"}, {"method": "dynamic-yarn"},
]  # fmt: skip


@pytest.mark.parametrize(("base", "name"), [("plain", "out"), *((base, "out.gguf") for base in BASES)])
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_every_conversion_is_an_extension_of_its_base(
    make_model: MakeModel, tmp_path: Path, base: str, options: dict[str, Any], name: str
) -> None:
    model = make_model(config=BASES[base], head_dim=32)
    scale = 8.0 if base == "linear" else 4.0
    out = extended(model, tmp_path / name, **({"scale": scale} | options))
    found = of(out, model)
    assert (found.why, found.doubt) == ("", "")
    bare = of(without_record(out), model)
    usual = options.get("ramp") or not {"beta_fast"} & options.keys()
    assert bare.why == ""
    assert not bare.doubt or (not usual and name == "out.gguf") or base in ("llama3", "linear"), bare.doubt
    assert found.meant.rope.original_context == opened(model).rope.original_context or base in ("llama3", "linear")


def test_a_lost_name_is_found_again_by_what_the_base_gives(make_model: MakeModel, tmp_path: Path) -> None:
    """The twin's wrong recipes, and what counts as beyond the window, are then those of the method."""
    model = make_model(head_dim=32)
    for i, (options, method) in enumerate(
        [
            ({"method": "ntk-aware"}, "ntk-aware"),
            ({"ramp": "paper"}, "yarn"),
            ({"method": "ntk-by-parts", "truncate": False}, "ntk-by-parts"),
            ({"method": "linear"}, "linear"),
        ]
    ):
        found = of(without_record(extended(model, tmp_path / f"{i}.gguf", **options)), model)
        assert (found.meant.rope.method, found.meant.rope.original_context) == (method, CONTEXT)
        assert found.meant.rope.number("factor") == 4.0


LISTED = tuple(1.0 + i / 2 for i in range(16))


def test_a_table_that_no_factor_enters_is_an_extension_where_it_is_on_record(make_model: MakeModel, tmp_path: Path) -> None:
    """A file alone tells cope's table from any other's, of lists nobody but the file, and of another θ nothing that it is meant."""
    model = make_model(head_dim=32)
    for i, (options, method, why, doubt) in enumerate(
        [
            ({"method": "cope"}, "cope", "", ""),
            ({"method": "cope", "clip_pairs": 5}, "explicit", "", "frequency factors"),
            ({"method": "explicit", "factors": LISTED}, "explicit", "", "frequency factors"),
            ({"method": "longrope", "long_factor": LISTED}, "explicit", "", "frequency factors"),
            ({"method": "abf", "theta": 5e5}, "none", "rope_theta is 500,000, the base's 10,000", ""),
        ]
    ):
        out = extended(model, tmp_path / f"{i}.gguf", **options)
        found = of(out, model)
        assert (found.why, found.doubt) == ("", "")
        assert found.meant.rope.method in (options["method"], "explicit")
        bare = of(without_record(out), model)
        assert bare.meant.rope.method == method
        assert why in bare.why
        assert doubt in bare.doubt
        assert bool(bare.why) == bool(why)
        assert bool(bare.doubt) == bool(doubt)


# -- negative controls: each is claimed by the file itself and was believed once ---------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"max_position_embeddings": LONG}, "it serves 256 tokens, the base 64, and scales nothing"),
        ({"max_position_embeddings": CONTEXT // 2}, "it serves 32 tokens, the base 64"),
        ({"rope_theta": 500.0}, "its rope_theta is 500, the base's 10,000"),
        ({"rope_theta": 40000.0, "max_position_embeddings": LONG}, "its rope_theta is 40,000, the base's 10,000; ntk-aware over 256 tokens"),
        ({"rope_theta": 5e5, "rope_scaling": YARN, "max_position_embeddings": LONG}, "its rope_theta is 500,000, the base's 10,000"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": LONG}, "max_position_embeddings": LONG}, "counts from 256 tokens, the base from 64"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 32}, "max_position_embeddings": 128}, "counts from 32 tokens, the base from 64"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 128}, "max_position_embeddings": LONG}, "counts from 128 tokens, the base from 64"),
        ({"rope_scaling": YARN, "max_position_embeddings": 8 * CONTEXT}, "its factor is 4, and its 512 tokens are 8 times the base's 64"),
        ({"rope_scaling": YARN}, "its factor is 4, and its 64 tokens are 1 times the base's 64"),
        ({"rope_scaling": LLAMA3, "max_position_embeddings": LONG}, "counts from 32 tokens, the base from 64"),
        ({"rope_scaling": YARN, "max_position_embeddings": LONG, "partial_rotary_factor": 0.5}, "it rotates 8 dimensions of a head, the base 16"),
    ],
    ids=lambda v: str(v)[:60],
)  # fmt: skip
def test_what_is_no_extension_says_what_differs(make_model: MakeModel, changes: dict[str, Any], why: str) -> None:
    model = make_model()
    found = of(said(model, **changes), model)
    assert why in found.why


def test_a_length_that_changes_no_table_is_judged_too(make_model: MakeModel, tmp_path: Path) -> None:
    """With heads so small both ramps end at the same pair; but L·s is what some runtimes serve."""
    out = extended(make_model(), tmp_path / "out.gguf")
    rewritten(out, {"llama.rope.scaling.original_context_length": Value("u32", 2 * CONTEXT)})
    c = opened(out)
    assert check_recipe(c, intention_of(c, None, None, None))["why"] == "it counts from 128 tokens instead of 64"


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_a_length_that_the_file_does_not_say_is_the_bases(make_model: MakeModel, kind: str) -> None:
    """Alone it would be asked for; then the readers have to serve what it makes of the factor. Dynamic says it, and so fails."""
    model = make_model()
    scaling = {"rope_type": kind, "factor": 4.0}
    result = run(said(model, "right", rope_scaling=scaling, max_position_embeddings=LONG), base=str(model), real=False)
    assert kind == "dynamic" or (result["intention"]["recipe"]["original_context"], result["intention"]["context"]) == (CONTEXT, LONG)
    assert result["recipe"]["verdict"] == ("passed" if kind == "linear" else "failed")
    wrong = said(model, "wrong", rope_scaling=scaling, max_position_embeddings=2 * LONG)
    assert run(wrong, base=str(model), real=False)["recipe"]["verdict"] == "failed"


@pytest.mark.parametrize(
    ("base", "changes", "why"),
    [
        ("llama3", {"rope_scaling": None}, "the base's own llama3 scaling is gone"),
        ("llama3", {"max_position_embeddings": LONG}, "it serves 256 tokens, the base 64, and scales nothing more"),
        ("llama3", {"rope_scaling": {**YARN}, "max_position_embeddings": LONG}, "the base's own llama3 scaling is gone"),
        ("yarn", {"rope_scaling": None}, "the base's own yarn scaling is gone"),
        ("yarn", {"max_position_embeddings": LONG}, "it serves 256 tokens, the base 128, and scales nothing more"),
        ("yarn", {"rope_scaling": {**YARN, "original_max_position_embeddings": 128}, "max_position_embeddings": 512}, "from 128 tokens, the base from 64"),
    ],
    ids=str,
)  # fmt: skip
def test_the_scaling_of_a_base_is_part_of_it(make_model: MakeModel, base: str, changes: dict[str, Any], why: str) -> None:
    model = make_model(config=BASES[base])
    assert why in of(said(model, **changes), model).why


def test_a_base_that_switches_lists_keeps_both(tmp_path: Path) -> None:
    model = make("phi3/longrope", tmp_path / "base")
    out = without_record(extended(model, tmp_path / "out", scale=None, method="none"))
    assert of(out, model) == of(model, model), "as it is"
    config = json.loads((out / "config.json").read_text())
    for key in ("rope_scaling", "rope_parameters"):
        config[key]["short_factor"] = [1.0 + 0.2 * i for i in range(8)]
    (out / "config.json").write_text(json.dumps(config))
    found = of(out, model)
    assert found.why or "nothing but the file says what its longrope scaling should be" in found.doubt


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_frequencies_that_are_no_methods_prove_nothing(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    """Neither passed nor failed: nobody has said what they should be; --like and --scale do."""
    model = make_model(head_dim=32)
    out = without_record(extended(model, tmp_path / name, attention_factor=1.3, ramp="paper"))
    result = run(out, base=str(model), real=False)
    assert (result["verdict"], result["recipe"]["verdict"]) == ("inconclusive", "passed")
    assert any("nothing but the file says what its frequency factors should be: --like" in reason for reason in result["reasons"])
    meant = extended(model, tmp_path / "meant", attention_factor=1.3, ramp="paper")
    assert run(out, base=str(model), like=str(meant), real=False)["verdict"] == "passed"


@pytest.mark.parametrize(
    ("recipe", "context", "why"),
    [
        ({"rope_theta": 20000.0}, LONG, "its rope_theta is 20,000, the base's 10,000"),
        ({"original_context": LONG}, 4 * LONG, "counts from 256 tokens, the base from 64"),
        ({"original_context": 32, "params": {"factor": 8.0}}, LONG, "counts from 32 tokens, the base from 64"),
        ({"params": {"factor": 2.0}}, LONG, "its factor is 2"),
        ({}, 2 * LONG, "its factor is 4"),
    ],
    ids=str,
)
def test_a_manifest_cannot_claim_another_base(
    make_model: MakeModel, tmp_path: Path, recipe: dict[str, Any], context: int, why: str
) -> None:
    model = make_model()
    out = extended(model, tmp_path / "out")
    old = json.loads((out / "yarn_convert.json").read_text())["recipe"]
    edited_manifest(out, recipe={**old, **recipe}, context=context)
    assert why in of(out, model).why


def test_an_original_context_that_was_given_stands_in_the_manifest(make_model: MakeModel, tmp_path: Path) -> None:
    """It may be less than the base's files say, as of a model that was trained on less; never more."""
    model = make_model()
    less = extended(model, tmp_path / "less", original_context=32, scale=8.0)
    assert of(less, model).why == ""
    more = extended(model, tmp_path / "more", original_context=128, scale=2.0)
    assert "counts from 128 tokens, the base from 64" in of(more, model).why
    assert "counts from 32 tokens, the base from 64" in of(without_record(less), model).why


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_failure_is_the_recipes_and_the_users_word_stands_above_it(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    model = make_model()
    out = without_record(extended(model, tmp_path / name, scale=None, method="none"))
    if name == "out":
        path = out / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": LONG}))
    else:
        rewritten(out, {"llama.context_length": Value("u32", LONG)})
    result = run(out, base=str(model), real=False)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", "base")
    assert result["reasons"][0] == "recipe: it serves 256 tokens, the base 64, and scales nothing"
    assert run(out, like=str(out), base=str(model), real=False)["recipe"]["verdict"] == "passed"


# -- what is no base --------------------------------------------------------------------------------------------------


def test_a_base_that_is_the_model_itself_is_none(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    for name in ("out", "out.gguf"):
        out = extended(model, tmp_path / name)
        with pytest.raises(UsageError, match=r"is an output of yarn-convert|is the model itself"):
            run(out, base=str(out))
        bare = without_record(out)
        if name == "out":
            copy, link = Path(shutil.copytree(bare, tmp_path / "copy")), tmp_path / "link"
            config = copy / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text())))  # other white space
        else:
            copy, link = Path(shutil.copy(bare, tmp_path / "copy.gguf")), tmp_path / "link.gguf"
            os.link(bare, tmp_path / "hard.gguf")
        link.symlink_to(bare)
        for base in (bare, copy, link, *tmp_path.glob("hard.gguf")):
            with pytest.raises(UsageError, match="is the model itself"):
                run(bare, base=str(base))


def test_an_output_is_no_base(make_model: MakeModel, tmp_path: Path) -> None:
    """What it claims is what is to be proved."""
    model = make_model()
    first, second = (extended(model, tmp_path / name) for name in ("first", "second.gguf"))
    for base in (first, second):
        with pytest.raises(UsageError, match="is an output of yarn-convert itself, extended by yarn"):
            run(second if base == first else first, base=str(base))
    shutil.copytree(first, tmp_path / "stripped")
    (tmp_path / "stripped" / "yarn_convert.json").unlink()
    with pytest.raises(UsageError, match="is the model itself"):
        run(first, base=str(tmp_path / "stripped"))


def test_a_base_in_another_format_is_one(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(config=BASES["yarn"])
    base = extended(model, tmp_path / "base.gguf", method="none", scale=None)
    check_base(opened(model), opened(base), None, read_manifest(base))
    result = run(extended(model, tmp_path / "out", scale=8.0), base=str(base), real=False)
    assert (result["verdict"], result["recipe"]["why"]) == ("passed", "")
