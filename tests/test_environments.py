"""Private environments of runtimes: which one is taken, what is left behind, and that `add` really builds one, without a network."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_convert.cli import main
from yarn_convert.errors import OutputError, UsageError
from yarn_convert.runtimes import environments
from yarn_convert.runtimes.table import RUNTIMES, Runtime

PYTHON = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"


def wheel(folder: Path, name: str, version: str = "1.5", code: str = "") -> str:
    """A distribution of one module of its name, which pip installs without a build."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": "".join(f"{f},,\n" for f in [*files, f"{info}/RECORD"])}.items():
            archive.writestr(file, text)
    return str(path)


def row(name: str, module: str, install: tuple[str, ...] = (), **given: Any) -> Runtime:
    return Runtime(name, "safetensors", "none.py", module, given.pop("distribution", module), install, "transformers-5", 1.0, **given)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Runtime]:
    """A table of this test's own, private environments in tmp_path, and a pip that reaches no index."""
    table: dict[str, Runtime] = {}
    for room in ("environments", "table"):
        monkeypatch.setattr(f"yarn_convert.runtimes.{room}.RUNTIMES", table)
    monkeypatch.setenv("YARN_CONVERT_RUNTIMES", str(tmp_path / "runtimes"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "no-pip.conf"))
    return table


def pretend(folder: Path, stamp: str | None) -> Path:
    """What `add` leaves, but for what it installs."""
    python = folder / PYTHON
    python.parent.mkdir(parents=True)
    python.write_text("")
    (folder / "pyvenv.cfg").write_text("")
    if stamp is not None:
        (folder / environments.STAMP).write_text(stamp)
    return python


def test_the_table_is_whole() -> None:
    workers = Path(environments.__file__).parent
    for name, entry in RUNTIMES.items():
        assert entry.name == name and entry.note and (workers / entry.worker).is_file()
        assert entry.install and all("==" in line for line in entry.install)


