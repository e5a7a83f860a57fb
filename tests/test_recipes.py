"""Recipes as files: what one reproduces, what is taken for one, and what is refused in a line."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from family_models import make

from yarn_convert import Recipe, convert, recipe
from yarn_convert.asking import hints, split
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion.extension import EXTENDING, extend
from yarn_convert.conversion.recipes import as_mapping, as_text, read_recipe
from yarn_convert.errors import Inexpressible, InputError, Unsupported, UsageError
from yarn_convert.rope import METHODS, table

LONG = 4 * CONTEXT
FAMILIES = ("qwen3", "phi3", "gemma3_text", "deepseek_v2", "gemma4_text")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
PUBLISHED = [*np.linspace(1, 1.4, 14).round(2), 3.07, 3.91, 4.81, 11.31, *np.linspace(11.59, 64.77, 46).round(2)]  # as Llama 2's for 256k


def drawn(rng: random.Random, pairs: int, theta: float) -> Recipe:
    """Any recipe: a method, some of what it takes, and how far."""
    method = rng.choice(EXTENDING)
    row = METHODS[method]
    lists = {name: tuple(float(x) for x in sorted(rng.uniform(1, 8) for _ in range(pairs))) for name in row.lists}
    others: dict[str, Any] = {
        "beta_fast": rng.uniform(8, 40), "beta_slow": rng.uniform(0.1, 1), "attention_factor": rng.uniform(0.8, 1.3), "ramp": "paper",
        "truncate": False, "theta": theta * rng.uniform(2, 50), "clip_pairs": rng.randint(2, pairs),
    }  # fmt: skip
    others |= {"theta": theta} if row.lists else {}
    options = {name: v for name, v in (others | lists).items() if name in row.takes and (name in row.needs or rng.random() < 0.6)}
    if "ramp" in options:
        options.pop("truncate", None)
    far = {} if method == "none" else rng.choice(({"scale": rng.choice((2.0, 2.7, 4.0, 8))}, {"context": rng.choice((128, 333, 512))}))
    return Recipe(method=method, **options, **far)


def everything(out: Path) -> dict[str, bytes]:
    """All that a conversion has left, but for the time in its manifest."""
    found = {p.name: p.read_bytes() for p in sorted(out.parent.rglob("*")) if p.is_file()}
    for name in (n for n in found if n.endswith("yarn_convert.json")):
        found[name] = json.dumps(json.loads(found[name]) | {"created": ""}).encode()
    return found


@pytest.mark.parametrize("name", [*FAMILIES, "llama", "llama3"])
def test_a_recipe_file_reproduces_the_conversion_byte_for_byte(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    """In both formats; its file is YAML or JSON, and what the manifest, the folder or the GGUF says is the same recipe."""
    scaled = {"rope_scaling": LLAMA3} if name == "llama3" else {}
    base = make(name, tmp_path / "base") if name in FAMILIES else make_model("base", config=scaled, head_dim=32)
    rope, rng, written = open_checkpoint(resolve(str(base))).rope, random.Random(name), Counter[str]()
    for i in range(10):
        asked, end = drawn(rng, rope.rotary_dim // 2, rope.theta), rng.choice(("x", "x.gguf"))
        first, again, file = tmp_path / f"{i}a" / end, tmp_path / f"{i}b" / end, tmp_path / f"{i}{rng.choice(('.yaml', '.json'))}"
        first.parent.mkdir(), again.parent.mkdir()
        out = "gguf" if end.endswith("gguf") else "safetensors"
        try:
            convert(str(base), asked, out=out, output=first)
        except (Inexpressible, Unsupported, UsageError):
            continue
        found = recipe(first)
        assert found == recipe(next(first.parent.rglob("*yarn_convert.json"))) == asked
        file.write_text(as_text(found, "of a: test", file.suffix == ".json"))
        convert(str(base), read_recipe(file), out=out, output=again)
        assert everything(first) == everything(again)
        written[asked.method] += 1
    assert len(written) > 2


def test_what_only_the_file_says_reproduces_its_tables(make_model: MakeModel, tmp_path: Path) -> None:
    """Without a manifest: by the recipe in a GGUF to the byte, by a config.json to the table."""
    base = make_model(head_dim=32)
    for i, asked in enumerate(
        [
            Recipe(scale=4, beta_fast=16, attention_factor=1.25), Recipe(scale=4, method="cope"), Recipe(scale=4, method="abf", theta=1e6),
            Recipe(scale=2.5, method="ntk-aware"), Recipe(scale=4, method="explicit", factors=(*range(1, 16), 1e30)),
            Recipe(context=512, method="longrope", long_factor=tuple(1.0 + i for i in range(16))),
        ]
    ):  # fmt: skip
        for end, out in (("x.gguf", "gguf"), ("x", "safetensors")):
            first, again = tmp_path / f"{i}a" / end, tmp_path / f"{i}b" / end
            first.parent.mkdir(exist_ok=True), again.parent.mkdir(exist_ok=True)
            convert(str(base), asked, out=out, output=first)  # type: ignore[arg-type]
            next(p for p in (first / "yarn_convert.json", first.with_name("x.yarn_convert.json")) if p.is_file()).unlink()
            said = recipe(first)
            if end == "x" and asked.method in ("abf", "ntk-aware"):
                assert said == Recipe(method="none"), "nothing but a rope_theta"
                continue
            convert(str(base), said, out=out, output=again)  # type: ignore[arg-type]
            if end == "x.gguf":
                assert first.read_bytes() == again.read_bytes()
            a, b = (open_checkpoint(resolve(str(path))) for path in (first, again))
            np.testing.assert_array_equal(table(a.rope).inv_freq, table(b.rope).inv_freq)
            assert (table(a.rope).multiplier, a.context) == (table(b.rope).multiplier, b.context)


def test_what_others_made_is_a_recipe_by_its_own_word_or_its_table(make_model: MakeModel) -> None:
    """Applied to a plain model it gives their table; a dynamic one has none, and a linear without L is asked for it."""
    plain = open_checkpoint(resolve(str(make_model("plain", head_dim=32))))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT, "beta_fast": 16.0, "attention_factor": 1.1}
    for i, (said, method) in enumerate([(LLAMA3, "explicit"), (yarn, "yarn")]):
        theirs = make_model(f"theirs{i}", head_dim=32, config={"rope_scaling": said, "max_position_embeddings": LONG})
        asked, c = recipe(str(theirs)), open_checkpoint(resolve(str(theirs)))
        e = extend(plain, asked)
        assert (asked.method, e.context) == (method, LONG)
        np.testing.assert_allclose(table(e.rope).inv_freq, table(c.rope).inv_freq, rtol=1e-15)
        assert table(e.rope).multiplier == table(c.rope).multiplier
    dynamic = make_model("dynamic", config={"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}})
    with pytest.raises(Unsupported, match="a table for each length"):
        recipe(str(dynamic))
    linear = make_model("linear", config={"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    with pytest.raises(InputError, match="does not say from which length"):
        recipe(str(linear))


# -- imports ------------------------------------------------------------------------------------------------------------


def forms(factors: list[float]) -> Iterator[tuple[str, str]]:
    """A list as microsoft/LongRoPE writes it: numpy.savetxt's column, its tables by layer, its search's log, and a plain list."""
    yield "result_final.csv", "".join(f"{x:.18e}\n" for x in factors)
    yield "ft_la2_128k.csv", "\n".join([",".join(map(str, factors))] * 3)
    yield "ft_la2_256k.csv", "\n".join([" ".join(map(str, factors))] * 3) + "\n"
    yield "list.json", json.dumps(factors)
    yield "table.json", json.dumps([factors] * 3)
    worse = [1.0] * len(factors)
    yield "log.json", json.dumps({"iteration": 3, "population": [[worse, 9.5], [factors, 4.5], [worse, 7.0]], "history": []})


def test_a_list_of_longrope_is_read_in_all_its_forms(make_model: MakeModel, tmp_path: Path) -> None:
    """The frequencies are those of its own class, 1/(factor·θ^(2i/D)), the temperature √(1 + ln s/ln L) (rope/longrope.py)."""
    c = open_checkpoint(resolve(str(make_model(head_dim=128))))
    factors = [float(x) for x in PUBLISHED]
    for name, text in forms(factors):
        (tmp_path / name).write_text(text)
        e = extend(c, _far(recipe(tmp_path / name)))
        inv_freq, multiplier = table(e.rope)
        np.testing.assert_allclose(inv_freq, [1 / (f * c.rope.theta ** (2 * i / 128)) for i, f in enumerate(factors)], rtol=1e-15)
        assert multiplier == pytest.approx(math.sqrt(1 + math.log(4) / math.log(CONTEXT)), rel=1e-15)
        assert e.rope.method == "explicit"
        assert not e.notes


def _far(asked: Recipe) -> Recipe:
    from dataclasses import replace

    return replace(asked, context=LONG)


def test_what_is_odd_in_a_list_is_said_or_refused(make_model: MakeModel, tmp_path: Path) -> None:
    c = open_checkpoint(resolve(str(make_model(head_dim=16))))
    notes = extend(c, Recipe(method="explicit", context=LONG, factors=(1.0, 0.5, 3.0, 2.0, 4.0, 5.0, 6.0, 7.0))).notes
    assert notes == (
        "factors does not rise from pair to pair: it falls after 0 and others",
        "factors is below 1 for 1 of 8 pairs, which turn faster than in the base",
    )
    for factors, why in [
        ((1.0,) * 7, "factors has 7 numbers, and 8 pairs of a head turn"),
        ((1.0,) * 9, "factors has 9 numbers"),
        ((1.0,) * 7 + (0.0,), "finite numbers above zero"),
        ((1e30,) + (1.0,) * 7, "not the slowest"),
    ]:
        with pytest.raises((UsageError, Unsupported), match=why):
            extend(c, Recipe(method="explicit", context=LONG, factors=factors))
    with pytest.raises(UsageError, match="of a rope_theta of 500,000, and the base's is 10,000"):
        extend(c, Recipe(method="explicit", context=LONG, factors=(1.0,) * 8, theta=5e5))
    with pytest.raises(UsageError, match="let 0 or 1 pairs stand still"):
        extend(c, Recipe(method="longrope", context=LONG, short_factor=(1.0,) * 8, long_factor=(2.0,) * 7 + (1e30,)))
    rows = tmp_path / "layers.csv"
    rows.write_text("1,2,3\n1,2,4\n")
    with pytest.raises(InputError, match="row 2 is not as the first"):
        recipe(rows)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_config_with_lists_gives_both_and_its_temperature(make_model: MakeModel, tmp_path: Path, key: str) -> None:
    """As transformers computes that config.json, in both lengths; equal lists are one table."""
    pytest.importorskip("transformers")
    from test_rope import transformers_table

    c = open_checkpoint(resolve(str(make_model(head_dim=32))))
    short, long = [1.0 + i / 50 for i in range(16)], [1.0 + i for i in range(16)]
    theirs = {"type": "longrope", "short_factor": short, "long_factor": long}
    lengths = {"max_position_embeddings": LONG, "original_max_position_embeddings": CONTEXT, "rope_theta": 10000.0}
    file = tmp_path / "phi.json"
    file.write_text(json.dumps({"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 2, key: theirs} | lengths))
    e = extend(c, recipe(file))
    assert (e.rope.method, e.context, e.scale) == ("longrope", LONG, 4.0)
    for length in (CONTEXT, LONG):
        keys = {"short_factor": short, "long_factor": long, "factor": 4.0}
        inv_freq, multiplier = transformers_table("longrope", 1e4, CONTEXT, 32, length, LONG, **keys)
        np.testing.assert_allclose(table(e.rope, length).inv_freq, inv_freq, rtol=1e-6)
        assert table(e.rope, length).multiplier == pytest.approx(multiplier, rel=1e-9)
    file.write_text(json.dumps({"rope_type": "longrope", "short_factor": long, "long_factor": long, "factor": 4.0, "attention_factor": 1.5,
                                "original_max_position_embeddings": CONTEXT}))  # fmt: skip
    e = extend(c, recipe(file))
    assert (e.rope.method, e.context, table(e.rope).multiplier) == ("explicit", LONG, 1.5)
    file.write_text(json.dumps({"model_type": "phi3", "rope_scaling": theirs}))
    with pytest.raises(InputError, match="does not say original_max_position_embeddings"):
        recipe(file)


# -- at the command line --------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_options_beside_a_recipe_win_and_another_method_is_refused(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where what is given is what would be so without it."""
    base, file, out = make_model(), tmp_path / "r.yaml", tmp_path / "out.gguf"
    file.write_text("method: yarn\ncontext: 512\nramp: paper\nbeta_slow: 2\n")
    for words, expected in [
        ((), Recipe(context=512, ramp="paper", beta_slow=2.0)),
        (("--ramp", "index"), Recipe(context=512, beta_slow=2.0)),
        (("--scale", "4", "--beta-slow", "1"), Recipe(scale=4.0, ramp="paper", beta_slow=1.0)),
        (("--method", "yarn", "--context", "1k"), Recipe(context=1024, ramp="paper", beta_slow=2.0)),
    ]:
        code, _, err = run(capsys, base, "--recipe", file, "--out", "gguf", "-o", out, "--force", *words)
        assert code == 0, err
        assert recipe(out) == expected
    code, printed, _ = run(capsys, "recipe", out)
    assert (code, printed) == (0, "method: yarn\ncontext: 1024\nbeta_slow: 2.0\nramp: paper\nnote: of out.gguf\n")
    assert json.loads(run(capsys, "recipe", out, "--json")[1]) == as_mapping(recipe(out)) | {"note": "of out.gguf"}
    code, _, err = run(capsys, base, "--like", out, "--out", "gguf", "-o", tmp_path / "like.gguf")
    assert code == 0, err
    assert recipe(tmp_path / "like.gguf") == recipe(out)
    for words, why in [
        (("--recipe", file, "--method", "linear"), "--method linear is given, and r.yaml says yarn"),
        (("--recipe", file, "--like", out), "--recipe and --like both say"),
        (("--recipe", out), "is a model, not a recipe's file"),
        (("--recipe", base), "is a model, not a recipe's file"),
        (("--recipe", tmp_path / "none.yaml"), "cannot be read: No such file"),
        (("--like", base), "scales nothing: there is no recipe to take"),
    ]:
        code, _, err = run(capsys, base, *words, "--out", "gguf", "-o", tmp_path / "no.gguf")
        assert code == 1
        assert why in err.splitlines()[0]
        assert len(err.splitlines()) == 2
        assert not (tmp_path / "no.gguf").exists()
    for words, why in [
        (("validate", out, "--recipe", file, "--like", out), "--recipe and --like both say"),
        (("validate", out, "--recipe", file, "--method", "linear"), "--method linear is given, and r.yaml says yarn"),
        (("finetune", base, "--recipe", file, "--method", "linear"), "--method linear is given, and r.yaml says yarn"),
    ]:
        code, _, err = run(capsys, *words)
        assert (code, why in err) == (1, True)


