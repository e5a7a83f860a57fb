"""What works with the core dependencies alone, and what the other commands say then; what is imported is declared."""

import ast
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel
from test_layers import MODULES, WORKERS

from yarn_convert.errors import EXTRAS

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BLOCKED = """
import sys
ALLOWED = set({allowed!r})
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Only())
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name)[0]).lower()


def core() -> set[str]:
    """The modules of the core dependencies and of all that they need."""
    wanted, distributions = [plain(r) for r in PROJECT["dependencies"]], set[str]()
    while wanted:
        name = wanted.pop()
        if name not in distributions:
            distributions.add(name)
            with suppress(PackageNotFoundError):  # of another system or Python
                wanted += [plain(r) for r in requires(name) or () if "extra ==" not in r]
    return {module for module, owners in packages_distributions().items() if {plain(o) for o in owners} & distributions}


@pytest.fixture(scope="module")
def core_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that has nothing but the core dependencies."""
    folder = tmp_path_factory.mktemp("core")
    allowed = sorted({*sys.stdlib_module_names, *core(), "yarn_convert", "sitecustomize", "_virtualenv"})
    (folder / "sitecustomize.py").write_text(BLOCKED.format(allowed=allowed))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "HF_HUB_OFFLINE": "1"}


def run(environment: dict[str, str], folder: Path, *args: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yarn_convert", *map(str, args)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_every_command_with_the_core_alone(core_only: dict[str, str], make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    works: list[list[Any]] = [
        ["methods"], ["docs", "formats"], ["runtimes"], ["inspect", model], ["inspect", "--runtimes", model], [model, "--scale", 4, "-o", "out", "-q"],
        [model, "--scale", 4, "--out", "gguf", "--outtype", "q8_0", "-o", "out.gguf", "-q"], ["card", "out"], ["repair", model, "--dry-run"],
        ["out.gguf", "--method", "none", "--out", "safetensors", "-o", "back", "-q"],
        [model, "--scale", 4, "--out", "gguf", "--outtype", "q4_0", "-o", "q.gguf", "-q"],
        ["upload", "out", "a/b", "--help"], ["evaluate"], ["validate", "--help"],
    ]  # fmt: skip
    for args in works:
        done = run(core_only, tmp_path, *args)
        assert done.returncode == 0, (args, done.stderr)
    pickled = make_model(name="pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    needs: list[tuple[list[Any], str]] = [
        (["validate", "out"], "validate"), (["validate", "--twin", "out"], "validate"), (["validate", "out", "--report", "r.html"], "validate"),
        (["evaluate", "perplexity", model, "--windows", "32"], "validate"), (["evaluate", "passkey", model], "validate"),
        (["evaluate", "temperature", model, "--scale", 4], "validate"), (["evaluate", "advise", model, "--context", 128], "validate"),
        (["evaluate", "advise", model, "--context", 128, "--search"], "search"),
        (["evaluate", "perplexity", "out.gguf", "--windows", "32", "--runtime", "llama.cpp"], "validate"),
        ([model, "--scale", 4, "--out", "gguf", "--outtype", "q4_k_m", "-o", "q.gguf"], "llama-cpp"),
        ([pickled, "--scale", 4], "torch"),
    ]  # fmt: skip
    for args, extra in needs:
        done = run(core_only, tmp_path, *args)
        assert done.returncode == 1 and f"hint: pip install 'yarn-convert[{extra}]'" in done.stderr.replace("-U ", ""), (args, done.stderr)
        assert "Traceback" not in done.stderr


def test_what_is_imported_is_declared() -> None:
    """Each package that a module of ours imports is a core dependency or in an extra; the runtimes of private environments are not ours."""
    declared = {plain(r) for r in [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]}
    owners = packages_distributions()
    for name, path in MODULES.items():
        if name in WORKERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            for module in {n.partition(".")[0] for n in names} - sys.stdlib_module_names - {"yarn_convert"}:
                assert {plain(o) for o in owners[module]} & declared, f"{name} imports {module}"


def test_an_extra_brings_what_it_is_said_to_bring() -> None:
    owners = packages_distributions()
    for extra, modules in EXTRAS.items():
        brought = {plain(r) for r in PROJECT["optional-dependencies"][extra]}
        assert all({plain(o) for o in owners[m]} & brought for m in modules), extra


@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.6])
def test_ctrl_c_while_it_starts_is_one_line(tmp_path: Path, after: float) -> None:
    """The interpreter's own start is not ours: the signal comes when the entry point has begun."""
    code = (
        "import signal, sys, threading, time, os\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"threading.Thread(target=lambda: (time.sleep({after}), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()\n"
        "sys.argv = ['yarn-convert', 'methods', '--json']\n"
        "from yarn_convert.__main__ import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert json.loads(done.stdout)["methods"]  # it was faster
    else:
        assert done.returncode == 130 and done.stderr.startswith("error: interrupted") and "Traceback" not in done.stderr


def test_no_secret_reaches_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from yarn_convert.runtimes.environments import without_secrets

    given = {
        "HF_TOKEN": "t",
        "OPENAI_API_KEY": "k",
        "MY_PASSWORD": "p",
        "AWS_SECRET_ACCESS_KEY": "s",
        "PATH": "/bin",
        "TOKENIZERS_PARALLELISM": "0",
    }
    kept = without_secrets(given)
    assert {k: v for k, v in kept.items() if k in given} == {"PATH": "/bin", "TOKENIZERS_PARALLELISM": "0"}
    assert kept["HF_TOKEN_PATH"] == os.devnull
