"""What a part of the GPU run is given, and how it keeps its figures. A part is one file of `parts/`:

    ON, LIMIT, NEEDS = "gpu", 120, ("prepare",)
    def main(job): …        # job.put("name", figure) as soon as it has one

ON: of those on "gpu" one runs at a time, those on "cpu" beside them. LIMIT: seconds, after which it is stopped. NEEDS: parts that have to be
done first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = HERE / "parts"
SCALE = 4


@dataclass(frozen=True)
class Job:
    """`work` is the run's folder; `model` the base, a GGUF; `texts` a folder of *.txt, or None for the text in the package."""

    name: str
    work: Path
    model: Path
    device: str
    texts: Path | None = None
    documents: int = 10
    cores: int = 1

    @property
    def folder(self) -> Path:
        """The base, extended, as safetensors."""
        return self.work / "extended"

    @property
    def gguf(self) -> Path:
        return self.work / "extended.gguf"

    @property
    def results(self) -> Path:
        return results_of(self.work, self.name)

    def put(self, key: str, figure: Any) -> None:
        """Keep a figure, JSON; whatever happens to this part afterwards."""
        found = read(self.results) | {key: figure}
        whole = self.results.with_suffix(".new")
        whole.write_text(json.dumps(found), "utf-8")
        whole.replace(self.results)

    def lengths(self) -> tuple[int, int]:
        """(L, L') in tokens."""
        from yarn_convert.checkpoint import open_checkpoint
        from yarn_convert.checkpoint.source import resolve

        original = int(open_checkpoint(resolve(str(self.model))).context)
        return original, SCALE * original

    def command(self, *words: object, passes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """What `yarn-convert … --json` answers. Raises RuntimeError for an exit code that is not in `passes`."""
        done = subprocess.run(
            [sys.executable, "-m", "yarn_convert", *map(str, words), "--json"], capture_output=True, text=True, check=False, cwd=self.work
        )
        if done.returncode not in passes:
            raise RuntimeError(" ".join(done.stderr.split())[-500:] or f"exit code {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def write(self, path: Path) -> None:
        path.write_text(
            json.dumps({k: None if v is None else str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}), "utf-8"
        )

    @staticmethod
    def at(path: Path) -> Job:
        given = read(path)
        folders = {k: Path(given[k]) for k in ("work", "model", "texts") if given[k]}
        return Job(**given | folders)


def results_of(work: Path, name: str) -> Path:
    return work / "results" / f"{name}.json"


def read(path: Path) -> dict[str, Any]:
    """A JSON file's object, {} where there is none."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def few_threads(n: int) -> dict[str, str]:
    """The environment for a process that is to use so many cores."""
    return dict(os.environ) | {name: str(n) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an answer of `validate`."""
    kept = ("kind", "tokens", "reference", "tolerance", "wrong_recipes", "runtimes", "text_loss")
    return {"verdict": result["verdict"], "reasons": result["reasons"], "studies": [{k: s[k] for k in kept} for s in result["studies"]]}
