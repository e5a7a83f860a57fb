"""Options as data: each stands once, at a field; and the functions of the library, which take them by keyword."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from conftest import CONTEXT, MakeModel

from yarn_convert import Recipe, YarnConvertError, convert, evaluate, validate
from yarn_convert import inspect as inspect_model
from yarn_convert.asking import Help, check_choices, hints, split, with_paths
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import app as cli
from yarn_convert.cli import main
from yarn_convert.cli.commands import Option, options_of, value_of
from yarn_convert.conversion.extension import extend
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import UsageError
from yarn_convert.options import ConvertOptions, RepairOptions, measures, training
from yarn_convert.options import commands as asked
from yarn_convert.options import recipe as asked_recipe

ROOT = Path(__file__).parents[1]
TINY = [sys.executable, "-m", "yarn_convert"]


def leaves(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by its words, and those groups that are commands too."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from leaves(found, (*words, name))
            if found.callback is None:
                continue
        yield " ".join((*words, name)), found


OPTIONS = (asked_recipe, asked, measures, training)
COMMANDS = {"": typer.main.get_command(cli.app), **dict(leaves(typer.main.get_command(cli.app)))}


def told(command: Any) -> list[Option]:
    """The options of the dataclasses that the command's function takes."""
    function = inspect.unwrap(command.callback)
    found = get_type_hints(function)
    return [o for name in inspect.signature(function).parameters if is_dataclass(found[name]) for o in options_of(found[name])]


def test_the_commands_are_all_there() -> None:
    assert set(COMMANDS) == {
        "", "convert", "overrides", "validate", "finetune", "upload", "card", "inspect", "repair", "recipe", "methods", "docs", "runtimes", "runtimes add",
        "evaluate perplexity", "evaluate passkey", "evaluate needle", "evaluate ruler", "evaluate longppl", "evaluate divergence", "evaluate temperature", "evaluate advise",
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_of_every_command_stands_at_a_field_with_a_help(words: str) -> None:
    command = COMMANDS[words]
    shown = [p for p in command.params if p.param_type_name == "option" and p.name not in ("help", "install_completion", "show_completion")]
    fields_ = [o for o in told(command) if not o.help.argument]
    assert [(p.name, p.help) for p in shown] == [(o.name, o.help.text) for o in fields_], "in this order"
    for p, o in zip(shown, fields_, strict=True):
        assert {*p.opts, *p.secondary_opts} == {name for spelled in o.spelled for name in spelled.split("/")}
        assert o.help.text.endswith((".", "]", ")", "?")), o.name
    names = [o.name for o in told(command)]
    assert len(names) == len(set(names)), "two parts of a command have an option of one name"


def dataclasses_of(module: Any) -> list[type]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__]


def all_fields() -> Iterator[tuple[type, str, Help]]:
    from yarn_convert.cli import commands
    from yarn_convert.cli import evaluate as cli_evaluate
    from yarn_convert.cli import finetune as cli_finetune

    for module in (*OPTIONS, commands, cli, cli_evaluate, cli_finetune):
        for kind in dataclasses_of(module):
            for f in fields(kind):
                if f.name in hints(kind):
                    for mark in split(hints(kind)[f.name])[1]:
                        if isinstance(mark, Help):
                            yield kind, f.name, mark


def test_no_option_is_written_twice() -> None:
    """Where two commands have the same, it is a part of both, or one annotation: the very same object."""
    known: dict[str, Help] = {}
    for kind, name, mark in all_fields():
        assert known.setdefault(mark.text, mark) is mark, f"{kind.__name__}.{name}"
    assert len(known) > 60


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_has_a_default_that_its_field_has_not(words: str) -> None:
    """Given nothing, the dataclass is the one that the library has."""
    command = COMMANDS[words]
    required = [p for p in command.params if p.required]
    given = [word for p in required for word in (["x"] if p.param_type_name == "argument" else [p.opts[0], "1"])]
    values = command.make_context(words, given).params
    for o in told(command):
        if o.default is not MISSING:
            assert value_of(o, values[o.name]) in (MISSING, o.default), o.name


@pytest.mark.parametrize("kind", [kind for module in OPTIONS for kind in dataclasses_of(module)])
def test_a_positional_call_is_impossible(kind: type) -> None:
    """But for the one that says what is asked for: a recipe, or what all measures have in common, or a repository."""
    first, *others = [f for f in fields(kind) if not f.kw_only] or [None]
    assert not others
    assert first is None or first.name in ("recipe", "settings", "repo")
    with pytest.raises(TypeError, match="positional"):
        kind(1.0, 2.0)