HOSTILE = {
    "empty": ("", "it is empty"),
    "text": ("hello", "it is 'hello', not a mapping"),
    "list": ("- yarn\n", "is no finite number"),
    "unknown": ("methd: yarn", "unknown key 'methd'"),
    "alias": ("method: &a yarn\nramp: *a\n", "an anchor, an alias or a tag"),
    "bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "an anchor, an alias or a tag"),
    "tag": ("method: !!python/object/apply:os.system ['true']", "an anchor, an alias or a tag"),
    "nested": ("factors: " + "[" * 5000, "nested more than 8 deep"),
    "nested JSON": ('{"factors": ' + "[" * 5000, "nested more than"),
    "twice": ("scale: 4\nscale: 8\n", "duplicate key 'scale'"),
    "twice in JSON": ('{"scale": 4, "scale": 8}', "duplicate key 'scale'"),
    "two": ("scale: 4\n---\nscale: 8\n", "several documents"),
    "not a number": ("scale: .nan", "scale is nan, not a finite number"),
    "infinite": ('{"scale": Infinity}', "scale is inf, not a finite number"),
    "large": ("scale: 1" + "0" * 400, "not a finite number"),
    "larger": ("context: 1" + "0" * 5000, "Exceeds the limit"),
    "nan in a list": ("method: explicit\nfactors: [1, .inf]", "factors is inf, not a finite number"),
    "a text in a list": ("method: explicit\nfactors: [1, x]", "factors[1] is 'x', not a number"),
    "an object": ("factors: {a: 1}", "factors is an object"),
    "a flag": ("scale: true", "scale is True, not a number"),
    "a method that is none": ("method: [yarn]", "method is a list, not a text"),
    "a text": ("scale: fast", "scale is 'fast', not a number"),
    "tokens": ("context: 3x", "is no number of tokens"),
    "a choice": ("ramp: papr", "ramp is 'papr'"),
    "whole": ("clip_pairs: 2.5", "clip_pairs is 2.5, not an integer"),
    "one pair": ("clip_pairs: 1", "clip_pairs is 1, and 2 is the least"),
    "control": ("method: \x1b[31m", "special characters are not allowed"),
    "log": ('{"population": [[1, 2]]}', "its population has no factors"),
    "lists of texts": ('[["a"]]', "is no finite number"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path: Path, kind: str) -> None:
    text, why = HOSTILE[kind]
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        recipe(file)
    assert why in raised.value.message
    assert "\n" not in raised.value.message + raised.value.hint
    assert raised.value.hint


def test_what_lies_elsewhere_or_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outside, link, large, binary = tmp_path / "out.yaml", tmp_path / "in/link.yaml", tmp_path / "large.yaml", tmp_path / "b.yaml"
    outside.write_text("scale: 4\n")
    link.symlink_to(outside)
    large.write_bytes(b"#" * (17 << 20))
    binary.write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, why in [(link, "leads out of"), (large, "more than"), (binary, "not UTF-8"), (tmp_path / "pipe.yaml", "is a pipe")]:
        with pytest.raises(InputError, match=why):
            read_recipe(path)
    large.write_text("note: " + "x" * (1 << 20) + "\n")
    with pytest.raises(InputError, match="at most 1,048,576 are read"):
        read_recipe(large)
    assert read_recipe(outside) == Recipe(scale=4.0)


@pytest.mark.parametrize("field", [f.name for f in fields(Recipe)])
def test_a_file_has_every_field_of_a_recipe(tmp_path: Path, field: str) -> None:
    """Whatever is added to `options.Recipe`: each field that is not as usual is written, and read again as it was."""
    kind, usual = split(hints(Recipe)[field])[0], getattr(Recipe(), field)
    values: dict[Any, Any] = {float: 4.5, int: 4, str: "abf", bool: not usual}
    choices = [x for x in get_args(kind) if x != usual] if get_origin(kind) is Literal else []
    asked = Recipe(**{field: choices[0] if choices else values.get(kind, (1.5, 2.5))})
    for suffix in ("yaml", "json"):
        file = tmp_path / f"r.{suffix}"
        file.write_text(as_text(asked, as_json=suffix == "json"))
        assert read_recipe(file) == asked != Recipe()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("theta: 1e6", 1e6), ("theta: 1_000", None), ("theta: 010", 10.0), ("theta: 1:30", None), ("theta: +1.5E+3", 1500.0), ('theta: "7"', None),
    ],
)  # fmt: skip
def test_a_number_is_what_json_or_yaml_1_2_has_for_one(tmp_path: Path, text: str, expected: float | None) -> None:
    """PyYAML's own loader takes 1e6 for a text, 010 for 8 and 1:30 for 90."""
    file = tmp_path / "r.yml"
    file.write_text(text)
    if expected is None:
        with pytest.raises(InputError, match="not a number"):
            recipe(file)
    else:
        assert recipe(file).theta == expected
