"""The device matrix: every device of llama.cpp, in every type and mode, against the reference; and a device that computes something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel
from test_llama_lib import main
from test_validate import extended, opened

from yarn_convert import runtimes
from yarn_convert.compute.reference import Reference
from yarn_convert.errors import UsageError
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.rope import table
from yarn_convert.runtimes.table import RUNTIMES
from yarn_convert.validation import device_matrix, matrix, matrix_lines, twin
from yarn_convert.validation.matrix import TYPES, typed

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("llama_cpp")
MODES = {"llama.cpp", *(f"llama.cpp:{mode}" for mode in RUNTIMES["llama.cpp"].modes)}
TOKENS = 128


@pytest.fixture
def out(make_model: MakeModel, tmp_path: Path) -> Path:
    return extended(make_model(), tmp_path / "out.gguf")


def test_a_sound_file_passes_in_every_cell_that_there_is(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong recipes fail in the strictest cell of each device, so that its passing proves something."""
    assert main(["validate", str(out), "--device-matrix", "--twin-tokens", str(TOKENS), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    devices = [d["name"] for d in runtimes.probe(None)["devices"]]
    assert {(c["device"], c["dtype"], c["mode"]) for c in found["cells"]} == {(d, t, m) for d in devices for t in TYPES for m in MODES}
    assert {c["verdict"] for c in found["cells"]} == {"passed"} and found["verdict"] == "passed" and found["tokens"] == TOKENS
    nmse = {(c["dtype"], c["mode"]): c["nmse"] for c in found["cells"] if c["device"] == "CPU"}
    assert nmse["f32", "llama.cpp"] < 1e-10 < nmse["f16", "llama.cpp"] < nmse["q8_0", "llama.cpp"], "the types are those"
    assert nmse["f32", "llama.cpp"] < nmse["f32", "llama.cpp:fa"], "and so are the modes"
    assert nmse["f32", "llama.cpp"] < nmse["f32", "llama.cpp:f16"] != nmse["f32", "llama.cpp:fa"]
    assert all(not c["blind_to"] for c in found["cells"] if c["dtype"] == "f32")


def with_devices(monkeypatch: pytest.MonkeyPatch, work: Callable[[str, Any], Any]) -> list[str]:
    """llama.cpp with a device more, GPU0, whose logits `work` makes of the CPU's; the devices that workers are told are kept."""
    real, told = runtimes.run, list[str]()
    there = {"version": "1", "devices": [{"name": n, "description": "", "kind": k} for n, k in (("GPU0", "GPU"), ("CPU", "CPU"))]}
    monkeypatch.setattr(matrix, "probe", lambda own: there)
    monkeypatch.setattr(matrix, "TYPES", ("f32",))

    def run(name: str, path: Path, ids: Any, spans: Any, options: Any = None, progress: Any = lambda f: None) -> Any:
        told.append((options or {}).get("backend", ""))
        done = real(name, path, ids, spans, options, progress)
        return work(told[-1], done)

    monkeypatch.setattr(runtimes, "run", run)
    return told


def off(device: str, done: Any) -> Any:
    return done._replace(logits=done.logits * np.float32(1.01)) if device == "GPU0" else done


def gone(device: str, done: Any) -> Any:
    if device == "GPU0":
        raise runtimes.Failed("llama.cpp could not run it: no kernel", "")
    return done


@pytest.mark.parametrize(
    ("work", "verdict", "says"), [(off, "failed", "GPU0, f32, llama.cpp: "), (gone, "inconclusive", "GPU0 computed nothing")]
)
def test_a_device_that_computes_something_else_fails_alone(
    out: Path, monkeypatch: pytest.MonkeyPatch, work: Any, verdict: str, says: str
) -> None:
    told = with_devices(monkeypatch, work)
    said: list[float] = []
    found = device_matrix(str(out), ValidateOptions(twin_tokens=TOKENS), lambda what, fraction: said.append(fraction))
    assert said == sorted(said) and said[0] == 0.0 and said[-1] > 0.9
    assert {*told} - {""} == {"GPU0", "CPU"}
    assert (found.verdict, found.reasons[0][: len(says)]) == (verdict, says)
    assert {c.device: c.verdict for c in found.cells} == {"GPU0": "failed" if work is off else "not run", "CPU": "passed"}
    shown = "\n".join(matrix_lines(found))
    assert ("FAILED 1" in shown) == (work is off) and verdict.upper() in shown


def test_a_file_that_means_something_else_fails_everywhere(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "TYPES", ("f32", "f16"))
    out = extended(make_model(), tmp_path / "out.gguf", method="linear")
    found = device_matrix(str(out), ValidateOptions(twin_tokens=TOKENS, recipe=Recipe(scale=4, method="yarn", original_context=64)))
    assert {c.verdict for c in found.cells} == {"failed"} and len(found.cells) >= 6


def test_what_no_cell_of_a_device_sees_is_a_doubt() -> None:
    def cell(device: str, *blind: str) -> dict[str, Any]:
        return {"device": device, "dtype": "f32", "mode": "llama.cpp", "verdict": "passed", "why": "", "blind_to": blind}

    verdict = matrix._verdict(
        [cell("CPU"), cell("A", "factor × 2"), cell("A", "factor × 2"), cell("B", "factor × 2"), cell("B")], ["factor × 2"]
    )
    assert verdict == {"verdict": "inconclusive", "reasons": ["A would have passed with 'factor × 2' too"]}


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_a_twin_of_another_type_is_the_same_but_for_its_rounding(out: Path, tmp_path: Path, dtype: str) -> None:
    small = twin.write_twin(opened(out), tmp_path / "twin.gguf")
    other = typed(small, dtype, tmp_path / "typed.gguf")
    assert other.rope == small.rope and {t.dtype for t in other.tensors.values() if len(t.shape) > 1} == {dtype.upper()}
    ids = twin.ids(32)
    a, b = (Reference(x).logits(table(small.rope), ids, [(0, 32)]) for x in (small, other))
    error = float(np.square(a - b).sum() / np.square(a - a.mean()).sum())
    assert 1e-9 < error < 1e-2


def test_what_the_matrix_is_not_of_is_said(make_model: MakeModel, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="of a GGUF"):
        device_matrix(str(make_model("folder")), ValidateOptions())
    assert main(["validate", str(out), "--device-matrix", "--runtime", "llama.cpp"]) == 1
    assert "--device-matrix takes no --runtime" in capsys.readouterr().err
