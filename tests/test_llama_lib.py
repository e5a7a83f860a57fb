"""A llama.cpp of the user's own: it is what runs, it is said which one, and one whose structs are others is refused before it computes."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel
from test_validate import extended

from yarn_convert import runtimes
from yarn_convert.cli import main as command
from yarn_convert.errors import UsageError
from yarn_convert.evaluation import EvaluateOptions, ResultJournal
from yarn_convert.evaluation.subjects import Subject
from yarn_convert.runtimes import library, llama_cpp_library
from yarn_convert.runtimes.library import NAMES, VARIABLE, folder_of, using

llama_cpp = pytest.importorskip("llama_cpp")
INSTALLED = Path(llama_cpp.llama_cpp._base_path)


def main(words: list[str]) -> Any:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as e:
        command(words)
    return e.value.code


HERE = pytest.mark.usefixtures("real_workers")  # in a fork llama_cpp is imported already, with its own library


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the installed one: another library, to whoever looks where it lies."""
    folder = tmp_path_factory.mktemp("own") / "bin"
    shutil.copytree(INSTALLED, folder, symlinks=True)
    return folder


@pytest.fixture
def validated(make_model: MakeModel, tmp_path: Path) -> Path:
    return extended(make_model(), tmp_path / "out.gguf")


@HERE
@pytest.mark.parametrize("how", ["folder", "file", "variable"])
def test_it_is_what_runs_and_the_result_says_which(
    validated: Path, own: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"folder": [str(own)], "file": [str(own / NAMES[0])], "variable": []}[how]
    if not words:
        monkeypatch.setenv(VARIABLE, str(own))
    code = main(["validate", str(validated), "--twin", "--twin-tokens", "128", *(["--llama-lib", *words] if words else [])])
    out = capsys.readouterr().out
    digest = hashlib.sha256((own / NAMES[0]).read_bytes()).hexdigest()
    version, commit = llama_cpp_library.version_of(llama_cpp.llama_cpp._lib)
    assert code == 0, out
    assert f"commit {commit}, SHA-256 {digest}" in out and f"llama.cpp {version}: passed" in out and version and commit


@HERE
def test_without_the_option_nothing_is_said_of_a_library(own: Path) -> None:
    plain, mine = runtimes.probe(None), runtimes.probe(own)
    assert "library" not in plain and plain["devices"] == mine["devices"]
    assert {d["kind"] for d in mine["devices"]} >= {"CPU"}
    loaded = mine["library"]["sha256"]
    assert any("ggml-cpu" in name for name in loaded) and all((own / name).exists() for name in loaded), "its ggml is the one beside it"


def not_a_library(folder: Path) -> None:
    (folder / NAMES[0]).write_text("not a library")


def another_library(folder: Path) -> None:
    shutil.copy(ctypes.CDLL("libc.so.6")._name if Path("libc.so.6").exists() else "/lib/x86_64-linux-gnu/libc.so.6", folder / NAMES[0])


