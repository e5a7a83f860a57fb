"""Write yarn_convert/runtimes/locks/*.txt: every package of a runtime's private environment, with the hashes of its files.

Run it after a change of the table's pins: `python tools/make_runtime_locks.py [NAME…] [-- OPTIONS OF UV]`, with uv installed. PyTorch and
what its CUDA builds need are left out, for which build it is follows from the index that pip is set to; so is what the table removes.
"""

import re
import subprocess
import sys
import tempfile

from yarn_convert.runtimes.environments import LOCKS
from yarn_convert.runtimes.table import RUNTIMES, Runtime

OF_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
HEAD = "# Made by tools/make_runtime_locks.py; pip takes no file that is not among these.\n"
COMMAND = ("uv", "pip", "compile", "--quiet", "--generate-hashes", "--python-version", "3.11", "--no-annotate", "--no-header")


def lock(row: Runtime, options: list[str]) -> str:
    where = ["--python-platform", "x86_64-manylinux_2_28"] if row.linux_only else ["--universal"]
    with tempfile.TemporaryDirectory() as work:  # where no project has settings for uv
        command = [*COMMAND, *where, *options, "-"]
        done = subprocess.run(command, input="\n".join(row.install), cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{row.name}: {done.stderr}")
    blocks = re.findall(r"^[\w.].*\n(?: .*\n)*", done.stdout, re.MULTILINE)  # of a package two, where an older Python takes an older one
    named = [(block.split("==")[0].split("[")[0], block) for block in blocks]
    return HEAD + "".join(block for name, block in named if not OF_TORCH.match(name) and name not in row.remove)


if __name__ == "__main__":
    names, _, options = (" ".join(sys.argv[1:]) + " ").partition("-- ")
    LOCKS.mkdir(exist_ok=True)
    for row in RUNTIMES.values():
        if not names.split() or row.name in names.split():
            (LOCKS / f"{row.name}.txt").write_text(lock(row, options.split()), "utf-8")
            print(row.name, LOCKS / f"{row.name}.txt")
