"""llama.cpp with CUDA, from the source that llama-cpp-python vendors, and its Python files; on a CPU the one that is installed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from job import HERE, Job

ON, LIMIT, NEEDS = "cpu", 360, ()
SOURCE = HERE / "llama-cpp-python.tar.xz"
OPTIONS = (
    "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_CCACHE=OFF",
    *(f"-DLLAMA_BUILD_{what}=OFF" for what in ("COMMON", "APP", "TESTS", "TOOLS", "EXAMPLES", "SERVER")),
)  # fmt: skip
STEP = re.compile(r"\[ *(\d+)[%/]")


def main(job: Job) -> None:
    if job.device == "cpu":
        return job.put("installed", importlib.util.find_spec("llama_cpp") is not None)
    tree, build = job.work / "llama-cpp-python", job.work / "llama-build"
    with tarfile.open(SOURCE) as tar:
        tar.extractall(tree, filter="data")
    begin = time.perf_counter()
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(["cmake", "-S", str(tree / "vendor/llama.cpp"), "-B", str(build), *ninja, *OPTIONS], check=True)
    jobs = str(max(1, (os.cpu_count() or 2) - job.cores // 2))
    with subprocess.Popen(["cmake", "--build", str(build), "--target", "llama", "-j", jobs], stdout=subprocess.PIPE, text=True) as making:
        for line in making.stdout or ():
            print(line, end="", flush=True)
            if STEP.search(line):  # how far it got, should it be stopped
                job.put("progress", line[: line.index("]")].strip("[ "))
    if making.returncode:
        raise SystemExit(f"the build ended with code {making.returncode}")
    job.put("seconds", time.perf_counter() - begin)
    site = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    shutil.copytree(tree / "llama_cpp", site / "llama_cpp", dirs_exist_ok=True)
    shutil.copytree(tree / "metadata", site, dirs_exist_ok=True)
    libraries = site / "llama_cpp" / "lib"
    libraries.mkdir(exist_ok=True)
    for library in (build / "bin").glob("*.so*"):
        shutil.copy(library, libraries, follow_symlinks=True)
    code = "import llama_cpp; print(llama_cpp.llama_supports_gpu_offload())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    job.put("offloads", done.stdout.strip() == "True")
