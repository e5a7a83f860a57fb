"""Whether two trees of this project write the same: every family's tiny models, converted by each method into both formats, file by file.

    python tools/compare_outputs.py OLD NEW      # two checkouts; exit code 1 where a byte differs

A manifest is compared without its dates and versions. A refusal is compared by its words.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("none", "linear", "ntk-aware", "ntk-by-parts", "yarn", "dynamic-linear", "dynamic-yarn")
CHANGING = ("created", "yarn_convert", "reader_versions")  # of a manifest


def digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name.endswith("yarn_convert.json"):
        said = json.loads(data)
        data = json.dumps({k: v for k, v in said.items() if k not in CHANGING}).encode()
    return hashlib.sha256(data).hexdigest()


def written(models: Path, work: Path) -> dict[str, Any]:
    """(model, method, format) -> digests of the files of the output, or why there is none; by the tree that is imported here, and by its
    command line, which changes less than its calls."""
    from yarn_convert.__main__ import main as command

    found: dict[str, Any] = {}
    for model in sorted(models.iterdir()):
        for method in METHODS:
            for out in ("gguf", "safetensors"):
                target = work / f"{model.name}-{method}{'.gguf' if out == 'gguf' else ''}"
                key = f"{model.name} {method} {out}"
                words = ["convert", str(model), "--method", method, "--out", out, "-o", str(target), "-q"]
                said = io.StringIO()
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                    sys.argv[1:] = words if method == "none" else [*words, "--scale", "4"]
                    command()
                if "error: " in said.getvalue():
                    found[key] = said.getvalue().replace(str(work), "")
                    continue
                files = sorted(target.rglob("*")) if target.is_dir() else [target, target.with_name(f"{target.stem}.yarn_convert.json")]
                found[key] = {path.name: digest(path) for path in files if path.is_file()}
    return found


def made(models: Path, tests: Path) -> None:
    """Every tiny model of the tests."""
    sys.path.insert(0, str(tests))
    from family_models import make, names  # type: ignore[import-not-found]

    for name in names():
        make(name, models / name.replace("/", "-"))


def child(tree: Path, *words: str) -> str:
    env = dict(os.environ) | {"PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, __file__, *words], env=env, cwd=tree, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--what", choices=("compare", "make", "write"), default="compare", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "make":
        return made(given.new, given.old / "tests")
    if given.what == "write":
        return print(json.dumps(written(given.old, given.new)))
    with tempfile.TemporaryDirectory() as folder:
        models, out = Path(folder, "models"), Path(folder, "out")
        for path in (models, out):
            path.mkdir()
        trees = [path.absolute() for path in (given.old, given.new)]
        child(trees[1], str(trees[1]), str(models), "--what", "make")
        both = []
        for tree in trees:
            both.append(json.loads(child(tree, str(models), str(out), "--what", "write")))
            shutil.rmtree(out)
            out.mkdir()
    old, new = both
    unlike = [key for key in old if old[key] != new.get(key)]
    for key in unlike:
        names = [n for n in old[key] if old[key][n] != new[key].get(n)] if isinstance(old[key], dict) and isinstance(new[key], dict) else []
        print(f"{key}: {', '.join(names) or f'{old[key]!s:.300} | {new.get(key)!s:.300}'}")
    refused = sum(isinstance(v, str) for v in new.values())
    print(f"{len(old) - len(unlike)} of {len(old)} alike, {refused} of them refused")
    raise SystemExit(bool(unlike))


if __name__ == "__main__":
    main()