@pytest.mark.parametrize(
    ("words", "says", "nearest"),
    [
        (["--ramp", "papr"], "unknown --ramp 'papr'", "paper"),
        (["--out", "ggfu"], "unknown --out 'ggfu'", "gguf"),
        (["--carry", "tensor"], "unknown --carry 'tensor'", "tensors"),
        (["--sliding-window", "of"], "unknown --sliding-window 'of'", "off"),
        (["--method", "yarm"], "unknown --method 'yarm'", "yarn"),
        (["--outtype", "Q4KM", "--out", "gguf"], "unknown --outtype 'q4km'", "q4_k_m"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_nearest(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str], words: list[str], says: str, nearest: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(make_model()), "--scale", "4", *words])
    assert stopped.value.code == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {says}"
    assert hint.startswith(f"hint: did you mean {nearest}? one of ")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["validate", "tiny", "--dtype", "f23"], "f32"),
        (["validate", "tiny", "--runtime", "lama.cpp"], "llama.cpp"),
        (["validate", "tiny", "--ramp", "indx", "--scale", "4"], "index"),
        (["validate", "tiny", "--device", "cpuu"], "cpu"),
        (["repair", "tiny", "--keep", "rope_scalin"], "rope_scaling"),
        (["repair", "tiny", "--method", "liner", "--scale", "4"], "linear"),
        (["evaluate", "perplexity", "tiny", "--windows", "32", "--method", "yran:4"], "yarn"),
        (["evaluate", "perplexity", "tiny", "--windows", "32", "--dtype", "bf61"], "bf16"),
        (["evaluate", "perplexity", "tiny", "--windows", "32", "--runtime", "lama.cpp"], "llama.cpp"),
        (["runtimes", "add", "openvin"], "openvino"),
    ],
)
def test_so_it_is_of_every_command(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], nearest: str
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(make_model().parent)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    assert f"hint: did you mean {nearest}? " in capsys.readouterr().err


def test_a_library_caller_is_answered_in_the_same_words(make_model: MakeModel) -> None:
    model = str(make_model())
    wrong: Any = "papr"
    for call in (
        lambda: convert(model, Recipe(scale=4, ramp=wrong)),
        lambda: extend(open_checkpoint(resolve(model)), Recipe(scale=4, ramp=wrong)),
        lambda: plan_repair(model, RepairOptions(recipe=Recipe(scale=4, ramp=wrong))),
        lambda: check_choices(ConvertOptions(Recipe(ramp=wrong))),
    ):
        with pytest.raises(UsageError, match="unknown --ramp 'papr'") as raised:
            call()
        assert raised.value.hint == "did you mean paper? one of index, paper"


# -- the library ------------------------------------------------------------------------------------------------------


def test_a_text_is_taken_for_a_path(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one writes it in a notebook, whatever the types say."""
    monkeypatch.chdir(tmp_path)
    told: Any = {"output": "a.gguf"}
    assert convert(str(make_model()), Recipe(scale=4), out="gguf", **told).output == Path("a.gguf") and Path("a.gguf").is_file()
    many: Any = [("a.txt", Path("b")), "a.txt"]
    found = [with_paths(measures.EvaluateOptions(texts=measures.Texts(files=files), recipes=("r.yaml",))) for files in many]  # type: ignore[arg-type]
    assert [x.texts.files for x in found] == [(Path("a.txt"), Path("b")), (Path("a.txt"),)] and found[0].recipes == (Path("r.yaml"),)


def test_importing_the_library_costs_nothing() -> None:
    code = "import sys; import yarn_convert; yarn_convert.Recipe(scale=4); yarn_convert.YarnConvertError\n"
    code += "print(sorted({'numpy', 'torch', 'typer', 'rich', 'msgspec', 'gguf'} & {m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_is_a_function_or_a_module() -> None:
    """Also after every module was imported: an import sets the module's name on its package."""
    code = "import pkgutil, importlib, types, yarn_convert as y\n"
    code += "for m in pkgutil.walk_packages(y.__path__, 'yarn_convert.'):\n"
    code += "    if not m.name.endswith(('_worker', '__main__')): importlib.import_module(m.name)\n"
    code += "print(*(type(getattr(y, n)).__name__ for n in ('convert', 'inspect', 'validate', 'upload', 'evaluate', 'Recipe', '__version__')))\n"
    code += "print(*(type(getattr(y.evaluate, n)).__name__ for n in ('perplexity', 'passkey', 'needle', 'ruler', 'longppl', 'divergence', 'temperature', 'advise')))\n"
    code += "from yarn_convert import *; print(sorted(set(y.__all__) - set(dir())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "function function function function module type str",
        "function function function function function function function function",
        "[]",
    ]


