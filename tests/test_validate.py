"""Validation: a sound conversion passes, and every fault that this project exists against fails with its name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, make_model, split_options, wide
from family_models import make
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from yarn_convert import runtimes
from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.compute.reference import Reference
from yarn_convert.compute.tokens import text_ids
from yarn_convert.conversion import convert
from yarn_convert.conversion.intention import claimed, intention_of, survey
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import FormatError, InputError, UsageError, YarnConvertError
from yarn_convert.formats.gguf_file import Value, encode_header, open_gguf
from yarn_convert.formats.tensors import Tensor
from yarn_convert.hearing import hearing
from yarn_convert.options import Recipe, RepairOptions, ValidateOptions, seconds
from yarn_convert.readers import read_config
from yarn_convert.readers import read_gguf as read_keys
from yarn_convert.rope import Rope, table
from yarn_convert.validation import check, judging, lines, predicting, study, twin
from yarn_convert.validation.judging import Tolerance, compare
from yarn_convert.validation.report import html_report
from yarn_convert.validation.result import validated
from yarn_convert.validation.study import disjoint
from yarn_convert.validation.text import unchecked

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
QUICK = ValidateOptions(tokens=4 * CONTEXT, twin_tokens=4 * CONTEXT)


def extended(model: Path, out: Path, **options: Any) -> Path:
    convert(
        str(model), **split_options(**{"scale": 4.0, "output": out, "out": "gguf" if out.suffix == ".gguf" else "safetensors", **options})
    )
    return out


def opened(path: Path | str) -> Checkpoint:
    return open_checkpoint(resolve(str(path)))


def run(model: Path, **settings: Any) -> dict[str, Any]:
    result = check(str(model), replace(QUICK, **settings))
    assert validated(result).to_dict() == json.loads(json.dumps(result)), "every member has its place in the types"
    return result


def layers_of(result: dict[str, Any]) -> set[str]:
    return {r["layer"] for s in result["studies"] for r in s["runtimes"]}


def rewritten(path: Path, changes: dict[str, Value | None], data: dict[str, bytes] | None = None) -> Path:
    """The GGUF file with keys set or removed and some tensors' bytes replaced, as another tool might have written it."""
    old = open_gguf(path)
    fields = {k: v for k, v in {**old.fields, **changes}.items() if v is not None}
    tensors = list(old.tensors.values())
    bodies = {t.name: (data or {}).get(t.name, t.read().tobytes()) for t in tensors}
    header, offsets = encode_header(fields, tensors, old.alignment)
    end = max(offsets[t.name] + t.nbytes for t in tensors)
    whole = bytearray(end + -end % old.alignment)
    whole[: len(header)] = header
    for t in tensors:
        whole[offsets[t.name] : offsets[t.name] + t.nbytes] = bodies[t.name]
    path.write_bytes(bytes(whole))
    return path


