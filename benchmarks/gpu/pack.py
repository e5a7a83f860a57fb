"""Everything that the GPU run needs on a machine without a network, as pieces of at most 60 MiB: tar files, all unpacked into one folder.

    python pack.py --out .gpu --texts texts     # the model and llama.cpp's source come from the environment and the package index

Packed are the scripts, this package as a wheel, the wheels of MISSING for --python, SmolLM2 in halves, the texts, and of llama-cpp-python's
source package what llama.cpp with CUDA is built from.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from job import HERE

PIECE = 60 << 20  # bytes of a piece at most
HALF = 2  # parts of the model
MISSING = ("gguf", "msgspec", "diskcache")  # beside what a machine with torch and transformers has
ROOT = HERE.parents[1]
LETTERS = 600_000  # of each text: four documents of 32k tokens
# Of llama.cpp: its own sources, ggml with the backends that are built, and what its CMakeLists.txt names. The rest is other programs.
KEPT = re.compile(
    r"llama_cpp/|LICENSE|vendor/llama\.cpp/(CMakeLists\.txt|LICENSE|cmake/|include/|src/|scripts/build-info|vendor/|"
    r"ggml/(CMakeLists\.txt|cmake/|include/|src/(CMakeLists\.txt|ggml[^/]*\.|gguf[^/]*\.|ggml-(cpu|cuda)/)))"
)


def packages(folder: Path, python: str) -> list[Path]:
    """This package and MISSING as wheels, the latter at the versions of constraints.txt."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    wanted = [f"{name}=={pinned[name]}" for name in MISSING]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    platform = [
        "--platform",
        "manylinux2014_x86_64",
        "--platform",
        "manylinux_2_28_x86_64",
        "--python-version",
        python,
        "--only-binary",
        ":all:",
    ]
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), *platform, *wanted], check=True)
    return sorted(folder.glob("*.whl"))


def llama_cpp(folder: Path) -> Path:
    """The source package of the installed llama-cpp-python, cut to KEPT, and its metadata, by which its version is known."""
    sys.path.insert(0, str(ROOT / "tools"))
    from llama_cpp_source import source_package

    with tempfile.TemporaryDirectory() as work:
        archive = source_package(work)
        with tarfile.open(archive) as source, tarfile.open(folder / "llama-cpp-python.tar.xz", "w:xz") as target:
            for member in source:
                name = member.name.partition("/")[2]
                if name == "PKG-INFO":
                    name = f"metadata/{archive.name.removesuffix('.tar.gz')}.dist-info/METADATA"
                elif not KEPT.match(name):
                    continue
                member.name, member.pax_headers = name, {}  # where a long name would stand, too
                if member.isfile():
                    target.addfile(member, source.extractfile(member))
    return folder / "llama-cpp-python.tar.xz"


def model(folder: Path) -> tuple[str, list[Path]]:
    """(the name of the model's file, its halves)."""
    from yarn_convert.checkpoint.source import resolve

    whole = resolve("smollm2-135m").path
    data, pieces = whole.read_bytes(), list[Path]()
    step = -(-len(data) // HALF)
    for i in range(HALF):
        pieces.append(folder / f"model.{i}")
        pieces[-1].write_bytes(data[i * step : (i + 1) * step])
    return whole.name, pieces


def texts(folder: Path, given: Path) -> list[Path]:
    found = []
    for path in sorted(given.glob("*.txt")):
        found.append(folder / "texts" / path.name)
        found[-1].parent.mkdir(exist_ok=True)
        found[-1].write_text(path.read_text("utf-8-sig")[:LETTERS], "utf-8")
    return found


def scripts() -> Iterator[tuple[str, Path]]:
    """(name in a piece, file)."""
    for path in sorted(HERE.rglob("*.py")):
        yield str(path.relative_to(HERE)), path
    yield "evaluation.py", HERE.parent / "evaluation.py"


def distributed(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Names in as few lists as come of putting the largest first, each sum at most `most`. SystemExit for a file that is larger."""
    found: list[tuple[int, list[str]]] = []
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        size = sizes[name] + 1536  # its header, and what fills the last block
        if size > most:
            raise SystemExit(f"{name} has {sizes[name]:,} bytes, and a piece at most {most:,}")
        place = next((i for i, (used, _) in enumerate(found) if used + size <= most), None)
        if place is None:
            found.append((size, [name]))
        else:
            used, names = found[place]
            found[place] = (used + size, [*names, name])
    return [names for _, names in found]


def write(files: dict[str, Path], described: dict[str, object], out: Path) -> list[Path]:
    """The pieces in `out`; the first holds packed.json, which has every file's SHA-256."""
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    packed = json.dumps({**described, "files": digests}, indent=1).encode()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("piece-*.tar"):
        old.unlink()
    found = []
    for i, names in enumerate(distributed({name: path.stat().st_size for name, path in files.items()}, PIECE - len(packed) - (64 << 10))):
        found.append(out / f"piece-{i}.tar")
        with tarfile.open(found[-1], "w") as tar:
            if i == 0:
                info = tarfile.TarInfo("packed.json")
                info.size = len(packed)
                tar.addfile(info, io.BytesIO(packed))
            for name in names:
                tar.add(files[name], name)
        if found[-1].stat().st_size > PIECE:
            raise SystemExit(f"{found[-1].name} is larger than {PIECE:,} bytes")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".gpu"))
    parser.add_argument("--texts", type=Path, help="folder of *.txt for the perplexities [default: the text in the package]")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        name, halves = model(folder)
        made: list[Path] = [*halves, *packages(folder, given.python), llama_cpp(folder)]
        made += texts(folder, given.texts) if given.texts else []
        files = {str(path.relative_to(folder)): path for path in made} | dict(scripts())
        described = {"model": {"name": name, "pieces": [p.name for p in halves]}, "texts": given.texts is not None}
        for piece in write(files, described, given.out):
            print(f"{piece}  {piece.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