def test_an_unknown_name_is_no_attribute() -> None:
    import yarn_convert

    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        yarn_convert.konvert  # noqa: B018
    assert set(yarn_convert.__all__) <= set(dir(yarn_convert))


PROGRAM = """\
import sys
from pathlib import Path
from yarn_convert import Recipe, YarnConvertError, __version__, convert, evaluate, inspect, upload, validate

base, out = sys.argv[1], Path(sys.argv[2])
done = convert(base, Recipe(scale=4), out="gguf", output=out)
context: int = done.manifest.context
found = inspect(str(done.output))
pairs: int = found.pairs["kept"]
checked = validate(str(out), base=base, tokens=256, twin=False, runtimes=("llama.cpp",))
measured = evaluate.perplexity([base], evaluate.EvaluateOptions(methods=("none", "yarn:2")), windows=(32, 64))
shown: float | None = measured.rows[1].points[0].perplexity
try:
    convert(base, Recipe(scale=0.5))
except YarnConvertError as e:
    print(__version__, context == found.context, pairs, checked.verdict, shown, e.hint)
"""
WRONG = """
convert(base, Recipe(scale=4), out="ggfu")  # type: ignore[arg-type]
convert(base, Recipe(scale="4"))  # type: ignore[arg-type]
convert(base, Recipe(scale=4), outt="gguf")  # type: ignore[call-arg]
convert(base, Recipe(scale=4), "gguf")  # type: ignore[call-arg]
text: str = done.output  # type: ignore[assignment]
name: int = found.name  # type: ignore[assignment]
verdict: int = checked.verdict  # type: ignore[assignment]
row: int = measured.rows[0]  # type: ignore[assignment]
url: int = upload(base, "me/long", private=True).url  # type: ignore[assignment]
"""


