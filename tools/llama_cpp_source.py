"""FOLDER: unpack llama.cpp's source tree as the installed llama-cpp-python vendors it, from its source package."""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

VENDORED = "/vendor/llama.cpp/"
NEEDED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "models/ggml-vocab", "src/llama-arch.cpp")


def source_package(work: str) -> Path:
    """The source package of the installed llama-cpp-python, downloaded into the folder `work`."""
    wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", work, wanted]
    subprocess.run(command, check=True)
    (archive,) = Path(work).glob("*.tar.gz")
    return archive


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work, tarfile.open(source_package(work)) as tar:
        for member in tar:
            _, found, name = member.name.partition(VENDORED)
            if found and member.isfile() and name.startswith(NEEDED):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