@HERE
@pytest.mark.skipif(not Path("/lib/x86_64-linux-gnu/libc.so.6").exists(), reason="no libc to take")
@pytest.mark.parametrize(("made", "says"), [(not_a_library, "cannot be loaded"), (another_library, "llama_max_devices is not in it")])
def test_what_is_no_llama_cpp_is_one_line(
    validated: Path, tmp_path: Path, made: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    made(tmp_path / "bin")
    assert main(["validate", str(validated), "--twin", "-q", "--llama-lib", str(tmp_path / "bin")]) == 1
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 2 and not said.out


def test_a_place_without_it_is_said(tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, says in (
        (tmp_path / "no", "is not there"),
        (tmp_path, f"holds no {NAMES[0]}"),
        (own / next(own.glob("*ggml*")).name, f"is not {NAMES[0]}"),
    ):
        with pytest.raises(UsageError, match=says):
            folder_of(place)
        monkeypatch.setenv(VARIABLE, str(place))
        with pytest.raises(UsageError, match=f"^{VARIABLE}: .*{says}"):
            folder_of(None)
        assert folder_of(own) == own, "the option wins"
    monkeypatch.delenv(VARIABLE)
    assert folder_of(None) is None


def test_it_is_refused_where_nothing_would_run_it(make_model: MakeModel, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(make_model())
    for words in (["validate", model, "--twin"], ["evaluate", "perplexity", model, "--windows", "64"]):
        assert main([*words, "--llama-lib", str(own)]) == 1
        assert "--llama-lib is a llama.cpp" in capsys.readouterr().err


@pytest.fixture
def structs() -> Iterator[Any]:
    """The module of llama-cpp-python that has the structs, as one that tests may change."""
    from types import SimpleNamespace

    yield SimpleNamespace(**vars(llama_cpp.llama_cpp))


def with_field(struct: Any, at: str, kind: Any) -> Any:
    """A struct with one field more before `at`: what llama-cpp-python of another version takes for it."""
    names = [name for name, _ in struct._fields_]
    fields = list(struct._fields_)
    fields.insert(names.index(at) if at else len(names), ("another", kind))
    return type(struct.__name__, (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.parametrize(
    ("name", "at", "kind"),
    [
        ("llama_context_params", "n_batch", ctypes.c_uint32), ("llama_context_params", "type_k", ctypes.c_void_p),
        ("llama_context_params", "offload_kqv", ctypes.c_bool), ("llama_context_params", "", ctypes.c_void_p),
        ("llama_model_params", "n_gpu_layers", ctypes.c_void_p), ("llama_model_params", "use_extra_bufts", ctypes.c_bool),
        ("llama_model_params", "", ctypes.c_size_t), ("llama_batch", "pos", ctypes.c_void_p), ("llama_batch", "", ctypes.c_void_p),
    ],
)  # fmt: skip
@pytest.mark.skipif(not llama_cpp_library._pointed(), reason="elsewhere the size of a struct cannot be seen, and versions are compared")
def test_structs_of_another_version_are_refused(structs: Any, name: str, at: str, kind: Any) -> None:
    assert llama_cpp_library.unlike(structs) == ""
    setattr(structs, name, with_field(getattr(structs, name), at, kind))
    assert llama_cpp_library.unlike(structs).startswith(f"its {name} ")
    if (name, at) == ("llama_model_params", ""):
        return  # the last bool is where a struct without it has nothing: it keeps its default, whoever counts
    fewer = getattr(llama_cpp.llama_cpp, name)
    setattr(
        structs, name, type(name, (ctypes.Structure,), {"_fields_": [f for f in fewer._fields_ if f[0] != (at or fewer._fields_[-1][0])]})
    )
    assert llama_cpp_library.unlike(structs).startswith(f"its {name} ")


def test_where_a_size_cannot_be_seen_the_version_has_to_be_the_same(structs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_library, "_pointed", lambda: False)
    assert llama_cpp_library.unlike(structs) == ""
    monkeypatch.setattr(llama_cpp_library, "_installed", lambda: "0.1.2 abc")
    assert "0.1.2 abc" in llama_cpp_library.unlike(structs)


def test_a_worker_of_a_library_that_does_not_fit_computes_nothing(own: Path, tmp_path: Path) -> None:
    """As the worker meets it: a field that llama-cpp-python has and this library does not."""
    code = (
        "import ctypes, sys\nfrom pathlib import Path\nimport llama_cpp, llama_cpp_library as l\nm = llama_cpp.llama_cpp\n"
        "class llama_batch(ctypes.Structure):\n    _fields_ = [('more', ctypes.c_int64), *m.llama_batch._fields_]\nm.llama_batch = llama_batch\n"
        f"try:\n    l.load(Path({str(own)!r}))\nexcept l.Unfit as e:\n    sys.exit(str(e))"
    )
    env = {"PYTHONPATH": str(Path(library.__file__).parent), **library.variables(own)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1 and done.stderr.startswith("its llama_batch ")


@HERE
def test_a_perplexity_by_it_is_not_taken_from_another_ones_journal(validated: Path, own: Path, tmp_path: Path) -> None:
    def subject(folder: Path | None) -> Subject:
        return Subject(str(validated), EvaluateOptions(runtime="llama.cpp", llama_lib=folder), ResultJournal(None))

    from yarn_convert.evaluation.subjects import lines_of

    plain, mine = subject(None), subject(own)
    (line,) = lines_of(mine.c, mine.settings)
    assert plain.key(line, 1) != mine.key(line, 1) == subject(own).key(line, 1)
    ids = np.arange(3, 40)
    assert mine.scorer.losses(line.rope, ids, 1) == pytest.approx(plain.scorer.losses(line.rope, ids, 1), abs=1e-6)
    assert mine.describe()["library"]["sha256"] and "library" not in plain.describe()


def test_the_choice_of_a_library_ends_with_its_command(own: Path) -> None:
    from yarn_convert.runtimes.environments import environment_of

    with using(own):
        assert environment_of("llama.cpp:fa")["LLAMA_CPP_LIB_PATH"] == str(own)
        assert "LLAMA_CPP_LIB_PATH" not in environment_of("transformers")
    assert "LLAMA_CPP_LIB_PATH" not in environment_of("llama.cpp")
