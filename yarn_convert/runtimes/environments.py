"""Where a runtime is installed: in this environment, or in a private one of its own, which `add` builds.

Runtimes pin versions that exclude each other, so each gets a virtual environment, `home()`/NAME. One is complete when its
stamp, written last, holds what the table asks for now: neither a half-made nor an outdated one is ever run.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError, there
from . import library
from .table import RUNTIMES, Runtime, runtime_of

LOCKS = Path(__file__).parent / "locks"
STAMP = "yarn-convert-runtime.txt"
NETWORK = "an installation needs the network, or pip's settings for a mirror of it; repeat it with the same command"
TELLING = ("Collecting ", "Downloading ", "Building wheel", "Installing collected ", "Successfully installed")


def home() -> Path:
    """The folder of the private environments: $YARN_CONVERT_RUNTIMES, or the user's cache folder."""
    if given := os.environ.get("YARN_CONVERT_RUNTIMES"):
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "yarn-convert" / "runtimes"


def python_of(name: str) -> Path | None:
    """The interpreter that can run it: this one, else that of its complete private environment, else None."""
    row = runtime_of(name)
    if is_here(row):
        return Path(sys.executable)
    python = _python(home() / row.name)
    return python if _stamped(row) and python.exists() else None


def environment_of(name: str) -> dict[str, str]:
    """The variables to set for its worker, on top of this process's environment, of which LD_PRELOAD is continued.

    MLX on Linux brings a reference BLAS of one thread; OpenBLAS loaded in front of it is many times faster.
    """
    row = runtime_of(name)
    env = dict(row.env)
    if row.name == "mlx-lm" and (blas := openblas()):
        before = os.environ.get("LD_PRELOAD")
        env["LD_PRELOAD"] = f"{blas}:{before}" if before else blas
    if row.name == "llama.cpp" and (folder := library.GIVEN.get()):
        env |= library.variables(folder)
    return env


