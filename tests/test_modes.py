"""Runtimes as their users run them: coarser arithmetic, whose noise is measured; and devices, which a worker is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel
from test_validate import extended, run

from yarn_convert import runtimes
from yarn_convert.errors import UsageError
from yarn_convert.runtimes import protocol
from yarn_convert.runtimes.table import RUNTIMES, Runtime, mode_of, runtime_of
from yarn_convert.validation import study
from yarn_convert.validation.judging import FLOAT32
from yarn_convert.validation.result import validated
from yarn_convert.validation.text import lines
from yarn_convert.validation.verdict import verdict_of

pytest.importorskip("torch")
pytest.importorskip("accelerate")
MODES = [f"{name}:{mode}" for name, row in RUNTIMES.items() for mode in row.modes]


@pytest.mark.parametrize("wish", MODES)
def test_a_sound_file_passes_in_every_mode(make_model: MakeModel, tmp_path: Path, wish: str) -> None:
    row = runtime_of(wish)
    pytest.importorskip(row.module)
    model = make_model()
    out = extended(model, tmp_path / ("out.gguf" if row.reads == "gguf" else "out"))
    result = run(out, base=str(model), runtimes=(row.name, wish))
    assert (result["verdict"], result["reasons"]) == ("passed", [])
    for s in result["studies"]:
        plain, mode = s["runtimes"]
        assert (plain["runtime"], mode["runtime"]) == (row.name, wish)
        coarse = (row.modes[wish.partition(":")[2]].dtype, row.modes[wish.partition(":")[2]].cache) != ("float32", "float32")
        assert plain["tolerance"]["nmse"] == FLOAT32.nmse
        assert (mode["tolerance"]["nmse"] > FLOAT32.nmse) == coarse
        assert (max(w["nmse"] for w in mode["windows"]) > 10 * max(w["nmse"] for w in plain["windows"])) == coarse, "the mode is another"
    assert any(f"  {wish} " in line and "passed" in line for line in lines(validated(result)))


@pytest.mark.parametrize("wish", ["transformers:bf16", "llama.cpp:fa"])
def test_a_file_that_means_something_else_fails_in_a_coarse_mode_too(make_model: MakeModel, tmp_path: Path, wish: str) -> None:
    row = runtime_of(wish)
    pytest.importorskip(row.module)
    out = extended(make_model(), tmp_path / ("out.gguf" if row.reads == "gguf" else "out"))
    other = extended(make_model("other"), tmp_path / f"linear{out.suffix}", method="linear")
    result = run(out, like=str(other), runtimes=(wish,))
    assert result["verdict"] == "failed"
    assert all(r["verdict"] == "failed" for s in result["studies"] for r in s["runtimes"])


def test_what_a_coarse_mode_cannot_see_has_to_be_seen_elsewhere() -> None:
    wrong = [{"name": "factor × 2", "told_apart": True, "from": 0, "windows": [{"nmse": 1e-3, "kl": 1e-3}]}]

    def told(*blind: list[str]) -> str:
        runs = [
            {"runtime": "transformers:bf16", "verdict": "passed", "predicted": "", "windows": [{"end": 9}], "blind_to": b} for b in blind
        ]
        studies = [{"kind": kind, "permuted": False, "wrong_recipes": wrong, "runtimes": [r], "guessing_loss": 1.0, "text_loss": None}
                   for kind, r in zip(("real", "twin"), runs, strict=False)]  # fmt: skip
        parts = {name: {"verdict": "passed"} for name in ("recipe", "weights", "tokenizer")}
        recipe = {"original_context": 4}
        return str(verdict_of({"studies": studies, "intention": {"context": 9, "recipe": recipe}, "missing": [], **parts}, ())["verdict"])

    assert told([], []) == told(["factor × 2"], []) == "passed"
    assert told(["factor × 2"], ["factor × 2"]) == told(["factor × 2"]) == "inconclusive"


@pytest.mark.parametrize(
    ("wish", "says"),
    [("transformers:int8", "transformers has no mode 'int8'"), ("nothing:bf16", "unknown runtime 'nothing'"), ("vllm:bf16", "no mode")],
)
def test_a_mode_that_there_is_not_is_said(make_model: MakeModel, wish: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as e:
        run(make_model(), runtimes=(wish,))
    assert "one of " in e.value.hint


def test_a_worker_is_told_its_device_and_mode(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers is asked for goes into the job, by which this worker fails: with its options as its last word."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, pathlib, sys\nsys.exit(json.dumps(json.loads((pathlib.Path(sys.argv[1]) / 'job.json').read_text())['options']))"
    )
    seen: list[dict[str, Any]] = []

    def call(command: list[str], *rest: Any) -> tuple[int, str]:
        code, last = real([command[0], str(worker), command[2]], *rest)
        seen.append(json.loads(last))
        return code, last

    real = runtimes._call
    monkeypatch.setattr(runtimes, "_call", call)
    for wish in ("transformers", "transformers:bf16-eager"):
        with pytest.raises(runtimes.Failed):
            runtimes.run(wish, make_model(wish.replace(":", "-")), [1, 2], [(0, 2)], {"device": "cuda"})  # type: ignore[arg-type]
    assert seen == [{"device": "cuda"}, {"device": "cuda", "dtype": "bfloat16", "attention": "eager"}]


def test_a_device_without_memory_is_no_verdict(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_call", lambda *_: (protocol.SHORT, "too little memory: 9 GiB"))
    result = run(extended(make_model(), tmp_path / "out"), runtimes=("transformers:eager",), twin=False)
    assert (result["verdict"], {r["verdict"] for s in result["studies"] for r in s["runtimes"]}) == ("inconclusive", {study.NOT_RUN})
    assert "too little memory" in result["reasons"][0]


def test_where_a_runtime_ran_is_said() -> None:
    from yarn_convert.validation.judging import Tolerance
    from yarn_convert.validation.result import RanRuntime
    from yarn_convert.validation.text import label

    said: dict[str, Any] = {"predicted": "", "as_predicted": False, "tolerance": Tolerance(1e-6, 1e-6, ""), "verdict": "passed"}
    said |= {"layer": "", "why": "", "blind_to": ()}
    assert label(RanRuntime(runtime="llama.cpp:fa", version="1", device="cuda", **said)) == "llama.cpp:fa 1 on cuda"
    assert label(RanRuntime(runtime="llama.cpp", version="1", device="cpu", **said)) == "llama.cpp 1"
    assert label(RanRuntime(runtime="llama.cpp", **said)) == "llama.cpp"


def test_every_mode_is_of_a_runtime_that_there_is() -> None:
    assert mode_of("transformers") is None and all(mode_of(wish) for wish in MODES)
    assert isinstance(runtime_of("llama.cpp:fa"), Runtime)