def test_where_the_private_ones_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARN_CONVERT_RUNTIMES", str(tmp_path))
    assert environments.home() == tmp_path
    monkeypatch.delenv("YARN_CONVERT_RUNTIMES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments.home() == tmp_path / "yarn-convert" / "runtimes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environments.home() == Path.home() / ".cache" / "yarn-convert" / "runtimes"


def test_one_in_this_environment_is_taken_without_an_import(rows: dict[str, Runtime]) -> None:
    rows["here"] = row("here", "numpy", also=("this",))  # a module that prints when it is imported
    rows["elsewhere"] = row("elsewhere", "numpy", distribution="numpy-of-another-build")
    rows["dotted"] = row("dotted", "no_such_parent.child")
    rows["partly"] = row("partly", "numpy", also=("no_such_module",))
    assert environments.python_of("here") == Path(sys.executable) and "this" not in sys.modules
    assert environments.python_of("dotted") is None and environments.python_of("partly") is None
    here, elsewhere, dotted, _ = environments.listing()
    assert here["where"] == "this environment" and here["version"] == elsewhere["version"] == np.__version__ and here["add"] is None
    assert dotted["where"] is dotted["version"] is None and dotted["add"] == "yarn-convert runtimes add dotted"


def test_a_half_made_or_outdated_one_is_not_taken(rows: dict[str, Runtime], tmp_path: Path) -> None:
    rows["r"] = row("r", "no_such_module", ("a==1", "b==2"), remove=("c",))
    folder = tmp_path / "runtimes" / "r"
    python = pretend(folder, None)
    assert environments.python_of("r") is None
    for stamp, taken in (("a==1\nb==2\nwithout c\n", True), ("a==1\nb==2\n", False), ("a==1\nb==3\nwithout c\n", False), ("", False)):
        (folder / environments.STAMP).write_text(stamp)
        assert environments.python_of("r") == (python if taken else None)
    (folder / environments.STAMP).write_bytes(b"\xff\xfe")
    assert environments.python_of("r") is None
    (folder / environments.STAMP).write_text("a==1\nb==2\nwithout c\n")
    python.unlink()  # the interpreter that it was made with is gone
    assert environments.python_of("r") is None


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(UsageError, match="unknown runtime 'tensorflow'") as raised:
        environments.python_of("tensorflow")
    assert "mlx-lm" in raised.value.hint


def test_add_builds_one_and_says_how_it_goes(rows: dict[str, Runtime], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install = (wheel(tmp_path, "unwanted"), wheel(tmp_path, "little_runtime", code="import os; assert os.environ['NEEDED'] == '1'"))
    rows["little"] = row("little", "little_runtime", install, remove=("unwanted",), env={"NEEDED": "1"}, note="a note")
    folder, said = tmp_path / "runtimes" / "little", []
    pretend(folder, None)  # what an interrupted one left
    (folder / "left.txt").write_text("")
    python = environments.add("little", said.append)
    assert python == folder / PYTHON == environments.python_of("little") and not (folder / "left.txt").exists()
    assert "a note" in said[0] and any(line.startswith("Installing collected packages") for line in said)
    assert "pip uninstall unwanted" in said and said[-1] == f"little 1.5 is ready in {folder}" and all("\n" not in line for line in said)
    gone = subprocess.run([python, "-c", "import unwanted"], capture_output=True, check=False)
    assert gone.returncode == 1
    (entry,) = environments.listing()
    assert (entry["where"], entry["version"], entry["add"]) == (str(folder), "1.5", None)

    said.clear()
    assert environments.add("little", said.append) == python and said == [f"little is already in {folder}"]
    with pytest.raises(SystemExit):
        main(["runtimes", "add", "little", "--json"])
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == ([{"name": "little", "python": str(python)}], "")
    rows["little"] = row("little", "little_runtime", ("no-such-package==7",))
    assert environments.python_of("little") is None  # the table asks for something else now
    with pytest.raises(
        OutputError, match=r"^pip could not install what little needs: No matching distribution found for no-such-package==7"
    ) as raised:
        environments.add("little", said.append)
    assert "\n" not in str(raised.value) and raised.value.hint and not (folder / environments.STAMP).exists()


def test_a_lock_takes_no_file_of_another_hash(rows: dict[str, Runtime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(wheel(tmp_path, "locked_runtime"))
    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    rows["locked"] = row("locked", "locked_runtime", ("locked-runtime==1.5",))
    lock = tmp_path / "locked.txt"
    lock.write_text(f"locked-runtime==1.5 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(OutputError, match=r"(?i)hash"):
        environments.add("locked", lambda line: None)
    assert environments.python_of("locked") is None
    lock.write_text(f"locked-runtime==1.5 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    assert environments.add("locked", lambda line: None) == environments.python_of("locked")
    lock.write_text(lock.read_text() + "# another lock\n")
    assert environments.python_of("locked") is None


def test_every_runtime_has_a_lock_of_what_the_table_asks_for() -> None:
    for name, entry in RUNTIMES.items():
        text = (environments.LOCKS / f"{name}.txt").read_text("utf-8")
        wanted = {
            line.split("[")[0].replace("[cpu]", "") if "[" in line else line for line in entry.install if not line.startswith("torch==")
        }
        assert all(any(line.startswith(w) for line in text.splitlines()) for w in wanted), name
        assert not any(line.startswith((*entry.remove, "torch==")) for line in text.splitlines())
        blocks = [b for b in text.split("\n") if "==" in b]
        assert text.count("--hash=sha256:") >= len(blocks) and "://" not in text


@pytest.mark.parametrize("python", ["3.11.7", "3.12.0", "3.14.1"])
def test_a_lock_has_each_of_its_packages_once_for_every_python(python: str) -> None:
    """A package whose newest version a Python does not take has an older one for that."""
    markers = pytest.importorskip("packaging.markers")
    for name in RUNTIMES:
        lines = re.findall(r"^([\w.-]+)\S*==\S+(?: ; (.*?))? *\\?$", (environments.LOCKS / f"{name}.txt").read_text("utf-8"), re.MULTILINE)
        elsewhere = {package for package, marker in lines if "emscripten" in marker or "win32" in marker or "darwin" in marker}
        given = {"python_full_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
        taken = [package for package, marker in lines if not marker or markers.Marker(marker).evaluate(given)]
        assert sorted(taken) == sorted(set(taken)) and {package for package, _ in lines} - set(taken) <= elsewhere, name


def test_what_cannot_be_imported_is_not_ready(rows: dict[str, Runtime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows["broken"] = row("broken", "broken_runtime", ("torch==1", "x==1"), build={"SKBUILD_CMAKE_DEFINE": "A=OFF"})
    calls: list[list[str]] = []
    defined: list[str | None] = []
    popen = subprocess.Popen
    monkeypatch.delenv("SKBUILD_CMAKE_DEFINE", raising=False)

    def without_pip(command: list[str], **given: Any) -> subprocess.Popen[str]:
        calls.append(command[1:])
        defined.append(given["env"].get("SKBUILD_CMAKE_DEFINE"))
        code = "import sys; print('noise', file=sys.stderr); sys.exit('ImportError: no libx.so')" if "-c" in command else ""
        return popen([sys.executable, "-c", code], **given)

    monkeypatch.setattr(environments.subprocess, "Popen", without_pip)
    with pytest.raises(OutputError, match=r"broken is installed, but broken_runtime cannot be imported: ImportError: no libx.so"):
        environments.add("broken", lambda line: None)
    assert [call[-1] for call in calls] == [str(tmp_path / "runtimes" / "broken"), "torch==1", "x==1", "import broken_runtime"]
    assert calls[2][-2:] == ["torch==1", "x==1"]  # PyTorch alone, then all of it
    assert defined == [None, "A=OFF", "A=OFF", None]
    assert environments.python_of("broken") is None


def test_a_folder_of_something_else_is_kept(rows: dict[str, Runtime], tmp_path: Path) -> None:
    rows["r"] = row("r", "no_such_module", ("a==1",))
    kept = tmp_path / "runtimes" / "r" / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("years")
    with pytest.raises(OutputError, match="is not a virtual environment"):
        environments.add("r", lambda line: None, force=True)
    assert kept.read_text() == "years"


def test_mlx_gets_openblas_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "openblas", lambda: "libopenblas.so.0")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert environments.environment_of("mlx-lm")["LD_PRELOAD"] == "libopenblas.so.0"
    assert "LD_PRELOAD" not in environments.environment_of("vllm")
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", "libother.so")
        assert environments.environment_of("mlx-lm")["LD_PRELOAD"] == "libopenblas.so.0:libother.so"
    monkeypatch.setattr(environments, "openblas", lambda: None)
    assert "LD_PRELOAD" not in environments.environment_of("mlx-lm")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert environments.openblas() is None