SECRET = {"TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "KEY", "KEYS", "APIKEY"}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of another program's process: none that a word of its name calls a secret, and no login of the Hub. What a
    package brings is code of strangers, and neither pip nor a worker has anything to log in to."""
    kept = {name: value for name, value in environment.items() if not SECRET & set(name.upper().split("_"))}
    return kept | {"HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def openblas() -> str | None:
    """OpenBLAS as the loader finds it, or a path of it; None when this is not Linux or it is not installed."""
    if not sys.platform.startswith("linux"):
        return None
    folders = [Path("/usr/lib64"), Path("/usr/lib"), Path("/usr/local/lib"), *sorted(Path("/usr/lib").glob("*-linux-gnu*/openblas-*"))]
    paths = (str(folder / "libopenblas.so.0") for folder in folders if (folder / "libopenblas.so.0").exists())
    return ctypes.util.find_library("openblas") or next(paths, None)


def listing() -> list[dict[str, Any]]:
    """For each runtime its name, `where` ("this environment", a folder or None), version, reads, note, modes and what is otherwise in
    them, and `add`: how to get it.

    No runtime is imported. `add` is None for one that is there; an outdated private environment is as good as none.
    """
    rows = []
    for name, row in RUNTIMES.items():
        python = python_of(name)
        here = python is not None and is_here(row)
        where = None if python is None else "this environment" if here else str(home() / name)
        version = None if python is None else _version(row, None if here else python)
        add = None if python else f"yarn-convert runtimes add {name}"
        modes = {mode: m.says for mode, m in row.modes.items()}
        rows.append({"name": name, "where": where, "version": version, "reads": row.reads, "note": row.note, "modes": modes, "add": add})
    return rows


def add(name: str, report: Callable[[str], None], force: bool = False) -> Path:
    """The interpreter that can run it, after building its private environment unless there is one (`force`: anew, always).

    `report` is given one line at a time. Raises OutputError with pip's own last word when something cannot be installed,
    and leaves then what is no complete environment.
    """
    row = runtime_of(name)
    name, folder = row.name, home() / row.name
    if not force and (there := python_of(name)):
        report(f"{name} is already in {'this environment' if is_here(row) else folder}")
        return there
    _clear(folder)
    python = _python(folder)
    report(f"making {folder}" + (f" ({row.note})" if row.note else ""))
    _call([sys.executable, "-m", "venv", str(folder)], f"no virtual environment can be made in {folder}", "is Python's venv installed?")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    steps = [("install", "--progress-bar", "off", *part) for part in _in_order(row)]
    if row.remove:
        steps.append(("uninstall", "-y", *row.remove))
    for step in steps:
        report("pip " + " ".join(word for word in step if word not in ("--progress-bar", "off", "-y")))
        _call([*pip, *step], f"pip could not {step[0]} what {name} needs", NETWORK, report, row.build)
    for module in (*row.also, row.module):
        command = [str(python), "-I", "-c", f"import {module}"]  # -I: not from the current folder
        _call(command, f"{name} is installed, but {module} cannot be imported", row.note, more=environment_of(name))
    try:
        (folder / STAMP).write_text(_stamp(row), "utf-8")
    except OSError as error:
        raise OutputError(f"{folder / STAMP} cannot be written: {error.strerror}", "see the folder's rights and the disk's room") from error
    report(f"{name} {_version(row, python) or ''} is ready in {folder}")
    return python


def is_here(row: Runtime) -> bool:
    """Whether this interpreter finds every import of its worker, none of which is imported for that."""
    return all(there(module) for module in (*row.also, row.module))


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp(row: Runtime) -> str:
    lock = _lock(row)
    locked = [f"lock {hashlib.sha256(lock.read_bytes()).hexdigest()}"] if lock else []
    return "".join(f"{line}\n" for line in (*row.install, *(f"without {name}" for name in row.remove), *locked))


def _lock(row: Runtime) -> Path | None:
    """Every package of its environment, with hashes, as tools/make_runtime_locks.py wrote it."""
    path = LOCKS / f"{row.name}.txt"
    return path if path.is_file() else None


def _stamped(row: Runtime) -> bool:
    try:
        return (home() / row.name / STAMP).read_text("utf-8") == _stamp(row)
    except (OSError, UnicodeDecodeError):
        return False


def _in_order(row: Runtime) -> list[Sequence[str]]:
    """PyTorch by itself, so that nothing else has a say in its build; of the others just the files that the lock has hashes of."""
    torch = [line for line in row.install if line.startswith("torch==")]
    if lock := _lock(row):
        return [["--no-deps", "--require-hashes", "-r", str(lock)], *([torch] if torch else [])]
    return [torch, row.install] if torch and len(row.install) > 1 else [row.install]


def _version(row: Runtime, python: Path | None) -> str | None:
    """The version of its distribution in this environment or, with `python`, in that one."""
    if python is None:
        try:
            return importlib.metadata.version(row.distribution)
        except importlib.metadata.PackageNotFoundError:  # another build of it, under another name
            owners = importlib.metadata.packages_distributions().get(row.module.partition(".")[0], [])
            return importlib.metadata.version(owners[0]) if owners else None
    code = f"from importlib.metadata import version; print(version({row.distribution!r}))"
    try:
        done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _clear(folder: Path) -> None:
    """Take away what an earlier or interrupted `add` left. Raises OutputError at a folder that holds something else."""
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
            raise OutputError(f"{folder} exists and is not a virtual environment", "name another folder in YARN_CONVERT_RUNTIMES")
        if folder.is_dir():
            (folder / STAMP).unlink(missing_ok=True)  # first: while the rest goes, it is no complete environment
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made anew: {error.strerror or error}", "see its rights") from error


def _call(
    command: list[str], message: str, hint: str, report: Callable[[str], None] | None = None, more: Mapping[str, str] | None = None
) -> None:
    """Run it, with the variables `more`; its telling lines go to `report` as they come. Raises OutputError with `message` and its
    last telling line."""
    lines: list[str] = []
    env = without_secrets(os.environ) | dict(more or {})
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", env=env
        ) as process:
            for line in process.stdout or ():
                if line.strip():
                    lines.append(line.strip())
                if report and line.startswith(TELLING):
                    report(line.strip())
    except OSError as error:
        raise OutputError(f"{message}: {error.strerror}", hint) from error
    if process.returncode:
        errors = [line.partition(":")[2].strip() for line in lines if line.upper().startswith("ERROR:")]
        last = (errors or lines or [f"exit code {process.returncode}"])[-1]
        raise OutputError(f"{message}: {last}", hint)
