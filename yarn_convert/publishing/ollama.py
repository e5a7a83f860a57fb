"""A Modelfile for a GGUF, and `ollama create` with it. The template is the GGUF's own, which Ollama finds there (server/create.go)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from ..checkpoint.manifest import Manifest
from ..checkpoint.naming import plain_name, quantization_of
from ..errors import OutputError, UsageError
from ..formats.gguf_file import open_gguf
from ..formats.split import stem_of
from ..targets.output import replace_file


def modelfile_path(out: Path) -> Path:
    """Where the Modelfile of a GGUF lies."""
    return out.with_name(f"{stem_of(out)}.Modelfile")


def check_modelfile(out: Path, force: bool) -> None:
    """Raise UsageError for a folder, OutputError where one lies there already."""
    if out.suffix != ".gguf":
        raise UsageError("--ollama is for a GGUF", "--out gguf --ollama")
    if modelfile_path(out).exists() and not force:
        raise OutputError(f"{modelfile_path(out)} exists", "--force replaces it")


def model_name(out: Path) -> str:
    """What Ollama shall call it: the type of its weights is the tag."""
    stem = stem_of(out)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain_name(stem)).strip("-._") or "model"
    kind = quantization_of(out.name)
    return f"{name}:{kind.lower()}" if kind else name


def modelfile(out: Path, manifest: Manifest) -> str:
    """FROM, each part of a split one; num_ctx, without which Ollama serves a few thousand tokens; and the licence that the GGUF names."""
    files = [f.file for f in manifest.weights.files] or [out.name]
    lines = [f"FROM ./{name}" for name in files] + [f"PARAMETER num_ctx {manifest.context}"]
    licence = open_gguf(out).get("general.license")
    if isinstance(licence, str) and licence.strip() and '"' not in licence:
        lines.append(f'LICENSE """{licence.strip()}"""')
    return "\n".join(lines) + "\n"


def create(out: Path, manifest: Manifest) -> str:
    """Write the Modelfile beside `out` and make the model where Ollama is here; a line that says so, or what to run. OutputError where
    Ollama does not take it."""
    path = modelfile_path(out)
    replace_file(path, modelfile(out, manifest).encode(), like=out)
    command = ["ollama", "create", model_name(out), "-f", str(path)]
    if shutil.which("ollama") is None:
        return f"ollama is not here; where it is: {shlex.join(command)}"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OutputError(f"ollama create failed: {said}", f"{out} and {path} are there: see 'ollama serve'")
    return f"ollama run {model_name(out)}"