# -- what is sound passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.gguf", "out"])
def test_a_sound_conversion_passes_and_the_manifest_says_so(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    model, said = make_model(), list[tuple[str, float]]()
    out = extended(model, tmp_path / name)
    with hearing(lambda call, what, fraction, more: said.append((what, fraction)) if what and call is not what else None):
        result = run(out, base=str(model))
    assert (result["verdict"], result["reasons"]) == ("passed", [])
    fractions, stages = [f for _, f in said], {what: [f for w, f in said if w == what] for what, _ in said if ", " in what}
    assert (fractions, fractions[-1]) == (sorted(fractions), 1.0)
    assert len(stages) == 6 and all(min(f) < max(f) for f in stages.values()), "each was foreseen"
    assert {part: result[part]["verdict"] for part in ("recipe", "weights")} == {"recipe": "passed", "weights": "passed"}
    assert [s["kind"] for s in result["studies"]] == ["real", "twin"]
    for s in result["studies"]:
        (r,) = s["runtimes"]
        assert r["verdict"] == "passed"
        assert max(w["end"] for w in r["windows"]) == 4 * CONTEXT
        assert all(w["told_apart"] for w in s["wrong_recipes"])
        assert {w["name"] for w in s["wrong_recipes"]} == {"no scaling", "multiplier 1", "factor × 2", "the other ramp"}
    twin_windows = result["studies"][1]["runtimes"][0]["windows"]
    assert [w["start"] for w in twin_windows[1:]] == [w["end"] for w in twin_windows[:-1]], "the twin is judged at every position"
    manifest = tmp_path / ("out.yarn_convert.json" if name.endswith("gguf") else "out/yarn_convert.json")
    assert json.loads(manifest.read_text())["validation"]["verdict"] == "passed"


@pytest.mark.parametrize(
    "options",
    [{"attention_factor": 1.5}, {"beta_fast": 8.0, "beta_slow": 4.0}, {"ramp": "paper"}, {"method": "linear"}, {"method": "ntk-aware"}],
    ids=lambda o: str(o),
)
def test_every_carrier_validates_in_llama_cpp(make_model: MakeModel, tmp_path: Path, options: dict[str, Any]) -> None:
    result = run(extended(make_model(), tmp_path / "out.gguf", **options), real=False)
    assert (result["verdict"], result["reasons"]) == ("passed", [])


def test_quantized_weights_pass_against_their_base(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    out = extended(model, tmp_path / "out.gguf", outtype="q8_0")
    result = run(out, base=str(model), real=False)
    assert result["weights"]["verdict"] == "passed"
    assert "converted to their type" in result["weights"]["how"]


# -- deep random models, which amplify rounding -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extended GGUF of 30 layers, in which float32 is at NMSE 6e-2 from float64."""
    folder = tmp_path_factory.mktemp("deep")
    plain = make_model.__wrapped__ if hasattr(make_model, "__wrapped__") else make_model.__pytest_wrapped__.obj
    return extended(plain(folder)(layers=30), folder / "out.gguf")


DEEP: dict[str, Any] = {"twin": False, "tokens": 3 * CONTEXT}


def test_a_model_that_amplifies_rounding_passes_by_as_much(deep: Path) -> None:
    """Which float64 confirms, and only beyond the first position."""
    pytest.importorskip("llama_cpp")
    result = run(deep, **DEEP)
    assert result["verdict"] == "passed", result["reasons"]
    (r,) = result["studies"][0]["runtimes"]
    assert "the model amplifies rounding" in r["why"] and f"llama.cpp, real: {r['why']}" in result["reasons"]
    assert any("the model amplifies rounding" in line for line in lines(validated(result)))
    c, ids = opened(deep), text_ids(opened(deep), None, 3 * CONTEXT)
    spans, strict = ((0, len(ids)),), judging.FLOAT32
    single, double = (Reference(c, "cpu", dtype).logits(table(c.rope), ids, spans) for dtype in ("float32", "float64"))
    honest = max(w.nmse for w in compare(double, single, spans, (1, CONTEXT, 2 * CONTEXT), strict))
    assert honest > 1e4 * strict.nmse and honest / 4 < r["tolerance"]["nmse"] / judging.NOISE < 4 * honest
    assert (r["windows"][0]["start"], r["windows"][0]["end"]) == (0, 1) and r["windows"][0]["nmse"] < strict.nmse


Spoilt = Callable[[Reference, Checkpoint, NDArray[np.int64], Any], NDArray[np.float32]]


def faking(monkeypatch: pytest.MonkeyPatch, spoilt: Spoilt) -> None:
    """llama.cpp computes what this function gives."""

    def fake(name: str, model: Path, ids: Any, spans: Any, *rest: Any) -> runtimes.Run:
        return runtimes.Run(spoilt(Reference(opened(model)), opened(model), ids, spans), {"seconds": 1.0, "version": "1"})

    monkeypatch.setattr("yarn_convert.validation.run.chosen_runtimes", lambda *_: (["llama.cpp"], []))
    monkeypatch.setattr(study.runtimes, "run", fake)


def near(c: Checkpoint) -> dict[str, Any]:
    """Wrong recipes, some of them nearly right."""
    right = table(c.rope)
    found = {f"factor {s}": table(c.rope.with_params(factor=s)) for s in (3.9, 4.01)}
    found["multiplier 1.001 times"] = right._replace(multiplier=1.001 * right.multiplier)
    return {**judging.wrong_tables(c.rope, 3 * CONTEXT), **found}


@pytest.mark.parametrize(
    "wrong", ["no scaling", "multiplier 1", "factor × 2", "the other ramp", "factor 3.9", "factor 4.01", "multiplier 1.001 times"]
)
def test_no_wrong_recipe_passes_by_what_a_model_amplifies(deep: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    faking(monkeypatch, lambda reference, c, ids, spans: reference.logits(near(c)[wrong], ids, spans))
    result = run(deep, **DEEP)
    (r,) = result["studies"][0]["runtimes"]
    assert (result["verdict"], r["verdict"]) == ("failed", "failed")
    assert "the model amplifies rounding" in r["why"]
    if wrong in judging.wrong_tables(opened(deep).rope, 3 * CONTEXT):
        assert r["why"].startswith(f"it computes another recipe: {wrong}")


def test_other_weights_do_not_pass_by_what_a_model_amplifies(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is amplified at the first position, which no rotation reaches."""
    faking(monkeypatch, lambda reference, c, ids, spans: 1.01 * reference.logits(table(c.rope), ids, spans))
    (r,) = run(deep, **DEEP)["studies"][0]["runtimes"]
    assert (r["verdict"], r["layer"], r["tolerance"]["nmse"]) == ("failed", "weights", judging.FLOAT32.nmse)


@pytest.mark.parametrize("wrong", ["", "no scaling", "factor 4.01"])
def test_where_a_wrong_recipe_may_hide_nothing_is_proved(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Of a model whose float32 has nothing in common with its float64."""
    model = make_model(layers=30)
    file = model / "model.safetensors"
    grown = {k: v * np.float32(2) if "q_proj" in k or "k_proj" in k else v for k, v in load_file(file).items()}
    save_file(grown, file, {"format": "pt"})
    out = extended(model, tmp_path / "out.gguf")
    if wrong:
        faking(monkeypatch, lambda reference, c, ids, spans: reference.logits(near(c)[wrong], ids, spans))
    else:
        pytest.importorskip("llama_cpp")
    result = run(out, **DEEP)
    (r,) = result["studies"][0]["runtimes"]
    assert (result["verdict"], r["verdict"]) == ("inconclusive", "inconclusive")
    (reason,) = result["reasons"]
    assert "the model amplifies rounding" in reason and "'no scaling'" in reason and "--cut 2" in reason
    assert any("inconclusive: the model" in line for line in lines(validated(result)))


# -- negative controls: each must fail, and say what is wrong ---------------------------------------------------------


def test_dropped_scaling_fails(make_model: MakeModel, tmp_path: Path) -> None:
    """The field's worst bug: a file that loads and answers short prompts well."""
    model = make_model()
    meant = extended(model, tmp_path / "meant")
    lost = extended(model, tmp_path / "lost.gguf", scale=None, method="none")
    result = run(lost, like=str(meant))
    assert result["verdict"] == "failed"
    assert (result["recipe"]["verdict"], result["recipe"]["layer"]) == ("failed", "table")
    assert all("no scaling" in r["why"] for s in result["studies"] for r in s["runtimes"])


def test_a_wrong_beta_fails(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(), tmp_path / "out")
    path = out / "config.json"
    path.write_text(path.read_text().replace('"beta_slow": 1.0', '"beta_slow": 4.0'))
    result = run(out)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", "table")
    assert layers_of(result) == {"table"}
    assert "the one that its source takes from the file" in result["studies"][0]["runtimes"][0]["why"]


def test_a_doubled_multiplier_fails(make_model: MakeModel, tmp_path: Path) -> None:
    out = rewritten(extended(make_model(), tmp_path / "out.gguf"), {"llama.rope.scaling.attn_factor": Value("f32", 2.0)})
    result = run(out)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", "multiplier")
    assert layers_of(result) == {"multiplier"}
    assert "doubled multiplier" in result["studies"][1]["runtimes"][0]["why"]


def test_rows_of_q_and_k_in_the_wrong_order_fail(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    out = extended(model, tmp_path / "out.gguf")
    c = opened(out)
    moved = {}
    for name, t in c.tensors.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = c.heads(name[-8])
            rows = t.read().view(np.float32).reshape(heads, -1, 2, t.shape[1])  # interleaved as llama.cpp wants them
            moved[name] = np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes()
    result = run(rewritten(out, {}, moved), base=str(model), twin=False)
    assert result["verdict"] == "failed"
    assert result["weights"]["verdict"] == "failed"
    assert "permutation" in result["weights"]["why"]


def test_one_flipped_byte_of_a_weight_fails(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    out = extended(model, tmp_path / "out.gguf")
    t = opened(out).tensors["blk.1.ffn_up.weight"]
    with open(out, "r+b") as f:
        f.seek(t.offset + 17)
        byte = f.read(1)
        f.seek(t.offset + 17)
        f.write(bytes([byte[0] ^ 1]))
    result = run(out, base=str(model), twin=False, tokens=32)
    assert (result["verdict"], result["weights"]["different"]) == ("failed", ["blk.1.ffn_up.weight"])
    assert "bytes differ" in result["weights"]["why"]


def test_hashes_in_the_manifest_answer_without_the_base(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(), tmp_path / "out", hash=True)
    assert run(out, twin=False, tokens=32)["weights"]["verdict"] == "passed"
    weights = out / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    result = run(out, twin=False, tokens=32)
    assert (result["verdict"], result["weights"]["verdict"]) == ("failed", "failed")
    assert "model.safetensors" in result["weights"]["why"]


def test_a_truncated_context_fails(make_model: MakeModel, tmp_path: Path) -> None:
    out = rewritten(extended(make_model(), tmp_path / "out.gguf"), {"llama.context_length": Value("u32", CONTEXT)})
    result = run(out, twin=False)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", "context")
    assert f"takes {CONTEXT} tokens" in result["recipe"]["why"]


@pytest.mark.parametrize(
    ("scaling", "says"),
    [({"attention_factor": 1.5}, "multiplier"), ({"beta_fast": 6.0, "beta_slow": 1.5}, "table"), ({"truncate": False}, "table")],
    ids=["attention_factor", "betas", "truncate"],
)
def test_what_llama_cpps_converter_loses_is_caught(
    converter: Path, make_model: MakeModel, tmp_path: Path, scaling: dict[str, Any], says: str
) -> None:
    from test_targets import oracle

    spelled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT, **scaling}
    model = make_model(config={"rope_scaling": spelled, "max_position_embeddings": 4 * CONTEXT}, head_dim=32)
    theirs = oracle(converter, model, tmp_path / "theirs.gguf", "f32")
    result = run(theirs, like=str(model), real=False)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", says)
    assert layers_of(result) == {says}
    ours = run(extended(model, tmp_path / "ours.gguf", scale=None, method="none"), like=str(model), real=False)
    assert (ours["verdict"], ours["reasons"]) == ("passed", [])


def test_a_check_that_a_wrong_recipe_passes_too_is_inconclusive(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen tokens in a coarse type, without an excerpt, do not tell a recipe from others; the twin does."""
    monkeypatch.setattr("yarn_convert.validation.excerpt.MOST", 0)
    monkeypatch.setattr(study, "_noise", lambda *_: Tolerance(3e-2, 3e-2, ""))
    out = extended(make_model(), tmp_path / "out.gguf", outtype="q8_0")
    result = run(out, twin=False, tokens=16)
    assert result["verdict"] == "inconclusive"
    assert "computed nothing beyond the original 64 tokens" in result["reasons"][0]
    assert all("would have passed with" in reason for reason in result["reasons"][1:])
    assert any(re.search(r"about \d+ tokens tell them apart|no length of this context", r) for r in result["reasons"])
    assert run(out, tokens=16)["verdict"] == "passed"


def test_the_length_that_tells_a_wrong_recipe_apart_is_named(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor twice as large hides in 16 tokens of bfloat16 weights, where there is no excerpt."""
    monkeypatch.setattr("yarn_convert.validation.excerpt.MOST", 0)
    monkeypatch.setattr(study, "_noise", lambda *_: Tolerance(5e-3, 2e-3, ""))
    model = make_model(config={"rope_theta": 1e6, "max_position_embeddings": 4096}, head_dim=32)
    result = run(extended(model, tmp_path / "out.gguf", outtype="bf16"), twin=False, tokens=16)
    (wrong,) = (w for w in result["studies"][0]["wrong_recipes"] if w["name"] == "factor × 2")
    assert (result["verdict"], wrong["told_apart"]) == ("inconclusive", False)
    assert any("factor × 2" in r and f"--tokens {wrong['needs']}" in r for r in result["reasons"])
    longer = run(tmp_path / "out.gguf", twin=False, tokens=wrong["needs"])
    assert next(w["told_apart"] for w in longer["studies"][0]["wrong_recipes"] if w["name"] == "factor × 2")


def test_without_a_runtime_nothing_is_proved(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = extended(make_model(), tmp_path / "out.gguf")
    monkeypatch.setattr("yarn_convert.validation.run.python_of", lambda name: None)
    result = run(out, twin=False, tokens=32)
    assert result["verdict"] == "inconclusive"
    assert "no runtime computed anything" in result["reasons"][0]


def test_passed_does_not_stand_above_what_is_unchecked(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    out = extended(model, tmp_path / "out")
    for settings, says in (({}, "PASSED, weights and tokenizer unchecked"), ({"base": str(model)}, "PASSED")):
        result = run(out, real=False, **settings)
        assert lines(validated(result), quiet=True)[0] == says
        assert re.search(rf"<h1>.*{says.partition(', ')[2]}", html_report(result, "")), "the page's heading too"
    assert unchecked({"verdict": "failed", "weights": {"verdict": "unchecked"}}) == ""


def test_what_predicts_text_no_better_than_guessing_fails(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights do not; with a vocabulary of bytes that says nothing, and nothing where the base does no better."""
    model = make_model()
    out = extended(model, tmp_path / "out")
    assert run(out, twin=False)["verdict"] == "passed"
    monkeypatch.setattr(predicting, "WORDS", 200)
    result = run(out, twin=False)
    assert result["verdict"] == "failed"
    assert "no better than guessing" in result["reasons"][0] and "--base" in result["reasons"][0]
    assert run(out, twin=False, base=str(model))["verdict"] == "passed"
    monkeypatch.setattr("yarn_convert.validation.real.base_text_loss", lambda *_: 3.0)
    result = run(out, twin=False, base=str(model))
    assert (result["verdict"], result["reasons"][0][-17:]) == ("failed", "its base has 3.00")


def test_what_a_recipe_costs_within_its_bases_context_is_shown(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In losses of the same weights by either recipe, and as a note where it is much."""
    model = make_model()
    out = extended(model, tmp_path / "out", method="linear")
    result = run(out, twin=False, base=str(model))
    found, ids = result["studies"][0]["within_base"], text_ids(opened(model), None, CONTEXT)
    assert found == {
        "tokens": CONTEXT,
        "by_recipe": predicting.base_text_loss(opened(out), ids, "cpu", "float32"),
        "by_base": predicting.base_text_loss(opened(model), ids, "cpu", "float32"),
    }
    assert any("the first 64, within the base's context" in line for line in lines(validated(result)))
    assert not any("much worse" in reason for reason in result["reasons"]), "a vocabulary of bytes says nothing"
    monkeypatch.setattr(predicting, "WORDS", 200)
    for bound, said in ((abs(found["by_recipe"] - found["by_base"]) + 0.01, False), (found["by_recipe"] - found["by_base"], True)):
        monkeypatch.setattr(predicting, "COSTLY", bound)
        result = run(out, twin=False, base=str(model))
        assert (result["verdict"], any("much worse" in reason for reason in result["reasons"])) == ("passed", said)
    assert run(model, twin=False, like=str(model))["studies"][0].get("within_base") is None


def test_a_runtime_that_cannot_run_at_all_is_no_verdict_on_the_model(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, really = extended(make_model(), tmp_path / "out"), runtimes.run
    monkeypatch.setattr("yarn_convert.validation.run.chosen_runtimes", lambda *_: (["transformers", "mlx-lm"], []))

    def failing(name: str, model: Path, *rest: Any) -> runtimes.Run:
        """mlx-lm fails on what `on` says of a model's name; transformers runs."""
        if name == "mlx-lm" and on(model.name):
            failed = runtimes.Failed("mlx-lm could not run it: no BLAS")
            failed.killed = killed
            raise failed
        return really("transformers", model, *rest)

    monkeypatch.setattr(study.runtimes, "run", failing)
    on, killed = lambda name: True, False
    result = run(out, real=False)
    assert (result["verdict"], result["studies"][0]["runtimes"][1]["verdict"]) == ("passed", "not run")
    assert result["reasons"] == ["mlx-lm could not be run here, which says nothing of the model: mlx-lm could not run it: no BLAS"]
    assert run(out, real=False, runtimes=("mlx-lm",))["verdict"] == "inconclusive", "it was asked for"
    assert "mlx-lm" in html_report(result, "") and any("not run" in line for line in lines(validated(result)))
    on = lambda name: name != "plain"  # noqa: E731
    assert run(out, real=False)["verdict"] == "failed", "what runs a plain model and not this one has a say"
    killed = True
    assert run(out, real=False)["verdict"] == "passed", "unless the system ended it"


@pytest.mark.parametrize(("name", "out"), [("transformers", "plain"), ("llama.cpp", "plain.gguf")])
def test_a_plain_model_runs_wherever_a_runtime_does(tmp_path: Path, name: str, out: str) -> None:
    control = twin.write_control(tmp_path / out)
    logits = runtimes.run(name, control, twin.ids(16), [(0, 16)]).logits
    c = opened(control)
    np.testing.assert_allclose(logits, Reference(c).logits(table(c.rope), twin.ids(16), [(0, 16)]), atol=1e-4)


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("lm_head.weight", "head 'lm_head.weight' .* tie_word_embeddings"),
        ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj"),
    ],
)
def test_a_tensor_that_is_not_there_is_named_as_its_folder_names_it(make_model: MakeModel, lost: str, says: str) -> None:
    model = make_model()
    weights = load_file(model / "model.safetensors")
    del weights[lost]
    save_file(weights, model / "model.safetensors")
    with pytest.raises(InputError, match=says):
        opened(model)


# -- what is intended -------------------------------------------------------------------------------------------------


def test_the_intention_comes_from_like_options_manifest_recipe_or_the_file_in_that_order(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    out = extended(model, tmp_path / "out.gguf", ramp="paper")
    c, base = opened(out), opened(model)
    assert intention_of(c, None, None, str(model)).rope.method == "none"
    asked = intention_of(c, Recipe(scale=8.0), base, None)
    assert (asked.rope.number("factor"), asked.context) == (8.0, 8 * CONTEXT)
    assert intention_of(c, None, None, None).rope.params["ramp"] == "paper"
    manifest = tmp_path / "out.yarn_convert.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "recipe": {**text["recipe"], "params": {"factor": 2.0}}}))
    assert intention_of(c, None, None, None).rope.params == {"factor": 2.0}
    manifest.write_text(json.dumps({**text, "recipe": 7}))
    with pytest.raises(FormatError, match="recipe is 7, not an object"):
        intention_of(c, None, None, None)
    manifest.unlink()
    found = intention_of(c, None, None, None)
    assert (found.rope.params["ramp"], found.context, found.origin) == ("paper", 4 * CONTEXT, "as the recipe in the file says")
    bare = opened(rewritten(out, {"yarn_convert.recipe": None}))
    assert intention_of(bare, None, None, None).rope.method == "explicit"


def test_ignored_keys_of_a_gguf_are_taken_at_their_word(make_model: MakeModel, tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.yarn_beta_fast": Value("f32", 8.0), "llama.rope.scaling.yarn_attn_factor": Value("f32", 1.5)}
    out = rewritten(extended(make_model(), tmp_path / "out.gguf"), {**keys, "yarn_convert.recipe": None})
    (tmp_path / "out.yarn_convert.json").unlink()
    c = opened(out)
    assert claimed(c).params == {"factor": 4.0, "beta_fast": 8.0, "attention_factor": 1.5}
    result = run(out, real=False)
    assert result["recipe"]["verdict"] == "failed"
    assert set(result["recipe"]["ignored"]) == set(keys)


# -- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_equals_transformers_where_both_know_the_recipe(make_model: MakeModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = extended(make_model(), tmp_path / "out")
    c, ids = opened(out), np.arange(200) % 263
    got = Reference(c).logits(table(c.rope), ids, [(0, 50), (150, 200)])
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():  # twice: see the worker
        *_, theirs = (model(torch.from_numpy(ids)[None]).logits[0].numpy() for _ in range(2))
    np.testing.assert_allclose(got, np.concatenate([theirs[:50], theirs[150:]]), atol=2e-4)


def test_the_reference_is_the_same_from_either_format(make_model: MakeModel, tmp_path: Path) -> None:
    model, ids = make_model(), np.arange(100) % 263
    folder, gguf = (opened(extended(model, tmp_path / name)) for name in ("out", "out.gguf"))
    both = [Reference(c).logits(table(c.rope), ids, [(0, 100)]) for c in (folder, gguf)]
    np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_offloaded_layers_compute_the_same(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    c, ids = opened(make_model(tied=tied)), np.arange(60)
    whole = Reference(c).logits(table(c.rope), ids, [(0, 60)])
    monkeypatch.setattr("yarn_convert.compute.reference.free_memory", lambda device: 0)
    offloaded = Reference(c)
    assert offloaded.offloaded
    np.testing.assert_array_equal(offloaded.logits(table(c.rope), ids, [(0, 60)]), whole)


def test_rows_alone_equal_the_whole_for_one_layer(make_model: MakeModel) -> None:
    c, ids, spans = opened(make_model(layers=1)), np.arange(200) % 263, [(3, 20), (150, 200)]
    reference = Reference(c)
    np.testing.assert_allclose(
        reference.logits(table(c.rope), ids, spans, rows_only=True), reference.logits(table(c.rope), ids, spans), atol=1e-4
    )


def test_swapped_rows_are_another_model(make_model: MakeModel) -> None:
    c, ids = opened(make_model()), np.arange(40)
    right, swapped = (Reference(c, swap_qk=swap).logits(table(c.rope), ids, [(0, 40)]) for swap in (False, True))
    np.testing.assert_allclose(right[0], swapped[0], atol=1e-5)  # at the first position nothing is rotated
    assert abs(right[1:] - swapped[1:]).max() > 0.1


# -- the twin ---------------------------------------------------------------------------------------------------------


def test_the_twin_keeps_every_rope_key(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(config={"partial_rotary_factor": 1.0})
    folder = twin.write_twin(opened(extended(model, tmp_path / "out")), tmp_path / "twin")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = {k for k in config if "rope" in k or k in ("max_position_embeddings", "partial_rotary_factor", "architectures", "model_type")}
    assert {k: folder.config[k] for k in kept} == {k: config[k] for k in kept}
    assert (folder.layers, folder.head_dim, folder.hparams["vocab_size"]) == (1, 16, twin.VOCAB)
    assert read_config("transformers-5", folder.config).inv_freq.tolist() == read_config("transformers-5", config).inv_freq.tolist()
    gguf = opened(extended(model, tmp_path / "out.gguf", ramp="paper"))
    small = twin.write_twin(gguf, tmp_path / "twin.gguf")
    assert {k: v for k, v in small.config.items() if ".rope." in k} == {k: v for k, v in gguf.config.items() if ".rope." in k}
    assert small.context == gguf.context
    freqs = [c.gguf.tensors["rope_freqs.weight"].read().view(np.float32) for c in (gguf, small) if c.gguf]
    np.testing.assert_array_equal(*freqs)
    assert read_keys(small.config, freqs[1]).inv_freq.tolist() == read_keys(gguf.config, freqs[0]).inv_freq.tolist()


def test_the_twin_needs_a_config_json_alone(make_model: MakeModel, tmp_path: Path) -> None:
    config = extended(make_model(), tmp_path / "out") / "config.json"
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes(config.read_bytes())
    for model in (alone, alone / "config.json"):
        result = run(model, real=False)
        assert (result["verdict"], result["weights"]["verdict"]) == ("passed", "unchecked")
    with pytest.raises(InputError):
        run(alone)


# -- judging ----------------------------------------------------------------------------------------------------------

LOOSE = Tolerance(1e-2, 1e-2, "")


def test_the_measures_are_what_their_names_say() -> None:
    """By hand: two positions over two tokens; the second differs by 1 in its first logit."""
    a, b = np.float32([[0, 0], [2, 0]]), np.float32([[0, 0], [1, 0]])
    (w,) = compare(a, b, [(5, 7)], (), LOOSE)
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert (w.start, w.end, w.max_abs, w.top1, w.drift) == (5, 7, 1.0, 1.0, 6)
    assert w.nmse == pytest.approx(1 / 2)  # Σ(a−b)² = 1, Σ(b−mean)² = 1 + 1
    assert w.kl_max == pytest.approx(kl)
    assert w.kl == pytest.approx(kl / 2)


def test_log_probabilities_of_some_tokens_are_compared_on_those() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 10)).astype(np.float32)
    logp = a - np.log(np.exp(a).sum(1, keepdims=True))
    given = np.where(np.argsort(np.argsort(-a)) < 3, logp, -np.inf)
    (w,) = compare(a, given.astype(np.float32), [(0, 4)], (), LOOSE, top_k=True)
    assert w.nmse < 1e-12 and w.kl < 1e-6 and w.top1 == 1.0
    (bad,) = compare(a, (given - 0.5).astype(np.float32), [(0, 4)], (), LOOSE, top_k=True)
    assert not bad.within(LOOSE)


def test_logits_that_are_no_numbers_never_pass() -> None:
    a = np.zeros((2, 3), np.float32)
    a[:, 0] = 1
    for value in (np.nan, np.inf):
        b = a.copy()
        b[1, 1] = value
        (w,) = compare(a, b, [(0, 2)], (), LOOSE)
        assert not w.within(LOOSE)
        assert w.drift == 1


def test_spans_are_cut_into_windows() -> None:
    a = np.zeros((6, 2), np.float32)
    a[:, 0] = 1
    windows = compare(a, a, [(0, 4), (10, 12)], (1, 3, 11), LOOSE)
    assert [(w.start, w.end) for w in windows] == [(0, 1), (1, 3), (3, 4), (10, 11), (11, 12)]
    assert disjoint([(8, 12), (0, 4), (2, 6), (2, 3)]) == ((0, 4), (4, 6), (8, 12))


def test_wrong_recipes_that_are_the_right_one_are_none() -> None:
    linear = judging.wrong_tables(Rope("linear", 1e4, 64, 64, {"factor": 4.0}), 256)
    assert set(linear) == {"no scaling", "factor × 2"}  # it has neither a multiplier nor a ramp
    plain = judging.wrong_tables(Rope("none", 1e4, 64, 64), 64)
    assert set(plain) == {"factor × 2"}
    both = judging.wrong_tables(Rope("yarn", 1e4, 64, 4096, {"factor": 4.0, "ramp": "paper"}), 16384)
    index = table(Rope("yarn", 1e4, 64, 4096, {"factor": 4.0}))
    np.testing.assert_array_equal(both["the other ramp"].inv_freq, index.inv_freq)
    assert both["factor × 2"].multiplier == index.multiplier


# -- runtimes and the command line ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real_workers")
def test_a_runtime_that_cannot_run_says_why_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "m.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(runtimes.Failed, match=r"llama\.cpp could not run m\.gguf: .+"):
        runtimes.run("llama.cpp", broken, np.arange(4), [(0, 4)])


@pytest.mark.usefixtures("real_workers")
def test_a_runtime_sees_the_spans_that_are_asked_for(make_model: MakeModel, tmp_path: Path) -> None:
    out, ids = extended(make_model(), tmp_path / "out.gguf"), np.arange(600) % 263
    done: list[float] = []
    told: list[str] = []
    with hearing(lambda call, what, fraction, more: told.append(what)):
        parts = runtimes.run("llama.cpp", out, ids, [(3, 5), (510, 515), (599, 600)], progress=done.append)
    assert (told, done[0]) == (["starting llama.cpp"], 0.0)
    whole = runtimes.run("llama.cpp", out, ids, [(0, 600)])
    assert whole.logits.shape == (600, 263)
    np.testing.assert_array_equal(parts.logits, whole.logits[[3, 4, *range(510, 515), 599]])
    assert done[-1] == 1.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"runtimes": ("vlm",)}, "unknown runtime"),
        ({"runtimes": ("transformers",)}, "reads safetensors"),
        ({"device": "abacus"}, "no device"),
        ({"dtype": "int8"}, "--dtype"),
        ({"tokens": 3}, "--tokens"),
        ({"text": Path("nowhere.txt")}, "cannot read the text"),
        ({"like": "nowhere"}, "no model 'nowhere'"),
    ],
)
def test_settings_that_make_no_sense(make_model: MakeModel, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(YarnConvertError, match=says):
        run(extended(make_model(), tmp_path / "out.gguf"), **settings)


def test_a_time_is_read_as_people_write_it() -> None:
    assert [seconds(t) for t in ("90", "90s", "5m", "1.5h")] == [90.0, 90.0, 300.0, 5400.0]
    for bad in ("", "s", "-1s", "inf", "5 apples"):
        with pytest.raises(UsageError, match="--budget"):
            seconds(bad)


def test_the_command_line_says_passed_or_ends_with_3(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = extended(make_model(), tmp_path / "out.gguf")
    common = ["validate", str(out), "--twin", "--twin-tokens", "256"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*common, "--report", str(tmp_path / "r.html")])
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out.splitlines()[-1]) == (0, "PASSED, weights and tokenizer unchecked")
    assert not wide(shown.out + shown.err)
    assert "llama.cpp, twin" in shown.err
    assert "<svg" in (tmp_path / "r.html").read_text("utf-8")
    with pytest.raises(SystemExit) as stop:
        cli.main([*common, "--report", str(tmp_path / "r.html")])
    assert stop.value.code == 1 and "--force" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main([*common, "--json", "--scale", "8"])
    shown = capsys.readouterr()
    assert (stop.value.code, shown.err) == (3, "")
    result = json.loads(shown.out)
    assert result["verdict"] == "failed" and result["intention"]["origin"] == "as the options say"
    assert json.loads((tmp_path / "out.yarn_convert.json").read_text())["validation"]["verdict"] == "passed", "another question, no record"


def test_a_budget_is_kept_by_a_shorter_text(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(), tmp_path / "out.gguf", scale=64.0)
    short, long = (run(out, tokens=None, budget=b, twin=False)["studies"][0]["tokens"] for b in (1e-3, 1e9))
    assert short < long == 64 * CONTEXT


def test_a_tensor_knows_no_path_after_validation(make_model: MakeModel, tmp_path: Path) -> None:
    """What is recorded may be published: no path of this machine is in it."""
    out = extended(make_model(), tmp_path / "out.gguf")
    run(out, real=False)
    assert str(tmp_path) not in (tmp_path / "out.yarn_convert.json").read_text()
    assert isinstance(next(iter(opened(out).tensors.values())), Tensor)


# -- what a hostile or unlucky user brings ----------------------------------------------------------------------------


def test_hashes_are_those_of_the_file_that_is_validated(make_model: MakeModel, tmp_path: Path) -> None:
    """A GGUF that was copied with its manifest: its own bytes count, whatever the manifest calls it."""
    out = extended(make_model(), tmp_path / "out.gguf", hash=True)
    copy = tmp_path / "b.gguf"
    copy.write_bytes(out.read_bytes())
    (tmp_path / "b.yarn_convert.json").write_bytes((tmp_path / "out.yarn_convert.json").read_bytes())
    assert run(copy, twin=False, tokens=32)["weights"]["verdict"] == "passed"
    data = bytearray(copy.read_bytes())
    data[-5] ^= 1
    copy.write_bytes(bytes(data))
    assert run(copy, twin=False, tokens=32)["weights"]["verdict"] == "failed"


def edited_manifest(out: Path, **changes: Any) -> None:
    path = out / "yarn_convert.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_manifest_that_lists_other_files_fails_and_is_followed_nowhere(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(shards=2), tmp_path / "out", hash=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    files = json.loads((out / "yarn_convert.json").read_text())["weights"]["files"]
    digest = "043a718774c572bd8a25adbeb1bfcd5c0256ae11cecf9f9c3f925d0e52beaf89"  # SHA-256 of "s"
    for listed in (files[:1], [*files, {"file": "../secret", "sha256": digest}], [{"file": str(secret), "sha256": digest}]):
        edited_manifest(out, weights={"files": listed})
        result = run(out, twin=False, tokens=32)
        assert result["weights"]["verdict"] == "failed"
        assert digest not in json.dumps(result["weights"].get("sha256", {}))


@pytest.mark.parametrize(
    "changes",
    [{"weights": []}, {"weights": None}, {"weights": {"files": [{}]}}, {"recipe": {"method": "yarn"}}, {"context": 10**15}, {"context": "long"}]
    + [{"recipe": {"method": "yarn", "rope_theta": t, "rotary_dim": d, "original_context": n, "params": {"factor": 4.0}}}
       for t, d, n in ((10**400, 16, 64), (1e4, 10**13, 64), (1e4, 16, 64.5), ("x", 16, 64))],
)  # fmt: skip
def test_a_hostile_manifest_is_one_error(make_model: MakeModel, tmp_path: Path, changes: dict[str, Any]) -> None:
    out = extended(make_model(), tmp_path / "out")
    edited_manifest(out, **changes)
    with pytest.raises(FormatError):
        run(out, twin=False, tokens=32)


def test_another_models_recipe_is_a_failure_and_no_crash(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(), tmp_path / "out.gguf")
    other = extended(make_model(name="wide", head_dim=32), tmp_path / "other")
    result = run(out, like=str(other))
    assert (result["verdict"], result["recipe"]["layer"], result["studies"]) == ("failed", "table", [])


def test_the_tensors_of_a_tied_model_are_counted_once(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model(tied=True)
    out = extended(base, tmp_path / "out.gguf")
    result = run(out, base=str(base), real=False)
    assert result["weights"]["how"] == f"{len(open_checkpoint(resolve(str(out))).tensors)} tensors byte-identical"


def test_nothing_beyond_the_original_window_proves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(), tmp_path / "out.gguf")
    result = run(out, twin=False, tokens=CONTEXT)
    assert result["verdict"] == "inconclusive"
    assert result["reasons"][0].endswith(f"beyond the original 64 tokens: --tokens {2 * CONTEXT}, or the twin (without --real)")
    result = run(out, tokens=CONTEXT, twin_tokens=CONTEXT)
    assert result["reasons"][0].endswith(f"beyond the original 64 tokens: --tokens {2 * CONTEXT}, or --twin-tokens {2 * CONTEXT}")


def test_a_sliding_window_is_part_of_the_reference(make_model: MakeModel, tmp_path: Path) -> None:
    """A twin's wrong recipes differ by their recipe, not by a window that one computation has and the other lacks."""
    config = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 48, "head_dim": 16}
    out = extended(make_model(config=config, layers=1), tmp_path / "out")
    result = run(out)
    assert (result["verdict"], result["reasons"]) == ("passed", [])
    c, ids, spans = opened(out), np.arange(200) % 263, [(100, 110), (190, 200)]
    reference = Reference(c)
    both = [reference.logits(table(c.rope), ids, spans, rows_only=rows) for rows in (False, True)]
    np.testing.assert_allclose(*both, atol=1e-4)


def test_a_runtime_that_is_known_not_to_follow_is_excused_only_for_that(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its measured logits have to be those of the table that its source takes from the file."""
    from yarn_convert.runtimes import Run
    from yarn_convert.runtimes.table import RUNTIMES

    out = extended(make_model(), tmp_path / "out", ramp="paper")
    c = opened(out)
    mlx = read_config("mlx-lm", c.config)
    own = table(c.rope)._replace(inv_freq=mlx.inv_freq, multiplier=mlx.multiplier)
    assert mlx.multiplier != table(c.rope).multiplier

    def computing(t: Any, spoil: float = 0.0) -> Any:
        def fake(name: str, model: Path, ids: Any, spans: Any, *rest: Any) -> Run:
            logits = Reference(opened(model)).logits(own if name == "mlx-lm" else t, ids, spans)
            return Run(logits + spoil * (name == "mlx-lm") * np.arange(logits.shape[1], dtype=np.float32), {"seconds": 1.0, "version": "1"})

        return fake

    monkeypatch.setattr("yarn_convert.validation.run.chosen_runtimes", lambda *_: (["transformers", "mlx-lm"], []))
    monkeypatch.setattr(study.runtimes, "run", computing(table(c.rope)))
    followed = run(out, twin=False)
    assert (followed["verdict"], followed["studies"][0]["runtimes"][1]["verdict"]) == ("passed", "failed")
    assert "mlx-lm does not follow, as is known" in followed["reasons"][0]
    assert run(out, twin=False, runtimes=("mlx-lm",))["verdict"] == "failed", "unless it was asked for"
    monkeypatch.setattr(study.runtimes, "run", computing(table(c.rope), spoil=1.0))
    assert run(out, twin=False)["verdict"] == "failed"
    assert RUNTIMES["mlx-lm"].reader == "mlx-lm"


def test_a_tokenizer_that_truncates_does_not_cut_the_text(make_model: MakeModel, tmp_path: Path) -> None:
    out = extended(make_model(), tmp_path / "out")
    path = out / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation": truncation}))
    ids = text_ids(opened(out), None, 200)
    assert len(set(ids[:100].tolist())) > 10


@pytest.mark.parametrize("value", [{"pad_token_id": 263}, {"initializer_range": "x"}, {"torch_dtype": 7}, {"id2label": 5}])
def test_values_that_the_forward_pass_does_not_need_are_left_out(make_model: MakeModel, tmp_path: Path, value: dict[str, Any]) -> None:
    c = opened(make_model(config=value))
    assert Reference(c).logits(table(c.rope), np.arange(8), [(0, 8)]).shape == (8, 263)


def test_a_result_that_cannot_be_recorded_is_still_a_result(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = extended(make_model(), tmp_path / "out.gguf")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yarn_convert.compute.record.replace_file", full)
    result = run(out, real=False)
    assert result["verdict"] == "passed"
    assert "No space left" in result["unrecorded"]
    assert any("not on record" in line for line in lines(validated(result)))


# -- what the other length and the other layers are for ---------------------------------------------------------------


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_a_wrong_list_for_short_texts_fails(tmp_path: Path, out: str) -> None:
    """Beyond the original window it serves nothing: no run at the extended length has ever used it."""
    model = make("phi3/longrope", tmp_path / "base")
    made = extended(model, tmp_path / out, scale=None, method="none")
    assert run(made, twin=False, tokens=16)["recipe"]["verdict"] == "passed"
    if out == "out":
        path = made / "config.json"
        config = json.loads(path.read_text())
        for key in ("rope_scaling", "rope_parameters"):
            config[key]["short_factor"] = [1.0 + 0.2 * i for i in range(8)]
        path.write_text(json.dumps(config))
    else:
        rewritten(made, {}, {"rope_factors_short.weight": np.linspace(1, 2, 8, dtype=np.float32).tobytes()})
    result = run(made, twin=False, tokens=16)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", "table")
    assert "another length" in result["recipe"]["why"]
    c = opened(made)
    assert not any(v.exact for v in survey(c, intention_of(c, None, None, None)))
    assert "exact" not in {r["before"] for r in plan_repair(str(made), RepairOptions()).as_json()["readers"].values()}


def test_a_dynamic_scaling_that_is_lost_fails(make_model: MakeModel) -> None:
    """Within the original window, which is all of max_position_embeddings, it changes nothing."""
    meant = make_model("meant", config={"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}})
    assert run(meant, like=str(meant), twin=False, tokens=16)["recipe"]["verdict"] == "passed"
    result = run(make_model("lost"), like=str(meant), twin=False, tokens=16)
    assert (result["verdict"], result["recipe"]["layer"]) == ("failed", "table")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma3_text", {"sliding_window": 32}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6 + ["sliding_attention"]}),
        ("gemma3_text", {"rope_local_base_freq": 500.0, "rope_parameters": {"sliding_attention": {"rope_theta": 500.0}}}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("granite", {"hidden_act": "gelu"}),
        ("granite", {"rms_norm_eps": 1e-2}),
    ],
    ids=lambda v: str(v)[:40],
)
def test_the_bases_weights_in_another_model_fail(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """The reference is made of the same config.json as the runtime's model: only the base knows better."""
    from yarn_convert.validation.run import _weights

    model = make(name, tmp_path / "base")
    out = extended(model, tmp_path / "out")
    assert _weights(opened(out), opened(model), None, lambda what, fraction: None)["verdict"] == "passed"
    path = out / "config.json"
    config = json.loads(path.read_text())
    nested = changes.get("rope_parameters", {}).get("sliding_attention", {})
    config |= {k: v for k, v in changes.items() if k != "rope_parameters"}
    if nested:
        config["rope_parameters"]["sliding_attention"] |= nested
    path.write_text(json.dumps(config))
    result = _weights(opened(out), opened(model), None, lambda what, fraction: None)
    assert (result["verdict"], result["different"]) == ("failed", [])
    assert next(iter(changes)) in result["why"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma3_text", "rope.freq_base_swa", 500.0),
        ("granite", "attention.layer_norm_rms_epsilon", 1e-2),
        ("mixtral", "expert_used_count", 1),
    ],
)
def test_without_a_base_the_manifest_knows_the_model(tmp_path: Path, name: str, key: str, value: float) -> None:
    out = extended(make(name, tmp_path / "base"), tmp_path / "out.gguf")
    assert run(out, real=False, runtimes=())["weights"]["verdict"] == "unchecked"
    changed = rewritten(out, {f"{open_gguf(out).arch}.{key}": Value("u32" if isinstance(value, int) else "f32", value)})
    result = run(changed, real=False)
    assert (result["verdict"], result["weights"]["verdict"]) == ("failed", "failed")
    assert "when they were written" in result["reasons"][0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("gemma3.attention.sliding_window", Value("u32", 32)), ("gemma3.attention.layer_norm_rms_epsilon", Value("f32", 1e-2))],
    ids=lambda v: str(v)[:40],
)
def test_the_bases_weights_under_other_keys_fail(tmp_path: Path, key: str, value: Value) -> None:
    from yarn_convert.validation.run import _weights

    model = make("gemma3_text", tmp_path / "base")
    out = extended(model, tmp_path / "out.gguf")
    assert _weights(opened(out), opened(model), None, lambda what, fraction: None)["verdict"] == "passed"
    result = _weights(opened(rewritten(out, {key: value})), opened(model), None, lambda what, fraction: None)
    assert result["verdict"] == "failed"


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_the_tokenizer_of_another_model_fails(make_model: MakeModel, tmp_path: Path, out: str) -> None:
    """Its logits are right for the wrong tokens."""
    base, path = make_model(), extended(make_model("twin"), tmp_path / out)
    assert run(path, base=str(base), real=False)["tokenizer"]["verdict"] == "passed"
    other = json.loads((base / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (base / "tokenizer.json").write_text(json.dumps(other))
    result = run(path, base=str(base), real=False)
    assert (result["verdict"], result["weights"]["verdict"], result["tokenizer"]["verdict"]) == ("failed", "passed", "failed")
    assert any(reason.startswith("tokenizer: 2 of its tokens are not the base's") for reason in result["reasons"])
    (base / "tokenizer.json").unlink()
    assert run(path, base=str(base), real=False)["tokenizer"]["verdict"] == "unchecked"