def test_ten_lines_of_a_user_are_typed_and_run(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file", os.devnull, "--cache-dir", ".cache"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run([*command, program.name], capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stdout
    program.write_text(PROGRAM)
    words = [sys.executable, str(program), str(make_model()), str(tmp_path / "out.gguf")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, same, *_ = done.stdout.split()
    assert (version, same) == ("0.1.0", "True") and "passed" in done.stdout


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "yarn_convert" / "py.typed").is_file()


# -- what is returned is what is printed ------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[dict[str, Any], str]:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words), "--json"])
    assert stopped.value.code in (0, 3)
    text = capsys.readouterr().out
    return json.loads(text), text


CHANGING = {"created", "seconds", "tokens_per_second", "modified"}


def still(value: Any) -> Any:
    """Without what is another each time."""
    if isinstance(value, dict):
        return {k: still(v) for k, v in value.items() if k not in CHANGING}
    return [still(v) for v in value] if isinstance(value, list) else value


def same(result: dict[str, Any], told: dict[str, Any]) -> bool:
    """Member by member, in the order in which they stand."""
    return json.dumps(still(result)) == json.dumps(still(told))


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_convert_returns_what_is_printed(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    model, fmt = str(make_model()), "gguf" if out.endswith("gguf") else "safetensors"
    told, _ = printed(capsys, model, "--scale", 4, "--out", fmt, "-o", tmp_path / out, "--hash")
    done = convert(model, Recipe(scale=4), out=fmt, output=tmp_path / out, hash=True, force=True)
    assert done.output == tmp_path / out
    assert done.manifest.context == 4 * CONTEXT
    assert same(done.to_dict(), told)


def test_convert_in_place_returns_what_is_printed(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, results = str(make_model()), []
    for path in (tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"):
        path.parent.mkdir()
        convert(model, Recipe(method="none"), out="gguf", output=path)
        how = {"in_place": True, "hash": True}
        results.append(convert(str(path), Recipe(scale=4), **how).to_dict() if results else
                       printed(capsys, path, "--scale", 4, "--in-place", "--hash")[0])  # fmt: skip
    assert len({r.pop("output") for r in results}) == 2
    assert results[0]["weights"]["files"][0]["sha256"]
    assert same(*results)


@pytest.mark.parametrize("out", ["", "out.gguf"])
def test_inspect_returns_what_is_printed(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    model = str(make_model())
    if out:
        model = str(convert(model, Recipe(scale=4), out="gguf", output=tmp_path / out).output)
    told, text = printed(capsys, "inspect", model, "--original-context", 32)
    found = inspect_model(model, recipe=Recipe(original_context=32))
    assert json.dumps(found.to_dict(), indent=2) + "\n" == text
    assert found.original_context == told["original_context"] == 32
    assert list(told) == [
        "name", "format", "architecture", "family", "repo", "commit", "packed", "parameters", "types", "layers", "heads", "kv_heads",
        "head_dim", "rope", "other_layers", "positions", "attention_factor", "original_context", "original_context_note", "context", "scale", "inv_freq",
        "wavelengths", "pairs", "kv_cache_bytes", "inconsistencies",
    ]  # fmt: skip
    assert set(told["types"].popitem()[1]) == {"tensors", "bytes"}


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_validate_returns_what_is_printed(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    model = make_model()
    path = str(convert(str(model), Recipe(scale=4), out="gguf" if "." in out else "safetensors", output=tmp_path / out).output)
    told, _ = printed(capsys, "validate", path, "--base", model, "--tokens", 128, "--twin-tokens", 128)
    result = validate(path, base=str(model), tokens=128, twin_tokens=128)
    assert result.passed and result.verdict == told["verdict"]
    assert same(result.to_dict(), told)
    assert {r.verdict for s in result.studies for r in s.runtimes} == {"passed"}


def test_a_failed_validation_returns_what_is_printed(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a runtime that fails, whose result has other members."""
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    path = str(convert(str(make_model()), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf").output)
    words = ("--scale", 8, "--tokens", 128, "--twin-tokens", 512, "--runtime", "llama.cpp")
    told, _ = printed(capsys, "validate", path, *words)
    result = validate(path, recipe=Recipe(scale=8), tokens=128, twin_tokens=512, runtimes=("llama.cpp",))
    assert told["verdict"] == result.verdict == "failed"
    assert not result.passed
    assert still(result.to_dict()) == still(told)
    assert "failed" in {r.verdict for s in result.studies for r in s.runtimes}


MEASURES: dict[str, tuple[list[str], Any]] = {
    "perplexity": (
        ["--method", "none,yarn:2", "--windows", "32,64", "--cut", "200", "--documents", "2"],
        lambda m: evaluate.perplexity(
            [m], evaluate.EvaluateOptions(methods=("none", "yarn:2"), texts=evaluate.Texts(cut=200, most=2)), windows=(32, 64)
        ),
    ),
    "passkey": (["--lengths", "600", "--trials", "2"], lambda m: evaluate.passkey([m], lengths=(600,), trials=2)),
    "longppl": (["--window", "200", "--short-context", "64"], lambda m: evaluate.longppl([m], window=200, short_context=64)),
    "divergence": (
        ["--method", "yarn:2", "--window", "60", "--segments", "2"],
        lambda m: evaluate.divergence([m], evaluate.EvaluateOptions(methods=("yarn:2",)), window=60, segments=2),
    ),
    "needle": (["--lengths", "600", "--trials", "1"], lambda m: evaluate.needle([m], lengths=(600,), trials=1)),
    "temperature": (
        ["--scale", "2", "--multipliers", "1.2", "--segments", "2"],
        lambda m: evaluate.temperature([m], evaluate.EvaluateOptions(recipe=Recipe(scale=2)), multipliers=(1.2,), segments=2),
    ),
    "advise": (["--context", "128", "--factor", "2", "--segments", "2"], lambda m: evaluate.advise(m, context=128, factors=(2.0,), segments=2)),
}  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_returns_what_is_printed(make_model: MakeModel, capsys: pytest.CaptureFixture[str], measure: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    model, (words, call) = str(make_model()), MEASURES[measure]
    told, _ = printed(capsys, "evaluate", measure, model, *words)
    result = call(model)
    assert same(result.to_dict(), told)
    assert result.measure == measure and result.models[0].model == model


def test_all_that_a_way_to_compute_says_has_a_member() -> None:
    """What a type does not name would be lost on the way from a measure to its reader."""
    from yarn_convert.evaluation.measured import Measured

    said = {"kind"}
    for worker in (ROOT / "yarn_convert" / "runtimes").glob("*_worker.py"):
        for node in ast.walk(ast.parse(worker.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "finish":
                said |= {k.arg for k in node.keywords if k.arg}
    source = (ROOT / "yarn_convert" / "compute" / "reference.py").read_text()
    (described,) = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "describe")
    said |= {k.value for n in ast.walk(described) if isinstance(n, ast.Dict) for k in n.keys if isinstance(k, ast.Constant)}
    assert said >= {"version", "device", "max_model_len", "peak_device_bytes", "torch", "offloaded"}
    assert said <= set(Measured.__struct_fields__)


def test_errors_are_one_class(make_model: MakeModel) -> None:
    with pytest.raises(YarnConvertError):
        convert(str(make_model()), Recipe(scale=0.5))


@pytest.mark.parametrize("kind", [ConvertOptions, measures.PerplexityOptions, training.FinetuneOptions])
def test_the_mark_of_keywords_is_a_type_to_python_3_10(kind: type) -> None:
    """Which else refuses the whole class: get_type_hints evaluates it as it does any annotation."""
    assert hints(kind)["_"] is Any
