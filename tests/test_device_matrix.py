"""The device matrix: every device of llama.cpp, in every type and mode, against the reference; and a device that computes something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
from conftest import MakeModel
from test_llama_lib import main
from test_validate import extended, opened

from yarn_convert import runtimes
from yarn_convert.compute.reference import Reference
from yarn_convert.errors import UsageError
from yarn_convert.hearing import hearing
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
    there = {
        "version": "1",
        "idle": ["Vulkan"],
        "devices": [{"name": n, "description": "", "kind": k} for n, k in (("GPU0", "GPU"), ("CPU", "CPU"))],
    }
    monkeypatch.setattr(matrix, "probe", lambda own: there)
    monkeypatch.setattr(matrix, "TYPES", ("f32",))

    def run(name: str, path: Path, ids: Any, spans: Any, options: Any = None, progress: Any = lambda f: None) -> Any:
        told.append((options or {}).get("backend", ""))
        done = real(name, path, ids, spans, {**(options or {}), **({"backend": "CPU"} if told[-1] else {})}, progress)
        return work(told[-1], done)

    monkeypatch.setattr(runtimes, "run", run)
    return told


def off(device: str, done: Any) -> Any:
    info = done.info | {"elsewhere": ["FLASH_ATTN_EXT"]}
    return done._replace(logits=done.logits * np.float32(1.01), info=info) if device == "GPU0" else done


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
    with hearing(lambda call, what, fraction, more: said.append(fraction) if what and call is not what else None):
        found = device_matrix(str(out), ValidateOptions(twin_tokens=TOKENS))
    assert said == sorted(said) and said[0] == 0.0 and said[-1] > 0.9
    assert {*told} - {""} == {"GPU0", "CPU"}
    assert (found.verdict, found.reasons[0][: len(says)]) == (verdict, says)
    assert {c.device: c.verdict for c in found.cells} == {"GPU0": "failed" if work is off else "not run", "CPU": "passed"}
    shown = "\n".join(matrix_lines(found))
    assert ("FAILED 1" in shown) == (work is off) and verdict.upper() in shown and "  no device of Vulkan\n" in shown
    assert {c.device: c.elsewhere for c in found.cells} == {"GPU0": ("FLASH_ATTN_EXT",) if work is off else (), "CPU": ()}
    (row,) = (line for line in shown.splitlines() if line.lstrip().startswith("GPU0  f32"))
    left = {reason for reason in found.reasons if "the CPU computed" in reason}
    assert left == ({f"GPU0, {mode}: the CPU computed FLASH_ATTN_EXT (f32)" for mode in MODES} if work is off else set())
    assert row.count("*") == len(left)


def test_a_file_that_means_something_else_fails_everywhere(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "TYPES", ("f32", "f16"))
    out = extended(make_model(), tmp_path / "out.gguf", method="linear")
    found = device_matrix(str(out), ValidateOptions(twin_tokens=TOKENS, recipe=Recipe(scale=4, method="yarn", original_context=64)))
    assert {c.verdict for c in found.cells} == {"failed"} and len(found.cells) >= 6


def cell(device: str, *blind: str, mode: str = "llama.cpp", left: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"device": device, "dtype": "f32", "mode": mode, "verdict": "passed", "why": "", "blind_to": blind, "elsewhere": left}


def test_what_no_cell_of_a_device_sees_is_a_doubt() -> None:
    verdict = matrix._verdict(
        [cell("CPU"), cell("A", "factor × 2"), cell("A", "factor × 2"), cell("B", "factor × 2"), cell("B")], ["factor × 2"]
    )
    assert verdict == {"verdict": "inconclusive", "reasons": ["A would have passed with 'factor × 2' too"]}


def test_a_device_that_leaves_every_rotation_to_the_cpu_proves_nothing() -> None:
    once, always = cell("A", left=("ROPE",)), cell("B", mode="llama.cpp:fa", left=("FLASH_ATTN_EXT", "ROPE"))
    verdict = matrix._verdict([cell("CPU"), once, cell("A"), always, always], [])
    assert verdict["verdict"] == "inconclusive" and verdict["reasons"] == [
        "B turned nothing: ROPE was left to the CPU", "A, llama.cpp: the CPU computed ROPE (f32)",
        "B, llama.cpp:fa: the CPU computed FLASH_ATTN_EXT, ROPE (f32, f32)",
    ]  # fmt: skip
    assert matrix._verdict([cell("CPU"), once, cell("A")], [])["verdict"] == "passed"


def test_a_device_that_is_no_longer_there_is_not_the_cpu(out: Path) -> None:
    with pytest.raises(runtimes.Failed, match="lists no device GPU0 now"):
        runtimes.run("llama.cpp", out, twin.ids(8), [(0, 8)], {"backend": "GPU0"})


def test_where_a_graph_is_computed_is_seen_in_it(out: Path) -> None:
    """The installed llama.cpp computes all of it in the CPU's own buffers; of a device that has others, nothing would be there."""
    code = (
        "import json, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\nimport llama_cpp, llama_cpp_worker as w\n"
        "ggml = w.ggml_of(llama_cpp.llama_cpp._lib, Path(llama_cpp.llama_cpp._base_path))\n"
        "there = next(d['handle'] for d in w.devices(ggml) if d['kind'] == w.CPU)\n"
        "usual, own, found = llama_cpp.llama_cpp.llama_context_default_params, ggml.ggml_backend_dev_buffer_type(there), []\n"
        "for of in (own, own + 8):\n"
        "    ggml.ggml_backend_dev_buffer_type, names = lambda device, of=of: of, set()\n"
        "    llama_cpp.llama_cpp.llama_context_default_params = usual\n"
        "    w.begin_with(llama_cpp, 'context', cb_eval=w.left(llama_cpp, ggml, there, names))\n"
        "    llama_cpp.Llama(sys.argv[1], n_ctx=32, verbose=False, n_threads=1).eval([1, 2, 3])\n"
        "    found.append(sorted(names))\n"
        "print(json.dumps([found, w.idle(ggml)]))"
    )
    said = forks.run([sys.executable, "-c", code, str(out), str(Path(runtimes.__file__).parent)])
    (here, there), idle = json.loads(said.splitlines()[-1])
    assert not here and not idle and {"ROPE", "MUL_MAT", "RMS_NORM"} <= {*there} and not {"VIEW", "GET_ROWS"} & {*there}


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
